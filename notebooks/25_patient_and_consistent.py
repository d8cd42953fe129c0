# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Patient and consistent
#
# A student sees a picture through crops, flips and noise, another one each time. What does its teacher see? The same crop, one of its own, or the picture as it is: code for distillation does all three, and often does not say which. Beyer and co-workers hold that it matters, and that with the right answer one should mix pictures and train for very long: “a good teacher is patient and consistent” {cite}`beyer2022knowledge`. <!-- by definition -->
#
# **At the end you will know** what a student learns from a teacher that sees something else; what mixing adds, and when; and how the three act on each other.
#
# *Needs: one CPU core and a minute. What takes hours is recorded.*

# %% tags=["parameters"]
profile = "cpu"  # or "gpu"
steepness: float = 3.0  # of the teacher on a line
shaking: float = 0.3  # σ, of the noise that a view adds
few: int = 200  # examples that students are shown
lengths: list[int] = [20, 80, 320]  # epochs
seeds: list[int] = [
    0,
    1,
    2,
    3,
    4,
]  # of students, and of the noise and mixtures that they see

# %% tags=["hide-input"]
import math
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import display

from kdlab.data import Examples, KnownPosterior
from kdlab.figures import BLUE, GREEN, ORANGE, PURPLE, sentence, show, table, use_style
from kdlab.figures.dots import runs_along
from kdlab.models import mlp
from kdlab.objectives import CrossEntropy, ForwardKL, forward_kl
from kdlab.study import results
from kdlab.study.display import (
    Findings,
    conditions,
    device_for,
    not_yet_run,
    source_note,
    verdict,
)
from kdlab.study.evidence import QUANTITIES, Quantity, evidence
from kdlab.study.parameters import require
from kdlab.study.statements import above, below, undecided
from kdlab.study.statistics import summary
from kdlab.study.surprises import FEW, PATIENCE, SHOWN
from kdlab.training import (
    Learner,
    Recipe,
    accuracy,
    agreement,
    fit,
    fit_together,
    predict,
)

use_style()
device_for(profile)
require(shaking > 0, "shaking must be above 0: else all views are one.")
require(steepness > 0, "steepness must be above 0.")
require(few >= 20, "few must be 20 or more.")
require(
    len(lengths) > 1 and sorted(set(lengths)) == lengths and lengths[0] >= 1,
    "lengths are two or more, rising, of 1 epoch or more.",
)

# %% tags=["hide-input"]
findings = Findings()

# %% [markdown]
# ## What a student learns from another view
#
# The student sees a view $v$ of an example and is told what the teacher says of a view $v'$ of the same example. If $v'$ is drawn anew, the student cannot know it. What is the best that it can say? By the expected forward KL it is the mean of what it is told ({doc}`07_divergences`):
#
# $$q^*(v)=\mathbb E\bigl[\,p(v')\mid v\,\bigr].$$
#
# With one view for both, $q^*(v)=p(v)$: the teacher, as a function. With a view of its own, it is the teacher *blurred* by the views. <!-- by definition --> How much, can be worked out on a line. Let the teacher be $p(x)=\Phi(a\,x)$, the examples spread evenly, and views add noise of deviation $\sigma$. Given the student's view, the teacher's lies about it with variance $2\sigma^2$, once $\sigma^2$ from $v$ back to the example and once from there to $v'$. A normal distribution function that is blurred by a normal distribution is one again, less steep:
#
# $$q^*(v)=\Phi\!\left(\frac{a\,v}{\sqrt{1+2a^2\sigma^2}}\right).$$


# %%
def phi(x):
    return 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def blurred(v, variance):
    """What is said on average of a view whose own view lies about v with this variance."""
    return phi(steepness * v / math.sqrt(1 + steepness**2 * variance))


drawn_noise = np.random.default_rng(0)
width = 20 * (shaking + 1 / steepness)  # of the line: far beyond the step
example = drawn_noise.uniform(-width / 2, width / 2, 400_000)
of_student, of_teacher = (
    example + shaking * drawn_noise.normal(size=len(example)) for _ in range(2)
)
told = phi(steepness * of_teacher)
at = np.linspace(-1, 1, 9) * 2 * (shaking + 1 / steepness)
half = np.diff(at)[0] / 8
counted = np.array([told[np.abs(of_student - v) < half].mean() for v in at])
off = np.abs(counted - blurred(at, 2 * shaking**2)).max()
assert off < 0.03

