"""Plans of language models: a teacher of books, and students that learn from it at an equal budget of tokens."""

from dataclasses import replace

from ..language import Drafting, OwnText, TokenCount
from ..objectives import (
    AttentionMaps,
    CrossEntropy,
    ForwardKL,
    GeneralisedJSD,
    HiddenMSE,
    Linear,
    MeanReward,
    NegativeLogAcceptance,
    Objective,
    PolicyGradient,
    Projector,
    ReverseKL,
    SkewedForwardKL,
    SkewedReverseKL,
    SoftTargets,
    SparseForwardKL,
    TextKL,
    TotalVariation,
)
from ..training import Recipe
from .spec import Spec

#: Six epochs of 4,096 blocks of 256 tokens: 6.3 million tokens, about half an hour of a CPU core. The learning rate is the best of
#: 0.001, 0.002, 0.004 and 0.008 on the validation text, for the student alone with a quarter of its tokens.
_SMALL = Recipe(
    epochs=6,
    epoch_examples=4096,
    batch_size=16,
    optimizer="adamw",
    learning_rate=2e-3,
    weight_decay=0.1,
    schedule="cosine",
    warmup_epochs=0.2,
    augment=False,
    precision="bfloat16",
    max_gradient_norm=1.0,
)

#: Eight epochs of 19,200 blocks of 512 tokens: 79 million tokens, about five minutes of an H100.
_LARGE = replace(_SMALL, epochs=8, epoch_examples=19_200, batch_size=64, learning_rate=1e-3)


def language_teacher(*, large: bool = False) -> Spec:
    """The teacher of the small study, or of the one for a GPU."""
    name, data, recipe = (
        ("gpt_704x13", "books-16384-512", _LARGE) if large else ("gpt_224x4", "book-openings-4096-256", _SMALL)
    )
    return Spec("teacher", name, data, name, 1.0 * CrossEntropy(), recipe)


def beside_labels(term, weight: float = 0.9) -> Objective:
    """Hard labels and a divergence, weighted to sum to one."""
    return 1.0 * term if weight == 1 else round(1 - weight, 12) * CrossEntropy() + weight * term


def _language(
    study: str,
    teacher: Spec,
    students: tuple[str, str],
    recipe: Recipe,
    *,
    vocabulary: int,
    layers: tuple[str, str],
    widths: tuple[int, int],
    epochs_alone: tuple[int, int],
    attention: tuple[str, str],
    text_examples: int,
    seeds: int,
) -> list[Spec]:
    """The questions of chapters 16 to 18, one block a question, all seeds of a block before the next.

    Args:
        layers, widths: of the hidden states that are matched, student's and teacher's.
        epochs_alone: of students alone that spend as many multiply-adds as distilled ones with their teacher's looks.
        attention: the attention modules that are matched.
        text_examples: blocks of the corpus that caches and the teacher's own text are made of.
    """

    def arm(name, objective, *, student=students[0], how=recipe, **options):
        return [
            Spec(study, name, teacher.data, student, objective, replace(how, seed=s), teacher, **options)
            for s in range(seeds)
        ]

    # What helps, for two sizes (B12), and how much of each (B2).
    specs = [teacher, *arm("alone", 1.0 * CrossEntropy()), *arm("kd", beside_labels(ForwardKL()))]
    specs += arm(f"{students[1]}-alone", 1.0 * CrossEntropy(), student=students[1])
    specs += arm(f"{students[1]}-kd", beside_labels(ForwardKL()), student=students[1])
    for student, prefix, epochs in zip(students, ("", f"{students[1]}-"), epochs_alone, strict=True):
        longer = replace(recipe, epochs=epochs)
        specs += arm(f"{prefix}alone-equal-compute", 1.0 * CrossEntropy(), student=student, how=longer)
    for weight in (0.5, 1.0):
        specs += arm(f"soft{weight:g}", beside_labels(ForwardKL(), weight))
    specs += arm("soft-falling", Linear(0.0, 1.0) * CrossEntropy() + Linear(1.0, 0.0) * ForwardKL())
    # The temperature (A5), and N times the loss (B10).
    for temperature in (2.0, 4.0):
        specs += arm(f"T{temperature:g}", beside_labels(SoftTargets(temperature)))
    specs += arm("timesN", vocabulary * ForwardKL())
    # Which divergence.
    specs += arm("reverse-kl", beside_labels(ReverseKL()))
    specs += arm("jsd", beside_labels(GeneralisedJSD(0.5, scaled=True)))
    specs += arm("skewed-forward", beside_labels(SkewedForwardKL(0.1)))
    specs += arm("skewed-reverse", beside_labels(SkewedReverseKL(0.1)))
    specs += arm("tv", beside_labels(TotalVariation()))
    # Hidden states and attention beside it (A10).
    hidden = HiddenMSE(layers, projector=Projector("linear", *widths))
    specs += arm("kd+hidden", beside_labels(ForwardKL()) + 1.0 * hidden)
    specs += arm(
        "kd+attention",
        beside_labels(ForwardKL()) + 1.0 * AttentionMaps(attention, heads="mean", normalise="queries"),
    )
    # Caches, on the blocks that they are made of.
    for kind in ("sampled", "top-k", "top-k-rest"):
        specs += arm(f"{kind}-12", beside_labels(SparseForwardKL()), train_examples=text_examples, kept=(kind, 12))
    specs += arm("kd-same-text", beside_labels(ForwardKL()), train_examples=text_examples)
    # Whose text: the teacher's, or in the last quarter the student's own, or that and the corpus' by turns.
    specs += arm(
        "teacher-text",
        1.0 * CrossEntropy(),
        train_examples=text_examples,
        text="teacher",
        own_text=OwnText(32),
    )
    own, mixed = OwnText(32, after=0.75), OwnText(32, after=0.75, probability=0.5)
    specs += arm("own-text", 1.0 * ForwardKL(), text="student", own_text=own)
    specs += arm("own-text-reverse", 1.0 * ReverseKL(), text="student", own_text=own)
    specs += arm("mixed-text", 1.0 * ForwardKL(), text="student", own_text=mixed)
    # A temperature that falls, and teacher assistants: the distilled student teaches the smaller one.
    specs += arm("T-falling", beside_labels(SoftTargets(Linear(4.0, 1.0))))
    assistants = {spec.recipe.seed: spec for spec in specs if spec.arm == "kd"}
    assisted = arm(f"{students[1]}-assisted", beside_labels(ForwardKL()), student=students[1])
    return specs + [replace(spec, teacher=assistants[spec.recipe.seed]) for spec in assisted]


