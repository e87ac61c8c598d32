"""One model of the sweep: built, inferred, moved by random elements, and certified; a row grows stage by stage."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from coverage_page import ROUNDING

if TYPE_CHECKING:
    from tiny_models import Tiny

# generic points of a network with kinks, steps to bring its units to work at each, how often inputs are added, and how
# many in a row that see no hidden direction are enough: counts, so that rows do not depend on the machine
POINTS, STEPS, ROUNDS, PATIENCE = 3, 160, 2, 16
# a network of one layer may hide so many directions by accident, which one of two layers does not, whatever its size
EXOTIC = 3
# experts in a first layer read as many vectors as there are tokens, and so few may not tell their weights
TOKENS = 160

Emit = Callable[[dict[str, Any]], None]


def examine(model_type: str, name: str, emit: Emit, points: int) -> None:
    """Builds, infers and, at so many generic points, certifies one model, and emits what is known after each stage."""
    import torch
    import transformers
    from tiny_models import ROOMY, SMALL, NotBuilt, one_line, tiny
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    torch.manual_seed(0)
    emit({"stage": "build"})
    try:
        model_class = getattr(transformers, name)
        # a head may have a configuration of its own, a part of that of the type
        config_class = getattr(model_class, "config_class", None) or CONFIG_MAPPING[model_type]
        built = tiny(model_class, config_class)
    except NotBuilt as error:
        emit({"error": str(error)})
        return
    except (Exception, SystemExit) as error:  # anything in a constructor, and classes that want another library
        emit({"error": one_line(error)})
        return
    emit({"built": True})
    found = judge(built, emit, points)
    hidden: int = found.get("hidden") or 0
    again: dict[str, Any] | None = None
    if hidden and "input_ids" in built.inputs[0] and any("expert" in n for n in found["hidden_in"]):
        again = {"tokens": TOKENS}
    elif hidden and "2 layers" not in built.size:
        again = {"deep": True}
    if again is not None:
        with contextlib.suppress(NotBuilt):
            other = tiny(model_class, config_class, **again)
            row: dict[str, Any] = {}
            always = hidden <= EXOTIC or "tokens" in again
            if other.parameters <= (SMALL if always else ROOMY):
                judge(other, row.update, points)
            less = row.get("hidden") is not None and row["hidden"] < hidden
            if "sound" in row and (always or less or not row["sound"]):
                emit(row)


def judge(built: Tiny, emit: Emit, points: int) -> dict[str, Any]:
    """Emits a model's row after each stage; returns what was said of its completeness."""
    from tiny_models import SMALL, one_line

    from torchgauge.errors import TorchGaugeError

    emit({"parameters": built.parameters, "size": built.size, "stage": "export"})
    with contextlib.suppress(Exception):  # it is tried again, and reported, when soundness is
        generic_weights(built.model)
    group, inputs, start = None, built.inputs[0], 0.0
    failures: list[dict[str, Any]] = []
    for inputs in built.inputs:
        start = time.process_time()
        shapes = {k: list(v.shape) for k, v in inputs.items()}
        emit({"inputs": shapes, "exported": False, "stage": "export"})
        try:
            group = infer(built.model, inputs, emit)
            break
        except TorchGaugeError as error:
            failures.append({"error": _cause(error)})
        except Exception as error:  # a crash of the engine is a result
            failures.append({"error": f"{one_line(error)} {_place(error)}"})
    if group is None:
        emit(failures[0])
        return {}
    if failures:
        emit({"other_inputs": failures[0]["error"]})
    emit({"infer_seconds": round(time.process_time() - start, 2), "stage": "sound"})
    unknown = Counter(what for what, _ in group.program.opaque)
    emit({"unknown": dict(sorted(unknown.items())), "dimension": group.dimension})
    found: dict[str, Any] = {}
    try:
        defect, worst = soundness(built.model, inputs, group)
        emit({"defect": defect, "sound": defect <= ROUNDING, "unsound_in": worst, "stage": "complete"})
        if built.parameters <= SMALL and points:
            emit(found := completeness(built.model, inputs, group, points))
        emit({"stage": "done"})
    except Exception as error:
        emit({"error": f"{one_line(error)} {_place(error)}"})
    return found


