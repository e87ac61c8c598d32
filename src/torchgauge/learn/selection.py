"""Parts of a generator family's algebra: which of its coordinates give conserved quantities.

A family has algebra coordinates of some shape (gauge.py). A selection is a subspace of them with a basis. `embed` takes
coefficients [count] of the basis to algebra coordinates; `read` is its transpose, which takes the derivative of a
number by the algebra coordinates to the derivatives by the coefficients.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import isqrt, prod
from typing import final

import torch
from torch import Tensor


@final
@dataclass(frozen=True)
class Selection:
    """A subspace of algebra coordinates [*shape], the same in every copy.

    Attributes:
        shape: of the algebra coordinates; the last dimension is one copy.
        kind: "all"; "symmetric" or "diagonal" matrices (one copy is an n×n matrix); "real" (scales of rotary pairs,
            without their phases); "ones" (one copy is a vector, and the selection its multiples of (1, …, 1)).
    """

    shape: tuple[int, ...]
    kind: str

    @cached_property
    def table(self) -> tuple[Tensor, Tensor, int]:
        """Of each non-zero entry of one copy's basis the places in the copy and in the basis; the basis' size."""
        n = self.shape[-1] if self.shape else 1
        if self.kind == "all":
            return torch.arange(n), torch.arange(n), n
        if self.kind == "real":
            return torch.arange(n // 2), torch.arange(n // 2), n // 2
        if self.kind == "ones":
            return torch.arange(n), torch.zeros(n, dtype=torch.long), 1
        size = isqrt(n)
        if self.kind == "diagonal":
            return torch.arange(size) * (size + 1), torch.arange(size), size
        rows, columns = torch.triu_indices(size, size)
        basis, off = torch.arange(len(rows)), rows != columns
        places = torch.cat([rows * size + columns, (columns * size + rows)[off]])
        return places, torch.cat([basis, basis[off]]), len(rows)

    @property
    def copies(self) -> int:
        return prod(self.shape[:-1])

    @property
    def count(self) -> int:
        """Dimension of the subspace."""
        return self.copies * self.table[2]

    @property
    def unit(self) -> Tensor:
        """The coefficients [count] of 1 (of a matrix family), or of all of the basis."""
        n = isqrt(self.shape[-1]) if self.kind == "symmetric" else 0
        one = torch.triu(torch.eye(n)).flatten()[torch.triu(torch.ones(n, n)).flatten() > 0] if n else None
        copy = torch.ones(self.table[2], dtype=torch.float64) if one is None else one.double()
        return copy.repeat(self.copies)

    def read(self, derivative: Tensor) -> Tensor:
        """Derivatives [count] by the coefficients, from those by the algebra coordinates [*shape]."""
        places, basis, size = self.table
        flat = derivative.reshape(self.copies, -1)[:, places]
        return flat.new_zeros(self.copies, size).index_add(1, basis, flat).reshape(-1)

    def embed(self, coefficients: Tensor) -> Tensor:
        """Algebra coordinates [*shape] of coefficients [count]."""
        places, basis, size = self.table
        copy = prod(self.shape[-1:])
        out = coefficients.new_zeros(self.copies, copy)
        out[:, places] = coefficients.reshape(self.copies, size)[:, basis]
        return out.reshape(self.shape)
