"""The one training loop: one student, or several beside one teacher."""

import copy
import hashlib
import inspect
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..data.examples import as_split, each
from ..objectives import HeadLogits, Objective, Term, global_count
from ..objectives.checks import IGNORED
from .checkpoint import load_run, require_safetensors, save_run
from .distributed import (
    anywhere,
    average,
    average_gradients,
    by_the_first,
    rank_and_world,
    synchronised_batch_norm,
)
from .graphs import GraphedStep, graphable
from .measures import evaluation_mode, measure_split, measured_by
from .modules import check_two, moved_to, share_layers, storages, training_mode
from .precision import autocast, gradient_scaler
from .recipe import Recipe
from .state import checksum, forward_pass, leaves_logits, shapes, state_of, take_apart
from .taps import Taps
from .views import Views, aligned
from .weights import Kept


class Stopped(Exception):
    """Training was asked to stop, and its checkpoint holds all of it."""


@dataclass
class Learner:
    """One student, what it minimises and how it is trained: what :func:`fit_together` takes several of.

    Attributes:
        student: trained in place.
        objective: a term or a weighted sum of terms.
        recipe: how to train.
        checkpoint: its file, or None.
        report: called with each epoch's entry.
        rewrite: what a batch becomes before this student, and its teacher, look at it: called with the student, inputs, labels,
            the progress of the training and a generator; its ``repr`` says what it does. For on-policy distillation, :class:`~kdlab.language.text.OwnText`.
        after_step: called after each step, see :func:`fit`.
    """

    student: nn.Module
    objective: Objective | Term
    recipe: Recipe
    checkpoint: str | Path | None = None
    report: Callable[[dict], None] | None = None
    rewrite: Callable | None = None
    after_step: Callable[[dict], None] | None = None


class Interruptible:
    """A split whose batches end in :class:`Stopped` once ``stop`` says so; None never does."""

    def __init__(self, split, stop: Callable[[], bool] | None):
        self.split, self.stop = split, stop

    def __getattr__(self, name):
        return getattr(self.split, name)

    def __len__(self) -> int:
        return len(self.split)

    def batches(self, *arguments, **options):
        for batch in self.split.batches(*arguments, **options):
            if self.stop is not None and anywhere(self.stop()):
                raise Stopped
            yield batch


def fit(
    student: nn.Module,
    objective: Objective | Term,
    *,
    train,
    recipe: Recipe,
    teacher: nn.Module | None = None,
    validation=None,
    measure: Callable[[nn.Module, object], dict[str, float]] | None = None,
    device="cpu",
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float | None = None,
    gradient_norms: bool = False,
    report: Callable[[dict], None] | None = None,
    stop: Callable[[], bool] | None = None,
    rewrite: Callable | None = None,
    after_step: Callable[[dict], None] | None = None,
    student_view: Callable | None = None,
    teacher_view: Callable | None = None,
) -> list[dict]:
    """Train ``student`` to minimise ``objective`` and return what was measured after each epoch.

    A step is: student and teacher look at one batch, the objective compares them, the optimiser moves the student
    (and whatever the objective learns). Layers that the objective looks at are captured by
    :class:`~kdlab.training.taps.Taps`. The teacher is in evaluation mode (unless the recipe has it otherwise) and gets no
    gradient; its weights, buffers and modes are left as they were (it is moved to ``device``). With the student it may share what
    training does not move, such as frozen layers.

    The student is put in training mode, but for what is frozen: a layer that is in evaluation mode and has parameters, of which none
    is trained (``requires_grad=False``), stays so with all that is in it, such as the statistics of its batch normalisation.

    Every random draw comes from the recipe's seed, the epoch and the step alone, so that a run depends neither on what was
    drawn before it nor on what is trained beside it; torch's own random state is left as it was.

    Under ``torchrun`` (within :func:`~kdlab.training.distributed.processes`), every process takes its part of each batch,
    and gradients are averaged over them; of texts of uneven length too, they are those of the whole batch. Terms that compare
    the examples of a batch with each other see one part; the first process alone writes.

    Args:
        student: trained in place, left in training mode (but for what is frozen).
        objective: a term or a weighted sum of terms.
        train: a :class:`~kdlab.data.images.Split` of images, :class:`~kdlab.data.tokens.Tokens` of a text,
            :class:`~kdlab.data.examples.Examples` of anything else, or a DataLoader, which is read as :class:`~kdlab.data.examples.Loaded`
            says: order and batches are the recipe's.
        recipe: how to train. Its seed fixes the batches; the student's initial weights are the caller's.
        teacher: needed if the objective needs one.
        validation: a split or DataLoader that is measured after each epoch, in evaluation mode; None measures nothing.
        measure: what is measured of it, where that is not what :func:`~kdlab.training.measures.measure` says: a function of the student,
            in evaluation mode, and the validation split, which returns numbers by their names; such as
            ``lambda student, split: {"error": (predict(student, split) - split.labels).abs().mean().item()}``.
        device: where to train, such as ``"cuda"``.
        checkpoint: a file that is written after every epoch. If it is there already, the run goes on from it, bit
            for bit as if it had never stopped (on the same device); if it is of another run, it is refused.
        checkpoint_seconds: write it whenever so many seconds have passed, in the middle of an epoch too, and not
            after every epoch; more seldom where writing would take more than a tenth of the time. 0 is after every step.
        gradient_norms: also measure, at the first step of each epoch, the norm of each weighted term's gradient by the
            student's parameters.
        report: called with each epoch's entry, for progress: once, when its checkpoint is written and before it counts. An epoch that
            no checkpoint holds when the process is killed is trained, and reported, again.
        stop: asked before each step, and between the batches of a validation; once it says True, the checkpoint is written
            and :class:`Stopped` raised.
        rewrite: what a batch becomes before it is looked at, such as :class:`~kdlab.language.text.OwnText`; see :class:`Learner`.
        after_step: called after each step, when the optimiser has moved the student and its gradients are still there, with
            ``epoch``, ``step`` (of its ``steps``, from 1), ``learning_rate``, and the step's ``loss`` and terms: tensors, which are not waited for. A step
            that no checkpoint holds when the process is killed is taken, and told, again. On CUDA the steps are then not captured as a graph.
        student_view, teacher_view: what the student, and the teacher, sees of a batch of inputs, such as crops of a size of its own: a function of the
            inputs and a generator for what it draws, which returns inputs, or these and where in the pictures they lie; see :mod:`kdlab.training.views`. Without
            one, they are seen as they are.

    Returns:
        One dict an epoch: ``epoch``, ``learning_rate``, ``loss`` and each term's mean over the epoch,
        ``gradient_norm`` (of the whole, by the student's parameters, at the epoch's first step; of each term if asked for), ``validation`` (see :func:`~kdlab.training.measures.measure`), ``seconds`` and ``examples_per_second`` of training.

    Raises:
        ValueError: if the objective needs a teacher and there is none, or training the student would move its teacher.
        FloatingPointError: if the loss stops being finite; the last checkpoint stays.
        CheckpointError: if ``checkpoint`` is damaged or belongs to another run.
        Stopped: if ``stop`` said so.
    """
    (outcome,) = fit_together(
        [Learner(student, objective, recipe, checkpoint, report, rewrite, after_step)],
        train=train,
        teacher=teacher,
        validation=validation,
        measure=measure,
        device=device,
        checkpoint_seconds=checkpoint_seconds,
        gradient_norms=gradient_norms,
        stop=stop,
        student_view=student_view,
        teacher_view=teacher_view,
    )
    if isinstance(outcome, FloatingPointError):
        raise outcome
    return outcome


