"""Wilson lines against other solvers of dW/dt = w(t) W, at the same error and on one thread.

    python benchmarks/wilson.py [--cases total,layers,gradient] [--sizes 8,64,256] [--targets 1e-6,1e-10] [--rounds 7]
                                [--amplitude 1] [--clock cpu] [--json FILE]

w is smooth: a mean and five Fourier modes on [0, 1], all coefficients Gaussian with entries of size amplitude/√d, in
float64. Errors are largest entries, against SciPy's DOP853 at tolerance 3e-14. Every solver has a ladder of settings (a
tolerance, or a number of slices); it is timed at the cheapest one whose error meets the target. Then all solvers of a
case take turns, round by round; times are medians, and ratios are medians of the ratios within a round. Where the
target allows float32, every peer is offered in float32 as well, as our methods are with products in float32. The clock
counts processor seconds, so that other work on the machine counts little; `--clock wall` takes wall-clock time.

Peers are optional, and the table says which are missing:

    pip install torchdiffeq torchode torch-linode diffrax
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from wilson_peers import (
    Field,
    Solver,
    diffrax_gradients,
    diffrax_solvers,
    linode_solvers,
    module,
    peers_of,
    tolerances,
    torchdiffeq_solvers,
    torchode_solvers,
)

from torchgauge.ode.wilson import METHODS, wilson

LAYERS = 32
FLOAT32_FROM = 1e-6  # from this error on, peers are tried in float32 as well
SECONDS = 20.0  # of processor time; after a setting that took longer, no further one is tried
PEERS = ("torchdiffeq", "torchode", "torch_linode", "diffrax")


def counts(start: int, stop: int) -> Iterator[int]:
    """Numbers of slices, in steps of about a tenth."""
    n = start
    while n <= stop:
        yield n
        n = max(n + 1, round(n * 1.08))


def largest(value: Any, reference: Tensor) -> float:
    value = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    error = float((value.detach() - reference).abs().max())
    return error if math.isfinite(error) else math.inf


def calibrate(solver: Solver, error_of: Callable[[Any], float], target: float) -> tuple[Any, float] | None:
    """The first setting whose error meets the target, or None."""
    for first, setting in enumerate(solver.ladder):
        if solver.compiles and first == 0:
            solver.run(setting)
        begin = time.process_time()
        try:
            error = error_of(solver.run(setting))
        except (RuntimeError, AssertionError) as failure:
            print(f"  {solver.name} at {setting}: {failure}", flush=True)
            return None
        if error <= target:
            return setting, error
        if time.process_time() - begin > SECONDS:
            print(f"  {solver.name} is left out: more than {SECONDS:.0f} s at {setting}", flush=True)
            return None
    return None


def compete(
    case: dict[str, Any], solvers: list[Solver], error_of: Callable[[Any], float], target: float, options: Any
) -> list[dict[str, Any]]:
    """Times all solvers in turns at the settings that meet the target, and prints a table."""
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    ready = []
    for solver in solvers:
        found = calibrate(solver, error_of, target)
        if found is not None:
            ready.append((solver, *found))
        elif solver.ladder:
            print(f"  {solver.name}: no setting of its ladder meets {target:.0e}", flush=True)
    times: dict[str, list[float]] = {solver.name: [] for solver, *_ in ready}
    for turn in range(options.rounds + 1):
        for solver, setting, _ in ready:
            repeats = 1 if turn == 0 else max(1, min(20, int(0.05 / max(times[solver.name][-1], 1e-6))))
            taken = []
            for _ in range(repeats):
                begin = clock()
                solver.run(setting)
                taken.append(clock() - begin)
            times[solver.name].append(statistics.median(taken))
    times = {name: values[1:] for name, values in times.items()}  # the first turn warms up
    ours = min((s.name for s, *_ in ready if s.ours), key=lambda name: statistics.median(times[name]))
    rows = []
    for solver, setting, error in ready:
        ratios = [a / b for a, b in zip(times[solver.name], times[ours], strict=True)]
        shown = f"{min(setting)}–{max(setting)}" if isinstance(setting, tuple) else setting
        row = {**case, "target": target, "solver": solver.name, "setting": str(shown), "error": error}
        row |= {"ms": 1e3 * statistics.median(times[solver.name]), "ratio": statistics.median(ratios)}
        row |= {"ours": solver.ours, "beside": solver.beside}
        rows.append(row)
    print(f"\n{' '.join(f'{k}={v}' for k, v in case.items())}, error ≤ {target:.0e}")
    for row in sorted(rows, key=lambda row: row["ms"]):
        mark = "*" if row["solver"] == ours else " "
        setting = row["setting"] if len(row["setting"]) < 8 else f"{float(row['setting']):.1e}"
        print(
            f" {mark}{row['solver']:<34}{setting:>11}{row['error']:>11.1e}{row['ms']:>11.2f} ms{row['ratio']:>9.2f} x"
        )
    peers = [row["ratio"] for row in rows if not row["ours"] and not row["beside"]]
    if peers:
        print(f"  ahead of the best peer: {min(peers):.1f} x", flush=True)
    return rows


def products(d: int, method: str, slices: int, result: Tensor, mixed: bool = False) -> Solver:
    """The matrix products of a method alone: its own for every slice and one in float64 to join it."""
    count = METHODS[method].products  # pyright: ignore[reportAttributeAccessIssue]
    a, b = torch.randn(2, slices, d, d, dtype=torch.float64)
    own = [x.to(torch.float32 if mixed else torch.float64) for x in (a, b, torch.empty_like(a))]
    joined = [a, b, torch.empty_like(a)]

    def run(_: Any) -> Tensor:
        for x, y, out in [own] * count + [joined]:
            for k in range(slices):
                torch.mm(x[k], y[k], out=out[k])
        return result

    name = f"{method} mixed" if mixed else method
    return Solver(f"(the matrix products of {name}, {slices} slices)", [""], run, beside=True)


def total(field: Field, target: float, options: Any) -> list[dict[str, Any]]:
    """The line over [0, 1]."""
    d, ends = field.d, [0.0, 1.0]
    reference = torch.from_numpy(field.reference(np.array(ends))[0])
    fixed = [*counts(max(4, round(8 * (1e-6 / target) ** 0.125)), 400)]

    def sliced(method: str, mixed: bool) -> Solver:
        run = lambda n: wilson(field.many, ends, slices=n, method=method, mixed=mixed).total  # noqa: E731
        return Solver(f"torchgauge {method}{' mixed' if mixed else ''}, slices", fixed, run, ours=True)

    kinds = [("rk8", False), ("dyson6", False), ("dyson6", True)]
    fixed_ones = [sliced(*kind) for kind in kinds]
    ours = [
        *fixed_ones,
        Solver(
            "torchgauge, tolerance",
            [*tolerances(target * 100, target / 1000)],
            lambda tol: wilson(field.many, ends, tolerance=tol).total,
            ours=True,
        ),
    ]
    peers = peers_of(field, target)
    if target >= FLOAT32_FROM:
        peers += peers_of(field.rounded(), target)
    with torch.no_grad():
        for (method, mixed), solver in zip(kinds, fixed_ones, strict=True):
            found = calibrate(solver, lambda value: largest(value, reference), target)
            if found is not None:
                ours.append(products(d, method, found[0], reference, mixed))
        return compete(
            {"case": "total", "d": d}, ours + peers, lambda value: largest(value, reference), target, options
        )


def layers(field: Field, target: float, options: Any) -> list[dict[str, Any]]:
    """The lines of all layers at once."""
    d = field.d
    edges = np.linspace(0, 1, LAYERS + 1)
    reference = torch.from_numpy(np.stack(field.reference(edges)))
    times = torch.from_numpy(edges)

    def ours_of(method: str, mixed: bool = False) -> Solver:
        """One slice a layer, two where the error of one is too large, and so on."""

        def run(counts: tuple[int, ...]) -> Tensor:
            return wilson(field.many, times, slices=counts, method=method, mixed=mixed).layers

        ladder = [(1,) * LAYERS]
        for _ in range(3):
            wrong = (run(ladder[-1]) - reference).abs().flatten(1).amax(1) > target
            ladder.append(tuple(n + bool(bad) for n, bad in zip(ladder[-1], wrong, strict=True)))
        return Solver(f"torchgauge {method}{' mixed' if mixed else ''}, slices", ladder, run, ours=True)

    ours = [ours_of(method) for method in ("dyson4", "dyson6", "rk4", "rk8")]
    ours += [ours_of(method, mixed=True) for method in ("dyson4", "dyson6")]
    ours.append(
        Solver(
            "torchgauge, tolerance",
            [*tolerances(target * 1e4, target / 1000)],
            lambda tol: wilson(field.many, times, tolerance=tol).layers,
            ours=True,
        )
    )

    peers = layered_peers(field, target, edges)
    if target >= FLOAT32_FROM:
        peers += layered_peers(field.rounded(), target, edges)
    with torch.no_grad():
        return compete(
            {"case": "layers", "layers": LAYERS, "d": d},
            ours + peers,
            lambda value: largest(value, reference),
            target,
            options,
        )


def layered_peers(field: Field, target: float, edges: np.ndarray) -> list[Solver]:
    """All of them for the lines of all layers."""
    times, start = torch.from_numpy(edges), torch.eye(field.d, dtype=field.dtype)

    def one_by_one(tolerance: float, method: str) -> Tensor:
        package, lines = module("torchdiffeq"), []
        for a, b in zip(times, times[1:], strict=False):
            ends = torch.stack([a, b]).to(field.dtype)
            options = {"step_t": ends} if method == "dopri8" else {}
            right = lambda t, y: field.single(t) @ y  # noqa: E731
            lines.append(
                package.odeint(right, start, ends, rtol=tolerance, atol=tolerance, method=method, options=options)[-1]
            )
        return torch.stack(lines)

    def all_at_once(t: Tensor, y: Tensor) -> Tensor:
        return (field.many(times[:-1].to(field.dtype) + t / LAYERS) @ y) / LAYERS

    peers = []
    if module("torchdiffeq") is not None:
        ladder = [*tolerances(target * 1e4, target / 1000)]
        for method in ("dopri5", "dopri8"):
            run = lambda tol, method=method: one_by_one(tol, method)  # noqa: E731
            peers.append(Solver(f"torchdiffeq {method}, layer by layer{field.mark}", ladder, run))
        stacked = start.expand(LAYERS, field.d, field.d).contiguous()
        together = torchdiffeq_solvers(all_at_once, stacked, target, f", stacked by hand{field.mark}")
        peers += [Solver(s.name, s.ladder, s.run, beside=True) for s in together]
    peers += torchode_solvers(field, target, times) + linode_solvers(field, target, times)
    return peers + diffrax_solvers(field, target, edges)


def backprop_solvers(field: Field, with_gradient: Callable[..., Any], ladder: list[float]) -> list[Solver]:
    """torchdiffeq's backpropagation through the line over [0, 1]."""
    package = module("torchdiffeq")
    if package is None:
        return []
    start, stops = torch.eye(field.d, dtype=field.dtype), torch.tensor([0.0, 1.0], dtype=field.dtype)

    def solve(method: str, tolerance: float) -> tuple[Tensor, Tensor]:
        options = {"step_t": stops} if method == "dopri8" else {}

        def line(table: Tensor) -> Tensor:
            right = lambda t, y: field.single(t, table) @ y  # noqa: E731
            settings = {"rtol": tolerance, "atol": tolerance, "method": method, "options": options}
            return package.odeint(right, start, stops, **settings)[-1]

        return with_gradient(line, field)

    return [
        Solver(f"torchdiffeq {method}, backprop{field.mark}", ladder, lambda tol, method=method: solve(method, tol))
        for method in ("dopri5", "dopri8")
    ]


