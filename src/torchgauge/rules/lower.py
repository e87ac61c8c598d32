"""From the captured graph to a program of constraints: one pass over the nodes, rule by rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_aggregate, map_arg

from torchgauge.rules import registry
from torchgauge.rules.constants import BY_FIRST, SHAPE_ONLY, Constants, name_of
from torchgauge.rules.decompose import decompose
from torchgauge.rules.recognise import Recogniser
from torchgauge.rules.steady import Steady
from torchgauge.spaces.builder import Builder
from torchgauge.spaces.constraints import PICKED, Coordinate, Mask, Opaque, Profile, Program, Tensor

if TYPE_CHECKING:
    from torchgauge.capture import Captured

GENERIC = Profile("generic")
MAX_DEPTH = 4
"""Decompositions inside decompositions before an operator counts as unknown."""


@dataclass(eq=False)
class Lowering:
    """What a rule sees: the builder, the node at hand, and the constants of the graph."""

    b: Builder
    constants: Constants
    recogniser: Recogniser
    env: dict[Node, Any] = field(default_factory=dict)
    node: Node = field(default=None)  # type: ignore[assignment]
    values: dict[Tensor, Node] = field(default_factory=dict)
    """The graph node of each constant tensor."""
    statistics: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Batch-norm buffers: placeholder node name → shape."""
    names: dict[str, str] = field(default_factory=dict)
    """Placeholder node name → canonical name of its parameter or buffer."""
    anchors: list[Tensor] = field(default_factory=list)
    """Indices and angles that are computed: no constraint reads them, and yet they must not move."""
    source: Callable[[Node], str] = field(default=lambda node: "")
    depth: int = 0
    steady: Steady = field(default=None)  # type: ignore[assignment]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the node's (first) result."""
        value = self.node.meta["val"]
        return tuple(int(n) for n in (value[0] if isinstance(value, (tuple, list)) else value).shape)

    @property
    def name(self) -> str:
        """The operator's name, "topk" for aten.topk.default."""
        return name_of(self.node)

    @property
    def floating(self) -> bool:
        """Whether the node's (first) result is floating point."""
        value = self.node.meta["val"]
        value = value[0] if isinstance(value, (tuple, list)) else value
        return value.is_floating_point()

    def scalar(self, value: float) -> Tensor:
        return self.b.const((), "scalar", float(value))

    def scale(self, x: Tensor, by: float) -> Tensor:
        return self.b.mul(x, self.scalar(by))

    def tensor(self, x: Tensor | float | bool) -> Tensor:
        """An operand as a tensor; a constant is shrunk along the dimensions in which it is uniform."""
        return self.shrink(x) if isinstance(x, Tensor) else self.scalar(float(x))

    def shrink(self, x: Tensor) -> Tensor:
        """A constant with size one where it is uniform, so that it pins no frame there."""
        if x.role != "const" or not x.ndim:
            return x
        if x.fill is not None:
            return self.b.const((1,) * x.ndim, x.name, x.fill)
        node = self.values.get(x)
        uniform = self.constants.uniform(node) if node is not None else frozenset()
        shape = tuple(1 if d in uniform else n for d, n in enumerate(x.shape))
        found = x if shape == x.shape else self.b.const(shape, x.name)
        found.mask = self.mask(x, found, True)
        return found

    def mask(self, x: Tensor, found: Tensor, kept: bool, low: bool = False) -> Mask | None:
        """What a constant `found` takes out, made of a mask `x` that is true where that is `kept`, or goes."""
        shown = self.constants.condition(self.values[x]) if x in self.values else None
        dims = tuple(d for d, n in enumerate(found.shape) if n > 1)
        if shown is None or [n for n in shown[0].meta["val"].shape if n > 1] != [found.shape[d] for d in dims]:
            return None
        return Mask((shown[0], shown[1] == kept), dims, low)

    def exact(self, x: Tensor) -> torch.Tensor | None:
        """The numbers of a constant where they depend on nothing, else None."""
        return self.constants.exact(self.values[x]) if x in self.values else None

    def generic(self, *xs: Tensor | float) -> Tensor:
        """An elementwise function of which nothing is known: it lets shared permutations through."""
        b = self.b
        parts = [self.tensor(x) for x in xs]
        total = self.scalar(0.0)
        for x in parts:
            total = b.add(total, x if x.role == "const" else b.pointwise(x, GENERIC))
        return b.expand(total if total.role == "const" else b.pointwise(total, GENERIC), self.shape)

    def picks(self, index: Tensor) -> bool:
        """Whether positions given by `index` may be read: constants may; an index computed from data is made rigid."""
        if index.role != "const":
            self.anchors.append(self.b.spatial(index, range(index.ndim), index.shape, "linear", True))
        return index.role == "const"

    def opaque(self, reason: str) -> Any:
        """Nothing is known about this node: everything that it reads becomes rigid."""
        return self._opaque(self.node, reason)

    def _opaque(self, node: Node, reason: str) -> Any:
        xs = [x for n in node.all_input_nodes for x in _tensors(self.env.get(n))]
        return _map_values(node.meta.get("val"), lambda v: self.b.opaque(xs, tuple(v.shape), reason))

    # -- the walk ----------------------------------------------------------------------------------------------
    def run(self, graph: Graph) -> Any:
        """Lower every node; returns the lowered output structure."""
        for node in graph.nodes:
            if node.op == "output":
                return map_arg(node.args[0], lambda n: self.env[n])
            if node.op != "placeholder" and node not in self.env:
                self.node = node
                if self.depth == 0:
                    self.b.source = self.source(node)
                mark = len(self.b.program.constraints)
                steady = self.depth == 0 and self.steady.visit(node)
                self.env[node] = self.visit(node)
                if steady:
                    self._made_steadily(node, mark)
                if self.depth == 0 and isinstance(made := self.env[node], Tensor) and made.role == "data":
                    self.steady.made_by.setdefault(made, node)
        return None

    def _made_steadily(self, node: Node, mark: int) -> None:
        self.steady.made.update(k.out for k in self.b.program.constraints[mark:])
        if isinstance(made := self.env[node], Tensor) and made.role == "data":
            self.steady.nodes.setdefault(made, node)

    def visit(self, node: Node) -> Any:
        if node.op == "get_attr" or isinstance(node.target, GraphModule):
            return self._constant(node)
        if node.op != "call_function":
            return self._opaque(node, f"unsupported node {node.format_node()}")
        if name_of(node) == "getitem":
            return self._item(node)
        if not _has_tensor(node):
            return None
        if self._is_constant(node):
            return self._constant(node)
        fused = self.recogniser.fuse(self, node)
        if fused is not None:
            return fused
        return self.apply(node)

    def _item(self, node: Node) -> Any:
        """One of several results; one that its rule says nothing of is opaque, unless it is no number."""
        source, index = node.args
        whole: Any = self.env[source]  # type: ignore[index]
        if whole is None:
            return self._opaque(node, "getitem")
        value = node.meta.get("val")
        if whole[index] is None and isinstance(value, torch.Tensor) and value.is_floating_point():
            assert isinstance(source, Node)
            return self._opaque(source, f"no rule for result {index} of {source.target}")[index]
        return whole[index]

    def apply(self, node: Node) -> Any:
        """The node's rule, else its decomposition, else opaque."""
        args, kwargs = _arguments(node, self.env)
        found = registry.find(node.target)
        result = found(self, *args, **kwargs) if found is not None else NotImplemented
        if result is NotImplemented and self.depth < MAX_DEPTH:
            result = self._decomposed(node)
        if result is NotImplemented:
            result = self._opaque(node, f"no rule for {node.target}")
        result = self._fitted(result, node.meta["val"])
        if registry.is_inplace(node.target) and isinstance(node.args[0], Node):
            self._overwrite(node.args[0], result)
        return result

    def _fitted(self, result: Any, value: Any) -> Any:
        """Broadcast a result to the node's shape where shrunken constants left it smaller."""
        if isinstance(result, Tensor) and isinstance(value, torch.Tensor):
            return self.b.expand(result, tuple(int(n) for n in value.shape))
        if isinstance(result, (tuple, list)) and isinstance(value, (tuple, list)):
            return [self._fitted(r, v) for r, v in zip(result, value, strict=False)]
        return result

    def _decomposed(self, node: Node) -> Any:
        inner = decompose(node)
        if inner is None:
            return NotImplemented
        graph, inputs = inner
        for placeholder, outer in inputs.items():
            self.env[placeholder] = self.env[outer]
            self.constants.alias[placeholder] = outer
        self.depth += 1
        result = self.run(graph)
        self.depth -= 1
        self.node = node
        return result

    def _overwrite(self, target: Node, result: Any) -> None:
        """An in-place operator: the old name means the new value from here on; views of it are not tracked."""
        family = {target}
        while True:
            more = {a for n in family if _is_view(n) for a in n.all_input_nodes[:1]}
            more |= {u for n in family for u in n.users if _is_view(u) and u.args[0] is n}
            if more <= family:
                break
            family |= more
        for node in family:
            self.constants.spoiled.add(self.constants.resolve(node))
            if len(family) > 1 and node in self.env:
                xs = [*_tensors(result), *_tensors(self.env[node])]
                self.env[node] = self.b.opaque(xs, tuple(node.meta["val"].shape), "in-place write through a view")
        if len(family) == 1:
            self.env[target] = result

    def _is_constant(self, node: Node) -> bool:
        if name_of(node) in SHAPE_ONLY:
            return True
        read = node.all_input_nodes[:1] if name_of(node) in BY_FIRST else node.all_input_nodes
        return all(_is_const(self.env.get(n)) for n in read)

    def _constant(self, node: Node) -> Any:
        value = node.meta.get("val")
        if value is None and node.op == "get_attr":
            return None

        def leaf(v: Any) -> Tensor:
            single = isinstance(value, torch.Tensor)
            x = self.b.const(tuple(v.shape), node.name, self.constants.fill(node) if single else None)
            if single:
                self.values[x] = node
            return x

        return _map_values(value, leaf)


