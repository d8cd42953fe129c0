"""Runs on sentences: an encoder learns from another what is near and what is far, and is measured on authors of whom it has read nothing."""

import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..data import SentenceData, Sentences
from ..data.sentences import PASSAGE
from ..models import count_parameters
from ..objectives import Objective
from ..training import predict
from ..training.embeddings import found_by_nearest, rank_correlation, recall_of_neighbours
from ..training.protocols import Measure
from .spec import Spec

#: Sentences of a batch that is measured: more of them would have more padding.
_AT_ONCE = 64

#: For so long a model reads, to see how fast it is.
SPEED_SECONDS = 2.0


def check(spec: Spec) -> None:
    """That it asks for nothing that sentences do not have; raises ValueError if it does."""
    if spec.own_text or spec.kept or spec.drafting or spec.omit or not spec.hold_out:
        raise ValueError(
            f"{spec.name}: of sentences none is written, kept as a cache or omitted, and their validation split is always held out."
        )
    if spec.teacher is None:
        raise ValueError(f"{spec.name}: an encoder is measured beside its teacher, and its spec names none.")


def begin(student: nn.Module, spec: Spec, objective: Objective, teacher: nn.Module | None) -> None:
    """A new student is ready as it is."""


def lesson(
    spec: Spec, data: SentenceData, students: list[nn.Module], teacher: nn.Module | None, device, stop=None
) -> tuple:
    """What a spec's students train on, what they validate on, and who teaches."""
    train = data.train if spec.train_examples is None else data.train[: spec.train_examples]
    return train, data.validation, teacher


def validated(data: SentenceData, teacher: nn.Module, how: dict) -> Measure:
    """After each epoch: :func:`beside_teacher` of the validation split, whose sentences the teacher reads once."""
    known = predict(teacher.to(how["device"]), data.validation, batch_size=_AT_ONCE, **how)
    return lambda student, split: beside_teacher(predict(student, split, batch_size=_AT_ONCE, **how), known)


def beside_teacher(student: Tensor, teacher: Tensor) -> dict[str, float]:
    """How near a student's embeddings ``(n, D)`` are to their teacher's: neighbours shared, order of all similarities, mean cosine."""
    return {
        "recall_at_10": recall_of_neighbours(student, teacher, k=10),
        "rank_correlation": rank_correlation(student, teacher),
        "cosine_to_teacher": torch.cosine_similarity(student, teacher).mean().item(),
    }


def books_found(embeddings: Tensor, split: Sentences) -> float:
    """The part of passages whose nearest book is their own: every second passage of a book stands for it, and the others are looked for.

    A passage is the mean of its sentences, a book that of its passages.
    """
    passages = embeddings.unflatten(0, (-1, PASSAGE)).mean(1)
    labels = split.labels[::PASSAGE]
    return found_by_nearest(passages[1::2], labels[1::2], passages[::2], labels[::2])


@torch.no_grad()
def sentences_per_second(model: nn.Module, split: Sentences, how: dict) -> float:
    """How many of the first sentences it reads in a second, at its fastest of ``SPEED_SECONDS``."""
    batch = split[: 2 * _AT_ONCE]
    times, end = [], time.perf_counter() + SPEED_SECONDS
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        predict(model, batch, batch_size=_AT_ONCE, **how)
        times.append(time.perf_counter() - start)
    return len(batch) / min(times)


def measured(ended, data: SentenceData, teacher: nn.Module, how: dict) -> Iterator[tuple[None, dict]]:
    """The measures of a record, of each student whose training came to its end; and what the teacher itself finds."""
    if not ended:
        return
    known = predict(teacher, data.test, batch_size=_AT_ONCE, **how)
    teachers = {
        "teacher_books_found": books_found(known, data.test),
        "teacher_sentences_per_second": sentences_per_second(teacher, data.test, how),
        "teacher_megabytes": megabytes(teacher),
    }
    for _, student in ended:
        embeddings = predict(student, data.test, batch_size=_AT_ONCE, **how)
        yield (
            None,
            {
                **beside_teacher(embeddings, known),
                "books_found": books_found(embeddings, data.test),
                "sentences_per_second": sentences_per_second(student, data.test, how),
                "megabytes": megabytes(student),
                **teachers,
            },
        )


def megabytes(model: nn.Module) -> float:
    """Its weights in float32, in millions of bytes."""
    return 4e-6 * count_parameters(model)
