# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What a teacher knows
#
# A classifier that says *fox, 90 %* says more than *fox*. <!-- by definition --> It also gives probabilities to other
# animals. This chapter is about those: how a temperature makes them visible, whether they are true, and how much of
# them a
# student can learn.
#
# **At the end you will know** what temperature does to a distribution and why its entropy must rise; how far a trained
# teacher's probabilities of the *wrong* classes are from the truth, where the truth is known exactly; and what
# a real teacher believes about a photograph.
#
# *Needs: one CPU core and under a minute. Read {doc}`../book/notation` first if a symbol is new.*

# %% tags=["parameters"]
profile = "cpu"  # or "gpu"
temperatures: list[float] = [0.25, 0.5, 1.0, 2.0, 4.0, 16.0]  # of the softening
teacher_examples: int = 20_000  # labels that the known posterior's teacher learned from
sizes: list[int] = [128, 512, 2048]  # n: how many examples a student sees
lengths: list[int] = [
    50,
    200,
    800,
]  # steps of training, among which held-out labels choose
seeds: list[int] = [0, 1, 2, 3, 4]  # of the students' weights and examples
photographs: int = 2000  # validation images that the real teacher is shown

# %% tags=["hide-input"]
import itertools

import matplotlib.pyplot as plt
import numpy as np
import sympy as sp
import torch
from IPython.display import display

from kdlab.data import ExactTeacher, Examples, KnownPosterior, load_images
from kdlab.figures import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    heatmap,
    sentence,
    show,
    table,
    temperature_dial,
    use_style,
)
from kdlab.models import SideBySide, mlp
from kdlab.objectives import (
    CrossEntropy,
    PermutedSoftTargets,
    SoftTargets,
    cross_entropy,
    entropy,
    forward_kl,
    log_soften,
    soften,
)
from kdlab.study import book_teacher
from kdlab.study.display import Findings, data_note, device_for, verdict
from kdlab.study.evidence import Quantity
from kdlab.study.statements import above, below, leads
from kdlab.study.statistics import summary
from kdlab.theory import reference
from kdlab.theory.symbolic import T, k, l, log_softmax, partial, same, softmax, total, z
from kdlab.training import Recipe, accuracy, fit, predict

use_style()
device = device_for(profile)
temperatures, sizes, lengths = (
    sorted(set(values)) for values in (temperatures, sizes, lengths)
)
seeds = list(dict.fromkeys(seeds))

# %% tags=["hide-input"]
findings = Findings()

# %% [markdown]
# ## Turning the temperature
#
# Logits $z$ become probabilities by the softmax, with a temperature $T > 0$ that divides them first:
#
# $$q_i = \frac{e^{z_i/T}}{\sum_k e^{z_k/T}} .$$
#
# Below are the same five logits at several temperatures. `soften` is the function that every objective in `kdlab` calls.

# %%
logits = torch.tensor([6.0, 4.0, 3.0, 0.0, -2.0], dtype=torch.float64)
softened = torch.stack([soften(logits, temperature) for temperature in temperatures])

# %% tags=["hide-input"]
figure, panels = plt.subplots(
    1, len(temperatures), sharey=True, squeeze=False, figsize=(7.6, 2.5)
)
for panel, temperature, probabilities in zip(
    panels[0], temperatures, softened, strict=True
):
    panel.bar(
        range(5), probabilities, color=BLUE if temperature == 1 else ORANGE, width=0.8
    )
    panel.axhline(1 / 5, color="grey", linewidth=1, linestyle=":")
    panel.set(title=f"$T={temperature:g}$", xticks=range(5), ylim=(0, 1.02))
    panel.grid(visible=False)
panels[0, 0].set_ylabel("probability")
ends = " and ".join(
    f"{q[0]:.3g} at $T={T:g}$"
    for T, q in zip(temperatures, softened, strict=True)
    if T in (temperatures[0], temperatures[-1])
)
show(
    figure,
    label="five-logits",
    caption="One set of logits at rising temperatures; dotted: $1/N$. The largest of the five "
    f"probabilities is {ends}."
    + (" At $T=1$ (blue) it is the plain softmax." if 1 in temperatures else ""),
    alt=f"{len(temperatures)} bar charts of five probabilities, one for each temperature. The largest is {ends.replace('$', '')}; the bars are "
    "always in the same order.",
)

