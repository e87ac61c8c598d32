"""Self-attention as an integrated neural ODE with a kick, in both directions (paper, section 4).

n tokens x_I, the rows of [..., n, d], follow dx_I/dt = w(t) x_I. At t₀ all of them are kicked,
x_I ↦ x_I + Σ_J φ(x_Iᵀ λ̃ x_J) λ x_J. If W_{T:0} = 1, the output is residual attention.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn

from torchgauge.errors import InputError
from torchgauge.ode.affine import Affine
from torchgauge.ode.connect import Connected
from torchgauge.ode.errors import FieldError, OrientationError, SingularLayerError
from torchgauge.ode.fields import ImpulsiveField, Jump, LinearField
from torchgauge.ode.lines import layer_lines
from torchgauge.ode.pullback import pullback

Activation = Callable[[Tensor], Tensor]


@final
class ResidualAttention(nn.Module):
    """x_I + Σ_J φ((x_I W_q)(x_J W_k)ᵀ) (x_J W_v), φ the identity or a ReLU.

    Args:
        query: W_q, [d, h].
        key: W_k, [d, h].
        value: W_v, [d, d].
        activation: φ, None for the identity.
    """

    def __init__(self, query: Tensor, key: Tensor, value: Tensor, activation: Activation | None = None) -> None:
        super().__init__()
        d = query.shape[0]
        if query.ndim != 2 or key.shape != query.shape or value.shape != (d, d):
            shapes = f"{[*query.shape]}, {[*key.shape]} and {[*value.shape]}"
            raise InputError(f"attention needs weights [d, h], [d, h] and [d, d], not {shapes}", "", "")
        self.query, self.key, self.value = (_parameter(weight) for weight in (query, key, value))
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [..., n, d] to tokens [..., n, d]."""
        scores = (x @ self.query) @ (x @ self.key).transpose(-1, -2)
        return x + (scores if self.activation is None else self.activation(scores)) @ (x @ self.value)


def _parameter(weight: Tensor) -> nn.Parameter:
    return weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight.detach().clone())


