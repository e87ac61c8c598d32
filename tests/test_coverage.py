"""The sweep over the model types of transformers: its tool on a few of them, and its page."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import coverage_page  # noqa: E402
import tiny_squeeze  # noqa: E402

# by its path: there is a library of the same name
spec = importlib.util.spec_from_file_location("coverage_sweep", BENCHMARKS / "coverage.py")
assert spec is not None and spec.loader is not None
coverage = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = coverage
spec.loader.exec_module(coverage)


@pytest.fixture(scope="module")
def targets() -> dict:
    return {t.name: t for t in coverage.targets()}


def test_targets_are_a_base_and_a_head_of_every_type_in_a_fixed_order(targets: dict) -> None:
    again = coverage.targets()
    assert [t.key for t in again] == [t.key for t in targets.values()]
    roles = [t.role for t in again]
    assert len(again) > 500 and set(roles) == {"base", "head"}
    assert {"LlamaModel", "LlamaForCausalLM", "ResNetForImageClassification"} <= set(targets)


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "T5Model", "ConvNextModel"])
def test_a_row(targets: dict, name: str) -> None:
    row: dict = {"built": False, "exported": False}
    coverage.examine(targets[name].model_type, name, row.update, 0)
    assert row["built"] and row["exported"] and row["stage"] == "done"
    assert row["parameters"] <= 4000 and row["sound"] and row["unknown"] == {}
    assert row["dimension"] > 20 and row["infer_seconds"] < 30
    assert coverage.status(row) == "sound"


def test_a_row_with_its_completeness(targets: dict) -> None:
    row: dict = {"built": False, "exported": False}
    coverage.examine("gpt2", "GPT2Model", row.update, 1)
    assert coverage.status(row) == "complete"
    assert row["orbit_dimension"] == row["nullity"] > 100 and row["hidden"] == 0


def test_what_cannot_be_built_says_why(targets: dict) -> None:
    row: dict = {"built": False, "exported": False}
    coverage.examine("bert", "BertTokenizer", row.update, 0)
    assert coverage.status(row) == "not built" and row["error"]


def test_sizes_are_squeezed_as_far_as_the_model_runs() -> None:
    raw = {"width": 64, "steps": [100, 8], "inside": {"table": 1000}, "pad_token_id": 900, "num_layers": 12}

    def count(raw: dict) -> int:
        if raw["width"] < 32:
            raise ValueError("too narrow")
        return raw["width"] + raw["inside"]["table"] + sum(raw["steps"]) + 50 * raw["num_layers"]

    found = tiny_squeeze.squeezed(raw, count, lambda raw: raw["inside"]["table"] > 4, enough=10)
    assert found == {
        "width": 32,
        "steps": [4, 4],
        "inside": {"table": 8},
        "pad_token_id": 900,
        "num_layers": 2,
    }
    assert raw["width"] == 64


@pytest.mark.skipif(not (BENCHMARKS / "coverage.json").exists(), reason="no sweep is kept in this tree")
def test_the_page_is_that_of_the_rows() -> None:
    data = json.loads((BENCHMARKS / "coverage.json").read_text())
    written = (BENCHMARKS.parent / "docs" / "coverage.md").read_text()
    assert written == coverage_page.page(data["rows"], data["targets"], data["versions"])
    n = coverage_page.counts(data["rows"])
    assert n["unsound"] == 0
    assert n["sound"] >= n["measured"] == n["complete"] + n["incomplete"] + n["undecided"]
    assert f"| complete | {n['complete']} |" in written
    for row in data["rows"]:
        if row["status"] == "incomplete":
            assert row["hidden"] > 0 and row["hidden_in"], row["class"]
        if row["status"] == "complete":
            assert row["nullity"] == row["orbit_dimension"], row["class"]
