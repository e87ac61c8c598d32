"""What a report says, before it is text or JSON."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torchgauge.report.fold import fold, modules, template

if TYPE_CHECKING:
    from torchgauge.certify import Certificate
    from torchgauge.gauge import GaugeGroup
    from torchgauge.values import Factor, Rigid

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Subject:
    """The model that a report is about."""

    spec: str
    model: str
    parameters: int
    tensors: int
    inputs: dict[str, str]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "spec": self.spec,
            "class": self.model,
            "parameters": self.parameters,
            "tensors": self.tensors,
            "inputs": self.inputs,
        }


@dataclass(frozen=True)
class Row:
    """Factors of one kind and size that act at the same place of repeated layers.

    Attributes:
        touches: the modules whose parameters move, folded.
        count: how many factors.
        group: one of them, as in `GL(4) × 8`.
        dimension: of all of them together.
        components: of all of them together.
        exact: False for what holds only as a normalisation's ε → 0.
    """

    touches: tuple[str, ...]
    count: int
    group: str
    dimension: int
    components: str
    exact: bool


@dataclass(frozen=True)
class RigidRow:
    """What took frames away from a space, at the same place of repeated layers."""

    space: str
    count: int
    reason: str
    sources: tuple[str, ...]


@dataclass(frozen=True)
class InspectView:
    """The gauge group of a model, folded over repeated layers."""

    subject: Subject
    rows: tuple[Row, ...]
    rigid: tuple[RigidRow, ...]
    dimension: int
    components: str
    observed: tuple[str, ...]
    dropped: tuple[str, ...]
    group: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "command": "inspect",
            "model": self.subject.to_dict(),
            "group": self.group,
            "notes": list(self.subject.notes),
        }


@dataclass(frozen=True)
class CertifyView:
    """A certificate and its verdict."""

    subject: Subject
    certificate: Certificate

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "command": "certify",
            "model": self.subject.to_dict(),
            "holds": self.certificate.holds,
            "certificate": self.certificate.to_dict(),
            "notes": list(self.subject.notes),
        }


def view_group(subject: Subject, group: GaugeGroup) -> InspectView:
    """The view of an inferred group."""
    return InspectView(
        subject,
        tuple(_rows(group.factors)),
        tuple(_rigid(group.rigid)),
        group.dimension,
        show_components(group.components),
        tuple(group.observed),
        tuple(group.dropped),
        group.to_dict(),
    )


def view_certificate(subject: Subject, certificate: Certificate) -> CertifyView:
    """The view of a certificate: it holds when the group is sound and nothing is missing."""
    return CertifyView(subject, certificate)


# -- folding ---------------------------------------------------------------------------------------------------
def _rows(factors: Sequence[Factor]) -> list[Row]:
    alike: dict[tuple[Any, ...], list[Factor]] = defaultdict(list)
    for factor in factors:
        touched = tuple(sorted({template(name) for name in factor.parameters}))
        discrete = tuple(sorted(factor.components.items()))
        key = (factor.kind, factor.size, factor.copies, factor.dimension, factor.exact, discrete, touched)
        alike[key].append(factor)
    return [_row(members) for members in alike.values()]


def _row(members: Sequence[Factor]) -> Row:
    first, count = members[0], len(members)
    return Row(
        tuple(modules(name for factor in members for name in factor.parameters)),
        count,
        show_group(first.kind, first.size, first.copies),
        count * first.dimension,
        show_components({base: power * count for base, power in first.components.items()}),
        first.exact,
    )


def _rigid(rigid: Sequence[Rigid]) -> list[RigidRow]:
    """Folded over layers; of several causes of one change of one space the first is shown."""
    alike: dict[tuple[str, str], list[tuple[Rigid, str, list[str]]]] = defaultdict(list)
    seen: set[tuple[str, str]] = set()
    for entry in rigid:
        cause, _, change = entry.reason.rpartition(": ")
        states = [_STATES.get(state, state) for state in change.split(" → ")] if cause and " → " in change else []
        cause = cause if states else entry.reason
        if states and (entry.space, change) in seen:
            continue
        seen.add((entry.space, change))
        alike[template(entry.space), template(cause)].append((entry, cause, states))
    return [_rigid_row(entries) for entries in alike.values()]


def _rigid_row(entries: Sequence[tuple[Rigid, str, list[str]]]) -> RigidRow:
    first, cause, _ = entries[0]
    # one cause may narrow a space in several steps: its first and its last state tell
    states = [state for entry, _, steps in entries if entry.space == first.space for state in steps]
    spaces = dict.fromkeys(entry.space for entry, _, _ in entries)
    sources = tuple(fold(dict.fromkeys(entry.source for entry, _, _ in entries if entry.source)))
    reason = f"{cause}: {states[0]} → {states[-1]}" if states else cause
    return RigidRow(", ".join(fold(spaces)), len(spaces), reason, sources)


# what the frames of a space are called where they were narrowed
_STATES = {"O1": "O fixing 1", "complex": "rotary pairs", "turn": "turns of rotary pairs"}
_LABELS = {
    "GL": "GL({})",
    "O": "O({})",
    "O1": "O({}) fixing 1",
    "complex": "C*^{}",
    "turn": "SO(2)^{}",
    "permutation": "S_{}",
    "sign": "±1^{}",
    "scale": "R>0^{}",
    "gain": "R*^{}",
    "shift": "R^{} shift",
    "shear": "R^{} shear",
    "unreachable": "R^{} unreachable",
    "invisible": "R^{} invisible",
    "isospectral": "R^{} isospectral",
}


def show_group(kind: str, size: int, copies: int = 1) -> str:
    """`GL(4) × 8`: the group and how many independent copies of it."""
    label = _LABELS.get(kind, kind + "({})").format(size // 2 if kind in ("complex", "turn") else size)
    return label if copies == 1 else f"{label} × {copies}"


def show_components(components: Mapping[str, int]) -> str:
    """`8!² · 2^8` for {"8!": 2, "2^8": 1}; `1` where there is one component."""
    parts = [name if power == 1 else f"({name})^{power}" for name, power in components.items() if power]
    return " · ".join(parts) or "1"
