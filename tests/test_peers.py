"""The benchmark against peers: what is read out of results. The peers themselves are not needed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from peers import table  # noqa: E402
from peers_channels import _moved, _orders  # noqa: E402
from peers_ours import _holds, _unties, beyond  # noqa: E402
from peers_worker import change, first, isolated, observe  # noqa: E402


@pytest.mark.parametrize(
    ("axes", "source", "held"),
    [
        ([[3, True, 0]], [2, 0, 1], True),
        ([[3, False, 0]], [2, 0, 1], False),
        ([[2, True, 0], [2, False, 1]], [2, 3, 0, 1], True),
        ([[2, True, 0], [2, False, 1]], [1, 0, 2, 3], False),
        ([[2, False, 0], [2, True, 1]], [1, 0, 3, 2], True),
        ([[2, False, 0], [2, True, 1]], [1, 2, 3, 0], False),
        (None, [0, 1], True),
        (None, [1, 0], False),
    ],
)
def test_what_a_product_of_axes_lets_through(axes: list | None, source: list[int], held: bool) -> None:
    assert _holds(axes, source) is held


def test_a_tied_parameter_must_move_as_one() -> None:
    ties = {"head.weight": "embed.weight"}
    both = [["head.weight", 1, [1, 0]], ["embed.weight", 1, [1, 0]]]
    assert not _unties(both, ties)
    assert _unties(both[:1], ties)
    assert _unties([both[0], ["embed.weight", 1, [0, 1]]], ties)


def test_what_a_peer_finds_beyond_our_group_is_told() -> None:
    group = {"root": "a", "reading": "channels", "change": 0.0, "touched": [["a.weight", 0, [1, 0]]]}
    rows = {("Torch-Pruning", "M"): {"outcome": "kept", "found": [group]}}
    ours = {"outcome": "kept", "ties": {}, "spaces": {"a.weight[0]": [[2, True, 0]]}}
    assert beyond(rows | {("torchgauge", "M"): ours}) == (1, [])
    ours["spaces"] = {"a.weight[0]": [[2, False, 0]]}
    assert beyond(rows | {("torchgauge", "M"): ours}) == (1, ["M: a, channels (a.weight[0])"])


def test_a_group_permutes_every_layer_and_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x = {"input": torch.randn(5, 3, dtype=torch.float64)}
    before, state = observe(model, x), {k: v.clone() for k, v in model.state_dict().items()}

    def item(module: nn.Module, name: str) -> SimpleNamespace:
        target = SimpleNamespace(module=module)
        dep = SimpleNamespace(target=target, handler=SimpleNamespace(__name__=name))
        return SimpleNamespace(dep=dep, idxs=[0, 1, 2, 3], root_idxs=[0, 1, 2, 3])

    group = [item(model[0], "prune_out_channels"), item(model[2], "prune_in_channels")]
    with _moved(model, group, torch.tensor([2, 0, 3, 1])) as touched:
        assert not torch.equal(model[0].weight, state["0.weight"])
        assert change(before, observe(model, x)) < 1e-14
    assert {(name, axis) for name, axis, _ in touched} == {("0.weight", 0), ("0.bias", 0), ("2.weight", 1)}
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_heads_are_exchanged_whole_or_inside() -> None:
    module = nn.Linear(3, 6)
    target = SimpleNamespace(module=module)
    dep = SimpleNamespace(target=target, handler=SimpleNamespace(__name__="prune_out_channels"))
    found = dict(_orders([(dep, None)], 6, {id(module): (3, False)}, 0))
    assert set(found) == {"entries of heads", "heads"}
    assert found["heads"].tolist() == [3, 4, 5, 0, 1, 2]
    inside = found["entries of heads"].reshape(2, 3)
    assert torch.equal(inside[0] + 3, inside[1])


def test_the_first_floating_tensor_is_the_output() -> None:
    x = torch.ones(2)
    assert first({"ids": torch.ones(2, dtype=torch.int64), "logits": (x,)}) is x
    assert first({"ids": torch.ones(2, dtype=torch.int64)}) is None


def test_a_run_that_takes_too_long_is_refused() -> None:
    def forever() -> dict:
        while True:
            pass

    assert isolated(lambda: {"outcome": "kept"}, 20)["outcome"] == "kept"
    assert isolated(forever, 1)["outcome"] == "refused"


def test_the_table_counts_by_family() -> None:
    rows = {
        ("torchgauge", "A"): {"outcome": "kept", "symmetries": 3},
        ("rebasin", "A"): {"outcome": "wrong", "symmetries": 1},
        ("rebasin", "B"): {"outcome": "not loaded"},
    }
    text = table(rows, {"A": "vision", "B": "vision"})
    assert "| torchgauge, a random element of the whole group | vision | 1 | 1 | 0 | 0 | 0 | 3 (3) |" in text
    assert "| rebasin | vision | 1 | 0 | 1 | 0 | 0 | 1 (1) |" in text
