# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Why the loss is multiplied by T²
#
# Implementations of distillation multiply the soft loss by $T^2$, or forget to. The usual reason is that the
# gradient "scales as $1/T^2$". That is a statement about a limit. This chapter derives the limit and the term after it,
# and then measures on real logits how far away the limit is.
#
# **At the end you will know** the high-temperature expansion of softmax, KL divergence and gradient;
# from which temperature on the exponent really is −2; and over which range $T^2$ keeps the soft
# loss's pull constant.
#
# *Needs: one CPU core and about a minute.*

# %% tags=["parameters"]
profile = "cpu"  # or "gpu"
temperatures: list[float] = [1.0, 2.0, 4.0, 10.0]  # in use; ratios to the middle one's
hot: list[float] = [10.0, 100.0, 1000.0]  # at which the limit's distance is taken
classes: int = 1000  # N of the Gaussian logits that are held against the expansion
train_images: int = 6400  # on which the young network is trained, for one epoch
seed: int = 0  # of the Gaussian logits and of the network

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import numpy as np
import sympy as sp
import torch
from IPython.display import Math

from kdlab.data import load_images
from kdlab.figures import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    VERMILION,
    show,
    t_squared_dial,
    table,
    use_style,
)
from kdlab.models import resnet8
from kdlab.objectives import CrossEntropy, forward_kl
from kdlab.study import book_teacher
from kdlab.study.display import Findings, data_note, device_for, verdict
from kdlab.study.evidence import Quantity
from kdlab.study.parameters import require
from kdlab.study.statements import only, power
from kdlab.theory import reference
from kdlab.theory.expansion import (
    N,
    bar,
    centred,
    gradient_series,
    kl_series,
    s,
    softmax_series,
    t,
    x,
)
from kdlab.training import Recipe, fast_precision, fit, predict

