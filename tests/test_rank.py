"""Ranks in float64: rows as they come, kernels behind badly scaled columns, cuts."""

from __future__ import annotations

import pytest
import torch

from torchgauge.certify.rank import RowSpace, column_scales, cut, kernel, kernel_basis, span


def test_row_space_keeps_the_gram_matrix() -> None:
    torch.manual_seed(0)
    blocks = [torch.randn(70, 40, dtype=torch.float64) for _ in range(20)]
    space = RowSpace(40)
    for block in blocks:
        space.add(block)
    whole = torch.cat(blocks)
    assert space.rows == 1400
    assert space.triangle.shape == (40, 40)
    assert torch.allclose(space.triangle.T @ space.triangle, whole.T @ whole)


def test_kernel_with_badly_scaled_columns() -> None:
    torch.manual_seed(0)
    a = torch.randn(60, 12, dtype=torch.float64)
    a[:, 3] = a[:, 1] + 2 * a[:, 2]
    scales = 10.0 ** torch.linspace(-4, 4, 12, dtype=torch.float64)
    matrix = a * scales
    matrix = matrix * column_scales(matrix.norm(dim=0).clamp_min(1e-3))
    found = kernel(matrix)
    assert found.dimension == 1
    assert found.gap > 5
    basis = kernel_basis(matrix, found)
    assert basis.shape == (12, 1)
    assert float((matrix @ basis).norm()) < 1e-12


def test_column_of_rounding_is_not_blown_up() -> None:
    norms = torch.tensor([1.0, 1e-17, 2.0], dtype=torch.float64)
    assert float(column_scales(norms).max()) <= 1e5


def test_cut_leaves_soft_directions_alone() -> None:
    hard = torch.tensor([1.0, 0.3, 3e-6, 1e-16, 3e-17])
    assert cut(hard).dimension == 2
    full = cut(torch.tensor([1.0, 0.5, 0.1]))
    assert (full.dimension, full.gap) == (0, pytest.approx(15.0, abs=0.1))
    assert cut(torch.zeros(3)).dimension == 3


def test_span_of_overlapping_vectors() -> None:
    torch.manual_seed(0)
    v = torch.randn(20, 3, dtype=torch.float64)
    both = torch.cat([v, 1e-6 * v, v @ torch.randn(3, 30, dtype=torch.float64)], dim=1)
    assert span(both).shape == (20, 3)
    assert span(torch.zeros(20, 2, dtype=torch.float64)).shape == (20, 0)
