# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Learning from a reward, held by KL
#
# So far a student was told, token by token, what a teacher thinks. Now it is told less: it writes a text and is given
# one number, the **reward**. Such a model, the **policy**, finds out what earns a reward, which need not be what was
# meant. So it is also told to stay near a model that writes well, the **reference**. The distance is a KL divergence,
# and we call the penalty a leash. Large language models are trained in this way
# on rewards that were learned from people's preferences {cite}`ziegler2019finetuning`.
#
# The divergence is the reverse KL of {doc}`07_divergences`, with the reference in the teacher's place, on text that
# the student has written itself. What it prevents depends on details: the divergence *from which model*, estimated
# *how*, and put *where*, into the reward or into the loss.
#
# **At the end you will know** which distribution the policy is aiming at, and why that is distillation; how PPO's divergence differs; what the estimators $k_1,k_2,k_3$ are worth as values and as losses;
# what a loss at each token leaves out; and which baselines keep the gradient.
#
# *Needs: one CPU core and under two minutes. The recorded runs took longer; the section says where.*

# %% tags=["parameters"]
profile = "cpu"  # or "gpu"
leashes: list[float] = [0.3, 0.5, 1.0]  # β on the toy; the middle one is drawn alone
temperatures: list[float] = [0.7, 0.3]  # of the reference: below 1, surer of itself
drawing_steps: int = 100  # of the policies that are trained by drawing
tilts: list[float] = [0.0, 1.0, 2.0, 3.0, 4.5, 8.0]  # added to the paid tokens' logits
tilted_texts: int = 128  # of each tilt; the recorded policies are measured by 256

# %% tags=["hide-input"]
import copy
import html
import math
from dataclasses import replace
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import sympy as sp
import torch
from IPython.display import Markdown, display
from scipy.interpolate import PchipInterpolator

from kdlab.data import Examples
from kdlab.figures import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    Shown,
    leash_dial,
    show,
    table,
    use_style,
)
from kdlab.language import OwnText, TokenCount, load_text_data
from kdlab.models import GPT
from kdlab.objectives import (
    PolicyGradient,
    ReverseKL,
    TextKL,
    advantages,
    forward_kl,
    reverse_kl,
    sampled_kl,
)
from kdlab.objectives.policy import log_probabilities
from kdlab.study import book_language_teacher, results
from kdlab.study.display import (
    Findings,
    called,
    data_note,
    device_for,
    slots,
    source_note,
    verdict,
)
from kdlab.study.evidence import Among, Quantity
from kdlab.study.language_plans import LIVELY
from kdlab.study.parameters import require
from kdlab.study.run import measured_policy
from kdlab.study.statements import above, below, in_order, only
from kdlab.study.statistics import mean_interval
from kdlab.training import Learner, Recipe, fit_together, measure_tokens

use_style()
device = device_for(profile)
LEASHES = sorted(set(leashes))
BETA = LEASHES[len(LEASHES) // 2]
require(len(LEASHES) > 1, "leashes must have two different prices.")
require(
    all(0.2 <= beta <= 4 for beta in leashes),
    "leashes must be from 0.2 to 4, where the toy's walks arrive.",
)
require(8 <= tilted_texts <= 256, "tilted_texts must be from 8 to 256.")
require(
    all(0.1 <= T < 1 for T in temperatures),
    "temperatures must be from 0.1 to below 1, where policy and reference are one.",
)
require(drawing_steps >= 5, "drawing_steps must be 5 or more.")
require(
    tilts == sorted(set(tilts)) and tilts[0] == 0 and tilts[-1] >= 8 and len(tilts) > 4,
    "tilts must be five or more that rise from 0 to 8 or beyond: the recorded policies lie between.",
)
data = load_text_data("book-openings-4096-40")
tokeniser = data.tokeniser
data_note(data)

# %% tags=["hide-input"]
findings = Findings()

# %% [markdown]
# ## What is wanted
#
# A policy writes a text $x$ with probability $q(x)$, after a prompt that we leave out of the formulae. The reference writes it with probability $p(x)$. With a reward $r(x)$ and a price $\beta>0$, the policy is to maximise
#
# $$ J(q)\;=\;\mathbb E_{x\sim q}\,[r(x)]\;-\;\beta\,D_{\mathrm{KL}}(q\,\|\,p). $$
#
# (This $\beta$ is the price of a nat. It has nothing to do with the $\beta$ of a Jensen–Shannon divergence; both names are customary.) Write $q^*(x)=p(x)\,e^{r(x)/\beta}/Z$, with $Z=\sum_x p(x)\,e^{r(x)/\beta}$. Then $r(x)=\beta\log\frac{q^*(x)}{p(x)}+\beta\log Z$, and putting this into $J$ gives
#
# $$ J(q)\;=\;\beta\log Z\;-\;\beta\,D_{\mathrm{KL}}(q\,\|\,q^*). $$
#
# This one line says nearly everything. The best policy is $q^*$, the reference weighted by the exponential of the reward. <!-- by definition --> (Lagrange's way: set the derivative of $J-\lambda\sum q$ by $q(x)$ to zero, $r-\beta(\log\frac qp+1)-\lambda=0$, and solve.) Any policy falls short of the best by $\beta$ times its *reverse KL from* $q^*$: **to learn from a leashed reward is to
# distil, by reverse KL, from a teacher that nobody has** {cite}`korbak2022rl`. One knows its probabilities up to the factor $Z$, which is enough to learn from it, but cannot draw from it. Without a reward, $q^*=p$, and it is plain reverse-KL distillation from the reference.
#
# The price decides how far the policy goes. For $\beta\to\infty$ the best policy is the reference; for $\beta\to0$ it is the best text alone, whatever it looks like. <!-- by definition --> And since $J(q^*)\ge J(p)=\mathbb E_p[r]$,
#
# $$ D_{\mathrm{KL}}(q^*\,\|\,p)\;\le\;\frac{\mathbb E_{q^*}[r]-\mathbb E_p[r]}{\beta}\;\le\;\frac{\max r-\min r}{\beta}, $$
#
# which also holds for every policy that is no worse than the reference. <!-- by definition --> That is the leash, and its length.
#
# The line can be read from right to left, too. A policy $q$ is the best one for the reward $\beta\log\frac{q(x)}{p(x)}$, up to a number that is the same for all texts. <!-- by definition --> Suppose that people prefer $x$ to $x'$ with probability $\sigma(r(x)-r(x'))$, as Bradley and Terry have it. Then the number cancels, and preferences can be fitted by the policy itself, without a reward between:
#
# $$ \max_q\;\mathbb E\,\log\sigma\Bigl(\beta\log\frac{q(x)}{p(x)}-\beta\log\frac{q(x')}{p(x')}\Bigr),\qquad x\text{ preferred to }x'. $$
#
# That is direct preference optimisation {cite}`rafailov2023direct`. With preferences about all pairs its end is the same $q^*$; the cell after the next checks it.
#
# ### All texts of three letters
#
# A language of four letters, `a`, `b`, `c` and `!`, has 64 texts of three. <!-- by definition --> A tiny GPT with random weights is the reference, a text begins after an `a`, and each `!` earns one. Everything can be enumerated, so that nothing below on this toy is an estimate unless it says so.

# %%
LETTERS, LENGTH = "abc!", 3
TEXTS = torch.tensor(list(product(range(4), repeat=LENGTH)))
PREFIX = torch.tensor([[0, 1 + x, 5 + 4 * x + y] for x, y, _ in TEXTS.tolist()])
ROWS = 21  # beginnings: the empty one, 4 of one letter, 16 of two


# %% tags=["hide-input"]
def tiny(seed):
    """A GPT whose distributions are neither even nor certain."""
    torch.manual_seed(seed)
    model = GPT(4, width=16, layers=1, heads=2, context=4)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(18)
    return model


@torch.no_grad()
def table_of(model):
    """Logits of the next letter after each beginning, shape (21, 4)."""
    start = torch.zeros(len(TEXTS), 1, dtype=torch.long)
    logits = model(torch.cat([start, TEXTS[:, :-1]], 1)).double()
    found = torch.zeros(ROWS, 4, dtype=torch.float64)
    found[PREFIX] = logits
    return found


reference = tiny(29).eval()
t = table_of(reference)


# %%
def log_texts(letters):
    """Log-probabilities of the 64 texts, from a table of logits."""
    return log_probabilities(letters[PREFIX], TEXTS).sum(1)


def kl(log_a, log_b):
    return (log_a.exp() * (log_a - log_b)).sum()


log_p = log_texts(t)
REWARD = TokenCount((3,))
r = REWARD(TEXTS).double()


def wanted(log_q, beta):
    """J of the formula above."""
    return (log_q.exp() * r).sum() - beta * kl(log_q, log_p)


def best(beta):
    """The log-probabilities of q*."""
    return torch.log_softmax(log_p + r / beta, 0)


def earned(log_q):
    """Mean reward and divergence from the reference."""
    return (log_q.exp() * r).sum().item(), kl(log_q, log_p).item()


# %% tags=["hide-input"]
draws = torch.Generator().manual_seed(0)
for beta in (0.1, 0.5, 1.0, 4.0):
    log_z = torch.logsumexp(log_p + r / beta, 0)
    torch.testing.assert_close(wanted(best(beta), beta), beta * log_z)
    assert earned(best(beta))[1] <= (earned(best(beta))[0] - earned(log_p)[0]) / beta
    for _ in range(20):  # any policy lacks beta times its reverse KL from q*
        other = log_texts(
            2 * torch.randn(ROWS, 4, dtype=torch.float64, generator=draws)
        )
        lacks = beta * kl(other, best(beta))
        torch.testing.assert_close(wanted(other, beta), beta * log_z - lacks)
assert earned(best(1e4))[1] < 1e-6  # a dear leash: the reference
assert best(0.02).exp()[r.argmax()] > 0.999  # a cheap one: the best text alone

# %%
# Direct preference optimisation, with the exact preferences about all pairs.
z = torch.zeros(ROWS, 4, dtype=torch.float64, requires_grad=True)
preferred = torch.sigmoid(r[:, None] - r)
adam = torch.optim.Adam([z], lr=0.1)
rate = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.01, total_iters=600)
for _ in range(600):
    # the reward that this policy would be best for
    implied = BETA * (log_texts(z) - log_p)
    margin = implied[:, None] - implied
    loss = -(preferred * torch.nn.functional.logsigmoid(margin)).mean()
    adam.zero_grad()
    loss.backward()
    adam.step()
    rate.step()

# %% tags=["hide-input"]
from_preferences = log_texts(z).detach()
far_from_best = kl(from_preferences, best(BETA)).item()
assert far_from_best < 1e-3
Markdown(
    f"Direct preference optimisation ends {far_from_best:.1e} nats from $q^*$ ($\\beta={BETA:g}$)."
)

# %% [markdown]
# ### How much reward for how much divergence
#
# As $\beta$ falls, the best policy moves along a curve: so much reward for so much divergence, and no policy lies above it. <!-- by definition --> Its slope is $\beta$, since $\beta$ is the multiplier of the divergence.
#
# There is a cheap way to get a policy that earns more, without any training: add a number $b$ to the logit of `!` at each step. We call it the **tilted reference**. It is *not* the best policy, though each `!` earns the same wherever it stands: the best one also looks at what a letter leads to
# (the first exercise says how). <!-- by definition --> It will be the yardstick of the language model below, of which the best policy cannot be computed. <!-- by definition -->

