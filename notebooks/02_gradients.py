# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Gradients by hand and by machine
#
# A loss on a student's outputs moves the student through one vector: its derivative with respect to the logits. This
# chapter derives that vector for the losses that the next chapters need. It does so three times: with SymPy for a
# **symbolic** number of classes, with SymPy again for three explicit classes (all but the Jensen–Shannon divergence),
# and with PyTorch's automatic differentiation on random logits. The three must agree.
#
# **At the end you will know** the softmax's Jacobian; the gradients of cross-entropy,
# of both Kullback–Leibler divergences and of the Jensen–Shannon divergence; and what becomes of "prediction minus
# target" when the target has lost some of its mass.
#
# *Needs: one CPU core and under a minute.*

# %% tags=["parameters"]
profile = "cpu"  # or "gpu"
classes: int = 1000  # N of a target that loses mass
kept: int = 10  # how many of its largest probabilities stay
betas: list[float] = [0.5, 0.1]  # of the Jensen–Shannon divergence; norms for the first
temperatures: list[float] = [0.5, 60.0]  # at which norms are compared
seed: int = 0  # of all random logits

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import numpy as np
import sympy as sp
import torch
from IPython.display import Math

from kdlab.figures import BLUE, GREEN, ORANGE, sentence, show, table, use_style
from kdlab.objectives import cross_entropy, forward_kl, log_soften, reverse_kl
from kdlab.study.display import Findings, device_for, verdict
from kdlab.study.parameters import require
from kdlab.theory import reference
from kdlab.theory.symbolic import (
    T,
    beta,
    i,
    j,
    l,
    log_softmax,
    m,
    p,
    partial,
    q,
    same,
    softmax,
    total,
    z,
)

use_style()
device = device_for(profile)
require(
    kept < classes, "kept must be less than classes, for the target is to lose mass."
)
require(
    max(betas) < 1,
    "betas must lie between 0 and 1, both left out: there the divergence is zero.",
)
require(
    len(set(temperatures)) > 1
    and 0.1 <= min(temperatures)
    and max(temperatures) <= 10_000,
    "temperatures must be two or more, from 0.1 to 10,000.",
)


def equation(left, right):
    """A displayed equation whose right side was computed."""
    return Math(rf"{left} \;=\; {sp.latex(right)}")


# %% tags=["hide-input"]
findings = Findings()

# %% [markdown]
# ## The softmax's Jacobian
#
# The softmax of logit $i$, as SymPy holds it: an exponential over a sum with a symbolic upper limit $N$.

# %%
softmax(z, i)

# %% [markdown]
# Its derivative by logit $z_j$. Logits with different indices are independent, so
# $\partial z_k/\partial z_j = \delta_{jk}$, and SymPy leaves such a delta inside the sum:

# %%
sp.diff(softmax(z, i), z[j])

# %% [markdown]
# `partial` takes the two steps that a person would take next. It carries out the sums over deltas, and it writes $q$ for
# $e^{z/T}/\sum e^{z/T}$:

# %%
jacobian = partial(softmax(z, i), z[j])
equation(r"\frac{\partial q_i}{\partial z_j}", sp.factor(jacobian))

# %% [markdown]
# Textbooks print two cases: $q_i(1-q_i)$ where $i=j$, and $-q_iq_j$ where not. The delta says both at once, and the
# temperature adds its $1/T$.

# %%
assert same(jacobian, q[i] * (sp.KroneckerDelta(i, j) - q[j]) / T)
assert sp.factor(jacobian.subs(j, i)) == sp.factor(q[i] * (1 - q[i]) / T)

# %% [markdown]
# (ce-gradient)=
# ## Cross-entropy
#
# Article B: “The Cross-Entropy loss for a target distribution $p$ is $L = -\sum_j p_j \ln q_j$”, with the gradient $q_i - p_i$. Here nothing is
# assumed of $p$ yet.

# %%
cross_entropy_loss = -total(p[l] * log_softmax(z, l), l)
gradient = partial(cross_entropy_loss, z[i])
equation(r"\frac{\partial L}{\partial z_i}", gradient)

# %% [markdown]
# The prediction is multiplied by $\sum_n p_n$. For a distribution that is one, and the gradient is $q_i - p_i$ (times $1/T$), as the article says. A target whose mass was lost on the way (top-$k$ probabilities that were not renormalised, a
# row of padding, classes masked after the softmax) has another gradient: it pulls towards $p_i/\sum p$, and $\sum p$ times as hard.

