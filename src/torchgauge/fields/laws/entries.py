"""Laws with independent entries: normal, uniform, truncated normal, fixed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torchgauge.fields.errors import LawError
from torchgauge.fields.laws.base import Invariance, Kind, Law, Shape, closed, real_dtype, standard_normal, whole


@dataclass(frozen=True, eq=False)
class Normal(Law):
    """Independent normal entries; for a complex parameter circular ones, E|w|² = std² about the mean.

    Args:
        std: standard deviation, a number or a tensor that broadcasts to the parameter; zero is allowed.
        mean: likewise.

    Raises:
        LawError: a negative or non-finite standard deviation.
    """

    std: float | Tensor = 1.0
    mean: float | complex | Tensor = 0.0

    def __post_init__(self) -> None:
        std = self.std if isinstance(self.std, Tensor) else torch.tensor(self.std, dtype=torch.float64)
        if std.is_complex() or not bool((torch.isfinite(std) & (std >= 0)).all()):
            raise LawError(f"a normal law has the standard deviation {self.std}", remedy="give real numbers ≥ 0")

    def sample(
        self, count: int, shape: Shape, generator: torch.Generator, dtype: torch.dtype = torch.float64
    ) -> Tensor:
        draw = standard_normal((count, *shape), generator, dtype)
        if not isinstance(self.std, Tensor) and not isinstance(self.mean, Tensor) and self.mean == 0:
            return draw.mul_(self.std)
        std = self._broadcast(self.std, shape, real_dtype(dtype))
        return draw * std + self._broadcast(self.mean, shape, dtype)

    def moment_order(self) -> float:
        return math.inf

    def invariances(self, shape: Shape, dtype: torch.dtype = torch.float64) -> frozenset[Invariance]:
        """Rotations where the mean vanishes and slices have equal widths, permutations where slices are alike."""
        best = Kind.UNITARY if dtype.is_complex else Kind.ORTHOGONAL
        if not isinstance(self.std, Tensor) and not isinstance(self.mean, Tensor):
            return closed(whole(best if self.mean == 0 else Kind.PERMUTATIONS, shape))
        std = self._broadcast(self.std, shape, torch.float64)
        mean = self._broadcast(self.mean, shape, dtype if dtype.is_complex else torch.float64)
        found: list[Invariance] = []
        for axis, size in enumerate(shape):
            rows = torch.cat([mean.movedim(axis, 0).reshape(size, -1), std.movedim(axis, 0).reshape(size, -1)], 1)
            centred = (mean.movedim(axis, 0).reshape(size, -1) == 0).all(1)
            for start, stop in _runs([bool((rows[i] == rows[i - 1]).all()) for i in range(1, size)]):
                kind = best if bool(centred[start]) else Kind.PERMUTATIONS
                found.append(Invariance(kind, axis, start, stop))
            for start, stop in _runs([bool(centred[i] == centred[i - 1]) for i in range(1, size)]):
                if bool(centred[start]):
                    found.append(Invariance(Kind.PHASES if dtype.is_complex else Kind.SIGNS, axis, start, stop))
        return closed(found)

    def independent(self, shape: Shape, axis: int) -> bool:
        return self._alike(self.std, shape, axis) and self._alike(self.mean, shape, axis)

    def moment(self, order: int) -> float | None:
        if isinstance(self.std, Tensor) or isinstance(self.mean, Tensor | complex):
            return None
        total = 0.0
        for k in range(0, order + 1, 2):
            total += math.comb(order, k) * math.prod(range(1, k, 2)) * self.std**k * self.mean ** (order - k)
        return total

    @staticmethod
    def _broadcast(value: float | complex | Tensor, shape: Shape, dtype: torch.dtype) -> Tensor:
        value = torch.as_tensor(value, dtype=dtype)
        try:
            return value.expand(shape)
        except RuntimeError:
            raise LawError(
                f"a law of shape {list(value.shape)} does not fit a parameter of shape {list(shape)}",
                remedy="give numbers, or tensors that broadcast to the parameter",
            ) from None

    @classmethod
    def _alike(cls, value: float | complex | Tensor, shape: Shape, axis: int) -> bool:
        if not isinstance(value, Tensor):
            return True
        rows = cls._broadcast(value, shape, value.dtype).movedim(axis, 0)
        return bool((rows == rows[:1]).all())


@dataclass(frozen=True)
class Uniform(Law):
    """Independent entries, uniform on [low, high): on a circle of circumference high − low, if you look modulo it.

    Raises:
        LawError: an empty or infinite interval, or a complex parameter.
    """

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise LawError(f"a uniform law on [{self.low}, {self.high})", remedy="give finite numbers low < high")

    def sample(
        self, count: int, shape: Shape, generator: torch.Generator, dtype: torch.dtype = torch.float64
    ) -> Tensor:
        only_real(self, dtype)
        draw = torch.rand((count, *shape), generator=generator, dtype=dtype)
        return draw.mul_(self.high - self.low).add_(self.low)

    def moment_order(self) -> float:
        return math.inf

    def invariances(self, shape: Shape, dtype: torch.dtype = torch.float64) -> frozenset[Invariance]:
        found = [*whole(Kind.PERMUTATIONS, shape), Invariance(Kind.TRANSLATIONS, -1, period=self.high - self.low)]
        return closed(found + (whole(Kind.SIGNS, shape) if self.low == -self.high else []))

    def independent(self, shape: Shape, axis: int) -> bool:
        return True

    def moment(self, order: int) -> float:
        return (self.high ** (order + 1) - self.low ** (order + 1)) / ((order + 1) * (self.high - self.low))


@dataclass(frozen=True)
class TruncatedNormal(Law):
    """Independent normal entries, conditioned on low ≤ w ≤ high (the cuts are in units of w, not of std)."""

    std: float = 1.0
    low: float = -2.0
    high: float = 2.0

    def __post_init__(self) -> None:
        if not (self.std > 0 and math.isfinite(self.std) and self.low < self.high):
            raise LawError(f"not a truncated normal law: {self}", remedy="give std > 0 and low < high")
        if self._ends()[1] - self._ends()[0] < 1e-12:
            raise LawError(f"{self} keeps almost nothing of the normal law", remedy="cut nearer to zero")

    def _ends(self) -> tuple[float, float]:
        low, high = (0.5 * math.erfc(-cut / self.std / math.sqrt(2)) for cut in (self.low, self.high))
        return low, high

    def sample(
        self, count: int, shape: Shape, generator: torch.Generator, dtype: torch.dtype = torch.float64
    ) -> Tensor:
        only_real(self, dtype)
        a, b = self._ends()
        mass = torch.rand((count, *shape), generator=generator, dtype=torch.float64) * (b - a) + a
        return (self.std * torch.special.ndtri(mass)).clamp(self.low, self.high).to(dtype)

    def moment_order(self) -> float:
        return math.inf

    def invariances(self, shape: Shape, dtype: torch.dtype = torch.float64) -> frozenset[Invariance]:
        found = whole(Kind.PERMUTATIONS, shape)
        return closed(found + (whole(Kind.SIGNS, shape) if self.low == -self.high else []))

    def independent(self, shape: Shape, axis: int) -> bool:
        return True

    def moment(self, order: int) -> float:
        """By the recursion m_k = (k−1) m_{k−2} − [c^{k−1} φ(c)] / mass, in units of std."""
        a, b = self.low / self.std, self.high / self.std
        lower, upper = self._ends()

        def edge(c: float, k: int) -> float:
            return c ** (k - 1) * math.exp(-c * c / 2) / math.sqrt(2 * math.pi) if math.isfinite(c) else 0.0

        moments = [1.0]
        for k in range(1, order + 1):
            before = (k - 1) * moments[k - 2] if k > 1 else 0.0
            moments.append(before - (edge(b, k) - edge(a, k)) / (upper - lower))
        return moments[order] * self.std**order


def Fixed(value: float | complex | Tensor = 0.0) -> Normal:
    """The law of a parameter that does not fluctuate: a number, or a tensor that broadcasts."""
    return Normal(0.0, value)


def least(orders: list[float]) -> float:
    """The smallest order, unknown if any is."""
    return math.nan if any(math.isnan(o) for o in orders) else min(orders)


def only_real(law: Law, dtype: torch.dtype) -> None:
    """Refuse complex parameters."""
    if dtype.is_complex:
        raise LawError(f"{law} has no complex form", remedy="use Complex(real_law, imaginary_law), Normal or Sphere")


def _runs(equal_to_previous: list[bool]) -> list[tuple[int, int]]:
    """Maximal ranges of neighbours that are equal."""
    edges = [0, *(i + 1 for i, same in enumerate(equal_to_previous) if not same), len(equal_to_previous) + 1]
    return list(zip(edges[:-1], edges[1:], strict=True))
