"""Laws that every gauge group obeys, over every block of the catalogue."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.zoo import catalogue
from tests.zoo.case import Float64, State, evaluate
from tests.zoo.checks import Solved, solve

NAMES = [case.name for case in catalogue.BLOCKS]
MOVING = [case.name for case in catalogue.BLOCKS if case.orbit]
NO_FORWARD_MODE = {
    **dict.fromkeys(
        ("weight_norm_torch", "weight_norm_gelu", "weight_norm_relu"),
        "torch has no forward mode for its fused weight norm",
    ),
    **dict.fromkeys(
        ("embedding_bag_mean", "embedding_bag_sum", "embedding_bag_max"), "torch has no forward mode for bags of rows"
    ),
}
CLOSE = 1e-8
few = settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
seeds = st.integers(0, 2**32 - 1)


def draw(solved: Solved, seed: int, scale: float = 0.5):
    return solved.group.random(torch.Generator().manual_seed(seed), scale=scale)


def distance(a: State, b: State) -> float:
    """Largest over the tensors of ‖a − b‖_max / (1 + ‖a‖_max)."""
    assert a.keys() == b.keys()
    return max(
        float((v.double() - b[n].double()).abs().max() / (1 + v.double().abs().max()))
        for n, v in a.items()
        if v.numel()
    )


@pytest.mark.parametrize("name", NAMES)
def test_identity(name: str) -> None:
    solved = solve(name)
    identity = solved.group.identity()
    assert distance(solved.state, solved.group.act(identity, solved.state)) <= 1e-14
    g = draw(solved, 1)
    moved = solved.group.act(g, solved.state)
    assert distance(moved, solved.group.act(identity @ g, solved.state)) <= 1e-14
    assert distance(moved, solved.group.act(g @ identity, solved.state)) <= 1e-14


@few
@given(seed=seeds)
@pytest.mark.parametrize("name", NAMES)
def test_inverse(name: str, seed: int) -> None:
    solved = solve(name)
    g = draw(solved, seed)
    there = solved.group.act(g, solved.state)
    assert distance(solved.state, solved.group.act(g.inverse(), there)) <= CLOSE
    assert distance(solved.state, solved.group.act(g.inverse() @ g, solved.state)) <= CLOSE


@few
@given(one=seeds, two=seeds)
@pytest.mark.parametrize("name", NAMES)
def test_action_is_compatible(name: str, one: int, two: int) -> None:
    solved = solve(name)
    g, h = draw(solved, one), draw(solved, two)
    composed = solved.group.act(g @ h, solved.state)
    assert distance(composed, solved.group.act(g, solved.group.act(h, solved.state))) <= CLOSE


@few
@given(one=seeds, two=seeds, three=seeds)
@pytest.mark.parametrize("name", NAMES)
def test_associativity(name: str, one: int, two: int, three: int) -> None:
    solved = solve(name)
    f, g, h = (draw(solved, s, 0.3) for s in (one, two, three))
    left = solved.group.act((f @ g) @ h, solved.state)
    assert distance(left, solved.group.act(f @ (g @ h), solved.state)) <= CLOSE


def directions(solved: Solved) -> tuple[list[str], torch.Tensor]:
    """Every generator at the case's parameters as a column."""
    names = [n for n, _ in solved.module.named_parameters()]
    columns = [
        torch.cat([t[n].reshape(-1) if n in t else torch.zeros(solved.state[n].numel()).double() for n in names])
        for _, t in solved.group.tangents(solved.state)
    ]
    return names, torch.stack(columns, 1)


@pytest.mark.parametrize("name", MOVING)
def test_generators_are_the_derivative_of_the_action(name: str) -> None:
    """A small element, its discrete part divided out, moves parameters within the span of the generators."""
    solved = solve(name)
    names, columns = directions(solved)
    step = 1e-6
    near = draw(solved, 5, 0.0).inverse() @ draw(solved, 5, step)
    moved = solved.group.act(near, solved.state)
    change = torch.cat([(moved[n] - solved.state[n]).reshape(-1) for n in names]) / step
    if float(change.norm()) < 1e-3:
        pytest.skip("only rotations, which are drawn whole at every scale")
    rest = change - columns @ torch.linalg.lstsq(columns, change[:, None], driver="gelsd").solution[:, 0]
    assert float(rest.norm()) <= 1e-3 * float(change.norm())


@pytest.mark.parametrize("name", MOVING)
def test_generators_leave_the_function(name: str) -> None:
    if name in NO_FORWARD_MODE:
        pytest.skip(NO_FORWARD_MODE[name])
    solved = solve(name)
    names, columns = directions(solved)
    assert columns.shape[1] == solved.group.tangent_count
    columns = columns / columns.norm(dim=0).clamp_min(1e-30)
    mixed = columns @ torch.randn(columns.shape[1], generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    sizes = [solved.state[n].numel() for n in names]
    at = {n: solved.state[n] for n in names}
    along = {n: part.reshape(at[n].shape) for n, part in zip(names, mixed.split(sizes), strict=True)}
    canonical = {id(p): n for n, p in solved.module.named_parameters()}
    every = [(n, canonical[id(p)]) for n, p in solved.module.named_parameters(remove_duplicate=False)]

    def outputs(p: State) -> list[torch.Tensor]:
        state = {**solved.state, **{n: p[first] for n, first in every}}
        return evaluate(solved.module, state, solved.case.example(3), solved.case.kwargs)

    with Float64(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        out, change = torch.func.jvp(outputs, (at,), (along,))
    assert all(float(c.abs().max()) <= 1e-10 * float(o.abs().max()) for o, c in zip(out, change, strict=True))
