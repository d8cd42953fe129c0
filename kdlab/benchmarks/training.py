"""What the contestants train: networks, synthetic images, and a round of kdlab's own loop."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import nn

from .. import models
from ..data import Split
from ..objectives import CrossEntropy, Objective, SoftTargets
from ..training import Learner, LogitsOfViews, Recipe, fit_together
from .timing import Laps, Settings

#: Of CIFAR-100: classes, and the training images that memories have a place for.
CLASSES, EXAMPLES = 100, 50_000


def kd() -> Objective:
    """Hinton's distillation with the published weights."""
    return 0.1 * CrossEntropy() + 0.9 * SoftTargets(temperature=4)


def synthetic(examples: int) -> Split:
    """Random images of CIFAR's size, and random labels: an image costs the same whatever it shows."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (examples, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (examples,), generator=generator)
    return Split(images, labels, mean=(0.5,) * 3, std=(0.29,) * 3)


def network(name: str, seed: int = 0) -> nn.Module:
    """A network of ``kdlab.models`` with the initial weights of a seed."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return getattr(models, name)(CLASSES)


@torch.no_grad()
def untrained_teacher(name: str) -> nn.Module:
    """A network whose normalisations have seen a batch, so that its features are in range, as a trained teacher's are."""
    teacher = network(name)
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the running statistics are those of the batch
    split = synthetic(64)
    teacher(split.normalise(split.images))
    return teacher.eval()


def recipe(settings: Settings) -> Recipe:
    """The published recipe for two epochs. The small learning rate costs the same, and nothing diverges."""
    return Recipe(
        epochs=2,
        batch_size=settings.batch_size,
        learning_rate=1e-3,
        schedule="constant",
        precision=settings.precision,
    )


def kdlab_round(
    settings: Settings,
    pair: tuple[str, str],
    objective: Objective,
    *,
    seeds: Sequence[int] = (0,),
    views: int | None = None,
) -> Callable[[], float]:
    """A function that trains a student for each seed beside one teacher by :func:`~kdlab.training.loop.fit_together`, and times an epoch.

    An epoch of ``settings.steps`` steps warms up, and a second one is timed, all that ``fit_together`` does between two
    epochs included. Students, teacher and what the objective learns go on from round to round. With ``views``, of which augmentation has so
    many, the teacher's logits were made before.
    """
    teacher = untrained_teacher(pair[0]) if objective.needs_teacher else None
    learners = [
        Learner(network(pair[1], number), objective, replace(recipe(settings), seed=seed))
        for number, seed in enumerate(seeds)
    ]
    train = synthetic(settings.images).to(settings.device)
    if views is not None:
        train = train.with_views(views)
        teacher = LogitsOfViews(teacher, train, precision=settings.precision)

    def one_round() -> float:
        laps = Laps(settings.device)
        timed = [*learners[:-1], replace(learners[-1], report=laps)]  # the last to report ends the epoch
        for outcome in fit_together(timed, train=train, teacher=teacher, device=settings.device):
            if isinstance(outcome, FloatingPointError):
                raise outcome
        return laps.last

    return one_round
