# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Contrast
#
# Here are $K$ vectors that the teacher computed. One of them belongs to the input in front of you: which? A student that
# can answer has learned something of the teacher's representation, and need not have copied a single coordinate of it.
# That is contrastive distillation {cite}`tian2020contrastive`. Article A prints a loss for it. Is the loss right, what does
# its value mean, and where should the other $K-1$ vectors come from?
#
# **At the end you will know** why the positive belongs in the denominator; that InfoNCE is a lower bound on mutual
# information, what exactly it leaves out, and which two ceilings it cannot pass; and what it costs, and buys, to take the
# negatives from a memory bank and not from the batch.
#
# *Needs: one CPU core and about a minute and a half. It reads no data.*

# %% tags=["parameters"]
profile = "cpu"

# %% tags=["hide-input"]
import functools
import itertools
import math
import time

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import display

from kdlab.data.posterior import KnownPosterior
from kdlab.figures import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    show,
    table,
    use_style,
)
from kdlab.models import count_parameters, mlp
from kdlab.objectives import (
    CRD,
    ContrastiveMemory,
    CrossEntropy,
    InfoNCE,
    MemoryBank,
    Projector,
    SoftTargets,
    Term,
    info_nce,
)
from kdlab.objectives.contrastive import crd_nce
from kdlab.study import mean_interval, paired_difference
from kdlab.study.display import device_for, observed, verdict
from kdlab.training import Recipe, Taps, accuracy, fit, measure, predict

use_style()
device = device_for(profile)  # checked, not used: these networks are too small for a GPU


# %% [markdown]
# (printed-infonce)=
# ## The loss, printed and right
#
# An example's student vector $s$ is compared with the teacher's vector $t_+$ of the same input, the *positive*, and with
# those of other inputs, the *negatives*. Write $\sigma_+$ and $\sigma_j$ for these similarities divided by a temperature
# $\tau$. (It has nothing to do with the $T$ of the softmax over classes.) InfoNCE {cite}`oord2018representation` is the
# cross-entropy of picking the positive out of all $K$ candidates, **itself included**:
#
# $$L = -\log \frac{e^{\sigma_+}}{e^{\sigma_+} + \sum_{j=2}^{K} e^{\sigma_j}} .$$
#
# Article A differs in two places. It sums over the negatives alone, in the formula and in the sentence below it. And in
# the text that we have, the sum stands over the exponential. The second is probably typesetting: in the same text the
# softmax is upside down too, and so is the $1/N_h$ of the attention loss. The first cannot be. We test both readings.
#
# All three losses depend on a single number, the **margin** $a = \sigma_+ - \log\sum_{j\ge2} e^{\sigma_j}$ between the positive and
# all the negatives together. The right one is $\log(1+e^{-a})$. Without the positive in the sum it becomes $-a$; with the
# fraction inverted as well, $+a$.


# %%
def similarities(student, teacher, temperature=0.1):
    """Cosines over temperature, shape (B, B): row i's positive is on the diagonal."""
    return F.normalize(student, dim=1) @ F.normalize(teacher, dim=1).T / temperature


def margin(scores):
    """The positive less the log-sum-exp of the negatives, shape (B,)."""
    negatives = scores.masked_fill(torch.eye(len(scores), dtype=torch.bool), -torch.inf)
    return scores.diagonal() - negatives.logsumexp(1)


LOSSES = {
    "InfoNCE": lambda a: F.softplus(-a),
    "positive left out": lambda a: -a,
    "inverted too": lambda a: a,
}
generator = torch.Generator().manual_seed(0)
student, teacher = torch.randn(2, 64, 16, generator=generator, dtype=torch.float64)
a = margin(similarities(student, teacher))
assert torch.isclose(
    LOSSES["InfoNCE"](a).mean(), info_nce(student, teacher, temperature=0.1)
)

# %% [markdown]
# The gradients follow. By the positive's similarity they are $-(1-\pi_+)$, $-1$ and $+1$, where $\pi_+$ is the probability that
# InfoNCE gives to the positive. So InfoNCE lets go of an example that it has solved, the second loss never does, and the
# third pushes student and teacher **apart**.

# %%
scores = similarities(student, teacher).requires_grad_()
slopes = {
    name: torch.autograd.grad(loss(margin(scores)).sum(), scores)[0].diagonal()
    for name, loss in LOSSES.items()
}
pi = torch.softmax(scores, 1).diagonal()
assert torch.allclose(slopes["InfoNCE"], pi - 1)
assert (slopes["positive left out"] == -1).all() and (slopes["inverted too"] == 1).all()

# %% [markdown]
# Does it matter in training? Take pairs of Gaussian vectors that share some information, train two small networks with each loss,
# and ask after every few steps how often the positive is the most similar of 64 new candidates.


# %%
DIMENSIONS = 8


def gaussian_pairs(information, n, generator):
    """n pairs of standard normal vectors with a mutual information of so many nats."""
    rho = math.sqrt(-math.expm1(-2 * information / DIMENSIONS))
    s, noise = torch.randn(2, n, DIMENSIONS, generator=generator)
    return s, rho * s + math.sqrt(1 - rho**2) * noise


