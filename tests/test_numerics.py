"""numerics: double precision through and through, pure, and open to every transform of torch.func."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchgauge.capture import capture
from torchgauge.errors import InputError, ModelError
from torchgauge.numerics import Promote, evaluator, randomise, relative_defect

State = dict[str, Tensor]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -- Promote -----------------------------------------------------------------------------------------------------
PROMOTED: dict[str, Callable[[Tensor], Tensor]] = {
    "float": lambda x: x.float(),
    "half": lambda x: x.half(),
    "bfloat16": lambda x: x.bfloat16(),
    "to": lambda x: x.to(torch.float32),
    "to device": lambda x: x.to("cpu", torch.bfloat16),
    "to keyword": lambda x: x.to(dtype=torch.float16),
    "type": lambda x: x.type(torch.float32),
    "type name": lambda x: x.type("torch.FloatTensor"),
    "type class": lambda x: x.type(torch.FloatTensor),
    "softmax": lambda x: F.softmax(x, dim=-1, dtype=torch.float32),
    "softmax method": lambda x: x.softmax(-1, dtype=torch.float32),
    "sum": lambda x: x.sum(-1, dtype=torch.float32),
    "tensor": lambda x: torch.tensor(1.0),
    "tensor dtype": lambda x: torch.tensor([0.1], dtype=torch.float32),
    "arange": lambda x: torch.arange(0.0, 1.0, 0.1),
    "arange dtype": lambda x: torch.arange(4, dtype=torch.float32),
    "ones": lambda x: torch.ones(2),
    "rand": lambda x: torch.rand(2),
    "linspace": lambda x: torch.linspace(0, 1, 3),
    "full": lambda x: torch.full((2,), torch.finfo(torch.float32).min, dtype=torch.float32),
    "new": lambda x: x.new_full((2,), 0.1, dtype=torch.float32),
    "like": lambda x: torch.zeros_like(x, dtype=torch.float16),
    "division of integers": lambda x: torch.arange(3) / 7,
    "constant": lambda x: x @ torch.ones(3, 3).to(torch.float32),
    "from numpy": lambda x: x * torch.from_numpy(torch.ones(3, dtype=torch.float32).numpy()),
    "list": lambda x: torch.cat([x, torch.zeros(3)]),
    "complex": lambda x: torch.polar(torch.ones_like(x.float()), x).to(torch.complex64).real,
}


@pytest.mark.parametrize("what", PROMOTED)
def test_promoted(what: str) -> None:
    x = torch.randn(3, dtype=torch.float64)
    with Promote():
        assert PROMOTED[what](x).dtype == torch.float64
    assert torch.get_default_dtype() == torch.float32
    assert torch.ones(1).dtype == torch.float32


def test_factories_do_not_round_to_single_precision() -> None:
    with Promote():
        made = [torch.tensor([0.1]), torch.full((1,), 0.1, dtype=torch.float32), torch.ones(1, dtype=torch.int32) / 10]
        steps = torch.arange(0.0, 0.2, 0.1)[1:]
    for value in (*made, steps):
        assert value.tolist() == [0.1]


def test_tensors_of_a_lower_type_are_widened_where_they_meet() -> None:
    low = torch.full((3, 3), 0.1)
    with Promote():
        assert torch.equal(F.linear(torch.eye(3, dtype=torch.float64), low), low.double())
        assert torch.equal(F.linear(low, low), F.linear(low.double(), low.double()))


def test_integers_and_bits_are_left_alone() -> None:
    with Promote():
        assert torch.arange(3).dtype == torch.int64
        assert torch.ones(2, dtype=torch.int8).to(torch.int32).dtype == torch.int32
        assert torch.tensor([True]).dtype == torch.bool
        assert torch.ones(2, dtype=torch.int32).view(torch.float32).shape == (2,)


def test_writes_reach_a_tensor_of_a_lower_type() -> None:
    low = torch.zeros(2)
    out = torch.empty(2)
    with Promote():
        low[0] = 3.0
        low.add_(torch.ones(2))
        torch.add(low, low, out=out)
    assert low.tolist() == [4.0, 1.0]
    assert out.tolist() == [8.0, 2.0]


def test_the_default_type_comes_back_after_an_error_and_after_nesting() -> None:
    mode = Promote()
    with pytest.raises(ZeroDivisionError), mode, mode:
        _ = 1 / 0
    assert torch.get_default_dtype() == torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        with Promote():
            pass
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_derivatives_within() -> None:
    w = torch.randn(3, 3, dtype=torch.float64)

    def f(w: Tensor) -> Tensor:
        with Promote():
            return F.softmax(w, dim=-1, dtype=torch.float32).to(torch.bfloat16) @ torch.ones(3)

    value, along = torch.func.jvp(f, (w,), (torch.randn_like(w),))
    assert value.dtype == along.dtype == torch.float64
    assert torch.func.jacrev(f)(w).dtype == torch.float64
    assert torch.func.jacfwd(f)(w).shape == (3, 3, 3)
    assert torch.func.vmap(f)(torch.stack([w, w])).dtype == torch.float64


# -- evaluator ---------------------------------------------------------------------------------------------------
class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 4)
        self.first.weight.data.mul_(3.0)
        self.third = nn.Linear(4, 8)
        self.third.weight = self.first.weight
        self.register_buffer("scale", torch.tensor([0.1]), persistent=False)
        self.plain = torch.tensor([0.7])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.second(self.first(x.float()).tanh().half().float()) * self.scale
        return {"y": y, "classes": y.argmax(-1), "z": self.third(y) * self.plain}


def test_outputs_are_those_of_capture_in_float64() -> None:
    model, x = Net(), torch.randn(3, 4)
    y = evaluator(model, x)(randomise(model, seeded()))
    assert [t.dtype for t in y] == [torch.float64] * 2
    assert len(y) == len(capture(model, x).outputs)


def test_agrees_with_the_model_and_leaves_it_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.GELU(), nn.Linear(6, 2)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(5, 4)
    state = randomise(model, seeded()) | dict(model.named_parameters())
    kept = {name: value.clone() for name, value in state.items()}
    y = evaluator(model, x)(state)[0]
    assert all(torch.equal(state[name], value) for name, value in kept.items())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.dtype == torch.float32 for p in model.parameters())
    torch.testing.assert_close(y.float(), model(x), rtol=1e-5, atol=1e-6)


def test_state_may_be_partial_and_ties_follow_the_canonical_name() -> None:
    model, x = Net(), torch.randn(3, 4)
    f = evaluator(model, x)
    weight = torch.randn(8, 4, dtype=torch.float64)
    by_name, by_tie = f({"first.weight": weight}), f({"third.weight": weight})
    assert relative_defect(by_name, by_tie) == 0.0
    both = f({"third.weight": torch.zeros_like(weight), "first.weight": weight})
    assert relative_defect(by_name, both) == 0.0
    assert relative_defect(f({}), by_name) > 1e-3


def test_attributes_written_by_forward_are_put_back() -> None:
    class Keeps(Net):
        calls = 0

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            self.calls += 1
            self.scale.mul_(2.0)
            self.last = super().forward(x)
            return self.last

    model = Keeps()
    f, state = evaluator(model, torch.randn(3, 4)), randomise(model, seeded())
    assert relative_defect(f(state), f(state)) == 0.0
    assert model.calls == 0
    assert not hasattr(model, "last")
    assert torch.equal(model.scale, torch.tensor([0.1]))


def test_dropout_is_the_same_at_every_call() -> None:
    model, x = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5)).train(), torch.randn(3, 4)
    f, state = evaluator(model, x), randomise(model, seeded())
    drawn = torch.random.get_rng_state()
    assert relative_defect(f(state), f(state)) == 0.0
    assert (f(state)[0] == 0).any()
    assert torch.equal(drawn, torch.random.get_rng_state())


def test_meta_model_with_a_real_state() -> None:
    real = Net()
    with torch.device("meta"):
        model = Net()
        model.plain = real.plain
    x, state = torch.randn(3, 4), randomise(real, seeded())
    assert relative_defect(evaluator(model, x)(state), evaluator(real, x)(state)) == 0.0
    with pytest.raises(ModelError):
        evaluator(model, x)({})
    with pytest.raises(InputError):
        evaluator(model, x.to("meta"))(state)


def test_state_that_does_not_fit() -> None:
    f = evaluator(Net(), torch.randn(3, 4))
    with pytest.raises(InputError, match="not"):
        f({"fourth.weight": torch.zeros(1)})
    with pytest.raises(InputError, match=r"\[8, 4\]"):
        f({"first.weight": torch.zeros(4, 8)})


@pytest.mark.parametrize(
    "model",
    [
        nn.LSTM(4, 5, batch_first=True),
        nn.MultiheadAttention(4, 2, batch_first=True),
        nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
        nn.Sequential(nn.Conv1d(3, 4, 2), nn.BatchNorm1d(4)).train(),
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 4), dim=None),
        nn.Sequential(nn.Linear(4, 4), nn.RMSNorm(4), nn.GELU(), nn.LayerNorm(4), nn.GroupNorm(3, 3)),
    ],
    ids=["lstm", "attention", "encoder", "batch_norm", "weight_norm", "weight_norm_whole", "norms"],
)
def test_transforms(model: nn.Module) -> None:
    if not isinstance(model, nn.Sequential):
        model.eval()
    x = torch.randn(2, 3, 4)
    args = (x, x, x) if isinstance(model, nn.MultiheadAttention) else x
    check_derivatives(model, evaluator(model, args), randomise(model, seeded()))


def check_derivatives(model: nn.Module, f: Callable[[State], list[Tensor]], state: State) -> None:
    """Forward, reverse and batched derivatives agree, and no step of 1e-9 meets noise of single precision."""
    names = [name for name, _ in model.named_parameters()]
    point = {name: state[name] for name in names}
    rest = {name: value for name, value in state.items() if name in dict(model.named_buffers())}

    def g(q: State) -> Tensor:
        return f(q | rest)[0]

    draw = seeded(1)
    direction = {name: torch.randn(v.shape, generator=draw, dtype=torch.float64) for name, v in point.items()}
    y, along = torch.func.jvp(g, (point,), (direction,))
    assert y.dtype == along.dtype == torch.float64
    size, h = y.abs().max(), 1e-9
    ahead = g({name: point[name] + h * direction[name] for name in names})
    assert (ahead - y - h * along).abs().max() < 1e-13 * size
    cotangent = torch.randn(y.shape, generator=draw, dtype=torch.float64)
    (pulled,) = torch.func.vjp(g, point)[1](cotangent)
    product = sum((pulled[name] * direction[name]).sum() for name in names)
    torch.testing.assert_close(product, (cotangent * along).sum(), rtol=1e-9, atol=1e-9)
    batch = {name: torch.stack([v, 2 * v]) for name, v in direction.items()}
    batched = torch.func.vmap(lambda v: torch.func.jvp(g, (point,), (v,))[1])(batch)
    torch.testing.assert_close(batched[1], 2 * along)
    if not isinstance(model, nn.LSTM):  # torch cannot batch its weights
        several = {name: torch.stack([v, v + h * direction[name]]) for name, v in point.items()}
        torch.testing.assert_close(torch.func.vmap(g)(several)[1], ahead, rtol=1e-9, atol=1e-9)
    one = min(names, key=lambda name: point[name].numel())
    rows = torch.func.jacrev(lambda v: g(point | {one: v}).reshape(-1)[:3])(point[one])
    columns = torch.func.jacfwd(lambda v: g(point | {one: v}).reshape(-1)[:3])(point[one])
    torch.testing.assert_close(rows, columns)


def test_padding_row_has_a_derivative() -> None:
    model = nn.Embedding(3, 2, padding_idx=0)
    f = evaluator(model, torch.tensor([0, 1]))
    rows = torch.func.jacrev(lambda w: f({"weight": w})[0])(torch.randn(3, 2, dtype=torch.float64))
    assert rows[0, :, 0].abs().sum() == 2


# -- relative_defect ---------------------------------------------------------------------------------------------
def test_relative_defect() -> None:
    a = [torch.tensor([1.0, -2.0]), torch.tensor([100.0])]
    assert relative_defect(a, a) == 0.0
    assert relative_defect(a, [torch.tensor([1.0, -2.5]), torch.tensor([101.0])]) == 0.25
    zero, inf, nan = torch.zeros(1), torch.tensor([-math.inf, 1.0]), torch.tensor([math.nan, 1.0])
    assert relative_defect([zero], [zero]) == 0.0
    assert relative_defect([zero], [zero + 1]) == math.inf
    assert relative_defect([inf], [inf]) == 0.0
    assert relative_defect([inf], [torch.ones(2)]) == math.inf
    assert relative_defect([nan], [nan]) == math.inf
    assert relative_defect([torch.empty(0)], [torch.empty(0)]) == 0.0
    with pytest.raises(InputError):
        relative_defect([zero], [])


# -- randomise ---------------------------------------------------------------------------------------------------
def test_randomise_is_generic() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.PReLU(), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(72, 1)
    )
    state = randomise(model, seeded())
    assert set(state) == set(model.state_dict())
    for name, value in state.items():
        if value.is_floating_point():
            assert value.dtype == torch.float64
            assert value.unique().numel() == value.numel(), name
            assert (value != 0).all()
    for name in ("1.weight", "3.weight", "1.running_var"):
        assert (state[name] > 0.4).all()
    assert 0.1 < state["2.weight"].item() < 0.4
    assert (state["1.running_mean"] != 0).all()
    assert float(evaluator(model, torch.randn(2, 3, 5, 5))(state)[0].std()) < 10
    again = randomise(model, seeded())
    assert all(torch.equal(state[name], value) for name, value in again.items())
    assert not torch.equal(randomise(model, seeded(1))["0.weight"], state["0.weight"])


def test_randomise_keeps_ties_and_constant_buffers() -> None:
    model = Net()
    state = randomise(model, seeded())
    assert state["third.weight"] is state["first.weight"]
    assert torch.equal(state["scale"], model.scale.double())


def test_randomise_on_meta() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        tables = Net()
    state = randomise(model, seeded())
    assert not any(value.is_meta for value in state.values())
    assert state["1.num_batches_tracked"].dtype == torch.int64
    with pytest.raises(ModelError, match="meta"):
        randomise(tables, seeded())


# -- Hugging Face ------------------------------------------------------------------------------------------------
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 50,
}


def build(name: str, config: dict[str, Any]) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    model = getattr(transformers, name)
    return model(model.config_class(**config)).eval()


def permuted(state: State, changes: list[tuple[str, int]], n: int) -> State:
    """The hidden units of the named layers in another order: an exact symmetry."""
    order = torch.randperm(n, generator=seeded(2))
    moved = dict(state)
    for name, dim in changes:
        moved[name] = state[name].index_select(dim, order)
    return moved


LLAMA = [("mlp.gate_proj.weight", 0), ("mlp.up_proj.weight", 0), ("mlp.down_proj.weight", 1)]
GPT2 = [("mlp.c_fc.weight", 1), ("mlp.c_fc.bias", 0), ("mlp.c_proj.weight", 0)]
BERT = [("intermediate.dense.weight", 0), ("intermediate.dense.bias", 0), ("output.dense.weight", 1)]
GEMMA = {**SMALL, "num_key_value_heads": 2, "head_dim": 8}
GPT2_CONFIG = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48, "vocab_size": 50}
NO_TOKENS = {"bos_token_id": 0, "eos_token_id": 0}
MODELS: dict[str, tuple[dict[str, Any], str, list[tuple[str, int]]]] = {
    "LlamaForCausalLM": ({**SMALL, "num_key_value_heads": 2}, "model.layers.{}.", LLAMA),
    "Gemma2ForCausalLM": (GEMMA, "model.layers.{}.", LLAMA),
    "Qwen3ForCausalLM": (GEMMA, "model.layers.{}.", LLAMA),
    "GPT2LMHeadModel": ({**GPT2_CONFIG, **NO_TOKENS}, "transformer.h.{}.", GPT2),
    "BertForMaskedLM": (SMALL, "bert.encoder.layer.{}.", BERT),
}


@pytest.mark.parametrize("low", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODELS)
def test_hugging_face_models_are_free_of_single_precision(name: str, implementation: str, low: torch.dtype) -> None:
    config, layers, changes = MODELS[name]
    model = build(name, config).to(low)
    if implementation == "sdpa" and not model._supports_sdpa:
        pytest.skip("it has no such implementation")
    model.set_attn_implementation(implementation)
    mask = torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0]])
    tokens = torch.randint(0, 50, (2, 6), generator=seeded())
    f = evaluator(model, (), {"input_ids": tokens, "attention_mask": mask})
    state = randomise(model, seeded())
    y = f(state)
    assert all(t.dtype == torch.float64 and t.isfinite().all() for t in y)
    moved = permuted(state, [(layers.format(i) + end, dim) for i in range(2) for end, dim in changes], 48)
    assert relative_defect(y, f(moved)) <= 1e-13
    assert {p.dtype for p in model.parameters()} == {low}
    check_derivatives(model, f, state)


def test_mixture_of_experts() -> None:
    model = build("MixtralForCausalLM", {**SMALL, "num_key_value_heads": 2, "num_local_experts": 4})
    tokens = torch.randint(0, 50, (2, 6), generator=seeded())
    f, state = evaluator(model, (), {"input_ids": tokens}), randomise(model, seeded())
    moved = dict(state)
    order = torch.tensor([2, 0, 3, 1])
    for name, value in state.items():
        if ".mlp.experts." in name or ".mlp.gate." in name:
            moved[name] = value[order]
    assert sum(not torch.equal(state[name], moved[name]) for name in state) == 6
    assert relative_defect(f(state), f(moved)) <= 1e-13
