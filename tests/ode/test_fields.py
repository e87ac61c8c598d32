"""Fields: calling conventions, coefficients in all forms, and named errors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.ode.cases import gap, linear_field, normal
from torchgauge import ode
from torchgauge.errors import InputError


def test_any_callable_or_module_is_a_field() -> None:
    x = normal(3, 4)
    field = ode.VectorField(lambda t, x: t * x)
    assert torch.equal(field(torch.tensor(2.0), x), 2 * x)
    assert ode.as_field(field) is field
    assert ode.as_field(lambda t, x: x, (0.0, 2.0)).span == (0.0, 2.0)

    class User(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, t, x):
            return self.layer(x)

    assert len([*ode.VectorField(User()).parameters()]) == 2


def test_a_field_of_the_wrong_shape_is_named() -> None:
    with pytest.raises(ode.FieldError, match=r"shape \[3, 4\].*returned \[3, 2\]"):
        ode.VectorField(lambda t, x: x[..., :2])(torch.tensor(0.0), normal(3, 4))
    with pytest.raises(ode.FieldError, match="square matrix"):
        ode.LinearField(torch.zeros(3, 4))
    with pytest.raises(ode.FieldError, match=r"vector \[3\]"):
        ode.LinearField(torch.zeros(3, 3), torch.zeros(4))
    with pytest.raises(ode.FieldError, match="square matrix"):
        ode.LinearField(lambda t: torch.zeros(3))
    with pytest.raises(ode.FieldError, match=r"R\^3 was given points of shape \[2, 4\]"):
        ode.LinearField(torch.zeros(3, 3))(torch.tensor(0.0), torch.zeros(2, 4))
    with pytest.raises(ode.FieldError, match="callable"):
        ode.as_field(3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ode.FieldError, match="end after its start"):
        ode.VectorField(lambda t, x: x, (1.0, 1.0))


def test_coefficients_in_all_forms_agree() -> None:
    w, b = normal(3, 3), normal(3, seed=1)
    times = torch.linspace(0, 1, 5).double()
    forms = [
        ode.LinearField(w, b),
        ode.LinearField(lambda t: w, lambda t: b),
        ode.LinearField(ode.Sampled(times, w.expand(5, 3, 3)), ode.Sampled(times, b.expand(5, 3), "linear")),
        ode.LinearField(nn.Parameter(w), nn.Parameter(b)),
    ]
    x, t = normal(2, 3, seed=2), torch.tensor(0.3).double()
    for field in forms:
        assert gap(field(t, x), x @ w.mT + b) < 1e-14
        sampled_w, sampled_b = field.sample(times)
        assert sampled_w.shape == (5, 3, 3)
        assert gap(sampled_w, w.expand(5, 3, 3)) < 1e-14
        assert gap(sampled_b, b.expand(5, 3)) < 1e-14


def test_callables_with_branches_on_time_are_sampled_one_by_one() -> None:
    field = ode.LinearField(lambda t: torch.eye(2).double() * (1 if t < 0.5 else 2))
    assert field.sample(torch.tensor([0.2, 0.8]).double())[0][:, 0, 0].tolist() == [1, 2]


def test_a_batch_of_fields_acts_on_a_batch_of_points() -> None:
    w, x = normal(5, 3, 3), normal(5, 3, seed=1)
    assert gap(ode.LinearField(w)(torch.tensor(0.0), x), torch.einsum("nij,nj->ni", w, x)) < 1e-14
    assert ode.LinearField(w).affine(torch.zeros(2).double()).shape == (2, 5, 4, 4)


def test_dtype_follows_the_input() -> None:
    for dtype in (torch.float32, torch.float64):
        field = linear_field(3)
        assert field(torch.tensor(0.1, dtype=dtype), normal(2, 3).to(dtype)).dtype == dtype
    assert linear_field(3).float().dtype == torch.float32


def test_sampled_paths() -> None:
    times = torch.tensor([0.0, 0.1, 0.35, 0.7, 1.0]).double()
    fine = torch.linspace(0, 1, 41).double()
    line = ode.Sampled(times, 2 * times + 1, "linear")
    assert gap(line(fine), 2 * fine + 1) < 1e-14
    spline = ode.Sampled(times, torch.stack([2 * times + 1, times * 0], -1))
    assert spline(fine).shape == (41, 2)
    assert gap(spline(fine)[:, 0], 2 * fine + 1) < 1e-13
    grid = torch.linspace(0, 1, 41).double()
    wave = ode.Sampled(grid, torch.sin(3 * grid))
    assert gap(wave(fine + 0.012)[4:-5], torch.sin(3 * (fine + 0.012))[4:-5]) < 1e-6
    slope = torch.func.jvp(wave, (fine,), (torch.ones_like(fine),))[1]
    assert gap(slope[5:-5], 3 * torch.cos(3 * fine)[5:-5]) < 1e-4
    with pytest.raises(InputError, match="must increase"):
        ode.Sampled(times.flip(0), times)
    with pytest.raises(InputError, match=r"times \[n\] and values"):
        ode.Sampled(times, times[:3])
    with pytest.raises(InputError, match="no interpolation"):
        ode.Sampled(times, times, "nearest")  # pyright: ignore[reportArgumentType]


def test_the_spline_is_scipys_natural_spline() -> None:
    from scipy.interpolate import CubicSpline

    times = torch.tensor([0.0, 0.1, 0.35, 0.7, 1.0]).double()
    values, fine = normal(5, 2), torch.linspace(0, 1, 31).double()
    expected = torch.tensor(CubicSpline(times.numpy(), values.numpy(), bc_type="natural")(fine.numpy()))
    assert gap(ode.Sampled(times, values)(fine), expected) < 1e-13


def test_kicks_are_sorted_and_checked() -> None:
    field = ode.ImpulsiveField(lambda t, x: x, [ode.Jump(0.7, torch.relu), ode.Jump(0.2, torch.tanh)])
    assert [jump.time for jump in field.jumps] == [0.2, 0.7]
    assert [jump.time for jump in ode.ImpulsiveField(field, [ode.Jump(0.5, torch.relu)]).jumps] == [0.2, 0.5, 0.7]
    with pytest.raises(ode.FieldError, match="different times inside"):
        ode.ImpulsiveField(lambda t, x: x, [ode.Jump(1.0, torch.relu)])


def test_coefficients_that_are_no_numbers_are_named() -> None:
    with pytest.raises(ode.FieldError, match=r"holds torch\.int64"):
        ode.LinearField(torch.ones(3, 3, dtype=torch.long))
    with pytest.raises(ode.FieldError, match="is a NoneType"):
        ode.LinearField(None)  # type: ignore[arg-type]
    with pytest.raises(ode.FieldError, match="b must be a tensor"):
        ode.LinearField(torch.eye(3), 1.0)  # type: ignore[arg-type]
