# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # When does distilling pay?
#
# A student that reads with its teacher learns more from a token, and the token costs more. {doc}`17_distilling_a_small_language_model` weighs the two at *one* length of training, and the answer is about that length. <!-- by definition --> Here the length is the question: what is a token with a teacher worth, in tokens without one? How long does the lead last? And what does it cost?
#
# **At the end you will know** how to read a lead in loss as tokens; why it ends, in a world that can be worked out by hand; at which price distilling pays; and what becomes of it with language models, whose law is fitted first and then held against a length that it has not seen.
#
# *Needs: one CPU core and under a minute. What takes hours is recorded.*

# %% tags=["parameters"]
profile = "cpu"  # or "gpu"; nothing here takes long
groups: int = 8  # of contexts, which a student tells apart
contexts: int = 8  # of each group, which the teacher tells apart, too
symbols: int = 12  # that may follow
spread: float = (
    0.8  # of the contexts of one group; 0: the teacher knows no more than the student
)
teacher_tokens: int = 16384  # that the teacher has read
sharing: int = 6  # students that learn beside one look of their teacher
seed: int = 0  # of the world and of what is drawn from it

# %% tags=["hide-input"]
from contextlib import suppress
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import sympy as sp
import torch
from IPython.display import display

from kdlab import models
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
from kdlab.language import parse
from kdlab.models import multiply_adds
from kdlab.study import results
from kdlab.study.display import (
    Findings,
    arms_shown,
    called,
    conditions,
    device_for,
    not_yet_run,
    source_note,
    verdict,
)
from kdlab.study.evidence import QUANTITIES, Curves, Quantity, evidence, listed
from kdlab.study.parameters import require
from kdlab.study.power_law import fit_power_law, measured_curve, worth
from kdlab.study.statements import above, below, crosses, undecided, within
from kdlab.study.when_it_pays import HELD_OUT, LENGTHS, STUDENTS, arm_name

use_style()
device_for(profile)
require(
    groups >= 1 and contexts >= 2 and symbols >= 2,
    "groups must be 1 or more, contexts and symbols 2 or more.",
)
require(spread > 0, "spread must be above 0: else there is nothing to be taught.")
require(
    teacher_tokens >= 64 * groups * contexts,
    "teacher_tokens must be at least 64 for each context, so that counts are estimates.",
)
require(sharing >= 1, "sharing must be 1 or more.")

# %% tags=["hide-input"]
findings = Findings()

# %% [markdown]
# ## A world that can be counted
#
# A text is a sequence of contexts $c$, each followed by one of $V$ symbols $y$. The contexts come in groups $g$. The *teacher* is large: it tells all contexts apart, and keeps a distribution of symbols for each. The *student* is small: it sees the group alone, and keeps one distribution a group. Both learn by counting.
#
# Alone, a student counts the symbols that follow. Distilled, it reads the same text and takes, at each token, the teacher's whole distribution in place of the symbol. <!-- by definition --> That is the minimum of the forward KL over what such a student can say ({doc}`07_divergences`).


# %%
drawn = np.random.default_rng(seed)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


of_groups = drawn.normal(size=(groups, 1, symbols))
of_contexts = spread * drawn.normal(size=(groups, contexts, symbols))
truth = softmax(of_groups + of_contexts)  # p(symbol | context), contexts equally likely
mixed = truth.mean(1)  # p(symbol | group): the best that a student can say


def read(tokens):
    """A text of so many tokens, as counts of context and symbol."""
    joint = truth / (groups * contexts)
    return drawn.multinomial(tokens, joint.ravel()).reshape(truth.shape)


def estimate(counts):
    """Probabilities from counts, half a count added to each."""
    return (counts + 0.5) / (counts + 0.5).sum(-1, keepdims=True)


def alone(text):
    return estimate(text.sum(1))


def distilled(text, teacher):
    seen = text.sum(-1)  # how often each context came
    return np.einsum("gc,gcv->gv", seen, teacher) / seen.sum(1, keepdims=True)


def excess(student):
    """Bits a token above the best that a student can say."""
    return (mixed * np.log2(mixed / student)).sum(-1).mean()


# %% [markdown]
# ## What the teacher takes away
#
# How far is an estimate from the truth after $n$ tokens? To second order the excess is half the variance of each probability over that probability, summed. <!-- by definition --> Alone, the variance is that of a symbol. By the law of total variance it has two parts, within the contexts of a group and between them:
#
# $$\underbrace{\operatorname{Var}(1_y\mid g)}_{\text{a symbol}}=\underbrace{\mathbb E_c\bigl[p(y\mid c)\,(1-p(y\mid c))\bigr]}_{\text{which symbol follows this context}}+\underbrace{\operatorname{Var}_c\bigl(p(y\mid c)\bigr)}_{\text{which context it is}}.$$
#
# A perfect teacher takes the first part away: it says the whole distribution where the text says one symbol. The second part stays, since which contexts come is still drawn. Call $\rho$ the share that stays, each probability weighed by one over itself as the excess does, on average over groups:
#
# $$\rho=\mathbb E_g\,\frac1{V-1}\sum_y\frac{\operatorname{Var}_c\bigl(p(y\mid c)\bigr)}{p(y\mid g)}.$$
#
# So the excess is $a/n$ alone, with $a=\tfrac12\,G\,(V-1)/\ln2$ bits for $G$ groups, and $\rho\,a/n$ with a perfect teacher: its tokens are worth $1/\rho$ each, for ever.
#
# No teacher is perfect. One that has itself counted $n_T$ tokens of another text has an error in each context, and a student averages these over the contexts of a group. What is left is the first part again, after $n_T$ tokens, and reading on does not remove it; $H$ is the entropy of a symbol given its group, the floor of such students:
#
# $$L_{\text{alone}}(n)=H+\frac an,\qquad L_{\text{distilled}}(n)=H+\frac{\rho\,a}n+\frac{(1-\rho)\,a}{n_T}.$$
#
# How many tokens alone give the loss of $n$ tokens with the teacher? Set the two equal:

