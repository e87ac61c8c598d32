"""An exported graph made flat and functional, and the user's lines behind its nodes."""

from __future__ import annotations

import operator
import os
import re
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg

_aten = torch.ops.aten
_NOT_FRAMES = ("/torch/", "/torchgauge/capture.py", "<eval_with_key>")
# Composite operators that always return a fresh tensor, so that writing into the result touches nothing else.
_FRESH = frozenset(
    {
        "linear", "matmul", "batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "conv1d", "conv2d",
        "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "max_pool1d", "max_pool2d", "max_pool3d",
        "scaled_dot_product_attention", "silu", "einsum", "softmax", "log_softmax",
    }
)  # fmt: skip


def flatten(module: fx.GraphModule) -> bool:
    """Take nested regions, assertions, unread buffer updates and plain in-place operators out of a graph.

    Returns:
        Whether the graph is functional now. If not, there are writes through views left.
    """
    inline_regions(module)
    drop_assertions(module.graph)
    _drop_buffer_updates(module.graph)
    _replace_in_place(module.graph)
    _replace_assignments(module.graph)
    module.recompile()
    return not any(_mutates(node) for node in module.graph.nodes)


def inline_regions(module: fx.GraphModule) -> None:
    """Inline the bodies of `no_grad` and `autocast` regions: neither changes what a network computes."""
    regions = (torch.ops.higher_order.wrap_with_set_grad_enabled, torch.ops.higher_order.wrap_with_autocast)
    for node in list(module.graph.nodes):
        if node.op != "call_function" or node.target not in regions:
            continue
        at = next(i for i, a in enumerate(node.args) if isinstance(a, fx.Node) and a.op == "get_attr")
        getter = node.args[at]
        body = module.get_submodule(getter.target)
        assert isinstance(body, fx.GraphModule), body
        inline_regions(body)
        result = _copy_body(module, body, node, node.args[at + 1 :])
        for user in list(node.users):
            if user.target is operator.getitem:
                user.replace_all_uses_with(result[user.args[1]])
                module.graph.erase_node(user)
        if node.users:
            node.replace_all_uses_with(result)
        module.graph.erase_node(node)
        if not getter.users:
            module.graph.erase_node(getter)


def _copy_body(module: fx.GraphModule, body: fx.GraphModule, node: fx.Node, operands: tuple[Any, ...]) -> Any:
    """Copy the nodes of `body` in front of `node`; returns what the body returns."""
    env: dict[fx.Node, Any] = {}
    inputs = iter(operands)
    with module.graph.inserting_before(node):
        for inner in body.graph.nodes:
            if inner.op == "placeholder":
                env[inner] = next(inputs)
            elif inner.op == "output":
                return fx.map_arg(inner.args[0], lambda n: env[n])
            else:
                env[inner] = module.graph.node_copy(inner, lambda n: env[n])
                if inner.op == "get_attr":
                    name = f"{node.name}_{inner.target}".replace(".", "_")
                    setattr(module, name, _attribute(body, str(inner.target)))
                    env[inner].target = name
    raise AssertionError("a region without an output")


def _attribute(module: torch.nn.Module, target: str) -> Any:
    return operator.attrgetter(target)(module)


def drop_assertions(graph: fx.Graph) -> None:
    """Erase checks of sizes and types: shapes are fixed."""
    for node in reversed(graph.nodes):
        if node.op == "call_function" and not node.users and "assert" in str(node.target):
            graph.erase_node(node)


def _mutates(node: fx.Node) -> bool:
    target = node.target
    if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
        return False
    return target._schema.is_mutable and target is not _aten.detach_.default


