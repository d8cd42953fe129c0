# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Choosing an objective
#
# Article A ends by saying that the choice of an objective depends on four things: the models, the data, the compute,
# and the desired trade-off between the student's size, its speed and its fidelity. That is safe to say and hard to
# use. What is left of it when it is measured?
#
# **At the end you will know** what each objective needs before it can be used; what a step of it costs; which
# objectives are not beaten in accuracy, fidelity or calibration at a given cost, after one short training at one learning rate;
# and which of the article's conditions changed the answer in our records.
#
# *Needs: one CPU core and half a minute. The recorded runs took longer; each says where it ran.*

# %% tags=["parameters"]
profile: str = "cpu"
candidates: list[str] = [
    "alone",
    "smoothed",
    "kd",
    "dkd",
    "dist",
    "standardised",
    "fitnet",
    "at",
    "rkd",
    "crd",
    "crd+kd",
]  # objectives to choose from, alone and kd among them
batch: int = 32  # images of the step that is timed
rounds: int = 7  # in which the steps take turns
same_cost: float = 0.4  # of a step on labels: costs closer than this are equal
margin: float = 1.0  # points, the smallest difference that would matter

# %% tags=["hide-input"]
import copy
import time

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown, display

from kdlab import models
from kdlab.figures import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    dots,
    show,
    table,
    use_style,
)
from kdlab.objectives import SmoothedLabels
from kdlab.study import plans, results
from kdlab.study.answers import beside_the_best, leaders
from kdlab.study.display import (
    Findings,
    called,
    conditions,
    device_for,
    not_yet_run,
    source_note,
    under,
    verdict,
)
from kdlab.study.evidence import Among, Quantity
from kdlab.study.grown import EPOCHS, arm_name
from kdlab.study.parameters import ParameterError
from kdlab.study.published import chance_gap, published_results
from kdlab.study.statements import above, below, leads, undecided
from kdlab.study.statistics import against
from kdlab.training import Taps, fast_precision

use_style()
device = device_for(profile)
published = published_results()

# %% tags=["hide-input"]
findings = Findings()

# %% [markdown]
# ## What an objective asks for
#
# Some objectives are out before anything is measured. If you have only a teacher's answers, from a file or over a
# network, you cannot use its layers. If you train on a stream, you have no memory with a place for each example. All this
# can be read off the objectives themselves: the layers that they name, the parameters that they learn, the memories that
# they keep. The candidates are the methods of {doc}`chapter 12 <12_the_table_again>` with their published weights, and label smoothing
# {cite}`szegedy2016rethinking`, which needs no teacher at all.

# %%
EXAMPLES = 45_000
objectives = plans.methods("resnet8", "resnet20", EXAMPLES, 2.0)
objectives["smoothed"] = 1.0 * SmoothedLabels(0.1)

# %% tags=["hide-input"]
CALLED = {
    "alone": "labels alone",
    "smoothed": "smoothed labels",
    "kd": "KD",
    "dkd": "DKD",
    "dist": "DIST",
    "standardised": "KD (standardised)",
    "fitnet": "FitNet",
    "at": "AT",
    "rkd": "RKD",
    "crd": "CRD",
    "crd+kd": "CRD + KD",
}
if not {"alone", "kd"} <= set(candidates) <= set(CALLED):
    raise ParameterError(
        f"candidates must be some of {', '.join(CALLED)}, with alone and kd, and not {candidates}."
    )
NAMES = {arm: CALLED[arm] for arm in CALLED if arm in candidates}


# %%
def asks_for(objective):
    """What it needs: access to the teacher, what it learns, bytes that are kept."""
    access = "nothing"
    if objective.needs_teacher:
        access = "layers" if objective.teacher_layers else "logits"
    learned = sum(parameter.numel() for parameter in objective.parameters())
    kept = sum(b.numel() * b.element_size() for b in objective.buffers())
    return access, learned, kept


# %% tags=["hide-input"]
needs = {arm: asks_for(objectives[arm]) for arm in CALLED}
ACCESS = {arm: access for arm, (access, _, _) in needs.items()}

student_size = models.count_parameters(models.resnet8(100))
twice = asks_for(plans.methods("resnet8", "resnet20", 2 * EXAMPLES, 2.0)["crd"])[2]
assert (
    ACCESS["kd"]
    == ACCESS["dkd"]
    == ACCESS["dist"]
    == ACCESS["standardised"]
    == "logits"
)
assert 1.9 < twice / needs["crd"][2] < 2.1  # the memory grows with the training set
table(
    ["objective", "of the teacher", "layers", "learns", "keeps"],
    [
        [
            NAMES[arm],
            access,
            ", ".join(objectives[arm].teacher_layers) or "–",
            f"{learned:,}" if learned else "–",
            f"{kept / 2**20:.1f} MiB" if kept > 2**16 else "–",
        ]
        for arm, (access, learned, kept) in needs.items()
        if arm in NAMES
    ],
    caption=f"What each objective asks for, ResNet-20 → ResNet-8 ({student_size:,} parameters) on {EXAMPLES:,} examples. “Learns”: parameters beside the student's, gone "
    "after training. “Keeps”: memory for every training example, proportional to their number.",
)

