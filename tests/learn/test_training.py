"""A small net on handwritten digits: measured drift against predicted drift."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.learn.cases import normal
from tests.zoo.blocks import Latent
from torchgauge import learn
from torchgauge.errors import InputError

datasets = pytest.importorskip("sklearn.datasets")


def digits() -> tuple[Tensor, Tensor]:
    data = datasets.load_digits()
    return torch.tensor(data.data[::6]) / 16, torch.tensor(data.target[::6])


def net() -> nn.Sequential:
    """Quadratic laws of ReLU units and of a linear pair, linear ones in front of the layer norm and of the softmax."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(64, 12), nn.LayerNorm(12), nn.ReLU(), nn.Linear(12, 4, bias=False), nn.Linear(4, 10)
    ).double()


def train(
    model: nn.Module, steps: int, every: int = 1, optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
    **options: float,
) -> list[learn.Record]:  # fmt: skip
    x, y = digits()
    recorder = learn.Recorder(learn.conserved(model, (x[:4],), observable="probabilities"), every)
    stepper = optimizer(model.parameters(), **options)
    with recorder.attached(model, stepper):
        for _ in range(steps):
            stepper.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            stepper.step()
    return recorder.records()


@pytest.mark.parametrize("decay", [0.0, 0.02])
def test_every_step_is_predicted_to_rounding(decay: float) -> None:
    model = net()
    records = train(model, 60, lr=0.5, weight_decay=decay)
    assert {r.kind for r in records} == {"quadratic", "linear"}
    for r in records:
        assert (r.values - r.predicted()).abs().max() < 1e-11
        moved = float(r.drift.abs().max())
        assert moved > 1e-4 if r.kind == "quadratic" or decay else moved < 1e-12
    assert len(records[0].steps) == 61 and float(records[0].times[-1]) == pytest.approx(30.0)


def test_the_laws_are_not_constant_for_want_of_training() -> None:
    model = net()
    x, y = digits()
    before = nn.functional.cross_entropy(model(x), y)
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    records = train(model, 200, every=50, lr=0.2)
    assert nn.functional.cross_entropy(model(x), y) < 0.5 * before
    first = model[0].weight.detach()
    norm = (first.square().sum() - start["0.weight"].square().sum()) / 2
    drift = max(float(r.drift.abs().max()) for r in records if r.kind == "quadratic")
    assert drift < 0.05 * float(norm)  # single terms of the laws move, their sums do not


def test_the_drift_is_of_first_order_in_the_step() -> None:
    drifts = []
    for rate in (0.1, 0.05, 0.025):
        records = train(net(), round(3 / rate), every=10**6, lr=rate)
        drifts.append(torch.cat([r.drift[-1] for r in records if r.kind == "quadratic"]))
    for coarse, fine in zip(drifts, drifts[1:], strict=False):
        assert 1.7 < float(coarse.norm() / fine.norm()) < 2.3


def test_decay_by_the_law_of_the_flow() -> None:
    """e^{−2μt} for quadratic and e^{−μt} for linear quantities, up to O(η)."""
    gaps = []
    for rate in (0.1, 0.05):
        model, x = net(), digits()[0]
        laws = learn.conserved(model, (x[:4],), observable="probabilities")
        start = {name: p.detach().clone() for name, p in model.named_parameters()}
        records = train(model, round(6 / rate), every=10**6, lr=rate, weight_decay=0.1)
        gap = 0.0
        for law, r in zip(laws, records, strict=True):
            expected = learn.predict_decay(law, start, r.times, 0.1)
            assert float((expected[-1] / expected[0]).nanmedian()) == pytest.approx(
                0.3012 if law.kind == "quadratic" else 0.5488, abs=1e-3
            )
            gap += float((r.values[-1] - expected[-1]).square().sum())
        gaps.append(gap**0.5)
    assert 1.7 < gaps[0] / gaps[1] < 2.3


def test_sparse_records_predict_between_them() -> None:
    for r in train(net(), 120, every=10, lr=0.05, weight_decay=0.01):
        assert len(r.steps) == 13
        error = (r.values - r.predicted())[-1].norm()
        assert error < 1e-11 if r.kind == "linear" else error < 0.05 * r.drift[-1].norm()


