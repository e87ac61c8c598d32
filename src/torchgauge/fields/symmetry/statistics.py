"""The statistical test of a symmetry: are averages that must vanish compatible with zero?"""

# ruff: noqa: PT028  (functions named test_ are tests of ensembles here, not of this package)

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torchgauge.errors import InputError
from torchgauge.fields.ensemble import Ensemble
from torchgauge.fields.laws import Kind
from torchgauge.fields.symmetry.projections import Features, compressed, differences, projected, silenced
from torchgauge.fields.symmetry.transformations import Transformation, transformation

MOST = 48
"""Features of one order that are tested; more are mixed down to as many at random."""
ELEMENTS = 6
"""At most so many elements are tried on the inputs; it cuts flips and translations short in high dimension."""


@dataclass(frozen=True)
class SymmetryTest:
    """The outcome of a test.

    Attributes:
        transformation: which.
        p_value: the chance of averages so far from zero if the ensemble is invariant, corrected for the number of
            orders.
        power: the chance of a rejection at level `alpha` if some tested average were off by `effect` of its own spread.
        effect: see `power`.
        detectable: the effect that would be found with a chance of 90 %.
        alpha: level of the test.
        count: networks.
        orders: order of the correlators → its own p-value.
    """

    transformation: Transformation
    p_value: float
    power: float
    effect: float
    detectable: float
    alpha: float
    count: int
    orders: dict[int, float]

    @property
    def rejected(self) -> bool:
        """Whether the data speak against invariance."""
        return self.p_value < self.alpha

    def __str__(self) -> str:
        found = ", ".join(f"order {k}: p = {p:.2g}" for k, p in self.orders.items())
        word = "broken" if self.rejected else "no departure seen"
        return (
            f"{self.transformation}: {word}, p = {self.p_value:.2g} ({found}); {self.count:,} networks, "
            f"power {self.power:.0%} for {self.effect:g} spreads, 90 % from {self.detectable:.2g} spreads on"
        )


def test_symmetry(
    ensemble: Ensemble,
    change: Transformation | str,
    points: Tensor,
    *,
    count: int = 20_000,
    seed: int = 0,
    alpha: float = 1e-3,
    effect: float = 0.05,
    orders: tuple[int, ...] = (1, 2, 4),
    bounded: bool = True,
) -> SymmetryTest:
    """Test by sampled networks whether a transformation leaves an ensemble invariant.

    Outputs: correlators at the points are projected on what is not invariant. Inputs: correlators at the points and at
    transformed points are compared network by network, for a few elements that generate (a dense part of) the group; an
    ensemble invariant under them is invariant under the group. Either way the mean of a handful of numbers must vanish,
    which Hotelling's test decides, order by order; the p-value is the smallest, times their number (Bonferroni).

    Args:
        ensemble: any.
        change: the transformation, or its name.
        points: [n, d], a few generic points: symmetry is tested at these and their images.
        count: networks.
        seed: of networks and group elements.
        alpha: level, for `rejected` and the power.
        effect: departure, in standard deviations of a tested feature, at which the power is reported.
        orders: of the correlators.
        bounded: test f/√(s² + |f|²), which transforms as f does and has all moments, in the place of f.

    Raises:
        InputError: real outputs for SU(D), too few networks for the number of features.
        MomentError: `bounded=False` and an ensemble without the moments.
    """
    change = transformation(change)
    points = ensemble.as_points(points)
    if not bounded:
        ensemble.require_moments(2 * max(orders), f"the test with correlators of order {max(orders)}")
    if change.side == "outputs":
        values = ensemble.outputs(points, count, seed=seed)
        return test_outputs(values, change, alpha=alpha, effect=effect, orders=orders, bounded=bounded)
    return _judge(_moved(ensemble, change, points, count, seed, orders, bounded), change, count, alpha, effect)


def test_outputs(
    values: Tensor,
    change: Transformation | str,
    *,
    alpha: float = 1e-3,
    effect: float = 0.05,
    orders: tuple[int, ...] = (1, 2, 4),
    bounded: bool = True,
) -> SymmetryTest:
    """The same test of a transformation of outputs, or of any vectors, from independent draws.

    Args:
        values: [count, points, ..., D]; for readout weights W of stacked networks [count, D, N] give W.mT.
        change: a transformation of outputs, or its name.
        alpha: see `test_symmetry`; likewise the rest.
        effect: see `test_symmetry`.
        orders: see `test_symmetry`.
        bounded: see `test_symmetry`.

    Raises:
        InputError: see `test_symmetry`.
    """
    change = transformation(change)
    values = values.flatten(1, -2)
    if change.side != "outputs":
        raise InputError(f"{change} acts on inputs", "test_outputs", "Use test_symmetry with an ensemble.")
    if change.kind is Kind.SPECIAL_UNITARY and not values.is_complex():
        raise InputError("SU(D) acts on complex outputs", "test_outputs", "Test SO(D) of real ones.")
    if change.kind is not Kind.SPECIAL_UNITARY and values.is_complex():
        # real matrices act on real and imaginary parts alike
        values = torch.cat([values.real, values.imag], 1)
    if change.trivial(values.shape[-1]):
        return SymmetryTest(change, 1.0, 1.0, effect, 0.0, alpha, len(values), {})
    values = compressed(values) if bounded else values
    features = projected(values, change.kind, orders)
    return _judge(silenced(features, values), change, len(values), alpha, effect)


