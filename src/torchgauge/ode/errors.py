"""Named errors of the neural-ODE subpackage; each carries its cause and a remedy."""

from __future__ import annotations

from torchgauge.errors import InputError, TorchGaugeError


class FieldError(InputError):
    """A vector field of the wrong shape, or one that returns numbers that are not finite."""


class DiffeomorphismError(InputError):
    """A map of spacetime that is no diffeomorphism, or does not fit the field."""


class BoundaryError(DiffeomorphismError):
    """A map that moves points at the start or at the end of time."""


class FoldError(DiffeomorphismError):
    """A map whose spatial Jacobian is singular, or turns orientation around, at some point."""


class TimeOrderError(DiffeomorphismError):
    """A map along which time stands still or runs backwards."""


class SingularLayerError(InputError):
    """A layer whose weight cannot be inverted."""


class OrientationError(InputError):
    """Layers of negative determinant: no path of invertible matrices leads there."""


class NotEquivalentError(InputError):
    """Two networks that are not the same function."""


class GribovError(InputError):
    """A gauge condition that no point of the orbit obeys."""


class SolverError(TorchGaugeError):
    """A differential equation that could not be integrated."""
