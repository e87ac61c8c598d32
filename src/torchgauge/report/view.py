"""What a report says, before it is text or JSON."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torchgauge.report.fold import fold, modules, template

if TYPE_CHECKING:
    from torchgauge.certify import Certificate
    from torchgauge.gauge import Factor, GaugeGroup

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
    """Factors of the same kind at the same place of repeated layers."""

    name: str
    count: int
    group: str
    dimension: int
    components: str
    touches: tuple[str, ...]
    exact: bool


@dataclass(frozen=True)
class RigidRow:
    """A space that keeps its coordinates."""

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
        sum(factor.dimension for factor in group.factors),
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
        shape = (factor.kind, factor.size, factor.copies, factor.dimension, factor.exact, discrete)
        alike[(template(factor.name), *shape, touched)].append(factor)
    rows: list[Row] = []
    for members in alike.values():
        first = members[0]
        names = fold(factor.name for factor in members)
        same_names = sum(count for _, count in names) != len(members)
        for name, count in [(names[0][0], len(members))] if same_names else names:
            inside = members if len(names) == 1 or same_names else _matching(members, name)
            touches = modules(parameter for factor in inside for parameter in factor.parameters)
            components = show_components(first.components)
            label = show_group(first.kind, first.size, first.copies)
            rows.append(Row(name, count, label, first.dimension, components, tuple(touches), first.exact))
    return rows


def _matching(members: Sequence[Factor], pattern: str) -> list[Factor]:
    names = set(expand(pattern))
    return [factor for factor in members if factor.name in names]


def expand(pattern: str) -> list[str]:
    """The names that a pattern stands for: the inverse of `fold`."""
    head, brace, tail = pattern.partition("{")
    if not brace:
        return [pattern]
    inside, _, rest = tail.partition("}")
    if not inside[:1].isdigit():
        return [head + brace + item for item in expand(tail)]
    values: list[int] = []
    for part in inside.split(","):
        low, _, high = part.partition("-")
        values.extend(range(int(low), int(high or low) + 1))
    return [f"{head}{value}{item}" for value in values for item in expand(rest)]


def _rigid(rigid: Sequence[Any]) -> list[RigidRow]:
    alike: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for entry in rigid:
        alike[(template(entry.space), template(entry.reason))].append(entry)
    rows: list[RigidRow] = []
    for members in alike.values():
        names = fold(entry.space for entry in members)
        reason = fold(entry.reason for entry in members)[0][0]
        sources = tuple(pattern for pattern, _ in fold(e.source for e in members if e.source))
        rows.append(RigidRow(", ".join(pattern for pattern, _ in names[:3]), len(members), reason, sources))
    return rows


_LABELS = {
    "GL": "GL({})",
    "O": "O({})",
    "O1": "O({}) fixing 1",
    "complex": "C*^{}",
    "permutation": "S_{}",
    "sign": "±1^{}",
    "scale": "R>0^{}",
    "gain": "R*^{}",
    "shift": "R^{}",
    "unreachable": "R^{}",
    "invisible": "R^{}",
}


def show_group(kind: str, size: int, copies: int = 1) -> str:
    """`GL(4) × 8`: the group and how many independent copies of it."""
    label = _LABELS.get(kind, kind + "({})").format(size)
    return label if copies == 1 else f"{label} × {copies}"


def show_components(components: Mapping[str, int]) -> str:
    """`8!² · 2^8` for {"8!": 2, "2^8": 1}; `1` where there is one component."""
    parts = [name if power == 1 else f"({name})^{power}" for name, power in components.items() if power]
    return " · ".join(parts) or "1"