# %%
PAID = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
prices = np.geomspace(0.05, 20, 120)
frontier = np.array([earned(best(beta)) for beta in prices])
tilted = np.array([earned(log_texts(t + b * PAID)) for b in np.linspace(0, 12, 120)])

# %% tags=["hide-input"]
middle = range(10, 90)
slopes = np.gradient(frontier[:, 0], frontier[:, 1])[middle]
assert np.allclose(slopes, prices[middle], rtol=0.02)
most = np.interp(tilted[:, 1], frontier[::-1, 1], frontier[::-1, 0])
assert (tilted[:, 0] <= most + 2e-3).all()
tilt_lacks = (most - tilted[:, 0]).max()

SHOWN = {2.0: BLUE, 0.5: GREEN, 0.2: ORANGE}
figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.3))
for count, hue in enumerate((SKY, BLUE, GREEN, ORANGE)):
    left.plot(log_p.exp()[r == count], best(BETA).exp()[r == count], ".", color=hue, label=f"earns {count}")  # fmt: skip
left.plot([1e-6, 1], [1e-6, 1], "--", color="grey", linewidth=1.0)
left.set(
    xscale="log", yscale="log", xlabel="reference, $p$", ylabel="best policy, $q^*$"
)
left.set(xlim=(1e-6, 1), ylim=(1e-6, 1))
left.legend(fontsize="x-small")
right.plot(frontier[:, 1], frontier[:, 0], color="grey", label="best")
right.plot(tilted[:, 1], tilted[:, 0], "--", color=PURPLE, label="tilted reference")
for beta, hue in SHOWN.items():
    reward, far = earned(best(beta))
    right.plot([far], [reward], "o", color=hue)
right.set(xlabel="$D_{\\mathrm{KL}}(q\\,\\|\\,p)$, nats", ylabel="mean reward")
right.legend(fontsize="small")
dots_at = ", ".join(f"{beta:g}" for beta in SHOWN)
show(
    figure,
    label="frontier",
    caption=f"Left: what the best policy makes of the reference at $\\beta={BETA:g}$, one dot per text. Texts of the same reward lie on one line: all are multiplied by the same factor. Right: the most reward for each divergence, with dots at $\\beta$ = {dots_at}, from left to right, and the tilted reference, which lacks at most {tilt_lacks:.2f} of a reward here.",
    alt="Left, dots on four parallel lines in logarithmic scales, the higher the more a text earns. Right, a rising curve that flattens, with three dots, and a dashed curve that is nowhere above it.",
)

# %% tags=["hide-input"]
leash_dial(
    ["".join(LETTERS[letter] for letter in text) for text in TEXTS.tolist()],
    log_p.tolist(),
    r.tolist(),
    label="leash",
    caption="Set the price of a nat: the dot is the best policy at that price, on the curve of the most reward for each divergence. The table has the texts that it writes most.",
    price=BETA,
)

# %% [markdown]
# ## Which divergence
#
# Two leashes are often confused. *Proximal policy optimisation* {cite}`schulman2017proximal` improves a policy in
# rounds. Within a round, the new policy is kept near the **old** one, from which the texts were drawn, by a penalty
# $\eta\,D_{\mathrm{KL}}(q_{\text{old}}\,\|\,q)$ or by clipping a ratio. The idea is that estimates from old texts can
# be trusted only nearby. After the round the new policy is the old one, and nothing remembers where the walk began.
# The leash of {cite:t}`ziegler2019finetuning` is the divergence from a **reference that stays**, put into the reward:
# $R(x)=r(x)-\beta\log\frac{q_{\text{old}}(x)}{p(x)}$, with the policy that wrote the text, so that within a round $R$
# is a fixed number for each text. They optimise it *with* PPO, so that both leashes are present.
#
# On the toy each round of PPO's penalty can be solved exactly. To maximise $\sum_x q(x)R(x)-\eta\,D_{\mathrm{KL}}(q_{\text{old}}\,\|\,q)$, set the derivative with respect to $q(x)$ to zero: $R(x)+\eta\,q_{\text{old}}(x)/q(x)=\lambda$, so
#
# $$ q(x)=\frac{\eta\,q_{\text{old}}(x)}{\lambda-R(x)}, $$
#
# with the $\lambda$ that makes it sum to one. We walk with the reward alone, and with the leash in it.


# %%
def proximal(log_old, R, eta):
    """The policy that is best for R with PPO's penalty for leaving the old one."""
    low = (R + eta * log_old.exp()).max()  # here the sum is one or more
    high = R.max() + eta  # and here one or less
    for _ in range(55):  # to the last digit
        middle = (low + high) / 2
        too_much = (eta * log_old.exp() / (middle - R)).sum() > 1
        low, high = (middle, high) if too_much else (low, middle)
    return torch.log_softmax((log_old + math.log(eta)) - (high - R).log(), 0)


ETA = 8.0
ROUNDS = max(300, math.ceil(150 / BETA))  # a cheap leash pulls slowly
walks = {}
for name, beta in (("reward alone", 0.0), ("with the leash", BETA)):
    log_q, steps, away = log_p, [], []
    for _ in range(ROUNDS):
        new = proximal(log_q, r - beta * (log_q - log_p), ETA)
        steps.append(kl(log_q, new).item())  # PPO's divergence, to the old policy
        away.append(kl(new, log_p).item())  # the divergence from the reference
        log_q = new
    walks[name] = np.array(steps), np.array(away)

# %% tags=["hide-input"]
all_on_best = -log_p[r.argmax()].item()  # the divergence of the best text alone
leashed = earned(best(BETA))[1]
largest_step = walks["reward alone"][0].max()
ended = {name: away[-1] for name, (_, away) in walks.items()}
assert ended["reward alone"] > 100 * largest_step
assert abs(ended["reward alone"] - all_on_best) < 0.01
assert abs(ended["with the leash"] - leashed) < 1e-6

figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.0))
for (name, (steps, away)), hue in zip(walks.items(), (VERMILION, BLUE), strict=True):
    left.plot(range(1, ROUNDS + 1), np.maximum(steps, 1e-17), color=hue, label=name)
    right.plot(range(1, ROUNDS + 1), away, color=hue, label=name)
right.axhline(all_on_best, color="grey", linestyle=":", linewidth=1.2)
right.axhline(leashed, color="grey", linestyle="--", linewidth=1.2)
left.set(yscale="log", xlabel="round", ylabel="nats", title="from the old policy")
left.set_ylim(1e-12, 0.1)
right.set(xlabel="round", ylabel="nats", title="from the reference")
right.legend(fontsize="small")
show(
    figure,
    label="walks",
    caption=f"{ROUNDS} rounds with PPO's penalty. Left: in no round is the new policy more than {largest_step:.4f} nats from the old. Right: without the leash it walks all the way to the best text alone, {all_on_best:.2f} nats from the reference (dotted: minus the logarithm of that text's probability, so that a rarer one is farther); with the leash it ends at $q^*$, {leashed:.2f} nats away (dashed).",
    alt="Left, two falling curves of small divergences on a logarithmic scale. Right, one curve rises to the dotted line of the best text alone, the other levels off at the dashed line.",
)

# %% [markdown]
# PPO's divergence makes the steps short. How far the policy ends up is decided by the reference's leash alone. The two are often named in one breath, as in the article whose claim is tested below.
#
# ## Estimating the divergence
#
# A divergence over texts is a sum over all texts, and is estimated from texts that the policy has written. With $\rho=p(x)/q(x)$ for $x\sim q$, three estimates are in use {cite}`schulman2020approximating` (the ratio is called $r$ in {doc}`07_divergences`; here $r$ is the reward):
#
# $$ k_1=-\log\rho,\qquad k_2=\tfrac12(\log\rho)^2,\qquad k_3=\rho-1-\log\rho. $$
#
# The mean of $k_1$ is the divergence by definition. That of $k_3$ is too, since $\mathbb E_q[\rho-1]=\sum_x p(x)-1=0$; and $k_3\ge0$, as $\log\rho\le\rho-1$. The mean of $k_2$ is another number, which is close for close policies.
#
# ### Estimates as values
#
# Here are the best policies of the toy at many prices, so at many distances, and the mean and spread of the three estimates, by enumeration; at a few of them also by drawing. <!-- by definition -->

# %%
KINDS = {"k1": ORANGE, "k2": GREEN, "k3": BLUE}
distances, mean_of, spread_of = [], {k: [] for k in KINDS}, {k: [] for k in KINDS}
for beta in np.geomspace(0.12, 40, 60):
    log_q = best(beta)
    distances.append(kl(log_q, log_p).item())
    for kind in KINDS:
        value = sampled_kl(log_q, log_p, kind)
        mean = (log_q.exp() * value).sum()
        variance = (log_q.exp() * (value - mean) ** 2).sum()
        mean_of[kind].append(mean.item() / distances[-1])
        spread_of[kind].append(variance.sqrt().item() / distances[-1])

# %% tags=["hide-input"]
assert np.allclose(mean_of["k1"], 1) and np.allclose(mean_of["k3"], 1)
off = np.abs(np.array(mean_of["k2"]) - 1)
assert off[-1] < 0.02 < off.max()  # nearest last

drawn_means = {k: [] for k in KINDS}
DRAWN = 2000
for beta in (at := (0.2, 0.5, 2.0, 10.0)):
    x = torch.multinomial(best(beta).exp(), DRAWN, True, generator=draws)
    for kind in KINDS:
        value = sampled_kl(best(beta)[x], log_p[x], kind).mean()
        drawn_means[kind].append((value / kl(best(beta), log_p)).item())

figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.1))
for kind, hue in KINDS.items():
    left.plot(distances, mean_of[kind], color=hue, label=f"$k_{kind[1]}$", ls="--" if kind == "k3" else "-")  # fmt: skip
    right.plot(distances, spread_of[kind], color=hue, label=f"$k_{kind[1]}$")
    left.plot([earned(best(beta))[1] for beta in at], drawn_means[kind], "o", color=hue, markersize=4, alpha=0.7)  # fmt: skip
for panel, title in (
    (left, "mean / true value"),
    (right, "standard deviation / true value"),
):
    panel.set(xscale="log", xlabel="$D_{\\mathrm{KL}}(q\\,\\|\\,p)$, nats", title=title)
right.set_yscale("log")
left.legend()
small_spread = {k: spread_of[k][-1] for k in KINDS}
large_spread = {k: spread_of[k][0] for k in KINDS}
show(
    figure,
    label="values",
    caption=f"Left: means of the estimates over the true value; $k_1$ and $k_3$ lie on one, $k_2$ does not. Dots: means of {DRAWN} drawn texts. Right: the spread of one estimate over the true value. At the smallest distance it is {small_spread['k1']:.0f} for $k_1$, {small_spread['k2']:.1f} for $k_2$ and {small_spread['k3']:.1f} for $k_3$; at the largest {large_spread['k1']:.1f}, {large_spread['k2']:.1f} and {large_spread['k3']:.1f}.",
    alt="Left, two curves at one and one that departs from it with distance. Right, the curve of k1 falls steeply with distance, those of k2 and k3 are flat at first.",
)

