# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Language models: classifiers with a large N
#
# A language model reads a text and, at each position, gives a distribution over what comes next. That is a classifier,
# and all that this book has said about classifiers holds for it. The classes are now the tokens of a vocabulary: 4,096
# of them here, 128,000 in a large model of today {cite}`grattafiori2024llama`.
# What changes when $N$ grows so much? Does temperature still help, does $T^2$ still do its work, and what becomes of the factor $1/N$?
#
# **At the end you will know** in which unit language models are compared, whatever their tokens are; how many tokens
# compete at a position, and where probability goes when the temperature rises; why $T=1$ is the one temperature at
# which the vocabulary's size does not matter; and which part of a network feels the factor $1/N$.
#
# *Needs: one CPU core and about a minute. The recorded runs took longer; the section says where.*

# %% tags=["parameters"]
profile: str = "cpu"
temperatures: list[float] = [1.0, 2.0, 4.0, 8.0]  # of the softmax: 1, and hotter ones
blocks: int = 64  # of validation text at which the teacher looks
copies: list[int] = [1, 2, 4, 8, 16]  # synonyms into which every token is split
learned: int = 120  # blocks of text for a student (a twentieth in the last trial)
seeds: list[int] = [0, 1, 2]  # of the students of the last experiment

# %% tags=["hide-input"]
import math
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown, display
from scipy.stats import chi2
from torch import nn

from kdlab.data import Examples
from kdlab.figures import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    dots,
    show,
    table,
    use_style,
)
from kdlab.language import load_text_data, train_tokeniser
from kdlab.models import gpt_64x2
from kdlab.objectives import (
    CrossEntropy,
    ForwardKL,
    HeadLogits,
    cross_entropy,
    forward_kl,
    log_soften,
    soften,
)
from kdlab.study import book_language_teacher, results
from kdlab.study.display import (
    Findings,
    data_note,
    device_for,
    slots,
    source_note,
    tokens_read,
)
from kdlab.study.evidence import QUANTITIES, Quantity, listed
from kdlab.study.findings import moves
from kdlab.study.parameters import ParameterError
from kdlab.study.statements import (
    above,
    below,
    falls,
    rises,
    undecided,
    within,
)
from kdlab.study.statistics import summary
from kdlab.theory import reference
from kdlab.training import Recipe, Taps, fast_precision, fit, predict

use_style()
device = device_for(profile)
heats = sorted({1.0, *temperatures})
if len(heats) < 2 or not 0.5 <= heats[0] <= 1 < heats[-1] <= 1024:
    raise ParameterError(
        f"temperatures must have one above 1, all of them from 0.5 to 1024, and not {temperatures}."
    )
hottest, hot = heats[-1], next(T for T in heats if T > 1)
data = load_text_data("book-openings-4096-256")
data_note(data)

# %% tags=["hide-input"]
findings = Findings()

# %% [markdown]
# The teacher of this part of the book is a small GPT that has read the openings of several hundred books; no author is in two splits. It reads the
# validation text once. Every position is an example, and its true class is the token that follows.

# %% tags=["hide-input"]
teacher = book_language_teacher(data, device=device)
teacher.fused = False
read_at = data.validation.spread(blocks)
logits = predict(teacher, read_at, batch_size=8, device=device).flatten(0, 1)
labels = torch.cat([y for _, y, _ in read_at.batches(64)]).flatten()
positions, N = logits.shape
Markdown(f"There are {positions:,} positions, each a distribution over {N:,} tokens.")

# %% [markdown]
# ## A unit for models with different classes
#
# For images everyone uses the same classes. For text everyone chooses their own: one tokeniser cuts a word in two, another leaves it whole. The cross-entropy *per token* then compares
# nothing, since tokens are not the same things. But the text is. By the chain rule
#
# $$-\log_2 q(\text{text}) \;=\; -\sum_t \log_2 q(x_t \mid x_{<t}),$$
#
# and the left side does not depend on the tokens. Divide it by the length of the text in bytes, which does not either, and you have **bits per byte**.
#
# First, the same model in two cuts. It draws each byte on its own, with frequencies counted in some of the training text. Write that text byte by byte, or in pairs of bytes: the distribution over texts is the same
# one, only its steps are named differently.


# %% tags=["hide-input"]
def texts(tokens):
    """The text of each block: of its labels, which are what a model is asked for."""
    return [data.tokeniser.decode(y[0].tolist()) for _, y, _ in tokens.batches(1)]


# %%
def frequencies(numbers, size):
    """Log-probabilities of a model that draws each token on its own; none is zero."""
    counts = torch.bincount(torch.tensor(numbers), minlength=size) + 1.0
    return torch.log(counts / counts.sum())


