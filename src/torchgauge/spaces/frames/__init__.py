"""First pass, forward: which frames every tensor can carry.

Walks the constraints in order of execution and unifies. A `Value` is a tensor seen through its axes: one tuple of
axes per dimension (empty for size one) and an overall charge. The frame of the tensor is the tensor product of the
frames of its axes times the charge.
"""

from __future__ import annotations

from torchgauge.spaces import constraints as c
from torchgauge.spaces.axes import Kind
from torchgauge.spaces.frames import algebra, nonlinear, selection, views  # noqa: F401  (they register their steps)
from torchgauge.spaces.frames.state import FrameState, Value, step

__all__ = ["FramePass", "Value"]

READERS = (c.Take, c.Pick, c.Reshape, c.Permute, c.Expand, c.Slice)
"""Constraints that read positions as positions, or are views of them."""


class FramePass(FrameState):
    """Runs over a program; afterwards `values` holds every tensor's axes and `frames` the solved state."""

    def run(self) -> FramePass:
        for constraint in self.program.constraints:
            self.frames.source, self.frames.at = constraint.out.source, constraint
            self.frames.reason = _describe(constraint)
            if not isinstance(constraint, READERS):
                self._read_by_number(constraint)
            value = step(constraint, self)
            self.values[constraint.out] = self._checked(value)
        for out, name in zip(self.program.outputs, self.program.output_names, strict=True):
            self.frames.source, self.frames.reason, self.frames.at = out.source, f"{name} is observed", None
            self.freeze(self.value(out))
        self._undress()
        self._place_charges()
        for tensor in self.program.params.values():
            self._close(tensor)
        crossed = {g for axis in self.frames.crossed for g in axis.ground()}
        for value in self.values.values() if crossed else ():
            across = [g for axis in value.axes for g in axis.ground() if g in crossed]
            self.frames.system.constant(self.total(value), across, "divisions of one axis lie across one another")
        for value in self.values.values() if self.frames.mixed else ():
            self.frames.system.constant(self.total(value), self.frames.mixed, "two choices of one axis meet")
        return self

    def _read_by_number(self, k: c.Constraint) -> None:
        """Positions that are used as numbers: what they point into may not be permuted."""
        for t in k.inputs:
            if t.role == "choice":
                for axis in selection.entries(self, t):
                    self.frames.pin(axis)

    def _undress(self) -> None:
        """What other tensors were joined to later may hold gains that depend on an index that this tensor lacks."""
        if not any(gain.index for gain in self.frames.gain_axes.values()):
            return
        while any(self._dressed_within(value) for value in self.values.values()):
            pass

    def _dressed_within(self, value: Value) -> bool:
        """Gains on a tensor's axes depend on no index that the tensor lacks; returns whether that took a frame."""
        grounds = [g for a in value.axes for g in a.ground()]
        once = frozenset(g for g in grounds if grounds.count(g) == 1)
        lost = [axis for axis in value.axes if self.frames.limit_dress(axis, once)]
        if lost:
            total = self.total(value)
            outside = {g for v in total.variables() for g in v.support() if g not in grounds}
            self.frames.system.constant(total, outside, self.frames.reason)
        return bool(lost)

    def _place_charges(self) -> None:
        """A charge is a function of its tensor's own indices, each of which must stand at one place.

        Equations know an index by its axis. Where an axis stands at two places, of one tensor or of two that meet,
        f(i) g(j) and f(i) g(i) look alike to them, so nothing may depend on it.
        """
        constant = self.frames.system.constant
        for tensor, value in self.values.items():
            if tensor.role == "param":
                continue
            grounds = [g for a in value.axes for g in a.ground()]
            total = self.total(value)
            outside = {g for v in total.variables() for g in v.support()} - set(grounds)
            constant(total, outside, f"{tensor.name} has no such axis")
            twice = {g for g in grounds if grounds.count(g) > 1 and g.kind is Kind.INDEX}
            if twice and self.gain_tensor(tensor).role != "param":
                for part in (value.charge, *(self.frames.total(leaf) for leaf in value.leaves())):
                    constant(part, twice, "an axis stands twice in one tensor")
        for (x, mine), (y, other) in self.meetings:
            both = {g for a in mine for g in a.ground()} & {g for a in other for g in a.ground()}
            for value in (x, y):
                constant(self.total(value), both, "an axis stands in two places")

    def _close(self, tensor: c.Tensor) -> None:
        """A parameter's charge can only vary along the parameter's own axes."""
        value = self.value(tensor)
        total = self.total(value)
        own = {g for a in value.axes for g in a.ground()}
        grounds = [g for a in value.axes for g in a.ground()]
        twice = {g for g in grounds if grounds.count(g) > 1}
        self.frames.system.constant(value.charge, twice, f"an axis stands twice in {tensor.name}")
        if tensor not in self.frames.gain_axes:
            vectors = [g for g in own if g.kind.vector]
            self.frames.system.constant(value.charge, vectors, "a scale along an axis that matrices turn")
        for part in (total.magnitude, total.signs):
            outside = {g for v in part.variables() for a in v.axes for g in a.ground() if g not in own}
            self.frames.system.constant(part, outside, f"{tensor.name} has no such axis")
        for dim in value.dims:
            # where an index stands twice, a frame goes with the one in its own dimension
            here = [g for axis in dim for g in axis.ground()]
            near = frozenset(g for g in own if here.count(g) == 1 or grounds.count(g) == 1)
            for axis in dim:
                for leaf in axis.leaves():
                    self.frames.limit_depends(leaf, near)
                    far = {g for g in own - near if g is not leaf.root}
                    self.frames.system.constant(self.frames.total(leaf), far, f"an axis stands twice in {tensor.name}")

    def _checked(self, value: Value) -> Value:
        """A frame may depend only on indices that the tensor has; an axis that stands twice keeps no scale."""
        axes = [g for a in value.axes for g in a.ground()]
        own = frozenset(axes) | frozenset(v for a in axes if a.view_of is not None for v in (a.view_of.root,))
        for ground in axes:
            self.frames.limit_depends(ground, own)
        self._dressed_within(value)
        if not self.all_fresh(value):
            # of a parameter beside constants nothing is turned yet
            vectors = [g for g in axes if g.kind.vector and not g.fresh]
            # an index axis may hold a scale that the charge takes off again
            held = (self.frames.total(leaf) for leaf in value.leaves() if not leaf.root.kind.vector)
            scale = sum(held, value.charge)
            self.frames.system.constant(scale, vectors, "a scale along an axis that matrices turn")
        if len(axes) != len(set(axes)):
            total = self.total(value)
            for g in {g for g in axes if axes.count(g) > 1 and g.kind is Kind.INDEX}:
                self.frames.system.constant(total, (g,), "an axis stands twice in one tensor")
        return value


def _describe(k: c.Constraint) -> str:
    """What stands at this place, for `group.rigid`."""
    if isinstance(k, c.Pointwise):
        return f"{k.profile.name} acts entry by entry"
    if isinstance(k, c.Opaque):
        return f"no rule: {k.reason}"
    names = {
        c.Reshape: "a reshape divides the axis",
        c.Slice: "a slice takes part of the axis",
        c.Concat: "a concatenation that could not be cut",
        c.Choice: "entries are chosen by value",
        c.Take: "entries are chosen by value",
        c.Pick: "rows are picked by value",
        c.Normalize: "a normalisation keeps lengths",
        c.Softmax: "softmax acts entry by entry",
        c.Mul: "an elementwise product",
        c.Add: "summands share one frame",
        c.Rotate: "a rotary embedding turns fixed pairs",
        c.Gather: "rows are picked by index",
        c.Reduce: "a reduction over the axis",
        c.Spatial: "a map along the axis",
        c.Contract: "a contraction ties both sides",
    }
    return names.get(type(k), type(k).__name__.lower())
