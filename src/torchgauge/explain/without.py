"""The same network with something taken away, and its frames: what a space would carry without it.

A map is taken away by making it the identity where it keeps the shape; else its result is new, free data. A tie is
taken away by giving every use a parameter of its own. The result need not be a sensible network: it answers what this
one reason costs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any

from torchgauge.explain.causes import VIEWS, Cause
from torchgauge.explain.measure import Frame, frame
from torchgauge.spaces import constraints as c
from torchgauge.spaces.axes import Axis, Kind
from torchgauge.spaces.charges import Charge, Var
from torchgauge.spaces.frames import FramePass, Value


class Without:
    """A copy of a program, less some causes."""

    def __init__(self, frames: FramePass, causes: Iterable[Cause]) -> None:
        causes = list(causes)
        self.old = frames
        self.skipped = {k for cause in causes for k in cause.skipped}
        self.untied = {t for cause in causes for t in cause.untied}
        self.new: dict[c.Tensor, c.Tensor] = {}
        """Tensors of the copy (the frame pass notes things on them)."""
        self.views: dict[c.Tensor, c.Constraint] = {}
        """Views of untied parameters, written anew for every reader."""
        self.copies = 0
        self.free: list[tuple[c.Tensor, c.Tensor]] = []
        self.program = self._written()

    def frame(self, place: tuple[str, int]) -> Frame:
        """What stands on a dimension of a parameter in the copy."""
        run = FramePass(self.program)
        for old, new in self.free:
            run.values[new] = self._freed(old, new)
        run.run()
        solution = run.frames.system.solve(soft=True)
        return frame(run, solution, self.program.params[place[0]], place[1])

    # -- writing -----------------------------------------------------------------------------------------------
    def _written(self) -> c.Program:
        old = self.old.program
        params = {name: self._tensor(t) for name, t in old.params.items()}
        buffers = {name: self._tensor(t) for name, t in old.buffers.items()}
        program = replace(old, params=params, buffers=buffers, constraints=[])
        self.constraints = program.constraints
        self.params = params
        used: set[c.Tensor] = set()
        for k in old.constraints:
            if isinstance(k, VIEWS) and (k.x in self.untied or k.x in self.views):
                self.views[k.out] = k
                self.constraints.append(self._copied(k))
            elif k in self.skipped:
                self._skip(k)
            else:
                self.constraints.append(self._copied(k, used))
        program.outputs = [self._tensor(t) for t in old.outputs]
        return program

    def _tensor(self, t: c.Tensor) -> c.Tensor:
        if t not in self.new:
            self.new[t] = replace(t, trade=None)
        return self.new[t]

    def _copied(self, k: c.Constraint, used: set[c.Tensor] | None = None) -> c.Constraint:
        changes: dict[str, Any] = {}
        for f in fields(k):
            value = getattr(k, f.name)
            if isinstance(value, c.Tensor):
                changes[f.name] = self._read(value, f.name, used)
            elif isinstance(value, tuple) and value and isinstance(value[0], c.Tensor):
                changes[f.name] = tuple(self._read(t, f.name, used) for t in value)
        return replace(k, **changes)

    def _read(self, t: c.Tensor, name: str, used: set[c.Tensor] | None) -> c.Tensor:
        """A tensor as a reader of the copy sees it: a parameter that was tied is its own from the second use on."""
        root = t
        while root in self.views:
            root = self.views[root].inputs[0]
        if name == "out" or used is None or root not in self.untied:
            return self._tensor(t)
        if root not in used:
            used.add(root)
            return self._tensor(t)
        return self._own(t)

    def _own(self, t: c.Tensor) -> c.Tensor:
        """A new parameter, seen through the same views."""
        if t not in self.views:
            self.copies += 1
            name = f"{t.name} (use {self.copies})"
            self.params[name] = made = replace(t, name=name, trade=None)
            return made
        view = self.views[t]
        made = replace(t, trade=None)
        self.constraints.append(replace(view, out=made, x=self._own(view.inputs[0])))  # type: ignore[call-arg]
        return made

    def _skip(self, k: c.Constraint) -> None:
        alike = [t for t in k.inputs if t.shape == k.out.shape and t.role not in ("const", "param", "buffer")]
        if alike and (_by_static(k) or not isinstance(k, c.Mul | c.Contract | c.Concat)):
            self.new[k.out] = self._tensor(alike[0])
        else:
            self.free.append((k.out, self._tensor(k.out)))

    def _freed(self, old: c.Tensor, new: c.Tensor) -> Value:
        """Data that may carry any frame wherever the original carried one."""
        dims = []
        for n, axes in zip(old.shape, self.old.values[old].dims, strict=True):
            moves = any(not g.pinned for axis in axes for g in axis.ground())
            kind = Kind.GL if moves else Kind.INDEX
            dims.append(() if n == 1 else (Axis(n, new.name, kind, pinned=not moves),))
        charge = Charge.of(Var(f"charge of {new.name}", tuple(a for d in dims for a in d)))
        return Value(tuple(dims), charge)


def _by_static(k: c.Constraint) -> bool:
    """A product with a gain or with constants: taking it away leaves the other factor."""
    return isinstance(k, c.Mul) and (k.y.role != "data" or k.y.shape != k.x.shape)
