# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Drafts for speculative decoding
#
# A language model writes one token, reads it, and writes the next. A large model needs time for each, even for tokens that a small model would have guessed.
# *Speculative decoding* lets the small one guess. This **draft** writes a few tokens ahead. The large one, the **verifier**, reads all of them in one *call* (one forward pass), keeps the first few of them, and adds
# one token of its own. No approximation is made: the text has the verifier's distribution, whatever the draft is {cite}`leviathan2023fast,chen2023accelerating`.
# A bad draft costs time, and nothing else.
#
# So nobody ever reads what this student writes. All that is asked of it is that its tokens be accepted, and how often they are can be computed. The question of this chapter is
# what such a student should learn, and whether it should learn it from the verifier.
#
# **At the end you will know** why the text is exactly the verifier's, also where numbers are rounded; why a draft is
# accepted with probability one minus total variation; how many tokens a call of the verifier yields; when time is
# saved and when it is not; and how the gradients of the divergences behave where draft and verifier share little.
#
# *Needs: one CPU core and under two minutes. The recorded runs took longer; the section says where.*

# %% tags=["parameters"]
profile = "cpu"  # or "gpu"
read_blocks: int = 120  # of 256 tokens, that each live draft reads
prompt_count: int = 32  # from which everything live goes on
written: int = 32  # tokens after each prompt
draft_length: int = 4  # γ, where one is shown
draft_lengths: list[int] = [2, 4, 8]  # γ, where they are compared

# %% tags=["hide-input"]
import html
import random
import statistics
import time
from dataclasses import replace
from fractions import Fraction
from functools import cache
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import scipy.stats
import sympy as sp
import torch
from IPython.display import Markdown, display

from kdlab.figures import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    Shown,
    dots,
    show,
    speed_up_dial,
    table,
    use_style,
)
from kdlab.language import (
    Drafting,
    generate,
    load_text_data,
    speculate,
    speed_up,
    tokens_per_call,
    try_draft,
)
from kdlab.models import GPT, count_parameters, gpt_64x2
from kdlab.objectives import (
    CrossEntropy,
    ForwardKL,
    TotalVariation,
    forward_kl,
    negative_log_acceptance,
    reverse_kl,
    soften,
    total_variation,
)
from kdlab.study import (
    book_language_teacher,
    mean_interval,
    paired_difference,
    ratio_interval,
    results,
)
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
from kdlab.study.drafts import acceptance_rate, call_yield, round_of, times_as_fast
from kdlab.study.evidence import QUANTITIES, Quantity, evidence
from kdlab.study.parameters import require
from kdlab.study.statements import above, below, undecided, within
from kdlab.training import Learner, Recipe, fast_precision, fit_together, measure_tokens

use_style()
device = device_for(profile)
PROMPT, WRITTEN, GAMMA = 32, written, draft_length
lengths = sorted(set(draft_lengths))
require(
    prompt_count >= 3,
    "prompt_count must be 3 or more: intervals are over prompts, and the clock leaves out the first.",
)
require(max(GAMMA, *lengths) <= 24, "draft lengths must be 24 or fewer.")
require(
    3 < WRITTEN <= 128,
    "written must be from 4 to 128: a block of the text has 256 tokens.",
)
data = load_text_data("book-openings-4096-256")
tokeniser = data.tokeniser
data_note(data)

# %% tags=["hide-input"]
findings = Findings()

# %% [markdown]
# ## A verifier and three drafts
#
# The verifier is the teacher of {doc}`17_distilling_a_small_language_model`, a draft is a small model. We train three of them here, for a few seconds each, on the same tokens, from the same initial weights: one *alone* with the next token of the
# books; one that minimises the forward KL from the verifier; one that minimises total variation from it. Why total variation will become clear. Drafts that have read so little are poor,
# but what is measured below can be seen with them; the recorded ones at the end of the chapter have read far more.

# %%
verifier = book_language_teacher(data, device=device)
precision = fast_precision(device)
recipe = Recipe(
    epochs=1, epoch_examples=min(read_blocks, len(data.train)),
    batch_size=min(4, read_blocks), optimizer="adamw",
    learning_rate=8e-3, weight_decay=0.1,
    schedule="cosine", warmup_epochs=0.1, augment=False,
    precision=precision, max_gradient_norm=1.0,
)  # fmt: skip


def newborn():
    torch.manual_seed(0)
    return gpt_64x2(data.num_classes).to(device)


objectives = {
    "alone": 1.0 * CrossEntropy(),
    "forward KL": 1.0 * ForwardKL(),
    "TV": 1.0 * TotalVariation(),
}
drafts = {name: newborn() for name in objectives}
for model in (verifier, *drafts.values()):
    model.fused = True
fit_together(
    [Learner(drafts[name], objectives[name], recipe) for name in objectives],
    train=data.train,
    teacher=verifier,
    device=device,
)
for model in (verifier, *drafts.values()):
    model.fused = False
    model.eval()

# %% tags=["hide-input"]
HUES = dict(zip(drafts, (ORANGE, BLUE, GREEN), strict=True))
Markdown(
    f"The verifier has {count_parameters(verifier):,} parameters, a draft {count_parameters(drafts['alone']):,}."
)

# %% [markdown]
# Everything live in this chapter happens on beginnings of blocks of the validation text.

# %% tags=["hide-input"]
blocks, _, _ = next(data.validation.spread(prompt_count).batches(prompt_count))
blocks = blocks[:, : PROMPT + WRITTEN].to(device)
prompts = blocks[:, :PROMPT]
Markdown(
    f"There are {len(prompts)} prompts of {PROMPT} tokens, and {WRITTEN} tokens to write after each."
)

# %% [markdown]
# ## A round
#
# Call $p$ the verifier's distribution of the next token and $q$ the draft's. The draft writes $\gamma$ tokens $x_1,\dots,x_\gamma$, each drawn from its own $q$. The verifier reads all of them in *one* call,
# which gives its $p$ at each of these places (positions in the text) and at the one after them. Then, from left to right:
#
# - the token $x$ is **accepted** with probability $\min\bigl(1,\,p(x)/q(x)\bigr)$;
# - the first that is not accepted is **refused**, and replaced by a token from what the draft gave too little to, $\max(p-q,0)$, normalised; those after it are thrown away;
# - if none was refused, one more token is drawn from $p$, free of charge.
#
# So a round always writes between one and $\gamma+1$ tokens. Before the first round the verifier has read the prompt,
# and this call gives the first token. The next cell shows all of it, without the caches that make it fast. To see
# rounds at work, we need a draft that is not poor. For this one figure, and for no measurement of time, it is the
# verifier itself, with only the last few tokens in view: it knows how words continue, but not what the text is about.


# %%
@torch.no_grad()
def by_hand(verifier, draft, text, *, tokens, gamma, generator):
    """Text that goes on from ``text``, shape (1, P), and what each round did."""
    rounds, end = [], text.shape[1] + tokens
    p = soften(verifier(text)[:, -1])
    text = torch.cat([text, torch.multinomial(p, 1, generator=generator)], 1)
    while (begun := text.shape[1]) < end:
        proposal, q = text, []
        for _ in range(gamma):
            q.append(soften(draft(proposal)[:, -1]))
            drawn = torch.multinomial(q[-1], 1, generator=generator)
            proposal = torch.cat([proposal, drawn], 1)
        q, x = torch.cat(q), proposal[:, begun:]
        p = soften(verifier(proposal)[0, begun - 1 :])  # gamma + 1 distributions

        of_p, of_q = (each[range(gamma), x[0]] for each in (p, q))
        u = torch.rand(x.shape, generator=generator, device=x.device)[0]
        accepted = int((u * of_q < of_p).long().cumprod(0).sum())
        if accepted < gamma:
            left = (p[accepted] - q[accepted]).clamp(min=0)
        else:
            left = p[gamma]
        # normalises by itself
        new = torch.multinomial(left[None], 1, generator=generator)
        text = torch.cat([proposal[:, : begun + accepted], new], 1)
        ratios = (of_p / of_q).clamp(max=1).tolist()
        rounds.append((x[0].tolist(), accepted, new.item(), ratios))
    return text[:, :end], rounds


# %% tags=["hide-input"]
def seeded(seed=0):
    return torch.Generator(device).manual_seed(seed)


@cache
def counted(name, gamma):
    """What is counted when the package goes on from all prompts with one of the drafts."""
    return speculate(
        verifier,
        drafts[name],
        prompts,
        tokens=WRITTEN,
        draft_length=gamma,
        generator=seeded(),
    )


REMEMBERED = 8


def forgetful(text):
    """The verifier, with no more than the last few tokens in view."""
    return verifier(text[:, -REMEMBERED:])


def told_by(draft, prompt):
    return by_hand(
        verifier, draft, prompt, tokens=WRITTEN, gamma=GAMMA, generator=seeded()
    )