def language_small() -> list[Spec]:
    """Language models at the scale of a CPU: a teacher of 3.4 M parameters, students of 0.7 and 0.4 M that read 1.0 million tokens."""
    return _language(
        "language-small", language_teacher(), ("gpt_96x3", "gpt_64x2"), replace(_SMALL, epochs=8, epoch_examples=512),
        vocabulary=4096, layers=("blocks.1", "blocks.2"), widths=(96, 224),
        epochs_alone=(20, 33), attention=("blocks.1.attention", "blocks.2.attention"), text_examples=2048, seeds=3,
    )  # fmt: skip


def language() -> list[Spec]:
    """The same for a GPU: a teacher of 89 M parameters, students of 13 and 5 M that read 20 million tokens."""
    return _language(
        "language", language_teacher(large=True), ("gpt_320x6", "gpt_192x4"),
        replace(_LARGE, epochs=8, epoch_examples=4800), vocabulary=16_384,
        layers=("blocks.3", "blocks.8"), widths=(320, 704), epochs_alone=(26, 55),
        attention=("blocks.3.attention", "blocks.8.attention"), text_examples=19_200, seeds=3,
    )  # fmt: skip


def _drafts(
    study: str, verifier: Spec, draft: str, recipe: Recipe, *, prompt: int, drafting: Drafting, seeds: int
) -> list[Spec]:
    """What a draft learns from, chapter 19: all seeds of an objective before the next."""
    own = OwnText(prompt, after=0.5)
    arms = {
        "alone": (1.0 * CrossEntropy(), {}),
        "forward-kl": (1.0 * ForwardKL(), {}),
        "reverse-kl": (1.0 * ReverseKL(), {}),
        "tv": (1.0 * TotalVariation(), {}),
        "log-acceptance": (1.0 * NegativeLogAcceptance(), {}),
        "own-text": (1.0 * ForwardKL(), {"text": "student", "own_text": own}),
    }
    return [verifier] + [
        Spec(study, arm, verifier.data, draft, objective, replace(recipe, seed=s), verifier, drafting=drafting, **options)
        for arm, (objective, options) in arms.items()
        for s in range(seeds)
    ]  # fmt: skip


def drafts_small() -> list[Spec]:
    """Drafts of 0.4 M parameters for the verifier of 3.4 M, at the scale of a CPU; they read 1.0 million tokens."""
    recipe = replace(_SMALL, epochs=8, epoch_examples=512)
    return _drafts("drafts-small", language_teacher(), "gpt_64x2", recipe, prompt=32, drafting=Drafting(), seeds=3)


def drafts() -> list[Spec]:
    """Drafts of 5 M parameters for the verifier of 89 M: for a GPU."""
    recipe = replace(_LARGE, epochs=8, epoch_examples=4800)
    drafting = Drafting(prompts=400, prompt=64, tokens=128)
    return _drafts("drafts", language_teacher(large=True), "gpt_192x4", recipe, prompt=64, drafting=drafting, seeds=3)


