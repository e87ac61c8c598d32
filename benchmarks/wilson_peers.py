"""The solvers that benchmarks/wilson.py compares with, and the field that all of them integrate."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

MODES = 5


def module(name: str) -> Any:
    """The module, or None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


class Field:
    """w(t) = A_0 + Σ_k A_k cos 2πkt + B_k sin 2πkt, as a function of many times and of one."""

    def __init__(self, d: int, amplitude: float, seed: int = 0, dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(seed)
        scale = amplitude / math.sqrt(d)
        self.d, self.amplitude, self.dtype = d, amplitude, dtype
        table = scale * torch.randn(2 * MODES + 1, d * d, dtype=torch.float64, generator=generator)
        self.coefficients = table.to(dtype)
        self.frequencies = 2 * math.pi * torch.arange(1, MODES + 1, dtype=dtype)
        self.one = torch.ones(1, dtype=dtype)

    def rounded(self) -> Field:
        """The same field in float32."""
        return Field(self.d, self.amplitude, dtype=torch.float32)

    @property
    def mark(self) -> str:
        """What the names of solvers in float32 end with."""
        return ", float32" if self.dtype == torch.float32 else ""

    def many(self, t: Tensor, coefficients: Tensor | None = None) -> Tensor:
        """[n] → [n, d, d]."""
        phase = t[:, None] * self.frequencies
        waves = torch.cat([torch.ones_like(t[:, None]), phase.cos(), phase.sin()], 1)
        return (waves @ (self.coefficients if coefficients is None else coefficients)).view(-1, self.d, self.d)

    def single(self, t: Tensor, coefficients: Tensor | None = None) -> Tensor:
        """[] → [d, d]."""
        phase = t * self.frequencies
        waves = torch.cat([self.one, phase.cos(), phase.sin()])
        return (waves @ (self.coefficients if coefficients is None else coefficients)).view(self.d, self.d)

    def reference(self, edges: np.ndarray) -> list[np.ndarray]:
        """Lines between consecutive edges by SciPy."""
        from scipy.integrate import solve_ivp

        d, table, frequencies = self.d, self.coefficients.numpy(), self.frequencies.numpy()

        def rate(t: float, y: np.ndarray) -> np.ndarray:
            waves = np.concatenate([[1.0], np.cos(frequencies * t), np.sin(frequencies * t)])
            return ((waves @ table).reshape(d, d) @ y.reshape(d, d)).ravel()

        lines = []
        for a, b in zip(edges, edges[1:], strict=False):
            run = solve_ivp(rate, (a, b), np.eye(d).ravel(), "DOP853", rtol=3e-14, atol=3e-15, t_eval=[b])
            lines.append(run.y[:, -1].reshape(d, d))
        return lines


@dataclass(frozen=True)
class Solver:
    """A way to compute the result of a case.

    Attributes:
        name: in the table.
        ladder: settings from cheap to dear.
        run: computes the result with a setting.
        ours: whether it is torchgauge.
        beside: reported, and not among the peers whose best counts.
        compiles: whether its first run compiles, which is not timed.
    """

    name: str
    ladder: Iterable[Any]
    run: Callable[[Any], Any]
    ours: bool = False
    beside: bool = False
    compiles: bool = False


def tolerances(start: float, stop: float) -> Iterator[float]:
    """Quarter decades down from start to stop."""
    exponent = -round(4 * math.log10(start))
    while (value := 10 ** (-exponent / 4)) > stop * 0.99:
        yield value
        exponent += 1


def torchdiffeq_solvers(
    right: Callable[[Tensor, Tensor], Tensor], start: Tensor, target: float, batch: str = ""
) -> list[Solver]:
    """dopri5 and dopri8; `step_t` keeps dopri8 from interpolating past the end."""
    package = module("torchdiffeq")
    if package is None:
        return []
    ends = torch.tensor([0.0, 1.0], dtype=start.dtype)

    def solve(method: str, tolerance: float) -> Tensor:
        options = {"step_t": ends} if method == "dopri8" else {}
        return package.odeint(right, start, ends, rtol=tolerance, atol=tolerance, method=method, options=options)[-1]

    ladder = [*tolerances(target * 100, target / 1000)]
    return [
        Solver(f"torchdiffeq {method}{batch}", ladder, lambda tol, method=method: solve(method, tol))
        for method in ("dopri5", "dopri8")
    ]


def torchode_solvers(field: Field, target: float, edges: Tensor | None = None) -> list[Solver]:
    """torchode solves a batch of problems with times of their own: with edges, all layers at once."""
    package = module("torchode")
    if package is None:
        return []
    d = field.d
    ends = torch.tensor([0.0, 1.0], dtype=field.dtype) if edges is None else edges.to(field.dtype)
    count = len(ends) - 1
    start = torch.eye(d, dtype=field.dtype).reshape(1, -1).expand(count, -1).contiguous()

    def right(t: Tensor, y: Tensor) -> Tensor:
        if count == 1:
            return (field.single(t[0]) @ y.view(d, d)).view(1, -1)
        return (field.many(t) @ y.view(count, d, d)).view(count, -1)

    def solve(kind: str, tolerance: float) -> Tensor:
        term = package.ODETerm(right)
        controller = package.IntegralController(atol=tolerance, rtol=tolerance, term=term)
        solver = package.AutoDiffAdjoint(getattr(package, kind)(term=term), controller)
        lines = solver.solve(package.InitialValueProblem(start, ends[:-1], ends[1:])).ys[:, -1].view(-1, d, d)
        return lines[0] if edges is None else lines

    ladder = [*tolerances(target * (100 if edges is None else 1e4), target / 1000)]
    return [
        Solver(f"torchode {kind}{field.mark}", ladder, lambda tol, kind=kind: solve(kind, tol))
        for kind in ("Tsit5", "Dopri5")
    ]


def linode_solvers(field: Field, target: float, edges: Tensor | None = None) -> list[Solver]:
    """torch-linode moves vectors, so the columns of the identity make a batch. Layers are quotients of its states."""
    package = module("torch_linode")
    if package is None:
        return []
    d = field.d
    start = torch.eye(d, dtype=field.dtype)
    ends = torch.tensor([0.0, 1.0], dtype=field.dtype) if edges is None else edges.to(field.dtype)

    class System(torch.nn.Module):
        def forward(self, t: Tensor) -> Tensor:
            return field.many(t.reshape(-1)).reshape(1, *t.shape, d, d)

    system = System()

    def solve(tolerance: float) -> Tensor:
        run = package.odeint(system, start, ends, method="magnus", order=6, rtol=tolerance, atol=tolerance)
        if edges is None:
            return run[:, -1].mT
        states = run.transpose(0, 1)  # transposed lines from the first edge on
        return torch.linalg.solve(states[:-1], states[1:]).mT

    ladder = [*tolerances(target * (100 if edges is None else 1e4), target / 1000)]
    return [Solver(f"torch-linode Magnus 6{field.mark}", ladder, solve)]


def diffrax_solvers(field: Field, target: float, edges: np.ndarray | None = None) -> list[Solver]:
    """Jitted diffrax, reported beside: it needs JAX. With edges, all layers by `vmap`."""
    package = module("diffrax")
    if package is None:
        return []
    jax = module("jax")
    jax.config.update("jax_enable_x64", True)
    jnp, d = module("jax.numpy"), field.d
    table, frequencies = jnp.asarray(field.coefficients.numpy()), jnp.asarray(field.frequencies.numpy())
    number = jnp.float32 if field.dtype == torch.float32 else jnp.float64

    def right(t: Any, y: Any, table: Any) -> Any:
        phase = t.astype(number) * frequencies
        waves = jnp.concatenate([jnp.ones(1, number), jnp.cos(phase), jnp.sin(phase)])
        return (waves @ table).reshape(d, d) @ y

    def solver_of(kind: str) -> Solver:
        term, method = package.ODETerm(right), getattr(package, kind)()

        def line(start: Any, end: Any, table: Any, tolerance: Any) -> Any:
            control = package.PIDController(rtol=tolerance, atol=tolerance)
            y = jnp.eye(d, dtype=number)
            return package.diffeqsolve(term, method, start, end, None, y, args=table, stepsize_controller=control).ys[0]

        if edges is None:
            compiled = jax.jit(line)
            run = lambda tol: compiled(number(0.0), number(1.0), table, number(tol)).block_until_ready()  # noqa: E731
        else:
            batched = jax.jit(jax.vmap(line, in_axes=(0, 0, None, None)))
            starts, ends = jnp.asarray(edges[:-1], number), jnp.asarray(edges[1:], number)
            run = lambda tol: batched(starts, ends, table, number(tol)).block_until_ready()  # noqa: E731
        ladder = [*tolerances(target * (100 if edges is None else 1e4), target / 1000)]
        return Solver(f"diffrax {kind}, jitted{field.mark}", ladder, run, beside=True, compiles=True)

    return [solver_of("Dopri8"), solver_of("Tsit5")]


def peers_of(field: Field, target: float) -> list[Solver]:
    """All of them for the line over [0, 1]."""
    start = torch.eye(field.d, dtype=field.dtype)
    solvers = torchdiffeq_solvers(lambda t, y: field.single(t) @ y, start, target, field.mark)
    return solvers + torchode_solvers(field, target) + linode_solvers(field, target) + diffrax_solvers(field, target)


def diffrax_gradients(field: Field, readout: Tensor, target: float) -> list[Solver]:
    """Jitted value and gradient of diffrax, reported beside."""
    package = module("diffrax")
    if package is None:
        return []
    jax, jnp, d = module("jax"), module("jax.numpy"), field.d
    jax.config.update("jax_enable_x64", True)
    table, frequencies = jnp.asarray(field.coefficients.numpy()), jnp.asarray(field.frequencies.numpy())
    kind = jnp.float32 if field.dtype == torch.float32 else jnp.float64
    weights = jnp.asarray(readout.numpy(), kind)

    def right(t: Any, y: Any, table: Any) -> Any:
        phase = t.astype(kind) * frequencies
        waves = jnp.concatenate([jnp.ones(1, kind), jnp.cos(phase), jnp.sin(phase)])
        return (waves @ table).reshape(d, d) @ y

    def number(table: Any, tolerance: Any) -> Any:
        control = package.PIDController(rtol=tolerance, atol=tolerance)
        line = package.diffeqsolve(
            package.ODETerm(right),
            package.Dopri8(),
            kind(0.0),
            kind(1.0),
            None,
            jnp.eye(d, dtype=kind),
            args=table,
            stepsize_controller=control,
        ).ys[0]
        return (line * weights).sum(), line

    compiled = jax.jit(jax.value_and_grad(number, has_aux=True))

    def run(tolerance: float) -> tuple[Tensor, Tensor]:
        (_, line), slope = jax.block_until_ready(compiled(table, kind(tolerance)))
        return torch.from_numpy(np.array(line)), torch.from_numpy(np.array(slope))

    ladder = [*tolerances(target * 100, target / 1000)]
    return [Solver(f"diffrax Dopri8, jitted{field.mark}", ladder, run, beside=True, compiles=True)]