for _function in (test_symmetry, test_outputs):
    _function.__test__ = False  # type: ignore[attr-defined]  # pytest takes functions of such names for its own


def _moved(
    ensemble: Ensemble,
    change: Transformation,
    points: Tensor,
    count: int,
    seed: int,
    orders: tuple[int, ...],
    bounded: bool,
) -> Features:
    """Paired differences of correlators, for a few group elements."""
    d = points.shape[-1]
    generator = torch.Generator().manual_seed(seed)
    elements = change.generators(d, generator)[:ELEMENTS]
    if change.kind is Kind.TRANSLATIONS:
        images = [points + c.to(points.dtype) for c in elements]
    else:
        images = [points @ e.to(points.dtype).mT for e in elements]
    values = ensemble.outputs(torch.cat([points, *images]), count, seed=seed)
    values = compressed(values) if bounded else values
    blocks = values.unflatten(1, (len(images) + 1, len(points))).flatten(2, -2)
    return silenced(differences(blocks[:, 0], blocks[:, 1:], orders), values)


def _judge(features: Features, change: Transformation, count: int, alpha: float, effect: float) -> SymmetryTest:
    """Hotelling's test of each order, and its power."""
    from scipy import special, stats

    found: dict[int, float] = {}
    ranks: list[int] = []
    for order, columns in features.items():
        statistic, rank, certain = _hotelling(_mixed(columns.double(), order))
        if rank and count < 10 * rank:
            raise InputError(f"{count} networks for {rank} averages", "test_symmetry", f"Take at least {10 * rank}.")
        p = float(stats.f.sf(statistic, rank, count - rank)) if rank else 1.0
        found[order] = 0.0 if certain else p
        ranks.append(rank)
    p_value = min(1.0, len(found) * min(found.values(), default=1.0))
    rank, level = max(ranks, default=0), alpha / max(1, len(found))
    if not rank:
        return SymmetryTest(change, p_value, 1.0, effect, 0.0, alpha, count, found)
    cut = stats.f.isf(level, rank, count - rank)
    power = float(stats.ncf.sf(cut, rank, count - rank, count * effect**2))
    detectable = math.sqrt(float(special.ncfdtrinc(rank, count - rank, 0.1, cut)) / count)
    return SymmetryTest(change, p_value, power, effect, detectable, alpha, count, found)


def _mixed(columns: Tensor, order: int) -> Tensor:
    """At most MOST features: random orthonormal combinations of the standardised ones where there are more."""
    if columns.shape[1] <= MOST:
        return columns
    spread = columns.std(0)
    columns = columns / torch.where(spread > 0, spread, torch.ones_like(spread))
    generator = torch.Generator().manual_seed(order)
    mix = torch.linalg.qr(torch.randn(columns.shape[1], MOST, generator=generator, dtype=columns.dtype))[0]
    return columns @ mix


def _hotelling(columns: Tensor) -> tuple[float, int, bool]:
    """F statistic of a mean of zero, its rank, and whether a feature without spread has a mean that is not zero."""
    n = len(columns)
    mean, spread = columns.mean(0), columns.std(0)
    size = columns.abs().max(0).values
    fixed = spread <= 1e-10 * size.max().clamp_min(1e-300)
    certain = bool((mean[fixed].abs() > 1e-8 * size.max().clamp_min(1e-300)).any())
    columns, mean, spread = columns[:, ~fixed], mean[~fixed], spread[~fixed]
    if not columns.shape[1]:
        return 0.0, 0, certain
    scaled = (columns - mean) / spread
    values, vectors = torch.linalg.eigh(scaled.T @ scaled / (n - 1))
    kept = values > 1e-8 * values[-1]
    along = (vectors.T @ (mean / spread))[kept]
    rank = int(kept.sum())
    total = n * float((along.square() / values[kept]).sum())
    scale = (n - rank) / (rank * (n - 1)) if n > rank else math.nan
    return total * scale, rank, certain
