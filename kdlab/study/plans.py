"""Plans: functions that return specs, most valuable first. A spec that another one has for teacher comes before it.

``PLANS`` names those that ``kdlab run`` takes. Some *grow*: what they run later depends on what was recorded before, such as a
learning rate that earlier runs choose.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from .encoders import encoder_small
from .grown import grown
from .image_plans import (
    PAIRS,
    first_distillation_cpu,
    first_distillation_gpu,
    first_distillation_live,
    methods,
    published_recipe,
    published_teacher,
    questions,
    small,
    table,
    table_held_out,
    teacher,
)
from .language_plans import (
    drafts,
    drafts_small,
    language,
    language_small,
    modules,
    modules_small,
    policy,
    policy_small,
)
from .records import RecordError, evidence_folder, find_record
from .spec import Spec
from .surprises import cut, fidelity, patient
from .tuning import Found
from .when_it_pays import drafts_grown, held_out, when_it_pays, whose_text

__all__ = [
    "GROWING",
    "PAIRS",
    "PLANS",
    "first_distillation_cpu",
    "first_distillation_gpu",
    "first_distillation_live",
    "methods",
    "published_recipe",
    "published_teacher",
    "questions",
    "recorded",
    "small",
    "specs_of",
    "table",
    "table_held_out",
    "teacher",
]

#: Plans by the name that ``kdlab run`` takes, whose runs are all known.
PLANS: dict[str, Callable[[], list[Spec]]] = {
    "teacher": lambda: [teacher()],
    "table": table,
    "table-held-out": table_held_out,
    "questions": questions,
    "small": small,
    "language-small": language_small,
    "language": language,
    "drafts-small": drafts_small,
    "drafts": drafts,
    "modules-small": modules_small,
    "modules": modules,
    "policy-small": policy_small,
    "policy": policy,
    "first-distillation-cpu": first_distillation_cpu,
    "first-distillation-gpu": first_distillation_gpu,
}

#: Plans that grow: functions of what looks for records.
GROWING: dict[str, Callable[[Found], list[Spec]]] = {
    "grown": grown,
    "when-it-pays": when_it_pays,
    "when-it-pays-held-out": held_out,
    "whose-text": whose_text,
    "drafts-grown": drafts_grown,
    "fidelity": fidelity,
    "cut": cut,
    "patient": patient,
    "encoder-small": encoder_small,
}


def recorded(*books: Path) -> Found:
    """What looks for the record of a spec in several books, and remembers those that it found."""
    known = {}

    def found(spec: Spec) -> dict | None:
        for book in books:
            if spec.hash not in known and (record := find_record(spec, Path(book) / "records")) is not None:
                known[spec.hash] = record
        return known.get(spec.hash)

    return found


def in_the_book(spec: Spec) -> dict | None:
    """The record of a spec in the book's own folder, where there is one."""
    try:
        book = evidence_folder()
    except RecordError:  # a bare machine
        return None
    return find_record(spec, book / "records")


PLANS |= {name: partial(make, in_the_book) for name, make in GROWING.items()}


def specs_of(name: str, *books: Path) -> list[Spec]:
    """The specs of a plan, as far as the records in these books let them be known."""
    return GROWING[name](recorded(*books)) if name in GROWING and books else PLANS[name]()
