"""``crd`` and ``methods``: what an objective costs beside what it is compared with."""

from ..objectives import Objective
from ..study.plans import PAIRS
from ..study.plans import methods as published
from .timing import BenchmarkError, Contest, Settings, contest
from .training import EXAMPLES, kdlab_round


def objectives(teacher: str, student: str) -> dict[str, Objective]:
    """The objectives of the published table for a pair, with memories for CIFAR's training images."""
    weights = {(t, s): weight for t, s, weight in PAIRS}
    try:
        found = published(student, teacher, EXAMPLES, weights.get((teacher, student), 2.0))
    except KeyError as error:
        raise BenchmarkError(f"the published table has no {error.args[0]!r}.") from None
    return {name: objective.fresh() for name, objective in found.items()}


def crd(settings: Settings) -> list[Contest]:
    """CRD's whole step relative to KD's: at most 1.2 is the goal.

    One and the same loop, networks and batches; 16,384 negatives from memories of 50,000. Three pairs of the published
    table, unless one is named.
    """
    pairs = [(teacher, student) for teacher, student, _ in PAIRS[:3]]
    if settings.teacher is not None:
        pairs = [settings.pair]
    contests = []
    for pair in pairs:
        found = objectives(*pair)
        contestants = {name: kdlab_round(settings, pair, found[name]) for name in ("kd", "crd")}
        title = f"{pair[0]} → {pair[1]}"
        contests.append(contest(title, contestants, settings, reference="kd", share=1 / len(pairs)))
    return contests


def methods(settings: Settings) -> list[Contest]:
    """Each method's step relative to training alone.

    One and the same loop, networks and batches: what is added is the teacher's look, the objective and what it learns.
    """
    pair = settings.pair
    contestants = {name: kdlab_round(settings, pair, objective) for name, objective in objectives(*pair).items()}
    return [contest(f"{pair[0]} → {pair[1]}", contestants, settings, reference="alone")]
