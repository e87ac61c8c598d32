"""Ready families of diffeomorphisms: flows, radial and coupling maps, time warps, and random ones.

Each is the identity at both ends of time by construction, whatever its parameters; `nn.Parameter`s can be trained.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, final

import torch
from torch import Tensor, nn

from torchgauge.errors import InputError
from torchgauge.ode.affine import Affine
from torchgauge.ode.calculus import per_sample
from torchgauge.ode.diffeomorphism import Diffeomorphism, Spatial, Temporal, newton
from torchgauge.ode.errors import FieldError
from torchgauge.ode.paths import Exponential, SineSeries, Span, bump

SpaceMap = Callable[[Tensor, Tensor], Tensor]


@final
class Flow(Diffeomorphism):
    """φ_t = the flow of the field 4u(1 − u) v(t, x) for a unit of auxiliary time, u the fraction of t gone by.

    The flow is taken by `steps` steps of the classical Runge–Kutta method. The map that this computes is a
    diffeomorphism itself (for steps that are not too long), so that pulling back along it is exact.

    Args:
        generator: v, a callable or module F(t, x); with `spacetime`, one that returns (ε⁰, ε), the rates of t, [...],
            and of x, [..., d].
        steps: number of Runge–Kutta steps.
        spacetime: whether time flows too.
        span: start and end of time.
    """

    def __init__(
        self,
        generator: Callable[[Tensor, Tensor], Tensor | tuple[Tensor, Tensor]],
        steps: int = 8,
        spacetime: bool = False,
        span: Span = (0.0, 1.0),
    ) -> None:
        super().__init__(span)
        self.generator, self.steps = generator, steps
        self.keeps_slices = not spacetime

    def forward(self, s: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._flow(s, y, 1.0)

    def _rates(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        rates = per_sample(self.generator, t, x)
        size = bump(t, self.span)
        dt, dx = (torch.zeros_like(t), rates) if self.keeps_slices else rates
        if dx.shape != x.shape:
            what = (
                f"the generator of a flow must return rates in the shape {[*x.shape]} of its points, not {[*dx.shape]}"
            )
            raise FieldError(what, "generator", "It takes (t, x) and returns dx, or (dt, dx) with spacetime=True.")
        return size * dt, size[..., None] * dx

    def _flow(self, t: Tensor, x: Tensor, direction: float) -> tuple[Tensor, Tensor]:
        if not self.keeps_slices:
            t = t.expand(x.shape[:-1])
        h = direction / self.steps
        for _ in range(self.steps):
            t1, x1 = self._rates(t, x)
            t2, x2 = self._rates(t + h / 2 * t1, x + h / 2 * x1)
            t3, x3 = self._rates(t + h / 2 * t2, x + h / 2 * x2)
            t4, x4 = self._rates(t + h * t3, x + h * x3)
            t = t + h / 6 * (t1 + 2 * t2 + 2 * t3 + t4)
            x = x + h / 6 * (x1 + 2 * x2 + 2 * x3 + x4)
        return t, x

    def invert(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Newton's method from the flow backwards, which is the inverse up to the error of the steps."""
        if not self.keeps_slices:
            return super().invert(t, x)
        with torch.no_grad():
            guess = self._flow(t, x, -1.0)[1]
        return t, newton(lambda moment, y: self.forward(moment, y)[1], x, guess, t)