read, held_out = texts(data.train.spread(400)), texts(data.validation)
size_of_text = sum(len(text.encode()) for text in held_out)
by_byte = frequencies([b for text in read for b in text.encode()], 256)
written = torch.tensor([b for text in held_out for b in text.encode()])
surprise = -by_byte[written[: len(written) // 2 * 2]]
steps = {"bytes": surprise, "pairs of bytes": surprise.view(-1, 2).sum(1)}

# %% tags=["hide-input"]
assert torch.allclose(steps["pairs of bytes"].mean(), 2 * steps["bytes"].mean())
assert torch.allclose(steps["pairs of bytes"].sum(), steps["bytes"].sum())
Markdown(
    "; ".join(
        f"{name}: {nats.mean():.3f} nats a token, {nats.sum() / math.log(2) / len(surprise):.3f} bits per byte"
        for name, nats in steps.items()
    )
    + "."
)

# %% [markdown]
# Now models that do differ: two tokenisers that are learned here from the same text, beside the book's own. With each goes the same kind of model, which draws every token on its own.

# %%
tokenisers = {size: train_tokeniser(read, size) for size in (512, 1024)}
tokenisers[data.tokeniser.get_vocab_size()] = data.tokeniser


def encoded(tokeniser, documents):
    return [i for e in tokeniser.encode_batch(documents) for i in e.ids]


nats_a_token = {256: steps["bytes"].mean().item()}
bits_per_byte = {256: nats_a_token[256] / math.log(2)}
for size, tokeniser in tokenisers.items():
    nats = -frequencies(encoded(tokeniser, read), size)[encoded(tokeniser, held_out)]
    nats_a_token[size] = nats.mean().item()
    bits_per_byte[size] = nats.sum().item() / math.log(2) / size_of_text

# %% tags=["hide-input"]
teacher_nats = cross_entropy(logits, labels).item()
teacher_bits = (
    teacher_nats * positions / math.log(2) / read_at.token_bytes[labels].sum().item()
)

figure, panels = plt.subplots(1, 2, figsize=(7.8, 3.2))
for panel, values, of_teacher in zip(
    panels, (nats_a_token, bits_per_byte), (teacher_nats, teacher_bits), strict=True
):
    panel.plot(
        list(values),
        list(values.values()),
        "o-",
        color=BLUE,
        label="each token on its own",
    )
    panel.plot([N], [of_teacher], "D", color=VERMILION, label="the teacher")
    panel.set_xscale("log", base=2)
    panel.set_xticks(list(values), [f"{size:,}" for size in values])
    panel.minorticks_off()
    panel.set_xlabel("size of the vocabulary")
    panel.set_ylim(0, None)
panels[0].set_ylabel("nats a token")
panels[1].set_ylabel("bits per byte")
panels[1].legend(fontsize="small", loc="lower left")
show(
    figure,
    label="units",
    caption="Models that draw each token on its own, with four vocabularies, on the same validation text. The sentences below say how they move per token and per byte as the vocabulary grows; per byte "
    f"they go from {bits_per_byte[256]:.2f} to {bits_per_byte[N]:.2f}, since a longer token holds what its bytes have to do with each other. The teacher, which also reads "
    f"what came before, needs {teacher_bits:.2f}.",
    alt="Two panels against vocabulary size. Left: nats per token, a rising line. Right: bits per byte, a falling line. A diamond for the teacher is far below both.",
)

# %% tags=["hide-input"]
alone = "each token on its own"
display(
    rises(
        {alone: nats_a_token},
        Quantity("cross-entropy", "nats a token"),
        "tokens in the vocabulary",
        throughout=True,
    ),
    falls(
        {alone: bits_per_byte},
        Quantity("cross-entropy", "bits per byte"),
        "tokens in the vocabulary",
        throughout=True,
    ),
)

# %% [markdown]
# So models are compared in bits per byte, and the vocabulary is a part of the model. One caveat: the same text can be cut in several ways, and a model gives a probability to
# each of them. We score the one cut that its tokeniser makes. So the bits per byte of a model over tokens are an upper bound, and the bound is what everyone reports.
#
# Distillation by logits stays with *one* vocabulary: teacher and student must mean the same thing by class $i$.
#
# ## How many tokens compete
#
# With a hundred classes a sure teacher puts nearly everything on one of them. How sure is a language model? Its
# entropy $H$ at a position tells, and $e^H$ is easier to read: the number of equally likely tokens that would leave
# one as uncertain. Beside it stand the probabilities themselves, sorted from the likeliest token to the least likely,
# for the teacher as it is ($T=1$) and heated. <!-- by definition -->

# %% tags=["hide-input"]
edges = [0, 1, 10, 100, 1000, N]  # ranks: the first, to the 10th, to the 100th, …
ranked = torch.from_numpy(np.sort(logits.numpy(), axis=1)).flip(1)  # likeliest first
# of the true token; 0 is first
rank = (logits > logits.gather(1, labels[:, None])).sum(1)
profile_of, band_mass = {}, {}
for T in heats:
    profile_of[T], band_mass[T] = torch.zeros(N), []
    for part in ranked.split(1024):
        p = soften(part, T)
        profile_of[T] += p.sum(0) / positions
        band_mass[T].append(
            torch.stack([p[:, a:b].sum(1) for a, b in pairwise(edges)], 1)
        )
    band_mass[T] = torch.cat(band_mass[T])
log_p = [log_soften(part) for part in ranked.split(1024)]
effective = torch.cat([-(x.exp() * x).sum(1) for x in log_p]).exp()
quartiles = effective.quantile(torch.tensor([0.1, 0.5, 0.9])).tolist()

warmer = [BLUE, GREEN, ORANGE, VERMILION, PURPLE, SKY]
heat = {T: warmer[place % len(warmer)] for place, T in enumerate(heats)}
figure, (left, right) = plt.subplots(1, 2, figsize=(7.8, 3.5))
left.plot(effective.sort().values, np.linspace(0, 1, positions), color=BLUE)
left.set_xscale("log")
left.axvline(N, color="grey", linestyle=":", linewidth=1)
left.text(0.9 * N, 0.03, "$N$", ha="right")
left.set(
    xlabel="effective number of tokens, $e^H$", ylabel="fraction of positions below"
)
for T, values in profile_of.items():
    right.loglog(np.arange(1, N + 1), values, color=heat[T], label=f"$T={T:g}$")
right.axhline(1 / N, color="grey", linestyle=":", linewidth=1)
right.text(1, 1.25 / N, "$1/N$")
right.set(xlabel="rank", ylabel="mean probability", ylim=(1e-8, 1.5))
right.legend(fontsize="small")
show(
    figure,
    label="peaked",
    caption=f"Left: how many tokens compete, over {positions:,} positions; a tenth has fewer than {quartiles[0]:.1f}, half have fewer than {quartiles[1]:.0f}, a tenth more than {quartiles[2]:.0f}, "
    f"of {N:,}. Right: mean probability by rank. Heat takes little from the first token that it does not hand to thousands of others: the dotted line is the uniform distribution.",
    alt="Left: a rising curve of the fraction of positions against the effective number of tokens on a log axis. Right: probability against rank in a log-log plot, steep at temperature one, "
    "flatter the hotter, near the line one over N.",
)

# %% [markdown]
# So this model is uncertain among dozens of tokens. The thousands of others have very little each. Together they have
# something, and it grows with $T$, since there are so many.
#
# Is that mass where it belongs? It can be checked. Sort the tokens of each position by rank as the teacher sees it, and ask in what fraction of positions the *true* token lies in each band of ranks. At $T=1$ the teacher
# makes a claim about the world, and can be right or wrong about it. A hot teacher makes no such claim; still it shows what a hot target stresses.

# %% tags=["hide-input"]
bands = [f"{a + 1:,}–{b:,}" if b > a + 1 else f"{b}" for a, b in pairwise(edges)]
hits = torch.stack([(rank >= a) & (rank < b) for a, b in pairwise(edges)], 1).float()
block = read_at.context  # positions of one block are read together: one unit
by_block = [x.view(-1, block, len(bands)).mean(1).numpy() for x in (hits, band_mass[1])]
tail = rank >= 100
predicted_tail = {T: mass[:, 3:].sum(1).mean().item() for T, mass in band_mass.items()}
tail_gap = summary(by_block[0][:, 3:].sum(1) - by_block[1][:, 3:].sum(1))

# %% [markdown]
# The bands are sums, in which errors can cancel. So look at single entries too. Every position gives $N$ probabilities; put all of them into classes of equal probability, from $10^{-9}$ upwards. In
# each class the teacher predicts a number of hits, the sum of its probabilities. How many were there?

# %%
bins = 20  # two to a power of ten
expected = torch.zeros(bins, dtype=torch.double)
for x in log_p:
    which = (2 * x / math.log(10)).floor().long().clamp(min=-bins, max=-1) + bins
    expected += torch.bincount(
        which.flatten(), x.double().exp().flatten(), minlength=bins
    )

# %% tags=["hide-input"]
of_truth = torch.cat([log_soften(part) for part in logits.split(1024)])
of_truth = of_truth.gather(1, labels[:, None]).squeeze(1)
which = (2 * of_truth / math.log(10)).floor().long().clamp(min=-bins, max=-1) + bins
happened = torch.bincount(which, minlength=bins)
told = [b for b in range(bins) if expected[b] >= 3]  # where something is to be expected
ratio = np.array([(happened[b] / expected[b]).item() for b in told])
low, high = (
    np.array([f(happened[b].item()) / expected[b].item() for b in told])
    for f in (
        lambda k: chi2.ppf(0.025, 2 * k) / 2 if k else 0.0,
        lambda k: chi2.ppf(0.975, 2 * k + 2) / 2,
    )
)

figure, (left, right) = plt.subplots(
    1, 2, figsize=(8.2, 3.7), gridspec_kw={"width_ratios": [1.1, 1]}
)
columns = ["truth", *(f"$T={T:g}$" for T in heats)]
shares = [
    hits.mean(0).tolist(),
    *(band_mass[T].mean(0).tolist() for T in heats),
]
bottom = np.zeros(len(columns))
for b, (name, colour) in enumerate(
    zip(bands, (BLUE, SKY, GREEN, ORANGE, VERMILION), strict=True)
):
    height = np.array([share[b] for share in shares])
    left.bar(columns, height, bottom=bottom, color=colour, label=name, width=0.75)
    bottom += height
left.set(ylabel="probability", ylim=(0, 1))
left.legend(title="rank", fontsize="x-small", title_fontsize="x-small", loc="upper left", bbox_to_anchor=(1, 1))  # fmt: skip
left.grid(axis="x", visible=False)
middle = [10 ** ((b - bins + 0.5) / 2) for b in told]
right.axhline(1, color="grey", linewidth=1)
hit = ratio > 0
middle = np.array(middle)
spans = np.stack([ratio - low, high - ratio])
right.errorbar(
    middle[hit], ratio[hit], spans[:, hit], fmt="o", color=BLUE, linewidth=1.5
)
right.errorbar(
    middle[~hit], high[~hit], 0.35 * high[~hit], uplims=True, fmt="_", color=BLUE
)
right.set(
    xscale="log",
    yscale="log",
    xlabel="the teacher's probability, $T=1$",
    ylabel="hits : predicted hits",
)
right.set_yticks([0.25, 0.5, 1, 2, 4], ["¼", "½", "1", "2", "4"])
right.set_ylim(0.2, 5)
right.minorticks_off()
show(
    figure,
    label="tail",
    caption=f"Left: how often the true token lies in each band of ranks, and what the teacher gives to the band. Beyond rank 100 the truth lies in {tail.float().mean():.1%} of positions; the teacher gives "
    + ", ".join(f"{v:.1%} at $T={T:g}$" for T, v in predicted_tail.items())
    + ". Right: calibration of single entries; bars are 95 % intervals for counts"
    + (
        ""
        if hit.all()
        else ", an arrow stands under the upper end where there was no hit"
    )
    + ".",
    alt="Left: stacked bars of probability by rank band for the truth and the teacher at each temperature. Right: ratio of hits to predicted hits against probability, "
    "with intervals around one.",
)

# %% [markdown]
# One more question about the tail: does the teacher *know* anything there? Take the positions whose true token is ranked beyond 100. Given that much, how many nats does it cost to say which one it is: by the teacher's own probabilities of the others, by the mere frequency
# of tokens in the training text, and by no knowledge at all?

# %% tags=["hide-input"]
frequency = torch.bincount(
    data.train.labels[:: max(len(data.train.labels) // 2_000_000, 1)].long() & 0xFFFF,
    minlength=N,
)
frequency = (frequency + 1.0) / (frequency + 1.0).sum()
left_over = (logits[tail] < ranked[tail, 99:100]).float()
frequent = torch.zeros(N)
frequent[frequency.topk(100).indices] = 1
promised = ((left_over @ (frequency * frequent)) / (left_over @ frequency)).mean()
came = frequent[labels[tail]].mean()
by_frequency = (left_over @ frequency).log() - frequency[labels[tail]].log()
truth = logits[tail].gather(1, labels[tail][:, None]).squeeze(1)
warmth = [0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.4, 1.7, 2]
by_teacher = {
    T: ((ranked[tail, 100:] / T).logsumexp(1) - truth / T).mean().item() for T in warmth
}
best_warmth = min(by_teacher, key=by_teacher.get)
blind, common = math.log(N - 100), by_frequency.mean().item()
Markdown(
    f"To say which token of the tail it is costs {blind:.2f} nats blindly, {common:.2f} by frequency and {by_teacher[1]:.2f} by the teacher, whose tail costs least at $T={best_warmth:g}$ "
    f"(tried from {warmth[0]:g} to {warmth[-1]:g}). What the truth has beyond rank 100, minus what the teacher gives there, is {100 * tail_gap:+.2f} blocks, in points."
)

# %% tags=["hide-input"]
in_total = (
    "In total the tail is calibrated within its interval at $T=1$"
    if not (tail_gap.n > 1 and tail_gap.excludes_zero)
    else f"In total the tail is given too {'little' if tail_gap.mean > 0 else 'much'} at $T=1$ (the interval over blocks excludes zero)"
)
off = max((max(r, 1 / r), m) for r, m in zip(ratio[hit], middle[hit], strict=True))
of_tail = [
    f"{in_total}. Of the {hit.sum()} classes of single entries with hits the worst, near a probability of {off[1]:.0e}, is off by a factor of {off[0]:.1f}."
]
for b, m, limit in zip(np.array(told)[~hit], middle[~hit], high[~hit], strict=True):
    of_tail.append(
        f"There is no hit near a probability of {m:.0e}, where {expected[b]:.1f} were predicted (the interval of their ratio ends at {limit:.2f})."
    )
of_tail.append(
    f"Frequency gives {promised:.0%} of the tail to the hundred most frequent tokens, which are the truth there {came:.0%} of the time."
)
display(Markdown(" ".join(of_tail)))
guesses = {
    "the teacher": by_teacher[1],
    "frequency": common,
    "blind choice": blind,
}
told_by_rank = {"the truth": by_block[0][:, 3:].sum(1)} | {
    f"the teacher at T = {T:g}": band_mass[T].view(-1, block, len(bands))[..., 3:].sum(-1).mean(1).numpy()
    for T in heats
}  # fmt: skip
beyond = Quantity("probability beyond rank 100", "points", 100, 1, level_unit="%")
display(
    below(
        "the teacher",
        None,
        guesses,
        Quantity(
            "cost of naming a token of the tail", "nats", digits=2, better="lower"
        ),
    ),
    above(
        f"the teacher at T = {hot:g}",
        ["the truth", "the teacher at T = 1"],
        told_by_rank,
        beyond,
    ),
    above(f"the teacher at T = {hot:g}", 50, told_by_rank, beyond),
)

# %% [markdown]
# Frequency need not help at all here, for a good reason. A common token that ranks so low was ruled out by the teacher, and the line above says how rightly. What is common in the text need not be common in its tails.
#
# A cross-entropy over millions of tokens asks for calibration at $T=1$, in the tail too, and the figure says how far
# the teacher got: for the tail as a whole, where errors cancel, and for single entries, where they do not, since each
# rare token was seen a few times in few places. The sentences above say what a high temperature does: where a hot
# teacher gives its probability to the tail, the target is about the tail. A student that could match every logit would
# not mind, since at its optimum $z=t$ up to a constant
# whatever $T$ is. A student that cannot has to choose what to get right, and $T$ makes that choice.
#
# ## T² with thousands of classes
#
# Article A's claim A5 says that $T^2$ keeps the soft loss's pull roughly constant beside the hard one. For images {doc}`03_why_t_squared` gave the verdict. Here are the same curves for tokens: the teacher's logits, and those of a student
# before and after a short training on the text. The gradients are taken with respect to the student's logits at a position; the hard one, $q - y$, has no $T$.

# %%
few = data.validation.spread(max(4, min(16, blocks)))
torch.manual_seed(0)
student = gpt_64x2(data.num_classes).to(device)
students = {"untrained": predict(student, few, batch_size=8, device=device)}
student.fused = True
short = Recipe(
    epochs=1, epoch_examples=min(learned, len(data.train)), batch_size=4,
    optimizer="adamw", learning_rate=4e-3, weight_decay=0.1,
    schedule="cosine", warmup_epochs=0.1,
    augment=False, max_gradient_norm=1.0, precision=fast_precision(device),
)  # fmt: skip
fit(student, CrossEntropy(), train=data.train, recipe=short, device=device)
student.fused = False
students["trained"] = predict(student, few, batch_size=8, device=device)

# %% tags=["hide-input"]
total = len(few) * few.context
where = torch.arange(0, total, max(total // 96, 1))[:96]
t = predict(teacher, few, batch_size=8, device=device).flatten(0, 1)[where].double()
y = torch.cat([labels for _, labels, _ in few.batches(64)]).flatten()[where]
students = {
    name: z.flatten(0, 1)[where].double().numpy() for name, z in students.items()
}
Markdown(
    "KL from the teacher: "
    + ", ".join(
        f"{reference.forward_kl(z, t.numpy()).mean():.2f} nats a token ({name} student)"
        for name, z in students.items()
    )
    + "."
)

# %%
grid = 2.0 ** (np.arange(-3, 31) / 3)  # 1/2 to 1024, three steps an octave
t = t.numpy()
outside = t < np.sort(t, axis=1)[:, -100:-99]  # beyond the teacher's rank 100
first = t >= np.sort(t, axis=1)[:, -10:-9]  # its first ten
one_hot = np.eye(N)[y]
curves = {}
for name, z in students.items():
    hard = np.linalg.norm(reference.cross_entropy_gradient(z, one_hot), axis=1)
    limit = (z - z.mean(1, keepdims=True) - t + t.mean(1, keepdims=True)) / N
    rows = {"ratio": [], "norm": [], "off": [], "off of the first": [], "tail": []}
    for T in grid:
        g = T**2 * reference.forward_kl_gradient(z, t, T)
        norm = np.linalg.norm(g, axis=1)
        rows["ratio"].append(np.median(norm / hard))
        rows["norm"].append(np.median(norm))
        for key, part in (("off", 1), ("off of the first", first)):
            away = np.linalg.norm((g - limit) * part, axis=1)
            rows[key].append(np.median(away / np.linalg.norm(limit * part, axis=1)))
        rows["tail"].append(np.median((np.abs(g) * outside).sum(1) / np.abs(g).sum(1)))
    curves[name] = {key: np.array(values) for key, values in rows.items()}
    curves[name]["limit"] = np.median(np.linalg.norm(limit, axis=1))


# %% tags=["hide-input"]
def at(values, T):
    return np.exp(np.interp(np.log(T), np.log(grid), np.log(values)))


fine = np.geomspace(grid[0], grid[-1], 2001)  # between the temperatures of the grid


def around(values, T, tolerance=0.2):
    """The range around T in which a curve stays within the tolerance of its value at T."""
    outside = np.abs(at(values, fine) / at(values, T) - 1) > tolerance
    below, above = fine[outside & (fine < T)], fine[outside & (fine > T)]
    return below[-1] if len(below) else fine[0], above[0] if len(above) else fine[-1]


def settled(away, tolerance):
    """The temperature from which on a distance stays below the tolerance."""
    outside = fine[at(np.maximum(away, 1e-12), fine) > tolerance]
    return outside[-1] if len(outside) else fine[0]


flat = {name: around(c["ratio"], 1) for name, c in curves.items()}
near = {
    name: settled(np.abs(c["norm"] / c["limit"] - 1), 0.2) for name, c in curves.items()
}
reached = {name: settled(c["off"], 0.2) for name, c in curves.items()}
late = {name: settled(c["off of the first"], 0.2) for name, c in curves.items()}

# %% tags=["hide-input"]
hue = {"untrained": PURPLE, "trained": BLUE}
figure, (left, right) = plt.subplots(1, 2, figsize=(8.0, 3.6))
for name, c in curves.items():
    left.loglog(grid, c["ratio"], color=hue[name], label=f"{name}, with $T^2$")
    left.loglog(grid, c["ratio"] / grid**2, ":", color=hue[name], label="without")
    right.loglog(grid, c["off"], color=hue[name], label=f"{name}, all tokens")
    right.loglog(grid, c["off of the first"], "--", color=hue[name], label="first ten")
left.set(
    xlim=(0.5, 100),
    ylim=(1e-4, 5),
    xlabel="temperature $T$",
    ylabel="soft : hard gradient",
)
left.legend(fontsize="x-small")
right.axhline(0.2, color="grey", linestyle=":", linewidth=1)
right.set(xlabel="temperature $T$", ylabel="relative distance from the hot limit")
right.legend(fontsize="x-small")
show(
    figure,
    label="a5",
    caption="Left: norm of the soft term's gradient with respect to the logits over that of the hard one, median over positions. With $T^2$ it stays within 20 % of its value at $T=1$ "
    + "; ".join(
        f"from $T={low:.2f}$ to ${high:.2f}$ ({name})"
        for name, (low, high) in flat.items()
    )
    + r". Right: distance of $T^2$ times the gradient from $(\tilde z-\tilde t)/N$; it falls below a fifth (dotted) at "
    + " and ".join(f"$T={T:.0f}$ ({name})" for name, T in reached.items())
    + " for the vector as a whole, and for the entries of the teacher's ten likeliest tokens at "
    + " and ".join(f"$T={T:.0f}$ ({name})" for name, T in late.items())
    + ".",
    alt="Left: soft to hard gradient ratio against temperature, solid curves with T squared, dotted without; by what factors they move the line below the figure says. "
    "Right: relative distance from the hot limit against temperature, falling, solid for all tokens, dashed for the first ten.",
)


# %% tags=["hide-input"]
def over(values):
    """The largest over the smallest value from T = 1 to the hottest temperature."""
    between = at(values, np.array([1.0, *fine[(fine > 1) & (fine < hottest)], hottest]))
    return between.max() / between.min()


moved = {name: over(c["ratio"]) for name, c in curves.items()}
bare = {name: over(c["ratio"] / grid**2) for name, c in curves.items()}
display(
    Markdown(
        f"From $T=1$ to {hottest:g} the ratio of soft to hard gradient moves by a factor of "
        + ", ".join(
            f"{moved[name]:.1f} with $T^2$, to {at(curves[name]['ratio'], hottest):.3f} from {at(curves[name]['ratio'], 1):.3f}, and {bare[name]:.0f} without ({name})"
            for name in curves
        )
        + ". Its norm is within 20 % of its hot limit from "
        + " and ".join(f"$T={near[name]:.0f}$ ({name})" for name in curves)
        + " on."
    )
)
MOVES = Quantity(
    f"factor by which soft : hard moves from T = 1 to {hottest:g}",
    digits=1,
    better="lower",
)
for name in curves:
    kept, lost = f"with $T^2$ ({name} student)", "without"
    by_how = {kept: moved[name], lost: bare[name]}
    display(above(kept, 1.2, by_how, MOVES), above(lost, kept, by_how, MOVES))

# %% [markdown]
# The right panel has two sets of curves, and with a large $N$ they come apart. The vector as a whole is mostly tail: thousands of entries with moderate logits, for which the limit is soon good. The few tokens that
# the text is about get there last. A probability that is not small among many classes takes a logit far above the mean. Centred logits have mean zero, so by Jensen's inequality the mean of $e^{\tilde t}$ is at least one, and
#
# $$p_{\max} = \frac{e^{\tilde t_{\max}}}{N\,\overline{e^{\tilde t}}} \le \frac{e^{\tilde t_{\max}}}{N}
# \qquad\Longrightarrow\qquad \tilde t_{\max} \ge \log(N\,p_{\max}).$$
#
# For such a token the expansion needs $\tilde t_{\max}/T$ to be small. Relative to the first order, the second is half of $\tilde t_{\max}/T$; for that to be a tenth, $T \ge 5\log(N p_{\max})$. It grows with $N$, but only as its logarithm.

# %%
centred_top = t.max(1) - t.mean(1)
bound = np.log(N * reference.softmax(t).max(1))
assert (centred_top >= bound).all()
needed = {size: 5 * math.log(size * 0.5) for size in (100, N, 128_000)}

# %% tags=["hide-input"]
display(
    Markdown(
        f"The largest centred logit has a median of {np.median(centred_top):.1f}, the bound one of {np.median(bound):.1f}. Where half of the probability is on one token, the least temperature $5\\log(N/2)$ is "
        + ", ".join(f"{T:.0f} for $N={size:,}$" for size, T in needed.items())
        + "."
    )
)
figure, axis = plt.subplots(figsize=(6.2, 3.1))
for name, c in curves.items():
    axis.plot(grid, c["tail"], color=hue[name], label=name)
axis.axhline(1 - 100 / N, color="grey", linestyle=":", linewidth=1)
axis.set(
    xscale="log",
    xlim=(0.5, 100),
    ylim=(0, 1.02),
    xlabel="temperature $T$",
    ylabel="share of the tail",
)
axis.legend(fontsize="small", loc="lower right")
tail_share = {T: at(curves["trained"]["tail"], T) for T in heats}
show(
    figure,
    label="attention",
    caption=r"What the gradient is about: the part of $\sum_i |q_i-p_i|$ that lies beyond the teacher's rank 100, median over positions. For the trained student "
    + ", ".join(f"{v:.0%} at $T={T:g}$" for T, v in tail_share.items())
    + "; the dotted line is the tail's share of the vocabulary.",
    alt="Share of the gradient in the tail against temperature, a curve for each student, with the tail's share of the vocabulary as a dotted line.",
)

# %% [markdown]
# Where its curve is flat, $T^2$ has mended the length of the gradient. It does nothing about what the gradient is *about*, and this is where a large $N$ differs from a small one. There is a lot of tail.
#
# ## The same information in more classes
#
# How does all this depend on $N$ itself? Two real vocabularies differ in too many ways to tell. But there is an exact construction. Split every token into $m$ synonyms that are equally likely, in the eyes of both teacher and student: logits $t_i - \log m$ and $z_i-\log m$, each $m$ times. Nobody has learned anything; $N$ has become $mN$. A shift by $\log m$ is nothing to a softmax, so at every $T$ each copy has $p_i/m$ and $q_i/m$, and
#
# $$D_{\mathrm{KL}} = \sum_i m\,\frac{p_i}{m}\log\frac{p_i}{q_i} \quad\text{is unchanged,}\qquad
# \frac{\partial D_{\mathrm{KL}}}{\partial z_{ic}} = \frac{q_i-p_i}{mT}, \qquad
# \Bigl\lVert\frac{\partial D_{\mathrm{KL}}}{\partial z}\Bigr\rVert = \frac{1}{\sqrt m}\,\Bigl\lVert\cdot\Bigr\rVert_{m=1}.$$
#
# The loss is the same, and each entry of its gradient is $m$ times smaller: the $1/N$ of the hot limit, here at any temperature. But logits are not parameters. They come from a head, $z = Wh$. Its rows share out the gradient just as the logits do. The hidden state does not: it feels all the rows together,
# $\partial/\partial h = \sum_{i,c} w_i\,(q_i-p_i)/mT$, and the sum over the copies puts the $m$ back.

# %% tags=["hide-input"]
with Taps(teacher, ["norm"]) as taps, torch.no_grad():
    looked = next(data.validation.batches(2))[0].to(device)
    _, hidden = taps(looked)
states = hidden["norm"].flatten(0, 1)[::16][:8].double().cpu()
m_each = sorted({1, *copies})
W_teacher = teacher.embedding.weight.detach().double().cpu()
W_student = W_teacher + 0.3 * W_teacher.std() * torch.randn(
    W_teacher.shape, generator=torch.Generator().manual_seed(0), dtype=torch.double
)

# %%
exact = {}
for T in (1.0, hottest):
    for m in m_each:
        h = states.clone().requires_grad_()
        W = W_student.repeat_interleave(m, 0).requires_grad_()
        z = h @ W.T - math.log(m)
        target = (states @ W_teacher.T).repeat_interleave(m, 1) - math.log(m)
        loss = forward_kl(z, target, temperature=T)
        by_z, by_h, by_W = torch.autograd.grad(loss, [z, h, W])
        exact[T, m] = {
            "KL": loss.item(),
            "largest entry by the logits": by_z.abs().max().item(),
            "by the logits": by_z.norm().item(),
            "by the head": by_W.norm().item(),
            "by the hidden states": by_h.norm().item(),
        }

# %% tags=["hide-input"]
law = {
    "KL": 0,
    "largest entry by the logits": 1,
    "by the logits": 0.5,
    "by the head": 0.5,
    "by the hidden states": 0,
}
for (T, m), found in exact.items():
    for what, power in law.items():
        assert math.isclose(found[what] * m**power, exact[T, 1][what], rel_tol=1e-9), (
            what
        )
largest_N = m_each[-1] * N

figure, axis = plt.subplots(figsize=(6.6, 3.5))
sizes = [m * N for m in m_each]
looks = {
    "KL": (ORANGE, "-", 7, 0),
    "by the hidden states": (BLUE, "o--", 1.5, 5),
    "by the logits": (GREEN, "-", 7, 0),
    "by the head": (PURPLE, "o--", 1.5, 5),
    "largest entry by the logits": (VERMILION, "d-", 1.5, 6),
}
for what, (colour, style, wide, size) in looks.items():
    values = [exact[1.0, m][what] / exact[1.0, 1][what] for m in m_each]
    title = what if what == "KL" or "largest" in what else f"gradient {what}"
    axis.loglog(
        sizes, values, style, color=colour, label=title, linewidth=wide, markersize=size
    )
axis.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=20)
axis.minorticks_off()
axis.set(
    xlabel="number of classes",
    ylabel=f"over that at {N:,}",
    ylim=(0.6 / m_each[-1], 1.6),
)
axis.legend(fontsize="x-small", loc="lower left")
show(
    figure,
    label="synonyms",
    caption=f"The same information in {N:,} to {largest_N:,} classes, $T=1$ (at $T={hottest:g}$ all ratios are the same, by the cell above). Of two curves that coincide one is broad and the other dashed upon it. The loss and the gradient by the hidden states do not know how many classes there are. "
    r"Entries of the gradient with respect to the logits fall as $1/N$, its norm and that of the head's gradient as $1/\sqrt N$.",
    alt="Log-log plot against the number of classes: two flat lines at one, two that fall as one over the square root of N, one as one over N.",
)

# %% [markdown]
# So $1/N$ is not a flaw and needs no repair. It is how a fixed amount of gradient is shared among more classes. Only the last layer feels it; whatever lies below the head learns as before. Multiply the loss by $N$, and the *body* of the network gets a gradient $N$ times too large, in order to mend something
# that it never had. A step of SGD on the head is slower in a larger vocabulary; an optimiser that divides every entry of the gradient by its own size, as Adam does, divides the factor out. <!-- by definition -->
#
# Now split *unequally*: real vocabularies do not grow everywhere at once. They grow at the rare end. Let token $i$ become $m_i$ synonyms. At temperature $T$ all its copies together have
#
# $$p_i(T) \;\propto\; m_i \Bigl(\frac{e^{t_i}}{m_i}\Bigr)^{1/T} = m_i^{\,1-1/T}\, e^{t_i/T}.$$
#
# At $T=1$ the $m_i$ is gone. At any other temperature it is not. In the hot limit a token counts for the number of pieces it was cut into, and for nothing else.

# %%
m_of = torch.where(frequency < frequency.median(), 16, 1)
z, target = (torch.from_numpy(x[:64]) for x in (students["trained"], t))
finer = {}
for T in heats:
    plain = T**2 * forward_kl(z, target, temperature=T).item()
    split = [(x - m_of.log()).repeat_interleave(m_of, 1) for x in (z, target)]
    fine = T**2 * forward_kl(*split, temperature=T).item()
    rare = soften(target, T)[:, m_of > 1].sum(1).mean().item()
    rare_fine = soften(split[1], T)[:, m_of.repeat_interleave(m_of) > 1].sum(1).mean()
    finer[T] = (plain, fine, rare, rare_fine.item())
assert math.isclose(*finer[1.0][:2], rel_tol=1e-6)

# %% tags=["hide-input"]
table(
    [
        "$T$",
        f"$T^2$KL, $N={N:,}$",
        f"$T^2$KL, $N={m_of.sum():,}$",
        "rare half's probability",
        "after the split",
    ],
    [
        [f"{T:g}", f"{a:.3f}", f"{b:.3f}", f"{c:.1%}", f"{d:.1%}"]
        for T, (a, b, c, d) in finer.items()
    ],
    caption="The rarer half of the tokens split into 16 synonyms each: "
    "nothing is known that was not known before. At $T=1$ the loss is the same, as the cell above asserts.",
)

# %% [markdown]
# This is the first reason for $T=1$, and it would hold for a teacher whose tail is perfect. At $T=1$ the KL compares two beliefs about the *text*, and does not change when a token is split or synonyms are merged, as long as both models share a token's probability among its pieces alike. (Where they do not, the KL of the pieces is larger, by what
# the two disagree about the pieces.) <!-- by definition --> At other temperatures it compares two weightings of *this vocabulary*, and how finely the vocabulary is
# cut at its rare end becomes a weight in the loss. For images the classes are given, and this goes unnoticed.
#
# ## The loss times N, in a network with a head
#
# {doc}`04_the_one_over_n_question` gave the verdict on claim B10 with linear maps and known teachers. Here the teacher is the language model's own head on its own hidden states. The student has a body and a head, as a network has: a narrow linear layer, then a head over all tokens. Its loss is taken straight
# from the hidden states by `HeadLogits`; the objective is `ForwardKL()` or `N * ForwardKL()`. One arm gives the head alone a larger rate, which is what the last section would advise. <!-- by definition --> The last one clips the gradient's norm, as recipes for language models do.


# %%
class Narrow(nn.Module):
    """A body and a head over all tokens, which starts at zero.

    A factor in front of the head's weight raises its rate under SGD by the factor's
    square, and changes nothing else.
    """

    def __init__(self, width, head_rate=1.0, inner=48):
        super().__init__()
        self.factor = head_rate**0.5
        self.body, self.head = (
            nn.Linear(width, inner, bias=False),
            nn.Linear(inner, N, bias=False),
        )
        nn.init.zeros_(self.head.weight)

    def forward(self, x):
        return HeadLogits(self.body(x), self.factor * self.head.weight)


# %% tags=["hide-input"]
class OwnHead(nn.Module):
    """The teacher from its last hidden states on."""

    def __init__(self, weight):
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, x):
        return HeadLogits(x, self.weight)


@torch.no_grad()
def states_of(tokens):
    with Taps(teacher, ["norm"]) as taps:
        found = [taps(x.to(device))[1]["norm"] for x, _, _ in tokens.batches(8)]
    return torch.cat(found).flatten(0, 1).float().cpu()


learners_read = max(learned // 20, 1)
# To learn from; to choose the rates on; to report.
seen, chosen_on, unseen = (
    states_of(tokens)
    for tokens in (data.train.spread(learners_read), few[0::4], few[2::4])
)
examples = Examples(seen, torch.zeros(len(seen), dtype=torch.long))
upper = OwnHead(teacher.embedding.weight.detach().clone())


# %%
def distilled(weight, optimizer, rate, seed, clip=0.0, head_rate=1.0, text=unseen):
    """KL from the teacher on a text that was not learned from, after two passes;
    infinite if the training did not stay finite.
    """
    torch.manual_seed(seed)
    pupil = Narrow(seen.shape[1], head_rate)
    recipe = Recipe(
        epochs=2, batch_size=128, optimizer=optimizer, learning_rate=rate, momentum=0.0,
        schedule="constant", weight_decay=0.0, augment=False, max_gradient_norm=clip,
        seed=seed,
    )  # fmt: skip
    try:
        fit(
            pupil,
            weight * ForwardKL(),
            train=examples,
            teacher=upper,
            recipe=recipe,
            device=device,
        )
        with torch.no_grad():
            z = pupil(text.to(device)).dense().cpu()
            t = text @ upper.weight.cpu().T
            return forward_kl(z, t).item() if torch.isfinite(z).all() else math.inf
    except FloatingPointError:
        return math.inf


# %% tags=["hide-input"]
TRIED = {
    "SGD": [(r, 1.0) for r in (0.1, 0.3, 1.0)],
    "SGD, head's own rate": [(0.03, 300.0), (0.01, 1000.0), (0.003, 3000.0)],
    "AdamW": [(r, 1.0) for r in (0.003, 0.01, 0.03)],
}
best, lines = {}, []
for name, tried in TRIED.items():
    rule = name.split(",")[0].lower()
    found = {
        (rate, k): distilled(
            1.0, rule, rate, seed=max(seeds) + 100, head_rate=k, text=chosen_on
        )
        for rate, k in tried
    }
    best[name] = min(found, key=found.get)
    for (rate, k), v in found.items():
        chosen = "chosen" if (rate, k) == best[name] else ""
        lines.append([name, f"{rate:g}", f"{k * rate:g}", f"{v:.4g}", chosen])
display(
    table(
        ["optimiser", "rate", "of the head", "KL from the teacher", ""],
        lines,
        caption="The rates that were tried for the plain loss, by one other seed, and KL in nats a token on other text.",
    )
)

# %%
(slow, _), (body, k), (adam, _) = best.values()
arms = {
    "SGD": {"weight": 1.0, "optimizer": "sgd", "rate": slow},
    "SGD, ×N, same rate": {"weight": float(N), "optimizer": "sgd", "rate": slow},
    "SGD, ×N, rate/N": {"weight": float(N), "optimizer": "sgd", "rate": slow / N},
    f"SGD, head ×{k:g}": {
        "weight": 1.0,
        "optimizer": "sgd",
        "rate": body,
        "head_rate": k,
    },
    "AdamW": {"weight": 1.0, "optimizer": "adamw", "rate": adam},
    "AdamW, ×N": {"weight": float(N), "optimizer": "adamw", "rate": adam},
    "AdamW, ×N, clipped": {
        "weight": float(N),
        "optimizer": "adamw",
        "rate": adam,
        "clip": 1.0,
    },
}

# %% tags=["hide-input"]
# the last is the first again
repeated = dict.fromkeys(arms, seeds) | {"SGD, ×N, rate/N": seeds[:1]}
ended = {
    name: [distilled(seed=seed, **how) for seed in repeated[name]]
    for name, how in arms.items()
}
target = unseen @ upper.weight.cpu().T
at_zero = forward_kl(torch.zeros_like(target), target).item()

rows = {name: [v for v in values if math.isfinite(v)] for name, values in ended.items()}
titles = {
    name: name
    if len(rows[name]) == len(repeated[name])
    else f"{name}\n({len(repeated[name]) - len(rows[name])} of {len(repeated[name])} not finite)"
    for name in rows
}
figure, axis = plt.subplots(figsize=(6.8, 3.5))
dots(
    axis,
    {titles[name]: v for name, v in rows.items()},
    {
        titles[name]: (np.mean(v), min(v), max(v)) if v else None
        for name, v in rows.items()
    },
)
axis.axvline(at_zero, color="grey", linestyle=":", linewidth=1)
axis.set(xscale="log", xlabel="KL from the teacher on unseen text (nats a token)")
axis.set_xticks([0.2, 0.5, 1, 2, 5], ["0.2", "0.5", "1", "2", "5"])
axis.minorticks_off()
show(
    figure,
    label="times-n-live",
    caption=f"Loss times $N={N:,}$, student with a body and a head, {len(seeds)} seed{'s' * (len(seeds) > 1)} (of rate/N, the same run again, one); one dot per seed, a bar from the lowest to the highest. Rates were chosen by one other seed on other text, from {len(TRIED['SGD'])} a family, for the plain loss. Dotted: the student before it has learned anything.",
    alt="Dots with ranges on a logarithmic axis of KL, one row per arm; where runs are not finite, the row's name says how many.",
)

# %% tags=["hide-input"]
same = abs(ended["SGD, ×N, rate/N"][0] / ended["SGD"][0] - 1)
head = f"SGD, head ×{k:g}"
broken = [
    "not finite" if math.isinf(v) else f"{v:.3g}" for v in ended["SGD, ×N, same rate"]
]
wreck = (
    f"none of {len(broken)} runs stays finite"
    if all(math.isinf(v) for v in ended["SGD, ×N, same rate"])
    else f"KL after it {', '.join(broken)}, before it {at_zero:.2f}"
)
assert same < 0.02  # N is a power of two: the same run
display(Markdown(f"SGD on $N$ times the loss, at the rate of the plain loss: {wreck}."))
kl = Quantity("KL from the teacher on unseen text", "nats a token", better="lower")
finite = {name: values for name, values in rows.items() if len(values) == len(seeds)}
for name in ("AdamW, ×N", "AdamW, ×N, clipped"):
    if {name, "AdamW"} <= set(finite):
        display(within(name, "AdamW", 0.05, finite, kl))
if {head, "SGD", "AdamW"} <= set(finite):
    display(below(head, "SGD", finite, kl), above(head, "AdamW", finite, kl))

# %% [markdown]
# The picture of {doc}`04_the_one_over_n_question` stands: what explodes is a step size, and at rate$/N$ there is the same run again ($N$ is a power of two here, so that even rounding cannot tell them apart). What a network adds is the *place*. A factor on the loss cannot give the head a
# larger step without giving it to the body, which never had the $1/N$. Two rates can. An optimiser that scales each
# entry does it unasked, and does more: it gives every row of the head, and every entry of the body, a step of its own.
# How much of its lead comes from which is not separated here, and the rates were tried in coarse steps.
#
# ## The records
#
# The plan `language-small` asks whether any of this matters for recorded students: a small GPT with the book's teacher, a fixed number of tokens of text, and three paired seeds. The plan `language` asks the same on a GPU. The control is the arm (way to train) `kd`: one part labels, nine parts $D_{\mathrm{KL}}$ at $T=1$. Below zero is better in both panels: fewer bits per byte of test text, less KL from the teacher. <!-- by definition --> Few seeds make wide intervals, and of many comparisons some exclude zero by chance.

# %% tags=["hide-input"]
small, large = results("language-small"), results("language")
NAMES = {
    "kd": "kd ($T=1$, 0.9)",
    "T2": "$T=2$",
    "T4": "$T=4$",
    "alone": "0 (labels alone)",
    "soft0.5": "0.5",
    "soft1": "1 (teacher alone)",
    "soft-falling": "1 falling to 0",
    "timesN": "×N, clipped AdamW",
}
HEAT, WEIGHT = ("T2", "T4"), ("alone", "soft0.5", "soft1", "soft-falling")


def against(study, arms, control, label, what):
    """Differences from the control, seed by seed, in bits per byte and in KL from the teacher; intervals as the sentences have them."""
    arms = [
        a for a in arms if study.difference(a, control, "bits_per_byte") is not None
    ]
    bits, kl = (
        study.against(control, measure, arms, correction=None)
        for measure in ("bits_per_byte", "kl_to_teacher")
    )
    figure, panels = plt.subplots(
        1, 2, figsize=(8.0, 0.5 * len(arms) + 1.4), sharey=True
    )
    measures = {"bits_per_byte": bits, "kl_to_teacher": kl}
    for panel, (measure, intervals) in zip(panels, measures.items(), strict=True):
        rows = {
            NAMES[name]: list(study.differences(name, control, measure).values())
            for name in arms
        }
        panel.axvline(0, color="grey", linewidth=1)
        dots(panel, rows, {NAMES[name]: d for name, d in intervals.items()})
    panels[0].set_xlabel(f"bits per byte, minus {control}")
    panels[1].set_xlabel(f"KL from the teacher, minus {control}")
    mean = study.mean(control, "bits_per_byte")
    apart = sum(d.excludes_zero for d in bits.values())
    said = "; ".join(f"{NAMES[a]} {d:+.4f}" for a, d in bits.items())
    return show(
        figure,
        label=f"{label}-{study.plan}",
        caption=f"{what[0].upper()}{what[1:]} (plan {study.plan}), against {control}, which needs {mean.mean:.3f} bits per byte of the test text. One dot per seed, means with their 95 % intervals ({listed(sorted({d.basis for d in bits.values()}))}). Bits per byte: {said}. Intervals that leave out zero: {apart} of {len(arms)}.",
        alt=f"Dots with intervals of differences from {control}, in bits per byte and in KL from the teacher, for: {', '.join(arms)}.",
    )


def section(arms, control, label, what):
    """The figure of each plan that has records for it, and a slot for what is missing of the small one."""
    wanted = [control, *arms]
    display(*slots(small, wanted, what))
    for study in (small, large):
        if any(study.difference(a, control, "bits_per_byte") is not None for a in arms):
            display(
                against(study, arms, control, label, what),
                source_note(study.all(wanted)),
            )


# %% [markdown]
# ### The temperature
#
# Two questions in one figure: does heating cost bits per byte, as the tail's mass suggests? And is a hot student still closer to its teacher at $T=1$, where it is used? The weight is 0.9 at every temperature, so that the temperature changes two things: what the target stresses, and, as far as $T^2$ does not keep it constant (see the figure on A5), the balance between teacher and labels. <!-- by definition -->

# %% tags=["hide-input"]
section(HEAT, "kd", "heat", "the temperature")
for study in (small, large):
    if study.complete(["kd", *HEAT]):
        for measure in ("bits_per_byte", "kl_to_teacher"):
            display(*(above(arm, "kd", study, measure, names=NAMES) for arm in HEAT))

# %% [markdown]
# ### The weight
#
# Article B's claim B2: the weight of the soft loss is “typically set very high, often 0.9 to 0.99”, and in language models 1 “during the initial stages”. For images it was asked in {doc}`13_temperature_and_weight`. For tokens: no teacher at all, an even split, the default 0.9, the teacher alone, and a
# weight that falls from one to zero in the course of training, which is one reading of “initial stages”: the article does not say what comes after them.

# %% tags=["hide-input"]
section(WEIGHT, "kd", "weight", "the weight of the soft targets")
WEIGHED = NAMES | {
    "kd": "0.9",
    "alone": "labels alone",
    "soft0.5": "an even split",
    "soft1": "the teacher alone",
    "soft-falling": "a weight falling from one to zero",
}
for study in (small, large):
    if study.complete(["kd", *WEIGHT]):
        display(
            below("kd", ["alone", "soft0.5"], study, "bits_per_byte", names=WEIGHED),
            *(
                undecided(arm, "kd", 0.01, study, "bits_per_byte", names=WEIGHED)
                for arm in ("soft1", "soft-falling")
            ),
        )

# %% [markdown]
# ### N times the loss
#
# The arm `timesN` is `soft1` with the loss multiplied by the size of the vocabulary, at the same learning rate. The recipe is AdamW with clipping. If explosion were a property of the loss, it would show here; by the sections above nothing should happen except that every step is clipped. The margin is 0.05 bits per byte, five times that of the weights, since the question is about an explosion and not a small cost. <!-- by definition -->

# %% tags=["hide-input"]
section(["timesN"], "soft1", "times-n", "N times the loss, against soft targets alone")
for study in (small, large):
    if study.complete(["timesN", "soft1"]):
        display(within("timesN", "soft1", 0.05, study, "bits_per_byte", names=NAMES))
used = ["kd", *HEAT, *WEIGHT, "timesN"]
display(
    *slots(
        large, used, "all questions of this section with a teacher of 89 M parameters"
    )
)

# %% tags=["hide-input"]
sentences = [
    f"Half of the positions have fewer than {quartiles[1]:.0f} tokens that compete, of {N:,}. Beyond rank 100 the truth lies in {tail.float().mean():.0%} of them; the teacher gives {predicted_tail[1.0]:.0%} there at $T=1$, and {predicted_tail[hottest]:.0%} at $T={hottest:g}$.",
    f"Splitting every token into {m_each[-1]} synonyms leaves the loss at $T=1$ as it is, divides the head's gradient by {exact[1.0, 1]['by the head'] / exact[1.0, m_each[-1]]['by the head']:.1f} and that by the hidden states by {exact[1.0, 1]['by the hidden states'] / exact[1.0, m_each[-1]]['by the hidden states']:.1f}.",
    f"SGD on $N$ times the loss, at the rate of the plain loss: {wreck} (two passes over {len(seen):,} positions).",
]
if small.complete(["kd", *HEAT]):
    heated = {arm: small.difference(arm, "kd", "bits_per_byte") for arm in HEAT}
    sentences.append(
        "For a small language model, against $T=1$, "
        + "; ".join(
            f"{NAMES[arm]} {moves(d, QUANTITIES['bits_per_byte'])}"
            for arm, d in heated.items()
        )
        + f" ({tokens_read(small.specs[-1]):.1f} million tokens, n = {heated['T2'].n} paired seeds)."
    )
findings.show(*sentences)

# %% [markdown]
# ## Limits
#
# - One teacher, and a small one. A larger model that has read more may have another tail; how its mass beyond rank 100 moves with $T$ has to be measured again, and takes one pass over a text.
# - Calibration was measured on text by other authors. The intervals take blocks as independent, though some blocks come from one book; the counts of single entries take hits as independent.
# - The book's GPT has one weight for head and input embedding. What is said of the head alone is of a head alone, as in the live experiment.
# - Synonyms are an exact construction, not a description of real vocabularies: larger ones have longer tokens, which changes the text's length in steps and what a step is about. It says what $1/N$ does *alone*.
# - The curves by temperature are medians over positions, by the logits of one young student and one untrained; norms, not directions. The body of the live experiment is a single linear layer.
# - The recorded runs are short, with one learning rate for all arms. It was tuned for the student alone, and not anew for each temperature; nor was the weight, so that part of what heating costs may be the balance's.
#
# ## To take away
#
# **Formulae.** Bits per byte are the summed nats of a text, divided by $\log 2$ and by its bytes. Of $m$ equal synonyms each has the gradient $\frac{q_i-p_i}{mT}$; the sum over them does not depend on $m$. Heated, a token that is split into $m_i$ counts $m_i^{1-1/T}$ times.
#
# **What to set.** $T=1$ for tokens: `ForwardKL()` with its default temperature, beside `CrossEntropy()`. `model.fused = True`, so that the loss is taken from the hidden states.
#
# **What to watch for.** Compare models per byte and not per token. Do not multiply the loss by $N$: the body of the network never had the $1/N$. If the head is too slow under SGD, give it a rate of its own, or use AdamW.
#
# ## Exercises
#
# ```{exercise}
# :label: ex-two-vocabularies
#
# A model with short tokens (3.2 bytes each, on average) has a cross-entropy of 2.6 nats a token, one with long tokens (4.4 bytes) has 3.4. Which is better? What must the second one reach, per token, to be equal?
# ```
#
# ```{solution} ex-two-vocabularies
# :class: dropdown
#
# `2.6 / math.log(2) / 3.2` is 1.17 bits per byte, `3.4 / math.log(2) / 4.4` is 1.11: the second is better, although it is worse per token. They are equal where it has $2.6\cdot 4.4/3.2 = 3.575$ nats a token.
# ```
#
# ```{exercise}
# :label: ex-padding
#
# Vocabularies are often padded to a round size by tokens that no text contains. Give teacher and student `500` more logits, drawn by `torch.randn` around $-12$ below the largest logit, each for itself. What does that change in $T^2D_{\mathrm{KL}}$ at each of the chapter's temperatures? Which
# function of `kdlab.objectives` mends it?
# ```
#
# ````{solution} ex-padding
# :class: dropdown
#
# ```python
# from kdlab.objectives import restrict_vocabulary
#
# z, x = torch.from_numpy(students["trained"]), torch.from_numpy(t)
# pad = lambda x: torch.cat([x, x.max(1, keepdim=True).values - 12 + torch.randn(len(x), 500)], 1)
# padded_z, padded_x = pad(z), pad(x)
# for T in heats:
#     loss = lambda a, b: T**2 * forward_kl(a, b, temperature=T).item()
#     back = loss(*(restrict_vocabulary(one, torch.arange(N)) for one in (padded_z, padded_x)))
#     print(f"T = {T:g}: {loss(z, x):.4f}, padded {loss(padded_z, padded_x):.4f}, restricted {back:.4f}")
# ```
#
# The padding is drawn so far below that at $T=1$ it has next to no probability. Heat gives it some, in both distributions, and then its random logits are being matched.
# `restrict_vocabulary` gives back the old value exactly.
# ````
#
# ```{exercise}
# :label: ex-head-rate
#
# A token is split into $m$ synonyms with equal rows in the head. By how much does one step of SGD on the head change the token's logit, compared with $m=1$? And one step on the hidden state's side? Which single change of the head's learning rate makes both as before?
# ```
#
# ```{solution} ex-head-rate
# :class: dropdown
#
# Each copy's row gets the gradient $(q_i-p_i)h^\top/m$, so that its logit moves $m$ times less, and with it the logarithm of the token's total probability. The hidden state's gradient is unchanged (the flat line of the figure on synonyms), so what lies below moves as before. A learning rate $m$ times larger for the head
# *alone* restores the old step. $N$ times the loss is the wrong tool: it multiplies both.
# ```