tries = [(prompt, *told_by(forgetful, prompt)) for prompt in prompts[:7].split(1)]
tries.sort(key=lambda each: len(each[2]))  # by the number of rounds
example, told, rounds = tries[len(tries) // 2]

STYLES = {
    "accepted": "background:rgba(0,158,115,0.25)",
    "refused": "background:rgba(213,94,0,0.30);text-decoration:line-through",
    "thrown away": "opacity:0.75;text-decoration:line-through dotted",
    "the verifier's own": "background:rgba(0,114,178,0.22);border-bottom:2px solid #0072B2",
}


def token(number, kind, title=""):
    text = html.escape(tokeniser.decode([number])).replace("\n", "⏎")
    return f'<span title="{html.escape(title)}" style="{STYLES[kind]};white-space:pre-wrap;padding:0 1px">{text}</span>'


def drawn_round(x, accepted, new, ratios):
    """One round as HTML."""
    kinds = ["accepted"] * accepted + ["refused"] + ["thrown away"] * len(x)
    parts = [
        token(number, kind, f"{kind}; accepted with probability {ratio:.2f}")
        for number, kind, ratio in zip(x, kinds, ratios, strict=False)
    ]
    return (
        "".join(parts)
        + " → "
        + token(new, "the verifier's own", "drawn by the verifier")
    )


lines = "".join(
    f'<li style="margin:0.15rem 0">{drawn_round(*each)}</li>' for each in rounds
)
key = " · ".join(
    f'<span style="{style};padding:0 0.3rem">{name}</span>'
    for name, style in STYLES.items()
)
begun = html.escape(" ".join(tokeniser.decode(example[0].tolist()).split()))
first = token(
    told[0, PROMPT].item(), "the verifier's own", "from the call on the prompt"
)
proposed = sum(len(x) for x, *_ in rounds)
believed = sum(accepted for _, accepted, *_ in rounds)
beyond = 1 + believed + len(rounds) - WRITTEN  # the first token was not of a round
overshoot = (
    f"With the first, these are {beyond} more than the {WRITTEN} that were asked for; the end is cut off. "
    if beyond
    else ""
)
Shown(
    f'<figure class="kd-figure" id="fig-rounds"><div style="font-size:0.92rem"><p style="margin-bottom:0.4rem">{key}</p><p style="margin-bottom:0.4rem"><em>{begun}</em> … {first}</p>'
    f'<ol style="margin-bottom:0;columns:2 17rem">{lines}</ol></div><figcaption>The verifier goes on from a prompt (italic), with itself as draft, which sees the last {REMEMBERED} tokens alone; a line is a round of γ = {GAMMA}, ⏎ the end of a line of text. The text is what is on coloured ground and not struck out, read from line to line. '
    f"{len(rounds)} calls of the verifier after that on the prompt wrote {believed + len(rounds)} tokens: {believed} of {proposed} from the draft, one a round its own. {overshoot}Of the first {len(tries)} prompts, it is the one with the median number of rounds. A pointer held over a token shows with which probability it was to be accepted.</figcaption></figure>"
)

# %% [markdown]
# The package's `speculate` does the same for many texts at once, and keeps what both models have read. It draws its random numbers in the same order, so that it should write the same text. We ask it with the forward-KL draft.

# %% tags=["hide-input"]
found = speculate(
    verifier,
    drafts["forward KL"],
    example,
    tokens=WRITTEN,
    draft_length=GAMMA,
    generator=seeded(),
)
text, in_rounds = told_by(drafts["forward KL"], example)
differ = {
    "the number of tokens that differ": (found.text != text).sum().item(),
    "the number of calls that differ": abs(found.calls.item() - len(in_rounds)),
}
display(
    *(
        within(
            what,
            0,
            0,
            {what: n},
            Quantity("a comparison of the two programs", digits=0),
        )
        for what, n in differ.items()
    )
)

# %% [markdown]
# ## Why the text is the verifier's
#
# Take one place. A token $x$ can be written there in two ways. The draft proposed it and it was accepted: this has probability $q(x)\min(1,p(x)/q(x))=\min(p(x),q(x))$. Or whatever the draft
# proposed was refused, which has probability $1-\sum_y\min(p(y),q(y))$, and then $x$ was drawn from the rest. Together
#
# $$ \min(p(x),q(x))\;+\;\Bigl(1-\sum_y\min(p(y),q(y))\Bigr)\,\frac{\max(p(x)-q(x),0)}{\sum_y\max(p(y)-q(y),0)}\;=\;p(x). $$
#
# It takes two lines. For any two numbers $\min(a,b)+\max(a-b,0)=a$. Summed over the vocabulary with $a=p(y)$, $b=q(y)$, this says that $\sum_y\max(p(y)-q(y),0)=1-\sum_y\min(p(y),q(y))$: the bracket and the denominator are the same number, and cancel. What is left is the identity itself.
#
# The next place is the same, given what stands before it. That a token is kept depends on nothing after it, so throwing away the tail says nothing about what was kept. By induction, the whole text has the verifier's
# distribution. SymPy knows the first line; for the rest there is a type of number that does not round.

# %%
a, b = sp.symbols("a b", real=True)
first_line = sp.Min(a, b) + sp.Max(a - b, 0) - a
assert sp.simplify(first_line.rewrite(sp.Abs)) == 0


def fractions(draws, letters=5):
    """A distribution of whole fractions, with some zeros."""
    counts = [draws.choice((0, 1, 2, 5, 9)) for _ in range(letters)]
    counts[draws.randrange(letters)] += 1
    return [Fraction(c, sum(counts)) for c in counts]


draws = random.Random(0)
for _ in range(2000):
    P, Q = fractions(draws), fractions(draws)
    if P == Q:
        continue  # nothing is ever refused
    kept = [min(x, y) for x, y in zip(P, Q, strict=True)]
    rest = [max(x - y, 0) for x, y in zip(P, Q, strict=True)]
    outcome = [
        k + (1 - sum(kept)) * r / sum(rest) for k, r in zip(kept, rest, strict=True)
    ]
    assert outcome == P  # equal as fractions, not nearly

# %% [markdown]
# ### Counting texts
#
# A proof is about the algorithm; a program is another matter. For models with an alphabet of three letters, the probability of each of the 81 texts of four letters can be computed, and the texts that the program writes can be
# counted. <!-- by definition --> Pearson's $\chi^2$ compares them. (The call on the prompt gives the first letter, rounds the three others.) A test that refuses nothing proves nothing, so we also say what it *would* refuse: the draft's own texts, and texts of which one in ten is the draft's.

# %% tags=["hide-input"]
LETTERS, LENGTH, DRAWN, LEVEL = 3, 4, 12_500, 1e-3


def tiny(seed):
    """A model whose distributions are neither even nor certain."""
    torch.manual_seed(seed)
    model = GPT(LETTERS, width=16, layers=2, heads=2, context=16)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    return model


def of_texts(model, prompt):
    """The probability of each text of LENGTH letters after the prompt."""
    texts = torch.tensor(list(product(range(LETTERS), repeat=LENGTH)))
    whole = torch.cat([prompt.expand(len(texts), -1), texts], 1)
    with torch.no_grad():
        log_p = model(whole[:, :-1]).double().log_softmax(-1)[:, prompt.shape[1] - 1 :]
    found = log_p.gather(2, texts[..., None]).sum((1, 2)).exp()
    return (found / found.sum()).numpy()


def counts(texts):
    places = LETTERS ** torch.arange(LENGTH - 1, -1, -1)
    numbers = (texts[:, -LENGTH:] * places).sum(1)
    return torch.bincount(numbers, minlength=LETTERS**LENGTH).numpy()


tiny_verifier, tiny_draft = tiny(4), tiny(5)
start = torch.tensor([[1, 2]])
many = start.expand(DRAWN, -1)
P, Q = of_texts(tiny_verifier, start), of_texts(tiny_draft, start)
assert DRAWN * P.min() > 1 and (DRAWN * P < 5).mean() < 0.2  # Cochran's rule

# %%
tests, spoken = [], []
for gamma, stop in ((1, 0.0), (3, 0.0), (3, 0.4)):
    said = speculate(
        tiny_verifier,
        tiny_draft,
        many,
        tokens=LENGTH,
        draft_length=gamma,
        stop_below=stop,
        generator=torch.Generator().manual_seed(gamma),
    )
    spoken.append(said)
    chi = scipy.stats.chisquare(counts(said.text), DRAWN * P)
    assert chi.pvalue > LEVEL
    name = f"speculation, γ = {gamma}" + (f", stops below {stop}" if stop else "")
    tests.append([name, f"{chi.statistic:.1f}", f"{chi.pvalue:.2f}"])

# %% tags=["hide-input"]
text = generate(
    tiny_draft, many, tokens=LENGTH, generator=torch.Generator().manual_seed(0)
)
chi = scipy.stats.chisquare(counts(text), DRAWN * P)
assert chi.pvalue < 1e-9
tests.append(["the draft alone", f"{chi.statistic:.0f}", "below $10^{-9}$"])

mixed = 0.9 * P + 0.1 * Q
freedom = len(P) - 1
noncentral = DRAWN * ((mixed - P) ** 2 / P).sum()
power = scipy.stats.ncx2.sf(scipy.stats.chi2.isf(LEVEL, freedom), freedom, noncentral)
assert power > 0.99

Markdown(
    f"{DRAWN:,} texts of {LENGTH} letters against the verifier's exact distribution, $\\chi^2$ with {freedom} degrees of freedom: "
    + "; ".join(f"{name}, {chi} (p-value {p})" for name, chi, p in tests)
    + f". Were one text in ten the draft's, which is a total variation of {np.abs(mixed - P).sum() / 2:.3f}, the test would refuse at {LEVEL} with probability {power:.3f}."
)

# %% [markdown]
# ### What "exactly" means in floating point
#
# At temperature zero all distributions sit on one token. A proposal is then accepted if it is the verifier's own first choice, and the text must be that of plain greedy decoding, token for token. Two
# things can come between. The verifier's call on several tokens multiplies other shapes of matrices than its call on one, and so its sums are rounded in another order. <!-- by definition --> And where two logits are closer than that, the
# first choice may turn. <!-- by definition --> So we measure both: how much the logits differ between calls on $\gamma+1$ tokens of one and the same text and calls on one, and how close the two likeliest tokens come. <!-- by definition -->

# %%
greedy = {"tokens": WRITTEN, "temperature": 0}
plain = generate(verifier, prompts, **greedy)
quick = speculate(verifier, drafts["forward KL"], prompts, draft_length=GAMMA, **greedy)

# %% tags=["hide-input"]
with torch.no_grad():
    read = {}
    for width in (1, GAMMA + 1):
        cache = verifier.cache(len(plain))
        verifier(plain[:, :PROMPT], cache)
        parts = plain[:, PROMPT:].split(width, 1)
        read[width] = torch.cat([verifier(part, cache) for part in parts], 1)
singly, together = read.values()
rounding = (together - singly).abs().max().item()
best = singly.topk(2, -1).values
closest = (best[..., 0] - best[..., 1]).min().item()
differing = (quick.text != plain).any(1).sum().item()
in_probability = total_variation(together, singly, reduction="none").max().item()
display(
    Markdown(
        f"Calls on {GAMMA + 1} tokens and on one: the largest difference of a logit is {rounding:.1e}, the smallest distance of the two likeliest is {closest:.1e}, and the largest total variation between the two {in_probability:.1e}."
    )
)
texts_that_differ = "the number of texts that differ"
display(
    within(
        texts_that_differ,
        0,
        0,
        {texts_that_differ: differing},
        Quantity(
            f"a comparison of {len(plain)} greedy texts with plain decoding", digits=0
        ),
    )
)

# %% [markdown]
# The gap of two logits changes by at most twice what a logit changes by. <!-- by definition --> So if the second number is more than twice the first, no first choice turns between these calls; where it is not, it may, and from there on the texts are different. <!-- by definition --> (The calls of `speculate` are as wide, and begin at other places of the text: the first number says of what size their rounding is, and is no bound for it.)
# In bfloat16 numbers have sixteen bits fewer, and texts may diverge sooner. At temperature one rounding of this size moves probabilities by about what the last line says. That is what the word means in practice: the distribution of the verifier *as this program computes it*, in products of another shape. It is as
# exact as running the same model with another batch size, and no more.
#
# ## How often a draft is accepted
#
# The probability that a proposal is accepted, before it is known, is the expectation of $\min(1,p/q)$ over the draft's own choice,
#
# $$ \alpha=\sum_x q(x)\min\Bigl(1,\frac{p(x)}{q(x)}\Bigr)=\sum_x\min(p(x),q(x))=1-\tfrac12\sum_x|p(x)-q(x)|=1-\mathrm{TV}(p,q), $$
#
# because $\min(p,q)=\frac12(p+q-|p-q|)$ and both sum to one. No other rule does better: a token that is proposed with probability $q(x)$ and written with probability $p(x)$ can be both at most with probability $\min(p(x),q(x))$. <!-- by definition -->
# The acceptance *is* one of the divergences of {doc}`07_divergences`.
#
# Does the program agree? For every token that the verifier comes to, `speculate` adds up $1-\mathrm{TV}$ from the two distributions, and counts whether the token was accepted. Given what stood before a test, the difference of the two has mean zero, and so has the sum of these differences
# over a text (they form a martingale). Here it is, prompt by prompt.

# %%
tried = {name: counted(name, GAMMA) for name in drafts}
off = {
    name: mean_interval((s.accepted - s.expected).tolist()) for name, s in tried.items()
}
acceptance = {
    name: ratio_interval(s.accepted.tolist(), s.tested.tolist())
    for name, s in tried.items()
}

# %% tags=["hide-input"]
figure, panel = plt.subplots(figsize=(5.2, 3.7))
top = max(max(s.accepted.max(), s.expected.max()).item() for s in tried.values()) + 1
panel.plot([0, top], [0, top], color="grey", linewidth=1)
for name, s in tried.items():
    panel.plot(s.expected.tolist(), s.accepted.tolist(), "o", color=HUES[name], alpha=0.55, markersize=4.5, mew=0, label=name)  # fmt: skip
panel.set(xlabel="expected, sum of $1-\\mathrm{TV}$", ylabel="accepted")
panel.legend(fontsize="small")
show(
    figure,
    label="expected",
    caption=f"Draft tokens accepted while {WRITTEN} were written (those that the last round accepts beyond the end are counted too), against what total variation let expect; one dot per prompt, $\\gamma={GAMMA}$. Accepted minus expected, mean over {len(prompts)} prompts with 95 % interval: "
    + "; ".join(
        f"{name} {i.mean:+.2f} [{i.low:+.2f}, {i.high:+.2f}]" for name, i in off.items()
    )
    + ".",
    alt="Points scattered around the diagonal, for three drafts.",
)

# %% tags=["hide-input"]
per_text = {
    "counted": sum(s.accepted for s in spoken).tolist(),
    "expected from total variation": sum(s.expected for s in spoken).tolist(),
}
of_all = Quantity(
    "letters accepted in a text, three ways to propose together", digits=3
)
by_text = replace(evidence(per_text, of_all), notes="texts in the place of seeds")
within(
    "counted",
    "expected from total variation",
    0.05,
    by_text,
    names={"counted": "the count"},
)

# %% [markdown]
# That sentence is about the tiny models of the section before, whose texts are many enough for a narrow interval. The figure's drafts are all tried with the same random numbers, so that they are lucky together.
#
# *Which* contexts, though? Total variation can be taken on the books' text, position by position, as in training. It can be taken on what the verifier writes, which is what a draft has to go on from. And there is the measured ratio, over the places that were tested: the free token
# at the end of a full round is never tested. The three need not agree.

# %%
continued = generate(verifier, prompts, tokens=WRITTEN, generator=seeded(1))


@torch.no_grad()
def overlaps(draft, text):
    """1 − TV at each place after the prompt, shape (texts, places)."""
    pair = (model(text[:, :-1])[:, PROMPT - 1 :] for model in (draft, verifier))
    return 1 - total_variation(*pair, reduction="none").cpu().numpy()


overlap = {
    name: {"books": overlaps(draft, blocks), "verifier": overlaps(draft, continued)}
    for name, draft in drafts.items()
}

# %% tags=["hide-input"]


def shown(i):
    return f"{i.mean:.3f} [{i.low:.3f}, {i.high:.3f}]"


table(
    ["draft", "$1-\\mathrm{TV}$ on the books", "on the verifier's text", "accepted / tested"],
    [
        [name, *(shown(mean_interval(values.mean(1))) for values in overlap[name].values()), shown(acceptance[name])]
        for name in drafts
    ],
    caption=f"Acceptance in three ways, with 95 % intervals over the {len(prompts)} prompts (not over trainings). The first is what a training curve shows, the last is what decoding gets.",
)  # fmt: skip

# %% [markdown]
# ## Tokens per call
#
# Suppose that every proposal were accepted with one and the same probability $\alpha$, independently. Then the $k$-th token of a round is written by the draft with probability $\alpha^k$, the verifier always adds one, and a call brings
#
# $$ 1+\alpha+\alpha^2+\dots+\alpha^\gamma=\frac{1-\alpha^{\gamma+1}}{1-\alpha} $$
#
# tokens on average {cite}`leviathan2023fast`. Contexts are not so. After some beginnings there is hardly a choice, after others there are hundreds. Here is how $\alpha$ is spread over the places of the verifier's text.
#
# (What is measured as tokens per call is one plus accepted over calls. The last round of a text may go beyond the end that was asked for; what it accepts there is counted, and then cut off. So this is what a round brings, as in the formula, and is a little more than the tokens of the text over its calls.) <!-- by definition -->

# %% tags=["hide-input"]
name = "forward KL"
places = overlap[name]["verifier"]
centred = places - places.mean()
together = [
    (centred[:, lag:] * centred[:, : WRITTEN - lag]).mean() / (centred**2).mean()
    for lag in (1, 2, 3)
]
by_length = {gamma: counted(name, gamma) for gamma in lengths}


def brought(s):
    """Tokens per call, with an interval over prompts."""
    return ratio_interval((s.accepted + s.calls).tolist(), s.calls.tolist())


def pooled(s):
    """Accepted of tested."""
    return (s.accepted.sum() / s.tested.sum()).item()


# %% [markdown]
# If $\alpha$ differs from round to round but not within one, what happens to the formula can be said exactly; write $f(\alpha)$ for it. A call brings $\mathbb E f(\alpha)$, the mean over rounds. Since $f$ is convex, Jensen's inequality gives
# $\mathbb E f(\alpha)\ge f(\mathbb E\alpha)$: runs of acceptance help. But nobody measures $\mathbb E\alpha$. What is measured is accepted over tested, $r$, and this ratio counts easy rounds more often, because
# more of their tokens are tested. With *this* mean the inequality turns around:
#
# $$ f(\mathbb E\alpha)\;\le\;\mathbb E f(\alpha)\;\le\;f(r),\qquad r=\frac{\mathbb E[\alpha+\dots+\alpha^{\gamma}]}{\mathbb E[1+\dots+\alpha^{\gamma-1}]}. $$
#
# The second inequality is an exercise. With $\gamma=1$ it is an equality whatever the contexts. So the formula, fed with the measured acceptance, promises too much, if anything. A mixture of easy and hard rounds shows by how much:

# %%
draws = np.random.default_rng(0)
for _ in range(1000):
    kinds = draws.integers(2, 6)
    levels, shares = draws.random(kinds), draws.dirichlet(np.ones(kinds))
    for gamma in (1, *lengths):
        true = shares @ [tokens_per_call(x, gamma) for x in levels]
        tests_made = shares @ [tokens_per_call(x, gamma - 1) for x in levels]
        r = (true - 1) / tests_made
        assert tokens_per_call(shares @ levels, gamma) <= true + 1e-9
        assert true <= tokens_per_call(r, gamma) + 1e-9

# %% tags=["hide-input"]
two = {}
for gamma in lengths:
    true = np.mean([tokens_per_call(x, gamma) for x in (0.1, 0.9)])
    r = (true - 1) / np.mean([tokens_per_call(x, gamma - 1) for x in (0.1, 0.9)])
    two[gamma] = (tokens_per_call(0.5, gamma), true, tokens_per_call(r, gamma))
Markdown(
    "Rounds of 0.1 and 0.9 in equal parts: "
    + "; ".join(
        f"{low:.2f} ≤ {true:.2f} ≤ {high:.2f} for $\\gamma={gamma}$"
        for gamma, (low, true, high) in two.items()
    )
    + "."
)

# %% tags=["hide-input"]
figure, (left, right) = plt.subplots(1, 2, figsize=(8.2, 3.2))
left.hist(places.flatten(), bins=np.linspace(0, 1, 26), color=SKY)
left.axvline(places.mean(), color=BLUE, linestyle="--")
left.set(xlabel="$\\alpha=1-\\mathrm{TV}$ (dashed: mean)", ylabel="places of the text")
grid = range(1, max(lengths) + 1)
too_much = {
    g: tokens_per_call(pooled(by_length[g]), g) - brought(by_length[g]).mean
    for g in lengths
}
right.plot(
    grid,
    [tokens_per_call(places.mean(), g) for g in grid],
    "--",
    color=BLUE,
    label="formula at the mean of places",
)
right.plot(
    lengths,
    [tokens_per_call(pooled(by_length[g]), g) for g in lengths],
    "D-",
    color=ORANGE,
    mfc="none",
    label="formula at accepted / tested",
)
for gamma in lengths:
    i = brought(by_length[gamma])
    right.plot([gamma] * 2, [i.low, i.high], color=VERMILION)
    right.plot(
        gamma,
        i.mean,
        "o",
        color=VERMILION,
        label="measured" if gamma == lengths[0] else None,
    )
right.set(xlabel="draft length $\\gamma$", ylabel="tokens per call of the verifier")
right.legend(fontsize="x-small")
show(
    figure,
    label="runs",
    caption=f"The forward-KL draft on the verifier's text. Left: its acceptance at {places.size:,} places; mean {places.mean():.2f}, standard deviation {places.std():.2f}; correlation of neighbours {together[0]:+.2f}, of places two and three apart {together[1]:+.2f} and {together[2]:+.2f}. "
    f"Right: tokens per call, measured with 95 % intervals over {len(prompts)} prompts, and two formulae. The formula at accepted over tested minus what was measured: "
    + ", ".join(f"{too_much[g]:+.3f} ($\\gamma={g}$)" for g in lengths)
    + ".",
    alt=f"Left, a histogram of acceptance, nine tenths of which lie between {np.quantile(places, 0.05):.2f} and {np.quantile(places, 0.95):.2f}. Right, tokens per call against draft length: measured points with bars beside two curves that flatten.",
)

# %% [markdown]
# How much neighbouring places have in common decides how far apart the two formulae are, and the caption says how much that is here. A draft that has hardly begun to use the context may have little of it; the recorded drafts further below are asked again. The unevenness can be used. A draft that doubts itself can stop: `stop_below` ends a proposal after a token to which the draft itself gave little.
# Then hard places cost few proposals and easy stretches still get long ones. The text stays exact, because the decision to stop depends only on what has been proposed, and never on what the verifier will say. The recorded
# runs below have such a column.
#
# ## How much time it saves
#
# A round takes $\gamma$ calls of the draft and one of the verifier. Let a call of the draft cost $c$ calls of the verifier, and let the verifier read $\gamma+1$ tokens *in the time of one*. Then the speed-up is
#
# $$ S=\frac{1-\alpha^{\gamma+1}}{(1-\alpha)(\gamma c+1)}. $$
#
# The second assumption is about hardware. A GPU that decodes one text of a large model spends nearly all its time on fetching the weights, and can multiply them with several tokens while they are there. On a CPU
# arithmetic is dearer; but weights that do not fit into its cache have to be fetched there too, and each operation costs something before it begins. So let $v_k$ be the cost of a call on $k$ tokens, in calls on one, and measure everything: the draft writes for one prompt at a time, beside plain decoding, with a
# stopwatch on each call of either model.

# %% tags=["hide-input"]
draft = drafts["forward KL"]
log = []  # who looked, at how many tokens, and how long


def watched(name, model):
    """Put a stopwatch on a model's calls; what takes it off again."""
    begun = []

    def now():
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def before(module, inputs):
        begun.append(now())

    def after(module, inputs, output):
        log.append((name, inputs[0].shape[1], now() - begun.pop()))

    return model.register_forward_pre_hook(before), model.register_forward_hook(after)


def one_by_one(number):
    for place, row in enumerate(prompts[:number].split(1)):
        if place == 1:
            log.clear()  # the first prompt is for warming up
        yield row


drafting = Drafting(
    prompts=min(9, len(prompts)),
    prompt=PROMPT,
    tokens=WRITTEN,
    rounds=tuple((gamma, 0.0) for gamma in lengths),
)
watches = watched("verifier", verifier) + watched("draft", draft)
clock = try_draft(verifier, draft, one_by_one(drafting.prompts), drafting)
for watch in watches:
    watch.remove()
clock = {"plain_seconds": clock["plain_seconds"][1:]} | {
    "rounds": [
        {
            key: value[1:] if isinstance(value, list) else value
            for key, value in each.items()
        }
        for each in clock["rounds"]
    ]
}


def looks(name, *widths):
    """Seconds of each call at so many tokens."""
    return [seconds for who, width, seconds in log if who == name and width in widths]


one = statistics.mean(looks("verifier", 1))
c = statistics.mean(looks("draft", 1, 2)) / one
v = {
    width: statistics.mean(looks("verifier", width)) / one
    for width in (1, *(gamma + 1 for gamma in lengths))
}
display(
    Markdown(
        f"A call of the verifier on one token takes {1e3 * one:.1f} ms, and $c={c:.2f}$. In such calls, it costs "
        + ", ".join(f"{v[width]:.2f} to read {width}" for width in v if width > 1)
        + "."
    )
)


# %% tags=["hide-input"]
def measured_speed(found):
    """Plain seconds over speculative ones, by draft length."""
    return {
        each["draft_length"]: ratio_interval(found["plain_seconds"], each["seconds"])
        for each in found["rounds"]
        if not each["stop_below"]
    }


speeds = measured_speed(clock)
predictions = {
    "if each call cost the same": {
        g: speed_up(pooled(by_length[g]), g, c) for g in lengths
    },
    "with the calls' own cost": {
        g: brought(by_length[g]).mean / (g * c + v[g + 1]) for g in lengths
    },
}

# %% tags=["hide-input"]
figure, (left, right) = plt.subplots(1, 2, figsize=(8.2, 3.2))
left.plot(list(v), list(v.values()), "o-", color=VERMILION, label="measured")
left.axhline(1, color="grey", linewidth=1)
left.plot(list(v), list(v), ":", color="grey")
left.text(
    list(v)[-1],
    list(v)[-1],
    "as many calls on one",
    color="grey",
    fontsize="small",
    ha="right",
)
left.set(
    xlabel="tokens in one call of the verifier",
    ylabel="cost, in calls on one token",
    ylim=(0, list(v)[-1] + 0.5),
)
right.axhline(1, color="grey", linewidth=1)
for (what, values), style, hue in zip(
    predictions.items(), ("D--", "s-"), (ORANGE, PURPLE), strict=True
):
    right.plot(lengths, list(values.values()), style, color=hue, mfc="none", label=what)
for gamma, i in speeds.items():
    right.plot([gamma] * 2, [i.low, i.high], color=VERMILION)
    right.plot(gamma, i.mean, "o", color=VERMILION, label="measured" if gamma == lengths[0] else None)  # fmt: skip
right.set(
    xlabel="draft length $\\gamma$",
    ylabel="times as fast as plain decoding",
    ylim=(0, None),
)
right.legend(fontsize="x-small")
show(
    figure,
    label="clock",
    caption=f"On this machine's CPU, with the forward-KL draft. Left: what a call on several tokens costs (means, in use; a call of the draft costs {c:.2f}). Right: speed-up over plain decoding, above the grey line faster: predicted by the formula, predicted with the measured cost of calls, and measured "
    f"on {len(clock['plain_seconds'])} prompts, one at a time, with 95 % intervals.",
    alt="Left, cost of a call against the tokens in it. Right, speed-up against draft length: two predictions and the measured points with the line at one.",
)

# %% tags=["hide-input"]
fastest = max(speeds, key=lambda g: speeds[g].mean)
gain = speeds[fastest]
if gain.low > 1:
    time_said = "This draft saves time here"
elif all(i.high < 1 for i in speeds.values()):
    time_said = "This draft saves no time here: at every draft length that was tried, plain decoding is faster"
else:
    time_said = "Whether this draft saves time here is not told apart from chance"
Markdown(
    f"{time_said}. The best of the draft lengths {', '.join(map(str, lengths))} is {fastest}: {gain.bracketed('.2f')} times as fast ({gain.n} prompts)."
)

# %% [markdown]
# Some of what is missing between the measured points and the second prediction is the reading of the prompt, which is in all times, and what a last round writes beyond the end. The rest must be time that neither model's calls account for. Here are the shares.

# %% tags=["hide-input"]
asked = len(clock["plain_seconds"])
reading = {name: statistics.mean(looks(name, PROMPT)) for name in ("verifier", "draft")}
spent, of_draft = {gamma: [] for gamma in lengths}, 0.0
for who, width, seconds in log:
    if width == PROMPT:
        of_draft = 0.0
    elif who == "draft":
        of_draft += seconds
    elif width > 1:
        spent[width - 1].append((of_draft, seconds))
        of_draft = 0.0

shares = []
for each in clock["rounds"]:
    gamma, rounds_made = each["draft_length"], sum(each["calls"])
    assert rounds_made == len(spent[gamma])
    whole = (sum(each["seconds"]) - asked * sum(reading.values())) / rounds_made
    by_draft, by_verifier = np.mean(spent[gamma], 0) / whole
    shares.append(
        f"{by_draft:.0%} the draft's calls, {by_verifier:.0%} the verifier's, {1 - by_draft - by_verifier:.0%} all else ($\\gamma={gamma}$)"
    )
Markdown(
    f"Of the time of a round, without the reading of the prompt, are: {'; '.join(shares)}. Means over {asked} prompts."
)

# %% [markdown]
# "All else" is drawing from and comparing distributions over the vocabulary for each proposal, moving the caches back, and Python. Much of it has to be done anew for every proposal, as the draft's calls are. None of this says much about a GPU and a large verifier, in either direction: the acceptance
# carries over to other machines, the clock does not.
#
# ### The speed-up, to try out
#
# Set the acceptance, the draft length, and the two costs: $c$, and $w$, what each further token costs the verifier in a call ($v_{\gamma+1}=1+w\gamma$; zero is the formula's assumption, one a machine that reads one token after another). <!-- by definition --> Points are
# measured: circles tokens per call, diamonds speed-up.

# %% tags=["hide-input"]
small, large = results("drafts-small"), results("drafts")
studies = (small, large)
ARMS = {
    "alone": "alone",
    "forward-kl": "forward KL",
    "reverse-kl": "reverse KL",
    "tv": "TV",
    "log-acceptance": "−log acceptance",
    "own-text": "forward KL, own text",
}


def plan_of(study):
    return next(spec.drafting for spec in study.specs if spec.drafting)


def with_points(study):
    """Measured points of each arm: (γ, tokens per call, speed-up), and its acceptance."""
    found = []
    for arm in study.ready(ARMS):
        ways = [length for length, stop in plan_of(study).rounds if not stop]
        points = [[g, *(study.mean(arm, m(g)).mean for m in (call_yield, times_as_fast))] for g in ways]  # fmt: skip
        found.append(
            {
                "name": f"{ARMS[arm]} ({'CPU' if study is small else 'GPU'})",
                "alpha": study.mean(arm, acceptance_rate(ways[1])).mean,
                "points": points,
            }
        )
    return found


longest = max(lengths)
w = (v[longest + 1] - 1) / longest
sets = [
    {
        "name": "live, forward KL",
        "alpha": pooled(counted("forward KL", GAMMA)),
        "points": [[g, brought(by_length[g]).mean, speeds[g].mean] for g in lengths],
    },
    *(entry for study in studies for entry in with_points(study)),
]

# %% tags=["hide-input"]
caption = (
    f"Dashed blue, tokens per call; red, speed-up; a heavier grey line at one, below which plain decoding is faster. It starts at what was measured live: $\\alpha={sets[0]['alpha']:.2f}$, $c={c:.2f}$, $w={w:.2f}$. "
    "The buttons choose whose measured points are shown, and set $\\alpha$ to theirs, measured at one draft length; the costs stay as you set them. The red curve counts calls alone: drawing, comparing and Python are left out, and where they weigh, diamonds lie below it. Recorded diamonds are of the machine of their records, $c$ and $w$ of this build."
)
speed_up_dial(sets, draft_cost=c, token_cost=w, label="turn", caption=caption)

# %% [markdown]
# Three settings are worth trying. With $w=0$ and a cheap draft, the best draft length is long, and grows quickly as $\alpha$ nears one. With $c$ above $\alpha$ no draft length helps, whatever the verifier
# can read in a call ($\gamma=1$ gains if $1+\alpha>1+c$; an exercise has the rest). And where $c+w\ge\alpha$ nothing helps at all, by the same exercise: a proposal then costs at least as much as it yields. <!-- by definition --> With $w=1$ this is always so, since a call at $\gamma+1$ tokens costs what $\gamma+1$ calls cost, and the refused ones are waste.
#
# ## What a draft should learn
#
# A draft is worth what is accepted of it, and that is $1-\mathrm{TV}$. Then why not minimise total variation itself, or, since acceptances multiply along a round, $-\log\alpha$? DistillSpec names two choices as crucial, "utilizing on-policy data generation from the draft model, and tailoring the divergence function to the task and decoding strategy", and finds no single best divergence {cite}`zhou2024distillspec`. Later work
# reports gains from acceptance as an objective, and warns of the gradients of total variation {cite}`samarin2026lk`. How do these gradients behave?
#
# **Lengths.** Let $A=\{i:q_i>p_i\}$ be the tokens to which the draft gives too much, and $Q=q(A)$ its mass on them. From the gradient in {doc}`07_divergences`, $\partial\,\mathrm{TV}/\partial z_i=\tfrac12q_i(s_i-\sum_kq_ks_k)$ with $s=\operatorname{sign}(q-p)$ and, if no $q_k$ equals $p_k$ (there the sign is zero), $\sum_kq_ks_k=2Q-1$: it is $q_i(1-Q)$ on $A$ and $-q_iQ$ outside. Add the absolute values,
# and do the same for forward KL, whose gradient is $q-p$:
#
# $$ \|\nabla D_{\mathrm{KL}}(p\Vert q)\|_1=2\,\mathrm{TV}=2(1-\alpha),\qquad \|\nabla\,\mathrm{TV}\|_1=2Q(1-Q)\le2\alpha,\qquad \|\nabla(-\log\alpha)\|_1=\frac{2Q(1-Q)}{\alpha}\le2. $$
#
# **Where the two share little**, $\alpha\to0$:
#
# | loss | length of its gradient | as $\alpha\to0$ |
# |---|---|---|
# | forward KL | $2(1-\alpha)$ | goes to 2, its largest |
# | total variation | at most $2\alpha$ | vanishes, just where it is needed |
# | $-\log\alpha$ | $2Q$ times $(1-Q)/\alpha$ | does not vanish as a rule |
#
# The bound of total variation holds because outside $A$ the draft's mass is shared: $1-Q\le\alpha=(1-Q)+p(A)$.
#
# **The exception.** $(1-Q)/\alpha$ is the part of the shared mass that lies outside $A$. The gradient of $-\log\alpha$ does not vanish if the two parts are of one size; the figure shows how that is before training. It vanishes after all where $1-Q\ll p(A)$: a draft is sure of a token that the verifier holds unlikely but possible, and gives the rest far less than that. <!-- by definition -->
#
# The gradient of reverse KL is weighted by the draft's own probabilities, and has no such closed length; it is in the figure for comparison.
#
# Two tokens are enough to see it, $p=(1-h,h)$. A *balanced* draft is $q=(h,1-h)$. A *sure* one is $q=(h^2,1-h^2)$. The gradients are by automatic differentiation.

# %%
LOSSES = {
    "forward KL": (forward_kl, BLUE),
    "reverse KL": (reverse_kl, SKY),
    "TV": (total_variation, GREEN),
    "−log acceptance": (negative_log_acceptance, PURPLE),
}


def lengths_of_gradients(z, t):
    """The 1-norm of each loss's gradient by z, shape (...)."""
    found = {}
    for name, (loss, _) in LOSSES.items():
        leaf = z.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss(leaf, t, reduction="sum"), leaf)
        found[name] = slope.abs().sum(-1).numpy()
    return found


