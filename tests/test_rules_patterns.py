"""Patterns written out by hand: norms, rotary embeddings, offset gains, batch norm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.test_rules import Function, after_linear, kinds, only, program_of
from torchgauge.spaces.constraints import Normalize, Rotate, Softmax, Spatial


def normalised(x: torch.Tensor, variance: torch.Tensor, mean: torch.Tensor | float) -> torch.Tensor:
    return (x - mean if isinstance(mean, torch.Tensor) else x) / torch.sqrt(variance + 1e-6)


RMS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "llama": lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
    "cast": lambda x: (x.double() * torch.rsqrt(x.double().pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype),
    "product": lambda x: torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6) * x,
    "square": lambda x: x * (1 / torch.sqrt(x.square().mean(-1, True) + 1e-6)),
    "quotient": lambda x: x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
    "power": lambda x: x * (x.pow(2).mean(-1, keepdim=True) + 1e-6) ** -0.5,
    "sum": lambda x: x / (x.pow(2).sum(-1, keepdim=True) + 1e-6).sqrt(),
    "norm": lambda x: x / x.norm(2, dim=-1, keepdim=True),
    "normalize": lambda x: F.normalize(x, dim=-1),
    "root of the width": lambda x: x / (x.norm(2, dim=-1, keepdim=True) * 6**-0.5 + 1e-6),
    "clamped": lambda x: x / (x.norm(dim=-1, keepdim=True) * 6**-0.5).clamp(min=1e-8),
    "sum over the width": lambda x: x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) / 6 + 1e-6),
    "reduced": lambda x: x * torch.rsqrt(x.pow(2).mean(-1) + 1e-6)[..., None],
    "reduced first": lambda x: x * torch.rsqrt(x.pow(2).mean(-1).unsqueeze(-1) + 1e-6),
    "module": nn.RMSNorm(6, elementwise_affine=False),
}
LAYER: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "var": lambda x: (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-6),
    "std": lambda x: (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6),
    "rsqrt": lambda x: (x - x.mean(-1, True)) * (x.var(-1, unbiased=False, keepdim=True) + 1e-6).rsqrt(),
    "mean square": lambda x: (x - x.mean(-1, True)) / ((x - x.mean(-1, True)).pow(2).mean(-1, True) + 1e-6).sqrt(),
    "var_mean": lambda x: (x - torch.var_mean(x, -1, keepdim=True)[1]) / (x.var(-1, keepdim=True) + 1e-6).sqrt(),
    "both": lambda x: normalised(x, *torch.var_mean(x, dim=-1, unbiased=False, keepdim=True)),
    "std_mean": lambda x: (
        (x - torch.std_mean(x, -1, keepdim=True)[1]) / (torch.std_mean(x, -1, keepdim=True)[0] + 1e-6)
    ),
    "reduced": lambda x: normalised(x, x.var(-1, unbiased=False)[..., None], x.mean(-1).unsqueeze(-1)),
    "mean of squares": lambda x: normalised(x, x.pow(2).mean(-1, True) - x.mean(-1, True).pow(2), x.mean(-1, True)),
    "centred twice": lambda x: normalised(x - x.mean(-1, True), (x - x.mean(-1, True)).var(-1, keepdim=True), 0.0),
    "module": nn.LayerNorm(6, elementwise_affine=False),
}


@pytest.mark.parametrize(("kind", "spelling"), [("rms", n) for n in RMS] + [("layer", n) for n in LAYER])
def test_norms_are_recognised_in_every_spelling(kind: str, spelling: str) -> None:
    program = after_linear((RMS if kind == "rms" else LAYER)[spelling], 2, 5, 6)
    norm = only(program, Normalize)
    assert (norm.kind, norm.dims) == (kind, (2,))
    assert norm.x.name.startswith("add")
    assert not kinds(program) & Counter({"Reduce": 9, "Pointwise": 9})


def test_what_is_normed_may_be_a_product_itself() -> None:
    """A stream times a number: x is not taken apart into factors of which none is what the spread is of."""
    for times in (0.5, torch.tensor(3.0), torch.rand(6)):
        program = after_linear(lambda x, times=times: RMS["quotient"](x * times), 2, 5, 6)
        assert only(program, Normalize).kind == "rms"
        program = after_linear(lambda x, times=times: LAYER["rsqrt"](times * x), 2, 5, 6)
        assert only(program, Normalize).kind == "layer"


GAIN: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "gain first": lambda g, x: g * (x - x.mean(-1, True)) / torch.sqrt(x.var(-1, keepdim=True) + 1e-6),
    "gain and std": lambda g, x: g * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6),
    "gain in between": lambda g, x: (x - x.mean(-1, True)) * g / torch.sqrt(x.var(-1, keepdim=True) + 1e-6),
    "gain on the root": lambda g, x: (x - x.mean(-1, True)) * (g * torch.rsqrt(x.var(-1, keepdim=True) + 1e-6)),
    "gain last": lambda g, x: (x - x.mean(-1, True)) * torch.rsqrt(x.var(-1, keepdim=True) + 1e-6) * g,
    "two gains": lambda g, x: 2.0 * g * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * g,
    "rms": lambda g, x: g * x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
}


@pytest.mark.parametrize("spelling", GAIN)
def test_a_gain_may_stand_anywhere_in_a_norm(spelling: str) -> None:
    model = Function(
        lambda m, x: GAIN[spelling](m.gain, m.read(x)), read=nn.Linear(4, 6), gain=nn.Parameter(torch.ones(6))
    )
    x = torch.randn(2, 5, 4)
    program = program_of(model, x)
    norm = only(program, Normalize)
    assert norm.x.name.startswith("add")
    assert norm.eps > 0
    assert not kinds(program) & Counter({"Reduce": 9, "Pointwise": 9})


def test_something_like_a_norm_is_not_taken_for_one() -> None:
    for f in (
        lambda x: x * torch.rsqrt(x.pow(3).mean(-1, keepdim=True) + 1e-6),
        lambda x: x * torch.rsqrt(x.flip(-1).pow(2).mean(-2, keepdim=True) + 1e-6),
        lambda x: (x - x.mean(-2, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True) + 1e-6),
        lambda x: (x + 1) * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
        lambda x: x / x.std(-1, keepdim=True),
        lambda x: x / x.norm(dim=-1, keepdim=True).clamp(1e-6, 2.0),
        lambda x: x / (x.norm(dim=-1, keepdim=True) - 1e-6),
        lambda x: torch.div(x, x.norm(dim=-1, keepdim=True), rounding_mode="floor"),
        lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True).mean(-2, keepdim=True) + 1e-6),
        lambda x: x[:, :, :5] * torch.rsqrt(x[:, :, :5].pow(2).mean(-1) + 1e-6)[..., None, :],
    ):
        assert "Normalize" not in kinds(after_linear(f, 2, 5, 6))


def angles(T: int, d: int) -> torch.Tensor:
    return torch.arange(T)[:, None] * 100.0 ** -(torch.arange(d // 2) * 2 / d)


def half(x: torch.Tensor) -> torch.Tensor:
    a = angles(x.shape[-2], x.shape[-1])
    cos, sin = torch.cat([a, a], -1).cos(), torch.cat([a, a], -1).sin()
    x1, x2 = x.chunk(2, -1)
    return x * cos + torch.cat([-x2, x1], -1) * sin


def half_by_parts(x: torch.Tensor) -> torch.Tensor:
    a = angles(x.shape[-2], x.shape[-1])
    x1, x2 = x.chunk(2, -1)
    return torch.cat([x1 * a.cos() - x2 * a.sin(), x2 * a.cos() + x1 * a.sin()], -1)


def interleaved(x: torch.Tensor) -> torch.Tensor:
    a = angles(x.shape[-2], x.shape[-1]).repeat_interleave(2, -1)
    turned = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
    return x * a.cos() + turned * a.sin()


def interleaved_by_parts(x: torch.Tensor) -> torch.Tensor:
    a = angles(x.shape[-2], x.shape[-1])
    x1, x2 = x[..., ::2], x[..., 1::2]
    return torch.stack([x1 * a.cos() - x2 * a.sin(), x1 * a.sin() + x2 * a.cos()], -1).flatten(-2)


def complex_numbers(x: torch.Tensor) -> torch.Tensor:
    a = angles(x.shape[-2], x.shape[-1])
    z = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2)) * torch.polar(torch.ones_like(a), a)
    return torch.view_as_real(z).flatten(-2).type_as(x)


ROTARY = {
    "half": ("half", half),
    "half by parts": ("half", half_by_parts),
    "interleaved": ("interleaved", interleaved),
    "interleaved by parts": ("interleaved", interleaved_by_parts),
    "complex": ("interleaved", complex_numbers),
}


@pytest.mark.parametrize("spelling", ROTARY)
def test_rotary_embeddings_are_recognised_by_their_numbers(spelling: str) -> None:
    layout, turn = ROTARY[spelling]
    program = after_linear(lambda y: turn(y.view(2, 5, 3, 8).transpose(1, 2)), 2, 5, 24)
    turned = only(program, Rotate)
    assert turned.layout == layout
    assert turned.x.shape == (2, 3, 5, 8)
    assert only(program, Spatial).dims == (2,)  # positions turn by different angles: nothing may mix or sort them
    assert kinds(program) == {"Contract": 1, "Reshape": 2, "Add": 1, "Permute": 1, "Rotate": 1, "Spatial": 1}


def test_a_rotation_that_sorts_its_entries_is_a_rotation_and_views() -> None:
    def sorting(x: torch.Tensor) -> torch.Tensor:
        a = angles(x.shape[-2], x.shape[-1])
        x1, x2 = x[..., ::2], x[..., 1::2]
        return torch.cat([x1 * a.cos() - x2 * a.sin(), x1 * a.sin() + x2 * a.cos()], -1)

    program = after_linear(sorting, 2, 5, 8)
    assert only(program, Rotate).layout == "interleaved"
    assert kinds(program) == {"Contract": 1, "Reshape": 3, "Add": 1, "Permute": 1, "Rotate": 1, "Spatial": 1}


def test_what_is_not_a_rotation_is_not_fused() -> None:
    def wrong_sign(x: torch.Tensor) -> torch.Tensor:
        a = angles(x.shape[-2], x.shape[-1])
        x1, x2 = x.chunk(2, -1)
        return torch.cat([x1 * a.cos() + x2 * a.sin(), x2 * a.cos() + x1 * a.sin()], -1)

    def uneven(x: torch.Tensor) -> torch.Tensor:
        a = torch.cat([angles(x.shape[-2], x.shape[-1]), 2 * angles(x.shape[-2], x.shape[-1])], -1)
        x1, x2 = x.chunk(2, -1)
        return x * a.cos() + torch.cat([-x2, x1], -1) * a.sin()

    for turn in (wrong_sign, uneven):
        program = after_linear(lambda y, turn=turn: turn(y.view(2, 5, 3, 8).transpose(1, 2)), 2, 5, 24)
        assert "Rotate" not in kinds(program)


def test_angles_that_differ_between_heads_pin_the_heads() -> None:
    def per_head(x: torch.Tensor) -> torch.Tensor:
        a = torch.arange(120.0).square().sin().view(3, 5, 8)
        x1, x2 = x.chunk(2, -1)
        return torch.cat([x1 * a[..., :4] - x2 * a[..., 4:], x2 * a[..., :4] + x1 * a[..., 4:]], -1)

    program = after_linear(lambda y: per_head(y.view(2, 5, 3, 8).transpose(1, 2)), 2, 5, 24)
    assert only(program, Rotate).layout == "half"
    assert only(program, Spatial).dims == (1, 2)


def test_a_gain_stored_without_its_one_has_an_offset_coordinate() -> None:
    model = Function(lambda m, x: x * (1.0 + m.gain.float()), gain=nn.Parameter(torch.zeros(3)))
    coordinate = program_of(model, torch.randn(2, 3)).coordinates["gain"]
    assert (coordinate.kind, coordinate.offset) == ("offset", 1.0)
    model = Function(lambda m, x: x * (1.0 + m.gain) + m.gain, gain=nn.Parameter(torch.zeros(3)))
    assert program_of(model, torch.randn(2, 3)).coordinates["gain"].kind == "plain"


def test_batch_norm_uses_its_statistics_or_those_of_the_batch() -> None:
    x = torch.randn(4, 3, 5, 5)
    model = nn.Sequential(nn.BatchNorm2d(3))
    program = program_of(model.eval(), x)
    assert set(program.buffers) == {"0.running_var"}
    coordinate = program.coordinates["0.bias"]
    assert coordinate.kind == "batch_norm_bias"
    assert coordinate.refs == ("0.weight", "0.running_mean", "0.running_var")
    assert only(program_of(model.train(), x), Normalize).dims == (0, 2, 3)
    twice = Function(lambda m, x: m.norm(m.norm(x)), norm=nn.BatchNorm2d(3)).eval()
    program = program_of(twice, x)
    assert program.coordinates["norm.bias"].kind == "plain"
    assert set(program.buffers) == {"norm.running_mean", "norm.running_var"}


SOFTMAX: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "quotient": lambda x: x.exp() / x.exp().sum(-1, keepdim=True),
    "largest": lambda x: (x - x.amax(-1, True)).exp() / (x - x.amax(-1, True)).exp().sum(-1, True),
    "logsumexp": lambda x: (x - torch.logsumexp(x, -1, keepdim=True)).exp(),
    "log": lambda x: x - x.logsumexp(-1, keepdim=True),
}


@pytest.mark.parametrize("spelling", SOFTMAX)
def test_a_softmax_is_recognised(spelling: str) -> None:
    found = only(after_linear(SOFTMAX[spelling], 2, 5, 6), Softmax)
    assert (found.dim, found.log) == (2, spelling == "log")
    assert found.x.name.startswith("add")


def test_what_is_not_a_softmax_is_not_taken_for_one() -> None:
    for f in (
        lambda x: x.exp() / x.exp().sum(-1, keepdim=True).sum(-2, keepdim=True),
        lambda x: x.exp() / x.sum(-1, keepdim=True),
        lambda x: x - (2 * x).logsumexp(-1, keepdim=True),
        lambda x: x.exp() / (-x).exp().sum(-1, keepdim=True),
    ):
        assert "Softmax" not in kinds(after_linear(f, 2, 5, 6))


LOWER = torch.ones(6, 6).tril()
MASKED: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], bool]] = {
    "product": (lambda x: (x * LOWER - 1e4 * (1 - LOWER)).softmax(-1), True),
    "turned about": (lambda x: ((1 - LOWER) * -1e9 + LOWER * x).softmax(-1), True),
    "a type is lent": (lambda x: (y := x.masked_fill(LOWER == 0, -3e38)).double().softmax(-1).type_as(y), True),
    "too high": (lambda x: (x * LOWER - 10 * (1 - LOWER)).softmax(-1), False),
    "where it counts": (lambda x: (x * LOWER - 1e4 * LOWER).softmax(-1), False),
    "no zeros and ones": (lambda x: (x * (2 * LOWER) - 1e4 * (1 - LOWER)).softmax(-1), False),
    "read otherwise": (lambda x: (y := x * LOWER - 1e4 * (1 - LOWER)).softmax(-1) + y, False),
}


@pytest.mark.parametrize("spelling", MASKED)
def test_a_mask_of_scores_is_an_addition(spelling: str) -> None:
    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 6)
            self.register_buffer("LOWER", LOWER, persistent=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return MASKED[spelling][0](self.linear(x))

    added = "Mul" not in kinds(program_of(Scores(), torch.randn(2, 6, 3)))
    assert added == MASKED[spelling][1]


def test_a_norm_without_a_bias_takes_the_one_in_front() -> None:
    x = torch.randn(4, 3, 5, 5)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)).eval()
    program = program_of(model, x)
    assert program.coordinates["0.bias"].kind == "centred_bias"
    assert set(program.buffers) == {"1.running_var"}
    twice = Function(lambda m, x: m.norm(m.read(x)) + m.read(x), read=model[0], norm=model[1]).eval()
    program = program_of(twice, x)
    assert program.coordinates["read.bias"].kind == "plain"
    assert set(program.buffers) == {"norm.running_mean", "norm.running_var"}


def test_known_positions_are_slices() -> None:
    program = after_linear(lambda x: x[:, :, [-2]] * x[:, :, [0, 1, 2, 5]], 2, 5, 6)
    assert kinds(program)["Slice"] == 3
    assert "Spatial" not in kinds(program)
    assert kinds(after_linear(lambda x: x[:, :, [0, 2, 4, 1, 3, 5]], 2, 5, 6))["Spatial"] == 1
