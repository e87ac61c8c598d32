"""Operators by name."""

from __future__ import annotations

import importlib
import sys
from difflib import get_close_matches
from pathlib import Path

import torch
from torch._ops import OpOverload, OpOverloadPacket

from torchgauge.errors import InputError
from torchgauge.rules import registry


def resolve(name: str) -> list[OpOverload]:
    """The overloads that a name means: of "aten.add" all that are functional, of "aten.add.Tensor" the one.

    Raises:
        InputError: there is no such operator.
    """
    namespace, short, overload = _parts(name)
    space = getattr(torch.ops, namespace)
    packet = getattr(space, short, None) if short else None
    if not isinstance(packet, OpOverloadPacket):
        raise _unknown(name, short)
    if overload:
        if overload not in packet.overloads():
            raise InputError(
                f"{namespace}.{short} has no overload {overload!r}", remedy=f"It has {', '.join(packet.overloads())}."
            )
        return [getattr(packet, overload)]
    every = [getattr(packet, o) for o in packet.overloads()]
    plain = [o for o in every if not o._schema.is_mutable and not any(a.is_out for a in o._schema.arguments)]
    ruled = [o for o in plain if registry.find(o) is not None and not _named(o)]
    return ruled or plain or every


def _parts(name: str) -> tuple[str, str, str]:
    pieces = name.replace("::", ".").removeprefix("torch.ops.").split(".")
    if len(pieces) == 1:
        pieces = ["aten", *pieces]
    namespace, short, overload = (*pieces, "", "")[:3]
    return namespace, short, overload


def _named(operator: OpOverload) -> bool:
    """Overloads with names of dimensions, which tensors rarely have, or with lists of strings."""
    return any("Dimname" in str(a.real_type) or "List[str]" in str(a.real_type) for a in operator._schema.arguments)


def import_module(name: str) -> None:
    """Imports a module of the user's, which registers operators or rules.

    Raises:
        InputError: it cannot be imported.
    """
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        importlib.import_module(name)
    except Exception as error:  # the user's module, any error at all
        what = f"importing {name} failed: {type(error).__name__}: {error}"
        raise InputError(
            what, remedy=f"Run from the folder that holds it, until `python -c 'import {name}'` runs."
        ) from error


def registered() -> list[str]:
    """The names of all operators that have a rule, "aten.add"."""
    return sorted({".".join(name.replace("::", ".").split(".")[:2]) for name in registry.covered()})


def _unknown(name: str, short: str) -> InputError:
    close = get_close_matches(f"aten.{short}", registered(), n=3, cutoff=0.6)
    meant = f"Did you mean {' or '.join(close)}? " if close else ""
    return InputError(
        f"there is no operator {name!r}",
        remedy=f"{meant}Write aten.gelu, aten.gelu.default or library::operator; --load imports the module that "
        "registers your own.",
    )