def _modules(
    study: str, model: Spec, students: dict[str, str], recipe: Recipe, *, drafting: Drafting, seeds: int
) -> list[Spec]:
    """Modules that predict three further tokens, chapter 20: from the text, or from the model one step later."""
    objectives = {"labels": CrossEntropy(), "distilled": ForwardKL(), "distilled-tv": TotalVariation()}
    return [model] + [
        Spec(study, f"{kind}-{name}", model.data, student, 1.0 * objective, replace(recipe, seed=s), model, drafting=drafting)
        for kind, student in students.items()
        for name, objective in objectives.items()
        for s in range(seeds)
    ]  # fmt: skip


def modules_small() -> list[Spec]:
    """Modules on the model of 3.4 M parameters, at the scale of a CPU; they read 0.4 million tokens."""
    students = {"row": "heads_in_a_row_224x4", "side": "heads_side_by_side_224x4"}
    recipe = replace(_SMALL, epochs=4, epoch_examples=384)
    drafting = Drafting(rounds=((1, 0.0), (2, 0.0), (3, 0.0), (3, 0.3)))
    return _modules("modules-small", language_teacher(), students, recipe, drafting=drafting, seeds=3)


def modules() -> list[Spec]:
    """Modules on the model of 89 M parameters: for a GPU."""
    students = {"row": "heads_in_a_row_704x13", "side": "heads_side_by_side_704x13"}
    recipe = replace(_LARGE, epochs=4, epoch_examples=4800)
    drafting = Drafting(prompts=400, prompt=64, tokens=128, rounds=((1, 0.0), (2, 0.0), (3, 0.0), (3, 0.3)))
    return _modules("modules", language_teacher(large=True), students, recipe, drafting=drafting, seeds=3)


#: What the reward of chapter 21 counts, meant to ask for lively talk: marks and words that are single tokens, and their numbers in
#: the tokeniser of 4,096 and in that of 16,384.
LIVELY = ("!", "?", '"', '!"', '?"', "said", "cried", "asked", "replied", "exclaimed", "oh")
_LIVELY_TOKENS = {
    4096: (
        1, 2, 31, 384, 419, 515, 637, 960, 1219, 1326, 1374, 2544, 2573,
    ),
    16_384: (
        1, 2, 31, 384, 419, 515, 637, 960, 1219, 1326, 1374, 2544, 2573, 5714, 6066, 13095, 15454,
    ),
}  # fmt: skip


def _policies(
    study: str, reference: Spec, data: str, recipe: Recipe, *, own_text: OwnText, reward: TokenCount, seeds: int
) -> list[Spec]:
    """A policy that begins as its reference and is paid for lively talk, chapter 21: all seeds of an arm before the next."""
    group, earned = own_text.copies, 0.0 * MeanReward(reward) + 0.0 * TextKL("exact")
    arms = {}
    # The leash: how long, with the divergence in the reward.
    for beta in (0.0, 0.25, 0.5, 1.0):
        arms[f"beta{beta:g}"] = PolicyGradient(reward, group, beta=beta) + earned
    # Other ways to hold it, at one length: another baseline, and the divergence as a loss, by each estimate.
    arms["standardised"] = PolicyGradient(reward, group, "standardised", beta=0.5) + earned
    for estimator in ("k1", "k2", "k3", "exact"):
        arms[f"loss-{estimator}"] = PolicyGradient(reward, group) + 0.5 * TextKL(estimator) + earned
    return [reference] + [
        Spec(
            study, arm, data, reference.student, objective, replace(recipe, seed=s), reference,
            text="student", own_text=own_text, from_teacher=True,
        )
        for arm, objective in arms.items()
        for s in range(seeds)
    ]  # fmt: skip


def policy_small() -> list[Spec]:
    """Policies of 3.4 M parameters, at the scale of a CPU: 60 steps of 48 texts, eight after each prompt."""
    recipe = replace(
        _SMALL, epochs=2, epoch_examples=1440, batch_size=48, learning_rate=3e-4, weight_decay=0.0, warmup_epochs=0.5,
        precision="float32", schedule="constant",
    )  # fmt: skip
    own, reward = OwnText(16, copies=8), TokenCount(_LIVELY_TOKENS[4096])
    return _policies(
        "policy-small", language_teacher(), "book-openings-4096-40", recipe, own_text=own, reward=reward, seeds=3
    )


def policy() -> list[Spec]:
    """Policies of 89 M parameters: for a GPU, 200 steps of 128 texts."""
    recipe = replace(
        _LARGE, epochs=10, epoch_examples=2560, batch_size=128, learning_rate=5e-5, weight_decay=0.0, warmup_epochs=0.5,
        precision="float32", schedule="constant",
    )  # fmt: skip
    own, reward = OwnText(32, copies=8), TokenCount(_LIVELY_TOKENS[16_384])
    return _policies(
        "policy", language_teacher(large=True), "books-16384-96", recipe, own_text=own, reward=reward, seeds=3
    )
