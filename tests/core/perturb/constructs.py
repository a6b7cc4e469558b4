"""The constructs that a forward may be made of: a table that grows. `test_constructs` says what is done with a row.

A row is a name, a module and a loss. Where a way of probing refuses it, the row has the message; where parts are summed
in another order than by hand, it has the reason.
"""

# ruff: noqa: E731
# mypy: ignore-errors

import contextlib
import copy
import io
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

Loss = Callable[[nn.Module], torch.Tensor]
WAYS = ("streamed", "snapshot", "in_place")
UNREAD = r"never read trainable \w+"
FAST = "a module's fast path is not taken while a mode is active"
ALIGNED = "copies of vectors lie one after the other, and kernels add in another order where memory is not aligned"
LAYOUT = "copies lie row by row, and the products of strided ones add in another order"


@dataclass
class Row:
    """A construct.

    Args:
        make: The module, the same at each call.
        loss: A scalar.
        refused: The messages of the ways of probing that refuse it.
        rounding: Why the loss of streamed probing is equal up to rounding only; "": it has the same bits.
        warns: A warning that is wanted.
        steps: Whether it is also taken through steps of an optimiser.
    """

    make: Callable[[], nn.Module]
    loss: Loss
    refused: dict[str, str] = field(default_factory=dict)
    rounding: str = ""
    warns: str = ""
    steps: bool = True


ROWS: dict[str, Row] = {}


def row(name: str, make: Callable[[], nn.Module], loss: Loss, **more: Any) -> None:
    """Add a construct to the table."""
    assert name not in ROWS
    ROWS[name] = Row(make, loss, **more)


class Holder(nn.Module):
    """Parameters of these shapes: a (8, 8), b (8, 8), t (20, 8), v (8,), s ()."""

    def __init__(self, dtype: torch.dtype = torch.float32, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        for name, shape in (shapes or {"a": (8, 8), "b": (8, 8), "t": (20, 8), "v": (8,), "s": ()}).items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape).to(dtype)))


def seeded(make: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> Callable[[], nn.Module]:
    """A module in eval mode that is the same at each call."""

    def made() -> nn.Module:
        torch.manual_seed(0)
        return make(*args, **kwargs).eval()

    return made


def value(y: torch.Tensor) -> torch.Tensor:
    """A scalar that tells apart what would cancel in a sum."""
    y = torch.view_as_real(y) if y.is_complex() else y
    return (y.float().sin() * torch.linspace(1, 2, max(y.numel(), 1))[: y.numel()].view(y.shape)).sum()


H = seeded(Holder)
X = torch.linspace(-1, 1, 24).view(3, 8)
SEQUENCE = torch.linspace(-2, 2, 96).sin().view(2, 6, 8)
IMAGE = torch.linspace(-2, 2, 2 * 3 * 8 * 8).sin().view(2, 3, 8, 8)
IDS = torch.tensor([[1, 2, 3], [4, 0, 19]])
held = lambda name, read, **more: row(name, H, lambda m: value(read(m)), **more)
module = lambda name, make, *inputs, **more: row(name, make, lambda m: value(first(m(*inputs))), **more)


def first(output: Any) -> torch.Tensor:
    """The tensor of a module's output."""
    return output if isinstance(output, torch.Tensor) else first(output[0])


def tied() -> nn.Module:
    m = nn.ModuleDict({"e": nn.Embedding(20, 8), "h": nn.Linear(8, 20, bias=False)})
    m["h"].weight = m["e"].weight
    return m


def grad(f: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """The gradient of f at X, by autograd."""
    x = X.clone().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(f(x), x)[0]


# modules
module("linear", seeded(nn.Linear, 8, 5), X)
module("linear without bias", seeded(nn.Linear, 8, 5, bias=False), X)
module("bilinear", seeded(nn.Bilinear, 8, 8, 3), X, X)
row("tied weights", seeded(tied), lambda m: value(m["h"](m["e"](IDS))))
module("conv1d", seeded(nn.Conv1d, 6, 4, 3), SEQUENCE)
module("conv2d", seeded(nn.Conv2d, 3, 4, 3, padding=1), IMAGE)
module("conv2d, grouped and dilated", seeded(nn.Conv2d, 3, 6, 3, groups=3, dilation=2), IMAGE)
module("conv2d, padded by reflection", seeded(nn.Conv2d, 3, 4, 3, padding=1, padding_mode="reflect"), IMAGE)
module("conv2d, channels last", lambda: seeded(nn.Conv2d, 3, 4, 3)().to(memory_format=torch.channels_last), IMAGE,
       rounding=LAYOUT)  # fmt: skip
module("transposed conv1d", seeded(nn.ConvTranspose1d, 6, 4, 3, stride=2), SEQUENCE)
module("transposed conv2d", seeded(nn.ConvTranspose2d, 3, 4, 3), IMAGE)
module("embedding", seeded(nn.Embedding, 20, 8), IDS)
module("embedding, int32", seeded(nn.Embedding, 20, 8), IDS.int())
module("embedding, strided indices", seeded(nn.Embedding, 20, 8), IDS.int()[:, ::2])
module("embedding with padding_idx", seeded(nn.Embedding, 20, 8, padding_idx=0), IDS)
module("embedding bag", seeded(nn.EmbeddingBag, 20, 8), IDS)
module("embedding bag, int32 and offsets", seeded(nn.EmbeddingBag, 20, 8, mode="max"), IDS.view(-1).int(),
       torch.tensor([0, 2], dtype=torch.int32))  # fmt: skip
module("embedding with max_norm", seeded(nn.Embedding, 20, 8, max_norm=0.5), IDS,
       refused={"streamed": "writes to trainable tensor .weight.", "snapshot": "", "in_place": ""})  # fmt: skip
module("rnn", seeded(nn.RNN, 8, 5, 2, batch_first=True), SEQUENCE, rounding=ALIGNED)
module("gru", seeded(nn.GRU, 8, 5, batch_first=True, bidirectional=True), SEQUENCE,
       rounding=ALIGNED)  # fmt: skip
module("lstm", seeded(nn.LSTM, 8, 5, 2, batch_first=True), SEQUENCE)
module("lstm with a projection", seeded(nn.LSTM, 8, 5, proj_size=3), SEQUENCE)
module("lstm cell", seeded(nn.LSTMCell, 8, 5), X)
row("packed gru", seeded(nn.GRU, 8, 5, batch_first=True),
    lambda m: value(m(nn.utils.rnn.pack_padded_sequence(SEQUENCE, [6, 3], batch_first=True))[0].data))  # fmt: skip
module("layer norm", seeded(nn.LayerNorm, 8), X)
module("rms norm", seeded(nn.RMSNorm, 8), X)
module("group norm", seeded(nn.GroupNorm, 3, 6), SEQUENCE)
module("batch norm in eval mode", seeded(nn.BatchNorm2d, 3), IMAGE)
module("instance norm", seeded(nn.InstanceNorm2d, 3, affine=True), IMAGE)
module("prelu", seeded(nn.PReLU, 6), SEQUENCE)
module("sequential", seeded(lambda: nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 2))), X)
module("multi-head attention", seeded(nn.MultiheadAttention, 8, 2, batch_first=True), SEQUENCE, SEQUENCE, SEQUENCE,
       rounding=FAST)  # fmt: skip
