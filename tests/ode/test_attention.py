"""Attention as an integrated neural ODE with a kick, in both directions; and what `infer` finds of its symmetry."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import torchgauge as tg
from tests.ode.cases import FINE, gap, linear_field, normal
from torchgauge import ode
from torchgauge.errors import InputError

D, TOKENS = 4, 6
activations = pytest.mark.parametrize("activation", [None, torch.relu])


def attention(activation=None, seed: int = 0) -> ode.ResidualAttention:
    """Random weights, det W_q > 0."""
    query, key, value = normal(3, D, D, seed=seed)
    if torch.linalg.det(query) < 0:
        query[:, 0], key[:, 0] = -query[:, 0].clone(), -key[:, 0].clone()
    return ode.ResidualAttention(query, key, value, activation)


def tokens() -> Tensor:
    return normal(2, TOKENS, D, seed=8) / 3


def weights(layer: ode.ResidualAttention) -> Tensor:
    return torch.stack([layer.query, layer.key, layer.value]).detach()


@activations
def test_attention_written_out(activation) -> None:
    """h_I = x_I + Σ_J φ((x_I W_q)(x_J W_k)ᵀ)(x_J W_v), token by token."""
    layer, x = attention(activation), tokens()[0]
    expected = x.clone()
    for i in range(TOKENS):
        for j in range(TOKENS):
            score = (x[i] @ layer.query) @ (x[j] @ layer.key)
            expected[i] = expected[i] + (score if activation is None else activation(score)) * (x[j] @ layer.value)
    assert gap(layer(x), expected) < 1e-12


@activations
def test_a_kicked_field_integrates_to_attention(activation) -> None:
    """(41), (42): W_q = Uᵀ, W_k = (λ̃ U)ᵀ, W_v = (U⁻¹ λ U)ᵀ; the kick as a jump makes it exact."""
    loop = ode.pure_gauge(ode.random_affine(D, shift=False, generator=torch.Generator().manual_seed(0)))
    contraction, form = normal(2, D, D, seed=3)
    node = ode.kicked(loop, ode.Kick(contraction, form, activation), 0.37)
    layer, x = ode.attention_of(node), tokens()
    assert gap(layer(x), ode.solve(node, x, accuracy=FINE).final) < 1e-8
    frame = ode.lines.layer_lines(loop, torch.tensor([0.0, 0.37], dtype=torch.float64))[0, :D, :D]
    assert gap(layer.query, frame.mT) < 1e-9
    assert gap(layer.key, (form @ frame).mT) < 1e-9
    assert gap(layer.value, torch.linalg.solve(frame, contraction @ frame).mT) < 1e-9


@activations
@pytest.mark.parametrize("through_query", [False, True])
def test_from_attention_to_a_field_and_back(activation, through_query: bool) -> None:
    layer, x = attention(activation), tokens()
    node = ode.node_of(layer, 0.5, ode.query_loop(layer) if through_query else None)
    assert gap(ode.solve(node, x, accuracy=FINE).final, layer(x)) < 1e-8
    back = ode.attention_of(node)
    assert gap(back(x), layer(x)) < 1e-10
    assert gap(back.query @ back.key.mT, layer.query @ layer.key.mT) < 1e-10
    if through_query:
        assert gap(weights(back), weights(layer)) < 1e-10


@activations
def test_diffeomorphisms_act_as_a_and_b(activation) -> None:
    """A = G⁻ᵀ(t₀), B = Gᵀ(t₀), α = 1 (36), (37); α is the freedom λ ↦ λ/α, λ̃ ↦ α λ̃."""
    layer, x = attention(activation), tokens()
    node = ode.node_of(layer, 0.5, ode.query_loop(layer))
    affine = ode.random_affine(D, shift=False, generator=torch.Generator().manual_seed(1))
    moved = ode.attention_of(ode.pullback(node, affine))  # pyright: ignore[reportArgumentType]
    g = affine.at(torch.tensor([0.5], dtype=torch.float64))[0, :D, :D]
    expected = ode.transform_attention(layer, torch.linalg.inv(g).mT)
    assert gap(weights(moved), weights(expected)) < 1e-9
    assert gap(expected.key.mT, g.mT @ layer.key.mT) < 1e-10  # W_kᵀ ↦ B W_kᵀ
    assert gap(moved(x), layer(x)) < 1e-9
    kick: ode.Kick = node.jumps[0].map  # pyright: ignore[reportAssignmentType]
    scaled = ode.attention_of(ode.kicked(node.field, kick.rescaled(2.5), 0.5))  # pyright: ignore[reportArgumentType]
    assert gap(weights(scaled), weights(ode.transform_attention(layer, torch.eye(D).double(), 2.5))) < 1e-9
    assert gap(scaled(x), layer(x)) < 1e-10


def test_nonlinear_diffeomorphisms_move_kicks_too() -> None:
    layer, x = attention(), tokens()
    node = ode.node_of(layer)
    flow = ode.Flow(lambda t, x: torch.tanh(x.roll(1, -1)) / 2, 3)
    with torch.no_grad():
        assert gap(ode.solve(ode.pullback(node, flow), x, accuracy=FINE).final, layer(x)) < 1e-8


def test_the_first_order_form_and_its_gap() -> None:
    """As a smooth pulse the identity holds to first order in λ: the gap is proportional to λ."""
    contraction, form = normal(2, D, D, seed=3)
    gaps = [ode.first_order_gap(ode.Kick(size * contraction, form), tokens()) for size in (1e-1, 1e-2, 1e-3)]
    assert gaps[0] > 0.01
    assert gaps[1] / gaps[2] == pytest.approx(10, rel=0.05)


def test_weights_are_differentiable_in_the_field() -> None:
    loop = ode.pure_gauge(ode.affine_loop(torch.nn.Parameter(normal(2, D, D) / 4)))
    node = ode.kicked(loop, ode.Kick(torch.nn.Parameter(normal(D, D)), torch.nn.Parameter(normal(D, D, seed=1))), 0.4)
    torch.stack(ode.attention_weights(node)).square().sum().backward()
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in node.parameters())
    assert len([*node.parameters()]) == 3


@activations
def test_the_group_that_infer_finds_holds_these_elements(activation) -> None:
    """Both halves of the library: the tangents of (A, B, α) lie in the span of the inferred group's tangents."""
    layer, x = attention(activation), tokens()
    group = tg.infer(layer, (x,))
    assert group.dimension == D * D + 1
    state = {name: value.detach() for name, value in layer.state_dict().items()}
    span = group.tangent_matrix(state)
    assert group.orbit_dimension(state) == D * D + 1
    affine = ode.random_affine(D, 1.0, shift=False, generator=torch.Generator().manual_seed(4))
    node = ode.node_of(layer, 0.5, ode.query_loop(layer))
    names = [name for name, _ in layer.named_parameters()]

    def along(step: float) -> dict[str, Tensor]:
        """Attention of the field pulled back by x = exp(h X(t)) y, and its split scaled by e^h."""
        scaled = ode.affine_loop(step * affine.path.matrix.exponent.coefficients)  # pyright: ignore
        moved = ode.pullback(node, scaled)
        kick: ode.Kick = moved.jumps[0].map  # pyright: ignore
        alpha = float(torch.exp(torch.tensor(step)))
        layer = ode.attention_of(ode.kicked(moved.field, kick.rescaled(alpha), 0.5))  # pyright: ignore
        return {name: value.detach() for name, value in layer.state_dict().items()}

    h = 1e-4
    plus, minus = along(h), along(-h)
    tangent = torch.cat([((plus[name] - minus[name]) / (2 * h)).reshape(-1) for name in names])
    rows = torch.linalg.lstsq(span, tangent[:, None], driver="gelsd").solution
    assert float((span @ rows - tangent[:, None]).norm() / tangent.norm()) < 1e-6
    far = along(1.0)  # a finite element: outputs agree, and it is an element of the same group
    from torch.func import functional_call

    assert gap(functional_call(layer, far, (x,)), layer(x)) < 1e-9
    values = torch.linalg.svdvals(torch.cat([span, tangent[:, None]], 1))
    assert int((values > 1e-6 * values[0]).sum()) == D * D + 1


