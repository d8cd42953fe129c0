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
# **At the end you will know** how to tell what was taken over from what any student would know; when that is mostly errors, and when it is mostly what is right; and what it has to do with the number of examples.
#
# *Needs: one CPU core and a minute.*

# %% tags=["parameters"]
profile = "cpu"  # or "gpu"
teacher_examples: int = 1000  # that the teacher has learned from
sizes: list[int] = [125, 500, 2000, 8000]  # examples that students learn from
shown: int = 40000  # examples that a training shows, the same ones again and again
seeds: list[int] = [0, 1, 2]  # of teachers and students

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import display

from kdlab.data import KnownPosterior
from kdlab.figures import BLUE, GREEN, ORANGE, VERMILION, show, table, use_style
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
from kdlab.study.evidence import Quantity
from kdlab.study.grown import EPOCHS, LENGTHS_ASKED, arm_name
from kdlab.study.parameters import require
from kdlab.study.statements import above, crosses
from kdlab.study.statistics import summary
from kdlab.training import Learner, Recipe, accuracy, fit, fit_together, predict
from kdlab.training.measures import measure

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
# The second term over the sum is the **share of errors** among what was taken over. <!-- by definition -->
#
# Where the teacher is right its first choice *is* the label. So the more labels a student has, the more of that it knows without a teacher, and the less is left to be taken over there. Where the teacher is wrong nobody else says so. If this is all, the share of errors has to rise with the number of examples.

# %%
task = KnownPosterior.draw()
generator = torch.Generator().manual_seed(1)
of_teacher, validation, plenty, test = (
    task.sample(n, generator=generator)
    for n in (teacher_examples, 2000, sizes[-1], 8000)
)
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
OBJECTIVES = {"alone": CrossEntropy(), "distilled": ForwardKL()}


