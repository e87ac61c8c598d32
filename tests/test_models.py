"""Tiny models of real families: sound, of the measured dimension, complete or explained."""

from __future__ import annotations

import pytest

from tests.zoo import catalogue
from tests.zoo.checks import assert_sound, judge, solve

NAMES = [case.name for case in catalogue.MODELS]
EXPLAINED = {case.name: case.reason for case in catalogue.MODELS if case.nullity is not None}


@pytest.fixture(autouse=True)
def _needs_transformers(request: pytest.FixtureRequest) -> None:
    from tests.zoo import models

    if request.node.callspec.params["name"] in {case.name for case in models.CASES}:
        pytest.importorskip("transformers", reason="the extra `transformers` is not installed")


@pytest.mark.parametrize("name", NAMES)
def test_random_elements_leave_the_function(name: str) -> None:
    assert_sound(solve(name))


@pytest.mark.parametrize("name", NAMES)
def test_orbit_has_the_measured_dimension(name: str) -> None:
    solved = solve(name)
    dimension = solved.group.orbit_dimension(solved.state)
    assert dimension == solved.case.orbit


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_orbit_is_the_whole_kernel(name: str) -> None:
    case = catalogue.CASES[name]
    found = judge(case)
    assert found.nullity == case.expected_nullity, found
    assert case.expected_nullity == case.orbit or EXPLAINED[name]
