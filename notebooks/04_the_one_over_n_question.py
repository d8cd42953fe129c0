# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Should the loss be multiplied by N, too?
#
# At high temperature the gradient is $(\tilde z_i - \tilde t_i)/(NT^2)$ ({doc}`03_why_t_squared`). Multiplying by $T^2$ removes one of the two factors. Why not multiply by
# $N$, the number of classes, as well? Article B: “We omit the $N$ multiplier in the loss scaling because logit differences $(z_{si}-z_{ti})$ are large. Multiplying by
# $N$ (e.g., $128,000$ for an LLM vocab) would cause immediate gradient explosion.” This chapter tries it.
#
# **At the end you will know** what $N$ times the loss is, how large its gradient can become, for which
# optimisers the factor matters, in a linear probe and in a deep network, and how the soft loss compares with the hard one as $N$ grows.
#
# *Needs: one CPU core and under a minute.*

# %% tags=["parameters"]
profile = "cpu"  # or "gpu"
sizes: list[int] = [10, 100, 1000, 10_000, 128_000]  # N; rates are swept up to 1000
temperature: float = 4.0  # of the soft loss
temperatures: list[float] = [1.0, 2.0, 4.0, 10.0, 100.0]  # of the gradients compared
steps: int = 30  # of each run
seed: int = 0  # of data, weights and random logits
margin: float = 1.0  # points of accuracy between recorded students that matter

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown, display
from torch import nn

from kdlab.data import Examples
from kdlab.figures import (
    BLUE,
    GREEN,
    ORANGE,
    PALETTE,
    PURPLE,
    VERMILION,
    show,
    table,
    use_style,
)
from kdlab.objectives import LogitMSE, SoftTargets, forward_kl, soften
from kdlab.study import results
from kdlab.study.display import (
    Findings,
    conditions,
    device_for,
    slots,
    source_note,
    verdict,
)
from kdlab.study.evidence import Among, Quantity
from kdlab.study.parameters import require
from kdlab.study.statements import below, only, power, undecided
from kdlab.theory import reference
from kdlab.training import Recipe, fit, predict

use_style()
device = device_for(profile)
sizes, temperatures = sorted(set(sizes)), sorted(set(temperatures))
require(
    len(sizes) > 1 and 1 < sizes[0] <= 1000,
    "sizes must be two or more, from 2 on, one of them up to 1000: it lends the others its learning rate.",
)
require(
    steps > 1,
    "steps must be two or more: gradients are followed from the first to the last.",
)
swept = [N for N in sizes if N <= 1000]
many = [N for N in sizes if N >= 100] or sizes
some = swept[-1]  # a size to speak of


def count(N):
    """A number of classes within a formula."""
    return f"{N:,}".replace(",", "{,}")


def by_size(function, of=sizes):
    return {f"$N={count(N)}$": function(N) for N in of}


every_size = Among(f"the {len(sizes)} sizes", by_size(str))

# %% tags=["hide-input"]
findings = Findings()

# %% [markdown]
# ## At high temperature, N times the loss is logit matching
#
# At high temperature $N\,T^2 D_{\mathrm{KL}}$ has the gradient $\tilde z_i - \tilde t_i$: that of $\frac12\lVert\tilde z-\tilde t\rVert^2$. Ba and Caruana
# {cite}`ba2014deep` trained shallow networks to match logits in this way, their means included, before soft targets had a name. How close
# the two gradients are, for Gaussian logits:

# %%
rng = np.random.default_rng(seed)
cosine = {}
for N in sizes:
    student, teacher = rng.normal(size=(2, N))
    matching = (student - student.mean()) - (teacher - teacher.mean())
    for T in temperatures:
        gradient = reference.forward_kl_gradient(student, teacher, T)
        cosine[N, T] = (
            gradient @ matching / np.linalg.norm(gradient) / np.linalg.norm(matching)
        )

# %% tags=["hide-input"]
table(
    ["$N$", *(f"$T={T:g}$" for T in temperatures)],
    [[f"{N:,}", *(f"{cosine[N, T]:.4f}" for T in temperatures)] for N in sizes],
    caption="Cosine between the gradient of the soft-target loss and that of logit matching, Gaussian logits of standard deviation 1. "
    f"The smallest at $T={temperatures[-1]:g}$ is {min(cosine[N, temperatures[-1]] for N in sizes):.4f}.",
)

