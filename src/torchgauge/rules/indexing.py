"""Picking, pooling and reducing: tables read by index, windows over positions, sums over axes."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch.fx import Node

from torchgauge.rules import axes
from torchgauge.rules.constants import name_of
from torchgauge.rules.lower import Lowering
from torchgauge.rules.pointwise import PROFILES
from torchgauge.rules.registry import operators, rule
from torchgauge.spaces.constraints import Mul, Profile, Tensor

aten = torch.ops.aten
MOST_RUNS = 4
"""Slices that an index with known positions may be made of."""


@rule(aten.embedding)
def embedding(ctx: Lowering, table: Tensor, index: Tensor, *_: object, **__: object) -> Tensor:
    """Rows of a table; at known positions, and added to parts that came together, a parameter like any other.

    There one row may trade with one part (a class token with the first position), not only all rows with a bias.
    """
    ctx.picks(index)
    rows = _cut_out(ctx, table, 0, index) if _added_to_parts(ctx.node) else None
    row = None if index.fill is None else int(index.fill)
    if rows is not None:
        return axes.reshape(ctx.b, rows, ctx.shape)
    picked = ctx.values.get(index)
    return ctx.b.gather(table, index.shape, row, picked and ctx.constants.resolve(picked))


def _added_to_parts(node: Node) -> bool:
    sums = [user for user in node.users if name_of(user) == "add"]
    return any(name_of(n) in ("cat", "concat") for user in sums for n in user.all_input_nodes)


@rule(*operators("embedding_bag", "_embedding_bag", "_embedding_bag_forward_only"))
def embedding_bag(
    ctx: Lowering, table: Tensor, index: Tensor, offsets: Tensor, _: bool = False, mode: int = 0, *rest: Any
) -> tuple[Tensor | None, ...]:
    """Rows picked, then summed, averaged or maximised bag by bag: a map along the picked positions."""
    weights = next((r for r in rest if isinstance(r, Tensor)), None)
    if index.role != "const" or offsets.role != "const" or (weights is not None and weights.role != "const"):
        return NotImplemented
    rows = ctx.b.gather(table, index.shape)
    length = _bag_length(ctx, index, offsets) if not any(_gaps(r) for r in rest) else None
    if length is not None and mode == 0:
        bags = axes.reshape(ctx.b, rows, (ctx.shape[0], length, *table.shape[1:]))
        return ctx.b.reduce(bags, (1,), "sum", False), None, None, None
    out = ctx.b.spatial(rows, (0,), ctx.shape, "max" if mode == 2 else "linear", length is not None and mode != 0)
    return out, None, None, None


def _gaps(option: object) -> bool:
    """Weights of single entries, a last offset, or a padding row: entries do not count alike."""
    if isinstance(option, bool) or option is None:
        return bool(option)
    return isinstance(option, Tensor) or (isinstance(option, int) and option >= 0)


def _bag_length(ctx: Lowering, index: Tensor, offsets: Tensor) -> int | None:
    """The number of entries of each bag, where all bags certainly have as many."""
    starts, count = ctx.exact(offsets), index.shape[0] if index.ndim == 1 else 0
    if starts is None or not starts.numel() or count % starts.numel():
        return None
    length = count // starts.numel()
    return length if length and torch.equal(starts.long(), torch.arange(0, count, length)) else None


@rule(aten.index_select)
def index_select(ctx: Lowering, x: Tensor, dim: int, index: Tensor) -> Tensor:
    ctx.picks(index)
    dim %= max(1, x.ndim)
    if dim == 0 and x.role == "param":
        return ctx.b.gather(x, ctx.shape[:1])
    cut = _cut_out(ctx, x, dim, index) if index.ndim == 1 else None
    return ctx.b.spatial(x, (dim,), ctx.shape, "linear", True) if cut is None else cut


def _cut_out(ctx: Lowering, x: Tensor, dim: int, index: Tensor) -> Tensor | None:
    """Entries along `dim` at known positions (all in one row), as a few slices."""
    known = ctx.exact(index) if prod(index.shape) == max(index.shape, default=0) else None
    if known is None or known.dtype == torch.bool or not known.numel():
        return None
    places = [int(i) % x.shape[dim] for i in known.flatten()]
    starts = [0, *(i for i in range(1, len(places)) if places[i] != places[i - 1] + 1), len(places)]
    runs = [(places[i], places[j - 1] + 1) for i, j in zip(starts, starts[1:], strict=False)]
    if len(runs) > MOST_RUNS:
        return None
    return axes.concat(ctx.b, [axes.narrow(ctx.b, x, dim, start, stop) for start, stop in runs], dim)


@rule(aten.index.Tensor, *operators("_unsafe_index"))
def index(ctx: Lowering, x: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    """x[..., i, j, ...]: the indexed dimensions are merged and picked from."""
    picked = [d for d, i in enumerate(indices) if i is not None]
    given = [i for i in indices if i is not None]
    shape = torch.broadcast_shapes(*(i.shape for i in given))
    if len(ctx.shape) != len(shape) + x.ndim - len(picked):
        return NotImplemented  # a mask of truth values: its size is not known
    if len(given) == 1 and given[0].role == "choice" and x.role == "param" and picked == [0]:
        return ctx.b.pick(x, given[0])
    for i in given:
        ctx.picks(i)
    if len(picked) == 1 and x.role != "param" and given[0].ndim == 1:
        cut = _cut_out(ctx, x, picked[0], given[0])
        if cut is not None:
            return cut
    rest = [d for d in range(x.ndim) if d not in picked]
    y = axes.permute(ctx.b, x, (*picked, *rest))
    tail = tuple(x.shape[d] for d in rest)
    y = axes.reshape(ctx.b, y, (-1 if 0 in x.shape else _size(x.shape[d] for d in picked), *tail))
    if x.role == "param":
        y = ctx.b.gather(y, shape)
    else:
        y = ctx.b.spatial(y, (0,), (_size(shape), *tail), "linear", True)
        y = axes.reshape(ctx.b, y, (*shape, *tail))
    adjacent = picked == list(range(picked[0], picked[-1] + 1))
    if not adjacent or picked[0] == 0:
        return y
    before, n = picked[0], len(shape)
    return axes.permute(ctx.b, y, (*range(n, n + before), *range(n), *range(n + before, y.ndim)))


@rule(aten.gather, *operators("take_along_dim"))
def gather(ctx: Lowering, x: Tensor, dim: int, index: Tensor, **_: object) -> Tensor:
    """A map along `dim` and along every dimension in which the index differs."""
    if not isinstance(index, Tensor) or not x.ndim or x.ndim != index.ndim:
        return NotImplemented
    same = all(n == m for d, (n, m) in enumerate(zip(x.shape, index.shape, strict=True)) if d != dim % x.ndim)
    if index.role == "choice" and same:
        return ctx.b.take(x, index, dim)
    ctx.picks(index)
    uniform = ctx.constants.uniform(ctx.values[index]) if index in ctx.values else frozenset()
    dims = {d for d in range(x.ndim) if d not in uniform or index.shape[d] != x.shape[d]} | {dim % x.ndim}
    return ctx.b.spatial(x, sorted(dims), ctx.shape, "linear", True, within=dim % x.ndim if same else None)


@rule(*operators("index_add"))
def index_add(ctx: Lowering, x: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: float = 1) -> Tensor:
    """x plus a map of the source along `dim`."""
    ctx.picks(index)
    return ctx.b.add(x, ctx.b.spatial(source, (dim,), x.shape, "linear", False), float(alpha))


@rule(*operators("median", "nanmedian", "mode"))
def order(ctx: Lowering, x: Tensor, *_: object, **__: object) -> Any:
    """The order of entries survives no frame but a shared permutation, and that is not followed into the index."""
    return ctx.opaque(f"{ctx.name} orders entries by value")


# -- reductions -------------------------------------------------------------------------------------------------
def _dims(x: Tensor, dim: Any) -> tuple[int, ...]:
    if dim is None or (isinstance(dim, (list, tuple)) and not dim):
        return tuple(range(x.ndim))
    return tuple(d % max(1, x.ndim) for d in ((dim,) if isinstance(dim, int) else dim))


def _reduce(ctx: Lowering, x: Tensor, dims: Sequence[int], mode: Any) -> Tensor:
    """Reduce, then give the node's own shape (kept or dropped dimensions)."""
    if not x.ndim:
        return x
    y = _summed_product(ctx, x, dims, mode) if mode in ("sum", "mean") else None
    y = ctx.b.reduce(x, dims, mode, True) if y is None else y
    return axes.reshape(ctx.b, y, ctx.shape)


