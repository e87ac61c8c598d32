"""Every network of the zoo, by name."""

from __future__ import annotations

from tests.zoo import (
    attention,
    blocks,
    constants,
    convolution,
    edges,
    families,
    heads,
    kernels,
    models,
    normalization,
    padded,
    reaches,
    recurrent,
    vision,
)
from tests.zoo.case import Case

BLOCKS: tuple[Case, ...] = (
    *blocks.CASES,
    *normalization.CASES,
    *attention.CASES,
    *convolution.CASES,
    *families.CASES,
    *heads.CASES,
    *recurrent.CASES,
    *kernels.CASES,
    *reaches.CASES,
    *edges.CASES,
    *padded.CASES,
    *constants.CASES,
)
MODELS: tuple[Case, ...] = (*models.CASES, *vision.CASES)
CASES: dict[str, Case] = {c.name: c for c in (*BLOCKS, *MODELS)}
assert len(CASES) == len(BLOCKS) + len(MODELS), "a name is used twice"
