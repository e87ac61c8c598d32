"""Products of rectified normal numbers: orthants, two directions by another rule, samples, degenerate points."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from torchgauge import fields
from torchgauge.fields.combinatorics import multisets
from torchgauge.fields.gaussian import Angles
from torchgauge.fields.monomials import Plan
from torchgauge.fields.orthants import Rectified, orthant


def points(count: int, inputs: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, inputs, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whole(count: int, n: int) -> Plan:
    return Plan(count, multisets(count, n), [(1.0, ((1 << n) - 1,))])


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 6])
def test_orthants_of_equal_correlations(m: int) -> None:
    """One half between any two: 1/(m + 1), the chance that one of m + 1 equal numbers is the least."""
    half = np.full((m, m), 0.5) + 0.5 * np.eye(m)
    assert float(orthant(half, 1 / 12)) == pytest.approx(1 / (m + 1), rel=1e-12)
    assert float(orthant(np.eye(m), 1 / 12)) == pytest.approx(2.0**-m, rel=1e-12)


def test_orthants_on_a_path_to_singular_matrices() -> None:
    """Four numbers in three directions, and three in a plane, against the solid angle of a square pyramid."""
    for size in (0.1, 1.0, 3.0):
        rows = np.array([[size, 0, 1], [0, size, 1], [-size, 0, 1], [0, -size, 1.0]])
        rows /= np.linalg.norm(rows, axis=1)[:, None]
        h = 1 / size  # |x| < h and |y| < h at height one
        angle = 4 * math.atan(h * h / math.sqrt(1 + 2 * h * h))
        assert float(orthant(rows @ rows.T, 1 / 12)) == pytest.approx(angle / (4 * math.pi), rel=1e-10)


@pytest.mark.parametrize("n", [2, 4, 6])
def test_two_directions_agree_with_the_rule_of_angles(n: int) -> None:
    roots = points(5, 2)
    plan, rule = whole(5, n), Angles(roots)
    values, weights = rule.nodes()
    known = plan.moments(values, weights)[n] * rule.radial(n)
    assert torch.allclose(Rectified(roots).moments(plan)[n], known, rtol=1e-10, atol=1e-12)


def test_independent_directions() -> None:
    """E max(z, 0)^k = 2^{k/2 − 1} Γ((k + 1)/2)/√π for each."""
    rule = Rectified(torch.eye(6, dtype=torch.float64))
    for indices in ((0, 1, 2, 3), (0, 0, 1, 2, 3, 4), (0, 1, 2, 3, 4, 5), (0, 0, 0, 1, 1, 2, 2, 3)):
        powers = [indices.count(i) for i in set(indices)]
        hand = math.prod(2 ** (k / 2 - 1) * math.gamma((k + 1) / 2) / math.sqrt(math.pi) for k in powers)
        assert rule.moment(indices) == pytest.approx(hand, rel=1e-12)


@pytest.mark.parametrize(("inputs", "sigma_b"), [(3, 0.0), (2, 0.6), (5, 0.3)])
def test_correlators_of_relu_nets(inputs: int, sigma_b: float) -> None:
    ensemble, x = fields.relu_net(10, inputs, sigma_w=1.2, sigma_b=sigma_b), points(4, inputs, 1)
    two = fields.correlator(ensemble, x, 2)
    assert two.rule == "orthants" and torch.allclose(two.dense(), fields.kernel(ensemble, x), rtol=1e-12)
    exact = fields.correlator(ensemble, x, 4)
    found = fields.correlator(ensemble, x, 4, estimator="neurons", networks=20_000)
    assert float(((found.values - exact.values) / found.error).abs().max()) < 5
    assert float(exact.error.max()) < 1e-10 * float(exact.values.abs().max())
    assert torch.allclose(fields.quartic(ensemble, x).connected(), exact.values, rtol=1e-9)


def test_parallel_opposite_and_vanishing_points() -> None:
    """Of one direction: homogeneity; of opposite ones and the origin: nothing."""
    x = torch.cat([points(3, 3), torch.zeros(1, 3, dtype=torch.float64)])
    x = torch.cat([x, 2 * x[:1], -x[1:2]])
    ensemble = fields.relu_net(7, 3)
    full = fields.correlator(ensemble, x, 4, connected=False)
    assert float(full.at(4, 1, 2, 2)) == pytest.approx(2 * float(full.at(0, 1, 2, 2)), rel=1e-12)
    one = Rectified(x).moment
    assert one((1, 5, 0, 0)) == 0.0 and one((3, 0, 1, 2)) == 0.0
    assert one((0, 4, 1, 2)) == pytest.approx(2 * one((0, 0, 1, 2)), rel=1e-12)


def test_nearly_parallel_points_have_larger_errors() -> None:
    """The error covers what rounding does: compare with the value at a distance of zero, in linear order."""
    base = points(4, 3, 2)

    def at(gap: float) -> tuple[float, float]:
        x = base.clone()
        x[1] = 1.5 * x[0] + gap * x[2]
        found = fields.correlator(fields.relu_net(5, 3), x, 4, tuples=[[0, 1, 2, 3]])
        return float(found.values[0]), float(found.error[0])

    zero, small, large = at(0.0)[0], at(1e-5), at(1e-4)
    slope = (large[0] - zero) / 1e-4
    assert abs(small[0] - zero - 1e-5 * slope) < 1e-2 * abs(1e-5 * slope)
    assert 1e-16 < small[1] < 1e-9


def test_a_deep_relu_net_in_three_directions() -> None:
    ensemble, x = fields.relu_net((60, 60), 3), points(3, 3, 4)
    found = fields.correlator(ensemble, x, 4, networks=8_000)
    predicted = fields.quartic(ensemble, x).connected()
    assert bool(((found.values - predicted).abs() < 5 * found.error + 0.05 * predicted.abs().max()).all())
