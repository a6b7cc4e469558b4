"""`zerograd plan`: what a model needs for each method, what fits, and how near that is to what is measured."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoConfig
from transformers.utils.logging import set_verbosity_error

from zerograd.cli.plan.footprint import PARTS, PLANNED, Footprint, footprint, least_bytes
from zerograd.cli.plan.model import Case
from zerograd.cli.plan.shapes import FAMILIES, HUB, SHAPES, shape_of
from zerograd.cli.preflight import refuse_encoder_decoder
from zerograd.core.device import free_memory_bytes, read_bytes, shown_bytes
from zerograd.training.models import DTYPES, QUANTIZE, ModelError, load_config
from zerograd.training.settings import documented
from zerograd.training.tuning import TUNE

DRIVER = 1 << 29  # bytes of a GPU that its driver and libraries take


@documented
@dataclass
class PlanArguments:
    """What to plan.

    Args:
        model: Hub id, folder, config.json, or a shape such as opt-13b (no download).
        gpu: Memory that there is, such as 24GB.
        batch: Rows of a forward pass.
        length: Tokens of a row.
        tune: What MeZO tunes: full, lora, prefix or head.
        dtype: auto (as saved; bfloat16 for a shape), float32, ...
        text: Score every token of an answer instead of label words.
        extra_byte: Plan for MeZO with --extra_byte.
        quantize: 8bit or 4bit: matrices as bitsandbytes stores them.
        members: Of a population in one batch (2 x --num_probes), directions of rank 1; 0: probed in turn.
        measure: Run two steps with random weights and compare.

    Raises:
        ValueError: A setting out of range.
    """

    model: str
    gpu: str | None = None
    batch: int = 16
    length: int = 256
    tune: str = "full"
    dtype: str = "auto"
    text: bool = False
    extra_byte: bool = False
    quantize: str | None = None
    members: int = 0
    measure: bool = False

    def __post_init__(self) -> None:
        for name in ("batch", "length"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(self, name)}")
        if self.members < 0:
            raise ValueError(f"--members must be 0 (probed in turn) or more, got {self.members}")
        if self.tune not in TUNE or self.tune == "prompt":
            raise ValueError(f"--tune {self.tune!r} cannot be planned; choose one of full, lora, prefix, head")
        if self.dtype not in DTYPES:
            raise ValueError(f"unknown dtype {self.dtype!r}; choose one of {', '.join(DTYPES)}")
        if self.quantize is not None:
            self._check_quantize()

    def _check_quantize(self) -> None:
        if self.quantize not in QUANTIZE:
            raise ValueError(f"unknown quantize {self.quantize!r}; choose one of {', '.join(QUANTIZE)}")
        if self.tune == "full":
            raise ValueError("quantised weights cannot be tuned themselves: add --tune lora, prefix or head")
        if find_spec("bitsandbytes") is None:
            raise ValueError(f"--quantize {self.quantize} needs bitsandbytes: pip install bitsandbytes")


def plan(args: PlanArguments) -> None:
    """Print the table, what fits, and what to do next."""
    set_verbosity_error()
    budget = None if args.gpu is None else read_bytes(args.gpu)
    config = read_config(args.model)
    refuse_encoder_decoder(
        config, "plan counts what a forward of one stream of text holds; measure a short run instead"
    )
    case = Case(
        config, args.batch, args.length, _dtype(args, config), _device(budget), args.tune, args.extra_byte, args.text,
        args.quantize, args.members,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # between transformers and peft, about names of arguments
        _plan(args, case, budget)


def _plan(args: PlanArguments, case: Case, budget: int | None) -> None:
    bar = tqdm(planned_methods(case), desc="planning", unit="method", leave=False, disable=None)
    found = [footprint(case, method) for method in bar]
    size, name = found[0].parts["weights"], str(case.dtype).removeprefix("torch.")
    sides = f"{case.members} members in one batch" if case.members else "both sides of a probe in step"
    where = f"a CPU ({sides})" if case.device == "cpu" else f"a GPU ({sides})" if case.members else "a GPU"
    kind = name if case.quantize is None else f"{case.quantize} (and {name})"
    print(f"{args.model}: {shown_bytes(size)} of {kind} weights; {args.batch} rows of {args.length} tokens; {where}\n")
    _print_table(found, budget)
    print(f"\n{_about_activations(found)}")
    if budget is not None:
        _print_fit(args, case, found, budget)
    if args.measure:
        _measure(case, found)
    print(f"\nnext: {_next(args, case, budget is not None and found[0].total > budget - DRIVER)}")


def planned_methods(case: Case) -> list[str]:
    """The methods that can be: quantised weights cannot be tuned themselves."""
    return [method for method in PLANNED if case.quantize is None or method != "ft"]


def _about_activations(found: Sequence[Footprint]) -> str:
    """Which activations are counted, and when: the column is what there is at the peak, which may be another moment."""
    kept = [f"{PLANNED[f.method].removeprefix('backprop, ')} {shown_bytes(f.kept)}" for f in found if f.kept]
    late = [PLANNED[f.method] for f in found if f.kept and f.parts["activations"] < f.kept // 2]
    if not kept:
        return "activations: those that are there at the peak."
    said = (
        "activations: those that are there at the peak. For its backward pass backprop keeps (without gradient "
        f"checkpointing) {', '.join(kept)}"
    )
    return said + (f"; {', '.join(late)} peaks later, when gradients have taken their place." if late else ".")


def _next(args: PlanArguments, case: Case, too_large: bool) -> str:
    """The command that trains so."""
    model = HUB[case.config.model_type] + args.model if args.model in SHAPES else args.model
    more = " --extra_byte true" if args.extra_byte else ""
    more += f" --rank 1 --num_probes {max(1, args.members // 2)}" if args.members else ""
    more += " --untie true" if args.tune == "head" else ""
    more += f" --quantize {args.quantize}" if args.quantize else " --offload true" if too_large else ""
    return (
        f"zerograd train --model {model} --tune {args.tune} --dtype {str(case.dtype).removeprefix('torch.')} "
        f"--per_device_train_batch_size {args.batch}{more}"
    )


def read_config(name: str) -> Any:
    """A model's configuration: of a shape, a config.json, a folder or a hub id.

    Raises:
        ModelError: There is none.
    """
    shape = None if Path(name).exists() else shape_of(name)
    if shape is not None:
        return shape
    if Path(name).is_file():
        try:
            return AutoConfig.from_pretrained(name)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"{name} is no model configuration: {str(error).splitlines()[0]}") from error
    try:
        return load_config(name)
    except ModelError as error:
        near = get_close_matches(name.rsplit("/", 1)[-1].lower(), SHAPES, n=3, cutoff=0.4)
        hint = (
            f"the nearest of {len(SHAPES)} known shapes: {', '.join(near)}" if near else f"shapes: {', '.join(SHAPES)}"
        )
        raise ModelError(f"{error} Planning needs a configuration only; {hint}.") from error


def _dtype(args: PlanArguments, config: Any) -> torch.dtype:
    chosen = DTYPES[args.dtype]
    if isinstance(chosen, torch.dtype):
        return chosen
    return config.dtype if isinstance(config.dtype, torch.dtype) else torch.bfloat16


def _device(budget: int | None) -> str:
    return "cuda" if budget is not None or torch.cuda.is_available() else "cpu"


def _print_table(found: Sequence[Footprint], budget: int | None) -> None:
    shown = [part for part in PARTS if any(f.parts[part] for f in found)]
    print("  ".join([f"{'':22}", *(f"{part:>11}" for part in shown), f"{'peak':>11}"]))
    for f in found:
        cells = [f"{shown_bytes(f.parts[part]) if f.parts[part] else '-':>11}" for part in shown]
        fits = "" if budget is None else "  fits" if f.total <= budget - DRIVER else "  too large"
        print("  ".join([f"{PLANNED[f.method]:22}", *cells, f"{shown_bytes(f.total):>11}"]) + fits)


def _print_fit(args: PlanArguments, case: Case, found: Sequence[Footprint], budget: int) -> None:
    print(f"\nof {shown_bytes(budget)}, {shown_bytes(DRIVER)} are left to the driver")
    mezo = found[0]
    if mezo.total > budget - DRIVER:
        missing = mezo.total - (budget - DRIVER)
        print(f"MeZO lacks {shown_bytes(missing)}; {_nearest(case, budget)}")
    family = FAMILIES.get(case.config.model_type, {})
    if family:
        print(f"the largest {case.config.model_type} that fits, {args.batch} rows of {args.length} tokens:")
    for method in planned_methods(case) if family else ():
        name, peak = largest(family, case, method, budget - DRIVER)
        print(f"  {PLANNED[method]:22}{name or 'none'}{f', {shown_bytes(peak)}' if name else ''}")


def largest(family: dict[str, Any], case: Case, method: str, budget: int) -> tuple[str | None, int]:
    """The largest of a family whose peak is within a budget in bytes, and that peak; None where none is."""
    for name, make in reversed(family.items()):
        config = make()
        other = replace(case, config=config, length=min(case.length, config.max_position_embeddings))
        if least_bytes(other, method) > budget:
            continue
        peak = footprint(other, method).total
        if peak <= budget:
            return name, peak
    return None, 0


def _nearest(case: Case, budget: int) -> str:
    """The nearest setting in which MeZO fits."""
    choices = [(f"--batch {batch}", replace(case, batch=batch)) for batch in _halves(case.batch)]
    if case.dtype == torch.float32 and case.quantize is None:
        choices.append(("--dtype bfloat16", replace(case, dtype=torch.bfloat16)))
    if find_spec("bitsandbytes") is not None:
        tune = "lora" if case.tune == "full" else case.tune
        flags = "" if tune == case.tune else f" --tune {tune}"
        known = QUANTIZE if case.quantize is None else QUANTIZE[QUANTIZE.index(case.quantize) + 1 :]
        choices += [(f"--quantize {kind}{flags}", replace(case, quantize=kind, tune=tune)) for kind in known]
    for words, other in choices:
        if least_bytes(other, "mezo") > budget - DRIVER:
            continue
        peak = footprint(other, "mezo").total
        if peak <= budget - DRIVER:
            return f"it fits with {words} ({shown_bytes(peak)})"
    fewer = "dtype" if find_spec("bitsandbytes") is None else "dtype or 4-bit weights"
    return f"no smaller batch, {fewer} fits: keep the weights in main memory (--offload), or take a smaller model"


def _halves(number: int) -> list[int]:
    return [number >> i for i in range(1, number.bit_length())]


def _measure(case: Case, found: Sequence[Footprint]) -> None:
    from zerograd.cli.plan.measure import measured_peak

    case = replace(case, device="cuda" if torch.cuda.is_available() else "cpu")
    print(f"\ntwo steps with random weights on {case.device}:")
    for f in found:
        predicted, free = footprint(case, f.method).total, free_memory_bytes()
        if predicted > free:
            print(f"  {PLANNED[f.method]:22}not run: {shown_bytes(predicted)} needed, {shown_bytes(free)} free")
            continue
        measured = measured_peak(case, f.method)
        print(
            f"  {PLANNED[f.method]:22}predicted {shown_bytes(predicted):>9}  measured {shown_bytes(measured):>9}  "
            f"{100 * (predicted / measured - 1):+.1f} %"
        )
