"""The teachers that chapters share."""

from dataclasses import replace

import torch
from torch import nn

from ..data import ImageData, TextData
from ..training.protocols import fuse
from . import plans
from .language_plans import language_teacher
from .records import RecordError, evidence_folder
from .run import run
from .spec import Spec
from .stored import checkpoint_path, stored_student


def book_teacher(data: ImageData, *, device: torch.device | str = "cpu") -> nn.Module:
    """The stored ResNet-20 for CIFAR-100; for the fall-back, one trained on the spot in about 20 seconds.

    Raises:
        RecordError: if the stored teacher is missing or is not the one of its record.
    """
    return _stored_or_trained(plans.teacher(data.name), data, device, "'kdlab run teacher' in about 20 minutes")


def book_language_teacher(data: TextData, *, device: torch.device | str = "cpu") -> nn.Module:
    """The stored GPT of 3.4 M parameters for ``book-openings-4096-256``; for the fall-back, a smaller one trained on the spot in
    about a minute.

    Raises:
        RecordError: if the stored teacher is missing or is not the one of its record.
    """
    spec = language_teacher()
    if data.fallback:
        recipe = replace(spec.recipe, epochs=4, epoch_examples=256)
        spec = replace(spec, data=data.name, student="gpt_96x3", recipe=recipe)
    return _stored_or_trained(spec, data, device, "'kdlab run language-small' in its first half hour")


def _stored_or_trained(spec: Spec, data, device, made_by: str) -> nn.Module:
    if data.fallback:
        model = run(spec, data, device=device).student
        fuse(model, False)
        return model
    model = stored_student(spec, evidence_folder(), data.num_classes)
    if model is None:
        raise RecordError(
            f"{checkpoint_path(spec, evidence_folder())} is missing: it comes with the repository, or is made by {made_by}."
        )
    return model.to(device)
