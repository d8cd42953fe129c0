"""A student in training: what it learns, where it stands, what is measured of it, and its checkpoint."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..objectives import Objective, Term
from ..objectives.terms import described
from .checkpoint import load_run, save_run
from .distributed import anywhere, average, by_the_first, rank_and_world, synchronised_batch_norm
from .identity import plain
from .measures import measure_split, measured_by
from .modules import moved_to, training_mode
from .optimizers import optimizer_of
from .precision import gradient_scaler
from .protocols import Device
from .recipe import Recipe
from .state import forward_pass, leaves_logits, shapes, state_of, trained
from .taps import Taps
from .weights import Kept


@dataclass
class Learner:
    """One student, what it minimises and how it is trained: what :func:`~kdlab.training.loop.fit_together` takes several of.

    Attributes:
        student: trained in place.
        objective: a term or a weighted sum of terms.
        recipe: how to train.
        checkpoint: its file, or None.
        report: called with each epoch's entry.
        rewrite: what a batch becomes before this student, and its teacher, look at it: called with the student, inputs, labels,
            the progress of the training and a generator; its ``repr`` says what it does, or a plain function's name and code do.
            For on-policy distillation, :class:`~kdlab.language.text.OwnText`.
        after_step: called after each step, see :func:`~kdlab.training.loop.fit`.
        origins: what is said of the process that trains it, as JSON has it, for its checkpoint; those of earlier processes come before it.
    """

    student: nn.Module
    objective: Objective | Term
    recipe: Recipe
    checkpoint: str | Path | None = None
    report: Callable[[dict[str, Any]], None] | None = None
    rewrite: Callable[..., Any] | None = None
    after_step: Callable[[dict[str, Any]], None] | None = None
    origins: list[dict[str, Any]] = field(default_factory=list)


class Student:
    """A student in training: all that changes from step to step, and what its checkpoint holds."""

    def __init__(self, learner: Learner, shared: dict[str, Any], device: Device) -> None:
        self.model, self.recipe, self.device = learner.student, learner.recipe, device
        self.objective = learner.objective
        if isinstance(self.objective, Term):
            self.objective = 1.0 * self.objective
        self.checkpoint = None if learner.checkpoint is None else Path(learner.checkpoint)
        self.report, self.rewrite, self.after_step = learner.report, learner.rewrite, learner.after_step
        self.origins = learner.origins
        self.layout = moved_to(self.model, device)
        computed = forward_pass(self.model)  # by one process or several
        synchronised_batch_norm(self.model, device)
        self.objective.to(device)
        self.optimizer = optimizer_of(self.recipe, self.model, self.objective, device)
        self.scaler = gradient_scaler(device, self.recipe.precision)
        self.history, self.step, self.seconds, self.sums, self.norms = [], 0, 0.0, {}, {}
        self.failure, self.latest, self.kept = None, {}, Kept(self.model, self.recipe)
        self.own_view = self.recipe.teacher_view == "own" or shared.get("views") is not None
        self.identity = {
            "recipe": plain(self.recipe),
            "objective": repr(self.objective),
            **shared,
            "student": repr(shapes(state_of(self.model))),
            "trained parameters": trained(self.model)
            | {f"objective.{k}": v for k, v in trained(self.objective).items()},
            "forward pass": computed,
            **leaves_logits("student", self.model),
            **({} if self.rewrite is None else {"rewrite": described(self.rewrite)}),
        }
        if self.checkpoint is not None and self.checkpoint.exists():
            self.load()
        training_mode(self.model)
        self.objective.train()

    def __enter__(self):
        self.taps = Taps(self.model, self.objective.student_layers)
        return self

    def __exit__(self, *_):
        self.taps.close()

    @property
    def ended(self) -> bool:
        return self.failure is not None or self.recipe.over(self.history)

    @property
    def view(self) -> tuple:
        """What the teacher looks at for this student: one key for all that share it."""
        return self.recipe.seed, self if self.rewrite is not None else "own" if self.own_view else "same"

    @property
    def position(self) -> tuple[int, int]:
        return len(self.history), self.step

    def progress(self, steps: int) -> float:
        return (len(self.history) + self.step / steps) / self.recipe.epochs

    def set_learning_rate(self, steps: int) -> None:
        rate = self.recipe.learning_rate_at(len(self.history) + self.step / steps)
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def stepped(self, steps: int) -> None:
        """A step is done: it is counted, its weights go into their average, and whoever asked is told."""
        self.step += 1
        self.kept.update(len(self.history) * steps + self.step)
        if self.after_step is not None and self.failure is None:
            rate = float(self.optimizer.param_groups[0]["lr"])
            where = {"epoch": len(self.history) + 1, "step": self.step, "steps": steps, "learning_rate": rate}
            self.after_step(where | self.latest)

    def scaled(self, loss: Tensor) -> Tensor:
        return loss if self.scaler is None else self.scaler.scale(loss)

    def note(self, parts: dict[str, list[Tensor]]) -> None:
        """Keep a step's loss and terms, given of each micro-batch, for the means of the epoch: on the device, so that no step waits for it."""
        for name, values in parts.items():
            self.latest[name] = value = values[-1] if name.endswith(".temperature") else sum(values)
            if name in self.sums:
                self.sums[name] += value
            else:
                self.sums[name] = value.clone()

    def parameters(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def end_epoch(self, validation, measure, steps: int, always_save: bool) -> None:
        """Measure, and begin the next epoch; a student whose numbers are not finite ends here."""
        try:
            means = {name: average(total / steps).item() for name, total in self.sums.items()}
            self.check_finite(means)
            if self.scaler is not None:
                means["gradient_scale"] = scale = self.scaler.get_scale()
                self.check_finite({"gradients": scale if scale > 1e-4 else math.inf})  # 30 steps in a row were left out
            examples = steps * min(self.recipe.batch_size, self.identity["examples"])
            entry = {
                "epoch": len(self.history) + 1,
                "learning_rate": self.recipe.learning_rate_at(len(self.history) + (steps - 1) / steps),
                **means,
                **self.norms,
                "seconds": self.seconds,
                "examples_per_second": examples / self.seconds,
            }
            if validation is not None:
                with self.kept.shown():
                    entry["validation"] = self.measured(validation, measure)
                    if self.recipe.best_by and self.recipe.best_epoch([*self.history, entry]) == entry["epoch"]:
                        self.kept.note_best()
        except FloatingPointError as error:
            self.failure = error
            return
        self.history.append(entry)
        self.step, self.seconds, self.norms = 0, 0.0, {}
        for total in self.sums.values():  # in place: a captured graph adds to these
            total.zero_()
        interrupted = []

        def tell():  # as the checkpoint begins to count: neither one without the other
            try:
                if self.report is not None:
                    self.report(entry)
            except BaseException as error:  # noqa: BLE001 (raised below)
                interrupted.append(error)

        if always_save or self.ended:
            self.save(tell)
        else:
            tell()
        if interrupted:
            raise interrupted[0]

    def measured(self, validation, measure) -> dict[str, float]:
        """What is measured after an epoch; where it decides anything, every process goes by the first one's."""
        if measure is not None:
            found = measured_by(measure, self.model, validation)
            self.check_finite({f"{name} of the validation": x for name, x in found.items()})
        else:
            found = measure_split(self.model, validation, device=self.device, precision=self.recipe.precision)
            self.check_finite({"validation logits": found["cross_entropy"]})
        return by_the_first(lambda: found) if self.recipe.best_by else found

    def check_finite(self, values: dict[str, float]) -> None:
        if anywhere(not all(map(math.isfinite, values.values()))):
            raise FloatingPointError(
                f"training diverged in epoch {len(self.history) + 1} of {self.recipe.epochs}: {', '.join(values)} stopped "
                "being finite; a lower learning rate or a warm-up usually mends this."
            )

    def save(self, last: Callable[[], None] = lambda: None) -> None:
        """Write the checkpoint, if there is one; ``last`` is called before it counts."""
        if self.checkpoint is None:
            last()
            return
        sums = {name: average(value) for name, value in self.sums.items()}
        if rank_and_world()[0] != 0:
            last()
            return
        header = {
            "identity": self.identity,
            "history": self.history,
            "step": self.step,
            "seconds": self.seconds,
            "norms": self.norms,
            "origins": self.origins,
            **({} if self.scaler is None else {"scaler": self.scaler.state_dict()}),
        }
        sums |= self.kept.tensors()
        save_run(self.checkpoint, self.model, self.objective, self.optimizer, sums, header, last)

    def load(self) -> None:
        header, sums = load_run(self.checkpoint, self.model, self.objective, self.optimizer, self.identity, self.device)
        self.sums = self.kept.taken(sums)
        self.history, self.step = header["history"], header["step"]
        self.seconds, self.norms = header["seconds"], header["norms"]
        self.origins[:0] = header.get("origins", ())  # earlier versions kept none
        if self.scaler is not None:
            self.scaler.load_state_dict(header["scaler"])
