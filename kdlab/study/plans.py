"""Plans: functions that return specs, most valuable first."""

from dataclasses import replace

from ..objectives import CrossEntropy, PermutedSoftTargets, SoftTargets
from ..training import Recipe
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


def published_teacher() -> Spec:
    """ResNet-56 by the published recipe, for a GPU."""
    return Spec(
        "teacher", "resnet56", "cifar100", "resnet56", 1.0 * CrossEntropy(), Recipe(precision="bfloat16")
    )


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


def first_distillation_live(data: str, precision: str) -> list[Spec]:
    """What chapter 6 trains while it is executed: ResNet-20 to ResNet-8, three seeds, under four minutes."""
    recipe = Recipe(
        epochs=4, batch_size=64, learning_rate=0.1, schedule="cosine", warmup_epochs=0.5, precision=precision
    )
    examples = 8_000
    if data == "digits":
        recipe, examples = replace(recipe, batch_size=32, augment=False), 200
    return _three_arms("first-distillation-live", data, "resnet8", teacher(data), recipe, range(3), examples)


def first_distillation_cpu() -> list[Spec]:
    """The same three arms on the whole training split: five seeds, about 90 minutes of two cores."""
    recipe = Recipe(
        epochs=10, batch_size=128, learning_rate=0.1, schedule="cosine", warmup_epochs=1, precision="bfloat16"
    )
    return _three_arms("first-distillation-cpu", "cifar100", "resnet8", teacher(), recipe, range(5), None)


def first_distillation_gpu() -> list[Spec]:
    """The same three arms by the published recipe, ResNet-56 to ResNet-20, five seeds: for a GPU."""
    recipe = Recipe(precision="bfloat16")
    return _three_arms(
        "first-distillation-gpu", "cifar100", "resnet20", published_teacher(), recipe, range(5), None
    )
