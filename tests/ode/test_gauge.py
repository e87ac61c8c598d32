"""Gauge transformations of linear fields and of what they integrate to: (25), (27), (32), (33), (46)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.ode.cases import FINE, gap, linear_field, normal
from torchgauge import ode
from torchgauge.errors import InputError
from torchgauge.ode.lines import LinePath, layer_lines

D = 3


def gauge(seed: int = 0, shift: bool = True) -> ode.Affine:
    return ode.random_affine(D, shift=shift, generator=torch.Generator().manual_seed(seed))


def pair(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """G and c of bordered matrices."""
    return matrices[..., :-1, :-1], matrices[..., :-1, -1]


def test_the_gauge_transformation_of_a_linear_field() -> None:
    """w ↦ G⁻¹ w G − G⁻¹ Ġ, b ↦ G⁻¹ [b + w c − ċ] (25), term by term, with difference quotients for Ġ and ċ."""
    field, affine, times, h = linear_field(D), gauge(), torch.linspace(0.1, 0.9, 4, dtype=torch.float64), 1e-4
    w, b = field.sample(times)
    g, c = pair(affine.at(times))
    steps = [pair(affine.at(times + k * h)) for k in (-2, -1, 1, 2)]
    dg, dc = ((8 * (steps[2][i] - steps[1][i]) - (steps[3][i] - steps[0][i])) / (12 * h) for i in (0, 1))
    inverse = torch.linalg.inv(g)
    new_w, new_b = ode.pullback(field, affine).sample(times)  # pyright: ignore[reportAttributeAccessIssue]
    assert gap(new_w, inverse @ w @ g - inverse @ dg) < 1e-10
    moved = b + (w @ c[..., None])[..., 0] - dc
    assert gap(new_b, (inverse @ moved[..., None])[..., 0]) < 1e-10


def test_gauge_transformations_form_a_group() -> None:
    field, a, b, times = linear_field(D), gauge(0), gauge(1), torch.linspace(0, 1, 5, dtype=torch.float64)
    twice = ode.pullback(ode.pullback(field, a), b)
    once = ode.pullback(field, a @ b)
    back = ode.pullback(ode.pullback(field, a), a.inverse())
    for first, second in ((twice, once), (back, field)):
        assert gap(first.affine(times), second.affine(times)) < 1e-10  # pyright: ignore[reportAttributeAccessIssue]


def test_time_reparametrisation_of_a_linear_field() -> None:
    """(20): w + ε̇ w + ε ẇ to first order; (27), G = 1 + ε w and c = ε b, gives the inverse, w − ε̇ w − ε ẇ."""
    field, h = linear_field(D), 1e-5
    times = torch.linspace(0.1, 0.9, 4, dtype=torch.float64)

    def epsilon(t: Tensor) -> Tensor:
        return ode.bump(t) * torch.cos(t)

    derivative = ode.calculus.push(
        lambda t: epsilon(t)[:, None, None] * field.affine(t), (times,), (torch.ones_like(times),)
    )[1]
    changes = {"time": [], "gauge": []}
    for size in (h, -h):
        warp = ode.Temporal(lambda s, size=size: s + size * epsilon(s))
        changes["time"].append(ode.pullback(field, warp).affine(times))  # pyright: ignore[reportAttributeAccessIssue]
        loop = ode.Affine(
            lambda t, size=size: torch.eye(D).double() + size * epsilon(t) * field.w(t),
            lambda t, size=size: size * epsilon(t) * field.b(t),
        )
        changes["gauge"].append(ode.pullback(field, loop).affine(times))  # pyright: ignore[reportAttributeAccessIssue]
    time, space = ((plus - minus) / (2 * h) for plus, minus in changes.values())
    assert gap(time, derivative) < 1e-8
    assert gap(space, -derivative) < 1e-8


def test_time_warps_are_gauge_transformations() -> None:
    """Finite form: t ↦ τ(t) is G(t) = W_{t:τ(t)}, affinely."""
    field, warp = linear_field(D), ode.time_warp(normal(3))
    line = LinePath(field)

    def carry(t: Tensor) -> Tensor:
        return torch.linalg.solve(line(warp.tau(t)), line(t), left=False)

    carry.vectorised = True  # pyright: ignore[reportFunctionMemberAccess]
    moved = ode.pullback(field, ode.Affine.along(carry, (0.0, 1.0)))
    times = torch.linspace(0.1, 0.9, 4, dtype=torch.float64)
    expected = ode.pullback(field, warp)
    assert gap(moved.affine(times), expected.affine(times)) < 1e-7  # pyright: ignore[reportAttributeAccessIssue]


def test_wilson_lines_transform_at_their_ends() -> None:
    """W_{t₁:t₂} ↦ G⁻¹(t₁) W G(t₂) (46), linear and affine; W_{t₁:t₃} = W_{t₁:t₂} W_{t₂:t₃}."""
    field, affine = linear_field(D), gauge()
    edges = torch.tensor([0.1, 0.45, 0.8], dtype=torch.float64)
    lines, moved = layer_lines(field, edges), layer_lines(ode.pullback(field, affine), edges)  # pyright: ignore[reportArgumentType]
    ends = affine.at(edges)
    assert gap(moved, ode.transform_lines(lines, ends[1:], ends[:-1])) < 1e-11
    whole = layer_lines(field, edges[[0, 2]])[0]
    assert gap(lines[1] @ lines[0], whole) < 1e-11
    assert gap(layer_lines(field, edges.flip(0)) @ lines.flip(0), torch.eye(D + 1).double().expand(2, -1, -1)) < 1e-11
    closed = [layer_lines(f, torch.tensor([0.0, 1.0]).double()) for f in (field, ode.pullback(field, affine))]  # pyright: ignore[reportArgumentType]
    assert gap(*closed) < 1e-11  # the total line is invariant


def test_the_affine_wilson_line_is_the_solution() -> None:
    """x(T) = W_{T:0} (x(0) + ∫ W_{0:t} b dt) (32)."""
    field, x = linear_field(D), normal(4, D)
    total, drift = pair(ode.total_line(field))
    assert gap(x @ total.mT + drift, ode.solve(field, x, accuracy=FINE).final) < 1e-8
    line = LinePath(ode.LinearField(field.w))
    times, weights = ode.calculus.quadrature((0.0, 1.0), 24, total)
    before = pair(line(times))[0]
    integral = (torch.linalg.solve(before, field.sample(times)[1][..., None])[..., 0] * weights[:, None]).sum(0)
    assert gap(drift, total @ integral) < 1e-11


def test_the_commutative_diagram() -> None:
    """Figure 2: transform, then integrate = integrate, then transform; and the net does not change as a function."""
    field, affine, x = linear_field(D), gauge(), normal(5, D)
    edges = torch.linspace(0, 1, 6, dtype=torch.float64)
    below = ode.transform(ode.discretise(field, 5), affine.at(edges))
    beside = ode.discretise(ode.pullback(field, affine), 5)  # pyright: ignore[reportArgumentType]
    assert gap(below.affine(), beside.affine()) < 1e-11
    assert gap(below.apply(x), ode.discretise(field, 5).apply(x)) < 1e-11


def test_discrete_gauge_written_out() -> None:
    """w̄_n ↦ G_{n+1}⁻¹ w̄_n G_n, b̄_n ↦ G_{n+1}⁻¹ [b̄_n + w̄_n c_n − c_{n+1}] (33)."""
    layers = ode.Layers(normal(4, D, D), normal(4, D, seed=1))
    g, c = normal(5, D, D, seed=2), normal(5, D, seed=3)
    new = ode.transform(layers, ode.affine_matrix(g, c))
    for n in range(4):
        inverse = torch.linalg.inv(g[n + 1])
        assert gap(new.weight[n], inverse @ layers.weight[n] @ g[n]) < 1e-10
        assert gap(new.bias[n], inverse @ (layers.bias[n] + layers.weight[n] @ c[n] - c[n + 1])) < 1e-10


@pytest.mark.parametrize("activation", [None, nn.ReLU()])
def test_integrated_nets_are_ordinary_modules(activation: nn.Module | None) -> None:
    field, x = linear_field(D), normal(4, D)
    net = ode.integrate(field, 4, activation)
    assert [type(part) for part in net].count(nn.Linear) == 4
    expected = field if activation is None else ode.with_activation(field, 4, activation)
    assert gap(net(x), ode.solve(expected, x, accuracy=FINE).final) < 1e-8
    layers = ode.Layers.of(net)
    assert gap(layers.apply(x, activation), net(x)) < 1e-13
    assert gap(layers.total()[:D, :D], ode.total_line(field)[:D, :D]) < 1e-11


def test_integration_is_differentiable() -> None:
    field, x = linear_field(2), normal(3, 2)
    loss = ode.discretise(field, 3).apply(x).square().sum()
    loss.backward()
    parameter = next(field.parameters())
    gradient, direction, h = parameter.grad.clone(), normal(*parameter.shape, seed=9), 1e-5  # pyright: ignore[reportOptionalMemberAccess]
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            parameter += sign * h * direction
            values.append(float(ode.discretise(field, 3).apply(x).square().sum()))
            parameter -= sign * h * direction
    assert abs((values[0] - values[1]) / (2 * h) - float((gradient * direction).sum())) < 1e-7


def test_bad_nets_and_edges_are_named() -> None:
    with pytest.raises(InputError, match="layer 1 goes from 3 to 2"):
        ode.Layers.of(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)))
    with pytest.raises(InputError, match=r"no nn\.Linear"):
        ode.Layers.of(nn.ReLU())
    with pytest.raises(ode.FieldError, match="edges must increase"):
        ode.discretise(linear_field(2), torch.tensor([0.0, 0.7, 0.5, 1.0]))
    with pytest.raises(ode.FieldError, match="at least one layer"):
        ode.discretise(linear_field(2), 0)
    with pytest.raises(ode.DiffeomorphismError, match=r"R\^2 cannot act on a field on R\^3"):
        ode.pullback(linear_field(3), ode.random_affine(2))