# %% [markdown]
# For near policies $\log\rho$ is small, of either sign, with variance about twice the divergence: each $k_1$ is far larger than the mean of all, while $k_2\approx k_3$ are about half its square, and of the size of their mean. <!-- by definition --> As a number to *look at*, $k_3$ is a good one as long as the policy is near. Far away it is a bad one: there $\rho$ is enormous on texts that are hardly ever drawn, and without them the mean comes out wrong.
#
# ### Estimates as losses
#
# Draw $x$ from $q$, hold the drawing fixed, differentiate $k(x)$ with respect to the policy's logits, average. What does one descend, on average? With $\nabla\rho=-\rho\,\nabla\log q$:
#
# - $\mathbb E_q[\nabla k_1]=\mathbb E_q[\nabla\log q]=\nabla\sum_x q(x)=0$. There is nothing there but noise.
# - $\mathbb E_q[\nabla k_2]=\mathbb E_q\bigl[\log\tfrac qp\,\nabla\log q\bigr]=\nabla D_{\mathrm{KL}}(q\,\|\,p)$. The biased value has the right gradient.
# - $\mathbb E_q[\nabla k_3]=\mathbb E_q[(1-\rho)\nabla\log q]=-\sum_x p(x)\,\nabla\log q(x)=\nabla D_{\mathrm{KL}}(p\,\|\,q)$. The unbiased value has the gradient of the *other* direction.
#
# For values, $k_1$ and $k_3$ are right and $k_2$ is not; for gradients it is the reverse {cite}`tang2025few`. The reason is always the same: the mean is over $q$, and $q$ depends on what is differentiated. SymPy for three classes:

# %%
z = sp.symbols("z1:4", real=True)
P = sp.symbols("p1:4", positive=True)
Q = [sp.exp(a) / sum(map(sp.exp, z)) for a in z]
rho = [a / b for a, b in zip(P, Q, strict=True)]
symbolic = {
    "k1": [-sp.log(x) for x in rho],
    "k2": [sp.log(x) ** 2 / 2 for x in rho],
    "k3": [x - 1 - sp.log(x) for x in rho],
}
last = 1 - P[0] - P[1]
descended = {
    "k1": sp.Integer(0),
    "k2": sum(b * sp.log(b / a) for a, b in zip(P, Q, strict=True)),
    "k3": sum(a * sp.log(a / b) for a, b in zip(P, Q, strict=True)),
}
for kind, values in symbolic.items():
    for by in z:
        in_the_mean = sum(b * sp.diff(k, by) for b, k in zip(Q, values, strict=True))
        left_over = in_the_mean - sp.diff(descended[kind], by)
        left_over = sp.expand_log(left_over, force=True)  # all are positive
        assert sp.simplify(left_over.subs(P[2], last)) == 0

# %% [markdown]
# ### On a real vocabulary
#
# A mean gradient is what one would have with infinitely many draws. The reference is now the language model of {doc}`17_distilling_a_small_language_model`, at places of the validation text. The policy is the same model, surer of itself: its logits at temperatures below one. At each place we draw next tokens, average the gradients of the estimates by the logits, and
# ask for the cosine with the true gradient of $D_{\mathrm{KL}}(q\,\|\,p)$. An estimate as a loss is `(share * sampled_kl(log_q, log_p, kind)).sum()`, where `share` says how often each token was drawn and has no gradient.

# %% tags=["hide-input"]
model = book_language_teacher(data, device=device).eval()
PLACES, DRAWS = 32, (1, 4, 16, 64, 256, 1024, 4096, 16_384)
with torch.no_grad():
    blocks, _, _ = next(data.validation.spread(PLACES).batches(PLACES))
    target = model(blocks.to(device))[:, -1].cpu().double()
log_t = torch.log_softmax(target, -1)


def gradients(sharpness):
    """Cosines of the estimates' mean gradients with the true one, and their limit."""
    policy = (target / sharpness).requires_grad_()

    def gradient(loss):
        return torch.autograd.grad(loss, policy)[0]

    def mean_gradient(kind, share):
        """Of an estimate as a loss; share: how often each token was drawn."""
        log_q = torch.log_softmax(policy, -1)
        return gradient((share * sampled_kl(log_q, log_t, kind)).sum())

    def cosine(a, b):
        return torch.cosine_similarity(a, b).mean().item()

    reverse = gradient(reverse_kl(policy, target, reduction="sum"))
    forward = gradient(forward_kl(policy, target, reduction="sum"))
    q = torch.softmax(policy.detach(), -1)
    # as of infinitely many draws
    exact = {kind: mean_gradient(kind, q) for kind in KINDS}
    assert exact["k1"].abs().max() < 1e-12
    torch.testing.assert_close(exact["k2"], reverse)
    torch.testing.assert_close(exact["k3"], forward)

    x = torch.multinomial(q, DRAWS[-1], True, generator=draws)
    found = {kind: [] for kind in (*KINDS, "k3, forward")}
    for n in DRAWS:
        ones = torch.full((PLACES, n), 1 / n, dtype=torch.float64)
        share = torch.zeros_like(q).scatter_add_(1, x[:, :n], ones)
        for kind in KINDS:
            found[kind].append(cosine(mean_gradient(kind, share), reverse))
        found["k3, forward"].append(cosine(mean_gradient("k3", share), forward))
    return found, cosine(reverse, forward), reverse_kl(policy, target).item()


cosines = {sharpness: gradients(sharpness) for sharpness in temperatures}

figure, panels = plt.subplots(
    1, len(cosines), figsize=(4.2 * len(cosines), 3.2), sharey=True, squeeze=False
)
for panel, (sharpness, (found, between, far)) in zip(
    panels[0], cosines.items(), strict=True
):
    for name, values in found.items():
        panel.plot(DRAWS, values, "o-" if name in KINDS else "o:", markersize=3.5, color=KINDS[name[:2]],
                   label=f"$k_{name[1]}$" + ("" if name in KINDS else " with the other direction"))  # fmt: skip
    panel.axhline(between, color="grey", linewidth=1.0, linestyle="--")
    panel.set(xscale="log", xlabel="draws a place", title=f"temperature {sharpness:g}: {far:.2f} nats")  # fmt: skip
panels[0, 0].set_ylabel("cosine")
panels[0, -1].legend(fontsize="x-small")
limits = ", ".join(
    f"{between:.2f} at temperature {sharpness:g}"
    for sharpness, (_, between, _) in cosines.items()
)
show(
    figure,
    label="cosines",
    caption=f"Cosine of the mean gradient of that many draws with the true gradient of $D_{{\\mathrm{{KL}}}}(q\\,\\|\\,p)$ with respect to the logits, mean over {PLACES} places. That of $k_2$ goes to one, that of $k_1$ falls to zero, and that of $k_3$ goes to the cosine between the gradients of the two directions (dashed): {limits}. Dotted: the same gradient of $k_3$ against that of $D_{{\\mathrm{{KL}}}}(p\\,\\|\\,q)$.",
    alt="Curves against the number of draws, a panel for each temperature: k2 rises to one, k1 falls to zero, k3 goes to a dashed line, and a dotted curve of k3 against the other direction rises to one.",
)

# %% [markdown]
# Why does $k_1$, whose gradient has mean zero, not start at zero? With one draw all three gradients are multiples of one and the same $\nabla\log q(x)$. A likely token is drawn often, and its vector is short and points about the right way, the more so the surer the policy; tokens that are drawn seldom have long vectors, the other way. A cosine does not see lengths, so that its mean over places is
# not the cosine of a mean; with many draws the long ones take back what the short ones gave.
#
# Near the reference both directions are half the same quadratic form, and it does not matter which of them one descends: so a wrong gradient may go unnoticed as long as the leash is short.
#
# ### Where these losses lead
#
# Train a distribution over three classes with nothing but such a loss, by the exact mean of its gradient. Then add a reward, $\mathbb E_q[r]-\beta\,k$. Where does each end? Setting the mean gradients to zero: with $k_2$, at $q\propto p\,e^{r/\beta}$. With $k_3$, at the maximum of $\mathbb E_q[r]-\beta D_{\mathrm{KL}}(p\,\|\,q)$, which is $q=\beta p/(\lambda-r)$, the same
# formula as for a round of PPO. With $k_1$ there is no leash.

# %%
p3 = torch.tensor([0.5, 0.35, 0.15], dtype=torch.float64)
r3 = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
start = torch.tensor([0.06, 0.84, 0.10], dtype=torch.float64)
BETA3 = 0.4


def path(kind, reward, steps=500, rate=3.0):
    """Distributions on the way, by the exact mean of the gradient."""
    z, on_the_way = start.log(), [start]
    for _ in range(steps):
        z = z.detach().requires_grad_()
        log_q = torch.log_softmax(z, 0)
        drawn = log_q.detach().exp()  # the drawing is not differentiated
        loss = (drawn * BETA3 * sampled_kl(log_q, p3.log(), kind)).sum()
        if reward:
            loss = loss - (log_q.exp() * r3).sum()
        z = z - rate * torch.autograd.grad(loss, z)[0]
        on_the_way.append(torch.softmax(z.detach(), 0))
    return torch.stack(on_the_way)


paths = {(kind, paid): path(kind, paid) for kind in KINDS for paid in (False, True)}

# %% tags=["hide-input"]
ends = {
    "k1": torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64),
    "k2": torch.softmax(p3.log() + r3 / BETA3, 0),
    "k3": proximal(p3.log(), r3, BETA3).exp(),
}
assert torch.allclose(paths["k1", False][-1], start)  # it never moved
for kind in ("k2", "k3"):
    assert torch.allclose(paths[kind, False][-1], p3, atol=1e-4)
for kind in KINDS:
    assert torch.allclose(paths[kind, True][-1], ends[kind], atol=1e-2)
assert (ends["k2"] - ends["k3"]).abs().max() > 0.05

CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 3**0.5 / 2]])
figure, panels = plt.subplots(1, 2, figsize=(8.0, 3.7))
SIZES = {"k1": 11, "k2": 14, "k3": 9}  # rings, so that what they lie on can be seen
for panel, paid in zip(panels, (False, True), strict=True):
    panel.fill(*CORNERS.T, facecolor="none", edgecolor="grey", linewidth=1.0)
    for kind, hue in KINDS.items():
        line = paths[kind, paid].numpy() @ CORNERS
        panel.plot(*line.T, color=hue, label=f"$k_{kind[1]}$")
        panel.plot(*line[-1], "o", color=hue, markersize=SIZES[kind], mfc="none", mew=1.8, zorder=4)  # fmt: skip
    panel.plot(*(start.numpy() @ CORNERS), "s", color="grey", markersize=6)
    panel.plot(*(p3.numpy() @ CORNERS), "*", color="grey", markersize=12)
    for corner, name, shift in zip(CORNERS, r3.tolist(), ((-0.05, -0.07), (0.05, -0.07), (0, 0.04)), strict=True):  # fmt: skip
        panel.annotate(f"earns {name:g}", corner + shift, ha="center", fontsize="small")
    panel.set_title("with the reward" if paid else "the estimate alone")
    panel.set(xlim=(-0.15, 1.15), ylim=(-0.12, 0.97))
    panel.axis("off")
    panel.set_aspect("equal")
panels[0].legend(loc="upper left", fontsize="small")
apart = 0.5 * (ends["k2"] - ends["k3"]).abs().sum().item()
show(
    figure,
    label="paths",
    caption=f"Distributions over three classes: a corner is one of them alone, the square the beginning, the star the reference, a ring marks an end. Left: $k_1$ does not move the policy; $k_2$ and $k_3$ take it to the reference by different ways. Right, with a reward and $\\beta={BETA3:g}$: $k_1$ goes to the corner that earns most, and $k_2$ and $k_3$ end in different places, {apart:.2f} apart in total variation.",
    alt="Two triangles. Left, two curved paths from a square to a star, and a ring around the square. Right, three paths from the square to three ends, one of them the top corner.",
)

