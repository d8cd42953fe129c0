# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A first distillation
#
# Now a student learns from photographs: a ResNet-8, with a ResNet-20 as its teacher, on
# CIFAR-100. We also ask what a demonstration easily leaves out: **which part** of the teacher's answer does the student
# use?
#
# **At the end you will know** how a distillation run is set up and compared; what soft targets did to accuracy,
# fidelity and calibration of this student; and what happens when the teacher's probabilities stay but lose their meaning.
#
# *Needs: one CPU core and about two minutes. The recorded runs took longer; each says where it ran.*

# %% tags=["parameters"]
profile = "cpu"  # or "gpu", which runs what the plan by the published recipe lacks
seeds: list[int] = [0, 1, 2, 3, 4]  # of the records; the first is also trained here
alpha: float = 0.9  # the weight that the two articles call so
live_images: int = 1280  # on which these three are trained
live_epochs: int = 4  # for how long
live_test: int = 1000  # test images by which they are judged

# %% tags=["hide-input"]
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import display

from kdlab.data import load_images
from kdlab.figures import (
    BLUE,
    ORANGE,
    PURPLE,
    Shown,
    heatmap,
    sentence,
    show,
    table,
    use_style,
)
from kdlab.models import count_parameters
from kdlab.objectives import CrossEntropy, SoftTargets, distillation_loss
from kdlab.study import book_teacher, evidence_folder, plans, results, run_together
from kdlab.study.display import (
    Findings,
    conditions,
    data_note,
    device_for,
    not_yet_run,
    source_note,
    verdict,
)
from kdlab.study.evidence import Quantity
from kdlab.study.grown import EPOCHS, arm_name
from kdlab.study.parameters import require
from kdlab.study.runner import plan, run_plan
from kdlab.study.statements import above, below, leads, undecided
from kdlab.study.statistics import against, summary
from kdlab.training import accuracy, fast_precision, predict

use_style()
device = device_for(profile)
require(alpha < 1, "alpha must be below 1: it weighs one of two losses.")
require(
    live_test >= 100, "live_test must be 100 or more, that each class may have some."
)
seeds = list(dict.fromkeys(seeds))
data = load_images()
data_note(data)

# %% tags=["hide-input"]
findings = Findings()

# %% [markdown]
# ## An objective is written as a sum
#
# Hinton, Vinyals and Dean {cite}`hinton2015distilling` describe a weighted average of two losses. In `kdlab` it is written so:

# %%
objective = (1 - alpha) * CrossEntropy() + alpha * SoftTargets(temperature=4)
objective

# %% [markdown]
# (two-alphas)=
# ### Two articles, two meanings of alpha
#
# Article A weights with $\alpha\,\mathrm{CE} + (1-\alpha)\,\mathrm{KD}$; article B with $(1-\alpha)\,L_{\text{hard}} + \alpha T^2L_{\text{soft}}$. A says that
# choosing $\alpha$ “often requires empirical tuning”; B that it “is typically set very high, often 0.9 to 0.99”. In A's formula, B's advice gives the labels nine tenths and more. So
# `distillation_loss` has no `alpha`. It takes `hard_weight` (A's) or `soft_weight` (B's), and never both.

# %% tags=["hide-input"]
generator = torch.Generator().manual_seed(0)
teacher_logits, noise = torch.randn(
    2, 256, 100, generator=generator, dtype=torch.float64
)
teacher_logits = 3 * teacher_logits
student_logits = teacher_logits + noise
labels = torch.randint(100, (256,), generator=generator)
logits = student_logits, teacher_logits, labels

# %%
as_in_A = distillation_loss(*logits, hard_weight=alpha)
as_in_B = distillation_loss(*logits, soft_weight=alpha)
composed, _ = objective(
    student_logits=student_logits, teacher_logits=teacher_logits, labels=labels
)
assert torch.isclose(as_in_B, composed)
assert torch.isclose(as_in_A, distillation_loss(*logits, soft_weight=1 - alpha))

