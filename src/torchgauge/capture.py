"""From a model and example inputs to an ATen graph; the only file that imports torch.export.

The model is traced by a non-strict `torch.export` and left undecomposed, so that `linear`, `layer_norm` and
`scaled_dot_product_attention` stay whole. Nothing is computed: a model on the meta device needs no weights.
The model is left as it was: its training flags, its buffers and its attributes.
"""

from __future__ import annotations

import inspect
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.nn.modules import transformer

from torchgauge.errors import CaptureError, InputError, ModelError, TorchGaugeError
from torchgauge.nesting import map_tensors, observe, tensors_in
from torchgauge.trace import drop_assertions, drop_copies, flatten, source_of

Role = Literal["param", "buffer", "const", "input"]

_PREFIX = "observed"


@dataclass(frozen=True)
class OutputRef:
    """One observed output: its node in the graph and its name for a reader ("logits", "outputs[0]")."""

    node: fx.Node
    name: str


@dataclass(frozen=True, eq=False)
class Captured:
    """A model as a flat, functional graph of aten operators, with names for everything that enters and leaves it."""

    graph_module: fx.GraphModule
    params: dict[str, Tensor]
    """Canonical name (the first in `model.named_parameters()`) → tensor; one entry per tied group."""
    ties: dict[str, str]
    """Every other state-dict name → its canonical name, parameters and buffers."""
    buffers: dict[str, Tensor]
    """Every buffer, non-persistent ones included, by canonical name."""
    fixed: frozenset[str]
    """Buffers of integers, truth values or zeros and ones that no state dict holds, by canonical name."""
    unsaved: frozenset[str]
    """All buffers that no state dict holds, by canonical name."""
    constants: dict[str, object]
    """Tensors made in `forward` or kept as plain attributes, by name."""
    placeholders: dict[str, tuple[Role, str]]
    """Placeholder node name → (role, canonical name, constant name or input name)."""
    example_inputs: dict[str, object]
    """Placeholder node name → the tensor that the user gave."""
    outputs: tuple[OutputRef, ...]
    dropped_outputs: tuple[str, ...]
    """Outputs that are not observed: caches, integers, values that are no tensors."""
    _sources: dict[str, str] = field(default_factory=dict, repr=False)

    def source(self, node: fx.Node) -> str:
        """The user's line that made `node`: "file.py:123 in forward (layers.0.mlp)", or "" if unknown."""
        if node.name not in self._sources:
            self._sources[node.name] = source_of(node, prefix=_PREFIX)
        return self._sources[node.name]


@dataclass(frozen=True, eq=False)
class State:
    """The parameters and buffers of a model, one entry per tied group, and the names that are tied to them."""

    params: dict[str, Tensor]
    buffers: dict[str, Tensor]
    ties: dict[str, str]
    fixed: frozenset[str]
    """Buffers of integers, truth values or zeros and ones that no state dict holds: the code gives their numbers."""
    unsaved: frozenset[str]
    """All buffers that no state dict holds."""

    def tensors(self) -> Iterator[Tensor]:
        yield from self.params.values()
        yield from self.buffers.values()


@dataclass(frozen=True, eq=False)
class Call:
    """The arguments of one call of a model (no cache asked for), and the tensors among them by name."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tensors: dict[str, Tensor]

    def put(self, tensors: Mapping[str, Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments with other tensors in place of the same names."""
        keys = iter(self.tensors)
        return map_tensors((self.args, self.kwargs), lambda _, __: tensors[next(keys)])


