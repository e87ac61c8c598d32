"""Axes: the index sets and vector spaces of a network, with the frames that may stand on them.

An `Axis` is one factor of one dimension of some tensors. Axes that must carry the same frame are joined in a
union-find whose edges carry a `Label`: the frame of a member is the root's frame, possibly contragredient, times a
charge, conjugated by gains ("dressed"). A root holds the kind of frame, a meet in the lattice

    GL > O > O_1 > index,    GL > complex > turn > index,    O > turn

where complex and turn are complex numbers and rotations of a plane, for every plane of a rotary embedding, and
"index" is a permutation of the axis (scales are charges, kept apart). An axis may turn out to be a product of
axes (a reshape); this is recorded at the root and unfolds on demand. Concatenations are gone before (see `blocks`).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from enum import Enum

from torchgauge.spaces.charges import NONE, Charge
from torchgauge.spaces.constraints import Constraint, Tensor

_serial = itertools.count()


class Kind(Enum):
    """Frame groups of a single axis. Diagonal scales are charges; an index axis carries permutations only."""

    GL = "GL"
    O = "O"
    O1 = "O1"
    COMPLEX = "complex"
    TURN = "turn"
    INDEX = "index"

    @property
    def vector(self) -> bool:
        return self is not Kind.INDEX

    @property
    def plane(self) -> bool:
        """Of a rotary embedding: the axis has two entries."""
        return self in (Kind.COMPLEX, Kind.TURN)

    @property
    def metric(self) -> bool:
        """The matrices are orthogonal; scales are charges."""
        return self in (Kind.O, Kind.O1, Kind.TURN)

    def meet(self, other: Kind) -> Kind:
        """The largest kind inside both."""
        for a, b in ((self, other), (other, self)):
            if a is b or a is Kind.GL or (a is Kind.O and b.metric):
                return b
        return Kind.TURN if {self, other} <= {Kind.O, Kind.COMPLEX, Kind.TURN} else Kind.INDEX


Dress = tuple[tuple[Tensor, int], ...]


def _merge(a: Dress, b: Dress, sign: int) -> Dress:
    powers: dict[Tensor, int] = dict(a)
    for gain, p in b:
        powers[gain] = powers.get(gain, 0) + sign * p
    return tuple((g, p) for g, p in powers.items() if p)


@dataclass(frozen=True)
class Label:
    """frame of member = charge · dress(frame of parent, contragredient if `flip`); dress(F) = γ' F γ⁻¹, γ the gains."""

    flip: bool = False
    charge: Charge = NONE
    dress: Dress = ()

    def after(self, inner: Label) -> Label:
        """The label of a member whose parent stands at `inner` from the root."""
        sign = -1 if self.flip else 1
        charge = self.charge + (inner.charge.scaled(sign) if inner.charge else NONE)
        return Label(self.flip ^ inner.flip, charge, _merge(self.dress, inner.dress, sign))

    def inverse(self) -> Label:
        sign = 1 if self.flip else -1
        return Label(self.flip, self.charge.scaled(sign), _merge((), self.dress, sign))


SAME = Label()
DUAL = Label(flip=True)


@dataclass(frozen=True)
class Narrowing:
    """Why an axis lost frames."""

    before: str
    after: str
    reason: str
    source: str
    at: Constraint | None = field(default=None, compare=False, repr=False)
    """The constraint that asked for it; None for an observed output."""


@dataclass(eq=False)
class Axis:
    """One factor of a dimension. State below `parent` is meaningful at a root only."""

    size: int
    name: str
    kind: Kind = Kind.GL
    pinned: bool = False
    fresh: bool = False
    """Belongs to a parameter that nothing has used yet."""
    depends: frozenset[Axis] = frozenset()
    """Index axes that the frame may depend on (one matrix per head, ...)."""
    charge: Charge = NONE
    parent: Axis | None = None
    label: Label = SAME
    quotient: Axis | None = None
    """Seen by layer norms alone, as far as metrics go: the frame is (1 + 1wᵀ) times the frame of this axis."""
    factors: tuple[Axis, ...] = ()
    views: tuple[Axis, ...] = ()
    """Factors of a reshape that no operation has told apart yet."""
    view_of: Axis | None = None
    sample: Tensor | None = None
    """Of a member smaller than its class: the choice whose positions, among those of the class, it stands for."""
    chosen: bool = False
    """Entries of it are chosen by value, so it is not divided any more."""
    repeated: bool = False
    """Tensors are constant along it."""
    gains: set[Tensor] = field(default_factory=set)
    """Those that conjugate frames of the class."""
    conjugates: bool = False
    """The axis of a gain that conjugates frames: nothing turns it, or its new values would ask for themselves."""
    narrowings: list[Narrowing] = field(default_factory=list)
    serial: int = field(default_factory=lambda: next(_serial))
    _children: tuple[Axis, ...] = ()

    def __repr__(self) -> str:
        return f"{self.name}#{self.serial}({self.size})"

    # -- union-find --------------------------------------------------------------------------------------------
    def find(self) -> tuple[Axis, Label]:
        """Root and label, with path compression."""
        if self.parent is None:
            return self, SAME
        root, above = self.parent.find()
        if root is self.parent:
            return root, self.label
        self.label, self.parent = self.label.after(above), root
        return root, self.label

    @property
    def root(self) -> Axis:
        return self.find()[0]

    # -- structure ---------------------------------------------------------------------------------------------
    def leaves(self) -> list[Axis]:
        """Unfold products."""
        if self.parent is None and not self.factors:
            return [self]
        root = self.root
        if not root.factors:
            return [self]
        return [leaf for child in self.children() for leaf in child.leaves()]

    def children(self) -> tuple[Axis, ...]:
        """Factors as this member sees them: copies that carry the member's label."""
        if self._children or self.parent is None:
            return self._children or self.factors
        root, label = self.find()
        parts = root.factors
        if label == SAME or not parts:
            return parts
        if label.dress:
            # only a class without matrices is divided, and there a gain is nothing but a charge
            label = Label(label.flip, sum((g.trade.scaled(p) for g, p in label.dress if g.trade), label.charge))
        vectors = [p for p in parts if p.root.kind.vector]
        carrier = vectors[-1] if vectors else parts[0]
        children = []
        for part in parts:
            wanted = label if part is carrier else Label(flip=label.flip)
            children.append(part if wanted == SAME else attached(part, wanted, part.name))
        self._children = tuple(children)
        return self._children

    def ground(self) -> list[Axis]:
        """All root axes below."""
        return [leaf.root for leaf in self.leaves()]


def attached(axis: Axis, label: Label, name: str) -> Axis:
    """A new member of the class of `axis`."""
    return Axis(axis.size, name, parent=axis, label=label, sample=axis.sample)


def common(a: frozenset[Axis], b: frozenset[Axis]) -> frozenset[Axis]:
    """Axes that both sets hold, unfolded and seen through joins."""
    return frozenset(g for x in a for g in x.ground()) & frozenset(g for x in b for g in x.ground())