def train_pair(loss, information, *, batch, steps, every=None):
    """Train encoders for s and t; also, how often the positive is found among 64."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    of_s, of_t = (mlp(DIMENSIONS, 32, hidden_layers=1) for _ in range(2))
    optimiser = torch.optim.Adam([*of_s.parameters(), *of_t.parameters()], 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    found, places = [], torch.arange(64)
    for step in range(steps + 1):
        if every and step % every == 0:
            tests = [gaussian_pairs(information, 64, generator) for _ in range(8)]
            with torch.no_grad():
                hits = [
                    similarities(of_s(s), of_t(t)).argmax(1) == places for s, t in tests
                ]
            found.append(torch.cat(hits).float().mean().item())
        s, t = gaussian_pairs(information, batch, generator)
        value = loss(of_s(s), of_t(t))
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        schedule.step()
    return of_s, of_t, found, value.item()


trained = {
    name: train_pair(
        lambda s, t, loss=loss: loss(margin(similarities(s, t))).mean(),
        8,
        batch=64,
        steps=150,
        every=10,
    )
    for name, loss in LOSSES.items()
}

# %% tags=["hide-input"]
figure, (left, right) = plt.subplots(1, 2, figsize=(7.6, 3.3))
axis = torch.linspace(-6, 6, 200)
for (name, loss), colour, style in zip(
    LOSSES.items(), (BLUE, GREEN, VERMILION), ("-", "--", ":"), strict=True
):
    left.plot(axis, loss(axis), color=colour, linestyle=style, label=name)
    right.plot(
        range(0, 151, 10),
        [100 * f for f in trained[name][2]],
        color=colour,
        linestyle=style,
    )
left.axhline(0, color="grey", linewidth=0.8)
right.axhline(100 / 64, color="grey", linewidth=0.8)
left.set(xlabel="margin $a$", ylabel="loss", ylim=(-6, 6))
left.legend(fontsize="small", loc="upper center")
right.set(xlabel="step", ylabel="positive found among 64 (%)", ylim=(-3, 103))
show(
    figure,
    label="three-losses",
    caption="Left: the three losses are functions of one margin. InfoNCE is flat where the positive has won; the other two go "
    "on without end, in opposite directions. Right: training with each. Chance is the thin line; the inverted loss ends below it.",
    alt="Left: a softplus curve, a falling and a rising straight line. Right: two curves of retrieval accuracy rise steeply "
    "and close together, a third stays at zero.",
)

# %%
for name, (*_, found, value) in trained.items():
    print(f"{name:18s} last loss {value:+6.2f}   positive found {found[-1]:6.1%}")
observed(
    "InfoNCE finds the positive, the inverted loss avoids it, "
    "and the one without the positive ends below zero.",
    trained["inverted too"][2][-1] < 1 / 64 < trained["InfoNCE"][2][-1] / 10
    and trained["InfoNCE"][-1] > 0 > trained["positive left out"][-1],
)

# %% [markdown]
# The inverted loss learns to avoid the positive. The one without the positive *learns well*, and it would be unjust to pass over
# that: it has a name, decoupled contrastive learning, and was proposed on purpose, since its gradient does not fade
# {cite}`yeh2022decoupled`. What it is not is a cross-entropy. It becomes negative, it has no minimum (for similarities without bound), and its
# value does not mean what the next section says of InfoNCE.
#
# (bound)=
# ## What the number means
#
# Let $p(s,t)$ be the joint distribution of the student's and the teacher's vector, $r(s,t) = p(t\mid s)/p(t)$. Draw a pair
# $(s, t_1)$ from it, draw $t_2, \dots, t_K$ from $p(t)$ without looking at $s$, and hide the place of $t_1$ by shuffling.
# By Bayes' rule the probability that candidate $k$ is the positive is $r(s,t_k)/\sum_j r(s,t_j)$. The loss is a cross-entropy
# with that truth, so the best similarity is $\sigma = \log r$, up to any function of $s$, and any other adds a divergence:
#
# $$L = L_{\text{best}} + \mathbb E\, D_{\mathrm{KL}}(\text{true posterior} \,\|\, \text{softmax of } \sigma) .$$
#
# The best loss has two parts,
#
# $$\log K - L_{\text{best}} = \mathbb E \log r(s, t_1) - \mathbb E \log \tfrac1K \textstyle\sum_k r(s, t_k) .$$
#
# The first is $I(S;T)$ by definition. The second is a mutual information as well: $\tfrac1K\sum_k r(s,t_k)$ is the density ratio
# between $s$ and the shuffled **set** of candidates. So nothing is lost without a name:
#
# $$I(S;T) \;=\; \underbrace{\log K - L}_{\text{shown}} \;+\; \underbrace{\mathbb E\,D_{\mathrm{KL}}}_{\text{missed by the critic}} \;+\;
# \underbrace{I(S;\,T_1,\dots,T_K)}_{\text{told by the set as a whole}} .$$
#
# The last two are not negative, hence $I(S;T) \ge \log K - L$. And since $L \ge 0$, what is shown can never exceed $\log K$.
#
# An identity between expectations can be checked without sampling, where there are few enough outcomes to go through
# them all: three values of $s$, four of $t$, a critic that is wrong on purpose. Each part is computed by its own definition.

# %%
joint = np.array([[30.0, 1, 1, 1], [1, 30, 1, 1], [1, 1, 15, 15]])
joint /= joint.sum()
p_s, p_t = joint.sum(1), joint.sum(0)
ratio = joint / np.outer(p_s, p_t)
truth = (joint * np.log(ratio)).sum()


def outcomes(K):
    """All tuples of candidates, (4^K, K), and P(s, tuple) with the positive in front."""
    tuples = np.array(list(itertools.product(range(4), repeat=K)))
    return tuples, joint[:, tuples[:, 0]] * p_t[tuples[:, 1:]].prod(1)


def info_nce_exactly(critic, K, with_positive=True):
    """The expected loss of a critic, a table of exponentials e^σ(s, t)."""
    tuples, probability = outcomes(K)
    candidates = critic[:, tuples]  # (3, 4^K, K)
    below = candidates[..., 0 if with_positive else 1 :].sum(-1)
    return -(probability * np.log(candidates[..., 0] / below)).sum()


def information_of_the_set(K):
    """I(S; T_1 … T_K) from the joint table of s and the shuffled tuple."""
    tuples, _ = outcomes(K)
    of_tuple = p_t[tuples].prod(1)
    pairs = [joint[:, tuples[:, k]] * (of_tuple / p_t[tuples[:, k]]) for k in range(K)]
    shuffled = np.mean(pairs, 0)
    return (shuffled * np.log(shuffled / np.outer(p_s, of_tuple))).sum()


rng = np.random.default_rng(3)
critic = ratio**0.5 * np.exp(0.5 * rng.normal(size=ratio.shape))
sizes = range(1, 9)
parts = []
for K in sizes:
    loss, best = info_nce_exactly(critic, K), info_nce_exactly(ratio, K)
    parts.append((np.log(K) - loss, loss - best, information_of_the_set(K)))
    assert abs(sum(parts[-1]) - truth) < 1e-12 and min(parts[-1]) > -1e-12
above = [np.log(K - 1) - info_nce_exactly(ratio, K, with_positive=False) for K in sizes[1:]]
stretched = -info_nce_exactly(ratio**10, 2, with_positive=False)  # log(K−1) = 0

# %% tags=["hide-input"]
figure, axis = plt.subplots(figsize=(6.6, 3.6))
bottom = np.zeros(len(sizes))
for part, colour, label in zip(
    np.array(parts).T,
    (BLUE, ORANGE, SKY),
    (r"shown, $\log K - L$", "missed by the critic", "told by the set"),
    strict=True,
):
    axis.bar(sizes, part, bottom=bottom, color=colour, label=label, width=0.7)
    bottom = bottom + part
axis.axhline(truth, color="grey", linewidth=1)
axis.text(8.6, truth, " $I(S;T)$", va="center")
axis.plot(
    sizes[1:], above, "o", color=VERMILION, label=r"positive left out, $\log (K-1) - L$"
)
axis.set(
    xlabel="number of candidates $K$",
    ylabel="nats",
    ylim=(0, 1.6 * max(truth, *above[1:])),
    xlim=(0.4, 8.6),
    xticks=list(sizes),
)
axis.legend(fontsize="small", ncols=2, loc="upper right")
show(
    figure,
    label="account",
    caption="The account of the information, by enumeration. For every $K$ the three parts add up to $I(S;T)$. More candidates shrink "
    "what the set tells as a whole; what a wrong critic misses stays missed. Dots: with the positive left out the number is too "
    "large, although the critic is the true one.",
    alt="Stacked bars for one to eight candidates, all of one height. The part shown by the loss grows with the number of "
    "candidates. Red dots lie above the bars and sink towards them.",
)

# %% [markdown]
# The dots have a reason. With the true ratio for a critic, leaving the positive out gives an *upper* bound: by Jensen's
# inequality $\mathbb E\log\frac{1}{K-1}\sum_{j\ge2} r(s,t_j) \le 0$. It is known as the leave-one-out bound
# {cite}`poole2019variational`. But the true ratio is what nobody has. For any other critic it bounds nothing: stretch the similarities and it grows
# as you please. InfoNCE stays below for **every** critic; the next cell tries a thousand.

# %%
wild = [
    np.log(5) - info_nce_exactly(np.exp(rng.normal(size=(3, 4)) * rng.exponential(3)), 5)
    for _ in range(500)
]
wild += [np.log(5) - info_nce_exactly(ratio ** rng.uniform(0, 6), 5) for _ in range(500)]
print(
    f"I = {truth:.3f} nats.  InfoNCE, a thousand critics: at most {max(wild):.3f}.  "
    f"Positive left out, similarities times ten: {stretched:.3f}."
)
assert max(wild) <= truth < min(above) and stretched > 3 * truth

# %% [markdown]
# ## On Gaussians, where the truth is known
#
# Now with vectors. For $d$ pairs of coordinates with correlation $\rho$, $I = -\frac d2\log(1-\rho^2)$, and the true log-ratio is a
# quadratic form. That gives the best possible critic in closed form. Beside it, what a *learned* critic shows: two small networks, trained by
# `info_nce` on 512 candidates at $\tau = 0.05$, and measured on pairs that they have not seen. The best critic does not depend on $K$,
# so one training serves for all three.


# %%
def log_ratio(s, t, information):
    """log p(t | s) / p(t) for every s and every t, shape (B, B)."""
    squared = -math.expm1(-2 * information / DIMENSIONS)
    norms = s.square().sum(1, keepdim=True) + t.square().sum(1)
    quadratic = squared * norms - 2 * math.sqrt(squared) * s @ t.T
    return information - quadratic / (2 * (1 - squared))


def shown(s, t, K, critic):
    """log K − L over batches: mean, standard error; mean with the positive left out."""
    margins = [margin(critic(a, b)) for a, b in zip(s.split(K), t.split(K), strict=True)]
    right = torch.stack([math.log(K) - F.softplus(-a).mean() for a in margins])
    out = torch.stack([math.log(K - 1) + a.mean() for a in margins])
    return right.mean().item(), right.std().item() / len(right) ** 0.5, out.mean().item()


SIZES = (8, 64, 512)
truths = np.linspace(0.5, 12, 13)
best = {K: [] for K in SIZES}
for information in truths:
    s, t = gaussian_pairs(information, 4096, torch.Generator().manual_seed(1))
    for K in SIZES:
        best[K].append(
            shown(s, t, K, lambda a, b, i=information: log_ratio(a.double(), b.double(), i))
        )
best = {K: np.array(values) for K, values in best.items()}
for K in SIZES:
    assert (best[K][:, 0] - 4 * best[K][:, 1] < np.minimum(truths, np.log(K))).all()


# %%
def learn(information, temperature, K=512, steps=200):
    """Train by info_nce; embeddings of 4096 new pairs."""

    def loss(s, t):
        return info_nce(s, t, temperature=temperature)

    of_s, of_t, *_ = train_pair(loss, information, batch=K, steps=steps)
    s, t = gaussian_pairs(information, 4096, torch.Generator().manual_seed(1))
    with torch.no_grad():
        return of_s(s), of_t(t)


learned_at = (1, 2, 4, 6, 8, 10, 12)
embedded = {information: learn(information, 0.05) for information in learned_at}
cold = functools.partial(similarities, temperature=0.05)
learned = {K: np.array([shown(*embedded[i], K, cold) for i in learned_at]) for K in SIZES}
observed(
    r"No learned critic shows more than the truth or $\log K$, "
    "up to the error of the samples.",
    all(
        (of_K[:, 0] - 4 * of_K[:, 1] < np.minimum(learned_at, np.log(K))).all()
        for K, of_K in learned.items()
    ),
)

# %% tags=["hide-input"]
figure, panels = plt.subplots(1, 2, figsize=(7.8, 4.0), sharey=True)
for panel, title in zip(panels, ("best critic", "learned critic"), strict=True):
    panel.plot([0, 12], [0, 12], color="grey", linewidth=1)
    for K, colour in zip(SIZES, (PURPLE, GREEN, BLUE), strict=True):
        panel.axhline(np.log(K), color=colour, linewidth=1, linestyle=":")
        x, y = (truths, best[K]) if title == "best critic" else (learned_at, learned[K])
        marker = "o" if panel is panels[1] else None
        panel.plot(x, y[:, 0], color=colour, marker=marker, label=f"$K={K}$")
    panel.set(title=title, xlabel="true information (nats)", ylim=(0, 9), xlim=(0, 12))
panels[0].plot(
    truths,
    best[64][:, 2],
    color=VERMILION,
    linestyle="--",
    label="$K=64$, positive\nleft out",
)
panels[0].set_ylabel("shown (nats)")
panels[0].legend(fontsize="small", loc="upper left")
show(
    figure,
    label="gaussians",
    caption=r"What InfoNCE shows of the mutual information of Gaussian vectors. It follows the diagonal, then bends under its ceiling $\log K$ "
    "(dotted): with eight candidates it can hardly tell four nats from twelve. The learned critic comes near the best one, and no "
    "nearer than the ceiling allows. With the positive left out (dashed) the best critic shows too much.",
    alt="Two panels of three curves each against the true information. Each follows the grey diagonal at first and then "
    "levels off at its dotted ceiling; a dashed curve rises above the diagonal.",
)

# %% tags=["hide-input"]
at = int(np.argmin(np.abs(truths - 6.25)))
literal = trained["inverted too"][2][-1]
verdict(
    "A12", "corrected",
    rf"The positive belongs among the candidates: $L=-\log\bigl(e^{{\sigma_+}}/\sum_{{k=1}}^K e^{{\sigma_k}}\bigr)$, the positive being one of the $K$. Only then is it a cross-entropy and "
    rf"$I(S;T)\ge\log K-L$, for every critic. Gaussians with {truths[at]:.2f} nats show {best[64][at, 0]:.2f} with $K=64$ (ceiling {np.log(64):.2f}) and {best[512][at, 0]:.2f} with "
    rf"$K=512$ ({np.log(512):.2f}); with the positive left out, $K=64$ shows {best[64][at, 2]:.2f}. That loss still trains; read literally, with the fraction inverted, it "
    rf"pushes student and teacher apart: the positive is found in {literal:.1%} of the cases (chance {1 / 64:.1%}).",
)  # fmt: skip

# %% [markdown]
# (tau)=
# ## The temperature is a ceiling, too
#
# Embeddings of length one have similarities in $[-1, 1]$, so logits in $[-1/\tau, 1/\tau]$: a critic of limited voice. Its limit is
# easily found. By Jensen's inequality $\log\frac1K\sum_k e^{\sigma_k} \ge \frac1K\sum_k\sigma_k$, so in a batch of $K$ pairs
#
# $$\log K - L \;\le\; \frac1\tau\Bigl(\frac1K\sum_i s_i\!\cdot t_i - \bar s\cdot\bar t\Bigr)
# \;=\; \frac1{\tau K}\sum_i (s_i-\bar s)\cdot(t_i-\bar t) \;\le\; \frac1\tau .$$
#
# The last step is Cauchy and Schwarz's. So **InfoNCE of unit vectors shows at most $\min(\log K, 1/\tau)$ nats**, and the
# middle term says what it rewards where $\tau$ is large: covariance. Towards small $\tau$ another price rises. The gradient falls on ever
# fewer negatives, those most similar to the example. Their effective number is the exponential of the entropy of their weights.

# %%
temperatures = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
by_temperature, effective = [], []
for tau in temperatures:
    s, t = embedded[6] if tau == 0.05 else learn(6, tau)
    at_tau = functools.partial(similarities, temperature=tau)
    by_temperature.append(shown(s, t, 512, at_tau)[0])
    logits = at_tau(s[:512], t[:512]).fill_diagonal_(-torch.inf)
    weights = torch.softmax(logits, 1)
    effective.append(torch.special.entr(weights).sum(1).exp().median().item())
assert (by_temperature < np.minimum(np.log(512), 1 / np.array(temperatures))).all()

# %% tags=["hide-input"]
figure, (left, right) = plt.subplots(1, 2, figsize=(7.6, 3.4))
fine = np.geomspace(0.01, 1, 200)
left.plot(
    fine,
    np.minimum(np.log(512), 1 / fine),
    color="grey",
    linestyle=":",
    label=r"$\min(\log K, 1/\tau)$",
)
left.axhline(6, color="grey", linewidth=1, label="true information")
left.plot(temperatures, by_temperature, "o-", color=BLUE, label="shown")
left.set(xscale="log", xlabel=r"$\tau$", ylabel="nats", ylim=(0, 7.2))
left.legend(fontsize="small", loc="lower left")
right.plot(temperatures, effective, "o-", color=ORANGE)
right.set(
    xscale="log",
    yscale="log",
    xlabel=r"$\tau$",
    ylabel="effective number of negatives",
    ylim=(0.8, 700),
)
right.axhline(511, color="grey", linewidth=1, linestyle=":")
show(
    figure,
    label="tau",
    caption=r"Gaussians with 6 nats, unit embeddings trained at each $\tau$ with $K=512$. Left: a hot critic is held down by $1/\tau$, "
    "a colder one than needed shows no more. Right: how many of the 511 negatives share the gradient (median over examples).",
    alt="Left: a hump-shaped curve below a dotted ceiling that falls with the temperature beyond a tenth. Right: the effective "
    "number of negatives grows from a few to nearly all as the temperature rises.",
)

# %% [markdown]
# So a better bound is not a better teacher. $\tau$ chooses which negatives are worth the student's attention, and a task decides that, not
# the information.
#
# ## Batch or bank
#
# A negative is the teacher's vector of some other input. The batch offers $B-1$ of them for nothing. A **memory bank** keeps the vector of
# every training example as it was when last seen {cite}`wu2018unsupervised`; CRD keeps two, of the teacher's and of the student's embeddings, and
# draws 16,384 negatives a step for CIFAR-100's 50,000 images. What it costs can be counted, and timed: forward and backward pass of the
# loss alone, batches of 64, embeddings of width 128, each variant in turn and the median of the turns.

# %%
B, D, CIFAR, IMAGENET = 64, 128, 50_000, 1_281_167
generator = torch.Generator().manual_seed(0)
student_features, teacher_features = torch.randn(2, B, 64, generator=generator)
labels = torch.randint(100, (B,), generator=generator)
index = torch.randperm(CIFAR, generator=generator)[:B]
torch.manual_seed(0)
to_teacher = Projector("linear", 64, 64)
memories = {
    K: ContrastiveMemory(64, 64, CIFAR, width=D, negatives=K) for K in (1024, 16384)
}
calls = {"batch": lambda: info_nce(to_teacher(student_features), teacher_features)}
for K, memory in memories.items():
    calls[K] = lambda m=memory: m(student_features, teacher_features, labels, index)
timed = {name: [] for name in calls}
for turn in range(8):
    for name, call in calls.items():
        started = time.perf_counter()
        call().backward()
        if turn:  # the first is for warming up
            timed[name].append(1e3 * (time.perf_counter() - started))
timed = {name: np.median(values) for name, values in timed.items()}
kept = sum(b.nbytes for b in memories[16384].buffers())


def bank_row(K, shared=True):
    gathered = 2 * 4 * D * (K if shared else B * (K + 1))
    return [
        f"bank, {K:,}" + ("" if shared else ", drawn for each example"),
        f"{kept / 1e6:.0f} MB",
        f"{kept / CIFAR * IMAGENET / 1e9:.1f} GB",
        f"{gathered / 1e6:.1f} MB",
        f"{2 * B * (K + 1) * D / 1e6:.0f}",
        f"{timed[K]:.1f} ms" if shared else "–",
    ]


# %% tags=["hide-input"]
table(
    [
        "negatives",
        "kept, CIFAR-100",
        "kept, ImageNet",
        "fetched a step",
        "10⁶ multiply-adds",
        "measured",
    ],
    [
        ["batch, 63", "0", "0", "0", f"{B * B * 64 / 1e6:.1f}", f"{timed['batch']:.1f} ms"],
        bank_row(1024),
        bank_row(16384),
        bank_row(16384, shared=False),
    ],
    caption="The cost of negatives. Bytes and multiply-adds (of the similarities, forward) are counted, times measured in this build. "
    "The published code of CRD draws for each example, the last row; kdlab draws once for the batch.",
)

# %% [markdown]
# The bank also asks for something that no table shows: a training set of fixed size, whose examples are met again and again and can be told apart by an index. A language
# model that sees each text once has no use for it.
#
# ## How a bank is kept honest
#
# For the rest of the chapter, a task small enough to repeat: twenty classes in five superclasses, a
# teacher trained on many examples, a narrow student that has a thousand. The embedding is what goes into the last layer.

# %%
task = KnownPosterior.draw(superclasses=5, classes_each=4, seed=0)
generator = torch.Generator().manual_seed(1)
plenty, train, validation, test = (
    task.sample(n, generator=generator) for n in (20_000, 1024, 4000, 20_000)
)
LAYER, WIDTH, TEACHER_WIDTH, TAU = "input:4", 32, 256, 0.1


def new_student(seed):
    torch.manual_seed(1000 + seed)
    return mlp(16, task.num_classes, width=WIDTH)


def recipe(**changes):
    plain = {"optimizer": "adam", "learning_rate": 1e-2, "weight_decay": 0.0}
    plain |= {"batch_size": 128, "schedule": "cosine", "augment": False}
    return Recipe(**plain | changes)


torch.manual_seed(0)
teacher = mlp(16, task.num_classes, width=TEACHER_WIDTH)
fit(teacher, CrossEntropy(), train=plenty, recipe=recipe(epochs=3, learning_rate=3e-3))
teacher_test = predict(teacher, test)
print(
    f"teacher {count_parameters(teacher):,} parameters, "
    f"student {count_parameters(new_student(0)):,}; test accuracy: "
    f"teacher {accuracy(teacher_test, test.labels):.1%}, best possible "
    f"{accuracy(task.posterior_logits(test.inputs), test.labels):.1%}"
)

# %% [markdown]
# ### Keyed by example, and in the checkpoint
#
# An entry belongs to an example, not to a place in the batch: batches are shuffled, and an entry filed by place would be someone else's. And the bank is
# part of the run's state. A run that resumes without it starts again with random negatives.

# %%
bank = MemoryBank(len(train), 8, momentum=0.0)
embedding = F.normalize(torch.randn(4, 8, generator=generator), dim=1)
where = torch.tensor([7, 3, 900, 42])
bank.update(where, embedding, train.labels[where])
shuffled = torch.tensor([2, 0, 3, 1])
bank.update(where[shuffled], embedding[shuffled], train.labels[where[shuffled]])
assert torch.allclose(bank.entries[where], embedding)
assert {"entries", "labels"} <= bank.state_dict().keys()

# %% [markdown]
# ### Its age
#
# The student moves on and its entries do not. Here CRD trains three students, with different momentum $\mu$ of the bank: an
# entry becomes $\mu$ parts old and $1-\mu$ parts new. After every epoch each entry is compared with what the networks say *now*, and sorted by its age in steps.


# %%
class LastSeen(Term):
    """No loss; remembers at which step each example was seen last."""

    needs_teacher = False

    def __init__(self, examples):
        super().__init__()
        self.register_buffer("step", torch.zeros(examples, dtype=torch.int64))
        self.now = 0

    def extra_repr(self):
        return f"examples={len(self.step)}"

    def forward(self, *, student_logits, index, **_):
        self.now += 1
        self.step[index] = self.now
        return 0.0 * student_logits.sum()


def crd(**options):
    plain = {"width": 32, "negatives": len(train) // 3, "temperature": TAU}
    return CRD(
        LAYER,
        student_width=WIDTH,
        teacher_width=TEACHER_WIDTH,
        examples=len(train),
        **plain | options,
    )


@torch.no_grad()
def embeddings(student, memory):
    """What both networks would enter into the banks now, for every training example."""
    hidden = [Taps(model, [LAYER])(train.inputs)[1][LAYER] for model in (student, teacher)]
    maps = (memory.student_map, memory.teacher_map)
    return [F.normalize(m(h), dim=1) for m, h in zip(maps, hidden, strict=True)]


MOMENTA, EPOCHS = (0.0, 0.5, 0.9), 10
fresh, runs = {}, {}
for momentum in MOMENTA:
    student = new_student(0)
    torch.manual_seed(0)
    seen = LastSeen(len(train))
    objective = CrossEntropy() + 0.1 * crd(momentum=momentum) + 1.0 * seen
    memory = objective.terms[1].memory
    fresh[momentum] = []

    def compare(entry, student=student, memory=memory, seen=seen, momentum=momentum):
        banks = (memory.student_bank, memory.teacher_bank)
        cosines = [
            (bank.entries * now).sum(1)
            for bank, now in zip(banks, embeddings(student, memory), strict=True)
        ]
        fresh[momentum].append((seen.now - seen.step, *cosines))

    how = recipe(epochs=EPOCHS, batch_size=32, schedule="constant", seed=0)
    fit(student, objective, train=train, teacher=teacher, recipe=how, report=compare)
    runs[momentum] = (student, memory)

# %% tags=["hide-input"]
figure, (left, right) = plt.subplots(1, 2, figsize=(7.8, 3.6), sharey=True)
for momentum, colour in zip(MOMENTA, (BLUE, GREEN, ORANGE), strict=True):
    age, of_student, of_teacher = fresh[momentum][2]
    ages = np.arange(0, 32)
    for values, style in ((of_student, "-"), (of_teacher, ":")):
        left.plot(
            ages, [values[age == k].mean() for k in ages], color=colour, linestyle=style
        )
        right.plot(
            range(1, EPOCHS + 1),
            [epoch[1 if style == "-" else 2].mean() for epoch in fresh[momentum]],
            color=colour,
            linestyle=style,
            label=rf"$\mu={momentum:g}$" if style == "-" else None,
        )
left.set(
    xlabel="age of the entry (steps)",
    ylabel="cosine with the embedding now",
    title="after three epochs",
    ylim=(-0.05, 1.05),
)
right.set(xlabel="epoch", title="mean over the bank")
right.legend(fontsize="small", loc="lower right")
show(
    figure,
    label="age",
    caption=r"How far entries lag behind, student's bank solid, teacher's dotted. Left: the oldest entries are an epoch old. With "
    r"$\mu=0$ the newest are exact, with momentum they are averages over past epochs. Right: entries start as random vectors, and with $\mu=0.9$ "
    "the beginning is remembered for long.",
    alt="Left: cosine falls with age, and lies lower for larger momentum. Right: mean cosine rises over the epochs, at once for "
    "no momentum and slowly for momentum nine tenths.",
)

# %%
for momentum in MOMENTA:
    first, last = (
        [values.mean().item() for values in fresh[momentum][epoch][1:]] for epoch in (0, -1)
    )
    print(
        f"momentum {momentum:.1f}: mean cosine after one epoch, "
        f"student {first[0]:.2f}, teacher {first[1]:.2f}; "
        f"after {EPOCHS}, {last[0]:.2f} and {last[1]:.2f}"
    )
observed(
    "After the first epoch a bank of momentum 0.9 is less than "
    "half as close to the present as one without.",
    fresh[0.9][0][1].mean() < 0.5 * fresh[0.0][0][1].mean(),
)

# %% [markdown]
# The *teacher* is frozen, and yet its entries age: what moves is the learned map on top of it. In distillation that is a choice.
# Without the map the teacher's vectors are constants that could be stored once and never age. A later experiment does that.
#
# ### Where the positive comes from
#
# A softmax over banks needs a positive. The embedding of this moment suggests itself, and it is a trap: the positive is then new and all
# negatives are old, so *age* tells them apart. Take vectors that know nothing of any example, noise around one direction that all share. Nothing is shown,
# as it should be. Now let the direction turn a little at every step:


# %%
def softmax_loss(anchor, positive, negatives, added):
    scores = torch.cat([(anchor * positive).sum(1, keepdim=True), anchor @ negatives.T], 1)
    scores = scores / TAU + F.pad(added, (1, 0))
    return (scores.logsumexp(1) - scores[:, 0]).mean()


def shown_of_nothing(turn):
    """Nats shown in the last of four epochs by noise that shares a turning direction."""
    torch.manual_seed(0)
    bank, values = MemoryBank(len(train), 32), []
    for index in torch.cat([torch.randperm(len(train)) for _ in range(4)]).split(32):
        angle = torch.tensor(turn * len(values))
        common = F.pad(torch.stack([angle.cos(), angle.sin()]), (0, 30))
        s, t = F.normalize(common + 0.05 * torch.randn(2, 32, 32), dim=-1)
        drawn, added, number = bank.negatives(index, train.labels[index], len(train) // 3)
        loss = softmax_loss(s, t, bank.entries[drawn], added)
        values.append(number.float().add(1).log().mean() - loss)
        bank.update(index, t, train.labels[index])
    return torch.stack(values[-32:]).mean().item()


still, turning = shown_of_nothing(0.0), shown_of_nothing(0.04)
print(f"truth 0 nats; shown {still:+.2f} at rest, {turning:+.2f} while turning")
assert still < 0.1 and turning > 3

# %% [markdown]
# That is no violation of the bound. The derivation asked for negatives drawn from the *same* distribution as the positive, and yesterday's embeddings
# are not. Networks find it out: they drift, all embeddings together, and the loss falls though no example has been told from another. CRD takes the
# positive **from the bank**, as old as the negatives. Here both are trained, and judged twice: by the negatives that they were trained with, and by the same examples
# embedded anew.


# %%
class BankSoftmax(CRD):
    """The softmax over CRD's banks, with the positive of now or that of the bank."""

    def __init__(self, positive, **options):
        super().__init__(LAYER, **options)
        self.positive = positive

    def forward(self, *, student_hidden, teacher_hidden, labels, index, **_):
        hidden = next(self.captured(student_hidden, teacher_hidden))
        m, total = self.memory, 0.0
        maps, banks = (m.student_map, m.teacher_map), (m.student_bank, m.teacher_bank)
        now = [F.normalize(f(h), dim=1) for f, h in zip(maps, hidden, strict=True)]
        drawn, added, _ = banks[1].negatives(index, labels, m.number)
        for anchor, other in ((0, 1), (1, 0)):
            entries = banks[other].entries
            positive = now[other] if self.positive == "now" else entries[index]
            total = total + softmax_loss(now[anchor], positive, entries[drawn], added)
        if self.training:
            for bank, embedded in zip(banks, now, strict=True):
                bank.update(index, embedded, labels)
        return total


