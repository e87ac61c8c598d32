"""Recurrent layers and cells: two steps of a recurrence stand for all of them.

A recurrence h_t = s(x_t, h_{t−1}) is lowered to a first step h₁ = s(x, 0) and a second one h₂ = s(x, h₁), each for all
times at once. A frame that both let through is let through by every step: h₁ and h₂ carry the same frame, because it is
that of the gates, to which both steps add the same projection of x; and the second step is equivariant for every h.
A given initial state is added to h₁, so that it carries the same frame. The cost does not grow with the length.

The two biases of a gate are added once, before any step: they are one sum, in which they trade.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from torchgauge.rules import axes
from torchgauge.rules.lower import Lowering
from torchgauge.rules.registry import operators, rule
from torchgauge.rules.table import PROFILES
from torchgauge.spaces.builder import Builder
from torchgauge.spaces.constraints import Add, Expand, Mul, Profile, Tensor

aten = torch.ops.aten

GATES = {"rnn": 1, "lstm": 4, "gru": 3}


@dataclass(frozen=True)
class State:
    """What one step hands to the next; None stands for zeros."""

    h: Tensor | None = None
    c: Tensor | None = None


@dataclass(frozen=True)
class Cell:
    """The weights of one direction of one layer, by gate ([n, d], [n, r] and [n] each)."""

    b: Builder
    kind: str
    activation: Profile
    x_weights: tuple[Tensor, ...]
    h_weights: tuple[Tensor, ...]
    x_biases: tuple[Tensor, ...] = ()
    h_biases: tuple[Tensor, ...] = ()
    projection: Tensor | None = None
    again: bool = False
    """The cell is called more than once: its biases must trade with one another alone."""

    def projected(self, x: Tensor) -> list[Tensor]:
        """What x gives to each gate, biases included (but for the one inside the reset of a GRU)."""
        found = []
        for k, weight in enumerate(self.x_weights):
            y = self._linear(x, weight)
            if self.x_biases:
                y = self.b.add(y, self._bias(k))
            found.append(y)
        return found

    def _bias(self, k: int) -> Tensor:
        b, x, h = self.b, self.x_biases[k], self.h_biases[k]
        if self.kind == "gru" and k == 2:
            return x
        if not self.again:
            return b.add(x, h)
        for made in b.producers.values():
            inner = b.producers.get(made.x) if isinstance(made, Mul) else None
            if isinstance(inner, Add) and inner.x is x and inner.y is h:
                return made.out
        # times a number that is not known to be one: no shift passes, so the sum of the biases stands still
        return b.mul(b.add(x, h), b.const((1,), "one"))

    def step(self, x: Sequence[Tensor], old: State) -> State:
        """The state after `old`, from what x gives to the gates."""
        b = self.b
        if self.kind == "rnn":
            return State(b.pointwise(self._gate(x, 0, old), self.activation))
        if self.kind == "lstm":
            i, f, o = (b.pointwise(self._gate(x, k, old), PROFILES["sigmoid"]) for k in (0, 1, 3))
            c = b.mul(i, b.pointwise(self._gate(x, 2, old), PROFILES["tanh"]))
            c = c if old.c is None else b.add(b.mul(f, old.c), c)
            h = b.mul(o, b.pointwise(c, PROFILES["tanh"]))
            return State(h if self.projection is None else self._linear(h, self.projection), c)
        r, z = (b.pointwise(self._gate(x, k, old), PROFILES["sigmoid"]) for k in (0, 1))
        inner = None if old.h is None else self._linear(old.h, self.h_weights[2])
        if self.h_biases:
            inner = self.h_biases[2] if inner is None else b.add(inner, self.h_biases[2])
        candidate = x[2] if inner is None else b.add(x[2], b.mul(r, inner))
        candidate = b.pointwise(candidate, PROFILES["tanh"])
        keep = b.add(b.const((), "scalar", 1.0), z, -1.0)
        h = b.mul(keep, candidate)
        return State(h if old.h is None else b.add(h, b.mul(z, old.h)))

    def _gate(self, x: Sequence[Tensor], k: int, old: State) -> Tensor:
        return x[k] if old.h is None else self.b.add(x[k], self._linear(old.h, self.h_weights[k]))

    def _linear(self, x: Tensor, weight: Tensor) -> Tensor:
        batch = tuple(f"a{i}" for i in range(x.ndim - 1))
        return self.b.contract(x, weight, (*batch, "i"), ("o", "i"), (*batch, "o"))


def cell(
    b: Builder,
    kind: str,
    activation: Profile,
    weights: Sequence[Tensor],
    projection: Tensor | None = None,
    *,
    again: bool = False,
) -> Cell:
    """A cell from its stacked weights: W_ih, W_hh and, where it has them, b_ih, b_hh."""
    count = GATES[kind]

    def parts(w: Tensor) -> tuple[Tensor, ...]:
        n = w.shape[0] // count
        return tuple(axes.narrow(b, w, 0, k * n, (k + 1) * n) for k in range(count))

    return Cell(b, kind, activation, *map(parts, weights), projection=projection, again=again)


# -- whole layers -----------------------------------------------------------------------------------------------
@rule(aten.rnn_tanh.input)
def rnn_tanh(ctx: Lowering, x: Tensor, h: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return layers(ctx, "rnn", PROFILES["tanh"], x, [h], *rest)


@rule(aten.rnn_relu.input)
def rnn_relu(ctx: Lowering, x: Tensor, h: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return layers(ctx, "rnn", PROFILES["relu"], x, [h], *rest)


@rule(aten.gru.input)
def gru(ctx: Lowering, x: Tensor, h: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return layers(ctx, "gru", PROFILES["tanh"], x, [h], *rest)


@rule(aten.lstm.input)
def lstm(ctx: Lowering, x: Tensor, states: Sequence[Tensor], *rest: Any) -> tuple[Tensor, ...]:
    return layers(ctx, "lstm", PROFILES["tanh"], x, states, *rest)


def layers(
    ctx: Lowering,
    kind: str,
    activation: Profile,
    x: Tensor,
    states: Sequence[Tensor],
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    """All layers and directions of torch's recurrent modules: outputs, last h and, for an LSTM, last c."""
    b, directions = ctx.b, 2 if bidirectional else 1
    size = len(params) // (num_layers * directions)
    weights = [params[i : i + size] for i in range(0, len(params), size)]
    count = 4 if has_biases else 2
    if size not in (count, count + 1) or x.ndim != 3:
        return NotImplemented
    x = axes.permute(b, x, (1, 0, 2)) if batch_first else x
    last: list[list[Tensor]] = [[] for _ in states]
    for layer in range(num_layers):
        outputs = []
        for at in range(layer * directions, (layer + 1) * directions):
            own = weights[at]
            starts = [start(ctx, s, at) for s in states]
            one = cell(b, kind, activation, own[:count], own[count] if len(own) > count else None)
            seen, ends = run(one, x, starts)
            outputs.append(seen)
            for kept, end in zip(last, ends, strict=True):
                kept.append(end)
        x = axes.concat(b, outputs, -1)
        if dropout and train and layer + 1 < num_layers:
            x = b.mul(x, b.const(x.shape, "dropout"))
    out = axes.permute(b, x, (1, 0, 2)) if batch_first else x
    return out, *(axes.concat(b, kept, 0) for kept in last)


