"""What a method does in a step, on real tensors or on such without memory: the code that trains and probes."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from zerograd.cli.plan.model import Case, context_of
from zerograd.core.optimizer import MeZO
from zerograd.core.perturb import planned
from zerograd.core.perturb.members import Members
from zerograd.core.perturb.population import Member
from zerograd.evaluation.logprobs import candidate_scores, token_scores
from zerograd.evaluation.packing import PackedBatch, pack, stack
from zerograd.tasks import Query
from zerograd.tasks.example import Example
from zerograd.tasks.model_kind import is_masked_lm

DEMONSTRATIONS = 32  # of in-context learning, as in the paper


def make_batch(case: Case, rows: int, length: int, device: Any) -> PackedBatch:
    """Rows of one length: two label words each, or with `text` every token scored."""
    packed = [
        pack(Example(i, {}, Query("", correct=(i % 2,)), [5] * length, [[5], [6]], ((length, None),)), "all")
        if not case.text
        else pack(Example(i, {}, Query(""), [5] * length, [[5]]), "text")
        for i in range(rows)
    ]
    return stack(packed, 0, None if case.text else [5, 6]).to(device)


def loss_of(case: Case, model: Any, batch: PackedBatch) -> torch.Tensor:
    """The objective of such a batch."""
    if case.text:
        return -token_scores(model, batch).mean()
    return F.cross_entropy(candidate_scores(model, batch), batch.target)


def work_of(case: Case, method: str, model: Any, probing: str = "auto") -> tuple[Callable[[], Any], list[Any]]:
    """A step of a method, and what it keeps between steps: optimizer states, and MeZO itself (which probes so)."""
    if method == "mezo":
        return _mezo(case, model, probing)
    if method == "icl":
        length = min(context_of(case), case.length * (DEMONSTRATIONS + 1))
        batch = make_batch(case, 1, length, model.device)
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        keep = {} if is_masked_lm(case.config) else {"use_cache": True, "logits_to_keep": 1}

        def infer() -> Any:
            with torch.no_grad():
                return model(**inputs, **keep)

        return infer, []
    return _backpropagation(case, model)


def _mezo(case: Case, model: Any, probing: str) -> tuple[Callable[[], Any], list[Any]]:
    thin = {"probing": "population", "rank": 1} if case.members else {"probing": probing}
    optimizer = MeZO(model.named_parameters(), lr=1e-6, extra_byte=case.extra_byte, **thin)
    perturber, part = optimizer.perturber, make_batch(case, case.batch, case.length, model.device)
    sides = (1e-3, -1e-3)
    directions, population = optimizer.prober.directions, optimizer.prober.at_once.population
    direction = directions.direction(0, 0, ())
    if population is not None:
        members = [Member(directions.direction(0, i // 2, ()), sides[i % 2]) for i in range(case.members)]

        def once(handed: Members) -> torch.Tensor:
            return loss_of(case, model, handed.rows(part))

        def together() -> None:
            session = population.session(once, members, tries=True)
            with torch.no_grad(), planned(perturber, False), session as (_, handed):
                once(handed)

        return together, [optimizer]

    def step() -> None:
        with torch.no_grad(), planned(perturber, case.device == "cpu"), perturber.session(direction):
            perturber.losses([[lambda: loss_of(case, model, part)]], sides)

    return step, [optimizer]


def _backpropagation(case: Case, model: Any) -> tuple[Callable[[], Any], list[Any]]:
    tuned = [p for p in model.parameters() if p.requires_grad]
    states = [torch.zeros_like(p) for p in tuned for _ in range(2)]
    part = make_batch(case, case.batch, case.length, model.device)
    model.train()

    def step() -> None:
        loss_of(case, model, part).backward()
        for p in model.parameters():
            p.grad = None

    return step, states
