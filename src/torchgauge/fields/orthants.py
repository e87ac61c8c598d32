"""Products of rectified normal numbers, E Π max(z_i, 0)^{k_i}, in any number of directions.

Integration by parts, E[z_i g(z)] = Σ_j Σ_ij E[∂_j g(z)], lowers the powers: with g = Π z^κ 1(z > 0),

    F(κ + e_i) = Σ_j Σ_ij (κ_j F(κ − e_j) + [κ_j = 0] (2π Σ_jj)^{−1/2} F'(κ without j)),

F' being that of the other numbers given z_j = 0 (Kan and Robotti, J. Comput. Graph. Stat. 26, 2017). What is left are
probabilities of orthants: closed up to three numbers, one integral over closed forms for four and five, two for six
(Plackett, Biometrika 41, 1954).
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

from torchgauge.fields.errors import EstimatorError
from torchgauge.fields.monomials import Plan

Array = np.ndarray
State = tuple[tuple[int, int], ...]
"""Indices and powers."""
MOST = 6
"""Numbers whose orthants are computed."""
_MOST_PRODUCTS = 5_000
_PARALLEL = 1e-13
"""Share of the variance that is left given another number, below which the two are parallel."""


class Rectified:
    """Moments of max(z, 0) for z = L ξ, ξ standard normal.

    Args:
        roots: L [points, directions].
        step: of the rule for orthants; half of it doubles the digits.
    """

    def __init__(self, roots: Tensor, step: float = 1 / 12) -> None:
        self.step = step
        self._given: dict[tuple[int, ...], tuple[Array, Array]] = {(): _with_products(roots.double().numpy())}
        self._known: dict[tuple[tuple[int, ...], State], float] = {}
        self.least = 1.0
        """The smallest share of a variance that another number left: rounding errors grow with its inverse root."""

    def moments(self, plan: Plan) -> dict[int, Tensor]:
        """As `Plan.moments` gives them.

        Raises:
            EstimatorError: too many products, or products of more than `MOST` numbers that are not parallel.
        """
        if sum(len(plan.unique(d)) for d in plan.needed) > _MOST_PRODUCTS:
            raise EstimatorError("too many products of ReLU", remedy='use estimator="neurons", or fewer points')
        axes = self._axes()
        most = max(len(set(row)) for d in plan.needed for row in axes[plan.unique(d)].tolist())
        if most > MOST:
            raise EstimatorError(f"ReLU in {most} directions at once", remedy='use estimator="neurons"')
        return {
            d: torch.tensor([self.moment(tuple(row)) for row in plan.unique(d).tolist()], dtype=torch.float64)
            for d in plan.needed
        }

    def _axes(self) -> Tensor:
        """For each number the first one that is parallel to it."""
        sigma = self._covariance(())
        scale = np.outer(sigma.diagonal(), sigma.diagonal())
        parallel = scale - sigma**2 <= _PARALLEL * scale
        return torch.from_numpy(parallel.argmax(1))

    def moment(self, indices: tuple[int, ...]) -> float:
        """E Π max(z_i, 0) over indices, which may repeat."""
        powers = tuple((i, indices.count(i)) for i in sorted(set(indices)))
        variances = self._given[()][1].diagonal()
        if any(variances[i] <= 0 for i, _ in powers):
            return 0.0
        return self._moment((), powers)

    # -- recursion ---------------------------------------------------------------------------------------------
    def _moment(self, given: tuple[int, ...], powers: State) -> float:
        """F of the numbers in `powers`, those in `given` being zero."""
        key = given, powers
        if key not in self._known:
            factor, apart = self._merged(given, powers)
            self._known[key] = factor * self._lowered(given, apart) if factor else 0.0
        return self._known[key]

    def _merged(self, given: tuple[int, ...], powers: State) -> tuple[float, State]:
        """Parallel numbers as powers of one; a factor of zero where two are opposite."""
        sigma, factor = self._covariance(given), 1.0
        kept: dict[int, int] = {}
        for j, k in powers:
            for i in kept:
                left = 1 - sigma[i, j] ** 2 / (sigma[i, i] * sigma[j, j])
                if left > _PARALLEL:
                    self.least = min(self.least, left)
                    continue
                if sigma[i, j] < 0:
                    return 0.0, ()
                factor *= (sigma[j, j] / sigma[i, i]) ** (k / 2)
                kept[i] += k
                break
            else:
                kept[j] = k
        return factor, tuple(kept.items())

    def _lowered(self, given: tuple[int, ...], powers: State) -> float:
        sigma = self._covariance(given)
        high = max(range(len(powers)), key=lambda p: powers[p][1], default=0)
        if not powers or not powers[high][1]:
            at = [i for i, _ in powers]
            spread = np.sqrt(sigma.diagonal()[at])
            return float(orthant(sigma[np.ix_(at, at)] / np.outer(spread, spread), self.step)) if at else 1.0
        i = powers[high][0]
        lower = {j: k - (j == i) for j, k in powers}
        total = 0.0
        for j, k in lower.items():
            if k:
                total += sigma[i, j] * k * self._moment(given, tuple((l, m - (l == j)) for l, m in lower.items()))
            else:
                rest = tuple((l, m) for l, m in lower.items() if l != j)
                edge = self._moment(tuple(sorted((*given, j))), rest)
                total += sigma[i, j] / math.sqrt(2 * math.pi * sigma[j, j]) * edge
        return total

    def _covariance(self, given: tuple[int, ...]) -> Array:
        """The covariance of all numbers, those in `given` being zero."""
        return self._conditional(given)[1]

    def _conditional(self, given: tuple[int, ...]) -> tuple[Array, Array]:
        """Roots, in one direction less for each that is given, and their products."""
        if given not in self._given:
            roots, _ = self._conditional(given[:-1])
            row = roots[given[-1]][None]
            across = np.linalg.svd(row)[2][1:]  # directions in which the given number stays zero
            self._given[given] = _with_products(roots @ across.T)
        return self._given[given]


def _with_products(roots: Array) -> tuple[Array, Array]:
    return roots, roots @ roots.T


# -- orthants ----------------------------------------------------------------------------------------------------------
def orthant(r: Array, step: float) -> Array:
    """The probability that normal numbers are all positive [...], for correlations r [..., m, m], m at most six."""
    m = r.shape[-1]
    if m == 1:
        return np.full(r.shape[:-2], 0.5)
    pairs = [(i, j) for i in range(m) for j in range(i)]
    if m <= 3:
        total = sum(np.arcsin(np.clip(r[..., i, j], -1, 1)) for i, j in pairs)
        return np.asarray(2.0**-m + total / (math.pi * 2 ** (m - 1)))
    if m == 5:  # P(all > 0) = P(all < 0), by inclusion and exclusion
        drop = [orthant(_without(r, (i,)), step) for i in range(5)]
        two = sum(orthant(r[..., [[i], [j]], [i, j]], step) for i, j in pairs)
        three = sum(orthant(_without(r, pair), step) for pair in pairs)
        return np.asarray((1 - 2.5 + two - three + sum(drop)) / 2)
    # along r(t) = 1 + t (r − 1) each pair adds r_ij times the density at zero times the orthant of the others
    t, left, weight = _double_exponential(step)
    eye = np.eye(m)
    path = eye + t[:, None, None] * (r - eye)[..., None, :, :]
    total = 0.0
    for i, j in pairs:
        c = r[..., None, i, j]
        above, below = 1 + c - c * left, 1 - c + c * left  # 1 ± t c, exact to rounding where it is small
        density = c / (2 * math.pi * np.sqrt(above * below))
        total = total + (weight * density * orthant(_conditioned(path, i, j, above, below), step)).sum(-1)
    return np.asarray(2.0**-m + total)


def _without(r: Array, gone: tuple[int, ...]) -> Array:
    rest = [i for i in range(r.shape[-1]) if i not in gone]
    return r[..., [[i] for i in rest], rest]


def _conditioned(r: Array, i: int, j: int, above: Array, below: Array) -> Array:
    """Correlations of the others, given that two numbers of correlation c are zero; above and below are 1 ± c."""
    others = [k for k in range(r.shape[-1]) if k not in (i, j)]
    a, b = r[..., others, i], r[..., others, j]
    u, v = (a + b) / np.sqrt(2 * above)[..., None], (a - b) / np.sqrt(2 * below)[..., None]
    left = _without(r, (i, j)) - u[..., :, None] * u[..., None, :] - v[..., :, None] * v[..., None, :]
    spread = np.sqrt(np.maximum(np.diagonal(left, axis1=-2, axis2=-1), 1e-30))
    return np.clip(left / (spread[..., :, None] * spread[..., None, :]), -1, 1)


@cache
def _double_exponential(step: float) -> tuple[Array, Array, Array]:
    """Nodes t, 1 − t, and weights on (0, 1) for integrands with roots at the ends (Takahasi and Mori 1974)."""
    u = np.arange(-3.2, 3.2 + step / 2, step)
    s = math.pi / 2 * np.sinh(u)
    weight = step * math.pi / 4 * np.cosh(u) / np.cosh(s) ** 2
    return 1 / (1 + np.exp(-2 * s)), 1 / (1 + np.exp(2 * s)), weight