def capture(model: nn.Module, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Captured:
    """Trace `model` on example inputs.

    Args:
        model: the module, in its own training or evaluation mode, with real, fake or meta tensors.
        args: positional inputs, nested as `forward` takes them; a single tensor counts as one input. They are moved
            to the device of the model.
        kwargs: keyword inputs.

    Raises:
        ModelError: `model` is not a module that can be traced, or has no floating-point output.
        InputError: inputs are missing or do not fit.
        CaptureError: `torch.export` cannot trace the model.
    """
    state = state_of(model)
    call = call_of(model, args, kwargs)
    names: list[str] = []
    dropped: list[str] = []

    class Observed(nn.Module):
        """The model as a function of flat tensors, so that any nesting of inputs and outputs will do."""

        def __init__(self) -> None:
            super().__init__()
            self.add_module(_PREFIX, model)
            self.training = model.training

        def forward(self, *flat: Tensor) -> tuple[Tensor, ...]:
            inner_args, inner_kwargs = call.put(dict(zip(call.tensors, flat, strict=True)))
            observed, left = observe(getattr(self, _PREFIX)(*inner_args, **inner_kwargs))
            names[:], dropped[:] = [name for name, _ in observed], left
            return tuple(value for _, value in observed)

    inputs = _placed(state, call)
    with _quiet(), unchanged(model), torch.no_grad(), plain_layers(model):
        try:
            program = torch.export.export(Observed(), inputs, strict=False)
            if isinstance(model, fx.GraphModule):
                _restore_sources(program.graph_module.graph, model.graph)
            if not flatten(program.graph_module):
                program = program.run_decompositions({})  # an empty table: other operators stay whole
                drop_assertions(program.graph_module.graph)
            drop_copies(program.graph_module.graph)
        except Exception as error:
            raise _explained(model, call, inputs, error) from error
    _check_sizes(program.graph_module)
    if not names:
        returned = f"; it returned {', '.join(dropped)}" if dropped else ""
        raise ModelError(
            f"The model has no floating-point output to observe{returned}.",
            remedy="Let forward return the tensor whose symmetries are asked for.",
        )
    return _assembled(program, state, call, names, dropped)


def _check_sizes(graph_module: fx.GraphModule) -> None:
    """Every size must be a number: one that depends on the values of a tensor is known only when the model runs."""
    for node in graph_module.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, Tensor) and not all(isinstance(n, int) for n in value.shape):
            raise CaptureError(
                f"The size of a tensor depends on values: {node.target} gives {[str(n) for n in value.shape]}",
                where=source_of(node, prefix=_PREFIX),
                remedy="Rewrite that line so that sizes do not depend on the values of a tensor (a mask for a choice).",
            )


def node_shape(node: fx.Node) -> tuple[int, ...]:
    """The shape of the tensor that `node` stands for, () for anything else."""
    value = node.meta.get("val")
    return tuple(int(n) for n in value.shape) if isinstance(value, Tensor) else ()


def state_of(model: nn.Module) -> State:
    """Parameters and buffers under canonical names.

    Two names are tied when they hold the same tensor, or two tensors over the very same memory.

    Raises:
        ModelError: not a module, a wrapped or scripted one, or one with uninitialised parameters.
    """
    _check_module(model)
    canonical: dict[object, str] = {}
    ties: dict[str, str] = {}
    params: dict[str, Tensor] = {}
    buffers: dict[str, Tensor] = {}
    named = [(params, model.named_parameters(remove_duplicate=False))]
    named += [(buffers, model.named_buffers(remove_duplicate=False))]
    for found, entries in named:
        for name, tensor in entries:
            if nn.parameter.is_lazy(tensor):
                raise ModelError(
                    "A lazy module has no weights yet.",
                    where=name,
                    remedy="Call the model once on example inputs first.",
                )
            keys = [key for key in _identities(tensor) if key in canonical]
            if keys:
                ties[name] = canonical[keys[0]]
            else:
                found[name] = tensor
                canonical.update(dict.fromkeys(_identities(tensor), name))
    unsaved = {f"{at}.{name}".lstrip(".") for at, m in model.named_modules() for name in m._non_persistent_buffers_set}
    whole = {name for name, b in buffers.items() if not (b.is_floating_point() or b.is_complex()) or _is_mask(b)}
    return State(params, buffers, ties, frozenset(unsaved & whole), frozenset(unsaved & buffers.keys()))


