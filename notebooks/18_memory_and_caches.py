# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Memory and caches
#
# A language model's vocabulary makes distillation expensive in two places. The logits of a batch can fill a GPU's memory, however small the model is. And the
# teacher has to run beside every student, on the same text, again and again. Both costs can be avoided. For the first,
# one only has to change the order of a sum. For the second, one stores a little of what the teacher says, and it
# matters *what* is stored.
#
# **At the end you will know** why no more than a few tokens' logits are needed at once; what top-$k$, top-$k$ with the rest, and random samples keep of a teacher; which of these
# biases a student and which only adds noise; and what a cache costs on disk and saves in time.
#
# *Needs: one CPU core and under two minutes. The recorded runs took longer; the section says where.*

# %% tags=["parameters"]
profile = "cpu"  # or "gpu"
token_counts: list[int] = [256, 1024, 2048]  # in one call, for memory and time
text_blocks: int = 6  # of 256 tokens: a live step, and the text of the caches
entries: int = 12  # kept of each token in the live caches
seeds: list[int] = [0, 1, 2]  # of the students of the known posterior
epochs: int = 6  # of these

# %% tags=["hide-input"]
import copy
import importlib.util
import json
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import sympy as sp
import torch
import torch.nn.functional as F
from IPython.display import Markdown, display
from matplotlib.ticker import FormatStrFormatter, LogLocator
from torch import nn

from kdlab.data import KnownPosterior
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
from kdlab.language import CacheError, TeacherCache, load_text_data, write_cache
from kdlab.language.caches import keep
from kdlab.models import gpt_64x2, gpt_96x3, mlp
from kdlab.objectives import (
    CrossEntropy,
    ForwardKL,
    GeneralisedJSD,
    HeadLogits,
    ReverseKL,
    SkewedForwardKL,
    SkewedReverseKL,
    SparseForwardKL,
    SparseTargets,
    TotalVariation,
    entropy,
    forward_kl,
    generalised_jsd,
    reverse_kl,
    skewed_forward_kl,
    skewed_reverse_kl,
    soften,
    sparse_forward_kl,
    total_variation,
)
from kdlab.objectives.vocabulary import tokens_at_once
from kdlab.study import book_language_teacher, mean_interval, results
from kdlab.study.display import (
    Findings,
    conditions,
    data_note,
    device_for,
    not_yet_run,
    slots,
    source_note,
    tokens_read,
)
from kdlab.study.evidence import QUANTITIES, Quantity
from kdlab.study.findings import moves
from kdlab.study.parameters import require
from kdlab.study.statements import above, below, undecided, within
from kdlab.training import (
    Recipe,
    expected_calibration_error,
    fast_precision,
    fit,
    predict,
)

use_style()
device = device_for(profile)
SIZES = sorted(set(token_counts))
require(
    len(SIZES) > 1,
    "token_counts must have two different numbers, between which memory grows.",
)
require(
    entries <= 1000,
    "entries must be 1000 or fewer: a cache keeps a small part of the vocabulary.",
)

# %% tags=["hide-input"]
findings = Findings()

# %% [markdown]
# ## What fills the memory
#
# Take the last layer of a model with the sizes of an eight-billion Llama 3: hidden states of width 4096, a vocabulary of 128,256 tokens {cite}`grattafiori2024llama`. Train on 8192 tokens at once, in
# bfloat16, with the softmax in float32. <!-- by definition --> No measurement is needed to see what happens. It is enough to multiply.

# %%
tokens, width, words = 8192, 4096, 128_256
two, four = 2, 4  # bytes of a number in bfloat16 and in float32
chunk = tokens_at_once(words)
gigabytes = {
    "hidden states $h$": tokens * width * two,
    "head weights $W$": words * width * two,
    "gradient by $W$, float32": words * width * four,
    "logits $z$": tokens * words * two,
    "logits in float32": tokens * words * four,
    "softmax $q$": tokens * words * four,
    "gradient by $z$": tokens * words * four,
    "the teacher's logits": tokens * words * two,
    "the teacher's softmax $p$": tokens * words * four,
    f"logits of {chunk} tokens, float32": chunk * words * four,
}
gigabytes = {name: size / 1e9 for name, size in gigabytes.items()}
of_logits = sum(list(gigabytes.values())[3:9])

# %% tags=["hide-input"]
figure, axis = plt.subplots(figsize=(7.2, 3.5))
hues = [GREEN] * 3 + [BLUE] * 4 + [ORANGE] * 2 + [VERMILION]
axis.barh(list(gigabytes), list(gigabytes.values()), color=hues, height=0.7)
for place, value in enumerate(gigabytes.values()):
    axis.text(value + 0.05, place, f"{value:.2f}", va="center", fontsize="small")
axis.invert_yaxis()
axis.grid(axis="y", visible=False)
axis.set_xlabel("gigabytes")
axis.set_xlim(0, 5)
show(
    figure,
    label="bytes",
    caption=f"What a divergence between a student and a teacher holds at least, one tensor of each kind, for {tokens:,} tokens and {words:,} words, if it holds all of it: {of_logits:.1f} GB of logits and of what has their shape "
    f"(blue: student, orange: teacher), beside {gigabytes['hidden states $h$']:.2f} GB of hidden states from which all of it is computed. The last bar is what there is of it at a time in the rest of this section.",
    alt="Horizontal bars of memory. The bars for logits, softmax and gradients are four gigabytes each, that of hidden states is hardly visible, and so is the last, the logits of a small chunk.",
)

# %% [markdown]
# The model's own activations are not in the figure, and with checkpointing they can be made small. These bars cannot, as long as a loss function is called with a tensor of logits. They are
# proportional to the number of words, and vocabularies grow.
#
# ## No more than a few tokens at a time
#
# A response loss is a mean over tokens, $L=\frac1n\sum_{\tau}\ell(z_\tau)$, and each token's logits come from its own hidden state alone: $z_\tau=Wh_\tau+b$. By the chain rule
#
# $$\frac{\partial L}{\partial h_\tau}=\frac1n\,W^{\!\top}\frac{\partial\ell}{\partial z_\tau},\qquad
# \frac{\partial L}{\partial W}=\frac1n\sum_\tau\frac{\partial\ell}{\partial z_\tau}\,h_\tau^{\!\top},\qquad
# \frac{\partial L}{\partial b}=\frac1n\sum_\tau\frac{\partial\ell}{\partial z_\tau}.$$
#
# The first needs one token's logits at a time. The others are sums, and a sum may be taken in parts. So take a few tokens, compute their logits, turn them into $\partial\ell/\partial z$, multiply that out
# in both directions, and forget it. The products have to be made in the *forward* pass, while the logits are there. All that the backward pass still lacks is the factor by which $L$ enters
# whatever comes after it, one number. Liger Kernel does its fused losses in this way {cite}`hsu2024liger`.
#
# With plain tensors it is a loop of a few lines. Forward KL, whose $\partial\ell/\partial z$ is $q-p$, a chunk of five tokens, double precision: <!-- by definition -->

# %%
generator = torch.Generator().manual_seed(0)


def normal(*shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


h, W, b = normal(24, 8), normal(50, 8), normal(50)
t = 2 * normal(24, 50)
by_h, by_W, by_b = torch.empty_like(h), torch.zeros_like(W), torch.zeros_like(b)
for rows in torch.arange(24).split(5):
    z = h[rows] @ W.T + b
    slope = (soften(z) - soften(t[rows])) / 24
    by_h[rows] = slope @ W
    by_W += slope.T @ h[rows]
    by_b += slope.sum(0)

# %% tags=["hide-input"]
inputs = [x.clone().requires_grad_() for x in (h, W, b)]
whole = forward_kl(inputs[0] @ inputs[1].T + inputs[2], t)
for ours, theirs in zip(
    (by_h, by_W, by_b), torch.autograd.grad(whole, inputs), strict=True
):
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-14)

# %% [markdown]
# ### The gradient of each token, in closed form
#
# What is needed for every divergence is $\partial\ell/\partial z$ without automatic differentiation, which would keep a tensor for every step of the calculation. A divergence is a function of $q$. Call its
# partial derivatives $s_i=\partial\ell/\partial q_i$ (a function of $q_i$ and $p_i$, and not the student's logit, which this letter is elsewhere). The softmax's Jacobian is $q_k(\delta_{ik}-q_i)/T$ ({doc}`02_gradients`). Hence
#
# $$\frac{\partial\ell}{\partial z_i}=\sum_k s_k\,\frac{q_k(\delta_{ik}-q_i)}{T}=\frac{q_i}{T}\Bigl(s_i-\sum_k q_ks_k\Bigr).$$
#
# A constant added to all $s_i$ cancels, since $\sum_k q_k=1$. So each divergence is one expression for $s$, and the rest is shared. SymPy checks both parts for $N=3$: the Jacobian, and that each of the
# six slopes is the derivative of its divergence up to a constant, which does not depend on $p$ or $q$.