# %% [markdown]
# So "KL regularisation" names several trainings. With $k_1$ as a loss it adds noise and nothing else. With $k_3$ as a loss it is a forward KL, which punishes a policy for what it no longer says more than for what it newly says. <!-- by definition --> (Its end is $q=\beta p/(\lambda-r)$, and the $\lambda$ that makes this sum to one lies above $\max r$. So $q\ge\beta p/(\lambda-\min r)$: no class dies out.) GRPO, for one, has $k_3$ in its loss {cite}`shao2024deepseekmath`. None of this shows in the logged number, which is right for $k_1$ and $k_3$.
#
# ## In the reward or in the loss
#
# So far a draw was one token. A text is many, and its divergence is a sum, $D_{\mathrm{KL}}(q\,\|\,p)=\mathbb E_{x\sim q}\sum_s D_s$, where $D_s=D_{\mathrm{KL}}\bigl(q(\cdot\mid x_{<s})\,\|\,p(\cdot\mid x_{<s})\bigr)$ is that of the next token after what was written. Its gradient has two parts:
#
# $$ \nabla D_{\mathrm{KL}}(q\,\|\,p)\;=\;\mathbb E_{x\sim q}\Bigl[\,\sum_s\nabla D_s\Bigr]\;+\;\mathbb E_{x\sim q}\Bigl[\,\sum_s\nabla\log q(x_s\mid x_{<s})\sum_{u>s}D_u\Bigr]. $$
#
# The first is what a loss at each token has, `TextKL("exact")`, and also what on-policy distillation descends with `ReverseKL` {cite}`agarwal2024onpolicy`. The second says that a word is also responsible for the places that it leads to, where policy and reference may differ more. A loss on a text that is *given* cannot know it. With the divergence
# in the reward, `PolicyGradient(..., beta=β)`, both parts are there, since a reward is credited to every word before it, without a discount.
#
# "In the reward" may be said and the first part meant. On-policy distillation as it is practised takes $-\log\frac{q(x_s)}{p(x_s)}$ of each token as the advantage of that token, "for simplicity, we use a discount factor of zero" {cite}`lu2025onpolicy`. Then no word answers for those after it, and the mean gradient is that of $k_2$ as a loss, $\mathbb E\sum_s\nabla D_s$.

# %%
draws = torch.Generator().manual_seed(1)
z = (t + torch.randn(ROWS, 4, dtype=torch.float64, generator=draws)).requires_grad_()


def by_table(value, **options):
    return torch.autograd.grad(value, z, **options)[0]


log_q = log_texts(z)
q_texts = log_q.detach().exp()
of_token = reverse_kl(z[PREFIX], t[PREFIX], reduction="none")  # (64, 3)
whole = by_table(kl(log_q, log_p), retain_graph=True)
at_tokens = by_table((q_texts[:, None] * of_token).sum(), retain_graph=True)
later = of_token.detach().flip(1).cumsum(1).flip(1) - of_token.detach()
log_letters = log_probabilities(z[PREFIX], TEXTS)
of_what_follows = by_table(
    (q_texts[:, None] * later * log_letters).sum(), retain_graph=True
)
torch.testing.assert_close(whole, at_tokens + of_what_follows)

# %% tags=["hide-input"]
log_ratio = (log_letters - log_probabilities(t[PREFIX], TEXTS)).detach()
discounted_away = by_table((q_texts[:, None] * log_ratio * log_letters).sum())
torch.testing.assert_close(discounted_away, at_tokens)  # discount zero


def mean_of_term(term):
    """The exact mean of a term's gradient, over all texts."""
    found = 0.0
    for row, weight in enumerate(q_texts):
        one = slice(row, row + 1)
        seen = {"student_logits": z[PREFIX[one]], "teacher_logits": t[PREFIX[one]]}
        found = found + weight * term(**seen, labels=TEXTS[one])
    return by_table(found)


torch.testing.assert_close(mean_of_term(TextKL("exact")), at_tokens)
torch.testing.assert_close(
    LENGTH * mean_of_term(ReverseKL()), at_tokens
)  # a mean of places
torch.testing.assert_close(mean_of_term(TextKL("k2")), at_tokens)  # as k2 at each token
assert mean_of_term(TextKL("k1")).abs().max() < 1e-12
in_reward = mean_of_term(
    PolicyGradient(lambda x: torch.zeros(len(x)), 1, "none", beta=1.0)
)
torch.testing.assert_close(in_reward, whole)
left_out = (of_what_follows.norm() / whole.norm()).item()
Markdown(
    f"Token losses leave out a part whose length is {left_out:.2f} of the whole gradient's."
)

# %% [markdown]
# Does it matter? Train the table of the toy to its end with each, by exact mean gradients, all with the same reward and the same $\beta$. The reward's own gradient is complete in all of them.


# %% tags=["hide-input"]
def trained(kind, beta, steps=250):
    """The table's policy after Adam on the exact mean gradient.

    kind: "in the reward", or the estimate that is a loss.
    """
    z = t.clone().requires_grad_()
    adam = torch.optim.Adam([z], lr=0.1)
    rate = torch.optim.lr_scheduler.LambdaLR(
        adam, lambda step: min(1.0, 2 - 2 * step / steps)
    )
    for _ in range(steps):
        log_q = log_texts(z)
        if kind == "in the reward":
            loss = -wanted(log_q, beta)
        else:
            drawn = log_q.detach().exp()[:, None]
            log_letters = log_probabilities(z[PREFIX], TEXTS)
            estimate = sampled_kl(
                log_letters, log_probabilities(t[PREFIX], TEXTS), kind
            )
            loss = beta * (drawn * estimate).sum() - (log_q.exp() * r).sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
        rate.step()
    return log_texts(z).detach()


WAYS = {"in the reward": VERMILION, **KINDS}
arrived = {(kind, beta): trained(kind, beta) for kind in WAYS for beta in LEASHES}
lacking = {
    (kind, beta): (wanted(best(beta), beta) - wanted(log_q, beta)).item()
    for (kind, beta), log_q in arrived.items()
}
assert all(lacking["in the reward", beta] < 1e-3 for beta in LEASHES)

# %% tags=["hide-input"]
NAMED = {"in the reward": "in the reward", "k1": "loss, $k_1$", "k2": "loss, $k_2$ or exact", "k3": "loss, $k_3$"}  # fmt: skip
figure, panel = plt.subplots(figsize=(6.6, 3.4))
panel.plot(frontier[:, 1], frontier[:, 0], color="grey", linewidth=1.2)
for kind, hue in WAYS.items():
    points = np.array([earned(arrived[kind, beta]) for beta in LEASHES])
    panel.plot(
        points[:, 1], points[:, 0], "o:", color=hue, linewidth=1.0, label=NAMED[kind]
    )
panel.set(xlabel="$D_{\\mathrm{KL}}(q\\,\\|\\,p)$, nats", ylabel="mean reward")
panel.legend(fontsize="small", loc="lower right")
display(
    show(
        figure,
        label="ways",
        caption="Where exact mean gradients lead, $\\beta$ = "
        + ", ".join(f"{beta:g}" for beta in LEASHES)
        + " (from right to left), and the most that can be earned (grey). What is lacking of the best $J$: "
        + "; ".join(
            f"{NAMED[kind]} "
            + ", ".join(f"{max(lacking[kind, beta], 0):.3f}" for beta in LEASHES)
            for kind in WAYS
        )
        + ".",
        alt="A grey rising curve; dots in four colours for four ways to put the divergence. Those with it in the reward lie on the curve at each price, those of k1 all lie at its right end.",
    )
)
for beta in LEASHES:
    LACK = Quantity(
        f"what is lacking of the best $J$ at $\\beta={beta:g}$", better="lower"
    )
    display(
        above(
            "k1",
            None,
            {kind: max(lacking[kind, beta], 0) for kind in WAYS},
            LACK,
            names=NAMED,
        )
    )

# %% [markdown]
# A point may lie on the grey curve and still be at the wrong place of it: the same $\beta$ is then another price. With $k_2$, or the exact divergence, at each token, the end can be said in a formula. Each place is solved with what is still to be earned, $q(x_s\mid x_{<s})\propto p(x_s\mid x_{<s})\,e^{Q/\beta}$, where $Q$ is the mean reward from there on, under this same policy $q$. The best policy has in
# the place of $Q$ its own mean reward from there on *less $\beta$ times the divergence that is still to come*. <!-- by definition --> What that costs on this toy, price by price, the caption says. It is easy to build a place where it costs something.
#
# A text has two letters. The first is a door, and the reference takes both alike. After the *easy* door it says `!` half of the time, after the *hard* one hardly ever. <!-- by definition --> As the price falls, the policy learns to say `!` after both. Then both doors earn the same, but after the hard one each `!` costs several nats. A loss at each token does not look beyond the door.

# %%
BEHIND = torch.tensor(
    [[0.5, 0.5], [0.998, 0.002]], dtype=torch.float64
)  # easy, hard; the second letter is !
HALF = torch.tensor([0.5, 0.5], dtype=torch.float64)
PAYS = torch.tensor([0.0, 1.0], dtype=torch.float64)


def doors(beta):
    """Chance of the hard door and J: of the best policy, and where token losses end."""
    behind = torch.softmax(BEHIND.log() + PAYS / beta, 1)  # the same for both
    earns, costs = behind @ PAYS, (behind * (behind / BEHIND).log()).sum(1)
    found = []
    for worth in (earns - beta * costs, earns):
        door = torch.softmax(HALF.log() + worth / beta, 0)
        total = (door * (door / HALF).log()).sum() + door @ costs
        found += [door[1].item(), (door @ earns - beta * total).item()]
    return found


# %% tags=["hide-input"]
def by_descent(beta, steps=500):
    """Where the exact token loss really leads, by descent on all the logits."""
    z = torch.stack([HALF.log(), *BEHIND.log()]).requires_grad_()
    adam = torch.optim.Adam([z], lr=0.05)
    for _ in range(steps):
        door, behind = torch.softmax(z[0], 0), torch.softmax(z[1:], 1)
        at_door = (door * (door / HALF).log()).sum()
        # The door was drawn, so no gradient goes through its chance.
        at_second = door.detach() @ (behind * (behind / BEHIND).log()).sum(1)
        loss = beta * (at_door + at_second) - door @ (behind @ PAYS)
        adam.zero_grad()
        loss.backward()
        adam.step()
    return torch.softmax(z[0], 0)[1].item()


door_prices = np.geomspace(0.05, 1.0, 80)
door_curves = np.array([doors(beta) for beta in door_prices])
assert (door_curves[:, 1] >= door_curves[:, 3] - 1e-12).all()
for beta in (0.2, 0.1):
    assert abs(by_descent(beta) - doors(beta)[2]) < 0.01

# %% tags=["hide-input"]
figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 2.9))
for column, name, hue in (
    (0, "in the reward", VERMILION),
    (2, "loss at each token", GREEN),
):
    left.plot(door_prices, door_curves[:, column], color=hue, label=name)
    right.plot(door_prices, door_curves[:, column + 1], color=hue)
left.axhline(0.5, color="grey", linewidth=1.0, linestyle="--")
left.set(xscale="log", xlabel="$\\beta$", ylabel="chance of the hard door")
right.set(xscale="log", xlabel="$\\beta$", ylabel="$J$")
left.legend(fontsize="small", loc=(0.42, 0.66))
worst = door_curves[:, 1] - door_curves[:, 3]
show(
    figure,
    label="doors",
    caption=f"Two doors, with the divergence in the reward, and as a loss at each token. Left: how often the hard door is taken (dashed: by the reference). Right: what is wanted, $J$. At $\\beta={door_prices[worst.argmax()]:.2f}$ the token loss lacks {worst.max():.2f} of a reward that is at most one.",
    alt="Left, the chance of the hard door falls to zero for a small price with the divergence in the reward, and returns to a half with the token loss. Right, the token loss's J falls below the other's.",
)

