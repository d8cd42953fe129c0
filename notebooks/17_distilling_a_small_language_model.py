# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Distilling a small language model
#
# A language model makes one classification at every token, so everything in this book so far applies to it. Three things are new.
# Every token has thousands of classes, so the teacher's forward pass becomes a large part of the cost. No model can always be right about the next word,
# so the useful scale is not accuracy but a *code length*. And the model writes: in use, the student reads what it has written itself, which no
# training text ever showed it.
#
# **At the end you will know** what a number of bits per byte means; how much of the distance between a
# student and its teacher distillation closes, at equal tokens and at equal arithmetic; what other divergences, hidden states and attention add; and which text belongs to which direction of KL.
#
# *Needs: one CPU core, and about a minute for the live part. The recorded runs took longer; each section says where.*

# %% tags=["parameters"]
profile: str = "cpu"
blocks: int = 96  # of test text, on which models and programs are compared
seeds: list[int] = [0, 1, 2]  # of the students that are trained here
epochs: int = 4  # for which they are trained
read: int = 16  # blocks that each reads in an epoch, where tokens are equal
continuations: int = 24  # of prompts, by the stored students and their teacher

# %% tags=["hide-input"]
import bz2
import gzip
import html
import lzma
import math
import time
from itertools import pairwise, product

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown, display
from matplotlib.ticker import LogLocator

from kdlab import models
from kdlab.figures import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    Shown,
    dots,
    sentence,
    show,
    table,
    use_style,
)
from kdlab.language import generate, load_text_data, parse
from kdlab.language.text import written
from kdlab.models import (
    count_parameters,
    gpt_64x2,
    gpt_96x3,
    gpt_224x4,
    multiply_adds,
)
from kdlab.objectives import CrossEntropy, ForwardKL, forward_kl, reverse_kl
from kdlab.study import (
    book_language_teacher,
    mean_interval,
    paired_difference,
    results,
)
from kdlab.study.answers import leads_by_length
from kdlab.study.display import (
    Findings,
    arms_shown,
    called,
    data_note,
    device_for,
    not_yet_run,
    slots,
    source_note,
    tokens_read,
    verdict,
)
from kdlab.study.evidence import QUANTITIES, Among, Quantity, listed
from kdlab.study.findings import language as language_found
from kdlab.study.findings import moves
from kdlab.study.parameters import ParameterError
from kdlab.study.records import evidence_folder
from kdlab.study.run import stored_student
from kdlab.study.statements import above, below, leads, undecided, within
from kdlab.study.statistics import smallest_p, summary
from kdlab.study.when_it_pays import LENGTHS, STUDENTS, arm_name
from kdlab.training import (
    Learner,
    Recipe,
    fast_precision,
    fit_together,
    measure_tokens,
)

use_style()
device = device_for(profile)
if continuations < 2 or read < 8:
    raise ParameterError(
        "continuations must be 2 or more, over which intervals are taken, and read 8 or more, so that equal compute is a batch."
    )
data = load_text_data("book-openings-4096-256")
tokeniser = data.tokeniser
data_note(data)

# %% tags=["hide-input"]
findings = Findings()

# %% [markdown]
# ## The text
#
# The corpus is the beginning of each of several hundred English books that are in the public domain. It is split *by author*: no author is in two splits. That is a property
# of the data set, made when it was put together; nothing here could check it, since the text does not say who wrote it. It matters. A model that has read one novel of an
# author has an advantage with the next, and a test that contains it would measure memory as well as language.
#
# The tokeniser is byte-level byte-pair encoding, learned from the training books alone. Here is a passage as the models see it.

