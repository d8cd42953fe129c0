# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Bugs in distillation, and what each of them costs
#
# A distillation that is wrong need not crash. It trains, the loss falls, and the table gets its row.
# This chapter is a museum of such mistakes. Each is planted on purpose, and we measure what it *costs*.
#
# Every exhibit but the last three, which are shown on a few numbers, has the same four labels: what was written, what was meant, the difference that it makes in a small paired
# experiment, and the test in `tests/test_pitfalls.py` that catches it. Guess each result before you read it: a mistake may ruin the student, leave no trace, or make the student *better*.
# {ref}`The last figure <whole-museum>` shows what was trained side by side.
#
# **At the end you will know** why accuracy hides many mistakes, and a criterion for each that finds it without training anything.
#
# *Needs: one CPU core and about two minutes.*

# %% tags=["parameters"]
profile: str = "cpu"  # "gpu" changes nothing: these networks are too small
seeds: list[int] = [0, 1, 2, 3, 4, 5]  # each draws a task, its examples and a student
epochs: int = 12  # of a student on the bench
temperature: float = 4.0  # of the soft targets, above 1
top_k: int = 3  # of a teacher's 20 classes that exhibit 6 keeps
picture_seeds: list[int] = [0, 1, 2]  # of the students that learn from pictures
pictures: int = 256  # for each of these; up to eight times as many for their teacher

# %% tags=["hide-input"]
import copy
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import display
from torch import nn

from kdlab.data import ExactTeacher, Examples, KnownPosterior, load_digits
from kdlab.figures import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    VERMILION,
    sentence,
    show,
    table,
    use_style,
)
from kdlab.models import mlp, resnet8, resnet14
from kdlab.objectives import (
    CrossEntropy,
    ForwardKL,
    LearnedTemperature,
    MemoryBank,
    ReverseKL,
    SoftTargets,
    Term,
    cross_entropy,
    distillation_loss,
    entropy,
    forward_kl,
    log_soften,
    next_token,
    restrict_vocabulary,
    soft_targets,
    soften,
)
from kdlab.study.display import Findings, device_for
from kdlab.study.evidence import Quantity
from kdlab.study.parameters import require
from kdlab.study.statements import (
    above,
    below,
    falls,
    in_order,
    rises,
    undecided,
    within,
)
from kdlab.study.statistics import summary
from kdlab.theory import reference
from kdlab.training import Recipe, accuracy, fit, predict

use_style()
device_for(profile)  # checks the parameters; networks as small as these stay on the CPU
require(
    temperature > 1,
    f"temperature must be above 1, with which it is compared, and not {temperature:g}.",
)
require(top_k < 20, f"top_k must be below 20, the number of classes, and not {top_k}.")
for name, given in (("seeds", seeds), ("picture_seeds", picture_seeds)):
    require(
        len(set(given)) == len(given), f"{name} must differ from each other: {given}."
    )

# %% tags=["hide-input"]
findings = Findings()

# %% [markdown]
# ## The bench
#
# To weigh a mistake one needs a scale, and a run without the mistake. Most exhibits use the task of {doc}`01_what_a_teacher_knows`: twenty Gaussian
# classes whose posterior is known exactly. <!-- by definition --> The teacher *is* that posterior. So whatever goes wrong is the
# mistake's doing, not the teacher's, and a student can be measured against the truth.
#
# Each seed draws its own task, its own training examples and the student's initial weights. To save
# time, the students of all seeds are trained side by side, as one model whose parts share nothing.

# %%
tasks = [KnownPosterior.draw(noise=1.2, seed=seed) for seed in seeds]


# %% tags=["hide-input"]
class SideBySide(nn.Module):
    """Models that share nothing, run at once: axis 1 of inputs and logits is the seed."""

    def __init__(self, models):
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, inputs):
        pairs = zip(self.models, inputs.unbind(1), strict=True)
        return torch.stack([model(own) for model, own in pairs], 1)


def side_by_side(parts):
    return Examples(
        torch.stack([part.inputs for part in parts], 1),
        torch.stack([part.labels for part in parts], 1),
    )


def draw(n, stream):
    """``n`` examples of each seed's task."""
    generators = [torch.Generator().manual_seed(100 * stream + s) for s in seeds]
    return side_by_side(
        [task.sample(n, generator=g) for task, g in zip(tasks, generators, strict=True)]
    )


def seeded(seed, make):
    torch.manual_seed(seed)
    return make()


# %%
train, validation, test = draw(640, 1), draw(640, 2), draw(4000, 3)
truth = SideBySide([ExactTeacher(task) for task in tasks])
test_truth = predict(truth, test)

# %% [markdown]
# Two things are measured on test examples: **accuracy**, and the distance from the truth,
# $D_{\mathrm{KL}}(\text{truth}\,\|\,q)$ at temperature one, in nats. <!-- by definition --> The right and the wrong version of each exhibit start from the same
# weights and see the same batches. We keep the difference *wrong − right*, seed by seed, with its 95 % interval where there is more than one seed. <!-- by definition -->

# %%
BASE = Recipe(
    epochs=epochs, batch_size=64, optimizer="adam", learning_rate=1e-2,
    weight_decay=0.0, schedule="cosine", augment=False,
)  # fmt: skip


# %% tags=["hide-input"]
def right_in_percent(logits, split):
    return 100 * (logits.argmax(-1) == split.labels).double().mean(0).numpy()


def score(students):
    """Accuracy in points, distance from the truth in nats and entropy, one entry a seed."""
    logits = predict(students, test)
    return {
        "accuracy": right_in_percent(logits, test),
        "nats": forward_kl(logits, test_truth, reduction="none").mean(0).numpy(),
        "entropy": entropy(logits).mean(0).numpy(),
        "logits": logits,
    }


# %%
def distil(objective, *, report=None, gradient_norms=False, **changes):
    """Train the students of all seeds, and score them."""
    students = SideBySide([seeded(s, lambda: mlp(16, 20)) for s in seeds])
    history = fit(
        students,
        objective,
        train=train,
        teacher=truth,
        recipe=replace(BASE, **changes),
        report=None if report is None else lambda entry: report(students),
        gradient_norms=gradient_norms,
    )
    return {**score(students), "history": history, "students": students}


# %% tags=["hide-input"]
def paired_difference(wrong, right):
    """Wrong minus right over the seeds of which neither diverged."""
    each = np.subtract(wrong, right)
    return summary(each[np.isfinite(each)])


def over_seeds(given):
    """What stands behind a mean, for a caption."""
    return (
        f"mean and 95 % interval over {len(given)} seeds"
        if len(given) > 1
        else "one seed and no interval"
    )


NATS = Quantity("distance from the truth", "nats", 1, 4, "lower")
ACCURACY = Quantity("test accuracy", "points", 1, 2, "higher", "%")
effects = {}


def costs(name, wrong, right, key="nats"):
    """A statement: the mistake leaves the student further from the truth."""
    quantity = NATS if key == "nats" else ACCURACY
    return above(
        name, "the right one", {"the right one": right[key], name: wrong[key]}, quantity
    )


def harmless(name, wrong, right, margin, key="nats"):
    """A statement: the mistake changes no more than the margin."""
    quantity = NATS if key == "nats" else ACCURACY
    return within(
        name,
        "the right one",
        margin,
        {"the right one": right[key], name: wrong[key]},
        quantity,
    )


def compare(name, wrong, right):
    """Keep and show the paired difference of a mistake."""
    shared = [key for key in ("accuracy", "nats") if key in wrong and key in right]
    effects[name] = {key: paired_difference(wrong[key], right[key]) for key in shared}
    shown = [
        f"{i.bracketed(form)} {unit}"
        for key, form, unit in (
            ("accuracy", "+.2f", "points"),
            ("nats", "+.4f", "nats"),
        )
        if (i := effects[name].get(key))
    ]
    label = name[0].upper() + name[1:]
    said = f"{label}, wrong − right: {', '.join(shown)} (n = {effects[name][shared[0]].n})."
    display(sentence(said))


# %% [markdown]
# The right run, to which most others are compared, gives half its weight to the labels and half to the teacher. <!-- by definition --> Beside it, a student
# without a teacher.

# %%
RIGHT = 0.5 * CrossEntropy() + 0.5 * SoftTargets(temperature=temperature)
right = distil(RIGHT, gradient_norms=True)
labels_alone = distil(1.0 * CrossEntropy())

# %% tags=["hide-input"]
table(
    ["student", "accuracy (%)", "distance from the truth (nats)"],
    [
        [name, f"{summary(run['accuracy']):.1f}", f"{summary(run['nats']):.3f}"]
        for name, run in (("labels alone", labels_alone), ("distilled", right))
    ],
    caption=f"The bench without a mistake, {over_seeds(seeds)}, {epochs} epochs.",
)

# %% [markdown]
# The difference between these two rows is all that a mistake can destroy before nothing is left of the teacher.
#
# Does training side by side change a student? The loss is a mean over all of them, so each gets only a part of its gradient. Adam ignores a constant factor, except for its $\epsilon$:

# %%
alone = seeded(seeds[0], lambda: mlp(16, 20))
fit(
    alone,
    RIGHT,
    train=Examples(train.inputs[:, 0], train.labels[:, 0]),
    teacher=ExactTeacher(tasks[0]),
    recipe=BASE,
)
own = forward_kl(
    predict(alone, Examples(test.inputs[:, 0], test.labels[:, 0])), test_truth[:, 0]
)

# %% tags=["hide-input"]
within(
    "beside the others",
    "alone",
    0.003,
    {"alone": own.item(), "beside the others": right["nats"][0]},
    NATS,
)

# %% [markdown]
# Mistakes are planted as terms made from a plain function, so that the wrong line can be seen.


# %%
class Loss(Term):
    """A term made from any function of student logits, teacher logits and labels."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def extra_repr(self):
        return self.function.__name__

    def forward(self, *, student_logits, teacher_logits, labels, **_):
        return self.function(student_logits, teacher_logits.detach(), labels)


# %% [markdown]
# ## Room one: constants
#
# ### Exhibit 1. $T^2$ is lost
#
# **Written:** `0.5 * ce + 0.5 * kl(teacher / T, student / T)`. **Meant:** the same with `T**2` before the divergence.
#
# The gradient of the divergence shrinks with the temperature, in the limit like $1/T^2$ ({doc}`03_why_t_squared`); that of the labels does not. At fixed weights
# the teacher's part fades, and nothing says so. How much of the students' gradient still comes from the teacher?

# %%
without = distil(
    0.5 * CrossEntropy() + 0.5 * ForwardKL(temperature=temperature), gradient_norms=True
)


# %% tags=["hide-input"]
def teachers_share(run, term):
    """The teacher's part in the sum of the two gradient norms, mean over epochs."""
    hard, soft = (
        np.array([entry[f"{t}.gradient_norm"] for entry in run["history"]])
        for t in ("CrossEntropy", term)
    )
    return (soft / (hard + soft)).mean()