def lower(captured: Captured) -> Program:
    """Lower a captured model to constraints.

    Every operator without a rule is decomposed; what has no decomposition either becomes `Opaque`, and the program
    lists it with its source line.
    """
    b = Builder()
    graph = captured.graph_module.graph
    roles = captured.placeholders
    statistics = _statistics(graph)
    constants = Constants({})
    recogniser = Recogniser(constants)
    names = {n: name for n, (_, name) in roles.items()}
    steady = Steady(constants, {n: names[n.name] for n in graph.nodes if _is_param(n, roles)})
    constants.parameters.update(steady.leaves)
    ctx = Lowering(b, constants, recogniser, names=names, source=captured.source, steady=steady)
    offsets = recogniser.offsets(graph, {n for n, (role, _) in roles.items() if role == "param"}, ctx.names)
    for node in graph.nodes:
        if node.op in ("placeholder", "get_attr"):
            b.source = captured.source(node)
            ctx.env[node] = _leaf(ctx, captured, node, statistics, offsets)
    ctx.run(graph)
    program = b.program
    program.numbers = steady
    for ref in captured.outputs:
        for x in _tensors(ctx.env[ref.node]):
            program.outputs.append(x)
            program.output_names.append(ref.name)
    for x in ctx.anchors:  # what hangs on it is no operand of any constraint, so it must stand still like an output
        program.outputs.append(x)
        program.output_names.append(PICKED)
    idle = _idle(b, {name: program.params[name] for node, name in steady.leaves.items() if node.users})
    program = prune(program)
    program.idle = {name: x for name, x in idle.items() if name not in program.params}
    return program


