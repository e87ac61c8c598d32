"""The command as a user meets it: exit status, streams, messages."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from torchgauge import cli

MODELS = """
import torch
from torch import nn

def mlp():
    torch.manual_seed(0)
    print("building")
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), (torch.randn(5, 4),)

def twin():
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), (torch.randn(5, 4),)

def large():
    return nn.Sequential(nn.Linear(4, 1000), nn.ReLU(), nn.Linear(1000, 3)), (torch.randn(5, 4),)

def no_inputs(): return nn.Linear(3, 2)
def wrong_shape(): return nn.Sequential(nn.Linear(3, 2)), (torch.randn(4, 5),)
def raises(): raise RuntimeError("no luck")
def number(): return 7

class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
    def forward(self, x):
        if x.sum() > 0:
            return self.linear(x)
        return x[:, :2]

class Square(nn.Module):
    def forward(self, x):
        return x.pow(2)

def squares():
    # more parameters than quadratic forms of two variables have coefficients
    return nn.Sequential(nn.Linear(2, 3, bias=False), Square(), nn.Linear(3, 1, bias=False)), (torch.randn(9, 2),)

def branches(): return Branches(), (torch.randn(4, 3),)
"""
LLAMA = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
LLAMA |= {"intermediate_size": 6, "vocab_size": 64, "architectures": ["LlamaForCausalLM"], "model_type": "llama"}


def config(folder: Path, **values: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(LLAMA | values))
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every model, good and bad, that the tests below name."""
    place = tmp_path_factory.mktemp("place")
    (place / "models.py").write_text(MODELS)
    (place / "broken.py").write_text("def f(:")
    config(place / "llama")
    (place / "empty").mkdir()
    weights = {"model.norm.weight": torch.ones(8)}
    for name in ("truncated", "corrupt", "misfit"):
        save_file(weights, config(place / name) / "model.safetensors", {"format": "pt"})
    path = place / "truncated" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    (place / "corrupt" / "model.safetensors").write_bytes(b"\xff" * 64)
    config(place / "misfit", hidden_size=16)
    config(place / "impossible", num_attention_heads=0)
    (place / "notjson").mkdir()
    (place / "notjson" / "config.json").write_text("{")
    (place / "bad.pt2").write_bytes(b"no program")
    torch.save(nn.Linear(2, 2).state_dict(), place / "pickle.pt")
    return place


# what is asked, and a piece of the one message that must come
BAD_INPUT = {
    "no command": (["prove", "x"], "Unknown command"),
    "no model": (["inspect"], "requires an argument"),
    "an option that is not there": (["inspect", "models:mlp", "--fast"], "Unknown option"),
    "an option of another type": (["certify", "models:mlp", "--seed", "x"], "seed"),
    "not a model": (["inspect", "gpt2"], "not a model"),
    "no such folder": (["inspect", "no/such/folder"], "no such file or folder"),
    "a pickle": (["certify", "pickle.pt"], "not a model"),
    "a callable that gives no module": (["inspect", "models:number"], "not a torch.nn.Module"),
    "a callable that is not there": (["inspect", "models:nothing"], "has no 'nothing'"),
    "a callable that raises": (["inspect", "models:raises"], "RuntimeError: no luck"),
    "a module that is no Python": (["inspect", "broken:f"], "SyntaxError"),
    "a folder without config": (["inspect", "empty"], "no config.json"),
    "a config that is no JSON": (["inspect", "notjson"], "not valid JSON"),
    "a config of impossible sizes": (["inspect", "impossible"], "config"),
    "truncated weights": (["inspect", "truncated"], "truncated"),
    "truncated weights to certify": (["certify", "truncated", "--json"], "truncated"),
    "corrupt weights": (["certify", "corrupt"], "not a safetensors file"),
    "shapes that do not fit": (["certify", "misfit"], "shape [8] in the file, [16] by"),
    "no program": (["inspect", "bad.pt2"], "not an exported program"),
    "inputs missing": (["inspect", "models:no_inputs"], "example inputs are missing"),
    "inputs of another shape": (["certify", "models:wrong_shape"], "does not run on these inputs"),
    "a model that cannot be exported": (["inspect", "models:branches", "--json"], "models.py"),
}


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))

    def start(*argv: str) -> tuple[int, str, str]:
        status = cli.run(argv)
        out, err = capsys.readouterr()
        return status, out, err

    return start


def check_refusal(case: str, status: int, out: str, err: str) -> None:
    assert status == 2, err
    assert out == ""
    assert "Traceback" not in err
    assert err.count("╭") == 1
    words = " ".join(err.replace("│", " ").split())
    assert BAD_INPUT[case][1] in words
    assert "what to do:" in words


