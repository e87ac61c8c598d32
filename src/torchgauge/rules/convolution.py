"""Convolutions: an einsum over channels whose spatial dimensions carry no frame (theory section 10)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from torchgauge.rules import axes
from torchgauge.rules.lower import Lowering
from torchgauge.rules.registry import rule
from torchgauge.spaces.constraints import Tensor
from torchgauge.spaces.windows import Reach, Still

aten = torch.ops.aten


@rule(aten.conv1d, aten.conv2d, aten.conv3d)
def conv(
    ctx: Lowering,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    padded = padding != "valid" if isinstance(padding, str) else any(_tuple(padding))
    padded = (padded and any(k > 1 for k in weight.shape[2:])) or (
        not isinstance(padding, str) and any(_tuple(padding))
    )
    rank = weight.ndim - 2
    steps, pads = _each(stride, rank), (0,) * rank if isinstance(padding, str) else _each(padding, rank)
    # a dimension with one tap is no window: every place is mapped by itself
    plain = [d for d in range(rank) if (weight.shape[2 + d], steps[d], pads[d]) == (1, 1, 0)]
    reach = () if isinstance(padding, str) else _reach(ctx, x, weight, steps, pads, _each(dilation, rank))
    moving = [d for d in range(rank) if d not in plain]
    known = not isinstance(padding, str) and all(steps[d] == 1 for d in moving)
    apart = _each(dilation, rank)
    return _convolve(
        ctx,
        x,
        weight,
        bias,
        groups,
        transposed=False,
        shift_safe=not padded,
        plain=plain,
        reach=reach,
        still=tuple((f"k{d}", f"s{d}", f"t{d}", pads[d], apart[d]) for d in moving) if known else (),
    )


def _reach(
    ctx: Lowering,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    *,
    transposed: bool = False,
) -> Reach:
    """Of every dimension of the kernel, the positions that do not meet the padding, at every kind of place."""
    rank = weight.ndim - 2
    found: list[tuple[str, tuple[tuple[int, ...], ...]]] = []
    for d, (step, pad, apart) in enumerate(zip(stride, padding, dilation, strict=True)):
        kinds: dict[tuple[int, ...], None] = {}
        size = x.shape[-rank + d]
        # the place that a tap reads, in steps of `grid` where there are zeros between
        by, end, grid = (-apart, size * step, step) if transposed else (apart, size, 1)
        for place in range(ctx.shape[-rank + d]):
            first = place + pad if transposed else place * step - pad
            read = enumerate(range(first, first + by * weight.shape[2 + d], by))
            kinds[tuple(t for t, at in read if 0 <= at < end and at % grid == 0)] = None
        found.append((f"k{d}", tuple(kinds)))
    return tuple(found)


@rule(aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d)
def conv_transpose(
    ctx: Lowering,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    # a constant input meets different taps at different places, so only a one-by-one kernel keeps constants
    single = all(k == 1 for k in weight.shape[2:]) and ctx.shape[-1] == x.shape[-1]
    safe = single and not any(_tuple(padding)) and not any(_tuple(output_padding)) and set(_tuple(stride)) == {1}
    rank = weight.ndim - 2
    reach = _reach(ctx, x, weight, _each(stride, rank), _each(padding, rank), _each(dilation, rank), transposed=True)
    return _convolve(ctx, x, weight, bias, groups, transposed=True, shift_safe=safe, reach=reach)


@rule(aten.convolution, aten._convolution)
def convolution(
    ctx: Lowering,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    *_: object,
) -> Tensor:
    if transposed:
        return conv_transpose(ctx, x, weight, bias, stride, padding, output_padding, groups, dilation)
    return conv(ctx, x, weight, bias, stride, padding, dilation, groups)


def _convolve(
    ctx: Lowering,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    groups: int,
    *,
    transposed: bool,
    shift_safe: bool,
    plain: Sequence[int] = (),
    reach: Reach = (),
    still: Still = (),
) -> Tensor:
    """Weight [o, i/g, *k], or [i, o/g, *k] when transposed; groups become a batch label of x and the weight.

    `plain`: spatial dimensions along which nothing is mixed.
    """
    b, rank = ctx.b, weight.ndim - 2
    shape, spatial = ctx.shape, ctx.shape[-rank:]
    batch = shape[: -rank - 1]
    channels = shape[-rank - 1]
    labels = [tuple(f"{stem}{d}" for d in range(rank)) for stem in "skt"]
    n = tuple(f"n{i}" for i in range(len(batch)))
    for d in plain:
        labels[2] = tuple(labels[0][e] if e == d else a for e, a in enumerate(labels[2]))
    labels[1] = tuple(a for d, a in enumerate(labels[1]) if d not in plain)
    window = frozenset(a for group in labels for a in group) - {labels[0][d] for d in plain}
    if plain:
        taps = [n for d, n in enumerate(weight.shape[2:]) if d not in plain]
        weight = axes.reshape(b, weight, (*weight.shape[:2], *taps))
    weight_labels: tuple[str, ...] = ("c", "o") if transposed else ("o", "c")
    g: tuple[str, ...] = ()
    out_shape: tuple[int, ...] = (*batch, channels, *spatial)
    if groups > 1:
        g, out_shape = ("g",), (*batch, groups, channels // groups, *spatial)
        x = axes.reshape(b, x, (*batch, groups, x.shape[len(batch)] // groups, *x.shape[-rank:]))
        weight = axes.reshape(b, weight, (groups, weight.shape[0] // groups, *weight.shape[1:]))
    y = b.contract(
        x,
        weight,
        (*n, *g, "c", *labels[0]),
        (*g, *weight_labels, *labels[1]),
        (*n, *g, "o", *labels[2]),
        window=window,
        out_shape=out_shape,
        shift_safe=shift_safe,
        reach=tuple(found for found in reach if found[0] in labels[1]),
        still=still,
    )
    y = axes.reshape(b, y, shape)
    return y if bias is None else b.add(y, axes.reshape(b, bias, (*(1 for _ in batch), channels) + (1,) * rank))


def _each(value: Any, rank: int) -> tuple[int, ...]:
    """One number for every dimension."""
    found = _tuple(value)
    return found * rank if len(found) == 1 else found


def _tuple(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (int(value),)