def _summed_product(ctx: Lowering, x: Tensor, dims: Sequence[int], mode: str) -> Tensor | None:
    """Σ u v over some dimensions of both is a contraction, of which more is known than of a product and a sum."""
    b, made = ctx.b, ctx.b.producers.get(x)
    if not isinstance(made, Mul) or made.power != 1 or made.x is made.y or "const" in (made.x.role, made.y.role):
        return None
    if any(made.x.shape[d] != x.shape[d] or made.y.shape[d] != x.shape[d] for d in dims):
        return None
    kept = [[d for d, n in enumerate(t.shape) if n == x.shape[d]] for t in (made.x, made.y)]
    u, v = (b.reshape(t, [t.shape[d] for d in places]) for t, places in zip((made.x, made.y), kept, strict=True))
    labels = [[f"d{d}" for d in places] for places in (*kept, [d for d in range(x.ndim) if d not in dims])]
    y = b.contract(u, v, *labels)
    return y if mode == "sum" else ctx.scale(y, 1.0 / _size(x.shape[d] for d in dims))


@rule(aten.mean)
def mean(ctx: Lowering, x: Tensor, dim: Any = None, keepdim: bool = False, **_: object) -> Tensor:
    return _reduce(ctx, x, _dims(x, dim), "mean")


@rule(aten.sum)
def sum_(ctx: Lowering, x: Tensor, dim: Any = None, keepdim: bool = False, **_: object) -> Tensor:
    return _reduce(ctx, x, _dims(x, dim), "sum")