# %% [markdown]
# “Layers” is more than access. FitNet's hint and CRD's embeddings have projectors, so widths may differ. AT compares maps summed over
# channels and RKD compares distances, so neither minds a width; of two maps of different size AT pools the larger, here as in Tian et al.'s code. DIST, DKD and all forms of KD want the same
# classes in the same order, and nothing else.
#
# ## What a step costs
#
# Live, on this machine: one step of each objective on one batch, from the images to the moved weights. The students
# differ only in what they minimise. Time on a shared machine wanders, so the objectives take turns: a round is a
# step of each, and each is divided by *labels alone* of the same round. The median over rounds is what counts. The
# time does not depend on weights and images, so the networks are untrained and the images are noise.

# %% tags=["hide-input"]
generator = torch.Generator().manual_seed(0)
images = torch.rand(batch, 3, 32, 32, generator=generator).to(device)
images = images.to(memory_format=torch.channels_last)
labels = torch.randint(100, (batch,), generator=generator).to(device)
index = torch.randperm(EXAMPLES, generator=generator)[:batch].to(device)
precision = fast_precision(device)
autocast = {
    "device_type": device,
    "dtype": torch.bfloat16,
    "enabled": precision == "bfloat16",
}


def step_of(objective):
    """A function that takes one step of gradient descent with an objective."""
    torch.manual_seed(0)
    objective = copy.deepcopy(objective)
    if any(state.is_meta for state in objective.state_dict().values()):
        objective.to_empty(device=device)
    objective.reset_parameters()
    objective.to(device).train()
    student = models.resnet8(100).to(device, memory_format=torch.channels_last).train()
    teacher = models.resnet20(100).to(device, memory_format=torch.channels_last).eval()
    taps = (
        Taps(student, objective.student_layers),
        Taps(teacher, objective.teacher_layers),
    )
    parameters = [*student.parameters(), *objective.parameters()]
    optimizer = torch.optim.SGD(parameters, 0.01, momentum=0.9, weight_decay=5e-4)

    def step():
        seen = {"labels": labels, "index": index, "progress": 0.5}
        with torch.autocast(**autocast):
            seen["student_logits"], seen["student_hidden"] = taps[0](images)
            if objective.needs_teacher:
                with torch.no_grad():
                    seen["teacher_logits"], seen["teacher_hidden"] = taps[1](images)
        loss, _ = objective(**seen)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


# %% tags=["hide-input"]
def seconds_of(step):
    """Seconds of a step."""
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


watched = models.resnet20(100).to(device, memory_format=torch.channels_last).eval()


@torch.no_grad()
def look():
    """The teacher's forward pass, which every objective with a teacher pays for."""
    with torch.autocast(**autocast):
        watched(images)


steps = {arm: step_of(objectives[arm]) for arm in NAMES} | {"look": look}
for step in steps.values():  # the first call of each sets up what later ones use
    step()
timed = [{arm: seconds_of(step) for arm, step in steps.items()} for _ in range(rounds)]
ratios = {arm: np.array([r[arm] / r["alone"] for r in timed]) for arm in steps}
COST = {arm: float(np.median(ratio)) for arm, ratio in ratios.items()}
LOOK = COST.pop("look")

# %% tags=["hide-input"]
COLOUR = {"nothing": PURPLE, "logits": BLUE, "layers": ORANGE}
colours = {NAMES[arm]: COLOUR[ACCESS[arm]] for arm in NAMES}
colours |= {NAMES[arm]: GREEN for arm in ("crd", "crd+kd") if arm in NAMES}
figure, panel = plt.subplots(figsize=(7.2, 3.9))
dots(
    panel,
    {NAMES[arm]: ratios[arm] for arm in NAMES},
    {NAMES[arm]: tuple(np.quantile(ratios[arm], [0.5, 0.25, 0.75])) for arm in NAMES},
    colours=colours,
)
for name, colour in [*COLOUR.items(), ("layers and a memory", GREEN)]:
    panel.plot([], [], "o", color=colour, alpha=0.6, label=name)
panel.axvline(1 + LOOK, color="grey", linewidth=1, linestyle="--")
panel.legend(title="of the teacher", fontsize=8, title_fontsize=8)
panel.set_xlabel("time of a step, labels alone = 1")
spread = np.quantile(
    np.concatenate([r - np.median(r) for r in ratios.values()]), [0.1, 0.9]
)
show(
    figure,
    label="cost",
    caption=f"Relative time of one step, ResNet-20 → ResNet-8, batch {batch}, {precision}, {torch.get_num_threads()} thread(s) of this machine: one dot per round of "
    f"{rounds}, stroke and bar median and quartiles. Eight of ten rounds lie within {spread[0]:+.2f} and {spread[1]:+.2f} of their median. "
    f"The dashed line is labels alone plus the teacher's forward pass ({LOOK:.2f}): what no objective with a teacher can save.",
    alt="Rows of dots with a bar at the median, one row per objective: the time of its step, relative to labels alone; a dashed line at labels alone plus the teacher's forward pass.",
)

# %% tags=["hide-input"]
Markdown(
    f"Labels alone take {1000 * np.median([r['alone'] for r in timed]):.0f} ms a step, and the teacher's forward pass {LOOK:.2f} of that. Beyond that pass, a step costs more than labels alone by "
    + ", ".join(
        f"{COST[arm] - 1 - LOOK:+.2f} ({name})"
        for arm, name in NAMES.items()
        if ACCESS[arm] != "nothing"
    )
    + f". Rounds scatter from {spread[0]:+.2f} to {spread[1]:+.2f} about these medians."
)

