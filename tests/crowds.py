"""Losses of members probed at once and in turn, for the tests of populations."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from architectures import VOCABULARY
from zerograd import MeZO

EPS = 1e-2
Batch = dict[str, torch.Tensor]
MemberClosure = Callable[[Any], Any]


def tokens(rows: int = 2, length: int = 7, seed: int = 2) -> torch.Tensor:
    """(rows, length) int64, none of them special."""
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def batch(rows: int = 2, length: int = 7, seed: int = 2, padded: bool = False) -> Batch:
    """Tokens, their mask and labels; `padded`: the second half of the last row is padding."""
    ids, mask = tokens(rows, length, seed), torch.ones(rows, length, dtype=torch.int64)
    labels = ids.clone()
    if padded:
        mask[-1, length // 2 :] = 0
        ids[-1, length // 2 :], labels[-1, length // 2 :] = 1, -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def with_float32_loss(model: Any, inputs: Batch) -> MemberClosure:
    """Cross-entropy in float32, where a model's own loss has 16 bits."""

    def closure(members: Any) -> torch.Tensor:
        rows = members.rows(inputs)
        logits = model(**rows).logits.float()
        return F.cross_entropy(logits.flatten(0, 1), rows["labels"].flatten())

    return closure


def of_model(model: Any, inputs: Any) -> MemberClosure:
    """The closure of the documentation."""
    return lambda members: model(**members.rows(inputs)).loss


def probed(params: Any, closures: Any, probing: str, **settings: Any) -> tuple[list[list[float]], float, list[str]]:
    """The losses of one step (probes, sides), that at theta where it is asked for, and what was warned of."""
    given = {"lr": 0.0, "rank": 1, **settings}
    given = given if "estimator" in given else {"eps": EPS, "n": 3, **given}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer = MeZO(list(params), probing=probing, **given)
        for closure in closures if isinstance(closures, list) else [closures]:
            optimizer.probe(closure)
    said = [str(w.message) for w in caught if "population" in str(w.message)]
    return optimizer.prober._losses, optimizer.prober._base, said


def farthest(params: Any, closures: Any, **settings: Any) -> float:
    """The largest difference of a loss at once and in turn. AssertionError where the members did not run at once."""
    params = list(params)
    at_once, base, said = probed(params, closures, "population", **settings)
    in_turn, its_base, _ = probed(params, closures, "snapshot", **settings)
    assert not said, said
    assert len({loss for sides in in_turn for loss in sides}) > 1  # the directions move the loss
    pairs = [(a, b) for one, other in zip(at_once, in_turn, strict=True) for a, b in zip(one, other, strict=True)]
    return max(abs(a - b) for a, b in [*pairs, (base, its_base)])


def losses_of_steps(
    params: Any, losses: Callable[[Any, torch.Tensor], Any], batches: list[torch.Tensor], probing: str
) -> tuple[list[list[float]], int, list[str]]:
    """The losses of all members of steps that move nothing, how many steps ran at once, and what was warned of.

    There are six members, and tensors that nothing reads.
    """
    found, ran = [], 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer = MeZO(list(params), lr=0.0, eps=EPS, n=3, rank=1, probing=probing, allow_unread=True)
        for batch_of_step in batches:
            counts: list[int] = []

            def closure(members: Any, batch_of_step: Any = batch_of_step, counts: Any = counts) -> Any:
                counts.append(members.count)
                return losses(members, batch_of_step)

            optimizer.probe(closure)
            found.append([loss for sides in optimizer.prober._losses for loss in sides])
            optimizer.step()
            ran += counts[-1] == 6
    return found, ran, [str(w.message) for w in caught if "population" in str(w.message)]
