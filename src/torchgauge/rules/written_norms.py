"""Norms that a model writes out: x/rms(x), (x − mean)/sqrt(var + ε), x/‖x‖, and their many spellings.

A norm is a product or quotient of a numerator and a *spread*, factor·sqrt(mean of y² + ε). The numerator may hold
further factors (a gain that is multiplied before the division): g·x/s = g·(x/s), entry by entry. It may also be a
linear map of what the spread is of.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import prod, sqrt
from typing import TYPE_CHECKING, Any

from torch.fx import Node

from torchgauge.rules.constants import Constants, name_of
from torchgauge.spaces.constraints import Contract

if TYPE_CHECKING:
    from torchgauge.rules.lower import Lowering

CASTS = ("to", "_to_copy", "clone", "detach", "alias", "contiguous", "type_as", "lift_fresh", "lift_fresh_copy")
BROADCASTS = ("expand", "expand_as", "broadcast_to")
UNSQUEEZED = (*CASTS, *BROADCASTS, "unsqueeze", "view", "reshape", "_unsafe_view")
"""What may stand behind a reduction that did not keep its dimensions; the shape at the end is checked."""

FLOORS = ("add", "clamp_min", "clamp", "maximum")

SMALL = 1e-2
"""A floor under a norm up to this size is taken not to be met."""


@dataclass(frozen=True)
class Moment:
    """scale·(mean of y² over dims); with `centred`, y is x − mean of x over dims and `y` names x."""

    y: Node
    dims: tuple[int, ...]
    scale: float
    centred: bool


@dataclass(frozen=True)
class Spread:
    """factor·sqrt(mean of y² over dims + eps), as found in a denominator; `centred` as in `Moment`."""

    y: Node
    dims: tuple[int, ...]
    eps: float
    factor: float
    centred: bool


@dataclass(eq=False)
class WrittenNorms:
    """Matches a norm that ends in a product or quotient."""

    constants: Constants
    matched: set[Node] = field(default_factory=set)

    def lower(self, ctx: Lowering, node: Node) -> Any:
        """The lowered norm that ends in this node, or None."""
        if node.kwargs:
            return None
        for spread, parts in self._divided(node):
            for i, part in enumerate(parts):
                if not isinstance(part, Node) or (y := self._over(ctx, part, spread)) is None:
                    continue
                for other in parts[:i] + parts[i + 1 :]:
                    y = ctx.b.mul(y, ctx.tensor(ctx.env[other] if isinstance(other, Node) else other))
                self.matched.add(node)
                return ctx.b.expand(y, shape_of(node))
        return None

    def _divided(self, node: Node) -> Iterator[tuple[Spread, list[Any]]]:
        """Every spread that a product or quotient is divided by, with the factors of what is divided."""
        first, second = node.args[0], node.args[1]
        if name_of(node) == "div":
            spread = _kept(self.root(second), second)
            if spread is not None:
                yield spread, self._leaves(first, spread.y)
            return
        for inverse in (*self._leaves(first), *self._leaves(second)):
            spread = _kept(self.inverse(inverse), inverse)
            if spread is not None:
                parts = [*self._leaves(first, spread.y), *self._leaves(second, spread.y)]
                at = [i for i, part in enumerate(parts) if part is inverse]
                if at:
                    yield spread, parts[: at[0]] + parts[at[0] + 1 :]

    def _leaves(self, node: Any, whole: Node | None = None) -> list[Any]:
        """The factors of a product, down to norms that were found already, and to `whole`, which may be a product."""
        inner = strip(node) if isinstance(node, Node) else node
        if not isinstance(inner, Node) or name_of(inner) != "mul" or inner in self.matched:
            return [node]
        if whole is not None and same(inner, whole):
            return [node]
        return [*self._leaves(inner.args[0], whole), *self._leaves(inner.args[1], whole)]

    def _over(self, ctx: Lowering, part: Node, spread: Spread) -> Any:
        """A factor over a spread, if that is a norm, or what a linear map makes of one: (W x)/s = W (x/s)."""
        if (found := self._source(part, spread)) is not None:
            return self._normalize(ctx, part, spread, *found)
        inner = strip(part)
        along = spread.dims == (len(shape_of(spread.y)) - 1,)
        if name_of(inner) != "linear" or len(inner.args) != 2 or inner.kwargs or not along:
            return None
        x: Any = inner.args[0]
        found = self._source(x, spread)
        normed = None if found is None else self._normalize(ctx, x, spread, *found)
        made = ctx.b.producers.get(ctx.env[inner])
        if normed is None or not isinstance(made, Contract) or made.x is not ctx.env[x]:
            return None
        return ctx.b.contract(normed, made.y, made.x_labels, made.y_labels, made.out_labels)

    def _normalize(self, ctx: Lowering, part: Node, spread: Spread, source: Node, centred: bool) -> Any:
        x = ctx.env.get(source)
        if x is None or x.shape != shape_of(part):
            return None
        y = ctx.b.normalize(x, spread.dims, "layer" if centred else "rms", spread.eps)
        return y if spread.factor == 1 else ctx.scale(y, 1 / spread.factor)

    def _source(self, top: Node, spread: Spread) -> tuple[Node, bool] | None:
        """(x, whether centred) if `top` over the spread is a norm of x."""
        centre = self._centre(strip(top), spread.dims)
        if same(top, spread.y) and (centre is not None or not spread.centred):
            return (top, False) if centre is None else (centre, True)
        return (centre, True) if spread.centred and centre is not None and same(centre, spread.y) else None

    def _centre(self, node: Node, dims: tuple[int, ...]) -> Node | None:
        """x of a node x − mean(x, dims)."""
        if name_of(node) != "sub" or len(node.args) < 2 or node.kwargs.get("alpha", 1) != 1:
            return None
        x, m = node.args[0], node.args[1]
        if not isinstance(x, Node) or not isinstance(m, Node):
            return None
        averaged = self._mean(m, dims, shape_of(x))
        return x if averaged is not None and same(averaged, x) else None

    def _mean(self, node: Node, dims: tuple[int, ...], shape: tuple[int, ...]) -> Node | None:
        """x of a node that is the mean of x over exactly these dimensions of this shape."""
        inner = strip(node, UNSQUEEZED)
        if name_of(inner) == "getitem" and inner.args[1] == 1 and name_of(inner.args[0]) in ("var_mean", "std_mean"):  # type: ignore[arg-type]
            inner = inner.args[0]  # type: ignore[assignment]
        elif name_of(inner) != "mean":
            return None
        x = inner.args[0]  # type: ignore[union-attr]
        if not isinstance(x, Node) or shape_of(x) != shape or reduced(inner, x) != dims:  # type: ignore[arg-type]
            return None
        return x if shape_of(strip(node, CASTS + BROADCASTS)) == with_ones(shape, dims) else None

    # -- denominators ------------------------------------------------------------------------------------------
    def inverse(self, node: Any) -> Spread | None:
        """A node that is one over a spread."""
        if not isinstance(node, Node):
            return None
        node = strip(node, UNSQUEEZED)
        name = name_of(node)
        if name == "mul" and (found := self._scaled(node)) is not None:
            inner = self.inverse(found[0])
            return None if inner is None else replace(inner, factor=inner.factor / found[1])
        if name == "rsqrt" or (name == "pow" and _number(node, 1) == -0.5):
            return self._variance(node.args[0])
        if name == "reciprocal" or (name == "pow" and _number(node, 1) == -1):
            return self.root(node.args[0])
        if name == "div" and (number := self.scalar(node.args[0])):
            inner = self.root(node.args[1])
            return None if inner is None else replace(inner, factor=inner.factor / number)
        return None

    def root(self, node: Any) -> Spread | None:
        """A node that is a spread: a root of a mean square, a norm, a standard deviation."""
        if not isinstance(node, Node):
            return None
        node = strip(node, UNSQUEEZED)
        name = name_of(node)
        if name == "sqrt" or (name == "pow" and _number(node, 1) == 0.5):
            return self._variance(node.args[0])
        if name in ("mul", "div") and (found := self._scaled(node)) is not None:
            inner = self.root(found[0])
            return None if inner is None else replace(inner, factor=inner.factor * found[1])
        if name in FLOORS and (found := self._floored(node)) is not None:
            rest, floor = found
            inner = self.root(rest)
            # a small floor under a norm does not count, a number added to it does
            eps = 0.0 if name != "add" and floor < SMALL else floor
            return None if inner is None else replace(inner, eps=max(inner.eps, eps))
        if name in ("linalg_vector_norm", "norm") and len(node.args) > 2 and _number(node, 1) in (2, None):
            x = node.args[0]
            dims = reduced(node, x, at=2)
            return None if dims is None else Spread(strip(x), dims, 0.0, sqrt(_count(x, dims)), False)
        moment = self._moment(node, "std")
        return None if moment is None else Spread(moment.y, moment.dims, 0.0, sqrt(moment.scale), moment.centred)

    def _variance(self, node: Any) -> Spread | None:
        """A mean square or variance, with or without eps added or floored."""
        if not isinstance(node, Node):
            return None
        eps, inner = 0.0, strip(node, UNSQUEEZED)
        if name_of(inner) in FLOORS and (found := self._floored(inner)) is not None:
            node, eps = found
        moment = self._moment(node, "var")
        if moment is None:
            return None
        # sqrt(scale·m + eps) = sqrt(scale)·sqrt(m + eps/scale)
        return Spread(moment.y, moment.dims, eps / moment.scale, sqrt(moment.scale), moment.centred)

    def _moment(self, node: Node, kind: str) -> Moment | None:
        """A mean of squares, a sum of squares or a variance ("var"), or a standard deviation ("std")."""
        node = strip(node, UNSQUEEZED)
        name = name_of(node)
        if kind == "var" and name in ("mul", "div") and (found := self._scaled(node)) is not None:
            inner = self._moment(found[0], kind)
            return None if inner is None else replace(inner, scale=inner.scale * found[1])
        if kind == "var" and name == "sub":
            return self._difference(node)
        if name == "getitem" and node.args[1] == 0 and name_of(node.args[0]) == f"{kind}_mean":  # type: ignore[arg-type]
            node, name = node.args[0], kind  # type: ignore[assignment]
        x = node.args[0] if node.args else None  # type: ignore[union-attr]
        if not isinstance(x, Node):
            return None
        dims = reduced(node, x) if name in (kind, "mean", "sum") else None  # type: ignore[arg-type]
        if dims is None:
            return None
        n = _count(x, dims)
        if name == kind:
            correction = _correction(node)  # type: ignore[arg-type]
            return Moment(strip(x), dims, n / (n - correction), True) if n > correction else None
        y = squared(x) if kind == "var" else None
        return None if y is None else Moment(strip(y), dims, 1.0 if name == "mean" else float(n), False)

    def _difference(self, node: Node) -> Moment | None:
        """mean(x²) − mean(x)², a variance."""
        left = self._moment(node.args[0], "var") if isinstance(node.args[0], Node) else None
        right = squared(node.args[1]) if isinstance(node.args[1], Node) and not node.kwargs else None
        if left is None or right is None or left.scale != 1 or left.centred:
            return None
        x = self._mean(right, left.dims, shape_of(left.y))
        return replace(left, centred=True) if x is not None and same(x, left.y) else None

    def _scaled(self, node: Node) -> tuple[Node, float] | None:
        """A node that is a number times another: that one and the number."""
        first, second = node.args[0], node.args[1]
        if isinstance(first, Node) and (number := self.scalar(second)):
            return first, number if name_of(node) == "mul" else 1 / number
        if name_of(node) == "mul" and isinstance(second, Node) and (number := self.scalar(first)):
            return second, number
        return None

    def _floored(self, node: Node) -> tuple[Node, float] | None:
        """A node that is another plus a positive number, or bounded by it from below: that one and the number."""
        if node.kwargs or len(node.args) != 2:
            return None
        for rest, other in (node.args, node.args[::-1]):
            number = self.scalar(other)
            if number is not None and number >= 0 and isinstance(rest, Node):
                return rest, number
        return None

    def scalar(self, x: Any) -> float | None:
        """A number, or the (possibly unknown, then generic) number of a constant with one entry."""
        if isinstance(x, (int, float)) and not isinstance(x, bool):
            return float(x)
        if not isinstance(x, Node):
            return None
        x = self.constants.resolve(strip(x, CASTS + BROADCASTS))
        fill = self.constants.fill(x) if x in self.constants.leaves or x.op == "call_function" else None
        if fill is not None:
            return fill
        value = self.constants.sample(x) if prod(shape_of(x)) == 1 else None
        return float(value.flatten()[0]) if value is not None and not value.is_complex() else None


def strip(node: Any, names: tuple[str, ...] = CASTS) -> Node:
    """The node behind casts and copies of floats."""
    while isinstance(node, Node) and name_of(node) in names and isinstance(node.args[0], Node):
        if not node.meta["val"].is_floating_point():
            break
        node = node.args[0]
    return node


def shape_of(node: Any) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def _count(x: Any, dims: tuple[int, ...]) -> int:
    return prod(shape_of(x)[d] for d in dims)


def _number(node: Node, at: int) -> float | None:
    value = node.args[at] if len(node.args) > at else None
    return float(value) if isinstance(value, (int, float)) else None


def squared(node: Node) -> Node | None:
    """y of y², however it is written."""
    node = strip(node)
    name = name_of(node)
    power = name == "square" or (name == "pow" and _number(node, 1) == 2)
    if not power and not (name == "mul" and isinstance(node.args[1], Node) and same(node.args[0], node.args[1])):
        return None
    y = strip(node.args[0])
    return y.args[0] if name_of(y) == "abs" else y  # type: ignore[return-value]


def reduced(node: Node, x: Any, at: int = 1) -> tuple[int, ...] | None:
    """The dimensions of x that a reduction sums over."""
    ndim = len(shape_of(x))
    dim: Any = node.args[at] if len(node.args) > at else node.kwargs.get("dim")
    if dim is None or isinstance(dim, bool):
        return None
    return tuple(sorted(d % ndim for d in ([dim] if isinstance(dim, int) else dim))) or None


def with_ones(shape: tuple[int, ...], dims: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(1 if d in dims else n for d, n in enumerate(shape))


def _kept(spread: Spread | None, node: Any) -> Spread | None:
    """The spread if the node that holds it has size one along its dimensions, so that it is broadcast along them."""
    if spread is None:
        return None
    wanted = with_ones(shape_of(spread.y), spread.dims)
    return spread if shape_of(strip(node, CASTS + BROADCASTS)) == wanted else None


def _correction(node: Node) -> float:
    """What is taken off the number of entries in a variance."""
    if "correction" in node.kwargs:
        value: Any = node.kwargs["correction"]
        return 1.0 if value is None else float(value)
    unbiased = node.args[2] if len(node.args) > 2 else node.kwargs.get("unbiased", True)
    return 1.0 if unbiased else 0.0


def same(a: Any, b: Any, depth: int = 3) -> bool:
    """Whether two nodes compute the same: the same node, or the same operator on the same arguments."""
    a, b = strip(a) if isinstance(a, Node) else a, strip(b) if isinstance(b, Node) else b
    if a is b:
        return True
    if not isinstance(a, Node) or not isinstance(b, Node):
        return (type(a) is type(b) and not isinstance(a, (list, tuple)) and a == b) or _same_list(a, b, depth)
    if depth == 0 or a.target is not b.target or a.op != "call_function" or a.kwargs != b.kwargs:
        return False
    return len(a.args) == len(b.args) and all(same(x, y, depth - 1) for x, y in zip(a.args, b.args, strict=True))


def _same_list(a: Any, b: Any, depth: int) -> bool:
    both = isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b)
    return both and all(same(x, y, depth) for x, y in zip(a, b, strict=True))
