# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Predicting more than one token
#
# In {doc}`19_drafts_that_are_believed` a second, smaller model wrote ahead, and the large one accepted what it could. <!-- by definition --> But the large model itself has just computed a state
# from which it predicts the next token. This state also says something about the token after the next. If a small *module* can predict it from the state, the model becomes its own draft: no second model has to be trained, stored or run on the
# text. This is **multi-token prediction**. The question of the chapter is who should teach such a module. The text has the tokens. But the model itself, one step later, has a whole distribution for the same place.
#
# **At the end you will know** how well the token after the next can be predicted without the next one; what two kinds of modules read; when labels and the model's own later distribution ask for the same thing,
# and how much noise separates them; and how acceptances multiply along a proposal.
#
# *Needs: one CPU core and under two minutes. The recorded runs took longer; the section says where.*

# %% tags=["parameters"]
profile = "cpu"  # or "gpu"
toy: list[float] = [0.4, 0.25, 0.2, 0.1, 0.05]  # P(token); each has one follower
context_count: int = 4  # after which every token is tried
depth: int = 3  # live modules, which predict so many tokens beyond the next
read_blocks: int = 96  # of 64 tokens, from which the live modules learn
prompt_count: int = 96  # after which live modules are counted in rounds

# %% tags=["hide-input"]
from dataclasses import replace
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown, display
from scipy.optimize import linprog

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
from kdlab.language import generate, load_text_data, speculate, tokens_per_call
from kdlab.models import (
    GPT,
    Ahead,
    MultiToken,
    count_parameters,
)
from kdlab.objectives import (
    CrossEntropy,
    ForwardKL,
    forward_kl,
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
    called,
    data_note,
    device_for,
    slots,
    source_note,
    tokens_read,
    verdict,
)
from kdlab.study.drafts import call_yield, round_of, times_as_fast
from kdlab.study.evidence import Quantity, evidence
from kdlab.study.parameters import require
from kdlab.study.statements import above, undecided, within
from kdlab.training import Learner, Recipe, fit_together, measure_further
from kdlab.training.measures import all_logits

use_style()
device = device_for(profile)
require(
    len(toy) > 1 and abs(sum(toy) - 1) < 1e-6,
    "toy must be the probabilities of two tokens or more, which sum to one.",
)
require(
    context_count > 1 and prompt_count > 1,
    "context_count and prompt_count must be 2 or more: intervals are over contexts and prompts.",
)
require(depth <= 6, "depth must be from 1 to 6.")
data = load_text_data("book-openings-4096-256")
tokeniser, V = data.tokeniser, data.num_classes
data_note(data)

# %% tags=["hide-input"]
findings = Findings()

# %% [markdown]
# ## How well the second token can be predicted without the first
#
# The model is the teacher of {doc}`17_distilling_a_small_language_model`; nothing in this chapter changes it. Fix a context. Let $X$ be the next token and $Y$ the one after it, both as the model would write them: $X$ has the distribution $p(x)$, and after $X=x$ the
# token $Y$ has the distribution $p_x(y)$. A predictor that does not see $X$ has one distribution $q(y)$ for all cases. What is the best $q$?
#
# That depends on what is asked. Measured by forward KL, averaged over $X$,
#
# $$ \sum_x p(x)\,D_{\mathrm{KL}}(p_x\,\Vert\,q)=\underbrace{\sum_x p(x)\,D_{\mathrm{KL}}(p_x\,\Vert\,m)}_{I(X;Y)}+D_{\mathrm{KL}}(m\,\Vert\,q),\qquad m=\sum_x p(x)\,p_x . $$
#
# The best $q$ is the **mixture** $m$, and what remains is the mutual information of the two tokens, which is the price of not seeing $X$ and which no amount of training removes. <!-- by definition --> (To see the equation, add and subtract $\log m$.)
#
# But a module's proposals have to be accepted. After $X=x$ the model accepts a proposal from $q$ with probability $\sum_y\min(p_x(y),q(y))=1-\mathrm{TV}(p_x,q)$, so that on average over $X$ it accepts
#
# $$ A(q)=\sum_x p(x)\sum_y\min\bigl(p_x(y),\,q(y)\bigr). $$
#
# This is another problem with another solution. For one $y$, the sum over $x$ grows with $q(y)$ at the rate $\Pr\bigl(p_X(y)>q(y)\bigr)$: raising $q(y)$ helps in the cases where the model would have given more. Lowering it costs at the rate $\Pr\bigl(p_X(y)\ge q(y)\bigr)$, which is more where $q(y)$ is just one of the $p_x(y)$: there the sum has a kink.
# All of $q$ sums to one, and at the best $q$ nothing is gained by moving mass from one token to another. <!-- by definition --> So no token gains by more than any other would lose, and there is a number $\lambda$ between:
#
# $$ \Pr\bigl(p_X(y)>q^*(y)\bigr)\;\le\;\lambda\;\le\;\Pr\bigl(p_X(y)\ge q^*(y)\bigr)\quad\text{for all }y. $$
#
# (Where $q^*(y)=0$ the right half says nothing, since its probability is one.) <!-- by definition --> The mixture gives each token the *mean* of its probabilities $p_X(y)$. The best draft gives it a *quantile*, of the same level for all tokens: $p_X(y)$ is above it with probability at most $\lambda$, and not below it with probability at least $\lambda$. Of a distribution in steps a quantile may be any number of an interval. A toy shows how far these can be apart. Let $X$ decide everything: each $x$ is followed by a token of its own. The mixture is then accepted with probability $\sum_xp(x)^2$, and the best draft, which puts everything on
# what follows the likeliest $x$, with probability $\max_xp(x)$. KL spreads its mass over the cases, acceptance puts it on one.
#
# How good is a candidate for $q^*$? Each of the concave functions $G_y(s)=\sum_xp(x)\min(p_x(y),s)$ lies below each line that touches it. So with quantiles $s_y$ of *any* level $\lambda$, where a line of slope $\lambda$ touches, every $q$ has
#
# $$ A(q)=\sum_yG_y(q(y))\;\le\;\sum_yG_y(s_y)+\lambda\Bigl(1-\sum_ys_y\Bigr), $$
#
# which is a bound on all heads that there can ever be, and equal to $A(q^*)$ at the right level.
#
# ### Trying every token
#
# The vocabulary is small enough to try *every* token in the place of $X$. The context is read once; its keys and values are copied for as many continuations as fit. (A model with the same weights and a shorter context keeps the copies small.)

# %% tags=["hide-input"]
teacher = book_language_teacher(data, device=device)
PROMPT = 32


def as_large_as_the_teacher(context):
    """A model of the teacher's shape, whose weights are still to come."""
    width, layers = teacher.embedding.weight.shape[1], len(teacher.blocks)
    return GPT(V, width=width, layers=layers, heads=teacher.heads, context=context)


short = as_large_as_the_teacher(PROMPT + 8).to(device).eval()
short.load_state_dict(teacher.state_dict())


@torch.no_grad()
def continuations(context, at_once=512):
    """p, shape (V,), and all p_x, shape (V, V), after a context, shape (P,)."""
    cache = short.cache(1)
    p = soften(short(context[None], cache)[0, -1])
    rows = []
    for x in torch.arange(V, device=device).split(at_once):
        many = short.cache(len(x))
        many.kept.copy_(cache.kept.expand(-1, -1, len(x), -1, -1, -1))
        many.lengths, many.longest = cache.lengths.expand(len(x)), cache.longest
        rows.append(soften(short(x[:, None], many)[:, 0]))
    return p, torch.cat(rows)


# %%
def acceptance(p, P, q):
    """A(q): how often a proposal from q is accepted, by who does not know X."""
    return (p @ torch.minimum(P, q)).sum().item()


def best_unseen(p, P):
    """A(q*), a bound on all A(q), and q* itself."""
    # Row y of these: p_x(y), largest first.
    values, order = P.T.contiguous().sort(1, descending=True)
    mass = p[order].cumsum(1)

    def quantiles(level):  # of each token's interval the upper end
        at = torch.searchsorted(mass, mass.new_full((len(mass), 1), level))
        return values.gather(1, at.clamp(max=values.shape[1] - 1))[:, 0]

    # levels at which the quantiles sum to more than one, and to less
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if quantiles(middle).sum() > 1 else (low, middle)
    more, less = quantiles(low), quantiles(high)
    share = (1 - less.sum()) / (more.sum() - less.sum()).clamp(min=1e-12)
    # between two levels lies the sum of one
    q = less + share.clamp(0, 1) * (more - less)
    bound = acceptance(p, P, less) + high * (1 - less.sum().item())
    return acceptance(p, P, q / q.sum()), bound, q / q.sum()


