"""Draws the figures of docs/fields.md: `make figures`, or

    python examples/fields_figures.py [FOLDER]

Needs the extra `plot`. Writes SVG files: connected correlators against width, and couplings against the cutoff.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch
from drawing import draw
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from torchgauge import fields

INK, WARM, COOL, PALE = "#222222", "#c1440e", "#1f6f8b", "#b8b8b8"
STEPS = torch.tensor([-1, -0.6, -0.2, 0.2, 0.6, 1], dtype=torch.float64)
POSITIVE = torch.tensor([0.2, 0.4, 0.6, 0.8, 1.0, 1.2], dtype=torch.float64)
WIDTHS = [2, 3, 5, 10, 20, 50, 100, 200, 500, 1000]
NETS = {
    "Erf net": (fields.erf_net, STEPS),
    "Gauss net": (fields.gauss_net, 0.01 * STEPS),
    "ReLU net": (fields.relu_net, POSITIVE),
}


def widths() -> plt.Figure:
    """κ4 and κ6 against width: exact curves, U-statistics over neurons, plain averages."""
    figure, axes = plt.subplots(1, 3, figsize=(10.4, 3.4), sharex=True, layout="constrained")
    for axis, (name, (make, points)) in zip(axes, NETS.items(), strict=True):
        for n, tuples, color in ((4, [[0, 1, 4, 5]], COOL), (6, [[0] * 6], WARM)):
            exact = [fields.correlator(make(w), points, n, tuples=tuples) for w in WIDTHS]
            axis.loglog(WIDTHS, [float(e.values[0].abs()) for e in exact], color=color, lw=1.1)
            axis.annotate(f"|κ{n}|", (WIDTHS[-1], float(exact[-1].values[0].abs())), color=color, fontsize=8)
            sampled(axis, make, points, n, tuples, color)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", fields.PrecisionWarning)
            noise(axis, make, points)
        axis.set(title=name, xlabel="width N")
    axes[0].set_ylabel("connected correlators")
    axes[0].legend(fontsize=7, loc="lower left", frameon=False)
    return figure


def sampled(axis: Axes, make, points: torch.Tensor, n: int, tuples: list[list[int]], color: str) -> None:
    """Estimates from as many neurons at every width. Of the Gauss net they miss the tail, and the library warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fields.PrecisionWarning)  # of the Gauss net: that is what the figure shows
        found = [
            fields.correlator(make(w), points, n, tuples=tuples, estimator="neurons", networks=max(2, 400_000 // w))
            for w in WIDTHS
        ]
    values = torch.stack([f.values[0] for f in found]).abs()
    errors = torch.stack([f.error[0] for f in found])
    label = "U-statistic over 400 000 neurons" if n == 4 else None
    axis.errorbar(WIDTHS, values, torch.minimum(errors, 0.9 * values), fmt="o", ms=3, color=color, lw=0.8, label=label)


def noise(axis: Axes, make, points: torch.Tensor) -> None:
    """The standard error of plain averages over as many networks: what hides κ4."""
    errors = [
        float(
            fields.correlator(
                make(w), points, 4, tuples=[[0, 1, 4, 5]], estimator="plain", networks=max(512, 400_000 // w)
            ).error[0]
        )
        for w in WIDTHS[:8]
    ]
    axis.loglog(WIDTHS[:8], errors, "x--", ms=3.5, color=PALE, lw=0.8, label="error of plain averages of κ4")


def flows() -> plt.Figure:
    """λ0 against the cutoff for ReLU nets of one, two and three inputs, and for the Erf net."""
    square = torch.cartesian_prod(*[torch.tensor([0.5, 1.0], dtype=torch.float64)] * 2)
    cube = torch.tensor([[0.2, 0.2, 0.2], [1, 1, 0.2], [0.2, 1, 1], [1, 0.2, 1]], dtype=torch.float64)
    runs = [
        ("ReLU, d = 1", fields.relu_net(20), POSITIVE[:, None], INK),
        ("ReLU, d = 2", fields.relu_net(20, 2), square, COOL),
        ("ReLU, d = 3", fields.relu_net(20, 3), cube, WARM),
        ("Erf, d = 1", fields.erf_net(5), 0.01 * POSITIVE[:, None], PALE),
    ]
    figure, axis = plt.subplots(figsize=(5.6, 3.8), layout="constrained")
    for name, ensemble, points, color in runs:
        cutoffs = [7.0, 20.0, 100.0, 1000.0] if points.shape[1] == 3 else [7.0, 20.0, 100.0, 1e3, 1e4, 1e5]
        kappa4 = fields.correlator(ensemble, points, 4, networks=20_000)
        run = fields.flow(ensemble, points, cutoffs, kappa4)
        label = f"{name}: slope {float(run.slopes[-1]):z.3f}"
        axis.loglog(run.cutoffs, run.couplings.abs(), "o-", ms=3.5, lw=1.1, color=color, label=label)
    axis.set(xlabel="cutoff Λ", ylabel="|λ0|")
    axis.legend(fontsize=7, frameon=False)
    return figure


def main(folder: Path) -> None:
    """Writes correlators.svg and flow.svg."""
    draw({"correlators": widths, "flow": flows}, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("docs/figures"))
