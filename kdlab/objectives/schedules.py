r"""Schedules: a weight or a temperature that changes in the course of training.

Each is a function of ``progress``, the part of the training that is done, from 0 to 1. Give one wherever a term or a sum
takes a number: ``Linear(1, 0) * CrossEntropy() + SoftTargets(temperature=Cosine(8, 1))``.
"""

import math
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import Any

import torch
from torch import nn

from .types import Scalar, Temperature


class Schedule:
    """A function of progress, times a number."""

    def __call__(self, progress: float) -> float:
        raise NotImplementedError

    def __mul__(self, factor: float) -> "Schedule":
        if not isinstance(factor, Real):
            return NotImplemented
        return self if factor == 1 else Scaled(self, float(factor))

    __rmul__ = __mul__

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{getattr(self, f.name)!r}' for f in fields(self))})"  # pyrefly: ignore[bad-argument-type] each is a dataclass


def _check_numbers(schedule, *values):
    if not all(isinstance(v, Real) and math.isfinite(v) for v in values):
        raise ValueError(f"{type(schedule).__name__} takes finite numbers, not {values}.")


@dataclass(frozen=True, repr=False)
class Scaled(Schedule):
    """``schedule`` times ``factor``; written as a product."""

    schedule: Schedule
    factor: float

    def __post_init__(self) -> None:
        _check_numbers(self, self.factor)

    def __call__(self, progress: float) -> float:
        return self.factor * self.schedule(progress)

    def __mul__(self, factor: float) -> "Schedule":
        return replace(self, factor=self.factor * factor) if isinstance(factor, Real) else NotImplemented

    __rmul__ = __mul__

    def __repr__(self) -> str:
        return f"{self.factor:.12g} * {self.schedule!r}"


@dataclass(frozen=True, repr=False)
class Constant(Schedule):
    """The same value throughout.

    >>> Constant(4)(0.5)
    4
    """

    value: float

    def __post_init__(self) -> None:
        _check_numbers(self, self.value)

    def __call__(self, progress: float) -> float:
        return self.value


@dataclass(frozen=True, repr=False)
class Linear(Schedule):
    """From ``start`` to ``end`` in a straight line, reached when ``until`` of the training is done.

    >>> Linear(8, 1)(0.0), Linear(8, 1)(0.5), Linear(8, 1, until=0.5)(0.75)
    (8.0, 4.5, 1.0)
    """

    start: float
    end: float
    until: float = 1.0

    def __post_init__(self) -> None:
        _check_numbers(self, self.start, self.end, self.until)
        if not 0 < self.until <= 1:
            raise ValueError(f"until is a part of the training, above 0 and at most 1, not {self.until!r}.")

    def __call__(self, progress: float) -> float:
        done = min(progress / self.until, 1.0)
        return self.start + (self.end - self.start) * done


@dataclass(frozen=True, repr=False)
class Cosine(Linear):
    """From ``start`` to ``end`` along half a cosine: slow, fast, slow.

    >>> Cosine(0, 1)(0.0), round(Cosine(0, 1)(0.25), 4), Cosine(0, 1)(1.0)
    (0.0, 0.1464, 1.0)
    """

    def __call__(self, progress: float) -> float:
        done = min(progress / self.until, 1.0)
        return self.start + (self.end - self.start) * (1 - math.cos(math.pi * done)) / 2


@dataclass(frozen=True, repr=False)
class Step(Schedule):
    """``start``, and from each of the given parts of the training on another value.

    >>> Step(0.0, {0.5: 0.9})(0.49), Step(0.0, {0.5: 0.9})(0.5)
    (0.0, 0.9)
    """

    start: float
    then: dict[float, float]

    def __post_init__(self) -> None:
        _check_numbers(self, self.start, *self.then, *self.then.values())
        if not all(0 <= part <= 1 for part in self.then):
            raise ValueError(f"Step takes parts of the training, from 0 to 1, not {[*self.then]}.")

    def __call__(self, progress: float) -> float:
        reached = [part for part in self.then if progress >= part]
        return self.then[max(reached)] if reached else self.start


class LearnedTemperature(nn.Module):
    r"""Curriculum temperature (CTKD): a temperature learned *against* the student.

    .. math:: T = T_{\min} + (T_{\max} - T_{\min})\,\sigma(\theta), \qquad
        \theta \leftarrow \theta + \lambda\,\eta\,\frac{\partial L}{\partial \theta}

    The student descends on the loss, the temperature *ascends* on it: the gradient that reaches :math:`\theta` is
    multiplied by :math:`-\lambda`. :math:`\lambda` grows from 0 to 1 in the first epochs (of the paper: 10 of 240), so that
    the task becomes harder. Whether an ascending :math:`T` rises or falls is for the loss to say, and the value is
    therefore logged with the loss. Give it as ``temperature`` to a term.

    Args:
        minimum, maximum: the ends of the range; :math:`\theta = 0` is its middle.
        strength: :math:`\lambda`, a number or a schedule.

    Source: Li et al. (2023), section 3 (global temperature).

    >>> temperature = LearnedTemperature(minimum=1, maximum=21)
    >>> temperature(progress=0.5).item()
    11.0
    """

    def __init__(
        self, minimum: float = 1.0, maximum: float = 21.0, strength: float | Schedule = Cosine(0, 1, until=10 / 240)
    ) -> None:
        super().__init__()
        _check_numbers(self, minimum, maximum, at(strength, 0.0))
        if not 0 < minimum < maximum:
            raise ValueError(f"temperatures from {minimum!r} to {maximum!r} are no range of positive numbers.")
        self.minimum, self.maximum, self.strength = minimum, maximum, strength
        self.theta = nn.Parameter(torch.zeros(()))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.theta)

    def forward(self, progress: float | None = None) -> Scalar:
        # Its value is theta, and its derivative by theta −strength.
        theta = self.theta + (1 + at(self.strength, progress)) * (self.theta.detach() - self.theta)
        return self.minimum + (self.maximum - self.minimum) * torch.sigmoid(theta)

    def __repr__(self) -> str:
        return f"LearnedTemperature({self.minimum:.12g}, {self.maximum:.12g}, {self.strength!r})"


Weight = float | Schedule
# A number, or what gives one for the part of the training that is done.
Varying = Temperature | Schedule | LearnedTemperature


def at(value: Any, progress: float | None) -> Any:
    """The value of a number, a schedule or a learned temperature when ``progress`` of the training is done.

    Raises:
        TypeError: if it is a schedule and progress is None.
        ValueError: if progress is not between 0 and 1.

    >>> at(4, None), at(Linear(8, 1), 0.5)
    (4, 4.5)
    """
    if progress is not None and not 0 <= progress <= 1:
        raise ValueError(f"progress is the part of the training that is done, 0 … 1, not {progress!r}.")
    if isinstance(value, LearnedTemperature):
        return value(progress)
    if not isinstance(value, Schedule):
        return value
    if progress is None:
        raise TypeError(f"{value!r} is a schedule: say how much of the training is done, progress=0 … 1.")
    return value(progress)