# %% [markdown]
# So $N$ times the loss is nothing exotic. It is a loss that has long been used to train networks.
#
# (bounded)=
# ## The gradient has a bound
#
# The resemblance ends where the logits are far apart. The gradient of $N\,T^2D_{\mathrm{KL}}$ is $N\,T\,(q-p)$. No entry of $q-p$ is larger than one
# and their absolute values sum to at most two, so
#
# $$\lVert q-p\rVert_2^2 \le \max_i\lvert q_i-p_i\rvert\,\sum_i\lvert q_i-p_i\rvert \le 2,
# \qquad \lVert\nabla_z\, N\,T^2D_{\mathrm{KL}}\rVert_2 \le \sqrt2\,N\,T ,$$
#
# whatever the logits are. The gradient of logit matching, $\tilde z-\tilde t$, has no bound. The figure tries logits of
# all sizes; two models that are sure of different classes come as near to the bound as rounding allows.

# %% tags=["hide-input"]
spreads = np.geomspace(1e-1, 1e6, 29)
bounded, unbounded = [], []
for spread in spreads:
    student, teacher = spread * rng.normal(size=(2, 50, some))
    bounded.append(
        some
        * temperature**2
        * reference.forward_kl_gradient(student, teacher, temperature)
    )
    unbounded.append(student - teacher - (student - teacher).mean(-1, keepdims=True))
bounded, unbounded = (np.linalg.norm(g, axis=-1) for g in (bounded, unbounded))
bound = np.sqrt(2) * some * temperature
closest = bounded.max() / bound
assert 0.999 < closest <= 1

# %% tags=["hide-input"]
figure, axis = plt.subplots(figsize=(6.4, 3.3))
axis.loglog(spreads, np.median(bounded, -1), color=BLUE, label="$N\\,T^2$KL")
axis.loglog(spreads, np.median(unbounded, -1), color=ORANGE, label="logit matching")
axis.axhline(bound, color="grey", linestyle=":", label="$\\sqrt{2}\\,N\\,T$")
axis.set(xlabel="standard deviation of the logits", ylabel="gradient norm")
axis.legend(fontsize="small")
show(
    figure,
    label="bound",
    caption=f"Norm of the gradient with respect to the student's logits, $N={count(some)}$, $T={temperature:g}$, median of 50 random pairs. Where the logits are small against $T$, "
    f"the two losses agree; then one meets its bound (the largest single norm is {closest:.4f} of it) and the other grows.",
    alt="Log-log plot of two curves that coincide at the left; one becomes flat at a dotted line, the other rises on as a straight line.",
)

# %% [markdown]
# ## A probe
#
# Student and teacher are linear maps from 32 features to $N$ logits; the student starts at zero. Nothing else can go wrong
# here, and $N$ can have the size of a vocabulary. The reference run uses `SoftTargets` with plain SGD and a learning
# rate from a sweep. Then the loss is multiplied by $N$, as in `N * SoftTargets(temperature)`. The data, the initial weights and the
# batches are the same in all runs of one $N$.

# %% tags=["hide-input"]
FEATURES, BATCH, FRESH = 32, 8, 64


def problem(N):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(steps * BATCH + FRESH, FEATURES, generator=generator)
    teacher = nn.Linear(FEATURES, N, bias=False)
    with torch.no_grad():
        teacher.weight.copy_(
            2 * torch.randn(N, FEATURES, generator=generator) / FEATURES**0.5
        )
    train, test = features.split([steps * BATCH, FRESH])
    return teacher, *(
        Examples(x, torch.zeros(len(x), dtype=torch.long)) for x in (train, test)
    )


def distil(N, objective, optimizer, learning_rate, **more):
    """KL from the teacher at T = 1 on fresh inputs after all steps; infinite if loss or logits did not stay finite."""
    teacher, train, test = problem(N)
    student = nn.Linear(FEATURES, N, bias=False)
    nn.init.zeros_(student.weight)
    recipe = Recipe(
        epochs=1, batch_size=BATCH, optimizer=optimizer, learning_rate=learning_rate, momentum=0.0,
        schedule="constant", seed=seed, **{"weight_decay": 0.0, **more},
    )  # fmt: skip
    try:
        fit(
            student,
            objective,
            train=train,
            teacher=teacher,
            recipe=recipe,
            device=device,
        )
    # the loss, or the logits before it
    except (FloatingPointError, ValueError) as error:
        if "finite" not in str(error):
            raise
        return np.inf
    student_logits, teacher_logits = (
        predict(network, test, device=device) for network in (student, teacher)
    )
    return forward_kl(student_logits, teacher_logits).item()


