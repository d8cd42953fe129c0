# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Temperature and weight
#
# Two numbers stand in every distillation loss: the temperature $T$ and the weight of the soft targets. Article A says that choosing them
# “often requires empirical tuning”, and names no values; article B names values for both. How much is there to gain? Does a small student
# need other values? And does it help to change them *during* training?
#
# **At the end you will know** how much two temperatures differ in what they ask of a student; whether the best weight depends on
# the temperature; what choosing on a validation split gains
# over a default; which of article B's four statements about temperature its sources make; and what to do with a budget of three runs.
#
# *Needs: one CPU core and about a minute. The recorded runs took longer; each section says where.*

# %% tags=["parameters"]
profile: str = "cpu"  # "cpu" or "gpu"
live_temperatures: list[float] = [1.0, 2.0, 4.0, 8.0, 16.0]  # rising, three or more
images: int = 640  # that this student is trained on
epochs: int = 3  # for which it is trained, two or more
seed: int = 0  # of its weights and batches
margin: float = 1.0  # points of accuracy between recorded students that matter

# %% tags=["hide-input"]
import copy
import re
from dataclasses import replace
from itertools import product
from math import comb

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown, display
from scipy.stats import f as f_distribution

from kdlab.data import load_images
from kdlab.figures import (
    BLUE,
    GREEN,
    ORANGE,
    PALETTE,
    PURPLE,
    VERMILION,
    dots,
    heatmap,
    show,
    table,
    use_style,
)
from kdlab.models import resnet8
from kdlab.objectives import CrossEntropy, SoftTargets, soft_targets
from kdlab.study import book_teacher, mean_interval, results
from kdlab.study.display import (
    Findings,
    called,
    conditions,
    data_note,
    device_for,
    not_yet_run,
    slots,
    source_note,
    verdict,
)
from kdlab.study.evidence import QUANTITIES, Curves, Quantity, evidence
from kdlab.study.findings import moves
from kdlab.study.parameters import require
from kdlab.study.published import published_results
from kdlab.study.statements import above, below, crosses, undecided
from kdlab.study.statistics import against
from kdlab.training import Recipe, accuracy, fast_precision, fit, predict

use_style()
device = device_for(profile)
rising = len(live_temperatures) > 2 and live_temperatures == sorted(
    set(live_temperatures)
)
require(
    rising,
    f"live_temperatures must be three or more, each above the one before, and not {live_temperatures}.",
)
require(
    epochs > 1,
    f"epochs must be two or more, so that there is a student on the way, and not {epochs}.",
)
data = load_images()
data_note(data)

# %% tags=["hide-input"]
findings = Findings()

# %% [markdown]
# ## What a temperature asks for
#
# Before any comparison of trained students, consider one step. A student of the book, a ResNet-8, is trained for a few
# epochs on a slice of the data with the book's default, and stopped three times on the way: untrained, after the first
# epoch, after the last. <!-- by definition --> (It is one student, of one seed: gradients are compared here, not trainings.) At each stop
# we ask the same question of several temperatures: *which way would you move the weights, and how far?*

