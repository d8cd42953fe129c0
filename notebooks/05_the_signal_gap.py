# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The signal gap, audited
#
# Article B ends on a table for a problem with a thousand classes: six numbers and a row of words. It gives no logits, no code and no
# seed. Can the numbers belong together? And are they typical? Both questions can be answered without the author.
#
# **At the end you will know** how to ask three questions of a published table: whether it is consistent with itself, whether any
# logits give it to the last printed digit, and whether it is what real logits give.
#
# *Needs: one CPU core and about a minute.*

# %% tags=["parameters"]
profile = "cpu"

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.optimize import least_squares

from kdlab.data import load_images
from kdlab.figures import BLUE, GREEN, ORANGE, PURPLE, show, table, use_style
from kdlab.models import resnet8
from kdlab.objectives import SoftTargets
from kdlab.study import book_teacher, results, stored_student
from kdlab.study.display import data_note, device_for, verdict
from kdlab.study.evidence import Quantity
from kdlab.study.records import book_folder
from kdlab.study.statements import only
from kdlab.theory import reference
from kdlab.training import Recipe, fit, predict

use_style()
device = device_for(profile)

# %% [markdown]
# ## The table
#
# | metric | $T=1$ | $T=5$ | $T=5$, times $T^2$ |
# |---|---|---|---|
# | softmax peakiness | “Very High” | “Low (Soft)” | “Low (Soft)” |
# | KL loss | 0.850 | 0.020 | 0.500 |
# | gradient norm | 0.420 | 0.012 | 0.300 |
#
# The article does not say how peakiness is measured, or of which of the two models. Here it is the largest probability, of the teacher and
# of the student.

# %%
N = 1000
PRINTED = {
    "KL, T=1": 0.850,
    "KL, T=5": 0.020,
    "KL, scaled": 0.500,
    "norm, T=1": 0.420,
    "norm, T=5": 0.012,
    "norm, scaled": 0.300,
}


def six_numbers(student, teacher):
    """KL and gradient norm at T = 1 and 5, and the latter times 25, in table order."""
    kl = [reference.forward_kl(student, teacher, T) for T in (1, 5)]
    norm = [
        np.linalg.norm(reference.forward_kl_gradient(student, teacher, T), axis=-1)
        for T in (1, 5)
    ]
    return np.stack([kl[0], kl[1], 25 * kl[1], norm[0], norm[1], 25 * norm[1]], -1)


# %% [markdown]
# ## First: is it consistent with itself?
#
# The last column should be 25 times the middle one. In the printed digits:

# %%
assert np.isclose(25 * PRINTED["KL, T=5"], PRINTED["KL, scaled"])
assert np.isclose(25 * PRINTED["norm, T=5"], PRINTED["norm, scaled"])

# %% [markdown]
# It is. There is also a bound that ties loss and gradient together. By Pinsker's inequality the two distributions differ
# by at most $\sqrt{2\,\mathrm{KL}}$ in the 1-norm. Their difference sums to zero, so its 2-norm is at most $1/\sqrt2$ of that, and the
# gradient norm at most $\sqrt{\mathrm{KL}}/T$. A table that broke this could not come from any logits at all.

# %%
for T in (1, 5):
    bound = np.sqrt(PRINTED[f"KL, T={T}"]) / T
    print(f"T={T}: printed norm {PRINTED[f'norm, T={T}']}, bound {bound:.3f}")
    assert PRINTED[f"norm, T={T}"] <= bound

# %% [markdown]
# ## Second: do logits exist that give all six?
#
# Four numbers are independent; a thousand student logits and a thousand teacher logits are plenty to meet them. So we
# look for *small* witnesses, which can be written down: all logits are zero but two of the student's and the same two of the teacher's.
# That leaves four unknowns for four equations, which a standard
# solver handles, from sixty random starts. Classes 1 and 2 may change places, so the smaller of the student's logits goes first.


