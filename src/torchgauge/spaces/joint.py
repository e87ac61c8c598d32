"""Joint sources: biases of the parts of a concatenation, all changed alike.

Tokens of two kinds stand one after the other in one stream. A bias of one kind alone would move a part of the stream,
and nothing behind could take that off; the same change of a bias of each kind moves all of it.
"""

from __future__ import annotations

from collections.abc import Container, Iterator

from torchgauge.spaces import constraints as c
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


def _added(sources: Sources, k: c.Constraint, t: c.Tensor, held: Container[Source]) -> Iterator[Source]:
    """Biases that are added to an operand as they are."""
    stack: list[tuple[c.Constraint, c.Tensor]] = [(k, t)]
    while stack:
        at, x = stack.pop()
        if sources.is_static(x):
            for s in sources.of(at, x):
                e = s.entries[0]
                if s in held and s.single and e.kind == "bias" and e.tensor is s.tensor and not s.ways:
                    yield s
            continue
        made = sources.makers.get(x)
        if isinstance(made, c.Add) and made.alpha == 1.0:
            stack += [(made, made.x), (made, made.y)]
        elif isinstance(made, (c.Reshape, c.Permute, c.Slice, c.Expand)):
            stack.append((made, made.x))
