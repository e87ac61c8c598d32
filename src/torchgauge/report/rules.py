"""The verdicts on operators' rules, as a report."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from torchgauge.report.view import SCHEMA_VERSION

if TYPE_CHECKING:
    from torchgauge.check_rule import Verdict

STYLES = {"right": "bold green", "wrong": "bold red", "missing": "bold yellow", "not judged": "bold"}


@dataclass(frozen=True)
class RulesView:
    """The verdicts on one operator or on many."""

    verdicts: tuple[Verdict, ...]

    @property
    def right(self) -> bool:
        return all(v.verdict == "right" for v in self.verdicts)

    @property
    def counts(self) -> Counter[str]:
        return Counter(v.verdict for v in self.verdicts)

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "command": "check-rule",
            "counts": dict(self.counts),
            "operators": [v.to_dict() for v in self.verdicts],
        }


def render_rules(view: RulesView) -> RenderableType:
    """One operator with all its calls, or a table of many."""
    if len(view.verdicts) == 1:
        return _one(view.verdicts[0])
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("operator", "verdict", "because"):
        table.add_column(name, overflow="fold")
    for v in view.verdicts:
        table.add_row(v.operator, Text(v.verdict, STYLES[v.verdict]), v.because)
    return Group(table, Text("\n" + ", ".join(f"{n} {verdict}" for verdict, n in view.counts.items())))


def _one(v: Verdict) -> RenderableType:
    rule = f"rule: {v.rule}" if v.rule else "no rule of its own: what it decomposes into is checked"
    lines: list[RenderableType] = [Text.assemble((v.verdict.upper(), STYLES[v.verdict]), f"  {v.operator} ({rule})")]
    for t in v.trials:
        lines.append(Text(f"\n{t.call}, layers on dimension {t.layers[0]} of the data, {t.layers[1]} of the result"))
        lines.append(Text.assemble((f"  {t.verdict}", STYLES[t.verdict]), f": {t.because}"))
        if t.defect is not None:
            lines.append(Text(f"  elements of the group change the outputs by {t.defect:.0e}"))
        if t.orbit is not None:
            lines.append(Text(f"  dimension of the orbit {t.orbit}, nullity by brute force {t.nullity}"))
        if t.claimed is not None and t.found is not None:
            lines.append(Text(f"  of the data: the group holds {t.claimed}; by brute force {t.found}"))
    if not v.trials:
        lines.append(Text(f"\n{v.because}"))
    return Group(*lines)