# %% tags=["hide-input"]
try:
    distillation_loss(*logits)
except TypeError as error:
    refused = str(error)
sentence(f"Given neither, it refuses: “{refused}”")

# %% tags=["hide-input"]
verdict(
    "A6", "depends",
    r"The same formula as B1 with the opposite letter: A's $\alpha$ is the weight of the labels. Copied from one article to the "
    rf"other, $\alpha={alpha:g}$ changes the loss of a student near its teacher, on random labels, from {as_in_B:.1f} to {as_in_A:.1f}. In kdlab it is "
    r"hard_weight, by name.",
    condition="under a premise", parameters=("alpha",),
)  # fmt: skip

# %% tags=["hide-input"]
verdict(
    "B1", "depends",
    r"A weighted average of the two losses, as Hinton et al. describe it, with $\alpha$ the weight of the soft targets; the reverse of A6. In kdlab it is soft_weight, "
    r"by name, and $w_{\text{hard}} + w_{\text{soft}} = 1$; its sum of terms gives the same value.",
    condition="under a premise", parameters=("alpha",),
)  # fmt: skip

# %% [markdown]
# ## Three students
#
# Three *arms* are compared, that is, three ways to train the same student:
#
# | arm | what the student is told |
# |---|---|
# | **alone** | the labels |
# | **kd** | 0.1 of the labels, 0.9 of the teacher's softened probabilities, $T=4$ |
# | **permuted** | the same, but in every example, at every step, the teacher's probabilities of the *wrong* classes are shuffled among them |
#
# The third is the control. A permuted target has the same confidence in the right class and the same entropy, but *which* wrong
# class is likely means nothing, and changes from step to step. A student that uses only the teacher's confidence can
# average that out in time. A student that uses the relations between classes has lost them.
#
# For each seed the three students start from the same weights and see the same
# augmented batches. Nothing is selected: all values are of the last epoch, on the test split, which is used once. All three have one learning rate, which was tuned for none of them.

# %% tags=["hide-input"]
teacher = book_teacher(data, device=device)
fewer = replace(data, validation=data.validation[:300], test=data.test[:live_test])
teacher_test = predict(teacher, fewer.test, device=device)
specs = plans.first_distillation_live(
    data.name,
    fast_precision(device),
    seed=seeds[0],
    examples=live_images,
    epochs=live_epochs,
)

# %% tags=["hide-input"]
table(
    ["arm", "objective"],
    [[spec.arm, str(spec.objective)] for spec in specs],
    caption=f"The three students that are trained here: seed {seeds[0]}, {specs[0].recipe.epochs} epochs on {specs[0].train_examples:,} images, learning rate "
    f"{specs[0].recipe.learning_rate:g}. The teacher has {count_parameters(teacher):,} parameters and is right on "
    f"{accuracy(teacher_test, fewer.test.labels):.1%} of {len(fewer.test):,} test images.",
)

# %% [markdown]
# First come the records, made on the whole training split. Then one seed of each arm is trained here, so that we can ask the students what they know.
#
# ## The records

# %% tags=["hide-input"]
ARMS = ("alone", "kd", "permuted")
COLOURS = dict(zip(ARMS, (PURPLE, BLUE, ORANGE), strict=True))


def arm_of(record):
    """Which of the three; the plan `grown` adds the length of training."""
    return record["spec"]["arm"].removesuffix(arm_name("", EPOCHS))


def by_arm(records, value):
    """The values of each arm, ordered by seed."""
    ordered = sorted(records, key=lambda record: record["recipe"]["seed"])
    return {
        arm: np.array([value(r) for r in ordered if arm_of(r) == arm]) for arm in ARMS
    }


