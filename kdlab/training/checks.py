"""What is checked before the first step, so that nothing is noticed after hours."""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor, nn

from ..objectives import Objective, Term
from .checkpoint import require_safetensors
from .distributed import rank_and_world
from .measures import IGNORED, check_classes
from .micro_batches import check_positions, counted
from .modules import check_model, check_two, storages, warn_of_half_precision
from .protocols import augments, by_index, by_view, check_examples, inputs_of, is_loaded, is_text, labels_of
from .recipe import Recipe
from .state import take_apart
from .views import Views

#: What students that train side by side have in common: it makes the batches, or what the teacher says of them.
SHARED = ("batch_size", "augment", "mixup", "precision", "teacher_mode", "epoch_examples")


def check_kinds(learners: Sequence, teacher) -> None:
    """That students, objectives and teacher are what they have to be.

    Raises:
        TypeError: if not.
    """
    for learner in learners:
        check_model(learner.student, "a student")
        if not isinstance(learner.objective, (Objective, Term)):
            raise TypeError(
                f"the objective is a term or a sum of terms, such as SoftTargets(), not {learner.objective!r}."
            )
    if teacher is not None:
        check_model(teacher, "a teacher")


def check_run(
    learners: Sequence,
    *,
    train,
    teacher: nn.Module | None,
    validation,
    measure: Callable | None,
    views: Views | None,
    gradient_norms: bool,
) -> None:
    """That all of it fits together.

    Raises:
        ValueError: if it does not, with what would mend it.
        CacheError: for a teacher's cache of other examples.
    """
    for learner in learners:
        _check_learner(learner, train, teacher, gradient_norms)
    _check_splits(train, validation, learners[0].recipe, measure)
    _check_best(learners, validation, measure)
    if views is not None:
        _check_views(views, learners, teacher)
    if len({tuple(getattr(learner.recipe, name) for name in SHARED) for learner in learners}) > 1:
        raise ValueError(f"students that train side by side share {', '.join(SHARED)}.")
    _check_apart(learners)
    size, (_, world) = min(learners[0].recipe.batch_size, len(train)), rank_and_world()
    if size % world:
        raise ValueError(f"a batch of {size} cannot be spread evenly over {world} processes.")
    check_examples(teacher, train, [learner.recipe for learner in learners])


def needs_whole(objective: Objective | Term, kind: str) -> bool:
    """Whether it needs each batch of ``"images"``, or of ``"texts"``, as a whole: what it says of parts does not add up."""
    return any(kind in term.needs_whole_batch_of for term in _terms(objective))


def _terms(objective: Objective | Term) -> list[Term]:
    """Its terms, and those within them."""
    return [part for part in objective.modules() if isinstance(part, Term)]


def _check_learner(learner, train, teacher, gradient_norms) -> None:
    objective = learner.objective
    if learner.rewrite is not None and (by_index(teacher) or by_view(teacher)):
        raise ValueError("a teacher cache knows the examples as they were: it cannot look at rewritten ones.")
    for term in _terms(objective):
        term.check_rewrite(learner.rewrite)
    if not any(p.requires_grad for part in (learner.student, objective) for p in part.parameters()):
        raise ValueError(
            f"no parameter of {type(learner.student).__name__} is trained, since none has requires_grad: student.requires_grad_(True), or that of the "
            "layers that are to learn."
        )
    if objective.needs_teacher and teacher is None:
        raise ValueError(f"the objective {objective!r} needs a teacher, but none was given.")
    if gradient_norms and learner.recipe.micro_batches > 1:
        raise ValueError("gradient norms are measured where a batch is run as one: micro_batches=1.")
    if learner.recipe.micro_batches > 1:
        _check_parts(objective, learner.recipe.micro_batches, train)
    if learner.recipe.teacher_view == "own" and not augments(train):
        named = (
            "examples for which the DataLoader's data set draws nothing" if is_loaded(train) else type(train).__name__
        )
        raise ValueError(
            f'{named} are not augmented, so a teacher has no view of its own of them: teacher_view="same".'
        )
    if learner.recipe.mixup:
        _check_mixup(learner, train, teacher)
    if teacher is not None:
        check_two(learner.student, teacher)
    warn_of_half_precision(learner.student)
    if learner.checkpoint is not None:
        require_safetensors()
        take_apart(learner.student.state_dict())  # what cannot be stored is known before the first step


