"""What stands between a space and a larger group, in one paragraph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torchgauge.explain.causes import Cause
from torchgauge.explain.measure import Frame
from torchgauge.spaces.axes import Narrowing
from torchgauge.spaces.constraints import Contract


@dataclass(frozen=True)
class Reason:
    """Something that stands between a space and a larger group.

    Attributes:
        what: a noun phrase.
        sources: lines of the user's model.
        count: in how many places.
        remedy: what to do about it, "" where nothing is to be done.
        without: the group that would come if it alone were gone; None if it alone makes no difference.
    """

    what: str
    sources: tuple[str, ...]
    count: int
    remedy: str
    without: str | None

    def to_dict(self) -> dict[str, object]:
        return {
            "what": self.what,
            "sources": list(self.sources),
            "count": self.count,
            "remedy": self.remedy,
            "without": self.without,
        }


def paragraph(
    name: str,
    size: int,
    now: Frame,
    reasons: Sequence[Reason],
    needed: Sequence[Cause],
    largest: Frame,
    fixed: Sequence[tuple[str, str]],
    steps: Sequence[Narrowing],
) -> str:
    """The paragraph."""
    said = [f"{name}, {size} wide, " + ("is rigid: nothing may move." if now.trivial else f"carries {now}.")]
    if fixed:
        said.append(f"It is held still: {_and([_at(what, (where,)) for what, where in fixed])}.")
    alike: dict[str, list[Reason]] = {}
    for reason in reasons:
        if reason.without is not None:
            alike.setdefault(reason.without, []).append(reason)
    for i, (without, group) in enumerate(sorted(alike.items(), key=lambda item: -len(item[1]))):
        said.append(_alone(without, group, now, first=i == 0))
    if needed:
        said.append(_together(reasons, needed, largest))
    if len(said) == 1 or (fixed and not reasons):
        said.append(_nothing(now, fixed, steps))
    return " ".join(said)


def _alone(without: str, group: Sequence[Reason], now: Frame, *, first: bool) -> str:
    names = _and([_at(r.what, r.sources) for r in group])
    remedies = [r.remedy for r in group if r.remedy]
    do = f" ({' or '.join(remedies)})" if remedies else ""
    if len(group) == 1:
        unknown = "at most " if group[0].remedy.startswith("write a rule") else ""
        if not first:
            return f"Without {names} it would carry {unknown}{without}{do}."
        return f"What stands in the way is {names}: without that it would carry {unknown}{without}{do}."
    leave = "leave nothing" if now.trivial else f"leave {now}"
    either = "either one" if len(group) == 2 else "any one of them"
    return f"Together, {names} {leave}: without {either} it would carry {without}{do}."


def _together(reasons: Sequence[Reason], needed: Sequence[Cause], largest: Frame) -> str:
    told = {r.what for r in reasons if r.without is not None}
    names = _and([cause.what if cause.what in told else _at(cause.what, cause.sources) for cause in needed])
    gone = "all gone at once" if len(needed) > 2 else "both gone" if len(needed) == 2 else "gone"
    return f"With {names} {gone}, it would {'even ' if told else ''}carry {largest}."


def _nothing(now: Frame, fixed: Sequence[tuple[str, str]], steps: Sequence[Narrowing]) -> str:
    if now.full:
        return "That is the largest group that a space can carry."
    if fixed:
        return "That is part of the function itself: no change inside the model frees it."
    told = [n for n in steps if not isinstance(n.at, Contract)] or list(steps)
    last = told[-1] if told else None
    tail = f" The engine narrowed it here: {_at(last.reason, (last.source,))}." if last else ""
    return "Nothing that touches it could be taken away to give it more." + tail


def _at(what: str, sources: Sequence[str]) -> str:
    places = [s for s in sources if s]
    if not places:
        return what
    more = f" and {len(places) - 1} more" if len(places) > 1 else ""
    return f"{what} [{places[0]}{more}]"


def _and(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
