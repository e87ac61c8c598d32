"""Rules: one small function per operator family, from the captured graph to constraints."""

from torchgauge.rules import (
    attention,
    convolution,
    indexing,
    linear,
    normalization,
    pointwise,
    recurrent,
    scans,
    scatter,
    selection,
    sorting,
    view,
)
from torchgauge.rules.lower import lower, prune

__all__ = ["lower", "prune"]

_FAMILIES = (
    attention,
    convolution,
    indexing,
    linear,
    normalization,
    pointwise,
    recurrent,
    scans,
    scatter,
    selection,
    sorting,
    view,
)
"""Importing a family registers its rules."""
