"""Plans of image classifiers: the published table, the questions that it leaves, a first distillation."""

from dataclasses import replace

import torch

from ..objectives import (
    CRD,
    DIST,
    ActivationAttention,
    CrossEntropy,
    DecoupledKD,
    HiddenMSE,
    LearnedTemperature,
    Linear,
    Objective,
    PermutedSoftTargets,
    Projector,
    RKDAngle,
    RKDDistance,
    SmoothedLabels,
    SoftTargets,
    SpreadSoftTargets,
)
from ..training import Recipe
from .language_plans import beside_labels
from .spec import Spec

#: About 20 minutes of two CPU cores with bfloat16.
_TEACHER_RECIPE = Recipe(
    epochs=30, batch_size=128, learning_rate=0.1, schedule="cosine", warmup_epochs=2, precision="bfloat16"
)


def teacher(data: str = "cifar100") -> Spec:
    """The teacher that the book distils from on a CPU: a ResNet-20 trained on hard labels.

    On the fall-back data, which have neither its size nor its shift and mirror invariance, a shorter recipe.
    """
    recipe = _TEACHER_RECIPE
    if data == "digits":
        recipe = replace(recipe, epochs=8, batch_size=32, augment=False, warmup_epochs=1, precision="float32")
    return Spec("teacher", "resnet20", data, "resnet20", 1.0 * CrossEntropy(), recipe)


def published_teacher(name: str = "resnet56", *, hold_out: bool = True) -> Spec:
    """A teacher by the published recipe, for a GPU."""
    recipe = published_recipe(name)
    return Spec("teacher", name, "cifar100", name, 1.0 * CrossEntropy(), recipe, hold_out=hold_out)


def _three_arms(
    study: str, data: str, student: str, teacher: Spec, recipe: Recipe, seeds, train_examples
) -> list[Spec]:
    """Alone, distilled, and distilled with permuted dark knowledge, seed by seed."""
    arms = {
        "alone": (1.0 * CrossEntropy(), None),
        "kd": (0.1 * CrossEntropy() + 0.9 * SoftTargets(temperature=4), teacher),
        "permuted": (0.1 * CrossEntropy() + 0.9 * PermutedSoftTargets(temperature=4), teacher),
    }
    return [
        Spec(study, arm, data, student, objective, replace(recipe, seed=seed), source, train_examples)
        for seed in seeds
        for arm, (objective, source) in arms.items()
    ]


def first_distillation_live(
    data: str, precision: str, *, seed: int = 0, examples: int = 2000, epochs: int = 4
) -> list[Spec]:
    """What chapter 6 trains while it is executed: ResNet-20 to ResNet-8, one seed, about a minute of one core."""
    recipe = Recipe(
        epochs=epochs, batch_size=64, learning_rate=0.1, schedule="cosine", warmup_epochs=0.5, precision=precision
    )
    if data == "digits":
        recipe, examples = replace(recipe, batch_size=32, augment=False), min(examples, 200)
    return _three_arms("first-distillation-live", data, "resnet8", teacher(data), recipe, [seed], examples)


def first_distillation_cpu() -> list[Spec]:
    """The same three arms on the whole training split: five seeds, about 90 minutes of two cores."""
    recipe = Recipe(
        epochs=10, batch_size=128, learning_rate=0.1, schedule="cosine", warmup_epochs=1, precision="bfloat16"
    )
    return [
        teacher(),
        *_three_arms("first-distillation-cpu", "cifar100", "resnet8", teacher(), recipe, range(5), None),
    ]


def first_distillation_gpu() -> list[Spec]:
    """The same three arms by the published recipe, ResNet-56 to ResNet-20, five seeds: for a GPU."""
    source = published_teacher()
    recipe = published_recipe("resnet20")
    return [
        source,
        *_three_arms("first-distillation-gpu", "cifar100", "resnet20", source, recipe, range(5), None),
    ]


# ---------------------------------------------------------------- the published table


def published_recipe(student: str) -> Recipe:
    """Tian et al. (2020): 240 epochs; MobileNetV2 and the ShuffleNets with a fifth of the learning rate."""
    slow = student.startswith(("mobilenet", "shufflenet"))
    return Recipe(learning_rate=0.01 if slow else 0.05, precision="bfloat16")


#: Features of the embedding, the input of the last layer.
_EMBEDDING = {
    **dict.fromkeys(["resnet8", "resnet20", "resnet32", "resnet56", "resnet110", "wrn_40_1"], 64),
    **dict.fromkeys(["wrn_16_2", "wrn_40_2"], 128),
    **dict.fromkeys(["resnet8x4", "resnet32x4"], 256),
    **dict.fromkeys(["vgg8", "vgg13"], 512),
    "mobilenet_v2": 1280,
    "shufflenet_v1": 960,
    "shufflenet_v2": 1024,
    "resnet50": 2048,
}