# %% [markdown]
# First the toy: a few tokens, each followed by one of its own. If the argument is right, then gradient descent on the mean forward KL must end at the mixture, and gradient descent on the mean total variation at the best draft. <!-- by definition -->

# %%
p, P = torch.tensor(toy), torch.eye(len(toy))
attained, bound, _ = best_unseen(p, P)
descended = {}
for loss in (forward_kl, total_variation):
    z = torch.zeros(len(toy), requires_grad=True)
    optimizer = torch.optim.Adam([z], 0.1)
    for _ in range(300):
        optimizer.zero_grad()
        every = loss(z.expand_as(P), P.clamp(min=1e-9).log(), reduction="none")
        (p @ every).backward()
        optimizer.step()
    descended[loss.__name__] = acceptance(p, P, soften(z.detach()))

# %% tags=["hide-input"]
assert abs(acceptance(p, P, p @ P) - (p**2).sum().item()) < 1e-6
assert abs(attained - p.max().item()) < 1e-6 and abs(attained - bound) < 1e-6
assert abs(descended["forward_kl"] - (p**2).sum().item()) < 5e-3
assert abs(descended["total_variation"] - p.max().item()) < 5e-3
Markdown(
    f"On the toy the mixture is accepted {acceptance(p, P, p @ P):.3f} of the time, and the best draft {attained:.3f}. "
    f"Descent on forward KL ends at {descended['forward_kl']:.3f}, on total variation at {descended['total_variation']:.3f}."
)

# %% [markdown]
# In the toy nothing overlaps. In general, the best $q$ is a linear programme: choose $q$ and shared masses $u_{xy}\le q(y)$, $u_{xy}\le p_x(y)$, so that $\sum_xp(x)\sum_yu_{xy}$ is largest. For small vocabularies a solver, which knows nothing of quantiles, can say whether `best_unseen` is right.

# %% tags=["hide-input"]
sample = np.random.default_rng(0)
for _ in range(20):
    X, Y = sample.integers(2, 7, size=2)
    p, P = sample.dirichlet(np.ones(X)), sample.dirichlet(np.full(Y, 0.4), size=X)
    gain = np.concatenate([np.zeros(Y), np.repeat(p, Y)])  # of q, and of u row by row
    at_most_q = np.hstack([-np.tile(np.eye(Y), (X, 1)), np.eye(X * Y)])
    solved = linprog(
        -gain,
        A_ub=at_most_q,
        b_ub=np.zeros(X * Y),
        A_eq=[np.concatenate([np.ones(Y), np.zeros(X * Y)])],
        b_eq=[1],
        bounds=[(0, 1)] * Y + [(0, limit) for limit in P.flatten()],
    )
    attained, bound, _ = best_unseen(torch.from_numpy(p), torch.from_numpy(P))
    assert abs(attained + solved.fun) < 1e-6 and abs(bound + solved.fun) < 1e-6

# %% [markdown]
# Then the model, after some beginnings of blocks of the validation text: `best_unseen(*continuations(context))`. For each we keep the mixture, the best draft, how often each is accepted, and the entropies. <!-- by definition --> The whole cell is arithmetic; nothing is trained or estimated. Beside the bound itself
# it checks the equation for KL, and one consequence: by the inequalities of Pinsker and Jensen the mixture is accepted at least $1-\sqrt{I/2}$ of the time, so where the token between says little of the one after it, there is little to lose.

# %% tags=["hide-input"]
contexts, _, _ = next(data.validation.spread(context_count).batches(context_count))
contexts = contexts[:, :PROMPT].to(device)
CONTEXTS = len(contexts)
counted = torch.bincount(data.train.labels.long() & 0xFFFF, minlength=V).float() + 1
unigram = (counted / counted.sum()).to(device)


def entropy(p):
    return torch.special.entr(p).sum(-1)


looked = []
for context in contexts:
    p, P = continuations(context)
    m = p @ P
    attained, bound, best = best_unseen(p, P)
    known = (p @ entropy(P)).item()  # what is left of Y when X is known
    found = {
        "p": p, "P": P, "m": m, "best": best,
        "words": tokeniser.decode(context[-8:].tolist()).split(),
        "entropies": (entropy(p).item(), known, entropy(m).item()),
        "information": entropy(m).item() - known,
        "accepted": {
            "frequencies": acceptance(p, P, unigram),
            "mixture": acceptance(p, P, m),
            "best": attained,
        },
    }  # fmt: skip
    rows = P.clamp(min=1e-30)
    divergence = (p @ (rows * (rows.log() - m.clamp(min=1e-30).log())).sum(1)).item()
    assert abs(divergence - found["information"]) < 1e-3
    assert attained <= bound + 1e-5 and bound - attained < 1e-3
    assert found["accepted"]["mixture"] <= bound + 1e-5
    assert found["accepted"]["mixture"] >= 1 - (found["information"] / 2) ** 0.5
    assert attained >= p.max().item() - 1e-5
    looked.append(found)
    del rows
tried = contexts.new_tensor([7])  # and the continuations are the model's own
with torch.no_grad():
    direct = soften(teacher(torch.cat([contexts[0], tried])[None])[0, -1])
assert (direct - looked[0]["P"][7]).abs().max() < 1e-5

MARKS = {
    "frequencies": ("x", "grey", "frequencies of tokens"),
    "mixture": ("o", BLUE, "mixture $m$"),
    "best": ("D", VERMILION, "best, $q^*$"),
}


def last_words(words, room=22):
    """As many of the last words as there is room for."""
    kept = words[-1]
    for word in reversed(words[1:-1]):  # the first may be a part of a word
        if len(kept) + len(word) >= room:
            break
        kept = f"{word} {kept}"
    return "… " + kept[-room:].replace("$", r"\$")


figure, (left, right) = plt.subplots(
    1, 2, figsize=(8.8, 0.9 + 0.36 * CONTEXTS), sharey=True, width_ratios=(1.25, 1)
)
for place, found in enumerate(looked):
    for name, (mark, hue, _) in MARKS.items():
        left.plot(found["accepted"][name], place, mark, color=hue, markersize=6, mfc="none" if name == "best" else hue)  # fmt: skip
    first, known, unseen = found["entropies"]
    right.barh(place, known, color=SKY, height=0.55)
    right.barh(place, unseen - known, left=known, color=ORANGE, height=0.55)
    right.plot(first, place, "|", color="grey", markersize=14, mew=2)
for name, (mark, hue, label) in MARKS.items():
    left.plot(
        [], [], mark, color=hue, mfc="none" if name == "best" else hue, label=label
    )
left.set_yticks(range(CONTEXTS), [last_words(found["words"]) for found in looked])
left.set_ylim(CONTEXTS - 0.5, -0.5)
left.set(xlabel="accepted without seeing the token between", xlim=(0, 1))
right.set(xlabel="nats")
figure.legend(
    *left.get_legend_handles_labels(),
    loc="outside lower center",
    ncols=3,
    fontsize="small",
)
for panel in (left, right):
    panel.grid(axis="y", visible=False)


def mean_of(name):
    return mean_interval([found["accepted"][name] for found in looked])


said = "; ".join(f"{MARKS[name][2]} {mean_of(name).bracketed('.2f')}" for name in MARKS)
informed = mean_interval([found["information"] for found in looked])
show(
    figure,
    label="unseen",
    caption=f"Every token of the vocabulary tried between context and prediction, after {CONTEXTS} contexts (their last words at the left). Left: how often the second token ahead is accepted from a head that does not see the first; means with 95 % intervals over the {CONTEXTS} contexts: {said}. Nothing to the right of a diamond can be reached by any such head. "
    f"Right: entropy of the second token when the first is known (blue), and what not knowing it adds (orange), the mutual information, {informed.bracketed('.2f')} nats (n = {informed.n}); the grey stroke is the entropy of the first token.",
    alt="Two panels with a row for each context. Left, three marks a row: frequencies, the mixture and the best draft. Right, stacked bars of entropy.",
)

