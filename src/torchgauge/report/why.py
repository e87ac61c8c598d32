"""What stands between a space and a larger group, as a report."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torchgauge.errors import InputError
from torchgauge.report.fold import modules, template
from torchgauge.report.view import SCHEMA_VERSION, Subject

if TYPE_CHECKING:
    from torchgauge.explain import Space, Why
    from torchgauge.gauge import GaugeGroup

SHOWN = 12
"""Different spaces that one name may mean before the rest is left out."""


@dataclass(frozen=True)
class WhyView:
    """The paragraphs of the spaces that a name means; spaces of repeated layers are told once.

    Attributes:
        whys: one of each kind of space.
        alike: how many spaces of each kind there are.
        left_out: how many kinds are not told.
    """

    subject: Subject
    name: str
    whys: tuple[Why, ...]
    alike: tuple[int, ...]
    left_out: int

    def to_dict(self) -> dict[str, Any]:
        told = zip(self.whys, self.alike, strict=True)
        return {
            "schema_version": SCHEMA_VERSION,
            "command": "inspect",
            "model": self.subject.to_dict(),
            "name": self.name,
            "why": [why.to_dict() | {"alike": count} for why, count in told],
            "left_out": self.left_out,
            "notes": list(self.subject.notes),
        }


def view_why(subject: Subject, group: GaugeGroup, name: str) -> WhyView:
    """Explain the spaces that a name means.

    Args:
        subject: the model.
        group: its gauge group.
        name: of a space, factor, parameter or module, or as `inspect` shows it: `layers.{0-3}.{q_proj, k_proj}`.

    Raises:
        InputError: nothing is called that.
    """
    kinds: dict[tuple[Any, ...], list[Space]] = {}
    for space in chosen(group, name):
        key = (space.size, *(template(label) for label in space.labels))
        kinds.setdefault(key, []).append(space)
    told = list(kinds.values())[:SHOWN]
    whys = tuple(why for spaces in told for why in group.why(spaces[0]))
    return WhyView(subject, name, whys, tuple(len(spaces) for spaces in told), len(kinds) - len(told))


def chosen(group: GaugeGroup, name: str) -> tuple[Space, ...]:
    """The spaces that a name means, plain or folded."""
    try:
        return group.select(name)
    except InputError:
        found = [*_of_factors(group, set(_names(name))), *_of_factors(group, set(_names(name, first=True)))]
        found = found or _covered(group, set(_names(name, first=True))) or _covered(group, set(_names(name)))
        if not found:
            raise
    # and those of the other layers
    kinds = {tuple(template(label) for label in s.labels) for s in found}
    return tuple(s for s in group.spaces if tuple(template(label) for label in s.labels) in kinds)


def _of_factors(group: GaugeGroup, names: set[str]) -> list[Space]:
    """The spaces of the factors that act on exactly these modules or parameters."""
    exact = [f.name for f in group.factors if names in (_modules(f.parameters), set(f.parameters))]
    return [s for name in dict.fromkeys(exact) for s in group.select(name)]


def _modules(parameters: Sequence[str]) -> set[str]:
    return {one for folded in modules(parameters) for one in _names(folded)}


def _covered(group: GaugeGroup, names: set[str]) -> list[Space]:
    """The spaces that all these modules or parameters touch, and as little else as possible."""
    shares: dict[Space, float] = {}
    for s in group.spaces:
        touched = {one: [p for p in s.parameters if p == one or p.startswith(f"{one}.")] for one in names}
        if all(touched.values()):
            shares[s] = len({p for found in touched.values() for p in found}) / len(s.parameters)
    return [s for s, share in shares.items() if share == max(shares.values())]


_BRACES = re.compile(r"\{([^{}]*)\}")


def _names(pattern: str, *, first: bool = False) -> Iterator[str]:
    """The names that a folded one stands for; with `first`, of a run of numbers the first alone."""
    pattern = re.sub(r" ×\d+$", "", pattern.strip())
    match = _BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    for part in _parts(match.group(1), first):
        yield from _names(pattern[: match.start()] + part + pattern[match.end() :], first=first)


def _parts(inside: str, first: bool) -> Sequence[str]:
    parts = [p.strip() for p in inside.split(",") if p.strip() and p.strip() != "…"]
    if not all(re.fullmatch(r"\d+(-\d+)?", p) for p in parts):
        return parts
    spans = [p.partition("-") for p in parts]
    numbers = [str(i) for low, _, high in spans for i in range(int(low), int(high or low) + 1)]
    return numbers[:1] if first else numbers
