"""What an operator without a rule is made of: torch's own decompositions, traced on meta tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch._decomp import decomposition_table
from torch._ops import OpOverload
from torch.fx import Graph, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_aggregate


def decompose(node: Node) -> tuple[Graph, dict[Node, Node]] | None:
    """The node's graph of simpler operators, and placeholder → the node that it stands for; None if there is none."""
    target = node.target
    if not isinstance(target, OpOverload):
        return None
    outer = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor)]
    examples = [torch.empty(tuple(n.meta["val"].shape), dtype=n.meta["val"].dtype, device="meta") for n in outer]
    body: Any = decomposition_table.get(target)
    if body is None and not _is_composite(target):
        return None

    def call(*tensors: torch.Tensor) -> Any:
        given = dict(zip(outer, tensors, strict=True))
        args = map_aggregate(node.args, lambda x: _argument(x, given))
        kwargs = map_aggregate(node.kwargs, lambda x: _argument(x, given))
        return body(*args, **kwargs) if body is not None else target.decompose(*args, **kwargs)

    try:
        graph = make_fx(call, tracing_mode="real")(*examples).graph
    except Exception:  # a decomposition that cannot be traced on shapes is no decomposition
        return None
    if any(n.target is target for n in graph.nodes):
        return None
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    return graph, dict(zip(placeholders, outer, strict=True))


def _is_composite(target: OpOverload) -> bool:
    return target._can_decompose() if hasattr(target, "_can_decompose") else False


def _argument(x: Any, given: dict[Node, torch.Tensor]) -> Any:
    if isinstance(x, Node):
        return given[x]
    return torch.device("meta") if isinstance(x, torch.device) else x
