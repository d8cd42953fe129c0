"""The plan *encoder-small*: all-MiniLM-L6-v2, which somebody else trained, to three layers and to two.

Seven objectives from the teacher's own layers to three; two of them also from drawn weights, and to two layers. Every arm reads the same
sentences in the same order, and has a learning rate of its own, chosen on the validation split with a seed that no reported run has: for
students cut out of the teacher by runs of a quarter of the length; for drawn weights, which have everything to learn, by whole ones.
(After a quarter the pooled cosine had taught them nothing at any rate that was tried, and the rate that changes least looked best.)
"""

from collections.abc import Iterator
from functools import partial

from ..huggingface.encoders import WEIGHTS, attention_names, layer_names
from ..objectives import AttentionMaps, HiddenCosine, HiddenMSE, InfoNCE, Objective, SimilarityPreserving, match_layers
from ..training import Recipe
from .spec import Pretrained, Spec
from .tuning import Arm, Found, Tuning, at_own_rates

DATA = "books-sentences-24"

TEACHER = Pretrained("all_minilm_l6_v2", WEIGHTS)

#: Layers of the teacher and of the students.
DEPTH, STUDENTS = 6, (3, 2)

RATES = (1e-4, 1e-4 * 10**0.5, 1e-3)

#: What is learned from every beginning and at every depth.
EVERYWHERE = ("embeddings-cosine", "sum")


def recipe(sentences: int) -> Recipe:
    """A whole cosine over so many sentences, in four epochs of their own."""
    return Recipe(
        epochs=4, epoch_examples=sentences // 4, batch_size=32, optimizer="adamw", weight_decay=0.01, schedule="cosine",
        warmup_epochs=0.4, augment=False, max_gradient_norm=1.0,
    )  # fmt: skip


#: By which an arm's rate is chosen, and by which it is trained: about two and eight minutes of a slow core.
SHORT, LONG = recipe(4096), recipe(16384)


def kept_blocks(layers: int) -> tuple[int, ...]:
    """The blocks of the teacher that a student of so many begins with, and is compared with.

    >>> kept_blocks(3), kept_blocks(2)
    ((1, 3, 5), (2, 5))
    """
    theirs = layer_names(DEPTH)
    return tuple(theirs.index(layer) for _, layer in match_layers(layer_names(layers), theirs))


def objectives(layers: int) -> dict[str, Objective]:
    """What a student of so many layers learns, by name. None of it has a weight that was chosen by its result."""
    hidden = HiddenMSE(*match_layers(layer_names(layers), layer_names(DEPTH)))
    attention = AttentionMaps(*match_layers(attention_names(layers), attention_names(DEPTH)), normalise="queries")
    return {
        "embeddings-mse": 1.0 * HiddenMSE("pool"),
        "embeddings-cosine": 1.0 * HiddenCosine("pool"),
        "similarities": 1.0 * SimilarityPreserving("unit"),
        "infonce": 1.0 * InfoNCE("unit", temperature=0.05),
        "hidden": 1.0 * hidden,
        "attention": 1.0 * attention,
        "sum": 1.0 * HiddenCosine("pool") + 1.0 * hidden + 1.0 * attention,
    }


def arm_name(beginning: str, layers: int, objective: str) -> str:
    """
    >>> arm_name("own", 3, "infonce")
    'own3-infonce'
    """
    return f"{beginning}{layers}-{objective}"


def arms() -> dict[str, Arm]:
    """Every arm, by its name."""

    def run(layers: int, objective: Objective, own: bool, arm: str, how: Recipe) -> Spec:
        options = {"from_teacher": True, "blocks": kept_blocks(layers)} if own else {}
        return Spec("encoder-small", arm, DATA, f"minilm_{layers}", objective, how, TEACHER, **options)

    def named() -> Iterator[tuple[str, Arm]]:
        for layers in STUDENTS:
            for beginning in ("own", "drawn"):
                for name, objective in objectives(layers).items():
                    if name in EVERYWHERE or (beginning, layers) == ("own", STUDENTS[0]):
                        yield arm_name(beginning, layers, name), partial(run, layers, objective, beginning == "own")

    return dict(named())


def validation_recall(record: dict) -> float:
    """Neighbours shared with the teacher, of the validation split after the last epoch."""
    return record["epochs"]["validation.recall_at_10"][-1]


def encoder_small(found: Found) -> list[Spec]:
    """The runs that are known so far."""
    tuning = partial(Tuning, weighted=False, rates=RATES, epochs=(SHORT.epochs,), score=validation_recall)
    own = {name: arm for name, arm in arms().items() if name.startswith("own")}
    drawn = {name: arm for name, arm in arms().items() if name not in own}
    return [*at_own_rates(found, own, tuning, SHORT, LONG), *at_own_rates(found, drawn, tuning, LONG, LONG)]
