"""Completeness: the nullity of ∂outputs/∂parameters against the rank of the generators (theory section 2)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchgauge.certify.rank import Kernel, RowSpace, column_scales, kernel, kernel_basis, span, svd
from torchgauge.certify.subject import Evaluate, State, Subject

# rows taken from one input: few, because many inputs are worth more than many outputs of one
ROWS_PER_INPUT = 64
# a column this small, relative to the largest, is zero
DEAD = 1e-12
# a direction that moves the outputs by less than this, relative to a generic one, is in the kernel
STILL = 1e-7


@dataclass(frozen=True)
class Completeness:
    """The kernel of the Jacobian next to the generators.

    Attributes:
        orbit_dimension: rank of the exact generators on the parameters that are read.
        nullity: dimension of the kernel on the parameters that are read, less what ε-generators explain.
        gap: log10 of the singular-value gap.
        dead: parameter entries that no input reads.
        zero_columns: entries that are read and yet move nothing, beyond those that the generators explain.
        approximate_dimension: what the ε-generators would add to the rank.
        tangent_defect: worst relative derivative along an exact generator.
        hidden_in: parameters touched by hidden directions, with their share.
        growing: the nullity still fell when the last inputs came.
        samples: inputs used.
        rows: rows used.
        notes: remarks.
    """

    orbit_dimension: int
    nullity: int
    gap: float
    dead: int
    zero_columns: int
    approximate_dimension: int
    tangent_defect: float
    hidden_in: tuple[tuple[str, float], ...]
    growing: bool
    samples: int
    rows: int
    notes: tuple[str, ...] = ()


@dataclass
class _Probe:
    """The growing evidence: inputs seen, their rows, and which columns never move."""

    subject: Subject
    state: State
    space: RowSpace
    seen: list[Evaluate]

    def draw(self, inputs: int | None, rows: int) -> None:
        """Takes `inputs` further inputs, or as many as give `rows` rows."""
        goal, taken = self.space.rows + rows, 0
        while taken < inputs if inputs is not None else self.space.rows < goal:
            self.space.add(self.fresh())
            taken += 1

    def fresh(self) -> Tensor:
        evaluate, rows = self.subject.sample_rows(ROWS_PER_INPUT)
        self.seen.append(evaluate)
        return rows


@dataclass(frozen=True)
class _Found:
    """One measurement: masks over the P parameter entries, counts and bases in scaled live coordinates."""

    nullity: int
    kernel: Kernel
    zero: Tensor
    dead: Tensor
    scales: Tensor
    exact: Tensor
    hidden: int
    soft: int


def measure(
    subject: Subject,
    exact: Sequence[State],
    approximate: Sequence[State],
    *,
    samples: int | None = None,
    rounds: int = 6,
    seconds: float = 300.0,
) -> Completeness:
    """Measures the kernel at generic parameters and compares it with the generators.

    Rows come from fresh inputs until there are twice as many as parameters. The nullity can only fall with more
    rows, and generators that lie in the kernel bound it from below: where both agree it is final. Where the kernel is
    larger, inputs are added until the excess stands still.

    Args:
        subject: the model.
        exact: exact generators at `subject.generic`.
        approximate: ε-generators there.
        samples: a fixed number of inputs; adaptive when None.
        rounds: how often inputs are added while the nullity still falls.
        seconds: time after which no more inputs are added.
    """
    start = time.monotonic()
    count = subject.parameters
    probe = _Probe(subject, subject.generic, RowSpace(count), [])
    flat = _matrix(subject, exact)
    soft = _matrix(subject, approximate)
    notes: list[str] = []
    probe.draw(samples, 2 * count + 16)
    found = _compare(probe, flat, soft)
    growing, excess = False, None
    for attempt in range(rounds):
        if found.hidden <= 0:
            break
        excess = _excess(probe, found, flat)
        growing = _still_growing(probe, excess, samples)
        if not growing or samples is not None or time.monotonic() - start > seconds:
            break
        probe.draw(None, count if attempt else 2 * count)
        found, excess = _compare(probe, flat, soft), None
    else:
        growing = growing and found.hidden > 0
    if found.hidden <= 0:
        growing = False
    if probe.space.rows < count:
        notes.append(f"inputs were too few: {probe.space.rows} rows for {count} parameters; raise `samples`")
    elif growing:
        notes.append("inputs were too few: the rank still grew with the last ones; raise `samples`")
    if not subject.draws.varied:
        notes.append("no input could be varied: every row comes from the example")
    uncovered = _uncovered_zeros(found, flat)
    if uncovered and found.hidden > 0:
        notes.append(f"{uncovered} parameter entries are read, move nothing, and no generator says why")
    if found.soft:
        notes.append(f"{found.soft} ε-directions are below rounding here and were taken off the nullity")
    tangent_defect = _tangent_defect(probe, found, flat)
    hidden_in: tuple[tuple[str, float], ...] = ()
    if found.hidden > 0:
        hidden_in = _shares(subject, _excess(probe, found, flat) if excess is None else excess, found)
    exact_rank = found.exact.shape[1]
    both = span(torch.cat([flat, soft], dim=1)[~found.dead]).shape[1] if soft.shape[1] else exact_rank
    return Completeness(
        orbit_dimension=exact_rank,
        nullity=found.nullity,
        gap=found.kernel.gap,
        dead=int(found.dead.sum()),
        zero_columns=uncovered,
        approximate_dimension=both - exact_rank,
        tangent_defect=tangent_defect,
        hidden_in=hidden_in,
        growing=growing,
        samples=len(probe.seen),
        rows=probe.space.rows,
        notes=tuple(notes),
    )


def _matrix(subject: Subject, tangents: Sequence[State]) -> Tensor:
    """Generators as columns of size one, [P, n]."""
    columns = [subject.flatten(t) for t in tangents]
    if not columns:
        return torch.zeros(subject.parameters, 0, dtype=torch.float64)
    stacked = torch.stack(columns, dim=1)
    return stacked / stacked.norm(dim=0).clamp_min(1e-300)


def _compare(probe: _Probe, flat: Tensor, soft: Tensor) -> _Found:
    triangle = probe.space.triangle
    norms = triangle.norm(dim=0)
    zero = norms <= DEAD * float(norms.max())
    dead = _dead(probe, zero)
    live = ~zero
    scales = column_scales(norms[live])
    small = kernel(triangle[:, live] * scales)
    exact = span(flat[~dead])
    nullity = small.dimension + int((zero & ~dead).sum())
    explained = 0
    if soft.shape[1] and nullity > exact.shape[1]:
        # an ε far below rounding makes its soft direction a null one: it is neither hidden nor exact
        unscaled = triangle[:, ~dead]
        still = unscaled @ soft[~dead]
        size = (unscaled.norm(dim=0)[:, None] * soft[~dead]).norm(dim=0)
        null = soft[~dead][:, still.norm(dim=0) <= STILL * size.clamp_min(1e-300)]
        explained = span(torch.cat([exact, null], dim=1)).shape[1] - exact.shape[1]
        explained = min(explained, nullity - exact.shape[1])
    nullity -= explained
    return _Found(nullity, small, zero, dead, scales, exact, nullity - exact.shape[1], explained)


def _dead(probe: _Probe, zero: Tensor) -> Tensor:
    """Which zero columns no input reads: a NaN put there never comes out."""
    subject, dead = probe.subject, torch.zeros_like(zero)
    if not bool(zero.any()):
        return dead
    masks, offset = {}, 0
    for name in subject.names:
        shape = probe.state[name].shape
        size = shape.numel()
        mask = zero[offset : offset + size].reshape(shape)
        if bool(mask.any()):
            masks[name] = (offset, mask)
        offset += size

    def silent(chosen: dict[str, Tensor]) -> bool:
        state = dict(probe.state)
        for name, mask in chosen.items():
            state[name] = state[name].masked_fill(mask, float("nan"))
        state = subject.resolve(state)
        with torch.no_grad():
            return all(bool(o.isfinite().all()) for evaluate in probe.seen for o in evaluate(state))

    def mark(offset: int, mask: Tensor) -> None:
        dead[offset : offset + mask.numel()] |= mask.reshape(-1)

    if silent({name: mask for name, (_, mask) in masks.items()}):
        for offset, mask in masks.values():
            mark(offset, mask)
        return dead
    for name, (offset, mask) in masks.items():
        if silent({name: mask}):
            mark(offset, mask)
        elif mask.ndim > 1:
            for i in mask.flatten(1).any(1).nonzero().flatten().tolist():
                row = torch.zeros_like(mask)
                row[i] = mask[i]
                if silent({name: row}):
                    mark(offset, row)
    return dead


def _excess(probe: _Probe, found: _Found, flat: Tensor) -> Tensor:
    """An orthonormal basis, [P, hidden], of kernel directions that are independent of the generators.

    Orthogonality is in coordinates where every column of the Jacobian has about size one.
    """
    live, kept = ~found.zero, ~found.dead
    zeros, small = (found.zero & kept).nonzero().flatten(), found.kernel.dimension
    null = torch.zeros(flat.shape[0], small + len(zeros), dtype=torch.float64)
    null[live, :small] = kernel_basis(probe.space.triangle[:, live] * found.scales, found.kernel)
    null[zeros, small + torch.arange(len(zeros))] = 1.0
    weights = torch.ones(flat.shape[0], dtype=torch.float64)
    weights[live] = 1.0 / found.scales
    known = span(flat[kept] * weights[kept, None])
    null = null[kept]
    null = null - known @ (known.T @ null)
    left, _ = svd(null)
    out = torch.zeros(flat.shape[0], min(found.hidden, left.shape[1]), dtype=torch.float64)
    out[kept] = left[:, : out.shape[1]]
    # back to parameters
    return out / weights[:, None]


def _still_growing(probe: _Probe, excess: Tensor, samples: int | None) -> bool:
    """Whether rows from fresh inputs see a direction that the rows so far did not."""
    if excess.shape[1] == 0:
        return False
    norms = probe.space.triangle.norm(dim=0) / max(probe.space.rows, 1) ** 0.5
    size = float((norms[:, None] * excess).norm(dim=0).max())
    rows = 0
    inputs = max(8, len(probe.seen) // 2) if samples is None else max(4, samples // 2)
    for _ in range(inputs):
        block = probe.fresh()
        if samples is None:
            probe.space.add(block)
        rows += block.shape[0]
        if float((block @ excess).abs().max()) > 1e-6 * max(size, 1e-30):
            return True
        if rows > 2 * probe.space.columns and samples is not None:
            break
    return False


def _uncovered_zeros(found: _Found, flat: Tensor) -> int:
    """Zero columns that are read and that the generators do not span."""
    zeros = found.zero & ~found.dead
    if not bool(zeros.any()):
        return 0
    # e_j lies in the span of the generators exactly when its projection has length one
    basis = torch.zeros(flat.shape[0], found.exact.shape[1], dtype=torch.float64)
    basis[~found.dead] = found.exact
    return int((basis[zeros].norm(dim=1) < 1.0 - 1e-6).sum())


def _tangent_defect(probe: _Probe, found: _Found, flat: Tensor) -> float:
    """The worst |J v| over exact generators, relative to the sum of its parts."""
    if flat.shape[1] == 0:
        return 0.0
    triangle = probe.space.triangle
    along = (triangle @ flat).norm(dim=0)
    parts = (triangle.norm(dim=0)[:, None] * flat).norm(dim=0)
    # a generator on dead or zero columns alone has no parts to compare with
    typical = float(triangle.norm()) / triangle.shape[1] ** 0.5
    return float((along / parts.clamp_min(1e-3 * typical)).max())


def _shares(subject: Subject, excess: Tensor, found: _Found) -> tuple[tuple[str, float], ...]:
    """Parameters that the hidden directions touch, with the share of their weight, largest first."""
    weights = torch.ones(excess.shape[0], dtype=torch.float64)
    weights[~found.zero] = 1.0 / found.scales
    energy = (excess * weights[:, None]).pow(2).sum(dim=1)
    total = float(energy.sum())
    shares, offset = [], 0
    for name in subject.names:
        size = subject.generic[name].numel()
        share = float(energy[offset : offset + size].sum()) / max(total, 1e-300)
        offset += size
        if share >= 0.01:
            shares.append((name, round(share, 3)))
    return tuple(sorted(shares, key=lambda s: -s[1])[:8])
