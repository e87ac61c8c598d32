"""Rules: every operator is classified, every claim holds, and views and patterns are lowered exactly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from torchgauge.capture import capture
from torchgauge.infer import infer
from torchgauge.rules import lower, registry
from torchgauge.rules.axes import groups, narrow, permute, reshape
from torchgauge.rules.table import OPAQUE, PROFILES
from torchgauge.spaces.builder import Builder
from torchgauge.spaces.constraints import (
    Choice,
    Contract,
    Expand,
    Gather,
    Permute,
    Pick,
    Pointwise,
    Profile,
    Program,
    Reshape,
    Slice,
    Spatial,
    Tensor,
)

aten = torch.ops.aten


class Function(nn.Module):
    """A function of its modules and inputs as a model."""

    def __init__(self, function: Callable[..., Any], **modules: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *args: torch.Tensor) -> Any:
        return self.function(self, *args)


def program_of(model: nn.Module, *args: torch.Tensor) -> Program:
    return lower(capture(model, args))


def after_linear(function: Callable[[torch.Tensor], Any], *shape: int) -> Program:
    """The program of `function` behind a linear layer; `shape` is that of the layer's output."""
    model = Function(lambda m, x: function(m.linear(x)), linear=nn.Linear(3, shape[-1]))
    return program_of(model, torch.randn(*shape[:-1], 3))


def kinds(program: Program) -> Counter[str]:
    return Counter(type(c).__name__ for c in program.constraints)


def only(program: Program, kind: type) -> Any:
    (found,) = [c for c in program.constraints if isinstance(c, kind)]
    return found


# -- the registry ------------------------------------------------------------------------------------------------
def test_registering_an_operator_twice_is_an_error() -> None:
    with pytest.raises(ValueError, match="has a rule already"):
        registry.rule(aten.relu)(lambda ctx, x: x)


def test_in_place_and_out_variants_follow_their_base() -> None:
    assert registry.find(aten.relu_.default) is registry.find(aten.relu.default)
    assert registry.find(aten.pow_.Scalar) is registry.find(aten.pow.Tensor_Scalar)
    assert registry.find(aten.clamp.out) is registry.find(aten.clamp.default)


def pointwise_operators() -> list[Any]:
    found = []
    for name in dir(aten):
        packet = getattr(aten, name)
        overloads = packet.overloads() if hasattr(packet, "overloads") else ()
        found += [op for o in overloads if torch.Tag.pointwise in (op := getattr(packet, o)).tags]
    return found


def test_every_pointwise_operator_is_classified_or_deliberately_opaque() -> None:
    operators = pointwise_operators()
    assert len(operators) > 300
    missing = {op for op in operators if registry.find(op) is None and op.overloadpacket.__name__ not in OPAQUE}
    assert not missing


# -- claims about functions of one number --------------------------------------------------------------------------
def samples(name: str) -> torch.Tensor:
    """Points in the domain of the function, symmetric about zero where the domain is."""
    positive = {"sqrt", "rsqrt"}
    unit = {"asin", "acos", "atanh", "erfinv"}
    x = torch.linspace(0.05, 0.95 if name in unit | {"special_ndtri", "logit"} else 7.3, 101, dtype=torch.float64)
    return x if name in positive | {"special_ndtri", "logit"} else torch.cat([-x, x])


