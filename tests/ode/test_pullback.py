"""How fields transform: exact formulas, infinitesimal ones, trivial directions, lapse and shift."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import jacrev

from tests.ode.cases import gap, linear_field, normal, spacetime_swirl, swirl, tanh_field
from torchgauge import ode
from torchgauge.ode.pullback import Pulled

D = 3
T = torch.tensor(0.4).double()


def maps() -> list[ode.Diffeomorphism]:
    """One of each kind."""
    generator = torch.Generator().manual_seed(1)
    return [
        ode.random_affine(D, generator=generator),
        ode.Flow(swirl, 3),
        ode.time_warp(normal(3)),
        ode.Flow(spacetime_swirl, 3, spacetime=True),
        ode.Flow(spacetime_swirl, 2, spacetime=True) @ ode.random_affine(D, generator=generator),
    ]


@pytest.mark.parametrize("k", range(5))
def test_the_pulled_back_field_is_the_pushed_forward_inverse_jacobian(k: int) -> None:
    """F̂' = (DΦ)⁻¹ F̂∘Φ point by point, with an independent Jacobian."""
    field, diffeo, y = tanh_field(D), maps()[k], normal(4, D)
    pulled = ode.pullback(field, diffeo)(T, y)
    whole = ode.spacetime_pullback(field, diffeo, T, y)
    assert gap(pulled, whole[:, 1:] / whole[:, :1]) < 1e-12
    for row, expected in zip(y, whole, strict=True):

        def phi(point: Tensor) -> Tensor:
            t, x = diffeo(point[0], point[None, 1:])
            return torch.cat([t.reshape(1), x[0]])

        point = torch.cat([T[None], row])
        image = phi(point)
        moving = torch.cat([torch.ones(1).double(), field(image[0], image[None, 1:])[0]])
        assert gap(torch.linalg.solve(jacrev(phi)(point), moving), expected) < 1e-11


def test_spatial_and_temporal_forms() -> None:
    field, y = tanh_field(D), normal(4, D)
    flow = ode.Flow(swirl, 3)
    tangent = flow.tangent(T, y)
    assert tangent.shift is not None and tangent.frame is not None
    spatial = torch.linalg.solve(tangent.frame, (field(T, tangent.x) - tangent.shift)[..., None])[..., 0]
    assert gap(ode.pullback(field, flow)(T, y), spatial) < 1e-12  # (13)–(16), finite
    warp = ode.time_warp(normal(3))
    rate = ode.calculus.velocity(warp.tau, T)
    assert gap(ode.pullback(field, warp)(T, y), rate * field(warp.tau(T), y)) < 1e-13  # (17)–(20)


def test_pullback_acts_from_the_right() -> None:
    field, y = tanh_field(D), normal(4, D)
    a, b = ode.Flow(swirl, 3), ode.Flow(spacetime_swirl, 2, spacetime=True)
    twice = ode.pullback(ode.pullback(field, a), b)(T, y)
    assert gap(ode.pullback(field, a @ b)(T, y), twice) < 1e-14
    assert gap(Pulled(field, a @ b)(T, y), twice) < 1e-11  # the composition as one map, by the chain rule
    assert gap(ode.pullback(ode.pullback(field, a), a.inverse())(T, y), field(T, y)) < 1e-9


def test_linear_fields_stay_linear() -> None:
    field, y = linear_field(D), normal(4, D)
    affine, warp = ode.random_affine(D, generator=torch.Generator().manual_seed(1)), ode.time_warp(normal(3))
    for diffeo in (affine, warp, affine @ warp, warp.inverse(), affine.inverse()):
        moved = ode.pullback(field, diffeo)
        assert isinstance(moved, ode.LinearField)
        assert gap(moved(T, y), Pulled(field, diffeo)(T, y)) < 1e-12
    assert not isinstance(ode.pullback(field, ode.Flow(swirl)), ode.LinearField)


def test_spans_must_agree() -> None:
    with pytest.raises(ode.DiffeomorphismError, match="the field lives on"):
        ode.pullback(tanh_field(2, span=(0.0, 2.0)), ode.random_affine(2))
    assert ode.pullback(lambda t, x: x, ode.random_affine(2, span=(0.0, 2.0))).span == (0.0, 2.0)


def epsilon(t: Tensor, x: Tensor) -> Tensor:
    return ode.bump(t) * torch.sin(x.roll(1, -1) + t)


def epsilon0(t: Tensor, x: Tensor) -> Tensor:
    return ode.bump(t) * torch.cos(x.sum(-1) + 2 * t) / 4


