"""Blocks: the layers of a model, and what comes before and behind them apart, as Appendix B.3 groups parameters."""

import re

import numpy as np

from zerograd.core.parameters import Parameters
from zerograd.noise.reference import ROUNDS, philox

LAYER = re.compile(r"(?:^|\.)([A-Za-z_]\w*)\.(\d+)(?=\.|$)")
EMBEDDING = re.compile(r"(?:^|[._])(?:emb|wte\b|wpe\b)")
CHOICE = 0xFFFFFFFF  # the tensor number whose bits choose the blocks of a probe; never a tensor


class Blocks:
    """The trainable tensors by layer; all that is named like an embedding is one more block, the rest another.

    Args:
        parameters: The trainable tensors.
    """

    def __init__(self, parameters: Parameters) -> None:
        labels = [block_name(e.name) for e in parameters.entries]
        self.names = sorted(set(labels), key=_order)
        number = {name: i for i, name in enumerate(self.names)}
        self.of = np.array([number[label] for label in labels])

    def __len__(self) -> int:
        return len(self.names)

    def chosen(self, count: int, seed: int, step: int, probe: int, spec: int) -> np.ndarray:
        """`count` of the blocks, drawn without replacement for this probe: a mask over the blocks."""
        keys = philox(np.arange(len(self), dtype=np.uint64), CHOICE, step, probe, seed, ROUNDS[spec])[0]
        mask = np.zeros(len(self), bool)
        mask[np.argsort(keys, kind="stable")[:count]] = True
        return mask


def block_name(tensor: str) -> str:
    """The name up to its first number ("encoder.layer.3"); "embeddings" or "rest" where there is none."""
    found = LAYER.search(tensor)
    if found:
        return tensor[: found.end()].removeprefix("base_model.model.")
    return "embeddings" if EMBEDDING.search(tensor) else "rest"


def _order(name: str) -> tuple[int, str, int]:
    head, _, number = name.rpartition(".")
    return (1, head, int(number)) if number.isdigit() else ({"embeddings": 0}.get(name, 2), name, 0)
