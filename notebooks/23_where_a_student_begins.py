# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Where a student begins
#
# Most students of this book are smaller than their teachers, and begin with drawn weights. Then it is no surprise that they end up different: they *cannot* be their teachers. Here are two kinds of students for which that is not so clear. One has its teacher's own architecture, and could be its teacher, weight for weight. The other is cut out of its teacher, and begins as half of it. <!-- by definition -->
#
# **At the end you will know** how far a student stays from a teacher that it could be; that accuracy does not show it; what the beginning has to do with it; and what half of a trained language model is worth as a beginning.
#
# *Needs: one CPU core and a minute. What takes hours is recorded.*

# %% tags=["parameters"]
profile: str = "cpu"  # "cpu" or "gpu"
shares: list[float] = [0.0, 0.5, 0.75, 0.9]  # λ, of the teacher's weights
epochs: int = 30  # for which students learn that begin there
longer: int = 4  # times as long: those with drawn weights that are given more time
more: int = 10  # times the examples: one of these that is given more of them, too
seeds: list[int] = [0, 1, 2]  # of teachers and students
read_blocks: int = 64  # of text, that each half of a language model reads

# %% tags=["hide-input"]
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import display

from kdlab.data import KnownPosterior
from kdlab.figures import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    VERMILION,
    dots,
    show,
    table,
    use_style,
)
from kdlab.language import load_text_data
from kdlab.models import GPT, begin_from, mlp, multiply_adds
from kdlab.objectives import CrossEntropy, ForwardKL, forward_kl
from kdlab.study import book_language_teacher, results
from kdlab.study.display import (
    Findings,
    arms_shown,
    conditions,
    data_note,
    device_for,
    not_yet_run,
    source_note,
    verdict,
)
from kdlab.study.evidence import QUANTITIES, Quantity
from kdlab.study.parameters import require
from kdlab.study.statements import above, below, within
from kdlab.study.statistics import summary
from kdlab.study.surprises import KEPT, SHARES
from kdlab.training import (
    Learner,
    Recipe,
    accuracy,
    agreement,
    fit,
    fit_together,
    measure_tokens,
    predict,
)

use_style()
device = device_for(profile)
require(
    len(shares) > 1 and 0 in shares and all(0 <= share < 1 for share in shares),
    "shares are two or more, from 0, which is one of them, to below 1.",
)
require(longer > 1, "longer must be 2 or more.")
require(read_blocks >= 8, "read_blocks must be 8 or more, a batch.")
shares = sorted(shares)
data = load_text_data("book-openings-4096-256")
data_note(data)

# %% tags=["hide-input"]
findings = Findings()

# %% [markdown]
# ## A student that could be its teacher
#
# Give the student its teacher's architecture, no label, and the divergence from the teacher alone. Then the loss has a zero, and we know where: at the teacher's weights. If the student ends elsewhere, it is not for lack of capacity. Stanton and co-workers asked this of large networks, and found that students do not come to match such teachers, unless they begin near them {cite}`stanton2021does`.
#
# What is the distance between? On a line from the student's drawn weights to the teacher's, a student may begin anywhere:
#
# $$\theta=\lambda\,\theta_T+(1-\lambda)\,\theta_S .$$
#
# At $\lambda=0$ nothing is known of the teacher; at $\lambda=1$ nothing is left to learn.
#
# We try it on the twenty Gaussian classes of {doc}`01_what_a_teacher_knows`. The teacher, a network of two hidden layers, learns from the labels of two thousand examples, and so gets errors of its own, beside those that nobody can avoid. The students see the same examples, and the teacher's whole distribution on them.

# %%
task = KnownPosterior.draw()
generator = torch.Generator().manual_seed(1)
train, validation, test, plenty = (
    task.sample(n, generator=generator) for n in (2000, 2000, 4000, 2000 * more)
)