@final
class Radial(nn.Module):
    """φ(t, y) = a + (y − a)(1 + β(t) e^{−r²/2}), r = |y − a|/ℓ: swells or shrinks space around a point.

    β(t) = 4u(1 − u) β, and −1 < β < e^{3/2}/2 ≈ 2.24 makes the map invertible: along a ray its slope is
    1 + β (1 − r²) e^{−r²/2}, and (1 − r²) e^{−r²/2} lies between −2e^{−3/2} and 1. Use it through `radial`.
    """

    def __init__(self, centre: Tensor, strength: Tensor, length: Tensor, span: Span) -> None:
        super().__init__()
        self.span = span
        for name, value in (("centre", centre), ("strength", strength), ("length", length)):
            if isinstance(value, nn.Parameter):
                setattr(self, name, value)
            else:
                self.register_buffer(name, value)

    centre: Tensor
    strength: Tensor
    length: Tensor

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        centre, strength, length = (value.to(y.dtype) for value in (self.centre, self.strength, self.length))
        offset = y - centre
        square = (offset / length).square().sum(-1, keepdim=True)
        return centre + offset * (1 + bump(t, self.span) * strength * torch.exp(-square / 2))

    def inverse(self, t: Tensor, x: Tensor) -> Tensor:
        """By bisection along each ray, and one step of Newton's for the gradient."""
        centre, strength, length = (value.to(x.dtype) for value in (self.centre, self.strength, self.length))
        offset = x - centre
        radius = offset.norm(dim=-1, keepdim=True)
        beta = bump(t, self.span) * strength
        with torch.no_grad():
            low, high = torch.zeros_like(radius), radius * (1 + 2 / (1 + beta.clamp(max=0)))
            for _ in range(60):
                middle = (low + high) / 2
                short = middle * (1 + beta * torch.exp(-((middle / length) ** 2) / 2)) < radius
                low, high = torch.where(short, middle, low), torch.where(short, high, middle)
            found = (low + high) / 2
        weight = torch.exp(-((found / length) ** 2) / 2)
        slope = 1 + beta * (1 - (found / length) ** 2) * weight
        found = found - (found * (1 + beta * weight) - radius) / slope
        tiny = torch.finfo(x.dtype).tiny
        scale = torch.where(radius > 0, found / radius.clamp(min=tiny), 1 / (1 + beta))
        return centre + offset * scale


def radial(centre: Tensor, strength: float | Tensor, length: float | Tensor = 1.0, span: Span = (0.0, 1.0)) -> Spatial:
    """A radial map around a point: see `Radial`.

    Args:
        centre: a, [d].
        strength: β, between −1 and 2.24.
        length: ℓ > 0.
        span: start and end of time.

    Raises:
        InputError: a strength or length out of these bounds.
    """
    strength, length = (
        value if isinstance(value, Tensor) else centre.detach().new_tensor(value) for value in (strength, length)
    )
    if not bool((strength > -1).all() and (strength < 2.24).all() and (length > 0).all()):
        what = f"a radial map needs a strength between -1 and 2.24 and a positive length, not {strength} and {length}"
        raise InputError(what, "radial", "Outside of these bounds the map folds.")
    made = Radial(centre, strength, length, span)
    return Spatial(made, made.inverse, span)


@final
class Coupling(nn.Module):
    """(y₁, y₂) ↦ (y₁, y₂ ⊙ exp(β(t) s(y₁)) + β(t) m(y₁)), β(t) = 4u(1 − u). Use it through `coupling`."""

    def __init__(self, scale: Callable[[Tensor], Tensor], shift: Callable[[Tensor], Tensor], kept: int, span: Span):
        super().__init__()
        self.scale, self.shift, self.kept, self.span = scale, shift, kept, span

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        first, second = y[..., : self.kept], y[..., self.kept :]
        size = bump(t, self.span)
        return torch.cat([first, second * torch.exp(size * self.scale(first)) + size * self.shift(first)], -1)

    def inverse(self, t: Tensor, x: Tensor) -> Tensor:
        first, second = x[..., : self.kept], x[..., self.kept :]
        size = bump(t, self.span)
        return torch.cat([first, (second - size * self.shift(first)) * torch.exp(-size * self.scale(first))], -1)


def coupling(
    scale: Callable[[Tensor], Tensor], shift: Callable[[Tensor], Tensor], kept: int, span: Span = (0.0, 1.0)
) -> Spatial:
    """A coupling map: the first coordinates stay, and say how the others are scaled and shifted.

    Args:
        scale: s, a callable or module from [..., kept] to [..., d − kept].
        shift: m, likewise.
        kept: how many coordinates stay.
        span: start and end of time.
    """
    made = Coupling(scale, shift, kept, span)
    return Spatial(made, made.inverse, span)


@final
class Warp(nn.Module):
    """τ(s) = s + length Σ_k a_k sin(π k u) / (π k) with a = c / (1 + Σ|c|), so that dt/ds > 0. See `time_warp`."""

    vectorised = True

    def __init__(self, coefficients: Tensor, span: Span) -> None:
        super().__init__()
        self.span = span
        if isinstance(coefficients, nn.Parameter):
            self.coefficients = coefficients
        else:
            self.register_buffer("coefficients", coefficients)

    coefficients: Tensor

    def _amplitudes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        modes = torch.arange(1, len(self.coefficients) + 1, dtype=t.dtype, device=t.device)
        return (self.coefficients / (1 + self.coefficients.abs().sum())).to(t.dtype), torch.pi * modes

    def forward(self, t: Tensor) -> Tensor:
        """τ at times [...]."""
        start, end = self.span
        a, waves = self._amplitudes(t)
        return t + (end - start) * SineSeries(a / waves, self.span)(t)  # in the dtype of t

    def velocity(self, t: Tensor) -> Tensor:
        start, end = self.span
        a, waves = self._amplitudes(t)
        return 1 + torch.cos(waves * ((t - start) / (end - start))[..., None]) @ a