row("multi-head attention without weights", seeded(nn.MultiheadAttention, 8, 2),
    lambda m: value(m(SEQUENCE, SEQUENCE + 1, SEQUENCE, need_weights=False)[0]))  # fmt: skip
module("multi-head attention with other keys", seeded(nn.MultiheadAttention, 8, 2, kdim=8, vdim=8, add_bias_kv=True),
       SEQUENCE, SEQUENCE, SEQUENCE)  # fmt: skip
module("transformer encoder layer", seeded(nn.TransformerEncoderLayer, 8, 2, 16, batch_first=True), SEQUENCE,
       rounding=FAST)  # fmt: skip
module("transformer decoder layer", seeded(nn.TransformerDecoderLayer, 8, 2, 16), SEQUENCE, SEQUENCE)
module("parameter list", seeded(lambda: Listed()), X)
module("modules by name", seeded(lambda: Named()), X)


class Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.all = nn.ParameterList([torch.randn(8, 8) for _ in range(3)])

    def forward(self, x):
        for w in self.all:
            x = (x @ w).tanh()
        return x


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.all = nn.ParameterDict({"w": torch.randn(8, 8), "b": torch.randn(8)})

    def forward(self, x):
        return x @ self.all["w"] + self.all["b"]


# products
held("x @ w", lambda m: X @ m.a)
held("w @ x", lambda m: m.a @ X.T)
held("w @ w", lambda m: m.a @ m.a + m.a @ m.b)
held("matmul by its method", lambda m: X.matmul(m.a))
held("addmm", lambda m: torch.addmm(m.v, X, m.a, beta=0.5))
held("addmv", lambda m: torch.addmv(m.v, m.a, X[0]))
held("bmm", lambda m: torch.bmm(m.a.view(2, 4, 8), SEQUENCE.transpose(1, 2)))
held("baddbmm", lambda m: torch.baddbmm(m.v[:6], m.a.view(2, 4, 8), SEQUENCE.transpose(1, 2)))
held("einsum", lambda m: torch.einsum("bi,io,o->bo", X, m.a, m.v))
held("einsum, two weights", lambda m: torch.einsum("bi,io,oj->bj", X, m.a, m.b))
held("tensordot", lambda m: torch.tensordot(X, m.a, dims=([1], [0])))
held("outer", lambda m: torch.outer(m.v, m.v))
held("dot", lambda m: torch.dot(m.v, X[1]))
held("kron", lambda m: torch.kron(m.v, m.a))
held("chain", lambda m: torch.linalg.multi_dot([X, m.a, m.b]))
held("inner product by numbers", lambda m: sum(w * x for w, x in zip(m.v, X[0], strict=True)))
held("a low-rank adapter, merged", lambda m: X @ (m.a + 0.5 * m.b[:, :2] @ m.t[:2]))
held("linear over some rows", lambda m: F.linear(X, m.t[:7]))
held("linear over a transpose", lambda m: F.linear(X, m.a.T))
held("cosine similarity", lambda m: F.cosine_similarity(X[:, None], m.t[None], -1))
held("distances", lambda m: torch.cdist(X, m.t))
held("linalg", lambda m: torch.linalg.solve(m.a + 9 * torch.eye(8), m.b))
held("inverse", lambda m: torch.linalg.inv(m.a + 9 * torch.eye(8)))
held("determinant", lambda m: torch.linalg.slogdet(m.a + 9 * torch.eye(8))[1])
held("matrix exponential", lambda m: torch.matrix_exp(0.1 * (m.a - m.a.T)))

