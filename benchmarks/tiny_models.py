"""Tiny models of the architectures of transformers, from their default configurations, with inputs that fit.

No table of architectures: a configuration is shrunk by what its keys are called, inputs are made by what the arguments
of `forward` are called, and the first of a few sizes on which the model runs is taken.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tiny_inputs import SENSES, TOKEN, VOCABULARY, candidates, find, is_whole, parts
from tiny_squeeze import squeezed
from torch import Tensor, nn

from torchgauge.capture import call_of, plain_layers
from torchgauge.certify import twin
from torchgauge.nesting import observe

# what is small enough to stop shrinking, what can be certified completely, and what is too large to try at all
QUICK, SMALL, LARGE = 1600, 4000, 3_000_000
# a classifier narrower than what it reads would hide the rest of it, whatever the architecture
LABELS = 10
# above this many, smaller sizes are searched for one by one
ROOMY = 3000
# so many sizes that run are compared before that is good enough
TRIED = 2


class NotBuilt(Exception):
    """No size at which the default configuration makes a model that runs; the message is the first error."""


class TooLarge(NotBuilt):
    """Too many parameters to try."""


@dataclass(frozen=True)
class Tiny:
    """A model that runs.

    Attributes:
        model: in evaluation mode, float32, on the CPU.
        inputs: keyword inputs; several, if it runs on several sets of inputs, the one that reads most first.
        size: how the configuration was shrunk.
    """

    model: nn.Module
    inputs: tuple[dict[str, Tensor], ...]
    size: str

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())


# -- configurations --------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Sizes:
    """What the roles of a configuration become."""

    width: int = 8
    heads: int = 2
    head_dim: int = 4
    inner: int = 6
    layers: int = 1
    image: int | None = None
    patch: int = 4
    positions: int = 16
    groups: int = 2
    stages: int = 0
    filled: bool = False


_KEEP = re.compile(
    r"token_id|token_index|_ids?$|kernel|stride|padding|dilation|ignore_index|index(es)?$|indices$|_idx$|num_feat_extract_layers|cost$|ratio"
    r"|coefficient|temperature|theta|_rate$|_rates$|multiplier|out_features|attention_window|sliding|chunk(?!_size)|num_labels|num_frames|factor"
    r"|downsample|upsample|pretraining_tp|spatial_merge|num_feature_levels|scal(e|ar)$|n_points"
)
_LENGTHS = re.compile(
    r"layer_types$|_layer_types$|^layers_block_type$|^attn_type_list$|^attention_layers$|^no_rope_layers$"
)

_LAYERS = (
    r"(num|n|encoder|decoder|_)_?layers?$|^depths?$|depths|num_blocks|n_layer|_depth$|blocks_per_stage|^layers$"
    r"|stage_num_blocks|stage_numb_of_layers|num_res_blocks|hidden_groups"
)
_WIDTHS = (
    r"(hidden|embed|embedding|model|projection|proj|pooler|bottleneck|latent|attention|fusion|neck|fpn|decoder"
    r"|encoder|classifier|output|input|feature|query|key|value|codebook|conv|tdnn|lstm)s?_?(hidden_)?"
    r"(size|dim|width|channel|units)s?$|^n_embd$|^d_model$|^dim$|embed_dim|hidden_dim|^width$|channels|channel_list"
    r"|hidden_sizes|num_filters|word_embed_proj_dim|_dims?$|_width$|hidden_size|units$|d_embed|d_latents"
    r"|_size_per_stage|num_pos_feats|emb_size|embedding_size|^hidden$|d_inner|qk_.*$|model_dim"
)

_Small = Callable[[Sizes, int], int]
_ROLES: tuple[tuple[re.Pattern[str], _Small], ...] = tuple(
    (re.compile(pattern), small)
    for pattern, small in (
        (r"codebook_size", lambda s, v: 32),
        (r"vocab|num_embeddings$|^num_buckets$|num_codevectors_per_group|^n_tokens", lambda s, v: VOCABULARY),
        (r"num_mel_bins|feature_size|input_feat_per_channel", lambda s, v: 8),
        (r"experts_per_tok|moe_topk|^top_k|moe_top_k|moe_k$", lambda s, v: 2),
        (r"expert.*(size|dim)$|(size|dim)_expert", lambda s, v: s.inner),
        (r"^(n|num|moe_n)_(expert_)?group$|^n_group$", lambda s, v: 2),
        (r"^topk_group$", lambda s, v: 1),
        (r"n_shared|shared_experts", lambda s, v: 1),
        (r"experts?$|moe_num", lambda s, v: 4),
        (r"(key_value|kv)_heads$|head_kv$|kv_n_heads$|num_ln_in_parallel|linear_num_key_heads", lambda s, v: s.heads),
        (r"^qk_head_dim", lambda s, v: 2 * s.head_dim),
        (r"^mamba_d_head|^mamba_headdim", lambda s, v: 2 * s.width // s.heads),
        (r"head_dim|dim_head|d_kv$|head_size|kv_channels|d_head|rotary_dim", lambda s, v: s.head_dim),
        (r"heads?(_per_stage)?$|attention_heads|num_heads", lambda s, v: s.heads),
        (r"(max|n|num)_.*position|n_ctx|max_.*len(gth)?$|context_length$|seq_len|block_size", lambda s, v: s.positions),
        (r"query_tokens|num_queries|num_latents|num_image_tokens|register_tokens|num_tokens", lambda s, v: 4),
        (r"intermediate|ffn|d_ff|inner|mlp_dim|feed_?forward|linear_units", lambda s, v: s.inner),
        (r"lora_rank|time_step_rank|lora", lambda s, v: 4),
        (r"state_size|d_state|ssm_state", lambda s, v: 3),
        (r"^upsample_groups", lambda s, v: s.width),
        (r"codebooks$|quantizers$", lambda s, v: 2),
        (r"groups$", lambda s, v: s.groups),
        (_LAYERS, lambda s, v: s.layers),
        (r"^(num_channels|in_channels|in_chans|audio_channels|image_channels)$", lambda s, v: v),
        (r"^image_embedding_size", lambda s, v: (s.image or 2 * s.patch) // s.patch),
        (r"image_size|img_size|^image_resolution", lambda s, v: s.image or 2 * s.patch),
        (r"window_size", lambda s, v: 2),
        (r"^(context|chunk)_size$", lambda s, v: 4),
        (r"^patch_size", lambda s, v: s.patch),
        (_WIDTHS, lambda s, v: s.width),
    )
)  # fmt: skip


def shrink(config: dict[str, Any], sizes: Sizes) -> dict[str, Any]:
    """The configuration with small sizes, by what its keys are called; lists keep their length."""
    layers = next((config[k] for k in ("num_hidden_layers", "n_layer", "num_layers") if is_whole(config.get(k))), None)
    kinds = max((len(set(v)) for k, v in config.items() if _LENGTHS.search(k) and isinstance(v, list)), default=1)
    taps = next((v for k, v in config.items() if k in _TAPS and isinstance(v, list)), [])
    taps = len(taps) if is_whole(config.get("num_hidden_layers")) else 1
    sizes = Sizes(**(vars(sizes) | {"layers": max(sizes.layers, kinds, taps)}))
    stages = len(config["depths"]) if sizes.stages and isinstance(config.get("depths"), list) else -1
    out: dict[str, Any] = {}
    tokens = VOCABULARY - 1
    for key, value in config.items():
        if isinstance(value, list) and len(value) == stages:
            value = value[: sizes.stages]
        if isinstance(value, dict) and key not in ("id2label", "label2id"):
            out[key] = shrink(value, sizes)
        elif TOKEN.search(key) and is_whole(value):
            out[key] = value if value < VOCABULARY - 12 else tokens
            tokens -= value >= VOCABULARY - 12
        elif isinstance(value, list) and _LENGTHS.search(key):
            out[key] = twin._representatives(value, sizes.layers)
        elif isinstance(value, list) and len(value) == layers and (layers > 6 or isinstance(value[0], str)):
            out[key] = [_small(key, v, sizes) for v in value[: sizes.layers]]
        else:
            out[key] = _small(key, value, sizes)
    if "rope_theta" in out and "rope_type" in out:
        half = int(sizes.head_dim * (out.get("partial_rotary_factor") or 1.0)) // 2
        third = half // 3 or int(half > 1)
        out["mrope_section"] = [half - 2 * third, third, third] if half > 2 else [1, half - 1, 0]
    if "expand" in out and "head_dim" in out and "num_heads" in out:
        out["head_dim"] = out["expand"] * sizes.width // sizes.heads
    for key in ("short_factor", "long_factor"):
        if isinstance(out.get(key), list):
            out[key] = out[key][: sizes.head_dim // 2]
    return out


# numbers that scale widths and depths that are written in the code
_SCALES = {
    "width_coefficient": 0.1,
    "width_mult": 0.1,
    "width_multiplier": 0.1,
    "depth_multiplier": 0.1,
    "depth_coefficient": 0.3,
}


_SIZES = ("upsample_initial_channel", "upsample_groups")


def _small(key: str, value: Any, sizes: Sizes) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_small(key, v, sizes) for v in value)
    if key in _SCALES and isinstance(value, float):
        return min(value, _SCALES[key])
    if value is None and sizes.filled:
        return _FILLED.get(key)
    if not is_whole(value) or value <= 1 or (_KEEP.search(key) and key not in _SIZES):
        return value
    for pattern, small in _ROLES:
        if pattern.search(key):
            return min(value, small(sizes, value))
    return value


def _twin(layers: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda raw: twin.small(raw, layers)


def _by_role(**sizes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda raw: shrink(raw, Sizes(**sizes))


SIZES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "twin, 2 layers": _twin(2),
    "twin, 1 layer": _twin(1),
    "width 8": _by_role(),
    "width 8, image 32": _by_role(image=32),
    "width 8, image 64": _by_role(image=64),
    "width 8, 2 stages, image 32": _by_role(image=32, stages=2),
    "width 8, head 16": _by_role(head_dim=16),
    "width 8, filled": _by_role(filled=True),
    "width 8, 4 heads": _by_role(heads=4, head_dim=2, groups=4),
    "width 16": _by_role(width=16, head_dim=8, positions=64),
    "width 16, 2 layers, image 64": _by_role(width=16, head_dim=8, layers=2, image=64, patch=8, positions=128),
    "width 32": _by_role(width=32, heads=4, head_dim=8, image=64, patch=16, positions=512, inner=32, groups=4),
    "width 32, 2 layers": _by_role(
        width=32, heads=4, head_dim=8, layers=2, image=64, patch=16, positions=512, groups=4
    ),
}


_DEFAULTS = {
    "vocab_size": VOCABULARY, "num_experts_per_tok": 2, "num_experts": 4, "top_k_experts": 2,
    "moe_intermediate_size": 6, "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1,
    "topk_group": 1, "prediction_length": 4, "rope_theta": 10000.0,
    "image_token_id": VOCABULARY - 2, "image_token_index": VOCABULARY - 2,
}  # fmt: skip
# what some constructors need a value for, though the configuration has none
_FILLED = {
    "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 4, "hidden_size": 8, "num_hidden_layers": 1,
    "intermediate_size": 6, "max_position_embeddings": 16, "pad_token_id": 1,
}  # fmt: skip
# which layers' results are handed on
_TAPS = ("out_indices", "backbone_out_indices")
_DROPPED = ("transformers_version", "architectures", "out_features", "stage_names", "per_layer_config")


def _cleaned(raw: dict[str, Any]) -> dict[str, Any]:
    """Without what belongs to the default sizes alone, and with values for what must be given."""
    if raw.get("model_type") == "timm_backbone":  # a library of its own; any other convolutional net will do
        sizes = {"hidden_sizes": [8, 8, 8, 8], "embedding_size": 8, "depths": [1, 1, 1, 1], "layer_type": "basic"}
        return {"model_type": "resnet", **sizes, "out_indices": raw.get("out_indices")}
    out = {k: _cleaned(v) if isinstance(v, dict) else v for k, v in raw.items() if k not in _DROPPED}
    if isinstance(raw.get("id2label"), dict):
        out |= {
            "id2label": {i: f"label {i}" for i in range(LABELS)},
            "label2id": {f"label {i}": i for i in range(LABELS)},
        }
    layers = next((out[k] for k in ("num_hidden_layers", "num_stages") if is_whole(out.get(k))), None)
    for key in _TAPS:
        taps = out.get(key)
        if isinstance(taps, list) and len(taps) == 1:
            del out[key]  # the default is the last stage
        elif isinstance(taps, list) and layers and len(taps) <= layers < max(taps, default=0):
            out[key] = list(range(layers - len(taps) + 1, layers + 1))  # the last of the layers that there are
    return out | {k: v for k, v in _DEFAULTS.items() if k in out and out[k] is None}


def small_config(cls: Any, how: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """A small configuration of a class of configurations."""
    return _config(cls, how(_cleaned(cls().to_dict())))


def _config(cls: Any, raw: dict[str, Any]) -> Any:
    config = cls.from_dict(_cleaned(raw))
    for part in parts(config):
        if hasattr(part, "_experts_implementation"):
            part._experts_implementation = "eager"
    return config


# for models of which one layer is not enough
DEEP: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "twin, 2 layers": _twin(2),
    "width 8, 2 layers": _by_role(layers=2),
    "width 8, 2 layers, image 32": _by_role(layers=2, image=32),
    "width 8, 2 layers, filled": _by_role(layers=2, filled=True),
}


def tiny(model_class: type[nn.Module], config_class: Any, deep: bool = False) -> Tiny:
    """The smallest model of a class that runs.

    Args:
        model_class: of transformers.
        config_class: its configuration.
        deep: with two layers of each kind at least.

    Raises:
        NotBuilt: it runs at no size.
    """
    found: list[Tiny] = []
    errors: list[str] = []
    large: list[dict[str, Any]] = []
    for name, how in (DEEP if deep else SIZES).items():
        try:
            config = small_config(config_class, how)
            model = _build(model_class, config)
            inputs = _running(model)
            found.append(Tiny(model, inputs, name))
        except TooLarge as error:
            large.append(config.to_dict())
            errors.append(one_line(error))
            continue
        except Exception as error:  # a configuration of odd sizes fails anywhere
            errors.append(one_line(error))
            continue
        if found[-1].parameters <= (QUICK if len(found) < TRIED else ROOMY):
            break
    best = min(found, key=lambda t: t.parameters, default=None)
    if best is not None and (deep or best.parameters <= ROOMY):
        return best
    for raw in [best.model.config.to_dict()] if best is not None else large[-1:]:
        with contextlib.suppress(Exception):
            best = _squeezed(model_class, config_class, raw)
    if best is None:
        raise NotBuilt(" | ".join(dict.fromkeys(errors)))
    return best


def _squeezed(model_class: type[nn.Module], config_class: Any, raw: dict[str, Any]) -> Tiny:
    """A smaller model than that of a configuration, which may be too large to run."""

    def count(raw: dict[str, Any]) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in model_class(_config(config_class, raw)).parameters())

    def runs(raw: dict[str, Any]) -> bool:
        return count(raw) > LARGE or bool(_running(_build(model_class, _config(config_class, raw))))

    raw = squeezed(raw, count, runs, ROOMY)
    model = _build(model_class, _config(config_class, raw))
    return Tiny(model, _running(model), "squeezed")


def _build(model_class: Any, config: Any) -> nn.Module:
    with contextlib.suppress(TypeError, ValueError, RuntimeError, NotImplementedError, AttributeError):
        # some constructors compute with numbers, which the meta device has not
        with torch.device("meta"):
            count = sum(p.numel() for p in model_class(config).parameters())
        if count > LARGE:
            raise TooLarge(f"{count} parameters at small sizes")
    torch.manual_seed(0)
    model = model_class(config).to(torch.float32).eval()
    count = sum(p.numel() for p in model.parameters())
    if count > LARGE:
        raise TooLarge(f"{count} parameters at small sizes")
    return model


def one_line(error: BaseException) -> str:
    """Kind and first line of an error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].endswith(":"):
        lines[0] += " " + lines[1]
    return f"{type(error).__name__}: {lines[0][:240]}" if lines else type(error).__name__