share = {
    "with": teachers_share(right, "SoftTargets"),
    "without": teachers_share(without, "ForwardKL"),
}
compare("T² lost, beside labels", without, right)

# %% [markdown]
# Is it a mistake, or only another parametrisation? A constant factor can be put into the weight. So we tune the weight: for both
# losses the validation split chooses among the same four ratios, a factor $T^2$ apart.

# %%
square = temperature**2
# weight of the teacher over weight of the labels
ODDS = (1 / square, 1, square, square**2)
at_one = {SoftTargets: right, ForwardKL: without}  # 1 : 1 has been run


def at_odds(kind, odds):
    hard = 1 / (1 + odds)
    return distil(hard * CrossEntropy() + (1 - hard) * kind(temperature=temperature))


# %% tags=["hide-input"]
def validation_accuracy(run):
    return right_in_percent(predict(run["students"], validation), validation).mean()


# %%
sweep = {
    kind: [run if odds == 1 else at_odds(kind, odds) for odds in ODDS]
    for kind, run in at_one.items()
}

# %% tags=["hide-input"]
tuned, choices = {}, []
for kind, runs in sweep.items():
    chosen = np.argmax([validation_accuracy(run) for run in runs])
    tuned[kind] = runs[chosen]
    edge = " (at the edge of the grid)" if chosen in (0, len(ODDS) - 1) else ""
    choices.append(f"for {kind.__name__} {ODDS[chosen]:g} : 1{edge}")
display(sentence(f"Validation chooses {', and '.join(choices)}."))
compare("T² lost, weight tuned", tuned[ForwardKL], tuned[SoftTargets])

# %% tags=["hide-input"]
figure, axis = plt.subplots(figsize=(6.4, 3.3))
for runs, colour, label in zip(
    sweep.values(), (BLUE, ORANGE), ("with $T^2$", "without"), strict=True
):
    intervals = [summary(run["nats"]) for run in runs]
    means = np.array([i.mean for i in intervals])
    axis.errorbar(
        ODDS,
        means,
        [means - [i.low for i in intervals], [i.high for i in intervals] - means],
        color=colour,
        marker="o",
        capsize=3,
        label=label,
    )
axis.axhline(labels_alone["nats"].mean(), color="grey", linestyle=":", linewidth=1.2)
axis.text(
    ODDS[-1], labels_alone["nats"].mean(), "labels alone", ha="right", va="top", color="grey"
)  # fmt: skip
axis.set(
    xscale="log",
    xlabel="weight of the teacher : weight of the labels",
    ylabel="nats from the truth",
    xticks=ODDS,
    xticklabels=[f"1 : {square:g}", "1 : 1", f"{square:g} : 1", f"{square**2:g} : 1"],
    ylim=(0, None),
)
axis.minorticks_off()
axis.legend()
show(
    figure,
    label="lost-square",
    caption=f"Distance from the truth against the ratio of the weights, {over_seeds(seeds)}. A constant factor is a shift on this axis, by "
    f"$T^2={square:g}$, one step of the grid.",
    alt="Two curves on a logarithmic axis of weight ratios: "
    + "; ".join(
        f"{name} from {runs[0]['nats'].mean():.3f} to {runs[-1]['nats'].mean():.3f} nats"
        for name, runs in zip(
            ("with T squared", "without"), sweep.values(), strict=True
        )
    )
    + ".",
)

# %% [markdown]
# (If the loss without $T^2$ chooses the edge of the grid, nothing is missed: one step beyond, it is the other loss at its own last ratio, which was tried. <!-- by definition -->)
#
# So the lost $T^2$ can be expensive at somebody else's weights, and a weight that is tuned for it gives it back. Where the teacher is the *only* term, Adam divides the factor out:

# %%
teacher_alone = distil(1.0 * SoftTargets(temperature=temperature))
quiet = distil(1.0 * ForwardKL(temperature=temperature))

# %% tags=["hide-input"]
compare("T² lost, teacher alone", quiet, teacher_alone)
SHARE = Quantity("the teacher's share of the gradient", "points", 100, 0, "higher", "%")
display(
    above(
        "with",
        "without",
        share,
        SHARE,
        factor=2,
        names={"with": "with T²", "without": "without"},
    ),
    costs("T² lost, beside labels", without, right),
    harmless("T² lost, weight tuned", tuned[ForwardKL], tuned[SoftTargets], 0.003),
    harmless("T² lost, teacher alone", quiet, teacher_alone, 0.001),
)

# %% [markdown]
# **Caught by** `test_temperature_squared`. *Compare the gradient with the closed form $T(q-p)$, not values with each other,* at several temperatures;
# any value can be met by a wrong weight.
#
# ### Exhibit 2. The mean over the classes
#
# **Written:** a mean over everything, `kl_div(..., reduction="mean")`. **Meant:** the mean over examples, `"batchmean"`.
#
# The loss is too small by the number of classes: here 20, in a language model a hundred thousand.


# %%
def mean_over_everything(z, t, y):
    losses = F.kl_div(
        log_soften(z, temperature), soften(t, temperature), reduction="none"
    )
    return temperature**2 * losses.mean()  # meant: losses.sum(-1).mean()


by_mean = distil(0.5 * CrossEntropy() + 0.5 * Loss(mean_over_everything))

# %% tags=["hide-input"]
compare("mean over the classes", by_mean, right)

# %% [markdown]
# The criterion costs nothing. Give both models as many classes again, all of probability zero. A divergence does
# not change; a mean over everything is halved.

# %%
generator = torch.Generator().manual_seed(0)
z, t = torch.randn(2, 64, 20, generator=generator)
wider = [torch.cat([x, torch.full_like(x, -1e4 * temperature)], -1) for x in (z, t)]
kdlabs, wider_kdlabs = (
    soft_targets(*x, temperature=temperature) for x in ((z, t), wider)
)
assert torch.isclose(wider_kdlabs, kdlabs, rtol=1e-4)

# %% tags=["hide-input"]
display(
    sentence(
        f"With 20 empty classes more, the mean over everything goes from "
        f"{mean_over_everything(z, t, None):.4f} to {mean_over_everything(*wider, None):.4f}; "
        f"kdlab's loss from {kdlabs:.4f} to {wider_kdlabs:.4f}."
    ),
    costs("mean over the classes", by_mean, right),
)

# %% [markdown]
# **Caught by** `test_mean_over_classes`. *The loss is unchanged when classes of probability zero are added.*
#
# ## Room two: functions
#
# ### Exhibit 3. The wrong direction of the divergence
#
# **Written:** `kl_div(teacher_log_probabilities, student_probabilities)`. **Meant:** the other way round; PyTorch wants the
# *second* distribution of $D_{\mathrm{KL}}(p\,\|\,q)$ first.
#
# Whether that matters depends on the temperature. At high temperature both directions have the same limit ({doc}`02_gradients`
# shows how their gradients meet). So we try four times the bench's temperature, and one. <!-- by definition -->

# %%
turned = {}
for T in (4 * temperature, 1.0):
    arrows = {
        kind: 0.5 * CrossEntropy() + 0.5 * T**2 * kind(temperature=T)
        for kind in (ForwardKL, ReverseKL)
    }
    reverse, forward = distil(arrows[ReverseKL]), distil(arrows[ForwardKL])
    compare(f"arrow turned, T = {T:g}", reverse, forward)
    turned[f"T = {T:g}"] = reverse["nats"] - forward["nats"]

# %% tags=["hide-input"]
hot = f"T = {4 * temperature:g}"
TURNED = Quantity("cost of the turned arrow", "nats", 1, 4, "lower")
display(
    above("T = 1", [0, hot], turned, TURNED),
    within(hot, 0, 0.02, turned, TURNED),
)

# %% [markdown]
# A test with one symmetric example would see neither cost.
#
# **Caught by** `test_direction`. *An asymmetric example with a known value:* for teacher logits $(2, 0)$ and student logits $(0, 0)$ the forward
# divergence is 0.3278 and the reverse one 0.4338. <!-- by definition -->

# %%
student_example, teacher_example = torch.zeros(1, 2), torch.tensor([[2.0, 0.0]])
assert round(forward_kl(student_example, teacher_example).item(), 4) == 0.3278
assert round(forward_kl(teacher_example, student_example).item(), 4) == 0.4338

# %% [markdown]
# ### Exhibit 4. A cross-entropy, called KL
#
# **Written:** `kd = -(p * log_q).sum(-1).mean()`, logged as "KL". **Meant:** $\sum p \log (p/q)$.
#
# The two differ by the teacher's entropy, which no student can change. So the gradients are equal, and with a fixed number of
# epochs so are the students. But a loss is also *read*: by a stopping rule, by a scheme that balances terms by their size, by a person. One run
# serves both names:

# %% tags=["hide-input"]
LONG = 2 * epochs + 6
by_epoch, target = [], predict(truth, validation)


def note(students):
    """After each epoch: validation loss under both names, and how good students are."""
    logits = predict(students, validation)
    how = {"temperature": temperature, "reduction": "none"}
    scored = score(students)
    by_epoch.append(
        {
            "KL": forward_kl(logits, target, **how).mean(0).numpy(),
            "cross-entropy": (
                cross_entropy(logits, soften(target, temperature), **how).mean(0).numpy()
            ),
            "accuracy": scored["accuracy"],
            "nats": scored["nats"],
            "test": scored["logits"].argmax(-1) == test.labels,
            "validation": logits.argmax(-1) == validation.labels,
        }
    )  # fmt: skip


# %%
distil(
    1.0 * SoftTargets(temperature=temperature),
    report=note,
    epochs=LONG,
    schedule="constant",
)
curve = {key: np.stack([np.asarray(e[key]) for e in by_epoch]) for key in by_epoch[0]}


def stopped(loss):
    """Stop at the first epoch that improves the validation loss by less than 1 %."""
    slow = curve[loss][1:] > 0.99 * curve[loss][:-1]
    epoch = np.where(slow.any(0), slow.argmax(0) + 1, len(curve[loss]) - 1)
    kept = {
        key: curve[key][epoch, np.arange(len(seeds))] for key in ("accuracy", "nats")
    }
    return {**kept, "epoch": epoch + 1}


stop = {loss: stopped(loss) for loss in ("KL", "cross-entropy")}

# %% tags=["hide-input"]
display(
    sentence(
        "Epochs until the rule stops: "
        + "; ".join(
            f"by the {loss} {summary(of['epoch']):.1f}" for loss, of in stop.items()
        )
        + "."
    )
)
compare("cross-entropy called KL, stopped by it", stop["cross-entropy"], stop["KL"])