# %% tags=["hide-input"]
gains = [found["accepted"]["best"] - found["accepted"]["mixture"] for found in looked]
below = [found["accepted"]["best"] for found in looked]
Markdown(
    f"The best draft minus the mixture: {np.mean(gains):.3f} on average, {max(gains):.3f} at most. The bound lies between {min(below):.2f} and {max(below):.2f}."
)

# %% [markdown]
# A head that does not see the token between has a ceiling, which the diamonds show, context by context. It is high where the next token is nearly certain ($A(q^*)\ge\max_xp(x)$, since $q$ may always be what follows the likeliest token), or where it does not matter. <!-- by definition --> And even with unlimited capacity and unlimited text, forward KL leads to the circle and not to the
# diamond; labels do the same, on text that the model wrote. It takes a loss that asks for acceptance, such as total variation, to get to the diamond.
#
# The ceiling belongs to text in which $X$ comes from $p$. In a run of speculative decoding that is so after the prompt and after a round that was accepted as a whole. After a refusal, $X$ was drawn from what the proposal had left over, and the average over such places is another one.
#
# ## Two kinds of modules
#
# Count the tokens so that the model's state $h_i$, which has read $x_{\le i}$, gives the logits of $x_{i+1}$. Module $k$ gives those of $x_{i+k+1}$, through the model's own output embedding $E$.
#
# **Side by side**, as in Medusa {cite}`cai2024medusa`, each module looks at the state and nothing else: $h_i^k=h_i+\operatorname{MLP}_k(\operatorname{norm}(h_i))$. The heads of {cite:t}`gloeckle2024better` are side by side as well; each is a transformer layer, and they are trained together with the model from the start. **In a row**, as in DeepSeek-V3 {cite}`deepseek2024v3`, module $k$ reads the state of module $k-1$ and the
# embedding of the token $x_{i+k}$, and is a transformer block: $h_i^k=\operatorname{Block}_k\bigl(W_k[\operatorname{norm}(h_i^{k-1});\operatorname{norm}(Ex_{i+k})]\bigr)$ with $h_i^0=h_i$. When a proposal is made, the tokens between are those that the modules before have proposed.
#
# Which tokens does a prediction depend on? Change each token of a text in turn, and see which logits move. Here is that experiment, with a small random model, as the drawing of the two kinds.

# %%
torch.manual_seed(0)
HERE = 4
SHOWN = HERE + depth + 3
kinds = {"in a row": True, "side by side": False}
read = {}
for kind, in_a_row in kinds.items():
    trunk = GPT(13, width=16, layers=2, heads=2, context=SHOWN)
    probe = MultiToken(trunk, depth, in_a_row=in_a_row)
    with torch.no_grad():
        for weight in probe.parameters():
            # so that nothing is lost in rounding
            weight.mul_(8 if weight.ndim > 1 else 1)
        text = torch.randint(13, (1, SHOWN))
        changed = text.repeat(SHOWN, 1)
        changed[range(SHOWN), range(SHOWN)] = (text[0] + 1) % 13
        told = [
            torch.cat([all_logits(probe.trunk(t))[:, None], probe(t)], 1)[:, :, HERE]
            for t in (changed, text)
        ]
        moved = (told[0] - told[1]).abs().amax(-1)
        read[kind] = moved.T > 1e-6  # (predictor, token changed)

# %% tags=["hide-input"]
for kind, in_a_row in kinds.items():
    for k in range(depth + 1):
        last = HERE + (k if in_a_row else 0)
        assert read[kind][k].tolist() == [place <= last for place in range(SHOWN)]

figure, panels = plt.subplots(1, 2, figsize=(8.4, 2.6), sharey=True)
for panel, kind in zip(panels, kinds, strict=True):
    for k in range(depth + 1):
        for place in range(SHOWN):
            panel.add_patch(
                plt.Rectangle(
                    (place - 0.42, k - 0.38),
                    0.84,
                    0.76,
                    linewidth=0,
                    alpha=0.75 if read[kind][k, place] else 0.12,
                    color=(GREEN if place > HERE else BLUE)
                    if read[kind][k, place]
                    else "grey",
                )
            )
        panel.plot(HERE + k + 1, k, "*", color=VERMILION, markersize=11)
    names = [f"$x_{{i{place - HERE:+d}}}$" if place != HERE else "$x_i$" for place in range(SHOWN)]  # fmt: skip
    panel.set_xticks(range(SHOWN), names, fontsize="x-small")
    panel.set(xlim=(-0.6, SHOWN - 0.4), ylim=(depth + 0.5, -0.5))
    panel.set_title(kind)
    panel.grid(visible=False)
panels[0].set_yticks(
    range(depth + 1), ["the model", *(f"module {k}" for k in range(1, depth + 1))]
)
show(
    figure,
    label="reads",
    caption="Which tokens move a prediction when they are changed (blue: tokens that the model has read; green: tokens after them), and which token it predicts (star), at one place $i$. In a row, a module reads up to the token before its own, as the model would.",
    alt="Two grids of squares, a row for the model and each module, a column for each token. Side by side all rows end at the same token; in a row they form a staircase just before the stars.",
)

# %% [markdown]
# So the bound of the first section holds for modules side by side. In a row nothing is hidden: their only limit is what a block can compute. In exchange they cost more. A proposal is one module after the other, each with attention over the text, where modules side by side can all be asked at once.

# %% tags=["hide-input"]


def new_modules(in_a_row):
    """Untrained modules on a copy of the teacher."""
    torch.manual_seed(0)
    model = MultiToken(
        as_large_as_the_teacher(teacher.context), depth, in_a_row=in_a_row
    )
    model.stand_on(teacher)
    return model.to(device)


modules = {kind: new_modules(in_a_row) for kind, in_a_row in kinds.items()}
head = teacher.embedding.weight.numel()
looks = {"the model": count_parameters(teacher)}  # the embedding, once, as output layer
for kind, model in modules.items():
    matrices = sum(w.numel() for w in model.blocks[0].parameters() if w.ndim == 2)
    looks[f"a module {kind}"] = matrices + head

# %% tags=["hide-input"]
table(
    ["", "multiply-adds a token, millions", "of these output layer", "of a forward pass of the model"],
    [[name, f"{n / 1e6:.2f}", f"{head / n:.0%}", f"{n / looks['the model']:.2f}"] for name, n in looks.items()],
    caption=f"What a prediction costs, attention over the text left out. The weights that learn: {', '.join(f'{kind} {count_parameters(model):,}' for kind, model in modules.items())}, for {depth} of them. The output layer is the model's, is shared, and does not learn.",
)  # fmt: skip

# %% [markdown]
# On this small model, a module is a sizeable part of the model because of the output layer. On a large model both parts shrink.
#
# ## Two teachers
#
# What should module $k$ at place $i$ be taught? There is the **label**, the token $x_{i+k+1}$ of the text. And there is the **model itself**: when it stands at place $i+k$, it has a distribution for that token. It is computed anyway, for the same text, in the same forward pass that gives the states; all it takes is to shift it. Learning from it is self-distillation, and it is about as old as the modules. EAGLE's draft layer, which reads the states and the tokens between, learns by a smooth $L_1$ distance to the model's next state and by cross-entropy with the distribution that the model has there {cite}`li2024eagle`.
# Hydra puts Medusa's heads in a row, on a model that stays frozen; its best recipe, Hydra++, teaches them by cross-entropy with the model's own shifted distribution, and its published command gives the labels a weight of zero {cite}`ankner2024hydra`. Both are of early 2024. MTP-D does it with modules that are trained together with the model, which had learned from labels until then {cite}`zhao2026mtpd`.
# (Medusa speaks of self-distillation too, for training its heads on text that the model wrote {cite}`cai2024medusa`: there the model supplies the text, here the distribution.)
#
# `Ahead` is this teacher. It has no weights of its own. The cell checks that its distribution for module $k$ is the model's own, $k$ places later.

# %%
with torch.no_grad():
    said, ahead = teacher(contexts[:2]), Ahead(teacher, depth)(contexts[:2])
for k in range(1, depth + 1):
    torch.testing.assert_close(ahead[:, k - 1, : PROMPT - k], said[:, k:])
del said, ahead

