"""What is tuned: all weights, some of them, the head, or an adapter made by `peft`."""

import re
import warnings
from collections.abc import Collection
from difflib import get_close_matches
from typing import Any

import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from peft.utils.constants import DUMMY_TARGET_MODULES, TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

from zerograd.tasks.model_kind import NO_VIRTUAL, positions
from zerograd.training.prefix import add_prefix
from zerograd.training.tuning import AdapterError, Tuning, layer_numbers

# where peft does not know the architecture; some hold queries, keys and values in one matrix
QUERIES_AND_VALUES = (
    ("q_proj", "v_proj"), ("query", "value"), ("q_lin", "v_lin"), ("c_attn",), ("query_key_value",), ("qkv_proj",),
    ("Wqkv",), ("q", "v"),
)  # fmt: skip
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def apply_tuning(model: Any, tuning: Tuning, *, masked: bool, seed: int, resumed: bool = False) -> Any:
    """Make exactly what `tuning` says trainable; returns the model, or the PeftModel around it.

    Args:
        model: A language model, or a PeftModel, which is taken as it is unless the tuning says otherwise.
        tuning: What to tune.
        masked: Whether it is a masked language model.
        seed: Of the adapter's random start.
        resumed: The model holds the adapter that this very tuning made.

    Raises:
        AdapterError: It does not fit the model.
    """
    check_tuning(model.config, tuning)
    adapted = isinstance(model, PeftModel)
    tune = None if resumed else tuning.tune or (None if adapted else "full")
    if adapted and tune is not None:
        raise AdapterError(f"the model already has an adapter, which would lie under tune={tune!r}; leave out --tune")
    if tune == "full":
        _tune_all(model, tuning)
    elif tune is not None:
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*tie_word_embeddings=True.*")  # untying was asked for
            torch.manual_seed(seed)
            model = _add_adapter(model, tune, tuning, masked, generator)
    elif not any(p.requires_grad for p in model.parameters()):
        raise AdapterError(
            "the model's adapter is frozen; load it with PeftModel.from_pretrained(..., is_trainable=True)"
        )
    _restrict(model, tuning)
    return model.eval()


def check_tuning(config: Any, tuning: Tuning) -> None:
    """AdapterError where a model cannot be tuned so, by its configuration alone."""
    if tuning.tune_layers is not None:
        layers = int(config.get_text_config().num_hidden_layers)
        beyond = min((n for n in layer_numbers(tuning.tune_layers) if n >= layers), default=None)
        if beyond is not None:
            raise AdapterError(
                f"tune_layers {tuning.tune_layers!r}: the model has layers 0 to {layers - 1}, not {beyond}"
            )
    context = positions(config)
    if tuning.tune in ("prefix", "prompt") and context is not None and tuning.num_virtual_tokens >= context:
        raise AdapterError(
            f"num_virtual_tokens {tuning.num_virtual_tokens} leaves no room for text in a context of {context} tokens; "
            "the paper's prefix has 5"
        )
    if not config.is_encoder_decoder:
        return
    if tuning.tune in ("prefix", "prompt"):
        raise AdapterError(f"tune={tuning.tune!r} of an encoder-decoder model ({config.model_type}): {NO_VIRTUAL}")
    if tuning.untie:
        raise AdapterError(_no_untying(config))


def _no_untying(config: Any) -> str:
    return (
        f"the head of a {config.model_type} model shares its weights with its embeddings, and some encoder-decoder "
        "classes (T5) read the setting that says otherwise as another function; it cannot be untied: tune lora or full"
    )


def _add_adapter(model: Any, tune: str, tuning: Tuning, masked: bool, generator: torch.Generator) -> PeftModel:
    kind = "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "FEATURE_EXTRACTION" if masked else "CAUSAL_LM"
    if tune == "prefix":
        return add_prefix(model, tuning.num_virtual_tokens, tuning.prefix_init, masked, generator)
    if tune == "prompt":
        return get_peft_model(model, PromptTuningConfig(task_type=kind, num_virtual_tokens=tuning.num_virtual_tokens))
    if tune == "lora":
        return _add_lora(model, tuning, kind)
    head, name = _head_of(model)
    if head.weight is model.get_input_embeddings().weight and not tuning.untie:
        if model.config.is_encoder_decoder:
            raise AdapterError(_no_untying(model.config))
        raise AdapterError(
            f"the head of this {model.config.model_type} model shares its weights with the input embedding, so that "
            "tuning it changes what the model reads too; give it weights of its own with --untie, or tune full with "
            "--tune_pattern for both"
        )
    # to peft a head is a module that is saved beside an adapter, here one without matrices
    return get_peft_model(
        model, LoraConfig(task_type=kind, target_modules=DUMMY_TARGET_MODULES, modules_to_save=[name])
    )


