"""Solving: accuracy, gradients, dense output, kicks, costs, and named failures."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.ode.cases import FINE, gap, linear_field, normal, tanh_field
from torchgauge import ode

ROTATION = ode.LinearField(torch.tensor([[0.0, -1.0], [1.0, 0.0]]).double(), None, (0.0, 2.0))


def turned(x: Tensor, angle: float) -> Tensor:
    angle = torch.tensor(angle).double()  # pyright: ignore[reportAssignmentType]
    c, s = torch.cos(angle), torch.sin(angle)  # pyright: ignore[reportArgumentType]
    return x @ torch.stack([torch.stack([c, s]), torch.stack([-s, c])])


@pytest.mark.parametrize("method", ["dopri5", "dopri8"])
def test_the_end_is_reached_to_tolerance(method: str) -> None:
    """Without step_t, dopri8's interpolation past the end would lose half of the digits."""
    x = normal(4, 2)
    solution = ode.solve(ROTATION, x, accuracy=ode.Accuracy(method, 1e-11, 1e-12))
    assert gap(solution.final, turned(x, 2.0)) < 1e-9
    assert solution.evaluations > solution.steps > 0


def test_the_trap_of_dopri8_is_there() -> None:
    torchdiffeq = pytest.importorskip("torchdiffeq")
    x, times = normal(4, 2), torch.tensor([0.0, 2.0]).double()
    loose = torchdiffeq.odeint(ROTATION, x, times, method="dopri8", rtol=1e-11, atol=1e-12)[-1]
    assert gap(loose, turned(x, 2.0)) > 1e-9


def test_wanted_times_and_dense_output() -> None:
    x = normal(4, 2)
    solution = ode.solve(ROTATION, x, [0.0, 0.5, 1.0, 2.0], FINE)
    for t, state in zip(solution.times, solution.states, strict=True):
        assert gap(state, turned(x, float(t))) < 1e-9
    times = torch.tensor([1.7, 0.1, 0.5, 2.0, 0.0, 0.100001]).double()
    expected = torch.stack([turned(x, float(t)) for t in times])
    assert gap(solution.at(times), expected) < 1e-9
    back = ode.solve(ROTATION, solution.final, (2.0, 0.0), FINE)
    assert gap(back.final, x) < 1e-9
    assert gap(back.at(times), expected) < 1e-9
    with pytest.raises(ode.SolverError, match="outside of the solved interval"):
        solution.at(torch.tensor([2.5]))


def test_one_point_and_batches_of_any_shape() -> None:
    x = normal(3, 4, 2)
    whole = ode.solve(ROTATION, x, accuracy=FINE).final
    assert gap(whole[1, 2], ode.solve(ROTATION, x[1, 2], accuracy=FINE).final) < 1e-10


def test_every_sample_meets_the_tolerance() -> None:
    """torchdiffeq's own norm averages over the batch, so that one hard sample hides among many easy ones."""

    def blow(t: Tensor, x: Tensor) -> Tensor:
        return x * x

    x = torch.cat([torch.full((1, 1), 0.98), torch.full((4000, 1), 1e-3)]).double()
    final = ode.solve(blow, x, accuracy=ode.Accuracy("dopri5", 1e-6, 1e-9)).final
    alone = ode.solve(blow, x[:1], accuracy=ode.Accuracy("dopri5", 1e-6, 1e-9)).final
    exact = 0.98 / (1 - 0.98)
    assert abs(float(final[0, 0]) - exact) < 2 * max(abs(float(alone[0, 0]) - exact), 1e-6)


def test_plain_and_adjoint_gradients_agree() -> None:
    field, x = tanh_field(3), normal(4, 3)
    grads = []
    for adjoint in (False, True):
        field.zero_grad()
        accuracy = ode.Accuracy("dopri8", 1e-10, 1e-12, adjoint=adjoint)
        ode.solve(field, x, [0.0, 0.4, 1.0], accuracy).states.square().sum().backward()
        grads.append([parameter.grad.clone() for parameter in field.parameters() if parameter.grad is not None])
    assert len(grads[0]) == len(grads[1]) == 3
    for plain, adjoint in zip(*grads, strict=True):
        assert gap(plain, adjoint) < 1e-8


