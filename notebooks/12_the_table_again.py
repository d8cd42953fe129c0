# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The published table of methods
#
# One table has stood in papers on distillation since 2020: CIFAR-100, pairs of a teacher and a student, a row for each
# method. New methods add a row at the bottom. How much of it would come out the same if it were run again?
#
# **At the end you will know** the recipe and the weights behind the table, as code that runs; how far seeds alone move
# such numbers; what choosing the best epoch adds; and how many seeds it takes to see a difference. **The table itself has not been run again yet**; a slot below says how many of its runs are missing.
#
# *Needs: one CPU core and about a minute. The recorded runs took longer; each says where it ran.*

# %% tags=["parameters"]
profile: str = "cpu"  # "cpu" or "gpu"
margin: float = 0.4  # points of accuracy; published differences are like it
runs: list[int] = [1, 2, 3, 5, 10, 20]  # of a cell; all methods are the same
seeds: list[int] = [0, 1, 2, 3]  # of the networks of which the best epoch is picked
epochs: int = 16  # for which these are trained, four or more
images: int = 256  # on which the lengths of gradients are measured

# %% tags=["hide-input"]
from dataclasses import asdict, replace

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown, display
from scipy.stats import chi2, nct, rankdata, spearmanr, t, ttest_1samp

from kdlab.data import KnownPosterior, load_images
from kdlab.figures import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    dots,
    seeds_dial,
    show,
    table,
    use_style,
)
from kdlab.figures.dots import runs_along
from kdlab.models import mlp
from kdlab.objectives import CrossEntropy
from kdlab.study import (
    book_teacher,
    evidence_folder,
    mean_interval,
    plans,
    results,
    stored_student,
)
from kdlab.study.display import (
    Findings,
    arms_shown,
    conditions,
    device_for,
    not_yet_run,
    source_note,
    verdict,
)
from kdlab.study.evidence import QUANTITIES, Among, Quantity
from kdlab.study.findings import methods as methods_found
from kdlab.study.grown import EPOCHS, LENGTHS_ASKED, arm_name
from kdlab.study.parameters import require
from kdlab.study.published import chance_gap, deviation_of_runs, published_results
from kdlab.study.statements import above, leads
from kdlab.study.statistics import against, summary
from kdlab.training import Recipe, Taps, accuracy, fit, predict

use_style()
device = device_for(profile)
require(
    epochs > 3,
    f"epochs must be four or more, so that there is something to pick, and not {epochs}.",
)
data = load_images()

# %% tags=["hide-input"]
findings = Findings()

# %% [markdown]
# ## The table
#
# The numbers are facts from the papers, kept in one file with what is known of each row: where the method comes from,
# which paper's table the number stands in, on which page we read it, and, where the authors say so, which epoch it is and of how many runs it is the mean. Whatever we could not read ourselves is marked.


# %%
published = published_results()
METHODS = {row["name"]: row for row in published["method"]}
PAIRS = {pair["id"]: pair["name"] for pair in published["pair"]}
FAMILY = [pair["id"] for pair in published["pair"] if pair.get("one_family")]
UNCHECKED = [name for name, row in METHODS.items() if row.get("checked") is False]

# %% tags=["hide-input"]
known = [sum(key in row for row in METHODS.values()) for key in ("epoch", "runs")]
reported = sum(row.get("runs_checked") is False for row in METHODS.values())
Markdown(
    f"There are {len(METHODS)} rows and {len(PAIRS)} pairs, {len(FAMILY)} of them of one family, with {sum(len(row['accuracy']) for row in METHODS.values())} accuracies. We know the epoch of {known[0]} rows, and the number of runs of {known[1]} ({reported} of these by report alone). "
    f"Not read by us: {', '.join(UNCHECKED)}."
)

# %% [markdown]
# Accuracy differs from pair to pair and from method to method; the text below the figure says by how much. What the table is read for is the difference
# to plain distillation in the same column.

# %% tags=["hide-input"]
KIND = {
    "student alone": ("no teacher", PURPLE),
    **dict.fromkeys(
        ["KD", "CTKD", "DIST", "DKD", "KD (standardised)"], ("logits", BLUE)
    ),
    **dict.fromkeys(["FitNet", "AT"], ("maps of layers", ORANGE)),
    **dict.fromkeys(["RKD", "CRD"], ("embeddings", GREEN)),
    "CRD + KD": ("embeddings and logits", SKY),
}
COLOURS = {name: colour for name, (_, colour) in KIND.items()}
ROWS = [name for name in METHODS if name not in ("teacher", "KD")]


def over_kd(name):
    """A published row minus the row of KD, in points, by pair."""
    kd = METHODS["KD"]["accuracy"]
    return {pair: value - kd[pair] for pair, value in METHODS[name]["accuracy"].items()}


# What one paper prints after ±, for six pairs; we read it as a standard deviation over runs.
deviations = [d for row in METHODS.values() for d in row.get("deviation", {}).values()]
DEVIATION = deviation_of_runs(published)
by_chance_of = {runs: chance_gap(published, runs) for runs in (1, 5)}


figure, panel = plt.subplots(figsize=(7.2, 4.0))
for gap, alpha in zip(by_chance_of.values(), (0.13, 0.18), strict=True):
    panel.axvspan(-gap, gap, color="grey", alpha=alpha, linewidth=0)
panel.axvline(0, color="grey", linewidth=0.8)
rows = {
    name + (" †" if name in UNCHECKED else ""): list(over_kd(name).values())
    for name in ROWS
}
colours = {row: COLOURS[row.removesuffix(" †")] for row in rows}
dots(panel, rows, {}, colours=colours)
for place, values in enumerate(rows.values()):
    panel.plot(np.median(values), place, "|", color="grey", markersize=15, mew=1.6)
for name, colour in dict(KIND.values()).items():
    panel.plot([], [], "o", color=colour, alpha=0.6, label=name)
panel.legend(loc="lower left", fontsize=8)
panel.set_xlabel("published accuracy minus published KD of the same pair (points)")
show(
    figure,
    label="published",
    caption=f"The published table as differences to KD: one dot per pair, the stroke their median. The light band is what two single runs of one and "
    f"the same method differ by ({by_chance_of[1]:.2f} points in 95 of 100 cases, from the {len(deviations)} deviations that DIST's authors print), the dark one what two "
    f"means of five runs do ({by_chance_of[5]:.2f}). † copied from a later source, not read by us.",
    alt="Rows of dots, one row per method, one dot per pair: published accuracy minus that of KD, with two grey bands about zero.",
)

# %% tags=["hide-input"]
inside = {
    runs: np.mean(
        [
            abs(gap) < by_chance_of[runs]
            for name in ROWS
            for gap in over_kd(name).values()
        ]
    )
    for runs in (1, 5)
}
NEWEST = ["CTKD", "DIST", "DKD", "KD (standardised)"]
differences = [
    abs(METHODS[a]["accuracy"][pair] - METHODS[b]["accuracy"][pair])
    for i, a in enumerate(NEWEST)
    for b in NEWEST[i + 1 :]
    for pair in FAMILY
    if pair in METHODS[a]["accuracy"] and pair in METHODS[b]["accuracy"]
]
differences = np.array(differences)
cells = np.array(
    [
        [METHODS[name]["accuracy"][pair] for pair in FAMILY]
        for name in METHODS
        if name not in ("teacher", "DIST")
    ]
)
display(
    Markdown(
        f"Deviation of the means of {cells.shape[1]} pairs of one family: {cells.mean(0).std(ddof=1):.2f} points; of the means of {cells.shape[0]} rows (without DIST, which lacks pairs): {cells.mean(1).std(ddof=1):.2f}."
    )
)
display(
    Markdown(
        f"Differences to KD inside the light band: {inside[1]:.0%}; inside the dark one: {inside[5]:.0%}."
    )
)
lowest = {name: min(over_kd(name), key=over_kd(name).get) for name in ROWS}
display(
    Markdown(
        "The lowest cell of each row: "
        + ", ".join(
            f"{name} {over_kd(name)[pair]:+.2f} ({PAIRS[pair]})"
            for name, pair in lowest.items()
        )
    )
)
display(
    Markdown(
        f"Differences among the four newest rows in the pairs of one family, {len(differences)} of them: {np.mean(differences < by_chance_of[1]):.0%} inside the light band, "
        f"{np.mean(differences < by_chance_of[5]):.0%} inside the dark one."
    )
)