def recipe(examples, rate, seed, times=1):
    return Recipe(
        epochs=max(times * shown // examples, 1), batch_size=min(100, examples // 2),
        optimizer="adam", learning_rate=rate, schedule="cosine", weight_decay=0.0,
        augment=False, seed=seed,
    )  # fmt: skip


def taught(seed):
    """A teacher that learned from its own examples."""
    torch.manual_seed(seed)
    teacher = mlp(16, task.num_classes, width=64)
    how = recipe(teacher_examples, 3e-3, seed, 2)
    fit(teacher, CrossEntropy(), train=of_teacher, recipe=how)
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
# The examples are the twenty Gaussian classes of {doc}`01_what_a_teacher_knows`; those of students are not those of the teacher. A student has labels alone, or the teacher alone, and a learning rate chosen for it and for the number of examples, on a validation split, with a seed of its own.

# %% tags=["hide-input"]
tuning_seed = max(seeds) + 100
tuner = taught(tuning_seed)
said = predict(tuner, validation)
rates = {}
for size in sizes:
    for name in OBJECTIVES:
        tried = [
            predict(s, validation) for s in learn(tuner, name, size, RATES, tuning_seed)
        ]
        scores = [
            cross_entropy(z, validation.labels)
            if name == "alone"
            else forward_kl(z, said)
            for z in tried
        ]
        rates[name, size] = RATES[int(np.argmin([score.item() for score in scores]))]
measured = {}
teachers_right = {}
for seed in seeds:
    teacher = taught(seed)
    said = predict(teacher, test)
    teachers_right[seed] = accuracy(said, test.labels)
    for size in sizes:
        for name in OBJECTIVES:
            (student,) = learn(teacher, name, size, [rates[name, size]], seed)
            measured[seed, size, name] = measure(
                predict(student, test), test.labels, said
            )


def taken(seed, size, where):
    """Agreement of the distilled student, less that of the one alone, where the teacher is right or wrong."""
    return float(
        np.subtract(
            *(
                measured[seed, size, name][f"agreement_where_teacher_{where}"]
                for name in ("distilled", "alone")
            )
        )
    )


right, wrong = (
    {size: [taken(seed, size, where) for seed in seeds] for size in sizes}
    for where in ("right", "wrong")
)
a_T = np.array([teachers_right[seed] for seed in seeds])
share = {
    size: (1 - a_T) * wrong[size] / ((1 - a_T) * wrong[size] + a_T * right[size])
    for size in sizes
}
correct = {
    name: {size: [measured[seed, size, name]["accuracy"] for seed in seeds] for size in sizes}
    for name in OBJECTIVES
}  # fmt: skip

# %% tags=["hide-input"]
N = f"n = {len(seeds)} seed{'s' * (len(seeds) > 1)}"
figure, panels = plt.subplots(1, 3, figsize=(9.6, 3.0))


def curve(panel, values, colour, label, factor=100):
    means = [factor * np.mean(values[size]) for size in sizes]
    panel.plot(sizes, means, color=colour, label=label)
    for size in sizes:
        panel.plot(
            [size] * len(seeds),
            factor * np.array(values[size]),
            "o",
            color=colour,
            alpha=0.5,
            markersize=4,
            label="_run",
        )


curve(panels[0], right, BLUE, "teacher right")
curve(panels[0], wrong, VERMILION, "teacher wrong")
curve(panels[1], share, GREEN, "share of errors")
panels[1].axhline(50, color="grey", linestyle=":", linewidth=1)
for name, hue in (("alone", ORANGE), ("distilled", BLUE)):
    curve(panels[2], correct[name], hue, name)
panels[2].axhline(100 * a_T.mean(), color="grey", linestyle=":", linewidth=1)
for panel, what in zip(
    panels,
    ("agreement taken over (points)", "errors among it (%)", "accuracy (%)"),
    strict=True,
):
    panel.axvline(teacher_examples, color="grey", linewidth=0.8)
    panel.set(xscale="log", xlabel="examples", ylabel=what)
    panel.set_xticks(sizes, [f"{size:,}" for size in sizes])
    panel.minorticks_off()
panels[0].legend(fontsize="x-small")
panels[2].legend(fontsize="x-small")
few, many = sizes[0], sizes[-1]
show(
    figure,
    label="errors",
    caption=f"What a distilled student shares with its teacher beyond a student of the labels alone, on {len(test):,} new examples, by how many both learned from; each run and the mean ({N}). Vertical line: the teacher's own examples. Dotted: one half, and the teachers' accuracy, {a_T.mean():.1%}.",
    alt=f"Three panels by examples. Taken over where the teacher is right: {100 * np.mean(right[few]):.0f} points with {few:,} examples, {100 * np.mean(right[many]):.0f} with {many:,}; where it is wrong: {100 * np.mean(wrong[few]):.0f} and {100 * np.mean(wrong[many]):.0f}. Errors among it: {100 * np.mean(share[few]):.0f} and {100 * np.mean(share[many]):.0f} %. Accuracy alone {100 * np.mean(correct['alone'][few]):.0f} and {100 * np.mean(correct['alone'][many]):.0f} %, distilled {100 * np.mean(correct['distilled'][few]):.0f} and {100 * np.mean(correct['distilled'][many]):.0f} %.",
)

# %% tags=["hide-input"]
SHARE = Quantity("share of errors among what was taken over", "points", 100, 0, level_unit="%")  # fmt: skip
NAMES = {size: f"with {size:,} examples" for size in sizes}
by_size = {NAMES[size]: list(share[size]) for size in sizes}
mostly_right = above(
    "one half", NAMES[few], {"one half": [0.5] * len(seeds)} | by_size, SHARE
)
mostly_errors = above(
    NAMES[many], "one half", {"one half": [0.5] * len(seeds)} | by_size, SHARE
)
LEAD = Quantity("lead of the distilled student in accuracy", "points", 100, 1)
lead = {
    "mean over seeds": (
        np.array(sizes) / teacher_examples,
        [np.mean(np.subtract(correct["distilled"][n], correct["alone"][n])) for n in sizes],
    )
}  # fmt: skip
ends = crosses(lead, LEAD, "times the teacher's examples")
display(mostly_right, mostly_errors, ends)

# %% tags=["hide-input"]
table(
    ["examples", "rates, alone and distilled", "where right, points", "where wrong, points", "errors among it, %", "accuracy alone, %", "distilled, %"],
    [
        [
            f"{size:,}",
            f"{rates['alone', size]:g}, {rates['distilled', size]:g}",
            *(
                (100 * summary(values)).bracketed(spec)
                for values, spec in (
                    (right[size], "+.1f"),
                    (wrong[size], "+.1f"),
                    (share[size], ".0f"),
                    (correct["alone"][size], ".1f"),
                    (correct["distilled"][size], ".1f"),
                )
            ),
        ]
        for size in sizes
    ],
    caption=f"The same; means with 95 % intervals, {N}. Rates were chosen among {', '.join(f'{rate:g}' for rate in RATES)}.",
)  # fmt: skip

# %% [markdown]
# Where the statements hold, the claim is right of a student that has many labels, and wrong of one that has few. And the student alone overtakes the distilled one about where it has as many examples as the teacher had, as in the counted world of {doc}`24_when_does_distilling_pay`: from there on what a teacher adds is what the labels would have corrected.
#
# So a share of errors is no property of a method. It says how much the student knew without its teacher.
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
        """What an arm shares beyond labels alone, by seed."""
        found = study.differences(
            arm, asked[0], f"agreement_where_teacher_{where}"
        ).values()
        return (100 * summary(found)).bracketed("+.1f")

    display(
        table(
            ["", "where right, points", "where wrong, points"],
            [[arm, beyond(arm, "right"), beyond(arm, "wrong")] for arm in asked[1:]],
            caption=f"Agreement with the teacher beyond that of labels alone ({conditions(study)}), with 95 % intervals.",
        ),
        source_note(study.all(asked)),
    )
else:
    display(
        not_yet_run("five methods with rates of their own, to the end", study.command)
    )

# %% tags=["hide-input"]
holds = mostly_right.holds and mostly_errors.holds
verdict(
    "C7", "depends" if holds else "not decided",
    ("It depends on how much the student knows without its teacher. " if holds else "")
    + f"{mostly_right} {mostly_errors} Students are networks of two hidden layers of 32 on {task.num_classes} Gaussian classes, the teacher has learned from {teacher_examples:,} others; {N}; a rate for each student and number of examples.",
    condition="under a premise" if holds else None,
    parameters=("teacher_examples", "sizes", "shown", "seeds"),
)  # fmt: skip

# %% tags=["hide-input"]
findings.show(
    f"Of what a distilled student shares with its teacher beyond a student of the labels alone, {np.mean(share[few]):.0%} are errors with {few:,} examples, and {np.mean(share[many]):.0%} with {many:,}; the teacher had {teacher_examples:,} ({N}).",
    ends,
    f"With {many:,} examples the student alone is right on {np.mean(correct['alone'][many]):.1%}, its teacher on {a_T.mean():.1%}, and the distilled student on {np.mean(correct['distilled'][many]):.1%}.",
)

# %% [markdown]
# ## Limits
#
# - **First choices alone.** Two models that rank one class first may believe very different things.
# - **The teacher alone.** Distilled students have no labels here; with both, a student can be told where its teacher errs.
# - **Another teacher, another share.** With the true posterior as teacher, errors are those of chance: the first exercise.
#
# ## To take away
#
# **Formulae.** $\Delta=a_T\,\Delta_{\text{right}}+(1-a_T)\,\Delta_{\text{wrong}}$, each against a student of the labels alone.
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
# teacher = taught(seeds[0])
# said = predict(teacher, test)
# OBJECTIVES["both"] = 0.5 * CrossEntropy() + 0.5 * ForwardKL()
# for name in OBJECTIVES:
#     rate = rates.get((name, many), rates["distilled", many])
#     found = measure(predict(*learn(teacher, name, many, [rate], seeds[0]), test), test.labels, said)
#     print(f"{name}: shares {found['agreement_where_teacher_wrong']:.1%} of the errors, right on {found['accuracy']:.1%}")
# ```
# ````