# %% [markdown]
# ## SGD: the factor is a learning rate
#
# A gradient step is (learning rate) × (gradient): for SGD a factor on one is a factor on the other. Here is a sweep of
# the learning rate over three decades, for both losses, at the sizes up to a thousand:


# %%
def soft(weight):
    return weight * SoftTargets(temperature=temperature)


sweep = {
    (N, name): {
        rate: distil(N, soft(float(weight)), "sgd", rate / weight)
        for rate in N * 10.0 ** np.arange(-2.5, 0.51, 0.5)
    }
    for N in swept
    for name, weight in (("plain", 1), ("times N", N))
}  # by the plain loss's rate
best_rate = {N: min(sweep[N, "plain"], key=sweep[N, "plain"].get) for N in swept}
rate_per_N = min(rate / N for N, rate in best_rate.items()) / 10**0.5

# %% tags=["hide-input"]
figure, panels = plt.subplots(
    1, len(swept), figsize=(8.0, 3.1), sharey=True, squeeze=False
)
for panel, N in zip(panels[0], swept, strict=True):
    for kind, weight, style, colour in (
        ("plain", 1, "o-", BLUE),
        ("times N", N, "s--", ORANGE),
    ):
        x, y = np.array(list(sweep[N, kind].items())).T
        label = "$T^2$KL" if kind == "plain" else "$N\\,T^2$KL"
        panel.loglog(
            x / weight,
            np.where(np.isfinite(y), y, np.nan),
            style,
            color=colour,
            label=label,
            markersize=4,
        )
    panel.set(title=f"$N={count(N)}$", xlabel="learning rate")
panels[0, 0].set_ylabel("KL from the teacher, end of run")
panels[0, 0].legend(fontsize="small")
show(
    figure,
    label="sweep",
    caption=f"KL after {steps} steps of SGD against the learning rate, for the two losses. In exact arithmetic one curve is "
    "the other, shifted by $N$. The plain loss's best rate over $N$: "
    + ", ".join(f"{rate / N:.2g} at $N={count(N)}$" for N, rate in best_rate.items())
    + ".",
    alt="Two curves of one form in each panel, the orange one shifted to the left by a factor of "
    + ", ".join(str(N) for N in swept)
    + ".",
)

# %% tags=["hide-input"]
shift_error = by_size(
    lambda N: max(
        abs(sweep[N, "times N"][rate] / kl - 1)
        for rate, kl in sweep[N, "plain"].items()
        if rate <= best_rate[N]
    ),
    swept,
)
only(
    [],
    shift_error,
    Quantity("the two curves' relative difference up to the best rate", "%", 100, 4),
    above=1,
    among=Among("the sizes of the sweep", shift_error),
)

# %% [markdown]
# The learning rate has to make up for the $1/N$ in the plain loss's gradient. As a reference rate for larger $N$, without another
# sweep, we take the smallest of the best rates divided by $N$, and go one step of the grid lower.
#
# ## Six runs at every N
#
# The reference; $N$ times the loss at the *same* rate; $N$ times the loss at rate$/N$; logit matching,
# $\frac12\lVert\tilde z-\tilde t\rVert^2$, at the same rate as the second; and Adam with and without the factor, at one learning rate for all $N$.

# %%
arms = {
    "SGD": lambda N: distil(N, soft(1.0), "sgd", rate_per_N * N),
    "SGD, ×N, same rate": lambda N: distil(N, soft(float(N)), "sgd", rate_per_N * N),
    "SGD, ×N, rate/N": lambda N: distil(N, soft(float(N)), "sgd", rate_per_N),
    "SGD, logit matching, same rate": lambda N: distil(
        N, N / 2 * LogitMSE(centred=True), "sgd", rate_per_N * N
    ),
    "Adam": lambda N: distil(N, soft(1.0), "adam", 0.03),
    "Adam, ×N": lambda N: distil(N, soft(float(N)), "adam", 0.03),
}
final = {(name, N): run(N) for N in sizes for name, run in arms.items()}


# %% tags=["hide-input"]
def change(name, reference):
    """By how much of it one run's end differs from another's, by size."""
    return by_size(lambda N: abs(final[name, N] / final[reference, N] - 1))