@rule(aten.amax, aten.amin)
def amax(ctx: Lowering, x: Tensor, dim: Any = (), keepdim: bool = False) -> Tensor:
    return _reduce(ctx, x, _dims(x, dim), "max")


@rule(aten.max.default, aten.min.default)
def max_all(ctx: Lowering, x: Tensor) -> Tensor:
    return _reduce(ctx, x, _dims(x, None), "max")


@rule(aten.var, aten.std)
def var(ctx: Lowering, x: Tensor, *args: Any, correction: float | None = None, **__: object) -> Tensor:
    """Mean of (x − mean)², its root for `std`; the correction is a factor n/(n − c)."""
    b, dims, unbiased = ctx.b, _dims(x, None), True
    for a in args[:2]:
        if isinstance(a, bool):
            unbiased = a
        elif a is not None:
            dims = _dims(x, a)
    shift = (1.0 if unbiased else 0.0) if correction is None else float(correction)
    centred = b.add(x, b.reduce(x, dims, "mean", True), -1.0)
    y = b.reduce(b.pointwise(centred, PROFILES["square"]), dims, "mean", True)
    n = _size(x.shape[d] for d in dims)
    if shift:
        y = ctx.scale(y, n / (n - shift)) if n > shift else ctx.opaque("variance of too few entries")
    if ctx.name == "std":
        y = b.pointwise(y, PROFILES["sqrt"])
    return axes.reshape(b, y, ctx.shape)


@rule(*operators("linalg_vector_norm", "norm", "frobenius_norm"))
def norm(
    ctx: Lowering, x: Tensor, p: Any = 2, dim: Any = None, keepdim: bool = False, *_: object, **__: object
) -> Tensor:
    if ctx.name == "frobenius_norm":
        p, dim = 2, p
    p = 2 if p is None else p
    dims, b = _dims(x, dim), ctx.b
    if not isinstance(p, (int, float)):
        return NotImplemented
    if p == 2:
        y = b.reduce(b.pointwise(x, PROFILES["square"]), dims, "sum", True)
        return axes.reshape(b, b.pointwise(y, PROFILES["sqrt"]), ctx.shape)
    if p in (1, float("inf")):
        return _reduce(ctx, b.pointwise(x, PROFILES["abs"]), dims, "sum" if p == 1 else "max")
    return NotImplemented


