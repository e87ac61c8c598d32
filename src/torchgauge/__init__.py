"""Find, certify and use the parameter symmetries of PyTorch models.

    import torchgauge as tg

    group = tg.infer(model, (x,))
    disguised = group.act(group.random(), model.state_dict())
    print(tg.certify(model, (x,)))

Importing this package imports no torch: each public name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchgauge import errors, fields, learn, ode
    from torchgauge.certify import Certificate, certify
    from torchgauge.gauge import Element, GaugeGroup
    from torchgauge.infer import infer
    from torchgauge.values import Factor

__version__ = "0.1.0"

__all__ = [
    "Certificate",
    "Element",
    "Factor",
    "GaugeGroup",
    "__version__",
    "certify",
    "errors",
    "fields",
    "infer",
    "learn",
    "ode",
]

_HOME = {
    "infer": "torchgauge.infer",
    "GaugeGroup": "torchgauge.gauge",
    "Factor": "torchgauge.values",
    "Element": "torchgauge.gauge",
    "certify": "torchgauge.certify",
    "Certificate": "torchgauge.certify",
}
_MODULES = ("errors", "fields", "learn", "ode")


class _Package(ModuleType):
    """Keeps `torchgauge.certify` the verb: importing the module of the same name does not hide it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"torchgauge.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'torchgauge' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


sys.modules[__name__].__class__ = _Package