def start(ctx: Lowering, states: Tensor, at: int) -> Tensor | None:
    """The initial state of one layer and direction, not yet repeated over times and batch; None for zeros."""
    if states.role == "const" and (states.fill == 0.0 or zeros(ctx, states)):
        return None
    one = axes.narrow(ctx.b, states, 0, at, at + 1)
    while isinstance(made := ctx.b.producers.get(one), Expand):
        one = made.x
    return one


def zeros(ctx: Lowering, x: Tensor) -> bool:
    value = ctx.exact(x)
    return value is not None and not bool(value.any())


def run(one: Cell, x: Tensor, starts: Sequence[Tensor | None]) -> tuple[Tensor, list[Tensor]]:
    """The outputs at all times and the last states, from two steps (see above)."""
    b, gates = one.b, one.projected(x)
    first = one.step(gates, State())
    h, c = (_met(b, s, f) for s, f in zip((*starts, None)[:2], (first.h, first.c), strict=True))
    second = one.step(gates, State(h, c))
    states = [second.h] if second.c is None else [second.h, second.c]

    def ordered(y: Tensor, times: int) -> Tensor:
        """The times of y are in an order that no frame may change."""
        return b.spatial(y, (0,), (times, *y.shape[1:]), "linear", True)

    assert second.h is not None
    return ordered(second.h, x.shape[0]), [ordered(s, 1) for s in states if s is not None]


def _met(b: Builder, given: Tensor | None, reached: Tensor | None) -> Tensor | None:
    """A state of which nothing is known but that it carries the frame of both."""
    return reached if given is None or reached is None else b.add(reached, given)


# -- single steps -----------------------------------------------------------------------------------------------
def _cell_rule(kind: str, activation: Profile) -> Callable[..., Any]:
    def apply(ctx: Lowering, x: Tensor, old: Any, *weights: Tensor | None) -> Any:
        h, c = old if isinstance(old, (list, tuple)) else (old, None)
        given = [w for w in weights if w is not None]
        one = cell(ctx.b, kind, activation, given, again=_repeated(ctx))
        known = State(*(None if s is None or (s.role == "const" and s.fill == 0.0) else s for s in (h, c)))
        new = one.step(one.projected(x), known)
        return new.h if new.c is None else (new.h, new.c)

    return apply


def _repeated(ctx: Lowering) -> bool:
    """Whether the last bias of a cell is read by another node too."""
    bias = ctx.node.args[-1]
    return ctx.depth > 0 or not isinstance(bias, Node) or len(bias.users) > 1


for _name, _kind, _activation in (
    ("rnn_tanh_cell", "rnn", "tanh"),
    ("rnn_relu_cell", "rnn", "relu"),
    ("gru_cell", "gru", "tanh"),
    ("lstm_cell", "lstm", "tanh"),
):
    rule(*operators(_name))(_cell_rule(_kind, PROFILES[_activation]))