#: The stages whose maps are matched (AT all, FitNet the middle one), and the middle one's channels.
MIDDLE = {
    **dict.fromkeys(["resnet8", "resnet20", "resnet32", "resnet56", "resnet110", "wrn_40_1"], 32),
    **dict.fromkeys(["wrn_16_2", "wrn_40_2"], 64),
    **dict.fromkeys(["resnet8x4", "resnet32x4"], 128),
}


def methods(student: str, teacher: str, examples: int, other_weight: float) -> dict[str, Objective]:
    """The objectives of the published table with its weights, by name.

    Args:
        student, teacher: names in ``kdlab.models``; of one family, whose stages ``layer1`` to ``layer3`` are matched.
        examples: of the training set, for CRD's memory.
        other_weight: DKD's weight of the wrong classes, which its authors set for each pair.

    Sources: Tian et al. (2020), appendix, for FitNet, AT, RKD, CRD; Zhao et al. (2022); Huang et al. (2022); Sun et al.
    (2024).
    """
    kd = 0.1 * CrossEntropy() + 0.9 * SoftTargets(temperature=4)
    found = {"alone": 1.0 * CrossEntropy(), "kd": kd}
    embedding = {"student_width": _EMBEDDING[student], "teacher_width": _EMBEDDING[teacher]}
    with torch.device("meta"):  # its memories take their space when a run begins, not in every plan
        crd = CRD("input:fc", **embedding, examples=examples)
    warm_up = Linear(0.0, 1.0, until=20 / 240)
    found |= {
        "dkd": CrossEntropy() + warm_up * DecoupledKD(1.0, other_weight, temperature=4),
        "crd": CrossEntropy() + 0.8 * crd,
        "at": CrossEntropy() + 1000 * ActivationAttention("layer1", "layer2", "layer3"),
        "rkd": CrossEntropy() + 25 * RKDDistance("input:fc") + 50 * RKDAngle("input:fc"),
        "dist": CrossEntropy() + 1.0 * DIST(2.0, 2.0, temperature=4),
        "standardised": 0.1 * CrossEntropy() + 9 * SoftTargets(temperature=2, standardised=True),
        "crd+kd": CrossEntropy() + SoftTargets(temperature=4) + 0.8 * crd,
    }
    if student in MIDDLE and teacher in MIDDLE:
        hint = Projector("conv", MIDDLE[student], MIDDLE[teacher])
        found["fitnet"] = CrossEntropy() + 100 * HiddenMSE("layer2", projector=hint)
    else:
        del found["at"]  # other families' stages are not layer1 to layer3; the published table has AT there, too
    return found


#: Teacher, student, DKD's weight of the wrong classes; the three pairs of the first rows first.
PAIRS = (
    ("wrn_40_2", "wrn_16_2", 6.0),
    ("resnet56", "resnet20", 2.0),
    ("resnet32x4", "resnet8x4", 8.0),
    ("wrn_40_2", "wrn_40_1", 6.0),
    ("resnet110", "resnet20", 2.0),
    ("resnet110", "resnet32", 2.0),
    ("vgg13", "vgg8", 6.0),
    ("vgg13", "mobilenet_v2", 6.0),
    ("resnet50", "mobilenet_v2", 8.0),
    ("resnet32x4", "shufflenet_v1", 8.0),
    ("resnet32x4", "shufflenet_v2", 8.0),
)


def table(*, hold_out: bool = False) -> list[Spec]:
    """The published table again: its recipe, its weights, five paired seeds, all 50,000 training images.

    For a GPU. The first pair whole, then the next; within a pair, one seed of every method before the next seed.
    """
    examples = 45_000 if hold_out else 50_000
    name = "table-held-out" if hold_out else "table"
    specs = []
    for teacher_name, student, other_weight in PAIRS:
        source = published_teacher(teacher_name, hold_out=hold_out)
        arms = methods(student, teacher_name, examples, other_weight)
        specs += [source] if source.hash not in {spec.hash for spec in specs} else []
        specs += [
            Spec(
                name, f"{teacher_name}-{student}-{arm}", "cifar100", student, objective,
                replace(published_recipe(student), seed=seed), source, hold_out=hold_out,
            )
            for arm, objective in arms.items()
            for seed in range(5)
        ]  # fmt: skip
    return specs


def table_held_out() -> list[Spec]:
    """The same with 5,000 training images held out, which choose nothing here but show each epoch's accuracy."""
    return table(hold_out=True)


# ---------------------------------------------------------------- the questions


def _kd(temperature=4.0, soft_weight: float = 0.9) -> Objective:
    """Hard labels and soft targets, weighted to sum to one."""
    return beside_labels(SoftTargets(temperature=temperature), soft_weight)


