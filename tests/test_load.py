"""MODEL → module and inputs: what can be read, and what is refused with cause and remedy."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from torchgauge.errors import CheckpointError, InputError, ModelError
from torchgauge.load import load

transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
TEXT = {**SMALL, "vocab_size": 64}
IMAGE = {**SMALL, "image_size": 16, "patch_size": 8}
BART = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
BART |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": 64}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
STAGES = {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]}

CONFIGS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "LlamaForCausalLM": (TEXT, {"input_ids"}),
    "GPT2LMHeadModel": ({"n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 64, "n_positions": 16}, {"input_ids"}),
    "BertModel": (TEXT, {"input_ids"}),
    "ViTForImageClassification": (IMAGE, {"pixel_values"}),
    "ResNetForImageClassification": ({"embedding_size": 8, **STAGES}, {"pixel_values"}),
    "ConvNextForImageClassification": ({**STAGES, "image_size": 32}, {"pixel_values"}),
    "BartForConditionalGeneration": ({**BART, **IDS}, {"input_ids", "decoder_input_ids"}),
    "WhisperModel": (
        {**BART, **IDS, "max_source_positions": 20, "num_mel_bins": 8},
        {"input_features", "decoder_input_ids"},
    ),
    "CLIPModel": ({"text_config": TEXT, "vision_config": IMAGE}, {"input_ids", "pixel_values"}),
}


def folder(path: Path, name: str, values: dict[str, Any]) -> Path:
    config = getattr(transformers, name).config_class(**values, architectures=[name])
    config.save_pretrained(path)
    return path


def with_weights(path: Path, name: str = "LlamaForCausalLM", **save: Any) -> Path:
    cls = getattr(transformers, name)
    torch.manual_seed(0)
    cls(cls.config_class(**CONFIGS[name][0])).save_pretrained(path, **save)
    return path


@pytest.mark.parametrize("name", CONFIGS)
def test_config_alone_makes_a_meta_model_and_its_inputs_run(tmp_path: Path, name: str) -> None:
    values, inputs = CONFIGS[name]
    loaded = load(str(folder(tmp_path, name, values)))
    assert type(loaded.model).__name__ == name
    assert set(loaded.kwargs) == inputs
    assert all(p.is_meta for p in loaded.model.parameters())
    assert not loaded.model.training
    assert any("only the architecture" in note for note in load(str(tmp_path), weights=True).notes)
    with torch.no_grad():
        type(loaded.model)(loaded.model.config).eval()(**loaded.kwargs)


def test_an_architecture_that_is_not_named_is_built_as_the_base_model(tmp_path: Path) -> None:
    transformers.BertConfig(**TEXT).save_pretrained(tmp_path)
    assert type(load(str(tmp_path)).model).__name__ == "BertModel"


@pytest.mark.parametrize("save", [{}, {"max_shard_size": "4KB"}], ids=["one file", "shards"])
def test_weights_are_read(tmp_path: Path, save: dict[str, Any]) -> None:
    with_weights(tmp_path, **save)
    assert all(p.is_meta for p in load(str(tmp_path)).model.parameters())
    loaded = load(str(tmp_path), weights=True)
    assert loaded.notes == ()
    stored = {k: v for file in tmp_path.glob("*.safetensors") for k, v in load_file(file).items()}
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == bool(save)
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, stored[name])


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    with_weights(tmp_path, "GPT2LMHeadModel")
    model = load(str(tmp_path), weights=True).model
    state = model.state_dict()
    assert state["lm_head.weight"].data_ptr() == state["transformer.wte.weight"].data_ptr()


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with_weights(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    notes = load(str(tmp_path), weights=True).notes
    assert any("model.norm.weight" in note for note in notes)


def test_shapes_that_do_not_fit(tmp_path: Path) -> None:
    with_weights(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 20}))
    for weights in (False, True):
        with pytest.raises(CheckpointError, match=r"shape \[.*12.*\] in the file, \[.*20.*\] by config.json"):
            load(str(tmp_path), weights=weights)


def test_weights_of_another_model(tmp_path: Path) -> None:
    with_weights(tmp_path)
    save_file({"other": torch.ones(2)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="no name in the files"):
        load(str(tmp_path), weights=True)


@pytest.mark.parametrize("weights", [False, True])
def test_damaged_weights(tmp_path: Path, weights: bool) -> None:
    path = with_weights(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        load(str(tmp_path), weights=weights)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "not valid JSON"),
        ("[]", "names no model_type"),
        ('{"a": 1}', "names no model_type"),
        ('{"model_type": "nosuch"}', "cannot read it"),
        ('{"model_type": "nosuch", "auto_map": {"AutoModel": "x.Y"}}', "code of its own"),
        ('{"model_type": "llama", "hidden_size": 10, "num_attention_heads": 0}', "makes no model|cannot read it"),
        ('{"model_type": "llama", "hidden_size": "wide"}', "makes no model|cannot read it"),
    ],
)
def test_bad_configs(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=match) as caught:
        load(str(tmp_path))
    assert caught.value.remedy


# -- exported programs -----------------------------------------------------------------------------------------
def test_exported_program(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2)).eval()
    x = torch.randn(5, 4)
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "m.pt2")
    loaded = load(str(tmp_path / "m.pt2"))
    assert [name for name, _ in loaded.model.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert torch.equal(loaded.model(*loaded.args), model(x))


@pytest.mark.parametrize("content", [b"", b"not a program", b"PK\x03\x04 broken"])
def test_bad_program(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.pt2").write_bytes(content)
    with pytest.raises(ModelError, match="not an exported program"):
        load(str(tmp_path / "m.pt2"))


def test_pickles_and_bare_weights_are_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "m.pt")
    save_file({"a": torch.ones(2)}, tmp_path / "m.safetensors")
    for name in ("m.pt", "m.safetensors"):
        with pytest.raises(ModelError, match="not a model"):
            load(str(tmp_path / name))


@pytest.mark.parametrize("spec", ["gpt2", "nosuch/folder", "nosuch.pt2", ":", "a-b:c", "x:"])
def test_no_such_model(spec: str) -> None:
    with pytest.raises(ModelError) as caught:
        load(spec)
    assert caught.value.where
    assert caught.value.remedy


# -- package.module:callable -----------------------------------------------------------------------------------
SOURCE = """
import torch
from torch import nn

