"""Affine diffeomorphisms x = G(t) y + c(t): the gauge transformations of linear fields.

An affine map is the matrix [[G, c], [0, 1]]; composition, inverse and (25) are then products of matrices.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from torchgauge.ode.calculus import Path, map_times, sample, velocity, with_velocity
from torchgauge.ode.coefficients import Coefficients
from torchgauge.ode.diffeomorphism import Diffeomorphism, Tangent
from torchgauge.ode.errors import DiffeomorphismError, FoldError
from torchgauge.ode.paths import Span


def affine_matrix(linear: Tensor, shift: Tensor | None = None) -> Tensor:
    """The matrices [[G, c], [0, 1]], [..., d + 1, d + 1], of G [..., d, d] and c [..., d] (None for zero)."""
    c = torch.zeros_like(linear[..., :1]) if shift is None else shift[..., None].expand(*linear.shape[:-1], 1)
    top = torch.cat([linear, c], -1)
    last = torch.zeros_like(top[..., :1, :])
    return torch.cat([top, torch.cat([last[..., :-1], torch.ones_like(last[..., -1:])], -1)], -2)


@final
class Affine(Diffeomorphism):
    """x = G(t) y + c(t), with G = 1 and c = 0 at both ends (paper, (25)).

    Args:
        matrix: G, a path of invertible matrices [d, d].
        shift: c, a path of vectors [d]; None for zero.
        span: start and end of time.

    Attributes:
        path: the path of the matrices [[G, c], [0, 1]].
    """

    def __init__(self, matrix: Path, shift: Path | None = None, span: Span = (0.0, 1.0)) -> None:
        super().__init__(span)
        self.path: Path = _Bordered(matrix, shift)

    @classmethod
    def along(cls, path: Path, span: Span) -> Affine:
        """The diffeomorphism whose matrices [[G, c], [0, 1]] form a given path."""
        made = cls.__new__(cls)
        Diffeomorphism.__init__(made, span)
        made.path = path
        return made

    @property
    def linear(self) -> bool:
        """Whether c is zero by construction."""
        return getattr(self.path, "linear", False)

    def at(self, times: Tensor) -> Tensor:
        """The matrices [[G, c], [0, 1]] at times [n], [n, d + 1, d + 1]."""
        return sample(self.path, times)

    def with_rates(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """These matrices and their derivatives at times [n], [n, d + 1, d + 1] each."""
        if getattr(self.path, "vectorised", False):
            return with_velocity(self.path, times)
        return map_times(lambda t: with_velocity(self.path, t), times)

    def forward(self, s: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return s, _act(self._matrix(s).to(y.dtype), y)

    def tangent(self, s: Tensor, y: Tensor) -> Tangent:
        if s.ndim == 0:
            pair = with_velocity(self.path, s)
        else:
            pair = tuple(part.unflatten(0, s.shape) for part in self.with_rates(s.reshape(-1)))
        matrix, rate = (part.to(y.dtype) for part in pair)
        return Tangent(s, _act(matrix, y), torch.ones_like(s), None, _act(rate, y), matrix[..., :-1, :-1])

    def invert(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return t, _act(torch.linalg.inv(self._matrix(t).to(x.dtype)), x)

    def inverse(self) -> Affine:
        return Affine.along(_Inverted(self), self.span)

    def __matmul__(self, other: Diffeomorphism) -> Diffeomorphism:
        if not isinstance(other, Affine):
            return super().__matmul__(other)
        if self.span != other.span:
            raise DiffeomorphismError(f"maps on {self.span} and {other.span} cannot be composed", "", "Use one span.")
        return Affine.along(_Product(self, other), self.span)

    def _matrix(self, s: Tensor) -> Tensor:
        return self.path(s) if s.ndim == 0 else self.at(s.reshape(-1)).unflatten(0, s.shape)


def _act(matrix: Tensor, y: Tensor) -> Tensor:
    """G y + c for points [..., d] and bordered matrices [d + 1, d + 1] or [..., d + 1, d + 1]."""
    linear, shift = matrix[..., :-1, :-1], matrix[..., :-1, -1]
    return (y @ linear.mT if linear.ndim == 2 else (linear @ y[..., None])[..., 0]) + shift


class _AffinePath(nn.Module):
    """A path of bordered matrices; `linear` if the shift is zero by construction."""

    vectorised: bool
    linear: bool


@final
class _Bordered(_AffinePath):
    """[[G, c], [0, 1]] of two paths."""

    def __init__(self, matrix: Path, shift: Path | None) -> None:
        super().__init__()
        self.matrix, self.shift = matrix, shift
        self.linear = shift is None
        self.vectorised = all(path is None or getattr(path, "vectorised", False) for path in (matrix, shift))

    def forward(self, t: Tensor) -> Tensor:
        return affine_matrix(self.matrix(t), None if self.shift is None else self.shift(t))

    def velocity(self, t: Tensor) -> Tensor:
        return self.with_velocity(t)[1]

    def with_velocity(self, t: Tensor) -> tuple[Tensor, Tensor]:
        matrix, rate = with_velocity(self.matrix, t)
        shift, drift = (None, None) if self.shift is None else with_velocity(self.shift, t)
        moving = affine_matrix(rate, drift)
        return affine_matrix(matrix, shift), torch.cat([moving[..., :-1, :], torch.zeros_like(moving[..., -1:, :])], -2)


@final
class _Inverted(_AffinePath):
    """The inverse matrices."""

    def __init__(self, of: Affine) -> None:
        super().__init__()
        self.of = of
        self.linear = of.linear
        self.vectorised = getattr(of.path, "vectorised", False)

    def forward(self, t: Tensor) -> Tensor:
        return torch.linalg.inv(self.of.path(t))

    def velocity(self, t: Tensor) -> Tensor:
        return self.with_velocity(t)[1]

    def with_velocity(self, t: Tensor) -> tuple[Tensor, Tensor]:
        matrix, rate = with_velocity(self.of.path, t)
        inverse = torch.linalg.inv(matrix)
        return inverse, -inverse @ rate @ inverse


@final
class _Product(_AffinePath):
    """The products outer · inner."""

    def __init__(self, outer: Affine, inner: Affine) -> None:
        super().__init__()
        self.outer, self.inner = outer, inner
        self.linear = outer.linear and inner.linear
        self.vectorised = all(getattr(map.path, "vectorised", False) for map in (outer, inner))

    def forward(self, t: Tensor) -> Tensor:
        return self.outer.path(t) @ self.inner.path(t)

    def velocity(self, t: Tensor) -> Tensor:
        return self.with_velocity(t)[1]

    def with_velocity(self, t: Tensor) -> tuple[Tensor, Tensor]:
        (outer, rate), (inner, drift) = with_velocity(self.outer.path, t), with_velocity(self.inner.path, t)
        return outer @ inner, rate @ inner + outer @ drift


@final
class Gauged(Coefficients):
    """(25): w' = G⁻¹ w G − G⁻¹ Ġ and b' = G⁻¹ [b + w c − ċ], that is A' = Γ⁻¹ A Γ − Γ⁻¹ Γ̇ for bordered matrices.

    Args:
        coefficients: (w, b).
        gauge: Γ = (G, c).
    """

    def __init__(self, coefficients: Coefficients, gauge: Affine) -> None:
        super().__init__()
        self.coefficients, self.gauge = coefficients, gauge

    def sample(self, times: Tensor) -> tuple[Tensor, Tensor | None]:
        w, b = self.coefficients.sample(times)
        bias = torch.zeros_like(w[..., :1]) if b is None else b[..., None].expand(*w.shape[:-1], 1)
        gauge, rate = (part.to(w.dtype) for part in self.gauge.with_rates(times))
        if gauge.shape[-1] != w.shape[-1] + 1:
            what = f"a gauge transformation of R^{gauge.shape[-1] - 1} cannot act on a field on R^{w.shape[-1]}"
            raise DiffeomorphismError(what, "G(t)", f"G must have shape [{w.shape[-1]}, {w.shape[-1]}].")
        extra = w.ndim - 3  # a batch of fields under one gauge transformation
        gauge, rate = (m.reshape(len(times), *([1] * extra), *m.shape[1:]) if m.ndim == 3 else m for m in (gauge, rate))
        frame = gauge[..., :-1, :-1]
        try:
            new = torch.linalg.solve(frame, torch.cat([w, bias], -1) @ gauge - rate[..., :-1, :])
        except torch.linalg.LinAlgError as error:
            flat = torch.linalg.svdvals(frame)[..., -1].reshape(len(times), -1).amin(1)
            moment = float(times[int(flat.argmin())])
            what = f"the gauge transformation G(t) is singular at t = {moment:.6g}"
            raise FoldError(what, f"t = {moment:.6g}", "G must stay invertible: make it smaller.") from error
        return new[..., :-1], None if b is None and self.gauge.linear else new[..., -1]


@final
class Slowed(Coefficients):
    """(20): w' = τ̇ w(τ), b' = τ̇ b(τ).

    Args:
        coefficients: (w, b).
        tau: the time map, a vectorised path or one of a single time.
    """

    def __init__(self, coefficients: Coefficients, tau: Path) -> None:
        super().__init__()
        self.coefficients, self.tau = coefficients, tau

    def sample(self, times: Tensor) -> tuple[Tensor, Tensor | None]:
        rate = sample(lambda t: velocity(self.tau, t), times)
        w, b = self.coefficients.sample(sample(self.tau, times))
        w = rate.to(w.dtype).reshape(-1, *([1] * (w.ndim - 1))) * w
        return w, None if b is None else rate.to(b.dtype).reshape(-1, *([1] * (b.ndim - 1))) * b
