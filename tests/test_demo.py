"""The demonstration runs, and its figures are those of a disguise: other weights, the same predictions."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("sklearn")


def test_demo(capsys: pytest.CaptureFixture[str]) -> None:
    from torchgauge import demo

    assert demo.main() == 0
    out = capsys.readouterr().out
    assert out.count("equal predictions:       360 of 360") == 2
    distances = [float(d) for d in re.findall(r"distance of the weights: ([\d.]+)", out)]
    assert len(distances) == 2
    assert min(distances) > 0.5
    assert out.count("sound      yes") == 2
    assert out.count("complete   yes") == 2
