"""Attention and softmax (theory section 2a; written-out attention needs no rule beyond matmul and softmax)."""

from __future__ import annotations

from math import sqrt

import torch

from torchgauge.rules import axes
from torchgauge.rules.linear import product
from torchgauge.rules.lower import Lowering
from torchgauge.rules.registry import operators, rule
from torchgauge.spaces.constraints import Tensor

aten = torch.ops.aten


@rule(aten.softmax, aten._softmax, *operators("special_softmax", "_safe_softmax"))
def softmax(ctx: Lowering, x: Tensor, dim: int, *_: object, **__: object) -> Tensor:
    return ctx.b.softmax(x, dim) if x.ndim else ctx.opaque("softmax of a scalar")


@rule(aten.log_softmax, aten._log_softmax, *operators("special_log_softmax"))
def log_softmax(ctx: Lowering, x: Tensor, dim: int, *_: object, **__: object) -> Tensor:
    return ctx.b.softmax(x, dim, log=True) if x.ndim else ctx.opaque("softmax of a scalar")


@rule(aten.scaled_dot_product_attention)
def attention(
    ctx: Lowering,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(scale·q kᵀ + mask) v; grouped key and value heads are repeated, masks are constants to add."""
    b = ctx.b
    if enable_gqa and q.ndim > 2 and k.shape[-3] != q.shape[-3]:
        k = axes.repeat_interleave(b, k, q.shape[-3] // k.shape[-3], -3)
    if enable_gqa and q.ndim > 2 and v.shape[-3] != q.shape[-3]:
        v = axes.repeat_interleave(b, v, q.shape[-3] // v.shape[-3], -3)
    scores = product(ctx, q, axes.transpose(b, k, -1, -2))
    scores = ctx.scale(scores, scale if scale is not None else 1 / sqrt(q.shape[-1]))
    if mask is not None:
        if mask.role != "const" and not _is_float(ctx):
            return NotImplemented
        scores = b.add(scores, ctx.shrink(_without_fill(ctx, mask)))
    if is_causal:
        scores = b.add(scores, b.const(scores.shape[-2:], "causal"))
    weights = b.softmax(scores, -1)
    if dropout_p:
        weights = b.mul(weights, b.const(weights.shape, "dropout"))
    return product(ctx, weights, v)


def _is_float(ctx: Lowering) -> bool:
    mask = ctx.node.args[3] if len(ctx.node.args) > 3 else ctx.node.kwargs.get("attn_mask")
    return isinstance(mask, torch.fx.Node) and mask.meta["val"].is_floating_point()


def _without_fill(ctx: Lowering, mask: Tensor) -> Tensor:
    """A truth-valued mask of ones adds zero, not one: what it is filled with is not what is added."""
    if mask.role != "const" or mask.fill is None or _is_float(ctx):
        return mask
    return ctx.b.const(mask.shape, mask.name, 0.0 if mask.fill else None)
