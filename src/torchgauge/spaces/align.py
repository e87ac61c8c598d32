"""Sums of concatenations become concatenations of sums, for the shift pass: what stands in one part alone stays there.

A class token that is put in front of patches, before position embeddings are added to all, trades with the first of
them. Nothing is approximated: every rewriting is an identity between tensors.
"""

from __future__ import annotations

from dataclasses import replace

from torchgauge.spaces import constraints as c
from torchgauge.spaces.builder import Builder


def aligned(program: c.Program) -> c.Program:
    """An equal program, the same object if there is nothing to move."""
    makers: dict[c.Tensor, c.Constraint] = {}
    static, builder, changed = set(program.params.values()), Builder(), False
    order = builder.program.constraints
    for k in program.constraints:
        if isinstance(k, (c.Reshape, c.Permute, c.Slice, c.Expand)) and k.x in static:
            static.add(k.out)
        builder.source = k.out.source
        new: c.Constraint = k
        if isinstance(k, c.Slice) and (found := _part(k, makers)) is not None:
            x, start = found
            stop = start + k.out.shape[k.dim]
            new = c.Reshape(k.out, x) if x.shape == k.out.shape else c.Slice(k.out, x, k.dim, start, stop)
        elif isinstance(k, c.Add) and (parts := _sums(k, makers, static, builder)) is not None:
            dim, xs = parts
            new = c.Concat(k.out, xs, dim)
        changed |= new is not k
        order.append(new)
        makers |= {made.out: made for made in order[len(makers) :]}
    return replace(program, constraints=order) if changed else program


def _sums(
    k: c.Add, makers: dict[c.Tensor, c.Constraint], static: set[c.Tensor], b: Builder
) -> tuple[int, tuple[c.Tensor, ...]] | None:
    """The parts of a sum of which one operand is a concatenation, and the other one too, a parameter, or broadcast."""
    for x, y in ((k.x, k.y), (k.y, k.x)):
        made = makers.get(x)
        if not isinstance(made, c.Concat) or x.shape != k.out.shape or k.x is k.y:
            continue
        sizes = [p.shape[made.dim] for p in made.xs]
        other, beside = _split(y, made.dim, sizes, makers, static, b)
        if not beside:
            continue
        pairs = zip(made.xs, other, strict=True)
        return made.dim, tuple(b.add(p, q, k.alpha) if x is k.x else b.add(q, p, k.alpha) for p, q in pairs)
    return None


def _split(
    y: c.Tensor, dim: int, sizes: list[int], makers: dict[c.Tensor, c.Constraint], static: set[c.Tensor], b: Builder
) -> tuple[list[c.Tensor], bool]:
    """The other operand in parts of the same sizes, and whether there are any."""
    made = makers.get(y)
    if y.shape[dim] == 1:
        return [y] * len(sizes), False
    if isinstance(made, c.Concat) and made.dim == dim and [p.shape[dim] for p in made.xs] == sizes:
        return list(made.xs), True
    if y not in static:
        return [], False
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [b.slice(y, dim, start, start + n) for start, n in zip(starts, sizes, strict=True)], True


def _part(k: c.Slice, makers: dict[c.Tensor, c.Constraint]) -> tuple[c.Tensor, int] | None:
    """The part of a concatenation in which a slice lies, and where it starts there."""
    made, low = makers.get(k.x), 0
    if not isinstance(made, c.Concat) or made.dim != k.dim:
        return None
    for x in made.xs:
        if low <= k.start and k.stop <= low + x.shape[k.dim]:
            return x, k.start - low
        low += x.shape[k.dim]
    return None