# %%
teacher = book_teacher(data, device=device)
FRESH = 64 * max(3, min(6, images // 64))  # batches that the student does not see
slice_of_training = data.train[torch.arange(min(images, len(data.train) - FRESH))]
recipe = Recipe(
    epochs=epochs, batch_size=64, learning_rate=0.1, schedule="cosine",
    warmup_epochs=0.5, augment=not data.fallback,
    precision=fast_precision(device), seed=seed,
)  # fmt: skip
torch.manual_seed(seed)
student = resnet8(data.num_classes).to(device)
stages = {"untrained": copy.deepcopy(student)}


def keep(entry):
    if entry["epoch"] == 1:
        stages["after one epoch"] = copy.deepcopy(student)


history = fit(
    student,
    0.1 * CrossEntropy() + 0.9 * SoftTargets(temperature=4),
    train=slice_of_training,
    teacher=teacher,
    recipe=recipe,
    device=device,
    report=keep,
)

# %% tags=["hide-input"]
trained = f"after {epochs} epochs"
stages[trained] = student
some = data.validation[torch.arange(min(images, len(data.validation)))]
reached = accuracy(predict(student, some, device=device), some.labels)
Markdown(
    f"After {epochs} epochs of {len(slice_of_training):,} images the student has {reached:.1%} of {len(some):,} validation images right."
)

# %% [markdown]
# One objective holds the hard term and the soft term at every temperature. Each term's gradient by all the student's weights,
# flattened, is one row of a matrix; there is one such matrix for each of several batches that the student has not been trained on, of which the two
# younger students see the first two. (They are fresh to the student only. The teacher was trained on them, and may be surer of them than of new images.)

# %%
looks = CrossEntropy() + sum(SoftTargets(temperature=T) for T in live_temperatures)
fresh = data.train[torch.arange(len(data.train) - FRESH, len(data.train))]
batches = [
    (inputs.to(device), labels.to(device)) for inputs, labels, _ in fresh.batches(64)
]
teacher.eval()


def gradients(model, inputs, labels):
    """The gradient with respect to the weights, one row per term: the labels, then T²KL at each
    temperature. And the student's logits.
    """
    model.train()
    parameters = list(model.parameters())
    with torch.no_grad():
        teacher_logits = teacher(inputs)
    logits = model(inputs)
    _, values = looks(
        student_logits=logits, teacher_logits=teacher_logits, labels=labels
    )
    rows = [
        torch.autograd.grad(v, parameters, retain_graph=True) for v in values.values()
    ]
    flat = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    return flat.cpu(), logits.detach().cpu()


# %% tags=["hide-input"]
rows_of, logits_of = {}, {}
for name, model in stages.items():
    few = batches if model is student else batches[:2]
    found = [gradients(model, *batch) for batch in few]
    rows_of[name] = torch.stack([rows for rows, _ in found])  # batches, terms, weights
    logits_of[name] = torch.cat([logits for _, logits in found[:2]])
teacher_logits = predict(teacher, fresh, device=device)

fine = np.geomspace(1, 21, 61)
share, height = {}, {}
for name, rows in rows_of.items():
    norms = rows[:2].norm(dim=2).mean(0)
    share[name], logits = (norms[1:] / norms[0]).numpy(), logits_of[name]
    height[name] = np.array(
        [
            soft_targets(logits, teacher_logits[: len(logits)], temperature=T).item()
            for T in fine.tolist()
        ]
    )
squared = np.square(live_temperatures)
figure, (left, right) = plt.subplots(1, 2, figsize=(7.8, 3.5))
for (name, values), colour in zip(share.items(), (PURPLE, GREEN, BLUE), strict=True):
    left.loglog(live_temperatures, values, "o-", color=colour, label=name)
    left.loglog(live_temperatures, values / squared, ":", color=colour)
    right.semilogx(fine, height[name], color=colour)
    summit = height[name].argmax()
    right.plot(fine[summit], height[name][summit], "v", color=colour, markersize=8)
for panel in (left, right):
    panel.set_xticks(live_temperatures, [f"{T:g}" for T in live_temperatures])
    panel.minorticks_off()
    panel.set_xlabel("temperature $T$")
left.set_ylabel("soft gradient : hard gradient")
right.set_ylabel("$T^2$KL (nats)")
right.set_ylim(0, None)
left.legend(fontsize="small")
show(
    figure,
    label="pull",
    caption="One student at three ages, mean over two batches that the student was not trained on. Left: how hard the soft term pulls on the weights, compared with the "
    "labels; with $T^2$ (solid) and without (dotted). Right: the soft term itself, its summit marked. A temperature that ascends on the loss, as in "
    "curriculum temperature, moves up this curve: to the right where it rises, to the left where it falls.",
    alt="Left: the ratio of gradient norms against temperature for three ages of the student, solid with T squared and dotted without. "
    "Right: the value of T squared times KL against temperature for the three ages, the largest value of each marked.",
)


# %% tags=["hide-input"]
def swing(values):
    """The largest over the smallest."""
    return values.max() / values.min()


coolest, hottest = live_temperatures[0], live_temperatures[-1]
SWING = Quantity(
    f"swing of the soft term's pull over temperatures from {coolest:g} to {hottest:g}",
    "",
    1,
    1,
)
kept = {name: swing(v) for name, v in share.items()}
lost = {name: swing(v / squared) for name, v in share.items()}
display(
    below(
        "the largest with $T^2$",
        "the smallest without it",
        {
            "the largest with $T^2$": max(kept.values()),
            "the smallest without it": min(lost.values()),
        },
        SWING,
    )
)
display(
    Markdown(
        "Largest over smallest, with $T^2$: "
        + ", ".join(f"{v:.1f} ({n})" for n, v in kept.items())
    )
)

# %% [markdown]
# This is claim A5 once more, now with a network between logits and weights; its verdict is in {doc}`03_why_t_squared`. A factor that $T^2$ does not remove is a change of *weight*: if you compare temperatures at a fixed weight,
# you compare a little of the weight as well.
#
# The direction of the pull matters as well as its length. If two temperatures pull the same way they are one objective, whatever the
# curve of accuracy looks like. There are two ways to ask. *In one step*: the cosine of two objectives' gradients on
# the same batch, and as a yardstick that of the same objective on two different batches, a disagreement that SGD lives
# with at every step. *In the long run*: the cosine of
# the two *mean* gradients, in which the noise of batches has averaged out. A batch multiplied with itself would add its own noise to the products. Pairs of different batches do not:
# $\mathbb E\,\langle g_a, h_b\rangle = \langle \mathbb E g, \mathbb E h\rangle$ for batches $a\neq b$. That makes each
# inner product unbiased, not exact, and a cosine of a few of them is neither. The jackknife says how uncertain it is:
# leave out each batch in turn and see how much the answer moves. With $m$ batches the squared standard error is
# $\frac{m-1}{m}$ times the sum of squared deviations.

# %%
rows = rows_of[trained]
inner = torch.einsum("aip,bjp->abij", rows, rows)
same = torch.eye(len(rows), dtype=torch.bool)


def cosine(products):
    """Inner products of each objective with each, divided by the lengths."""
    lengths = products.diagonal().sqrt()
    return (products / lengths[:, None] / lengths).numpy()


in_one_step = np.mean([cosine(one) for one in inner[same]], 0)
in_the_long_run = cosine(inner[~same].mean(0))
without_one = []  # the same with each batch left out in turn
for left_out in range(len(rows)):
    rest = torch.arange(len(rows)) != left_out
    without_one.append(cosine(inner[(~same) & rest[:, None] & rest].mean(0)))


def jackknife(values):
    """The standard error of an estimate, from its values with each batch left out."""
    return np.sqrt((len(values) - 1) * np.var(values, axis=0))


def between_batches(rows):
    """The cosine of each objective with itself on another batch."""
    unit = rows / rows.norm(dim=2, keepdim=True)
    products = torch.einsum("aip,bip->abi", unit, unit)
    return products[~torch.eye(len(rows), dtype=torch.bool)].mean(0).numpy()


yardstick = between_batches(rows)
at_first = between_batches(rows_of["untrained"])

# %% tags=["hide-input"]
figure, panels = plt.subplots(1, 2, figsize=(8.0, 3.9), sharey=True)
ticks = ["labels", *(f"{T:g}" for T in live_temperatures)]
for panel, values, title in zip(
    panels,
    (in_one_step, in_the_long_run),
    ("in one step", "in the long run"),
    strict=True,
):
    heatmap(panel, values, ticks, ticks, text="{:.2f}", largest=1, rotation=0)
    panel.set(title=title, xlabel="labels, or soft targets at $T$")
panels[0].set_ylabel("labels, or soft targets at $T$")
show(
    figure,
    label="directions",
    caption=f"Cosines between gradients with respect to the weights, student {trained}. Left: on the same batch of 64, mean over {len(rows)} batches. Right: "
    f"between mean gradients, estimated from the {len(rows) * (len(rows) - 1) // 2} pairs of different batches (an estimate, which may pass one). For comparison: the same objective on two batches has a cosine of "
    f"{yardstick.min():.2f} to {yardstick.max():.2f} ({at_first.min():.2f} to {at_first.max():.2f} for the untrained student).",
    alt=f"Two heat maps of cosines between the gradients of labels and of soft targets at {len(live_temperatures)} temperatures.",
)

# %% tags=["hide-input"]
middle = len(live_temperatures) // 2
# rows of the coolest and of the one in the middle; row 0 is the labels
ends = [1, middle + 1]
corner, hot_pair = in_the_long_run[ends, -1]
corner_error, hot_error = jackknife([values[ends, -1] for values in without_one])
gap_error = jackknife(
    [values[ends[1], -1] - values[ends[0], -1] for values in without_one]
)
COSINE = Quantity("cosine between mean gradients", "", 1, 2)
far, near = (
    f"$T={T:g}$ and $T={hottest:g}$" for T in (coolest, live_temperatures[middle])
)
display(above(near, far, {near: hot_pair, far: corner}, COSINE))
display(
    Markdown(
        f"In the long run, T = {coolest:g} and T = {hottest:g} have a cosine of {corner:.2f} (jackknife standard error {corner_error:.2f}), T = {live_temperatures[middle]:g} and T = {hottest:g} of {hot_pair:.2f} ({hot_error:.2f}); "
        f"the difference is {hot_pair - corner:.2f} ({gap_error:.2f}), {abs(hot_pair - corner) / gap_error:.1f} standard errors."
    )
)

# %% [markdown]
# The noise of batches averages out in a long training; a difference between two temperatures does not, and the right panel is the one to judge by: compare the neighbours of the diagonal with the far corners. (It is one student after a short training; one that has learned for long may answer otherwise.) In the limit of a large $T$,
# $T^2$KL is logit matching ({doc}`03_why_t_squared`), whose gradient has no temperature in it. If the temperatures of
# the map below were near that limit, it would be flat at the hot end and sloped at the cool end. The records are asked
# whether that is so.
#
# ## The records
#
# The plan `small` asks the questions of this part of the book at a CPU's scale. The plan `grown` asks some of them of the same pair after 60 epochs, all at one rate, that which was chosen for distillation together with a weight of its own. <!-- by definition --> The plan `questions` asks the same ones by the published
# recipe, on a GPU. Verdicts rest on the longest training that has been recorded. <!-- by definition --> Three rules hold throughout.
#
# - **One learning rate.** Except for some arms on the factor $N$, which only {doc}`04_the_one_over_n_question` shows, all arms of `small` (an *arm* is one way to teach) have the rate that the captions below give, which was tuned for none of them, and were trained briefly. What another rate is worth beside temperature and weight is not in these records.
# - **One deviation.** Runs of one seed share their initial weights (at one width) and their batches. Three seeds leave a difference two degrees of freedom, so one deviation is pooled over the arms that are compared, and
#   differences to one control have intervals that hold together (Dunnett's). The table under the map says how much the seeds share.
# - **The validation split chooses, the test split reports.** Both are measured on the last epoch.

# %% tags=["hide-input"]
small, large = results("small"), results("questions")
SCHEDULES = ("T-falling", "T-rising", "T-learned", "soft-falling")
asked = {
    f"kd-{name}": name
    for name in (
        *(f"T{t}-soft{w}" for t, w in product((1, 2, 4, 8), (0.5, 0.9, 1))),
        *SCHEDULES,
    )
}
grown = results("grown").renamed(asked | {"kd-T4-soft0.9": "kd"})
studies = tuple(study for study in (small, grown, large) if study.specs)


def arm(temperature, soft_weight):
    """The name of a point of the map; the book's default has a name of its own."""
    at_home = (temperature, soft_weight) == (4, 0.9)
    return "kd" if at_home else f"T{temperature:g}-soft{soft_weight:g}"


def axes_of(study):
    """The temperatures and the weights of a plan's map."""
    found = [re.fullmatch(r"T([\d.]+)-soft([\d.]+)", spec.arm) for spec in study.specs]
    pairs = {(float(m[1]), float(m[2])) for m in found if m}
    return [sorted(set(values)) for values in zip(*pairs, strict=True)]


def map_of(study):
    """The arms of a plan's map, by temperature, then by weight."""
    return [arm(T, weight) for T, weight in product(*axes_of(study))]


def validated(record):
    """Accuracy on the validation split after the last epoch."""
    return record["epochs"]["validation.accuracy"][-1]


def matrix(study, arms, measure="accuracy"):
    """A measure, shape (arms, seeds), over the seeds that all of these arms have."""
    values = [study.values(name, measure) for name in arms]
    seeds = sorted(set.intersection(*map(set, values))) if values else []
    found = np.array([[v[seed] for seed in seeds] for v in values])
    return found.reshape(len(arms), len(seeds))


def described(study):
    return conditions(study)


def spoken(name):
    """A point of the map for people: temperature, and weight of the soft targets."""
    found = re.fullmatch(
        r"T([\d.]+)-soft([\d.]+)", "T4-soft0.9" if name == "kd" else name
    )
    return f"$T={found[1]}$, {found[2]}" if found else name


def deciding(arms_of):
    """The plan whose records decide: the longest that has them all; None where none has."""
    return next((s for s in reversed(studies) if s.complete(arms_of(s))), None)


def paired(study, arms, control, measure="accuracy"):
    """Differences from the control: runs seed by seed, and intervals that hold together."""
    values = {
        name: study.values(name, measure) for name in dict.fromkeys((control, *arms))
    }
    gaps = against(values, control) if len(values) > 1 else {}
    rows = {
        spoken(name): list(study.differences(name, control, measure).values())
        for name in arms
    }
    return rows, {spoken(name): gaps[name] for name in arms if name in gaps}


def differs(study, treated, control, among, measure="accuracy", beside=1):
    """One comparison, over the deviation of several arms; its interval holds together with those of so many (Bonferroni)."""
    values = {
        n: study.values(n, measure)
        for n in dict.fromkeys((treated, control, *study.ready(among)))
    }
    return against(
        values, control, [treated], correction=None, level=1 - 0.05 / beside
    )[treated]


def points(i, factor=100):
    """A difference with its interval, in points."""
    return (factor * i).bracketed("+.2f")


# %% [markdown]
# ## The map
#
# Temperatures down, weights across. The default of this book, and of many published tables, is $T=4$ with
# $w_{\text{soft}}=0.9$. Five panels show what one may want of a student: accuracy on the split that chooses and on the
# one that reports; agreement with the teacher; KL from it at $T=1$;
# and calibration. They need not agree on a cell.

# %% tags=["hide-input"]
PANELS = (
    ("validation", validated, 100, "{:.1f}", 1),
    ("test", "accuracy", 100, "{:.1f}", 1),
    ("agreement", "agreement", 100, "{:.1f}", 1),
    ("KL from teacher", "kl_to_teacher", 1, "{:.2f}", -1),
    ("calibration error", "calibration_error", 100, "{:.1f}", -1),
)


def map_figure(study):
    """The means of five measures over temperature and weight; the best cell of each is boxed."""
    down, across = axes_of(study)
    figure, panels = plt.subplots(
        1, len(PANELS), figsize=(8.6, 0.42 * len(down) + 1.3), sharey=True
    )
    best = {}
    for panel, (title, measure, factor, text, better) in zip(
        panels, PANELS, strict=True
    ):
        means = [[study.mean(arm(T, w), measure) for w in across] for T in down]
        values = np.array(
            [[np.nan if i is None else factor * i.mean for i in row] for row in means]
        )
        low, high = np.nanmin(values), np.nanmax(values)
        span = (high - low) or 1.0
        goodness = (values - low if better > 0 else high - values) / span

        def number(g, low=low, high=high, span=span, text=text, better=better):
            value = low + g * span if better > 0 else high - g * span
            return "" if np.isnan(g) else text.format(value)

        heatmap(
            panel,
            goodness,
            [f"$T={T:g}$" for T in down],
            [f"{w:g}" for w in across],
            text=number,
            largest=1,
            rotation=0,
        )
        row, column = np.unravel_index(np.nanargmax(goodness), goodness.shape)
        box = plt.Rectangle(
            (column - 0.5, row - 0.5), 1, 1, fill=False, color=VERMILION, linewidth=2.5
        )
        panel.add_patch(box).set_clip_on(False)
        panel.set_title(title, fontsize="small")
        panel.set_xlabel("$w_{\\mathrm{soft}}$")
        best[title] = f"$T={down[row]:g}$, {across[column]:g}"
    arms = study.ready(map_of(study))
    return show(
        figure,
        label=f"map-{study.plan}",
        caption=f"{described(study)}: means over seeds, {len(arms)} of {len(map_of(study))} points with two runs or more. Bright is good, a box marks "
        "the best of a panel (in %, KL in nats). Colours run from the worst to the best of each panel, which may be close together: read the numbers. Best cells: "
        + "; ".join(f"{title}, {where}" for title, where in best.items())
        + ".",
        alt="Five heat maps over temperature and weight of the soft targets: validation accuracy, test accuracy, agreement with the teacher, "
        "KL from the teacher, and calibration error.",
    )


display(*slots(small, map_of(small), "the map of temperature and weight"))
for study in studies:
    if len(study.ready(map_of(study))) >= 2:
        display(map_figure(study), source_note(study.all(map_of(study))))

# %% [markdown]
# Means hide the seeds. Here is each point of the map as a difference from the default, run by run: to the right of the line is better. <!-- by definition --> Read two
# things: how wide one interval is, and how many of them touch the line.


# %% tags=["hide-input"]
def compared_figure(study):
    arms = [name for name in study.ready(map_of(study)) if name != "kd"]
    weights = axes_of(study)[1]
    hue = dict(zip(weights, PALETTE, strict=False))
    colours = {spoken(arm(T, w)): hue[w] for T, w in product(*axes_of(study))}
    figure, panels = plt.subplots(
        1, 2, figsize=(8.0, 0.27 * len(arms) + 1.2), sharey=True
    )
    for panel, measure in zip(panels, ("accuracy", "agreement"), strict=True):
        rows, intervals = paired(study, arms, "kd", measure)
        panel.axvline(0, color="grey", linewidth=1)
        dots(panel, rows, intervals, factor=100, colours=colours)
    panels[0].set_xlabel("test accuracy, against the default (points)")
    panels[1].set_xlabel("agreement, against the default (points)")
    apart = sum(i.excludes_zero for i in paired(study, arms, "kd")[1].values())
    return show(
        figure,
        label=f"compared-{study.plan}",
        caption=f"{described(study)}. Each run as a faint dot, by seed; means with 95 % intervals that hold together in each panel (Dunnett); one colour per weight. Of the {len(arms)} intervals of accuracy {apart} "
        f"leave out zero; were there no differences at all, in one map of twenty any would.",
        alt="Rows of dots with intervals, one row per combination of temperature and weight: differences from the default in accuracy and in agreement.",
    )


def map_table(study):
    rows = []
    for name in study.ready(map_of(study)):
        row = [spoken(name)]
        for _, measure, factor, text, _ in PANELS:
            i = study.mean(name, measure)
            row.append(
                f"{text.format(factor * i.mean)} ± {text.format(factor * (i.high - i.mean))}"
            )
        rows.append([*row, study.mean(name).n])
    return table(
        ["$T$, $w_{\\text{soft}}$", *(title for title, *_ in PANELS), "$n$"],
        rows,
        caption="Mean and half-width of each arm's own 95 % interval over seeds (Student's t); in %, KL in nats.",
    )


for study in studies:
    if "kd" in study.ready(map_of(study)) and len(study.ready(map_of(study))) >= 2:
        display(
            compared_figure(study),
            source_note(study.all(map_of(study))),
            map_table(study),
        )

# %% [markdown]
# Is it flat at the hot end? The sentences below take the map's steps along the temperature, at the default weight.

# %% tags=["hide-input"]
TEMPERATURES = [arm(T, 0.9) for T in axes_of(small)[0]]
if len(small.ready(TEMPERATURES)) == len(TEMPERATURES):
    cool, mild, warm, hot_arm = TEMPERATURES
    named = {name: spoken(name) for name in map_of(small)}
    display(
        above(mild, cool, small, names=named),
        undecided(warm, mild, margin, small, names=named),
        below(hot_arm, warm, small, names=named),
    )

# %% [markdown]
# Where the interval of the step at the hot end leaves out zero, either the limit has not been reached, or a short training at a fixed weight feels what is left of $T$: the first figure has the pull at each temperature.
#
# ### How flat is it, and what does tuning buy?
#
# Both questions deserve a number. **Flat**: take the whole matrix, arms by seeds, and remove from each entry the mean of its arm and that of its
# seed. What is left is noise. If all arms were equal, the variance of their means would be that of the noise over $n$; the ratio of the two is an
# $F$ statistic, one test instead of eleven. The same with the seeds' means says what seeds share, and so what pairing
# is worth. **Tuning**: pick the arm by its mean validation accuracy, and look at its test accuracy. That alone would
# flatter the choice, since the runs that happened to go well are the ones that are chosen. So the choice is made with
# each seed left out in turn, and reported on *that*
# seed. The third number is what a practitioner gets who tries the whole map with a single seed.


# %%
def tuning(study, arms, default="kd"):
    """Spread of the arms' means against the noise, and what choosing on the validation
    split brings on the test split.
    """
    chooser, reported = 100 * matrix(study, arms, validated), 100 * matrix(study, arms)
    m, n = reported.shape
    seeds = range(n)
    gain = reported - reported[arms.index(default)]
    means = reported.mean(1)
    noise = reported - reported.mean(0) - means[:, None] + means.mean()
    noise = np.sqrt(np.square(noise).sum() / ((m - 1) * (n - 1)))
    ratio = n * means.var(ddof=1) / noise**2
    of_seeds = m * reported.mean(0).var(ddof=1) / noise**2
    by_others = [np.delete(chooser, seed, axis=1).mean(1).argmax() for seed in seeds]
    return {
        "arms": m,
        "worst": (arms[means.argmin()], means.min()),
        "best": (arms[means.argmax()], means.max()),
        "default": means[arms.index(default)],
        "chosen": arms[chooser.mean(1).argmax()],
        "noise": noise,
        "F": ratio,
        "unpaired": np.sqrt(reported.var(1, ddof=1).mean()),
        "F of seeds": of_seeds,
        "p of seeds": f_distribution.sf(of_seeds, n - 1, (m - 1) * (n - 1)),
        "by chance": f_distribution.sf(ratio, m - 1, (m - 1) * (n - 1)),
        "left out": mean_interval(gain[by_others, seeds]),
        "one seed": mean_interval(gain[chooser.argmax(0), seeds]),
        "fidelity": arms[matrix(study, arms, "agreement").mean(1).argmax()],
    }


# %% tags=["hide-input"]
tuned = {}
for study in studies:
    arms = study.ready(map_of(study))
    if "kd" in arms and len(arms) > 2 and matrix(study, arms).shape[1] >= 2:
        tuned[study.plan] = said = tuning(study, arms)
        display(
            table(
                [f"plan {study.plan}, {said['arms']} arms", ""],
                [
                    ["worst, default and best mean test accuracy (%)", f"{said['worst'][1]:.2f} ({spoken(said['worst'][0])}), {said['default']:.2f}, {said['best'][1]:.2f} ({spoken(said['best'][0])})"],
                    ["noise of one run, arm and seed removed (points)", f"{said['noise']:.2f}; F = {said['F']:.1f}, p = {said['by chance']:.2g}"],
                    ["deviation of a run within its arm (points)", f"{said['unpaired']:.2f}; of what seeds share F = {said['F of seeds']:.1f}, p = {said['p of seeds']:.2g}"],
                    ["chosen on validation; with the most agreement", f"{spoken(said['chosen'])}; {spoken(said['fidelity'])}"],
                    ["gain over the default, chosen by the other seeds (points)", f"{points(said['left out'], 1)}, n = {said['left out'].n}"],
                    ["gain over the default, chosen by the seed itself (points)", f"{points(said['one seed'], 1)}, n = {said['one seed'].n}"],
                ],
                caption="How flat the map is, and what choosing in it brings.",
            )
        )  # fmt: skip

# %% tags=["hide-input"]
if (study := deciding(map_of)) and study.plan in tuned:
    said = tuned[study.plan]
    _, gaps = paired(study, [a for a in map_of(study) if a != "kd"], "kd")
    under = [name for name, i in gaps.items() if i.high < 0]
    over = [name for name, i in gaps.items() if i.low > 0]
    bought_by = said["left out"]
    given = verdict(
        "A7", "depends",
        f"{'A badly chosen pair costs accuracy' if under else 'No pair is shown to cost accuracy'}; that a choice by validation gains over the default is {'shown' if bought_by.low > 0 else 'not shown'}. “Often requires”, says the article. Over {said['arms']} pairs of temperature and weight of the soft targets test accuracy goes from "
        f"{said['worst'][1]:.2f} % ({spoken(said['worst'][0])}) to {said['best'][1]:.2f} % ({spoken(said['best'][0])}); {len(under)} of {len(gaps)} are below the default and {len(over)} above it"
        f" ({'; '.join(over) or 'none'}; Dunnett). So a bad pair costs up to {said['default'] - said['worst'][1]:.2f} points. What it buys to choose is another question, since a seed that is reported must not choose: "
        f"by the validation accuracy of the other seeds {points(bought_by, 1)} points, n = {bought_by.n}, by itself{'' if bought_by.excludes_zero else ' not decided'}. {described(study)}.",
        data=data, condition="bound to a scale",
    )  # fmt: skip
    display(given)

# %% [markdown]
# ## Which weight?
#
# Article B: “$\alpha$ is typically set very high, often 0.9 to 0.99”, and 1 at first for language models. Hinton, Vinyals and Dean {cite}`hinton2015distilling` found “that the best results were generally obtained by using a considerably lower
# weight” on the labels (section 2), and for speech “used a relative weight of 0.5 on the cross-entropy for the hard targets” (section 4.1): the direction is the article's, the size need not be. {doc}`06_first_distillation` shows why the letter $\alpha$ must not be carried from one article to the other; here $w_{\text{soft}}$ is B's
# $\alpha$. It is varied at every temperature. Whether one answer holds for all of them is the first question: temperature and weight may *interact*, and then a mean over temperatures hides what happens at each.


# %%
def weight_effect(study, weight, against, measure="accuracy", factor=100):
    """The effect of one weight against another, a value a seed: paired at each
    temperature, then averaged over these.
    """
    both = ([arm(T, weight), arm(T, against)] for T in axes_of(study)[0])
    both = [pair for pair in both if len(study.ready(pair)) == 2]
    values = matrix(study, [name for pair in both for name in pair], measure)
    if not both or values.shape[1] < 2:
        return None
    return factor * (values[0::2] - values[1::2]).mean(0)


# %% tags=["hide-input"]
def interaction(study, measure="accuracy"):
    """Whether the effect of the weight depends on the temperature: F of the interaction in
    an analysis of variance of the map, its degrees of freedom, and p.
    """
    down, across = axes_of(study)
    cells = np.array(
        [
            [list(study.values(arm(T, w), measure).values()) for w in across]
            for T in down
        ]
    )
    rows, columns, n = cells.shape
    means = cells.mean(2)
    rest = means - means.mean(1, keepdims=True) - means.mean(0) + means.mean()
    freedom = (rows - 1) * (columns - 1), rows * columns * (n - 1)
    ratio = n * (rest**2).sum() / freedom[0] / cells.var(2, ddof=1).mean()
    return ratio, freedom, f_distribution.sf(ratio, *freedom)


def weight_figure(study):
    down, across = axes_of(study)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(8.0, 3.4), gridspec_kw={"width_ratios": [1, 1.1]}
    )
    for T, colour in zip(down, PALETTE, strict=False):
        means = [
            (x, 100 * study.mean(arm(T, w)).mean)
            for x, w in enumerate(across)
            if study.mean(arm(T, w)) is not None
        ]
        if means:
            left.plot(*zip(*means, strict=True), "o-", color=colour, label=f"$T={T:g}$")
    left.set_xticks(range(len(across)), [f"{w:g}" for w in across])
    left.set(xlabel="$w_{\\mathrm{soft}}$", ylabel="test accuracy (%)")
    left.margins(y=0.25)
    left.legend(fontsize="x-small", ncols=3, loc="lower center")
    rows, intervals = {}, {}
    for measure, title in (("accuracy", "accuracy"), ("agreement", "agreement")):
        for weight in across:
            values = (
                None if weight == 0.9 else weight_effect(study, weight, 0.9, measure)
            )
            if values is not None:
                rows[f"{title}, {weight:g}"] = values
                intervals[f"{title}, {weight:g}"] = mean_interval(values)
    colours = {name: BLUE if name.startswith("acc") else ORANGE for name in rows}
    right.axvline(0, color="grey", linewidth=1)
    dots(right, rows, intervals, colours=colours)
    right.set_xlabel("against $w_{\\mathrm{soft}}=0.9$, mean over $T$ (points)")
    return show(
        figure,
        label=f"weight-{study.plan}",
        caption=f"{described(study)}. Left: mean test accuracy by weight, one line per temperature. Right: each weight against 0.9, averaged over the temperatures, which hides where lines cross; "
        "one dot per seed. "
        + " ".join(f"{name}: {points(i, 1)}." for name, i in intervals.items()),
        alt="Left: lines of test accuracy against the weight of the soft targets. Right: differences from the weight 0.9 with intervals.",
    )


for study in studies:
    if (
        weight_effect(study, 0.5, 0.9) is not None
        or weight_effect(study, 1, 0.9) is not None
    ):
        display(weight_figure(study), source_note(study.all(map_of(study))))
if len(small.ready(map_of(small))) < 2:
    display(
        not_yet_run("the weights: the same runs as those of the map", small.command)
    )

# %% tags=["hide-input"]
if (study := deciding(map_of)) and weight_effect(study, 0.5, 0.9) is not None:
    down, across = axes_of(study)
    ratio, (between, inside), chance = interaction(study)
    turned, whole = (
        {T: differs(study, arm(T, weight), arm(T, 0.9), map_of(study), beside=2 * len(down)) for T in down}
        for weight in (0.5, 1)
    )  # fmt: skip
    display(
        table(
            ["$T$", "an even split minus 0.9", "no labels minus 0.9"],
            [[f"{T:g}", points(turned[T]), points(whole[T])] for T in down],
            caption=f"Points of test accuracy, n = {turned[down[0]].n}; the {2 * len(down)} intervals hold together (Bonferroni). Interaction of temperature and weight: F({between}, {inside}) = {ratio:.1f}, p = {chance:.2g}.",
        )
    )
    hotter = [T for T in down if T > 1]
    EFFECT = Quantity(
        "accuracy of an even split minus that of $w_{\\text{soft}}=0.9$",
        "points",
        100,
        2,
    )
    by_temperature = Curves(
        {"mean over seeds": (np.array(hotter), np.array([turned[T].mean for T in hotter]))},
        EFFECT, "of temperature", "records",
    )  # fmt: skip
    display(
        crosses(by_temperature, EFFECT, "(temperature)", upwards=True),
        above("T8-soft0.5", "T8-soft0.9", study, names=named),
        below("T2-soft0.5", "T2-soft0.9", study, names=named),
    )
    above_it = [f"{T:g}" for T, i in turned.items() if i.low > 0]
    below_it = [f"{T:g}" for T, i in turned.items() if i.high < 0]
    crossed = chance < 0.05 and above_it and below_it
    given = verdict(
        "B2", "depends" if crossed else "not decided",
        f"Whether 0.9 is ahead {'depends' if crossed else 'is not shown to depend'} on the temperature. Their interaction has F({between}, {inside}) = {ratio:.1f}, p = {chance:.2g}. An even split minus $w_{{\\text{{soft}}}}=0.9$, in points of test accuracy: "
        + ", ".join(f"{points(i)} at $T={T:g}$" for T, i in turned.items())
        + f" ({2 * len(down)} intervals that hold together, Bonferroni). So 0.9 is ahead at $T$ of {', '.join(below_it) or 'none'} and behind at {', '.join(above_it) or 'none'}. No labels at all minus 0.9: "
        + ", ".join(f"{points(i)} at $T={T:g}$" for T, i in whole.items())
        + f". {described(study)}. Weights between 0.9 and 1 are not tested; for language models see chapters 16 and 17.",
        data=data, condition="bound to a scale" if crossed else None,
    )  # fmt: skip
    display(given)

# %% [markdown]
# ## Does a small student want another temperature?
#
# Article B makes four statements about a constant temperature, with references to two papers.
#
# 1. “Hinton et al. found that using a temperature in the range of 1 to 5 worked best for most tasks.” The paper {cite}`hinton2015distilling` has no such sentence. Its experiment on MNIST uses a temperature of 20, and with 300 or more units in each of two layers
#    “all temperatures above 8 gave fairly similar results” (section 3). For speech, “we tried temperatures of [1, 2, 5, 10]”, and the best, printed bold, is 2 (section 4.1). So the range fits one of the two tasks.
# 2. “Specifically noting that when a student is much smaller than the teacher, intermediate temperatures are often optimal.” That is in the paper: with 30 units a layer “temperatures in the range 2.5 to 4 worked significantly better than higher or lower temperatures”. The reason
#    given is that at a high temperature a student must also match the very negative logits, which a small one should ignore.
# 3. Small temperatures, 1 to 2, are “recommended when the student has enough capacity”, citing Mirzadeh and co-workers {cite}`mirzadeh2020improved`. The paper's released code searches the temperature among 1, 2, 5, 10, 15 and 20 for every pair ([search_space.json](https://github.com/imirzadeh/Teacher-Assistant-Knowledge-Distillation)): it is a number to be found there, not one that is recommended. <!-- by definition -->
# 4. Large ones, 3 to 10, are “essential when there is a significant capacity gap”, citing Hinton et al. Above 4 that is the reverse of statement 2 and of its sentence: for their much smaller student higher temperatures were worse.
#
# Our records can show how three widths of student fare as the temperature rises, with the same teacher and $w_{\text{soft}}=0.9$. If a high temperature harms a narrow student in particular, the step from $T=4$ to $T=8$ is worse for the narrow student than for the wide one; if a large gap needs a high temperature, it is better. The plan `small` ends at $T=8$, where the plateau of statement 1 begins, and ResNets on photographs are not two layers on digits: no sign would prove a reading.


# %% tags=["hide-input"]
def widths_of(study):
    """By student, narrow to wide: the arm without a teacher, the arms by temperature."""
    cool, _ = axes_of(study)
    narrower = {
        spec.student: (spec.arm, [f"{spec.student}-T{T:g}" for T in cool])
        for spec in study.specs
        if spec.arm == f"{spec.student}-alone"
    }
    full = next(spec.student for spec in study.specs if spec.arm == "kd")
    return dict(reversed(narrower.items())) | {
        full: ("alone", [arm(T, 0.9) for T in cool])
    }


def arms_of_widths(study):
    return [
        name for alone, arms in widths_of(study).values() for name in (alone, *arms)
    ]


HOT, WARM = 8, 4  # the hot side of what the paper found best for its small students


def hot_side(study, *students):
    """Points of accuracy from WARM to HOT, for each student's arms a value a seed;
    None unless all are there.
    """
    cool = axes_of(study)[0]
    arms = [group[cool.index(T)] for group in students for T in (HOT, WARM)]
    values = 100 * matrix(study, arms)
    if len(study.ready(arms)) < len(arms) or values.shape[1] < 2:
        return None
    return values[0::2] - values[1::2]


# %% tags=["hide-input"]
def width_figure(study):
    widths, temperatures = widths_of(study), axes_of(study)[0]
    figure, panels = plt.subplots(
        1, len(widths), figsize=(8.2, 3.2), sharex=True, sharey=True
    )
    lines, chosen = [], {}
    for panel, (name, (alone, arms)) in zip(panels, widths.items(), strict=True):
        rows, _ = paired(study, arms, alone)
        for T, one in zip(temperatures, arms, strict=True):
            panel.plot(
                [T] * len(rows[spoken(one)]),
                [100 * v for v in rows[spoken(one)]],
                "o",
                color=BLUE,
                alpha=0.35,
                mew=0,
            )
        means = [
            (T, 100 * d.mean)
            for T, one in zip(temperatures, arms, strict=True)
            if (d := study.difference(one, alone)) is not None
        ]
        panel.set_xscale("log", base=2)
        panel.set_xticks(temperatures, [f"{T:g}" for T in temperatures])
        panel.axhline(0, color="grey", linewidth=1)
        records = study.all([alone, *arms])
        size = f"\n{records[0]['parameters']:,} parameters" if records else ""
        panel.set_title(f"{called(name)}{size}", fontsize="small")
        panel.set_xlabel("temperature $T$")
        if means:
            panel.plot(*zip(*means, strict=True), "-", color=BLUE)
        there = [
            T for T, one in zip(temperatures, arms, strict=True) if study.ready([one])
        ]
        if len(there) == len(arms):
            best = max(
                range(len(arms)),
                key=lambda i, arms=arms: study.mean(arms[i], validated).mean,
            )
            chosen[called(name)] = temperatures[best]
            panel.axvline(
                temperatures[best], color=ORANGE, linestyle="--", linewidth=1.4
            )
        if (values := hot_side(study, arms)) is not None:
            lines.append(f"{called(name)}, {points(mean_interval(values[0]), 1)}")
    panels[0].set_ylabel("gain over training alone (points)")
    return show(
        figure,
        label=f"width-{study.plan}",
        caption=f"{described(study)}; and narrower students. Gain in test accuracy over the same student alone, one dot per seed; the dashed line is the temperature with the best validation accuracy"
        + (
            " (" + ", ".join(f"{k}: {v:g}" for k, v in chosen.items()) + ")"
            if chosen
            else ""
        )
        + "."
        + (
            f" From $T={WARM}$ to $T={HOT}$, in points: {'; '.join(lines)}."
            if lines
            else ""
        ),
        alt="One panel for each width of the student: gain over training alone against temperature on a logarithmic axis.",
    )


def widths_apart(study):
    """The hot side of the widest student minus that of the narrowest; None unless both are there."""
    groups = [arms for _, arms in widths_of(study).values()]
    both = hot_side(study, groups[0], groups[-1])
    return None if both is None else mean_interval(both[1] - both[0])


display(*slots(small, arms_of_widths(small), "temperature and the student's width"))
for study in (small, large):
    shown = [
        len(study.ready(arms)) >= 2 and bool(study.ready([alone]))
        for alone, arms in widths_of(study).values()
    ]
    if sum(shown) >= 2:
        display(width_figure(study), source_note(study.all(arms_of_widths(study))))
    if (difference := widths_apart(study)) is not None:
        display(
            Markdown(
                f"Plan {study.plan}: accuracy at T = {HOT} minus T = {WARM}, the widest student's minus the narrowest's: {points(difference, 1)} points, "
                f"n = {difference.n}"
            )
        )

# %% tags=["hide-input"]
if (study := deciding(arms_of_widths)) and (difference := widths_apart(study)):
    chosen = {
        name: axes_of(study)[0][int(matrix(study, arms, validated).mean(1).argmax())]
        for name, (_, arms) in widths_of(study).items()
    }
    narrow, wide = (
        next(iter(widths_of(study).values()))[1],
        list(widths_of(study).values())[-1][1],
    )
    cool = axes_of(study)[0]
    STEP = Quantity(f"step of accuracy from $T={WARM}$ to $T={HOT}$", "points", 100, 2)
    steps = dict(
        zip(
            ("the narrowest student", "the widest"),
            hot_side(study, narrow, wide) / 100,
            strict=True,
        )
    )
    steps = replace(evidence(steps, STEP), source="records")
    named |= {
        name: f"$T={T:g}$, the narrowest student"
        for T, name in zip(cool, narrow, strict=True)
    }
    display(
        undecided("the widest", "the narrowest student", margin, steps, STEP),
        below(narrow[cool.index(HOT)], narrow[cool.index(2)], study, names=named),
        above(narrow[cool.index(2)], narrow[cool.index(1)], study, names=named),
    )
    hot_narrow = differs(study, narrow[cool.index(HOT)], narrow[cool.index(2)], narrow)
    given = verdict(
        "B3", "corrected",
        "Of four statements one is not in its source, and one is the reverse of it above 4. By their sources: (1) 1 to 5 “for most tasks” is not in the paper; it fits its speech (best of 1, 2, 5, 10: 2) and not its MNIST (20; with 300 units a layer all above 8 alike). (2) Intermediate temperatures for a much smaller student: right, 2.5 to 4 with 30 units. "
        "(3) Small ones for a capable student: the code of its source searches 1 to 20 for every pair. (4) Large ones, 3 to 10, “essential” for a large gap: above 4 the reverse of the paper that is cited. "
        "Here the temperature with the best validation accuracy is "
        + ", ".join(f"{T:g} ({called(name)})" for name, T in chosen.items())
        + f"; for the narrowest, $T={HOT}$ minus $T=2$ is {points(hot_narrow)} points{', so a temperature as large is not essential to it' if hot_narrow.high < 0 else ''}; and from $T={WARM}$ to $T={HOT}$ the widest gains {points(difference, 1)} points more than the narrowest (n = {difference.n}): "
        + ("whether width matters is not decided" if not difference.excludes_zero else "width matters")
        + f". {described(study)}.",
        data=data,
    )  # fmt: skip
    display(given)

# %% [markdown]
# ## Temperatures that change
#
# “Newer research suggests starting with a high $T$ … and decaying it”, writes article B, and cites a paper that does something else: curriculum temperature {cite}`li2023curriculum` *learns* its
# temperature, against the student, by ascending on the loss on which the student descends. Four schedules are tried. `T-falling` goes from 8 to 1, `T-rising` from 1 to 8,
# each in a straight line; `T-learned` is curriculum temperature between 1 and 21, which in kdlab starts at 11 (the authors' code starts at $1+20\sigma(1)$, near 15.6); `soft-falling` keeps $T=4$ and hands the weight over from the teacher to the labels. <!-- by definition -->
#
# Against what? A schedule has had one try, so it is fair to compare it with the one constant that the *validation* split picks among four only if one remembers that
# the constant has been tuned and the schedule has not. A second test needs no constant at all: **falling against rising**. Both spend the same time at the
# same temperatures, in opposite order. It is not the order alone that differs, though: the learning rate falls along a cosine in both, so falling meets the hot temperatures at a high rate and rising meets them at a
# low one. The test is of the advice as it is given, in training as it is usually done; an exercise separates the two.


# %% tags=["hide-input"]
def constants_of(study):
    return [arm(T, 0.9) for T in axes_of(study)[0]]


def best_constant(study):
    """The constant T with the best mean validation accuracy; None unless all are there."""
    arms = constants_of(study)
    if len(study.ready(arms)) < len(arms):
        return None
    return max(arms, key=lambda name: study.mean(name, validated).mean)


# %% tags=["hide-input"]
def schedule_figure(study):
    arms = [*SCHEDULES, *(name for name in constants_of(study) if name != "kd")]
    arms = study.ready(arms)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(8.0, 3.6), gridspec_kw={"width_ratios": [1.25, 1]}
    )
    rows, intervals = paired(study, arms, "kd")
    colours = {spoken(a): ORANGE if a in SCHEDULES else BLUE for a in arms}
    left.axvline(0, color="grey", linewidth=1)
    dots(left, rows, intervals, factor=100, colours=colours)
    left.set_xlabel("test accuracy, against constant $T=4$ (points)")
    ends = []
    for name, colour in (
        ("T-falling", BLUE),
        ("T-rising", GREEN),
        ("T-learned", ORANGE),
    ):
        for number, record in enumerate(study.arm(name)):
            path = (record.get("epochs") or {}).get("SoftTargets.temperature")
            if path:
                done = (np.arange(len(path)) + 0.5) / len(path)
                right.plot(
                    done,
                    path,
                    "o-" if len(path) < 20 else "-",
                    color=colour,
                    markersize=4,
                    label=None if number else name,
                )
                ends += [(path[0], path[-1])] if name == "T-learned" else []
    right.set(
        xlabel="part of training done",
        ylabel="temperature, mean of an epoch",
        ylim=(0, None),
        xlim=(0, 1),
    )
    if right.lines:
        right.legend(fontsize="small")
    learned = (
        f" The learned temperature starts at 11; its mean is {np.mean([a for a, _ in ends]):.1f} in the first epoch and "
        f"{np.mean([b for _, b in ends]):.1f} in the last, where 1 is the floor and 21 the ceiling."
        if ends
        else ""
    )
    return show(
        figure,
        label=f"schedules-{study.plan}",
        caption=f"{described(study)}. Left: schedules (orange) and constants (blue) against constant $T=4$, all with $w_{{\\mathrm{{soft}}}}=0.9$ but soft-falling. "
        f"Right: the temperatures that were in use, one line per run.{learned}",
        alt="Left: rows of dots with intervals for four schedules and the constant temperatures. Right: temperature against the part of training done.",
    )


