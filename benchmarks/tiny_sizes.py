"""Small sizes for a configuration of transformers, by what its keys are called.

No table of architectures: sizes are named alike all over the library, and what is written here holds for a key wherever
it occurs. Nothing becomes narrow that the default has wide in proportion: a kernel stays shorter than the sequence that
it runs over, a picture has more patches than a window or a kernel covers, a classifier is wider than what it reads.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tiny_inputs import TOKEN, VOCABULARY, is_whole

from torchgauge.certify import twin

Raw = dict[str, Any]
# a classifier narrower than what it reads would hide the rest of it, whatever the architecture
LABELS = 10
# patches along each side of a picture, at the coarsest stage: fewer than a kernel covers would leave some of it unseen
GRID = 4


@dataclass(frozen=True)
class Sizes:
    """What the roles of a configuration become.

    Attributes:
        image: side of a picture; GRID patches where None.
        stages: how many of the stages of a pyramid are kept; all where 0.
        filled: whether sizes that are not given are made up.
    """

    width: int = 8
    heads: int = 2
    head_dim: int = 4
    inner: int = 6
    layers: int = 1
    image: int | None = None
    patch: int = 4
    positions: int = 16
    groups: int = 2
    stages: int = 2
    filled: bool = False


_KEEP = re.compile(
    r"token_id|token_index|_ids?$|kernel(?!.*channels)|stride|padding|dilation|ignore_index|index(es)?$|indices$|_idx$"
    r"|num_feat_extract_layers|cost$|(?<!du)ratio|coefficient|temperature|theta|_rate$|_rates$|multiplier"
    r"|attention_window|sliding(?!.*heads)|chunk(?!_size)|num_labels|num_frames|factor|downsample(?!_hidden|_channels)"
    r"|upsample(?!_initial|_groups)|pretraining_tp|spatial_merge|num_feature_levels|scal(e|ar)$|n_points"
)
_LENGTHS = re.compile(
    r"layer_types$|_layer_types$|^layers_block_type$|^attn_type_list$|^attention_layers$|^no_rope_layers$"
)

_LAYERS = (
    r"(num|n|encoder|decoder|_)_?layers?$|^depths?$|depths|num_blocks|n_layer|_depth$|blocks_per_stage|^layers$"
    r"|stage_num_blocks|stage_numb_of_layers|num_res_blocks|hidden_groups|layers_per_stack|self_attends_per_block"
)
_WIDTHS = (
    r"(hidden|embed|embedding|model|projection|proj|pooler|bottleneck|latent|attention|fusion|neck|fpn|decoder"
    r"|encoder|classifier|output|input|feature|query|key|value|codebook|conv|tdnn|lstm)s?_?(hidden_)?"
    r"(size|dim|width|channel|units)s?$|^n_embd$|^d_model$|^dim$|embed_dim|hidden_dim|^width$|channels|channel_list"
    r"|hidden_sizes|num_filters|word_embed_proj_dim|_dims?$|_width$|hidden_size|units$|d_embed|d_latents"
    r"|_size_per_stage|num_pos_feats|emb_size|embedding_size|^hidden$|d_inner|qk_.*$|model_dim"
    r"|initial_channel$|out_channel$|conv_channel_size$|(bottleneck|part|^out)_features$|class_expand|flow_size"
)

_Small = Callable[[Sizes, int], int]
_ROLES: tuple[tuple[re.Pattern[str], _Small], ...] = tuple(
    (re.compile(pattern), small)
    for pattern, small in (
        (r"codebook_size", lambda s, v: 32),
        (r"^num_buckets$|num_embeds$|vocab|num_embeddings$|num_codevectors_per_|^n_tokens", lambda s, v: VOCABULARY),
        (r"num_mel_bins|n_mel_bins|feature_size|input_feat_(per_channel|size)", lambda s, v: 8),
        (r"experts_per_tok|moe_topk|^top_k|moe_top_k|moe_k$", lambda s, v: 2),
        (r"expert.*(size|dim)$|(size|dim)_expert", lambda s, v: s.inner),
        (r"^(n|num|moe_n)_(expert_)?group$|^n_group$", lambda s, v: 2),
        (r"^topk_group$", lambda s, v: 1),
        (r"n_shared|shared_experts", lambda s, v: 1),
        (r"zero_expert_num", lambda s, v: 2),
        (r"experts?$|moe_num", lambda s, v: 4),
        (r"(key_value|kv)_heads$|head_kv$|kv_n_heads$|num_ln_in_parallel|linear_num_key_heads", lambda s, v: s.heads),
        (r"^qk_head_dim", lambda s, v: 2 * s.head_dim),
        (r"^mamba_d_head|^mamba_headdim", lambda s, v: 2 * s.width // s.heads),
        (r"head_dim|dim_head|d_kv$|head_size|kv_channels|d_head|rotary_dim", lambda s, v: s.head_dim),
        (r"heads?(_per_stage)?$|attention_heads|num_heads", lambda s, v: s.heads),
        (
            r"(max|n|num)_.*position|n_ctx|max_.*len(gth)?$|context_length$|seq_len|num_landmarks|block_size",
            lambda s, v: s.positions,
        ),
        (r"intermediate|ffn|d_?ff|dim_ff|inner|mlp_dim|feed_?forward|linear_units", lambda s, v: s.inner),
        (r"time_step_rank|dt_rank", lambda s, v: 4),
        (r"state_size|d_state|ssm_state", lambda s, v: 3),
        (r"d_ssm$", lambda s, v: 2 * s.width),
        (r"^upsample_groups", lambda s, v: s.width),
        (r"codebooks$|quantizers$", lambda s, v: 2),
        (r"groups$", lambda s, v: s.groups),
        (_LAYERS, lambda s, v: s.layers),
        (r"^(num_channels|in_channels|in_chans|audio_channels|image_channels)$", lambda s, v: v),
        (r"^image_embedding_size", lambda s, v: s.image // s.patch if s.image else GRID),
        (r"image_size|img_size|^image_resolution", lambda s, v: s.image or GRID * s.patch),
        (r"window_size", lambda s, v: 2),
        (r"^context_size$", lambda s, v: 4),
        (r"^patch_size", lambda s, v: s.patch),
        (_WIDTHS, lambda s, v: s.width),
    )
)  # fmt: skip

# what is no width: the same in every small configuration
_SHORT: tuple[tuple[re.Pattern[str], Callable[[int], int]], ...] = tuple(
    (re.compile(pattern), small)
    for pattern, small in (
        # shorter than a sequence; an even kernel stays even
        (r"num_conv_pos_embeddings$|kernel(_size)?$", lambda v: 4 - v % 2 if v > 5 else v),
        (r"query_tokens|num_queries|num_latents|n_latents|latent_query_num|num_\w*tokens$|num_proposals$", lambda v: 4),
        (r"(^|mamba_|attention_)chunk_size$|attn_chunk_length$|^local_transformer_stride$", lambda v: 4),
        (r"(^|_)(low)?rank$|lora", lambda v: 4),
        (r"context_left$", lambda v: 5),
        (r"^sliding_window_size$", lambda v: 8),
        (r"^posemb_grid_size$", lambda v: GRID),
        (r"prompt_length$|(prompt|segment)_types$|horizon_length$|^patch_length$|^num_windows$", lambda v: 4),
        (r"num_classes$|num_\w+_labels$|num_\w+_classes$|^head_out_channels$", lambda v: LABELS),
        (r"_bins$|^max_rel_(2d_)?pos$|^rel_extent$|^max_xpath_\w+_embeddings$|^chroma_length$", lambda v: 8),
        (r"^visual_prompt_size$", lambda v: 8),
        (r"^(tag|subs)_pad_id$", lambda v: 6),
        (r"^max_depth$|^group_detr$", lambda v: 2),
        (r"^d_rel$", lambda v: 4),
        (r"^position_bias_num_buckets$", lambda v: 32),
    )
)  # fmt: skip
# factors that scale widths and depths that are written in the code
_FACTORS = {
    "width_coefficient": 0.01,
    "width_mult": 0.1,
    "width_multiplier": 0.03,
    "depth_multiplier": 0.01,
    "depth_coefficient": 0.1,
    "mlp_ratio": 1,
    "mlp_ratios": 1,
    "pred_mlp_ratio": 1,
    "depth_mult": 0.34,
    "expand_ratio": 2,
    "expand_ratios": 2,
    "hidden_expansion": 0.5,
}
# levels of features of a picture, one behind the other: two of them say it all
_LEVELS = ("encoder_in_channels", "decoder_in_channels", "feat_strides")
# steps in a row that a signal is made shorter or longer by: two of them say it all
_STACKED = ("conv_dim", "conv_stride", "conv_kernel", "upsample_rates", "upsample_kernel_sizes")
_RESAMPLED = ("upsampling_ratios", "downsampling_ratios")
_PARALLEL = ("resblock_kernel_sizes", "resblock_stride_sizes", "resblock_dilation_sizes")

_DEFAULTS = {
    "vocab_size": VOCABULARY, "num_experts_per_tok": 2, "num_experts": 4, "top_k_experts": 2,
    "moe_intermediate_size": 6, "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1,
    "topk_group": 1, "prediction_length": 4, "rope_theta": 10000.0, "n_inner": 6,
    "image_token_id": VOCABULARY - 2, "image_token_index": VOCABULARY - 2,
}  # fmt: skip
# what some constructors need a value for, though the configuration has none
_FILLED = {
    "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 4, "hidden_size": 8, "num_hidden_layers": 1,
    "intermediate_size": 6, "max_position_embeddings": 16, "pad_token_id": 1,
}  # fmt: skip
# what a head of latent attention is made of
_LATENT = twin._LATENT
# which layers' results are handed on
_TAPS = ("out_indices", "backbone_out_indices")
_DROPPED = ("transformers_version", "architectures", "stage_names", "down_ops", "per_layer_config")


def cleaned(raw: Raw) -> Raw:
    """Without what belongs to the default sizes alone, and with values for what must be given."""
    if raw.get("model_type") == "timm_backbone":  # a library of its own; any other convolutional net will do
        sizes = {"hidden_sizes": [8, 8, 8, 8], "embedding_size": 8, "depths": [1, 1, 1, 1], "layer_type": "basic"}
        return {"model_type": "resnet", **sizes, "out_indices": raw.get("out_indices")}
    out = {k: cleaned(v) if isinstance(v, dict) else v for k, v in raw.items() if k not in _DROPPED}
    if isinstance(raw.get("out_features"), list) and not all(map(is_whole, raw["out_features"])):
        del out["out_features"]  # names of stages
    if isinstance(raw.get("id2label"), dict):
        out |= {
            "id2label": {i: f"label {i}" for i in range(LABELS)},
            "label2id": {f"label {i}": i for i in range(LABELS)},
        }
    if "per_layer_config" in raw:  # made anew, from a size that is not kept
        out["global_head_dim"] = 8
    layers = next((out[k] for k in ("num_hidden_layers", "num_stages") if is_whole(out.get(k))), None)
    for key in _TAPS:
        taps = out.get(key)
        if isinstance(taps, list) and len(taps) == 1:
            del out[key]  # the default is the last stage
        elif isinstance(taps, list) and layers and len(taps) <= layers < max(taps, default=0):
            first = layers - len(taps) + (key == "out_indices")  # the embedding is number 0 of these
            out[key] = list(range(first, first + len(taps)))  # the last of the layers that there are
    return out | {k: v for k, v in _DEFAULTS.items() if k in out and out[k] is None}


def shortened(raw: Raw, stages: int = 0) -> Raw:
    """Kernels, chunks, ranks and numbers of tokens that fit short sequences, and fewer steps in a row.

    Args:
        raw: the configuration.
        stages: how many of the stages of a pyramid to keep; all where 0.
    """
    raw = _two_levels(raw)
    depths = next((raw[k] for k in ("depths", "depth") if isinstance(raw.get(k), list)), [])
    cut = stages if 0 < stages < len(depths) and not isinstance(raw.get("out_indices"), list) else 0
    steps = min(2, len(raw["conv_stride"])) if isinstance(raw.get("conv_stride"), list) else 2
    out: Raw = {}
    for key, value in raw.items():
        if isinstance(value, dict) and key not in ("id2label", "label2id"):
            out[key] = shortened(value, stages)
        elif isinstance(value, list) and key == "block_configs":
            out[key] = [[_block(block) for block in (*blocks[:1], *blocks[1:][-1:])] for blocks in value]
        elif cut and isinstance(value, list) and len(value) == len(depths):
            out[key] = [_short(key, v) for v in (*value[: cut - 1], value[-1])]
        elif isinstance(value, list) and key in _STACKED:
            out[key] = value[-2:] if key.startswith("upsample") else value[:steps]
        elif isinstance(value, list) and key in _RESAMPLED:
            out[key] = [2] * min(2, len(value))
        elif isinstance(value, list) and key in _PARALLEL:
            out[key] = [v[:2] if isinstance(v, list) else v for v in value[:1]]
        elif key == "factor" and "rope_type" in raw and isinstance(value, float | int):
            out[key] = min(value, twin.SLOWEST)
        elif key == "num_feat_extract_layers" and "conv_stride" in raw:
            out[key] = steps
        elif cut and key in ("num_stages", "num_encoder_blocks", "num_query_pool") and is_whole(value):
            out[key] = cut - (key == "num_query_pool")
        else:
            out[key] = _short(key, value)
    return out


def _two_levels(raw: Raw) -> Raw:
    """With two levels of the features of a picture, where each has its entry in lists."""
    levels = next((raw[k] for k in (*_LEVELS, "reassemble_factors") if isinstance(raw.get(k), list)), [])
    backbone = raw.get("backbone_config")
    if len(levels) < 3 or not isinstance(backbone, dict) or not isinstance(backbone.get("out_indices"), list):
        return raw
    if {"x4_feat_dim", "num_attractors"} & raw.keys():  # read by number in the code
        return raw
    n = len(levels)
    out = {k: [v[0], v[-1]] if isinstance(v, list) and len(v) == n else v for k, v in raw.items()}
    ends = {k: v[-2:] for k, v in backbone.items() if k in ("out_indices", "out_features") and isinstance(v, list)}
    found: Raw = {"backbone_config": backbone | ends}
    if "feat_strides" in raw:  # neighbours: each is half as large as the one before
        found |= {k: raw[k][-2:] for k in _LEVELS if isinstance(raw.get(k), list)}
        found |= {k: 2 for k in ("num_feature_levels", "decoder_n_levels") if k in raw} | {"encode_proj_layers": [1]}
    return out | found


def _block(block: Any) -> Any:
    """A block of a convolutional net as kernel, channels before and after it, stride and so on."""
    kernel, *channels = block[:3]
    return [kernel, *(min(8, n) for n in channels), *block[3:]]


def _short(key: str, value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_short(key, v) for v in value) if key in _FACTORS else value
    if key in _FACTORS and isinstance(value, float | int) and value is not True:
        return min(value, type(value)(_FACTORS[key]))
    if is_whole(value) and value > 1:
        for pattern, small in _SHORT:
            if pattern.search(key):
                return min(value, small(value))
    return value


def shrink(config: Raw, sizes: Sizes) -> Raw:
    """The configuration with small sizes, by what its keys are called; lists keep their length."""
    sizes = _fitting(config, sizes)
    layers = next((config[k] for k in ("num_hidden_layers", "n_layer", "num_layers") if is_whole(config.get(k))), None)
    out: Raw = {}
    tokens = VOCABULARY - 1
    for key, value in config.items():
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
    if all(is_whole(config.get(k)) for k in _LATENT) and config.get("head_dim") == sum(config[k] for k in _LATENT):
        out["head_dim"] = sum(out[k] for k in _LATENT)
    return out | _coupled(out, sizes)


def _fitting(config: Raw, sizes: Sizes) -> Sizes:
    """As many layers as there are kinds and taps, as many positions as tokens, pictures that a pyramid can halve."""
    kinds = max((len(set(v)) for k, v in config.items() if _LENGTHS.search(k) and isinstance(v, list)), default=1)
    taps = next((v for k, v in config.items() if k in _TAPS and isinstance(v, list)), [])
    taps = len(taps) if is_whole(config.get("num_hidden_layers")) else 1
    placed = any(k in config for k in ("image_token_id", "image_token_index"))
    positions = max(sizes.positions, 2 * GRID * GRID) if placed else sizes.positions
    sizes = replace(sizes, layers=max(sizes.layers, kinds, taps), positions=positions)
    depths = config.get("depths")
    if isinstance(depths, list) and len(depths) > 1 and sizes.image is None:
        sizes = replace(sizes, image=min(64, GRID * sizes.patch * 2 ** (len(depths) - 1)))
    if is_whole(config.get("output_stride")) and sizes.image is None:
        sizes = replace(sizes, image=64)
    return sizes


def _coupled(out: Raw, sizes: Sizes) -> Raw:
    """Sizes that are computed from others."""
    found: Raw = {}
    if "rope_theta" in out and "rope_type" in out:
        half = int(sizes.head_dim * (out.get("partial_rotary_factor") or 1.0)) // 2
        third = half // 3 or int(half > 1)
        found["mrope_section"] = [half - 2 * third, third, third] if half > 2 else [1, half - 1, 0]
    if "expand" in out and "head_dim" in out and "num_heads" in out:
        found["head_dim"] = out["expand"] * sizes.width // sizes.heads
    for key in ("short_factor", "long_factor"):
        if isinstance(out.get(key), list):
            found[key] = out[key][: sizes.head_dim // 2]
    if is_whole(out.get("subsampling_factor")) and "num_mel_bins" in out:  # a kernel sees neighbours at the end too
        found["num_mel_bins"] = 4 * out["subsampling_factor"]
    if "attention_hidden_size" in out and "attention_head_dim" in out:  # of a stream and its copy side by side
        found |= {"attention_hidden_size": 2 * sizes.width, "attention_head_dim": 2 * sizes.width // sizes.heads}
    if "coordinate_size" in out and "shape_size" in out:  # four of the one and two of the other make a width
        found |= {"coordinate_size": sizes.width // 8, "shape_size": sizes.width // 4}
    if isinstance(out.get("axial_pos_embds_dim"), list):
        found |= {"axial_pos_shape": [4, 4], "axial_pos_embds_dim": [sizes.width // 2] * 2}
    if isinstance(out.get("patch_size"), list) and isinstance(out.get("patch_padding"), list):
        found["patch_padding"] = [0 for _ in out["patch_padding"]]  # patches side by side
    return found


def _small(key: str, value: Any, sizes: Sizes) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_small(key, v, sizes) for v in value)
    if value is None and sizes.filled:
        return _FILLED.get(key)
    if not is_whole(value) or value <= 1 or _KEEP.search(key) or any(found.search(key) for found, _ in _SHORT):
        return value
    for pattern, small in _ROLES:
        if pattern.search(key):
            return min(value, small(sizes, value))
    return value


def by_twin(layers: int) -> Callable[[Raw], Raw]:
    """The sizes of the certificate's twin, with pictures of GRID patches."""
    return lambda raw: _pictured(twin.small(shortened(raw), layers))


def _pictured(raw: Raw) -> Raw:
    out = {k: _pictured(v) if isinstance(v, dict) else v for k, v in raw.items()}
    if is_whole(out.get("image_size")) and "hidden_sizes" not in out:
        out["image_size"] = GRID * out["patch_size"] if is_whole(out.get("patch_size")) else min(64, out["image_size"])
    return out


def by_role(**sizes: Any) -> Callable[[Raw], Raw]:
    """Small sizes by what the keys are called."""
    chosen = Sizes(**sizes)
    return lambda raw: shrink(shortened(raw, chosen.stages), chosen)
