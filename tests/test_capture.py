"""capture: every kind of module, input and output becomes a flat functional graph, and the model stays as it was."""

from __future__ import annotations

import subprocess
import sys
from collections import UserDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from torchgauge.capture import Captured, call_of, capture, node_shape, state_of
from torchgauge.errors import CaptureError, InputError, ModelError
from torchgauge.nesting import observe

Pair = namedtuple("Pair", ["left", "right"])


def replay(captured: Captured, inputs: dict[str, Any] | None = None) -> list[Tensor]:
    """Run the captured graph on the model's own tensors."""
    tables = {"param": captured.params, "buffer": captured.buffers, "const": captured.constants}
    values = []
    for node in captured.graph_module.graph.find_nodes(op="placeholder"):
        role, name = captured.placeholders[node.name]
        values.append(captured.example_inputs[node.name] if role == "input" else tables[role][name])
    with torch.no_grad():
        return list(captured.graph_module(*[v.clone() for v in values]))


def check(model: nn.Module, args: Any = (), kwargs: dict[str, Any] | None = None) -> Captured:
    """The graph is flat and functional, computes what the model computes, and every node knows its line."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    captured = capture(model, args, kwargs)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    call = call_of(model, args, kwargs)
    with torch.no_grad():
        expected, dropped = observe(model(*call.args, **call.kwargs))
    model.load_state_dict(state)
    got = replay(captured)
    assert [o.name for o in captured.outputs] == [name for name, _ in expected]
    assert list(captured.dropped_outputs) == dropped
    for value, (_, reference) in zip(got, expected, strict=True):
        torch.testing.assert_close(value, reference, rtol=1e-5, atol=1e-5)
    for node in captured.graph_module.graph.find_nodes(op="placeholder"):
        assert node.name in captured.placeholders
    for node in captured.graph_module.graph.nodes:
        if node.op == "call_function":
            assert captured.source(node), node
            if isinstance(node.target, torch._ops.OpOverload):
                assert not node.target._schema.is_mutable, node
        assert node.op in ("placeholder", "call_function", "output"), node
    return captured


def targets(captured: Captured) -> list[str]:
    return [str(n.target) for n in captured.graph_module.graph.nodes if n.op == "call_function"]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.second = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).relu()
        return self.second(hidden)


# -- what is captured --------------------------------------------------------------------------------------------
def test_composite_operators_stay_whole() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 2))
    captured = check(model, torch.randn(3, 4))
    assert targets(captured) == [
        "aten.linear.default",
        "aten.layer_norm.default",
        "aten.gelu.default",
        "aten.linear.default",
    ]
    assert node_shape(captured.outputs[0].node) == (3, 2)
    assert captured.outputs[0].name == "output"
    assert node_shape(captured.graph_module.graph.output_node()) == ()


def test_layer_of_torch_is_not_hidden_in_its_fused_path() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    enabled = torch.backends.mha.get_fastpath_enabled()
    captured = check(nn.TransformerEncoder(layer, 2), torch.randn(2, 3, 8))
    assert "aten.scaled_dot_product_attention.default" in targets(captured)
    assert torch.backends.mha.get_fastpath_enabled() == enabled


@pytest.mark.parametrize(
    "model",
    [
        nn.LSTM(4, 5, 2, batch_first=True, bidirectional=True),
        nn.GRU(4, 5),
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
        nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), nn.ReLU(inplace=True), nn.MaxPool1d(2)).eval(),
    ],
    ids=["lstm", "gru", "weight_norm", "convolution"],
)
def test_modules(model: nn.Module) -> None:
    check(model, torch.randn(3, 2, 4))


@pytest.mark.parametrize("kind", ["causal", "banded", "bool", "keyword"])
def test_masks_of_torch_transformers_need_no_hint(kind: str) -> None:
    """torch reads the values of a mask to find out whether it is causal, which no tracing can."""
    detect = nn.modules.transformer._detect_is_causal_mask
    torch.manual_seed(0)
    layer = nn.TransformerDecoderLayer(8, 2, 6, 0.0, batch_first=True)
    model = nn.TransformerDecoder(layer, 2).eval()
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    if kind == "banded":
        mask = mask + torch.full((5, 5), float("-inf")).tril(-3)
    x, memory, mask = torch.randn(2, 5, 8), torch.randn(2, 4, 8), mask.isinf() if kind == "bool" else mask
    check(model, (x, memory), {"tgt_mask": mask}) if kind == "keyword" else check(model, (x, memory, mask))
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 6, 0.0, batch_first=True), 1)
    check(encoder.eval(), (x, mask))
    assert nn.modules.transformer._detect_is_causal_mask is detect


def test_module_that_insists_on_keywords() -> None:
    """The module of an exported program takes by keyword what was exported by keyword."""

    class Scaled(Net):
        def forward(self, x: Tensor, *, scale: Tensor, shift: Tensor) -> Tensor:
            return super().forward(x) * scale + shift

    kwargs = {"shift": torch.ones(4), "scale": torch.full((4,), 2.0)}
    program = torch.export.export(Scaled(), (torch.randn(3, 4),), kwargs)
    module = program.module(check_guards=False)
    captured = check(module, (torch.randn(3, 4),), dict(reversed(kwargs.items())))
    # the lines are those of the user, not of the code that was generated
    (relu,) = [n for n in captured.graph_module.graph.nodes if "relu" in str(n.target)]
    assert captured.source(relu).startswith("test_capture.py:")
    net = torch.export.export(Net(), (), {"x": torch.randn(3, 4)}).module(check_guards=False)
    check(net, (), {"x": torch.randn(3, 4)})


def test_ties_have_one_canonical_name() -> None:
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "c": nn.Linear(4, 4, bias=False)})
    model["b"].weight = model["a"].weight
    model["c"].weight = nn.Parameter(model["a"].weight.data)  # another parameter over the same memory

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = model
            self.register_buffer("table", torch.arange(4.0))
            self.register_buffer("again", self.table)

        def forward(self, x: Tensor) -> Tensor:
            return self.parts["c"](self.parts["b"](self.parts["a"](x))) + self.table * self.again

    captured = check(Tied(), torch.randn(2, 4))
    assert captured.ties == {
        "parts.b.weight": "parts.a.weight",
        "parts.c.weight": "parts.a.weight",
        "again": "table",
    }
    assert set(captured.params) == {"parts.a.weight", "parts.a.bias", "parts.b.bias"}
    names = [name for role, name in captured.placeholders.values() if role == "param"]
    assert len(names) == len(set(names)) == 3


def test_buffers_and_constants() -> None:
    class Tables(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.register_buffer("hidden", torch.randn(4), persistent=False)
            self.plain = torch.randn(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) * self.hidden + self.plain * torch.tensor(2.0)

    model = Tables()
    captured = check(model, torch.randn(2, 4))
    assert set(captured.buffers) == {"hidden"}
    assert captured.constants["plain"] is model.plain or torch.equal(captured.constants["plain"], model.plain)
    assert {name for role, name in captured.placeholders.values() if role == "const"} == set(captured.constants)


def test_batch_norm_in_training_mode_changes_and_returns_no_statistics() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)).train()
    captured = check(model, torch.randn(2, 3, 8, 8))
    assert [o.name for o in captured.outputs] == ["output"]
    assert targets(captured) == ["aten.conv2d.default", "aten.batch_norm.default", "aten.relu.default"]
    assert all(m.training for m in model.modules())


# -- inputs and outputs ------------------------------------------------------------------------------------------
def test_nested_inputs() -> None:
    @dataclass
    class Batch:
        x: Tensor
        scale: float

    class Nested(Net):
        def forward(self, batch: Batch, *rest: Tensor, pair: Pair, extra: Any, **more: Any) -> Tensor:  # type: ignore[override]
            y = super().forward(batch.x * batch.scale) + rest[0]
            return y + pair.left + pair.right["deep"][1] + extra["t"] + more["last"]

    x = torch.randn(2, 4)
    pair = Pair(x + 1, {"deep": [None, x + 2]})
    captured = check(Nested(), (Batch(x, 2.0), x), {"pair": pair, "extra": UserDict(t=x + 3), "last": x + 4})
    names = [name for role, name in captured.placeholders.values() if role == "input"]
    assert names == ["batch.x", "rest[0]", "pair.left", "pair.right['deep'][1]", "extra['t']", "last"]
    assert all(isinstance(v, Tensor) for v in captured.example_inputs.values())
    assert len(captured.example_inputs) == 6


def test_nested_outputs() -> None:
    class FancyCache:
        def __init__(self, x: Tensor) -> None:
            self.x = x

    @dataclass
    class Output:
        logits: Tensor
        hidden: tuple[Tensor, ...]
        state: FancyCache
        past_key_values: Any
        steps: int
        loss: Tensor | None = None

    class Fancy(Net):
        def forward(self, x: Tensor) -> Output:  # type: ignore[override]
            y = super().forward(x)
            return Output(y, (x + 1, x + 2), FancyCache(y), ((y, y),), 3)

    captured = check(Fancy(), torch.randn(2, 4))
    assert [o.name for o in captured.outputs] == ["logits", "hidden[0]", "hidden[1]"]
    assert captured.dropped_outputs == ("state", "past_key_values", "steps")


def test_tuple_and_dict_outputs() -> None:
    class Both(Net):
        def forward(self, x: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
            y = super().forward(x)
            return y, y.argmax(-1), {"aux": y.exp(), "list": [y]}, y

    captured = check(Both(), torch.randn(2, 4))
    assert [o.name for o in captured.outputs] == ["outputs[0]", "outputs[2].aux", "outputs[2].list[0]", "outputs[3]"]
    assert captured.dropped_outputs == ("outputs[1]",)
    assert captured.outputs[0].node is captured.outputs[3].node


def test_no_inputs_and_an_input_as_output() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(3))

        def forward(self, x: Tensor | None = None) -> Any:
            return (self.w, self.w.exp()) if x is None else (x, self.w)

    assert len(check(Constant()).outputs) == 2
    captured = check(Constant(), torch.randn(2))
    assert captured.placeholders[captured.outputs[0].node.name] == ("input", "x")


# -- devices -----------------------------------------------------------------------------------------------------
def test_meta_model_takes_real_and_meta_inputs() -> None:
    with torch.device("meta"):
        model = Net()
    real, meta = capture(model, torch.randn(3, 4)), capture(model, torch.empty(3, 4, device="meta"))
    assert targets(real) == targets(meta)
    assert all(p.is_meta for p in real.params.values())
    assert node_shape(real.outputs[0].node) == (3, 4)


def test_fake_model() -> None:
    with FakeTensorMode():
        model = Net()
    captured = capture(model, torch.randn(3, 4))
    assert targets(captured).count("aten.linear.default") == 2


def test_model_half_on_meta_is_refused() -> None:
    model = Net()
    model.first.to("meta")
    with pytest.raises(ModelError, match="meta"):
        capture(model, torch.randn(3, 4))


# -- no side effects ---------------------------------------------------------------------------------------------
def test_attributes_written_by_forward_are_put_back() -> None:
    class Counts(Net):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.note = "seen"
            return super().forward(x)

    model = Counts().eval()
    model.first.train()
    capture(model, torch.randn(3, 4))
    assert model.calls == 0
    assert not hasattr(model, "note")
    assert model.first.training
    assert not model.training


# -- sources -----------------------------------------------------------------------------------------------------
def test_sources_name_the_line_of_the_user_and_the_module() -> None:
    captured = check(nn.Sequential(Net(), Net()), torch.randn(3, 4))
    nodes = {n.name: captured.source(n) for n in captured.graph_module.graph.nodes if n.op == "call_function"}
    line = Net.forward.__code__.co_firstlineno
    assert nodes["linear"] == f"test_capture.py:{line + 1} in forward (0.first)"
    assert nodes["relu"] == f"test_capture.py:{line + 1} in forward (0)"
    assert nodes["linear_3"] == f"test_capture.py:{line + 2} in forward (1.second)"


def test_source_in_torch_if_there_is_no_other() -> None:
    captured = capture(nn.Sequential(nn.Linear(2, 2)), torch.randn(1, 2))
    assert captured.source(captured.outputs[0].node).startswith("linear.py:")


# -- errors ------------------------------------------------------------------------------------------------------
class Branches(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else x


def test_data_dependent_branch() -> None:
    with pytest.raises(CaptureError) as caught:
        capture(Branches(), torch.randn(3, 4))
    assert "test_capture.py" in caught.value.where
    assert "tensor operations" in caught.value.remedy
    with torch.device("meta"):
        model = Branches()
    with pytest.raises(CaptureError):
        capture(model, torch.randn(3, 4))


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((), {}), ((torch.randn(3, 4), 1), {}), ((), {"y": torch.randn(3, 4)}), ((torch.randn(3, 5),), {}), (("x",), {})],
)
def test_inputs_that_do_not_fit(args: Any, kwargs: Any) -> None:
    model = Net()
    with pytest.raises(InputError) as caught:
        capture(model, args, kwargs)
    assert caught.value.remedy
    if args and isinstance(args[0], Tensor) and args[0].shape[-1] == 5:
        with pytest.raises(InputError):
            capture(model.to("meta"), args, kwargs)


@pytest.mark.parametrize("model", [Net, lambda x: x, torch.jit.script(Net()), nn.LazyLinear(3), torch.compile(Net())])
def test_not_a_module_that_can_be_traced(model: Any) -> None:
    with pytest.raises(ModelError) as caught:
        capture(model, torch.randn(3, 4))
    assert caught.value.remedy


def test_no_floating_output() -> None:
    class Classes(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).argmax(-1)

    with pytest.raises(ModelError, match="no floating-point output"):
        capture(Classes(), torch.randn(3, 4))


def test_state_of_names_every_tensor_once() -> None:
    model = nn.ModuleList([nn.BatchNorm1d(2)])
    model.append(model[0])
    state = state_of(model)
    assert set(state.params) == {"0.weight", "0.bias"}
    assert state.ties["1.running_var"] == "0.running_var"
    assert len(list(state.tensors())) == 5


# -- Hugging Face ------------------------------------------------------------------------------------------------
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 50,
}


def build(name: str, **config: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    model = getattr(transformers, name)
    return model(model.config_class(**SMALL | config)).eval()


def tokens() -> Tensor:
    return torch.randint(0, 50, (2, 6))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_llama(implementation: str) -> None:
    model = build("LlamaForCausalLM", num_key_value_heads=2, tie_word_embeddings=True)
    model.set_attn_implementation(implementation)
    captured = check(model, (), {"input_ids": tokens()})
    assert [o.name for o in captured.outputs] == ["logits"]
    assert captured.dropped_outputs == ()
    assert captured.ties == {"lm_head.weight": "model.embed_tokens.weight"}
    assert set(captured.buffers) == {"model.rotary_emb.inv_freq", "model.rotary_emb.original_inv_freq"}
    linear = next(n for n in captured.graph_module.graph.nodes if "linear" in str(n.target))
    assert captured.source(linear).startswith("modeling_llama.py:")
    assert captured.source(linear).endswith("(model.layers.0.self_attn.q_proj)")


def test_cache_is_dropped_when_it_is_asked_for() -> None:
    captured = capture(build("LlamaForCausalLM"), (), {"input_ids": tokens(), "use_cache": True})
    assert [o.name for o in captured.outputs] == ["logits"]
    assert captured.dropped_outputs == ("past_key_values",)


def test_encoder_and_mixture() -> None:
    mask = torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0]])
    check(build("BertForMaskedLM"), (), {"input_ids": tokens(), "attention_mask": mask})
    model = build("MixtralForCausalLM", num_local_experts=4, num_key_value_heads=2)
    implementation = model.config._experts_implementation
    captured = check(model, (), {"input_ids": tokens()})
    assert all(t.startswith(("aten.", "<built-in")) for t in targets(captured)), targets(captured)
    assert model.config._experts_implementation == implementation


def test_missing_tokens_is_an_input_error() -> None:
    with pytest.raises(InputError, match="input_ids"):
        capture(build("LlamaForCausalLM"))


SEVENTY_BILLION = """
import re, torch
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
from torchgauge.capture import capture
config = LlamaConfig(hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64,
                     num_key_value_heads=8, vocab_size=128256)
with torch.device("meta"):
    model = LlamaForCausalLM(config).eval()
captured = capture(model, torch.zeros(1, 8, dtype=torch.long))
# not ru_maxrss: a new process starts with that of the one that made it
peak = re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]
print(sum(p.numel() for p in captured.params.values()), peak)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_seventy_billion_parameters_on_meta() -> None:
    pytest.importorskip("transformers")
    done = subprocess.run([sys.executable, "-c", SEVENTY_BILLION], capture_output=True, text=True, check=True)
    parameters, kilobytes = (int(n) for n in done.stdout.split())
    assert parameters > 69e9
    assert kilobytes < 2e6
