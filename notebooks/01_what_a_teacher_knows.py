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
# A classifier that says *fox, 90 %* says more than *fox*. It also says which other animals it had in mind. This
# chapter is about that second message: how a temperature makes it audible, whether it is true, and how much of it a
# student can learn.
#
# **At the end you will know** what temperature does to a distribution and why its entropy must rise; that a trained
# teacher's opinion of the *wrong* classes is close to the truth, on a task where the truth is known exactly; and what
# a real teacher believes about a photograph.
#
# *Needs: two CPU cores and about a minute. Read {doc}`../book/notation` first if a symbol is new.*

# %% tags=["parameters"]
profile = "cpu"

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import numpy as np
import sympy as sp
import torch

from kdlab.data import ExactTeacher, KnownPosterior, load_images
from kdlab.figures import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    heatmap,
    show,
    table,
    temperature_dial,
    use_style,
)
from kdlab.models import mlp
from kdlab.objectives import (
    CrossEntropy,
    PermutedSoftTargets,
    SoftTargets,
    entropy,
    forward_kl,
    log_soften,
    soften,
)
from kdlab.study import book_teacher, mean_interval
from kdlab.study.display import data_note, device_for, observed, verdict
from kdlab.theory import reference
from kdlab.theory.symbolic import T, k, l, log_softmax, partial, same, softmax, total, z
from kdlab.training import Recipe, accuracy, fit, predict

use_style()
device = device_for(profile)

# %% [markdown]
# ## Turning the temperature
#
# Logits $z$ become probabilities by the softmax, with a temperature $T > 0$ that divides them first:
#
# $$q_i = \frac{e^{z_i/T}}{\sum_k e^{z_k/T}} .$$
#
# Below, the same five logits at six temperatures. `soften` is the function that every objective in `kdlab` calls.

# %%
logits = torch.tensor([6.0, 4.0, 3.0, 0.0, -2.0], dtype=torch.float64)
temperatures = [0.25, 0.5, 1, 2, 4, 16]
softened = torch.stack([soften(logits, temperature) for temperature in temperatures])

# %% tags=["hide-input"]
figure, panels = plt.subplots(1, 6, sharey=True, figsize=(7.6, 2.5))
for panel, temperature, probabilities in zip(panels, temperatures, softened, strict=True):
    panel.bar(
        range(5), probabilities, color=BLUE if temperature == 1 else ORANGE, width=0.8
    )
    panel.axhline(1 / 5, color="grey", linewidth=1, linestyle=":")
    panel.set(title=f"$T={temperature}$", xticks=range(5), ylim=(0, 1.02))
    panel.grid(visible=False)
panels[0].set_ylabel("probability")
show(
    figure,
    label="five-logits",
    caption="One set of logits at six temperatures. Cold: the largest takes all. Hot: every class comes close to the "
    "dotted $1/N$. The order never changes. At $T=1$ (blue) it is the plain softmax.",
    alt="Six bar charts of five probabilities. At temperature 0.25 the first bar is one; as the temperature rises to "
    "16 the bars approach one fifth each, always in the same order.",
)

# %% [markdown]
# Three things can be read off, and all are exact: $T=1$ is the softmax itself; the order of the classes does not
# depend on $T$, since $e^{z/T}$ rises with $z$; and since $q_i/q_j = e^{(z_i-z_j)/T}$, every ratio tends to one as $T\to\infty$ (the uniform
# distribution) and to zero or infinity as $T\to0$ (the argmax, if it is unique). The next cell checks
# them for random logits, the limits at a temperature so extreme that float64 cannot tell the difference.

# %%
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
# ### A softmax upside down
#
# In the plain text of one of the articles that this book examines, the softmax has its denominator first. So do its other
# fractions (its $1/N_h$ reads "$N_h\,1$"): plain text that is taken from a typeset page does that, and on the page the
# formula is most likely right. Read as it stands it is wrong, and a wrong softmax is easy to catch: its values do not sum to
# one, and they rank the classes backwards.

# %%
printed = torch.exp(logits).sum() / torch.exp(logits)
right = soften(logits)
table(
    ["class", "logit", "as it reads", "softmax"],
    [[i, f"{logits[i]:.0f}", f"{printed[i]:.3g}", f"{right[i]:.4f}"] for i in range(5)]
    + [["sum", "", f"{printed.sum():.3g}", f"{right.sum():.4f}"]],
    caption="The fraction as the text has it and the softmax, "
    "for the logits of the figure above.",
)

