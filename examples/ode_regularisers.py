"""What regularisers choose: neural ODEs trained with and without them, and where they end on the gauge orbit.

    python examples/ode_regularisers.py [FIGURE.svg]

A linear neural ODE and a small network are trained to tell three kinds of wine apart (scikit-learn's data, six
principal components), each with several regularisers. Shown are the loss on held-out wines, what an adaptive solver
needs to integrate the trained field, how straight its trajectories are, and how far the training moved along the orbit.
Needs the extras `ode` and `demo`, for the figure `plot` too. Takes about two minutes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from sklearn.datasets import load_wine
from torch import Tensor, nn

from torchgauge import ode

DIM, KNOTS, STEPS, RATE = 6, 9, 200, 0.2
TIMES = torch.linspace(0, 1, KNOTS, dtype=torch.float64)
LOOSE = ode.Accuracy("dopri5", 1e-6, 1e-7)
EULER = ode.Accuracy("rk4", options={"step_size": 0.1})


@dataclass(frozen=True)
class Wines:
    """Six principal components, whitened, of 178 wines of three kinds; every fourth is held out."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


def wines() -> Wines:
    data = load_wine()
    raw = torch.tensor(data.data)  # pyright: ignore[reportAttributeAccessIssue]
    raw = (raw - raw.mean(0)) / raw.std(0)
    _, values, axes = torch.linalg.svd(raw, full_matrices=False)
    x = raw @ axes[:DIM].mT / (values[:DIM] / len(raw) ** 0.5)
    y = torch.tensor(data.target)  # pyright: ignore[reportAttributeAccessIssue]
    test = torch.arange(len(x)) % 4 == 0
    return Wines(x[~test], y[~test], x[test], y[test])


