"""Constants of the graph: which nodes are constant, their numbers where known, and along which dimensions they vary.

A node is constant when no parameter and no float input reaches it. Numbers serve two ends that are kept apart: `exact`
values (factories and literals alone) may decide a rule; `sample` values (buffers, and integer inputs or meta buffers
replaced by generic numbers) only ever serve to verify a pattern numerically.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch.fx import Node
from torch.fx.node import map_aggregate

from torchgauge.rules.registry import is_inplace

LIMIT = 1 << 24
"""Entries above which a constant is not evaluated."""

RANDOM = ("rand", "bernoulli", "normal", "multinomial", "poisson", "exponential", "uniform", "dropout")
_LIKE = {"zeros_like": 0.0, "new_zeros": 0.0, "ones_like": 1.0, "new_ones": 1.0, "zeros": 0.0, "ones": 1.0}
_FULL = ("full", "full_like", "new_full")
_NOISE = ("rand_like", "randn_like", "randint_like")
SHAPE_ONLY = frozenset(_LIKE) | frozenset(_FULL) | {"empty_like", "new_empty", "empty", "new_empty_strided", *_NOISE}
"""Operators whose result does not depend on the numbers of their tensor argument."""

BY_FIRST = frozenset({"type_as", "expand_as", "view_as", "reshape_as", "to"})
"""Operators that take no numbers from their further tensor arguments, only a type or a shape."""

_IN_ORDER = ("unsqueeze", "squeeze", "view", "reshape", "_unsafe_view", "expand", "expand_as", "slice")
"""Views that keep the order of what they keep; whether all is kept is seen by the sizes."""
_SAME = ("clone", "alias", "detach", "contiguous", "to", "_to_copy", "lift_fresh_copy", "lift_fresh", "type_as", "lift")


def name_of(node: Node) -> str:
    """ "add" for a node that calls aten.add.Tensor, "" for what is not an operator."""
    packet = getattr(node.target, "overloadpacket", None)
    return packet.__name__ if packet is not None else getattr(node.target, "__name__", "")


@dataclass(eq=False)
class Constants:
    """Numbers of constant nodes, evaluated on demand in float64 on the CPU."""

    leaves: dict[Node, tuple[object, bool]]
    """Constant placeholders and attributes: value and whether it is exact; absent for what is not constant."""
    alias: dict[Node, Node] = field(default_factory=dict)
    """Placeholders of an inlined graph → the node that they stand for."""
    spoiled: set[Node] = field(default_factory=set)
    """Constants that an in-place operator writes to: their numbers are not tracked."""
    parameters: set[Node] = field(default_factory=set)
    """Parameters of real numbers."""
    _memo: dict[tuple[Node, bool, bool], object] = field(default_factory=dict)

    def resolve(self, node: Node) -> Node:
        while node in self.alias:
            node = self.alias[node]
        return node

    def exact(self, node: Node) -> torch.Tensor | None:
        """The value that the node has whatever the inputs and parameters are, or None."""
        value = self._evaluate(self.resolve(node), exact=True)
        return value if isinstance(value, torch.Tensor) else None

    def sample(self, node: Node) -> torch.Tensor | None:
        """A value with generic numbers for what is not known, or None."""
        value = self._evaluate(self.resolve(node), exact=False)
        return value if isinstance(value, torch.Tensor) else None

    def drawn(self, node: Node) -> torch.Tensor | None:
        """A value with generic numbers for what is not known, and for parameters too, or None."""
        value = self._evaluate(self.resolve(node), exact=False, drawn=True)
        return value if isinstance(value, torch.Tensor) else None

    def fill(self, node: Node) -> float | None:
        """The number that fills the constant uniformly, if that is known."""
        node = self.resolve(node)
        if node.op == "call_function" and node not in self.spoiled:
            number = _filled(node)
            if number is not None:
                return number
        value = self.exact(node)
        if value is None or value.is_complex() or value.numel() == 0:
            return None
        first = value.flatten()[0]
        return float(first) if bool((value == first).all()) else None

    def uniform(self, node: Node) -> frozenset[int]:
        """Dimensions along which the constant is certainly the same (structure only, no sampling)."""
        node = self.resolve(node)
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            return frozenset()
        small = frozenset(d for d, n in enumerate(value.shape) if n == 1)
        if node.op != "call_function" or node in self.spoiled:
            return small
        return small | self._uniform(node, value.ndim, name_of(node))

    def _uniform(self, node: Node, ndim: int, name: str) -> frozenset[int]:
        every = frozenset(range(ndim))
        if name in _LIKE or name in _FULL:
            return every
        tensors = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor)]
        if name in ("expand", "expand_as", "broadcast_to", "repeat", "tile") and tensors:
            return self._lifted(tensors[0], ndim)
        if name in _SAME and tensors:
            return self.uniform(tensors[0])
        if torch.Tag.pointwise in getattr(node.target, "tags", ()) or name in ("__and__", "__or__", "where"):
            found = every
            for n in tensors:
                found &= self._lifted(n, ndim)
            return found if tensors else frozenset()
        if name in ("transpose", "permute"):
            inner = self.uniform(tensors[0])
            dims = _permutation(node, ndim, name)
            return frozenset(d for d in range(ndim) if dims[d] in inner)
        if name == "unsqueeze":
            at = int(node.args[1]) % ndim  # type: ignore[arg-type]
            return frozenset(d + (d >= at) for d in self.uniform(tensors[0])) | {at}
        if name == "slice":
            return self.uniform(tensors[0])
        return frozenset()

    def _lifted(self, node: Node, ndim: int) -> frozenset[int]:
        """Uniform dimensions of an operand after broadcasting to `ndim` dimensions."""
        offset = ndim - self.resolve(node).meta["val"].ndim
        return frozenset(range(offset)) | {d + offset for d in self.uniform(node)}

    def condition(self, node: Node) -> tuple[Node, bool] | None:
        """The truth values that a mask of zeros and ones shows, and where it has ones: where they are true, or false.

        Only casts, negations and views that keep every dimension in order stand between.
        """
        holds = True
        while True:
            node = self.resolve(node)
            value = node.meta.get("val")
            if node in self.spoiled or not isinstance(value, torch.Tensor):
                return None
            name, first = name_of(node), node.args[0] if node.op == "call_function" and node.args else None
            if not isinstance(first, Node) or node.kwargs.keys() & {"alpha"}:
                break
            negated = name == "logical_not" or (name == "bitwise_not" and value.dtype == torch.bool)
            negated |= name == "rsub" and node.args[1:] == (1,)
            negated |= name == "eq" and node.args[1:] == (0,) and self.condition(first) is not None
            whole = name != "slice" or value.shape == first.meta["val"].shape
            if not (negated or (whole and name in (*_SAME, *_IN_ORDER))):
                break
            node, holds = first, holds != negated
        return (node, holds) if value.dtype == torch.bool else None

    # -- numbers -----------------------------------------------------------------------------------------------
    def _evaluate(self, node: Node, exact: bool, drawn: bool = False) -> object:
        key = (node, exact, drawn)
        if key not in self._memo:
            self._memo[key] = None
            self._memo[key] = self._compute(node, exact, drawn)
        return self._memo[key]

    def _compute(self, node: Node, exact: bool, drawn: bool) -> object:
        if node in self.leaves:
            value, known = self.leaves[node]
            return value if known or not exact else None
        if drawn and node in self.parameters and _size(node) <= LIMIT:
            generator = torch.Generator().manual_seed(len(self._memo))
            return torch.randn(node.meta["val"].shape, generator=generator, dtype=torch.float64)
        if node.op != "call_function" or node in self.spoiled or is_inplace(node.target):
            return None
        if random(node) or _size(node) > LIMIT:
            return None
        if (number := _filled(node)) is not None:
            value = node.meta["val"]
            dtype = torch.float64 if value.is_floating_point() else value.dtype
            return torch.full(value.shape, number, dtype=dtype)
        values: dict[Node, object] = {}
        if name_of(node) in BY_FIRST and len(node.all_input_nodes) > 1:
            first = self._evaluate(self.resolve(node.all_input_nodes[0]), exact, drawn)
            if not isinstance(first, torch.Tensor):
                return None
            shape = node.meta["val"].shape
            return first.reshape(shape) if first.numel() == prod(shape) else first.expand(shape)
        for n in node.all_input_nodes:
            values[n] = self._evaluate(self.resolve(n), exact, drawn)
            if values[n] is None:
                return None
        return run_node(node, values)


def random(node: Node) -> bool:
    """Whether a node draws numbers."""
    seeded = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    if not seeded and not name_of(node).startswith(RANDOM):
        return False
    schema = getattr(node.target, "_schema", None)
    given = dict(node.kwargs)
    if schema is not None:
        given |= {a.name: x for a, x in zip(schema.arguments, node.args, strict=False)}
        given = {a.name: a.default_value for a in schema.arguments} | given
    switches = [given[name] for name in ("train", "training", "dropout_p", "p") if name in given]
    # a dropout that is switched off, or drops nothing
    return not any(x is False or x == 0 for x in switches)


def run_node(node: Node, values: dict[Node, object]) -> Any:
    """One node on the CPU with floats in float64; None where that fails."""
    try:
        with torch.no_grad():
            value = called(node, values)
            # inside of a vmap that was traced a tensor is one of a batch that only the whole region knows
            return None if _batched(value) else value
    except Exception:  # whatever an operator raises, its value is merely unknown
        return None


def called(node: Node, values: Mapping[Node, object]) -> Any:
    """One node at the values of what it reads, with floats in float64."""

    def argument(x: Any) -> Any:
        if isinstance(x, Node):
            return values[x]
        if isinstance(x, torch.device):
            return torch.device("cpu")
        if isinstance(x, torch.dtype) and x in (torch.float32, torch.float16, torch.bfloat16):
            return torch.float64
        if isinstance(x, torch.dtype) and x in (torch.complex64, torch.complex32):
            return torch.complex128
        return x

    # other kernels may have laid out what is viewed in another order
    views = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)
    target: Any = torch.ops.aten.reshape.default if node.target in views else node.target
    return _double(target(*map_aggregate(node.args, argument), **map_aggregate(node.kwargs, argument)))


def _batched(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(x)  # pyright: ignore[reportAttributeAccessIssue]


def _double(x: Any) -> Any:
    if isinstance(x, torch.Tensor) and x.is_floating_point():
        return x.double()
    if isinstance(x, torch.Tensor) and x.is_complex():
        return x.to(torch.complex128)
    return type(x)(_double(v) for v in x) if isinstance(x, (list, tuple)) else x


def _filled(node: Node) -> float | None:
    """The number that a factory fills its result with, whatever the tensor is that lends it a shape."""
    name = name_of(node)
    if name in _LIKE:
        return _LIKE[name]
    return float(node.args[1]) if name in _FULL and isinstance(node.args[1], (int, float)) else None


def _size(node: Node) -> int:
    value = node.meta.get("val")
    return prod(value.shape) if isinstance(value, torch.Tensor) else 0


def _permutation(node: Node, ndim: int, name: str) -> list[int]:
    if name == "permute":
        return [int(d) % ndim for d in node.args[1]]  # type: ignore[union-attr]
    dims = list(range(ndim))
    i, j = int(node.args[1]) % ndim, int(node.args[2]) % ndim  # type: ignore[arg-type]
    dims[i], dims[j] = dims[j], dims[i]
    return dims