# %%
p, q, T = sp.symbols("p q T", positive=True)
w = sp.Symbol("w", positive=True)  # the skew, or beta
mixture, other_mixture = w * p + (1 - w) * q, (1 - w) * p + w * q
DIVERGENCES = {  # a summand, and its slope
    "forward KL": (p * sp.log(p / q), -p / q),
    "reverse KL": (q * sp.log(q / p), sp.log(q / p)),
    "skewed forward KL": (p * sp.log(p / mixture), -(1 - w) * p / mixture),
    "skewed reverse KL": (
        q * sp.log(q / other_mixture),
        sp.log(q / other_mixture) - w * q / other_mixture,
    ),
    "generalised JSD": (
        w * p * sp.log(p / mixture) + (1 - w) * q * sp.log(q / mixture),
        (1 - w) * sp.log(q / mixture),
    ),
    "total variation": (sp.Abs(q - p) / 2, sp.sign(q - p) / 2),
}

# %% tags=["hide-input"]
for summand, slope in DIVERGENCES.values():
    constant = sp.simplify(sp.diff(summand, q) - slope)
    assert not constant.free_symbols & {p, q}

logits = sp.symbols("z1:4", real=True)
q_of_z = [sp.exp(a / T) / sum(sp.exp(c / T) for c in logits) for a in logits]
for (k, q_k), (i, z_i) in product(enumerate(q_of_z), enumerate(logits)):
    jacobian = q_k * (int(i == k) - q_of_z[i]) / T
    assert sp.simplify(sp.diff(q_k, z_i) - jacobian) == 0

# %% [markdown]
# Now the same expressions with numbers in them, beside what automatic differentiation makes of `kdlab`'s own functions: double precision, 1000 words, $T=2$, $w=0.3$.


# %%
def by_logits(s, q, T):
    """The gradient of a divergence with respect to the logits, from its slope."""
    return q / T * (s - (q * s).sum(-1, keepdims=True))


# %% tags=["hide-input"]
share, heat = 0.3, 2.0
functions = {
    "forward KL": forward_kl,
    "reverse KL": reverse_kl,
    "skewed forward KL": lambda z, t, **how: skewed_forward_kl(z, t, skew=share, **how),
    "skewed reverse KL": lambda z, t, **how: skewed_reverse_kl(z, t, skew=share, **how),
    "generalised JSD": lambda z, t, **how: generalised_jsd(z, t, beta=share, **how),
    "total variation": total_variation,
}
z, t = (2 * normal(40, 1000)).requires_grad_(), 2 * normal(40, 1000)
student_q, teacher_p = soften(z, heat).detach().numpy(), soften(t, heat).numpy()
rows = []
for name, (_, slope) in DIVERGENCES.items():
    s = sp.lambdify((p, q, w), slope)(teacher_p, student_q, share)
    closed = by_logits(s, student_q, heat)
    loss = functions[name](z, t, temperature=heat, reduction="sum")
    (automatic,) = torch.autograd.grad(loss, z)
    error = np.abs(closed - automatic.numpy()).max() / np.abs(closed).max()
    assert error < 1e-11, name
    rows.append([name, f"${sp.latex(slope)}$", f"{error:.0e}"])

table(
    ["divergence", "slope $s$, up to a constant", "largest relative difference"],
    rows,
    caption="The six divergences of this book, the slope of each, and the distance of the closed form from automatic differentiation in float64. $w$ is the skew or β.",
)

# %% [markdown]
# ### In an objective
#
# `HeadLogits` is a pair of hidden states and head that stands where logits stand. An objective that is given one takes all its terms together in one pass over the tokens, from one set of logits at a
# time. A GPT of this book with `fused = True` returns it; nothing else in the training changes. Here is an objective of all six divergences and the labels at once, for student and teacher of different
# width, with logits as a tensor and without. Neither is the truth, so both are measured against float64.

# %%
objective = (
    0.5 * CrossEntropy()
    + 0.5 * ForwardKL()
    + 0.4 * ReverseKL()
    + 0.3 * SkewedForwardKL(0.1)
    + 0.2 * SkewedReverseKL(0.1)
    + 1.0 * GeneralisedJSD(0.3)
    + 0.7 * TotalVariation()
)


# %% tags=["hide-input"]
def value_and_gradients(head, dtype):
    """The objective's total and its gradients by hidden states, weight and bias."""
    leaves = [x.to(dtype).requires_grad_() for x in at_hand]
    student = HeadLogits(*leaves, chunk=16)
    teacher = HeadLogits(*(x.to(dtype) for x in of_teacher))
    total, _ = objective(
        student_logits=student if head else student.dense(),
        teacher_logits=teacher if head else teacher.dense(),
        labels=labels,
    )
    return [total.detach(), *torch.autograd.grad(total, leaves)]


at_hand = normal(100, 32), normal(2000, 32) / 5, normal(2000)
of_teacher = normal(100, 48), normal(2000, 48) / 4
labels = torch.randint(2000, (100,), generator=generator)
exact, exact_too = (value_and_gradients(head, torch.float64) for head in (False, True))
for dense, ours in zip(exact, exact_too, strict=True):
    assert (dense - ours).norm() < 1e-12 * dense.norm()
rounded = {
    name: [
        ((x - y).norm() / y.norm()).item()
        for x, y in zip(value_and_gradients(head, torch.float32), exact, strict=True)
    ]
    for name, head in (("all logits", False), ("HeadLogits", True))
}
assert all(error < 1e-5 for errors in rounded.values() for error in errors)

table(
    [
        "float32, against float64",
        "value",
        "$\\partial/\\partial h$",
        "$\\partial/\\partial W$",
        "$\\partial/\\partial b$",
    ],
    [[name, *(f"{error:.0e}" for error in errors)] for name, errors in rounded.items()],
    caption="Relative errors of the two ways in single precision. In double precision they agree to the last digits, which the cell above asserts.",
)

# %% [markdown]
# ### What it saves here
#
# The first figure counted one tensor of each kind. Automatic differentiation keeps more: one for nearly every step of the formula, until the backward pass has used it. So it matters how a divergence is written. Below is a Jensen–Shannon divergence
# by the textbook, with PyTorch's own functions, and the one of `kdlab`, which takes the long way round so that small divergences keep their digits ({doc}`07_divergences`). How many tensors of the logits' shape does each leave behind for the backward pass?


# %%
def textbook(z, t):
    log_q, log_p = z.log_softmax(-1), t.log_softmax(-1)
    log_m = torch.log(0.5 * log_q.exp() + 0.5 * log_p.exp())
    return 0.5 * sum(
        F.kl_div(log_m, x, reduction="batchmean", log_target=True)
        for x in (log_q, log_p)
    )


# %% tags=["hide-input"]
z, t = normal(32, 500).requires_grad_(), normal(32, 500)


