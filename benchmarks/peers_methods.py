"""What peers offer, each as one function: it changes a model in place or returns another, and counts what it found.

Runs in the environment of the peer; imports nothing of torchgauge.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Inputs = Mapping[str, Tensor]
Outcome = tuple[Callable[[], Any], int, list[Any]]
"""How to call what came out, how many symmetries were used, and what they are (for a comparison)."""


class Refused(Exception):
    """The peer found nothing that it can use."""


# -- brevitas --------------------------------------------------------------------------------------------------
def _graph(model: nn.Module, inputs: Inputs) -> Any:
    """The graph module that brevitas' own entry point for language models makes."""
    from brevitas_examples.common.dynamo_utils import patch_dynamo_export

    patch_dynamo_export()
    with torch.no_grad():
        graph, _ = torch._dynamo.export(model)(**inputs)
    return graph


def brevitas_rotation(model: nn.Module, inputs: Inputs) -> Outcome:
    """Layer norms become RMS norms, gains are merged, then a random orthogonal matrix rotates every region."""
    from brevitas.graph.equalize import GraphRotationEqualization, LayerNormToRMS, MergeLnAffine

    graph = _graph(model, inputs)
    if getattr(model.config, "tie_word_embeddings", False):
        _untie(graph)
    graph = LayerNormToRMS().apply(graph)
    graph = MergeLnAffine().apply(graph)
    rotation = GraphRotationEqualization(full_rotation_method="ort", sdpa_regions=True, return_rewriters=True)
    graph, rewriters = rotation.apply(graph)
    if not rewriters:
        raise Refused("no region to rotate")
    return lambda: graph(**inputs), len(rotation.get_regions()) or len(rewriters), []


def _untie(model: nn.Module) -> None:
    """A parameter of its own for every module that shares one, as brevitas' entry point does for the head."""
    seen: set[int] = set()
    for module in model.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            if id(p) in seen:
                setattr(module, name, nn.Parameter(p.detach().clone()))
            seen.add(id(p))


def brevitas_equalisation(model: nn.Module, inputs: Inputs) -> Outcome:
    """Cross-layer equalisation of every region."""
    from brevitas.graph.equalize import EqualizeGraph

    graph = _graph(model, inputs)
    graph, regions = EqualizeGraph(iterations=2, return_regions=True, merge_bias=False).apply(graph)
    if not regions:
        raise Refused("no region to equalise")
    return lambda: graph(**inputs), len(regions), []


# -- llm-compressor --------------------------------------------------------------------------------------------
def _modifier(modifier: Any, model: nn.Module, inputs: Inputs) -> None:
    """A modifier through its life cycle, with the given inputs as calibration data."""
    from llmcompressor.core import Event, EventType, State

    state = State(model=model)
    state.data.calib = [dict(inputs)]
    modifier.on_initialize(state)
    modifier.on_calibration_start(state, Event(type_=EventType.CALIBRATION_START))
    with torch.no_grad():
        model(**inputs)
    if hasattr(modifier, "on_sequential_epoch_end"):
        modifier.on_sequential_epoch_end(state, Event(type_=EventType.SEQUENTIAL_EPOCH_END))
    modifier.on_calibration_end(state, Event(type_=EventType.CALIBRATION_END))


def spinquant(model: nn.Module, inputs: Inputs) -> Outcome:
    """The rotations of SpinQuant that are merged into weights, R1 (residual stream) and R2 (values of every head)."""
    from llmcompressor.modifiers.transform import SpinQuantModifier

    _modifier(SpinQuantModifier(rotations=["R1", "R2"], transform_type="random-matrix"), model, inputs)
    layers = sum(1 for name, _ in model.named_modules() if name.endswith("v_proj"))
    return lambda: model(**inputs), 1 + layers, []


def smoothquant(model: nn.Module, inputs: Inputs) -> Outcome:
    """SmoothQuant: scales between norms and the linear layers that read them."""
    from llmcompressor.modifiers.transform import SmoothQuantModifier

    modifier = SmoothQuantModifier(smoothing_strength=0.5)
    _modifier(modifier, model, inputs)
    found = len(modifier.resolved_mappings_)
    if not found:
        raise Refused("no mapping fits")
    return lambda: model(**inputs), found, []


