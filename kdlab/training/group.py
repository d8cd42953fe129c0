"""The students of one process: their batches, the captured step, the clock, and when their checkpoints are written."""

import time
from collections.abc import Callable

import torch

from ..data.examples import each
from .distributed import anywhere, rank_and_world
from .graphs import GraphedStep, graphable
from .mixup import mixed
from .modules import share_layers, training_mode
from .protocols import asks_elsewhere, by_index, by_view
from .recipe import Recipe
from .seeds import generator
from .step import Step
from .stopping import Stopped
from .student import Student
from .views import Views


class Group:
    """What the students of one process share.

    Args:
        step: what they do with a batch each.
        data: the training split, on their device.
        views: what they and the teacher see of it; None: all of it.
        checkpoint_seconds, stop, stands, graphs: as in :func:`~kdlab.training.loop.fit_together`.
    """

    def __init__(
        self,
        step: Step,
        data,
        views: Views | None,
        checkpoint_seconds: float | None,
        stop: Callable[[], bool] | None,
        stands: Callable[[int, int, int], None] | None,
        graphs: bool,
    ):
        self.step, self.data, self.views, self.device = step, data, views, step.device
        self.checkpoint_seconds, self.stop, self.stands = checkpoint_seconds, stop, stands
        self.saved, self.saving = time.monotonic(), 0.0
        self.graphs, self.graphed = graphs and self.device.type == "cuda", None

    def train(self, students: list[Student], until: int) -> None:
        """Train students that stand at one position up to step ``until`` of their epoch."""
        for s in students:
            training_mode(s.model)
            s.objective.train()
        teacher = self.step.teacher
        self.step.shared = teacher is not None and any(share_layers(s.model, teacher.model) for s in students)
        epoch, start = students[0].position
        seeds = list(dict.fromkeys(s.recipe.seed for s in students))
        recipe = students[0].recipe
        told = {"tell_views": True} if teacher is not None and by_view(teacher.model) else {}
        streams = [self.batches(recipe, seed, epoch, start, "student", **told) for seed in seeds]
        own_views = list(dict.fromkeys(s.recipe.seed for s in students if s.recipe.teacher_view == "own"))
        own_streams = [self.batches(recipe, seed, epoch, start, "teacher", **told) for seed in own_views]
        graphed = self.graphed_step(students)
        began, elapsed = time.perf_counter(), {s: s.seconds for s in students}

        def clock():
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)  # else the clock would run ahead of the work
            for s in students:
                s.seconds = elapsed[s] + time.perf_counter() - began

        for _ in range(start, until):
            if self.stop is not None and anywhere(bool(self.stop())):
                clock()
                raise Stopped
            batches = dict(zip(seeds, (next(stream) for stream in streams), strict=True))
            own = dict(zip(own_views, map(next, own_streams), strict=True))
            views = {seed: batch[0] for seed, batch in own.items()}
            if told:
                seen = [(seed, "same", batch) for seed, batch in batches.items()]
                seen += [(seed, "own", batch) for seed, batch in own.items()]
                views = {(seed, view): torch.stack(batch[2:], 1) for seed, view, batch in seen}
                batches = {seed: batch[:3] for seed, batch in batches.items()}
            if self.views is not None:
                batches, views, self.step.boxes = self.views.seen(batches, students[0].position)
            for s in students:
                s.set_learning_rate(self.step.steps)
            # an epoch's first step is measured, which waits for the device
            if graphed is None or students[0].step == 0:
                self.step(students, batches, views)
            else:
                graphed(batches, views)
            for s in students:
                s.stepped(self.step.steps)
            if any(s.failure for s in students):
                students = [s for s in students if s.failure is None]
                if not students:
                    return
                graphed = self.graphed_step(students)
            if self.due():
                clock()
                self.save(students)
        clock()

    def graphed_step(self, students: list[Student]) -> GraphedStep | None:
        """The captured step of these students; the same as long as they are the same. None where nothing can be captured."""
        teacher = None if self.step.teacher is None else self.step.teacher.model
        if (
            not self.graphs
            or rank_and_world()[1] > 1
            or by_index(teacher)
            or asks_elsewhere(teacher)
            or self.views is not None
        ):
            return None
        eager = {s: "its objective changes in the course of training" for s in students if not graphable(s.objective)}
        eager |= {s: "it learns from text that it writes itself" for s in students if s.rewrite is not None}
        eager |= {s: "after_step looks at each of its steps" for s in students if s.after_step is not None}
        if len(eager) == len(students):
            return None
        if self.graphed is None or self.graphed.students != students:
            self.graphed = GraphedStep(self.step, students, eager)
        return self.graphed

    def batches(self, recipe: Recipe, seed: int, epoch: int, start: int, who: str, **told):
        """The batches of an epoch, this process's part of each."""
        order = torch.randperm(len(self.data), generator=generator(seed, epoch, "order"))
        order = order[: recipe.epoch_examples]
        stream = self.data.batches(
            recipe.batch_size,
            generator=generator(seed, epoch, f"augmentation of the {who}"),
            augment=recipe.augment,
            order=order,
            start=start,
            **told,
        )
        if recipe.mixup:
            stream = mixed(stream, seed, epoch, start)
        rank, world = rank_and_world()
        if world > 1:
            return (tuple(each(lambda x: x[rank::world], part) for part in batch) for batch in stream)
        return stream

    def due(self) -> bool:
        """Whether to write checkpoints: not so often that writing takes more than a tenth of the time, but for 0, after every step."""
        seconds = self.checkpoint_seconds
        return seconds is not None and anywhere(
            time.monotonic() - self.saved >= (seconds and max(seconds, 9 * self.saving))
        )

    def save_if_due(self, students) -> None:
        if self.due():
            self.save(students)

    def save(self, students) -> None:
        began = time.monotonic()
        for s in students:
            if not s.ended:
                s.save()
        self.saved = time.monotonic()
        self.saving = self.saved - began
        self.tell(students)

    def tell(self, students) -> None:
        going = [s.position for s in students if not s.ended]
        if self.stands is not None and going:
            self.stands(*min(going), self.step.steps)
