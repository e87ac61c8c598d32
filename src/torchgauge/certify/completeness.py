"""Completeness: the nullity of ∂outputs/∂parameters against the rank of the generators (theory section 2)."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from torchgauge.certify.rank import CLEAR, Kernel, RowSpace, column_scales, kernel, kernel_basis, span, svd
from torchgauge.certify.subject import Evaluate, State, Subject

# rows taken from one input: few, because many inputs are worth more than many outputs of one
ROWS_PER_INPUT = 64
# rows per parameter: so many end it where nothing is hidden, and so many are what a hidden direction must have passed
FEWER, FULL = 1.25, 2.0
# a column this small, relative to the largest, is zero
DEAD = 1e-12
# a direction that moves the outputs by less than this, relative to a generic one, is in the kernel
STILL = 1e-7
# hidden directions at two points are at the same places if the cosine between the places is at least this: about 0.6
# for directions with random coefficients, and zero where it is another unit that sleeps
SAME = 0.3
# so many inputs in a row, and so many seconds, are looked at for one that sees a hidden direction
PATIENCE, HUNT = 48, 60.0


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
        few: further inputs would have made the nullity smaller.
        samples: inputs used.
        rows: rows used.
        notes: remarks.
        places: how much the hidden directions move each parameter entry, [P], a vector of length one; None where
            there are none.
    """

    orbit_dimension: int
    nullity: int
    gap: float
    dead: int
    zero_columns: int
    approximate_dimension: int
    tangent_defect: float
    hidden_in: tuple[tuple[str, float], ...]
    few: bool
    samples: int
    rows: int
    notes: tuple[str, ...] = ()
    places: Tensor | None = None

    def agrees(self, other: Completeness) -> bool:
        """Whether the hidden directions are as many as at another point, and at the same places."""
        if self.places is None or other.places is None or self.hidden != other.hidden:
            return False
        return float(self.places @ other.places) >= SAME

    @property
    def hidden(self) -> int:
        return self.nullity - self.orbit_dimension


@dataclass
class _Probe:
    """The growing evidence: inputs seen, their rows, and which columns never move."""

    subject: Subject
    state: State
    space: RowSpace
    seen: list[Evaluate]
    unused: frozenset[str] = frozenset()

    def draw(self, inputs: int | None, rows: int) -> None:
        """Takes `inputs` further inputs, or as many as give `rows` rows."""
        goal, taken = self.space.rows + rows, 0
        while taken < inputs if inputs is not None else self.space.rows < goal:
            self.space.add(self.fresh())
            taken += 1
            self.subject.tell(f"differentiating the outputs: {min(self.space.rows, goal):,} of {goal:,} rows")

    def fresh(self) -> Tensor:
        evaluate, rows = self.subject.sample_rows(ROWS_PER_INPUT)
        self.seen.append(evaluate)
        return rows


@dataclass(frozen=True)
class _Found:
    """One measurement: masks over the P parameter entries, counts, bases, and the generators that are in the kernel."""

    nullity: int
    kernel: Kernel
    zero: Tensor
    dead: Tensor
    scales: Tensor
    exact: Tensor
    known: Tensor
    hidden: int
    soft: int


