"""Rotary embeddings, recognised by their numbers and not by their spelling.

A candidate is a region of linear operators between one tensor x [..., d] and a result of its shape, all else being
constants. The region is run on random x in float64: if each plane of x, read as one complex number, comes out
multiplied by a number that does not depend on x, the region is a rotary embedding in that layout. Buffers on the meta
device and positions given as inputs are replaced by generic numbers, so an accident of numbers has probability zero.
So are parameters where cosines and sines of them are all that is read: these are held still.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import torch
from torch.fx import Node
from torch.fx.node import map_aggregate

from torchgauge.rules.constants import Constants, name_of, run_node

Layout = Literal["half", "interleaved"]
ORDERS: tuple[tuple[Layout, Layout], ...] = (
    ("half", "half"),
    ("interleaved", "interleaved"),
    ("interleaved", "half"),
    ("half", "interleaved"),
)

MAX_NODES = 48
TOLERANCE = 1e-6


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_LINEAR = _names(
    """
    add sub mul neg rsub cat concat stack slice select narrow split chunk unbind split_with_sizes getitem view
    reshape _unsafe_view unsqueeze squeeze flatten unflatten transpose permute movedim to _to_copy clone
    contiguous alias detach type_as view_as_complex view_as_real expand roll flip
    """
)
_ENDS = _names("add cat concat flatten view reshape _unsafe_view")
_JOINS = _names("stack cat concat view_as_real")
_CASTS = _names("to _to_copy clone contiguous alias type_as")


@dataclass(frozen=True)
class Turn:
    """What a region does: layouts of the planes before and after, and the dimensions along which the angles differ."""

    before: Layout
    after: Layout
    positions: tuple[int, ...]
    still: tuple[int, ...] = ()
    """Planes of frequency zero: they come out as they went in."""

    def runs(self, width: int) -> list[tuple[int, int, bool]]:
        """The last dimension as runs (start, stop, whether turned)."""
        planes = range(width // 2)
        turned = [p not in self.still for p in planes]
        entries = turned * 2 if self.before == "half" else [t for t in turned for _ in range(2)]
        ends = [i for i in range(1, width) if entries[i] != entries[i - 1]]
        return [(a, b, entries[a]) for a, b in pairwise((0, *ends, width))]


@dataclass(eq=False)
class Rotary:
    """Finds rotary embeddings; remembers which constant subgraphs and which regions it has judged."""

    constants: Constants
    _keys: dict[Node, str] = field(default_factory=dict)
    _judged: dict[str, Turn | None] = field(default_factory=dict)
    _order: dict[Node, int] = field(default_factory=dict)
    _fused: set[Node] = field(default_factory=set)
    _made: set[Node] = field(default_factory=set)
    """What parameters and constants alone make."""
    _angles: set[Node] = field(default_factory=set)
    """What is made of cosines and sines of such."""

    def note(self, env: dict[Node, Any], node: Node) -> None:
        """Takes the next node that is no constant, in order."""
        made, given, read = self._made, self.constants.parameters, node.all_input_nodes
        if node.op == "call_function" and all(n in made or n in given or _constant(env, n) for n in read):
            self._made.add(node)
            if name_of(node) in ("cos", "sin") or not self._angles.isdisjoint(read):
                self._angles.add(node)

    def match(self, env: dict[Node, Any], node: Node) -> tuple[Node, Turn, list[Node]] | None:
        """The tensor that `node` is the rotation of, how it is turned, and what parameters make of the angles."""
        if not self._promising(env, node):
            return None
        region: list[Node] = []
        for source in self._walk(env, node, region):
            if _shape(source) != _shape(node) or not any(self._scaled(env, n) for n in region):
                continue
            key = self._signature(env, region, source)
            if key not in self._judged:
                self._judged[key] = self._judge(env, region, source)
            turn = self._judged[key]
            if turn is not None:
                self._fused.add(node)
                read = [n for made in region for n in made.all_input_nodes if n in self._angles]
                return source, turn, [n for n in dict.fromkeys(read) if not _constant(env, n)]
        return None

    def _promising(self, env: dict[Node, Any], node: Node) -> bool:
        """A cheap test of the last operators before anything is run."""
        name = name_of(node)
        value = node.meta.get("val")
        if name not in _ENDS or not isinstance(value, torch.Tensor) or not value.is_floating_point():
            return False
        if value.ndim < 2 or value.shape[-1] % 2 or not value.numel():
            return False
        operands = [_uncast(n) for n in node.all_input_nodes]
        if name == "add":
            return len(operands) == 2 and all(self._scaled(env, n) for n in operands)
        if name in ("cat", "concat"):
            return len(operands) == 2 and all(name_of(n) in ("add", "sub") for n in operands)
        return name_of(operands[0]) in _JOINS

    def _scaled(self, env: dict[Node, Any], node: Node) -> bool:
        """A product with a constant that is not a number."""
        return name_of(node) == "mul" and any(self._known(env, n) and n.meta["val"].ndim for n in node.all_input_nodes)

    def _known(self, env: dict[Node, Any], node: Node) -> bool:
        """Whether a node is a constant, or made of cosines and sines of what parameters make."""
        return _constant(env, node) or node in self._angles

    def _walk(self, env: dict[Node, Any], node: Node, region: list[Node]) -> Any:
        """Go back from `node`; yield every node that all paths to it pass through. `region` grows alongside."""
        order = self._ordered(node)
        heap, seen = [(-order[node], node.name, node)], {node}
        while heap and len(region) < MAX_NODES:
            _, _, current = heapq.heappop(heap)
            if not heap and current is not node:
                yield current
            if name_of(current) not in _LINEAR or (current in self._fused) or current not in order:
                return
            live = [n for n in current.all_input_nodes if not self._known(env, n)]
            if (name_of(current) == "mul" and len(live) != 1) or not live:
                return
            region.append(current)
            for n in live:
                if n not in seen:
                    seen.add(n)
                    heapq.heappush(heap, (-order.get(n, -1), n.name, n))

    def _ordered(self, node: Node) -> dict[Node, int]:
        if node not in self._order:
            self._order = {n: i for i, n in enumerate(node.graph.nodes)}
        return self._order

    # -- judging by numbers --------------------------------------------------------------------------------------
    def _judge(self, env: dict[Node, Any], region: list[Node], source: Node) -> Turn | None:
        generator = torch.Generator().manual_seed(1)
        trials = []
        for _ in range(2):
            x = torch.randn(_shape(source), generator=generator, dtype=torch.float64)
            y = self._run(env, region, source, x)
            if not isinstance(y, torch.Tensor) or y.shape != x.shape or y.is_complex():
                return None
            trials.append((x, y))
        for before, after in ORDERS:
            factors = [_planes(y, after) / _planes(x, before) for x, y in trials]
            if _turns(factors[0], factors[1]):
                x, y = trials[0]
                still = _still(x, y, before) if before == after else ()
                return Turn(before, after, _varying(factors[0]), still)
        return None

    def _run(self, env: dict[Node, Any], region: list[Node], source: Node, x: torch.Tensor) -> object:
        values: dict[Node, object] = {source: x}
        result: object = None
        for node in reversed(region):
            for n in node.all_input_nodes:
                if n not in values:
                    values[n] = self.constants.drawn(n) if self._known(env, n) else None
                if values[n] is None:
                    return None
            result = values[node] = run_node(node, values)
        return result

    def _signature(self, env: dict[Node, Any], region: list[Node], source: Node) -> str:
        """The region as text, equal for the layers of one model, so that it is judged once."""
        names = {source: f"x{_shape(source)}"} | {n: f"n{i}" for i, n in enumerate(reversed(region))}

        def text(x: Any) -> Any:
            return names.get(x) or self._key(x) if isinstance(x, Node) else x

        return ";".join(str((str(n.target), *map(str, _mapped(n, text)))) for n in reversed(region))

    def _key(self, node: Node) -> str:
        """A text for a constant node, equal for equal subgraphs."""
        node = self.constants.resolve(node)
        if node not in self._keys:
            if node.op != "call_function":
                self._keys[node] = node.name
            else:
                parts = _mapped(node, lambda x: self._key(x) if isinstance(x, Node) else x)
                self._keys[node] = f"k{hash((str(node.target), str(parts)))}"
        return self._keys[node]


def _mapped(node: Node, change: Any) -> tuple[Any, Any]:
    """The arguments of a node, changed one by one."""
    args = map_aggregate(node.args, change)
    return args, map_aggregate(node.kwargs, change)


def _planes(x: torch.Tensor, layout: str) -> torch.Tensor:
    """The planes of the last dimension as complex numbers."""
    if layout == "interleaved":
        return torch.complex(x[..., ::2], x[..., 1::2])
    return torch.complex(*x.chunk(2, -1))


def _turns(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether the factors do not depend on x and turn somewhere."""
    scale = a.abs().max()
    if not torch.isfinite(scale) or scale == 0 or (a - b).abs().max() > TOLERANCE * scale:
        return False
    return bool(a.imag.abs().max() >= 1e-3 * scale)


def _varying(a: torch.Tensor) -> tuple[int, ...]:
    """The dimensions along which the factors differ: no frame may act there."""
    limit = TOLERANCE * a.abs().max()
    return tuple(d for d in range(a.ndim - 1) if (a - a.narrow(d, 0, 1)).abs().max() > limit)


def _still(x: torch.Tensor, y: torch.Tensor, layout: str) -> tuple[int, ...]:
    """Planes that are not moved at all, to the last bit: the slowest ones of a long context turn by 1e-9."""
    same = (_planes(x, layout) == _planes(y, layout)).reshape(-1, x.shape[-1] // 2).all(0)
    return tuple(same.nonzero().flatten().tolist())


def _constant(env: dict[Node, Any], node: Node) -> bool:
    return getattr(env.get(node), "role", None) == "const"


def _uncast(node: Node) -> Node:
    while name_of(node) in _CASTS and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


def _shape(node: Node) -> tuple[int, ...]:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()
