"""Every block of the catalogue: sound, of the catalogue's dimension, and complete by the independent judge."""

from __future__ import annotations

import pytest
import torch

from tests.zoo import catalogue
from tests.zoo.checks import assert_sound, judge, solve

NAMES = [case.name for case in catalogue.BLOCKS]
EXPLAINED = {case.name: case.reason for case in catalogue.BLOCKS if case.nullity is not None}


@pytest.mark.parametrize("name", NAMES)
def test_random_elements_leave_the_function(name: str) -> None:
    assert_sound(solve(name))


@pytest.mark.parametrize("name", NAMES)
def test_orbit_has_the_dimension_of_the_catalogue(name: str) -> None:
    solved = solve(name)
    dimension = solved.group.orbit_dimension(solved.state)
    assert dimension == solved.case.orbit


@pytest.mark.parametrize("name", NAMES)
def test_orbit_is_the_whole_kernel(name: str) -> None:
    case = catalogue.CASES[name]
    found = judge(case, oversample=20.0 if "relu" in name or "hardswish" in name or name.startswith("conv") else 3.0)
    assert found.nullity == case.expected_nullity, found
    assert case.expected_nullity == case.orbit or EXPLAINED[name]


@pytest.mark.parametrize("name", ["act_relu", "attn_rope_bias", "ln_linear_eps", "bn_eval_relu", "swiglu"])
def test_large_moves_are_sound(name: str) -> None:
    assert_sound(solve(name), scale=2.0, bound=1e-10)


@pytest.mark.parametrize("name", ["act_relu", "attn_mha", "bn_eval_relu", "word_vectors_tied", "ln_linear_eps"])
def test_single_precision_stays_single(name: str) -> None:
    solved = solve(name)
    single = {n: v.float() if v.is_floating_point() else v for n, v in solved.state.items()}
    moved = solved.group.act(solved.group.random(torch.Generator().manual_seed(1), scale=0.3), single)
    assert all(moved[n].dtype == v.dtype for n, v in single.items())
    old, new = (
        solved.outputs({n: v.double() if v.is_floating_point() else v for n, v in s.items()}) for s in (single, moved)
    )
    assert all(float((a - b).abs().max() / a.abs().max()) < 1e-4 for a, b in zip(old, new, strict=True))