# -- Torch-Pruning ---------------------------------------------------------------------------------------------
def torch_pruning(model: nn.Module, inputs: Inputs) -> Outcome:
    """Every group of the dependency graph but that of the outputs, read as a permutation of channels."""
    import torch_pruning as tp

    graph = tp.DependencyGraph().build_dependency(model, example_inputs=dict(inputs))
    found: list[Any] = []
    head = getattr(model, "get_output_embeddings", lambda: None)() or getattr(model, "classifier", None)
    for group in graph.get_all_groups(
        ignored_layers=[head] if head is not None else [], root_module_types=[nn.Linear, nn.Conv1d, nn.Conv2d]
    ):
        root, channels = group[0]
        width = len(channels)
        if width > 1:
            order = torch.randperm(width, generator=torch.Generator().manual_seed(len(found)))
            touched = _permuted(group, width, order)
            found.append({"width": width, "root": graph._module2name.get(root.target.module, ""), "touched": touched})
    if not found:
        raise Refused("no group of channels")
    return lambda: model(**inputs), len(found), found


@torch.no_grad()
def _permuted(group: Any, width: int, order: Tensor) -> list[str]:
    """Applies a permutation of the root's channels to everything that depends on them."""
    done: set[tuple[int, int]] = set()
    touched = []
    for dependency, channels in group:
        index = torch.tensor([int(c) for c in channels])
        if len(index) % width:
            raise ValueError(f"a dependency of {len(index)} channels on {width}")
        moved = index.reshape(width, -1)[order].reshape(-1)
        module, name = dependency.target.module, dependency.handler.__name__
        side = 1 if "in_channels" in name else 0
        for key, p in module.named_parameters(recurse=False) if isinstance(module, nn.Module) else [("", module)]:
            axis = _axis(module, p, key, side, dependency)
            if axis is not None and (id(p), axis) not in done:
                done.add((id(p), axis))
                p.index_copy_(axis, index, p.index_select(axis, moved).clone())
                touched.append(f"{dependency.target.name}|{key}|{axis}")
        for key, b in module.named_buffers(recurse=False) if isinstance(module, nn.Module) else []:
            if key.startswith("running") and (id(b), 0) not in done:
                done.add((id(b), 0))
                b.index_copy_(0, index, b.index_select(0, moved).clone())
    return touched


def _axis(module: Any, p: Tensor, key: str, side: int, dependency: Any) -> int | None:
    """The axis of a parameter on which the channels of a dependency stand."""
    if not isinstance(module, nn.Module):
        return getattr(dependency.target, "pruning_dim", None) if p.ndim else None
    if isinstance(module, nn.Embedding):
        return 1
    if p.ndim == 1:
        return None if side and isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) else 0
    if type(module).__name__ == "Conv1D":  # GPT-2 keeps weights [in, out]
        return 1 - side
    return side


# -- rebasin ---------------------------------------------------------------------------------------------------
class _Positional(nn.Module):
    """A model that takes its inputs by position and returns one tensor, as rebasin expects."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *values: Tensor) -> Tensor:
        out = self.model(**dict(zip(self.names, values, strict=True)))
        return out[0] if isinstance(out, tuple | list) else next(iter(out.values()))


def rebasin(model: nn.Module, inputs: Inputs) -> Outcome:
    """The model permuted towards another one with other weights: its own function must stay."""
    from rebasin import PermutationCoordinateDescent

    values = tuple(inputs.values())
    single = values[0] if len(values) == 1 else list(values)
    b = _Positional(model, list(inputs))
    a = copy.deepcopy(b)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in a.parameters():
            p.copy_(p.reshape(-1)[torch.randperm(p.numel(), generator=generator)].reshape(p.shape))
    descent = PermutationCoordinateDescent(a, b, single)
    descent.rebasin()
    moved = [
        p
        for p, _ in descent.permutation_to_info
        if p is not None and not torch.equal(p.perm_indices.cpu(), torch.arange(len(p.perm_indices)))
    ]
    if not moved:
        raise Refused("no permutation to apply")
    return lambda: model(**inputs), len(moved), []


METHODS: dict[str, Callable[[nn.Module, Inputs], Outcome]] = {
    "brevitas rotation": brevitas_rotation,
    "brevitas equalisation": brevitas_equalisation,
    "llm-compressor SpinQuant": spinquant,
    "llm-compressor SmoothQuant": smoothquant,
    "Torch-Pruning": torch_pruning,
    "rebasin": rebasin,
}
