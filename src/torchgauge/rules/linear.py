"""Linear maps and products of two tensors: everything that is an einsum (theory section 2a, first rows)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from torchgauge.rules import axes
from torchgauge.rules.lower import Lowering
from torchgauge.rules.registry import rule
from torchgauge.spaces.constraints import Tensor

aten = torch.ops.aten


@rule(aten.linear)
def linear(ctx: Lowering, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x Wᵀ + b."""
    batch = _labels("a", x.ndim - 1)
    if weight.ndim == 1:
        y = ctx.b.contract(x, weight, (*batch, "i"), ("i",), batch)
    else:
        y = ctx.b.contract(x, weight, (*batch, "i"), ("o", "i"), (*batch, "o"))
    return y if bias is None else ctx.b.add(y, bias)


@rule(aten.matmul, aten.mm, aten.bmm, aten.mv, aten.dot, aten.vdot, aten.inner, aten.linalg_matmul)
def matmul(ctx: Lowering, x: Tensor, y: Tensor) -> Tensor:
    """The product over the last dimension of x and the last but one of y, batched and broadcast."""
    if ctx.node.target is aten.inner.default and x.ndim and y.ndim:
        return _inner(ctx, x, y)
    return product(ctx, x, y)


def product(ctx: Lowering, x: Tensor, y: Tensor) -> Tensor:
    """torch.matmul on symbolic tensors."""
    rows, columns = ("m",) * (x.ndim > 1), ("n",) * (y.ndim > 1)
    x_batch, y_batch = x.shape[:-2], y.shape[:-2]
    count = max(len(x_batch), len(y_batch))
    labels = _labels("a", count)
    x, x_labels = _batched(ctx, x, x_batch, y_batch, labels, len(rows) + 1)
    y, y_labels = _batched(ctx, y, y_batch, x_batch, labels, len(columns) + 1)
    out = tuple(a for a in labels if a in x_labels or a in y_labels)
    full = (*rows, "k"), ("k", *columns)
    z = ctx.b.contract(x, y, (*x_labels, *full[0]), (*y_labels, *full[1]), (*out, *rows, *columns))
    wide = tuple(max(n, m) for n, m in zip(_padded(x_batch, count), _padded(y_batch, count), strict=True))
    tail = z.shape[z.ndim - len(rows) - len(columns) :]
    return axes.reshape(ctx.b, z, (*wide, *tail))


