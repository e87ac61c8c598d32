"""The page on conserved quantities: its examples run and print what it says, its table is that of the tests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import torchgauge
from tests.learn.cases import CATALOGUE, MORE
from torchgauge import learn

pytest.importorskip("sklearn")
PAGE = (Path(__file__).parents[2] / "docs" / "learn.md").read_text(encoding="utf-8")


def test_the_examples_run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    dtype = torch.get_default_dtype()
    try:
        exec(compile("\n".join(blocks), "docs/learn.md", "exec"), {"__name__": "docs"})
    finally:
        torch.set_default_dtype(dtype)
    shown = [line[4:] for line in PAGE.splitlines() if line.startswith("    ")]
    printed = capsys.readouterr().out.splitlines()
    assert printed[:6] == [line for line in shown if line.startswith(("quadratic", "linear"))][:6]
    assert len(learn.load(tmp_path / "run.safetensors")) == 6


def test_the_table_is_that_of_the_tests() -> None:
    rows = re.findall(r"^\| .* \| (\d+) \| (\d+) \|$", PAGE, re.MULTILINE)
    known = [(net.laws, net.gauge) for net in (*CATALOGUE, *MORE)]
    assert len(rows) == 18
    for laws, gauge in rows:
        assert (int(laws), int(gauge)) in known


def test_names_are_there() -> None:
    assert torchgauge.learn is learn
    for name in learn.__all__:
        assert getattr(learn, name) is not None