# %% tags=["hide-input"]
figure, axis = plt.subplots(figsize=(6.4, 3.2))
for loss, colour in (("cross-entropy", ORANGE), ("KL", BLUE)):
    mean = curve[loss].mean(1)
    axis.plot(range(1, len(mean) + 1), mean, color=colour, label=loss)
    at = stop[loss]["epoch"].mean()
    axis.plot(
        at,
        np.interp(at, range(1, len(mean) + 1), mean),
        "o",
        color=colour,
        markersize=9,
    )
axis.set(
    yscale="log",
    xlabel="epoch",
    ylabel="validation loss (nats)",
    title="one run under two names",
)
axis.legend()
show(
    figure,
    label="two-names",
    caption="The same students, read as a cross-entropy and as a divergence. The first cannot fall below the teacher's entropy. Dots: where a rule stops "
    f"that waits for an epoch with less than 1 % of improvement. Means over n = {len(seeds)}.",
    alt="Two curves over epochs on a logarithmic axis. From the first epoch to the last the cross-entropy goes from "
    f"{curve['cross-entropy'][0].mean():.3f} to {curve['cross-entropy'][-1].mean():.3f}, the KL from {curve['KL'][0].mean():.4f} to {curve['KL'][-1].mean():.4f}.",
)

# %%
logits, target = z.clone().requires_grad_(), t
slopes = [
    torch.autograd.grad(loss, logits)[0]
    for loss in (forward_kl(logits, t), cross_entropy(logits, soften(t)))
]
assert torch.allclose(*slopes, atol=1e-7)

# %% tags=["hide-input"]
above(
    "the cross-entropy",
    "the KL",
    {"the KL": stop["KL"]["nats"], "the cross-entropy": stop["cross-entropy"]["nats"]},
    Quantity("distance from the truth where the rule stops", "nats", 1, 4, "lower"),
)

# %% [markdown]
# **Caught by** `test_divergence_not_cross_entropy`. *Zero at equality:* the divergence of a distribution from itself is nothing.
#
# ### Exhibit 5. Where digits are lost
#
# **Written:** `log(softmax(z))`, with a small number added for safety, in half precision. **Meant:** `log_softmax(z)`, in float32.
#
# The softmax of a class far below the top becomes zero, and the logarithm of zero is gone. *How* far depends on the type.

# %%
gaps = torch.linspace(0, 130, 1000, dtype=torch.float64)
rows = torch.stack([torch.zeros_like(gaps), -gaps], -1)
by_type = {
    str(dtype).split(".")[1]: torch.log(torch.softmax(rows.to(dtype), -1))[
        :, 1
    ].double()
    for dtype in (torch.float16, torch.bfloat16, torch.float32)
}

# %% tags=["hide-input"]
cliff = {name: gaps[values.isfinite()].max().item() for name, values in by_type.items()}
masked_first = torch.tensor([0.0 - 1000, -5000, -5001])
sentence(
    "The logarithm becomes infinite this many logits below the top: "
    + ", ".join(f"{gap:.1f} in {name}" for name, gap in cliff.items())
    + f". In float16, $10^{{-8}}$ is {torch.tensor(1e-8).half().item():g}. Among logits "
    "of −5000 a class masked by −1000 has probability "
    f"{masked_first.softmax(-1)[0].item():g}."
)

# %% [markdown]
# The usual rescue, adding $10^{-8}$, adds *zero* in float16. And a mask that adds −1000 to a logit lies below all of these limits, so that `p * log(p)`
# is $0\cdot\infty$, which is not a number. <!-- by definition --> Nor is −1000 infinite: among logits of that size the masked class comes through. <!-- by definition -->
#
# Digits are lost in a second way, without any infinity. Near its teacher, a student's divergence is a small difference of large terms. Below are students at nine distances from their teacher, at the bench's $T$. The logits are first rounded to bfloat16, as mixed precision gives them. So the error is that of the *arithmetic* alone, against the closed
# form in float64.

# %%
generator = torch.Generator().manual_seed(1)
teacher_rows, noise = 4 * torch.randn(2, 512, 20, generator=generator)


def textbook(dtype, logarithm):
    """Σ p (log p − log q) at the bench's T, each step in one type."""

    def divergence(z, t):
        log_q, log_p = (logarithm(x.to(dtype) / temperature) for x in (z, t))
        return (log_p.exp() * (log_p - log_q)).sum(-1)

    return divergence


# %% tags=["hide-input"]
ways = {
    "log of softmax, bfloat16": textbook(torch.bfloat16, lambda x: x.softmax(-1).log()),
    "log_softmax, bfloat16": textbook(torch.bfloat16, lambda x: x.log_softmax(-1)),
    "log_softmax, float32": textbook(torch.float32, lambda x: x.log_softmax(-1)),
    "kdlab": lambda z, t: forward_kl(z, t, temperature=temperature, reduction="none"),
}
exact, errors = [], {name: [] for name in ways}
for distance in np.geomspace(2, 0.01, 9):
    pair = [x.bfloat16() for x in (teacher_rows + distance * noise / 4, teacher_rows)]
    oracle = reference.forward_kl(*(x.double().numpy() for x in pair), temperature)
    exact.append(oracle.mean())
    for name, way in ways.items():
        off = way(*pair).double().numpy() - oracle
        errors[name].append(np.sqrt((off**2).mean()) / oracle.mean())
negative = (ways["log_softmax, bfloat16"](*pair) < 0).float().mean()
sentence(
    f"Of the students nearest to their teacher, {negative:.0%} get a negative divergence in bfloat16."
)

# %% tags=["hide-input"]
figure, (left, right_panel) = plt.subplots(1, 2, figsize=(7.8, 3.4))
for name, colour in (("float32", PURPLE), ("bfloat16", ORANGE), ("float16", VERMILION)):
    values = by_type[name]
    alive = values.isfinite()
    left.plot(gaps[alive], values[alive], color=colour, label=name, linewidth=3)
    left.plot(
        cliff[name], values[alive].min(), "x", color=colour, markersize=9, mew=2.5
    )
left.plot(gaps, -gaps, color="grey", linestyle=":", linewidth=1.2, label="log_softmax")
left.set(xlabel="logits below the top", ylabel="log(softmax)")
left.legend(fontsize="small")
for (name, values), colour in zip(
    errors.items(), (VERMILION, ORANGE, GREEN, BLUE), strict=True
):
    right_panel.loglog(exact, values, marker="o", color=colour, label=name)
right_panel.axhline(1, color="grey", linestyle=":", linewidth=1.2)
right_panel.axvline(curve["KL"][-1].mean(), ymax=0.62, color="grey", linewidth=1)
right_panel.set(
    xlabel="true divergence (nats)", ylabel="relative error", ylim=(1e-8, 1e8)
)
right_panel.legend(fontsize="x-small", loc="upper right")
show(
    figure,
    label="digits",
    caption="Left: the logarithm of a probability, until it is minus infinity (cross). Right: error of an example's divergence, root mean "
    "square over the mean divergence. Above the dotted line it is larger than the value; the grey line is where the students of exhibit 4 end.",
    alt="Left: three lines that follow the diagonal and end at "
    + ", ".join(f"{gap:.0f} ({name})" for name, gap in cliff.items())
    + ". Right: relative errors against the divergence; at the smallest "
    + ", ".join(f"{name} {values[-1]:.0e}" for name, values in errors.items())
    + ".",
)

# %% [markdown]
# What does it do to a student? With the teacher alone, in half precision throughout:


# %%
def half_precision(dtype, T):
    """T² KL as log(softmax + 1e-8), all of it in half precision."""

    def log_of_softmax(z, t, y):
        p, q = (torch.softmax(x.to(dtype) / T, -1) for x in (t, z))
        losses = (p * (torch.log(p + 1e-8) - torch.log(q + 1e-8))).sum(-1)
        return T**2 * losses.float().mean()

    return 1.0 * Loss(log_of_softmax)


in_bfloat16 = distil(half_precision(torch.bfloat16, temperature))

# %% tags=["hide-input"]
compare("log of softmax, bfloat16", in_bfloat16, teacher_alone)
for T in (1.0, temperature):
    try:
        distil(half_precision(torch.float16, T))
        display(sentence(f"In float16, $T={T:g}$: no mishap."))
    except FloatingPointError as error:
        stop_reason = str(error).split(";")[0]
        display(sentence(f"In float16, $T={T:g}$: {stop_reason}."))

# %% [markdown]
# Where float16 overflows, `fit` stops the run and says so. Bfloat16 has the range of float32 with fewer digits. <!-- by definition --> There the student may survive while the *measurement* does not: whoever logs such a divergence, stops by it or compares students by it may be reading noise.

# %% tags=["hide-input"]
ERROR = Quantity("relative error at the smallest divergence", "", 1, 6, "lower")
smallest = {name: values[-1] for name, values in errors.items()}
display(
    *(
        above(f"{way}, bfloat16", 1, smallest, replace(ERROR, digits=1))
        for way in ("log of softmax", "log_softmax")
    ),
    below("kdlab", None, smallest, ERROR),
    harmless("log of softmax, bfloat16", in_bfloat16, teacher_alone, 0.002),
    sentence(
        f"Largest relative error at any distance: kdlab {max(errors['kdlab']):.0e}, "
        f"log_softmax in float32 {max(errors['log_softmax, float32']):.0e}."
    ),
)

# %% [markdown]
# **Caught by** `test_log_of_softmax` and `test_masks_of_minus_a_thousand`. *Logits of ±10,000, in float16, bfloat16 and float32, against an
# oracle in float64.*
#
# ### Exhibit 6. The top of the teacher
#
# A teacher over a large vocabulary is stored as its $k$ largest logits. <!-- by definition --> **Written:** the softmax of these $k$, as target for the student's whole vocabulary; or both models
# restricted to the $k$. **Meant:** a divergence from the teacher, given that only this is known of it.
#
# The first tells the student that everything else is impossible. The second tells it nothing about everything else. A third way adds one class for "any
# other", with all the probability that is left: `restrict_vocabulary(..., rest=True)`. Here $k$ is the parameter `top_k`, of 20 classes, at $T=1$, the teacher alone. <!-- by definition -->


# %%
def renormalised(z, t, y):
    top = t.topk(top_k)
    target = torch.zeros_like(t).scatter(-1, top.indices, top.values.softmax(-1))
    return cross_entropy(z, target)


def restricted(z, t, y):
    top = t.topk(top_k).indices
    return forward_kl(restrict_vocabulary(z, top), restrict_vocabulary(t, top))


def with_rest(z, t, y):
    top = t.topk(top_k).indices
    return forward_kl(
        restrict_vocabulary(z, top, rest=True), restrict_vocabulary(t, top, rest=True)
    )