schedule_arms = [*SCHEDULES, *constants_of(small)]
display(*slots(small, schedule_arms, "schedules against constant temperatures"))
order = {}
for study in studies:
    there = study.ready(SCHEDULES)
    if there and study.ready(["kd"]):
        display(schedule_figure(study), source_note(study.all(schedule_arms)))
    if len(study.ready(("T-falling", "T-rising"))) == 2:
        order[study.plan] = turn = differs(
            study, "T-falling", "T-rising", schedule_arms
        )
        display(
            Markdown(
                f"Plan {study.plan}: falling minus rising {points(turn)} points, n = {turn.n}"
            )
        )
    if there and (constant := best_constant(study)):
        values = {name: study.values(name) for name in (constant, *there)}
        for name, d in against(values, constant).items():
            display(
                Markdown(
                    f"Plan {study.plan}: {name} minus {constant} (the constant that validation picks) {points(d)} points, together with the others (Dunnett), n = {d.n}"
                )
            )
if small.complete(schedule_arms):
    display(
        above("T-falling", "T-rising", small),
        below("T-rising", best_constant(small), small, names=named),
    )

# %% [markdown]
# ### Where a learned temperature goes
#
# The path of a learned temperature is no mystery, given the right panel of the first figure. The adversary climbs $T^2$KL: where that rises with $T$ it heats, where it falls it cools.
# For a student that knows nothing yet, all logits equal, the curve can be written down. Let $\kappa_2,\kappa_3,\kappa_4$ be the cumulants of the teacher's logits over the classes (variance, third central moment, …). With
# $K(x)=\log\frac1N\sum_i e^{xt_i}$ and $x=1/T$,
#
# $$T^2 D_{\mathrm{KL}}(p\,\|\,\text{uniform}) = T^2\bigl(xK'(x)-K(x)\bigr) = \frac{\kappa_2}{2} + \frac{\kappa_3}{3T} + \frac{\kappa_4}{8T^2} + \dots$$
#
# A teacher that is sure of one class has one large logit and many small ones: it is skewed to the right, $\kappa_3>0$. Then the curve lies *above* its hot limit when $T$ is large, and it vanishes
# for $T\to0$, since the KL from the uniform distribution is at most $\log N$. So it has a summit in between. An adversary that starts above the summit cools, and one that starts below it heats.

