"""Does breaking the rotations of the outputs at initialisation help training? The experiment of arXiv 2106.00694.

    python examples/symmetry_breaking.py                     # scikit-learn's digits, a few minutes on one core
    python examples/symmetry_breaking.py --images train-images-idx3-ubyte.gz --labels train-labels-idx1-ubyte.gz

Draws a heat map of the test accuracy over the mean μ of the last layer's first k rows and over k, for one-hot and
one-cold targets, with errors over seeds. Needs scikit-learn for the digits (extra `demo`) and matplotlib for the figure
(extra `plot`). A run that is interrupted goes on where it stopped: what is done stands in the file of results.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from torchgauge.errors import TorchGaugeError
from torchgauge.fields.breaking import Settings, Stack, stacked, train
from torchgauge.fields.errors import RunFileError
from torchgauge.fields.images import Images, digits, idx_images

KINDS = ("one-hot", "one-cold")
MUS = tuple(round(0.02 * i, 2) for i in range(11))


@dataclass(frozen=True)
class Plan:
    """What is run: the grid, the seeds and the settings.

    Attributes:
        mus: means of the broken rows; 0 is always among them, for comparison.
        ks: numbers of broken rows.
        seeds: numbers of the seeds.
        settings: of the training.
    """

    mus: tuple[float, ...]
    ks: tuple[int, ...]
    seeds: tuple[int, ...]
    settings: Settings

    def cells(self) -> list[tuple[str, float]]:
        """Stacks that are trained in one go."""
        return [(kind, mu) for kind in KINDS for mu in self.mus]


def key(kind: str, mu: float) -> str:
    return f"{kind} mu={mu:g}"


# -- the file of results -------------------------------------------------------------------------------------------
def fingerprint(plan: Plan, images: Images) -> dict[str, Any]:
    """What results depend on, the grid of μ aside."""
    data = hashlib.sha256(images.x.numpy().tobytes() + images.y.numpy().tobytes()).hexdigest()[:16]
    shown = {"data": images.name, "sha256": data, "ks": list(plan.ks), "seeds": list(plan.seeds)}
    return shown | {"settings": plan.settings.to_dict()}


def load(path: Path, about: dict[str, Any]) -> dict[str, Any]:
    """The results so far.

    Raises:
        RunFileError: the file is damaged or belongs to another plan.
    """
    if not path.exists():
        return {"about": about, "cells": {}}
    try:
        found = json.loads(path.read_text())
        same = found["about"] == about
        found["cells"].items()
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise RunFileError(
            f"the results cannot be read: {error}", str(path), "Give another file, or remove it."
        ) from error
    if not same:
        raise RunFileError(
            "the results belong to other settings, seeds, data or values of k",
            str(path),
            "Give another --results file.",
        )
    return found


def save(path: Path, results: dict[str, Any]) -> None:
    """Write beside the file, then rename: an interruption leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps(results))
    os.replace(beside, path)


# -- the run -------------------------------------------------------------------------------------------------------
def run(plan: Plan, images: Images, path: Path) -> dict[str, Any]:
    """Train what is not in the file yet."""
    results = load(path, fingerprint(plan, images))
    todo = [cell for cell in plan.cells() if key(*cell) not in results["cells"]]
    stack = stacked(images, plan.seeds, plan.settings)
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("training", total=max(1, len(todo) * (plan.settings.epochs + 1)))
        for number, (kind, mu) in enumerate(todo, 1):
            start = time.perf_counter()
            progress.update(bar, description=key(kind, mu))
            results["cells"][key(kind, mu)] = one_stack(plan, stack, kind, mu, lambda: progress.advance(bar))
            save(path, results)
            if not console.is_terminal:
                took = time.perf_counter() - start
                print(f"{number}/{len(todo)} {key(kind, mu)}: {took:.1f} s", file=sys.stderr, flush=True)
    return results


def one_stack(plan: Plan, stack: Stack, kind: Any, mu: float, advance: Any) -> dict[str, Any]:
    """All seeds and all k of one mean and one kind of target."""
    curves = []
    for curve in train(stack, mu, plan.ks, kind, plan.settings):
        curves = [curve]
        advance()
    accuracy, epoch = curves[0].chosen()
    return {"accuracy": accuracy.tolist(), "epoch": epoch.tolist()}


