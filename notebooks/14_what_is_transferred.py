# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What is transferred
#
# Where a distilled student is better than one that learned from labels, is it better because it has become like its teacher? Or because the
# teacher's targets are gentler than labels, whatever they say? And if something does pass from one network to the other: is it in the
# teacher's outputs or in its layers, and does it survive when the student is never shown what it is about?
#
# These are questions of cause. Some comparisons below isolate one; where two students differ in several things, the page says which.
#
# **At the end you will know** why agreement with the teacher says little that accuracy has not said; how to isolate the teacher's opinion of the
# wrong classes; how a student can recognise a class of which it never saw an example; and what one short training can say of layers, outputs and combinations.
#
# *Needs: one CPU core and about a minute. What took hours was recorded, and this page reads the records.*

# %% tags=["parameters"]
profile: str = "cpu"
margin: float = 1.0  # points of accuracy, the smallest difference that would matter
temperature: float = 2.0  # of the soft targets in the experiment with omitted classes
epochs: int = 12  # for which its students learn
seeds: list[int] = [0, 1, 2]  # of its students
stored: bool = True  # hold an assistant's stored students against the large teacher

# %% tags=["hide-input"]
import copy
from dataclasses import replace
from itertools import permutations

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown, display

from kdlab.data import (
    ExactTeacher,
    Examples,
    KnownPosterior,
    load_digits,
    load_images,
)
from kdlab.figures import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    VERMILION,
    dots,
    show,
    table,
    use_style,
)
from kdlab.models import mlp
from kdlab.objectives import (
    CrossEntropy,
    ForwardKL,
    SoftTargets,
    SpreadSoftTargets,
    entropy,
    permute_dark_knowledge,
    smooth_labels,
    soften,
    spread_dark_knowledge,
)
from kdlab.study import (
    book_teacher,
    evidence_folder,
    mean_interval,
    results,
    stored_student,
)
from kdlab.study.display import (
    Findings,
    arms_shown,
    called,
    conditions,
    data_note,
    device_for,
    not_yet_run,
    source_note,
    under,
    verdict,
)
from kdlab.study.evidence import QUANTITIES, Among, Quantity, evidence
from kdlab.study.findings import moves
from kdlab.study.grown import CONTROLS, EPOCHS, METHODS, arm_name
from kdlab.study.plans import teacher as teacher_of_grown
from kdlab.study.statements import above, below, leads, undecided, within
from kdlab.study.statistics import against, off_line, pairing, smallest_p, summary
from kdlab.training import (
    Learner,
    Recipe,
    accuracy,
    agreement,
    fit,
    fit_together,
    predict,
)

use_style()
device = device_for(profile)
data = load_images()
data_note(data)

# %% tags=["hide-input"]
findings = Findings()

# %% [markdown]
# ## Three studies, one set of questions
#
# The plan `small` asks every question at the scale of a CPU: a ResNet-20 teaches a ResNet-8, for a few epochs, with three seeds. The plan `grown` asks some of them again of the same pair, trained to the end, each method with a learning rate and a weight of its own ({doc}`12_the_table_again`). The plan
# `questions` asks all by the published recipe on a GPU: a ResNet-56 teaches a ResNet-20, with five seeds. All hold out a validation split, and
# touch the test split once, after the last epoch. An *arm* is one way to teach; its name is that of the plan. A verdict rests on the longest training in which all that it asks for has been recorded. <!-- by definition -->
#
# **All arms of `small` were trained briefly and at one learning rate, which was tuned for none of them.** Objectives differ in the length of their gradient, so a comparison of methods
# is one of rates, too ({doc}`12_the_table_again` measures by how much); the contrasts between targets of one loss, below, are less exposed to that.
#
# Three seeds leave a difference of two arms two degrees of freedom, so one deviation is pooled over all arms of a student. Runs of one seed see the same batches, and begin with the same weights unless the objective has
# projectors or memories of its own (`fitnet`, `crd`, `crd+kd`, `kd+crd`), which were drawn first when these records were made. The text below says how much that is worth, and what so few runs could show without the assumption that they are normal, which every interval here makes.

# %%
small, questions = results("small"), results("questions")
to_the_end = {arm_name(m, EPOCHS): m for m in (*METHODS, *CONTROLS)}
grown = results("grown").renamed({teacher_of_grown().arm: "teacher"} | to_the_end)
STUDENT = {"small": "resnet8", "grown": "resnet8", "questions": "resnet20"}
NARROWER = {
    "small": "resnet8_width8",
    "grown": "resnet8_width8",
    "questions": "resnet8",
}


# %% tags=["hide-input"]
STUDIES = tuple(s for s in (small, grown, questions) if len(s.specs) > 1)


def of_plan(study, arms):
    """Those of the arms that a study's plan has."""
    planned = {spec.arm for spec in study.specs}
    return [arm for arm in arms if arm in planned]


def decisive(arms_of):
    """The study that a verdict may rest on: the longest complete one; None if none is."""
    for study in reversed(STUDIES):
        arms = list(dict.fromkeys(arms_of(study)))
        seeds = 3 if study is grown else None  # it comes back with more
        if study.complete(arms, at_least=seeds):
            return study
    return None


def by_seed(study, treated, control, measure="accuracy"):
    """The differences of two arms, one a seed that both have."""
    return list(study.differences(treated, control, measure).values())


def like(study, arm):
    """The arms with the student, the classes and the optimiser of an arm: they lend each
    other their deviation.
    """
    one = next(spec for spec in study.specs if spec.arm == arm)
    same = [
        s.arm for s in study.specs
        if s.teacher and s.student == one.student and s.omit == one.omit and not s.arm.startswith("times")
    ]  # fmt: skip
    return study.ready(list(dict.fromkeys(same)))


def gap(study, treated, control, measure="accuracy"):
    """``treated`` minus ``control`` over the deviation of all arms like it; None where one is not there."""
    if len(study.ready(of_plan(study, [treated, control]))) < 2:
        return None
    arms = dict.fromkeys([*like(study, treated), control])
    values = {arm: study.values(arm, measure) for arm in arms}
    return against(values, control, [treated], correction=None)[treated]


def scale_of(study):
    """The size of a study in words."""
    return conditions(study)


def length_and_rate(study):
    """The same without the networks, where a figure has others."""
    return conditions(study).partition(", ")[2]


def answer(question, needed, draw, arms=None):
    """Show what ``draw`` makes of the ``arms`` of each study that has those ``needed``; a slot where the small one has not."""
    for study in STUDIES:
        if len(of_plan(study, needed(study))) < len(needed(study)):
            continue
        missing = [
            arm for arm in needed(study) if arm not in study.ready(needed(study))
        ]
        if not missing:
            for item in draw(study):
                display(Markdown(item) if isinstance(item, str) else item)
            shown = of_plan(study, (arms or needed)(study))
            display(source_note(study.all(shown)))
        elif study is small:
            names = ", ".join(missing[:6]) + (" and others" if len(missing) > 6 else "")
            display(
                not_yet_run(
                    f"{question} (fewer than two seeds of {names})", study.command
                )
            )


def left_out(study, arms):
    """A sentence on the arms that a figure should have and has not."""
    arms = of_plan(study, arms)
    absent = [arm for arm in arms if arm not in study.ready(arms)]
    unstable = [arm for arm in arms if study.diverged(arm)]
    return (f" Not yet run: {', '.join(absent)}." if absent else "") + (
        f" Some runs diverged and are left out: {', '.join(unstable)}."
        if unstable
        else ""
    )


def points(interval, digits=2):
    """An interval in percentage points."""
    return (100 * interval).bracketed(f"+.{digits}f")


for study in STUDIES:
    told = f"Plan {study.plan}: {len(study.records)} of {len(study.specs)} runs are recorded ({scale_of(study)})."
    arms = [
        a
        for a in like(study, "kd")
        if study.values(a).keys() == study.values("kd").keys()
    ]
    if len(arms) > 2:
        shared = pairing({arm: study.values(arm) for arm in arms})
        told += (
            f" Over {shared.arms} arms, runs of one seed correlate with {shared.correlation:.2f}; a difference paired by seed has {shared.variance_ratio:.2f} times the variance of an unpaired one "
            f"(that seeds do nothing: p = {shared.p:.2g}). Without normality, {shared.seeds} runs against {shared.seeds} can reach no p below {smallest_p(shared.seeds, paired=False):.2g}, and {shared.seeds} paired differences none below {smallest_p(shared.seeds):.2g}."
        )
    display(Markdown(told))
if questions.missing:
    display(
        not_yet_run(
            f"{questions.missing} of {len(questions.specs)} runs by the published recipe, on a GPU; every figure "
            "below appears a second time when they are there",
            questions.command,
        )
    )

# %% [markdown]
# ## Fidelity beside accuracy
#
# Two numbers describe how well a student has learned from a teacher. *Accuracy* asks whether it is right. *Fidelity* asks whether it says what the
# teacher says: by **agreement**, the fraction of images on which both rank the same class first, or by $D_{\mathrm{KL}}(p\,\Vert\,q)$ at
# $T=1$, which compares whole distributions. Stanton and co-workers found that they come apart: students that generalise well may
# match their teachers poorly, and better matching does not have to mean better generalisation {cite}`stanton2021does`.
#
# They cannot come apart entirely. Write $d(u, v)$ for the fraction of images on which two classifiers decide differently. That is a
# distance, and the labels are a classifier too, so the triangle inequality bounds the agreement of student and teacher by their accuracies $a_S$ and $a_T$:
#
# $$ a_S + a_T - 1 \;\le\; 1 - d(S, T) \;\le\; 1 - \lvert a_S - a_T\rvert . $$
#
# The cell checks it on random classifiers. The bound on the right is drawn in the figure.

# %%
rng = np.random.default_rng(0)
truth = rng.integers(0, 5, (200, 50))
one, two = rng.integers(0, 5, (2, 200, 50))
one = np.where(rng.random((200, 50)) < rng.random((200, 1)), truth, one)
two = np.where(rng.random((200, 50)) < rng.random((200, 1)), truth, two)
agree, right, also = (
    (u == v).mean(1) for u, v in ((one, two), (one, truth), (two, truth))
)
assert (agree <= 1 - abs(right - also) + 1e-12).all()
assert (agree >= right + also - 1 - 1e-12).all()

# %% [markdown]
# Every arm whose student has the full width is a point below. (Left out are the arms that change the optimiser or its rate by a factor of a hundred:
# they ask another question.) Read the figure from left to right for accuracy and upwards for fidelity. Above the curve of the others lie arms that
# agree beyond what their accuracy brings with it.

# %% tags=["hide-input"]
FAMILIES = {
    "labels only": PURPLE,
    "controls": "grey",
    "outputs": BLUE,
    "layers": ORANGE,
    "outputs and layers": GREEN,
}


def family(arm):
    """What an arm's objective looks at."""
    if arm in ("alone", "smoothed"):
        return "labels only"
    if arm in ("permuted", "spread"):
        return "controls"
    if "+" in arm:
        return "outputs and layers"
    layers = ("fitnet", "at", "rkd", "crd")
    return "layers" if arm.partition("-")[0] in layers else "outputs"


# %% tags=["hide-input"]
def full_width(study):
    """Arms whose student has full width, all classes and the usual optimiser."""
    student = STUDENT[study.plan]
    arms = [
        s.arm for s in study.specs if s.teacher and s.student == student and not s.omit
    ]
    return [arm for arm in dict.fromkeys(arms) if not arm.startswith("times")]


