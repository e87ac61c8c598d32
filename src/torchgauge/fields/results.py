"""What `correlator` returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from torchgauge.errors import InputError
from torchgauge.fields.combinatorics import multisets, rank


@dataclass(frozen=True, eq=False)
class Correlator:
    """n-point functions at tuples of points.

    Attributes:
        tuples: indices of the points [count, n].
        values: [count].
        error: [count]; standard errors of a sampled estimate, an error bound of a rule.
        points: [n_points, ...].
        outputs: output index of each slot.
        connected: cumulants, or full correlators.
        estimator: "exact", "neurons", "readout" or "plain".
        rule: "closed", "angles", "orthants", "quadrature" or "sampled".
        reason: why this estimator.
        networks: how many were sampled.
        covariance: of the values [count, count], where it was asked for.
    """

    tuples: Tensor
    values: Tensor
    error: Tensor
    points: Tensor
    outputs: tuple[int, ...]
    connected: bool
    estimator: str
    rule: str
    reason: str
    networks: int = 0
    covariance: Tensor | None = field(default=None, repr=False)

    @property
    def n(self) -> int:
        """Number of slots."""
        return self.tuples.shape[1]

    def at(self, *indices: int) -> Tensor:
        """The value at these points, in any order where all outputs are one."""
        row = self._row(indices)
        return self.values[row]

    def error_at(self, *indices: int) -> Tensor:
        """The error at these points."""
        return self.error[self._row(indices)]

    def dense(self) -> Tensor:
        """The whole tensor [n_points, …, n_points]; needs every tuple."""
        count = len(self.points)
        grid = torch.cartesian_prod(*[torch.arange(count)] * self.n).reshape(-1, self.n)
        if len(set(self.outputs)) == 1:
            grid = grid.sort(1).values
            if len(self.tuples) == len(multisets(count, self.n)) and bool(
                (self.tuples == multisets(count, self.n)).all()
            ):
                return self.values[rank(grid, count)].reshape((count,) * self.n)
        elif len(self.tuples) == len(grid) and bool((self.tuples == grid).all()):
            return self.values.reshape((count,) * self.n)
        raise InputError("not every tuple was computed", remedy="leave `tuples` out, or use .at(...)")

    def _row(self, indices: Sequence[int]) -> int:
        wanted = torch.tensor([i % len(self.points) for i in indices])
        rows = self.tuples
        if len(set(self.outputs)) == 1:
            wanted, rows = wanted.sort().values, rows.sort(1).values
        found = (rows == wanted).all(1).nonzero() if rows.shape[1] == len(wanted) else torch.empty(0)
        if not len(found):
            raise InputError(f"no value at {tuple(indices)}", remedy=f"give {self.n} indices among the tuples")
        return int(found[0])

    def __str__(self) -> str:
        kind = "connected" if self.connected else "full"
        size = self.values.abs().max() if len(self.values) else torch.zeros(())
        sampled = f", {self.networks} networks" if self.networks else ""
        return (
            f"{kind} {self.n}-point function at {len(self.values)} tuples, largest {float(size):.6g} ± "
            f"{float(self.error.max()) if len(self.error) else 0:.2g}\n"
            f"estimator: {self.estimator} ({self.rule}{sampled}): {self.reason}"
        )
