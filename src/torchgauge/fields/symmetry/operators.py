"""Operators by how smooth they are and how fast they grow, for proofs about traced networks."""

from __future__ import annotations

import math
from collections.abc import Container

import torch
from torch import fx

from torchgauge.fields.laws import Normal, Sphere, TruncatedNormal, Uniform
from torchgauge.fields.symmetry.anatomy import Anatomy

aten = torch.ops.aten
SMOOTH = {
    aten.tanh.default, aten.erf.default, aten.sigmoid.default, aten.sin.default, aten.cos.default, aten.atan.default,
    aten.softplus.default, aten.gelu.default, aten.silu.default, aten.exp.default, aten.square.default,
}  # fmt: skip
"""Twice differentiable everywhere."""
SATURATING = {aten.tanh.default, aten.erf.default, aten.sigmoid.default, aten.atan.default}
"""Finite limits at ±∞, and a derivative that vanishes there."""
GROWING = {
    aten.relu.default, aten.leaky_relu.default, aten.gelu.default, aten.silu.default, aten.softplus.default,
    aten.elu.default, aten.abs.default, aten.square.default, aten.exp.default,
}  # fmt: skip
"""|φ(z)| → ∞ as z → +∞."""
BOUNDED = SATURATING | {aten.sin.default, aten.cos.default}
PRODUCTS = {aten.linear.default, aten.matmul.default, aten.mm.default, aten.mul.Tensor}
LINEAR = {
    aten.linear.default, aten.matmul.default, aten.mm.default, aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor,
    aten.div.Tensor, aten.to.dtype, aten.numpy_T.default, aten.t.default, aten.transpose.int, aten.permute.default,
    aten.clone.default, aten.neg.default,
}  # fmt: skip
CONTINUOUS = SMOOTH | SATURATING | GROWING | LINEAR | {
    aten.layer_norm.default, aten.softmax.int, aten.mean.dim, aten.sum.dim_IntList, aten.pow.Tensor_Scalar,
}  # fmt: skip


def finite_moments(anatomy: Anatomy) -> bool:
    """Whether all moments of outputs and features surely exist: light laws, and maps of at most polynomial growth.

    One exponential of an affine function of normal or bounded weights is let through.
    """
    laws = [*anatomy.ensemble.laws.values(), *anatomy.ensemble.joint.values()]
    if any(law.moment_order() != math.inf for law in laws):
        return False
    slow = SMOOTH | SATURATING | GROWING | LINEAR | {aten.remainder.Scalar, aten.mean.dim, aten.sum.dim_IntList}
    slow |= {aten.layer_norm.default, aten.softmax.int, aten.pow.Tensor_Scalar}
    if not _only(anatomy, slow):
        return False
    exponentials = [n for n in anatomy.graph.nodes if n.target is aten.exp.default]
    tame = all(isinstance(law, (Normal, Uniform, TruncatedNormal, Sphere)) for law in laws)
    return not exponentials or (len(exponentials) == 1 and tame and _degree(anatomy, exponentials[0]) <= 1)


def smooth(anatomy: Anatomy) -> bool:
    """Whether the outputs are twice differentiable in the points and in every intermediate result."""
    powers = {aten.pow.Tensor_Scalar, aten.mean.dim, aten.sum.dim_IntList}
    return _only(anatomy, SMOOTH | LINEAR | powers)


def continuous(anatomy: Anatomy) -> bool:
    """Whether the outputs are continuous in the points and in every intermediate result."""
    return _only(anatomy, CONTINUOUS)


def _only(anatomy: Anatomy, allowed: Container[object]) -> bool:
    """No operator but these, no division by a tensor or without ε, and no power but small whole ones."""
    nodes = [n for n in anatomy.graph.nodes if n.op == "call_function"]
    if any(n.target not in allowed for n in nodes):
        return False
    norms = [n for n in nodes if n.target is aten.layer_norm.default]
    if any((n.args[4] if len(n.args) > 4 else n.kwargs.get("eps", 1e-5)) == 0 for n in norms):
        return False
    if any(n.target is aten.div.Tensor and isinstance(n.args[1], fx.Node) for n in nodes):
        return False
    return all(n.args[1] in (1, 2, 3, 4) for n in nodes if n.target is aten.pow.Tensor_Scalar)


def _degree(anatomy: Anatomy, node: fx.Node) -> int:
    """The degree, as a polynomial in the parameters, with which a node can grow."""
    seen: dict[fx.Node, int] = {}
    for n in anatomy.graph.nodes:
        args = [seen[a] for a in n.args if isinstance(a, fx.Node)]
        if n.op == "placeholder":
            seen[n] = int(anatomy.parameter(n) is not None)
        elif n.target in BOUNDED:
            seen[n] = 0
        elif n.target in (aten.square.default, aten.pow.Tensor_Scalar):
            seen[n] = 4 * max(args, default=0)
        elif n.target in PRODUCTS:
            seen[n] = max([sum(args[:2]), *args[2:]])
        else:
            seen[n] = max((seen[a] for a in n.all_input_nodes), default=0)
    return seen[node]