def gradient(field: Field, target: float, options: Any) -> list[dict[str, Any]]:
    """The line over [0, 1] and the gradient of a linear function of it with respect to all coefficients of w."""
    d, ends = field.d, [0.0, 1.0]
    reference = torch.from_numpy(field.reference(np.array(ends))[0])
    readout = torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def with_gradient(line: Callable[[Tensor], Tensor], field: Field = field) -> tuple[Tensor, Tensor]:
        table = field.coefficients.clone().requires_grad_()
        value = line(table)
        return value, torch.autograd.grad((value * readout.to(field.dtype)).sum(), table)[0]

    exact = with_gradient(lambda table: wilson(lambda t: field.many(t, table), ends, slices=120).total)[1]

    def error_of(result: tuple[Tensor, Tensor]) -> float:
        return max(largest(result[0], reference), largest(result[1], exact))

    def ours_of(**options: Any) -> tuple[Tensor, Tensor]:
        return with_gradient(lambda table: wilson(lambda t: field.many(t, table), ends, **options).total)

    ladder = [*tolerances(target * 100, target / 1000)]
    solvers = [
        Solver("torchgauge rk8, slices", [*counts(8, 400)], lambda n: ours_of(slices=n), ours=True),
        Solver("torchgauge dyson6, slices", [*counts(8, 400)], lambda n: ours_of(slices=n, method="dyson6"), ours=True),
        Solver(
            "torchgauge dyson6 mixed, slices",
            [*counts(8, 400)],
            lambda n: ours_of(slices=n, method="dyson6", mixed=True),
            ours=True,
        ),
        Solver("torchgauge, tolerance", ladder, lambda tol: ours_of(tolerance=tol), ours=True),
    ]
    fields = [field, field.rounded()] if target >= FLOAT32_FROM else [field]
    for own in fields:
        solvers += backprop_solvers(own, with_gradient, ladder) + diffrax_gradients(own, readout, target)
    return compete({"case": "gradient", "d": d}, solvers, error_of, target, options)


