"""Why a space carries no larger group: reasons, counterfactuals and paragraphs."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import torchgauge as tg
from torchgauge.cli import run
from torchgauge.errors import InputError
from torchgauge.explain import Why
from torchgauge.gauge import GaugeGroup


def mlp(activation: nn.Module) -> GaugeGroup:
    model = nn.Sequential(nn.Linear(4, 5), activation, nn.Linear(5, 6), activation, nn.Linear(6, 3))
    return tg.infer(model, (torch.randn(7, 4),))


def llama(tied: bool, layers: int = 2) -> GaugeGroup:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=8,
        intermediate_size=6,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16,
        tie_word_embeddings=tied,
    )
    return tg.infer(transformers.LlamaForCausalLM(config).eval(), (torch.randint(0, 40, (2, 6)),))


def only(group: GaugeGroup, name: str) -> Why:
    (why,) = group.why(name)
    assert str(why) == why.paragraph and "\n" not in why.paragraph
    return why


def without(why: Why) -> dict[str, str | None]:
    return {r.what: r.without for r in why.reasons}


# -- feed-forward nets -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("activation", "keeps", "name"),
    [
        (nn.ReLU(), "permutations of 5 with positive scales", "relu"),
        (nn.ReLU6(), "signed permutations of 5", "clamp"),
        (nn.Tanh(), "signed permutations of 5", "tanh"),
        (nn.GELU(), "permutations of 5", "gelu"),
    ],
)
def test_an_activation_stands_between_hidden_units_and_all_matrices(
    activation: nn.Module, keeps: str, name: str
) -> None:
    why = only(mlp(activation), "0.weight[0]")
    assert why.group == keeps
    assert without(why) == {f"{name} (entry by entry)": "GL(5)"}
    assert why.reasons[0].sources[0].endswith("(1)")
    assert why.narrowed[0].before == "GL" and why.narrowed[0].after == "permutations"
    assert "GL(5)" in why.paragraph and keeps in why.paragraph


def test_inputs_and_outputs_are_part_of_the_function() -> None:
    group = mlp(nn.ReLU())
    for name, held in (("0.weight[1]", "the input"), ("4.weight[0]", "is observed as it is")):
        why = only(group, name)
        assert why.group == "nothing" and not why.reasons
        assert held in why.fixed[0][0]
        assert "no change inside the model frees it" in why.paragraph


class Unknown(nn.Module):
    """A linear layer behind an operator that has no rule."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.b(torch.tanh(self.a(x)))
        q = torch.linalg.qr(y).Q
        return self.c(q)


def test_an_unknown_operator_is_named_with_its_line_and_what_it_costs_at_most() -> None:
    group = tg.infer(Unknown(), (torch.randn(7, 4),))
    why = only(group, "b.bias")
    assert why.group == "nothing"
    (reason,) = why.reasons
    assert "aten.linalg_qr.default" in reason.what and reason.remedy == "write a rule for it"
    assert "test_why.py" in reason.sources[0] and "in forward" in reason.sources[0]
    assert "at most GL(5)" in why.paragraph
    assert [r.reason for r in group.rigid if r.space == "everything it reads"] == ["no rule for aten.linalg_qr.default"]


def test_a_shared_layer_is_a_reason() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.inner, self.last = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.first(x)
            return self.last(self.inner(torch.tanh(self.inner(y))))

    why = only(tg.infer(Shared(), (torch.randn(7, 4),)), "first.bias")
    assert why.group == "signed permutations of 5"
    assert {"GL(5)"} <= set(without(why).values())
    assert any("used in 2 places" in what for what in without(why))
    assert "give each use its own weights" in why.paragraph


# -- transformers ----------------------------------------------------------------------------------------------
def test_the_final_gain_and_the_tied_embedding_together_leave_signed_permutations() -> None:
    why = only(llama(tied=True), "model.embed_tokens.weight[1]")
    assert why.group == "signed permutations of 8"
    found = without(why)
    assert found["the gain model.norm.weight"] == "O(8)"
    assert found["model.embed_tokens.weight, tied to lm_head.weight"] == "O(8)"
    assert why.largest == "GL(8)" and len(why.together) == 2
    assert "without either one it would carry O(8)" in why.paragraph
    assert "untie model.embed_tokens.weight" in why.paragraph and "fold model.norm.weight" in why.paragraph
    sources = [s for r in why.reasons for s in r.sources]
    assert any("modeling_llama.py" in s and "(lm_head)" in s for s in sources)
    assert any("modeling_llama.py" in s and "(model.norm)" in s for s in sources)


def test_the_counterfactual_of_a_tie_is_the_untied_network() -> None:
    tied, untied = llama(tied=True), llama(tied=False)
    residual = only(untied, "model.embed_tokens.weight[1]")
    assert (
        residual.group
        == "O(8)"
        == without(only(tied, "model.embed_tokens.weight[1]"))["model.embed_tokens.weight, tied to lm_head.weight"]
    )
    assert set(without(residual).values()) == {"GL(8)"}
    assert "5 normalisations" in residual.paragraph
    # a gain belongs to the space that it multiplies
    assert [s.size for s in untied.select("model.norm.weight")] == [8]
    assert untied.why("model.norm.weight")[0].group == "O(8)"


def test_gates_need_two_things_taken_away() -> None:
    why = only(llama(tied=False), "model.layers.0.mlp.up_proj.weight[0]")
    assert why.group == "permutations of 6"
    assert without(why)["silu (entry by entry)"] == "permutations of 6 with non-zero scales"
    assert why.largest == "GL(6)" and len(why.together) == 2