# %%
t = teacher_logits.double()
centred = t - t.mean(-1, keepdim=True)
second, third = centred.square().mean(-1), (centred**3).mean(-1)
fourth = (centred**4).mean(-1) - 3 * second**2
hot = 100.0
exact = soft_targets(torch.zeros_like(t), t, temperature=hot, reduction="none")
without_skew = exact - second / 2
rest = without_skew - third / (3 * hot) - fourth / (8 * hot**2)
assert rest.abs().max() < 1e-2 * without_skew.abs().max()

# %% tags=["hide-input"]
skewed = (third > 0).double().mean().item()
display(
    Markdown(
        f"The teacher's logits are skewed to the right on {skewed:.1%} of the images that the student was not trained on."
    )
)
summits = {name: fine[values.argmax()] for name, values in height.items()}
SUMMIT = Quantity(
    "temperature of the summit of the loss that the adversary climbs", "", 1, 1
)
display(*(below(name, 11, summits, SUMMIT) for name in summits))

# %% [markdown]
# A summit below its start means that it begins by cooling. How far it goes is a matter of its own learning rate, and of where the summit wanders as the student learns. Readers of the published code have met both ends: in
# [one thread](https://github.com/zhengli97/CTKD/issues/16) the temperature first ran up to its ceiling, which an author calls not normal, and then,
# in another run, sank within a few epochs to little above one, which he takes for convergence. A temperature that rests at the end of its range is a constant that the *range* has chosen. Logs of fourteen trainings with a learned temperature,
# on standardised logits, are published with another paper's code, where the range is another and begins at two; the cell has their first epoch and their last.

