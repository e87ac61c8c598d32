"""Streamed means: exact updates, workers, files that are taken up again, files that are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import distributions as td
from torch import nn

from torchgauge import fields
from torchgauge.fields import Law
from torchgauge.fields.streaming import Sums, fingerprint, run

POINTS = torch.tensor([-1.0, 0.3, 1.0], dtype=torch.float64)


def draws(job: int) -> Sums:
    g = torch.Generator().manual_seed(job)
    return Sums.of(torch.randn(10 + job, 4, generator=g, dtype=torch.float64), covariance=True)


def test_sums_are_those_of_all_estimates() -> None:
    sums = run(draws, 7)
    every = torch.cat(
        [torch.randn(10 + j, 4, generator=torch.Generator().manual_seed(j), dtype=torch.float64) for j in range(7)]
    )
    assert sums.count == len(every)
    assert torch.allclose(sums.mean, every.mean(0))
    assert torch.allclose(sums.standard_error(), every.std(0) / len(every) ** 0.5)
    covariance = sums.covariance()
    assert covariance is not None and torch.allclose(covariance, torch.cov(every.T) / len(every))


def test_workers_change_nothing() -> None:
    ensemble = fields.erf_net((20, 20))
    one, two = (
        fields.correlator(ensemble, POINTS, 4, networks=30_000, workers=w, seed=3, progress=False) for w in (1, 2)
    )
    assert torch.equal(one.values, two.values) and torch.equal(one.error, two.error)


def test_a_run_is_taken_up_again(tmp_path: Path) -> None:
    file = tmp_path / "run.pt"
    ensemble = fields.erf_net((20, 20))

    def of(networks: int, file: Path | None) -> torch.Tensor:
        return fields.correlator(ensemble, POINTS, 4, networks=networks, file=file, covariance=True).values

    of(10_000, file)
    assert [p.name for p in tmp_path.iterdir()] == ["run.pt"]
    done = torch.load(file)["done"]
    assert done >= 1
    assert torch.equal(of(25_000, file), of(25_000, None)) and torch.load(file)["done"] > done


def test_an_interrupted_run_keeps_what_it_has(tmp_path: Path) -> None:
    file = tmp_path / "run.pt"

    def stops(job: int) -> Sums:
        if job == 3:
            raise KeyboardInterrupt
        return draws(job)

    with pytest.raises(KeyboardInterrupt):
        run(stops, 7, file=file, identity="a", every=0.0)
    seen: list[int] = []

    def goes_on(job: int) -> Sums:
        seen.append(job)
        return draws(job)

    again = run(goes_on, 7, file=file, identity="a", every=0.0)
    assert seen == [3, 4, 5, 6] and torch.equal(again.mean, run(draws, 7).mean)


def test_files_of_other_runs_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.pt"
    ensemble = fields.erf_net((20, 20))
    fields.correlator(ensemble, POINTS, 4, networks=10_000, file=file)
    with pytest.raises(fields.RunFileError, match="another run"):
        fields.correlator(ensemble, POINTS, 4, networks=10_000, file=file, seed=1)
    with pytest.raises(fields.RunFileError, match="another run"):
        fields.correlator(fields.erf_net((20, 20), sigma_w=2.0), POINTS, 4, networks=10_000, file=file)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(fields.RunFileError, match="no file of partial sums"):
        fields.correlator(ensemble, POINTS, 4, networks=10_000, file=file)
    run(draws, 5, file=tmp_path / "b", identity="b")
    with pytest.raises(fields.RunFileError, match="more than"):
        run(draws, 4, file=tmp_path / "b", identity="b")


class Acting(nn.Module):
    """A linear map, a function that no name tells from another, and a buffer."""

    def __init__(self, act: Callable[[torch.Tensor], torch.Tensor], scale: float = 1.0) -> None:
        super().__init__()
        self.linear, self.act = nn.Linear(1, 2, dtype=torch.float64), act
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.linear(x)) * self.scale


def test_a_file_knows_functions_buffers_and_energies(tmp_path: Path) -> None:
    def go(weight: Law | td.Distribution, act: Callable[[torch.Tensor], torch.Tensor], scale: float = 1.0) -> None:
        ensemble = fields.Ensemble(Acting(act, scale), {"linear.weight": weight, "linear.bias": fields.Normal()})
        fields.correlator(ensemble, POINTS, 2, networks=200_000, file=tmp_path / "run.pt")

    def energy(strength: float) -> fields.Density:
        return fields.Density(fields.Normal(), lambda s: strength * s)

    def spread(width: float) -> td.Distribution:
        return td.MultivariateNormal(torch.zeros(1).double(), width * torch.eye(1).double())

    for first, other in (
        ((fields.Normal(), torch.tanh), (fields.Normal(), torch.relu)),
        ((fields.Normal(), torch.tanh), (fields.Normal(), torch.tanh, 2.0)),
        ((energy(1.0), torch.tanh), (energy(1.1), torch.tanh)),
        ((spread(1.0), torch.tanh), (spread(2.0), torch.tanh)),
    ):
        (tmp_path / "run.pt").unlink(missing_ok=True)
        go(*first)
        go(*first)
        with pytest.raises(fields.RunFileError, match="another run"):
            go(*other)


def test_no_bar_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    run(draws, 3)
    assert capsys.readouterr() == ("", "")
    run(draws, 3, progress=True)
    assert not capsys.readouterr().out


def test_fingerprints_see_values() -> None:
    a = fingerprint({"w": fields.Normal(torch.ones(3))}, torch.zeros(2))
    assert a == fingerprint({"w": fields.Normal(torch.ones(3))}, torch.zeros(2))
    assert a != fingerprint({"w": fields.Normal(torch.ones(4))}, torch.zeros(2))
    assert a != fingerprint({"w": fields.Normal(torch.ones(3))}, torch.zeros(2).double())
