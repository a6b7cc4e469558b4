"""`Tuning`: what is to be tuned, as settings that are checked without torch or a model; `adapters` does it."""

import re
from dataclasses import dataclass

from zerograd.training.settings import did_you_mean, documented

TUNE = ("full", "lora", "prefix", "prompt", "head")
INITS = ("activations", "random")  # of a prefix


class AdapterError(ValueError):
    """A choice of what to tune that does not fit the model."""


@documented
@dataclass(frozen=True)
class Tuning:
    """What to tune; the numbers are those of Appendix D.5 of arXiv 2305.17333.

    Args:
        tune: full, lora, prefix, prompt or head. None: full; of a model with an adapter, the adapter.
        lora_r: Rank of LoRA's matrices.
        lora_alpha: LoRA's scale is lora_alpha / lora_r.
        lora_targets: Modules that LoRA adapts: names such as q_proj,v_proj. None: queries and values.
        num_virtual_tokens: Length of a prefix or prompt.
        prefix_init: activations of random tokens (the paper's Table 15), or random.
        tune_layers: Tune these layers only, such as 0-3,11 (counted from 0).
        tune_pattern: Tune the tensors whose name this regular expression finds only.
        untie: Give the head weights of its own before it is tuned.

    Raises:
        AdapterError: A setting out of range.
    """

    tune: str | None = None
    lora_r: int = 8
    lora_alpha: int = 16
    lora_targets: str | None = None
    num_virtual_tokens: int = 5
    prefix_init: str = "activations"
    tune_layers: str | None = None
    tune_pattern: str | None = None
    untie: bool = False

    def __post_init__(self) -> None:
        if self.tune is not None and self.tune not in TUNE:
            hint = did_you_mean(self.tune, TUNE)
            raise AdapterError(f"unknown tune {self.tune!r}; choose one of {', '.join(TUNE)}{hint}")
        if self.prefix_init not in INITS:
            raise AdapterError(f"unknown prefix_init {self.prefix_init!r}; choose one of {', '.join(INITS)}")
        for name in ("lora_r", "lora_alpha", "num_virtual_tokens"):
            if getattr(self, name) < 1:
                raise AdapterError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.tune_pattern is not None:
            try:
                re.compile(self.tune_pattern)
            except re.error as error:
                raise AdapterError(f"tune_pattern {self.tune_pattern!r} is no regular expression: {error}") from error
        if self.tune_layers is not None:
            layer_numbers(self.tune_layers)


def layer_numbers(layers: str) -> set[int]:
    """ "0-3,11" to {0, 1, 2, 3, 11}. AdapterError for anything else."""
    found: set[int] = set()
    for part in filter(None, layers.split(",")):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise AdapterError(f"tune_layers {layers!r}: {part!r} is neither a layer's number nor a range such as 0-3")
        found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return found