# %% [markdown]
# The rows are from Hinton et al. {cite}`hinton2015distilling` (KD), Romero et al. {cite}`romero2015fitnets` (FitNet),
# Zagoruyko and Komodakis {cite}`zagoruyko2017paying` (AT), Park et al. {cite}`park2019relational` (RKD), Tian et al.
# {cite}`tian2020contrastive` (CRD, whose table all earlier rows are taken from), Li et al. {cite}`li2023curriculum`
# (CTKD), Huang et al. {cite}`huang2022knowledge` (DIST), Zhao et al. {cite}`zhao2022decoupled` (DKD) and Sun et al.
# {cite}`sun2024logit` (standardised logits). As a rule a later paper ran its own method and copied the rest.

# %% [markdown]
# ## The recipe and the weights
#
# A row is a method, a weight for each of its terms, and a way to train. The last is that of Tian et al.'s table {cite}`tian2020contrastive`; it is the default of
# `Recipe`. The file of published facts and the code must say the same.

# %%
recipe = asdict(Recipe())
stated = {key: value for key, value in published["recipe"].items() if key in recipe}
for key, value in stated.items():
    assert recipe[key] == (tuple(value) if isinstance(value, list) else value), key

# %% tags=["hide-input"]
slow = plans.published_recipe("mobilenet_v2").learning_rate
assert slow == published["recipe"]["learning_rate_mobile"]
table(
    ["setting", "value"],
    [[key, value] for key, value in stated.items()],
    caption="The published recipe, in the names of Recipe.",
)

# %% [markdown]
# The weights are code, too: `plans.methods` returns the objectives of one pair. (DKD's weight of the wrong classes is set
# by pair by its authors; the plan does likewise. One row is not the published one to the letter: the hint's weight of 100 belongs to a regressor with a bias and a ReLU at its end,
# {doc}`08_hidden_states_and_attention` has it; the plans `table` and `small` have a convolution and normalisation in its place, the plan `grown` has both.) <!-- by definition -->

# %%
PAIR = "resnet56-resnet20"
other_weight = {f"{a}-{b}": weight for a, b, weight in plans.PAIRS}[PAIR]
methods = plans.methods("resnet20", "resnet56", 50_000, other_weight)

# %% tags=["hide-input"]
weights = published["weights"]
assert methods["at"].weights[1] == weights["at"]["attention"]
assert methods["fitnet"].weights[1] == weights["fitnet"]["hint"]
assert list(methods["rkd"].weights[1:]) == [
    weights["rkd"]["distance"],
    weights["rkd"]["angle"],
]
assert (
    methods["crd"].weights[1]
    == methods["crd+kd"].weights[2]
    == weights["crd"]["contrast"]
)
assert methods["kd"].weights == (weights["kd"]["hard"], weights["kd"]["soft"])
assert methods["standardised"].weights == (
    weights["standardised"]["hard"],
    weights["standardised"]["soft"],
)
assert {weight for *_, weight in plans.PAIRS} == set(weights["dkd"]["others"])
assert set(PAIRS) == {f"{a}-{b}" for a, b, _ in plans.PAIRS}
table(
    ["arm", "objective"],
    [[arm, repr(objective)] for arm, objective in methods.items()],
    caption=f"The objectives of {PAIRS[PAIR]}, as code.",
)  # fmt: skip

# %% [markdown]
# Two things can be read off before anything is trained. The rows were not tuned alike: the earlier methods have
# one weight for all pairs, some of the later ones one for each pair. And the recipe trains on
# all 50,000 images and reports the test split: it does not say on what the weights were chosen. <!-- by definition -->
#
# ## Seeds, epochs, and what is picked
#
# Two numbers for one method differ because of the seed. A number can also be *picked*: the best of the epochs, the best of the
# runs. <!-- by definition --> What picking adds is a matter of arithmetic. Of $k$ independent numbers with the same mean and standard deviation $\sigma$,
# the largest is expected above the mean by at most $\sigma\sqrt{2\ln k}$, if they are normal; for thirty numbers it is about $2\sigma$, <!-- by definition --> though
# the method has not improved.
#
# On CIFAR-100 one cannot see how much of a picked number is luck, since its test images are all there are. On a task
# whose examples can be drawn at will, one can. Below, one and the same method, a small network on labels alone, is
# trained
# from several seeds under three schedules. After each epoch it is measured on small test sets, each of which plays the published
# split, and on a set many times as large, which plays the truth. Each small set then picks the epoch.

# %%
task = KnownPosterior.draw(
    superclasses=10, classes_each=5, dimensions=24, noise=1.0, seed=0
)
generator = torch.Generator().manual_seed(1)
train, truth, *tests = (
    task.sample(n, generator=generator) for n in (1_500, 10_000, 500, 500, 500, 500)
)
base = Recipe(epochs=epochs, batch_size=128, learning_rate=0.1, augment=False)
# of the training after which the published recipe lowers its rate
parts = (5 / 8, 3 / 4, 7 / 8)
schedules = {
    "step": replace(base, milestones=tuple(epochs * part for part in parts)),
    "cosine": replace(base, schedule="cosine"),
    "constant": replace(base, schedule="constant"),
}


def trained(recipe, seed):
    """Accuracy in points after each epoch: on each test set, then in truth."""
    torch.manual_seed(seed)
    network = mlp(24, task.num_classes).to(device)
    curve = []

    def after_epoch(entry):
        curve.append(
            [
                100
                * accuracy(
                    predict(network, part, batch_size=8_000, device=device), part.labels
                )
                for part in (*tests, truth)
            ]
        )

    fit(
        network,
        CrossEntropy(),
        train=train,
        recipe=replace(recipe, seed=seed),
        device=device,
        report=after_epoch,
    )
    return curve


curves = {
    name: np.array([trained(recipe, seed) for seed in seeds])
    for name, recipe in schedules.items()
}  # seeds, epochs, test sets and truth


# %%
def picking(curve):
    """Best epoch minus last, for the test set that picks and in truth: a value a seed,
    mean over test sets.
    """
    seen, true = (
        curve[:, :, :-1],
        np.broadcast_to(curve[:, :, -1:], curve[:, :, :-1].shape),
    )
    best = seen.argmax(1)[:, None]
    gains = [np.take_along_axis(of, best, 1)[:, 0] - of[:, -1] for of in (seen, true)]
    assert (gains[0] >= 0).all()  # the last epoch is among those picked from
    return [gain.mean(1) for gain in gains]


promised, kept = {}, {}
for name, curve in curves.items():
    promised[name], kept[name] = picking(curve)
ends = curves["step"][:, -1, [0, -1]]
best_run = ends[ends[:, 0].argmax()] - ends.mean(0)

# %% tags=["hide-input"]
figure, (left, right) = plt.subplots(
    1, 2, figsize=(8.2, 3.7), gridspec_kw={"width_ratios": [1, 1.1]}
)
SCHEDULE = dict(zip(curves, (BLUE, GREEN, ORANGE), strict=True))
for name, curve in curves.items():
    places = np.arange(1, epochs + 1)
    for run in curve[:, :, 0]:
        left.plot(places, run, color=SCHEDULE[name], linewidth=0.8, alpha=0.5)
    left.plot(
        places, curve[:, :, -1].mean(0), color=SCHEDULE[name], linewidth=2.2, label=name
    )
left.set(
    xlabel="epoch",
    ylabel="accuracy (%)",
    ylim=(curves["constant"][:, 3:].min() - 0.5, None),
    xlim=(3, None),
)
left.legend(loc="lower right", fontsize=8)
rows = {}
for name in curves:
    rows[f"{name}: on the test set"] = promised[name]
    rows[f"{name}: in truth"] = kept[name]
dots(
    right,
    rows,
    {name: mean_interval(values) for name, values in rows.items() if len(seeds) > 1},
    colours={row: SCHEDULE[row.split(":")[0]] for row in rows},
)
right.axvline(0, color="grey", linewidth=0.8)
right.set_xlabel("best epoch minus last epoch (points)")
show(
    figure,
    label="picking",
    caption=f"One method, three schedules, n = {len(seeds)}. Left: thin lines are runs as a test set of {len(tests[0]):,} examples sees them, thick lines the mean in truth ({len(truth):,} examples). Right: "
    f"the epoch that a test set picks, compared with the last one, by the same test set and in truth, each seed the mean over {len(tests)} such sets; {'mean and 95 % interval' if len(seeds) > 1 else 'one seed, no interval'}. The distance "
    "between the two rows of a schedule is luck.",
    alt="Left: accuracy by epoch of each run under three schedules, and the mean in truth. Right: the gain of the best epoch by schedule, on the test set and in truth, one dot per seed.",
)

