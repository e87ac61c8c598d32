"""The closed list of constraints: what rules may say about a network, and nothing else.

A traced model is lowered to a `Program`: a list of some fifteen kinds of constraint between tensors. Rules
(one per operator family) emit them through a `Builder`; the passes of this package (frames, directions, shifts)
read them. A constraint names tensors and dimensions only: which frames it lets through is decided by the passes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torchgauge.spaces.charges import Charge

Role = Literal["param", "buffer", "const", "input", "data"]


@dataclass(eq=False)
class Tensor:
    """One tensor of the network, by shape and role; it holds no numbers.

    Roles: `param` a parameter (gauge transformations move it), `buffer` batch-norm statistics (moved by permutations
    alone), `const` anything that no parameter and no float input reaches (masks, positions, tables), `input` a float
    input, `data` every other intermediate result.
    """

    shape: tuple[int, ...]
    role: Role
    name: str
    source: str = ""
    fill: float | None = None
    """The value of a `const` that is the same number everywhere, if known."""
    trade: Charge | None = field(default=None, repr=False)
    """Of a gain: the charge that it may trade with its readers (set by the frame pass)."""

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __repr__(self) -> str:
        return f"{self.name}{list(self.shape)}:{self.role}"


@dataclass(frozen=True, eq=False)
class Constraint:
    """Base of the closed list. `out` is the tensor that the constraint defines."""

    out: Tensor

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return tuple(v for k, v in vars(self).items() if isinstance(v, Tensor) and k != "out")


@dataclass(frozen=True, eq=False)
class Reshape(Constraint):
    """out = x.reshape(out.shape)."""

    x: Tensor


@dataclass(frozen=True, eq=False)
class Permute(Constraint):
    """out = x.permute(dims)."""

    x: Tensor
    dims: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Slice(Constraint):
    """out = x[start:stop] along `dim` (step one)."""

    x: Tensor
    dim: int
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Concat(Constraint):
    """out = cat(xs, dim)."""

    xs: tuple[Tensor, ...]
    dim: int

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return self.xs


@dataclass(frozen=True, eq=False)
class Expand(Constraint):
    """out = x.expand(out.shape): same number of dimensions, size-one dimensions are repeated."""

    x: Tensor


@dataclass(frozen=True, eq=False)
class Contract(Constraint):
    """out = einsum(x, y), dimensions named by labels; each label at most once per tensor.

    A label of `x` and `y` that is missing in `out` is summed; one that is in all three is a batch label. Labels in
    `window` are the spatial dimensions of a convolution: no frame may act on them. `shift_safe` says that an input
    that is constant along the window labels gives an output that is constant there (no zero padding).
    """

    x: Tensor
    y: Tensor
    x_labels: tuple[str, ...]
    y_labels: tuple[str, ...]
    out_labels: tuple[str, ...]
    window: frozenset[str] = frozenset()
    shift_safe: bool = True


@dataclass(frozen=True, eq=False)
class Add(Constraint):
    """out = x + alpha * y, broadcast."""

    x: Tensor
    y: Tensor
    alpha: float = 1.0


@dataclass(frozen=True, eq=False)
class Mul(Constraint):
    """out = x * y ** power, broadcast; power is 1 or −1."""

    x: Tensor
    y: Tensor
    power: int = 1


@dataclass(frozen=True)
class Profile:
    """What a scalar function f lets through, as used by `Pointwise` (theory section 2a; [GBEK] table 1).

    degree:  f(s x) = s^degree f(x) for every s > 0, or None
    parity:  "odd" f(c + x) − v = −(f(c − x) − v) about the point `centre` = (c, v); "even" f(c + x) = f(c − x) about c
             (only c = 0 is used for even); or None
    exponential: f(x + c) = e^{rate c} f(x)
    """

    name: str
    degree: float | None = None
    parity: Literal["odd", "even"] | None = None
    centre: tuple[float, float] = (0.0, 0.0)
    exponential: bool = False
    rate: float = 1.0

    @property
    def fixes_zero(self) -> bool:
        """f(0) = 0, as far as the rest says so."""
        odd = self.parity == "odd" and self.centre == (0.0, 0.0)
        return odd or (self.degree is not None and self.degree > 0)


@dataclass(frozen=True, eq=False)
class Pointwise(Constraint):
    """out = f(x), the same f at every entry."""

    x: Tensor
    profile: Profile


@dataclass(frozen=True, eq=False)
class Normalize(Constraint):
    """out = (x − mean) / sqrt(var + eps) over `dims` ("layer"), or x / sqrt(mean x² + eps) over `dims` ("rms").

    No gain and no bias: those are a `Mul` and an `Add` behind it. Batch norm in training mode is "layer" over the
    batch and spatial dimensions; group norm is "layer" after a `Reshape`. `others`: where x is one block of a
    concatenation along `dims`, the other blocks, whose entries count in the mean and the variance too.
    """

    x: Tensor
    dims: tuple[int, ...]
    kind: Literal["layer", "rms"]
    eps: float
    others: tuple[Tensor, ...] = ()

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return (self.x, *self.others)


@dataclass(frozen=True, eq=False)
class Softmax(Constraint):
    """out = softmax(x, dim); `log` for log-softmax."""

    x: Tensor
    dim: int
    log: bool = False


@dataclass(frozen=True, eq=False)
class Reduce(Constraint):
    """out = sum, mean or max (min) of x over `dims`, kept as size one."""

    x: Tensor
    dims: tuple[int, ...]
    mode: Literal["sum", "mean", "max"]


@dataclass(frozen=True, eq=False)
class Gather(Constraint):
    """out[..., :] = table[index]: rows of `table` (dimension 0) picked by data or constants.

    out.shape = index shape + table.shape[1:].
    """

    table: Tensor


@dataclass(frozen=True, eq=False)
class Spatial(Constraint):
    """out = a map along `dims` alone, the same for every index of the other dimensions (pooling, padding, shifts,
    interpolation, cumulative sums, gathering at constant positions).

    "linear": linear in x; "max": positively homogeneous and monotone. `keeps_constants`: an x constant along `dims`
    gives the same constant.
    """

    x: Tensor
    dims: tuple[int, ...]
    mode: Literal["linear", "max"]
    keeps_constants: bool


@dataclass(frozen=True, eq=False)
class Rotate(Constraint):
    """out = x turned in planes of the last dimension by angles that depend on the position (rotary embedding).

    `layout` "half": the plane of entries (i, i + d/2); "interleaved": (2i, 2i + 1). All angles distinct.
    """

    x: Tensor
    layout: Literal["half", "interleaved"]


@dataclass(frozen=True, eq=False)
class Opaque(Constraint):
    """out = something of xs that no rule understands: every space that it touches becomes rigid."""

    xs: tuple[Tensor, ...]
    reason: str

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return self.xs


View = tuple[tuple[int, ...], int, int, int]


@dataclass(frozen=True)
class Coordinate:
    """How a parameter is turned into the tensor that the constraints speak of, and back.

    kind "plain":   the parameter itself
    kind "offset":  value + offset (a (1 + weight) gain)
    kind "batch_norm_bias": bias − weight·running_mean / sqrt(running_var + eps); `refs` names weight (or ""),
                    running_mean and running_var
    kind "inverse_std":  1/sqrt(value + eps), of a running variance
    """

    name: str
    kind: Literal["plain", "offset", "batch_norm_bias", "inverse_std"] = "plain"
    offset: float = 0.0
    refs: tuple[str, ...] = ()
    eps: float = 0.0
    views: tuple[View, ...] = ()
    """Steps (shape, dim, start, stop) that lead from the value to a part of it: reshape, then slice."""


@dataclass
class Program:
    """A lowered network: its constraints in order of execution."""

    constraints: list[Constraint] = field(default_factory=list)
    params: dict[str, Tensor] = field(default_factory=dict)
    """Canonical parameter name → its tensor (one per tied group)."""
    coordinates: dict[str, Coordinate] = field(default_factory=dict)
    buffers: dict[str, Tensor] = field(default_factory=dict)
    """Batch-norm statistics by name."""
    buffer_coordinates: dict[str, Coordinate] = field(default_factory=dict)
    outputs: list[Tensor] = field(default_factory=list)
    output_names: list[str] = field(default_factory=list)
    opaque: list[tuple[str, str]] = field(default_factory=list)
    """(operator and reason, source line) of everything no rule understood."""


class Builder:
    """Emits constraints. Every method returns the new tensor; purely constant results are folded to `const`."""

    def __init__(self) -> None:
        self.program = Program()
        self.source = ""
        self.producers: dict[Tensor, Constraint] = {}
        """The constraint that defines each tensor (rules look back through views)."""
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
            self._views[key] = self._emit(constraint)
        return self._views[key]

    # -- axes --------------------------------------------------------------------------------------------------
    def reshape(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        shape = tuple(shape)
        if shape == x.shape:
            return x
        assert prod(shape) == prod(x.shape), (x, shape)
        out = self._new(shape, x, name="reshape")
        out.fill = x.fill
        return self._view(("reshape", x, shape), Reshape(out, x))

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
    ) -> Tensor:
        sizes = dict(zip(x_labels, x.shape, strict=True)) | dict(zip(y_labels, y.shape, strict=True))
        shape = tuple(out_shape) if out_shape is not None else tuple(sizes[a] for a in out_labels)
        if 0.0 in (x.fill, y.fill):
            return self.const(shape, "zero", 0.0)
        out = self._new(shape, x, y, name="contract")
        labels = tuple(x_labels), tuple(y_labels), tuple(out_labels)
        return self._emit(Contract(out, x, y, *labels, frozenset(window), shift_safe))

    def add(self, x: Tensor, y: Tensor, alpha: float = 1.0) -> Tensor:
        x, y, shape = self._broadcast(x, y)
        if y.fill == 0.0:
            return self.expand(x, shape)
        if x.fill == 0.0 and alpha == 1.0:
            return self.expand(y, shape)
        return self._emit(Add(self._new(shape, x, y, name="add"), x, y, alpha))

    def mul(self, x: Tensor, y: Tensor, power: int = 1) -> Tensor:
        x, y, shape = self._broadcast(x, y)
        if x.fill == 0.0 or (y.fill == 0.0 and power == 1):
            return self.const(shape, "zero", 0.0)
        if y.fill == 1.0 and x.shape == shape:
            return x
        if x.fill == 1.0 and y.shape == shape and power == 1:
            return y
        return self._emit(Mul(self._new(shape, x, y, name="mul"), x, y, power))

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
        return self._emit(Normalize(out, x, dims, kind, float(eps), tuple(others)))

    def softmax(self, x: Tensor, dim: int, log: bool = False) -> Tensor:
        return self._emit(Softmax(self._new(x.shape, x, name="softmax"), x, dim % x.ndim, log))

    def reduce(self, x: Tensor, dims: Sequence[int], mode: Literal["sum", "mean", "max"], keepdim: bool) -> Tensor:
        dims = tuple(sorted(d % x.ndim for d in dims))
        kept = tuple(1 if i in dims else n for i, n in enumerate(x.shape))
        out = self._emit(Reduce(self._new(kept, x, name=mode), x, dims, mode))
        return out if keepdim else self.reshape(out, tuple(n for i, n in enumerate(kept) if i not in dims))

    def gather(self, table: Tensor, index_shape: Sequence[int]) -> Tensor:
        return self._emit(Gather(self._new((*index_shape, *table.shape[1:]), table, name="gather"), table))

    def spatial(
        self,
        x: Tensor,
        dims: Sequence[int],
        out_shape: Sequence[int],
        mode: Literal["linear", "max"],
        keeps_constants: bool,
    ) -> Tensor:
        dims = tuple(sorted(d % x.ndim for d in dims))
        return self._emit(Spatial(self._new(out_shape, x, name="spatial"), x, dims, mode, keeps_constants))

    def rotate(self, x: Tensor, layout: Literal["half", "interleaved"]) -> Tensor:
        return self._emit(Rotate(self._new(x.shape, x, name="rotate"), x, layout))

    def opaque(self, xs: Sequence[Tensor], out_shape: Sequence[int], reason: str) -> Tensor:
        """Everything that `xs` carry becomes rigid; reported with the current source line."""
        live = tuple(x for x in xs if x.role != "const")
        out = self._new(out_shape, *live, name="opaque") if live else self.const(out_shape)
        if live:
            self.program.opaque.append((reason, self.source))
        return self._emit(Opaque(out, live, reason))
