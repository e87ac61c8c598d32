"""What of a graph is the same at every input: nodes that parameters and known constants alone reach.

Their numbers follow from a state dict by running these nodes; those of a function of an index, by running its nodes on
all values of the index.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch.fx import Node
from torch.nn.attention import SDPBackend, sdpa_kernel

from torchgauge.rules.constants import Constants, called, name_of, random
from torchgauge.rules.registry import is_inplace
from torchgauge.spaces.constraints import Tensor


@dataclass(eq=False)
class Steady:
    """Nodes that are the same at every input, and the tensors of the program that they make."""

    constants: Constants
    leaves: dict[Node, str] = field(default_factory=dict)
    """Parameters: node → canonical name."""
    nodes: dict[Tensor, Node] = field(default_factory=dict)
    made: set[Tensor] = field(default_factory=set)
    """Everything that the rules of such nodes made."""
    known: set[Node] = field(default_factory=set)
    """Such nodes that parameters reach."""
    made_by: dict[Tensor, Node] = field(default_factory=dict)
    """Any tensor of the program → the first node that stands for it."""
    settled: dict[Node, torch.Tensor] = field(default_factory=dict)
    """Buffers that no state dict holds, in numbers."""
    _stills: dict[Node, torch.Tensor | None] = field(default_factory=dict)

    def visit(self, node: Node) -> bool:
        """Takes the next node in order; whether it is the same at every input, and parameters reach it."""
        if node.op != "call_function" or is_inplace(node.target) or random(node):
            return False
        if not isinstance(node.meta.get("val"), torch.Tensor) or not isinstance(node.target, torch._ops.OpOverload):
            return False
        read = node.all_input_nodes
        moving = [n for n in read if n in self.known or n in self.leaves]
        if not moving or not all(n in moving or self._constant(n) is not None for n in read):
            return False
        self.known.add(node)
        return True

    def _constant(self, node: Node) -> torch.Tensor | None:
        value = self.constants.exact(node)
        if value is None and isinstance(like := node.meta.get("val"), torch.Tensor):
            fill = self.constants.fill(node)
            value = None if fill is None else torch.full(tuple(like.shape), fill, dtype=torch.float64)
        return self._still(node) if value is None else value

    def _still(self, node: Node) -> torch.Tensor | None:
        """The numbers of what buffers that no state dict holds and constants alone make."""
        if node in self.settled:
            value = self.settled[node]
            return value.double() if value.is_floating_point() else value
        if node not in self._stills:
            self._stills[node] = None
            pure = node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)
            if pure and node.all_input_nodes and node not in self.constants.spoiled:
                if not is_inplace(node.target) and not random(node):
                    values = {n: self._constant(n) for n in node.all_input_nodes}
                    if all(value is not None for value in values.values()):
                        found = called(node, values)
                        self._stills[node] = found if isinstance(found, torch.Tensor) else None
        return self._stills[node]

    # -- what programs ask -------------------------------------------------------------------------------------
    def steady(self, t: Tensor) -> bool:
        return t in self.made

    def knows(self, t: Tensor) -> bool:
        return t in self.nodes and not any(n in self.constants.spoiled for n in self._cone(self.nodes[t]))

    def value(self, t: Tensor, raw: Callable[[str], torch.Tensor]) -> torch.Tensor:
        values: dict[Node, object] = {}
        for node in self._cone(self.nodes[t]):
            if node in self.leaves:
                values[node] = raw(self.leaves[node])
            elif node in self.known:
                with sdpa_kernel(SDPBackend.MATH):  # other kernels have no forward derivatives
                    values[node] = called(node, values)
            else:
                values[node] = self._constant(node)
        found = values[self.nodes[t]]
        assert isinstance(found, torch.Tensor)
        return found

    def follows(self, t: Tensor, index: object) -> bool:
        """Whether a tensor follows from parameters, known numbers and an index alone."""
        node = self.made_by.get(t)
        if node is None or not isinstance(index, Node) or self._constant(index) is not None:
            return False
        needed = self._needed(node, index)
        # anything else may look at more than one position
        looking = [n for n in needed if index in n.all_input_nodes and n is not index]
        return all(name_of(n) == "embedding" for n in looking) and all(self._runs(n, index) for n in needed)

    def rows(self, t: Tensor, index: object, count: int, raw: Callable[[str], torch.Tensor]) -> torch.Tensor:
        """The numbers [count, ...] of a function of an index, at all its values."""
        assert isinstance(index, Node)
        like, (*before, last) = index.meta["val"], self._needed(self.made_by[t], index)
        places = torch.arange(-(-count // like.numel()) * like.numel()) % count
        found = []
        for chunk in places.split(like.numel()):
            values: dict[Node, object] = {index: chunk.reshape(like.shape).to(like.dtype)}
            for node in (*before, last):
                if node not in values:
                    values[node] = self._at(node, values, raw)
            value = values[last]
            assert isinstance(value, torch.Tensor)
            found.append(value.reshape(like.numel(), *value.shape[like.ndim :]))
        return torch.cat(found)[:count]

    def _at(self, node: Node, values: dict[Node, object], raw: Callable[[str], torch.Tensor]) -> object:
        if node in self.leaves:
            return raw(self.leaves[node])
        if node in self.settled:
            value = self.settled[node]
            return value.double() if value.is_floating_point() else value
        value = self._constant(node)
        if value is not None:
            return value
        with sdpa_kernel(SDPBackend.MATH):
            return called(node, values)

    def _runs(self, node: Node, index: Node) -> bool:
        """Whether a node's numbers can be had, given those of what it reads."""
        if node in self.constants.spoiled:
            return False
        if node is index or node in self.leaves or node in self.settled or self._constant(node) is not None:
            return True
        whole = isinstance(node.meta.get("val"), torch.Tensor) and isinstance(node.target, torch._ops.OpOverload)
        return node.op == "call_function" and whole and not is_inplace(node.target) and not random(node)

    def _needed(self, node: Node, index: Node) -> list[Node]:
        """What must be run for a node at other values of an index, in order."""
        ends = {index, *self.leaves, *self.settled}
        return self._behind(node, lambda n: n not in ends and self._constant(n) is None)

    def _cone(self, node: Node) -> list[Node]:
        """Everything that a node follows from, in order."""
        return self._behind(node, lambda n: n in self.known)

    def _behind(self, node: Node, opened: Callable[[Node], bool]) -> list[Node]:
        """A node and what it follows from, in order, as far as nodes are opened."""
        found: dict[Node, None] = {}
        stack = [(node, False)]
        while stack:
            n, ready = stack.pop()
            if ready:
                found[n] = None
            elif n not in found:
                stack.append((n, True))
                if opened(n):
                    stack += [(m, False) for m in n.all_input_nodes if m not in found]
        return list(found)
