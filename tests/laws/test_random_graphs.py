"""Never wrong: whatever the network, no element of the inferred group changes its function."""

from __future__ import annotations

import zlib

import pytest
import torch
from hypothesis import HealthCheck, currently_in_test_context, given, note, settings
from hypothesis import strategies as st

import torchgauge as tg
from tests.zoo.case import Case, State, evaluate64, relative_defect
from tests.zoo.graphs import COMBINATORS, LEAVES, Kind, Network, Tree, example

SOUND = 1e-9


def network(tree: Tree, kind: Kind, head: bool = True, train: bool = False) -> Case:
    number = zlib.crc32(repr((tree, kind)).encode())
    return Case(
        f"graph-{number}", lambda: Network(tree, kind, number, head), lambda g: example(kind, g), orbit=0, train=train
    )


def rounding(case: Case, model: torch.nn.Module, state: State) -> float:
    """How much the outputs move when every parameter is rounded once more: the conditioning at `state`."""
    g = torch.Generator().manual_seed(3)
    nudged = {
        n: v * (1 + 2e-16 * torch.randn(v.shape, generator=g, dtype=torch.float64)) if v.is_floating_point() else v
        for n, v in state.items()
    }
    args = case.example(5)
    return relative_defect(evaluate64(model, state, args), evaluate64(model, nudged, args))


def assert_never_wrong(case: Case) -> None:
    model = case.module()
    state = dict(model.state_dict())
    args = case.example(5)
    old = evaluate64(model, state, args)
    if not all(bool(x.isfinite().all()) and 0 < float(x.abs().max()) < 1e6 for x in old):
        return  # powers of powers, or zero throughout: nothing to compare in float64
    if rounding(case, model, state) > 1e-9:
        return  # the last digit of the parameters decides the outputs
    group = tg.infer(model, case.example(), case.kwargs)
    for seed, scale in ((0, 0.5), (1, 1.0)):
        moved = group.act(group.random(torch.Generator().manual_seed(seed), scale=scale), state)
        defect = relative_defect(old, evaluate64(model, moved, args))
        conditioning = rounding(case, model, moved)
        if currently_in_test_context():
            note(f"scale {scale}: defect {defect:.1e}, rounding alone gives {conditioning:.1e}")
        assert defect <= SOUND + 1e3 * conditioning, f"scale {scale}: {defect:.1e} (rounding {conditioning:.1e})"
        assert conditioning < 1e-6


leaves = st.sampled_from(sorted(LEAVES))
steps = st.recursive(
    leaves, lambda inner: st.tuples(st.sampled_from(COMBINATORS), st.lists(inner, min_size=1, max_size=3).map(tuple))
)
trees = st.lists(steps, min_size=1, max_size=6).map(tuple)
few = settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@few
@given(tree=trees, head=st.booleans())
def test_random_sequence_network(tree: Tree, head: bool) -> None:
    assert_never_wrong(network(tree, "sequence", head))


@few
@given(tree=trees, head=st.booleans(), train=st.booleans())
def test_random_image_network(tree: Tree, head: bool, train: bool) -> None:
    assert_never_wrong(network(tree, "image", head, train))


GAIN_AND_MEAN: Tree = (
    "shuffle",
    "transposed",
    (
        "residual",
        (
            "in_heads",
            "shuffle",
            ("minus", ("add_constant", "with_own_relu", ("beside", ("self_gram", "three_readers")))),
        ),
    ),
    "square",
)
"""In which x ⊙ γ and its mean, a contraction of x and γ, are both read: rotations may not turn γ."""
FOUND: tuple[tuple[Kind, Tree], ...] = (
    ("sequence", ("sum_of_halves", "batch_norm_plain", "constant_minus", "with_own_relu")),
    ("sequence", (("beside", ("batch_norm",)), "normalise")),
    ("image", ("grouped", "batch_norm_plain", "transposed")),
    ("image", (("twice", ("three_readers",)), "grouped")),
    ("image", GAIN_AND_MEAN),
)


@pytest.mark.parametrize(("kind", "tree"), FOUND)
def test_networks_that_were_wrong_once(kind: Kind, tree: Tree) -> None:
    for head in (False, True):
        assert_never_wrong(network(tree, kind, head))


@pytest.mark.parametrize("kind", ["sequence", "image"])
@pytest.mark.parametrize("leaf", sorted(LEAVES))
def test_every_leaf_alone_and_behind_relu(leaf: str, kind: Kind) -> None:
    for tree in ((leaf,), ("relu", leaf), ("linear", leaf, "linear"), (("residual", (leaf,)), "layer_norm")):
        assert_never_wrong(network(tree, kind))


TRAPS: dict[str, Tree] = {
    "h times h": ("self_product",),
    "relu squared then h": ("relu_squared", ("residual", ("self_product",))),
    "h plus a constant": ("relu", "add_constant", "linear", "fixed_offset"),
    "one linear twice": ("used_twice", "relu", "used_twice"),
    "one body twice": (("twice", ("relu",)), ("twice", ("layer_norm", "linear"))),
    "channel flip": ("relu", "flip", ("residual", ("flip",))),
    "flip across a residual": ("relu", ("bare_residual", ("flip",)), "relu"),
    "average pooling over features": ("relu", "pool_features"),
    "relu6": ("relu6", ("residual", ("relu6",))),
    "own transpose": ("own_transpose", "relu", "own_transpose"),
    "own transpose in a stream": (("residual", ("own_transpose",)), "rms_norm"),
    "depthwise after a split": ("relu", "depthwise_after_split", "relu", "depthwise_after_split"),
    "layer norm read three times": ("three_readers", ("residual", ("three_readers",))),
    "post-norm blocks": (("post_norm", ("linear", "gelu")), ("post_norm", ("attention",)), ("post_norm", ("swiglu",))),
    "pre-norm blocks": (("pre_norm", ("attention",)), ("pre_norm", ("swiglu",)), "layer_norm"),
    "padding shortcut": (
        "relu",
        ("pad_shortcut", ("linear", "relu", "linear")),
        "relu",
        ("pad_shortcut", ("repeat_features",)),
    ),
    "own relu beside": ("with_own_relu", "sum_of_halves"),
    "concatenated then crossed": ("repeat_features", "relu_one_half", "sum_of_halves"),
    "swapped halves added": (("bare_residual", ("swap_halves",)), "relu"),
    "halves rotated": ("rotate_halves", ("bare_residual", ("rotate_halves",)), "rms_norm"),
    "expanded and sliced": ("expand_features", "relu", "slice_features"),
    "interleaved and shuffled": ("interleave", "shuffle", "relu"),
    "gate of itself": (("gate", ("relu",)), "glu"),
    "batch norm without gain": ("batch_norm_plain", "relu", "batch_norm_plain"),
    "group norm after relu": ("relu", "group_norm", "relu"),
    "softmax of features": ("softmax", "linear", "softmax"),
}


@pytest.mark.parametrize("kind", ["sequence", "image"])
@pytest.mark.parametrize("trap", TRAPS)
def test_trap(trap: str, kind: Kind) -> None:
    assert_never_wrong(network(TRAPS[trap], kind))
    if kind == "image":
        assert_never_wrong(network(TRAPS[trap], kind, train=True))