class Field(nn.Module):
    """B tanh(A [x, t] + a)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(DIM + 1, 16), nn.Tanh(), nn.Linear(16, DIM)).double()

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.net(torch.cat([x, t.expand(*x.shape[:-1], 1)], -1))


def linear_node() -> ode.LinearField:
    """w and b as splines through nine trainable values."""
    w = nn.Parameter(torch.randn(KNOTS, DIM, DIM, dtype=torch.float64) / DIM**0.5)
    b = nn.Parameter(torch.randn(KNOTS, DIM, dtype=torch.float64) / 2)
    return ode.LinearField(ode.Sampled(TIMES, w), ode.Sampled(TIMES, b))


def deviation(field: ode.fields.Field, x: Tensor) -> tuple[Tensor, float]:
    """How trajectories deviate from their chords, [times, n, d], and length over chord − 1, averaged."""
    with torch.no_grad():
        states = ode.solve(field, x, torch.linspace(0, 1, 21, dtype=torch.float64), LOOSE).states
    u = torch.linspace(0, 1, 21, dtype=torch.float64)[:, None, None]
    chord = states[-1] - states[0]
    length = (states[1:] - states[:-1]).norm(dim=-1).sum(0)
    return states - states[0] - u * chord, float((length / chord.norm(dim=-1) - 1).mean())


def difference(before: list[Tensor], after: list[Tensor]) -> ode.LinearField:
    """The change of a linear neural ODE, as a field."""
    w, b = (new - old for new, old in zip(after, before, strict=True))
    return ode.LinearField(ode.Sampled(TIMES, w), ode.Sampled(TIMES, b))


def train(
    field: ode.LinearField | ode.VectorField, data: Wines, weight: float, regulariser: Callable | None
) -> tuple[nn.Linear, float, float]:
    """Gradient descent on cross-entropy; returns the read-out, and for a linear field the lengths along and across."""
    readout = nn.Linear(DIM, 3).double()
    optimiser = torch.optim.SGD([*field.parameters(), *readout.parameters()], RATE)
    along = across = 0.0
    for _ in range(STEPS):
        optimiser.zero_grad()
        if isinstance(field, ode.LinearField):
            total = ode.total_line(field)
            end, penalty = data.x @ total[:DIM, :DIM].mT + total[:DIM, DIM], 0.0
            if regulariser is not None:
                penalty = regulariser(field)
        else:
            costs = () if regulariser is None else (regulariser,)
            solution = ode.solve(field, data.x, accuracy=EULER, costs=costs)
            end, penalty = solution.final, solution.costs.sum(-1).mean()
        loss = nn.functional.cross_entropy(readout(end), data.y) + weight * penalty
        loss.backward()
        before = [parameter.detach().clone() for parameter in field.parameters()]
        optimiser.step()
        if isinstance(field, ode.LinearField):
            old = ode.LinearField(ode.Sampled(TIMES, before[0]), ode.Sampled(TIMES, before[1]))
            after = [parameter.detach() for parameter in field.parameters()]
            parts = ode.orbit_parts(old, difference(before, after), nodes=16)
            along, across = along + parts.along, across + parts.across
    return readout, along, across


def both(field: ode.fields.Field, t: Tensor, x: Tensor) -> Tensor:
    """Kinetic energy and Jacobian norm, as Finlay et al. use them together."""
    return ode.kinetic_energy(field, t, x) + 0.1 * ode.jacobian_frobenius(field, t, x)


LINEAR = {
    "none": (0.0, None),
    "uniform motion (45)": (3e-3, ode.uniform_motion),
    "covariant kinetic": (1e-2, ode.covariant_kinetic),
    "gauge field": (1e-2, ode.gauge_field_penalty),
}
NETWORK = {"none": (0.0, None), "acceleration": (1e-2, ode.acceleration), "transport (Finlay et al.)": (1e-2, both)}


@dataclass(frozen=True)
class Outcome:
    """A trained field and what it is like on the held-out wines."""

    kind: str
    name: str
    loss: float
    accuracy: float
    steps: int
    calls: int
    curvature: float
    moved: float
    along: float
    across: float
    states: Tensor

    def row(self) -> str:
        """One line of the table; the lengths on the orbit are those of linear fields."""
        linear = self.kind == "linear"
        orbit = f"{self.along:.2f} | {self.across:.2f}" if linear else " | "
        return (
            f"| {self.kind} | {self.name} | {self.loss:.3f} | {self.accuracy:.0%} | {self.steps} | {self.calls} | "
            f"{self.curvature:.3f} | {self.moved:.3f} | {orbit} |"
        )


def outcome(kind: str, name: str, weight: float, regulariser: Callable | None, data: Wines) -> Outcome:
    """Trains one field and looks at it."""
    torch.manual_seed(0)
    field = linear_node() if kind == "linear" else ode.VectorField(Field())
    start, _ = deviation(field, data.x_test)
    readout, along, across = train(field, data, weight, regulariser)
    bend, curvature = deviation(field, data.x_test)
    with torch.no_grad():
        solution = ode.solve(field, data.x_test, accuracy=LOOSE)
        states = ode.solve(field, data.x_test, torch.linspace(0, 1, 21, dtype=torch.float64), LOOSE).states
        scores = readout(solution.final)
        loss = float(nn.functional.cross_entropy(scores, data.y_test))
        accuracy = float((scores.argmax(1) == data.y_test).double().mean())
    moved = float((bend - start).square().mean().sqrt())
    counts = solution.steps, solution.evaluations
    return Outcome(kind, name, loss, accuracy, *counts, curvature, moved, along, across, states)


def draw(outcomes: list[Outcome], data: Wines, path: Path) -> None:
    """The trajectories of all fields, in the first two principal components, coloured by the kind of wine."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    mpl.use("Agg")
    plt.rcParams.update({"svg.hashsalt": "torchgauge", "svg.fonttype": "path", "font.size": 8, "axes.titlesize": 8})
    figure, axes = plt.subplots(2, 4, figsize=(10, 5.2), layout="constrained")
    axes[1, 3].remove()
    colours = ("#1f6f8b", "#c1440e", "#8a8a3a")
    for axis, shown in zip(axes.flat, outcomes, strict=False):
        for i in range(0, len(data.x_test), 2):
            trajectory, colour = shown.states[:, i, :2], colours[int(data.y_test[i])]
            axis.plot(trajectory[:, 0], trajectory[:, 1], color=colour, lw=0.8)
            axis.plot(*trajectory[-1], "o", color=colour, ms=2.5)
        axis.set(title=f"{shown.kind}, {shown.name}: {shown.steps} steps", xticks=[], yticks=[])
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)


def main(path: Path | None) -> None:
    """Trains all, prints one table, and draws the trajectories if a path is given."""
    torch.set_num_threads(1)
    data = wines()
    heads = ("neural ODE", "regulariser", "test loss", "accuracy", "solver steps", "calls of F", "length / chord − 1")
    print("|", " | ".join((*heads, "moved", "along", "across")), "|")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    outcomes = []
    for kind, choices in (("linear", LINEAR), ("network", NETWORK)):
        for name, (weight, regulariser) in choices.items():
            outcomes.append(outcome(kind, name, weight, regulariser, data))
            print(outcomes[-1].row(), flush=True)
    if path is not None:
        draw(outcomes, data, path)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