same_run, under_adam = change("SGD, ×N, rate/N", "SGD"), change("Adam, ×N", "Adam")

# %% tags=["hide-input"]
figure, axis = plt.subplots(figsize=(6.8, 3.7))
styles = {
    "SGD": (BLUE, "o-", 9),
    "SGD, ×N, same rate": (VERMILION, "x-", 7),
    "SGD, ×N, rate/N": (ORANGE, "s--", 5),
    "SGD, logit matching, same rate": ("grey", "^:", 7),
    "Adam": (GREEN, "o-", 9),
    "Adam, ×N": (PURPLE, "s--", 5),
}
for name, (colour, style, size) in styles.items():
    ends = [final[name, N] if np.isfinite(final[name, N]) else np.nan for N in sizes]
    axis.loglog(sizes, ends, style, color=colour, markersize=size, label=name)
axis.set(xlabel="number of classes $N$", ylabel="KL from the teacher, end of run")
axis.legend(fontsize="small", ncols=2)
lost = [N for N in sizes if not np.isfinite(final["SGD, logit matching, same rate", N])]
show(
    figure,
    label="arms",
    caption=f"KL from the teacher after {steps} steps. "
    + (
        f"Logit matching became infinite at $N$ = {', '.join(f'{N:,}' for N in lost)}. "
        if lost
        else ""
    )
    + f"SGD with the factor at rate$/N$ differs from the reference by at most {max(same_run.values()):.0e} of it, Adam with it from Adam without by at most "
    f"{max(under_adam.values()):.1%}.",
    alt="Log-log plot against the number of classes, a line for each of the six runs. At the largest the KL is "
    + ", ".join(f"{final[name, sizes[-1]]:.2g} ({name})" for name in arms)
    + ".",
)

# %% tags=["hide-input"]
table(
    ["run", *(f"$N={N:,}$" for N in sizes)],
    [[name, *(f"{final[name, N]:.3g}" for N in sizes)] for name in arms]
    + [
        [
            "SGD, ×N, same rate: KL over $N^2$",
            *(f"{final['SGD, ×N, same rate', N] / N**2:.2f}" for N in sizes),
        ]
    ],
    caption=f"KL from the teacher (nats, $T=1$) on fresh inputs after {steps} steps; one seed, identical batches in each column.",
)

# %% [markdown]
# Where the last row is nearly constant, the KL grows as $N$ squared, and stays finite. Did the gradient explode, then? We take the same steps by hand,
# with and without the factor in the rate, and measure the gradient's length at each step.


# %%
def gradient_lengths(N, rate):
    """Median length of the gradient of N T² KL with respect to the logits, at each step of SGD."""
    teacher, train, _ = problem(N)
    weight, lengths = torch.zeros(N, FEATURES), []
    for inputs in train.inputs.split(BATCH):
        q, p = (
            soften(inputs @ w.T, temperature) for w in (weight, teacher.weight.detach())
        )
        gradient = N * temperature * (q - p)
        lengths.append(gradient.norm(dim=-1).median().item())
        weight -= rate * gradient.T @ inputs / BATCH
    return np.array(lengths)


# %% tags=["hide-input"]
same_rate = {N: gradient_lengths(N, rate_per_N * N) for N in sizes}
rate_over_N = {N: gradient_lengths(N, rate_per_N) for N in sizes}
climb, calm = (
    by_size(lambda N, w=walked: w[N][-1] / w[N][0])
    for walked in (same_rate, rate_over_N)
)

# %% tags=["hide-input"]
figure, axis = plt.subplots(figsize=(6.8, 3.4))
for k, N in enumerate(sizes):
    for walked, style, label in (
        (same_rate, "-", f"$N={count(N)}$"),
        (rate_over_N, "--", None),
    ):
        part = walked[N] / (np.sqrt(2) * N * temperature)
        axis.loglog(
            np.arange(1, steps + 1),
            part,
            style,
            color=PALETTE[k % len(PALETTE)],
            label=label,
        )
