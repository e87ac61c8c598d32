"""Vector fields on spacetime: any callable, linear ones, and fields with kicks.

All are modules with torchdiffeq's calling convention F(t, x), so that a user's module drops in and a field drops into
any solver.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import final

import torch
from torch import Tensor, nn

from torchgauge.ode.calculus import Path
from torchgauge.ode.coefficients import Coefficients, Given
from torchgauge.ode.errors import FieldError
from torchgauge.ode.paths import Span


@final
class VectorField(nn.Module):
    """dx/dt = F(t, x) for t in a span of time.

    Args:
        function: F, a callable or module that takes a time [] and points [..., d], and returns velocities [..., d].
        span: start and end of time, 0 and T in the paper.

    Raises:
        FieldError: when called, if F returns another shape than that of the points.
    """

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], span: Span = (0.0, 1.0)) -> None:
        super().__init__()
        self.function = function
        self.span = checked_span(span)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """F(t, x): velocities [..., d] of points [..., d] at the time []."""
        velocities = self.function(t, x)
        if not isinstance(velocities, Tensor) or velocities.shape != x.shape:
            got = [*velocities.shape] if isinstance(velocities, Tensor) else type(velocities).__name__
            what = f"a vector field must return velocities in the shape {[*x.shape]} of its points, and returned {got}"
            raise FieldError(what, type(self.function).__name__, "F takes (t, x), in this order, and returns dx/dt.")
        return velocities


@final
class LinearField(nn.Module):
    """dx/dt = w(t) x + b(t) (paper, section 2).

    Args:
        w: weights [d, d]: a tensor, a callable of the time [], a module, or a path such as `Sampled`. A batch of fields
            [..., d, d] acts on points [..., d].
        b: biases [d], in the same ways; None for zero.
        span: start and end of time.

    Attributes:
        dim: d.
        dtype, device: of w; times are handed to w and b in these.

    Raises:
        FieldError: shapes that do not fit.
    """

    def __init__(self, w: Path | Tensor, b: Path | Tensor | None = None, span: Span = (0.0, 1.0)) -> None:
        super().__init__()
        self._set(Given(w, b), span)

    @classmethod
    def of(cls, coefficients: Coefficients, span: Span) -> LinearField:
        """The field with given coefficients."""
        field = cls.__new__(cls)
        nn.Module.__init__(field)
        field._set(coefficients, span)
        return field

    def _set(self, coefficients: Coefficients, span: Span) -> None:
        self.coefficients = coefficients
        self.span = checked_span(span)
        like = self._stored()
        start = torch.tensor(self.span[0], dtype=torch.float64) if like is None else like.new_tensor(self.span[0])
        with torch.no_grad():
            w, b = coefficients.at(start)  # without parameters in float64, which loses nothing
        self.dim, self._dtype, self._device = w.shape[-1], w.dtype, w.device
        self.homogeneous = b is None

    def _stored(self) -> Tensor | None:
        """Some floating-point parameter or buffer, if there is one."""
        tensors = chain(self.coefficients.parameters(), self.coefficients.buffers())
        return next((tensor for tensor in tensors if tensor.is_floating_point()), None)

    @property
    def dtype(self) -> torch.dtype:
        like = self._stored()
        return self._dtype if like is None else like.dtype

    @property
    def device(self) -> torch.device:
        like = self._stored()
        return self._device if like is None else like.device

    def w(self, t: Tensor) -> Tensor:
        """The weight [..., d, d] at the time []."""
        return self.coefficients.at(t)[0]

    def b(self, t: Tensor) -> Tensor:
        """The bias [..., d] at the time []; zeros for a homogeneous field."""
        w, b = self.coefficients.at(t)
        return w.new_zeros(w.shape[:-1]) if b is None else b

    def sample(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """w [n, ..., d, d] and b [n, ..., d] at times [n]."""
        w, b = self.coefficients.sample(times)
        return w, w.new_zeros(w.shape[:-1]) if b is None else b

    def affine(self, times: Tensor) -> Tensor:
        """The matrices [[w, b], [0, 0]] at times [n], [n, ..., d + 1, d + 1]; their Wilson line is (32)."""
        w, b = self.sample(times)
        top = torch.cat([w, b[..., None].expand(*w.shape[:-1], 1)], -1)
        return torch.cat([top, torch.zeros_like(top[..., :1, :])], -2)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """w(t) x + b(t): velocities [..., d] of points [..., d] at the time []."""
        w, b = self.coefficients.at(t.to(self.dtype))
        if x.shape[-1] != self.dim:
            what = f"a linear field on R^{self.dim} was given points of shape {[*x.shape]}"
            raise FieldError(what, "x", f"The last axis must have size {self.dim}.")
        w = w.to(x.dtype)
        image = x @ w.mT if w.ndim == 2 else (w @ x[..., None])[..., 0]
        return image if b is None else image + b.to(x.dtype)


@final
@dataclass(frozen=True)
class Jump:
    """A kick at one moment: x becomes map(x).

    Attributes:
        time: when.
        map: takes points [..., d] right before, returns the points right after.
    """

    time: float
    map: Callable[[Tensor], Tensor]


@final
class ImpulsiveField(nn.Module):
    """A field with kicks: an activation between the layers of a net, or a δ(t − t₀) in the field.

    Args:
        field: the field between kicks; a callable will do.
        jumps: the kicks, strictly inside of the span.

    Raises:
        FieldError: two kicks at the same time, or one that is not inside of the span.
    """

    def __init__(self, field: Callable[[Tensor, Tensor], Tensor], jumps: Sequence[Jump]) -> None:
        super().__init__()
        inner = as_field(field)
        if isinstance(inner, ImpulsiveField):
            inner, jumps = inner.field, (*inner.jumps, *jumps)
        self.field: VectorField | LinearField = inner
        self.span = inner.span
        self.jumps = tuple(sorted(jumps, key=lambda jump: jump.time))
        times = [jump.time for jump in self.jumps]
        if any(not self.span[0] < t < self.span[1] for t in times) or len({*times}) < len(times):
            what = f"kicks must have different times inside of {self.span}, and have {times}"
            raise FieldError(what, "jumps", "Compose kicks at one time into one; apply those at the ends by yourself.")
        self.maps = nn.ModuleList([jump.map for jump in self.jumps if isinstance(jump.map, nn.Module)])

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """F(t, x) between kicks."""
        return self.field(t, x)


SmoothField = VectorField | LinearField
Field = VectorField | LinearField | ImpulsiveField


def as_field(function: Callable[[Tensor, Tensor], Tensor], span: Span | None = None) -> Field:
    """Any F(t, x) as a field; fields are returned as they are.

    Args:
        function: a field, or a callable or module F(t, x).
        span: of a callable that is not a field yet; (0, 1) by default.

    Raises:
        FieldError: a field whose own span is another one.
    """
    if isinstance(function, VectorField | LinearField | ImpulsiveField):
        if span is not None and not same_span(span, function.span):
            what = f"the field lives on {function.span}, and {span} was asked for"
            raise FieldError(what, "span", "Give the field this span when you make it.")
        return function
    if not callable(function):
        raise FieldError(f"a field must be callable, and is a {type(function).__name__}", "", "Pass F(t, x).")
    return VectorField(function, span or (0.0, 1.0))


def as_linear(field: object, purpose: str) -> LinearField:
    """A linear field, for what only these can do.

    Raises:
        FieldError: any other field.
    """
    if not isinstance(field, LinearField):
        what = f"{purpose} needs a linear field dx/dt = w(t) x + b(t), and got a {type(field).__name__}"
        raise FieldError(what, "field", "Make one with LinearField(w, b).")
    return field


def checked_span(span: Span) -> Span:
    """A span of time as a pair of floats.

    Raises:
        FieldError: an end that is not after the start.
    """
    start, end = (float(end) for end in span)
    if not start < end:
        raise FieldError(f"a span of time must have its end after its start, and is {span}", "span", "Use (0, T).")
    return start, end


def same_span(a: Span, b: Span) -> bool:
    """Whether two spans agree up to rounding."""
    size = max(abs(a[1] - a[0]), abs(a[0]), abs(a[1]))
    return abs(a[0] - b[0]) + abs(a[1] - b[1]) <= 1e-12 * size
