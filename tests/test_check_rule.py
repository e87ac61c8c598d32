"""The checker of rules: right, wrong and missing rules are told apart, and real ones pass."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from torchgauge.check_rule import Data, Weight, check, registered, resolve
from torchgauge.check_rule.calls import calls
from torchgauge.cli import run
from torchgauge.errors import InputError
from torchgauge.rules import registry
from torchgauge.rules.lower import Lowering
from torchgauge.spaces.constraints import Profile
from torchgauge.spaces.constraints import Tensor as Symbol

NAME = "torchgauge_test::signed_sqrt"


@torch.library.custom_op(NAME, mutates_args=())
def signed_sqrt(x: Tensor) -> Tensor:
    return torch.where(x > 0, x.abs().sqrt(), -0.5 * x.abs().sqrt())


@signed_sqrt.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _setup(ctx, inputs, output) -> None:
    ctx.save_for_backward(inputs[0], output)


def _backward(ctx, grad: Tensor) -> Tensor:
    x, y = ctx.saved_tensors
    return grad * y / (2 * x)


signed_sqrt.register_autograd(_backward, setup_context=_setup)


@pytest.fixture
def profile() -> Iterator[list[Profile]]:
    """A rule of the operator whose profile a test chooses; gone afterwards."""
    chosen: list[Profile] = []

    def rule(ctx: Lowering, x: Symbol) -> Symbol:
        return ctx.b.pointwise(x, chosen[0])

    registry.rule(torch.ops.torchgauge_test.signed_sqrt)(rule)
    yield chosen
    del registry._RULES[NAME]


def test_an_operator_without_a_rule_is_missing() -> None:
    found = check(NAME)
    assert found.verdict == "missing" and not found.rule
    assert "no rule for torchgauge_test.signed_sqrt.default" in found.because


@pytest.mark.parametrize(
    ("claim", "verdict", "because"),
    [
        (Profile("f", degree=0.5), "right", "24 permutations; dimension 4"),
        (Profile("f", degree=0.5, parity="odd"), "wrong", "changes the outputs"),
        (Profile("f", degree=1.0), "wrong", "changes the outputs"),
        (Profile("f", parity="even"), "wrong", "changes the outputs"),
        (Profile("f"), "missing", "4 of 4 directions"),
    ],
)
def test_rules_are_told_apart(profile: list[Profile], claim: Profile, verdict: str, because: str) -> None:
    profile.append(claim)
    found = check(NAME)
    assert found.verdict == verdict, found.because
    assert because in found.because


@pytest.mark.parametrize(
    "name", ["relu", "tanh", "gelu", "abs", "exp", "mul", "softmax", "layer_norm", "linear", "glu"]
)
def test_rules_of_torch_are_right(name: str) -> None:
    found = check(f"aten.{name}")
    assert found.verdict == "right", found.because
    assert found.trials and found.rule


def test_missing_signs_are_seen_where_there_is_no_dimension() -> None:
    # 1/(1 + e^x) = 1 − 1/(1 + e^−x), but with a bias only: an affine map behind
    trial = check("aten.sigmoid").trials[0]
    assert trial.found is not None and trial.found.signs


def test_a_result_that_a_rule_says_nothing_of_is_opaque() -> None:
    # else it would count as a constant, and elements would change it
    found = check("aten._weight_norm_interface")
    assert found.verdict == "missing" and "result 1" in found.because


def test_rows_picked_from_data_keep_their_shifts() -> None:
    assert check("aten.embedding").verdict != "wrong"


def test_jumps_are_no_missing_directions() -> None:
    # where |x| > 1/2 it is linear, so that derivatives would let scales through
    found = check("aten.hardshrink")
    assert found.verdict == "right" and found.trials[0].nullity is None


def test_dead_parameters_are_not_missed() -> None:
    # two of four units are cut off, and a second argument gives nothing but its type
    assert check("aten.slice").trials[0].nullity == 6
    assert check("aten.type_as").verdict == "right"


def test_kinks_far_from_zero_are_seen() -> None:
    assert check("aten.relu6").trials[0].nullity == 0


def test_an_operator_that_writes_to_its_argument_is_given_a_copy() -> None:
    assert check("aten.relu_").verdict == "right"


def test_data_of_every_domain_are_finite() -> None:
    assert next(calls(resolve("aten.logit")[0])).domain == "fraction"
    assert next(calls(resolve("aten.acosh")[0])).domain == "above one"


@pytest.mark.parametrize("name", ["lstm", "rnn_tanh", "einsum"])
def test_operators_with_lists_of_weights_are_judged(name: str) -> None:
    assert check(f"aten.{name}").verdict == "right"


def test_arguments_may_be_given() -> None:
    found = check("aten.linear", [Data(3, 4), Weight(2, 4)])
    assert found.verdict == "right"
    assert [t.call for t in found.trials] == ["aten.linear.default(Data(3, 4), Weight(2, 4))"]


def test_most_operators_can_be_called() -> None:
    names = [name for name in registered() if name.startswith("aten.s")]
    called = [name for name in names if any(next(calls(o), None) for o in resolve(name))]
    assert len(called) > 0.8 * len(names), sorted(set(names) - set(called))


@pytest.mark.parametrize("name", ["aten.gleu", "nothing", "aten.add.Matrix", ""])
def test_an_operator_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(InputError):
        resolve(name)


# -- the command -----------------------------------------------------------------------------------------------
def test_the_command_answers_by_its_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check-rule", "aten.relu"]) == 0
    assert capsys.readouterr().out.startswith("RIGHT  aten.relu")
    assert run(["check-rule", NAME]) == 1
    assert "MISSING" in capsys.readouterr().out
    assert run(["check-rule", "aten.gleu"]) == 2
    assert "aten.gelu" in capsys.readouterr().err
    assert run(["check-rule"]) == 2
    assert run(["check-rule", "aten.relu", "--load", "no_such_module"]) == 2


def test_the_command_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check-rule", "aten.relu", "aten.gelu", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["schema_version"] == 1 and said["counts"] == {"right": 2}
    assert [o["operator"] for o in said["operators"]] == ["aten.relu", "aten.gelu"]
    assert said["operators"][0]["trials"][0]["nullity"] == said["operators"][0]["trials"][0]["orbit"] == 4