def measure(
    subject: Subject,
    exact: Sequence[State],
    soft: Sequence[State],
    *,
    unused: Collection[str] = (),
    samples: int | None = None,
    rounds: int = 6,
    seconds: float = 300.0,
) -> Completeness:
    """Measures the kernel at generic parameters and compares it with the generators.

    Rows come from fresh inputs. The nullity can only fall with more rows, and generators that lie in the kernel bound
    it from below: where both agree it is final, and somewhat more rows than parameters are enough. Where the kernel is
    larger, there are twice as many, and then inputs are added until the excess stands still.

    Args:
        subject: the model.
        exact: exact generators at `subject.generic`.
        soft: generators there that are exact as every ε vanishes; exact ones among them do no harm.
        unused: parameters of which the lowered program says that no output depends on them.
        samples: a fixed number of inputs; adaptive when None.
        rounds: how often inputs are added while the nullity still falls.
        seconds: time after which no more inputs are added.
    """
    deadline = time.monotonic() + seconds
    count = subject.parameters
    probe = _Probe(subject, subject.generic, RowSpace(count), [], frozenset(unused))
    flat = _matrix(subject, exact)
    limit = _matrix(subject, soft)
    notes: list[str] = []
    for share in (FEWER, FULL):
        probe.draw(samples, int(share * count) + 16 - probe.space.rows)
        found = _compare(probe, flat, limit)
        if (found.hidden <= 0 and found.kernel.gap >= CLEAR) or samples is not None:
            break
    few, excess = False, None
    for _ in range(rounds):
        if found.hidden <= 0:
            break
        excess = _excess(probe, found)
        few = _hunt(probe, excess, keep=samples is None, deadline=deadline)
        if not few or samples is not None or time.monotonic() > deadline:
            break
        found, excess = _compare(probe, flat, limit), None
    if found.hidden > 0 and probe.space.rows < count:
        few = True
        each = max(1, probe.space.rows // max(1, len(probe.seen)))
        notes.append(
            f"inputs were too few: {len(probe.seen)} gave {probe.space.rows} rows for {count} parameters; "
            f"take {2 * count // each + 1}, or samples=None for as many as are needed"
        )
    elif few and found.hidden > 0:
        remedy = "take samples=None" if samples is not None else "give an example of more rows"
        notes.append(f"inputs were too few: further ones still saw what the {len(probe.seen)} did not; {remedy}")
    if not subject.draws.varied:
        notes.append("no input could be varied: every row comes from the example")
    uncovered = _uncovered_zeros(found, flat)
    if uncovered and found.hidden > 0:
        notes.append(f"{uncovered} parameter entries are read, move nothing, and no generator says why")
    if found.soft:
        notes.append(f"{found.soft} ε-directions are below rounding here and were taken off the nullity")
    tangent_defect = _tangent_defect(probe, found, flat)
    hidden_in: tuple[tuple[str, float], ...] = ()
    places = None
    if found.hidden > 0:
        excess = _excess(probe, found) if excess is None else excess
        if taken := _in_rows(subject, excess, found):
            found = replace(found, nullity=found.nullity - taken, hidden=found.hidden - taken)
            notes.append(
                f"{taken} directions move rows of tokens that no input reads as words and were taken off the nullity"
            )
    if found.hidden > 0 and excess is not None:
        energy = _energy(excess, found)
        hidden_in, places = _shares(subject, energy), F.normalize(energy.sqrt(), dim=0)
    exact_rank = found.exact.shape[1]
    both = span(torch.cat([flat, limit], dim=1)[~found.dead]).shape[1] if limit.shape[1] else exact_rank
    return Completeness(
        orbit_dimension=exact_rank,
        nullity=found.nullity,
        gap=found.kernel.gap,
        dead=int(found.dead.sum()),
        zero_columns=uncovered,
        approximate_dimension=both - exact_rank,
        tangent_defect=tangent_defect,
        hidden_in=hidden_in,
        few=few and found.hidden > 0,
        samples=len(probe.seen),
        rows=probe.space.rows,
        notes=tuple(notes),
        places=places,
    )


def _in_rows(subject: Subject, excess: Tensor, found: _Found) -> int:
    """How many hidden directions move, of tables that have rows which no input reads, those rows alone.

    The row of a padding token is read as a row of a tied classifier still, whose bias takes up what a norm makes
    constant.
    """
    unread, read = subject.rows_by_use
    if not bool(unread.any()):
        return 0
    read = read & ~found.dead
    known = span(found.known[read])
    rest = F.normalize(excess, dim=0)[read]
    rest = rest - known @ (known.T @ rest)
    return excess.shape[1] - int((torch.linalg.svdvals(rest) > STILL).sum())


def _matrix(subject: Subject, tangents: Sequence[State]) -> Tensor:
    """Generators as columns of size one, [P, n]."""
    columns = [subject.flatten(t) for t in tangents]
    if not columns:
        return torch.zeros(subject.parameters, 0, dtype=torch.float64)
    stacked = torch.stack(columns, dim=1)
    return stacked / stacked.norm(dim=0).clamp_min(1e-300)


def _compare(probe: _Probe, flat: Tensor, soft: Tensor) -> _Found:
    probe.subject.tell(f"factoring the Jacobian, {probe.space.rows:,} × {probe.space.columns:,}")
    triangle = probe.space.triangle
    norms = triangle.norm(dim=0)
    zero = norms <= DEAD * float(norms.max())
    dead = _dead(probe, zero)
    live = ~zero
    scales = column_scales(norms[live])
    small = kernel(triangle[:, live] * scales)
    exact = span(flat[~dead])
    nullity = small.dimension + int((zero & ~dead).sum())
    explained, known = 0, flat
    if soft.shape[1] and nullity > exact.shape[1]:
        # an ε far below rounding makes its soft direction a null one: it is neither hidden nor exact
        unscaled = triangle[:, ~dead]
        sizes = (unscaled.norm(dim=0)[:, None] * soft[~dead]).norm(dim=0)
        seen = sizes > DEAD * float(norms.max())
        moves = soft[:, seen] / sizes[seen]
        effects = torch.linalg.qr(unscaled @ moves[~dead], mode="r").R
        mixtures, sizes = svd(F.pad(effects, (0, 0, 0, max(0, effects.shape[1] - effects.shape[0]))).T)
        # also where several undo each other but for a product of two ε
        null = torch.cat([soft[:, ~seen], moves @ mixtures[:, sizes <= STILL]], dim=1)
        known = torch.cat([flat, null], dim=1)
        explained = span(known[~dead]).shape[1] - exact.shape[1]
        explained = min(explained, nullity - exact.shape[1])
    nullity -= explained
    return _Found(nullity, small, zero, dead, scales, exact, known, nullity - exact.shape[1], explained)


def _dead(probe: _Probe, zero: Tensor) -> Tensor:
    """Which zero columns no input reads: a NaN put there never comes out, or it only ever multiplies zero."""
    subject, dead = probe.subject, torch.zeros_like(zero)
    if not bool(zero.any()):
        return dead
    masks, offset = {}, 0
    for name in subject.names:
        shape = probe.state[name].shape
        size = shape.numel()
        mask = zero[offset : offset + size].reshape(shape)
        if name in probe.unused and bool(mask.all()):
            dead[offset : offset + size] = True
        elif bool(mask.any()):
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


def _excess(probe: _Probe, found: _Found) -> Tensor:
    """An orthonormal basis, [P, hidden], of kernel directions that are independent of the generators.

    Orthogonality is in coordinates where every column of the Jacobian has about size one.
    """
    live, kept = ~found.zero, ~found.dead
    zeros, small = (found.zero & kept).nonzero().flatten(), found.kernel.dimension
    null = torch.zeros(len(live), small + len(zeros), dtype=torch.float64)
    null[live, :small] = kernel_basis(probe.space.triangle[:, live] * found.scales, found.kernel)
    null[zeros, small + torch.arange(len(zeros))] = 1.0
    weights = torch.ones(len(live), dtype=torch.float64)
    weights[live] = 1.0 / found.scales
    known = span(found.known[kept] * weights[kept, None])
    null = null[kept]
    null = null - known @ (known.T @ null)
    left, _ = svd(null)
    out = torch.zeros(len(live), min(found.hidden, left.shape[1]), dtype=torch.float64)
    out[kept] = left[:, : out.shape[1]]
    # back to parameters
    return out / weights[:, None]


def _hunt(probe: _Probe, excess: Tensor, *, keep: bool, deadline: float) -> bool:
    """Looks for inputs that see a direction which the rows so far did not; whether there were any.

    One forward-mode product shows whether an input sees anything of a random combination of the directions, for a
    small part of the cost of its rows. Only outputs that do give rows.

    Args:
        probe: the evidence so far.
        excess: [P, hidden], directions that no row so far sees.
        keep: whether to add the rows to the evidence, and to look on.
        deadline: when to stop.
    """
    subject, sighted, idle, start = probe.subject, False, 0, time.monotonic()
    subject.tell(f"looking for inputs that see {excess.shape[1]} hidden directions")
    norms = probe.space.triangle.norm(dim=0) / max(probe.space.rows, 1) ** 0.5
    # directions of the size of one: a generic one would move an output by about so much
    unseen = excess / (norms[:, None] * excess).norm(dim=0).clamp_min(1e-3 * float(norms.max()) + 1e-300)
    patience = max(PATIENCE, len(probe.seen) // 2)
    while unseen.shape[1] and idle < patience and time.monotonic() < min(deadline, start + HUNT):
        evaluate = subject.sample()
        mixed = unseen @ torch.randn(unseen.shape[1], generator=subject.generator, dtype=torch.float64)
        moved = subject.push(evaluate, probe.state, subject.unflatten(mixed), scaled=True).cpu()
        hits = (moved.abs() > STILL).nonzero().flatten()
        idle += 1
        if not len(hits):
            continue
        hits = hits[torch.randperm(len(hits), generator=subject.generator)[:ROWS_PER_INPUT]]
        rows = subject.rows(evaluate, probe.state, len(hits), chosen=hits)
        left, values = svd((rows @ unseen).T)
        rank = int((values > STILL).sum())
        if rank == 0:
            continue
        sighted, idle = True, 0
        if not keep:
            break
        probe.seen.append(evaluate)
        probe.space.add(rows)
        unseen = unseen @ torch.linalg.qr(left[:, :rank], mode="complete").Q[:, rank:]
    return sighted


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


def _energy(excess: Tensor, found: _Found) -> Tensor:
    """How much directions [P, n] move each entry, where a step counts by what it would do to the outputs, [P]."""
    weights = torch.ones(excess.shape[0], dtype=torch.float64)
    weights[~found.zero] = 1.0 / found.scales
    return (excess * weights[:, None]).square().sum(dim=1)


def _shares(subject: Subject, energy: Tensor) -> tuple[tuple[str, float], ...]:
    """Parameters that the hidden directions touch, with the share of their weight, largest first."""
    total = float(energy.sum())
    shares, offset = [], 0
    for name in subject.names:
        size = subject.generic[name].numel()
        share = float(energy[offset : offset + size].sum()) / max(total, 1e-300)
        offset += size
        if share >= 0.01:
            shares.append((name, round(share, 3)))
    return tuple(sorted(shares, key=lambda s: -s[1])[:8])
