"""Patterns that models write out by hand, fused before lowering: norms, offset gains and rotary embeddings.

A pattern is matched on the graph; a norm by its structure, a rotary embedding by its numbers (rotary.py). What does not
match exactly is lowered operator by operator, which is sound and only sees less.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Graph, Node

from torchgauge.rules import axes
from torchgauge.rules.constants import BY_FIRST, Constants, name_of
from torchgauge.rules.rotary import Rotary, Turn
from torchgauge.rules.written_norms import BROADCASTS, CASTS, WrittenNorms, reduced, same, shape_of, strip, with_ones
from torchgauge.spaces.constraints import Tensor

if TYPE_CHECKING:
    from torchgauge.rules.lower import Lowering

_VIEWS = (
    "view",
    "reshape",
    "unsqueeze",
    "squeeze",
    "expand",
    "permute",
    "transpose",
    "flatten",
    "unflatten",
    "_unsafe_view",
)


LOW = -1e4
"""A score at which a softmax gives no weight."""


@dataclass(eq=False)
class Recogniser:
    """Matches patterns that end in a node; the nodes inside are pruned when nobody else reads them."""

    constants: Constants
    rotary: Rotary = field(init=False)
    norms: WrittenNorms = field(init=False)
    absorbed: dict[Node, Node] = field(default_factory=dict)
    """Node that adds a number to a parameter → the parameter, whose coordinate holds that number."""

    def __post_init__(self) -> None:
        self.rotary, self.norms = Rotary(self.constants), WrittenNorms(self.constants)

    def fuse(self, ctx: Lowering, node: Node) -> Any:
        """The lowered result of a pattern that ends here, or None."""
        self.rotary.note(ctx.env, node)
        if node in self.absorbed:
            return ctx.env[self.absorbed[node]]
        if name_of(node) in ("mul", "div"):
            normed = self.norms.lower(ctx, node)
            if normed is not None:
                return normed
        if (scores := written_softmax(node)) is not None:
            x, dim, log = scores
            return None if ctx.env.get(x) is None else ctx.b.softmax(ctx.env[x], dim, log)
        if (scores := self.written_mask(node)) is not None and ctx.env.get(scores[0]) is not None:
            # what the softmax behind gives no weight is as good as lowered without end
            return ctx.b.add(ctx.env[scores[0]], ctx.b.const(scores[1], "mask"))
        found = self.rotary.match(ctx.env, node)
        if found is not None:
            source, turn, angles = found
            ctx.anchors += [y for n in angles if (y := ctx.env[n]) not in ctx.anchors]
            return _turned(ctx, ctx.env[source], turn)
        return None

    # -- other patterns ------------------------------------------------------------------------------------------
    def offsets(self, graph: Graph, params: set[str], names: dict[str, str]) -> dict[str, float]:
        """Parameters that are read only as (number + parameter): canonical name → number."""
        reads: dict[str, list[tuple[Node, Node, float | None]]] = {}
        for node in graph.nodes:
            if node.op == "placeholder" and node.name in params:
                found = reads.setdefault(names[node.name], [])
                found.extend((node, user, self._added(user, inner)) for inner, user in _readers(node))
        offsets = {}
        for name, found in reads.items():
            numbers = {number for _, _, number in found}
            number = numbers.pop() if len(numbers) == 1 else None
            if number:
                offsets[name] = number
                self.absorbed.update({user: placeholder for placeholder, user, _ in found})
        return offsets

    def _added(self, user: Node, inner: Node) -> float | None:
        if name_of(user) != "add" or user.kwargs or len(user.args) != 2:
            return None
        other = user.args[1] if user.args[0] is inner else user.args[0]
        return self._literal(other) if shape_of(user) == shape_of(inner) else None

    @staticmethod
    def _literal(x: Any) -> float | None:
        return float(x) if isinstance(x, (int, float)) and not isinstance(x, bool) else None

    def written_mask(self, node: Node) -> tuple[Node, tuple[int, ...]] | None:
        """(x, shape of the mask) of x·m + c in front of a softmax: m is zero or one, c zero or at most −10⁴."""
        name = name_of(node)
        if name not in ("add", "sub") or node.kwargs or not self.feeds_softmax(node):
            return None
        sign = 1 if name == "add" else -1
        for scaled, low in (node.args, node.args[::-1])[: 1 + (sign > 0)]:
            if not isinstance(low, Node) or not isinstance(scaled, Node) or name_of(scaled) != "mul":
                continue
            for x, kept in (scaled.args, scaled.args[::-1]):
                if not isinstance(x, Node) or not isinstance(kept, Node) or shape_of(x) != shape_of(node):
                    continue
                m, c = self.constants.exact(kept), self.constants.exact(low)
                if m is None or c is None or m.shape != c.shape:
                    continue
                if bool((((m == 1) & (c == 0)) | ((m == 0) & (sign * c <= LOW))).all()):
                    return x, tuple(m.shape)
        return None

    def feeds_softmax(self, node: Node) -> bool:
        """Whether all that reads the node is softmaxes, through casts, views and added masks, or masks of attention."""
        if not node.users:
            return False
        return all(
            (name_of(u) in BY_FIRST and node is not u.args[0])  # it lends a type
            or name_of(u) in ("softmax", "_softmax", "_safe_softmax")
            or (name_of(u) == "scaled_dot_product_attention" and node not in u.args[:3])
            or (name_of(u) in (*CASTS, *_VIEWS, "add", "masked_fill", "where") and self.feeds_softmax(u))
            for u in node.users
        )

    def weightless(self, node: Node, out: torch.Tensor) -> bool:
        """Whether all that reads the scores `node` is softmaxes that give what `out` marks no weight, whatever it is.

        Constants that are added behind lower it, as a causal mask does, and leave something of every row.
        """
        shape = shape_of(node)
        return out.ndim <= len(shape) and self._weightless(node, out.expand(shape), torch.zeros(shape).bool())

    def _weightless(self, node: Node, out: torch.Tensor, low: torch.Tensor) -> bool:
        if not node.users:
            return False
        for user in node.users:
            name = name_of(user)
            if user.op != "call_function":
                return False  # it is an output
            if (dim := self._softmax_along(user, node)) is not None:
                if bool((out & ~low).any()) or bool(low.all(dim=dim).any()):
                    return False
                continue
            lower = self._lowered(user, node) if shape_of(user) == tuple(low.shape) else None
            if lower is None or lower.ndim > low.ndim:
                return False
            # a factor may be small
            lower = torch.zeros_like(low) if name == "mul" else low | lower
            if not self._weightless(user, out, lower):
                return False
        return True

    @staticmethod
    def _softmax_along(user: Node, scores: Node) -> int | None:
        """The dimension along which one more node takes a softmax of scores, that of attention with a mask included."""
        name = name_of(user)
        if name in ("softmax", "_softmax", "_safe_softmax") and user.args[0] is scores:
            dim: Any = user.args[1]
            return int(dim)
        causal = bool(user.kwargs.get("is_causal")) or user.args[5:6] == (True,)
        added = (user.args[3] if len(user.args) > 3 else user.kwargs.get("attn_mask")) is scores
        masked = name == "scaled_dot_product_attention" and not causal and scores not in user.args[:3]
        return -1 if masked and added else None

    def _lowered(self, user: Node, node: Node) -> torch.Tensor | None:
        """Where one more node lowers scores without end, or None where it does more than to add to them."""
        name, nowhere = name_of(user), torch.zeros(()).bool()
        if name in ("masked_fill", "where"):
            mask, *values = user.args if name == "where" else (user.args[1], user.args[2], user.args[0])
            known = self.constants.exact(mask) if isinstance(mask, Node) else None
            low = [isinstance(v, (int, float)) and v <= LOW for v in values]
            if known is None or not any(low) or node not in values:
                return None
            return known.bool() == low[0]
        if name == "add" and not user.kwargs:
            other = next((x for x in user.args if x is not node), None)
            known = self.constants.exact(other) if isinstance(other, Node) else None
            return nowhere if known is None else known <= LOW
        return nowhere if name in (*CASTS, "mul") else None


def _turned(ctx: Lowering, x: Tensor, turn: Turn) -> Tensor:
    if turn.still:
        # only what turns is turned
        runs = turn.runs(x.shape[-1])
        parts = [ctx.b.slice(x, -1, start, stop) for start, stop, _ in runs]
        inner = ctx.b.concat([part for part, (*_, turns) in zip(parts, runs, strict=True) if turns], -1)
        inner, at = _turned(ctx, inner, replace(turn, still=())), 0
        for i, (start, stop, turns) in enumerate(runs):
            if turns:
                parts[i], at = ctx.b.slice(inner, -1, at, at + stop - start), at + stop - start
        return ctx.b.concat(parts, -1)
    x = ctx.b.rotate(x, turn.before)
    if turn.positions:  # the identity as a map along the positions: angles differ there, so no frame may act
        x = ctx.b.spatial(x, turn.positions, x.shape, "linear", True)
    return x if turn.before == turn.after else _sorted(ctx, x, turn.after)


def _sorted(ctx: Lowering, x: Tensor, layout: str) -> Tensor:
    """The entries of the last dimension brought from one layout of planes to the other."""
    *rest, d = x.shape
    pairs = (d // 2, 2) if layout == "half" else (2, d // 2)
    y = axes.reshape(ctx.b, x, (*rest, *pairs))
    return axes.reshape(ctx.b, axes.transpose(ctx.b, y, -1, -2), x.shape)


def written_softmax(node: Node) -> tuple[Node, int, bool] | None:
    """(x, dim, log) of exp(x)/Σ exp(x), exp(x − log Σ exp(x)) or x − log Σ exp(x); the largest x may be taken off."""
    name = name_of(node)
    if name not in ("div", "exp", "sub") or node.kwargs or not isinstance(node.args[0], Node):
        return None
    top = strip(node.args[0])
    if name == "exp":
        found = written_softmax(top) if name_of(top) == "sub" else None
        return None if found is None else (found[0], found[1], False)
    bottom = strip(node.args[1], CASTS + BROADCASTS)
    wanted = ("sum", "exp") if name == "div" else ("logsumexp", "")
    if not isinstance(bottom, Node) or name_of(bottom) != wanted[0] or (name_of(top) != wanted[1] and name == "div"):
        return None
    summed = bottom.args[0]
    dims = reduced(bottom, summed) if same(summed, top) else None
    if dims is None or shape_of(bottom) != with_ones(shape_of(top), dims) or (dim := dims[0]) != dims[-1]:
        return None
    x = strip(top.args[0]) if name == "div" else top
    whole, taken = (x.args[0], x.args[1]) if name_of(x) == "sub" and not x.kwargs else (None, None)  # type: ignore[misc]
    if name == "div" and isinstance(whole, Node) and isinstance(taken, Node) and shape_of(whole) == shape_of(x):
        # what is the same along the dimension cancels
        one = len(shape_of(taken)) == len(shape_of(x)) and shape_of(taken)[dim] == 1
        x = whole if one else x
    return x, dim, name == "sub"


def _readers(node: Node) -> list[tuple[Node, Node]]:
    """(what is read, who reads it) of a node, through casts."""
    found = []
    for user in node.users:
        if name_of(user) in CASTS and user.args[0] is node:
            found.extend(_readers(user))
        else:
            found.append((node, user))
    return found
