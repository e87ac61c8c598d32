"""Conserved quantities at a state and at a gradient: all of a model's in a few passes over their tensors.

With B(x; y) = ⟨x, v(y)⟩ and v(θ) = Xθ + u, the parts are ½⟨θ, Xθ⟩ = (B(θ; 2θ) − B(θ; θ))/2 and
⟨u, θ⟩ = 2B(θ; θ) − B(θ; 2θ); those of a direction g follow from B(g; ·) likewise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from torchgauge.errors import InputError
from torchgauge.learn.generators import Algebra, Params

if TYPE_CHECKING:
    from torchgauge.learn.quantities import ConservedQuantity


class Parts(NamedTuple):
    """The two parts of a quantity, ½⟨θ, Xθ⟩ and ⟨u, θ⟩, each [count]; they decay at different rates."""

    quadratic: Tensor
    linear: Tensor


def parts(
    quantities: Sequence[ConservedQuantity], state: Params, gradient: Params | None = None
) -> list[tuple[Parts, Parts | None]]:
    """The parts of quantities of one model at θ, and, where a direction g is given, ½⟨g, Xg⟩ and ⟨u, g⟩.

    Args:
        quantities: of one call of `conserved`.
        state: θ by name.
        gradient: g by name. A quantity of which a tensor is missing gets None.

    Raises:
        InputError: a tensor is missing, has another shape, or is not finite; a running statistic is another one than
            that for which the quantities were found.
    """
    if not quantities:
        return []
    generators = quantities[0].generators
    families = _families(quantities)
    own = state_of(quantities, state)
    theta = {name: own[name] for q in quantities for name in q.parameters}
    g = _direction(theta, gradient, generators.group.ties)
    mixed = _families([q for q in quantities if q.kind == "mixed"])
    curved = _families([q for q in quantities if q.kind != "linear"])

    at_one = generators.derivative(families, own, theta, g)
    doubled = {**own, **{name: 2 * value for name, value in theta.items()}}
    at_two = generators.derivative(mixed, doubled, theta, g) if mixed else [{}, {}]
    size = _norm(theta) / _norm(g) if g and _norm(g) > 0 else 0.0
    ahead: Algebra = {}
    if size:  # a step of the parameters' own size costs few digits
        stepped = {**own, **{name: theta[name] + size * value for name, value in g.items()}}
        (ahead,) = generators.derivative(curved, stepped, g)

    out: list[tuple[Parts, Parts | None]] = []
    for q in quantities:
        whole = all(name in g for name in q.parameters)
        slope = _slope(q, at_one[1], at_two[1], ahead, size) if whole else None
        out.append((_split(q, at_one[0], at_two[0]), slope))
    return out


def state_of(quantities: Sequence[ConservedQuantity], state: Params) -> dict[str, Tensor]:
    """The tensors of quantities, checked, on the CPU in float64; errors as for `parts`."""
    generators = quantities[0].generators
    own = generators.state(_families(quantities), state)
    for name in dict.fromkeys(name for q in quantities for name in q.parameters):
        if not bool(own[name].isfinite().all()):
            raise InputError("a conserved quantity was asked for where parameters are not finite", name, "")
    for name in dict.fromkeys(name for q in quantities for name in q.statistics):
        if name in state and not torch.equal(state[name].detach().cpu().double(), generators.blank[name]):
            what = "the quantity was found for other running statistics"
            raise InputError(what, name, "Keep batch norms in evaluation mode, or call `conserved` again.")
    return own


def _families(quantities: Sequence[ConservedQuantity]) -> list[int]:
    return sorted({i for q in quantities for i in q.space.parts})


def _direction(theta: Params, gradient: Params | None, ties: Mapping[str, str]) -> dict[str, Tensor]:
    found = {ties.get(name, name): value for name, value in (gradient or {}).items()}
    return {n: found[n].detach().to("cpu", torch.float64).reshape(t.shape) for n, t in theta.items() if n in found}


def _norm(tensors: Params) -> float:
    return sum(float(value.square().sum()) for value in tensors.values()) ** 0.5


def _split(q: ConservedQuantity, one: Algebra, two: Algebra) -> Parts:
    first = q.space.read(one)
    if q.kind == "quadratic":
        return Parts(first / 2, torch.zeros_like(first))
    if q.kind == "linear":
        return Parts(torch.zeros_like(first), first)
    second = q.space.read(two)
    return Parts((second - first) / 2, 2 * first - second)


def _slope(q: ConservedQuantity, one: Algebra, two: Algebra, ahead: Algebra, size: float) -> Parts:
    first = q.space.read(one)
    zero = torch.zeros_like(first)
    if q.kind == "linear" or not size:
        return Parts(zero, first if q.kind == "linear" else zero)
    quadratic = (q.space.read(ahead) - first) / (2 * size)
    return Parts(quadratic, 2 * first - q.space.read(two) if q.kind == "mixed" else zero)
