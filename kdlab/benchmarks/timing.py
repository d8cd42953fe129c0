"""How everything here is timed: contestants take turns in one process, and every round is kept.

A machine's speed drifts, and other processes come and go. Contestants that alternate in short rounds meet the same
weather, so that the ratio of two rounds that stand side by side is steady where their times are not. The median of
these ratios is the result, and their quartiles say how steady it was.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from .. import models
from ..training import fast_precision


class BenchmarkError(ValueError):
    """A benchmark that cannot be run as asked."""


@dataclass(frozen=True)
class Settings:
    """What a benchmark runs on, and for how long.

    Attributes:
        device: such as ``"cuda"``.
        seconds: after how many no further round begins; shared by all contests of a benchmark.
        teacher, student: names in ``kdlab.models``; None is the benchmark's own choice.
        steps: of each round; None is the published epoch, 781, on CUDA, and 10 elsewhere.
        batch_size: of the published recipe.
        precision: of kdlab and of the bare loop; None is the device's faster one.
        workers: of the DataLoader of the step by hand; None is one for each core that may be used, at most the published 8.
        rounds: at least so many, however long they take.
    """

    device: str = "cpu"
    seconds: float = 60.0
    teacher: str | None = None
    student: str | None = None
    steps: int | None = None
    batch_size: int = 64
    precision: str | None = None
    workers: int | None = None
    rounds: int = 5

    def __post_init__(self):
        on_cuda = torch.device(self.device).type == "cuda"
        if on_cuda and not torch.cuda.is_available():
            raise BenchmarkError("no CUDA device is visible here: leave --device out, or say --device cpu.")
        if (self.teacher is None) != (self.student is None):
            raise BenchmarkError("--teacher and --student come together, or not at all.")
        for name in (self.teacher, self.student):
            if name is not None and name not in models.__all__:
                raise BenchmarkError(f"kdlab.models has no {name!r}.")
        chosen = {
            "steps": 781 if on_cuda else 10,
            "precision": fast_precision(self.device),
            "workers": min(8, cores()),
        }
        for name, value in chosen.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    @property
    def pair(self) -> tuple[str, str]:
        """The names of teacher and student, which are the published table's first pair on CUDA, two small ones elsewhere."""
        if self.teacher is not None:
            return self.teacher, self.student
        on_cuda = torch.device(self.device).type == "cuda"
        return ("wrn_40_2", "wrn_16_2") if on_cuda else ("resnet20", "resnet8")

    @property
    def images(self) -> int:
        """How many a student sees in a round."""
        return self.steps * self.batch_size


def cores() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass
class Laps:
    """A clock that is read at the end of each epoch, once the device has done all that it was given."""

    device: str
    marks: list[float] = field(default_factory=list)

    def __call__(self, *_) -> None:
        if torch.device(self.device).type == "cuda":
            torch.cuda.synchronize(self.device)
        self.marks.append(time.perf_counter())

    @property
    def last(self) -> float:
        """Seconds of the last epoch: those before it warmed up."""
        return self.marks[-1] - self.marks[-2]


@dataclass(frozen=True)
class Contest:
    """What was measured side by side.

    Attributes:
        title: what of.
        images: how many each contestant trained on in a round, counted for each of its students.
        seconds: of each round of each contestant.
        reference: the contestant that the others are compared with.
    """

    title: str
    images: dict[str, int]
    seconds: dict[str, list[float]]
    reference: str

    def summary(self) -> dict[str, dict[str, dict[str, float]]]:
        """For each contestant images/s, and the time for an image relative to the reference's in the same round."""
        each = {name: np.array(times) / self.images[name] for name, times in self.seconds.items()}
        return {
            name: {
                "images_per_second": quartiles(1 / times),
                "relative_time": quartiles(times / each[self.reference]),
            }
            for name, times in each.items()
        }


def quartiles(values) -> dict[str, float]:
    """The median, and the quartiles below and above it.

    >>> quartiles([5.0, 1.0, 2.0, 4.0, 3.0])
    {'low': 2.0, 'median': 3.0, 'high': 4.0}
    """
    return dict(zip(("low", "median", "high"), np.quantile(values, (0.25, 0.5, 0.75)).tolist(), strict=True))


def contest(
    title: str,
    contestants: dict[str, Callable[[], float]],
    settings: Settings,
    *,
    reference: str,
    images: dict[str, int] | None = None,
    share: float = 1.0,
) -> Contest:
    """Let contestants take turns, in one order and then in the other, until the time is up.

    Args:
        contestants: by name, each a function that runs one round and returns its seconds.
        reference: the one that the others are compared with.
        images: of those whose rounds are not of ``settings.images``.
        share: of ``settings.seconds``.
    """
    seconds = {name: [] for name in contestants}
    until = time.monotonic() + share * settings.seconds
    done = 0
    while done < settings.rounds or time.monotonic() < until:
        for name in list(contestants)[:: -1 if done % 2 else 1]:
            seconds[name].append(contestants[name]())
        done += 1
    return Contest(title, dict.fromkeys(contestants, settings.images) | (images or {}), seconds, reference)