# %% tags=["hide-input"]
logged = published_results()["noise"]["logs"]["temperature"]
display(
    Markdown(
        f"Learned temperature in {len(logged['first'])} published logs, mean of the first epoch: {min(logged['first']):.1f} to {max(logged['first']):.1f}; "
        f"of epoch 240: {min(logged['last']):.2f} to {max(logged['last']):.2f}."
    )
)

# %% tags=["hide-input"]
study = deciding(lambda study: [*SCHEDULES, *constants_of(study)])
if study and study.plan in order and (constant := best_constant(study)):
    d = against(
        {name: study.values(name) for name in (constant, *SCHEDULES)}, constant
    )["T-falling"]
    given = verdict(
        "B4", "depends",
        f"A falling temperature is {'' if order[study.plan].low > 0 else 'not shown to be '}ahead of a rising one; that it is ahead of a constant one is {'shown' if d.low > 0 else 'not shown'}. "
        f"Falling from 8 to 1 against rising from 1 to 8: {points(order[study.plan])} points of test accuracy; against the constant that validation picks "
        f"({spoken(constant)}) and has had four tries: {points(d)} ({'beyond noise' if d.excludes_zero else 'not decided'}), n = {d.n}. {described(study)}. The rate falls {'by steps' if study is grown else 'along a cosine'}, so the order of the temperatures also decides at which rate each is "
        f"learned. The paper that is cited learns its temperature; it does not let it decay by a plan.",
        data=data, condition="bound to a scale",
    )  # fmt: skip
    display(given)

