"""How the figures of the pages are drawn: one style, and files that are the same on every run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.figure import Figure


def draw(figures: Mapping[str, Callable[[], Figure]], folder: Path) -> None:
    """Writes every figure to `folder`, as NAME.svg."""
    mpl.use("Agg")
    plt.rcParams.update({
        "svg.hashsalt": "torchgauge", "svg.fonttype": "path", "font.size": 8, "axes.titlesize": 8,
        "axes.spines.top": False, "axes.spines.right": False,
    })  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in figures.items():
        figure = make()
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight")
        plt.close(figure)
        print(folder / f"{name}.svg")
