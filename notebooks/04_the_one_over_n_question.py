# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The 1/N question
#
# The hot gradient is $(\tilde z_i - \tilde t_i)/(NT^2)$. Multiplying by $T^2$ removes one of the two factors. Why not multiply by
# $N$ as well? Article B answers that this "would cause immediate gradient explosion" at $N=128{,}000$. Let us multiply.
#
# **At the end you will know** what $N$ times the loss is (an old acquaintance), for which optimisers the factor matters, and
# why "explosion" is a statement about a learning rate.
#
# *Needs: two CPU cores and about two minutes.*

# %% tags=["parameters"]
profile = "cpu"

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import display
from torch import nn

from kdlab.data import Examples
from kdlab.figures import BLUE, GREEN, ORANGE, PURPLE, VERMILION, show, table, use_style
from kdlab.objectives import SoftTargets, forward_kl
from kdlab.study.display import device_for, observed, verdict
from kdlab.theory import reference
from kdlab.training import Recipe, fit, predict

use_style()
device = device_for(profile)
T = 4.0

# %% [markdown]
# ## Hot, N times the loss is logit matching
#
# $N\,T^2 D_{\mathrm{KL}}$ has, when hot, the gradient $\tilde z_i - \tilde t_i$: that of $\frac12\lVert\tilde z-\tilde t\rVert^2$. Ba and Caruana
# {cite}`ba2014deep` trained shallow networks to match logits in this way, their means included, before soft targets had a name. How close
# the two gradients are, for Gaussian logits:

# %%
rng = np.random.default_rng(0)
sizes = (10, 100, 1000, 10_000, 128_000)
warm = (1, 4, 20, 100)
cosine = {}
for N in sizes:
    student, teacher = rng.normal(size=(2, N))
    matching = (student - student.mean()) - (teacher - teacher.mean())
    for temperature in warm:
        gradient = (
            N
            * temperature**2
            * reference.forward_kl_gradient(student, teacher, temperature)
        )
        cosine[N, temperature] = (
            gradient @ matching / np.linalg.norm(gradient) / np.linalg.norm(matching)
        )
assert all(cosine[N, 100] > 0.999 for N in sizes)
table(
    ["$N$", *(f"$T={temperature}$" for temperature in warm)],
    [[f"{N:,}", *(f"{cosine[N, temperature]:.4f}" for temperature in warm)] for N in sizes],
    caption="Cosine between the gradient of the soft-target loss and "
    "that of logit matching, Gaussian logits of deviation 1.",
)

# %% [markdown]
# So "multiplying by $N$" is no exotic idea. It is a loss with a long record of training networks. What can explode?
#
# ## A probe
#
# Student and teacher are linear maps from 32 features to $N$ logits; the student starts at zero. Nothing else can go wrong
# here, and $N$ can be taken to 128,000. The reference run uses `SoftTargets(temperature=4)` with plain SGD and a learning
# rate from a sweep. Then the loss is multiplied by $N$, as in `N * SoftTargets(temperature=4)`.

# %%
FEATURES, STEPS, BATCH = 32, 60, 8