def recipe(seed, rate, length=1):
    return Recipe(
        epochs=length * epochs, epoch_examples=len(train), batch_size=128, optimizer="adam", learning_rate=rate,
        schedule="cosine", weight_decay=0.0, augment=False, seed=seed,
    )  # fmt: skip


def drawn(seed):
    torch.manual_seed(seed)
    return mlp(16, task.num_classes, width=64)


def taught(seed):
    """A network that learned from labels."""
    network = drawn(seed)
    fit(network, CrossEntropy(), train=train, recipe=recipe(seed, 3e-3, 2))
    return network


def near(teacher, share, seed):
    """A student at this share of the way to its teacher, from weights of its own."""
    student = drawn(1000 + seed)
    begin_from(student, teacher, share)
    return student


# %% [markdown]
# Each beginning has a learning rate of its own: that of three which leaves the smallest divergence on a validation split, with a seed that is used for nothing else; the longer trainings take over the rate of the short one. <!-- by definition --> Two more arms begin with drawn weights and learn longer, one of them on more examples (they need no labels), in case that is all it takes.


# %% tags=["hide-input"]
RATES = (3e-3, 1e-2, 3e-2)
LONGER = f"0, {longer} × as long"
PLENTY = f"{LONGER}, {more} × the examples"
ARMS = {f"{share:g}": (share, 1, train) for share in shares}
ARMS |= {LONGER: (0.0, longer, train), PLENTY: (0.0, longer, plenty)}
DRAWN, NEAREST = "0", f"{max(shares):g}"


def learn(teacher, share, rates, seed, length=1, split=train):
    """Students that begin at this share, one a rate."""
    begun = {rate: near(teacher, share, seed) for rate in rates}
    learners = [
        Learner(student, 1.0 * ForwardKL(), recipe(seed, rate, length))
        for rate, student in begun.items()
    ]
    fit_together(learners, train=split, teacher=teacher)
    return begun


def apart(student, teacher, split):
    """Mean divergence from the teacher, in nats."""
    return forward_kl(predict(student, split), predict(teacher, split)).item()


tuning_seed = max(seeds) + 100
tuner = taught(tuning_seed)
rates = {}
for share in shares:
    tried = learn(tuner, share, RATES, tuning_seed)
    rates[share] = min(RATES, key=lambda r: apart(tried[r], tuner, validation))
teachers = {seed: taught(seed) for seed in seeds}
students = {seed: {} for seed in seeds}
for seed in seeds:
    for name, (share, length, split) in ARMS.items():
        rate = rates[share]
        (student,) = learn(teachers[seed], share, [rate], seed, length, split).values()
        students[seed][name] = student


def agree(one, other, split):
    return agreement(predict(one, split), predict(other, split))


agreed, on_shown, correct, distance = (
    {name: [f(students[s][name], teachers[s]) for s in seeds] for name in ARMS}
    for f in (
        lambda student, teacher: agree(student, teacher, test),
        lambda student, teacher: agree(student, teacher, train),
        lambda student, _: accuracy(predict(student, test), test.labels),
        lambda student, teacher: apart(student, teacher, test),
    )
)
teachers_correct = [accuracy(predict(t, test), test.labels) for t in teachers.values()]
strangers = [agree(tuner, teacher, test) for teacher in teachers.values()]
unlearned = {
    share: np.mean([agree(near(t, share, s), t, test) for s, t in teachers.items()])
    for share in shares
}

# %% tags=["hide-input"]
N = f"n = {len(seeds)} seed{'s' * (len(seeds) > 1)}"
figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 2.8), sharey=True)
hues = dict.fromkeys(ARMS, BLUE) | dict.fromkeys((LONGER, PLENTY), ORANGE)
for panel, values, title in (
    (left, agreed, "agreement with the teacher (%)"),
    (right, correct, "accuracy (%)"),
):
    means = {name: summary(v) for name, v in values.items()}
    dots(panel, values, means, factor=100, colours=hues)
    panel.set_xlabel(title)