# %% [markdown]
# The teacher's forward pass can serve many students that train side by side, or be stored, if the images are not augmented anew in each
# epoch. Then only the objective's own cost is left, which the line above lists. On a GPU small batches wait for
# launches, not for arithmetic, and other ratios come out; the profile `gpu` measures them.
#
# ## What the records say
#
# ResNet-20 to ResNet-8 on CIFAR-100, each candidate measured once on the test split after its last epoch. In the plan `grown` all are trained to the end, each with a rate and a weight of its own. Where that has not been run, the records are those of the plan `small`: **all trained briefly and
# at one learning rate, which was tuned for none of them**; the lengths of their gradients differ by a large factor ({doc}`chapter 12 <12_the_table_again>`
# measures it), so their order may be one of learning rates as much as one of objectives. Captions say which it is. Four measures: **accuracy**; **agreement**, how often student and
# teacher rank the same class first {cite}`stanton2021does`, which over such arms says what accuracy says ({doc}`chapter 14 <14_what_is_transferred>`); the **KL divergence** from the teacher's probabilities; and the
# **calibration error** of the confidence {cite}`guo2017calibration`, which one fitted temperature changes; `grown` measures it after that, too.
#
# An objective is *beaten* if another one costs no more, to within a part of a step on labels alone (the parameter `same_cost`), and the interval of their difference
# excludes zero; the deviation is pooled over all candidates. <!-- by definition --> (The line of cost is generous: costs are measured anew whenever this page is built, and a finer one would be crossed by chance.) What is not beaten stays, even if its mean is not on the front: two objectives that
# cannot be told apart are not shown to be equal.

# %% tags=["hide-input"]
small = results("small")
grown = results("grown").renamed({arm_name(arm, EPOCHS): arm for arm in NAMES})
tuned = grown.complete(list(NAMES), at_least=3)
study = grown if tuned else small
#: Name, the record's key, its factor, whether larger is better, how it is printed.
MEASURES = {
    "accuracy": ("accuracy", 100, True, "{:.2f}"),
    "agreement": ("agreement", 100, True, "{:.2f}"),
    "KL from the teacher": ("kl_to_teacher", 1, False, "{:.3f}"),
    "calibration error": ("calibration_error", 100, False, "{:.2f}"),
}
if tuned:

    def fitted(record):
        """The calibration error after one temperature that the validation split has chosen."""
        return record["test"]["fitted"]["calibration_error"]

    MEASURES["calibration error, fitted"] = (fitted, 100, False, "{:.2f}")
ran = [arm for arm in NAMES if study.mean(arm) is not None]
waiting = [arm for arm in NAMES if arm not in ran]


# %%
def better(arm, other, measure):
    """Whether an arm is better than another beyond the noise of its seeds, pooled over
    the candidates.
    """
    key, _, larger, _ = MEASURES[measure]
    values = {name: study.values(name, key) for name in ran}
    gap = against(values, other, [arm], correction=None)[arm]
    return gap.low > 0 if larger else gap.high < 0


def leader(measure, arms):
    """The arm with the best mean, and those not shown to be worse: the intervals hold together."""
    key, _, larger, _ = MEASURES[measure]
    of = Quantity(measure, better="higher" if larger else "lower", of=key)
    return leaders(study, of, [arm for arm in arms if arm in ran])


def beaten_by(arm, measure):
    """The arms that cost no more and are better beyond noise."""
    return [
        other
        for other in ran
        if other != arm
        and COST[other] <= COST[arm] + same_cost
        and better(other, arm, measure)
    ]


# %% tags=["hide-input"]
def cheapest(arms):
    """The arm of least cost a step; of those the timing cannot tell apart, the simplest."""
    least = min(COST[arm] for arm in arms)
    return next(arm for arm in NAMES if arm in arms and COST[arm] <= least + same_cost)


def on_front(measure):
    """The arms whose mean no arm of at most their cost exceeds."""
    key, _, larger, _ = MEASURES[measure]
    sign = 1 if larger else -1
    return [
        arm
        for arm in ran
        if not any(
            COST[o] <= COST[arm]
            and sign * (study.mean(o, key).mean - study.mean(arm, key).mean) > 0
            for o in ran
        )
    ]


if not tuned:
    display(
        not_yet_run(
            f"the candidates after {EPOCHS} epochs, at rates of their own",
            grown.command,
        )
    )
if waiting:
    display(
        not_yet_run(
            f"{len(waiting)} of {len(NAMES)} candidates have fewer than two seeds so far: {', '.join(NAMES[arm] for arm in waiting)}",
            study.command,
        )
    )