def fit_together(
    learners: Sequence[Learner],
    *,
    train,
    teacher: nn.Module | None = None,
    validation=None,
    measure: Callable[[nn.Module, object], dict[str, float]] | None = None,
    device="cpu",
    checkpoint_seconds: float | None = None,
    gradient_norms: bool = False,
    stop: Callable[[], bool] | None = None,
    stands: Callable[[int, int, int], None] | None = None,
    graphs: bool = True,
    student_view: Callable | None = None,
    teacher_view: Callable | None = None,
) -> list[list[dict] | FloatingPointError]:
    """Train several students side by side, with one look of the teacher at each batch for all of them.

    Students of one seed see the same batches. Of students with different seeds the teacher sees the batches joined into
    one on an accelerator, and one after another on a CPU. On a CPU each student ends with the same bits as alone.

    Args:
        learners: students of one recipe, up to what changes neither batches nor teacher.
        stands: told where the training stands, at its start and whenever checkpoints are written in the middle of it: epochs
            done, steps of the next, steps of an epoch.
        graphs: on CUDA, capture the step of all students as one graph, each a branch of its own, but for those that change in the
            course of training, draw random numbers or wait for the device (a warning says which).
        train, teacher, validation, measure, device, checkpoint_seconds, gradient_norms, stop, student_view, teacher_view: as in
            :func:`fit`; views are the same for all.

    Returns:
        For each learner its history, or the error of one that diverged, which stops no other.

    Raises:
        ValueError: also if the learners do not fit each other.
    """
    for learner in learners:
        if not isinstance(learner.objective, (Objective, Term)):
            raise TypeError(
                f"the objective is a term or a sum of terms, such as SoftTargets(), not {learner.objective!r}."
            )
    if teacher is not None and not isinstance(teacher, nn.Module):
        raise TypeError(
            f"a teacher is a torch.nn.Module, not {type(teacher).__name__}; of a function make one: kdlab.training.FunctionTeacher(function, name)."
        )
    train = as_split(train, "train")
    validation = None if validation is None else as_split(validation, "validation")
    for learner in learners:
        _check_learner(learner, train, teacher, gradient_norms)
    _check_splits(train, validation, learners[0].recipe, measure)
    _check_best(learners, validation, measure)
    views = Views.of(student_view, teacher_view)
    if views is not None:
        _check_views(views, learners, teacher)
    shared = {tuple(getattr(learner.recipe, name) for name in _SHARED) for learner in learners}
    if len(shared) > 1:
        raise ValueError(f"students that train side by side share {', '.join(_SHARED)}.")
    _check_apart(learners)
    size, (_, world) = min(learners[0].recipe.batch_size, len(train)), rank_and_world()
    if size % world:
        raise ValueError(f"a batch of {size} cannot be spread evenly over {world} processes.")
    if hasattr(teacher, "check_text"):  # a cache, of this text and no other
        teacher.check_text(train)
    if hasattr(teacher, "check_examples"):
        teacher.check_examples(train, [learner.recipe for learner in learners])
    train = train.to(device)
    with ExitStack() as stack:
        stack.enter_context(_on_device(device, learners[0].recipe.precision))
        stack.enter_context(_own_random_state(device))
        if teacher is not None:
            moved_to(teacher, device)
        shared = {
            "examples": len(train),
            "labels": _labels_checksum(train),
            "teacher": None if teacher is None else checksum(state_of(teacher).items()),
            **leaves_logits("teacher", teacher),
            **_blocks(train),
            **({} if views is None else {"views": repr(views)}),
            **(_inputs_checksum(train) if any(x.checkpoint is not None for x in learners) else {}),
        }
        students = [stack.enter_context(_Student(x, shared, device)) for x in learners]
        tapped_teacher = None
        if layers := [s.objective.teacher_layers for s in students if s.objective.needs_teacher]:
            if learners[0].recipe.teacher_mode == "train":
                teacher = _unchanged_copy(teacher)
            elif not any(share_layers(s.model, teacher) for s in students):
                stack.enter_context(evaluation_mode(teacher))
            tapped_teacher = stack.enter_context(Taps(teacher, dict.fromkeys(sum(layers, ()))))
        examples = min(learners[0].recipe.epoch_examples or len(train), len(train))
        steps = max(examples // learners[0].recipe.batch_size, 1)
        group = _Group(
            tapped_teacher, train, steps, device, checkpoint_seconds, gradient_norms, stop, stands, graphs, views
        )
        group.tell(students)
        if validation is not None:
            validation = Interruptible(validation, stop)
        try:
            while going := [s for s in students if not s.ended]:
                position = min(s.position for s in going)  # after a kill some may be further than others
                active = [s for s in going if s.position == position]
                ahead = [s.step for s in going if s.position[0] == position[0] and s.position > position]
                group.train(active, until=min([steps, *ahead]))
                for s in active:
                    if s.step == steps and not s.ended:
                        s.end_epoch(validation, measure, steps, always_save=checkpoint_seconds is None)
                group.save_if_due(students)
        except Stopped:
            group.save(students)
            raise Stopped("training was asked to stop; with its checkpoint it goes on from here.") from None
        finally:
            group.graphed = None  # which knows the group that knows it: its memory is wanted before Python looks for such rings
        for s in students:
            if s.failure is None:
                s.kept.leave()
        return [s.failure or s.history for s in students]


_SHARED = ("batch_size", "augment", "precision", "teacher_mode", "epoch_examples")


def _check_learner(learner: Learner, train, teacher, gradient_norms) -> None:
    objective = learner.objective
    if learner.rewrite is not None and getattr(teacher, "by_index", False):
        raise ValueError("a teacher cache knows the examples as they were: it cannot look at rewritten ones.")
    for part in objective.modules():
        if hasattr(part, "check_rewrite"):
            part.check_rewrite(learner.rewrite)
    if objective.needs_teacher and teacher is None:
        raise ValueError(f"the objective {objective!r} needs a teacher, but none was given.")
    if gradient_norms and learner.recipe.micro_batches > 1:
        raise ValueError("gradient norms are measured where a batch is run as one: micro_batches=1.")
    labels = getattr(train, "labels", None)
    of_tokens = labels is not None and _counted(labels[:1]).ndim > 1
    kind = "texts" if hasattr(train, "token_bytes") or of_tokens else "images"
    whole = any(kind in getattr(part, "needs_whole_batch_of", ()) for part in objective.modules())
    if learner.recipe.micro_batches > 1 and whole:
        raise ValueError(f"the objective {objective!r} needs each batch as a whole: micro_batches=1.")
    if learner.recipe.micro_batches > 1 and labels is not None:
        _check_positions(labels)
    if learner.recipe.micro_batches > 1:
        _check_counts(objective, learner.recipe.micro_batches)
    if learner.recipe.teacher_view == "own" and not getattr(train, "augments", True):
        raise ValueError(
            f"{type(train).__name__} are not augmented, so a teacher has no view of its own of them: teacher_view=\"same\"."
        )
    if teacher is not None:
        check_two(learner.student, teacher)
    if learner.checkpoint is not None:
        require_safetensors()
        take_apart(learner.student.state_dict())  # what cannot be stored is known before the first step


_COUNTS = {"count", "hidden_count", "example_count"}


def _check_counts(objective, parts: int) -> None:
    """That each term divides by the numbers of the whole batch, so that what it says of its parts adds up."""
    for term in objective.terms if isinstance(objective, Objective) else [objective]:
        named = {name for kind in type(term).__mro__ if "forward" in vars(kind) for name in inspect.signature(kind.forward).parameters}
        if not named & _COUNTS:
            raise ValueError(
                f"{type(term).__name__} takes no count, so that it would weigh {parts} times as much in {parts} micro-batches: let its forward take "
                "count=None and divide its sum over examples by it where it is given, or say micro_batches=1."
            )


def _check_positions(labels: Tensor) -> None:
    """That it is known what a mean over the positions of the whole batch divides by."""
    if labels.is_floating_point() and labels.ndim > 3:
        raise ValueError("of labels that are maps of numbers the positions are not known here: micro_batches=1.")


def _check_splits(train, validation, recipe: Recipe, measure) -> None:
    """What would be noticed after an epoch only."""
    if hasattr(train, "loader") and train.batch_size != recipe.batch_size:
        raise ValueError(
            f"the DataLoader has batches of {train.batch_size} and the recipe of {recipe.batch_size}: say the same in both."
        )
    pictures = getattr(train, "inputs", None)
    if recipe.augment and not getattr(train, "augments", True) and isinstance(pictures, Tensor) and pictures.ndim == 4:
        raise ValueError(
            "pictures in kdlab.data.Examples are neither cropped nor flipped: say augment=False in the recipe, or give a kdlab.data.Split of images."
        )
    if measure is not None:
        if validation is None:
            raise ValueError("measure=… is of a validation split: give validation=…, too.")
        return
    labels = getattr(validation, "labels", None)
    if labels is None and hasattr(validation, "loader"):
        _, labels, _ = next(validation.batches(1))
    if labels is not None and labels.is_floating_point() and not torch.allclose(
        labels.double().sum(-1), torch.ones((), dtype=torch.double), atol=1e-2
    ):
        raise ValueError(
            "labels of the validation split are no probabilities of classes, and what is measured of it is the accuracy of one: say "
            "in measure=… what else is."
        )


def _check_best(learners, validation, measure) -> None:
    known = ("accuracy", "cross_entropy", "calibration_error", *(["bits_per_byte"] if hasattr(validation, "token_bytes") else []))
    for best in {learner.recipe.best_by for learner in learners} - {None}:
        name = best.split(" ", 1)[1]
        if validation is None:
            raise ValueError(f"the epoch of the {best} is that of a validation split: give validation=…, too.")
        if measure is None and name not in known:
            raise ValueError(f"best_by names {name!r}, and what is measured of the validation split is {', '.join(known)}; or say measure=….")


def _check_views(views: Views, learners, teacher) -> None:
    if any(learner.rewrite is not None for learner in learners):
        raise ValueError("a batch is rewritten or seen in views, not both: rewrite=None, or no views.")
    if any(learner.recipe.teacher_view != "same" for learner in learners):
        raise ValueError('what the teacher sees is said twice: teacher_view="same" in the recipe, or no views.')
    if views.teacher is not None and (teacher is None or getattr(teacher, "by_index", False)):
        raise ValueError("teacher_view is of a teacher that looks at inputs, and there is none.")


def _check_apart(learners) -> None:
    paths = [Path(learner.checkpoint).absolute() for learner in learners if learner.checkpoint is not None]
    if len(set(paths)) < len(paths):
        raise ValueError("two learners have one and the same checkpoint.")
    held = [storages(x.student) | storages(x.objective) for x in learners]
    if len(set().union(*held)) < sum(map(len, held)):
        raise ValueError("two learners share weights, of a student or an objective: give each its own.")


class _Student:
    """A student in training: all that changes from step to step, and what its checkpoint holds."""

    def __init__(self, learner: Learner, shared: dict, device):
        self.model, self.recipe, self.device = learner.student, learner.recipe, device
        self.objective = learner.objective
        if isinstance(self.objective, Term):
            self.objective = 1.0 * self.objective
        self.checkpoint = None if learner.checkpoint is None else Path(learner.checkpoint)
        self.report, self.rewrite, self.after_step = learner.report, learner.rewrite, learner.after_step
        self.layout = moved_to(self.model, device)
        computed = forward_pass(self.model)  # by one process or several
        synchronised_batch_norm(self.model, device)
        self.objective.to(device)
        self.optimizer = _optimizer(self.recipe, self.model, self.objective, device)
        self.scaler = gradient_scaler(device, self.recipe.precision)
        self.history, self.step, self.seconds, self.sums, self.norms = [], 0, 0.0, {}, {}
        self.failure, self.latest, self.kept = None, {}, Kept(self.model, self.recipe)
        self.own_view = self.recipe.teacher_view == "own" or shared.get("views") is not None
        self.identity = {
            "recipe": _plain(self.recipe),
            "objective": repr(self.objective),
            **shared,
            "student": repr(shapes(state_of(self.model))),
            "forward pass": computed,
            **leaves_logits("student", self.model),
            **({} if self.rewrite is None else {"rewrite": repr(self.rewrite)}),
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

    def learn(self, inputs, labels, index, teacher_logits, teacher_hidden, boxes, steps, gradient_norms) -> None:
        """One step of gradient descent."""
        seen = {
            "inputs": inputs,
            "labels": labels,
            "index": index,
            "teacher_logits": teacher_logits,
            "teacher_hidden": teacher_hidden,
            "boxes": boxes,
        }
        self.optimizer.zero_grad()
        progress, sums = self.progress(steps), {}
        for part, counts in self.parts(labels, inputs):
            loss, terms = self.compare(progress, counts, **{k: _part(v, part) for k, v in seen.items()})
            if gradient_norms and self.step == 0:
                large = {name: self.scaled(value) for name, value in terms.items()}
                found = self.objective.gradient_norms(large, self.model.parameters(), progress)
                scale = 1.0 if self.scaler is None else self.scaler.get_scale()
                self.norms |= {f"{name}.gradient_norm": norm.item() / scale for name, norm in found.items()}
            with _deterministic_attention(labels):
                self.scaled(loss).backward()
            for name, value in {"loss": loss, **terms}.items():
                sums.setdefault(name, []).append(value.detach())
        average_gradients(self.optimizer)
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if self.step == 0:
            lengths = [p.grad.norm() for p in self.model.parameters() if p.grad is not None]
            self.norms |= {"gradient_norm": torch.stack(lengths).norm().item()} if lengths else {}
        if self.recipe.max_gradient_norm:
            nn.utils.clip_grad_norm_(self.parameters(), self.recipe.max_gradient_norm)
        if self.scaler is None:
            self.optimizer.step()
        else:  # unless a gradient is not finite
            self.scaler.step(self.optimizer)
            self.scaler.update()
        for name, values in sums.items():  # summed on the device: no step waits for it
            self.latest[name] = value = values[-1] if name.endswith(".temperature") else sum(values)
            if name in self.sums:
                self.sums[name] += value
            else:
                self.sums[name] = value.clone()

    def scaled(self, loss: Tensor) -> Tensor:
        return loss if self.scaler is None else self.scaler.scale(loss)

    def parts(self, labels: Tensor, inputs):
        """The micro-batches of a batch, and what their means divide by: the numbers of the whole."""
        n, (_, world) = self.recipe.micro_batches, rank_and_world()
        counted = _counted(labels)
        if n == 1 and (world == 1 or counted.ndim == 1):
            return [(slice(None), {})]
        if n > 1:
            _check_positions(labels)
        read = _read(inputs, counted)
        counts = {
            "count": global_count(counted),
            "example_count": len(labels),
            "hidden_count": counted.numel() if read is None else global_count(read),
        }
        size = math.ceil(len(labels) / n)
        return [(slice(start, start + size), counts) for start in range(0, len(labels), size)]

    def compare(self, progress, counts, *, inputs, labels, index, teacher_logits, teacher_hidden, boxes=None):
        """What the objective says of some examples."""
        inputs = each(lambda x: x.contiguous(memory_format=self.layout) if x.ndim == 4 else x, inputs)
        with autocast(self.device, self.recipe.precision):
            student_logits, student_hidden = self.taps(inputs)
        if boxes is not None:  # views of their own
            pairs = [pair for term in self.objective.terms for pair in zip(term.teacher_layers, term.student_layers, strict=True)]
            teacher_hidden = aligned(teacher_hidden, student_hidden, pairs, boxes)
        if labels.device.type == "cpu":  # a glance; elsewhere the epoch's mean is looked at
            seen = student_logits
            if isinstance(seen, HeadLogits):
                seen = seen.hidden.detach().sum() + seen.weight.detach().square().sum()
            self.check_finite({"student logits": seen.detach().sum().item()})
        counted = _counted(labels)
        masks = {}
        if counted.ndim > 1:  # every token of a block is read, and those with a label are learned from
            shape = student_logits.shape
            if counted.shape not in (shape[:-1], (shape[0], *shape[2:])):
                raise ValueError(
                    f"labels of shape {tuple(labels.shape)} do not fit logits of shape {tuple(shape)}: class indices have no axis of "
                    "classes, and probabilities, one-hot too, are floating point."
                )
            read = _read(inputs, counted)
            masks = {"mask": counted, "hidden_mask": torch.ones_like(counted) if read is None else read}
        # Products with a head that are left to the objective are made as the model's own. On a CPU they stay in float32, as in all records.
        lower = isinstance(student_logits, HeadLogits) and labels.device.type != "cpu"
        with autocast(self.device, self.recipe.precision) if lower else nullcontext():
            return self.objective(
                student_logits=student_logits,
                teacher_logits=teacher_logits,
                student_hidden=student_hidden,
                teacher_hidden=teacher_hidden,
                labels=labels,
                index=index,
                progress=progress,
                **masks,
                **counts,
            )

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
            **({} if self.scaler is None else {"scaler": self.scaler.state_dict()}),
        }
        sums |= self.kept.tensors()
        save_run(self.checkpoint, self.model, self.objective, self.optimizer, sums, header, last)

    def load(self) -> None:
        header, sums = load_run(
            self.checkpoint, self.model, self.objective, self.optimizer, self.identity, self.device
        )
        self.sums = self.kept.taken(sums)
        self.history, self.step = header["history"], header["step"]
        self.seconds, self.norms = header["seconds"], header["norms"]
        if self.scaler is not None:
            self.scaler.load_state_dict(header["scaler"])


class _Group:
    """What the students of one process share: the batches, the teacher's look at them, the clock."""

    def __init__(
        self,
        teacher: Taps | None,
        train,
        steps,
        device,
        checkpoint_seconds,
        gradient_norms,
        stop,
        stands,
        graphs,
        views,
    ):
        self.teacher, self.data, self.steps, self.device = teacher, train, steps, torch.device(device)
        self.checkpoint_seconds, self.gradient_norms = checkpoint_seconds, gradient_norms
        self.stop, self.stands = stop, stands
        self.saved, self.saving = time.monotonic(), 0.0
        self.by_index, self.asks = (getattr(getattr(teacher, "model", None), name, False) for name in ("by_index", "asks"))
        self.graphs = graphs and self.device.type == "cuda"
        self.views, self.where = views, {}
        self.shared = False
        self.graphed = None

    def train(self, students: list[_Student], until: int) -> None:
        """Train students that stand at one position up to step ``until`` of their epoch."""
        for s in students:
            training_mode(s.model)
            s.objective.train()
        self.shared = self.teacher is not None and any(share_layers(s.model, self.teacher.model) for s in students)
        epoch, start = students[0].position
        seeds = list(dict.fromkeys(s.recipe.seed for s in students))
        recipe = students[0].recipe
        streams = [self.batches(recipe, seed, epoch, start, "student") for seed in seeds]
        own_views = list(dict.fromkeys(s.recipe.seed for s in students if s.recipe.teacher_view == "own"))
        own_streams = [self.batches(recipe, seed, epoch, start, "teacher") for seed in own_views]
        graphed = self.graphed_step(students)
        began, elapsed = time.perf_counter(), {s: s.seconds for s in students}

        def clock():
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)  # else the clock would run ahead of the work
            for s in students:
                s.seconds = elapsed[s] + time.perf_counter() - began

        for _ in range(start, until):
            if self.stop is not None and anywhere(self.stop()):
                clock()
                raise Stopped
            batches = dict(zip(seeds, (next(stream) for stream in streams), strict=True))
            views = dict(zip(own_views, (next(stream)[0] for stream in own_streams), strict=True))
            if self.views is not None:
                batches, views, self.where = self.views.seen(batches, students[0].position)
            for s in students:
                s.set_learning_rate(self.steps)
            if graphed is None or students[0].step == 0:  # an epoch's first step is measured, which waits for the device
                self.step(students, batches, views)
            else:
                graphed(batches, views)
            for s in students:
                s.stepped(self.steps)
            if any(s.failure for s in students):
                students = [s for s in students if s.failure is None]
                if not students:
                    return
                graphed = self.graphed_step(students)
            if self.due():
                clock()
                self.save_if_due(students)
        clock()

    def graphed_step(self, students: list[_Student]) -> GraphedStep | None:
        """The captured step of these students; the same as long as they are the same. None where nothing can be captured."""
        if not self.graphs or rank_and_world()[1] > 1 or self.by_index or self.asks or self.views is not None:
            return None
        eager = {s: "its objective changes in the course of training" for s in students if not graphable(s.objective)}
        eager |= {s: "it learns from text that it writes itself" for s in students if s.rewrite is not None}
        eager |= {s: "after_step looks at each of its steps" for s in students if s.after_step is not None}
        if len(eager) == len(students):
            return None
        if self.graphed is None or self.graphed.students != students:
            self.graphed = GraphedStep(self.step, students, eager)
        return self.graphed

    def batches(self, recipe: Recipe, seed: int, epoch: int, start: int, who: str):
        """The batches of an epoch, this process's part of each."""
        order = torch.randperm(len(self.data), generator=_generator(seed, epoch, "order"))
        order = order[: recipe.epoch_examples]
        stream = self.data.batches(
            recipe.batch_size,
            generator=_generator(seed, epoch, f"augmentation of the {who}"),
            augment=recipe.augment,
            order=order,
            start=start,
        )
        rank, world = rank_and_world()
        if world > 1:
            return (tuple(each(lambda x: x[rank::world], part) for part in batch) for batch in stream)
        return stream

    def step(
        self, students: list[_Student], batches: dict, views: dict, looked: dict | None = None, watch=lambda who: nullcontext()
    ) -> dict:
        """One look of the teacher, one step of every student; returns what the teacher said of each view.

        Args:
            batches, views: keyed by seed.
            looked: what the teacher has said already.
            watch: a context for each student's step, and with None for the teacher's look.
        """
        own = {}
        for s in students:
            if s.rewrite is not None:
                try:
                    own[s] = self.rewritten(s, *batches[s.recipe.seed])
                except FloatingPointError as error:
                    s.failure = error
        students = [s for s in students if s.failure is None]
        unseen = [s for s in students if s.view not in (looked or {})]
        looked = {**(looked or {}), **self.look(unseen, batches, views, own, watch)}
        streams = [torch.cuda.Stream() for _ in students] if self.capturing() else None
        for number, s in enumerate(students):
            teacher_logits, teacher_hidden = looked.get(s.view, (None, {}))
            boxes = self.where.get(s.recipe.seed, {}) if s.view[1] == "own" else None
            seed_torch(self.device, s.recipe.seed, *s.position)
            with ExitStack() as stack:
                if streams is not None:  # branches of one graph
                    streams[number].wait_stream(torch.cuda.current_stream())
                    stack.enter_context(torch.cuda.stream(streams[number]))
                stack.enter_context(watch(s))
                try:
                    s.learn(
                        *(own[s] if s in own else batches[s.recipe.seed]),
                        teacher_logits,
                        teacher_hidden,
                        boxes,
                        self.steps,
                        self.gradient_norms,
                    )
                except FloatingPointError as error:
                    s.failure = error
        for stream in streams or ():
            torch.cuda.current_stream().wait_stream(stream)
        return looked

    def rewritten(self, student: _Student, inputs, labels, index):
        """The batch as the student's own ``rewrite`` leaves it."""
        seed = _number(student.recipe.seed, *student.position, "rewrite")
        generator = torch.Generator(self.device).manual_seed(seed)
        with autocast(self.device, student.recipe.precision):
            try:
                inputs, labels = student.rewrite(
                    student.model, inputs, labels, student.progress(self.steps), generator
                )
                wrote = 1.0
            except FloatingPointError:
                wrote = math.nan
        student.check_finite({"logits of the student's own text": wrote})  # in any process
        return inputs, labels, index

    @torch.no_grad()
    def look(self, students, batches, views, own, watch) -> dict:
        """The teacher's logits and hidden states for each distinct view of a batch."""
        wanted = dict.fromkeys(s.view for s in students if s.objective.needs_teacher)
        if not wanted:
            return {}
        inputs = []
        for seed, view in wanted:
            if isinstance(view, _Student):
                inputs.append(own[view][0])
            elif self.by_index:
                inputs.append(batches[seed][2])
            else:
                inputs.append(views[seed] if view == "own" else batches[seed][0])
        with ExitStack() as stack:
            stack.enter_context(autocast(self.device, students[0].recipe.precision))
            if self.shared:  # its layers are in training mode, as the student's
                stack.enter_context(evaluation_mode(self.teacher.model))
            apart = students[0].recipe.teacher_mode == "train"  # batch normalisation of a batch, and not of several
            if len(inputs) == 1 or self.device.type == "cpu" or apart:
                looked = {}
                for (seed, view), part in zip(wanted, inputs, strict=True):
                    which = view if isinstance(view, str) else "rewritten"
                    seed_torch(self.device, seed, *students[0].position, f"teacher's {which} view")
                    with watch(None):
                        looked[seed, view] = self.teacher(part)
                return looked
            with watch(None):
                logits, hidden = self.teacher(_joined(inputs))
        size = logits.shape[0] // len(inputs)
        return {
            key: (
                logits[i * size : (i + 1) * size],
                {name: value[i * size : (i + 1) * size] for name, value in hidden.items()},
            )
            for i, key in enumerate(wanted)
        }

    def capturing(self) -> bool:
        return self.device.type == "cuda" and torch.cuda.is_current_stream_capturing()

    def due(self) -> bool:
        """Whether to write checkpoints: not so often that writing takes more than a tenth of the time, but for 0, after every step."""
        seconds = self.checkpoint_seconds
        return seconds is not None and anywhere(time.monotonic() - self.saved >= (seconds and max(seconds, 9 * self.saving)))

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
            self.stands(*min(going), self.steps)


