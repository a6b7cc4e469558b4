"""`Header`: what a run is, as its log says it; docs/log-format.md lists the fields."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

MAX_GROUPS = 255  # a record has a byte for the group


class LogError(ValueError):
    """A step log that cannot be used: damaged, of another version, or of another run."""


@dataclass(frozen=True)
class TensorNote:
    """A trainable tensor: its name, shape, dtype ("float32"), parameter group, and the start of its bytes' SHA-256."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    group: int
    sha256: str


@dataclass(frozen=True)
class FrozenNote:
    """The frozen tensors: how many, the model's dtype (of most floats), a SHA-256 of names and bytes."""

    tensors: int
    dtype: str
    fingerprint: str

    def __str__(self) -> str:
        return f"{self.tensors} tensors, {self.dtype}, SHA-256 {self.fingerprint:.8}"


@dataclass(frozen=True)
class Header:
    """What a run is.

    Args:
        spec: Version of the noise specification.
        distribution, seed, rank, blocks: As for `MeZO`.
        scaling, estimator, update: Settings by name, as `zerograd.core.specs.describe` gives them; scaling may be None.
        weight_decay: Of each parameter group.
        tensors: The trainable tensors, by number.
        fingerprint: SHA-256 of their bytes' SHA-256, hexadecimal.
        extra_byte: Whether 16-bit weights have 8 more bits.
        frozen: The frozen tensors, where there are some.
    """

    spec: int
    distribution: str
    seed: int
    rank: int
    blocks: int
    scaling: Mapping[str, Any] | None
    estimator: Mapping[str, Any]
    update: Mapping[str, Any]
    weight_decay: tuple[float, ...]
    tensors: tuple[TensorNote, ...]
    fingerprint: str
    extra_byte: bool = False
    frozen: FrozenNote | None = None

    def settings(self) -> dict[str, Any]:
        """What decides the run beside its weights, as the log has it; what is not used is left out."""
        noise = {"spec": self.spec, "distribution": self.distribution, "seed": self.seed}
        more = {"rank": self.rank, "blocks": self.blocks, "scaling": self.scaling}
        return {
            "noise": noise | {key: value for key, value in more.items() if value},
            "estimator": self.estimator,
            "update": self.update,
            "groups": [{"weight_decay": decay} for decay in self.weight_decay],
            **({"extra_byte": True} if self.extra_byte else {}),
        }

    def to_json(self) -> dict[str, Any]:
        """As it is written."""
        tensors = [asdict(tensor) for tensor in self.tensors]
        frozen = {} if self.frozen is None else {"frozen": asdict(self.frozen)}
        return {**self.settings(), "tensors": tensors, "fingerprint": self.fingerprint, **frozen}

    @staticmethod
    def from_json(data: Any, where: object) -> "Header":
        """A header that was read from a log, `where`.

        Raises:
            LogError: Something is missing, or of another kind.
        """
        try:
            for part in ("estimator", "update"):
                if not isinstance(data.get(part), dict) or "name" not in data[part]:
                    raise LogError(f"{where} does not name its {part}, and cannot be replayed")
            noise, frozen = data["noise"], data.get("frozen")
            header = Header(
                noise["spec"], noise["distribution"], noise["seed"], noise.get("rank", 0), noise.get("blocks", 0),
                noise.get("scaling"), data["estimator"], data["update"],
                tuple(group["weight_decay"] for group in data["groups"]),
                tuple(TensorNote(**{**t, "shape": tuple(t["shape"])}) for t in data["tensors"]), data["fingerprint"],
                data.get("extra_byte", False), None if frozen is None else FrozenNote(**frozen),
            )  # fmt: skip
        except (KeyError, TypeError, AttributeError) as error:
            raise LogError(f"the header of {where} is not one that this zerograd reads: {error!r:.200}") from error
        for name, value, fits in _checks(header):
            if not fits:
                raise LogError(f"the header of {where} has {name} {value!r:.80}, which no run has")
        return header


def _checks(header: Header) -> Iterator[tuple[str, Any, bool]]:
    """Each value of a header that was read: its name, itself, and whether a run can have it."""
    yield "spec", header.spec, _is_count(header.spec, 1 << 16)
    yield "distribution", header.distribution, isinstance(header.distribution, str)
    yield "seed", header.seed, _is_count(header.seed, 1 << 64)
    yield "rank", header.rank, _is_count(header.rank, 1 << 31)
    yield "blocks", header.blocks, _is_count(header.blocks, 1 << 16)
    yield "extra_byte", header.extra_byte, isinstance(header.extra_byte, bool)
    yield "fingerprint", header.fingerprint, isinstance(header.fingerprint, str)
    for name, part in (("estimator", header.estimator), ("update", header.update), ("scaling", header.scaling)):
        yield name, part, part is None or (isinstance(part, dict) and isinstance(part.get("name"), str))
    groups = len(header.weight_decay)
    yield "groups", groups, 1 <= groups <= MAX_GROUPS
    for decay in header.weight_decay:
        yield "weight_decay", decay, type(decay) in (int, float) and math.isfinite(decay)
    yield "tensors", len(header.tensors), len(header.tensors) > 0
    for note in header.tensors:
        yield "a tensor named", note.name, isinstance(note.name, str)
        yield "a shape", note.shape, all(_is_count(size, 1 << 62) for size in note.shape)
        yield "a tensor's dtype and hash", (note.dtype, note.sha256), _are_texts(note.dtype, note.sha256)
        yield "a tensor of group", note.group, _is_count(note.group, groups)
    names = [note.name for note in header.tensors]
    yield "tensors of one name among", names, len(set(names)) == len(names)
    frozen = header.frozen
    if frozen is not None:
        yield "frozen", frozen, _is_count(frozen.tensors, 1 << 31) and _are_texts(frozen.dtype, frozen.fingerprint)


def _is_count(value: Any, above: int) -> bool:
    return type(value) is int and 0 <= value < above


def _are_texts(*values: Any) -> bool:
    return all(isinstance(value, str) for value in values)
