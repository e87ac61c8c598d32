"""What one inference remembers beside the axes themselves: equations between charges, gains, and reasons."""

from __future__ import annotations

from dataclasses import dataclass, field

from torchgauge.spaces.axes import Axis, Kind, Label, Narrowing
from torchgauge.spaces.charges import NONE, Charge, System
from torchgauge.spaces.constraints import Constraint, Tensor


@dataclass(frozen=True)
class Gain:
    """A gain that frames pass by conjugation."""

    own: Axis
    """Its axis along the vectors."""
    axes: tuple[Axis, ...]
    """All its axes in order; those other than `own` are indices that the gain depends on too."""
    trade: Charge
    """The charge that it may trade (for classes that collapse): the explicit one, for its axes have none."""

    @property
    def index(self) -> frozenset[Axis]:
        return frozenset(g for a in self.axes if a is not self.own for g in a.ground())


@dataclass
class Ledger:
    """The equations between charges, and what may be read from them; the operator at work gives source and reason."""

    system: System = field(default_factory=System)
    covers: list[Axis] = field(default_factory=list)
    """Axes in front of layer norms."""
    gain_axes: dict[Tensor, Gain] = field(default_factory=dict)
    mixed: set[Axis] = field(default_factory=set)
    """Axes of which several choices meet, so that nothing may depend on the index."""
    crossed: list[Axis] = field(default_factory=list)
    """Axes that were matched with axes of another division."""
    source: str = ""
    reason: str = ""
    at: Constraint | None = None

    def total(self, axis: Axis) -> Charge:
        """The charge of a leg: its label's and its class's, over all factors."""
        leaves = axis.leaves()
        if leaves != [axis]:
            return sum((self.total(leaf) for leaf in leaves), NONE)
        root, label = axis.find()
        if label.dress and not root.kind.vector:
            label = self._undressed(axis)
        return label.charge + (root.charge.scaled(-1 if label.flip else 1) if root.charge else NONE)

    def _undressed(self, axis: Axis) -> Label:
        """In a class that lost its matrices a gain is nothing but a charge."""
        root, label = axis.find()
        charge = label.charge
        for gain, power in label.dress:
            charge = charge + self.gain_axes[gain].trade.scaled(power)
        axis.label = Label(label.flip, charge)
        axis.parent = root
        return axis.label

    def _note(self, root: Axis, after: str) -> None:
        before = ("rigid" if root.pinned else "permutations") if root.kind is Kind.INDEX else root.kind.value
        root.narrowings.append(Narrowing(before, after, self.reason, self.source, self.at))
