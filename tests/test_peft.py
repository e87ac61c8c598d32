"""Adapters of peft: LoRA beside weights that are parameters too, on a small Llama."""

from __future__ import annotations

import pytest
import torch

import torchgauge as tg

peft = pytest.importorskip("peft", reason="peft is not installed (extra dev)")
transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra transformers)")

IDS = torch.arange(14).reshape(2, 7)
BASE = 78  # one layer without adapters (tests/zoo/models.py: llama)
PAIRS = 2 * (8 + 8) + 2 * (8 + 4)  # of q_proj and v_proj: rank 2, widths 8 → 8 and 8 → 4


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 6, "head_dim": 4, "vocab_size": 40, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": False}
    base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads)).eval()
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return peft.get_peft_model(base, config).eval()


def test_the_weight_takes_up_its_adapter(model: torch.nn.Module) -> None:
    certificate = tg.certify(model, (), {"input_ids": IDS})
    assert certificate.sound and certificate.complete, certificate
    assert certificate.orbit_dimension == BASE + PAIRS


def test_merging_is_the_same_in_every_gauge(model: torch.nn.Module) -> None:
    group = tg.infer(model, (), {"input_ids": IDS})
    with torch.no_grad():
        before = model(input_ids=IDS).logits
        state = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(group.act(group.random(torch.Generator().manual_seed(0), scale=0.3), state))
        moved = model(input_ids=IDS).logits
        model.merge_adapter()
        merged = model(input_ids=IDS).logits
        model.unmerge_adapter()
        model.load_state_dict(state)
    assert (moved - before).abs().max() < 1e-4 * before.abs().max()
    assert (merged - before).abs().max() < 1e-4 * before.abs().max()
