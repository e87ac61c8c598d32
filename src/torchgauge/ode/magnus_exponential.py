"""exp of many small matrices, in products alone, so that its gradient costs two products for each."""

from __future__ import annotations

from functools import lru_cache
from math import ceil, factorial, log2, sqrt

import torch
from torch import Tensor

from torchgauge.ode.wilson_base import transformed

DEGREES = (2, 4, 6, 9, 12, 16)  # those that Paterson and Stockmeyer's scheme reaches at the best cost


@lru_cache(maxsize=16)
def _radii(eps: float) -> tuple[float, ...]:
    """For each degree the largest norm at which the rest of the Taylor series is below rounding."""
    return tuple((eps * factorial(m + 1)) ** (1 / (m + 1)) * 0.9 for m in DEGREES)


def exponential(x: Tensor) -> Tensor:
    """exp x by scaling, a Taylor polynomial and squaring, to rounding.

    Args:
        x: [..., d, d], best of norm below about one.

    Returns:
        [..., d, d].
    """
    if transformed():
        return torch.linalg.matrix_exp(x)
    norm = float(x.detach().abs().sum(-2).amax()) if x.numel() else 0.0
    if not norm < 1e3:
        return torch.linalg.matrix_exp(x)
    radii = _radii(torch.finfo(x.dtype).eps)
    squarings = max(0, ceil(log2(norm / radii[-1]))) if norm > 0 else 0
    norm /= 2**squarings
    degree = next(m for m, radius in zip(DEGREES, radii, strict=True) if norm <= radius * (1 + 1e-12))
    result = _taylor(x / 2**squarings, degree)
    for _ in range(squarings):
        result = result @ result
    return result


def _taylor(x: Tensor, degree: int) -> Tensor:
    """Σ_{k ≤ degree} x^k / k!, as a polynomial in x^q whose coefficients are polynomials of degree below q."""
    q = ceil(sqrt(degree))
    powers = [torch.eye(x.shape[-1], dtype=x.dtype, device=x.device), x]
    while len(powers) <= q:
        powers.append(powers[-1] @ x)

    def block(j: int) -> Tensor:
        last = min(q - 1, degree - j * q)
        total = powers[0] / factorial(j * q)
        for i in range(1, last + 1):
            total = total + powers[i] / factorial(j * q + i)
        return total

    blocks = degree // q
    if degree % q == 0:  # the highest block is one number
        result = block(blocks - 1) + powers[q] / factorial(degree)
        rest = range(blocks - 2, -1, -1)
    else:
        result, rest = block(blocks), range(blocks - 1, -1, -1)
    for j in rest:
        result = block(j) + powers[q] @ result
    return result
