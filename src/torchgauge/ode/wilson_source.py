"""Where a Wilson line takes w(t) and b(t) from: callables of one time or of many, modules, samples, linear fields."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from torchgauge.errors import InputError
from torchgauge.ode.calculus import Path, map_times
from torchgauge.ode.coefficients import Given
from torchgauge.ode.errors import FieldError
from torchgauge.ode.fields import LinearField
from torchgauge.ode.paths import Sampled

KEPT_EDGES = 65  # of up to this many edges, times are kept between calls


class EdgesError(InputError):
    """Times that cannot be the ends of layers: fewer than two, not finite, or not in order."""


@final
@dataclass(frozen=True, eq=False)
class Edges:
    """The times where layers meet.

    Attributes:
        times: [L + 1], as given.
        values: the same numbers, [L + 1] float64.
        kept: the same as a key, by which times are kept between calls; None for many edges, and where they want a
            gradient.
    """

    times: Tensor
    values: np.ndarray
    kept: tuple[float, ...] | None = None

    @classmethod
    def of(cls, edges: Tensor | Sequence[float], reverse: bool = False) -> Edges:
        """Checked edges.

        Raises:
            EdgesError: with the position at fault.
        """
        where, remedy = "edges", "Pass at least two times, all increasing, or all decreasing for lines back in time."
        times = edges if isinstance(edges, Tensor) else torch.tensor(edges, dtype=torch.float64)
        times = times if times.is_floating_point() else times.to(torch.float64)
        if times.ndim != 1 or len(times) < 2:
            what = f"the edges of layers must be times [L + 1] with L ≥ 1, got shape {[*times.shape]}"
            raise EdgesError(what, where, remedy)
        numbers = times.tolist()
        if not all(map(isfinite, numbers)):
            k = next(k for k, value in enumerate(numbers) if not isfinite(value))
            raise EdgesError(f"the edges of layers must be finite, got {numbers[k]}", f"edges[{k}]", remedy)
        sign = 1 if numbers[1] > numbers[0] else -1
        if not all(sign * a < sign * b for a, b in pairwise(numbers)):
            k = next(k for k, (a, b) in enumerate(pairwise(numbers)) if not sign * a < sign * b)
            what = f"the edges of layers must be in order, and {numbers[k + 1]} follows {numbers[k]}"
            raise EdgesError(what, f"edges[{k}:{k + 2}]", remedy)
        if reverse:
            numbers, times = numbers[::-1], times.flip(0)
        kept = None if times.requires_grad or len(numbers) > KEPT_EDGES else tuple(numbers)
        return cls(times, np.asarray(numbers), kept)

    def __len__(self) -> int:
        return len(self.values)

    def at(self, layers: np.ndarray, fractions: np.ndarray) -> Tensor:
        """Times at fractions of layers, [n] float64, differentiable in the edges."""
        if not self.times.requires_grad:
            return torch.from_numpy(self.values[layers] + np.diff(self.values)[layers] * fractions)
        times, index = self.times.to("cpu", torch.float64), torch.from_numpy(layers)
        return times[index] + times.diff()[index] * torch.from_numpy(fractions)

    def lengths(self, layers: np.ndarray, fractions: np.ndarray) -> Tensor:
        """The lengths of fractions of layers, likewise."""
        if not self.times.requires_grad:
            return torch.from_numpy(np.diff(self.values)[layers] * fractions)
        return self.times.to("cpu", torch.float64).diff()[torch.from_numpy(layers)] * torch.from_numpy(fractions)


@final
class Source:
    """w, or [[w, b], [0, 0]], at any times, with one axis for a batch of fields.

    Args:
        w, b: as in `wilson`.
        edges: where layers meet.
        first: from the rounding of times to times [n] that will be asked for anyway, for the first look at w.

    Attributes:
        size: d, or d + 1 with b.
        batch: axes of a batch of fields, before the matrix.
        affine: whether there is a b.
        knots: times at which w or b is not smooth.
        dtype, device: of w.
        eps: rounding of the times that w takes.
        requires_grad: whether w or b depend on something that wants a gradient.
        vectorised: whether w takes many times, so that they cost less than as many calls.

    Raises:
        FieldError: values that are no square matrices, or a b that does not fit.
    """

    def __init__(
        self,
        w: LinearField | Path | Tensor,
        b: Path | Tensor | None,
        edges: Edges,
        first: Callable[[float], Tensor] | None = None,
    ) -> None:
        parts: list[object] = [w, b]
        if isinstance(w, LinearField):
            if b is not None:
                raise FieldError("a linear field has a b of its own", "b", "Pass b=None, or w and b as two callables.")
            parts = [w, w.coefficients]
            if isinstance(w.coefficients, Given):
                parts += [w.coefficients.w, w.coefficients.b]
        self.affine = b is not None or (isinstance(w, LinearField) and not w.homogeneous)
        self.knots = sorted({float(t) for part in parts if isinstance(part, Sampled) for t in part.times})
        self._real, self._place = _times_like(parts, edges.times)
        self.eps = torch.finfo(self._real).eps
        if first is None:
            start, end = edges.values[0], edges.values[-1]
            times = torch.tensor([start + (end - start) * u for u in (0.11, 0.37, 0.82)], dtype=torch.float64)
        else:
            times = first(self.eps)
        trial = self._cast(times)
        if isinstance(w, LinearField):
            field, self.vectorised = w, True
            self._pair = field.sample if self.affine else lambda t: (field.sample(t)[0], None)
            value = self._pair(trial)
        else:
            of_w, at_w = _vectorised(w, trial, "w")
            self.vectorised = of_w is w or isinstance(w, Tensor)
            of_b, at_b = (None, None) if b is None else _vectorised(b, trial, "b")
            self._pair = lambda t: (of_w(t), None if of_b is None else of_b(t))
            value = at_w, at_b
        _check(*value, len(trial))
        self.requires_grad = any(part is not None and part.requires_grad for part in value)
        self._seen = None if first is None else (times, value)
        self.size = value[0].shape[-1] + self.affine
        self.batch, self.dtype, self.device = value[0].shape[1:-2], value[0].dtype, value[0].device

    @property
    def matrices(self) -> int:
        """Bytes of w at one time."""
        return max(1, self.batch.numel()) * self.size**2 * self.dtype.itemsize

    def _cast(self, t: Tensor) -> Tensor:
        """Times in the dtype and on the device in which w takes them."""
        return t.to(self._place, self._real)

    def sample(self, t: Tensor) -> Tensor:
        """Matrices [n, fields, size, size] at times [n]."""
        seen, self._seen = self._seen, None
        if seen is not None and torch.equal(seen[0], t):
            w, b = seen[1]
        else:
            w, b = self._pair(self._cast(t))
            _check(w, b, len(t))
        if b is not None:
            top = torch.cat([w, b.to(w.dtype)[..., None]], -1)
            w = nn.functional.pad(top, (0, 0, 0, 1))
        return w.reshape(len(t), -1, self.size, self.size).contiguous()


def _times_like(parts: list[object], edges: Tensor) -> tuple[torch.dtype, torch.device]:
    """A module's own dtype and device, else those of a tensor, else those of the edges."""
    for part in parts:
        tensors = [*part.parameters(), *part.buffers()] if isinstance(part, nn.Module) else [part]
        for tensor in tensors:
            if isinstance(tensor, Tensor) and (tensor.is_floating_point() or tensor.is_complex()):
                return tensor.dtype.to_real(), tensor.device
    return edges.dtype, edges.device


