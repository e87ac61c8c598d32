"""The registry of rules: one function per operator family, found by operator.

A rule takes the `Lowering` and the operator's arguments in schema order, tensors replaced by symbolic `Tensor`s, and
returns the symbolic result. It returns `NotImplemented` for arguments that it does not cover: the operator is then
decomposed, and only if that fails too becomes opaque.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch._ops import OpOverload, OpOverloadPacket

Rule = Callable[..., Any]
R = TypeVar("R", bound=Rule)

_RULES: dict[str, Rule] = {}


def rule(*operators: OpOverload | OpOverloadPacket) -> Callable[[R], R]:
    """Register a rule for operators. A packet (`torch.ops.aten.add`) stands for all its overloads.

    Raises:
        ValueError: an operator has a rule already.
    """

    def register(function: R) -> R:
        for operator in operators:
            key = _key(operator)
            if key in _RULES:
                raise ValueError(f"{key} has a rule already: {_RULES[key].__name__}")
            _RULES[key] = function
        return function

    return register


def find(operator: object) -> Rule | None:
    """The rule of an operator; in-place and out variants follow their base operator."""
    if not isinstance(operator, OpOverload):
        return None
    packet, overload = operator.overloadpacket._qualified_op_name, operator._overloadname
    packets = [packet, packet[:-1]] if is_inplace(operator) else [packet]
    bases = [overload, overload.removesuffix("_out"), *(["default"] if overload == "out" else [])]
    keys = [key for name in packets for key in (*(f"{name}.{base}" for base in bases), name)]
    return next((_RULES[key] for key in keys if key in _RULES), None)


def covered() -> frozenset[str]:
    """The names of all operators (or packets) that have a rule."""
    return frozenset(_RULES)


def is_inplace(operator: object) -> bool:
    """True for `aten.add_` and its like, whose first argument is overwritten by the result."""
    if not isinstance(operator, OpOverload):
        return False
    name = operator.overloadpacket.__name__
    return name.endswith("_") and not name.endswith("__") and name != "_"


def operators(*names: str) -> list[OpOverloadPacket]:
    """The operators of these names that this version of torch has ("aten" unless a namespace is given)."""
    found = []
    for name in names:
        namespace, _, short = name.rpartition("::")
        space = getattr(torch.ops, namespace or "aten")
        if hasattr(space, short):
            found.append(getattr(space, short))
    return found


def _key(operator: OpOverload | OpOverloadPacket) -> str:
    if isinstance(operator, OpOverload):
        return f"{operator.overloadpacket._qualified_op_name}.{operator._overloadname}"
    return operator._qualified_op_name