# %% tags=["hide-input"]
luck = {name: promised[name] - kept[name] for name in curves}
falling = (luck["step"] + luck["cosine"]) / 2  # one value a seed
more = summary(luck["constant"] - falling)
display(
    table(
        ["", "on the test set", "in truth", "luck"],
        [
            [
                f"picked epoch, {name}",
                f"{promised[name].mean():+.2f}",
                f"{kept[name].mean():+.2f}",
                summary(luck[name]).bracketed("+.2f"),
            ]
            for name in curves
        ]
        + [
            [
                f"best of {len(seeds)} runs, step",
                f"{best_run[0]:+.2f}",
                f"{best_run[1]:+.2f}",
                f"{best_run[0] - best_run[1]:+.2f}",
            ]
        ],
        caption="What picking adds, in points: the picked epoch minus the last, and the best run minus their mean. Luck under the constant rate minus luck under the falling ones, paired by seed: "
        + f"{more:+.2f}"
        + ("." if more.n > 1 and more.excludes_zero else ", not told apart here."),
    )
)
LUCK = Quantity("luck", "points", 1, 2)
averaged_luck = "the picked epoch, averaged over schedules"
display(
    above(averaged_luck, 0.0, {averaged_luck: sum(luck.values()) / len(luck)}, LUCK)
)

# %% [markdown]
# A schedule that ends with a small learning rate should leave less to pick from, since its last epochs are nearly one
# network; whether our few seeds show that is said above. That is the cheap cure. The sound cure is to pick on a
# validation split, or not at all: our plans report the last epoch.
#
# ## How noisy the published numbers are
#
# Three sources say something about that, and each can be read where it was written. DIST's authors print deviations. With the code of standardised logits training logs are published, one run a pair, in which
# the best epoch and the last stand beside each other. <!-- by definition --> And a user of one method's own code reported what came out.

# %% tags=["hide-input"]
users, logs = published["noise"]["users"], published["noise"]["logs"]
picked_by = {name: np.array(values) for name, values in logs["best_minus_last"].items()}
log_gain = np.concatenate(list(picked_by.values()))
names = {row["arm"]: name for name, row in METHODS.items() if "arm" in row}
figure, panel = plt.subplots(figsize=(7.2, 3.9))
panel.axvline(0, color="grey", linewidth=0.8)
places = [pair for pair in PAIRS if pair in logs["best"]]
for place, pair in enumerate(places):
    told = METHODS["KD (standardised)"]["accuracy"][pair]
    last, best = logs["last"][pair] - told, logs["best"][pair] - told
    panel.plot([last, best], [place, place], color=BLUE, linewidth=1.2)
    panel.plot(
        [last],
        [place],
        "o",
        color=BLUE,
        mfc="none",
        label=None if place else "last epoch",
    )
    panel.plot([best], [place], "o", color=BLUE, label=None if place else "best epoch")
told = METHODS["DKD"]["accuracy"][users["pair"]]
panel.plot(
    np.array(users["found"]) - told,
    [len(places)] * len(users["found"]),
    "D",
    color=ORANGE,
    alpha=0.6,
    markersize=5,
    label="a user's run",
)
panel.set_yticks(
    range(len(places) + 1),
    [
        *(f"standardised, {PAIRS[pair]}" for pair in places),
        f"DKD, {PAIRS[users['pair']]}",
    ],
)
panel.invert_yaxis()
panel.grid(axis="y", visible=False)
panel.legend(fontsize=8)
panel.set_xlabel("test accuracy minus the published number of that pair (points)")
show(
    figure,
    label="reruns",
    caption=f"Published numbers (zero) and single runs beside them. Blue: the log that the authors of standardised logits publish with each of {len(places)} numbers, last epoch (hollow) and best (full). Orange: {len(users['found'])} runs of DKD by a user. "
    f"In {len(log_gain)} published logs the best epoch is {log_gain.mean():.2f} points above the last on average ({log_gain.min():.2f} to {log_gain.max():.2f}).",
    alt="Eleven rows: for ten pairs a hollow and a full dot joined by a line, last and best epoch of one run relative to the published number; for DKD five diamonds of a user's runs.",
)

# %% tags=["hide-input"]
found = mean_interval(users["found"])
best_over, last_over = (
    np.array(
        [
            logs[key][pair] - METHODS["KD (standardised)"]["accuracy"][pair]
            for pair in places
        ]
    )
    for key in ("best", "last")
)
display(
    Markdown(
        f"Deviation between runs, DIST: {DEVIATION:.2f} points (root mean square of {len(deviations)})."
    )
)
display(
    Markdown(
        f"Standardised logits, {len(places)} logs: best epoch minus the published number {best_over.mean():+.2f} on average, last epoch minus it {last_over.mean():+.2f}."
    )
)
display(
    Markdown(
        "Best minus last by method: "
        + ", ".join(
            f"{name} {values.mean():.2f} ({len(values)} logs)"
            for name, values in picked_by.items()
        )
    )
)
display(
    Markdown(
        f"DKD: published {told:.2f}, a user {found:.2f}; the authors answer that theirs lie between "
        f"{users['authors_range'][0]} and {users['authors_range'][1]}"
    )
)

# %% [markdown]
# DKD's authors say that theirs is [the best epoch, mean of five runs](https://github.com/megvii-research/mdistiller/issues/30), and those of standardised logits
# that theirs is [the best epoch, too](https://github.com/sunshangquan/logit-standardization-KD/issues/23), a practice that they took over; the
# table that they are compared with has the last epoch. (One cell of the row DKD, R110 → R20, is not among its authors' pairs and stands in the later paper.) The user's runs, and the authors' answer to them, are in [the same
# project's seventh issue](https://github.com/megvii-research/mdistiller/issues/7). The logs are [in the repository of standardised logits](https://github.com/sunshangquan/logit-standardization-KD/tree/master/logs).
#
# ### A table of equals
#
# Suppose that every method in a table were KD under another name. How often would one of them be better by a margin of
# some tenths of a point? The rows share one KD, so they are not independent; a simulation settles it.


# %%
def seems_better(methods, pairs, runs, margin, deviation=DEVIATION, tables=2_000):
    """In how many of the tables of equal methods one is ``margin`` above KD:
    in some pair, and in the mean over pairs.
    """
    draw = np.random.default_rng(0)
    cells = draw.normal(0, deviation / np.sqrt(runs), (tables, methods + 1, pairs))
    gaps = cells[:, 1:] - cells[:, :1]
    return (gaps > margin).any((1, 2)).mean(), (gaps.mean(2) > margin).any(1).mean()


# %% tags=["hide-input"]
whole = 9, len(FAMILY)
CASES = {
    "one method, one pair": (1, 1),
    "nine methods, one pair": (9, 1),
    f"nine methods, {len(FAMILY)} pairs": whole,
}
chances = {
    name: [seems_better(*case, n, margin)[0] for n in runs]
    for name, case in CASES.items()
}
averaged = [seems_better(*whole, n, margin)[1] for n in runs]

figure, panel = plt.subplots(figsize=(6.8, 3.3))
for name, colour in zip(chances, (SKY, BLUE, VERMILION), strict=True):
    panel.plot(runs, 100 * np.array(chances[name]), "o-", color=colour, label=name)
panel.plot(
    runs,
    100 * np.array(averaged),
    "o--",
    color=VERMILION,
    label="… in the mean over the pairs",
)
panel.set(
    xscale="log",
    xlabel="runs a cell",
    ylabel=f"tables with a gain of {margin:g} (%)",
    ylim=(-3, 103),
)
panel.set_xticks(runs, runs)
panel.minorticks_off()
panel.legend(fontsize=8)
show(
    figure,
    label="equals",
    caption=f"Tables in which every method is the same, for the {len(FAMILY)} pairs whose networks are of one family: how often some cell shows a gain over KD of {margin:g} points or more. Deviation between seeds "
    f"{DEVIATION:.2f} points, DIST's. With nine methods and all these pairs: "
    + ", ".join(
        f"{chance:.0%} (n = {n} a cell)"
        for n, chance in zip(runs, chances[list(CASES)[2]], strict=True)
    )
    + f". Of the {len(differences)} published differences among the four newest rows in these pairs {np.mean(differences < margin):.0%} are smaller than {margin:g}; their median is {np.median(differences):.2f}.",
    alt="Curves of the chance of a false gain by the number of runs, for three sizes of table, and for the mean over pairs.",
)

