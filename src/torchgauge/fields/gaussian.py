"""Expectations ⟨φ(z_1) … φ(z_n)⟩ of jointly normal preactivations: closed forms, exact angles, Gauss–Hermite rules.

An `Expectation` belongs to fixed points; it gives the moments of one neuron at tuples of them, with an error estimate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from torchgauge.fields.errors import EstimatorError, SingularKernelError
from torchgauge.fields.monomials import Plan
from torchgauge.fields.nets import Activation
from torchgauge.fields.orthants import Rectified

_NODES = {1: 256, 2: 128, 3: 44, 4: 22}
_NEGLIGIBLE = 1e-13  # relative size of an eigenvalue that is a rounding error


@dataclass(frozen=True)
class Expectation:
    """How to integrate products of one neuron's values.

    Attributes:
        name: "closed", "angles", "orthants" or "quadrature".
        moments: plan → {degree: moments}, as `Plan.moments` gives them.
        error: plan → {degree: estimate of the error}; zeros where the form is closed.
    """

    name: str
    moments: Callable[[Plan], dict[int, Tensor]]
    error: Callable[[Plan], dict[int, Tensor]]


def expectation(activation: Activation, covariance: Tensor, uniform_phase: bool = False) -> Expectation:
    """The best rule for an activation at points whose preactivations have this covariance.

    Args:
        activation: the nonlinearity.
        covariance: [points, points] of the preactivations z, in float64.
        uniform_phase: z has, besides, one phase uniform on the circle that all points share (cosine nets).

    Raises:
        EstimatorError: no rule is accurate: more than four independent directions, and not ReLU.
        SingularKernelError: a covariance that is not positive semidefinite.
    """
    roots = square_root(covariance)
    if activation.name == "gauss" and activation.normalised:
        diagonal = torch.diagonal(covariance)
        return _closed(lambda at: _gauss(covariance, diagonal, at))
    if activation.name == "cosine":
        return _closed(lambda at: _cosine(covariance, at, uniform_phase))
    if uniform_phase or activation.normalised:
        raise EstimatorError(f"no closed form for {activation.name} here", remedy='use estimator="neurons"')
    directions = roots.shape[1]
    if activation.name == "relu":
        return _from_nodes("angles", Angles(roots)) if directions <= 2 else _orthants(roots)
    if directions > max(_NODES):
        raise EstimatorError(
            f"quadrature in {directions} dimensions", remedy='use estimator="neurons", or at most four points at a time'
        )
    return _from_nodes("quadrature", Hermite(activation.function, roots))


def square_root(covariance: Tensor) -> Tensor:
    """L [points, rank] with L L^T = covariance, the rank found by its eigenvalues.

    Raises:
        SingularKernelError: an eigenvalue below zero.
    """
    values, vectors = torch.linalg.eigh(covariance)
    top = values.abs().max().clamp_min(1e-300)
    if float(values.min()) < -1e-9 * float(top) or not bool(torch.isfinite(values).all()):
        raise SingularKernelError(
            f"a kernel with the eigenvalue {float(values.min()):.3g}", remedy="kernels are positive semidefinite"
        )
    keep = values > _NEGLIGIBLE * len(values) * top
    return vectors[:, keep] * values[keep].sqrt() if bool(keep.any()) else torch.zeros(len(values), 1).double()


# -- closed forms ------------------------------------------------------------------------------------------------------
def _closed(form: Callable[[Tensor], Tensor]) -> Expectation:
    def moments(plan: Plan) -> dict[int, Tensor]:
        return {degree: form(plan.unique(degree)) for degree in plan.needed}

    def error(plan: Plan) -> dict[int, Tensor]:
        return {degree: torch.zeros(len(plan.unique(degree)), dtype=torch.float64) for degree in plan.needed}

    return Expectation("closed", moments, error)


def _gauss(covariance: Tensor, scale: Tensor, at: Tensor) -> Tensor:
    """h_i = exp(z_i − s_i) with s_i = K_ii: ⟨h_1 … h_n⟩ = exp(½ Σ_ab K_ab − Σ_a s_a)."""
    block = covariance[at[:, :, None], at[:, None, :]]
    return torch.exp(block.sum((1, 2)) / 2 - scale[at].sum(1))


def _cosine(covariance: Tensor, at: Tensor, uniform_phase: bool) -> Tensor:
    """2^{−n} Σ_s exp(−½ s^T K s) over signs s; a uniform phase keeps those with Σ s = 0 alone."""
    n = at.shape[1]
    signs = 1.0 - 2.0 * ((torch.arange(2**n)[:, None] >> torch.arange(n)) & 1).to(covariance.dtype)
    if uniform_phase:
        signs = signs[signs.sum(1) == 0]
    if not len(signs):
        return torch.zeros(len(at), dtype=covariance.dtype)
    block = covariance[at[:, :, None], at[:, None, :]]
    return torch.exp(-torch.einsum("sa,tab,sb->ts", signs, block, signs) / 2).sum(1) / 2**n


# -- rules with nodes --------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Angles:
    """ReLU in at most two directions: the radius is integrated by hand, the angle piece by piece, exactly.

    Between two neighbouring angles at which some z changes sign the integrand is a trigonometric polynomial.
    """

    roots: Tensor

    def nodes(self, coarse: bool = False) -> tuple[Tensor, Tensor]:
        """Values [nodes, points] and weights [nodes], for the angular average."""
        if self.roots.shape[1] == 1:
            values = torch.relu(torch.stack([self.roots[:, 0], -self.roots[:, 0]]))
            return values, torch.full((2,), 0.5, dtype=torch.float64)
        angles = torch.atan2(self.roots[:, 1], self.roots[:, 0])
        edges = torch.cat([angles + math.pi / 2, angles - math.pi / 2]) % (2 * math.pi)
        edges = torch.cat([edges.sort().values, edges.min()[None] + 2 * math.pi])
        t, w = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(12 if coarse else 20))
        half = torch.diff(edges)[:, None] / 2
        phi = (edges[:-1, None] + half * (1 + t)).reshape(-1)
        unit = torch.stack([phi.cos(), phi.sin()])
        return torch.relu((self.roots @ unit).T), (half * w).reshape(-1) / (2 * math.pi)

    def radial(self, degree: int) -> float:
        """E|ξ|^degree of a standard normal vector ξ."""
        rank = self.roots.shape[1]
        return 2 ** (degree / 2) * math.exp(math.lgamma((rank + degree) / 2) - math.lgamma(rank / 2))


@dataclass(frozen=True)
class Hermite:
    """A product Gauss–Hermite rule in the directions that the preactivations span."""

    function: Callable[[Tensor], Tensor]
    roots: Tensor

    def nodes(self, coarse: bool = False) -> tuple[Tensor, Tensor]:
        """Values [nodes, points] and weights [nodes]."""
        rank = self.roots.shape[1]
        count = _NODES[rank] * 3 // 4 if coarse else _NODES[rank]
        t, w = hermite(count)
        grid = torch.cartesian_prod(*[t] * rank).reshape(-1, rank)
        weight = torch.cartesian_prod(*[w] * rank).reshape(-1, rank).prod(1)
        keep = weight > 1e-22 * weight.max()
        return self.function(grid[keep] @ self.roots.T), weight[keep]

    def radial(self, degree: int) -> float:
        return 1.0


def hermite(count: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights for the average over one standard normal number."""
    t, w = np.polynomial.hermite_e.hermegauss(count)
    return torch.from_numpy(t), torch.from_numpy(w / w.sum())


