"""Where the w(t) and b(t) of a linear field come from: one protocol, evaluated at many times at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn

from torchgauge.ode.calculus import sample
from torchgauge.ode.errors import FieldError

Path = Callable[[Tensor], Tensor]


class Coefficients(nn.Module, ABC):
    """The pair (w, b) of dx/dt = w(t) x + b(t)."""

    @abstractmethod
    def sample(self, times: Tensor) -> tuple[Tensor, Tensor | None]:
        """w [n, ..., d, d] and b [n, ..., d] (None where it is zero) at times [n]."""

    def at(self, t: Tensor) -> tuple[Tensor, Tensor | None]:
        """w [..., d, d] and b [..., d] at one time []."""
        w, b = self.sample(t[None])
        return w[0], None if b is None else b[0]


@final
class Constant(nn.Module):
    """A path that stays where it is.

    Args:
        value: [*shape]; an `nn.Parameter` stays one.
    """

    vectorised = True

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        if isinstance(value, nn.Parameter):
            self.value = value
        else:
            self.register_buffer("value", value)

    value: Tensor

    def forward(self, t: Tensor) -> Tensor:
        return self.value.expand(*t.shape, *self.value.shape)

    def velocity(self, t: Tensor) -> Tensor:
        return torch.zeros_like(self.forward(t))


@final
class Given(Coefficients):
    """w and b as the user gave them: tensors, callables of time, or modules."""

    def __init__(self, w: Path | Tensor, b: Path | Tensor | None) -> None:
        super().__init__()
        for name, value in (("w", w), ("b", b)):
            if isinstance(value, Tensor) and not (value.is_floating_point() or value.is_complex()):
                raise FieldError(f"{name} holds {value.dtype}, which is no real number", name, "Convert it to float64.")
            if not (isinstance(value, Tensor) or callable(value) or (name == "b" and value is None)):
                what = f"{name} must be a tensor, a callable of time or a module, and is a {type(value).__name__}"
                raise FieldError(what, f"{name} of a linear field", "Wrap samples in Sampled(times, values).")
        self.w = Constant(w) if isinstance(w, Tensor) else w
        self.b = Constant(b) if isinstance(b, Tensor) else b

    def sample(self, times: Tensor) -> tuple[Tensor, Tensor | None]:
        w = sample(self.w, times)
        b = None if self.b is None else sample(self.b, times)
        return _checked(w, b, times.shape)

    def at(self, t: Tensor) -> tuple[Tensor, Tensor | None]:
        return _checked(self.w(t), None if self.b is None else self.b(t), t.shape)


def _checked(w: Tensor, b: Tensor | None, lead: torch.Size) -> tuple[Tensor, Tensor | None]:
    """Refuses coefficients whose shapes do not make a linear field."""
    shape = [*w.shape[len(lead) :]]
    if len(shape) < 2 or shape[-1] != shape[-2]:
        what = f"w(t) must be a square matrix [d, d], and has shape {shape}"
        raise FieldError(what, "w of a linear field", "Return [d, d], or [..., d, d] for a batch of fields.")
    if b is not None and (b.ndim <= len(lead) or b.shape[-1] != shape[-1]):
        what = f"b(t) must be a vector [{shape[-1]}] like the columns of w, and has shape {[*b.shape[len(lead) :]]}"
        raise FieldError(what, "b of a linear field", "Return [d].")
    return w, b
