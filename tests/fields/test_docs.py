"""The page on fields: its examples run, and every name in it is there."""

from __future__ import annotations

import re
from pathlib import Path

from torchgauge import fields
from torchgauge.fields import results

PAGE = (Path(__file__).parents[2] / "docs" / "fields.md").read_text(encoding="utf-8")
OTHERS = {"workers", "networks", "exact", "neurons", "readout", "plain", "e", "contract"}


def test_the_examples_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 7
    exec(compile("\n".join(blocks), "docs/fields.md", "exec"), {"__name__": "docs"})


def test_names_of_the_page_are_there() -> None:
    for name in set(re.findall(r"`([A-Za-z_0-9]+)(?:\([^`]*\))?`", PAGE)):
        assert hasattr(fields, name) or name in OTHERS, name
    for name in re.findall(r"`\.(\w+)`", PAGE):
        assert name in results.Correlator.__dataclass_fields__, name


def test_every_public_name_is_there() -> None:
    for name in fields.__all__:
        assert getattr(fields, name) is not None
    assert len(set(fields.__all__)) == len(fields.__all__)