axis.axhline(1, color="grey", linestyle=":")
axis.set(xlabel="step", ylabel="length of the gradient, over its bound")
axis.legend(fontsize="small", ncols=2)
show(
    figure,
    label="climb",
    caption=r"The gradient of $N\,T^2$KL with respect to the logits, as a fraction of its bound $\sqrt2\,N\,T$, at each step of SGD: with the rate of the plain loss (solid) and with that rate over "
    "$N$ (dashed); median over the batch. Length at the last step over that at the first, at the plain loss's rate: "
    + ", ".join(f"{times:.3g} at {size}" for size, times in climb.items())
    + ".",
    alt="Log-log plot of the length against the step, a solid and a dashed line for each number of classes, below a dotted line at one.",
)

# %% tags=["hide-input"]
LONGER = Quantity(
    "length of the gradient at the last step over that at the first", digits=2
)
display(
    only(by_size(str, many), climb, LONGER, above=10, among=every_size),
    only(calm, calm, LONGER, below=1, among=every_size),
)

# %% [markdown]
# So with many classes the gradient does explode at the plain loss's rate, but only up to a ceiling. It climbs to the length $N\,T$ of a student that is sure of one class beside a teacher that is not,
# $1/\sqrt2$ of the bound, and stays there. Each step then moves the logits by an amount of the order of $N\cdot N$, and the logits and the KL end at that size. With the rate divided by $N$, the same gradient, $N$ times as long as the plain one at every step, shrinks as the student learns: its length does no harm in itself.
# The gradient of logit matching has no ceiling, and at too large a rate every step multiplies it.
#
# Adam divides its step by $\sqrt{v} + \epsilon$ with $\epsilon = 10^{-8}$. Without the factor the gradient of one weight is of the order of $1/N$
# times small numbers; where that comes near $\epsilon$, Adam would slow down. How large is an entry of the gradient here, at the first step?

# %% tags=["hide-input"]
entries = {}
for N in sizes:
    teacher, train, _ = problem(N)
    inputs, weight = train.inputs[:BATCH], torch.zeros(N, FEATURES, requires_grad=True)
    soft(1.0)(
        student_logits=inputs @ weight.T, teacher_logits=teacher(inputs).detach()
    )[0].backward()
    entries[N] = weight.grad.abs().median().item()
table(
    ["$N$", "median entry of the gradient", "over Adam's $\\epsilon$"],
    [[f"{N:,}", f"{v:.1e}", f"{v / 1e-8:,.0f}"] for N, v in entries.items()],
    caption="First step, loss without the factor $N$.",
)

# %% tags=["hide-input"]
over = [final["SGD, ×N, same rate", N] / N**2 for N in many]
worse = by_size(lambda N: final["SGD, ×N, same rate", N] / final["SGD", N])
END = "change of the run's end by the factor"
display(
    only(
        worse,
        worse,
        Quantity(
            "the KL at the end of SGD with the factor, at the same rate, over that without",
            digits=0,
        ),
        above=10,
        among=every_size,
    )
)
if len(many) > 1:
    overshoot = {
        "SGD, ×N, same rate": {N: final["SGD, ×N, same rate", N] for N in many}
    }
    display(
        power(overshoot, Quantity("KL at the end"), "the number of classes", 2, 0.1)
    )
display(
    only(
        [],
        same_run,
        Quantity(f"relative {END}, SGD at rate over $N$", "%", 100, 4),
        above=1,
        among=every_size,
    )
)
display(
    only(
        [],
        under_adam,
        Quantity(f"relative {END}, Adam", "%", 100, 2),
        above=1,
        among=every_size,
    )
)
verdict(
    "B10", "depends",
    rf"At high temperature, $N\,T^2$KL is logit matching, but its gradient is never longer than $\sqrt2\,N\,T$, whatever the differences of the logits. "
    rf"With SGD at a rate chosen for the plain loss its length changes, at $N={count(some)}$ by a factor of {same_rate[some][-1] / same_rate[some][0]:.0f} from the first step to the last, to {same_rate[some][-1] / (np.sqrt(2) * some * temperature):.2f} of that bound, and the run ends at a KL of {min(over):.2f} to {max(over):.2f} times $N^2$ for $N\ge{many[0]}$ (at $N={count(some)}$ "
    rf"{final['SGD, ×N, same rate', some]:,.0f} against {final['SGD', some]:.3f}); at rate$/N$ it is the same run (largest difference over "
    rf"all $N$: {max(same_run.values()):.0e}). Under Adam the factor changes the end of the run by at most {max(under_adam.values()):.1%}, up to $N={count(sizes[-1])}$.",
    condition="bound to a scale",
)  # fmt: skip

