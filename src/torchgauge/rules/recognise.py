"""Patterns that models write out by hand, fused before lowering: norms, offset gains and rotary embeddings.

A pattern is matched on the graph; a norm by its structure, a rotary embedding by its numbers (rotary.py). What does not
match exactly is lowered operator by operator, which is sound and only sees less.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod, sqrt
from typing import TYPE_CHECKING, Any

from torch.fx import Graph, Node

from torchgauge.rules import axes
from torchgauge.rules.constants import Constants, name_of
from torchgauge.rules.rotary import Rotary
from torchgauge.spaces.constraints import Tensor

if TYPE_CHECKING:
    from torchgauge.rules.lower import Lowering

_CASTS = ("to", "_to_copy", "clone", "detach", "alias", "contiguous", "type_as", "lift_fresh", "lift_fresh_copy")
_BROADCASTS = ("expand", "expand_as", "broadcast_to")
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


@dataclass(frozen=True)
class Spread:
    """factor·sqrt(mean of y² over dims + eps), as found in a denominator; `centred` if y is x − mean of x over dims."""

    y: Node
    dims: tuple[int, ...]
    eps: float
    factor: float
    centred: bool


@dataclass(eq=False)
class Recogniser:
    """Matches patterns that end in a node; the nodes inside are pruned when nobody else reads them."""

    constants: Constants
    rotary: Rotary = field(init=False)
    absorbed: dict[Node, Node] = field(default_factory=dict)
    """Node that adds a number to a parameter → the parameter, whose coordinate holds that number."""

    def __post_init__(self) -> None:
        self.rotary = Rotary(self.constants)

    def fuse(self, ctx: Lowering, node: Node) -> Any:
        """The lowered result of a pattern that ends here, or None."""
        if node in self.absorbed:
            return ctx.env[self.absorbed[node]]
        if name_of(node) in ("mul", "div"):
            normed = self._norm(ctx, node)
            if normed is not None:
                return normed
        found = self.rotary.match(ctx.env, node)
        if found is not None:
            source, turn = found
            x = ctx.env[source]
            x = ctx.b.rotate(x, turn.before)
            if turn.positions:  # the identity as a map along the positions: angles differ there, so no frame may act
                x = ctx.b.spatial(x, turn.positions, x.shape, "linear", True)
            return x if turn.before == turn.after else _sorted(ctx, x, turn.after)
        return None

    # -- norms -------------------------------------------------------------------------------------------------
    def _norm(self, ctx: Lowering, node: Node) -> Any:
        """x·rsqrt(mean x² + eps), (x − mean)/sqrt(var + eps), x/‖x‖ and their spellings."""
        first, second = node.args[0], node.args[1]
        if not isinstance(second, Node):
            return None
        pairs = [(first, second)] if name_of(node) == "div" else [(first, second), (second, first)]
        for top, bottom in pairs:
            if not isinstance(top, Node) or top not in ctx.env:
                continue
            spread = self._inverse(bottom) if name_of(node) == "mul" else self._root(bottom)
            if spread is None or (not _same(strip(top), spread.y) and not self._is_centred(top, spread)):
                continue
            return self._normalize(ctx, top, spread)
        return None

    def _normalize(self, ctx: Lowering, top: Node, spread: Spread) -> Any:
        b = ctx.b
        centre = self._centre(strip(top), spread.dims)
        source = top if centre is None else centre
        x = ctx.env.get(source)
        if x is None or x.shape != _shape(top):
            return None
        y = b.normalize(x, spread.dims, "rms" if centre is None else "layer", spread.eps)
        return y if spread.factor == 1 else ctx.scale(y, 1 / spread.factor)

    def _is_centred(self, top: Node, spread: Spread) -> bool:
        """Whether top is x − mean(x) where the denominator holds the variance of that x."""
        if not spread.centred:
            return False
        centre = self._centre(strip(top), spread.dims)
        return centre is not None and _same(strip(centre), spread.y)

    def _centre(self, node: Node, dims: tuple[int, ...]) -> Node | None:
        """x of a node x − mean(x, dims)."""
        if name_of(node) != "sub" or len(node.args) < 2 or node.kwargs.get("alpha", 1) != 1:
            return None
        x, m = node.args[0], node.args[1]
        if not isinstance(x, Node) or not isinstance(m, Node):
            return None
        m = strip(m, _CASTS + _BROADCASTS)
        if name_of(m) != "mean" or not isinstance(m.args[0], Node) or not _same(strip(m.args[0]), strip(x)):
            return None
        return x if _reduced(m, x) == dims else None

    def _inverse(self, node: Node) -> Spread | None:
        """A node that is one over a spread."""
        node = strip(node, _CASTS + _BROADCASTS)
        name = name_of(node)
        if name == "mul" and self._scalar(node.args[1]) == 1:
            return self._inverse(node.args[0])  # type: ignore[arg-type]
        if name == "rsqrt" or (name == "pow" and _number(node, 1) == -0.5):
            return self._variance(node.args[0])
        if name == "reciprocal":
            return self._root(node.args[0])
        if name == "div" and self._scalar(node.args[0]) == 1:
            return self._root(node.args[1])
        return None

    def _root(self, node: Any) -> Spread | None:
        """A node that is a spread: a root of a mean square, a norm, a standard deviation."""
        if not isinstance(node, Node):
            return None
        node = strip(node, _CASTS + _BROADCASTS)
        name = name_of(node)
        if name == "sqrt" or (name == "pow" and _number(node, 1) == 0.5):
            return self._variance(node.args[0])
        if name in ("clamp_min", "clamp", "add", "maximum") and len(node.args) > 1:
            # a floor under a norm, or a number added to it: the frames see the norm alone
            floor = self._scalar(node.args[1])
            inner = self._root(node.args[0]) if floor is not None and abs(floor) < 1e-2 else None
            if inner is None:
                return None
            return Spread(inner.y, inner.dims, floor if name == "add" else 0.0, inner.factor, inner.centred)  # type: ignore[arg-type]
        if name in ("linalg_vector_norm", "norm") and len(node.args) > 2 and _number(node, 1) in (2, None):
            x = node.args[0]
            dims = _reduced(node, x, at=2)
            if dims is None:
                return None
            return Spread(strip(x), dims, 0.0, sqrt(prod(_shape(x)[d] for d in dims)), False)  # type: ignore[arg-type]
        if name == "std":
            return self._moment(node, 0.0)
        return None

    def _variance(self, node: Any) -> Spread | None:
        """A mean square or variance, with or without eps added or floored."""
        if not isinstance(node, Node):
            return None
        node = strip(node)
        if name_of(node) in ("add", "clamp_min", "clamp") and len(node.args) > 1 and not node.kwargs:
            for inner, number in ((node.args[0], node.args[1]), (node.args[1], node.args[0])):
                eps = self._scalar(number)
                if eps is not None and isinstance(inner, Node):
                    return self._moment(strip(inner), eps)
            return None
        return self._moment(node, 0.0)

    def _moment(self, node: Node, eps: float) -> Spread | None:
        name = name_of(node)
        x = node.args[0] if node.args else None
        if not isinstance(x, Node):
            return None
        if name in ("var", "std"):
            dims = _reduced(node, x)
            if dims is None:
                return None
            n, shift = prod(_shape(x)[d] for d in dims), _correction(node)
            ratio = n / (n - shift) if n > shift else 0.0
            # sqrt(v·r + eps) = sqrt(r)·sqrt(v + eps/r) for the unbiased variance v·r
            return Spread(strip(x), dims, eps / ratio, sqrt(ratio), True) if ratio else None
        if name not in ("mean", "sum"):
            return None
        y, dims = _squared(x), _reduced(node, x)
        if y is None or dims is None:
            return None
        n = prod(_shape(x)[d] for d in dims)
        return (
            Spread(strip(y), dims, eps, 1.0, False)
            if name == "mean"
            else Spread(strip(y), dims, eps / n, sqrt(n), False)
        )

    def _scalar(self, x: Any) -> float | None:
        """A number, or the (possibly unknown, then generic) number of a constant with one entry."""
        if isinstance(x, (int, float)) and not isinstance(x, bool):
            return float(x)
        if not isinstance(x, Node):
            return None
        x = self.constants.resolve(strip(x, _CASTS + _BROADCASTS))
        fill = self.constants.fill(x) if x in self.constants.leaves or x.op == "call_function" else None
        if fill is not None:
            return fill
        value = self.constants.sample(x) if prod(_shape(x)) == 1 else None
        return float(value.flatten()[0]) if value is not None and not value.is_complex() else None

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
        return self._literal(other) if _shape(user) == _shape(inner) else None

    @staticmethod
    def _literal(x: Any) -> float | None:
        return float(x) if isinstance(x, (int, float)) and not isinstance(x, bool) else None

    def feeds_softmax(self, node: Node) -> bool:
        """Whether all that reads the node is softmaxes, through casts, views and added masks."""
        if not node.users:
            return False
        return all(
            name_of(u) in ("softmax", "_softmax", "_safe_softmax")
            or (name_of(u) in (*_CASTS, *_VIEWS, "add", "masked_fill", "where") and self.feeds_softmax(u))
            for u in node.users
        )


def _sorted(ctx: Lowering, x: Tensor, layout: str) -> Tensor:
    """The entries of the last dimension brought from one layout of planes to the other."""
    *rest, d = x.shape
    pairs = (d // 2, 2) if layout == "half" else (2, d // 2)
    y = axes.reshape(ctx.b, x, (*rest, *pairs))
    return axes.reshape(ctx.b, axes.transpose(ctx.b, y, -1, -2), x.shape)


def strip(node: Any, names: tuple[str, ...] = _CASTS) -> Node:
    """The node behind casts and copies of floats."""
    while isinstance(node, Node) and name_of(node) in names and isinstance(node.args[0], Node):
        if not node.meta["val"].is_floating_point():
            break
        node = node.args[0]
    return node


def _readers(node: Node) -> list[tuple[Node, Node]]:
    """(what is read, who reads it) of a node, through casts."""
    found = []
    for user in node.users:
        if name_of(user) in _CASTS and user.args[0] is node:
            found.extend(_readers(user))
        else:
            found.append((node, user))
    return found


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def _number(node: Node, at: int) -> float | None:
    value = node.args[at] if len(node.args) > at else None
    return float(value) if isinstance(value, (int, float)) else None


def _squared(node: Node) -> Node | None:
    """y of y², however it is written."""
    node = strip(node)
    name = name_of(node)
    if (
        name == "square"
        or (name == "pow" and _number(node, 1) == 2)
        or (name == "mul" and isinstance(node.args[1], Node) and _same(strip(node.args[0]), strip(node.args[1])))
    ):
        y = node.args[0]
    else:
        return None
    y = strip(y)
    return y.args[0] if name_of(y) == "abs" else y  # type: ignore[return-value]


def _reduced(node: Node, x: Any, at: int = 1) -> tuple[int, ...] | None:
    """The dimensions that a reduction of x sums over, if it keeps them as size one."""
    ndim = len(_shape(x))
    dim: Any = node.args[at] if len(node.args) > at else node.kwargs.get("dim")
    if dim is None or isinstance(dim, bool):
        return None
    dims = tuple(sorted(d % ndim for d in ([dim] if isinstance(dim, int) else dim)))
    kept = tuple(1 if d in dims else n for d, n in enumerate(_shape(x)))
    return dims if dims and _shape(node) == kept else None


def _correction(node: Node) -> float:
    """What is taken off the number of entries in a variance."""
    if "correction" in node.kwargs:
        value: Any = node.kwargs["correction"]
        return 1.0 if value is None else float(value)
    unbiased = node.args[2] if len(node.args) > 2 else node.kwargs.get("unbiased", True)
    return 1.0 if unbiased else 0.0


def _same(a: Any, b: Any, depth: int = 3) -> bool:
    """Whether two nodes compute the same: the same node, or the same operator on the same arguments."""
    a, b = strip(a) if isinstance(a, Node) else a, strip(b) if isinstance(b, Node) else b
    if a is b:
        return True
    if not isinstance(a, Node) or not isinstance(b, Node):
        return (type(a) is type(b) and not isinstance(a, (list, tuple)) and a == b) or _same_list(a, b, depth)
    if depth == 0 or a.target is not b.target or a.op != "call_function" or a.kwargs != b.kwargs:
        return False
    return len(a.args) == len(b.args) and all(_same(x, y, depth - 1) for x, y in zip(a.args, b.args, strict=True))


def _same_list(a: Any, b: Any, depth: int) -> bool:
    both = isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b)
    return both and all(_same(x, y, depth) for x, y in zip(a, b, strict=True))