def _drop_buffer_updates(graph: fx.Graph) -> None:
    """Erase updates of buffers that nothing reads afterwards, such as `num_batches_tracked.add_(1)`."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    for node in reversed(graph.nodes):
        written = node.args[0] if node.args else None
        if not _mutates(node) or node.users or not isinstance(written, fx.Node):
            continue
        is_buffer = written.op == "placeholder" and written.name.startswith("b_")
        if is_buffer and all(order[user] <= order[node] for user in written.users):
            graph.erase_node(node)


def _replace_in_place(graph: fx.Graph) -> None:
    """x.op_(...) on a tensor of its own → op(x, ...), with later readers of x reading the result."""
    for node in list(graph.nodes):
        functional = _functional(node)
        written = node.args[0] if node.args else None
        if functional is None or not isinstance(written, fx.Node) or not _is_fresh(written):
            continue
        order = {other: i for i, other in enumerate(graph.nodes)}
        if any(order[user] < order[node] and not _is_fresh(user) for user in written.users):
            continue  # an alias of the tensor is about: its readers see the write too
        node.target = functional
        written.replace_all_uses_with(node, lambda user, at=order[node], order=order: order[user] > at)


def _replace_assignments(graph: fx.Graph) -> None:
    """x[part] = y, a copy_ into slices of a tensor of its own, → slice_scatter, read by the later readers of x."""
    for node in list(graph.nodes):
        if node.target is not _aten.copy_.default or node.users:
            continue
        chain = _views(node.args[0])
        order = {other: i for i, other in enumerate(graph.nodes)}
        if chain is None or any(_read_after(view, order, order[node], chain) for view in chain):
            continue
        with graph.inserting_before(node):
            written = _fitted(graph, node.args[1], chain[-1])
            for whole, part in zip(reversed(chain[:-1]), reversed(chain[1:]), strict=True):
                written = _computed(
                    graph, _SCATTERS[part.target], (whole, written, *part.args[1:]), part.kwargs, like=node
                )
        base, at = chain[0], order[node]
        base.replace_all_uses_with(written, lambda user, at=at, order=order: order.get(user, -1) > at)
        graph.erase_node(node)


_SCATTERS: dict[Any, Any] = {
    _aten.slice.Tensor: _aten.slice_scatter.default,
    _aten.select.int: _aten.select_scatter.default,
}


def _views(node: Any) -> list[fx.Node] | None:
    """From a tensor of its own to `node`, by slices only; None if it is anything else."""
    chain = [node]
    while isinstance(chain[0], fx.Node) and chain[0].target in _SCATTERS:
        chain.insert(0, chain[0].args[0])
    return chain if isinstance(chain[0], fx.Node) and _is_fresh(chain[0]) else None


def _read_after(view: fx.Node, order: dict[fx.Node, int], at: int, chain: list[fx.Node]) -> bool:
    """Whether memory of `view` is seen after the write at `at` through any name but the first of the chain."""
    if view is not chain[0] and any(order[user] > at for user in view.users):
        return True
    aliases = [u for u in view.users if order[u] < at and u not in chain and not _is_fresh(u)]
    return any(alias.target not in _SCATTERS or _read_after(alias, order, at, chain) for alias in aliases)


def _fitted(graph: fx.Graph, value: Any, like: fx.Node) -> Any:
    """`value` with the shape and the type of `like`, as copy_ gives it."""
    wanted, given = like.meta["val"], value.meta["val"]
    if given.dtype != wanted.dtype:
        value = _computed(graph, _aten._to_copy.default, (value,), {"dtype": wanted.dtype}, like=like)
    if given.shape != wanted.shape:
        value = _computed(graph, _aten.expand.default, (value, list(wanted.shape)), {}, like=like)
    return value


def _computed(graph: fx.Graph, target: Any, args: tuple[Any, ...], kwargs: Any, *, like: fx.Node) -> fx.Node:
    """A call of an operator, with what torch.export notes about it taken from a node of the same line."""
    node = graph.call_function(target, args, dict(kwargs))
    values = map_arg((args, dict(kwargs)), lambda n: n.meta["val"])
    node.meta = {**like.meta, "val": target(*values[0], **values[1])}
    return node


def _functional(node: fx.Node) -> torch._ops.OpOverload | None:
    """The functional variant of an in-place aten operator with the same arguments, or None."""
    if not _mutates(node):
        return None
    schema = node.target._schema  # pyright: ignore[reportAttributeAccessIssue,reportFunctionMemberAccess]
    namespace, name = schema.name.split("::")
    if namespace != "aten" or not name.endswith("_") or name.endswith("__"):
        return None
    packet = getattr(_aten, name[:-1], None)
    overload = getattr(packet, schema.overload_name or "default", None)
    if overload is None or [a.name for a in overload._schema.arguments] != [a.name for a in schema.arguments]:
        return None
    return overload


def _is_fresh(node: fx.Node) -> bool:
    """Whether the result of `node` shares no memory with anything else."""
    target = node.target
    if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload) or target._schema.is_mutable:
        return False
    if any(result.alias_info is not None for result in target._schema.returns):
        return False
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), "CompositeImplicitAutograd")
    name = target._schema.name.split("::")[-1]
    return not composite or name in _FRESH or (name == "dropout" and node.args[2] is True)


def drop_copies(graph: fx.Graph) -> None:
    """Erase dead code and copies: in a functional graph a detached or lifted tensor is the tensor itself."""
    copies = {_aten.detach_.default, _aten.detach.default, _aten.alias.default}
    copies |= {_aten.lift_fresh_copy.default, _aten.lift_fresh.default}
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target in copies:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    graph.eliminate_dead_code()


_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\S+)')


def source_of(node: fx.Node, prefix: str = "") -> str:
    """ "file.py:123 in forward (layers.0.mlp)": the innermost line of the user (or of a modeling file) behind a node.

    Args:
        node: a node of an exported graph.
        prefix: the name under which the model itself was exported, taken off module paths.
    """
    frames = [found.groupdict() for found in _FRAME.finditer(node.meta.get("stack_trace") or "")]
    own = [f for f in frames if not any(part in f["file"] for part in _NOT_FRAMES)]
    users = [f for f in own if "/transformers/" not in f["file"] or "modeling_" in os.path.basename(f["file"])]
    traced = [f for f in frames if "/torchgauge/" not in f["file"] and not f["file"].startswith("<")]
    line = ""
    for candidates in (users, own, traced):
        if candidates:
            frame = candidates[-1]
            line = f"{os.path.basename(frame['file'])}:{frame['line']} in {frame['function']}"
            break
    path = module_path(node, prefix)
    return f"{line} ({path})" if line and path else line or path


def module_path(node: fx.Node, prefix: str = "") -> str:
    """The name of the innermost submodule that `node` belongs to, "" for the model itself."""
    stack = node.meta.get("nn_module_stack") or {}
    if not stack:
        return ""
    path = str(list(stack.values())[-1][0])
    path = re.sub(r"@\d+", "", path)
    return path.removeprefix(prefix).removeprefix(".")