def _add_lora(model: Any, tuning: Tuning, kind: str) -> PeftModel:
    linear = {n.rpartition(".")[2] for n, m in model.named_modules() if _is_matrix(m)}
    known = [TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model.config.model_type) or [], *QUERIES_AND_VALUES]
    targets = next((list(names) for names in known if names and linear.issuperset(names)), [])
    if tuning.lora_targets is not None:
        targets = [t.strip() for t in tuning.lora_targets.split(",") if t.strip()]
    if not targets:
        raise AdapterError(
            f"which modules of a {model.config.model_type} model hold its queries and values is not known; name them "
            f"with --lora_targets. It has {', '.join(sorted(linear))}"
        )
    names = [name for name, _ in model.named_modules()]
    for target in targets:
        if not any(name == target or name.endswith("." + target) for name in names):
            near = get_close_matches(target, linear, n=3, cutoff=0.4)
            listed = f"did you mean {', '.join(near)}?" if near else f"it has {', '.join(sorted(linear))}"
            raise AdapterError(f"lora_targets: no module of the model is named {target!r}; {listed}")
    config = LoraConfig(task_type=kind, r=tuning.lora_r, lora_alpha=tuning.lora_alpha, target_modules=targets)
    return get_peft_model(model, config)


def untie(model: Any) -> None:
    """Give the head a copy of the input embedding's weights where it shares them.

    Raises:
        AdapterError: An encoder-decoder model's head.
    """
    head, _ = _head_of(model)
    if head.weight is model.get_input_embeddings().weight:
        if model.config.is_encoder_decoder:
            raise AdapterError(_no_untying(model.config))
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
        model.config.tie_word_embeddings = False


def untie_as_in(model: Any, tuned: Collection[str]) -> None:
    """Untie the head if a run tuned it apart from the input embedding: by the names of the tensors it tuned."""
    same = [
        name for name, p in model.named_parameters(remove_duplicate=False) if p is model.get_input_embeddings().weight
    ]
    if len([name for name in same if name in tuned]) > 1:
        untie(model)


def _head_of(model: Any) -> tuple[Any, str]:
    head = model.get_output_embeddings()
    if head is None:
        raise AdapterError(
            f"this {model.config.model_type} model has no output embedding that could be tuned as its head"
        )
    return head, next(name for name, module in model.named_modules() if module is head)


def _tune_all(model: Any, tuning: Tuning) -> None:
    if tuning.untie:
        untie(model)
    chosen = {name for name, _ in model.named_parameters() if _is_chosen(name, tuning)}
    quantised = [name for name, p in model.named_parameters() if name in chosen and not _is_float(p)]
    if quantised:
        raise AdapterError(
            f"{quantised[0]} and {len(quantised) - 1} more of the model's weights are quantised and cannot be tuned "
            "themselves; tune an adapter over them (--tune lora, prefix or head), or choose others with --tune_pattern"
        )
    for name, parameter in model.named_parameters():
        if _is_float(parameter):
            parameter.requires_grad_(name in chosen)


def _restrict(model: Any, tuning: Tuning) -> None:
    """Freeze what lies outside the layers and names that were asked for."""
    if tuning.tune_layers is None and tuning.tune_pattern is None:
        return
    tunable = [name for name, p in model.named_parameters() if p.requires_grad]
    kept = {name for name in tunable if _is_chosen(name, tuning)}
    if not kept:
        asked = tuning.tune_pattern or tuning.tune_layers or ""
        names = [name for name, _ in model.named_parameters()] if tuning.tune in (None, "full") else tunable
        near = get_close_matches(asked, names, n=3, cutoff=0.3) or names[:3]
        raise AdapterError(f"no tunable tensor matches {asked!r}; there are, for instance, {', '.join(near)}")
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.requires_grad_(name in kept)


def _is_chosen(name: str, tuning: Tuning) -> bool:
    if tuning.tune_pattern is not None and not re.search(tuning.tune_pattern, name):
        return False
    if tuning.tune_layers is None:
        return True
    layer = re.search(r"\.(\d+)\.", name)
    return layer is not None and int(layer[1]) in layer_numbers(tuning.tune_layers)


def _is_float(parameter: torch.Tensor) -> bool:
    """Whether a tensor holds its values as they are: quantised ones are integers, or hide theirs in a subclass."""
    return parameter.dtype in FLOATS and type(parameter.data) is torch.Tensor


def _is_matrix(module: torch.nn.Module) -> bool:
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    return weight is not None and weight.dim() == 2 and not isinstance(module, torch.nn.Embedding)
