"""Smooth paths: functions of time with values in any space of tensors.

Every path here is *vectorised*: it maps times [...] to values [..., *shape].
"""

from __future__ import annotations

from typing import Literal, final

import torch
from torch import Tensor, nn

from torchgauge.errors import InputError
from torchgauge.ode.calculus import velocity

Span = tuple[float, float]


def smoothstep(u: Tensor) -> Tensor:
    """35u⁴ − 84u⁵ + 70u⁶ − 20u⁷: from 0 at u ≤ 0 to 1 at u ≥ 1, with three derivatives zero at both ends."""
    u = u.clamp(0, 1)
    return u**4 * (35 + u * (-84 + u * (70 - 20 * u)))


def smoothstep_rate(u: Tensor) -> Tensor:
    """The derivative of `smoothstep`, 140 u³ (1 − u)³."""
    u = u.clamp(0, 1)
    return 140 * (u * (1 - u)) ** 3


def bump(t: Tensor, span: Span = (0.0, 1.0)) -> Tensor:
    """4u(1 − u), u the fraction of time gone by: zero at both ends, 1 in the middle."""
    start, end = span
    u = (t - start) / (end - start)
    return 4 * u * (1 - u)


@final
class Sampled(nn.Module):
    """A path through given values; outside of the samples it is continued by its first and last piece.

    Args:
        times: [n], increasing.
        values: [n, *shape]. An `nn.Parameter` stays one, so that a sampled path can be trained.
        kind: "linear", or "cubic" for the natural cubic spline, which has two continuous derivatives.

    Raises:
        InputError: times that do not increase, or do not fit the values.
    """

    vectorised = True

    def __init__(self, times: Tensor, values: Tensor, kind: Literal["linear", "cubic"] = "cubic") -> None:
        super().__init__()
        if times.ndim != 1 or len(times) < 2 or values.shape[:1] != times.shape:
            what = f"samples need times [n] and values [n, ...] with n ≥ 2, got {[*times.shape]} and {[*values.shape]}"
            raise InputError(what, "Sampled", "Stack the values along the first axis, one for each time.")
        if not bool((times[1:] > times[:-1]).all()):
            first = int((times[1:] <= times[:-1]).nonzero()[0])
            raise InputError("the times of a sampled path must increase", f"times[{first}:{first + 2}]", "Sort them.")
        if kind not in ("linear", "cubic"):
            raise InputError(f"no interpolation is called {kind!r}", "Sampled", "Use 'linear' or 'cubic'.")
        self.kind = kind
        self.register_buffer("times", times.detach().to(values.device, values.dtype))
        if isinstance(values, nn.Parameter):
            self.values = values
        else:
            self.register_buffer("values", values)
        if kind == "cubic":
            self.register_buffer("_slopes", _spline_slopes(self.times))

    times: Tensor
    values: Tensor
    _slopes: Tensor

    def forward(self, t: Tensor) -> Tensor:
        """Values [..., *shape] at times [...]."""
        k = (torch.searchsorted(self.times, t.detach().contiguous(), right=True) - 1).clamp(0, len(self.times) - 2)
        step = self.times[k + 1] - self.times[k]
        rank = self.values.ndim - 1
        u = ((t - self.times[k]) / step).reshape(*t.shape, *([1] * rank))
        left, right = self.values[k], self.values[k + 1]
        if self.kind == "linear":
            return left + u * (right - left)
        slopes = torch.tensordot(self._slopes, self.values, 1)
        step = step.reshape(u.shape)
        a = step * slopes[k] - (right - left)
        b = (right - left) - step * slopes[k + 1]
        return left + u * (right - left) + u * (1 - u) * ((1 - u) * a + u * b)


def _spline_slopes(times: Tensor) -> Tensor:
    """The matrix [n, n] from the values of a natural cubic spline to its slopes at the knots."""
    h = times[1:] - times[:-1]
    n = len(times)
    system, right = times.new_zeros(n, n), times.new_zeros(n, n)
    system[0, 0], system[0, 1] = 2 / h[0], 1 / h[0]
    right[0, 0], right[0, 1] = -3 / h[0] ** 2, 3 / h[0] ** 2
    for i in range(1, n - 1):
        a, b = h[i - 1], h[i]
        system[i, i - 1], system[i, i], system[i, i + 1] = 1 / a, 2 / a + 2 / b, 1 / b
        right[i, i - 1], right[i, i], right[i, i + 1] = -3 / a**2, 3 / a**2 - 3 / b**2, 3 / b**2
    system[-1, -2], system[-1, -1] = 1 / h[-1], 2 / h[-1]
    right[-1, -2], right[-1, -1] = -3 / h[-1] ** 2, 3 / h[-1] ** 2
    return torch.linalg.solve(system, right)


@final
class SineSeries(nn.Module):
    """Σ_k a_k sin(π k u), u the fraction of time gone by: a path that is zero at both ends.

    Args:
        coefficients: a, [modes, *shape]. An `nn.Parameter` stays one.
        span: start and end of time.
    """

    vectorised = True

    def __init__(self, coefficients: Tensor, span: Span = (0.0, 1.0)) -> None:
        super().__init__()
        if isinstance(coefficients, nn.Parameter):
            self.coefficients = coefficients
        else:
            self.register_buffer("coefficients", coefficients)
        self.span = span

    coefficients: Tensor

    def velocity(self, t: Tensor) -> Tensor:
        start, end = self.span
        waves = torch.pi * torch.arange(1, len(self.coefficients) + 1, dtype=t.dtype, device=t.device) / (end - start)
        rates = waves * torch.cos(waves * (t - start)[..., None])
        return torch.tensordot(rates.to(self.coefficients.dtype), self.coefficients, 1)

    def forward(self, t: Tensor) -> Tensor:
        """Values [..., *shape] at times [...]."""
        start, end = self.span
        modes = torch.arange(1, len(self.coefficients) + 1, dtype=t.dtype, device=t.device)
        u = ((t - start) / (end - start))[..., None]
        # sin(π k u) is written so that it is exactly zero at u = 1 too
        signs = 1 - 2 * ((modes + 1) % 2)
        waves = torch.where(u <= 0.5, torch.sin(torch.pi * modes * u), signs * torch.sin(torch.pi * modes * (1 - u)))
        return torch.tensordot(waves.to(self.coefficients.dtype), self.coefficients, 1)


@final
class Exponential(nn.Module):
    """exp X(t): invertible matrices from any path of matrices X; the identity where X is zero.

    Args:
        exponent: a vectorised path with values [d, d].
    """

    vectorised = True

    def __init__(self, exponent: nn.Module) -> None:
        super().__init__()
        self.exponent = exponent

    def forward(self, t: Tensor) -> Tensor:
        """Matrices [..., d, d] at times [...]."""
        return torch.linalg.matrix_exp(self.exponent(t))

    def velocity(self, t: Tensor) -> Tensor:
        return self.with_velocity(t)[1]

    def with_velocity(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """exp X and d/dt exp X, the upper blocks of exp [[X, Ẋ], [0, X]], exactly."""
        x, dx = self.exponent(t), velocity(self.exponent, t)
        d = x.shape[-1]
        block = torch.cat([torch.cat([x, dx], -1), torch.cat([torch.zeros_like(x), x], -1)], -2)
        both = torch.linalg.matrix_exp(block)[..., :d, :]
        return both[..., :d], both[..., d:]
