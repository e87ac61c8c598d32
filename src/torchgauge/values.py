"""Plain values that describe a gauge group."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Factor:
    """One factor of the gauge group.

    Attributes:
        name: where it acts, for a reader.
        kind: "GL", "O", "O1" (rotations that fix the vector of ones), "complex" (one complex number per rotary pair),
            "turn" (one rotation per rotary pair), "permutation", "scale", "sign", "shift", "shear", "unreachable",
            "invisible" or "isospectral" (gains between two layer norms, along a curve).
        size: what one copy acts on: n for GL(n), O(n), S_n; else the number of scales, signs or shifts.
        copies: how many independent copies (heads, groups).
        dimension: of the Lie group, all copies together.
        components: its connected components as an exact product, e.g. {"8!": 2} for (8!)².
        parameters: names of the parameters (and batch-norm buffers) it moves.
        sources: places in the model's source where it arises.
        exact: False for a symmetry only as ε → 0.
    """

    name: str
    kind: str
    size: int
    copies: int
    dimension: int
    components: dict[str, int]
    parameters: tuple[str, ...]
    sources: tuple[str, ...] = ()
    exact: bool = True

    def to_dict(self) -> dict[str, object]:
        return {
            "name": self.name,
            "kind": self.kind,
            "size": self.size,
            "copies": self.copies,
            "dimension": self.dimension,
            "components": self.components,
            "parameters": list(self.parameters),
            "sources": list(self.sources),
            "exact": self.exact,
        }


@dataclass(frozen=True)
class Rigid:
    """Where frames were lost: which space, why, and the line of source."""

    space: str
    reason: str
    source: str

    def to_dict(self) -> dict[str, str]:
        return {"space": self.space, "reason": self.reason, "source": self.source}
