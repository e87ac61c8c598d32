"""The views as text that a person can read."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from torchgauge.errors import TorchGaugeError
from torchgauge.report.view import CertifyView, InspectView, Subject
from torchgauge.report.why import WhyView

TOUCHED = 5
RIGID = 16


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
    table.add_column("factor on", overflow="fold")
    table.add_column("group", overflow="fold")
    table.add_column("×", justify="right", no_wrap=True)
    table.add_column("dimension", justify="right", no_wrap=True)
    table.add_column("components", overflow="fold", max_width=24)
    for row in view.rows:
        group = row.group + ("" if row.exact else " ≈")
        table.add_row(_where(row.touches), group, str(row.count), f"{row.dimension:,}", row.components)
    return table


def _where(touches: tuple[str, ...]) -> str:
    more = len(touches) - TOUCHED
    return "\n".join(touches[:TOUCHED]) + (f"\n… and {more} more" if more > 0 else "")


def _summary(view: InspectView) -> RenderableType:
    factors = sum(row.count for row in view.rows)
    lines = [f"\n{factors:,} factors; dimensions add up to {view.dimension:,}; components: {view.components}"]
    if any(not row.exact for row in view.rows):
        lines.append("≈ holds only as far as the ε of a normalisation can be neglected; not counted.")
    return Text("\n".join(lines) + "\n")


def _rigid_table(view: InspectView) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("rigid or narrowed", overflow="fold", ratio=1)
    table.add_column("why, and where", overflow="fold", ratio=1)
    for row in view.rigid[:RIGID]:
        times = f" ×{row.count}" if row.count > 1 else ""
        style = "bold red" if "no rule" in row.reason else ""
        more = f" and {len(row.sources) - 1} more" if len(row.sources) > 1 else ""
        why = Text.assemble(row.reason, ("\n" + row.sources[0] + more if row.sources else "", "dim"))
        table.add_row(_short(row.space) + times, why, style=style)
    hidden = len(view.rigid) - RIGID
    return Group(table, Text(f"… and {hidden} more (--json lists all)\n" if hidden > 0 else ""))


def _short(space: str, width: int = 56) -> str:
    """The first few names of a long list in braces."""
    if len(space) <= width or ", " not in space[:width]:
        return space
    kept = space[: space[:width].rindex(", ")] + ", …"
    return kept + "}" * (kept.count("{") - kept.count("}"))


def _list(names: tuple[str, ...], n: int = 8) -> str:
    return ", ".join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "")


def render_why(view: WhyView) -> RenderableType:
    """One paragraph per space."""
    parts: list[RenderableType] = [_title(view.subject)]
    for why, count in zip(view.whys, view.alike, strict=True):
        more = f" The same holds for {count - 1} more such space{'s' * (count > 2)}." if count > 1 else ""
        parts.append(Text(why.paragraph + more + "\n"))
    if view.left_out:
        parts.append(Text(f"… and {view.left_out} other spaces; name one of them"))
    return Group(*parts)


def render_certify(view: CertifyView) -> RenderableType:
    """The certificate and its verdict in one line."""
    if view.certificate.holds:
        verdict = ("HOLDS: every element leaves the outputs alone, and no direction is missing", "bold green")
    elif view.certificate.sound and view.certificate.undecided:
        verdict = ("NOT DECIDED: the elements are right; whether they are all is open", "bold yellow")
    elif view.certificate.sound:
        missing = f"{view.certificate.hidden} directions that change nothing are not among them"
        verdict = (f"NOT COMPLETE: the elements are right, but {missing}", "bold yellow")
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
