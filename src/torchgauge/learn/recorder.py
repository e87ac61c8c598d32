"""Conserved quantities along a training run: recorded, predicted, saved, and drawn."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from torchgauge.errors import InputError
from torchgauge.learn.dynamics import after_step
from torchgauge.learn.evaluation import Parts, parts
from torchgauge.learn.quantities import ConservedQuantity


@final
@dataclass(frozen=True)
class Record:
    """What a run recorded of one quantity.

    Attributes:
        name, kind, formula: of the quantity.
        steps: counts of optimiser steps done, [n].
        times: Σ η over these steps, the time of gradient flow, [n].
        rates: η of the step that follows, [n].
        decays: its weight decay μ, [n].
        quadratic, linear: the parts of the quantity, [n, count].
        gradient_quadratic, gradient_linear: ½⟨g, Xg⟩ and ⟨u, g⟩ of the gradient of that step [n, count]; NaN where
            they were not recorded.
    """

    name: str
    kind: str
    formula: str
    steps: Tensor
    times: Tensor
    rates: Tensor
    decays: Tensor
    quadratic: Tensor
    linear: Tensor
    gradient_quadratic: Tensor
    gradient_linear: Tensor

    @property
    def values(self) -> Tensor:
        """The quantity, [n, count]."""
        return self.quadratic + self.linear

    @property
    def drift(self) -> Tensor:
        """Its change since the first record, [n, count]."""
        return self.values - self.values[0]

    def predicted(self) -> Tensor:
        """The quantity from its first value, by the law of plain gradient descent, [n, count].

        Exact if every step was recorded. Between records the gradient's parts, learning rate and decay are
        interpolated. NaN after a step whose gradient was not recorded.
        """
        here = Parts(self.quadratic[0], self.linear[0])
        out = [here.quadratic + here.linear]
        for k in range(len(self.steps) - 1):
            last = k + 2 == len(self.steps) and bool(self.gradient_quadratic[-1].isnan().any())
            for fraction in torch.linspace(0, 1, int(self.steps[k + 1] - self.steps[k]) + 1)[:-1].tolist():
                share = 0.0 if last or fraction == 0.0 else fraction
                gradient = Parts(
                    self._between("gradient_quadratic", k, share), self._between("gradient_linear", k, share)
                )
                rate, decay = (float(self._between(name, k, share)) for name in ("rates", "decays"))
                here = after_step(here, gradient, rate, decay)
            out.append(here.quadratic + here.linear)
        return torch.stack(out)

    def _between(self, name: str, k: int, share: float) -> Tensor:
        series: Tensor = getattr(self, name)
        return series[k] if share == 0.0 else (1 - share) * series[k] + share * series[k + 1]

    def plot(self, axis: Any = None) -> Any:
        """Draws the recorded values over time, and dashed what was predicted; needs matplotlib.

        Args:
            axis: a matplotlib axis; a new one by default.

        Returns:
            The axis.
        """
        from matplotlib import pyplot as plt

        axis = plt.subplots()[1] if axis is None else axis
        lines = axis.plot(self.times, self.values, lw=1.2)
        for line, predicted in zip(lines, self.predicted().T, strict=True):
            axis.plot(self.times, predicted, "--", color="black", lw=0.7)
            line.set_label(self.name)
        axis.set(xlabel="time, Σ learning rate", ylabel="conserved quantity", title=self.formula)
        return axis


@final
@dataclass
class Recorder:
    """Records conserved quantities along a training run, every so many steps.

        recorder = Recorder(conserved(model, (x,)), every=10)
        with recorder.attached(model, optimizer):
            train()
        for record in recorder.records(): ...

    A record costs a few passes over the quantities' parameters in float64; a step in between costs a counter.

    Attributes:
        quantities: what to record.
        every: steps from one record to the next.
    """

    quantities: Sequence[ConservedQuantity]
    every: int = 1
    _rows: list[list[dict[str, Tensor]]] = field(default_factory=list, repr=False, init=False)
    _clock: list[tuple[int, float]] = field(default_factory=list, repr=False, init=False)
    _step: int = field(default=0, repr=False, init=False)
    _time: float = field(default=0.0, repr=False, init=False)

    def __post_init__(self) -> None:
        if self.every < 1:
            raise InputError(f"every={self.every} steps cannot be recorded", "every", "Give 1 or more.")

    def attached(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Attachment:
        """A context in which every step of an optimiser is counted and each `every`-th recorded, and the end too.

        Raises:
            InputError: the optimiser does not hold all of the quantities' parameters.
        """
        return Attachment(self, model, optimizer)

    def step(
        self,
        parameters: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor | None],
        rates: Sequence[float],
        decays: Sequence[float],
        predictable: bool = True,
    ) -> None:
        """Counts a step that is about to be made, and records the state before it if it is its turn.

        Args:
            parameters: by name.
            gradients: of the loss, by name, without weight decay.
            rates: η for each quantity.
            decays: μ for each quantity.
            predictable: whether the step is one of plain gradient descent.
        """
        if self._step % self.every == 0:
            self._record(parameters, gradients if predictable else {}, rates, decays)
        self._step += 1
        self._time += max((rate for rate in rates if rate == rate), default=0.0)

    def finish(self, parameters: Mapping[str, Tensor]) -> None:
        """Records the state after the last step."""
        nothing = [float("nan")] * len(self.quantities)
        if not self._clock or self._clock[-1][0] < self._step:
            self._record(parameters, {}, nothing, nothing)

    def _record(
        self,
        parameters: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor | None],
        rates: Sequence[float],
        decays: Sequence[float],
    ) -> None:
        row = []
        found = parts(self.quantities, parameters, {name: g for name, g in gradients.items() if g is not None})
        for (here, slope), rate, decay in zip(found, rates, decays, strict=True):
            nan = torch.full_like(here.quadratic, float("nan"))
            slope = slope or Parts(nan, nan)
            rates_now = torch.tensor([rate, decay], dtype=torch.float64)
            row.append(
                {"rates": rates_now[0], "decays": rates_now[1], "quadratic": here.quadratic, "linear": here.linear}
            )
            row[-1] |= {"gradient_quadratic": slope.quadratic, "gradient_linear": slope.linear}
        self._rows.append(row)
        self._clock.append((self._step, self._time))

    def records(self) -> list[Record]:
        """One record for every quantity.

        Raises:
            InputError: nothing was recorded yet.
        """
        if not self._rows:
            raise InputError("nothing was recorded", "Recorder", "Train inside of `with recorder.attached(...)`.")
        steps = torch.tensor([step for step, _ in self._clock])
        times = torch.tensor([time for _, time in self._clock], dtype=torch.float64)
        out = []
        for i, quantity in enumerate(self.quantities):
            series = {name: torch.stack([row[i][name].double() for row in self._rows]) for name in self._rows[0][i]}
            out.append(Record(quantity.name, quantity.kind, quantity.formula, steps, times, **series))
        return out


@final
class Attachment:
    """A recorder on an optimiser, from `with` to its end."""

    def __init__(self, recorder: Recorder, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.recorder, self.optimizer = recorder, optimizer
        self.parameters = dict(model.named_parameters(remove_duplicate=False))
        group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        self.groups: list[list[dict[str, Any]]] = []
        for quantity in recorder.quantities:
            absent = [n for n in quantity.parameters if id(self.parameters.get(n)) not in group_of]
            if absent:
                what = "the optimiser does not move this parameter of a conserved quantity"
                raise InputError(what, absent[0], "Leave it out by conserved(..., trainable=[...]).")
            self.groups.append([group_of[id(self.parameters[n])] for n in quantity.parameters])

    def __enter__(self) -> Recorder:
        self.handle = self.optimizer.register_step_pre_hook(lambda *_: self._before_step())
        return self.recorder

    def __exit__(self, *error: object) -> None:
        self.handle.remove()
        if error[0] is None:
            self.recorder.finish(self.parameters)

    def _before_step(self) -> None:
        rates = [self._common(groups, "lr") for groups in self.groups]
        decays = [self._common(groups, "weight_decay") for groups in self.groups]
        gradients = {name: p.grad for name, p in self.parameters.items()}
        self.recorder.step(self.parameters, gradients, rates, decays, self._plain())

    def _common(self, groups: list[dict[str, Any]], key: str) -> float:
        """A setting that all parameters of a quantity share, else NaN: then nothing can be predicted."""
        found = {float(group.get(key, 0.0)) for group in groups}
        return found.pop() if len(found) == 1 else float("nan")

    def _plain(self) -> bool:
        """Whether the optimiser makes steps of plain gradient descent."""
        options = self.optimizer.param_groups
        moved = any(o.get("momentum") or o.get("maximize") or o.get("nesterov") for o in options)
        return type(self.optimizer) is torch.optim.SGD and not moved


_SERIES = (
    "steps", "times", "rates", "decays", "quadratic", "linear", "gradient_quadratic", "gradient_linear",
)  # fmt: skip
_WORDS = ("name", "kind", "formula")


def save(records: Sequence[Record], path: str | os.PathLike[str]) -> None:
    """Writes records to one safetensors file, beside its place and then renamed."""
    tensors = {f"{i}.{key}": getattr(r, key).contiguous().clone() for i, r in enumerate(records) for key in _SERIES}
    words = json.dumps([{key: getattr(r, key) for key in _WORDS} for r in records])
    beside = Path(f"{os.fspath(path)}.partial")
    try:
        save_file(tensors, beside, metadata={"torchgauge.learn.records": words})
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def load(path: str | os.PathLike[str]) -> list[Record]:
    """Reads what `save` wrote.

    Raises:
        InputError: no such file, or not one of records.
    """
    return list(_loaded(path))


def _loaded(path: str | os.PathLike[str]) -> Iterator[Record]:
    try:
        with safe_open(os.fspath(path), "pt") as file:
            words = json.loads((file.metadata() or {})["torchgauge.learn.records"])
            for i, entry in enumerate(words):
                yield Record(**entry, **{key: file.get_tensor(f"{i}.{key}") for key in _SERIES})
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as failure:
        what = f"this is no file of records: {failure}"
        raise InputError(what, os.fspath(path), "Give a file that `save` wrote.") from failure