# %% tags=["hide-input"]
h = torch.logspace(-4, -0.4, 60, dtype=torch.float64)
t = torch.stack([1 - h, h], 1).log()
toys = {
    "balanced": torch.stack([h, 1 - h], 1).log(),
    "sure": torch.stack([h**2, 1 - h**2], 1).log(),
}
curves = {}
for name, z in toys.items():
    p, q = t.exp().numpy(), z.exp().numpy()
    shared, outside = np.minimum(p, q).sum(1), np.where(q > p, 0, q).sum(1)
    norms = lengths_of_gradients(z, t)
    assert np.allclose(norms["forward KL"], 2 * (1 - shared), atol=1e-12)
    assert np.allclose(norms["TV"], 2 * (1 - outside) * outside, atol=1e-12)
    assert np.allclose(norms["−log acceptance"], norms["TV"] / shared, rtol=1e-9)
    curves[name] = shared, norms

# %% [markdown]
# And on the real vocabulary: the verifier against a draft before any training, and against the forward-KL draft, at places of the verifier's text.

# %% tags=["hide-input"]
with torch.no_grad():
    seen = continued[:8, :-1]
    at_hand = {
        "untrained": newborn().eval()(seen)[:, PROMPT - 1 :],
        "forward-KL draft": drafts["forward KL"](seen)[:, PROMPT - 1 :],
    }
    target = verifier(seen)[:, PROMPT - 1 :].double().flatten(0, 1).cpu()
