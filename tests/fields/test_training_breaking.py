"""The experiment on broken initialisations: its training is torch's, stacks do not mix, runs resume."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from torchgauge.errors import InputError
from torchgauge.fields.breaking import Settings, Stack, accuracy, initial, outputs, stacked, targets, train
from torchgauge.fields.images import ImageFileError, Images

QUICK = Settings(hidden=6, epochs=2, batch=16)


def blobs(count: int = 240, classes: int = 3) -> Images:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(count) % classes
    x = 2 * torch.nn.functional.one_hot(y, 5).float() + 0.3 * torch.randn(count, 5, generator=generator)
    return Images(x, y, classes, "blobs")


def test_initial_weights() -> None:
    stack = stacked(blobs(), (0, 1), QUICK)
    first, last = initial(stack, 0.5, (0, 1, 3), 6)
    assert first.shape == (2, 5, 18) and last.shape == (2, 3, 6, 3)
    assert bool((first[:, :, :6] == first[:, :, 6:12]).all())
    shift = last[:, 1] - last[:, 0]
    assert torch.allclose(shift[..., 0], torch.tensor(0.5)) and bool((shift[..., 1:] == 0).all())
    wide = initial(stacked(blobs(), tuple(range(40)), QUICK), 0.0, (0,), 200)
    assert wide[0].var().item() == pytest.approx(1 / 5, rel=0.03)
    assert wide[1].var().item() == pytest.approx(1 / 200, rel=0.03)
    with pytest.raises(InputError, match="k counts classes: 0 to 3"):
        initial(stack, 0.5, (4,), 6)


def test_targets() -> None:
    y = torch.tensor([2, 0])
    assert targets(y, 3, "one-hot").tolist() == [[0, 0, 1], [1, 0, 0]]
    assert targets(y, 3, "one-cold").tolist() == [[1, 1, 0], [0, 1, 1]]
    with pytest.raises(InputError, match="'warm'"):
        targets(y, 3, "warm")  # type: ignore[arg-type]


def alone(stack: Stack, mu: float, k: int) -> list[float]:
    """The published training, in plain torch, for one seed and one k: test accuracies."""
    first, last = initial(stack, mu, (k,), QUICK.hidden)
    net = nn.Sequential(nn.Linear(5, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(first[0].T)
        net[2].weight.copy_(last[0, 0].T)
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, 1, 0.7)
    generator = torch.Generator().manual_seed(2_000_006 + stack.seeds[0])
    chosen, test = stack.parts["train"][0], stack.parts["test"][0]
    found = []
    for epoch in range(QUICK.epochs + 1):
        if epoch:
            for batch in chosen[torch.randperm(len(chosen), generator=generator)].split(16):
                optimiser.zero_grad()
                nn.functional.mse_loss(net(stack.x[batch]), targets(stack.y[batch], 3, "one-cold")).backward()
                optimiser.step()
            schedule.step()
        found.append((net(stack.x[test]).argmin(1) == stack.y[test]).float().mean().item())
    return found


def test_a_stack_trains_as_its_networks_do_alone() -> None:
    ks, mu = (0, 2, 3), 0.3
    together = [*train(stacked(blobs(), (4, 7), QUICK), mu, ks, "one-cold", QUICK)][-1]
    for s, seed in enumerate((4, 7)):
        one = stacked(blobs(), (seed,), QUICK)
        for j, k in enumerate(ks):
            single = [*train(one, mu, (k,), "one-cold", QUICK)][-1]
            assert torch.allclose(single.test[:, 0, 0], together.test[:, s, j], atol=0.02)  # float32
            assert torch.allclose(torch.tensor(alone(one, mu, k)), together.test[:, s, j], atol=0.02)


def test_training_learns_and_chooses_by_validation() -> None:
    settings = Settings(hidden=20, epochs=12, passes=4, batch=16, rate=5e-3)
    curve = [*train(stacked(blobs(), (0, 1), settings), 0.0, (0, 1), "one-hot", settings)][-1]
    best, epoch = curve.chosen()
    assert bool((best > 0.9).all())
    assert torch.equal(curve.validation.gather(0, epoch[None])[0], curve.validation.max(0).values)


def test_parts_are_disjoint() -> None:
    stack = stacked(blobs(), (0, 3), Settings(train=50))
    for seed in range(2):
        numbers = torch.cat([part[seed] for part in stack.parts.values()])
        assert len(numbers.unique()) == len(numbers) == 50 + 36 + 60
    assert accuracy(*initial(stack, 0.0, (0,), 4), stack, "test", "one-hot").shape == (2, 1)
    assert outputs(*initial(stack, 0.0, (0, 1), 4), stack.x[stack.parts["test"]]).shape == (2, 2, 60, 3)


@pytest.mark.parametrize("bad", [{"hidden": 0}, {"epochs": 0}, {"rate": 0.0}, {"test": 0.9, "validation": 0.2}])
def test_bad_settings(bad: dict[str, float]) -> None:
    with pytest.raises(InputError):
        Settings(**bad)  # type: ignore[arg-type]


def test_too_few_images() -> None:
    with pytest.raises(ImageFileError, match="too few"):
        stacked(blobs(4), (0,), QUICK)


# -- the example ---------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def example() -> ModuleType:
    pytest.importorskip("sklearn")
    path = Path(__file__).parents[2] / "examples" / "symmetry_breaking.py"
    spec = importlib.util.spec_from_file_location("symmetry_breaking", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["symmetry_breaking"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


ARGUMENTS = ["--mu", "0.1", "--k", "0", "10", "--seeds", "2", "--epochs", "1", "--passes", "1"]


def test_example_runs_and_resumes(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    results, figure = tmp_path / "deep" / "r.json", tmp_path / "f.svg"
    arguments = [*ARGUMENTS, "--results", str(results), "--figure", str(figure)]
    assert example.main(arguments) == 0
    first = capsys.readouterr()
    assert "one-hot:" in first.out and "one-cold:" in first.out and "4/4 one-cold mu=0.1" in first.err
    assert figure.read_text().startswith("<?xml")
    found = json.loads(results.read_text())
    assert len(found["cells"]) == 4

    # an interrupted run: one stack is missing, and it alone is trained again
    missing = found["cells"].pop("one-hot mu=0.1")
    results.write_text(json.dumps(found))
    assert example.main(arguments) == 0
    again = capsys.readouterr()
    assert "1/1 one-hot mu=0.1" in again.err and again.out == first.out
    assert json.loads(results.read_text())["cells"]["one-hot mu=0.1"] == missing


def test_example_refuses(example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "r.json"
    plain = [*ARGUMENTS, "--results", str(results), "--figure", str(tmp_path / "f.svg")]
    results.write_text("{")
    assert example.main(plain) == 2
    assert "cannot be read" in capsys.readouterr().err
    results.write_text(json.dumps({"about": {"data": "other"}, "cells": {}}))
    assert example.main(plain) == 2
    assert "other settings" in capsys.readouterr().err
    assert example.main([*plain, "--images", str(tmp_path / "x")]) == 2
    assert "--images and --labels" in capsys.readouterr().err
    assert example.main([*plain, "--images", str(tmp_path / "x"), "--labels", str(tmp_path / "y")]) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert example.main([*plain, "--k", "11", "--results", str(tmp_path / "new.json")]) == 2
    assert "0 to 10" in capsys.readouterr().err
