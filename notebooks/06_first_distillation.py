# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # First distillation
#
# Now a student learns from photographs. A ResNet-8 of 84,000 parameters, a ResNet-20 of 278,000 for its teacher,
# CIFAR-100, and one question that most demonstrations leave out: **which part** of the teacher's answer does the student
# use?
#
# **At the end you will know** how a distillation run is composed and compared fairly; what soft targets did to accuracy,
# fidelity and calibration of this student; and what happens when the teacher's probabilities stay but their meaning is
# shuffled away.
#
# *Needs: two CPU cores and about four minutes for the live part. The recorded runs took longer; each says where.*

# %% tags=["parameters"]
profile = "cpu"

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import display

from kdlab.data import load_images
from kdlab.figures import BLUE, ORANGE, PURPLE, heatmap, show, table, use_style
from kdlab.models import count_parameters
from kdlab.objectives import CrossEntropy, SoftTargets, distillation_loss
from kdlab.study import (
    book_folder,
    book_teacher,
    mean_interval,
    paired_difference,
    plans,
    results,
    run,
)
from kdlab.study.display import data_note, device_for, not_yet_run, source_note, verdict
from kdlab.study.runner import plan, run_plan
from kdlab.training import accuracy, fast_precision, predict

use_style()
device = device_for(profile)
data = load_images()
data_note(data)

# %% [markdown]
# ## An objective is written as a sum
#
# Hinton, Vinyals and Dean {cite}`hinton2015distilling` describe a weighted average of two losses. In `kdlab` it is written so:

# %%
objective = 0.1 * CrossEntropy() + 0.9 * SoftTargets(temperature=4)
objective

# %% [markdown]
# (two-alphas)=
# ### Two articles, two alphas
#
# Article A weights with $\alpha\,\mathrm{CE} + (1-\alpha)\,\mathrm{KD}$; article B with $(1-\alpha)\,L_{\text{hard}} + \alpha T^2L_{\text{soft}}$. Both say that
# $\alpha$ needs tuning; B adds that it is "typically 0.9". Taken to A's formula that advice gives the labels nine tenths. So
# `distillation_loss` has no `alpha`. It takes `hard_weight` (A's) or `soft_weight` (B's), and never both.

# %%
generator = torch.Generator().manual_seed(0)
teacher_logits, noise = torch.randn(2, 256, 100, generator=generator, dtype=torch.float64)
teacher_logits = 3 * teacher_logits
student_logits = teacher_logits + noise
labels = torch.randint(100, (256,), generator=generator)
alpha = 0.9
as_in_A = distillation_loss(student_logits, teacher_logits, labels, hard_weight=alpha)
as_in_B = distillation_loss(student_logits, teacher_logits, labels, soft_weight=alpha)
composed, _ = objective(
    student_logits=student_logits, teacher_logits=teacher_logits, labels=labels
)
assert torch.isclose(as_in_B, composed) and torch.isclose(
    as_in_A,
    distillation_loss(student_logits, teacher_logits, labels, soft_weight=1 - alpha),
)
try:
    distillation_loss(student_logits, teacher_logits, labels)
except TypeError as error:
    print(error)

# %% tags=["hide-input"]
verdict(
    "A6", "depends",
    r"The same formula as B1 with the opposite letter: A's $\alpha$ is the weight of the labels. Copied from one article to the "
    rf"other, $\alpha=0.9$ changes the loss of a student near its teacher from {as_in_B:.1f} to {as_in_A:.1f}. In kdlab it is "
    r"hard_weight, by name.",
)  # fmt: skip

# %% tags=["hide-input"]
verdict(
    "B1", "depends",
    r"A weighted average of the two losses, as Hinton et al. describe it, with $\alpha$ the weight of the soft targets; the reverse of A6. In kdlab it is soft_weight, "
    r"by name, and $w_{\text{hard}} + w_{\text{soft}} = 1$; the sum of terms above gives the same value.",
)  # fmt: skip

