"""Concatenated index sets: where a program is cut into blocks, and that the group of the blocks is right."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchgauge as tg
from tests.zoo.case import evaluate64, relative_defect
from torchgauge.capture import capture
from torchgauge.rules import lower
from torchgauge.spaces.constraints import Concat, Normalize, Program, Slice
from torchgauge.spaces.cuts import MOST, PIECES, find_cuts
from torchgauge.spaces.distribute import distribute


class Net(nn.Module):
    """A function of its modules and one input."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


def program(model: nn.Module, x: Tensor = X) -> Program:
    return distribute(lower(capture(model, (x,))))


def count(p: Program, kind: type) -> int:
    return sum(isinstance(k, kind) for k in p.constraints)


def assert_sound(model: nn.Module, x: Tensor = X, orbit: int | None = None) -> tg.GaugeGroup:
    g = torch.Generator().manual_seed(1)
    state = {n: torch.randn(p.shape, generator=g, dtype=torch.float64) for n, p in model.state_dict().items()}
    group = tg.infer(model, (x,))
    old = evaluate64(model, state, (x.double(),))
    for _ in range(3):
        new = evaluate64(model, group.act(group.random(g), state), (x.double(),))
        assert relative_defect(old, new) < 1e-11
    if orbit is not None:
        assert group.orbit_dimension(state) == orbit
    return group


def test_a_packed_projection_falls_apart() -> None:
    model = Net(lambda m, x: m.b(F.relu(m.a(x)[:, :4]) * m.a(x)[:, 4:]), a=nn.Linear(3, 8), b=nn.Linear(4, 2))
    p = program(model)
    assert count(p, Slice) == 0
    assert {"a.weight[0:4]", "a.weight[4:8]"} <= set(p.params)
    assert_sound(model, orbit=8)


def test_zeros_beside_a_stream_leave_it_free() -> None:
    model = Net(
        lambda m, x: m.c(F.relu(F.pad(F.relu(m.a(x)), (0, 2)) + m.b(x))),
        a=nn.Linear(3, 4),
        b=nn.Linear(3, 6),
        c=nn.Linear(6, 2),
    )
    assert count(program(model), Concat) == 0
    # two rows of b stand beside zeros, four are added to the units of a: one scale per channel
    group = assert_sound(model, orbit=6)
    assert group.components["4!"] == group.components["2!"] == 1


def test_a_norm_over_two_blocks_counts_both() -> None:
    model = Net(
        lambda m, x: m.c(m.n(torch.cat((m.a(x), m.b(x)), -1))),
        a=nn.Linear(3, 4),
        b=nn.Linear(3, 5),
        n=nn.RMSNorm(9, eps=1e-3),
        c=nn.Linear(9, 2),
    )
    norms = [k for k in program(model).constraints if isinstance(k, Normalize)]
    assert [len(k.others) for k in norms] == [1, 1]
    # O(4) × O(5), and nine gains against their readers
    assert_sound(model, orbit=6 + 10 + 9)


def test_blocks_are_cut_again_without_losing_the_others() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        h = m.a(x).reshape(5, 2, 4)
        h = F.layer_norm(h, (4,))
        return m.b((h[..., :2] * torch.tanh(h[..., 2:])).flatten(1))

    model = Net(forward, a=nn.Linear(3, 8), b=nn.Linear(4, 2))
    norms = [k for k in program(model).constraints if isinstance(k, Normalize)]
    assert [len(k.others) for k in norms] == [1, 1]
    assert_sound(model)


def test_windows_and_softmax_stay_whole() -> None:
    model = Net(lambda m, x: m.a(x).softmax(-1)[:, :2], a=nn.Linear(3, 6))
    p = program(model)
    assert count(p, Slice) == 1
    assert_sound(model)
    images = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    model = Net(lambda m, x: m.b(m.a(x)[..., 1:4]), a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(4, 2, 3))
    assert count(program(model, images), Slice) == 1
    assert_sound(model, images, orbit=16 + 4)


def test_divisions_that_lie_across_one_another_are_rigid() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        h = F.relu(m.a(x))
        return m.b(h + h.reshape(5, 2, 3).transpose(1, 2).reshape(5, 6))

    model = Net(forward, a=nn.Linear(3, 6), b=nn.Linear(6, 2))
    # nothing is claimed of units that are read in two crossing orders
    assert_sound(model, orbit=0)


def test_a_rolled_stream_that_is_added_to_itself() -> None:
    model = Net(lambda m, x: m.b(F.relu(m.a(x)) + F.relu(m.a(x)).roll(2, -1)), a=nn.Linear(3, 6), b=nn.Linear(6, 2))
    assert_sound(model, orbit=1)


def test_too_many_cuts_are_not_made() -> None:
    n = MOST + 6
    model = Net(lambda m, x: m.b(sum(m.a(x)[:, i : i + 1] * i for i in range(n))), a=nn.Linear(3, n), b=nn.Linear(1, 2))
    cuts = find_cuts(lower(capture(model, (X,))))
    assert not cuts.any
    assert_sound(model)


def test_parts_that_nothing_reads_do_not_move() -> None:
    model = Net(lambda m, x: m.a(x)[:, :3], a=nn.Linear(3, 5))
    group = assert_sound(model, orbit=0)
    assert not group.factors


def test_a_matrix_written_row_by_row_is_not_shattered() -> None:
    """The inverse of a triangular matrix by forward substitution, as in gated delta nets."""
    n = 14

    def substitute(m: nn.Module, x: Tensor) -> Tensor:
        h = m.a(x)
        a = h[:, :, None] * m.b(x)[:, None, :]
        for i in range(1, n):
            row = a[:, i, :i] + (a[:, i, :i, None] * a[:, :i, :i]).sum(-2)
            row = torch.cat([row, a[:, i, i:]], -1)
            a = torch.cat([a[:, :i], row[:, None], a[:, i + 1 :]], 1)
        return m.c(a @ h[:, :, None])[..., 0]

    model = Net(substitute, a=nn.Linear(3, n), b=nn.Linear(3, n), c=nn.Linear(1, 1))
    lowered = lower(capture(model, (X,)))
    cuts = find_cuts(lowered)
    for k in lowered.constraints:
        assert prod(len(cuts.sizes(k.out, d)) for d in range(k.out.ndim)) <= PIECES
    assert len(distribute(lowered).constraints) < 20 * len(lowered.constraints)
    assert_sound(model)