def bank_softmax(positive):
    return BankSoftmax(positive, **crd().options)


claimed = {"now": [], "bank": []}
for positive, measured in claimed.items():
    student = new_student(0)
    torch.manual_seed(0)
    objective = CrossEntropy() + 0.1 * bank_softmax(positive)
    memory = objective.terms[1].memory

    def judge(entry, student=student, memory=memory, positive=positive, measured=measured):
        """Nats shown by the bank's negatives, by fresh ones; mean cosine of strangers."""
        (s, t), some = embeddings(student, memory), torch.arange(256)
        with torch.random.fork_rng():
            drawn, added, number = memory.teacher_bank.negatives(
                some, train.labels[some], len(train) // 3
            )
        entries = memory.teacher_bank.entries
        used = t if positive == "now" else entries
        most = number.float().add(1).log().mean()
        measured.append(
            (
                most - softmax_loss(s[some], used[some], entries[drawn], added),
                most - softmax_loss(s[some], t[some], t[drawn], added),
                (s @ t.T).mean(),
            )
        )

    how = recipe(epochs=EPOCHS, batch_size=32, schedule="constant", seed=0)
    fit(student, objective, train=train, teacher=teacher, recipe=how, report=judge)
claimed = {name: np.array(values) for name, values in claimed.items()}

