"""The split of spacetime maps into space and time (paper, section 2; Arnowitt, Deser and Misner)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn

from torchgauge.ode.calculus import per_sample
from torchgauge.ode.diffeomorphism import Diffeomorphism, Inverse, Spacetime, Spatial, Temporal
from torchgauge.ode.fields import as_field
from torchgauge.ode.pullback import relative_flow, solve_frame
from torchgauge.ode.stepping import runge_kutta

Function = Callable[[Tensor, Tensor], Any]


@final
@dataclass(frozen=True)
class Split:
    """How the new time axis lies with respect to the trajectories: ∂_sΦ = lapse · (1, F) + (0, shift).

    Attributes:
        lapse: N = ∂τ/∂s, the rate of the old time, shaped like t.
        shift: β = ∂φ/∂s − N F, [*batch, d]: the motion of points at rest relative to the trajectories. Where it is
            zero, the new field is zero: coordinates that are carried along (comoving gauge).
        field: F' = −(Dφ − F ∂_yτ)⁻¹ β, [*batch, d].
    """

    lapse: Tensor
    shift: Tensor
    field: Tensor


def adm_split(field: Function, diffeo: Diffeomorphism, s: Tensor, y: Tensor) -> Split:
    """Lapse and shift of a diffeomorphism with respect to a field.

    Args:
        field: F(t, x).
        diffeo: Φ.
        s: time, [].
        y: points [..., d].
    """
    tangent = diffeo.tangent(s, y)
    flow = per_sample(as_field(field), tangent.t, tangent.x)
    relative = relative_flow(tangent, flow)
    return Split(tangent.time_rate, -relative, solve_frame(tangent, flow, relative, s, y))


def factorise(diffeo: Diffeomorphism) -> tuple[Spacetime, Spatial]:
    """Φ = Θ∘Σ with Σ(s, y) = (s, φ(s, y)) spatial and Θ(s, x) = (τ(s, φ_s⁻¹(x)), x) a change of time alone.

    Args:
        diffeo: Φ; its φ must be invertible at every s.

    Returns:
        (Θ, Σ).
    """
    space = Spatial(_Part(diffeo), None, diffeo.span)
    return Spacetime(_Clock(diffeo, Inverse(space)), None, diffeo.span), space


@final
class _Part(nn.Module):
    """φ of a diffeomorphism."""

    def __init__(self, diffeo: Diffeomorphism) -> None:
        super().__init__()
        self.diffeo = diffeo

    def forward(self, s: Tensor, y: Tensor) -> Tensor:
        return self.diffeo(s, y)[1]


@final
class _Clock(nn.Module):
    """(s, x) ↦ (τ(s, φ_s⁻¹(x)), x)."""

    def __init__(self, diffeo: Diffeomorphism, back: Inverse) -> None:
        super().__init__()
        self.diffeo, self.back = diffeo, back

    def forward(self, s: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        t, _ = self.diffeo(s, self.back(s, x)[1])
        return t.expand(x.shape[:-1]), x


def spatial_part(field: Function, space: Function | None, time: Function) -> Function:
    """The spatial generator ε − ε⁰ F that does what (ε⁰, ε) does: the rest, ε⁰ F̂, is a trivial direction.

    Args:
        field: F(t, x).
        space: ε; None for zero.
        time: ε⁰.
    """

    def generator(t: Tensor, x: Tensor) -> Tensor:
        slide = time(t, x)[..., None] * field(t, x)
        return -slide if space is None else space(t, x) - slide

    return generator


def as_spatial(field: Function, warp: Temporal, steps: int = 64) -> Spatial:
    """The spatial diffeomorphism that does to a field what a time reparametrisation does.

    φ_t carries a point along its trajectory from time τ(t) to time t. For a linear field G(t) = W_{t:τ(t)}, and to
    first order G = 1 − ε w for τ = t + ε; (27) is the inverse of it.

    Args:
        field: F(t, x).
        warp: t ↦ τ(t).
        steps: of the Runge–Kutta method (order 4) that carries the points.
    """
    source = as_field(field, warp.span)

    def carry(t: Tensor, y: Tensor) -> Tensor:
        return runge_kutta(source, warp.tau(t), t, y, steps)

    def back(t: Tensor, x: Tensor) -> Tensor:
        return runge_kutta(source, t, warp.tau(t), x, steps)

    return Spatial(carry, back, warp.span)
