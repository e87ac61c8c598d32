"""Choosing a point on the gauge orbit of a linear field in closed form, and drawing points at random.

Take any path P(t) of affine matrices with P(0) = 1 and P(T) = W_{T:0}. Then Γ(t) = W_{t:0} P(t)⁻¹ is a gauge
transformation, and takes (w, b) to Ṗ P⁻¹.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from torchgauge.ode.affine import Affine
from torchgauge.ode.calculus import velocity
from torchgauge.ode.coefficients import Coefficients, Given
from torchgauge.ode.families import random_affine, random_diffeomorphism
from torchgauge.ode.fields import Field, LinearField, as_field, as_linear
from torchgauge.ode.lines import LinePath, layer_lines
from torchgauge.ode.logarithm import principal_logarithm, refuse_negative_axis
from torchgauge.ode.paths import Span
from torchgauge.ode.pullback import pullback


@final
@dataclass(frozen=True)
class GaugeFixed:
    """A field in a chosen gauge.

    Attributes:
        field: the same input-output map, in that gauge.
        gauge: the transformation that leads there: `pullback(original, gauge)` is `field`.
    """

    field: LinearField
    gauge: Affine


def total_line(field: LinearField) -> Tensor:
    """The affine Wilson line over the whole span, [[W_{T:0}, β], [0, 1]]: x(T) = W x(0) + β."""
    field = as_linear(field, "a total Wilson line")
    edges = torch.tensor(field.span, dtype=field.dtype, device=field.device)
    return layer_lines(field, edges)[0]


def straight_line_gauge(field: LinearField) -> GaugeFixed:
    """The gauge in which every point moves uniformly on a straight line, where (45) is zero: P = 1 + u (W_{T:0} − 1).

    Its field is w = w₀ (1 + t w₀)⁻¹ with w₀ = (W_{T:0} − 1)/T, b = (1 + t w₀)⁻¹ β/T.

    Raises:
        GribovError: W_{T:0} has an eigenvalue on (−∞, 0]; this gauge exists exactly when it has none.
    """
    total = total_line(field)
    refuse_negative_axis(total[..., :-1, :-1], "straight lines")
    return _fixed(field, _Chord(total, field.span))


def constant_gauge(field: LinearField) -> GaugeFixed:
    """The gauge in which w and b do not depend on time: P = exp(u log W_{T:0}), the logarithm being the principal one.

    Raises:
        GribovError: W_{T:0} has an eigenvalue on (−∞, 0], so that it has no principal logarithm. A real logarithm all
            the same exists if and only if Jordan blocks of negative eigenvalues come in equal pairs (Culver 1966), as
            for a half turn, and is then not unique.
    """
    total = total_line(field)
    refuse_negative_axis(total[..., :-1, :-1], "constant coefficients")
    log = principal_logarithm(total)
    start, end = field.span
    rate = log / (end - start)
    constant = LinearField.of(Given(rate[..., :-1, :-1], rate[..., :-1, -1]), field.span)
    return GaugeFixed(constant, _gauge_to(field, _OneParameter(log, field.span)))


def _fixed(field: LinearField, path: _Chord) -> GaugeFixed:
    """The field Ṗ P⁻¹."""
    return GaugeFixed(LinearField.of(_RightVelocity(path), field.span), _gauge_to(field, path))


def _gauge_to(field: LinearField, path: nn.Module) -> Affine:
    """Γ(t) = W_{t:0} P(t)⁻¹."""
    return Affine.along(_Quotient(LinePath(field), path), field.span)


@final
class _Chord(nn.Module):
    """1 + u (M − 1), u the fraction of time gone by."""

    vectorised = True

    def __init__(self, end: Tensor, span: Span) -> None:
        super().__init__()
        self.span = span
        self.register_buffer("end", end, persistent=False)

    end: Tensor

    def forward(self, t: Tensor) -> Tensor:
        start, end = self.span
        eye = torch.eye(self.end.shape[-1], dtype=self.end.dtype, device=self.end.device)
        return eye + ((t - start) / (end - start))[..., None, None] * (self.end - eye)

    def velocity(self, t: Tensor) -> Tensor:
        eye = torch.eye(self.end.shape[-1], dtype=self.end.dtype, device=self.end.device)
        return ((self.end - eye) / (self.span[1] - self.span[0])).expand(*t.shape, *eye.shape)


@final
class _OneParameter(nn.Module):
    """exp(u L)."""

    vectorised = True

    def __init__(self, log: Tensor, span: Span) -> None:
        super().__init__()
        self.span = span
        self.register_buffer("log", log, persistent=False)

    log: Tensor

    def forward(self, t: Tensor) -> Tensor:
        start, end = self.span
        return torch.linalg.matrix_exp(((t - start) / (end - start))[..., None, None] * self.log)

    def velocity(self, t: Tensor) -> Tensor:
        return self.log / (self.span[1] - self.span[0]) @ self.forward(t)


@final
class _RightVelocity(Coefficients):
    """(w, b) of Ṗ P⁻¹."""

    def __init__(self, path: _Chord) -> None:
        super().__init__()
        self.path = path

    def sample(self, times: Tensor) -> tuple[Tensor, Tensor | None]:
        times = times.to(self.path.end.dtype)
        rate = torch.linalg.solve(self.path(times), self.path.velocity(times), left=False)
        return rate[..., :-1, :-1], rate[..., :-1, -1]


@final
class _Quotient(nn.Module):
    """W P⁻¹ of two paths."""

    vectorised = True

    def __init__(self, line: LinePath, path: nn.Module) -> None:
        super().__init__()
        self.line, self.path = line, path

    def forward(self, t: Tensor) -> Tensor:
        return torch.linalg.solve(self.path(t), self.line(t), left=False)

    def velocity(self, t: Tensor) -> Tensor:
        here = self.forward(t)
        return torch.linalg.solve(self.path(t), self.line.velocity(t) - here @ velocity(self.path, t), left=False)


def sample_orbit(
    field: Callable[[Tensor, Tensor], Tensor],
    count: int,
    dim: int | None = None,
    scale: float = 0.5,
    generator: torch.Generator | None = None,
) -> list[Field]:
    """Random fields with the same input-output map.

    Args:
        field: a linear field, moved by random affine loops and so linear again; or any other, moved by random nonlinear
            diffeomorphisms with a time warp.
        count: how many.
        dim: d; needed for fields that are not linear.
        scale: how far they move.
        generator: of random numbers, on the CPU.
    """
    source = as_field(field)
    if isinstance(source, LinearField):
        like = {"span": source.span, "generator": generator, "dtype": source.dtype, "device": source.device}
        return [pullback(source, random_affine(source.dim, scale, **like)) for _ in range(count)]
    if dim is None:
        raise TypeError("sample_orbit needs dim, the dimension of the points, for a field that is not linear")
    stored = next(
        (p for p in (*source.parameters(), *source.buffers()) if p.is_floating_point()), torch.zeros(1).double()
    )
    like = {"span": source.span, "generator": generator, "dtype": stored.dtype, "device": stored.device}
    return [pullback(source, random_diffeomorphism(dim, scale, **like)) for _ in range(count)]
