"""The matrix groups of single axes: sampling, Lie algebra, dimension, action along an axis.

An element is a batch of square matrices [..., n, n] in float64 (one per index that the frame depends on).
"""

from __future__ import annotations

import torch
from torch import Tensor

VECTOR_KINDS = ("GL", "O", "O1", "complex", "turn")


def dimension(kind: str, n: int) -> int:
    """Dimension of the group on R^n."""
    return {
        "GL": n * n,
        "O": n * (n - 1) // 2,
        "O1": (n - 1) * (n - 2) // 2,
        "complex": 2,
        "turn": 1,
    }[kind]


def sample(kind: str, n: int, batch: tuple[int, ...], scale: float, generator: torch.Generator | None) -> Tensor:
    """Random elements [*batch, n, n]; `scale` is the spread of log singular values and rotation angles.

    Rotations are uniform (Haar) for scale ≥ 1, so both components of O(n) and GL(n) occur.
    """
    if kind == "GL":
        left, right = _haar((*batch, n), generator), _haar((*batch, n), generator)
        spread = torch.rand(*batch, n, generator=generator, dtype=torch.float64) * 2 - 1
        return (left * torch.exp(scale * spread)[..., None, :]) @ right
    if kind == "O":
        return _haar((*batch, n), generator)
    if kind == "O1":
        frame = complement(n)
        turn = frame @ _haar((*batch, n - 1), generator) @ frame.T if n > 1 else torch.zeros(*batch, 1, 1)
        return turn.double() + torch.full((n, n), 1.0 / n, dtype=torch.float64)
    assert n == 2, "complex numbers and rotations act on planes"
    angle = 2 * torch.pi * torch.rand(batch, generator=generator, dtype=torch.float64)
    if kind == "turn":
        return complex_matrix(torch.cos(angle), torch.sin(angle))
    radius = torch.exp(scale * (torch.rand(batch, generator=generator, dtype=torch.float64) * 2 - 1))
    return complex_matrix(radius * torch.cos(angle), radius * torch.sin(angle))


def tangent(kind: str, n: int, coordinates: Tensor) -> Tensor:
    """Lie algebra element [..., n, n] from coordinates [..., dimension]."""
    batch = coordinates.shape[:-1]
    if kind == "GL":
        return coordinates.reshape(*batch, n, n)
    if kind == "O":
        return _antisymmetric(coordinates, n)
    if kind == "O1":
        frame = complement(n)
        return frame @ _antisymmetric(coordinates, n - 1) @ frame.T
    if kind == "turn":
        return complex_matrix(torch.zeros_like(coordinates[..., 0]), coordinates[..., 0])
    return complex_matrix(coordinates[..., 0], coordinates[..., 1])


def complement(n: int) -> Tensor:
    """Orthonormal basis [n, n−1] of the vectors whose entries sum to zero (Helmert)."""
    basis = torch.zeros(n, n - 1, dtype=torch.float64)
    for k in range(1, n):
        basis[:k, k - 1] = 1.0
        basis[k, k - 1] = -k
    return basis / basis.norm(dim=0)


def complex_matrix(real: Tensor, imaginary: Tensor) -> Tensor:
    """The real 2 × 2 matrices of complex numbers."""
    return torch.stack([torch.stack([real, -imaginary], -1), torch.stack([imaginary, real], -1)], -2)


def _antisymmetric(coordinates: Tensor, n: int) -> Tensor:
    rows, cols = torch.triu_indices(n, n, 1)
    matrix = coordinates.new_zeros(*coordinates.shape[:-1], n * n)
    matrix = matrix.index_add(-1, rows * n + cols, coordinates)
    matrix = matrix.index_add(-1, cols * n + rows, -coordinates)
    return matrix.reshape(*coordinates.shape[:-1], n, n)


def _haar(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Uniform orthogonal matrices [*shape, n], n the last entry of `shape`."""
    gauss = torch.randn(*shape, shape[-1], generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(gauss)
    return q * torch.sign(torch.diagonal(r, dim1=-2, dim2=-1))[..., None, :]
