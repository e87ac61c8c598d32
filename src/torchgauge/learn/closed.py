"""Which combinations of generators are gradients.

A vector field is a gradient when its derivative is a symmetric matrix everywhere. A generator v_a need not be one where
a combination Σ c_a v_a with constant coefficients is: a batch norm's input can be scaled and shifted at once, and of
two shifts that both correct the same later bias the difference needs no correction. `closed` finds the space of such c:

- of a matrix family (GL, rotary pairs) the symmetric part is tried first, then its diagonal (a frame that is
  conjugated by a gain is linear in the parameters only there). The antisymmetric rest can be balanced by nothing: it is
  a constant block on one leg of one tensor, and no two families share a leg;
- families that are gradients as they are take part as a whole;
- of the others, those that move the same tensors are searched together, by the kernel of their curls at random points.

All is tested by numbers in float64 at random points; a field that is not a gradient passes with probability zero.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchgauge.learn.generators import Algebra, Generators
from torchgauge.learn.selection import Selection
from torchgauge.spaces.axes import Axis, Kind

TINY, PROBES, SPARE = 1e-9, 2, 12


@dataclass(frozen=True, eq=False)
class Closed:
    """A space of combinations of generators that are gradients.

    Attributes:
        parts: family → the selection of its algebra that takes part.
        basis: the combinations as rows over the coefficients of all parts [count, Σ counts]; None for all of them.
    """

    parts: dict[int, Selection]
    basis: Tensor | None = None

    @property
    def count(self) -> int:
        return sum(s.count for s in self.parts.values()) if self.basis is None else self.basis.shape[0]

    def read(self, derivative: Algebra) -> Tensor:
        """Derivatives [count] by the combinations' coefficients."""
        flat = torch.cat([selection.read(derivative[i]) for i, selection in self.parts.items()])
        return flat if self.basis is None else self.basis @ flat

    def embed(self, coefficients: Tensor) -> Algebra:
        """Algebra coordinates of coefficients [count]."""
        flat = coefficients if self.basis is None else coefficients @ self.basis
        pieces = flat.split([selection.count for selection in self.parts.values()])
        return {i: s.embed(piece) for (i, s), piece in zip(self.parts.items(), pieces, strict=True)}


def candidates(key: object, shape: tuple[int, ...]) -> tuple[str, ...]:
    """The parts of a family's algebra that may be gradients, the largest first."""
    if isinstance(key, Axis):
        return {Kind.GL: ("symmetric", "diagonal"), Kind.O: (), Kind.O1: ()}.get(key.kind, ("real",))
    return ("all", "ones") if type(key).__name__ == "Shear" else ("all",)


def closed(generators: Generators, families: Sequence[int], limit: int, seed: int = 0) -> list[Closed]:
    """All combinations of generators that are gradients.

    Args:
        generators: of the group.
        families: positions in `group.generators` that may be used.
        limit: most generators that are searched together.
        seed: of the random points.
    """
    generator = torch.Generator().manual_seed(seed)
    found: list[Closed] = []
    rest: dict[int, Selection] = {}
    for i in families:
        _, _, key, shape = generators.group.generators[i]
        kinds = candidates(key, shape)
        kind = _largest(generators, i, kinds, generator) if kinds else ""
        if kind:
            found.append(Closed({i: Selection(shape, kind)}))
        elif kinds:
            wide = Selection(shape, kinds[0])
            rest[i] = wide if wide.count <= limit // 2 else Selection(shape, kinds[-1])
    for cluster in clusters(generators, list(rest)):
        parts = {i: rest[i] for i in cluster}
        size = sum(selection.count for selection in parts.values())
        if size > limit:
            names = ", ".join(generators.group.generators[i][0] for i in cluster[:4])
            warnings.warn(
                f"combinations of {size} generators ({names}, …) were not searched for conserved quantities; "
                f"raise `limit` from {limit} to search them",
                stacklevel=3,
            )
            continue
        basis = kernel(generators, parts, generator)
        if basis.shape[0]:
            found.append(Closed(parts, basis))
    return found


def _largest(generators: Generators, family: int, kinds: Sequence[str], generator: torch.Generator) -> str:
    """The first kind of part that is closed, or an empty string."""
    left, shape = list(kinds), generators.group.generators[family][3]
    for _ in range(PROBES):
        a, b = (values[family] for values in generators.curl([family], *generators.draw([family], generator)))
        size = float((a.abs() + b.abs()).max())
        left = [k for k in left if float(Selection(shape, k).read(a - b).abs().max()) <= TINY * size]
        if not left:
            return ""
    return left[0]


def clusters(generators: Generators, families: Sequence[int]) -> Iterator[list[int]]:
    """Families that move a common tensor, directly or over others."""
    left = list(families)
    while left:
        cluster, names = [left[0]], set(generators.moved[left[0]])
        while more := [i for i in left if i not in cluster and names & set(generators.moved[i])]:
            cluster += more
            names |= {name for i in more for name in generators.moved[i]}
        left = [i for i in left if i not in cluster]
        yield sorted(cluster)


def kernel(generators: Generators, parts: dict[int, Selection], generator: torch.Generator) -> Tensor:
    """The combinations whose curl vanishes, as rows in echelon form [count, Σ counts]."""
    total = sum(selection.count for selection in parts.values())
    if total == 0:
        return torch.zeros(0, 0, dtype=torch.float64)
    everything, rows = Closed(parts), []
    for _ in range(total + SPARE):
        a, b = generators.curl(parts, *generators.draw(parts, generator))
        rows.append(everything.read({i: a[i] - b[i] for i in parts}))
    matrix = torch.stack(rows)
    scale = matrix.norm(dim=0)
    biggest = float(scale.max())
    if biggest == 0:
        return torch.eye(total, dtype=torch.float64)
    scale = torch.where(scale > TINY * biggest, scale, torch.full_like(scale, biggest))
    _, values, right = torch.linalg.svd(matrix / scale, full_matrices=True)
    rank = int((values > TINY * values[0]).sum())
    return echelon(right[rank:] / scale)


def echelon(rows: Tensor) -> Tensor:
    """The same row space with a unit in each row where the others vanish: readable combinations, with small entries."""
    rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-300)
    done: list[int] = []
    for k in range(rows.shape[0]):
        place = int(rows[k:].abs().max(0).values.argmax())
        pivot = k + int(rows[k:, place].abs().argmax())
        rows[[k, pivot]] = rows[[pivot, k]]
        rows[k] = rows[k] / rows[k, place].clone()
        others = torch.arange(rows.shape[0]) != k
        rows[others] = rows[others] - rows[others, place][:, None] * rows[k]
        done.append(place)
    rows = torch.where(rows.abs() < 1e-11, 0.0, rows)
    order = sorted(range(len(done)), key=lambda k: done[k])
    return rows[order]
