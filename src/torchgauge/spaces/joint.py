"""Joint sources: biases of the parts of a concatenation, all changed alike.

Tokens of two kinds stand one after the other in one stream. A bias of one kind alone would move a part of the stream,
and nothing behind could take that off; the same change of a bias of each kind moves all of it.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import replace

from torchgauge.spaces import constraints as c
from torchgauge.spaces.directions import Pattern
from torchgauge.spaces.levels import full
from torchgauge.spaces.sources import Source, Sources


def joint(sources: Sources, held: Container[Source]) -> Iterator[Source]:
    """One source for every concatenation of which each part has a bias, a vector, that must stand still alone."""
    for k in sources.program.constraints:
        if not isinstance(k, c.Concat) or sources.is_static(k.out):
            continue
        found = [next(_added(sources, k, x, held), None) for x in k.xs]
        parts = [s for s in found if s is not None]
        shapes = {tuple(n for n in s.tensor.shape if n > 1) for s in parts}
        if len(parts) == len(found) == len({s.tensor for s in parts}) and len(shapes) == 1 and len(min(shapes)) == 1:
            first, *rest = parts
            yield Source(first.tensor, tuple(e for s in parts for e in s.entries), also=tuple(s.tensor for s in rest))


def joint_levels(sources: Sources, held: Container[Source]) -> Iterator[Source]:
    """One number for every concatenation of which each part has a bias of any shape: it is added to all entries."""
    for k in sources.program.constraints:
        if not isinstance(k, c.Concat) or sources.is_static(k.out):
            continue
        found = [next(_added(sources, k, x, held, whole=True), None) for x in k.xs]
        parts = [s for s in found if s is not None]
        if len(parts) == len(found) == len({s.tensor for s in parts}):
            entries = tuple(replace(s.entries[0], level=full(s.tensor)) for s in parts)
            ways = (Pattern(full(parts[0].tensor)),)
            yield Source(parts[0].tensor, entries, ways, also=tuple(s.tensor for s in parts[1:]), level=True)


def _added(
    sources: Sources, k: c.Constraint, t: c.Tensor, held: Container[Source], *, whole: bool = False
) -> Iterator[Source]:
    """Biases that are added to an operand as they are; `whole`: or all of whose entries are, if they are alike."""
    stack: list[tuple[c.Constraint, c.Tensor]] = [(k, t)]
    while stack:
        at, x = stack.pop()
        if sources.is_static(x):
            for s in sources.of(at, x):
                e = s.entries[0]
                vectors = all(whole and not way.gains for way in s.ways)
                if s in held and s.single and e.kind == "bias" and e.tensor is s.tensor and vectors and not s.level:
                    yield s
            continue
        made = sources.makers.get(x)
        if isinstance(made, c.Add) and made.alpha == 1.0:
            stack += [(made, made.x), (made, made.y)]
        elif isinstance(made, (c.Reshape, c.Permute, c.Slice, c.Expand)) or (whole and _filters(made)):
            stack.append((made, made.x))  # type: ignore[union-attr]


def _filters(k: c.Constraint | None) -> bool:
    """A map along positions that keeps constants."""
    return isinstance(k, c.Spatial) and k.keeps_constants