# %%
n, m, a, rho, n_T = sp.symbols("n m a rho n_T", positive=True)
by_itself, with_teacher = a / (m * n), rho * a / n + (1 - rho) * a / n_T
(worth_of,) = sp.solve(sp.Eq(by_itself, with_teacher), m)
as_derived = 1 / (rho + (1 - rho) * n / n_T)
assert sp.simplify(worth_of - as_derived) == 0
assert worth_of.subs(n, n_T).equals(1)  # whatever ρ
next_one = sp.diff(n * as_derived, n)  # tokens alone for one more with the teacher
assert sp.simplify(next_one - rho / (rho + (1 - rho) * n / n_T) ** 2) == 0
sp.Eq(sp.Symbol("m"), as_derived)

# %% [markdown]
# A few tokens are worth $1/\rho$ each; $n=n_T$ of them are worth *one* each, whatever $\rho$ is. In this world the lead ends where the student has read as much as its teacher had. <!-- by definition --> And $m$ is a mean over all tokens read: the *next* one is worth less, $\rho/(\rho+(1-\rho)\,n/n_T)^2$ of those alone at the loss that has been reached, so that the lead begins to shrink long before it ends. <!-- by definition -->
#
# Is it so? Draw texts, count, and compare.

# %% tags=["hide-input"]
kept = float((truth.var(1) / mixed).sum() / (groups * (symbols - 1)))
scale = groups * (symbols - 1) / 2 / np.log(2)
entropy = float(-(mixed * np.log2(mixed)).sum(-1).mean())
PARTS = 2.0 ** np.arange(-5, 4)  # n / n_T
lengths = np.round(PARTS * teacher_tokens).astype(int)
BLOCKS, TEXTS = 5, 40  # means of so many texts, for intervals

by_length = {length: np.zeros((BLOCKS, 2)) for length in lengths}
for block in range(BLOCKS):
    for _ in range(TEXTS):
        teacher = estimate(read(teacher_tokens))
        for length in lengths:
            text = read(length)
            both = excess(alone(text)), excess(distilled(text, teacher))
            by_length[length][block] += np.array(both) / TEXTS

tokens_alone = np.array([by_length[length].mean(0)[0] for length in lengths])
tokens_distilled = np.array([by_length[length].mean(0)[1] for length in lengths])
counted_worth = scale / tokens_distilled / lengths
N_TEXTS = f"{BLOCKS} × {TEXTS} texts and teachers"

figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.2))
left.plot(lengths, entropy + tokens_alone, "o", color=ORANGE, label="alone")
left.plot(lengths, entropy + tokens_distilled, "o", color=BLUE, label="distilled")
fine = np.geomspace(lengths[0], lengths[-1], 200)
left.plot(fine, entropy + scale / fine, color=ORANGE, label="_alone, derived")
stays = (1 - kept) * scale / teacher_tokens
left.plot(fine, entropy + kept * scale / fine + stays, color=BLUE, label="_derived")
left.axhline(entropy, color="grey", linestyle=":", linewidth=1)
left.set(xscale="log", xlabel="tokens read, $n$", ylabel="bits a token")
left.legend()
right.plot(PARTS, counted_worth, "o", color=BLUE, label="counted")
right.plot(
    fine / teacher_tokens,
    1 / (kept + (1 - kept) * fine / teacher_tokens),
    color=BLUE,
    label="derived",
)
right.axhline(1, color="grey", linestyle=":", linewidth=1)
right.set(
    xscale="log", yscale="log", xlabel="$n/n_T$", ylabel="worth in tokens alone, $m$"
)
right.legend()
show(
    figure,
    label="counted",
    caption=f"Students that count, alone and with a teacher that has counted {teacher_tokens:,} tokens (means over {N_TEXTS}; lines: the formulae above, of second order; the half counts that are added cost a little more). Dotted, left: the best that a student can say; right: a token is worth one token. Right, the dots: losses with the teacher, read as tokens by the formula for a student alone. Here $\\rho={kept:.3f}$, so that a token is worth up to {1 / kept:.0f}.",
    alt=f"Left: bits a token fall with tokens read; the distilled student's fall early and then stay level, those of the student alone fall on and pass below. Right: worth of a token falls from {counted_worth[0]:.1f} at {PARTS[0]:g} of the teacher's tokens to {counted_worth[-1]:.2f} at {PARTS[-1]:g} times as many.",
)