# %% [markdown]
# ### The same goal?
#
# Acceptance is measured against the model. Labels estimate the distribution of the text. With labels the gradient by a
# module's logits is $q-y$ (with $y$ one-hot), with the model's distribution it is $q-p$. On average over texts the two
# are the same *if* the next token really has the distribution $p$, that is, if the model is right about the text. That
# holds exactly on text that the model has written itself at temperature one. On books it fails in so far as the model
# is wrong. How wrong is it? Were the model right, its cross-entropy with the books would be its own mean entropy.

# %% tags=["hide-input"]
lost, own = [], []
with torch.no_grad():
    for blocks, following, _ in data.validation.spread(24).batches(4):
        log_p = teacher(blocks.to(device)).log_softmax(-1)
        right_ones = log_p.gather(-1, following.to(device)[..., None])[..., 0]
        lost += (-right_ones.mean(1)).tolist()
        own += entropy(log_p.exp()).mean(1).tolist()
excess = paired_difference(lost, own)
del log_p
if excess.low > 0:
    said = "surer than these books allow"
elif excess.high < 0:
    said = "less sure than it could be of these books"
else:
    said = "not told apart from one that is as sure as it may be"
Markdown(
    f"On {excess.n} blocks the cross-entropy with the books is {np.mean(lost):.3f} nats a token and the model's own entropy {np.mean(own):.3f}: a difference of {excess.bracketed()}. On average the model is {said}."
)

# %% [markdown]
# This is a coarse test. A difference of zero would prove little, since a model can be too sure of some things and not sure enough of others; and with it in either direction, $p$ is not what the labels average to. Labels then pull the modules towards a predictor of books that is better than the model, and away from being accepted by it.
#
# ### The noise
#
# Even where the goals agree, one label is a noisy way to say what a distribution says. Let a module see something, $S$, and let $\bar p=\mathbb E[p\mid S]$ be the best that it could say by KL. Its target is random, and the law of total variance splits the noise of a label:
#
# $$ \underbrace{\mathbb E\,\|y-\bar p\|^2}_{\text{labels}}=\underbrace{\mathbb E\,\|y-p\|^2}_{\text{which token was drawn}}+\underbrace{\mathbb E\,\|p-\bar p\|^2}_{\text{what the module does not see}} . $$
#
# The cross term vanishes because $y$ has mean $p$ once everything is known. A label has both parts. The model's distribution has only the second. For a module in a row, which reads the token between, the second is zero: nothing is random about its target. For one side by side it is not, and this part of the noise stays with either teacher. In the first section all $p_x$ were computed, so that every term can be: $\mathbb E\|y-p\|^2=1-\sum_xp(x)\|p_x\|^2$, and
# $\mathbb E\|p-\bar p\|^2=\sum_xp(x)\|p_x\|^2-\|m\|^2$. First we check by drawing.


# %%
def noise(found):
    """Of which token was drawn, and of what is not seen: the two parts."""
    square, of_mixture = found["p"] @ (found["P"] ** 2).sum(1), (found["m"] ** 2).sum()
    return (1 - square).item(), (square - of_mixture).item()


# %% tags=["hide-input"]
DRAWS = 5_000
example = looked[0]
draws = torch.Generator(device).manual_seed(0)
x = torch.multinomial(example["p"], DRAWS, replacement=True, generator=draws)
y = torch.cat(
    [
        torch.multinomial(example["P"][part], 1, generator=draws)[:, 0]
        for part in x.split(1000)
    ]
)
m, squares = example["m"], (example["P"] ** 2).sum(1)
whole = (m**2).sum()
by_draws = {
    "labels": 1 - 2 * m[y] + whole,  # ‖y − m‖², draw by draw
    "distilled": squares[x] - 2 * (example["P"] @ m)[x] + whole,  # ‖p_x − m‖²
}
by_formula = {"labels": sum(noise(example)), "distilled": noise(example)[1]}
told = []
for name, values in by_draws.items():
    error = values.std().item() / DRAWS**0.5
    assert abs(values.mean().item() - by_formula[name]) < 4.5 * error
    told.append(f"{name} {values.mean():.4f} ± {error:.4f} and {by_formula[name]:.4f}")
display(
    Markdown(f"The noise by {DRAWS:,} draws and by the formula: {'; '.join(told)}.")
)

parts = [noise(found) for found in looked]
bars = {
    "in a row, labels": [(a, 0.0) for a, _ in parts],
    "in a row, distilled": [(0.0, 0.0) for _ in parts],
    "side by side, labels": parts,
    "side by side, distilled": [(0.0, b) for _, b in parts],
}
figure, panel = plt.subplots(figsize=(6.6, 2.3))
for place, values in enumerate(bars.values()):
    drawn, unseen = np.mean(values, 0)
    panel.barh(place, drawn, color=SKY, height=0.55, label="which token was drawn" if place == 0 else None)  # fmt: skip
    panel.barh(place, unseen, left=drawn, color=ORANGE, height=0.55, label="what the module does not see" if place == 0 else None)  # fmt: skip
panel.set_yticks(range(len(bars)), list(bars))
panel.invert_yaxis()
panel.grid(axis="y", visible=False)
panel.set(xlabel="variance of the target, one token")
panel.legend(fontsize="x-small", loc="lower right")
of_labels, of_model = (
    np.mean([sum(v) for v in bars[f"side by side, {name}"]])
    for name in ("labels", "distilled")
)
show(
    figure,
    label="noise",
    caption=f"Exact variance of what module 1 is taught, given what it sees, on the model's own text; mean over the {CONTEXTS} contexts. Side by side, distillation leaves {of_model / of_labels:.0%} of it; in a row, none.",
    alt="Four stacked bars, in a row and side by side, with labels and distilled; that of distilled in a row is empty.",
)

# %% [markdown]
# This is the noise of one token's target. A step averages over thousands of tokens, and its noise has other sources, such as which books are in the batch. So the bars say which way the difference goes. They do not say how much a given training gains.
#
# ## Four small trainings
#
# In a row and side by side, taught by labels and by the model through forward KL: a short training on the same short blocks in the same order. Modules of one kind begin with the same weights. These are very young modules, which is enough to see the measures at work; the recorded ones below have read far more.

# %%
BLOCK = 64
TEACHERS = ("labels", "distilled")


def as_blocks(split):
    return replace(split, context=BLOCK, stride=None, blocks=None, ahead=depth)


train, held_out = as_blocks(data.train), as_blocks(data.validation).spread(12)
recipe = Recipe(
    epochs=1, epoch_examples=min(read_blocks, len(train)),
    batch_size=min(4, read_blocks), optimizer="adamw",
    learning_rate=4e-3, weight_decay=0.1,
    schedule="cosine", warmup_epochs=0.1, augment=False, max_gradient_norm=1.0,
)  # fmt: skip
objectives = {"labels": 1.0 * CrossEntropy(), "distilled": 1.0 * ForwardKL()}
learned = {
    (kind, name): new_modules(in_a_row)
    for kind, in_a_row in kinds.items()
    for name in TEACHERS
}
for model in learned.values():
    model.fused = True
ahead = Ahead(teacher, depth).to(device)
ahead.fused = True
fit_together(
    [Learner(model, objectives[name], recipe) for (_, name), model in learned.items()],
    train=train,
    teacher=ahead,
    device=device,
)
for model in (ahead, *learned.values()):
    model.fused = False
    model.eval()

# %% [markdown]
# `measure_further` says of each module how near it is to the model on text that neither wrote, as if the tokens between were the text's own; this is called *teacher-forced*. One minus total variation is the acceptance there. We compute it block by block, to get an interval, with the frequencies of tokens for comparison. A word on counting: module 1 predicts the *second* token ahead of the state, module $k$ the one $k+1$ ahead. <!-- by definition -->

# %% tags=["hide-input"]
how = {"teacher": ahead, "device": device}
shares = {
    who: np.array(
        [
            [
                1 - m["total_variation"]
                for m in measure_further(model, held_out[[b]], **how)
            ]
            for b in range(len(held_out))
        ]
    )
    for who, model in learned.items()
}
inputs, labels, _ = next(held_out.batches(len(held_out)))
with torch.no_grad():
    p = soften(ahead(inputs[:8].to(device)), class_axis=-1)
of_frequencies = torch.minimum(p, unigram).sum(-1)
usual = [
    of_frequencies[:, k][labels[:8, k].to(device) >= 0].mean().item()
    for k in range(depth)
]
del p

