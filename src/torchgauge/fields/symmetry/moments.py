"""Moments of single entries of a parameter, from its declared law."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from torchgauge.fields.laws import Blocks, Complex, Law, Normal, Sphere, Torch
from torchgauge.fields.laws.base import Shape


def marginal_moment(law: Law, shape: Shape, order: int) -> Tensor | None:
    """E[w^order] of every entry of a real parameter [*shape], float64; None where it is not known in closed form.

    Nothing is said about whether entries are independent (see `entries_independent`).
    """
    if isinstance(law, Normal):
        return _normal(law, shape, order)
    if isinstance(law, Sphere):
        return _sphere(law, shape, order)
    if isinstance(law, Blocks):
        parts = [marginal_moment(part, piece, order) for piece, part in _pieces(law, shape)]
        known = [p for p in parts if p is not None]
        return torch.cat(known, law.axis % len(shape)) if len(known) == len(parts) else None
    if isinstance(law, Torch) and order <= 2 and not (law.distribution.batch_shape or law.distribution.event_shape):
        d: Any = law.distribution
        value = float(d.mean) if order == 1 else float(d.variance) + float(d.mean) ** 2
        return torch.full(shape, value, dtype=torch.float64) if math.isfinite(value) else None
    value = law.moment(order)
    return None if value is None else torch.full(shape, float(value), dtype=torch.float64)


def entries_independent(law: Law, shape: Shape) -> bool:
    """Whether all entries are independent (not necessarily alike)."""
    if isinstance(law, Normal):
        return True
    if isinstance(law, Complex):
        return entries_independent(law.real, shape) and entries_independent(law.imaginary, shape)
    if isinstance(law, Blocks):
        return all(entries_independent(part, piece) for piece, part in _pieces(law, shape))
    return bool(shape) and all(law.independent(shape, axis) for axis in range(len(shape)))


def isotropic(law: Law) -> bool:
    """Whether the law is that of independent centred normal entries of one width: invariant under all of O(entries)."""
    if not isinstance(law, Normal) or isinstance(law.std, Tensor) or isinstance(law.mean, Tensor):
        return False
    return law.mean == 0


def cumulants(law: Law, shape: Shape) -> tuple[Tensor, Tensor, Tensor] | None:
    """Mean, variance and fourth cumulant of every entry, the latter exactly zero for a normal law."""
    raw = [marginal_moment(law, shape, k) for k in (1, 2, 3, 4)]
    m1, m2, m3, m4 = raw
    if m1 is None or m2 is None or m3 is None or m4 is None:
        return None
    variance = m2 - m1**2
    fourth = m4 - 4 * m3 * m1 - 3 * m2**2 + 12 * m2 * m1**2 - 6 * m1**4
    if isinstance(law, Normal):
        fourth = torch.zeros_like(fourth)
    # what rounding leaves of a difference is no cumulant
    fourth = torch.where(fourth.abs() < 1e-12 * (variance**2 + m1**4), torch.zeros_like(fourth), fourth)
    return m1, variance, fourth


def _normal(law: Normal, shape: Shape, order: int) -> Tensor | None:
    if torch.as_tensor(law.mean).is_complex():
        return None
    mean = torch.as_tensor(law.mean, dtype=torch.float64).expand(shape)
    std = torch.as_tensor(law.std, dtype=torch.float64).expand(shape)
    total = torch.zeros(shape, dtype=torch.float64)
    for k in range(0, order + 1, 2):
        total = total + math.comb(order, k) * math.prod(range(1, k, 2)) * std**k * mean ** (order - k)
    return total


def _sphere(law: Sphere, shape: Shape, order: int) -> Tensor:
    """E[w^2k] = r^2k (2k−1)!! / (n (n+2) … (n+2k−2)) on the sphere in R^n."""
    n = math.prod(shape) if law.axis is None else shape[law.axis % len(shape)]
    value = 0.0
    if order % 2 == 0:
        value = law.radius**order * math.prod(range(1, order, 2)) / math.prod(range(n, n + order, 2))
    return torch.full(shape, value, dtype=torch.float64)


def _pieces(law: Blocks, shape: Shape) -> list[tuple[Shape, Law]]:
    axis = law.axis % len(shape)
    return [((*shape[:axis], size, *shape[axis + 1 :]), part) for size, part in law.parts]