# %%
def padded(student_first, teacher_first):
    """Logits of N classes for student and teacher: those of the first classes, zero elsewhere."""
    student, teacher = np.zeros((2, N))
    student[: len(student_first)] = student_first
    teacher[: len(teacher_first)] = teacher_first
    return student, teacher


targets = np.array(list(PRINTED.values()))
independent = [0, 1, 3, 4]  # the scaled column follows from the others


def residual(parameters):
    return six_numbers(*padded(parameters[:2], parameters[2:]))[independent] / targets[independent] - 1


starts = np.random.default_rng(0).uniform(0, 25, (60, 4))
solutions = [
    least_squares(residual, start, xtol=1e-14, ftol=1e-14, gtol=1e-14) for start in starts
]
exact = [s.x if s.x[0] < s.x[1] else s.x[[1, 0, 3, 2]] for s in solutions if np.abs(s.fun).max() < 1e-9]
two = sorted({tuple(float(v) for v in x.round(4)) for x in exact})
WITNESSES = {f"two logits, {'AB'[k]}": (x[:2], x[2:]) for k, x in enumerate(two)}
WITNESSES["three logits"] = ((22.42, 25.872, 25.903), (23.745, 23.705, 23.574))

# %% [markdown]
# The last witness, with three logits each, was not searched for here; it is checked with the others. What they give, and how they look:

# %%
found = {name: six_numbers(*padded(*w)) for name, w in WITNESSES.items()}
for numbers in found.values():
    assert all(
        f"{got:.3f}" == f"{value:.3f}" for got, value in zip(numbers, targets, strict=True)
    )
table(
    ["number", "printed", *WITNESSES],
    [
        [name, f"{value:.3f}", *(f"{numbers[k]:.3f}" for numbers in found.values())]
        for k, (name, value) in enumerate(PRINTED.items())
    ],
    caption="The printed numbers and the witnesses, whose logits are rounded: all six to the printed digits.",
)

# %%
rows, sure = [], {}
for name, w in WITNESSES.items():
    student, teacher = padded(*w)
    for whose, logits, first in (("student", student, w[0]), ("teacher", teacher, w[1])):
        at_1, at_5 = (reference.softmax(logits, T) for T in (1, 5))
        sure[name, whose] = at_1.max(), at_5.max()
        rows.append(
            [name, whose, ", ".join(f"{v:g}" for v in first), ", ".join(f"{v:.3f}" for v in at_1[: len(first)])]
            + [", ".join(f"{v:.3f}" for v in at_5[: len(first)]), f"{at_5[len(first):].sum():.3f}"]
        )
table(
    ["witness", "", "logits", "probabilities, $T=1$", "$T=5$", "all others, $T=5$"],
    rows,
    caption="The witnesses' logits (zero for all other classes) and probabilities.",
)

# %% [markdown]
# So the six numbers do not tell how sure the models are: read the largest probabilities at $T=1$ in the table. “Very High” narrows the
# choice, if it is the student's or the teacher's.
#
# ## Third: is it typical?
#
# Draw logits at random and scale them so that the KL at $T=1$ is the printed one; then look at the other numbers. Two
# families: Gaussian logits, and heavy-tailed ones (Student's $t$ with three degrees of freedom).


# %%
def scaled_to(kl_at_one, student, teacher):
    """Scale both logits by one factor (bisection) so that the KL at T = 1 is as asked."""
    low, high = 1e-3, 1e3
    for _ in range(100):
        middle = np.sqrt(low * high)
        if reference.forward_kl(middle * student, middle * teacher) < kl_at_one:
            low = middle
        else:
            high = middle
    return low * student, low * teacher


rng = np.random.default_rng(1)
families = {
    "Gaussian": lambda: (rng.normal(size=N), rng.normal(size=N)),
    "heavy-tailed": lambda: (rng.standard_t(3, size=N), rng.standard_t(3, size=N)),
}
pairs = {name: [scaled_to(PRINTED["KL, T=1"], *draw()) for _ in range(50)] for name, draw in families.items()}