# %% tags=["hide-input"]
assert printed.argmax() == logits.argmin() and not np.isclose(printed.sum(), 1)
verdict(
    "A2", "corrected",
    rf"In the plain text that we have, the denominator comes first, probably by the way the text was taken from the page. Read so, the "
    rf"values for the five logits above sum to {printed.sum():.0f} and the least likely class leads. Right is "
    r"$q_i = e^{z_i/T} / \sum_k e^{z_k/T}$.",
)  # fmt: skip

# %% [markdown]
# ## Why the entropy must rise
#
# "Softer" has a measure: the entropy $H = -\sum_i q_i \log q_i$, zero for certainty and $\log N$ for the uniform
# distribution. That it rises with $T$ can be seen in the figure; that it *must* is one derivative away. SymPy takes it
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
# The same slope measured: central differences of the entropy that `kdlab` computes, against the closed form.

# %%
grid = np.geomspace(0.2, 50, 60)
step = 1e-4
measured = [
    (
        (
            entropy(logits, temperature * (1 + step))
            - entropy(logits, temperature * (1 - step))
        )
        / (2 * step * temperature)
    ).item()
    for temperature in grid
]
closed_form = np.array(
    [reference.entropy_slope(logits.numpy(), temperature) for temperature in grid]
)
worst = np.max(np.abs(measured - closed_form) / closed_form)
assert worst < 1e-6
worst

# %% tags=["hide-input"]
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
    r"by the closed form (line). Most of the rise is over by $T=10$; beyond, the slope falls as $1/T^3$.",
    alt="Two curves against temperature on a logarithmic axis. Left: entropy rises in an S shape from zero to log 5. "
    "Right: the slope rises, peaks near temperature one, and falls as a straight line; dots lie on the line.",
)

# %% tags=["hide-input"]
verdict(
    "A1", "proved",
    r"$T=1$ is the softmax; order is kept at every $T$; the limits are argmax and uniform. For every $N$, "
    rf"$dH/dT = \operatorname{{Var}}_q(z)/T^3 \ge 0$, and finite differences agree to a relative {worst:.0e}.",
)  # fmt: skip

# %% [markdown]
# ## Is the teacher's opinion of the wrong classes true?
#
# On photographs nobody knows the true $p(y \mid x)$, so nobody can say whether a teacher's small probabilities are
# knowledge or noise. On a task that we make ourselves, we can. Classes are Gaussian clouds, grouped four to a
# superclass; Bayes' rule then gives the posterior exactly:
#
# $$p(y=c \mid x) = \operatorname{softmax}_c\!\left(-\frac{\lVert x-\mu_c\rVert^2}{2\sigma^2}\right).$$

# %%
task = KnownPosterior.draw(superclasses=5, classes_each=4, dimensions=16, seed=0)
generator = torch.Generator().manual_seed(1)
test = task.sample(5000, generator=generator)
truth = task.posterior_logits(test.inputs)
print(
    f"{task.num_classes} classes; the Bayes classifier is right "
    f"on {accuracy(truth, test.labels):.1%}"
)

# %% [markdown]
# The teacher is a small network trained on 20,000 examples with **hard labels only**. Nobody ever told it a
# probability.


# %%
def recipe(examples, steps, seed):
    """About the same number of steps however many examples there are."""
    epochs = max(1, steps // max(examples // 64, 1))
    return Recipe(
        epochs=epochs, batch_size=64, optimizer="adam", learning_rate=3e-3,
        weight_decay=0.0, schedule="cosine", augment=False, seed=seed,
    )  # fmt: skip


torch.manual_seed(0)
teacher = mlp(16, task.num_classes, width=128)
fit(
    teacher,
    CrossEntropy(),
    train=task.sample(20_000, generator=generator),
    recipe=recipe(20_000, 1500, seed=0),
)
teacher_logits = predict(teacher, test)

# %% [markdown]
# Now the question. Take away the true class, rescale what is left to sum to one, and compare the teacher's *wrong-class*
# distribution with the exact one. The yardstick is a uniform guess.


# %%
def dark_distribution(logits, labels):
    """The distribution over the wrong classes alone."""
    hidden = logits.scatter(-1, labels.unsqueeze(-1), -1e4)
    return log_soften(hidden)


dark_teacher = dark_distribution(teacher_logits, test.labels)
dark_truth = dark_distribution(truth, test.labels)
dark_error = forward_kl(dark_teacher, dark_truth).item()
uniform_error = forward_kl(
    dark_distribution(torch.zeros_like(truth), test.labels), dark_truth
).item()
print(
    f"KL from the true dark distribution: teacher {dark_error:.3f}, "
    f"a uniform guess {uniform_error:.3f} nats"
)

# %% tags=["hide-input"]
some = torch.randperm(len(test.labels), generator=torch.Generator().manual_seed(2))[:60]
wrong = torch.ones(60, task.num_classes, dtype=torch.bool).scatter(
    -1, test.labels[some, None], False
)
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
    caption="Each dot is one wrong class of one example. A teacher that saw nothing but hard labels places the likely wrong "
    "classes where Bayes' rule places them (dotted). The very unlikely ones it takes for less unlikely than they are.",
    alt="Scatter plot on logarithmic axes: dots lie along the diagonal, tightly where probabilities are large and more "
    "loosely, and above it, where they are tiny.",
)

