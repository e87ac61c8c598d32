"""Laws on spheres and on matrix groups."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from torchgauge.fields.errors import LawError
from torchgauge.fields.laws.base import Invariance, Kind, Law, Shape, closed, standard_normal, whole
from torchgauge.fields.laws.entries import only_real


@dataclass(frozen=True)
class Sphere(Law):
    """Uniform on a sphere: the whole tensor as one vector, or, with `axis`, every vector along that axis by itself.

    With `axis=-1` each row of a matrix is a point on the sphere, independent of the other rows.
    Complex parameters lie on the complex sphere Σ|w|² = radius².
    """

    radius: float = 1.0
    axis: int | None = None

    def __post_init__(self) -> None:
        if not (self.radius > 0 and math.isfinite(self.radius)):
            raise LawError(f"a sphere of radius {self.radius}", remedy="give a positive radius")

    def sample(
        self, count: int, shape: Shape, generator: torch.Generator, dtype: torch.dtype = torch.float64
    ) -> Tensor:
        draw = standard_normal((count, *shape), generator, dtype)
        over = tuple(range(1, len(shape) + 1)) if self.axis is None else (self.axis % len(shape) + 1,)
        return draw * (self.radius / torch.linalg.vector_norm(draw, dim=over, keepdim=True))

    def moment_order(self) -> float:
        return math.inf

    def invariances(self, shape: Shape, dtype: torch.dtype = torch.float64) -> frozenset[Invariance]:
        best = Kind.UNITARY if dtype.is_complex else Kind.ORTHOGONAL
        if self.axis is None:
            return closed(whole(best, shape))
        axis = self.axis % len(shape)
        others = [a for a in range(len(shape)) if a != axis]
        units = Kind.PHASES if dtype.is_complex else Kind.SIGNS
        return closed(
            [*whole(best, shape, [axis]), *whole(Kind.PERMUTATIONS, shape, others), *whole(units, shape, others)]
        )

    def independent(self, shape: Shape, axis: int) -> bool:
        return self.axis is not None and axis % len(shape) != self.axis % len(shape)


@dataclass(frozen=True)
class Haar(Law):
    """`scale` times a matrix uniform on O(n), SO(n), U(n) or SU(n).

    A rectangular parameter is a corner of such a matrix (rows or columns orthonormal), of the groups O and U.

    Raises:
        LawError: not a matrix; a rectangular one for SO or SU; a complex parameter for O or SO, a real one for U or SU.
    """

    group: Literal["O", "SO", "U", "SU"] = "O"
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.group not in ("O", "SO", "U", "SU") or not (self.scale > 0 and math.isfinite(self.scale)):
            raise LawError(f"no such law: {self}", remedy="group is one of O, SO, U, SU, and scale is positive")

    def sample(
        self, count: int, shape: Shape, generator: torch.Generator, dtype: torch.dtype = torch.float64
    ) -> Tensor:
        self._check(shape)
        if self.group in ("O", "SO"):
            only_real(self, dtype)
        elif not dtype.is_complex:
            raise LawError(f"{self} on a real parameter", remedy="make the parameter complex, or use O or SO")
        tall = max(shape), min(shape)
        q, r = torch.linalg.qr(standard_normal((count, *tall), generator, dtype))
        pivots = torch.diagonal(r, dim1=-2, dim2=-1)
        q = q * (pivots / pivots.abs())[:, None, :]  # makes the factorisation unique, hence q uniform
        if self.group in ("SO", "SU"):
            q = torch.cat([q[..., :1] * torch.linalg.det(q).conj()[:, None, None], q[..., 1:]], -1)
        return self.scale * (q if shape[0] >= shape[1] else q.mT)

    def moment_order(self) -> float:
        return math.inf

    def invariances(self, shape: Shape, dtype: torch.dtype = torch.float64) -> frozenset[Invariance]:
        self._check(shape)
        kinds = {
            "O": Kind.ORTHOGONAL,
            "SO": Kind.SPECIAL_ORTHOGONAL,
            "U": Kind.UNITARY,
            "SU": Kind.SPECIAL_UNITARY,
        }
        return closed(whole(kinds[self.group], shape))

    def _check(self, shape: Shape) -> None:
        if len(shape) != 2 or (shape[0] != shape[1] and self.group in ("SO", "SU")):
            raise LawError(
                f"{self} on a parameter of shape {list(shape)}",
                remedy="matrices alone, square ones for SO and SU; use O or U for rectangular ones",
            )