# %% tags=["hide-input"]
WORTH = Quantity("worth of a token with the teacher (in tokens alone)", "", digits=0)
ends = crosses(
    {"counted": (PARTS, counted_worth)}, WORTH, "times the teacher's tokens", level=1
)
OVER = Quantity("worth of a token, counted over derived", digits=2)
EARLY = PARTS <= 1
agrees = within(
    "counted",
    1.0,
    0.1,
    {
        "counted": [
            np.mean(
                [
                    scale / by_length[n][block, 1] / n * (kept + (1 - kept) * part)
                    for n, part in zip(lengths[EARLY], PARTS[EARLY], strict=True)
                ]
            )
            for block in range(BLOCKS)
        ]
    },
    OVER,
    names={"counted": "the mean up to the teacher's tokens"},
)
display(ends, agrees)

# %% [markdown]
# Four things of this world are not of ours. Its teacher has no other way to know a context than to have counted it, where a network's knowledge of one context is also one of its neighbours; so a real teacher may know contexts that it has not read. And its student has learned all that its text says, where a network learns by steps, and has a learning rate. Its two texts are independent, where on books both read the same openings (the first exercise says what that may cost). And its student has the teacher alone, where on books a tenth of the loss is from labels. <!-- by definition -->
#
# ## What it costs
#
# A step of a student is three of its forward passes, $3c_S$ multiply-adds a token; the teacher's look is one more, $c_T$. A distilled token then has the cost of
#
# $$1+\frac{c_T}{3\,c_S\,k}$$
#
# tokens alone, where $k$ is the number of students, or of epochs over one text, that share a look. <!-- by definition --> Distilling pays at equal compute where a token's worth is above this price. From a cache that others have filled, the look is free ({doc}`18_memory_and_caches`). If the teacher's own training on $D_T$ tokens is on the bill of $s$ students, it adds $3c_TD_T$ in all, which is $\frac{c_T D_T}{c_S\,s\,D}$ a token.

# %% tags=["hide-input"]
pays, beyond = results("when-it-pays"), results("when-it-pays-held-out")
TEACHER = "gpt_224x4"
vocabulary, context = parse(pays.specs[0].data)[1:]
READ_BY_TEACHER = 6.0  # million (2²⁰) tokens
with torch.device("meta"):
    passes = {
        name: multiply_adds(getattr(models, name)(vocabulary), context)
        for name in (*STUDENTS, TEACHER)
    }


def price(student, *, shared=1, tokens=None):
    """Of a distilled token, in tokens alone; with the teacher's training on the bill of so many tokens."""
    ratio = passes[TEACHER] / passes[student]
    training = 0 if tokens is None else ratio * READ_BY_TEACHER / tokens
    return 1 + (ratio / 3 + training) / shared


table(
    ["student", "own look", f"shared by {sharing}", "from a cache that is there"]
    + [f"with the teacher's training, {tokens:g}M tokens" for tokens in (1, 16)],
    [
        [
            called(student),
            f"{price(student):.2f}",
            f"{price(student, shared=sharing):.2f}",
            "1",
            *(f"{price(student, tokens=tokens):.2f}" for tokens in (1, 16)),
        ]
        for student in STUDENTS
    ],
    caption=f"What a token costs with the teacher {called(TEACHER)}, in tokens alone, by multiply-adds. A cache whose looks others have paid costs what reading it does, which is not arithmetic. The teacher's training is that of {READ_BY_TEACHER:g} million tokens, and one student pays for it.",
)

# %% [markdown]
# ## On books
#
# The plan *when-it-pays* asks it of language models: two sizes, alone and distilled, from a quarter of a million tokens to sixteen million. <!-- by definition --> Every length is a whole training with its own cosine, and has a learning rate of its own, chosen on the validation split with a seed that no reported run has; the longest, and the length that is held out, take over that of the third. <!-- by definition -->
#
# Three numbers describe a curve: $L(D)=E+B\,(D/D_0)^{-\beta}$ {cite}`hoffmann2022training`. They are fitted to single runs. Young models may fall otherwise: where no such law goes through all lengths, or the means of the lengths lie farther from it than their own runs allow (an F test of lack of fit), the shortest is left out, and the table says so. <!-- by definition --> The held-out length, twice the longest of the fit, is predicted with an interval *before* it is run: a fit may look good because it was made to. <!-- by definition -->

# %% tags=["hide-input"]
rates_chosen = conditions(pays).split(", ")[-1]
BITS, HUES = QUANTITIES["bits_per_byte"], {"alone": ORANGE, "kd": BLUE}
SAID = {"alone": "alone", "kd": "distilled"}
MEGA = 2**20
known = {spec.arm for spec in pays.specs}


def complete(student, kind):
    """The lengths of which all runs of an arm are recorded."""
    arms = {m: arm_name(student, kind, m) for m in LENGTHS}
    return [m for m in LENGTHS if arms[m] in known and pays.complete([arms[m]])]


def runs(student, kind, millions):
    return list(pays.values(arm_name(student, kind, millions), BITS.of).values())


def of_lengths(student, kind, lengths):
    """What each run read, and what it lost."""
    each = [(m, bits) for m in lengths for bits in runs(student, kind, m)]
    return zip(*each, strict=True)


