"""The trial of the model zoo: one step of two probes in each way of probing, and a replay.

python scripts/zoo.py [NAME ...]   # tries these architectures (all) and writes their rows in docs/models.md
"""

import copy
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from tqdm import tqdm

from zerograd import MeZO, StepLog, replay
from zerograd.evaluation.packable import UNLIMITED, check_decoder, packable_length
from zerograd.tasks.prompts import PromptError
from zoo_models import ARCHITECTURES, NotBuilt, build

PAGE = Path(__file__).resolve().parents[1] / "docs" / "models.md"
HEAD = "| kind | architecture | trial | candidates of an example |"
WAYS = ("streamed", "snapshot", "in_place")
EPS = 1e-2
# of a loss in place, whose second side is at theta + eps z - 2 eps z: every weight is rounded twice, to 6e-8 of itself
CLOSE = 1e-4
WORKS, FAULT, REFUSED, UNUSABLE, UNBUILT = "works", "fault", "refused", "no plain forward", "not built"


def try_architecture(kind: str, name: str) -> tuple[str, str]:
    """What becomes of an architecture, and how the candidates of an example are scored.

    Returns:
        One of the five words, with its reason behind a colon where it is not "works"; and a few words.
    """
    try:
        model = build(kind, name)
    except NotBuilt as error:
        return f"{UNBUILT}: {error}", ""
    trial = _unusable(copy.deepcopy(model))
    if trial:
        return f"{UNUSABLE}: {trial}", ""
    with tempfile.TemporaryDirectory() as folder:
        trial = try_ways(model, Path(folder))
    return trial, scoring(kind, model) if trial.startswith(WORKS) else ""


def scoring(kind: str, model: Any) -> str:
    """How the candidates of an example are scored."""
    if kind == "masked":
        return "at the mask"
    if kind == "encoder-decoder":
        if not model.config.is_encoder_decoder:
            return "no tasks: it reads sound"
        try:
            check_decoder(model)
        except PromptError:
            return "refused: later tokens change earlier ones"
        return "a decoder row each"
    length = packable_length(model)
    return "a row each" if not length else "one row" if length == UNLIMITED else "one row, up to its window"


