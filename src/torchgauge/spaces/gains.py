"""Gains between two layer norms: places where the frame behind a gain depends on the gain itself (theory section 5).

A frame passes a gain as diag(γ') F diag(γ)⁻¹, and a layer norm behind lets only (1 + 1wᵀ) Q through, so that the frame
pass finds no matrices between two norms. With a full matrix V in place of diag(γ) it does: V becomes M V R⁻¹. Here are
the places where R and M are free of one another; which pairs keep V diagonal is worked out in `action/gain_action.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TypeGuard

from torchgauge.spaces import constraints as c
from torchgauge.spaces.axes import Axis, Kind
from torchgauge.spaces.directions import Relation, RelationPass, gain_of
from torchgauge.spaces.frames import FramePass

SUMS = (c.Add, c.Reshape, c.Permute, c.Slice, c.Expand, c.Concat)
"""Sums, and views of them."""


@dataclass(frozen=True, eq=False)
class Place:
    """A gain behind one layer norm and in front of another."""

    gain: c.Tensor
    run: FramePass
    """Of the network with a matrix in place of the gain."""
    front: Axis
    """The space between the first norm and the gain."""
    behind: Axis
    """The stream that the gain writes into: (1 + 1wᵀ) times the frame of its quotient."""
    turns: bool
    """Whether both sides may be rotated."""
    shears: bool
    """Whether linear maps read sums of the stream that a factor on the vector of ones would change."""


def places(program: c.Program) -> Iterator[Place]:
    """Of all gains of layer norms."""
    streams = _Streams(program)
    for k in program.constraints:
        if isinstance(k, c.Mul) and k.power == 1 and (gain := streams.gain(k)) is not None:
            turns, shears = streams.turns(k), streams.shears(k)
            found = _place(*_with_matrix(program, k, gain), gain, turns, shears) if turns or shears else None
            if found is not None:
                yield found


class _Streams:
    """What reads and writes the streams around a gain."""

    def __init__(self, program: c.Program) -> None:
        self.makers = {k.out: k for k in program.constraints}
        self.readers: dict[c.Tensor, list[c.Constraint]] = {}
        for k in program.constraints:
            for t in dict.fromkeys(k.inputs):
                self.readers.setdefault(t, []).append(k)
        self.outputs = set(program.outputs)
        self.program = program

    @cached_property
    def relations(self) -> dict[c.Tensor, Relation]:
        """Tensors that obey n·x = κ."""
        return RelationPass(self.program).relations

    def gain(self, k: c.Mul) -> c.Tensor | None:
        """The gain that stands alone between two layer norms, if `k` multiplies by one."""
        norm, gain = self.makers.get(k.x), gain_of(self.makers, k.y)
        if not _plain(norm) or gain is None or gain.role != "param" or not self._once(gain, k):
            return None
        (dim,) = norm.dims
        wide = [d for d, n in enumerate(k.y.shape) if n > 1]
        if k.x.shape != k.out.shape or wide != [dim] or len(self.readers[k.x]) > 1:
            return None
        behind = self.stream(k.out)
        read = [r for t in behind for r in self.readers.get(t, ())]
        barred = any(isinstance(r, (c.Pointwise, c.Softmax, c.Opaque)) for r in read) or behind & self.outputs
        return gain if any(_plain(r) for r in read) and not barred and self._gained(behind) == {k} else None

    def turns(self, k: c.Mul) -> bool:
        """Whether what stands in front of the norm may be rotated, as far as other gains go."""
        front = self.stream(self.makers[k.x].inputs[0])
        return k.out not in front and not self._gained(front)

    def shears(self, k: c.Mul) -> bool:
        """Whether linear maps read a sum: alone, the values of the gain and its bias obey a relation (section 4)."""
        read = [t for t in self.stream(k.out) for r in self.readers.get(t, ()) if isinstance(r, (c.Contract, c.Reduce))]
        return any(t not in self.relations for t in read)

    def _once(self, t: c.Tensor, k: c.Constraint) -> bool:
        """Whether a parameter is read by `k` alone, through views."""
        above = self.readers.get(t, [])
        return len(above) == 1 and t not in self.outputs and (above[0] is k or self._once(above[0].out, k))

    def stream(self, t: c.Tensor) -> set[c.Tensor]:
        """All that is added to a tensor, before and behind."""
        found, stack = {t}, [t]
        while stack:
            x = stack.pop()
            near = [k.out for k in self.readers.get(x, ()) if _sums(k)]
            made = self.makers.get(x)
            near += [y for k in ([made] if made is not None and _sums(made) else []) for y in k.inputs]
            fresh = [y for y in near if y.role == "data" and y not in found]
            found.update(fresh)
            stack += fresh
        return found

    def _gained(self, stream: set[c.Tensor]) -> set[c.Constraint]:
        """What a gain behind a norm writes into a stream."""
        made = {k for t in stream if isinstance(k := self.makers.get(t), c.Mul)}
        return {k for k in made if any(isinstance(self.makers.get(t), c.Normalize) for t in k.inputs)}


def _sums(k: c.Constraint) -> bool:
    """Whether a constraint leaves a stream the same stream: sums, and products with a number."""
    return isinstance(k, SUMS) or (isinstance(k, c.Mul) and k.y.role == "const" and bool(k.y.fill))


def _plain(k: c.Constraint | None) -> TypeGuard[c.Normalize]:
    """A layer norm along one dimension."""
    return isinstance(k, c.Normalize) and k.kind == "layer" and len(k.dims) == 1 and not k.others


def _with_matrix(program: c.Program, at: c.Mul, gain: c.Tensor) -> tuple[c.Program, c.Tensor]:
    """A copy of the program (the frame pass notes things on tensors) with a matrix in place of one gain."""
    new: dict[c.Tensor, c.Tensor] = {}

    def renewed(value: object) -> object:
        if isinstance(value, c.Tensor):
            return new.setdefault(value, replace(value, trade=None))
        return tuple(renewed(x) for x in value) if isinstance(value, tuple) else value

    copies: list[c.Constraint] = []
    params = {name: new.setdefault(t, replace(t, trade=None)) for name, t in program.params.items()}
    buffers = {name: new.setdefault(t, replace(t, trade=None)) for name, t in program.buffers.items()}
    outputs = [new.setdefault(t, replace(t, trade=None)) for t in program.outputs]
    (dim,) = (d for d, n in enumerate(at.y.shape) if n > 1)
    n = at.y.shape[dim]
    matrix = c.Tensor((n, n), "param", f"{gain.name} as a matrix", at.out.source)
    for k in program.constraints:
        copy = replace(k, **{f.name: renewed(getattr(k, f.name)) for f in fields(k)})
        if k is at:  # out[.., new, ..] = Σ matrix[new, d] x[.., d, ..]
            into = tuple(f"d{d}" for d in range(at.x.ndim))
            out = tuple("new" if d == dim else a for d, a in enumerate(into))
            copy = c.Contract(new[at.out], new[at.x], matrix, into, ("new", into[dim]), out)
        copies.append(copy)
    params[matrix.name] = matrix
    coordinates = program.coordinates | {matrix.name: program.coordinates[gain.name]}
    copy = replace(
        program, constraints=copies, params=params, buffers=buffers, outputs=outputs, coordinates=coordinates
    )
    return copy, matrix


def _place(program: c.Program, matrix: c.Tensor, gain: c.Tensor, turns: bool, shears: bool) -> Place | None:
    """The two spaces, if they are free of one another and of everything else."""
    run = FramePass(program).run()
    out, into = ([leaf.find() for leaf in axis.leaves()] for axis in run.values[matrix].axes)
    if len(out) != 1 or len(into) != 1:
        return None
    (behind, outer), (front, inner) = out[0], into[0]
    quotient = behind.quotient.root if behind.quotient is not None else None
    if quotient is None or quotient.quotient is not None or quotient.depends or outer.dress or outer.flip:
        return None
    kinds = front.kind is Kind.O1 and quotient.kind is Kind.O1 and front is not quotient
    turns = turns and kinds and not (inner.dress or front.depends or front.quotient)
    return Place(gain, run, front, behind, turns, shears) if turns or shears else None
