"""How many slices and matrix products the methods for Wilson lines need on fields of different kinds.

    python benchmarks/wilson_spectra.py [--target 1e-6] [--size 16]

Every method gets the fewest even slices of [0, 1] with which the relative error meets the target; a slice costs its
own products and one to join it. No clocks are read, so the numbers are the same on every machine.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import torch
from torch import Tensor

from torchgauge.ode.wilson import METHODS, wilson

Field = Callable[[Tensor], Tensor]
SHOWN = ("rk4", "dyson4", "rk6", "dyson6", "rk8")


def fields(d: int) -> dict[str, Field]:
    """w(t) with Gaussian coefficients of size 1/√d, for times [n]."""
    table = torch.randn(40, d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / d**0.5
    a, b, c = table[:3]

    def waves(modes: int, decay: float = 1.0, size: float = 1.0) -> Field:
        k = torch.arange(modes + 1, dtype=torch.float64)

        def w(t: Tensor) -> Tensor:
            phase, height = 2 * math.pi * t[:, None] * k, size * decay**k
            split = modes + 1
            even, odd = phase.cos() * height, phase.sin() * height
            return torch.tensordot(even, table[:split], 1) + torch.tensordot(odd, table[split : 2 * split], 1)

        return w

    def at(t: Tensor) -> Tensor:
        return t[:, None, None]

    return {
        "one Fourier mode": waves(1),
        "five": waves(5),
        "ten": waves(10),
        "decaying modes": waves(11, 0.6, 3.0),
        "strong and slow": lambda t: 8 * (a + b * at(t) + c * at(t) ** 2),
        "a pulse": lambda t: 2 * a + 5 * b * torch.exp(-(((at(t) - 0.5) / 0.1) ** 2)),
    }


def slices_for(w: Field, method: str, exact: Tensor, target: float) -> int | None:
    """The fewest even slices that meet the target, up to 400."""
    for n in range(1, 400):
        if float((wilson(w, [0.0, 1.0], slices=n, method=method).total - exact).norm() / exact.norm()) <= target:
            return n
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=float, default=1e-6)
    parser.add_argument("--size", type=int, default=16)
    options = parser.parse_args()
    print(f"| w | {' | '.join(SHOWN)} |\n|---|{'---:|' * len(SHOWN)}")
    for name, w in fields(options.size).items():
        exact = wilson(w, [0.0, 1.0], slices=600).total
        cells = []
        for method in SHOWN:
            n = slices_for(w, method, exact, options.target)
            count = METHODS[method].products + 1  # pyright: ignore[reportAttributeAccessIssue]
            cells.append("> 400" if n is None else f"{n} ({n * count})")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