# %%
assert same(gradient, (q[i] * total(p[l], l) - p[i]) / T)
with_mass_one = gradient.replace(
    lambda e: isinstance(e, sp.Sum), lambda s: sp.Integer(1)
)
assert sp.expand(with_mass_one - (q[i] - p[i]) / T) == 0
equation(r"\frac{\partial L}{\partial z_i}\Big|_{\sum p = 1}", sp.factor(with_mass_one))

# %% [markdown]
# An example: keep the largest of the target's probabilities, and compare the formula for a distribution with
# automatic differentiation.

# %%
generator = torch.Generator().manual_seed(seed)
full = torch.softmax(
    3 * torch.randn(classes, dtype=torch.float64, generator=generator), -1
)
top = full.topk(kept)
truncated = torch.zeros_like(full).scatter(-1, top.indices, top.values)
student_row = torch.randn(
    classes, dtype=torch.float64, generator=generator
).requires_grad_()
(autograd,) = torch.autograd.grad(
    -(truncated * torch.log_softmax(student_row, -1)).sum(), student_row
)

# %% tags=["hide-input"]
q_row, mass = torch.softmax(student_row.detach(), -1), truncated.sum().item()
error_without = (q_row - truncated - autograd).abs().max().item()
error_with = (q_row * mass - truncated - autograd).abs().max().item()
assert error_with < 1e-14 < error_without

# %% tags=["hide-input"]
outside = (truncated == 0).nonzero().flatten()
outside = outside[autograd[outside].argsort()]
figure, axis = plt.subplots(figsize=(6.4, 3.2))
axis.plot(autograd[outside], color=BLUE, linewidth=4, alpha=0.4, label="autograd")
axis.plot((q_row * mass)[outside], color=BLUE, linewidth=1.2, label=r"$q\,\sum p - p$")
axis.plot(q_row[outside], color=ORANGE, linewidth=1.2, label="$q - p$")
axis.set(
    yscale="log", xlabel="classes that were cut off, by gradient", ylabel="gradient"
)
axis.legend()
show(
    figure,
    label="mass",
    caption=f"The target keeps its {kept} largest of {classes:,} probabilities, {mass:.0%} of its mass. On the classes that were cut off, $q-p$ (orange) overstates the "
    rf"true gradient by $1/\sum p$, a factor of {1 / mass:.2f}; with the factor (thin blue) it lies on autograd's (broad blue).",
    alt="Two parallel curves on a logarithmic axis; the orange one lies above, the thin blue one on the broad blue one.",
)

# %% tags=["hide-input"]
verdict(
    "B5", "proved",
    r"For a target distribution the gradient is $q_i - p_i$, for every $N$. For any other target it is $q_i\sum_k p_k - p_i$: with a "
    rf"target cut to {mass:.0%} of its mass, autograd agrees with that to {error_with:.0e} and misses $q_i - p_i$ by {error_without:.0e}.",
)  # fmt: skip

# %% [markdown]
# `kdlab` therefore refuses a target that is not a distribution:

# %% tags=["hide-input"]
try:
    cross_entropy(student_row, truncated)
except ValueError as error:
    refused = str(error)
sentence(f"“{refused}”")

# %% [markdown]
# ## Forward KL: the teacher's entropy is constant
#
# $D_{\mathrm{KL}}(p\,\|\,q) = \sum_l p_l(\log p_l - \log q_l)$ differs from the cross-entropy by
# $\sum_l p_l \log p_l$, which contains no logit of the student. So its gradient is the same.

# %%
forward = total(p[l] * (sp.log(p[l]) - log_softmax(z, l)), l)
assert same(partial(forward, z[i]), gradient)
equation(
    r"\frac{\partial}{\partial z_i} D_{\mathrm{KL}}(p\,\|\,q)", sp.factor(with_mass_one)
)

# %% [markdown]
# The chain rule puts the factor $1/T$ in front, whatever $p$ is.
#
# ## Reverse KL: a different vector
#
# $D_{\mathrm{KL}}(q\,\|\,p)$ is an expectation under the *student*. The student moves it in two ways at once: by
# the log-ratios, and by the weight of each.

# %%
reverse = total(softmax(z, l) * (log_softmax(z, l) - sp.log(p[l])), l)
reverse_gradient = partial(reverse, z[i])
equation(r"\frac{\partial}{\partial z_i} D_{\mathrm{KL}}(q\,\|\,p)", reverse_gradient)