# %% tags=["hide-input"]
LIVE_HUES = {
    "in a row, labels": ORANGE,
    "in a row, distilled": BLUE,
    "side by side, labels": ORANGE,
    "side by side, distilled": BLUE,
}
TOKENS = tuple(
    f"{n} token" for n in ("second", "third", "fourth", "fifth", "sixth", "seventh")
)
figure, panels = plt.subplots(1, depth, figsize=(8.8, 2.3), sharey=True, squeeze=False)
for k, panel in enumerate(panels[0]):
    names = {who: ", ".join(who) for who in learned}
    intervals = {
        names[who]: mean_interval(values[:, k]) for who, values in shares.items()
    }
    dots(panel, {name: [] for name in names.values()}, intervals, colours=LIVE_HUES)
    panel.axvline(usual[k], color="grey", linestyle=":")
    panel.set_xlabel(f"$1-\\mathrm{{TV}}$, {TOKENS[k]}", fontsize="small")


step_up = {kind: shares[kind, "distilled"] - shares[kind, "labels"] for kind in kinds}
gained = {kind: [mean_interval(values.T[k]) for k in range(depth)] for kind, values in step_up.items()}  # fmt: skip
show(
    figure,
    label="live",
    caption=f"Acceptance by depth on {len(held_out)} held-out blocks, one training of {recipe.epoch_examples // recipe.batch_size} steps each; 95 % intervals over blocks, which say how well these modules are measured, not how the next training would come out. Dotted: frequencies of tokens. Distilled minus labels, module by module: "
    + "; ".join(
        f"{kind} {', '.join(i.bracketed() for i in each)}"
        for kind, each in gained.items()
    )
    + ".",
    alt="A panel for each token ahead, each with an interval for four modules and a dotted line of frequencies.",
)

# %% tags=["hide-input"]
if not data.fallback:
    for k, token in enumerate(TOKENS[:depth]):  # by block, one training each
        gain = Quantity(f"what distillation adds to the acceptance of the {token}")
        by_block = {kind: values[:, k].tolist() for kind, values in step_up.items()}
        over_blocks = replace(
            evidence(by_block, gain),
            notes="held-out blocks in the place of seeds: one training of each",
        )
        display(above("in a row", "side by side", over_blocks))

# %% [markdown]
# And the bound? For the contexts of the first section everything is there to compute $A(q)$ of the modules that do not see the token between, exactly, and to set it beside the best possible. <!-- by definition --> Modules in a row have another $q$ for each token between; for them we use a sample of such tokens.

# %% tags=["hide-input"]
SAMPLED = 64


@torch.no_grad()
def reading(model, context, found):
    """The acceptance of module 1 in a row, over tokens between that are drawn from p."""
    draws = torch.Generator(device).manual_seed(0)
    x = torch.multinomial(found["p"], SAMPLED, replacement=True, generator=draws)
    text = torch.cat([context.expand(SAMPLED, -1), x[:, None]], 1)
    model.fused = True
    q = soften(model(text)[:, 0, PROMPT - 1].dense())
    model.fused = False
    return torch.minimum(found["P"][x], q).sum(1).mean().item()


against = {name: [] for name in TEACHERS}
with_the_token = {
    name: [
        reading(learned["in a row", name], *each)
        for each in zip(contexts, looked, strict=True)
    ]
    for name in TEACHERS
}
for found, context in zip(looked, contexts, strict=True):
    for name in TEACHERS:
        with torch.no_grad():
            q = soften(learned["side by side", name](context[None])[0, 0, -1])
        reached = acceptance(found["p"], found["P"], q)
        assert reached <= found["accepted"]["best"] + 1e-3
        against[name].append(reached)
        away = (found["m"] * (found["m"] / q).clamp(min=1e-30).log()).sum().item()
        assert away > -1e-4  # on top of the information, by KL

# %% tags=["hide-input"]
ladder = {
    "frequencies": [found["accepted"]["frequencies"] for found in looked],
    **{f"side by side, {name}": values for name, values in against.items()},
    "mixture $m$": [found["accepted"]["mixture"] for found in looked],
    "best, $q^*$": [found["accepted"]["best"] for found in looked],
    **{f"in a row, {name}": values for name, values in with_the_token.items()},
}
hues = dict(
    zip(ladder, ("grey", ORANGE, BLUE, SKY, VERMILION, ORANGE, BLUE), strict=True)
)
figure, panel = plt.subplots(figsize=(6.4, 3.0))
dots(
    panel,
    ladder,
    {name: mean_interval(values) for name, values in ladder.items()},
    colours=hues,
)
panel.axhline(4.5, color="grey", linewidth=1)
panel.set_xlabel("acceptance of the second token")
rungs = list(ladder)
steps = [
    f"{b} minus {a} {paired_difference(ladder[b], ladder[a]).bracketed()}"
    for a, b in ((rungs[i], rungs[j]) for i, j in ((0, 2), (2, 3), (3, 4), (4, 6)))
]
show(
    figure,
    label="ladder",
    caption=f"Module 1 at the {CONTEXTS} contexts of the first section: one dot per context, means with 95 % intervals. Above the line, without the token between, all is exact; below, it is read, and {SAMPLED} draws of it a context are averaged. Paired by context: "
    + "; ".join(steps)
    + ".",
    alt="Rows of dots: frequencies, two trained modules side by side, the mixture, the best draft; below a line, two modules in a row.",
)

# %% tags=["hide-input"]
if not data.fallback:
    young, ceiling = (
        "the young module in a row",
        "the best head that does not see the token between",
    )
    by_context = evidence(
        {young: with_the_token["distilled"], ceiling: ladder["best, $q^*$"]},
        Quantity("acceptance of the second token, context by context"),
    )
    display(
        undecided(
            young,
            ceiling,
            0.05,
            replace(by_context, notes="contexts in the place of seeds: one training"),
        )
    )

# %% [markdown]
# The step from the modules side by side to the mixture is what more training and capacity could bring. The step from there to the best is what another objective could. <!-- by definition --> A module that does not read the token between cannot get beyond that.
#
# ## A model that drafts for itself
#
# `speculate` takes such modules for its draft, and the model on which they stand for its verifier. All that was proved about the text in {doc}`19_drafts_that_are_believed` holds, since it holds for any draft: the text has the model's distribution, and at temperature zero it is the model's text, token for token, except for rounding.

# %%
prompts, _, _ = next(
    as_blocks(data.validation).spread(prompt_count).batches(prompt_count)
)
prompts = prompts[:, : PROMPT + depth + 1].to(device)
prompts, true = prompts[:, :PROMPT], prompts

# %% tags=["hide-input"]
few = prompts[:16]
plain = generate(teacher, few, tokens=24, temperature=0)
differing = {}
for kind in kinds:
    model = learned[kind, "distilled"]
    found = speculate(
        model.trunk, model, few, tokens=24, draft_length=depth, temperature=0
    )
    differing[kind] = (found.text != plain).any(1).sum().item()
of_texts = Quantity(
    f"a comparison of {len(few)} greedy texts with plain decoding", digits=0
)
for kind, n in differing.items():
    what = f"the number of texts that differ with modules {kind}"
    display(within(what, 0, 0, {what: n}, of_texts))

# %% [markdown]
# ### Acceptances multiply
#
# Let $a_k$ be the probability that the $k$-th proposed token is accepted, *given that those before it were*. A round of $\gamma$ proposals then brings
#
# $$ 1+a_1+a_1a_2+\dots+a_1a_2\cdots a_\gamma $$
#
# tokens on average. This is no approximation; it is how the $a_k$ are defined. The formula of the last chapter is the case of equal $a_k$. With modules there is no reason why they should be equal: side by side, each is blind to more than the one before; in a row, each works with what the others have made of the state.
#
# What are the $a_k$? A guess is the teacher-forced $1-\mathrm{TV}$ of module $k$. Three things come between. The
# *text*: the model goes on from its own tokens, not the book's. The *selection*: the second token is only ever tested
# where the first was accepted, and such places are easier, or harder, than others. <!-- by definition --> And for
# modules in a row the *tokens between* are proposals. But this last worry is unfounded. A proposal counts only if all
# before it were accepted; then they are the text, and the module has read nothing wrong.
#
# One round after each of many prompts tells the three apart. To write two tokens takes exactly one round: the call on the prompt gives the first, and the round gives at least the other.

# %%
ROWS = 64