# attention
held("fused attention", lambda m: F.scaled_dot_product_attention(SEQUENCE @ m.a, SEQUENCE @ m.b, SEQUENCE))
held("attention over weights", lambda m: F.scaled_dot_product_attention(SEQUENCE, m.t[None], m.t[None]))


def chosen_kernel(m: nn.Module) -> torch.Tensor:
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return F.scaled_dot_product_attention(SEQUENCE @ m.a, SEQUENCE @ m.b, SEQUENCE)


held("attention, the kernel chosen", chosen_kernel)
held("attention with a learnt bias", lambda m: F.scaled_dot_product_attention(
    SEQUENCE, SEQUENCE, SEQUENCE, attn_mask=m.t[:6, :6]))  # fmt: skip

# views and shapes
held("transpose", lambda m: X @ m.a.t() + X @ m.a.mT + X @ m.b.transpose(0, 1))
held("view", lambda m: m.a.view(4, 16) + m.b.reshape(4, 16))
held("view of a vector", lambda m: X * m.v.view(1, -1) + m.v[None] + m.v.unsqueeze(0))
held("slices", lambda m: m.t[2:9:2, 1:] + m.t[..., :7][3:7])
held("one row", lambda m: m.t[3] + m.t[-1] + m.t.select(0, 2))
held("one column", lambda m: m.t[:, 3])
held("one number", lambda m: m.a[1, 2] + m.v[3] + m.s)
held("ellipsis and None", lambda m: m.a[None, ..., 1])
held("chunk", lambda m: torch.cat([p.sin() * i for i, p in enumerate(m.t.chunk(3))]))
held("split", lambda m: torch.stack([p.sum() * i for i, p in enumerate(torch.split(m.t, [4, 6, 10]))]))
held("unbind", lambda m: torch.stack([p * i for i, p in enumerate(m.a.unbind(1))]))
held("a loop over rows", lambda m: torch.stack([p * i for i, p in enumerate(m.a)]))
held("stack and cat", lambda m: torch.cat([torch.stack([m.a, m.b]), SEQUENCE.new_ones(1, 8, 8)]))
held("hstack of vectors", lambda m: torch.hstack([m.v, m.v * 2, m.s.view(1)]))
held("expand and repeat", lambda m: m.v.expand(3, 8) + m.v.repeat(3, 1) + m.s.expand(3, 8))
held("permute, flip, roll", lambda m: m.a.permute(1, 0).flip(0) + m.b.roll(1, 0))
held("diagonal and triangle", lambda m: m.a.diagonal() + m.b.tril().sum(0) + torch.diag(m.v).sum(0))
held("unfold", lambda m: m.v.unfold(0, 3, 2))
held("as_strided", lambda m: m.a.as_strided((3, 3), (8, 1), 2))
held("broadcasting", lambda m: sum(torch.broadcast_tensors(m.v, m.s, X)))
held("meshgrid", lambda m: torch.meshgrid(m.v, m.v, indexing="ij")[0])
held("a copy", lambda m: m.a.clone() + m.b.contiguous() + m.a.detach() + m.b.data)
held("to itself", lambda m: m.a.to(torch.float32) + m.a.float() + m.a.cpu() + m.a.type_as(X))
held("to another dtype", lambda m: m.a.double() @ X.T.double() + m.b.half().float().mean())
held("strides are asked for", lambda m: X @ m.a.reshape(m.a.shape[0], -1) * m.a.stride(0) / m.a.numel())