# %% [markdown]
# So the difference does not matter where all places are alike, and is large where a cheap word leads to expensive ones. Which of the two holds for the long texts of a language model is not known here.
#
# ## Which baseline
#
# REINFORCE {cite}`williams1992simple` weights $\nabla\log q(x)$ by what $x$ has earned. If all texts earn between nine and ten, all are made likelier, and only noise tells them apart. So one subtracts a **baseline**. Any number $b$ that does not depend on $x$ leaves the mean alone, since $\mathbb E_q[b\,\nabla\log q]=0$. With $G$ texts after one prompt, the mean of the *others*' rewards is such a number
# {cite}`kool2019buy,ahmadian2024back`. The mean of all of them is not, but is harmless: it gives $\frac{G-1}G$ of the right gradient. GRPO divides by the group's standard deviation as well {cite}`shao2024deepseekmath`: its weight is $A_i=(r_i-\bar r)/(s+\varepsilon)$, with $s$ the deviation over $G-1$, and here $\varepsilon=10^{-4}$ against division by zero. That really does depend on $x$.
# (Only this is taken from GRPO. Its ratio of new to old policy, and its division by each text's length, are left out; here each batch is used once, and all texts are of one length.)
#
# For pairs of texts, $G=2$, all $64^2$ can be enumerated, so mean and variance of the gradient are exact. What dividing does is seen best with questions that are answered rightly (reward one) or not. <!-- by definition --> The true gradient by the logit of being right is $\pi(1-\pi)$, with $\pi$ the chance of it. Divide by a deviation, and it
# becomes $\frac{G-1}G\,\mathbb E[s]$ (except for $\varepsilon$). For large groups this is $\sqrt{\pi(1-\pi)}$; for small ones it is less, since there the factor counts, and the mean of a root is less than the root of the mean. <!-- by definition --> In comparison with the true gradient, easy and hopeless prompts count for more. In themselves they count for little:
# both gradients go to zero there, since groups that are all alike teach nothing, and what grows is their ratio.

# %%
z = t.clone().requires_grad_()
log_q = log_texts(z)
scores = torch.stack([by_table(one, retain_graph=True).flatten() for one in log_q])
q_texts = log_q.detach().exp()
true_gradient = q_texts @ (r[:, None] * scores)
assert torch.allclose(
    q_texts @ scores, torch.zeros(84, dtype=torch.float64), atol=1e-12
)

first, second = torch.cartesian_prod(torch.arange(64), torch.arange(64)).T
chance = q_texts[first] * q_texts[second]
quality = {}
for raised in (0.0, 5.0):  # the same reward, and one that is higher for all
    returns = torch.stack([r[first], r[second]], 1).flatten() + raised
    for baseline in ("none", "leave-one-out", "standardised"):
        a = advantages(returns, 2, baseline).view(-1, 2)
        estimate = (a[:, :1] * scores[first] + a[:, 1:] * scores[second]) / 2
        mean = chance @ estimate
        variance = (chance @ (estimate - mean).square()).sum().item()
        shape = torch.cosine_similarity(mean, true_gradient, 0).item()
        quality[baseline, raised] = mean, variance, shape

# %% tags=["hide-input"]
for raised in (0.0, 5.0):
    for baseline in ("none", "leave-one-out"):
        torch.testing.assert_close(quality[baseline, raised][0], true_gradient)
    assert not torch.allclose(
        quality["standardised", raised][0], true_gradient, rtol=0.05
    )
assert quality["none", 5.0][1] > 5 * quality["leave-one-out", 5.0][1]

GROUP = 8
chances = np.linspace(0.01, 0.99, 99)
pull = {"leave-one-out": [], "standardised": []}
for baseline, found in pull.items():
    for pi in chances:
        total = 0.0
        for right in range(GROUP + 1):
            outcome = (torch.arange(GROUP) < right).double()
            ways = math.comb(GROUP, right) * pi**right * (1 - pi) ** (GROUP - right)
            weights = advantages(outcome, GROUP, baseline)
            total += ways * (weights * (outcome - pi)).mean().item()
        found.append(total)
assert np.allclose(pull["leave-one-out"], chances * (1 - chances))
weight = np.array(pull["standardised"]) / np.array(pull["leave-one-out"])

figure, panel = plt.subplots(figsize=(6.4, 3.0))
for (baseline, values), hue in zip(pull.items(), (BLUE, ORANGE), strict=True):
    panel.plot(chances, values, color=hue, label=baseline)
panel.plot(chances, np.sqrt(chances * (1 - chances)), ":", color="grey", label="$\\sqrt{\\pi(1-\\pi)}$")  # fmt: skip
panel.set(xlabel="chance $\\pi$ of a right answer", ylabel="mean gradient")
panel.legend(fontsize="small")
display(
    show(
        figure,
        label="difficulty",
        caption=f"Mean gradient with respect to the logit of a right answer, groups of {GROUP}, by enumeration. Leave-one-out gives the true one, $\\pi(1-\\pi)$. The standardised is {weight[49]:.1f} times that in the middle and {weight[4]:.1f} times at $\\pi={chances[4]:.2f}$; towards the very ends both vanish and their ratio goes to $(G-1)/\\sqrt G={(GROUP - 1) / GROUP**0.5:.1f}$. Dotted: infinitely large groups.",
        alt="A parabola for leave-one-out; a higher, flatter arch for standardised; a dotted arch of the square root.",
    ),
    table(
        ["baseline", "reward", "variance", "cosine of the mean with the true gradient", "its length, times the true"],
        [
            [name, "as it is" if raised == 0 else f"{raised:g} more for all", f"{variance:.2f}", f"{shape:.4f}", f"{(mean.norm() / true_gradient.norm()).item():.2f}"]
            for (name, raised), (mean, variance, shape) in quality.items()
        ],
        caption="The estimated gradient of the toy's mean reward from a pair of texts, exact over all pairs. Variance: summed over the table's entries.",
    ),
)  # fmt: skip

# %% [markdown]
# Subtracting the reward of one other text need not lower the variance by itself: with pairs, and a reward around zero, it may add some. What it does is make the level of the rewards irrelevant.
#
# ## A policy that is trained by drawing
#
# Now all of it at once, as in practice: a GPT that begins as the toy's reference, draws groups of eight texts, and takes Adam's steps on `PolicyGradient` with the divergence in the reward. It sees nothing of the enumeration; we do. A second one climbs the enumerated $J$ itself, by the same schedule of rates and with as many steps, and a third with five times as many. <!-- by definition --> What the second lacks, this GPT does not reach in so many steps, whether or not it could; the rest is the price of drawing. The third shows how much was due to too few steps.

# %%
GROUPS, EPOCHS = 16, drawing_steps // 5
prompts = torch.zeros(5 * 8 * GROUPS, LENGTH, dtype=torch.long)
toy_recipe = Recipe(
    epochs=EPOCHS,
    batch_size=8 * GROUPS,
    optimizer="adam",
    learning_rate=5e-4,
    weight_decay=0.0,
    schedule="cosine",
    augment=False,
)
TOY_BETAS = {LEASHES[-1]: BLUE, LEASHES[0]: GREEN, 0.0: ORANGE}
learners, tracks = [], {}
for beta in TOY_BETAS:
    student = copy.deepcopy(reference)
    tracks[beta] = [earned(log_p)]

    def look(_, student=student, track=tracks[beta]):
        track.append(earned(log_texts(table_of(student))))

    goal = PolicyGradient(REWARD, 8, beta=beta) + 0.0 * TextKL("exact")
    learners.append(
        Learner(student, goal, toy_recipe, report=look, rewrite=OwnText(1, copies=8))
    )
histories = fit_together(learners, train=Examples(prompts, prompts), teacher=reference)


# %% tags=["hide-input"]
def climbed(beta, times, rate=1.0):
    """What a GPT lacks of the best J that has climbed it by its exact gradient, with so many times the steps."""
    student = copy.deepcopy(reference)
    adam = torch.optim.Adam(student.parameters())
    before = torch.cat([torch.zeros(len(TEXTS), 1, dtype=torch.long), TEXTS[:, :-1]], 1)
    for done in np.arange(0, EPOCHS, 0.2 / times):
        adam.param_groups[0]["lr"] = rate * toy_recipe.learning_rate_at(done)
        value = wanted(log_probabilities(student(before).double(), TEXTS).sum(1), beta)
        adam.zero_grad()
        (-value).backward()
        adam.step()
    with torch.no_grad():
        log_q = log_texts(table_of(student))
    return (wanted(best(beta), beta) - wanted(log_q, beta)).item()


MORE = 5
of_exact = {
    (beta, times): climbed(beta, times)
    for beta in TOY_BETAS
    if beta
    for times in (1, MORE)
}

# %% tags=["hide-input"]
figure, panel = plt.subplots(figsize=(6.6, 3.3))
panel.plot(frontier[:, 1], frontier[:, 0], color="grey", linewidth=1.2)
gaps = {}
for beta, hue in TOY_BETAS.items():
    track = np.array(tracks[beta])
    panel.plot(
        track[:, 1],
        track[:, 0],
        ".-",
        color=hue,
        linewidth=1.0,
        label=f"$\\beta={beta:g}$",
    )
    panel.plot(track[-1, 1], track[-1, 0], "o", color=hue, markersize=8)
    if beta:
        reward, far = earned(best(beta))
        panel.plot(far, reward, "x", color=hue, markersize=10, mew=2)
        gaps[beta] = wanted(best(beta), beta).item() - (
            track[-1, 0] - beta * track[-1, 1]
        )
panel.set(xlabel="$D_{\\mathrm{KL}}(q\\,\\|\\,p)$, nats", ylabel="mean reward")
panel.legend(fontsize="small", loc="lower right")
display(
    show(
        figure,
        label="toy-live",
        caption=f"{EPOCHS * len(prompts) // (8 * GROUPS)} steps of {8 * GROUPS} drawn texts, a small dot every {len(prompts) // (8 * GROUPS)}, reward and divergence by enumeration; large dots are the ends, crosses the best policy at that price. Lacking of the best $J$: "
        + "; ".join(f"{gap:.3f} at $\\beta={beta:g}$, {of_exact[beta, 1]:.3f} with as many exact gradients, and {of_exact[beta, MORE]:.3f} with {MORE} times as many" for beta, gap in gaps.items())
        + ".",
        alt="Three tracks that leave the reference along a grey curve, two with crosses for the best policies at their prices, one without a leash.",
    ),
)  # fmt: skip
# Most of what drawing lacks is lacking after as many exact steps, too.
parts = {
    f"exact gradients, $\\beta={beta:g}$": of_exact[beta, 1] / gap
    for beta, gap in gaps.items()
}
PART = Quantity(
    "what is lacking of the best $J$, as a part of what drawing lacks", digits=2
)
display(*(above(name, 0.5, parts, PART) for name in parts))
for beta in gaps:  # and a part of that for want of steps
    by_steps = {
        "as many steps": of_exact[beta, 1],
        f"{MORE} times as many": of_exact[beta, MORE],
    }
    LACK = Quantity(
        f"what exact gradients lack of the best $J$ at $\\beta={beta:g}$",
        better="lower",
    )
    display(below(f"{MORE} times as many", "as many steps", by_steps, LACK))