# %% [markdown]
# The wrong classes are not noise: they are an estimate of the truth. What is that worth to a student?
#
# ## Four teachers for one student
#
# A student half as wide sees $n$ examples and learns from one of four sources: the hard labels; the teacher; the
# teacher with the probabilities of its wrong classes shuffled in every example (`PermutedSoftTargets`); and the exact
# posterior, which no teacher can beat in truth. Everything else is equal: initial weights, batches, number of steps. (The teacher itself has seen 20,000 labels: what it passes on
# includes what it learned from them.) We
# measure the Kullback–Leibler divergence from the *true* posterior on fresh examples, over five seeds.

# %%
sources = {
    "hard labels": (CrossEntropy(), None),
    "teacher": (SoftTargets(temperature=1), teacher),
    "teacher, shuffled": (PermutedSoftTargets(temperature=1), teacher),
    "exact posterior": (SoftTargets(temperature=1), ExactTeacher(task)),
}
sizes, seeds = (128, 512, 2048), range(5)
error, right_answers = {}, {}
for n in sizes:
    for seed in seeds:
        train = task.sample(n, generator=torch.Generator().manual_seed(100 + seed))
        for name, (objective, source) in sources.items():
            torch.manual_seed(seed)
            student = mlp(16, task.num_classes, width=64)
            fit(
                student, objective, train=train, teacher=source, recipe=recipe(n, 400, seed)
            )
            student_logits = predict(student, test)
            error.setdefault((name, n), []).append(forward_kl(student_logits, truth).item())
            right_answers.setdefault((name, n), []).append(
                accuracy(student_logits, test.labels)
            )

# %% tags=["hide-input"]
figure, (left, right_panel) = plt.subplots(1, 2, figsize=(7.6, 3.4))
colours = dict(zip(sources, (PURPLE, BLUE, ORANGE, GREEN), strict=True))
for shift, name in enumerate(sources):
    for panel, measured_values in ((left, error), (right_panel, right_answers)):
        intervals = [mean_interval(measured_values[name, n]) for n in sizes]
        x = np.array(sizes) * 1.06 ** (shift - 1.5)
        means = np.array([i.mean for i in intervals])
        half = np.array([i.high - i.mean for i in intervals])
        panel.errorbar(
            x, means, half, color=colours[name], marker="o", capsize=3, label=name
        )
right_panel.axhline(accuracy(truth, test.labels), color="grey", linestyle=":", linewidth=1)
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
left.legend(fontsize="small")
show(
    figure,
    label="four-teachers",
    caption="Mean and 95 % interval over five seeds. Soft targets, the teacher's or the exact ones, bring a student nearer to "
    "the truth at every $n$. With the wrong classes shuffled the accuracy still profits from the teacher's confidence, but "
    "the divergence hardly falls with more examples: that knowledge is gone. Dotted: the Bayes classifier.",
    alt="Two panels against the number of training examples. Left, divergence from the truth: teacher and exact "
    "posterior lowest and together, hard labels higher, shuffled teacher high and hardly falling at large n. Right, "
    "accuracy: teacher and exact posterior highest, hard labels and shuffled lower.",
)

# %% tags=["hide-input"]
table(
    ["source"] + [f"$n = {n}$" for n in sizes],
    [
        [name] + [f"{mean_interval(right_answers[name, n]).mean:.1%}" for n in sizes]
        for name in sources
    ],
    caption=f"Accuracy, mean of {len(seeds)} seeds. The Bayes classifier reaches {accuracy(truth, test.labels):.1%}.",
)

# %%
observed(
    "At every $n$ the teacher's soft targets bring a student nearer to the truth "
    "than labels, and than the same targets with the wrong classes shuffled.",
    all(
        np.mean(error["teacher", n]) < np.mean(error[other, n])
        for n in sizes
        for other in ("hard labels", "teacher, shuffled")
    ),
)