# -- what was found ------------------------------------------------------------------------------------------------
def summary(results: dict[str, Any], plan: Plan, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Mean accuracy, mean difference to μ = 0 of the same seed, and the standard error of the latter [mus, ks]."""
    cells = [torch.tensor(results["cells"][key(kind, mu)]["accuracy"]) for mu in plan.mus]
    accuracy = torch.stack(cells)  # [mus, seeds, ks]
    gain = accuracy - accuracy[plan.mus.index(0.0)]
    error = gain.std(1) / len(plan.seeds) ** 0.5 if len(plan.seeds) > 1 else torch.full_like(gain[:, 0], float("nan"))
    return accuracy.mean(1), gain.mean(1), error


def report(results: dict[str, Any], plan: Plan) -> str:
    """The findings in a few lines."""
    lines = []
    for kind in KINDS:
        accuracy, gain, error = summary(results, plan, kind)
        lines.append(f"{kind}: {accuracy[plan.mus.index(0.0), 0]:.2%} at the invariant start (mu = 0)")
        flat = gain.flatten()
        for name, at in (("best", int(flat.argmax())), ("worst", int(flat.argmin()))):
            i, j = divmod(at, len(plan.ks))
            lines.append(
                f"  {name}: mu = {plan.mus[i]:g}, k = {plan.ks[j]}: {accuracy[i, j]:.2%}, "
                f"{100 * gain[i, j]:+.2f} ± {100 * error[i, j]:.2f} points to the invariant start"
            )
        broken = [(i, j) for i, mu in enumerate(plan.mus) for j, k in enumerate(plan.ks) if mu and k]
        better = sum(bool(gain[i, j] > 2 * error[i, j]) for i, j in broken)
        worse = sum(bool(gain[i, j] < -2 * error[i, j]) for i, j in broken)
        lines.append(
            f"  of {len(broken)} broken starts {better} are better and {worse} worse by more than two standard errors"
        )
    return "\n".join(lines)


def figure(results: dict[str, Any], plan: Plan, images: Images, path: Path) -> None:
    """Heat maps: accuracy, difference to the invariant start, standard error of the difference."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "torchgauge"
    from matplotlib import pyplot as plt

    fig, axes = plt.subplots(2, 3, figsize=(11, 6.6), layout="constrained")
    for row, kind in zip(axes, KINDS, strict=True):
        accuracy, gain, error = (100 * part.numpy() for part in summary(results, plan, kind))
        reach = max(abs(gain).max(), 1e-9)
        panels = [
            (accuracy, f"{kind}: test accuracy, %", {"cmap": "viridis"}),
            (gain, "difference to μ = 0, points (× within 2 errors)", {"cmap": "RdBu", "vmin": -reach, "vmax": reach}),
            (error, "standard error of the difference", {"cmap": "Greys", "vmin": 0}),
        ]
        for axis, (values, title, style) in zip(row, panels, strict=True):
            image = axis.imshow(values, origin="lower", aspect="auto", **style)
            axis.set_xticks(range(len(plan.ks)), [str(k) for k in plan.ks])
            axis.set_yticks(range(len(plan.mus)), [f"{mu:g}" for mu in plan.mus])
            axis.set(xlabel="k, rows with a mean", ylabel="μ", title=title)
            axis.title.set_fontsize(10)
            fig.colorbar(image, ax=axis)
        grid = [(i, j) for i, mu in enumerate(plan.mus) for j, k in enumerate(plan.ks) if mu and k]
        unclear = [(j, i) for i, j in grid if abs(gain[i, j]) <= 2 * error[i, j]]
        if unclear:
            row[1].scatter(*zip(*unclear, strict=True), marker="x", s=12, linewidths=0.7, color="#555555")
    fig.suptitle(f"{images.name}: {len(plan.seeds)} seeds, epoch chosen on a validation split")
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(fig)


# -- the command ---------------------------------------------------------------------------------------------------
def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--images", type=Path, help="IDX file of images; without it: scikit-learn's digits")
    out.add_argument("--labels", type=Path, help="IDX file of labels")
    out.add_argument("--mu", type=float, nargs="+", default=MUS, help="means of the broken rows (0 to 0.2)")
    out.add_argument("--k", type=int, nargs="+", help="numbers of broken rows (0 to the number of classes)")
    out.add_argument("--seeds", type=int, default=8, help="how many seeds (8)")
    out.add_argument("--epochs", type=int, default=20, help="epochs (20)")
    out.add_argument("--passes", type=int, help="passes over the data per epoch (4 for the small digits, else 1)")
    out.add_argument("--train", type=int, default=0, help="at most so many training images (all)")
    out.add_argument("--results", type=Path, default=Path("symmetry_breaking.json"), help="file of results")
    out.add_argument("--figure", type=Path, default=Path("symmetry_breaking.svg"), help="figure, .svg, .png or .pdf")
    return out


def planned(options: argparse.Namespace, images: Images) -> Plan:
    passes = options.passes or (1 if options.images else 4)
    settings = Settings(epochs=options.epochs, passes=passes, train=options.train)
    ks = tuple(options.k) if options.k is not None else tuple(range(images.classes + 1))
    mus = tuple(dict.fromkeys([0.0, *sorted(options.mu)]))
    return Plan(mus, ks, tuple(range(options.seeds)), settings)


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        if (options.images is None) != (options.labels is None):
            raise TorchGaugeError("images without labels, or labels without images", "", "Give --images and --labels.")
        if options.seeds < 1:
            raise TorchGaugeError(f"{options.seeds} seeds", "--seeds", "Give at least one; two for errors.")
        images = digits() if options.images is None else idx_images(options.images, options.labels)
        plan = planned(options, images)
        results = run(plan, images, options.results)
        print(report(results, plan))
        figure(results, plan, images, options.figure)
        print(f"figure: {options.figure}; results: {options.results}")
    except TorchGaugeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
