"""The model under test as a pure function of its state, evaluated in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchgauge import numerics
from torchgauge.capture import positional, state_of
from torchgauge.certify.draws import Draws, reserved
from torchgauge.errors import InputError

State = dict[str, Tensor]
Evaluate = Callable[[Mapping[str, Tensor]], list[Tensor]]
Tell = Callable[[str], None]


class Subject:
    """A model, a stream of inputs, and its outputs as a function of its state.

    Args:
        model: the module; never changed.
        args: example positional arguments.
        kwargs: example keyword arguments.
        generator: source of inputs.
        tell: is told what is being done, for whoever waits.
    """

    def __init__(
        self,
        model: nn.Module,
        args: Any,
        kwargs: Mapping[str, Any],
        generator: torch.Generator,
        tell: Tell | None = None,
    ) -> None:
        self.model = model
        self.generator = generator
        self.tell: Tell = tell or (lambda text: None)
        own = state_of(model)
        self.ties = own.ties
        self._state: State = {**own.params, **own.buffers}
        self.names = [name for name, p in own.params.items() if p.is_floating_point()]
        self.parameters = sum(own.params[name].numel() for name in self.names)
        self.meta = any(t.is_meta for t in self._state.values())
        self.args, self.kwargs = positional(args), dict(kwargs)
        self._draws: Draws | None = None
        self._generic: State | None = None

    # -- states ------------------------------------------------------------------------------------------------
    @property
    def generic(self) -> State:
        """A generic float64 state: gains not one, biases not zero, running statistics not trivial."""
        if self._generic is None:
            self._generic = self.resolve(numerics.randomise(self.model, self.generator))
        return self._generic

    def renew(self, state: State | None = None) -> None:
        """Moves to another generic state: to `state`, or to a random one."""
        self._generic = state

    def own(self) -> State:
        """The model's own state in float64."""
        state = {k: v.detach() for k, v in self._state.items()}
        return self.resolve({k: v.to(torch.float64) if v.is_floating_point() else v for k, v in state.items()})

    def resolve(self, state: Mapping[str, Tensor]) -> State:
        """The state with every tied name on the tensor of its canonical name."""
        return {**state, **{name: state[canonical] for name, canonical in self.ties.items() if canonical in state}}

    # -- inputs ------------------------------------------------------------------------------------------------
    @property
    def draws(self) -> Draws:
        if self._draws is None:
            state = self.generic

            def run(args: tuple, kwargs: dict) -> Any:
                return self.at(args, kwargs)(state)

            self._draws = Draws(self.args, self.kwargs, run, self.generator, reserved(self.model))
        return self._draws

    @cached_property
    def rows_by_use(self) -> tuple[Tensor, Tensor]:
        """Of tables with rows that no input reads as words: these rows, and the others, both [P].

        A padding token that is in no input, and placeholders of pictures and sounds that are replaced behind the table.
        """
        masks: tuple[list[Tensor], list[Tensor]] = ([], [])
        rows: dict[int, set[int]] = {}
        for m in self.model.modules():
            table = getattr(m, "weight", None)
            if getattr(m, "padding_idx", None) in self.draws.absent:
                rows.setdefault(id(table), set()).update(self.draws.absent)
            if isinstance(m, nn.Embedding) and (placed := self._replaced(m)):
                rows.setdefault(id(table), set()).update(placed)
        for name in self.names:
            unread = torch.zeros(self._state[name].shape, dtype=torch.bool)
            for i in rows.get(id(self._state[name]), ()):
                if i < unread.shape[0]:
                    unread[i] = True
            masks[0].append(unread.reshape(-1))
            masks[1].append((~unread & unread.any()).reshape(-1))
        return torch.cat(masks[0]), torch.cat(masks[1])

    def _replaced(self, table: nn.Embedding) -> set[int]:
        """Reserved identifiers of the example whose rows of a table are looked up, and do not reach an output."""
        met: set[int] = set()
        if not self.draws.reserved:
            return met

        def spoil(_: nn.Module, args: tuple, out: Any) -> Any:
            ids = args[0] if args else None
            if not isinstance(ids, Tensor) or not isinstance(out, Tensor) or out.shape[:-1] != ids.shape:
                return out  # a table with a call of its own
            met.update(i for i in self.draws.reserved if bool((ids == i).any()))
            hit = torch.isin(ids, torch.tensor(sorted(met), dtype=ids.dtype, device=ids.device))
            return out.masked_fill(hit.unsqueeze(-1), float("nan"))

        hook = table.register_forward_hook(spoil)
        try:
            with torch.no_grad():
                seen = any(not bool(o.isfinite().all()) for o in self.example()(self.generic))
        finally:
            hook.remove()
        return set() if seen else met

    def example(self) -> Evaluate:
        """The model at the example input."""
        return self.at(*self.draws.example)

    def sample(self) -> Evaluate:
        """The model at the next input for which its outputs are finite."""
        return next(self._finite(lambda evaluate: evaluate(self.generic)))[0]

    def sample_rows(self, at_most: int) -> tuple[Evaluate, Tensor]:
        """The model at the next such input, with rows of its Jacobian at the generic state."""
        return next(self._finite(lambda evaluate: [self.rows(evaluate, self.generic, at_most)]))  # pyright: ignore

    def _finite(self, call: Callable[[Evaluate], list[Tensor]]) -> Iterator[tuple[Evaluate, Any]]:
        tries = [self.draws.next] * 4 + [lambda: self.draws.example]
        for make in tries:
            evaluate = self.at(*make())
            found = call(evaluate)
            if all(bool(o.isfinite().all()) for o in found):
                yield evaluate, found[0]
        raise InputError(
            "the outputs are not finite at generic parameters, even for the example input",
            where=type(self.model).__name__,
            remedy="Give an example input for which the model returns finite numbers.",
        )

    # -- evaluation --------------------------------------------------------------------------------------------
    def at(self, args: tuple, kwargs: dict) -> Evaluate:
        return numerics.evaluator(self.model, args, kwargs)

    def rows(self, evaluate: Evaluate, state: State, at_most: int, chosen: Tensor | None = None) -> Tensor:
        """Rows of ∂outputs/∂parameters: all of them, or `at_most` random combinations, or those chosen, [n, P].

        Args:
            evaluate: the model at some input.
            state: where to differentiate.
            at_most: how many rows, where none are chosen.
            chosen: entries of all outputs in one vector, as `push` numbers them.
        """
        leaves = {name: state[name].detach().clone().requires_grad_() for name in self.names}
        y = _flat(evaluate(self.with_leaves(state, leaves)), scaled=True)
        if not y.requires_grad:
            return torch.zeros(1, self.parameters, dtype=torch.float64)
        if chosen is not None:
            cotangents = F.one_hot(chosen.cpu(), y.numel()).to(torch.float64)
        elif y.numel() <= at_most:
            cotangents = torch.eye(y.numel(), dtype=torch.float64)
        else:
            cotangents = torch.randn(at_most, y.numel(), generator=self.generator, dtype=torch.float64)
            cotangents /= y.numel() ** 0.5
        cotangents = cotangents.to(y.device)
        # bounded memory: a chunk of rows is held as whole gradients
        chunk = max(1, int(2e8 / (8 * max(self.parameters, 1))))
        parts = [_pull(y, list(leaves.values()), part) for part in cotangents.split(chunk)]
        return torch.cat(parts).cpu()

    def push(self, evaluate: Evaluate, state: State, tangent: Mapping[str, Tensor], *, scaled: bool = False) -> Tensor:
        """The derivative of the outputs along a direction of the parameters, flat; scaled as in `rows`, if asked."""
        moved = {name: tangent[name].to(torch.float64) for name in self.names if name in tangent}
        base = {name: state[name].to(torch.float64) for name in moved}

        def f(leaves: State) -> Tensor:
            return _flat(evaluate(self.with_leaves(state, leaves)), scaled)

        try:
            return torch.func.jvp(f, (base,), (moved,))[1].detach()
        except (RuntimeError, NotImplementedError):
            # an operator without forward-mode formula: central differences, good to about 1e-10
            size = max(float(v.norm()) for v in moved.values())
            step = 1e-5 / max(size, 1e-30)
            with torch.no_grad():
                ahead = f({k: base[k] + step * v for k, v in moved.items()})
                behind = f({k: base[k] - step * v for k, v in moved.items()})
            return (ahead - behind) / (2 * step)

    def flatten(self, tangent: Mapping[str, Tensor]) -> Tensor:
        """A direction of the parameters as one vector, [P], in the order of `names`."""
        parts = [
            tangent[n].detach().to("cpu", torch.float64) if n in tangent else torch.zeros(self._state[n].shape).double()
            for n in self.names
        ]
        return torch.cat([p.reshape(-1) for p in parts])

    def unflatten(self, vector: Tensor) -> State:
        """A direction of the parameters from one vector, [P]."""
        out, offset = {}, 0
        for name in self.names:
            like = self._state[name]
            out[name] = vector[offset : offset + like.numel()].reshape(like.shape).to(like.device)
            offset += like.numel()
        return out

    def with_leaves(self, state: State, leaves: Mapping[str, Tensor]) -> State:
        """The state with other tensors for some canonical names."""
        return {name: leaves.get(name, value) for name, value in state.items() if name not in self.ties}


