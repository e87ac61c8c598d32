"""The spaces of a network, as its parameters see them: groups of parameter dimensions that carry one frame."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches

from torchgauge import factors as describe
from torchgauge.action.frame_action import FrameStage, var_axes
from torchgauge.errors import InputError
from torchgauge.spaces.axes import Axis
from torchgauge.spaces.frames import FramePass

SHOWN = 24
"""Spaces that an error lists."""


@dataclass(frozen=True)
class Space:
    """One space: the dimensions of parameters that carry the same frame.

    Attributes:
        name: for a reader; not unique.
        size: how many entries.
        places: (name of a tensor of the program, dimension) of each.
        parameters: the names of the parameters.
        roots: the axes that it is a product of, outermost first.
    """

    name: str
    size: int
    places: tuple[tuple[str, int], ...]
    parameters: tuple[str, ...]
    roots: tuple[Axis, ...] = field(repr=False, default=())

    @property
    def labels(self) -> tuple[str, ...]:
        """`name[dimension]` of every place."""
        return tuple(f"{key}[{dim}]" for key, dim in self.places)


def behind(root: Axis) -> Axis:
    """The axis that stands for a space on both sides of its layer norms."""
    return root.quotient.root if root.quotient is not None else root


def spaces(frames: FramePass) -> tuple[Space, ...]:
    """All spaces that parameters touch, in order of appearance."""
    program = frames.program
    roots = dict.fromkeys(g.root for v in frames.values.values() for axis in v.axes for g in axis.ground())
    # a gain moves with the space that it multiplies
    gained = {gain: (behind(root),) for root in roots if root.kind.vector for gain in root.gains}
    found: dict[tuple[Axis, ...], list[tuple[str, int]]] = {}
    for key, tensor in program.params.items():
        if tensor in frames.values:
            for dim, axes in enumerate(frames.values[tensor].dims):
                product = gained.get(tensor) or tuple(behind(g) for axis in axes for g in axis.ground())
                if axes:
                    found.setdefault(product, []).append((key, dim))
    out = []
    for product, places in found.items():
        names = tuple(dict.fromkeys(program.coordinates[key].name for key, _ in places))
        key, dim = places[0]
        name = f"{names[0]}[{dim}]" if len(names) == 1 else describe.place(names)
        out.append(Space(name, program.params[key].shape[dim], tuple(places), names, product))
    return tuple(out)


def select(
    known: tuple[Space, ...], wanted: str, stage: FrameStage, ties: Mapping[str, str], factors: Iterable
) -> tuple[Space, ...]:
    """The spaces that a reader means.

    Args:
        known: all spaces.
        wanted: the name of a space, a factor, a parameter (`name` or `name[dimension]`) or a module.
        stage: the solved frames.
        ties: tied names → canonical names.
        factors: the factors of the group.

    Raises:
        InputError: nothing is called that; lists what there is.
    """
    wanted = wanted.strip()
    canonical, dim = _parameter(wanted, ties)
    exact = [s for s in known if wanted in (s.name, *s.labels)]
    exact += [s for s in known for key, d in s.places if _bare(key) == canonical and d == dim]
    if exact:
        return tuple(dict.fromkeys(exact))
    roots = {behind(r) for name, axes in _factor_axes(stage) if name == wanted for r in axes}
    found = [s for s in known if roots & set(s.roots)]
    parameters = {canonical} if dim is None else set()
    parameters |= {p for f in factors if f.name == wanted for p in f.parameters[:1]} if not found else set()
    found = found or [s for s in known if parameters & set(s.parameters)]
    found = found or [s for s in known if any(p.startswith(f"{wanted}.") for p in s.parameters)]
    if not found or not wanted:
        raise _unknown(known, wanted)
    return tuple(found)


def _parameter(text: str, ties: Mapping[str, str]) -> tuple[str, int | None]:
    match = re.fullmatch(r"(.+)\[(\d+)\]", text)
    name = match.group(1) if match else text
    return ties.get(name, name), int(match.group(2)) if match else None


def _bare(key: str) -> str:
    """The name of a parameter, of which the program may know a part."""
    return key.split("[")[0]


def _factor_axes(stage: FrameStage) -> list[tuple[str, tuple[Axis, ...]]]:
    """The names of the factors made of frames, each with the axes that it acts on."""
    axes: list[tuple[Axis, ...]] = [(r,) for r in (*stage.vectors, *stage.sheared, *stage.indices)]
    axes += [var_axes(v) for v in (*stage.log_vars, *stage.sign_vars)]
    return list(zip((f.name for f in describe.frame_factors(stage)), axes, strict=True))


def _unknown(known: tuple[Space, ...], wanted: str) -> InputError:
    every = list(dict.fromkeys([*(s.name for s in known), *(p for s in known for p in s.parameters)]))
    alike: dict[str, list[str]] = {}
    for s in known:
        alike.setdefault(re.sub(r"\d+", "#", s.name), []).append(s.name)
    names = [found[0] + (f" (and {len(found) - 1} alike)" if len(found) > 1 else "") for found in alike.values()]
    close = get_close_matches(wanted, every, n=3, cutoff=0.6)
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    listed = "; ".join(names[:SHOWN]) + more
    meant = f"Did you mean {' or '.join(close)}? " if close else ""
    return InputError(
        f"no space, factor, parameter or module is called {wanted!r}",
        remedy=f"{meant}The spaces are: {listed}. The name of any parameter will do, such as {every[-1]}.",
    )
