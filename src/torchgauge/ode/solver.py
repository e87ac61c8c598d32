"""Integration of vector fields with torchdiffeq: batched, with kicks, plain gradients or the adjoint method."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, final

import torch
from torch import Tensor, nn

from torchgauge.ode.errors import FieldError, SolverError
from torchgauge.ode.fields import Field, ImpulsiveField, LinearField, VectorField, as_field
from torchgauge.ode.paths import Span

ADAPTIVE = ("dopri8", "dopri5", "bosh3", "fehlberg2", "adaptive_heun")
FIXED = ("euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams")
MOST_STEPS = 100_000  # between two wanted times; an adaptive method that needs more gets nowhere
Cost = Callable[[Field, Tensor, Tensor], Tensor]


@final
@dataclass(frozen=True)
class Accuracy:
    """How an equation is integrated.

    Attributes:
        method: of torchdiffeq: adaptive ("dopri8", "dopri5", …) or with fixed steps ("rk4", "euler", …).
        rtol, atol: tolerances of an adaptive method, held by every sample of a batch by itself.
        adjoint: gradients by the adjoint method, in constant memory, in place of backpropagation through the solver.
        options: more options of torchdiffeq, such as {"step_size": 0.01}, which a method with fixed steps needs.

    Raises:
        SolverError: an unknown method, or one with fixed steps and no step size, which would take a single step.
    """

    method: str = "dopri5"
    rtol: float = 1e-7
    atol: float = 1e-9
    adjoint: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.method not in (*ADAPTIVE, *FIXED):
            known = ", ".join((*ADAPTIVE, *FIXED))
            raise SolverError(f"no method is called {self.method!r}", "method", f"Use one of {known}.")
        if self.method in FIXED and not {"step_size", "grid_constructor"} & {*self.options}:
            what = f"{self.method} has fixed steps and was given no size for them"
            raise SolverError(what, "options", 'Pass options={"step_size": ...}.')


@final
@dataclass(frozen=True)
class Solution:
    """A solved initial value problem.

    Attributes:
        times: [k], the start first.
        states: [k, *batch, d]; at a kick, the state right after it.
        costs: the integrals along the trajectories up to the end, [*batch, number of costs].
        evaluations: how often the field was called on the way forward.
        steps: how many steps were accepted (of an adaptive method).
    """

    times: Tensor
    states: Tensor
    costs: Tensor
    evaluations: int
    steps: int
    field: Field
    accuracy: Accuracy

    @property
    def final(self) -> Tensor:
        """The states at the end, [*batch, d]."""
        return self.states[-1]

    def at(self, times: Tensor) -> Tensor:
        """Dense output: the states [n, *batch, d] at any times [n] of the solved interval.

        The equation is integrated again from the nearest solved time before, so that the error is that of the solution
        itself, and not of an interpolation.

        Raises:
            SolverError: a time outside of the interval.
        """
        first, last = float(self.times[0]), float(self.times[-1])
        wanted = [float(t) for t in times]
        forward = last >= first
        if any(not min(first, last) <= t <= max(first, last) for t in wanted):
            what = f"dense output was asked for outside of the solved interval from {first} to {last}"
            raise SolverError(what, f"times {wanted[:4]}", "Solve further.")
        order = sorted(range(len(wanted)), key=lambda i: wanted[i], reverse=not forward)
        known, values = [float(t) for t in self.times], [torch.empty(0)] * len(wanted)
        t, x = known[0], self.states[0]
        for i in order:
            before = [k for k, s in enumerate(known) if (s <= wanted[i] if forward else s >= wanted[i])][-1]
            if (known[before] > t) if forward else (known[before] < t):
                t, x = known[before], self.states[before]
            if wanted[i] != t:
                t, x = wanted[i], solve(self.field, x, (t, wanted[i]), accuracy=self.accuracy).final
            values[i] = x
        return torch.stack(values)


def solve(
    function: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    times: Sequence[float] | Tensor | None = None,
    accuracy: Accuracy | None = None,
    costs: Sequence[Cost] = (),
) -> Solution:
    """Integrates dx/dt = F(t, x).

    Torchdiffeq's adaptive methods step past a wanted time and interpolate back with a formula of order four, which for
    dopri8 loses most of the digits; here every wanted time is held as a step.

    Args:
        function: a field, or F(t, x).
        x: the states at the first time, [*batch, d]; dtype and device of the solution follow it.
        times: [k] increasing, or decreasing to integrate backwards; by default the span of the field.
        accuracy: see `Accuracy`.
        costs: functions (field, t, x [*batch, d]) ↦ [*batch], integrated along the trajectories together with them.

    Returns:
        The solution.

    Raises:
        FieldError: the field has the wrong shape or returns numbers that are not finite.
        SolverError: torchdiffeq is not installed, or gives up.
    """
    accuracy = accuracy or Accuracy()
    source = as_field(function)
    moments = torch.as_tensor(source.span if times is None else times, dtype=torch.float64, device="cpu").detach()
    ascending = moments[1:] > moments[:-1]
    if moments.ndim != 1 or len(moments) < 2 or not (bool(ascending.all()) or not bool(ascending.any())):
        raise SolverError(f"times must rise or fall, and are {moments.tolist()}", "times", "Give at least two.")
    plain, jumps = (source.field, source.jumps) if isinstance(source, ImpulsiveField) else (source, ())
    _probe(plain, moments[0], x)
    run = _Run(plain, costs, accuracy, x)
    ends = moments.tolist()
    sign = 1.0 if ends[-1] > ends[0] else -1.0
    if sign < 0 and any(ends[-1] <= jump.time <= ends[0] for jump in jumps):
        raise SolverError("a field with kicks cannot be integrated backwards", "times", "Kicks may have no inverse.")
    state = torch.cat([x, x.new_zeros(*x.shape[:-1], len(costs))], -1)
    kept, t = [state], ends[0]
    for end in ends[1:]:
        for jump in jumps:
            if t < jump.time <= end:
                state, t = run.advance(state, t, jump.time), jump.time
                state = torch.cat([jump.map(state[..., : run.dim]), state[..., run.dim :]], -1)
        if t != end:
            state, t = run.advance(state, t, end), end
        kept.append(state)
    states = torch.stack(kept)
    out = moments.to(x.dtype).to(x.device)
    return Solution(
        out, states[..., : run.dim], states[-1][..., run.dim :], run.evaluations, run.steps, source, accuracy
    )


def _probe(source: VectorField | LinearField, start: Tensor, x: Tensor) -> None:
    """Refuses a field that is not finite where it starts, and bad points."""
    if x.ndim < 1 or not x.is_floating_point():
        raise FieldError(f"points must be real, [..., d], and are {x.dtype} of shape {[*x.shape]}", "x", "")
    with torch.no_grad():
        velocities = source(start.to(x.dtype).to(x.device), x)
    for name, value in (("the initial states", x), ("the velocities at the start", velocities)):
        if not bool(torch.isfinite(value).all()):
            row = int((~torch.isfinite(value)).any(-1).reshape(-1).nonzero()[0])
            what = f"{name} hold numbers that are not finite"
            raise FieldError(what, f"t = {float(start):.6g}, sample {row}", "Look for a division by zero, or overflow.")


class _Run(nn.Module):
    """The field with its costs as one system, counting what the solver does."""

    def __init__(self, source: VectorField | LinearField, costs: Sequence[Cost], accuracy: Accuracy, x: Tensor) -> None:
        super().__init__()
        self.source, self.costs, self.accuracy, self.dim = source, tuple(costs), accuracy, x.shape[-1]
        self.evaluations, self.steps = 0, 0
        self.last_step: float | None = None
        self.reached = 0.0
        self.callback_step = self._started
        if accuracy.method in ADAPTIVE:  # torchdiffeq warns if a method with fixed steps has this one
            self.callback_accept_step = self._accepted

    def forward(self, t: Tensor, state: Tensor) -> Tensor:
        x = state[..., : self.dim]
        velocities = self.source(t, x)
        if not self.costs:
            return velocities
        rates = [cost(self.source, t, x).expand(x.shape[:-1]) for cost in self.costs]
        return torch.cat([velocities, torch.stack(rates, -1)], -1)

    def _started(self, t0: Tensor, y0: Tensor, dt: Tensor) -> None:
        self.reached = float(t0.detach())

    def _accepted(self, t0: Tensor, y0: Tensor, dt: Tensor) -> None:
        self.steps += 1
        self.last_step = max(float(dt.detach()), self.last_step or 0.0)

    def _norm(self, error: Tensor) -> Tensor:
        """Root mean square over coordinates, maximum over samples; parts of an adjoint state come flat."""
        return error.square().mean(-1).sqrt().amax() if error.ndim > 1 else error.square().mean().sqrt()

    def advance(self, state: Tensor, start: float, end: float) -> Tensor:
        """The state at `end`, from that at `start`."""
        torchdiffeq = _torchdiffeq()
        counted = 0

        def hook(module: nn.Module, args: Any) -> None:
            nonlocal counted
            counted += 1

        handle = self.register_forward_pre_hook(hook)
        ends = torch.tensor([start, end], dtype=state.dtype, device=state.device)
        options, back = dict(self.accuracy.options), dict(self.accuracy.options)
        adaptive = self.accuracy.method in ADAPTIVE
        if adaptive:
            options = {"step_t": ends, "norm": self._norm, "max_num_steps": MOST_STEPS, **options}
            back = {"step_t": ends, "max_num_steps": MOST_STEPS, **back}
            if self.last_step is not None and "first_step" not in options:
                options["first_step"] = min(self.last_step, abs(end - start))
            self.last_step = None
        chosen = {"rtol": self.accuracy.rtol, "atol": self.accuracy.atol, "method": self.accuracy.method}
        try:
            if self.accuracy.adjoint:
                made = torchdiffeq.odeint_adjoint(self, state, ends, options=options, adjoint_options=back, **chosen)
            else:
                made = torchdiffeq.odeint(self, state, ends, options=options, **chosen)
        except AssertionError as error:
            what = f"the solver {self.accuracy.method} stopped: {str(error).splitlines()[0][:120]}"
            remedy = "The field may blow up or be stiff there; or the tolerance is below what its dtype can resolve."
            raise SolverError(what, f"t = {self.reached:.6g}", remedy) from error
        finally:
            handle.remove()
        self.evaluations += counted
        if not bool(torch.isfinite(made[-1]).all()):
            raise FieldError("the states are no longer finite", f"between t = {start:.6g} and t = {end:.6g}", "")
        return made[-1]


def _torchdiffeq() -> ModuleType:
    """The solver, loaded when it is first needed."""
    try:
        return importlib.import_module("torchdiffeq")
    except ImportError as error:
        what = "integrating vector fields needs torchdiffeq"
        raise SolverError(what, "", "pip install 'torchgauge[ode]'") from error


def span_of(function: Callable[[Tensor, Tensor], Tensor]) -> Span:
    """The span of a field; (0, 1) for a callable."""
    return as_field(function).span
