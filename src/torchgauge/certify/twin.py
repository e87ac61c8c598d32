"""The small twin of a Hugging Face model: the same configuration with small widths.

The dimensions of theory section 2 are polynomials in the widths, so that a rule that is missing at width 4096 is
missing at width 8. What decides which rules apply is kept: ties, biases, activations, norms, grouped or single
key/value heads, the rotary fraction, encoder and decoder.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from torchgauge.errors import ModelError

VOCABULARY, LENGTH, DECODER_LENGTH, BATCH = 40, 8, 6, 2
# above so many parameters, one layer instead of two
ROOMY = 3500

_HEADS = (
    "num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads",
    "num_decoder_attention_heads",
)  # fmt: skip
_GROUPS = ("num_key_value_heads", "num_kv_heads", "n_head_kv")
_HEAD_DIM = ("head_dim", "d_kv", "v_head_dim", "qk_rope_head_dim", "qk_nope_head_dim", "attention_head_dim")
_LATENT = ("qk_nope_head_dim", "qk_rope_head_dim")
"""What a head of latent attention is made of, where `head_dim` is their sum."""
_WIDTH = ("hidden_size", "n_embd", "d_model", "dim", "word_embed_proj_dim", "embed_dim")
_FEED_FORWARD = (
    "intermediate_size", "n_inner", "ffn_dim", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "hidden_dim",
    "ffn_hidden_size", "moe_intermediate_size", "shared_expert_intermediate_size",
)  # fmt: skip
_LAYERS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "num_decoder_layers",
)  # fmt: skip
_POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_source_positions", "max_target_positions")
# what fits at most, whatever it was
_AT_MOST = {
    "vocab_size": VOCABULARY, "type_vocab_size": 2, "num_local_experts": 4, "num_experts": 4, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "kv_lora_rank": 5, "q_lora_rank": 6, "projection_dim": 6,
    "embedding_size": 4, "pooler_output_size": 6, "state_size": 3, "time_step_rank": 2, "num_mel_bins": 4,
    # every distance within reach, and no table for others
    "relative_attention_num_buckets": LENGTH, "relative_attention_max_distance": LENGTH, "local_radius": LENGTH - 1,
    "patch_size": 4, "first_k_dense_replace": 1, "max_window_layers": 1, "vocab_size_per_layer_input": VOCABULARY,
}  # fmt: skip
SLOWEST = 4.0
"""By how much the angles of a rotary embedding may be scaled down."""
_TOKEN = "_token_id"
# their positions start behind the padding index
_OFFSET_POSITIONS = ("roberta", "camembert", "xlm", "mpnet", "longformer", "data2vec", "esm")


def has_config(model: nn.Module) -> bool:
    """Whether a twin can be built from the model's own configuration."""
    config = getattr(model, "config", None)
    return hasattr(config, "to_dict") and hasattr(type(config), "from_dict")


def twin_of(model: nn.Module) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    """The twin of a Hugging Face model with inputs that fit it.

    Args:
        model: a model with a `config`; its weights are not looked at, so that it may be on the meta device.

    Returns:
        The twin in the mode of the model, positional arguments, keyword arguments.

    Raises:
        ModelError: no configuration, or one whose small version makes no model.
    """
    if not has_config(model):
        raise ModelError(
            f"{type(model).__name__} has no configuration to build a small twin from",
            remedy="Give one: certify(..., twin=(module, args, kwargs)), the same code with small widths.",
        )
    source: Any = model.config
    twin: nn.Module | None = None
    for layers in (2, 1):
        config = type(source).from_dict(small(source.to_dict(), layers))
        _keep_implementation(source, config)
        twin = _build(type(model), config)
        if sum(p.numel() for p in twin.parameters()) <= ROOMY:
            break
    assert twin is not None
    return twin.train(model.training), (), twin_inputs(twin)


def small(config: dict[str, Any], layers: int = 2) -> dict[str, Any]:
    """The configuration with small widths; everything that is no size is kept."""
    out = {k: small(v, layers) if isinstance(v, dict) and "model_type" in v else v for k, v in config.items()}
    heads, groups, head_dim = _attention_sizes(config)
    free = any(isinstance(config.get(k), int) for k in ("head_dim", "d_kv"))
    width = 8 if free or heads is None else max(8, heads * head_dim)
    sizes: dict[str, int] = {}
    for keys, size in ((_HEADS, heads), (_GROUPS, groups), (_HEAD_DIM, head_dim), (_WIDTH, width)):
        sizes |= {k: size for k in keys if size is not None}
    sizes |= dict.fromkeys(_FEED_FORWARD, 6)
    offset = any(part in str(config.get("model_type", "")) for part in _OFFSET_POSITIONS)
    sizes |= dict.fromkeys(_POSITIONS, LENGTH + 4 if offset else LENGTH)
    kinds = config.get("layer_types")
    count = max(layers, len(set(kinds))) if isinstance(kinds, list) else layers
    for key, value in config.items():
        if key in sizes and isinstance(value, int):
            out[key] = min(value, sizes[key]) if key in _POSITIONS else sizes[key]
        elif key in _LAYERS and isinstance(value, int):
            out[key] = min(value, count)
        elif key in _AT_MOST and isinstance(value, int):
            out[key] = min(value, _AT_MOST[key])
        elif key.endswith(_TOKEN) and isinstance(value, int):
            out[key] = value if value < VOCABULARY else VOCABULARY - 1
    if config.get("embedding_size") in [config[k] for k in _WIDTH if isinstance(config.get(k), int)]:
        out["embedding_size"] = width  # as wide as the stream, where a narrower one is mapped into it
    if isinstance(kinds, list):
        out["layer_types"] = _representatives(kinds, count)
    if isinstance(config.get("expand"), int) and "state_size" in config:
        out["intermediate_size"] = config["expand"] * width
    parts = [n for n in map(config.get, _LATENT) if isinstance(n, int)]
    if len(parts) == len(_LATENT) and config.get("head_dim") == sum(parts):
        out["head_dim"] = len(_LATENT) * head_dim
    return _small_vision(config, _small_rope(out, head_dim), layers)


