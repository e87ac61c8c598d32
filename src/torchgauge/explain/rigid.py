"""Where frames were lost, and why: the steps in which the engine narrowed every space."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torchgauge import factors as describe
from torchgauge.action.frame_action import FrameStage
from torchgauge.explain.causes import Touching
from torchgauge.spaces import constraints as c
from torchgauge.spaces.axes import Axis, Narrowing
from torchgauge.values import Rigid


def rigid(stage: FrameStage, ties: Mapping[str, str]) -> tuple[Rigid, ...]:
    """What took frames away: unknown operators first, then every narrowing of a space that parameters touch.

    Args:
        stage: the solved frames.
        ties: tied names → canonical names.
    """
    touching = Touching(stage.frames, ties)
    out = [Rigid("everything it reads", what, where) for what, where in stage.program.opaque]
    touched = describe.touched(stage)
    for root in dict.fromkeys(leg.root for leg in stage.legs):
        space = describe.place(touched[root])
        for n in root.narrowings:
            reason = _because(n, root, touching)
            # the planes of a rotary embedding stay where they are; inside of each, complex numbers are left
            after = "complex" if isinstance(n.at, c.Rotate) and n.after == "rigid" else n.after
            out.append(Rigid(space, f"{reason}: {n.before} → {after}", n.source))
    return tuple(dict.fromkeys(out))


def _because(n: Narrowing, root: Axis, touching: Touching) -> str:
    """The reason of a narrowing, with the input, the gain or the tie that is behind it."""
    k = n.at
    if isinstance(k, c.Opaque):
        return k.reason
    if isinstance(k, c.Contract):
        if (name := touching.input_of(k)) and root.pinned:
            return f"the input {name} is read as it is"
        found = [*_gains(k.x, touching), *_gains(k.y, touching), *_ties(k, touching)]
        if _ties(k, touching) and found:
            return " and ".join(dict.fromkeys(found)) + (" together" if len(set(found)) > 1 else "")
    return n.reason


def _gains(t: c.Tensor, touching: Touching) -> Iterator[str]:
    """The gain that a linear map reads its input through."""
    made = touching.maker(t)
    if isinstance(made, c.Add) and touching.static(made.y) is not None:
        made = touching.maker(made.x)
    if isinstance(made, c.Mul) and (gain := touching.static(made.y)) is not None and gain.role == "param":
        yield f"the gain {touching.name(gain)}"


def _ties(k: c.Contract, touching: Touching) -> list[str]:
    statics = [t for t in map(touching.static, k.inputs) if t is not None and t.role == "param"]
    found = [touching.tie(t) for t in statics]
    return [one.noun.one for one in found if one is not None]