# %% [markdown]
# ## With a budget of three runs
#
# Few people will tune on twelve points times three seeds. What does a small budget buy? The map answers, since all its runs are there: draw $k$ of its points at random, train each *once*, keep the
# one with the best validation accuracy, and note its test accuracy. <!-- by definition --> The mean over all draws needs no simulation. If the points of a seed are ranked by validation accuracy, the
# $r$-th of $m$ is the winner with probability $\binom{m-r}{k-1}\big/\binom{m}{k}$. The zero line is the default, taken without any tuning.


# %%
def bought(study, arms, default="kd"):
    """Expected gain in test accuracy over the default, shape (budget, seed), with the
    best of k random points by validation.
    """
    chooser, reported = matrix(study, arms, validated), 100 * matrix(study, arms)
    gain = reported - reported[arms.index(default)]
    m = len(gain)
    ranked = np.take_along_axis(gain, (-chooser).argsort(0), 0)
    wins = [
        [comb(m - r, k - 1) / comb(m, k) for r in range(1, m + 1)]
        for k in range(1, m + 1)
    ]
    assert np.allclose(np.sum(wins, 1), 1)
    return np.array(wins) @ ranked


# %% tags=["hide-input"]
def of_three(study, three, default="kd"):
    """The same for three given points: a value a seed."""
    chooser = matrix(study, [*three, default], validated)[:3]
    reported = 100 * matrix(study, [*three, default])
    gain = reported[:3] - reported[3]
    return gain[chooser.argmax(0), np.arange(gain.shape[1])]