def _attention_sizes(config: dict[str, Any]) -> tuple[int | None, int | None, int]:
    """Heads, key/value heads and head size: two of a kind where there are several, one where there is one."""
    heads = next((config[k] for k in _HEADS if isinstance(config.get(k), int)), None)
    groups = next((config[k] for k in _GROUPS if isinstance(config.get(k), int)), None)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    fraction = config.get("partial_rotary_factor") or config.get("rotary_pct")
    if fraction is None and isinstance(rope, dict):
        fraction = rope.get("partial_rotary_factor")
    head_dim = 8 if isinstance(fraction, float) and fraction < 0.5 else 4
    if heads is None:
        return None, None, head_dim
    if groups is None or groups >= heads:
        small_heads = min(heads, 2)
        return small_heads, None if groups is None else small_heads, head_dim
    return (2, 1, head_dim) if groups == 1 else (4, 2, head_dim)


def _representatives(kinds: list[str], count: int) -> list[str]:
    """`count` layer types in which each that occurs is present, in the order of first occurrence."""
    chosen = list(dict.fromkeys(kinds))
    return (chosen + kinds)[:count] if len(chosen) < count else chosen[:count]


def _small_rope(config: dict[str, Any], head_dim: int) -> dict[str, Any]:
    rope = config.get("rope_parameters")
    if isinstance(rope, dict):
        config["rope_parameters"] = out = dict(rope)
        for key in ("short_factor", "long_factor"):
            if isinstance(out.get(key), list):
                out[key] = out[key][: head_dim // 2]
        if isinstance(out.get("factor"), (int, float)):
            # a plane that is slowed down a thousandfold stands still over a few positions
            out["factor"] = min(out["factor"], SLOWEST)
    return config


def _small_vision(config: dict[str, Any], out: dict[str, Any], layers: int) -> dict[str, Any]:
    """Two stages of one or two blocks each; a picture of two by two patches."""
    sizes = config.get("hidden_sizes")
    if isinstance(sizes, list):
        stages = min(2, len(sizes))
        # a bottleneck divides its width by four
        out["hidden_sizes"] = ([16, 24] if config.get("layer_type") == "bottleneck" else [6, 8])[:stages]
        for key in ("stage_names", "out_features", "out_indices", "_out_features", "_out_indices"):
            out.pop(key, None)
        if isinstance(config.get("num_stages"), int):
            out["num_stages"] = stages
        if isinstance(config.get("depths"), list):
            out["depths"] = [min(layers, d) for d in config["depths"][:stages]]
        if isinstance(config.get("image_size"), int):
            out["image_size"] = 32
    elif isinstance(config.get("image_size"), int) and isinstance(out.get("patch_size"), int):
        out["image_size"] = 2 * out["patch_size"]
    return out


def _keep_implementation(source: Any, config: Any) -> None:
    chosen = getattr(source, "_attn_implementation", None)
    if chosen in ("eager", "sdpa"):
        config._attn_implementation = chosen
    # the fused kernel of expert layers wants widths that are multiples of its stride
    if hasattr(config, "_experts_implementation"):
        config._experts_implementation = "eager"


def _build(cls: type[nn.Module], config: Any) -> nn.Module:
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.manual_seed(0)
            return cls(config).to(torch.float32)
    except Exception as error:  # a configuration class of its own may fail anywhere
        raise ModelError(
            f"the small version of this configuration makes no model: {type(error).__name__}: {error}",
            where=cls.__name__,
            remedy="Give a twin: certify(..., twin=(module, args, kwargs)), the same code with small widths.",
        ) from error


def twin_inputs(model: nn.Module) -> dict[str, Tensor]:
    """Keyword inputs for a twin, by the name of its main input."""
    config: Any = model.config
    main = str(getattr(model, "main_input_name", "input_ids"))
    accepted = inspect.signature(model.forward).parameters
    generator = torch.Generator().manual_seed(0)
    text = getattr(config, "text_config", None) or config
    vision = getattr(config, "vision_config", None) or config

    def ids(length: int) -> Tensor:
        return torch.randint(int(getattr(text, "vocab_size", VOCABULARY)), (BATCH, length), generator=generator)

    def pixels() -> Tensor:
        size = getattr(vision, "image_size", None) or 32
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return torch.randn(BATCH, int(getattr(vision, "num_channels", 3)), height, width, generator=generator)

    if main == "pixel_values":
        inputs = {main: pixels()}
    elif main == "input_features":
        frames = 2 * int(getattr(config, "max_source_positions", LENGTH))
        inputs = {main: torch.randn(1, int(getattr(config, "num_mel_bins", 4)), frames, generator=generator)}
    elif main == "input_values":
        inputs = {main: torch.randn(1, 800, generator=generator)}
    else:
        inputs = {main: ids(LENGTH)}
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in accepted:
        inputs["decoder_input_ids"] = ids(DECODER_LENGTH)[: len(inputs[main])]
    if hasattr(model, "logit_scale") and "pixel_values" in accepted and "input_ids" in accepted:
        inputs |= {"input_ids": ids(LENGTH), "pixel_values": pixels()}
    return inputs