clouds = {}
for name, z in at_hand.items():
    z = z.double().flatten(0, 1).cpu()
    shared = 1 - total_variation(z, target, reduction="none").numpy()
    clouds[name] = shared, lengths_of_gradients(z, target)
    bound = clouds[name][1]["TV"] <= 2 * shared + 1e-12
    assert bound.all() and (clouds[name][1]["−log acceptance"] <= 2 + 1e-12).all()

figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.4), sharey=True)
for (kind, (shared, norms)), style in zip(curves.items(), ("-", "--"), strict=True):
    for name, (_, hue) in LOSSES.items():
        left.plot(
            shared,
            norms[name],
            style,
            color=hue,
            label=name if kind == "balanced" else None,
        )
for (_, (shared, norms)), marker in zip(clouds.items(), ("x", "o"), strict=True):
    for name, (_, hue) in LOSSES.items():
        right.plot(shared, norms[name], marker, color=hue, markersize=3.2, alpha=0.4, mew=0.8 if marker == "x" else 0)  # fmt: skip
for panel in (left, right):
    panel.set(
        xscale="log", yscale="log", ylim=(1e-5, 20), xlabel="what is shared, $\\alpha$"
    )
left.set_ylabel("length of the gradient, $\\|\\cdot\\|_1$")
left.set_title("two tokens")
right.set_title("verifier and drafts")
left.legend(fontsize="x-small", loc="lower right")
typical = {
    kind: {name: np.median(norms[name]) for name in LOSSES}
    for kind, (_, norms) in clouds.items()
}
show(
    figure,
    label="gradients",
    caption="Length of the gradient with respect to the draft's logits against the shared mass. Left: two tokens, a balanced draft (solid) and one that is sure of the wrong token (dashed). Right: places of real text, a draft before training (crosses) and the forward-KL draft (dots); medians before training: "
    + ", ".join(f"{name} {value:.2f}" for name, value in typical["untrained"].items())
    + "; after: "
    + ", ".join(
        f"{name} {value:.2f}" for name, value in typical["forward-KL draft"].items()
    )
    + ".",
    alt="Left, curves of gradient length against shared mass in logarithmic scales: forward KL stays high at the left, total variation and reverse KL fall, minus log acceptance stays level for one draft and falls for the other. Right, clouds of points of the same four losses.",
)