def curve_and_points(records, label, caption, alt):
    """Validation curves by epoch, and test accuracy by seed with the pairs joined."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.8, 3.5))
    curves = by_arm(
        records, lambda r: 100 * np.array(r["epochs"]["validation.accuracy"])
    )
    points = by_arm(records, lambda r: 100 * r["test"]["accuracy"])
    for place, arm in enumerate(ARMS):
        epochs = np.arange(1, curves[arm].shape[1] + 1)
        left.plot(
            epochs,
            curves[arm].mean(0),
            color=COLOURS[arm],
            label=arm,
            marker="o" if len(epochs) == 1 else None,
        )
        left.fill_between(
            epochs,
            curves[arm].min(0),
            curves[arm].max(0),
            color=COLOURS[arm],
            alpha=0.18,
            linewidth=0,
        )
        right.plot(
            [place] * len(points[arm]), points[arm], "o", color=COLOURS[arm], zorder=3
        )
    for run in zip(*points.values(), strict=True):
        right.plot(range(3), run, color="grey", linewidth=0.8, alpha=0.6)
    left.set(xlabel="epoch", ylabel="validation accuracy (%)")
    left.legend()
    right.set(xticks=range(3), xlim=(-0.4, 2.4), ylabel="test accuracy (%), last epoch")
    right.set_xticklabels(ARMS)
    return show(figure, label=label, caption=caption, alt=alt)


# %% tags=["hide-input"]
def measures(records, caption):
    kinds = {
        "accuracy": ("accuracy", 100, "%"),
        "agreement with the teacher": ("agreement", 100, "%"),
        "KL from the teacher (nats)": ("kl_to_teacher", 1, ""),
        "calibration error": ("calibration_error", 100, "%"),
        "errors inside the superclass": ("errors_within_superclass", 100, "%"),
    }
    rows = []
    for name, (key, factor, unit) in kinds.items():
        values = by_arm(
            records,
            lambda r, key=key, factor=factor: factor * r["test"].get(key, np.nan),
        )
        row = [name]
        for arm in ARMS:
            known = np.isfinite(values[arm]).all()
            row.append(
                f"{summary(values[arm]).bracketed('.2f')} {unit}" if known else "–"
            )
        rows.append(row)
    return table(["test split, last epoch", *ARMS], rows, caption=caption)


# %% tags=["hide-input"]
def differences(records):
    """Differences of test accuracy in points: one deviation for the three arms; to each
    control the intervals hold together (Dunnett).
    """
    points = {
        arm: {
            r["recipe"]["seed"]: 100 * r["test"]["accuracy"]
            for r in records
            if arm_of(r) == arm
        }
        for arm in ARMS
    }
    to_alone, to_permuted = (
        against(points, "alone"),
        against(points, "permuted", ["kd"]),
    )
    found = {
        "kd − alone": to_alone["kd"],
        "permuted − alone": to_alone["permuted"],
        "kd − permuted": to_permuted["kd"],
    }
    return table(
        ["difference", "points"], [[name, d.bracketed("+.2f")] for name, d in found.items()],
        caption=f"Test accuracy of one arm minus another, paired by seed, {told(records)}"
        + ("; each interval is of its own pairs, those of the two differences to alone hold together, and the sentences may pool the deviation of all arms." if len(records) > len(ARMS) else "."),
    )  # fmt: skip


def of_seeds(found):
    """A plan's records, of this chapter's seeds."""
    return replace(
        found, specs=tuple(spec for spec in found.specs if spec.recipe.seed in seeds)
    )


def whole_seeds(found):
    """The records of those seeds that every arm has."""
    if not {spec.arm for spec in found.specs}.issuperset(ARMS):
        return []
    common = set.intersection(*(set(found.values(a)) for a in ARMS))
    return [r for r in found.all(ARMS) if r["recipe"]["seed"] in common]


def told(records):
    """Of how many seeds, and whether that gives an interval."""
    many = len(records) // len(ARMS)
    return (
        f"mean and 95 % interval, n = {many} seeds"
        if many > 1
        else f"values of seed {records[0]['recipe']['seed']} alone, without an interval"
    )


def of_which(records):
    """The seeds of records, in words."""
    named = sorted({record["recipe"]["seed"] for record in records})
    return f"seed{'s' if len(named) > 1 else ''} {', '.join(map(str, named))}"


cpu_plan = of_seeds(results("first-distillation-cpu"))
recorded = whole_seeds(cpu_plan)
runs = len(recorded) // len(ARMS)
if not recorded:
    display(
        not_yet_run(
            f"runs of seed {', '.join(map(str, seeds))}, if the plan has such",
            cpu_plan.command,
        )
    )
elif cpu_plan.missing:
    display(not_yet_run(f"{cpu_plan.missing} runs of this plan", cpu_plan.command))
if recorded:
    display(source_note(recorded))

# %% tags=["hide-input"]
if recorded:
    display(
        curve_and_points(
            recorded,
            label="recorded",
            caption=f"Recorded: {conditions(cpu_plan)}; {recorded[0]['data']['split']['train']:,} images, {of_which(recorded)}. "
            + ("Left: mean and range over seeds. " if runs > 1 else "Left: by epoch. ")
            + "Right: each dot a run, lines join the runs of one seed.",
            alt="Left: validation curves of the three arms. Right: test accuracy of each run, joined by seed.",
        ),
        measures(
            recorded,
            f"Recorded runs: {told(recorded)}. A dash: not measured in these records.",
        ),
        differences(recorded),
    )
if runs > 1:
    display(
        above("kd", ["alone", "permuted"], cpu_plan),
        below("permuted", "alone", cpu_plan),
        above("kd", "alone", cpu_plan, "calibration_error"),
    )

# %% [markdown]
# (A higher calibration error is worse.) A warning: where the permuted target hardly teaches, *kd − permuted* is not a share of what distillation gains.
# Shuffling anew at every step also adds noise. The plan `small` of the later chapters has the same target without that noise, with the teacher's belief in wrong classes spread evenly; the two are compared below.
#
# Accuracy does not say what a student knows. If it learned something about the wrong classes, its errors should move into the superclass of the truth. The plan `small` has the same three arms, and others.
# The others are needed: this share rises with accuracy even among students of labels alone, as a sentence below says. So the permuted student is also compared with a narrower one that learned from labels alone; {doc}`14_what_is_transferred` compares all arms at equal accuracy.

# %% tags=["hide-input"]
elsewhere, narrow = of_seeds(results("small")), "resnet8_width4-alone"
EVEN = {"spread": "the even target"}
if whole_seeds(elsewhere) and len(elsewhere.ready((*ARMS, narrow))) == 4:
    reached = {
        arm: f"{100 * elsewhere.mean(arm).mean:.1f} %" for arm in (narrow, "permuted")
    }
    as_good = {
        narrow: f"a narrower student alone (accuracy {reached[narrow]}, of permuted {reached['permuted']})"
    }
    display(
        source_note(elsewhere.all((*ARMS, narrow))),
        above("kd", "alone", elsewhere, "errors_within_superclass"),
        below("permuted", "alone", elsewhere, "errors_within_superclass"),
        below(narrow, "alone", elsewhere, "errors_within_superclass", names=as_good),
        undecided(
            "permuted", narrow, 2, elsewhere, "errors_within_superclass", names=as_good
        ),
    )
    if elsewhere.ready(["spread"]):
        display(
            undecided("spread", "permuted", 1, elsewhere, names=EVEN),
            above("kd", "spread", elsewhere, names=EVEN),
        )
    display(Shown(f'<p class="kd-badge">Under: {conditions(elsewhere)}.</p>'))

# %% [markdown]
# ## Three students, trained here
#
# One seed of each arm is trained on the same batches, with one forward pass of the teacher for all. A few thousand images for a few epochs are all that a core can do in a minute: too little to train a good network, and one seed is no comparison. But it gives three students that can be asked.

# %%
live = run_together(specs, fewer, teacher=teacher, device=device)

# %% tags=["hide-input"]
live_records = [done.record for done in live]
curve_and_points(
    live_records,
    label="live",
    caption=f"Live, in this build, one seed ({seeds[0]}). Left: accuracy on {len(fewer.validation):,} validation images by epoch. Right: on {len(fewer.test):,} test images.",
    alt="Left: three curves of validation accuracy by epoch. Right: three dots, one an arm, joined by a thin line.",
)


# %% [markdown]
# ### What was learned about the wrong classes
#
# Take the probability that a student gives to *wrong* classes. How much of it falls on the siblings of the true class (the other classes of its superclass), and how much of the teacher's does?

# %%
superclass = torch.tensor(data.superclass_of)
truth = fewer.test.labels


def sibling_share(logits):
    """Of the probability on wrong classes, the mean part on the true superclass."""
    wrong = torch.softmax(logits, -1).scatter(-1, truth[:, None], 0.0)
    kin = superclass[truth][:, None] == superclass[None, :]
    return ((wrong * kin).sum(-1) / wrong.sum(-1)).mean().item()


# %% tags=["hide-input"]
outputs = {done.record["spec"]["arm"]: done.test_logits for done in live} | {
    "teacher": teacher_test
}
shares = {arm: sibling_share(logits) for arm, logits in outputs.items()}
siblings = Quantity(
    "the share of belief in wrong classes that falls on siblings, live",
    "points",
    100,
    1,
    level_unit="%",
)
leads("kd", {arm: shares[arm] for arm in ARMS}, siblings)

# %% tags=["hide-input"]
family = data.superclasses.index("trees") if "trees" in data.superclasses else 0
members = [
    c
    for c in range(data.num_classes)
    if data.superclass_of[c] == family and (truth == c).any()
]


def confusion(logits):
    """Mean probability of each class of the family, given that one of them is true, rows scaled to their sum."""
    rows = torch.stack(
        [torch.softmax(logits[truth == c], -1).mean(0)[members] for c in members]
    )
    return rows / rows.sum(-1, keepdim=True)


panels_of = {name: confusion(logits) for name, logits in outputs.items()}
figure, panels = plt.subplots(1, 4, figsize=(8.4, 2.9), sharey=True)
names = [data.classes[c].replace("_tree", "") for c in members]
for panel, (name, values) in zip(panels, panels_of.items(), strict=True):
    heatmap(panel, 100 * values, names, names, largest=70, fontsize=7.5)
    panel.set_title(name)
panels[0].set_ylabel("the image shows")
show(
    figure,
    label="confusion",
    caption=f"Confusions within “{data.superclasses[family]}”: mean probability (%) among its classes, live students, seed {seeds[0]}, and teacher, by {len(fewer.test):,} test images. Of all its belief in wrong classes the teacher gives siblings {shares['teacher']:.1%}.",
    alt="Four heat maps of confusion within one superclass: student alone, distilled, permuted, and the teacher.",
)

# %% [markdown]
# ## To the end, with a rate of its own
#
# The records above are of short trainings at one rate. In the plan `grown` the same pair is trained to the end; labels alone have a rate of their own, soft targets a rate and a weight, and the control has those of the soft targets, so that it differs from them in what the teacher says alone ({doc}`12_the_table_again`). <!-- by definition -->

# %% tags=["hide-input"]
asked = {arm_name(arm, EPOCHS): arm for arm in (*ARMS, "spread")}
grown = of_seeds(results("grown").renamed(asked))
to_the_end = whole_seeds(grown)
if len(to_the_end) > len(ARMS):
    display(
        source_note(to_the_end),
        curve_and_points(
            to_the_end,
            label="to-the-end",
            caption=f"Recorded: {conditions(grown)}; {of_which(to_the_end)}. Left: mean and range over seeds. Right: each dot a run, lines join the runs of one seed.",
            alt="Left: validation curves of the three arms. Right: test accuracy of each run, joined by seed.",
        ),
        measures(to_the_end, f"To the end: {told(to_the_end)}."),
        differences(to_the_end),
        above("kd", ["alone", "permuted"], grown),
        below("permuted", "alone", grown),
    )
else:
    display(
        not_yet_run(
            f"the same three arms after {EPOCHS} epochs", results("grown").command
        )
    )

# %% [markdown]
# ### On a GPU, by the published recipe
#
# ResNet-56 to ResNet-20, 240 epochs, five seeds: the row of the literature's table that this pair belongs to. <!-- by definition --> With the
# profile `gpu` this chapter runs what is missing and writes the records.

# %% tags=["hide-input"]
if profile == "gpu" and not data.fallback:
    run_plan(plan("first-distillation-gpu"), book=evidence_folder(), device=device)
gpu_plan = of_seeds(results("first-distillation-gpu"))
on_gpu = whole_seeds(gpu_plan)
if gpu_plan.missing:
    display(
        not_yet_run(
            f"{gpu_plan.missing} runs by the published recipe", gpu_plan.command
        )
    )
if on_gpu:
    display(source_note(on_gpu), measures(on_gpu, f"Published recipe: {told(on_gpu)}."))

# %% [markdown]
# ## Verdict

# %% tags=["hide-input"]
found = next(
    (
        study
        for study, records in ((gpu_plan, on_gpu), (grown, to_the_end), (cpu_plan, recorded))
        if len(records) >= 3 * len(ARMS)
    ),
    None,
)  # fmt: skip
if found:
    helps = above("kd", ["alone", "permuted"], found)
    warning = below("permuted", "alone", found)
    both = ["kd", "spread"]
    spread = next(
        (
            study
            for study in (found, elsewhere)
            if {spec.arm for spec in study.specs}.issuperset(both)
            and study.ready(both) == both
        ),
        None,
    )
    even = None if spread is None else above("kd", "spread", spread, names=EVEN)
    given = verdict(
        "A4", "verified" if helps.holds else "depends",
        ("Soft targets help, and with the wrong classes permuted they do not. " if helps.holds and warning.holds else "")
        + f"What hard labels lose is said to be “subtle information about class relationships”. {helps} {warning} "
        + ("So the same confidence with wrong classes that mean nothing does not help, in this training and at these weights: their relations are gone, and the noise of shuffling is added. " if helps.holds and warning.holds else "")
        + (f"Without that noise, with the belief in wrong classes spread evenly: {even}{'' if spread is found else f' (plan `small`, {conditions(spread)})'} " if even is not None else "")
        + "The hard labels here are the data's; the article's are the teacher's own predictions. "
        + (f"After the short training at one rate: {above('kd', ['alone', 'permuted'], cpu_plan)} " if found is grown and runs >= 3 else "")
        + f"{conditions(found)}.",
        data=data, condition=None if helps.holds else "bound to a scale",
    )  # fmt: skip
    display(given)
else:
    display(
        sentence(
            f"No verdict on claim A4: it takes three seeds of each arm, and {runs} are asked for here and recorded."
        )
    )

# %% tags=["hide-input"]
if recorded:
    under_these = f"{conditions(cpu_plan)}; n = {runs}"
    accuracies = by_arm(recorded, lambda r: 100 * r["test"]["accuracy"])
    means = {arm: values.mean() for arm, values in accuracies.items()}
    findings.show(
        f"Test accuracy is {means['alone']:.1f} % by labels alone, {means['kd']:.1f} % with soft targets, and {means['permuted']:.1f} % "
        f"with the teacher's wrong classes permuted ({under_these}).",
        *([str(above("kd", ["alone", "permuted"], cpu_plan))] if runs > 1 else []),
        f"Of its belief in wrong classes the distilled student gives {shares['kd']:.0%} to siblings of the true class, the permuted one "
        f"{shares['permuted']:.0%}, the teacher {shares['teacher']:.0%} (one seed, trained here for {live_epochs} epochs on {live_images:,} images).",
    )
else:
    findings.show(
        "The records of this chapter have none of these seeds, so there is no comparison yet."
    )

# %% [markdown]
# ## Limits
#
# - One pair of networks, one data set, one temperature; in the short trainings one weight and one learning rate, too, none of them chosen for any arm.
#   A short training favours whatever speeds up learning: a gain may be one of early learning, and a rate of its own for each arm may change its size. The same arms, trained to the end with rates of their own, are there to say which.
# - The control shuffles anew at every step, so it adds noise to the targets as well as taking their structure. Its expectation is a
#   smoothed label; training on that, without the noise, is the first exercise, and chapter 14 has it as an arm of the study.
# - Seeds bound the noise of initialisation and order, not that of the data or of the teacher: there is one teacher. The live part has one seed.
#
# ## To take away
#
# - **Formula.** $L = w_{\text{hard}}\,\mathrm{CE} + w_{\text{soft}}\,T^2 D_{\mathrm{KL}}(p_T\,\|\,q_T)$ with $w_{\text{hard}} + w_{\text{soft}} = 1$.
# - **What to set.** `(1 - w) * CrossEntropy() + w * SoftTargets(temperature=T)`; in `distillation_loss` name the weight, `hard_weight` or `soft_weight`, never “alpha”.
# - **What to watch for.** Compare with labels alone *and* with a control that changes one thing (`PermutedSoftTargets`, `SpreadSoftTargets`). Pair runs by seed, judge the last epoch, and give each arm its own learning rate if you can.
#
# ## Exercises
#
# ```{exercise}
# :label: ex-even-spread
#
# The permuted control is noisy. Write a term whose targets keep the teacher's probability of the true class, at $T=4$, and spread
# the rest *evenly* over the wrong classes: the expectation of the permuted target. What does the fourth arm separate?
# ```
#
# ````{solution} ex-even-spread
# :class: dropdown
#
# It is `SpreadSoftTargets`, with the gradient of `T² · cross_entropy(student_logits, spread, temperature=T)`. *Even − permuted* is the cost of the noise, and *kd − even* the effect of
# naming the likely wrong classes where the rest of the target is the same. *Even − alone* is not the worth of the teacher's confidence alone: the two differ in temperature and weight, too, and a flat target at $T=4$ may teach little.
# One seed of few epochs is no comparison; with the whole split and several seeds it is an arm of chapter 14.
#
# ```python
# from kdlab.objectives import SpreadSoftTargets
#
# kd = next(spec for spec in specs if spec.arm == "kd")
# even = replace(kd, arm="even", objective=0.1 * CrossEntropy() + 0.9 * SpreadSoftTargets(temperature=4))
# (fourth,) = run_together([even], fewer, teacher=teacher, device=device)
# {done.record["spec"]["arm"]: f"{done.record['test']['accuracy']:.1%}" for done in (*live, fourth)}
# ```
# ````
#
# ```{exercise}
# :label: ex-more-seeds
#
# How many seeds would you need for the interval of *kd − permuted* to be half as wide?
# ```
#
# ```{solution} ex-more-seeds
# :class: dropdown
#
# One deviation $s$ is taken from all three arms, which leaves $2(n-1)$ degrees of freedom, and the half-width is $t_{2(n-1)}\,s\sqrt{2/n}$. <!-- by definition --> Once $n$ is not tiny, four times as many. <!-- by definition -->
# From three seeds eight are enough, since $t_4 = 2.78$ falls to $t_{14} = 2.14$: $2.14/\sqrt8$ is below half of $2.78/\sqrt3$, and with seven it is not yet. <!-- by definition --> (Of a difference whose deviation is
# its own the degrees are $n-1$, and five do: $t_2 = 4.30$, $t_4 = 2.78$. <!-- by definition -->)
# ```
