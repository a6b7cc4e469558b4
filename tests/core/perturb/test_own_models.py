"""Models of one's own, odd but legal: computed for all members at once, or in turn with one sentence; never wrongly.

Each is taken through batches whose lengths and rows coincide with one another, with members and with rows of members.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from crowds import losses_of_steps
from torch import nn

V, D = 24, 8
Body = Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]  # the model, activations (rows, length, D), tokens
# (rows, length) with 6 members: as long as there are members, rows of all, rows of one; of one token
SHAPES = ((2, 5), (1, 6), (2, 12), (1, 1))
LATER = (*SHAPES[3:], *SHAPES[1:3], (6, 6))  # what differs between rows and members does not show at the first step


class Own(nn.Module):
    """An embedding, a body, logits."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body
        self.embed, self.positions, self.norm = nn.Embedding(V, D, padding_idx=3), nn.Embedding(64, D), nn.LayerNorm(D)
        self.a, self.qkv, self.head = nn.Linear(D, D), nn.Linear(D, 3 * D), nn.Linear(D, V)
        self.conv, self.gru = nn.Conv1d(D, D, 3, padding=1), nn.GRU(D, D, batch_first=True)
        self.batch_norm = nn.BatchNorm1d(D, track_running_stats=False)
        self.attention = nn.MultiheadAttention(D, 2, batch_first=True)
        self.w, self.g, self.token = (nn.Parameter(torch.randn(shape)) for shape in ((D, D), (D,), (1, 1, D)))
        self.table = nn.Buffer(torch.randn(64, D))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits (rows, length, V)."""
        return self.head(self.body(self, self.norm(self.a(self.embed(ids))), ids))


def class_token(m: Any, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return m.a(torch.cat([m.token.expand(len(x), -1, -1), x], 1).cumsum(1))[:, 1:]


def first_token(m: Any, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    begin = m.embed(torch.zeros(len(x), 1, dtype=torch.long))
    return m.a(torch.cat([begin, x], 1).cumsum(1))[:, 1:]


def heads(m: Any, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    q, k, v = m.qkv(x).view(len(x), -1, 3, 2, D // 2).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def causal(m: Any, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    length = x.shape[1]
    mask = torch.full((length, length), -1e4).triu(1)
    return (m.a(x) @ x.transpose(1, 2) * m.g[0] + mask).softmax(-1) @ x


def relative(m: Any, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    at = torch.arange(x.shape[1])
    bias = m.positions((at[None] - at[:, None]).clamp(-4, 4) + 4)[..., 0]
    return (x @ x.transpose(1, 2) + bias).softmax(-1) @ x


def in_place(m: Any, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    y = torch.zeros(len(x), x.shape[1], D)
    y[:, 1:] = x[:, :-1]
    y += m.g
    y[:, -1] += m.a.bias
    return y.mul_(2).masked_fill_((ids == 3)[..., None], 0.0)


def flattened(m: Any, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return m.a(x.reshape(x.shape[1], x.shape[0], D)).reshape(x.shape) + m.a(x.mean(1))[:, None]


def last(m: Any, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return x + m.a(x[torch.arange(len(x)), (ids != 3).sum(1).sub(1).clamp(min=0)])[:, None]


def experts(m: Any, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    flat = x.reshape(-1, D)
    chosen = torch.where(m.a(flat)[:, 0] > 0)[0]
    y = torch.zeros_like(flat)
    y[chosen] = m.a(flat[chosen])
    return y.view(x.shape)


def sinus(m: Any, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    table = m.table[: x.shape[1]]
    return m.a(x + table) + m.a(table)


def made_and_tuned(m: Any, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    gates = torch.ones(x.shape[1], D) * m.g  # of each position, as long as there are rows, at times
    return x * gates + m.a(torch.zeros(x.shape[1], D) + m.positions.weight[: x.shape[1]])


AT_ONCE: dict[str, Body] = {
    "class token": class_token, "first token": first_token, "heads": heads, "causal mask": causal,
    "relative positions": relative, "in place": in_place, "views across rows": flattened, "last token": last,
    "sinusoidal buffer": sinus, "constants times tuned ones": made_and_tuned,
    "einsum": lambda m, x, ids: torch.einsum("btd,de->bte", x, m.w),
    "conv1d": lambda m, x, ids: m.conv(x.transpose(1, 2)).transpose(1, 2),
    "transposed weights": lambda m, x, ids: x @ m.w.T + (m.w.T @ x.transpose(1, 2)).transpose(1, 2),
    "tied and transposed": lambda m, x, ids: F.linear(x @ m.embed.weight.t(), m.embed.weight.t()),
    "product of two matrices": lambda m, x, ids: x @ (m.w @ m.a.weight.T / D).softmax(-1),
    "bmm": lambda m, x, ids: torch.bmm(x, m.w.unsqueeze(0).repeat(len(x), 1, 1)),
    "addmm": lambda m, x, ids: torch.addmm(m.g, x.reshape(-1, D), m.w, beta=0.5).view(x.shape),
    "four dimensions": lambda m, x, ids: m.a(x.unsqueeze(2).expand(-1, -1, 3, -1)).sum(2),
    "leading one": lambda m, x, ids: m.a(x.unsqueeze(0)).squeeze(0),
    "positions": lambda m, x, ids: x + m.positions(torch.arange(x.shape[1])),
    "positions, expanded": lambda m, x, ids: x + m.positions(torch.arange(x.shape[1])[None].expand(ids.shape)),
    "positions, repeated": lambda m, x, ids: x + m.positions(torch.arange(x.shape[1]).repeat(len(x), 1)),
    "types": lambda m, x, ids: x + m.positions(torch.zeros(x.shape[1], dtype=torch.long)) + m.embed(ids * 0),
    "mask of ones": lambda m, x, ids: m.a(x * torch.ones(ids.shape)[..., None]),
    "detached": lambda m, x, ids: x * m.w.detach().clone().float()[0] + m.a.bias.data,
    "sums of weights": lambda m, x, ids: x * m.w.sum(0) + m.w.norm(),
    "mean over rows": lambda m, x, ids: x - x.mean(0, keepdim=True),
    "mean over all": lambda m, x, ids: x / x.norm() + x.max(),
    "statistics of the batch": lambda m, x, ids: m.batch_norm(torch.cat([x, x * 2], 1).mT).mT[:, : x.shape[1]],
    "interleaved": lambda m, x, ids: m.a(x.repeat_interleave(2, 0)).view(len(x), 2, *x.shape[1:]).mean(1),
}  # fmt: skip
IN_TURN: dict[str, tuple[str, Body]] = {
    "flip": ("flip", lambda m, x, ids: x.flip(0)),
    "roll": ("roll", lambda m, x, ids: x.roll(1)),
    "softmax over rows": ("softmax", lambda m, x, ids: x.softmax(0)),
    "sum over rows so far": ("cumsum", lambda m, x, ids: x.cumsum(0)),
    "sorted rows": ("argsort", lambda m, x, ids: x[x.sum((1, 2)).argsort()]),
    "largest of rows": ("max", lambda m, x, ids: x - x.max(0).values),
    "variance of rows": ("var_mean", lambda m, x, ids: x - torch.var_mean(x, dim=0, keepdim=True)[1]),
    "experts": ("where", experts),
    "length first": ("linear", lambda m, x, ids: m.a(x.transpose(0, 1)).transpose(0, 1)),
    "attention, length first": ("multi_head_attention", lambda m, x, ids: m.attention(x, x, x, need_weights=False)[0]),
    "recurrent": ("gru", lambda m, x, ids: m.gru(x)[0]),
    "rows one by one": ("linear", lambda m, x, ids: torch.stack([m.a(row) for row in x])),
    "a number of all": ("mul", lambda m, x, ids: x * float(x.mean())),
    "rows against rows": ("mm|matmul|softmax", lambda m, x, ids: x + (x[:, 0] @ x[:, 0].t()).mm(x[:, 0])[:, None]),
    "numbered rows": ("mul", lambda m, x, ids: x * (1 + torch.arange(len(x)))[:, None, None]),
}
Loss = Callable[[nn.Module, torch.Tensor], torch.Tensor]


def each(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(ids).flatten(0, 1), ids.flatten(), reduction="none")


def mean(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return each(model, ids).mean()


LOSSES_AT_ONCE: dict[str, Loss] = {
    "mean": mean,
    "sum": lambda m, ids: F.cross_entropy(m(ids).flatten(0, 1), ids.flatten(), reduction="sum") / 100,
    "smoothed": lambda m, ids: nn.CrossEntropyLoss(ignore_index=3, label_smoothing=0.1)(m(ids).mT, ids),
    "of its own": lambda m, ids: -(m(ids).log_softmax(-1).gather(2, ids[..., None])[..., 0] * (ids != 3)).sum()
    / (ids != 3).sum(),
    "of means": lambda m, ids: each(m, ids).view(ids.shape).mean(1).mean() + 0.1 * m(ids).pow(2).mean().exp().log(),
    "with a penalty": lambda m, ids: mean(m, ids) + 0.01 * m.a.weight.pow(2).sum(),
    "median": lambda m, ids: each(m, ids).median() + each(m, ids).max() / 10,
}  # fmt: skip
LOSSES_IN_TURN: dict[str, tuple[str, Loss]] = {
    "over a number": ("div", lambda m, ids: each(m, ids).sum() / ids.numel()),
    "chosen by a mask": ("__getitem__", lambda m, ids: each(m, ids)[ids.flatten() != 3].mean()),
    "the largest": ("topk", lambda m, ids: each(m, ids).topk(2).values.mean()),
    "dot": ("dot", lambda m, ids: each(m, ids).dot(torch.ones(ids.numel())) / 10),
}


def right(model: nn.Module, loss: Loss, shapes: Any) -> tuple[int, list[str]]:
    """Checks the losses of steps on batches of these shapes; how many ran at once, and what was warned of."""
    batches = [torch.randint(3, V, shape, generator=torch.Generator().manual_seed(i)) for i, shape in enumerate(shapes)]

    def losses(members: Any, ids: torch.Tensor) -> torch.Tensor:
        return loss(model, members.rows(ids))

    at_once, ran, said = losses_of_steps(model.named_parameters(), losses, batches, "population")
    in_turn, _, _ = losses_of_steps(model.named_parameters(), losses, batches, "snapshot")
    for shape, ours, theirs in zip(shapes, at_once, in_turn, strict=True):
        assert ours == pytest.approx(theirs, abs=2e-5, rel=1e-5), shape
    return ran, said


def made(body: Body) -> Own:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Own(body).eval()


@pytest.mark.parametrize("shapes", [SHAPES, pytest.param(LATER, marks=pytest.mark.slow)], ids=["", "one token first"])
@pytest.mark.parametrize("name", AT_ONCE)
def test_at_once(name: str, shapes: Any) -> None:
    assert right(made(AT_ONCE[name]), mean, shapes) == (len(shapes), [])


@pytest.mark.parametrize("shapes", [SHAPES, pytest.param(LATER, marks=pytest.mark.slow)], ids=["", "one token first"])
@pytest.mark.parametrize("name", IN_TURN)
def test_in_turn(name: str, shapes: Any) -> None:
    """One sentence, which names the operation."""
    operation, body = IN_TURN[name]
    ran, said = right(made(body), mean, shapes)
    assert ran < len(shapes) and len(said) == 1 and any(part in said[0] for part in operation.split("|")), said
    if shapes is SHAPES:
        assert ran == 0


@pytest.mark.parametrize("name", LOSSES_AT_ONCE)
def test_losses_at_once(name: str) -> None:
    assert right(made(lambda m, x, ids: x), LOSSES_AT_ONCE[name], SHAPES) == (len(SHAPES), [])


@pytest.mark.parametrize("name", LOSSES_IN_TURN)
def test_losses_in_turn(name: str) -> None:
    operation, loss = LOSSES_IN_TURN[name]
    ran, said = right(made(lambda m, x, ids: x), loss, [(2, 5), (2, 12), (3, 6)])
    assert ran == 0 and len(said) == 1 and operation in said[0]
