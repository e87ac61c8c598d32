"""Tiny models of the architectures of transformers, from their default configurations, with inputs that fit.

No table of architectures: a configuration is shrunk by what its keys are called (`tiny_sizes.py`), inputs are made by
what the arguments of `forward` are called (`tiny_inputs.py`), and of a few sizes on which the model runs a small one is
taken.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tiny_inputs import SENSES, VOCABULARY, candidates, find, parts
from tiny_overrides import overridden
from tiny_sizes import by_role, by_twin, cleaned
from tiny_squeeze import squeezed
from torch import Tensor, nn

from torchgauge.capture import call_of, plain_layers
from torchgauge.nesting import observe

# what is small enough to stop shrinking, what can be certified completely, and what is too large to try at all
QUICK, SMALL, LARGE = 1600, 6000, 3_000_000
# above this many, smaller sizes are searched for one by one
ROOMY = 3000
# so many sizes that run are compared before that is good enough
TRIED = 2


class NotBuilt(Exception):
    """No size at which the default configuration makes a model that runs; the message is the first error."""


class TooLarge(NotBuilt):
    """Too many parameters to try."""


@dataclass(frozen=True)
class Tiny:
    """A model that runs.

    Attributes:
        model: in evaluation mode, float32, on the CPU.
        inputs: keyword inputs; several, if it runs on several sets of inputs, the one that reads most first.
        size: how the configuration was shrunk.
    """

    model: nn.Module
    inputs: tuple[dict[str, Tensor], ...]
    size: str

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())


# -- configurations --------------------------------------------------------------------------------------------
SIZES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "twin, 2 layers": by_twin(2),
    "twin, 1 layer": by_twin(1),
    "width 8": by_role(),
    "width 8, image 32": by_role(image=32),
    "width 8, image 64": by_role(image=64),
    "width 8, all stages": by_role(stages=0),
    "width 8, all stages, patch 16": by_role(stages=0, patch=16, image=64),
    "width 8, head 16": by_role(head_dim=16),
    "width 8, filled": by_role(filled=True),
    "width 8, 4 heads": by_role(heads=4, head_dim=2, groups=4, inner=8),
    "width 16": by_role(width=16, head_dim=8, positions=64),
    "width 16, 2 layers, image 64": by_role(width=16, head_dim=8, layers=2, image=64, patch=8, positions=128),
    "width 32": by_role(width=32, heads=4, head_dim=8, image=64, patch=16, positions=512, inner=32, groups=4),
    "width 32, 2 layers": by_role(width=32, heads=4, head_dim=8, layers=2, image=64, patch=16, positions=512, groups=4),
}


def small_config(cls: Any, how: Callable[[dict[str, Any]], dict[str, Any]], tokens: int = VOCABULARY) -> Any:
    """A small configuration of a class of configurations, with so many tokens."""
    return _config(cls, overridden(_with_tokens(how(cleaned(cls().to_dict())), tokens)))


def _with_tokens(raw: dict[str, Any], tokens: int) -> dict[str, Any]:
    wide = {k: _with_tokens(v, tokens) if isinstance(v, dict) else v for k, v in raw.items()}
    return wide | ({"vocab_size": tokens} if raw.get("vocab_size") == VOCABULARY else {})


def _config(cls: Any, raw: dict[str, Any]) -> Any:
    config = cls.from_dict(cleaned(raw))
    for part in parts(config):
        if hasattr(part, "_experts_implementation"):
            part._experts_implementation = "eager"
    return config


# for models that are too large at all of those
NARROW: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "width 8, 2 layers": by_role(layers=2),
    "width 4": by_role(width=4, head_dim=2, inner=4),
    "width 4, 2 layers": by_role(width=4, head_dim=2, inner=4, layers=2),
}
# for models of which one layer is not enough
DEEP: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "twin, 2 layers": by_twin(2),
    "width 8, 2 layers": by_role(layers=2),
    "width 8, 2 layers, image 32": by_role(layers=2, image=32),
    "width 8, 2 layers, filled": by_role(layers=2, filled=True),
}


def tiny(model_class: type[nn.Module], config_class: Any, deep: bool = False, tokens: int = VOCABULARY) -> Tiny:
    """The smallest model of a class that runs.

    Args:
        model_class: of transformers.
        config_class: its configuration.
        deep: with two layers of each kind at least.
        tokens: size of the vocabulary.

    Raises:
        NotBuilt: it runs at no size.
    """
    found: list[Tiny] = []
    errors: list[str] = []
    large: list[dict[str, Any]] = []
    for name, how in (DEEP if deep else SIZES | NARROW).items():
        if not deep and name in NARROW and min((t.parameters for t in found), default=LARGE) <= SMALL:
            break
        try:
            config = small_config(config_class, how, tokens)
            model = _build(model_class, config)
            inputs = _running(model)
            found.append(Tiny(model, inputs, name))
        except TooLarge as error:
            large.append(config.to_dict())
            errors.append(one_line(error))
            continue
        except Exception as error:  # a configuration of odd sizes fails anywhere
            errors.append(one_line(error))
            continue
        if found[-1].parameters <= (QUICK if len(found) < TRIED else ROOMY):
            break
    best = min(found, key=lambda t: t.parameters, default=None)
    if best is not None and (deep or best.parameters <= ROOMY):
        return best
    for raw in [best.model.config.to_dict()] if best is not None else large[-1:]:
        with contextlib.suppress(Exception):
            best = _squeezed(model_class, config_class, raw)
    if best is None:
        raise NotBuilt(" | ".join(dict.fromkeys(errors)))
    return best


def _squeezed(model_class: type[nn.Module], config_class: Any, raw: dict[str, Any]) -> Tiny:
    """A smaller model than that of a configuration, which may be too large to run."""

    def config(raw: dict[str, Any]) -> Any:
        return _config(config_class, overridden(raw))

    def count(raw: dict[str, Any]) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in model_class(config(raw)).parameters())

    def runs(raw: dict[str, Any]) -> bool:
        return count(raw) > LARGE or bool(_running(_build(model_class, config(raw))))

    model = _build(model_class, config(squeezed(raw, count, runs, ROOMY)))
    return Tiny(model, _running(model), "squeezed")


def _build(model_class: Any, config: Any) -> nn.Module:
    with contextlib.suppress(TypeError, ValueError, RuntimeError, NotImplementedError, AttributeError):
        # some constructors compute with numbers, which the meta device has not
        with torch.device("meta"):
            count = sum(p.numel() for p in model_class(config).parameters())
        if count > LARGE:
            raise TooLarge(f"{count} parameters at small sizes")
    torch.manual_seed(0)
    model = model_class(config).to(torch.float32).eval()
    count = sum(p.numel() for p in model.parameters())
    if count > LARGE:
        raise TooLarge(f"{count} parameters at small sizes")
    return model


def one_line(error: BaseException) -> str:
    """Kind and first line of an error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].endswith(":"):
        lines[0] += " " + lines[1]
    return f"{type(error).__name__}: {lines[0][:240]}" if lines else type(error).__name__


