"""The model zoo's trial of populations: which architectures run all members of a step in one batch, and compute right.

python scripts/zoo_population.py [NAME ...]   # these architectures, or all; writes benchmarks/results/zoo_population.md

Three steps of two probes of rank 1, with batches of other lengths (one as long as there are rows in all), beside the
same directions in turn by snapshot: losses must agree.
"""

import collections
import copy
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from tqdm import tqdm

from zerograd import MeZO
from zerograd.core.perturb.members import Members
from zoo_models import ARCHITECTURES, NotBuilt, build

PAGE = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "zoo_population.md"
ROWS, LENGTHS = 2, (9, 8, 12)
CLOSE = 1e-5  # of a loss, float32
TOGETHER, IN_TURN, FAULT, UNTRIED = "in one batch", "in turn", "fault", "not tried"


def losses_of(model: Any, probing: str) -> tuple[list[list[float]], str]:
    """The losses of all sides at each step, and why members run in turn, if they do."""
    optimizer = MeZO(
        model.named_parameters(), lr=0.0, eps=1e-2, n=2, rank=1, seed=5, probing=probing, allow_unread=True
    )
    found = []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for step, length in enumerate(LENGTHS):
            generator = torch.Generator().manual_seed(length)
            ids, target = (torch.randint(4, 90, (ROWS, length), generator=generator) for _ in range(2))

            def closure(members: Members, ids: torch.Tensor = ids, target: torch.Tensor = target) -> torch.Tensor:
                inputs: dict[str, Any] = {"input_ids": members.rows(ids)}
                inputs["attention_mask"] = members.rows(torch.ones_like(ids))
                if model.config.is_encoder_decoder:
                    inputs["decoder_input_ids"] = members.rows(target)
                if getattr(model.config, "use_cache", False):
                    inputs["use_cache"] = False
                wanted = members.rows(target)
                logits = model(**inputs).logits[:, : wanted.shape[1]]
                return F.cross_entropy(logits.float().flatten(0, -2), wanted.flatten())

            sides, _ = optimizer.prober._table(closure, step, ())
            found.append([loss for pair in sides for loss in pair])
    reasons = [str(w.message) for w in said if "cannot run all members" in str(w.message)]
    in_turn = probing == "population" and optimizer.prober.at_once.population is None
    reason = reasons[0].partition(": ")[2].partition(". Members run")[0] if reasons else ""
    return found, reason or ("?" if in_turn else "")


def tried(kind: str, name: str) -> str:
    """What becomes of an architecture."""
    try:
        model = build(kind, name)
        right, _ = losses_of(copy.deepcopy(model), "snapshot")
    except NotBuilt as error:
        return f"{UNTRIED}: {error}"
    except Exception as error:  # of a model's own
        return f"{UNTRIED}: {type(error).__name__}: {' '.join(str(error).split())[:120]}"
    try:
        found, reason = losses_of(model, "population")
    except Exception as error:
        return f"{FAULT}: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    worst = max(
        abs(a - b) / max(1.0, abs(b)) for ours, theirs in zip(found, right, strict=True)
        for a, b in zip(ours, theirs, strict=True)
    )  # fmt: skip
    if not worst <= CLOSE:
        return f"{FAULT}: losses differ by {worst:.1e}{f' ({reason})' if reason else ''}"
    return f"{IN_TURN}: {reason}" if reason else TOGETHER


def main() -> None:
    """Try them and write the table."""
    torch.set_num_threads(1)
    chosen = [(k, n) for k, n in ARCHITECTURES if not sys.argv[1:] or n in sys.argv[1:]]
    rows = {}
    for kind, name in tqdm(chosen, unit="model"):
        rows[kind, name] = tried(kind, name).replace("|", "/")
        if sys.argv[1:]:
            print(f"{kind} {name}: {rows[kind, name]}")
    counts = collections.Counter(trial.partition(":")[0] for trial in rows.values())
    lines = [
        "# Populations in one batch, architecture by architecture\n",
        f"`python scripts/zoo_population.py`: of {len(rows)} language models of transformers "
        f"{transformers.__version__}, built small, {counts[TOGETHER]} run all members in one batch, {counts[IN_TURN]} "
        f"run them in turn and say why, {counts[FAULT]} compute something else, {counts[UNTRIED]} could not be tried. "
        f"Losses are those of the same directions in turn within {CLOSE:g}.\n",
        "| kind | architecture | |", "|---|---|---|",
        *(f"| {kind} | `{name}` | {trial} |" for (kind, name), trial in rows.items()),
    ]  # fmt: skip
    if not sys.argv[1:]:
        PAGE.write_text("\n".join(lines) + "\n")
    print(dict(counts))


if __name__ == "__main__":
    main()