# %% [markdown]
# The figure shows three things, and all are exact. $T=1$ is the softmax itself. The order of the classes does not
# depend on $T$, since $e^{z/T}$ rises with $z$. And since $q_i/q_j = e^{(z_i-z_j)/T}$, every ratio tends to one as $T\to\infty$ (the uniform
# distribution) and to zero or infinity as $T\to0$ (the argmax, if it is unique). The folded cell checks them for
# random logits, and the limits at temperatures so extreme that float64 cannot tell the difference.

# %% tags=["hide-input"]
random_logits = 5 * torch.randn(
    1000, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
)
assert torch.allclose(
    soften(random_logits, 1.0), torch.softmax(random_logits, -1), atol=1e-15
)
for temperature in (0.1, 0.7, 3.0, 50.0):
    ranked = soften(random_logits, temperature).gather(-1, random_logits.argsort(-1))
    assert (ranked.diff(dim=-1) >= 0).all()
assert torch.allclose(soften(random_logits, 1e13), torch.full_like(random_logits, 0.01))
assert torch.equal(soften(random_logits, 1e-6).argmax(-1), random_logits.argmax(-1))
assert soften(random_logits, 1e-6).max(-1).values.min() > 1 - 1e-12

# %% [markdown]
# (printed-softmax)=
# ### A fraction copied from a web page
#
# In the plain text that we have of article A, the softmax reads $\sum_j\exp(z_j/T)$ first and $\exp(z_i/T)$ after it. So do its other
# fractions: $1/N_h$ reads “Nh1”. KaTeX, which typesets formulas on web pages, writes a fraction's denominator into the page before its numerator, and
# a copy of the page's text has that order. On the page it is the softmax. When a formula has lost its layout, two properties tell
# the right way up: the values of a softmax sum to one, and the largest logit gets the largest value. <!-- by definition -->

# %%
exponentials = torch.exp(logits)
upright, upside_down = (
    exponentials / exponentials.sum(),
    exponentials.sum() / exponentials,
)

# %% tags=["hide-input"]
table(
    ["class", "logit", "softmax", "upside down"],
    [
        [i, f"{logits[i]:.0f}", f"{upright[i]:.4f}", f"{upside_down[i]:.3g}"]
        for i in range(5)
    ]
    + [["sum", "", f"{upright.sum():.4f}", f"{upside_down.sum():.3g}"]],
    caption="The fraction both ways up, for the logits of the figure above.",
)

# %% tags=["hide-input"]
assert torch.allclose(upright, soften(logits)) and upright.argmax() == logits.argmax()
assert upside_down.argmax() == logits.argmin() and not np.isclose(upside_down.sum(), 1)
verdict(
    "A2", "verified",
    r"It is the softmax, $q_i = e^{z_i/T} / \sum_k e^{z_k/T}$: its values sum to one and keep the order of the logits. The copy of the page as plain text "
    r"puts the denominator first in this fraction as in every other one of the article, so that the order of the copy says nothing of the page.",
)  # fmt: skip

# %% [markdown]
# ## Why the entropy must rise
#
# "Softer" has a measure: the entropy $H = -\sum_i q_i \log q_i$, zero for certainty and $\log N$ for the uniform
# distribution. The figure shows that it rises with $T$; one derivative shows that it *must*. SymPy takes it
# for a symbolic number of classes: sums stay sums, and nothing is assumed but the definition of the softmax.

# %%
H = -total(softmax(z, l) * log_softmax(z, l), l)
dH_dT = partial(H, T)
sp.Eq(sp.Derivative(sp.Symbol("H"), T), dH_dT)

