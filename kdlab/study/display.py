"""What a chapter says of its evidence: where numbers come from, and what is missing."""

import html
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from operator import attrgetter

import torch

from ..data import ImageData, TextData
from ..figures import Shown, mathematics, show
from ..figures.dots import dots_side_by_side
from ..language import parse
from .evidence import QUANTITIES, Quantity
from .parameters import ParameterError, check_session
from .plans import GROWING
from .records import record_name
from .results import Results
from .spec import Spec
from .statements import Statement
from .tuning import TRY
from .verdicts import CONDITIONS, VERDICTS, verdict  # noqa: F401 (chapters take all from here)


def data_note(data: ImageData | TextData) -> Shown:
    """Which images or which text this page was computed from; a banner where they are the fall-back."""
    sizes = f"{len(data.train):,} training, {len(data.validation):,} validation and {len(data.test):,} test {data.unit}"
    text = f"{data.title}: {sizes}, content checksum <code>{data.checksum[:12]}</code>."
    if data.fallback:
        return Shown(
            f'<aside class="kd-banner"><strong>Fall-back data.</strong> {data.wanted[0].upper() + data.wanted[1:]} was not to be had in this build, so '
            f"this page ran on {text} It shows that every cell runs; its numbers are not evidence. "
            f"({html.escape(data.reason)})</aside>"
        )
    return Shown(f'<p class="kd-badge">Data: {text}</p>')


def hardware(origin: dict) -> str:
    """What a record's ``provenance`` says it ran on, in words.

    >>> hardware({"device": "AMD EPYC, 1 threads"})
    'AMD EPYC, 1 thread'
    """
    return re.sub(r"\b1 threads$", "1 thread", origin["device"])


def source_note(records: list[dict]) -> Shown:
    """Where recorded numbers come from: device, commit, date and number of runs; the pages link to each record."""
    origins = [record["provenance"] for record in records]

    def distinct(key):
        return ", ".join(sorted({str(origin[key])[:10] for origin in origins}))

    counted = "1 run" if len(records) == 1 else f"n = {len(records)} runs"
    ran_on = ", ".join(sorted({hardware(origin) for origin in origins}))
    dirty = " (with uncommitted changes)" if any(origin["dirty"] for origin in origins) else ""
    return Shown(
        f'<p class="kd-badge">Recorded: {counted} · {html.escape(ran_on)} · '
        f"commit <code>{html.escape(distinct('commit'))}</code>{dirty} · {distinct('started')}</p>",
        {"application/vnd.kdlab.records+json": sorted({record_name(record) for record in records})},
    )


class Findings:
    """What a chapter found, in a box at its beginning, as soon as its last cells know it.

    The first cell says ``findings = Findings()``, the last one ``findings.show(…)``.
    """

    def __init__(self):
        from IPython.display import display

        waiting = Shown(
            '<aside class="kd-findings">What this chapter found stands here when its last cell has run.</aside>'
        )
        self._place = display(waiting, display_id=True)

    def show(self, *sentences: str | Statement) -> None:
        """Two to four sentences, of code that knows what they say; of a statement, what is true of its evidence."""
        texts = [s.text if isinstance(s, Statement) else s for s in sentences]
        items = "".join(f"<li>{mathematics(text)}</li>" for text in texts)
        self._place.update(Shown(f'<aside class="kd-findings"><strong>Found</strong><ul>{items}</ul></aside>'))


def not_yet_run(what: str, command: str) -> Shown:
    """A slot that is visibly empty, with the command that fills it."""
    return Shown(
        f'<aside class="kd-empty"><strong>Not yet run:</strong> {mathematics(what)}. '
        f"It is filled by <code>{html.escape(command)}</code>.</aside>"
    )


def slots(study: Results, arms: Collection[str], what: str) -> list[Shown]:
    """The same for those runs of a plan's arms that have no record yet, and a line for those that diverged; none where all have numbers."""
    lacking, diverged = study.lacking(arms), sum(study.diverged(arm) for arm in arms)
    said = f"{lacking} of {study.planned(arms)} runs: {what}"
    left_out = f"Plan {study.plan}: {diverged} of {study.planned(arms)} runs diverged; they are in no number here."
    notes = [not_yet_run(said, study.command)] if lacking else []
    return notes + ([Shown(f'<p class="kd-badge">{html.escape(left_out)}</p>')] if diverged else [])