# %% [markdown]
# ## Three students
#
# | arm | what the student is told |
# |---|---|
# | **alone** | the labels |
# | **kd** | 0.1 of the labels, 0.9 of the teacher's softened probabilities, $T=4$ |
# | **permuted** | the same, but in every example, at every step, the teacher's probabilities of the *wrong* classes are shuffled among them |
#
# The third is the experiment. A permuted target has the same confidence in the right class and the same entropy; only *which* wrong
# class is likely has become meaningless, and changes from step to step. A student that uses nothing but the teacher's confidence can
# average that out in time. One that uses dark knowledge has lost it.
#
# The comparison is **paired**: for each seed, the three students start from the same weights and see the same
# augmented batches. Nothing is selected: all values are of the last epoch, on the test split, which is looked at once.

# %%
teacher = book_teacher(data, device=device)
teacher_test = predict(teacher, data.test, device=device)
specs = plans.first_distillation_live(data.name, fast_precision(device))
print(
    f"teacher: {count_parameters(teacher):,} parameters, "
    f"test accuracy {accuracy(teacher_test, data.test.labels):.1%}"
)
print(
    f"{len(specs)} runs of {specs[0].recipe.epochs} epochs on "
    f"{specs[0].train_examples:,} images:"
)
for spec in specs[:3]:
    print(f"  {spec.arm:9s} {spec.objective}")

# %% [markdown]
# A few thousand images and four epochs are all that two cores can do in four minutes. They are enough to tell the arms
# apart, not to train a good network; the records below repeat the comparison at full size.

# %%
live = [run(spec, data, teacher=teacher, device=device) for spec in specs]

# %% tags=["hide-input"]
ARMS = ("alone", "kd", "permuted")
COLOURS = dict(zip(ARMS, (PURPLE, BLUE, ORANGE), strict=True))


def by_arm(records, value):
    """The values of each arm, ordered by seed."""
    ordered = sorted(records, key=lambda record: record["recipe"]["seed"])
    return {
        arm: np.array([value(r) for r in ordered if r["spec"]["arm"] == arm])
        for arm in ARMS
    }