def check(profile: Profile, f: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> None:
    """Sample every claim of the profile."""
    close = torch.testing.assert_close
    c, v = profile.centre
    for s in (0.3, 1.7, 12.0) if profile.degree is not None else ():
        close(f(s * x), s**profile.degree * f(x), rtol=1e-9, atol=1e-9)
    if profile.parity == "odd":
        # both points must lie in the domain: use those within the reach of the centre
        d = (x - c)[((2 * c - x) > x.min() - 1e-9) & ((2 * c - x) < x.max() + 1e-9)]
        close(f(c + d) - v, v - f(c - d), rtol=1e-7, atol=1e-7)
    if profile.parity == "even":
        close(f(x), f(-x), rtol=1e-9, atol=1e-9)
    if profile.slope:
        close(f(x) - profile.slope * x, f(-x) + profile.slope * x, rtol=1e-9, atol=1e-9)
    if profile.exponential:
        for shift in (-0.7, 1.3):
            close(f(x + shift), torch.tensor(profile.rate * shift).exp() * f(x), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_the_claims_of_the_table_hold(name: str) -> None:
    profile = PROFILES[name]
    assert profile.degree is not None or profile.parity or profile.exponential or profile.slope
    check(profile, getattr(aten, name), samples(name))


ARGUMENTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "pow2": lambda x: x**2,
    "pow3": lambda x: x**3,
    "pow-1": lambda x: x**-1,
    "pow-2": lambda x: x**-2,
    "pow of 3": lambda x: 3**x,
    "leaky": lambda x: F.leaky_relu(x, 0.2),
    "rrelu": lambda x: F.rrelu(x),
    "threshold": lambda x: F.threshold(x, 0.5, 0.0),
    "threshold 0": lambda x: F.threshold(x, 0.0, 0.0),
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 2.0),
    "relu6": F.relu6,
    "clamp": lambda x: x.clamp(-1, 3),
    "clamp at 0": lambda x: x.clamp(0, 3),
    "clamp min": lambda x: x.clamp(min=0.5),
    "clamp min 0": lambda x: x.clamp_min(0),
    "clamp max 0": lambda x: x.clamp(max=0),
    "hardshrink": lambda x: F.hardshrink(x, 0.3),
    "softshrink": lambda x: F.softshrink(x, 0.3),
    "softplus": lambda x: F.softplus(x, 2.0),
    "celu": lambda x: F.celu(x, 0.7),
    "elu": lambda x: F.elu(x, 0.7),
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "round": lambda x: x.round(decimals=1),
    "logit": lambda x: torch.logit(x.sigmoid(), 0.01),
    "maximum": lambda x: torch.maximum(x, torch.zeros(())),
    "minimum": lambda x: torch.minimum(x, torch.zeros(())),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_claims_about_functions_with_arguments_hold(name: str) -> None:
    function = ARGUMENTS[name]
    program = after_linear(function, 2, 4)
    assert not program.opaque
    last = [c for c in program.constraints if isinstance(c, Pointwise)][-1]
    if name == "logit":
        check(last.profile, lambda x: torch.logit(x, 0.01), samples("logit"))
    else:
        check(last.profile, function, samples(name))


def test_a_clamp_at_zero_is_homogeneous_and_a_clamp_elsewhere_is_not() -> None:
    def profile(f: Callable[[torch.Tensor], torch.Tensor]) -> Profile:
        return only(after_linear(f, 2, 4), Pointwise).profile

    assert profile(lambda x: x.clamp(min=0)).degree == 1
    assert profile(lambda x: x.clamp(min=0.1)).degree is None
    assert profile(lambda x: F.hardtanh(x, -1, 3)).centre == (1.0, 1.0)
    assert profile(lambda x: F.threshold(x, 0.1, 0.0)).degree is None


# -- views -------------------------------------------------------------------------------------------------------
def evaluate(b: Builder, x: Tensor, values: dict[Tensor, torch.Tensor]) -> torch.Tensor:
    """Run the views that define x on numbers."""
    if x not in values:
        made = b.producers[x]
        source = evaluate(b, made.inputs[0], values)
        match made:
            case Reshape():
                values[x] = source.reshape(x.shape)
            case Permute():
                values[x] = source.permute(made.dims)
            case Slice():
                values[x] = source.narrow(made.dim, made.start, made.stop - made.start)
            case Expand():
                values[x] = source.expand(x.shape)
    assert values[x].shape == x.shape
    return values[x]


def factorisations(n: int) -> st.SearchStrategy[tuple[int, ...]]:
    divisors = [d for d in range(1, n + 1) if n % d == 0]
    if n == 1:
        return st.sampled_from([(), (1,)])
    return st.sampled_from(divisors).flatmap(
        lambda d: st.just((n,)) if d == 1 else factorisations(n // d).map(lambda rest: (d, *rest))
    )


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_views_are_rewritten_exactly(data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from([(24,), (2, 12), (2, 3, 8), (4, 6, 2), (1, 24, 3), (12, 1, 4)]))
    b = Builder()
    x = b.input("x", shape)
    y, numbers = x, torch.arange(int(torch.tensor(shape).prod())).reshape(shape)
    values = {x: numbers}
    for _ in range(data.draw(st.integers(1, 6))):
        action = data.draw(st.sampled_from(["reshape", "permute", "narrow", "expand"]))
        if action == "reshape":
            new = data.draw(factorisations(numbers.numel()))
            y, numbers = reshape(b, y, new), numbers.reshape(new)
        elif action == "permute":
            dims = data.draw(st.permutations(range(y.ndim)))
            y, numbers = permute(b, y, dims), numbers.permute(*dims) if dims else numbers
        elif action == "narrow" and y.ndim:
            dim = data.draw(st.integers(0, y.ndim - 1))
            start = data.draw(st.integers(0, y.shape[dim] - 1))
            stop = data.draw(st.integers(start + 1, y.shape[dim]))
            y, numbers = narrow(b, y, dim, start, stop), numbers.narrow(dim, start, stop - start)
        elif action == "expand" and numbers.numel() <= 24:
            new = tuple(2 if n == 1 else n for n in y.shape)
            y, numbers = b.expand(y, new), numbers.expand(new)
    assert torch.equal(evaluate(b, y, values), numbers)


def test_groups_are_the_finest() -> None:
    assert groups((2, 6, 24), (2, 6, 3, 8)) == [
        (range(1), range(1)),
        (range(1, 2), range(1, 2)),
        (range(2, 3), range(2, 4)),
    ]
    assert groups((4, 6), (24,)) == [(range(2), range(1))]


def test_packed_projections_are_cut_before_they_are_split_into_heads() -> None:
    def attention(y: torch.Tensor) -> torch.Tensor:
        q, k, v = y.reshape(2, 5, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        return (q @ k.transpose(-2, -1)).softmax(-1) @ v

    cuts = [c for c in after_linear(attention, 2, 5, 24).constraints if isinstance(c, Slice)]
    assert [(c.x.shape, c.dim, c.start, c.stop) for c in cuts] == [((2, 5, 24), 2, s, s + 8) for s in (0, 8, 16)]


def test_a_middle_factor_is_cut_together_with_the_factors_inside_it() -> None:
    program = after_linear(lambda y: y.view(2, 5, 2, 4, 3)[:, :, :, :-2].flatten(2), 2, 5, 24)
    cut = only(program, Slice)
    assert (cut.x.shape, cut.dim, cut.start, cut.stop) == ((2, 5, 2, 12), 3, 0, 6)


def test_the_parameter_free_shortcut_of_a_residual_network_is_understood() -> None:
    def shortcut(m: Any, x: torch.Tensor) -> torch.Tensor:
        return m.after(F.pad(m.before(x)[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))

    model = Function(shortcut, before=nn.Conv2d(3, 4, 3), after=nn.Conv2d(8, 3, 1))
    program = program_of(model, torch.randn(2, 3, 9, 9))
    assert not program.opaque
    assert [(c.dims, c.mode, c.keeps_constants) for c in program.constraints if isinstance(c, Spatial)] == [
        ((2,), "linear", True),
        ((3,), "linear", True),
    ]


# -- constants, masks, what is unknown --------------------------------------------------------------------------------
def test_a_mask_of_scores_is_a_constant_to_add() -> None:
    mask = torch.ones(5, 5).tril().bool()
    for value in (float("-inf"), -1e9):
        program = after_linear(lambda y, v=value: y.masked_fill(~mask, v).softmax(-1), 2, 5, 5)
        assert kinds(program) == {"Contract": 1, "Reshape": 1, "Add": 2, "Softmax": 1}
    program = after_linear(lambda y: y.masked_fill(~mask, -1e9), 2, 5, 5)
    assert kinds(program)["Mul"] == 1  # no softmax behind: the entries are replaced


def test_a_mask_pins_no_dimension_in_which_it_is_the_same() -> None:
    mask = torch.ones(2, 1, 5, 5).tril().bool()
    expanded = after_linear(lambda y: y.view(2, 5, 3, 5).transpose(1, 2) + mask.expand(2, 3, 5, 5), 2, 5, 15)
    masks = [c.y for c in expanded.constraints if type(c).__name__ == "Add" and c.y.role == "const"]
    assert [m.shape[1] for m in masks] == [1]


def test_integer_inputs_and_buffers_are_constants() -> None:
    model = Function(lambda m, i: m.table(i) * m.scale, table=nn.Embedding(7, 4))
    model.register_buffer("scale", torch.rand(4))
    program = program_of(model, torch.randint(0, 7, (2, 3)))
    assert only(program, Gather).table is program.params["table.weight"]
    assert {x.role for c in program.constraints for x in c.inputs} == {"param", "data", "const"}


def test_an_unknown_operator_is_opaque_and_named_with_its_line() -> None:
    program = after_linear(lambda y: torch.linalg.qr(y).Q, 2, 4)
    ((reason, source),) = program.opaque
    assert "qr" in reason
    assert "test_rules.py" in source


def test_experts_picked_by_data_are_rows_of_a_table_at_a_choice() -> None:
    def mixture(m: Any, x: torch.Tensor) -> torch.Tensor:
        weights, index = m.router(x).softmax(-1).topk(2)
        return (m.experts[index] @ x[:, None, :, None]).squeeze(-1).mul(weights[..., None]).sum(1)

    model = Function(mixture, router=nn.Linear(3, 4), experts=nn.Parameter(torch.randn(4, 5, 3)))
    program = program_of(model, torch.randn(6, 3))
    assert not program.opaque
    assert only(program, Pick).out.shape == (6, 2, 5, 3)
    assert only(program, Choice).out.role == only(program, Pick).choice.role == "choice"
    assert len(program.outputs) == 1  # positions that are read as positions are not observed


def test_zeros_are_followed_through_products_and_sums() -> None:
    def first_step(m: Any, x: torch.Tensor) -> torch.Tensor:
        return m.inputs(x) + m.state(torch.zeros(2, 4))

    model = Function(first_step, inputs=nn.Linear(3, 4), state=nn.Linear(4, 4))
    program = program_of(model, torch.randn(2, 3))
    assert "state.weight" not in program.params
    assert kinds(program)["Contract"] == 1


def test_what_no_output_reads_is_pruned() -> None:
    def partly(m: Any, x: torch.Tensor) -> torch.Tensor:
        m.unread(x).sort(-1)
        return m.read(x)

    program = program_of(Function(partly, read=nn.Linear(3, 2), unread=nn.Linear(3, 2)), torch.randn(2, 3))
    assert set(program.params) == {"read.weight", "read.bias"}
    assert not program.opaque
    assert kinds(program) == {"Contract": 1, "Reshape": 1, "Add": 1}


def test_convolution_windows_carry_no_frame_and_padding_is_not_shift_safe() -> None:
    x = torch.randn(2, 4, 6, 6)
    depthwise = only(program_of(nn.Conv2d(4, 8, 3, groups=4, bias=False), x), Contract)
    assert depthwise.x.shape == (2, 4, 1, 6, 6)
    assert depthwise.y.shape == (4, 2, 1, 3, 3)
    assert depthwise.window == {"s0", "s1", "k0", "k1", "t0", "t1"}
    assert depthwise.shift_safe
    assert not only(program_of(nn.Conv2d(4, 8, 3, padding="same", bias=False), x), Contract).shift_safe
    assert not only(program_of(nn.ConvTranspose2d(4, 8, 3, bias=False), x), Contract).shift_safe


def test_pooling_keeps_constants_unless_padding_is_counted() -> None:
    x = torch.randn(2, 4, 6, 6)
    assert only(program_of(nn.AvgPool2d(2), x), Spatial).keeps_constants
    assert not only(program_of(nn.AvgPool2d(3, padding=1), x), Spatial).keeps_constants
    assert only(program_of(nn.AvgPool2d(3, padding=1, count_include_pad=False), x), Spatial).keeps_constants
    assert only(program_of(nn.MaxPool2d(3, padding=1), x), Spatial).mode == "max"


@pytest.mark.parametrize(
    "f",
    [lambda x: torch.special.polygamma(1, x.abs() + 1), lambda x: torch.ops.aten.pow_.Scalar(x.abs() + 1, 1.5)],
    ids=["polygamma", "pow_.Scalar"],
)
def test_a_number_may_stand_before_or_behind_the_tensor(f: Callable[[torch.Tensor], torch.Tensor]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.write = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.write(f(self.read(x)))

    group = infer(Net(), (torch.randn(5, 3),))
    assert group.components == {"4!": 1, "2^4": 1}
