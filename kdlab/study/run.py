"""From specs to their records: how a run is trained, measured once, and written down."""

import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

try:
    import resource
except ImportError:  # Windows
    resource = None

from ..data import ImageData, SentenceData, TextData
from ..models import count_parameters
from ..models.beginning import begin_from
from ..training import Learner, fit_together
from ..training.distributed import rank_and_world
from ..training.products import Made, widest_products
from ..training.state import state_of
from ..training.stopping import Interruptible
from .named import network, no_stand_in, own_code
from .records import RecordError, columns, find_record, provenance, write_record
from .spec import Spec
from .stored import keep_student, stored_student, weights_checksum  # noqa: F401 (stored_student is public here)
from .tasks import task_of
from .texts import measured_own_text, measured_policy  # noqa: F401 (the same)


@dataclass(frozen=True)
class Run:
    """What :func:`run` leaves behind: the trained student, its test logits (None if it diverged, or of a text), and the record."""

    student: nn.Module
    test_logits: Tensor | None = field(repr=False)
    record: dict


def run(spec: Spec, data: ImageData | TextData | SentenceData, **options: Any) -> Run:
    """Train what ``spec`` says and measure it on the test split, once, after the last epoch.

    Arguments and errors as in :func:`run_together`, and:

    Raises:
        FloatingPointError: if it diverged and there is no ``book`` to record that.
    """
    (done,) = run_together([spec], data, **options)
    if "diverged" in done.record and options.get("book") is None:
        raise FloatingPointError(done.record["diverged"])
    return done


def run_together(
    specs: Sequence[Spec],
    data: ImageData | TextData | SentenceData,
    *,
    teacher: nn.Module | None = None,
    book: Path | None = None,
    keep: Collection[str] = (),
    device: torch.device | str = "cpu",
    resume: Path | None = None,
    checkpoint_seconds: float | None = None,
    report: Callable[[Spec, dict], None] | None = None,
    stop: Callable[[], bool] | None = None,
    stands: Callable[[int, int, int], None] | None = None,
    graphs: bool = True,
    widest: bool = False,
) -> list[Run]:
    """Train the students of ``specs`` side by side, and write the record of each.

    Args:
        specs: what to run: of one data set and its part, and of one teacher or none.
        data: the data set that they name.
        teacher: the trained model of their teacher's spec; where a spec has none, a model passed here is only
            compared with.
        book: folder whose ``records`` receive the records; None writes nothing.
        keep: names of specs whose students are stored in ``book/checkpoints`` too, named in their records.
        device, checkpoint_seconds: as in :func:`~kdlab.training.loop.fit`.
        stop: as there, and asked between the batches of the test split too, and of what a teacher writes before the first step.
        stands, graphs: as in :func:`~kdlab.training.loop.fit_together`.
        widest: whether to train within ``kdlab.training.products.widest_products``; the record says if that
            changed anything; of a training that was taken up again, since then.
        resume: folder for the checkpoints of running training; each is removed when its record is written.
        report: called with a spec and an epoch's entry.

    Raises:
        ValueError: if the specs do not fit each other, the data are not theirs, or their teacher is not given.
        DataError: with a ``book``, if the data stand in for others.
        RecordError: if a record exists already.
        Stopped: if ``stop`` said so; what was done is in ``resume``.
    """
    first, task = specs[0], task_of(data)
    for spec in specs:
        check(spec, first, data, teacher, book)
    origin = provenance(device)
    learners = [_learner(spec, data, teacher, resume, report, origin) for spec in specs]
    students = [learner.student for learner in learners]
    train, validation, source = task.lesson(first, data, students, teacher, device, stop)
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    how = {"device": device, "precision": first.recipe.precision}
    with widest_products(device) if widest else nullcontext(Made()) as products:
        histories = fit_together(
            learners,
            train=train,
            teacher=source,
            validation=validation,
            measure=task.validated(data, teacher, how),
            device=device,
            checkpoint_seconds=checkpoint_seconds,
            stop=stop,
            stands=stands,
            graphs=graphs,
        )
    origin |= {"products": products.by} if products.count else {}
    shared = {
        "data": {
            "name": data.name,
            "checksum": data.checksum,
            "split": {
                "train": len(train),
                "validation": len(data.validation) if first.hold_out else 0,
                "test": len(data.test),
            },
        },
        "selection": "last epoch; the test split was touched once, after it",
        "students_in_process": len(specs),
        "peak_memory_bytes": peak_memory(device),
    }
    if teacher is not None:
        shared["teacher_weights"] = weights_checksum(state_of(teacher))
    writes = book is not None and rank_and_world()[0] == 0
    data = replace(data, test=Interruptible(data.test, stop), validation=Interruptible(data.validation, stop))
    ended = [
        (spec, learner.student)
        for spec, learner, history in zip(specs, learners, histories, strict=True)
        if not isinstance(history, FloatingPointError)
    ]
    outcomes = task.measured(ended, data, teacher, how)
    done = []
    for spec, learner, history in zip(specs, learners, histories, strict=True):
        diverged = isinstance(history, FloatingPointError)
        logits, found = (None, None) if diverged else next(outcomes)
        content = {"provenance": _origin(origin, learner.origins[:-1])}
        content |= {**shared, **_described(spec, learner.student), **_trained(history), "test": found}
        record = {"spec": spec.describe(), "spec_hash": spec.hash, **content}
        if writes:
            if spec.name in keep and not diverged:
                content["checkpoint"] = keep_student(spec, learner.student, book)
            record = write_record(spec, Path(book) / "records", content)
            if learner.checkpoint is not None:
                learner.checkpoint.unlink(missing_ok=True)
        done.append(Run(learner.student.eval(), logits, record))
    return done


