"""Laws counted by Lie brackets of gradients, which know nothing of the gauge group."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.learn.cases import CATALOGUE, MORE, Net, normal
from torchgauge import learn
from torchgauge.errors import InputError
from torchgauge.learn import written_out
from torchgauge.learn.brackets import bracket


@pytest.mark.parametrize("net", [*CATALOGUE, *MORE], ids=lambda net: net.name)
def test_brackets_count_the_same_laws(net: Net) -> None:
    found = learn.measured_laws(net.model(), net.inputs)
    assert found.settled
    assert (found.laws, found.nullity) == (net.laws, net.gauge if net.nullity is None else net.nullity)
    assert found.gap > 3


def test_written_out_norms_are_the_norms() -> None:
    x, weight, bias = normal(7, 6, 4), normal(6), normal(6)
    mean, variance = normal(6), normal(6).square() + 0.1
    assert torch.allclose(written_out.layer_norm(x, (6, 4)), F.layer_norm(x, (6, 4)))
    assert torch.allclose(written_out.rms_norm(x, (4,)), F.rms_norm(x, (4,)))
    assert torch.allclose(written_out.group_norm(x, 3, weight, bias), F.group_norm(x, 3, weight, bias))
    for training in (True, False):
        expected = F.batch_norm(x, mean.clone(), variance.clone(), weight, bias, training)
        assert torch.allclose(written_out.batch_norm(x, mean, variance, weight, bias, training), expected)


def test_norms_have_right_third_derivatives() -> None:
    """The bracket of a bracket through a norm, against central differences."""

    def field(seed: int):
        def loss(theta: Tensor) -> Tensor:
            with written_out.WrittenOut():
                return (normal(5, 4, seed=seed) * F.layer_norm(theta.reshape(5, 4), (4,), eps=0.1)).sum().sin()

        return torch.func.grad(loss)

    a, b, c = field(1), field(2), field(3)
    inner, theta, step = bracket(a, b), normal(20, seed=4), 1e-5
    exact = bracket(inner, c)(theta)
    along_inner = (c(theta + step * inner(theta)) - c(theta - step * inner(theta))) / (2 * step)
    along_c = (inner(theta + step * c(theta)) - inner(theta - step * c(theta))) / (2 * step)
    assert (exact - (along_inner - along_c)).abs().max() < 1e-6 * exact.abs().max()


def test_large_models_are_refused() -> None:
    with pytest.raises(InputError, match="4000"):
        learn.measured_laws(nn.Linear(100, 100), (normal(2, 100),))