left.axvline(100 * np.mean(strangers), color="grey", linestyle=":", linewidth=1)
right.axvline(100 * np.mean(teachers_correct), color="grey", linestyle=":", linewidth=1)
left.set_ylabel("share λ of the teacher's weights")
show(
    figure,
    label="shares",
    caption=f"Students of their teacher's own architecture on {len(test):,} new examples: each seed, mean and 95 % interval ({N}). Dotted, left: two networks that learned from the labels and never from each other, {np.mean(strangers):.1%}; right: the teachers, {np.mean(teachers_correct):.1%}. Before any training, the shares agree in "
    + ", ".join(f"{unlearned[share]:.0%} ({share:g})" for share in shares)
    + ".",
    alt="Two panels of dots by share of the teacher's weights. Agreement: "
    + ", ".join(f"{name}: {100 * np.mean(v):.1f} %" for name, v in agreed.items())
    + ". Accuracy: "
    + ", ".join(f"{name}: {100 * np.mean(v):.1f} %" for name, v in correct.items())
    + ".",
)

# %% tags=["hide-input"]
AGREEMENT = QUANTITIES["agreement"]
SHOWN = replace(
    AGREEMENT, name="agreement with the teacher on the examples that both were shown"
)
ACCURACY = QUANTITIES["accuracy"]
CALLED = {
    name: f"a student that begins at λ = {share:g}"
    for name, (share, *_) in ARMS.items()
} | {
    DRAWN: "one with drawn weights",
    LONGER: f"one with drawn weights and {longer} times the time",
    PLENTY: f"one with drawn weights, {longer} times the time and {more} times the examples",
}
nearer = above(NEAREST, [DRAWN, LONGER, PLENTY], agreed, AGREEMENT, names=CALLED)
nearer_shown = above(NEAREST, DRAWN, on_shown, SHOWN, names=CALLED)
as_good = within(NEAREST, [DRAWN, LONGER, PLENTY], 2.0, correct, ACCURACY, names=CALLED)
time_helps = above(LONGER, DRAWN, on_shown, SHOWN, names=CALLED)
examples_help = above(PLENTY, [DRAWN, LONGER], agreed, AGREEMENT, names=CALLED)
display(nearer, nearer_shown, as_good, time_helps, examples_help)

# %% tags=["hide-input"]
table(
    ["begins at λ", "rate", "agreement, %", "on shown examples, %", "KL, nats", "accuracy, %"],
    [
        [
            name,
            f"{rates[share]:g}",
            (100 * summary(agreed[name])).bracketed(".1f"),
            (100 * summary(on_shown[name])).bracketed(".1f"),
            summary(distance[name]).bracketed(".3f"),
            (100 * summary(correct[name])).bracketed(".1f"),
        ]
        for name, (share, *_) in ARMS.items()
    ],
    caption=f"The same, and on the {len(train):,} examples that teacher and students were shown; means with 95 % intervals, {N}. Rates were chosen for each beginning among {', '.join(f'{rate:g}' for rate in RATES)}.",
)  # fmt: skip

# %% [markdown]
# Where the first three statements hold, a student with drawn weights becomes as *good* as its teacher, and does not become its teacher. Accuracy shows nothing of it: networks that are right equally often are wrong in different places. Is it time that is missing, or examples? The last two statements say what each does. On the examples that were shown, time brings the two together: the optimiser gets there, slowly. On new ones that is of little use, since very many networks do what the teacher does on the examples, and the student has found another one of them. More examples rule some of these out. Neither does in this time what a good beginning does.
#
# So *agreement* and *accuracy* are two questions, and which of them is asked should be said ({doc}`14_what_is_transferred` has them for the students of the study).
#
# ### On photographs
#
# The same for two ResNet-8s on CIFAR-100 is the plan *fidelity*: soft targets alone, on the photographs that the teacher had learned from, for a third of its epochs. <!-- by definition -->

