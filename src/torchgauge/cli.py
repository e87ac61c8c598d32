"""The command `torchgauge`.

Exit status: 0 done (for a test: it holds), 1 a test answered no, 2 bad input, 3 an error of torchgauge itself.
Standard output carries the report alone; progress and warnings go to standard error.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isfinite
from threading import Timer
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

from cyclopts import App, CycloptsError, Parameter

from torchgauge import __version__
from torchgauge.errors import InputError, TorchGaugeError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from torchgauge.load import Loaded
    from torchgauge.report import Subject

PATIENCE, REMINDER = 3.0, 15.0  # seconds until the first and until a further line of progress
HOLDS, ANSWERED_NO, BAD_INPUT, INTERNAL = 0, 1, 2, 3

app = App(
    name="torchgauge",
    help="Find and certify the parameter symmetries of a PyTorch model.\n\n"
    "MODEL is a Hugging Face folder (config.json and safetensors), a .pt2 exported program, or "
    "package.module:callable, a function that returns (module, args).",
    version=__version__,
)

Model = Annotated[str, Parameter(help="Hugging Face folder, .pt2 file, or package.module:callable.")]
Observable = Annotated[
    Literal["outputs", "probabilities"],
    Parameter(help="What counts: all floating outputs, or the softmax of the logits."),
]
Json = Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object on standard output.")]


@app.command
def inspect(
    model: Model,
    /,
    *,
    why: Annotated[
        str | None,
        Parameter(name="--why", help="A space, factor, parameter or module: what keeps it from a larger group."),
    ] = None,
    observable: Observable = "outputs",
    json: Json = False,
) -> int:
    """Print every parameter symmetry of MODEL, and what is rigid and why.

    A Hugging Face folder is read from its config.json alone: no weights are loaded.
    """

    def work() -> Any:
        with _stage(f"building {model}"):
            loaded = _load(model, weights=False)
        with _stage("tracing and inferring"), _held():
            from torchgauge import infer
            from torchgauge.report import view_group, view_why

            group = infer(loaded.model, loaded.args, loaded.kwargs, observable=observable)
            subject = _subject(loaded)
            return view_group(subject, group) if why is None else view_why(subject, group, why)

    from torchgauge.report import render_inspect, render_why

    return _show(work, render_inspect if why is None else render_why, json, lambda view: HOLDS)


@app.command
def certify(
    model: Model,
    /,
    *,
    twin: Annotated[str | None, Parameter(help="A small MODEL of the same architecture, for completeness.")] = None,
    observable: Observable = "outputs",
    seed: Annotated[int, Parameter(help="Seed of the random elements and inputs.")] = 0,
    json: Json = False,
) -> int:
    """Show by measurement that the symmetries of MODEL are right and that none is missing.

    Exit status 1 when the certificate does not hold.
    """

    def work() -> Any:
        with _stage(f"loading {model}"):
            loaded = _load(model, weights=True)
            small = _load(twin, weights=True) if twin else None
        with _stage("tracing, inferring and certifying") as tell, _held():
            from torchgauge import certify
            from torchgauge.report import view_certificate

            pair = small and (small.model, small.args, small.kwargs)
            how: dict[str, Any] = {"twin": pair, "observable": observable, "seed": seed, "tell": tell}
            certificate = certify(loaded.model, loaded.args, loaded.kwargs, **how)
            return view_certificate(_subject(loaded), certificate)

    from torchgauge.report import render_certify

    return _show(work, render_certify, json, lambda view: HOLDS if view.certificate.holds else ANSWERED_NO)


@app.command(name="check-rule")
def check_rule(
    operators: Annotated[tuple[str, ...], Parameter(help="aten.gelu, aten.gelu.default or library::operator.")] = (),
    /,
    *,
    load: Annotated[
        str | None, Parameter(name="--load", help="A module to import first: it registers operators or rules of yours.")
    ] = None,
    every: Annotated[bool, Parameter(name="--all", negative="", help="All operators that have a rule.")] = False,
    seed: Annotated[int, Parameter(help="Seed of the parameters and inputs.")] = 0,
    json: Json = False,
) -> int:
    """Check the rule of an operator against brute force: right, wrong or missing.

    Exit status 1 when a rule is not right.
    """

    def work() -> Any:
        from torchgauge.check_rule import check, import_module, registered, resolve
        from torchgauge.report.rules import RulesView

        if load is not None:
            import_module(load)
        names = registered() if every else list(operators)
        if not names:
            raise InputError("no operator is named", remedy="Name one, such as aten.gelu, or give --all.")
        for name in names:
            resolve(name)
        verdicts = []
        with _stage(f"checking {names[0]}") as tell, _held():
            for i, name in enumerate(names):
                tell(f"checking {name} ({i + 1} of {len(names)})")
                verdicts.append(check(name, seed=seed))
        return RulesView(tuple(verdicts))

    from torchgauge.report.rules import render_rules

    return _show(work, render_rules, json, lambda view: HOLDS if view.right else ANSWERED_NO)


# -- around the work -------------------------------------------------------------------------------------------
def _show(
    work: Callable[[], Any],
    render: Callable[[Any], RenderableType],
    as_json: bool,
    status: Callable[[Any], int],
) -> int:
    # What a user's model prints while it is built belongs to the side channel.
    with contextlib.redirect_stdout(sys.stderr):
        view = work()
    if as_json:
        print(json.dumps(_plain(view.to_dict()), allow_nan=False))
    else:
        from torchgauge.report import console

        console().print(render(view))
    for note in view.subject.notes if hasattr(view, "subject") else ():
        _say(f"note: {note}")
    return status(view)


def _load(spec: str, *, weights: bool) -> Loaded:
    from torchgauge.load import load

    return load(spec, weights=weights)


def _subject(loaded: Loaded) -> Subject:
    from torchgauge.report import Subject

    parameters = list(loaded.model.parameters())
    inputs = {f"args[{i}]": _shape(value) for i, value in enumerate(loaded.args)}
    inputs |= {name: _shape(value) for name, value in loaded.kwargs.items()}
    name = type(loaded.model).__name__
    return Subject(loaded.spec, name, sum(p.numel() for p in parameters), len(parameters), inputs, loaded.notes)


def _shape(value: Any) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{str(value.dtype).removeprefix('torch.')}[{', '.join(map(str, value.shape))}]"
    return type(value).__name__


def _plain(value: Any) -> Any:
    """JSON's own types: no numpy or torch scalars, and null where a number is not finite."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return value if isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