def held_out_run(student, kind):
    """What the length that is held out gave; None before it is run, and of a run that diverged."""
    arm = arm_name(student, kind, HELD_OUT)
    there = arm in {spec.arm for spec in beyond.specs} and beyond.arm(arm)
    return next(iter(beyond.values(arm, BITS.of).values()), None) if there else None


def on_lengths(panel, lengths=LENGTHS):
    """The lengths as the ticks of a logarithmic axis."""
    panel.set(xscale="log", xlabel="tokens read (millions)")
    panel.set_xticks(lengths, [f"{m:g}" for m in lengths])
    panel.minorticks_off()


series = {(s, k): complete(s, k) for s in STUDENTS for k in SAID}
curves, laws, begins, refused = {}, {}, {}, {}
for key, lengths_of in series.items():
    if len(lengths_of) > 1:
        with suppress(ValueError):  # means that do not fall
            curves[key] = measured_curve(*of_lengths(*key, lengths_of))
    for first in range(max(0, min(2, len(lengths_of) - 2))):  # all, or all but one
        try:
            laws[key] = fit_power_law(*of_lengths(*key, lengths_of[first:]))
            begins[key] = lengths_of[first]
            break
        except ValueError as error:
            refused[key] = str(error)
lacking = pays.missing
together = 1 - 0.05 / len(series)  # Bonferroni: the intervals of all laws hold at once
predicted = {key: law.predict(HELD_OUT, level=together) for key, law in laws.items()}
teachers_bits = next(iter(pays.values(pays.specs[0].arm, BITS.of).values()), None)
arms_of_lengths = [arm_name(s, k, m) for (s, k), ms in series.items() for m in ms]

if any(series.values()):
    figure, panels = plt.subplots(1, len(STUDENTS), figsize=(8.4, 3.4), sharey=True)
    told = []
    for panel, student in zip(panels, STUDENTS, strict=True):
        for kind, said in SAID.items():
            for millions in series[student, kind]:
                bits = runs(student, kind, millions)
                panel.plot(
                    [millions] * len(bits),
                    bits,
                    "o",
                    color=HUES[kind],
                    alpha=0.6,
                    label=said if millions == series[student, kind][0] else "_run",
                )
                told.append(
                    f"{called(student)} {said} at {millions:g}M {np.mean(bits):.2f}"
                )
            if law := laws.get((student, kind)):
                fine = np.geomspace(begins[student, kind], HELD_OUT, 100)
                panel.plot(fine, law(fine), color=HUES[kind], label="_law")
                band = predicted[student, kind]
                panel.plot(
                    [HELD_OUT] * 2,
                    [band.low, band.high],
                    color=HUES[kind],
                    linewidth=3,
                    alpha=0.4,
                    label="_predicted",
                )
                if (bits := held_out_run(student, kind)) is not None:
                    panel.plot(HELD_OUT, bits, "D", color=HUES[kind], label="_held out")
        if teachers_bits:
            panel.axhline(teachers_bits, color="grey", linestyle=":", linewidth=1)
        on_lengths(panel, (*LENGTHS, HELD_OUT) if laws else LENGTHS)
        panel.set_title(called(student))
        panel.legend()
    panels[0].set_ylabel("bits per byte of the test books")
    display(
        show(
            figure,
            label="law",
            caption="Each dot a run"
            + (
                f", each line a fitted law, each bar at {HELD_OUT:g} million the interval that the law predicts for one run there, each diamond that run"
                if laws
                else ""
            )
            + f". Dotted: their teacher, {called(TEACHER)} after {READ_BY_TEACHER:g} million tokens; {rates_chosen}."
            + (f" {lacking} runs of the plan are not recorded yet." if lacking else ""),
            alt=f"Two panels of points that fall with tokens read. {'; '.join(told)}.",
        ),
        source_note(pays.all(arms_of_lengths)),
    )
else:
    display(
        not_yet_run("students of two sizes at four lengths of training", pays.command)
    )

# %% tags=["hide-input"]
RUN = {}  # what the held-out length gave
RELATIVE = {}  # by what part of the prediction it was off
INSIDE = []  # whether the interval has the run


def seen(student, kind):
    """What the held-out length gave, beside its prediction."""
    if (bits := held_out_run(student, kind)) is None:
        return "not yet run"
    band = predicted[student, kind]
    RUN[student, kind], RELATIVE[student, kind] = bits, bits / band.mean - 1
    INSIDE.append(band.low <= bits <= band.high)
    return f"{bits:.3f} ({bits / band.mean - 1:+.1%}), {'inside' if INSIDE[-1] else 'outside'}"


def off_by(kind=None):
    """The largest part by which a prediction was off."""
    return max(abs(off) for (_, k), off in RELATIVE.items() if kind in (None, k))


