"""The kinds of tasks. Each has a room: how its data are loaded, trained on and measured; nobody else asks of which kind data are."""

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor, nn

from ..data import ImageData, SentenceData, TextData
from ..objectives import Objective
from ..training.protocols import Measure
from . import images, sentences, texts
from .spec import Spec


class Task(Protocol):
    """What a room has. What else there is to say of its data (``name``, three splits, ``num_classes``, ``title``, ``unit``) stands on them."""

    def check(self, spec: Spec) -> None:
        """That it asks for nothing that the task does not have; raises ValueError if it does."""
        ...

    def begin(self, student: nn.Module, spec: Spec, objective: Objective, teacher: nn.Module | None) -> None:
        """Make a new student ready to be trained."""
        ...

    def lesson(
        self, spec: Spec, data: Any, students: list[nn.Module], teacher: nn.Module | None, device, stop=None
    ) -> tuple:
        """Training split, validation split (or None), and who teaches (or None), of students that train side by side; Stopped if ``stop`` said so."""
        ...

    def validated(self, data: Any, teacher: nn.Module | None, how: dict) -> Measure | None:
        """What is measured of a student after each epoch; None where it is what :func:`~kdlab.training.loop.fit` measures by itself."""
        ...

    def measured(
        self, ended: list[tuple[Spec, nn.Module]], data: Any, teacher: nn.Module | None, how: dict
    ) -> Iterator[tuple[Tensor | None, dict]]:
        """Test logits, if they are kept, and the measures of a record, of each student whose training came to its end."""
        ...


def task_of(data: ImageData | TextData | SentenceData) -> Task:
    """The room of these data."""
    if isinstance(data, SentenceData):
        return sentences
    return texts if isinstance(data, TextData) else images