def _generator(*what) -> torch.Generator:
    return torch.Generator().manual_seed(_number(*what))


def _number(*what) -> int:
    """A seed of 63 bits from what it is for."""
    return int.from_bytes(hashlib.sha256(repr(what).encode()).digest()[:8], "big") >> 1


def seed_torch(device: torch.device, *what) -> None:
    """Seed what terms and models draw from (a captured step draws nothing)."""
    if device.type == "cuda":
        if not torch.cuda.is_current_stream_capturing():
            here = torch.cuda.current_device() if device.index is None else device.index
            torch.cuda.default_generators[here].manual_seed(_number(*what))
    else:
        torch.default_generator.manual_seed(_number(*what))


@contextmanager
def _on_device(device, precision: str):
    """On CUDA: streams and graphs are of this device; its convolutions are those that give the same bits twice, and float32 is no TF32."""
    if torch.device(device).type != "cuda":
        yield
        return
    flags = torch.backends.cudnn
    before = flags.deterministic, flags.allow_tf32
    with torch.cuda.device(device):
        flags.deterministic, flags.allow_tf32 = True, precision != "float32"
        try:
            yield
        finally:
            flags.deterministic, flags.allow_tf32 = before


@contextmanager
def _deterministic_attention(labels: Tensor):
    """For the backward pass of texts on CUDA, whose fused attention adds up in any order unless it is told not to.

    Nothing changes where the process has no ``CUBLAS_WORKSPACE_CONFIG``, without which PyTorch refuses to be told; ``kdlab run``
    has set it.
    """
    if labels.ndim < 2 or not labels.is_cuda or "CUBLAS_WORKSPACE_CONFIG" not in os.environ:
        yield
        return
    filling = torch.utils.deterministic
    before = torch.get_deterministic_debug_mode(), filling.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    filling.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before[0])
        filling.fill_uninitialized_memory = before[1]