# %% [markdown]
# Two remarks keep this in proportion. Adam divides by the size of recent gradients, so a factor that is common to all
# places of a batch makes no difference to it. What is left of $1/\alpha$ is the *weighting*:
# $\nabla(-\log\alpha)=\nabla\,\mathrm{TV}/\alpha$ place by place, so that the places where the draft is rarely
# accepted count for more. Total variation gives them less weight. And the minimum of all four is the same, $q=p$; they
# differ only because a small draft cannot get there, and then each makes a different compromise
# ({doc}`07_divergences`).
#
# ### The three live drafts
#
# They differ only in the objective. Here is what a few seconds of training have made of them.

# %% tags=["hide-input"]
probe = data.validation.spread(6)
measured = dict(
    zip(
        drafts,
        measure_tokens(
            list(drafts.values()),
            probe,
            teacher=verifier,
            device=device,
            precision=precision,
        ),
        strict=True,
    )
)
against_alone = {
    name: paired_difference(
        overlap[name]["verifier"].mean(1), overlap["alone"]["verifier"].mean(1)
    )
    for name in drafts
    if name != "alone"
}

# %% tags=["hide-input"]
figure, panels = plt.subplots(1, 3, figsize=(8.6, 2.3), sharey=True)
by_prompt = {name: [] for name in drafts}
forced = {name: mean_interval(overlap[name]["verifier"].mean(1)) for name in drafts}
dots(panels[0], by_prompt, forced, colours=HUES)
dots(panels[1], by_prompt, acceptance, colours=HUES)
dots(
    panels[2],
    {name: [m["bits_per_byte"]] for name, m in measured.items()},
    {},
    colours=HUES,
)
for panel, title in zip(
    panels,
    ("$1-\\mathrm{TV}$, verifier's text", f"accepted / tested, $\\gamma={GAMMA}$", "bits per byte"),
    strict=True,
):  # fmt: skip
    panel.set_xlabel(title, fontsize="small")
