"""Training from an initialisation that breaks the rotations of the outputs: the experiment of Maiti, Stoner, Halverson.

A ReLU net without biases, pixels → hidden → classes. The first layer is normal with variance 1/pixels, and so is the
last with variance 1/hidden, but for the rows of the first k classes, which have the mean μ. For μ = 0 or k = 0 the
ensemble at initialisation is invariant under O(classes); otherwise only under rotations that fix the mean vector (arXiv
2106.00694). The targets are one-hot vectors, or one-cold ones (zero at the class, one elsewhere).

All (seed, k) of one μ and one kind of target are trained in one stack of tensors. What a network becomes depends on its
own seed, μ, k and kind of target, and on nothing else: not on what stands beside it in the stack.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor

from torchgauge.errors import InputError
from torchgauge.fields.images import Images

Target = Literal["one-hot", "one-cold"]


@dataclass(frozen=True)
class Settings:
    """The published settings: Adam at 1e-3, batches of 64, the rate times 0.7 after each epoch, 20 epochs, squared
    error.

    Attributes:
        hidden: units of the hidden layer.
        epochs: how often the rate falls and accuracies are measured.
        passes: passes over the training part in one epoch; a small data set needs several to make as many steps as
            MNIST.
        batch: images per step.
        rate: of Adam, in the first epoch.
        decay: factor on the rate after each epoch.
        validation: share of the images that choose the epoch.
        test: share of the images for the reported accuracy.
        train: at most this many images to train on, 0 for all.
    """

    hidden: int = 50
    epochs: int = 20
    passes: int = 1
    batch: int = 64
    rate: float = 1e-3
    decay: float = 0.7
    validation: float = 0.15
    test: float = 0.25
    train: int = 0

    def __post_init__(self) -> None:
        whole = {"hidden": self.hidden, "epochs": self.epochs, "passes": self.passes, "batch": self.batch}
        for name, value in whole.items():
            if value < 1:
                raise InputError(f"{name} is {value}", "Settings", "Give a positive integer.")
        if self.rate <= 0 or self.decay <= 0 or self.train < 0:
            raise InputError("a rate, decay or number of images below zero", "Settings", "Give positive numbers.")
        if not (self.validation > 0 and self.test > 0 and self.validation + self.test < 1):
            raise InputError(
                f"shares {self.validation} and {self.test} for validation and test",
                "Settings",
                "Give positive shares with a sum below one: the rest is for training.",
            )

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Curve:
    """Accuracies of a stack of networks in every epoch.

    Attributes:
        validation: [epochs + 1, seeds, ks], entry 0 before training.
        test: likewise.
    """

    validation: Tensor
    test: Tensor

    def chosen(self) -> tuple[Tensor, Tensor]:
        """Test accuracy [seeds, ks] at the epoch of the best validation accuracy (the first of equals), and it."""
        epoch = self.validation.argmax(0)
        return self.test.gather(0, epoch[None])[0], epoch


@dataclass(frozen=True, eq=False)
class Stack:
    """Data of several seeds: each seed has its own split and its own order of batches."""

    x: Tensor
    y: Tensor
    parts: dict[str, Tensor]
    """Image numbers [seeds, ·] of "train", "validation", "test"."""
    seeds: tuple[int, ...]
    classes: int


def stacked(images: Images, seeds: tuple[int, ...], settings: Settings) -> Stack:
    """Split the images anew for each seed.

    Raises:
        ImageFileError: too few images for the parts.
    """
    parts: dict[str, list[Tensor]] = {"validation": [], "test": [], "train": []}
    for seed in seeds:
        split = images.split(settings.validation, settings.test, generator=_generator(seed, 0))
        for name, part in zip(parts, split, strict=True):
            parts[name].append(part[: settings.train] if name == "train" and settings.train else part)
    numbers = {name: torch.stack(each) for name, each in parts.items()}
    return Stack(images.x, images.y, numbers, tuple(seeds), images.classes)


def initial(stack: Stack, mu: float, ks: tuple[int, ...], hidden: int) -> tuple[Tensor, Tensor]:
    """First layers [seeds, pixels, ks · hidden] and last layers [seeds, ks, hidden, classes] at initialisation.

    All k and μ of one seed share their random numbers, so that differences between them are not noise of the start.

    Raises:
        InputError: a k outside 0..classes.
    """
    if not ks or min(ks) < 0 or max(ks) > stack.classes:
        raise InputError(f"k is one of {list(ks)}", "initial", f"k counts classes: 0 to {stack.classes}.")
    firsts, lasts = [], []
    pixels = stack.x.shape[1]
    for seed in stack.seeds:
        generator = _generator(seed, 1)
        first = torch.randn(pixels, hidden, generator=generator) / pixels**0.5
        last = torch.randn(hidden, stack.classes, generator=generator) / hidden**0.5
        moved = [last + mu * (torch.arange(stack.classes) < k).float() for k in ks]
        firsts.append(first.repeat(1, len(ks)))
        lasts.append(torch.stack(moved))
    return torch.stack(firsts), torch.stack(lasts)


def outputs(first: Tensor, last: Tensor, x: Tensor) -> Tensor:
    """Outputs [seeds, ks, batch, classes] for images [seeds, batch, pixels]."""
    seeds, ks, hidden, _ = last.shape
    units = torch.relu(x @ first).view(seeds, -1, ks, hidden)
    return units.transpose(1, 2) @ last


def targets(y: Tensor, classes: int, kind: Target) -> Tensor:
    """One-hot or one-cold vectors [..., classes].

    Raises:
        InputError: another kind.
    """
    if kind not in ("one-hot", "one-cold"):
        raise InputError(f"there are no {kind!r} targets", "targets", "Give one-hot or one-cold.")
    hot = torch.nn.functional.one_hot(y, classes).float()
    return hot if kind == "one-hot" else 1 - hot


def train(stack: Stack, mu: float, ks: tuple[int, ...], kind: Target, settings: Settings) -> Iterator[Curve]:
    """Train all (seed, k) at once, and yield the curve so far after every epoch.

    The squared error is averaged over a batch and over classes, as `torch.nn.MSELoss` does. A prediction is the largest
    output for one-hot targets and the smallest for one-cold ones.
    """
    first, last = (w.requires_grad_() for w in initial(stack, mu, ks, settings.hidden))
    optimiser = torch.optim.Adam([first, last], lr=settings.rate)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, 1, settings.decay)
    generators = [_generator(seed, 2) for seed in stack.seeds]
    wanted = targets(stack.y, stack.classes, kind)
    curves: dict[str, list[Tensor]] = {"validation": [], "test": []}
    for epoch in range(settings.epochs + 1):
        if epoch:
            for batch in _batches(stack.parts["train"], settings, generators):
                error = outputs(first, last, stack.x[batch]) - wanted[batch][:, None]
                # a sum over networks of their own losses: the gradients do not mix
                loss = error.square().mean((-1, -2)).sum()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            schedule.step()
        for name, curve in curves.items():
            curve.append(accuracy(first.detach(), last.detach(), stack, name, kind))
        yield Curve(torch.stack(curves["validation"]), torch.stack(curves["test"]))


@torch.no_grad()
def accuracy(first: Tensor, last: Tensor, stack: Stack, part: str, kind: Target) -> Tensor:
    """Share of right predictions [seeds, ks] on one part of the images."""
    right = torch.zeros(last.shape[:2])
    for batch in stack.parts[part].split(512, 1):
        out = outputs(first, last, stack.x[batch])
        guess = out.argmax(-1) if kind == "one-hot" else out.argmin(-1)
        right += (guess == stack.y[batch][:, None]).sum(-1)
    return right / stack.parts[part].shape[1]


def _batches(train: Tensor, settings: Settings, generators: list[torch.Generator]) -> Iterator[Tensor]:
    """One epoch: image numbers [seeds, batch], every image once in each pass."""
    for _ in range(settings.passes):
        orders = torch.stack([torch.randperm(train.shape[1], generator=g) for g in generators])
        yield from train.gather(1, orders).split(settings.batch, 1)


def _generator(seed: int, stream: int) -> torch.Generator:
    """Streams of one seed: 0 the split, 1 the weights, 2 the order of batches."""
    return torch.Generator().manual_seed(1_000_003 * stream + seed)