whole = distil(1.0 * ForwardKL())
cut = {f.__name__: distil(1.0 * Loss(f)) for f in (renormalised, restricted, with_rest)}

# %% tags=["hide-input"]
compare(f"top {top_k} renormalised", cut["renormalised"], whole)
compare(f"both restricted to the top {top_k}", cut["restricted"], whole)
compare(f"top {top_k} and the rest", cut["with_rest"], whole)

# %% tags=["hide-input"]
order = test_truth.argsort(-1, descending=True)
profiles = {
    "the truth": (test_truth, "grey", ":"),
    "whole teacher": (whole["logits"], BLUE, "-"),
    f"top {top_k} and the rest": (cut["with_rest"]["logits"], GREEN, "-"),
    f"top {top_k} renormalised": (cut["renormalised"]["logits"], ORANGE, "-"),
    "both restricted": (cut["restricted"]["logits"], VERMILION, "-"),
}
figure, axis = plt.subplots(figsize=(6.4, 3.5))
for name, (values, colour, style) in profiles.items():
    by_rank = values.softmax(-1).gather(-1, order).mean((0, 1))
    axis.plot(
        range(1, 21), by_rank, color=colour, linestyle=style, marker=".", label=name
    )
axis.axvline(top_k + 0.5, color="grey", linewidth=0.8)
axis.set(
    yscale="log",
    xlabel="rank of the class, by the teacher",
    ylabel="mean probability",
    xticks=[1, 5, 10, 15, 20],
)
axis.legend(fontsize="small")
show(
    figure,
    label="top-k",
    caption="Mean probability of the class of each rank, by the truth and by five students. The line is the cut.",
    alt="Curves of probability against rank on a logarithmic axis. At the last rank: "
    + ", ".join(
        f"{name} {values.softmax(-1).gather(-1, order).mean((0, 1))[-1].item():.0e}"
        for name, (values, _, _) in profiles.items()
    )
    + ".",
)

# %% tags=["hide-input"]
truth_entropy = entropy(test_truth).mean(0).numpy()


def beyond_the_cut(values):
    """Probability outside the teacher's top classes, mean over examples, in per cent."""
    return (
        100 * values.softmax(-1).gather(-1, order)[..., top_k:].sum(-1).mean(0).numpy()
    )


table(
    ["student of", "probability beyond the cut (%)", "entropy less the truth's (nats)"],
    [["the truth itself", f"{beyond_the_cut(test_truth).mean():.1f}", "0"]]
    + [
        [
            name,
            f"{beyond_the_cut(run['logits']).mean():.1f}",
            f"{paired_difference(run['entropy'], truth_entropy):+.3f}",
        ]
        for name, run in (
            ("the whole teacher", whole),
            (f"top {top_k} and the rest", cut["with_rest"]),
            (f"top {top_k} renormalised", cut["renormalised"]),
            ("both restricted", cut["restricted"]),
        )
    ],
    caption="Test examples, means over seeds. "
    "A negative difference of entropy is overconfidence.",
)

# %% tags=["hide-input"]
ENTROPY = Quantity("entropy", "nats", 1, 3)
entropies = {
    "the whole teacher": whole["entropy"],
    **{n: run["entropy"] for n, run in cut.items()},
}
from_truth = {
    "the whole teacher": whole["nats"],
    **{n: run["nats"] for n, run in cut.items()},
}
NAMES = {
    "renormalised": f"top {top_k} renormalised",
    "restricted": "both restricted",
    "with_rest": f"top {top_k} and the rest",
}
display(
    below("renormalised", "the whole teacher", entropies, ENTROPY, names=NAMES),
    above("restricted", "the whole teacher", entropies, ENTROPY, names=NAMES),
    in_order(
        ["with_rest", "renormalised", "restricted"], from_truth, NATS, names=NAMES
    ),
)

# %% [markdown]
# The table's averages can flatter: a small network blurs, and renormalising takes some of the blur away. The distance from the truth is taken example by example.
#
# **Caught by** `test_top_k_teacher`. *Never negative, zero for the teacher itself, and on the kept tokens the gradient of the whole
# vocabulary, $q - p$.* Renormalising fails the second, since it pulls even at equality; restricting both fails the third.
#
# ## Room three: tokens
#
# Sentences have lengths, and with them come new mistakes. The bench is now a small grammar with two kinds of document, short notes and long letters. Each has its own
# transitions between ten words. The teacher reads the whole prefix and knows the exact probability of the next token: it weighs the two kinds by Bayes' rule. The student
# sees one token back. That is too little to know the kind, so it must compromise, and *the weights of the tokens decide how*.

# %% tags=["hide-input"]
# token 0 ends a sentence; it is also the padding
WORDS, END, START, LONGEST = 12, 0, 1, 40


