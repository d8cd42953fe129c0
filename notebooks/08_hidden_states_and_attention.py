# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Hidden states and attention
#
# The logits say what a teacher concludes. On the way to them it computes thousands of other numbers, and a student could be asked
# to reproduce these as well. But two networks do not speak the same language inside. Their layers differ in number and
# width, and a unit of one has nothing to do with the unit that has the same number in the other. So what is there to match?
#
# **At the end you will know** where an objective looks into two networks, and which weights each of its terms can move;
# what a projector is for, even where the widths agree; which objectives notice a rotation of the teacher's features;
# and what to watch for when attention maps are matched, in convolutional networks and in transformers.
#
# *Needs: one CPU core and about two minutes. {doc}`06_first_distillation` introduces the networks and the data.*

# %% tags=["parameters"]
profile: str = "cpu"  # "cpu" or "gpu"
classes: int = 10  # of the photographs: the first ones
train_images: int = 448  # that the students of photographs are trained on
epochs: int = 4  # of these trainings
steps: int = 60  # of the language models' distillation
seeds: list[int] = [0, 1, 2]  # of all students

# %% tags=["hide-input"]
import copy
import tempfile
import warnings
from dataclasses import replace
from pydoc_data import topics

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import display
from matplotlib.patches import Rectangle
from scipy.optimize import linear_sum_assignment
from torch import nn

from kdlab.data import KnownPosterior, load_images
from kdlab.figures import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    heatmap,
    sentence,
    show,
    table,
    transfer_points,
    use_style,
)
from kdlab.models import mlp, resnet8
from kdlab.objectives import (
    ActivationAttention,
    AttentionMaps,
    CrossEntropy,
    HiddenCosine,
    HiddenMSE,
    InfoNCE,
    Projector,
    RKDDistance,
    SimilarityPreserving,
    SoftTargets,
    Term,
    activation_attention,
    attention_from_qk,
    attention_map_mse,
    forward_kl,
    hidden_cosine,
    hidden_mse,
    info_nce,
    match_layers,
    next_token,
    rkd_angle,
    rkd_distance,
    similarity_preserving,
)
from kdlab.objectives.contrastive import ContrastiveMemory
from kdlab.objectives.features import unit
from kdlab.study import book_teacher
from kdlab.study.display import Findings, data_note, device_for, verdict
from kdlab.study.evidence import Among, Quantity
from kdlab.study.parameters import require
from kdlab.study.statements import above, below, falls, leads, undecided, within
from kdlab.study.statistics import against, summary
from kdlab.training import (
    Learner,
    Recipe,
    Taps,
    accuracy,
    fast_precision,
    fit,
    fit_together,
    predict,
)

# tqdm, where there are no widgets
warnings.filterwarnings("ignore", "IProgress not found")
import transformers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
use_style()
device = device_for(profile)
data = load_images()
teacher = book_teacher(data, device=device).cpu().eval()
SEEDS = tuple(seeds)
N = f"n = {len(seeds)}" + (" seeds" if len(seeds) > 1 else " seed, without an interval")
there_are = int((data.train.labels < classes).sum())
require(
    2 <= classes <= data.num_classes,
    f"classes must be from 2 to {data.num_classes}, not {classes}.",
)
require(
    64 <= train_images <= there_are,
    f"train_images must be from 64 to {there_are}, which {classes} classes have, not {train_images}.",
)
require(len(set(seeds)) == len(seeds), f"seeds differ from each other: {seeds}.")
require(
    steps >= 16,
    f"steps must be 16 or more, since both ends of a curve are means of eight, not {steps}.",
)


def difference(treated, control):
    """Paired by seed: mean and 95 % interval; of one seed the value alone."""
    return summary(np.subtract(treated, control))


data_note(data)

# %% tags=["hide-input"]
findings = Findings()

# %% [markdown]
# ## Where knowledge enters
#
# Here is an objective with five terms. One looks at labels, one at the teacher's logits. The other three look inside: a **hint** at the
# middle stage {cite}`romero2015fitnets`, **activation attention** at three stages {cite}`zagoruyko2017paying`, and **relations**
# between the examples of a batch at what enters the last layer {cite}`park2019relational`. The weights are those of the scripts of RepDistiller
# {cite}`tian2020contrastive` (`scripts/run_cifar_distill.sh`) and of mdistiller for RKD's distances (`engine/cfg.py`). The 100 of the hint is theirs, not FitNets', and belongs to their regressor, which has a bias and
# ends in a ReLU (`ConvReg` in `models/util.py`, line 131): `Projector("regressor")`. <!-- by definition -->

# %%
STAGES = ("layer1", "layer2", "layer3")
torch.manual_seed(0)
everything = (
    0.1 * CrossEntropy()
    + 0.9 * SoftTargets(temperature=4)
    + 100 * HiddenMSE("layer2", projector=Projector("regressor", 32, 32))
    + 1000 * ActivationAttention(*STAGES)
    + 25 * RKDDistance("input:fc")
)
student = resnet8(data.num_classes)

# %% [markdown]
# Article A closes with a diagram of such points, drawn by hand. This one is *computed*: the boxes come from
# the two networks, the lines from the layers that each term names. So it cannot disagree with what is trained.

# %% tags=["hide-input"]
show(
    transfer_points(student, teacher, everything),
    label="points",
    caption="Points of transfer between a ResNet-8 and a ResNet-20, drawn from the objective: modules from input (top) to output, "
    "with their parameters; a line for every pair that a term compares; arrows to where the gradient goes. A line to the upper edge of “fc” "
    "compares its input.",
    alt="Two columns of boxes, student left and teacher right. Lines join layer1, layer2 and layer3 of both by "
    "activation attention, layer2 also by a hint, the inputs of fc by relational distances, the logits by soft "
    "targets; labels point to the student's logits by cross-entropy.",
)

# %% [markdown]
# During training these layers are captured by `Taps`: forward hooks that leave the models as they are. A module path names
# an output, `"input:fc"` an input. The objective says which it needs.

# %%
images, labels, index = next(data.validation.batches(32))
with (
    Taps(student, everything.student_layers) as tapped_student,
    Taps(teacher, everything.teacher_layers) as tapped_teacher,
):
    student_logits, student_hidden = tapped_student(images)
    with torch.no_grad():
        teacher_logits, teacher_hidden = tapped_teacher(images)
seen = {
    "student_logits": student_logits,
    "teacher_logits": teacher_logits,
    "student_hidden": student_hidden,
    "teacher_hidden": teacher_hidden,
    "labels": labels,
}
total, values = everything(**seen)
assert set(student_hidden) == set(everything.student_layers)
assert set(teacher_hidden) == set(everything.teacher_layers)

# %% tags=["hide-input"]
table(
    ["layer", "student", "teacher"],
    [
        [
            layer,
            " × ".join(map(str, student_hidden[layer].shape)),
            " × ".join(map(str, teacher_hidden[layer].shape)),
        ]
        for layer in everything.student_layers
    ],
    caption="What was captured in one forward pass, by layer: shapes.",
)

# %% [markdown]
# A comparison at a layer can only move what comes *before* it. That follows from the chain rule, and it says
# what a hint cannot do: the stages above it, and the classifier, must learn from something else.

# %%
MODULES = ("conv1", "bn1", "layer1", "layer2", "layer3", "fc")
LAST = {
    "CrossEntropy": "fc",
    "SoftTargets": "fc",
    "HiddenMSE": "layer2",
    "ActivationAttention": "layer3",
    "RKDDistance": "layer3",
}


def norms_by_module(value):
    """The norm of one term's gradient in each of the student's modules."""
    norms = []
    for module in MODULES:
        parameters = list(getattr(student, module).parameters())
        gradients = torch.autograd.grad(
            value, parameters, retain_graph=True, allow_unused=True
        )
        norms.append(
            sum(g.square().sum().item() for g in gradients if g is not None) ** 0.5
        )
    return norms


# %% tags=["hide-input"]
reach = np.array([norms_by_module(values[name]) for name in everything.names])
for name, row in zip(everything.names, reach, strict=True):
    last = MODULES.index(LAST[name]) + 1
    assert (row[:last] > 0).all() and (row[last:] == 0).all(), name

# %% tags=["hide-input"]
figure, panel = plt.subplots(figsize=(6.2, 2.8))
heatmap(
    panel,
    reach / reach.max(1, keepdims=True),
    everything.names,
    MODULES,
    text=lambda v: "0" if v == 0 else f"{v:.2f}",
    rotation=0,
)
show(
    figure,
    label="reach",
    caption="Norm of each term's gradient in each module of the student, relative to the term's largest. A zero is exact: "
    "the term does not reach that module.",
    alt="Heat map of five terms by six modules. The hint is zero above layer2; activation attention and relations are "
    "zero in fc; cross-entropy and soft targets reach everything.",
)

# %% tags=["hide-input"]
lines = sum(len(getattr(term, "pairs", "1")) for term in everything.terms)
verdict(
    "A16", "verified",
    "Logits, hidden states and attention are points of transfer, as the article draws them; so are labels and relations between examples, "
    f"which it leaves out. Drawn from the objective: {len(everything.terms)} terms, {lines} lines, of which "
    f"{len(everything.student_layers)} layers of each network were captured in one pass. A term moves the modules up to its point and none after it: "
    f"{int((reach == 0).sum())} of {reach.size} gradients are exactly zero, those and no others.",
)  # fmt: skip

# %% [markdown]
# ## Two distances between hidden states
#
# For a student's vector $s$ and a teacher's $t$, both of width $D$, two losses are in use:
#
# $$\text{MSE: } \frac1D\sum_d (s_d - t_d)^2, \qquad \text{cosine: } 1 - \frac{s\cdot t}{\|s\|\,\|t\|}.$$
#
# The gradient of the first is $2(s-t)/D$: it points from $t$ to $s$. The gradient of the second stands at a right angle
# to $s$ and falls as $1/\|s\|$: it turns the student's vector and leaves its length alone.

# %%
generator = torch.Generator().manual_seed(0)
s, t = torch.randn(2, 500, 64, dtype=torch.float64, generator=generator)
s.requires_grad_()
(by_mse,) = torch.autograd.grad(hidden_mse(s, t, reduction="sum"), s)
(by_cosine,) = torch.autograd.grad(hidden_cosine(s, t, reduction="sum"), s)
assert torch.allclose(by_mse, 2 * (s - t) / 64)
assert (by_cosine * s).sum(-1).abs().max() < 1e-12
assert torch.isclose(hidden_cosine(s, 7 * t), hidden_cosine(s, t))

# %% tags=["hide-input"]
grid = torch.stack(
    torch.meshgrid(
        torch.linspace(-2, 2, 12), torch.linspace(-1.4, 1.8, 10), indexing="xy"
    ),
    -1,
)
target = torch.tensor([1.2, 0.8]).expand_as(grid)
figure, panels = plt.subplots(1, 2, figsize=(7.6, 3.3), sharey=True)
for panel, (name, loss) in zip(
    panels, {"MSE": hidden_mse, "cosine": hidden_cosine}.items(), strict=True
):
    place = grid.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(place, target, reduction="sum"), place)
    step = -slope / slope.norm(dim=-1).quantile(0.8)
    step = step / step.norm(dim=-1, keepdim=True).clamp(min=1)
    panel.quiver(
        *grid.unbind(-1),
        *step.unbind(-1),
        color=BLUE,
        angles="xy",
        scale_units="xy",
        scale=2.6,
        width=0.005,
    )
    panel.plot(*target[0, 0], "*", color=ORANGE, markersize=15)
    panel.plot(0, 0, "+", color="grey", markersize=9)
    panel.set(title=name, aspect="equal", xlabel="unit 1", xlim=(-2.4, 2.4))
    panel.grid(visible=False)
panels[1].axline(
    (0, 0), tuple(target[0, 0]), color=ORANGE, linewidth=1, linestyle=":", zorder=0
)
panels[0].set_ylabel("unit 2")
show(
    figure,
    label="distances",
    caption="Where a step of descent takes the student's vector. MSE draws it to the teacher's point (star); the cosine turns it "
    "about the origin (+) to the teacher's ray (dotted), faster near the origin. The longest arrows are cut.",
    alt="Two fields of arrows. Left, all arrows point at a star. Right, arrows run along circles about the origin "
    "towards the ray through the star.",
)

