"""The example of the README runs and prints what the README says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_example_is_real(capsys: pytest.CaptureFixture[str]) -> None:
    match = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", README, re.DOTALL)
    assert match is not None
    code, promised = match.groups()
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    # figures of rounding and of time differ between machines; counts do not
    count = r"GaugeGroup\(.*\)|sound +yes|complete +yes +nullity \d+ = orbit \d+ \+ hidden \d+|measured +\d+ parameters"
    assert re.findall(count, printed) == re.findall(count, promised)
    assert len(re.findall(count, printed)) == 4


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (Path(__file__).parents[1] / target).exists(), target
