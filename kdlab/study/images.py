"""Runs on images: their data sets, what a spec trains on, and what is measured of a student."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..data import ImageData, load_cifar10, load_cifar100, load_digits
from ..objectives import Objective
from ..training import accuracy, fitted_temperature, measure, predict
from .spec import Spec

#: Data sets by the names that specs have for them.
LOADERS = {"cifar100": load_cifar100, "cifar10": load_cifar10, "digits": load_digits}


def check(spec: Spec) -> None:
    """That it asks for nothing that images do not have; raises ValueError if it does."""
    if spec.own_text or spec.kept or spec.drafting:
        raise ValueError(f"{spec.name}: texts, caches and drafts are for language models.")


def begin(student: nn.Module, spec: Spec, objective: Objective, teacher: nn.Module | None) -> None:
    """A new student is ready as it is."""


def lesson(
    spec: Spec, data: ImageData, students: list[nn.Module], teacher: nn.Module | None, device, stop=None
) -> tuple:
    """What a spec's students train on, what they validate on (None if that is trained on too), and who teaches."""
    train = data.train
    if not spec.hold_out:
        both = (data.train, data.validation)
        train = replace(
            train,
            images=torch.cat([split.images for split in both]),
            labels=torch.cat([split.labels for split in both]),
        )
    if spec.omit:
        train = train[~torch.isin(train.labels, torch.tensor(spec.omit))]
    if spec.train_examples is not None:
        train = train[: spec.train_examples]
    return train, data.validation if spec.hold_out else None, teacher


def validated(data, teacher, how) -> None:
    """After each epoch, what :func:`~kdlab.training.loop.fit` measures by itself."""


def measured(ended, data: ImageData, teacher, how) -> Iterator[tuple[Tensor, dict]]:
    """Test logits and the measures of a record, of each student whose training came to its end.

    ``fitted`` is what is measured once more after the logits are divided by the one temperature that fits the validation
    split best, where that was held out.
    """
    labels, superclass = data.test.labels, torch.tensor(data.superclass_of)
    teacher_logits = None if teacher is None else predict(teacher, data.test, **how)
    for spec, student in ended:
        logits = predict(student, data.test, **how)
        wrong = logits.argmax(-1) != labels
        within = superclass[logits.argmax(-1)[wrong]] == superclass[labels[wrong]]
        found = {
            **measure(logits, labels, teacher_logits),
            "errors_within_superclass": within.float().mean().item() if len(within) else 0.0,
        }
        if spec.hold_out:
            temperature = fitted_temperature(predict(student, data.validation, **how), data.validation.labels)
            refitted = measure(logits / temperature, labels, teacher_logits)
            kept = ("cross_entropy", "calibration_error", "kl_to_teacher")
            found["fitted"] = {"temperature": temperature, **{k: refitted[k] for k in kept if k in refitted}}
        if spec.omit:
            found["omitted"] = measured_omission(spec, student, logits, data, how["device"])
        yield logits, found


def measured_omission(spec: Spec, student, logits: Tensor, data: ImageData, device) -> dict:
    """Accuracy on classes that the student was never shown: as it is, among these classes alone, and with their bias raised.

    A class that no example has gets too low a bias (Hinton et al. 2015, section 3). ``among_omitted`` needs none: of the omitted
    classes, which has the largest logit. ``accuracy_with_bias`` adds to the logits of all omitted classes the one number that is
    best for all validation images.
    """
    omitted = torch.tensor(spec.omit)
    unseen = torch.isin(data.test.labels, omitted)
    validated = predict(student, data.validation, device=device, precision=spec.recipe.precision)
    raised = torch.zeros(logits.shape[-1]).index_fill(0, omitted, 1.0)
    choices = [b / 4 for b in range(61)]
    best = max(choices, key=lambda b: accuracy(validated + b * raised, data.validation.labels))
    moved = logits + best * raised
    return {
        "accuracy": accuracy(logits[unseen], data.test.labels[unseen]),
        "among_omitted": accuracy(logits[unseen][:, omitted], torch.searchsorted(omitted, data.test.labels[unseen]))
        if len(omitted) > 1
        else 1.0,
        "bias": best,
        "accuracy_with_bias": accuracy(moved[unseen], data.test.labels[unseen]),
        "accuracy_of_all_with_bias": accuracy(moved, data.test.labels),
    }
