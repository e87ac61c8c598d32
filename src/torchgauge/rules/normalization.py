"""Normalisations: a `Normalize` without parameters, then a gain and a bias (theory section 2a)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch

from torchgauge.rules import axes
from torchgauge.rules.lower import Lowering
from torchgauge.rules.registry import operators, rule
from torchgauge.spaces.constraints import Add, Coordinate, Reshape, Tensor

aten = torch.ops.aten


@rule(aten.layer_norm)
def layer_norm(
    ctx: Lowering,
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    y = ctx.b.normalize(x, range(-len(normalized_shape), 0), "layer", eps)
    return _affine(ctx, y, weight, bias)


@rule(aten.native_layer_norm)
def native_layer_norm(
    ctx: Lowering, x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor | None, ...]:
    return layer_norm(ctx, x, shape, weight, bias, eps), None, None


@rule(*([aten.rms_norm] if hasattr(aten, "rms_norm") else []))
def rms_norm(
    ctx: Lowering, x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    if eps is None:
        eps = torch.finfo(ctx.node.meta["val"].dtype).eps
    y = ctx.b.normalize(x, range(-len(normalized_shape), 0), "rms", eps)
    return _affine(ctx, y, weight, None)


@rule(aten.group_norm)
def group_norm(
    ctx: Lowering,
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    b, (batch, channels, *spatial) = ctx.b, x.shape
    y = axes.reshape(b, x, (batch, groups, channels // groups, *spatial))
    y = b.normalize(y, range(2, y.ndim), "layer", eps)
    return _channel_affine(ctx, axes.reshape(b, y, x.shape), weight, bias)


@rule(aten.batch_norm)
def batch_norm(
    ctx: Lowering,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
) -> Tensor:
    if training or mean is None or var is None:
        y = ctx.b.normalize(x, (0, *range(2, x.ndim)), "layer", eps)
        return _channel_affine(ctx, y, weight, bias)
    return _running(ctx, x, weight, bias, eps)


@rule(aten._native_batch_norm_legit_no_training)
def native_batch_norm(
    ctx: Lowering,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    _: float,
    eps: float,
) -> tuple[Tensor | None, ...]:
    return _running(ctx, x, weight, bias, eps), None, None


@rule(aten.instance_norm)
def instance_norm(
    ctx: Lowering,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    if not use_input_stats and mean is not None and var is not None:
        return _running(ctx, x, weight, bias, eps)
    y = ctx.b.normalize(x, range(2, x.ndim), "layer", eps)
    return _channel_affine(ctx, y, weight, bias)


@rule(*operators("_weight_norm", "_weight_norm_interface"))
def weight_norm(ctx: Lowering, v: Tensor, g: Tensor, dim: int = 0) -> Tensor | list[Tensor | None]:
    """g v/‖v‖, the norm over every dimension but one (dim −1: over all)."""
    rest = [d for d in range(v.ndim) if dim == -1 or d != dim % v.ndim]
    y = ctx.b.normalize(v, rest, "rms", 0.0)
    y = ctx.scale(y, prod(v.shape[d] for d in rest) ** -0.5)
    y = ctx.b.mul(y, g)
    return [y, None] if isinstance(ctx.node.meta["val"], (tuple, list)) else y


def _running(ctx: Lowering, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """With running statistics: a gain γ, the buffer's scale 1/sqrt(σ² + ε), and the bias β − γμ/sqrt(σ² + ε)."""
    b, node = ctx.b, ctx.node
    mean, var = (_name(ctx, node.args[i]) for i in (3, 4))
    channels = x.shape[1]
    if mean is None or var is None:
        return NotImplemented
    scale = b.buffer(var, (channels,), float(eps))
    name = _name(ctx, node.args[2]) if bias is not None and bias.role == "param" else None
    refs = (weight.name if weight is not None else "", mean, var)
    wanted = Coordinate(name or "", "batch_norm_bias", refs=refs, eps=float(eps))
    simple = weight is None or weight.role == "param"
    if name is not None and simple and sole_use(ctx, node.args[2]) and name in b.program.params:
        # the bias tensor is β − γμ/sqrt(σ² + ε): the frames see x ↦ γ σ x + bias
        b.program.coordinates[name] = wanted
        return _scaled(ctx, x, weight, scale, bias)
    before = _bias_before(ctx, x)
    if before is not None:
        # the tensor of the bias in front is bias − μ
        b.program.coordinates[before] = Coordinate(before, "centred_bias", refs=("", mean, var))
        return _scaled(ctx, x, weight, scale, bias)
    shifted = b.add(x, _channelled(ctx, b.buffer(mean, (channels,)), x.ndim), -1.0)
    return _scaled(ctx, shifted, weight, scale, bias)


def _bias_before(ctx: Lowering, x: Tensor) -> str | None:
    """The bias of the linear map that makes x, if nothing else reads x or the bias: a shift by −μ may move into it."""
    made, node = ctx.b.producers.get(x), ctx.node.args[0]
    if not isinstance(made, Add) or not isinstance(node, torch.fx.Node) or len(node.users) > 1 or len(node.args) < 3:
        return None
    name, shown = _name(ctx, node.args[2]), made.y
    while isinstance(view := ctx.b.producers.get(shown), Reshape):
        shown = view.x
    if name is None or ctx.b.program.coordinates.get(name) != Coordinate(name) or made.alpha != 1.0:
        return None
    channelled = made.y.shape == tuple(n if d == 1 else 1 for d, n in enumerate(x.shape))
    same = shown is ctx.b.program.params[name] and channelled
    return name if same and sole_use(ctx, node.args[2]) else None


def _scaled(ctx: Lowering, x: Tensor, weight: Tensor | None, scale: Tensor, bias: Tensor | None) -> Tensor:
    y = x if weight is None else ctx.b.mul(x, _channelled(ctx, weight, x.ndim))
    y = ctx.b.mul(y, _channelled(ctx, scale, x.ndim))
    return y if bias is None else ctx.b.add(y, _channelled(ctx, bias, x.ndim))


def sole_use(ctx: Lowering, node: object) -> bool:
    """Whether this placeholder is read by one node only (its coordinate may then be changed)."""
    if not isinstance(node, torch.fx.Node) or node.op != "placeholder":
        return False
    name = ctx.names.get(node.name)
    same = [n for n in node.graph.nodes if n.op == "placeholder" and ctx.names.get(n.name) == name]
    return sum(len(n.users) for n in same) == 1


def _name(ctx: Lowering, node: object) -> str | None:
    """The canonical name of the parameter or buffer that a placeholder stands for."""
    return ctx.names.get(ctx.constants.resolve(node).name) if isinstance(node, torch.fx.Node) else None


def _affine(ctx: Lowering, y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    y = y if weight is None else ctx.b.mul(y, weight)
    return y if bias is None else ctx.b.add(y, bias)


def _channel_affine(ctx: Lowering, y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    return _affine(
        ctx,
        y,
        None if weight is None else _channelled(ctx, weight, y.ndim),
        None if bias is None else _channelled(ctx, bias, y.ndim),
    )


def _channelled(ctx: Lowering, x: Tensor, ndim: int) -> Tensor:
    """[C] → [1, C, 1, ...] to be broadcast against [N, C, ...]."""
    return axes.reshape(ctx.b, x, (1, x.shape[0]) + (1,) * (ndim - 2))