# %% [markdown]
# The dashed line is the mean over pairs: compare it with the others before you read a single cell.

# %% [markdown]
# ## Ours beside the published numbers
#
# The plan `table` trains every pair and method by the recipe above, five seeds, all 50,000 training images, last
# epoch. <!-- by definition --> For each seed all methods see the same batches and start from the same weights; in the records of the plan `small` below, those with projectors or memories of their own (FitNet, CRD, CRD + KD) started from others. This is how a column will be compared:
#
# - **Against the published number.** Ours has $n$ runs with mean $\bar x$ and deviation $s$. One more run of ours would
#   lie within $\bar x \pm t_{n-1}\, s\sqrt{1+1/n}$ in 95 of 100 cases. <!-- by definition --> A published number inside is *within noise*. (A mean of several runs would lie closer, so that the test is generous to it.) <!-- by definition -->
# - **Against KD.** One deviation is pooled over all methods of the column, and the intervals hold together (Dunnett's), so that none of them misses zero by chance in 95 of 100 columns. <!-- by definition --> If one contains zero, the two *cannot be told apart*, which does not make them equal: with few
#   seeds a true difference of some tenths of a point is mostly missed, as the last section computes.
# - **Cost.** Wall time relative to the student alone, and minutes more than alone for each point above it. <!-- by definition --> Students that
#   trained side by side in one process shared its clock; their column is left out.


# %% tags=["hide-input"]
def minutes(record):
    """Wall time of a run alone in its process; of others the clock says nothing."""
    alone = record.get("students_in_process", 1) == 1
    return record["seconds"] / 60 if alone and "seconds" in record else np.nan


def column(found, pair, prefix):
    """What the records say of each method of a pair, in the published order."""
    arms = {spec.arm for spec in found.specs}
    kd_here = METHODS["KD"]["accuracy"][pair]
    rows, runs = {}, {}
    for name, row in METHODS.items():
        arm = prefix + row.get("arm", "")
        if arm not in arms or not row.get("arm"):
            continue
        values = {seed: 100 * v for seed, v in found.values(arm).items()}
        if len(values) > 1:
            runs[name] = values
        kd = {seed: 100 * v for seed, v in found.values(f"{prefix}kd").items()}
        common = sorted(values.keys() & kd.keys()) if name != "KD" else []
        times = [m for m in found.values(arm, minutes).values() if np.isfinite(m)]
        rows[name] = {
            "arm": arm,
            "values": values,
            "mean": mean_interval(list(values.values())) if len(values) > 1 else None,
            "gaps": [values[seed] - kd[seed] for seed in common],
            "gap": None,
            "published": row["accuracy"].get(pair),
            "published gap": row["accuracy"][pair] - kd_here
            if pair in row["accuracy"]
            else None,
            "minutes": np.mean(times) if times else None,
            "diverged": found.diverged(arm),
        }
    if "KD" in runs and len(runs) > 1:
        for name, gap in against(runs, "KD").items():
            rows[name]["gap"] = gap
    return rows


# %%
def against_published(row):
    """Whether one more run of ours could have been the published number."""
    if row["published"] is None or row["mean"] is None:
        return "–"
    values = np.array(list(row["values"].values()))
    n = len(values)
    half = t.ppf(0.975, n - 1) * values.std(ddof=1) * np.sqrt(1 + 1 / n)
    gap = values.mean() - row["published"]
    return f"{gap:+.2f}, " + (
        "within noise" if abs(gap) <= half else "not within noise"
    )


# %% tags=["hide-input"]
def against_kd(row):
    """The direction, if one can be told beside the other comparisons of the column."""
    if row["gap"] is None:
        return "–"
    if not row["gap"].excludes_zero:
        return "cannot be told apart"
    return "above" if row["gap"].mean > 0 else "below"


# %% tags=["hide-input"]
def shown(rows):
    """Rows that have a number of ours; the arms that are not yet run."""
    return {n: r for n, r in rows.items() if r["values"]}, [
        n for n, r in rows.items() if not r["values"]
    ]


def column_figure(rows, label, where, same_scale):
    """Accuracy by seed, and differences to KD, with the published ones as diamonds."""
    here, missing = shown(rows)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(8.6, 0.36 * len(here) + 1.3), sharey=True
    )
    dots(
        left,
        {n: list(r["values"].values()) for n, r in here.items()},
        {n: r["mean"] for n, r in here.items()},
        reference={
            n: r["published"] for n, r in here.items() if same_scale and r["published"]
        },
        colours=COLOURS,
    )
    left.set_xlabel("test accuracy (%), last epoch")
    right.axvline(0, color="grey", linewidth=0.8)
    dots(
        right,
        {n: r["gaps"] for n, r in here.items()},
        {n: r["gap"] for n, r in here.items()},
        reference={
            n: r["published gap"]
            for n, r in here.items()
            if r["published gap"] is not None and n != "KD"
        },
        colours=COLOURS,
    )
    right.set_xlabel("minus KD (points); dots by seed")
    counts = sorted({len(r["values"]) for r in here.values()})
    seeds = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    tested = sum(r["gap"] is not None for r in here.values())
    return show(
        figure,
        label=label,
        caption=f"{where}: one dot per run, {seeds} seeds; on the left mean and 95 % interval of each method. Diamonds: published"
        + (
            ". "
            if same_scale
            else f" differences, of larger networks that saw {longer:.0f} times as many images. "
        )
        + f"On the right {tested} comparison{'s' * (tested != 1)} with KD, whose 95 % intervals hold together (Dunnett; one deviation for all methods)."
        + (f" Not yet run: {', '.join(missing)}." if missing else ""),
        alt="Left: accuracy of each method by seed with intervals. Right: differences to KD with intervals, and diamonds for the published differences.",
    )


def column_table(rows, caption, same_scale):
    """One line per method, with the verdict on each cell."""
    alone = rows["student alone"]
    timed = any(row["minutes"] for row in rows.values())
    lines = []
    for name, row in rows.items():
        line = [name, "–" if row["published"] is None else f"{row['published']:.2f}"]
        if row["mean"] is None:
            only = ", ".join(f"{v:.2f}" for v in row["values"].values())
            line.append(f"{only or 'not yet run'}" + (" (one run)" if only else ""))
        else:
            i = row["mean"]
            line.append(f"{i.mean:.2f} [{i.low:.2f}, {i.high:.2f}]")
        if row["diverged"]:
            line[-1] += f"; {row['diverged']} diverged"
        if same_scale:
            line.append(against_published(row))
        g = row["gap"]
        line.append(
            "–" if g is None else f"{g.mean:+.2f} [{g.low:+.2f}, {g.high:+.2f}]"
        )
        line.append(against_kd(row))
        cost = "–"
        if row["minutes"] and alone["minutes"]:
            cost = f"{row['minutes'] / alone['minutes']:.2f}"
            if row["mean"] and alone["mean"] and name != "student alone":
                won = row["mean"].mean - alone["mean"].mean
                more = row["minutes"] - alone["minutes"]
                cost += f"; {max(more, 0) / won:.1f}" if won > 0.1 else "; no gain"
        lines.append([*line, cost] if timed else line)
    head = ["", "published", "ours"]
    head += ["ours − published"] if same_scale else []
    head += ["ours − KD", "against KD"]
    head += ["time; minutes a point"] if timed else []
    return table(head, lines, caption=caption)


# %% tags=["hide-input"]
full = results("table")
waiting = []
for pair, name in PAIRS.items():
    rows = column(full, pair, f"{pair}-")
    if sum(row["gap"] is not None for row in rows.values()) == 0:
        waiting.append(name)
        continue
    arms = [row["arm"] for row in rows.values()]
    display(
        source_note(full.all(arms)),
        column_figure(rows, f"table-{pair}", name, True),
        column_table(
            rows, f"{name}, by the published recipe: mean and 95 % interval.", True
        ),
    )