@torch.no_grad()
def one_round(model):
    """How many of the proposals were accepted in the first round after each prompt."""
    draws = torch.Generator(device).manual_seed(0)
    how = {"tokens": 2, "draft_length": depth, "generator": draws}
    parts = prompts.split(ROWS)
    found = [speculate(model.trunk, model, part, **how).accepted for part in parts]
    return torch.cat(found).cpu()


@torch.no_grad()
def forced(model, text):
    """1 − TV of each module at the end of the prompt, the tokens after it given."""
    model.fused = ahead.fused = True
    found = []
    for part in text.split(ROWS):
        z, t = (each(part)[:, :, PROMPT - 1].dense() for each in (model, ahead))
        found.append(1 - total_variation(z, t, reduction="none"))
    model.fused = ahead.fused = False
    return torch.cat(found).cpu().numpy()


# %% tags=["hide-input"]
draws = torch.Generator(device).manual_seed(1)
own_text = torch.cat(
    [
        generate(teacher, part, tokens=depth + 1, generator=draws)
        for part in prompts.split(ROWS)
    ]
)
rounds, by_text = {}, {}
for kind in kinds:
    model = learned[kind, "distilled"]
    accepted = one_round(model)
    reached = [(accepted >= k).float() for k in range(depth + 1)]
    rounds[kind] = {
        "accepted": accepted,
        "a": [
            (reached[k + 1].sum() / reached[k].sum().clamp(min=1)).item()
            for k in range(depth)
        ],
        "by depth": [
            ratio_interval(reached[k + 1], reached[k]) if reached[k].sum() > 1 else None
            for k in range(depth)
        ],
    }
    by_text[kind] = {
        "books": forced(model, true),
        "own": forced(model, own_text),
    }

figure, panels = plt.subplots(1, 2, figsize=(8.2, 3.0), sharey=True)
LOOKS = {
    "teacher-forced, books": (GREEN, "s"),
    "teacher-forced, the model's own text": (PURPLE, "D"),
    "in the round, given those before": (VERMILION, "o"),
}
for panel, kind in zip(panels, kinds, strict=True):
    columns = [
        [mean_interval(by_text[kind][text][:, k]) for k in range(depth)]
        for text in ("books", "own")
    ]
    columns.append(rounds[kind]["by depth"])
    for shift, ((label, (hue, mark)), column) in enumerate(
        zip(LOOKS.items(), columns, strict=True)
    ):
        for k, i in enumerate(column):
            if i is not None:
                place = k + 1 + 0.15 * (shift - 1)
                panel.plot([place] * 2, [i.low, i.high], color=hue, linewidth=1.5)
                panel.plot(
                    place, i.mean, mark, color=hue, label=label if k == 0 else None
                )
    panel.set_xticks(range(1, depth + 1), [f"module {k}" for k in range(1, depth + 1)])
    panel.set_title(kind)
    panel.grid(axis="x", visible=False)
panels[0].set(ylabel="acceptance", ylim=(0, None))
figure.legend(
    *panels[0].get_legend_handles_labels(),
    loc="outside lower center",
    ncols=3,
    fontsize="small",
)
tested = {
    kind: [(rounds[kind]["accepted"] >= k).sum().item() for k in range(depth)]
    for kind in kinds
}
show(
    figure,
    label="depth",
    caption=f"Acceptance by depth of the distilled modules, one round after each of {len(prompts)} prompts, with 95 % intervals over prompts. In the round a module is tested only where those before it were accepted: "
    + "; ".join(
        f"{kind} {', '.join(str(n) for n in each)} times"
        for kind, each in tested.items()
    )
    + ". The second is on the model's own text, whether or not anything would have been accepted.",
    alt="Two panels, modules in a row and side by side: three series of points with intervals against the module's number.",
)

# %% [markdown]
# The distance from green to purple is due to the text. That from purple to red is due to selection and to chance, since red counts what happened; the deeper the module, the fewer the tests. <!-- by definition --> Now whole texts: tokens per call, beside the product of what the books say, the product of what first rounds say, and the geometric formula at the pooled acceptance.

# %% tags=["hide-input"]
WRITTEN = 24
writing = prompts[:48]
compared = {}
for kind in kinds:
    model = learned[kind, "distilled"]
    s = speculate(
        model.trunk,
        model,
        writing,
        tokens=WRITTEN,
        draft_length=depth,
        generator=torch.Generator(device).manual_seed(2),
    )
    brought = ratio_interval((s.accepted + s.calls).tolist(), s.calls.tolist())
    pooled = (s.accepted.sum() / s.tested.sum()).item()
    a = rounds[kind]["a"]
    product = 1 + sum(np.cumprod(a))
    of_rounds = rounds[kind]["accepted"].double().mean().item()
    assert abs(product - 1 - of_rounds) < 1e-6  # no approximation
    compared[kind] = {
        "product, books": 1 + np.cumprod(by_text[kind]["books"].mean(0)).sum(),
        "product, first rounds": product,
        "geometric, accepted / tested": tokens_per_call(pooled, depth),
        "geometric, module 1 alone": tokens_per_call(a[0], depth),
        "measured": brought,
    }

names = [name for name in next(iter(compared.values())) if name != "measured"]
table(
    [f"tokens per call, $\\gamma={depth}$", *names, "measured"],
    [
        [kind, *(f"{each[name]:.3f}" for name in names), f"{each['measured'].mean:.3f} [{each['measured'].low:.3f}, {each['measured'].high:.3f}]"]
        for kind, each in compared.items()
    ],
    caption=f"{len(writing)} prompts, {WRITTEN} tokens each, distilled modules. Measured with its 95 % interval over prompts; as in the last chapter, what a last round accepts beyond the end is counted.",
)  # fmt: skip

# %% [markdown]
# The geometric formula with the acceptance of the *first* module is what one would write down after looking at a single number, and it promises what deeper modules do not deliver, in so far as they are worse. <!-- by definition --> Fed with accepted over tested, it can come close by accident: that number is already an average over the depths. What it cannot tell is what a fourth module would bring, or whether the third pays for itself; for that one needs the $a_k$.
#
# ## The recorded modules
#
# Six arms (ways to train): modules in a row and side by side, each taught by *labels*, by the model through forward KL (*distilled*), and by the model through total variation (*distilled, TV*). All on the same text in the same order for one seed, three seeds, one learning rate. The model is the same for all and does not change. The test text is touched once.

# %% tags=["hide-input"]
small, large = results("modules-small"), results("modules")
studies = (small, large)
KINDS = {"row": "in a row", "side": "side by side"}
TAUGHT = {"labels": "labels", "distilled": "distilled", "distilled-tv": "distilled, TV"}
ARMS = {f"{k}-{t}": f"{KINDS[k]}, {TAUGHT[t]}" for k in KINDS for t in TAUGHT}
HUES = {f"{k}-{t}": hue for k in KINDS for t, hue in zip(TAUGHT, (ORANGE, BLUE, GREEN), strict=True)}  # fmt: skip


def shared_by(k):
    """1 − TV of module k on the test text, as a measure of a record."""
    return lambda record: 1 - record["test"]["modules"][k - 1]["total_variation"]


def ways(study):
    return next(spec.drafting.rounds for spec in study.specs if spec.drafting)


def described(study):
    spec = next(spec for spec in study.specs if spec.drafting)
    return f"three modules on {called(study.specs[0].student)}, {tokens_read(spec):.1f} million tokens"


def known_to(record):
    """What is known of one run over its prompts: tokens per call and times as fast, with intervals."""
    found, plain = round_of(record, 3), record["test"]["drafting"]["plain_seconds"]
    written = np.add(found["accepted"], found["calls"])
    return ratio_interval(written, found["calls"]), ratio_interval(
        plain, found["seconds"]
    )


def depth_figure(study):
    arms = study.ready(ARMS)
    figure, panels = plt.subplots(
        1, 3, figsize=(9.0, 0.9 + 0.36 * len(arms)), sharey=True
    )
    for k, panel in enumerate(panels, 1):
        rows = {
            ARMS[arm]: list(study.values(arm, shared_by(k)).values()) for arm in arms
        }
        intervals = {ARMS[arm]: study.mean(arm, shared_by(k)) for arm in arms}
        dots(panel, rows, intervals, colours={ARMS[arm]: HUES[arm] for arm in arms})
        panel.set_xlabel(f"$1-\\mathrm{{TV}}$, {TOKENS[k - 1]}", fontsize="small")
    learns = {
        ARMS[arm].split(",")[0]: f"{study.arm(arm)[0]['parameters'] / 1e6:.2f}"
        for arm in arms
    }
    return show(
        figure,
        label=f"modules-{study.plan}",
        caption=f"{described(study)}: acceptance by depth on the test text, teacher-forced; one dot per training, means with 95 % intervals over seeds. Millions of weights that learn: {', '.join(f'{kind} {n}' for kind, n in learns.items())}. Modules of the two kinds have seen as much text, and are not equally large.",
        alt="Three panels of rows of dots, an arm a row, for the second, third and fourth token ahead.",
    )