def left_behind(divergence):
    """Its value, and the tensors of the logits' shape kept for the backward pass."""
    found = {}

    def note(x):
        if x.shape == z.shape and x.is_floating_point():
            found[x.data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        value = divergence(z, t)
    return value.item(), len(found)


(one_value, lean), (same_value, careful) = map(left_behind, (textbook, generalised_jsd))
assert np.isclose(one_value, same_value, rtol=1e-12)
Markdown(
    f"For the backward pass the textbook's formula keeps {lean} tensors, kdlab's function {careful}."
)

# %% [markdown]
# The backward pass then adds gradients of the same shape to these. None of it is there where logits come a chunk at a time.
#
# Four ways compute this loss and its gradients with respect to hidden states and head weights. *All logits*: `kdlab`'s ordinary function with automatic differentiation. *Textbook*: all logits as well, with the lines above. *kdlab*: `HeadLogits`, with chunks of 128
# tokens (the default for so small a vocabulary is 512) so that there are several chunks to see. <!-- by definition --> *Liger*: its own `LigerFusedLinearJSDLoss`, as it is installed, but not compiled: chunks as well, each differentiated automatically and the weight's gradient added up. Its chunks have 1,024 tokens, whatever the vocabulary, so that up to 2,047 tokens there is one. <!-- by definition -->
# (The rule by which chunks get smaller as vocabularies grow is that of its Triton kernels, which need a GPU.) <!-- by definition -->
#
# Memory on a CPU is not as easily read as on a GPU. Each way gets a process of its own, which holds the inputs of the largest size and has warmed up. <!-- by definition --> Then the numbers of tokens come in rising order, and after each one we
# read by how much the high-water mark of the resident memory has risen. That counts everything which was in use at once: buffers of libraries and the gradients too. There is a trap. The mark that `getrusage` gives is inherited from the process that
# started this one, and a large parent hides all that a small child does; `VmHWM` of Linux is the process's own. For time
# the ways take turns in one process, in one order and then in the other, so that all of them meet the same load.

# %% tags=["hide-input"]
ROUNDS = 2
WAYS = {"all logits": ORANGE, "textbook": GREEN, "kdlab": BLUE}
if importlib.util.find_spec("liger_kernel"):  # for Linux alone
    WAYS["Liger"] = PURPLE
MEASURE = """
import contextlib, ctypes, json, os, resource, sys, time
import torch
import torch.nn.functional as F
from kdlab.benchmarks.vocabulary import Size, from_all_logits, liger
from kdlab.objectives import GeneralisedJSD, HeadLogits

def kdlab(h, W, t, U):
    logits = {"student_logits": HeadLogits(h, W, chunk=128), "teacher_logits": HeadLogits(t, U)}
    (1.0 * GeneralisedJSD())(**logits)[0].backward()

def textbook(h, W, t, U):
    log_q, log_p = (h @ W.T).log_softmax(-1), (t @ U.T).log_softmax(-1)
    log_m = torch.log(0.5 * log_q.exp() + 0.5 * log_p.exp())
    kls = [F.kl_div(log_m, x, reduction="batchmean", log_target=True) for x in (log_q, log_p)]
    (0.5 * sum(kls)).backward()

def high_water():
    try:
        with open("/proc/self/status") as status:
            return 1024 * next(int(x.split()[1]) for x in status if x.startswith("VmHWM"))
    except OSError:  # not Linux
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

def lap(way, n):
    W.grad, few = None, h[:n].detach().requires_grad_()
    start = time.perf_counter()
    ways[way](few, W, t[:n], U)
    return time.perf_counter() - start

def peaks(way):
    with contextlib.suppress(AttributeError):  # what is freed is given back at once, not kept for later
        ctypes.CDLL(None).mallopt(-3, 2**18)
    lap(way, 16)
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the mark comes down to what is in use now
    before, found = high_water(), []
    for n in sizes:
        lap(way, n)
        found.append(high_water() - before)
    return found

def in_a_process(way):
    read, write = os.pipe()
    if not (child := os.fork()):
        os.write(write, json.dumps(peaks(way)).encode())
        os._exit(0)
    os.close(write)
    with open(read) as answer:
        found = json.load(answer)
    os.waitpid(child, 0)
    return found

torch.set_num_threads(1)
ways = {"all logits": from_all_logits, "textbook": textbook, "kdlab": kdlab, "Liger": liger}
names, sizes, rounds = json.loads(sys.argv[1])
h, W, t, U = Size(tokens=max(sizes), student=96, teacher=192, words=3072).inputs()
bytes_added = {way: in_a_process(way) for way in names}
seconds = {way: [[] for _ in sizes] for way in names}
for way in names:
    lap(way, 16)
for number in range(rounds):
    for place, n in enumerate(sizes):
        for way in names[:: -1 if number % 2 else 1]:
            seconds[way][place].append(lap(way, n))
print(json.dumps([bytes_added, seconds]))
"""
command = [sys.executable, "-c", MEASURE, json.dumps([list(WAYS), SIZES, ROUNDS])]
bytes_added, laps = json.loads(
    subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
)
peak = {
    (way, n): x / 1e6
    for way in WAYS
    for n, x in zip(SIZES, bytes_added[way], strict=True)
}
seconds = {(way, n): x for way in WAYS for n, x in zip(SIZES, laps[way], strict=True)}

# %% tags=["hide-input"]
figure, (left, right) = plt.subplots(1, 2, figsize=(7.8, 3.4))
for way, colour in WAYS.items():
    left.plot(SIZES, [peak[way, n] for n in SIZES], "o-", color=colour, label=way)
    medians = [np.median(seconds[way, n]) for n in SIZES]
    right.plot(SIZES, medians, "-", color=colour)
    for n in SIZES:
        right.plot([n] * ROUNDS, seconds[way, n], "o", color=colour, alpha=0.4, mew=0)
left.set(ylabel="added to resident memory (MB)", ylim=(0, None))
right.set(ylabel="seconds", yscale="log", xscale="log")
right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
right.yaxis.set_major_formatter(FormatStrFormatter("%g"))
right.minorticks_off()
for panel in (left, right):
    panel.set_xlabel("tokens")
    panel.set_xticks(SIZES, [str(n) for n in SIZES])
left.legend(fontsize="small")
most = max(SIZES)
ratio = {
    way: np.median(np.array(seconds[way, most]) / seconds["kdlab", most])
    for way in WAYS
    if way != "kdlab"
}
one_tensor = most * 3072 * 4 / 1e6
show(
    figure,
    label="measured",
    caption=f"One divergence with its gradients, widths 96 and 192, 3072 words, float32, one thread. At {most} tokens: "
    + ", ".join(f"{way} {peak[way, most]:.0f} MB" for way in WAYS)
    + f"; one tensor of logits takes {one_tensor:.3g} MB, so that the first two hold as much as {peak['all logits', most] / one_tensor:.0f} and {peak['textbook', most] / one_tensor:.0f} of them at their height. Times: every round as a dot, lines through the medians; relative to kdlab's in the same round, "
    + ", ".join(f"{way} {value:.1f} times" for way, value in ratio.items())
    + " (medians).",
    alt="Left: peak memory against the number of tokens, a line for each of four ways. Right: seconds against tokens on logarithmic axes.",
)

# %% tags=["hide-input"]
growth = {way: peak[way, most] - peak[way, SIZES[0]] for way in WAYS}
grown = Quantity(
    f"memory added from {SIZES[0]} to {most} tokens", "MB", digits=0, better="lower"
)
display(
    above("all logits", "kdlab", growth, grown, factor=6),
    above("textbook", "kdlab", growth, grown, factor=6),
)

# %% [markdown]
# The hidden states' gradient still grows with the tokens, as it must; it has their width and not the vocabulary's. The times belong to this machine. In general, the products are the same in all four ways, closed forms make fewer passes over the
# logits than automatic differentiation, and on a CPU a chunk can stay in the processor's cache between two passes.
#
# On a GPU the comparison is made by one command, with Liger itself among the contestants where it is installed. Its
# published figures stand beside it; they are for whole models in training, and so cannot be compared with anything
# above.

# %% tags=["hide-input"]
example = 8 * 4096 * 256_000 * two / 1e9
display(
    not_yet_run(
        f"the same on a GPU: {tokens:,} tokens, widths {width}, {words:,} words, bfloat16",
        "kdlab bench vocabulary --device cuda",
    )
)
table(
    ["as published", "what of"],
    [
        ["60 % less GPU memory, 20 % more throughput", "whole models in training, average, against Hugging Face's own code"],
        ["16.8 GB", f"logits of a batch of 8 × 4096 tokens and 256k words in bfloat16; by our multiplication {example:.1f} GB"],
    ],
    caption="Liger Kernel, Hsu et al. (2024): abstract, and the example of section 3.2.",
)  # fmt: skip

# %% [markdown]
# The figures are those of {cite:t}`hsu2024liger`. What does *not* fit into this scheme is a loss that compares tokens with each other through their logits, such as DIST's correlation between examples; an exercise asks why. Layer losses are not concerned: they look at
# hidden states, which are small.
#
# ## The other cost: a teacher beside every student
#
# Chunks save memory, but the teacher still needs a forward pass for every batch. For five students of one text it makes the same pass five times. <!-- by definition --> Why not store what the teacher said? Because of the same arithmetic: a whole
# distribution takes two bytes a *word* for each token of text. So a cache keeps a few entries of each distribution, and there are several ways to choose them {cite}`anshumann2025sparse`. Let $S$ be the tokens that are kept, $M=\sum_S p_i$ their mass.
#
# - **top-$k$**: the $k$ largest, scaled to sum to one, $\hat p_i=p_i/M$.
# - **top-$k$ with the rest**: the $k$ largest as they are, and $r=1-M$ as the probability of all other words together. <!-- by definition -->
# - **sampled**: $K$ words drawn from $p$ with replacement; $\hat p_i$ is the part of the draws that fell on $i$.
#
# The teacher of this part is the book's small GPT, which has read the beginnings of several hundred books.

# %% tags=["hide-input"]
data = load_text_data("book-openings-4096-256")
teacher = book_language_teacher(data, device=device)
teacher.fused = False  # its logits as a tensor
data_note(data)

# %%
blocks = data.validation.spread(text_blocks)
teacher_logits = predict(teacher, blocks, batch_size=8, device=device).flatten(0, 1)
p = soften(teacher_logits)
doubt = entropy(teacher_logits)
place = (doubt - doubt.median()).abs().argmin()  # one token, of middling entropy
one = p[place : place + 1]
TOP, SAMPLES = f"top-{entries}", f"{entries} samples"
kept = {
    TOP: keep(one, "top-k", entries),
    SAMPLES: keep(one, "sampled", entries, torch.Generator().manual_seed(1)),
}

# %% tags=["hide-input"]
sampled = kept[SAMPLES].dense()[0]
order = one[0].argsort(descending=True)
shown = order[:24]
tail = [i for i in torch.nonzero(sampled)[:, 0].tolist() if i not in shown.tolist()]
shown = [*shown.tolist(), *tail]
words_of = [
    repr(data.tokeniser.decode([i]))[1:-1].replace("$", "S").replace(" ", "·")
    for i in shown
]
figure, axis = plt.subplots(figsize=(7.8, 3.4))
x = np.arange(len(shown))
axis.bar(x, one[0, shown], color=BLUE, alpha=0.45, label="the teacher's $p$")
cut = kept[TOP].dense()[0, shown]
axis.plot(x, cut, "_", color=VERMILION, markersize=13, mew=2.4, label=TOP)
there = sampled[shown] > 0
axis.plot(x[there], sampled[shown][there], "o", color=GREEN, label=SAMPLES)
axis.set_xticks(x, words_of, rotation=65, ha="right", fontsize="x-small")
axis.set_ylabel("probability")
axis.legend()
show(
    figure,
    label="one-token",
    caption=f"One token of the validation text, of middling entropy ({doubt[place].item():.1f} nats): the 24 likeliest words, and to the right of them any others that were drawn. Top-{entries} raises all that it keeps by "
    f"the factor {1 / one.topk(entries).values.sum().item():.2f} and denies the rest. Samples are rough, and land in the tail as often as they should.",
    alt=f"Bars of the teacher's probabilities for the likeliest words. Dashes for top-{entries} stand above the bars of the words that are kept and at zero elsewhere; dots for samples are scattered.",
)

# %% [markdown]
# ### Top-$k$ is biased, and the bias has a formula
#
# The gradient of $D_{\mathrm{KL}}(\hat p\,\|\,q)$ with respect to the student's logits is $q-\hat p$ and should be $q-p$. The error $p-\hat p$ does not depend on the student. It is the same for every student at every time, and it does not average
# out over tokens, since every token's likeliest words are raised. <!-- by definition --> Its size:
#
# $$\sum_i|p_i-\hat p_i|=\sum_S p_i\Bigl(\frac1M-1\Bigr)+\sum_{i\notin S}p_i=(1-M)+(1-M)=2(1-M).$$
#
# The loss is smallest at $q=\hat p$: the teacher restricted to $S$. So a student that can fit anything becomes surer than its teacher by the factor $1/M$ on every word that was kept, and gives nothing to the
# others, from which $D_{\mathrm{KL}}(p\,\|\,q)$ becomes infinite. A student that *is* its teacher is pushed away from it.
#
# ### Samples give an unbiased gradient
#
# Let $x_1,\dots,x_K$ be the draws. Then $\hat p_i=\frac1K\sum_a[x_a=i]$ and $\mathbb E[x_a=i]=p_i$. So $\mathbb E\,\hat p=p$ and
#
# $$\mathbb E\,(q-\hat p)=q-p,\qquad \mathbb E\,\|\hat p-p\|^2=\frac1K\sum_i p_i(1-p_i)=\frac{1-\sum_i p_i^2}{K}.$$
#
# The gradient is right on average, for every student and every $K$. For $K=1$ it is cross-entropy on a word that the
# teacher has drawn. The price is noise, which falls as $1/K$, and with the number of tokens over which a batch
# averages.
#
# ### But the value of their loss is too large
#
# Write the loss as $-H(\hat p)-\sum_i\hat p_i\log q_i$. The second part is linear in $\hat p$ and so right on average. The first is not: entropy is concave, so $\mathbb E\,H(\hat p)\le H(p)$ by Jensen, and
#
# $$\mathbb E\,D_{\mathrm{KL}}(\hat p\,\|\,q)=D_{\mathrm{KL}}(p\,\|\,q)+\bigl[H(p)-\mathbb E\,H(\hat p)\bigr].$$
#
# The bracket does not depend on the student, which is why the gradient does not notice it. But the printed loss is too large, for $K=1$ by the whole entropy of the teacher. It cannot be compared with a loss from a live teacher, nor between two
# values of $K$.
#
# For a few words all outcomes can be written down, and expectations are sums. Four words, three draws, sixty-four outcomes:

# %%
few, draws = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64), 3
outcomes = torch.tensor(list(product(range(4), repeat=draws)))
chance = few[outcomes].prod(-1)
sparse = SparseTargets(
    outcomes, torch.full_like(few[outcomes], 1 / draws), vocabulary=4
)
z = normal(4).expand(len(outcomes), 4).clone().requires_grad_()
values = sparse_forward_kl(z, sparse, reduction="none")
(slopes,) = torch.autograd.grad(values.sum(), z)
student_q, estimates = soften(z[0]).detach(), sparse.dense()
assert torch.allclose(chance @ estimates, few, rtol=0, atol=1e-14)
assert torch.allclose(chance @ slopes, student_q - few, rtol=0, atol=1e-14)