# %% [markdown]
# Two sums and two single terms: with $\log q_i = z_i/T - \log Z$ they fold to
#
# $$\frac{\partial}{\partial z_i} D_{\mathrm{KL}}(q\,\|\,p) = \frac{q_i}{T}\Bigl(\log\frac{q_i}{p_i} - D_{\mathrm{KL}}(q\,\|\,p)\Bigr).$$
#
# A class is pushed down if its log-ratio is larger than average, and the push is proportional to $q_i$: **the reverse KL ignores
# classes where the student has no mass.** The forward KL sees every class where the *teacher* has mass.

# %%
assert same(reverse_gradient, q[i] / T * (log_softmax(z, i) - sp.log(p[i]) - reverse))
assert not same(reverse_gradient, gradient)

# %% [markdown]
# ## Jensen–Shannon: a bridge between the two
#
# With the mixture $m = \beta p + (1-\beta) q$, the generalised divergence is
# $\mathrm{JSD}_\beta = \beta D_{\mathrm{KL}}(p\,\|\,m) + (1-\beta) D_{\mathrm{KL}}(q\,\|\,m)$. The student's logits are inside $m$
# too. But the terms that come from $m$ cancel, since $m$ sums to one:


# %%
def mixture(index):
    return beta * p[index] + (1 - beta) * softmax(z, index)


jsd = beta * total(p[l] * (sp.log(p[l]) - sp.log(mixture(l))), l)
jsd += (1 - beta) * total(softmax(z, l) * (log_softmax(z, l) - sp.log(mixture(l))), l)
# Written in m: put p = (m − (1 − β) q) / β into the derivative.
jsd_gradient = partial(
    jsd, z[i], given={p: lambda a: (m[a] - (1 - beta) * q[a]) / beta}
)
to_mixture = total(softmax(z, l) * (log_softmax(z, l) - sp.log(m[l])), l)
assert same(
    jsd_gradient,
    (1 - beta) * q[i] / T * (log_softmax(z, i) - sp.log(m[i]) - to_mixture),
)

# %% [markdown]
# $$\frac{\partial}{\partial z_i}\mathrm{JSD}_\beta = (1-\beta)\,\frac{q_i}{T}\Bigl(\log\frac{q_i}{m_i} - D_{\mathrm{KL}}(q\,\|\,m)\Bigr)$$
#
# At $\beta = 0$ the mixture is $q$ itself and the divergence and its gradient are zero; at $\beta=1$ the factor
# $1-\beta$ is. A loss that is called JSD and takes the KLs at its end points has been *defined* to do so.
#
# ## Again, for explicit classes
#
# Index sums can hide a slip. So here are three classes, written out, and differentiated without any of our rules.

# %%
size = 3
zs, ps = (
    sp.symbols(f"z1:{size + 1}", real=True),
    sp.symbols(f"p1:{size + 1}", positive=True),
)
partition = sum(sp.exp(a / T) for a in zs)
qs = [sp.exp(a / T) / partition for a in zs]
losses = {
    "cross-entropy": -sum(b * sp.log(a) for a, b in zip(qs, ps, strict=True)),
    "forward KL": sum(b * (sp.log(b) - sp.log(a)) for a, b in zip(qs, ps, strict=True)),
    "reverse KL": sum(a * (sp.log(a) - sp.log(b)) for a, b in zip(qs, ps, strict=True)),
}
claimed = {
    "cross-entropy": [(a * sum(ps) - b) / T for a, b in zip(qs, ps, strict=True)],
    "forward KL": [(a * sum(ps) - b) / T for a, b in zip(qs, ps, strict=True)],
    "reverse KL": [
        a / T * (sp.log(a) - sp.log(b) - losses["reverse KL"])
        for a, b in zip(qs, ps, strict=True)
    ],
}

# %% tags=["hide-input"]
for name, loss in losses.items():
    for variable, formula in zip(zs, claimed[name], strict=True):
        assert sp.simplify(sp.diff(loss, variable) - formula) == 0, name
for a in range(size):
    for b in range(size):
        assert (
            sp.simplify(sp.diff(qs[a], zs[b]) - qs[a] * (int(a == b) - qs[b]) / T) == 0
        )

# %% [markdown]
# ## And by automatic differentiation
#
# Last, the closed forms of `kdlab.theory.reference` against PyTorch in float64, on a thousand random pairs of logits at
# random temperatures. The table has the largest absolute difference of any component, for the textbook
# expressions that the symbolic part differentiated and for `kdlab`'s own losses:

