"""The first stage of a group element: matrices, permutations, scales and signs on every axis.

An index axis i is moved as x'[i] = x[p[i]]; after that matrices and scales act at the new index, so that for two
elements x'' = (g₂ g₁) x has p = p₁∘p₂, M = M₂ · M₁[p₂].
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property

import torch
from torch import Tensor

from torchgauge.action.coordinates import statistics
from torchgauge.action.layout import Block, Leg, blocks, place_of
from torchgauge.groups import matrices
from torchgauge.spaces.axes import Axis, Kind
from torchgauge.spaces.charges import NONE, Charge, Row, Solution, Var, split_axis
from torchgauge.spaces.constraints import Program
from torchgauge.spaces.frames import FramePass

Coordinates = dict[str, Tensor]


@dataclass(frozen=True)
class FrameElement:
    """Values of every frame variable; what is missing is the identity."""

    mats: Mapping[Axis, Tensor] = field(default_factory=dict)
    perms: Mapping[Axis, Tensor] = field(default_factory=dict)
    logs: Mapping[Var, Tensor] = field(default_factory=dict)
    signs: Mapping[Var, Tensor] = field(default_factory=dict)


def depends(root: Axis) -> tuple[Axis, ...]:
    """Index axes, unfolded and ordered, that the frame of a root may depend on."""
    if root.quotient is not None:
        return depends(root.quotient.root)
    if root.pinned and root.kind is Kind.INDEX:
        return ()
    found: set[Axis] = set()
    for axis in root.depends:
        grounds = axis.ground()
        if all(not g.summands for g in grounds):
            found.update(g for g in grounds if g is not root and g.kind is Kind.INDEX)
    return tuple(sorted(found, key=lambda a: a.serial))


@dataclass
class FrameStage:
    """Frames of one program, with charges solved."""

    program: Program
    frames: FramePass
    solution: Solution

    @cached_property
    def layout(self) -> dict[str, list[Block]]:
        leaves = self.program.params | {f"buffer:{n}": t for n, t in self.program.buffers.items()}
        found = {name: blocks(self.frames.values[t], t.shape) for name, t in leaves.items() if t in self.frames.values}
        for block in (b for bs in found.values() for b in bs):
            present = {leg.root for leg in block.legs}
            for leg in block.legs:
                # one summand of a concatenation may lack an index that another has
                for root in (leg.root, leg.root.quotient.root if leg.root.quotient else leg.root):
                    if any(d not in present for d in depends(root)):
                        root.depends = frozenset(d for d in depends(root) if d in present)
        return found

    @cached_property
    def vectors(self) -> list[Axis]:
        """Roots that carry matrices, in order of appearance in the parameters."""
        used = (leg.root for bs in self.layout.values() for b in bs for leg in b.legs)
        found = dict.fromkeys(r for r in used if r.kind.vector and not r.fresh)
        for r in list(found):
            if r.quotient is not None:
                del found[r]
                if r.quotient.root.kind.vector:
                    found[r.quotient.root] = None
        return list(found)

    @cached_property
    def covers(self) -> list[Axis]:
        """Roots in front of layer norms: their frame is a shear times the frame behind the norm."""
        used = (leg.root for bs in self.layout.values() for b in bs for leg in b.legs)
        return list(dict.fromkeys(r for r in used if r.quotient is not None))

    @cached_property
    def sheared(self) -> list[Axis]:
        """Covers that something other than a layer norm reads (else the shear is an invisible direction)."""
        legs = [leg for bs in self.layout.values() for b in bs for leg in b.legs]
        return [r for r in self.covers if any(leg.root is r and leg.label.flip for leg in legs)]

    def lifted(self, g: FrameElement, shears: Mapping[Axis, Tensor]) -> FrameElement:
        """Complete an element by the matrices in front of layer norms: (1 + 1wᵀ) Q."""
        mats = dict(g.mats)
        for r in self.covers:
            assert r.quotient is not None
            behind, eye = r.quotient.root, torch.eye(r.size, dtype=torch.float64)
            if behind in g.perms:
                core = torch.nn.functional.one_hot(g.perms[behind], r.size).double()
            else:
                core = g.mats[behind] if behind in g.mats else eye
            shear = eye + shears[r][..., None, :] if r in shears else eye
            if core is not eye or r in shears:
                mats[r] = shear @ core
        return replace(g, mats=mats)

    @cached_property
    def indices(self) -> list[Axis]:
        """Roots that are permuted, each after those that it depends on."""
        used = [leg.root for bs in self.layout.values() for b in bs for leg in b.legs]
        wanted = list(dict.fromkeys(r for r in used if r.kind is Kind.INDEX and not r.pinned and r.size > 1))
        ordered: list[Axis] = []
        while wanted:
            ready = [r for r in wanted if not any(d in wanted for d in depends(r))] or wanted[:1]
            ordered.extend(ready)
            wanted = [r for r in wanted if r not in ready]
        return ordered

    # -- charges -----------------------------------------------------------------------------------------------
    def row(self, charge: Charge, block: Block, group: int | None, odd: bool = False) -> Row:
        """A charge over the free variables, on one block, as seen from one dimension of the parameter."""
        raw: Row = {v: Fraction(1) for v in charge.odd} if odd else dict(charge.log)
        while split := next(((v, w) for v in raw if (w := split_axis([v])) is not None), None):
            var, whole = split
            piece = var.piece(whole, block.choice(whole, group))
            raw[piece] = raw.get(piece, Fraction(0)) + raw.pop(var)
        return self.solution.odd_row(raw) if odd else self.solution.log_row(raw)

    def leg_charge(self, leg: Leg) -> Charge:
        label, root = leg.label, leg.root
        if label.dress and not root.kind.vector:
            extra = sum((self.frames.frames.gain_axes[g][1].scaled(p) for g, p in label.dress), NONE)
            label = replace(label, dress=(), charge=label.charge + extra)
        return label.charge + (root.charge.scaled(-1 if label.flip else 1) if root.charge else NONE)

    @cached_property
    def rows(self) -> dict[str, list[list[tuple[int | None, Row, Row]]]]:
        """Per parameter and block: (leg dimension or None for the explicit charge, log row, sign row)."""
        out: dict[str, list[list[tuple[int | None, Row, Row]]]] = {}
        for name, bs in self.layout.items():
            explicit = NONE if name.startswith("buffer:") else self.frames.values[self.program.params[name]].charge
            out[name] = []
            for block in bs:
                terms: list[tuple[int | None, Row, Row]] = []
                charges = [(None, None, explicit)]
                charges += [(leg.dim, leg.group, self.leg_charge(leg)) for leg in block.legs]
                for dim, group, charge in charges:
                    odd = self.row(charge, block, group, odd=True)
                    terms.append((dim, self.row(charge, block, group), odd))
                out[name].append(terms)
        return out

    def _effective(self, odd: bool) -> list[Var]:
        """Free variables that move some parameter; combinations that always occur together count once."""
        columns: dict[Var, dict] = {}
        for name, per_block in self.rows.items():
            if name.startswith("buffer:"):
                continue
            for i, terms in enumerate(per_block):
                sums: dict[tuple, object] = {}
                legs = {leg.dim: leg.root for leg in self.layout[name][i].legs}
                twice = len(set(legs.values())) != len(legs)
                for dim, logs, odds in terms:
                    for v, q in (odds if odd else logs).items():
                        key = (name, i, dim if twice else None, v)
                        sums[key] = sums.get(key, 0) + q  # type: ignore[operator]
                for (n, b, d, v), q in sums.items():
                    if q % 2 if odd else q:  # type: ignore[operator]
                        columns.setdefault(v, {})[(n, b, d)] = q
        return list(columns)

    @cached_property
    def log_vars(self) -> list[Var]:
        return self._effective(odd=False)

    @cached_property
    def sign_vars(self) -> list[Var]:
        return self._effective(odd=True)

    # -- elements ----------------------------------------------------------------------------------------------
    def sample(self, generator: torch.Generator | None, scale: float) -> FrameElement:
        mats = {r: matrices.sample(r.kind.value, r.size, sizes(depends(r)), scale, generator) for r in self.vectors}
        perms = {r: self._permutation(r, generator) for r in self.indices}
        logs = {
            v: scale * (torch.rand(var_sizes(v), generator=generator, dtype=torch.float64) * 2 - 1)
            for v in self.log_vars
        }
        signs = {v: torch.randint(0, 2, var_sizes(v), generator=generator).double() * 2 - 1 for v in self.sign_vars}
        shears = {
            r: scale * torch.randn(*sizes(depends(r)), r.size, generator=generator, dtype=torch.float64) / r.size
            for r in self.sheared
        }
        return self.lifted(FrameElement(mats, perms, logs, signs), shears)

    def _permutation(self, root: Axis, generator: torch.Generator | None) -> Tensor:
        noise = torch.rand(*sizes(depends(root)), root.size, generator=generator)
        return noise.argsort(-1)

    def pull(
        self, array: Tensor, axes: tuple[Axis, ...], perms: Mapping[Axis, Tensor], groups: tuple[int, ...] = ()
    ) -> Tensor:
        """array[..., p[i], ...]: a function on index axes, read at the permuted indices."""
        for root in self.indices:
            if root in perms:
                for dim, axis in enumerate(axes):
                    if axis is root:
                        array = _gather(array, dim, perms[root], depends(root), axes, groups)
        return array

    def compose(self, g: FrameElement, h: FrameElement) -> FrameElement:
        """First h, then g."""
        mats = dict(g.mats)
        for r, m in h.mats.items():
            pulled = self.pull(m, (*depends(r), r, r), {k: p for k, p in g.perms.items() if k is not r})
            mats[r] = g.mats[r] @ pulled if r in g.mats else pulled
        logs = self._add(g.logs, h.logs, g.perms, torch.add)
        signs = self._add(g.signs, h.signs, g.perms, torch.mul)
        perms = dict(g.perms)
        for r, p in h.perms.items():
            perms[r] = self.pull(p, (*depends(r), r), g.perms)
        return FrameElement(mats, perms, logs, signs)

    def _add(self, g: Mapping[Var, Tensor], h: Mapping[Var, Tensor], perms: Mapping[Axis, Tensor], op) -> dict:
        out = dict(g)
        for v, a in h.items():
            pulled = self.pull(a, var_axes(v), perms)
            out[v] = op(g[v], pulled) if v in g else pulled
        return out

    def inverse(self, g: FrameElement) -> FrameElement:
        perms: dict[Axis, Tensor] = {}
        for r in self.indices:
            if r in g.perms:
                outer = self.pull(g.perms[r], (*depends(r), _ANY), perms)
                perms[r] = outer.argsort(-1)
        mats = {r: self.pull(torch.linalg.inv(m), (*depends(r), _ANY, _ANY), perms) for r, m in g.mats.items()}
        logs = {v: self.pull(-a, var_axes(v), perms) for v, a in g.logs.items()}
        signs = {v: self.pull(a, var_axes(v), perms) for v, a in g.signs.items()}
        return FrameElement(mats, perms, logs, signs)

    # -- action ------------------------------------------------------------------------------------------------
    def act(self, g: FrameElement, params: Coordinates) -> Coordinates:
        """New coordinates; tensors that nothing moves are passed on unchanged."""
        gains = {t.name for t in self.frames.frames.gain_axes if t.role == "param"}
        order = sorted(self.layout, key=lambda n: n not in gains)
        new = dict(params)
        duals: dict[Axis, Tensor] = {}
        for name in order:
            if name in params:
                new[name] = self._move(g, name, params, new, duals)
            if name.startswith("buffer:"):
                for other in statistics(self.program, name.removeprefix("buffer:")):
                    new[f"raw:{other}"] = self._permuted(g, self.layout[name], params[f"raw:{other}"])
        return new

    def _permuted(self, g: FrameElement, layout: list[Block], statistic: Tensor) -> Tensor:
        """A batch-norm statistic moved with its channels."""
        parts = []
        for block in layout:
            roots: list[Axis] = [_ANY] * len(block.sizes)
            for leg in block.legs:
                roots[leg.dim] = leg.root
            parts.append((block, self.pull(block.view(statistic), tuple(roots), g.perms, block.groups)))
        return _assemble(statistic, parts)

    def _move(
        self, g: FrameElement, name: str, old: Coordinates, new: Coordinates, duals: dict[Axis, Tensor]
    ) -> Tensor:
        if not any(self._touches(g, name, i, block) for i, block in enumerate(self.layout[name])):
            return old[name]
        tensor = old[name]
        whole = len(self.layout[name]) == 1
        out = tensor if whole else torch.zeros_like(tensor)
        moved_blocks = []
        for i, block in enumerate(self.layout[name]):
            moved = self._move_block(g, name, i, block, block.view(tensor), old, new, duals)
            if whole:
                return moved.reshape(tensor.shape)
            moved_blocks.append((block, moved))
        return _assemble(out, moved_blocks)

    def _touches(self, g: FrameElement, name: str, i: int, block: Block) -> bool:
        for leg in block.legs:
            if leg.root in g.mats or leg.root in g.perms or leg.label.dress:
                return True
        return any(v in g.logs or v in g.signs for _, a, b in self.rows[name][i] for v in (*a, *b))

    def _move_block(
        self,
        g: FrameElement,
        name: str,
        i: int,
        block: Block,
        t: Tensor,
        old: Coordinates,
        new: Coordinates,
        duals: dict[Axis, Tensor],
    ) -> Tensor:
        roots: list[Axis] = [_ANY] * len(block.sizes)
        for leg in block.legs:
            roots[leg.dim] = leg.root
        t = self.pull(t, tuple(roots), g.perms, block.groups)
        for leg in block.legs:
            if leg.root.kind.vector and leg.root in g.mats:
                t = self._turn(g, leg, t, tuple(roots), block.groups, old, new, duals)
            elif leg.root.kind.vector and leg.label.dress:
                t = t * _along(self.dress(leg, new) / self.dress(leg, old), leg.dim, t.ndim)
        if name.startswith("buffer:"):
            return t
        log, sign = None, None
        for dim, logs, odds in self.rows[name][i]:
            for v, q in logs.items():
                if v in g.logs:
                    term = _spread(g.logs[v], var_axes(v), tuple(roots), block.groups, dim, t.ndim) * float(q)
                    log = term if log is None else log + term
            for v in odds:
                if v in g.signs:
                    term = _spread(g.signs[v], var_axes(v), tuple(roots), block.groups, dim, t.ndim)
                    sign = term if sign is None else sign * term
        if log is not None:
            t = t * torch.exp(log)
        return t if sign is None else t * sign

    def dress(self, leg: Leg, coordinates: Coordinates) -> Tensor:
        """Product of the gains [n] that conjugate a leg's frame."""
        out = None
        for gain, power in leg.label.dress:
            key = gain.name if gain.role == "param" else f"buffer:{gain.name}"
            value = coordinates[key].reshape(-1) ** power
            out = value if out is None else out * value
        assert out is not None
        return out

    def _turn(
        self,
        g: FrameElement,
        leg: Leg,
        t: Tensor,
        roots: tuple[Axis, ...],
        groups: tuple[int, ...],
        old: Coordinates,
        new: Coordinates,
        duals: dict[Axis, Tensor],
    ) -> Tensor:
        m = g.mats[leg.root]
        if leg.label.flip and leg.root.kind not in (Kind.O, Kind.O1):
            if leg.root not in duals:
                duals[leg.root] = torch.linalg.inv(m).mT
            m = duals[leg.root]
        if leg.label.dress:
            t = t * _along(1 / self.dress(leg, old), leg.dim, t.ndim)
        letters = string.ascii_letters[: t.ndim]
        batch = "".join(letters[place_of(d, roots, groups, leg.dim)] for d in depends(leg.root))
        here = letters[leg.dim]
        out = letters.replace(here, "Z")
        t = torch.einsum(f"{batch}Z{here},{letters}->{out}", m, t)
        if leg.label.dress:
            t = t * _along(self.dress(leg, new), leg.dim, t.ndim)
        return t


