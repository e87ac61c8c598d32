"""Levels: the part of a bias that is constant along dimensions over which a layer norm or a softmax stands.

Where a sum is read by norms and by something else (a residual stream that is observed without a last norm), a bias in
it must stand still, all but its level: the norms ignore that, so that it goes on along the stream, and another bias may
take it off again further on.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from torchgauge.spaces import constraints as c
from torchgauge.spaces.directions import Gains, Pattern, gain_of, regrouped
from torchgauge.spaces.sources import Entry, Source, Sources


def levels(sources: Sources) -> Iterator[Source]:
    """Of every part of a parameter that is only added: its changes that are constant where norms behind look."""
    for t, uses in sources.parts.items():
        if not all(isinstance(k, c.Add) for k, _ in uses) or sources.patterns.of(t) is not None:
            continue
        # a level that depends on the position would find nobody to take it off
        wide = full(t)
        faced = [_facing(sources, k, end) for k, end in uses]
        for gains in frozenset.intersection(*faced):
            if gains and (len(uses) > 1 or len(wide) > 1 or uses[0][1] is not t):
                continue
            way = Pattern(wide, tuple((gain, -power) for gain, power in gains))
            entries = tuple(Entry(k, end, "bias", way, level=full(end)) for k, end in uses)
            yield Source(t, entries, (way,), level=True)


def flats(s: Source, sources: Sources, *, alone: bool) -> Iterator[Source]:
    """Of a bias that must stand still: its changes that are constant along all dimensions but one; of a vector that is
    stopped alone, the constant change.
    """
    wide = full(s.tensor)
    if not wide or (len(wide) == 1) != alone or s.ways:
        return
    if any(e.kind != "bias" or e.tensor is not s.tensor for e in s.entries):
        return
    ignored = sources.patterns.of(s.tensor)
    for kept in [frozenset[int]()] if alone else [frozenset([d]) for d in sorted(wide)]:
        way = Pattern(wide - kept)
        if ignored is not None and ignored.dims <= way.dims:
            continue  # an invisible direction
        entries = tuple(Entry(e.at, e.tensor, "bias", way, level=way.dims) for e in s.entries)
        yield Source(s.tensor, entries, (way,))


def full(t: c.Tensor) -> frozenset[int]:
    """The dimensions along which a tensor may vary."""
    return frozenset(d for d, n in enumerate(t.shape) if n > 1)


def _facing(sources: Sources, k: c.Constraint, end: c.Tensor) -> frozenset[Gains]:
    """The gains that stand between a sum and norms behind it, along one of the dimensions of `end`."""
    if end.ndim != k.out.ndim:
        return frozenset()
    same = [d for d in full(end) if end.shape[d] == k.out.shape[d]]
    # it is constant along the rest, over which a norm may stand as well
    rest = frozenset(d for d in full(k.out) - full(end) if d)
    wholes = [rest | {d} for d in same] if rest else []
    return frozenset().union(*(_normalised(sources, k.out, dims) for dims in (*map(_one, same), *wholes)))


def _one(dim: int) -> frozenset[int]:
    return frozenset([dim])


def _normalised(sources: Sources, t: c.Tensor, dims: frozenset[int]) -> frozenset[Gains]:
    """Products of gains times which norms along the dimensions read a tensor, through sums and views."""
    stack: list[tuple[c.Tensor, frozenset[int], Gains]] = [(t, dims, ())]
    seen: set[tuple[c.Tensor, Gains]] = set()
    found: set[Gains] = set()
    while stack:
        here, along, gains = stack.pop()
        if (here, gains) in seen:
            continue
        seen.add((here, gains))
        for k in sources.readers.get(here, []):
            if isinstance(k, c.Normalize) and k.kind == "layer" and not k.others and set(k.dims) == along:
                found.add(gains)
            if isinstance(k, c.Softmax) and {k.dim} == along:
                found.add(gains)
            if not gains and isinstance(k, c.Mul) and k.x is here and k.out.shape == here.shape:
                gain = gain_of(sources.makers, k.y)
                if (
                    gain is not None
                    and frozenset(full(k.y)) == along
                    and prod(gain.shape) == prod(t.shape[d] for d in dims)
                ):
                    stack.append((k.out, along, ((gain, k.power),)))
            carried = _carried(k, along)
            if carried is not None:
                stack.append((k.out, carried, gains))
    return frozenset(found)


def _carried(k: c.Constraint, dims: frozenset[int]) -> frozenset[int] | None:
    """Where dimensions are behind a sum or a view; None if it is neither, or cuts them."""
    match k:
        case c.Add() | c.Expand():
            return dims if all(k.inputs[0].shape[d] == k.out.shape[d] for d in dims) else None
        case c.Permute():
            return frozenset(k.dims.index(d) for d in dims)
        case c.Slice():
            return dims if k.dim not in dims else None
        case c.Concat():
            return dims  # also of neighbours side by side, where it is constant over all of them
        case c.Spatial(keeps_constants=True):
            return dims if not dims & set(k.dims) else None
        case c.Reshape():
            return regrouped(dims, k.x.shape, k.out.shape)
    return None
