"""Named errors and warnings of the field-theory subpackage; each carries its cause and a remedy."""

from __future__ import annotations

from torchgauge.errors import InputError


class LawError(InputError):
    """A distribution over a parameter that cannot be: wrong shape, negative width, a parameter without a law."""


class MomentError(InputError):
    """A distribution that lacks the moments that the asked average needs."""


class SingularKernelError(InputError):
    """Widths or points at which a kernel has no inverse, or does not exist."""


class EstimatorError(InputError):
    """An estimator that does not fit the ensemble."""


class IdentifiabilityError(InputError):
    """A fit whose couplings the data do not determine."""


class RunFileError(InputError):
    """A file of partial sums that is damaged or belongs to another run."""


class PrecisionWarning(UserWarning):
    """Too few networks for the asked precision."""


class IdentifiabilityWarning(UserWarning):
    """A fit that the data determine badly."""


class MisfitWarning(UserWarning):
    """An ansatz that does not describe the data it was fitted to."""
