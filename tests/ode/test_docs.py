"""The pages on neural ODEs: their examples run, and every function and test that they name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import torchgauge
from torchgauge import ode

ROOT = Path(__file__).parents[2]
PAPER = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
ROWS = [line.split(" | ") for line in PAPER.splitlines() if line.startswith(("| (", "| Theorem"))]


def test_the_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "ode.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 5
    dtype = torch.get_default_dtype()
    try:
        exec(compile("\n".join(blocks), "docs/ode.md", "exec"), {"__name__": "docs"})
    finally:
        torch.set_default_dtype(dtype)
    assert "torch.Size([5, 3]) torch.Size([1, 5, 3]) torch.Size([5, 2])" in capsys.readouterr().out


def test_the_examples_on_wilson_lines_run() -> None:
    page = (ROOT / "docs" / "wilson.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(block, "docs/wilson.md", "exec"), {"__name__": "docs"})


def test_every_equation_has_a_row() -> None:
    covered: list[int] = []
    for row in ROWS:
        for first, last in re.findall(r"\((\d+)\)(?:–\((\d+)\))?", row[0]):
            covered += range(int(first), int(last or first) + 1)
    assert covered == [*range(1, 53)]


def test_what_the_rows_name_is_there() -> None:
    for row in ROWS:
        for name in re.findall(r"`([\w.]+)`", row[2]):
            holder, _, attribute = name.rpartition(".")
            assert hasattr(torchgauge if holder == "torchgauge" else ode, attribute), name
    for file, test in re.findall(r"`(test_\w+\.py)::(\w+)`", PAPER):
        assert f"def {test}(" in (ROOT / "tests" / "ode" / file).read_text(encoding="utf-8"), test
    assert all("::" in row[3] for row in ROWS)


def test_names_of_the_guide_are_there() -> None:
    page = (ROOT / "docs" / "ode.md").read_text(encoding="utf-8")
    for name in set(re.findall(r"`([A-Za-z_]+)(?:\([^`]*\))?`", page)):
        assert hasattr(ode, name) or name in {"field", "activation"}, name


def test_every_public_name_is_there() -> None:
    for name in ode.__all__:
        assert getattr(ode, name) is not None
