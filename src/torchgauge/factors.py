"""What a solved group consists of, as values to read: its factors, its components, and what is rigid."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import prod

from torchgauge.action.additive import Additive
from torchgauge.action.frame_action import FrameStage, depends, var_axes
from torchgauge.action.free_action import Free, FreeStage
from torchgauge.action.gain_action import GainStage
from torchgauge.action.invisible_action import InvisibleStage, Writer
from torchgauge.action.range_action import RangeStage
from torchgauge.action.row_scale_action import RowScaleStage
from torchgauge.action.shift_action import ShiftStage, param_of
from torchgauge.groups import matrices
from torchgauge.spaces.axes import Axis
from torchgauge.spaces.charges import Var
from torchgauge.spaces.constraints import Program
from torchgauge.spaces.ranges import Reader
from torchgauge.spaces.row_scales import Table
from torchgauge.spaces.shifts import Source
from torchgauge.values import Factor

CONNECTED = {"GL": 2, "O": 2, "O1": 2, "complex": 1, "turn": 1}
"""Connected components of one copy."""


def frame_factors(stage: FrameStage, followers: Mapping[str, frozenset[str]] = {}) -> list[Factor]:
    """Matrices, permutations, scales and signs; the latter move what has taken up a constant behind the units too."""
    where = touched(stage)
    out = [_matrix_factor(r, where[r]) for r in stage.vectors]
    out += [_shear_factor(r, where[r]) for r in stage.sheared]
    out += [_permutation_factor(r, where[r]) for r in stage.indices]
    out += [_charge_factor(stage, v, odd=False) for v in stage.log_vars]
    out += [followed(_charge_factor(stage, v, odd=True), followers) for v in stage.sign_vars]
    return out


def touched(stage: FrameStage) -> dict[Axis, tuple[str, ...]]:
    """The parameters on which every axis stands."""
    found: dict[Axis, dict[str, None]] = {}
    for name, layout in stage.layout.items():
        for leg in layout.legs:
            found.setdefault(leg.root, {})[_learnable(stage.program, name)] = None
    for root in stage.covers:
        assert root.quotient is not None
        found.setdefault(root.quotient.root, {}).update(found[root])
    return {root: tuple(names) for root, names in found.items()}


def _learnable(program: Program, key: str) -> str:
    if key in program.coordinates:
        return program.coordinates[key].name
    return program.buffer_coordinates[key.removeprefix("buffer:")].name


def _matrix_factor(root: Axis, parameters: tuple[str, ...]) -> Factor:
    kind, size = root.kind.value, root.size
    copies = prod(d.size for d in depends(root))
    dimension = copies * matrices.dimension(kind, size)
    if root.kind.plane:
        # all planes of one head together
        planes = prod(d.size for d in depends(root) if d.pinned)
        size, copies = size * planes, copies // planes
    sheets = CONNECTED[kind] if not (kind == "O1" and root.size < 2) else 1
    components = {str(sheets): copies} if sheets > 1 else {}
    return Factor(place(parameters), kind, size, copies, dimension, components, parameters, _sources(root))


def _shear_factor(root: Axis, parameters: tuple[str, ...]) -> Factor:
    copies = prod(d.size for d in depends(root))
    return Factor(place(parameters), "shear", root.size, copies, copies * root.size, {}, parameters, _sources(root))


def _permutation_factor(root: Axis, parameters: tuple[str, ...]) -> Factor:
    copies = prod(d.size for d in depends(root))
    components = {f"{root.size}!": copies}
    return Factor(place(parameters), "permutation", root.size, copies, 0, components, parameters, _sources(root))


def _charge_factor(stage: FrameStage, var: Var, *, odd: bool) -> Factor:
    parameters = tuple(
        dict.fromkeys(
            _learnable(stage.program, name)
            for name, terms in stage.rows.items()
            for _, logs, odds in terms
            if var in (odds if odd else logs)
        )
    )
    size = prod(a.size for a in var_axes(var))
    kind = "sign" if odd else "scale"
    components = {f"2^{size}": 1} if odd else {}
    sources = (var.origin,) if var.origin else ()
    return Factor(place(parameters), kind, size, 1, 0 if odd else size, components, parameters, sources)


def additive_factors(stage: Additive) -> list[Factor]:
    """Shifts of biases, writers along directions that no reader sees, readers across what reaches them."""
    if isinstance(stage, ShiftStage):
        return [_shift_factor(stage, s) for s in stage.free]
    if isinstance(stage, InvisibleStage):
        return [_invisible_factor(stage, w) for w in stage.free]
    if isinstance(stage, RowScaleStage):
        return [_row_factor(stage, table) for table in stage.free]
    if isinstance(stage, GainStage):
        return [_gain_factor(stage)]
    if isinstance(stage, FreeStage):
        return [_free_factor(stage, f) for f in stage.free]
    assert isinstance(stage, RangeStage)
    return [_range_factor(stage, r) for r in stage.free]


def _shift_factor(stage: ShiftStage, source: Source) -> Factor:
    name = _learnable(stage.shifts.program, param_of(stage.shifts.makers, source.tensor).name)
    others = [s.tensor for s, (_, terms) in stage.shifts.solved.items() if source in terms]
    others += [source.partner[0]] if source.partner else []
    others += [*source.also, *stage.taking_up(source)]
    absorbed = [_learnable(stage.shifts.program, param_of(stage.shifts.makers, t).name) for t in others]
    parameters = tuple(dict.fromkeys([name, *absorbed]))
    size = prod(stage.shape(source))
    kind = "unreachable" if source.kind == "relation" else "shift"
    return Factor(place(parameters), kind, size, 1, size, {}, parameters, (source.at.out.source,))


def _invisible_factor(stage: InvisibleStage, writer: Writer) -> Factor:
    name = _learnable(stage.program, param_of(stage.shifts.makers, writer.tensor).name)
    size = writer.dimension
    return Factor(place((name,)), "invisible", size, 1, size, {}, (name,), (writer.tensor.source,))


def _free_factor(stage: FreeStage, free: Free) -> Factor:
    size, source = stage.dimension(free), stage.program.params[free.name].source
    return Factor(place((free.name,)), "invisible", size, 1, size, {}, (free.name,), (source,))


def _range_factor(stage: RangeStage, reader: Reader) -> Factor:
    shown = [reader.tensor, *([reader.bias] if reader.bias is not None else [])]
    names = tuple(_learnable(stage.program, param_of(stage.sources.makers, t).name) for t in shown)
    size = reader.dimension
    return Factor(place(names), "unreachable", size, 1, size, {}, names, (reader.tensor.source,))


def _row_factor(stage: RowScaleStage, table: Table) -> Factor:
    name, size = _learnable(stage.program, table.tensor.name), stage.dimension(table)
    return Factor(place((name,)), "scale", size, 1, size, {}, (name,), (table.source,))


def _gain_factor(stage: GainStage) -> Factor:
    place, size = stage.place, stage.dimension(stage.place)
    where = touched(stage.frames)
    # the matrix in place of the gain goes by the gain's name
    names = dict.fromkeys(n for root in (place.front, place.behind) for n in where.get(root, ()))
    gain = _learnable(stage.program, place.gain.name)
    return Factor(gain, "isospectral", size, 1, size, {}, tuple(names), _sources(place.behind))


def approximate_factors(exact: FrameStage, limit: FrameStage) -> list[Factor]:
    """Scales that only a non-zero ε of some normalisation forbids."""
    held: dict[str, int] = {}
    for v in exact.log_vars:
        held[v.name] = held.get(v.name, 0) + prod(a.size for a in var_axes(v))
    missing = sum(prod(a.size for a in var_axes(v)) for v in limit.log_vars) - sum(held.values())
    out: list[Factor] = []
    for v in limit.log_vars:
        size = prod(a.size for a in var_axes(v))
        extra = min(size - min(size, held.get(v.name, 0)), missing)
        if extra > 0:
            factor = _charge_factor(limit, v, odd=False)
            out.append(
                Factor(factor.name, "scale", extra, 1, extra, {}, factor.parameters, factor.sources, exact=False)
            )
            missing -= extra
    return out


def followed(factor: Factor, followers: Mapping[str, frozenset[str]]) -> Factor:
    """A factor with the parameters too that move since they have taken up what its own compute."""
    names = dict.fromkeys(factor.parameters)
    while more := [name for name, cone in followers.items() if name not in names and not cone.isdisjoint(names)]:
        names |= dict.fromkeys(more)
    if len(names) == len(factor.parameters):
        return factor
    return replace(factor, name=place(names), parameters=tuple(names))


def place(parameters: Iterable[str]) -> str:
    """A short name for where a factor acts: the common module and what differs below it."""
    names = list(parameters)
    if not names:
        return "nothing"
    if len(names) == 1:
        return names[0]
    common = os.path.commonprefix([n.split(".") for n in names])
    rest = [".".join(n.split(".")[len(common) :]) for n in names]
    shown = ", ".join(rest[:4]) + (", …" if len(rest) > 4 else "")
    return ".".join(common) + ("." if common else "") + "{" + shown + "}"


def _sources(root: Axis) -> tuple[str, ...]:
    return tuple(dict.fromkeys(n.source for n in root.narrowings if n.source))