if full.missing:
    display(
        not_yet_run(
            f"{full.missing} of {len(full.specs)} runs of the published table; of {len(waiting)} of {len(PAIRS)} pairs there is nothing to show yet. Each "
            f"run is {Recipe().epochs} epochs of 50,000 images on a GPU; the runner takes the first pair whole, then the next, and may be stopped at any time",
            full.command,
        )
    )

# %% [markdown]
# ## The same methods at the scale of a CPU
#
# What two CPU cores can do in hours is another scale: a ResNet-20 teaches a ResNet-8, a few epochs, 45,000 images, three
# seeds. The methods and weights are those of the column R56 → R20, FitNet with the projector described above. Nothing
# says that the order of that column must come out: the student is smaller, the training is short, the weights were
# made for long training, and **all methods have one learning rate, which was tuned for none of them**. So an order
# found here is one of early learning at that rate.
#
# %% tags=["hide-input"]
small = results("small")
ours = column(small, PAIR, "")
arms = [row["arm"] for row in ours.values()]
compared = [name for name, row in ours.items() if row["gap"] is not None]
recorded = small.all(arms)
brief = next(spec.recipe for spec in small.specs if spec.study == "small")
longer = Recipe().epochs * 50_000 / (brief.epochs * 45_000)
expected = sum(spec.arm in arms for spec in small.specs)
if len(recorded) < expected:
    display(
        not_yet_run(
            f"{expected - len(recorded)} of {expected} runs of these ten arms at the small scale",
            small.command,
        )
    )
if compared:
    display(
        source_note(recorded),
        column_figure(ours, "small", "ResNet-20 → ResNet-8", False),
        column_table(
            ours,
            f"ResNet-20 → ResNet-8, beside the published column {PAIRS[PAIR]}; mean and 95 % interval.",
            False,
        ),
    )
    separate = [n for n in compared if ours[n]["gap"].excludes_zero]
    display(
        Markdown(
            f"{conditions(small)}. {len(compared)} arms compared with KD, labels alone among them; intervals that miss zero, together: {', '.join(separate) or 'none'}."
        )
    )
    signs = [
        np.sign(ours[n]["gap"].mean) == np.sign(ours[n]["published gap"])
        for n in compared
    ]
    display(Markdown(f"On the published side of KD: {sum(signs)} of {len(signs)}."))
    if len(compared) == 9:
        ARMS = {row["arm"]: name for name, row in ours.items()}
        display(
            leads(
                "dist",
                small,
                among=Among("labels alone and the nine methods", ARMS),
                names=ARMS,
            ),
            above("kd", "alone", small, names=ARMS),
            above("kd", ["at", "rkd", "crd"], small, names=ARMS),
        )

# %% [markdown]
# ### One learning rate for all
#
# A step of gradient descent is as long as the gradient times the rate. How long are the gradients of these objectives? The stored distilled student of this plan (`kd`, seed 0) is asked, on batches of its training images:
# each objective's gradient with respect to the student's weights, relative to that of labels alone. Projectors and memories are as first drawn, so CRD's and FitNet's gradients are those at the start of a training.


# %%
def pulls(objectives, student, teacher, batches):
    """Length of each objective's gradient with respect to the student's weights, mean over batches;
    one forward pass of student and teacher serves all objectives.
    """
    started = {}
    for name, objective in objectives.items():
        torch.manual_seed(0)
        started[name] = objective.fresh().train().to(device)
    layers = [
        sorted({layer for o in started.values() for layer in getattr(o, which)})
        for which in ("student_layers", "teacher_layers")
    ]
    looks, parameters = (
        (Taps(student, layers[0]), Taps(teacher, layers[1])),
        list(student.parameters()),
    )
    lengths = {name: [] for name in started}
    for inputs, labels, index in (
        [part.to(device) for part in batch] for batch in batches
    ):
        seen = {"labels": labels, "index": index, "progress": 0.5}
        seen["student_logits"], seen["student_hidden"] = looks[0](inputs)
        with torch.no_grad():
            seen["teacher_logits"], seen["teacher_hidden"] = looks[1](inputs)
        for name, objective in started.items():
            gradients = torch.autograd.grad(
                objective(**seen)[0], parameters, retain_graph=True
            )
            lengths[name].append(
                torch.sqrt(sum(g.square().sum() for g in gradients)).item()
            )
    return {name: np.mean(each) for name, each in lengths.items()}


# %% tags=["hide-input"]
of_kd = next(spec for spec in small.specs if spec.arm == "kd")
learned = (
    None
    if data.fallback
    else stored_student(of_kd, evidence_folder(), data.num_classes)
)
if learned is not None:
    teacher = book_teacher(data, device=device).eval()
    few = list(data.train[torch.arange(min(images, len(data.train)))].batches(128))
    by_arm = {spec.arm: spec.objective for spec in small.specs}
    objectives = {name: by_arm[row["arm"]] for name, row in ours.items()}
    lengths = pulls(objectives, learned.to(device).train(), teacher, few)
    relative = {
        name: length / lengths["student alone"] for name, length in lengths.items()
    }

if learned is not None and len(compared) == 9:
    here = {name: ours[name]["mean"].mean for name in relative}
    column_of = {
        name: ours[name]["published"] for name in relative if ours[name]["published"]
    }
    figure, panel = plt.subplots(figsize=(6.4, 3.6))
    for name, length in relative.items():
        panel.semilogx(length, here[name], "o", color=COLOURS[name])
        panel.annotate(
            name, (length, here[name]), (5, 3), textcoords="offset points", fontsize=8
        )
    panel.set(
        xlabel="length of the gradient, labels alone = 1",
        ylabel="test accuracy (%), ours",
    )
    by_length = spearmanr(list(relative.values()), list(here.values()))
    display(
        show(
            figure,
            label="pull",
            caption=f"Test accuracy of labels alone and nine methods ({conditions(small)}) against the length of their gradient at one student, which was trained by KD, on {min(images, len(data.train))} images. Rank correlation {by_length.statistic:+.2f} (p = {by_length.pvalue:.2g}); "
            f"of our accuracy with the published column {spearmanr(list(column_of.values()), [here[n] for n in column_of]).statistic:+.2f}.",
            alt="Ten points: the mean test accuracy of each method against the length of its gradient, on a logarithmic axis.",
        ),
        source_note(small.all([ours[name]["arm"] for name in relative])),
    )
    display(
        Markdown(
            "Relative length: "
            + ", ".join(f"{name} {value:.1f}" for name, value in relative.items())
        )
    )
    display(
        Markdown(
            f"The longest over the shortest: {max(relative.values()) / min(relative.values()):.0f}"
        )
    )

# %% [markdown]
# One student at one moment is no proof of a cause, and this one has been trained with KD, so that the gradient of KD is that of a student which has followed it. But where steps differ so much in length and all methods share one rate, a comparison cannot tell an objective from its rate. It needs a rate for each method, chosen in the same number of tries.

# %% [markdown]
# ### With a rate of its own, and to the end
#
# That is the plan *grown*: each method has as many tries, on the learning rate first and the weight of what the teacher says second, by a short training and a longer one of the best, on the validation split and with a seed of its own. Then five methods learn for several lengths, each a whole schedule, with that rate and with the published one; and all of them to the end, each with its own rate. <!-- by definition --> If an order is one of methods, it is the same at all lengths, and at both rates where both are run.

# %% tags=["hide-input"]
grown = results("grown")
GROWN = {
    "alone": "labels alone", "kd": "KD", "dkd": "DKD", "fitnet": "FitNet", "dist": "DIST",
    "standardised": "standardised", "at": "AT", "fitnet-regressor": "FitNet, regressor",
    "dist+fitnet": "DIST + FitNet", "crd+kd": "CRD + KD", "crd": "CRD", "rkd": "RKD",
    "smoothed": "smoothed labels", "permuted": "KD, permuted", "spread": "KD, spread",
}  # fmt: skip
SERIES = {"own": "rate of its own", "published": "published rate"}


def recorded_lengths(rate):
    """The lengths at which all five methods are recorded."""
    lengths = (5, 15) if rate == "published" else (5, 15, EPOCHS)
    return [
        e
        for e in lengths
        if grown.complete([arm_name(m, e, rate) for m in LENGTHS_ASKED], at_least=3)
    ]