# %% tags=["hide-input"]
figure, panels = plt.subplots(1, 2, figsize=(7.8, 3.4), sharey=True)
titles = {"now": "positive of this moment", "bank": "positive from the bank"}
for panel, (name, title) in zip(panels, titles.items(), strict=True):
    epochs = np.arange(1, EPOCHS + 1)
    by_bank = {"color": ORANGE, "linestyle": "--", "label": "by the bank's negatives"}
    panel.plot(epochs, claimed[name][:, 0], **by_bank)
    panel.plot(epochs, claimed[name][:, 1], color=BLUE, label="by fresh ones")
    panel.axhline(0, color="grey", linewidth=0.8)
    panel.set(title=title, xlabel="epoch")
panels[0].set_ylabel(r"$\log K - L$ (nats)")
panels[1].legend(fontsize="small", loc="lower right")
show(
    figure,
    label="freshness",
    caption="The same student, trained by the softmax over a bank. Left: with a positive newer than the negatives the loss shows much, "
    f"and fresh negatives show that little was learned. At the end two embeddings of different examples have a cosine of {claimed['now'][-1, 2]:.2f} on average. "
    f"Right: with a positive as old as the negatives both soon agree, and rise (cosine {claimed['bank'][-1, 2]:.2f}).",
    alt="Two panels of two curves. Left: the dashed curve is high and the solid one low. Right: both rise, close together.",
)