def problem(N, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(STEPS * BATCH + 256, FEATURES, generator=generator)
    teacher = nn.Linear(FEATURES, N, bias=False)
    with torch.no_grad():
        teacher.weight.copy_(
            2 * torch.randn(N, FEATURES, generator=generator) / FEATURES**0.5
        )
    labels = torch.zeros(len(features), dtype=torch.long)
    return (
        teacher,
        Examples(features[:-256], labels[:-256]),
        Examples(features[-256:], labels[-256:]),
    )


def distil(N, weight, optimizer, learning_rate, seed=0):
    """KL from the teacher at T = 1 on fresh inputs after 60 steps;
    infinite if the loss did not stay finite.
    """
    teacher, train, test = problem(N, seed)
    student = nn.Linear(FEATURES, N, bias=False)
    nn.init.zeros_(student.weight)
    recipe = Recipe(
        epochs=1, batch_size=BATCH, optimizer=optimizer, learning_rate=learning_rate,
        momentum=0.0, schedule="constant", weight_decay=0.0, augment=False, seed=seed,
    )  # fmt: skip
    try:
        fit(
            student,
            weight * SoftTargets(temperature=T),
            train=train,
            teacher=teacher,
            recipe=recipe,
            device=device,
        )
    except FloatingPointError:
        return np.inf
    student_logits = predict(student, test, batch_size=64, device=device)
    return forward_kl(
        student_logits, predict(teacher, test, batch_size=64, device=device)
    ).item()


# %% [markdown]
# ## SGD: the factor is a learning rate
#
# A gradient step is (learning rate) × (gradient): SGD cannot tell a factor in one from a factor in the other. Sweeping
# the learning rate over many decades, for both losses and three sizes:

# %%
rates = {N: N * 10.0 ** np.arange(-5, 1.01, 0.5) for N in (10, 100, 1000)}
sweep = {}
for N, plain_rates in rates.items():
    for rate in plain_rates:
        sweep[N, "plain", rate] = distil(N, 1.0, "sgd", rate)
        sweep[N, "times N", rate / N] = distil(N, float(N), "sgd", rate / N)

# %% tags=["hide-input"]
figure, panels = plt.subplots(1, 3, figsize=(8.0, 3.1), sharey=True)
for panel, N in zip(panels, rates, strict=True):
    for kind, style, colour in (("plain", "o-", BLUE), ("times N", "s--", ORANGE)):
        points = sorted(
            (rate, value)
            for (size, which, rate), value in sweep.items()
            if (size, which) == (N, kind)
        )
        x, y = np.array(points).T
        panel.loglog(
            x,
            np.where(np.isfinite(y), y, np.nan),
            style,
            color=colour,
            label="$T^2$KL" if kind == "plain" else "$N\\,T^2$KL",
            markersize=4,
        )
    panel.set(title=f"$N={N}$", xlabel="learning rate")
panels[0].set_ylabel("KL from the teacher, end of run")
panels[0].legend(fontsize="small")
show(
    figure,
    label="sweep",
    caption="KL after 60 steps of SGD against the learning rate. The two losses give the same curve, shifted by exactly "
    "$N$. Each has a range in which it learns and a rate from which it fails: neither is more explosive, they are one loss "
    "in two units.",
    alt="Three panels with two identical U-shaped curves each, the orange one shifted to the left by a factor of 10, 100 "
    "and 1000.",
)

# %%
best_rate = {
    N: min(plain_rates, key=lambda rate, N=N: sweep[N, "plain", rate])
    for N, plain_rates in rates.items()
}
shift_error = max(
    abs(sweep[N, "plain", rate] - sweep[N, "times N", rate / N]) / sweep[N, "plain", rate]
    for N, plain_rates in rates.items()
    for rate in plain_rates
    if rate <= best_rate[N]
)
best_over_N = {N: rate / N for N, rate in best_rate.items()}
print(f"largest relative difference up to the best rate: {shift_error:.0e}")
print("best rate / N:", {N: f"{rate:.2g}" for N, rate in best_over_N.items()})
observed("Up to the best rate the two curves are one, shifted by $N$.", shift_error < 1e-2)

# %% [markdown]
# The best learning rate of the *plain* loss grows in proportion to $N$: the bare $1/N$ in its gradient has to be paid for
# somewhere. That gives the reference rate for larger $N$ without another sweep. We take one step of the grid less than the best: the
# limit of stability is set by the *likeliest* class, whose curvature is larger than $1/N$, and more so the more classes there are.
#
# ## Five runs at every N
#
# From $N=10$ to $N=128{,}000$: the reference; $N$ times the loss at the *same* rate; $N$ times the loss at rate$/N$; and Adam
# with and without the factor, at one learning rate for all $N$.

# %%
rate_per_N = min(best_over_N.values()) / 10**0.5
arms = {
    "SGD": lambda N: distil(N, 1.0, "sgd", rate_per_N * N),
    "SGD, ×N, same rate": lambda N: distil(N, float(N), "sgd", rate_per_N * N),
    "SGD, ×N, rate/N": lambda N: distil(N, float(N), "sgd", rate_per_N),
    "Adam": lambda N: distil(N, 1.0, "adam", 0.03),
    "Adam, ×N": lambda N: distil(N, float(N), "adam", 0.03),
}
final = {(name, N): run(N) for N in sizes for name, run in arms.items()}

# %% tags=["hide-input"]
figure, axis = plt.subplots(figsize=(6.8, 3.7))
styles = {
    "SGD": (BLUE, "o-", 9),
    "SGD, ×N, same rate": (VERMILION, "x-", 7),
    "SGD, ×N, rate/N": (ORANGE, "s--", 5),
    "Adam": (GREEN, "o-", 9),
    "Adam, ×N": (PURPLE, "s--", 5),
}
for name, (colour, style, size) in styles.items():
    axis.loglog(
        sizes,
        [final[name, N] for N in sizes],
        style,
        color=colour,
        markersize=size,
        label=name,
    )
axis.set(xlabel="number of classes $N$", ylabel="KL from the teacher, end of run")
axis.legend(fontsize="small", ncols=2)
show(
    figure,
    label="arms",
    caption="KL from the teacher after 60 steps. Multiplying by $N$ at the same rate wrecks SGD; at rate$/N$ it is the same "
    "run, dashes on the line. Adam divides its gradient by its own size, and the factor hardly shows.",
    alt="Log-log plot against the number of classes: one curve far above (SGD times N at the same rate), two coinciding "
    "pairs of curves below.",
)

# %% tags=["hide-input"]
table(
    ["run", *(f"$N={N:,}$" for N in sizes)],
    [[name, *(f"{final[name, N]:.3g}" for N in sizes)] for name in arms],
    caption="KL from the teacher (nats, $T=1$) on fresh inputs after 60 steps; one seed, identical batches in each column.",
)

# %% [markdown]
# Adam's indifference has an end, and it is not where the article sees it. Its denominator is $\sqrt{v} + \epsilon$ with
# $\epsilon = 10^{-8}$. Without the factor the gradient of one weight is of the order of $1/N$ times small numbers; where that comes near
# $\epsilon$, Adam slows down. With the factor it never does. How large is a gradient entry here, at the first step?

# %%
entries = {}
for N in sizes:
    teacher, train, _ = problem(N)
    student = nn.Linear(FEATURES, N, bias=False)
    nn.init.zeros_(student.weight)
    objective = 1.0 * SoftTargets(temperature=T)
    inputs = train.inputs[:BATCH]
    with torch.no_grad():
        teacher_logits = teacher(inputs)
    objective(student_logits=student(inputs), teacher_logits=teacher_logits)[0].backward()
    entries[N] = student.weight.grad.abs().median().item()
table(
    ["$N$", "median entry of the gradient", "over Adam's $\\epsilon$"],
    [[f"{N:,}", f"{v:.1e}", f"{v / 1e-8:,.0f}"] for N, v in entries.items()],
    caption="First step, loss without the factor $N$.",
)

# %% tags=["hide-input"]
same_run = max(abs(final["SGD", N] / final["SGD, ×N, rate/N", N] - 1) for N in sizes)
adam_change = max(abs(final["Adam", N] / final["Adam, ×N", N] - 1) for N in sizes)
worse = {N: final["SGD, ×N, same rate", N] / final["SGD", N] for N in sizes}
display(
    observed(
        "At the same rate the factor $N$ wrecks SGD; at rate$/N$ it is the same run; Adam hardly notices it.",
        all(ratio > 10 for N, ratio in worse.items() if N >= 100)
        and same_run < 0.02
        and adam_change < 0.5,
    )
)
verdict(
    "B10", "depends",
    rf"When hot, $N\,T^2$KL is logit matching. Under SGD at a rate chosen for the plain loss it fails (at $N=1000$ it ends at a KL of "
    rf"{final['SGD, ×N, same rate', 1000]:.0f} against {final['SGD', 1000]:.3f}); at rate$/N$ it is the same run (largest difference over "
    rf"all $N$: {same_run:.1%}). Under Adam it changes the end of the run by at most {adam_change:.1%}, up to $N=128{{,}}000$. The explosion is one "
    r"of the step size, not of the loss.",
)  # fmt: skip

# %% [markdown]
# ## What to do
#
# Leave $N$ out, as everyone does, but for a better reason: with $T^2$ alone, the gradient of the soft loss is comparable with that of the
# cross-entropy ({doc}`03_why_t_squared`), so that the two can be added with weights that mean something.
#
# ## Limits
#
# A linear probe has no depth, no normalisation and no other loss term. In a sum with a cross-entropy the factor $N$ is *not* only
# a learning rate: it is a weight, and at $N=128{,}000$ it would silence the labels. Clipping and weight decay interact with the gradient's size as well.
# A language model has a body below its head, whose gradient has no $1/N$: {doc}`16_a_large_n`.
#
# ## Exercises
#
# ```{exercise}
# :label: ex-clipping
#
# A training loop clips the gradient's norm at 1. Is $N$ times the loss at rate$/N$ still the same run?
# ```
#
# ```{solution} ex-clipping
# :class: dropdown
#
# No. Clipping compares the gradient with a fixed number. Multiplied by $N$ it is clipped almost always, and the rate$/N$ then
# shrinks the clipped step as well: training all but stops.
# ```
#
# ```{exercise}
# :label: ex-weight-decay
#
# And with weight decay that is added to the gradient, as in `torch.optim.SGD`? Which other number has to change with $N$?
# ```
#
# ```{solution} ex-weight-decay
# :class: dropdown
#
# The step is $-\eta(\nabla L + \lambda w)$. Replace $L$ by $NL$ and $\eta$ by $\eta/N$: the decay becomes $\eta\lambda/N$. To keep the run,
# $\lambda$ has to be multiplied by $N$.
# ```
