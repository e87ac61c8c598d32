"""Why a space carries no larger group: computed, by taking away what touches it and solving again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torchgauge.action.frame_action import FrameStage
from torchgauge.explain.causes import Cause, Touching
from torchgauge.explain.measure import Frame, frame
from torchgauge.explain.paragraph import Reason, paragraph
from torchgauge.explain.spaces import Space
from torchgauge.explain.without import Without
from torchgauge.spaces.axes import Narrowing

MOST = 12
"""Causes of one space that are taken away one by one."""


@dataclass(frozen=True)
class Why:
    """What stands between one space and a larger group.

    Attributes:
        space: a name for a reader.
        size: how many entries it has.
        parameters: the parameters that it runs through.
        group: its frames, in words.
        reasons: everything that matters, each with the group that would come if it alone were gone.
        together: the reasons that must all go for `largest`, where no one of them is enough.
        largest: the group that would come without all of the reasons.
        fixed: (reason, source line) of what cannot be taken away.
        narrowed: the steps in which the engine narrowed the space.
        paragraph: all of it in one paragraph.
    """

    space: str
    size: int
    parameters: tuple[str, ...]
    group: str
    reasons: tuple[Reason, ...]
    together: tuple[str, ...]
    largest: str
    fixed: tuple[tuple[str, str], ...]
    narrowed: tuple[Narrowing, ...]
    paragraph: str

    def __str__(self) -> str:
        return self.paragraph

    def to_dict(self) -> dict[str, object]:
        return {
            "space": self.space,
            "size": self.size,
            "parameters": list(self.parameters),
            "group": self.group,
            "reasons": [r.to_dict() for r in self.reasons],
            "together": list(self.together),
            "largest": self.largest,
            "fixed": [{"reason": what, "source": source} for what, source in self.fixed],
            "narrowed": [
                {"before": n.before, "after": n.after, "reason": n.reason, "source": n.source} for n in self.narrowed
            ],
            "paragraph": self.paragraph,
        }


def why(space: Space, stage: FrameStage, ties: Mapping[str, str]) -> Why:
    """Explain one space.

    Everything that touches it is taken away, each alone, then all at once, and the frames of what is left are solved
    again. The larger groups are those of other networks: they say what a reason costs, not what this network has.

    Args:
        space: of these frames (see `spaces`).
        stage: the solved frames.
        ties: tied names → canonical names.
    """
    frames, place, roots = stage.frames, space.places[0], frozenset(space.roots)
    touching = Touching(frames, ties)
    now = frame(frames, stage.solution, frames.program.params[place[0]], place[1])
    fixed = touching.fixed(roots)
    causes = [] if now.full else touching.causes(roots)[:MOST]
    alone: list[tuple[Cause, Frame]] = []
    needed: list[Cause] = []
    largest = now

    def less(removed: Iterable[Cause]) -> Frame:
        return Without(frames, removed).frame(place)

    if causes and (best := less(causes)) > now:
        alone = [(cause, found) for cause in causes if (found := less([cause])) > now]
        if all(best > found for _, found in alone):
            needed = _fewest(causes, best, less)
        largest = best
    reasons = _reasons(alone, needed)
    steps = tuple(dict.fromkeys(n for root in space.roots for n in root.narrowings))
    text = paragraph(space.name, space.size, now, reasons, needed, largest, fixed, steps)
    return Why(
        space.name,
        space.size,
        space.parameters,
        str(now),
        reasons,
        tuple(cause.what for cause in needed),
        str(largest),
        tuple(fixed),
        steps,
        text,
    )


def _fewest(causes: list[Cause], best: Frame, less) -> list[Cause]:
    """Causes that must all go: none can be left in place without losing some of the best."""
    kept = list(causes)
    for cause in causes:
        fewer = [one for one in kept if one is not cause]
        if fewer and not best > less(fewer):
            kept = fewer
    return kept


def _reasons(alone: list[tuple[Cause, Frame]], needed: list[Cause]) -> tuple[Reason, ...]:
    found = {id(cause): (cause, without) for cause, without in alone}
    rest = {id(cause): (cause, None) for cause in needed if id(cause) not in found}
    return tuple(
        Reason(cause.what, cause.sources, cause.count, cause.remedy, None if without is None else str(without))
        for cause, without in (found | rest).values()
    )
