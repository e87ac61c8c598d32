"""The first and the last layer of a traced network, and the numbers inside it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from torchgauge.errors import InputError
from torchgauge.fields.ensemble import Ensemble

if TYPE_CHECKING:
    from torchgauge.capture import Captured

aten = torch.ops.aten
MATRIX_PRODUCTS = (aten.matmul.default, aten.mm.default)
TRANSPOSES = (aten.numpy_T.default, aten.t.default, aten.mT.default)
CASTS = (aten.to.dtype, aten._to_copy.default, aten.clone.default, aten.alias.default, aten.detach.default)
NUMBERS = (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar)
ADDITIONS = (aten.add.Tensor,)


@dataclass(frozen=True, eq=False)
class Layer:
    """An affine layer W x + b, up to a number.

    Attributes:
        weight: name of W.
        rows: the axis of W that the results number; `columns` the one that is summed.
        columns: see `rows`.
        bias: name of b, or None.
        source: what the layer reads.
        result: what it returns.
    """

    weight: str
    rows: int
    columns: int
    bias: str | None
    source: fx.Node
    result: fx.Node


@dataclass(eq=False)
class Anatomy:
    """A traced network of an ensemble.

    Attributes:
        ensemble: whose.
        captured: its graph.
        points: the example inputs [n, d].
    """

    ensemble: Ensemble
    captured: Captured
    points: Tensor

    @cached_property
    def graph(self) -> fx.Graph:
        return self.captured.graph_module.graph

    @cached_property
    def output(self) -> fx.Node:
        return self.captured.outputs[0].node

    @cached_property
    def input(self) -> fx.Node | None:
        """The placeholder of the points, if they are the only input."""
        found = [n for n in self.graph.nodes if n.op == "placeholder" and self._role(n) == "input"]
        return found[0] if len(found) == 1 else None

    def parameter(self, node: object) -> str | None:
        """The name of the parameter that a node holds."""
        if not isinstance(node, fx.Node) or node.op != "placeholder" or self._role(node) != "param":
            return None
        return self.captured.placeholders[node.name][1]

    def _role(self, node: fx.Node) -> str:
        return self.captured.placeholders[node.name][0]

    def uses(self, name: str) -> int:
        """How many nodes read a parameter."""
        return sum(len(n.users) for n in self.graph.nodes if self.parameter(n) == name)

    # -- layers ------------------------------------------------------------------------------------------------
    @cached_property
    def last(self) -> Layer | None:
        """The layer whose result is the output, W and b being read nowhere else."""
        node, bias = self.output, None
        while True:
            inner = self._through(node)
            if inner is not None:
                node = inner
                continue
            if bias is None and node.target in ADDITIONS and not node.kwargs:
                a, b = node.args
                added = self.parameter(b) or self.parameter(a)
                if added is not None:
                    bias, node = added, (a if self.parameter(b) else b)
                    if isinstance(node, fx.Node):
                        continue
                return None
            return self._once(self._layer(node, bias, self.output))

    @cached_property
    def first(self) -> Layer | None:
        """The layer that reads the points, if nothing else does, W and b being read nowhere else."""
        if self.input is None or len(self.input.users) != 1:
            return None
        node = next(iter(self.input.users))
        if self._layer(node, None, node) is None:
            return None
        bias: str | None = None
        end = node
        while len(end.users) == 1:
            user = next(iter(end.users))
            if self._through(user) is end:
                end = user
            elif bias is None and user.target in ADDITIONS and not user.kwargs and _other(user, end, self) is not None:
                own = self._layer(node, None, node)
                if own is not None and own.bias is not None:
                    break
                bias, end = _other(user, end, self), user
            else:
                break
        return self._once(self._layer(node, bias, end))

    def _layer(self, node: fx.Node, bias: str | None, result: fx.Node) -> Layer | None:
        """The matrix product at a node."""
        args: list[Any] = [*node.args, None, None, None]
        if node.target is aten.linear.default:
            own = self.parameter(args[2])
            weight = self.parameter(args[1])
            if weight is None or (own and bias) or (args[2] is not None and own is None):
                return None
            return Layer(weight, 0, 1, own or bias, self._uncast(args[0]), result)
        if node.target not in MATRIX_PRODUCTS:
            return None
        right = args[1]
        if isinstance(right, fx.Node) and (right.target in TRANSPOSES or _swaps(right)) and len(right.users) == 1:
            weight = self.parameter(right.args[0])
            return None if weight is None else Layer(weight, 0, 1, bias, self._uncast(args[0]), result)
        weight = self.parameter(right)
        return None if weight is None else Layer(weight, 1, 0, bias, self._uncast(args[0]), result)

    def _once(self, layer: Layer | None) -> Layer | None:
        """The layer, if its parameters are matrices and vectors read there alone, with laws of their own."""
        if layer is None:
            return None
        for name, ndim in ((layer.weight, 2), (layer.bias, 1)):
            if name is None:
                continue
            if self.uses(name) != 1 or name not in self.ensemble.laws or len(self.ensemble.shapes[name]) != ndim:
                return None
        return layer

    def _uncast(self, value: object) -> fx.Node:
        """What the layer reads, before casts."""
        node = _node(value)
        while node.target in CASTS and not lossy(node):
            node = _node(node.args[0])
        return node

    def _through(self, node: fx.Node) -> fx.Node | None:
        """What a cast or a multiplication by a number acts on."""
        if node.target in CASTS and not lossy(node):
            return _node(node.args[0])
        if node.target in NUMBERS and isinstance(node.args[1], (int, float)) and node.args[1] != 0:
            return _node(node.args[0])
        return None

    def mean_unseen(self, name: str) -> bool:
        """Whether a readout's weights may have any mean that is the same along a row: features add up to zero.

        So they do behind a layer norm without gain and bias (theory, section 2c: an unreachable direction).
        """
        law = self.ensemble.laws.get(name)
        mean = getattr(law, "mean", None)
        if self.last is None or self.last.weight != name or mean is None or not plain_norm(self.last.source):
            return False
        rows = torch.as_tensor(mean).expand(self.ensemble.shapes[name]).movedim(self.last.columns, 0)
        return bool((rows == rows[0]).all())

    # -- numbers -----------------------------------------------------------------------------------------------
    @torch.no_grad()
    def values(self, params: Mapping[str, Tensor], points: Tensor, *nodes: fx.Node) -> list[Tensor]:
        """The tensors at some nodes, for parameters of one network [*shape] and points like the example's."""
        kept: dict[fx.Node, Tensor] = {}

        class Recorder(fx.Interpreter):
            def run_node(self, n: fx.Node) -> Any:
                value = super().run_node(n)
                if n in nodes:
                    kept[n] = value
                return value

        Recorder(self.captured.graph_module).run(*self._arguments(params, points))
        return [kept[n] for n in nodes]

    def outputs(self, params: Mapping[str, Tensor], points: Tensor) -> Tensor:
        """The outputs of one network, differentiable in the parameters [*shape] and in the points."""
        return self.captured.graph_module(*self._arguments(params, points))[0]

    def _arguments(self, params: Mapping[str, Tensor], points: Tensor) -> list[Any]:
        tables = {"param": params, "buffer": self.captured.buffers, "const": self.captured.constants}
        entering = [self.captured.placeholders[n.name] for n in self.graph.nodes if n.op == "placeholder"]
        return [points if role == "input" else tables[role][name] for role, name in entering]