def _check_mixup(learner, train, teacher) -> None:
    """What can be told before the first step; what else asks for labels, or which example it is, finds None."""
    if learner.rewrite is not None or by_index(teacher) or by_view(teacher):
        raise ValueError(
            "a mixture is seen by a teacher that looks at it: mixup=True is neither for kept logits nor for batches that are rewritten."
        )
    if min(learner.recipe.batch_size, len(train)) < 2:
        raise ValueError("a mixture takes two examples: with mixup=True a batch has two or more.")
    labels = labels_of(train)
    if labels is not None and not labels.is_floating_point() and (labels == IGNORED).any():
        raise ValueError(
            f"a mixture is of two examples, and some labels of {IGNORED} leave theirs out: give zeros, or leave these examples out."
        )
    for term in _terms(learner.objective):
        options = getattr(term, "options", None)
        same_class = not isinstance(options, dict) or options.get("same_class", True)
        if _requires_labels(term) or not same_class:
            raise ValueError(
                f"{type(term).__name__} asks for labels, and a mixture of two examples has none: with mixup=True learn from the teacher alone, "
                "such as 1.0 * SoftTargets(temperature=4), or leave mixup out."
            )


def _asked(term: Term) -> list[inspect.Parameter]:
    """What a term's forward takes, and those that it goes on to."""
    forwards = [kind.forward for kind in type(term).__mro__ if "forward" in vars(kind)]
    return [parameter for forward in forwards for parameter in inspect.signature(forward).parameters.values()]


def _requires_labels(term: Term) -> bool:
    return any(p.name == "index" or (p.name == "labels" and p.default is p.empty) for p in _asked(term))


def _check_parts(objective, parts: int, train) -> None:
    """That what is said of the parts of a batch adds up to what would be said of the whole."""
    labels = labels_of(train)
    of_tokens = labels is not None and counted(labels[:1]).ndim > 1
    if needs_whole(objective, "texts" if is_text(train) or of_tokens else "images"):
        raise ValueError(f"the objective {objective!r} needs each batch as a whole: micro_batches=1.")
    if labels is not None:
        check_positions(labels)
    check_counts(objective, parts)


_COUNTS = {"count", "hidden_count", "example_count"}


def check_counts(objective: Objective | Term, parts: int) -> None:
    """That each term divides by the numbers of the whole batch, so that what it says of its parts adds up.

    Raises:
        ValueError: for a term that takes no count.
    """
    for term in objective.terms if isinstance(objective, Objective) else [objective]:
        if not {p.name for p in _asked(term)} & _COUNTS:
            raise ValueError(
                f"{type(term).__name__} takes no count, so that it would weigh {parts} times as much in {parts} micro-batches: let its forward take "
                "count=None and divide its sum over examples by it where it is given, or run each batch as one (micro_batches=1, gradient_accumulation_steps=1)."
            )


def _check_splits(train, validation, recipe: Recipe, measure) -> None:
    """What would be noticed after an epoch only."""
    if is_loaded(train) and train.batch_size != recipe.batch_size:
        raise ValueError(
            f"the DataLoader has batches of {train.batch_size} and the recipe of {recipe.batch_size}: say the same in both."
        )
    pictures = inputs_of(train)
    if recipe.augment and isinstance(pictures, Tensor) and pictures.ndim == 4 and not augments(train):
        raise ValueError(
            f"pictures in {type(train).__name__} are neither cropped nor flipped: say augment=False in the recipe, or give a kdlab.data.Split of images."
        )
    if measure is not None:
        if validation is None:
            raise ValueError("measure=… is of a validation split: give validation=…, too.")
        return
    labels = labels_of(validation)
    if labels is None and is_loaded(validation):
        _, labels, _ = next(iter(validation.batches(validation.batch_size)))
    if labels is not None:
        check_classes(labels)


def _check_best(learners, validation, measure) -> None:
    known = ("accuracy", "cross_entropy", "calibration_error", *(["bits_per_byte"] if is_text(validation) else []))
    for best in {learner.recipe.best_by for learner in learners} - {None}:
        name = best.split(" ", 1)[1]
        if validation is None:
            raise ValueError(f"the epoch of the {best} is that of a validation split: give validation=…, too.")
        if measure is None and name not in known:
            raise ValueError(
                f"best_by names {name!r}, and what is measured of the validation split is {', '.join(known)}; or say measure=…."
            )


def _check_views(views: Views, learners, teacher) -> None:
    if any(learner.rewrite is not None for learner in learners):
        raise ValueError("a batch is rewritten or seen in views, not both: rewrite=None, or no views.")
    if by_view(teacher):
        raise ValueError("a teacher of kept logits knows the views of the recipe's augmentation: no views beside them.")
    if any(learner.recipe.teacher_view != "same" for learner in learners):
        raise ValueError('what the teacher sees is said twice: teacher_view="same" in the recipe, or no views.')
    if views.teacher is not None and (teacher is None or by_index(teacher)):
        raise ValueError("teacher_view is of a teacher that looks at inputs, and there is none.")


def _check_apart(learners) -> None:
    paths = [Path(learner.checkpoint).absolute() for learner in learners if learner.checkpoint is not None]
    if len(set(paths)) < len(paths):
        raise ValueError("two learners have one and the same checkpoint.")
    held = [storages(x.student) | storages(x.objective) for x in learners]
    if len(set().union(*held)) < sum(map(len, held)):
        raise ValueError("two learners share weights, of a student or an objective: give each its own.")