# %% tags=["hide-input"]
variance = chance @ (estimates - few).square().sum(-1)
assert torch.allclose(variance, (1 - few.square().sum()) / draws, rtol=0, atol=1e-14)
true_value = forward_kl(z[:1].detach(), few.log()[None])
entropies = -torch.xlogy(estimates, estimates).sum(-1)
bracket = -torch.xlogy(few, few).sum() - chance @ entropies
too_large = chance @ values.detach() - true_value
assert torch.allclose(too_large, bracket, rtol=0, atol=1e-14) and bracket > 0
Markdown(
    "To rounding, $\\mathbb E\\,\\hat p=p$ and the mean gradient is $q-p$. The value is "
    f"{too_large.item():.3f} too large, beside a true divergence of {true_value.item():.3f}."
)

# %% [markdown]
# ### Top-$k$ with the rest as one word
#
# With the rest, the loss is $\sum_S p_i\log\frac{p_i}{q_i}+r\log\frac{r}{1-Q}$ with $Q=\sum_S q_i$, the divergence of two coarser distributions. **Its gradient is that of the whole divergence from a teacher $p^\star$ whose tail is shaped as the student's**:
# $p^\star_i=p_i$ on $S$, and $p^\star_i=r\,q_i/(1-Q)$ elsewhere, held constant. In three lines:
#
# $$-\sum_{S}p_k\,\frac{\partial\log q_k}{\partial z_i}=(1-r)\,q_i-p_i\,[i\in S],$$
#
# $$-r\,\frac{\partial\log(1-Q)}{\partial z_i}=r\,q_i-\frac{r\,q_i}{1-Q}\,[i\notin S],$$
#
# $$\text{together}\quad q_i-p_i\quad(i\in S),\qquad q_i-\frac{r\,q_i}{1-Q}\quad(i\notin S),\qquad\text{which is } q_i-p^\star_i.\;\;\square$$
#
# A student that is its teacher stays where it is. How the tail's mass is spread over its words is not taught at all, neither rightly nor wrongly: that is left to the labels, and to what the student makes of other contexts.

# %%
z, t = normal(6, 300).requires_grad_(), 2 * normal(6, 300)
rest = keep(soften(t), "top-k-rest", 5)
(ours,) = torch.autograd.grad(sparse_forward_kl(z, rest), z)
q = soften(z).detach()
inside = torch.zeros_like(q).scatter(-1, rest.tokens, 1.0).bool()
left = 1 - rest.probabilities.sum(-1, keepdim=True)
star = torch.where(
    inside,
    soften(t),
    left * q / q.masked_fill(inside, 0).sum(-1, keepdim=True),
)
(theirs,) = torch.autograd.grad(forward_kl(z, star.log()), z)
assert torch.allclose(ours, theirs, rtol=0, atol=1e-14)

# %% tags=["hide-input"]
(at_home,) = torch.autograd.grad(sparse_forward_kl(z, keep(q, "top-k-rest", 5)), z)
(pushed,) = torch.autograd.grad(sparse_forward_kl(z, keep(q, "top-k", 5)), z)
assert at_home.abs().max() < 1e-15
push = 6 * pushed.abs().sum(-1)
assert torch.allclose(push, 2 * (1 - q.topk(5).values.sum(-1)), rtol=0, atol=1e-13)
Markdown(
    f"The gradient of a student that equals its teacher is {push.mean().item():.2f} with top-5 and "
    f"{6 * at_home.abs().sum(-1).mean().item():.0e} with top-5 and the rest (sum of absolute values, mean over tokens)."
)