def _vectorised(path: Path | Tensor, trial: Tensor, name: str) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """A function from times [n] to values [n, ...], whichever of the two conventions the path follows, and a trial."""
    if isinstance(path, Tensor):
        return lambda t: path.expand(len(t), *path.shape), path.expand(len(trial), *path.shape)
    if not callable(path):
        what = f"{name} must be a tensor, a callable of time, a module or a LinearField, and is a {type(path).__name__}"
        raise FieldError(what, name, "Wrap samples in Sampled(times, values).")
    declared = getattr(path, "vectorised", None)
    value = _at_many(path, trial) if declared is None else path(trial) if declared else None
    if value is not None:
        return path, value
    return lambda t: map_times(path, t), map_times(path, trial)


def _at_many(path: Path, trial: Tensor) -> Tensor | None:
    """path(times [n]) if its entries are the values at single times, else None."""
    n = len(trial)
    try:
        many = path(trial)
        if many.ndim < 2 or len(many) != n:
            return None
        if n in many.shape[1:]:  # the first axis may be of that length by chance
            one = path(trial[1:2])
            if one.shape != (1, *many.shape[1:]) or not torch.allclose(many[1:2], one, rtol=1e-3, equal_nan=True):
                return None
    except Exception:  # a function of one time may fail on many in any way; true errors come again
        return None
    return many


def _check(w: Tensor, b: Tensor | None, n: int) -> None:
    """Refuses values that make no linear field."""
    if not isinstance(w, Tensor) or not (w.is_floating_point() or w.is_complex()):
        raise FieldError("w(t) must be a tensor of real or complex numbers", "w of a Wilson line", "Return [d, d].")
    if w.ndim < 3 or len(w) != n or w.shape[-1] != w.shape[-2]:
        what = f"w(t) must be a square matrix [d, d] at every time, and has shape {[*w.shape]} at {n} times"
        remedy = "Return [n, d, d] for times [n], or [d, d] for one time; [n, ..., d, d] for a batch of fields."
        raise FieldError(what, "w of a Wilson line", remedy)
    if b is not None and b.shape != w.shape[:-1]:
        what = f"b(t) must be a vector {[*w.shape[1:-1]]} like the columns of w, and has shape {[*b.shape[1:]]}"
        raise FieldError(what, "b of a Wilson line", "Return [n, d] for times [n], or [d] for one time.")