def test_momentum_and_adam_are_recorded_and_not_predicted() -> None:
    for options in ({"lr": 0.1, "momentum": 0.9}, {"lr": 1e-3, "optimizer": torch.optim.Adam}):
        for r in train(net(), 5, **options):  # type: ignore[arg-type]
            assert r.values.isfinite().all() and r.predicted()[1:].isnan().all()
    records = train(net(), 100, every=50, lr=0.05, momentum=0.9)
    drift = max(float(r.drift[-1].abs().max()) for r in records if r.kind == "quadratic")
    linear = max(float(r.drift[-1].abs().max()) for r in records if r.kind == "linear")
    assert linear < 1e-12 < 1e-3 < drift  # momentum keeps what is linear


def test_mixed_quantities() -> None:
    """The exponential of a bias: a quadratic and a linear part, which trade."""
    torch.manual_seed(0)
    model, inputs = Latent(3, 4, 5).double(), (normal(20, 3), normal(20, 4, seed=1))
    target = normal(20, 5, seed=2)
    (law,) = learn.conserved(model, inputs)
    assert law.kind == "mixed"
    with pytest.raises(InputError, match="no law of decay"):
        learn.predict_decay(law, model.state_dict(), [1.0], 0.1)
    assert torch.equal(learn.predict_decay(law, model.state_dict(), [1.0], 0.0)[0], law(model.state_dict()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, weight_decay=0.1)
    recorder = learn.Recorder([law])
    with recorder.attached(model, optimizer):
        for _ in range(40):
            optimizer.zero_grad()
            (model(*inputs) - target).square().mean().backward()
            optimizer.step()
    (record,) = recorder.records()
    assert record.drift.abs().max() > 1e-3
    assert (record.values - record.predicted()).abs().max() < 1e-12


def test_decays_that_differ() -> None:
    model = net()
    laws = learn.conserved(model, (digits()[0][:4],))
    law = next(law for law in laws if len(law.parameters) > 1)
    own = dict.fromkeys(law.parameters, 0.1)
    same = learn.predict_decay(law, model.state_dict(), [1.0, 2.0], own)
    assert same.shape == (2, law.count)
    with pytest.raises(InputError, match="different weight decays"):
        learn.predict_decay(law, model.state_dict(), [1.0], {**own, law.parameters[0]: 0.2})
    with pytest.raises(InputError, match="no weight decay"):
        learn.predict_decay(law, model.state_dict(), [1.0], {})


def test_single_precision_rounds() -> None:
    model = net().float()
    x, y = digits()
    laws = learn.conserved(model, (x[:4].float(),), observable="probabilities")
    recorder, optimizer = learn.Recorder(laws, 20), torch.optim.SGD(model.parameters(), lr=0.2)
    with recorder.attached(model, optimizer):
        for _ in range(40):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x.float()), y).backward()
            optimizer.step()
    linear = [r for r in recorder.records() if r.kind == "linear"]
    assert linear and all(r.drift.abs().max() < 1e-5 for r in linear)


def test_records_are_saved_and_loaded(tmp_path: Path) -> None:
    records = train(net(), 7, every=3, lr=0.2)
    path = tmp_path / "run.safetensors"
    learn.save(records, path)
    assert [*tmp_path.iterdir()] == [path]
    for old, new in zip(records, learn.load(path), strict=True):
        assert (old.name, old.kind, old.formula) == (new.name, new.kind, new.formula)
        assert torch.equal(old.values, new.values) and torch.equal(old.predicted(), new.predicted())
    assert records[0].steps.tolist() == [0, 3, 6, 7]
    (tmp_path / "other").write_bytes(b"no records")
    for wrong in ("other", "nothing"):
        with pytest.raises(InputError, match="no file of records"):
            learn.load(tmp_path / wrong)


def test_what_a_recorder_refuses() -> None:
    model = net()
    laws = learn.conserved(model, (digits()[0][:4],))
    with pytest.raises(InputError, match="every=0"):
        learn.Recorder(laws, 0)
    with pytest.raises(InputError, match="nothing was recorded"):
        learn.Recorder(laws).records()
    with pytest.raises(InputError, match="does not move this parameter"):
        learn.Recorder(laws).attached(model, torch.optim.SGD(model[0].parameters(), lr=0.1))


def test_an_exception_ends_the_recording() -> None:
    model = net()
    recorder = learn.Recorder(learn.conserved(model, (digits()[0][:4],)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(KeyboardInterrupt), recorder.attached(model, optimizer):
        raise KeyboardInterrupt
    optimizer.step()
    with pytest.raises(InputError, match="nothing"):
        recorder.records()


def test_a_plot() -> None:
    pytest.importorskip("matplotlib").use("Agg")
    record = train(net(), 4, lr=0.2)[0]
    axis = record.plot()
    assert axis.get_title() == record.formula
    assert len(axis.get_lines()) == 2 * record.values.shape[1]