# %% [markdown]
# ## A cache on disk
#
# `write_cache` runs a teacher over a text once and keeps a folder of two plain files, word numbers and probabilities. `TeacherCache` maps them and stands in the teacher's place in `fit`. It is asked by the number of the block instead
# of by the block itself, so the teacher need not be in memory at all.

# %%
folder = tempfile.TemporaryDirectory()
caches = Path(folder.name)
text = data.train.spread(4 * text_blocks)
sampled_cache = caches / f"sampled-{entries}"
write_cache(sampled_cache, teacher, text, entries=entries, device=device)

# %% tags=["hide-input"]
on_disk = {}
for K in sorted({1, 4, entries, 50}):
    write_cache(caches / f"{K}", teacher, text[:1], entries=K, device=device)
    on_disk[K] = TeacherCache(caches / f"{K}").bytes_per_token
vocabulary = data.num_classes
assert all(size == 4 * K for K, size in on_disk.items())

table(
    ["kept of each token", "bytes a token", "of the text with 4096 blocks of 256"],
    [
        [f"{K} entries" if K > 1 else "1 entry", f"{size:.0f}", f"{size * 4096 * 256 / 1e6:.0f} MB"]
        for K, size in on_disk.items()
    ]
    + [[f"all {vocabulary:,}, half precision", f"{2 * vocabulary:,}", f"{2 * vocabulary * 4096 * 256 / 1e6:,.0f} MB"]],
    caption="The size of caches as they are on disk: two bytes for the word's number and two for its probability. Vocabularies of more than 65,536 words need four for the number, six in all.",
)  # fmt: skip

# %% [markdown]
# A cache is no good with another text or another teacher, and a training would not show it: a loss falls with shuffled targets too. So a cache knows what it was made from. `fit` refuses one whose text is not exactly the `train` that it is given, all its blocks in their order.
# The constructor does the same where it is given the text, and refuses another teacher's cache where it is given the teacher; `fit` alone cannot know which teacher it was. A damaged cache is refused whenever it is opened. Here are three attempts with `TeacherCache(path, text, teacher)`:


# %% tags=["hide-input"]
def refusal(path, *what):
    """What a cache says when it is opened with a text, and a teacher."""
    try:
        TeacherCache(path, *what)
    except CacheError as error:
        return str(error).replace(f"{caches}/", "")


stranger = copy.deepcopy(teacher)
with torch.no_grad():
    next(stranger.parameters()).view(-1)[0] += 1e-3
reordered = text[torch.arange(len(text)).flip(0)]
refused = {
    "the text in another order": refusal(sampled_cache, reordered),
    "another teacher": refusal(sampled_cache, text, stranger),
}
with (caches / "1" / "tokens.bin").open("r+b") as file:
    file.write(b"\xff")
refused["one byte of the cache changed"] = refusal(caches / "1")
assert all(refused.values())
table(
    ["given", "what the cache says"],
    list(refused.items()),
    caption="What a cache refuses; paths are left out.",
)

# %% [markdown]
# ### Speed
#
# What is gained in time depends on the sizes of teacher and student. Here are three students of one size: alone with the labels, with a live teacher, and with the cache. They take turns in short pieces of training, and
# all of them use `HeadLogits`.

# %%
cache = TeacherCache(sampled_cache, text, teacher)
teacher.fused = True
learning = {
    "alone": (1.0 * CrossEntropy(), None),
    "cache": (0.1 * CrossEntropy() + 0.9 * SparseForwardKL(), cache),
    "live teacher": (0.1 * CrossEntropy() + 0.9 * ForwardKL(), teacher),
}

# %% tags=["hide-input"]
# The fall-back's teacher is this student's size, and its student one size less.
model = gpt_64x2 if data.fallback else gpt_96x3
students = {}
for name in learning:
    torch.manual_seed(0)
    students[name] = model(vocabulary)
    students[name].fused = True
recipe = Recipe(
    epochs=1, epoch_examples=text_blocks, batch_size=text_blocks, optimizer="adamw", learning_rate=2e-3,
    schedule="constant", augment=False, precision=fast_precision(device),
    max_gradient_norm=1.0,
)  # fmt: skip
lap_seconds = {name: [] for name in learning}
reported = {}
for number in range(4):
    for name in list(learning)[:: -1 if number % 2 else 1]:
        goal, source = learning[name]
        history = fit(
            students[name],
            goal,
            train=text,
            teacher=source,
            recipe=recipe,
            device=device,
        )
        reported[name] = history[-1]
        if number:  # the first round warms up
            lap_seconds[name].append(reported[name]["seconds"])
teacher.fused = False

per_second = {
    name: [text_blocks * text.context / s for s in times]
    for name, times in lap_seconds.items()
}
overhead = {
    name: np.median(np.array(times) / lap_seconds["alone"]) - 1
    for name, times in lap_seconds.items()
}
figure, axis = plt.subplots(figsize=(6.6, 1.8))
dots(
    axis,
    per_second,
    {name: (np.median(v), min(v), max(v)) for name, v in per_second.items()},
)
axis.set_xlabel("tokens a second")
axis.set_xlim(0, None)
parameters = [
    sum(x.numel() for x in part.parameters()) / 1e6
    for part in (teacher, students["alone"])
]
show(
    figure,
    label="speed",
    caption=f"A teacher of {parameters[0]:.1f} and a student of {parameters[1]:.1f} million parameters. Median and range of {len(per_second['alone'])} rounds; the cache has {entries} samples of each token. Beside the student alone, round by round, the cache costs "
    f"{100 * overhead['cache']:+.0f} % and the live teacher {100 * overhead['live teacher']:+.0f} % of time (medians). As published by Anshumann et al. (2025) for their method, at their scale: less than 10 % over cross-entropy.",
    alt="Three rows of dots: tokens a second for the student alone, with a cache, and with a live teacher.",
)

# %% tags=["hide-input"]
live_kl, cached_kl = (
    reported[name]["ForwardKL" if "live" in name else "SparseForwardKL"]
    for name in ("live teacher", "cache")
)
above(
    "the cache",
    "the live teacher",
    {"the cache": cached_kl, "the live teacher": live_kl},
    Quantity(
        "divergence on the screen after equally many steps", "nats a token", digits=2
    ),
)

# %% [markdown]
# This is the bracket of the proof, in a real training. Only one of the two numbers is a divergence from the teacher, and they do not say which student has learned more.
#
# ## What is kept, of a real teacher
#
# Now the formulas on real distributions: a few blocks of the validation text, the book's teacher, and the young student that the live teacher has just begun to train. For each number of entries there are three caches. *Mass*: $M$ itself. *Value*: the loss that a training would print.

# %% tags=["hide-input"]
with torch.no_grad():
    tokens_in = next(blocks.batches(len(blocks)))[0]
    heads = students["live teacher"].eval()(tokens_in)
hidden, weight = heads.hidden.flatten(0, 1).detach(), heads.weight.detach()


# %%
def value_and_gradient(goal, targets, rows=slice(None)):
    """The loss and its gradient with respect to the head's weights, from hidden states."""
    W = weight.clone().requires_grad_()
    student = HeadLogits(hidden[rows], W)
    total, _ = (1.0 * goal)(student_logits=student, teacher_logits=targets[rows])
    return total.item(), torch.autograd.grad(total, W)[0]


true_value, true_gradient = value_and_gradient(ForwardKL(), teacher_logits)
KEPT = sorted({1, 2, 4, 8, 25, 50, entries})
KINDS = {"top-k": VERMILION, "top-k-rest": BLUE, "sampled": GREEN}
caches_of = {
    (kind, K): keep(p, kind, K, torch.Generator().manual_seed(K))
    for kind in KINDS
    for K in KEPT
}
found = {
    key: value_and_gradient(SparseForwardKL(), sparse)
    for key, sparse in caches_of.items()
}


# %% tags=["hide-input"]
def entropy_of(p):
    return -torch.xlogy(p, p).sum(-1)


length = true_gradient.norm()
largest = p.topk(max(KEPT)).values.cumsum(-1)
mass = torch.stack([largest[:, K - 1] for K in KEPT], 1)
predicted = {  # the true value and H(p) − H(p̂)
    K: true_value + (doubt - entropy_of(caches_of["sampled", K].dense())).mean().item()
    for K in KEPT
}