@contextmanager
def _own_random_state(device):
    on_cuda = torch.device(device).type == "cuda"
    state = torch.cuda.get_rng_state(device) if on_cuda else torch.get_rng_state()
    try:
        yield
    finally:
        torch.cuda.set_rng_state(state, device) if on_cuda else torch.set_rng_state(state)


def _optimizer(recipe: Recipe, student, objective, device):
    """The recipe's optimiser. A single number, such as a temperature that an objective learns, does not decay."""
    on_cuda = torch.device(device).type == "cuda"
    rate = torch.tensor(recipe.learning_rate, device=device) if on_cuda else recipe.learning_rate
    every, axes = [*student.parameters(), *objective.parameters()], 2 if recipe.optimizer == "adamw" else 1
    every = [p for p in every if p.requires_grad]
    parameters = [{"params": [p for p in every if p.ndim >= axes]}]
    if still := [p for p in every if p.ndim < axes]:
        parameters.append({"params": still, "weight_decay": 0.0})
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(
            parameters, rate, (0.9, 0.95), weight_decay=recipe.weight_decay, fused=on_cuda, capturable=on_cuda
        )
    if recipe.optimizer == "adam":
        return torch.optim.Adam(
            parameters, rate, weight_decay=recipe.weight_decay, fused=on_cuda, capturable=on_cuda
        )
    return torch.optim.SGD(parameters, rate, recipe.momentum, weight_decay=recipe.weight_decay, fused=on_cuda)