# -- models ----------------------------------------------------------------------------------------------------
def _running(model: nn.Module) -> tuple[dict[str, Tensor], ...]:
    """The inputs among the candidates on which the model runs: the first; then, for further tries where it cannot be
    exported with those, one of fewer kinds, and one with an attention mask.

    Raises:
        the error of the first candidate, if it runs on none.
    """
    found: list[dict[str, Tensor]] = []
    first: Exception | None = None
    for inputs in candidates(model):
        if found and set(inputs) >= set(found[0]):
            continue
        try:
            run(model, inputs)
            found.append(inputs)
        except Exception as error:  # any model code
            first = first or error
            more = _with_placeholders(model, inputs, error) or _as_wide(inputs, error)
            if more is not None:
                with contextlib.suppress(Exception):
                    run(model, more)
                    found.append(more)
        if found and (len(found) == 2 or not set(SENSES) & set(found[0]) or "input_ids" not in found[0]):
            break
    if not found:
        raise first or NotBuilt("no inputs to try")
    if "input_ids" in found[0] and "attention_mask" not in found[0]:
        masked = found[0] | {"attention_mask": torch.ones_like(found[0]["input_ids"])}
        with contextlib.suppress(Exception):  # some models have a branch for no mask that cannot be traced
            run(model, masked)
            found.append(masked)
    return tuple(found)


def run(model: nn.Module, inputs: dict[str, Tensor]) -> None:
    """Calls the model once; it must return a finite floating tensor."""
    call = call_of(model, (), inputs)
    with torch.no_grad(), plain_layers(model):
        observed, _ = observe(model(*call.args, **call.kwargs))
    if not observed:
        raise NotBuilt("the model returns no floating tensor")


def _with_placeholders(model: nn.Module, inputs: dict[str, Tensor], error: Exception) -> dict[str, Tensor] | None:
    """Inputs with as many placeholder tokens as the model says that it has features of a picture or a sound."""
    counts = re.findall(r"features:? *(?:shape )?\[?(\d+)|tokens:? *(\d+)", str(error))
    if "input_ids" not in inputs or len(counts) < 2 or "match" not in str(error):
        return None
    features = max(int(n) for pair in counts for n in pair if n)
    kind = "image" if "pixel_values" in inputs else "audio"
    token = find(model.config, f"{kind}_token_id", f"{kind}_token_index", "image_token_index")
    each = features // len(inputs["input_ids"])
    if token is None or not 0 < each <= 512:
        return None
    ids = inputs["input_ids"]
    places = torch.full((len(ids), each), int(token))
    longer = torch.cat([ids[:, :2], places, ids[:, 2:]], dim=1)
    return (
        inputs
        | {"input_ids": longer}
        | ({"attention_mask": torch.ones_like(longer)} if "attention_mask" in inputs else {})
    )


def _as_wide(inputs: dict[str, Tensor], error: Exception) -> dict[str, Tensor] | None:
    """Inputs as wide as the first matrix that reads them, which is computed from other sizes."""
    widths = re.search(r"cannot be multiplied \(\d+x(\d+) and (\d+)x\d+\)", str(error))
    if widths is None:
        return None
    had, wanted = map(int, widths.groups())
    generator = torch.Generator().manual_seed(0)
    wider = {
        name: torch.randn(*value.shape[:-1], wanted, generator=generator)
        for name, value in inputs.items()
        if value.is_floating_point() and value.shape[-1] == had
    }
    return inputs | wider if wider else None