def test_gradients_through_a_pulled_back_field() -> None:
    """Parameters of the field and of the diffeomorphism, plainly and by the adjoint method."""
    field, x = tanh_field(2), normal(3, 2)
    warp = ode.time_warp(nn.Parameter(normal(2)))
    affine = ode.affine_loop(nn.Parameter(normal(2, 2, 2) / 4))
    moved = ode.pullback(field, affine @ warp)
    assert len([*moved.parameters()]) == 5
    halves = []
    for adjoint in (False, True):
        moved.zero_grad()
        ode.solve(moved, x, (0.0, 0.6), ode.Accuracy("dopri8", 1e-9, 1e-10, adjoint)).final.sum().backward()
        halves.append([p.grad.clone() for p in moved.parameters() if p.grad is not None])
    assert len(halves[0]) == len(halves[1]) == 5
    for plain, adjoint in zip(*halves, strict=True):
        assert gap(plain, adjoint) < 1e-7
    moved.zero_grad()
    ode.solve(moved, x, accuracy=FINE).final.sum().backward()
    whole = [p.grad for p in affine.parameters()] + [p.grad for p in warp.parameters()]
    assert all(float(grad.abs().max()) < 1e-8 for grad in whole if grad is not None)  # the end does not move


def test_fixed_steps() -> None:
    x = normal(4, 2)
    accuracy = ode.Accuracy("rk4", options={"step_size": 0.02})
    assert gap(ode.solve(ROTATION, x, accuracy=accuracy).final, turned(x, 2.0)) < 1e-7
    with pytest.raises(ode.SolverError, match="given no size"):
        ode.Accuracy("rk4")
    with pytest.raises(ode.SolverError, match="no method is called 'rk5'"):
        ode.Accuracy("rk5")


def test_single_precision() -> None:
    x = normal(4, 2).float()
    final = ode.solve(ROTATION, x, accuracy=ode.Accuracy("dopri5", 1e-5, 1e-6)).final
    assert final.dtype == torch.float32
    assert gap(final, turned(x.double(), 2.0)) < 1e-4


def test_kicks_act_in_order() -> None:
    field = ode.ImpulsiveField(
        lambda t, x: torch.ones_like(x), [ode.Jump(0.5, lambda x: 10 * x), ode.Jump(0.75, lambda x: -x)]
    )
    solution = ode.solve(field, torch.zeros(1).double(), [0.0, 0.5, 0.6, 1.0], FINE)
    assert gap(solution.states[:, 0], torch.tensor([0.0, 5.0, 5.1, -5.0], dtype=torch.float64)) < 1e-12
    with pytest.raises(ode.SolverError, match="cannot be integrated backwards"):
        ode.solve(field, torch.zeros(1).double(), (1.0, 0.0))


def test_costs_are_integrated_along() -> None:
    x = normal(5, 2)
    costs = (ode.kinetic_energy, ode.jacobian_frobenius)
    solution = ode.solve(ROTATION, x, accuracy=FINE, costs=costs)
    assert gap(solution.costs[:, 0], 2 * x.square().sum(-1)) < 1e-8
    assert gap(solution.costs[:, 1], torch.full((5,), 4.0).double()) < 1e-8
    assert gap(solution.final, turned(x, 2.0)) < 1e-9


def test_fields_that_are_not_finite_are_named() -> None:
    with pytest.raises(ode.FieldError, match="velocities at the start.*not finite") as caught:
        ode.solve(lambda t, x: x / 0, normal(3, 2))
    assert "sample 0" in str(caught.value)
    with pytest.raises(ode.FieldError, match="initial states"):
        ode.solve(ROTATION, torch.full((2, 2), torch.nan))
    with pytest.raises((ode.SolverError, ode.FieldError)) as caught:
        ode.solve(lambda t, x: torch.where(t > 0.5, torch.nan, 1.0) * x, normal(3, 2))
    assert "t = " in str(caught.value)
    with pytest.raises((ode.SolverError, ode.FieldError), match="t = 0.99|t = 1"):
        ode.solve(lambda t, x: x * x, torch.ones(1, 1).double(), (0.0, 2.0))
    with pytest.raises(ode.FieldError, match="points must be real"):
        ode.solve(ROTATION, torch.ones(2, dtype=torch.long))
    with pytest.raises(ode.SolverError, match="times must rise or fall"):
        ode.solve(ROTATION, normal(2, 2), [0.0, 1.0, 0.5])


def test_a_missing_solver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ode.SolverError, match="torchgauge\\[ode\\]"):
        ode.solve(linear_field(2), normal(1, 2))


def test_a_solver_that_gets_nowhere_stops() -> None:
    accuracy = ode.Accuracy("dopri5", 1e-10, 1e-12, options={"max_num_steps": 20})
    with pytest.raises(ode.SolverError, match="max_num_steps"):
        ode.solve(lambda t, x: torch.cos(300 * t) * x, torch.ones(2, dtype=torch.float64), accuracy=accuracy)