show(
    figure,
    label="live",
    caption=f"One training of each, 95 % intervals over {len(prompts)} prompts: they say how well these drafts are measured, not how the next training would come out. $1-\\mathrm{{TV}}$ on the verifier's text minus that of the draft alone, paired by prompt: "
    + "; ".join(
        f"{name} {i.mean:+.3f} [{i.low:+.3f}, {i.high:+.3f}]" for name, i in against_alone.items()
    )
    + f". Bits per byte on {len(probe)} blocks of the books.",
    alt="Three panels of dots with intervals for three drafts: acceptance on the verifier's text, acceptance in speculation, bits per byte.",
)  # fmt: skip

# %% tags=["hide-input"]
by_acceptance = max(drafts, key=lambda name: forced[name].mean)
by_bits = min(drafts, key=lambda name: measured[name]["bits_per_byte"])
by_agreement = max(drafts, key=lambda name: measured[name]["agreement"])
Markdown(
    f"Of these three, {by_acceptance} shares most with the verifier, {by_bits} has the fewest bits per byte, and the first choices of {by_agreement} agree most often."
)

# %% [markdown]
# The draft that is accepted most and the one that predicts the books best need not be the same. A language model is
# asked for the probability of *every* token that occurs, and pays with a logarithm for each that it holds impossible.
# A draft may hold anything impossible: it is asked only for what it shares. With so little training, a draft can even
# share a good part of the verifier's mass by having the right frequencies of common words, and know next to nothing of
# the context.
#
# ### The recorded drafts
#
# Now with more tokens, three seeds, and six objectives. *alone* learns from the books; *forward KL*, *reverse KL*, *TV* and *−log acceptance* minimise that, and only that, from the verifier on the same books; *forward KL, own text* does so on the books for the first half of the tokens and then on what the draft itself has written after beginnings of them. <!-- by definition -->
# All read as many tokens, in the same order for one seed, with one learning rate, which was chosen for a student alone. It falls along a cosine, so that the second part of the tokens meets a small rate; the cell below says how small. This arm says little about DistillSpec's first choice. The test text is touched once.


# %% tags=["hide-input"]
def described(study):
    spec = next(spec for spec in study.specs if spec.drafting)
    return f"{called(spec.student)} as draft of {called(spec.teacher.student)}, {tokens_read(spec):.1f} million tokens"


own_text = next(spec for spec in small.specs if spec.arm == "own-text")
epochs = own_text.recipe.epochs
rate = np.array(
    [own_text.recipe.learning_rate_at(t) for t in np.linspace(0, epochs, 20_001)]
)
second_part = rate[round(20_000 * own_text.own_text.after) :].sum() / rate.sum()
display(
    Markdown(
        f"Of the summed learning rate, the draft's own text has {second_part:.0%}."
    )
)

ARM_HUES = dict(zip(ARMS, (ORANGE, BLUE, SKY, GREEN, PURPLE, VERMILION), strict=True))


def known_to(study, arm, length):
    """Half the interval of one run's acceptance over prompts: the first seed's."""
    found = round_of(next(r for r in study.arm(arm) if r["test"]), length)
    i = ratio_interval(found["accepted"], found["tested"])
    return (i.high - i.low) / 2


def arms_figure(study):
    arms, length = study.ready(ARMS), 4
    measures = {
        f"accepted / tested, $\\gamma={length}$": acceptance_rate(length),
        f"tokens per call, $\\gamma={length}$": call_yield(length),
        "bits per byte": "bits_per_byte",
    }
    figure, panels = plt.subplots(
        1, 3, figsize=(9.0, 0.9 + 0.36 * len(arms)), sharey=True
    )
    for panel, (title, measure) in zip(panels, measures.items(), strict=True):
        rows = {ARMS[arm]: list(study.values(arm, measure).values()) for arm in arms}
        intervals = {ARMS[arm]: study.mean(arm, measure) for arm in arms}
        dots(panel, rows, intervals, colours={ARMS[arm]: ARM_HUES[arm] for arm in arms})
        panel.set_xlabel(title, fontsize="small")
    return show(
        figure,
        label=f"arms-{study.plan}",
        caption=f"{described(study)}: one dot per training, means with 95 % intervals over seeds. The last panel is what the same draft is as a language model (less is better). Over the {plan_of(study).prompts} prompts, one run's acceptance is known to ±{known_to(study, arms[0], length):.3f}.",
        alt="Three panels of rows of dots, an objective a row: acceptance, tokens per call, bits per byte.",
    )


def differences_table(study, control):
    """Each arm minus one of them, paired by seed."""
    measures = [
        acceptance_rate(4),
        lambda record: 1 - record["test"]["total_variation"],
        call_yield(4),
        "bits_per_byte",
    ]
    rows = []
    for arm in study.ready(ARMS):
        found = [study.difference(arm, control, measure) for measure in measures]
        if arm != control and all(found):
            rows.append([ARMS[arm], *(i.bracketed() for i in found), found[0].n])
    if not rows:
        return None
    return table(
        [f"minus {ARMS[control]}", "accepted / tested", "$1-\\mathrm{TV}$ on the books", "tokens per call", "bits per byte", "$n$"],
        rows,
        caption=f"Differences from “{ARMS[control]}”, paired by seed, with 95 % intervals; $\\gamma=4$. {4 * len(rows)} intervals, not corrected for their number: were there no difference anywhere, about one in twenty would still exclude zero. They are not independent: columns measure the same trainings, rows share one control.",
    )  # fmt: skip


def summed(study, arm, length, stop):
    """What was counted at each prompt with one way to propose, added over the seeds."""
    records = [record for record in study.arm(arm) if record["test"]]
    columns = {
        name: np.sum([round_of(record, length, stop)[name] for record in records], 0)
        for name in ("accepted", "tested", "calls", "seconds")
    }
    plain = [record["test"]["drafting"]["plain_seconds"] for record in records]
    return columns | {"plain": np.sum(plain, 0)}


def ways_table(study):
    """Tokens per call beside the formula, and the clock, of each way to propose."""
    rows = []
    for arm in study.ready(ARMS):
        for length, stop in plan_of(study).rounds:
            way = f"{length}" + (f", stops below {stop:g}" if stop else "")
            found = summed(study, arm, length, stop)
            at = found["accepted"].sum() / found["tested"].sum()
            formula = "–" if stop else f"{tokens_per_call(at, length):.2f}"
            per_call = ratio_interval(
                found["accepted"] + found["calls"], found["calls"]
            )
            faster = ratio_interval(found["plain"], found["seconds"])
            measured = [i.bracketed(".2f") for i in (per_call, faster)]
            rows.append([ARMS[arm], way, f"{at:.3f}", formula, *measured])
    return table(
        ["draft", "$\\gamma$", "accepted / tested", "formula", "tokens per call", "times as fast"],
        rows,
        caption=f"All seeds together, with 95 % intervals over the {plan_of(study).prompts} prompts; the formula is that of tokens per call at this acceptance. A draft that stops proposes less and less is thrown away, so that its tokens per call are to be read with the clock beside. Times as fast: on {', '.join(sorted({r['provenance']['device'] for r in study.all(study.ready(ARMS))}))}, one text at a time, plain decoding in the same run; below one, plain decoding is faster. The intervals hold neither what another training would give nor what else the machine did, so that small differences of the clock between drafts say nothing.",
    )  # fmt: skip


def predictions_figure(study):
    """What speculation counted against what the two distributions, and the formula, said of it."""
    ways = dict(zip(plan_of(study).rounds, "ovsx", strict=True))
    figure, panels = plt.subplots(1, 2, figsize=(8.2, 3.6))
    accepted, expected = [], []
    for record in (record for record in study.all(study.ready(ARMS)) if record["test"]):
        style = {
            "color": ARM_HUES[record["spec"]["arm"]],
            "markersize": 4,
            "alpha": 0.7,
        }
        for (length, stop), mark in ways.items():
            found = round_of(record, length, stop)
            accepted.append(found["accepted"])
            expected.append(found["expected"])
            rate = acceptance_rate(length, stop)(record)
            panels[0].plot(
                sum(found["expected"]) / sum(found["tested"]), rate, mark, **style
            )
            if not stop:
                formula = tokens_per_call(rate, length)
                panels[1].plot(formula, call_yield(length, stop)(record), mark, **style)
    for panel in panels:
        low, high = panel.get_xlim()
        panel.plot([low, high], [low, high], color="grey", linewidth=0.8, zorder=0)
    panels[0].set(
        xlabel="mean of $1-\\mathrm{TV}$ where tested", ylabel="accepted / tested"
    )
    panels[1].set(xlabel="tokens per call, formula", ylabel="tokens per call, measured")
    for (length, stop), mark in ways.items():
        name = f"$\\gamma={length}$" + (f", stops below {stop:g}" if stop else "")
        panels[0].plot([], [], mark, color="grey", markersize=4, label=name)
    panels[0].legend(fontsize="x-small")
    ratio = ratio_interval(np.sum(accepted, 0), np.sum(expected, 0))
    return show(
        figure,
        label=f"predictions-{study.plan}",
        caption=f"{described(study)}: one mark per training and way to propose, in the colours of the figure above; on the grey line prediction and measurement agree. Left: what was accepted over what was expected, all together, is {ratio.bracketed('.3f')} over {ratio.n} prompts. Right: the formula takes one acceptance for all places.",
        alt="Two panels of marks about a diagonal: acceptance against one minus total variation, and tokens per call against the formula.",
    )


