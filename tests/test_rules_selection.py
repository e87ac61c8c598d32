"""Rules that write at places, order entries, scan or transform: random elements must leave the function alone.

Every operator stands between a layer of units that could be permuted and scaled (ReLU) and one that could be changed by
any matrix, and works along units, along tokens, or both, with places that are constants or come from the data.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchgauge as tg
from tests.zoo.case import evaluate64, relative_defect
from torchgauge.rules.recurrent import GATES
from torchgauge.spaces.constraints import PICKED

TOKENS, UNITS = 6, 4
PLACES = torch.tensor([2, 0, 2, 5, 1, 3])
FEATURES = torch.tensor([1, 3, 0, 0])


class Between(nn.Module):
    """read(op(h, u)) with h = relu(a x) and u = b x of the same shape [tokens, units]."""

    def __init__(self, op: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.read = nn.Linear(3, UNITS), nn.Linear(3, UNITS), nn.LazyLinear(2)
        self.table = nn.Parameter(torch.zeros(UNITS, UNITS))
        self.op = op

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h, u = F.relu(self.a(x)), self.b(x)
        y = self.op(h, u)
        return self.read(y.reshape(*y.shape[:1], -1)), h @ self.table


def top(h: Tensor, k: int = 2) -> Tensor:
    return h.topk(k, -1).indices


def rows(places: Tensor) -> Tensor:
    return places[:, None].expand(-1, UNITS)


def across(h: Tensor) -> Tensor:
    return FEATURES.expand(h.shape[0], -1)


def put(x: Tensor, indices: tuple[Tensor | None, ...], values: Tensor, accumulate: bool = False) -> Tensor:
    return torch.ops.aten.index_put(x, indices, values, accumulate)


OPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "scatter_add_rows": lambda h, u: torch.zeros_like(u).scatter_add(0, rows(PLACES), u),
    "scatter_add_onto": lambda h, u: h.scatter_add(0, rows(PLACES), h),
    "scatter_add_features": lambda h, u: torch.zeros_like(h).scatter_add(1, across(h), h),
    "scatter_add_short": lambda h, u: torch.zeros_like(u).scatter_add(0, rows(PLACES)[:3, :2], u),
    "scatter_add_chosen": lambda h, u: torch.zeros_like(u).scatter_add(1, top(h), u[:, :2]),
    "scatter_source": lambda h, u: u.scatter(0, rows(torch.tensor([1, 4])), u[:2]),
    "scatter_source_chosen": lambda h, u: u.scatter(1, top(u), h[:, :2]),
    "scatter_value": lambda h, u: u.scatter(0, rows(torch.tensor([1, 4])), 2.0),
    "scatter_mask_top1": lambda h, u: torch.zeros_like(h).scatter(1, top(h, 1), 1.0) * u,
    "scatter_mask_top2": lambda h, u: torch.zeros_like(h).scatter(1, top(h), 1.0) * h,
    "scatter_sum": lambda h, u: h.scatter_reduce(0, rows(PLACES), h, "sum"),
    "scatter_mean": lambda h, u: torch.zeros_like(u).scatter_reduce(0, rows(PLACES), u, "mean"),
    "scatter_mean_others": lambda h, u: torch.zeros_like(u).scatter_reduce(
        0, rows(PLACES), u, "mean", include_self=False
    ),
    "scatter_largest": lambda h, u: torch.zeros_like(u).scatter_reduce(0, rows(PLACES), u, "amax"),
    "scatter_smallest": lambda h, u: torch.zeros_like(u).scatter_reduce(0, rows(PLACES), u, "amin", include_self=False),
    "scatter_product": lambda h, u: torch.ones_like(u).scatter_reduce(0, rows(PLACES), u, "prod"),
    "index_add": lambda h, u: h.index_add(0, PLACES, h, alpha=2.0),
    "index_add_chosen": lambda h, u: torch.zeros_like(u).index_add(0, h.argmax(-1), u),
    "index_copy": lambda h, u: u.index_copy(0, torch.tensor([3, 1]), u[:2]),
    "index_copy_features": lambda h, u: u.index_copy(1, torch.tensor([3, 1]), h[:, :2]),
    "index_fill": lambda h, u: u.index_fill(0, torch.tensor([3, 1]), 0.5),
    "index_put_rows": lambda h, u: put(u, (torch.tensor([3, 1]),), u[:2]),
    "index_put_sum": lambda h, u: put(u, (PLACES,), u, True),
    "index_put_features": lambda h, u: put(u, (None, torch.tensor([3, 1])), h[:, :2]),
    "index_put_pairs": lambda h, u: put(u, (torch.tensor([3, 1]), torch.tensor([0, 2])), h[:2, 0]),
    "index_put_chosen": lambda h, u: put(u, (torch.arange(TOKENS), h.argmax(-1)), h[:, 0]),
    "argmax_row": lambda h, u: u[h.argmax(0)],
    "max_place_row": lambda h, u: u[h.max(0).indices],
    "max_place_one_hot": lambda h, u: F.one_hot(h.max(-1).indices, UNITS).to(u.dtype) * u,
    "max_both": lambda h, u: u * h.max(-1, keepdim=True).values + u[h.min(0).indices].sum(0),
    "argmax_all": lambda h, u: u * h.argmax(),
    "argmin_number": lambda h, u: u * h.argmin(-1, keepdim=True),
    "argmax_one_hot": lambda h, u: F.one_hot(h.argmax(-1), UNITS).to(u.dtype) * u,
    "top1_number": lambda h, u: u * top(h, 1),
    "kthvalue": lambda h, u: u * h.kthvalue(2, -1, keepdim=True).values,
    "kthvalue_place": lambda h, u: u * h.kthvalue(2, -1, keepdim=True).indices,
    "msort": lambda h, u: torch.msort(h),
    "sort_gather": lambda h, u: h.gather(1, u.sort(-1).indices),
    "sort_gather_ties": lambda h, u: u.gather(1, h.sort(-1).indices),
    "argsort_rows": lambda h, u: u[h[:, 0].argsort()],
    "topk_values": lambda h, u: h.topk(2, -1).values,
    "prod": lambda h, u: torch.cat((u.prod(1, keepdim=True), h), 1),
    "prod_tokens": lambda h, u: u * u.prod(0, keepdim=True),
    "cumprod": lambda h, u: u.cumprod(0),
    "cumprod_units": lambda h, u: u.cumprod(1),
    "cummax": lambda h, u: h.cummax(0).values,
    "cummax_linear": lambda h, u: u.cummin(0).values,
    "cummax_place": lambda h, u: u * h.cummax(1).indices,
    "logcumsumexp": lambda h, u: u.logcumsumexp(0),
    "fft": lambda h, u: torch.fft.fft(u, dim=0).real,
    "fft_units": lambda h, u: torch.fft.fft(h, dim=1).abs(),
    "rfft": lambda h, u: torch.fft.irfft(torch.fft.rfft(u, dim=0)[1:3], n=6, dim=0),
    "fft2": lambda h, u: torch.view_as_real(torch.fft.fft2(h)),
    "complex": lambda h, u: torch.view_as_real(torch.view_as_complex(u.reshape(TOKENS, 2, 2))),
}


def module(op: Callable[[Tensor, Tensor], Tensor]) -> tuple[nn.Module, tuple[Tensor]]:
    torch.manual_seed(0)
    model = Between(op).double()
    x = torch.randn(TOKENS, 3, dtype=torch.float64)
    model(x)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, dtype=torch.float64))
    return model, (x,)


@pytest.mark.parametrize("name", OPS)
def test_random_elements_leave_the_function(name: str) -> None:
    model, args = module(OPS[name])
    group = tg.infer(model, args)
    state = dict(model.state_dict())
    for seed in range(4):
        moved = group.act(group.random(torch.Generator().manual_seed(seed), scale=1.5), state)
        for batch in range(3):
            x = torch.randn(TOKENS, 3, generator=torch.Generator().manual_seed(batch), dtype=torch.float64)
            defect = relative_defect(evaluate64(model, state, (x,)), evaluate64(model, moved, (x,)))
            assert defect < 1e-11, (seed, batch, defect)


@pytest.mark.parametrize(
    ("name", "dimension"), [("scatter_add_rows", 16), ("index_put_sum", 16), ("fft", 16), ("rfft", 16)]
)
def test_maps_along_tokens_keep_every_matrix(name: str, dimension: int) -> None:
    model, args = module(OPS[name])
    group = tg.infer(model, args)
    assert any(f.kind == "GL" and f.size == UNITS for f in group.factors)
    assert group.orbit_dimension(dict(model.state_dict())) >= dimension


def test_places_from_data_are_not_observed() -> None:
    model, args = module(OPS["argmax_row"])
    group = tg.infer(model, args)
    assert PICKED not in group.observed
    assert len(group.observed) == 2


def test_complex_parameters_stand_still() -> None:
    class Oscillator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rate = nn.Parameter(torch.randn(4, dtype=torch.complex128))
            self.enter = nn.Parameter(torch.randn(4, 3, dtype=torch.complex128))
            self.a, self.read = nn.Linear(3, 3).double(), nn.Linear(4, 2).double()

        def forward(self, x: Tensor) -> Tensor:
            z = self.a(x).to(torch.complex128) @ self.enter.T
            return self.read((torch.exp(self.rate) * z).real)

    torch.manual_seed(0)
    model, x = Oscillator(), torch.randn(5, 3, dtype=torch.float64)
    group, state = tg.infer(model, (x,)), dict(model.state_dict())
    moved = group.act(group.random(torch.Generator().manual_seed(0)), state)
    assert torch.equal(moved["rate"], state["rate"])
    assert torch.equal(moved["enter"], state["enter"])
    assert relative_defect(evaluate64(model, state, (x,)), evaluate64(model, moved, (x,))) < 1e-12


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("length", [1, 9])
def test_two_steps_stand_for_all(kind: str, length: int) -> None:
    """The group does not depend on the length of the sequence, and its elements are sound at every length."""
    torch.manual_seed(1)
    layer = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}[kind](3, 4, 2, bidirectional=True).double()

    def solved(steps: int) -> tg.GaugeGroup:
        return tg.infer(layer, (torch.randn(steps, 2, 3, dtype=torch.float64),))

    group, state = solved(length), dict(layer.state_dict())
    assert [f.kind for f in group.factors] == [f.kind for f in solved(3).factors]
    x = torch.randn(9, 2, 3, dtype=torch.float64)
    for seed in range(3):
        moved = group.act(group.random(torch.Generator().manual_seed(seed)), state)
        assert relative_defect(evaluate64(layer, state, (x,)), evaluate64(layer, moved, (x,))) < 1e-12


def test_all_places_in_any_order_are_all_places() -> None:
    """The four best of four: what finds them is not read, and queries turn freely."""

    class Indexed(nn.Module):
        def __init__(self, most: int) -> None:
            super().__init__()
            self.q, self.k, self.most = nn.Linear(3, UNITS), nn.Linear(3, UNITS), most
            self.index, self.v = nn.Linear(UNITS, 4), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.q(x)
            best = F.layer_norm(self.index(h.sin()), (4,)).topk(self.most, -1).indices
            hidden = torch.ones_like(best[..., :1], dtype=torch.bool).expand(-1, 4).scatter(-1, best, False)
            scores = (h @ self.k(x).mT).masked_fill(hidden, float("-inf"))
            return scores.softmax(-1) @ self.v(x)

    x = torch.randn(4, 3)
    all_of_them, some = (tg.infer(Indexed(most), (x,)) for most in (4, 3))
    assert not all_of_them.reads("index.weight") and some.reads("index.weight")
    found = tg.certify(Indexed(4), (x,))
    assert found.sound and found.hidden == 0


def test_noise_does_not_see_what_it_is_shaped_like() -> None:
    """A bias in front of noise that is added trades with the one behind."""

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.out = nn.Linear(3, UNITS), nn.Linear(UNITS, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.read(x)
            return self.out(x + 0.1 * torch.randn_like(x))

    group = tg.infer(Noisy(), (torch.randn(4, 3),))
    assert sum(f.dimension for f in group.factors if f.kind == "shift") == UNITS
