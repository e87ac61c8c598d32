"""Families of diffeomorphisms: ends, inverses, composition, Jacobians, and what `check` refuses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.ode.cases import gap, normal, spacetime_swirl, swirl
from torchgauge import ode
from torchgauge.errors import InputError
from torchgauge.ode.diffeomorphism import Diffeomorphism

D = 3


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


MAPS: dict[str, Callable[[], Diffeomorphism]] = {
    "affine": lambda: ode.random_affine(D, generator=seeded()),
    "rotation": lambda: ode.random_affine(D, group="SO", shift=False, generator=seeded()),
    "flow": lambda: ode.Flow(swirl, steps=4),
    "spacetime flow": lambda: ode.Flow(spacetime_swirl, steps=3, spacetime=True),
    "radial": lambda: ode.radial(normal(D), 1.5, 2.0),
    "shrinking radial": lambda: ode.radial(normal(D), -0.8, 2.0),
    "coupling": lambda: ode.coupling(lambda a: torch.tanh(a[..., :2]), lambda a: a.repeat(1, 2) ** 2 / 4, 1),
    "time warp": lambda: ode.time_warp(normal(3)),
    "random": lambda: ode.random_diffeomorphism(D, generator=seeded()),
    "user": lambda: ode.Spatial(lambda t, y: y + 0.3 * t * (1 - t) * torch.sin(y.roll(1, -1))),
    "user time": lambda: ode.Temporal(lambda s: s + 0.1 * torch.sin(torch.pi * s) ** 2),
    "user spacetime": lambda: ode.Spacetime(
        lambda s, y: (s + 0.3 * s * (1 - s) * torch.tanh(y.sum(-1)), y + s * (1 - s) * torch.cos(y.roll(1, -1)) / 2)
    ),
    "mixed": lambda: ode.Flow(spacetime_swirl, 2, True) @ ode.random_affine(D, generator=seeded()),
}
every_map = pytest.mark.parametrize("name", MAPS)


@every_map
def test_ends_are_fixed_and_nothing_folds(name: str) -> None:
    health = ode.check(MAPS[name](), normal(6, D), 9)
    assert health.boundary < 1e-12
    assert health.smallest > 0.1
    assert health.slowest > 0.1


@every_map
def test_inverse(name: str) -> None:
    diffeo, y = MAPS[name](), normal(5, D)
    for s in (torch.tensor(0.37).double(), torch.linspace(0.1, 0.9, 5).double()):
        t, x = diffeo(s, y)
        back_s, back_y = diffeo.invert(t, x)
        assert gap(back_y, y) < 1e-10
        assert gap(back_s.expand(5), s.expand(5)) < 1e-10
        there_s, there_y = diffeo.inverse()(t, x)
        assert gap(there_y, y) + gap(there_s.expand(5), s.expand(5)) < 1e-10
        again_t, again_x = diffeo.inverse().inverse()(s, y)
        assert gap(again_x, x) + gap(again_t.expand(5), t.expand(5)) < 1e-10


@every_map
def test_derivatives_are_those_of_the_map(name: str) -> None:
    diffeo, y, s = MAPS[name](), normal(4, D), torch.tensor(0.4).double()
    tangent, h = diffeo.tangent(s, y), 1e-5
    direction = normal(4, D, seed=7)

    def difference(ds: float, dy: Tensor | float) -> tuple[Tensor, Tensor]:
        (t1, x1), (t0, x0) = diffeo(s + h * ds, y + h * dy), diffeo(s - h * ds, y - h * dy)
        return (t1 - t0).expand(4) / (2 * h), (x1 - x0) / (2 * h)

    rate, shift = difference(1, 0)
    assert gap(tangent.time_rate.expand(4), rate) < 1e-8
    assert gap(torch.zeros(()) if tangent.shift is None else tangent.shift, shift) < 1e-8
    slope, moved = difference(0, direction)
    frame = torch.eye(D).double() if tangent.frame is None else tangent.frame
    assert gap((frame @ direction[..., None])[..., 0], moved) < 1e-8
    expected = torch.zeros(4).double() if tangent.time_gradient is None else (tangent.time_gradient * direction).sum(-1)
    assert gap(expected, slope) < 1e-8


@every_map
def test_inverses_have_derivatives(name: str) -> None:
    diffeo, y, s = MAPS[name](), normal(4, D), torch.tensor(0.4).double()
    t, x = diffeo(s, y)
    there = ode.spacetime_pullback(lambda t, x: torch.zeros_like(x), diffeo @ diffeo.inverse(), s, y)
    assert gap(there[..., 0], torch.ones(4).double()) < 1e-8
    assert gap(there[..., 1:], torch.zeros(4, D).double()) < 1e-8
    assert t.shape in ((), (4,))
    assert x.shape == (4, D)


@every_map
def test_dtype_follows_the_points(name: str) -> None:
    diffeo, y, s = MAPS[name](), normal(4, D).float(), torch.tensor(0.4)
    t, x = diffeo(s, y)
    back = diffeo.invert(t, x)
    tangent = diffeo.tangent(s, y)
    parts = (t, x, *back, tangent.time_rate, tangent.shift, tangent.frame, ode.pullback(torch.mul, diffeo)(s, y))
    assert {part.dtype for part in parts if part is not None} == {torch.float32}
    assert gap(back[1], y) < 1e-5


def test_composition_applies_the_right_one_first() -> None:
    a, b, y = MAPS["affine"](), MAPS["flow"](), normal(4, D)
    s = torch.tensor(0.3).double()
    assert gap((a @ b)(s, y)[1], a(*b(s, y))[1]) < 1e-14
    c = ode.random_affine(D, generator=torch.Generator().manual_seed(9))
    assert isinstance(a @ c, ode.Affine)
    assert gap((a @ c)(s, y)[1], a(*c(s, y))[1]) < 1e-13
    assert gap((a @ a.inverse())(s, y)[1], y) < 1e-13


def test_flows_that_are_trained_have_gradients() -> None:
    class Generator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(normal(D, D))

        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            return torch.tanh(x @ self.weight.mT)

    flow = ode.Flow(Generator(), 3)
    flow.inverse()(torch.tensor(0.5).double(), normal(2, D))[1].sum().backward()
    back = flow.generator.weight.grad.clone()  # pyright: ignore[reportAttributeAccessIssue]
    h, direction = 1e-5, normal(D, D, seed=4)
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            flow.generator.weight += sign * h * direction  # pyright: ignore[reportAttributeAccessIssue]
            values.append(float(flow.inverse()(torch.tensor(0.5).double(), normal(2, D))[1].sum()))
            flow.generator.weight -= sign * h * direction  # pyright: ignore[reportAttributeAccessIssue]
    assert abs((values[0] - values[1]) / (2 * h) - float((back * direction).sum())) < 1e-8


def test_a_map_that_moves_an_end_is_named() -> None:
    with pytest.raises(ode.BoundaryError, match=r"end of time: it moves a point by 1.00e\+00") as caught:
        ode.check(ode.Spatial(lambda t, y: y + t), normal(3, D))
    assert "t = 1, x = (" in str(caught.value)
    with pytest.raises(ode.BoundaryError, match="start of time"):
        ode.check(ode.Temporal(lambda s: (s + 1) / 2), normal(3, D))


def test_a_map_that_folds_is_named() -> None:
    points = torch.tensor([[2.0, 0.0], [0.0, 0.5]]).double()
    fold = ode.Spatial(lambda t, y: y * (1 - 6 * t * (1 - t) * torch.exp(-y.square().sum(-1, keepdim=True))))
    with pytest.raises(ode.FoldError, match=r"x = \(0, 0.5\)"):
        ode.check(fold, points)
    with pytest.raises(ode.FoldError, match="singular or reverses orientation"):
        ode.check(ode.Spatial(lambda t, y: torch.where((t > 0) & (t < 1), torch.nan, 1.0) * y), points)
    flat = ode.Spatial(lambda t, y: torch.stack([y[..., 0], y[..., 1] * (1 - 2 * t).square().sqrt()], -1))
    with pytest.raises(ode.FoldError, match=r"t = 0.5"):
        ode.pullback(lambda t, x: x, flat)(torch.tensor(0.5).double(), points)


def test_time_that_runs_backwards_is_named() -> None:
    with pytest.raises(ode.TimeOrderError, match="time stands still or runs backwards"):
        ode.check(ode.Temporal(lambda s: s + torch.sin(2 * torch.pi * s) / 3), normal(2, D))
    steep = ode.Spacetime(lambda s, y: (s + s * (1 - s) * torch.tanh(y[..., 0]) / 2, y))
    ode.check(steep, normal(4, D))
    ode.check(steep, normal(4, D), field=lambda t, x: x)
    with pytest.raises(ode.TimeOrderError, match="a trajectory runs backwards in the new time"):
        ode.check(steep, normal(4, D), field=lambda t, x: torch.full_like(x, 20.0))


def test_bad_parameters_are_named() -> None:
    with pytest.raises(InputError, match="strength between -1 and 2.24"):
        ode.radial(normal(D), -1.2)
    with pytest.raises(InputError, match="time warp"):
        ode.time_warp(normal(2, 2))
    with pytest.raises(InputError, match="no random loops"):
        ode.random_affine(2, group="U")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ode.DiffeomorphismError, match="cannot be composed"):
        _ = ode.random_affine(2) @ ode.time_warp(normal(2), (0.0, 2.0))
    with pytest.raises(ode.DiffeomorphismError, match="cannot be composed"):
        _ = ode.random_affine(2) @ ode.random_affine(2, span=(0.0, 2.0))
    with pytest.raises(ode.DiffeomorphismError, match="spatial map must return"):
        ode.Spatial(lambda t, y: y[..., :1])(torch.tensor(0.0), normal(2, 3))


def test_what_cannot_be_inverted_is_named() -> None:
    square = ode.Spatial(lambda t, y: y * y + 1)
    with pytest.raises(ode.FoldError, match="could not be inverted"):
        square.invert(torch.tensor(0.5).double(), torch.tensor([[-3.0]]).double())


def test_a_field_that_is_pulled_back_along_a_fold_is_named() -> None:
    """Where the Jacobian has changed its sign no solver stops by itself: the field is finite on both sides."""
    folding = ode.Spatial(lambda t, x: x - 8 * ode.bump(t) * torch.sin(2 * x))
    moved = ode.pullback(lambda t, x: torch.zeros_like(x), folding)
    with pytest.raises(ode.FoldError, match="reverses orientation"):
        moved(torch.tensor(0.5, dtype=torch.float64), torch.zeros(3, 1, dtype=torch.float64))
    with pytest.raises((ode.FoldError, ode.SolverError)):
        ode.solve(moved, torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None])
