"""Decisions about the gallery, made once for all tests that look at them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from torchgauge.fields.symmetry import GALLERY, Symmetries, symmetries


@pytest.fixture(scope="session")
def decided() -> Callable[[str], Symmetries]:
    """The verdicts on an ensemble of the gallery, by its name."""

    @cache
    def found(name: str) -> Symmetries:
        case = GALLERY[name]
        return symmetries(case.ensemble, case.points)

    return found