PAIRS = [
    (f"{k}-{t}", f"{k}-labels") for k in KINDS for t in ("distilled", "distilled-tv")
]


def differences_table(study):
    rows = []
    for treated, control in PAIRS:
        measures = [*(shared_by(k) for k in (1, 2, 3)), call_yield(3)]
        found = [study.difference(treated, control, measure) for measure in measures]
        if all(found):
            rows.append([ARMS[treated], *(i.bracketed() for i in found), found[0].n])
    if not rows:
        return None
    return table(
        ["minus labels", *(f"$1-\\mathrm{{TV}}$, {token}" for token in TOKENS[:3]), "tokens per call, $\\gamma=3$", "$n$"],
        rows,
        caption=f"Distilled minus labels within a kind of module, paired by seed, with 95 % intervals. {4 * len(rows)} intervals, not corrected for their number: were there no difference anywhere, about one in twenty would still exclude zero. They are not independent: columns measure the same trainings, and two rows each share a control.",
    )  # fmt: skip


def whole_of(length):
    """How many of the rounds were accepted as a whole: all but those in which a token was refused."""

    def measure(record):
        found = round_of(record, length)
        return 1 - (sum(found["tested"]) - sum(found["accepted"])) / sum(found["calls"])

    return measure


def by_depth(study, arm):
    """Acceptance of the last of one, two and three proposals, given those before."""
    whole = [1.0, *(study.mean(arm, whole_of(g)).mean for g in (1, 2, 3))]
    return [b / a if a > 0 else float("nan") for a, b in pairwise(whole)]


def ways_table(study):
    rows = []
    for arm in study.ready(ARMS):
        forced_product = 1 + np.cumprod([study.mean(arm, shared_by(k)).mean for k in (1, 2, 3)])  # fmt: skip
        promised = np.cumsum([1, *(forced_product - 1)])[1:]
        in_rounds = by_depth(study, arm)
        for length, stop in ways(study):
            way = f"{length}" + (f", stops below {stop:g}" if stop else "")
            rows.append(
                [
                    ARMS[arm],
                    way,
                    "–" if stop else f"{in_rounds[length - 1]:.3f}",
                    "–" if stop else f"{promised[length - 1]:.2f}",
                    f"{study.mean(arm, call_yield(length, stop)).mean:.2f}",
                    f"{study.mean(arm, times_as_fast(length, stop)).mean:.2f}",
                ]
            )
    record = next(r for arm in study.ready(ARMS) for r in study.arm(arm) if r["test"])
    brought, faster = known_to(record)
    return table(
        ["modules", "$\\gamma$", "$a_\\gamma$ in rounds", "from $1-\\mathrm{TV}$", "tokens per call", "times as fast"],
        rows,
        caption=f"Means over seeds. $a_\\gamma$ is the acceptance of the last of $\\gamma$ proposals given those before: rounds of $\\gamma$ that were accepted as a whole, over those of one less; beyond the first it is a quotient of two sets of rounds, and too uncertain to compare teachers by. The fourth column is tokens per call as $1+a_1+a_1a_2+\\dots$ with the teacher-forced $1-\\mathrm{{TV}}$ in place of $a_k$. Over its {brought.n} prompts one run knows its tokens per call to ±{(brought.high - brought.low) / 2:.2f} and its speed to ±{(faster.high - faster.low) / 2:.2f} (95 %, $\\gamma=3$); between trainings the clock differs by more. Times as fast: as plain decoding, on {', '.join(sorted({r['provenance']['device'] for r in study.all(study.ready(ARMS))}))}, one text at a time.",
    )  # fmt: skip


display(
    *slots(small, ARMS, f"modules from labels and from the model ({described(small)})")
)
for study in studies:
    if study.ready(ARMS):
        display(depth_figure(study))
        if (found := differences_table(study)) is not None:
            display(found)
        display(ways_table(study), source_note(study.all(study.ready(ARMS))))
display(*slots(large, ARMS, f"the same on a GPU ({described(large)})"))

# %% [markdown]
# Compare within a kind first: labels, distilled, distilled by total variation. By the argument about noise, the step from labels to distilled should be larger in a row. <!-- by definition --> By the argument about the ceiling, the step from forward KL to total variation should be larger side by side, where the best draft is not the mixture. <!-- by definition --> The difference of the two kinds' steps, seed by seed, says whether it is so.

# %% tags=["hide-input"]
STEPS = {
    "the step from labels to distilled, second token": ("row", "side", "distilled", "labels"),
    "the step from forward KL to total variation, second token": ("side", "row", "distilled-tv", "distilled"),
}  # fmt: skip


def step(study, kind, after, before):
    """What one way of teaching adds to another for the second token, a value a seed."""
    found = study.differences(f"{kind}-{after}", f"{kind}-{before}", shared_by(1))
    return list(found.values())


for study in studies:
    if study.complete(list(ARMS)) and not any(study.diverged(arm) for arm in ARMS):
        for what, (larger, smaller, *taught) in STEPS.items():
            by_kind = {KINDS[k]: step(study, k, *taught) for k in (larger, smaller)}
            of_records = replace(evidence(by_kind, Quantity(what)), source="records")
            display(above(KINDS[larger], KINDS[smaller], of_records))

# %% [markdown]
# The two differences share two arms, so they are not independent. Where they agree with the arguments they do not prove them: the kinds differ in size too, and labels also pull towards the books. In a row, a module could in principle say the model's own distribution, and then both losses have the same best answer. <!-- by definition --> If total variation falls short of forward KL there, it is a matter of getting there ({doc}`19_drafts_that_are_believed` has its gradient).
#
# Then compare the kinds: from the second token to the fourth, modules side by side are blind to more and more. If what
# rounds yield is not what the fourth column says, it may be the text, or the selection: later tokens are tested where
# the earlier ones were accepted. Finally the clock, which belongs to one machine: a proposal that is accepted more
# often may still not be worth its time.
#
# ## The claim
#
# "Modern transformers use KD to predict multiple future tokens simultaneously", says article B, and cites DeepSeek-V3
# for "Multi-Token Prediction Distillation (MTP-D)". There the modules learn from the tokens of the text
# {cite}`deepseek2024v3`, as those of {cite:t}`gloeckle2024better` do; the name MTP-D is a later paper's
# {cite}`zhao2026mtpd`. Modules and draft layers on a *frozen* model have been distilled from the beginning
# {cite}`li2024eagle,ankner2024hydra`. What can be tested is whether this makes modules be accepted more often.

# %% tags=["hide-input"]
decides = next(
    (
        study
        for study in reversed(studies)
        if study.complete(list(ARMS))
        and all(
            study.difference(f"{k}-distilled", f"{k}-labels", shared_by(1))
            for k in KINDS
        )
    ),
    None,
)
if decides is not None:
    said = []
    for k, kind in KINDS.items():
        pair = f"{k}-distilled", f"{k}-labels"
        shares_of = [decides.difference(*pair, shared_by(depth)) for depth in (1, 2, 3)]
        said.append(
            f"{kind}, acceptance on the test text changes by {', '.join(i.bracketed() for i in shares_of)} for the second, third and fourth token, and tokens per call at $\\gamma=3$ by {decides.difference(*pair, call_yield(3)).bracketed()} (from {decides.mean(pair[1], call_yield(3)).mean:.2f} to {decides.mean(pair[0], call_yield(3)).mean:.2f})"
        )
    clocks = {
        (arm, *way): decides.mean(arm, times_as_fast(*way)).mean
        for arm in ARMS
        for way in ways(decides)
    }
    arm, length, stop = best = max(clocks, key=clocks.get)
    given = verdict(
        "B13", "depends",
        "Sometimes. Modules that are trained together with their model, as in DeepSeek-V3, which the article cites, learn from the text's own tokens; drafts on a frozen model have been distilled from its own distribution since EAGLE and Hydra (2024), and MTP-D (2026) distils the former, too. "
        f"What it changes, distilled minus labels, paired by seed, at equal tokens and one learning rate for all ({described(decides)}, n = {shares_of[0].n}): " + "; ".join(said)
        + ". Distilled by total variation instead, the second token's changes by "
        + " and ".join(f"{decides.difference(f'{k}-distilled-tv', f'{k}-labels', shared_by(1)).bracketed()} ({kind})" for k, kind in KINDS.items())
        + ", tokens per call by "
        + " and ".join(f"{decides.difference(f'{k}-distilled-tv', f'{k}-labels', call_yield(3)).bracketed()}" for k in KINDS)
        + f". A module that does not read the token between has a ceiling that no teacher lifts. On the machine of these records, of {len(clocks)} modules and ways to propose the fastest by its mean ({ARMS[arm]}, $\\gamma={length}$" + (f", stops below {stop:g}" if stop else "")
        + f") is {clocks[best]:.2f} times as fast as plain decoding" + (", so that none saves time there." if clocks[best] < 1 else "."),
        data=data, condition="bound to a scale",
    )  # fmt: skip
    display(given)