# indices
held("gather", lambda m: m.t.gather(0, IDS))
held("take", lambda m: m.t.take(IDS) + torch.take_along_dim(m.t, IDS[:, :1], 0).sum())
held("index_select", lambda m: m.t.index_select(0, IDS[0]) + m.t.index_select(0, IDS[1].int()))
held("index_select, columns", lambda m: m.t.index_select(1, IDS[0]))
held("indices", lambda m: m.t[IDS] + m.t[IDS.int()] + F.embedding(IDS.int(), m.t))
held("negative indices", lambda m: m.t[-IDS] + m.t[torch.tensor(-2)])
held("indices of two dimensions", lambda m: m.t[IDS[0], IDS[0]])
held("lists and arrays as indices", lambda m: m.t[[1, 2]] + m.t[np.array([3, 4])] + m.t[IDS[0, :2].tolist()])
held("a mask", lambda m: m.a[X[1] > 0] + m.a.masked_select(m.a > 0).sum())
held("a mask over numbers", lambda m: m.a[torch.eye(8, dtype=torch.bool)])
held("a mask of int8", lambda m: m.v[(X[1] > 0).to(torch.uint8)])
held("indices of int16", lambda m: m.t[IDS.short().long()])
held("no indices", lambda m: m.t[IDS[:0]].sum() + m.t[0:0].sum() + m.s)
held("where", lambda m: torch.where(X > 0, m.v, m.s))
held("masked_fill", lambda m: m.a.masked_fill(m.a > 0, 0.5))
held("scatter", lambda m: torch.zeros(20, 8).scatter(0, IDS, m.t))
held("index_add", lambda m: torch.zeros(20, 8).index_add(0, IDS[0], m.a[:3]))
held("index_put", lambda m: torch.zeros(20, 8).index_put((IDS[0],), m.v))
held("item assignment of a weight", lambda m: torch.zeros(20, 8).__setitem__(3, m.v) or m.t + m.v)
held("one-hot products", lambda m: F.one_hot(IDS, 20).float() @ m.t)
held("topk and sort", lambda m: m.t.topk(3, 0).values + m.t.sort(0)[0][:3])
held("bucketize by a weight", lambda m: m.v.sort()[0] + torch.bucketize(X[0], m.v.sort()[0]))
held("embedding by its function", lambda m: F.embedding(IDS, m.t, padding_idx=0) + torch.embedding(m.t, IDS))
held("embedding of a slice", lambda m: F.embedding(IDS % 5, m.t[3:9]))
held("embedding bag by its function", lambda m: F.embedding_bag(IDS, m.t, mode="sum"))
held(
    "embedding_renorm_",
    lambda m: torch.embedding_renorm_(m.t, IDS, 0.5, 2.0),
    refused={"streamed": r"writes to trainable tensor 't' \(embedding_renorm_\)", "snapshot": "", "in_place": ""},
)

# numbers and raw memory
held("item", lambda m: X * m.s.item() + float(m.v[0]) + m.a.sum().item())
held("tolist", lambda m: torch.tensor(m.v.tolist()) * X)
held("numpy", lambda m: X + torch.from_numpy(m.v.detach().numpy().copy()))
held("numpy of a matrix", lambda m: X @ torch.from_numpy(np.asarray(m.a.data) * 2))
held("numpy functions", lambda m: X @ torch.from_numpy(np.exp(m.a.detach().numpy())))
held("branches on a value", lambda m: X * m.s if m.s < 9 else X)
held("torch.tensor of numbers", lambda m: torch.tensor([1.0, m.s, m.v[0]]) + torch.stack([m.s] * 3))
held("dlpack", lambda m: X @ torch.from_dlpack(m.a.detach()).clone())
held("printed", lambda m: X * len(repr(m.s.data)) * 0.01 + m.v)
held("storage", lambda m: X * torch.tensor(m.v.untyped_storage().nbytes()) + m.v)

# other mathematics
held("fft of a weight", lambda m: torch.fft.rfft(m.a))
held("complex views", lambda m: torch.view_as_complex(m.t.view(20, 4, 2)) * 1j)
held("complex numbers", lambda m: torch.complex(m.a, m.b).conj() @ torch.complex(X.T, X.T))
held("polar", lambda m: torch.polar(m.v.exp(), m.v))
held("softmax and logsumexp", lambda m: m.a.softmax(-1) + m.b.logsumexp(0))
held("loss with class weights", lambda m: F.cross_entropy(X, IDS[0], weight=m.v.exp()))
held("reductions", lambda m: m.a.norm() + m.b.std() + m.t.var(0).sum() + m.v.prod() + m.a.max(0).values)
held("cumulative sums", lambda m: m.a.cumsum(0) + m.b.cumprod(1))
held("interpolation", lambda m: F.interpolate(m.a[None, None], scale_factor=2, mode="bilinear"))
held("grid sample", lambda m: F.grid_sample(m.t.view(1, 1, 20, 8), X.view(1, 3, 4, 2), align_corners=True))
held("padding", lambda m: F.pad(m.a, (1, 2), value=1.0))
held("normalize", lambda m: F.normalize(m.t))
held("foreach", lambda m: torch.cat(torch._foreach_mul([m.a, m.b], 2.0)))
held("lerp and addcmul", lambda m: torch.lerp(X[0], m.v, 0.3) + torch.addcmul(m.v, m.v, X[0]))
held("in place on a result", lambda m: (X @ m.a).mul_(2).add_(m.v).clamp_(-1, 1))
held("out=", lambda m: torch.mul(X, m.v, out=torch.empty(3, 8)) + torch.add(m.v, 1, out=torch.empty(8)))
held("dropout in eval mode", lambda m: F.dropout(m.a, 0.5, training=False) @ X.T)
held("copy into a buffer", lambda m: torch.empty(8, 8).copy_(m.a) + torch.zeros(8).add_(m.v))
held("nested tensors", lambda m: torch.nested.nested_tensor([X, X[:2]]).to_padded_tensor(0.0) @ m.a)
held("a nested tensor of weights", lambda m: torch.nested.as_nested_tensor([m.a, m.b[:2]]).to_padded_tensor(0.0))
held("a masked tensor times a weight", lambda m: torch.where(X > 0, X, 0.0) @ m.a)
held("quantised on the fly", lambda m: torch.fake_quantize_per_tensor_affine(m.a, 0.1, 0, -128, 127) @ X.T)
held("quantised by hand", lambda m: X @ ((m.a / 0.1).round().clamp(-8, 7).to(torch.int8).float() * 0.1))
held("binarised weights", lambda m: X @ (m.a.sign() * m.a.abs().mean()) + m.v)