#: Three ways to spend three runs, each with the default among them.
TRIPLES = {
    "$T = 2, 4, 8$": [arm(T, 0.9) for T in (2, 4, 8)],
    "$w = 0.5, 0.9, 1$": [arm(4, w) for w in (0.5, 0.9, 1)],
    "default, $T = 2$, $w = 0.5$": [arm(4, 0.9), arm(2, 0.9), arm(4, 0.5)],
}


def budget_figure(study, arms):
    gains = bought(study, arms)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(8.2, 3.2), gridspec_kw={"width_ratios": [1, 1.05]}
    )
    budgets = range(1, len(gains) + 1)
    left.plot(budgets, gains, color="grey", linewidth=0.9, alpha=0.7)
    left.plot(budgets, gains.mean(1), "o-", color=BLUE, markersize=4)
    left.axhline(0, color="grey", linewidth=1)
    left.set_xticks(range(2, len(gains) + 1, 2))
    left.set(xlabel="points tried, one run each", ylabel="against the default (points)")
    rows = {"three at random": gains[2]} | {
        name: of_three(study, three) for name, three in TRIPLES.items()
    }
    intervals = {name: mean_interval(values) for name, values in rows.items()}
    right.axvline(0, color="grey", linewidth=1)
    dots(right, rows, intervals)
    right.set_xlabel("test accuracy, against the default (points)")
    return show(
        figure,
        label=f"budget-{study.plan}",
        caption=f"What a budget buys ({described(study)}). Left: expected gain over the untuned default when the best of $k$ random points is taken by validation; grey a seed, blue the mean. Right: three runs, at random "
        "or spent by a rule; one dot per seed. "
        + " ".join(f"{name}: {points(i, 1)}." for name, i in intervals.items()),
        alt="Left: expected gain against the number of points tried. Right: gain of four ways to spend three runs, with intervals.",
    ), intervals