# %% [markdown]
# ## A deep network
#
# A deep network has batch normalisation, momentum, warm-up and weight decay, and the probe has none of them. By algebra the step at rate$/N$ is the same there too if the decay is multiplied by $N$,
# since $\frac{\eta}{N}(N\nabla L+N\lambda w)=\eta(\nabla L+\lambda w)$, but rounding may grow along a training. At the same rate, algebra promises nothing.
# So students of each case are recorded in plan `small`; the same by the published recipe is planned.

# %% tags=["hide-input"]
TIMES_N = {
    "T4-soft1": "SGD",
    "timesN-sgd": "SGD, ×N, same rate",
    "timesN-sgd-scaled": "SGD, ×N, rate/N, decay·N",
    "times1-adam": "Adam",
    "timesN-adam": "Adam, ×N",
}
quoted = {name: f"“{title}”" for name, title in TIMES_N.items()}
for study in (results("small"), results("questions")):
    display(*slots(study, list(TIMES_N), "the factor N in a deep network"))
    if study.complete(list(TIMES_N)):
        adams = study.arm("timesN-adam")[0]["recipe"]["learning_rate"]
        display(
            below("timesN-sgd", "T4-soft1", study, names=quoted),
            undecided("timesN-sgd-scaled", "T4-soft1", margin, study, names=quoted),
            undecided("timesN-adam", "times1-adam", margin, study, names=quoted),
            Markdown(f"{conditions(study)}; with Adam {adams:g}."),
            source_note(study.all(TIMES_N)),
        )

# %% [markdown]
# SGD and Adam are not compared with each other here: they differ in their weight decay, too, and neither rate was tuned.
#
# (soft-and-hard)=
# ## Soft against hard, as N grows
#
# Is there another reason to leave $N$ out, or to put it in? The soft loss is added to a cross-entropy on labels, so we compare the two gradients. Let the
# student be new, $z=0$. At high temperature the soft gradient is $-\tilde t/N$, of norm $s(t)/\sqrt N$ with $s$ the standard deviation of the teacher's logits. The
# gradient of the labels is $q-y$, of norm $\sqrt{1-1/N}$. So their **ratio is $s(t)/\sqrt{N-1}$** with $T^2$, and $N$ times that with $N\,T^2$.
#
# We measure it at the temperatures in use, for two kinds of teacher: Gaussian logits of standard deviation 2, as in the probe, and the same with one logit
# raised until its class has a probability of 0.9 at $T=1$.


# %% tags=["hide-input"]
def sure_teacher(logits, probability=0.9):
    others = np.exp(logits[:, 1:]).sum(-1)
    return np.concatenate(
        [np.log(probability / (1 - probability) * others)[:, None], logits[:, 1:]], -1
    )


ratio, compared = {}, sorted({*temperatures, temperature})
for N in sizes:
    gaussian = 2 * rng.normal(size=(8, N))
    hard = np.sqrt(1 - 1 / N)
    for kind, teacher in (("Gaussian", gaussian), ("sure", sure_teacher(gaussian))):
        for T in compared:
            soft_gradient = T**2 * reference.forward_kl_gradient(
                0 * teacher, teacher, T
            )
            ratio[kind, T, N] = np.median(np.linalg.norm(soft_gradient, axis=-1)) / hard

# %% tags=["hide-input"]
figure, panels = plt.subplots(1, 2, figsize=(7.8, 3.3), sharey=True)
for panel, kind in zip(panels, ("Gaussian", "sure"), strict=True):
    for k, T in enumerate(compared):
        values = [ratio[kind, T, N] for N in sizes]
        panel.loglog(
            sizes, values, "o-", color=PALETTE[k % len(PALETTE)], label=f"$T={T:g}$"
        )
    panel.loglog(
        sizes,
        [2 / np.sqrt(N) for N in sizes],
        color="grey",
        linestyle=":",
        label="$2/\\sqrt{N}$",
    )
    panel.set(title=f"{kind} teacher", xlabel="number of classes $N$")
panels[0].set_ylabel("soft gradient : hard gradient")
panels[0].legend(fontsize="small")
show(
    figure,
    label="soft-and-hard",
    caption=f"The norm of the soft loss's gradient, with $T^2$, over that of the labels', for a new student; median of {len(gaussian)} teachers. Gaussian teacher at $T={temperature:g}$: "
    + ", ".join(
        f"{ratio['Gaussian', temperature, N]:.2g} at $N={count(N)}$" for N in sizes
    )
    + f". Sure teacher at $N={count(sizes[-1])}$: "
    + ", ".join(f"{ratio['sure', T, sizes[-1]]:.2g} at $T={T:g}$" for T in compared)
    + ".",
    alt="Two log-log panels of the ratio against the number of classes, a line for each temperature, beside a dotted line of slope minus one half.",
)