# %% tags=["hide-input"]
sentences = [
    f"A head that does not see the token between can have at most {100 * mean_of('best').mean:.0f} % of its proposals accepted, and {100 * mean_of('mixture').mean:.0f} % where it fits the mixture (exact, mean over {CONTEXTS} contexts of the small model).",
    f"The noise of a target, by labels and by the model's own distribution, is {of_labels:.2f} and {of_model:.2f} for modules side by side; in a row only labels have any.",
]
if decides is not None:
    sentences.append(
        "In the records, the model's distribution in place of labels changes acceptance of the second token by "
        + " and ".join(
            f"{(100 * decides.difference(f'{k}-distilled', f'{k}-labels', shared_by(1))).bracketed('+.1f')} points ({kind})"
            for k, kind in KINDS.items()
        )
        + f", at equal tokens ({described(decides)}, n = {shares_of[0].n} paired seeds)."
    )
    sentences.append(
        f"The fastest of {len(clocks)} modules and ways to propose is {clocks[best]:.2f} times as fast as plain decoding on the machine of the records."
    )
findings.show(*sentences)

# %% [markdown]
# ## Limits
#
# - **Scale.** A model of a few million parameters on books. Acceptances do not carry over to large models; the bound and the bookkeeping do.
# - **One model.** Intervals over seeds are over trainings of modules for it.
# - **The model is frozen.** {cite:t}`gloeckle2024better` and DeepSeek-V3 train modules together with the model, which changes the states, and is said to be good for the model itself. That is not tested here.
# - **One bound at one depth, after a handful of contexts.** It is computed for the second token ahead. For the third, all pairs of tokens between would have to be tried. The interval over contexts is wide.
# - **The bound is for text of the model.** Places after a refusal are not counted in it.
# - **Kinds are not equally large.** A module in a row has more weights and more arithmetic than one side by side. <!-- by definition --> Their comparison is of two designs as they are used, not of reading alone.
# - **EAGLE, Hydra and MTP-D do things that are not tried here.** EAGLE matches states beside distributions and proposes trees. MTP-D trains the model and its modules together, at a scale where that can be judged, and adds modules by using those that it has in a loop {cite}`zhao2026mtpd`.
# - **One learning rate**, that of a language model trained from the start, for all arms. Equal text, not equal time.
# - **The clock** is that of one text at a time on one machine, at a size where a module's output layer is a good part of the model's own work.
# - **One proposal at a time.** Medusa tests a tree of proposals in one call.
#
# ## To take away
#
# **Formulae.** Without the token between, forward KL leads to the mixture $m=\sum_xp(x)\,p_x$, and acceptance to quantiles of one level, $\Pr(p_X(y)>q^*(y))\le\lambda\le\Pr(p_X(y)\ge q^*(y))$. A round of $\gamma$ proposals brings $1+a_1+a_1a_2+\dots+a_1\cdots a_\gamma$ tokens.
#
# **What to set.** `MultiToken(trunk, depth, in_a_row=…)` with `stand_on(model)`; `Ahead(model, depth)` as its teacher; `ForwardKL()` or `TotalVariation()`. Then `speculate(trunk, modules, …, draft_length=depth)`.
#
# **What to watch for.** Modules side by side have a ceiling that no teacher lifts. The model and the labels ask for the same only where the model is right about the text. Measure acceptance module by module, each where those before it were accepted, and the time on your machine.
#
# ## Exercises
#
# ```{exercise}
# :label: ex-greedy-ahead
#
# At temperature zero, what is the ceiling for a head that does not see the token between? Explain in one sentence, and say what it means for modules side by side at low temperatures.
# ```
#
# ```{solution} ex-greedy-ahead
# :class: dropdown
#
# It is one. A greedy model's next token is a function of the context, $\hat x=\arg\max_xp(x)$, and so is the one after it, $\arg\max_yp_{\hat x}(y)$: nothing is hidden but what is hard to compute. In the formula, $p$ is one-hot, so that $A(p_{\hat x})=1$. The ceiling rises to one as the temperature falls (unless two tokens are exactly tied), and what then separates modules side by side from those in a row is capacity alone.
# ```
#
# ```{exercise}
# :label: ex-mixture-share
#
# Show that the mixture is accepted at least $\sum_xp(x)^2$ of the time, and the best draft at least $\max_xp(x)$. When are both equalities? Check both on `looked`.
# ```
#
# ````{solution} ex-mixture-share
# :class: dropdown
#
# Since $m(y)\ge p(x)p_x(y)$ for each $x$, $\min(p_x(y),m(y))\ge p(x)p_x(y)$. Sum over $y$ and average over $x$: $\sum_xp(x)^2$. For the other, take $q=p_{\hat x}$ with the likeliest $\hat x$; the term $x=\hat x$ alone gives $p(\hat x)$. Both are equalities if the $p_x$ share no token, as in the toy.
#
# ```python
# for found in looked:
#     assert found["accepted"]["mixture"] >= (found["p"] ** 2).sum() - 1e-6
#     assert found["accepted"]["best"] >= found["p"].max() - 1e-5
# ```
# ````
#
# ```{exercise}
# :label: ex-third-module
#
# A module costs $c$ calls of the model, and a call on $\gamma+1$ tokens takes the time of one. When does the third module pay? Write a function of $a_1,a_2,a_3$ and $c$, and find the largest $c$ for $a=(0.7,0.6,0.5)$.
# ```
#
# ````{solution} ex-third-module
# :class: dropdown
#
# With $b_\gamma=1+a_1+\dots+a_1\cdots a_\gamma$ the speed-up is $b_\gamma/(1+\gamma c)$. The third pays if $b_3/(1+3c)>b_2/(1+2c)$, that is, if $a_1a_2a_3\,(1+2c)>c\,b_2$. Hence $c<a_1a_2a_3/(b_2-2a_1a_2a_3)$ where the denominator is positive:
#
# ```python
# a1, a2, a3 = 0.7, 0.6, 0.5
# print(a1 * a2 * a3 / (1 + a1 + a1 * a2 - 2 * a1 * a2 * a3))  # 0.12
# ```
#
# What counts is the *product*: a third module that is right half of the time when it is asked is asked less than half of the time. <!-- by definition -->
# ````
#
# ```{exercise}
# :label: ex-surer-model
#
# An experiment: make the model surer of itself, $p\propto p^{1/T}$ for the next token and for the one after it, after the first context of the chapter. What becomes of the ceiling, and of the mixture, at $T=0.5$?
# ```
#
# ````{solution} ex-surer-model
# :class: dropdown
#
# The rows of `P` are the distributions after each token, so that all of them are sharpened alike, and the mixture is taken again. By the first exercise both go to one for $T\to0$ (except for ties); on the way there the mixture need not rise, since sharper distributions may overlap less. <!-- by definition -->
#
# ```python
# print(", ".join(f"{name} {looked[0]['accepted'][name]:.2f}" for name in ("mixture", "best")))
# sharp = [soften(looked[0][key].clamp(min=1e-30).log(), 0.5) for key in ("p", "P")]
# print(f"T = 0.5: mixture {acceptance(*sharp, sharp[0] @ sharp[1]):.2f}, best {best_unseen(*sharp)[0]:.2f}")
# ```
# ````