lengths_of = {rate: recorded_lengths(rate) for rate in SERIES}
if any(lengths_of.values()):
    figure, panels = plt.subplots(1, 2, figsize=(8.6, 3.4), sharey=True)
    hues = dict(zip(LENGTHS_ASKED, (PURPLE, BLUE, SKY, GREEN, VERMILION), strict=True))
    shown_arms, orders = [], {}
    for panel, (rate, titled) in zip(panels, SERIES.items(), strict=True):
        for method in LENGTHS_ASKED:
            arms_of = [arm_name(method, e, rate) for e in lengths_of[rate]]
            shown_arms += arms_of
            at_lengths = {
                e: grown.values(arm).values()
                for e, arm in zip(lengths_of[rate], arms_of, strict=True)
            }
            runs_along(
                panel, at_lengths, colour=hues[method], label=GROWN[method], factor=100
            )
        for e in lengths_of[rate]:
            best_first = sorted(
                LENGTHS_ASKED, key=lambda m: -grown.mean(arm_name(m, e, rate)).mean
            )
            orders[f"{e} epochs, {titled}"] = best_first
        panel.set(xscale="log", xlabel="epochs", title=titled)
        panel.set_xticks(
            lengths_of[rate] or [5], [str(e) for e in lengths_of[rate] or [5]]
        )
        panel.minorticks_off()
    panels[0].set_ylabel("test accuracy (%)")
    panels[0].legend(fontsize="x-small")
    display(
        show(
            figure,
            label="lengths",
            caption=f"Five methods by the length of their training; each run and the mean. {conditions(grown)}; at the published rate the weights are the published ones, too.",
            alt="Two panels of rising curves. Best first: "
            + "; ".join(
                f"{when}: {', '.join(GROWN[m] for m in order)}"
                for when, order in orders.items()
            )
            + ".",
        ),
        table(
            ["", *(str(place) for place in range(1, len(LENGTHS_ASKED) + 1))],
            [[when, *(GROWN[m] for m in order)] for when, order in orders.items()],
            caption="The order of the five by mean accuracy, best first. What is told apart, the statements say.",
        ),
        source_note(grown.all(shown_arms)),
    )
else:
    display(
        not_yet_run(
            "five methods at three lengths, with rates of their own and the published one",
            grown.command,
        )
    )

# %% tags=["hide-input"]
if EPOCHS in lengths_of["own"]:
    five = {arm_name(m, EPOCHS): f"{GROWN[m]} ({EPOCHS} epochs)" for m in LENGTHS_ASKED}
    of_five = Among("the five, to the end and with rates of their own", five)
    display(leads(arm_name("dist", EPOCHS), grown, among=of_five, names=five))
    if 5 in lengths_of["published"]:
        young = {
            arm_name(m, 5, "published"): f"{GROWN[m]} (5 epochs)" for m in LENGTHS_ASKED
        }
        display(
            leads(
                arm_name("dist", 5, "published"),
                grown,
                among=Among("the five after 5 epochs at the published rate", young),
                names=young,
            )
        )

# %% [markdown]
# Claim C8 is about the order itself. Take every pair of the five under every one of these conditions, and ask which of the two is ahead: with intervals that hold together over all pairs and conditions (Bonferroni). If a pair that is told apart under one condition is told apart the other way round under another, the order is not one of methods. If every pair is told apart at the end, and stands the same under every condition, it is. <!-- by definition -->


# %% tags=["hide-input"]
def ahead_under(rate, epochs, level):
    """The pairs of methods, the first of which is ahead."""
    values = {m: grown.values(arm_name(m, epochs, rate)) for m in LENGTHS_ASKED}
    return {
        (one, other)
        for other in LENGTHS_ASKED
        for one, gap in against(values, other, correction=None, level=level).items()
        if gap.low > 0
    }


asked_at = {"own": [5, 15, EPOCHS], "published": [5, 15]}
if lengths_of == asked_at:
    under_which = {
        f"{e} epochs, {SERIES[rate]}": (rate, e)
        for rate, es in asked_at.items()
        for e in es
    }
    pairs = len(LENGTHS_ASKED) * (len(LENGTHS_ASKED) - 1) // 2
    level = 1 - 0.05 / (pairs * len(under_which))
    ahead = {name: ahead_under(*how, level) for name, how in under_which.items()}
    turned = {
        frozenset(pair): (pair, one, other)
        for one, found in ahead.items()
        for pair in sorted(found)
        for other in ahead
        if pair[::-1] in ahead[other]
    }
    at_the_end = ahead[f"{EPOCHS} epochs, {SERIES['own']}"]
    stands = len(at_the_end) == pairs and all(
        at_the_end <= found for found in ahead.values()
    )
    asked_arms = [
        arm_name(m, e, rate) for rate, e in under_which.values() for m in LENGTHS_ASKED
    ]
    fewest = min(len(grown.values(arm)) for arm in asked_arms)
    display(
        verdict(
            "C8",
            "refuted" if turned else "verified" if stands else "not decided",
            (
                f"Of the {pairs} pairs of five methods {len(turned)} are told apart one way under one condition and the other way round under another: "
                + "; ".join(
                    f"{GROWN[pair[0]]} is ahead of {GROWN[pair[1]]} after {one}, and behind it after {other}"
                    for pair, one, other in turned.values()
                )
                + "."
                if turned
                else f"Of the {pairs} pairs of five methods none is told apart one way under one condition and the other way round under another; "
                f"of the {len(at_the_end)} that are told apart at the end {len(set.intersection(*ahead.values()) & at_the_end)} are so under every condition."
            )
            + f" {conditions(grown.renamed({a: a for a in asked_arms}))}, or the published rate; intervals over {pairs} pairs and {len(ahead)} conditions hold together (Bonferroni); n = {fewest} or more of each.",
        )
    )  # fmt: skip
else:
    display(
        not_yet_run(
            "the verdict on C8: all five at 5, 15 and 60 epochs, and at the published rate at 5 and 15",
            grown.command,
        )
    )

# %% tags=["hide-input"]
to_the_end = {arm_name(m, EPOCHS): said for m, said in GROWN.items()}
if grown.complete(list(to_the_end), at_least=3):
    ACCURACY = QUANTITIES["accuracy"]
    display(
        arms_shown(
            grown, to_the_end, {"test accuracy, %": ACCURACY}, label="to-the-end",
            caption=f"All methods and two controls after {EPOCHS} epochs: each seed, mean and 95 % interval. {conditions(grown)}.",
            lines={"test accuracy, %": grown.mean(arm_name("alone", EPOCHS)).mean},
        ),
        source_note(grown.all(to_the_end)),
    )  # fmt: skip
else:
    known = [arm for arm in to_the_end if arm in {spec.arm for spec in grown.specs}]
    done = sum(grown.complete([arm], at_least=3) for arm in known)
    display(
        not_yet_run(
            f"{done} of {len(to_the_end)} methods and controls are recorded after {EPOCHS} epochs",
            grown.command,
        )
    )

# %% [markdown]
# ### Does the order survive?
#
# Spearman's rank correlation between the published column and ours, seed by seed. It has a ceiling: our own seeds need
# not order the methods alike. So beside it stands the same correlation between one of our seeds and the mean of the
# others. If the first is as large as the second, the published order has survived as far as our noise lets one see. The values of the second share
# their runs, so they are shown as they are, without an interval.


# %% tags=["hide-input"]
ranked = [name for name, row in ours.items() if row["values"] and row["published"]]
common = (
    sorted(set.intersection(*(set(ours[n]["values"]) for n in ranked)))
    if ranked
    else []
)
enough = len(ranked) >= 5 and len(common) >= 2
if enough:
    theirs = np.array([ours[n]["published"] for n in ranked])
    values = np.array([[ours[n]["values"][seed] for n in ranked] for seed in common])
    with_table = [spearmanr(theirs, row).statistic for row in values]
    with_others = [
        spearmanr(values[i], np.delete(values, i, 0).mean(0)).statistic
        for i in range(len(values))
    ]
    overall = spearmanr(theirs, values.mean(0)).statistic
    shuffle = np.random.default_rng(0)
    ranks = rankdata(theirs)
    by_chance = [
        spearmanr(shuffle.permutation(ranks), values.mean(0)).statistic
        for _ in range(2_000)
    ]
    chance = np.sum(np.abs(by_chance) >= abs(overall) - 1e-12)
    taught = [place for place, name in enumerate(ranked) if name != "student alone"]
    without_alone = spearmanr(theirs[taught], values.mean(0)[taught])

