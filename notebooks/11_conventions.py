# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Conventions of libraries: one name, different losses
#
# A recipe says "KD, $T=4$, weight 0.9". You have the same data, the same networks and another library. You set the same two numbers, and
# train on a different loss. Nothing warns you: each library is right by its own convention.
#
# **At the end you will know** what nine libraries add for the teacher, by what factor a weight has to change between them, where no
# factor exists, and when an optimiser makes the factor irrelevant.
#
# *Needs: one CPU core and a few seconds.*

# %% tags=["parameters"]
profile: str = "cpu"  # "cpu" or "gpu"
temperature: float = 4.0  # at which libraries are compared
beta: float = 0.5  # of the generalised JSD of TRL and Liger, below 1
classes: int = 100  # N
lengths: list[int] = [32, 24, 16, 8]  # of the sequences of the batch, in tokens
max_length: int = 4096  # to which DistillKit 0.1 is configured

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown, display

from kdlab.figures import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    sentence,
    show,
    table,
    use_style,
)
from kdlab.objectives import cross_entropy, forward_kl, generalised_jsd
from kdlab.objectives.conventions import CONVENTIONS, loss_as_in, weight_factor
from kdlab.study.display import Findings, device_for
from kdlab.study.evidence import Quantity
from kdlab.study.parameters import require
from kdlab.study.statements import above, within

use_style()
device = device_for(profile)
require(
    beta < 1,
    f"beta must be below 1: at its ends the JSD is another loss (see the jump), and not {beta:g}.",
)
require(classes > 1, f"classes must be two or more, and not {classes}.")
require(
    max_length >= max(lengths),
    f"max_length must be {max(lengths)} or more, as long as the longest of lengths, and not {max_length}.",
)

# %% tags=["hide-input"]
findings = Findings()

# %% [markdown]
# ## Four questions to ask of a library
#
# All of them add, at weight $w$, a term for the teacher of the form
#
# $$\frac{T^2 \text{ or } 1}{n}\sum_{\text{positions that count}} D(p, q).$$
#
# Which divergence $D$? Is there a $T^2$? Does padding count? What is $n$? The answers are from the sources of
# RepDistiller {cite}`tian2020contrastive`, mdistiller {cite}`zhao2022decoupled`, torchdistill {cite}`matsubara2021torchdistill`, timm
# {cite}`wightman2019timm`, DeiT {cite}`touvron2021deit`, TRL {cite}`vonwerra2020trl`, Liger Kernel {cite}`hsu2024liger`,
# DistillKit {cite}`goddard2024distillkit` in its first and its present form, and TextBrewer {cite}`yang2020textbrewer`. TRL has two rows. “TRL” is its
# `DistillationTrainer`; “TRL GKD” is the older `GKDTrainer`, now experimental. Both, and Liger, call their divergence a JSD, not KD.
# `CONVENTIONS` has each with file, version and line, and `loss_as_in` computes any of them from kdlab's own
# functions. The tests compare it with TRL and Liger themselves, and with the published formulae of the others.

# %% tags=["hide-input"]
table(
    ["library", "$D$", "$T^2$", "padding", "$n$", "default $T$", "default weights"],
    [
        [
            name,
            c.divergence,
            "yes" if c.squared else "no",
            "left out" if c.masked else "counts",
            c.divides_by,
            "–" if c.temperature is None else f"{c.temperature:g}",
            "–"
            if c.weights is None
            else f"{c.weights[0]:g} labels, {c.weights[1]:g} teacher",
        ]
        for name, c in CONVENTIONS.items()
    ],
    caption="What each library does when it is given labels. A dash: there is no default. “Positions” are those that count.",
)

# %% tags=["hide-input"]
table(
    ["library", "read in", "remark"],
    [
        [name, c.source, c.remark or "–"]
        for name, c in CONVENTIONS.items()
        if name != "kdlab"
    ],
    caption="Where each row was read. A line number belongs to the version or commit beside it.",
)

# %% [markdown]
# ## One batch, one temperature, one weight
#
# The sequences have different lengths, so some positions are padding; the temperature is the same, and the weight is one. Libraries made for images do not know
# padding: they get all positions in a row. The options are those that a user sets: TRL's `GKDTrainer` keeps its temperature for sampling and takes its loss at $T=1$.

# %% tags=["hide-input"]
T, longest = temperature, max(lengths)


