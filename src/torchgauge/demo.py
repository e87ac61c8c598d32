"""The demonstration: train two small networks, inspect and certify them, and put one in disguise.

`python -m torchgauge.demo` takes less than a minute.
"""

from __future__ import annotations

import sys
import time
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import torchgauge as tg
from torchgauge.errors import TorchGaugeError
from torchgauge.report import Subject, console, render_error, render_inspect, view_group

SEED = 0


@dataclass(frozen=True)
class Digits:
    """scikit-learn's 1,797 digits of 8 × 8 pixels, in [0, 1]; every fifth is kept for testing."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


def digits() -> Digits:
    """Loads the digits.

    Raises:
        TorchGaugeError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise TorchGaugeError(
            "the demonstration reads scikit-learn's digits", "", "pip install scikit-learn"
        ) from error
    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32) / 16  # pyright: ignore[reportAttributeAccessIssue]
    y = torch.tensor(data.target)  # pyright: ignore[reportAttributeAccessIssue]
    test = torch.arange(len(x)) % 5 == 0
    return Digits(x[~test], y[~test], x[test], y[test])


def mlp() -> nn.Sequential:
    """4 × 4 pooled pixels → 24 (ReLU) → 16 (tanh) → 10."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        pool=nn.AvgPool2d(2),
        flatten=nn.Flatten(),
        hidden1=nn.Linear(16, 24),
        relu=nn.ReLU(),
        hidden2=nn.Linear(24, 16),
        tanh=nn.Tanh(),
        classes=nn.Linear(16, 10),
    )
    return nn.Sequential(layers)


def cnn() -> nn.Sequential:
    """Two convolutions with batch norms, average pooling and a linear layer."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        image=nn.Unflatten(1, (1, 8)),
        conv1=nn.Conv2d(1, 6, 3, padding=1),
        norm1=nn.BatchNorm2d(6),
        relu1=nn.ReLU(),
        conv2=nn.Conv2d(6, 8, 3, padding=1),
        norm2=nn.BatchNorm2d(8),
        relu2=nn.ReLU(),
        pool=nn.AvgPool2d(4),
        flatten=nn.Flatten(),
        classes=nn.Linear(8 * 4, 10),
    )
    return nn.Sequential(layers)


def train(model: nn.Module, data: Digits, epochs: int) -> None:
    """Adam on cross-entropy, batches of 64; leaves the model in evaluation mode."""
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(SEED)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(data.x), generator=generator).split(64):
            loss = nn.functional.cross_entropy(model(data.x[batch]), data.y[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, data: Digits) -> float:
    """The share of test digits that are named correctly."""
    return (model(data.x_test).argmax(1) == data.y_test).double().mean().item()


def show(name: str, model: nn.Module, data: Digits) -> tg.GaugeGroup:
    """Inspects and certifies one model."""
    args = (data.x_test[:4],)
    group = tg.infer(model, args)
    parameters = list(model.parameters())
    subject = Subject(
        f"{name}, test accuracy {accuracy(model, data):.1%}",
        type(model).__name__,
        sum(p.numel() for p in parameters),
        len(parameters),
        {"x": str(list(args[0].shape))},
    )
    out = console()
    out.rule(name)
    out.print(render_inspect(view_group(subject, group)))
    certificate = tg.certify(model, args, group=group)
    out.print(str(certificate))
    if not certificate.holds:
        raise TorchGaugeError("the certificate does not hold", name, "This is an error of torchgauge: report it.")
    return group


def disguise(name: str, model: nn.Module, group: tg.GaugeGroup, data: Digits) -> None:
    """Moves every factor of the group, then compares weights and predictions."""
    element = group.random(torch.Generator().manual_seed(SEED + 1))
    before = {key: value.detach().clone() for key, value in model.state_dict().items()}
    after = group.act(element, before)
    floats = [key for key, value in before.items() if value.is_floating_point()]
    moved = sum(int((before[k] != after[k]).sum()) for k in floats)
    size = sum(before[k].numel() for k in floats)
    distance = torch.cat([(after[k] - before[k]).flatten() for k in floats]).norm()
    norm = torch.cat([before[k].flatten() for k in floats]).norm()
    with torch.no_grad():
        logits = model(data.x_test)
        model.load_state_dict(after)
        disguised = model(data.x_test)
        model.load_state_dict(before)
    gap = ((disguised - logits).abs().max() / logits.abs().max()).item()
    same = int((disguised.argmax(1) == logits.argmax(1)).sum())
    out = console()
    out.rule(f"{name} in disguise: a random element, every factor moved")
    out.print(f"numbers that changed:    {moved:,} of {size:,}")
    out.print(f"distance of the weights: {distance / norm:.2f} times their norm")
    out.print(f"largest change in a logit, relative: {gap:.1e} (float32)")
    out.print(f"equal predictions:       {same} of {len(logits)} test digits\n")
    if same != len(logits) or gap > 1e-4:
        raise TorchGaugeError("the disguised model predicts otherwise", name, "This is an error of torchgauge.")


def main() -> int:
    """Runs the demonstration; exit status as in the command line."""
    start = time.perf_counter()
    torch.set_num_threads(1)  # the networks are so small that more threads only wait for each other
    torch.manual_seed(SEED)
    try:
        data = digits()
        networks = {"a multilayer perceptron": (mlp(), 60), "a convolutional network": (cnn(), 15)}
        groups: dict[str, tg.GaugeGroup] = {}
        for name, (model, epochs) in networks.items():
            train(model, data, epochs)
            groups[name] = show(name, model, data)
        for name, (model, _) in networks.items():
            disguise(name, model, groups[name], data)
    except TorchGaugeError as error:
        console(stderr=True).print(render_error(error))
        return 2
    console().print(f"done in {time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