if laws:
    display(
        table(
            [
                "",
                "from",
                "$E$",
                "$B$",
                r"$\beta$",
                f"{HELD_OUT:g} million, predicted",
                "run",
            ],
            [
                [
                    f"{called(student)}, {SAID[kind]}",
                    f"{begins[student, kind]:g}M",
                    *(
                        f"{value:.3f} ± {error:.3f}"
                        for value, error in zip(
                            (law.floor, law.scale, law.exponent),
                            np.sqrt(np.diag(law.covariance)),
                            strict=True,
                        )
                    ),
                    predicted[student, kind].bracketed(".3f"),
                    seen(student, kind),
                ]
                for (student, kind), law in laws.items()
            ],
            caption="Fitted laws with standard errors, in bits per byte, and the shortest length that each goes through; $B$ is at the geometric mean of the lengths. The last columns: one run of a length that the fit has not seen, and by how much it is above its prediction; the intervals hold together at 95 % (Bonferroni).",
        ),
        *(
            [source_note(beyond.all({spec.arm for spec in beyond.specs} - {TEACHER}))]
            if RELATIVE
            else []
        ),
    )
elif not refused:
    display(not_yet_run("a law takes three lengths", pays.command))
if without := [key for key in refused if key not in laws]:
    which = listed([f"{called(student)} {SAID[kind]}" for student, kind in without])
    reasons = listed(list(dict.fromkeys(refused[key] for key in without)))
    display(sentence(f"No law so far of {which}: {reasons}"))

# %% [markdown]
# ### Read as tokens
#
# A lead of so many bits per byte says little. How many tokens would the student alone have to read for the same loss? That is $m$ again, $L_{\text{alone}}^{-1}(L_{\text{distilled}}(D))/D$, and it can be held against the price. Between the lengths that were run it takes no fitted law: the student alone is read off a line between the means of its neighbouring lengths, over the logarithm of the tokens. Where the distilled student is ahead of all that the student alone has been run for, the fitted laws say more, if there are such. <!-- by definition --> The line is an assumption as well: where a curve flattens between two lengths the line lies above it, and makes a token seem worth a little more than it is. <!-- by definition -->

# %% tags=["hide-input"]
both = [s for s in STUDENTS if {(s, "alone"), (s, "kd")} <= curves.keys()]
WAYS = {
    "own look": lambda student, _: price(student),
    f"shared by {sharing}": lambda student, _: price(student, shared=sharing),
    "from a cache that is there": lambda student, _: 1.0,
    "with the teacher's training": lambda student, tokens: price(
        student, tokens=tokens
    ),
}


token_worth, by_law = {}, {}
for student in both:
    for millions in series[student, "kd"]:
        pair = (student, "kd"), (student, "alone")
        with suppress(ValueError):  # runs that say too little
            found = worth(*(curves[key] for key in pair), millions)
            token_worth[student, millions] = found
            if np.isinf(found.mean) and laws.keys() >= set(pair):
                by_law[student, millions] = worth(
                    *(laws[key] for key in pair), millions
                )


def told(student, millions):
    """The worth at a length, in words."""
    return in_words(token_worth[student, millions], ".2g")


def in_words(found, spec):
    """A worth with its interval; of one beyond what the student alone was run for, where it begins."""
    if np.isfinite(found.mean):
        return found.bracketed(spec).replace("inf", "∞")
    return f"more than was run alone ({found.low:{spec}} or more)"


def said_of(found, cost):
    """Whether a token is worth its price."""
    if found.low >= cost:
        return "pays"
    return "does not pay" if found.high < cost else "not decided"


if both:
    CAP = 30.0
    figure, panels = plt.subplots(
        1, len(both), figsize=(4.2 * len(both), 3.2), sharey=True, squeeze=False
    )
    for panel, student in zip(panels[0], both, strict=True):
        for millions in LENGTHS:
            for ways, fill, beside in (
                (token_worth, BLUE, 1.0),
                (by_law, "white", 1.12),
            ):
                if found := ways.get((student, millions)):
                    ends_at = [max(found.low, 0.05), min(found.high, CAP)]
                    x = millions * beside
                    panel.plot([x, x], ends_at, color=BLUE, lw=2.2, label="_interval")
                    mark = "o" if found.mean < CAP else "^"
                    panel.plot(x, min(found.mean, CAP), mark, color=BLUE, mfc=fill, label="_worth")  # fmt: skip
        fine = np.geomspace(LENGTHS[0], LENGTHS[-1], 60)
        for (way, cost), hue in zip(
            WAYS.items(), (ORANGE, GREEN, PURPLE, VERMILION), strict=True
        ):
            prices = np.array([cost(student, x) for x in fine])
            panel.plot(
                fine, np.where(prices < CAP, prices, np.nan), "--", color=hue, label=way
            )
        on_lengths(panel)
        panel.set(yscale="log", title=called(student))
        ticks = [t for t in (0.5, 1, 2, 5, 10, 20) if panel.get_ylim()[0] <= t <= CAP]
        panel.set_yticks(ticks, [f"{t:g}" for t in ticks])
        panel.minorticks_off()
    panels[0][0].set_ylabel("worth of a token, and its price")
    panels[0][-1].legend(fontsize="x-small")
    display(
        show(
            figure,
            label="worth",
            caption=f"What a distilled token is worth in tokens alone (full dots: measured; hollow: by the laws, where that is beyond what was run alone), with 95 % intervals, cut at {CAP:g}; a triangle there: more than that, or than the student alone was run for. Dashed: what it costs. Where a dot is above a line, distilling is ahead at equal compute by that way of paying. {rates_chosen[0].upper()}{rates_chosen[1:]}.",
            alt="Dots of a token's worth by tokens read, and dashed lines of its price. "
            + "; ".join(
                f"{called(s)} at {x:g}M: worth {in_words(w, '.2g')}"
                for (s, x), w in token_worth.items()
            )
            + ".",
        ),
        table(
            ["", "worth", "known", *WAYS],
            [
                [
                    f"{called(student)}, {millions:g}M",
                    in_words(found, ".2f"),
                    known_by,
                    *(said_of(found, cost(student, millions)) for cost in WAYS.values()),
                ]
                for known_by, ways in (("measured", token_worth), ("by the laws", by_law))
                for (student, millions), found in ways.items()
            ],
            caption="Whether a distilled token is worth its price: the whole interval above it, below it, or neither. Where it is more than the student alone was run for, its longest training counts at the lower end. “With the teacher's training”: all of it, and its looks, paid by one student. Each length scatters by itself.",
        ),
    )  # fmt: skip
