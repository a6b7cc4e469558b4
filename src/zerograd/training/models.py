"""Loading a model, its adapter and its tokenizer, from the hub, a folder, or the built-in demo."""

import os
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BitsAndBytesConfig,
)

from zerograd.tasks.model_kind import is_masked_lm, model_kind

ADAPTER_CONFIG = "adapter_config.json"
TOKENIZERS = ("tokenizer*", "vocab*", "merges.txt", "*.model", "*.tiktoken", "sentencepiece*", "tekken.json")
QUANTIZE = ("8bit", "4bit")
AUTO: dict[str, Any] = {
    "causal": AutoModelForCausalLM, "masked": AutoModelForMaskedLM, "encoder-decoder": AutoModelForSeq2SeqLM,
}  # fmt: skip
DTYPES = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ModelError(ValueError):
    """A model or tokenizer that cannot be loaded."""


def auto_class(config: Any) -> Any:
    """The class of transformers that makes a model of this configuration. PromptError if it is no language model."""
    return AUTO[model_kind(config)]


def demo_folder(part: str) -> Path:
    """The built-in demo's "model" or "data" folder."""
    return Path(str(files("zerograd.training.demo") / part))


def load_config(name: str | None) -> Any:
    """The configuration of a model, an adapter's base or (None) the built-in demo. ModelError if there is none."""
    base, _ = base_and_adapter(name, None)
    try:
        return AutoConfig.from_pretrained(base)
    except MemoryError:
        raise
    except Exception as error:  # its own checks, and Python's own errors where a file holds something else
        raise _model_error(base, error) from error


def base_and_adapter(name: str | None, adapter: str | Path | None, replace: bool = False) -> tuple[str, str | None]:
    """The base model's name, and the adapter's: a folder with an adapter stands for both (None: the built-in demo).

    With `replace`, `adapter` takes the place of the one that the folder has.
    """
    if name is None:
        name = str(demo_folder("model"))
    if not (Path(name) / ADAPTER_CONFIG).is_file():
        return name, None if adapter is None else str(adapter)
    if adapter is not None and not replace:
        raise ModelError(f"{name} is an adapter already; give its base model to load {adapter} onto")
    base = read_adapter_config(name).base_model_name_or_path
    if not base:
        raise ModelError(f"the adapter {name} does not say which model it was trained on; give the model and --adapter")
    return base, name if adapter is None else str(adapter)


def read_adapter_config(folder: str | Path) -> PeftConfig:
    """The settings of a saved adapter. ModelError if there are none."""
    try:
        return PeftConfig.from_pretrained(str(folder))
    except Exception as error:  # as above
        raise ModelError(f"the folder {folder} does not hold an adapter of peft: {error}") from error


def check_model(name: str | None, dtype: str, quantize: str | None = None) -> bool:
    """Check what can be checked without the weights; returns whether it is a masked language model.

    Raises:
        ModelError, PromptError: As `load_model`.
    """
    if dtype not in DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}; choose one of {', '.join(DTYPES)}")
    if quantize is not None and quantize not in QUANTIZE:
        raise ModelError(f"unknown quantize {quantize!r}; choose one of {', '.join(QUANTIZE)}")
    masked = is_masked_lm(load_config(name))
    _check_tokenizer(Path(base_and_adapter(name, None)[0]))
    return masked


def _check_tokenizer(folder: Path) -> None:
    """ModelError where a model's folder has no tokenizer: transformers would make an empty one without a word."""
    if folder.is_dir() and not any(path for name in TOKENIZERS for path in folder.glob(name)):
        raise ModelError(
            f"the folder {folder} holds a model without its tokenizer (no tokenizer.json, vocab.* or *.model): write "
            f"it there with AutoTokenizer.from_pretrained(...).save_pretrained({str(folder)!r})"
        )


def load_model(
    name: str | None,
    dtype: str,
    adapter: str | Path | None = None,
    quantize: str | None = None,
    *,
    replace: bool = False,
    offload: bool = False,
) -> tuple[Any, Any]:
    """A model in eval mode, and its tokenizer.

    Args:
        name: Folder or hub id of a model or of an adapter (whose base model is then loaded too). None: the built-in
            demo's.
        dtype: Of the weights; "auto": as saved.
        adapter: Folder of an adapter to put on the model, trainable.
        quantize: "8bit" or "4bit": weights quantised by bitsandbytes while they are loaded.
        replace: `adapter` takes the place of the one that `name` has.
        offload: Leave it in main memory.

    Raises:
        ModelError, PromptError: It cannot be loaded, or is no causal, masked or encoder-decoder language model.
    """
    name, adapter = base_and_adapter(name, adapter, replace)
    check_model(name, dtype, quantize)
    auto = auto_class(load_config(name))
    more = {} if quantize is None else {"quantization_config": BitsAndBytesConfig(**{f"load_in_{quantize}": True})}
    try:
        model: Any = auto.from_pretrained(name, dtype=DTYPES[dtype], **more)
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of files that were damaged the readers raise a dozen unrelated types
        raise _model_error(name, error) from error
    for module in model.modules():
        # bitsandbytes rearranges 4-bit weights for some CPUs, and its state_dict() then leaves them unusable
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if not offload and not getattr(model, "is_quantized", False):  # those are placed while they are loaded
        model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    return (model if adapter is None else load_adapter(model, adapter)).eval(), tokenizer


def load_adapter(model: Any, folder: str | Path) -> Any:
    """The PeftModel of a model and a saved adapter, which is trainable. ModelError where they do not fit."""
    config = read_adapter_config(folder)
    try:
        adapted: Any = PeftModel.from_pretrained(model, str(folder), is_trainable=not config.is_prompt_learning)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # as above
        raise ModelError(f"the adapter {folder} does not fit the model: {first_line(error)}") from error
    if config.is_prompt_learning:  # peft loads these for inference only
        adapted.active_peft_config.inference_mode = False
        adapted.prompt_encoder.requires_grad_(True)
    return adapted


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
    except Exception as error:  # of a full disk: OSError, SafetensorError, and of tokenizers a bare Exception
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, MemoryError):
            raise
        raise OSError(
            f"cannot save the model to {folder}: {error}. Free some space and run the command again."
        ) from error


def _model_error(name: str, error: Exception) -> ModelError:
    first = first_line(error)
    if isinstance(error, SafetensorError):
        return ModelError(f"the weights in {name} are damaged or cut off ({first}): save or download the model again")
    if Path(name).is_dir():
        return ModelError(f"the folder {name} does not hold a usable model and tokenizer: {first}")
    if name.startswith(("/", ".", "~")):
        return ModelError(f"cannot load model {name!r}: there is no such folder")
    return ModelError(
        f"cannot load model {name!r}: {first.rstrip('.')}. Give a folder written by save_pretrained, or a model id of "
        "the hub (which needs a connection)."
    )


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type where it has none."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
