"""The closed list of constraints: what rules may say about a network, and nothing else.

A traced model is lowered to a `Program`: a list of some fifteen kinds of constraint between tensors. Rules
(one per operator family) emit them through a `Builder`; the passes of this package (frames, directions, shifts)
read them. A constraint names tensors and dimensions only: which frames it lets through is decided by the passes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import torch

    from torchgauge.spaces.charges import Charge
    from torchgauge.spaces.windows import Reach, Still

Role = Literal["param", "buffer", "const", "input", "data", "choice"]

PICKED = "an index or an angle that is computed"
"""The name of an output that nobody asked for, but that must not move."""


@dataclass(frozen=True)
class Mask:
    """Numbers of a constant that says what counts: 1 where a condition holds, else 0; or, if `low`, 0, else −∞."""

    condition: object
    dims: tuple[int, ...]
    """Dimensions of the constant along which the condition varies, in the condition's order."""
    low: bool = False


@dataclass(eq=False)
class Tensor:
    """One tensor of the network, by shape and role; it holds no numbers.

    Roles: `param` a parameter (gauge transformations move it), `buffer` batch-norm statistics (moved by permutations
    alone), `const` anything that no parameter and no float input reaches (masks, positions, tables), `input` a float
    input, `choice` positions that data decide (and views of them), `data` every other intermediate result.
    """

    shape: tuple[int, ...]
    role: Role
    name: str
    source: str = ""
    fill: float | None = None
    """The value of a `const` that is the same number everywhere, if known."""
    mask: Mask | None = None
    """Of a `const`: what it takes out, if it is known to be a mask."""
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
    that is constant along the window labels gives an output that is constant there (no zero padding). `reach` says
    which positions of a kernel lie inside `x`, `still` how taps and places go together without strides.
    """

    x: Tensor
    y: Tensor
    x_labels: tuple[str, ...]
    y_labels: tuple[str, ...]
    out_labels: tuple[str, ...]
    window: frozenset[str] = frozenset()
    shift_safe: bool = True
    reach: Reach = ()
    still: Still = ()


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
    slope:   k such that f(x) − k x is even; 0 if there is none, or f is even
    exponential: f(x + c) = e^{rate c} f(x)
    """

    name: str
    degree: float | None = None
    parity: Literal["odd", "even"] | None = None
    centre: tuple[float, float] = (0.0, 0.0)
    slope: float = 0.0
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

    out.shape = index shape + table.shape[1:]. `row`: the one that is picked everywhere, if it is always the same.
    `index`: what says which rows, equal for equal positions, if it is known.
    """

    table: Tensor
    row: int | None = None
    index: object = None


@dataclass(frozen=True, eq=False)
class Choice(Constraint):
    """out = positions along `dim` of some entries of x, picked and ordered by value (the k largest, ...).

    A choice is the same for x and c x, c > 0, and moves with a permutation of the entries.
    """

    x: Tensor
    dim: int


@dataclass(frozen=True, eq=False)
class Take(Constraint):
    """out = x at the positions of a choice along `dim`; all other dimensions are those of the choice."""

    x: Tensor
    choice: Tensor
    dim: int


@dataclass(frozen=True, eq=False)
class Pick(Constraint):
    """out[..., :] = table[choice]: rows of `table` (dimension 0), such as the weights of the chosen experts.

    out.shape = choice.shape + table.shape[1:].
    """

    table: Tensor
    choice: Tensor


@dataclass(frozen=True, eq=False)
class Spatial(Constraint):
    """out = a map along `dims` alone, the same for every index of the other dimensions (pooling, padding, shifts,
    interpolation, cumulative sums, gathering at constant positions).

    "linear": linear in x; "max": positively homogeneous and monotone. `keeps_constants`: an x constant along `dims`
    gives the same constant. `within`: at every index of the other dimensions, also those of `dims`, the result is made
    of the entries along this one there, and keeps what is constant along it.
    """

    x: Tensor
    dims: tuple[int, ...]
    mode: Literal["linear", "max"]
    keeps_constants: bool
    within: int | None = None


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
    kind "centred_bias": bias − running_mean, of the bias in front of a batch norm without one; `refs` as above
    kind "inverse_std":  1/sqrt(value + eps), of a running variance
    kind "computed": value + what other parameters compute, of a bias that is added to that (see folding.py); `rests`
    kind "turned":   of a weight that reads what other parameters compute (see turned.py): what "computed" gives, times
                    the matrices of `turns`
    """

    name: str
    kind: Literal["plain", "offset", "batch_norm_bias", "centred_bias", "inverse_std", "computed", "turned"] = "plain"
    offset: float = 0.0
    refs: tuple[str, ...] = ()
    eps: float = 0.0
    views: tuple[View, ...] = ()
    """Steps (shape, dim, start, stop) that lead from the value to a part of it: reshape, then slice."""
    rests: tuple[Rest, ...] = field(default=(), compare=False, repr=False)
    turns: tuple[Turn, ...] = field(default=(), compare=False, repr=False)

    @property
    def cone(self) -> frozenset[str]:
        """Names of the parameters that the coordinate depends on beside its own."""
        return frozenset().union(*(x.cone for x in (*self.rests, *self.turns)))


