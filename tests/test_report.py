"""Reports: folding over layers, views, text."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from torchgauge.errors import InputError
from torchgauge.report import Subject, render_error, render_inspect, view_group
from torchgauge.report.fold import fold, modules, template
from torchgauge.report.view import RigidRow, show_components, show_group
from torchgauge.values import Rigid


def test_fold_names_of_layers() -> None:
    names = [f"layers.{i}.q" for i in range(80)] + ["norm", "conv1", "conv2"]
    assert fold(names) == ["layers.{0-79}.q", "norm", "conv1", "conv2"]
    assert fold(["a.0", "a.2", "a.3", "a.7"]) == ["a.{0,2-3,7}"]
    assert fold([f"a.{i}.b.{j}" for i in range(3) for j in range(2)]) == ["a.{0-2}.b.{0-1}"]
    assert fold(["{0.w, 0.b}", "{1.w, 1.b}"]) == ["{0.w, 0.b}", "{1.w, 1.b}"]
    assert fold(["a{}.1"]) == ["a{ }.1"]
    assert modules(["l.0.weight", "l.0.bias", "l.1.weight", "e.weight"]) == ["l.{0-1}", "e"]
    assert modules(["l.0.q.weight", "l.0.k.weight", "l.1.q.bias", "l.1.k.bias"]) == ["l.{0-1}.{q, k}"]
    assert template("h.10.conv2.3") == "h.{}.conv2.{}"


def expand(pattern: str) -> list[str]:
    """The names that a pattern stands for."""
    head, brace, tail = pattern.partition("{")
    if not brace:
        return [pattern]
    inside, _, rest = tail.partition("}")
    spans = [part.partition("-") for part in inside.split(",")]
    values = [n for low, _, high in spans for n in range(int(low), int(high or low) + 1)]
    return [f"{head}{value}{item}" for value in values for item in expand(rest)]


@given(st.sets(st.tuples(st.integers(0, 12), st.integers(0, 3)), min_size=1))
def test_patterns_stand_for_exactly_the_names(indices: set[tuple[int, int]]) -> None:
    names = [f"a.{i}.b.{j}.c" for i, j in indices]
    found = [name for pattern in fold(names) for name in expand(pattern)]
    assert sorted(found) == sorted(names)


@dataclass(frozen=True)
class Factor:
    """What a report reads of a factor."""

    name: str
    kind: str
    size: int
    dimension: int
    parameters: tuple[str, ...]
    sources: tuple[str, ...] = ()
    exact: bool = True
    components: dict[str, int] = field(default_factory=dict)
    copies: int = 1


def group(layers: int) -> Any:
    factors = [Factor("stream", "O", 64, 2016, tuple(f"layers.{i}.{n}.weight" for i in range(layers) for n in "qvko"))]
    for i in range(layers):
        for head in range(2):
            touched = (f"layers.{i}.q.weight", f"layers.{i}.k.weight")
            factors.append(Factor(f"layers.{i}.q/k head {head}", "GL", 4, 16, touched, components={"2": 1}))
        factors.append(Factor(f"layers.{i}.mlp", "Mono", 6, 6, (f"layers.{i}.up.weight",), (), False, {"6!": 1}))
    steps = ("opaque aten.foo: GL → O", "opaque aten.foo: O → rigid")
    rigid = [Rigid(f"layers.{i}.x", step, f"m.py:3 in layers.{i}") for i in range(layers) for step in steps]
    return SimpleNamespace(
        factors=tuple(factors),
        rigid=tuple(rigid),
        components={"2": 2 * layers, "6!": layers},
        dimension=2016 + 32 * layers,
        observed=("logits",),
        dropped=("past_key_values",),
        to_dict=lambda: {"factors": [vars(f) for f in factors]},
    )


def text(renderable: Any) -> str:
    out = io.StringIO()
    Console(file=out, width=140, highlight=False).print(renderable)
    return out.getvalue()


SUBJECT = Subject("folder", "Llama", 1_234_567, 12, {"input_ids": "int64[2, 8]"})


def test_inspect_view_folds_layers_and_lists_all_in_json() -> None:
    view = view_group(SUBJECT, group(80))
    assert [(row.touches[0], row.count) for row in view.rows] == [
        ("layers.{0-79}.{q, v, k, o}", 1),
        ("layers.{0-79}.{q, k}", 160),
        ("layers.{0-79}.up", 80),
    ]
    assert [row.dimension for row in view.rows] == [2016, 160 * 16, 80 * 6]
    assert [row.components for row in view.rows] == ["1", "(2)^160", "(6!)^80"]
    where = ("m.py:3 in layers.{0-79}",)
    assert view.rigid == (RigidRow("layers.{0-79}.x", 80, "opaque aten.foo: GL → rigid", where),)
    assert len(view.to_dict()["group"]["factors"]) == 1 + 240
    shown = text(render_inspect(view))
    assert shown.count("\n") < 40
    for piece in (
        "GL(4)",
        "2,560",
        "≈",
        "opaque aten.foo",
        "×80",
        "layers.{0-79}.{q, v, k, o}",
        "m.py:3",
        "logits",
        "past_key_values",
    ):
        assert piece in shown
    assert "1,234,567" in shown


def test_inspect_view_without_symmetry() -> None:
    empty = SimpleNamespace(factors=(), rigid=(), components={}, dimension=0, observed=("y",), dropped=(), to_dict=dict)
    assert "No parameter symmetry" in text(render_inspect(view_group(SUBJECT, empty)))


def test_factors_of_one_name_are_kept() -> None:
    twice = (Factor("a.0", "GL", 2, 4, ("w",)), Factor("a.0", "GL", 2, 4, ("v",)), Factor("a.0", "GL", 3, 9, ("u",)))
    made = SimpleNamespace(factors=twice, rigid=(), components={}, dimension=0, observed=(), dropped=(), to_dict=dict)
    view = view_group(SUBJECT, made)
    assert sum(row.count for row in view.rows) == 3
    assert [row.dimension for row in view.rows] == [4, 4, 9]


@pytest.mark.parametrize(
    ("components", "shown"),
    [({}, "1"), ({"8!": 1}, "8!"), ({"8!": 2, "2^8": 1}, "(8!)^2 · 2^8"), ({"2": 0}, "1")],
)
def test_components(components: dict[str, int], shown: str) -> None:
    assert show_components(components) == shown


@pytest.mark.parametrize(
    ("kind", "size", "copies", "shown"),
    [
        ("GL", 4, 1, "GL(4)"),
        ("shift", 4, 1, "R^4 shift"),
        ("GL", 4, 8, "GL(4) × 8"),
        ("complex", 4, 2, "C*^2 × 2"),
        ("permutation", 6, 2, "S_6 × 2"),
        ("new", 3, 1, "new(3)"),
    ],
)
def test_group_label(kind: str, size: int, copies: int, shown: str) -> None:
    assert show_group(kind, size, copies) == shown


def test_error_panel_says_what_where_and_what_to_do() -> None:
    shown = text(render_error(InputError("it [broke]", "a.py:3", "mend it")))
    for piece in ("it [broke]", "where: a.py:3", "what to do: mend it"):
        assert piece in shown
