"""What nothing reads: programs without it, and parameters that are read for constants or zeros alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod

import torch

from torchgauge.spaces import constraints as c
from torchgauge.spaces.absorb import Readers, readers_of


def pruned(program: c.Program) -> c.Program:
    """Without what no output reads, and what was said of it."""
    new = without_unread(program)
    said = ((k.reason, k.out.source) for k in new.constraints if isinstance(k, c.Opaque))
    return replace(new, opaque=list(dict.fromkeys(said)))


def without_unread(program: c.Program) -> c.Program:
    """The constraints, parameters and parts of parameters that outputs read; nothing moves the others."""
    wanted, kept = set(program.outputs), []
    for k in reversed(program.constraints):
        if k.out in wanted:
            kept.append(k)
            wanted.update(k.inputs)
    params = {name: t for name, t in program.params.items() if t in wanted}
    buffers = {name: t for name, t in program.buffers.items() if t in wanted}
    return replace(
        program,
        constraints=kept[::-1],
        params=params,
        coordinates={name: program.coordinates[name] for name in params},
        buffers=buffers,
        buffer_coordinates={name: program.buffer_coordinates[name] for name in buffers},
    )


def unread(old: c.Program, new: c.Program, blocks: c.Program) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters of which a program reads entries for constants or zeros alone, with the places [n] of these.

    Args:
        old: the program.
        new: the same with constants taken up.
        blocks: the latter in blocks.
    """
    for name, t in old.idle.items():
        yield name, torch.arange(prod(t.shape))
    readers = [readers_of(program) for program in (old, new)]
    for name, t in old.params.items():
        changed = new is not old and (name not in new.params or any(_sliced(t, read) for read in readers))
        if changed or _edged(t, readers[1]):
            left = _read(old, t, readers[0], padding=True) & ~_read(new, t, readers[1], padding=False)
        else:
            left = None
        for at in blocks.spare:
            if at.name == name:
                left = torch.zeros(prod(t.shape), dtype=torch.bool) if left is None else left
                shown = torch.arange(prod(t.shape))
                for shape, dim, start, stop in at.views:
                    shown = shown.reshape(shape).narrow(dim, start, stop - start)
                left[shown.reshape(-1)] = True
        if left is not None and bool(left.any()):
            yield name, left.nonzero().flatten()


def _sliced(t: c.Tensor, readers: Readers) -> bool:
    """Whether some view of a parameter shows a part of it."""
    views = [k for k in readers.get(t, []) if isinstance(k, (c.Reshape, c.Permute, c.Slice))]
    return any(isinstance(k, c.Slice) or _sliced(k.out, readers) for k in views)


def _edged(t: c.Tensor, readers: Readers) -> bool:
    """Whether some reader of a parameter holds a part of it against padding alone."""
    return any(
        bool(_outside(k, t))
        if isinstance(k, c.Contract)
        else isinstance(k, (c.Reshape, c.Permute, c.Slice)) and _edged(k.out, readers)
        for k in readers.get(t, [])
    )


def _outside(k: c.Contract, t: c.Tensor) -> dict[int, list[int]]:
    """By dimension of a kernel: its positions that lie outside what is read at every place of the result."""
    if k.x is k.y:
        return {}
    labels = k.x_labels if t is k.x else k.y_labels
    found = {labels.index(a): kinds for a, kinds in k.reach if a in labels}
    outside = {d: sorted(set(range(t.shape[d])).difference(*kinds)) for d, kinds in found.items()}
    return {d: places for d, places in outside.items() if places}


def _read(program: c.Program, param: c.Tensor, readers: Readers, *, padding: bool) -> torch.Tensor:
    """Which entries of a parameter are read [n], and whether it counts that padding is read against them."""
    seen = torch.zeros(prod(param.shape), dtype=torch.bool)
    stack = [(param, torch.arange(prod(param.shape)).reshape(param.shape))]
    while stack:
        t, places = stack.pop()
        if t in program.outputs:
            seen[places.reshape(-1)] = True
        for k in readers.get(t, []):
            if isinstance(k, c.Reshape):
                stack.append((k.out, places.reshape(k.out.shape)))
            elif isinstance(k, c.Permute):
                stack.append((k.out, places.permute(k.dims)))
            elif isinstance(k, c.Slice):
                stack.append((k.out, places.narrow(k.dim, k.start, k.stop - k.start)))
            else:
                inside = torch.ones_like(places, dtype=torch.bool)
                if isinstance(k, c.Contract) and not padding:
                    for d, outside in _outside(k, t).items():
                        inside.index_fill_(d, torch.tensor(outside), False)
                seen[places[inside]] = True
    return seen
