"""Laws made of laws: mixtures, blocks, densities of invariants, complex laws from two real ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from torchgauge.fields.errors import LawError
from torchgauge.fields.laws.base import Invariance, Kind, Law, Shape, closed, real_dtype
from torchgauge.fields.laws.entries import Normal, least
from torchgauge.fields.laws.library import as_law


@dataclass(frozen=True)
class Mixture(Law):
    """A law drawn at random from several, once for a whole network, or for every entry by itself.

    Args:
        laws: the components.
        weights: their probabilities; equal by default.
        each: "network" draws one component for the whole tensor, which correlates its entries; "entry" one for each.
    """

    laws: Sequence[Law]
    weights: Sequence[float] = ()
    each: Literal["network", "entry"] = "network"

    def __post_init__(self) -> None:
        object.__setattr__(self, "laws", [as_law(law) for law in self.laws])
        if not self.laws or (self.weights and len(self.weights) != len(self.laws)):
            raise LawError("a mixture needs laws, and one weight for each", remedy="Mixture([a, b], [0.3, 0.7])")
        if self.weights and not (min(self.weights) >= 0 and sum(self.weights) > 0):
            raise LawError(f"weights {self.weights} of a mixture", remedy="weights are not negative, and not all zero")

    def _weights(self) -> list[float]:
        raw = list(self.weights) or [1.0] * len(self.laws)
        return [w / sum(raw) for w in raw]

    def sample(
        self, count: int, shape: Shape, generator: torch.Generator, dtype: torch.dtype = torch.float64
    ) -> Tensor:
        picked = (count, *((1,) * len(shape) if self.each == "network" else shape))
        edges = torch.tensor(self._weights(), dtype=torch.float64).cumsum(0)[:-1]
        choice = torch.bucketize(torch.rand(picked, generator=generator, dtype=torch.float64), edges, right=True)
        draws = [law.sample(count, shape, generator, dtype) for law in self.laws]
        out = draws[0]
        for i, draw in enumerate(draws[1:], 1):
            out = torch.where(choice == i, draw, out)
        return out

    def moment_order(self) -> float:
        return least([law.moment_order() for law in self.laws])

    def invariances(self, shape: Shape, dtype: torch.dtype = torch.float64) -> frozenset[Invariance]:
        common = frozenset.intersection(*(law.invariances(shape, dtype) for law in self.laws))
        if self.each == "network":
            return common
        keep = {Kind.PERMUTATIONS, Kind.SIGNS, Kind.PHASES, Kind.TRANSLATIONS}
        alike = all(law.independent(shape, a) for law in self.laws for a in range(len(shape)))
        return closed(one for one in common if alike and one.kind in keep)

    def independent(self, shape: Shape, axis: int) -> bool:
        if self.each == "entry":
            return all(law.independent(shape, axis) for law in self.laws)
        return len(self.laws) == 1 and self.laws[0].independent(shape, axis)

    def moment(self, order: int) -> float | None:
        parts = [law.moment(order) for law in self.laws]
        if (self.each == "network" and len(self.laws) > 1) or any(p is None for p in parts):
            return None
        return sum(w * p for w, p in zip(self._weights(), parts, strict=True) if p is not None)


@dataclass(frozen=True)
class Blocks(Law):
    """Independent laws side by side along one axis: `Blocks([(3, Normal(1.0, 0.2)), (7, Normal())], axis=0)`."""

    parts: Sequence[tuple[int, Law]]
    axis: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", [(size, as_law(law)) for size, law in self.parts])
        if not self.parts or min(size for size, _ in self.parts) < 1:
            raise LawError("blocks need parts of positive sizes", remedy="Blocks([(2, a), (3, b)])")

    def _shapes(self, shape: Shape) -> list[tuple[int, Shape, Law]]:
        axis, start, out = self.axis % len(shape), 0, []
        for size, law in self.parts:
            out.append((start, (*shape[:axis], size, *shape[axis + 1 :]), law))
            start += size
        if start != shape[axis]:
            raise LawError(f"blocks of {start} on an axis of {shape[axis]}", remedy="let the sizes add up to the axis")
        return out

    def sample(
        self, count: int, shape: Shape, generator: torch.Generator, dtype: torch.dtype = torch.float64
    ) -> Tensor:
        draws = [law.sample(count, part, generator, dtype) for _, part, law in self._shapes(shape)]
        return torch.cat(draws, self.axis % len(shape) + 1)

    def moment_order(self) -> float:
        return least([law.moment_order() for _, law in self.parts])

    def invariances(self, shape: Shape, dtype: torch.dtype = torch.float64) -> frozenset[Invariance]:
        axis = self.axis % len(shape)
        parts = [(start, law.invariances(part, dtype)) for start, part, law in self._shapes(shape)]
        common = frozenset.intersection(*(found for _, found in parts))
        out = [one for one in common if one.axis != axis]
        for start, found in parts:
            out += [Invariance(o.kind, axis, o.start + start, o.stop + start) for o in found if o.axis == axis]
        signs = Kind.SIGNS
        if all(Invariance(signs, axis, 0, n) in f for (_, f), (n, _) in zip(parts, self.parts, strict=True)):
            out.append(Invariance(signs, axis, 0, shape[axis]))
        return closed(out)

    def independent(self, shape: Shape, axis: int) -> bool:
        if axis % len(shape) == self.axis % len(shape):
            return len(self.parts) == 1 and self.parts[0][1].independent(shape, axis)
        return all(law.independent(part, axis) for _, part, law in self._shapes(shape))


@dataclass(frozen=True)
class Density(Law):
    """p(W) ∝ base(W) exp(−energy(I(W))), the energy a function of an invariant: correlated entries, drawn exactly.

    Drawn by rejection, with no Markov chain: a draw of `base` is kept with probability exp(floor − energy).

    Args:
        base: the law to start from.
        energy: takes the invariant of a batch and returns [batch].
        of: what the energy sees. "norm": Σ|w|² [batch]. "gram": W†W [batch, n, n] of a matrix [m, n], blind to
            rotations of axis 0. "cogram": W W† [batch, m, m], blind to rotations of axis 1. "entries": W itself.
        floor: a lower bound of the energy.
        tries: give up when fewer than one draw in `tries` is kept.

    The law is invariant under what leaves both `base` and the invariant alone; that is how it is declared.

    Raises:
        LawError: an energy below its floor, of the wrong shape, or so large that nothing is kept.
    """

    base: Law
    energy: Callable[[Tensor], Tensor]
    of: Literal["norm", "gram", "cogram", "entries"] = "norm"
    floor: float = 0.0
    tries: int = 100_000

    def __post_init__(self) -> None:
        object.__setattr__(self, "base", as_law(self.base))

    def invariant_of(self, w: Tensor) -> Tensor:
        """The invariant [batch, ...] that the energy sees, of parameters [batch, *shape]."""
        if self.of == "norm":
            return w.abs().square().flatten(1).sum(1)
        if self.of == "entries":
            return w
        if w.ndim != 3:
            raise LawError(f"the {self.of} matrix of a parameter that is no matrix", remedy='use of="norm"')
        return w.mH @ w if self.of == "gram" else w @ w.mH

    def sample(
        self, count: int, shape: Shape, generator: torch.Generator, dtype: torch.dtype = torch.float64
    ) -> Tensor:
        kept, have, tried = [], 0, 0
        while have < count:
            size = max(16, min(4 * count, 1 + int(1.2 * (count - have) * (tried + 1) / (have + 1))))
            draw = self.base.sample(size, shape, generator, dtype)
            energy = self.energy(self.invariant_of(draw))
            if energy.shape != (size,) or energy.is_complex():
                raise LawError(f"an energy of shape {list(energy.shape)}", remedy="return one real number per network")
            if not bool((energy >= self.floor).all()):
                low = float(energy.min())
                raise LawError(f"an energy of {low:g} lies below its floor {self.floor:g}", remedy="lower the floor")
            odds = torch.exp(self.floor - energy.double())
            good = torch.rand(size, generator=generator, dtype=torch.float64) < odds
            have, tried = have + int(good.sum()), tried + size
            if bool(good.any()):
                kept.append(draw[good])
            if tried > self.tries * (have + 1):
                raise LawError("almost no draw is kept", remedy="take a base nearer to the density, or a higher floor")
        return torch.cat(kept)[:count]

    def moment_order(self) -> float:
        return self.base.moment_order()

    def invariances(self, shape: Shape, dtype: torch.dtype = torch.float64) -> frozenset[Invariance]:
        blind = {"norm": range(len(shape)), "gram": (0,), "cogram": (1,), "entries": ()}[self.of]
        found = [o for o in self.base.invariances(shape, dtype) if o.axis in blind]
        return closed(found)


@dataclass(frozen=True)
class Complex(Law):
    """A complex parameter whose real and imaginary parts are independent, each with a law of its own.

    Real matrices leave it invariant where both laws are. Unitary ones do not, unless both are normal laws of one width:
    rotation-invariant parts alone are not enough (docs/symmetry_by_duality.md).
    """

    real: Law
    imaginary: Law

    def __post_init__(self) -> None:
        object.__setattr__(self, "real", as_law(self.real))
        object.__setattr__(self, "imaginary", as_law(self.imaginary))

    def sample(
        self, count: int, shape: Shape, generator: torch.Generator, dtype: torch.dtype = torch.complex128
    ) -> Tensor:
        if not dtype.is_complex:
            raise LawError("a law of complex numbers on a real parameter", remedy="make the parameter complex")
        parts = [law.sample(count, shape, generator, real_dtype(dtype)) for law in (self.real, self.imaginary)]
        return torch.complex(*parts)

    def moment_order(self) -> float:
        return least([self.real.moment_order(), self.imaginary.moment_order()])

    def invariances(self, shape: Shape, dtype: torch.dtype = torch.complex128) -> frozenset[Invariance]:
        a, b = self.real, self.imaginary
        real = real_dtype(dtype)
        common = a.invariances(shape, real) & b.invariances(shape, real)
        common = frozenset(one for one in common if one.kind is not Kind.TRANSLATIONS)
        if isinstance(a, Normal) and isinstance(b, Normal) and _same(a.std, b.std):
            circular = Normal(a.std, 0.0).invariances(shape, torch.complex128)
            centred = Normal(0.0, _joined(a.mean, b.mean)).invariances(shape, torch.complex128)
            common |= circular & centred
        return closed(common)

    def independent(self, shape: Shape, axis: int) -> bool:
        return self.real.independent(shape, axis) and self.imaginary.independent(shape, axis)


def _same(a: float | Tensor, b: float | Tensor) -> bool:
    a, b = torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64)
    return a.shape == b.shape and bool((a == b).all())


def _joined(a: float | complex | Tensor, b: float | complex | Tensor) -> Tensor:
    return torch.as_tensor(a) + 1j * torch.as_tensor(b)