# %% [markdown]
# And real logits, of the book's teacher and two students on validation images: an untrained ResNet-8, which is the first step of a
# distillation, and a ResNet-8 that was distilled from this teacher. Of the latter's images those are taken whose KL at $T=1$ is near the
# printed one. These have a hundred classes, not a thousand, and no scaling is applied.

# %% tags=["hide-input"]
data = load_images()
data_note(data)

# %% tags=["hide-input"]
teacher_network = book_teacher(data, device=device)
if data.fallback:  # no student of this teacher is stored: a short distillation
    student_network = resnet8(data.num_classes)
    short = Recipe(epochs=2, batch_size=64, schedule="cosine")
    fit(student_network, 1.0 * SoftTargets(temperature=4), train=data.train, teacher=teacher_network, recipe=short, device=device)
else:
    spec = next(s for s in results("small").specs if s.arm == "kd" and s.recipe.seed == 0)
    student_network = stored_student(spec, book_folder(), data.num_classes)

# %%
images = data.validation[torch.arange(min(2000, len(data.validation)))]
torch.manual_seed(0)
untrained, distilled, trained = (
    predict(network, images, device=device).double().numpy()
    for network in (resnet8(data.num_classes), student_network, teacher_network)
)
near = np.abs(np.log(reference.forward_kl(distilled, trained) / PRINTED["KL, T=1"])) < 0.25
pairs["real (first step)"] = list(zip(untrained[:500], trained[:500], strict=True))
pairs["real (distilled)"] = list(zip(distilled[near], trained[near], strict=True))

clouds = {name: np.array([six_numbers(*pair) for pair in both]) for name, both in pairs.items()}
peakiness = {  # median largest probability at T = 1 and 5, of the student and of the teacher
    name: [
        np.median([reference.softmax(pair[who], T).max() for pair in both])
        for who in (0, 1)
        for T in (1, 5)
    ]
    for name, both in pairs.items()
}
print(f"{near.sum()} of {len(near):,} images have a KL within a factor of e^0.25 of {PRINTED['KL, T=1']}.")

# %% tags=["hide-input"]
figure, (left, right) = plt.subplots(1, 2, figsize=(7.8, 3.6))
for (name, numbers), colour in zip(clouds.items(), (BLUE, GREEN, "grey", PURPLE), strict=True):
    left.loglog(numbers[:, 0], numbers[:, 1], ".", color=colour, alpha=0.4, label=name)
    right.loglog(numbers[:, 3], numbers[:, 4], ".", color=colour, alpha=0.4, label=name)
for panel, what in ((left, "KL"), (right, "norm")):
    panel.loglog(PRINTED[f"{what}, T=1"], PRINTED[f"{what}, T=5"], "*", color=ORANGE, markersize=15, label="the table")
    panel.set(xlabel=f"{what} at $T=1$", ylabel=f"{what} at $T=5$")
left.set(title="loss", xticks=[0.5, 1, 2, 4], xticklabels=["0.5", "1", "2", "4"])
right.set(title="gradient norm")
left.minorticks_off()
left.legend(fontsize="x-small")
typical = clouds["real (distilled)"]
quartiles = {
    name: np.quantile(typical[:, column], [0.25, 0.5, 0.75])
    for column, name in enumerate(PRINTED)
}
others = ("KL, T=5", "norm, T=1", "norm, T=5")  # the KL at T = 1 chose the images
between = [name for name in others if quartiles[name][0] <= PRINTED[name] <= quartiles[name][2]]
show(
    figure,
    label="clouds",
    caption="The table (star) among random logits of a thousand classes with its KL at $T=1$, and real logits. Of its three other independent "
    f"numbers these lie between the quartiles of the distilled student's: {', '.join(between) or 'none'}.",
    alt="Two log-log scatter plots, loss and gradient norm at temperature five against temperature one, with four clouds and a star.",
)