# %% tags=["hide-input"]
generator, size = torch.Generator().manual_seed(seed + 1), (1000, 50)
student = (
    4 * torch.randn(size, dtype=torch.float64, generator=generator)
).requires_grad_()
teacher = 4 * torch.randn(size, dtype=torch.float64, generator=generator)
temperature = 0.5 + 4 * torch.rand(size[0], 1, dtype=torch.float64, generator=generator)
target = torch.softmax(teacher, -1)
target_sum_not_one = target * torch.rand(
    size[0], 1, dtype=torch.float64, generator=generator
)


def textbook(name):
    log_q, log_p = (
        torch.log_softmax(logits / temperature, -1) for logits in (student, teacher)
    )
    if name == "cross-entropy":
        return -(target_sum_not_one * log_q).sum()
    if name == "forward KL":
        return (log_p.exp() * (log_p - log_q)).sum()
    if name == "reverse KL":
        return (log_q.exp() * (log_q - log_p)).sum()
    share = float(name.split("=")[1])
    log_m = torch.logaddexp(log_p + np.log(share), log_q + np.log1p(-share))
    return (
        share * log_p.exp() * (log_p - log_m)
        + (1 - share) * log_q.exp() * (log_q - log_m)
    ).sum()


pair = student.detach().numpy(), teacher.numpy(), temperature.numpy()
closed = {
    "cross-entropy": reference.cross_entropy_gradient(
        pair[0], target_sum_not_one.numpy(), pair[2]
    ),
    "forward KL": reference.forward_kl_gradient(*pair),
    "reverse KL": reference.reverse_kl_gradient(*pair),
} | {
    f"JSD, beta={share:g}": reference.jensen_shannon_gradient(*pair, share)
    for share in betas
}
ours = {"forward KL": forward_kl, "reverse KL": reverse_kl}
rows, worst = [], 0.0
for name, formula in closed.items():
    (by_torch,) = torch.autograd.grad(textbook(name), student)
    errors = [np.abs(by_torch.numpy() - formula).max()]
    if name in ours:
        value = ours[name](student, teacher, temperature=temperature, reduction="sum")
        (by_kdlab,) = torch.autograd.grad(value, student)
        errors.append(np.abs(by_kdlab.numpy() - formula).max())
    assert max(errors) < 1e-12, name
    worst = max(worst, *errors)
    rows.append(
        [name, f"{errors[0]:.1e}", f"{errors[1]:.1e}" if len(errors) > 1 else "–"]
    )
table(
    ["loss", "autograd, textbook form", "autograd, kdlab"],
    rows,
    caption="Largest difference from the closed form.",
)

# %% [markdown]
# ### What the temperature does to them
#
# Claim B6 says that temperature adds a factor $1/T$. For the cross-entropy and the forward KL that is the
# *explicit* factor derived above. The reverse KL and JSD have the same factor, in front of
# a different vector. In all of them $q$ (and $p$) depend on $T$ as well. That hidden dependence is the subject of
# {doc}`03_why_t_squared`.

# %% tags=["hide-input"]
grid = np.geomspace(min(temperatures), max(temperatures), 60)
jsd_name, one = f"JSD, beta={betas[0]:g}", (pair[0][0], pair[1][0])
gradients = {
    "forward KL": reference.forward_kl_gradient,
    "reverse KL": reference.reverse_kl_gradient,
    jsd_name: lambda *given: reference.jensen_shannon_gradient(*given, betas[0]),
}
norms = {
    name: [np.linalg.norm(of(*one, t_)) for t_ in grid]
    for name, of in gradients.items()
}
slope = {name: reference.effective_exponent(grid, v)[-1] for name, v in norms.items()}
hot_ratio = {name: v[-1] / norms["forward KL"][-1] for name, v in norms.items()}
figure, axis = plt.subplots(figsize=(6.4, 3.4))
for (name, values), colour in zip(norms.items(), (BLUE, ORANGE, GREEN), strict=True):
    axis.loglog(grid, values, color=colour, label=name)
for power, style in ((1, ":"), (2, "--")):
    line = norms["forward KL"][-1] * (grid[-1] / grid) ** power
    axis.loglog(grid, line, color="grey", linestyle=style, label=f"slope −{power}")
