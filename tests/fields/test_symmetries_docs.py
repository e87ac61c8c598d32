"""The page on symmetry by duality: its example runs, its table covers the gallery, and its commands are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from torchgauge.fields.symmetry import GALLERY

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "symmetry_by_duality.md").read_text(encoding="utf-8")


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 1
    exec(compile(blocks[0], "docs/symmetry_by_duality.md", "exec"), {"__name__": "docs"})
    out = capsys.readouterr().out
    assert out.startswith("SO(D): holds.")
    assert "translation: broken. Not absorbed" in out and "3,840 discrete elements" in out


def test_the_table_covers_the_gallery() -> None:
    rows = [line.split(" | ")[0].removeprefix("| ") for line in PAGE.splitlines() if line.startswith("| ")]
    assert set(GALLERY) <= set(rows)
    assert "0 contradicted by a test" in PAGE


def test_commands_and_figures_are_there() -> None:
    for path in re.findall(r"python (examples/\w+\.py)", PAGE):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"\]\((figures/[\w.]+)\)", PAGE):
        assert (ROOT / "docs" / path).exists(), path


def test_the_table_is_made_by_its_example(capsys: pytest.CaptureFixture[str]) -> None:
    import runpy

    example = runpy.run_path(str(ROOT / "examples" / "symmetry_table.py"))
    assert example["main"](["--count", "3000", "uniform bias", "--why"]) == 0
    out = capsys.readouterr().out
    assert "| uniform bias | − " in out and "1 ensembles, 7 decisions, 0 contradicted" in out
    assert "κ4(b)" in out
    assert example["main"](["no such ensemble"]) == 2
