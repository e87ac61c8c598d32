"""Convolutions with padding: what their kernels may do where the edges of a picture are read too."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.zoo.blocks import normal
from tests.zoo.case import Case


class Edges(nn.Module):
    """A convolution with padding and no bias behind a layer norm: its weights take up what the norm's bias adds."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(7, d), nn.LayerNorm(d, eps=0.1)
        self.window, self.beside = nn.Conv2d(d, 4, 3, padding=1, bias=False), nn.Linear(d, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x))
        picture = x.transpose(1, 2).unflatten(2, (3, 3))
        return torch.tanh(self.window(picture).flatten(2).transpose(1, 2)) + torch.sigmoid(self.beside(x))


class Halved(nn.Module):
    """A convolution of stride two with padding and no bias behind a layer norm, read where no constant may arrive."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(7, d), nn.LayerNorm(d, eps=0.1)
        self.window = nn.Conv2d(d, 3, 3, 2, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        picture = self.norm(self.first(x)).transpose(1, 2).unflatten(2, (4, 4))
        return torch.tanh(self.window(picture))


class Inside(nn.Module):
    """A convolution with padding and a bias behind a layer norm: taps that never meet the padding trade with it."""

    def __init__(self, d: int, *picture: int, stride: int = 2) -> None:
        super().__init__()
        self.first, self.norm, self.window = nn.Linear(7, d), nn.LayerNorm(d, eps=0.1), nn.Conv2d(d, 4, 3, stride, 1)
        self.picture = picture

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).transpose(1, 2)
        return torch.tanh(self.window(x.unflatten(2, self.picture)))


class Narrow(nn.Module):
    """Convolutions that halve a picture until one column is left, on whose sides there is padding alone."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, d, 3, stride=2, padding=1)
        self.second = nn.Conv2d(d, d, 3, stride=2, padding=1, groups=d)
        self.out = nn.Linear(d, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.second(torch.tanh(self.first(x)))).mean((-1, -2)))


class Widened(nn.Module):
    """A convolution of more channels than they are made of: free across those that are never reached."""

    def __init__(self, window: nn.Module, side: int) -> None:
        super().__init__()
        self.first, self.window, self.out, self.side = nn.Linear(2, 4), window, nn.Conv2d(3, 2, 1), side

    def forward(self, x: Tensor) -> Tensor:
        picture = self.first(x).transpose(1, 2).unflatten(2, (self.side, self.side))
        return self.out(torch.tanh(self.window(picture)))


def _widened(kind: str, window: Callable[[], nn.Module], orbit: int, side: int = 4) -> Case:
    # GL of four channels, of which four numbers move what no result sees; and for every result changes across the two
    # channels that are written, at every tap, less a condition for every kind of place, where a bias adds one number
    return Case(f"widened_{kind}", lambda: Widened(window(), side), normal(24, side * side, 2), orbit, batches=4)


CASES: tuple[Case, ...] = (
    Case("stride_with_edges", lambda: Halved(5), normal(24, 16, 7), 24 + 5 * 3, batches=4),
    Case("edges_of_a_window", lambda: Edges(5), normal(24, 9, 7), 28, batches=4),
    Case("inside_a_window", lambda: Inside(5, 4, 5), normal(24, 20, 7), 40, batches=4),
    Case("inside_a_small_window", lambda: Inside(5, 2, 2, stride=1), normal(80, 4, 7), 48, batches=4),
    _widened("without_padding", lambda: nn.Conv2d(4, 3, 3), 12 + 3 * (9 * 2 - 1 + 1)),
    _widened("with_padding", lambda: nn.Conv2d(4, 3, 3, padding=1), 12 + 3 * (9 * 2 - 9 + 1)),
    _widened("with_padding_nobias", lambda: nn.Conv2d(4, 3, 3, padding=1, bias=False), 12 + 3 * (9 * 2 - 9)),
    _widened("with_stride", lambda: nn.Conv2d(4, 3, 3, 2, padding=1), 12 + 3 * (9 * 2 - 4 + 1)),
    _widened("transposed", lambda: nn.ConvTranspose2d(4, 3, 2, 2), 12 + 3 * (4 * 2 - 4 + 1), 3),
    _widened("transposed_overlap", lambda: nn.ConvTranspose2d(4, 3, 3, 2), 12 + 3 * (9 * 2 - 10 + 1), 3),
    # three channels, and three taps of each in the column that meets padding alone
    Case("taps_on_padding", lambda: Narrow(3), normal(60, 1, 8, 4), 9, batches=4),
)