use_style()
device = device_for(profile)
temperatures, hot = sorted(set(temperatures)), sorted(set(hot))
require(
    len(temperatures) > 1 and 0.1 <= temperatures[0] and temperatures[-1] <= 1000,
    "temperatures must be two or more, from 0.1 to 1000.",
)
require(
    len(hot) > 1 and 1 <= hot[0] and hot[-1] <= 10_000,
    "hot must be two temperatures or more, from 1 to 10,000.",
)
require(
    classes > 2, "classes must be three or more: the second-order term of two is zero."
)
coolest, warmest, middle = (
    temperatures[0],
    temperatures[-1],
    temperatures[len(temperatures) // 2],
)

# %% tags=["hide-input"]
findings = Findings()

# %% [markdown]
# ## The softmax at high temperature
#
# Put $x = 1/T$ and expand around $x=0$. Every sum over classes becomes a mean, $\overline{s^a t^b} = \frac1N\sum_k s_k^a
# t_k^b$, so one calculation covers every $N$. For a class with logit $s$:

# %%
first_order = softmax_series(s, 1)
second_order = softmax_series(s, 2)
Math(
    r"q \;=\; \frac1N\Bigl("
    + sp.latex(sp.collect(sp.expand(N * second_order), x))
    + r"\Bigr) + O(x^3)"
)

# %% [markdown]
# The first-order term is not $s$ but $s - \bar s$: **the centred logit**. Article B writes $q_i \approx 1/N + z_i/(NT)$
# "for zero-mean logits", which is right. Without that condition the centred logit $\tilde z_i = z_i - \bar z$
# belongs there; nothing is lost, since a softmax does not see a constant. With centred logits the next order is

# %%
Math(
    r"q \;=\; \frac1N\Bigl(" + sp.latex(centred(N * second_order)) + r"\Bigr) + O(x^3)"
)

# %%
assert sp.expand(N * first_order - (1 + (s - bar(s)) * x)) == 0
assert (
    sp.expand(centred(N * second_order) - (1 + s * x + (s**2 - bar(s**2)) * x**2 / 2))
    == 0
)

# %% [markdown]
# How large is the remainder? We measure it in units of $1/N$, on Gaussian logits with a large mean. After
# the first order it must fall as $T^{-2}$, after the second as $T^{-3}$. The same formula *without* centring never recovers.

# %% tags=["hide-input"]
rng = np.random.default_rng(seed)
logits = 3 * rng.normal(size=classes) + 20
rising = np.geomspace(3, 3000, 40)


def left_out(formula):
    """The largest error of a formula for the softmax at each temperature, in units of 1/N."""
    return np.array(
        [
            classes * np.abs(reference.softmax(logits, T) - formula(T)).max()
            for T in rising
        ]
    )


remainder = {
    "first order, centred": left_out(
        lambda T: reference.softmax_high_temperature(logits, T, 1)
    ),
    "second order, centred": left_out(
        lambda T: reference.softmax_high_temperature(logits, T, 2)
    ),
    "first order, not centred": left_out(lambda T: (1 + logits / T) / classes),
    "$1/N$ alone": left_out(lambda T: 1 / classes),
}
slopes = {
    name: reference.effective_exponent(rising, errors)[-5:].mean()
    for name, errors in remainder.items()
}
assert np.allclose(list(slopes.values()), [-2, -3, -1, -1], atol=0.02)

# %% tags=["hide-input"]
figure, axis = plt.subplots(figsize=(6.4, 3.5))
for (name, errors), style in zip(
    remainder.items(),
    ((BLUE, "-"), (GREEN, "-"), (ORANGE, "-"), ("grey", ":")),
    strict=True,
):
    axis.loglog(rising, errors, color=style[0], linestyle=style[1], label=name)
axis.set(xlabel="temperature $T$", ylabel="largest error, in units of $1/N$")
axis.legend(fontsize="small")
forgotten = remainder["first order, not centred"][-1] / remainder["$1/N$ alone"][-1]
show(
    figure,
    label="remainder",
    caption=f"Remainder of the expansion for {classes:,} Gaussian logits of standard deviation 3 and mean 20. Measured slopes at the hot end: "
    + ", ".join(f"{slope:.2f} ({name})" for name, slope in slopes.items())
    + f". Where the mean is forgotten, the error there is {forgotten:.2g} times that of $1/N$ alone.",
    alt="Log-log plot of falling lines. The second-order remainder falls fastest, the first-order one less; the uncentred formula's error "
    "falls as slowly as that of a dotted line, for one over N alone.",
)

# %% tags=["hide-input"]
verdict(
    "B7", "proved",
    r"For every $N$, $q_i = \frac1N\bigl(1 + \tilde z_i/T + (\tilde z_i^2 - \overline{\tilde z^2})/2T^2\bigr) + O(T^{-3})$ with centred "
    rf"logits $\tilde z$. The article's first order is right for zero-mean logits; its remainder falls with exponent {slopes['first order, centred']:.2f}. "
    rf"Without zero mean the printed formula is off by $\bar z/NT$.",
    parameters=("classes", "seed"),
)  # fmt: skip

# %% [markdown]
# ## The loss and its gradient at high temperature
#
# The divergence, to second order, for student logits $s$ and teacher logits $t$:

# %%
Math(r"D_{\mathrm{KL}}(p\,\|\,q) \;=\; " + sp.latex(kl_series(2)) + r" + O(x^3)")

# %% [markdown]
# Rearranged, this is half the variance of $s-t$ over the classes. So
#
# $$T^2 D_{\mathrm{KL}}(p\,\|\,q) \;\longrightarrow\; \frac{1}{2N}\sum_i (\tilde z_i - \tilde t_i)^2 ,$$
#
# and matching soft targets at high temperature **is** matching logits, each centred. The gradient says the same:

# %%
variance = bar(s**2) - 2 * bar(s * t) + bar(t**2) - (bar(s) - bar(t)) ** 2
assert sp.expand(kl_series(2) - x**2 * variance / 2) == 0
third_order = sp.expand(centred(gradient_series(3)) * N)
assert (
    sp.expand(
        third_order
        - (x**2 * (s - t) + x**3 * (s**2 - t**2 - bar(s**2) + bar(t**2)) / 2)
    )
    == 0
)
Math(
    r"\frac{\partial D_{\mathrm{KL}}}{\partial s} \;=\; \frac1N\Bigl["
    + sp.latex(sp.collect(third_order, x))
    + r"\Bigr] + O(x^4)"
)

# %% [markdown]
# The leading term is $(\tilde z_i - \tilde t_i)/NT^2$. The next one, $x^3$, says when to trust it: relative to the first it is of the
# size **(logit)/T**. With logits of ten, the limit should be good for $T$ of several hundred and poor for $T$ of four. First
# the limit:

# %%
student, teacher = 3 * rng.normal(size=(2, classes))
limit = reference.logit_matching(student, teacher)
gradient_limit = (student - student.mean() - teacher + teacher.mean()) / classes
errors = {
    "loss": [
        abs(T**2 * reference.forward_kl(student, teacher, T) / limit - 1) for T in hot
    ],
    "gradient": [
        np.linalg.norm(
            T**2 * reference.forward_kl_gradient(student, teacher, T) - gradient_limit
        )
        / np.linalg.norm(gradient_limit)
        for T in hot
    ],
}

# %% tags=["hide-input"]
table(
    ["", *(f"$T={T:g}$" for T in hot)],
    [[name, *(f"{e:.1e}" for e in values)] for name, values in errors.items()],
    caption=f"Relative distance from the limit, for {classes:,} Gaussian logits of standard deviation 3.",
)

# %% tags=["hide-input"]
power(
    {"": (np.array(hot), np.array(errors["gradient"]))},
    Quantity("gradient's relative distance from its limit"),
    "$T$",
    -1,
    0.1,
)

# %% tags=["hide-input"]
verdict(
    "B8", "proved",
    r"For every $N$, $\partial D_{\mathrm{KL}}/\partial z_i = (\tilde z_i - \tilde t_i)/NT^2 + O(T^{-3})$ and "
    r"$T^2 D_{\mathrm{KL}} \to \|\tilde z - \tilde t\|^2/2N$: logits are matched, each up to its mean. The first correction is of relative "
    "size logit/$T$: for logits of standard deviation 3 the gradient is "
    + ", ".join(f"{error:.2%} from the limit at $T={T:g}$" for T, error in zip(hot, errors["gradient"], strict=True)) + ".",
    parameters=("hot", "classes", "seed"),
)  # fmt: skip

# %% [markdown]
# ## Four kinds of logits
#
# How far away is the limit in practice? We take two kinds of random logits, and two real pairs of student and teacher on validation images:
# an untrained ResNet-8, as at the first step of a distillation, and the same network after one epoch on the labels of a few thousand images. The teacher
# is the book's ResNet-20.

# %% tags=["hide-input"]
data = load_images()
data_note(data)

# %% tags=["hide-input"]
images = data.validation[: min(500, max(100, train_images // 8))]
torch.manual_seed(seed)
network = resnet8(data.num_classes)
untrained = predict(network, images, device=device)
one_epoch = Recipe(
    epochs=1,
    batch_size=64,
    schedule="cosine",
    precision=fast_precision(device),
    seed=seed,
)
fit(
    network,
    CrossEntropy(),
    train=data.train[:train_images],
    recipe=one_epoch,
    device=device,
)
young = predict(network, images, device=device)
trained = predict(book_teacher(data, device=device), images, device=device)

shape = (2, len(images), data.num_classes)
pairs = {
    "Gaussian": 3 * rng.normal(size=shape),
    "heavy-tailed": 2 * rng.standard_t(3, size=shape),
    "real (first step)": (untrained.double().numpy(), trained.double().numpy()),
    "real (after an epoch)": (young.double().numpy(), trained.double().numpy()),
}
colours = dict(zip(pairs, (BLUE, GREEN, PURPLE, VERMILION), strict=True))

# %% [markdown]
# For each we compute the gradient's norm and the loss at temperatures up to 10,000, median over the examples. The
# local slope of both curves in the log–log plane is the *effective exponent*: the power law that a measurement at
# temperature $T$ would find.

# %% tags=["hide-input"]
grid = np.geomspace(min(0.5, coolest), 1e4, 91)
for end in (coolest, warmest):  # of the range that is told: on the grid
    grid[np.abs(np.log(grid / end)).argmin()] = end


def medians(of, kinds=pairs):
    """The median over examples of what ``of`` makes of student, teacher and temperature, along the grid, by kind of logits."""
    return {
        name: np.array([np.median(of(*pairs[name], T)) for T in grid]) for name in kinds
    }


def exponents(curves):
    return {
        name: reference.effective_exponent(grid, values)
        for name, values in curves.items()
    }


# %%
norm = medians(
    lambda *pair: np.linalg.norm(reference.forward_kl_gradient(*pair), axis=-1)
)
loss = medians(reference.forward_kl)
exponent, loss_exponent = exponents(norm), exponents(loss)

# %% tags=["hide-input"]
common = (grid >= coolest) & (grid <= warmest)
furthest = max(abs(v[-1] + 2) for v in (*exponent.values(), *loss_exponent.values()))
figure, (left, right) = plt.subplots(1, 2, figsize=(7.8, 3.6))
for name, colour in colours.items():
    left.loglog(grid, norm[name], color=colour, label=name)
    right.plot(grid, exponent[name], color=colour)
    right.plot(grid, loss_exponent[name], color=colour, linestyle=":")
right.axhline(-2, color="grey", linewidth=1)
right.axvspan(coolest, warmest, color="grey", alpha=0.15, linewidth=0)
right.set(
    xscale="log",
    xlim=(grid[0], 1e3),
    xlabel="temperature $T$",
    ylabel="effective exponent",
)
left.set(xlabel="temperature $T$", ylabel=r"gradient norm, unscaled")
left.legend(fontsize="small")
show(
    figure,
    label="exponents",
    caption="Left: the unscaled gradient. Right: its local exponent at each temperature (solid: "
    f"gradient, dotted: loss); the line is at −2. In the shaded range from {coolest:g} to {warmest:g} it lies between "
    + " and between ".join(
        f"{min(v[common].min() for v in curves_of.values()):.2f} and {max(v[common].max() for v in curves_of.values()):.2f} ({what})"
        for what, curves_of in (("gradient", exponent), ("loss", loss_exponent))
    )
    + f"; at $T={grid[-1]:,.0f}$ the furthest of the eight is {furthest:.4f} from −2.",
    alt="Left: four falling curves in a log-log plot, parallel at high temperature. Right: their slopes against "
    "temperature, which differ in the shaded range and meet at minus two.",
)


# %%
def settles(off, tolerance):
    """The first temperature from which on values stay within the tolerance, or inf."""
    outside = np.flatnonzero(off > tolerance)
    return np.append(grid, np.inf)[outside[-1] + 1 if len(outside) else 0]


def at(values, T):
    return np.interp(np.log(T), np.log(grid), values)


settled, settled_loss = (
    {name: settles(np.abs(values + 2), 0.01) for name, values in curves.items()}
    for curves in (exponent, loss_exponent)
)
table(
    [
        "logits",
        *(f"$T={T:g}$" for T in temperatures),
        "gradient settles at",
        "loss settles at",
    ],
    [
        [
            name,
            *(f"{at(exponent[name], T):.2f}" for T in temperatures),
            *(f"$T={v[name]:.1f}$" for v in (settled, settled_loss)),
        ]
        for name in pairs
    ],
    caption="Effective exponent of the gradient norm, and where gradient and loss "
    "have settled at −2 ± 0.01.",
)

# %% tags=["hide-input"]
off = {name: abs(values[-1] + 2) for name, values in exponent.items()}
only(
    pairs,
    off,
    Quantity(
        f"distance of the gradient's exponent from −2 at $T={grid[-1]:.0f}$", digits=4
    ),
    below=0.01,
)

# %% [markdown]
# (scaled-gradient)=
# ## What T² restores
#
# Now multiply by $T^2$. If the exponent were −2 everywhere, the scaled gradient would be flat. It is flat at the hot
# end; but from which temperature on? We mark the range within ±20 % of the limit.

# %%
scaled = {name: grid**2 * values for name, values in norm.items()}
scaled = {name: values / values[-1] for name, values in scaled.items()}
flat = {name: settles(np.abs(values - 1), 0.2) for name, values in scaled.items()}

# %% tags=["hide-input"]
figure, axis = plt.subplots(figsize=(6.6, 3.6))
axis.axhspan(0.8, 1.2, color="grey", alpha=0.18, linewidth=0)
drawn = grid <= 1000
for name, colour in colours.items():
    axis.plot(
        grid[drawn],
        scaled[name][drawn],
        color=colour,
        label=f"{name}: flat from $T={flat[name]:.1f}$",
    )
axis.set(
    xscale="log",
    ylim=(0, None),
    xlabel="temperature $T$",
    ylabel="$T^2$-scaled gradient, limit = 1",
)
axis.legend(fontsize="small")
show(
    figure,
    label="scaled",
    caption="The scaled gradient norm over its limit. In the grey band it is within 20 % of it. "
    f"At $T={coolest:g}$ it is "
    + ", ".join(f"{at(scaled[name], coolest):.2f} ({name})" for name in pairs)
    + " of the limit.",
    alt="Four curves against temperature that end at one, in a grey band from 0.8 to 1.2.",
)

# %% [markdown]
# How high that temperature is depends on how widely the logits are spread. Try it:

# %% tags=["hide-input"]
t_squared_dial(
    label="touch",
    caption="The length of $T^2$ times the soft gradient, over its limit, for Gaussian logits. "
    "The more widely the logits are spread, the higher the temperature at which the curve reaches one.",
    temperature=middle,
)


# %% tags=["hide-input"]
def about(temperature):
    """To two figures: the grid of temperatures is no finer."""
    return f"{float(f'{temperature:.2g}'):g}"


spread = {
    name: scaled[name][common].max() / scaled[name][common].min() for name in pairs
}
real = [name for name in pairs if name.startswith("real")]
low, high = (f(f(exponent[name][common]) for name in real) for f in (min, max))
verdict(
    "B9", "depends",
    rf"Exact in the limit only. On the real logits the gradient's effective exponent between $T={coolest:g}$ and ${warmest:g}$ runs from {low:.2f} to "
    rf"{high:.2f}; it stays within 0.01 of −2 only from about $T={about(max(settled[n] for n in real))}$ on. The scaled gradient is within 20 % of its "
    rf"limit from about $T={about(max(flat[n] for n in real))}$ on, and varies by a factor of up to {max(spread[n] for n in real):.1f} between $T={coolest:g}$ "
    rf"and ${warmest:g}$.",
    data=data,
    condition="true in a limit",
)  # fmt: skip

# %% [markdown]
# ### Against the hard labels
#
# Article A's claim is about a *ratio*: the soft term's pull compared with that of the hard labels. The hard term is taken
# at $T=1$ and does not change with $T$. Here is the ratio of gradient norms, relative to its value at the middle of the temperatures in use:

# %%
one_hot = np.eye(data.num_classes)[images.labels.numpy()]


def ratio(student, teacher, T):
    """Length of the soft term's gradient over that of the hard term, by example."""
    soft, hard = (
        T**2 * reference.forward_kl_gradient(student, teacher, T),
        reference.cross_entropy_gradient(student, one_hot),
    )
    return np.linalg.norm(soft, axis=-1) / np.linalg.norm(hard, axis=-1)


ratios = medians(ratio, real)
unscaled = {name: values / grid**2 for name, values in ratios.items()}


# %% tags=["hide-input"]
def near(values):
    """The first and the last temperature around the middle one between which values stay within 20 % of theirs there."""
    outside = np.flatnonzero(np.abs(values / at(values, middle) - 1) > 0.2)
    below, above = outside[grid[outside] < middle], outside[grid[outside] > middle]
    return grid[below[-1] + 1 if len(below) else 0], grid[
        above[0] - 1 if len(above) else -1
    ]


ranges = {name: near(values) for name, values in ratios.items()}

# %% tags=["hide-input"]
figure, axis = plt.subplots(figsize=(6.6, 3.6))
axis.axhspan(0.8, 1.2, color="grey", alpha=0.18, linewidth=0)
drawn = grid <= max(100, warmest)
for name in real:
    for curves, style, words in (
        (ratios, "-", "with $T^2$"),
        (unscaled, ":", "without"),
    ):
        relative = curves[name] / at(curves[name], middle)
        axis.loglog(
            grid[drawn],
            relative[drawn],
            color=colours[name],
            linestyle=style,
            label=f"{name}, {words}",
        )
axis.set(xlabel="temperature $T$", ylabel=f"soft : hard gradient, $T={middle:g}$ is 1")
axis.legend(fontsize="small")


def changes(curves, name):
    """By what factor a curve changes when the middle temperature is doubled."""
    return at(curves[name], 2 * middle) / at(curves[name], middle)


show(
    figure,
    label="ratio",
    caption=f"Gradient of the soft term over that of the hard term, relative to $T={middle:g}$, with $T^2$ (solid) and without (dotted); grey: within 20 %. From "
    f"$T={middle:g}$ to $T={2 * middle:g}$ the ratio changes by a factor of "
    + " and ".join(
        f"{changes(ratios, name):.2f} with and {changes(unscaled, name):.2f} without ({name})"
        for name in real
    )
    + f". At $T={middle:g}$ the soft term's gradient is "
    + " and ".join(f"{at(ratios[name], middle):.2f} ({name})" for name in real)
    + f" of the hard term's; how it depends on the number of classes, here {data.num_classes}, is the next chapter's subject.",
    alt=f"Log-log plot of two solid and two dotted curves that meet at one at temperature {middle:g}; the dotted ones fall faster.",
)


# %% tags=["hide-input"]
def as_range(low, high):
    low_end, high_end = low == grid[0], high == grid[-1]
    return (
        rf"$T={low:.1f}$ "
        + ("and below " if low_end else "")
        + ("upwards" if high_end else rf"to ${high:.1f}$")
    )


def over_range(curves, name):
    """The largest value over the smallest, at the temperatures in use."""
    return curves[name][common].max() / curves[name][common].min()


verdict(
    "A5", "depends",
    f"“Roughly constant”, says the article; exact only as $T\\to\\infty$. Between $T={coolest:g}$ and ${warmest:g}$ the ratio of soft to hard gradient changes by a factor of "
    + " and ".join(f"{over_range(ratios, name):.1f} with $T^2$ and {over_range(unscaled, name):.0f} without ({name})" for name in real)
    + f". With $T^2$ it stays within 20 % of its value at $T={middle:g}$ for "
    + " and for ".join(f"{as_range(*ranges[name])} ({name})" for name in real)
    + f". Without $T^2$, going from $T={middle:g}$ to $T={2 * middle:g}$ alone divides it by "
    + " and ".join(f"{1 / changes(unscaled, name):.1f}" for name in real) + ".",
    data=data,
    condition="true in a limit",
)  # fmt: skip

# %% [markdown]
# ## The digits that T² multiplies
#
# $T^2$ also has a numerical side. At $T=10^4$ the divergence is of the order of $10^{-8}$, a difference of
# logarithms that float32 cannot resolve; $T^2$ then multiplies what is left by $10^8$. The textbook sum
# $\sum p(\log p-\log q)$ returns noise, which may even be negative. `kdlab` sums $p\,\varphi(r)$ with
# $r=\log p-\log q$ and $\varphi(r) = e^{-r}-1+r \ge 0$. This is the same sum, since $p$ and $q$ both sum to one, with far less
# cancellation.

# %% tags=["hide-input"]
student32, teacher32 = torch.randn(
    2, 64, 100, generator=torch.Generator().manual_seed(seed)
)
digits = np.geomspace(1, 1e4, 25)
naive_error, our_error = [], []
for T in digits:
    exact = reference.forward_kl(
        student32.double().numpy(), teacher32.double().numpy(), T
    ).mean()
    log_p, log_q = (torch.log_softmax(v / T, -1) for v in (teacher32, student32))
    naive = (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()
    naive_error.append(abs(naive / exact - 1))
    our_error.append(
        abs(forward_kl(student32, teacher32, temperature=T).item() / exact - 1)
    )
assert max(our_error) < 1e-3 < max(naive_error)

# %% tags=["hide-input"]
figure, axis = plt.subplots(figsize=(6.4, 3.2))
axis.loglog(digits, naive_error, color=ORANGE, label="textbook sum")
axis.loglog(digits, np.maximum(our_error, 1e-9), color=BLUE, label="kdlab")
axis.axhline(1, color="grey", linestyle=":", linewidth=1)
axis.set(xlabel="temperature $T$", ylabel="relative error in float32")
axis.legend()
show(
    figure,
    label="digits",
    caption="Error of the KL divergence in float32, against float64. At the dotted line no digit is right.",
    alt=f"Log-log plot: the textbook sum's error grows with the temperature and comes to {max(naive_error):.1g}; kdlab's stays "
    "below one in a thousand.",
)

# %% tags=["hide-input"]
findings.show(
    f"On real logits the gradient's exponent between $T={coolest:g}$ and ${warmest:g}$ runs from {low:.2f} to {high:.2f}, "
    f"and is within 0.01 of −2 from about $T={about(max(settled[n] for n in real))}$ on "
    f"(medians of {len(images)} images; ResNet-8, untrained and after an epoch).",
    f"With $T^2$, the ratio of soft to hard gradient still changes there by a factor of up to "
    f"{max(over_range(ratios, n) for n in real):.1f}; without, of up to {max(over_range(unscaled, n) for n in real):.0f}.",
    f"In float32 the textbook sum of the divergence is off by up to {max(naive_error):.1g} times its value "
    f"at temperatures up to {digits[-1]:,.0f}, kdlab's by {max(our_error):.0e}.",
)

# %% [markdown]
# ## Limits
#
# - The curves are medians over examples; single examples differ.
# - A gradient's *norm* is not its direction. With rising $T$ the direction changes too, from correcting the top classes to
#   matching all logits; $T^2$ does nothing about that.
# - Two stages of one student were measured, both early, the second after labels and not after distillation. For language models, with their thousands of classes, see {doc}`16_a_large_n`.
#
# ## To take away
#
# - **Formulae.** $q_i = \frac1N\bigl(1 + \tilde z_i/T\bigr) + O(T^{-2})$ with centred logits $\tilde z$; $T^2 D_{\mathrm{KL}} \to \frac{1}{2N}\sum_i(\tilde z_i-\tilde t_i)^2$;
#   $\partial D_{\mathrm{KL}}/\partial z_i \to (\tilde z_i-\tilde t_i)/NT^2$. The correction is of relative size (logit)/$T$.
# - **What to set.** `SoftTargets(temperature=T)` has its $T^2$; `ForwardKL(temperature=T)` has none.
# - **What to watch for.** $T^2$ is exact in the limit only: tune the weight again when you change $T$. And compute the loss without cancellation when $T$ is large.
#
# ## Exercises
#
# ```{exercise}
# :label: ex-third-order
#
# `kl_series(3)` has a term in $x^3$. Show that it vanishes if the centred logits are *jointly* symmetric: to every class with
# $(s,t)$ there is one with $(-s,-t)$. What does this mean for Gaussian logits?
# ```
#
# ```{solution} ex-third-order
# :class: dropdown
#
# Centred, the term is $\frac{x^3}{6}\bigl(\overline{s^3} - 3\,\overline{s t^2} + 2\,\overline{t^3}\bigr)$: third moments only, odd in
# $(s,t)$: each class cancels its mirror image. Gaussian logits are jointly symmetric in expectation; a draw of $N$ keeps a term of
# relative size $1/(T\sqrt N)$. In the table of exponents, compare the temperatures at which the four kinds of logits settle.
# ```
#
# ```{exercise}
# :label: ex-forgetting
#
# Someone sets $T=4$ and forgets $T^2$, with weight 0.9 on the soft loss. Which weight on the soft loss, in an
# implementation *with* $T^2$, trains the same way up to the learning rate?
# ```
#
# ```{solution} ex-forgetting
# :class: dropdown
#
# The ratio of soft to hard is $0.9/0.1 = 9$ without $T^2$. With it, weights $w$ and $1-w$ give $16\,w/(1-w)$. Equal at
# $w = 9/25 = 0.36$. Forgetting the factor is a different experiment, not a change of units.
# ```
#
# ````{exercise}
# :label: ex-forgetting-trained
#
# *An experiment, of ten seconds.* Train the untrained network both ways on a few hundred images, by gradient descent with momentum and
# weight decay. Find the learning rate with which the implementation with $T^2$, at the weight of the exercise above, ends at the *same*
# network. What else do you have to change?
# ````
#
# ````{solution} ex-forgetting-trained
# :class: dropdown
#
# With $T^2$ the whole gradient is longer by the factor $(1-w)/(1-0.9) = 6.4$, so the learning rate is to be divided by it. That alone
# leaves a difference: weight decay is added to the gradient, and is now 6.4 times as weak against it. <!-- by definition --> With the decay multiplied by 6.4
# what is left is rounding. <!-- by definition -->
#
# ```python
# from kdlab.objectives import SoftTargets
#
# T, forgotten = 4, 0.9  # the weight of someone who forgets T²
# weight = forgotten / (forgotten + (1 - forgotten) * T**2)
# longer = (1 - weight) / (1 - forgotten)
# book = book_teacher(data, device=device)
#
#
# def distilled(soft, hard, learning_rate=0.01, weight_decay=0.02):
#     torch.manual_seed(seed)
#     student = resnet8(data.num_classes)
#     recipe = Recipe(
#         epochs=1, batch_size=32, schedule="constant", learning_rate=learning_rate, weight_decay=weight_decay, seed=seed
#     )
#     objective = soft * SoftTargets(T) + hard * CrossEntropy()
#     fit(student, objective, train=data.train[:256], teacher=book, recipe=recipe, device=device)
#     return predict(student, images[:100], device=device)
#
#
# without = distilled(forgotten / T**2, 1 - forgotten)
# slower = distilled(weight, 1 - weight, 0.01 / longer)
# both = distilled(weight, 1 - weight, 0.01 / longer, 0.02 * longer)
# table(
#     ["with $T^2$", "distance of the logits, relative"],
#     [
#         [f"learning rate divided by {longer:.1f}", f"{(slower - without).norm() / without.norm():.1e}"],
#         ["and weight decay multiplied by it", f"{(both - without).norm() / without.norm():.1e}"],
#     ],
#     caption=f"Forgotten $T^2$ at weight {forgotten}, and $T^2$ at weight {weight:.2f}: two trainings that end at one network.",
# )
# ```
# ````
