"""Hidden directions of networks with kinks: at random parameters, and at points where every unit is at work.

    python benchmarks/kinks.py [--seeds 3]

Prints a Markdown table: for every network its parameters, the rank of its generators, and nullity − rank at one random
and one balanced point per seed. All of these networks are complete, so that each number above zero comes from units
that are dead, always on, or never on together.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor, nn

import torchgauge as tg
from torchgauge.certify.completeness import measure
from torchgauge.certify.points import balanced
from torchgauge.certify.subject import Subject

Example = tuple[nn.Module, Tensor]


def layers(*widths: int, act: type[nn.Module] = nn.ReLU) -> Example:
    """Linear layers with an activation between them."""
    parts = [m for a, b in zip(widths, widths[1:], strict=False) for m in (nn.Linear(a, b), act())]
    return nn.Sequential(*parts[:-1]), torch.randn(16, widths[0])


class Residual(nn.Module):
    """relu(x + two convolutions with batch norms), the block of a ResNet."""

    def __init__(self, width: int) -> None:
        super().__init__()
        parts = [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        self.body = nn.Sequential(*parts, nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


def residual(width: int, blocks: int) -> Example:
    stem = [nn.Conv2d(2, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4)]
    net = nn.Sequential(*stem, *(Residual(width) for _ in range(blocks)), *head)
    return net.eval(), torch.randn(16, 2, 6, 6)


NETWORKS: dict[str, Callable[[], Example]] = {
    "ReLU 10-80-10": lambda: layers(10, 80, 10),
    "ReLU 4-32-32-32-4": lambda: layers(4, 32, 32, 32, 4),
    "ReLU 8-12-12-12-12-12-4": lambda: layers(8, 12, 12, 12, 12, 12, 4),
    "ReLU6 6-30-30-4": lambda: layers(6, 30, 30, 4, act=nn.ReLU6),
    "ReLU 3-40-40-2": lambda: layers(3, 40, 40, 2),
    "ResNet, width 4, 3 blocks": lambda: residual(4, 3),
}


def hidden(make: Callable[[], Example], seed: int, balance: bool) -> tuple[int, int, int]:
    """Parameters, rank of the generators and hidden directions at one point."""
    torch.manual_seed(seed)
    net, x = make()
    generator = torch.Generator().manual_seed(seed)
    group = tg.infer(net, (x,))
    subject = Subject(net, (x,), {}, generator)
    if balance:
        subject.renew(balanced(subject, generator))
    found = measure(subject, [t for _, t in group.tangents(subject.generic)], [])
    return subject.parameters, found.orbit_dimension, found.hidden


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = range(parser.parse_args().seeds)
    print("| network | parameters | orbit | hidden at random points | hidden at balanced points |")
    print("|---|---:|---:|---:|---:|")
    for name, make in NETWORKS.items():
        found = {balance: [hidden(make, seed, balance) for seed in seeds] for balance in (False, True)}
        parameters, orbit, _ = found[True][0]
        counts = " | ".join(", ".join(str(h) for *_, h in found[balance]) for balance in (False, True))
        print(f"| {name} | {parameters} | {orbit} | {counts} |", flush=True)


if __name__ == "__main__":
    main()
