"""Wilson lines: time-ordered exponentials W_{t:s} = P exp ∫_s^t w dt' of linear fields (paper, (28)–(32))."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite

import torch
from torch import Tensor

from torchgauge.errors import InputError
from torchgauge.ode.calculus import Path
from torchgauge.ode.factored import DYSON4, DYSON6, FactoredDyson
from torchgauge.ode.fields import LinearField
from torchgauge.ode.magnus import Magnus4, Magnus6
from torchgauge.ode.magnus_free import CommutatorFree4
from torchgauge.ode.mixed_kernel import HALF
from torchgauge.ode.products import ordered_products, prefix_products
from torchgauge.ode.runge_kutta import RK4, RK6, RK8, RungeKutta
from torchgauge.ode.wilson_base import Method, transformed
from torchgauge.ode.wilson_grid import W_BYTES, Mesh, block, even, grid, sample
from torchgauge.ode.wilson_judged import evenly, first_look, halved, single
from torchgauge.ode.wilson_mesh import SMALL, explain, plan
from torchgauge.ode.wilson_source import Edges, Source

METHODS: dict[str, Method] = {
    method.name: method for method in (RK4, RK6, RK8, DYSON4, DYSON6, Magnus4(), Magnus6(), CommutatorFree4())
}


FIRST_TIMES = 96  # up to this many, all times at which w is wanted serve to find out what it returns
_size = [0]  # bytes of w at one time in the last call, a guess for the next
MANY_LAYERS = 6  # of more, each may be so short that a method of lower order does
SIXTH_FROM = 1e-7  # of few layers, from this tolerance on order 6 costs less than order 8,
SIXTH_SMALL = 1e-8  # and for small matrices from this one
HALF_FROM = 1e-9  # products in half the precision are tried from this tolerance on,
HALF_UNSURE = 1e-7  # and up to this one their rounding may be why they fail


@dataclass(frozen=True, eq=False)
class WilsonLines:
    """Time-ordered exponentials over consecutive layers. The later factor stands on the left.

    Attributes:
        edges: times [L + 1].
        layers: lines from edges[n] to edges[n + 1], [L, ..., D, D]. D = d; with a b, D = d + 1 and they are
            [[w̄, b̄], [0, 1]] (32).
        affine: whether there is a b.
        method: name of the method.
        slices: how many slices each layer was cut into.
        error: estimated rms error of a unit vector transported along the worst layer; NaN where slices were given.
        mixed: whether products were computed in half the precision.
    """

    edges: Tensor
    layers: Tensor
    affine: bool
    method: str
    slices: tuple[int, ...]
    error: float
    mixed: bool = False

    @cached_property
    def total(self) -> Tensor:
        """The line from the first edge to the last, [..., D, D]."""
        if len(self.layers) == 1:
            return self.layers[0]
        if "prefix" in self.__dict__:
            return self.prefix[-1]
        layers = self.layers.reshape(len(self.layers), -1, *self.layers.shape[-2:])
        return ordered_products(layers, [len(layers)]).reshape(self.layers.shape[1:])

    @cached_property
    def prefix(self) -> Tensor:
        """The lines from the first edge to every edge, [L + 1, ..., D, D]; the first is the identity."""
        layers = self.layers.reshape(len(self.layers), -1, *self.layers.shape[-2:])
        return prefix_products(layers).reshape(len(layers) + 1, *self.layers.shape[1:])

    def split(self, line: Tensor) -> tuple[Tensor, Tensor]:
        """The homogeneous part w̄ [..., d, d] and the inhomogeneous part b̄ [..., d] of lines, x ↦ w̄ x + b̄."""
        if not self.affine:
            return line, line.new_zeros(line.shape[:-1])
        return line[..., :-1, :-1], line[..., :-1, -1]


def wilson(
    w: LinearField | Path | Tensor,
    edges: Tensor | Sequence[float],
    b: Path | Tensor | None = None,
    *,
    tolerance: float | None = None,
    slices: int | Sequence[int] | None = None,
    method: str | Method = "auto",
    group_preserving: bool = False,
    mixed: bool | None = None,
    reverse: bool = False,
    max_slices: int = 20_000,
) -> WilsonLines:
    """Time-ordered exponentials over consecutive layers, all slices of all layers in one batch.

        lines = wilson(w, torch.linspace(0, 1, 33, dtype=torch.float64))
        lines.layers, lines.prefix, lines.total

    Args:
        w: w(t): a callable or module that maps times [n] to [n, d, d] (preferred), or one time [] to [d, d]; a tensor
            [d, d]; `Sampled(times, values)`; or a `LinearField`, which brings its b. A batch of fields has axes before
            [d, d]. A jump of w is allowed at an edge.
        edges: times [L + 1], increasing; or decreasing, for lines back in time.
        b: b(t) [d] of dx/dt = w x + b, in the same ways.
        tolerance: for each layer, the rms error of a transported random unit vector, relative where the line grows.
            Errors are estimated, not bounded. By default eps^(4/5) of w's dtype, 3e-13 in float64.
        slices: fixed number of slices of each layer, instead of a tolerance.
        method: "rk8", "rk6", "rk4", "dyson6", "dyson4", "magnus6", "magnus4", "free4", or a `Method`. "auto" is rk8,
            for tolerances from 1e-7 on dyson6; with many layers a cheaper one for which one slice of each is enough.
        group_preserving: choose a method that keeps lines in the group, such as SO(d) for antisymmetric w, to rounding.
        mixed: products of the factored series in half the precision of w, float32 for float64, and all else in that of
            w. By default never with given slices or a given method; a choice of "auto" where the error, measured on the
            lines with their rounding, meets a tolerance of at least 1e-7 (one slice for each layer: 1e-9). False
            forbids it. True is for given slices of "dyson4", or of "dyson6", which is then what "auto" takes.
        reverse: take the edges from last to first: inverse lines, the last layer's first.
        max_slices: where the search for a mesh gives up.

    Returns:
        The lines, in the dtype and on the device of w, differentiable in what w, b and edges depend on.

    Raises:
        EdgesError: edges that are not in order.
        FieldError: w or b of the wrong shape, or not finite.
        InputError: options that contradict each other.
        SolverError: a tolerance out of reach.
    """
    ends = Edges.of(edges, reverse)
    chosen = _method("dyson6" if mixed and method == "auto" else method, group_preserving)
    if mixed:
        chosen = _mixed(chosen, slices)
    if slices is None:
        free = method == "auto" and chosen is RK8 and not transformed()
        source = Source(w, b, ends, _first_look(ends, tolerance) if free else None)
        _size[0] = source.matrices
        if transformed():
            remedy = "Pass slices=..., a fixed number for each layer."
            raise InputError("a mesh cannot be chosen inside a transformation of torch.func", "tolerance", remedy)
        chosen, mesh, factors = _planned(
            chosen, free, mixed is None, source, ends, _tolerance(tolerance, source), max_slices
        )
        if torch.is_grad_enabled() and (source.requires_grad or ends.times.requires_grad):
            factors = None
    else:
        if tolerance is not None:
            raise InputError("a tolerance and a number of slices cannot both be met", "slices", "Pass one of the two.")
        mesh, factors = even(_counts(slices, len(ends) - 1)), None
        times = len(mesh) * len(chosen.nodes)
        at_once = ends.kept and not transformed() and times <= FIRST_TIMES and times * _size[0] <= W_BYTES
        source = Source(w, b, ends, (lambda eps: grid(eps, mesh, ends, chosen.nodes)[0]) if at_once else None)
        _size[0] = source.matrices
    if factors is None:
        factors = _propagate(chosen, source, mesh, ends)
    together = len(mesh) // len(factors)  # slices that are joined already
    layers = ordered_products(factors, [n // together for n in mesh.counts] if together > 1 else mesh.counts)
    # a sum is finite only if all terms are, and costs a tenth of asking each
    if not transformed() and not isfinite(abs(layers.detach().sum().item())) and not bool(layers.isfinite().all()):
        explain(source, mesh, ends, chosen.nodes)
    layers = layers.reshape(len(layers), *source.batch, source.size, source.size)
    half = isinstance(chosen, FactoredDyson) and chosen is chosen.mixed and source.dtype in HALF
    return WilsonLines(ends.times, layers, source.affine, chosen.name, mesh.counts, mesh.error, half)


def _method(method: str | Method, group_preserving: bool) -> Method:
    if isinstance(method, str):
        if method == "auto":
            return METHODS["magnus6" if group_preserving else "rk8"]
        if method not in METHODS:
            raise InputError(
                f"no method is called {method!r}", "method", f"Use one of {', '.join(('auto', *METHODS))}."
            )
        method = METHODS[method]
    if group_preserving and not method.group_preserving:
        names = ", ".join(name for name, known in METHODS.items() if known.group_preserving)
        raise InputError(f"{method.name} does not keep lines in the group", "group_preserving", f"Use one of {names}.")
    return method


def _tolerance(tolerance: float | None, source: Source) -> float:
    eps = torch.finfo(source.dtype).eps
    if tolerance is None:
        return eps**0.8
    if not tolerance > 0:
        raise InputError(f"a tolerance must be positive, not {tolerance}", "tolerance", "Pass None for the default.")
    return max(float(tolerance), 32 * eps)


def _counts(slices: int | Sequence[int], layers: int) -> list[int]:
    counts = [slices] * layers if isinstance(slices, int) else [int(n) for n in slices]
    if len(counts) != layers or min(counts) < 1:
        what = f"slices must be a positive number, or one for each of the {layers} layers, got {slices}"
        raise InputError(what, "slices", "Pass an int, or a sequence of them as long as there are layers.")
    return counts


def _first_look(edges: Edges, tolerance: float | None) -> Callable[[float], Tensor] | None:
    """The times at which w will be wanted first, where they may serve for the first look at it."""
    small = _size[0] <= 8 * SMALL**2
    if tolerance is None or len(edges) > MANY_LAYERS or edges.kept is None or not _size[0]:
        return None
    if not (SIXTH_SMALL if small else SIXTH_FROM) <= tolerance < 1:
        return None
    return first_look(DYSON6, RK8, edges, tolerance, small)


def _mixed(method: Method, slices: int | Sequence[int] | None) -> FactoredDyson:
    """The method with products in half the precision."""
    if slices is None:
        what = "mixed=True is for given slices: for a tolerance, products in half the precision are a choice of auto"
        raise InputError(what, "mixed", "Pass slices=..., or mixed=None.")
    if not isinstance(method, FactoredDyson):
        raise InputError(f"{method.name} has no products in half the precision", "mixed", "Use dyson4 or dyson6.")
    return method.mixed


def _planned(
    method: Method, free: bool, half: bool, source: Source, edges: Edges, tolerance: float, most: int
) -> tuple[Method, Mesh, Tensor | None]:
    """The mesh; where the method is free, for one of lower order if that is enough, and costs less."""
    if free:
        for cheaper, judge in _cheaper(half, source, edges, tolerance):
            if len(edges) > MANY_LAYERS:
                found = single(cheaper, judge, source, edges, tolerance)
            elif source.size <= SMALL:
                found = halved(cheaper, source, edges, tolerance)
            else:
                found = evenly(cheaper, judge, source, edges, tolerance, most)
            if found is not None:
                return cheaper, *found
    return method, *plan(method, source, edges, tolerance, most)


def _cheaper(half: bool, source: Source, edges: Edges, tolerance: float) -> Iterator[tuple[FactoredDyson, RungeKutta]]:
    """Methods that may cost less than rk8, and who judges them. Small matrices are as fast in either precision."""
    small = source.size <= SMALL
    half = half and source.dtype in HALF and tolerance >= HALF_FROM and not small
    if len(edges) <= MANY_LAYERS:
        # rk8 and its search ask for half as many times, which counts where each is a call
        if tolerance >= (SIXTH_SMALL if small else SIXTH_FROM) and (small or source.vectorised):
            yield DYSON6.mixed if half else DYSON6, RK8
    elif not small:
        for method, judge in ((DYSON4, RK6), (DYSON6, RK8)):
            yield method.mixed if half else method, judge
        if half and tolerance <= HALF_UNSURE:
            yield DYSON6, RK8


def _propagate(method: Method, source: Source, mesh: Mesh, edges: Edges) -> Tensor:
    """Lines of the slices, [N, fields, D, D]; w is sampled block by block."""
    parts, length = [], block(source, len(method.nodes))
    for start in range(0, len(mesh), length):
        part = mesh.part(start, min(start + length, len(mesh)))
        parts.append(method.propagators(sample(source, part, edges, method.nodes), part.steps(edges)))
    return parts[0] if len(parts) == 1 else torch.cat(parts)