# %% [markdown]
# Whether the same holds on photographs, where no truth is known, is tested in {doc}`06_first_distillation`.
#
# ## What a real teacher sees
#
# The teacher from here on is a ResNet-20 that `kdlab` trained on CIFAR-100 {cite}`krizhevsky2009learning`; it is stored
# with the book, and its record is listed under {doc}`../book/status`. CIFAR-100 groups its hundred classes in twenty
# superclasses. The teacher was never told of them.

# %% tags=["hide-input"]
data = load_images()
teacher = book_teacher(data, device=device)
data_note(data)

# %%
seen = data.validation
teacher_logits = predict(teacher, seen, device=device)
superclass = torch.tensor(data.superclass_of)
probabilities = soften(teacher_logits).scatter(-1, seen.labels[:, None], 0.0)
dark = probabilities / probabilities.sum(-1, keepdim=True)
kin = superclass[seen.labels][:, None] == superclass[None, :]
kin.scatter_(-1, seen.labels[:, None], False)
share = (dark * kin).sum(-1).mean().item()
chance = kin.float().sum(-1).mean().item() / (data.num_classes - 1)
print(
    f"Of its belief in wrong classes, the teacher gives {share:.1%} to siblings; "
    f"chance would give {chance:.1%}."
)

# %% tags=["hide-input"]
family = data.superclasses.index("people") if "people" in data.superclasses else 0
members = [c for c in range(data.num_classes) if data.superclass_of[c] == family]
figure, panels = plt.subplots(1, 3, figsize=(8.2, 3.1), sharey=True)
for panel, temperature in zip(panels, (1, 4, 20), strict=True):
    rows = torch.stack(
        [
            soften(teacher_logits[seen.labels == c], temperature).mean(0)[members]
            for c in members
        ]
    )
    names = [data.classes[c] for c in members]
    heatmap(
        panel, 100 * rows, names, names, text=lambda v: f"{v:.0f}" if v >= 1 else f"{v:.1f}"
    )
    panel.set_title(f"$T={temperature}$")
panels[0].set_ylabel("the image shows")
show(
    figure,
    label="superclass",
    caption=f"Mean probability (in %) that the teacher gives the classes of the superclass “{data.superclasses[family]}”, "
    "by what the image shows. At $T=1$ the diagonal dominates; at $T=4$ the likeness of the classes becomes visible; at "
    "$T=20$ little is left but $1/N$.",
    alt="Three heat maps, one a temperature. Rows are true classes of one superclass, columns the same classes. The "
    "diagonal is bright at temperature 1; off-diagonal entries become visible at 4; all are alike at 20.",
)

# %% [markdown]
# ## Turn it yourself
#
# Four validation images, the teacher's logits for them, and the temperature in your hand. Classes of the true class's
# superclass are drawn in the second colour.

# %% tags=["hide-input", "landing-dial"]
top2 = soften(teacher_logits).topk(2)
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
            "logits": teacher_logits[i],
            "classes": data.classes,
            "highlight": set(
                torch.nonzero(superclass == superclass[seen.labels[i]]).flatten().tolist()
            ),
            "image": seen.images[i],
            "alt": f"A small photograph of class {data.classes[seen.labels[i]]}",
        }
        for i in chosen
    ],
    label="dial",
    caption="The twelve classes that the teacher finds most likely. Cold, it names one class. Warm, it tells what the "
    "image resembles. Hot, it says nothing.",
)

# %% [markdown]
# ## Limits
#
# - The known-posterior task is kind: its classes are Gaussian clouds, and the teacher's network can represent the
#   posterior. Real teachers are also *wrong* about wrong classes; distillation passes on their errors with the rest.
# - That the teacher spreads its doubt within superclasses says that its beliefs are structured, not that this structure
#   is what helps a student. That takes an intervention, and {doc}`06_first_distillation` makes one.
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
# ```{solution} ex-cooling
# :class: dropdown
#
# $q_1 = 1/(1+e^{-a/T})$, so $q_1 = 0.9$ at $a/T = \log 9$, that is $T = a/\log 9$. For $a=6$ that is
# $T = 6/\log 9$, and `soften(torch.tensor([6.0, 0.0]), 6 / math.log(9))` gives 0.9 and 0.1.
# ```
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
# In *Four teachers for one student*, train the teacher on 500 examples in place of 20,000. At which $n$ does it stop
# being worth listening to?
# ```
#
# ```{solution} ex-teacher-size
# :class: dropdown
#
# Change `task.sample(20_000, …)` and `recipe(20_000, …)` to 500 and run the chapter again. A teacher trained on fewer
# examples than its student is further from the truth than the student could come by itself: the curve of the teacher
# crosses that of the hard labels.
# ```