shown = False
for study in studies:
    if study.complete(map_of(study)):
        drawn, intervals = budget_figure(study, map_of(study))
        rule = max(TRIPLES, key=lambda name: intervals[name].mean)
        helps = intervals[rule].low > 0
        display(drawn, source_note(study.all(map_of(study))))
        display(
            Markdown(
                f"Plan {study.plan}: of the three rules, “{rule.replace('$', '')}” does best here: {points(intervals[rule], 1)} points, n = {intervals[rule].n}; "
                + (
                    "its gain over the default is beyond the noise of the seeds."
                    if helps
                    else "whether that is a gain over the default is not decided by these seeds."
                )
            )
        )
        shown = True
if not shown:
    display(not_yet_run("what a budget buys; it takes the whole map", small.command))

# %% [markdown]
# A procedure for three runs follows from arithmetic, not from the numbers of this page. **First run:** the default. **Second run:** the default again with another seed, which costs a run and tells you the size of the
# differences that you may believe. **Third run:** one large move, not a small one: half or twice the temperature, an even split of the weights, or three times the learning rate, which these records held fixed. Compare the third run with the *mean* of the
# first two, by validation accuracy. If it is not above that mean by more than the first two differ, keep the default. <!-- by definition -->
#
# That rule is lenient. Suppose that the move changes nothing, so that all three runs have the same mean and independent normal noise. How often does the move win all the same?

# %% tags=["hide-input"]
first, second, third = np.random.default_rng(0).normal(size=(3, 200_000))
lead, apart_by_seed = third - (first + second) / 2, np.abs(first - second)
Markdown(
    "A lead over the mean of more than "
    + ", ".join(
        f"{factor} times the difference of the first two: {np.mean(lead > factor * apart_by_seed):.0%}"
        for factor in (1, 2, 4)
    )
    + "."
)

# %% [markdown]
# So a win by this rule is a reason to look again, with more seeds, and not a finding; the sentence above says what
# safety a larger factor buys. What a longer training, or another learning rate, would have gained for the same runs is
# not measured here.

# %% tags=["hide-input"]
used = sorted(
    {
        *map_of(large),
        *arms_of_widths(large),
        *SCHEDULES,
    }
)
display(
    *slots(
        large,
        used,
        "all questions of this chapter by the published recipe "
        f"({described(large)}), with more temperatures, weights and seeds",
    )
)

# %% tags=["hide-input"]
sentences = []
if (study := deciding(map_of)) and study.plan in tuned:
    said = tuned[study.plan]
    sentences += [
        f"Over {said['arms']} pairs of temperature and weight, test accuracy goes from {said['worst'][1]:.1f} % ({spoken(said['worst'][0])}) to {said['best'][1]:.1f} % ({spoken(said['best'][0])}); the default ($T=4$, 0.9) has {said['default']:.1f} %.",
        f"Choosing on the validation split, in place of taking the default, {moves(0.01 * said['left out'], QUANTITIES['accuracy'])} (n = {said['left out'].n} left-out seeds).",
    ]
    ratio, (between, inside), chance = interaction(study)
    sentences.append(
        f"The best weight {'depends' if chance < 0.05 else 'is not shown to depend'} on the temperature (interaction: F({between}, {inside}) = {ratio:.1f}, p = {chance:.2g})."
    )
    sentences.append(f"All this is of {described(study)}.")
sentences = sentences or [
    f"After {epochs} epochs, gradients at $T={coolest:g}$ and $T={hottest:g}$ have a cosine of {corner:.2f} in the long run (one student)."
]
findings.show(*sentences)

# %% [markdown]
# ## Limits
#
# - The small study is *short*. A few epochs reward whatever speeds up learning, and a hot, soft target may do that only for a while. Read the map as one of early training.
# - One teacher, one data set, **one learning rate for the whole map** (in `grown` that of distillation with the weight that was chosen with it, else chosen for none), although the soft term's pull is
#   not the same at every $T$ (the first figure) nor at every weight. How the map would look with its own rate at each
#   point is open.
# - A grid of powers of two cannot see a narrow optimum. Whether there is one is not tested; the gradients of one young student, in the first section, give no sign of it.
# - The live part looks at one student, one seed, and a few batches. Widths change the parameters, not the depth.
# - Where the test split reports on many arms it has been looked at many times. The choices were made on the validation split, so this costs nothing but the temptation to quote the best.
#
# ## To take away
#
# **Formulae.** The loss is $(1-w_{\text{soft}})\,\mathrm{CE}+w_{\text{soft}}\,T^2D_{\mathrm{KL}}$. At a high temperature $T^2D_{\mathrm{KL}}\approx\frac{\kappa_2}2+\frac{\kappa_3}{3T}+\frac{\kappa_4}{8T^2}$ for a student that knows nothing.
#
# **What to set.** Begin with `0.1 * CrossEntropy() + 0.9 * SoftTargets(temperature=4)`. If you have three runs: the default, the default with another seed, and one large move.
#
# **What to watch for.** Change temperature and weight together, since each decides what suits the other. Choose on the validation split, leave out the seed on which you report, and give every setting a learning rate of its own if you can.
#
# ## Exercises
#
# ```{exercise}
# :label: ex-winners-curse
#
# Suppose that all twelve points of the map were equally good, and that the validation accuracy of a run had a standard deviation of half a point. By how much would the best of twelve single runs seem
# to beat a given one? And by how much on the test split, if its noise were independent?
# ```
#
# ````{solution} ex-winners-curse
# :class: dropdown
#
# ```python
# print(0.5 * np.random.default_rng(0).normal(size=(100_000, 12)).max(1).mean())
# ```
#
# That is about 0.8 points on the split that chose, since the largest of twelve standard normal numbers is 1.63 on average. <!-- by definition -->
# On the test split: nothing. This is why one split chooses and another reports.
# ````
#
# ```{exercise}
# :label: ex-hot-limit
#
# Which limit do the cosines between two hot temperatures approach, and the norm of the soft term's gradient? Check both on the live student at $T=32,64,128$.
# ```
#
# ````{solution} ex-hot-limit
# :class: dropdown
#
# ```python
# looks = CrossEntropy() + sum(SoftTargets(temperature=T) for T in (32.0, 64.0, 128.0))
# g, _ = gradients(student, *batches[0])
# print(cosine(g @ g.T).round(3))
# print("lengths:", g.norm(dim=1)[1:].tolist())
# ```
#
# The gradient of $T^2D_{\mathrm{KL}}$ with respect to the logits tends to $(\tilde z-\tilde t)/N$. It has no $T$, so the cosine tends to one and the norm to a constant: look at all
# rows but that of the labels, which is another objective.
# ````
#
# ```{exercise}
# :label: ex-order-and-rate
#
# Falling and rising differ in the order of the temperatures, and so in the learning rate at which each is learned, since the rate falls in both. Separate order from rate, on the live student's images.
# ```
#
# ````{solution} ex-order-and-rate
# :class: dropdown
#
# ```python
# from kdlab.objectives import Linear
#
#
# def scheduled(first, last, schedule):
#     torch.manual_seed(seed)
#     student = resnet8(data.num_classes).to(device)
#     objective = 0.1 * CrossEntropy() + 0.9 * SoftTargets(temperature=Linear(first, last))
#     how = replace(recipe, schedule=schedule)
#     fit(student, objective, train=slice_of_training, teacher=teacher, recipe=how, device=device)
#     return accuracy(predict(student, some, device=device), some.labels)
#
#
# for schedule in ("cosine", "constant"):
#     falling, rising = scheduled(8.0, 1.0, schedule), scheduled(1.0, 8.0, schedule)
#     print(f"{schedule}: falling {falling:.1%}, rising {rising:.1%}")
# ```
#
# Under the constant rate both meet each temperature at the same rate, and whatever difference
# remains is order alone. It may be small for a reason that has nothing to do with temperature: without a falling rate every student ends noisy. (One seed and so
# few images decide nothing; take more of both.)
# ````
