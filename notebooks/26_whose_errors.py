# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Whose errors?
#
# A student that agrees with its teacher agrees with its errors, too. Mason-Williams and co-workers find that, where anything is passed on, it is the errors above all {cite}`masonwilliams2025functional`. <!-- by definition --> That sounds like a reproach, and may be arithmetic: where the teacher is right, the labels say the same, and a student without a teacher learns it as well.
#
# **At the end you will know** how to tell what was taken over from what any student would know; three ways of counting it, and why “mostly errors” is true by one and false by another; and what it has to do with the number of examples.
#
# *Needs: one CPU core and a minute.*

# %% tags=["parameters"]
profile = "cpu"  # or "gpu"
teacher_examples: int = 1000  # that the teacher has learned from
sizes: list[int] = [125, 500, 1000, 2000, 8000]  # examples that students learn from
shown: int = 40000  # examples that a training shows, the same ones again and again
seeds: list[int] = [
    0,
    1,
    2,
]  # of teachers' and students' weights and order; the examples are the same for all

# %% tags=["hide-input"]
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import display

from kdlab.data import KnownPosterior
from kdlab.figures import BLUE, GREEN, ORANGE, PURPLE, VERMILION, show, table, use_style
from kdlab.figures.dots import runs_along
from kdlab.models import mlp
from kdlab.objectives import CrossEntropy, ForwardKL, cross_entropy, forward_kl
from kdlab.study import results
from kdlab.study.display import (
    Findings,
    conditions,
    device_for,
    not_yet_run,
    source_note,
    verdict,
)
from kdlab.study.evidence import QUANTITIES, Quantity
from kdlab.study.grown import EPOCHS, LENGTHS_ASKED, arm_name
from kdlab.study.parameters import require
from kdlab.study.statements import above, below
from kdlab.study.statistics import summary
from kdlab.training import Learner, Recipe, fit, fit_together, predict

use_style()
device_for(profile)
require(
    len(sizes) > 1 and sorted(set(sizes)) == sizes and sizes[0] >= 20,
    "sizes are two or more numbers of examples, rising, of 20 or more.",
)
require(
    teacher_examples >= 100 and shown >= sizes[-1],
    "teacher_examples must be 100 or more, and shown at least the largest of sizes.",
)

# %% tags=["hide-input"]
findings = Findings()

# %% [markdown]
# ## What is taken over
#
# Agreement by itself does not say it: two students of one kind agree on much that neither has from the other. What was *taken over* is the agreement of a distilled student with its teacher, less that of a student that never met it and learned from the labels of the same examples. Split it by whether the teacher is right, which it is on the share $a_T$ of examples:
#
# $$\Delta = a_T\,\Delta_{\text{right}}+(1-a_T)\,\Delta_{\text{wrong}} .$$
#
# The two can be compared in three ways.
#
# - **By number.** The second term over the sum is the *share of errors* among what was taken over. <!-- by definition --> One half is the line between mostly right and mostly wrong.
# - **By rate.** $\Delta_{\text{wrong}}$ against $\Delta_{\text{right}}$: for a hundred examples of each kind, how many more are shared? Where the two are equal the share of errors is $1-a_T$, since so many errors there are.
# - **Of what was left.** With $A$ for the agreement of the student alone, only $1-A$ was left to take over, and $\Delta/(1-A)$ is the part of it that was taken. A student that knows nearly all that the teacher is right about cannot take over much of it: the rate alone would call that a preference for errors.
#
# Where the teacher is right its first choice *is* the label. So the more labels a student has, the more of that it knows without a teacher, and the less is left to be taken over there. Where the teacher errs there are two cases. Some of its errors are those that the best possible guess makes as well: there labels teach the same choice. <!-- by definition --> The others are its own, and nobody else says them. In this task the two can be told apart.

# %%
task = KnownPosterior.draw()
generator = torch.Generator().manual_seed(1)
of_teacher, validation, plenty, test = (
    task.sample(n, generator=generator)
    for n in (teacher_examples, 2000, sizes[-1], 8000)
)
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
OBJECTIVES = {"alone": CrossEntropy(), "distilled": ForwardKL()}
best_guess = task.posterior_logits(test.inputs).argmax(-1)