if len(ran) > 1:

    def cross(panel, arm, x, y, colour):
        """A point with an interval on each axis that has one."""
        (x0, xl, xh), (y0, yl, yh) = x, y
        panel.plot([xl, xh], [y0, y0], color=colour, linewidth=1, alpha=0.5)
        panel.plot([x0, x0], [yl, yh], color=colour, linewidth=1, alpha=0.5)
        panel.plot(x0, y0, "o", color=colour, label=NAMES[arm])

    def in_points(arm, measure):
        key, factor, _, _ = MEASURES[measure]
        i = study.mean(arm, key)
        return factor * i.mean, factor * i.low, factor * i.high

    figure, (left, right) = plt.subplots(1, 2, figsize=(8.8, 4.1))
    front = sorted(on_front("accuracy"), key=COST.get)
    left.step(
        [COST[a] for a in front],
        [in_points(a, "accuracy")[0] for a in front],
        where="post",
        color="grey",
        linewidth=1,
        linestyle=":",
    )
    numbers = {arm: place for place, arm in enumerate(ran, start=1)}
    for arm in ran:
        colour = colours[NAMES[arm]]
        cost = np.quantile(ratios[arm], [0.5, 0.25, 0.75])
        cross(left, arm, cost, in_points(arm, "accuracy"), colour)
        cross(
            right, arm, in_points(arm, "accuracy"), in_points(arm, "agreement"), colour
        )
        for panel, x, y in (
            (left, cost[0], in_points(arm, "accuracy")[0]),
            (right, in_points(arm, "accuracy")[0], in_points(arm, "agreement")[0]),
        ):
            panel.annotate(
                numbers[arm],
                (x, y),
                (4 + 5 * (numbers[arm] % 2), 4 - 12 * (numbers[arm] % 3 == 0)),
                textcoords="offset points",
                fontsize=8,
            )
    left.set(xlabel="time of a step, labels alone = 1", ylabel="test accuracy (%)")
    right.set(xlabel="test accuracy (%)", ylabel="agreement with the teacher (%)")
    display(
        source_note(study.all(ran)),
        show(
            figure,
            label="front",
            caption="Left: accuracy against the cost of a step measured above; dotted, the front of the means. Right: agreement with the teacher against accuracy. "
            f"Means and 95 % intervals over seeds. {'; '.join(f'{n} {NAMES[a]}' for a, n in numbers.items())}. Violet: no teacher; blue: its logits; orange: its layers; "
            f"green: layers and a memory. {conditions(study)}.",
            alt="Left: points of accuracy against relative cost with a dotted front. Right: agreement against accuracy. Each point has an interval on both axes.",
        ),
    )


# %% tags=["hide-input"]
def cell(arm, measure):
    """Mean and interval, starred where nothing of at most its cost beats it."""
    key, factor, _, form = MEASURES[measure]
    if arm not in ran:
        return "not yet run"
    i = study.mean(arm, key)
    text = " ".join(
        [
            form.format(factor * i.mean),
            f"[{form.format(factor * i.low)}, {form.format(factor * i.high)}]",
        ]
    )
    return text + ("" if beaten_by(arm, measure) else " *")


display(
    table(
        ["", *MEASURES, "step", "of the teacher"],
        [
            [
                NAMES[arm],
                *(cell(arm, m) for m in MEASURES),
                f"{COST[arm]:.2f}",
                ACCESS[arm],
            ]
            for arm in NAMES
        ],
        caption=f"The candidates ({conditions(study)}). Accuracy, agreement and calibration error in per cent, KL in nats: mean and 95 % interval over seeds. A star: no objective of at most its cost (and {same_cost:g} of a step on labels alone) "
        "is better beyond noise. Step: relative time, measured above.",
    )
)
compared = len(ran) * (len(ran) - 1) // 2 * len(MEASURES)
if compared:
    display(
        Markdown(
            f"{compared} comparisons stand behind the stars, none of them corrected for the others: of as many between equals about {0.05 * compared:.0f} would exclude zero by chance."
        )
    )

# %% [markdown]
# ## By what is wanted
#
# The same records, asked the other way round: for each wish, the candidate with the best mean among those that qualify, and all
# those that are not shown to be worse than it, by intervals that hold together (Tukey's, since the best was picked). <!-- by definition --> Of several that cannot be told apart, the cheapest is marked. <!-- by definition -->

# %% tags=["hide-input"]
LOGITS = [arm for arm in NAMES if ACCESS[arm] != "layers"]
NO_MEMORY = [arm for arm in NAMES if not needs[arm][2] > 2**16]
AS_CHEAP = [arm for arm in NAMES if COST[arm] <= COST["kd"] + same_cost]
WISHES = {
    "accuracy, whatever it costs": ("accuracy", list(NAMES)),
    "accuracy, with logits only": ("accuracy", LOGITS),
    "accuracy, without a memory of the training set": ("accuracy", NO_MEMORY),
    "accuracy, at about the cost of KD at most": ("accuracy", AS_CHEAP),
    "accuracy, without a teacher": (
        "accuracy",
        [a for a in NAMES if ACCESS[a] == "nothing"],
    ),
    "the teacher's decisions": ("agreement", list(NAMES)),
    "the teacher's probabilities": ("KL from the teacher", list(NAMES)),
    "calibrated confidence": ("calibration error", list(NAMES)),
}
if tuned:
    WISHES["the same, one temperature fitted"] = (
        "calibration error, fitted",
        list(NAMES),
    )


