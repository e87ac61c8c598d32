"""Theorem 3.1, constructively: from equivalent nets to equivalent neural ODEs and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.ode.cases import FINE, gap, linear_field, normal
from torchgauge import ode
from torchgauge.errors import InputError

LAYERS = 16


def discrete_gauge(d: int, layers: int, seed: int, reflect: tuple[int, ...] = ()) -> Tensor:
    """Random matrices [[G_n, c_n], [0, 1]] that are the identity at both ends; det G_n > 0 but for `reflect`."""
    left = torch.linalg.qr(normal(layers + 1, d, d, seed=seed))[0]
    right = torch.linalg.qr(normal(layers + 1, d, d, seed=seed + 1))[0]
    g = left @ torch.diag_embed(torch.exp(normal(layers + 1, d, seed=seed + 2) / 2)) @ right
    for n in range(layers + 1):
        if (torch.linalg.det(g[n]) < 0) != (n in reflect):
            g[n, :, 0] *= -1
    g[0] = g[-1] = torch.eye(d).double()
    c = normal(layers + 1, d, seed=seed + 3)
    c[0] = c[-1] = 0
    return ode.affine_matrix(g, c)


@pytest.mark.parametrize("d", [2, 3, 8, 16])
def test_round_trip(d: int) -> None:
    """NN_B → NODE_B → NN_B to 1e-9, with 16 layers."""
    field = linear_field(d)
    net_b = ode.transform(ode.discretise(field, LAYERS), discrete_gauge(d, LAYERS, d))
    with torch.no_grad():
        field_b = ode.lift(net_b, field)
        again = ode.discretise(field_b, LAYERS)
    assert gap(again.weight, net_b.weight) < 1e-9
    assert gap(again.bias, net_b.bias) < 1e-9


@pytest.mark.slow
def test_round_trip_of_width_32() -> None:
    field = linear_field(32)
    net_b = ode.transform(ode.discretise(field, LAYERS), discrete_gauge(32, LAYERS, 32))
    with torch.no_grad():
        again = ode.discretise(ode.lift(net_b, field), LAYERS)
    assert gap(again.affine(), net_b.affine()) < 1e-9


def test_from_modules() -> None:
    """Net B is an ordinary module, and neural ODE B solves to the same outputs."""
    field, x = linear_field(3), normal(5, 3)
    net_a = ode.integrate(field, 4)
    net_b = ode.transform(ode.Layers.of(net_a), discrete_gauge(3, 4, 1)).module()
    field_b = ode.lift(net_b, field)
    assert gap(ode.solve(field_b, x, accuracy=FINE).final, net_a(x)) < 1e-8
    assert gap(ode.integrate(field_b, 4)[1].weight, net_b[1].weight) < 1e-9  # pyright: ignore[reportArgumentType]
    ode.check(ode.lifting_gauge(net_b, field), x, 17)


@settings(deadline=None, max_examples=15)
@given(d=st.integers(1, 5), layers=st.integers(1, 5), seed=st.integers(0, 10**6))
def test_the_recursion_finds_the_gauge(d: int, layers: int, seed: int) -> None:
    a = ode.Layers(normal(layers, d, d, seed=seed) + 2 * torch.eye(d).double(), normal(layers, d, seed=seed + 9))
    gauge = discrete_gauge(d, layers, seed)
    found = ode.connecting_gauge(a, ode.transform(a, gauge))
    size = float(torch.linalg.cond(a.weight).prod() * torch.linalg.cond(gauge[:, :d, :d]).max())
    assert gap(found, gauge) < 1e-11 * size


def test_half_turns_can_be_lifted() -> None:
    """A rotation by π has no principal logarithm, but a path all the same."""
    field = linear_field(2)
    gauge = discrete_gauge(2, 3, 0)
    gauge[1, :2, :2] = -torch.eye(2).double()
    net_b = ode.transform(ode.discretise(field, 3), gauge)
    assert gap(ode.discretise(ode.lift(net_b, field), 3).affine(), net_b.affine()) < 1e-9


def test_lifting_is_differentiable_in_the_net() -> None:
    field = linear_field(2)
    net_b = ode.transform(ode.discretise(field, 3), discrete_gauge(2, 3, 5))
    weight = net_b.weight.detach().requires_grad_(True)
    field_b = ode.lift(ode.Layers(weight, net_b.bias.detach()), field, tolerance=1.0)
    edges = torch.linspace(0, 1, 4, dtype=torch.float64)
    first = ode.discretise(field_b, edges).weight[0]  # depends on w̄_0 alone
    first.sum().backward()
    assert weight.grad is not None
    assert gap(weight.grad[0], torch.ones(2, 2).double()) < 1e-8
    assert gap(weight.grad[1:], torch.zeros(2, 2, 2).double()) < 1e-8


def test_negative_determinants_need_one_more_dimension() -> None:
    """The correction to Theorem 3.1: det w̄_n > 0 for all layers, or the suspension."""
    field, x = linear_field(3), normal(5, 3)
    net_a = ode.discretise(field, 6)
    net_b = ode.transform(net_a, discrete_gauge(3, 6, 1, reflect=(2, 3)))
    assert (torch.linalg.det(net_b.weight) < 0).nonzero()[:, 0].tolist() == [1, 3]
    with pytest.raises(ode.OrientationError, match=r"layers \[1, 3\] of net B have negative determinant"):
        ode.lift(net_b, field)
    taller, wider = ode.suspend(net_b), ode.suspend(field)
    field_b = ode.lift(taller, wider)  # pyright: ignore[reportArgumentType]
    assert gap(ode.discretise(field_b, 6).affine(), taller.affine()) < 1e-9  # pyright: ignore[reportAttributeAccessIssue]
    extended = torch.cat([x, torch.full((5, 1), 0.3, dtype=torch.float64)], -1)
    out = ode.solve(field_b, extended, accuracy=FINE).final
    assert gap(out[:, :3], net_a.apply(x)) < 1e-8
    assert gap(out[:, 3], extended[:, 3]) < 1e-8


def test_nets_that_differ_are_refused() -> None:
    field = linear_field(3)
    net_a = ode.discretise(field, 4)
    net_b = ode.transform(net_a, discrete_gauge(3, 4, 1))
    wrong = ode.Layers(net_b.weight, net_b.bias + 1e-4)
    with pytest.raises(ode.NotEquivalentError, match="the recursion ends with") as caught:
        ode.lift(wrong, field)
    assert "layer 3" in str(caught.value)
    bent = ode.Layers(net_b.weight * torch.tensor([1, 1.001, 1, 1]).double()[:, None, None], net_b.bias)
    with pytest.raises(ode.NotEquivalentError):
        ode.lift(bent, field)


def test_singular_layers_and_bad_shapes_are_named() -> None:
    field = linear_field(3)
    net = ode.discretise(field, 4)
    weight = net.weight.detach().clone()
    weight[2, 0] = weight[2, 1]
    with pytest.raises(ode.SingularLayerError, match="the weight of layer 2 of net B cannot be inverted"):
        ode.lift(ode.Layers(weight, net.bias), field)
    with pytest.raises(InputError, match="4 layers of width 3 and 4 layers of width 2"):
        ode.lift(ode.discretise(linear_field(2), 4), field)
    with pytest.raises(InputError, match="not finite"):
        ode.lift(ode.Layers(weight * torch.nan, net.bias), field)


@pytest.mark.parametrize("d", [2, 5])
def test_rescalings_of_a_relu_net_are_diffeomorphisms(d: int) -> None:
    """w̄_n ↦ diag(α_{n+1})⁻¹ w̄_n diag(α_n) between ReLUs lifts to a positive diagonal G(t)."""
    field, x, scales = linear_field(d), normal(6, d), torch.exp(normal(3, d, seed=4) / 2)
    lifted = ode.pullback(field, ode.rescaling_gauge(field, scales))
    net, new = ode.integrate(field, 4, nn.ReLU()), ode.integrate(lifted, 4, nn.ReLU())  # pyright: ignore[reportArgumentType]
    assert gap(new(x), net(x)) < 1e-11
    assert gap(ode.solve(ode.with_activation(lifted, 4, torch.relu), x, accuracy=FINE).final, net(x)) < 1e-8  # pyright: ignore[reportArgumentType]
    old = ode.Layers.of(net)
    ones = torch.ones(1, d).double()
    alpha = torch.cat([ones, scales, ones])
    rescaled = ode.Layers.of(new)
    assert gap(rescaled.weight, old.weight * alpha[:-1, None, :] / alpha[1:, :, None]) < 1e-11
    assert gap(rescaled.bias, old.bias / alpha[1:]) < 1e-11


def test_bad_scales_are_named() -> None:
    field = linear_field(2)
    with pytest.raises(InputError, match="hidden layer 2, unit 1"):
        ode.rescaling_gauge(field, torch.tensor([[1.0, 2.0], [1.0, -1.0]]).double())
    with pytest.raises(InputError, match="scales must have shape"):
        ode.rescaling_gauge(field, torch.ones(2, 3).double())