else:
    display(not_yet_run("what a token is worth", pays.command))

# %% tags=["hide-input"]
SHRINKS = Quantity("lead of the distilled student", "bits per byte", digits=3)
shrinking, by_length = [], []
for student in STUDENTS:
    leads = {
        f"{m:g} million tokens": {
            s: -d
            for s, d in pays.differences(
                arm_name(student, "kd", m), arm_name(student, "alone", m), BITS.of
            ).items()
        }
        for m in series[student, "kd"]
        if m in series[student, "alone"]
    }
    if leads:
        means = ", ".join(f"{np.mean([*d.values()]):.3f} after {arm}" for arm, d in leads.items())  # fmt: skip
        by_length.append(f"{called(student)} {means}")
    if len(leads) == len(LENGTHS) and min(map(len, leads.values())) > 1:
        first, *_, last = leads
        named = {arm: f"{called(student)} after {arm}" for arm in leads}
        recorded = replace(evidence(leads, SHRINKS, names=named), source="records")
        shrinking.append(below(last, first, recorded, SHRINKS))
if by_length:
    display(sentence(f"Mean lead in bits per byte: {'; '.join(by_length)}."))
ahead = {
    s: RUN[s, "alone"] - RUN[s, "kd"]
    for s in both
    if RUN.keys() >= {(s, "alone"), (s, "kd")}
}
if ahead:
    display(
        sentence(
            f"At the length that was held out, {HELD_OUT:g} million tokens, one run each: "
            + listed([f"{lead:+.3f} ({called(s)})" for s, lead in ahead.items()])
            + "."
        )
    )
display(*(sentence(said.text) for said in shrinking)) if shrinking else display(
    not_yet_run("whether the lead shrinks with the length of training", pays.command)
)
where_it_ends = None
if len(shrinking) == len(STUDENTS) == len(both):
    fine = np.geomspace(LENGTHS[0], LENGTHS[-1], 200)
    along = {
        called(s): (fine, curves[s, "alone"](fine) - curves[s, "kd"](fine))
        for s in both
    }
    over = "million tokens"
    where_it_ends = crosses(Curves(along, SHRINKS, over, "records"), SHRINKS, over)
    narrow_alone, wide_alone, wide_taught = (
        arm_name(s, kind, LENGTHS[-1])
        for s, kind in ((STUDENTS[0], "alone"), (STUDENTS[1], "alone"), (STUDENTS[1], "kd"))
    )  # fmt: skip
    longest = {
        arm_name(s, kind, LENGTHS[-1]): f"{called(s)} {SAID[kind]}, {LENGTHS[-1]:g} million tokens"
        for s in STUDENTS
        for kind in SAID
    }  # fmt: skip
    display(
        where_it_ends,
        sentence(
            f"The teacher has read {READ_BY_TEACHER:g} million tokens, and needs {teachers_bits:.3f} bits per byte; in the counted world the lead ends where the student has read as many."
        ),
        below(wide_alone, teachers_bits, pays, BITS, names=longest),
        above(wide_taught, teachers_bits, pays, BITS, names=longest),
        above(narrow_alone, teachers_bits, pays, BITS, names=longest),
    )

# %% [markdown]
# Nine tenths of a distilled student's loss are least where it says what its teacher says. <!-- by definition --> So where the text could teach a student more than its teacher knows, the teacher holds it back. <!-- by definition --> Where the statements above hold, the wide student alone has passed the teacher in the end, and the distilled one has stopped short of it. The narrow one alone has not passed it, and its lead has ended all the same: it suffices that what the teacher has wrong costs more than its answers save. <!-- by definition -->

# %% [markdown]
# ## A better teacher
#
# Is a better teacher a better teacher? Three of one size that have read a quarter of six million tokens, six million, and four times as many, and one of a smaller size; the student is the smallest, at four million tokens, at the rate that was chosen with the teacher of six million (alone: its own). <!-- by definition -->