# %% [markdown]
# The two sums are $\sum_n q_n z_n^2$ and $(\sum_n q_n z_n)^2$: a mean of squares less a squared mean. The slope is a
# **variance**, so it cannot be negative:
#
# $$\frac{dH}{dT} = \frac{\operatorname{Var}_q(z)}{T^3} \;\ge\; 0 .$$

# %%
q = sp.IndexedBase("q", positive=True)
variance = total(q[k] * z[k] ** 2, k) - total(q[k] * z[k], k) ** 2
assert same(dH_dT, variance / T**3)
assert not same(dH_dT, variance / T**2)  # the check can fail

# %% [markdown]
# The same slope can be measured, by central differences of the entropy that `kdlab` computes:

# %% tags=["hide-input"]
grid = np.geomspace(0.2, 50, 60)
step = 1e-4
measured = [
    (entropy(logits, T_ * (1 + step)) - entropy(logits, T_ * (1 - step))).item()
    / (2 * step * T_)
    for T_ in grid
]
closed_form = np.array([reference.entropy_slope(logits.numpy(), T_) for T_ in grid])
worst = np.max(np.abs(measured - closed_form) / closed_form)
assert worst < 1e-6
sentence(
    f"The measured slope differs from the closed form by {worst:.0e} of it at most."
)

# %% tags=["hide-input"]
hot_slope = reference.effective_exponent(grid, closed_form)[-1]
figure, (left, right_panel) = plt.subplots(1, 2, figsize=(7.6, 3.0))
left.plot(grid, [entropy(logits, temperature) for temperature in grid], color=BLUE)
left.axhline(np.log(5), color="grey", linestyle=":", linewidth=1)
left.set(xscale="log", xlabel="temperature $T$", ylabel="entropy $H$ (nats)")
right_panel.plot(grid, closed_form, color=ORANGE, label=r"Var$_q(z)/T^3$")
right_panel.plot(grid[::4], measured[::4], "o", color=BLUE, label="measured")
right_panel.set(xscale="log", yscale="log", xlabel="temperature $T$", ylabel="$dH/dT$")
right_panel.legend()
show(
    figure,
    label="entropy",
    caption=r"Left: entropy rises to $\log N$ (dotted). Right: its slope, measured by finite differences (dots) and "
    rf"by the closed form (line). The slope is largest at $T={grid[closed_form.argmax()]:.1f}$; at $T={temperatures[-1]:g}$ the entropy has come to "
    rf"{entropy(logits, temperatures[-1]) / np.log(5):.0%} of $\log N$, and at the hot end the slope falls with exponent {hot_slope:.2f}.",
    alt="Two curves against temperature on a logarithmic axis. Left: entropy rises in an S shape from zero to log 5. "
    "Right: the slope rises to a peak and falls as a straight line; dots lie on the line.",
)

# %% tags=["hide-input"]
verdict(
    "A1", "proved",
    r"$T=1$ is the softmax; order is kept at every $T$; the limits are argmax and uniform. For every $N$, "
    rf"$dH/dT = \operatorname{{Var}}_q(z)/T^3 \ge 0$, and finite differences agree to a relative {worst:.0e}.",
)  # fmt: skip

# %% [markdown]
# ## Are the teacher's probabilities of wrong classes true?
#
# On photographs nobody knows the true $p(y \mid x)$, so nobody can say whether a teacher's small probabilities are
# knowledge or noise. On a task that we make ourselves, we know it. Classes are Gaussian clouds, grouped four to a
# superclass; Bayes' rule then gives the posterior exactly:
#
# $$p(y=c \mid x) = \operatorname{softmax}_c\!\left(-\frac{\lVert x-\mu_c\rVert^2}{2\sigma^2}\right).$$

# %%
task = KnownPosterior.draw(superclasses=5, classes_each=4, dimensions=16, seed=0)
generator = torch.Generator().manual_seed(1)
test = task.sample(5000, generator=generator)
truth = task.posterior_logits(test.inputs)

# %% tags=["hide-input"]
sentence(
    f"There are {task.num_classes} classes, and the Bayes classifier is right on "
    f"{accuracy(truth, test.labels):.1%} of the test examples."
)

