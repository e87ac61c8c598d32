"""The verdict on one operator's rule."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from math import factorial
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.func import functional_call

from torchgauge.check_rule.brute import Through, going_through, jacobian, jumps, kernel
from torchgauge.check_rule.calls import Call, calls, run, sample
from torchgauge.check_rule.net import Around
from torchgauge.check_rule.operators import resolve
from torchgauge.errors import TorchGaugeError
from torchgauge.explain.spaces import behind
from torchgauge.gauge import GaugeGroup
from torchgauge.infer import infer
from torchgauge.rules import registry
from torchgauge.spaces.axes import Kind

ROUNDING = 1e-7
DRAWS = 3
JUMPS = (-1, -1)
"""Dimensions of an operator that is not continuous, of which derivatives do not tell."""
SPREADS = (1.0, 2.0, 4.0)
"""Sizes of the inputs at further points: some kinks are far from zero."""
CHANNELS = (
    "conv",
    "pool",
    "batch_norm",
    "instance_norm",
    "group_norm",
    "upsample",
    "pixel",
    "channel",
    "feature",
    "col",
)
"""Operators whose features are dimension 1."""
ORDER = ("wrong", "missing", "right", "not judged")


@dataclass(frozen=True)
class Trial:
    """One call in one network.

    Attributes:
        call: the operator with its arguments.
        layers: which dimensions of data and result the layers around it act on.
        verdict: "right", "wrong", "missing" or "not judged".
        because: why.
        defect: largest relative change of the outputs under random elements of the group.
        orbit, nullity: dimension of the group's orbit, and of the Jacobian's kernel (brute force).
        claimed, found: permutations and signs of the data that the group holds, and that go through by brute force.
    """

    call: str
    layers: tuple[int, int]
    verdict: str
    because: str
    defect: float | None = None
    orbit: int | None = None
    nullity: int | None = None
    claimed: Through | None = None
    found: Through | None = None

    def to_dict(self) -> dict[str, Any]:
        told = {name: value and str(value) for name, value in (("claimed", self.claimed), ("found", self.found))}
        return {**vars(self), "layers": list(self.layers), **told}


@dataclass(frozen=True)
class Verdict:
    """What became of an operator.

    Attributes:
        operator: its name.
        rule: the name of its rule; "" if it has none of its own.
        verdict: the worst of its trials.
        trials: one per call.
    """

    operator: str
    rule: str
    verdict: str
    trials: tuple[Trial, ...]

    @property
    def because(self) -> str:
        """The reason of the trial that decided."""
        return next((t.because for t in self.trials if t.verdict == self.verdict), "no call of it could be made")

    def to_dict(self) -> dict[str, Any]:
        trials = [t.to_dict() for t in self.trials]
        return {
            "operator": self.operator,
            "rule": self.rule,
            "verdict": self.verdict,
            "because": self.because,
            "trials": trials,
        }


def check(operator: str | OpOverload, given: list[Any] | None = None, *, seed: int = 0) -> Verdict:
    """Check the rule of an operator against brute force, in tiny networks around it.

    In each, random elements of the inferred group must leave the outputs alone, the dimension of its orbit must be the
    nullity of the Jacobian, and it must hold the permutations and signs of the data that go through the operator.

    Args:
        operator: "aten.gelu", "aten.gelu.default", "mylib::op", or an overload.
        given: arguments in schema order, with `Data(...)` and `Weight(...)` where tensors stand; else they are made.
        seed: of parameters and inputs.

    Raises:
        InputError: there is no such operator.
    """
    overloads = [operator] if isinstance(operator, OpOverload) else resolve(operator)
    trials: list[Trial] = []
    for overload in overloads:
        for call in calls(overload, given):
            trials.append(_trial(call, *_layers(call), seed))
    found = [registry.find(o) for o in overloads]
    rule = next((f.__name__ for f in found if f is not None), "")
    worst = min((t.verdict for t in trials), key=ORDER.index, default="not judged")
    name = str(operator) if isinstance(operator, OpOverload) else overloads[0].overloadpacket._qualified_op_name
    return Verdict(name.replace("::", "."), rule, worst, tuple(trials))


def _layers(call: Call) -> tuple[int, int]:
    """The dimension of data and of results for the layers around a call: channels, else the last one."""
    ndim = run(call, [sample(d.shape, call.domain, None) for d in call.data])[0].ndim
    shape = call.data[0].shape
    if len(shape) > 2 and any(part in call.operator.overloadpacket.__name__ for part in CHANNELS):
        return 1, min(1, ndim - 1)
    return len(shape) - 1, max(0, ndim - 1)


def _trial(call: Call, dim: int, out: int, seed: int) -> Trial:
    generator = torch.Generator().manual_seed(seed)
    about = (str(call), (dim, out))
    try:
        net = Around(call, dim, out, generator).eval()
        group = infer(net, net.inputs(generator))
    except TorchGaugeError as error:
        return Trial(*about, "not judged", error.what.splitlines()[0][:120])
    except Exception as error:  # a rule that fails on arguments that the operator takes
        return Trial(*about, "wrong", f"the rule raised {type(error).__name__}: {error}")
    if group.program.opaque:
        return Trial(*about, "missing", group.program.opaque[0][0])
    defect = _defect(net, group, generator)
    if defect > ROUNDING:
        return Trial(*about, "wrong", f"an element of the group changes the outputs by {defect:.1e}", defect)
    orbit, found = None, None
    for s, spread in enumerate(SPREADS):  # a point may be special: the smallest nullity counts
        measured = _dimensions(call, dim, out, group, seed + s, spread)
        if measured in (None, JUMPS):
            orbit, found = None, None
            break
        orbit, found = measured[0], min(measured[1], found) if found is not None else measured[1]
        if orbit == found:
            break
    claimed, through = _discrete(net, group, generator)
    verdict, because = _judge(orbit, found, claimed, through)
    return Trial(*about, verdict, because, defect, orbit, found, claimed, through)


def _defect(net: Around, group: GaugeGroup, generator: torch.Generator) -> float:
    state = dict(net.state_dict())
    worst = 0.0
    for _, scale in itertools.product(range(DRAWS), (0.3, 1.0)):
        moved = group.act(group.random(generator, scale), state)
        xs = net.inputs(generator)
        with torch.no_grad():
            before, after = net(*xs), functional_call(net, moved, xs)
        for a, b in zip(before, after, strict=True):
            worst = max(worst, _change(a, b))
    return worst


def _change(a: Tensor, b: Tensor) -> float:
    """Relative to the largest output; what is not finite before counts as the same after."""
    known = a.isfinite()
    change = (a - b).abs()[known]
    return float(change.nan_to_num(1e9, 1e9).max() / a[known].abs().max().clamp_min(1e-30)) if change.numel() else 0.0


def _dimensions(call: Call, dim: int, out: int, group: GaugeGroup, seed: int, spread: float) -> tuple[int, int] | None:
    """Orbit dimension and nullity at a generic point; None where derivatives vanish or do not tell."""
    generator = torch.Generator().manual_seed(seed)
    net = Around(call, dim, out, generator).eval()
    try:
        matrix = jacobian(net, generator, spread)
    except (RuntimeError, ArithmeticError, NotImplementedError):
        return None
    first = sum(p.numel() for p in net.made.parameters())
    if not bool(matrix[:, :first].any()) or (found := kernel(matrix)) is None:
        return None
    orbit = group.orbit_dimension(dict(net.state_dict()))
    if orbit < found.dimension and found.basis is not None and jumps(net, found.basis, generator, spread):
        return JUMPS
    # the group may or may not move dead parameters: they are no one's loss
    return orbit, min(found.dimension + found.dead, max(found.dimension, orbit))


def _discrete(net: Around, group: GaugeGroup, generator: torch.Generator) -> tuple[Through | None, Through | None]:
    """Permutations and signs of the data: those that the group holds, and those that go through."""
    key, stage = "made.0.weight", group.frames
    if key not in group.program.params:
        return None, None
    roots = [g for axis in stage.frames.values[group.program.params[key]].dims[0] for g in axis.ground()]
    if len(roots) != 1 or (through := going_through(net, generator)) is None:
        return None, None
    root, order = behind(roots[0]), factorial(roots[0].size)
    moving = {v for _, _, odd in stage.rows[key] for v in odd if v in stage.sign_vars}
    if root.kind in (Kind.GL, Kind.O):
        return Through(order, True, True), through
    if root.kind.plane:
        return None, through
    if len(net.call.data) > 1:  # each of the data may have signs of its own
        return Through(1 if root.pinned else order, False, False), replace(through, signs=False, sign=False)
    signs = any(root in v.support() for v in moving)
    return Through(1 if root.pinned else order, signs, bool(moving)), through


def _judge(orbit: int | None, found: int | None, claimed: Through | None, through: Through | None) -> tuple[str, str]:
    if orbit is not None and found is not None and orbit > found:
        return "wrong", f"the group's orbit has dimension {orbit}, the kernel of the Jacobian {found}"
    if claimed is not None and through is not None and claimed.exceeds(through):
        return "wrong", f"the group holds {claimed} of the data, but {through} go through"
    if orbit is not None and found is not None and orbit < found:
        return "missing", f"{found - orbit} of {found} directions that change nothing are not found"
    if claimed is not None and through is not None and through.exceeds(claimed):
        return "missing", f"{through} of the data go through, the group holds {claimed}"
    judged = "no derivative to judge dimensions by" if orbit is None else f"dimension {orbit}"
    return "right", f"{through}; {judged}" if through is not None else judged