def test_bad_attention_is_named() -> None:
    layer = attention()
    with pytest.raises(ode.FieldError, match=r"needs W\(T, 0\) = 1"):
        ode.attention_of(ode.kicked(linear_field(D), ode.Kick(*normal(2, D, D)), 0.5))
    with pytest.raises(ode.FieldError, match="linear field with one Kick"):
        ode.attention_of(ode.ImpulsiveField(linear_field(D), [ode.Jump(0.5, torch.relu)]))
    mirror = torch.diag(torch.tensor([-1.0, 1, 1, 1]).double())
    flipped = ode.ResidualAttention(layer.query @ mirror, layer.key, layer.value)
    with pytest.raises(ode.OrientationError, match="Flip the sign of one column"):
        ode.query_loop(flipped)
    with pytest.raises(ode.SingularLayerError, match="not invertible"):
        ode.query_loop(ode.ResidualAttention(layer.query[:, :2], layer.key[:, :2], layer.value))
    with pytest.raises(InputError, match="attention needs weights"):
        ode.ResidualAttention(layer.query, layer.key[:, :2], layer.value)
    with pytest.raises(InputError, match="λ and λ̃ of one shape"):
        ode.Kick(layer.query[:, :2], layer.query)
    for wrong in (0.0, -1.0):
        with pytest.raises(InputError, match="positive"):
            ode.Kick(*normal(2, D, D)).rescaled(wrong)
        with pytest.raises(InputError, match="positive"):
            ode.transform_attention(layer, torch.eye(D).double(), wrong)
    shifted = ode.pullback(ode.node_of(layer), ode.random_affine(D, generator=torch.Generator().manual_seed(1)))
    with pytest.raises(ode.FieldError, match="linear field with one Kick"):
        ode.attention_of(shifted)  # pyright: ignore[reportArgumentType]


def test_heads_narrower_than_the_stream() -> None:
    layer = ode.ResidualAttention(normal(D, 2), normal(D, 2, seed=1), normal(D, D, seed=2))
    assert gap(ode.attention_of(ode.node_of(layer))(tokens()), layer(tokens())) < 1e-11
