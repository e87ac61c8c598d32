"""Regularisers: what they break of the gauge symmetry, they fix (paper, section 5).

Those of linear fields are integrals over time, computed by Gauss–Legendre quadrature. Those of general fields are costs
along trajectories, for the argument `costs` of `solve`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torchgauge.ode.calculus import jacobian, push, quadrature, reverse
from torchgauge.ode.fields import Field, LinearField, as_linear
from torchgauge.ode.pullback import acceleration as _acceleration

NODES = 16


def _sampled(field: LinearField, nodes: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """w, b, their time derivatives, and the weights of the quadrature."""
    field = as_linear(field, "an integral over w and b")
    like = torch.empty(0, dtype=field.dtype, device=field.device)
    times, weights = quadrature(field.span, nodes, like)
    (w, b), (dw, db) = push(field.sample, (times,), (torch.ones_like(times),))
    return w, b, dw, db, weights


def _integral(values: Tensor, weights: Tensor) -> Tensor:
    """∫ of the squared norm of values [nodes, ...]."""
    return (values.square().reshape(len(weights), -1).sum(-1) * weights).sum()


def uniform_motion(field: LinearField, nodes: int = NODES) -> Tensor:
    """∫ ‖ẇ + w²‖² + ‖ḃ + w b‖² dt (45): zero if and only if all points move uniformly on straight lines.

    The integrand is the acceleration (∂_t + F·∂)F = (ẇ + w²) x + ḃ + w b. The second term is no gauge-covariant
    derivative of b: see `covariant_kinetic`.

    Args:
        field: (w, b).
        nodes: of the quadrature.

    Returns:
        A scalar.
    """
    w, b, dw, db, weights = _sampled(field, nodes)
    return _integral(dw + w @ w, weights) + _integral(db + (w @ b[..., None])[..., 0], weights)


def covariant_kinetic(field: LinearField, nodes: int = NODES) -> Tensor:
    """∫ ‖ḃ − w b‖² dt, the kinetic term of a Higgs field b: invariant under rotations G(t) ∈ SO(d), c = 0.

    Correction to the paper: under (25) D_t b = ḃ − w b becomes G⁻¹ D_t b; with a plus sign it does not.

    Args, Returns: as for `uniform_motion`.
    """
    w, b, _, db, weights = _sampled(field, nodes)
    return _integral(db - (w @ b[..., None])[..., 0], weights)


def gauge_field_penalty(field: LinearField, nodes: int = NODES) -> Tensor:
    """∫ ‖w‖² dt, a mass of the gauge field: it breaks all gauge transformations that depend on time.

    Args, Returns: as for `uniform_motion`.
    """
    w, _, _, _, weights = _sampled(field, nodes)
    return _integral(w, weights)


def kinetic_energy(field: Field, t: Tensor, x: Tensor) -> Tensor:
    """‖F‖², [*batch]: along trajectories the optimal-transport cost of Finlay et al. (arXiv 2002.02798)."""
    return field(t, x).square().sum(-1)


def jacobian_frobenius(field: Field, t: Tensor, x: Tensor) -> Tensor:
    """‖∂F/∂x‖²_F, [*batch]: the other regulariser of Finlay et al., exact, at the cost of d backward passes."""
    if isinstance(field, LinearField):
        return field.w(t).square().sum((-1, -2)).expand(x.shape[:-1])
    return jacobian(field, t, x).square().sum((-1, -2))


def acceleration(field: Field, t: Tensor, x: Tensor) -> Tensor:
    """‖(∂_t + F·∂)F‖², [*batch]: `uniform_motion` for any field, along trajectories."""
    return _acceleration(field, t, x).square().sum(-1)


def hutchinson(probe: Tensor) -> Callable[[Field, Tensor, Tensor], Tensor]:
    """An unbiased estimate of `jacobian_frobenius` from one backward pass, as in Finlay et al.

    Args:
        probe: a random vector with independent entries of variance one, [*batch, d], fixed for one solve.

    Returns:
        A cost.
    """

    def cost(field: Field, t: Tensor, x: Tensor) -> Tensor:
        _, pull = reverse(lambda points: field(t, points), x)
        return pull(probe)[0].square().sum(-1)

    return cost