def make_batch(N=classes, lengths=lengths, seed=0):
    """Student logits, teacher logits, and which positions are real."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths), N)
    teacher, noise = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    student = (1.5 * teacher + 1.5 * noise).to(device).requires_grad_()
    return student, 3 * teacher.to(device), real.to(device)


def teachers_part(library, z, t, real, T=T, beta=beta, labels=True):
    """What a library adds to the loss for the teacher, at weight one."""
    convention = CONVENTIONS[library]
    # its trainer does not hand the temperature on
    T = 1.0 if library == "TRL GKD" else T
    how = {"temperature": T, "beta": beta, "max_length": max_length}
    if convention.masked:
        return loss_as_in(library, z, t, mask=real, **how)
    if convention.images:
        z, t = z.flatten(0, 1), t.flatten(0, 1)
    if library == "torchdistill" and labels:  # the whole loss, less that of the labels
        y = t.argmax(-1)
        whole = loss_as_in(library, z, t, y, hard_weight=1.0, soft_weight=1.0, **how)
        return whole - cross_entropy(z, y)
    return loss_as_in(library, z, t, **how)


def gradient(*arguments, **options):
    loss = teachers_part(*arguments, **options)
    return loss.item(), torch.autograd.grad(loss, arguments[1])[0]


# %% [markdown]
# The gradient is what trains. Three numbers compare it with our own: its size and its direction at the real positions, and
# the part of it that is spent on padding.


# %%
def beside_ours(library, z, t, real, **options):
    """Loss; size and cosine of the gradient at real positions beside kdlab's;
    share of its square on padding.
    """
    loss, g = gradient(library, z, t, real, **options)
    _, ours = gradient("kdlab", z, t, real, T=options.get("T", T))
    a, b = g[real], ours[real]
    size = (a.norm() / b.norm()).item()
    cosine = ((a * b).sum() / a.norm() / b.norm()).item()
    return loss, size, cosine, (g[~real].square().sum() / g.square().sum()).item()


# %% tags=["hide-input"]
z, t, real = make_batch()
cases = {
    name: beside_ours(name, z, t, real) for name in CONVENTIONS if name != "kdlab"
} | {"torchdistill, alpha = 0": beside_ours("torchdistill", z, t, real, labels=False)}

# %% tags=["hide-input"]
order = sorted(cases, key=lambda name: cases[name][1])
colours = [
    PURPLE if cases[name][2] < 0.999 else VERMILION if cases[name][3] > 0.001 else BLUE
    for name in order
]
figure, axis = plt.subplots(figsize=(7.2, 4.2))
for row, (name, colour) in enumerate(zip(order, colours, strict=True)):
    axis.plot([cases[name][1], 1], [row, row], color=colour, linewidth=1.2, alpha=0.6)
    axis.plot(cases[name][1], row, "o", color=colour, markersize=7)
axis.axvline(1.0, color="grey", linewidth=1)
axis.set(
    xscale="log",
    xlabel="gradient of the teacher's part, over kdlab's",
    yticks=range(len(order)),
)
axis.set_yticklabels(order)
of_colour = {
    colour: ", ".join(
        name for name, c in zip(order, colours, strict=True) if c == colour
    )
    or "none"
    for colour in (BLUE, VERMILION, PURPLE)
}
show(
    figure,
    label="sizes",
    caption="The same logits, temperature and weight. (TRL's GKD takes its loss at $T=1$, see below.) Blue: the gradient points where ours does; vermilion: it does, but part of "
    "it is spent on padding; purple: it points elsewhere. The grey line is kdlab.",
    alt="Dots on a logarithmic axis, one a library, from the smallest gradient to the largest: "
    + ", ".join(f"{name} {cases[name][1]:.2g}" for name in order)
    + f" times kdlab's. Vermilion: {of_colour[VERMILION]}. Purple: {of_colour[PURPLE]}.",
)

# %% tags=["hide-input"]
table(
    [
        "library",
        "KD loss",
        "gradient over ours",
        "cosine with ours",
        "spent on padding",
    ],
    [
        [name, f"{loss:.4f}", f"{size:.4f}", f"{cosine:.4f}", f"{padding:.0%}"]
        for name, (loss, size, cosine, padding) in ((n, cases[n]) for n in order[::-1])
    ],
    caption=f"The numbers of the figure: {real.numel()} positions, {int(real.sum())} of them real, $N={classes}$, $T={T:g}$, $\\beta={beta:g}$ for "
    "TRL and Liger (TRL's own default is $\\beta=1$).",
)

# %% [markdown]
# How many different losses are these? Two count as one if they pull the student in the same direction with the same force.


# %% tags=["hide-input"]
def different(names):
    """Groups of names whose gradients agree in size, direction and share of padding."""
    groups = {}
    for name in names:
        groups.setdefault(tuple(round(x, 9) for x in cases[name][1:]), []).append(name)
    return list(groups.values())


losses = different([name for name in CONVENTIONS if name != "kdlab"])

# %% tags=["hide-input"]
by_value = sorted(cases, key=lambda name: -cases[name][0])
place = {
    "value": by_value.index("TextBrewer") + 1,
    "gradient": order[::-1].index("TextBrewer") + 1,
}
Markdown(
    f"The {len(CONVENTIONS) - 1} rows of the first table beside kdlab's are **{len(losses)} losses** here: "
    + "; ".join(" = ".join(group) for group in losses)
    + f". With torchdistill's two branches they are {len(different(cases))}.\n\n"
    f"The value of the loss says little. TextBrewer's is number {place['value']} of {len(cases)} by size, since it is a cross-entropy, which contains the "
    f"teacher's entropy; its gradient is number {place['gradient']}. So loss curves of two libraries cannot be compared."
)

# %% [markdown]
# ## The factor
#
# Where the direction is the same, a factor repairs the size. `weight_factor(source, target, …)` is what to multiply the teacher's weight
# by when a recipe moves from `source` to `target`. It needs what the constants depend on: the temperature, the shape of the batch, for DeiT the
# number of classes.

# %% tags=["hide-input"]
unpadded = make_batch(lengths=[longest] * 4)
shape = unpadded[0].shape[:-1]
measured, stated = {}, {}
for name in CONVENTIONS:
    try:
        stated[name] = weight_factor(
            "mdistiller",
            name,
            temperature=T,
            shape=shape,
            max_length=max_length,
            classes=classes,
        )
    except ValueError as error:
        stated[name], refusal = None, error
    measured[name] = 1 / beside_ours(name, *unpadded)[1]
table(
    ["to", "factor", "measured"],
    [
        [
            name,
            "none" if stated[name] is None else f"{stated[name]:g}",
            f"{measured[name]:.4f}",
        ]
        for name in CONVENTIONS
    ],
    caption=f"From mdistiller to each: the factor, and the ratio of the gradients' sizes, on {shape[0]} sequences of {shape[1]} without padding, $T={T:g}$. Where "
    "there is none, the ratio is that of this batch and of no other.",
)

# %% tags=["hide-input"]
assert all(np.isclose(f, measured[name]) for name, f in stated.items() if f is not None)
sentence(f"Where there is no factor, kdlab says why: “{refusal}”")

# %% [markdown]
# ## When the factor matters
#
# A factor on the *whole* loss is a factor on the learning rate under SGD, and changes nothing under Adam, which
# divides each gradient by its own recent size. It is the teacher's weight *relative to something else* that counts: to
# the labels, to weight decay inside the gradient, to a threshold at which gradients are clipped.
# TRL's two trainers and TextBrewer's defaults have the teacher for their only term; the default optimiser of the `Trainer` on which TRL builds is AdamW.
#
# A small example shows it. A table of logits learns a teacher's distributions over ten classes, its loss multiplied by one, by
# $1/T^2$ (the lost factor) and by $\beta(1-\beta)$ (the factor of a JSD beside a KL).


# %%
FACTORS = {
    "1": 1.0,
    f"1/{T**2:g}": 1 / T**2,
    f"{beta * (1 - beta):.2g}": beta * (1 - beta),
}
SETTINGS = {  # optimiser, its learning rate, weight of the labels
    "AdamW, teacher alone": (torch.optim.AdamW, 0.03, 0.0),
    "SGD, teacher alone": (torch.optim.SGD, 3.0, 0.0),
    "AdamW, with labels": (torch.optim.AdamW, 0.03, 1.0),
}

# %% tags=["hide-input"]
generator = torch.Generator().manual_seed(0)
toy_teacher = 2 * torch.randn(64, 10, generator=generator)
toy_labels = torch.multinomial(toy_teacher.softmax(-1), 1, generator=generator)[:, 0]
toy_teacher, toy_labels = toy_teacher.to(device), toy_labels.to(device)


# %%
def end_of(optimiser, rate, labels_weight, factor, steps=100):
    """KL from the teacher after a training whose teacher's term has this factor."""
    student = torch.zeros(64, 10, device=device, requires_grad=True)
    optimiser = optimiser([student], lr=rate, weight_decay=0.0)
    for _ in range(steps):
        loss = factor * forward_kl(student, toy_teacher)
        loss = loss + labels_weight * cross_entropy(student, toy_labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return forward_kl(student.detach(), toy_teacher).item()


ended = {
    setting: {name: end_of(*how, factor) for name, factor in FACTORS.items()}
    for setting, how in SETTINGS.items()
}

# %% tags=["hide-input"]
table(
    ["", *(f"factor {name}" for name in FACTORS)],
    [
        [setting, *(f"{v:.4f}" for v in values.values())]
        for setting, values in ended.items()
    ],
    caption="KL from the teacher after 100 steps, in nats; nothing is random. Weight decay is zero throughout.",
)

# %% tags=["hide-input"]
SPREAD = Quantity("largest over smallest KL that the factors leave", "", 1, 3)
spread_of = {
    setting: max(values.values()) / min(values.values())
    for setting, values in ended.items()
}
divided_out = "AdamW, teacher alone"
display(
    within(divided_out, 1, 0.001, spread_of, SPREAD),
    above("SGD, teacher alone", divided_out, spread_of, SPREAD, factor=2),
    above("AdamW, with labels", divided_out, spread_of, SPREAD, factor=2),
)

# %% [markdown]
# So in the rest of this chapter “weight” means a weight beside another term, or under SGD. Where the teacher is alone under Adam, two losses that
# differ by a constant factor are one training, up to Adam's $\epsilon$ ({doc}`10_the_bug_museum`, exhibit 1, shows the same for trained networks).
#
# ## What the factor depends on
#
# Here is the same ratio to our gradient, as the temperature, the share of padding and the number of classes vary.

# %% tags=["hide-input"]
LINES = {
    "mdistiller": (BLUE, "-"),
    "DistillKit 1.0": (GREEN, "--"),
    "DistillKit 0.1": (ORANGE, "-"),
    "DeiT": (SKY, "-"),
    "TextBrewer": (VERMILION, "-"),
    "TRL": (PURPLE, "-"),
}
temperatures = np.geomspace(0.5, 20, 13)
paddings = np.unique(np.linspace(0, 0.875 * longest, 8, dtype=int))
widths = (4, 16, 64, 256, 1024, 4096)
of_T = {n: [beside_ours(n, *unpadded, T=x)[1] for x in temperatures] for n in LINES}
batches = [make_batch(lengths=[longest, *[longest - int(k)] * 3]) for k in paddings]
of_padding = {n: [beside_ours(n, *batch)[1] for batch in batches] for n in LINES}
share = [1 - batch[2].double().mean().item() for batch in batches]
wide = [make_batch(N=N, lengths=[min(longest, 32)] * 4) for N in widths]
of_N = {n: [beside_ours(n, *batch)[1] for batch in wide] for n in LINES}


def slope(x, y):
    """Of the last half of a curve on logarithmic axes."""
    half = len(x) // 2
    return np.polyfit(np.log(x[half:]), np.log(y[half:]), 1)[0]


slopes = {
    name: (slope(temperatures, of_T[name]), slope(widths, of_N[name])) for name in LINES
}
falls_with_padding = [n for n in LINES if of_padding[n][-1] < 0.9 * of_padding[n][0]]
falls_with_T = [n for n in LINES if slopes[n][0] < -1.5]
falls_with_N = [n for n in LINES if slopes[n][1] < -0.5]
figure, panels = plt.subplots(1, 3, figsize=(8.6, 3.6), sharey=True)
for name, (colour, style) in LINES.items():
    panels[0].loglog(temperatures, of_T[name], style, color=colour)
    panels[1].semilogy(100 * np.array(share), of_padding[name], style, color=colour)
    panels[2].loglog(widths, of_N[name], style, color=colour, label=name)
panels[2].loglog(widths, 1 / np.array(widths), ":", color="grey", label="÷ N")
panels[0].set(xlabel="temperature", ylabel="gradient over kdlab's")
panels[1].set(xlabel="padding (% of positions)")
panels[2].set(xlabel="classes $N$")
figure.legend(
    *panels[2].get_legend_handles_labels(),
    loc="outside lower center",
    ncols=4,
    fontsize="small",
)
show(
    figure,
    label="dependence",
    caption="Size of the gradient at real positions, over kdlab's. Left: it falls with the temperature, to slopes of "
    + ", ".join(f"{slopes[n][0]:.1f} ({n})" for n in falls_with_T)
    + "; the others do not. Middle: where padding counts, the real "
    f"positions share the gradient with it ({', '.join(falls_with_padding)}). Right: {' and '.join(falls_with_N)} divides by the number of classes, as PyTorch's reduction “mean” does (dotted).",
    alt=f"Three panels of lines. Against temperature, {' and '.join(falls_with_T)} fall. Against padding, {', '.join(falls_with_padding)} fall. "
    f"Against the number of classes {' and '.join(falls_with_N)} falls along a dotted line.",
)

# %% [markdown]
# The figure shows three things.
#
# - **Temperature.** A sweep over $T$ in TextBrewer, in Liger or in TRL's `DistillationTrainer` is also a sweep over the weight, where the weight matters (above).
#   TRL's `GKDTrainer` is an exception: its loss never sees its temperature (below).
# - **Padding.** Where it counts, the teacher's weight depends on how the batch happened to be padded, from step to step. That is not a
#   factor, and `weight_factor` refuses. DistillKit 0.1 also divides by the *configured* length: only for a completely filled batch
#   is that a mean over positions. <!-- by definition -->
# - **Classes.** DeiT divides by them, as a comment in its code says “to have the legacy PyTorch behavior” (`losses.py`, line 63): a second $1/N$ beside the one of
#   {doc}`04_the_one_over_n_question`. On ImageNet its teacher has a thousandth of the weight that the same $\alpha$ has elsewhere. The paper's own choice is the
#   *hard* distillation of the same file, which has no such factor.
#
# At $\beta=0$ and $\beta=1$ TRL and Liger are a forward and a reverse KL, and have a factor. In between there is none to a KL at any finite temperature. At high temperature one
# appears: for $p\approx q$, $\mathrm{JSD}_\beta \approx \beta(1-\beta)\,D_{\mathrm{KL}}$, and the ratio tends to $\beta(1-\beta)/T^2$:

# %% tags=["hide-input"]
rows = []
for hot in (4.0, 20.0, 100.0):
    _, size, cosine, _ = beside_ours("TRL", *unpadded, T=hot)
    rows.append([f"{hot:g}", f"{size * hot**2:.4f}", f"{cosine:.6f}"])
assert np.isclose(size * hot**2, beta * (1 - beta), rtol=0.05)
assert np.isclose(weight_factor("TRL", "kdlab", temperature=T, beta=0.0), 1 / T**2)
table(
    ["$T$", "ratio times $T^2$", "cosine"],
    rows,
    caption=f"TRL's gradient beside that of the KL, at $\\beta={beta:g}$, where $\\beta(1-\\beta)={beta * (1 - beta):g}$.",
)

# %% [markdown]
# ## A T² that comes and goes
#
# torchdistill multiplies by $T^2$ in the same line in which it adds the labels. Where there are none, or where their weight `alpha` is zero, it
# returns earlier: the bare divergence, with neither $T^2$ nor `beta`. Here the labels' weight goes to zero; see the teacher's part:

# %% tags=["hide-input"]
flat = z.flatten(0, 1), t.flatten(0, 1), t.flatten(0, 1).argmax(-1)
bare = torch.autograd.grad(loss_as_in("torchdistill", *flat[:2], temperature=T), z)[0]
rows = []
for alpha in (1.0, 0.1, 0.01, 0.001, 0.0):
    loss = loss_as_in(
        "torchdistill", *flat, temperature=T, hard_weight=alpha, soft_weight=1.0
    )
    teacher = loss - alpha * cross_entropy(flat[0], flat[2])
    ratio = (torch.autograd.grad(teacher, z)[0].norm() / bare.norm()).item()
    rows.append([f"{alpha:g}", f"{ratio:.4f}"])
    assert np.isclose(ratio, T**2 if alpha else 1)
table(
    ["alpha", "teacher's gradient, over that of the bare KL"],
    rows,
    caption=f"torchdistill's KDLoss with beta = 1, $T={T:g}$.",
)

# %% [markdown]
# You meet this step when you tune on labelled data and distil on unlabelled data, or in an ablation "no labels".
#
# TRL's `GKDTrainer` is the other case. Its configuration has a `temperature`, and its loss has one too, but the trainer does not pass it
# on: the option is for sampling, and the loss is always taken at $T=1$. (A test calls the trainer's own `compute_loss`
# to verify this.) `DistillationTrainer`, which is to replace it, passes the same option to both, without a $T^2$. So a
# configuration that moves from one to the other with a temperature other than one changes its loss. By how much?

# %% tags=["hide-input"]
_, thought = gradient("TRL", z, t, real, T=T)
_, trained = gradient("TRL GKD", z, t, real, T=1.0)
sentence(
    f"The gradient at $T={T:g}$ is {(thought.norm() / trained.norm()).item():.3f} times as long as that at $T=1$; their cosine is "
    f"{(thought * trained).sum().item() / (thought.norm() * trained.norm()).item():.3f}."
)

# %% [markdown]
# ## The jump at both ends
#
# TRL's two trainers and Liger take the generalised Jensen–Shannon divergence of GKD {cite}`agarwal2024onpolicy`,
#
# $$\beta D_{\mathrm{KL}}(p\,\|\,m) + (1-\beta) D_{\mathrm{KL}}(q\,\|\,m), \qquad m = \beta p + (1-\beta) q,$$
#
# and describe $\beta$ as a way from forward KL ($\beta=0$) to reverse KL ($\beta=1$). As a formula it is zero at both ends, where the
# mixture *is* one of the two. So the code has a branch for each end, and there the loss jumps.

# %% tags=["hide-input"]
betas = np.linspace(0.002, 0.998, 167)


def at(beta, function):
    with torch.no_grad():
        return function(beta).item()


def as_trl(beta):
    return loss_as_in("TRL", z, t, mask=real, temperature=1.0, beta=float(beta))


def as_kdlab(beta, scaled=False):
    return generalised_jsd(z, t, mask=real, beta=float(beta), scaled=scaled)


ends = {beta: at(beta, as_trl) for beta in (0, 1)}
figure, axis = plt.subplots(figsize=(7.0, 3.6))
axis.plot(betas, [at(b, as_trl) for b in betas], color=BLUE, label="TRL, Liger")
axis.plot(list(ends), list(ends.values()), "o", color=BLUE, markersize=8)
axis.plot(
    [0, 1],
    [at(b, as_kdlab) for b in (0, 1)],
    "o",
    mfc="none",
    color=GREEN,
    markersize=8,
)
axis.plot(
    betas,
    [at(b, lambda x: as_kdlab(x, scaled=True)) for b in betas],
    "--",
    color=ORANGE,
    label="divided by $\\beta(1-\\beta)$",
)
axis.set(xlabel="$\\beta$", ylabel="loss (nats)", ylim=(-0.05, None))
axis.legend()
show(
    figure,
    label="jump",
    caption="The loss against $\\beta$ at $T=1$. Full dots: what TRL and Liger return at the ends; rings: the value of the formula, and of kdlab. Dashed: "
    "divided by $\\beta(1-\\beta)$ it runs into the dots.",
    alt="A low arch that goes to zero at both ends, with dots high above its ends; a dashed curve that joins the two dots.",
)

# %% tags=["hide-input"]
table(
    ["$\\beta$", "TRL", "scaled"],
    [
        [
            f"{b:g}",
            f"{at(b, as_trl):.4f}",
            f"{at(b, lambda x: as_kdlab(x, scaled=True)):.4f}",
        ]
        for b in (0.0, 0.001, 0.01, 0.1, 0.5)
    ],
    caption="The loss (nats) near its end and away from it, at $T=1$.",
)

# %% tags=["hide-input"]
assert at(0.001, as_trl) < 0.01 * ends[0]
assert np.isclose(at(1e-4, lambda x: as_kdlab(x, scaled=True)), ends[0], rtol=0.01)

# %% [markdown]
# So each value of $\beta$ in a sweep has a divergence and a weight of its own. Beside another term, or under SGD, the interior is weaker
# by about $\beta(1-\beta)$, whatever its shape; `generalised_jsd(…, scaled=True)` takes that out. Alone under Adam, as both trainers have it by default, the weights cancel, and what is
# left is the shape, unless gradients are clipped. (Neither convention is wrong. The branch
# is what the name promises, and the unscaled formula what the paper prints.)
#
# ## Moving a recipe
#
# mdistiller's default is 0.1 for the labels and 0.9 for the teacher. In TextBrewer the labels keep their weight and the teacher's is
# multiplied by the factor:

# %%
recipe = {"hard_weight": 0.1, "soft_weight": 0.9}
factor = weight_factor("mdistiller", "TextBrewer", temperature=T)
moved = {"hard_weight": 0.1, "soft_weight": 0.9 * factor}

# %% tags=["hide-input"]
before = loss_as_in("mdistiller", *flat, temperature=T, **recipe)
naive = loss_as_in("TextBrewer", *flat, temperature=T, **recipe)
after = loss_as_in("TextBrewer", *flat, temperature=T, **moved)
wanted, copied, converted = (
    torch.autograd.grad(loss, z)[0] for loss in (before, naive, after)
)
assert torch.allclose(converted, wanted)
miss = {
    "copied": (copied - wanted).norm() / wanted.norm(),
    "converted": (converted - wanted).norm() / wanted.norm(),
}
names_of = zip(CONVENTIONS["TextBrewer"].names, moved.values(), strict=False)
sentence(
    f"In TextBrewer: {', '.join(f'{name} = {value:g}' for name, value in names_of)}. With the numbers copied, the gradient is "
    f"off by {miss['copied'].item():.0%}; converted, by {miss['converted'].item():.0e}."
)

# %% [markdown]
# Some libraries leave no room for it. DistillKit 1.0 divides its weights by their sum; in DistillKit 0.1 one $\alpha$ sets both weights. <!-- by definition --> Then move the ratio, and put
# the rest of the factor into the learning rate.
#
# ## One library, four losses
#
# A name does not fix a loss within one library either. This is TRL's GKD, by its pull requests and the lines that they replaced (they were read, not run):
#
# - the mixture had the weights of teacher and student exchanged, until [#3043](https://github.com/huggingface/trl/pull/3043);
# - without labels it divided by the batch *and* the length, until [#4105](https://github.com/huggingface/trl/pull/4105) left the batch alone. (The description says that the
#   vocabulary was divided by; the line was `jsd.sum() / (jsd.size(0) * jsd.size(1))`, of a tensor of batch, length and vocabulary.);
# - with Liger it trained half on the labels, and at another temperature, until [#5731](https://github.com/huggingface/trl/pull/5731); <!-- by definition -->
# - each micro-batch was averaged over its own tokens, until [#6006](https://github.com/huggingface/trl/pull/6006).
#
# So a recipe is a formula, or a library *with its version*.

# %% tags=["hide-input"]
sized = {name: cases[name][1] for name in CONVENTIONS if name != "kdlab"}
smallest, greatest = min(sized, key=sized.get), max(sized, key=sized.get)
findings.show(
    f"The {len(CONVENTIONS) - 1} conventions are {len(losses)} different losses on one batch at $T={T:g}$: the gradient of the "
    f"teacher's part is between {sized[smallest]:.2g} ({smallest}) and {sized[greatest]:.2g} ({greatest}) times kdlab's.",
    f"Where nothing is padded, {sum(f is not None for name, f in stated.items() if name not in ('kdlab', 'mdistiller'))} of the {len(CONVENTIONS) - 2} others can be reached from mdistiller by a factor on the weight; "
    f"a recipe copied from mdistiller to TextBrewer without it has a gradient that is off by {miss['copied'].item():.0%}.",
    f"In a small example the factor changes the KL at the end by up to {spread_of['SGD, teacher alone']:.1f} times under SGD and by "
    f"{spread_of[divided_out]:.3f} times under AdamW, where the teacher is the only term.",
)

# %% [markdown]
# ## Limits
#
# - What is compared is the loss function. A trainer around it may shift labels, accumulate gradients, clip, or average
#   over ranks, and so change the loss again: DistillKit 1.0, for one, takes its mask from the labels before they are
#   shifted, one position off.
# - The sources were read at the versions that `CONVENTIONS` names. Libraries change; that is the point of the section above.
# - RepDistiller, mdistiller, torchdistill, timm, DeiT, DistillKit and TextBrewer are compared with their formula, written out a second time in the tests, not with their code
#   as it runs. DeiT's teacher is matched by a head of its own, which no formula of one pair of logits shows.
# - The small example of the optimisers is one table of logits. Adam's second moment forgets slowly, so a factor that *changes* during training is not divided out at once.
# - The logits are random. The factors are not: they hold for any logits. The cosines, and the ratios without a factor, are of this batch.
#
# ## To take away
#
# - **Formulae.** $\frac{T^2 \text{ or } 1}{n}\sum D(p,q)$: ask for $D$, $T^2$, padding and $n$. $\mathrm{JSD}_\beta \approx \beta(1-\beta)D_{\mathrm{KL}}$ for $p\approx q$.
# - **What to set.** `weight_factor(source, target, temperature=…, shape=…)` times the teacher's weight; `loss_as_in(library, …)` to check it; `generalised_jsd(…, scaled=True)` where $\beta$ is swept.
# - **What to watch for.** Never compare loss values of two libraries. Say the version. Where padding counts there is no factor.
#
# ## Exercises
#
# ```{exercise}
# :label: ex-conventions-recipe
#
# A paper distils in TextBrewer with $T=2$ and `kd_loss_weight = 1`, without labels. Write it as an objective of kdlab.
# ```
#
# ````{solution} ex-conventions-recipe
# :class: dropdown
#
# ```python
# from kdlab.objectives import SoftTargets
#
# objective = weight_factor("TextBrewer", "kdlab", temperature=2.0) * SoftTargets(temperature=2.0)
# ```
#
# The factor is $1/T^2$. Its loss is lower by the
# teacher's entropy; its gradient is the same. As the teacher is the only term, that factor matters under SGD or clipping and not under Adam.
# ````
#
# ```{exercise}
# :label: ex-conventions-length
#
# With DistillKit 0.1 you halve `max_length`, since no example is that long. Not one token of the data changes. What does?
# ```
#
# ````{solution} ex-conventions-length
# :class: dropdown
#
# ```python
# one, halved = (
#     loss_as_in("DistillKit 0.1", z, t, temperature=T, max_length=length).item()
#     for length in (2 * max_length, max_length)
# )
# print(f"{halved / one:.3f} times the loss")
# ```
#
# The teacher's term doubles, and the cross-entropy, a mean over real tokens, stays: with $\alpha$ unchanged the teacher has twice
# the weight. <!-- by definition --> (Its batches are padded to `max_length`, so that padding halves as well: what
# doubles is the part at real positions.) <!-- by definition -->
# ````
#
# ```{exercise}
# :label: ex-conventions-beta
#
# Someone trains with TRL, the teacher alone, and finds that forward KL ($\beta=0$) "learns much faster than $\beta=0.1$". Which experiment would tell the divergence from the
# weight? What do you expect under AdamW? Do it with the small example above.
# ```
#
# ````{solution} ex-conventions-beta
# :class: dropdown
#
# ```python
# def toy_end(optimiser, rate, loss, steps=100):
#     student = torch.zeros(64, 10, device=device, requires_grad=True)
#     optimiser = optimiser([student], lr=rate, weight_decay=0.0)
#     for _ in range(steps):
#         optimiser.zero_grad()
#         loss(student, toy_teacher).backward()
#         optimiser.step()
#     return forward_kl(student.detach(), toy_teacher).item()
#
#
# tried = {
#     "forward KL": forward_kl,
#     "beta = 0.1": lambda z, t: generalised_jsd(z, t, beta=0.1),
#     "beta = 0.1, scaled": lambda z, t: generalised_jsd(z, t, beta=0.1, scaled=True),
# }
# for name, loss in tried.items():
#     ends_at = [toy_end(*how, loss) for how in ((torch.optim.SGD, 3.0), (torch.optim.AdamW, 0.03))]
#     print(f"{name}: KL {ends_at[0]:.4f} by SGD, {ends_at[1]:.4f} by AdamW")
# ```
#
# Train $\beta=0.1$ with the loss divided by $\beta(1-\beta)$, or tune the learning rate for each. If the difference vanishes it was the
# weight. Under AdamW without clipping the factor cancels, so the difference should stay: then it was the divergence. (With `max_grad_norm`, which `transformers` sets by default, and under SGD it may have been the weight.)
# ````