def summary(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The tables of docs/wilson.md: per case our times, and how much longer the others take."""
    keys = [*dict.fromkeys((row["case"], row["d"], row["target"]) for row in rows)]
    titles = "case, d, error, torchgauge, without mixed, by tolerance, products"
    yield f"| {titles.replace(', ', ' | ')} |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for case, d, target in keys:
        group = [row for row in rows if (row["case"], row["d"], row["target"]) == (case, d, target)]
        fixed = sorted((row for row in group if row["ours"] and "slices" in row["solver"]), key=lambda row: row["ms"])
        best, plain = fixed[0], next(row for row in fixed if "mixed" not in row["solver"])
        adaptive = [row["ms"] for row in group if row["solver"] == "torchgauge, tolerance"]
        own = [row["ms"] for row in group if row["solver"].startswith(f"(the matrix products of {_method(best)},")]
        cells = [f"{row['ms']:.3g} ms ({_method(row)})" for row in (best, plain)]
        cells += [f"{adaptive[0]:.3g} ms" if adaptive else "", f"{best['ms'] / own[0]:.2f}×" if own else ""]
        yield f"| {case} | {d} | {target:.0e} | {' | '.join(cells)} |"
    yield ""
    names = ["torchdiffeq", "torchode", "torch-linode", "diffrax"]
    yield f"| case | d | error | {' | '.join(f'{name} | in float32' for name in names)} |"
    yield "|---|---:|---:|" + "---:|" * (2 * len(names))
    for case, d, target in keys:
        group = [row for row in rows if (row["case"], row["d"], row["target"]) == (case, d, target)]
        cells = []
        for name in names:
            for single in (False, True):
                fit = (row for row in group if row["solver"].startswith(name) and "by hand" not in row["solver"])
                ratios = [row["ratio"] for row in fit if ("float32" in row["solver"]) == single]
                cells.append(f"{min(ratios):.1f}×" if ratios else "")
        yield f"| {case} | {d} | {target:.0e} | {' | '.join(cells)} |"


def _method(row: dict[str, Any]) -> str:
    return row["solver"].removeprefix("torchgauge ").split(",")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="total,layers,gradient")
    parser.add_argument("--sizes", default="8,64,256", help="d of the case 'total'; the others take 64")
    parser.add_argument("--targets", default="1e-6,1e-10")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--amplitude", type=float, default=1.0)
    parser.add_argument("--clock", choices=("cpu", "wall"), default="cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    missing = [name for name in PEERS if module(name) is None]
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, one thread, {options.clock} time")
    print(f"missing peers: {', '.join(missing) or 'none'}", flush=True)
    rows = []
    for case in options.cases.split(","):
        run = {"total": total, "layers": layers, "gradient": gradient}[case]
        for d in [int(d) for d in options.sizes.split(",")] if case == "total" else [64]:
            for target in map(float, options.targets.split(",")):
                rows += run(Field(d, options.amplitude), target, options)
    print("\n" + "\n".join(summary(rows)))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1, default=str))


if __name__ == "__main__":
    main()
