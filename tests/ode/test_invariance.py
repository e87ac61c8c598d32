"""Theorem 2.1: the input-output map does not move under diffeomorphisms that fix both ends, and else as predicted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.ode.cases import FINE, gap, linear_field, normal, spacetime_swirl, swirl, tanh_field
from torchgauge import ode


@pytest.mark.parametrize("d", [2, 8, 32])
@pytest.mark.parametrize("kind", ["affine", "flow", "warp", "random"])
@torch.no_grad()
def test_invariance_under_pullback(d: int, kind: str) -> None:
    field, x, generator = tanh_field(d), normal(4, d), torch.Generator().manual_seed(d)
    diffeo = {
        "affine": lambda: ode.random_affine(d, generator=generator),
        "flow": lambda: ode.Flow(swirl, 3),
        "warp": lambda: ode.time_warp(normal(3)),
        "random": lambda: ode.random_diffeomorphism(d, generator=generator),
    }[kind]()
    moved = ode.pullback(field, diffeo)
    middle = torch.tensor(0.5).double()
    assert gap(moved(middle, x), field(middle, x)) > 0.05  # another field
    assert gap(ode.solve(moved, x, accuracy=FINE).final, ode.solve(field, x, accuracy=FINE).final) < 1e-8


@torch.no_grad()
def test_invariance_under_spacetime_diffeomorphisms() -> None:
    field, x = tanh_field(2), normal(4, 2)

    def phi(s: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        size = s * (1 - s)
        return s + size * torch.tanh(y.sum(-1)) / 3, y + size * torch.cos(y.roll(1, -1) + s)

    diffeo = ode.Spacetime(phi)
    ode.check(diffeo, x, 9, field=field)
    moved = ode.pullback(field, diffeo)
    assert gap(ode.solve(moved, x, accuracy=FINE).final, ode.solve(field, x, accuracy=FINE).final) < 1e-8


@torch.no_grad()
def test_trajectories_go_to_trajectories() -> None:
    field, x, flow = tanh_field(2), normal(4, 2), ode.Flow(swirl, 3)
    moved = ode.solve(ode.pullback(field, flow), x, [0.0, 0.3, 1.0], FINE)
    plain = ode.solve(field, x, [0.0, 0.3, 1.0], FINE)
    assert gap(flow(torch.tensor(0.3, dtype=torch.float64), moved.states[1])[1], plain.states[1]) < 1e-8
    assert gap(moved.states[1], plain.states[1]) > 0.05


@torch.no_grad()
def test_other_spans_of_time() -> None:
    field, x = linear_field(3, span=(-1.0, 2.0)), normal(4, 3)
    generator = torch.Generator().manual_seed(0)
    moved = ode.pullback(field, ode.random_diffeomorphism(3, 0.3, span=(-1.0, 2.0), generator=generator))
    assert gap(ode.solve(moved, x, accuracy=FINE).final, ode.solve(field, x, accuracy=FINE).final) < 1e-7


@torch.no_grad()
def test_a_map_that_moves_the_end_moves_the_output_as_predicted() -> None:
    """The new output is φ_T⁻¹ of the old one, −ε(T, x(T)) to first order; likewise for the input."""
    field, x = tanh_field(3), normal(4, 3)
    end = ode.solve(field, x, accuracy=FINE).final
    errors = []
    for h in (1e-2, 1e-3):
        shift = ode.Spatial(lambda t, y, h=h: y + h * t * torch.sin(y.roll(1, -1)))
        new = ode.solve(ode.pullback(field, shift), x, accuracy=FINE).final
        assert gap(new, shift.invert(torch.tensor(1.0).double(), end)[1]) < 1e-9  # exactly
        predicted = -h * torch.sin(end.roll(1, -1))
        errors.append(gap(new - end, predicted))
        assert float(predicted.abs().max()) > 20 * errors[-1]
    assert 50 < errors[0] / errors[1] < 200  # the rest is of second order


@torch.no_grad()
def test_the_lie_derivative_moves_the_output_by_its_boundary_term() -> None:
    field, x, h = tanh_field(3), normal(4, 3), 1e-4

    def moving(t: Tensor, x: Tensor) -> Tensor:
        return t * torch.cos(x.roll(1, -1))

    def fixing(t: Tensor, x: Tensor) -> Tensor:
        return t * (1 - t) * torch.cos(x.roll(1, -1))

    end = ode.solve(field, x, accuracy=FINE).final
    for epsilon, predicted in ((moving, -torch.cos(end.roll(1, -1))), (fixing, torch.zeros_like(end))):
        change, ends = ode.lie_derivative(field, epsilon), []
        for size in (h, -h):

            def changed(t: Tensor, y: Tensor, size: float = size, change: ode.VectorField = change) -> Tensor:
                return field(t, y) + size * change(t, y)

            ends.append(ode.solve(changed, x, accuracy=FINE).final)
        assert gap((ends[0] - ends[1]) / (2 * h), predicted) < 1e-6


def test_kicks_move_with_the_field() -> None:
    field, x = linear_field(3, size=0.5), normal(4, 3)
    relu = ode.with_activation(field, 3, torch.relu)
    plain = ode.solve(relu, x, accuracy=FINE).final
    with torch.no_grad():
        for diffeo in (
            ode.Flow(swirl, 3),
            ode.time_warp(normal(3)),
            ode.random_affine(3, generator=torch.Generator().manual_seed(0)) @ ode.time_warp(normal(3, seed=1)),
        ):
            assert gap(ode.solve(ode.pullback(relu, diffeo), x, accuracy=FINE).final, plain) < 1e-8
    with pytest.raises(ode.DiffeomorphismError, match="kick at one moment"):
        ode.pullback(relu, ode.Flow(spacetime_swirl, 2, spacetime=True))


@torch.no_grad()
def test_the_orbit_is_sampled() -> None:
    generator = torch.Generator().manual_seed(5)
    field, x = linear_field(3), normal(4, 3)
    end = ode.solve(field, x, accuracy=FINE).final
    for moved in ode.sample_orbit(field, 2, generator=generator):
        assert isinstance(moved, ode.LinearField)
        assert gap(ode.solve(moved, x, accuracy=FINE).final, end) < 1e-8
    bent = tanh_field(2)
    end = ode.solve(bent, x[:, :2], accuracy=FINE).final
    for moved in ode.sample_orbit(bent, 2, dim=2, generator=generator):
        assert gap(ode.solve(moved, x[:, :2], accuracy=FINE).final, end) < 1e-8
    with pytest.raises(TypeError, match="needs dim"):
        ode.sample_orbit(bent, 1)
