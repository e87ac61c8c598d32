"""Derivatives and integrals of user callables.

All derivatives are taken with `torch.func.vjp`, so that they nest, can be batched with vmap and can be differentiated
again. Directional derivatives are the derivative of the vjp in its cotangent: for small tensors that is several times
faster than torch's forward mode, which runs a Python decomposition for every operation.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import vjp, vmap

Path = Callable[[Tensor], Tensor]


def velocity(path: Path, t: Tensor) -> Tensor:
    """The derivative of a path at t.

    A path that has a method `velocity` is asked; any other is differentiated.

    Args:
        path: maps a time of shape [] to [*shape], or, if vectorised, [...] to [..., *shape].
        t: time, of a shape that the path takes.

    Returns:
        The derivative, in the shape of path(t).
    """
    own = getattr(path, "velocity", None)
    if own is not None:
        return own(t)
    return push(path, (t,), (torch.ones_like(t),))[1]


def with_velocity(path: Path, t: Tensor) -> tuple[Tensor, Tensor]:
    """A path and its derivative at t; a path that has a method `with_velocity` computes both at once."""
    own = getattr(path, "with_velocity", None)
    return (path(t), velocity(path, t)) if own is None else own(t)


def reverse(function: Callable[..., Any], *point: Any) -> tuple[Any, Callable[[Any], Any]]:
    """The value of a function, and the map from cotangents of the value to a tuple of cotangents of its arguments."""
    value, pull = vjp(function, *point)[:2]
    return value, pull


def push(function: Callable[..., Any], point: tuple[Tensor, ...], direction: tuple[Tensor, ...]) -> tuple[Any, Any]:
    """The value of a function and its derivative along a direction.

    Args:
        function: takes the tensors of `point`, returns a tensor or a tuple of tensors.
        point, direction: tensors of the same shapes.

    Returns:
        value and derivative, of the same structure.
    """
    value, pull = reverse(function, *point)
    zero = tuple(torch.zeros_like(part) for part in value) if isinstance(value, tuple) else torch.zeros_like(value)
    return value, reverse(pull, zero)[1](direction)[0]


def sample(path: Path, times: Tensor) -> Tensor:
    """The values of a path at many times, [n, *shape].

    Paths with the attribute `vectorised` are called once. Others are batched with `torch.func.vmap`, and evaluated one
    time after the other if their code does not allow that (branches on the value of t).

    Args:
        path: see `velocity`.
        times: [n].
    """
    if getattr(path, "vectorised", False):
        return path(times)
    return map_times(path, times)


def map_times(function: Callable[[Tensor], Any], times: Tensor) -> Any:
    """Evaluates a function of one time at many; tuples of tensors are allowed.

    Args:
        function: maps a time of shape [] to a tensor or a tuple of tensors.
        times: [n], n ≥ 1.

    Returns:
        The values, each stacked to [n, ...].
    """
    try:
        return vmap(function)(times)
    except (RuntimeError, NotImplementedError):  # what vmap cannot trace; a true error comes again below
        values = [function(t) for t in times]
    if isinstance(values[0], tuple):
        return tuple(torch.stack(parts) for parts in zip(*values, strict=True))
    return torch.stack(values)


def per_sample(function: Callable[[Tensor, Tensor], Any], t: Tensor, x: Tensor) -> Any:
    """Calls function(t, x) when every sample may have a time of its own.

    Args:
        function: takes a time [] and points [n, d], row by row; with the attribute `vectorised`, times [*batch] too.
        t: [] for one time, or [*batch].
        x: [*batch, d].

    Returns:
        What the function returns, tensors of shape [*batch, ...].
    """
    if t.ndim == 0 or getattr(function, "vectorised", False):
        return function(t, x)
    batch = torch.broadcast_shapes(t.shape, x.shape[:-1])
    times, points = t.expand(batch).reshape(-1), x.expand(*batch, x.shape[-1]).reshape(-1, 1, x.shape[-1])
    try:
        values = vmap(function)(times, points)
    except (RuntimeError, NotImplementedError):
        rows = [function(s, y) for s, y in zip(times, points, strict=True)]
        if isinstance(rows[0], tuple):
            values = tuple(torch.stack(parts) for parts in zip(*rows, strict=True))
        else:
            values = torch.stack(rows)
    if isinstance(values, tuple):
        return tuple(value.reshape(*batch, *value.shape[2:]) for value in values)
    return values.reshape(*batch, *values.shape[2:])


def jacobian(function: Callable[..., Any], *arguments: Tensor) -> Any:
    """The Jacobian, in its last argument, of a map that acts on every sample alone.

    The rows are stacked along the batch, which is faster here than to batch cotangents with vmap.

    Args:
        function: takes the arguments, returns points [*batch, d], or times [*batch] and points [*batch, d].
        arguments: tensors [] or [*batch], and last the points x [*batch, d].

    Returns:
        [*batch, d, d], or the pair [*batch, d] and [*batch, d, d].
    """
    *fixed, x = arguments
    batch, d = x.shape[:-1], x.shape[-1]
    points = x.reshape(-1, d)
    n = len(points)

    def rows_of(count: int) -> tuple[Any, Any]:
        at = [value if value.ndim == 0 else value.expand(batch).reshape(-1).repeat(count) for value in fixed]
        return reverse(lambda y: function(*at, y), points.repeat(count, 1))

    value, pull = rows_of(d)
    unit = torch.eye(d, dtype=x.dtype, device=x.device).repeat_interleave(n, 0)
    if not isinstance(value, tuple):
        return pull(unit)[0].reshape(d, *batch, d).movedim(0, -2)
    space = pull((torch.zeros_like(value[0]), unit))[0].reshape(d, *batch, d).movedim(0, -2)
    value, pull = rows_of(1)
    time = pull((torch.ones_like(value[0]), torch.zeros_like(value[1])))[0].reshape(*batch, d)
    return time, space


def material_derivative(function: Callable[[Tensor, Tensor], Any], t: Tensor, x: Tensor, flow: Tensor) -> Any:
    """(∂_t + F·∂) of a function along a flow.

    Args:
        function: takes (t, x), returns a tensor or a tuple of tensors.
        t: [].
        x: [..., d].
        flow: F(t, x), [..., d].
    """
    return push(function, (t, x), (torch.ones_like(t), flow))[1]


@lru_cache(maxsize=32)
def _legendre(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(nodes)


def quadrature(span: tuple[float, float], nodes: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Gauss–Legendre times and weights on an interval, exact for polynomials of degree 2·nodes − 1.

    Args:
        span: the interval.
        nodes: how many.
        like: gives dtype and device.

    Returns:
        times [nodes] and weights [nodes].
    """
    points, weights = _legendre(nodes)
    start, end = span
    times = torch.as_tensor(points, dtype=like.dtype, device=like.device) * ((end - start) / 2) + (start + end) / 2
    return times, torch.as_tensor(weights, dtype=like.dtype, device=like.device) * ((end - start) / 2)


def known(flag: Tensor) -> bool | None:
    """The value of a flag; None inside a transformation (vmap) that has no single value."""
    try:
        return bool(flag)
    except RuntimeError:
        return None
