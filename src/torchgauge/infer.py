"""From a model to its gauge group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torchgauge.action.frame_action import FrameStage
from torchgauge.action.invisible_action import InvisibleStage
from torchgauge.action.shift_action import ShiftStage
from torchgauge.gauge import GaugeGroup
from torchgauge.spaces.constraints import Opaque, Program
from torchgauge.spaces.directions import PatternPass, RelationPass
from torchgauge.spaces.distribute import distribute
from torchgauge.spaces.frames import FramePass
from torchgauge.spaces.shifts import ShiftPass


def infer(
    model: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None, *, observable: str = "outputs"
) -> GaugeGroup:
    """Find the gauge group of a model.

    Args:
        model: an `nn.Module`, in the mode (train or eval) in which it is to be studied; may live on the meta device.
        args: example inputs.
        kwargs: example keyword inputs.
        observable: what of the function counts; "outputs": every floating tensor that the model returns.

    Returns:
        The group, ready to act on state dicts of the model.

    Raises:
        CaptureError: the model cannot be exported.
        InputError: inputs are missing or do not fit.
    """
    from torchgauge.capture import capture
    from torchgauge.rules import lower

    captured = capture(model, args, dict(kwargs or {}))
    program = lower(captured)
    try:
        return solve(program, ties=captured.ties, dropped=captured.dropped_outputs)
    except RecursionError:
        # never a guess: what the solver cannot untangle is rigid, and the report says so
        return solve(_all_rigid(program), ties=captured.ties, dropped=captured.dropped_outputs)


def _all_rigid(program: Program) -> Program:
    """The program with nothing known of it: every parameter stands still."""
    xs = tuple(program.params.values())
    reason = "the whole graph: its reshapes and slices could not be untangled"
    blocked = [Opaque(out, xs, reason) for out in program.outputs]
    return replace(program, constraints=blocked, opaque=[(reason, program.outputs[0].source)])


def solve(program: Program, *, ties: Mapping[str, str], dropped: tuple[str, ...] = ()) -> GaugeGroup:
    """Run all passes over a lowered program."""
    program = distribute(program)
    frame_pass = FramePass(program).run()
    solution = frame_pass.frames.system.solve(soft=True)
    frames = FrameStage(program, frame_pass, solution)
    patterns, relations = PatternPass(program), RelationPass(program)
    shifts = ShiftPass(program, patterns, relations).run()
    return GaugeGroup(
        program,
        frames,
        ShiftStage(shifts),
        InvisibleStage(program, patterns, shifts),
        ties=ties,
        observed=tuple(program.output_names),
        dropped=dropped,
        limit=FrameStage(program, frame_pass, frame_pass.frames.system.solve(soft=False)),
    )
