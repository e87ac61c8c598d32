"""Weakly nonlinear fields to first order."""

from __future__ import annotations

import pytest
import torch

from tests.ode.cases import FINE, gap, linear_field, normal
from torchgauge import ode
from torchgauge.ode.cubic import contract


def test_the_response_is_right_to_first_order() -> None:
    field, x, coupling = linear_field(3, bias=False), normal(5, 3), normal(3, 3, 3, 3, seed=2)
    total = ode.total_line(field)[:3, :3]
    errors = []
    for size in (1e-3, 1e-4):

        def path(t: torch.Tensor, size: float = size) -> torch.Tensor:
            return size * coupling * torch.cos(2 * t)

        final = ode.solve(ode.Cubic(field, path), x, accuracy=FINE).final
        response = ode.response(field, path)
        errors.append(gap(final, x @ total.mT + contract(response, x)))
    assert 80 < errors[0] / errors[1] < 125
    with pytest.raises(ode.FieldError, match="without bias"):
        ode.response(linear_field(3), lambda t: coupling)


def test_a_narrow_pulse_is_a_kick() -> None:
    """λ(t) = δ(t − t₀) λⁱ_j λ̃_kl: the response is the attention term (41)."""
    field = ode.pure_gauge(ode.random_affine(3, shift=False, generator=torch.Generator().manual_seed(0)))
    contraction, form = normal(2, 3, 3)
    split = torch.einsum("ij,kl->ijkl", contraction, form)
    gaps = []
    for width in (0.04, 0.02):
        narrow = ode.LinearField(field.w, None, (0.5 - width, 0.5 + width))

        def pulse(t: torch.Tensor, width: float = width) -> torch.Tensor:
            return split * 15 / 16 / width * (1 - ((t - 0.5) / width) ** 2) ** 2

        before = ode.lines.layer_lines(field, torch.tensor([0.0, 0.5 - width]).double())[0, :3, :3]
        after = ode.lines.layer_lines(field, torch.tensor([0.5 + width, 1.0]).double())[0, :3, :3]
        response = torch.einsum("ai,ijkl,jb,kc,ld->abcd", after, ode.response(narrow, pulse), before, before, before)
        layer = ode.attention_of(ode.kicked(field, ode.Kick(contraction, form), 0.5))
        x = normal(4, 1, 3)
        gaps.append(gap(contract(response, x), layer(x) - x))
    assert gaps[1] < 0.02
    assert 3 < gaps[0] / gaps[1] < 5  # second order in the width of the pulse