# %% tags=["hide-input"]
fidelity = results("fidelity")
BEGUN = {f"share-{share:g}": f"λ = {share:g}" for share in SHARES}
fidelity_done = fidelity.complete(list(BEGUN))
ON_ERRORS = replace(
    AGREEMENT,
    name="agreement with the teacher where it errs",
    of="agreement_where_teacher_wrong",
)
if fidelity_done:
    nearer_here = above("share-0.9", "share-0", fidelity, AGREEMENT, names=BEGUN)
    worse_here = below("share-0", "share-0.9", fidelity, ACCURACY, names=BEGUN)
    half_here = above("share-0.5", "share-0", fidelity, AGREEMENT, names=BEGUN)
    begins_there, ends_there = np.mean(
        [[r["epochs"]["loss"][e] for e in (0, -1)] for r in fidelity.arm("share-1")], 0
    )
    display(
        arms_shown(
            fidelity,
            BEGUN,
            {
                "agreement, %": AGREEMENT,
                "where the teacher errs, %": ON_ERRORS,
                "accuracy, %": ACCURACY,
            },
            label="fidelity",
            caption=f"A ResNet-8 taught by a ResNet-8 ({conditions(fidelity)}): each seed, mean and 95 % interval; each beginning has its own rate. At λ = 1 the student begins as the teacher; its loss is {begins_there:.3f} on average over the first epoch, and {ends_there:.3f} over the last.",
        ),
        nearer_here,
        above("share-0.9", "share-0", fidelity, ON_ERRORS, names=BEGUN),
        half_here,
        worse_here,
        source_note(fidelity.all(BEGUN)),
    )
else:
    display(
        not_yet_run("a ResNet-8 that begins at five shares of another", fidelity.command)
    )  # fmt: skip

# %% [markdown]
# This is no second answer to the first question. Where the fourth statement holds, drawn weights are not as good by then, and what such a student does not share with its teacher is in part what it does not know; the errors that both make say more. <!-- by definition --> What the photographs add is the line, of which the third statement has the middle. And a student that begins *as* its teacher does not stay there: while it learns, its batch norms take mean and variance from the batch, the teacher's from their running means, so that two copies do not say the same, and the loss does not begin at zero. <!-- by definition -->

# %% tags=["hide-input"]
holds = nearer.holds and nearer_shown.holds and as_good.holds
photographs = (
    [f"On CIFAR-100 ({conditions(fidelity)}):", nearer_here, worse_here]
    if fidelity_done
    else []
)
verdict(
    "C2", "depends" if holds else "not decided",
    [
        "At this scale it is so." if holds else "",
        nearer,
        as_good,
        f"The student at λ = {max(shares):g} agrees on {unlearned[max(shares)]:.1%} before any training, and on {np.mean(agreed[NEAREST]):.1%} after it. Students and teachers are networks of two hidden layers of 64, on {task.num_classes} Gaussian classes; {N}; a rate for each beginning, {epochs} epochs.",
        *photographs,
    ],
    condition="bound to a scale" if holds else None,
    parameters=("shares", "epochs", "longer", "more", "seeds"),
)  # fmt: skip

# %% [markdown]
# ## Cut out of its teacher
#
# A student of another size cannot begin at its teacher's weights, but it can begin at *some* of them. Leave out layers of a language model and train what remains: that is how several families of small models are made {cite}`muralidharan2024compact`. The teacher here is that of {doc}`17_distilling_a_small_language_model`, and its students keep its table of tokens and two of its blocks. ({doc}`22_somebody_elses_model` does the same with a sentence encoder.)

# %%
teacher = book_language_teacher(data, device=device)
blocks, width = len(teacher.blocks), teacher.embedding.embedding_dim
kept = {
    "drawn": (),
    "outer": (0, blocks - 1),
    "first": (0, 1),
    "last": (blocks - 2, blocks - 1),
}


def half(which):
    """A student of two blocks: with drawn weights, or those of its teacher's."""
    torch.manual_seed(seeds[0])
    student = GPT(data.num_classes, width=width, layers=2, heads=teacher.heads)
    if which:
        begin_from(student, teacher, blocks=which)
    student.fused = True
    return student