# %% tags=["hide-input"]
SOURCES = {
    "alone": "no teacher",
    "kd-from-gpt_96x3-6M": "GPT 96×3, 6M tokens",
    f"kd-from-{TEACHER}-1.5M": "GPT 224×4, 1.5M tokens",
    "kd": "GPT 224×4, 6M tokens",
    f"kd-from-{TEACHER}-24M": "GPT 224×4, 24M tokens",
}
taught = {arm_name(STUDENTS[0], kind, 4.0): said for kind, said in SOURCES.items()}
ages_done = pays.complete(list(taught))
if ages_done:
    old, usual, young = (
        arm_name(STUDENTS[0], kind, 4.0)
        for kind in (f"kd-from-{TEACHER}-24M", "kd", f"kd-from-{TEACHER}-1.5M")
    )
    older = undecided(old, usual, 0.05, pays, BITS, names=taught)
    display(
        arms_shown(
            pays,
            taught,
            {"bits per byte of the test books": BITS},
            label="teachers",
            caption=f"{called(STUDENTS[0])} at four million tokens, by its teacher: each seed, mean and 95 % interval; further left is better.",
        ),
        below(usual, young, pays, BITS, names=taught),
        older,
        source_note(pays.all(taught)),
    )
else:
    display(not_yet_run("teachers of three ages and two sizes", pays.command))

# %% [markdown]
# ## Beside the law of the field
#
# Busbridge and co-workers fitted such laws to models of 143 million to 12.6 billion parameters, four orders of magnitude larger than these {cite}`busbridge2025distillation`. Theirs has the student's loss as a function of its size, its tokens and the *teacher's loss*. Ours has two sizes of students, and these questions can be asked of it.

# %% tags=["hide-input"]
EMPTY = "not yet run"
at_longest = {s: token_worth.get((s, LENGTHS[-1])) for s in both}
decided = [
    f"{called(s)}: {said_of(w, price(s))} after {LENGTHS[-1]:g} million tokens"
    for s, w in at_longest.items()
    if w is not None
]
unfitted = f"{len(laws)} of {len(series)} curves have a law of this form"
trained_for_one = [
    f"{called(s)} after {x:g} million: {said_of(w, price(s, tokens=x))}"
    for (s, x), w in token_worth.items()
]
table(
    ["they find", "here"],
    [
        [
            "A law that is fitted to weaker students predicts stronger ones, to about one per cent.",
            f"Of one size and by length alone: at twice the longest length off by {off_by():.1%} at most."
            if RELATIVE
            else EMPTY
            if lacking
            else f"{unfitted}.",
        ],
        [
            "With a teacher that is there, distilling is ahead at equal compute, up to a bound.",
            (f"With its own look, {listed(decided)}." if decided else EMPTY),
        ],
        [
            "If one student is wanted and its teacher has to be trained for it, train the student alone.",
            (f"{'; '.join(trained_for_one)}." if trained_for_one else EMPTY),
        ],
        [
            "A stronger teacher may be a worse one, for a student far below it.",
            (older.text if ages_done else EMPTY),
        ],
    ],
    caption="What Busbridge and co-workers find, in our words, and what these records say.",
)

# %% [markdown]
# That what distilling brings *follows a law*, as claim C4 has it, is judged by the length that was held out: all four laws have narrow intervals there (`NARROW`), and each has its run. <!-- by definition --> That it *pays up to a bound* is judged by the price: for both students there is a way of paying by which a token pays at some length and does not at the longest. <!-- by definition --> A law in the *sizes* of student and teacher would take more of them than there are: more than *depends* the verdict cannot be. <!-- by definition -->

# %% tags=["hide-input"]
NARROW = 0.05  # of the loss, to either side
narrow = [
    (band.high - band.low) / 2 <= NARROW * band.mean for band in predicted.values()
]


def bounded_ways(student):
    """The ways of paying by which a token pays at some length and does not at the longest."""
    judged = {
        way: [said_of(w, cost(s, m)) for (s, m), w in token_worth.items() if s == student]
        for way, cost in WAYS.items()
    }  # fmt: skip
    return [
        w for w, said in judged.items() if "pays" in said and said[-1] == "does not pay"
    ]


if not lacking and not beyond.missing:
    bounded = {s: bounded_ways(s) for s in both if (s, LENGTHS[-1]) in token_worth}
    law = len(INSIDE) == len(series) == sum(narrow) and all(INSIDE)
    bound = len(bounded) == len(STUDENTS) and all(bounded.values())
    display(
        verdict(
            "C4",
            "depends" if law or bound else "not decided",
            [f"Of {len(series)} curves {len(laws)} have a law of the form $E+B\\,D^{{-\\beta}}$, {sum(narrow)} of them an interval of at most ±{NARROW:.0%} at {HELD_OUT:g} million tokens, and {sum(INSIDE)} of {len(INSIDE)} runs there, predicted before they were run, lie in theirs"
            + (f", off by {off_by():.1%} at most. " if RELATIVE else ". ")
            + "; ".join(
                f"{called(s)} has {listed(ways) if ways else 'no way of paying'} by which a token pays at some length and not at the longest"
                for s, ways in bounded.items()
            )
            + ".",
            *shrinking,
            *(
                f"At {x:g} million tokens a distilled token of {called(s)} is worth {told(s, x)}, and costs {price(s):.1f} with its own look."
                for s, x in token_worth
                if x in (LENGTHS[0], LENGTHS[-1])
            ),
            *(["Of teachers:", older] if ages_done else []),
            f"Sizes are two of students and two of teachers, which no law is fitted to. {rates_chosen[0].upper()}{rates_chosen[1:]}."],
            condition="bound to a scale" if law or bound else None,
        )
    )  # fmt: skip