def check(spec: Spec, first: Spec, data: ImageData | TextData | SentenceData, teacher: nn.Module | None, book) -> None:
    """That a spec can be run with what is given, beside ``first``.

    Raises:
        ValueError: if it cannot.
        DataError: if it would be recorded of data that stand in for others.
        RecordError: if it has a record.
    """
    if data.name != spec.data:
        raise ValueError(f"the spec asks for {spec.data}, but the data are {data.name}.")
    if book is not None:
        no_stand_in(data)
    if spec.teacher is not None and teacher is None:
        raise ValueError(f"the spec asks for the teacher {spec.teacher.name}, but none was given.")
    network(spec.student)
    own_code(spec)
    task_of(data).check(spec)
    if spec.examples != first.examples:
        raise ValueError(f"{spec.name} and {first.name} have other training data.")
    if spec.teacher and first.teacher and spec.teacher.hash != first.teacher.hash:
        raise ValueError(f"{spec.name} and {first.name} have other teachers.")
    if book is not None and find_record(spec, Path(book) / "records"):
        raise RecordError(f"{spec.name} has its record already.")


def _learner(
    spec: Spec,
    data: ImageData | TextData | SentenceData,
    teacher: nn.Module | None,
    resume: Path | None,
    report,
    origin,
) -> Learner:
    """The student of a spec before its first step, what it minimises, and where its checkpoint is."""
    torch.manual_seed(spec.recipe.seed)
    student = network(spec.student)(data.num_classes)  # first: runs of one seed begin with the same weights
    objective = spec.objective.fresh()  # what it learns belongs to this run
    task_of(data).begin(student, spec, objective, teacher)
    if spec.from_teacher:
        begin_from(student, teacher, spec.from_teacher, blocks=spec.blocks)
    path = None if resume is None else Path(resume) / f"{spec.name}.safetensors"
    tell = None if report is None else lambda entry: report(spec, entry)
    rewrite = spec.own_text if spec.text == "student" else None
    return Learner(student, objective, spec.recipe, path, tell, rewrite, origins=[origin])


def _origin(origin: dict, before: list[dict]) -> dict:
    """Where a run came to its end; and, if parts of it were trained elsewhere or by other code, ``earlier``: each of these once."""

    def kept(said: dict) -> dict:
        return {name: what for name, what in said.items() if name not in ("command", "started", "products")}

    earlier = [
        said for place, said in enumerate(before) if kept(said) not in [kept(x) for x in (origin, *before[:place])]
    ]
    return origin | ({"earlier": earlier} if earlier else {})


def _described(spec: Spec, student: nn.Module) -> dict:
    """What a record says of a run that its spec's description leaves out."""
    said = {"recipe": asdict(spec.recipe), "parameters": count_parameters(student)}
    if code := own_code(spec):
        said["own_code"] = code
    if spec.recipe.best_by:
        said["selection"] = (
            f"the epoch of the {spec.recipe.best_by} on the validation split; the test split was touched once, after it"
        )
    return said


def _trained(history: list[dict] | FloatingPointError) -> dict:
    """What a record says of the training, or how it diverged."""
    if isinstance(history, FloatingPointError):
        return {"diverged": str(history)}
    return {
        "seconds": sum(entry["seconds"] for entry in history),
        "examples_per_second": float(np.median([entry["examples_per_second"] for entry in history])),
        "epochs": columns(history),
    }


def peak_memory(device) -> int | None:
    """The most that was in use, in bytes: of the device since this was last reset, or, where that is a CPU, of this process since it began, with
    what it trained before; None where no system tells."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