# %%
observed(
    "With a positive newer than the negatives the loss shows more than twice what "
    "fresh negatives show; with one as old as they are, more is learned.",
    (claimed["now"][2:, 0] > 2 * claimed["now"][2:, 1]).all()
    and claimed["bank"][-1, 1] > 2 * claimed["now"][-1, 1],
)

# %% [markdown]
# Taking the positive from the bank has its own price: in the first epoch, every example is pulled towards a random vector.
#
# ### One draw for the batch
#
# Fetching other negatives for every example multiplies the traffic by the batch size, as the table showed. `MemoryBank` draws $M$ examples
# once, and of these each example leaves out itself and those of its own class. Does this favour some negatives? Every other-class example is drawn with probability
# $M/n$, whichever example asks, and given how many remain, all sets of that size are equally likely. Only the examples of
# a batch are no longer independent of each other: they have the same negatives. So the expected gradient is the same and its noise is not.
# Both are checked below; the noise for the mean over a batch, where sharing hurts most.

# %%
student, memory = runs[0.5]
torch.manual_seed(0)
asks = torch.arange(8)
DRAWS, M = 4000, 256
counts = torch.zeros(8, len(train))
for _ in range(DRAWS):
    drawn, added, _ = memory.teacher_bank.negatives(asks, train.labels[asks], M)
    counts[:, drawn] += (added == 0).float()
