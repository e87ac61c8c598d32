"""What peers offer for language models and for quantisation, each as one function that changes a model.

Runs in the environment of the peer; imports nothing of torchgauge. `peers_channels.py` has those that find channels.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

Inputs = dict[str, Tensor]


class Refused(Exception):
    """The peer found nothing that it can use."""


@dataclass(frozen=True)
class Done:
    """What a method did.

    Attributes:
        model: what is called with the inputs now.
        told: `symmetries`, how many places it acted at.
        judge: of a method that gives many moves: judges each of them, given the outputs before and the tolerance.
    """

    model: Any
    told: Mapping[str, Any]
    judge: Callable[[Tensor, float], dict[str, Any]] | None = None


def preload(method: str) -> None:
    """Imports what a method needs, once, before the forks."""
    with contextlib.suppress(ImportError):
        match method.split()[0]:
            case "brevitas":
                import brevitas.graph.quantize  # noqa: F401
            case "llm-compressor":
                import llmcompressor.modifiers.transform  # noqa: F401
            case "Torch-Pruning":
                import torch_pruning  # noqa: F401
            case "rebasin":
                import rebasin  # noqa: F401


# -- brevitas --------------------------------------------------------------------------------------------------
def _graph(model: Any, inputs: Inputs, replace_norms: bool) -> tuple[Any, tuple[type, ...]]:
    """The graph that brevitas' own entry point for language models makes, and the classes of RMS norms in it."""
    from brevitas_examples.common.dynamo_utils import dynamo_export_ctx, patch_dynamo_export
    from brevitas_examples.llm.llm_quant.ln_affine_merge import rmsnorm_patch
    from brevitas_examples.llm.llm_quant.prepare_for_quantize import make_dynamo_compatible

    patch_dynamo_export()
    for config in (model.config, getattr(model.config, "text_config", None)):
        if hasattr(config, "_experts_implementation"):
            config._experts_implementation = "batched_mm"  # the one that dynamo can trace
    with torch.no_grad(), rmsnorm_patch(model, model.config, enabled=replace_norms) as patch, dynamo_export_ctx():
        try:
            graph, _ = torch._dynamo.export(model)(**inputs)
        except Exception:
            if not replace_norms:
                raise
            model.config.use_cache = True  # asked for, and switched off, by the wrapper
            with make_dynamo_compatible(model) as made:
                graph, _ = torch._dynamo.export(made.model)(**inputs)
    return graph, patch.rmsnorm_classes


def brevitas_rotation(model: Any, inputs: Inputs, values: bool = False) -> Done:
    """As `brevitas_examples/llm --rotation fused_no_fx --rotation-mode ort` does; `values`: `--rotation-sdpa-regions`.

    Gains of norms are merged, layer norms become RMS norms, then random orthogonal matrices are merged into weights.
    """
    from brevitas.graph.equalize import GraphRotationEqualization, LayerNormToRMS, MergeLnAffine, apply_rewriters
    from brevitas_examples.llm.llm_quant.run_utils import fix_rewriter

    graph, norms = _graph(model, inputs, replace_norms=True)
    extra = {"scale_invariant_layers": norms}
    with torch.no_grad():
        graph = MergeLnAffine(extra_state_kwargs=extra).apply(graph)
        graph, rewriters = LayerNormToRMS(return_rewriters=True).apply(graph)
        for rewriter in fix_rewriter(rewriters, model, "weight"):
            rewriter.apply(model)
        rotation = GraphRotationEqualization(
            full_rotation_method="ort",
            sdpa_regions=values,
            return_rewriters=True,
            delay_rewriters=True,
            extra_state_kwargs=extra,
        )
        graph, rewriters = rotation.apply(graph)
        model = apply_rewriters(model, fix_rewriter(rewriters, model, "weight"), delay_rewriters=False)
    return Done(model, {"symmetries": len(rotation.get_regions())})


def brevitas_equalisation(model: Any, inputs: Inputs, untied: bool = False) -> Done:
    """Cross-layer equalisation of every region, as its example for language models does it (`--weight-equalization`).

    `untied`: with a parameter of its own for every layer, as that example treats them afterwards.
    """
    from brevitas.graph.equalize import EqualizeGraph

    if untied:
        untie(model)
    graph, _ = _graph(model, inputs, replace_norms=False)
    with torch.no_grad():
        graph, regions = EqualizeGraph(scale_computation_type="range", return_regions=True).apply(graph)
    return Done(graph, {"symmetries": len(regions)})


def untie(model: nn.Module) -> None:
    """Gives every layer a parameter of its own."""
    seen: set[int] = set()
    for module in model.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            if id(p) in seen:
                setattr(module, name, nn.Parameter(p.detach().clone()))
            seen.add(id(p))