def test_a_rotary_embedding_stands_between_keys_and_all_matrices() -> None:
    why = only(llama(tied=False), "model.layers.1.self_attn.k_proj.weight[0]")
    assert why.group == "C*^2 (one complex number per rotary pair)"
    assert without(why)["the rotary embedding (it turns fixed pairs)"] == "GL(4)"
    value = only(llama(tied=False), "model.layers.1.self_attn.v_proj.weight[0]")
    assert value.group == "GL(4)" and "largest group" in value.paragraph


def test_layer_norms_fix_ones_and_a_written_activation_is_one_reason() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=40, n_embd=8, n_layer=2, n_head=2, n_positions=8, n_inner=6, bos_token_id=0, eos_token_id=0
    )
    group = tg.infer(transformers.GPT2LMHeadModel(config).eval(), (torch.randint(0, 40, (2, 6)),))
    residual = only(group, "transformer.wpe.weight[1]")
    assert residual.group == "permutations of 8 and one sign"
    assert without(residual)["the gain transformer.ln_f.weight"] == "O(8) fixing 1 and one sign"
    assert without(residual)["transformer.wte.weight, tied to lm_head.weight"] == "O(8) fixing 1 and one sign"
    hidden = only(group, "transformer.h.0.mlp.c_fc.bias")
    assert [r.what for r in hidden.reasons] == ["x^3, tanh, a sum with constants and a product (entry by entry)"]
    assert hidden.largest == "GL(6)"
    heads = group.why("transformer.h.0.attn.c_proj.weight[0]")[0]
    assert heads.group == "permutations of 2 blocks, and in each of 2 blocks GL(4)"
    assert without(heads)["the division into blocks (heads, groups)"] == "GL(8)"


def test_explaining_changes_nothing() -> None:
    group = llama(tied=True)
    before = repr(group.to_dict())
    params = {n: torch.randn(t.shape, dtype=torch.float64) for n, t in group.program.params.items()}
    element = group.random(torch.Generator().manual_seed(0))
    moved = group.act(element, params)
    for space in group.spaces:
        group.why(space)
    again = group.act(element, params)
    assert repr(group.to_dict()) == before
    assert all(torch.equal(moved[n], again[n]) for n in moved)


def test_narrowings_name_the_gain_and_the_tie() -> None:
    reasons = [r.reason for r in llama(tied=True).rigid]
    tie = "the gain model.norm.weight and model.embed_tokens.weight, tied to lm_head.weight together: O → permutations"
    assert tie in reasons


# -- names -----------------------------------------------------------------------------------------------------
def test_a_space_goes_by_many_names() -> None:
    group = llama(tied=True)
    hidden = group.select("model.layers.0.mlp.gate_proj.weight[0]")
    factor = next(f for f in group.factors if f.kind == "permutation" and f.size == 6)
    assert group.select(factor.name) == hidden == group.select(hidden[0].name)
    assert set(hidden) < set(group.select("model.layers.0.mlp"))
    # a tied name means the parameter that it is
    assert group.select("lm_head.weight[1]") == group.select("model.embed_tokens.weight[1]")
    assert len(group.select("lm_head.weight")) == 2


def test_every_factor_names_a_space() -> None:
    for group in (llama(tied=True), llama(tied=False), mlp(nn.ReLU())):
        for factor in group.factors:
            assert group.select(factor.name), factor


@pytest.mark.parametrize("name", ["nothing.like.it", "", "model.layers.0.mlp.gate_proj.weight[7]"])
def test_an_unknown_name_lists_what_there_is(name: str) -> None:
    with pytest.raises(InputError) as caught:
        llama(tied=True).why(name)
    assert "model.layers.0.mlp.{gate_proj.weight, up_proj.weight, down_proj.weight} (and 1 alike)" in str(caught.value)


def test_a_near_miss_is_pointed_out() -> None:
    with pytest.raises(InputError, match="Did you mean model.norm.weight"):
        llama(tied=True).why("model.norm.wait")


# -- the command -----------------------------------------------------------------------------------------------
def relu_net() -> tuple[nn.Module, tuple[torch.Tensor]]:
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), (torch.randn(7, 4),)


def llama_net() -> tuple[nn.Module, tuple[torch.Tensor]]:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=8, intermediate_size=6, num_hidden_layers=2, num_attention_heads=2
    )
    return transformers.LlamaForCausalLM(config).eval(), (torch.randint(0, 40, (2, 6)),)


def spec(function: Callable[[], Any]) -> str:
    return f"{function.__module__}:{function.__name__}"


def test_the_command_prints_a_paragraph(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", spec(relu_net), "--why", "{0,2}"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "5 wide, carries permutations of 5 with positive scales. What stands in the way is relu" in text


def test_the_command_takes_names_as_the_table_shows_them(capsys: pytest.CaptureFixture[str]) -> None:
    for name in (
        "model.layers.{0-1}.mlp.{gate_proj, up_proj, down_proj}",
        "model.layers.{0-1}.mlp.{gate_proj.weight, …} ×2",
    ):
        assert run(["inspect", spec(llama_net), "--why", name, "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert said["schema_version"] == 1 and said["left_out"] == 0
        (why,) = [w for w in said["why"] if w["size"] == 6]
        assert why["alike"] == 2 and why["largest"] == "GL(6)"
        assert why["reasons"][0]["without"] == "permutations of 6 with non-zero scales"


def test_the_command_refuses_an_unknown_space(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", spec(relu_net), "--why", "nowhere"]) == 2
    caught = capsys.readouterr()
    assert not caught.out
    assert "nowhere" in caught.err and "The spaces are" in caught.err
