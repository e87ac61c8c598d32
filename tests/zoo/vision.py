"""Vision networks in the style of torchvision, and torch.nn's own transformers, at small widths."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import Case


def images(batch: int, channels: int, size: int, scale: float = 1.5) -> Callable[[torch.Generator], tuple[Tensor]]:
    return lambda g: (scale * torch.randn(batch, channels, size, size, generator=g, dtype=torch.float64),)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with batch norm beside the identity or a projected shortcut."""

    def __init__(self, a: int, b: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(a, b, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(b)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(b, b, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(b)
        self.downsample = None
        if stride != 1 or a != b:
            self.downsample = nn.Sequential(nn.Conv2d(a, b, 1, stride, bias=False), nn.BatchNorm2d(b))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    """Stem, max-pooling, stages of basic blocks, average pooling, a linear head."""

    def __init__(self, widths: tuple[int, ...] = (4, 6), classes: int = 5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        blocks = [BasicBlock(widths[0], widths[0], 1)]
        blocks += [BasicBlock(a, b, 2) for a, b in zip(widths, widths[1:], strict=False)]
        self.layers = nn.Sequential(*blocks)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(self.avgpool(self.layers(x)), 1))


class OptionA(nn.Module):
    """ResNet for CIFAR with shortcuts that subsample and pad channels with zeros (the checkpoint's architecture)."""

    class Block(nn.Module):
        def __init__(self, a: int, b: int, stride: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(a, b, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(b)
            self.conv2 = nn.Conv2d(b, b, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(b)
            self.pad = (b - a) // 2 if stride != 1 or a != b else None

        def forward(self, x: Tensor) -> Tensor:
            out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
            if self.pad is not None:
                x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad), "constant", 0)
            return F.relu(out + x)

    def __init__(
        self, widths: tuple[int, ...] = (16, 32, 64), blocks: int = 3, channels: int = 3, classes: int = 10
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        inner = widths[0]
        for i, width in enumerate(widths):
            stage = []
            for j in range(blocks):
                stage.append(self.Block(inner, width, 2 if i > 0 and j == 0 else 1))
                inner = width
            self.add_module(f"layer{i + 1}", nn.Sequential(*stage))
        self.stages = len(widths)
        self.linear = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for i in range(self.stages):
            x = getattr(self, f"layer{i + 1}")(x)
        x = F.avg_pool2d(x, x.size()[3])
        return self.linear(x.view(x.size(0), -1))


def conv_bn_relu6(a: int, b: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(a, b, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(b), nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    """Expand, depthwise, linear projection: the bottleneck has no activation and carries GL(c)."""

    def __init__(self, a: int, b: int, stride: int, expand: int) -> None:
        super().__init__()
        inner = a * expand
        layers: list[nn.Module] = [conv_bn_relu6(a, inner, 1)] if expand != 1 else []
        layers += [conv_bn_relu6(inner, inner, 3, stride, groups=inner)]
        layers += [nn.Conv2d(inner, b, 1, bias=False), nn.BatchNorm2d(b)]
        self.conv = nn.Sequential(*layers)
        self.use_res_connect = stride == 1 and a == b

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.use_res_connect else self.conv(x)


class MobileNetV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            conv_bn_relu6(2, 4, 3),
            InvertedResidual(4, 3, 1, 1),
            InvertedResidual(3, 4, 2, 2),
            InvertedResidual(4, 4, 1, 2),
            conv_bn_relu6(4, 6, 1),
        )
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(6, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.features(x), (1, 1))
        return self.classifier(torch.flatten(x, 1))


class VGG(nn.Module):
    """Convolutions with bias, max-pooling, a classifier of three linears with dropout."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in ((2, 4), (4, 5)):
            layers += [
                nn.Conv2d(a, b, 3, padding=1),
                *([nn.BatchNorm2d(b)] if norm else []),
                nn.ReLU(True),
                nn.MaxPool2d(2, 2),
            ]
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((2, 2))
        widths = (5 * 4, 6, 6)
        self.classifier = nn.Sequential(
            *(
                m
                for a, b in zip(widths, widths[1:], strict=False)
                for m in (nn.Linear(a, b), nn.ReLU(True), nn.Dropout())
            ),
            nn.Linear(6, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class Encoder(nn.Module):
    """torch.nn.TransformerEncoder between a linear read-in and a head."""

    def __init__(self, norm_first: bool, layers: int = 2, activation: str = "relu") -> None:
        super().__init__()
        self.read = nn.Linear(9, 8)
        one = nn.TransformerEncoderLayer(8, 2, 6, 0.0, activation, batch_first=True, norm_first=norm_first)
        final = nn.LayerNorm(8) if norm_first else None
        self.encoder = nn.TransformerEncoder(one, layers, norm=final, enable_nested_tensor=False)
        self.head = nn.Linear(8, 9)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.read(x)))


class Decoder(nn.Module):
    """torch.nn.TransformerDecoder with a causal mask, reading a float memory."""

    def __init__(self, norm_first: bool, layers: int = 1) -> None:
        super().__init__()
        self.read = nn.Linear(9, 8)
        one = nn.TransformerDecoderLayer(8, 2, 6, 0.0, "gelu", batch_first=True, norm_first=norm_first)
        self.decoder = nn.TransformerDecoder(one, layers, norm=nn.LayerNorm(8) if norm_first else None)
        self.head = nn.Linear(8, 9)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        t = x.shape[1]
        mask = torch.full((t, t), float("-inf"), dtype=x.dtype).triu(1)
        return self.head(self.decoder(self.read(x), memory, tgt_mask=mask, tgt_is_causal=True))


def sequences(*widths: int, batch: int = 16, length: int = 6) -> Callable[[torch.Generator], tuple[Tensor, ...]]:
    def make(g: torch.Generator) -> tuple[Tensor, ...]:
        return tuple(1.5 * torch.randn(batch, length, w, generator=g, dtype=torch.float64) for w in widths)

    return make


class Patches(nn.Module):
    """Patches behind a class token, positions from a table at fixed places, a norm, and a layer for every token."""

    places: Tensor

    def __init__(self, d: int, out: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, d, 2, 2)
        self.token = nn.Parameter(torch.zeros(d))
        self.positions = nn.Embedding(5, d)
        self.register_buffer("places", torch.arange(5)[None], persistent=False)
        self.norm = nn.LayerNorm(d, eps=0.1)
        self.read = nn.Linear(d, 6)
        self.out = nn.Linear(6, out)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.shape[0], 1, -1), patches], 1) + self.positions(self.places)
        hidden = F.gelu(self.read(self.norm(tokens)))
        return torch.cat([self.out(hidden[:, :1]), self.out(hidden[:, 1:]).mean(1, keepdim=True)], 1)


CASES: tuple[Case, ...] = (
    Case("patches", lambda: Patches(5, 6), images(24, 3, 4), 49, batches=8),
    Case("resnet", ResNet, images(16, 2, 8), 56, batches=30, seed=5),
    Case("resnet_option_a", lambda: OptionA((4, 6), 1, 2, 5), images(16, 2, 8), 40, batches=30),
    Case("mobilenet_v2", MobileNetV2, images(16, 2, 8, 4.0), 89, batches=30),
    Case("vgg", VGG, images(24, 2, 8), 21, batches=30, centre=True),
    Case("vgg_bn", lambda: VGG(norm=True), images(24, 2, 8), 39, batches=30, centre=True, seed=1),
    Case("encoder_pre", lambda: Encoder(True), sequences(9), 384, batches=4, centre=True),
    Case("encoder_post", lambda: Encoder(False), sequences(9), 305, batches=4, centre=True),
    Case(
        "encoder_post_gelu",
        lambda: Encoder(False, 1, "gelu"),
        sequences(9),
        152,
        row="theory 5",
        batches=4,
    ),
    Case("decoder_pre", lambda: Decoder(True), sequences(9, 8), 327, batches=4),
    Case("decoder_post", lambda: Decoder(False), sequences(9, 8), 256, batches=4),
)