def answer(wish):
    """A row of the decision table."""
    measure, arms = WISHES[wish]
    _, factor, _, form = MEASURES[measure]
    there = [arm for arm in arms if arm in ran]
    if len(arms) < 2:
        return [wish, f"{NAMES[arms[0]]}, the only one", "–", "–", "–"]
    if len(there) < 2:
        return [wish, "not yet run", "–", "–", "–"]
    first, ties = leader(measure, arms)
    missing = len(arms) - len(there)
    value = form.format(factor * study.mean(first, MEASURES[measure][0]).mean)
    return [
        wish,
        f"{NAMES[first]}, {value}",
        f"{len(ties)} of {len(there) - 1}",
        NAMES[cheapest([first, *ties])],
        f"{len(there)} of {len(arms)}" if missing else "all",
    ]


# %% tags=["hide-input"]
weights = "" if tuned else "; published weights"
answered = [wish for wish in WISHES if sum(arm in ran for arm in WISHES[wish][1]) > 1]
if len(ran) > 3:
    figure, panel = plt.subplots(figsize=(8.6, 0.42 * len(answered) + 1.5))
    for row, wish in enumerate(answered):
        measure, arms = WISHES[wish]
        first, ties = leader(measure, arms)
        least = cheapest([first, *ties])
        for place, arm in enumerate(ran):
            if arm not in arms:
                continue
            colour = colours[NAMES[arm]]
            if arm == first:
                panel.plot(place, row, "o", color=colour, markersize=11)
            elif arm in ties:
                panel.plot(
                    place, row, "o", color=colour, markersize=9, mfc="none", mew=1.8
                )
            else:
                panel.plot(place, row, "o", color="grey", markersize=2.5)
            if arm == least:
                panel.plot(place, row + 0.36, "^", color="grey", markersize=5)
    panel.set_xticks(
        range(len(ran)), [NAMES[arm] for arm in ran], rotation=35, ha="right"
    )
    panel.set_yticks(range(len(answered)), answered)
    panel.set(ylim=(len(answered) - 0.4, -0.6), xlim=(-0.5, len(ran) - 0.5))
    panel.grid(visible=False)
    display(
        show(
            figure,
            label="decision",
            caption="What to choose by what is wanted. Full: the best mean of those that qualify. Ring: not beaten by it beyond the noise of the seeds. Small dot: "
            "beaten. Nothing: does not qualify. The triangle is below the cheapest of full and rings (the simplest, where the timing cannot tell). Colours as above.",
            alt="A grid of wishes by objectives; in each row one full circle, rings for those that cannot be told from it and small dots for those that are beaten.",
        ),
        source_note(study.all(ran)),
    )
display(
    table(
        [
            "wanted",
            "best mean",
            "not beaten by it",
            "the cheapest of these",
            "compared",
        ],
        [answer(wish) for wish in WISHES],
        caption=f"The same as a table. {conditions(study)}{weights}; a best mean is itself picked, and so flattered a little.",
    )
)

# %% [markdown]
# Does a wish change the answer? The sentences on all candidates ask for the best of all, the last one for the rest of the table. <!-- by definition -->

# %% tags=["hide-input"]
ALL = set(ran) == set(CALLED)  # the sentences on all candidates are about these
OF_ALL = Among(f"the {len(CALLED)} candidates", CALLED)
EXPECTED = {"accuracy": "dist", "agreement": "dist"}
if ALL:
    display(
        *(
            leads(arm, study, under(study, key), among=OF_ALL, names=NAMES)
            for key, arm in EXPECTED.items()
        )
    )
if len(ran) > 2:
    with_teacher = [
        w
        for w in answered
        if not WISHES[w][0].startswith("calibration error")
        and w != "accuracy, without a teacher"
    ]
    first_of = {wish: leader(*WISHES[wish])[0] for wish in answered}
    same = {first_of[wish] for wish in with_teacher}
    display(
        Markdown(
            f"Of the {len(with_teacher)} wishes that allow a teacher and are not about calibration, "
            + (
                f"all have the same best mean, {NAMES[same.pop()]}: neither access to layers, nor a memory, nor the cost of a step changed the answer."
                if len(same) == 1
                else f"the best means are {', '.join(NAMES[a] for a in same)}."
            )
        )
    )

# %% [markdown]
# ## Questions, one at a time
#
# 1. **Is there a teacher's answer for every example, and nothing more?** Then the objectives on logits are all there is; the next table compares them with KD.
# 2. **Do you have the teacher's layers?** Then ask whether it pays: layers cost projectors, names of layers, sizes that fit. The
#    objectives that use them are compared below with KD, and with the objective on logits that has the best mean. <!-- by definition -->
# 3. **Do the widths differ?** Choose one that does not mind (RKD, AT) or one that brings a projector (FitNet, CRD). A projector learns;
#    see {doc}`chapter 8 <08_hidden_states_and_attention>` for what it can hide.
# 4. **Is the student tiny?** A cell below shows what temperature did for two such students, and an assistant for the wider one only: one student, one chain. No objective but KD was tried on them.
# 5. **Must its confidence be calibrated?** Measure calibration on a validation split, and before choosing an objective for its sake, fit
#    one temperature after the training {cite}`guo2017calibration`: it changes no decision and takes no further training.
# 6. **Must it err where the teacher errs?** Then measure agreement where the teacher is wrong; the test split cannot say what
#    happens outside of it.
#
# ### Logits only?


