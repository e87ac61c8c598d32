"""Twins: small configurations of the same code."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torchgauge.certify.twin import small, twin_of
from torchgauge.errors import TorchGaugeError


def test_small_keeps_what_decides_the_rules() -> None:
    config = {
        "model_type": "llama", "hidden_size": 8192, "num_attention_heads": 64, "num_key_value_heads": 8,
        "head_dim": 128, "num_hidden_layers": 80, "vocab_size": 128256, "intermediate_size": 28672,
        "tie_word_embeddings": False, "rms_norm_eps": 1e-5, "bos_token_id": 128000, "max_position_embeddings": 131072,
    }  # fmt: skip
    out = small(config)
    assert (out["num_attention_heads"], out["num_key_value_heads"], out["num_hidden_layers"]) == (4, 2, 2)
    assert out["hidden_size"] == 8
    assert out["bos_token_id"] < out["vocab_size"] == 40
    assert (out["rms_norm_eps"], out["tie_word_embeddings"]) == (1e-5, False)


_TWINS = [
    ("LlamaConfig", "LlamaForCausalLM"), ("MistralConfig", "MistralForCausalLM"), ("Qwen2Config", "Qwen2ForCausalLM"),
    ("Qwen3Config", "Qwen3ForCausalLM"), ("Gemma2Config", "Gemma2ForCausalLM"), ("GPT2Config", "GPT2LMHeadModel"),
    ("GPTNeoXConfig", "GPTNeoXForCausalLM"), ("OPTConfig", "OPTForCausalLM"), ("PhiConfig", "PhiForCausalLM"),
    ("BertConfig", "BertModel"), ("ViTConfig", "ViTModel"), ("ResNetConfig", "ResNetModel"),
    ("ConvNextConfig", "ConvNextModel"), ("T5Config", "T5ForConditionalGeneration"), ("BartConfig", "BartModel"),
    ("WhisperConfig", "WhisperModel"), ("MixtralConfig", "MixtralForCausalLM"), ("CLIPConfig", "CLIPModel"),
]  # fmt: skip


@pytest.mark.parametrize(("config", "cls"), _TWINS)
def test_twin_runs(config: str, cls: str) -> None:
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        model = getattr(transformers, cls)(getattr(transformers, config)()).eval()
    twin, args, kwargs = twin_of(model)
    assert type(twin) is type(model)
    assert sum(p.numel() for p in twin.parameters()) < 12000
    assert not twin.training
    with torch.no_grad():
        twin(*args, **kwargs)


def test_model_without_config_has_no_twin() -> None:
    with pytest.raises(TorchGaugeError, match="configuration"):
        twin_of(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