# %% tags=["hide-input"]
line = np.linspace(at[0], at[-1], 200)
figure, axis = plt.subplots(figsize=(6.4, 2.8))
axis.plot(
    line, phi(steepness * line), color=BLUE, label="one view for both: the teacher"
)
axis.plot(line, blurred(line, shaking**2), color=GREEN, label="teacher sees the example as it is")  # fmt: skip
axis.plot(line, blurred(line, 2 * shaking**2), color=ORANGE, label="teacher has a view of its own")  # fmt: skip
axis.plot(at, counted, "o", color=ORANGE, label="counted")
axis.set(xlabel="what the student sees, $v$", ylabel="what it learns to say")
axis.legend(fontsize="x-small")
less_steep = math.sqrt(1 + 2 * steepness**2 * shaking**2)
show(
    figure,
    label="blurred",
    caption=f"What the best student says, by what its teacher sees ($a={steepness:g}$, $\\sigma={shaking:g}$): with views of its own a teacher is passed on {less_steep:.2f} times less steep. Dots: means of what the teacher says where the student's view lies near, of {len(example):,} drawn pairs.",
    alt=f"Three rising curves from 0 to 1: the steepest where both see one view, less steep where the teacher sees the example as it is, least steep where it has a view of its own; dots lie on the last one, to {off:.3f}.",
)

# %% [markdown]
# So it is where examples lie densely. The blurred teacher has its step at the same place, and first choices may agree where probabilities do not. Where examples are few, a view tells *which* example it is of, and the mean is another: of all views of that one example. The student is then told one thing for each example, again and again, while the teacher that sees the same view answers a new question each time.
#
# ## Four ways to be shown
#
# The twenty Gaussian classes of {doc}`01_what_a_teacher_knows` again, with the teacher of {doc}`23_where_a_student_begins`. The students are half as wide, have no labels, and see few examples, of those from which the teacher learned, each time under new noise. <!-- by definition --> The teacher sees the same noisy example, or a noisy one of its own; and both see examples, or mixtures of two, $\lambda x_i+(1-\lambda)x_j$ with a uniform share {cite}`zhang2018mixup`. <!-- by definition --> The mixture is one for both, whatever noise there is.


# %%
class Shaken(Examples):
    """Examples under noise, drawn anew each time they are shown."""

    def augmented(self, inputs, generator):
        return inputs + shaking * torch.randn(inputs.shape, generator=generator)


task = KnownPosterior.draw()
generator = torch.Generator().manual_seed(1)
train, validation, test = (
    task.sample(n, generator=generator) for n in (2000, 2000, 4000)
)
shown = Shaken(train.inputs[:few], train.labels[:few])
plain = Recipe(
    epochs=60, epoch_examples=len(train), batch_size=128, optimizer="adam",
    learning_rate=3e-3, schedule="cosine", weight_decay=0.0, augment=False,
)  # fmt: skip
torch.manual_seed(0)
teacher = mlp(16, task.num_classes, width=64)
fit(teacher, CrossEntropy(), train=train, recipe=plain)

WAYS = {
    "same view": {"teacher_view": "same"},
    "own view": {"teacher_view": "own"},
    "same view, mixed": {"teacher_view": "same", "mixup": True},
    "own view, mixed": {"teacher_view": "own", "mixup": True},
}