display(*slots(small, ARMS, f"drafts from six objectives ({described(small)})"))
for study in studies:
    if study.ready(ARMS):
        display(arms_figure(study))
        for control in ("alone", "forward-kl"):
            if (found := differences_table(study, control)) is not None:
                display(found)
        display(
            predictions_figure(study),
            ways_table(study),
            source_note(study.all(study.ready(ARMS))),
        )
    if study.complete(list(ARMS)):
        accepted = Quantity("acceptance at $\\gamma=4$", of=acceptance_rate(4))
        helped = [arm for arm in ARMS if arm not in ("alone", "reverse-kl")]
        display(
            *(above(arm, "alone", study, accepted, names=ARMS) for arm in helped),
            below("reverse-kl", helped, study, accepted, names=ARMS),
        )
display(*slots(large, ARMS, f"the same on a GPU ({described(large)})"))

# %% [markdown]
# The first table of differences answers the claim: its trainings are paired by seed, and the intervals in the figure are not. The second one compares the objectives with forward KL. Where its interval contains zero, these seeds decide nothing. Bits per byte can differ clearly where acceptance does not. If the live drafts come in another order: they are one training each, and a short one. A gain in acceptance is worth more tokens where acceptance is already high, since acceptances multiply. The second figure compares predictions with measurements: what the two distributions share with what was accepted, and the formula with what a call brought. The last table has the numbers, and the times of one machine.
#
# ### At equal compute
#
# The distilled drafts had the verifier's call at every token that they read. {doc}`17_distilling_a_small_language_model` trained the same draft alone for as many multiply-adds as that costs: of the same seeds, and so from the same initial weights. It was measured by total variation on the same test text, and was not tried in speculation. So the comparison is by $1-\mathrm{TV}$ on the books.

# %% tags=["hide-input"]
LONGER = {"drafts-small": results("language-small"), "drafts": results("language")}


def share(record):
    """1 − TV on the books."""
    return 1 - record["test"]["total_variation"]


def at_equal_compute(study):
    """The draft alone at the distilled ones' compute: minus each arm, seed by seed, and itself."""
    draft, other = study.specs[-1].student, LONGER[study.plan]
    alone = other.values(f"{draft}-alone", share)
    longer = other.values(f"{draft}-alone-equal-compute", share)
    if len(longer) < 2 or not study.complete(list(ARMS)):
        return None
    # One draft in two plans: the same training, to rounding.
    assert np.allclose(
        list(alone.values()), list(study.values("alone", share).values())
    )
    minus = {}
    for arm in ARMS:
        values = study.values(arm, share)
        both = sorted(values.keys() & longer.keys())
        minus[arm] = paired_difference(
            [longer[s] for s in both], [values[s] for s in both]
        )
    return longer, minus


def recorded(rows, quantity):
    """Values of records as evidence that is known to be of records."""
    return replace(evidence(rows, quantity), source="records")


# %% tags=["hide-input"]
for study in studies:
    if (found := at_equal_compute(study)) is None:
        continue
    longer, minus = found
    rows = {ARMS[arm]: list(study.values(arm, share).values()) for arm in ARMS}
    rows["alone, equal compute"] = list(longer.values())
    hues = {ARMS[arm]: ARM_HUES[arm] for arm in ARMS} | {
        "alone, equal compute": "#7A7A7A"
    }
    figure, panel = plt.subplots(figsize=(6.6, 3.1))
    dots(
        panel, rows, {name: mean_interval(v) for name, v in rows.items()}, colours=hues
    )
    panel.set_xlabel("$1-\\mathrm{TV}$ on the books")
    display(
        show(
            figure,
            label=f"equal-{study.plan}",
            caption=f"{described(study)}, all at equal tokens but the last, which spends on tokens of its own what the verifier's calls cost; one dot per training, means with 95 % intervals. The last minus the others, paired by seed: "
            + "; ".join(f"{ARMS[arm]} {i.bracketed()}" for arm, i in minus.items())
            + ".",
            alt="Rows of dots of one minus total variation: six drafts at equal tokens, and below them the draft alone at equal compute.",
        ),
        source_note([*study.all(list(ARMS)), *LONGER[study.plan].arm(f"{study.specs[-1].student}-alone-equal-compute")]),
        above("alone, equal compute", list(ARMS.values()), recorded(rows, Quantity("$1-\\mathrm{TV}$ on the books"))),
    )  # fmt: skip

# %% [markdown]
# Two things stand against reading this as a verdict on distillation. The drafts are young: where the last is above *alone*, more text still helps them, and a draft that has no more text to read cannot buy acceptance in this way. And calls of the verifier may cost nothing extra: whoever serves the verifier computes its distributions anyway, and a cache is paid for once ({doc}`18_memory_and_caches`). Then equal tokens is the comparison that counts.
#
# ### Drafts that have read four times as much
#
# The plan `drafts-grown` asks again at four million tokens. Each draft has a whole schedule and a rate that was chosen at this length on the validation text: the drafts alone one for students alone (at equal compute, of longer training, the same), the distilled ones that of forward KL; those that follow another divergence have the same and were not tuned further. <!-- by definition --> The draft's own text begins after a quarter of the training, and the draft alone at equal compute speculates, too. <!-- by definition -->

# %% tags=["hide-input"]
GROWN = {
    "alone": "alone",
    "alone-equal-compute": "alone, equal compute",
    "forward-kl": "forward KL",
    "tv": "TV",
    "log-acceptance": "−log acceptance",
    "own-text": "forward KL, own text",
}
TAUGHT = [arm for arm in GROWN if not arm.startswith("alone")]
GROWN_HUES = {arm: ARM_HUES.get(arm, "#7A7A7A") for arm in GROWN}
grown = results("drafts-grown")
has_grown = grown.complete(list(GROWN), at_least=3)
if has_grown:
    accepted = Quantity("acceptance at $\\gamma=4$", of=acceptance_rate(4))
    at_equal_tokens = [
        above(arm, "alone", grown, accepted, names=GROWN) for arm in TAUGHT
    ]
    at_equal_cost = undecided(
        "alone-equal-compute", TAUGHT, 0.05, grown, accepted, names=GROWN
    )
    display(
        arms_shown(
            grown, GROWN,
            {
                "accepted / tested": accepted,
                "tokens per call": Quantity("tokens per call", of=call_yield(4)),
                "bits per byte": QUANTITIES["bits_per_byte"],
            },
            label="arms-drafts-grown", colours=GROWN_HUES,
            caption=f"{described(grown)}; alone at equal compute {tokens_read(next(s for s in grown.specs if s.arm == 'alone-equal-compute')):.1f}. $\\gamma=4$. One dot per training, means with 95 % intervals. In the last panel less is better.",
        ),
        *(said for arm, said in zip(TAUGHT, at_equal_tokens, strict=True) if arm != "tv"),
        undecided("tv", "alone", 0.05, grown, accepted, names=GROWN),
        at_equal_cost,
        source_note(grown.all(list(GROWN))),
    )  # fmt: skip
else:
    display(
        not_yet_run(
            "six drafts at four million tokens, with rates of their own", grown.command
        )
    )

# %% [markdown]
# ## The claim
#
# "Small 'draft' models are distilled from 'verifier' models to improve the token acceptance rate in lookahead heuristics", says article B. They are. Does it? That depends on what the distilled draft is held against: the same draft, trained without the verifier on the same tokens, or with the same arithmetic.

# %% tags=["hide-input"]
COMPARED = [arm for arm in ARMS if arm != "alone"]
decides = next(
    (
        study
        for study in reversed(studies)
        if study.complete(list(ARMS))
        and all(study.difference(arm, "alone", acceptance_rate(4)) for arm in COMPARED)
    ),
    None,
)
if decides is not None:
    gains = {
        arm: decides.difference(arm, "alone", acceptance_rate(4)) for arm in COMPARED
    }
    control = decides.mean("alone", acceptance_rate(4))
    clocks = {}
    for arm in ARMS:
        for way in plan_of(decides).rounds:
            found = summed(decides, arm, *way)
            clocks[arm, *way] = found["plain"].sum() / found["seconds"].sum()
    arm, length, stop = best = max(clocks, key=clocks.get)
    against = ". The verifier's calls during training are not counted."
    if (found := at_equal_compute(decides)) is not None:
        longer, minus = found
        ahead = {ARMS[a]: i for a, i in minus.items() if a != "alone"}
        against = (
            f". At equal arithmetic, the verifier's calls counted, the draft alone is ahead: its $1-\\mathrm{{TV}}$ on the books is {mean_interval(list(longer.values())).mean:.3f}, more than that of the distilled drafts by "
            if all(i.low > 0 for i in ahead.values())
            else ". At equal arithmetic, the verifier's calls counted, the draft alone minus the distilled ones is, by $1-\\mathrm{TV}$ on the books, "
        ) + "; ".join(f"{i.bracketed()} ({name})" for name, i in ahead.items()) + "."  # fmt: skip
    outcome, grown_said = "depends", ""
    if has_grown:
        gained = [said.holds for said in at_equal_tokens]
        outcome = (
            "verified" if all(gained) and below("alone-equal-compute", TAUGHT, grown, accepted).holds
            else "refuted" if above("alone", TAUGHT, grown, accepted).holds
            else "depends" if any(gained)
            else "not decided"
        )  # fmt: skip
        grown_said = f"After {described(grown).rpartition(', ')[2]}, at equal tokens: {' '.join(map(str, at_equal_tokens))} At equal arithmetic: {at_equal_cost} Younger drafts: "
    given = verdict(
        "B15", outcome,
        f"A draft is accepted with probability one minus its total variation from the verifier, so it depends on what it learns. {grown_said}At equal tokens ({described(decides)}, $\\gamma=4$, $T=1$, n = {control.n} paired seeds) the draft alone is accepted {control.mean:.3f} of the time; distillation adds "
        + "; ".join(f"{i.bracketed()} by {ARMS[arm]}" for arm, i in gains.items())
        + against
        + " The text is the verifier's in any case, and whether time is saved is another question: on the machine of these records the fastest of the young drafts and ways to propose "
        + f"({ARMS[arm]}, $\\gamma={length}$" + (f", stops below {stop:g}" if stop else "") + f") is {clocks[best]:.2f} times as fast as plain decoding. {'These' if has_grown else 'All'} drafts learned at one rate, chosen for a student alone.",
        data=data, condition="bound to a scale" if outcome == "depends" else None,
    )  # fmt: skip
    display(given)