@rule(aten.addmm, aten.addmv, aten.baddbmm)
def addmm(ctx: Lowering, bias: Tensor, x: Tensor, y: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    z = product(ctx, x, y)
    z = z if alpha == 1 else ctx.scale(z, alpha)
    if beta == 0:
        return z
    return ctx.b.add(z, ctx.tensor(bias), float(beta))


@rule(aten.addbmm)
def addbmm(ctx: Lowering, bias: Tensor, x: Tensor, y: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    z = ctx.scale(ctx.b.contract(x, y, ("a", "m", "k"), ("a", "k", "n"), ("m", "n")), alpha)
    return ctx.b.add(z, ctx.tensor(bias), float(beta)) if beta else z


@rule(aten.outer, aten.ger)
def outer(ctx: Lowering, x: Tensor, y: Tensor) -> Tensor:
    return ctx.b.contract(x, y, ("i",), ("j",), ("i", "j"))


@rule(aten.tensordot)
def tensordot(ctx: Lowering, x: Tensor, y: Tensor, dims_x: Sequence[int], dims_y: Sequence[int]) -> Tensor:
    summed = {d % x.ndim: f"k{i}" for i, d in enumerate(dims_x)}
    summed_y = {d % y.ndim: f"k{i}" for i, d in enumerate(dims_y)}
    left = tuple(summed.get(d, f"m{d}") for d in range(x.ndim))
    right = tuple(summed_y.get(d, f"n{d}") for d in range(y.ndim))
    out = tuple(a for a in (*left, *right) if not a.startswith("k"))
    return ctx.b.contract(x, y, left, right, out)


@rule(aten.einsum)
def einsum(ctx: Lowering, equation: str, operands: Sequence[Tensor], *_: object, **__: object) -> Tensor:
    """Operands are joined from the left; a label that only one operand has and nobody keeps is summed first."""
    terms, out = _parse(equation, [x.ndim for x in operands])
    if terms is None or any(len(set(t)) < len(t) for t in terms):
        return NotImplemented
    x, labels = operands[0], terms[0]
    for i, (y, y_labels) in enumerate(zip(operands[1:], terms[1:], strict=True), start=1):
        later = {a for t in terms[i + 1 :] for a in t} | set(out)
        x, labels = _summed(ctx, x, labels, later | set(y_labels))
        y, y_labels = _summed(ctx, y, y_labels, later | set(labels))
        x, labels, y, y_labels = _squeezed(ctx, x, labels, y, y_labels)
        kept = tuple(a for a in dict.fromkeys((*labels, *y_labels)) if a in later)
        x, labels = _joined(ctx, x, labels, y, y_labels, kept), kept
    x, labels = _summed(ctx, x, labels, set(out))
    x = axes.permute(ctx.b, x, [labels.index(a) for a in out if a in labels])
    return axes.reshape(ctx.b, x, ctx.shape)


@rule(aten.bilinear)
def bilinear(ctx: Lowering, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    batch = _labels("a", x.ndim - 1)
    z = ctx.b.contract(x, weight, (*batch, "i"), ("o", "i", "j"), (*batch, "o", "j"))
    z = ctx.b.contract(z, y, (*batch, "o", "j"), (*batch, "j"), (*batch, "o"))
    return z if bias is None else ctx.b.add(z, bias)


def _inner(ctx: Lowering, x: Tensor, y: Tensor) -> Tensor:
    left, right = _labels("m", x.ndim - 1), _labels("n", y.ndim - 1)
    return ctx.b.contract(x, y, (*left, "k"), (*right, "k"), (*left, *right))


def _labels(stem: str, count: int) -> tuple[str, ...]:
    return tuple(f"{stem}{i}" for i in range(count))


def _padded(batch: Sequence[int], count: int) -> tuple[int, ...]:
    return (1,) * (count - len(batch)) + tuple(batch)


def _batched(
    ctx: Lowering, x: Tensor, own: Sequence[int], other: Sequence[int], labels: Sequence[str], core: int
) -> tuple[Tensor, tuple[str, ...]]:
    """Drop the batch dimensions of size one that the other operand has larger, so that labels agree in size."""
    offset = len(labels) - len(own)
    wide = (1,) * (len(labels) - len(other)) + tuple(other)
    kept = [d for d, n in enumerate(own) if n != 1 or wide[d + offset] == 1]
    x = axes.reshape(ctx.b, x, (*(own[d] for d in kept), *x.shape[x.ndim - core :]))
    return x, tuple(labels[d + offset] for d in kept)


def _parse(equation: str, ranks: Sequence[int]) -> tuple[list[tuple[str, ...]] | None, tuple[str, ...]]:
    """Labels of each operand and of the result; an ellipsis becomes labels counted from the right."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    texts = left.split(",")
    if len(texts) != len(ranks):
        return None, ()
    widths = [n - len(t.replace("...", "")) for t, n in zip(texts, ranks, strict=True)]
    dots = tuple(f".{i}" for i in reversed(range(max(widths))))

    def spread(text: str, width: int) -> tuple[str, ...]:
        head, found, tail = text.partition("...")
        return (*head, *(dots[len(dots) - width :] if found else ()), *tail)

    terms = [spread(t, w) for t, w in zip(texts, widths, strict=True)]
    if arrow:
        return terms, spread(right, len(dots))
    every = [a for t in terms for a in t]
    return terms, (*dots, *sorted(a for a in set(every) if every.count(a) == 1 and not a.startswith(".")))


def _summed(ctx: Lowering, x: Tensor, labels: tuple[str, ...], kept: set[str]) -> tuple[Tensor, tuple[str, ...]]:
    """Sum the dimensions whose label nobody else has."""
    gone = [d for d, a in enumerate(labels) if a not in kept]
    if not gone:
        return x, labels
    return ctx.b.reduce(x, gone, "sum", False), tuple(a for a in labels if a in kept)


def _joined(
    ctx: Lowering, x: Tensor, x_labels: tuple[str, ...], y: Tensor, y_labels: tuple[str, ...], kept: tuple[str, ...]
) -> Tensor:
    """One step of an einsum; where labels are shared and none is summed, it is a product entry by entry."""
    shared = set(x_labels) & set(y_labels)
    if not shared or not shared <= set(kept):
        return ctx.b.contract(x, y, x_labels, y_labels, kept)

    def spread(t: Tensor, labels: tuple[str, ...]) -> Tensor:
        t = axes.permute(ctx.b, t, sorted(range(t.ndim), key=lambda d: kept.index(labels[d])))
        sizes = dict(zip(sorted(labels, key=kept.index), t.shape, strict=True))
        return axes.reshape(ctx.b, t, tuple(sizes.get(a, 1) for a in kept))

    return ctx.b.mul(spread(x, x_labels), spread(y, y_labels))


def _squeezed(
    ctx: Lowering, x: Tensor, x_labels: tuple[str, ...], y: Tensor, y_labels: tuple[str, ...]
) -> tuple[Tensor, tuple[str, ...], Tensor, tuple[str, ...]]:
    """Drop dimensions of size one where the other operand is broadcast against them."""
    sizes_x, sizes_y = dict(zip(x_labels, x.shape, strict=True)), dict(zip(y_labels, y.shape, strict=True))

    def drop(t: Tensor, own: dict[str, int], other: dict[str, int]) -> tuple[Tensor, tuple[str, ...]]:
        kept = [a for a in own if not (own[a] == 1 and other.get(a, 1) > 1)]
        return axes.reshape(ctx.b, t, tuple(own[a] for a in kept)), tuple(kept)

    x, x_labels = drop(x, sizes_x, sizes_y)
    y, y_labels = drop(y, sizes_y, sizes_x)
    return x, x_labels, y, y_labels