class Grammar(nn.Module):
    """Exact next-token log-probabilities of sentences: short notes or long letters."""

    def __init__(self, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        scores = 1.5 * torch.randn(2, WORDS, WORDS, generator=generator)
        scores[..., [END, START]] = -30.0
        stop = torch.tensor([1 / 4, 1 / 25]).view(2, 1, 1)
        first = torch.arange(WORDS).view(1, -1, 1) == START  # no sentence is empty
        stop = torch.where(first, 1e-13, stop)
        ends = torch.arange(WORDS) == END
        next_word = torch.where(ends, stop, (1 - stop) * scores.softmax(-1))
        next_word[:, END] = torch.where(ends, 1.0, 1e-13)  # after the end, only padding
        self.register_buffer("table", next_word.clamp(min=1e-13).log())

    def forward(self, tokens):
        steps = self.table[:, tokens[:, :-1], tokens[:, 1:]]
        kind = F.pad(steps.cumsum(-1), (1, 0)).log_softmax(0)  # given the prefix
        return (kind.unsqueeze(-1) + self.table[:, tokens]).logsumexp(0)

    def sample(self, n, generator):
        """Sentences, and their labels with -100 after the end."""
        kind = torch.randint(2, (n,), generator=generator)
        tokens = torch.full((n, LONGEST), START)
        for i in range(1, LONGEST):
            probabilities = self.table[kind, tokens[:, i - 1]].exp()
            tokens[:, i] = torch.multinomial(probabilities, 1, generator=generator)[
                :, 0
            ]
        padding = (tokens == END).cumsum(1) > 1
        return Examples(tokens, tokens.masked_fill(padding, -100))


# %%
grammars = [Grammar(seed) for seed in seeds]
reader = SideBySide(grammars)


# %% tags=["hide-input"]
def sentences(n, stream):
    streams = [torch.Generator().manual_seed(100 * stream + s) for s in seeds]
    return side_by_side(
        [grammar.sample(n, g) for grammar, g in zip(grammars, streams, strict=True)]
    )


written, unseen = sentences(640, 1), sentences(400, 2)
real = unseen.labels[..., 1:] != -100
reader_says = predict(reader, unseen)


def write(model, seed, n=200, longest=200):
    """Lengths of the sentences that a student writes, cut at ``longest``."""
    generator = torch.Generator().manual_seed(seed)
    token, length = torch.full((n,), START), torch.zeros(n)
    following = model(torch.arange(WORDS)).detach().softmax(-1)
    for _ in range(longest):
        token = torch.multinomial(following[token], 1, generator=generator)[:, 0].where(
            token != END, END
        )
        length += token != END
    return length


# %%
def teach(loss):
    """Train the one-token students of all seeds on a loss of
    (student logits, teacher logits, labels).
    """
    students = SideBySide(
        [
            seeded(
                s, lambda: nn.Sequential(nn.Embedding(WORDS, 16), nn.Linear(16, WORDS))
            )
            for s in seeds
        ]
    )
    recipe = replace(
        BASE, epochs=max(1, round(0.4 * epochs)), batch_size=32, learning_rate=2e-2
    )
    fit(students, 1.0 * Loss(loss), train=written, teacher=reader, recipe=recipe)
    return score_readers(students)


# %% tags=["hide-input"]
def score_readers(students):
    """Accuracy in points, distance from the truth in nats, and lengths of what is written, one entry a seed."""
    logits = predict(students, unseen)[..., :-1, :]
    tokens = real.sum((0, 2))
    hits = ((logits.argmax(-1) == unseen.labels[..., 1:]) & real).sum((0, 2)) / tokens
    nats = forward_kl(logits, reader_says[..., :-1, :], mask=real, reduction="none")
    return {
        "accuracy": 100 * hits.double().numpy(),
        "nats": (nats.sum((0, 2)) / tokens).double().numpy(),
        "lengths": torch.stack(
            [write(m, s) for s, m in zip(seeds, students.models, strict=True)]
        ),
    }


# %% [markdown]
# ### Exhibit 7. Tokens that weigh more than others
#
# **Written:** each micro-batch returns its own mean, and the gradients are averaged. **Meant:** the mean over the tokens of the whole batch.
#
# With micro-batches of one sentence each, a token in a short sentence counts more than one in a long sentence. <!-- by definition --> A second common form divides by all positions,
# padding included. `distillation_loss` with `reduction="none"` gives the loss of each token, half of it from the label, half from the teacher. <!-- by definition -->


# %%
def aligned(z, t, y):
    """Logits beside the tokens that they predict, seeds and sentences in one axis."""
    return next_token(*(x.flatten(0, 1) for x in (z, t, y)))


def of_each_token(seen):
    return distillation_loss(**seen, temperature=1, hard_weight=0.5, reduction="none")


def mean_over_tokens(z, t, y):
    seen = aligned(z, t, y)
    return of_each_token(seen).sum() / seen["mask"].sum()


def mean_of_means(z, t, y):
    seen = aligned(z, t, y)
    return (of_each_token(seen).sum(1) / seen["mask"].sum(1)).mean()


def mean_over_positions(z, t, y):
    return of_each_token(aligned(z, t, y)).mean()


fair = teach(mean_over_tokens)
by_sentence = teach(mean_of_means)
with_padding = teach(mean_over_positions)

# %% tags=["hide-input"]
compare("each micro-batch its own mean", by_sentence, fair)
compare("padding in the denominator", with_padding, fair)

# %% tags=["hide-input"]
lengths = real.sum(-1).flatten().float()  # with the end
figure, (left, right_panel) = plt.subplots(1, 2, figsize=(7.8, 3.3))
some = np.arange(2, LONGEST)
left.loglog(some, lengths.mean().item() / some, color=ORANGE, label="each its own mean")
left.axhline(1, color=BLUE, label="mean over tokens")
left.set(
    xlabel="tokens in the sentence",
    ylabel="weight of each",
    xticks=[2, 5, 10, 20, 40],
    xticklabels=["2", "5", "10", "20", "40"],
    yticks=[0.5, 1, 2, 5],
    yticklabels=["0.5", "1", "2", "5"],
)
left.minorticks_off()
left.legend(fontsize="small")


def survival(panel, values, colour, label, **style):
    grid = np.arange(0, 200)
    panel.plot(
        grid,
        [(values.flatten() > g).float().mean() for g in grid],
        color=colour,
        label=label,
        **style,
    )


survival(right_panel, fair["lengths"], BLUE, "mean over tokens")
survival(right_panel, by_sentence["lengths"], ORANGE, "each its own mean")
survival(right_panel, lengths - 1, "grey", "real sentences", linestyle=":")
right_panel.set(xlim=(0, 60), xlabel="words", ylabel="share that is longer")
right_panel.legend(fontsize="small")
show(
    figure,
    label="weights",
    caption="Left: what a token weighs, relative to a fair share, if every sentence is a micro-batch. Right: the lengths of what the students write. "
    f"Real sentences were cut at {LONGEST - 1} tokens.",
    alt="Left: a falling line against sentence length, crossing the horizontal line of equal weight. Right: falling curves of sentence lengths, with means of "
    f"{fair['lengths'].mean():.1f} words (mean over tokens) and {by_sentence['lengths'].mean():.1f} (each its own mean).",
)

# %% tags=["hide-input"]
words = {
    "real sentences, cut": summary((lengths - 1).view(-1, len(seeds)).mean(0).tolist()),
    "mean over tokens": summary(fair["lengths"].mean(1)),
    "each micro-batch its own mean": summary(by_sentence["lengths"].mean(1)),
}
WRITTEN = Quantity("length of what the student writes", "words", 1, 1)
own_means = {
    "mean over tokens": fair["lengths"].mean(1).numpy(),
    "each micro-batch its own mean": by_sentence["lengths"].mean(1).numpy(),
}
display(
    table(
        ["", "words"],
        [[name, f"{interval:.1f}"] for name, interval in words.items()],
        caption="Mean length of a sentence: real, and written by students.",
    ),
    below("each micro-batch its own mean", "mean over tokens", own_means, WRITTEN),
    costs("each micro-batch its own mean", by_sentence, fair),
    harmless("padding in the denominator", with_padding, fair, 0.001),
)

# %% [markdown]
# (The distance is itself a mean over tokens, which is what the right version trains for. It says what is lost if all tokens should count alike.)
#
# Padding in the denominator scales all gradients of a batch alike, Adam divides a constant scale out, and
# in shuffled batches the scale is nearly constant. Under SGD, or with batches sorted by length, it would be a learning rate that depends on the padding.
#
# **Caught by** `test_gradient_accumulation` and `test_padding_weighs_nothing`. *One batch of N sentences and N batches of one give the same
# gradient; more padding changes nothing.* In `kdlab` the number to divide by can be given, as `count`.
#
# ### Exhibit 8. The student that never stops
#
# **Written:** `mask = labels != pad_token`, where the padding is the end-of-sentence token. **Meant:** a mask of the padding. The end of
# every sentence is masked with it.


# %%
def end_is_masked(z, t, y):
    seen = aligned(z, t, y)
    seen["mask"] = seen["mask"] & (seen["labels"] != END)
    return of_each_token(seen).sum() / seen["mask"].sum()


def labels_only(z, t, y):
    seen = aligned(z, t, y)
    return cross_entropy(seen["student_logits"], seen["labels"], mask=seen["mask"])


def labels_only_end_masked(z, t, y):
    seen = aligned(z, t, y)
    mask = seen["mask"] & (seen["labels"] != END)
    return cross_entropy(seen["student_logits"], seen["labels"], mask=mask)


endless, untaught, untaught_endless = (
    teach(loss) for loss in (end_is_masked, labels_only, labels_only_end_masked)
)

# %% tags=["hide-input"]
compare("end masked, labels alone", untaught_endless, untaught)
compare("end masked, distilled", endless, fair)

# %% tags=["hide-input"]
figure, axis = plt.subplots(figsize=(6.4, 3.3))
survival(axis, fair["lengths"], BLUE, "distilled")
survival(axis, untaught["lengths"], PURPLE, "labels alone", linestyle="--")
survival(axis, endless["lengths"], ORANGE, "distilled, end masked")
survival(
    axis,
    untaught_endless["lengths"],
    VERMILION,
    "labels alone, end masked",
    linestyle="--",
)
axis.set(xlabel="words", ylabel="share that is longer")
axis.legend(fontsize="small")
show(
    figure,
    label="endless",
    caption="Lengths of what the students write, cut at 200 words. With masked ends a student of labels alone (red) is never told that sentences end; "
    "a distilled one (orange) is, since at every other position its teacher still mentions the end.",
    alt="Four falling curves. Of each student's sentences are longer than 100 words: "
    + ", ".join(
        f"{(run['lengths'] > 100).float().mean():.0%} ({name})"
        for name, run in {
            "distilled": fair,
            "labels alone": untaught,
            "distilled, end masked": endless,
            "labels alone, end masked": untaught_endless,
        }.items()
    )
    + ".",
)

# %% tags=["hide-input"]
students_write = {
    "labels alone": untaught["lengths"].mean(1).numpy(),
    "labels alone, end masked": untaught_endless["lengths"].mean(1).numpy(),
}
of_the_mask = {
    "labels alone": untaught_endless["nats"] - untaught["nats"],
    "distilled": endless["nats"] - fair["nats"],
}
MASKED = Quantity("cost of the masked end", "nats", 1, 4, "lower")
display(
    above(
        "labels alone, end masked", "labels alone", students_write, WRITTEN, factor=5
    ),
    above("labels alone", [0, "distilled"], of_the_mask, MASKED),
    harmless("end masked, labels alone", untaught_endless, untaught, 0.5, "accuracy"),
    harmless("end masked, distilled", endless, fair, 0.5, "accuracy"),
)

# %% [markdown]
# Look at the accuracy: a top-1 count misses the end only where it would have been the first choice. The
# teacher's probabilities repair part of the mistake and thereby hide it.
#
# A related mistake: the labels are not shifted against the logits, so that each position is asked for the token that it was given. The soft part
# is still right, since teacher and student are in step with each other.


# %%
def labels_not_shifted(z, t, y):
    seen = aligned(z, t, y)
    seen["labels"] = y.flatten(0, 1)[:, :-1]  # meant: [:, 1:]
    seen["mask"] = seen["labels"] != -100
    return of_each_token(seen).sum() / seen["mask"].sum()


unshifted = teach(labels_not_shifted)

# %% tags=["hide-input"]
compare("labels not shifted", unshifted, fair)
costs("labels not shifted", unshifted, fair)

# %% [markdown]
# The student learns to repeat.
#
# **Caught by** `test_end_of_sequence_is_learned_though_it_is_also_the_padding` and `test_labels_in_step_with_logits`. *A batch in which padding is the end: the end has a gradient, the padding
# has none. Change one label: the loss changes at one position, and it is the one before.*
#
# ## Room four: training mode, and the order of examples
#
# ### Exhibit 9. A teacher in training mode, a student in evaluation mode
#
# **Written:** nothing; `teacher.eval()` was forgotten. **Meant:** a teacher that stays as it is. With batch
# normalisation, a teacher in training mode answers with the statistics of the batch, and keeps changing its own.
#
# This needs networks with batch normalisation and real images: the handwritten digits, 8×8 pixels, a ResNet-14 that teaches a ResNet-8 on some of
# them. <!-- by definition --> The exact posterior is not known here; the difference in test *cross-entropy* estimates the same difference in nats.

# %% tags=["hide-input"]
digits = load_digits()


def small(split):
    return Examples(F.avg_pool2d(next(split.batches(len(split)))[0], 4), split.labels)


images, test_images = small(digits.train), small(digits.test)
PICTURES = replace(BASE, epochs=max(2, epochs // 2), batch_size=32, learning_rate=3e-3)
expert = seeded(0, lambda: resnet14(10))
fit(
    expert,
    CrossEntropy(),
    train=images[torch.arange(min(8 * pictures, len(images)))],
    recipe=replace(PICTURES, batch_size=64),
)
expert_accuracy = 100 * accuracy(predict(expert, test_images), test_images.labels)


# %%
class StaysInTraining(nn.Module):
    """A model that nobody can put into evaluation mode."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, inputs):
        self.model.train()
        return self.model(inputs)


# %% tags=["hide-input"]
def looks_like(darker, seed):
    """A few training images; or the same, darker and with less contrast than
    the teacher ever saw.
    """
    index = torch.randperm(
        len(images.labels), generator=torch.Generator().manual_seed(seed)
    )[:pictures]
    seen = images.inputs[index]
    return Examples(0.5 * seen - 0.3 if darker else seen, images.labels[index])


def show_pictures(darker=False, wrap=lambda teacher: teacher, report=None, **changes):
    """Distil for each seed. The teacher is a copy each time, and is tested afterwards."""
    kept = {"accuracy": [], "nats": [], "teacher": [], "diverged": 0}
    for seed in picture_seeds:
        student, teacher = seeded(seed, lambda: resnet8(10)), copy.deepcopy(expert)
        try:
            fit(
                student,
                SoftTargets(temperature=temperature),
                train=looks_like(darker, seed),
                teacher=wrap(teacher),
                recipe=replace(PICTURES, seed=seed, **changes),
                report=None if report is None else lambda entry, s=student: report(s),
            )
        except FloatingPointError:
            kept["diverged"] += 1
            for key in ("accuracy", "nats", "teacher"):
                kept[key].append(float("nan"))
            continue
        logits = predict(student, test_images)
        kept["accuracy"].append(100 * accuracy(logits, test_images.labels))
        kept["nats"].append(cross_entropy(logits, test_images.labels).item())
        kept["teacher"].append(
            100 * accuracy(predict(teacher, test_images), test_images.labels)
        )
    return kept


# %%
calm = {darker: show_pictures(darker) for darker in (False, True)}
studying = {darker: show_pictures(darker, StaysInTraining) for darker in (False, True)}

# %% tags=["hide-input"]
compare("teacher in training mode", studying[False], calm[False])
compare("teacher in training mode, darker images", studying[True], calm[True])

# %% tags=["hide-input"]
figure, axis = plt.subplots(figsize=(6.4, 3.2))
places = {
    "teacher,\nits own images": (
        0,
        [expert_accuracy] * len(picture_seeds),
        studying[False]["teacher"],
    ),
    "teacher,\ndarker images": (
        1,
        [expert_accuracy] * len(picture_seeds),
        studying[True]["teacher"],
    ),
    "student,\nits own images": (
        2.4,
        calm[False]["accuracy"],
        studying[False]["accuracy"],
    ),
    "student,\ndarker images": (
        3.4,
        calm[True]["accuracy"],
        studying[True]["accuracy"],
    ),
}
for place, before, after in places.values():
    axis.plot([place - 0.2, place + 0.2], [before, after], color="grey", linewidth=0.8)
    axis.plot(
        [place - 0.2] * len(picture_seeds),
        before,
        "o",
        color=BLUE,
        label="evaluation mode",
    )
    axis.plot(
        [place + 0.2] * len(picture_seeds),
        after,
        "o",
        color=ORANGE,
        label="training mode",
    )
axis.set(
    xticks=[place for place, _, _ in places.values()],
    xticklabels=list(places),
    ylabel="test accuracy (%)",
)
axis.legend(*(part[:2] for part in axis.get_legend_handles_labels()), fontsize="small")
show(
    figure,
    label="modes",
    caption=f"Test accuracy on the ordinary digits, one dot per seed (n = {len(picture_seeds)}).",
    alt="Four groups of paired dots, evaluation mode and training mode: "
    + "; ".join(
        f"{name.replace(chr(10), ' ')} {np.mean(before):.1f} and {np.mean(after):.1f} %"
        for name, (_, before, after) in places.items()
    )
    + ".",
)

# %% tags=["hide-input"]
ON_DIGITS = Quantity("test accuracy on the digits", "points", 1, 2, "higher", "%")
teachers = {
    "the teacher before": [expert_accuracy] * len(picture_seeds),
    "the teacher after it taught on darker images": studying[True]["teacher"],
}
taught_by = {
    f"students, {mode}{where}": of[darker]
    for mode, of in (("evaluation mode", calm), ("training mode", studying))
    for darker, where in ((False, ""), (True, ", darker images"))
}
pairs = [list(taught_by)[place::2] for place in (0, 1)]  # a place, both modes
display(
    below(
        "the teacher after it taught on darker images",
        "the teacher before",
        teachers,
        ON_DIGITS,
    ),
    *(
        undecided(
            taught,
            still,
            2,
            {arm: taught_by[arm]["accuracy"] for arm in (still, taught)},
            ON_DIGITS,
        )
        for still, taught in pairs
    ),
)

# %% [markdown]
# Normalised by the batch, darker images look to the teacher like its own. This is known as test-time adaptation, and
# one may want it. But it is not what "a frozen teacher" means, so it has to be said. And the teacher that is left is
# no longer the same, which its next user does not know. Whether its students gain by it, so few seeds leave open.
#
# The mirror image is a student that was put into evaluation mode for the first evaluation and left there. It trains on, with its normalisation frozen after one epoch.


# %%
def leave_in_evaluation_mode(student):
    student.eval()
    student.train = lambda mode=True: student  # nobody calls it again


frozen = show_pictures(report=leave_in_evaluation_mode)
fast = {"optimizer": "sgd", "learning_rate": 0.5}
frozen_fast = show_pictures(report=leave_in_evaluation_mode, **fast)
calm_fast = show_pictures(**fast)

# %% tags=["hide-input"]
compare("student left in evaluation mode", frozen, calm[False])
DIVERGED = Quantity(
    f"the number of students that diverge by SGD at 0.5, of {len(picture_seeds)}",
    "",
    1,
    0,
    "lower",
)
diverged = {
    "left in evaluation mode": frozen_fast["diverged"],
    "in training mode": calm_fast["diverged"],
}
display(
    above("left in evaluation mode", "in training mode", diverged, DIVERGED),
    undecided(
        "left in evaluation mode",
        "in training mode",
        0.2,
        {
            "left in evaluation mode": frozen["accuracy"],
            "in training mode": calm[False]["accuracy"],
        },
        ON_DIGITS,
    ),
)

# %% [markdown]
# Frozen statistics do not follow the weights, and with a large learning rate these move fast.
#
# **Caught by** `test_teacher_is_left_as_it_was` and `test_student_left_in_evaluation_mode`. *Every parameter and buffer of the teacher is the same before and after; the mode is
# asserted at each step.*
#
# ### Exhibit 10. Answers to other questions
#
# **Written:** teacher outputs are stored in the first epoch and read again *in the same order*. **Meant:** in the order of the examples. From the second epoch
# on the data are shuffled anew, and each student is graded by the answers to other questions.


# %%
class Stored(Term):
    """Soft targets from teacher logits that were stored in the first epoch."""

    def __init__(self, by_example):
        super().__init__()
        self.by_example, self.step = by_example, 0
        self.logits = torch.empty(len(train), len(seeds), 20)

    def extra_repr(self):
        return f"by_example={self.by_example}"

    def forward(self, *, student_logits, teacher_logits, index, **_):
        first = self.step < len(train)
        place = torch.arange(self.step, self.step + len(index)) % len(train)
        self.step += len(index)
        key = index if self.by_example else place
        if first:
            self.logits[key] = teacher_logits
        return soft_targets(student_logits, self.logits[key], temperature=temperature)


stored = {
    by_example: distil(0.5 * CrossEntropy() + 0.5 * Stored(by_example))
    for by_example in (True, False)
}

# %% tags=["hide-input"]
compare("stored by position", stored[False], right)
losses = [entry["loss"] for entry in stored[False]["history"]]
at_epochs = {
    "the first": losses[0],
    "the second epoch": losses[1],
    "the last": losses[-1],
}
TRAINING = Quantity(
    "training loss of the students stored by position", "nats", 1, 1, "lower"
)
display(
    harmless("stored by example", stored[True], right, 0.001),
    costs("stored by position", stored[False], right),
    above("the second epoch", ["the first", "the last"], at_epochs, TRAINING),
    above(
        "stored by position",
        100 / 20,
        {"stored by position": stored[False]["accuracy"]},
        ACCURACY,
    ),
)

# %% [markdown]
# What is left of the teacher is the average answer, the same for every example. The loss betrays it once, as the second epoch begins. Whoever looks at the end alone sees a loss that falls.
#
# Memory banks suffer from the same mistake. If entries are kept by position in the batch, a bank for all examples moves only as many entries as a batch has:

# %%
moved = {}
for key in ("index", "position"):
    bank = MemoryBank(len(train), 8)
    before = bank.entries.clone()
    for _, batch_labels, index in train.batches(
        64, generator=torch.Generator().manual_seed(0)
    ):
        place = index if key == "index" else torch.arange(len(index))
        bank.update(place, torch.randn(len(index), 8), batch_labels[:, 0])
    moved[key] = int((bank.entries != before).any(1).sum())
assert moved == {"index": len(train), "position": 64}

# %% tags=["hide-input"]
sentence(
    f"Entries that moved in one epoch: {moved['index']} by index, {moved['position']} by position."
)

# %% [markdown]
# **Caught by** `test_teacher_sees_what_the_student_sees` and `test_memory_is_keyed_by_example`. *Teacher and student get the same tensor at each step of a shuffled, augmented epoch; an epoch in
# another order leaves the same memory.*
#
# ## Room five: mistakes that look like success
#
# ### Exhibit 11. A student that teaches itself, and a wrong sign
#
# **Written:** `soft_targets(student_logits, student_logits.detach())`. **Meant:** the teacher's logits. In code with two models and three
# variables called `logits` it takes one slip.


# %%
def from_itself(z, t, y):
    return soft_targets(z, z.detach(), temperature=temperature)


itself = distil(0.5 * CrossEntropy() + 0.5 * Loss(from_itself), gradient_norms=True)

# %% tags=["hide-input"]
compare("distilled from itself", itself, right)
largest = {
    key: max(abs(entry[key]) for entry in itself["history"])
    for key in ("Loss", "Loss.gradient_norm")
}
alike = {
    "distilled from itself": itself["nats"],
    "labels alone": labels_alone["nats"],
    "distilled": right["nats"],
}
display(
    within("distilled from itself", "labels alone", 0.05, alike, NATS),
    above("distilled from itself", "distilled", alike, NATS),
    sentence(
        f"The largest soft loss of an epoch is {largest['Loss']:g}, and the largest norm of "
        f"its gradient {largest['Loss.gradient_norm']:g}."
    ),
)

# %% [markdown]
# A soft loss of exactly zero from the first step looks like success.
#
# The second one: curriculum temperature {cite}`li2023curriculum` learns $T$ *against* the student: the temperature ascends on the loss on which the student descends.
# **Written:** the gradient without its minus. **Meant:** reversed.
#
# (The released code's parameter starts at 1, `models/temp_global.py`, line 13: with its range a temperature of 15.6. `LearnedTemperature` starts in the middle of the range, at 11.) <!-- by definition -->

# %%
curriculum = {}
for sign in (1, -1):
    learned = LearnedTemperature(minimum=1, maximum=21, strength=sign)
    curriculum[sign] = distil(
        0.5 * CrossEntropy() + 0.5 * SoftTargets(temperature=learned)
    )

# %% tags=["hide-input"]
compare("sign of the curriculum", curriculum[-1], curriculum[1])
beside = paired_difference(curriculum[1]["nats"], right["nats"])
display(
    sentence(
        f"The right curriculum, against the fixed temperature: {beside:+.4f} (nats)."
    )
)

# %% tags=["hide-input"]
figure, axis = plt.subplots(figsize=(6.0, 2.8))
for sign, colour, label in ((1, BLUE, "ascends, as meant"), (-1, ORANGE, "descends")):
    path = [entry["SoftTargets.temperature"] for entry in curriculum[sign]["history"]]
    axis.plot(range(1, len(path) + 1), path, color=colour, label=label)
axis.set(xlabel="epoch", ylabel="temperature $T$")
axis.legend()
show(
    figure,
    label="sign",
    caption="The learned temperature of the last batch of each epoch. Both students are trained without complaint.",
    alt="Two curves that start at the same temperature and end at "
    + " and ".join(
        f"{run['history'][-1]['SoftTargets.temperature']:.1f} ({name})"
        for name, run in zip(
            ("as meant", "wrong sign"), curriculum.values(), strict=True
        )
    )
    + ".",
)

# %% tags=["hide-input"]
paths = {
    s: [e["SoftTargets.temperature"] for e in run["history"]]
    for s, run in curriculum.items()
}
passed = np.arange(1, len(paths[1]) + 1)
LEARNED = Quantity("learned temperature", "", 1, 2)
signs = {
    "as meant": curriculum[1]["nats"],
    "wrong sign": curriculum[-1]["nats"],
}
display(
    rises({"as meant": (passed, paths[1])}, LEARNED, "epochs"),
    falls({"wrong sign": (passed, paths[-1])}, LEARNED, "epochs"),
    within("wrong sign", "as meant", 0.01, signs, NATS),
)

# %% [markdown]
# No benchmark of this kind would have found the bug. The sign of one derivative does.
#
# **Caught by** `test_distilled_from_itself` and `test_curriculum_temperature_ascends`. *The student's gradient is not zero; one step along what the optimiser is given makes the loss larger.* <!-- by definition -->
#
# ## Room six: comparisons
#
# ### Exhibit 12. The flattered method
#
# The last room holds mistakes in code that is otherwise right. **Written:** `best = max(test_accuracy)` over epochs. **Meant:** the epoch that the *validation*
# split chooses. The curves of exhibit 4 serve, some of their test examples as "the test split", and the others as fresh examples that nobody has looked at. <!-- by definition -->

# %%
SHOWN = 500
on_test = 100 * curve["test"][:, :SHOWN].mean(1)
on_fresh = 100 * curve["test"][:, SHOWN:].mean(1)
on_validation = 100 * curve["validation"].mean(1)
column = np.arange(len(seeds))
best, chosen = on_test.argmax(0), on_validation.argmax(0)

# %% tags=["hide-input"]
compare(
    "reported: best epoch on the test split",
    {"accuracy": on_test[best, column]},
    {"accuracy": on_test[chosen, column]},
)
fresh = paired_difference(on_fresh[best, column], on_fresh[chosen, column])
display(sentence(f"The same epochs, on fresh examples, in points: {fresh:+.2f}."))

# %% tags=["hide-input"]
sizes = (100, 200, 500, 1000, 2000)
optimism = []
for size in sizes:
    seen = 100 * curve["test"][:, :size].mean(1)
    at = seen.argmax(0)
    optimism.append(paired_difference(seen[at, column], seen[chosen, column]))
figure, (left, right_panel) = plt.subplots(1, 2, figsize=(7.8, 3.3))
left.plot(
    range(1, LONG + 1), on_test[:, 0], color=ORANGE, label=f"{SHOWN} test examples"
)
left.plot(range(1, LONG + 1), on_fresh[:, 0], color=BLUE, label="fresh examples")
left.plot(best[0] + 1, on_test[best[0], 0], "*", color=ORANGE, markersize=15)
left.set(xlabel="epoch", ylabel="accuracy (%)", ylim=(on_fresh[:, 0].max() - 12, None))
left.legend(fontsize="small")
means = np.array([i.mean for i in optimism])
right_panel.errorbar(
    sizes,
    means,
    [means - [i.low for i in optimism], [i.high for i in optimism] - means],
    color=ORANGE,
    marker="o",
    capsize=3,
)
right_panel.axhline(0, color="grey", linewidth=1)
right_panel.set(
    xscale="log",
    xlabel="size of the test split",
    ylabel="best − chosen (points)",
    xticks=sizes,
    xticklabels=[str(s) for s in sizes],
)
right_panel.minorticks_off()
show(
    figure,
    label="optimism",
    caption=f"Left: one seed; the star is what would be reported. Right: by how much the best of {LONG} epochs on the test split exceeds the one that validation "
    f"chooses, {over_seeds(seeds)}.",
    alt="Left: a noisy curve around a smooth one, a star on its highest peak. Right: "
    + ", ".join(
        f"{i.mean:+.2f} points at {size}"
        for size, i in zip(sizes, optimism, strict=True)
    )
    + ".",
)

# %% [markdown]
# And a mistake without one wrong number in it: the method was tuned, the baseline was not. **Written:** one learning rate for both, the one that the method
# likes. **Meant:** four learning rates for each, and the validation split chooses for each.

# %%
grid = {
    "distilled": {BASE.learning_rate: right},
    "labels": {BASE.learning_rate: labels_alone},
}
for rate in (1e-3, 3e-3, 3e-2):
    grid["distilled"][rate] = distil(RIGHT, learning_rate=rate)
    grid["labels"][rate] = distil(1.0 * CrossEntropy(), learning_rate=rate)

# %% tags=["hide-input"]
likes = {
    arm: max(runs, key=lambda rate, runs=runs: validation_accuracy(runs[rate]))
    for arm, runs in grid.items()
}
at_edge = [
    arm for arm, rate in likes.items() if rate in (min(grid[arm]), max(grid[arm]))
]
display(
    sentence(
        "Validation chooses the learning rates "
        + " and ".join(f"{rate:g} ({arm})" for arm, rate in likes.items())
        + f"; at the edge of the grid: {', '.join(at_edge) or 'none'}."
    )
)
method = grid["distilled"][likes["distilled"]]
baselines = {
    "tuned": grid["labels"][likes["labels"]],
    "untuned": grid["labels"][likes["distilled"]],
}
advantage = {
    name: {
        "accuracy": method["accuracy"] - baseline["accuracy"],
        "nats": baseline["nats"] - method["nats"],
    }
    for name, baseline in baselines.items()
}
display(
    table(
        ["gain of distillation over", "points", "nats"],
        [
            [
                f"the {name} baseline",
                f"{summary(gain['accuracy']):+.2f}",
                f"{summary(gain['nats']):+.3f}",
            ]
            for name, gain in advantage.items()
        ],
        caption="What would be reported, over a tuned and an untuned baseline.",
    )
)
compare(  # of its students' distances nothing is reported
    "reported: gain over an untuned baseline",
    *({"accuracy": advantage[name]["accuracy"]} for name in ("untuned", "tuned")),
)

# %% tags=["hide-input"]
gift = {
    "on the test split": on_test[best, column] - on_test[chosen, column],
    "on fresh examples": on_fresh[best, column] - on_fresh[chosen, column],
}
GIFT = Quantity("gain of the best epoch over the chosen one", "points", 1, 2)
GAIN = Quantity("reported gain of distillation", "points", 1, 2)
reported = {
    f"over the {name} baseline": gain["accuracy"] for name, gain in advantage.items()
}
display(
    above("on the test split", [0, "on fresh examples"], gift, GIFT),
    above("over the untuned baseline", "over the tuned baseline", reported, GAIN),
    above("over the tuned baseline", 0, reported, GAIN),
)

# %% [markdown]
# **Caught by** `test_test_split_is_touched_once` and `test_every_arm_is_treated_alike`. *The test split notes when it is looked at: once, after the last epoch. The arms of a study (the methods that it compares) have equal recipes but for what
# is compared.*

# %% [markdown]
# ## Room seven: zeros, infinities and axes
#
# ### Exhibit 13. Nothing times infinity
#
# A word that does not exist has logit $-\infty$, and probability zero. **Written:** `(p * (log_p - log_q)).sum()`. **Meant:** the same sum, in which
# $0 \cdot \log 0$ is zero. On paper this is a convention. In floating point $0 \cdot (-\infty)$ is NaN.

# %%
from kdlab import objectives

z_there, t_there = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
absent = torch.tensor([[-torch.inf]])
z_with, t_with = torch.cat([z_there, absent], 1), torch.cat([t_there, absent], 1)
log_p_with, log_q_with = t_with.log_softmax(-1), z_with.log_softmax(-1)
written = (log_p_with.exp() * (log_p_with - log_q_with)).sum()
meant = objectives.forward_kl(z_with, t_with)
assert written.isnan() and meant == objectives.forward_kl(z_there, t_there)

# %% tags=["hide-input"]
sentence(
    f"Written: {written.item()}. Meant: {meant.item():.4f}, as without the word "
    f"({objectives.forward_kl(z_there, t_there).item():.4f})."
)

# %% [markdown]
# The same product lurks in masks. Padding may hold anything, even NaN. **Written:** compute all losses, then set those of padding to zero. **Meant:** take padding out
# *before* anything is computed. The first gives the right value, and a gradient of $0 \cdot \mathrm{NaN}$.

# %%
padded = torch.tensor([[1.0, 0.0], [torch.nan, 0.0]], requires_grad=True)
counts = torch.tensor([True, False])
late = torch.where(counts, -padded.log_softmax(-1)[:, 0], 0.0).sum()
early = objectives.cross_entropy(
    padded, torch.tensor([0, 0]), mask=counts, reduction="sum"
)
slopes = [torch.autograd.grad(loss, padded)[0] for loss in (late, early)]
assert late.isfinite() and slopes[0].isnan().any() and slopes[1].isfinite().all()

# %% tags=["hide-input"]
table(
    ["padding is taken out", "loss", "gradient at the word", "gradient at the padding"],
    [
        [when, f"{loss.item():.4f}"]
        + [", ".join(f"{value:.3f}" for value in row) for row in slope.tolist()]
        for when, loss, slope in zip(
            ("after", "before"), (late, early), slopes, strict=True
        )
    ],
    caption="One word and one position of padding, masked after and before the loss.",
)

# %% [markdown]
# **Caught by** `test_a_class_that_does_not_exist_is_as_if_it_were_not_there` and `test_what_is_masked_has_no_influence`. *A class of logit* $-\infty$ *changes neither value nor gradient; neither does NaN where
# the mask is false, for every loss.*
#
# ### Exhibit 14. Digits that a context manager takes away
#
# **Written:** the loss inside `torch.autocast`, beside the model. **Meant:** the model in half precision, the loss in full. Features of 300 have similarities of 90,000, and float16
# ends at 65,504.

# %%
strong = torch.tensor([[300.0, 0.0], [0.0, 300.0]])
with torch.autocast("cpu", torch.float16):
    gram = strong @ strong.T
    guarded = objectives.similarity_preserving(strong, torch.ones(2, 2))
assert gram.isinf().any() and guarded == objectives.similarity_preserving(
    strong, torch.ones(2, 2)
)

# %% tags=["hide-input"]
sentence(
    f"Within autocast the Gram matrix is {gram.tolist()}; kdlab's similarity-preserving "
    f"loss is {guarded.item():.4f}, as in float32."
)

# %% [markdown]
# **Caught by** `test_objectives_are_right_under_autocast`. *Every objective gives the same bits inside autocast and outside.*
#
# ### Exhibit 15. Classes in another axis
#
# **Written:** `softmax(-1)` of maps `(batch, classes, height, width)`. **Meant:** of the classes. Nothing fails: each row of pixels becomes a distribution over places.

# %%
maps = torch.randn(2, 21, 8, 8, generator=torch.Generator().manual_seed(0))
over_width, over_classes = maps.softmax(-1), objectives.soften(maps, class_axis=1)

# %% tags=["hide-input"]
sums = [maps.sum(1).mean().item() for maps in (over_width, over_classes)]
try:
    objectives.soften(maps)
except ValueError as error:
    refused = str(error)
sentence(
    f"Mean sum over the classes: {sums[0]:.3f} as written, {sums[1]:.3f} as meant. "
    f"Where the axis is not given, kdlab refuses: “{refused}”"
)

# %% [markdown]
# **Caught by** `test_the_class_axis_is_said`. *For maps with four axes, the loss asks which axis has the classes.*
#
# (whole-museum)=
# ## The whole museum


# %% tags=["hide-input"]
REMEDIES = ("T² lost, weight tuned", f"top {top_k} and the rest")


def known(interval):
    """Whether the sign of an effect is known; a single run does not tell."""
    return interval.n > 1 and interval.excludes_zero


def nats_of(name):
    return effects[name]["nats"].mean if "nats" in effects[name] else -np.inf


order = sorted(effects, key=nats_of)
figure, panels = plt.subplots(1, 2, figsize=(8.4, 7.0), sharey=True)
for panel, key in zip(panels, ("accuracy", "nats"), strict=True):
    for row, name in enumerate(order):
        if key not in effects[name]:
            continue
        interval = effects[name][key]
        colour = PURPLE if name.startswith("reported") else BLUE
        colour = GREEN if name in REMEDIES else colour
        panel.plot(
            [interval.low, interval.high], [row, row], color=colour, linewidth=1.6
        )
        panel.plot(
            interval.mean,
            row,
            "o",
            markeredgecolor=colour,
            color=colour if known(interval) else "white",
            markersize=6,
        )
    panel.axvline(0, color="grey", linewidth=1)
panels[0].set_xscale("symlog", linthresh=1)
panels[1].set_xscale("symlog", linthresh=0.01)
panels[0].set(
    yticks=range(len(order)),
    yticklabels=order,
    title="accuracy",
    xlabel="points (left is worse)",
    xlim=(-60, 60),
    xticks=[-30, -6, -1, 0, 1, 6, 30],
    xticklabels=["−30", "−6", "−1", "0", "1", "6", "30"],
)
panels[1].set(
    title="distance from the truth",
    xlabel="nats (right is worse)",
    xlim=(-3, 3),
    xticks=[-1, -0.1, -0.01, 0, 0.01, 0.1, 1],
    xticklabels=["−1", "−0.1", "−0.01", "0", "0.01", "0.1", "1"],
)
for panel in panels:
    panel.minorticks_off()
    panel.tick_params(labelsize="small")
show(
    figure,
    label="effects",
    caption=f"Wrong minus right, paired: {over_seeds(seeds)} (for the digits, {over_seeds(picture_seeds)}), sorted by the distance from the truth. Hollow: the interval "
    "contains zero, or there is none. Each interval is of its own pairs alone; a sentence above may pool the variance of several arms, and be narrower. Green: a remedy. Purple: the student is the same, and what is reported of it differs. Axes are linear near zero, logarithmic beyond.",
    alt="Two columns of dots with intervals, one row for each mistake: difference in accuracy on the left, difference in nats from the truth on the right, from "
    f"{order[0]} at the bottom to {order[-1]} at the top.",
)

# %% tags=["hide-input"]
mistakes = [name for name in effects if name not in REMEDIES]
silent = {
    key: [n for n in mistakes if key in effects[n] and not known(effects[n][key])]
    for key in ("accuracy", "nats")
}
only_nats = [
    name
    for name in silent["accuracy"]
    if "nats" in effects[name] and name not in silent["nats"]
]
both = [name for name in silent["accuracy"] if name in silent["nats"]]
worst = max((n for n in mistakes if "nats" in effects[n]), key=nats_of)
gained = paired_difference(labels_alone["nats"], right["nats"])
if len(seeds) > 1:
    hidden = (
        f"Of {len(mistakes)} settings of planted mistakes, {len(only_nats)} show in the distance from "
        f"the truth but not in accuracy, and {len(both)} in neither (95 % intervals of "
        f"n = {len(seeds)} pairs, of pictures {len(picture_seeds)}; {epochs} epochs)."
    )
else:
    hidden = "One seed does not tell which mistakes can be seen: take two or more."
findings.show(
    hidden,
    f"The costliest, “{worst}”, moves the student {nats_of(worst):+.2f} nats away from the "
    f"truth. All that distillation gains over labels alone is {gained.mean:.2f} nats.",
    f"A lost $T^2$ costs {nats_of('T² lost, beside labels'):+.3f} nats at equal weights, "
    f"and {nats_of('T² lost, weight tuned'):+.4f} once each loss has a tuned weight.",
    "An untuned baseline changes the reported gain by "
    f"{effects['reported: gain over an untuned baseline']['accuracy'].mean:+.2f} points.",
)
if len(seeds) > 1:
    lists = {"in accuracy, but visible in nats": only_nats, "at all": both}
    display(
        sentence(
            *(
                f"Not visible {where}, by their own pairs alone: {'; '.join(names) or 'none'}."
                for where, names in lists.items()
            )
        )
    )

# %% [markdown]
# There are three lessons. **Accuracy is a poor detector**: distillation is about the distribution, and a mistake can spoil that and leave the first choice alone.
# **A mistake has no size of its own**: compare the two settings of one mistake in exhibits 1, 3 and 9. <!-- by definition -->
# So a result that looks right is no evidence that the code is. **An interval that contains zero does not mean that
# there is no effect**: whoever changes the temperature, the optimiser or the data next may meet the effect.
#
# ## A checklist of criteria
#
# These say what must be true of the code, not what it should look like. None of them takes a training run.
#
# | for | criterion |
# |---|---|
# | a loss | Its gradient is the closed form, at several temperatures. |
# | | It is zero at equality and never negative. |
# | | An asymmetric example has the value worked out by hand. |
# | | Classes of no probability change nothing. Nor does padding. |
# | | One batch of N gives the same gradient as N batches of one. |
# | | Logits of ±10,000 in half precision give what float64 gives. |
# | sequences | Changing one label changes the loss at one position, the one before. |
# | | Where padding and end are one token, the end has a gradient and the padding has none. |
# | top-$k$ teachers | Zero for the teacher itself; on the kept tokens the gradient of the whole. |
# | a training step | Teacher and student get the same tensor. The student's gradient from the teacher is not zero. |
# | | The teacher's parameters, buffers and mode are the same before and after. The student is in training mode. |
# | | What is stored is stored by example, not by its place. |
# | | Whatever is learned against the loss makes the loss larger. |
# | a comparison | Validation chooses; the test split is used once. Every arm gets the same tuning. |
#
# A test that cannot fail is one more exhibit. So each criterion in `tests/test_pitfalls.py` is run on the right code *and* on the planted mistake. And `python tests/mutations.py` goes one step
# further: it plants the mistakes in copies of the package itself, one at a time, and shows the test that fails. <!-- by definition -->
#
# ## Limits
#
# - The sizes are those of a small bench: twenty classes, a teacher that knows the truth, small networks, Adam. They tell which mistakes *can* be large or silent, and why. They do not
#   tell how large yours is.
# - One setting per mistake. A row may move with the temperature, the weights, the optimiser or the length of training; exhibits 1, 3, 5 and 9 vary one of these. <!-- by definition -->
# - With so many intervals at 95 %, a few should be expected to miss. <!-- by definition -->
# - The digits have one teacher. Their seeds vary the student, its images and their order.
#
# ## To take away
#
# - **Formulae.** $\partial_z\, T^2 D_{\mathrm{KL}}(p_T\|q_T) = T(q_T-p_T)$: a test of factor, direction and temperature at once.
#   And $H(p,q) = H(p) + D_{\mathrm{KL}}(p\|q)$: equal gradients, other values.
# - **What to set.** `SoftTargets(temperature=T)` has its $T^2$; `ForwardKL` has none. For sequences give `mask=` of the padding, not of its token, and `count=` when
#   gradients are accumulated. For a teacher's top $k$: `restrict_vocabulary(…, rest=True)`. For maps: `class_axis=1`.
# - **What to watch for.** Measure the distance between distributions beside accuracy. Test criteria, not values. Choose by validation, and tune the baseline like the method.
#
# ## Exercises
#
# ```{exercise}
# :label: ex-sgd-square
#
# With the teacher alone, Adam hides the lost $T^2$. Is it hidden from SGD with momentum too?
# ```
#
# ````{solution} ex-sgd-square
# :class: dropdown
#
# ```python
# bare, full = (1.0 * kind(temperature=temperature) for kind in (ForwardKL, SoftTargets))
# by_sgd = distil(full, optimizer="sgd", learning_rate=0.5)
# compare("T² lost, by SGD", distil(bare, optimizer="sgd", learning_rate=0.5), by_sgd)
# made_good = distil(bare, optimizer="sgd", learning_rate=0.5 * temperature**2)
# compare("T² lost, by SGD with T² times the rate", made_good, by_sgd)
# ```
#
# No: under SGD a factor on the loss is a factor on the learning rate, and $T^2$ times the rate gives it back.
# ````
#
# ```{exercise}
# :label: ex-jump
#
# Some code returns the forward KL for $\beta=0$, the reverse KL for $\beta=1$, and the unscaled Jensen–Shannon divergence between. Somebody tries $\beta=0$ and $\beta=0.02$, which
# should be neighbours, beside labels. Write the mistake as a `Loss`, and its criterion.
# ```
#
# ````{solution} ex-jump
# :class: dropdown
#
# ```python
# from kdlab.objectives import generalised_jsd
#
#
# def near(z, t, y):
#     return generalised_jsd(z, t, beta=0.02)
#
#
# def near_and_scaled(z, t, y):
#     return generalised_jsd(z, t, beta=0.02, scaled=True)
#
#
# at_zero = distil(0.5 * CrossEntropy() + 0.5 * ForwardKL())
# for loss in (near, near_and_scaled):
#     compare(loss.__name__, distil(0.5 * CrossEntropy() + 0.5 * Loss(loss)), at_zero)
# ```
#
# Near $\beta = 0$ the divergence is about $\beta$ times the forward KL, so the teacher is all but gone; with `scaled=True` they are neighbours. The
# criterion is continuity: let $\beta$ run to the ends, and the loss must run to its values there (`test_divergences_do_not_jump_at_their_ends`).
# ````
#
# ```{exercise}
# :label: ex-best-seed
#
# The seed can be a hyper-parameter too. How much does one gain on 500 test examples by reporting the best of the bench's seeds, all of *one* task?
# ```
#
# ````{solution} ex-best-seed
# :class: dropdown
#
# ```python
# tasks = [KnownPosterior.draw(noise=1.2, seed=0)] * len(seeds)
# train, validation, test = draw(640, 1), draw(640, 2), draw(4000, 3)
# truth = SideBySide([ExactTeacher(task) for task in tasks])
# test_truth = predict(truth, test)
# logits = distil(RIGHT)["logits"]
# seen = right_in_percent(logits[:500], Examples(test.inputs[:500], test.labels[:500]))
# print(f"best {seen.max():.2f}, mean {seen.mean():.2f} (points, n = {len(seeds)})")
# ```
#
# Even if all students were equally good, an accuracy $a$ on $n$ examples has a standard deviation of $\sqrt{a(1-a)/n}$,
# and the largest of six independent draws lies about 1.3 deviations above their mean. <!-- by definition -->
# ````