# %% [markdown]
# Each reads the same text once, with the teacher beside it. This is the very beginning of a training: it shows what a beginning is worth before much has been learned.

# %% tags=["hide-input"]
assert blocks != 4 or kept == KEPT  # as in the recorded plan
teacher.fused = True
probe, held_out = data.validation.spread(4), data.test.spread(24)
halves = {name: half(which) for name, which in kept.items()}
turns = min(4, read_blocks // 8)
how = Recipe(
    epochs=turns, epoch_examples=min(read_blocks // turns, len(data.train)), batch_size=4,
    optimizer="adamw", learning_rate=2e-3, weight_decay=0.1, schedule="cosine",
    warmup_epochs=0.5, augment=False, max_gradient_norm=1.0, seed=seeds[0],
)  # fmt: skip


def bits(models, split):
    found = measure_tokens(list(models.values()), split, device=device)
    return {n: m["bits_per_byte"] for n, m in zip(models, found, strict=True)}


untrained = bits({"teacher": teacher, **halves}, held_out)
at_first = bits({"teacher": teacher, **halves}, probe)
told = fit_together(
    [
        Learner(student, 0.1 * CrossEntropy() + 0.9 * ForwardKL(), how)
        for student in halves.values()
    ],
    train=data.train,
    teacher=teacher,
    validation=probe,
    device=device,
)
curves = {
    name: [at_first[name], *(entry["validation"]["bits_per_byte"] for entry in history)]
    for name, history in zip(halves, told, strict=True)
}
trained = bits(halves, held_out)

# %% tags=["hide-input"]
BEGINNINGS = {
    "drawn": "drawn weights",
    "outer": "first and last block",
    "first": "first two blocks",
    "last": "last two blocks",
}
HUES = dict(zip(kept, (ORANGE, BLUE, GREEN, PURPLE), strict=True))
tokens = np.arange(turns + 1) * how.epoch_examples * data.train.context
figure, axis = plt.subplots(figsize=(6.4, 3.2))
for name, curve in curves.items():
    axis.plot(tokens / 1e3, curve, "o-", color=HUES[name], markersize=3, label=BEGINNINGS[name])  # fmt: skip
axis.axhline(at_first["teacher"], color=VERMILION, linestyle="--", linewidth=1, label="teacher")  # fmt: skip
axis.set(xlabel="tokens read (thousands)", ylabel="bits per byte, validation")
axis.legend(fontsize="x-small")
ON_TEST = Quantity("bits per byte of the test text", better="lower", digits=2)
both = {
    f"{BEGINNINGS[name]}{when}": values[name]
    for when, values in ((", untrained", untrained), ("", trained))
    for name in kept
}
display(
    show(
        figure,
        label="halves",
        caption=f"Halves of a language model of {blocks} blocks, of width {width}, on {len(probe)} blocks of validation text; one run each. On {len(held_out)} blocks of test text: "
        + "; ".join(
            f"{BEGINNINGS[name]} {untrained[name]:.2f} untrained and {trained[name]:.2f} after {tokens[-1]:,} tokens"
            for name in kept
        )
        + f"; the teacher {untrained['teacher']:.2f}.",
        alt="Four falling curves of bits per byte over tokens read, one a beginning, and a dashed line at the teacher's.",
    ),
    below(
        BEGINNINGS["first"],
        [BEGINNINGS["drawn"], f"{BEGINNINGS['first']}, untrained"],
        both,
        ON_TEST,
    ),
)

# %% [markdown]
# One run a beginning, so that an order of the three cuts is not shown here. What the figure does show is how a cut behaves. No block was trained to read what now arrives: untrained, such a model may be a poor one or a usable one, by which blocks are left. What each block knows is still there, and training goes on from it.
#
# Whether that lasts is a question of length. A million tokens, a rate for each arm, labels alone or the teacher beside them, and three seeds are the plan *cut*.

# %% tags=["hide-input"]
cut = results("cut")
KINDS = {"alone": "from labels alone", "kd": "with the teacher"}
CUTS = {
    f"{name}-{kind}": f"{BEGINNINGS[name]} {said}"
    for name in KEPT
    for kind, said in KINDS.items()
}
cut_done = cut.complete(list(CUTS))
if cut_done:
    of_teacher = cut.arm(cut.specs[0].arm)[0]["test"]["bits_per_byte"]
BITS = QUANTITIES["bits_per_byte"]
if cut_done:
    display(
        arms_shown(
            cut,
            CUTS,
            {"bits per byte of the test books": BITS},
            label="cut",
            caption=f"Students of two blocks after a million tokens ({conditions(cut)}): each seed, mean and 95 % interval; each arm has its own rate. Further left is better.",
            colours={arm: HUES[arm.split("-")[0]] for arm in CUTS},
        ),
        *(
            below(
                f"{name}-{kind}",
                f"drawn-{kind}",
                cut,
                BITS,
                names=CUTS,
            )
            for name in KEPT
            if name != "drawn"
            for kind in KINDS
        ),
        source_note(cut.all(CUTS)),
    )
else:
    display(
        not_yet_run("halves of a language model after a million tokens", cut.command)
    )  # fmt: skip

# %% tags=["hide-input"]
if cut_done:
    price = 1 + multiply_adds(teacher) / (3 * multiply_adds(halves["outer"]))
    reached = {
        arm: np.mean([r["epochs"]["validation.bits_per_byte"] for r in cut.arm(arm)], 0)
        for arm in CUTS
    }
    goal = reached["drawn-kd"][-1]
    first = int(np.argmax(reached["outer-alone"] <= goal)) + 1
    cheaper = below("outer-kd", ["drawn-alone", "drawn-kd"], cut, BITS, names=CUTS)
    cheaper_alone = below(
        "outer-alone", ["drawn-alone", "drawn-kd"], cut, BITS, names=CUTS
    )
    adds = below("outer-kd", "outer-alone", cut, BITS, names=CUTS)
    display(cheaper, cheaper_alone, adds)
    holds = cheaper.holds and cheaper_alone.holds
    judged = verdict(
        "C5", "depends" if holds else "not decided",
        [
            "At this scale it is so, of a teacher that is there already." if holds else "",
            cheaper,
            adds,
            f"The validation text is as well predicted by the first and last block, trained on labels alone, after {first} of {len(reached['outer-alone'])} epochs as by drawn weights with the teacher after all of them; a token with the teacher costs {price:.2f} tokens alone. {conditions(cut)}.",
        ],
        data=data, condition="bound to a scale" if holds else None,
    )  # fmt: skip
    display(judged)

# %% tags=["hide-input"]
findings.show(
    f"A student of its teacher's own architecture, with drawn weights, ends at {np.mean(correct[DRAWN]):.1%} accuracy, its teacher has {np.mean(teachers_correct):.1%}; they agree on {np.mean(agreed[DRAWN]):.1%} of new examples, and on {np.mean(agreed[PLENTY]):.1%} after {longer} times as long a training on {more} times the examples. One that begins at {max(shares):g} of the teacher's weights agrees on {unlearned[max(shares)]:.0%} of them before any training, and on {np.mean(agreed[NEAREST]):.1%} after it ({N}).",
    f"Two blocks of a language model of {blocks} need {untrained['first']:.2f} bits per byte as they are cut out (the first two), and {trained['first']:.2f} after {tokens[-1]:,} tokens; drawn weights {trained['drawn']:.2f} after as many, the whole teacher {untrained['teacher']:.2f} ({len(held_out)} blocks of test text, n = 1).",
    *(
        [
            f"A ResNet-8 that is taught by a ResNet-8 on CIFAR-100 ({conditions(fidelity)}) agrees with it on {fidelity.mean('share-0', 'agreement').mean:.1%} of the test photographs from drawn weights, on {fidelity.mean('share-0.5', 'agreement').mean:.1%} from half of the teacher's, and on {fidelity.mean('share-1', 'agreement').mean:.1%} if it begins as the teacher (n = {len(fidelity.values('share-0', 'agreement'))} seeds)."
        ]
        if fidelity_done
        else []
    ),
    *(
        [
            f"After a million tokens, with a rate of its own for each, first and last block taught by the teacher need {cut.mean('outer-kd', BITS.of).mean:.2f} bits per byte of all test books, drawn weights taught by it {cut.mean('drawn-kd', BITS.of).mean:.2f}, and the teacher itself {of_teacher:.2f} (n = {len(cut.values('outer-kd', BITS.of))} seeds)."
        ]
        if cut_done
        else []
    ),
)

# %% [markdown]
# ## Limits
#
# - **Small networks.** Two hidden layers and Gaussian classes for the first question; what large networks do is cited, and *fidelity* is the step between.
# - **The line is one way to be near.** A student may be near its teacher as a function and far from it in weights, since hidden units may be permuted.
# - **The cut is judged after very few tokens** in the figure that this page makes itself, with one run each.
# - **Whole blocks are cut.** Width, heads and the table of tokens stay, and no importance was measured.
# - **The teacher's training is not counted.** Who has no teacher yet pays for it first.
#
# ## To take away
#
# **Formulae.** $\theta=\lambda\,\theta_T+(1-\lambda)\,\theta_S$; agreement is the share of examples on which both have the same first choice.
#
# **What to set.** `begin_from(student, teacher, share)` for one architecture, `begin_from(student, teacher, blocks=(0, 3))` to keep blocks.
#
# **What to watch for.** Say whether you want a *good* student or a *faithful* one; only the second is measured by agreement. If it has to be faithful, begin near.
#
# ## Exercises
#
# ```{exercise}
# :label: ex-permuted-teacher
#
# Permute the hidden units of the first teacher, in both layers, and let a student begin at $\lambda=0.9$ of the permuted weights. Does it agree with the *unpermuted* teacher? And a student at $\lambda=0.5$ between the two copies of the teacher, before any training?
# ```
#
# ````{solution} ex-permuted-teacher
# :class: dropdown
#
# The permuted network is the same function, so a student near it is near the teacher. Between two copies of one function lies another function: straight lines between weights do not stay among networks that do the same.
#
# ```python
# import copy
#
# teacher = teachers[seeds[0]]
# permuted = copy.deepcopy(teacher)
# torch.manual_seed(0)
# for one, after in ((0, 2), (2, 4)):
#     order = torch.randperm(64)
#     for p in (permuted[one].weight, permuted[one].bias):
#         p.data = p.data[order]
#     permuted[after].weight.data = permuted[after].weight.data[:, order]
# print(f"the same function: {agree(permuted, teacher, test):.3f}")
# print(f"at 0.9 of it: {agree(near(permuted, 0.9, 0), teacher, test):.3f}")
# between = copy.deepcopy(teacher)
# begin_from(between, permuted, 0.5)
# print(f"half-way: {agree(between, teacher, test):.3f}")
# ```
# ````
#
# ```{exercise}
# :label: ex-two-students
#
# Two students with drawn weights learn from one teacher. Do they agree with each other more than with the teacher, or less? What would you expect if both were the teacher plus an error of their own?
# ```
#
# ````{solution} ex-two-students
# :class: dropdown
#
# With errors of their own, independent and rare, the two differ from each other about twice as often as from the teacher. <!-- by definition --> If they share errors, such as those that come from the examples, they differ less.
#
# ```python
# teacher = teachers[seeds[0]]
# one = students[seeds[0]][DRAWN]
# (two,) = learn(teacher, 0.0, [rates[0.0]], seeds[0] + 1).values()
# for name, pair in {"teacher": (one, teacher), "each other": (one, two)}.items():
#     print(f"{name}: {1 - agree(*pair, test):.1%} apart")
# ```
# ````
