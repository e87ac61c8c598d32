"""Gauge fixing in closed form, its obstruction, regularisers, and motion along the orbit."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.ode.cases import FINE, gap, linear_field, normal, tanh_field
from torchgauge import ode
from torchgauge.ode.logarithm import principal_logarithm

TIMES = torch.linspace(0, 1, 7, dtype=torch.float64)


def rotation(angle: float, d: int = 2) -> ode.LinearField:
    w = torch.zeros(d, d, dtype=torch.float64)
    w[0, 1], w[1, 0] = -angle, angle
    return ode.LinearField(w)


@pytest.mark.parametrize("fix", [ode.straight_line_gauge, ode.constant_gauge])
@pytest.mark.parametrize("d", [1, 2, 4])
def test_the_fixed_field_is_on_the_orbit(fix, d: int) -> None:
    field = linear_field(d, size=0.6, span=(0.0, 1.0))
    fixed = fix(field)
    moved = ode.pullback(field, fixed.gauge)
    assert gap(moved.affine(TIMES), fixed.field.affine(TIMES)) < 1e-10  # pyright: ignore[reportAttributeAccessIssue]
    assert gap(ode.total_line(fixed.field), ode.total_line(field)) < 1e-11
    ode.check(fixed.gauge, normal(3, d), 9)


def test_straight_lines() -> None:
    """w₀ (1 + t w₀)⁻¹ and (1 + t w₀)⁻¹ β/T, where every point moves uniformly and (45) is zero."""
    field, x = linear_field(3, size=0.6, span=(0.0, 2.0)), normal(4, 3)
    fixed = ode.straight_line_gauge(field).field
    total = ode.total_line(field)
    w0, beta = (total[:3, :3] - torch.eye(3).double()) / 2, total[:3, 3]
    t = torch.tensor(0.7, dtype=torch.float64)
    inverse = torch.linalg.inv(torch.eye(3).double() + t * w0)
    assert gap(fixed.w(t), w0 @ inverse) < 1e-11
    assert gap(fixed.b(t), inverse @ beta / 2) < 1e-11
    solution = ode.solve(fixed, x, [0.0, 0.5, 1.5, 2.0], FINE)
    for time, state in zip(solution.times, solution.states, strict=True):
        assert gap(state, x + time / 2 * (solution.final - x)) < 1e-8
    assert float(ode.uniform_motion(fixed)) < 1e-18
    assert float(ode.uniform_motion(field)) > 0.1


def test_constant_coefficients() -> None:
    fixed = ode.constant_gauge(linear_field(3, size=0.6)).field
    values = fixed.affine(TIMES)
    assert gap(values, values[:1].expand_as(values)) < 1e-14


def test_gauge_fixing_depends_on_the_orbit_alone() -> None:
    field = linear_field(3, size=0.6)
    moved = ode.pullback(field, ode.random_affine(3, generator=torch.Generator().manual_seed(0)))
    for fix in (ode.straight_line_gauge, ode.constant_gauge):
        fields = [fix(f).field.affine(TIMES) for f in (field, moved)]
        assert gap(*fields) < 1e-10


@pytest.mark.parametrize("fix", [ode.straight_line_gauge, ode.constant_gauge])
def test_the_obstruction_is_named(fix) -> None:
    """A half turn, and one that stretches; just before a half turn there is none."""
    with pytest.raises(ode.GribovError, match=r"eigenvalue -1 on the half line"):
        fix(rotation(math.pi))
    field = _through(torch.diag(torch.tensor([-2.0, -0.5])).double())
    with pytest.raises(ode.GribovError, match=r"eigenvalue -(2|0\.5) on"):
        fix(field)
    fix(rotation(math.pi - 1e-3))


def _through(matrix: Tensor) -> ode.LinearField:
    """A field with W_{T:0} = matrix, of positive determinant."""
    path = ode.Connected(torch.tensor([0.0, 1.0]).double(), torch.stack([torch.eye(len(matrix)).double(), matrix]))
    return ode.pure_gauge(ode.Affine(path))


def test_the_principal_logarithm() -> None:
    from scipy.linalg import logm

    matrices = torch.linalg.matrix_exp(normal(5, 4, 4) / 2)
    logs = principal_logarithm(matrices)
    for matrix, log in zip(matrices, logs, strict=True):
        assert gap(log, torch.tensor(logm(matrix.numpy()).real)) < 1e-12
    assert torch.autograd.gradcheck(principal_logarithm, (matrices[:2, :3, :3].clone().requires_grad_(True),))


def test_gauge_fixing_is_differentiable() -> None:
    field = linear_field(2, size=0.5)
    loss = ode.gauge_field_penalty(ode.straight_line_gauge(field).field)
    loss.backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in field.parameters() if p.ndim == 3)


def test_the_kinetic_term_of_b_is_invariant_under_rotations() -> None:
    """Correction: ∫ ‖ḃ − w b‖² is, the second term of (45), ∫ ‖ḃ + w b‖², is not; and GL(d) moves both."""
    field, generator = linear_field(3), torch.Generator().manual_seed(2)
    turn = ode.pullback(field, ode.random_affine(3, 1.5, group="SO", shift=False, generator=generator))
    bend = ode.pullback(field, ode.random_affine(3, 1.5, shift=False, generator=generator))
    kinetic = [float(ode.covariant_kinetic(f, 40)) for f in (field, turn, bend)]  # pyright: ignore[reportArgumentType]
    assert abs(kinetic[1] / kinetic[0] - 1) < 1e-9
    assert abs(kinetic[2] / kinetic[0] - 1) > 1e-2

    def with_plus(f: ode.LinearField) -> float:
        return float(ode.uniform_motion(f, 40)) - float(ode.uniform_motion(ode.LinearField(f.w), 40))

    assert abs(with_plus(turn) / with_plus(field) - 1) > 1e-2  # pyright: ignore[reportArgumentType]


def test_the_covariant_derivative_of_b_transforms_like_b() -> None:
    """(∂_t − w') G⁻¹ b = G⁻¹ (∂_t − w) b for c = 0."""
    field = linear_field(3)
    affine = ode.random_affine(3, shift=False, generator=torch.Generator().manual_seed(2))
    moved = ode.pullback(field, affine)

    def derivative(f: ode.LinearField) -> Tensor:
        (w, b), (_, db) = ode.calculus.push(f.sample, (TIMES,), (torch.ones_like(TIMES),))
        return db - (w @ b[..., None])[..., 0]

    frames = affine.at(TIMES)[:, :3, :3]
    expected = torch.linalg.solve(frames, derivative(field)[..., None])[..., 0]
    assert gap(derivative(moved), expected) < 1e-8  # pyright: ignore[reportArgumentType]


def test_regularisers_agree_with_trajectories() -> None:
    """The acceleration of a linear field is (ẇ + w²) x + ḃ + w b; costs along trajectories see the same numbers."""
    field, x, t = linear_field(3), normal(5, 3), torch.tensor(0.3, dtype=torch.float64)
    (w, b), (dw, db) = ode.calculus.push(field.sample, (t[None],), (torch.ones(1).double(),))
    expected = x @ (dw + w @ w)[0].mT + (db + (w @ b[..., None])[..., 0])[0]
    assert gap(ode.acceleration(field, t, x), expected.square().sum(-1)) < 1e-9
    bent = tanh_field(3)
    rows = torch.stack([torch.func.jacrev(lambda y: bent(t, y))(row).square().sum() for row in x])
    assert gap(ode.jacobian_frobenius(bent, t, x), rows) < 1e-12
    probes = (torch.randint(0, 2, (4000, 1, 3), generator=torch.Generator().manual_seed(0)) * 2 - 1).double()
    estimate = torch.stack([ode.hutchinson(probe.expand(5, 3))(bent, t, x) for probe in probes[:400]]).mean(0)
    assert float((estimate / rows - 1).abs().max()) < 0.2
    steady = ode.LinearField(normal(3, 3))
    assert abs(float(ode.gauge_field_penalty(steady)) - float(normal(3, 3).square().sum())) < 1e-12


def test_gradients_of_a_loss_do_not_point_along_the_orbit() -> None:
    """Without a regulariser the gradient is orthogonal to the orbit; that of a regulariser is not."""
    field, x, target = linear_field(3, size=0.5), normal(6, 3), normal(6, 3, seed=5)
    nodes, weights = ode.calculus.quadrature((0.0, 1.0), 24, x)
    line = ode.lines.LinePath(field)
    total = line(torch.ones(1).double())[0].detach()
    residual = 2 * (x @ total[:3, :3].mT + total[:3, 3] - target)
    ones = torch.ones(6, 1).double()
    slope = residual.mT @ torch.cat([x, ones], -1)  # ∂loss/∂(W, β)

    def gradient(t: Tensor) -> Tensor:
        here = line(t[None])[0].detach()
        behind = torch.linalg.solve(here, total, left=False)[:3, :3]
        return behind.mT @ slope @ here.mT

    change = ode.LinearField(lambda t: gradient(t)[:, :3], lambda t: gradient(t)[:, 3])
    parts = ode.orbit_parts(field, change)
    assert parts.along < 1e-6 * parts.across
    epsilon = ode.SineSeries(normal(2, 3, 4) / 3)

    def tangent(t: Tensor) -> Tensor:
        a, e = field.affine(t[None])[0].detach(), torch.cat([epsilon(t), torch.zeros(1, 4).double()])
        return (a @ e - e @ a)[:3] - ode.calculus.velocity(epsilon, t)

    moving = ode.LinearField(lambda t: tangent(t)[:, :3], lambda t: tangent(t)[:, 3])
    parts = ode.orbit_parts(field, moving)
    assert parts.across < 1e-6 * parts.along
    assert len(nodes) == len(weights) == 24
