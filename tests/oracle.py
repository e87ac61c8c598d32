"""The independent judge: numeric nullity of ∂outputs/∂parameters. It shares no code with the package.

Everything is done again, on purpose and by other means: generic parameters, promotion to float64, rows of the
Jacobian (plain entries of the output, no random projections) and the rank (numpy, column-equilibrated QR and SVD).
The traps of the numerical catalogue are handled here too: a floor under the column scales, more inputs until the
rank stands still, large and small inputs in turn, a gap that is reported, and never a Gram matrix.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_LOW = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Nullity:
    """What the judge found.

    Attributes:
        nullity: dimension of the kernel of ∂outputs/∂parameters, over the parameter entries that are read.
        parameters: number of parameter entries, tied ones once.
        gap: log10 of the ratio of the singular values on both sides of the cut.
        dead: parameter entries that no input reads (embedding rows never looked up, unused modules); not in `nullity`.
        zero_columns: entries that are read and yet move nothing, to first order; they are part of `nullity`.
        rows: rows of the Jacobian that were used.
    """

    nullity: int
    parameters: int
    gap: float
    dead: int
    zero_columns: int = 0
    rows: int = 0


class _Double(TorchFunctionMode):
    """Everything that asks for a lower precision gets float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (Tensor.float, Tensor.half, Tensor.bfloat16):
            return args[0].double()
        args = tuple(torch.float64 if isinstance(a, torch.dtype) and a in _LOW else a for a in args)
        kwargs = {k: torch.float64 if isinstance(v, torch.dtype) and v in _LOW else v for k, v in kwargs.items()}
        return func(*args, **kwargs)


@contextlib.contextmanager
def _double_precision() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Double(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            yield
    finally:
        torch.set_default_dtype(before)


def generic(module: nn.Module, seed: int = 0) -> nn.Module:
    """A float64 copy at generic parameters: no gain is one, no bias is zero, no running statistic is trivial."""
    draw = torch.Generator().manual_seed(seed)

    def normal(shape: torch.Size) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    def between(shape: torch.Size, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=draw, dtype=torch.float64)

    module = copy.deepcopy(module).double()
    tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    for inner in module.modules():
        if isinstance(inner, nn.Embedding):
            inner.padding_idx = None  # autograd leaves the padding row out; the function reads it
    with torch.no_grad():
        for p in module.parameters():
            p.requires_grad_(True)
            if p.ndim <= 1:
                gain = p.numel() > 0 and float(p.abs().max()) > 0 and float(p.max() - p.min()) == 0
                p.copy_(between(p.shape, 0.5, 1.5) if gain else 0.5 * normal(p.shape))
            else:
                fan_in = p[0].numel()
                p.copy_(normal(p.shape) if id(p) in tables else 1.3 * normal(p.shape) / math.sqrt(fan_in))
        for name, b in module.named_buffers():
            if name.endswith("running_mean"):
                b.copy_(0.5 * normal(b.shape))
            elif name.endswith("running_var"):
                b.copy_(between(b.shape, 0.5, 2.0))
    return module


def _arguments(made: Any) -> tuple[tuple, dict]:
    if isinstance(made, dict):
        return (), made
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], tuple) and isinstance(made[1], dict):
        return made
    return (tuple(made) if isinstance(made, tuple | list) else (made,)), {}