# -- llm-compressor --------------------------------------------------------------------------------------------
def _oneshot(model: Any, inputs: Inputs, modifier: Any, pipeline: str) -> None:
    """The documented entry point, with a folder for the configuration that it reads again."""
    from llmcompressor import oneshot
    from torch.utils.data import DataLoader

    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        model.config._name_or_path = model.name_or_path = folder
        # a processor is asked for where data are given, and is not used for data that are tensors
        data = {"dataset": DataLoader([dict(inputs)], batch_size=None), "processor": SimpleNamespace()}
        oneshot(model=model, recipe=modifier, pipeline=pipeline, **(data if pipeline != "datafree" else {}))


def spinquant(model: Any, inputs: Inputs) -> Done:
    """The rotations of SpinQuant that are merged into weights, R1 (residual stream) and R2 (values of every head)."""
    from llmcompressor.modifiers.transform import SpinQuantModifier

    values = [m for name, m in model.named_modules() if name.endswith("v_proj")]
    _oneshot(model, inputs, SpinQuantModifier(rotations=["R1", "R2"]), "datafree")
    return Done(model, {"symmetries": 1 + len(values)})


def spinquant_not_centred(model: Any, inputs: Inputs) -> Done:
    """The same without its first step, which takes the mean off every embedding: an RMS norm sees that mean."""
    from llmcompressor.modifiers.transform import SpinQuantModifier

    with mock.patch.object(SpinQuantModifier, "_center_embeddings", return_value=None):
        return spinquant(model, inputs)


def smoothquant(model: Any, inputs: Inputs, mappings: list[Any] | None = None) -> Done:
    """SmoothQuant: scales between norms and the linear layers that read them, by its table of architectures."""
    from llmcompressor.modifiers.transform import SmoothQuantModifier

    found: list[Any] = []
    resolve = SmoothQuantModifier._resolve_mappings

    def counted(self: Any, model: Any) -> Any:
        mappings = resolve(self, model)
        found.extend(mappings)
        return mappings

    with mock.patch.object(SmoothQuantModifier, "_resolve_mappings", counted):
        _oneshot(model, inputs, SmoothQuantModifier(smoothing_strength=0.5, mappings=mappings), "basic")
    if not found:
        raise Refused("no mapping fits")
    return Done(model, {"symmetries": len(found)})


def _channels(name: str) -> Callable[[Any, Inputs], Done]:
    def method(model: Any, inputs: Inputs) -> Done:
        import peers_channels

        return getattr(peers_channels, name)(model, inputs)

    return method


MAPPINGS = (
    [
        [["re:.*q_proj", "re:.*k_proj", "re:.*v_proj"], "re:.*self_attn_layer_norm"],
        [["re:.*fc1"], "re:.*final_layer_norm"],
    ],
    [
        [["re:.*query_key_value"], "re:.*input_layernorm"],
        [["re:.*dense_h_to_4h"], "re:.*post_attention_layernorm"],
    ],
)
"""For architectures that are not in its table: those of its docstring, and those of its table for fused projections."""
OPTIONAL = ("llm-compressor SmoothQuant",)
"""Further ways count only where they keep the function: a user may have known better."""
METHODS: dict[str, tuple[Callable[[Any, Inputs], Done], ...]] = {
    "brevitas rotation": (partial(brevitas_rotation, values=True), brevitas_rotation),
    "brevitas equalisation": (brevitas_equalisation, partial(brevitas_equalisation, untied=True)),
    "llm-compressor SpinQuant": (spinquant,),
    "llm-compressor SpinQuant, not centred": (spinquant_not_centred,),
    "llm-compressor SmoothQuant": (smoothquant, *(partial(smoothquant, mappings=m) for m in MAPPINGS)),
    "Torch-Pruning": (_channels("torch_pruning"),),
    "rebasin": (_channels("rebasin"), _channels("rebasin_untied")),
}
"""Ways to call each; the best outcome counts."""
FAMILIES: dict[str, tuple[str, ...]] = {
    "brevitas rotation": ("decoder",),
    "brevitas equalisation": ("decoder", "encoder", "vision"),
    "llm-compressor SpinQuant": ("decoder",),
    "llm-compressor SpinQuant, not centred": ("decoder",),
    "llm-compressor SmoothQuant": ("decoder",),
    "Torch-Pruning": ("decoder", "encoder", "vision"),
    "rebasin": ("encoder", "vision"),
}
"""What each is offered for; rebasin says that transformers do not work well, and encoders are the easier ones."""