def _idle(b: Builder, params: dict[str, Tensor]) -> dict[str, Tensor]:
    """Parameters of which nothing but what is multiplied by zero is made."""
    read = {t for k in b.program.constraints for t in k.inputs}
    lost = {k.out for k in b.program.constraints if k.out not in read} - b.zeroed
    lost.update(b.program.outputs)
    for k in reversed(b.program.constraints):
        if k.out in lost:
            lost.update(k.inputs)
    return {name: t for name, t in params.items() if t not in lost and (t in read or t in b.zeroed)}


def _leaf(ctx: Lowering, captured: Captured, node: Node, statistics: set[Node], offsets: dict[str, float]) -> Any:
    """The tensor of a placeholder, by its role."""
    b = ctx.b
    value = node.meta.get("val")
    if node.op == "get_attr":
        value = _attribute(captured.graph_module, str(node.target))
        if not isinstance(value, torch.Tensor):
            return value
        return _const_leaf(ctx, node, value, True)
    if not isinstance(value, torch.Tensor):
        return None
    shape = tuple(int(n) for n in value.shape)
    role, name = captured.placeholders[node.name]
    if role == "param" and value.is_complex():  # frames are real: it stands still, as a constant of unknown numbers
        return b.const(shape, name)
    if role == "param":
        offset = offsets.get(name)
        coordinate = Coordinate(name, "offset", offset) if offset is not None else None
        return b.param(name, shape, coordinate)
    if role == "input":
        if value.is_floating_point() or value.is_complex():
            return b.input(name, shape)
        return _const_leaf(ctx, node, _distinct(value), False)
    if role == "buffer" and name in captured.unsaved and not _unreal(numbers := captured.buffers[name]):
        ctx.steady.settled[node] = numbers.detach().cpu()
    if node in statistics:
        ctx.statistics[node.name] = shape
        return b.pointwise(b.buffer(name, shape), GENERIC)
    numbers = captured.buffers.get(name) if role == "buffer" else captured.constants.get(name)
    known = role == "const" or name in captured.fixed
    if not isinstance(numbers, torch.Tensor) or _unreal(numbers):
        numbers, known = _distinct(value), False
    return _const_leaf(ctx, node, numbers, known)