# %% [markdown]
# (policy-as-teacher)=
# ## A policy as a teacher
#
# Suppose that somebody has $q^*$ already, and we want it in another model. Then there is no need to draw for rewards: $q^*$ can *teach*. The student writes, and at each letter hears how likely the teacher finds it. That is on-policy distillation, and
# it is said to need a small part of the steps that a reward needs {cite}`lu2025onpolicy`. The reason that is given: a reward is one number a text, the teacher's opinion one a letter. On the toy it can be counted. Five ways to come from the reference
# to $q^*$, eight texts a step, Adam on the table, each with a learning rate of its own, chosen with other seeds: <!-- by definition -->
#
# | way | what is learned from eight texts |
# |---|---|
# | **reward** | the reward, the leash in it, less the mean of the other seven texts |
# | **sampled** | on the student's texts, the advantage $\log\frac{q^*(x_s)}{q(x_s)}$ of each letter, as it is practised |
# | **sampled, baseline** | the same less its mean over the four letters |
# | **exact** | on the student's texts, the reverse KL over all four letters at each place |
# | **teacher's text** | texts of the teacher, $-\log q$ of each letter |


# %% tags=["hide-input"]
def letters_of(log_q):
    """The table of log-probabilities of the next letter that belongs to those of texts."""
    table_, chance = torch.zeros(ROWS, 4, dtype=torch.float64), log_q.exp()
    for place in range(LENGTH):
        table_.index_put_((PREFIX[:, place], TEXTS[:, place]), chance, accumulate=True)
    return table_.log().log_softmax(-1)


AT_ONCE, STEPS = 8, 300
WAYS_THERE = ("reward", "sampled", "sampled, baseline", "exact", "teacher's text")
star = best(BETA)
taught = letters_of(star)
torch.testing.assert_close(log_texts(taught), star)


def lacking_on_the_way(way, settings):
    """The part of J that is lacking before each step, for (rate, seed) side by side."""
    z = t.repeat(len(settings), 1, 1).requires_grad_()
    adam = torch.optim.Adam([z])  # each element for itself, so copies share nothing
    scale = torch.tensor([rate for rate, _ in settings]).double()[:, None, None]
    draws = [torch.Generator().manual_seed(seed) for _, seed in settings]
    adam.param_groups[0]["lr"], each = 1.0, torch.arange(len(settings))[:, None]
    values = []
    for _ in range(STEPS):
        log_letters = z.log_softmax(-1)
        log_q = log_letters[:, PREFIX, TEXTS].sum(-1)
        q = log_q.detach().exp()
        values.append((q * (r - BETA * (log_q.detach() - log_p))).sum(1))
        source = star.exp().expand_as(q) if way == "teacher's text" else q
        text = torch.stack(
            [
                torch.multinomial(of, AT_ONCE, replacement=True, generator=g)
                for of, g in zip(source, draws, strict=True)
            ]
        )
        place, letter = PREFIX[text], TEXTS[text]
        said = log_letters[each[..., None], place, letter]  # (copies, 8, 3)
        rows = log_letters[each[..., None], place]
        divergence = (rows.exp() * (rows - taught[place])).sum(-1)
        opinion = (taught[place, letter] - said).detach()
        if way == "reward":
            value = r[text] - BETA * (log_q.gather(1, text) - log_p[text]).detach()
            others = (value.sum(1, keepdim=True) - value) / (AT_ONCE - 1)
            loss = -((value - others)[..., None] * said)
        elif way == "teacher's text":
            loss = -said
        elif way == "exact":
            loss = divergence
        else:
            mean = -divergence.detach() if way == "sampled, baseline" else 0.0
            loss = -(opinion - mean) * said
        adam.zero_grad()
        loss.sum(-1).mean(1).sum().backward()
        before_step = z.detach().clone()
        adam.step()
        with torch.no_grad():
            z.copy_(before_step + scale * (z - before_step))
    top, bottom = wanted(star, BETA), (log_p.exp() * r).sum()
    return (top - torch.stack(values)) / (top - bottom)


def texts_needed(lacks):
    """Texts that were drawn before nine tenths of the way were made; all, if never."""
    there = lacks < 0.1
    steps = torch.where(there.any(0), there.double().argmax(0), STEPS)
    return (AT_ONCE * steps).tolist()


RATES, TRIES, SEEDS = (0.01, 0.03, 0.1, 0.3, 1.0), range(100, 104), range(8)
tracks_there, needed, rate_of = {}, {}, {}
for way in WAYS_THERE:
    tried = lacking_on_the_way(way, [(a, seed) for a in RATES for seed in TRIES])
    of_rates = tried.unflatten(1, (len(RATES), len(TRIES))).mean(-1)
    # the fastest; of those that never arrive, the nearest
    rate_of[way] = RATES[
        min(
            range(len(RATES)),
            key=lambda i, of=of_rates: (texts_needed(of)[i], of[-1, i].item()),
        )
    ]
    lacks = lacking_on_the_way(way, [(rate_of[way], seed) for seed in SEEDS])
    tracks_there[way], needed[way] = lacks.mean(1), texts_needed(lacks)

# %% tags=["hide-input"]
figure, panel = plt.subplots(figsize=(6.8, 3.3))
for way, hue in zip(WAYS_THERE, (VERMILION, SKY, PURPLE, BLUE, GREEN), strict=True):
    drawn = AT_ONCE * np.arange(1, STEPS + 1)
    panel.plot(drawn, 100 * tracks_there[way], color=hue, label=way)
panel.axhline(10, color="grey", linewidth=0.8, linestyle=":")
panel.set(
    xscale="log", xlabel="texts drawn", ylabel="lacking of $J(q^*)$ (%)", ylim=(0, 110)
)
panel.legend(fontsize="small")
NEEDED = Quantity("texts drawn for nine tenths of the way", digits=0, better="lower")
by_reward = above("reward", ["exact", "sampled", "sampled, baseline"], needed, NEEDED)
by_sample = above("sampled, baseline", "exact", needed, NEEDED)
by_text = above("reward", "teacher's text", needed, NEEDED)
mean_of = {way: np.mean(values) for way, values in needed.items()}
display(
    show(
        figure,
        label="taught-policy",
        caption=f"From the reference to $q^*$ at $\\beta={BETA:g}$, mean of {len(SEEDS)} seeds. Nine tenths of the way (dotted) take, in texts: "
        + "; ".join(f"{way} {mean_of[way]:.0f}" for way in WAYS_THERE)
        + ". Learning rates: "
        + ", ".join(f"{rate_of[way]:g}" for way in WAYS_THERE)
        + ".",
        alt="Five falling curves over the number of texts drawn: "
        + ", ".join(f"{way} at a tenth after {mean_of[way]:.0f}" for way in WAYS_THERE)
        + ".",
    ),
    by_reward,
    by_text,
    by_sample,
)

# %% [markdown]
# Two things are easily confused: that there is a *teacher*, and that the student writes. Where the statements above hold, the first is what saves texts, on the student's as on the teacher's own, and it matters how the teacher is asked. A sampled letter is one draw from what the divergence over all letters
# knows, and that costs no more, since the teacher computes them all. (The baseline here is that divergence; `SampledReverseKL(baseline=True)` is kdlab's.) None of this counts what it took to *have* $q^*$. Somebody has to find it, by a reward. <!-- by definition -->

# %% tags=["hide-input"]
verdict(
    "C6", "depends" if by_reward.holds else "not decided",
    ("Yes, where there is a teacher already; then its own text saves drawing, too. " if by_reward.holds and by_text.holds else "")
    + f"On a toy of {len(TEXTS)} texts whose best policy is known and teaches: {by_reward} {by_text} How the teacher is asked decides as well: {by_sample} The texts that it took to find the teacher are not counted ($\\beta={BETA:g}$, {len(SEEDS)} seeds, each way with a learning rate of its own).",
    condition="under a premise" if by_reward.holds else None,
)  # fmt: skip

# %% [markdown]
# ## A language model that is paid by the word
#
# Now a language model. The reference is the stored GPT that has read books. Suppose that its stories are too quiet, and that we want *lively talk*. There is no one to ask, so we write a rule: a text earns one for each of its tokens that is an exclamation mark, a question mark, a quotation mark, or one of a few words such as "said" and "cried". This asks for lively talk in the
# way in which a test score asks for learning. It has the advantage that the whole reward can be seen.

# %% tags=["hide-input"]
small, large = results("policy-small"), results("policy")


def reward_of(study):
    """What a study's policies are paid for."""
    spec = study.specs[-1]
    return next(term.reward for term in spec.objective.terms if hasattr(term, "reward"))


paid = reward_of(small)
if data.fallback:  # another tokeniser: the forms there that are one token
    forms = [
        " " * space + form
        for space in (0, 1)
        for word in LIVELY
        for form in (word, word.capitalize())
    ]
    alone = [ids[0] for form in forms if len(ids := tokeniser.encode(form).ids) == 1]
    paid = TokenCount(tuple(sorted(set(alone))))
names = [tokeniser.decode([token]) for token in paid.tokens]
Markdown("A text is paid for " + ", ".join(f"`{name!r}`" for name in names) + ".")

# %% [markdown]
# ### The tilted reference
#
# Before any training, the model to compare with: the reference with $b$ added to the logits of the paid tokens, at each step. It is measured as the recorded policies are, with four texts after each of some prompts of the test text. (A policy's divergence is the sum over a text of exact divergences at each token.)


# %% tags=["hide-input"]
class Tilted(torch.nn.Module):
    """A language model that says some tokens more readily."""

    def __init__(self, model, tokens, b):
        super().__init__()
        self.model, self.cache, self.fused = model, model.cache, False
        bias = torch.zeros(model.vocabulary)
        bias[list(tokens)] = b
        self.register_buffer("bias", bias)

    def forward(self, tokens, cache=None):
        return self.model(tokens, cache) + self.bias


TILTS = tuple(tilts)
few = replace(data, test=data.test.spread(tilted_texts))
tilt = {}
for b in TILTS:
    tilted_model = Tilted(model, paid.tokens, b).to(device)
    tilt[b] = measured_policy(small.specs[-1], tilted_model, paid, few, model, device)
tilt_line = np.array([(np.mean(m["kl"]), np.mean(m["reward"])) for m in tilt.values()])
assert tilt_line[0, 0] < 1e-6  # without a tilt it is the reference
(of_reference,) = measure_tokens([model], data.test, device=device)

# %% [markdown]
# ### The recorded policies
#
# Each arm (way to train) begins with a copy of the reference. Eight texts are written after each prompt. PPO is not needed, for every batch is used once: old and new policy are one. Four have the divergence in the reward, at prices from zero upwards. One of these prices is tried in five other ways: with GRPO's baseline, and with the divergence as a loss, by each estimate and exactly. Three seeds each, one
# learning rate for all.

# %% tags=["hide-input"]
ARMS = {
    "beta0": "no leash",
    "beta0.25": "β = 0.25",
    "beta0.5": "β = 0.5",
    "beta1": "β = 1",
    "standardised": "β = 0.5, standardised",
    "loss-k1": "0.5 · k₁ as a loss",
    "loss-k2": "0.5 · k₂ as a loss",
    "loss-k3": "0.5 · k₃ as a loss",
    "loss-exact": "0.5 · exact, as a loss",
}
HUES = dict(zip(ARMS, (VERMILION, ORANGE, GREEN, BLUE, "#7A7A7A", SKY, PURPLE, "#8C6D1F", "#4B3F8F"), strict=True))  # fmt: skip
MARKS = dict(zip(ARMS, "oooosvD^P", strict=True))
PRICES = {"beta0": 0.0, "beta0.25": 0.25, "beta1": 1.0}  # of the others, a half
studies = (small, large)


