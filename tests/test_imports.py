"""The floors of the house, and what an import may load."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import torchgauge

ROOT = Path(__file__).parents[1]
PACKAGE = Path(torchgauge.__file__).parent


def loaded_by(code: str) -> set[str]:
    """The modules that are in memory after some code ran in a fresh interpreter."""
    script = f"{code}\nimport sys; print('\\n'.join(sys.modules), file=sys.__stderr__)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(run.stderr.split())


def test_importing_the_package_imports_no_torch() -> None:
    assert not {"torch", "numpy", "rich", "transformers"} & loaded_by("import torchgauge")


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["certify", "--help"]])
def test_help_loads_nothing_heavy(argv: list[str]) -> None:
    loaded = loaded_by(f"from torchgauge.cli import run\nassert run({argv}) == 0")
    assert not {"torch", "numpy", "scipy", "safetensors", "transformers"} & loaded


def test_inspecting_needs_no_scipy_stats_and_no_scikit_learn() -> None:
    loaded = loaded_by("import torchgauge.gauge, torchgauge.report, torchgauge.load")
    assert not {"sklearn", "matplotlib", "transformers", "scipy.stats"} & loaded


def test_every_public_name_is_there() -> None:
    for name in torchgauge.__all__:
        assert getattr(torchgauge, name) is not None
    assert set(dir(torchgauge)) == set(torchgauge.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nosuch'"):
        torchgauge.nosuch  # noqa: B018


def test_a_verb_is_not_hidden_by_its_module() -> None:
    code = "import torchgauge.certify, torchgauge; assert callable(torchgauge.certify)"
    subprocess.run([sys.executable, "-c", code], check=True)


def imports(path: Path) -> set[str]:
    """The names of the modules that a file imports, at any depth."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_torch_export_is_imported_in_one_place() -> None:
    """capture.py traces with it, load.py reads .pt2 files with it."""
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if any(name == "torch.export" or name.startswith("torch.export.") for name in imports(path))
    }
    assert users <= {"capture.py", "load.py"}


def test_the_judge_shares_no_code_with_the_package() -> None:
    oracle = ROOT / "tests" / "oracle.py"
    if oracle.is_file():
        assert not any(name.split(".")[0] == "torchgauge" for name in imports(oracle))


def test_floors() -> None:
    lint = shutil.which("lint-imports", path=str(Path(sys.executable).parent)) or shutil.which("lint-imports")
    if lint is None or not (ROOT / "pyproject.toml").is_file():
        pytest.skip("import-linter is not installed")
    run = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