# -- models ----------------------------------------------------------------------------------------------------
def _running(model: nn.Module) -> tuple[dict[str, Tensor], ...]:
    """The inputs among the candidates on which the model runs: the first; then, for further tries where it cannot be
    exported with those, one of fewer kinds, and one with an attention mask.

    Raises:
        the error of the first candidate, if it runs on none.
    """
    found: list[dict[str, Tensor]] = []
    first: Exception | None = None
    for inputs in candidates(model):
        if found and set(inputs) >= set(found[0]):
            continue
        try:
            run(model, inputs)
            found.append(inputs)
        except Exception as error:  # any model code
            first = first or error
            more = _with_placeholders(model, inputs, error)
            if more is not None:
                with contextlib.suppress(Exception):
                    run(model, more)
                    found.append(more)
        if found and (len(found) == 2 or not set(SENSES) & set(found[0]) or "input_ids" not in found[0]):
            break
    if not found:
        raise first or NotBuilt("no inputs to try")
    if "input_ids" in found[0] and "attention_mask" not in found[0]:
        masked = found[0] | {"attention_mask": torch.ones_like(found[0]["input_ids"])}
        with contextlib.suppress(Exception):  # some models have a branch for no mask that cannot be traced
            run(model, masked)
            found.append(masked)
    return tuple(found)


