"""Ranks of large row spaces in float64: QR as the rows come, then one exact singular value decomposition.

A Gram matrix would square the condition number, so none is ever formed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy import linalg
from torch import Tensor

# below this, relative to the largest, a singular value may count as zero; directions that are only soft (a
# normalisation's ε of 1e-6 and more gives about 0.3 ε) stay above it
ZERO = 1e-8
# decades between the singular values on both sides of the cut, below which the count is not trusted
CLEAR = 2.0
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
        between: a number between those two values.
    """

    dimension: int
    gap: float
    between: float = 0.0


def cut(values: Tensor) -> Kernel:
    """How many singular values vanish, and the gap in decades.

    The cut is the widest gap below which everything is under `ZERO`.

    Args:
        values: singular values, in any order.
    """
    if values.numel() == 0:
        return Kernel(0, math.inf)
    s = values.sort(descending=True).values
    top = float(s[0])
    if top <= 0.0:
        return Kernel(s.numel(), math.inf)
    s = (s / top).clamp_min(1e-17)
    below = int((s <= ZERO).sum())
    if below == 0:
        return Kernel(0, math.log10(float(s[-1]) / 1e-16))
    first = s.numel() - below
    best, ratio = first, float(s[first - 1] / s[first])
    for i in range(first + 1, s.numel()):
        if float(s[i - 1]) <= NOISE:
            break
        if float(s[i - 1] / s[i]) > ratio:
            best, ratio = i, float(s[i - 1] / s[i])
    between = top * math.sqrt(float(s[best - 1] * s[best].clamp_min(1e-16)))
    return Kernel(s.numel() - best, math.log10(ratio), between)


def column_scales(norms: Tensor) -> Tensor:
    """Scales that equilibrate columns, with a floor: a column of rounding errors must not be blown up."""
    top = float(norms.max()) if norms.numel() else 1.0
    return 1.0 / norms.clamp_min(max(1e-5 * top, 1e-300))


def kernel(matrix: Tensor) -> Kernel:
    """The kernel of a matrix [n, P], by its exact singular values."""
    values = torch.linalg.svdvals(matrix) if matrix.numel() else matrix.new_zeros(0)
    missing = matrix.shape[1] - values.numel()
    return cut(torch.cat([values, values.new_zeros(missing)]))


def kernel_basis(matrix: Tensor, found: Kernel) -> Tensor:
    """An orthonormal basis of the kernel, [P, dimension].

    Subspace iteration with (AᵀA + δ²)⁻¹, δ in the gap: one QR of the stacked matrix [A; δ] and triangular solves, for
    a small part of the cost of singular vectors.
    """
    columns = matrix.shape[1]
    if found.dimension == 0:
        return matrix.new_zeros(columns, 0)
    if found.dimension == columns:
        return torch.eye(columns, dtype=matrix.dtype)
    r = torch.linalg.qr(torch.cat([matrix, found.between * torch.eye(columns, dtype=matrix.dtype)]), mode="r").R
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(columns, found.dimension, generator=draw, dtype=matrix.dtype)
    # where the values part by little, the basis is not well defined, and many steps do not make it so
    for _ in range(min(12, max(3, math.ceil(16 / max(found.gap, 0.5))))):
        x = torch.linalg.solve_triangular(r.T, x, upper=False)
        x = torch.linalg.qr(torch.linalg.solve_triangular(r, x, upper=True)).Q
    return x


def svd(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors [P, min(P, n)] and singular values."""
    try:
        left, values, _ = torch.linalg.svd(matrix, full_matrices=False)
    except torch.linalg.LinAlgError:
        # divide and conquer may fail on many equal singular values; the plain iteration does not
        arrays = linalg.svd(matrix.numpy(), full_matrices=False, lapack_driver="gesvd")
        left, values = torch.from_numpy(arrays[0]), torch.from_numpy(arrays[1])
    return left, values


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
        left, values = svd(vectors)
    else:
        q, r = torch.linalg.qr(vectors)
        inner, values = svd(r)
        left = q @ inner
    return left[:, : values.numel() - cut(values).dimension].contiguous()
