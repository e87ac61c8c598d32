"""The views as text that a person can read."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from torchgauge.errors import TorchGaugeError
from torchgauge.report.view import CertifyView, InspectView, Row, Subject

TOUCHED = 4
RIGID = 12


def console(*, stderr: bool = False) -> Console:
    """A console; text that goes to a file or a pipe is wrapped at 120 columns."""
    made = Console(stderr=stderr, highlight=False, markup=False)
    return made if made.is_terminal else Console(stderr=stderr, highlight=False, markup=False, width=120)


def render_inspect(view: InspectView) -> RenderableType:
    """The table of factors, then what is rigid, observed and dropped."""
    parts: list[RenderableType] = [_title(view.subject), _factor_table(view), _summary(view)]
    if view.rigid:
        parts.append(_rigid_table(view))
    parts.append(Text(f"observed: {_list(view.observed)}"))
    if view.dropped:
        parts.append(Text(f"not observed: {_list(view.dropped)}"))
    return Group(*parts)


def _title(subject: Subject) -> RenderableType:
    inputs = ", ".join(f"{name} {shape}" for name, shape in subject.inputs.items())
    size = f"{subject.parameters:,} parameters in {subject.tensors:,} tensors"
    return Text.assemble((subject.model, "bold"), f"  {subject.spec}\n{size}; inputs: {inputs or 'none'}\n")


def _factor_table(view: InspectView) -> RenderableType:
    if not view.rows:
        return Text("No parameter symmetry: every space is rigid.\n")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("factor", overflow="fold")
    table.add_column("group", overflow="fold")
    table.add_column("×", justify="right", no_wrap=True)
    table.add_column("dimension", justify="right", no_wrap=True)
    table.add_column("components", overflow="fold", max_width=24)
    for row in view.rows:
        total = f"{row.count * row.dimension:,}"
        components = row.components if row.count == 1 or row.components == "1" else f"({row.components})^{row.count}"
        table.add_row(_where(row), row.group + ("" if row.exact else " ≈"), str(row.count), total, components)
    return table


def _where(row: Row) -> Text:
    """The name of a factor, and under it the modules it touches."""
    shown = list(row.touches[:TOUCHED])
    if len(row.touches) > TOUCHED:
        shown.append(f"… and {len(row.touches) - TOUCHED} more")
    return Text.assemble(row.name, *((f"\n  {line}", "dim") for line in shown))


def _summary(view: InspectView) -> RenderableType:
    factors = sum(row.count for row in view.rows)
    lines = [f"\n{factors:,} factors; dimensions add up to {view.dimension:,}; components: {view.components}"]
    if any(not row.exact for row in view.rows):
        lines.append("≈ approximate: exact only without the ε of a normalisation.")
    return Text("\n".join(lines) + "\n")


def _rigid_table(view: InspectView) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("rigid", overflow="fold", ratio=4)
    table.add_column("why", overflow="fold", ratio=5)
    table.add_column("where", overflow="fold", ratio=5)
    for row in view.rigid[:RIGID]:
        where = row.sources[0] if row.sources else ""
        extra = f" (+{len(row.sources) - 1})" if len(row.sources) > 1 else ""
        times = f"  ×{row.count}" if row.count > 1 else ""
        table.add_row(row.space + times, row.reason, where + extra)
    hidden = len(view.rigid) - RIGID
    return Group(table, Text(f"… and {hidden} more (--json lists all)\n" if hidden > 0 else ""))


def _list(names: tuple[str, ...], n: int = 8) -> str:
    return ", ".join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "")


def render_certify(view: CertifyView) -> RenderableType:
    """The certificate and its verdict in one line."""
    if view.certificate.holds:
        verdict = ("HOLDS: every element leaves the outputs alone, and no direction is missing", "bold green")
    elif view.certificate.sound:
        verdict = ("NOT COMPLETE: the elements are right, but they are not shown to be all", "bold yellow")
    else:
        verdict = ("NOT SOUND: an element changes the outputs", "bold red")
    return Group(_title(view.subject), Text(str(view.certificate)), Text(""), Text.assemble(verdict))


def render_error(error: TorchGaugeError) -> RenderableType:
    """One panel: what failed, where, what to do."""
    body = Text.assemble((error.what, "bold"))
    if error.where:
        body.append(f"\nwhere: {error.where}")
    if error.remedy:
        body.append(f"\nwhat to do: {error.remedy}")
    return Panel(body, title="torchgauge", title_align="left", border_style="red")