# %% tags=["hide-input"]
falling = {"Gaussian teacher": {N: ratio["Gaussian", temperature, N] for N in sizes}}
power(
    falling,
    Quantity(f"ratio of soft to hard gradient at $T={temperature:g}$"),
    "the number of classes",
    -0.5,
    0.05,
)

# %% [markdown]
# So “comparable gradients” is no reason for either choice. With a large vocabulary and a warm temperature, $T^2$ leaves the soft loss a small fraction of
# the pull, and $N\,T^2$ would give it nearly all. You choose the weights of a sum, and can measure which gradient wins:
# `fit(…, gradient_norms=True)` reports the norm of each weighted term's gradient with respect to the parameters, and
# {meth}`~kdlab.objectives.terms.Objective.gradient_norms` gives it for a single step.

# %% tags=["hide-input"]
findings.show(
    rf"The gradient of $N\,T^2$KL never exceeds $\sqrt2\,N\,T$; the longest of {bounded.size:,} random ones reached {closest:.2%} of it.",
    rf"A linear probe, {steps} steps, one seed: under SGD the factor $N$ is a factor on the rate (at rate$/N$ the end of the run "
    f"changes by at most {max(same_run.values()):.0e} of itself). At the same rate, and $N={count(some)}$, the KL at the end is "
    f"{final['SGD, ×N, same rate', some] / final['SGD', some]:,.0f} times that without the factor.",
    f"Under Adam the factor changes the end of the run by at most {max(under_adam.values()):.1%}, up to $N={count(sizes[-1])}$.",
    f"At $T={temperature:g}$ and $N={count(sizes[-1])}$ a new student's soft gradient is "
    f"{ratio['Gaussian', temperature, sizes[-1]]:.2g} times as long as that of the labels (Gaussian teacher).",
)

# %% [markdown]
# ## Limits
#
# All that this chapter trains is a linear probe, without depth and without another loss term; the deep students are recorded, of one size, and trained briefly. In a sum with a cross-entropy the factor $N$ is *not* only
# a learning rate: it is a weight. Clipping and weight decay interact with the gradient's size as well. The ratio of soft to hard was taken for a new student
# and by its logits; it changes as the student learns.
# A language model has a body below its head, whose gradient has no $1/N$: {doc}`16_a_large_n`.
#
# ## To take away
#
# - **Formulae.** $N\,T^2 D_{\mathrm{KL}} \to \frac12\|\tilde z-\tilde t\|^2$ at high temperature; $\|\nabla_z\,N\,T^2D_{\mathrm{KL}}\| \le \sqrt2\,N\,T$;
#   for a new student, soft to hard gradient is $s(t)/\sqrt{N-1}$ with $T^2$.
# - **What to set.** `SoftTargets(temperature=T)` without $N$, and its weight by `gradient_norms`. If you want the factor, `N * SoftTargets(T)` with the rate divided by $N$.
# - **What to watch for.** Under SGD a factor on the loss is a factor on the rate; under Adam it hardly matters; in a sum it is a weight. Clipping and weight decay notice it.
#
# ## Exercises
#
# ```{exercise}
# :label: ex-clipping
#
# A training loop clips the gradient's norm at 1. Is $N$ times the loss at rate$/N$ still the same run?
# ```
#
# ````{solution} ex-clipping
# :class: dropdown
#
# No. Clipping compares the gradient with a fixed number. Multiplied by $N$ it is clipped sooner, and the rate$/N$ then
# shrinks the clipped step as well. Try it:
#
# ```python
# table(
#     ["clipped at 1", *by_size(str, swept)],
#     [
#         [name, *(f"{distil(N, soft(float(w)), 'sgd', rate_per_N * N / w, max_gradient_norm=1.0):.3g}" for N in swept for w in [weight(N)])]
#         for name, weight in (("SGD", lambda N: 1), ("SGD, ×N, rate/N", lambda N: N))
#     ],
#     caption="KL from the teacher at the end of the run.",
# )
# ```
# ````
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
