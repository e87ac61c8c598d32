"""What is not meant to work says so, by name: fields of the wrong kind, singular gauges, numbers of layers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.ode.cases import linear_field, normal
from torchgauge import ode

NONLINEAR = ode.VectorField(lambda t, x: torch.sin(x))


@pytest.mark.parametrize(
    "verb",
    [
        lambda field: ode.discretise(field, 3),
        lambda field: ode.integrate(field, 3),
        lambda field: ode.lift(ode.discretise(linear_field(2), 3), field),
        ode.total_line,
        ode.straight_line_gauge,
        ode.constant_gauge,
        ode.uniform_motion,
        ode.covariant_kinetic,
        ode.gauge_field_penalty,
        lambda field: ode.orbit_parts(linear_field(2), field),
        lambda field: ode.orbit_parts(field, linear_field(2)),
    ],
)
def test_what_needs_a_linear_field_says_so(verb: Callable) -> None:
    with pytest.raises(ode.FieldError, match="linear field"):
        verb(NONLINEAR)


def test_attention_needs_a_kick() -> None:
    for field in (NONLINEAR, linear_field(2)):
        with pytest.raises(ode.FieldError, match="one Kick"):
            ode.attention_of(field)  # type: ignore[arg-type]


@pytest.mark.parametrize("layers", [0, -2, 2.5, [0.0, 0.7, 0.5, 1.0], torch.tensor([0.1, 1.0])])
def test_numbers_of_layers(layers: object) -> None:
    with pytest.raises(ode.FieldError):
        ode.discretise(linear_field(2), layers)  # type: ignore[arg-type]


def test_singular_gauge_transformations_are_named_with_their_time() -> None:
    gauge = ode.Affine(lambda t: torch.diag_embed(torch.stack([1 - 4 * t * (1 - t), torch.ones_like(t)])))
    field = ode.pullback(linear_field(2), gauge)
    with pytest.raises(ode.FoldError, match="t = 0.5"):
        field(torch.tensor(0.5, dtype=torch.float64), normal(3, 2))
    net = ode.discretise(linear_field(2), 3)
    matrices = torch.eye(3, dtype=torch.float64).repeat(4, 1, 1)
    matrices[2, 0, 0] = 0
    with pytest.raises(ode.SingularLayerError, match="matrix 1"):
        ode.transform(net, matrices)


def test_generators_of_the_wrong_shape() -> None:
    change = ode.lie_derivative(NONLINEAR, lambda t, x: x[..., :1])
    with pytest.raises(ode.DiffeomorphismError, match="must return shifts"):
        change(torch.tensor(0.5, dtype=torch.float64), normal(3, 2))