figure, (first, second) = plt.subplots(1, 2, figsize=(7.8, 3.4))
low, middle, high = mass.quantile(torch.tensor([0.1, 0.5, 0.9]), dim=0)
first.fill_between(KEPT, low, high, color=VERMILION, alpha=0.15, linewidth=0)
first.plot(KEPT, mass.mean(0), "o-", color=VERMILION)
first.set(ylabel="mass of the $K$ likeliest words", ylim=(0, 1))
for kind, colour in KINDS.items():
    second.plot(KEPT, [found[kind, K][0] for K in KEPT], "o-", color=colour, label=kind)
second.plot(
    KEPT, list(predicted.values()), "x", color="grey", label="true + $H(p)-H(\\hat p)$"
)
second.axhline(true_value, color="grey", linestyle=":", linewidth=1.3)
second.set(ylabel="value of the loss (nats a token)", ylim=(0, None))
second.legend(fontsize="x-small")
for panel in (first, second):
    panel.set(xscale="log", xlabel="entries $K$")
    panel.set_xticks(KEPT, [str(K) for K in KEPT])
    panel.minorticks_off()
place = KEPT.index(entries)
show(
    figure,
    label="kept",
    caption=f"{len(p):,} tokens of the validation text. Left: the mass that top-$k$ keeps, mean, and the range of the middle four fifths of the tokens; at {entries} {'entries' if entries > 1 else 'entry'} {mass[:, place].mean().item():.2f} on average. Right: what the loss reads; the dotted line is the "
    f"divergence from the whole teacher, {true_value:.2f}. The rest reads low, as it must: merging words can only lose. Samples read high by the bracket (crosses).",
    alt="Left: a rising curve of mass with a wide band. Right: three curves of loss values against the number of entries; samples fall towards the dotted line from above, the rest rises towards it from below.",
)

# %% tags=["hide-input"]
for K in KEPT:
    assert found["top-k-rest", K][0] < true_value + 1e-4
ours, theory = found["sampled", entries][0], predicted[entries]
Markdown(
    f"With {SAMPLES} the loss reads {ours:.3f}; the true value and the bracket make {theory:.3f}; true is {true_value:.3f}."
)

# %% [markdown]
# Now the gradient with respect to the head's weights, where the sum over tokens is taken. Two panels tell bias from
# noise. On the left all tokens, and the number of entries grows. On the right the number of entries is fixed, and the
# number of tokens over which a gradient is averaged grows. <!-- by definition --> Noise must fall there as one over
# the square root. A bias stays.