# %%
def at_equal_accuracy(study, arms, measure, name):
    """What a line through all runs leaves of a measure at their accuracy, in points."""
    left = off_line(
        *({a: study.values(a, m) for a in arms} for m in (measure, "accuracy"))
    )
    return replace(evidence(left, Quantity(name, "points", 100, 2)), source="records")


# %% tags=["hide-input"]
def teacher_test(study):
    """What a study's teacher's record says of the test split; None where there is none."""
    found = study.arm(study.specs[0].arm)
    return found[0]["test"] if found else None


def reversed_pairs(study, arms):
    """How many pairs of arms differ in accuracy and in agreement (both intervals exclude zero), and how many of these
    in opposite directions.
    """
    accurate, faithful = (
        {arm: study.values(arm, m) for arm in arms} for m in ("accuracy", "agreement")
    )
    signs = []
    for place, control in enumerate(arms[:-1]):
        better, closer = (
            against(of, control, arms[place + 1 :], correction=None)
            for of in (accurate, faithful)
        )
        signs += [
            better[a].mean * closer[a].mean
            for a in better
            if better[a].excludes_zero and closer[a].excludes_zero
        ]
    return len(signs), sum(sign < 0 for sign in signs)


NAMED = ("alone", "smoothed", "permuted", "spread", "kd", "crd", "rkd")


def name_points(panel, places):
    """Names beside their points, below where one would cover another."""
    taken = []
    panel.autoscale_view()
    for name, place in places.items():
        x, y = panel.transAxes.inverted().transform(panel.transData.transform(place))
        near = any(abs(x - u) < 0.25 and abs(y - v) < 0.07 for u, v in taken)
        panel.annotate(
            name,
            place,
            xytext=(4, -11 if near else 4),
            textcoords="offset points",
            fontsize=8,
        )
        taken.append((x, y))


def fidelity_figure(study):
    arms = study.ready(full_width(study))
    figure, panels = plt.subplots(1, 2, figsize=(8.2, 4.0))
    for panel, (measure, factor) in zip(
        panels, (("agreement", 100), ("kl_to_teacher", 1)), strict=True
    ):
        for name, colour in FAMILIES.items():
            group = [arm for arm in arms if family(arm) == name]
            for arm in group:
                panel.plot(
                    [100 * v for v in study.values(arm).values()],
                    [factor * v for v in study.values(arm, measure).values()],
                    ".",
                    color=colour,
                    alpha=0.3,
                    markersize=4,
                )
            panel.plot(
                [100 * study.mean(arm).mean for arm in group],
                [factor * study.mean(arm, measure).mean for arm in group],
                "o",
                color=colour,
                label=name if group else None,
                markersize=6,
            )
        panel.set_xlabel("test accuracy (%)")
        name_points(
            panel,
            {
                arm: (
                    100 * study.mean(arm).mean,
                    factor * study.mean(arm, measure).mean,
                )
                for arm in arms
                if arm in NAMED
            },
        )
    if found := teacher_test(study):
        low, high = panels[0].get_xlim()
        bottom, top = panels[0].get_ylim()
        xs = np.array([low, high])
        panels[0].plot(
            xs,
            100 - abs(xs - 100 * found["accuracy"]),
            ":",
            color="grey",
            linewidth=1.2,
        )
        panels[0].set(xlim=(low, high), ylim=(bottom, top))
    panels[0].set_ylabel("agreement with the teacher (%)")
    panels[1].set_ylabel("KL from the teacher (nats)")
    panels[1].invert_yaxis()
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=5,
        fontsize=8,
    )
    missing = len(full_width(study)) - len(arms)
    clear, opposite = reversed_pairs(study, arms)
    best = max(arms, key=lambda arm: study.mean(arm).mean)
    closest = max(arms, key=lambda arm: study.mean(arm, "agreement").mean)
    nearest = min(arms, key=lambda arm: study.mean(arm, "kl_to_teacher").mean)
    shown = show(
        figure,
        label=f"fidelity-{study.plan}",
        caption=f"Accuracy and fidelity of {len(arms)} arms ({scale_of(study)}): small dots are runs, large ones their means. Up is more faithful on "
        "both sides. Dotted, where it is in view: the most agreement that the accuracies allow. Most accurate on "
        f"average is {best}; most agreement has {closest}; least divergence {nearest}."
        + (f" {missing} arms are not yet run." if missing else ""),
        alt="Two scatter plots, one point per arm: accuracy against agreement with the teacher, and accuracy against "
        "the divergence from it, upwards being more faithful. Colours tell labels, controls, outputs, layers and both.",
    )
    beyond = at_equal_accuracy(
        study, arms, "agreement", "agreement beyond what a student of its accuracy has"
    )
    spread = 100 * np.std([v for of in beyond.values.values() for v in of.values()])
    means = np.array(
        [[study.mean(arm, m).mean for arm in arms] for m in ("accuracy", "agreement")]
    )
    count = len(arms) * (len(arms) - 1) // 2
    said = (
        f"{scale_of(study)}: over {len(arms)} arms accuracy and agreement correlate with {np.corrcoef(means)[0, 1]:.3f}; agreement differs from what a line expects of a student of that accuracy by "
        f"{spread:.2f} points (root mean square over runs), and of {count} pairs of arms, {clear} of them clear in both, {opposite} are in opposite order."
    )
    return shown, said, within("kd", "alone", margin, beyond)


answer(
    "accuracy and fidelity of the arms",
    lambda study: ("alone", "kd", "permuted"),
    fidelity_figure,
    full_width,
)

# %% [markdown]
# A student that learns from labels agrees with the teacher too, since both are often right. So the question to ask
# about a faithful student is how much larger its agreement is than that of an equally accurate student which has had
# nothing from the teacher. <!-- by definition --> The sentence under the figure has the answer for `kd` and `alone`,
# by way of a line through all arms. **Where it holds, agreement is no
# second witness beside accuracy.** What a student says of images on which its teacher errs is one: {doc}`26_whose_errors`.
#
# ## Which part of the target?
#
# A4 says that hard labels lose what the teacher's distribution holds. To lose something is a statement about cause, and it takes an intervention:
# remove one property of the target at a time and keep the rest. Five arms do that.
#
# | arm | the true class gets | the wrong classes get | drawn at random |
# |---|---|---|---|
# | `alone` | all | nothing | nothing |
# | `smoothed` | the same share in every image | equal shares | nothing |
# | `spread` | what the teacher gives it in *this* image | equal shares | nothing |
# | `permuted` | the same | the teacher's shares, each to some class | which class, at every step |
# | `kd` | the same | the teacher's shares, each to its own class | nothing |
#
# The last three are mixed with labels in the same proportion and have the same temperature. Here is what the five ask for in one photograph: of a
# thousand, the one that is in the middle when they are ordered by what the book's teacher thinks of their true class.

