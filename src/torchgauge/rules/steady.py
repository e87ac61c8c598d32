"""What of a graph is the same at every input: nodes that parameters and known constants alone reach.

Their numbers follow from a state dict by running these nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch.fx import Node
from torch.nn.attention import SDPBackend, sdpa_kernel

from torchgauge.rules.constants import RANDOM, Constants, called, name_of
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

    def visit(self, node: Node) -> bool:
        """Takes the next node in order; whether it is the same at every input, and parameters reach it."""
        if node.op != "call_function" or is_inplace(node.target) or _random(node):
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
        return value

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

    def _cone(self, node: Node) -> list[Node]:
        """Everything that a node follows from, in order."""
        found: dict[Node, None] = {}
        stack = [(node, False)]
        while stack:
            n, ready = stack.pop()
            if ready:
                found[n] = None
            elif n not in found:
                stack.append((n, True))
                if n in self.known:
                    stack += [(m, False) for m in n.all_input_nodes if m not in found]
        return list(found)


def _random(node: Node) -> bool:
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