def _is_mask(buffer: Tensor) -> bool:
    """Floats, more than one, that are all zero or one."""
    known = buffer.numel() > 1 and not (buffer.is_meta or buffer.is_complex() or isinstance(buffer, FakeTensor))
    return known and bool(((buffer == 0) | (buffer == 1)).all())


def written(value: object) -> object:
    """A short tensor of numbers that `forward` spells out, as these are spelled: 0.1, not 0.1 rounded to float32."""
    if type(value) is not Tensor or value.is_meta or value.dtype != torch.float32 or value.numel() > 1000:
        return value
    numbers = [float(str(x)) for x in value.detach().cpu().numpy().reshape(-1)]
    return torch.tensor(numbers, dtype=torch.float64).reshape(value.shape)


def positional(args: Any) -> tuple[Any, ...]:
    """Positional arguments as a tuple; what is no sequence is the only one."""
    return tuple(args) if isinstance(args, (tuple, list)) else (args,)


def call_of(model: nn.Module, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Call:
    """The complete arguments of a call: bound against `forward`, caches of Hugging Face models switched off.

    Raises:
        InputError: the inputs cannot be bound to the signature of `forward`.
    """
    args, kwargs = positional(args), dict(kwargs or {})
    signature = inspect.signature(model.forward)
    kinds = {p.kind for p in signature.parameters.values()}
    takes_any = inspect.Parameter.VAR_KEYWORD in kinds and hasattr(getattr(model, "config", None), "use_cache")
    hugging_face = any(kind.__name__ == "PreTrainedModel" for kind in type(model).__mro__)
    if "use_cache" in signature.parameters or (takes_any and hugging_face):
        kwargs.setdefault("use_cache", False)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(
            f"The inputs do not fit {type(model).__name__}.forward: {error}.",
            remedy=f"It takes {signature}; give its inputs as args and kwargs.",
        ) from error
    # what was given by keyword stays so: the module of an exported program insists on it
    by_position = signature.bind_partial(*args).arguments
    tensors: dict[str, Tensor] = {}
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        entries = {name: value}
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            entries = value
        if name not in by_position:
            named |= entries
        for key, item in entries.items():
            tensors |= tensors_in(item, key)
    return Call(args, named, tensors)


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Put back every attribute of every submodule on leaving: `forward` may count calls or keep tensors."""
    tables = ("_parameters", "_buffers", "_modules")
    saved = [(m, dict(vars(m)), {t: dict(vars(m)[t]) for t in tables}) for m in model.modules()]
    try:
        yield
    finally:
        for module, attributes, contents in saved:
            vars(module).clear()
            vars(module).update(attributes)
            for table, entries in contents.items():
                vars(module)[table].clear()
                vars(module)[table].update(entries)


def _check_module(model: object) -> None:
    kind = type(model).__name__
    if isinstance(model, ExportedProgram):
        raise ModelError("An exported program is not a module.", remedy="Give program.module() instead.")
    if isinstance(model, type) and issubclass(model, nn.Module):
        raise ModelError(
            f"{model.__name__} is a class, not a model.", remedy=f"Give an instance: {model.__name__}(...)."
        )
    if not isinstance(model, nn.Module):
        raise ModelError(f"A torch.nn.Module is needed, not {kind}.", remedy="Wrap the function in a module.")
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError("A scripted model cannot be traced.", remedy="Give the Python module it was made from.")
    if kind == "OptimizedModule":
        raise ModelError("A compiled model cannot be traced.", remedy="Give the module behind it: model._orig_mod.")
    if kind in ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel"):
        raise ModelError(
            f"A model wrapped in {kind} cannot be traced.", remedy="Give the module behind it: model.module."
        )


def _identities(tensor: Tensor) -> list[object]:
    """Keys that two tied tensors share: the object, and for real tensors the exact view of memory."""
    keys: list[object] = [id(tensor)]
    plain = type(tensor) in (Tensor, nn.Parameter, nn.Buffer) and tensor.layout is torch.strided
    if plain and tensor.device.type != "meta" and tensor.numel() > 0:
        view = (tensor.dtype, tensor.storage_offset(), tuple(tensor.shape), tensor.stride())
        keys.append((tensor.untyped_storage().data_ptr(), *view))
    return keys


def _placed(state: State, call: Call) -> tuple[Tensor, ...]:
    """The input tensors as the model's own tensors are: on its device, fake where they are fake."""
    first = next(state.tensors(), None)
    if first is None:
        return tuple(call.tensors.values())
    devices = {tensor.device for tensor in state.tensors()}
    device = first.device
    if torch.device("meta") in devices and len(devices) > 1:
        inside = next(name for table in (state.params, state.buffers) for name, t in table.items() if t.is_meta)
        raise ModelError(
            "Some of the model's tensors are on the meta device and others are not.",
            where=inside,
            remedy="Build the whole model under torch.device('meta'), or load all its weights.",
        )
    if isinstance(first, FakeTensor):
        mode = first.fake_mode
        return tuple(
            t if isinstance(t, FakeTensor) else mode.from_tensor(torch.empty_like(t, device=device))
            for t in call.tensors.values()
        )
    return tuple(t if t.device == device else t.to(device) for t in call.tensors.values())


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the warnings of torch.export: what matters of them is reported in our own words."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


@contextmanager
def plain_layers(model: nn.Module) -> Iterator[None]:
    """Layers written in plain operators while the context lasts.

    Off are torch's fused inference path for attention, which hides a whole layer in one operator, the question of
    torch's transformers whether a mask is causal, which reads its values, and the grouped or data-dependent loop over
    experts of Hugging Face mixtures, for which the batched form stands in. None changes the function.
    """
    key = "_experts_implementation_internal"
    configs = {id(c): c for m in model.modules() if hasattr(c := getattr(m, "config", None), key)}
    saved = [(config, getattr(config, key)) for config in configs.values()]
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    detect = transformer._detect_is_causal_mask
    transformer._detect_is_causal_mask = _mask_as_it_is
    for config, _ in saved:
        setattr(config, key, "batched_mm")
    try:
        yield
    finally:
        transformer._detect_is_causal_mask = detect
        torch.backends.mha.set_fastpath_enabled(fused)
        for config, implementation in saved:
            setattr(config, key, implementation)


_GENERATED = re.compile(r'File "<eval_with_key>[^"]*", line \d+, in \w+\n\s+(\w+) = ')


def _restore_sources(graph: fx.Graph, original: fx.Graph) -> None:
    """The lines of the user behind the generated code of an exported program, as far as its nodes hold them."""
    known = {node.name: node.meta for node in original.nodes}
    for node in graph.nodes:
        names = _GENERATED.findall(node.meta.get("stack_trace") or "")
        meta = known.get(names[-1], {}) if names else {}
        node.meta |= {key: meta[key] for key in ("stack_trace", "nn_module_stack") if meta.get(key)}


def _mask_as_it_is(mask: Tensor | None, is_causal: bool | None = None, size: int | None = None) -> bool:
    """Stands in for torch's test of a mask: what the caller did not say to be causal is a mask like any other."""
    return is_causal is True


def _explained(model: nn.Module, call: Call, inputs: tuple[Tensor, ...], error: Exception) -> TorchGaugeError:
    """The error to report: about the inputs if the model refuses them outside of tracing too, else about tracing."""
    if isinstance(error, TorchGaugeError):
        return error
    refusal = _refusal(model, call, inputs)
    if refusal is not None:
        shapes = ", ".join(f"{name} {list(t.shape)} {str(t.dtype)[6:]}" for name, t in call.tensors.items())
        return InputError(
            f"{type(model).__name__} does not run on these inputs: {_first_line(refusal)}",
            where=f"inputs {shapes}" if shapes else "no tensor inputs",
            remedy="Give example inputs (args, kwargs) on which model(*args, **kwargs) runs.",
        )
    remedy = "Rewrite that line with tensor operations"
    if "data-dependent" in str(error) or "GuardOnDataDependent" in type(error).__name__:
        remedy += "; a branch or a size must not depend on the values of a tensor"
    return CaptureError(
        f"torch.export cannot trace {type(model).__name__}: {_first_line(error)}",
        where=_where(error),
        remedy=remedy + ".",
    )


def _refusal(model: nn.Module, call: Call, inputs: tuple[Tensor, ...]) -> Exception | None:
    """The error of the model itself on these inputs, on copies of its buffers; None if it runs or cannot tell."""
    if any(isinstance(t, FakeTensor) for t in inputs):
        return None
    args, kwargs = call.put(dict(zip(call.tensors, inputs, strict=True)))
    copies = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with _quiet(), unchanged(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.func.functional_call(model, copies, args, kwargs)
    except NotImplementedError:
        return None  # the meta device: the operator has no shape rule, or a value was asked for
    except Exception as error:
        return None if "meta tensor" in str(error) else error
    return None


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


def _where(error: BaseException) -> str:
    """The innermost line of an error outside torch and this file."""
    frame, found = error.__traceback__, ""
    while frame is not None:
        file = frame.tb_frame.f_code.co_filename
        if "/torch/" not in file and "/torchgauge/" not in file and not file.startswith("<"):
            found = f"{file}:{frame.tb_lineno} in {frame.tb_frame.f_code.co_name}"
        frame = frame.tb_next
    return found


def _assembled(program: ExportedProgram, state: State, call: Call, names: list[str], dropped: list[str]) -> Captured:
    """Read the signature of an exported program: give every placeholder its role and every output its name."""
    graph_module = program.graph_module
    nodes = {node.name: node for node in graph_module.graph.nodes if node.op == "placeholder"}
    roles: dict[InputKind, Role] = {
        InputKind.PARAMETER: "param",
        InputKind.BUFFER: "buffer",
        InputKind.CONSTANT_TENSOR: "const",
        InputKind.CUSTOM_OBJ: "const",
        InputKind.USER_INPUT: "input",
    }
    placeholders: dict[str, tuple[Role, str]] = {}
    example_inputs: dict[str, object] = {}
    first: dict[tuple[Role, str], fx.Node] = {}
    user = iter(call.tensors.items())
    for spec in program.graph_signature.input_specs:
        node = nodes[spec.arg.name]
        role = roles[spec.kind]
        name = (spec.target or "").removeprefix(_PREFIX + ".")
        if role == "input":
            name, example_inputs[node.name] = next(user)
        elif role != "const":
            name = state.ties.get(name, name)
            role = "param" if name in state.params else "buffer"
            if (role, name) in first:  # a tied tensor enters once
                node.replace_all_uses_with(first[role, name])
                graph_module.graph.erase_node(node)
                continue
            first[role, name] = node
        placeholders[node.name] = (role, name)
    returned = cast(tuple[fx.Node, ...], graph_module.graph.output_node().args[0])
    kinds = [spec.kind for spec in program.graph_signature.output_specs]
    observed = [node for node, kind in zip(returned, kinds, strict=True) if kind is OutputKind.USER_OUTPUT]
    graph_module.graph.output_node().args = (tuple(observed),)
    graph_module.graph.eliminate_dead_code()
    graph_module.recompile()
    return Captured(
        graph_module=graph_module,
        params=state.params,
        ties=state.ties,
        buffers=state.buffers,
        fixed=state.fixed,
        unsaved=state.unsaved,
        constants={
            name.removeprefix(_PREFIX + "."): written(value) if "lifted_tensor" in name else value
            for name, value in program.constants.items()
            if ("const", name.removeprefix(_PREFIX + ".")) in placeholders.values()
        },
        placeholders=placeholders,
        example_inputs=example_inputs,
        outputs=tuple(OutputRef(node, name) for node, name in zip(observed, names, strict=True)),
        dropped_outputs=tuple(dropped),
    )
