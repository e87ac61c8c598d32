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
from torchgauge.action.layout import Leg, Unfolded, place_of, unfolded
from torchgauge.groups import matrices
from torchgauge.spaces.axes import Axis, Kind
from torchgauge.spaces.charges import NONE, Charge, Row, Solution, Var
from torchgauge.spaces.constraints import Program
from torchgauge.spaces.frames import FramePass

Coordinates = dict[str, Tensor]
Term = tuple[int | None, Row, Row]
"""(dimension of the leg that carries a charge, or None for the explicit one; log row; sign row)."""


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
    found = {g for axis in root.depends for g in axis.ground() if g is not root and g.kind is Kind.INDEX}
    return tuple(sorted(found, key=lambda a: a.serial))


@dataclass
class FrameStage:
    """Frames of one program, with charges solved."""

    program: Program
    frames: FramePass
    solution: Solution

    @cached_property
    def layout(self) -> dict[str, Unfolded]:
        leaves = self.program.params | {f"buffer:{n}": t for n, t in self.program.buffers.items()}
        values = self.frames.values
        return {name: unfolded(values[t], t.shape) for name, t in leaves.items() if t in values}

    @cached_property
    def legs(self) -> list[Leg]:
        return [leg for layout in self.layout.values() for leg in layout.legs]

    @cached_property
    def vectors(self) -> list[Axis]:
        """Roots that carry matrices, in order of appearance in the parameters."""
        found = dict.fromkeys(leg.root for leg in self.legs if leg.root.kind.vector and not leg.root.fresh)
        for r in list(found):
            if r.quotient is not None:
                del found[r]
                if r.quotient.root.kind.vector:
                    found[r.quotient.root] = None
        return list(found)

    @cached_property
    def covers(self) -> list[Axis]:
        """Roots in front of layer norms: their frame is a shear times the frame behind the norm."""
        return list(dict.fromkeys(leg.root for leg in self.legs if leg.root.quotient is not None))

    @cached_property
    def sheared(self) -> list[Axis]:
        """Covers that something other than a layer norm reads (else the shear is an invisible direction)."""
        return [r for r in self.covers if any(leg.root is r and leg.label.flip for leg in self.legs)]

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
        roots = dict.fromkeys(leg.root for leg in self.legs)
        wanted = [r for r in roots if r.kind is Kind.INDEX and not r.pinned and r.size > 1]
        ordered: list[Axis] = []
        while wanted:
            ready = [r for r in wanted if not any(d in wanted for d in depends(r))] or wanted[:1]
            ordered.extend(ready)
            wanted = [r for r in wanted if r not in ready]
        return ordered

    # -- charges -----------------------------------------------------------------------------------------------
    def leg_charge(self, leg: Leg) -> Charge:
        label, root = leg.label, leg.root
        if label.dress and not root.kind.vector:
            extra = sum((self.frames.frames.gain_axes[g].trade.scaled(p) for g, p in label.dress), NONE)
            label = replace(label, dress=(), charge=label.charge + extra)
        return label.charge + (root.charge.scaled(-1 if label.flip else 1) if root.charge else NONE)

    @cached_property
    def rows(self) -> dict[str, list[Term]]:
        """What scales and signs each parameter, over the free variables."""
        out: dict[str, list[Term]] = {}
        for name, layout in self.layout.items():
            explicit = NONE if name.startswith("buffer:") else self.frames.values[self.program.params[name]].charge
            charges = [(None, explicit), *((leg.dim, self.leg_charge(leg)) for leg in layout.legs)]
            out[name] = [
                (
                    dim,
                    self.solution.log_row(dict(charge.log)),
                    self.solution.odd_row({v: Fraction(1) for v in charge.odd}),
                )
                for dim, charge in charges
            ]
        return out

    def _effective(self, odd: bool) -> list[Var]:
        """Free variables that move some parameter."""
        moving: dict[Var, None] = {}
        for name, terms in self.rows.items():
            if name.startswith("buffer:"):
                continue
            sums: dict[tuple[int | None, Var], Fraction] = {}
            roots = self.layout[name].roots
            twice = len(set(roots.values())) != len(roots)
            for dim, logs, odds in terms:
                for v, q in (odds if odd else logs).items():
                    key = (dim if twice else None, v)
                    sums[key] = sums.get(key, Fraction(0)) + q
            moving |= dict.fromkeys(v for (_, v), q in sums.items() if (q % 2 if odd else q))
        return list(moving)

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
        # what is conjugated by a gain reads its new value: of a parameter or a statistic
        gains = {t.name if t.role == "param" else f"buffer:{t.name}" for t in self.frames.frames.gain_axes}
        order = sorted(self.layout, key=lambda n: n not in gains)
        new = dict(params)
        duals: dict[Axis, Tensor] = {}
        for name in order:
            if name in params:
                new[name] = self._move(g, name, params, new, duals)
            if name.startswith("buffer:"):
                key = name.removeprefix("buffer:")
                for other in statistics(self.program, key):
                    raw = f"raw:{key}:{other}"
                    new[raw] = self._permuted(g, name, params[raw])
        return new

    def _roots(self, name: str) -> tuple[Axis, ...]:
        """The root on every unfolded dimension."""
        layout = self.layout[name]
        return tuple(layout.roots.get(d, _ANY) for d in range(len(layout.sizes)))

    def _permuted(self, g: FrameElement, name: str, statistic: Tensor) -> Tensor:
        """A batch-norm statistic moved with its channels."""
        layout = self.layout[name]
        moved = self.pull(statistic.reshape(layout.sizes), self._roots(name), g.perms, layout.groups)
        return moved.reshape(statistic.shape)

    def _touches(self, g: FrameElement, name: str) -> bool:
        for leg in self.layout[name].legs:
            if leg.root in g.mats or leg.root in g.perms or leg.label.dress:
                return True
        return any(v in g.logs or v in g.signs for _, a, b in self.rows[name] for v in (*a, *b))

    def _move(
        self, g: FrameElement, name: str, old: Coordinates, new: Coordinates, duals: dict[Axis, Tensor]
    ) -> Tensor:
        if not self._touches(g, name):
            return old[name]
        layout, roots = self.layout[name], self._roots(name)
        t = self.pull(old[name].reshape(layout.sizes), roots, g.perms, layout.groups)
        for leg in layout.legs:
            if leg.root.kind.vector and leg.root in g.mats:
                t = self._turn(g, leg, t, roots, layout.groups, old, new, duals)
            elif leg.root.kind.vector and leg.label.dress:
                t = t * self.dress(leg, new, roots, layout.groups)
                t = t / self.dress(leg, old, roots, layout.groups, g.perms)
        if not name.startswith("buffer:"):
            t = self._scaled(g, name, t, roots, layout.groups)
        return t.reshape(old[name].shape)

    def _scaled(
        self, g: FrameElement, name: str, t: Tensor, roots: tuple[Axis, ...], groups: tuple[int, ...]
    ) -> Tensor:
        log, sign = None, None
        for dim, logs, odds in self.rows[name]:
            for v, q in logs.items():
                if v in g.logs:
                    term = _spread(g.logs[v], var_axes(v), roots, groups, dim, t.ndim) * float(q)
                    log = term if log is None else log + term
            for v in odds:
                if v in g.signs:
                    term = _spread(g.signs[v], var_axes(v), roots, groups, dim, t.ndim)
                    sign = term if sign is None else sign * term
        if name in self.program.rates:
            # the gain is the exponential of the parameter: what multiplies the one is added to the other
            return t if log is None else t + log / self.program.rates[name]
        if log is not None:
            t = t * torch.exp(log)
        return t if sign is None else t * sign

    def dress(
        self,
        leg: Leg,
        coordinates: Coordinates,
        roots: tuple[Axis, ...],
        groups: tuple[int, ...],
        perms: Mapping[Axis, Tensor] | None = None,
    ) -> Tensor:
        """Product of the gains that conjugate a leg's frame, to broadcast over a block; `perms`: read permuted."""
        out = None
        for tensor, power in leg.label.dress:
            key = tensor.name if tensor.role == "param" else f"buffer:{tensor.name}"
            gain = self.frames.frames.gain_axes[tensor]
            axes = [leaf for axis in gain.axes for leaf in ([axis] if axis is gain.own else axis.leaves())]
            own = [axis is gain.own for axis in axes]
            value = coordinates[key].reshape([axis.size for axis in axes])
            inside = tuple(_ANY if mine else axis.root for axis, mine in zip(axes, own, strict=True))
            value = self.pull(value, inside, perms or {})
            places = [
                leg.dim if mine else place_of(root, roots, groups, leg.dim)
                for root, mine in zip(inside, own, strict=True)
            ]
            value = _placed(value, places, len(roots)) ** power
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
        if leg.label.flip and not leg.root.kind.metric:
            if leg.root not in duals:
                duals[leg.root] = torch.linalg.inv(m).mT
            m = duals[leg.root]
        if leg.label.dress:
            t = t / self.dress(leg, old, roots, groups, g.perms)
        letters = string.ascii_letters[: t.ndim]
        batch = "".join(letters[place_of(d, roots, groups, leg.dim)] for d in depends(leg.root))
        here = letters[leg.dim]
        out = letters.replace(here, "Z")
        t = torch.einsum(f"{batch}Z{here},{letters}->{out}", m, t)
        if leg.label.dress:
            t = t * self.dress(leg, new, roots, groups)
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


def _placed(array: Tensor, places: list[int], ndim: int) -> Tensor:
    """An array whose dimensions go to the given places among `ndim`."""
    assert -1 not in places, "a gain depends on an axis that the array lacks"
    array = array.permute(*_order(places)) if places else array
    shape = [1] * ndim
    for place, n in zip(sorted(places), array.shape, strict=True):
        shape[place] = n
    return array.reshape(shape)


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
    return _placed(array, [places[k] for k in keep], ndim)