def learn(way, epochs, rates, seed):
    """Students that are shown examples in this way, one a rate."""
    how = replace(
        plain, epochs=epochs, epoch_examples=few, batch_size=min(100, few // 2),
        augment=True, seed=seed, **WAYS[way],
    )  # fmt: skip
    learners = []
    for rate in rates:
        torch.manual_seed(1000 + seed)
        student = mlp(16, task.num_classes, width=32)
        recipe = replace(how, learning_rate=rate)
        learners.append(Learner(student, 1.0 * ForwardKL(), recipe))
    fit_together(learners, train=shown, teacher=teacher)
    return [learner.student for learner in learners]


# %% tags=["hide-input"]
RATES = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
said, said_before = predict(teacher, test), predict(teacher, validation)
tuning_seed = max(seeds) + 100
rates = {}
agreed, apart, correct = ({way: {} for way in WAYS} for _ in range(3))
for way in WAYS:
    for epochs in lengths:
        tried = [predict(s, validation) for s in learn(way, epochs, RATES, tuning_seed)]
        divergences = [forward_kl(z, said_before).item() for z in tried]
        rate = rates[way, epochs] = RATES[int(np.argmin(divergences))]
        logits = [predict(*learn(way, epochs, [rate], seed), test) for seed in seeds]
        agreed[way][epochs] = [agreement(z, said) for z in logits]
        apart[way][epochs] = [forward_kl(z, said).item() for z in logits]
        correct[way][epochs] = [accuracy(z, test.labels) for z in logits]

# %% [markdown]
# How much is the blur itself? The teacher's own answers, averaged over views at distance $\sqrt2\,\sigma$, with nothing left to learn:

# %% tags=["hide-input"]
looked = torch.Generator().manual_seed(2)
mean_answer = sum(
    predict(teacher, replace(test, inputs=test.inputs + math.sqrt(2) * shaking * torch.randn(test.inputs.shape, generator=looked))).softmax(-1)
    for _ in range(64)
).log()  # fmt: skip
blur_alone = agreement(mean_answer, said)
sentence(
    f"The teacher blurred by its views agrees with itself on {blur_alone:.1%} of new examples."
)

# %% tags=["hide-input"]
N = f"n = {len(seeds)} seed{'s' * (len(seeds) > 1)}"
HUES = dict(zip(WAYS, (BLUE, ORANGE, GREEN, PURPLE), strict=True))
LINES = {way: "--" if "mixed" in way else "-" for way in WAYS}


def along(panels, measures, lengths):
    """Axes of panels, a measure each, by the lengths of trainings."""
    for panel, what in zip(panels, measures, strict=True):
        panel.set(xscale="log", xlabel="epochs", ylabel=what)
        panel.set_xticks(lengths, [str(e) for e in lengths])
        panel.minorticks_off()


def in_words(what, values, factor=1.0, decimals=0):
    """Means along the lengths in words, for whoever does not see them."""
    ways = (
        f"{way} {', '.join(f'{factor * np.mean(runs):.{decimals}f}' for runs in of.values())}"
        for way, of in values.items()
    )
    after = ", ".join(map(str, next(iter(values.values()))))
    return f"{what} after {after} epochs: {'; '.join(ways)}."


figure, panels = plt.subplots(1, 2, figsize=(8.4, 3.2))
for way, hue in HUES.items():
    for panel, values, factor in zip(panels, (agreed, apart), (100, 1), strict=True):
        runs_along(
            panel, values[way], colour=hue, label=way, factor=factor, style=LINES[way]
        )
along(panels, ("agreement with the teacher (%)", "KL from the teacher (nats)"), lengths)
panels[1].set_yscale("log")
panels[0].axhline(100 * blur_alone, color="grey", linestyle=":", linewidth=1)
panels[0].legend(fontsize="x-small")
first, last = lengths[0], lengths[-1]
show(
    figure,
    label="patience",
    caption=f"Students on {len(test):,} new examples, by how long they learned from {few} and what they were shown; each run and the mean ({N}); a learning rate for each way and length. Dotted: the teacher, blurred.",
    alt=f"Two panels of curves by epochs. {in_words('Agreement in per cent', agreed, 100)} {in_words('KL in nats', apart, decimals=2)} A dotted line at {100 * blur_alone:.0f} % is the blurred teacher.",
)

# %% tags=["hide-input"]
AGREEMENT, ACCURACY = QUANTITIES["agreement"], QUANTITIES["accuracy"]


def after(epochs, values):
    """The four ways after so many epochs, as a sentence names them."""
    return {f"{way} ({epochs} epochs)": values[way][epochs] for way in WAYS}


long = after(last, agreed)
same, own, same_mixed, own_mixed = long
consistent = above(same, own, long, AGREEMENT)
consistent_mixed = above(same_mixed, own_mixed, long, AGREEMENT)
mixing_helps = above(same_mixed, same, long, AGREEMENT)


def added(what, without, with_it, lengths=(first, last), values=agreed):
    """What one way adds to another, by length and seed, with a quantity for it."""
    of = Quantity(f"what {what} adds to the agreement", "points", 100, 2)
    return {
        f"after {e} epochs": list(np.subtract(values[with_it][e], values[without][e]))
        for e in lengths
    }, of


at_first, at_last = f"after {first} epochs", f"after {last} epochs"
of_view, of = added("the same view", "own view", "same view")
view_is_late = above(at_last, at_first, of_view, of)
still_rising = above(
    same_mixed,
    f"same view, mixed ({lengths[-2]} epochs)",
    after(last, agreed) | after(lengths[-2], agreed),
    AGREEMENT,
)
unmixed, of = added("the same view", "own view", "same view", (last,))
mixed, _ = added("the same view", "own view, mixed", "same view, mixed", (last,))
replaces = below(
    "with mixing",
    "without",
    {"with mixing": mixed[at_last], "without": unmixed[at_last]},
    of,
)
display(
    consistent, consistent_mixed, mixing_helps,
    view_is_late, still_rising, replaces,
)  # fmt: skip

# %% tags=["hide-input"]
table(
    ["", "rates"]
    + [f"{what}, {e} epochs" for what in ("agreement, %", "accuracy, %") for e in (first, last)],
    [
        [way, f"{rates[way, first]:g}, {rates[way, last]:g}"]
        + [
            (100 * summary(values[way][e])).bracketed(".1f")
            for values in (agreed, correct)
            for e in (first, last)
        ]
        for way in WAYS
    ],
    caption=f"The same with accuracy; means with 95 % intervals, {N}. The teacher has {accuracy(said, test.labels):.1%}. Rates were chosen for each way and length among {', '.join(f'{rate:g}' for rate in RATES)}, on a validation split with a seed of its own.",
)  # fmt: skip

# %% [markdown]
# Where these statements hold, *patience* brings out *consistency* in this small world: the teacher's view counts for more after a long training. So a table at one length says of the view what its length makes of it. Mixing and the same view are no team here: each makes new questions for the teacher, the one between examples, the other by new noise, and each makes up for the other in part. The blur alone, the dotted line, does not explain what a view of its own costs; perhaps it is that few examples have few answers. <!-- by definition -->
#
# ### On photographs
#
# The plan *patient* asks the same of CIFAR-100: a ResNet-8 of half the width learns a ResNet-8's soft targets on five thousand photographs, from all of which the teacher had learned. <!-- by definition --> Rates are chosen by the accuracy of one seed at the first two lengths, and the third takes that of the second. <!-- by definition -->

# %% tags=["hide-input"]
study = results("patient")
CALLED = dict(zip(SHOWN, WAYS, strict=True))
asked = {
    f"{name}-{epochs}": f"{CALLED[name]} ({epochs} epochs)"
    for epochs in PATIENCE
    for name in SHOWN
}
done = study.complete(list(asked))
shortest, longest = PATIENCE[0], PATIENCE[-1]


def recorded(measure):
    """By way and length, the values of the seeds in order."""
    return {
        way: {
            e: [
                value
                for _, value in sorted(study.values(f"{name}-{e}", measure).items())
            ]
            for e in PATIENCE
        }
        for name, way in CALLED.items()
    }


def of_records(what, cases, lengths=PATIENCE):
    """What it adds to students of photographs, by case and length, as statements take it."""
    values = {}
    for case, ways in cases.items():
        found, of = added(what, *ways, lengths, as_taught)
        values |= {f"{case}, {when}": runs for when, runs in found.items()}
    return replace(evidence(values, of), source="records")


if done:
    as_taught, as_labelled = recorded("agreement"), recorded("accuracy")
    n = len(study.values(next(iter(asked))))
    figure, panels = plt.subplots(1, 2, figsize=(8.4, 3.2))
    for way, hue in HUES.items():
        for panel, values in zip(panels, (as_taught, as_labelled), strict=True):
            runs_along(
                panel, values[way], colour=hue, label=way, factor=100, style=LINES[way]
            )
    along(panels, ("agreement with the teacher (%)", "accuracy (%)"), PATIENCE)
    panels[0].legend(fontsize="x-small")
    drawn = show(
        figure,
        label="photographs",
        caption=f"The same of {FEW:,} photographs of CIFAR-100, on its test split, by how long the students learned ({conditions(study)}); each run and the mean, n = {n} seeds; a rate for each way.",
        alt=f"Two panels of curves by epochs. {in_words('Agreement in per cent', as_taught, 100)} {in_words('Accuracy in per cent', as_labelled, 100)}",
    )
    display(drawn, source_note(study.all(list(asked))))
else:
    display(not_yet_run("photographs in four ways, at three lengths", study.command))

# %% tags=["hide-input"]
if done:
    same_arm, own_arm, same_mixed_arm, own_mixed_arm = (
        f"{name}-{longest}" for name in SHOWN
    )
    begun, ended = f"after {shortest} epochs", f"after {longest} epochs"
    by_mixing = {
        "with mixing": ("own view, mixed", "same view, mixed"),
        "without": ("own view", "same view"),
    }
    by_view = {
        "with the same view": ("same view", "same view, mixed"),
        "with a view of its own": ("own view", "own view, mixed"),
    }
    gains = of_records("the same view", by_mixing)
    changes = of_records("mixing", by_view)
    of_photographs = (
        above(same_mixed_arm, own_mixed_arm, study, AGREEMENT, names=asked),
        undecided(same_arm, own_arm, 1, study, AGREEMENT, names=asked),
        above(f"with mixing, {ended}", f"without, {ended}", gains),
        undecided(f"with mixing, {ended}", f"with mixing, {begun}", 1, gains),
        below(same_mixed_arm, same_arm, study, AGREEMENT, names=asked),
        above(f"with the same view, {ended}", f"with the same view, {begun}", changes),
        above(
            same_mixed_arm, f"same-mixed-{PATIENCE[-2]}", study, AGREEMENT, names=asked
        ),
    )

    at_the_end = of_records("the same view", by_mixing, PATIENCE[-1:])
    of_two_arms = undecided(f"with mixing, {ended}", f"without, {ended}", 1, at_the_end)

    def rates_of(name):
        """The learning rates of an arm at the three lengths."""
        runs = (study.arm(f"{name}-{e}")[0] for e in PATIENCE)
        return ", ".join(f"{run['recipe']['learning_rate']:g}" for run in runs)

    as_numbers = table(
        ["", "rates", *(f"{what}, {e} epochs" for what in ("agreement, %", "accuracy, %") for e in (shortest, longest))],
        [
            [way, rates_of(name), *((100 * summary(values[way][e])).bracketed(".1f") for values in (as_taught, as_labelled) for e in (shortest, longest))]
            for name, way in CALLED.items()
        ],
        caption=f"The same as numbers: means with 95 % intervals over n = {n} seeds, each arm's by itself; rates of the three lengths; where a statement pools the variance over arms, it says so.",
    )  # fmt: skip
    display(*of_photographs, of_two_arms, as_numbers)

# %% tags=["hide-input"]
brought = []
if done:
    of_mixtures, of_others = (
        100 * gains.mean(f"{case}, {ended}").mean for case in by_mixing
    )
    taken = [
        -100 * changes.mean(f"with the same view, {when}").mean
        for when in (begun, ended)
    ]
    apart_from_none = " (not told apart from none)" if of_photographs[1].holds else ""
    brought = [
        f"On {FEW:,} photographs, after {longest} epochs, the same view adds {of_mixtures:.1f} points of agreement to students of mixtures, and {of_others:.1f} to others{apart_from_none}. With the same view mixing takes {taken[0]:.1f} points after {shortest} epochs, and {taken[1]:.1f} after {longest} (n = {n} seeds)."
    ]

# %% tags=["hide-input"]
parts = consistent, consistent_mixed, mixing_helps, still_rising
holds = all(s.holds for s in parts)
in_short = (
    "longer is better, the same view is better of mixtures, and mixing itself still takes agreement. "
    if done and all(s.holds for s in of_photographs)
    else ""
)
photographs = (
    [
        f"On {FEW:,} photographs of CIFAR-100 (rates of the longest training are those of the middle one): {in_short}".strip(),
        *of_photographs,
        "Whether mixing brings out the view, by the four arms of that sum alone, without the deviation of the rest:",
        of_two_arms,
    ]
    if done
    else []
)
verdict(
    "C3", "depends" if holds else "not decided",
    [
        "Of a few examples of Gaussian classes it is so, after a long training." if holds else "",
        *parts,
        f"Students are networks of two hidden layers of 32 on {task.num_classes} Gaussian classes; {N}; a rate for each way and length. Whether labels alone go on gaining is not asked.",
        *photographs,
    ],
    condition="bound to a scale" if holds else None,
    parameters=("shaking", "few", "lengths", "seeds"),
)  # fmt: skip

# %% tags=["hide-input"]
findings.show(
    f"Where examples lie densely, a teacher with a view of its own is learned as blurred by the views: on a line, {less_steep:.2f} times less steep at $a={steepness:g}$, $\\sigma={shaking:g}$.",
    f"Few examples and {last} epochs: students agree with the teacher on {np.mean(agreed['same view'][last]):.1%} of new examples, on {np.mean(agreed['own view'][last]):.1%} if it has a view of its own; with mixtures on {np.mean(agreed['same view, mixed'][last]):.1%} and {np.mean(agreed['own view, mixed'][last]):.1%} ({N}).",
    f"The same view adds {100 * np.mean(of_view[at_last]):.1f} points of agreement after {last} epochs and {100 * np.mean(of_view[at_first]):.1f} after {first} ({N}).",
    *brought,
)

# %% [markdown]
# ## Limits
#
# - **Noise is not a crop.** A crop leaves things out, and a teacher that sees another crop may see what the student cannot; here both see all of it.
# - **Why mixtures bring out the view of photographs is not asked.** By the differences of these two arms alone, the last statement, it is not decided that they do. A guess: two views of a mixture move a teacher more than two of a photograph. <!-- by definition -->
# - **Rates of photographs are chosen by accuracy, and agreement is told**; those of the longest training are not chosen at all, which may cost one way more than another. <!-- by definition -->
# - **Patience has no end here.** Beyer and co-workers' best student of ImageNet learned for 9,600 epochs, twelve billion views {cite}`beyer2022knowledge`; 320 epochs of five thousand photographs are 1.6 million. <!-- by definition -->
# - **One teacher and one set of examples.** Intervals are over students, and the noise and mixtures that they see.
# - **Few examples, a small teacher.** With many examples there is less between them that mixtures could ask.
# - **One objective**: the forward KL, at temperature one above and four of photographs, without labels. Labels say nothing of a mixture, unless they are mixed, too.
#
# ## To take away
#
# **Formulae.** $q^*(v)=\mathbb E[p(v')\mid v]$: one view for both gives $p$; a view of its own gives the blurred teacher.
#
# **What to set.** `Recipe(teacher_view="same")`, the default. `mixup=True` is to be tried beside none, at the length that is meant: of the few examples here and of photographs the answers differ. A cache of the teacher's answers keeps the views that they were made of ({doc}`18_memory_and_caches`).
#
# **What to watch for.** A teacher's answers that were stored once, without augmentation, beside a student that is augmented: that is the middle curve of the first figure.
#
# ## Exercises
#
# ```{exercise}
# :label: ex-as-it-is
#
# The teacher sees each example as it is, as one whose answers were stored once; the student sees it under noise. Between which of the two others should it lie? Train it.
# ```
#
# ````{solution} ex-as-it-is
# :class: dropdown
#
# The teacher's view lies about the student's with variance $\sigma^2$ in place of $2\sigma^2$: it is blurred, and less.
#
# ```python
# def shaken(x, generator):
#     return x + shaking * torch.randn(x.shape, generator=generator)
#
#
# torch.manual_seed(1000)
# student = mlp(16, task.num_classes, width=32)
# how = replace(plain, epochs=last, epoch_examples=few, batch_size=min(100, few // 2), learning_rate=rates["own view", last])
# fit(student, ForwardKL(), train=train[:few], teacher=teacher, recipe=how, student_view=shaken)
# print(f"agreement {agreement(predict(student, test), said):.1%}, KL {forward_kl(predict(student, test), said).item():.3f}")
# for way in ("same view", "own view"):
#     print(f"{way}: KL {np.mean(apart[way][last]):.3f}")
# ```
# ````
#
# ```{exercise}
# :label: ex-mixed-labels
#
# Why does `mixup=True` refuse an objective that asks for labels? What would you have to give it?
# ```
#
# ````{solution} ex-mixed-labels
# :class: dropdown
#
# The label of $x_i$ is not that of a mixture. Soft labels would be: $\lambda$ for the one class and $1-\lambda$ for the other, which is what mixup is without a teacher.
#
# ```python
# try:
#     fit(mlp(16, task.num_classes), CrossEntropy(), train=shown, recipe=replace(plain, mixup=True))
# except ValueError as error:
#     print(error)
# ```
# ````