def reward_in(record):
    return float(np.mean(record["test"]["policy"]["reward"]))


def far_in(record):
    return float(np.mean(record["test"]["policy"]["kl"]))


def distinct_in(record):
    return record["test"]["policy"]["distinct"]


def own_price(arm):
    return PRICES.get(arm, 0.5)


def objective_in(beta):
    return lambda record: reward_in(record) - beta * far_in(record)


def described(study):
    spec = study.specs[-1]
    steps = spec.recipe.epochs * spec.recipe.epoch_examples // spec.recipe.batch_size
    return f"{called(spec.student)}, {steps} steps of {spec.recipe.batch_size} texts"


def study_figure(study):
    figure, panel = plt.subplots(figsize=(7.2, 4.0))
    if study is small:
        panel.plot(
            *tilt_line.T, "--", color="grey", linewidth=1.2, label="tilted reference"
        )
        for (far, reward), b in zip(tilt_line, TILTS, strict=True):
            panel.annotate(f"$b={b:g}$", (far, reward), xytext=(3, -9), textcoords="offset points", fontsize="xx-small")  # fmt: skip
    for arm in study.ready(ARMS) if study.records else []:
        far, reward = (list(study.values(arm, m).values()) for m in (far_in, reward_in))
        panel.plot(far, reward, MARKS[arm], color=HUES[arm], markersize=5.5, alpha=0.8, label=ARMS[arm], ls="")  # fmt: skip
    panel.set(
        xlabel="$D_{\\mathrm{KL}}(q\\,\\|\\,p)$ of a text, nats",
        ylabel="paid tokens in a text",
    )
    panel.set_xscale("symlog", linthresh=1.0)
    ticks = [0, 0.5, 1, 2, 5, 10, 20, 50, 100, 200]
    panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    panel.set_xlim(left=-0.05)
    panel.set_yscale("log")
    ticks = [0.5, 1, 2, 5, 10, 20]
    panel.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    panel.minorticks_off()
    panel.legend(fontsize="x-small", loc="upper left")
    top = tilt_line[-1]
    said = (
        f"The tilted reference (dashed) earns from {tilt_line[0, 1]:.1f}, untilted, to {top[1]:.1f} at {top[0]:.1f} nats. "
        if study is small
        else ""
    )
    dots_said = (
        "A dot is one training. "
        if study.ready(ARMS)
        else "No recorded policy has been measured yet. "
    )
    return show(
        figure,
        label=f"study-{study.plan}",
        caption=f"{described(study)}. {said}{dots_said}Above the dashed line: more reward for the same divergence than by a constant tilt. (It joins a few tilts by straight pieces, so that only points well above it say something.) Both axes are logarithmic, that of divergences only beyond one.",
        alt="Reward against divergence: a dashed rising curve of the tilted reference, and dots of recorded policies where there are records.",
    )


def study_table(study):
    rows = []
    if study is small:
        start = tilt[0.0]
        earns = np.mean(start["reward"])
        rows.append(["reference", f"{earns:.2f}", "0", f"{earns:.2f}", f"{start['distinct']:.3f}", f"{of_reference['bits_per_byte']:.3f}", "–"])  # fmt: skip
    for arm in study.ready(ARMS):
        found = [
            study.mean(arm, m)
            for m in (
                reward_in,
                far_in,
                objective_in(own_price(arm)),
                distinct_in,
                "bits_per_byte",
            )
        ]
        rows.append(
            [
                ARMS[arm],
                *(
                    f"{i.mean:.{d}f} ± {(i.high - i.low) / 2:.{d}f}"
                    for i, d in zip(found, (2, 2, 2, 3, 3), strict=True)
                ),
                found[0].n,
            ]
        )
    return table(
        ["arm", "reward", "KL, nats", "reward − β · KL", "distinct tokens", "bits per byte", "$n$"],
        rows,
        caption=f"Means over trainings with half the 95 % interval; β is each arm's own price. Seeds differ in prompts and draws of training; the prompts of the test, four texts each, are the same for all of them. The reference has {len(tilt[0.0]['reward'])}. Distinct tokens: of a text, divided by its length. Bits per byte: on the books, what the policy has unlearned of them.",
    )  # fmt: skip


def tilted_at(far):
    """The reward of the tilted reference at a divergence, between the measured tilts."""
    return float(PchipInterpolator(*tilt_line.T)(far))


def beyond_tilt(record):
    """Reward minus that of a constant tilt of the same divergence."""
    return reward_in(record) - tilted_at(far_in(record))


def yardstick_table(study):
    """Each arm beside the tilted reference: at its divergence, and at its price."""
    rows = []
    for arm in study.ready(ARMS):
        beta = own_price(arm)
        worth = tilt_line[:, 1] - beta * tilt_line[:, 0]
        best_tilt = TILTS[int(worth.argmax())]
        inside = all(x <= tilt_line[-1, 0] for x in study.values(arm, far_in).values())
        rows.append(
            [
                ARMS[arm],
                study.mean(arm, beyond_tilt).bracketed("+.2f")
                if inside
                else "farther than any tilt",
                study.mean(arm, objective_in(beta)).bracketed("+.2f"),
                f"{worth.max():+.2f} ($b={best_tilt:g}$)" if beta else "–",
                f"{worth[0]:+.2f}",
            ]
        )
    return table(
        ["arm", "reward beyond the tilt's at equal KL", "reward − β · KL", "of the best tilt", "of the reference"],
        rows,
        caption=f"The recorded policies beside a tilt that takes no training; means over trainings with 95 % intervals, at each arm's own price. Tilts between the measured ones are interpolated (monotone cubic), the best one is the best of the {len(TILTS)} measured.",
    )  # fmt: skip


display(study_figure(small))
for study in studies:
    if study.ready(ARMS):
        if study is large:
            display(study_figure(large))
        display(study_table(study), source_note(study.all(study.ready(ARMS))))
    if study is small and study.ready(ARMS):
        display(yardstick_table(small))
    display(*slots(study, ARMS, f"policies on nine leashes ({described(study)})"))

# %% [markdown]
# How to read the tables. Arms with the divergence in the reward should stand in the order of their prices. *Standardised* divides the whole return by the spread of its group: the price stays, the size of the steps changes. The loss by $k_1$ should be where *no leash* is: on average it adds nothing. The losses by $k_2$ and exactly have the same mean gradient, so that what lies between them is variance; $k_3$ has another. The column *reward − β · KL*, at each arm's own price, is what it was after,
# and of those at 0.5 the arm with the divergence in the reward is the one that was asked for it in full. <!-- by definition --> A text has a fixed number of tokens, so the reward has a ceiling; an arm that is there cannot earn more, and its divergence says only which of the texts of paid tokens it found. The other arms have had few steps, and their places mix where they go with how fast. The reference has no divergence, and is worth its reward at any price:
# an arm that is worth less at its own price has lost by its training, whose steps cost more than they brought. <!-- by definition -->

# %% tags=["hide-input"]
PRICED = ("beta1", "beta0.5", "beta0.25", "beta0")
AS_LOSSES = ("loss-exact", "loss-k2", "loss-k3")
FAR = Quantity(
    "divergence from the reference", "nats", digits=1, better="lower", of=far_in
)
for study in studies:
    if study.complete(list(ARMS)):
        display(
            in_order(PRICED, study, FAR, names=ARMS),
            above("loss-k1", "beta0.25", study, FAR, names=ARMS),
        )
        ahead = {
            arm: study.difference("beta0.5", arm, objective_in(0.5))
            for arm in AS_LOSSES
        }
        if all(ahead.values()):  # none lacks seeds that did not diverge
            display(
                Markdown(
                    "Of reward − 0.5 · KL, the divergence in the reward minus the divergence as a loss: "
                    + ", ".join(
                        f"{i.bracketed('+.2f')} ({ARMS[arm]})"
                        for arm, i in ahead.items()
                    )
                    + f", paired by seed, n = {ahead['loss-exact'].n} (plan {study.plan})."
                )
            )


# %% tags=["hide-input"]
def sided(study, measure, arms):
    """Arms by what their interval says of zero; the intervals hold together (Bonferroni's)."""
    level = 1 - 0.05 / len(arms)
    found = {
        arm: mean_interval(list(study.values(arm, measure).values()), level)
        for arm in arms
    }
    return {
        "more": [ARMS[a] for a, i in found.items() if i.low > 0],
        "less": [ARMS[a] for a, i in found.items() if i.high < 0],
        "not decided": [ARMS[a] for a, i in found.items() if not i.excludes_zero],
    }


def above_reference(record):
    """Reward − β · KL of an arm at its own price, minus the reference's."""
    arm = record["spec"]["arm"]
    return objective_in(own_price(arm))(record) - tilt_line[0, 1]


if small.complete(ARMS):
    others = Among(
        "the trained arms with a leash",
        [a for a in ARMS if a not in ("beta0", "loss-k1")],
    )
    beyond = Quantity(
        "reward beyond a constant tilt's at equal divergence", digits=2, of=beyond_tilt
    )
    gained = Quantity(
        "reward − β · KL beyond the reference's, at its own price",
        digits=2,
        of=above_reference,
    )
    display(
        Markdown(str(only([], small, beyond, above=0, among=others, names=ARMS))),
        Markdown(str(only(["beta0.25", "beta0.5", "standardised"], small, gained, above=0, among=others, names=ARMS))),
        below("beta1", tilt_line[0, 1], small, Quantity("reward − KL", digits=2, of=objective_in(1.0)), names=ARMS),
    )  # fmt: skip

# %% [markdown]
# The sentences above say whether these policies are where their price would put them. A constant tilt, which looks only at the paid words, is the measure of what has been learned beyond “say them more often”.
#
# ### What is written
#
# Numbers do not show how the texts have changed.

# %% tags=["hide-input"]


def quoted(title, texts):
    shown = "".join(
        f'<li style="margin:0.2rem 0">{html.escape(" ".join(text.split()))}</li>'
        for text in texts
    )
    return f'<p style="margin-bottom:0.2rem"><strong>{html.escape(title)}</strong></p><ul>{shown}</ul>'  # fmt: skip


parts = [quoted("The reference", tilt[0.0]["samples"][:3])]
told = [
    arm
    for arm in ("beta1", "beta0.5", "beta0.25", "beta0")
    if small.values(arm, reward_in)
]
for arm in told:
    record = next(r for r in small.arm(arm) if r["test"])
    parts.append(
        quoted(f"Recorded policy, {ARMS[arm]}", record["test"]["policy"]["samples"][:3])
    )
distinct = [
    f"{value:.2f} ({name})"
    for name, value in [
        ("reference", tilt[0.0]["distinct"]),
        *(
            (ARMS[arm], next(iter(small.values(arm, distinct_in).values())))
            for arm in told
        ),
    ]
]
if "beta0" not in told:
    parts.append(
        quoted(
            f"No policy without a leash has been recorded yet. In its place the reference tilted by b = {TILTS[-1]:g}",
            tilt[TILTS[-1]]["samples"][:3],
        )
    )
Shown(
    f'<figure class="kd-figure" id="fig-samples"><div style="font-size:0.92rem">{"".join(parts)}</div><figcaption>How they go on from three prompts of the test text (the prompts are not shown; they are the same for all policies), of each arm its first training. Different tokens in a text, as a part of its length: {"; ".join(distinct)}.</figcaption></figure>'
)

