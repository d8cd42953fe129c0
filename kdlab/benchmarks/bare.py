"""``loop``: what the training loop itself costs."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from ..training import Recipe
from ..training.modules import moved_to
from ..training.seeds import generator
from .timing import Contest, Laps, Settings, contest
from .training import kd, kdlab_round, network, recipe, synthetic, untrained_teacher


def bare(student, teacher, train, recipe: Recipe, device, laps: Callable[[], None]) -> None:
    """Distillation as one would write it for one run: the lines that remain if nothing is checked, kept or reported."""
    kind = torch.device(device).type
    layout = moved_to(student.train(), device)
    moved_to(teacher.eval(), device)
    optimizer = torch.optim.SGD(
        student.parameters(), recipe.learning_rate, recipe.momentum,
        weight_decay=recipe.weight_decay, fused=kind == "cuda",
    )  # fmt: skip
    for epoch in range(recipe.epochs):
        order = torch.randperm(len(train), generator=generator(recipe.seed, epoch, "order"))
        crops = generator(recipe.seed, epoch, "augmentation of the student")
        for inputs, labels, _ in train.batches(recipe.batch_size, generator=crops, augment=True, order=order):
            with torch.autocast(kind, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
                with torch.no_grad():
                    teacher_logits = teacher(inputs).float()
                logits = student(inputs.contiguous(memory_format=layout)).float()
            q, p = F.log_softmax(logits / 4, 1), F.log_softmax(teacher_logits / 4, 1)
            soft = 16 * F.kl_div(q, p, log_target=True, reduction="batchmean")
            loss = 0.1 * F.cross_entropy(logits, labels) + 0.9 * soft
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        laps()


def loop(settings: Settings) -> list[Contest]:
    """``fit`` against a bare loop by hand, of the same mathematics: at most 1.03 of its time is the goal on a CPU.

    Both have their images on the device, the same batches from the same augmentation, autocast, and channels-last memory;
    from the same weights they end at the same weights, which a test shows. What ``fit`` does beyond the bare loop is
    thus all that differs: looking for layers and numbers that are not finite, seeding each step, the mean of each term,
    and on CUDA the capture of the step as a graph, which pays for itself.

    On a CPU one more thing would differ, by accident, and be worth more than all else: how often the C library gives freed
    memory back to the system, only to ask for it again. Here it keeps it, as in every command of kdlab
    (:func:`kdlab.training.memory.keep_freed_memory`).
    """
    names = settings.pair
    student, teacher = network(names[1]), untrained_teacher(names[0])
    train = synthetic(settings.images).to(settings.device)

    def bare_round() -> float:
        laps = Laps(settings.device)
        bare(student, teacher, train, recipe(settings), settings.device, laps)
        return laps.last

    contestants = {"bare loop": bare_round, "fit": kdlab_round(settings, names, kd())}
    return [contest(f"KD {names[0]} → {names[1]}", contestants, settings, reference="bare loop")]
