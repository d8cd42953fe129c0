"""Plan *grown*: every method with a rate of its own, trained to the end, and asked again at several lengths.

ResNet-20 to ResNet-8 by the published recipe, scaled to so many epochs: batches of 64, SGD, a step schedule, the last epoch, the
validation split held out. In bfloat16, which nearly halves the time of a processor that has its instructions (avx512_bf16 or amx_bf16; measured:
1,293 and 2,378 images a second of one core), and of one that has not makes ten times as much: there, run the plans of language first.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

from ..objectives import (
    DIST,
    CrossEntropy,
    HiddenMSE,
    LearnedTemperature,
    Linear,
    Objective,
    PermutedSoftTargets,
    Projector,
    SmoothedLabels,
    SoftTargets,
    SpreadSoftTargets,
)
from ..training import Recipe
from .image_plans import MIDDLE, methods, published_teacher, teacher
from .language_plans import beside_labels
from .spec import Spec
from .tuning import TRY, TUNING_SEED, Found, Try, Tuning

#: The rate that Tian et al. (2020) give all methods, with batches of 64.
PUBLISHED_RATE = 0.05

#: In the order of their turn: first those whose order is asked at several lengths of training.
LENGTHS_ASKED = ("alone", "kd", "dkd", "fitnet", "dist")
METHODS = (
    *LENGTHS_ASKED, "standardised", "at", "fitnet-regressor", "dist+fitnet", "crd+kd", "crd", "rkd", "smoothed",
)  # fmt: skip

#: Controls of KD: they have its rate and weight, and differ from it in what the teacher says alone.
CONTROLS = ("permuted", "spread")

#: Epochs of the main comparison.
EPOCHS = 60


def scaled_recipe(epochs: int, learning_rate: float = PUBLISHED_RATE, precision: str = "bfloat16", **options) -> Recipe:
    """The published recipe with its milestones at the same parts of so many epochs, in bfloat16 unless said otherwise.

    >>> scaled_recipe(240, precision="float32") == Recipe(), scaled_recipe(60).milestones
    (True, (37.5, 45.0, 52.5))
    """
    milestones = tuple(epochs * part for part in (5 / 8, 3 / 4, 7 / 8))
    return Recipe(epochs=epochs, learning_rate=learning_rate, milestones=milestones, precision=precision, **options)


def objective(method: str, weight: float = 1.0, *, student: str = "resnet8", teacher: str = "resnet20") -> Objective:
    """A method's objective, the published weight of what the teacher says times ``weight``.

    Where labels and teacher are weighted to sum to one, the odds of the teacher are what is multiplied; so are those of the even
    distribution in smoothed labels.

    >>> objective("kd", 3.0)
    0.035714 * CrossEntropy() + 0.964286 * SoftTargets(temperature=4)
    """
    published = methods(student, teacher, examples=45_000, other_weight=2.0)
    beside = {
        "kd": SoftTargets(temperature=4),
        "permuted": PermutedSoftTargets(temperature=4),
        "spread": SpreadSoftTargets(temperature=4),
    }
    if method in beside:
        return beside_labels(beside[method], _share(9 * weight))
    if method == "smoothed":
        return 1.0 * SmoothedLabels(_share(weight / 9))
    if method == "alone":
        return published[method]
    if method == "fitnet-regressor":
        hint = Projector("regressor", MIDDLE[student], MIDDLE[teacher])
        labels, teaching = CrossEntropy(), 100 * HiddenMSE("layer2", projector=hint)
    elif method == "dist+fitnet":
        labels, teaching = CrossEntropy(), DIST(2.0, 2.0, temperature=4) + 100 * published["fitnet"].terms[1]
    else:
        (label_weight, *weights), (label, *terms) = published[method].weights, published[method].terms
        labels = label_weight * label
        teaching = sum(w * term for w, term in zip(weights, terms, strict=True))
    return labels + (teaching if weight == 1 else float(f"{weight:.6g}") * teaching)


def _share(odds: float) -> float:
    """What has these odds, as a part of one.

    >>> _share(9), _share(1 / 9)
    (0.9, 0.1)
    """
    return float(f"{odds / (1 + odds):.6g}")


_shared = cache(objective)  # by all runs of a plan: each trains a fresh copy


def _spec(method: str, arm: str, how: Recipe, choice: Try, source: Spec, student: str = "resnet8", **options) -> Spec:
    recipe = replace(how, learning_rate=float(f"{choice.learning_rate:.3g}"))
    what = _shared(method, choice.weight, student=student, teacher=source.student)
    return Spec("grown", arm, "cifar100", student, what, recipe, source, **options)


@cache
def tuning(method: str) -> Tuning:
    """How a method of the plan is tuned."""

    def spec(choice: Try, epochs: int) -> Spec:
        how = scaled_recipe(epochs, seed=TUNING_SEED)
        return _spec(method, f"{TRY}{method}-{epochs}-{choice}", how, choice, teacher())

    return Tuning(spec, weighted=method != "alone")


def arm_name(method: str, epochs: int, rate: str = "own") -> str:
    """The arm of a method that was trained so long: with a rate (and weight) of its own, or with the ``"published"`` one."""
    return f"{method}-{epochs}" + ("" if rate == "own" else f"-{rate}-rate")


def grown(found: Found) -> list[Spec]:
    """The runs that are known so far, most valuable first; more become known as those that choose are recorded.

    Args:
        found: looks for the record of a spec.

    (1) The five methods whose order is asked at several lengths, tuned; then each at 5, 15 and 60 epochs with a rate of its own, and
    at 5 and 15 with the published one. (2) The other methods and the controls, at 60 epochs. (3) Labels, KD, FitNet at 240.
    (4) Questions to KD: temperature and weight, the teacher's view, its age. (5) The published pair ResNet-56 → ResNet-20. (6) Two more seeds.
    """
    chosen = {method: tuning(method).chosen(found) for method in METHODS}
    chosen |= dict.fromkeys(CONTROLS, chosen["kd"])
    return list({spec.hash: spec for spec in _in_turn(found, chosen)}.values())


def _in_turn(found: Found, chosen: dict[str, Try | None]) -> Iterator[Spec]:
    def arms(names, epochs, seeds, rate="own"):
        for seed in seeds:
            for method in names:
                choice = Try(PUBLISHED_RATE) if rate == "published" else chosen[method]
                if choice is not None:
                    arm = arm_name(method, epochs, rate)
                    yield _spec(method, arm, scaled_recipe(epochs, seed=seed), choice, teacher())

    yield teacher()
    for method in LENGTHS_ASKED:
        yield from tuning(method).specs(found)
    for epochs in (5, 15):
        yield from arms(LENGTHS_ASKED, epochs, range(3))
        yield from arms(LENGTHS_ASKED, epochs, range(3), "published")
    yield from arms(LENGTHS_ASKED, EPOCHS, range(3))
    others = [method for method in METHODS if method not in LENGTHS_ASKED]
    for method in others:
        yield from tuning(method).specs(found)
    yield from arms([*others, *CONTROLS], EPOCHS, range(3))
    yield from arms(("alone", "kd", "fitnet"), 240, range(2))
    if chosen["kd"] is not None:
        yield from _asked_of_kd(chosen["kd"])
    yield from _published_pair(chosen)
    yield from arms([*METHODS, *CONTROLS], EPOCHS, range(3, 5))


def _asked_of_kd(choice: Try, seeds=range(3)) -> Iterator[Spec]:
    """KD at other temperatures and weights, taught from another view, and by teachers of other ages, at the rate of KD."""
    source = teacher()
    patient = replace(source, arm="resnet20-long", recipe=replace(source.recipe, epochs=120))
    hasty = replace(source, arm="resnet20-short", recipe=replace(source.recipe, epochs=8))
    yield from (patient, hasty)
    asked = {
        f"kd-T{t:g}-soft{w:g}": (beside_labels(SoftTargets(t), w), source, {})
        for t in (1.0, 2.0, 4.0, 8.0)
        for w in (0.5, 0.9, 1.0)
    }
    asked["kd-T-falling"] = beside_labels(SoftTargets(Linear(8.0, 1.0))), source, {}
    asked["kd-T-rising"] = beside_labels(SoftTargets(Linear(1.0, 8.0))), source, {}
    asked["kd-T-learned"] = beside_labels(SoftTargets(LearnedTemperature(1, 21))), source, {}
    asked["kd-soft-falling"] = Linear(0.0, 1.0) * CrossEntropy() + Linear(1.0, 0.0) * SoftTargets(4.0), source, {}
    asked["kd-own-view"] = objective("kd", choice.weight), source, {"teacher_view": "own"}
    asked["kd-long-teacher"] = objective("kd", choice.weight), patient, {}
    asked["kd-short-teacher"] = objective("kd", choice.weight), hasty, {}
    for seed in seeds:
        for arm, (what, taught_by, options) in asked.items():
            how = scaled_recipe(EPOCHS, float(f"{choice.learning_rate:.3g}"), seed=seed, **options)
            yield Spec("grown", arm, "cifar100", "resnet8", what, how, taught_by)


def _published_pair(chosen: dict[str, Try | None]) -> Iterator[Spec]:
    """Six rows of the published table for its own pair, at an eighth of its length, with the rates that were chosen here."""
    source = published_teacher()
    source = replace(source, recipe=scaled_recipe(60))
    yield source
    for seed in range(3):
        for method in ("alone", "kd", "dkd", "fitnet", "dist", "at"):
            if (choice := chosen[method]) is not None:
                arm = f"resnet56-resnet20-{method}"
                yield _spec(method, arm, scaled_recipe(30, seed=seed), choice, source, student="resnet20")