def _orthants(roots: Tensor) -> Expectation:
    """ReLU in three directions or more, with an error from a coarser rule and from what rounding does."""
    fine, coarse = Rectified(roots), Rectified(roots, 1 / 8)

    def error(plan: Plan) -> dict[int, Tensor]:
        values, rough = fine.moments(plan), coarse.moments(plan)
        return {d: (v - rough[d]).abs() + 1e-15 * fine.least**-0.5 * v.abs() for d, v in values.items()}

    return Expectation("orthants", fine.moments, error)


def _from_nodes(name: str, rule: Angles | Hermite) -> Expectation:
    cached = _Nodes(rule)

    def at(plan: Plan, nodes: tuple[Tensor, Tensor]) -> dict[int, Tensor]:
        values, weights = nodes
        size = max(1, 8_000_000 // plan.columns())
        total: dict[int, Tensor] = {}
        for v, w in zip(values.split(size), weights.split(size), strict=True):
            for degree, part in plan.moments(v, w).items():
                total[degree] = total[degree] + part if degree in total else part
        return {degree: rule.radial(degree) * m for degree, m in total.items()}

    def error(plan: Plan) -> dict[int, Tensor]:
        fine, coarse = at(plan, cached.fine), at(plan, cached.coarse)
        return {degree: (fine[degree] - coarse[degree]).abs() for degree in fine}

    return Expectation(name, lambda plan: at(plan, cached.fine), error)


class _Nodes:
    def __init__(self, rule: Angles | Hermite) -> None:
        self.rule = rule

    @cached_property
    def fine(self) -> tuple[Tensor, Tensor]:
        return self.rule.nodes()

    @cached_property
    def coarse(self) -> tuple[Tensor, Tensor]:
        return self.rule.nodes(coarse=True)


# -- two points --------------------------------------------------------------------------------------------------------
def pair_moment(activation: Activation, k11: Tensor, k12: Tensor, k22: Tensor) -> Tensor:
    """⟨φ(z_1) φ(z_2)⟩ of one pair or many, differentiable in the covariances; each tensor has one shape.

    Erf: (2/π) arcsin(2k₁₂/√((1+2k₁₁)(1+2k₂₂))) (Williams 1997). ReLU: the arc-cosine kernel (Cho and Saul 2009). Gauss
    and cosine: closed. Other activations: Gauss–Hermite in two dimensions.

    Raises:
        SingularKernelError: a ReLU kernel at a point where the preactivation vanishes identically.
    """
    if activation.name == "erf":
        return 2 / math.pi * torch.asin(2 * k12 / torch.sqrt((1 + 2 * k11) * (1 + 2 * k22)))
    if activation.name == "relu":
        size = torch.sqrt(k11 * k22)
        if bool((size == 0).any()):
            raise SingularKernelError(
                "a ReLU kernel at a point where the preactivation is zero for every network: its angle is undefined",
                remedy="leave out the origin, or take sigma_b > 0",
            )
        cosine = k12 / size
        inside = cosine.abs() < 1 - 1e-14
        safe = torch.where(inside, cosine, torch.zeros_like(cosine))
        angle = torch.acos(safe)
        smooth = size * (torch.sin(angle) + (math.pi - angle) * safe) / (2 * math.pi)
        return torch.where(inside, smooth, torch.relu(k12) / 2)
    if activation.name == "gauss" and activation.normalised:
        return torch.exp(k12 - (k11 + k22) / 2)
    if activation.name == "cosine":
        return (torch.exp(-(k11 + k22) / 2 + k12) + torch.exp(-(k11 + k22) / 2 - k12)) / 2
    return _pair_by_rule(activation.function, k11, k12, k22)


def _pair_by_rule(function: Callable[[Tensor], Tensor], k11: Tensor, k12: Tensor, k22: Tensor) -> Tensor:
    if bool((k11 <= 0).any()) or bool((k22 <= 0).any()):
        raise SingularKernelError(
            "a preactivation of variance zero", remedy="take sigma_b > 0, or leave out the origin"
        )
    t, w = hermite(96)
    x, y = t[:, None], t[None, :]
    a = torch.sqrt(k11)[..., None, None]
    slope = (k12 / torch.sqrt(k11))[..., None, None]
    left = (k22 - k12**2 / k11).clamp_min(0.0)
    rest = torch.sqrt(torch.where(left > 0, left, torch.ones_like(left))) * (left > 0)
    z1, z2 = a * x, slope * x + rest[..., None, None] * y
    return ((function(z1) * function(z2)) * (w[:, None] * w[None, :])).sum((-1, -2))