axis.set(xlabel="temperature $T$", ylabel="gradient norm")
axis.legend(fontsize="small")
show(
    figure,
    label="norms",
    caption="Gradient norms of three losses for one random pair of logits, with the slope −1 of the explicit factor alone (dotted) and −2 (dashed). "
    f"Slopes at $T={grid[-1]:g}$: "
    + ", ".join(f"{v:.2f} ({name})" for name, v in slope.items())
    + f". There the reverse KL's gradient is {hot_ratio['reverse KL']:.2f} times the forward KL's, and that of {jsd_name}, {hot_ratio[jsd_name]:.2f} times.",
    alt="Log-log plot of the gradients' norms against temperature, with straight lines of slope minus one, dotted, and minus two, dashed. Slopes of the curves at the hot end: "
    + ", ".join(f"{v:.2f} ({name})" for name, v in slope.items())
    + ".",
)

# %% tags=["hide-input"]
verdict(
    "B6", "proved",
    r"For every $N$: $\partial D_{\mathrm{KL}}(p\|q)/\partial z_i = (q_i-p_i)/T$, like the cross-entropy, since the teacher's "
    r"entropy is constant. Reverse KL and JSD carry the same $1/T$ before other vectors: $q_i(\log(q_i/p_i) - "
    r"D_{\mathrm{KL}}(q\|p))$ and the like. Closed forms and autograd agree to "
    rf"{worst:.0e} on {size[0]:,} random pairs.",
)  # fmt: skip

# %% [markdown]
# ## A name and a sum that disagree
#
# Article A: “The distillation loss, $L_{KD}$, is typically the Kullback-Leibler (KL) divergence between the student's softened predictions … and the
# teacher's”, written $T^2\cdot D_{KL}(p_S\|p_T)$ and then as a sum over $p_T(i)$. In the plain text that we have, the logarithm in the sum reads
# $p_S/p_T$; but that text puts every fraction's denominator first (see {ref}`chapter 1 <printed-softmax>`), so on the page it is
# $\sum p_T\log(p_T/p_S)$: the **forward** divergence, which is Hinton's loss up to a constant. The sum is right; its name has the arguments
# exchanged.
#
# Code written from the name computes another loss, and code written from the copied text has the wrong sign. One gradient step tells the three apart.

# %%
student_logits = torch.tensor([0.0, 0.0, 0.0], dtype=torch.float64, requires_grad=True)
teacher_logits = torch.tensor([2.0, 1.0, -1.0], dtype=torch.float64)


def copied(student_logits, teacher_logits):
    log_p, log_q = log_soften(teacher_logits), log_soften(student_logits)
    return (log_p.exp() * (log_q - log_p)).sum()


# %% tags=["hide-input"]
before = forward_kl(student_logits, teacher_logits).item()
rows = []
for name, loss in {
    "the copied text, upside down": copied,
    "the sum: forward KL": forward_kl,
    "the name: reverse KL": reverse_kl,
}.items():
    value = loss(student_logits, teacher_logits)
    (direction,) = torch.autograd.grad(value, student_logits)
    after = forward_kl(student_logits.detach() - 0.1 * direction, teacher_logits).item()
    rows.append((name, value.item(), after - before))
assert (
    np.isclose(rows[0][1], -rows[1][1])
    and rows[0][2] > 0 > rows[1][2]
    and rows[2][2] < 0
)
table(
    ["loss", "value", "change of the distance to the teacher"],
    [[name, f"{value:+.4f}", f"{change:+.4f}"] for name, value, change in rows],
    caption="One step of gradient descent from a uniform student; "
    "the distance is the forward KL.",
)

# %% tags=["hide-input"]
verdict(
    "A3", "corrected",
    r"The sum, $T^2\sum p_T\log(p_T/p_S)$, is right: $T^2$ times the forward divergence, $T^2 D_{\mathrm{KL}}(p_T\|p_S)$. Its name, "
    r"$D_{\mathrm{KL}}(p_S\|p_T)$, is that of the reverse one, which has another value and another gradient "
    rf"({rows[2][1]:.4f} against {rows[1][1]:.4f} in the chapter's example).",
)  # fmt: skip

# %% tags=["hide-input"]
findings.show(
    "The gradients of cross-entropy, both KL divergences and JSD, derived for every number of classes, "
    f"agree with automatic differentiation to {worst:.0e} on {size[0]:,} random pairs of logits.",
    r"“Prediction minus target” is right for a distribution. For a target of mass $\sum p$ the gradient is "
    rf"$q\sum p - p$: cut to {mass:.0%} of its mass, $q - p$ is off by {error_without:.0e}.",
    "At high temperature the reverse KL has the forward KL's gradient: for one pair of logits at "
    f"$T={grid[-1]:g}$, {hot_ratio['reverse KL']:.2f} times its norm.",
)