def _questions(
    study: str,
    source: Spec,
    student: str,
    narrower: tuple[str, str],
    recipe: Recipe,
    *,
    examples: int,
    seeds: int,
    temperatures=(1.0, 2.0, 4.0, 8.0),
    soft_weights=(0.5, 0.9, 1.0),
    combined=("at", "crd"),
) -> list[Spec]:
    """The questions of chapters 13 to 15, one block a question, all seeds of a block before the next."""

    def arm(name, objective, *, student=student, teacher=source, how=recipe, **options):
        return [
            Spec(study, name, "cifar100", student, objective, replace(how, seed=seed), teacher, **options)
            for seed in range(seeds)
        ]

    specs = [source]
    # What helps at all (A9, A15), and what is transferred (A4).
    published = methods(student, source.student, examples, 2.0)
    first = ["alone", "kd"]
    for name in first:
        specs += arm(name, published[name])
    specs += arm("permuted", 0.1 * CrossEntropy() + 0.9 * PermutedSoftTargets(temperature=4))
    specs += arm("spread", 0.1 * CrossEntropy() + 0.9 * SpreadSoftTargets(temperature=4))
    specs += arm("smoothed", 1.0 * SmoothedLabels(0.1))
    for name in (n for n in published if n not in first):
        specs += arm(name, published[name])
    # Temperature and weight (A7, B2).
    for temperature in temperatures:
        for soft_weight in soft_weights:
            if (temperature, soft_weight) != (4.0, 0.9):
                specs += arm(f"T{temperature:g}-soft{soft_weight:g}", _kd(temperature, soft_weight))
    # Temperature and the student's width (B3).
    for width in narrower:
        specs += arm(f"{width}-alone", 1.0 * CrossEntropy(), student=width)
        for temperature in temperatures:
            specs += arm(f"{width}-T{temperature:g}", _kd(temperature), student=width)
    # Temperatures that change (B4).
    specs += arm("T-falling", _kd(Linear(8.0, 1.0)))
    specs += arm("T-rising", _kd(Linear(1.0, 8.0)))
    specs += arm("T-learned", _kd(LearnedTemperature(1, 21)))
    specs += arm("soft-falling", Linear(0.0, 1.0) * CrossEntropy() + Linear(1.0, 0.0) * SoftTargets(4.0))
    # An omitted class, ten of them (B16).
    omit = tuple(range(0, 100, 10))
    specs += arm("omitted-alone", 1.0 * CrossEntropy(), omit=omit)
    specs += arm("omitted-kd", _kd(), omit=omit)
    specs += arm("omitted-soft", _kd(soft_weight=1.0), omit=omit)
    # Teacher assistants (B17): the distilled student teaches a narrower one.
    for seed in range(seeds):
        assistant = next(s for s in arm("kd", published["kd"]) if s.recipe.seed == seed)
        specs += [s for s in arm("assisted", _kd(), student=narrower[0], teacher=assistant) if s.recipe.seed == seed]
    # Multiplying by N (B10), with SGD and Adam.
    soft = 1.0 * SoftTargets(temperature=4)
    exact = replace(recipe, learning_rate=recipe.learning_rate / 100, weight_decay=recipe.weight_decay * 100)
    adam = replace(recipe, optimizer="adam", learning_rate=1e-3, weight_decay=0.0)
    specs += arm("timesN-sgd", 100 * soft)
    specs += arm("timesN-sgd-scaled", 100 * soft, how=exact)
    specs += arm("times1-adam", soft, how=adam)
    specs += arm("timesN-adam", 100 * soft, how=adam)
    # How the teacher looks (consistent teaching; a teacher left in training mode).
    specs += arm("own-view", _kd(), how=replace(recipe, teacher_view="own"))
    specs += arm("teacher-in-training-mode", _kd(), how=replace(recipe, teacher_mode="train"))
    # Combinations, with the same budget of three weights for each (A15); KD's three are above.
    tried = {"at": (100, 1000, 5000), "crd": (0.2, 0.8, 3.2)}
    for name in combined:
        term = published[name].terms[1]
        low, _, high = tried[name]  # between them lies the published weight, an arm above
        for weight in (low, high):
            specs += arm(f"{name}-{weight:g}", CrossEntropy() + weight * term)
    for name in combined:
        for weight in tried[name]:
            specs += arm(f"kd+{name}-{weight:g}", _kd() + weight * published[name].terms[1])
    return specs


def questions() -> list[Spec]:
    """The questions by the published recipe, ResNet-56 to ResNet-20, five seeds: for a GPU."""
    return _questions(
        "questions", published_teacher(), "resnet20", ("resnet8", "resnet8_width8"), published_recipe("resnet20"),
        examples=45_000, seeds=5, temperatures=(1.0, 2.0, 4.0, 8.0, 16.0), soft_weights=(0.1, 0.5, 0.9, 1.0),
    )  # fmt: skip


def small() -> list[Spec]:
    """The questions at the scale of a CPU: ResNet-20 to ResNet-8, five epochs, three seeds; about four hours of two cores.

    Of the combinations only those with attention transfer: tuning CRD would take as long as all the rest.
    """
    recipe = Recipe(
        epochs=5,
        batch_size=128,
        learning_rate=0.1,
        schedule="cosine",
        warmup_epochs=0.5,
        precision="bfloat16",
    )
    return _questions(
        "small",
        teacher(),
        "resnet8",
        ("resnet8_width8", "resnet8_width4"),
        recipe,
        examples=45_000,
        seeds=3,
        combined=("at",),
    )