def _unchanged_copy(teacher: nn.Module) -> nn.Module:
    """A copy in training mode, whose running statistics move in place of the teacher's."""
    return copy.deepcopy(teacher).train()


def _counted(labels: Tensor) -> Tensor:
    """Which labels count: all but −100. Those that are not whole numbers, such as probabilities, have an axis of classes."""
    if labels.is_floating_point() and labels.ndim > 3:  # maps, whose axis of classes only the terms know
        return labels.new_ones(len(labels), dtype=torch.bool)
    if labels.is_floating_point():
        return labels.new_ones(labels.shape[:-1] or labels.shape, dtype=torch.bool)
    return labels != IGNORED


def _read(inputs, counted: Tensor) -> Tensor | None:
    """Which tokens are read, and are no padding; None where nothing says so."""
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    return mask.bool() if mask is not None and mask.shape == counted.shape else None


def _joined(inputs: list):
    """Inputs, or dictionaries of them, one after another."""
    if isinstance(inputs[0], Mapping):
        return {name: torch.cat([part[name] for part in inputs]) for name in inputs[0]}
    return torch.cat(inputs)


def _labels_checksum(train) -> str:
    """By which checkpoints tell splits apart."""
    if hasattr(train, "identity"):  # of what is loaded as it is needed
        return train.identity
    return hashlib.sha256(train.labels.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()


def _inputs_checksum(train) -> dict:
    """What tells inputs of equal labels apart; nothing where :func:`_labels_checksum` does already, of texts and of what is loaded."""
    if hasattr(train, "token_bytes") or hasattr(train, "identity"):
        return {}
    inputs = getattr(train, "images", getattr(train, "inputs", None))
    if inputs is None:  # a split of the caller's own: its beginning
        inputs = next(iter(train.batches(1, order=torch.arange(len(train)))))[0]
    return {"inputs": checksum(inputs.items() if isinstance(inputs, Mapping) else [("inputs", inputs)])}


def _blocks(split) -> dict:
    """Which blocks of a text a split has; nothing of one whose labels say all."""
    if not hasattr(split, "token_bytes"):
        return {}
    which = hashlib.sha256(split.blocks.cpu().numpy().tobytes()).hexdigest()
    ahead = f", {split.ahead} further" if split.ahead else ""
    return {"blocks": f"{split.context} tokens every {split.stride}{ahead}: {which}"}


def _part(value, part: slice):
    """Some examples of what a step has seen: of a tensor, or of each in a dict."""
    if value is None or part == slice(None):
        return value
    return {name: x[part] for name, x in value.items()} if isinstance(value, dict) else value[part]


def _plain(recipe: Recipe) -> dict:
    """A recipe as JSON gives it back; what came later only where it is used, so that earlier checkpoints go on."""
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(recipe).items()}
    return {k: v for k, v in plain.items() if v or k not in ("ema_decay", "best_by", "patience")}