def _flat(outputs: list[Tensor], scaled: bool = False) -> Tensor:
    """All outputs in one vector; scaled, each to size one, so that none drowns another."""
    parts = [o.reshape(-1) for o in outputs]
    if scaled:
        parts = [p / p.detach().abs().max().clamp_min(1e-30) if p.numel() else p for p in parts]
    return torch.cat(parts)


def _pull(y: Tensor, leaves: list[Tensor], cotangents: Tensor) -> Tensor:
    try:
        grads = torch.autograd.grad(y, leaves, cotangents, is_grads_batched=True, allow_unused=True, retain_graph=True)
        n = cotangents.shape[0]
        return torch.cat([_or_zero(g, p, n) for g, p in zip(grads, leaves, strict=True)], dim=1)
    except RuntimeError:
        # a backward formula that cannot be batched
        rows = []
        for c in cotangents:
            grads = torch.autograd.grad(y, leaves, c, allow_unused=True, retain_graph=True)
            rows.append(torch.cat([_or_zero(g, p, 1) for g, p in zip(grads, leaves, strict=True)], dim=1))
        return torch.cat(rows)


def _or_zero(grad: Tensor | None, leaf: Tensor, rows: int) -> Tensor:
    return leaf.new_zeros(rows, leaf.numel()) if grad is None else grad.reshape(rows, -1)


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[bool]:
    """Dropout layers in evaluation mode while the context lasts; yields whether there were active ones."""
    kinds = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
    active = [m for m in model.modules() if isinstance(m, kinds) and m.training and m.p > 0]
    for m in active:
        m.training = False
    try:
        yield bool(active)
    finally:
        for m in active:
            m.training = True