# %% [markdown]
# Which to take? MSE asks for the length too, and coordinates with a large variance dominate it. The cosine ignores
# length, which suits features that are normalised later, as a transformer's are; DistilBERT uses it {cite}`sanh2019distilbert`. Both compare coordinate with coordinate, and that needs
# equal widths:

# %% tags=["hide-input"]
try:
    hidden_mse(torch.zeros(8, 32), torch.zeros(8, 64))
except ValueError as error:
    refused = str(error)
sentence(f"kdlab refuses: “{refused}”")

# %% [markdown]
# A **projector** is a learned map from the student's features to the teacher's width. It belongs to the objective: it is trained
# with the student and thrown away afterwards. `kdlab` has several kinds. To compare them, we first need a
# student with features of its own.
#
# ## Three students
#
# | arm | objective |
# |---|---|
# | **alone** | labels |
# | **hint** | labels, and `HiddenMSE` at `layer2`, with a projector |
# | **attention** | labels, and `ActivationAttention` at the three stages |
#
# (An *arm* is one of the trainings that are compared.) One core can train on a few images of a few classes here. The two added terms need weights. The weights above
# belong to trainings of 240 epochs {cite}`tian2020contrastive`, and there is no time to tune. So one rule sets both, before any training: at an
# untrained student, the added term's gradient has to be *as long as that of the labels*. `gradient_norms` measures it.


# %% tags=["hide-input"]
def first_classes(split, number):
    return split[(split.labels < classes).nonzero().squeeze(1)[:number]]


few, held_out = (
    first_classes(data.train, train_images),
    first_classes(data.validation, 500),
)
tested = first_classes(data.test, 500)
RECIPE = {
    "epochs": epochs,
    "batch_size": 32,
    "learning_rate": 0.05,
    "schedule": "cosine",
    "warmup_epochs": 0.5,
    "precision": fast_precision(device),
    "augment": not data.fallback,
}


# %%
def hint():
    return HiddenMSE("layer2", projector=Projector("conv", 32, 32))


def attention():
    return ActivationAttention(*STAGES)


def equal_gradients(*makers):
    """Weights that make each term's gradient as long as the labels', untrained."""
    torch.manual_seed(100)
    untrained, terms = resnet8(data.num_classes), [make() for make in makers]
    trial = CrossEntropy() + sum(terms)
    inputs, targets, _ = next(few.batches(256))
    with Taps(untrained, STAGES) as one, Taps(teacher, STAGES) as other:
        logits, hidden = one(inputs)
        with torch.no_grad():
            _, known = other(inputs)
    _, found = trial(
        student_logits=logits,
        student_hidden=hidden,
        teacher_hidden=known,
        labels=targets,
    )
    norms = trial.gradient_norms(found, list(untrained.parameters()))
    return [
        (norms["CrossEntropy"] / norms[type(term).__name__]).item() for term in terms
    ]


hint_weight, attention_weight = equal_gradients(hint, attention)

# %% tags=["hide-input"]
sentence(
    f"By this rule the hint has weight {hint_weight:.1f}, and activation attention "
    f"{attention_weight:.0f}."
)

# %% [markdown]
# The arms are paired: for one seed, all three start from the same weights and see the same batches. All values
# are of the last epoch; nothing is selected.

# %%
ARMS = {
    "alone": lambda: 1.0 * CrossEntropy(),
    "hint": lambda: CrossEntropy() + hint_weight * hint(),
    "attention": lambda: CrossEntropy() + attention_weight * attention(),
}
students, objectives, accuracies = {}, {}, {arm: [] for arm in ARMS}
for seed in SEEDS:  # the arms side by side: the teacher looks at each batch once
    learners = []
    for objective in ARMS.values():
        torch.manual_seed(seed)
        student = resnet8(data.num_classes)
        learners.append(Learner(student, objective(), Recipe(seed=seed, **RECIPE)))
    fit_together(learners, train=few, teacher=teacher, device=device)
    for arm, learner in zip(ARMS, learners, strict=True):
        student = students[arm, seed] = learner.student.cpu().eval()
        objectives[arm, seed] = learner.objective
        accuracies[arm].append(100 * accuracy(predict(student, tested), tested.labels))


# %% tags=["hide-input"]
def against_alone(values):
    """Paired differences from the student alone, one interval per arm."""
    return {
        arm: difference(values[arm], values["alone"]) for arm in ("hint", "attention")
    }


gains = against_alone(accuracies)
table(
    ["arm", "test accuracy", "difference from alone, paired"],
    [
        [
            arm,
            f"{np.mean(values):.1f} % ({', '.join(f'{v:.1f}' for v in values)})",
            gains[arm].bracketed("+.1f") if arm in gains else "–",
        ]
        for arm, values in accuracies.items()
    ],
    caption=f"{classes} classes, {len(few):,} images, {epochs} epochs: mean (each seed), and 95 % interval of the difference in "
    f"points, {N}.",
)

# %% [markdown]
# A few seeds of a short training cannot settle a contest of accuracy. Claim A9, that looking inside “can provide stronger guidance to the student”, is a question for long trainings with tuned weights. These students can answer another question: did the
# matching do what it says?
#
# ## What a projector is for
#
# The student alone has 32 channels in `layer2`, and so has the teacher. <!-- by definition --> The widths agree, so an MSE can be
# computed without any projector. Is it meaningful? We take both networks' maps of the same images (averaged over
# small squares, since a single place is noisy), fit each kind of projector, and measure on *other* images how much of the teacher's variance it explains:
#
# $$R^2 = 1 - \frac{\text{mean squared error}}{\text{variance of the teacher's features}} .$$
#
# One is a perfect copy; zero is what a constant achieves; below zero, a constant would be better. <!-- by definition -->


# %% tags=["hide-input"]
@torch.no_grad()
def look(model, split, layers=STAGES):
    """What the layers of a model compute for the images of a split, in evaluation mode."""
    model.eval()
    with Taps(model, layers) as taps:
        captured = [taps(images)[1] for images, _, _ in split.batches(250)]
    return {layer: torch.cat([c[layer].float() for c in captured]) for layer in layers}


