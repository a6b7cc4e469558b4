"""Folders that hold no usable model: what is said, before any weight is read where that can be."""

import shutil
from pathlib import Path

import pytest

from zerograd.training.models import ModelError, check_model, demo_folder, load_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the demo's model."""
    return Path(shutil.copytree(demo_folder("model"), tmp_path / "model"))


def test_a_folder_without_a_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ModelError, match=r"without its tokenizer.*save_pretrained\('"):
        check_model(str(folder), "auto")


@pytest.mark.parametrize("kept", [0, 1000, -1000])
def test_weights_that_were_cut_off(folder: Path, kept: int) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(ModelError, match="are damaged or cut off .*: save or download the model again"):
        load_model(str(folder), "auto")


def test_a_folder_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="does not hold a usable model and tokenizer: .*model.safetensors"):
        load_model(str(folder), "auto")
