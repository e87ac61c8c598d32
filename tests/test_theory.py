"""docs/theory.md says what is not found: the list is that of the zoo, number by number."""

from __future__ import annotations

import re
from pathlib import Path

from tests.zoo import catalogue

THEORY = Path(__file__).parents[1] / "docs" / "theory.md"


def test_every_hidden_dimension_of_the_zoo_is_listed() -> None:
    section = THEORY.read_text(encoding="utf-8").split("\n## 6. ")[1]
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (\d+) \| 6\.\d \|$", section, re.MULTILINE)
    listed = {name: (int(orbit), int(nullity)) for name, orbit, nullity in rows}
    hidden = {c.name: (c.orbit, c.expected_nullity) for c in catalogue.CASES.values() if c.expected_nullity > c.orbit}
    assert listed == hidden
