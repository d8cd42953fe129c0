"""Plans of language models that grow: when distilling pays, and whose text to learn from.

*when-it-pays*: students of two sizes, alone and distilled, at lengths from a quarter of a million to 16 million tokens, each with
a schedule of its own and a rate chosen for it; teachers of three ages and two sizes. *when-it-pays-held-out*: the same at 32 million tokens,
which no fit may have seen. *whose-text*: two divergences on three texts. *drafts-grown*: drafts that read four times the tokens.

In float32, which every processor has. The texts are the openings of the books, about ten million tokens, of which each epoch draws its blocks
anew: long trainings read many of them more than once.
"""

from collections.abc import Iterator
from dataclasses import replace

from ..language import Drafting, OwnText
from ..objectives import CrossEntropy, ForwardKL, NegativeLogAcceptance, Objective, ReverseKL, TotalVariation
from ..training import Recipe
from .language_plans import beside_labels, language_teacher
from .spec import Spec
from .tuning import TRY, TUNING_SEED, Found, Try, Tuning, validation_bits

#: As long as a text block is, in tokens; and how many blocks a step reads.
_CONTEXT, _BATCH, _EPOCHS = 256, 16, 8

STUDENTS = ("gpt_64x2", "gpt_96x3")

#: Millions (of 2²⁰) of tokens that a student reads. The longest has the rate that was chosen for the one before it.
LENGTHS = (0.25, 1.0, 4.0, 16.0)
HELD_OUT = 32.0

RATES = (1e-3, 2e-3, 4e-3, 8e-3)

LABELS, DISTILLED = 1.0 * CrossEntropy(), beside_labels(ForwardKL())


def recipe(millions: float, learning_rate: float = 2e-3, seed: int = 0) -> Recipe:
    """A whole cosine over so many tokens.

    >>> recipe(4.0).epochs * recipe(4.0).epoch_examples * 256 == 4 * 2**20
    True
    """
    return Recipe(
        epochs=_EPOCHS, epoch_examples=round(millions * 2**20 / _CONTEXT / _EPOCHS), batch_size=_BATCH, optimizer="adamw",
        learning_rate=float(f"{learning_rate:.3g}"), weight_decay=0.1, schedule="cosine", warmup_epochs=0.2, augment=False,
        max_gradient_norm=1.0, seed=seed,
    )  # fmt: skip


def aged_teacher(millions: float, model: str = "gpt_224x4") -> Spec:
    """A teacher that has read so many tokens, in float32; at 6 million, of the present size, it is the book's own."""
    if (millions, model) == (6.0, "gpt_224x4"):
        return language_teacher()
    return Spec("teacher", f"{model}-{millions:g}M", language_teacher().data, model, LABELS, recipe(millions))


def _spec(study: str, arm: str, student: str, objective: Objective, how: Recipe, teacher: Spec, **options) -> Spec:
    return Spec(study, arm, teacher.data, student, objective, how, teacher, **options)


def _tuning(study: str, arm: str, student: str, objective: Objective, millions: float, **options) -> Tuning:
    def spec(choice: Try, _) -> Spec:
        how = recipe(millions, choice.learning_rate, TUNING_SEED)
        return _spec(study, f"{TRY}{arm}-{choice}", student, objective, how, language_teacher(), **options)

    return Tuning(spec, weighted=False, rates=RATES, epochs=(_EPOCHS,), score=validation_bits)


def arm_name(student: str, kind: str, millions: float) -> str:
    """``"alone"`` or ``"kd"`` (or one from another teacher) of a size, after so many million tokens."""
    return f"{student}-{kind}-{millions:g}M"


def _tunings() -> dict[tuple[str, str, float], Tuning]:
    kinds = {"alone": LABELS, "kd": DISTILLED}
    return {
        (student, kind, millions): _tuning(
            "when-it-pays", arm_name(student, kind, millions), student, objective, millions
        )
        for millions in LENGTHS[:-1]
        for student in STUDENTS
        for kind, objective in kinds.items()
    }


def _rate(found: Found, student: str, kind: str, millions: float) -> float | None:
    """The rate that was chosen for a length, or for the longest that was tuned; None before it is."""
    choice = _tunings()[student, kind, min(millions, LENGTHS[-2])].chosen(found)
    return None if choice is None else choice.learning_rate


def when_it_pays(found: Found) -> list[Spec]:
    """The runs that are known so far, shortest first."""
    return list({spec.hash: spec for spec in _pays(found)}.values())