@pytest.mark.parametrize("kind", ["space", "time", "both"])
def test_the_lie_derivative_is_the_derivative_of_the_pullback(kind: str) -> None:
    """(13)–(16), (17)–(20) and both together."""
    field, y = tanh_field(D), normal(5, D)
    space, time = (None if kind == "time" else epsilon), (None if kind == "space" else epsilon0)

    def moved(h: float) -> Tensor:
        def phi(s: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            t = s if time is None else s + h * time(s, x)
            return t.expand(x.shape[:-1]), x if space is None else x + h * space(s, x)

        return ode.pullback(field, ode.Spacetime(phi))(T, y)

    h = 1e-4
    numeric = (8 * (moved(h) - moved(-h)) - (moved(2 * h) - moved(-2 * h))) / (12 * h)
    assert gap(ode.lie_derivative(field, space, time)(T, y), numeric) < 1e-9


def test_the_lie_derivative_of_space_written_out() -> None:
    """F + ε^j ∂_j F − F^j ∂_j ε − ∂_t ε, less F (16)."""
    field, y = tanh_field(D), normal(5, D)
    for row in y:
        velocity, eps = field(T, row), epsilon(T, row)
        by_time, by_space = jacrev(epsilon, (0, 1))(T, row)
        expected = jacrev(field, 1)(T, row) @ eps - by_space @ velocity - by_time
        assert gap(ode.lie_derivative(field, epsilon)(T, row), expected) < 1e-12


def test_trivial_directions_change_nothing() -> None:
    """ε^μ ∝ F^μ, which the one-to-one of Theorem 2.1 divides out."""
    field, y = tanh_field(D), normal(5, D)
    space, time = ode.trivial_direction(field, epsilon0)
    assert gap(ode.lie_derivative(field, space, time)(T, y), torch.zeros(5, D).double()) < 1e-12
    assert float(ode.lie_derivative(field, space)(T, y).abs().max()) > 1e-2


def test_every_time_generator_is_a_spatial_one() -> None:
    field, y = tanh_field(D), normal(5, D)
    generator = ode.spatial_part(field, epsilon, epsilon0)
    both = ode.lie_derivative(field, epsilon, epsilon0)(T, y)
    assert gap(ode.lie_derivative(field, generator)(T, y), both) < 1e-12


def test_every_time_reparametrisation_is_a_spatial_diffeomorphism() -> None:
    field, y, warp = tanh_field(2), normal(4, 2), ode.time_warp(normal(2))
    space = ode.as_spatial(field, warp, steps=24)
    assert gap(ode.pullback(field, space)(T, y), ode.pullback(field, warp)(T, y)) < 1e-6
    assert gap(space.inverse()(*space(T, y))[1], y) < 1e-8


def test_lapse_and_shift() -> None:
    """∂_sΦ = N (1, F) + (0, β), F' = −(Dφ − F ∂_yτ)⁻¹ β."""
    field, y = tanh_field(D), normal(4, D)
    for diffeo in maps():
        split = ode.adm_split(field, diffeo, T, y)
        tangent = diffeo.tangent(T, y)
        flow = ode.calculus.per_sample(field, tangent.t, tangent.x)
        moved = torch.zeros_like(y) if tangent.shift is None else tangent.shift
        assert gap(split.lapse.expand(4)[:, None] * flow + split.shift, moved) < 1e-12
        assert gap(split.field, ode.pullback(field, diffeo)(T, y)) < 1e-11


def test_comoving_coordinates_have_no_shift_and_no_field() -> None:
    field, y = tanh_field(2), normal(4, 2)
    carry = ode.Spatial(lambda t, x: ode.stepping.runge_kutta(field, torch.zeros_like(t), t, x, 40))
    split = ode.adm_split(field, carry, T, y)
    assert float(split.shift.abs().max()) < 1e-6
    assert gap(split.lapse, torch.ones(()).double()) == 0
    assert float(split.field.abs().max()) < 1e-6
    with pytest.raises(ode.BoundaryError):  # they are no gauge choice: the output map becomes trivial
        ode.check(carry, y, 3)


def test_a_diffeomorphism_factors_into_time_and_space() -> None:
    diffeo, y = ode.Flow(spacetime_swirl, 2, spacetime=True), normal(3, D)
    time, space = ode.factorise(diffeo)
    t, x = (time @ space)(T, y)
    expected_t, expected_x = diffeo(T, y)
    assert gap(t, expected_t) + gap(x, expected_x) < 1e-12
    assert gap(time(T, y)[1], y) == 0
    assert gap(space(T, y)[0], T) == 0
    ode.check(time, y, 5)