# %% tags=["hide-input"]
def versus(arms, control, measure="accuracy"):
    """A table: arms minus another, Dunnett's intervals over one pooled variance."""
    key, factor, _, _ = MEASURES[measure]
    arms = [arm for arm in arms if arm in ran]
    values = {name: study.values(name, key) for name in (control, *arms)}
    gaps = against(values, control)
    return table(
        [f"{measure} minus {NAMES[control]}'s", "points", "n"],
        [[NAMES[a], (factor * d).bracketed("+.2f"), d.n] for a, d in gaps.items()],
        caption=f"{conditions(study)}. Intervals at 95 % that hold together (Dunnett), {next(iter(gaps.values())).basis}.",
    )


ON_LOGITS = ["dkd", "dist", "standardised"]
if ALL:
    display(
        versus(["alone", "smoothed", *ON_LOGITS], "kd"),
        below("kd", ON_LOGITS, study, under(study, "accuracy"), names=NAMES),
    )

# %% [markdown]
# ### Hidden layers within reach?
#
# Without them one would use KD, or any other objective on logits. Both comparisons are below. *CRD + KD* against *CRD* says what
# logits add where layers are used.

# %% tags=["hide-input"]
ON_LAYERS = ["fitnet", "at", "rkd", "crd", "crd+kd"]
if ALL:
    on_logits = [a for a in NAMES if ACCESS[a] == "logits"]
    best_on_logits = max(on_logits, key=lambda arm: study.mean(arm).mean)
    display(
        versus(ON_LAYERS, "kd"),
        versus(ON_LAYERS, best_on_logits),
        above("fitnet", "kd", study, under(study, "accuracy"), names=NAMES),
        above("kd", ["at", "rkd", "crd"], study, under(study, "accuracy"), names=NAMES),
        above("dist", ON_LAYERS, study, under(study, "accuracy"), names=NAMES),
        above("crd+kd", "crd", study, under(study, "accuracy"), names=NAMES),
    )

# %% [markdown]
# ### Widths differ?
#
# In this pair they do not. So our records cannot say what a projector costs in accuracy where it is needed; what it
# costs in parameters is in the first table. The published table has one
# teacher with two students, one of its own width, the other narrow. Their depths differ, too (16 layers and 40), so the
# two columns do not isolate the width. And the rows are not alike: that of KD reports the last epoch, those of DKD and of standardised logits the best one. <!-- by definition --> From the latter the last two columns subtract what picking an epoch adds,
# a mean over published logs.

# %% tags=["hide-input"]
picked = np.mean(
    np.concatenate(list(published["noise"]["logs"]["best_minus_last"].values()))
)


def by_last(method, pair):
    """A published accuracy; lowered by what picking the best epoch adds, if that is known of it."""
    of_best = method.get("epoch") == "best" and pair not in method.get("elsewhere", {})
    return method["accuracy"][pair] - picked * of_best


same, half = "wrn_40_2-wrn_16_2", "wrn_40_2-wrn_40_1"
of = {m.get("arm"): m for m in published["method"]}
table(
    [
        "published row",
        "epoch",
        "as wide, 16 layers",
        "half as wide, 40 layers",
        "as wide, lowered",
        "half as wide, lowered",
    ],
    [
        [
            CALLED[arm],
            of[arm].get("epoch", "not said"),
            *(
                f"{of[arm]['accuracy'][pair] - of['kd']['accuracy'][pair]:+.2f}"
                for pair in (same, half)
            ),
            *(
                f"{by_last(of[arm], pair) - of['kd']['accuracy'][pair]:+.2f}"
                for pair in (same, half)
            ),
        ]
        for arm in ("fitnet", "at", "rkd", "crd", "dkd", "standardised")
    ],
    caption=f"Published accuracy minus published KD's (last epoch), in points, for two students of one teacher. Lowered: rows of the best epoch by {picked:.2f} points. Of other work, of several codes; no interval is given there.",
)

# %% [markdown]
# ### A tiny student?
#
# The plan trains two narrow students by KD at several temperatures, and one of them with an assistant, the distilled
# ResNet-8. Each is compared with its own training on labels alone.

# %% tags=["hide-input"]
tiny = {}
for width in ("resnet8_width8", "resnet8_width4"):
    arms = [spec.arm for spec in small.specs if spec.arm.startswith(f"{width}-T")]
    for arm in [*dict.fromkeys(arms), *(["assisted"] if width.endswith("8") else [])]:
        gap = small.difference(arm, f"{width}-alone")
        if gap is not None:
            label = "assistant, T4" if arm == "assisted" else arm.rpartition("-")[2]
            both = (
                small.values(arm).items(),
                small.values(f"{width}-alone"),
            )
            tiny[f"{width.removeprefix('resnet8_')}, {label}"] = (
                [v - both[1][seed] for seed, v in both[0] if seed in both[1]],
                gap,
            )