_ANY = Axis(1, "any", Kind.INDEX, pinned=True)


def var_axes(var: Var) -> tuple[Axis, ...]:
    """Root axes of a free variable, in the order of its array's dimensions."""
    return tuple(sorted((a for a in var.support() if a.size > 1), key=lambda a: a.serial))


def sizes(axes: tuple[Axis, ...]) -> tuple[int, ...]:
    return tuple(a.size for a in axes)


def var_sizes(var: Var) -> tuple[int, ...]:
    return sizes(var_axes(var))


def _gather(
    array: Tensor, dim: int, perm: Tensor, deps: tuple[Axis, ...], axes: tuple[Axis, ...], groups: tuple[int, ...]
) -> Tensor:
    """array'[.., i, ..] = array[.., perm[deps, i], ..] along `dim`."""
    if perm.ndim == 1:
        return array.index_select(dim, perm)
    places = [place_of(d, axes, groups, dim) for d in deps]
    if -1 in places:
        raise AssertionError("a permutation depends on an axis that the array lacks")
    index = perm.permute(*_order([*places, dim]))
    shape = [1] * array.ndim
    for place, n in zip(sorted([*places, dim]), index.shape, strict=True):
        shape[place] = n
    return torch.gather(array, dim, index.reshape(shape).expand(*array.shape[:dim], -1, *array.shape[dim + 1 :]))