@final
class Kick(nn.Module):
    """x_I ↦ x_I + Σ_J φ(x_Iᵀ λ̃ x_J) λ x_J: what δ(t − t₀) λⁱ_j λ̃_kl does as a jump.

    As in (42), the query and the first index of λ̃ belong to token I, its second index and λ's input to token J.

    Args:
        contraction: λ, [d, d].
        form: λ̃, [d, d].
        activation: φ, None for the identity.
    """

    def __init__(self, contraction: Tensor, form: Tensor, activation: Activation | None = None) -> None:
        super().__init__()
        if contraction.ndim != 2 or contraction.shape != form.shape or form.shape[0] != form.shape[1]:
            shapes = f"{[*contraction.shape]} and {[*form.shape]}"
            raise InputError(f"a kick needs λ and λ̃ of one shape [d, d], not {shapes}", "", "")
        for name, value in (("contraction", contraction), ("form", form)):
            if isinstance(value, nn.Parameter):
                setattr(self, name, value)
            else:
                self.register_buffer(name, value)
        self.activation = activation

    contraction: Tensor
    form: Tensor

    def push(self, x: Tensor) -> Tensor:
        """Σ_J φ(x_Iᵀ λ̃ x_J) λ x_J for tokens [..., n, d]."""
        scores = x @ self.form @ x.mT
        return (scores if self.activation is None else self.activation(scores)) @ x @ self.contraction.mT

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [..., n, d] right after the kick."""
        return x + self.push(x)

    def gauged(self, matrix: Tensor) -> Kick | None:
        """The kick in coordinates x = G y: λ ↦ G⁻¹ λ G and λ̃ ↦ Gᵀ λ̃ G.

        Args:
            matrix: [[G, c], [0, 1]] at the moment of the kick.

        Returns:
            None if c is not zero; then it is no kick of this form.
        """
        frame, shift = matrix[:-1, :-1], matrix[:-1, -1]
        if bool(shift.detach().any()):
            return None
        moved = torch.linalg.solve(frame, self.contraction @ frame)
        return Kick(moved, frame.mT @ self.form @ frame, self.activation)

    def rescaled(self, alpha: float) -> Kick:
        """λ ↦ λ/α and λ̃ ↦ α λ̃, α > 0: the freedom of the tensor split, the same kick.

        Raises:
            InputError: α is not positive.
        """
        if not alpha > 0:
            raise InputError(f"the scale of a split must be positive, not {alpha}", "α", "ReLU needs α > 0.")
        return Kick(self.contraction / alpha, alpha * self.form, self.activation)

    def flow(self, x: Tensor, steps: int = 256) -> Tensor:
        """The limit of narrow pulses in place of the jump: the flow of dx/da = push(x) for a = 0 … 1.

        It agrees with the jump to first order in λ λ̃, and this is why the identity of section 4 holds to that order for
        a smooth field.

        Args:
            x: tokens [..., n, d].
            steps: of the Runge–Kutta method.
        """
        h = 1.0 / steps
        for _ in range(steps):
            k1 = self.push(x)
            k2 = self.push(x + h / 2 * k1)
            k3 = self.push(x + h / 2 * k2)
            x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + self.push(x + h * k3))
        return x


def kicked(field: LinearField, kick: Kick, time: float) -> ImpulsiveField:
    """dx_I/dt = w x_I with a kick at t₀."""
    return ImpulsiveField(field, [Jump(time, kick)])


def first_order_gap(kick: Kick, x: Tensor) -> float:
    """How far the jump is from the limit of narrow pulses, relative to the size of the attention term.

    Args:
        kick: λ and λ̃.
        x: tokens right before it, [..., n, d].
    """
    with torch.no_grad():
        term = kick.push(x)
        return float((kick.flow(x) - x - term).norm() / term.norm())


def attention_weights(node: ImpulsiveField, tolerance: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """W_q, W_k and W_v of the attention layer that a kicked linear field integrates to, exactly (41, 42).

    With U = W_{t₀:0}: W_q = Uᵀ, W_k = (λ̃ U)ᵀ, W_v = (U⁻¹ λ U)ᵀ; differentiable in the parameters of the field.

    Args:
        node: a linear field with one `Kick`, W_{T:0} = 1 and b = 0.
        tolerance: of W_{T:0} = 1; by default 10⁶ roundings.

    Returns:
        Three matrices [d, d].

    Raises:
        FieldError: the field is not of that kind.
    """
    field, jumps = (node.field, node.jumps) if isinstance(node, ImpulsiveField) else (node, ())
    if not isinstance(field, LinearField) or len(jumps) != 1 or not isinstance(jumps[0].map, Kick):
        what = "attention is what a linear field with one Kick integrates to, and this field is another one"
        raise FieldError(what, type(field).__name__, "Make it with `kicked`; shifts c(t) change the form of a kick.")
    kick: Kick = jumps[0].map
    edges = torch.tensor([field.span[0], jumps[0].time, field.span[1]], dtype=field.dtype, device=field.device)
    lines = layer_lines(field, edges)
    eye = torch.eye(field.dim + 1, dtype=lines.dtype, device=lines.device)
    gap = float((lines[1] @ lines[0] - eye).detach().abs().max())
    if not gap <= (tolerance or 1e6 * torch.finfo(lines.dtype).eps):
        what = f"residual attention needs W(T, 0) = 1 and b = 0, and here they are off by {gap:.2e}"
        raise FieldError(what, "W(T, 0)", "Close the loop: w = Ġ G⁻¹ with G = 1 at both ends, see `pure_gauge`.")
    frame = lines[0, :-1, :-1]
    return frame.mT, (kick.form @ frame).mT, torch.linalg.solve(frame, kick.contraction @ frame).mT


def attention_of(node: ImpulsiveField, tolerance: float | None = None) -> ResidualAttention:
    """The attention layer that a kicked linear field integrates to; its parameters are new leaves.

    Args, Raises: as for `attention_weights`.
    """
    weights = attention_weights(node, tolerance)
    kick = node.jumps[0].map
    return ResidualAttention(*weights, kick.activation if isinstance(kick, Kick) else None)


def node_of(attention: ResidualAttention, time: float = 0.5, field: LinearField | None = None) -> ImpulsiveField:
    """A kicked field that integrates to an attention layer.

    λ̃ = U⁻ᵀ W_q W_kᵀ U⁻¹ and λ = U W_vᵀ U⁻¹ with U = W_{t₀:0} of the field.

    Args:
        attention: the layer.
        time: t₀.
        field: between the kicks, with W_{T:0} = 1 and b = 0; by default zero. `query_loop` gives one from which
            `attention_of` recovers W_q and W_k one by one, and not only W_q W_kᵀ.
    """
    query = attention.query
    if field is None:
        field = LinearField(torch.zeros_like(query[:, :1] @ query[:, :1].mT))
    edges = torch.tensor([field.span[0], time], dtype=field.dtype, device=field.device)
    frame = layer_lines(field, edges)[0, :-1, :-1]
    form = torch.linalg.solve(frame.mT, torch.linalg.solve(frame, query @ attention.key.mT, left=False))
    contraction = torch.linalg.solve(frame, frame @ attention.value.mT, left=False)
    return kicked(field, Kick(contraction, form, attention.activation), time)


def query_loop(attention: ResidualAttention, time: float = 0.5, span: tuple[float, float] = (0.0, 1.0)) -> LinearField:
    """A field with W_{t₀:0} = W_qᵀ and W_{T:0} = 1.

    Raises:
        OrientationError: W_q is not square with positive determinant, so that no flow leads to it.
    """
    query = attention.query
    if query.shape[0] != query.shape[1]:
        raise SingularLayerError(f"W_q of shape {[*query.shape]} is not invertible", "W_q", "Use the zero field.")
    if float(torch.linalg.det(query.detach())) <= 0:
        what = "W_q has no positive determinant, and a flow leads only to matrices that have"
        raise OrientationError(what, "W_q", "Flip the sign of one column of W_q and of W_k: the layer stays the same.")
    eye = torch.eye(len(query), dtype=query.dtype, device=query.device)
    times = torch.tensor([span[0], time, span[1]], dtype=query.dtype, device=query.device)
    return pure_gauge(Affine(Connected(times, torch.stack([eye, query.mT, eye])), None, span))


def pure_gauge(gauge: Affine) -> LinearField:
    """w = Ġ G⁻¹, the zero field in other coordinates: W_{t₁:t₂} = G(t₁) G(t₂)⁻¹."""
    like = gauge.at(gauge.time(gauge.span[0])[None])[0, :-1, :-1]
    zero = LinearField(torch.zeros_like(like), None, gauge.span)
    made = pullback(zero, gauge.inverse())
    assert isinstance(made, LinearField)
    return made


def transform_attention(attention: ResidualAttention, a: Tensor, alpha: float = 1.0) -> ResidualAttention:
    """W_q ↦ W_q A, W_kᵀ ↦ B W_kᵀ, W_v ↦ W_v/α with A B = α 1: the symmetry (36), (37) of the layer.

    Args:
        attention: with the identity or a ReLU as activation.
        a: A, [h, h], invertible. A diffeomorphism G(t) acts with A = G⁻ᵀ(t₀), B = Gᵀ(t₀), α = 1.
        alpha: α > 0.
    """
    if not alpha > 0:
        raise InputError(f"α must be positive, not {alpha}", "α", "ReLU(α s) = α ReLU(s) for α > 0 only.")
    key = torch.linalg.solve(a, alpha * attention.key.mT).mT
    return ResidualAttention(
        (attention.query @ a).detach(), key, attention.value.detach() / alpha, attention.activation
    )