# %% [markdown]
# A policy that is paid by the word, without a leash, has no reason to write anything but those words. That is called *reward hacking*, and "hacking" is unfair: it does what the rule says. The leash does not make the rule right either. It makes a departure from the reference cost something, so that the policy takes the cheapest ones first. One may hope that these are the ones that were meant: talk where talk was about to begin anyway. At a low price less may be left of that. Where it stops being talk is for a reader to say.
#
# ## The claim
#
# "Knowledge distillation in RLHF: Used to regularize a 'Policy' model against a 'Reference' model via KL-divergence, preventing 'reward hacking' while preserving the base model's knowledge", says article B. Such a leash is in use, it is the divergence from the reference, and how much it prevents and preserves is a matter of its price. The paper that the article cites for it has the other divergence.

# %% tags=["hide-input"]
said = (
    f"The leash is $D_{{\\mathrm{{KL}}}}(q\\,\\|\\,p)$ from a fixed reference; PPO's divergence, which the article cites, is from the old policy of each round. On a toy of {len(TEXTS)} texts, with at most {largest_step:.4f} nats in each of {ROUNDS} such rounds, the policy ended {ended['reward alone']:.2f} nats from its reference, where this reward drives it: all on the text that earns most; "
    f"with the leash in the reward ($\\beta={BETA:g}$) it ended at $q^*\\propto p\\,e^{{r/\\beta}}$, {ended['with the leash']:.2f} nats away. No policy that is worth more than its reference, leash included, is farther from it than the range of the reward over $\\beta$. As a loss on the drawn tokens, $k_1$ has on average no gradient and holds nothing, $k_2$ has that of the divergence and $k_3$ that of the other direction, and none counts what a word leads to."
)
if small.complete(ARMS):
    said += (
        f" In the records ({described(small)}, n = {small.mean('beta0', far_in).n} seeds) the divergence of a text, with its 95 % interval, and the mean reward are "
        + "; ".join(
            f"{small.mean(arm, far_in).bracketed('.1f')} nats, {small.mean(arm, reward_in).mean:.1f} ({ARMS[arm]})"
            for arm in ARMS
            if arm != "standardised"
        )
        + f". Bits per byte of the books are {of_reference['bits_per_byte']:.3f} before, {small.mean('beta1', 'bits_per_byte').mean:.3f} after training with β = 1, and {small.mean('beta0', 'bits_per_byte').mean:.3f} without a leash. At equal divergence a constant tilt earns "
    )
    by_tilt = sided(
        small, beyond_tilt, [a for a in ARMS if a not in ("beta0", "loss-k1")]
    )
    said += "; ".join(
        f"{how} {', '.join(by_tilt[side])}"
        for side, how in (("less", "more than"), ("more", "less than"), ("not decided", "as much, for all that is decided, as"))
        if by_tilt[side]
    ) + "."  # fmt: skip
verdict("B14", "corrected", said)

# %% tags=["hide-input"]
found = [
    f"On a toy of {len(TEXTS)} texts, {ROUNDS} rounds with PPO's penalty alone end {ended['reward alone']:.2f} nats from the reference. With the leash in the reward ($\\beta={BETA:g}$) they end at the best policy, {ended['with the leash']:.2f} nats away.",
    f"As a loss, $k_1$ lacks {max(lacking['k1', BETA], 0):.3f} of the best $J$ on that toy, $k_2$ {max(lacking['k2', BETA], 0):.3f} and $k_3$ {max(lacking['k3', BETA], 0):.3f}; with the divergence in the reward {max(lacking['in the reward', BETA], 0):.3f} is lacking (exact mean gradients, $\\beta={BETA:g}$).",
]
if small.complete(["beta0", "beta1"]):
    free, held = (
        [small.mean(arm, m).mean for m in (reward_in, far_in, distinct_in)]
        for arm in ("beta0", "beta1")
    )
    found.append(
        f"A small language model without a leash earns {free[0]:.1f} a text, {free[1]:.1f} nats from its reference, and {free[2]:.2f} of its tokens are different ones; with β = 1 it earns {held[0]:.1f} at {held[1]:.1f} nats, and {held[2]:.2f} are different ({described(small)}, n = {small.mean('beta1', far_in).n} seeds)."
    )
findings.show(*found)

# %% [markdown]
# ## Limits
#
# - **No human feedback.** The reward is a rule of one line. Rewards that are learned from preferences have errors of their own, and the leash is there above all for these: far from the reference, a learned reward has seen nothing. That cannot be seen with a rule that is exact everywhere.
# - **Small models and short texts.** A few million parameters, twenty-five tokens of their own. What token losses leave out may grow with the length of a text; that is not measured there.
# - **The tilted reference is a yardstick, not a bound.** The best policy of the language model is not known. A policy above the dashed line has learned to choose its places; one below may still be on its way. The tilts have draws of their own, which the intervals over trainings do not hold.
# - **One reward, one learning rate, few steps.** An arm's place after a fixed number of steps mixes where it goes with how fast.
# - **Each batch is used once.** Programs that take several steps on one batch need PPO's ratio or another correction, and then have both divergences.
# - **What divergence says.** A mean over texts may be small while some texts are far off, and a text may be likely under the reference and still be bad.
# - **The toy's reference** has random weights, of a seed that was chosen among some dozens for figures in which things can be told apart. Another seed gives other numbers in all of them, and the same identities.
#
# ## To take away
#
# **Formulae.** $J(q)=\mathbb E_q[r]-\beta\,D_{\mathrm{KL}}(q\,\|\,p)$ is largest at $q^*\propto p\,e^{r/\beta}$. With $\rho=p(x)/q(x)$: $k_1=-\log\rho$, $k_2=\frac12(\log\rho)^2$, $k_3=\rho-1-\log\rho$. As values, $k_1$ and $k_3$ are right on average; as losses, $k_2$ has the gradient of $D_{\mathrm{KL}}(q\,\|\,p)$, $k_3$ that of $D_{\mathrm{KL}}(p\,\|\,q)$, and $k_1$ none.
#
# **What to set.** `PolicyGradient(reward, group, beta=β)` with `OwnText(prompt, copies=group)` and the reference as the teacher. `TextKL("exact")` reports the divergence at weight zero.
#
# **What to watch for.** Say from which model the divergence is taken, and whether it stands in the reward or in the loss. A loss at each token does not know what a word leads to. A constant tilt of the reference takes no training: compare with it.
#
# ## Exercises
#
# ```{exercise}
# :label: ex-soft-value
#
# The best policy as a language model: show that $q^*(x_s\mid x_{<s})\propto p(x_s\mid x_{<s})\,e^{r_s/\beta}\,V(x_{\le s})$ for a reward that is a sum over letters, with $V(x_{\le s})=\mathbb E_p\bigl[e^{\sum_{u>s}r_u/\beta}\mid x_{\le s}\bigr]$. When is the tilted reference with $b=1/\beta$ the best policy? Check on the toy.
# ```
#
# ````{solution} ex-soft-value
# :class: dropdown
#
# Sum $p\,e^{r/\beta}$ over all texts that begin with $x_{\le s}$: it is $p(x_{\le s})\,e^{\sum_{u\le s}r_u/\beta}\,V(x_{\le s})$. The conditional probability is the quotient of two of these, and what does not depend on $x_s$ cancels. It is a constant tilt if $V$ does not depend on the last letter, for instance if the reference draws its letters independently:
#
# ```python
# same = t[:1].expand(21, 4)
# even = log_texts(same)
# print(torch.allclose(torch.log_softmax(even + r / 0.5, 0), log_texts(same + 2 * PAID)))  # True
# print(torch.allclose(torch.log_softmax(log_p + r / 0.5, 0), log_texts(t + 2 * PAID)))  # False
# ```
# ````
#
# ```{exercise}
# :label: ex-best-of-n
#
# Draw $n$ texts from the reference and keep the one that earns most (ties: the first). Compute this policy on the toy by enumeration for $n=1,2,4,\dots,64$, without drawing. Show that its divergence from the reference is at most $\log n-\frac{n-1}n$ where there are no ties, and put it beside the frontier.
# ```
#
# ````{solution} ex-best-of-n
# :class: dropdown
#
# Let $F$ be the chance that a text of the reference earns less than $x$ does, and $F_+$ that it earns no more. The one that is kept has this reward with probability $F_+^n-F^n$, and within one reward is distributed as the reference: $q(x)=p(x)\,(F_+^n-F^n)/(F_+-F)$.
#
# ```python
# chances = log_p.exp()
# less = torch.stack([chances[r < x].sum() for x in r])
# no_more = torch.stack([chances[r <= x].sum() for x in r])
# for n in (1, 2, 4, 8, 16, 32, 64):
#     kept = (chances * (no_more**n - less**n) / (no_more - less)).log()
#     reward, far = earned(kept)
#     assert far <= math.log(n) - (n - 1) / n + 1e-9
#     print(n, f"{reward:.2f} for {far:.2f} nats; the most: {np.interp(far, *frontier[::-1, ::-1].T):.2f}")
# ```
#
# Without ties, and with single texts' probabilities small, $q/p=nF^{n-1}$ with $F$ uniform on $[0,1]$, so that the divergence is
# $\int_0^1 nu^{n-1}\log(nu^{n-1})\,du=\log n-\frac{n-1}n$. Ties only make it smaller: what is kept does not tell them apart. <!-- by definition --> The frontier is above it, since it is the most that can be earned; look how far. <!-- by definition -->
# ````
#
# ```{exercise}
# :label: ex-k1-in-reward
#
# In the reward, the sum over a text of $k_1$ is right, and as a loss it is worth nothing. Why is that no contradiction? What would $k_3$, summed over a text's tokens, do *in the reward*?
# ```
#
# ```{solution} ex-k1-in-reward
# :class: dropdown
#
# In the reward it is a number that multiplies $\nabla\log q(x)$: the mean is $\mathbb E_q[\log\frac qp\,\nabla\log q]=\nabla D_{\mathrm{KL}}(q\,\|\,p)$, because the derivative of the number itself has mean zero. As a loss, that derivative is all there is. In the reward $k_3$ gives $\mathbb E_q[k_3\nabla\log q]=\nabla D_{\mathrm{KL}}(q\,\|\,p)+\mathbb E_q[\rho\,\nabla\log q]$ for one token, and the
# last is $\mathbb E_p[\nabla\log q]=-\nabla D_{\mathrm{KL}}(p\,\|\,q)$: one direction minus the other. It is not the gradient of the divergence, though the values agree on average, since the derivative of $k_3$ itself, which is left out, does not have mean zero.
# ```
#
# ```{exercise}
# :label: ex-rate-or-steps
#
# An experiment: what exact gradients lack of the best $J$ after as many steps as drawing had may be due to too few steps, too low a rate, or a GPT that cannot say it. Climb at the highest price with two and four times the rate. Does it come nearer to the best? What would you have to try before you said that this GPT *cannot*?
# ```
#
# ````{solution} ex-rate-or-steps
# :class: dropdown
#
# `climbed` takes a factor of the rate.
#
# ```python
# for rate in (1, 2, 4):
#     print(f"{rate} times the rate: lacks {climbed(LEASHES[-1], 1, rate):.4f}")
# ```
#
# A larger rate is worth steps as long as the climb stays steady. A gap that no rate, no number of steps and no other starting point closes is evidence of a limited capacity; one training is not.
# ````
