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
import tiny_models  # noqa: E402
import tiny_overrides  # noqa: E402
import tiny_sizes  # noqa: E402
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


def test_kernels_stay_shorter_than_sequences_and_tokens_few() -> None:
    raw = {
        "num_conv_pos_embeddings": 128,
        "conv_depthwise_kernel_size": 31,
        "conv_stride": [5, 2, 2, 2],
        "conv_kernel": [10, 3, 3, 2],
        "conv_dim": [512] * 4,
        "num_feat_extract_layers": 4,
        "num_detection_tokens": 100,
        "inside": {"chunk_size": 256, "kernel_size": 3, "mlp_ratio": 4.0},
        "sliding_window": 512,
    }
    found = tiny_sizes.shortened(raw)
    assert found["num_conv_pos_embeddings"] == 4 and found["conv_depthwise_kernel_size"] == 3
    assert found["conv_stride"] == [5, 2] and found["conv_kernel"] == [10, 3]
    assert found["conv_dim"] == [512] * 2 and found["num_feat_extract_layers"] == 2
    assert found["num_detection_tokens"] == 4 and found["sliding_window"] == 512
    assert found["inside"] == {"chunk_size": 4, "kernel_size": 3, "mlp_ratio": 1.0}


def test_a_pyramid_keeps_its_first_and_its_last_stage() -> None:
    raw = {"depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "num_query_pool": 3, "image_size": 224, "patch_size": 4}
    assert tiny_sizes.shortened(raw, 2) | {"image_size": 0, "patch_size": 0} == {
        "depths": [2, 2],
        "num_heads": [3, 24],
        "num_query_pool": 1,
        "image_size": 0,
        "patch_size": 0,
    }
    assert tiny_sizes.shortened(raw, 0) == raw
    # four by four patches are left where it is coarsest
    assert tiny_sizes.by_role()(raw)["image_size"] == 4 * 4 * 2


def test_of_levels_of_features_two_are_left() -> None:
    raw = {
        "feat_strides": [8, 16, 32],
        "encoder_in_channels": [512, 1024, 2048],
        "num_feature_levels": 3,
        "encode_proj_layers": [2],
        "backbone_config": {"out_indices": [2, 3, 4]},
    }
    assert tiny_sizes.shortened(raw) == {
        "feat_strides": [16, 32],
        "encoder_in_channels": [1024, 2048],
        "num_feature_levels": 2,
        "encode_proj_layers": [1],
        "backbone_config": {"out_indices": [3, 4]},
    }
    assert tiny_sizes.shortened(raw | {"x4_feat_dim": 128})["feat_strides"] == [8, 16, 32]


def test_of_the_blocks_of_a_stage_the_first_and_the_last_are_left() -> None:
    raw = {
        "block_configs": [[[3, 16, 32, 1, False]], [[3, 32, 64, 2, True], [3, 64, 64, 1, False], [5, 64, 64, 1, True]]]
    }
    assert tiny_sizes.shortened(raw)["block_configs"] == [
        [[3, 8, 8, 1, False]],
        [[3, 8, 8, 2, True], [5, 8, 8, 1, True]],
    ]


def test_sizes_of_a_type_hold_inside_of_another() -> None:
    raw = {"model_type": "upernet", "pool_scales": [1, 2, 3, 6], "backbone_config": {"depths": [1, 1]}, "width": 8}
    assert tiny_overrides.overridden(raw) == raw | {
        "pool_scales": [1, 2],
        "backbone_config": {"depths": [1, 1], "image_size": 128},
    }
    inside = {"model_type": "any", "vision_config": {"model_type": "got_ocr2_vision", "image_size": 16}}
    assert tiny_overrides.overridden(inside)["vision_config"]["image_size"] == 32


@pytest.mark.parametrize("name", ["ViTModel", "Dinov2Model"])
def test_pictures_have_four_by_four_patches(targets: dict, name: str) -> None:
    import transformers

    cls = getattr(transformers, name)
    found = tiny_models.tiny(cls, cls.config_class)
    config = found.model.config
    assert config.image_size == tiny_sizes.GRID * config.patch_size  # pyright: ignore
    assert found.inputs[0]["pixel_values"].shape[-1] == config.image_size  # pyright: ignore


def test_the_page_names_the_parameters_of_a_gap() -> None:
    row = {
        "status": "incomplete",
        "hidden": 4,
        "hidden_in": {"layers.0.fc.weight": 0.4, "layers.1.fc.bias": 0.1, "head.weight": 0.3, "scale": 0.1},
    }
    assert coverage_page._remark(row) == "incomplete: `layers.*.fc.{weight,bias}` 50%, `head.weight` 30%, `scale` 10%"
    assert "less than one percent" in coverage_page._remark(row | {"hidden_in": {}})
    unclear = {"status": "undecided", "hidden": 0, "undecided": "the singular values part by too little"}
    assert coverage_page._remark(unclear) == "undecided: the singular values part by too little"
    assert coverage_page._remark({"status": "sound"}) == "sound; too large to certify"
    assert "time limit" in coverage_page._remark({"status": "sound", "error": "time limit of 60 s"})


@pytest.mark.skipif(not (BENCHMARKS / "coverage.json").exists(), reason="no sweep is kept in this tree")
def test_the_page_is_that_of_the_rows() -> None:
    data = json.loads((BENCHMARKS / "coverage.json").read_text())
    written = (BENCHMARKS.parent / "docs" / "coverage.md").read_text()
    assert written == coverage_page.page(data["rows"], data["targets"], data["versions"], data["older"])
    n = coverage_page.counts(data["rows"])
    assert n["unsound"] == 0
    assert n["sound"] >= n["measured"] == n["complete"] + n["incomplete"] + n["undecided"]
    assert f"| complete | {n['complete']} |" in written
    for row in data["rows"]:
        if row["status"] == "incomplete":
            assert row["hidden"] > 0 and row["hidden_in"], row["class"]
        if row["status"] == "complete":
            assert row["nullity"] == row["orbit_dimension"], row["class"]
