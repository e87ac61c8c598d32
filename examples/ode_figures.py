"""Draws figures 1 to 3 of arXiv 2402.02362 anew, from computed fields: `make figures`, or

    python examples/ode_figures.py [FOLDER]

Needs the extras `ode` and `plot`. Writes SVG files, the same bytes at every run with the same versions.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from drawing import draw
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from torch import Tensor

from torchgauge import ode

INK, WARM, COOL, PALE = "#222222", "#c1440e", "#1f6f8b", "#b8b8b8"
FINE = ode.Accuracy("dopri5", 1e-8, 1e-9)
LAYERS = 5


def waves(*shape: int, seed: int, size: float):
    """A smooth path of tensors with two Fourier modes."""
    generator = torch.Generator().manual_seed(seed)
    coefficients = size * torch.randn(4, *shape, generator=generator, dtype=torch.float64)

    def path(t: Tensor) -> Tensor:
        phases = 2.5 * t * torch.tensor([1.0, 2.0], dtype=t.dtype)
        return torch.tensordot(torch.cat([torch.cos(phases), torch.sin(phases)]), coefficients, 1)

    return path


def planar_field() -> ode.LinearField:
    """The linear field in the plane that figures 2 and 3 use."""
    return ode.LinearField(waves(2, 2, seed=11, size=0.7), waves(2, seed=12, size=0.5))


def trajectories(field: ode.fields.Field, starts: Tensor, count: int = 41) -> tuple[Tensor, Tensor]:
    """Times [count] and states [count, n, d]."""
    times = torch.linspace(0, 1, count, dtype=torch.float64)
    with torch.no_grad():
        return times, ode.solve(field, starts, times, FINE).states


def spacetime() -> plt.Figure:
    """Figure 1: a diffeomorphism of spacetime bends trajectories and coordinates, and leaves both ends alone."""

    def flow(t: Tensor, x: Tensor) -> Tensor:
        return torch.sin(2 * x + 4 * t)

    def generator(t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return 0.2 * torch.sin(1.5 * x[..., 0]), 0.6 * torch.cos(1.2 * x + 5 * t)

    field, diffeo = ode.VectorField(flow), ode.Flow(generator, 3, spacetime=True)
    moved = ode.pullback(field, diffeo)
    starts = torch.linspace(-1.5, 1.5, 9, dtype=torch.float64)[:, None]
    ode.check(diffeo, torch.linspace(-3, 3, 61, dtype=torch.float64)[:, None], field=field)
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.8), sharey=True, layout="constrained")
    titles = ("F, with the coordinate lines of (s, y)", "F′, the field in these coordinates")
    for axis, title, source in zip(axes, titles, (field, moved), strict=True):
        times, states = trajectories(source, starts)
        axis.plot(times, states[..., 0], color=COOL if source is field else WARM, lw=1.4)
        axis.plot(torch.zeros(9), starts[:, 0], "o", color=INK, ms=3.5, clip_on=False, zorder=5)
        axis.plot(torch.ones(9), states[-1, :, 0], "o", color=INK, ms=3.5, clip_on=False, zorder=5)
        axis.set(title=title, xlabel="t" if source is field else "s", xlim=(0, 1), ylim=(-3, 3))
    coordinate_grid(axes[0], diffeo)
    axes[0].set_ylabel("x, y")
    gap = (trajectories(field, starts, 2)[1][-1] - trajectories(moved, starts, 2)[1][-1]).abs().max()
    figure.supxlabel(f"the ends of all trajectories agree to {gap:.0e}", fontsize=8)
    return figure


@torch.no_grad()
def coordinate_grid(axis: Axes, diffeo: ode.Diffeomorphism) -> None:
    """Lines of constant s and of constant y, where the diffeomorphism puts them."""
    fine = torch.linspace(-3, 3, 121, dtype=torch.float64)[:, None]
    for s in torch.linspace(0, 1, 11, dtype=torch.float64):
        t, x = diffeo(s, fine)
        axis.plot(t, x[:, 0], color=PALE, lw=0.6, zorder=0)
    moments = torch.linspace(0, 1, 81, dtype=torch.float64)
    for y in torch.linspace(-3, 3, 13, dtype=torch.float64):
        t, x = diffeo(moments, y.expand(81, 1))
        axis.plot(t, x[:, 0], color=PALE, lw=0.6, zorder=0)


def diagram() -> plt.Figure:
    """Figure 2: a diffeomorphism, then integration, equals integration, then a discrete gauge transformation."""
    field = planar_field()
    generator = torch.Generator().manual_seed(4)
    affine = ode.random_affine(2, 1.2, generator=generator)
    edges = torch.linspace(0, 1, LAYERS + 1, dtype=torch.float64)
    with torch.no_grad():
        net_a = ode.discretise(field, LAYERS)
        net_b = ode.transform(net_a, affine.at(edges))
        field_b = ode.lift(net_b, field)  # from the nets alone: another path through the same layers
        again = ode.discretise(field_b, LAYERS)
    starts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -0.4], [0.3, -1.0]], dtype=torch.float64)
    figure, axes = plt.subplots(2, 2, figsize=(7.4, 5.6), sharex=True, sharey=True)
    figure.subplots_adjust(wspace=0.45, hspace=0.45, bottom=0.12)
    corners = (("NODE A", field, net_a, COOL), ("NODE B", field_b, net_b, WARM))
    for column, (name, source, net, color) in zip(axes.T, corners, strict=True):
        _, states = trajectories(source, starts)
        column[0].plot(states[..., 0], states[..., 1], color=color, lw=1.3)
        column[0].set_title(name)
        hidden = [starts]
        for w, b in zip(net.weight, net.bias, strict=True):
            hidden.append(hidden[-1] @ w.mT + b)
        points = torch.stack(hidden)
        column[1].plot(points[..., 0], points[..., 1], "o-", color=color, lw=0.7, ms=3)
        column[1].set_title(name.replace("NODE", "NN"))
        for axis in column:
            axis.plot(starts[:, 0], starts[:, 1], "o", color=INK, ms=4)
            axis.plot(points[-1, :, 0], points[-1, :, 1], "s", color=INK, ms=4)
            axis.set_aspect("equal")
    for row, label in zip(axes, ("diffeomorphism", "discrete gauge"), strict=True):
        _arrow(row[0], (1.08, 0.5), (1.37, 0.5), label, (1.225, 0.56), 0)
    for axis in axes[0]:
        _arrow(axis, (0.5, -0.12), (0.5, -0.3), "integrate", (0.52, -0.23), 0)
    error = (again.affine() - net_b.affine()).abs().max()
    figure.supxlabel(f"NN B → NODE B → NN B comes back to {error:.0e}", fontsize=8)
    return figure


def _arrow(axis: Axes, start: tuple, end: tuple, label: str, place: tuple, angle: float) -> None:
    """An arrow between panels, in units of one of them."""
    style = {"arrowstyle": "->", "color": INK}
    axis.annotate("", end, start, xycoords="axes fraction", textcoords="axes fraction", arrowprops=style)
    axis.text(*place, label, transform=axis.transAxes, ha="center" if place[0] > 1 else "left", rotation=angle)


def gauges() -> plt.Figure:
    """Figure 3: one input-output map in four gauges; what a regulariser chooses."""
    field = planar_field()
    generator = torch.Generator().manual_seed(8)
    chosen = {
        "as given": field,
        "random": ode.sample_orbit(field, 1, scale=1.2, generator=generator)[0],
        "constant w, b": ode.constant_gauge(field).field,
        "straight lines": ode.straight_line_gauge(field).field,
    }
    angles = torch.linspace(0, 2 * torch.pi, 9, dtype=torch.float64)[:-1]
    starts = torch.stack([torch.cos(angles), torch.sin(angles)], -1)
    figure, axes = plt.subplots(1, 4, figsize=(10.4, 3.2), sharex=True, sharey=True, layout="constrained")
    for axis, (name, source) in zip(axes, chosen.items(), strict=True):
        assert isinstance(source, ode.LinearField)
        _, states = trajectories(source, starts)
        axis.plot(states[..., 0], states[..., 1], color=COOL, lw=1.2)
        axis.plot(starts[:, 0], starts[:, 1], "o", color=INK, ms=3.5)
        axis.plot(states[-1, :, 0], states[-1, :, 1], "s", color=INK, ms=3.5)
        with torch.no_grad():
            axis.set_title(f"{name}\nL_R (45) = {float(ode.uniform_motion(source, 32)):.1e}")
        axis.set_aspect("equal")
    return figure


def main(folder: Path) -> None:
    """Writes figure1.svg, figure2.svg and figure3.svg."""
    draw({"figure1": spacetime, "figure2": diagram, "figure3": gauges}, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("docs/figures"))