def run(model: nn.Module, inputs: dict[str, Tensor]) -> None:
    """Calls the model once; it must return a finite floating tensor."""
    call = call_of(model, (), inputs)
    with torch.no_grad(), plain_layers(model):
        observed, _ = observe(model(*call.args, **call.kwargs))
    if not observed:
        raise NotBuilt("the model returns no floating tensor")


def _with_placeholders(model: nn.Module, inputs: dict[str, Tensor], error: Exception) -> dict[str, Tensor] | None:
    """Inputs with as many placeholder tokens as the model says that it has features of a picture or a sound."""
    counts = re.findall(r"features:? *(?:shape )?\[?(\d+)|tokens:? *(\d+)", str(error))
    if "input_ids" not in inputs or len(counts) < 2 or "match" not in str(error):
        return None
    features = max(int(n) for pair in counts for n in pair if n)
    kind = "image" if "pixel_values" in inputs else "audio"
    token = find(model.config, f"{kind}_token_id", f"{kind}_token_index", "image_token_index")
    each = features // len(inputs["input_ids"])
    if token is None or not 0 < each <= 512:
        return None
    ids = inputs["input_ids"]
    places = torch.full((len(ids), each), int(token))
    longer = torch.cat([ids[:, :2], places, ids[:, 2:]], dim=1)
    return (
        inputs
        | {"input_ids": longer}
        | ({"attention_mask": torch.ones_like(longer)} if "attention_mask" in inputs else {})
    )