def closure_of(model: Any) -> Callable[[], torch.Tensor]:
    """Cross-entropy of fixed tokens, from the logits of a text alone."""
    generator = torch.Generator().manual_seed(2)
    ids, target = (torch.randint(4, 90, (2, 9), generator=generator) for _ in range(2))
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = target
    if getattr(model.config, "use_cache", False):
        inputs["use_cache"] = False

    def closure() -> torch.Tensor:
        logits = model(**inputs).logits[:, : target.shape[1]]  # Perceiver answers for all its positions
        return F.cross_entropy(logits.float().flatten(0, -2), target.flatten())

    return closure


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of all weights and buffers."""
    return {name: tensor.clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}


def moved(model: torch.nn.Module, before: dict[str, torch.Tensor]) -> list[str]:
    """Names of the weights and buffers that are not bit for bit what they were."""
    now = dict([*model.named_parameters(), *model.named_buffers()])
    return [name for name, tensor in before.items() if not torch.equal(tensor, now[name])]


@torch.no_grad()
def _unusable(model: Any) -> str:
    """Why text alone gives no repeatable logits; empty where it does."""
    try:
        losses = [closure_of(model)() for _ in range(2)]
    except Exception as error:  # of a model's own
        return _sentence(error)
    if not losses[0].isfinite():
        return f"its loss is {float(losses[0])}"
    return "" if torch.equal(*losses) else f"two in a row differ ({float(losses[0]):.6f}, {float(losses[1]):.6f})"


def try_ways(original: Any, folder: Path) -> str:
    """A step in each way from the same weights, then a replay: whether weights, losses and logs are as they must be."""
    base, faults, refused = state(original), [], {}
    steps, trained = {}, {}
    for way in WAYS:
        model = copy.deepcopy(original)
        tensors, log = list(model.named_parameters()), folder / way
        try:
            optimizer = MeZO(tensors, lr=1e-2, eps=EPS, n=2, seed=5, probing=way, allow_unread=True, log=log)
            optimizer.probe(closure_of(model))
            changed = moved(model, base)
            if changed and (way != "in_place" or not {n for n, _ in tensors}.issuperset(changed)):
                faults.append(f"{way} probing changed {changed[0]} and {len(changed) - 1} more")
            optimizer.step()
        except Exception as error:  # ours, or of a model's own
            refused[way] = _sentence(error)
            continue
        steps[way], trained[way] = StepLog.read(log).steps[0], state(model)
    faults += _differing(steps)
    for way in [way for way in WAYS[:2] if way in steps]:
        model = copy.deepcopy(original)
        replay(folder / way, model)
        changed = moved(model, trained[way])
        if changed:
            faults.append(f"the replay of {way} differs in {changed[0]} and {len(changed) - 1} more")
    if faults:
        return f"{FAULT}: {'; '.join(faults)}"
    if not refused:
        return WORKS
    rest = f", {WORKS} {' and '.join(steps)}" if steps else ""
    return f"{REFUSED} {' and '.join(refused)}{rest}: {next(iter(refused.values()))}"


def _differing(steps: dict[str, Any]) -> list[str]:
    """Streamed and by snapshot the losses are equal bit for bit; in place up to rounding."""
    faults = []
    if {"streamed", "snapshot"} <= steps.keys():
        a, b = steps["streamed"], steps["snapshot"]
        if (a.g, a.loss) != (b.g, b.loss):
            faults.append(f"streamed losses {a.loss}, by snapshot {b.loss}")
    if {"snapshot", "in_place"} <= steps.keys():
        pairs = zip(steps["snapshot"].loss, steps["in_place"].loss, strict=True)
        faults += [f"a loss in place {b}, by snapshot {a}" for a, b in pairs if not abs(a - b) <= CLOSE * abs(a)]
    return faults


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".replace("|", "/")


def read_page(text: str) -> dict[tuple[str, str], tuple[str, str]]:
    """The rows of the table: (kind, architecture) to (trial, candidates)."""
    rows = {}
    for line in text.partition(HEAD)[2].splitlines()[2:]:
        if not line.startswith("|"):
            break
        kind, name, trial, candidates = (cell.strip() for cell in line.strip("|").split("|"))
        rows[kind, name.strip("`")] = (trial, candidates)
    return rows


def write_page(text: str, rows: dict[tuple[str, str], tuple[str, str]]) -> str:
    """The page with these rows as its table, and a sentence that counts them."""
    counts = {word: sum(trial.startswith(word) for trial, _ in rows.values()) for word in (WORKS, FAULT, REFUSED)}
    rest = len(rows) - sum(counts.values())
    said = (
        f"Of the {len(rows)} entries of transformers {transformers.__version__}, {counts[WORKS]} work, "
        f"{counts[REFUSED]} refused by an error, {counts[FAULT]} faults, {rest} not tried (the reason is in the row)."
    )
    lines = [said, "", HEAD, "|---|---|---|---|"]
    lines += [f"| {kind} | `{name}` | {trial} | {words} |" for (kind, name), (trial, words) in rows.items()]
    return text.partition("Of the ")[0] + "\n".join(lines) + "\n"


def main(names: list[str]) -> None:
    """Try, and write the page."""
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    text = PAGE.read_text(encoding="utf-8")
    rows = read_page(text)
    chosen = [key for key in ARCHITECTURES if not names or key[1] in names]
    try:
        for key in tqdm(chosen, unit="model"):
            rows[key] = try_architecture(*key)
    finally:
        PAGE.write_text(write_page(text, {key: rows[key] for key in ARCHITECTURES if key in rows}), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
