"""Means over many networks in bounded memory: in parallel, resumable, the same for any number of workers."""

from __future__ import annotations

import hashlib
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchgauge.errors import InputError
from torchgauge.fields.errors import RunFileError

Job = Callable[[int], "Sums"]


@dataclass(frozen=True)
class Sums:
    """Count, mean and summed squared deviations of independent estimates.

    Attributes:
        count: how many estimates.
        mean: [...].
        square: Σ |estimate − mean|², [...].
        peak: the largest of these squares (about the mean of its own job), [...].
        cross: Σ (estimate − mean)(estimate − mean)^T, [k, k], or None where it was not asked for.
    """

    count: int
    mean: Tensor
    square: Tensor
    peak: Tensor
    cross: Tensor | None = None

    @classmethod
    def of(cls, estimates: Tensor, covariance: bool = False) -> Sums:
        """Of estimates [count, ...]."""
        mean = estimates.mean(0)
        away = estimates - mean
        flat = away.reshape(len(away), -1)
        squares = away.abs().square()
        return cls(len(estimates), mean, squares.sum(0), squares.amax(0), flat.T @ flat.conj() if covariance else None)

    def __add__(self, other: Sums) -> Sums:
        """Chan's update: exact for any split of the estimates."""
        count = self.count + other.count
        gap = other.mean - self.mean
        share = other.count / count
        pull = self.count * share
        cross = None
        if self.cross is not None and other.cross is not None:
            cross = self.cross + other.cross + pull * torch.outer(gap.reshape(-1), gap.reshape(-1).conj())
        square = self.square + other.square + gap.abs().square() * pull
        return Sums(count, self.mean + gap * share, square, torch.maximum(self.peak, other.peak), cross)

    def standard_error(self) -> Tensor:
        """Of the mean; infinite for one estimate."""
        if self.count < 2:
            return torch.full_like(self.square, math.inf)
        return (self.square / (self.count - 1) / self.count).sqrt()

    def largest_share(self) -> float:
        """The largest part of any summed square that comes from one estimate: near one under heavy tails."""
        return float((self.peak / self.square).nan_to_num(0.0).max()) if self.peak.numel() else 0.0

    def covariance(self) -> Tensor | None:
        """Of the mean, [k, k]."""
        return None if self.cross is None or self.count < 2 else self.cross / (self.count - 1) / self.count


def run(
    job: Job,
    jobs: int,
    *,
    workers: int = 1,
    file: str | Path | None = None,
    identity: str = "",
    probe: Tensor | None = None,
    progress: bool | None = None,
    every: float = 30.0,
    enough: Callable[[Sums], bool] | None = None,
    tail: Callable[[], Sums] | None = None,
) -> Sums:
    """The sums of jobs 0 .. jobs−1, added in this order, and of a last piece.

    Each job runs on one thread, so results do not depend on how many run at once.

    Args:
        job: number → sums; must be picklable by joblib where workers > 1.
        jobs: how many.
        workers: processes (joblib); one means this process.
        file: partial sums are kept here, and taken up from here; written beside and renamed.
        identity: what the sums are sums of; a file of another identity is refused.
        probe: numbers that belong to the run, as some of what is averaged; a file of other numbers is refused.
        progress: a bar on standard error; by default only where that is a terminal.
        every: seconds between writings of the file.
        enough: stop early once this holds.
        tail: a piece smaller than a job, added at the end and never written, so that a longer run can take up the file.

    Raises:
        RunFileError: the file is damaged, or belongs to another run, or holds more jobs than asked for.
    """
    if jobs + (tail is not None) < 1 or workers < 1:
        raise InputError(f"jobs={jobs}, workers={workers}", remedy="both are at least one")
    path = Path(file) if file is not None else None
    total, done = _load(path, identity, probe) if path is not None and path.exists() else (None, 0)
    if done > jobs:
        raise RunFileError(
            f"the file holds {done} jobs, more than the {jobs} asked for",
            str(path),
            "ask for more networks, or remove it",
        )
    written, stopped = time.monotonic(), False
    with _bar(jobs, done, progress) as advance:
        for part in _results(job, range(done, jobs), workers):
            total = part if total is None else total + part
            done += 1
            advance()
            if path is not None and time.monotonic() - written > every:
                _save(path, total, done, identity, probe)
                written = time.monotonic()
            stopped = enough is not None and enough(total)
            if stopped:
                break
    if path is not None and total is not None:
        _save(path, total, done, identity, probe)
    if tail is not None and not stopped:
        last = _single_threaded(lambda _: tail(), 0)
        total = last if total is None else total + last
    assert total is not None
    return total


