"""From a model to its gauge group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchgauge.action.additive import Additive
from torchgauge.action.frame_action import FrameStage
from torchgauge.action.free_action import Free, FreeStage
from torchgauge.action.gain_action import GainStage
from torchgauge.action.invisible_action import InvisibleStage
from torchgauge.action.range_action import RangeStage
from torchgauge.action.row_scale_action import RowScaleStage
from torchgauge.action.shift_action import ShiftStage
from torchgauge.gauge import GaugeGroup
from torchgauge.observable import Observable, observed
from torchgauge.spaces.align import aligned
from torchgauge.spaces.constraints import PICKED, Program
from torchgauge.spaces.cuts import aims_differ
from torchgauge.spaces.directions import PatternPass, RelationPass
from torchgauge.spaces.distribute import distribute
from torchgauge.spaces.exponential import exponentiated
from torchgauge.spaces.folding import folded
from torchgauge.spaces.frames import FramePass
from torchgauge.spaces.gains import places
from torchgauge.spaces.pruning import unread
from torchgauge.spaces.ranges import Ranges
from torchgauge.spaces.row_scales import RowScales
from torchgauge.spaces.shifts import ShiftPass
from torchgauge.spaces.unread import unmasked


def infer(
    model: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None, *, observable: Observable = "outputs"
) -> GaugeGroup:
    """Find the gauge group of a model.

    Args:
        model: an `nn.Module`, in the mode (train or eval) in which it is to be studied; may live on the meta device.
        args: example inputs, a tuple or the only one.
        kwargs: example keyword inputs.
        observable: what of the function counts; "outputs": every floating tensor that the model returns;
            "probabilities": the softmax of its logits; or a function of what the model returns.

    Returns:
        The group, ready to act on state dicts of the model.

    Raises:
        CaptureError: the model cannot be exported.
        InputError: inputs are missing or do not fit.
    """
    return inferred(model, args, kwargs, observable)


def inferred(
    model: Any, args: Any, kwargs: Mapping[str, Any] | None, observable: Observable, *, turned: bool = True
) -> GaugeGroup:
    """As `infer`; `turned` as in `solve`."""
    from torchgauge.capture import capture
    from torchgauge.rules import lower

    captured = capture(observed(model, observable), args, dict(kwargs or {}))
    return solve(lower(captured), ties=captured.ties, dropped=captured.dropped_outputs, turned=turned)


def solve(
    program: Program, *, ties: Mapping[str, str], dropped: tuple[str, ...] = (), turned: bool = True
) -> GaugeGroup:
    """Run all passes over a lowered program.

    Args:
        program: the network.
        ties: names of tied parameters → canonical ones.
        dropped: outputs that are not observed.
        turned: whether weights take up the constants that they read (spaces/turned.py). Frames then move a part of such
            a weight alone, as any change of the rest is an element of its own.
    """
    whole, (lowered, coordinates) = program, folded(program, turned=turned)
    lowered = unmasked(lowered)
    program = distribute(lowered)
    idle = [Free(name, at) for name, at in unread(whole, lowered, program)]
    product = exponentiated(program)
    frame_pass = FramePass(product).run()
    solution = frame_pass.frames.system.solve(soft=True)
    frames = FrameStage(product, frame_pass, solution)
    additive = _additive(program)
    summed = aligned(lowered)
    if summed is not lowered or aims_differ(lowered, program):
        additive += [stage.beyond(additive) for stage in _additive(distribute(summed, "shifts"))]
    tables = tuple(RowScales(program).tables())
    if free := tuple(table for table in tables if table.eps == 0):
        additive.append(RowScaleStage(program, free))
    held = tuple(table for table in tables if table.eps > 0)
    # each a stage of its own: two curves need not commute
    additive += [GainStage(program, place) for place in places(product)]
    if idle:
        additive.append(FreeStage(coordinates, idle))
    return GaugeGroup(
        program,
        frames,
        tuple(additive),
        ties=ties,
        observed=tuple(name for name in program.output_names if name != PICKED),
        dropped=dropped,
        limit=FrameStage(product, frame_pass, frame_pass.frames.system.solve(soft=False)),
        beyond=(RowScaleStage(program, held),) if held else (),
    )


def _additive(program: Program) -> list[Additive]:
    """The stages behind the frames."""
    patterns = PatternPass(program)
    shifts = ShiftPass(program, patterns, RelationPass(program)).run()
    ranges = Ranges(program, shifts.sources)
    return [ShiftStage(shifts), InvisibleStage(program, patterns, shifts, ranges), RangeStage(program, ranges)]