def _pays(found: Found) -> Iterator[Spec]:
    yield language_teacher()
    for millions in LENGTHS:
        for key, tuning in _tunings().items():
            if key[2] == millions:
                yield from tuning.specs(found)
        for student in STUDENTS:
            yield from _at(found, student, millions, range(3))
    # Teachers of other ages and of another size, at one length.
    for source in (aged_teacher(1.5), aged_teacher(24.0), aged_teacher(6.0, "gpt_96x3")):
        yield source
        if (rate := _rate(found, STUDENTS[0], "kd", 4.0)) is not None:
            for seed in range(3):
                arm = arm_name(STUDENTS[0], f"kd-from-{source.arm}", 4.0)
                yield _spec("when-it-pays", arm, STUDENTS[0], DISTILLED, recipe(4.0, rate, seed), source)


def _at(found: Found, student: str, millions: float, seeds) -> Iterator[Spec]:
    for kind, objective in (("alone", LABELS), ("kd", DISTILLED)):
        if (rate := _rate(found, student, kind, millions)) is not None:
            for seed in seeds:
                how = recipe(millions, rate, seed)
                yield _spec(
                    "when-it-pays", arm_name(student, kind, millions), student, objective, how, language_teacher()
                )


def held_out(found: Found) -> list[Spec]:
    """The length that is predicted before it is run: one run of each, at twice the longest of the fit."""
    students = [spec for student in STUDENTS for spec in _at(found, student, HELD_OUT, range(1))]
    return [language_teacher(), *students]


# ---------------------------------------------------------------- whose text

DIVERGENCES = {"forward": 1.0 * ForwardKL(), "reverse": 1.0 * ReverseKL()}

#: Blocks that the corpus, the teacher's text and its prompts are of; tokens of a prompt; the part of the training after which the student
#: writes itself: the cosine leaves more than half of the summed rate behind it.
_BLOCKS, _PROMPT, _AFTER = 2048, 32, 0.25


def whose_text(found: Found) -> list[Spec]:
    """Forward and reverse KL, each on text of the corpus, of the teacher and of the student, from the same prompts; the divergence alone.

    The rate is chosen for each divergence on the corpus. Text and divergence are thus told apart: an arm differs from its neighbours in
    one of them.
    """
    return list({spec.hash: spec for spec in _texts(found)}.values())


def _texts(found: Found) -> Iterator[Spec]:
    yield language_teacher()
    student, blocks = STUDENTS[1], {"train_examples": _BLOCKS}
    texts = {
        "corpus": {},
        "teacher": {"text": "teacher", "own_text": OwnText(_PROMPT)},
        "student": {"text": "student", "own_text": OwnText(_PROMPT, after=_AFTER)},
    }
    tunings = {
        name: _tuning("whose-text", f"{name}-corpus", student, objective, 1.0, **blocks)
        for name, objective in DIVERGENCES.items()
    }
    for tuning in tunings.values():
        yield from tuning.specs(found)
    for seed in range(3):
        for name, objective in DIVERGENCES.items():
            if (choice := tunings[name].chosen(found)) is not None:
                for text, options in texts.items():
                    how = recipe(1.0, choice.learning_rate, seed)
                    yield _spec(
                        "whose-text", f"{name}-{text}", student, objective, how, language_teacher(), **blocks, **options
                    )


def drafts_grown(found: Found) -> list[Spec]:
    """Drafts at four million tokens, each objective at the rate that was chosen for students alone or distilled there; and alone with as many
    multiply-adds as a distilled one spends with its teacher's looks."""
    student, source = STUDENTS[0], language_teacher()
    alone, distilled = (_rate(found, student, kind, 4.0) for kind in ("alone", "kd"))
    if alone is None or distilled is None:
        return [source]
    own = {"text": "student", "own_text": OwnText(_PROMPT, after=_AFTER)}
    arms = {
        "alone": (LABELS, recipe(4.0, alone), {}),
        "alone-equal-compute": (LABELS, replace(recipe(4.0, alone), epochs=33), {}),
        "forward-kl": (1.0 * ForwardKL(), recipe(4.0, distilled), {}),
        "tv": (1.0 * TotalVariation(), recipe(4.0, distilled), {}),
        "log-acceptance": (1.0 * NegativeLogAcceptance(), recipe(4.0, distilled), {}),
        "own-text": (1.0 * ForwardKL(), recipe(4.0, distilled), own),
    }
    return [source] + [
        _spec("drafts-grown", arm, student, objective, replace(how, seed=seed), source, drafting=Drafting(), **options)
        for seed in range(3)
        for arm, (objective, how, options) in arms.items()
    ]
