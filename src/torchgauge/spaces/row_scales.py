"""Tables whose rows have a direction, but no length: only norms read them (theory section 2, scales of rows).

A row E_i of a table that arrives at a norm as E_i + o, o the same at every position, may become s (E_i + o) − o, with
one number s > 0 for every row. The norms need ε = 0 for that; else it holds only as far as ε can be neglected.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf, prod

from torchgauge.spaces import constraints as c
from torchgauge.spaces.directions import regrouped

Dims = frozenset[int]
Offset = tuple[c.Tensor, int, float]
"""A parameter, its row (0 if it is no table), and a factor."""


@dataclass(frozen=True)
class Table:
    """Rows of `tensor`, each of which may be scaled about −Σ factor·offset; exact if `eps` is 0."""

    tensor: c.Tensor
    offsets: tuple[Offset, ...]
    eps: float
    source: str


@dataclass
class RowScales:
    """The tables of a program. A tensor is *blind* if all its readers ignore a positive factor at every position."""

    program: c.Program
    readers: dict[c.Tensor, list[tuple[c.Constraint, str]]] = field(default_factory=dict)
    """Every place where a tensor is read, and as which operand."""
    _known: dict[tuple[c.Tensor, Dims], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.makers = {k.out: k for k in self.program.constraints}
        for k in self.program.constraints:
            operands = [(name, t) for name, t in vars(k).items() if isinstance(t, c.Tensor) and name != "out"]
            several = [(name, t) for name in ("xs", "others") for t in getattr(k, name, ())]
            for name, t in (*operands, *several):
                self.readers.setdefault(t, []).append((k, name))

    def tables(self) -> Iterator[Table]:
        """Tables that are looked up and nothing else. A row that is always the same one is a constant."""
        for tensor in self.program.params.values():
            uses = self.readers.get(tensor, [])
            if tensor in self.program.outputs or not uses or not all(_picks(k, name) for k, name in uses):
                continue
            if not self._known:
                self._from_the_end()
            found = [self._arriving(k) for k, _ in uses]
            offsets = found[0][0]
            eps = max(eps for _, eps in found)
            if eps < inf and all(other == offsets for other, _ in found):
                yield Table(tensor, offsets, eps, uses[0][0].out.source)

    def _from_the_end(self) -> None:
        """So that no recursion goes deep."""
        for k in reversed(self.program.constraints):
            for n in range(1, k.out.ndim):
                self.blind(k.out, _long(frozenset(range(n)), k.out))

    def _arriving(self, k: c.Constraint) -> tuple[tuple[Offset, ...], float]:
        """What is added to the rows before anything else is done, and the largest ε that looks at their length."""
        t, factor, offsets = k.out, 1.0, []
        places = frozenset(range(k.out.ndim - k.inputs[0].ndim + 1))
        while (eps := self.blind(t, _long(places, t))) == inf and t not in self.program.outputs:
            uses = self.readers.get(t, [])
            if len(uses) != 1 or not isinstance(add := uses[0][0], c.Add) or add.x is add.y or add.out.shape != t.shape:
                break
            other, own, his = (add.y, 1.0, add.alpha) if uses[0][1] == "x" else (add.x, add.alpha, 1.0)
            constant = self._constant(other, places)
            if constant is None or own == 0.0 or prod(t.shape[len(places) :]) != prod(other.shape[len(places) :]):
                break
            factor *= own
            offsets.append((*constant, his / factor))
            t = add.out
        return tuple(offsets), eps

    def _constant(self, t: c.Tensor, places: Dims) -> tuple[c.Tensor, int] | None:
        """The parameter, and its row, that holds the entries of a tensor which is the same at all places."""
        made = self.makers.get(t)
        if (
            isinstance(made, c.Gather)
            and made.table.role == "param"
            and made.out.ndim - made.table.ndim + 1 == len(places)
        ):
            return (made.table, made.row or 0) if _single(made) else None
        if any(t.shape[d] > 1 for d in places):
            return None
        while isinstance(made, c.Reshape):
            t, made = made.x, self.makers.get(made.x)
        return (t, 0) if t.role == "param" else None

    def blind(self, t: c.Tensor, places: Dims) -> float:
        """The largest ε that forbids a factor of its own at every joint index of `places`; infinity if something else
        does. Every place where t is read is judged on its own, whatever all other tensors hold."""
        key = t, places
        if key not in self._known:
            reads = self.readers.get(t, [])
            ends = [inf] if t in self.program.outputs else [self._through(k, name, t, places) for k, name in reads]
            self._known[key] = max(ends, default=0.0)
        return self._known[key]

    def _through(self, k: c.Constraint, name: str, t: c.Tensor, places: Dims) -> float:
        """The same for one reader."""
        if isinstance(k, c.Normalize):
            return k.eps if name == "x" and not k.others and not places & set(k.dims) else inf
        if isinstance(k, c.Choice):
            return inf if k.dim in places else 0.0
        moved = _moved(k, name, t, places)
        return inf if moved is None else self.blind(k.out, _long(moved, k.out))


def _moved(k: c.Constraint, name: str, t: c.Tensor, places: Dims) -> Dims | None:
    """Where the places of an operand stand in `k.out`, if a positive factor at each of them is one there too."""
    if isinstance(k, c.Reshape):
        return regrouped(places, t.shape, k.out.shape)
    if isinstance(k, c.Permute):
        return frozenset(i for i, d in enumerate(k.dims) if d in places)
    if isinstance(k, c.Contract):
        labels = k.x_labels if name == "x" else k.y_labels
        held = {labels[d] for d in places}
        kept = frozenset(i for i, a in enumerate(k.out_labels) if a in held)
        return None if held & k.window or len(kept) < len(held) else kept
    if isinstance(k, c.Mul) and t.ndim == k.out.ndim:
        return places
    if isinstance(k, c.Pointwise):
        return places if k.profile.degree is not None else None
    if isinstance(k, (c.Reduce, c.Spatial)):
        return None if places & set(k.dims) else places
    if isinstance(k, c.Rotate):
        return None if t.ndim - 1 in places else places
    return places if isinstance(k, (c.Slice, c.Expand)) else None


def _picks(k: c.Constraint, name: str) -> bool:
    return isinstance(k, c.Gather) and name == "table" and k.table.ndim > 1 and not _single(k)


def _single(k: c.Gather) -> bool:
    """Whether it is always the same row."""
    return k.table.shape[0] == 1 or k.row is not None


def _long(dims: Dims, t: c.Tensor) -> Dims:
    """Those along which there is more than one entry."""
    return frozenset(d for d in dims if t.shape[d] > 1)
