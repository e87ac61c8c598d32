"""Soundness: random elements of the group, and generators on a model of any size (theory section 2, certificate i)."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from torchgauge import numerics
from torchgauge.certify.subject import Evaluate, State, Subject
from torchgauge.errors import InputError
from torchgauge.gauge import GaugeGroup

LIMIT = 1e-11


@dataclass(frozen=True)
class Soundness:
    """Defects under random elements.

    Attributes:
        defect: largest relative defect at scale one, at generic parameters.
        large: the same at the larger scale.
        own: largest relative defect at scale one, at the model's own parameters; None where they were not moved.
        tolerance: what still counts as rounding at scale one.
        sound: no defect beyond rounding.
        notes: remarks.
    """

    defect: float
    large: float
    tolerance: float
    sound: bool
    own: float | None = None
    notes: tuple[str, ...] = ()


def move(
    subject: Subject,
    group: GaugeGroup,
    generator: torch.Generator,
    *,
    inputs: int = 3,
    elements: int = 2,
    large_scale: float = 2.0,
    own: bool = True,
) -> Soundness:
    """Moves generic and own parameters by random elements, and compares the outputs.

    Args:
        subject: the model.
        group: its claimed group.
        generator: source of elements.
        inputs: inputs to compare on.
        elements: elements per state at scale one; as many again at `large_scale`.
        large_scale: the larger scale.
        own: whether the model's own parameters are moved as well.
    """
    evaluates = [subject.sample() for _ in range(inputs)]
    states = [subject.generic, *([subject.own()] if own else [])]
    worst = {(index, scale): 0.0 for index in range(len(states)) for scale in (1.0, large_scale)}
    tolerance, sound, notes = LIMIT, True, []
    for index, state in enumerate(states):
        kept = [(e, y) for e in evaluates if _finite(y := _run(e, state))]
        if not kept:
            notes.append("at the model's own parameters the outputs are not finite" if index else "no finite outputs")
            continue
        if index and (why := _barred(group, state)):
            notes.append(f"the model's own parameters were not moved: {why}")
            del worst[1, 1.0]
            continue
        for scale in (1.0, large_scale):
            for _ in range(elements):
                element = group.random(generator, scale=scale)
                moved = group.act(element, state)
                defect = _defect(kept, moved)
                worst[index, scale] = max(worst[index, scale], defect)
                if defect > LIMIT:
                    # far from the identity rounding grows, in the model and in the action: measure by how much before
                    # calling it a defect. An element that is wrong is as wrong beside the state as at it.
                    rounding = _defect(kept[:1], _jitter(moved, subject, generator), moved)
                    beside = _defect(kept[:1], group.act(element, _jitter(state, subject, generator)), moved)
                    limit = min(max(LIMIT, 1e3 * rounding, 30.0 * beside), 1e-6)
                    sound &= defect <= limit
                    if scale == 1.0:
                        tolerance = max(tolerance, limit)
    return Soundness(
        defect=worst[0, 1.0],
        large=worst[0, large_scale],
        tolerance=tolerance,
        sound=sound,
        own=worst.get((1, 1.0)),
        notes=tuple(notes),
    )


def _barred(group: GaugeGroup, state: State) -> str:
    """Why elements cannot act on a state, as on tables of zeros before any training; empty where they can."""
    try:
        group.act(group.random(torch.Generator().manual_seed(0)), state)
    except InputError as error:
        return error.what
    return ""


def _run(evaluate: Evaluate, state: State) -> list[Tensor]:
    with torch.no_grad():
        return evaluate(state)


def _finite(outputs: list[Tensor]) -> bool:
    return all(bool(o.isfinite().all()) for o in outputs)


def _defect(kept: list[tuple[Evaluate, list[Tensor]]], moved: State, reference: State | None = None) -> float:
    worst = 0.0
    for evaluate, y in kept:
        before = y if reference is None else _run(evaluate, reference)
        after = _run(evaluate, moved)
        worst = max(worst, numerics.relative_defect(before, after) if _finite(after) else math.inf)
    return worst


def _jitter(state: State, subject: Subject, generator: torch.Generator) -> State:
    """The state with every parameter off by about one unit in the last place."""

    def shaken(p: Tensor) -> Tensor:
        noise = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.device)
        return p * (1.0 + 2.2e-16 * noise)

    names = set(subject.names)
    return subject.resolve({k: shaken(v) if k in names else v for k, v in state.items()})


@dataclass(frozen=True)
class Pushes:
    """Generators checked by forward-mode products: how many of how many, and the worst relative derivative."""

    checked: int
    total: int
    defect: float
    worst: str = ""


def push_generators(
    subject: Subject, group: GaugeGroup, generator: torch.Generator, *, most: int = 64, seconds: float = 30.0
) -> Pushes:
    """J v for generators v of the full model, relative to J w for a random w of the same size in each parameter.

    Args:
        subject: the model.
        group: its claimed group.
        generator: source of the choice and of the comparison.
        most: all generators up to so many; above, so many of them, of as many families as there is time for.
        seconds: time after which it stops.
    """
    state, evaluate = subject.generic, subject.sample()
    total = int(group.tangent_count)
    order = _spread(group, total, generator) if total > most else list(range(total))
    start, checked, defect, worst = time.monotonic(), 0, 0.0, ""
    for i in order:
        if checked >= most or time.monotonic() - start > seconds:
            break
        name, tangent = _named(group.tangent(state, i))
        tangent = {k: v for k, v in tangent.items() if k in subject.names and bool(v.any())}
        if not tangent:
            continue
        along = float(subject.push(evaluate, state, tangent).norm())
        other = {}
        for key, v in tangent.items():
            w = torch.randn(v.shape, generator=generator, dtype=torch.float64).to(v.device)
            other[key] = w * (v.norm() / w.norm())
        size = float(subject.push(evaluate, state, other).norm())
        # parameters that move nothing at all have no scale of their own
        ratio = along / size if size > 1e-10 else along
        checked += 1
        if ratio > defect:
            defect, worst = ratio, name
    return Pushes(checked, total, defect, worst)


def _spread(group: GaugeGroup, total: int, generator: torch.Generator) -> list[int]:
    """Indices of generators: one of each family in random order, then any."""
    firsts, offset = [], 0
    for *_, shape in group.generators:
        size = math.prod(shape)
        firsts.append(offset + int(torch.randint(size, (), generator=generator)))
        offset += size
    order = torch.randperm(len(firsts), generator=generator).tolist()
    return [firsts[i] for i in order] + torch.randint(total, (64,), generator=generator).tolist()


def _named(tangent: object) -> tuple[str, State]:
    if isinstance(tangent, tuple):
        return str(tangent[0]), tangent[1]
    assert isinstance(tangent, dict)
    return "", tangent
