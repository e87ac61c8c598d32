"""Joining and narrowing axes: unification with a meet in the lattice of frame kinds.

Every step only ever removes frames, so whatever the order, what is left at the end is a group of symmetries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torchgauge.spaces.axes import SAME, Axis, Kind, Label, attached, common
from torchgauge.spaces.charges import NONE, Charge, Var
from torchgauge.spaces.ledger import Ledger


@dataclass
class Frames(Ledger):
    """The state of one inference: joins and narrows axes, and keeps the equations between charges."""

    # -- narrowing ---------------------------------------------------------------------------------------------
    def narrow(self, axis: Axis, kind: Kind) -> None:
        """Meet of the class of `axis` with `kind`, at this member's place."""
        self.settle(axis, frozenset([axis]) if kind.vector and axis.view_of else None)
        self._flatten(axis)
        leaves = axis.leaves()
        if len(leaves) != 1 or leaves[0] is not axis:
            for leaf in leaves:
                self.narrow(leaf, kind)
            return
        root, label = axis.find()
        if kind is Kind.INDEX or root.conjugates:
            self._to_index(root)
        if kind is Kind.INDEX:
            return
        if root.kind is Kind.INDEX:
            if kind.plane:
                self.pin(axis)
                self.system.constant(self.total(axis), (axis,), "both entries of a rotary pair scale together")
            return
        met = root.kind.meet(kind)
        if root.kind is Kind.GL:
            self._reroot(axis)
            self._specialise(axis, kind)
        elif label.dress or met is Kind.INDEX:
            self._to_index(root)
            self.narrow(axis, kind)
        elif met is not root.kind:
            self._specialise(root, met)

    def normalized(self, axis: Axis) -> Axis:
        """The axis behind a layer norm over `axis`.

        The norm does not see the vector of ones, so in front of it any M = (1 + 1wᵀ) Q will do, Q orthogonal with
        Q 1 = 1; behind it stands Q. (P M = Q P for the projection P along ones.)
        """
        root, label = axis.find()
        if root.quotient is not None and not label.dress and not label.flip:
            return attached(root.quotient, SAME, axis.name)
        free = root.kind is Kind.GL and not root.conjugates
        if free and not (root.factors or root.views) and root.quotient is None:
            self._reroot(axis)
            self._note(axis, Kind.O1.value)
            scale = Var(f"scale of {axis.name}", tuple(axis.depends), origin=self.source)
            axis.charge, axis.fresh = Charge.of(scale), False
            axis.quotient = Axis(axis.size, axis.name, Kind.O1, depends=axis.depends)
            axis.quotient.narrowings = axis.narrowings
            self.covers.append(axis)
            return attached(axis.quotient, SAME, axis.name)
        self.narrow(axis, Kind.O1)
        return axis

    def _flatten(self, axis: Axis, *, both: bool = False) -> None:
        """Let frames in front of layer norms be those behind them: the shear 1 + 1wᵀ is given up.

        `both`: also for what stands in front of this axis.
        """
        for leaf in axis.leaves():
            root = leaf.root
            if both:
                for cover in self.covers:
                    if cover.quotient is not None and cover.quotient.root is root:
                        self._flatten(cover)
            if root.quotient is not None:
                behind, charge = root.quotient, root.charge
                root.quotient, root.charge = None, NONE
                below, label = behind.find()
                self._adopt(root, below, Label(charge=charge).after(label))
                if not below.kind.vector:
                    self._join_gains(below)
                if both:
                    self._flatten(leaf, both=True)  # other spaces may stand in front of that one too

    def _join_gains(self, root: Axis) -> None:
        for gain in sorted(root.gains, key=lambda g: g.name):
            gain_axis = self.gain_axes[gain].own
            if gain_axis.root is not root.root:
                self.join_index(gain_axis, root)

    def _specialise(self, root: Axis, kind: Kind) -> None:
        self._note(root, kind.value)
        before, root.kind, root.fresh = root.kind, kind, False
        if kind.metric:
            magnitude, sign = not before.metric, kind is Kind.O1
            var = Var(f"scale of {root.name}", tuple(root.depends), magnitude, sign, origin=self.source)
            root.charge = root.charge + Charge.of(var)

    def _reroot(self, axis: Axis) -> None:
        """Make a member the root (only frames without a metric can be measured from any place)."""
        root, label = axis.find()
        if root is axis:
            return
        axis.parent, axis.label = None, SAME
        root.parent, root.label = axis, label.inverse()
        for name in (
            "kind",
            "pinned",
            "fresh",
            "depends",
            "charge",
            "gains",
            "conjugates",
            "narrowings",
            "factors",
            "quotient",
        ):
            setattr(axis, name, getattr(root, name))
        axis.charge, axis._children = NONE, ()
        assert not root.charge

    def _to_index(self, root: Axis) -> None:
        if root.kind is Kind.INDEX:
            return
        before, was_fresh = root.kind, root.fresh
        self._note(root, "permutations")
        root.kind, root.fresh = Kind.INDEX, False
        if before.plane:
            # of complex numbers only the real ones are diagonal
            root.pinned = True
            var = Var(f"scale of {root.name}", tuple(root.depends), before is Kind.COMPLEX, origin=self.source)
            root.charge = root.charge + Charge.of(var)
        elif not was_fresh and before is not Kind.O1:
            axes = (root, *root.depends)
            var = Var(f"scale of {root.name}", axes, magnitude=before is Kind.GL, origin=self.source)
            root.charge = root.charge + Charge.of(var)
        self._join_gains(root)

    def pin(self, axis: Axis) -> None:
        """No permutation, and no matrix, on this axis; its charges stay."""
        self.settle(axis)
        self._flatten(axis)
        for leaf in axis.leaves():
            root = leaf.root
            self._to_index(root)
            root = leaf.root
            if root.factors:
                self.pin(leaf)
            elif not root.pinned:
                self._note(root, "rigid")
                root.pinned = True

    def limit_depends(self, axis: Axis, allowed: frozenset[Axis]) -> None:
        """The frame of `axis` may depend on these axes only."""
        root = axis.root
        if root.quotient is not None:
            self.limit_depends(root.quotient, allowed)
        if root.depends:
            kept = frozenset(d for d in root.depends if all(g in allowed and g not in self.mixed for g in d.ground()))
            if kept != root.depends:
                root.depends = kept

    def limit_dress(self, axis: Axis, allowed: frozenset[Axis]) -> bool:
        """The gains that conjugate a frame may depend on these index axes only; returns whether matrices were lost."""
        lost = False
        for leaf in axis.leaves():
            root, label = leaf.find()
            if root.kind.vector and any(not self.gain_axes[gain].index <= allowed for gain, _ in label.dress):
                self._flatten(leaf, both=True)
                self._to_index(leaf.root)
                lost = True
        return lost

    # -- joining -----------------------------------------------------------------------------------------------
    def equate(self, a: Axis, b: Axis, label: Label) -> bool:
        """Demand frame(a) = label(frame(b)), matrices and charges, on single unfolded axes.

        Returns True when the charges are settled by the join, False when the caller must still equate totals
        (index axes carry permutations only).
        """
        self.settle(a)
        self.settle(b)
        self._meet_quotients(a, b, label)
        (ra, la), (rb, lb) = a.find(), b.find()
        if ra.factors or rb.factors:
            done = [self.equate(x, y, label) for x, y in self.pairs(a, b)]
            return bool(done) and all(done)
        if not (ra.kind.vector and rb.kind.vector) or (ra is not rb and (ra.conjugates or rb.conjugates)):
            self._to_index(ra)
            self._to_index(rb)
            self.join_index(a, b)
            return False
        if ra is rb:
            self._loop(a, b, label)
            return True
        if ra.kind is not Kind.GL and rb.kind is not Kind.GL:
            between, met = la.inverse().after(label).after(lb), ra.kind.meet(rb.kind)
            if between.dress or met is Kind.INDEX:
                self._to_index(ra)
                self._to_index(rb)
                self.join_index(a, b)
                return False
            for root in (ra, rb):
                if root.kind is not met:
                    self._specialise(root, met)
            if met.metric:
                # class charges and the label's agree
                charge = between.charge + rb.charge.scaled(-1 if between.flip else 1)
                self.system.zero(ra.charge - charge, self.reason)
            ra.charge = NONE
            self._adopt(ra, rb, Label(between.flip, between.charge))
        elif ra.kind is Kind.GL and ra.quotient is None:
            self._adopt(ra, rb, la.inverse().after(label).after(lb))
        else:
            self._adopt(rb, ra, lb.inverse().after(label.inverse()).after(la))
        return True

    def _meet_quotients(self, a: Axis, b: Axis, label: Label) -> None:
        """Before two axes are joined: keep what stands behind layer norms only where both sides agree."""
        (ra, la), (rb, lb) = a.find(), b.find()
        if ra.quotient is None and rb.quotient is None:
            return
        between = la.inverse().after(label).after(lb)
        plain = [r for r in (ra, rb) if r.quotient is None]
        if ra is rb:
            keep = not between.dress and not between.flip
        elif plain:
            keep = plain[0].kind is Kind.GL and not plain[0].factors
        else:
            keep = not between.dress and not between.flip
        if not keep:
            self._flatten(a)
            self._flatten(b)
        elif ra is not rb and not plain:
            assert ra.quotient is not None and rb.quotient is not None
            self.equate(ra.quotient, rb.quotient, SAME)
            self.system.zero(ra.charge - between.charge - rb.charge, self.reason)
            ra.charge, ra.quotient = NONE, None

    def follow(self, own: Axis, given: Axis) -> None:
        """An unused parameter's axis takes the dual of a given one, charges included."""
        self.settle(given)
        self.settle(own)
        if own.root.factors or given.root.factors:
            for p, q in self.pairs(own, given):
                self.follow(p, q)
            return
        if own.root.kind.vector and given.root.kind.vector and own.size > 1 and not given.root.conjugates:
            self.equate(own, given, Label(flip=True))
            return
        self._flatten(given)
        self._flatten(own)
        self._to_index(given.root)
        self._to_index(own.root)
        wanted = -self.total(given)
        if own.root is not given.root:
            self.join_index(given, own, keep=True)
        root, _ = own.find()
        if own is root:
            self.system.zero(self.total(own) - wanted, self.reason)
            return
        own.parent, own.label = root, Label(False, wanted - root.charge)

    def recharge(self, own: Axis, charge: Charge) -> bool:
        """Add a charge to the label of a member that no other tensor carries."""
        leaves = own.leaves()
        if own.parent is None or leaves[0].parent is None:
            return False
        leaf = leaves[0]
        root, label = leaf.find()
        leaf.parent, leaf.label = root, Label(label.flip, label.charge + charge, label.dress)
        return True

    def pairs(self, a: Axis, b: Axis) -> list[tuple[Axis, Axis]]:
        """As `match`, but factors of size one that stand alone are paired too."""
        return [(a, b)] if a.size == 1 and a.leaves() == [a] and b.leaves() == [b] else self.match([a], [b])

    def _adopt(self, child: Axis, root: Axis, label: Label) -> None:
        """Hang the class of `child` below `root`; both are roots of single unfolded axes."""
        assert not child.factors and not root.factors and child is not root
        if child.fresh != root.fresh:
            root.depends = root.depends if child.fresh else child.depends
        else:
            root.depends = common(child.depends, root.depends)
        root.fresh = root.fresh and child.fresh
        root.gains |= child.gains
        root.gains |= {g for g, _ in label.dress}
        root.conjugates = root.conjugates or child.conjugates
        root.narrowings.extend(child.narrowings)
        root.pinned = root.pinned or child.pinned
        root.chosen = root.chosen or child.chosen
        root.repeated = root.repeated and child.repeated
        child.parent, child.label = root, label

    def _loop(self, a: Axis, b: Axis, label: Label) -> None:
        """Two members of one class are asked for a relation that the class may not have."""
        (root, la), (_, lb) = a.find(), b.find()
        between = la.inverse().after(label).after(lb)
        if between.dress:
            self._to_index(root)
            total_a, total_b = self.total(a), self.total(b)
            self.system.zero(total_a - label.charge - (-total_b if label.flip else total_b), self.reason)
        elif between.flip and root.kind.vector and not root.kind.metric:
            self.narrow(root, Kind.O)
            self._loop(a, b, label)
        else:
            total_a, total_b = self.total(a), self.total(b)
            self.system.zero(total_a - label.charge - (-total_b if label.flip else total_b), self.reason)

    def join_index(self, a: Axis, b: Axis, *, keep: bool = False) -> None:
        """The same permutation on both index axes; the charges of either stay what they are.

        `keep`: the class of a stays on top.
        """
        self._flatten(a)
        self._flatten(b)
        if a.sample is not b.sample and not self._sampled(a, b):
            return
        ra, rb = a.root, b.root
        if ra is rb:
            return
        if ra.factors or rb.factors:
            for x, y in self.match([ra], [rb]):
                self.join_index(x, y)
            return
        if ra.kind.vector or rb.kind.vector:
            self._to_index(ra)
            self._to_index(rb)
            self.join_index(a, b, keep=keep)
            return
        if ra.size != rb.size:
            keep = ra.size > rb.size
            ra, rb = (ra, rb) if keep else (rb, ra)
            keep = True
        root, child = (ra, rb) if keep or ra.serial < rb.serial else (rb, ra)
        offset = child.charge - root.charge
        child.charge = NONE
        self._adopt(child, root, Label(False, offset))
        self._join_gains(root)

    def _sampled(self, a: Axis, b: Axis) -> bool:
        """Two members that stand for different positions of a class: whether the second may become like the first."""
        if a.sample is None:
            a, b = b, a
        if b.sample is None and b.root is b and b.repeated:
            b.sample = a.sample
            return True
        for axis in (a, b):
            # beside positions that are no choice an entry is still the one that was chosen there
            if b.sample is not None:
                self.mixed.update(axis.ground())
            if axis.sample is None:
                self.pin(axis)
                self.system.zero(self.total(axis), self.reason)
        return False

    # -- structure ---------------------------------------------------------------------------------------------
    def settle(self, axis: Axis, vectors: frozenset[Axis] | None = None) -> None:
        """Decide which factors of a reshaped space are indices and which carry matrices.

        Without `vectors` the last factor other than `axis` keeps the matrices.
        """
        whole = (axis.view_of or axis).root
        if not whole.views or whole.factors:
            return
        views = whole.views
        chosen = vectors if vectors is not None else frozenset([[v for v in views if v is not axis][-1]])
        outer = frozenset(v for v in views if v not in chosen)
        seen: frozenset[Axis] = frozenset()
        for view in views:
            view.view_of, view.fresh, view.pinned = None, whole.fresh, whole.pinned
            view.narrowings = list(whole.narrowings)
            view.depends = whole.depends | (outer if view in chosen else seen)
            if view in chosen:
                view.kind = whole.kind
            else:
                view.kind = Kind.INDEX
                seen |= {view}
                self._note(view, "permutations of blocks")
        bearer = [v for v in views if v in chosen][-1] if chosen else views[0]
        bearer.charge, whole.charge = whole.charge, NONE
        if not chosen and not whole.fresh:
            magnitude, sign = not whole.kind.metric, whole.kind is not Kind.O1
            var = Var(f"scale of {whole.name}", (*views, *whole.depends), magnitude, sign, origin=self.source)
            bearer.charge = bearer.charge + Charge.of(var)
        whole.factors = views

    def split(self, axis: Axis, sizes: tuple[int, ...], vectors: Sequence[int] = ()) -> tuple[Axis, ...] | None:
        """Factors of an axis in a reshape; None when it cannot be divided that way.

        `vectors`: the factors that keep the matrices, where that must be decided (the last one, if none).
        """
        self._flatten(axis, both=True)
        root, label = axis.find()
        if root.chosen:
            return None
        names = [f"{axis.name}.{i}" for i in range(len(sizes))]
        if root.kind is Kind.GL and label == SAME and not root.gains and root.charge is NONE:
            if root.views:
                if tuple(v.size for v in root.views) == sizes:
                    return root.views
                self.settle(root.views[0])
                return None
            root.views = tuple(Axis(n, m, view_of=root, fresh=root.fresh) for n, m in zip(sizes, names, strict=True))
            return root.views
        if label.dress or root.gains or root.kind.plane:
            self._to_index(root)
            root, label = axis.find()
        if root.kind.vector:
            root.views = tuple(Axis(n, m, view_of=root, fresh=root.fresh) for n, m in zip(sizes, names, strict=True))
            self.settle(root.views[0], frozenset(root.views[i] for i in vectors or (-1,)))
        else:
            parts: list[Axis] = []
            for n, m in zip(sizes, names, strict=True):
                depends = root.depends | frozenset(parts)
                parts.append(Axis(n, m, Kind.INDEX, root.pinned, depends=frozenset() if root.pinned else depends))
            root.factors = tuple(parts)
            if root.charge:
                parts[0].charge, root.charge = root.charge, NONE
        return axis.children()

    def _cross(self, *axes: Axis) -> None:
        """Axes whose divisions lie across one another: no frame, and nothing that varies along them."""
        self.crossed.extend(axes)
        for axis in axes:
            self.pin(axis)
            for leaf in axis.leaves():
                self.system.zero(self.total(leaf), self.reason)

    def match(self, xs: list[Axis], ys: list[Axis]) -> list[tuple[Axis, Axis]]:
        """Pair the unfolded factors of two dimensions of equal size, splitting where one is finer."""
        for axis in (*xs, *ys):
            if axis.view_of is None:
                self.settle(axis)
        left = [leaf for x in xs for leaf in x.leaves() if leaf.size != 1]
        right = [leaf for y in ys for leaf in y.leaves() if leaf.size != 1]
        pairs: list[tuple[Axis, Axis]] = []
        while left and right:
            a, b = left[0], right[0]
            if a.size == b.size:
                pairs.append((left.pop(0), right.pop(0)))
                continue
            big, small = (left, right) if a.size > b.size else (right, left)
            parts = None
            taken, size = 0, 1
            while size < big[0].size and taken < len(small):
                size *= small[taken].size
                taken += 1
            if size == big[0].size:
                vectors = [i for i, s in enumerate(small[:taken]) if s.root.kind.vector]
                parts = self.split(big[0], tuple(s.size for s in small[:taken]), vectors)
                if parts is not None and any(p.view_of for p in parts):
                    self._settle_like(big[0], parts, small[:taken])
            elif big[0].size % small[0].size == 0:
                parts = self.split(big[0], (small[0].size, big[0].size // small[0].size))
                if parts is not None and any(p.view_of for p in parts):
                    self.settle(parts[0], frozenset(parts[-1:]))
            if parts is None:
                self._cross(*left, *right)
                return pairs
            unfolded = [leaf for p in parts for leaf in p.leaves()]
            big[:1] = unfolded
        # indices first: what matrices may depend on is joined before they are
        return sorted(pairs, key=lambda pair: pair[0].root.kind.vector and pair[1].root.kind.vector)

    def _settle_like(self, whole: Axis, parts: tuple[Axis, ...], pattern: list[Axis]) -> None:
        """Read a fresh space in the way the other side is already divided."""
        vectors = frozenset(p for p, q in zip(parts, pattern, strict=True) if q.root.kind.vector)
        self.settle(parts[0], vectors)