def time_warp(coefficients: Tensor, span: Span = (0.0, 1.0)) -> Temporal:
    """A smooth time map with dt/ds = 1 + Σ_k a_k cos(π k u), a = c / (1 + Σ|c|).

    Args:
        coefficients: c, [modes]; any real numbers. An `nn.Parameter` stays one.
        span: start and end of time.

    Raises:
        InputError: coefficients that are not a vector.
    """
    if coefficients.ndim != 1:
        what = f"the coefficients of a time warp have shape {[*coefficients.shape]}"
        raise InputError(what, "time_warp", "Pass a vector [modes].")
    return Temporal(Warp(coefficients, span), None, span)


def affine_loop(exponent: Tensor, shift: Tensor | None = None, span: Span = (0.0, 1.0)) -> Affine:
    """x = exp(Σ_k X_k sin(π k u)) y + Σ_k c_k sin(π k u), a closed loop through the identity.

    Args:
        exponent: X, [modes, d, d]; antisymmetric matrices give rotations.
        shift: c, [modes, d]; None for zero.
        span: start and end of time.
    """
    path = None if shift is None else SineSeries(shift, span)
    return Affine(Exponential(SineSeries(exponent, span)), path, span)


def random_affine(
    dim: int,
    scale: float = 0.5,
    modes: int = 3,
    group: Literal["GL", "SO"] = "GL",
    shift: bool = True,
    span: Span = (0.0, 1.0),
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Affine:
    """A random loop of affine maps.

    Args:
        dim: d.
        scale: typical spectral norm of the exponent, and length of the shift.
        modes: number of Fourier modes, the k-th damped by 1/k.
        group: "GL", or "SO" for rotations.
        shift: whether c moves too.
        span: start and end of time.
        generator: of random numbers, on the CPU.
        dtype, device: of the result.
    """
    damping = scale / torch.arange(1, modes + 1, dtype=torch.float64) / modes**0.5
    exponent = torch.randn(modes, dim, dim, generator=generator, dtype=torch.float64) / (2 * dim**0.5)
    if group == "SO":
        exponent = (exponent - exponent.mT) / 2**0.5
    elif group != "GL":
        raise InputError(f"no random loops in {group!r}", "random_affine", "Use 'GL' or 'SO'.")
    vectors = torch.randn(modes, dim, generator=generator, dtype=torch.float64) / dim**0.5
    exponent, vectors = damping[:, None, None] * exponent, damping[:, None] * vectors
    c = vectors.to(dtype).to(device) if shift else None
    return affine_loop(exponent.to(dtype).to(device), c, span)


def random_diffeomorphism(
    dim: int,
    scale: float = 0.5,
    span: Span = (0.0, 1.0),
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Diffeomorphism:
    """A random nonlinear diffeomorphism of spacetime: an affine loop, a coupling, a radial map and a time warp.

    Args:
        dim: d. Without a second coordinate there is no coupling.
        scale: how far it moves points of size one; 0.5 is moderate.
        span, generator, dtype, device: as for `random_affine`.
    """

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).to(device)

    made: Diffeomorphism = random_affine(dim, scale, span=span, generator=generator, dtype=dtype, device=device)
    if dim > 1:
        kept = dim // 2
        weights = [scale * normal(dim - kept, kept) / kept**0.5 for _ in range(2)]
        made = made @ coupling(_TanhLayer(weights[0]), _TanhLayer(weights[1]), kept, span)
    made = made @ radial(
        normal(dim) / dim**0.5, min(scale, 0.9) * float(torch.tanh(normal(1))), float(dim) ** 0.5, span
    )
    return made @ time_warp(scale * normal(3), span)


@final
class _TanhLayer(nn.Module):
    """½ tanh(W y)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)

    weight: Tensor

    def forward(self, y: Tensor) -> Tensor:
        return torch.tanh(y @ self.weight.to(y.dtype).mT) / 2