def recipe(examples, rate, seed, times=1):
    return Recipe(
        epochs=max(times * shown // examples, 1), batch_size=min(100, examples // 2),
        optimizer="adam", learning_rate=rate, schedule="cosine", weight_decay=0.0,
        augment=False, seed=seed,
    )  # fmt: skip


def taught(seed, rate):
    """A teacher that learned from its own examples."""
    torch.manual_seed(seed)
    teacher = mlp(16, task.num_classes, width=64)
    fit(
        teacher,
        CrossEntropy(),
        train=of_teacher,
        recipe=recipe(teacher_examples, rate, seed),
    )
    return teacher


def learn(teacher, name, examples, rates, seed):
    """Students of half the width, alone or distilled, one a rate; their logits are asked for later."""
    learners = []
    for rate in rates:
        torch.manual_seed(1000 + seed)
        student = mlp(16, task.num_classes, width=32)
        how = recipe(examples, rate, seed)
        learners.append(Learner(student, 1.0 * OBJECTIVES[name], how))
    fit_together(learners, train=plenty[:examples], teacher=teacher)
    return [learner.student for learner in learners]


# %% [markdown]
# The examples are the twenty Gaussian classes of {doc}`01_what_a_teacher_knows`; those of students are not those of the teacher. A student has labels alone, or the teacher alone. Teacher and students have a learning rate each, students one for each number of examples, chosen on a validation split with a seed of its own.

# %% tags=["hide-input"]
tuning_seed = max(seeds) + 100


def best_of(tried, loss):
    """The rate whose predictions on the validation split have the smallest loss."""
    losses = [loss(predict(model, validation)).item() for model in tried]
    return RATES[int(np.argmin(losses))]


def by_labels(logits):
    return cross_entropy(logits, validation.labels)


rates = {"teacher": best_of([taught(tuning_seed, r) for r in RATES], by_labels)}
tuner = taught(tuning_seed, rates["teacher"])
told = predict(tuner, validation)
for size in sizes:
    for name in OBJECTIVES:
        tried = learn(tuner, name, size, RATES, tuning_seed)
        loss = by_labels if name == "alone" else lambda z: forward_kl(z, told)
        rates[name, size] = best_of(tried, loss)

PARTS = ("right", "wrong as the best guess", "wrong by itself")
weight, shared, correct = {}, {}, {}
for seed in seeds:
    teacher = taught(seed, rates["teacher"])
    choice = predict(teacher, test).argmax(-1)
    is_right, is_best = choice == test.labels, choice == best_guess
    parts = dict(
        zip(PARTS, (is_right, ~is_right & is_best, ~is_right & ~is_best), strict=True)
    )
    weight[seed] = {part: of.float().mean().item() for part, of in parts.items()}
    for size in sizes:
        for name in OBJECTIVES:
            (student,) = learn(teacher, name, size, [rates[name, size]], seed)
            own = predict(student, test).argmax(-1)
            correct[name, size, seed] = (own == test.labels).float().mean().item()
            for part, of in parts.items():
                shared[name, size, seed, part] = (
                    (own == choice)[of].float().mean().item()
                )


def taken(seed, size, part):
    """Agreement of the distilled student, less that of the one alone, over a part of the examples."""
    return shared["distilled", size, seed, part] - shared["alone", size, seed, part]


def by_size(what):
    return {size: [what(seed, size) for seed in seeds] for size in sizes}


def in_number(seed, size, *parts):
    """What was taken over on these parts, as a share of all examples."""
    return sum(weight[seed][part] * taken(seed, size, part) for part in parts)


def over_errors(seed, size):
    """Taken over where the teacher is wrong, on average over all its errors."""
    return in_number(seed, size, *PARTS[1:]) / sum(weight[seed][p] for p in PARTS[1:])


def share_of(*parts):
    """Of what was taken over in number, the share of these parts."""
    return lambda seed, size: (
        in_number(seed, size, *parts) / in_number(seed, size, *PARTS)
    )


def left(seed, size, *parts):
    """Of the agreement that the student alone did not have over some parts, how much was taken over."""
    room = sum(weight[seed][p] * (1 - shared["alone", size, seed, p]) for p in parts)
    return in_number(seed, size, *parts) / room


right, wrong = (
    by_size(lambda seed, size: taken(seed, size, "right")),
    by_size(over_errors),
)
left_right, left_wrong = (
    by_size(lambda seed, size, parts=parts: left(seed, size, *parts))
    for parts in (PARTS[:1], PARTS[1:])
)
share, share_own = by_size(share_of(*PARTS[1:])), by_size(share_of(PARTS[2]))
a_T, own_errors = (
    np.array([weight[seed][part] for seed in seeds]) for part in (PARTS[0], PARTS[2])
)
accuracies = {
    name: by_size(lambda seed, size, name=name: correct[name, size, seed])
    for name in OBJECTIVES
}

# %% tags=["hide-input"]
N = f"n = {len(seeds)} seed{'s' * (len(seeds) > 1)}"
figure, panels = plt.subplots(2, 2, figsize=(8.0, 6.0), layout="constrained")
panels = panels.flatten()

runs_along(panels[0], share, colour=GREEN, label="errors", factor=100)
runs_along(panels[0], share_own, colour=PURPLE, label="errors of its own", factor=100)
panels[0].axhline(50, color="grey", linestyle=":", linewidth=1)
for equal, hue in ((1 - a_T, GREEN), (own_errors, PURPLE)):
    panels[0].axhline(100 * equal.mean(), color=hue, linestyle="--", linewidth=1)
for panel, of_right, of_wrong in (
    (panels[1], right, wrong),
    (panels[2], left_right, left_wrong),
):
    runs_along(panel, of_right, colour=BLUE, label="teacher right", factor=100)
    runs_along(panel, of_wrong, colour=VERMILION, label="teacher wrong", factor=100)
for name, hue in (("alone", ORANGE), ("distilled", BLUE)):
    runs_along(panels[3], accuracies[name], colour=hue, label=name, factor=100)
panels[3].axhline(100 * a_T.mean(), color="grey", linestyle=":", linewidth=1)
for panel, title, what in zip(
    panels,
    ("by number", "by rate", "of what was left", "and is it any good?"),
    (
        "errors among what was taken over (%)",
        "agreement taken over (points)",
        "part of it that was taken over (%)",
        "accuracy (%)",
    ),
    strict=True,
):
    panel.set_title(title)
    panel.legend(fontsize="x-small")
    panel.axvline(teacher_examples, color="grey", linewidth=0.8)
    panel.set(xscale="log", xlabel="thousands of examples", ylabel=what)
    panel.set_xticks(sizes, [f"{size / 1000:.3g}" for size in sizes])
    panel.minorticks_off()
few, many = sizes[0], sizes[-1]
show(
    figure,
    label="errors",
    caption=f"What a distilled student shares with its teacher beyond a student of the labels alone, on {len(test):,} new examples, by how many both learned from; each run and the mean ({N}). Vertical line: the teacher's own examples. Dotted: one half, and the teachers' accuracy, {a_T.mean():.1%}. Dashed: the shares at equal rates, {1 - a_T.mean():.1%} of errors and {own_errors.mean():.1%} of errors that the best guess would not make.",
    alt=f"Four panels by examples, {few:,} and {many:,} at their ends. Errors among what was taken over: {100 * np.mean(share[few]):.0f} and {100 * np.mean(share[many]):.0f} %. Taken over where the teacher is right: {100 * np.mean(right[few]):.0f} and {100 * np.mean(right[many]):.0f} points; where it is wrong: {100 * np.mean(wrong[few]):.0f} and {100 * np.mean(wrong[many]):.0f}. Of what was left: {100 * np.mean(left_right[few]):.0f} and {100 * np.mean(left_right[many]):.0f} % where it is right, {100 * np.mean(left_wrong[few]):.0f} and {100 * np.mean(left_wrong[many]):.0f} % where it is wrong. Accuracy alone {100 * np.mean(accuracies['alone'][few]):.0f} and {100 * np.mean(accuracies['alone'][many]):.0f} %, distilled {100 * np.mean(accuracies['distilled'][few]):.0f} and {100 * np.mean(accuracies['distilled'][many]):.0f} %.",
)

# %% tags=["hide-input"]
SHARE = Quantity("share of errors among what was taken over", "points", 100, 0, level_unit="%")  # fmt: skip
NAMES = {size: f"with {size:,} examples" for size in sizes}
shares = {NAMES[size]: share[size] for size in sizes} | {"one half": [0.5] * len(seeds)}
mostly_right = below(NAMES[few], "one half", shares, SHARE)
mostly_errors = above(NAMES[many], "one half", shares, SHARE)


WRONG, RIGHT = "where the teacher is wrong", "where it is right"


def by_rate(size):
    """What was taken over at a number of examples, by whether the teacher is right."""
    of = Quantity(f"agreement taken over {NAMES[size]}", "points", 100, 1)
    return {WRONG: wrong[size], RIGHT: right[size]}, of


def of_the_left(size):
    """The same as a part of what the student alone did not share."""
    of = Quantity(f"part taken over {NAMES[size]}, of what was left", "points", 100, 1)
    return {WRONG: left_wrong[size], RIGHT: left_right[size]}, of


rate_few, rate_many = (above(WRONG, RIGHT, *by_rate(size)) for size in (few, many))
left_few = below(WRONG, RIGHT, *of_the_left(few))
left_many = above(WRONG, RIGHT, *of_the_left(many))
ACCURACY = QUANTITIES["accuracy"]
ahead, behind = (
    {name: accuracies[name][size] for name in OBJECTIVES} for size in (few, many)
)
helps = above(
    "distilled", "alone", ahead, replace(ACCURACY, name=f"accuracy {NAMES[few]}")
)
hurts = below(
    "distilled", "alone", behind, replace(ACCURACY, name=f"accuracy {NAMES[many]}")
)
counted = (mostly_right, mostly_errors, rate_few, rate_many, left_few, left_many)
display(*counted, helps, hurts)

# %% tags=["hide-input"]
chosen_rates = "; ".join(
    f"with {size:,} examples {rates['alone', size]:g} and {rates['distilled', size]:g}"
    for size in sizes
)
table(
    ["examples", "errors, %", "where right, points", "where wrong, points", "of what was left where right, %", "where wrong, %", "accuracy alone, %", "distilled, %"],
    [
        [
            f"{size:,}",
            *(
                (100 * summary(values)).bracketed(spec)
                for values, spec in (
                    (share[size], ".0f"),
                    (right[size], "+.1f"),
                    (wrong[size], "+.1f"),
                    (left_right[size], ".0f"),
                    (left_wrong[size], ".0f"),
                    (accuracies["alone"][size], ".1f"),
                    (accuracies["distilled"][size], ".1f"),
                )
            ),
        ]
        for size in sizes
    ],
    caption=f"The same; means with 95 % intervals, {N}. Rates were chosen among {', '.join(f'{rate:g}' for rate in RATES)}: the teacher's is {rates['teacher']:g}; alone and distilled, {chosen_rates}.",
)  # fmt: skip

# %% [markdown]
# Where the statements hold, there are three answers. *By number*, what was taken over is mostly right where the student has few labels, and mostly wrong where it has many: the labels have taught it the rest. *By rate*, errors lead at both ends. *Of what was left* it turns round: with few labels the student takes over what is right sooner than what is wrong, and what made errors lead by rate was that of the right there was little left to take. <!-- by definition --> With many labels errors lead here, too. The errors that are the teacher's own show the same without the noise of the task: see the other curve of the first panel.
#
# And a student alone passes the distilled one between two of these numbers of examples, as in the counted world of {doc}`24_when_does_distilling_pay`.
#
# So a share of errors is no property of a method. It depends on how much the student knew without its teacher, on how often the teacher errs, on how many of its errors are those of chance, and on which of the three is meant.
#
# ### On photographs
#
# The plan *grown* measures agreement where the teacher is right and where it is wrong. Its students see the photographs from which the teacher learned.

# %% tags=["hide-input"]
study = results("grown")
asked = [arm_name(method, EPOCHS) for method in LENGTHS_ASKED]
done = study.complete(asked, at_least=3)
if done:

    def beyond(arm, where):
        """What an arm shares beyond labels alone: in points, and of what those left."""
        measure = f"agreement_where_teacher_{where}"
        more = study.differences(arm, asked[0], measure)
        alone = study.values(asked[0], measure)
        of_left = [more[seed] / (1 - alone[seed]) for seed in more]
        return (
            (100 * summary(more.values())).bracketed("+.1f"),
            (100 * summary(of_left)).bracketed(".0f"),
        )

    display(
        table(
            [
                "",
                "where right, points",
                "of what was left, %",
                "where wrong, points",
                "of what was left, %",
            ],
            [[arm, *beyond(arm, "right"), *beyond(arm, "wrong")] for arm in asked[1:]],
            caption=f"Agreement with the teacher beyond that of labels alone ({conditions(study)}), with 95 % intervals.",
        ),
        source_note(study.all(asked)),
    )
else:
    display(
        not_yet_run("five methods with rates of their own, to the end", study.command)
    )

# %% tags=["hide-input"]
holds = all(statement.holds for statement in counted)
verdict(
    "C7", "depends" if holds else "not decided",
    [
        "By rate it is so; by number, and of what was left to take over, it takes a student with many labels." if holds else "",
        *counted,
        f"Students are networks of two hidden layers of 32 on {task.num_classes} Gaussian classes, the teacher has learned from {teacher_examples:,} others; {N}; rates of their own.",
    ],
    condition="under a premise" if holds else None,
    parameters=("teacher_examples", "sizes", "shown", "seeds"),
)  # fmt: skip

# %% tags=["hide-input"]
passed = next((size for size in sizes if np.mean(accuracies["alone"][size]) > np.mean(accuracies["distilled"][size])), None)  # fmt: skip
findings.show(
    f"Of what a distilled student shares with its teacher beyond a student of the labels alone, {np.mean(share[few]):.0%} are errors with {few:,} examples, and {np.mean(share[many]):.0%} with {many:,} ({N}).",
    f"Of what was left to take over it took {np.mean(left_right[few]):.0%} where the teacher is right and {np.mean(left_wrong[few]):.0%} where it is wrong with {few:,} examples, and {np.mean(left_right[many]):.0%} and {np.mean(left_wrong[many]):.0%} with {many:,}.",
    f"With {many:,} examples the student alone is right on {np.mean(accuracies['alone'][many]):.1%}, its teacher on {a_T.mean():.1%}, and the distilled student on {np.mean(accuracies['distilled'][many]):.1%}"
    + (
        f"; of the sizes tried, {passed:,} is the first with which the student alone is ahead, and the teacher had {teacher_examples:,}."
        if passed
        else "."
    ),
)

# %% [markdown]
# ## Limits
#
# - **Net.** What was taken over is a difference of two agreements; a distilled student may also have lost what one alone shares.
# - **First choices alone.** Two models that rank one class first may believe very different things.
# - **The teacher alone.** Distilled students have no labels here; with both, a student can be told where its teacher errs.
# - **One task, one set of examples.** Intervals are over initial weights and the order of examples.
# - **Another teacher, another share.** With the true posterior as teacher, errors are those of chance: the first exercise.
#
# ## To take away
#
# **Formulae.** $\Delta=a_T\,\Delta_{\text{right}}+(1-a_T)\,\Delta_{\text{wrong}}$, each against a student of the labels alone; $\Delta/(1-A)$ of what that one left.
#
# **What to set.** `measure(student_logits, labels, teacher_logits)` gives agreement where the teacher is right and where it is wrong.
#
# **What to watch for.** Agreement is high where both are right. Compare with a student that never met the teacher, before calling anything transferred.
#
# ## Exercises
#
# ```{exercise}
# :label: ex-best-teacher
#
# The best possible teacher gives the true posterior, and is wrong where chance is. Is what a student takes over from it mostly errors? What is such an “error” worth?
# ```
#
# ````{solution} ex-best-teacher
# :class: dropdown
#
# Where the best guess is wrong, nothing else should have been said: to share such errors is what a good student does. <!-- by definition --> The share alone does not tell these errors from those of a bad teacher; accuracy does.
#
# ```python
# from kdlab.data import ExactTeacher
# from kdlab.training import accuracy
# from kdlab.training.measures import measure
#
# best = ExactTeacher(task)
# said = predict(best, test)
# a = accuracy(said, test.labels)
# for size in (few, many):
#     found = {
#         name: measure(predict(*learn(best, name, size, [rates[name, size]], seeds[0]), test), test.labels, said)
#         for name in OBJECTIVES
#     }
#     gained = {
#         where: part * (found["distilled"][f"agreement_where_teacher_{where}"] - found["alone"][f"agreement_where_teacher_{where}"])
#         for where, part in (("right", a), ("wrong", 1 - a))
#     }
#     print(f"{size}: {gained['wrong'] / sum(gained.values()):.0%} errors; accuracy", *(f"{m['accuracy']:.1%}" for m in found.values()))
# ```
# ````
#
# ```{exercise}
# :label: ex-told-by-labels
#
# Give the distilled student labels as well, half of the weight each, with the largest number of examples. Does it keep its teacher's errors?
# ```
#
# ````{solution} ex-told-by-labels
# :class: dropdown
#
# Labels say where the teacher errs, as often as such an example comes.
#
# ```python
# from kdlab.training.measures import measure
#
# teacher = taught(seeds[0], rates["teacher"])
# said = predict(teacher, test)
# OBJECTIVES["both"] = 0.5 * CrossEntropy() + 0.5 * ForwardKL()
# for name in OBJECTIVES:
#     rate = rates.get((name, many), rates["distilled", many])
#     found = measure(predict(*learn(teacher, name, many, [rate], seeds[0]), test), test.labels, said)
#     print(f"{name}: shares {found['agreement_where_teacher_wrong']:.1%} of the errors, right on {found['accuracy']:.1%}")
# ```
# ````