if tiny:
    figure, panel = plt.subplots(figsize=(7.0, 0.34 * len(tiny) + 1.1))
    dots(
        panel,
        {name: values for name, (values, _) in tiny.items()},
        {name: gap for name, (_, gap) in tiny.items()},
        factor=100,
        colours={name: SKY if name.startswith("width4") else BLUE for name in tiny},
    )
    panel.axvline(0, color="grey", linewidth=0.8)
    panel.set_xlabel("accuracy minus the same student on labels alone (points)")
    display(
        show(
            figure,
            label="tiny",
            caption=f"Students of a half and a quarter of the width: what KD adds to labels alone, by temperature, and with the distilled ResNet-8 as assistant; one dot per seed, "
            f"mean and 95 % interval, paired by seed. Teacher {called(small.specs[0].student)}, {conditions(small).partition(', ')[2]}.",
            alt="Rows of dots with intervals: the gain of KD over labels alone for two narrow students at several temperatures.",
        )
    )
    display(
        undecided(
            "assisted",
            "resnet8_width8-T4",
            margin,
            small,
            names={
                "assisted": "the assistant's student",
                "resnet8_width8-T4": "the student that the large teacher taught at the same temperature",
            },
        ),
        *(
            below(
                f"{width}-T8",
                f"{width}-T2",
                small,
                names={
                    f"{width}-T8": f"the {what} student at $T=8$",
                    f"{width}-T2": "the same at $T=2$",
                },
            )
            for width, what in (
                ("resnet8_width8", "half-width"),
                ("resnet8_width4", "quarter-width"),
            )
        ),
    )
else:
    display(not_yet_run("students of other widths", small.command))

# %% [markdown]
# ### Must it be calibrated? Must it be faithful?

# %% tags=["hide-input"]
others = [arm for arm in NAMES if arm != "kd"]
if ALL:
    display(
        versus(others, "kd", "calibration error"),
        versus(others, "kd", "agreement"),
        undecided(
            "rkd",
            ["alone", "at", "fitnet"],
            margin,
            study,
            "calibration_error",
            names=NAMES,
        ),
        below(
            "rkd",
            ["kd", "dist", "standardised"],
            study,
            "calibration_error",
            names=NAMES,
        ),
    )

# %% [markdown]
# ## Does it depend on the models?
#
# One pair of networks cannot say. The published table has others; which row leads a pair is a fact of the page. Rows that are known to be of the best epoch are lowered here as above, so that all are held against each other at the last one, as far as it is known; <!-- by definition --> the second column has the leader as printed. How many rows
# are as good within their noise follows from the deviations that one paper prints ({doc}`chapter 12 <12_the_table_again>`).

# %% tags=["hide-input"]
deviations = [d for m in published["method"] for d in m.get("deviation", {}).values()]
apart = chance_gap(published, runs=5)  # of two means of five runs
rows, printed_best, best_of_pair, close = [], [], [], 0
for pair in published["pair"]:
    there = [
        m
        for m in published["method"]
        if pair["id"] in m["accuracy"] and m["name"] != "teacher"
    ]
    printed = {m["name"]: m["accuracy"][pair["id"]] for m in there}
    found = {m["name"]: by_last(m, pair["id"]) for m in there}
    first, best = max(printed, key=printed.get), max(found, key=found.get)
    near = [n for n, v in found.items() if n != best and found[best] - v < apart]
    printed_best.append(first)
    best_of_pair.append(best)
    close += bool(near)
    rows.append(
        [
            pair["name"],
            f"{first}, {printed[first]:.2f}",
            f"{best}, {found[best]:.2f}",
            ", ".join(near) or "none",
            len(found),
        ]
    )


def counted(leaders):
    return ", ".join(
        f"{name} ({leaders.count(name)})" for name in dict.fromkeys(leaders)
    )


table(
    [
        "pair",
        "best as printed",
        "best, by the last epoch",
        f"within {apart:.2f} points of it",
        "of rows",
    ],
    rows,
    caption=f"The best row of each pair in the published table, as printed and with rows of the best epoch lowered by {picked:.2f} points, and those within what two means of five runs differ by in 95 of 100 cases ({apart:.2f} points, from {len(deviations)} "
    f"published deviations). Leaders as printed: {counted(printed_best)}; by the last epoch: {counted(best_of_pair)}. Rows whose epoch is not known stay as they are.",
)

# %% [markdown]
# ## Verdict

# %% tags=["hide-input"]
complete = all(len(study.values(arm)) + study.diverged(arm) >= 3 for arm in NAMES)
if complete and ALL:
    by = {measure: leader(measure, list(NAMES)) for measure in MEASURES}
    picks = "; ".join(
        f"{measure}: {NAMES[first]} ({beside_the_best(ties, NAMES)})"
        for measure, (first, ties) in by.items()
    )
    constrained = {first_of[wish] for wish in with_teacher}
    changed = (
        f"None of them changed the best choice, {NAMES[next(iter(constrained))]}"
        if len(constrained) == 1
        else f"The best choice is one of {', '.join(NAMES[a] for a in constrained)}"
    )
    young = max(NAMES, key=lambda arm: small.mean(arm).mean)
    of_which_order = (
        f"Young students at one rate for all ({conditions(small)}) had {NAMES[young]} first."
        if tuned
        else "One temperature fitted afterwards may change the last. The order is one of early learning at one rate, so it is bound to this scale."
    )  # fmt: skip
    display(
        verdict(
            "A17", "depends",
            ("Different objectives lead different published pairs; in our records no condition that was measured changed the choice, where there is a teacher and calibration is not the aim. " if len(set(best_of_pair)) > 1 and len(constrained) == 1 else "")
            + f"The article names four things on which the choice depends “heavily”: models, data, computational budget, and a trade-off between the student's size, its speed and its fidelity. In our records ({conditions(study)}{weights}, {len(NAMES)} candidates, {min(len(study.values(arm)) for arm in NAMES)} seeds or more of each) two are measured: of the budget the cost of a step, and of the trade-off fidelity alone, since all candidates train one student, of one size and speed. Access to the teacher, which the article does not name, is measured too. {changed}, as long as there is a teacher "
            f"and calibration is not the aim. By measure the best means are {picks}. {of_which_order} "
            f"Of models: {len(set(best_of_pair))} different rows lead the {len(best_of_pair)} published pairs (rows known to be of the best epoch lowered to the last), and in {close} of them another row is within noise. Of data: not tested.",
            condition="bound to a scale",
        )
    )  # fmt: skip