@contextlib.contextmanager
def _stage(text: str) -> Iterator[Callable[[str], None]]:
    """A spinner on a terminal; elsewhere a plain line now and then, when the work turns out to be long.

    Yields a function that takes what is being done.
    """
    stream = sys.stderr
    if stream.isatty():
        from rich.console import Console

        with Console(file=stream).status(text) as status:
            yield status.update
        return
    timer = Timer(PATIENCE, _say, [f"{text} …", stream])
    timer.daemon = True
    timer.start()
    last = monotonic()

    def tell(what: str) -> None:
        nonlocal last
        if monotonic() - last > REMINDER:
            last = monotonic()
            _say(f"{what} …", stream)

    try:
        yield tell
    finally:
        timer.cancel()


@contextlib.contextmanager
def _held() -> Iterator[None]:
    """Holds back standard error: torch.export prints the graph so far before it raises what the panel will say."""
    held = io.StringIO()
    try:
        with contextlib.redirect_stderr(held):
            yield
    except TorchGaugeError:
        held.truncate(0)
        raise
    finally:
        sys.stderr.write(held.getvalue())


def _say(text: str, stream: TextIO | None = None) -> None:
    print(text, file=stream or sys.stderr, flush=True)


# -- entry -----------------------------------------------------------------------------------------------------
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line and leaves with its exit status."""
    sys.exit(run(argv))


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is ever downloaded
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    logged = logging.root.manager.disable
    logging.disable()  # libraries log at length before they raise; the panel says it once
    try:
        status = app(argv, exit_on_error=False, print_error=False, result_action="return_value")
    except TorchGaugeError as error:
        return _panel(error)
    except CycloptsError as error:
        remedy = "torchgauge --help lists the commands and their options."
        return _panel(InputError(str(error).strip(), remedy=remedy))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader went away; keep the interpreter from failing again on the way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return HOLDS
    except Exception:
        import traceback

        traceback.print_exc()
        _say("This is an error in torchgauge, not in your model: please report it with the lines above.")
        return INTERNAL
    finally:
        logging.disable(logged)
    return status if isinstance(status, int) else HOLDS


def _panel(error: TorchGaugeError) -> int:
    from torchgauge.report import console, render_error

    console(stderr=True).print(render_error(error))
    return BAD_INPUT


if __name__ == "__main__":
    main()