# a soft direction has a singular value of about 0.3 ε: at this ε it stands well above the cut
VISIBLE = 1e-4
_EPSILON = ("eps", "epsilon", "variance_epsilon", "layer_norm_eps", "norm_eps", "rms_norm_eps")


@contextmanager
def visible_epsilon(model: nn.Module) -> Iterator[int]:
    """Every positive ε of a normalisation at least `VISIBLE` while the context lasts; yields how many were raised.

    The exact group is the same for every ε > 0, but a direction that is approximate for a small ε cannot be told from
    an exact one by numbers. Batch norm in evaluation mode keeps its ε: it is part of the statistics.
    """
    with _epsilon(model, VISIBLE, lambda value: 0.0 < value < VISIBLE) as changed:
        yield changed


@contextmanager
def no_epsilon(model: nn.Module) -> Iterator[int]:
    """The same with every ε that can be set at zero; yields how many were not zero."""
    with _epsilon(model, 0.0, lambda value: value > 0.0) as changed:
        yield changed


@contextmanager
def _epsilon(model: nn.Module, new: float, chosen: Callable[[float], bool]) -> Iterator[int]:
    saved: list[tuple[nn.Module, str, float]] = []
    for module in model.modules():
        if "running_var" in dict(module.named_buffers(recurse=False)) and not module.training:
            continue
        for name in _EPSILON:
            value = vars(module).get(name)
            if isinstance(value, float) and chosen(value):
                saved.append((module, name, value))
                vars(module)[name] = new
    try:
        yield len(saved)
    finally:
        for module, name, value in saved:
            vars(module)[name] = value
