"""Diffeomorphisms of spacetime: (s, y) ↦ (t, x) = (τ(s, y), φ(s, y)), the identity at the start and at the end of time.

They act on fields from the right: pulling back along Φ @ Ψ = Φ∘Ψ is pulling back along Φ, then along Ψ.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import final

import torch
from torch import Tensor, nn

from torchgauge.ode.calculus import jacobian, known, per_sample, push, velocity
from torchgauge.ode.errors import DiffeomorphismError, FoldError
from torchgauge.ode.fields import checked_span, same_span
from torchgauge.ode.paths import Span

SpaceMap = Callable[[Tensor, Tensor], Tensor]
TimeMap = Callable[[Tensor], Tensor]
NEWTON_STEPS = 24
SpacetimeMap = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@final
@dataclass(frozen=True)
class Tangent:
    """A diffeomorphism and its derivative DΦ = [[time_rate, time_gradient], [shift, frame]] at some points.

    Attributes:
        t: τ(s, y), [] or [*batch].
        x: φ(s, y), [*batch, d].
        time_rate: ∂τ/∂s, shaped like t.
        time_gradient: ∂τ/∂y, [*batch, d]; None for zero.
        shift: ∂φ/∂s, [*batch, d]; None for zero.
        frame: ∂φ/∂y, [*batch, d, d], or [d, d] if it is the same for all points; None for the identity.
    """

    t: Tensor
    x: Tensor
    time_rate: Tensor
    time_gradient: Tensor | None
    shift: Tensor | None
    frame: Tensor | None


class Diffeomorphism(nn.Module, ABC):
    """What all diffeomorphisms of spacetime can do; the kinds below are final.

    Attributes:
        span: start and end of time.
        keeps_slices: whether τ depends on s alone, so that moments stay moments.
    """

    keeps_slices: bool = True

    def __init__(self, span: Span) -> None:
        super().__init__()
        self.span = checked_span(span)

    def time(self, t: float) -> Tensor:
        """A time [] in float64, on the device of the map's parameters."""
        tensors = chain(self.parameters(), self.buffers())
        device = next((tensor.device for tensor in tensors), torch.device("cpu"))
        return torch.tensor(t, dtype=torch.float64, device=device)

    @abstractmethod
    def forward(self, s: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The point (t, x) that (s, y) goes to: s [] or [*batch], y [*batch, d], t shaped like s (or [*batch])."""

    def tangent(self, s: Tensor, y: Tensor) -> Tangent:
        """The map and its derivative at (s, y), differentiated automatically."""
        (t, x), (rate, shift) = push(self.forward, (s, y), (torch.ones_like(s), torch.zeros_like(y)))
        if self.keeps_slices:
            frame = jacobian(lambda moment, points: self.forward(moment, points)[1], s, y)
            return Tangent(t, x, rate, None, shift, frame)
        gradient, frame = jacobian(self.forward, s, y)
        return Tangent(t, x, rate, gradient, shift, frame)

    def invert(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The point (s, y) that goes to (t, x): by Newton's method where no closed form is known.

        Raises:
            FoldError: Newton's method finds no such point.
        """
        batch = torch.broadcast_shapes(t.shape, x.shape[:-1])
        target = torch.cat([t.expand(batch)[..., None], x.expand(*batch, x.shape[-1])], -1)

        def whole(point: Tensor) -> Tensor:
            image_t, image_x = per_sample(self.forward, point[..., 0], point[..., 1:])
            return torch.cat([image_t.expand(point.shape[:-1])[..., None], image_x], -1)

        point = newton(whole, target, target)
        return point[..., 0], point[..., 1:]

    def clock(self, s: Tensor) -> Tensor:
        """τ(s) of a map that keeps slices; the maps of space alone keep time too."""
        return s

    def moment(self, t: Tensor) -> Tensor:
        """The s with τ(s) = t, of a map that keeps slices."""
        return t

    def inverse(self) -> Diffeomorphism:
        """The inverse diffeomorphism."""
        return Inverse(self)

    def __matmul__(self, other: Diffeomorphism) -> Diffeomorphism:
        """self∘other: other acts on points first, self acts on fields first."""
        return Composition(self, other)


@final
class Spatial(Diffeomorphism):
    """x = φ(t, y), time unchanged (paper, (13)–(16)).

    Args:
        phi: φ, a callable or module that takes a time [] and points [..., d], row by row, and returns points [..., d].
        inverse: (t, x) ↦ y; without it, Newton's method.
        span: start and end of time.
    """

    def __init__(self, phi: SpaceMap, inverse: SpaceMap | None = None, span: Span = (0.0, 1.0)) -> None:
        super().__init__(span)
        self.phi = phi
        self.given_inverse = inverse

    def forward(self, s: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x = per_sample(self.phi, s, y)
        if x.shape != y.shape:
            what = f"a spatial map must return points in the shape {[*y.shape]} that it got, and returned {[*x.shape]}"
            raise DiffeomorphismError(what, "φ(t, y)", "The map takes (t, y) and returns x.")
        return s, x

    def invert(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.given_inverse is not None:
            return t, per_sample(self.given_inverse, t, x)
        return t, newton(lambda moment, y: self.forward(moment, y)[1], x, x, t)


@final
class Temporal(Diffeomorphism):
    """t = τ(s), space unchanged (paper, (17)–(20)).

    Args:
        tau: τ, an increasing callable or module on the span that fixes its ends; times [...] to times [...].
        inverse: t ↦ s; without it, bisection and Newton's method.
        span: start and end of time.
    """

    def __init__(self, tau: TimeMap, inverse: TimeMap | None = None, span: Span = (0.0, 1.0)) -> None:
        super().__init__(span)
        self.tau = tau
        self.given_inverse = inverse

    def forward(self, s: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.tau(s), y

    def tangent(self, s: Tensor, y: Tensor) -> Tangent:
        return Tangent(self.tau(s), y, velocity(self.tau, s), None, None, None)

    def invert(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.moment(t), x

    def inverse(self) -> Temporal:
        return Temporal(_Moment(self), self.tau, self.span)

    def clock(self, s: Tensor) -> Tensor:
        return self.tau(s)

    def moment(self, t: Tensor) -> Tensor:
        """The s at which τ(s) = t, for times [...]."""
        if self.given_inverse is not None:
            return self.given_inverse(t)
        low, high = (torch.full_like(t, end).detach() for end in self.span)
        aim = t.detach()
        with torch.no_grad():
            for _ in range(60):
                middle = (low + high) / 2
                early = self.tau(middle) < aim
                low, high = torch.where(early, middle, low), torch.where(early, high, middle)
        s = ((low + high) / 2).detach()
        return s - (self.tau(s) - t) / velocity(self.tau, s)  # one step of Newton's carries the gradient


@final
class _Moment(nn.Module):
    """The inverse of a time map."""

    vectorised = True

    def __init__(self, of: Temporal) -> None:
        super().__init__()
        self.of = of

    def forward(self, t: Tensor) -> Tensor:
        return self.of.moment(t)

    def velocity(self, t: Tensor) -> Tensor:
        return 1 / velocity(self.of.tau, self.of.moment(t))


@final
class Spacetime(Diffeomorphism):
    """Any map of spacetime, (t, x) = Φ(s, y).

    Args:
        phi: Φ, a callable or module that takes a time [] and points [..., d], row by row, and returns times [...] (or
            []) and points [..., d].
        inverse: (t, x) ↦ (s, y) with a time [] and points [..., d]; without it, Newton's method.
        span: start and end of time.
    """

    keeps_slices = False

    def __init__(self, phi: SpacetimeMap, inverse: SpacetimeMap | None = None, span: Span = (0.0, 1.0)) -> None:
        super().__init__(span)
        self.phi = phi
        self.given_inverse = inverse

    def forward(self, s: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        t, x = per_sample(self.phi, s, y)
        if x.shape != y.shape or t.shape not in (y.shape[:-1], torch.Size([])):
            what = f"a map of spacetime must return times {[*y.shape[:-1]]} and points {[*y.shape]} for such points"
            raise DiffeomorphismError(f"{what}, and returned {[*t.shape]} and {[*x.shape]}", "Φ(s, y)", "")
        return t.expand(y.shape[:-1]), x

    def invert(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.given_inverse is None:
            return super().invert(t, x)
        return per_sample(self.given_inverse, t, x)


@final
class Composition(Diffeomorphism):
    """outer∘inner.

    Args:
        outer, inner: diffeomorphisms on the same span.

    Raises:
        DiffeomorphismError: spans that differ.
    """

    def __init__(self, outer: Diffeomorphism, inner: Diffeomorphism) -> None:
        super().__init__(outer.span)
        if not same_span(outer.span, inner.span):
            what = f"diffeomorphisms on {outer.span} and on {inner.span} cannot be composed"
            raise DiffeomorphismError(what, "", "Give both the same span.")
        self.outer, self.inner = outer, inner
        self.keeps_slices = outer.keeps_slices and inner.keeps_slices

    def forward(self, s: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.outer(*self.inner(s, y))

    def invert(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.inner.invert(*self.outer.invert(t, x))

    def clock(self, s: Tensor) -> Tensor:
        return self.outer.clock(self.inner.clock(s))

    def moment(self, t: Tensor) -> Tensor:
        return self.inner.moment(self.outer.moment(t))

    def inverse(self) -> Diffeomorphism:
        return Composition(self.inner.inverse(), self.outer.inverse())


@final
class Inverse(Diffeomorphism):
    """The inverse of a diffeomorphism.

    Args:
        of: what is inverted.
    """

    def __init__(self, of: Diffeomorphism) -> None:
        super().__init__(of.span)
        self.of = of
        self.keeps_slices = of.keeps_slices

    def forward(self, s: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.of.invert(s, y)

    def invert(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.of(t, x)

    def clock(self, s: Tensor) -> Tensor:
        return self.of.moment(s)

    def moment(self, t: Tensor) -> Tensor:
        return self.of.clock(t)

    def inverse(self) -> Diffeomorphism:
        return self.of


def newton(function: Callable[..., Tensor], target: Tensor, start: Tensor, *fixed: Tensor) -> Tensor:
    """Solves function(*fixed, x) = target row by row, by Newton's method with a line search; differentiable once.

    Args:
        function: maps [*batch, d] to [*batch, d], row by row.
        target: [*batch, d].
        start: first guess, [*batch, d].
        fixed: arguments before x, [] or [*batch].

    Returns:
        x [..., d].

    Raises:
        FoldError: no convergence, with the point where the residual is largest.
    """
    aim, x, at = target.detach(), start.detach(), tuple(value.detach() for value in fixed)
    tolerance = 64 * torch.finfo(aim.dtype).eps * aim.abs().amax().clamp(min=1.0)
    with torch.no_grad():
        residual = function(*at, x) - aim
        for _ in range(NEWTON_STEPS):
            if known(residual.abs().amax() <= tolerance):
                break
            step = torch.linalg.solve(jacobian(function, *at, x), residual[..., None])[..., 0]
            x, residual = _line_search(lambda y: function(*at, y), aim, x, residual, step)
    if known(residual.abs().amax() <= 1e3 * tolerance) is False:
        worst = residual.abs().amax(-1).reshape(-1).argmax()
        point = aim.reshape(-1, aim.shape[-1])[worst].tolist()
        what = f"the map could not be inverted: Newton's method stopped with residual {residual.abs().amax():.1e}"
        raise FoldError(what, f"x = {short(point)}", "The map may fold there: `check` it, or give its inverse.")
    # one more step, from a fixed x, has the right derivative in the target and in the map's parameters
    x = x.detach()
    remainder = function(*fixed, x) - target
    return x - torch.linalg.solve(jacobian(function, *fixed, x), remainder[..., None])[..., 0]


def _line_search(
    function: Callable[[Tensor], Tensor], aim: Tensor, x: Tensor, residual: Tensor, step: Tensor
) -> tuple[Tensor, Tensor]:
    """The best of five step lengths for each row."""
    best, error = x, residual
    for length in (1.0, 0.5, 0.25, 0.125, 0.03125):
        trial = x - length * step
        remainder = function(trial) - aim
        better = remainder.norm(dim=-1, keepdim=True) < error.norm(dim=-1, keepdim=True)
        best, error = torch.where(better, trial, best), torch.where(better, remainder, error)
        if length == 1.0 and known(better.all()):
            break
    return best, error


def short(point: list[float]) -> str:
    """A point for a message: at most six of its coordinates."""
    shown = ", ".join(f"{value:.4g}" for value in point[:6])
    return f"({shown}{', …' if len(point) > 6 else ''})"
