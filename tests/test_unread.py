"""Masks that no output sees are taken out of a program, and no others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import torchgauge as tg
from tests.zoo.padded import Last, Padded
from torchgauge.spaces import constraints as c
from torchgauge.spaces.unread import unmasked


def _products(model: nn.Module) -> int:
    """Products with masks that are left."""
    group = tg.infer(model, (torch.randint(12, (3, 7)),))
    return sum(isinstance(k, c.Mul) and k.y.mask is not None for k in group.program.constraints)


def test_the_last_mask_makes_the_first_one_needless() -> None:
    assert _products(Padded("mask")) == 1


@pytest.mark.parametrize("last", ["mean", "other", "all"])
def test_a_mask_that_is_seen_stays(last: Last) -> None:
    """Padding is averaged, taken out by another condition, or attended to."""
    torch.manual_seed(0)
    model = Padded(last)
    assert _products(model) == (1 if last == "mean" else 2)
    found = tg.certify(model, (torch.randint(12, (24, 7)),), samples=4)
    assert found.sound


def test_rows_that_are_masked_as_a_whole() -> None:
    """Queries are other positions than keys: where all keys are masked, their mean is read."""

    class Across(Padded):
        def forward(self, ids: Tensor, queries: Tensor) -> Tensor:
            real = ids != 0
            x = self.words(ids) * real.unsqueeze(-1).to(self.words.weight.dtype)
            scores = (self.q(queries) @ self.k(x).mT).masked_fill((real == 0).unsqueeze(1), -3e38)
            return scores.softmax(-1) @ self.v(x)

    inputs = torch.randint(12, (3, 7)), torch.randn(3, 7, 6)
    group = tg.infer(Across(), inputs)
    assert sum(isinstance(k, c.Mul) and k.y.mask is not None for k in group.program.constraints) == 1


def test_a_program_without_masks_is_left_as_it_is() -> None:
    program = tg.infer(nn.Linear(2, 3), (torch.randn(4, 2),)).program
    assert unmasked(program) is program


@pytest.mark.parametrize(
    "mask",
    [
        lambda ids: (ids != 0).to(torch.float32),
        lambda ids: 1 - (ids == 0).to(torch.float32),
        lambda ids: ((ids == 0) == 0).float(),
        lambda ids: (~(ids == 0)).float(),
    ],
)
def test_masks_of_one_condition(mask) -> None:
    """The second mask says the same in another way: ones where `ids == 0` does not hold, or where `ids != 0` does."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.map = nn.Embedding(12, 4), nn.Linear(4, 4)

        def forward(self, ids: Tensor) -> Tensor:
            m = mask(ids).unsqueeze(-1)
            return torch.tanh(self.map(self.words(ids) * m)) * m

    assert _products(Twice()) == 1
