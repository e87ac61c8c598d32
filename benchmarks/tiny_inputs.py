"""Keyword inputs for tiny models of transformers, by what the arguments of `forward` are called."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

BATCH, LENGTH, DECODER_LENGTH, VOCABULARY = 2, 8, 6, 40
# of a sound, behind the layers that shorten it
FRAMES = 14
# keys of special tokens in a configuration
TOKEN = re.compile(r"token_id$|token_index$|^(bos|eos|pad|sep|cls|mask|image|video|audio)_(id|index)$")


def candidates(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Keyword inputs that may fit, by the names of the arguments of `forward`."""
    signature = inspect.signature(model.forward).parameters
    accepted = set(signature)
    required = [
        name
        for name, p in signature.items()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    main = str(getattr(model, "main_input_name", "input_ids"))
    named = [main] if main in accepted else []
    if getattr(model.config, "is_encoder_decoder", False) and "decoder_input_ids" in accepted:
        named.append("decoder_input_ids")
    base = list(dict.fromkeys([*named, *required])) or [next(iter(signature))]
    if "returns_to_go" in accepted:
        base = ["states", "actions", "rewards", "returns_to_go", "timesteps", "attention_mask"]
    senses = [n for n in ("input_ids", *SENSES) if n in accepted and "image_grid_thw" not in accepted]
    if "visual_feats" in accepted:
        base = [*base, "visual_feats", "visual_pos"]
    if "xpath_tags_seq" in accepted:  # all padding where they are not given
        base = [*base, "xpath_tags_seq", "xpath_subs_seq"]
    groups: list[list[str]] = []
    if "input_ids" in senses and len(senses) > 1:
        groups += [list(dict.fromkeys([*base, "input_ids", other])) for other in senses[1:3]]
    groups.append(base)
    for extra in (
        ["attention_mask"],
        ["bbox"],
        ["input_ids"],
        ["decoder_input_ids"],
        ["attention_mask", "decoder_attention_mask"],
        ["encoder_hidden_states"],
        ["decoder_input_values"],
        ["target_sizes"],
        ["lang_ids"],
    ):
        if set(extra) <= accepted and not set(extra) <= set(base):
            groups.append([*base, *extra])
    if "input_ids" in accepted and "input_ids" not in required:
        groups.append(list(dict.fromkeys(["input_ids", *required])))
    seen: set[tuple[Any, ...]] = set()
    for names in groups:
        for variant in range(_VARIANTS):
            generator = torch.Generator().manual_seed(0)
            made = {n: value for n in names if (value := make(n, model, variant, generator)) is not None}
            if main in SENSES and main in made and "decoder_input_ids" in made:  # of one batch
                made["decoder_input_ids"] = made["decoder_input_ids"][: made[main].shape[0]]
            key = tuple((n, tuple(v.shape)) for n, v in made.items())
            if made and key not in seen:
                seen.add(key)
                yield made


SENSES = ("pixel_values", "input_features", "input_values", "pixel_values_videos")
_VARIANTS = 5


def make(name: str, model: nn.Module, variant: int, generator: torch.Generator) -> Tensor | None:
    """One input by its name; None where a required argument is no tensor that is known."""
    config: Any = model.config

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def whole(high: int, *shape: int) -> Tensor:
        return torch.randint(max(1, high), shape, generator=generator)

    width = find(config, "hidden_size", "d_model", "n_embd", "embed_dim", "dim")
    width = width if is_whole(width) else 8
    length = LENGTH if variant < 2 else 16
    if name in (
        "input_ids",
        "decoder_input_ids",
        "context_input_ids",
        "question_input_ids",
        "entity_ids",
        "qformer_input_ids",
    ):
        return _ids(config, whole, DECODER_LENGTH if name.startswith("decoder") else length, name)
    accepted = inspect.signature(model.forward).parameters
    if "spatial_shapes" in accepted and name == "pixel_values":
        patch = int(find(config, "patch_size") or 4)
        return normal(BATCH, 4, int(find(config, "num_channels") or 3) * patch * patch)
    if "spatial_shapes" in accepted and name == "pixel_attention_mask":
        return torch.ones(BATCH, 4, dtype=torch.int64)
    if name in ("hidden_states", "pixel_values") and {"grid_thw", "image_grid_thw"} & set(accepted):
        patch = int(find(config, "patch_size") or 4)
        channels = int(find(config, "in_channels", "in_chans", "num_channels") or 3)
        if variant > 1:
            return normal(16, channels, patch, patch)
        return normal(16, channels * int(find(config, "temporal_patch_size") or 1) * patch * patch)
    if "pixel_values" in name or name in ("pixels", "images", "image", "prompt_masks"):
        return _pixels(config, normal, name, variant)
    if name in ("input_features", "input_values", "audio_values", "waveform", "audio", "audio_codes", "spectrogram"):
        return _sound(config, normal, whole, name, variant)
    if name == "attention_mask" and hasattr(config, "act_dim"):
        return torch.ones(BATCH, 4, dtype=torch.int64)
    if name == "past_observed_mask":
        return torch.ones_like(make("past_values", model, variant, generator))  # pyright: ignore
    if "attention_mask" in name or name in ("padding_mask", "input_features_mask"):
        short = DECODER_LENGTH if name.startswith("decoder") else length
        return torch.ones(BATCH, short, dtype=torch.int64)
    if name in ("token_type_ids", "langs"):
        return torch.zeros(BATCH, length, dtype=torch.int64)
    if name == "lang_ids":
        return torch.zeros(BATCH, dtype=torch.int64)
    if name in ("target_sizes", "spatial_shapes"):
        return torch.full((BATCH, 2), 2)
    if name == "decoder_input_values":
        return normal(1, DECODER_LENGTH, int(find(config, "num_mel_bins") or width))
    if name == "bbox":
        if variant in (1, 3):
            return normal(BATCH, length, 8)
        corner = whole(int(find(config, "max_2d_position_embeddings") or 16) // 2, BATCH, length, 2)
        return torch.cat([corner, corner + 1], dim=-1)
    if name in ("xpath_tags_seq", "xpath_subs_seq"):
        pad = config.tag_pad_id if name == "xpath_tags_seq" else config.subs_pad_id
        return whole(int(pad), BATCH, length, int(config.max_depth))
    if name == "visual_feats":
        return normal(BATCH, 4, int(find(config, "visual_feat_dim") or width))
    if name == "visual_pos":
        return normal(BATCH, 4, int(find(config, "visual_pos_dim") or 4))
    if name in ("past_values", "future_values"):
        steps = int(find(config, "context_length") or length)
        if find(config, "lags_sequence"):
            steps += max(find(config, "lags_sequence"))
        channels = find(config, "num_input_channels")
        return normal(BATCH, steps, int(channels)) if channels else normal(BATCH, steps)
    if name == "past_time_features":
        steps = int(find(config, "context_length") or length) + max(find(config, "lags_sequence") or [0])
        return normal(BATCH, steps, int(find(config, "num_time_features") or 0))
    if name.endswith("grid_thw"):
        return torch.tensor([[1, 4, 4]])
    if name == "merge_sizes":
        return torch.tensor([2])
    if name == "encoder_hidden_states":
        return normal(BATCH, length, int(find(config, "encoder_hidden_size") or width))
    if name.endswith("embeds") or name in ("hidden_states", "inputs", "decoder_hidden_states", "context_hidden_states"):
        return normal(BATCH, length, width) if variant % 2 == 0 else normal(BATCH, width, length)
    if name == "states":
        return normal(BATCH, 4, int(config.state_dim))
    if name == "actions":
        return normal(BATCH, 4, int(config.act_dim))
    if name in ("returns_to_go", "rewards"):
        return normal(BATCH, 4, 1)
    if name == "timesteps":
        return torch.arange(4).repeat(BATCH, 1)
    if name == "task_inputs":
        return whole(VOCABULARY, BATCH, int(find(config, "task_seq_len") or LENGTH))
    if name in ("input_points",):
        return 4 * normal(BATCH, 1, 2, 2)
    if name in ("timestep", "diffusion_step"):
        return whole(10, BATCH)
    return None


def _ids(config: Any, whole: Callable[..., Tensor], length: int, name: str) -> Tensor:
    text = getattr(config, "text_config", None) or getattr(config, "get_text_config", lambda: config)() or config
    size = int(find(text, "entity_vocab_size" if name == "entity_ids" else "vocab_size") or VOCABULARY)
    books = find(text, "num_codebooks", "n_codes_total") if find(text, "audio_vocab_size", "codebook_size") else None
    shape = (
        (BATCH, length, int(books))
        if books and name == "input_ids" and hasattr(text, "num_codebooks")
        else (BATCH, length)
    )
    special = {v for part in parts(config) for k, v in vars(part).items() if TOKEN.search(k) and is_whole(v)}
    free = torch.tensor([i for i in range(size) if i not in special] or [0])
    return free[whole(len(free), *shape)]


def _pixels(config: Any, normal: Callable[..., Tensor], name: str, variant: int) -> Tensor:
    vision = find(config, "vision_config", "backbone_config") or config
    # a detector has more places to look at than it asks for
    places = 128 if is_whole(find(config, "num_queries")) else 64
    size = find(vision, "image_size", "img_size", "input_size", "max_img_size") or places
    size = size[0] if isinstance(size, list | tuple) and len(size) == 1 else size
    height, width = size[:2] if isinstance(size, list | tuple) else (size, size)
    if variant == 3:
        height, width = 64, 64
    channels = (
        int(find(vision, "num_channels", "in_channels", "in_chans") or 3)
        if not isinstance(find(vision, "num_channels"), list | tuple)
        else 3
    )
    frames = find(vision, "num_frames") if (variant % 2 == 0) else None
    if "video" in name:
        frames = frames or 2
    if frames:
        return normal(1, int(frames), channels, int(height), int(width))
    if variant == 1 and "input_ids" in name:
        return normal(BATCH, 1, channels, int(height), int(width))
    if variant == 2:
        return normal(BATCH, 1, channels, int(height), int(width))
    return normal(BATCH, channels, int(height), int(width))


def _sound(config: Any, normal: Callable[..., Tensor], whole: Callable[..., Tensor], name: str, variant: int) -> Tensor:
    bins = int(find(config, "num_mel_bins", "feature_size", "input_feat_per_channel", "num_mels", "n_mels") or 8)
    if name == "audio_codes":
        return whole(VOCABULARY, 1, int(find(config, "num_codebooks", "num_quantizers") or 1), LENGTH)
    strides = find(config, "conv_stride", "upsampling_ratios", "downsampling_ratios")
    # samples to a frame, by the strides of the layers that shorten a sound
    samples = FRAMES * math.prod(strides) if isinstance(strides, list | tuple) else 800
    if name == "input_features" or (name in ("input_values", "spectrogram") and hasattr(config, "num_mel_bins")):
        frames = 2 * int(find(config, "max_source_positions") or 32)
        longest = find(config, "max_length")
        if name != "input_features" and longest:
            frames = int(longest)
        if name != "input_features" and variant == 4:
            return normal(1, samples)
        shapes = ((1, bins, frames), (1, frames, bins), (1, 64, bins), (1, 1, frames, bins), (1, bins, 64))
        if is_whole(factor := find(config, "subsampling_factor")):  # frames to a token
            shapes = ((1, LENGTH * factor, bins), (1, bins, LENGTH * factor), *shapes[2:])
        return normal(*(shapes[variant] if name == "input_features" else shapes[(1, 0, 2, 3)[variant]]))
    shapes = ((1, samples), (1, 1, samples), (1, 4000), (1, 1, 4096), (1, 16000))
    return normal(*shapes[variant])


def parts(config: Any, depth: int = 3) -> Iterator[Any]:
    """A configuration and those inside of it."""
    yield config
    if depth:
        for value in list(vars(config).values()):
            if hasattr(value, "to_dict") and hasattr(value, "model_type"):
                yield from parts(value, depth - 1)


def find(config: Any, *names: str) -> Any:
    """The first of these attributes that the configuration or one inside of it has."""
    for part in parts(config):
        for name in names:
            value = getattr(part, name, None)
            if value is not None and not callable(value):
                return value
    return None


def is_whole(value: Any) -> bool:
    """An integer that is no truth value."""
    return isinstance(value, int) and not isinstance(value, bool)