eligible = train.labels != train.labels[asks][:, None]
chance = M / len(train)
expected, spread = DRAWS * chance, math.sqrt(DRAWS * chance * (1 - chance))
z_scores = (counts - expected)[eligible] / spread
assert (counts[~eligible] == 0).all() and z_scores.abs().max() < 5
print(
    f"z-scores of {len(z_scores):,} counts: mean {z_scores.mean():+.3f}, "
    f"deviation {z_scores.std():.3f}"
)

# %%
embedded_now, entries = embeddings(student, memory)[0], memory.teacher_bank.entries


def gradient(examples):
    """Of the softmax with one draw for these examples, by embedding, summed: (width,)."""
    anchors = embedded_now[examples].requires_grad_()
    drawn, added, _ = memory.teacher_bank.negatives(examples, train.labels[examples], M)
    loss = softmax_loss(anchors, entries[examples], entries[drawn], added) * len(examples)
    return torch.autograd.grad(loss, anchors)[0].sum(0)


of_batch = torch.arange(64)
one_draw = torch.stack([gradient(of_batch) for _ in range(300)]) / 64
each_its_own = torch.stack([sum(map(gradient, of_batch.split(1))) for _ in range(60)]) / 64
noise = [x.var(0).sum().sqrt().item() for x in (one_draw, each_its_own)]
apart = (one_draw.mean(0) - each_its_own.mean(0)).norm().item()
standard_error = math.sqrt(noise[0] ** 2 / 300 + noise[1] ** 2 / 60)
print(
    f"mean gradient {one_draw.mean(0).norm():.3f}; the two means differ "
    f"by {apart:.4f} (standard error {standard_error:.4f}); "
    f"noise {noise[0]:.4f} with one draw, {noise[1]:.4f} with one each"
)
observed(
    "The two mean gradients differ by no more than three standard errors, "
    "and one draw is noisier.",
    apart < 3 * standard_error and noise[0] > noise[1],
)

# %% [markdown]
# ### The normaliser, and NCE against the softmax
#
# CRD does not use the softmax. It asks of every candidate, one at a time, whether it is the positive: noise-contrastive
# estimation {cite}`gutmann2010noise`. With $m$ negatives and a bank of $n$, a candidate of similarity $\sigma$ is called positive with probability
# $h = \operatorname{sigmoid}(\sigma - c)$, where the threshold is $c = \log(Z m/n)$. The two gradients have one shape, each a pull and many pushes,
#
# $$\begin{aligned}
# \text{softmax:}&\quad w_+ = 1-\pi_+, & w_j &= \pi_j = e^{\sigma_j - \log\sum_k e^{\sigma_k}},\\
# \text{NCE:}&\quad w_+ = 1-h_+, & w_j &= h_j = \operatorname{sigmoid}(\sigma_j - c),
# \end{aligned}$$
#
# and differ in who sets the threshold. In the softmax it is the log-sum-exp of *this example's* candidates: they compete. In NCE it is one constant for
# all examples and all time. The published code {cite}`tian2020contrastive` sets $Z$ at the first batch to $n$ times the mean of $e^\sigma$, so that $c$ is then the logarithm of $m$ times the mean
# of $e^\sigma$: **the softmax's own threshold, averaged**. The two begin as the same loss, nearly, and drift apart.