fit_on = few[torch.arange(min(200, len(few)))]
judge_on = held_out[torch.arange(len(held_out) // 2)]


def middle_stage(model):
    """Maps of layer2, means over squares of 4 × 4, of images to fit on and to judge on."""
    return [
        nn.functional.avg_pool2d(look(model, split, ["layer2"])["layer2"], 4)
        for split in (fit_on, judge_on)
    ]


teacher_fit, teacher_judge = middle_stage(teacher)
spread = (
    (teacher_judge - teacher_judge.mean((0, 2, 3), keepdim=True)).square().mean().item()
)


def distance_after_fit(term_class, kind, mine, seed):
    """Fit a projector on some images (L-BFGS); the term's value on others."""
    torch.manual_seed(seed)
    projector = None if kind == "none" else Projector(kind, 32, 32)
    term = term_class("layer2", projector=projector)

    def value(student_maps, teacher_maps):
        return term(
            student_hidden={"layer2": student_maps},
            teacher_hidden={"layer2": teacher_maps},
        )

    if projector is not None:
        optimizer = torch.optim.LBFGS(
            term.parameters(), max_iter=60, line_search_fn="strong_wolfe"
        )

        def closure():
            optimizer.zero_grad()
            loss = value(mine[0], teacher_fit)
            loss.backward()
            return loss

        optimizer.step(closure)
    term.eval()
    with torch.no_grad():
        return value(mine[1], teacher_judge).item()


# %%
KINDS = ("none", *Projector.KINDS)
features = {}
for seed in SEEDS:
    torch.manual_seed(seed)
    features["untrained", seed] = middle_stage(resnet8(data.num_classes))
    for arm in ("alone", "hint"):
        features[arm, seed] = middle_stage(students[arm, seed])
explained = {
    (group, kind): [
        1 - distance_after_fit(HiddenMSE, kind, features[group, seed], seed) / spread
        for seed in SEEDS
    ]
    for group in ("untrained", "alone", "hint")
    for kind in (KINDS if group == "alone" else ("none", "linear", "mlp"))
}

# %% tags=["hide-input"]
figure, axis = plt.subplots(figsize=(7.4, 3.4))
floor = -0.45
for shift, (group, colour) in enumerate(
    zip(("untrained", "alone", "hint"), (PURPLE, BLUE, ORANGE), strict=True), start=-1
):
    for place, kind in enumerate(KINDS):
        points = np.array(explained.get((group, kind), []))
        x = place + 0.22 * shift
        inside = points[points > floor]
        axis.plot(
            [x] * len(inside),
            inside,
            "o",
            color=colour,
            label=group if kind == "linear" else None,
        )
        if len(inside) < len(points):
            axis.plot(x, floor + 0.05, "v", color=colour)
            axis.text(x, floor + 0.09, f"{points.mean():.1f}", ha="center", fontsize=8)
axis.axhline(0, color="grey", linewidth=1)
axis.set(
    xticks=range(len(KINDS)),
    ylabel="$R^2$ on held-out images",
    ylim=(floor, 0.75),
)
axis.set_xticklabels(["no projector", *KINDS[1:]])
axis.legend(title="student", loc="upper right")
show(
    figure,
    label="projectors",
    caption="How much of the teacher's middle stage each kind of projector recovers from a student's, one dot per seed; triangles are off the axis, with their mean. A value "
    "far below zero is one of scale and offset (next table).",
    alt="Dots of explained variance by projector and student. "
    + "; ".join(
        f"{kind}, {group}: {np.mean(explained[group, kind]):.2f}"
        for kind in KINDS
        for group in ("untrained", "alone", "hint")
        if (group, kind) in explained
    )
    + ".",
)

# %% [markdown]
# The first column is below zero, although the widths agree. Do the channels mean different things, or is it only their *scale*? Five least-squares maps, each with more freedom of one kind, tell.


# %%
def rows(maps):
    """Maps (B, C, H, W) as a matrix of places by channels."""
    return maps.movedim(1, -1).flatten(0, 2).double()


def freed(maps):
    """R² on other images, of least-squares maps with more and more freedom."""
    x, new, y, target = (rows(m) for m in (*maps, teacher_fit, teacher_judge))
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y, new = x - x_mean, y - y_mean, new - x_mean
    each = (x * y).sum(0) / (x * x).sum(0)
    likeness = (x.T @ y) ** 2 / (x * x).sum(0)[:, None]  # what each explains of each
    _, partner = linear_sum_assignment(-likeness.T.numpy())
    u, values, vt = torch.linalg.svd(x.T @ y)
    matched = x[:, partner]
    maps_of = {
        "one scale, own offsets": new * ((x * y).sum() / (x * x).sum()),
        "each channel its own scale": new * each,
        "the best permutation, and own scales": new[:, partner]
        * ((matched * y).sum(0) / (matched * matched).sum(0)),
        "a rotation, and one scale": new @ (u @ vt) * (values.sum() / (x * x).sum()),
        "any linear map": new @ torch.linalg.lstsq(x, y, driver="gelsd").solution,
    }
    gap = {name: (z + y_mean - target).square().mean() for name, z in maps_of.items()}
    as_is = (rows(maps[1]) - target).square().mean()
    return {
        name: 1 - (g / spread).item()
        for name, g in {"as they are": as_is, **gap}.items()
    }


# %% tags=["hide-input"]
freedom = [freed(features["alone", seed]) for seed in SEEDS]
freedom = {name: [of_seed[name] for of_seed in freedom] for name in freedom[0]}
louder = np.mean(
    [rows(features["alone", seed][1]).var(0).mean() / spread for seed in SEEDS]
)

# %% tags=["hide-input"]
table(
    ["the student's features, after", "explained ($R^2$), each seed", "mean"],
    [
        [name, ", ".join(f"{v:z.2f}" for v in values), f"{np.mean(values):z.2f}"]
        for name, values in freedom.items()
    ],
    caption=f"The student alone, its layer2 and the teacher's, both of 32 channels. Its features have {louder:.1f} times the teacher's variance. “Own offsets” and “own scales”: one for each channel.",
)

# %% tags=["hide-input"]
R2 = Quantity("part of the teacher's variance that is explained", "", 1, 2)
fitted = {name: values for name, values in freedom.items() if name != "as they are"}
display(
    below("as they are", 0, freedom, R2),
    leads(
        "any linear map", fitted, R2, among=Among("the five fitted maps", list(fitted))
    ),
    below("each channel its own scale", "any linear map", fitted, R2),
)

# %% [markdown]
# So the first number is a matter of scale and offset. The rest of the table says more: with a scale and an offset of its own, each channel explains next to nothing of the teacher's channel
# of the same number. **Equal width does not make the channels of one network those of another.** This student had labels and no teacher. Below we ask whether a student that is trained to match can turn its own channels.
#
# An **orthogonal** map may turn the space and cannot rescale. Miles, Elezi and Deng {cite}`miles2024vkd` use it *with* a normalisation of the teacher's features; alone, as in the figure, its
# missing scale dominates, and the row “a rotation, and one scale” is the fair one. `linear` and `conv` can do both, and differ by
# a bias against a normalisation; the **mlp** bends. **What the projector
# can do, the student need not learn**: the untrained student in the figure shows how much a map finds in random features.
#
# The linear fit has a closed form, so the fits can be checked. And the cosine can be minimised as well as the MSE. The
# cosine flatters, since these features are not negative. So it is compared with that of the teacher's mean vector,
# which is the same for every image.


# %% tags=["hide-input"]
cosine_before, cosine_after, shortfall = [], [], []
for seed, by_descent in zip(SEEDS, explained["alone", "linear"], strict=True):
    alone = features["alone", seed]
    design, judged = (
        torch.cat([rows(maps), torch.ones(len(rows(maps)), 1)], 1) for maps in alone
    )
    solution = torch.linalg.lstsq(design, rows(teacher_fit), driver="gelsd").solution
    best = 1 - (judged @ solution - rows(teacher_judge)).square().mean().item() / spread
    shortfall.append(best - by_descent)
    cosine_before.append(1 - distance_after_fit(HiddenCosine, "none", alone, seed))
    cosine_after.append(1 - distance_after_fit(HiddenCosine, "linear", alone, seed))
mean_vector = {
    "layer2": teacher_fit.mean((0, 2, 3))[:, None, None].expand_as(teacher_judge)
}
cosine_of_mean = (
    1
    - HiddenCosine("layer2")(
        student_hidden=mean_vector, teacher_hidden={"layer2": teacher_judge}
    ).item()
)
assert max(map(abs, shortfall)) < 0.02
COSINE = Quantity(
    "mean cosine with the teacher's features on held-out images", "", 1, 2
)
cosine_works = above(
    "a linear projector",
    ["no projector", "the teacher's mean vector"],
    {
        "no projector": cosine_before,
        "a linear projector": cosine_after,
        "the teacher's mean vector": cosine_of_mean,
    },
    COSINE,
)
display(
    sentence(
        "For the linear projector, $R^2$ by least squares and by descent differ by "
        f"{max(map(abs, shortfall)):.0e} at most."
    ),
    cosine_works,
)

# %% [markdown]
# Did the *hint* do its work? That is two questions. The first: what was trained is the loss of the student together with its projector; is it smaller than before the training, on images that neither has seen? (The projector's
# normalisation takes its statistics from those images, both times.) The projector could do much of that with its
# offsets and scales alone. So the loss is also compared with a constant, the teacher's mean of each channel. The
# second: is the student itself nearer, when it and the student alone are each given the best linear map?


# %%
def own_loss(objective, student_maps):
    """The hint's loss through the projector that was trained with the student."""
    projector = copy.deepcopy(objective.terms[1].projectors[0]).train()
    with torch.no_grad():
        mapped = projector(student_maps)
    return (rows(mapped) - rows(teacher_judge)).square().mean().item()


# %% tags=["hide-input"]
before_training = []
for seed in SEEDS:
    torch.manual_seed(seed)
    untrained = CrossEntropy() + 1.0 * hint()
    before_training.append(own_loss(untrained, features["untrained", seed][1]))
hint_loss = {
    "before training": before_training,
    "after training": [
        own_loss(objectives["hint", seed], features["hint", seed][1]) for seed in SEEDS
    ],
    "the teacher's mean": spread,
}
best_maps = {
    "hint": explained["hint", "linear"],
    "alone": explained["alone", "linear"],
}
closer = difference(best_maps["hint"], best_maps["alone"])
HINT = Quantity("hint's loss on held-out images", "", 1, 3, "lower")
hint_works = below(
    "after training", ["before training", "the teacher's mean"], hint_loss, HINT
)
display(
    hint_works,
    above("hint", "alone", best_maps, R2),
)

# %% [markdown]
# ## Which layer with which?
#
# A ResNet-8 has three blocks, a ResNet-20 nine. `match_layers` knows three maps from the literature: **uniform** spreads the student's layers over
# the teacher's depth {cite}`jiao2020tinybert`, **last** takes the teacher's last layers, and **skip** takes every second or third
# {cite}`sun2019patient`.

# %%
ten = [f"block {i}" for i in range(1, 11)]
maps_of_layers = {
    how: match_layers(["a", "b", "c", "d"], ten, how)
    for how in ("uniform", "last", "skip")
}

# %% tags=["hide-input"]
table(
    ["", "a", "b", "c", "d"],
    [[how, *(other for _, other in pairs)] for how, pairs in maps_of_layers.items()],
    caption="Four layers of a student, a to d, matched with ten of a teacher.",
)

# %% [markdown]
# Do any two layers correspond by themselves? **Linear CKA** {cite}`kornblith2019similarity` measures how alike two
# layers arrange the same examples; one is "alike up to rotation and scale". No training is involved.


# %%
def linear_cka(x, y):
    """Linear centred kernel alignment of two matrices of examples by features."""
    x, y = x - x.mean(0), y - y.mean(0)
    return ((x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())).item()


# %% tags=["hide-input"]
student_blocks = [f"layer{stage}.0" for stage in (1, 2, 3)]
teacher_blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(3)]
theirs = look(teacher, held_out, teacher_blocks)
likeness = np.zeros((3, 9))
for seed in SEEDS:
    ours = look(students["alone", seed], held_out, student_blocks)
    likeness += [
        [
            linear_cka(ours[a].mean((2, 3)).double(), theirs[b].mean((2, 3)).double())
            / len(SEEDS)
            for b in teacher_blocks
        ]
        for a in student_blocks
    ]
chosen = {
    how: match_layers(student_blocks, teacher_blocks, how)
    for how in ("uniform", "last", "skip")
}
assert chosen["uniform"] == chosen["skip"]
nearest = [
    f"{teacher_blocks[row.argmax()]} to {block}"
    for block, row in zip(student_blocks, likeness, strict=True)
]
sentence(f"Of the teacher's blocks, most like the student's: {', '.join(nearest)}.")

# %% tags=["hide-input"]
figure, panel = plt.subplots(figsize=(7.2, 2.5))
heatmap(
    panel,
    likeness,
    student_blocks,
    teacher_blocks,
    text="{:.2f}",
    largest=1,
    rotation=30,
)
for how, style in {"uniform": "-", "last": ":"}.items():
    for mine, other in chosen[how]:
        inset = 0.06 if how == "last" else 0.0
        panel.add_patch(
            Rectangle(
                (
                    teacher_blocks.index(other) - 0.48 + inset,
                    student_blocks.index(mine) - 0.46 + inset,
                ),
                0.96 - 2 * inset,
                0.92 - 2 * inset,
                fill=False,
                edgecolor=VERMILION if how == "uniform" else SKY,
                linewidth=2,
                linestyle=style,
            )
        )
panel.set(xlabel="teacher's block", ylabel="student's block")
show(
    figure,
    label="cka",
    caption=f"Likeness (linear CKA of features averaged over places, mean, {N}) of the student alone and the teacher. Frames: the "
    "pairs of “uniform” (solid; for three of nine blocks “skip” is the same) and “last” (dotted).",
    alt="Heat map of three student blocks by nine teacher blocks. Solid frames mark the last block of each stage, "
    "dotted frames the last three blocks.",
)

# %% [markdown]
# No map of layers follows from that likeness (of students that have seen a few images). A pair in a frame is a *decision*: it says which
# part of the teacher's computation the student should cover with which part of its own.

# %% tags=["hide-input"]
short = difference(hint_loss["after training"], [spread] * len(SEEDS))
both_work = hint_works.holds and cosine_works.holds
nearer = (
    "comes nearer"
    if closer.n > 1 and closer.low > 0
    else "goes further away"
    if closer.n > 1 and closer.high < 0
    else "comes nearer is not decided"
)
verdict(
    "A8", "depends" if both_work else "not decided",
    ("Both losses can be minimised, and it holds on images not trained on. " if both_work else "")
    + f"With a hint at layer2 its loss on them goes from {np.mean(hint_loss['before training']):.3f} to {np.mean(hint_loss['after training']):.3f}, where the teacher's mean of each channel has {spread:.3f} "
    f"(the trained minus that {short.bracketed('+.3f')}, 95 % interval, {N}: the rest of the fall is offset and scale, which a projector learns without the student); a linear map, fitted to students of labels alone, brings the mean cosine from {np.mean(cosine_before):.2f} to {np.mean(cosine_after):.2f} (the teacher's mean vector, the same for every image, has {cosine_of_mean:.2f}). "
    f"{'Whether the' if 'decided' in nearer else 'The'} student itself {nearer}: after the best linear map, "
    f"{closer.bracketed('+.2f')} against the student alone. And the article has projections “if the student and teacher layers have different hidden sizes”: at equal width, channel for channel and "
    f"each with its own scale, the features of a student of labels alone explain {np.mean(freedom['each channel its own scale']):.2f}, through a linear map {np.mean(freedom['any linear map']):.2f}, and those of an untrained student {np.mean(explained['untrained', 'linear']):.2f}.",
    data=data,
    condition="under a premise" if both_work else None,
)  # fmt: skip

# %% [markdown]
# ## The same teacher in other coordinates
#
# Of contrastive objectives article A says that they learn “without requiring strict element-wise alignment”. Its formula has $f_S$ and $f_T$ in it, “again potential projection heads”. So
# two things might make alignment unnecessary: the contrast, and the heads. That can be tested. Take any
# teacher with features $f$, turn them by an orthogonal matrix, $f' = Rf$, and undo it in the last layer, $W' = WR^\top$. The
# outputs are what they were. It *is* the same teacher in other coordinates. An objective that needs no alignment must not notice.
#
# The task for this is the mixture of Gaussians of {doc}`01_what_a_teacher_knows`, on which networks train in a second, so that
# comparisons can be repeated.

# %% tags=["hide-input"]
task = KnownPosterior.draw(seed=0)
generator = torch.Generator().manual_seed(1)
plenty, scarce, unseen = (
    task.sample(n, generator=generator) for n in (20_000, 1_000, 4_000)
)
FAST = {
    "optimizer": "adam",
    "weight_decay": 0.0,
    "schedule": "cosine",
    "batch_size": 200,
    "augment": False,
}
torch.manual_seed(0)
wise = mlp(16, task.num_classes, width=64)
fit(
    wise,
    CrossEntropy(),
    train=plenty,
    recipe=Recipe(epochs=4, learning_rate=3e-3, **FAST),
)
wise = wise.requires_grad_(False).eval()


# %%
def in_other_coordinates(matrix):
    """The same teacher, its features (module "4") times an invertible matrix."""
    turn = nn.Linear(64, 64, bias=False)
    head = copy.deepcopy(wise[4])
    turn.weight.data = matrix.clone()
    head.weight.data = wise[4].weight @ torch.linalg.inv(matrix)
    return nn.Sequential(*wise[:4], turn, head).requires_grad_(False).eval()


rotation = torch.linalg.qr(torch.randn(64, 64, generator=generator)).Q
permutation = torch.eye(64)[torch.randperm(64, generator=generator)]
TEACHERS = {
    "as it is": in_other_coordinates(torch.eye(64)),
    "permuted": in_other_coordinates(permutation),
    "rotated": in_other_coordinates(rotation),
}
for same_teacher in TEACHERS.values():  # one function, three sets of features
    assert torch.allclose(same_teacher(unseen.inputs), wise(unseen.inputs), atol=1e-3)

# %% [markdown]
# ### What each objective notices
#
# First the losses themselves, at a student that was trained on labels. The teacher's features are transformed
# in five ways: units permuted, rotated, tripled, shifted by a constant vector, and multiplied by a matrix that is merely invertible. Two objectives come twice: as they are, and with their
# projector **refitted** to the transformed features, as a training with a learned projector does by itself. <!-- by definition --> CRD {cite}`tian2020contrastive` has learned maps
# on *both* sides; there no refit is made: the transformation is undone in the teacher's map by hand, to show that the map could.

# %% tags=["hide-input"]
torch.manual_seed(0)
plain_student = mlp(16, task.num_classes, width=64)
fit(
    plain_student,
    CrossEntropy(),
    train=scarce,
    recipe=Recipe(epochs=20, learning_rate=3e-3, **FAST),
)
some = unseen.inputs[:160]
S = plain_student[:4](some).detach().double().requires_grad_()
F = wise[:4](some).double()
of_student, of_teacher = (
    look(students["alone", SEEDS[0]], judge_on),
    look(teacher, judge_on),
)
maps_S = of_student["layer3"][:24].double().requires_grad_()
maps_F = of_teacher["layer3"][:24].double()

generator = torch.Generator().manual_seed(2)
left, right = (
    torch.linalg.qr(torch.randn(64, 64, dtype=torch.float64, generator=generator)).Q
    for _ in range(2)
)
eye, nothing = torch.eye(64, dtype=torch.float64), torch.zeros(64, dtype=torch.float64)
TRANSFORMS = {  # features become f @ matrix + shift
    "permute": (permutation.double(), nothing),
    "rotate": (left, nothing),
    "triple": (3 * eye, nothing),
    "shift": (eye, torch.rand(64, dtype=torch.float64, generator=generator)),
    "any invertible": (
        left @ torch.diag(torch.linspace(0.3, 2, 64).double()) @ right,
        nothing,
    ),
}


def with_one(x):
    return torch.cat([x, torch.ones_like(x[:, :1])], 1)


def least_squares(x, y):
    return torch.linalg.pinv(with_one(x).detach(), rtol=1e-10) @ y


def mse_refitted(s, t):
    return hidden_mse(with_one(s) @ least_squares(s, t), t)


def info_nce_refitted(s, t, steps=100, rate=0.3):
    """The projector of least InfoNCE on these examples, by descent from least squares."""
    design = with_one(s.detach())
    weight = least_squares(s, unit(t)).requires_grad_()
    whitening = torch.linalg.pinv(design.T @ design / len(design), rtol=1e-10)
    velocity = torch.zeros_like(weight)
    for _ in range(steps):
        (slope,) = torch.autograd.grad(info_nce(design @ weight, t), weight)
        with torch.no_grad():
            velocity = 0.9 * velocity - rate * whitening @ slope
            weight += velocity
    return info_nce(with_one(s) @ weight.detach(), t)


examples = unseen.labels[: len(S)], torch.arange(len(S))
torch.manual_seed(0)
memory = ContrastiveMemory(
    64, 64, len(S), width=32, negatives=100, momentum=0.0
).double()
optimizer = torch.optim.Adam(memory.parameters(), 3e-3)
for _ in range(60):  # its maps, for the teacher as it is
    optimizer.zero_grad()
    memory(S.detach(), F, *examples).backward()
    optimizer.step()


def crd(s, t, matrix=None, shift=None):
    """CRD, banks filled anew; its map for the teacher undoes a given matrix and shift."""
    torch.manual_seed(0)  # the same negatives each time
    module = copy.deepcopy(memory)
    if matrix is not None:
        layer = module.teacher_map.map
        layer.weight.data = layer.weight.data @ torch.linalg.inv(matrix).T
        layer.bias.data = layer.bias.data - layer.weight.data @ shift
    module(s.detach(), t, *examples)
    return module.eval()(s, t, *examples)


# %%
OBJECTIVES = {  # name: (loss, what it must not notice)
    "MSE": (hidden_mse, ""),
    "MSE, projector refitted": (mse_refitted, "permute rotate shift"),
    "cosine": (hidden_cosine, "triple"),
    "activation attention": (activation_attention, "permute rotate triple"),
    "RKD, distances": (rkd_distance, "permute rotate triple shift"),
    "RKD, angles": (rkd_angle, "permute rotate triple shift"),
    "similarity preserving": (similarity_preserving, "permute rotate triple"),
    "InfoNCE": (info_nce, "triple"),
    "InfoNCE, projector refitted": (info_nce_refitted, "permute rotate triple"),
    "CRD": (crd, ""),
    "CRD, map inverted": (crd, "permute rotate triple shift any invertible"),
}


# %% tags=["hide-input"]
def value_and_gradient(name, s, t, *transform):
    value = OBJECTIVES[name][0](s, t, *transform)
    return value.item(), torch.autograd.grad(value, s)[0]


change = np.zeros((2, len(OBJECTIVES), len(TRANSFORMS)))
unnoticed = {name: set() for name in OBJECTIVES}
for row, name in enumerate(OBJECTIVES):
    of_maps = name == "activation attention"
    s, t = (maps_S, maps_F.movedim(1, -1)) if of_maps else (S, F)
    at_rest = (eye, nothing) if name == "CRD, map inverted" else ()
    value, slope = value_and_gradient(
        name, s, t.movedim(-1, 1) if of_maps else t, *at_rest
    )
    for column, (how, (matrix, shift)) in enumerate(TRANSFORMS.items()):
        moved = t @ matrix + shift
        moved = moved.movedim(-1, 1) if of_maps else moved
        new, new_slope = value_and_gradient(
            name, s, moved, *((matrix, shift) if at_rest else ())
        )
        change[0, row, column] = abs(new / value - 1)
        change[1, row, column] = ((new_slope - slope).norm() / slope.norm()).item()
        if change[:, row, column].max() < 1e-6:
            unnoticed[name].add(how)
for name, (_, blind) in OBJECTIVES.items():  # to one part in a million, and no others
    assert unnoticed[name] == {how for how in TRANSFORMS if how in blind}, name

# %% tags=["hide-input"]
figure, panels = plt.subplots(1, 2, figsize=(8.6, 4.6), sharey=True)
for panel, title, numbers in zip(panels, ("value", "gradient"), change, strict=True):
    heatmap(
        panel,
        numbers,
        list(OBJECTIVES),
        list(TRANSFORMS),
        text=lambda v: (
            "0"
            if v < 1e-6
            else "< 1%"
            if v < 0.005
            else f"{v:.0%}"
            if v < 9.995
            else "> 999%"
        ),
        largest=1,
        fontsize=7.5,
        rotation=35,
    )
    panel.set_title(title)
show(
    figure,
    label="alignment",
    caption="Relative change of each objective's value and of its gradient with respect to the student's features when the teacher's features are "
    "transformed. “0” is below one in a million. Plain MSE, cosine and InfoNCE all notice a rotation. With a refitted projector MSE and InfoNCE do not, and relations "
    "between examples never did.",
    alt=f"Two heat maps of {len(OBJECTIVES)} objectives by {len(TRANSFORMS)} transformations. A rotation goes unnoticed by "
    + ", ".join(name for name in OBJECTIVES if "rotate" in unnoticed[name])
    + "; it is noticed by "
    + ", ".join(name for name in OBJECTIVES if "rotate" not in unnoticed[name])
    + ".",
)

# %% [markdown]
# The rows differ by *what they compare*, not by whether they contrast. InfoNCE compares
# by the dot product $\langle s_i, t_j\rangle$, and a dot product is a sum over coordinates: it needs both
# vectors in one coordinate system, exactly as the squared error does. For vectors of length one it *is* their cosine. Activation attention sums squares over the channels first, and
# relations compare the teacher with itself; they have no common coordinates to lose. All others owe their freedom to a **learned map**. A map
# on the student's side absorbs rotations; one on each side, as in CRD, absorbs every invertible matrix.
#
# ### Does a student notice?
#
# A loss is not a training. The student, too, can turn its features as it learns. So students are trained on the
# features *alone*, without labels, from the teacher as it is, permuted and rotated. Then we measure how much of the
# teacher they have: a linear read-out, fitted on the training examples, predicts the teacher's logits for
# unseen examples. The logits are the same for all three teachers. We report the part of their variance that is *not* explained.

# %%
NETWORKS = {
    "ReLU": nn.ReLU,  # the features are what leaves a ReLU, as the teacher's do
    "linear": nn.Identity,  # the same student without that last ReLU
}
METHODS = {
    "MSE": lambda: HiddenMSE(("input:4", "4")),
    "InfoNCE": lambda: InfoNCE(("input:4", "4")),
    "MSE, projector": lambda: HiddenMSE(
        ("input:4", "4"), projector=Projector("linear", 64, 64)
    ),
    "InfoNCE, projector": lambda: InfoNCE(
        ("input:4", "4"), projector=Projector("linear", 64, 64)
    ),
    "similarity preserving": lambda: SimilarityPreserving(("input:4", "4")),
}

# %% tags=["hide-input"]
features_of = {source: same[:5](scarce.inputs) for source, same in TEACHERS.items()}
wise_scarce, wise_unseen = (
    wise(x.inputs).double() - wise(x.inputs).double().mean(1, keepdim=True)
    for x in (scarce, unseen)
)


def unexplained(network):
    """What a linear read-out of features leaves of the teacher's logits' variance, in %."""
    with torch.no_grad():
        known, new = (with_one(network(x.inputs).double()) for x in (scarce, unseen))
    ridge = 1e-3 * known.square().mean() * len(known) * torch.eye(known.shape[1])
    readout = torch.linalg.solve(known.T @ known + ridge, known.T @ wise_scarce)
    rest = (new @ readout - wise_unseen).square().sum()
    return 100 * (rest / (wise_unseen - wise_unseen.mean(0)).square().sum()).item()


# %%
def train_on_features(method, source, last, seed, epochs=6 * epochs + 1):
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 64), NETWORKS[last]()
    )
    objective = METHODS[method]()
    optimizer = torch.optim.Adam([*network.parameters(), *objective.parameters()], 5e-3)
    batches = [b for _ in range(epochs) for b in torch.randperm(len(scarce)).split(200)]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    losses = []
    for index in batches:
        own, theirs = network(scarce.inputs[index]), features_of[source][index]
        loss = objective(student_hidden={"input:4": own}, teacher_hidden={"4": theirs})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return unexplained(network), np.mean(losses[-len(batches) // epochs :])


# %% tags=["hide-input"]
PLAIN = ("MSE", "InfoNCE")
runs = {
    (method, source, last): np.array(
        [train_on_features(method, source, last, seed) for seed in SEEDS]
    )
    for last in NETWORKS
    for method in METHODS
    for source in TEACHERS
    if (last == "ReLU" and (source != "permuted" or method in PLAIN))
    or (last == "linear" and method in PLAIN and source != "permuted")
}


def effect(method, source, last="ReLU", measure=0):
    """What the other coordinates change, paired by seed."""
    return difference(
        runs[method, source, last][:, measure],
        runs[method, "as it is", last][:, measure],
    )


# %% tags=["hide-input"]
comparisons = [
    *((method, "permuted", "ReLU") for method in PLAIN),
    *((method, "rotated", "ReLU") for method in METHODS),
    *((method, "rotated", "linear") for method in PLAIN),
]
names = [
    f"{method}: {source}" + (", no last ReLU" if last == "linear" else "")
    for method, source, last in comparisons
]
figure, axis = plt.subplots(figsize=(7.6, 4.0))
for place, (method, source, last) in enumerate(comparisons):
    before, after = (runs[method, which, last][:, 0] for which in ("as it is", source))
    change_here = effect(method, source, last)
    y = len(comparisons) - place
    sure = change_here.n > 1
    colour = (
        VERMILION
        if sure and change_here.low > 0
        else GREEN
        if sure and change_here.high < 0
        else BLUE
    )
    axis.plot(after - before, [y] * len(before), "o", color=colour, alpha=0.4)
    axis.plot([change_here.low, change_here.high], [y, y], color=colour)
    axis.plot(
        change_here.mean, y, "|", color=colour, markersize=13, markeredgewidth=2.5
    )
axis.axvline(0, color="grey", linewidth=1)
axis.set(
    yticks=range(len(comparisons), 0, -1),
    xlabel="change of the unexplained part of the teacher's logits (points)",
)
axis.set_yticklabels(names)
axis.grid(visible=False, axis="y")
show(
    figure,
    label="trained",
    caption="Students trained from the same teacher in other coordinates, against the teacher as it is: change of what they miss, each dot a "
    f"seed, the bar its 95 % interval ({N}). Right of zero they learned less. Red: the interval lies above zero; green: below.",
    alt="Dot plot of changes in points: "
    + "; ".join(
        f"{name} {effect(*comparison).mean:+.2f}"
        for name, comparison in zip(names, comparisons, strict=True)
    )
    + ".",
)

# %% tags=["hide-input"]
table(
    [
        "objective",
        "as it is",
        "rotated",
        "difference",
        "loss, as it is",
        "loss, rotated",
    ],
    [
        [
            method,
            f"{runs[method, 'as it is', 'ReLU'][:, 0].mean():.2f}",
            f"{runs[method, 'rotated', 'ReLU'][:, 0].mean():.2f}",
            effect(method, "rotated").bracketed("+z.2f"),
            f"{runs[method, 'as it is', 'ReLU'][:, 1].mean():.2g}",
            f"{runs[method, 'rotated', 'ReLU'][:, 1].mean():.2g}",
        ]
        for method in METHODS
    ],
    caption=f"Unexplained variance of the teacher's logits (%) and the loss of the last epoch, means, {N}; the difference is paired, with its "
    "95 % interval. Losses can be compared within a row.",
)

# %% [markdown]
# At the start the student's units are exchangeable, drawn from one distribution, and any of them may become the teacher's first, so a permutation has no reason to cost anything. A rotation has. The teacher's features come out of a ReLU and are
# not negative. Rotated, they are, and a student whose own features leave a ReLU cannot follow; without that ReLU the layers before can learn any rotation. So alignment is a demand on the student's *architecture*. InfoNCE
# makes it too, though it asks for directions only, and only well enough to tell examples apart.

# %% tags=["hide-input"]
index_of_rotation = (
    list(OBJECTIVES).index("InfoNCE"),
    list(TRANSFORMS).index("rotate"),
)
by_contrast, by_mse_ = effect("InfoNCE", "rotated"), effect("MSE", "rotated")
free = effect("InfoNCE, projector", "rotated")
ends = {
    source: {method: runs[method, source, "ReLU"][:, 1].mean() for method in METHODS}
    for source in ("as it is", "rotated")
}
costs = {
    name: runs[method, source, last][:, 0] - runs[method, "as it is", last][:, 0]
    for name, (method, source, last) in zip(names, comparisons, strict=True)
}
# each objective by itself: their units differ, and so do their deviations
last_losses = {
    method: {
        f"{method}, {source}": runs[method, source, "ReLU"][:, 1]
        for source in ("as it is", "rotated")
    }
    for method in PLAIN
}
COST = Quantity(
    "unexplained part of the teacher's logits that other coordinates add",
    "points",
    1,
    2,
)
LOSS = Quantity("last training loss", "", 1, 3, "lower")
display(
    above("MSE: rotated", 0, costs, COST),
    *(
        above(f"{method}, rotated", f"{method}, as it is", losses, LOSS)
        for method, losses in last_losses.items()
    ),
    within("similarity preserving: rotated", 0, 0.3, costs, COST),
    below("MSE, projector: rotated", 0, costs, COST),
    undecided("InfoNCE, projector: rotated", 0, 0.5, costs, COST),
)
verdict(
    "A14", "depends",
    r"On the projection heads, which the article's formula calls potential, not on the contrast. InfoNCE compares by dot products: without heads, when the teacher's features are rotated its value changes by "
    f"{change[0][index_of_rotation]:.0%} and its gradient by {change[1][index_of_rotation]:.0%}. With a refitted projector neither changes, but then MSE does not either, "
    "and relational losses never do. Students with ReLU features end at an InfoNCE of "
    f"{ends['rotated']['InfoNCE']:.2f} from a rotated teacher, {ends['as it is']['InfoNCE']:.2f} from the same teacher as it is; what they miss of its logits changes by "
    f"{by_contrast.bracketed('+.2f')} points (95 % interval, {N}), by MSE {by_mse_.bracketed('+.2f')}, by InfoNCE with a "
    f"projector {free.bracketed('+.2f')}, by MSE with one {effect('MSE, projector', 'rotated').bracketed('+.2f')}.",
    condition="under a premise",
)  # fmt: skip

# %% [markdown]
# ## Attention without transformers
#
# In a convolutional network nothing is called attention. Zagoruyko and Komodakis {cite}`zagoruyko2017paying` make a map from the
# activations: where are they large? Squares are summed over the channels and the map is brought to length one,
#
# $$a = \operatorname{vec}\Bigl(\sum_c A_c^2\Bigr), \qquad \hat a = \frac{a}{\|a\|_2},$$
#
# so that neither the number of channels nor the scale matters. Student and teacher should look at the same places. Two formulae for the distance of two
# maps are in use. The paper has the *norm* of the difference (eq. 2); the authors' code, and much code since, has the *mean of
# squares* over the $HW$ places (torchdistill offers both, as `mode="paper"` and `mode="code"`):
#
# $$L_{\text{paper}} = \|\hat a_S - \hat a_T\|_2, \qquad L_{\text{released}} = \frac{1}{HW}\,\|\hat a_S - \hat a_T\|_2^2,
# \qquad \nabla L_{\text{released}} = \frac{2\,L_{\text{paper}}}{HW}\,\nabla L_{\text{paper}} .$$
#
# The chain rule gives the factor, and it is not constant. The $HW$ in it is a matter of the weight, and the paper has it too. Its term is $\frac\beta2 L_{\text{paper}}$, and it sets $\beta$
# “to 10^3 divided by number of elements in attention map and batch size for each layer” (so quoted in the authors' repository,
# [issue 32](https://github.com/szagoruyko/attention-transfer/issues/32)). With that $\beta$ there and the same 1000 here, what remains between the two gradients is the factor
# $4\,L_{\text{paper}}$: norm against square, different from example to example.

# %%
factors = {}
for stage in STAGES:
    mine, other = (
        of_student[stage].double().requires_grad_(),
        of_teacher[stage].double(),
    )
    paper, released = (
        activation_attention(mine, other, form=form, reduction="none")
        for form in ("paper", "released")
    )
    by_paper, by_released = (
        torch.autograd.grad(loss.sum(), mine)[0] for loss in (paper, released)
    )
    places = mine.shape[2] * mine.shape[3]
    factor = (2 * paper / places).detach()
    assert torch.allclose(
        by_released, by_paper * factor[:, None, None, None], rtol=1e-9
    )
    factors[stage] = (places, paper.detach(), factor)

# %% tags=["hide-input"]
table(
    [
        "stage",
        "places",
        "paper's loss",
        "released loss",
        "factor, equal weights",
        "factor, the paper's β and 1000",
    ],
    [
        [
            stage,
            places,
            f"{paper.mean():.3f}",
            f"{(paper.square() / places).mean():.5f}",
            f"{factor.min():.5f} to {factor.max():.5f}",
            f"{4 * paper.min():.2f} to {4 * paper.max():.2f}",
        ]
        for stage, (places, paper, factor) in factors.items()
    ],
    caption=f"The student alone and its teacher, {len(judge_on)} images. Factors: the released form's gradient over the paper's, smallest and largest over the images.",
)

# %% [markdown]
# In the paper's form the gradient with respect to $\hat a_S$ has length one, however near the teacher's map is: every example pulls with the same force. In the
# released form distant maps pull harder, and the pull fades as the maps meet.
#
# ### Does the student look where the teacher looks?
#
# The natural measure is the one that was trained on, the cosine of the maps. It flatters. Maps have no negative
# entries, so even a map that looks *everywhere alike* has a high cosine with the teacher's. We want the part that
# belongs to the image: subtract from each network's maps their mean over the images, and correlate the rest.


# %%
def map_of(features):
    return unit(features.square().mean(1).flatten(1))


def own_part(maps):
    """What distinguishes an image's map: its difference from the mean map, centred."""
    rest = maps - maps.mean(0)
    return rest - rest.mean(1, keepdim=True)


# %% tags=["hide-input"]
def likeness_of_maps(maps):
    """Mean cosine with the teacher's maps and mean correlation of the images' own parts."""
    return [
        [
            (maps[stage] * teacher_maps[stage]).sum(1).mean().item(),
            (unit(own_part(maps[stage])) * unit(own_part(teacher_maps[stage])))
            .sum(1)
            .mean()
            .item(),
        ]
        for stage in STAGES
    ]


def all_maps(model):
    return {
        stage: map_of(features) for stage, features in look(model, held_out).items()
    }


teacher_maps = all_maps(teacher)
alike = {
    arm: np.array([likeness_of_maps(all_maps(students[arm, seed])) for seed in SEEDS])
    for arm in ("alone", "attention")
}  # seeds × stages × (cosine, correlation)
everywhere = [
    (teacher_maps[stage] @ unit(torch.ones(teacher_maps[stage].shape[1]))).mean().item()
    for stage in STAGES
]
per_stage = [
    difference(alike["attention"][:, i, 1], alike["alone"][:, i, 1])
    for i in range(len(STAGES))
]

# %% tags=["hide-input"]
table(
    ["", *STAGES],
    [
        ["cosine, the same everywhere", *(f"{v:.2f}" for v in everywhere)],
        *(
            [f"{name}, {arm}", *(f"{v:z.2f}" for v in alike[arm][:, :, i].mean(0))]
            for i, name in enumerate(("cosine", "own part"))
            for arm in alike
        ),
        [
            "own part, difference",
            *(interval.bracketed("+z.2f") for interval in per_stage),
        ],
    ],
    caption=f"Likeness to the teacher's maps on {len(held_out)} held-out images: cosine, of a map that is the same everywhere and of the students; and correlation of the "
    f"images' own part, of the students. Means, {N}; the paired difference with its 95 % interval.",
)

# %% [markdown]
# The images' own part is the one to look at: a map that is the same everywhere has none of it.

# %% tags=["hide-input"]
stage_shown = "layer3"
drawn = np.linspace(0, classes - 1, min(classes, 6)).astype(int)
spaced = [int((held_out.labels == c).nonzero()[0]) for c in drawn]
shown = {
    "teacher": teacher_maps[stage_shown],
    **{arm: all_maps(students[arm, SEEDS[0]])[stage_shown] for arm in alike},
}
figure, panels = plt.subplots(4, len(spaced), figsize=(7.4, 5.1))
for column, example in enumerate(spaced):
    panels[0, column].imshow(held_out.images[example].permute(1, 2, 0))
    panels[0, column].set_title(
        data.classes[int(held_out.labels[example])].replace("_", " "),
        fontsize=8,
        loc="center",
    )
    for row, maps_shown in enumerate(shown.values(), start=1):
        side = int(maps_shown.shape[1] ** 0.5)
        panels[row, column].imshow(
            own_part(maps_shown)[example].unflatten(0, (side, side)), cmap="cividis"
        )
for panel in panels.flat:
    panel.set(xticks=[], yticks=[])
    panel.grid(visible=False)
    for spine in panel.spines.values():
        spine.set_visible(False)
for row, name in enumerate(["image", *shown]):
    panels[row, 0].set_ylabel(name)
show(
    figure,
    label="maps",
    caption=f"Where the last stage is more active than it is on average over images (bright) for {len(spaced)} held-out images: teacher, student alone, student "
    "trained with activation attention, of the first seed.",
    alt="Photographs in a row, and below each three maps of 8 by 8 places: the teacher's, that of the student "
    "alone and that of the student trained with attention.",
)

# %% tags=["hide-input"]
overall = difference(
    alike["attention"][:, :, 1].mean(1), alike["alone"][:, :, 1].mean(1)
)
gain = gains["attention"]
by_stage = ", ".join(d.bracketed("+.2f") for d in per_stage)
own_parts = {arm: alike[arm][:, :, 1].mean(1) for arm in alike}
plain_cosines = {arm: alike[arm][:, 1, 0] for arm in alike}
OWN = Quantity("correlation of the images' own part, mean of three stages", "", 1, 2)
PLAIN_COSINE = Quantity("plain cosine of the maps at the middle stage", "", 1, 2)
transferred = above("attention", ["alone", 0], own_parts, OWN)
display(transferred, below("alone", everywhere[1], plain_cosines, PLAIN_COSINE))
verdict(
    "A11", "verified" if transferred.holds else "not decided",
    ("The student comes to look a little more where its teacher looks. " if transferred.holds else "")
    + f"In a student trained to match its teacher's maps, the part of a map that belongs to the image correlates with the teacher's, on held-out images, "
    f"at {alike['attention'][:, :, 1].mean():.2f} in place of {alike['alone'][:, :, 1].mean():.2f}, mean of three stages (paired difference {overall.bracketed('+.2f')}, "
    f"{N}); stage by stage it changes by {by_stage}. The plain cosine misleads: a map that is the same everywhere has {everywhere[1]:.2f} at the middle stage. Test accuracy "
    f"changes by {gain.bracketed('+.1f')} points. The paper's norm, with its $\\beta=10^3/HW$, and the released mean of squares, with 1000, differ in every example's gradient by "
    r"the factor $4\|\hat a_S-\hat a_T\|_2$.",
    data=data,
)  # fmt: skip

# %% [markdown]
# ## Attention in a transformer
#
# Here the maps exist: for head $h$ a matrix $A^h$, whose row $i$ says how query $i$ spreads its attention over
# the keys. Article A matches them by
#
# $$L = \frac{1}{N_h}\sum_{h=1}^{N_h}\bigl\|A_S^h - A_T^h\bigr\|_F^2 .$$
#
# `attention_map_mse` computes just that. We try it with two Llama models of Hugging Face's `transformers`, of different width, depth and numbers of
# heads, with bytes for tokens. Their text is the Python language reference, which every Python carries. The teacher is
# trained briefly, so that it has something to teach.

# %% tags=["hide-input"]
text = "\n\n".join(topics.topics[name] for name in sorted(topics.topics))
tokens = torch.tensor(list(text.encode()))
part = len(tokens) * 9 // 10
to_train, to_judge = tokens[:part], tokens[part:]


def windows(source, number, length, generator):
    start = torch.randint(len(source) - length, (number,), generator=generator)
    return source[start[:, None] + torch.arange(length)]


def llama(seed, *, width, layers, heads, key_heads, implementation="sdpa"):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        max_position_embeddings=256,
        attn_implementation=implementation,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


LARGE = {"width": 96, "layers": 4, "heads": 8, "key_heads": 4}
SMALL = {"width": 48, "layers": 2, "heads": 4, "key_heads": 4}
large, small = llama(0, **LARGE), llama(1, **SMALL)
generator = torch.Generator().manual_seed(0)
optimizer = torch.optim.AdamW(large.parameters(), 3e-3)
for step in range(min(100, 2 * steps)):
    optimizer.param_groups[0]["lr"] = 3e-3 * min(1, (step + 1) / 20)
    batch = windows(to_train, 8, 64, generator)
    loss = CrossEntropy()(**next_token(large(batch).logits, None, batch))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
large.requires_grad_(False).eval()

fixed = windows(to_judge, 64, 64, torch.Generator().manual_seed(1))


@torch.no_grad()
def judged_by(model):
    """Cross-entropy of the next byte on held-out text, in nats."""
    return CrossEntropy()(**next_token(model(fixed).logits, None, fixed)).item()


of_large = judged_by(large)
sentence(
    f"Held-out text, in nats a byte: a uniform guess {np.log(256):.2f}, the teacher "
    f"{of_large:.2f}, an untrained student {judged_by(small):.2f}."
)

# %% [markdown]
# The article goes on with “Challenges include:”; the list itself is missing from the text that we have. Here are five things to settle before the formula can be used.
#
# **1. Getting the maps.** Fused attention, the default in `transformers`, never stores them, and a model that computes it
# returns none. `Taps` recovers them from the queries and keys of the call. They agree with those of the same model in its slow
# implementation.

# %%
slow = llama(0, **LARGE, implementation="eager").eval()
slow.load_state_dict(large.state_dict())
layer = "attention:model.layers.3.self_attn"
with torch.no_grad(), Taps(large, [layer]) as taps:
    returned = large(fixed, output_attentions=True).attentions
    _, captured = taps(fixed)
    expected = slow(fixed, output_attentions=True).attentions[3]
recovered = (captured[layer] - expected).abs().max().item()
assert not returned and recovered < 1e-4

# %% tags=["hide-input"]
sentence(
    f"The fused model returns {len(returned or ())} maps; those recovered, of shape "
    f"{tuple(captured[layer].shape)}, are off by {recovered:.0e} at most."
)

# %% [markdown]
# **2. Length.** The norm sums over queries. Let each query disagree by the same amount, and the loss grows as the
# length $L$ of the text: in a batch of texts the long ones rule. Dividing by the number of queries removes that.
# Dividing by all entries of the *maps* overshoots, and favours the short texts. TinyBERT {cite}`jiao2020tinybert` is no example of that: it takes the mean squared error of the *scores*, before the softmax, and their size does
# not depend on how many there are.

# %%
lengths = [8, 16, 32, 64, 128, 256]
NORMALISE = ("none", "queries", "entries")


def disagreeing(length):
    """Two maps: every query looks at itself; or half at its neighbour."""
    itself = torch.eye(length)
    half = (itself + itself.roll(1, 0)) / 2
    return itself.expand(1, 4, -1, -1), half.expand(1, 4, -1, -1)


@torch.no_grad()
def maps(model, layer, batch, **options):
    with Taps(model, [f"attention:model.layers.{layer}.self_attn"]) as taps:
        return next(iter(taps(batch, **options)[1].values()))


# %% tags=["hide-input"]
by_length = {how: [] for how in NORMALISE}
by_models = {how: [] for how in NORMALISE}
for length in lengths:
    long = windows(to_judge, 8, length, torch.Generator().manual_seed(2))
    pair = maps(small, 1, long), maps(large, 3, long)
    for how in NORMALISE:
        by_length[how].append(
            attention_map_mse(*disagreeing(length), normalise=how).item()
        )
        by_models[how].append(
            attention_map_mse(*pair, heads="group", normalise=how).item()
        )
scores = {"scores": [], "maps": []}  # of queries and keys drawn at random
for length in (8, 512):
    torch.manual_seed(0)
    q, k = torch.randn(2, 2, 8, 4, length, 16)  # student and teacher
    drawn = [a @ b.mT / 4 for a, b in zip(q, k, strict=True)]
    drawn = {"scores": drawn, "maps": [x.softmax(-1) for x in drawn]}
    for what, (one, other) in drawn.items():
        scores[what].append((one - other).square().mean().item())
said = (f"of {what} {a:.2g} and {b:.2g}" for what, (a, b) in scores.items())
display(
    sentence(
        "Mean squared difference over all entries, at 8 and at 512 random tokens: "
        f"{'; '.join(said)}."
    )
)
assert abs(scores["scores"][1] / scores["scores"][0] - 1) < 0.1
assert scores["maps"][1] < scores["maps"][0] / 1000
by_hand = torch.stack(
    [
        sum(torch.linalg.matrix_norm(a[h] - b[h]) ** 2 for h in range(4)) / 4
        for a, b in zip(pair[0], pair[1].unflatten(1, (4, 2)).mean(2), strict=True)
    ]
).mean()
assert torch.isclose(by_hand, torch.tensor(by_models["none"][-1]), rtol=1e-4)
assert np.allclose(by_length["none"], [length / 2 for length in lengths])
assert np.allclose(by_length["queries"], 1 / 2)
assert np.allclose(by_length["entries"], [1 / (2 * length) for length in lengths])

# %% [markdown]
# **3. Memory.** The maps have $B\,N_h\,L^2$ entries *for each layer*, in the teacher and, with their gradient, in the student. That is precisely what
# fused attention was made to avoid. (Tensors on PyTorch's `meta` device have a shape and no content, so the sizes below cost nothing.)


# %%
def bytes_of(length, batch=8, heads=8, width=64):
    """Bytes of one layer's attention maps, and of its hidden states, in float32."""
    q = torch.empty(batch, heads, length, width, device="meta")
    found = attention_from_qk(q, q, causal=True)
    return found.nbytes, q.nbytes


# %% tags=["hide-input"]
longer = [128, 256, 512, 1024, 2048, 4096, 8192]
of_maps, of_states = np.array([bytes_of(length) for length in longer]).T
assert (of_maps[1:] == 4 * of_maps[:-1]).all() and (
    of_states[1:] == 2 * of_states[:-1]
).all()

# %% tags=["hide-input"]
figure, (one, other) = plt.subplots(1, 2, figsize=(7.8, 3.5))
for how, colour in zip(NORMALISE, (ORANGE, BLUE, GREEN), strict=True):
    one.loglog(lengths, by_length[how], color=colour)
    one.text(lengths[-1] * 1.15, by_length[how][-1], how, color=colour, va="center")
    one.loglog(lengths, by_models[how], "o--", color=colour, linewidth=1)
one.set(
    xlabel="length $L$",
    ylabel="loss",
    title="value, by normalise=",
    xticks=lengths,
    xticklabels=lengths,
)
one.minorticks_off()
one.set_xlim(right=700)
other.loglog(longer, of_maps / 2**20, color=ORANGE, label="attention maps")
other.loglog(longer, of_states / 2**20, color=BLUE, label="hidden states")
other.set(
    xlabel="length $L$",
    ylabel="MiB a layer",
    title="memory",
    xticks=longer[::2],
    xticklabels=longer[::2],
)
other.minorticks_off()
other.legend(fontsize="small")
show(
    figure,
    label="length",
    caption="Left: the loss by length, for maps that disagree equally at every query (lines) and for the two models on real text "
    "(dots; their heads are grouped). As printed in the article (“none”) it grows with the length; divided by the queries it is steady "
    "for equal disagreement. Right: what one layer of maps takes for 8 texts and 8 heads of width 64, in float32.",
    alt="Left, on logarithmic axes, loss at the shortest and at the longest text: "
    + "; ".join(
        f"{how} {by_length[how][0]:.2g} and {by_length[how][-1]:.2g}, of the models {by_models[how][0]:.2g} and {by_models[how][-1]:.2g}"
        for how in NORMALISE
    )
    + ". Right: memory of attention maps rises as the square of the length, hidden states linearly.",
)

# %% [markdown]
# On real text (dots) the maps do not disagree equally at every length. So compare like with like: texts of one length in a batch, or a divisor that you know.
#
# **4. Heads.** The student has 4 of them, the teacher 8, and the sum over $h$ has no meaning. <!-- by definition --> `kdlab` refuses until it is told what is
# meant: the mean over heads, or neighbouring heads of the teacher taken together.

# %%
mine, theirs = maps(small, 1, fixed), maps(large, 3, fixed)
shuffled = theirs[:, torch.randperm(8, generator=torch.Generator().manual_seed(0))]
by_heads = {
    how: [
        attention_map_mse(mine, seen_as, heads=how).item()
        for seen_as in (theirs, shuffled)
    ]
    for how in ("group", "mean")
}
with_itself = attention_map_mse(theirs, shuffled).item()
assert np.isclose(*by_heads["mean"], rtol=1e-4)
assert with_itself > 1e-3 and not np.isclose(*by_heads["group"], rtol=1e-4)

# %% tags=["hide-input"]
try:
    attention_map_mse(mine, theirs)
except ValueError as error:
    refused = str(error)
display(
    sentence(f"kdlab refuses: “{refused}”"),
    table(
        ["heads=", "the teacher's heads as they are", "in another order"],
        [
            [how, f"{kept:.3f}", f"{permuted:.3f}"]
            for how, (kept, permuted) in by_heads.items()
        ],
        caption="Loss of the untrained student. The teacher against itself, head by head and in that order, "
        f"has {with_itself:.3f}.",
    ),
)

# %% [markdown]
# The *value* of the loss depends on the order of the heads, and that order is arbitrary: permute heads, with the weights that go with them, and the model is the same. Does it matter for a student? A new student's
# heads are as exchangeable as the units above. If the teacher's heads and the student's initial heads are put in another order together, the training is the same, step for step. So the order costs
# at most what another draw of initial weights costs. We try both, with students that match the teacher's (grouped) maps and nothing else.

# %%
ORDER = torch.tensor([2, 0, 3, 1])


def reorder(student):
    """The same function, heads of its last layer in another order."""
    attention = student.model.layers[1].self_attn
    width = 48 // 4
    units = (ORDER[:, None] * width + torch.arange(width)).flatten()
    with torch.no_grad():
        for part in (attention.q_proj, attention.k_proj, attention.v_proj):
            part.weight.copy_(part.weight[units])
        attention.o_proj.weight.copy_(attention.o_proj.weight[:, units])
    return student


# %% tags=["hide-input"]
ORDERS = {
    "as they are": torch.arange(4),
    "in another order": ORDER,
    "both reordered": ORDER,
}


MATCHING = min(30, steps // 2)  # steps


def match_maps(seed, steps=MATCHING):
    """Train on the teacher's maps alone, in three orders of heads; each one's loss at each step."""
    batches = torch.Generator().manual_seed(seed)
    layer, losses = "attention:model.layers.{}.self_attn", {how: [] for how in ORDERS}
    trained = {how: llama(20 + seed, **SMALL) for how in ORDERS}
    reorder(trained["both reordered"])
    optimizers = {
        how: torch.optim.AdamW(s.parameters(), 3e-3) for how, s in trained.items()
    }
    own = {how: Taps(student, [layer.format(1)]) for how, student in trained.items()}
    with Taps(large, [layer.format(3)]) as other:
        for _ in range(steps):
            batch = windows(to_train, 8, 64, batches)
            with torch.no_grad():  # once for all
                target = (
                    next(iter(other(batch)[1].values())).unflatten(1, (4, 2)).mean(2)
                )
            for how, order in ORDERS.items():
                seen = next(iter(own[how](batch)[1].values()))
                loss = attention_map_mse(seen, target[:, order], normalise="queries")
                optimizers[how].zero_grad()
                loss.backward()
                optimizers[how].step()
                losses[how].append(loss.item())
    return losses


matched = [match_maps(seed) for seed in SEEDS]
twins = matched[0]["as they are"], matched[0]["both reordered"]
assert np.allclose(*twins, rtol=1e-3)
order_of_heads = {
    how: [np.mean(losses[how][-8:]) for losses in matched]
    for how in ("as they are", "in another order")
}
apart = np.abs(np.divide(*twins) - 1).max()
MAPS = Quantity("loss of the maps at the end", "", 1, 4, "lower")
of_maps_alone = {
    "the first step": [losses["as they are"][0] for losses in matched],
    "the last eight": order_of_heads["as they are"],
}
maps_learned = below(
    "the last eight",
    "the first step",
    of_maps_alone,
    replace(MAPS, name="loss of the maps"),
)
a_tenth = np.mean(order_of_heads["as they are"]) / 10
display(
    undecided("in another order", "as they are", a_tenth, order_of_heads, MAPS),
    maps_learned,
    sentence(
        f"With both reordered, the losses differ by {apart:.0e} of themselves at most."
    ),
)

# %% [markdown]
# So with equal numbers of heads a new student needs no order: that follows from the symmetry, which the reordered pair shows; a few seeds alone do not decide it. The order matters when heads are grouped, since the grouping decides whose mean is taken; and for a student that was
# made from the teacher's own layers, whose heads have their places.
#
# **5. Masks.** Padded tokens attend and are attended to like any others unless a mask keeps them out, and their rows mean nothing. A causal mask needs
# no such care: what neither model can see is zero in both maps. It matters only to the divisor, since
# "all entries" then counts $L^2$ where $L(L+1)/2$ can differ from zero.

# %%
real = torch.arange(64) < torch.randint(16, 64, (64, 1), generator=generator)
pairs_of = {}
for filler in (0, 255):  # what stands in the padding must not matter
    filled = fixed.where(real, filler)
    pairs_of[filler] = [
        maps(model, layer, filled, attention_mask=real.long())
        for model, layer in ((small, 1), (large, 3))
    ]
without_mask, with_mask = (
    [
        attention_map_mse(*pair, heads="group", normalise="queries", mask=mask).item()
        for pair in pairs_of.values()
    ]
    for mask in (None, real)
)
assert np.isclose(*with_mask, rtol=1e-4)

# %% tags=["hide-input"]
causal = torch.ones(64, 64, 64, dtype=torch.bool).tril()
all_entries, visible = (
    attention_map_mse(
        mine, theirs, heads="group", normalise="entries", mask=mask
    ).item()
    for mask in (None, causal)
)
assert np.isclose(visible / all_entries, 2 * 64 / 65)
assert not np.isclose(*without_mask, rtol=1e-4)
table(
    ["padding of bytes", "loss without a mask", "with it"],
    [
        [filler, f"{unmasked:.4f}", f"{masked:.4f}"]
        for filler, unmasked, masked in zip(
            pairs_of, without_mask, with_mask, strict=True
        )
    ],
    caption="What stands in the padding must not matter.",
)

# %% [markdown]
# ## Distilling one language model into another
#
# Now everything together. The student learns the teacher's distribution over the next byte; the hidden states of two of its layers, through
# projectors from 48 to 96; and its attention there, two heads of the teacher for each of the student. <!-- by definition --> No labels are used. The weights follow the
# rule from above, relative to the soft targets.
#
# There is another answer to unequal heads and widths. MiniLM {cite}`wang2020minilm` and its second version {cite}`wang2021minilmv2` compare, in one layer of each
# network, how *positions* relate: the first by its attention (queries with keys) and values with values, the second queries with queries, keys with keys, values with values. In the second the vectors of a position are put together over all heads and cut into as many *relation heads* as one likes, here four, and each
# network's relations $\operatorname{softmax}(VV^\top/\sqrt{d_r})$ have the same shape, whatever its width. Nothing is grouped and nothing projected. `kdlab` has no such term; it takes a few lines.

# %%
layers = match_layers(
    [f"model.layers.{i}" for i in range(2)], [f"model.layers.{i}" for i in range(4)]
)


def outputs():
    return 1.0 * SoftTargets(temperature=2)


def hidden_states():
    return HiddenMSE(*layers, projector=Projector("linear", 48, 96))


def attention_maps():
    pairs = [(f"{mine}.self_attn", f"{other}.self_attn") for mine, other in layers]
    return AttentionMaps(*pairs, heads="group", normalise="queries")


class Relations(Term):
    """MiniLMv2: KL of the relations among queries, among keys and among values."""

    def __init__(self, mine, theirs, heads=4):
        super().__init__()
        self.heads = heads
        self.pairs = [
            (f"{mine}.self_attn.{x}_proj", f"{theirs}.self_attn.{x}_proj")
            for x in "qkv"
        ]
        self.student_layers, self.teacher_layers = zip(*self.pairs, strict=True)

    def extra_repr(self):
        return f"{self.pairs}, heads={self.heads}"

    def relations(self, vectors):
        """Logits (B, relation heads, L, L); what comes after a position is left out."""
        x = vectors.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        scores = x @ x.mT / x.shape[-1] ** 0.5
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        return scores.masked_fill(hidden, -1e4)

    def forward(self, *, student_hidden, teacher_hidden, **_):
        return sum(
            forward_kl(
                self.relations(student_hidden[one]).flatten(0, 2),
                self.relations(teacher_hidden[other]).flatten(0, 2),
            )
            for one, other in self.pairs
        )


def relations():
    return Relations("model.layers.1", "model.layers.3")


# %% tags=["hide-input"]
@torch.no_grad()
def of_the_teacher(tapped_large, batch):
    return tapped_large(batch)


def compare(objective, tapped_small, of_teacher, batch):
    """The objective on a batch of text, of which the teacher's logits and hidden states are given."""
    student_logits, student_hidden = tapped_small(batch)
    teacher_logits, teacher_hidden = of_teacher
    return objective(
        **next_token(student_logits, teacher_logits, batch),
        student_hidden=student_hidden,
        teacher_hidden=teacher_hidden,
    )


torch.manual_seed(0)
trial = outputs() + hidden_states() + attention_maps() + relations()
with (
    Taps(small, trial.student_layers) as one,
    Taps(large, trial.teacher_layers) as other,
):
    batch = windows(to_train, 8, 64, generator)
    _, values = compare(trial, one, of_the_teacher(other, batch), batch)
norms = trial.gradient_norms(values, list(small.parameters()))
hidden_weight, maps_weight, relations_weight = (
    float(f"{norms['SoftTargets'] / norms[name]:.2g}")
    for name in ("HiddenMSE", "AttentionMaps", "Relations")
)

# %%
LANGUAGE = {
    "outputs": outputs,
    "and attention": lambda: outputs() + maps_weight * attention_maps(),
    "and relations": lambda: outputs() + relations_weight * relations(),
    "all three": lambda: (
        outputs() + hidden_weight * hidden_states() + maps_weight * attention_maps()
    ),
}
objective = LANGUAGE["all three"]()
objective

# %% tags=["hide-input"]
show(
    transfer_points(small, large, objective),
    label="language-points",
    caption="The same diagram for the two language models: the student's two layers are spread over the teacher's four, with weights by the rule.",
    alt="Two columns: a Llama with two layers and one with four. Hidden states and attention of layers 0 and 1 are joined "
    "with those of layers 1 and 3, the logits with the logits.",
)


# %% tags=["hide-input"]
class Distillation:
    """A new student and what it minimises; each term at each step."""

    def __init__(self, arm, seed):
        self.student, self.objective = llama(10 + seed, **SMALL), LANGUAGE[arm]()
        parameters = [*self.student.parameters(), *self.objective.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, 3e-3)
        self.taps = Taps(self.student, self.objective.student_layers)
        self.curves = {name: [] for name in self.objective.names}

    def step(self, of_teacher, batch):
        loss, values = compare(self.objective, self.taps, of_teacher, batch)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        for name, value in values.items():
            self.curves[name].append(value.item())


def distil(seed):
    """One student an arm, on the same batches; each term at each step, and what the student is worth."""
    arms = {arm: Distillation(arm, seed) for arm in LANGUAGE}
    layers = dict.fromkeys(
        layer for of in arms.values() for layer in of.objective.teacher_layers
    )
    generator = torch.Generator().manual_seed(seed)
    with Taps(large, layers) as tapped_large:
        for _ in range(steps):
            batch = windows(to_train, 8, 64, generator)
            of_teacher = of_the_teacher(tapped_large, batch)  # once for all arms
            for of in arms.values():
                of.step(of_teacher, batch)
    return {arm: (of.curves, judged_by(of.student)) for arm, of in arms.items()}


distilled = [distil(seed) for seed in SEEDS]
worth = {arm: np.array([of_seed[arm][1] for of_seed in distilled]) for arm in LANGUAGE}
curves = distilled[0]["all three"][0]
relation_curve = distilled[0]["and relations"][0]["Relations"]
fallen = {  # of the first seed, over the first value
    name: np.array(curve) / curve[0]
    for name, curve in {**curves, "Relations": relation_curve}.items()
}
falls(
    fallen,
    Quantity("loss of each term over its first value", "", 1, 2),
    "steps",
    ends=8,
)

# %% tags=["hide-input"]
figure, (one, other) = plt.subplots(
    1, 2, figsize=(7.8, 3.4), gridspec_kw={"width_ratios": [1.25, 1]}
)
for (name, curve), colour in zip(
    fallen.items(), (BLUE, ORANGE, GREEN, VERMILION), strict=True
):
    one.plot(
        curve, color=colour, label=name, linestyle=":" if name == "Relations" else "-"
    )
one.set(
    xlabel="step",
    ylabel="relative to the first step",
    ylim=(0, None),
    title="loss by term",
)
one.legend(fontsize="small")
for place in range(len(SEEDS)):
    other.plot(
        range(len(LANGUAGE)),
        [worth[arm][place] for arm in LANGUAGE],
        color="grey",
        linewidth=0.8,
        alpha=0.6,
    )
for place, (arm, colour) in enumerate(
    zip(LANGUAGE, (BLUE, GREEN, VERMILION, PURPLE), strict=True)
):
    other.plot([place] * len(SEEDS), worth[arm], "o", color=colour)
other.axhline(of_large, color="grey", linestyle=":", linewidth=1)
other.text(-0.3, of_large + 0.01, "teacher", fontsize=8, va="bottom")
other.set(
    xticks=range(len(LANGUAGE)),
    xlim=(-0.4, len(LANGUAGE) - 0.6),
    ylabel="nats a byte, held out",
    title="what the students are worth",
)
other.set_xticklabels([arm.replace("and ", "and\n") for arm in LANGUAGE])
show(
    figure,
    label="language",
    caption="Left: the terms of one student of “all three”, each relative to its first value; dotted, the relations of the student that has them. Right: cross-entropy of the next byte on "
    "held-out text (less is better) at the end, each dot a student, lines join those of one seed.",
    alt="Left: curves of four terms. Right: columns of dots joined by seed, with the teacher's value as a dotted line: "
    + ", ".join(f"{arm} {values.mean():.2f}" for arm, values in worth.items())
    + f", teacher {of_large:.2f}.",
)

# %% tags=["hide-input"]
BYTES = Quantity("cross-entropy of the next byte", "nats", 1, 2, "lower")
ALL_NAMED = {arm: f"outputs {arm}" for arm in LANGUAGE if arm.startswith("and ")}
by_seed = {arm: dict(zip(SEEDS, values, strict=True)) for arm, values in worth.items()}
changes = against(by_seed, "outputs", correction=None)
display(
    below("and relations", "outputs", worth, BYTES, names=ALL_NAMED),
    sentence(
        f"Attention maps beside the outputs change it by {changes['and attention'].bracketed('+.2f')} nats a byte, hidden states and attention maps "
        f"by {changes['all three'].bracketed('+.2f')} (95 % intervals of the same kind)."
    ),
)

# %% [markdown]
# A few steps and a few seeds are the beginning of an answer, and all arms have one learning rate. Only full trainings,
# each with its own weights, can tell.

# %% tags=["hide-input"]
growth = by_length["none"][-1] / by_length["none"][0]
order_gap = difference(
    order_of_heads["in another order"], order_of_heads["as they are"]
)
verdict(
    "A10", "depends",
    f"The formula can be computed, under conditions. For equal disagreement at each query it grows in proportion to the length "
    f"(×{growth:.0f} from {lengths[0]} to {lengths[-1]} tokens; divided by the queries, ×{by_length['queries'][-1] / by_length['queries'][0]:.0f}). It "
    "presupposes as many heads in the student as in the teacher. Not in the same order: a new student's heads are exchangeable. Reordered as the teacher's are, it trains alike, step for step; with the teacher's alone in another order it ends "
    f"{order_gap.bracketed('+.4f')} from where it did (95 % interval, {N}; the loss is {np.mean(order_of_heads['as they are']):.3f}); where heads are grouped the order decides "
    f"whose mean is taken. Padding has to be masked. Fused attention returns no maps; recovered from queries and keys they agree to {recovered:.0e}, at a "
    "cost in memory that grows as the square of the length."
    + (
        f" Under these conditions they can be learned: trained on the maps alone, a student of another width gets in {len(matched[0]['as they are'])} steps from a loss of "
        f"{np.mean(of_maps_alone['the first step']):.3f} to {np.mean(of_maps_alone['the last eight']):.3f} (means, {N}; the last eight steps, of new text each)."
        if maps_learned.holds else ""
    ),
    condition="under a premise",
)  # fmt: skip

# %% [markdown]
# ### In `transformers`' own Trainer
#
# To distil with `Trainer`, override one method. `num_items_in_batch` is the number of tokens of the whole step, so that accumulated
# micro-batches add up to one mean; where there is padding or accumulation, `hidden_mask`, `hidden_count` and `example_count` are passed beside it. The objective's own
# weights, here the projectors, must be given to the optimiser.


# %%
class Distiller(Trainer):
    loss_is_scaled_for_ga = True

    def compute_loss(
        self, model, inputs, return_outputs=False, num_items_in_batch=None
    ):
        student_logits, mine = tapped_small(inputs["input_ids"])
        with torch.no_grad():
            teacher_logits, other = tapped_large(inputs["input_ids"])
        aligned = next_token(student_logits, teacher_logits, inputs["labels"])
        seen = {**aligned, "student_hidden": mine, "teacher_hidden": other}
        return objective(**seen, count=num_items_in_batch)[0]


# %%
small, objective = llama(10, **SMALL), LANGUAGE["all three"]()
before = judged_by(small)
examples = [
    {"input_ids": row, "labels": row} for row in windows(to_train, 240, 64, generator)
]
with tempfile.TemporaryDirectory() as folder:
    trainer = Distiller(
        small,
        TrainingArguments(
            folder,
            max_steps=min(30, steps),
            per_device_train_batch_size=8,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            save_strategy="no",
        ),
        train_dataset=examples,
        optimizers=(
            torch.optim.AdamW([*small.parameters(), *objective.parameters()], 3e-3),
            None,
        ),
    )
    trainer.remove_callback(
        transformers.PrinterCallback
    )  # its summary is timed, so never twice the same
    with (
        Taps(small, objective.student_layers) as tapped_small,
        Taps(large, objective.teacher_layers) as tapped_large,
    ):
        trainer.train()
by_trainer = judged_by(small)
assert by_trainer < before

# %% tags=["hide-input"]
display(
    sentence(
        f"Held-out text, in nats a byte: {before:.2f} before, {by_trainer:.2f} after "
        f"{min(30, steps)} steps of the Trainer."
    )
)
own_scale = np.mean(freedom["each channel its own scale"])
findings.show(
    f"A term moves the modules up to its point and none after it: {int((reach == 0).sum())} of "
    f"{reach.size} gradients are exactly zero.",
    "At equal width, the channels of a student of labels alone, each with its own scale, "
    f"explain {own_scale:.0%} of the variance of the teacher's; any linear map of them "
    f"{np.mean(freedom['any linear map']):.0%} ({N}; {train_images} images, {epochs} epochs).",
    "Without projection heads InfoNCE needs element-wise alignment as MSE does: a rotation of the "
    f"teacher's features changes its value by {change[0][index_of_rotation]:.0%}.",
    "The part of a student's attention map that belongs to the image correlates with the "
    f"teacher's at {alike['attention'][:, :, 1].mean():.2f} where maps are matched, and at "
    f"{alike['alone'][:, :, 1].mean():.2f} where they are not ({N}).",
)

# %% [markdown]
# ## Limits
#
# - The students of photographs are trained for seconds on a few classes. That suffices to see whether maps and features are matched, not
#   to say which objective makes the better student. <!-- by definition --> The weights were set by a rule and not tuned, and all arms have one learning rate; with others the arms
#   may come out in another order. Accuracies of a few seeds have wide intervals, and are printed with them.
# - “Explained variance” credits a projector for what it can do. It is measured on images that the projector was not fitted to, but no one number separates
#   what a student knows from what a map makes of it.
# - The rotation was tested on one task, one architecture and one temperature of InfoNCE, with a few seeds. The invariances of
#   the losses are exact and general; the size of what a training loses is that of this task. Of so many intervals one may well miss zero by chance, and
#   Adam, which treats each coordinate by itself, is not blind to a rotation either: small differences, to both sides, may be its own.
# - The language models are tiny, hardly trained, and of one vocabulary. Different vocabularies need a map between them first.
#
# ## To take away
#
# - **Formulae.** MSE $\frac1D\|s-t\|^2$ and cosine $1-\frac{s\cdot t}{\|s\|\|t\|}$ compare coordinates. Activation attention compares
#   $\hat a = a/\|a\|$ with $a=\sum_c A_c^2$; RKD and similarity preserving compare examples with each other.
# - **What to set.** `HiddenMSE(layer, projector=Projector(kind, d_S, d_T))`; pairs of layers by `match_layers`; `ActivationAttention(…, form=…)`, whose two forms need different weights;
#   `AttentionMaps(…, heads="group", normalise="queries")`. Set the weights by `gradient_norms` if they cannot be tuned.
# - **What to watch for.** A term moves nothing after its layer. Equal width does not make channels comparable. Attention maps need a mask for padding, and memory that grows as $L^2$.
#
# ## Exercises
#
# ```{exercise}
# :label: ex-hint-alone
#
# Train a student with the hint and no other term, `1.0 * hint()`. What does the figure of gradients above predict for its accuracy? What would
# FitNets' second stage change?
# ```
#
# ````{solution} ex-hint-alone
# :class: dropdown
#
# `layer3` and `fc` get no gradient at all and keep their initial weights (the optimiser skips them, weight decay included), so
# the accuracy stays near chance, however well `layer2` matches.
# FitNets trains in two stages for this reason: first the hint, up to its layer, then the whole network on the outputs.
#
# ```python
# torch.manual_seed(SEEDS[0])
# student, recipe = resnet8(data.num_classes), Recipe(seed=SEEDS[0], **RECIPE)
# before = [p.clone() for p in student.fc.parameters()]
# fit(student, 1.0 * hint(), train=few, teacher=teacher, recipe=recipe, device=device)
# student = student.cpu().eval()
# print(f"accuracy {accuracy(predict(student, tested), tested.labels):.1%}")
# assert all(map(torch.equal, before, student.fc.parameters()))
# ```
# ````
#
# ```{exercise}
# :label: ex-two-maps
#
# In the figure of transformations, InfoNCE with a refitted projector still notices a matrix that is merely invertible, and CRD whose map was inverted does not.
# Give MSE maps on both sides, refit both, and think about what the minimum becomes.
# ```
#
# ```{solution} ex-two-maps
# :class: dropdown
#
# Zero: both maps become zero. A squared error needs something that keeps the teacher's map from vanishing, such as a fixed teacher's side or a
# normalisation. InfoNCE and CRD can have both maps learned, since a constant embedding tells no examples apart. *That* is what contrast buys.
# ```
#
# ```{exercise}
# :label: ex-effective-weight
#
# You switch `ActivationAttention` from the released form to the paper's and want the pull on `layer2` to stay what it was on average. By which
# factor must the weight change? Will the trainings agree?
# ```
#
# ````{solution} ex-effective-weight
# :class: dropdown
#
# By the mean of the factor in the table: from a weight $w$ to $w\cdot\overline{2\|\hat a_S-\hat a_T\|}/HW$. They will not agree. The factor of the other stages is
# another, it differs between examples, and it falls as the maps come closer: the released form lets go, the paper's does not. <!-- by definition -->
#
# ```python
# for stage, (_, _, factor) in factors.items():
#     print(f"{stage}: {attention_weight:.0f} becomes {attention_weight * factor.mean():.3f}")
# ```
# ````
