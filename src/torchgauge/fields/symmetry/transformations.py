"""Transformations of networks, of their outputs f(x) ↦ R f(x) or of their inputs f(x) ↦ f(T x), by name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from torchgauge.errors import InputError
from torchgauge.fields.laws import Kind

Side = Literal["outputs", "inputs"]


@dataclass(frozen=True)
class Transformation:
    """A group of transformations of the outputs or of the inputs.

    Attributes:
        name: "SO(D)", "SO(d)", "translation", "SU(D)", "permutations of outputs", "signs of outputs",
            "permutations of inputs" or "signs of inputs"; D counts outputs, d inputs.
        side: what is transformed.
        kind: the group.
    """

    name: str
    side: Side
    kind: Kind

    def __str__(self) -> str:
        return self.name

    @property
    def symbol(self) -> str:
        """How one element is written in a derivation."""
        letters = {Kind.PERMUTATIONS: "P", Kind.SIGNS: "S", Kind.SPECIAL_UNITARY: "U"}
        return letters.get(self.kind, "R")

    def trivial(self, size: int) -> bool:
        """Whether the group has one element on `size` coordinates."""
        return size < 1 or (size == 1 and self.kind not in (Kind.SIGNS, Kind.TRANSLATIONS))

    def generators(self, size: int, generator: torch.Generator) -> list[Tensor]:
        """Elements that generate the group, or a dense subgroup, as matrices [size, size]; vectors [size] if
        translations.

        Rotations: two generic elements generate a dense subgroup of SO(n) and of SU(n), n ≥ 2. Permutations: a
        transposition of neighbours and a cycle. Signs: one flip of each coordinate. Translations: size + 1 generic
        vectors.
        """
        if self.kind is Kind.TRANSLATIONS:
            return list(torch.randn(size + 1, size, generator=generator, dtype=torch.float64))
        eye = torch.eye(size, dtype=torch.float64)
        if self.kind is Kind.SIGNS:
            return [eye - 2 * torch.outer(e, e) for e in eye]
        if self.kind is Kind.PERMUTATIONS:
            swap = eye[[1, 0, *range(2, size)]] if size > 1 else eye
            return [swap, eye.roll(1, 0)] if size > 2 else [swap]
        dtype = torch.complex128 if self.kind is Kind.SPECIAL_UNITARY else torch.float64
        return [_special(size, dtype, generator) for _ in range(2)]


ROTATIONS_OF_OUTPUTS = Transformation("SO(D)", "outputs", Kind.SPECIAL_ORTHOGONAL)
ROTATIONS_OF_INPUTS = Transformation("SO(d)", "inputs", Kind.SPECIAL_ORTHOGONAL)
TRANSLATIONS = Transformation("translation", "inputs", Kind.TRANSLATIONS)
UNITARY = Transformation("SU(D)", "outputs", Kind.SPECIAL_UNITARY)
PERMUTATIONS_OF_OUTPUTS = Transformation("permutations of outputs", "outputs", Kind.PERMUTATIONS)
SIGNS_OF_OUTPUTS = Transformation("signs of outputs", "outputs", Kind.SIGNS)
PERMUTATIONS_OF_INPUTS = Transformation("permutations of inputs", "inputs", Kind.PERMUTATIONS)
SIGNS_OF_INPUTS = Transformation("signs of inputs", "inputs", Kind.SIGNS)

TRANSFORMATIONS = (
    ROTATIONS_OF_OUTPUTS,
    ROTATIONS_OF_INPUTS,
    TRANSLATIONS,
    UNITARY,
    PERMUTATIONS_OF_OUTPUTS,
    SIGNS_OF_OUTPUTS,
    PERMUTATIONS_OF_INPUTS,
    SIGNS_OF_INPUTS,
)


def transformation(name: str | Transformation) -> Transformation:
    """The transformation of a name.

    Raises:
        InputError: there is none of that name.
    """
    if isinstance(name, Transformation):
        return name
    for one in TRANSFORMATIONS:
        if one.name == name:
            return one
    raise InputError(f"there is no transformation {name!r}", "", f"Give one of {', '.join(map(str, TRANSFORMATIONS))}.")


def transformations(names: Iterable[str | Transformation] | None) -> tuple[Transformation, ...]:
    """Those of the names, or all."""
    return TRANSFORMATIONS if names is None else tuple(transformation(n) for n in names)


def _special(size: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Haar on SO(n) or SU(n): QR of a Gaussian matrix with its signs fixed, one column turned to determinant one."""
    q, r = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=dtype))
    diagonal = torch.diagonal(r)
    q = q * (diagonal / diagonal.abs())
    q[:, 0] = q[:, 0] / torch.linalg.det(q)
    return q
