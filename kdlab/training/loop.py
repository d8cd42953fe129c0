"""The one training loop: one student, or several beside one teacher.

What is checked before it is in ``checks.py``; what a step is, from a batch to moved weights, in ``step.py``; the batches, the clock and when
checkpoints are written in ``group.py``; a student, its measures and its checkpoint in ``student.py``.
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import nn

from ..data.examples import as_split
from ..objectives import Objective, Term
from .checks import check_kinds, check_run
from .determinism import on_device
from .group import Group
from .identity import shared_identity
from .measures import evaluation_mode
from .modules import moved_to, share_layers
from .protocols import AnySplit, Device, Measure
from .recipe import Recipe
from .seeds import own_random_state
from .step import Step
from .stopping import Interruptible, Stopped
from .student import Learner, Student
from .taps import Taps
from .views import Views


def fit(
    student: nn.Module,
    objective: Objective | Term,
    *,
    train: AnySplit,
    recipe: Recipe,
    teacher: nn.Module | None = None,
    validation: AnySplit | None = None,
    measure: Measure | None = None,
    device: Device = "cpu",
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float | None = None,
    gradient_norms: bool = False,
    report: Callable[[dict[str, Any]], None] | None = None,
    stop: Callable[[], bool] | None = None,
    rewrite: Callable[..., Any] | None = None,
    after_step: Callable[[dict[str, Any]], None] | None = None,
    student_view: Callable[..., Any] | None = None,
    teacher_view: Callable[..., Any] | None = None,
) -> list[dict[str, Any]]:
    """Train ``student`` to minimise ``objective`` and return what was measured after each epoch.

    A step is: student and teacher look at one batch, the objective compares them, the optimiser moves the student
    (and whatever the objective learns). Layers that the objective looks at are captured by
    :class:`~kdlab.training.taps.Taps`. The teacher is in evaluation mode (unless the recipe has it otherwise) and gets no
    gradient; its weights, buffers and modes are left as they were (it is moved to ``device``), and it sees inputs in its own type, such as bfloat16. With the student it may share what
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
            ``lambda student, split: {"error": (predict(student, split).flatten() - split.labels.flatten()).abs().mean().item()}``; a
            DataLoader is a split there, too.
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
            and :class:`~kdlab.training.stopping.Stopped` raised.
        rewrite: what a batch becomes before it is looked at, such as :class:`~kdlab.language.text.OwnText`; see :class:`~kdlab.training.student.Learner`.
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
    train: AnySplit,
    teacher: nn.Module | None = None,
    validation: AnySplit | None = None,
    measure: Measure | None = None,
    device: Device = "cpu",
    checkpoint_seconds: float | None = None,
    gradient_norms: bool = False,
    stop: Callable[[], bool] | None = None,
    stands: Callable[[int, int, int], None] | None = None,
    graphs: bool = True,
    student_view: Callable[..., Any] | None = None,
    teacher_view: Callable[..., Any] | None = None,
) -> list[list[dict[str, Any]] | FloatingPointError]:
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
    check_kinds(learners, teacher)
    train = as_split(train, "train")
    validation = None if validation is None else as_split(validation, "validation")
    views = Views.of(student_view, teacher_view)
    check_run(
        learners,
        train=train,
        teacher=teacher,
        validation=validation,
        measure=measure,
        views=views,
        gradient_norms=gradient_norms,
    )
    train, recipe = train.to(device), learners[0].recipe
    with ExitStack() as stack:
        stack.enter_context(on_device(device, recipe.precision))
        stack.enter_context(own_random_state(device))
        if teacher is not None:
            moved_to(teacher, device)
        stored = any(learner.checkpoint is not None for learner in learners)
        shared = shared_identity(train, teacher, views, inputs=stored)
        students = [stack.enter_context(Student(learner, shared, device)) for learner in learners]
        tapped = _tapped(stack, teacher, students, recipe)
        examples = min(recipe.epoch_examples or len(train), len(train))
        steps = max(examples // recipe.batch_size, 1)
        step = Step(tapped, steps, device, gradient_norms)
        group = Group(step, train, views, checkpoint_seconds, stop, stands, graphs)
        group.tell(students)
        if validation is not None and stop is not None:
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
            group.graphed = None  # its memory is wanted now, whoever still looks at where an error came from
        for s in students:
            if s.failure is None:
                s.kept.leave()
        return [s.failure or s.history for s in students]


def _tapped(stack: ExitStack, teacher: nn.Module | None, students: list[Student], recipe: Recipe) -> Taps | None:
    """The teacher with taps on the layers that objectives look at, in its mode; None where none of them asks for one."""
    layers = [s.objective.teacher_layers for s in students if s.objective.needs_teacher]
    if not layers:
        return None
    if recipe.teacher_mode == "train":
        teacher = copy.deepcopy(teacher).train()  # whose running statistics move in place of the teacher's
    elif not any(share_layers(s.model, teacher) for s in students):
        stack.enter_context(evaluation_mode(teacher))
    return stack.enter_context(Taps(teacher, dict.fromkeys(sum(layers, ()))))