# %% [markdown]
# ## Limits
#
# - These are gradients with respect to the *logits*. What reaches the weights has passed through the network's own Jacobian, which is
#   not a multiple of the identity: two losses with equal logit gradients train alike, two with similar ones may not.
# - The symbolic rules assume $1\le i\le N$ and finite sums. Continuous outputs are not treated.
#
# ## To take away
#
# - **Formulae.** Cross-entropy and forward KL: $(q_i\sum_k p_k - p_i)/T$, for a distribution $(q_i-p_i)/T$. Reverse KL: $\frac{q_i}{T}\bigl(\log\frac{q_i}{p_i} - D_{\mathrm{KL}}(q\|p)\bigr)$.
#   JSD: $(1-\beta)$ times the same with $m = \beta p + (1-\beta)q$ in place of $p$.
# - **What to set.** `forward_kl(student_logits, teacher_logits, temperature=T)`: the student comes first, everywhere in `kdlab`.
# - **What to watch for.** A target must sum to one. Check gradients against a closed form, since a wrong sign or direction changes no shape.
#
# ## Exercises
#
# ```{exercise}
# :label: ex-null-space
#
# Show from the Jacobian that adding a constant to all logits changes no probability, and that every gradient of this
# chapter therefore sums to zero over the classes. For which targets does the cross-entropy's gradient *not* sum to zero?
# ```
#
# ```{solution} ex-null-space
# :class: dropdown
#
# $\sum_j \partial q_i/\partial z_j = q_i(1 - \sum_j q_j)/T = 0$. A loss that depends on $z$ only through $q$ inherits it.
# The cross-entropy's gradient sums to $\sum_k p_k\sum_i q_i - \sum_i p_i = 0$ for **every** target, distribution or not:
# the factor $\sum p$ is precisely what keeps it so. The formula $q-p$ breaks it.
# ```
#
# ```{exercise}
# :label: ex-second-derivative
#
# Find the Hessian of the forward KL with `partial`. Where is it positive definite?
# ```
#
# ````{solution} ex-second-derivative
# :class: dropdown
#
# Write the softmax back in place of `q`, and differentiate the gradient once more:
#
# ```python
# hessian = partial((softmax(z, i) - p[i]) / T, z[j])
# assert same(hessian, jacobian / T)
# equation(r"\frac{\partial^2}{\partial z_i\,\partial z_j} D_{\mathrm{KL}}(p\,\|\,q)", sp.factor(hessian))
# ```
#
# It is $q_i(\delta_{ij}-q_j)/T^2$, the covariance matrix of a
# one-hot draw from $q$, over $T^2$: positive semi-definite, and positive definite nowhere: the constant vector is its one zero direction.
# ````
#
# ```{exercise}
# :label: ex-lost-mass
#
# Descend the cross-entropy to the cut target `truncated`, once along its true gradient $q\sum p - p$ and once along $q - p$. At which distribution does each end?
# ```
#
# ````{solution} ex-lost-mass
# :class: dropdown
#
# The first at $p/\sum p$, if slowly where that is zero. The second cannot come to rest, since $q-p$ does not sum to zero, but a step that is the same for all logits changes no
# probability. So it ends where all entries of $q-p$ are equal, at $q = p + (1-\sum p)/N$: what was lost is dealt out evenly, to classes that were cut off and to those that were not.
#
# ```python
# def descend(gradient, steps=5000):
#     logits = torch.zeros_like(truncated)
#     for _ in range(steps):
#         logits -= gradient(torch.softmax(logits, -1))
#     return torch.softmax(logits, -1)
#
#
# ends = {"$q\\sum p-p$": descend(lambda q: q * mass - truncated), "$q-p$": descend(lambda q: q - truncated)}
# found = {"$p/\\sum p$": truncated / mass, "$p+(1-\\sum p)/N$": truncated + (1 - mass) / classes}
# table(
#     ["total variation between", *found],
#     [[name, *(f"{(end - where).abs().sum() / 2:.1e}" for where in found.values())] for name, end in ends.items()],
#     caption="Where descent along two vectors ends.",
# )
# ```
# ````