def curve_and_points(records, label, caption, alt):
    """Validation curves by epoch, and test accuracy by seed with the pairs joined."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.8, 3.5))
    curves = by_arm(records, lambda r: r["epochs"]["validation.accuracy"])
    points = by_arm(records, lambda r: r["test"]["accuracy"])
    for arm in ARMS:
        epochs = np.arange(1, curves[arm].shape[1] + 1)
        left.plot(epochs, 100 * curves[arm].mean(0), color=COLOURS[arm], label=arm)
        left.fill_between(
            epochs,
            100 * curves[arm].min(0),
            100 * curves[arm].max(0),
            color=COLOURS[arm],
            alpha=0.18,
            linewidth=0,
        )
    for seed in range(len(points["kd"])):
        right.plot(
            range(3),
            [100 * points[arm][seed] for arm in ARMS],
            color="grey",
            linewidth=0.8,
            alpha=0.6,
        )
    for place, arm in enumerate(ARMS):
        right.plot([place] * len(points[arm]), 100 * points[arm], "o", color=COLOURS[arm])
    left.set(xlabel="epoch", ylabel="validation accuracy (%)")
    left.legend()
    right.set(xticks=range(3), xlim=(-0.4, 2.4), ylabel="test accuracy (%), last epoch")
    right.set_xticklabels(ARMS)
    return show(figure, label=label, caption=caption, alt=alt)


live_records = [done.record for done in live]
curve_and_points(
    live_records,
    label="live",
    caption="Live, in this build. Left: mean and range over seeds. Right: each dot a run, lines join the runs of one seed.",
    alt="Left: three rising curves of validation accuracy. Right: three columns of dots joined by thin lines.",
)


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
            records, lambda r, key=key, factor=factor: factor * r["test"].get(key, np.nan)
        )
        row = [name]
        for arm in ARMS:
            if np.isfinite(values[arm]).all():
                i = mean_interval(values[arm])
                row.append(f"{i.mean:.2f} [{i.low:.2f}, {i.high:.2f}] {unit}")
            else:
                row.append("–")
        rows.append(row)
    return table(["test split, last epoch", *ARMS], rows, caption=caption)


measures(
    live_records,
    f"Live runs: mean and 95 % interval (Student's t), n = {len(live) // 3} seeds.",
)


# %%
def differences(records):
    """Paired differences of test accuracy, in points."""
    points = by_arm(records, lambda r: 100 * r["test"]["accuracy"])
    return {
        "kd − alone": paired_difference(points["kd"], points["alone"]),
        "permuted − alone": paired_difference(points["permuted"], points["alone"]),
        "kd − permuted": paired_difference(points["kd"], points["permuted"]),
    }


live_differences = differences(live_records)
for name, interval in live_differences.items():
    print(f"{name:17s} {interval:+.2f} points")

# %% [markdown]
# ## What was learned about the wrong classes
#
# Accuracy says that a student is better; it does not say what it knows. Look at the probability it gives to *wrong*
# classes. Does it put more of it on the siblings of the true class, as the teacher does?

# %%
superclass = torch.tensor(data.superclass_of)
truth = data.test.labels


def sibling_share(logits):
    """Of the probability on wrong classes, the mean part on the true superclass."""
    wrong = torch.softmax(logits, -1).scatter(-1, truth[:, None], 0.0)
    kin = superclass[truth][:, None] == superclass[None, :]
    return ((wrong * kin).sum(-1) / wrong.sum(-1)).mean().item()


shares = {
    arm: [
        sibling_share(done.test_logits)
        for done in live
        if done.record["spec"]["arm"] == arm
    ]
    for arm in ARMS
}
shares["teacher"] = [sibling_share(teacher_test)]
{arm: f"{np.mean(values):.1%}" for arm, values in shares.items()}

# %% tags=["hide-input"]
family = data.superclasses.index("trees") if "trees" in data.superclasses else 0
members = [c for c in range(data.num_classes) if data.superclass_of[c] == family]


def confusion(logits):
    """Mean probability of each class of the family, given that one of them is true, rows scaled to their sum."""
    rows = torch.stack(
        [torch.softmax(logits[truth == c], -1).mean(0)[members] for c in members]
    )
    return rows / rows.sum(-1, keepdim=True)


panels_of = {
    arm: torch.stack(
        [confusion(d.test_logits) for d in live if d.record["spec"]["arm"] == arm]
    ).mean(0)
    for arm in ARMS
}
panels_of["teacher"] = confusion(teacher_test)
figure, panels = plt.subplots(1, 4, figsize=(8.4, 2.9), sharey=True)
names = [data.classes[c].replace("_tree", "") for c in members]
for panel, (name, values) in zip(panels, panels_of.items(), strict=True):
    heatmap(panel, 100 * values, names, names, largest=70, fontsize=7.5)
    panel.set_title(name)
panels[0].set_ylabel("the image shows")
show(
    figure,
    label="confusion",
    caption=f"Who is taken for whom within “{data.superclasses[family]}”: mean probability (%) among its classes, live students and "
    "teacher. A student that learned dark knowledge errs where its teacher does.",
    alt="Four heat maps of confusion within one superclass: student alone, distilled, permuted, and the teacher.",
)

# %% [markdown]
# ## The same at full size: records
#
# Four minutes are not a study. The plan `first-distillation-cpu` runs the same three arms on the whole training split. What has been
# run of it is in the repository, and this page only reads it.


# %% tags=["hide-input"]
def whole_seeds(found):
    """The records of those seeds that every arm has."""
    seeds = set.intersection(*({r["recipe"]["seed"] for r in found.arm(a)} for a in ARMS))
    return [r for r in found.all(ARMS) if r["recipe"]["seed"] in seeds]


cpu_plan = results("first-distillation-cpu")
recorded = whole_seeds(cpu_plan)
seeds = len(recorded) // 3
if cpu_plan.missing:
    display(not_yet_run(f"{cpu_plan.missing} runs of this plan", cpu_plan.command))
if recorded:
    display(source_note(recorded))

# %% tags=["hide-input"]
if seeds >= 2:
    display(
        curve_and_points(
            recorded,
            label="recorded",
            caption=f"Recorded: {recorded[0]['recipe']['epochs']} epochs on {recorded[0]['data']['split']['train']:,} images, {seeds} seeds, on a CPU.",
            alt="Left: validation curves of the three arms. Right: test accuracy of each run, joined by seed.",
        ),
        measures(
            recorded,
            f"Recorded runs: mean and 95 % interval, n = {seeds} seeds. A dash: not measured in these records.",
        ),
    )
    for name, interval in differences(recorded).items():
        print(f"{name:17s} {interval:+.2f} points")

# %% [markdown]
# ### On a GPU, by the published recipe
#
# ResNet-56 to ResNet-20, 240 epochs, five seeds: the row of the literature's table that this pair belongs to. With the
# profile `gpu` this chapter runs what is missing and writes the records.

# %% tags=["hide-input"]
if profile == "gpu" and not data.fallback:
    run_plan(plan("first-distillation-gpu"), book=book_folder(), device=device)
gpu_plan = results("first-distillation-gpu")
on_gpu = whole_seeds(gpu_plan)
if gpu_plan.missing:
    display(
        not_yet_run(f"{gpu_plan.missing} runs by the published recipe", gpu_plan.command)
    )
if len(on_gpu) >= 6:
    display(
        source_note(on_gpu), measures(on_gpu, "Published recipe: mean and 95 % interval.")
    )

# %% [markdown]
# ## Verdict

# %% tags=["hide-input"]
decisive = on_gpu if len(on_gpu) >= 9 else recorded if seeds >= 3 else live_records
where = (
    "on a GPU by the published recipe"
    if decisive is on_gpu
    else "recorded on a CPU"
    if decisive is recorded
    else "live, small"
)
gap = differences(decisive)
lost, gained, control = gap["kd − permuted"], gap["kd − alone"], gap["permuted − alone"]
matters = gained.excludes_zero and gained.mean > 0 and lost.low > 0 and gained.low > 0
verdict(
    "A4", "verified" if matters else "depends",
    f"Distillation changes test accuracy by {gained.mean:+.2f} points against hard labels (95 % interval {gained.low:+.2f} to "
    f"{gained.high:+.2f}, {gained.n} paired seeds, {where}). With the wrong classes shuffled, {control.mean:+.2f} ({control.low:+.2f} to "
    f"{control.high:+.2f}): which wrong class is likely is worth up to {lost.mean:.2f} points; part of that is the noise of shuffling.",
    data=data,
)  # fmt: skip

# %% [markdown]
# ## Limits
#
# - One pair of networks, one data set, one temperature, one weight, and none of them tuned. The baseline was not tuned either.
#   The trainings are short, which favours whatever speeds up learning: a gain here may be *earlier* rather than *better*.
# - The control shuffles anew at every step, so it adds noise to the targets as well as taking their structure. Its expectation is a
#   smoothed label; training on that, without the noise, is the first exercise, and chapter 14 has it as an arm of the study.
#   Here, what the permuted student loses is an upper bound on what structure is worth.
# - Seeds bound the noise of initialisation and order, not that of the data or of the teacher: there is one teacher.
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
# ```{solution} ex-even-spread
# :class: dropdown
#
# With `p = soften(teacher_logits, 4)` and `top = p.gather(-1, labels[:, None])`, the target is
# `((1 - top) / (N - 1)).expand_as(p).scatter(-1, labels[:, None], top)`. Train on `16 * cross_entropy(student_logits, target,
# temperature=4)`, whose gradient is that of the soft-target loss. *Even − permuted* is the cost of the noise, *kd − even* the value of
# the structure, and *even − alone* that of the teacher's confidence.
# ```
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
# Its half-width is $t_{n-1}s/\sqrt n$. Once $n$ is not tiny, four times as many. From three seeds five are enough, since $t_2 = 4.30$
# falls to $t_4 = 2.78$: $2.78/\sqrt5$ is half of $4.30/\sqrt3$.
# ```