# %% tags=["hide-input"]
passage = next(data.validation.batches(len(data.validation)))[0]
passage = passage[len(passage) // 3]
begins = [
    k for k, token in enumerate(passage) if tokeniser.decode([token])[:1].isspace()
]
# whole words
passage = passage[begins[0] : max(k for k in begins if k <= begins[0] + 110)]
shades = ("rgba(0,114,178,0.20)", "rgba(230,159,0,0.24)")


def pieces(tokens):
    """The tokens one by one, but together those that hold the bytes of one character."""
    held = []
    for token in tokens:
        held.append(token)
        if "\ufffd" not in tokeniser.decode(held):
            yield held
            held = []


def marked_up(tokens, shade):
    text = html.escape(tokeniser.decode(tokens)).replace("\n", "⏎")
    line = "" if len(tokens) == 1 else ";text-decoration:underline"
    title = ("token " if len(tokens) == 1 else "tokens ") + ", ".join(map(str, tokens))
    return f'<span title="{title}" style="background:{shade};white-space:pre-wrap{line}">{text}</span>'


shown = list(pieces(passage.tolist()))
marked = "".join(marked_up(piece, shades[k % 2]) for k, piece in enumerate(shown))
joined = (
    " Underlined: a character whose bytes fall into several tokens, which are shown as one."
    if len(shown) < len(passage)
    else ""
)
in_bytes = data.validation.token_bytes[passage].sum().item()
Shown(
    f'<figure class="kd-figure" id="fig-tokens"><div style="line-height:1.9">{marked}</div><figcaption>A passage of the validation text in {len(passage)} tokens, which '
    f"alternate in colour; ⏎ is the end of a line, and a space belongs to the word that follows. Common words are one token, rare ones several: {in_bytes / len(passage):.1f} bytes a token here.{joined}</figcaption></figure>"
)

# %% tags=["hide-input"]
splits = {"train": data.train, "validation": data.validation, "test": data.test}
table(
    ["split", "documents", "tokens", f"blocks of {data.train.context} in use"],
    [
        # <|endoftext|> is token 0
        [name, f"{(split.labels == 0).sum().item():,}", f"{len(split.labels):,}", f"{len(split):,}"]
        for name, split in splits.items()
    ],
    caption="How much text there is.",
)  # fmt: skip

# %% [markdown]
# ## The models
#
# Teacher and students are of one kind: decoder-only transformers whose input and output embeddings are one matrix. They differ in width, layers and heads. This is all that it takes to make one:

# %%
made = {
    "student, small": gpt_64x2(data.num_classes),
    "student": gpt_96x3(data.num_classes),
    "teacher": gpt_224x4(data.num_classes),
}


# %% [markdown]
# What does one token cost? Each entry of each weight matrix is one multiply-add (the embedding too, once, since it is the output layer). To this, attention adds its two products with all
# tokens before, on average half the context. <!-- by definition --> Backward costs twice the forward pass. <!-- by definition --> So a step of the student is three forward passes of its own; with a teacher there is one of the teacher's as well.


# %%
def per_token(student, teacher=None, *, context=256):
    """Multiply-adds of one training step, a token."""
    looked = 0 if teacher is None else multiply_adds(teacher, context)
    return 3 * multiply_adds(student, context) + looked


# %% tags=["hide-input"]
table(
    ["", "parameters", "heads", "forward pass", "step alone", "step with teacher", "ratio"],
    [
        [
            name,
            f"{count_parameters(model):,}",
            model.heads,
            f"{multiply_adds(model, 256) / 1e6:.2f}",
            f"{per_token(model) / 1e6:.2f}",
            f"{per_token(model, made['teacher']) / 1e6:.2f}" if name != "teacher" else "–",
            f"{per_token(model, made['teacher']) / per_token(model):.1f}" if name != "teacher" else "–",
        ]
        for name, model in made.items()
    ],
    caption="What there is, and what it costs: millions of multiply-adds a token. The last column is what distillation costs in tokens: how many could be read alone for each one that is read with the teacher.",
)  # fmt: skip

# %% [markdown]
# Keep the last column in mind. *Equal tokens* is the comparison that tables make. *Equal compute* is the one that a budget makes. They differ by this factor, unless the teacher's
# forward passes are kept from an earlier run ({doc}`18_memory_and_caches`).
#
# ## What a bit per byte means
#
# A model that gives the next token the probability $q$ could be used to store that token in $-\log_2 q$ bits. The sum over a text, divided by its bytes, is **bits per byte**. Unlike
# the loss per token or perplexity, it does not change when tokens get longer; and it can be compared with any program that makes files smaller. So let us compare, on blocks of the test text.
#
# First, its bytes. The tokeniser writes each byte as one character; those that print stand for themselves, the others are numbered from 256 on. <!-- by definition -->

# %% tags=["hide-input"]
prints = [*range(33, 127), *range(161, 173), *range(174, 256)]
rest = [byte for byte in range(256) if byte not in prints]
byte_of = {chr(byte): byte for byte in prints}
byte_of |= {chr(256 + place): byte for place, byte in enumerate(rest)}
spelled = [
    bytes(byte_of[character] for character in tokeniser.id_to_token(token))
    if token
    else b""
    for token in range(data.num_classes)
]
assert [len(token) for token in spelled] == data.test.token_bytes.tolist()

test_text = data.test.spread(blocks)
before, text, _ = next(test_text.batches(len(test_text)))
raw = b"".join(spelled[token] for token in text.flatten().tolist())
assert len(raw) == test_text.token_bytes[text].sum().item()
Markdown(
    f"The test text: {len(text)} blocks at even distances, {text.numel():,} tokens, {len(raw):,} bytes."
)

# %% [markdown]
# Three compressors of Python's standard library start from nothing, which puts them at a disadvantage. One of them
# reaches far enough back to be given some training text first; what counts is how much the file grows when the test
# text is appended.

# %%
history = data.train.labels[-250_000:].long() & 0xFFFF
history = b"".join(spelled[token] for token in history.tolist())


def bits(compressed):
    return 8 * compressed / len(raw)


compressors = {
    "gzip": lambda content: gzip.compress(content, 9, mtime=0),
    "bz2": bz2.compress,
    "lzma": lzma.compress,
}
bits_per_byte = {
    "as it is": 8.0,
    **{name: bits(len(compress(raw))) for name, compress in compressors.items()},
    "lzma after training text": bits(
        len(lzma.compress(history + raw)) - len(lzma.compress(history))
    ),
}

# %% [markdown]
# And three models that need no gradient, counted on the whole training text: frequencies of bytes, of tokens, and of tokens given the token before. The last is smoothed towards the second,
# $q(b\mid a) = (c_{ab} + m\,q_b)/(c_a + m)$, with the $m$ that is best on the validation text. <!-- by definition -->

# %%
V = data.num_classes
seen = data.train.labels.long() & 0xFFFF
counted = torch.bincount(seen, minlength=V).double()
unigram = (counted + 1) / (counted + 1).sum()
by_byte = torch.ones(256, dtype=torch.double)
for token, times in zip(spelled, counted.tolist(), strict=True):
    for byte in token:
        by_byte[byte] += times
pairs = torch.bincount(seen[:-1] * V + seen[1:], minlength=V * V).reshape(V, V)
begun_by = pairs.sum(-1)


def bigram_bits(split, m):
    """Bits per byte of the smoothed bigram model."""
    first, second, _ = next(split.batches(len(split)))
    q = (pairs[first, second] + m * unigram[second]) / (begun_by[first] + m)
    return -q.log2().sum().item() / split.token_bytes[second].sum().item()


# %% tags=["hide-input"]
m = min(
    (10.0, 30.0, 100.0, 300.0, 1000.0), key=lambda m: bigram_bits(data.validation, m)
)
of_bytes = (by_byte / by_byte.sum()).log2()
bits_per_byte |= {
    "bytes": -of_bytes[torch.frombuffer(bytearray(raw), dtype=torch.uint8).long()]
    .mean()
    .item(),
    "tokens": -unigram[text].log2().sum().item() / len(raw),
    "pairs of tokens": bigram_bits(test_text, m),
}

# %% [markdown]
# The teacher is a transformer that the book stores. It has read blocks of the same training text, drawn at random.

# %%
teacher = book_language_teacher(data, device=device)
precision = fast_precision(device)
of_teacher = measure_tokens([teacher], test_text, device=device, precision=precision)[0]
bits_per_byte["teacher"] = of_teacher["bits_per_byte"]

# %% tags=["hide-input"]
kinds = {
    "bytes": GREEN,
    "tokens": GREEN,
    "pairs of tokens": GREEN,
    "teacher": VERMILION,
}
figure, panel = plt.subplots(figsize=(7.0, 3.1))
for place, (name, value) in enumerate(bits_per_byte.items()):
    panel.barh(place, value, color=kinds.get(name, BLUE), height=0.62)
    panel.text(value + 0.08, place, f"{value:.2f}", va="center", fontsize="small")
panel.set_yticks(range(len(bits_per_byte)), list(bits_per_byte))
panel.invert_yaxis()
panel.set(xlabel="bits per byte of the test text", xlim=(0, 8.8))
panel.grid(axis="y", visible=False)
show(
    figure,
    label="bits",
    caption=f"The same {len(raw):,} bytes, as programs store them (blue), as counts would (green, $m={m:g}$), and as the teacher would (red). Less is better; random bytes need 8. "
    f"The teacher's figure is a loss of {of_teacher['cross_entropy']:.2f} nats a token, and its likeliest token is right {of_teacher['accuracy']:.0%} of the time.",
    alt="Horizontal bars of bits per byte: the plain text at eight, three compressors, one with training text, frequencies of bytes, of tokens and of pairs of tokens, and the teacher.",
)

# %% tags=["hide-input"]
rivals = {
    name: value
    for name, value in bits_per_byte.items()
    if name not in ("as it is", "teacher")
}
if not data.fallback:
    rivals = {name: bits_per_byte[name] for name in (*rivals, "teacher")}
    display(below("teacher", None, rivals, "bits_per_byte"))

# %% [markdown]
# The comparison is unfair in both directions. The compressors ship no model, while the teacher's weights are larger than the text; they may use the whole text before a byte, while the teacher has at most
# the tokens of its block. The text is not one text but separate blocks, joined: at every seam a compressor finds itself in another place, often in another book. And the teacher is given the first token of each block, from which to predict the second; so are the counts of pairs. No model pays for that token. Both effects can be measured. For the seams, take one piece of the test text, as long as all
# blocks together, and the same piece cut into blocks and shuffled. For the first tokens, let the models pay what they cost by frequency.

# %% tags=["hide-input"]
stretch = data.test.labels.long() & 0xFFFF
stretch = stretch[(len(stretch) - text.numel()) // 2 :][: text.numel()].view(text.shape)
mixed = stretch[torch.randperm(len(text), generator=torch.Generator().manual_seed(0))]
rows = []
for name, compress in compressors.items():
    both = (
        b"".join(spelled[token] for token in tokens.flatten().tolist())
        for tokens in (stretch, mixed)
    )
    whole_piece, in_blocks = (8 * len(compress(x)) / len(x) for x in both)
    rows.append([name, bits_per_byte[name], whole_piece, in_blocks])
given, paid = before[:, 0], {}
for name in ("pairs of tokens", "teacher"):
    needed = bits_per_byte[name] * len(raw) - unigram[given].log2().sum().item()
    paid[name] = needed / (len(raw) + data.test.token_bytes[given].sum().item())
table(
    ["compressor", "above", "another piece, whole", "in shuffled blocks"],
    [[name, *(f"{value:.3f}" for value in values)] for name, *values in rows],
    caption="Bits per byte, with and without seams. If they pay for the first tokens, "
    + " and ".join(
        f"the {name} need {paid[name]:.3f} in place of {bits_per_byte[name]:.3f}"
        if name != "teacher"
        else f"the teacher needs {paid[name]:.3f} in place of {bits_per_byte[name]:.3f}"
        for name in paid
    )
    + ".",
)

# %% [markdown]
# (Between the shuffled piece and the blocks above there is one more difference: the piece comes from a few books, the blocks from all of the test text.)
#
# What the scale is good for is orientation: the distance between counting single tokens and counting pairs is what a model gains from *one* token of context, and the distance from
# there to the teacher is what more context, and sharing between contexts, are worth. Where the students fall on this scale is what follows; and there, differences of hundredths of a bit will have to be judged by their intervals.
#
# Its record says how the teacher was trained. A plan has several *arms*: the ways to train a student that it compares. The rules of the recorded runs are those of {doc}`13_temperature_and_weight`: differences are taken seed by seed, the
# test text is touched once. Runs of one seed that train one model on one text share batches and initial weights, with one exception that is noted where it occurs (`kd+hidden`). Every mean and difference in a figure or table has its own 95 % interval of Student's $t$, which is wide for three seeds; the sentences on the records pool the deviation over the arms where these allow it, and say so, so that their intervals may be narrower; of many comparisons some exclude zero by chance.

# %% tags=["hide-input"]
small, large = results("language-small"), results("language")
studies = (small, large)


def spec_of(study, arm):
    return next(spec for spec in study.specs if spec.arm == arm)


def described(study, *arms):
    """Teacher, the students of these arms, what they read and at which rate."""
    specs = [spec_of(study, arm) for arm in arms or ["kd"]]
    tokens = sorted({tokens_read(s) for s in specs})
    rates = sorted({s.recipe.learning_rate for s in specs})
    students = listed(dict.fromkeys(called(s.student) for s in specs))
    read_in_all, rate = (
        " or ".join(f"{v:{form}}" for v in values)
        for values, form in ((tokens, ".1f"), (rates, "g"))
    )
    found = ", found for the student alone" if study is small else ""
    return f"{called(study.specs[0].student)} to {students}, {read_in_all} million tokens, at a rate of {rate}{found}"


def others(study):
    """The two sizes of student: the arms of alone and kd of each."""
    second = next(spec.arm for spec in study.specs if spec.arm.endswith("-alone"))
    return (("alone", "kd"), (second, second.replace("alone", "kd")))


def four(study):
    return [arm for pair in others(study) for arm in pair]


def teachers_record(study):
    found = study.arm(study.specs[0].arm)
    return found[0] if found and found[0]["test"] else None


def read_tokens(spec):
    """Millions of tokens read after each epoch."""
    epochs = spec.recipe.epochs
    return np.arange(1, epochs + 1) * tokens_read(spec) / epochs


def curve(record):
    return np.array(record["epochs"]["validation.bits_per_byte"])


# %% tags=["hide-input"]
def teacher_figure(study):
    record, spec = teachers_record(study), study.specs[0]
    figure, panel = plt.subplots(figsize=(7.0, 3.0))
    tokens, values = read_tokens(spec), curve(record)
    panel.plot(tokens, values, "o-", color=VERMILION)
    said = ""
    if study is small and not data.fallback:
        of_pairs = bigram_bits(data.validation, m)
        panel.axhline(of_pairs, color=GREEN, linestyle=":")
        panel.text(
            tokens[-1],
            of_pairs,
            "pairs of tokens",
            va="bottom",
            ha="right",
            color=GREEN,
        )
        said = " The dotted line is the bigram model on the same text, counted on all of the training text."
    panel.set(xlabel="tokens read (millions)", ylabel="bits per byte, validation")
    return show(
        figure,
        label=f"teacher-{study.plan}",
        caption=f"{called(spec.student)} learns from the text alone: bits per byte of the validation text after each epoch, {values[-1]:.3f} at the end; {record['test']['bits_per_byte']:.3f} on the test text. One run.{said}",
        alt="A falling curve of bits per byte against tokens read.",
    )


for study in studies:
    if teachers_record(study):
        display(teacher_figure(study), source_note([teachers_record(study)]))
if not teachers_record(small):
    display(not_yet_run("the teacher of the small study", small.command))

# %% [markdown]
# Here is what the teacher writes. It goes on from some lines of a test block, with tokens drawn from its own distribution ($T=1$). The prompt is cut by a rule: from the end of the block's first line to the first end of a line that
# comes at least 40 tokens later. <!-- by definition --> A line of the books is a paragraph.

# %% tags=["hide-input"]
lines = next(data.test.batches(1, order=torch.tensor([len(data.test) // 36])))[0][0]
breaks = ["\n" in tokeniser.decode([token]) for token in lines.tolist()]
# a line begins
new = [k for k in range(1, len(lines)) if breaks[k - 1] and not breaks[k]]
first = new[0] if new else 0
last = next((k for k in new if first + 40 <= k <= first + 140), first + 40)
prompt = lines[None, first:last].to(device)
draws = torch.Generator(device).manual_seed(0)
story = generate(teacher, prompt, tokens=110, generator=draws)[0].tolist()


# %% tags=["hide-input"]
def passages(entries, *, label, caption):
    """Texts with their titles, one below another."""
    parts = "".join(
        f'<dt style="margin-top:0.7rem">{html.escape(title)}</dt><dd style="white-space:pre-wrap;font-size:0.92rem;margin:0.1rem 0 0 1rem">{text}</dd>'
        for title, text in entries
    )
    return Shown(
        f'<figure class="kd-figure" id="fig-{label}"><dl>{parts}</dl><figcaption>{html.escape(caption)}</figcaption></figure>'
    )


def tidy(text):
    """On one line, and safe in a page."""
    return html.escape(" ".join(text.split()))


begun, whole = tokeniser.decode(prompt[0].tolist()), tokeniser.decode(story)
begun = begun[
    : next(
        (k for k, (a, b) in enumerate(zip(begun, whole, strict=False)) if a != b),
        len(begun),
    )
]
gap = " " if any(map(str.isspace, (begun[-1:], whole[len(begun) :][:1]))) else ""
display(
    passages(
        [("teacher", f"<em>{tidy(begun)}</em>{gap}{tidy(whole[len(begun) :])}")],
        label="story",
        caption="A prompt from the test text (italic) and how the teacher goes on. One draw, not chosen; line ends are removed.",
    )
)

# %% [markdown]
# It is a small model, and reads like one. The task of this chapter is to bring still smaller ones near to it.
#
# ## How much of the gap is closed
#
# Two sizes of student, each alone (cross-entropy with the next token) and distilled ($0.1$ of that and $0.9$ of $D_{\mathrm{KL}}(p\,\Vert\,q)$ from the teacher, at $T=1$). All read the same tokens, in the same order for one seed. The measure is the part of the
# gap that is closed,
#
# $$ \frac{b_{\text{alone}} - b_{\text{kd}}}{b_{\text{alone}} - b_{\text{teacher}}}, $$
#
# with $b$ the bits per byte of the test text: zero if the teacher was of no use, one if the student has caught up with it. It is taken seed by seed. The teacher is one run and has no interval: another teacher would be
# another experiment.


# %% tags=["hide-input"]
def gap_closed(study, alone, kd):
    """The part of the gap that is closed, one a seed."""
    of = teachers_record(study)["test"]["bits_per_byte"]
    by_alone, by_kd = (study.values(arm, "bits_per_byte") for arm in (alone, kd))
    seeds = sorted(by_alone.keys() & by_kd.keys())
    return [(by_alone[s] - by_kd[s]) / (by_alone[s] - of) for s in seeds]


def pairs_ready(study):
    """The sizes whose gap can be given: the teacher's record, and two seeds of both arms."""
    if not teachers_record(study):
        return []
    return [
        (alone, kd)
        for alone, kd in others(study)
        if study.difference(kd, alone, "bits_per_byte") is not None
    ]


def gap_figure(study):
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(8.2, 2.6), gridspec_kw={"width_ratios": [1.25, 1]}
    )
    rows, intervals, colours, closed = {}, {}, {}, {}
    for alone, kd in pairs_ready(study):
        model = called(spec_of(study, alone).student)
        for arm, what, colour in ((alone, "alone", ORANGE), (kd, "distilled", BLUE)):
            rows[f"{model}, {what}"] = list(study.values(arm, "bits_per_byte").values())
            intervals[f"{model}, {what}"] = study.mean(arm, "bits_per_byte")
            colours[f"{model}, {what}"] = colour
        closed[model] = gap_closed(study, alone, kd)
    of = teachers_record(study)["test"]["bits_per_byte"]
    left.axvline(of, color=VERMILION, linewidth=1.2, linestyle="--")
    dots(left, rows, intervals, colours=colours)
    left.set_xlabel("bits per byte of the test text (dashed: teacher)")
    shares = {model: mean_interval(values) for model, values in closed.items()}
    right.axvline(0, color="grey", linewidth=1)
    dots(right, closed, shares, factor=100, colours=dict.fromkeys(closed, PURPLE))
    right.set_xlabel("part of the gap closed (%)")
    return show(
        figure,
        label=f"gap-{study.plan}",
        caption=f"At equal tokens ({described(study, *(kd for _, kd in pairs_ready(study)))}; one dot per run, means with 95 % intervals). Part of the gap closed: "
        + "; ".join(f"{model}, {i:.0%}" for model, i in shares.items())
        + ".",
        alt="Left: rows of dots of bits per byte for students alone and distilled, with the teacher as a dashed line. Right: the part of the gap that is closed, by size.",
    )


def gap_table(study):
    rows = []
    for alone, kd in pairs_ready(study):
        for measure, name, factor, digits in (
            ("bits_per_byte", "bits per byte", 1, 3),
            ("accuracy", "accuracy (%)", 100, 2),
            ("calibration_error", "calibration error (%)", 100, 2),
            ("agreement", "agreement (%)", 100, 2),
            ("kl_to_teacher", "KL from teacher (nats)", 1, 3),
        ):
            a, k = study.mean(alone, measure), study.mean(kd, measure)
            d = study.difference(kd, alone, measure)
            rows.append(
                [
                    f"{called(spec_of(study, alone).student)}, {name}",
                    f"{factor * a.mean:.{digits}f}",
                    f"{factor * k.mean:.{digits}f}",
                    (factor * d).bracketed(f"+.{digits}f"),
                    d.n,
                ]
            )
    return table(
        ["on the test text", "alone", "distilled", "difference", "$n$"],
        rows,
        caption="Means over seeds, and the paired difference with its 95 % interval.",
    )


display(*slots(small, four(small), "students of two sizes, alone and distilled"))
for study in studies:
    if pairs_ready(study):
        used = [teachers_record(study), *study.all(four(study))]
        display(gap_figure(study), gap_table(study), source_note(used))


# %% [markdown]
# ### At equal compute
#
# The same tokens do not cost the same. So each student is trained alone once more, for as many tokens as the teacher's
# forward passes would have paid for by the last column of the table above. Its learning rate falls to zero at the end
# of *its* run: had we only stretched the axis under the learning curves, the longer run would be judged in
# mid-schedule. Below, the curves over tokens and over multiply-adds, and then the differences at the ends.


# %% tags=["hide-input"]
EQUAL = "alone-equal-compute"


def cost(study, arm):
    """Million multiply-adds a token of an arm's training step."""
    spec = spec_of(study, arm)
    vocabulary, context = parse(spec.data)[1:]
    with torch.device("meta"):
        student, teacher = (
            getattr(models, which.student)(vocabulary) for which in (spec, spec.teacher)
        )
    looks = teacher if spec.objective.needs_teacher else None
    return per_token(student, looks, context=context) / 1e6


def with_equal(study):
    """Of each size of student: the arms of alone, kd, and alone at kd's compute."""
    return [(alone, kd, alone.replace("alone", EQUAL)) for alone, kd in others(study)]


def curves_figure(study):
    figure, panels = plt.subplots(1, 2, figsize=(8.4, 3.4), sharey=True)
    for arms, styles in zip(with_equal(study), ("-", "--"), strict=True):
        named = ("alone", ORANGE), ("distilled", BLUE), ("alone, equal compute", GREEN)
        for arm, (what, colour) in zip(arms, named, strict=True):
            runs = [curve(record) for record in study.arm(arm) if record["test"]]
            if not runs:
                continue
            tokens = read_tokens(spec_of(study, arm))
            for panel, x in zip(
                panels, (tokens, tokens * cost(study, arm)), strict=True
            ):
                for run in runs:
                    panel.plot(x, run, styles, color=colour, linewidth=0.8, alpha=0.4)
                panel.plot(
                    x,
                    np.mean(runs, 0),
                    styles,
                    color=colour,
                    label=f"{called(spec_of(study, arm).student)}, {what}",
                )
    if record := teachers_record(study):
        for panel in panels:
            panel.axhline(curve(record)[-1], color=VERMILION, linestyle=":")
    panels[0].set(xlabel="tokens read (millions)", ylabel="bits per byte, validation")
    panels[1].set(xlabel="multiply-adds spent ($10^{12}$)")
    panels[1].set_xscale("log")
    panels[1].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panels[1].xaxis.set_major_formatter("{x:g}")
    panels[1].minorticks_off()
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=2,
        fontsize="x-small",
    )
    return show(
        figure,
        label=f"curves-{study.plan}",
        caption="Validation text after each epoch: thin a run, thick the mean; dotted red, the teacher at the end of its own training, whose cost is not counted. Left, by tokens; right, by arithmetic.",
        alt="Two panels of falling curves for students of two sizes, alone, distilled, and alone for longer: against tokens read, and against multiply-adds, where distilled and alone for longer end at the same cost.",
    )


def equal_differences(study):
    """kd against alone at equal tokens and at equal compute: (size, what is equal) to (differences by seed, interval)."""
    found = {}
    for alone, kd, equal in with_equal(study):
        for what, control in (("tokens", alone), ("compute", equal)):
            if difference := study.difference(kd, control, "bits_per_byte"):
                by_seed = list(study.differences(kd, control, "bits_per_byte").values())
                found[called(spec_of(study, kd).student), what] = by_seed, difference
    return found


MEASURES = (
    ("bits_per_byte", "bits per byte", 1),
    ("agreement", "agreement (points)", 100),
    ("kl_to_teacher", "KL from teacher (nats)", 1),
    ("calibration_error", "calibration error (points)", 100),
)


def equal_table(study):
    """The same in all measures, at equal compute: one row per measure, one column per size."""
    found = {}
    for _, kd, equal in with_equal(study):
        differences = [study.difference(kd, equal, m) for m, _, _ in MEASURES]
        if all(differences):
            found[called(spec_of(study, kd).student)] = differences
    rows = [
        [title, *((factor * each[k]).bracketed("+.3f" if factor == 1 else "+.2f") for each in found.values())]
        for k, (_, title, factor) in enumerate(MEASURES)
    ]  # fmt: skip
    n = " and ".join(str(each[0].n) for each in found.values())
    return table(
        ["equal compute", *found],
        rows,
        caption=f"Distilled minus alone where both spend the same arithmetic, paired by seed, with 95 % intervals, n = {n}.",
    )


def equal_figure(study):
    found = equal_differences(study)
    rows = {
        f"{model}, equal {what}": by_seed
        for (model, what), (by_seed, _) in found.items()
    }
    intervals = dict(zip(rows, (i for _, i in found.values()), strict=True))
    hues = dict(zip(rows, (ORANGE if what == "tokens" else GREEN for _, what in found), strict=True))  # fmt: skip
    figure, panel = plt.subplots(figsize=(7.0, 0.4 * len(rows) + 0.9))
    panel.axvline(0, color="grey", linewidth=1)
    dots(panel, rows, intervals, colours=hues)
    panel.set_xlabel("distilled minus alone, bits per byte of the test text")
    return show(
        figure,
        label=f"equal-{study.plan}",
        caption=f"Left of the line distillation is better ({described(study, *(kd for _, kd in others(study)))} for the distilled; one dot per seed, mean and 95 % interval): "
        + "; ".join(f"{name}, {i.bracketed()}" for name, i in intervals.items())
        + ".",
        alt="Rows of dots with intervals: the distilled student minus the one alone, at equal tokens and at equal compute, for two sizes.",
    )


def six(study):
    return [arm for arms in with_equal(study) for arm in arms]


equal = [arm for arm in six(small) if arm.endswith(EQUAL)]
display(
    *slots(
        small, equal, "students alone that spend what the teacher's forward passes cost"
    )
)
for study in studies:
    if len(study.ready(four(study))) >= 2:
        display(curves_figure(study))
        if any(what == "compute" for _, what in equal_differences(study)):
            display(equal_figure(study), equal_table(study))
        display(source_note(study.all(six(study))))

# %% tags=["hide-input"]
for study in studies:
    for alone, kd, equal in with_equal(study):
        if study.complete([alone, kd, equal]):
            model = called(spec_of(study, kd).student)
            names = {
                kd: f"{model} distilled",
                alone: f"{model} alone at equal tokens",
                equal: f"{model} alone at equal compute",
            }
            how = {"source": study, "names": names}
            display(
                below(kd, alone, quantity="bits_per_byte", **how),
                above(kd, equal, quantity="bits_per_byte", **how),
                above(equal, kd, quantity="agreement", **how),
                below(equal, kd, quantity="kl_to_teacher", **how),
            )

# %% [markdown]
# So the students alone come out ahead where arithmetic is held equal, and not only in bits per byte: they also agree more with a teacher that never taught them. These students are young: the teacher has read several times their tokens, and the green curves, where they run below the orange ones, show what more tokens still bring them. (That a curve is flat where it ends is the falling rate's doing and says nothing of it.) A student that more text no longer helps gains less from more tokens,
# and there the comparison may turn; these records do not reach that far.
#
# Multiply-adds are not seconds. Small matrices may leave a processor idle where large ones do not, so the teacher's forward pass may be cheaper than its count says. (The runner trains students side by side, so that their records
# do not say what each would have taken alone.) So it is timed here, on one batch, the best of two. <!-- by definition -->


# %% tags=["hide-input"]
def seconds(work, times=2):
    spent = []
    for _ in range(times):
        begun = time.process_time()
        work()
        spent.append(time.process_time() - begun)
    return min(spent)


inputs, labels, _ = next(data.train.batches(4))
inputs, labels = inputs.to(device), labels.to(device)


def step(student):
    with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
        logits = student(inputs)
    (1.0 * CrossEntropy())(student_logits=logits, labels=labels)[0].backward()


def look():
    with (
        torch.no_grad(),
        torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"),
    ):
        teacher(inputs)


timed = []
for name, model in made.items():
    if name != "teacher":
        model = model.to(device)
        model.fused = True
        alone_takes = seconds(lambda model=model: step(model))
        timed.append(
            [
                name,
                f"{inputs.numel() / alone_takes:,.0f}",
                f"{1 + seconds(look) / alone_takes:.1f}",
                f"{per_token(model, teacher) / per_token(model):.1f}",
            ]
        )
table(
    ["", "tokens a second, alone", "time with teacher", "multiply-adds with teacher"],
    timed,
    caption="One core of this machine; the last two columns relative to training alone.",
)

# %% [markdown]
# ### The same, at other lengths
#
# All this is of one length of training, at one rate. In the plan `when-it-pays` every length has a whole schedule and a rate of its own ({doc}`24_when_does_distilling_pay` fits laws to it). <!-- by definition --> Here its runs are held against each other as they are. At equal tokens: the distilled student and the one alone. And nearly at equal compute: the lengths grow by four, and beside each distilled run of the smaller student stands one alone that read four times as much. <!-- by definition --> The cell says what a distilled token costs.

# %% tags=["hide-input"]
pays = results("when-it-pays")
BITS = QUANTITIES["bits_per_byte"]


def both(student, millions):
    return [arm_name(student, kind, millions) for kind in ("alone", "kd")]


lead_at = leads_by_length(pays, BITS)
at_lengths = {student: [m for s, m in lead_at if s == student] for student in STUDENTS}
longest, neighbours, by_length, turns = [], [], "", False
if lead_at:
    named = {
        name: f"{called(student)} {how}, {millions:g}M tokens"
        for student in STUDENTS
        for millions in LENGTHS
        for name, how in zip(both(student, millions), ("alone", "distilled"), strict=True)
    }  # fmt: skip
    pool = [a for s, known in at_lengths.items() for m in known for a in both(s, m)]
    rows, basis = [], next(iter(lead_at.values())).basis
    for student, known in at_lengths.items():
        for millions in known:
            alone, kd = both(student, millions)
            lead = lead_at[student, millions]
            rows.append(
                [
                    f"{called(student)}, {millions:g}M",
                    *(
                        f"{pays.mean(arm, 'bits_per_byte').mean:.3f}"
                        for arm in (alone, kd)
                    ),
                    lead.bracketed("+.3f"),
                    lead.n,
                ]
            )
        if known:
            alone, kd = both(student, known[-1])
            longest.append(below(kd, alone, pays, BITS, names=named))
    at_one_rate = [
        f"{called(spec_of(small, alone).student)} {small.difference(kd, alone, BITS.of).bracketed('+.3f')}"
        for alone, kd in others(small)
        if small.complete([alone, kd])
    ]
    by_length = "; ".join(
        f"{called(student)} "
        + ", ".join(
            f"{lead_at[student, millions].bracketed('+.3f')} at {millions:g}M"
            for millions in known
        )
        for student, known in at_lengths.items()
        if known
    )
    turns = any(d.high < 0 for d in lead_at.values()) and any(
        d.low > 0 for d in lead_at.values()
    )
    small_one = STUDENTS[0]
    price = cost(pays, both(small_one, LENGTHS[0])[1]) / cost(
        pays, both(small_one, LENGTHS[0])[0]
    )
    for millions in at_lengths[small_one]:
        if 4 * millions in at_lengths[small_one]:
            alone, kd = both(small_one, 4 * millions)[0], both(small_one, millions)[1]
            neighbours.append(below(alone, kd, pays, BITS, names=named))
    display(
        table(
            ["", "alone", "distilled", "distilled minus alone", "$n$"],
            rows,
            caption=f"Bits per byte of the test text by millions (of $2^{{20}}$) of tokens, at equal tokens; differences with 95 % intervals ({basis}). Taught by {called(pays.specs[0].student)}; learning rates chosen on the validation split.",
        ),
        Markdown(
            f"At one rate for all, found for a student alone, the differences were {listed(at_one_rate or ['not yet run'])} ({described(small, *(kd for _, kd in others(small)))})."
        ),
        Markdown(" ".join(said.text for said in longest)),
        Markdown(f"A distilled token of {called(small_one)} costs {price:.2f} alone."),
        Markdown(" ".join(said.text for said in neighbours)),
        source_note(pays.all(pool)),
    )  # fmt: skip

# %% [markdown]
# ## The same question in a small training on this page
#
# Compute can also be made equal by fewer tokens. <!-- by definition --> Three ways of training the smallest student: *alone*; *distilled, equal tokens*; and *distilled, equal compute*, which reads as many fewer tokens as the teacher's forward passes cost, on a schedule that ends there. <!-- by definition --> All
# start from the same initialisations, paired; the batches are the same for all, so that one forward pass of the teacher serves them. The objective of both distilled students is the records'. The learning rate is the same for all.
#
# It is very small, and shows the *beginning* of a training: the caption says how little these students read, and what frequencies of tokens alone would need.

# %%
objectives = {
    "alone": 1.0 * CrossEntropy(),
    "distilled, equal tokens": 0.1 * CrossEntropy() + 0.9 * ForwardKL(),
    "distilled, equal compute": 0.1 * CrossEntropy() + 0.9 * ForwardKL(),
}
probe = data.validation.spread(6)
factor = per_token(gpt_64x2(V)) / per_token(gpt_64x2(V), teacher)
fewer = 2 * max(round(read * factor / 2), 1)  # whole batches


def recipe(blocks):
    return Recipe(
        epochs=epochs, epoch_examples=min(blocks, len(data.train)), batch_size=2,
        optimizer="adamw", learning_rate=8e-3, weight_decay=0.1, schedule="cosine",
        warmup_epochs=0.4, augment=False, precision=precision, max_gradient_norm=1.0,
    )  # fmt: skip


def newborn(seed):
    torch.manual_seed(seed)
    student = gpt_64x2(V)
    student.fused = True
    return student


students = {name: {seed: newborn(seed) for seed in seeds} for name in objectives}
histories = {}
teacher.fused = True
for names, each in (
    (["alone", "distilled, equal tokens"], read),
    (["distilled, equal compute"], fewer),
):
    learners = [
        Learner(students[name][seed], objectives[name].fresh(), recipe(each))
        for name, seed in product(names, seeds)
    ]
    ended = fit_together(
        learners, train=data.train, teacher=teacher, validation=probe, device=device
    )
    for (name, seed), history in zip(product(names, seeds), ended, strict=True):
        histories[name, seed] = [
            entry["validation"]["bits_per_byte"] for entry in history
        ]

# %% tags=["hide-input"]
hues = dict(zip(objectives, (ORANGE, BLUE, SKY), strict=True))
read_each = dict.fromkeys(objectives, read) | {"distilled, equal compute": fewer}
figure, (left, right) = plt.subplots(
    1, 2, figsize=(8.4, 3.2), gridspec_kw={"width_ratios": [1.2, 1]}
)
end = {name: [histories[name, seed][-1] for seed in seeds] for name in objectives}
for name, seed in product(objectives, seeds):
    x = np.arange(1, epochs + 1) * read_each[name] * data.train.context / 1e3
    left.plot(
        x,
        histories[name, seed],
        "o-",
        color=hues[name],
        markersize=3,
        linewidth=1.2,
        label=name if seed == seeds[0] else None,
    )
left.set(xlabel="tokens read (thousands)", ylabel="bits per byte, validation")
left.legend(fontsize="x-small")
distilled = [name for name in objectives if name != "alone"]
gains = {
    name: [a - b for a, b in zip(end[name], end["alone"], strict=True)]
    for name in distilled
}
live = {name: summary(values) for name, values in gains.items()}
right.axvline(0, color="grey", linewidth=1)
dots(right, gains, live, colours=hues)
right.set_yticks(range(2), ["equal\ntokens", "equal\ncompute"])
right.set_xlabel("bits per byte, against alone")
display(
    show(
        figure,
        label="live",
        caption=f"The smallest student, {len(seeds)} initialisation{'s' if len(seeds) > 1 else ', so without an interval'}. Left: validation text ({len(probe)} blocks) after each epoch. Right: differences from training alone at the end, paired by initialisation (left of the line is better): "
        + "; ".join(
            f"{name.split(', ')[1]} {i.bracketed()}" for name, i in live.items()
        )
        + f". Those at equal tokens read {epochs * read * data.train.context:,} tokens, {epochs * read * data.train.context / (1e6 * tokens_read(spec_of(small, 'alone'))):.1%} of what the small records' students read; those at equal compute {fewer / read:.0%} of these, by whole batches (exact would be {factor:.0%}). Frequencies of tokens alone need {bits_per_byte['tokens']:.2f} bits per byte of the test text. "
        "The batches are the same for all, so that the intervals do not speak for other batches.",
        alt="Left: falling curves of bits per byte for students alone and distilled. Right: dots of differences from training alone at equal tokens and at equal compute.",
    ),
)
if len(seeds) > 1:
    for name, values in gains.items():
        without = [np.mean(np.delete(values, k)) for k in range(len(seeds))]
        display(
            Markdown(
                f"{name[0].upper()}{name[1:]}: better than alone in {sum(v < 0 for v in values)} of {len(values)} pairs; the interval {'leaves out' if live[name].excludes_zero else 'holds'} zero; "
                f"without one of the pairs the mean difference would be from {min(without):+.3f} to {max(without):+.3f}."
            )
        )
    display(
        Markdown(
            f"Were there no difference at all, {len(seeds)} pairs would agree about its sign with probability {smallest_p(len(seeds)):.2g}."
        )
    )
    early = {
        name: np.array([histories[name, seed][0] for seed in seeds])
        for name in objectives
    }
    apart = {name: np.abs(values - np.median(values)) for name, values in early.items()}
    odd = max(apart, key=lambda name: apart[name].max())
    out = int(apart[odd].argmax())
    rest, at_end = (
        " and ".join(f"{values[k]:.2f}" for k in range(len(seeds)) if k != out)
        for values in (early[odd], end[odd])
    )
    display(
        Markdown(
            f"The run that stands most apart is one of {odd}: {early[odd][out]:.2f} after its first epoch, where the others have {rest}; at the end {end[odd][out]:.2f}, and they {at_end}."
        )
    )

# %% [markdown]
# So few pairs may agree about a sign by chance, and one run that starts badly moves an interval of Student's $t$ a good deal: read the pairs, not the interval alone.
#
# Two things may move the balance towards the teacher. Its forward passes can be made once and used by many students, or by many epochs; then equal tokens *is* equal compute, except for what reading a cache costs. And a text comes to an end: once all of it has been read, the arithmetic that a teacher would have cost buys no more tokens.
#
# ## Which divergence?
#
# All of these keep $0.1$ of the cross-entropy and replace $D_{\mathrm{KL}}(p\,\Vert\,q)$ by another divergence ({doc}`07_divergences`): reversed, Jensen–Shannon (divided by $\beta(1-\beta)$, so that it has the size of the KLs), the two skewed by $\lambda=0.1$ {cite}`ko2024distillm`, and total variation {cite}`wen2023fdivergence`. No other number was tuned for them: the weights were a habit of the
# forward KL, the learning rate was chosen for the student alone, and a divergence whose gradient has another size meets another rate. So this is an order of divergences *at one rate, after one short training*. Four panels, each against plain `kd`, seed by seed. They need not agree: forward KL is, up to a constant, the expected code length of the teacher's next token, so that the first and the third favour it; agreement looks at the largest probability alone. <!-- by definition -->


# %% tags=["hide-input"]
def comparable(study, compared):
    return {
        title: pair
        for title, pair in compared.items()
        if study.difference(*pair, "bits_per_byte") is not None
    }


def compared_figure(study, compared, *, label, what):
    """Differences of each arm from its control in four measures. ``compared``: from a title to (arm, control)."""
    compared = comparable(study, compared)
    figure, panels = plt.subplots(
        1, 4, figsize=(9.2, 0.36 * len(compared) + 1.2), sharey=True
    )
    found = {}
    for panel, (measure, title, factor) in zip(panels, MEASURES, strict=True):
        rows, intervals = {}, {}
        for name, (arm, control) in compared.items():
            rows[name] = list(study.differences(arm, control, measure).values())
            intervals[name] = study.difference(arm, control, measure)
        panel.axvline(0, color="grey", linewidth=1)
        dots(panel, rows, intervals, factor=factor)
        panel.set_title(title, fontsize="small")
        panel.tick_params(axis="x", labelsize="small")
        panel.locator_params(axis="x", nbins=4)
        found[title] = intervals
    apart = sum(i.excludes_zero for i in found["bits per byte"].values())
    return show(
        figure,
        label=f"{label}-{study.plan}",
        caption=f"{what} ({described(study)}); one dot per seed, mean and 95 % interval. Left of the line is better for bits per byte, KL and calibration, right of it for agreement. Bits per byte: "
        + "; ".join(
            f"{name}, {i.bracketed()}" for name, i in found["bits per byte"].items()
        )
        + f". Of these {len(compared)} intervals {apart} leave out zero.",
        alt="Four panels of dots with intervals, one row per arm: differences in bits per byte, in agreement with the teacher, in KL from the teacher and in calibration error.",
    )


def means_table(study, arms):
    rows = []
    for arm in study.ready(arms):
        row = [arm]
        for measure, _, factor in MEASURES:
            i = study.mean(arm, measure)
            digits = 3 if factor == 1 else 2
            row.append(
                f"{factor * i.mean:.{digits}f} ± {factor * (i.high - i.mean):.{digits}f}"
            )
        rows.append([*row, study.mean(arm, "bits_per_byte").n])
    return table(
        ["arm", *(title.replace("points", "%") for _, title, _ in MEASURES), "$n$"],
        rows,
        caption="Means on the test text, and half-widths of their 95 % intervals.",
    )


def compared_section(compared, *, label, what, question):
    asked, controls = zip(*compared.values(), strict=True)
    arms = list(dict.fromkeys([*controls, *asked]))
    display(*slots(small, arms, question))
    for study in studies:
        if comparable(study, compared):
            display(
                compared_figure(study, compared, label=label, what=what),
                means_table(study, arms),
                source_note(study.all(arms)),
            )


DIVERGENCES = {
    name: (name, "kd")
    for name in ("reverse-kl", "jsd", "skewed-forward", "skewed-reverse", "tv")
}
compared_section(
    DIVERGENCES,
    label="divergence",
    what="Other divergences in place of forward KL, against kd",
    question="which divergence",
)

# %% tags=["hide-input"]
for study in studies:
    arms = ["kd", *(arm for arm, _ in DIVERGENCES.values())]
    if study.complete(arms):
        six_of_them = Among(f"the six divergences ({described(study)})", arms)
        display(
            leads("kd", study, "bits_per_byte", among=six_of_them),
            above("reverse-kl", "kd", study, "calibration_error"),
            below("skewed-forward", "kd", study, "calibration_error"),
        )

# %% [markdown]
# Compare the calibration with the first panel. The forward KL asks for all that the teacher thinks possible. A divergence that tolerates what is missing may leave a student too sure of itself, and a less sure student may be better calibrated by chance.
#
# ## Hidden states and attention
#
# {doc}`08_hidden_states_and_attention` derived these two losses. Here they are in practice, added to `kd` with weight one: the states of a middle layer through a learned projector, and the maps of one layer of attention. The teacher has seven heads, the student three; there is
# no matching of heads by number (claim A10), so both are averaged over heads, and the loss is divided by the number of queries. The projector is thrown away afterwards. Both weights are untuned. A gain would be a gain; no gain would only say that it does not come for free.
#
# Here is the exception announced above. The records' runner drew what an objective learns before it drew the student, so that the projector of `kd+hidden` shifted its student's initial weights. Its intervals hold, but its pairs share batches alone:

# %% tags=["hide-input"]
begun = {}
for arm in ("kd", "kd+hidden", "kd+attention"):
    torch.manual_seed(0)
    spec_of(small, arm).objective.fresh()  # in the records' order: the objective first
    begun[arm] = gpt_96x3(V).embedding.weight
assert torch.equal(begun["kd"], begun["kd+attention"])
assert not torch.equal(begun["kd"], begun["kd+hidden"])

# %% tags=["hide-input"]
HINTS = {name: (name, "kd") for name in ("kd+hidden", "kd+attention")}
compared_section(
    HINTS,
    label="hints",
    what="Hidden states and attention beside forward KL, against kd",
    question="hidden states and attention",
)
for study in studies:
    for arm, control in HINTS.values():
        if study.complete([arm, control]):
            display(undecided(arm, control, 0.02, study, "bits_per_byte"))

# %% [markdown]
# ## A falling temperature, and a teacher assistant
#
# Two ways to approach the teacher step by step. A *curriculum*: the temperature falls from four to one in the course of the training ({doc}`13_temperature_and_weight` asks the same of images). A *teacher assistant* {cite}`mirzadeh2020improved`:
# the distilled student teaches the smaller one, which never sees the large teacher. Only bits per byte are compared, since agreement and divergence of the assisted student are with another teacher.


# %% tags=["hide-input"]
def less_steep(study):
    """From a title to (arm, control), with the study's own names."""
    distilled = others(study)[1][1]
    return {
        "temperature falls": ("T-falling", "kd"),
        "assistant": (distilled.replace("-kd", "-assisted"), distilled),
    }


def less_steep_figure(study):
    rows, intervals = {}, {}
    for title, (arm, control) in less_steep(study).items():
        if difference := study.difference(arm, control, "bits_per_byte"):
            rows[title] = list(
                study.differences(arm, control, "bits_per_byte").values()
            )
            intervals[title] = difference
    figure, panel = plt.subplots(figsize=(7.0, 0.4 * len(rows) + 0.9))
    panel.axvline(0, color="grey", linewidth=1)
    dots(panel, rows, intervals)
    panel.set_xlabel("minus plain distillation, bits per byte of the test text")
    return show(
        figure,
        label=f"less-steep-{study.plan}",
        caption=f"Left of the line is better ({described(study, *(arm for arm, _ in less_steep(study).values()))}; the assisted student is {called(spec_of(study, others(study)[1][1]).student)}, its assistant {called(spec_of(study, 'kd').student)}; one dot per seed, mean and 95 % interval): "
        + "; ".join(f"{title}, {i.bracketed()}" for title, i in intervals.items())
        + ".",
        alt="Rows of dots with intervals: differences in bits per byte of a falling temperature and of a teacher assistant from plain distillation.",
    )


asked = [arm for pair in less_steep(small).values() for arm in pair]
display(*slots(small, asked, "a falling temperature, and a teacher assistant"))
for study in studies:
    arms = [arm for pair in less_steep(study).values() for arm in pair]
    if any(
        study.difference(*pair, "bits_per_byte") for pair in less_steep(study).values()
    ):
        display(less_steep_figure(study), source_note(study.all(arms)))
    if study.complete(arms):
        falling, assisted = less_steep(study).values()
        display(
            above(*falling, study, "bits_per_byte"),
            within(*assisted, 0.05, study, "bits_per_byte"),
        )

# %% [markdown]
# ## Whose text?
#
# So far all students read books. Yet one wants a student to *write* as the teacher would, and it will be reading its own writing while it does. Write $P$ and $Q$ for the distributions of teacher and student over whole texts, $p_t$ and $q_t$ for those over the next token after what has been
# written. Since $P(x)=\prod_t p_t(x_t)$, the divergence of texts is a sum of divergences of tokens, and here is what is easily overlooked. The average is over the texts of *one of the two*:
#
# $$ D_{\mathrm{KL}}(P\,\Vert\,Q) = \mathbb E_{x\sim P}\sum_t D_{\mathrm{KL}}(p_t\,\Vert\,q_t), \qquad D_{\mathrm{KL}}(Q\,\Vert\,P) = \mathbb E_{x\sim Q}\sum_t D_{\mathrm{KL}}(q_t\,\Vert\,p_t). $$
#
# Forward KL belongs to the teacher's text, reverse KL to the student's own. A toy shows it exactly: two languages of three letters and texts of four, all of which can be written down.

# %%
rng = np.random.default_rng(0)
LETTERS, LENGTH = 3, 4
texts = list(product(range(LETTERS), repeat=LENGTH))
P, Q = (
    {
        start: rng.dirichlet(np.ones(LETTERS))
        for n in range(LENGTH)
        for start in product(range(LETTERS), repeat=n)
    }
    for _ in range(2)
)


def of_text(language, x):
    return math.prod(language[x[:t]][x[t]] for t in range(LENGTH))


def kl(a, b):
    return sum(a * np.log(a / b))


def of_tokens(read, one, other):
    """Mean over the texts of ``read`` of the summed divergences of tokens."""
    return sum(
        of_text(read, x) * sum(kl(one[x[:t]], other[x[:t]]) for t in range(LENGTH))
        for x in texts
    )


whole = {
    "forward": kl(*(np.array([of_text(of, x) for x in texts]) for of in (P, Q))),
    "reverse": kl(*(np.array([of_text(of, x) for x in texts]) for of in (Q, P))),
}
assert math.isclose(whole["forward"], of_tokens(P, P, Q))
assert math.isclose(whole["reverse"], of_tokens(Q, Q, P))

# %% tags=["hide-input"]
table(
    ["", "of texts", "tokens, on its own side's texts", "tokens, on the other's"],
    [
        ["forward", *(f"{x:.4f}" for x in (whole["forward"], of_tokens(P, P, Q), of_tokens(Q, P, Q)))],
        ["reverse", *(f"{x:.4f}" for x in (whole["reverse"], of_tokens(Q, Q, P), of_tokens(P, Q, P)))],
    ],
    caption="The divergence of texts, and the sum over tokens on two kinds of text. The side of forward KL is the teacher, that of reverse KL the student.",
)  # fmt: skip

# %% [markdown]
# So there are three texts to train on. The *corpus* is neither's, and the divergence on it is not a divergence of texts at all; it need not be written first. The *teacher's text* with plain cross-entropy is sequence-level distillation {cite}`kim2016sequence` (they take what a beam search finds, here it is drawn). The *student's own text*, on which the teacher is
# asked what should have come next, is on-policy distillation {cite}`agarwal2024onpolicy`; with reverse KL it is close to MiniLLM {cite}`gu2024minillm`, except for the gradient that runs through the choice of the text. The idea is older than language models: an imitator that is only shown the expert's path does not learn what to do beside it {cite}`ross2011reduction`.
#
# ### Does the error grow along a text?
#
# The argument has a premise that can be tested: on its own text the student should be further from its teacher than on the corpus, and more so the longer it has been writing. <!-- by definition --> Is it? Take the students of the arm `kd`, which are stored, one a seed; let each go on from prompts of 32 tokens; let the teacher do the same; and keep
# the books' own continuations. <!-- by definition --> On each of the three, at each position, $D_{\mathrm{KL}}(p_t\,\Vert\,q_t)$ and $D_{\mathrm{KL}}(q_t\,\Vert\,p_t)$.

# %% tags=["hide-input"]
PROMPT, WRITTEN = 32, 96
stored = [
    stored_student(spec, evidence_folder(), V)
    for spec in small.specs
    if spec.arm == "kd" and not data.fallback
]
of_records = bool(stored) and None not in stored
if not of_records:  # another tokeniser, or nothing recorded yet
    stored = list(students["distilled, equal tokens"].values())
readers = [student.to(device).eval() for student in stored]
for model in (teacher, *readers):
    model.fused = False
prompts, following, _ = next(data.test.spread(continuations).batches(continuations))
books_text = torch.cat([prompts, following[:, -1:]], 1)[:, : PROMPT + WRITTEN + 1]
books_text = books_text.to(device)


# %%
def goes_on(model):
    draws = torch.Generator(device).manual_seed(1)
    with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
        return written(model, books_text[:, :-1], PROMPT, 1.0, draws)


@torch.no_grad()
def by_position(students, blocks):
    """Forward and reverse KL after each token: (2, students, texts, positions)."""
    found = []
    for part in blocks.split(4):
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
            t, *z = (
                m(part[:, :-1])[:, PROMPT - 1 :].float() for m in (teacher, *students)
            )
        found.append(
            torch.stack(
                [
                    torch.stack([f(one, t, reduction="none") for one in z])
                    for f in (forward_kl, reverse_kl)
                ]
            )
        )
    return torch.cat(found, 2).cpu().numpy()


# %% tags=["hide-input"]
apart = {
    "corpus": by_position(readers, books_text),
    "teacher's": by_position(readers, goes_on(teacher)),
    "student's own": np.concatenate(
        [by_position([student], goes_on(student)) for student in readers], 1
    ),
}

length = next(iter(apart.values())).shape[-1]
edges = np.linspace(0, length, 6).astype(int)
middle = PROMPT + (edges[1:] + edges[:-1]) / 2
figure, panels = plt.subplots(1, 2, figsize=(8.2, 3.2))
text_hues = dict(zip(apart, (GREEN, VERMILION, BLUE), strict=True))
for panel, direction, title in zip(
    panels,
    range(2),
    ("forward, $D_{KL}(p\\Vert q)$", "reverse, $D_{KL}(q\\Vert p)$"),
    strict=True,
):
    for shift, (name, values) in enumerate(apart.items()):
        of_texts = values[direction].mean(0)  # over students
        binned = np.stack([of_texts[:, a:b].mean(1) for a, b in pairwise(edges)])
        intervals = [mean_interval(one) for one in binned]
        x = middle + 3 * (shift - 1)
        panel.plot(
            x,
            [i.mean for i in intervals],
            "o-",
            color=text_hues[name],
            label=name,
            markersize=4,
        )
        panel.vlines(
            x,
            [i.low for i in intervals],
            [i.high for i in intervals],
            color=text_hues[name],
            linewidth=1.4,
        )
    panel.set(title=title, xlabel="position in the text")
panels[0].set_ylabel("nats a token")
figure.legend(
    *panels[0].get_legend_handles_labels(),
    loc="outside lower center",
    ncols=3,
    fontsize="small",
)


def level(direction, student):
    """On its own text minus on the corpus, text by text."""
    own, books = (
        apart[name][direction, student].mean(1) for name in ("student's own", "corpus")
    )
    return paired_difference(own, books)


def growth(direction, student):
    """The last third minus the first third of what is written, own text minus corpus, text by text."""
    third = length // 3
    rise = {
        name: values[direction, student][:, -third:].mean(1)
        - values[direction, student][:, :third].mean(1)
        for name, values in apart.items()
    }
    return paired_difference(rise["student's own"], rise["corpus"])


DIRECTIONS = ("forward", "reverse")
levels, rises = (
    {name: [f(d, s) for s in range(len(readers))] for d, name in enumerate(DIRECTIONS)}
    for f in (level, growth)
)


def each(intervals):
    return ", ".join(i.bracketed("+.2f") for i in intervals)


whose = "The stored students of kd" if of_records else "Live students"
show(
    figure,
    label="exposure",
    caption=f"{whose}, {len(readers)} seeds, and the teacher on {len(prompts)} continuations of three kinds, {WRITTEN} tokens each: five windows of positions, mean over texts with 95 % intervals (a little apart sideways, so that they can be told), students averaged. On its own text minus on the corpus, paired by prompt, student by student: "
    + "; ".join(f"{name} {each(found)} nats a token" for name, found in levels.items())
    + ". What its own text adds to the growth from the first third to the last: "
    + "; ".join(f"{name} {each(found)}" for name, found in rises.items())
    + ".",
    alt="Two panels, forward and reverse KL from the teacher against position, with a line each for the corpus, the teacher's text and the student's own.",
)


# %% tags=["hide-input"]
def of_students(direction, take):
    """Of each text: what is taken of its positions, averaged over the students."""
    return {
        f"the {name} text" if name != "corpus" else "the corpus": take(
            values[direction]
        ).mean(0)
        for name, values in apart.items()
    }


def overall(values):
    return values.mean(-1)


def risen(values):
    third = length // 3
    return values[..., -third:].mean(-1) - values[..., :third].mean(-1)


OWN, BOOKS = "the student's own text", "the corpus"
for d, name in enumerate(DIRECTIONS):
    far = Quantity(f"{name} KL from the teacher", "nats a token", better="lower")
    more = Quantity(f"growth of the {name} KL along a text", "nats a token")
    display(
        below(OWN, BOOKS, of_students(d, overall), far),
        undecided(OWN, BOOKS, 0.05, of_students(d, risen), more),
    )
# An excess as of Arora et al. (not checked against the paper): own contexts over the teacher's, forward KL.
excess = [
    100 * (apart["student's own"][0, s].mean() / apart["teacher's"][0, s].mean() - 1)
    for s in range(len(readers))
]
Markdown(
    "Forward KL on the student's own text over that on the teacher's, minus one: "
    + ", ".join(f"{value:+.0f} %" for value in excess)
    + "."
)

# %% [markdown]
# The sentences above say how much of the premise holds, for its level and for its growth along the text. It need not hold: a student writes what is frequent, and two models can agree about what follows frequent words, or after nonsense where neither can know much. Then its own text is the easier one. What counts as a loss by exposure depends on the yardstick. {cite:t}`arora2022exposure` compare, in their excess accumulated error, what is lost on one's own contexts with the length times the error of a step on the
# *expert's* contexts. By such a yardstick a level counts in full, whether or not it grows; the expert is the teacher here, and the last sentence above has the excess in per cent. Nor is a small divergence on one's own text a merit. A student that always wrote the same safe sentence, as the teacher would after such a sentence, would have a very small one.
#
# ### What training on other text does
#
# In the records, four arms learn from other text, and not every one has a control that differs in the text alone. So here is what differs:
#
# - `teacher-text` learns from the teacher's writing alone, by cross-entropy. Against `alone` the loss is the same and the text is different (and made from fewer blocks). <!-- by definition --> Against `kd-same-text`, which reads the blocks from which its prompts were taken, text *and* loss differ: there the teacher's whole distribution is given.
# - `own-text` and `mixed-text` are trained by forward KL alone, on the corpus for three quarters of the tokens and then on their own writing, always or by turns. <!-- by definition --> Against `soft1`, which stays with the corpus, the text of the last quarter is all that differs.
# - `own-text-reverse` has the reverse KL throughout. Against `soft1` text *and* divergence differ. Against `reverse-kl` the divergence is the same, the text of the last quarter differs, and a tenth of cross-entropy is missing. <!-- by definition -->
#
# All are measured on the test *books*, which favours the corpus: an arm that trades some of it for better writing of its own loses here, and is not thereby worse at what it was trained for. Nothing recorded is measured on the text that these students write. (Nor is own text free: the student writes token after token, each a step that has to wait for the last, and the teacher then reads what no cache can hold.)
#
# And one thing is against them all. The learning rate falls along a cosine, and the last quarter of the tokens is not the last quarter of the training:


# %% tags=["hide-input"]
def share_of_rate(spec):
    """The part of the summed learning rate that comes after the corpus-only phase."""
    epochs = spec.recipe.epochs
    rate = np.array(
        [spec.recipe.learning_rate_at(t) for t in np.linspace(0, epochs, 20_001)]
    )
    return rate[round(20_000 * spec.own_text.after) :].sum() / rate.sum()


left_over = share_of_rate(spec_of(small, "own-text"))
Markdown(f"Of the summed learning rate, own text has {left_over:.1%}.")

# %% tags=["hide-input"]
TEXT_ARMS = {
    f"{arm} − {control}": (arm, control)
    for arm, control in (
        ("teacher-text", "alone"),
        ("teacher-text", "kd-same-text"),
        ("own-text", "soft1"),
        ("mixed-text", "soft1"),
        ("own-text-reverse", "reverse-kl"),
        ("own-text-reverse", "soft1"),
        ("reverse-kl", "kd"),
    )
}
compared_section(
    TEXT_ARMS,
    label="text",
    what="Other text than the corpus, each arm minus a control, and the last row for comparison",
    question="whose text",
)

# %% tags=["hide-input"]
for study in studies:
    if study.complete(
        list(dict.fromkeys(arm for pair in TEXT_ARMS.values() for arm in pair))
    ):
        costs = {
            "reverse KL instead of forward (reverse-kl − kd)": ("reverse-kl", "kd"),
            "own text at the end and no labels (own-text-reverse − reverse-kl)": (
                "own-text-reverse",
                "reverse-kl",
            ),
        }
        by_seed = {
            what: study.differences(*pair, "bits_per_byte")
            for what, pair in costs.items()
        }
        cost_of = Quantity("cost on the books", "bits per byte", better="lower")
        display(
            above("own-text-reverse", ["soft1", "reverse-kl"], study, "bits_per_byte"),
            above(*by_seed, by_seed, cost_of),
            within("teacher-text", "alone", 0.05, study, "bits_per_byte"),
            within("own-text", "soft1", 0.05, study, "bits_per_byte"),
            within("mixed-text", "soft1", 0.05, study, "bits_per_byte"),
        )  # fmt: skip

# %% [markdown]
# The sentences above compare what `reverse-kl` loses, against `kd`, with what `own-text-reverse` loses beyond it. The latter cannot be attributed to the text: `own-text-reverse` is without labels, too, and no arm has the pure reverse KL on the corpus. With the loss the same, other text makes no difference on the books that matters here; but two of these three arms had next to no learning rate left for it, so that nothing follows for on-policy distillation.

# %% [markdown]
# ### The same with a rate that is left
#
# So it is asked again, in the plan *whose-text*: forward and reverse KL, each on three texts, with no labels beside them. All three go on from the same blocks. Each divergence has a learning rate of its own, chosen on the corpus. Own text begins after a quarter of the tokens; the caption says how much of the summed rate that leaves it. <!-- by definition --> So arms of one divergence differ in the text alone; arms of one text differ in the divergence and its rate. <!-- by definition --> Each student is measured on the test books, and on what it writes itself.

# %% tags=["hide-input"]
again = results("whose-text")
DIRECTION = {"forward": "forward KL", "reverse": "reverse KL"}
SOURCES = {
    "corpus": "the corpus",
    "teacher": "the teacher's text",
    "student": "their own text",
}
asked_again = {
    f"{direction}-{text}": f"{said} on {whose_text}"
    for direction, said in DIRECTION.items()
    for text, whose_text in SOURCES.items()
}  # fmt: skip


def on_own_text(measure):
    """A measure of a record on what the student has written itself."""
    return lambda record: record["test"]["own_text"][measure]


ON_BOOKS = QUANTITIES["bits_per_byte"]
ON_OWN = {
    name: Quantity(f"{said} on their own text", "nats a token", better="lower", of=on_own_text(key))
    for (name, said), key in zip(DIRECTION.items(), ("kl_to_teacher", "reverse_kl"), strict=True)
}  # fmt: skip
whose_done = again.complete(list(asked_again))


if whose_done:
    panels = {
        "bits per byte, books": ON_BOOKS,
        "forward KL, own text": ON_OWN["forward"],
        "reverse KL, own text": ON_OWN["reverse"],
    }
    display(
        arms_shown(
            again,
            asked_again,
            panels,
            label="whose-again",
            caption=f"Two divergences on three texts ({described(again, 'forward-corpus')}; reverse KL {spec_of(again, 'reverse-corpus').recipe.learning_rate:g}): one dot per seed, mean and 95 % interval; further left is better. Own text has {share_of_rate(spec_of(again, 'forward-student')):.0%} of the summed learning rate.",
            colours={arm: ORANGE for arm in asked_again if arm.startswith("reverse")},
        ),
        source_note(again.all(asked_again)),
    )
else:
    display(
        not_yet_run("two divergences on three texts, with a rate of their own", again.command)
    )  # fmt: skip

# %% tags=["hide-input"]
if whose_done:
    other_texts = [text for text in SOURCES if text != "corpus"]
    rows = []
    for direction in DIRECTION:
        changed = [
            again.against(
                f"{direction}-corpus",
                of.of,
                [f"{direction}-{text}" for text in other_texts],
                pool=list(asked_again),
            )
            for of in (ON_BOOKS, *ON_OWN.values())
        ]
        for text in other_texts:
            arm = f"{direction}-{text}"
            rows.append([asked_again[arm], *(d[arm].bracketed("+.3f") for d in changed)])  # fmt: skip
    display(
        table(
            ["minus the same divergence on the corpus", "bits per byte, books", "forward KL, own text", "reverse KL, own text"],
            rows,
            caption=f"What another text changes, the divergence and its rate held equal. Dunnett's intervals over two texts, by a variance that all six arms lend; n = {len(again.values('forward-corpus', ON_BOOKS.of))} seeds. Below zero is better.",
        ),
        undecided("forward-student", "forward-corpus", 0.03, again, ON_BOOKS, names=asked_again),
        undecided("reverse-student", "reverse-corpus", 0.03, again, ON_BOOKS, names=asked_again),
        undecided("forward-student", "forward-corpus", 0.05, again, ON_OWN["forward"], names=asked_again),
        below("reverse-student", "reverse-corpus", again, ON_OWN["reverse"], names=asked_again),
        above("reverse-student", "forward-corpus", again, ON_OWN["reverse"], names=asked_again),
    )  # fmt: skip
    by_pairs = {
        f"{said}, {what}": again.difference(f"{direction}-student", f"{direction}-corpus", of.of)
        for direction, said in DIRECTION.items()
        for what, of in (("books", ON_BOOKS), ("own text, by the same divergence", ON_OWN[direction]))
    }  # fmt: skip
    display(
        sentence(
            "By the pairs alone (Student's t, each interval for itself), own text minus the corpus: "
            + "; ".join(f"{what} {d.bracketed('+.3f')}" for what, d in by_pairs.items())
            + "."
        )
    )

# %% [markdown]
# Where the five statements hold, own text does for the *reverse* KL what it is for: on the text that students write themselves. Of the forward KL, and of the books, six arms together do not decide. A student on its own text and its control have the first quarter of their training in common, and each pair goes one way: see the pairs alone, which were looked at after the others.
#
# What own text does not do is save the reverse KL here. From drawn weights and after so few tokens, the student that learned the *forward* KL, on the corpus, is nearer to the teacher by the *reverse* KL, on text of its own, than the one that was trained on just that. <!-- by definition --> Papers on on-policy distillation begin with a student that can write already; this one has to learn to.

# %% [markdown]
# ### In their own words
#
# Each record keeps one text, drawn at $T=1$ after one and the same beginning: the first seed's are below, not chosen. Do not rank them. One sample a model is an illustration; judging text takes many samples, and readers who do not know which is whose.

# %% tags=["hide-input"]
WRITERS = ("alone", "kd", "soft1", "teacher-text", "own-text", "own-text-reverse")


def samples(study):
    entries = []
    if record := teachers_record(study):
        entries.append((f"teacher, {called(study.specs[0].student)}", record))
    entries += [
        (arm, study.arm(arm)[0])
        for arm in WRITERS
        if study.arm(arm) and study.arm(arm)[0]["test"]
    ]
    return entries


for study in studies:
    if entries := samples(study):
        display(
            passages(
                [(title, tidy(record["test"]["sample"])) for title, record in entries],
                label=f"samples-{study.plan}",
                caption="What each writes after the same beginning; one draw of one run each. Line ends are removed.",
            ),
            source_note([record for _, record in entries]),
        )
display(*slots(small, WRITERS, "texts of the students"))

# %% [markdown]
# ## The claim
#
# “LLM Compression: Models like Llama-3-8B utilize distillation to inherit reasoning capabilities from 70B+ models”,
# says article B. The reference it gives is that of Llama 2 {cite}`touvron2023llama`; Llama 3 is described elsewhere
# {cite}`grattafiori2024llama`. That paper has the smaller models pre-trained on text, “for much longer than is
# compute-optimal”, and of larger models it says that “we use the flagship model to further improve the quality of
# those smaller models during post-training”. Logits of larger models came into the family later, with Llama 3.2: of
# its two small models the [model
# card](https://github.com/meta-llama/llama-models/blob/main/models/llama3_2/MODEL_CARD.md) says that “we incorporated
# logits from the Llama 3.1 8B and 70B models into the pretraining stage”. Gemma 2 trains its 2B and 9B models with
# distillation “instead of next token prediction” {cite}`gemma2024`. So the general statement is true of models in use,
# and its example is badly chosen.
#
# What this chapter can test is the general statement. The answer depends on what is held equal: the tokens, or the arithmetic.

# %% tags=["hide-input"]
decides = next(
    (
        study
        for study in reversed(studies)
        if teachers_record(study)
        and study.complete(six(study))
        and len(equal_differences(study)) == 4
    ),
    None,
)
if decides is not None:
    said = []
    for alone, kd, equal in with_equal(decides):
        share = mean_interval(gap_closed(decides, alone, kd))
        longer = decides.difference(equal, kd, "bits_per_byte")
        said.append(
            f"{called(spec_of(decides, alone).student)}, {share:.0%}"
            + f", while one alone that spends the same arithmetic on more tokens differs from it by {longer.bracketed()} bits per byte"
        )
    dearer = listed(
        [
            f"{cost(decides, kd) / cost(decides, alone):.1f} times ({called(spec_of(decides, kd).student)})"
            for alone, kd in others(decides)
        ]
    )
    older = (
        [
            f"With rates of their own the difference, distilled minus alone, is {by_length}. At the longest:",
            *longest,
        ]
        if longest
        else []
    )
    if neighbours:
        older += ["At nearly equal compute:", neighbours[-1]]
    given = verdict(
        "B12", "depends",
        [
            f"Small language models can be distilled from larger ones; how much it brings depends on what is held equal{', and on the length: at equal tokens, too, there are lengths at which the student alone is ahead' if turns else ''}.",
            f"At equal tokens, distillation closes this part of the gap to the teacher in bits per byte ({described(decides, *(kd for _, kd in others(decides)))}): " + "; ".join(said) + ".",
            f"A step with the teacher costs {dearer} the multiply-adds of one alone unless the teacher's forward passes are kept, and the teacher has to be trained first. All these students are young, and all learned at one rate, found for the student alone.",
            *older,
            "Of the article's example the literature says less than the article: Llama 3's smaller models were pre-trained on text and improved by the flagship in post-training; logits of larger models were used for Llama 3.2 1B and 3B and for Gemma 2 2B and 9B.",
        ],
        data=data, condition="bound to a scale",
    )  # fmt: skip
    display(given)

# %% tags=["hide-input"]
asked = [pair[0] for pair in (DIVERGENCES | HINTS | TEXT_ARMS).values()]
asked = list(dict.fromkeys([large.specs[0].arm, *six(large), *asked, "soft1", "kd-same-text"]))  # fmt: skip
display(
    *slots(
        large,
        asked,
        f"all questions of this chapter on a GPU ({described(large, *(kd for _, kd in others(large)))})",
    )
)

# %% tags=["hide-input"]
sentences = [
    f"On {len(raw):,} bytes of test text the teacher needs {bits_per_byte['teacher']:.2f} bits per byte, counts of pairs of tokens {bits_per_byte['pairs of tokens']:.2f}, and lzma after some training text {bits_per_byte['lzma after training text']:.2f}."
]
if said_of_students := language_found(small):
    sentences.append(said_of_students)
    sentences.append(
        f"In place of forward KL, reverse KL {moves(small.difference('reverse-kl', 'kd', 'bits_per_byte'), QUANTITIES['bits_per_byte'])} ({described(small)})."
        if small.complete(["reverse-kl", "kd"])
        else f"All this is of {described(small)}."
    )
    if whose_done:
        d = again.against("forward-corpus", ON_BOOKS.of, ["reverse-corpus"])["reverse-corpus"]  # fmt: skip
        sentences.append(
            f"With a rate of its own for each, and no labels, reverse KL in place of forward KL {moves(d, ON_BOOKS)} (the same length, n = {d.n})."
        )
own = of_students(0, overall)
sentences.append(
    f"Forward KL from the teacher is {own[OWN].mean():.2f} nats a token on the student's own text and {own[BOOKS].mean():.2f} on the books ({len(readers)} students, {len(prompts)} prompts)."
)
findings.show(*sentences)

# %% [markdown]
# ## Limits
#
# - **Scale.** A teacher of a few million parameters that has read a few million tokens is a long way from what is called a language model today. Nothing is said here of instruction, reasoning, or of students that were trained long before they were distilled.
# - **One teacher, one run.** The gap is measured to one teacher. Another seed of it, a better one or a larger one may give another answer ({doc}`14_what_is_transferred`).
# - **Equal compute** counts multiply-adds of a step, not seconds, and not what the teacher's own training cost.
# - **One learning rate for all** in most plans, found for the student alone with a quarter of its tokens (`when-it-pays` has one for each length); weights of hidden states and attention untuned. Differences of a few hundredths of a bit may be the rate's.
# - **Intervals** are over three seeds of the student, on one test text; in the live part over initialisations alone, and in the figure of positions over texts, student by student.
# - **On-policy distillation is tried from drawn weights**, and not from a student that can write already, as papers do; in the first three plans its phase came when the learning rate had all but gone.
# - **Text quality is not measured.** Bits per byte of books, agreement and divergence are what can be computed without readers.
#
# ## To take away
#
# **Formulae.** Bits per byte: $-\sum\log_2q$ over the bytes of the text. The part of the gap that is closed: $(b_{\text{alone}}-b_{\text{kd}})/(b_{\text{alone}}-b_{\text{teacher}})$. $D_{\mathrm{KL}}(P\,\Vert\,Q)$ of texts is the sum of forward KLs of tokens on the teacher's text, and $D_{\mathrm{KL}}(Q\,\Vert\,P)$ that of reverse KLs on the student's own.
#
# **What to set.** `0.1 * CrossEntropy() + 0.9 * ForwardKL()` at $T=1$, AdamW with clipping, `fused = True`. On-policy: `rewrite=OwnText(…)` of a `Learner`, with `ReverseKL()`.
#
# **What to watch for.** Say whether tokens or arithmetic are equal. Keep the teacher's forward passes in a cache if several students read the same text. Give the student's own text its part of the training before the learning rate has fallen.
#
# ## Exercises
#
# ```{exercise}
# :label: ex-bits
#
# Two models have different tokenisers: one token is on average three bytes long for the first, four for the second. Both have a loss of three nats a token. Which is better, and what are their bits per byte?
# ```
#
# ```{solution} ex-bits
# :class: dropdown
#
# Bits per byte are the loss divided by $\log 2$ and by the bytes of a token: `3 / math.log(2) / 3` is 1.44, `3 / math.log(2) / 4` is 1.08. The second spends as much on a longer piece of text, and is better by a quarter. Perplexity per token would call them equal.
# ```
#
# ```{exercise}
# :label: ex-cache-compute
#
# Suppose that the teacher's forward passes at the training text are kept, and used by $k$ students, or by $k$ epochs of one. From which $k$ on is distillation less than half as dear again as training alone, in multiply-adds, for `gpt_96x3`? Reading the cache is free.
# ```
#
# ````{solution} ex-cache-compute
# :class: dropdown
#
# A token costs $3M_s$ alone and $3M_s + M_t/k$ with the teacher, so $k > M_t/(1.5\,M_s)$, a little below three:
#
# ```python
# print(multiply_adds(made["teacher"], 256) / (1.5 * multiply_adds(made["student"], 256)))
# ```
#
# With three students or epochs it is reached.
# ````
#
# ```{exercise}
# :label: ex-other-text
#
# On the toy of three letters, the forward KL per token on the *student's* texts is also a divergence-like number: zero if the two languages are equal. Is it zero *only* if they are equal? And on texts of a corpus that is neither's?
# ```
#
# ````{solution} ex-other-text
# :class: dropdown
#
# It is zero if and only if $p_t=q_t$ after every beginning that the text can reach. On the *student's* texts that is enough. The empty beginning is reached, so $p_1=q_1$; then the first letters that the student never writes the teacher never writes either, and the beginnings of one letter that are reached are the same for both; there again $p_2=q_2$, and so on: by induction $P=Q$. The same holds on the teacher's texts.
#
# On a corpus it is not enough: one that never reaches a beginning says nothing of what the two do after it.
# Try it with a corpus `R` that writes only the first letter, and a student `S` that differs from the teacher after the second one:
#
# ```python
# R = {start: np.eye(LETTERS)[0] for start in P}
# S = P | {(1,): np.ones(3) / 3}
# print(of_tokens(R, P, S), of_tokens(P, P, S))
# ```
#
# The first is zero, the second is not. This is the case for reading
# what the student writes: it asks the teacher about the beginnings that will occur.
# ````
#
# ```{exercise}
# :label: ex-own-rate
#
# All students of the live part have one learning rate. Is it as good for *distilled, equal compute*, whose schedule is shorter, as for *alone*? Train one seed of both at half and at twice the rate.
# ```
#
# ````{solution} ex-own-rate
# :class: dropdown
#
# ```python
# from dataclasses import replace
#
# for name, each in (("alone", read), ("distilled, equal compute", fewer)):
#     for times in (0.5, 1, 2):
#         how = replace(recipe(each), learning_rate=times * recipe(each).learning_rate)
#         learner = Learner(newborn(seeds[0]), objectives[name].fresh(), how)
#         (history,) = fit_together([learner], train=data.train, teacher=teacher, validation=probe, device=device)
#         print(f"{name}, {times:g} times the rate: {history[-1]['validation']['bits_per_byte']:.3f}")
# ```
#
# If another rate is ahead for one of the two alone, the live figure compares a student at its own rate with one that is not. One seed is no interval: hold the change against the spread of the runs in the figure.
# ````
