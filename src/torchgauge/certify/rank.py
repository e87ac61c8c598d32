"""Ranks of large row spaces in float64: QR as the rows come, then one exact singular value decomposition.

A Gram matrix would square the condition number, so none is ever formed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# below this, relative to the largest, a singular value may count as zero; directions that are only soft (a
# normalisation's ε of 1e-6 and more gives about 0.3 ε) stay above it
ZERO = 1e-8
# below this there is only rounding, whose ratios mean nothing
NOISE = 1e-13


class RowSpace:
    """The row space of a tall matrix, kept as a square triangle.

    Args:
        columns: number of columns, P.
    """

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.rows = 0
        self._triangle = torch.zeros(0, columns, dtype=torch.float64)
        self._waiting: list[Tensor] = []
        self._waiting_rows = 0

    def add(self, block: Tensor) -> None:
        """Take in rows, [n, P]."""
        self.rows += block.shape[0]
        self._waiting.append(block)
        self._waiting_rows += block.shape[0]
        # few large factorisations cost less than many small ones, and memory stays within a few P×P
        if self._waiting_rows >= max(2 * self.columns, 512):
            self._compress()

    def _compress(self) -> None:
        if self._waiting:
            stacked = torch.cat([self._triangle, *self._waiting])
            tall = stacked.shape[0] > stacked.shape[1]
            self._triangle = torch.linalg.qr(stacked, mode="r").R if tall else stacked
            self._waiting, self._waiting_rows = [], 0

    @property
    def triangle(self) -> Tensor:
        """R with RᵀR = JᵀJ, [at most P, P]."""
        self._compress()
        return self._triangle


@dataclass(frozen=True)
class Kernel:
    """The kernel of a matrix.

    Attributes:
        dimension: its dimension.
        gap: log10 of the ratio of the singular values on both sides of the cut.
        basis: orthonormal basis, [P, dimension], when it was asked for.
    """

    dimension: int
    gap: float
    basis: Tensor | None = None


def cut(values: Tensor) -> tuple[int, float]:
    """How many singular values vanish, and the gap in decades.

    The cut is the widest gap below which everything is under `ZERO`.

    Args:
        values: singular values, in any order.
    """
    if values.numel() == 0:
        return 0, math.inf
    s = values.sort(descending=True).values
    if float(s[0]) <= 0.0:
        return s.numel(), math.inf
    s = (s / s[0]).clamp_min(1e-17)
    below = int((s <= ZERO).sum())
    if below == 0:
        return 0, math.log10(float(s[-1]) / 1e-16)
    first = s.numel() - below
    best, ratio = first, float(s[first - 1] / s[first])
    for i in range(first + 1, s.numel()):
        if float(s[i - 1]) <= NOISE:
            break
        if float(s[i - 1] / s[i]) > ratio:
            best, ratio = i, float(s[i - 1] / s[i])
    return s.numel() - best, math.log10(ratio)


def column_scales(norms: Tensor) -> Tensor:
    """Scales that equilibrate columns, with a floor: a column of rounding errors must not be blown up."""
    top = float(norms.max()) if norms.numel() else 1.0
    return 1.0 / norms.clamp_min(max(1e-5 * top, 1e-300))


def kernel(triangle: Tensor, scales: Tensor, *, basis: bool = False) -> Kernel:
    """The kernel of R diag(scales), exact.

    Args:
        triangle: R, [n, P].
        scales: [P].
        basis: whether to compute an orthonormal basis of the kernel, in the scaled coordinates.
    """
    columns = triangle.shape[1]
    if columns == 0:
        return Kernel(0, math.inf, torch.zeros(0, 0, dtype=torch.float64) if basis else None)
    scaled = triangle * scales
    missing = columns - scaled.shape[0]
    if missing > 0:
        scaled = torch.cat([scaled, scaled.new_zeros(missing, columns)])
    if not basis:
        dimension, gap = cut(torch.linalg.svdvals(scaled))
        return Kernel(dimension, gap)
    _, values, rows = torch.linalg.svd(scaled)
    dimension, gap = cut(values)
    return Kernel(dimension, gap, rows[columns - dimension :].T.contiguous())


def span(vectors: Tensor) -> Tensor:
    """An orthonormal basis of the span of the columns, [P, rank].

    Args:
        vectors: [P, n]; columns of any size.
    """
    norms = vectors.norm(dim=0)
    keep = norms > 1e-14 * float(norms.max()) if norms.numel() else norms.bool()
    vectors = vectors[:, keep] / norms[keep]
    if vectors.shape[1] == 0:
        return vectors.new_zeros(vectors.shape[0], 0)
    if vectors.shape[1] > vectors.shape[0]:
        # more generators than parameters: they overlap, and their left factor is small
        left, values, _ = torch.linalg.svd(vectors, full_matrices=False)
    else:
        q, r = torch.linalg.qr(vectors)
        inner, values, _ = torch.linalg.svd(r)
        left = q @ inner
    zeros, _ = cut(values)
    return left[:, : values.numel() - zeros].contiguous()
