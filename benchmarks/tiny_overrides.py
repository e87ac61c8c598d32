"""Sizes of a few model types that the names of their keys do not give away.

Only sizes, and switches between variants of the library where the default one has sizes written in its code.
"""

from __future__ import annotations

from typing import Any

Raw = dict[str, Any]

# three stages of a net of mobile blocks: without expansion, with a stride, and behind it
_BLOCKS = {
    "kernel_sizes": [3, 3, 3], "in_channels": [8, 8, 8], "out_channels": [8, 8, 8], "strides": [1, 2, 1],
    "num_block_repeats": [1, 1, 1], "expand_ratios": [1, 2, 2], "depthwise_padding": [],
}  # fmt: skip
_TOKENIZER = {"num_filters": 4, "ffn_expansion": 2, "depths": [1, 1], "downsampling_ratios": [2]}

OVERRIDES: dict[str, Raw] = {
    "align_vision_model": _BLOCKS,
    # of two groups, one takes off what the other adds along a relation; real ones are sixteen
    "data2vec-audio": {"num_conv_pos_embedding_groups": 4},
    # after 20 rounds of normalisation, what was added to the logits of a column has faded below rounding
    "deepseek_v4": {"hc_sinkhorn_iters": 2},
    # twelve layers of width 4 leave no singular value apart from another
    "funnel": {"block_sizes": [1, 1], "block_repeats": [1, 1]},
    "efficientnet": _BLOCKS | {"hidden_dim": 16},
    # what makes labels for training alone
    "flava": {"init_codebook": False},
    # the last layer has 1280 channels, whatever the factor of the widths
    "mobilenet_v2": {"finegrained_output": False},
    # sequences are filled up to whole blocks, and 8 tokens are two of these
    "pegasus_x": {"block_size": 4},
    # two convolutions behind these halve the picture
    "got_ocr2_vision": {"image_size": 32},
    "pp_formulanet_vision": {"image_size": 32},
    "unlimited_ocr_sam_vision_model": {"image_size": 32},
    "unlimited_ocr_vision_encoder": {"image_size": 8},
    # a quarter of the channels of the first goes to all of the second
    "sam3_vision_model": {"fpn_hidden_size": 4, "backbone_config": {"hidden_size": 16}},
    # what is read is wider than what reads it
    "nemotron3_diarization": {"head_config": {"hidden_size": 4}},
    "mobilevitv2": {"n_attn_blocks": [1, 1, 1], "expand_ratio": 1.0, "num_channels": 1},
    # 512 units make the position biases of each layer, and 64 channels the larger picture of the default variant
    "swin2sr": {"depths": [1], "num_heads": [2], "upsampler": "pixelshuffledirect"},
    "swinv2": {"patch_size": 2, "num_channels": 1, "image_size": 16},
    # a patch of this picture has 16 by 16 pixels, whatever is said
    "vitmatte": {"backbone_config": {"num_channels": 1}},
    # the side of a picture by another name: four patches, as elsewhere
    "vjepa2": {"crop_size": 16, "image_size": 16},
    # stages of a neck follow each other at twice the size, or what is added is thinned out
    "chmv2": {"reassemble_factors": [2, 1]},
    "tipsv2_dpt": {"reassemble_factors": [2, 1]},
    # pictures at the last stage no smaller than what is pooled
    "upernet": {"pool_scales": [1, 2], "backbone_config": {"image_size": 128}},
    "vibevoice_acoustic_tokenizer": _TOKENIZER,
    "vibevoice_acoustic_tokenizer_decoder": _TOKENIZER,
    "vibevoice_acoustic_tokenizer_encoder": _TOKENIZER,
}


def overridden(raw: Raw) -> Raw:
    """The configuration with the sizes of its type, and so those inside of it."""
    out = {k: overridden(v) if isinstance(v, dict) else v for k, v in raw.items()}
    return _merged(out, OVERRIDES.get(str(raw.get("model_type")), {}))


def _merged(raw: Raw, other: Raw) -> Raw:
    both = {k: _merged(raw[k], v) for k, v in other.items() if isinstance(v, dict) and isinstance(raw.get(k), dict)}
    return raw | other | both
