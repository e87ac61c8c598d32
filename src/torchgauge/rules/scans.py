"""Products, running products and maxima, and Fourier transforms: maps of one dimension as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from torchgauge.rules import axes
from torchgauge.rules.lower import GENERIC, Lowering
from torchgauge.rules.registry import operators, rule
from torchgauge.spaces.constraints import Tensor

aten = torch.ops.aten


@rule(aten.prod)
def product(ctx: Lowering, x: Tensor, dim: int | None = None, keepdim: bool = False, **_: object) -> Tensor:
    """A symmetric function along the dimension: permutations pass. Scales would be multiplied up; they are given up."""
    if not x.ndim:
        return x
    dims = range(x.ndim) if dim is None else (dim,)
    y = ctx.b.reduce(ctx.b.pointwise(x, GENERIC), dims, "sum", True)
    return axes.reshape(ctx.b, ctx.b.pointwise(y, GENERIC), ctx.shape)


@rule(*operators("cumprod", "logcumsumexp"))
def scan(ctx: Lowering, x: Tensor, dim: int, **_: object) -> Tensor:
    """Nothing linear: an order along one dimension, the same function for every index of the others."""
    if not x.ndim:
        return x
    return ctx.b.pointwise(ctx.b.spatial(ctx.b.pointwise(x, GENERIC), (dim,), x.shape, "linear", False), GENERIC)


@rule(*operators("cummax", "cummin"))
def running_maximum(ctx: Lowering, x: Tensor, dim: int) -> Any:
    """The largest entry so far is positively homogeneous; where it stands is not followed."""
    return ctx.b.spatial(x, (dim,), x.shape, "max", True), ctx.opaque("position of a maximum")[1]


# -- Fourier transforms: linear over the reals -----------------------------------------------------------------------
@rule(*operators("fft_fft", "fft_ifft", "fft_rfft", "fft_irfft", "fft_hfft", "fft_ihfft"))
def fourier(ctx: Lowering, x: Tensor, n: int | None = None, dim: int = -1, *_: object, **__: object) -> Tensor:
    return ctx.b.spatial(x, (dim,), ctx.shape, "linear", False)


@rule(
    *operators("fft_fft2", "fft_ifft2", "fft_rfft2", "fft_irfft2", "fft_fftn", "fft_ifftn", "fft_rfftn", "fft_irfftn")
)
def fourier_several(
    ctx: Lowering, x: Tensor, s: Sequence[int] | None = None, dim: Sequence[int] | None = None, *_: object, **__: object
) -> Tensor:
    if dim is None:
        dim = range(x.ndim) if s is None else range(-len(s), 0)
    return ctx.b.spatial(x, dim, ctx.shape, "linear", False)


@rule(aten.view_as_complex)
def view_as_complex(ctx: Lowering, x: Tensor) -> Tensor:
    """a + ib of the pairs (a, b) in the last dimension."""
    return axes.reshape(ctx.b, ctx.b.spatial(x, (-1,), (*x.shape[:-1], 1), "linear", True), ctx.shape)


@rule(aten.view_as_real)
def view_as_real(ctx: Lowering, x: Tensor) -> Tensor:
    y = axes.reshape(ctx.b, x, (*x.shape, 1))
    return ctx.b.spatial(y, (x.ndim,), ctx.shape, "linear", True)