# %% tags=["hide-input"]
teacher = book_teacher(data, device=device)
some = data.validation[: min(1000, len(data.validation))]
believed = predict(teacher, some, device=device)
labels = some.labels
of_true = soften(believed).gather(-1, labels[:, None]).squeeze(-1)
example = of_true.argsort()[len(of_true) // 2]
t, y = believed[example : example + 1].double(), labels[example : example + 1]

# %%
generator = torch.Generator().manual_seed(0)
targets = {
    "alone": smooth_labels(y, data.num_classes, smoothing=0.0).double(),
    "smoothed": smooth_labels(y, data.num_classes, smoothing=0.1).double(),
    "spread": soften(spread_dark_knowledge(t, y, temperature=4), 4),
    "permuted": soften(permute_dark_knowledge(t, y, generator=generator), 4),
    "kd": soften(t, 4),
}

# %% tags=["hide-input"]
ARM_COLOURS = {
    "alone": PURPLE,
    "smoothed": VERMILION,
    "spread": GREEN,
    "permuted": ORANGE,
    "kd": BLUE,
}
top = t[0].argsort(descending=True)[:9].tolist()
rows = [y.item(), *(c for c in top if c != y.item())][:9]
figure, panels = plt.subplots(1, 5, sharey=True, figsize=(8.4, 2.9))
for panel, (name, target) in zip(panels, targets.items(), strict=True):
    shares = 100 * target[0, rows]
    panel.barh(range(len(rows)), shares, color=ARM_COLOURS[name], height=0.75)
    panel.set(title=name, xlim=(0, 1.08 * max(shares.max(), 1)))
    panel.grid(axis="y", visible=False)
    panel.tick_params(axis="x", labelsize=8)
panels[0].set_yticks(
    range(len(rows)), [data.classes[c].replace("_", " ") for c in rows], fontsize=8.5
)
panels[0].invert_yaxis()
panels[2].set_xlabel("probability in the target (%); each panel has its own scale")
show(
    figure,
    label="five-targets",
    caption=f"What five arms ask for in one image (true class on top: {data.classes[y.item()].replace('_', ' ')}; then the teacher's other favourites). The last three "
    "give the true class the same probability, at $T=4$. Only in the last does the order of the wrong classes mean anything.",
    alt="Five bar charts of target probabilities over nine classes: hard label, smoothed label, teacher's confidence "
    "with the rest spread evenly, the same with the rest shuffled, and the teacher's softened distribution.",
)

# %% [markdown]
# What the arms share is exact, and so is what tells them apart. `spread`, `permuted` and `kd` agree in the true class. `permuted` and `kd` have
# the same entropy; `spread` has the largest that is left when the true class is fixed. <!-- by definition --> And `spread` is the *mean* of `permuted` over all shuffles. Since the
# gradient of the soft loss is linear in the target ({doc}`02_gradients`), `spread` is `permuted` with the noise of shuffling averaged away, step by step.

# %%
for name in ("spread", "permuted"):
    assert torch.allclose(targets[name][0, y], targets["kd"][0, y])
assert torch.allclose(entropy(targets["permuted"]), entropy(targets["kd"]))
assert entropy(targets["spread"]) >= entropy(targets["kd"])

# %% tags=["hide-input"]
four = torch.tensor([[2.0, 1.0, 0.0, -3.0]], dtype=torch.float64)
first = torch.tensor([0])
shuffles = [
    soften(four[:, [0, *(1 + np.array(order))]], 4) for order in permutations(range(3))
]
assert torch.allclose(
    torch.stack(shuffles).mean(0),
    soften(spread_dark_knowledge(four, first, temperature=4), 4),
)

share = soften(believed, 4).gather(-1, labels[:, None])
Markdown(
    f"At $T=4$ the teacher gives the true class {share.mean():.1%} on average, from {share.quantile(0.05):.1%} (5th percentile) to {share.quantile(0.95):.1%}."
)

# %% [markdown]
# So each contrast isolates one thing:
#
# - *kd − spread* changes only **which** wrong classes the target names. This is dark knowledge in the narrow sense. Its size belongs to this temperature and weight, and it contains what a
#   flat target costs. It is not a share of what distillation gains over labels, which is *kd − alone*.
# - *spread − permuted* is the cost of **noise** in the target, and of nothing else. {doc}`06_first_distillation` could not separate it from the first.
# - *spread − alone* is what the teacher's **confidence** does, image by image, together with all that a softened loss does to training. It need not be a gain.
#   The line above says how much probability the target keeps at $T=4$ for the true class; with the rest spread evenly it is a smoothed label, and labels have the weight $0.1$.
# - *smoothed − alone* is what a softer label is worth without any teacher {cite}`muller2019when,yuan2020revisiting`.
#
# *spread − smoothed* looks like the value of image-dependent confidence {cite}`tang2020understanding`. It is not clean: the two also differ in temperature, in weight, and, as the sentence above
# shows, in how much they leave to the true class.
#
# Accuracy alone would not tell the mechanisms apart. If dark knowledge is transferred, one expects the student to err where its teacher does, with errors that move into the superclass of the truth.
# A target that is merely soft would be expected to change calibration first. But the share of errors that stay in the
# superclass rises with accuracy, whoever teaches, so it is compared *at equal accuracy* as well: what remains of it
# after a straight line through all runs of the figure above.

# %%
CAUSES = ("alone", "smoothed", "permuted", "spread", "kd")
CONTRASTS = {
    "kd − spread": ("kd", "spread"),
    "spread − permuted": ("spread", "permuted"),
    "spread − alone": ("spread", "alone"),
    "smoothed − alone": ("smoothed", "alone"),
    "kd − alone": ("kd", "alone"),
}

# %% tags=["hide-input"]
MEASURES = {
    "accuracy": ("accuracy (%)", 100),
    "agreement": ("agreement (%)", 100),
    "errors_within_superclass": ("errors in superclass (%)", 100),
    "cross_entropy": ("cross-entropy (nats)", 1),
    "calibration_error": ("calibration error (%)", 100),
    "kl_to_teacher": ("KL from teacher (nats)", 1),
}
FITTED = {"fitted": ("the same, fitted (%)", 100)}


def measure_of(name):
    """A measure by its name, as records have it."""
    if name in FITTED:
        return lambda record: record["test"]["fitted"]["calibration_error"]
    return name


def measured(
    study, arms, names, *, colours=None, columns=3, reference=None, height=None
):
    """One panel per measure, one row per arm: runs, means and intervals."""
    lines = -(-len(names) // columns)
    height = height or (0.7 + 0.27 * len(arms))
    figure, panels = plt.subplots(
        lines, columns, sharey=True, figsize=(8.2, lines * height), squeeze=False
    )
    for panel, name in zip(panels.flat, names, strict=False):
        text, factor = (MEASURES | FITTED)[name]
        dots(
            panel,
            {arm: list(study.values(arm, measure_of(name)).values()) for arm in arms},
            {arm: study.mean(arm, measure_of(name)) for arm in arms},
            factor=factor,
            colours=colours,
        )
        low, high = panel.get_xlim()
        if reference and low < factor * reference.get(name, np.nan) < high:
            panel.axvline(
                factor * reference[name], color="grey", linestyle=":", linewidth=1.2
            )
        panel.set_xlabel(text)
    for panel in panels.flat[len(names) :]:
        panel.axis("off")
    return figure


def differences(study, contrasts, names, *, colours=None, columns=3):
    """The same of paired differences, with a line at zero."""
    lines = -(-len(names) // columns)
    figure, panels = plt.subplots(
        lines,
        columns,
        sharey=True,
        figsize=(8.2, lines * (0.7 + 0.27 * len(contrasts))),
        squeeze=False,
    )
    for panel, name in zip(panels.flat, names, strict=False):
        text, factor = MEASURES[name]
        panel.axvline(0, color="grey", linewidth=1)
        dots(
            panel,
            {key: by_seed(study, *pair, name) for key, pair in contrasts.items()},
            {key: gap(study, *pair, name) for key, pair in contrasts.items()},
            factor=factor,
            colours=colours,
        )
        panel.set_xlabel(text.replace("(%)", "(points)"))
    for panel in panels.flat[len(names) :]:
        panel.axis("off")
    return figure


def teacher_said(study, names):
    """The teacher's own numbers, for a caption."""
    found = teacher_test(study) or {}
    numbers = [
        f"{MEASURES[n][0].partition(' (')[0]} {MEASURES[n][1] * found[n]:.3g}{' %' if MEASURES[n][1] == 100 else ''}"
        for n in names
        if n in found
    ]
    return (
        f" The teacher (dotted where in view): {', '.join(numbers)}." if numbers else ""
    )


def number_table(study, arms, names, caption):
    """Means with intervals."""
    rows = []
    for arm in arms:
        row = [arm]
        for name in names:
            interval, (_, factor) = study.mean(arm, name), MEASURES[name]
            row.append(
                f"{factor * interval.mean:.2f} [{factor * interval.low:.2f}, {factor * interval.high:.2f}]"
            )
        rows.append([*row, study.mean(arm).n])
    return table(["arm", *(MEASURES[n][0] for n in names), "n"], rows, caption=caption)


def cause_figures(study):
    arms = study.ready(of_plan(study, CAUSES))
    pairs = {k: pair for k, pair in CONTRASTS.items() if gap(study, *pair) is not None}
    values = show(
        measured(
            study, arms, MEASURES, colours=ARM_COLOURS, reference=teacher_test(study)
        ),
        label=f"causes-{study.plan}",
        caption=f"Five targets, six measures ({scale_of(study)}): runs, means and 95 % intervals (Student's $t$) on the test split."
        + teacher_said(study, MEASURES)
        + left_out(study, CAUSES),
        alt="Six panels of dots with intervals, one row per arm: accuracy, agreement, errors within the superclass, "
        "cross-entropy, calibration error and divergence from the teacher.",
    )
    contrasts = show(
        differences(study, pairs, MEASURES),
        label=f"contrasts-{study.plan}",
        caption=f"The same as differences: dots by seed, 95 % intervals over the pooled deviation where the arms' variances allow it. {len(pairs) * len(MEASURES)} intervals are shown; one in twenty would exclude zero if nothing had an effect.",
        alt="Six panels of differences with intervals and a line at zero, one row per contrast.",
    )
    found = [
        values,
        contrasts,
        number_table(
            study,
            arms,
            list(MEASURES)[:3],
            "Mean and 95 % interval over seeds, test split.",
        ),
    ]
    names = {"kd": "kd", "spread": "spread (all wrong classes made alike)"}
    if "kd − spread" in pairs:
        found += [
            above("kd", "spread", study, measure, names=names)
            for measure in ("accuracy", "errors_within_superclass")
        ]
        arms = study.ready(full_width(study))
        kinder = at_equal_accuracy(
            study,
            arms,
            "errors_within_superclass",
            "errors within the superclass beyond what a student of its accuracy has",
        )
        off = study.at_equal("errors_within_superclass", arms=arms)["kd"]
        found += [
            above(
                "kd",
                [arm for arm in ("spread", "permuted", "alone") if arm in arms],
                kinder,
                names=names,
            ),
            f"These intervals take the line as known. Counting how far other arms lie off it, kd lies {points(off)} points off the line through the means of the {len(arms) - 1} others"
            + (", which decides nothing by itself." if not off.excludes_zero else "."),
        ]
    controls = {arm: gap(study, arm, "alone") for arm in ("spread", "permuted")}
    gain = gap(study, "kd", "alone")
    if gain and all(controls.values()):
        found += [below(arm, "alone", study) for arm in controls]
        found.append(
            f"{scale_of(study)}: against no teacher at all, "
            + ", ".join(f"{arm} − alone is {points(i)}" for arm, i in controls.items())
            + f" and kd − alone {points(gain)} points of accuracy (n = {gain.n}). "
            + (
                "Where spread is worse than no teacher, kd − spread contains that loss: it is no share of what kd gains."
                if controls["spread"].high < 0
                else "spread is not clearly worse than no teacher."
            )
        )
    if "spread − permuted" in pairs:
        found.append(undecided("spread", "permuted", margin, study))
    return found


answer(
    "the causal test: which property of the target matters",
    lambda study: ("alone", "kd", "permuted", "spread"),
    cause_figures,
    lambda study: CAUSES,
)

# %% [markdown]
# The last sentence is about the noise of shuffling: what *permuted* loses beyond *spread*. The verdict on A4 is given in {doc}`06_first_distillation`, with `permuted` as its control; *kd − spread* here is that test without its noise,
# since nothing is drawn at random in it. Where its interval lies above zero, either shows that the teacher's opinion of the wrong classes makes such a target useful; neither says how much of the gain over labels it is.
#
# ## Do layers guide more strongly than outputs?
#
# A9 says that they can: “Distilling this intermediate knowledge can provide stronger guidance to the student.” FitNets let a hidden layer of the student follow a hint {cite}`romero2015fitnets`. Four arms look inside the teacher: `fitnet`, `at` for attention transfer
# {cite}`zagoruyko2017paying`, `rkd` for relations between examples {cite}`park2019relational`, `crd` for contrast of embeddings {cite}`tian2020contrastive`. Four look
# at its logits alone: `kd`, `dkd` {cite}`zhao2022decoupled`, `dist` {cite}`huang2022knowledge`, `standardised` logits {cite}`sun2024logit`. Each has the weights
# of its paper or of the benchmark of Tian, Krishnan and Isola; in `small` and `questions` neither weight nor rate is tuned, in `grown` both are, and the objectives of layers differ from each other in everything. The objectives on layers, `dkd` and `dist` keep labels at weight 1, `kd` and `standardised` at 0.1.
#
# Layers against nothing would be no comparison, so all are held against `kd`, and then against the others on outputs. (CRD's negatives come from a memory bank; what that means, and what A13 leaves open, is
# in {doc}`09_contrast`.)

# %%
OUTPUTS = ("kd", "dkd", "dist", "standardised")
LAYERS = ("fitnet", "at", "rkd", "crd")


def layers_of(study):
    """Those on layers; `grown` has the hint with its released regressor, too."""
    return (*LAYERS, "fitnet-regressor") if study is grown else LAYERS


# %% tags=["hide-input"]
METHOD_COLOURS = dict.fromkeys(OUTPUTS, BLUE) | dict.fromkeys(layers_of(grown), ORANGE)


def kd_map(study):
    """KD at every temperature and weight of the plan."""
    arms = dict.fromkeys(spec.arm for spec in study.specs)
    return ["kd", *(arm for arm in arms if arm.startswith("T") and "-soft" in arm)]


def layers_and_outputs(study):
    """What the records say of the hint against KD, against KD at every temperature and weight, and of DIST against all four."""
    accuracy = under(study, "accuracy")
    map_ = Among(
        "the hint and KD at every temperature and weight of the plan",
        ["fitnet", *kd_map(study)],
    )
    over_kd = above("fitnet", "kd", study, accuracy)
    return (
        over_kd,
        leads("fitnet", study, accuracy, among=map_) if len(map_) > 2 else over_kd,
        above("dist", layers_of(study), study, accuracy),
    )


def layers_figure(study):
    arms = study.ready(of_plan(study, (*OUTPUTS, *layers_of(study))))
    names = ("accuracy", "agreement", "errors_within_superclass")
    figure = differences(
        study, {arm: (arm, "alone") for arm in arms}, names, colours=METHOD_COLOURS
    )
    for panel, name in zip(figure.axes, names, strict=False):
        reference = gap(study, "kd", "alone", name)
        panel.axvline(100 * reference.mean, color=BLUE, linestyle=":", linewidth=1.2)
    shown = show(
        figure,
        label=f"layers-{study.plan}",
        caption=f"Methods that look at outputs (blue) and at layers (orange), minus “alone”, one dot per seed ({scale_of(study)}). Dotted: kd. {3 * len(arms)} intervals."
        + left_out(study, (*OUTPUTS, *layers_of(study))),
        alt="Three panels of differences to the student that learned alone, one row per method, output methods in "
        "blue over layer methods in orange, with a dotted line at plain soft targets.",
    )
    others = [arm for arm in arms if arm != "kd"]
    every = {
        name: against({arm: study.values(arm, name) for arm in arms}, "kd", others)
        for name in names
    }
    rows = [
        [arm, "layers" if arm in layers_of(study) else "outputs", *(points(every[name][arm]) for name in names), every["accuracy"][arm].n]
        for arm in others
    ]  # fmt: skip
    table_of = table(
        ["arm", "looks at", "accuracy − kd's", "agreement − kd's", "errors in superclass − kd's", "n"],
        rows,
        caption=f"Differences to kd in points. In each column the 95 % intervals hold together (Dunnett; {every['accuracy'][others[0]].basis}).",
    )  # fmt: skip
    found = [shown, table_of]
    if set(arms) == {*OUTPUTS, *layers_of(study)} and study.complete(kd_map(study)):
        found += [
            *dict.fromkeys(layers_and_outputs(study)),
            above("kd", ["at", "rkd", "crd"], study, under(study, "accuracy")),
        ]
        found.append(
            leads(
                "dist",
                study,
                under(study, "accuracy"),
                among=Among("the objectives on outputs and on layers", arms),
            )
        )
    return found


answer(
    "layers against outputs",
    lambda study: ("alone", "kd", "at"),
    layers_figure,
    lambda study: ("alone", *OUTPUTS, *layers_of(study)),
)

# %% [markdown]
# ### Verdict
#
# What a step of each method costs is measured in {doc}`15_choosing`. “Can” asks for one case in which layers guide more strongly; more strongly than which outputs, the article leaves open. The verdict follows from three sentences: is the hint
# ahead of KD, of KD at every temperature and weight that was tried, and is an objective on outputs ahead of all on layers? In `grown`, where KD has a rate and a weight of its own, any of those on layers may be the one that is ahead, and the second sentence is left out. <!-- by definition -->

# %% tags=["hide-input"]
if study := decisive(lambda study: (*kd_map(study), *OUTPUTS[1:], *layers_of(study))):
    over_kd, over_map, outputs = layers_and_outputs(study)
    a_layer, hint = over_kd.holds, [over_kd, over_map]
    if study is grown:
        gaps = against(
            {arm: study.values(arm) for arm in like(study, "kd")},
            "kd",
            layers_of(study),
        )
        a_layer = any(gap.low > 0 for gap in gaps.values())
        hint = [
            f"Minus kd, in points of test accuracy ({scale_of(study)}; Dunnett): {'; '.join(f'{arm} {points(gap)}' for arm, gap in gaps.items())}."
        ]
    outcome = (
        "depends" if a_layer and outputs.holds
        else "verified" if a_layer and (study is grown or over_map.holds)
        else "refuted" if outputs.holds and above("kd", layers_of(study), study).holds
        else "not decided"
    )  # fmt: skip
    weights = "The objectives on layers and DIST have labels at weight 1, kd at 0.1 (0 to 0.5 in its map), which no arm takes apart from the rest."
    if study is grown:
        young = layers_and_outputs(small)
        unsaid = [
            "Each method has a rate and a weight of its own, chosen in six tries. Young students, at one rate for all, said:",
            young[0],
            young[2],
        ]
    else:
        unsaid = [
            f"{weights} Weights are the published ones, the hint's with a regressor that is not quite the published one; the order may be one of rates, and another with a rate of its own for each method."
        ]
    display(verdict(
        "A9", outcome,
        [
            "Against plain KD it does, against another objective on outputs it does not." if outcome == "depends" else "",
            "“Can provide stronger guidance”:",
            *hint,
            "But by another objective on outputs:",
            outputs,
            *unsaid,
        ],
        condition="bound to a scale" if outcome == "depends" else None,
    ))  # fmt: skip

# %% [markdown]
# ## Combinations, at equal budget
#
# A15: “Often, the most effective distillation strategy involves combining multiple objectives.” *The most effective* asks whether a combination is ahead of all single objectives; whether it is ahead of its own parts is another, weaker question. Both are asked.
# A combination has one more weight to tune, and whoever tries more settings and reports the best
# can expect a better one, even among equals. <!-- by definition --> So each method of the second question gets the same budget here: three weights. For `kd` it is the weight of the soft
# targets, for `at` and `crd` the weight of the term, and for `kd+at` and `kd+crd` the weight of the second term beside a fixed `kd`.
#
# The **validation split chooses**, and no seed is reported by a choice in which it took part: for each seed, the weight is the one whose mean validation accuracy after the last epoch, over the
# *other* seeds, is highest, and the test accuracy of that weight with the seed left out is what counts. <!-- by definition --> A combination is compared with the better of its parts, chosen in the same way. <!-- by definition --> That rival
# has had six tries, three for each part, and the combination three. A second rival is `kd` with its temperature tuned as well, over the whole map of {doc}`13_temperature_and_weight`. `crd+kd`, with the weights under which it was published, was not tuned and is shown beside.
# The plan for a CPU leaves the tuning of `crd` and `kd+crd` to the GPU's.

# %%
BUDGET = {
    "kd": ("T4-soft0.5", "kd", "T4-soft1"),
    "at": ("at-100", "at", "at-5000"),
    "crd": ("crd-0.2", "crd", "crd-3.2"),
    "kd+at": ("kd+at-100", "kd+at-1000", "kd+at-5000"),
    "kd+crd": ("kd+crd-0.2", "kd+crd-0.8", "kd+crd-3.2"),
}

# %% tags=["hide-input"]
WEIGHTS = {"kd": ("0.5", "0.9", "1")} | dict.fromkeys(
    ("crd", "kd+crd"), ("0.2", "0.8", "3.2")
)
WEIGHTS |= dict.fromkeys(("at", "kd+at"), ("100", "1000", "5000"))
PARTS = {"kd+at": ("kd", "at"), "kd+crd": ("kd", "crd")}
#: Objectives of one term beside the labels, and combinations of them, as published.
SINGLE = (*OUTPUTS, *LAYERS)
COMBINED = ("crd+kd", "dist+fitnet", "kd+at-100", "kd+at-1000", "kd+at-5000")
#: Combinations that were tuned as their parts were, rates among it, in the plan `grown`.
TUNED_WHOLE = {"crd+kd": ("crd", "kd"), "dist+fitnet": ("dist", "fitnet")}


def tuned(study):
    """The methods whose three weights a study's plan has."""
    planned = {spec.arm for spec in study.specs}
    return {method: arms for method, arms in BUDGET.items() if planned.issuperset(arms)}


def every(study):
    return [arm for arms in tuned(study).values() for arm in arms]


def validated(record):
    """Validation accuracy after the last epoch."""
    return record["epochs"]["validation.accuracy"][-1]


# %%
def chosen(study, arms, without=None):
    """The arm that the validation split prefers, by all seeds or without one;
    an arm of which a run diverged is out.
    """
    stable = [arm for arm in study.ready(arms) if not study.diverged(arm)]

    def score(arm):
        values = study.values(arm, validated)
        return np.mean([v for seed, v in values.items() if seed != without])

    return max(stable, key=score)  # the first, if equal


def tuned_tests(study, arms):
    """Test accuracy of each seed under the weight that the other seeds chose."""
    stable = [arm for arm in study.ready(arms) if not study.diverged(arm)]
    seeds = sorted(set.intersection(*(set(study.values(arm)) for arm in stable)))
    return {s: study.values(chosen(study, arms, s))[s] for s in seeds}


# %% tags=["hide-input"]
def against_parts(study, method):
    """A tuned combination against its rivals, chosen likewise: the better of its parts, and KD with its temperature tuned, too."""
    parts = [arm for part in PARTS[method] for arm in BUDGET[part]]
    rivals = {
        f"the better of {' and '.join(PARTS[method])} ({len(parts)} tries)": parts
    }
    rivals[f"kd with temperature and weight tuned ({len(kd_map(study))} tries)"] = (
        kd_map(study)
    )
    values = {
        name: tuned_tests(study, arms)
        for name, arms in ({method: BUDGET[method]} | rivals).items()
    }
    seeds = set.intersection(*map(set, values.values()))
    values = {
        name: {seed: of[seed] for seed in sorted(seeds)} for name, of in values.items()
    }
    chosen_by_others = replace(
        under(study, "accuracy"),
        name=f"test accuracy with what the other seeds chose ({scale_of(study)})",
    )
    return above(
        method,
        list(rivals),
        replace(evidence(values, chosen_by_others), source="records"),
    )


def optimism(study, arms):
    """What choosing adds to a validation score: how far the chosen arm's exceeds
    its test score, beyond the mean of all arms'.
    """
    gap = {
        arm: study.mean(arm, validated).mean - study.mean(arm).mean
        for arm in study.ready(arms)
    }
    return gap[chosen(study, arms)] - np.mean(list(gap.values()))


def regret(study, arms):
    """How far the best arm on the test split exceeds the validation split's choice."""
    best = max(study.mean(arm).mean for arm in study.ready(arms))
    return best - study.mean(chosen(study, arms)).mean


def tuned_figures(study):
    """Three weights a method, what chose among them, and what was chosen."""
    budget = {
        m: arms
        for m, arms in tuned(study).items()
        if len(study.ready(arms)) == 3 and any(not study.diverged(a) for a in arms)
    }
    best = {method: chosen(study, arms) for method, arms in budget.items()}
    figure, panels = plt.subplots(
        1, len(budget), sharey=True, figsize=(8.2, 3.2), squeeze=False
    )
    for panel, (method, arms) in zip(panels.flat, budget.items(), strict=True):
        for name, take, line, fill in (
            ("validation", validated, "o--", "none"),
            ("test", "accuracy", "o-", BLUE),
        ):
            values = [100 * study.mean(arm, take).mean for arm in arms]
            panel.plot(
                range(3), values, line, color=BLUE, mfc=fill, linewidth=1.2, label=name
            )
        place = arms.index(best[method])
        panel.plot(
            [place],
            [100 * study.mean(best[method], validated).mean],
            "o",
            mfc="none",
            mec=VERMILION,
            markersize=13,
            mew=1.6,
        )
        panel.set_xticks(range(3), WEIGHTS[method], fontsize=8)
        panel.set(title=method, xlim=(-0.5, 2.5))
        panel.set_xlabel("weight")
    panels[0, 0].set_ylabel("accuracy (%)")
    panels[0, 0].legend(fontsize=8)
    validated_at = show(
        figure,
        label=f"tuned-{study.plan}",
        caption=f"Three weights a method, mean over seeds ({scale_of(study)}): validation (hollow) chooses, test (filled) is what counts. The ring is the choice by all seeds."
        + left_out(study, every(study)),
        alt="One small panel per method with validation and test accuracy at three weights; a ring marks the weight that "
        "the validation split chose.",
    )
    rows = {"alone": study.values("alone")}
    rows |= {method: tuned_tests(study, arms) for method, arms in budget.items()}
    tints = {"alone": PURPLE} | {m: FAMILIES[family(arm)] for m, arm in best.items()}
    if study.ready(("crd+kd",)):
        rows["crd+kd, as published"] = study.values("crd+kd")
        tints["crd+kd, as published"] = FAMILIES["outputs and layers"]
    figure, panel = plt.subplots(figsize=(6.8, 0.8 + 0.3 * len(rows)))
    dots(
        panel,
        {name: list(runs.values()) for name, runs in rows.items()},
        {name: mean_interval(list(runs.values())) for name, runs in rows.items()},
        factor=100,
        colours=tints,
    )
    panel.set_xlabel("test accuracy (%)")
    tested = show(
        figure,
        label=f"chosen-{study.plan}",
        caption="Test accuracy of each seed under the weight that the validation split chose on the other seeds: outputs blue, layers orange, combinations green.",
        alt="Dots with intervals: the student alone, each method with the weight chosen for it, and the published combination.",
    )
    shown = [validated_at, tested]
    selection = [
        [
            method,
            best[method],
            ", ".join(chosen(study, arms, seed) for seed in tuned_tests(study, arms)),
            f"{100 * optimism(study, arms):+.2f}",
            f"{100 * regret(study, arms):.2f}",
        ]
        for method, arms in budget.items()
    ]
    shown.append(
        table(
            [
                "method",
                "chosen by all seeds",
                "chosen without each seed",
                "optimism of choosing",
                "regret on the test split",
            ],
            selection,
            caption="In points, of the choice by all seeds. Optimism: how much better the chosen weight looks on the split that chose it, beyond what is usual for this method. Regret: what choosing on the test "
            "split would have claimed in addition, which is never negative.",
        )
    )
    for method, parts in PARTS.items():
        if (
            method in best
            and all(part in best for part in parts)
            and study.complete(kd_map(study))
        ):
            shown.append(against_parts(study, method))
    return shown


def against_own_parts(study):
    """Each tuned combination against its own parts."""
    if study is grown:
        accuracy = under(study, "accuracy")
        return [above(c, parts, study, accuracy) for c, parts in TUNED_WHOLE.items()]
    return [against_parts(study, method) for method in PARTS if method in tuned(study)]


def all_combined(study):
    """All that the plan has of single objectives and combinations."""
    if study is grown:
        return [*OUTPUTS, *layers_of(study), *TUNED_WHOLE]
    return of_plan(study, (*SINGLE, *COMBINED))


def combination_figures(study):
    both = study.ready(all_combined(study))
    accuracy = under(study, "accuracy")
    if tuned(study):
        shown = tuned_figures(study)
        if len(both) == len(all_combined(study)):
            shown += [
                leads(
                    "dist",
                    study,
                    accuracy,
                    among=Among(
                        f"the {len(both)} single and combined objectives", both
                    ),
                ),
                below("crd+kd", ["dist", "fitnet"], study, accuracy),
                undecided("crd+kd", "dkd", margin, study, accuracy),
            ]
        return shown
    figure = arms_shown(
        study, {arm: arm for arm in both}, {"test accuracy (%)": QUANTITIES["accuracy"]}, label=f"combined-{study.plan}",
        caption=f"Single objectives and combinations, each with a rate and a weight of its own ({scale_of(study)}): each seed, mean and 95 % interval.",
        colours={arm: FAMILIES[family(arm)] for arm in both},
        lines={"test accuracy (%)": study.mean("alone").mean},
    )  # fmt: skip
    return [figure, *against_own_parts(study)]


answer(
    "combinations at equal budget",
    lambda study: every(study) or ("alone", *all_combined(study)),
    combination_figures,
    lambda study: ("alone", *every(study), *all_combined(study)),
)

# %% [markdown]
# The numbers in the table of choosing are means over few seeds and carry noise themselves. How large an optimism to expect when the candidates are equal, and how it grows with their number, is the last exercise.

# %% tags=["hide-input"]
if study := decisive(
    lambda study: ("alone", *every(study), *kd_map(study), *all_combined(study))
):
    named, arms = under(study, "accuracy"), all_combined(study)
    gains = against_own_parts(study)
    combined = [arm for arm in COMBINED if arm in arms]
    by_mean = {arm: study.mean(arm).mean for arm in arms}
    alone_in_it = [arm for arm in arms if arm not in COMBINED]
    top, best = max(alone_in_it, key=by_mean.get), max(combined, key=by_mean.get)
    single, ahead = (
        above(top, combined, study, named),
        above(best, alone_in_it, study, named),
    )
    outcome = (
        "verified" if ahead.holds
        else "depends" if single.holds and any(gain.holds for gain in gains)
        else "refuted" if single.holds
        else "not decided"
    )  # fmt: skip
    tries = (
        "six tries, on rate and weight, for each"
        if study is grown
        else "three weights for each"
    )
    rest = (
        "Two combinations are tried, each tuned as its parts were."
        if study is grown
        else "Two combinations are tried, neither of which has DIST or FitNet in it."
    )  # fmt: skip
    display(verdict(
        "A15", outcome,
        [
            "A combination can be ahead of its own parts, but one objective alone is ahead of each that was tried." if outcome == "depends" else "",
            "“The most effective”, held against all single objectives:",
            ahead if outcome == "verified" else single,
            f"Held against its own parts, {tries}:",
            *gains,
            rest,
        ],
        condition="bound to a scale" if outcome == "depends" else None,
    ))  # fmt: skip

# %% [markdown]
# ## A class that the student never saw
#
# Hinton, Vinyals and Dean left every 3 out of the student's MNIST and let a teacher that knew threes teach it. <!-- by definition --> The student had
# never seen one. Yet, once a single number, the bias of that class, had been raised, it recognised nearly all of them (section 3) {cite}`hinton2015distilling`. Whatever it knew of
# threes it had learned from what its teacher said of *other* digits: how much a certain 8, or a certain 2, looks like a 3.
#
# On an omitted class every target that the student ever saw concerns a wrong class, so no improved training and no
# gentler loss can explain its success. We run it first where everything is known: on the task of {doc}`01_what_a_teacher_knows`, whose teacher is the true posterior. Twenty
# classes in five families; of each family one is omitted.

# %%
task = KnownPosterior.draw()
exact = ExactTeacher(task)
omitted = torch.arange(3, 20, 4)


def draw(n, seed):
    return task.sample(n, generator=torch.Generator().manual_seed(seed))


pool, validation, test = draw(5000, 1), draw(5000, 2), draw(20_000, 3)
seen = ~torch.isin(pool.labels, omitted)
shown_examples = Examples(pool.inputs[seen], pool.labels[seen])
unseen = torch.isin(test.labels, omitted)
told = soften(exact(shown_examples.inputs))[:, omitted].sum(-1)

# %% tags=["hide-input"]
Markdown(
    f"There are {len(shown_examples):,} examples of {20 - len(omitted)} classes. In them the teacher gives the {len(omitted)} omitted classes {told.mean():.1%} of its probability on average."
)

# %% [markdown]
# Four students see the same examples. `alone` has labels. `spread` has soft targets in which all wrong classes, the omitted among them, are alike: it hears
# that there are other classes, but not which one an example resembles. `kd` has the teacher's distribution and a tenth of labels, which never name an omitted class; `soft` has
# the distribution alone. <!-- by definition -->
#
# A class that no label names gets too low a bias. Hinton and co-workers then raised it, to the value that did best on their *test* set {cite}`hinton2015distilling`. We raise it too, one number for all omitted classes, but choose it
# on a validation sample. A raised bias mixes two things, what a student knows and how well one number was chosen. So there is a measure without it, too: whether a student that is *told* that the class is an
# omitted one says which.


# %%
def objectives(T):
    return {
        "alone": 1.0 * CrossEntropy(),
        "spread": 1.0 * SpreadSoftTargets(temperature=T),
        "kd": 0.1 * CrossEntropy() + 0.9 * SoftTargets(temperature=T),
        "soft": 1.0 * SoftTargets(temperature=T),
    }


# %% tags=["hide-input"]
raised = torch.zeros(task.num_classes).index_fill(0, omitted, 1.0)
BIASES = [b / 4 for b in range(61)]


def hit_rates(logits):
    """Accuracy on each omitted class."""
    return [
        accuracy(logits[test.labels == c], test.labels[test.labels == c])
        for c in omitted
    ]


def of_five(logits):
    """Accuracy on the omitted classes of a choice between these alone."""
    return accuracy(
        logits[unseen][:, omitted], torch.searchsorted(omitted, test.labels[unseen])
    )


def born(seed):
    torch.manual_seed(seed)
    return mlp(16, task.num_classes)


# %%
def omission(T, seed):
    """A student of each objective that never saw the omitted classes: what each
    recognises of them, and the students.
    """
    recipe = Recipe(
        epochs=epochs, batch_size=256, optimizer="adam", learning_rate=1e-2,
        schedule="cosine", weight_decay=0.0, augment=False, seed=seed,
    )  # fmt: skip
    learners = [
        Learner(born(seed), objective, recipe) for objective in objectives(T).values()
    ]
    fit_together(learners, train=shown_examples, teacher=exact, device=device)
    found, students = {}, {}
    for arm, learner in zip(objectives(T), learners, strict=True):
        students[arm] = learner.student
        chooses = predict(learner.student, validation, device=device)
        logits = predict(learner.student, test, device=device)
        bias = max(
            BIASES, key=lambda b: accuracy(chooses + b * raised, validation.labels)
        )
        found[arm] = {
            "as it is": hit_rates(logits),
            "bias raised": hit_rates(logits + bias * raised),
            "bias": bias,
            "among": of_five(logits),
            "all": accuracy(logits + bias * raised, test.labels),
        }
    return found, students


runs_of = [omission(temperature, seed) for seed in seeds]

# %% tags=["hide-input"]
live = {arm: [found[arm] for found, _ in runs_of] for arm in objectives(temperature)}
truth_rates = hit_rates(exact(test.inputs))
truth_among = of_five(exact(test.inputs))

LIVE_COLOURS = {"alone": PURPLE, "spread": GREEN, "kd": BLUE, "soft": ORANGE}
figure, panels = plt.subplots(1, 2, sharey=True, figsize=(8.0, 3.4))
for panel, when in zip(panels, ("as it is", "bias raised"), strict=True):
    for place, (arm, runs) in enumerate(live.items()):
        rates = 100 * np.array([run[when] for run in runs])
        at = np.arange(len(omitted)) + 0.19 * (place - 1.5)
        panel.bar(at, rates.mean(0), width=0.17, color=LIVE_COLOURS[arm], label=arm)
        panel.plot(
            np.repeat(at, len(runs)),
            rates.T.flatten(),
            ".",
            color="black",
            markersize=3,
            alpha=0.6,
        )
    for c, best_possible in enumerate(truth_rates):
        panel.plot(
            [c - 0.42, c + 0.42], [100 * best_possible] * 2, color="grey", linewidth=1.4
        )
    panel.set_xticks(range(len(omitted)), [f"class {c}" for c in omitted], fontsize=8.5)
    panel.set(title=when, ylim=(0, 105))
    panel.grid(axis="x", visible=False)
panels[0].set_ylabel("recognised (%)")
figure.legend(
    *panels[0].get_legend_handles_labels(),
    loc="outside lower center",
    ncols=4,
    fontsize=8.5,
)
show(
    figure,
    label="omitted-live",
    caption=f"Live, at $T={temperature:g}$: how many test examples of each omitted class are recognised by students that never saw one, before and after one bias is raised (bars: means of "
    f"{len(seeds)} seed{'s' * (len(seeds) > 1)}, dots: runs). Grey: the true posterior itself, which is the best that is possible for all classes together.",
    alt="Two bar charts, five omitted classes each with four bars, one an arm, and a grey line at the true posterior's.",
)


# %% tags=["hide-input"]
def of_omitted(arm, when="bias raised"):
    """Mean recognition of the omitted classes, a value a seed."""
    return [float(np.mean(run[when])) for run in live[arm]]


CHOSEN = Quantity(
    "accuracy of a choice between the omitted classes", "points", 100, 1, "higher", "%"
)
RAISED = Quantity(
    "accuracy on the omitted classes, the bias raised", "points", 100, 1, "higher", "%"
)


rows = []
for arm, runs in live.items():
    before, after = (
        summary(of_omitted(arm, when)) for when in ("as it is", "bias raised")
    )
    rows.append(
        [
            arm,
            f"{before.mean:.1%}",
            ", ".join(f"{run['bias']:g}" for run in runs),
            after.bracketed(".1%"),
            f"{np.mean([run['all'] for run in runs]):.1%}",
            f"{np.mean(of_omitted(arm, 'among')):.1%}",
        ]
    )
rows.append(
    [
        "true posterior",
        f"{np.mean(truth_rates):.1%}",
        "–",
        "–",
        f"{accuracy(exact(test.inputs), test.labels):.1%}",
        f"{truth_among:.1%}",
    ]
)
display(
    table(
        [
            "arm",
            "omitted, as it is",
            "bias, by seed",
            "omitted, raised",
            "all, raised",
            "which omitted",
        ],
        rows,
        caption=f"Live, $T={temperature:g}$, {len(seeds)} seed{'s' if len(seeds) > 1 else ', so without an interval'}: accuracy on the omitted classes and on all twenty. Last column: of a choice between the omitted classes alone; chance is {1 / len(omitted):.0%}.",
    )
)
told_which = above(
    "soft",
    ["spread", "alone"],
    {arm: of_omitted(arm, "among") for arm in live},
    CHOSEN,
    by=30,
)
told_whether = above(
    "soft", ["spread", "alone"], {arm: of_omitted(arm) for arm in live}, RAISED, by=30
)
display(told_which, told_whether)

# %% [markdown]
# Where `soft` succeeds, the information is in the targets. Where `spread` fails, that is an identity and no finding: its targets give
# all omitted classes the same probability in every example, so nothing in them could tell one from another. It has the same
# confidence in the true class, image by image, and so the two together say *where* the information is: in the relative probabilities of the wrong classes, as B16 says.
#
# This task makes it easy. Its teacher is exact, and classes overlap, so that examples of one lie where those of another do.
#
# ### On CIFAR-100
#
# The plan omits every tenth class, ten of a hundred. `omitted-alone` learns from labels, `omitted-kd` also from the teacher, `omitted-soft` from the teacher alone. All are measured on
# the test images of the omitted classes, before and after one bias is raised that the validation split chooses. Note what the validation split does there: it *contains* the omitted classes, as
# it must, so that the raised bias is the one thing in these students that was fitted to labels of classes they never saw. It was chosen for the accuracy on *all* classes, few of which are omitted,
# so it says little about them: see how far it moves between seeds. The records do not have a choice between the omitted classes alone.
#
# **One control is missing here.** There is no `omitted-spread`, a student without these classes whose target has all wrong classes alike. So *omitted-soft − omitted-alone* is what the teacher's whole target does, its gentleness and its naming of classes together; the live experiment has the control.

# %% tags=["hide-input"]
OMITTED = ("omitted-alone", "omitted-kd", "omitted-soft")
PARTS_OF_IT = {
    "accuracy": "omitted, as it is (%)",
    "accuracy_with_bias": "omitted, bias raised (%)",
    "accuracy_of_all_with_bias": "all classes, bias raised (%)",
}


def unseen_part(name):
    """A measure: one of the numbers that a record has of the omitted classes."""
    return lambda record: record["test"]["omitted"][name]


# %% tags=["hide-input"]
def omitted_figures(study):
    arms = study.ready(OMITTED)
    figure, panels = plt.subplots(
        1, 3, sharey=True, figsize=(8.2, 0.9 + 0.35 * len(arms))
    )
    for panel, (name, text) in zip(panels, PARTS_OF_IT.items(), strict=True):
        dots(
            panel,
            {arm: list(study.values(arm, unseen_part(name)).values()) for arm in arms},
            {arm: study.mean(arm, unseen_part(name)) for arm in arms},
            factor=100,
        )
        panel.set_xlabel(text)
    shown = show(
        figure,
        label=f"omitted-{study.plan}",
        caption=f"Ten classes of which no example was shown ({scale_of(study)}): runs, means, 95 % intervals."
        + left_out(study, OMITTED),
        alt="Three panels of dots with intervals, one row per arm: accuracy on the omitted classes as it is, with the bias "
        "raised, and accuracy on all classes.",
    )
    rows = [
        [
            arm,
            f"{100 * study.mean(arm, unseen_part('accuracy')).mean:.2f}",
            ", ".join(
                f"{b:g}" for b in study.values(arm, unseen_part("bias")).values()
            ),
            f"{study.mean(arm, lambda r: 100 * r['test']['omitted']['accuracy_with_bias']):.2f}",
            f"{study.mean(arm, lambda r: 100 * r['test']['omitted']['accuracy_of_all_with_bias']):.2f}",
        ]
        for arm in arms
    ]
    found = [
        shown,
        table(
            [
                "arm",
                "omitted, as it is",
                "bias, by seed",
                "omitted, raised",
                "all, raised",
            ],
            rows,
            caption="Accuracy in per cent, mean and 95 % interval.",
        ),
    ]
    if "omitted-soft" in arms:
        found += [
            above(
                "omitted-soft",
                "omitted-alone",
                study,
                Quantity(
                    "accuracy on the omitted classes as it is",
                    "points",
                    100,
                    2,
                    "higher",
                    "%",
                    unseen_part("accuracy"),
                ),
            ),
            undecided(
                "omitted-soft",
                "omitted-alone",
                margin,
                study,
                Quantity(
                    "accuracy on the omitted classes, the bias raised",
                    "points",
                    100,
                    2,
                    "higher",
                    "%",
                    unseen_part("accuracy_with_bias"),
                ),
            ),
        ]
    return found


answer(
    "ten omitted classes of CIFAR-100",
    lambda study: ("omitted-alone", "omitted-kd"),
    omitted_figures,
    lambda study: OMITTED,
)

# %% tags=["hide-input"]
said, on_images = [], None
if study := decisive(lambda study: (*OMITTED, "kd", "spread")):
    plain, raised_too = (
        study.difference("omitted-soft", "omitted-alone", unseen_part(name))
        for name in ("accuracy", "accuracy_with_bias")
    )
    on_images = above("kd", "spread", study)
    said = [
        f"On CIFAR-100 ({scale_of(study)}) naming the likely wrong classes is held against the same targets with the wrong classes made alike:",
        on_images,
        f"With ten classes omitted there is no such control; omitted-soft − omitted-alone is "
        f"{points(plain)} points on them as it is, and {points(raised_too)} with one bias raised (n = {plain.n}, paired): "
        + (
            "the latter is not decided."
            if not raised_too.excludes_zero
            else "the latter excludes zero."
        ),
    ]
heard, deaf = (summary(of_omitted(arm)).mean for arm in ("soft", "spread"))
holds = (
    told_which.holds and told_whether.holds and (on_images is None or on_images.holds)
)
verdict(
    "B16", "verified" if holds else "depends",
    [
        "Students recognise classes that they never saw, by the shares of the wrong classes alone." if holds else "",
        f"On a task whose posterior is known, students that never saw five of twenty classes recognise {heard:.1%} of their examples when taught by the whole distribution (the true posterior: "
    f"{np.mean(truth_rates):.1%}), and {deaf:.1%} when the wrong classes are made alike and all else is kept.",
        told_whether,
        told_which,
        *said,
        "The experiment with MNIST and its omitted 3 is Hinton's et al. (2015, section 3); that run is not repeated here.",
    ],
    condition=None if holds else "bound to a scale",
)  # fmt: skip

# %% [markdown]
# (noise)=
# ## What noise can carry
#
# So far the student was shown the teacher's kind of inputs. Cloud and co-workers left those out, too: a student that is shown **noise** alone, and copies
# **auxiliary** logits that mean nothing, learns to read digits all the same, if it began from the same weights as its teacher {cite}`cloud2025subliminal`. They call it *subliminal learning*.
# It sounds like telepathy and has a reason of three lines.
#
# Let teacher and student begin at the same weights $\theta_0$, and let the teacher have moved by a small $\Delta$. On an input $x$ its auxiliary logits have then moved by $J\Delta$, where $J$ is
# their Jacobian at $\theta_0$. The student still says what the teacher said, so the divergence between them has its minimum at the student's own logits, and its gradient is that of a quadratic form,
#
# $$\nabla_{\theta_S} D_{\mathrm{KL}}(p_T\,\|\,p_S) = -J^\top F J \Delta + O(\Delta^2), \qquad F = \operatorname{diag}(p) - p\,p^\top .$$
#
# The student's step $-\eta\nabla$ has the inner product $\eta\,(J\Delta)^\top F\,(J\Delta) \ge 0$ with $\Delta$. **Whatever** inputs are shown and **whatever** the logits mean, it goes the teacher's way, or
# not at all. If $\Delta$ was a step of gradient descent on some loss, however short, the student's step does not raise that loss, to first order: $\Delta\propto-\nabla L$, and the inner product is that of both steps. Nothing of this holds for a student that began elsewhere: $\Delta$ is no direction of its own. Here is the inner product, for networks,
# noise and directions that were drawn at random:

# %%
DIGITS = slice(0, 10)  # of the logits; the others are auxiliary


class Some(torch.nn.Module):
    """Some of a network's logits."""

    def __init__(self, network, which):
        super().__init__()
        self.network, self.which = network, which

    def forward(self, x):
        return self.network(x)[:, self.which]


def network(seed, auxiliary, **options):
    torch.manual_seed(seed)
    return mlp(64, 10 + auxiliary, **options)


def as_one(tensors):
    return torch.cat([t.detach().flatten() for t in tensors])


def inner_product(seed):
    """Of a student's first step on noise with the way of its teacher, both random."""
    pupil = network(seed, 3, width=16).double()
    master, x = copy.deepcopy(pupil), torch.randn(32, 64).double()
    way = [1e-4 * torch.randn_like(w) for w in pupil.parameters()]
    for w, d in zip(master.parameters(), way, strict=True):
        w.data += d
    loss, _ = (1.0 * ForwardKL())(
        student_logits=Some(pupil, slice(10, 13))(x),
        teacher_logits=Some(master, slice(10, 13))(x),
    )
    slopes = torch.autograd.grad(loss, list(pupil.parameters()))
    return -(as_one(slopes) @ as_one(way)).item()


along = [inner_product(seed) for seed in range(50)]
assert min(along) > 0

# %% [markdown]
# A step is not a training. So we take networks with ten logits for the digits, and auxiliary ones that nobody trains. The teacher learns from labels, by its ten. Its students are
# shown Gaussian noise and match auxiliary logits, three of them or all 128. Then they are asked for the ten. <!-- by definition --> Others have reported that equal weights are not needed, if only the output layers fit
# ([arXiv:2605.23645](https://arxiv.org/abs/2605.23645)); so there are three kinds of students:
#
# | student | begins with |
# |---|---|
# | **same weights** | the weights that the teacher began with |
# | **other weights** | weights of its own |
# | **other weights, same head** | weights of its own, and the last layer of the trained teacher |


# %% tags=["hide-input"]
def as_vectors(split):
    """The 8×8 pixels of the digits, standardised."""
    images, _, _ = next(split.batches(len(split)))
    pixels = torch.nn.functional.avg_pool2d(images[:, :1], 4)
    return Examples(pixels.flatten(1), split.labels)


written = load_digits()
to_learn, to_read = as_vectors(written.train), as_vectors(written.test)
noise = Examples(
    torch.randn(8192, 64, generator=torch.Generator().manual_seed(0)),
    torch.zeros(8192, dtype=torch.long),
)
MATCHED = (3, 128)  # auxiliary logits


def reads(model):
    """Test accuracy of the ten logits."""
    return accuracy(predict(Some(model, DIGITS), to_read), to_read.labels)


def subliminal(seed):
    """What the teacher reads; and for each number of logits, what its students read."""
    recipe = Recipe(
        epochs=5, batch_size=32, optimizer="adam", learning_rate=1e-3,
        schedule="constant", weight_decay=0.0, augment=False, seed=seed,
    )  # fmt: skip
    begun, other = (network(k, max(MATCHED), width=256) for k in (seed, 1000 + seed))
    master = copy.deepcopy(begun)
    fit(Some(master, DIGITS), CrossEntropy(), train=to_learn, recipe=recipe)
    same_head = copy.deepcopy(other)
    same_head[-1].load_state_dict(master[-1].state_dict())
    found = {}
    for number in MATCHED:
        which = slice(10, 10 + number)
        pupils = [copy.deepcopy(model) for model in (begun, other, same_head)]
        how = replace(recipe, epochs=4, batch_size=128)
        learners = [Learner(Some(p, which), 1.0 * ForwardKL(), how) for p in pupils]
        fit_together(learners, train=noise, teacher=Some(master, which))
        found[number] = dict(zip(BEGINNINGS, map(reads, pupils), strict=True))
    return reads(master), found


BEGINNINGS = ("same weights", "other weights", "other weights, same head")
heard_in_noise = [subliminal(seed) for seed in seeds]

# %% tags=["hide-input"]
teachers_read = [of_teacher for of_teacher, _ in heard_in_noise]
by_beginning = {
    number: {k: [found[number][k] for _, found in heard_in_noise] for k in BEGINNINGS}
    for number in MATCHED
}
figure, panels = plt.subplots(1, 2, figsize=(8.0, 2.2), sharey=True)
for panel, (number, rows) in zip(panels, by_beginning.items(), strict=True):
    dots(
        panel,
        rows,
        {name: summary(values) for name, values in rows.items()},
        factor=100,
        colours=dict(zip(BEGINNINGS, (BLUE, ORANGE, GREEN), strict=True)),
    )
    panel.axvline(10, color="grey", linewidth=1)
    panel.axvline(
        100 * np.mean(teachers_read), color="grey", linewidth=1, linestyle=":"
    )
    panel.set(
        title=f"{number} auxiliary logits", xlabel="digits read (%)", xlim=(0, 103)
    )
READ = {
    number: Quantity(
        f"accuracy on digits after {number} logits of noise", "points", 100, 1, "higher", "%"
    )
    for number in MATCHED
}  # fmt: skip
few, many = MATCHED
SAME, OTHER, HEAD = BEGINNINGS
CALLED = {
    SAME: "a student that began with the teacher's weights",
    OTHER: "one that began with others",
    HEAD: "one with other weights and the teacher's last layer",
}
same_reads = [
    above(SAME, OTHER, by_beginning[n], READ[n], names=CALLED) for n in MATCHED
]
head_reads = above(HEAD, OTHER, by_beginning[many], READ[many], by=20, names=CALLED)
head_lacks = below(HEAD, SAME, by_beginning[few], READ[few], names=CALLED)
display(
    show(
        figure,
        label="noise",
        caption=f"Digits read by students that were shown noise alone: each seed, mean and 95 % interval (n = {len(seeds)}). Grey: chance; dotted: their teachers, {np.mean(teachers_read):.0%}.",
        alt="Two panels of dots. "
        + " ".join(
            f"{number} logits: "
            + ", ".join(f"{k} {100 * np.mean(v):.0f} %" for k, v in rows.items())
            + "."
            for number, rows in by_beginning.items()
        ),
    ),
    *same_reads,
    head_lacks,
    head_reads,
)

# %% [markdown]
# Where the statements above hold, both sides of the dispute are right. What passes is in the *weights*, which the logits lead the student's own to follow. That takes a common beginning, and then three logits are enough. Where the last layer is
# the same and its logits are many, they determine the layer below. Then matching them is matching that layer, as a hint would ({doc}`08_hidden_states_and_attention`), and the teacher's way of reading digits comes along,
# whatever the student began with. Students with nothing in common are not shown to hear anything; the figure has how much is not excluded.

# %% tags=["hide-input"]
conditional = head_reads.holds and all(statement.holds for statement in same_reads)
verdict(
    "C1", "depends" if conditional else "not decided",
    [
        "Yes, with few auxiliary logits; with many, other weights learn it too, if the last layer is the teacher's." if conditional else "",
        rf"To first order the student's step on any input has the inner product $(J\Delta)^\top F (J\Delta) \ge 0$ with the teacher's way $\Delta$ (positive in {len(along)} of {len(along)} random draws).",
        same_reads[0],
        head_lacks,
        "But equal weights are not needed where the last layer is the same and many logits are matched:",
        head_reads,
        f"The teachers read {np.mean(teachers_read):.1%}; n = {len(seeds)} seed{'s' * (len(seeds) > 1)}, 8×8 digits, networks of two hidden layers, one learning rate.",
    ],
    condition="under a premise" if conditional else None,
)  # fmt: skip

# %% [markdown]
# ## A student as teacher
#
# Article B cites Mirzadeh and co-workers for small temperatures. It does not mention what their paper is about: where the gap between teacher and student is large, let a network of medium size learn from the teacher and teach the
# student {cite}`mirzadeh2020improved`. That claim of the cited paper is B17 of the ledger. The plan has such a chain. The distilled student of full width, `kd`, teaches a narrower one of the same seed: `assisted`. Its rivals
# are the same narrow network taught by the large teacher directly, and alone.
#
# A word on budget. The chain trains one more network. Here the assistant is a student that was wanted anyway; counted in full, it is not a
# comparison at equal cost.


# %% tags=["hide-input"]
def chain(study):
    """The narrow student alone, taught directly, and taught by the assistant."""
    narrow = NARROWER[study.plan]
    return (f"{narrow}-alone", f"{narrow}-T4", "assisted")


def with_large_teacher(study):
    """The agreement of `assisted` with the *large* teacher, seed by seed, from the stored
    students; empty where these are not stored.
    """
    found = {}
    for spec in study.specs:
        if spec.arm == "assisted" and study is small and stored and not data.fallback:
            student = stored_student(spec, evidence_folder(), data.num_classes)
            if student is not None:
                logits = predict(student.to(device), data.test, device=device)
                found[spec.recipe.seed] = agreement(logits, large_teacher)
    return found


large_teacher = predict(teacher, data.test, device=device) if stored else None
assisted_agrees = with_large_teacher(small)

# %% [markdown]
# **Fidelity to whom?** A record's agreement is with the network that taught. For `assisted` that is the assistant, for its rival the large teacher, and the two numbers must not be compared:
# by the bound above, two networks of like accuracy may agree more. The assisted students are stored, so their agreement with the *large* teacher can be measured, on the same test images (and is, unless the parameter `stored` says otherwise).


# %% tags=["hide-input"]
def chain_figures(study):
    arms = study.ready(chain(study))
    figure, panels = plt.subplots(
        1, 3, sharey=True, figsize=(8.4, 1.1 + 0.32 * len(arms)), width_ratios=(1, 1, 1)
    )
    colours = dict(zip(chain(study), (PURPLE, BLUE, ORANGE), strict=True))
    rows = {
        "accuracy (%)": dict.fromkeys(arms, "accuracy"),
        "agreement, own teacher (%)": {
            a: "agreement" for a in arms if not a.endswith("alone")
        },
        "agreement, large teacher (%)": dict.fromkeys(arms, "agreement"),
    }
    agrees = {arm: study.values(arm, "agreement") for arm in arms}
    # its record's is with the assistant
    agrees["assisted"] = assisted_agrees if study is small else {}
    for panel, (text, measures) in zip(panels, rows.items(), strict=True):
        of = agrees if "large" in text else None
        values = {
            arm: list((of[arm] if of else study.values(arm, measures[arm])).values())
            if arm in measures
            else []
            for arm in arms
        }
        means = {arm: mean_interval(v) for arm, v in values.items() if len(v) > 1}
        dots(panel, values, means, factor=100, colours=colours)
        panel.set_xlabel(text, fontsize=9)
    shown = show(
        figure,
        label=f"chain-{study.plan}",
        caption=f"The narrow student alone, taught by {called(study.specs[0].student)}, and taught by the distilled {called(STUDENT[study.plan])} ({length_and_rate(study)}). In the middle each is compared with its own teacher, "
        "on the right with the large one"
        + ("." if agrees["assisted"] else ", which was not done of the assisted."),
        alt="Three panels of dots with intervals for three students: accuracy, agreement with the network that taught "
        "it, and agreement with the large teacher.",
    )
    alone, direct, _ = chain(study)
    helps, taught = gap(study, "assisted", direct), gap(study, direct, alone)
    found = [shown]
    if helps and taught:
        found.append(
            table(
                ["contrast", "accuracy (points)", "n"],
                [
                    ["assisted − taught directly", points(helps), helps.n],
                    ["taught directly − alone", points(taught), taught.n],
                    [
                        "assisted − alone",
                        points(gap(study, "assisted", alone)),
                        gap(study, "assisted", alone).n,
                    ],
                ],
                caption="95 % intervals over the deviation of all arms of that width, where their variances allow it.",
            )
        )
        found.append(
            undecided(
                "assisted", direct, margin, study, names={direct: "taught directly"}
            )
        )
    if study is small and len(assisted_agrees) > 1:
        close = {"assisted": assisted_agrees, direct: study.values(direct, "agreement")}
        found.append(
            undecided(
                "assisted",
                direct,
                margin,
                close,
                LARGE,
                names={direct: "taught directly"},
            )
        )
    return found


LARGE = Quantity("agreement with the large teacher", "points", 100, 2, "higher", "%")


answer("a teacher's assistant", lambda study: (*chain(study), "kd"), chain_figures)

# %% tags=["hide-input"]
if study := decisive(lambda study: (*chain(study), "kd")):
    alone, direct, _ = chain(study)
    named = {
        "assisted": "the student with an assistant",
        direct: "the student that was taught directly",
        alone: "the student alone",
    }
    helps = undecided("assisted", direct, margin, study, names=named)
    taught = above(direct, alone, study, names=named)
    measured_agreement = (
        f"Agreement with the large teacher: {', '.join(f'{v:.1%}' for v in assisted_agrees.values())} with an assistant (from the stored students), "
        f"{', '.join(f'{v:.1%}' for v in study.values(direct, 'agreement').values())} taught directly. "
        if study is small and assisted_agrees
        else ""
    )
    display(verdict(
        "B17", "not decided" if helps.holds else "depends",
        [
            "One chain neither shows that an assistant helps nor excludes it." if helps.holds else "",
            f"A claim of the paper that article B cites, not of the article. One chain, {called(study.specs[0].student)} → {called(STUDENT[study.plan])} → {called(NARROWER[study.plan])}.",
            helps,
            taught,
            f"{measured_agreement}Trained for {length_and_rate(study)}; one set of sizes, whose gap may not be large in the paper's sense.",
        ],
        condition=None if helps.holds else "bound to a scale",
    ))  # fmt: skip

# %% [markdown]
# ## The teacher's crop and mode
#
# Two settings of the teacher are easily overlooked. *Does it see the same crop as the student?* Beyer and co-workers argue that it must: distillation is the matching of two
# functions, and functions are matched at the same input {cite}`beyer2022knowledge`. In the arm `own-view` it sees a crop of its own of the same image; {doc}`25_patient_and_consistent` asks the same at three lengths of training. And *is it in evaluation mode?* In the arm
# `teacher-in-training-mode` its batch normalisation uses the statistics of the batch, a mistake that is made easily and crashes nothing.
#
# Both arms weaken the statement that a target makes about *this* input and leave its classes and confidence plausible.

# %% tags=["hide-input"]
VIEWS = ("own-view", "teacher-in-training-mode")


# %% tags=["hide-input"]
def view_figures(study):
    pairs = {f"{arm} − kd": (arm, "kd") for arm in study.ready(VIEWS)}
    shown = show(
        differences(study, pairs, MEASURES),
        label=f"views-{study.plan}",
        caption=f"A teacher with crops of its own, and one left in training mode, minus kd, one dot per seed ({scale_of(study)}). {len(pairs) * len(MEASURES)} intervals."
        + left_out(study, VIEWS),
        alt="Six panels of differences to plain distillation with a line at zero, two rows.",
    )
    found = [shown]
    found += [undecided(arm, "kd", margin, study) for arm in study.ready(VIEWS)]
    return found


answer("the teacher's crop and mode", lambda study: ("kd", *VIEWS), view_figures)

# %% [markdown]
# ## Calibration
#
# A student that learned from soft targets has also been told how sure to be. At $T=1$, where its predictions are used, that advice may or may not fit. An exact match at $T=4$ would be a match
# at $T=1$ too, since the logits then agree up to a constant, and the student would inherit its teacher's calibration, good or bad. A real student matches only approximately, and a loss at $T=4$ does not weigh its misses as
# a loss at $T=1$ would; most arms also have some cross-entropy with labels at $T=1$. The expected calibration error {cite}`guo2017calibration` compares confidence with accuracy; it does not say in which direction they
# differ. Cross-entropy, shown beside it, rewards both accuracy and calibration. One arm is judged unfairly: the loss of `standardised` does not see the scale of the student's logits, so that only the tenth of labels asked anything of its confidence at $T=1$.
# One temperature, fitted on the validation split, gives every arm its own scale: records of `grown` have its error, too; those of `small` do not keep the logits that it takes.

# %% tags=["hide-input"]
CALIBRATED = (
    "alone",
    "smoothed",
    "permuted",
    "spread",
    "T1-soft0.9",
    "T2-soft0.9",
    "kd",
    "T8-soft0.9",
    "T4-soft0.5",
    "T4-soft1",
    *OUTPUTS[1:],
    *LAYERS,
    "crd+kd",
)


# %% tags=["hide-input"]
def calibration_figure(study):
    arms = study.ready(of_plan(study, CALIBRATED))
    names = ("calibration_error", "cross_entropy")
    fitted = (*names[:1], "fitted", *names[1:])
    figure = measured(
        study,
        arms,
        fitted if study is grown else names,
        colours={arm: FAMILIES[family(arm)] for arm in arms},
        columns=3 if study is grown else 2,
        reference=teacher_test(study),
    )
    least = min(arms, key=lambda arm: study.mean(arm, "calibration_error").mean)
    best = max(arms, key=lambda arm: study.mean(arm).mean)
    return [
        show(
            figure,
            label=f"calibration-{study.plan}",
            caption=f"Calibration error and cross-entropy on the test split at $T=1$ ({scale_of(study)}); colours as in the first figure. Least calibration error on average: {least}; "
            f"most accurate: {best}."
            + teacher_said(study, ("calibration_error", "cross_entropy"))
            + left_out(study, CALIBRATED),
            alt="Panels of dots with intervals, one row per arm: calibration error"
            + (", the same with a fitted temperature," if study is grown else "")
            + " and cross-entropy.",
        )
    ]


answer(
    "calibration of the arms",
    lambda study: ("alone", "kd"),
    calibration_figure,
    lambda study: CALIBRATED,
)


# %% tags=["hide-input"]
told = decisive(lambda study: CAUSES) or small


def by_contrast(treated, control, study):
    """What a contrast does to accuracy, in words; None without records."""
    d = gap(study, treated, control)
    return d and f"{moves(d, QUANTITIES['accuracy'])} (n = {d.n})"


sentences = []
flat = by_contrast("spread", "alone", told)
if flat and (named_classes := by_contrast("kd", "spread", told)):
    sentences.append(
        f"On CIFAR-100, naming the teacher's likely wrong classes, instead of making all wrong classes alike, {named_classes}. Against labels alone, distillation {by_contrast('kd', 'alone', told)}, and the target with all wrong classes alike {flat}: {scale_of(told)}."
    )
if hint := by_contrast("fitnet", "kd", told):
    sentences.append(
        f"Following a hidden layer (FitNet's hint), in place of distillation by outputs, {hint}, under the same conditions."
    )
if helped := by_contrast("assisted", chain(small)[1], small):
    sentences.append(
        f"An assistant between a large teacher and a narrow student {helped}."
    )
sentences.append(
    f"Where the posterior is known, students that never saw {len(omitted)} of {task.num_classes} classes recognise {heard:.0%} of their examples if they are taught by the whole distribution, and {deaf:.0%} if all wrong classes are made alike ($T={temperature:g}$, {epochs} epochs, n = {len(seeds)} seed{'s' * (len(seeds) > 1)})."
)
findings.show(*sentences)

# %% [markdown]
# ## Limits
#
# - One data set, one family of networks, and in the plan `small` one short training at **one learning rate, chosen for no objective**. No arm has converged. What speeds up learning has an advantage there, perhaps a long gradient, and
#   weights published for long trainings are used for a short one.
# - Seeds measure the noise of initialisation and order. There is one teacher a study and one test split, and no interval on this page knows of their noise.
# - Many arms are compared. Tables with one control hold together by Dunnett's correction; figures say how many intervals they show, and these are not corrected.
# - `smoothed` differs from `spread` in temperature, weight and amount, and the layer methods differ from each other in everything. Only the contrasts named above isolate one cause.
# - Errors within the superclass are a share of a student's own errors. Arms make different errors.
# - The omitted classes of the live experiment overlap with shown ones by construction, its teacher is the truth, and there were few seeds.
#
# ## To take away
#
# **Formulae.** With accuracies $a_S$ and $a_T$, student and teacher agree on at least $a_S+a_T-1$ and at most $1-\lvert a_S-a_T\rvert$ of the images. The best of $m$ equal settings looks too good by the expected maximum of $m$ normal variables, times their noise. <!-- by definition -->
#
# **What to set.** The controls are objectives: `SpreadSoftTargets` makes all wrong classes alike, `PermutedSoftTargets` shuffles them. Give each method as many tries as its rival, and choose on the validation split.
#
# **What to watch for.** Among arms that differ much in accuracy, agreement says little beyond it; at equal accuracy it says a good deal ({doc}`26_whose_errors`). *kd − spread* is what the named classes do; it is not a share of what distillation gains over labels. Show teacher and student the same crop, and put the teacher into evaluation mode: as a precaution, since after so short a training neither need show ({doc}`25_patient_and_consistent` has longer ones).
#
# ## Exercises
#
# ```{exercise}
# :label: ex-triangle
#
# Prove that $d(u,v)$, the fraction of images on which two classifiers decide differently, obeys the triangle inequality, and derive the two bounds on agreement.
# ```
#
# ```{solution} ex-triangle
# :class: dropdown
#
# Where $u$ and $w$ differ, $v$ cannot equal both, so each such image is counted in $d(u,v)$ or in $d(v,w)$: $d(u,w)\le d(u,v)+d(v,w)$. With the labels $y$ for a third
# classifier, $d(S,T) \le d(S,y)+d(y,T) = (1-a_S)+(1-a_T)$ is the lower bound on agreement, and $\lvert d(S,y)-d(y,T)\rvert\le d(S,T)$ the upper one. <!-- by definition -->
# ```
#
# ```{exercise}
# :label: ex-hotter-omission
#
# Repeat the live experiment with one seed at $T=1$ and $T=4$. What changes, for which students, and by more than the seeds of the table differ?
# ```
#
# ````{solution} ex-hotter-omission
# :class: dropdown
#
# ```python
# for T in (1.0, 4.0):
#     found, _ = omission(T, seeds[0])
#     for arm, run in found.items():
#         print(T, arm, "bias", run["bias"], "raised", round(float(np.mean(run["bias raised"])), 3), "which", round(run["among"], 3))
# ```
#
# `alone` does not see $T$ and cannot change: a check of the code. For the others, compare each number with the runs of its row in the table, since one seed has no interval. What a bias that is the same for all omitted classes cannot change at any temperature is the last column: it moves them together, and so decides *whether* an omitted class is meant, never *which*.
# ````
#
# ```{exercise}
# :label: ex-which-omitted
#
# In the last column of the live table chance is one in five. Show that the *expected* value of `alone` and `spread` is exactly that, over random initial weights. Why may a run, or a mean of a few runs, be elsewhere? Look at how much of the initial differences between the omitted classes' rows of the last layer is left after training.
# ```
#
# ````{solution} ex-which-omitted
# :class: dropdown
#
# Exchange two omitted classes. Their initial weights have the same distribution, their targets are the same in every example, and the optimiser treats all rows alike: so a run in which the one wins an example is as probable as the run in which the other does, and each of five wins it with probability one in five. But one run draws its rows once for *all* examples: independent are the seeds, not the examples. How much is left of the draw:
#
# ```python
# def rows(student):
#     w = student[-1].weight.detach().cpu()[omitted]
#     return w - w.mean(0)
#
# for seed, (_, students) in zip(seeds, runs_of):
#     drawn = rows(born(seed))
#     for arm in ("alone", "spread"):
#         left = rows(students[arm])
#         cosine = torch.cosine_similarity(left.flatten(), drawn.flatten(), dim=0)
#         print(seed, arm, f"cosine with the draw {cosine:.2f}, length over that of the draw {left.norm() / drawn.norm():.2f}")
# ```
#
# A cosine near one says that these differences are those of the draw; one far from it, that training moved them, without having been told where to. Neither arm was told which class is which.
# ````
#
# ```{exercise}
# :label: ex-optimism
#
# Let $m$ settings be equally good and let their validation scores have noise of standard deviation $s$. How much too good does the best one look? Compare $m=3$ with $m=30$.
# ```
#
# ````{solution} ex-optimism
# :class: dropdown
#
# By the expected maximum of $m$ normal variables, times $s$:
#
# ```python
# normal = np.random.default_rng(0).normal
# print({m: round(float(normal(size=(100_000, m)).max(1).mean()), 2) for m in (3, 9, 30)})
# ```
#
# For three it is $3/(2\sqrt\pi)$, about 0.85, for nine about 1.49, and for thirty about two. With
# a second weight on a grid of three the budget is nine, and the optimism is three quarters larger than with three: an advantage of the combination that no combining has earned. <!-- by definition -->
# ````