def _results(job: Job, numbers: Iterable[int], workers: int) -> Iterator[Sums]:
    if workers == 1:
        for number in numbers:
            yield _single_threaded(job, number)
        return
    try:
        from joblib import Parallel, delayed
    except ImportError:
        raise InputError("several workers need joblib", remedy="pip install joblib, or take workers=1") from None
    parts: Any = Parallel(n_jobs=workers, return_as="generator")(delayed(_single_threaded)(job, n) for n in numbers)
    yield from parts


def _single_threaded(job: Job, number: int) -> Sums:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            return job(number)
    finally:
        torch.set_num_threads(before)


@contextmanager
def _bar(jobs: int, done: int, progress: bool | None) -> Iterator[Callable[[], None]]:
    if not (sys.stderr.isatty() if progress is None else progress):
        with nullcontext():
            yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("networks", total=jobs, completed=done)
        yield lambda: bar.advance(task)


# -- files -------------------------------------------------------------------------------------------------------------
def _save(path: Path, sums: Sums, done: int, identity: str, probe: Tensor | None) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent or Path(), prefix=path.name, suffix=".part")
    os.close(handle)
    try:
        content = {
            "identity": identity,
            "probe": probe,
            "done": done,
            "count": sums.count,
            "mean": sums.mean,
            "square": sums.square,
            "peak": sums.peak,
        }
        torch.save({**content, "cross": sums.cross}, name)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _load(path: Path, identity: str, probe: Tensor | None) -> tuple[Sums, int]:
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
        sums = Sums(state["count"], state["mean"], state["square"], state["peak"], state["cross"])
        done, same = int(state["done"]), state["identity"] == identity and _close(state["probe"], probe)
    except Exception as error:
        raise RunFileError(f"no file of partial sums: {error}", str(path), "remove it, or name another file") from error
    if not same:
        raise RunFileError(
            "the file belongs to another run: another ensemble, other points, another seed or estimator",
            str(path),
            "remove it, or name another file",
        )
    return sums, done


def _close(found: Tensor | None, probe: Tensor | None) -> bool:
    """The same numbers, to what another processor may round differently."""
    if found is None or probe is None or found.shape != probe.shape or found.dtype != probe.dtype:
        return found is None and probe is None
    return torch.allclose(found, probe, 1e-3, 1e-3 * float(probe.abs().nan_to_num(0, 0, 0).max()), equal_nan=True)


def fingerprint(*parts: Any) -> str:
    """A hash of tensors, numbers, names and objects that print their contents."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(str((part.dtype, tuple(part.shape))).encode())
            digest.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(part, dict):
            digest.update(fingerprint(*(x for item in part.items() for x in item)).encode())
        elif isinstance(part, (list, tuple)):
            digest.update(f"[{len(part)}]{fingerprint(*part)}".encode() if part else b"[]")
        elif callable(part) and hasattr(part, "__qualname__"):
            digest.update(f"{part.__module__}.{part.__qualname__}".encode())
        elif hasattr(part, "__dataclass_fields__"):
            named = {name: getattr(part, name) for name in part.__dataclass_fields__}
            digest.update(fingerprint(type(part).__qualname__, named).encode())
        else:
            digest.update(f"{type(part).__name__}:{part!r}".encode())
        digest.update(b"|")
    return digest.hexdigest()
