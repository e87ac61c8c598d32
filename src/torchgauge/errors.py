"""Errors that carry a cause and a remedy."""

from __future__ import annotations


class TorchGaugeError(Exception):
    """Something a user can mend.

    Args:
        what: what failed, and why.
        where: the file, parameter or source line it concerns.
        remedy: what to do about it.
    """

    def __init__(self, what: str, where: str = "", remedy: str = "") -> None:
        super().__init__("\n".join(part for part in (what, where and f"at {where}", remedy) if part))
        self.what = what
        self.where = where
        self.remedy = remedy


class CaptureError(TorchGaugeError):
    """A model that torch.export cannot trace."""


class CheckpointError(TorchGaugeError):
    """A checkpoint folder or file that cannot be read."""


class ModelError(TorchGaugeError):
    """A model that cannot be found, built or run."""


class InputError(TorchGaugeError):
    """Arguments that do not fit: shapes, names, missing inputs."""
