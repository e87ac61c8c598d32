"""What gradient descent keeps of the rotations of the outputs: the runs of docs/symmetry_by_duality.md.

    python examples/symmetry_in_training.py

An ensemble of tanh nets with three outputs is invariant under SO(3) at initialisation. It is trained four times; each
line shows p-values of the tests of SO(3), on correlators of the outputs and on the laws of readout weights and biases.
"""

from __future__ import annotations

from functools import partial

import torch

from torchgauge import fields
from torchgauge.fields.training import Loss, Optimiser, Record

POINTS = torch.tensor([[1.0, 0.2], [-0.3, 0.8], [-0.9, -0.7], [0.4, -1.1]], dtype=torch.float64)
CLASSES = torch.nn.functional.one_hot(torch.tensor([0, 1, 2, 0]), 3).double()
GRAM = torch.eye(4, dtype=torch.float64)
SGD, ADAM = torch.optim.SGD, torch.optim.Adam

RUNS: dict[str, tuple[Loss, Optimiser]] = {
    "loss of the inner products, gradient descent": (fields.of_invariants(GRAM), partial(SGD, lr=0.004)),
    "the same with momentum and weight decay": (
        fields.of_invariants(GRAM),
        partial(SGD, lr=0.001, momentum=0.8, weight_decay=0.01),
    ),
    "supervised loss, gradient descent": (fields.supervised(CLASSES), partial(SGD, lr=0.1)),
    "loss of the inner products, Adam": (fields.of_invariants(GRAM), partial(ADAM, lr=0.02)),
}


def follow(loss: Loss, optimiser: Optimiser, count: int = 5_000, steps: int = 60) -> list[Record]:
    """Train the ensemble and test SO(3) along the way."""
    ensemble = fields.tanh_net(6, inputs=2, outputs=3, sigma_b=0.5)
    asked = {"readout.weight": 0, "readout.bias": 0}
    return fields.track(
        ensemble, "SO(D)", POINTS, loss, count=count, steps=steps, every=20, optimiser=optimiser, parameters=asked
    )


def main() -> None:
    for name, (loss, optimiser) in RUNS.items():
        print(name)
        print("  step    loss   outputs   weights    biases")
        for record in follow(loss, optimiser):
            p = [record.outputs.p_value, *(test.p_value for test in record.parameters.values())]
            print(f"  {record.step:4d} {record.loss:7.3f} " + " ".join(f"{value:9.2g}" for value in p))


if __name__ == "__main__":
    main()