# sparse
held("sparse @ weight", lambda m: torch.eye(8).to_sparse() @ m.a)
held("weight @ sparse", lambda m: m.a @ torch.eye(8).to_sparse())
held("sparse.mm", lambda m: torch.sparse.mm(X.to_sparse(), m.a) + torch.sparse.mm(X.to_sparse_csr(), m.a))
held("a sparse matrix with a weight's values", lambda m: torch.sparse_coo_tensor(
    torch.arange(8).repeat(2, 1), m.v, (8, 8)) @ m.a)  # fmt: skip
held("a weight made sparse", lambda m: m.a.to_sparse() @ X.T)

# functions of functions
held("vmap over an input", lambda m: torch.vmap(lambda x: m.a @ x + m.v)(X))
held("vmap over a weight", lambda m: torch.vmap(lambda r: r.exp().sum())(m.a) + m.v, warns="a .* snapshot")
held("func.grad", lambda m: torch.func.grad(lambda x: value(x @ m.a + m.v))(X))
held("func.grad of a weight", lambda m: torch.func.grad(lambda w: value(X @ w + m.v))(m.a), warns="a .* snapshot")
held("jvp", lambda m: torch.func.jvp(lambda x: (x @ m.a).sin(), (X,), (X,))[1])
held("vjp", lambda m: torch.func.vjp(lambda x: (x @ m.a).sin(), X)[1](X)[0])
held("jacrev", lambda m: torch.func.jacrev(lambda x: (m.a @ x).sin())(X[0]))
held("jacfwd", lambda m: torch.func.jacfwd(lambda x: (m.a @ x).sin())(X[0]))
held("hessian", lambda m: torch.func.hessian(lambda x: value(m.a @ x))(X[0]))
held("vmap of grad", lambda m: torch.vmap(torch.func.grad(lambda x: value(m.a @ x + m.t[IDS[0]].sum(0))))(X))
held("linearize", lambda m: torch.func.linearize(lambda x: (x @ m.a).sin(), X)[1](X))
row("functional_call with other weights", seeded(nn.Linear, 8, 8),
    lambda m: value(torch.func.functional_call(m, {"weight": m.weight * 2}, (X,)) + m(X)))  # fmt: skip
row("functional_call of a stack", seeded(nn.Linear, 8, 8), lambda m: value(torch.vmap(
    lambda w, b: torch.func.functional_call(m, {"weight": w, "bias": b}, (X,)))(
    torch.stack([m.weight, m.weight * 2]), torch.stack([m.bias, m.bias]))))  # fmt: skip
held("autograd.grad", lambda m: grad(lambda x: value(x @ m.a + m.v)))
held("autograd.grad twice", lambda m: grad(lambda x: value(torch.autograd.grad(
    value(x @ m.a), x, create_graph=True)[0] @ m.b)))  # fmt: skip
held("backward", lambda m: leaf_grad(lambda x: value(x @ m.a + m.v)))
held("autograd.functional", lambda m: torch.autograd.functional.jacobian(lambda x: (x @ m.a).sin(), X[0]))
held("forward-mode", lambda m: forward_mode(lambda x: (x @ m.a).sin()))
held("checkpoint", lambda m: grad(lambda x: value(checkpoint(lambda x: (x @ m.a + m.v).sin(), x, use_reentrant=False))))
held("checkpoint that enters again", lambda m: leaf_grad(lambda x: value(
    checkpoint(lambda x: (x @ m.a + m.v).sin(), x, use_reentrant=True))))  # fmt: skip
held("checkpoint in no_grad", lambda m: checkpoint(lambda x: (x @ m.a).sin(), X, use_reentrant=True))
held("a function with a backward pass", lambda m: grad(lambda x: value(Doubled.apply(x, m))))
held("a function that saves a weight", lambda m: grad(lambda x: value(Saved.apply(x, m.a))))
held("a hook of a gradient", lambda m: grad(lambda x: value(hooked(x.sin(), lambda g: g @ m.a))))
held("hooks of saved tensors", lambda m: packed(lambda: grad(lambda x: value((x @ m.a).sin()))))
held("gradient of a weight", lambda m: weight_grad(m), refused={"streamed": "differentiates .* tensor 'a'"})