def _order(places: list[int]) -> list[int]:
    return sorted(range(len(places)), key=lambda i: places[i])


def _along(vector: Tensor, dim: int, ndim: int) -> Tensor:
    return vector.reshape([-1 if i == dim else 1 for i in range(ndim)])


def _spread(
    array: Tensor, axes: tuple[Axis, ...], roots: tuple[Axis, ...], groups: tuple[int, ...], dim: int | None, ndim: int
) -> Tensor:
    """A function on index axes, broadcast over the dimensions of a block."""
    places: list[int] = []
    for k, axis in enumerate(axes):
        if dim is not None and roots[dim] is axis:
            places.append(dim)
        elif axis in roots:
            places.append(roots.index(axis) if dim is None else place_of(axis, roots, groups, dim))
        else:
            array = array.narrow(k, 0, 1)
            places.append(-1)
    keep = [k for k, p in enumerate(places) if p >= 0]
    array = array.reshape([array.shape[k] for k in keep])
    real = [places[k] for k in keep]
    array = array.permute(*_order(real)) if real else array
    shape = [1] * ndim
    for place, n in zip(sorted(real), array.shape, strict=True):
        shape[place] = n
    return array.reshape(shape)


def _assemble(out: Tensor, parts: list[tuple[Block, Tensor]]) -> Tensor:
    """Write blocks into a parameter (functional, so that forward-mode derivatives pass)."""
    index = torch.arange(out.numel(), device=out.device).reshape(out.shape)
    places = torch.cat([block.view(index).reshape(-1) for block, _ in parts])
    values = torch.cat([moved.reshape(-1) for _, moved in parts])
    return values[places.argsort()].reshape(out.shape)