def _floating(value: Any) -> list[Tensor]:
    """Floating tensors of a nested output; caches left out."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, dict):
        return [t for k, v in value.items() if "past_key" not in str(k) and "cache" not in str(k) for t in _floating(v)]
    if isinstance(value, tuple | list):
        return [t for v in value for t in _floating(v)]
    return []


def _to_double(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {k: _to_double(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return tuple(_to_double(v) for v in value)
    return value


class _Judge:
    """A module at generic parameters with a stream of inputs."""

    def __init__(
        self, module: nn.Module, make_inputs: Callable[[torch.Generator], Any], observable: Any, seed: int, keep: bool
    ) -> None:
        self.module = copy.deepcopy(module).double() if keep else generic(module, seed)
        self.parameters = list(self.module.parameters())
        self.names = [n for n, _ in self.module.named_parameters()]
        self.total = sum(p.numel() for p in self.parameters)
        self.make_inputs, self.observable = make_inputs, observable
        self.stream = torch.Generator().manual_seed(seed + 1)
        self.seen: list[Any] = []

    def output(self, made: Any) -> Tensor:
        # fresh buffers each time, so that batch norm in training mode sees the same statistics
        buffers = {n: b.clone() for n, b in self.module.named_buffers()}
        with _double_precision():
            out = torch.func.functional_call(self.module, buffers, *_arguments(_to_double(made)))
            out = out if self.observable is None else self.observable(out)
            flat = torch.cat([t.reshape(-1) for t in _floating(out)])
        return flat

    def rows(self, at_most: int) -> np.ndarray:
        made = self.make_inputs(self.stream)
        self.seen.append(made)
        y = self.output(made)
        pick = torch.randperm(y.numel(), generator=self.stream)[:at_most]
        chosen = y[pick] / y.detach().abs().max().clamp_min(1e-30)
        try:
            blocks = torch.autograd.grad(
                chosen,
                self.parameters,
                torch.eye(len(pick), dtype=torch.float64),
                is_grads_batched=True,
                allow_unused=True,
                retain_graph=True,
            )
        except RuntimeError:
            each = [torch.autograd.grad(c, self.parameters, allow_unused=True, retain_graph=True) for c in chosen]
            blocks = [
                None
                if all(e[i] is None for e in each)
                else torch.stack([torch.zeros_like(p) if e[i] is None else e[i] for e in each])
                for i, p in enumerate(self.parameters)
            ]
        parts = [
            torch.zeros(len(pick), p.numel(), dtype=torch.float64) if b is None else b.reshape(len(pick), -1)
            for p, b in zip(self.parameters, blocks, strict=True)
        ]
        return torch.cat(parts, dim=1).numpy()

    def unread(self, zero: np.ndarray) -> int:
        """How many of the zero columns no input reads: a NaN put there never comes out."""
        offset = 0
        spots: list[tuple[Tensor, Tensor]] = []
        for p in self.parameters:
            spots.append((p, torch.from_numpy(zero[offset : offset + p.numel()].copy()).reshape(p.shape)))
            offset += p.numel()

        def silent(p: Tensor, mask: Tensor) -> bool:
            saved = p.detach().clone()
            with torch.no_grad():
                p[mask] = float("nan")
                quiet = all(bool(self.output(made).isfinite().all()) for made in self.seen)
                p.copy_(saved)
            return quiet

        count = 0
        for p, mask in spots:
            if not mask.any():
                continue
            if silent(p, mask):
                count += int(mask.sum())
                continue
            for i in range(p.shape[0] if p.ndim else 0):
                row = torch.zeros_like(mask)
                row[i] = mask[i]
                if row.any() and silent(p, row):
                    count += int(row.sum())
        return count


def _cut(values: np.ndarray) -> tuple[int, float]:
    """Number of vanishing singular values and log10 of the gap: the widest gap with what it drops below 1e-8."""
    floor = 1e-17
    s = np.maximum(values / max(values.max(initial=0.0), 1e-300), floor)
    s = np.sort(s)[::-1]
    if len(s) == 0 or s[-1] > 1e-8:
        return 0, math.log10(s[-1] / (np.finfo(float).eps)) if len(s) else math.inf
    first = int(np.argmax(s <= 1e-8))
    cuts = [i for i in range(first, len(s)) if i > 0]
    best = max(cuts, key=lambda i: s[i - 1] / s[i] if s[i] < 1e-8 else 0.0)
    # below 1e-13 there is only noise, whose ratios mean nothing
    noise = [i for i in cuts if s[i - 1] <= 1e-13]
    if best in noise:
        best = min((i for i in cuts if i not in noise), key=lambda i: s[i] / s[i - 1])
    return len(s) - best, math.log10(s[best - 1] / s[best])


def _nullity_of(jacobian: np.ndarray, zero: np.ndarray) -> tuple[int, float]:
    live = jacobian[:, ~zero]
    if live.shape[1] == 0:
        return 0, math.inf
    norms = np.linalg.norm(live, axis=0)
    live = live / np.maximum(norms, 1e-5 * norms.max())
    if live.shape[0] > live.shape[1]:
        live = np.linalg.qr(live, mode="r")
    values = np.linalg.svd(live, compute_uv=False)
    values = np.concatenate([values, np.zeros(live.shape[1] - len(values))])
    return _cut(values)


def nullity(
    module: nn.Module,
    make_inputs: Callable[[torch.Generator], Any],
    observable: Callable[[Any], Any] | None = None,
    *,
    seed: int = 0,
    keep_parameters: bool = False,
    rows_per_input: int = 96,
    oversample: float = 2.0,
    rounds: int = 4,
) -> Nullity:
    """The nullity of ∂outputs/∂parameters at generic parameters.

    Args:
        module: any module; it is copied, not touched.
        make_inputs: from a generator to a tensor, a tuple of arguments, a dict of keyword arguments, or (args, kwargs).
            Called again and again for fresh inputs.
        observable: from the output to what counts of it; every floating tensor but caches, when None.
        seed: of parameters and inputs.
        keep_parameters: judge at the module's own parameters instead.
        rows_per_input: at most so many entries of one output; few, so that many inputs are seen.
        oversample: rows per parameter of the first round.
        rounds: how often the number of rows may grow by half while the nullity still falls.

    Returns:
        The nullity, and what is needed to trust it.
    """
    judge = _Judge(module, make_inputs, observable, seed, keep_parameters)
    jacobian = np.zeros((0, judge.total))
    target = int(oversample * judge.total) + 16
    found: tuple[int, float] | None = None
    zero = np.zeros(judge.total, dtype=bool)
    for _ in range(max(rounds, 1)):
        blocks = [jacobian]
        count = len(jacobian)
        while count < target:
            blocks.append(judge.rows(rows_per_input))
            count += len(blocks[-1])
        jacobian = np.concatenate(blocks)
        norms = np.linalg.norm(jacobian, axis=0)
        zero = norms <= 1e-12 * norms.max(initial=0.0)
        now = _nullity_of(jacobian, zero)
        total = now[0] + int(zero.sum())
        if found is not None and found[0] == total:
            break
        found = (total, now[1])
        target = int(1.5 * len(jacobian))
    assert found is not None
    dead = judge.unread(zero) if zero.any() else 0
    return Nullity(
        nullity=found[0] - dead,
        parameters=judge.total,
        gap=found[1],
        dead=dead,
        zero_columns=int(zero.sum()) - dead,
        rows=len(jacobian),
    )
