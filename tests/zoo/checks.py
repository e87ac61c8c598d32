"""What every network of the zoo must show, on top of the numbers in its case."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

import torchgauge as tg
from tests import oracle
from tests.zoo import catalogue
from tests.zoo.case import Case, State, evaluate64, relative_defect

SOUND = 1e-12


@dataclass(frozen=True)
class Solved:
    """A case with its module, state and inferred group; inference runs once per test process."""

    case: Case
    module: nn.Module
    state: State
    group: tg.GaugeGroup

    def outputs(self, state: State, batch: int = 0) -> list[Tensor]:
        return evaluate64(self.module, state, self.case.example(batch), self.case.kwargs)


@cache
def solve(name: str) -> Solved:
    case = catalogue.CASES[name]
    module = case.module()
    group = tg.infer(module, case.example(), case.kwargs)
    return Solved(case, module, dict(module.state_dict()), group)


def same_storage(state: State) -> set[frozenset[str]]:
    """Groups of names that share one tensor."""
    groups: dict[tuple[int, torch.Size], set[str]] = {}
    for name, value in state.items():
        if value.numel():
            groups.setdefault((value.data_ptr(), value.shape), set()).add(name)
    return {frozenset(g) for g in groups.values() if len(g) > 1}


def assert_sound(solved: Solved, seeds: range = range(3), scale: float = 1.0, bound: float = SOUND) -> None:
    """Random elements move the parameters and leave the outputs, on inputs that inference has not seen."""
    state, group = solved.state, solved.group
    before = {n: v.clone() for n, v in state.items()}
    for seed in seeds:
        element = group.random(torch.Generator().manual_seed(seed), scale=scale)
        moved = group.act(element, state)
        assert moved.keys() == state.keys()
        assert all(moved[n].dtype == v.dtype and moved[n].shape == v.shape for n, v in state.items())
        if solved.case.orbit:
            assert any(not torch.equal(moved[n], v) for n, v in state.items()), "the element is the identity"
        for names in same_storage(dict(solved.module.state_dict())):
            first, *others = (moved[n] for n in sorted(names))
            assert all(torch.equal(first, other) for other in others), f"the tie of {sorted(names)} is broken"
        for batch in (0, 7):
            defect = relative_defect(solved.outputs(state, batch), solved.outputs(moved, batch))
            assert defect <= bound, f"seed {seed}, batch {batch}: relative defect {defect:.1e}"
    assert all(torch.equal(before[n], v) for n, v in state.items()), "the given parameters were changed"


def judge(case: Case, oversample: float = 2.0) -> oracle.Nullity:
    """The independent nullity at the case's own parameters."""
    return oracle.nullity(case.module(), case.inputs, keep_parameters=True, oversample=oversample)