else:
    display(
        not_yet_run(
            f"the verdict on C4: {lacking} runs up to {LENGTHS[-1]:g} million tokens, and {beyond.missing} of the length that is held out",
            pays.command if lacking else beyond.command,
        )
    )

# %% tags=["hide-input"]
findings.show(
    f"In a world that can be counted, a token with a teacher is worth {counted_worth[0]:.1f} tokens alone at {PARTS[0]:.2g} of what the teacher has read, and {counted_worth[-1]:.2f} at {PARTS[-1]:g} times as much; derived: $1/(\\rho+(1-\\rho)\\,n/n_T)$, which is one where the student has read as much as its teacher.",
    ends,
    f"A token with the teacher costs {price(STUDENTS[0]):.1f} tokens alone for {called(STUDENTS[0])} and {price(STUDENTS[1]):.1f} for {called(STUDENTS[1])}; {price(STUDENTS[0], shared=sharing):.1f} and {price(STUDENTS[1], shared=sharing):.1f} if {sharing} students share a look.",
    *(
        f"On books, a distilled token of {called(s)} is worth {listed([f'{told(s, m)} at {m:g} million tokens' for t, m in token_worth if t == s])} (measured; {rates_chosen})."
        for s in dict.fromkeys(s for s, _ in token_worth)
    ),
    *([where_it_ends.text] if where_it_ends is not None else []),
    *(
        [
            f"Predicted before they were run, {sum(INSIDE)} of {len(INSIDE)} runs at {HELD_OUT:g} million tokens lie in the intervals of their laws: those of students alone are off by up to {off_by('alone'):.1%}, of distilled ones by up to {off_by('kd'):.1%}. "
            + f"There the lead of the distilled student is {listed([f'{lead:+.3f} ({called(s)})' for s, lead in ahead.items()])} bits per byte (n = 1)."
        ]
        if ahead
        else []
    ),
    *([f"{len(pays.specs) - lacking} of {len(pays.specs)} runs that are known so far are recorded."] if lacking else []),
)  # fmt: skip

# %% [markdown]
# ## Limits
#
# - **Counting is not learning by gradients.** The derivation has a student without optimiser, and a teacher that knows nothing of a context but what it has counted.
# - **Small models, few tokens.** Each epoch draws its blocks anew from the openings of the books, so that blocks come again, in long trainings often.
# - **Three numbers from four lengths.** A law of three parameters leaves at most one degree of freedom to the *shape*, which is tested then, and none where one length was left out: such a law is believed without a test. Its intervals are to first order, and assume that the shape is right, and that runs of all lengths scatter alike. The held-out length is there for that, and its own rate, chosen at a shorter length, cannot be told from the shape.
# - **Compute is multiply-adds.** Time is another thing, which {doc}`17_distilling_a_small_language_model` measures.
# - **One objective**, one batch size, and rates of students that were chosen beside one teacher: the other teachers were given no choice.
#
# ## To take away
#
# **Formulae.** $m=L_{\text{alone}}^{-1}(L_{\text{distilled}}(D))/D$; price $1+c_T/(3c_Sk)$; distilling pays at equal compute where $m$ is above the price. For students that count, $m=1/(\rho+(1-\rho)\,n/n_T)$.
#
# **What to set.** Share the look: several students, several epochs over one text, or a cache. It lowers the price without touching the worth.
#
# **What to watch for.** A comparison at one length says nothing of another. Say how much the teacher has read, and who paid for it.
#
# ## Exercises
#
# ```{exercise}
# :label: ex-same-text
#
# The teacher counts a text, and the student is distilled on *the same* text. What does the teacher add, if it keeps its counts without anything added to them?
# ```
#
# ````{solution} ex-same-text
# :class: dropdown
#
# Nothing at all: the mean of the teacher's frequencies over the contexts of a group, each as often as it came, is the frequency of the group. What it has learned of a context is what the student reads there. A teacher helps by what it has read elsewhere, or by knowing something of contexts that it has not counted.
#
# ```python
# text = read(teacher_tokens)
# frequencies = text / text.sum(-1, keepdims=True)
# own = text.sum(1) / text.sum((1, 2))[:, None]
# print(np.abs(distilled(text, frequencies) - own).max())
# ```
# ````
#
# ```{exercise}
# :label: ex-price-of-two
#
# Up to which share of its teacher's tokens does distilling pay in the counted world, if the price of a token is $1+r$? And with $r=0$, from a cache?
# ```
#
# ````{solution} ex-price-of-two
# :class: dropdown
#
# Where $m>1+r$: $n/n_T<\bigl(\tfrac1{1+r}-\rho\bigr)/(1-\rho)$, nowhere if $1+r\ge1/\rho$. From a cache it is one.
#
# ```python
# r = sp.Symbol("r", positive=True)
# (bound,) = sp.solve(sp.Eq(as_derived, 1 + r), n)
# print(sp.simplify(bound / n_T))
# for student in STUDENTS:
#     paid = price(student) - 1
#     print(called(student), f"{float((bound / n_T).subs({r: paid, rho: kept})):.2f}")
# ```
# ````