# %% tags=["hide-input"]
table(
    ["logits", "KL, $T=1$", "$T=5$", "norm, $T=1$", "$T=5$", "student's largest, $T=1$", "$T=5$", "teacher's largest, $T=1$", "$T=5$"],
    [["the table", "0.850", "0.020", "0.420", "0.012", "“Very High”", "“Low”", "“Very High”", "“Low”"]]
    + [
        [name, *(f"{np.median(v[:, c]):.{3 if c < 4 else 4}f}" for c in independent), *(f"{v:.3f}" for v in peakiness[name])]
        for name, v in clouds.items()
    ],
    caption="Medians over 50 draws (random logits) and over the images (real logits).",
)

# %%
only(
    ["real (first step)", "real (distilled)"],
    {name: v[2] for name, v in peakiness.items()},
    Quantity("the teacher's largest probability at $T=1$ (median)", digits=2),
    above=0.5,
)

# %% tags=["hide-input"]
kl_5, norm_1, norm_5 = (quartiles[name] for name in others)
below = (typical[:, 1] > PRINTED["KL, T=5"]).mean()
gaussian = np.median(clouds["Gaussian"][:, 4])
verdict(
    "B11", "depends",
    rf"The table is consistent (×25), and logits exist that give all six numbers to the printed digits: {len(WITNESSES)} sets are written down above. "
    rf"Real logits of {data.num_classes} classes with this KL at $T=1$ ({near.sum()} images, a distilled student) have a norm of {norm_5[1]:.4f} at $T=5$ "
    rf"(quartiles {norm_5[0]:.4f} to {norm_5[2]:.4f}; printed 0.012) and {norm_1[1]:.2f} at $T=1$ ({norm_1[0]:.2f} to {norm_1[2]:.2f}; printed 0.420), and a "
    rf"KL of {kl_5[1]:.3f} at $T=5$ ({kl_5[0]:.3f} to {kl_5[2]:.3f}; printed 0.020, exceeded on {below:.0%} of them). Gaussian logits of 1,000 classes with this KL have a "
    rf"largest probability of {peakiness['Gaussian'][2]:.3f} (teacher, $T=1$) and a norm of {gaussian:.4f} at $T=5$.",
    data=data,
)  # fmt: skip

# %% [markdown]
# ## What the table is for
#
# Its moral is that the unscaled signal at $T=5$ is too small to be heard, and that $T^2$ brings it back. How much of it, for the logits of this
# chapter:

# %% tags=["hide-input"]
table(
    ["logits", "norm, unscaled: $T=5$ over $T=1$", "norm, scaled: $T=5$ over $T=1$"],
    [["the table", f"{0.012 / 0.420:.3f}", f"{0.300 / 0.420:.2f}"]]
    + [
        [name, f"{np.median(v[:, 4] / v[:, 3]):.3f}", f"{np.median(v[:, 5] / v[:, 3]):.2f}"]
        for name, v in clouds.items()
    ],
    caption="Medians. From which temperature on the scaled norm is flat was measured in chapter 3.",
)

# %% [markdown]
# ## Limits
#
# The witnesses show that the six numbers *can* occur, not that the author's did. “Typical” is a statement about the
# families drawn here and about one real pair, of a hundred classes.
#
# ## Exercises
#
# ```{exercise}
# :label: ex-impossible-table
#
# Change one of the four independent numbers until *no* logits can produce the table. Which inequality stops you?
# ```
#
# ```{solution} ex-impossible-table
# :class: dropdown
#
# Raise the gradient norm at $T=1$ above $\sqrt{0.850}$: Pinsker's inequality forbids it.
# ```
#
# ```{exercise}
# :label: ex-one-logit
#
# Let student and teacher differ from zero in *one* logit each, that of class 1. How many of the four numbers can you meet?
# ```
#
# ```{solution} ex-one-logit
# :class: dropdown
#
# Two unknowns meet two equations. Fix the two numbers at $T=1$ and the two at $T=5$ follow; they miss the table.
# The least-squares call above with `padded(parameters[:1], parameters[1:])` shows by how much.
# ```