class Numbers(Protocol):
    """Knows the numbers of tensors that parameters and known constants alone make."""

    def steady(self, t: Tensor) -> bool:
        """Whether a tensor is the same at every input."""
        ...

    def knows(self, t: Tensor) -> bool:
        """Whether `value` may be asked for a tensor."""
        ...

    def value(self, t: Tensor, raw: Callable[[str], torch.Tensor]) -> torch.Tensor:
        """Its numbers, given those of the parameters by name."""
        ...

    def follows(self, t: Tensor, index: object) -> bool:
        """Whether `rows` may be asked for a tensor."""
        ...

    def rows(self, t: Tensor, index: object, count: int, raw: Callable[[str], torch.Tensor]) -> torch.Tensor:
        """Its numbers [count, ...] at each of the values 0, ..., count − 1 of an index, one that stands everywhere."""
        ...


@dataclass(eq=False)
class Recipes:
    """How tensors that are the same at every input follow from the parameters."""

    makers: dict[Tensor, Constraint]
    origins: dict[Tensor, Tensor]
    """A tensor → one whose numbers are known, and of which it is what is left where that is repeated."""
    coordinates: dict[str, Coordinate]
    numbers: Numbers | None


@dataclass(frozen=True, eq=False)
class Rest:
    """What is added to one view of a parameter, in front of it: `x`, of the shape of the view.

    `sum`: where x itself is not known in numbers, a tensor that is x plus the view. `rows`: where x is a function of
    the row, how it follows. `cone`: names of the parameters that x follows from.
    """

    views: tuple[Constraint, ...]
    x: Tensor
    recipes: Recipes
    sum: Tensor | None = None
    rows: Rows | None = None
    cone: frozenset[str] = frozenset()


@dataclass(frozen=True, eq=False)
class Turn:
    """One view of a weight [.., summed] times [Hᵀ, E], where the weight reads rows H [r, n] that parameters compute,
    and E is fixed: what it makes of H is the first r columns.

    `free`, `summed`: dimensions of the view. `x`, `short`: the tensor H in numbers, and its shape without what is
    repeated. `rows`, `columns`: dimensions of that; columns as `summed`. `offset`: added to the r columns. `cone`:
    names of the parameters that H follows from.
    """

    views: tuple[Constraint, ...]
    free: tuple[int, ...]
    summed: tuple[int, ...]
    x: Tensor
    short: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    numbers: Numbers
    offset: float = 0.0
    cone: frozenset[str] = frozenset()


@dataclass(frozen=True, eq=False)
class Rows:
    """A table that takes up a function of its row numbers: shown · factor + x · alpha = (table* at the index) · factor.

    `shown` is the table at the index times numbers that are the same for every row, and x the function at the index.
    """

    shown: Tensor
    index: object
    alpha: float


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
    rates: dict[str, float] = field(default_factory=dict)
    """Parameters p whose tensor stands for exp(rate·p) (see exponential.py)."""
    outputs: list[Tensor] = field(default_factory=list)
    """What must not move: the observed outputs, then indices computed from data."""
    output_names: list[str] = field(default_factory=list)
    opaque: list[tuple[str, str]] = field(default_factory=list)
    """(operator and reason, source line) of everything no rule understood."""
    idle: dict[str, Tensor] = field(default_factory=dict)
    """Parameters that the model reads and that no constraint does, since zeros are all that they meet."""
    spare: tuple[Coordinate, ...] = ()
    """Parts of parameters of which the same holds."""
    numbers: Numbers | None = field(default=None, repr=False)
