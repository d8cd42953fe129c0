"""From a spec to its record."""

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .. import models
from ..data import ImageData, load_cifar10, load_cifar100, load_digits
from ..files import sha256
from ..training import fit, load_model, measure, predict, save_model
from .records import RecordError, find_record, provenance, write_record
from .spec import Spec


@dataclass(frozen=True)
class Run:
    """What :func:`run` leaves behind: the trained student, its test logits, and the record."""

    student: nn.Module
    test_logits: Tensor
    record: dict


def load(name: str) -> ImageData:
    """The data set that a spec names."""
    loaders = {"cifar100": load_cifar100, "cifar10": load_cifar10, "digits": load_digits}
    if name not in loaders:
        raise ValueError(f"unknown data {name!r}; there are {', '.join(loaders)}.")
    return loaders[name]()


def checkpoint_path(spec: Spec, book: Path) -> Path:
    return Path(book) / "checkpoints" / f"{spec.name}.safetensors"


def stored_student(spec: Spec, book: Path, num_classes: int) -> nn.Module | None:
    """The trained student of ``spec`` from ``book``, in evaluation mode; None where it is not stored.

    Raises:
        RecordError: if the stored file is not the one that its record names.
    """
    record = find_record(spec, Path(book) / "records")
    path = checkpoint_path(spec, book)
    if record is None or "checkpoint" not in record or not path.exists():
        return None
    if sha256(path) != record["checkpoint"]["sha256"]:
        raise RecordError(f"{path} is not the checkpoint that its record names.")
    model = getattr(models, spec.student)(num_classes)
    load_model(path, model)
    return model.eval()


def run(
    spec: Spec,
    data: ImageData,
    *,
    teacher: nn.Module | None = None,
    book: Path | None = None,
    keep_student: bool = False,
    device="cpu",
    resume: Path | None = None,
    report: Callable[[dict], None] | None = None,
) -> Run:
    """Train what ``spec`` says and measure it on the test split, once, after the last epoch.

    Args:
        spec: what to run.
        data: the data set that it names.
        teacher: the trained model of ``spec.teacher``; where the spec has none, a model passed here is only
            compared with.
        book: folder whose ``records`` receive the record; None writes nothing.
        keep_student: store the student in ``book/checkpoints`` too, named in its record.
        device, report: as in :func:`~kdlab.training.loop.fit`.
        resume: folder for the checkpoint of the running training; it is removed when the record is written.

    Raises:
        ValueError: if the data are not those of the spec, or it has a teacher and none is given.
        RecordError: if the record exists already.
    """
    if data.name != spec.data:
        raise ValueError(f"the spec asks for {spec.data}, but the data are {data.name}.")
    if spec.teacher is not None and teacher is None:
        raise ValueError(f"the spec asks for the teacher {spec.teacher.name}, but none was given.")
    if book is not None and find_record(spec, Path(book) / "records"):
        raise RecordError(f"{spec.name} has its record already.")
    origin = provenance(device)
    train = data.train if spec.train_examples is None else data.train[: spec.train_examples]
    torch.manual_seed(spec.recipe.seed)
    if not hasattr(models, spec.student):
        raise ValueError(f"kdlab.models has no {spec.student!r}.")
    student = getattr(models, spec.student)(data.num_classes)
    objective = copy.deepcopy(spec.objective)  # what it learns belongs to this run
    objective.reset_parameters()
    checkpoint = None if resume is None else Path(resume) / f"{spec.name}.safetensors"
    history = fit(
        student,
        objective,
        train=train,
        recipe=spec.recipe,
        teacher=teacher if spec.teacher is not None else None,
        validation=data.validation,
        device=device,
        checkpoint=checkpoint,
        report=report,
    )
    precision = spec.recipe.precision
    logits = predict(student, data.test, device=device, precision=precision)
    teacher_logits = (
        None if teacher is None else predict(teacher, data.test, device=device, precision=precision)
    )
    superclass = torch.tensor(data.superclass_of)
    wrong = logits.argmax(-1) != data.test.labels
    within = superclass[logits.argmax(-1)[wrong]] == superclass[data.test.labels[wrong]]
    content = {
        "provenance": origin,
        "data": {
            "name": data.name,
            "checksum": data.checksum,
            "split": {"train": len(train), "validation": len(data.validation), "test": len(data.test)},
        },
        "recipe": asdict(spec.recipe),
        "selection": "last epoch; the test split was touched once, after it",
        "parameters": models.count_parameters(student),
        "seconds": sum(entry["seconds"] for entry in history),
        "examples_per_second": float(np.median([entry["examples_per_second"] for entry in history])),
        "epochs": history,
        "test": {
            **measure(logits, data.test.labels, teacher_logits),
            "errors_within_superclass": within.float().mean().item() if len(within) else 0.0,
        },
    }
    if book is not None:
        if keep_student:
            path = checkpoint_path(spec, book)
            save_model(path, student.cpu(), {"spec_hash": spec.hash})
            content["checkpoint"] = {"file": path.name, "sha256": sha256(path)}
        record = write_record(spec, Path(book) / "records", content)
        if checkpoint is not None:
            checkpoint.unlink(missing_ok=True)
    else:
        record = {"spec": spec.describe(), "spec_hash": spec.hash, **content}
    return Run(student.eval(), logits, record)