# %% tags=["hide-input"]
error = {
    key: ((g - true_gradient).norm() / length).item() for key, (_, g) in found.items()
}
shuffled = torch.randperm(len(p), generator=torch.Generator().manual_seed(0))
AVERAGED = [n for n in (32, 128, 512) if n < len(p)] + [len(p)]
by_tokens = {}
for n in AVERAGED:
    parts = shuffled.split(n)[: max(1, min(4, len(p) // n))]
    whole = [value_and_gradient(ForwardKL(), teacher_logits, part)[1] for part in parts]
    for kind in KINDS:
        off = [
            value_and_gradient(SparseForwardKL(), caches_of[kind, entries], part)[1] - g
            for part, g in zip(parts, whole, strict=True)
        ]
        by_tokens[kind, n] = (
            np.mean([(d.norm() / length).item() ** 2 for d in off]) ** 0.5
        )
several = 8  # independent caches of samples, averaged
mean_of_several = sum(
    value_and_gradient(
        SparseForwardKL(),
        keep(p, "sampled", entries, torch.Generator().manual_seed(100 + c)),
    )[1]
    for c in range(several)
) / several  # fmt: skip
unbiased = ((mean_of_several - true_gradient).norm() / length).item()

figure, (first, second) = plt.subplots(1, 2, figsize=(7.8, 3.5), sharey=True)
for kind, colour in KINDS.items():
    first.loglog(KEPT, [error[kind, K] for K in KEPT], "o-", color=colour, label=kind)
    second.loglog(AVERAGED, [by_tokens[kind, n] for n in AVERAGED], "o-", color=colour)
first.loglog(
    KEPT,
    [error["sampled", 1] / K**0.5 for K in KEPT],
    ":",
    color="grey",
    label="$1/\\sqrt{K}$",
)
anchor = by_tokens["sampled", AVERAGED[-1]]
second.loglog(
    AVERAGED,
    [anchor * (AVERAGED[-1] / n) ** 0.5 for n in AVERAGED],
    ":",
    color="grey",
)
first.set(xlabel="entries $K$", ylabel="error of the gradient, whole gradient = 1")
second.set(xlabel=f"tokens averaged over, $K={entries}$")
first.set_xticks(KEPT, [str(K) for K in KEPT])
second.set_xticks(AVERAGED, [str(n) for n in AVERAGED])
for panel in (first, second):
    panel.minorticks_off()
first.legend(fontsize="small")
show(
    figure,
    label="gradient",
    caption=f"Distance from the gradient of the whole teacher, with respect to the head's weights, relative to that gradient's length over all {len(p):,} tokens. At $K={entries}$ and all tokens: "
    + ", ".join(f"{kind} {error[kind, entries]:.2f}" for kind in KINDS)
    + f". The mean over {several} independent caches of {SAMPLES} is off by {unbiased:.2f}. Dotted: one over the square root.",
    alt="Left: errors against the number of entries; right: against the number of tokens; a curve for each way to keep, and dotted lines that fall as one over the square root.",
)

# %% tags=["hide-input"]
first_n, last_n = AVERAGED[0], AVERAGED[-1]
fall = {kind: by_tokens[kind, first_n] / by_tokens[kind, last_n] for kind in KINDS}
falls_by = Quantity(
    f"factor by which the error falls from {first_n} to {last_n} tokens", digits=1
)
display(above("sampled", "top-k", fall, falls_by, factor=2))
Markdown(
    f"Noise alone would fall by {(last_n / first_n) ** 0.5:.1f}. Over {first_n} tokens the error of {SAMPLES} is {by_tokens['sampled', first_n]:.2f} and that of {TOP} {by_tokens['top-k', first_n]:.2f}; over {last_n} they are {by_tokens['sampled', last_n]:.2f} and {by_tokens['top-k', last_n]:.2f}. "
    f"Of one cache's error {several} caches of samples together leave {unbiased / error['sampled', entries]:.2f}; noise alone would leave {several**-0.5:.2f}."
)

# %% [markdown]
# Over a batch of thousands, and over a training, noise is averaged away, and the bias is what the training converges to. The student here is young, which flatters
# top-$k$: its error $p-\hat p$ stays the same while the gradient that it is compared with shrinks as the student learns.
#
# The rest's error does not average away either. It is of a third kind: what is missing from its gradient is the lesson about the tail, and it is gone where the student's tail has the teacher's shape. <!-- by definition --> It asks for too little, where top-$k$ asks for something wrong.
#
# ## What a bias does to a student
#
# A task whose posterior is known shows what is learned, without any doubt about the teacher. There are 24 classes in six families, with so much noise that two of them rarely hold all the mass. <!-- by definition --> The teacher is the posterior itself. Five equal students differ in what they are shown of it: the label that was drawn with the
# example, two samples from the posterior, its top two, its top two with the rest, all of it. As in a cache the samples are drawn once, and are the same in each epoch.


# %% tags=["hide-input"]
class Remembered(nn.Module):
    """What was kept of a teacher, asked by the index of the examples, as a cache is."""

    by_index = True

    def __init__(self, targets):
        super().__init__()
        self.targets = targets

    def forward(self, index):
        return self.targets[index]


task = KnownPosterior.draw(superclasses=6, classes_each=4, dimensions=16, noise=1.5)
unseen = task.sample(10_000, generator=torch.Generator().manual_seed(1000))
truth = task.posterior_logits(unseen.inputs)

# %%
ARMS = {
    "labels": "",
    "2 samples": "sampled",
    "top-2": "top-k",
    "top-2 with rest": "top-k-rest",
    "whole": "",
}


def taught(name, seed, kept=2):
    """Calibration error, KL from the truth, confidence − accuracy, first choices."""
    draw_from = torch.Generator().manual_seed(seed)
    examples = task.sample(4000, generator=draw_from)
    goal, source = 1.0 * CrossEntropy(), None
    if name != "labels":
        posterior = soften(task.posterior_logits(examples.inputs))
        if name == "whole":
            every = torch.arange(task.num_classes).expand(len(examples), -1)
            targets = SparseTargets(every, posterior, task.num_classes)
        else:
            targets = keep(posterior, ARMS[name], kept, draw_from)
        goal, source = 1.0 * SparseForwardKL(), Remembered(targets)
    short = Recipe(
        epochs=epochs, batch_size=128, optimizer="adam", learning_rate=3e-3,
        weight_decay=0.0, schedule="cosine", augment=False, seed=seed,
    )  # fmt: skip
    torch.manual_seed(seed)
    student = mlp(16, task.num_classes, width=64)
    fit(student, goal, train=examples, teacher=source, recipe=short)
    said = predict(student, unseen)
    right = (said.argmax(-1) == unseen.labels).float().mean()
    return {
        "ece": expected_calibration_error(said, unseen.labels),
        "kl": forward_kl(said, truth).item(),
        "surer": (soften(said).amax(-1).mean() - right).item(),
        "first": (said.argmax(-1) == truth.argmax(-1)).float().mean().item(),
    }


# %%
trained = {name: [taught(name, seed) for seed in seeds] for name in ARMS}

# %% tags=["hide-input"]
outcome = {
    (name, m): [run[m] for run in runs]
    for name, runs in trained.items()
    for m in runs[0]
}
cut = keep(soften(truth), "top-k", 2)
cut_logits = cut.dense().clamp(min=1e-30).log()
fit_of_cut = expected_calibration_error(cut_logits, unseen.labels)
held = soften(truth).topk(2).values.sum(-1).mean().item()

figure, (first, second) = plt.subplots(1, 2, figsize=(7.8, 2.7), sharey=True)
hue = dict(zip(ARMS, (PURPLE, GREEN, VERMILION, BLUE, ORANGE), strict=True))
for panel, measure, factor in ((first, "ece", 100), (second, "kl", 1)):
    rows = {name: outcome[name, measure] for name in ARMS}
    intervals = {
        name: mean_interval(values) for name, values in rows.items() if len(seeds) > 1
    }
    reference = {"top-2": 100 * fit_of_cut} if measure == "ece" else None
    dots(panel, rows, intervals, factor=factor, colours=hue, reference=reference)
first.set_xlabel("calibration error (points)")
second.set_xlabel("KL from the true posterior (nats)")
for panel in (first, second):
    panel.set_xlim(0, None)
    panel.locator_params(axis="x", nbins=4)
surer = {name: 100 * np.mean(outcome[name, "surer"]) for name in ARMS}
of_seeds = (
    f"{len(seeds)} paired seeds, means with 95 % intervals"
    if len(seeds) > 1
    else f"one seed ({seeds[0]}), so no intervals"
)
show(
    figure,
    label="known",
    caption=f"Students of a known posterior, whose two likeliest classes hold {held:.2f} of the mass on average; {epochs} epoch{'s' if epochs > 1 else ''}, {of_seeds}. The diamond is the calibration error of the posterior restricted to its top two, which is top-2's optimum. "
    "Confidence minus accuracy, in points: " + ", ".join(f"{name} {surer[name]:+.1f}" for name in ARMS) + ".",
    alt="Two panels of dots, one row per arm: calibration error with a diamond beside top-2, and the divergence from the true posterior.",
)  # fmt: skip

# %% tags=["hide-input"]
display(
    below(
        "top-2",
        "whole",
        {name: outcome[name, "first"] for name in ARMS},
        Quantity(
            "first choices that are the posterior's", "points", 100, 2, level_unit="%"
        ),
    )
)
above(
    "top-2",
    ["2 samples", "top-2 with rest"],
    {name: outcome[name, "ece"] for name in ARMS},
    "calibration_error",
)

# %% [markdown]
# The diamond is where top-2 leads a student that can fit everything. Calibration is lost not because the fit fails, but because it succeeds. The labels of this task are drawn from the posterior, which is the teacher here: they are the sample with $K=1$, and so unbiased
# too, only noisier. (A corpus' labels are not drawn from the teacher. They are unbiased for the world, and where the teacher errs they contradict it.) Memory can make noise worse: the same draws come back in each epoch, and a student that is large enough can learn them by heart.
#
# Keeping two classes of 24 is an extreme. <!-- by definition --> How much of it is left with twelve entries of a language model's vocabulary, beside the text's own labels, is a matter of measurement.
#
# ## The records
#
# The plan `language-small` trains its student on the blocks that caches were made of, in four ways: with the live teacher (`kd-same-text`), and with caches of twelve samples, of the top twelve, and of the top twelve with the rest. All have the labels with weight 0.1, the same
# budget of tokens, the same seeds. Five measures on the test text. Three look at all that the student says: bits per byte, KL from the teacher, and calibration; less is better. <!-- by definition --> Two look at its first choice alone, which is what a reader of greedy text sees: agreement with the teacher's, and with the text (accuracy); more is better. <!-- by definition -->
# Each cache is compared with the live teacher, seed by seed. By the formulas one expects top-12 to lose in calibration, where a bias shows at once. Of first choices they say nothing: cutting and scaling change no order among what is kept.

# %% tags=["hide-input"]
small, large = results("language-small"), results("language")
LIVE = "kd-same-text"
CACHED = {
    "sampled-12": "12 samples",
    "top-k-12": "top-12",
    "top-k-rest-12": "top-12 with rest",
}
FROM = (LIVE, *CACHED)
MEASURES = (
    ("bits_per_byte", "bits per byte", 1),
    ("kl_to_teacher", "KL from the teacher (nats a token)", 1),
    ("calibration_error", "calibration error (points)", 100),
    ("agreement", "agreement (points)", 100),
    ("accuracy", "accuracy (points)", 100),
)


def comparable(study):
    """The caches whose runs can be paired with those of the live teacher."""
    return [name for name in CACHED if study.difference(name, LIVE, "bits_per_byte")]


def caches_figure(study):
    arms = comparable(study)
    figure, panels = plt.subplots(
        1, 5, figsize=(9.6, 0.45 * len(arms) + 1.1), sharey=True
    )
    apart = 0
    for panel, (measure, title, factor) in zip(panels, MEASURES, strict=True):
        rows, intervals = {}, {}
        for name in arms:
            rows[CACHED[name]] = list(study.differences(name, LIVE, measure).values())
            difference = study.difference(name, LIVE, measure)
            intervals[CACHED[name]] = difference
            apart += difference.excludes_zero
        panel.axvline(0, color="grey", linewidth=1)
        dots(panel, rows, intervals, factor=factor)
        panel.set_xlabel(title.replace(" (", "\n("), fontsize="x-small")
        panel.locator_params(axis="x", nbins=3)
    return show(
        figure,
        label=f"caches-{study.plan}",
        caption=f"Plan {study.plan} ({conditions(study)}): students of a cache minus students of the live teacher on the same text; each run as a faint dot, means with 95 % intervals. In the first three panels left of the line is better, in the last two right of it. Of the {len(MEASURES) * len(arms)} intervals {apart} leave out zero; were there no differences, "
        "one in twenty would be expected to. The numbers are in the table.",
        alt="Five panels of dots with intervals: differences of caches from the live teacher in bits per byte, in KL from the teacher, in calibration error, in agreement and in accuracy.",
    )


def differences_table(study):
    arms = comparable(study)
    rows = [
        [
            title,
            *((factor * study.difference(a, LIVE, measure)).bracketed() for a in arms),
        ]
        for measure, title, factor in MEASURES
    ]
    n = study.difference(arms[0], LIVE, "bits_per_byte").n
    return table(
        ["minus live teacher", *(CACHED[a] for a in arms)],
        rows,
        caption=f"Differences from the live teacher, paired by seed, with 95 % intervals, n = {n}.",
    )


def caches_table(study):
    arms = study.ready(FROM)
    found = {a: [factor * study.mean(a, m) for m, _, factor in MEASURES] for a in arms}
    rows = [
        [
            title,
            *(f"{i[k].mean:.3f} ± {i[k].high - i[k].mean:.3f}" for i in found.values()),
        ]
        for k, (_, title, _) in enumerate(MEASURES)
    ]
    return table(
        ["taught by", *(CACHED.get(a, "live teacher") for a in arms)],
        rows,
        caption="Means over seeds with the half-width of the 95 % interval.",
    )


display(
    *slots(
        small,
        FROM,
        "caches of twelve entries beside the live teacher, on the same text",
    )
)
for study in (small, large):
    if comparable(study):
        display(caches_figure(study), differences_table(study))
        display(caches_table(study), source_note(study.all(FROM)))

# %% tags=["hide-input"]
for study in (small, large):
    if not study.complete(FROM):
        continue
    how = {"source": study, "names": {LIVE: "the live teacher"} | CACHED}
    losses = ("bits_per_byte", "kl_to_teacher", "calibration_error")
    matter = {"bits_per_byte": 0.02, "kl_to_teacher": 0.05, "agreement": 1.0}
    display(
        Markdown(f"Under these conditions ({conditions(study)}), and no others:"),
        *(above("top-k-12", LIVE, quantity=m, **how) for m in (*losses, "agreement", "accuracy")),
        above("top-k-12", "sampled-12", quantity="calibration_error", **how),
        above("top-k-12", "top-k-rest-12", quantity="kl_to_teacher", **how),
        *(above("top-k-rest-12", LIVE, quantity=m, **how) for m in ("bits_per_byte", "kl_to_teacher", "agreement")),
        *(undecided("sampled-12", LIVE, matters, quantity=m, **how) for m, matters in matter.items()),
        *(within("sampled-12", LIVE, 1.0, quantity=m, **how) for m in ("calibration_error", "accuracy")),
    )  # fmt: skip
display(
    *slots(
        large,
        FROM,
        "the same for a teacher of 89 million parameters and a vocabulary of 16,384",
    )
)

# %% tags=["hide-input"]
ece = {name: 100 * np.mean(outcome[name, "ece"]) for name in ARMS}
sentences = [
    f"From {SIZES[0]} to {most} tokens, a divergence with all logits adds {growth['all logits']:.0f} MB of memory, and one with the logits of a few tokens at a time {growth['kdlab']:.0f} MB.",
    f"Beside a student alone, a training step costs {100 * overhead['live teacher']:+.0f} % of time with a live teacher and {100 * overhead['cache']:+.0f} % with a cache of {SAMPLES} (this machine, {parameters[1]:.1f} million parameters taught by {parameters[0]:.1f}).",
    f"Taught by a known posterior for {epochs} epoch{'s' * (epochs > 1)}, students have a calibration error of {ece['whole']:.1f} points from all of it, {ece['2 samples']:.1f} from two samples, {ece['top-2']:.1f} from its top two, and {ece['top-2 with rest']:.1f} from these with the rest (n = {len(seeds)} seed{'s' * (len(seeds) > 1)}).",
]
if small.complete(FROM):
    changes = [
        f"the cache of {CACHED[name]} {moves(study_difference, QUANTITIES['calibration_error'])}"
        for name in CACHED
        if (study_difference := small.difference(name, LIVE, "calibration_error"))
    ]
    sentences.append(
        f"For a small language model, against the live teacher on the same text, {'; '.join(changes)} ({tokens_read(small.specs[-1]):.1f} million tokens, n = {small.difference('sampled-12', LIVE).n} paired seeds)."
    )
findings.show(*sentences)

# %% [markdown]
# The sentences above hold for a short training at one learning rate, tuned for none of the caches. Top-12 with the rest does not teach the tail. Bits per byte and the divergence depend on the tail, and first choices do not.
#
# Which cache to take depends on how the student is used. If you sample from it, score text with it, or draft with it, you need its probabilities, and for these a top-$k$ target is a biased teacher. If you only read its first choice, top-$k$ may serve you better: scaled to one, the head of the distribution is surer than the teacher, as it would be *at a temperature below one* (which would also change the ratios among what is kept), and a student that cannot
# follow everywhere is told to follow there. That is an interpretation and not a finding: none of these students had the whole teacher, sharpened.

# %% tags=["hide-input"]
folder.cleanup()

# %% [markdown]
# ## Limits
#
# - Memory was measured for one loss at small sizes on a CPU, by the resident memory of a process, which also counts what an allocator has not given back. What the chunks save in a training depends on what else fills the memory there.
# - Liger is measured on a CPU and not compiled, which is not what it was made for.
# - A chunked loss has one gradient, that of the weighted sum. If you want the gradient norm of each term, you need all the logits, or a pass for each term.
# - Caches are of the corpus' text and of one teacher. A student that learns from its own text ({doc}`17_distilling_a_small_language_model`) writes what no cache contains, and needs the teacher live.
# - `write_cache` keeps the teacher at $T=1$, and `SparseForwardKL` has no temperature. A teacher at another temperature has to be live: heating moves mass to words of which a cache has kept nothing.
# - Only the forward KL was tried. The reverse KL needs $\log p_i$ for what the *student* finds likely, and a cache may not have it.
# - The errors of gradients are those of the head's weights alone, for one young student; noise in the other layers may be larger or smaller.
# - The known posterior is a task of 24 classes, with two entries kept. <!-- by definition --> It shows which way the biases pull, not how hard they would in a language model.
#
# ## To take away
#
# **Formulae.** With $s=\partial\ell/\partial q$, a divergence has the gradient $\frac{q_i}{T}\bigl(s_i-\sum_kq_ks_k\bigr)$ by each logit, token by token. Top-$k$ shifts it by $p-\hat p$, whose absolute values sum to $2(1-M)$; $K$ samples add noise of variance $(1-\sum_ip_i^2)/K$ and no bias.
#
# **What to set.** `model.fused = True`, so that objectives get a `HeadLogits` and never all logits. `write_cache(path, teacher, text, kind="sampled", entries=…)` once, then `SparseForwardKL` with `TeacherCache(path)` as the teacher in `fit`.
#
# **What to watch for.** Take samples where the student's probabilities are used. A loss from samples reads too high, so compare it with no other. A cache is of one text and one teacher at $T=1$.
#
# ## Exercises
#
# ```{exercise}
# :label: ex-not-by-token
#
# DIST's second part is the correlation, over the examples of a batch, between teacher's and student's probability of one class. Why can `HeadLogits` not take it in one pass? Could it be taken in two?
# ```
#
# ```{solution} ex-not-by-token
# :class: dropdown
#
# The gradient with respect to one token's logits needs the means, variances and covariances of each class over *all* tokens, which are not known until the last chunk has been seen. But they are $5V$ numbers, whatever the number of tokens: sums of
# $q$, $p$, $q^2$, $p^2$ and $qp$. A first pass can collect them without gradients, and a second, which computes each chunk's logits again, can turn them into gradients. The price is one more product with the head.
# ```
#
# ```{exercise}
# :label: ex-two-draws
#
# Two words, equally likely, two draws. Compute $\mathbb E\,H(\hat p)$, and by how much the sparse KL is too large on average. Check it with `sparse_forward_kl`.
# ```
#
# ````{solution} ex-two-draws
# :class: dropdown
#
# With probability one half the draws agree, and $H(\hat p)=0$; otherwise $H(\hat p)=\log2$. So $\mathbb E\,H(\hat p)=\frac12\log2$ and the excess is $\log2-\frac12\log2=\frac12\log2\approx0.35$. With
# `sparse_forward_kl` on the four outcomes as a batch, and a student that equals the teacher, all of the mean is the excess:
#
# ```python
# drawn = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
# half = SparseTargets(drawn, torch.full((4, 2), 0.5), vocabulary=2)
# print(sparse_forward_kl(torch.zeros(4, 2), half))  # 0.3466
# ```
# ````
#
# ```{exercise}
# :label: ex-proposal
#
# Draw the words from another distribution $g$, and give each draw the weight $p_i/g_i$: $\hat p_i=\frac1K\frac{p_i}{g_i}\sum_a[x_a=i]$. Is it unbiased? For which $g$ is $\mathbb E\,\|\hat p-p\|^2$ smallest?
# ```
#
# ```{solution} ex-proposal
# :class: dropdown
#
# $\mathbb E\,\hat p_i=\frac{p_i}{g_i}g_i=p_i$ wherever $g_i>0$ for all $p_i>0$. The variance of a word is $\frac1K\bigl(\frac{p_i^2}{g_i}-p_i^2\bigr)$, so the sum is $\frac1K\bigl(\sum_i\frac{p_i^2}{g_i}-\sum_ip_i^2\bigr)$, and by Cauchy–Schwarz
# $\sum_i\frac{p_i^2}{g_i}=\sum_i\frac{p_i^2}{g_i}\sum_ig_i\ge\bigl(\sum_ip_i\bigr)^2=1$ with equality for $g=p$. In this norm nothing beats drawing from the teacher. Its weights are all equal, too, so that they sum to one without being scaled (which would bring back a bias).
# ```
#
# ```{exercise}
# :label: ex-more-kept
#
# An experiment: how does the calibration error of top-$k$ fall as more classes of the known posterior are kept, for one seed, and with it that of the target itself, the posterior restricted to them? Which of the two falls faster?
# ```
#
# ````{solution} ex-more-kept
# :class: dropdown
#
# `taught` takes the number of classes. The target's error is what is missing of the mass, up to the error of counting; the student's follows it, as long as it can fit what it is shown.
#
# ```python
# for kept_classes in (2, 4, 8):
#     target = keep(soften(truth), "top-k", kept_classes).dense().clamp(min=1e-30).log()
#     own = 100 * expected_calibration_error(target, unseen.labels)
#     student = 100 * taught("top-2", seeds[0], kept_classes)["ece"]
#     print(f"{kept_classes} classes: target {own:.1f}, student {student:.1f} points")
# ```
# ````