def leaf_grad(f):
    x = X.clone().requires_grad_()
    with torch.enable_grad():
        f(x).backward()
    return x.grad


def forward_mode(f):
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(X, X)
        return torch.autograd.forward_ad.unpack_dual(f(dual)).tangent


def weight_grad(m):
    with torch.enable_grad():
        return torch.autograd.grad(value(X.clone().requires_grad_() @ m.a), m.a)[0]


def hooked(x, hook):
    x.register_hook(hook)
    return x * 2


def packed(f):
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t * 1):
        return f()


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, m):
        ctx.m = m
        return x.sin() @ m.b

    @staticmethod
    def backward(ctx, g):
        return g @ ctx.m.a, None


class Saved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g @ w.T * x.cos(), None


# states, modes, threads
def in_context(context: Callable[[], Any], f: Callable[[nn.Module], torch.Tensor]) -> Callable[[nn.Module], Any]:
    def read(m):
        with context():
            return f(m).clone()

    return read


class Mode(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


PRODUCT = lambda m: X @ m.a + m.v * m.s + m.t[IDS[0]]
held("autocast", in_context(lambda: torch.autocast("cpu", torch.bfloat16), lambda m: (X @ m.a + m.v).float()))
held("no_grad and enable_grad", in_context(torch.enable_grad, lambda m: PRODUCT(m).detach()))
held("inference mode", in_context(torch.inference_mode, PRODUCT))
held("a function mode", in_context(Mode, PRODUCT))
held("a dispatch mode", in_context(Dispatch, PRODUCT))
held("nested modes", in_context(Mode, in_context(Dispatch, in_context(Mode, PRODUCT))))
held("a default device", in_context(lambda: torch.device("cpu"), PRODUCT))
held("functions disabled", in_context(torch._C.DisableTorchFunction, lambda m: X @ m.a), warns="a .* snapshot")
held("subclasses disabled", in_context(torch._C.DisableTorchFunctionSubclass, PRODUCT))
held("a counter of operations", in_context(
    lambda: FlopCounterMode(display=False), PRODUCT))  # fmt: skip
held("a profiler", in_context(lambda: torch.autograd.profiler.profile(), PRODUCT))
held("a generator of its own", lambda m: X @ m.a + torch.randn(8, generator=torch.Generator().manual_seed(1)))
held("other threads", lambda m: in_threads(lambda i: X @ m.a * i),
     refused=dict.fromkeys(WAYS, UNREAD))  # fmt: skip
held("copies in other threads", lambda m: (lambda a: in_threads(lambda i: X @ a * i))(m.a.clone()))
held("deepcopy of a module", lambda m: PRODUCT(copy.deepcopy(m)))
held("deepcopy of a tensor", lambda m: X @ copy.deepcopy(m.a.detach()) + copy.copy(m.v))
held("state_dict", lambda m: X @ m.state_dict()["a"] + dict(m.named_parameters())["v"])
held("pickled", lambda m: X @ pickle.loads(pickle.dumps(m.a)))
held("saved", lambda m: X @ saved(m.a))
held("load_state_dict", lambda m: m.load_state_dict(m.state_dict()) and PRODUCT(m),
     refused={"streamed": r"writes to trainable tensor '\w' \(copy_\)",
              "in_place": r"itself writes to trainable tensor '\w', and in place"})  # fmt: skip
held("to the dtype that it has", lambda m: (m.to(torch.float32), PRODUCT(m))[1])
held("data set to itself", lambda m: (setattr(m.a, "data", m.a.data), PRODUCT(m))[1])
held("parameters in a dataclass", lambda m: (lambda box: X @ box["a"][0])({"a": [m.a]}))
held("parameters_to_vector", lambda m: nn.utils.parameters_to_vector([m.a, m.b]))
held("a parameter replaced", lambda m: replaced(m))
held("register_parametrization in the forward", lambda m: parametrized_inside(m))


def saved(t):
    file = io.BytesIO()
    torch.save(t, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def in_threads(f):
    with ThreadPoolExecutor(2) as pool:
        return sum(pool.map(f, range(1, 3)))


def replaced(m):
    """As functional_call does it."""
    mine = m.a
    del m.a
    m.a = mine * 2
    try:
        return PRODUCT(m)
    finally:
        del m.a
        m.a = mine


def parametrized_inside(m):
    class Double(nn.Module):
        def forward(self, w):
            return w * 2

    box = nn.Module()
    box.w = m.a
    parametrize.register_parametrization(box, "w", Double())
    return X @ box.w


# parametrizations
class Low(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(torch.randn(2, 8)), nn.Parameter(torch.randn(8, 2))

    def forward(self, w):
        return w + self.up @ self.down


def with_low_rank() -> nn.Module:
    m = nn.Linear(8, 8)
    parametrize.register_parametrization(m, "weight", Low())
    return m


def old_weight_norm() -> nn.Module:
    return nn.utils.weight_norm(nn.Linear(8, 8))


class Cached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.l = with_low_rank()

    def forward(self, x):
        with parametrize.cached():
            return self.l(self.l(x))


module("weight norm", seeded(lambda: parametrizations.weight_norm(nn.Linear(8, 8))), X)
module("weight norm of old", seeded(old_weight_norm), X)
module("spectral norm", seeded(lambda: parametrizations.spectral_norm(nn.Linear(8, 8))), X)
module("orthogonal", seeded(lambda: parametrizations.orthogonal(nn.Linear(8, 8))), X)
module("a parametrization of low rank", seeded(with_low_rank), X)
module("a parametrization, cached in the forward", seeded(Cached), X)
module("pruned", seeded(lambda: prune.l1_unstructured(nn.Linear(8, 8), "weight", 0.3)), X)

# dtypes and layouts
for dtype in (torch.float16, torch.bfloat16):
    module(f"linear of {dtype}", seeded(lambda d: nn.Linear(8, 5).to(d), dtype), X.to(dtype))
    row(f"weights of {dtype}", seeded(Holder, dtype), lambda m, d=dtype: value(
        X.to(d) @ m.a + m.v * m.s + m.t[IDS[0]]))  # fmt: skip
module("of mixed dtypes", seeded(lambda: nn.Sequential(nn.Linear(8, 8), Cast(), nn.Linear(8, 8).bfloat16())), X)


class Cast(nn.Module):
    def forward(self, x):
        return x.bfloat16()


def strided(shape: tuple[int, ...], change: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    m = nn.Module()
    m.w = nn.Parameter(change(torch.randn(shape)))
    return m


row("a transposed parameter", seeded(strided, (8, 5), torch.Tensor.t), lambda m: value(F.linear(X, m.w)),
    rounding=LAYOUT)  # fmt: skip
row("a parameter of every other row", seeded(strided, (16, 8), lambda t: t[::2]), lambda m: value(X @ m.w),
    rounding=LAYOUT)  # fmt: skip
row("a parameter in the middle of a buffer", seeded(strided, (9, 8), lambda t: t[1:]), lambda m: value(
    X @ m.w + m.w[2] + F.embedding(IDS % 8, m.w).sum()))  # fmt: skip
row("a strided parameter, viewed by hand", seeded(strided, (8, 5), torch.Tensor.t), lambda m: value(
    m.w.as_strided((4,), (1,))), refused={"streamed": "'w' by as_strided"})  # fmt: skip
row("empty parameters", seeded(Holder, e=(0, 8), f=(0,), a=(8, 8)), lambda m: value(
    X @ m.a + (torch.zeros(3, 0) @ m.e) + m.f.sum() + m.e[torch.zeros(0, dtype=torch.long)].sum()))  # fmt: skip
row("scalars", seeded(Holder, s=(), o=(1,), p=(1, 1)), lambda m: value(X * m.s + m.o - m.p))


def with_view(make_view: Callable[[nn.Module], torch.Tensor]) -> Callable[[], nn.Module]:
    def made() -> nn.Module:
        m = H()
        with torch.no_grad():
            m.view = make_view(m)
        return m

    return made


row("a view made before", with_view(lambda m: m.a.t()), lambda m: value(X @ m.view + m.v), warns="a .* snapshot")
row("data taken before", with_view(lambda m: m.a.data), lambda m: value(X @ m.view @ m.a), warns="a .* snapshot")
row("a late row taken before", with_view(lambda m: m.t.data[15:]), lambda m: value(m.view), warns="t .* snapshot")
row("an array taken before", with_view(lambda m: torch.from_numpy(m.a.detach().numpy())),
    lambda m: value(X @ m.view + m.v), warns="a .* snapshot")  # fmt: skip
row("a vector's view made before", with_view(lambda m: m.v.view(2, 4)), lambda m: value(m.view), warns="v .* snapshot")


class Buffered(nn.Module):
    """Its buffer grows with what was computed."""

    def __init__(self) -> None:
        super().__init__()
        self.l = nn.Linear(8, 8)
        self.register_buffer("last", torch.zeros(8))

    def forward(self, x):
        self.last.copy_(self.l(x).mean(0))
        return self.l(x) - self.last


module("a buffer updated in the forward", seeded(Buffered), X)


def with_hook(kind: str, hook: Callable[..., Any]) -> Callable[[], nn.Module]:
    def made() -> nn.Module:
        torch.manual_seed(0)
        m = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        getattr(m[1], f"register_{kind}")(hook)
        return m

    return made


module("a pre-hook that reads weights", with_hook("forward_pre_hook", lambda m, x: (x[0] @ m.weight,)), X)
module("a hook that reads weights", with_hook("forward_hook", lambda m, x, y: y * m.bias + m.weight[0]), X)


# mixtures, loops
class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(8, 4), nn.Parameter(torch.randn(4, 8, 8))

    def forward(self, x):
        weight, which = self.gate(x).softmax(-1).topk(2)
        out = torch.zeros_like(x)
        for e in which.unique().tolist():
            at, slot = (which == e).nonzero(as_tuple=True)
            out.index_add_(0, at, (x[at] @ self.experts[e]) * weight[at, slot, None])
        return out


module("mixture of experts", seeded(Mixture), X)
held("experts gathered", lambda m: torch.bmm(X[:, None], m.a.view(4, 4, 4).repeat(1, 2, 2)[IDS[0] % 4]))
held("grouped product", lambda m: F.grouped_mm(
    X.bfloat16(), m.t[:16].view(2, 8, 8).bfloat16(), offs=torch.tensor([1, 3], dtype=torch.int32)))  # fmt: skip
held("an early exit", lambda m: X @ m.a if (X @ m.a).mean() > 0 else X @ m.b)
held("a loop that ends by itself", lambda m: looped(m))
held("memory of calls that is cleared", lambda m: remembered(m))


def looped(m):
    x = X
    for _ in range(20):
        x = torch.tanh(x @ m.a)
        if x.norm() < 0.1:
            break
    return x


def remembered(m):
    m.kept = X @ m.a
    try:
        return m.kept @ m.b
    finally:
        del m.kept


# compiled, scripted, custom
module("compiled", seeded(lambda: torch.compile(nn.Linear(8, 8), backend="eager")), X, steps=False)
module("scripted", seeded(lambda: torch.jit.script(nn.Linear(8, 8))), X, warns="weight .* snapshot")
module("traced", seeded(lambda: torch.jit.trace(nn.Linear(8, 8), X)), X, warns=".")
held("a scripted function", lambda m: scripted(X, m.a) + m.a[0], warns="a .* snapshot")


@torch.jit.script
def scripted(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return x @ w


current: list[nn.Module] = []


@torch.library.custom_op("constructs::product", mutates_args=())
def custom_product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return x @ w


@torch.library.custom_op("constructs::hidden", mutates_args=())
def custom_hidden(x: torch.Tensor) -> torch.Tensor:
    return x @ current[-1].a


@torch.library.custom_op("constructs::writes", mutates_args=("w",))
def custom_writes(w: torch.Tensor) -> None:
    w.mul_(2)


def hidden(m):
    current.append(m)
    try:
        return custom_hidden(X)
    finally:
        current.clear()


def overridable(f):
    return torch.overrides.wrap_torch_function(lambda *args: args)(f)


held("a custom operation", lambda m: custom_product(X, m.a))
held("a custom operation that reads others", hidden, refused=dict.fromkeys(WAYS, UNREAD))
held("a custom operation that writes", lambda m: custom_writes(m.a) or m.a @ X.T,
     refused={"streamed": r"writes to trainable tensor 'a'", "snapshot": "", "in_place": ""})  # fmt: skip
held("operations by their own names", lambda m: torch.ops.aten.mm(X, m.a) + torch.ops.aten.mm.default(X, m.b))
held("an overridable function of the user's", lambda m: overridable(lambda x: x @ m.a + m.v)(X))
held("a callable among the arguments", lambda m: F.triplet_margin_with_distance_loss(
    X, X + 1, X - 1, margin=50.0, reduction="none",
    distance_function=lambda a, b: ((a - b * 2) @ m.a).norm(dim=-1)))  # fmt: skip

# writes
WRITTEN = {"streamed": "writes to trainable tensor", "snapshot": "", "in_place": ""}
for how, write in {
    "data": lambda m: m.a.data.clamp_(max=0.1),
    "detach": lambda m: m.a.detach().clamp_(max=0.1),
    "view": lambda m: m.a.view(-1).mul_(2),
    "item": lambda m: m.a.__setitem__(0, 1.0),
    "itself": lambda m: m.a.mul_(2),
    "out": lambda m: torch.add(m.a, 1, out=m.a),
    "inplace": lambda m: F.relu(m.a, inplace=True),
    "a vector's data": lambda m: m.v.data.add_(1),
    "foreach": lambda m: torch._foreach_mul_([m.a], 2.0),
    "init": lambda m: nn.init.zeros_(m.a),
    "numpy": lambda m: m.a.detach().numpy().fill(0),
    "set data": lambda m: setattr(m.a, "data", torch.zeros(8, 8)),
}.items():  # fmt: skip
    held(f"written: {how}", lambda m, w=write: (w(m), PRODUCT(m))[1], refused=WRITTEN)
held("keeps a view", lambda m: m.__dict__.setdefault("kept", m.a.t()) @ X.T,
     refused={"streamed": "keeps a view of trainable tensor 'a'"})  # fmt: skip
held("an exit stack", in_context(contextlib.ExitStack, PRODUCT))
held("partial functions", lambda m: partial(torch.addmm, m.v)(X, m.a))
