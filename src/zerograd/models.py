"""Loading a model and its tokenizer, from the hub, a folder, or the built-in demo."""

import os
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from zerograd.task_side import is_masked_lm

DTYPES = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ModelError(ValueError):
    """A model or tokenizer that cannot be loaded."""


def demo_folder(part: str) -> Path:
    """The built-in demo's "model" or "data" folder."""
    return Path(str(files("zerograd.demo") / part))


def load_config(name: str) -> Any:
    """The model's configuration. ModelError if there is none."""
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise _model_error(name, error) from error


def check_model(name: str | None, dtype: str) -> bool:
    """Check what can be checked without the weights; returns whether it is a masked language model.

    Raises:
        ModelError, PromptError: As `load_model`.
    """
    if dtype not in DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}; choose one of {', '.join(DTYPES)}")
    return is_masked_lm(load_config(name or str(demo_folder("model"))))


def load_model(name: str | None, dtype: str) -> tuple[Any, Any]:
    """A model (None: the built-in demo's) in eval mode and its tokenizer; weights in `dtype` ("auto": as saved).

    Raises:
        ModelError: It cannot be loaded, or is no causal or masked language model.
    """
    name = name or str(demo_folder("model"))
    auto = AutoModelForMaskedLM if check_model(name, dtype) else AutoModelForCausalLM
    try:
        model: Any = auto.from_pretrained(name, dtype=DTYPES[dtype])
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _model_error(name, error) from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval(), tokenizer


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """`save_pretrained` into a folder whose other files stay; whole or not at all.

    Raises:
        OSError: The disk is full, or the folder cannot be written.
    """
    temporary = folder / ".saving"
    try:
        model.save_pretrained(temporary)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
        for path in temporary.iterdir():
            os.replace(path, folder / path.name)
        temporary.rmdir()
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(
            f"cannot save the model to {folder}: {error}. Free some space and run the command again."
        ) from error


def _model_error(name: str, error: Exception) -> ModelError:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if Path(name).is_dir():
        return ModelError(f"the folder {name} does not hold a usable model and tokenizer: {first}")
    if name.startswith(("/", ".", "~")):
        return ModelError(f"cannot load model {name!r}: there is no such folder")
    return ModelError(
        f"cannot load model {name!r}: {first.rstrip('.')}. Give a folder written by save_pretrained, or a model id of "
        "the hub (which needs a connection)."
    )
