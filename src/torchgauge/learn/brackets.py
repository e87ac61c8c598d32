"""How many conserved quantities a model has, measured without its gauge group.

Gradient flows of all losses move along the vector fields g_c(θ) = ∇⟨c, f_θ⟩, and hence along all their Lie brackets. A
function is conserved by all of them exactly when its gradient is orthogonal to that Lie algebra, so that P − dim of the
algebra at θ is the number of independent conserved quantities (Marcotte, Gribonval, Peyré, arXiv 2307.00144).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from torchgauge.capture import state_of
from torchgauge.errors import InputError
from torchgauge.learn.closed import TINY
from torchgauge.learn.written_out import WrittenOut
from torchgauge.numerics import evaluator, randomise
from torchgauge.observable import Observable, observed

Field = Callable[[Tensor], Tensor]
LARGEST = 4000


@final
@dataclass(frozen=True)
class Measured:
    """Numbers of conserved quantities and of gauge directions at a generic point.

    Attributes:
        laws: independent conserved quantities of gradient flow: the parameters' number − the last of `dimensions`.
        nullity: directions that change no output.
        dimensions: of the span of gradients, then with their brackets, then with brackets of these, …
        settled: whether the last order of brackets added nothing; if not, `laws` is an upper bound.
        gap: log10 of the ratio of the singular values on both sides of the last rank.
    """

    laws: int
    nullity: int
    dimensions: tuple[int, ...]
    settled: bool
    gap: float


def measured_laws(
    model: nn.Module,
    args: tuple = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    observable: Observable = "outputs",
    order: int = 4,
    seed: int = 0,
) -> Measured:
    """Counts the conserved quantities of gradient flow by Lie brackets of gradients, in float64.

    An independent check of `conserved`, for small models: memory grows with the square of the number of parameters,
    time with its cube.

    Args:
        model: its trainable parameters are drawn at random.
        args, kwargs: inputs, enough of them that their outputs determine the function locally.
        observable: as for `infer`.
        order: largest number of brackets in one another.
        seed: of all random draws.

    Raises:
        InputError: more parameters than fit.
    """
    generator = torch.Generator().manual_seed(seed)
    state = randomise(model, generator)
    own = state_of(model)
    names = [name for name, p in own.params.items() if p.requires_grad]
    sizes = [own.params[name].numel() for name in names]
    if not 0 < (total := sum(sizes)) <= LARGEST:
        what = f"brackets of gradients are computed for up to {LARGEST} trainable parameters, not for {total}"
        raise InputError(what, type(model).__name__, "Measure a narrow model of the same architecture.")
    evaluate = evaluator(observed(model, observable), args, kwargs)

    def outputs(theta: Tensor) -> Tensor:
        pieces = zip(names, theta.split(sizes), strict=True)
        moved = {name: piece.reshape(own.params[name].shape) for name, piece in pieces}
        moved |= {alias: moved[of] for alias, of in own.ties.items() if of in moved}
        with WrittenOut():
            return torch.cat([value.reshape(-1) for value in evaluate({**state, **moved})])

    point = torch.cat([state[name].reshape(-1) for name in names])
    return _closure(outputs, point, order, generator)


def _closure(outputs: Field, point: Tensor, order: int, generator: torch.Generator) -> Measured:
    """Adds brackets, order by order, until they add nothing."""
    rows = outputs(point).numel()

    def gradient() -> Field:
        c = torch.randn(rows, generator=generator, dtype=torch.float64) / rows**0.5
        return torch.func.grad(lambda theta: (c * outputs(theta)).sum())

    basis, gap = _range(torch.func.jacrev(outputs)(point))
    dimensions = [basis.shape[1]]
    nullity = point.numel() - basis.shape[1]
    for depth in range(1, order + 1):
        found: list[Tensor] = []
        known = basis
        for _ in range(3 * nullity + 3):
            field = gradient()
            for _ in range(depth):
                field = bracket(field, gradient())
            value = field(point)
            rest = value - known @ (known.T @ value)
            rest = rest - known @ (known.T @ rest)
            # brackets come one at a time: enough of them have been seen when three in a row add nothing
            if float(rest.norm()) > TINY * float(value.norm()):
                known = torch.cat([known, (rest / rest.norm())[:, None]], 1)
                found = []
            else:
                gap = float(torch.log10(TINY * value.norm() / rest.norm().clamp_min(1e-300)))
                found.append(value)
            if len(found) == 3 or known.shape[1] == point.numel():
                break
        dimensions.append(known.shape[1])
        basis = known
        if dimensions[-1] == dimensions[-2] or known.shape[1] == point.numel():
            return Measured(point.numel() - dimensions[-1], nullity, tuple(dimensions), True, gap)
    return Measured(point.numel() - dimensions[-1], nullity, tuple(dimensions), False, gap)


def bracket(a: Field, b: Field) -> Field:
    """[a, b](θ) = Db(θ) a(θ) − Da(θ) b(θ)."""

    def field(theta: Tensor) -> Tensor:
        return torch.func.jvp(b, (theta,), (a(theta),))[1] - torch.func.jvp(a, (theta,), (b(theta),))[1]

    return field


def _range(jacobian: Tensor) -> tuple[Tensor, float]:
    """An orthonormal basis [P, rank] of the row space, and the gap in decades below its smallest singular value."""
    _, values, right = torch.linalg.svd(jacobian, full_matrices=False)
    rank = int((values > TINY * values[0]).sum())
    below = values[rank].clamp_min(1e-17 * values[0]) if rank < len(values) else 1e-17 * values[0]
    return right[:rank].T, float(torch.log10(values[rank - 1] / below))
