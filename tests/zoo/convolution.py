"""Catalogue 1.5: convolutions of every kind, pooling, padding, shortcuts."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.blocks import normal
from tests.zoo.case import Case

Layer = Callable[[], nn.Module]


def stack(*layers: Layer) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*(layer() for layer in layers))


def conv(a: int, b: int, size: int = 3, **options: object) -> Layer:
    return lambda: nn.Conv2d(a, b, size, **options)  # type: ignore[arg-type]


class PadShortcut(nn.Module):
    """Two convolutions beside a shortcut that subsamples and pads channels with zeros (option A)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.first = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = self.second(F.relu(self.first(x)))
        x = F.relu(y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1)))
        return self.head(x.mean((2, 3)))


class Branches(nn.Module):
    """Two branches concatenated over channels, read by one convolution; then split again."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 3, 3, padding=1)
        self.b = nn.Conv2d(2, 2, 1)
        self.mix = nn.Conv2d(5, 4, 1)
        self.out = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat((F.relu(self.a(x)), F.gelu(self.b(x))), 1)
        left, right = F.relu(self.mix(x)).chunk(2, 1)
        return self.out(left) + torch.tanh(right)


class FilteredValues(nn.Module):
    """Values of two heads, filtered along the tokens by windows of one entry (Nyströmformer)."""

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Linear(5, 6)
        self.filter = nn.Conv2d(2, 2, (3, 1), padding=(1, 0), groups=2, bias=False)
        self.out = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.filter(self.values(x).view(*x.shape[:2], 2, 3).transpose(1, 2))
        return self.out(heads.transpose(1, 2).flatten(2)).tanh()


IMAGES = normal(24, 2, 6, 6)
MANY = normal(80, 2, 6, 6)
FLAT: Layer = lambda: nn.Flatten()  # noqa: E731

CASES: tuple[Case, ...] = (
    Case("conv_relu", stack(conv(2, 4), nn.ReLU, conv(4, 3)), IMAGES, 4, row="1.5"),
    Case("conv_gelu", stack(conv(2, 4), nn.GELU, conv(4, 3)), IMAGES, 0, row="1.5"),
    Case("conv_linear", stack(conv(2, 3), conv(3, 2)), IMAGES, 9 + 3, row="1.1"),
    Case(
        "conv_linear_padded",
        stack(conv(2, 3), conv(3, 2, padding=1)),
        IMAGES,
        9,
        row="1.1",
    ),
    Case(
        "conv_depthwise_relu",
        stack(conv(2, 4, 1, bias=False), conv(4, 4, 3, groups=4, bias=False), nn.ReLU, conv(4, 3, 1)),
        MANY,
        8,
        row="1.5",
    ),
    Case(
        "conv_depthwise_bias_gelu",
        stack(conv(2, 4, 1), conv(4, 4, 3, groups=4), nn.GELU, conv(4, 3, 1)),
        MANY,
        8,
        row="1.5",
    ),
    Case("conv_grouped_relu", stack(conv(2, 4), nn.ReLU, conv(4, 6, 3, groups=2), nn.ReLU, conv(6, 2, 1)), MANY, 10),
    Case(
        "conv_maxpool_relu",
        stack(conv(2, 4), nn.ReLU, lambda: nn.MaxPool2d(2), FLAT, lambda: nn.Linear(16, 3)),
        MANY,
        4,
    ),
    Case("conv_maxpool", stack(conv(2, 4), lambda: nn.MaxPool2d(2), FLAT, lambda: nn.Linear(16, 3)), MANY, 8),
    Case(
        "conv_avgpool_gap",
        stack(
            conv(2, 4), nn.ReLU, lambda: nn.AvgPool2d(2), lambda: nn.AdaptiveAvgPool2d(1), FLAT, lambda: nn.Linear(4, 3)
        ),
        MANY,
        4,
    ),
    Case("conv_transposed", stack(lambda: nn.ConvTranspose2d(2, 4, 2, stride=2), nn.ReLU, conv(4, 3, 1)), IMAGES, 4),
    Case(
        "conv_1d",
        stack(lambda: nn.Conv1d(2, 4, 3), nn.ReLU, lambda: nn.Conv1d(4, 3, 2)),
        normal(60, 2, 8),
        4,
    ),
    Case(
        "conv_3d",
        stack(lambda: nn.Conv3d(2, 3, 2), nn.ReLU, lambda: nn.Conv3d(3, 2, 1)),
        normal(24, 2, 3, 3, 3),
        3,
    ),
    Case("conv_pad_shortcut", PadShortcut, normal(60, 2, 6, 6), 12, batches=16),
    Case("conv_branches", Branches, MANY, 5),
    # GL(3) for each head, and its filter may trade one number with its values
    Case("conv_filtered_values", FilteredValues, normal(60, 7, 5), 2 * (9 + 1)),
)