if enough:
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.6))
    places = {
        "published": rankdata(-theirs, "ordinal"),
        "ours": rankdata(-values.mean(0), "ordinal"),
    }
    for name, before, after in zip(ranked, *places.values(), strict=True):
        left.plot([0, 1], [before, after], "o-", color=COLOURS[name])
        left.text(-0.06, before, name, ha="right", va="center", fontsize=8)
        left.text(1.06, after, name, ha="left", va="center", fontsize=8)
    left.set(xlim=(-1.1, 2.1), ylim=(len(ranked) + 0.5, 0.5), yticks=[])
    left.set_xticks([0, 1], [f"published,\n{PAIRS[PAIR]}", "ours,\nR20 → R8"])
    left.grid(visible=False)
    left.spines[["left", "bottom"]].set_visible(False)
    left.tick_params(length=0)
    rows = {"published order": with_table, "mean of our other seeds": with_others}
    dots(right, rows, {})
    right.axvline(0, color="grey", linewidth=0.8)
    right.set(xlabel="rank correlation of a seed with …", xlim=(-1.05, 1.05))
    display(
        show(
            figure,
            label="order",
            caption=f"Left: {len(ranked)} methods from best to worst, published and in the mean of our {len(common)} seeds. Right: rank correlation of each of our "
            f"seeds with the published order, and with our own other seeds. Of the mean over seeds with the published order: {overall:+.2f} "
            f"(as far from zero in {chance} of {len(by_chance):,} random orders); without the student alone {without_alone.statistic:+.2f} (p = {without_alone.pvalue:.2g}). {conditions(small)}.",
            alt="Left: lines from each method's published place to its place in ours. Right: rank correlations of each seed with the published order and with the other seeds.",
        ),
        source_note(small.all([ours[name]["arm"] for name in ranked])),
    )
    for name, found in rows.items():
        each = ", ".join(f"{value:+.2f}" for value in found)
        display(
            Markdown(
                f"Rank correlation with the {name}: {np.mean(found):+.2f} on average; by seed {each}."
            )
        )
else:
    display(
        not_yet_run(
            f"the rank correlation: it takes five methods with two seeds each, there are {len(ranked)} with {len(common)} common seeds",
            small.command,
        )
    )

# %% [markdown]
# ## The best epoch, in our own curves
#
# Every record has the validation accuracy after each epoch, on images that nobody trained on, half as many as the test images of the published logs. <!-- by definition --> The best of them minus the
# last is what picking the epoch would have added to our numbers. <!-- by definition --> Our recorded schedules are cosines that end at zero.

# %% tags=["hide-input"]
first = results("first-distillation-cpu")
teachers = [
    r for s in first.specs if s.study == "teacher" and (r := first.records.get(s.hash))
]


def best_minus_last(records):
    """In points, one value a run."""
    curves = [
        np.array(r["epochs"]["validation.accuracy"]) for r in records if r["test"]
    ]
    return [100 * (curve.max() - curve[-1]) for curve in curves]


held = results("table-held-out")


def students(found):
    """The records of a plan's students."""
    specs = [spec for spec in found.specs if spec.study != "teacher"]
    return [found.records[spec.hash] for spec in specs if spec.hash in found.records]


groups = {
    "teacher": teachers,
    "chapter 6": students(first),
    "plan small": students(small),
    "plan table-held-out": students(held),
}
picked = {name: best_minus_last(group) for name, group in groups.items() if group}
picked = {
    f"{name}, {len(groups[name][0]['epochs']['epoch'])} epochs, {groups[name][0]['recipe']['schedule']}": values
    for name, values in picked.items()
}
if picked:
    figure, panel = plt.subplots(figsize=(7.2, 0.42 * len(picked) + 1.5))
    panel.axvspan(
        log_gain.min(), log_gain.max(), color=VERMILION, alpha=0.12, linewidth=0
    )
    panel.axvline(log_gain.mean(), color=VERMILION, linewidth=1.4)
    dots(
        panel,
        picked,
        {n: mean_interval(v) for n, v in picked.items() if len(v) > 1},
    )
    panel.set_xlabel("best epoch minus last epoch (points)")
    display(
        source_note([record for group in groups.values() for record in group]),
        show(
            figure,
            label="best-epoch",
            caption=f"What picking the best epoch adds: our runs on the validation split, one dot per run ({', '.join(f'{len(v)}' for v in picked.values())} runs). The coloured line and band are mean "
            f"and range of {len(log_gain)} published logs of the step schedule, on the test split of twice as many images: {log_gain.mean():.2f}, {log_gain.min():.2f} to {log_gain.max():.2f}.",
            alt="Rows of dots, one row per group of our runs: best minus last epoch, with a line and a band for the published logs.",
        ),
    )
    everything = [value for values in picked.values() for value in values]
    display(
        Markdown(
            f"{len(everything)} runs: {np.mean(everything):.2f} points on average, {np.mean(np.array(everything) == 0):.0%} have their best epoch last, "
            f"the largest is {max(everything):.2f}."
        )
    )
else:
    display(not_yet_run("the curves of any recorded run", small.command))

# %% [markdown]
# A short training may still improve in its last epoch, which alone keeps the best epoch at the end; so this is no proof that
# a cosine cures it at 240 epochs. The plan `table-held-out` measures that with the published schedule.
#
# ## How many seeds?
#
# Let $\sigma_d$ be the deviation between seeds of a *paired* difference. How many pairs does it take for a true
# difference of size `margin` to be found (its 95 % interval misses zero) in 80 of 100 studies? The statistic of a
# paired test
# has a noncentral $t$ distribution, so the answer is a small search.


# %%
def power(seeds, difference, deviation):
    """The chance that a paired two-sided t-test at 5 % sees a true difference."""
    critical = t.ppf(0.975, seeds - 1)
    shift = difference / deviation * np.sqrt(seeds)
    return nct.sf(critical, seeds - 1, shift) + nct.cdf(-critical, seeds - 1, shift)


def seeds_needed(difference, deviation, wanted=0.8):
    """The fewest paired seeds with that power."""
    return next(
        n for n in range(2, 10_000) if power(n, difference, deviation) >= wanted
    )


# %% tags=["hide-input"]
# A check against simulation.
noise = 0.75 * margin
draws = np.random.default_rng(0).normal(margin, noise, (20_000, 5))
simulated = np.mean(ttest_1samp(draws, 0, axis=1).pvalue < 0.05)
assert abs(simulated - power(5, margin, noise)) < 0.015

# %% tags=["hide-input"]
# What our own records say of σ and of σ_d, beside the published: arms by seeds.
arms6 = ("alone", "kd", "permuted")
matrices = {
    "chapter 6": [list(first.values(a).values()) for a in arms6],
    "plan small": [list(small.values(row["arm"]).values()) for row in ours.values()],
}


def with_interval(squares, freedom):
    """A deviation and its 95 % interval by chi-squared."""
    low, high = (np.sqrt(squares / chi2.ppf(q, freedom)) for q in (0.975, 0.025))
    return np.sqrt(squares / freedom), low, high, freedom


estimates = {"DIST's, unpaired": (np.sqrt(2) * DEVIATION, None, None, None)}
lines = [[next(iter(estimates)), f"{DEVIATION:.2f}", f"{np.sqrt(2) * DEVIATION:.2f}"]]
for name, runs_of in matrices.items():
    if len({len(row) for row in runs_of}) == 1 and len(runs_of[0]) > 1:
        x = 100 * np.array(runs_of)
        k, n = x.shape
        inside_arms = x - x.mean(1, keepdims=True)
        rest = inside_arms - x.mean(0) + x.mean()
        one = with_interval((inside_arms**2).sum(), k * (n - 1))
        for word, (deviation, low, high, freedom) in (
            ("unpaired", one),
            ("paired", with_interval((rest**2).sum(), (k - 1) * (n - 1))),
        ):
            estimates[f"{name}, {word}"] = both = tuple(
                np.sqrt(2) * v for v in (deviation, low, high)
            ) + (freedom,)
            lines.append(
                [
                    f"{name}, {word}",
                    f"{deviation:.2f} [{low:.2f}, {high:.2f}]",
                    f"{both[0]:.2f} [{both[1]:.2f}, {both[2]:.2f}]",
                ]
            )
