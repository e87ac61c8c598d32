"""Functions of the outputs whose average vanishes if a group leaves their law invariant, order by order.

The average of a polynomial of the outputs at some points is an invariant tensor if the ensemble is invariant. What is
left of the tensor after projection on invariants must vanish: that is tested, instead of thousands of random group
elements. To first order in a rotation these are the Ward identities Σ_k ⟨f … δf(x_k) … f⟩ = 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torchgauge.errors import InputError
from torchgauge.fields.laws import Kind

Features = dict[int, Tensor]
"""Order → features [count, m] of mean zero under the hypothesis."""


def compressed(values: Tensor, scale: Tensor | None = None) -> Tensor:
    """f/√(s² + |f|²) at every point, s the median size: bounded, and moved as f is by every unitary matrix.

    Args:
        values: [count, points, D].
        scale: s², from the values themselves by default.
    """
    size = values.abs().square().sum(-1, keepdim=True)
    s2 = size.median() if scale is None else scale
    s2 = s2 if float(s2) > 0 else torch.ones_like(s2)
    return values / (s2 + size).sqrt()


def projected(values: Tensor, kind: Kind, orders: tuple[int, ...] = (1, 2, 4)) -> Features:
    """Features that average to zero if the law of the values is invariant under a group that acts on the last axis.

    Args:
        values: [count, points, D], complex for SU(D).
        kind: SPECIAL_ORTHOGONAL, SPECIAL_UNITARY, PERMUTATIONS or SIGNS.
        orders: of the correlators, among 1, 2 and 4 (for signs 3 stands in the place of 4).

    Raises:
        InputError: another group or order.
    """
    if kind not in TABLE or not set(orders) <= {1, 2, 4}:
        raise InputError(f"no projection for {kind} at orders {orders}", "projected", "Take orders among 1, 2 and 4.")
    found = {order: TABLE[kind][order](values) for order in orders}
    return {order: features.flatten(1) for order, features in found.items() if features[0].numel()}


def silenced(features: Features, values: Tensor) -> Features:
    """Features that are rounding errors in every network become zero: their average says nothing about a symmetry.

    Args:
        features: order → [count, m].
        values: the outputs that they were made of.
    """
    rounding = 1e3 * torch.finfo(values.dtype).eps
    top = float(values.abs().max())
    out: Features = {}
    for order, columns in features.items():
        noise = columns.abs().amax(0) <= rounding * top**order
        out[order] = torch.where(noise, torch.zeros_like(columns), columns)
    return out


def pairs(values: Tensor) -> tuple[Tensor, Tensor]:
    """Values at the first and at the second point of each pair a ≤ b [count, pairs, D]."""
    a, b = torch.triu_indices(values.shape[1], values.shape[1])
    return values[:, a], values[:, b]


def real(features: Tensor) -> Tensor:
    """Complex features as twice as many real ones."""
    return torch.view_as_real(features).flatten(1) if features.is_complex() else features


# -- rotations -----------------------------------------------------------------------------------------------------
def _vectors(values: Tensor) -> Tensor:
    return real(values)


def _matrices(values: Tensor) -> Tensor:
    """f_i(a) f_k(b) without its trace; for D = 2 also without the antisymmetric part, which SO(2) leaves alone."""
    x, y = pairs(values)
    d = values.shape[-1]
    product = x[..., :, None] * y[..., None, :]
    product = product - torch.eye(d, dtype=values.dtype) * product.diagonal(0, -2, -1).sum(-1)[..., None, None] / d
    upper = product + product.mT
    i, k = torch.triu_indices(d, d)
    parts = [upper[..., i, k]]
    if d > 2:
        i, k = torch.triu_indices(d, d, 1)
        parts.append((product - product.mT)[..., i, k])
    return torch.cat(parts, -1)


def _quartic(values: Tensor) -> Tensor:
    """Σ_i f_i(a)² f_i(b)² − (|f(a)|² |f(b)|² + 2 (f(a)·f(b))²)/(D+2), and for each i its own part at one point."""
    x, y = pairs(values)
    d = values.shape[-1]
    invariant = x.square().sum(-1) * y.square().sum(-1) + 2 * (x * y).sum(-1).square()
    mixed = (x.square() * y.square()).sum(-1) - invariant / (d + 2)
    r2 = values.square().sum(-1, keepdim=True)
    # the harmonic polynomial of degree four around each axis
    zonal = values**4 - 6 * values.square() * r2 / (d + 4) + 3 * r2.square() / ((d + 2) * (d + 4))
    return torch.cat([mixed, zonal.mean(1)[:, :-1]], 1)


# -- SU(D) ---------------------------------------------------------------------------------------------------------
def _hermitian(values: Tensor) -> Tensor:
    """f_i f_k (symmetric part) and f_i f_k* without its trace."""
    x, y = pairs(values)
    d = values.shape[-1]
    product, mixed = x[..., :, None] * y[..., None, :], x[..., :, None] * y.conj()[..., None, :]
    mixed = mixed - torch.eye(d, dtype=values.dtype) * mixed.diagonal(0, -2, -1).sum(-1)[..., None, None] / d
    i, k = torch.triu_indices(d, d)
    return real(torch.cat([(product + product.mT)[..., i, k], mixed.flatten(-2)], -1))


def _hermitian_quartic(values: Tensor) -> Tensor:
    """Σ_i f_i⁴, f_i⁴, Σ_i |f_i|⁴ − 2 |f|⁴/(D+1), and f_1² f_2*²."""
    d = values.shape[-1]
    fourth = values**4
    size = values.abs().square()
    cubic = (size.square().sum(-1) - 2 * size.sum(-1).square() / (d + 1)).flatten(1)
    phases = real((values[..., :1].square() * values[..., 1:2].conj().square()).mean(1))
    return torch.cat([real(fourth.sum(-1)), real(fourth.mean(1)[:, :-1]), cubic, phases], 1)


# -- permutations --------------------------------------------------------------------------------------------------
def _centred(features: Tensor) -> Tensor:
    """Differences to the mean over the last axis, without the last one, which follows."""
    return (features - features.mean(-1, keepdim=True))[..., :-1]


def _permuted_pairs(values: Tensor) -> Tensor:
    x, y = pairs(values)
    i, k = torch.triu_indices(values.shape[-1], values.shape[-1], 1)
    across = x[..., i] * y[..., k] + x[..., k] * y[..., i]
    return torch.cat([_centred(x * y), _centred(across)], -1)


# -- signs ---------------------------------------------------------------------------------------------------------
def _products(values: Tensor) -> Tensor:
    """f_i(a) f_k(b), i < k: one flip changes the sign."""
    x, y = pairs(values)
    i, k = torch.triu_indices(values.shape[-1], values.shape[-1], 1)
    return x[..., i] * y[..., k] + x[..., k] * y[..., i]


def _cubes(values: Tensor) -> Tensor:
    """f_i³ and f_i |f|²."""
    return torch.cat([values**3, values * values.square().sum(-1, keepdim=True)], 1)


TABLE: dict[Kind, dict[int, Callable[[Tensor], Tensor]]] = {
    Kind.SPECIAL_ORTHOGONAL: {1: _vectors, 2: _matrices, 4: _quartic},
    Kind.SPECIAL_UNITARY: {1: _vectors, 2: _hermitian, 4: _hermitian_quartic},
    Kind.PERMUTATIONS: {1: _centred, 2: _permuted_pairs, 4: lambda values: _centred(values**4)},
    Kind.SIGNS: {1: lambda values: values, 2: _products, 4: _cubes},
}


# -- inputs --------------------------------------------------------------------------------------------------------
def differences(before: Tensor, after: Tensor, orders: tuple[int, ...] = (1, 2, 4)) -> Features:
    """Correlators at transformed points minus those at the points, network by network.

    Args:
        before: outputs [count, points, D].
        after: outputs at the transformed points [count, elements, points, D].
    """
    found: Features = {}
    for order in orders:
        reference = _correlators(before, order)
        moved = torch.stack([_correlators(after[:, k], order) for k in range(after.shape[1])], 1)
        found[order] = real(moved - reference[:, None]).flatten(1)
    return found


def _correlators(values: Tensor, order: int) -> Tensor:
    """Per network: f_i(a) [first outputs alone], Σ_i f_i(a) f_i(b)*, Σ_i |f_i(a)|² |f_i(b)|² [count, ·]."""
    if order == 1:
        return values[..., :4].flatten(1)
    x, y = pairs(values)
    if order == 2:
        return (x * y.conj()).sum(-1)
    return (x.abs().square() * y.abs().square()).sum(-1)