# %% tags=["hide-input"]
sentences = [
    f"The drafts trained on this page ({count_parameters(drafts['alone']) / 1e6:.2f} million parameters, {recipe.epoch_examples} blocks of text) have "
    + ", ".join(f"{100 * acceptance[name].mean:.0f} % ({name})" for name in drafts)
    + f" of their tested tokens accepted. {time_said}; at best the forward-KL draft is {gain.mean:.2f} times as fast as plain decoding (one text at a time on this machine).",
]
if decides is not None:
    sentences.append(
        f"In the records ({described(decides)}, n = {control.n} paired seeds), a draft that was trained alone has {100 * control.mean:.1f} % accepted ($\\gamma=4$). Distilled on as many tokens it has "
        + ", ".join(
            f"{(100 * i).bracketed('+.1f')} points by {ARMS[name]}"
            for name, i in gains.items()
        )
        + "."
    )
    if (found := at_equal_compute(decides)) is not None:
        longer, minus = found
        ahead = [ARMS[a] for a, i in minus.items() if a != "alone" and i.low > 0]
        sentences.append(
            f"At equal arithmetic, a draft alone reads more tokens. Its $1-\\mathrm{{TV}}$ on the books is then {mean_interval(list(longer.values())).mean:.3f}, and shown to be above that of {len(ahead)} of the {len(minus) - 1} distilled drafts."
        )
if has_grown:
    sentences.append(
        f"With rates of their own ({described(grown)}): {at_equal_tokens[TAUGHT.index('forward-kl')]} {at_equal_cost}"
    )
findings.show(*sentences)

# %% [markdown]
# ## Limits
#
# - **Scale.** Verifier and drafts are of a few million parameters or less, and read books. A large verifier with narrower distributions, on code or dialogue, may be agreed with more often. The acceptance measured here does not carry over; the mathematics does.
# - **The clock.** On a CPU, one text at a time, at sizes where Python and drawing count. On a GPU with a large verifier one expects $w$ near zero and small overheads, and in large batches a $w$ that grows and a gain that shrinks; none of it is measured here.
# - **Young drafts.** All are of a few million tokens at most. What drafts gain that have read until it helps no more is another question.
# - **On-policy training** came late in a falling schedule among the young drafts; the plan `drafts-grown` begins it earlier.
# - **One temperature.** All at $T=1$, which draft and verifier share, and drafts trained for it. At others acceptance is another function of the same logits; an exercise looks at the extremes.
# - **Texts without end.** A fixed number of tokens is written; none of them is treated as the end of a text, at which a program would stop.
# - **One verifier.** Intervals over seeds are over trainings of drafts for it. Another may be agreed with more or less.
# - **One learning rate** for the young drafts, chosen for a student alone, and for the grown ones two, of which all distilled share one. Losses whose gradients have another size may want another; Adam takes care of the common factor alone.
# - **The live drafts** are one training each. Their intervals are over prompts.
# - **The draft here is a separate model that reads the whole text.** Drafts that read the verifier's hidden states, several proposals at once in a tree, and drafts without a network are left out.
#
# ## To take away
#
# **Formulae.** A token is accepted with probability $\alpha=\sum_x\min(p(x),q(x))=1-\mathrm{TV}(p,q)$. At one acceptance for all places a call brings $\frac{1-\alpha^{\gamma+1}}{1-\alpha}$ tokens, and the speed-up is that divided by $\gamma c+1$ (and less by the cost of further tokens).
#
# **What to set.** `speculate(verifier, draft, prompts, tokens=…, draft_length=γ, stop_below=…)`, with `draft_length` from a measured $c$ and $\alpha$. To train a draft, `ForwardKL()`, `TotalVariation()` or `NegativeLogAcceptance()`, with the verifier as the teacher.
#
# **What to watch for.** Acceptance is not speed: measure the time on your machine. The formula promises too much, if anything. Where draft and verifier share little, total variation has hardly a gradient. Say whether drafts are compared at equal tokens or at equal arithmetic.
#
# ## Exercises
#
# ```{exercise}
# :label: ex-best-length
#
# With `speed_up`, which draft length is best for $\alpha=0.8$ and $c=0.05$, and which for $\alpha=0.5$ and $c=0.25$? Show that if $\alpha\le c$ no draft length is faster than plain decoding, and that if $\alpha>c$ one is.
# ```
#
# ````{solution} ex-best-length
# :class: dropdown
#
# It is 8 for the first and 1 for the second. <!-- by definition --> (At $c=0.2$ it would be 1 and 2 alike.) <!-- by definition -->
#
# ```python
# for alpha, cost in ((0.8, 0.05), (0.5, 0.25)):
#     print(max(range(1, 40), key=lambda g: speed_up(alpha, g, cost)))
# ```
#
# With $\gamma=1$ the speed-up is $(1+\alpha)/(1+c)$, which is above one if and only if $\alpha>c$. If $\alpha\le c$, then
# $1+\alpha+\dots+\alpha^\gamma\le1+\gamma\alpha\le1+\gamma c$, so that no $\gamma$ helps. With a cost $w$ of further tokens in a call, the same holds with $c+w$ in the place of $c$.
# ````
#
# ```{exercise}
# :label: ex-softened-draft
#
# Let the draft be the verifier itself at another temperature, $q\propto p^{1/T}$. Compute its acceptance at places of the verifier's text for $T$ between 0.1 and 10. What are the limits for $T\to0$ and $T\to\infty$?
# ```
#
# ````{solution} ex-softened-draft
# :class: dropdown
#
# ```python
# for T in (0.1, 0.5, 0.8, 1, 1.25, 2, 10):
#     print(f"T = {T:g}: {1 - total_variation(target / T, target).item():.3f}")
# print(f"T to zero: {soften(target).amax(-1).mean():.3f}")
# even = 1 / data.num_classes
# print(f"T to infinity: {soften(target).clamp(max=even).sum(-1).mean():.3f}")
# ```
#
# It is one at $T=1$ and falls to both sides. For $T\to0$ the draft is certain of the likeliest token, and is accepted with that token's probability. For
# $T\to\infty$ it is even, and $\sum_i\min(p_i,1/N)$ is what is accepted. A draft may thus be right about the order of all tokens and still be accepted rarely; $\alpha$ asks for calibrated probabilities.
# ````
#
# ```{exercise}
# :label: ex-greedy
#
# What is the acceptance at temperature zero, of both? What if only the draft is greedy, and the verifier draws at $T=1$: is the text still exact, and how often is the draft accepted? Which of the objectives of this chapter would you choose for a greedy verifier?
# ```
#
# ```{solution} ex-greedy
# :class: dropdown
#
# With both at zero, $\min(p,q)$ is one where the first choices agree and zero elsewhere: $\alpha$ is the *agreement*, `measured["forward KL"]["agreement"]` on the books. The proof never asked what $q$ is, so a greedy draft is exact too; it is accepted with probability $p(\arg\max q)$, and
# after a refusal that token is not written, since $\max(p-q,0)$ is zero there. For a greedy verifier none of the four objectives is the right one to the letter: its distribution is one-hot. Cross-entropy with the verifier's first choice asks for that token alone, and
# so does $-\log\alpha$ with a one-hot $p$: they are the same, because then $\alpha=q(\arg\max p)$.
# ```
#
# ```{exercise}
# :label: ex-which-mean
#
# Let $\alpha$ vary from round to round, but not within one. Prove $\mathbb E f(\alpha)\le f(r)$ for the pooled ratio $r$.
# ```
#
# ```{solution} ex-which-mean
# :class: dropdown
#
# Put $a_k=\mathbb E\alpha^k$, so that $r=\sum_{k=1}^{\gamma}a_k\big/\sum_{k=0}^{\gamma-1}a_k$. Let $d_k=a_k-r^k$ and $D=\sum_{k=0}^{\gamma-1}d_k$. Both $a$ and $r^k$ satisfy $\sum_{1}^{\gamma}=r\sum_{0}^{\gamma-1}$, hence so does $d$. As $d_0=0$, this reads $D+d_\gamma=rD$, that is
# $d_\gamma=-(1-r)D$. By Cauchy and Schwarz $a_k^2\le a_{k-1}a_{k+1}$: $\log a_k$ is convex in $k$, and so is $\log(a_k/r^k)$, which is zero at $k=0$. Suppose $D>0$. Then $d_\gamma\le0$ (and $<0$ if $r<1$), so the convex function is not positive at either end, hence at no $k$ between: all $d_k\le0$ and $D\le0$, a contradiction. So
# $D\le0$, and $\mathbb Ef(\alpha)=1+r\sum_{0}^{\gamma-1}a_k\le1+r\sum_0^{\gamma-1}r^k=f(r)$.
# ```