def anatomy(ensemble: Ensemble, points: Tensor) -> Anatomy:
    """Trace the network of an ensemble.

    Args:
        ensemble: any.
        points: [n, ...], in the dtype of the ensemble.

    Raises:
        CaptureError: the module cannot be traced.
        InputError: see `real_module`.
    """
    from torchgauge.capture import capture

    return Anatomy(ensemble, capture(real_module(ensemble, points), (points,)), points)


def real_module(ensemble: Ensemble, points: Tensor) -> nn.Module:
    """A copy of the module with one network of the ensemble as its parameters.

    Raises:
        InputError: the copy computes something else than the ensemble does, so that nothing follows from its graph.
    """
    module = copy.deepcopy(ensemble.module)
    if any(p.is_meta for p in module.parameters()):
        module = module.to_empty(device="cpu")
    stack = ensemble.sample(1, seed=0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(stack[name][0])
        expected, found = ensemble.evaluate(stack, points)[0], module(points)
    scale = expected.abs().nan_to_num(0.0, 0.0, 0.0).max()
    close = torch.finfo(expected.dtype).eps ** 0.5
    if not torch.allclose(found.reshape(expected.shape), expected, close, float(scale) * close, equal_nan=True):
        raise InputError(
            "a copy of the module computes something else than the module does",
            ensemble.name,
            "let forward read parameters through self alone, not through functions that hold on to the first copy",
        )
    return module


def plain_norm(node: fx.Node) -> bool:
    """A layer norm over the last dimension, without gain and bias."""
    if node.target is not aten.layer_norm.default:
        return False
    affine = [*node.args[2:4], node.kwargs.get("weight"), node.kwargs.get("bias")]
    sizes = node.args[1]
    return isinstance(sizes, (list, tuple)) and len(sizes) == 1 and all(a is None for a in affine)


def above(node: Any) -> set[fx.Node]:
    """A node and all that it depends on."""
    seen: set[fx.Node] = set()
    stack = [node]
    while stack:
        one = stack.pop()
        if isinstance(one, fx.Node) and one not in seen:
            seen.add(one)
            stack.extend(one.all_input_nodes)
    return seen


def _node(value: Any) -> fx.Node:
    assert isinstance(value, fx.Node)
    return value


def _other(node: fx.Node, known: fx.Node, anatomy: Anatomy) -> str | None:
    """The parameter that is added to a known node."""
    a, b = node.args[:2]
    return anatomy.parameter(b) if a is known else anatomy.parameter(a)


def _swaps(node: fx.Node) -> bool:
    """A transposition of the two dimensions of a matrix."""
    if node.target is aten.transpose.int:
        return {d % 2 for d in node.args[1:] if isinstance(d, int)} == {0, 1}
    return node.target is aten.permute.default and list(node.args[1]) in ([1, 0], [-1, -2])  # pyright: ignore[reportArgumentType]


def lossy(node: fx.Node) -> bool:
    """A cast from complex to real numbers, or to integers."""
    before, after = _node(node.args[0]).meta["val"], node.meta["val"]
    return not (after.is_complex() or (after.is_floating_point() and not before.is_complex()))
