"""The builder of programs: how rules and rewritings emit constraints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import Literal

from torchgauge.spaces.constraints import (
    Add,
    Choice,
    Concat,
    Constraint,
    Contract,
    Coordinate,
    Expand,
    Gather,
    Mul,
    Normalize,
    Opaque,
    Permute,
    Pick,
    Pointwise,
    Profile,
    Program,
    Reduce,
    Reshape,
    Role,
    Rotate,
    Slice,
    Softmax,
    Spatial,
    Take,
    Tensor,
)
from torchgauge.spaces.windows import Reach, Still


class Builder:
    """Emits constraints. Every method returns the new tensor; purely constant results are folded to `const`."""

    def __init__(self) -> None:
        self.program = Program()
        self.source = ""
        self.producers: dict[Tensor, Constraint] = {}
        """The constraint that defines each tensor (rules look back through views)."""
        self.zeroed: set[Tensor] = set()
        """What was multiplied by zero."""
        self._views: dict[tuple[object, ...], Tensor] = {}
        self._count = 0

    # -- leaves ------------------------------------------------------------------------------------------------
    def param(self, name: str, shape: Sequence[int], coordinate: Coordinate | None = None) -> Tensor:
        """The tensor of parameter `name`; the same tensor at every call, so that ties and reuse are seen."""
        if name not in self.program.params:
            self.program.params[name] = Tensor(tuple(shape), "param", name, self.source)
            self.program.coordinates[name] = coordinate or Coordinate(name)
        return self.program.params[name]

    def buffer(self, name: str, shape: Sequence[int], eps: float | None = None) -> Tensor:
        """A batch-norm statistic: permuted with its channels, else fixed. With `eps`: 1/sqrt(statistic + eps)."""
        if name not in self.program.buffers:
            self.program.buffers[name] = Tensor(tuple(shape), "buffer", name, self.source)
            self.program.buffer_coordinates[name] = Coordinate(name)
        if eps is not None:
            self.program.buffer_coordinates[name] = Coordinate(name, "inverse_std", eps=eps)
        return self.program.buffers[name]

    def const(self, shape: Sequence[int], name: str = "const", fill: float | None = None) -> Tensor:
        return Tensor(tuple(shape), "const", name, self.source, fill)

    def input(self, name: str, shape: Sequence[int]) -> Tensor:
        return Tensor(tuple(shape), "input", name, self.source)

    def _new(self, shape: Iterable[int], *parents: Tensor, name: str) -> Tensor:
        self._count += 1
        role: Role = "const" if all(p.role == "const" for p in parents) else "data"
        return Tensor(tuple(shape), role, f"{name}_{self._count}", self.source)

    def _emit(self, constraint: Constraint) -> Tensor:
        if constraint.out.role == "const":
            return constraint.out
        self.program.constraints.append(constraint)
        self.producers[constraint.out] = constraint
        return constraint.out

    def _view(self, key: tuple[object, ...], constraint: Constraint) -> Tensor:
        """Emit a view once: an equal view of the same tensor is shared."""
        if key not in self._views:
            if any(t.role == "choice" for t in constraint.inputs):
                constraint.out.role = "choice"
            self._views[key] = self._emit(constraint)
        return self._views[key]

    # -- axes --------------------------------------------------------------------------------------------------
    def reshape(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        shape = tuple(shape)
        if shape == x.shape:
            return x
        assert prod(shape) == prod(x.shape), (x, shape)
        stacked = self._stacked(x, shape)
        if stacked is not None:
            return stacked
        out = self._new(shape, x, name="reshape")
        out.fill = x.fill
        return self._view(("reshape", x, shape), Reshape(out, x))

    def _stacked(self, x: Tensor, shape: tuple[int, ...]) -> Tensor | None:
        """A concatenation whose dimension is split by a reshape, [.., i·n, ..] into [.., i, n, ..], if n divides all
        parts: the same of reshaped parts, along the first of the two."""
        made = self.producers.get(x)
        if not isinstance(made, Concat) or len(shape) != x.ndim + 1:
            return None
        d = made.dim
        if shape[:d] != x.shape[:d] or shape[d + 2 :] != x.shape[d + 1 :]:
            return None
        if shape[d] == 1 or shape[d + 1] == 1 or any(p.shape[d] % shape[d + 1] for p in made.xs):
            return None
        key = ("stack", x, shape)
        if key not in self._views:
            parts = [self.reshape(p, (*shape[:d], p.shape[d] // shape[d + 1], *shape[d + 1 :])) for p in made.xs]
            self._views[key] = self.concat(parts, d)
        return self._views[key]

    def permute(self, x: Tensor, dims: Sequence[int]) -> Tensor:
        dims = tuple(d % x.ndim for d in dims)
        if dims == tuple(range(x.ndim)):
            return x
        out = self._new((x.shape[d] for d in dims), x, name="permute")
        out.fill = x.fill
        return self._view(("permute", x, dims), Permute(out, x, dims))

    def slice(self, x: Tensor, dim: int, start: int, stop: int) -> Tensor:
        dim %= x.ndim
        if (start, stop) == (0, x.shape[dim]):
            return x
        shape = list(x.shape)
        shape[dim] = stop - start
        out = self._new(shape, x, name="slice")
        out.fill = x.fill
        return self._view(("slice", x, dim, start, stop), Slice(out, x, dim, start, stop))

    def concat(self, xs: Sequence[Tensor], dim: int) -> Tensor:
        xs = tuple(x for x in xs if x.shape[dim] > 0)
        if len(xs) == 1:
            return xs[0]
        shape = list(xs[0].shape)
        dim %= len(shape)
        shape[dim] = sum(x.shape[dim] for x in xs)
        out = self._new(shape, *xs, name="concat")
        out.fill = xs[0].fill if len({x.fill for x in xs}) == 1 else None
        return self._emit(Concat(out, xs, dim))

    def expand(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """As torch.expand: new leading dimensions allowed, −1 keeps a size."""
        shape = tuple(shape)
        if len(shape) > x.ndim:
            x = self.reshape(x, (1,) * (len(shape) - x.ndim) + x.shape)
        shape = tuple(n if s == -1 else s for s, n in zip(shape, x.shape, strict=True))
        if shape == x.shape:
            return x
        out = self._new(shape, x, name="expand")
        out.fill = x.fill
        return self._view(("expand", x, shape), Expand(out, x))

    # -- algebra -----------------------------------------------------------------------------------------------
    def contract(
        self,
        x: Tensor,
        y: Tensor,
        x_labels: Sequence[str],
        y_labels: Sequence[str],
        out_labels: Sequence[str],
        *,
        window: Iterable[str] = (),
        out_shape: Sequence[int] | None = None,
        shift_safe: bool = True,
        reach: Reach = (),
        still: Still = (),
    ) -> Tensor:
        sizes = dict(zip(x_labels, x.shape, strict=True)) | dict(zip(y_labels, y.shape, strict=True))
        shape = tuple(out_shape) if out_shape is not None else tuple(sizes[a] for a in out_labels)
        if 0.0 in (x.fill, y.fill):
            self.zeroed |= {x, y}
            return self.const(shape, "zero", 0.0)
        out = self._new(shape, x, y, name="contract")
        labels = tuple(x_labels), tuple(y_labels), tuple(out_labels)
        return self._emit(Contract(out, x, y, *labels, frozenset(window), shift_safe, reach, still))

    def add(self, x: Tensor, y: Tensor, alpha: float = 1.0) -> Tensor:
        x, y, shape = self._broadcast(x, y)
        if y.fill == 0.0:
            return self.expand(x, shape)
        if x.fill == 0.0 and alpha == 1.0:
            return self.expand(y, shape)
        if alpha == 1.0 and self._fixed(x) and not self._fixed(y):
            x, y = y, x
        return self._emit(Add(self._new(shape, x, y, name="add"), x, y, alpha))

    def mul(self, x: Tensor, y: Tensor, power: int = 1) -> Tensor:
        x, y, shape = self._broadcast(x, y)
        if x.fill == 0.0 or (y.fill == 0.0 and power == 1):
            self.zeroed |= {x, y}
            return self.const(shape, "zero", 0.0)
        if y.fill == 1.0 and x.shape == shape:
            return x
        if x.fill == 1.0 and y.shape == shape and power == 1:
            return y
        if power == 1 and self._fixed(x) and not self._fixed(y):
            x, y = y, x
        return self._emit(Mul(self._new(shape, x, y, name="mul"), x, y, power))

    def _fixed(self, t: Tensor) -> bool:
        """A parameter, statistic or constant, or a view of one: it stands second in a sum or product."""
        while t.role == "data":
            made = self.producers.get(t)
            if not isinstance(made, (Reshape, Permute, Slice, Expand)):
                return False
            t = made.x
        return t.role != "input"

    def _broadcast(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        n = max(x.ndim, y.ndim)
        x = self.reshape(x, (1,) * (n - x.ndim) + x.shape)
        y = self.reshape(y, (1,) * (n - y.ndim) + y.shape)
        return x, y, tuple(b if a == 1 else a for a, b in zip(x.shape, y.shape, strict=True))

    # -- the rest ----------------------------------------------------------------------------------------------
    def pointwise(self, x: Tensor, profile: Profile) -> Tensor:
        out = self._new(x.shape, x, name=profile.name)
        if x.fill == 0.0 and profile.fixes_zero:
            out.fill = 0.0
        return self._emit(Pointwise(out, x, profile))

    def normalize(
        self,
        x: Tensor,
        dims: Sequence[int],
        kind: Literal["layer", "rms"],
        eps: float,
        others: Sequence[Tensor] = (),
    ) -> Tensor:
        dims = tuple(sorted(d % x.ndim for d in dims))
        out = self._new(x.shape, x, *others, name=kind + "_norm")
        if eps > 0 and not others and (x.fill == 0.0 or (kind == "layer" and x.fill is not None)):
            out.fill = 0.0
        return self._emit(Normalize(out, x, dims, kind, float(eps), tuple(others)))

    def softmax(self, x: Tensor, dim: int, log: bool = False) -> Tensor:
        return self._emit(Softmax(self._new(x.shape, x, name="softmax"), x, dim % x.ndim, log))

    def reduce(self, x: Tensor, dims: Sequence[int], mode: Literal["sum", "mean", "max"], keepdim: bool) -> Tensor:
        dims = tuple(sorted(d % x.ndim for d in dims))
        kept = tuple(1 if i in dims else n for i, n in enumerate(x.shape))
        out = self._emit(Reduce(self._new(kept, x, name=mode), x, dims, mode))
        return out if keepdim else self.reshape(out, tuple(n for i, n in enumerate(kept) if i not in dims))

    def gather(self, table: Tensor, index_shape: Sequence[int], row: int | None = None, index: object = None) -> Tensor:
        return self._emit(Gather(self._new((*index_shape, *table.shape[1:]), table, name="gather"), table, row, index))

    def choose(self, x: Tensor, dim: int, size: int) -> Tensor:
        """Positions of `size` entries of x along `dim`, by value."""
        dim %= x.ndim
        out = self._new((*x.shape[:dim], size, *x.shape[dim + 1 :]), x, name="choice")
        out.role = "choice" if out.role == "data" else out.role
        return self._emit(Choice(out, x, dim))

    def take(self, x: Tensor, choice: Tensor, dim: int) -> Tensor:
        return self._emit(Take(self._new(choice.shape, x, choice, name="take"), x, choice, dim % x.ndim))

    def pick(self, table: Tensor, choice: Tensor) -> Tensor:
        out = self._new((*choice.shape, *table.shape[1:]), table, choice, name="pick")
        return self._emit(Pick(out, table, choice))

    def spatial(
        self,
        x: Tensor,
        dims: Sequence[int],
        out_shape: Sequence[int],
        mode: Literal["linear", "max"],
        keeps_constants: bool,
        within: int | None = None,
    ) -> Tensor:
        dims = tuple(sorted(d % x.ndim for d in dims))
        return self._emit(Spatial(self._new(out_shape, x, name="spatial"), x, dims, mode, keeps_constants, within))

    def rotate(self, x: Tensor, layout: Literal["half", "interleaved"]) -> Tensor:
        return self._emit(Rotate(self._new(x.shape, x, name="rotate"), x, layout))

    def opaque(self, xs: Sequence[Tensor], out_shape: Sequence[int], reason: str) -> Tensor:
        """Everything that `xs` carry becomes rigid; reported with the current source line."""
        live = tuple(x for x in xs if x.role != "const")
        out = self._new(out_shape, *live, name="opaque") if live else self.const(out_shape)
        if live:
            self.program.opaque.append((reason, self.source))
        return self._emit(Opaque(out, live, reason))