elif set(NAMES) != set(CALLED):
    display(
        Markdown(
            f"A verdict on claim A17 is given where all {len(CALLED)} candidates are compared; here are {len(NAMES)}."
        )
    )
else:
    display(
        not_yet_run(
            f"the verdict on claim A17: it takes three seeds of each candidate, {sum(len(study.values(arm)) for arm in NAMES)} of {3 * len(NAMES)} runs are there",
            study.command,
        )
    )
questions = results("questions")
if questions.missing:
    display(
        not_yet_run(
            f"the same at the published size, ResNet-56 → ResNet-20: {questions.missing} of {len(questions.specs)} runs",
            questions.command,
        )
    )

# %% tags=["hide-input"]
costly = max(COST, key=COST.get)
sentences = [
    f"A step with a teacher costs at least {1 + LOOK:.2f} of a step on labels alone; the most expensive, {NAMES[costly]}, {COST[costly]:.2f} (ResNet-20 to ResNet-8, batch {batch}, this machine)."
]
if len(ran) > 2:
    for wish in ("accuracy", "calibration error"):
        first, ties = leader(wish, ran)
        key, factor, _, form = MEASURES[wish]
        sentences.append(
            f"Best mean {wish} of {len(ran)} candidates: {NAMES[first]}, {form.format(factor * study.mean(first, key).mean)} %; {beside_the_best(ties, NAMES)} (n = {len(study.values(first))} seeds)."
        )
    sentences.append(
        f"All candidates were trained under the same conditions: {conditions(study)}."
    )
findings.show(*sentences)

# %% [markdown]
# ## Limits
#
# - One pair, one data set. In `small` one short training, the published weights, and **one learning rate for all, which was tuned for none**: an objective with a long gradient
#   takes long steps, and a short training may reward that. In `grown` six tries for each, on one seed: a method that is beaten may only be badly tuned.
# - The times are those of a CPU and of our implementation; the memories of CRD count where the training set has millions of examples. The time to *find* a
#   weight and a rate is in no column.
# - Agreement and calibration are measured on one test split. Nothing here says how a student
#   behaves on other inputs.
#
# ## To take away
#
# **Formula.** An objective is beaten if another costs no more, to within `same_cost` of a step on labels alone, and the interval of their difference excludes zero.
#
# **What to set.** `plans.methods(student, teacher, …)` has the published objectives. `objective.teacher_layers` says whether it needs layers, `objective.parameters()` what it learns beside the student. With logits alone: `SoftTargets`, `DecoupledKD`, `DIST`.
#
# **What to watch for.** Two objectives that cannot be told apart are not shown to be equal. Fit one temperature after the training before you choose an objective for its calibration. An order at one learning rate may be an order of learning rates.
#
# ## Exercises
#
# ```{exercise}
# :label: ex-cached-teacher
#
# Suppose that the teacher's logits are stored once for a fixed set of augmented images, so that its forward pass is free. Which objectives'
# relative cost changes, to what, and which cannot profit?
# ```
#
# ````{solution} ex-cached-teacher
# :class: dropdown
#
# ```python
# print({arm: round(COST[arm] - LOOK, 2) for arm in NAMES if ACCESS[arm] != "nothing"})
# ```
#
# Look at how near to one those on logits come. Those on
# layers need more than logits stored: FitNet's map has thousands of numbers an image, AT's three attention maps together more than a
# thousand. <!-- by definition --> RKD and CRD need only embeddings of 64 numbers, which is less than the 100 logits. <!-- by definition --> None can profit if images are augmented anew in
# each epoch.
# ````
#
# ```{exercise}
# :label: ex-front-flips
#
# How sure is the front of the means? Write a function that draws each arm's mean anew from its interval, and count how often each arm is on the
# front of accuracy against cost.
# ```
#
# ````{solution} ex-front-flips
# :class: dropdown
#
# ```python
# rng, kept = np.random.default_rng(0), {arm: small.mean(arm) for arm in ran}
# on = dict.fromkeys(ran, 0)
# for _ in range(1000):
#     draw = {arm: i.mean + (i.high - i.low) / 2 / 4.30 * rng.standard_t(2) for arm, i in kept.items()}
#     for arm in ran:
#         on[arm] += not any(COST[o] <= COST[arm] and draw[o] > draw[arm] for o in ran)
# print(on)
# ```
#
# The 4.30 is Student's point for three seeds, two degrees of freedom. <!-- by definition --> An arm that is on the front in every draw is sure of its place; arms that share the draws take turns, and cannot be told apart. (One deviation for all arms, as `against` pools it, has more degrees of freedom.)
# ````
