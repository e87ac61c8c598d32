"""How conserved quantities move where they are not conserved: under weight decay, and by steps of finite size.

For h = q + l with q = ½⟨θ, Xθ⟩ and l = ⟨u, θ⟩, and a loss with gradient g, gradient flow with weight decay
dθ/dt = −g − μθ gives dq/dt + dl/dt = −2μq − μl. A step θ ↦ θ − η(g + μθ) gives, since ⟨Xθ + u, g⟩ = 0, exactly

    q ↦ (1 − ημ)² q + η(1 − ημ) ⟨u, g⟩ + η² ½⟨g, Xg⟩,      l ↦ (1 − ημ) l − η ⟨u, g⟩.

So linear quantities are conserved by steps of any size, and quadratic ones drift by η² ½⟨g, Xg⟩ a step: by O(η) over a
given time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from torchgauge.errors import InputError
from torchgauge.learn.evaluation import Parts
from torchgauge.learn.generators import Params
from torchgauge.learn.quantities import ConservedQuantity


def predict_decay(
    quantity: ConservedQuantity,
    state: Params,
    times: Sequence[float] | Tensor,
    weight_decay: float | Mapping[str, float],
) -> Tensor:
    """What a quantity becomes under gradient flow with weight decay: e^{−2μt} h if quadratic, e^{−μt} h if linear.

    Args:
        quantity: a quadratic or a linear one.
        state: θ(0).
        times: t, [n]; k steps of size η make t = kη.
        weight_decay: μ of the penalty μ‖θ‖²/2 (as `torch.optim.SGD` has it): one number, or one for every parameter.

    Returns:
        [n, count], float64.

    Raises:
        InputError: a mixed quantity, or decays that differ among the quantity's parameters: these have no such law.
    """
    rate = decay_of(quantity, weight_decay)
    if quantity.kind == "mixed" and rate != 0:
        what = "the quadratic and the linear part decay at different rates, and the loss trades between them"
        raise InputError(f"{what}, so that their sum has no law of decay", quantity.name, _REMEDY)
    power = 2.0 if quantity.kind == "quadratic" else 1.0
    moments = torch.as_tensor(times, dtype=torch.float64).reshape(-1, 1)
    return torch.exp(-power * rate * moments) * quantity(state)


_REMEDY = "Record the run with Recorder, whose prediction follows the parts step by step."


def decay_of(quantity: ConservedQuantity, weight_decay: float | Mapping[str, float]) -> float:
    """The one decay μ of all of a quantity's parameters.

    Raises:
        InputError: they differ, or one is missing.
    """
    if not isinstance(weight_decay, Mapping):
        return float(weight_decay)
    missing = [name for name in quantity.parameters if name not in weight_decay]
    if missing:
        raise InputError("a parameter has no weight decay", missing[0], "Give one for every parameter; 0 for none.")
    found = {float(weight_decay[name]) for name in quantity.parameters}
    if len(found) > 1:
        what = f"the parameters of one conserved quantity have different weight decays, {sorted(found)}"
        raise InputError(f"{what}: it decays by no law of its own", quantity.name, "Give them the same decay.")
    return found.pop()


def after_step(parts: Parts, gradient: Parts, rate: float, weight_decay: float = 0.0) -> Parts:
    """The parts of a quantity after one step θ ↦ θ − η(g + μθ): exact.

    Args:
        parts: q and l at θ (`quantity.parts`).
        gradient: ½⟨g, Xg⟩ and ⟨u, g⟩ (`quantity.parts_of`).
        rate: η.
        weight_decay: μ.
    """
    left = 1 - rate * weight_decay
    quadratic = left**2 * parts.quadratic + rate * left * gradient.linear + rate**2 * gradient.quadratic
    return Parts(quadratic, left * parts.linear - rate * gradient.linear)