linear = nn.Linear(3, 2)

def alone(): return nn.Linear(3, 2)
def pair(): return nn.Linear(3, 2), (torch.randn(4, 3),)
def tensor(): return nn.Linear(3, 2), torch.randn(4, 3)
def triple(): return nn.Bilinear(3, 3, 2), (torch.randn(4, 3),), {"input2": torch.randn(4, 3)}
def named(): return nn.Linear(3, 2), {"input": torch.randn(4, 3)}
def fails(): raise ValueError("no luck")
def number(): return 3
def argument(width): return nn.Linear(width, 2)
def toomany(): return nn.Linear(3, 2), (torch.randn(4, 3), 1)
def wrong(): return nn.Linear(3, 2), 5
def empty(): return nn.ReLU(), (torch.randn(3),)
class Family:
    @staticmethod
    def member(): return nn.Linear(3, 2), (torch.randn(4, 3),)
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"models_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    return name


@pytest.mark.parametrize("function", ["pair", "tensor", "triple", "named", "Family.member"])
def test_callable(models: str, function: str) -> None:
    loaded = load(f"{models}:{function}")
    assert loaded.model(*loaded.args, **loaded.kwargs).shape == (4, 2)


@pytest.mark.parametrize(
    ("function", "error", "match"),
    [
        ("alone", InputError, "example inputs are missing"),
        ("linear", InputError, "example inputs are missing"),
        ("toomany", InputError, "missing or too many"),
        ("wrong", InputError, "args must be a tuple"),
        ("fails", ModelError, "it raised ValueError: no luck"),
        ("number", ModelError, "gives a int, not a torch.nn.Module"),
        ("argument", ModelError, "called without arguments"),
        ("nosuch", ModelError, "has no 'nosuch'"),
        ("empty", ModelError, "no parameters"),
    ],
)
def test_bad_callable(models: str, function: str, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        load(f"{models}:{function}")


def test_a_module_that_does_not_import(models: str, tmp_path: Path) -> None:
    (tmp_path / "broken_module_for_a_test.py").write_text("import nosuch_module_for_a_test")
    with pytest.raises(ModelError, match="no module named 'nosuch_module_for_a_test'"):
        load("broken_module_for_a_test:f")
    (tmp_path / "broken_syntax_for_a_test.py").write_text("def f(:")
    with pytest.raises(ModelError, match="SyntaxError"):
        load("broken_syntax_for_a_test:f")