# %% [markdown]
# The teacher is a small network trained with **hard labels only**. It was never told a
# probability.


# %% tags=["hide-input"]
def recipe(examples, steps, seed):
    """About the same number of steps however many examples there are."""
    epochs = max(1, steps // max(examples // 64, 1))
    adam = {"optimizer": "adam", "learning_rate": 3e-3, "weight_decay": 0.0}
    return Recipe(
        epochs=epochs,
        batch_size=64,
        schedule="cosine",
        augment=False,
        seed=seed,
        **adam,
    )


# %%
torch.manual_seed(0)
teacher = mlp(16, task.num_classes, width=128)
labelled = task.sample(teacher_examples, generator=generator)
teacher_steps = min(1000, max(200, teacher_examples // 20))
fit(
    teacher,
    CrossEntropy(),
    train=labelled,
    recipe=recipe(teacher_examples, teacher_steps, seed=0),
)
teacher_logits = predict(teacher, test)

# %% [markdown]
# Now remove the true class, rescale the rest to sum to one, and compare the teacher's *wrong-class*
# distribution with the exact one. Two guesses give the scale: a uniform one; and the mean of the exact distributions over all examples of the
# label, the best guess for someone who knows the label alone. <!-- by definition -->


# %%
def dark_distribution(logits, labels):
    """The distribution over the wrong classes alone."""
    hidden = logits.scatter(-1, labels.unsqueeze(-1), -1e4)
    return log_soften(hidden)


dark_teacher = dark_distribution(teacher_logits, test.labels)
dark_truth = dark_distribution(truth, test.labels)

# %% tags=["hide-input"]
more = task.sample(10_000, generator=torch.Generator().manual_seed(3))
dark_of_more = dark_distribution(task.posterior_logits(more.inputs), more.labels).exp()
of_label = torch.stack(
    [dark_of_more[more.labels == c].mean(0) for c in range(task.num_classes)]
)
guesses = {
    "a uniform guess": dark_distribution(torch.zeros_like(truth), test.labels),
    "one distribution a label": dark_distribution(
        of_label.log().clamp(min=-1e4)[test.labels], test.labels
    ),
    "the teacher": dark_teacher,
}
dark_error = {
    name: forward_kl(guess, dark_truth).item() for name, guess in guesses.items()
}
divergence = Quantity(
    "KL from the exact distribution over the wrong classes", "nats", better="lower"
)
leads("the teacher", dark_error, divergence)

# %% tags=["hide-input"]
some = torch.randperm(len(test.labels), generator=torch.Generator().manual_seed(2))[:60]
wrong = torch.ones(60, task.num_classes, dtype=torch.bool).scatter(
    -1, test.labels[some, None], False
)
excess = (dark_teacher - dark_truth).exp()
likely, unlikely = (
    dark_truth.exp() > 1e-2,
    (dark_truth.exp() < 1e-4) & (dark_truth.exp() > 1e-8),
)
over_truth = {
    where: excess[which][:: max(1, which.sum() // 100_000)].quantile(
        torch.tensor([0.25, 0.5, 0.75])
    )
    for where, which in (
        ("where that is above 1 %", likely),
        ("where it is between 1e-8 and 1e-4", unlikely),
    )
}
figure, axis = plt.subplots(figsize=(5.2, 4.4))
axis.plot([1e-12, 1], [1e-12, 1], color="grey", linewidth=1, linestyle=":")
axis.loglog(
    dark_truth[some][wrong].exp(),
    dark_teacher[some][wrong].exp(),
    ".",
    color=BLUE,
    alpha=0.35,
    markersize=4,
)
axis.set(
    xlim=(1e-8, 1.5),
    ylim=(1e-8, 1.5),
    xlabel="true probability among the wrong classes",
    ylabel="the teacher's",
)
show(
    figure,
    label="dark-truth",
    caption="Each dot is one wrong class of one example; on the dotted line the teacher agrees with Bayes' rule. "
    + "Ratio of the teacher's probability to the true one, median and quartiles: "
    + "; ".join(
        f"{v[1]:.2g} ({v[0]:.2g} to {v[2]:.2g}) {where}"
        for where, v in over_truth.items()
    )
    + ".",
    alt="Scatter plot on logarithmic axes of the teacher's probabilities against the true ones, with the diagonal.",
)

# %% [markdown]
# The teacher's probabilities of wrong classes are an estimate of the truth, made from labels alone. What is that worth to a student?
#
# ## Four teachers for one student
#
# A smaller student sees $n$ examples and learns from one of four sources: the hard labels; the teacher; the
# teacher with the probabilities of its wrong classes shuffled in every example (`PermutedSoftTargets`); and the exact
# posterior. Initial weights and examples are equal. With few examples a student can learn labels by heart, so
# each source stops at the best of the numbers of steps in `lengths`: the likelihood of held-out labels chooses. (The teacher itself has seen many labels: what it passes
# on includes what it learned from them.)
#
# We measure accuracy on fresh examples, and the Kullback–Leibler divergence from the *true* posterior, over the seeds. For the shuffled teacher only the accuracy is
# a test: on average over shuffles its wrong classes are uniform, so a distance from the truth is built in.

# %%
sources = {
    "hard labels": (CrossEntropy(), None),
    "teacher": (SoftTargets(temperature=1), teacher),
    "teacher, shuffled": (PermutedSoftTargets(temperature=1), teacher),
    "exact posterior": (SoftTargets(temperature=1), ExactTeacher(task)),
}
held_out = task.sample(2000, generator=torch.Generator().manual_seed(4))


def students(name, n, steps):
    """Students, one a seed, of about so many steps, trained at once."""
    objective, source = sources[name]
    networks, drawn = [], []
    for seed in seeds:
        torch.manual_seed(seed)
        networks.append(mlp(16, task.num_classes, width=64))
        drawn.append(
            task.sample(n, generator=torch.Generator().manual_seed(100 + seed))
        )
    beside = SideBySide(networks)
    train = Examples(
        *(
            torch.stack(parts, 1)
            for parts in zip(*((e.inputs, e.labels) for e in drawn), strict=True)
        )
    )
    fit(
        beside,
        len(seeds) * objective,
        train=train,
        teacher=source,
        recipe=recipe(n, steps, seed=0),
    )
    return beside


# %% tags=["hide-input"]
def logits_of(beside, split):
    with torch.no_grad():
        return beside(split.inputs[:, None].expand(-1, len(beside), -1)).unbind(1)


def taught(name, n):
    """Of students at the best of the lengths: which that is, their divergence from the truth and their accuracy, by seed."""
    trained = {steps: students(name, n, steps) for steps in lengths}
    likelihood = {
        steps: np.mean(
            [
                cross_entropy(z, held_out.labels).item()
                for z in logits_of(beside, held_out)
            ]
        )
        for steps, beside in trained.items()
    }
    best = min(likelihood, key=likelihood.get)
    logits = logits_of(trained[best], test)
    return (
        best,
        [forward_kl(z, truth).item() for z in logits],
        [accuracy(z, test.labels) for z in logits],
    )


length, error, right_answers = {}, {}, {}
for case in itertools.product(sources, sizes):
    length[case], error[case], right_answers[case] = taught(*case)

# %% tags=["hide-input"]
figure, (left, right_panel) = plt.subplots(1, 2, figsize=(7.6, 3.4))
colours = dict(zip(sources, (PURPLE, BLUE, ORANGE, GREEN), strict=True))
spread = "Mean and 95 % interval" if len(seeds) > 1 else "Values, without an interval,"
of_seeds = f"{len(seeds)} seeds" if len(seeds) > 1 else f"one seed ({seeds[0]})"
for shift, name in enumerate(sources):
    for panel, values in ((left, error), (right_panel, right_answers)):
        intervals = [summary(values[name, n]) for n in sizes]
        x = np.array(sizes) * 1.06 ** (shift - 1.5)
        means, half = np.array([(i.mean, i.high - i.mean) for i in intervals]).T
        panel.errorbar(
            x, means, half, color=colours[name], marker="o", capsize=3, label=name
        )
right_panel.axhline(
    accuracy(truth, test.labels), color="grey", linestyle=":", linewidth=1
)
left.set(
    xscale="log",
    yscale="log",
    xlabel="training examples $n$",
    ylabel="KL from the true posterior (nats)",
)
right_panel.set(xscale="log", xlabel="training examples $n$", ylabel="accuracy")
for panel in (left, right_panel):
    panel.set_xticks(sizes, [str(n) for n in sizes])
    panel.minorticks_off()
right_panel.legend(fontsize="small", loc="lower right")
show(
    figure,
    label="four-teachers",
    caption=f"{spread} over {of_seeds}, each source at its own length of training. Left: the distance from the true posterior; that of the shuffled teacher is "
    "built in. Right: accuracy. Dotted: the Bayes classifier.",
    alt="Two panels against the number of training examples, four lines each: divergence from the truth, and accuracy.",
)

# %% tags=["hide-input"]
display(
    table(
        ["source", *(f"$n = {n}$" for n in sizes), *(f"steps, $n={n}$" for n in sizes)],
        [
            [name, *(f"{np.mean(right_answers[name, n]):.1%}" for n in sizes)]
            + [
                str(recipe(n, length[name, n], seed=0).epochs * -(-n // 64))
                for n in sizes
            ]
            for name in sources
        ],
        caption=f"Accuracy, mean of {of_seeds}, and the length of training that the held-out labels chose, in {sum(steps == max(lengths) for steps in length.values())} of {len(length)} cases the longest that was tried. The Bayes classifier reaches {accuracy(truth, test.labels):.1%}.",
    )
)
table(
    ["accuracy, teacher minus", *(f"$n = {n}$" for n in sizes)],
    [
        [other]
        + [
            (
                100
                * summary(
                    np.subtract(right_answers["teacher", n], right_answers[other, n])
                )
            ).bracketed("+.1f")
            for n in sizes
        ]
        for other in sources
        if other != "teacher"
    ],
    caption=f"Points, paired by seed: {spread[0].lower() + spread[1:].rstrip(',')}, {of_seeds}. Each interval is of its own pairs; the sentences below may pool the deviation of all four sources.",
)

# %% tags=["hide-input"]
others_of = ["hard labels", "teacher, shuffled"]
for n in sizes:
    points = Quantity(f"accuracy at $n = {n}$", "points", 100, 1, level_unit="%")
    display(
        above(
            "teacher",
            others_of,
            {name: right_answers[name, n] for name in sources},
            points,
        )
    )
for n in sizes:
    nats = Quantity(f"the distance from the true posterior at $n = {n}$", "nats")
    display(
        below(
            "teacher", "hard labels", {name: error[name, n] for name in sources}, nats
        )
    )

# %% [markdown]
# {doc}`06_first_distillation` tests whether the same holds on photographs, where no truth is known.
#
# ## What a real teacher sees
#
# From here on the teacher is a ResNet-20 that `kdlab` trained on CIFAR-100 {cite}`krizhevsky2009learning`; it is stored
# with the book, and its record is listed under {doc}`../book/status`. CIFAR-100 groups its hundred classes in twenty
# superclasses, which the teacher was never told.

# %% tags=["hide-input"]
data = load_images()
real_teacher = book_teacher(data, device=device)
data_note(data)

# %% tags=["hide-input"]
seen = data.validation[:photographs]
real_logits = predict(real_teacher, seen, device=device)
superclass = torch.tensor(data.superclass_of)
probabilities = soften(real_logits).scatter(-1, seen.labels[:, None], 0.0)
dark = probabilities / probabilities.sum(-1, keepdim=True)
kin = superclass[seen.labels][:, None] == superclass[None, :]
kin.scatter_(-1, seen.labels[:, None], False)
share = {
    "the teacher": (dark * kin).sum(-1).mean().item(),
    "chance": kin.float().sum(-1).mean().item() / (data.num_classes - 1),
}
above(
    "the teacher",
    "chance",
    share,
    Quantity(
        "the share of belief in wrong classes that goes to siblings",
        "points",
        100,
        1,
        level_unit="%",
    ),
)

# %% tags=["hide-input"]
family = data.superclasses.index("people") if "people" in data.superclasses else 0
members = [c for c in range(data.num_classes) if data.superclass_of[c] == family]
believed = {}
names = [data.classes[c] for c in members]
others = ~torch.eye(len(members), dtype=torch.bool)
shown = sorted({1.0, *temperatures[-2:]})
figure, panels = plt.subplots(1, len(shown), figsize=(8.2, 3.1), sharey=True)
rows_at = {
    temperature: torch.stack(
        [
            soften(real_logits[seen.labels == c], temperature).mean(0)[members]
            for c in members
        ]
    )
    for temperature in shown
}
brightest = 100 * max(rows.max().item() for rows in rows_at.values())
for panel, (temperature, rows) in zip(
    np.atleast_1d(panels), rows_at.items(), strict=True
):
    believed[temperature] = rows.diagonal().mean().item(), rows[others].mean().item()
    heatmap(
        panel,
        100 * rows,
        names,
        names,
        text=lambda v: f"{v:.0f}" if v >= 1 else f"{v:.1f}",
        largest=brightest,
    )
    panel.set_title(f"$T={temperature:g}$")
np.atleast_1d(panels)[0].set_ylabel("the image shows")
show(
    figure,
    label="superclass",
    caption=f"Mean probability (in %) that the teacher gives the classes of the superclass “{data.superclasses[family]}”, "
    "by what the image shows; one scale of colours for all. Mean of the diagonal and of the rest: "
    + "; ".join(
        f"{100 * a:.1f} and {100 * b:.1f} at $T={t:g}$"
        for t, (a, b) in believed.items()
    )
    + rf". ($1/N$ is {100 / data.num_classes:.0f}.)",
    alt="A heat map for each temperature. Rows are true classes of one superclass, columns the same classes; "
    + "; ".join(
        f"on the diagonal {100 * a:.1f} % and beside it {100 * b:.1f} % at T={t:g}"
        for t, (a, b) in believed.items()
    )
    + ".",
)

# %% [markdown]
# ## Try it yourself
#
# Here are four validation images with the teacher's logits. Move the temperature. Classes of the true class's
# superclass have the second colour.

# %% tags=["hide-input", "landing-dial"]
top2 = soften(real_logits).topk(2)
sure = top2.indices[:, 0] == seen.labels
chosen, taken = [], set()
for index in (top2.values[:, 0] - 0.75).abs().argsort().tolist():
    family = int(superclass[seen.labels[index]])
    related = superclass[top2.indices[index, 1]] == family
    if sure[index] and related and family not in taken:
        taken.add(family)
        chosen.append(index)
    if len(chosen) == 4:
        break
temperature_dial(
    [
        {
            "name": data.classes[seen.labels[i]].replace("_", " "),
            "logits": real_logits[i],
            "classes": data.classes,
            "highlight": set(
                torch.nonzero(superclass == superclass[seen.labels[i]])
                .flatten()
                .tolist()
            ),
            "image": seen.images[i],
            "alt": f"A small photograph of class {data.classes[seen.labels[i]]}",
        }
        for i in chosen
    ],
    label="dial",
    caption="The twelve classes that the teacher finds most likely. At a low temperature it names one class; higher up it shows what the "
    "image resembles; hot, it says nothing.",
)

# %% tags=["hide-input"]
few = sizes[0]
gain_of = {
    other: 100
    * np.mean(np.subtract(right_answers["teacher", few], right_answers[other, few]))
    for other in others_of
}
findings.show(
    rf"$dH/dT = \operatorname{{Var}}_q(z)/T^3$: the entropy rises with the temperature. Finite differences agree to {worst:.0e}.",
    "A teacher that saw hard labels alone is "
    f"{dark_error['the teacher']:.2f} nats from the exact distribution over the wrong classes; a uniform guess "
    f"{dark_error['a uniform guess']:.2f}, the best guess by the label {dark_error['one distribution a label']:.2f}.",
    f"From {few} examples the teacher's students change accuracy by {gain_of['hard labels']:+.1f} points against hard labels, and by "
    f"{gain_of['teacher, shuffled']:+.1f} against the same teacher with its wrong classes shuffled (mean of {of_seeds}; at most {max(lengths)} steps).",
    f"On photographs, {share['the teacher']:.0%} of the belief in wrong classes goes to the class's own superclass; by chance {share['chance']:.0%} would.",
)

# %% [markdown]
# ## Limits
#
# - The known-posterior task is easy: its classes are Gaussian clouds, and the teacher's network can represent the
#   posterior. Real teachers are also *wrong* about wrong classes; distillation passes on their errors with the rest.
# - The four sources share one learning rate, which was tuned for none of them; the length of training was chosen for each. Where the longest was chosen, a longer one may change a difference.
# - That the teacher spreads its doubt within superclasses says that its beliefs are structured, not that this structure
#   is what helps a student. That takes an intervention, and {doc}`06_first_distillation` makes one.
#
# ## To take away
#
# - **Formulae.** $q_i = e^{z_i/T}/\sum_k e^{z_k/T}$; $dH/dT = \operatorname{Var}_q(z)/T^3 \ge 0$.
# - **What to set.** `soften(logits, T)` for probabilities, `SoftTargets(temperature=T)` for the loss, `PermutedSoftTargets` for the control that keeps everything but the order of the wrong classes.
# - **What to watch for.** A teacher trained on labels estimates the wrong classes, with errors. Whether these probabilities help a student takes a control, not a picture.
#
# ## Exercises
#
# ```{exercise}
# :label: ex-cooling
#
# For two classes with logits $(a, 0)$, write $q_1$ as a function of $a/T$. At which temperature does the larger class
# have probability $0.9$? Check your answer with `soften` for $a = 6$.
# ```
#
# ````{solution} ex-cooling
# :class: dropdown
#
# $q_1 = 1/(1+e^{-a/T})$, so $q_1 = 0.9$ at $a/T = \log 9$, that is $T = a/\log 9$.
#
# ```python
# soften(torch.tensor([6.0, 0.0]), 6.0 / np.log(9))
# ```
# ````
#
# ```{exercise}
# :label: ex-slope-at-zero
#
# The slope $dH/dT$ goes to zero at both ends of the temperature axis. Explain both from $\operatorname{Var}_q(z)/T^3$.
# ```
#
# ```{solution} ex-slope-at-zero
# :class: dropdown
#
# As $T\to\infty$, $q$ becomes uniform, $\operatorname{Var}_q(z)$ tends to the plain variance of the logits, and $1/T^3$
# takes the slope to zero. As $T\to0$, $q$ concentrates on the largest logit and the variance vanishes like
# $e^{-\delta/T}$, with $\delta$ the gap to the second logit: faster than any power of $T$ can grow.
# ```
#
# ```{exercise}
# :label: ex-teacher-size
#
# In *Four teachers for one student*, train a teacher on 500 examples. At which of the sizes $n$ are its students no longer above those of the hard labels?
# ```
#
# ````{solution} ex-teacher-size
# :class: dropdown
#
# Give the students one source more, and see where the interval of the difference lies above zero, across it or below.
#
# ```python
# torch.manual_seed(0)
# weak = mlp(16, task.num_classes, width=128)
# few = task.sample(500, generator=torch.Generator().manual_seed(5))
# fit(weak, CrossEntropy(), train=few, recipe=recipe(500, 400, seed=0))
# sources["weak teacher"] = (SoftTargets(temperature=1), weak)
# gain = {n: summary(np.subtract(taught("weak teacher", n)[2], right_answers["hard labels", n])) for n in sizes}
# table(["$n$", "points"], [[n, (100 * g).bracketed("+.1f")] for n, g in gain.items()], caption="Weak teacher minus hard labels.")
# ```
# ````
