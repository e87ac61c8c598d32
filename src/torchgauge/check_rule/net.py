"""A tiny network around one call: linear layers make the data, a linear layer reads every result."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchgauge.check_rule.calls import Call, run, sample

WIDTH, READ = 5, 5
"""Inputs and outputs of the layers: no fewer than units, or a layer's kernel would be a symmetry too."""
CENTRES = {
    "real": (0.0, 1.0, 1.0),
    "unit": (0.0, 0.3, 0.12),
    "fraction": (0.5, 0.15, 0.05),
    "positive": (2.0, 0.4, 0.25),
    "above one": (3.0, 0.4, 0.25),
}
"""Middle and spread of the biases, and size of the weights, that keep data in a domain."""


class Around(nn.Module):
    """out = read(operator(make(x), ...)).

    Args:
        call: the operator and its arguments.
        dim: the dimension of the data that the layers in front make; the same for all data.
        out: the dimension of the results that the layers behind read.
        generator: of the parameters, which are generic.
    """

    def __init__(self, call: Call, dim: int, out: int, generator: torch.Generator) -> None:
        super().__init__()
        self.call, self.dim, self.out = call, dim, out
        middle, spread, size = CENTRES[call.domain]
        self.made = nn.ModuleList()
        for d in call.data:
            layer = nn.Linear(WIDTH, d.shape[self._dim(d.shape)], dtype=torch.float64)
            with torch.no_grad():
                layer.weight.copy_(size * torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64))
                noise = torch.randn(layer.bias.shape, generator=generator, dtype=torch.float64).clamp(-1, 1)
                layer.bias.copy_(middle + spread * noise)
            self.made.append(layer)
        for i, w in enumerate(call.weights):
            if w.buffer:
                # the name that a statistic of a batch norm goes by
                self.register_buffer(f"{'running_var' if w.positive else 'running_mean'}_{i}", w.make(generator))
            else:
                self.register_parameter(f"weight_{i}", nn.Parameter(w.make(generator)))
        results = run(call, [sample(d.shape, call.domain, generator) for d in call.data], self.weights)
        self.read = nn.ModuleList()
        for r in results:
            layer = nn.Linear(r.shape[self._out(r)] if r.ndim else 1, READ, dtype=torch.float64)
            with torch.no_grad():
                for p in layer.parameters():
                    p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
            self.read.append(layer)

    def _dim(self, shape: tuple[int, ...]) -> int:
        """The dimension, counted from the end where data have fewer dimensions than the first."""
        ndim = len(self.call.data[0].shape)
        return max(0, self.dim - ndim + len(shape))

    def _out(self, result: Tensor) -> int:
        return min(self.out, result.ndim - 1)

    @property
    def weights(self) -> list[Tensor]:
        """The operator's own parameters and buffers, in the order of its arguments."""
        own = {**dict(self.named_parameters(recurse=False)), **dict(self.named_buffers(recurse=False))}
        return [own[name] for name in sorted(own, key=lambda n: int(n.rsplit("_", 1)[1]))]

    def inputs(self, generator: torch.Generator, spread: float = 1.0) -> tuple[Tensor, ...]:
        """Fresh inputs, between −1 and 1 where the data must stay in a domain, else of this size."""
        made = []
        for d in self.call.data:
            at = self._dim(d.shape)
            shape = (*d.shape[:at], *d.shape[at + 1 :], WIDTH)
            x = torch.randn(shape, generator=generator, dtype=torch.float64)
            made.append(spread * x if self.call.domain == "real" else torch.tanh(x))
        return tuple(made)

    def data(self, *xs: Tensor) -> list[Tensor]:
        """What the operator is given."""
        made = zip(self.made, xs, self.call.data, strict=True)
        return [layer(x).movedim(-1, self._dim(d.shape)).contiguous() for layer, x, d in made]

    def forward(self, *xs: Tensor) -> tuple[Tensor, ...]:
        results = run(self.call, self.data(*xs), self.weights)
        shaped = [r.movedim(self._out(r), -1) if r.ndim else r[None] for r in results]
        return tuple(layer(r) for layer, r in zip(self.read, shaped, strict=True))
