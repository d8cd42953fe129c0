"""Plans of short studies: where a student begins, *fidelity* near its teacher and *cut* out of it; and *patient*, how it is shown what to learn.

Each arm has a learning rate of its own, chosen on the validation split with a seed that no reported run has; of *patient*, the longest arm has the rate of
the middle one.
"""

from dataclasses import replace
from functools import partial

from ..objectives import CrossEntropy, Objective, SoftTargets
from ..training import Recipe
from .grown import scaled_recipe
from .language_plans import language_teacher
from .spec import Spec
from .tuning import Found, Tuning, at_own_rates, validation_bits
from .when_it_pays import DISTILLED, LABELS, RATES
from .when_it_pays import recipe as language_recipe

# ---------------------------------------------------------------- fidelity

#: λ: the share of its teacher's weights that a student of the same architecture begins with.
SHARES = (0.0, 0.5, 0.75, 0.9, 1.0)


def fidelity_teacher() -> Spec:
    """A ResNet-8 that learned from labels."""
    return Spec("teacher", "resnet8-30", "cifar100", "resnet8", 1.0 * CrossEntropy(), scaled_recipe(30))


def fidelity(found: Found) -> list[Spec]:
    """Does a student that could be its teacher become it? A ResNet-8 learns a ResNet-8's soft targets, and begins at λ·teacher + (1 − λ)·drawn.

    Source: Stanton et al. (2021), section 5.2: what keeps a student from its teacher is optimisation, and not capacity.
    """
    source = fidelity_teacher()

    def begun(share: float, arm: str, how: Recipe) -> Spec:
        taught = 1.0 * SoftTargets(temperature=4)
        return Spec("fidelity", arm, source.data, "resnet8", taught, how, source, from_teacher=share)

    arms = {f"share-{share:g}": partial(begun, share) for share in SHARES}
    tuning = partial(Tuning, weighted=False, rates=(0.005, 0.015, 0.05), epochs=(5,))
    return [source, *at_own_rates(found, arms, tuning, scaled_recipe(5), scaled_recipe(10))]


# ---------------------------------------------------------------- patient

#: Epochs over ``FEW`` photographs. Each arm's rate is chosen at the first, and at the second, for the third too.
PATIENCE, FEW = (20, 80, 320), 5000

#: Who sees what: the teacher's view, and whether pictures are mixed.
SHOWN = {"same": ("same", False), "own": ("own", False), "same-mixed": ("same", True), "own-mixed": ("own", True)}


def patient(found: Found) -> list[Spec]:
    """Does a student learn more from a teacher that sees what it sees, of pictures that are mixed, and for very long?

    A ResNet-8 of half the width learns the soft targets of a ResNet-8 on five thousand photographs, without labels. Whatever the teacher sees,
    its seeds have one order of the photographs and the same crops of the student's.

    Source: Beyer et al. (2022): the same view for both, mixup, and long schedules.
    """
    source = fidelity_teacher()
    specs = [source]

    def shown(view: str, mixed: bool, arm: str, how: Recipe) -> Spec:
        soft, how = 1.0 * SoftTargets(temperature=4), replace(how, teacher_view=view, mixup=mixed)
        arm = f"{arm}-{how.epochs}"
        return Spec("patient", arm, source.data, "resnet8_width8", soft, how, source, train_examples=FEW)

    arms = {name: partial(shown, *what) for name, what in SHOWN.items()}
    short, middle, long = map(scaled_recipe, PATIENCE)
    for tried, asked in ((short, (short,)), (middle, (middle, long))):
        tuning = partial(Tuning, weighted=False, rates=(0.015, 0.05, 0.15), epochs=(tried.epochs,))
        specs += at_own_rates(found, arms, tuning, tried, *asked)
    return specs


# ---------------------------------------------------------------- cut

#: Which two of the teacher's four blocks a student begins with; none: its weights are drawn.
KEPT = {"drawn": (), "outer": (0, 3), "first": (0, 1), "last": (2, 3)}


def cut(found: Found) -> list[Spec]:
    """Is half of a teacher a better beginning than drawn weights? Two of its blocks, trained on labels, or on labels and the teacher.

    Every arm reads a million tokens; rates are chosen at a quarter of that.

    Source: Muralidharan et al. (2024), Minitron: prune, then distil.
    """
    source = language_teacher()

    def begun(objective: Objective, blocks: tuple[int, ...], arm: str, how: Recipe) -> Spec:
        options = {"from_teacher": True, "blocks": blocks} if blocks else {}
        return Spec("cut", arm, source.data, "gpt_224x2", objective, how, source, **options)

    arms = {
        f"{beginning}-{kind}": partial(begun, objective, blocks)
        for beginning, blocks in KEPT.items()
        for kind, objective in (("alone", LABELS), ("kd", DISTILLED))
    }
    tuning = partial(Tuning, weighted=False, rates=RATES, epochs=(8,), score=validation_bits)
    return [source, *at_own_rates(found, arms, tuning, language_recipe(0.25), language_recipe(1.0))]
