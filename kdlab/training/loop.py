"""The one training loop."""

import hashlib
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from ..objectives import Objective, Term
from .checkpoint import load_run, require_safetensors, save_run
from .measures import evaluation_mode, measure, predict
from .recipe import Recipe
from .taps import Taps


def fast_precision(device="cpu") -> str:
    """``"bfloat16"`` where the device multiplies matrices faster in it, else ``"float32"``."""
    if torch.device(device).type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if torch.cpu._is_avx512_bf16_supported() else "float32"


def _optimizer(recipe: Recipe, student, objective):
    """The recipe's optimiser. A single number that an objective learns, such as a temperature, does not decay."""
    learned = list(objective.parameters())
    parameters = [{"params": [*student.parameters(), *(p for p in learned if p.ndim)]}]
    if numbers := [p for p in learned if not p.ndim]:
        parameters.append({"params": numbers, "weight_decay": 0.0})
    if recipe.optimizer == "adam":
        return torch.optim.Adam(parameters, recipe.learning_rate, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(
        parameters, recipe.learning_rate, recipe.momentum, weight_decay=recipe.weight_decay
    )


def fit(
    student: nn.Module,
    objective: Objective | Term,
    *,
    train,
    recipe: Recipe,
    teacher: nn.Module | None = None,
    validation=None,
    device="cpu",
    checkpoint: str | Path | None = None,
    gradient_norms: bool = False,
    report: Callable[[dict], None] | None = None,
) -> list[dict]:
    """Train ``student`` to minimise ``objective`` and return what was measured after each epoch.

    A step is: student and teacher look at one batch, the objective compares them, the optimiser moves the student
    (and whatever the objective learns). Layers that the objective looks at are captured by
    :class:`~kdlab.training.taps.Taps`. The teacher is in evaluation mode and gets no gradient; its weights, buffers
    and modes are left as they were (it is moved to ``device``).

    Args:
        student: trained in place, left in training mode.
        objective: a term or a weighted sum of terms.
        train: a :class:`~kdlab.data.images.Split` of images or :class:`~kdlab.data.posterior.Examples` of anything else.
        recipe: how to train. Its seed fixes the batches; the student's initial weights are the caller's.
        teacher: needed if the objective needs one.
        validation: a split that is measured after each epoch, in evaluation mode; None measures nothing.
        device: where to train, such as ``"cuda"``.
        checkpoint: a file that is written after every epoch. If it is there already, the run goes on from it, bit
            for bit as if it had never stopped (on the same device); if it is of another run, it is refused.
        gradient_norms: also measure, at the first step of each epoch, the norm of each weighted term's gradient by the
            student's parameters.
        report: called with each epoch's entry, for progress.

    Returns:
        One dict an epoch: ``epoch``, ``learning_rate``, ``loss`` and each term's mean over the epoch,
        the terms' ``gradient_norm`` if asked for, ``validation`` (see :func:`~kdlab.training.measures.measure`), ``seconds`` and ``examples_per_second`` of training.

    Raises:
        ValueError: if the objective needs a teacher and there is none, or the teacher is the student itself.
        FloatingPointError: if the loss stops being finite; the last checkpoint stays.
        CheckpointError: if ``checkpoint`` is damaged or belongs to another run.
    """
    if isinstance(objective, Term):
        objective = 1.0 * objective
    if not isinstance(objective, Objective):
        raise TypeError(
            f"the objective is a term or a sum of terms, such as SoftTargets(), not {objective!r}."
        )
    if not hasattr(train, "batches"):
        raise TypeError(
            f"train is a Split or kdlab.data.Examples(inputs, labels), not {type(train).__name__}."
        )
    if objective.needs_teacher and teacher is None:
        raise ValueError(f"the objective {objective!r} needs a teacher, but none was given.")
    if teacher is student:
        raise ValueError("student and teacher are one and the same model: nothing would be learned.")
    if checkpoint is not None:
        require_safetensors()
    train = train.to(device)
    student.to(device).to(memory_format=torch.channels_last)
    objective.to(device)
    optimizer = _optimizer(recipe, student, objective)
    generator = torch.Generator().manual_seed(recipe.seed)
    identity = {
        "recipe": _plain(recipe),
        "objective": repr(objective),
        "examples": len(train),
        "labels": hashlib.sha256(train.labels.cpu().numpy().tobytes()).hexdigest(),
        "student": repr([(name, tuple(value.shape)) for name, value in student.state_dict().items()]),
        "teacher": None if teacher is None else _fingerprint(teacher),
    }
    history = []
    if checkpoint is not None and Path(checkpoint).exists():
        history = load_run(Path(checkpoint), student, objective, optimizer, generator, identity)["history"]

    student.train()
    with ExitStack() as stack:
        tapped_student, tapped_teacher = stack.enter_context(Taps(student, objective.student_layers)), None
        if objective.needs_teacher:
            stack.enter_context(evaluation_mode(teacher.to(device).to(memory_format=torch.channels_last)))
            tapped_teacher = stack.enter_context(Taps(teacher, objective.teacher_layers))
        for epoch in range(len(history), recipe.epochs):
            entry = _epoch(
                tapped_student,
                tapped_teacher,
                objective,
                optimizer,
                train,
                recipe,
                generator,
                epoch,
                device,
                gradient_norms,
            )
            if validation is not None:
                logits = predict(student, validation, device=device, precision=recipe.precision)
                _check_finite({"validation logits": logits.sum().item()}, epoch, recipe)
                entry["validation"] = measure(logits, validation.labels.cpu())
            history.append(entry)
            if checkpoint is not None:
                header = {"identity": identity, "history": history}
                save_run(Path(checkpoint), student, objective, optimizer, generator, header)
            if report is not None:
                report(entry)
    return history


def _epoch(
    student: Taps,
    teacher: Taps | None,
    objective,
    optimizer,
    train,
    recipe,
    generator,
    epoch,
    device,
    gradient_norms,
) -> dict:
    student.model.train()
    objective.train()
    steps = max(len(train) // recipe.batch_size, 1)
    sums, examples, started = {}, 0, time.perf_counter()
    batches = train.batches(recipe.batch_size, generator=generator, augment=recipe.augment)
    norms = {}
    for step, (inputs, labels, index) in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate_at(epoch + step / steps)
        with torch.autocast(
            torch.device(device).type, torch.bfloat16, enabled=recipe.precision == "bfloat16"
        ):
            student_logits, student_hidden = student(inputs)
            teacher_logits, teacher_hidden = None, {}
            if teacher is not None:
                with torch.no_grad():
                    teacher_logits, teacher_hidden = teacher(inputs)
        if (
            student_logits.device.type == "cpu"
        ):  # a glance there; on an accelerator, the epoch's mean is looked at
            _check_finite({"student logits": student_logits.detach().sum().item()}, epoch, recipe)
        progress = (epoch + step / steps) / recipe.epochs
        loss, terms = objective(
            student_logits=student_logits,
            teacher_logits=teacher_logits,
            student_hidden=student_hidden,
            teacher_hidden=teacher_hidden,
            labels=labels,
            index=index,
            progress=progress,
        )
        if gradient_norms and step == 0:
            found = objective.gradient_norms(terms, list(student.model.parameters()), progress)
            norms = {f"{name}.gradient_norm": norm.item() for name, norm in found.items()}
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for name, value in {"loss": loss, **terms}.items():  # summed on the device: no step waits for it
            sums[name] = sums.get(name, 0) + value.detach()
        examples += len(labels)
    means = {name: (total / steps).item() for name, total in sums.items()}
    seconds = time.perf_counter() - started
    _check_finite(means, epoch, recipe)
    return {
        "epoch": epoch + 1,
        "learning_rate": optimizer.param_groups[0]["lr"],
        **means,
        **norms,
        "seconds": seconds,
        "examples_per_second": examples / seconds,
    }


def _check_finite(values: dict[str, float], epoch: int, recipe: Recipe) -> None:
    if not all(map(math.isfinite, values.values())):
        raise FloatingPointError(
            f"training diverged in epoch {epoch + 1} of {recipe.epochs}: {', '.join(values)} stopped being finite; "
            "a lower learning rate or a warm-up usually mends this."
        )


def _fingerprint(model: nn.Module) -> str:
    """SHA-256 of a model's parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(
            name.encode() + value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()


def _plain(recipe: Recipe) -> dict:
    """A recipe as JSON gives it back."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(recipe).items()}
