"""Where a command writes: whole files or none, and one sentence with path and size."""

import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import Trainer

from architectures import make_tiny
from zerograd import MeZOConfig, MeZOTrainer, StepLog
from zerograd.cli.output import read_json, write_json, write_whole, writing
from zerograd.core.parameters import Parameters
from zerograd.training.checkpoints import save_base


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may have more than 4 kB: as on a disk that fills up, the first bytes are written and then no more."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, small_files: None) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"a": 1})
    with pytest.raises(OSError, match=r"cannot write .*results.json \(9.0 kB\): File too large; free some space"):
        write_whole(path, b"x" * 9000)
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_base_weights_that_do_not_fit(tmp_path: Path, small_files: None) -> None:
    parameters = Parameters((name, p, 0) for name, p in make_tiny("llama").named_parameters())
    with pytest.raises(
        OSError, match=r"cannot write the base weights to .*base \(0.\d MB\): .*free some space"
    ) as said:
        save_base(tmp_path / "base", parameters)
    assert "None" not in str(said.value)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_cannot_be_written_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's writer raises a RuntimeError on a full disk; the run goes on from its log."""

    def trainer() -> MeZOTrainer:
        config = MeZOConfig(
            str(tmp_path), max_steps=4, save_steps=2, use_cpu=True, disable_tqdm=True, save_full_model="never",
            resume=True,
        )  # fmt: skip
        return MeZOTrainer(make_tiny("llama"), config, train_dataset=[{"input_ids": [1, 2], "labels": [1, 2]}] * 8)

    def full(*args: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file data/0")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_optimizer_and_scheduler", full)
        with pytest.raises(
            OSError, match="cannot write the checkpoint .*checkpoint-2: .* up to step 2: free some space"
        ):
            trainer().train()
    assert [path.name for path in tmp_path.iterdir()] == ["steps.zlog"]
    trainer().train()
    assert len(StepLog.read(tmp_path / "steps.zlog").steps) == 4


def test_a_file_of_ours_with_something_else_in_it(tmp_path: Path) -> None:
    for content, words in (("{", "is no JSON"), ("[1]", "does not hold what zerograd wrote there")):
        (tmp_path / "run.json").write_text(content)
        with pytest.raises(ValueError, match=words):
            read_json(tmp_path / "run.json")


def test_a_folder_that_was_made_for_nothing_goes_again(tmp_path: Path) -> None:
    with pytest.raises(KeyError), writing(tmp_path / "a" / "b"):
        raise KeyError
    assert not list(tmp_path.iterdir())
    with writing(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "file").touch()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["file"]