for line, (deviation, low, high, _) in zip(lines, estimates.values(), strict=True):
    for difference in (margin, margin / 2):
        n = f"{seeds_needed(difference, deviation)}"
        if low is not None:
            n += f" [{seeds_needed(difference, low)}, {seeds_needed(difference, high)}]"
        line.append(n)

figure, panel = plt.subplots(figsize=(6.8, 3.3))
grid = np.arange(2, 31)
for (name, (deviation, low, high, _)), colour in zip(
    estimates.items(), (VERMILION, SKY, BLUE, GREEN, PURPLE), strict=False
):
    panel.plot(
        grid,
        [100 * power(n, margin, deviation) for n in grid],
        color=colour,
        label=name,
    )
    if low is not None:
        panel.fill_between(
            grid,
            [100 * power(n, margin, high) for n in grid],
            [100 * power(n, margin, low) for n in grid],
            color=colour,
            alpha=0.15,
            linewidth=0,
        )
panel.axhline(80, color="grey", linewidth=0.8, linestyle=":")
for n in (3, 5):
    panel.axvline(n, color="grey", linewidth=0.8, alpha=0.5)
panel.set(
    xlabel="seeds of each method",
    ylabel=f"chance to see {margin:g} points (%)",
    ylim=(0, 102),
)
panel.legend(fontsize=8, loc="lower right")
display(
    show(
        figure,
        label="power",
        caption=f"Power of a paired comparison for a true difference of {margin:g} points; bands from the 95 % interval of each estimated deviation. "
        "Upright lines: three and five seeds. Dotted: 80 %.",
        alt="The chance to see a difference against the number of seeds, a curve for each estimate of the deviation.",
    ),
    *([source_note(used)] if (used := [*first.all(arms6), *recorded]) else []),
    table(
        [
            "deviation between seeds (points)",
            "of one method",
            "of a difference",
            f"seeds for {margin:g}",
            f"seeds for {margin / 2:g}",
        ],
        lines,
        caption="How many seeds of each method a t-test of the differences takes for 80 % power; in brackets from the 95 % interval of the deviation. Unpaired: the deviation within methods; paired: with what the seeds share taken out. Where the two are alike, pairing by seed is worth nothing.",
    ),
)
seen_by = "; ".join(
    f"{power(3, margin, deviation):.0%} and {power(5, margin, deviation):.0%} ({name})"
    for name, (deviation, *_) in estimates.items()
)
display(
    Markdown(
        f"Three and five seeds see a difference of {margin:g} points in this share of studies, by the deviation that is taken: {seen_by}."
    )
)

# %% tags=["hide-input"]
last_estimate = list(estimates)[-1]
seeds_dial(
    label="seeds",
    caption=f"Set a true difference, the deviation of a difference and the number of seeds. It starts at {margin:g} points and the deviation of {last_estimate}.",
    difference=margin,
    deviation=round(float(estimates[last_estimate][0]), 2),
)

# %% [markdown]
# To see whether pairing by seed helps, compare the two lines of one plan. Two students of one seed can soon differ by as much as any two, and then a paired difference of three seeds only has fewer degrees of freedom than one deviation pooled over all methods has.
# The search assumes that the deviation is estimated from the differences alone; a pooled one takes fewer seeds.

# %% tags=["hide-input"]
sentences = [
    f"Two single runs of one method differ by less than {by_chance_of[1]:.2f} points in 95 of 100 cases (DIST's deviations); {inside[1]:.0%} of the published differences to KD are smaller.",
    f"Picking the best epoch on a small test set changes accuracy by {promised['step'].mean():+.2f} points there, and by {kept['step'].mean():+.2f} in truth (step schedule, {epochs} epochs, n = {len(seeds)} seed{'s' * (len(seeds) > 1)}).",
]
if said := methods_found(small):
    sentences.append(said)
if full.missing:
    sentences.append(
        f"The table itself has not been run again: {full.missing} of its {len(full.specs)} runs are missing."
    )
findings.show(*sentences)

# %% [markdown]
# ## Limits
#
# - No verdict on the published table is given here until its own recipe has been run; the small scale is another experiment,
#   not a replication.
# - Seeds are one source of noise. The same 10,000 test images judge every method, which could tilt the picture for all
#   of them together, and one teacher teaches them all. <!-- by definition -->
# - The weights are taken as published and the learning rate as it was, neither tuned for our scale. A method that falls behind here may need another weight or rate;
#   chapter 14 tunes some weights with an equal budget.
# - Published deviations come from one paper. What ± means there is not said; we took it for the
#   standard deviation.
# - Wall time in a record depends on the machine and on what else ran there. What a step of each method costs is measured side by
#   side in chapter 15.
#
# ## To take away
#
# **Formulae.** The largest of $k$ numbers with deviation $\sigma$ is expected at most $\sigma\sqrt{2\ln k}$ above their mean. <!-- by definition --> Two means of $n$ runs differ by chance by less than $1.96\,\sigma\sqrt{2/n}$ in 95 of 100 cases. <!-- by definition --> One more run lies within $\bar x\pm t_{n-1}\,s\sqrt{1+1/n}$.
#
# **What to set.** `Recipe()` is the published recipe, and `plans.methods(student, teacher, …)` gives the published weights. `against(values, "kd")` compares many methods with one, `power(…)` above says how many seeds a margin takes.
#
# **What to watch for.** Report the last epoch, or pick on a validation split. Give each method a learning rate of its own, chosen in as many tries. Read the mean over pairs before a single cell.
#
# ## Exercises
#
# ```{exercise}
# :label: ex-best-of-epochs
#
# After the last drop of the learning rate, the published recipe trains for 30 more epochs. Suppose that the network no longer
# changes except for independent noise, of standard deviation 0.15 points, in each epoch's accuracy. What does reporting the best of these
# epochs add? Compare it with the mean of the published logs.
# ```
#
# ````{solution} ex-best-of-epochs
# :class: dropdown
#
# ```python
# print(np.random.default_rng(0).normal(0, 0.15, (10_000, 30)).max(1).mean())
# ```
#
# The expected maximum of 30 deviates is about twice their
# deviation: 0.31 points over their mean, and as much over the last of them, whose mean is zero. <!-- by definition --> The means of the logs, by method, stand
# under *How noisy the published numbers are*. Dependence between the epochs would take something off; those before the last drop add candidates.
# ````
#
# ```{exercise}
# :label: ex-two-noises
#
# A test set of $n$ images gives an accuracy $a$ a standard error of $\sqrt{a(1-a)/n}$. For 72 % and 10,000 images that is more
# than the deviation between seeds. Why do two methods not differ by as much?
# ```
#
# ```{solution} ex-two-noises
# :class: dropdown
#
# They are judged on the same images. Whatever both get right, or both wrong, cancels in
# the difference. Only images on which exactly one of the two is right count: if those are a fraction $d$ of the test set, the
# difference has a standard error of about $\sqrt{d/n}$. For $d = 0.15$ and $n = 10{,}000$ it is 0.39 points, where $\sqrt2$
# times 0.45 would be 0.64. <!-- by definition --> Seeds average this part only as far as they change which images are
# hard.
# ```
#
# ```{exercise}
# :label: ex-row-not-cell
#
# Use `seems_better` to find the margin that, with five runs a cell and nine equal methods over all pairs of one family, the *mean over the
# pairs* exceeds in one table of twenty. Then let the test sets of *Seeds, epochs, and what is picked* grow fourfold: what becomes of luck under the constant rate?
# ```
#
# ````{solution} ex-row-not-cell
# :class: dropdown
#
# ```python
# print(next(m for m in np.arange(0, 0.5, 0.01) if seems_better(*whole, 5, m)[1] <= 0.05))
# tests = [task.sample(4 * len(part), generator=generator) for part in tests]
# seen, true = picking(np.array([trained(schedules["constant"], seed) for seed in seeds]))
# print(f"luck {(seen - true).mean():.2f}, before {luck['constant'].mean():.2f} (points, n = {len(seeds)})")
# ```
#
# The margin is a little more than a tenth of a point: that is why a small mean gain over seven columns is evidence, and a large one in a single column need not be. <!-- by definition -->
# Four times the examples halve the noise of a test set, and with it what can be picked from it, by and large. <!-- by definition -->
# ````