def generic_weights(model: Any) -> None:
    """Weights as a trained network may have them: initial ones can be so small that only rounding is left."""
    import torch

    from torchgauge.numerics import randomise

    state = randomise(model, torch.Generator().manual_seed(1))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(state[name])


def infer(model: Any, inputs: dict[str, Any], emit: Emit = lambda part: None) -> Any:
    """As `torchgauge.infer` does, in two stages, so that it can be said which one failed or took long."""
    from torchgauge.capture import capture
    from torchgauge.infer import solve
    from torchgauge.rules import lower

    start = time.process_time()
    captured = capture(model, (), inputs)
    taken = round(time.process_time() - start, 2)
    emit({"exported": True, "export_seconds": taken, "nodes": len(captured.graph_module.graph.nodes), "stage": "infer"})
    return solve(lower(captured), ties=captured.ties, dropped=captured.dropped_outputs)


def soundness(model: Any, inputs: dict[str, Any], group: Any) -> tuple[float, list[str]]:
    """The largest relative change of an output under two random elements; if there is one, generators that do it."""
    import torch

    from torchgauge.certify.subject import Subject

    generator = torch.Generator().manual_seed(0)
    subject = Subject(model, (), inputs, generator)
    state, evaluate = subject.generic, subject.example()
    with torch.no_grad():
        before = evaluate(state)
        defects = [_change(before, evaluate(group.act(group.random(generator), state))) for _ in range(2)]
    defect = max(defects)
    return defect, [] if defect <= ROUNDING else _moving(subject, group, evaluate, state)


def _change(before: list[Any], after: list[Any]) -> float:
    from torchgauge.numerics import relative_defect

    defect = relative_defect(before, after)
    return defect if math.isfinite(defect) else 1e9


def _moving(subject: Any, group: Any, evaluate: Any, state: Any) -> list[str]:
    """Names of the generators that move the outputs, worst first."""
    approximate = {factor.name for factor in group.factors if not factor.exact}
    found: dict[str, float] = {}
    for name, tangent in group.tangents(state):
        if name not in approximate:
            moved = float(subject.push(evaluate, state, tangent).norm())
            size = sum(float(v.norm()) ** 2 for v in tangent.values()) ** 0.5
            found[name] = max(found.get(name, 0.0), moved / max(size, 1e-30))
    worst = sorted(((size, name) for name, size in found.items() if size > 1e-7), reverse=True)
    return [f"{name} ({size:.1e})" for size, name in worst[:4]] or ["no generator: a discrete part"]


def completeness(model: Any, inputs: dict[str, Any], group: Any, points: int) -> dict[str, Any]:
    """The certificate, without the twin that a large model would need."""
    import torchgauge as tg
    from torchgauge.certify import completeness as search
    from torchgauge.certify import verdict
    from torchgauge.certify.points import balanced

    thoroughness = {
        "POINTS": points,
        "SECONDS": math.inf,
        "measure": functools.partial(search.measure, rounds=ROUNDS),
        "balanced": functools.partial(balanced, steps=STEPS, seconds=math.inf),
    }
    with mock.patch.multiple(verdict, **thoroughness), mock.patch.object(search, "PATIENCE", PATIENCE):
        found = tg.certify(model, (), inputs, group=group)
    return {
        "certified": found.sound,
        "certificate_defect": max(found.defect, found.large_defect, found.own_defect or 0.0, found.tangent_defect),
        "orbit_dimension": found.orbit_dimension,
        "nullity": found.nullity,
        "hidden": found.hidden,
        "complete": found.complete,
        "undecided": found.undecided,
        "gap": None if not math.isfinite(found.gap) else round(found.gap, 1),
        "dead": found.dead_parameters,
        "approximate_dimension": found.approximate_dimension,
        "hidden_in": {name: round(share, 3) for name, share in found.hidden_in[:8]},
    }


def _cause(error: Any) -> str:
    return " ".join(part for part in (error.what.splitlines()[0][:300], error.where and f"at {error.where}") if part)


def _place(error: BaseException) -> str:
    """Where in torchgauge an exception came from."""
    place, trace = "", error.__traceback__
    while trace is not None:
        path = Path(trace.tb_frame.f_code.co_filename)
        if "torchgauge" in path.parts:
            place = f"(at {path.name}:{trace.tb_lineno})"
        trace = trace.tb_next
    return place