@rule(aten.logsumexp)
def logsumexp(ctx: Lowering, x: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
    """log Σ exp, by parts."""
    y = ctx.b.reduce(ctx.b.pointwise(x, PROFILES["exp"]), _dims(x, dim), "sum", True)
    return axes.reshape(ctx.b, ctx.b.pointwise(y, Profile("log")), ctx.shape)


@rule(aten.cumsum)
def cumsum(ctx: Lowering, x: Tensor, dim: int, **_: object) -> Tensor:
    return ctx.b.spatial(x, (dim,), x.shape, "linear", False) if x.ndim else x


@rule(*operators("tril", "triu"))
def triangle(ctx: Lowering, x: Tensor, diagonal: int = 0) -> Tensor:
    return ctx.b.mul(x, ctx.b.const(x.shape[-2:], "triangle"))


# -- windows over positions ---------------------------------------------------------------------------------------
def _pool(ctx: Lowering, x: Tensor, rank: int, mode: Any, keeps_constants: bool) -> Tensor:
    return ctx.b.spatial(x, range(-rank, 0), ctx.shape, mode, keeps_constants)


@rule(aten.max_pool1d, aten.max_pool2d, aten.max_pool3d)
def max_pool(ctx: Lowering, x: Tensor, kernel: Sequence[int], *_: object) -> Tensor:
    """Padding counts as −∞, so a constant stays."""
    return _pool(ctx, x, _rank(ctx), "max", True)


@rule(*operators("max_pool1d_with_indices", "max_pool2d_with_indices", "max_pool3d_with_indices"))
@rule(*operators("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"))
def max_pool_with_indices(ctx: Lowering, x: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return _pool(ctx, x, _rank(ctx), "max", True), ctx.opaque("position of a maximum")[1]


@rule(aten.avg_pool1d, aten.avg_pool2d, aten.avg_pool3d)
def avg_pool(ctx: Lowering, x: Tensor, *args: Any) -> Tensor:
    return _pool(ctx, x, _rank(ctx), "linear", _keeps_ones(ctx, x, _rank(ctx)))


@rule(*operators("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"))
@rule(*operators("_adaptive_avg_pool2d", "_adaptive_avg_pool3d"))
def adaptive_avg_pool(ctx: Lowering, x: Tensor, *_: object) -> Tensor:
    return _pool(ctx, x, _rank(ctx), "linear", True)


_UPSAMPLES = [
    f"upsample_{kind}"
    for kind in ("nearest1d", "nearest2d", "nearest3d", "linear1d", "bilinear2d", "trilinear3d", "bicubic2d")
]


@rule(*operators(*_UPSAMPLES, "_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d"))
@rule(*operators("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"))
def upsample(ctx: Lowering, x: Tensor, *_: object, **__: object) -> Tensor:
    """Interpolation weights sum to one."""
    return _pool(ctx, x, x.ndim - 2, "linear", True)


@rule(aten.im2col)
def im2col(
    ctx: Lowering, x: Tensor, kernel: Sequence[int], dilation: Any, padding: Sequence[int], stride: Any
) -> Tensor:
    """Windows as columns: [N, C, H, W] → [N, C, taps, places] → [N, C·taps, places]."""
    *batch, channels, _, _ = x.shape
    taps, places = _size(kernel), ctx.shape[-1]
    y = ctx.b.spatial(x, (-2, -1), (*batch, channels, taps, places), "linear", not any(padding))
    return axes.reshape(ctx.b, y, ctx.shape)


@rule(aten.col2im)
def col2im(ctx: Lowering, x: Tensor, size: Any, kernel: Sequence[int], *_: object) -> Tensor:
    *batch, channels, places = x.shape
    taps = _size(kernel)
    y = axes.reshape(ctx.b, x, (*batch, channels // taps, taps, places))
    return ctx.b.spatial(y, (-2, -1), ctx.shape, "linear", False)


@rule(aten.unfold)
def unfold(ctx: Lowering, x: Tensor, dim: int, size: int, step: int) -> Tensor:
    """Sliding windows of one dimension: a new last dimension holds the window."""
    y = axes.reshape(ctx.b, x, (*x.shape, 1))
    return ctx.b.spatial(y, (dim % x.ndim, x.ndim), ctx.shape, "linear", True)


def _rank(ctx: Lowering) -> int:
    """The number of spatial dimensions, from the operator's name."""
    name = ctx.name
    return next(int(name[i - 1]) for i in range(1, len(name)) if name[i] == "d" and name[i - 1].isdigit())


def _keeps_ones(ctx: Lowering, x: Tensor, rank: int) -> bool:
    """Whether the pooling of ones is ones (it is not where zero padding is counted), found by doing it."""
    args = list(ctx.node.args)
    args[0] = torch.ones((1, 1, *x.shape[-rank:]), dtype=torch.float64)
    target: Any = ctx.node.target
    return bool((target(*args, **ctx.node.kwargs) - 1).abs().max() < 1e-9)


def _size(sizes: Any) -> int:
    total = 1
    for n in sizes:
        total *= int(n)
    return total
