"""Streams in which padding is set to zero by masks that `forward` computes from the tokens."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from tests.zoo.blocks import tokens
from tests.zoo.case import Case

Last = Literal["mask", "mean", "other", "all"]


class Padded(nn.Module):
    """A post-norm block of XLM: masked in front and behind, with attention that gives padding no weight.

    last: what reads the stream in the end: a mask, the mean over tokens, a mask of another condition; or a mask, where
    attention has none ("all").
    """

    def __init__(self, last: Last = "mask", words: int = 12, d: int = 6) -> None:
        super().__init__()
        self.last: Last = last
        self.words, self.places = nn.Embedding(words, d), nn.Embedding(7, d)
        self.norms = nn.ModuleList(nn.LayerNorm(d, eps=0.1) for _ in range(3))
        self.q, self.k, self.v, self.o = (nn.Linear(d, d) for _ in range(4))
        self.up, self.down = nn.Linear(d, 4), nn.Linear(4, d)

    def forward(self, ids: Tensor) -> Tensor:
        real = torch.arange(ids.shape[1]) < (ids != 0).sum(1)[:, None]
        x = self.norms[0](self.words(ids) + self.places(torch.arange(ids.shape[1])))
        x = x * real.unsqueeze(-1).to(x.dtype)
        q, k, v = (m(x).unflatten(-1, (2, -1)).transpose(1, 2) for m in (self.q, self.k, self.v))
        scores = q @ k.transpose(2, 3)
        if self.last != "all":
            scores = scores.masked_fill((real == 0).view(len(ids), 1, 1, -1).expand_as(scores), -3e38)
        x = self.norms[1](x + self.o((scores.softmax(-1) @ v).transpose(1, 2).flatten(2)))
        x = self.norms[2](x + self.down(nn.functional.gelu(self.up(x))))
        if self.last == "mean":
            return x.mean(1)
        return x * ((ids != 1) if self.last == "other" else real).unsqueeze(-1).to(x.dtype)


CASES: tuple[Case, ...] = (Case("padded_stream", Padded, tokens(12, 48, 7), 118, batches=4),)