def arms_shown(
    study: Results,
    names: Mapping[str, str],
    panels: Mapping[str, Quantity],
    *,
    label: str,
    caption: str,
    colours: Mapping[str, str] | None = None,
    lines: Mapping[str, float] | None = None,
) -> Shown:
    """A figure of recorded arms: a panel a quantity, a row an arm, with each run, the mean and its 95 % interval.

    Args:
        study: where the records are.
        names: what the rows are called, by arm.
        panels: the quantity by what its axis is called.
        label, caption: of the figure; the alternative text lists the means.
        colours: of rows, by arm; blue if left out.
        lines: a dashed line of a panel, by its axis, in the record's own unit: what the arms are held against.
    """
    rows, told = {}, []
    for title, of in panels.items():
        means = {name: study.mean(arm, of.of) for arm, name in names.items()}
        rows[title] = {name: study.values(arm, of.of) for arm, name in names.items()}, means, of.scale
        told.append(f"{title}: " + ", ".join(f"{name} {of.level(mean.mean)}" for name, mean in means.items()))
    figure = dots_side_by_side(rows, {names[arm]: hue for arm, hue in (colours or {}).items()}, lines or {})
    return show(figure, label=label, caption=caption, alt=f"Rows of dots. {'; '.join(told)}.")


def conditions(study: Results) -> str:
    """Under what a plan's arms are compared, in words: networks, length of training, and how the learning rate was chosen.

    An order of methods is an order under these: whoever states it states them. Networks and length are those of the plain distillation;
    of a plan that grows, which chooses its rates, all lengths are named. Arms of another optimiser or decay have a rate that belongs to it,
    and are no exceptions: whoever shows them names it.
    """
    taught = [spec for spec in study.specs if spec.teacher is not None]
    arms = [spec for spec in taught if not spec.arm.startswith(TRY)] or taught
    spec = next((spec for spec in arms if spec.arm == "kd"), arms[0])
    rate, lengths = spec.recipe.learning_rate, [spec.recipe.epochs]
    if study.plan in GROWING:
        lengths = sorted({spec.recipe.epochs for spec in arms})
        chosen = "learning rates chosen on the validation split"
    else:
        chosen = f"one untuned learning rate, {rate:g}"
        how = attrgetter("recipe.optimizer", "recipe.weight_decay")
        alike = [s for s in arms if how(s) == how(spec)]
        if others := {s.arm for s in alike if s.recipe.learning_rate != rate}:
            chosen += f" ({len(others)} of {len({s.arm for s in alike})} arms have another)"
    epochs = " to ".join(f"{length}" for length in dict.fromkeys((lengths[0], lengths[-1])))
    return f"{called(spec.teacher.student)} to {called(spec.student)}, {epochs} epochs, {chosen}"


def called(model: str) -> str:
    """A model's name for people.

    >>> called("gpt_96x3"), called("resnet8_width8")
    ('GPT 96×3', 'ResNet-8, width 8')
    """
    name = re.sub(r"gpt_(\d+)x(\d+)", r"GPT \1×\2", model)
    return re.sub(r"resnet(\d+)", r"ResNet-\1", name).replace("_width", ", width ")


def tokens_read(run: Spec | Mapping) -> float | None:
    """Millions of tokens that a language model reads in its training, by its spec or its record; None of other students.

    >>> from kdlab.study import results
    >>> f"{tokens_read(results('drafts-small').specs[-1]):.3f}"
    '1.049'
    """
    of_spec = isinstance(run, Spec)
    data, how = (run.data, vars(run.recipe)) if of_spec else (run["spec"]["data"], run["recipe"])
    try:
        _, _, context = parse(data)
    except ValueError:  # no name of a text
        return None
    return how["epochs"] * how["epoch_examples"] * context / 1e6


def under(study: Results, measure: str) -> Quantity:
    """A measure of records with the plan's conditions in its name, for sentences that state an order of methods."""
    quantity = QUANTITIES[measure]
    return replace(quantity, name=f"{quantity.name} ({conditions(study)})")


def device_for(profile: str) -> str:
    """The device of a chapter's profile, once the chapter's parameters are checked.

    Raises:
        ParameterError: a ValueError, for a parameter that the chapter does not have, or a value that it cannot
            take; for a profile that is neither ``"cpu"`` nor ``"gpu"``, or ``"gpu"`` without a GPU.
    """
    check_session()
    if profile not in ("cpu", "gpu"):
        raise ParameterError(f'profile must be "cpu" or "gpu", not {profile!r}.')
    if profile == "gpu" and not torch.cuda.is_available():
        raise ParameterError('profile "gpu" needs a CUDA device, and none is visible here; use profile "cpu".')
    return "cuda" if profile == "gpu" else "cpu"