def _unreal(numbers: torch.Tensor) -> bool:
    """Whether a tensor holds no numbers."""
    return numbers.device.type == "meta" or hasattr(numbers, "fake_mode")


def _const_leaf(ctx: Lowering, node: Node, numbers: torch.Tensor, exact: bool) -> Tensor:
    numbers = numbers.detach().cpu()
    ctx.constants.leaves[node] = numbers.double() if numbers.is_floating_point() else numbers, exact
    x = ctx.b.const(tuple(numbers.shape), node.name, ctx.constants.fill(node))
    ctx.values[x] = node
    return x


def _distinct(value: torch.Tensor) -> torch.Tensor:
    """Generic numbers of a shape and kind: positive floats, distinct integers, mixed truth values."""
    shape = tuple(value.shape)
    if value.is_floating_point():
        return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1
    count = torch.arange(max(1, int(torch.tensor(shape).prod())) if shape else 1).reshape(shape)
    return count % 2 == 0 if value.dtype == torch.bool else count.to(torch.int64)


def _is_param(node: Node, roles: Mapping[str, tuple[str, str]]) -> bool:
    """Whether a node stands for a parameter of real numbers."""
    value = node.meta.get("val")
    real = isinstance(value, torch.Tensor) and value.is_floating_point()
    return node.op == "placeholder" and real and roles[node.name][0] == "param"


def _statistics(graph: Graph) -> set[Node]:
    """Placeholders that are the running statistics of a normalisation in evaluation mode."""
    found: set[Node] = set()
    for node in graph.nodes:
        if name_of(node) in ("batch_norm", "instance_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm"):
            found |= {a for a in node.args[3:5] if isinstance(a, Node)}
    return found


def prune(program: Program) -> Program:
    """Drop the constraints, parameters and opaque notes that no output reads."""
    live: set[Tensor] = {*program.outputs}
    kept = []
    for constraint in reversed(program.constraints):
        if constraint.out in live:
            live.update(constraint.inputs)
            kept.append(constraint)
    program.constraints = kept[::-1]
    program.params = {n: x for n, x in program.params.items() if x in live}
    program.coordinates = {n: program.coordinates[n] for n in program.params}
    program.buffers = {n: x for n, x in program.buffers.items() if x in live}
    program.buffer_coordinates = {n: program.buffer_coordinates[n] for n in program.buffers}
    notes = [(c.reason, c.out.source) for c in program.constraints if isinstance(c, Opaque)]
    program.opaque = list(dict.fromkeys(notes))
    return program


def _arguments(node: Node, env: dict[Node, Any]) -> tuple[list[Any], dict[str, Any]]:
    """The node's arguments in schema order with symbolic tensors; keyword-only ones stay keywords."""
    look = lambda x: env.get(x) if isinstance(x, Node) else x  # noqa: E731
    args = [map_aggregate(a, look) for a in node.args]
    kwargs = {k: map_aggregate(v, look) for k, v in node.kwargs.items()}
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return args, kwargs
    for argument in schema.arguments[len(args) :]:
        if argument.kwarg_only or not kwargs:
            break
        args.append(kwargs.pop(argument.name, argument.default_value))
    kwargs.pop("out", None)
    return args, kwargs


def _has_tensor(node: Node) -> bool:
    value = node.meta.get("val")
    values = value if isinstance(value, (tuple, list)) else (value,)
    return any(isinstance(v, torch.Tensor) for v in values)


def _is_view(node: Node) -> bool:
    """Whether the node is a view of its first argument, by its schema."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or registry.is_inplace(node.target):
        return False
    return any(r.alias_info is not None for r in schema.returns)


def _is_const(value: Any) -> bool:
    return all(x.role == "const" for x in _tensors(value))


def _tensors(value: Any) -> Sequence[Tensor]:
    if isinstance(value, Tensor):
        return (value,)
    return [x for v in value for x in _tensors(v)] if isinstance(value, (tuple, list)) else ()


def _map_values(value: Any, make: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return make(value)
    return [_map_values(v, make) for v in value] if isinstance(value, (tuple, list)) else None


def _attribute(module: Any, path: str) -> Any:
    for part in path.split("."):
        module = getattr(module, part)
    return module
