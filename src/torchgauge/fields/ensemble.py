"""Ensembles of networks: an architecture, and a declared distribution over its parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributions as td

from torchgauge.errors import InputError
from torchgauge.fields.errors import LawError, MomentError
from torchgauge.fields.laws import Law, as_law
from torchgauge.fields.laws.base import Shape
from torchgauge.fields.stacking import stacked_call

Key = str | tuple[str, ...]
_BLOCK_NUMBERS = 2**19  # numbers per block of networks: the unit of reproducibility
_CACHE_NUMBERS = 2**19  # numbers of one layer that are evaluated together
_BATCH_NUMBERS = 2**21  # numbers that a batch of networks may hold


class Ensemble:
    """An architecture with a law for every parameter.

    The parameters of network i depend on `seed` and on i alone, whatever the batch sizes and the number of workers:
    networks come in fixed blocks, and each block has a random stream of its own for every parameter.

    Args:
        module: the architecture. It may live on the meta device; its own parameter values are never read. Buffers are
            shared by all networks and must be real.
        laws: a law, or a torch.distributions object, for every name of `module.named_parameters()`. A tuple of names
            stands for parameters that are drawn together: each is flattened to [rows, columns], their columns are
            put side by side, and the law draws that matrix, as in `{("0.weight", "0.bias"): Sphere(axis=-1)}`.
        name: what reports call it.
        growth: for each parameter the power with which the output grows in it, where it is not one: 0 for weights under
            a bounded activation. Only used to tell which moments an average needs.

    Attributes:
        laws: name → law, of parameters with a law of their own.
        joint: names → law, of parameters that are drawn together.
        shapes: name → shape of a parameter of one network.
        dtypes: name → dtype.
        block: networks per block.

    Raises:
        LawError: a parameter without a law, or a law without a parameter.
    """

    def __init__(
        self,
        module: nn.Module,
        laws: Mapping[Key, Law | td.Distribution] | Mapping[str, Law | td.Distribution],
        *,
        name: str | None = None,
        growth: Mapping[str, float] | None = None,
    ) -> None:
        self.module = module
        self.name = name or type(module).__name__
        parameters = dict(module.named_parameters())
        self.shapes: dict[str, Shape] = {k: tuple(p.shape) for k, p in parameters.items()}
        self.dtypes = {k: p.dtype for k, p in parameters.items()}
        self.laws = {key: as_law(law, key) for key, law in laws.items() if isinstance(key, str)}
        self.joint = {key: as_law(law, str(key)) for key, law in laws.items() if not isinstance(key, str)}
        self.growth = dict(growth or {})
        self._check()

    def __repr__(self) -> str:
        laws = [*self.laws.items(), *((", ".join(k), v) for k, v in self.joint.items())]
        return f"Ensemble({self.name}: " + "; ".join(f"{k} ~ {v}" for k, v in laws) + ")"

    @cached_property
    def numbers(self) -> int:
        """Numbers that one network has."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @cached_property
    def block(self) -> int:
        """Networks per block, a power of two that depends on the architecture alone."""
        fit = max(1, _BLOCK_NUMBERS // max(1, self.numbers))
        return min(4096, 1 << (fit.bit_length() - 1))

    # -- drawing -----------------------------------------------------------------------------------------------
    def sample(
        self, count: int, *, seed: int, start: int = 0, only: tuple[str, ...] | None = None
    ) -> dict[str, Tensor]:
        """Parameters [count, *shape] of the networks start .. start+count−1.

        Args:
            count: how many networks.
            seed: any non-negative integer.
            start: index of the first network.
            only: the parameters that are wanted (all by default); the others' streams are not touched.
        """
        if count < 1 or start < 0 or seed < 0:
            raise InputError(
                f"count={count}, start={start}, seed={seed}",
                remedy="count is positive, start and seed are not negative",
            )
        pieces: dict[str, list[Tensor]] = {k: [] for k in (only or self.shapes)}
        for block in range(start // self.block, (start + count - 1) // self.block + 1):
            first = block * self.block
            low, high = max(start - first, 0), min(start + count - first, self.block)
            for name, draw in self._draw(block, seed, pieces):
                pieces[name].append(draw[low:high])
        return {name: parts[0] if len(parts) == 1 else torch.cat(parts) for name, parts in pieces.items()}

    def _draw(self, block: int, seed: int, wanted: Mapping[str, object]) -> Iterator[tuple[str, Tensor]]:
        """The parameters of one block, a stream each."""
        for index, (key, shape, dtype) in enumerate(self._streams):
            names = key if isinstance(key, tuple) else (key,)
            if not any(name in wanted for name in names):
                continue
            generator = torch.Generator().manual_seed(stream(seed, block, index))
            law = self.joint[key] if isinstance(key, tuple) else self.laws[key]
            draw = law.sample(self.block, shape, generator, dtype)
            if draw.shape != (self.block, *shape) or draw.dtype != dtype:
                raise LawError(
                    f"{law} drew {draw.dtype} of shape {list(draw.shape)} for {self.block} networks",
                    f"parameter {key}",
                    f"a law must draw {dtype} of shape [count, *{list(shape)}]",
                )
            if not isinstance(key, tuple):
                yield key, draw
                continue
            widths = [math.prod(self.shapes[name][1:]) for name in names]
            for name, part in zip(names, draw.split(widths, 2), strict=True):
                if name in wanted:
                    yield name, part.reshape(self.block, *self.shapes[name])

    @cached_property
    def _streams(self) -> list[tuple[Key, Shape, torch.dtype]]:
        """One entry per random stream: key, shape of its draw, dtype; in the order of the names."""
        own: list[tuple[Key, Shape, torch.dtype]] = [(k, self.shapes[k], self.dtypes[k]) for k in self.laws]
        for key in self.joint:
            rows = self.shapes[key[0]][0]
            own.append((key, (rows, sum(math.prod(self.shapes[k][1:]) for k in key)), self.dtypes[key[0]]))
        return sorted(own, key=lambda entry: entry[0] if isinstance(entry[0], str) else entry[0][0])

    # -- evaluation --------------------------------------------------------------------------------------------
    @torch.no_grad()
    def evaluate(self, params: Mapping[str, Tensor], points: Tensor) -> Tensor:
        """Outputs [count, n_points, ..., outputs] of stacked parameters at points [n_points, ...].

        Modules with a method `stacked(params, points)` evaluate themselves; all others go through `torch.func.vmap`.

        Raises:
            InputError: a module that draws random numbers or changes its buffers, or returns no tensor [n_points, ...].
        """
        fast = getattr(self.module, "stacked", None)
        out = fast(params, points) if fast is not None else stacked_call(self.module, params, points)
        if not isinstance(out, Tensor) or out.ndim < 2 or out.shape[1] != len(points):
            found = list(out.shape[1:]) if isinstance(out, Tensor) else type(out).__name__
            raise InputError(
                f"the module returns {found} for {len(points)} points",
                self.name,
                "let forward return one tensor [points, ..., outputs], as by a small module around it",
            )
        return out if out.ndim > 2 else out.unsqueeze(-1)

    def outputs(self, points: Tensor, count: int, *, seed: int, start: int = 0, batch: int | None = None) -> Tensor:
        """Outputs [count, n_points, ..., outputs] of the networks start .. start+count−1 at points [n_points, ...].

        Args:
            points: inputs, in the dtype of the parameters (real ones are cast).
            count: how many networks.
            seed: see `sample`.
            start: index of the first network.
            batch: networks at a time; chosen to bound the memory by default.
        """
        points = self.as_points(points)
        size = batch or self.batch(len(points))
        parts = []
        for first in range(start, start + count, size):
            params = self.sample(min(size, start + count - first), seed=seed, start=first)
            parts += [self.evaluate(piece, points) for piece in self.pieces(params, len(points))]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def pieces(self, params: dict[str, Tensor], n_points: int) -> Iterator[dict[str, Tensor]]:
        """Stacked parameters cut into runs of networks that fit the processor's cache together."""
        rows = sum(shape[0] for shape in self.shapes.values() if shape)
        size = max(1, _CACHE_NUMBERS // max(1, n_points * rows))
        count = len(next(iter(params.values())))
        for first in range(0, count, size):
            yield {name: p[first : first + size] for name, p in params.items()}

    def batch(self, n_points: int) -> int:
        """Networks that fit a batch, a multiple of the block where that is possible."""
        rows = sum(shape[0] for shape in self.shapes.values() if shape)
        fit = max(1, _BATCH_NUMBERS // max(1, self.numbers + n_points * rows))
        return fit // self.block * self.block if fit >= self.block else fit

    def as_points(self, points: Tensor) -> Tensor:
        """Points [n_points, ...] in the precision of the parameters; a list of numbers becomes [n_points, 1].

        Whole numbers stay what they are where the module has an embedding, which they index.
        """
        points = torch.as_tensor(points)
        if points.ndim == 0 or not len(points) or not bool(torch.isfinite(points).all()):
            raise InputError(
                "the points are no finite tensor [n_points, inputs], or none", remedy="give one row per point"
            )
        if points.ndim == 1:
            points = points[:, None]
        if not (points.is_floating_point() or points.is_complex()) and any(
            isinstance(m, (nn.Embedding, nn.EmbeddingBag)) for m in self.module.modules()
        ):
            return points
        real = next((d.to_real() if d.is_complex else d for d in self.dtypes.values()), torch.float64)
        if points.is_complex():
            return points.to(real.to_complex())
        return points.to(real)

    # -- moments -----------------------------------------------------------------------------------------------
    def require_moments(self, order: int, what: str) -> None:
        """Refuse an average of `order` outputs that does not exist.

        Raises:
            MomentError: some parameter lacks the moments, or it is not known whether it has them.
        """
        for key, law in [*self.laws.items(), *self.joint.items()]:
            names = key if isinstance(key, tuple) else (key,)
            need = order * max(self.growth.get(name, 1.0) for name in names)
            have = law.moment_order()
            if need > 0 and have != math.inf and not have > need:
                why = "are not known to exist" if math.isnan(have) else f"exist only below order {have:g}"
                raise MomentError(
                    f"{what} needs moments of order {need:g}, and those of {law} {why}: a plain average of samples "
                    "would not converge, and its error bar would say nothing",
                    f"parameter {', '.join(names)}",
                    "declare growth={name: 0} if the output stays bounded in this parameter (as under a bounded "
                    "activation), take a law with lighter tails, or an observable that is bounded",
                )

    def _check(self) -> None:
        joint = [name for key in self.joint for name in key]
        named = [*self.laws, *joint]
        missing = [name for name in self.shapes if name not in named]
        extra = [name for name in named if name not in self.shapes]
        if not self.shapes:
            raise LawError(
                "the module has no parameters, so there is one network alone", self.name, "give one that has"
            )
        if missing or extra or len(set(named)) < len(named):
            what = "parameters without a law: " + ", ".join(missing) if missing else ""
            what += ("; " if what and extra else "") + (
                "laws without a parameter: " + ", ".join(extra) if extra else ""
            )
            raise LawError(
                what or "a parameter has two laws",
                self.name,
                f"give one law for each of: {', '.join(self.shapes) or 'nothing'}; Fixed(value) keeps one constant",
            )
        for key in self.joint:
            shapes = [self.shapes[name] for name in key]
            if any(not s or s[0] != shapes[0][0] for s in shapes) or len({self.dtypes[name] for name in key}) > 1:
                raise LawError(
                    f"{', '.join(key)} of shapes {[list(s) for s in shapes]} cannot be drawn together",
                    remedy="their first axes and dtypes must agree",
                )


def stream(seed: int, *key: int) -> int:
    """A 63-bit seed for the random stream with this key."""
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0] >> np.uint64(1))