# %%
def compare_weights(student, memory, factor=1.0):
    """Student to teacher, 128 examples: NCE and the softmax on the same candidates."""
    torch.manual_seed(0)
    bank = memory.teacher_bank
    drawn, added, number = bank.negatives(batch, train.labels[batch], len(train) // 3)
    positives, negatives = bank.entries[batch], bank.entries[drawn]
    anchors = embeddings(student, memory)[0][batch].requires_grad_()
    right, wrong = (anchors * positives).sum(1) / TAU, anchors @ negatives.T / TAU + added
    Z = factor * memory.normalisers[0]
    nce = crd_nce(right, wrong, number, Z, len(train))
    softmax = softmax_loss(anchors, positives, negatives, added)
    gradients = [
        torch.autograd.grad(x, anchors, retain_graph=True)[0] for x in (nce, softmax)
    ]
    c = (Z * number / len(train)).log()
    with torch.no_grad():
        h, h_positive = torch.sigmoid(wrong - c[:, None]), torch.sigmoid(right - c)
        pi = torch.softmax(torch.cat([right[:, None], wrong], 1), 1)
    by_hand = (h @ negatives - (1 - h_positive[:, None]) * positives) / TAU / len(batch)
    assert torch.allclose(by_hand, gradients[0], rtol=1e-4, atol=1e-5)
    return {
        "score": (wrong - c[:, None]).detach(),
        "pi": pi[:, 1:],
        "sums": (1 - h_positive, h.sum(1), 1 - pi[:, 0], pi[:, 1:].sum(1)),
        "cosine": F.cosine_similarity(*gradients, dim=1).median().item(),
    }


batch = torch.arange(128)
untrained = new_student(0)
torch.manual_seed(0)
unused = crd().memory.eval()
with torch.no_grad():
    hidden = [Taps(m, [LAYER])(train.inputs[batch])[1][LAYER] for m in (untrained, teacher)]
    unused(*hidden, train.labels[batch], batch)  # sets Z, as the first batch does
assert (unused.normalisers > 0).all() and "normalisers" in unused.state_dict()
stages = {
    "first batch": compare_weights(untrained, unused),
    "Z / 10": compare_weights(untrained, unused, 0.1),
    "Z · 10": compare_weights(untrained, unused, 10.0),
    f"after {EPOCHS} epochs": compare_weights(*runs[0.5]),
}

# %% tags=["hide-input"]
figure, panels = plt.subplots(1, 2, figsize=(7.8, 3.6), sharex=True, sharey=True)
for panel, name in zip(panels, ("first batch", f"after {EPOCHS} epochs"), strict=True):
    stage = stages[name]
    finite = torch.isfinite(stage["score"])
    score, push = stage["score"][finite], stage["pi"][finite]
    some = torch.randperm(len(score), generator=torch.Generator().manual_seed(0))[:1500]
    x, y = score[some], push[some]
    panel.semilogy(x, y, ".", color=ORANGE, alpha=0.25, markersize=3, label="softmax")
    line = torch.linspace(-16, 4, 100)
    panel.semilogy(line, torch.sigmoid(line), color=BLUE, label="NCE")
    panel.set(
        title=f"{name}: cosine {stage['cosine']:.2f}",
        xlabel=r"similarity less NCE's threshold, $\sigma_j - c$",
        ylim=(1e-6, 2),
        xlim=(-13.5, 3),
    )
panels[0].set_ylabel("weight of a negative")
legend = panels[0].legend(fontsize="small", loc="lower right", markerscale=4)
legend.legend_handles[0].set_alpha(1)
show(
    figure,
    label="weights",
    caption="How hard each negative is pushed away, by NCE (a function of its similarity alone) and by the softmax (dots: it depends "
    "on the example's other candidates). The titles give the median cosine between the two gradients. At the first batch they nearly "
    "agree; later every example has a threshold of its own, which NCE does not know.",
    alt="Two logarithmic plots of weight against similarity. In the first the dots lie along the curve of NCE; in the second they "
    "spread around it.",
)

# %% tags=["hide-input"]
named = {
    "Z / 10": "first batch, $Z$ ten times smaller",
    "Z · 10": "first batch, $Z$ ten times larger",
}
rows = [
    [
        named.get(name, name),
        *(f"{v.mean():.2f}" for v in stage["sums"]),
        f"{stage['cosine']:.2f}",
    ]
    for name, stage in stages.items()
]
table(
    ["", "NCE: pull", "NCE: pushes", "softmax: pull", "softmax: pushes", "cosine"],
    rows,
    caption="Weight of the positive and total weight of the negatives, mean over a batch. In the softmax the two are equal; in NCE "
    "$Z$ decides.",
)

# %% [markdown]
# $Z$ is the exchange rate between attraction and repulsion. Ten times too small, and the pushes outweigh the pull; ten times too large, and
# almost nothing is pushed. Since it is set once, on networks that know nothing yet, it must be in the checkpoint too: measured anew on
# resuming, it would be another objective.
#
# ## Does it teach?
#
# Eight students, all with the hard labels in full (but for KD, which gives them a tenth):
#
# | arm | what is added |
# |---|---|
# | **alone** | nothing |
# | **KD** | soft targets |
# | **batch** | InfoNCE within the batch, from the student's embedding, by a learned map, to the teacher's |
# | **batch, other classes** | the same, but examples of the same class are no negatives |
# | **batch and stored** | the batch's candidates and as many more of the teacher's vectors, stored once: more negatives, none of them old |
# | **batch, CRD's maps** | InfoNCE within the batch in CRD's set-up: a map for each network, both directions |
# | **bank** | the softmax in the same set-up with positive and negatives from the banks |
# | **CRD** | as published: the banks, and NCE |
#
# The last three differ in one thing at a time. `InfoNCE` and `CRD` are terms of `kdlab`; the others are written here, for the
# experiment alone.


# %%
class WithStored(InfoNCE):
    """Batch InfoNCE with further negatives: the teacher's stored training vectors."""

    def __init__(self, stored, number, **options):
        super().__init__(LAYER, **options)
        self.register_buffer("stored", stored)
        self.number = number

    def forward(self, *, student_hidden, teacher_hidden, index, **_):
        student, teacher = next(self.captured(student_hidden, teacher_hidden))
        others = torch.ones(len(self.stored)).index_fill(0, index, 0.0)
        drawn = self.stored[others.multinomial(self.number)]
        return info_nce(self.projector(student), teacher, temperature=TAU, negatives=drawn)


class WithoutBank(CRD):
    """CRD's maps and directions, InfoNCE in the batch: the bank is never looked at."""

    def forward(self, *, student_hidden, teacher_hidden, **_):
        student, teacher = next(self.captured(student_hidden, teacher_hidden))
        s, t = self.memory.student_map(student), self.memory.teacher_map(teacher)
        return info_nce(s, t, temperature=TAU) + info_nce(t, s, temperature=TAU)


def in_batch(**options):
    options |= {"projector": Projector("linear", WIDTH, TEACHER_WIDTH), "temperature": TAU}
    stored = options.pop("stored", None)
    return (
        InfoNCE(LAYER, **options) if stored is None else WithStored(stored, 128, **options)
    )


with torch.no_grad():
    vectors = Taps(teacher, [LAYER])(train.inputs)[1][LAYER]
FEW, MORE = (0.1, 0.3, 1.0), (1.0, 5.0, 25.0)
ARMS = {  # the three settings that validation chooses from, and the objective for a setting
    "alone": ((3e-3, 1e-2, 3e-2), lambda rate: 1.0 * CrossEntropy()),
    "KD": ((1, 2, 4), lambda T: 0.1 * CrossEntropy() + 0.9 * SoftTargets(temperature=T)),
    "batch": (MORE, lambda w: CrossEntropy() + w * in_batch()),
    "batch, other classes": (
        MORE,
        lambda w: CrossEntropy() + w * in_batch(same_class=False),
    ),
    "batch and stored": (MORE, lambda w: CrossEntropy() + w * in_batch(stored=vectors)),
    "batch, CRD's maps": (
        FEW,
        lambda w: CrossEntropy() + w * WithoutBank(LAYER, **crd().options),
    ),
    "bank": (FEW, lambda w: CrossEntropy() + w * bank_softmax("bank")),
    "CRD": (FEW, lambda w: CrossEntropy() + w * crd()),
}


def trained_student(arm, setting, seed):
    """An arm's student: its initial weights and its batches depend on the seed alone."""
    student = new_student(seed)
    torch.manual_seed(seed)
    objective = ARMS[arm][1](setting)
    rate = setting if arm == "alone" else chosen["alone"]
    how = recipe(epochs=25, learning_rate=rate, seed=seed)
    fit(student, objective, train=train, teacher=teacher, recipe=how)
    return student, objective


# %% [markdown]
# Every arm may choose among three settings, each tried with two seeds on the validation split: the student alone its learning rate, which then
# holds for all; KD its temperature; the others their weight. This favours the student alone, as a baseline should be. The chosen setting
# is trained with five *other* seeds, and these meet the test split once.

# %%
chosen, tested, models_of = {}, {}, {}
for arm, (settings, _) in ARMS.items():
    score = {}
    for setting in settings:
        tried = [trained_student(arm, setting, seed)[0] for seed in (100, 101)]
        score[setting] = np.mean(
            [accuracy(predict(m, validation), validation.labels) for m in tried]
        )
    chosen[arm] = max(score, key=score.get)
    models_of[arm] = [trained_student(arm, chosen[arm], seed) for seed in range(5)]
    tested[arm] = [
        measure(predict(m, test), test.labels, teacher_test) for m, _ in models_of[arm]
    ]
points = {arm: 100 * np.array([o["accuracy"] for o in v]) for arm, v in tested.items()}
gains = {a: paired_difference(points[a], points["alone"]) for a in ARMS if a != "alone"}

# %% tags=["hide-input"]
figure, axis = plt.subplots(figsize=(6.8, 3.8))
for place, (arm, gain) in enumerate(gains.items()):
    colour = ORANGE if arm == "KD" else BLUE if arm.startswith("batch") else PURPLE
    by_seed = points[arm] - points["alone"]
    axis.plot(by_seed, [place] * 5, ".", color=colour, alpha=0.4, markersize=9)
    axis.plot([gain.low, gain.high], [place, place], color=colour)
    axis.plot(gain.mean, place, "o", color=colour, markersize=7)
axis.axvline(0, color="grey", linewidth=1)
axis.set(
    xlabel="test accuracy less that of the student alone (points)",
    yticks=range(len(gains)),
    yticklabels=list(gains),
)
axis.invert_yaxis()
show(
    figure,
    label="arms",
    caption="Gain over the same student alone, paired by seed: each seed (small dots), mean and 95 % interval. Blue: negatives from the batch. "
    "Purple: from the banks.",
    alt="Seven rows of dots with intervals: KD is furthest to the right, the batch arms follow, the bank arms are nearest to zero.",
)


# %%
@torch.no_grad()
def shown_by(student, objective):
    """Nats shown by fresh candidates in validation batches of 128; None if no contrast."""
    term = objective.terms[-1]
    if not isinstance(term, (InfoNCE, CRD)):
        return None
    s, t = (
        Taps(model, [LAYER])(validation.inputs)[1][LAYER] for model in (student, teacher)
    )
    if isinstance(term, CRD):
        s, t = term.memory.student_map(s), term.memory.teacher_map(t)
    else:
        s = term.projector(s)
    batches = zip(s[:3968].split(128), t[:3968].split(128), strict=True)
    return math.log(128) - np.mean(
        [info_nce(a, b, temperature=TAU).item() for a, b in batches]
    )


shown_nats = {arm: [shown_by(*model) for model in models_of[arm]] for arm in ARMS}


# %% tags=["hide-input"]
def cell(values, digits):
    if values[0] is None:
        return "–"
    interval = mean_interval(values)
    return f"{interval.mean:.{digits}f} ± {interval.high - interval.mean:.{digits}f}"


table(
    [
        "arm",
        "chosen",
        "accuracy (%)",
        "agreement (%)",
        "KL from teacher (nats)",
        "shown (nats)",
    ],
    [
        [
            arm,
            f"{chosen[arm]:g}",
            cell(points[arm], 2),
            cell([100 * o["agreement"] for o in tested[arm]], 2),
            cell([o["kl_to_teacher"] for o in tested[arm]], 3),
            cell(shown_nats[arm], 2),
        ]
        for arm in ARMS
    ],
    caption="Test split: mean and half-width of the 95 % interval, n = 5 seeds. “Chosen”: learning rate, temperature or weight. “Shown”: "
    rf"$\log K-L$ on validation examples, $K=128$, all embedded afresh; its ceiling is {math.log(128):.2f}.",
)

# %%
contrasts = {
    "more negatives, none old": ("batch and stored", "batch"),
    "same class left out": ("batch, other classes", "batch"),
    "CRD's two maps": ("batch, CRD's maps", "batch"),
    "bank for batch": ("bank", "batch, CRD's maps"),
    "NCE for softmax": ("CRD", "bank"),
    "KD for batch": ("KD", "batch"),
}
gaps = {name: paired_difference(points[a], points[b]) for name, (a, b) in contrasts.items()}
for name, gap in gaps.items():
    told = "told apart" if gap.excludes_zero else "not told apart"
    print(f"{name:26s} {gap:+.2f}: {told}")
with_maps = gains["batch, CRD's maps"]
most_nats = np.mean(shown_nats["batch, CRD's maps"])
display(
    observed(
        "Contrast within the batch helps, KD helps more; CRD's two maps show more "
        "nats and teach less than the plain map; more negatives change little.",
        gains["batch"].low > 0
        and gaps["KD for batch"].low > 0
        and with_maps.low > 0 > gaps["CRD's two maps"].high
        and most_nats > max(np.mean(shown_nats[arm]) for arm in ("batch", "bank"))
        and abs(gaps["more negatives, none old"].mean) < 0.5 * gains["batch"].mean,
    )
)
observed(
    "With the banks nothing is left of the gain, whichever of the two losses is used.",
    gaps["bank for batch"].high < 0 and max(gains[arm].low for arm in ("CRD", "bank")) < 0,
)

# %% [markdown]
# Read with the intervals, and with the thought that there are six of them. Contrast within the batch helps this student, and KD helps it more. More
# negatives, though never old, hardly change anything: their *number* is not what is short. CRD's two maps show more nats and teach less
# than the plain map to the teacher's own vectors, where nothing can be made easier by moving the teacher. And with the banks nothing
# is left of the gain, whichever of the two losses is used; what lies between the two is small beside that.
#
# ### False negatives
#
# Among the negatives are examples of the same class, whose vectors perhaps *should* be alike. How many, and does it matter? The next cell counts them and
# compares cosines: of strangers of one class, and of different classes, for the students of the first seed.

# %%
same = (validation.labels[:2000, None] == validation.labels[:2000]).fill_diagonal_(False)
other = ~same.clone().fill_diagonal_(True)
print(
    f"in a batch of 128, on average {127 * same.sum() / (same.sum() + other.sum()):.1f} "
    "negatives share the class"
)


@torch.no_grad()
def class_cosines(embedded):
    """Mean cosine between strangers of one class, and of different classes."""
    cosines = similarities(embedded, embedded, 1.0)
    return cosines[same].mean().item(), cosines[other].mean().item()


with torch.no_grad():
    some = validation.inputs[:2000]
    cosines = {"teacher": class_cosines(Taps(teacher, [LAYER])(some)[1][LAYER])}
    for arm in ("batch", "batch, other classes"):
        model, objective = models_of[arm][0]
        embedded = objective.terms[-1].projector(Taps(model, [LAYER])(some)[1][LAYER])
        cosines[arm] = class_cosines(embedded)
for name, (within, across) in cosines.items():
    print(f"{name:22s} same class {within:.2f}, other classes {across:.2f}")

# %% [markdown]
# Left among the negatives, one's own class is pushed away a little; yet the student keeps the teacher's order. What leaving them
# out does to accuracy stands above: a small gain, if it is one. In distillation a false negative is only half false: the teacher tells its examples apart within a class as well, and that is part of
# what it knows.
#
# One thing is lost when they are left out. The negatives then come from another distribution than the bound assumes, and the number
# means nothing. Let both vectors be the class itself, one of two. They share $\log 2$ nats, but a candidate of the other class is never
# mistaken:

# %%
coin = torch.arange(64) % 2
vectors_of_class = torch.eye(2)[coin]
how_cold = {"temperature": 0.02}
with_all = math.log(64) - info_nce(vectors_of_class, vectors_of_class, **how_cold).item()
without_own = (
    math.log(33)
    - info_nce(vectors_of_class, vectors_of_class, labels=coin, **how_cold).item()
)
print(
    f"truth {math.log(2):.3f} nats; shown {with_all:.3f}; "
    f"own class left out {without_own:.3f}"
)
assert with_all <= math.log(2) + 1e-5 and without_own > 4 * math.log(2)


# %% tags=["hide-input"]
def said(interval):
    return f"{interval.mean:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]"


verdict(
    "A13", "depends",
    f"Both can be built; they are not the same. Negatives of the batch are free and current: test accuracy {said(gains['batch'])} points against the student alone (95 % interval, {gains['batch'].n} "
    f"paired seeds), {said(with_maps)} with CRD's two maps. With CRD's banks in place of the batch it is {said(gains['bank'])} for the softmax and {said(gains['CRD'])} for NCE, in a short training "
    f"of a small student. Twice as many negatives, none of them old, change {said(gaps['more negatives, none old'])}. A bank for CIFAR-100 keeps {kept / 1e6:.0f} MB; its entries lag behind, and with a "
    f"positive newer than the negatives the loss shows {claimed['now'][-1, 0]:.1f} nats where fresh negatives show {claimed['now'][-1, 1]:.1f}.",
)  # fmt: skip

# %% [markdown]
# ## Limits
#
# - The students were trained on one small synthetic task, with a small network and for a short time. That is what makes five paired seeds and
#   an equal budget possible, and it is no reproduction: CRD was published with convolutional networks, 240 epochs and a falling learning rate,
#   so that late entries hardly move, and it gained there {cite}`tian2020contrastive`. What is shown here is that the bank can take away what contrast gives.
# - Three settings an arm, one number each. Width, $\tau$, momentum and the number of negatives were not tuned for anyone.
# - A bound on mutual information is not a goal. A student that is a copy of its input up to an invertible map has all the information there is
#   and may classify badly; that the arms which show more nats are not the more accurate ones can be read in the table.
# - The bound is one between distributions. Drawing negatives without replacement from a finite training set, as all of this chapter's
#   trainings do, obeys it only approximately.
#
# ## Exercises
#
# ```{exercise}
# :label: ex-which-ceiling
#
# With unit embeddings, which ceiling binds for a batch of 64 at $\tau=0.1$? And for CRD's 16,384 negatives at $\tau=0.07$? At which $\tau$ do the
# two meet?
# ```
#
# ```{solution} ex-which-ceiling
# :class: dropdown
#
# They meet at $\tau = 1/\log K$. `math.log(64)` is below 5 and $1/\tau$ is 10, so the number of candidates binds; with 16,385 candidates
# `math.log` gives less than 10, and $1/0.07$ is above 14. In both cases $K$. The temperature binds where it is above $1/\log K$, about a quarter for 64.
# ```
#
# ```{exercise}
# :label: ex-first-batch
#
# Show that at the first batch the weights of NCE's negatives sum to about one. When is that wrong?
# ```
#
# ```{solution} ex-first-batch
# :class: dropdown
#
# There $c = \log(m\,\overline{e^{\sigma}})$. If each $h_j$ is small, $h_j \approx e^{\sigma_j - c}$, and $\sum_j h_j \approx \sum_j e^{\sigma_j} / (m\,\overline{e^\sigma})$, which
# is one on average over the batch. It is wrong when few negatives carry the sum, since sigmoid stays below its exponential: small $m$ or
# small $\tau$.
# ```
#
# ```{exercise}
# :label: ex-decoupled
#
# Give the loss with the positive left out a fair trial: write it as a term, and compare it with *batch* at the same settings and seeds.
# ```
#
# ```{solution} ex-decoupled
# :class: dropdown
#
#     class Decoupled(InfoNCE):
#         def forward(self, *, student_hidden, teacher_hidden, **_):
#             student, teacher = next(self.captured(student_hidden, teacher_hidden))
#             return -margin(similarities(self.projector(student), teacher, TAU)).mean()
#
#     def decoupled(w):
#         projector = Projector("linear", WIDTH, TEACHER_WIDTH)
#         return CrossEntropy() + w * Decoupled(LAYER, projector=projector, temperature=TAU)
#
#     ARMS["decoupled"] = (MORE, decoupled)
#
# and the loop of the experiment for this arm alone. When we tried it, it was a shade better than *batch* at each weight, by no more than five
# seeds can vouch for. Its gradient does not fade; here there was little fading to prevent.
# ```
#
# ```{exercise}
# :label: ex-slower
#
# A bank ages by the distance that the networks move between two visits. Train *CRD* and *alone* with weight one at a tenth of the learning rate for six
# times as many epochs.
# ```
#
# ```{solution} ex-slower
# :class: dropdown
#
# `recipe(epochs=150, learning_rate=1e-3)`. The harm that so large a weight does in the short training is gone when we try it. Whether
# there is then a gain, three seeds did not tell: the interval had both signs.
# ```
