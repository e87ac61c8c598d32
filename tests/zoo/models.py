"""Tiny models of the Hugging Face families: width 8, one or two layers, 64 words, generic gains and biases.

`nullity` is measured (float64, eps as configured) with enough contexts: rows of the Jacobian of a language model see
about width − 1 numbers per context, so that contexts × width must exceed twice the number of parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.case import Case

V = 64
Inputs = Callable[[torch.Generator], tuple[Any, ...]]


def ids(batch: int, length: int, vocabulary: int = V) -> Inputs:
    """Words in random order; every word occurs once the batch is as long as the vocabulary."""

    def make(g: torch.Generator) -> tuple[Tensor]:
        runs = -(-batch * length // vocabulary)
        words = torch.cat([torch.randperm(vocabulary, generator=g) for _ in range(runs)])
        return (words[: batch * length].reshape(batch, length),)

    return make


def hf(config: str, model: str, **options: Any) -> Callable[[], nn.Module]:
    """A model from the names of its config and model classes."""

    def build() -> nn.Module:
        import transformers

        special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
        return getattr(transformers, model)(getattr(transformers, config)(**special | options))

    return build


LLAMA = {
    "vocab_size": V,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "intermediate_size": 6,
    "num_hidden_layers": 1,
    "max_position_embeddings": 16,
    "tie_word_embeddings": False,
    "use_cache": False,
}
GPT2 = {
    "vocab_size": V,
    "n_embd": 8,
    "n_head": 2,
    "n_layer": 1,
    "n_inner": 6,
    "n_positions": 7,
    "resid_pdrop": 0.0,
    "use_cache": False,
}
BERT = {
    "vocab_size": V,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "intermediate_size": 6,
    "num_hidden_layers": 2,
    "max_position_embeddings": 7,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-3,
    "use_cache": False,
}
NEOX = {
    "vocab_size": V,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "intermediate_size": 6,
    "num_hidden_layers": 1,
    "max_position_embeddings": 16,
    "use_cache": False,
}
WORDS = ids(10, 7)

CASES: tuple[Case, ...] = (
    Case("llama", hf("LlamaConfig", "LlamaForCausalLM", **LLAMA), WORDS, 78, row="theory 2", batches=8),
    Case(
        "llama_tied",
        hf("LlamaConfig", "LlamaForCausalLM", **LLAMA | {"tie_word_embeddings": True}),
        WORDS,
        42,
        row="theory 2",
        batches=8,
    ),
    Case(
        "llama_exact_scale",
        hf("LlamaConfig", "LlamaForCausalLM", **LLAMA | {"rms_norm_eps": 0.0}),
        WORDS,
        79,
        row="theory 2",
        batches=8,
    ),
    Case(
        "llama_bias",
        hf("LlamaConfig", "LlamaForCausalLM", **LLAMA | {"attention_bias": True}),
        WORDS,
        82,
        row="theory 2",
        batches=8,
    ),
    Case("mistral", hf("MistralConfig", "MistralForCausalLM", **LLAMA), WORDS, 78, batches=8),
    Case("qwen2", hf("Qwen2Config", "Qwen2ForCausalLM", **LLAMA), WORDS, 78, batches=8),
    Case("qwen3", hf("Qwen3Config", "Qwen3ForCausalLM", **LLAMA), WORDS, 76, batches=8),
    Case(
        "gemma2", hf("Gemma2Config", "Gemma2ForCausalLM", **LLAMA | {"tie_word_embeddings": True}), WORDS, 42, batches=8
    ),
    Case("gpt2", hf("GPT2Config", "GPT2LMHeadModel", **GPT2), WORDS, 165, row="theory 2", batches=8),
    Case(
        "gpt2_8_positions", hf("GPT2Config", "GPT2LMHeadModel", **GPT2 | {"n_positions": 8}), ids(8, 8), 166, batches=8
    ),
    Case("gpt_neox", hf("GPTNeoXConfig", "GPTNeoXForCausalLM", **NEOX), WORDS, 242, batches=10),
    Case(
        "opt",
        hf(
            "OPTConfig",
            "OPTForCausalLM",
            vocab_size=V,
            hidden_size=8,
            word_embed_proj_dim=8,
            num_attention_heads=2,
            ffn_dim=6,
            num_hidden_layers=1,
            max_position_embeddings=7,
            use_cache=False,
        ),
        WORDS,
        173,
        171,
        reason="two position rows are never read: the group moves them, the judge leaves them out",
        batches=8,
    ),
    Case(
        "phi",
        hf("PhiConfig", "PhiForCausalLM", **NEOX | {"partial_rotary_factor": 0.5}),
        WORDS,
        290,
        row="design 5",
        batches=10,
    ),
    Case("bert", hf("BertConfig", "BertForMaskedLM", **BERT), WORDS, 332, batches=10),
    Case("bert_encoder", hf("BertConfig", "BertModel", **BERT), WORDS, 378, batches=16),
    Case(
        "vit",
        hf(
            "ViTConfig",
            "ViTForImageClassification",
            hidden_size=8,
            num_attention_heads=2,
            intermediate_size=6,
            num_hidden_layers=2,
            image_size=4,
            layer_norm_eps=1e-3,
            patch_size=2,
            num_channels=2,
            num_labels=10,
        ),
        lambda g: (torch.randn(48, 2, 4, 4, generator=g, dtype=torch.float64),),
        392,
        batches=10,
    ),
    Case(
        "hf_resnet",
        hf(
            "ResNetConfig",
            "ResNetForImageClassification",
            num_channels=2,
            embedding_size=4,
            hidden_sizes=[4, 6],
            depths=[1, 1],
            layer_type="basic",
            num_labels=5,
        ),
        lambda g: (1.5 * torch.randn(16, 2, 16, 16, generator=g, dtype=torch.float64),),
        56,
        batches=30,
        seed=2,
    ),
    Case(
        "hf_convnext",
        hf(
            "ConvNextConfig",
            "ConvNextForImageClassification",
            num_channels=2,
            patch_size=2,
            num_stages=2,
            hidden_sizes=[4, 6],
            depths=[1, 1],
            layer_norm_eps=1e-3,
            num_labels=10,
        ),
        lambda g: (torch.randn(8, 2, 16, 16, generator=g, dtype=torch.float64),),
        177,
        batches=10,
    ),
)