def names(place: Path) -> set[str]:
    return {str(path) for path in place.rglob("*") if "__pycache__" not in path.parts}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input(case: str, place: Path, run: Run) -> None:
    before = names(place)
    check_refusal(case, *run(*BAD_INPUT[case][0]))
    assert names(place) == before


IN_A_PROCESS = [
    "no command",
    "not a model",
    "a folder without config",
    "truncated weights",
    "corrupt weights",
    "shapes that do not fit",
    "inputs missing",
    "a model that cannot be exported",
]


@pytest.fixture(scope="module")
def processes(place: Path) -> dict[str, subprocess.CompletedProcess[str]]:
    def start(case: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "torchgauge.cli", *BAD_INPUT[case][0]]
        return subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(IN_A_PROCESS, pool.map(start, IN_A_PROCESS), strict=True))


@pytest.mark.parametrize("case", IN_A_PROCESS)
def test_bad_input_to_a_process(case: str, processes: dict[str, subprocess.CompletedProcess[str]]) -> None:
    done = processes[case]
    check_refusal(case, done.returncode, done.stdout, done.stderr)


# -- good input -------------- -------------------------------------------------------------------------------
def test_help_and_version(run: Run) -> None:
    status, out, _ = run("--help")
    assert status == 0
    assert "inspect" in out
    assert "certify" in out
    assert run("--version")[1].strip()


def test_inspect_text(run: Run) -> None:
    status, out, err = run("inspect", "models:mlp")
    assert status == 0
    assert "51 parameters in 4 tensors" in out
    assert "float32[5, 4]" in out
    assert "building" in err
    assert "building" not in out


def test_inspect_json(run: Run) -> None:
    status, out, _ = run("inspect", "models:mlp", "--json")
    assert status == 0
    view = json.loads(out)
    assert view["schema_version"] == 1
    assert view["command"] == "inspect"
    assert view["model"]["parameters"] == 51
    assert sum(factor["dimension"] for factor in view["group"]["factors"]) == 6


def test_inspect_folder_without_weights(run: Run) -> None:
    status, out, _ = run("inspect", "llama")
    assert status == 0
    assert "LlamaForCausalLM" in out
    assert "layers.{0-1}" in out


def test_inspect_program(run: Run, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    torch.export.save(torch.export.export(model, (torch.randn(5, 4),)), tmp_path / "m.pt2")
    status, out, _ = run("inspect", str(tmp_path / "m.pt2"), "--json")
    assert status == 0
    assert json.loads(out)["model"]["parameters"] == 51


def test_certify_holds(run: Run) -> None:
    status, out, _ = run("certify", "models:mlp")
    assert "HOLDS" in out
    assert status == 0
    status, out, _ = run("certify", "models:mlp", "--json", "--seed", "3")
    view = json.loads(out)
    assert status == 0
    assert view["schema_version"] == 1
    assert view["holds"] is True
    assert view["certificate"]["hidden"] == 0


def test_observable(run: Run) -> None:
    status, out, _ = run("inspect", "models:mlp", "--observable", "probabilities", "--json")
    assert status == 0
    assert json.loads(out)["group"]["dimension"] == 6 + 7
    assert run("inspect", "models:mlp", "--observable", "luck")[0] == 2


def test_certify_with_a_twin(run: Run) -> None:
    status, out, _ = run("certify", "models:mlp", "--twin", "models:twin", "--json")
    assert status == 0
    assert json.loads(out)["certificate"]["twin"]


def test_certify_answers_no(run: Run) -> None:
    status, out, _ = run("certify", "models:squares", "--json")
    view = json.loads(out)
    assert status == 1
    assert view["holds"] is False
    assert view["certificate"]["sound"] is True
    assert view["certificate"]["hidden"] > 0
    status, out, _ = run("certify", "models:squares")
    assert status == 1
    assert "NOT COMPLETE" in out


def test_certify_does_not_decide(run: Run) -> None:
    status, out, _ = run("certify", "models:large")
    assert status == 1
    assert "NOT DECIDED" in out
    assert "--twin" in out
    status, out, _ = run("certify", "models:large", "--twin", "models:twin")
    assert status == 0


def test_an_error_of_torchgauge_is_not_blamed_on_the_model(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr("torchgauge.load.load", broken)
    status, out, err = run("inspect", "models:mlp")
    assert status == 3
    assert out == ""
    assert "please report it" in err
