"""A recorded run trained once more, anywhere, and compared with its record."""

import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from ..training.state import state_of
from .named import load
from .records import RecordError, find_record, headline, is_number, leaves, numbers, read_record, same_numbers
from .run import run_together
from .runner import Clock, Progress, duration, every_spec
from .spec import Spec
from .stored import checkpoint_path, stored_in, weights_checksum


def run_again(
    path: Path,
    *,
    book: Path,
    device="cpu",
    budget: float | None = None,
    resume: Path | None = None,
    checkpoint_seconds: float = 30.0,
    say: Callable[[str], None] = print,
) -> dict:
    """Train what a record says and compare; nothing is written to the book.

    Args:
        path: the record's file. Its spec is looked for among all plans, by its hash.
        book: where its teacher is, and the records of its other seeds; they may be beside the record too.
        device: where to train.
        budget: seconds, as of :func:`~kdlab.study.runner.run_plan`.
        resume: folder for the checkpoint of the running training, removed at its end; None keeps none.
        checkpoint_seconds: at most so much is lost when the process is killed.
        say: called with lines for people.

    Returns:
        ``name``, ``equal`` (whether all that both recorded is the same to the last bit), ``measures`` as :func:`compared`
        gives them, ``epochs`` (the numbers over the course of training, how many of them are ``equal`` of how many ``all``),
        ``outcome`` of both in words, ``recorded`` and ``here``: the provenance of each, and ``drawn_otherwise``: whether the
        record's code drew the student's weights after what its objective learns.

    Raises:
        RecordError: if the record is damaged or of no plan, its data or its teacher's weights are others, or its teacher is not there.
        DataError: if its data cannot be had.
        Stopped: at the end of the budget.
    """
    recorded, places = read_record(path), [Path(book), Path(path).resolve().parents[1]]
    known = {spec.hash: spec for spec in every_spec(places)}
    origin = recorded["provenance"]
    if (spec := known.get(recorded["spec_hash"])) is None:
        raise RecordError(
            f"{path} is a record of no plan: no spec here has its hash; the code that made it is commit {origin['commit']}."
        )
    data = load(spec.data)
    if data.checksum != recorded["data"]["checksum"]:
        raise RecordError(
            f"{path} was trained on other data of the name {spec.data}: its checksum is {recorded['data']['checksum'][:12]}…, "
            f"that of the data here {data.checksum[:12]}…."
        )
    teacher = None if spec.teacher is None else _teacher(spec, places, data.num_classes)
    if teacher is not None and recorded.get("teacher_weights") not in (None, weights_checksum(state_of(teacher))):
        raise RecordError(f"{path} learned from other weights of its teacher {spec.teacher.name} than those here.")
    if torch.device(device).type == "cuda":
        torch.backends.cudnn.deterministic = True
    say(f"{spec.name} is trained again{_before(recorded, spec)}.")
    progress = Progress([spec], 1, say)
    with Clock(budget).listening() as clock:
        (done,) = run_together(
            [spec],
            data,
            teacher=teacher,
            device=device,
            resume=resume,
            checkpoint_seconds=checkpoint_seconds,
            report=progress,
            stands=progress.stands,
            stop=clock,
            widest="products" in origin,
        )
    if resume is not None:
        (Path(resume) / f"{spec.name}.safetensors").unlink(missing_ok=True)
    again = json.loads(json.dumps(done.record))  # as a record is read
    return {
        "name": spec.name,
        **compared(recorded, again, _other_seeds(spec, known.values(), places)),
        "outcome": {"recorded": headline(recorded), "again": headline(again)},
        "drawn_otherwise": _drawn_otherwise(spec, recorded),
        "recorded": origin,
        "here": again["provenance"],
    }


def _before(recorded: dict, spec: Spec) -> str:
    """How long it took then, and what comes before the first step, where nothing is seen for a while."""
    took = (
        f"; it took {duration(recorded['seconds'])} on {recorded['provenance']['device']}"
        if "seconds" in recorded
        else ""
    )
    kept = [what for what, asked in (("text", spec.text == "teacher"), ("cache", spec.kept)) if asked]
    return took + (
        f", after its teacher has written its {' and its '.join(kept)}, unless it is in the data folder already"
        if kept
        else ""
    )


def _teacher(spec: Spec, places, num_classes: int):
    if (model := stored_in(places, spec.teacher, num_classes)) is not None:
        return model
    raise RecordError(
        f"{spec.name} needs its teacher {spec.teacher.name}, whose record and checkpoint are not both in {places[0]}: "
        f"{checkpoint_path(spec.teacher, places[0])} is made by the plan that has it."
    )


def _other_seeds(spec: Spec, known, places) -> list[dict]:
    """The records of this arm that did not diverge, one a seed, this one's among them."""
    found = {}
    for other in known:
        if (other.study, other.arm) == (spec.study, spec.arm):
            for place in places:
                if (record := find_record(other, place / "records")) and record["test"] is not None:
                    found[other.hash] = record
    return list(found.values())


def _drawn_otherwise(spec: Spec, recorded: dict) -> bool:
    """Whether a record is older than the order of draws of today: the student's weights first, then what an objective learns.

    The length of the gradient has been recorded since the same commit.
    """
    return bool(spec.objective.state_dict()) and "gradient_norm" not in recorded.get("epochs", ["gradient_norm"])


def compared(recorded: dict, again: dict, seeds: list[dict]) -> dict:
    """Two records of one spec, number by number.

    Returns:
        ``measures``: for every number of the test split that both have (of a list of numbers its mean), ``recorded``, ``again``, their ``difference`` and
        ``between_seeds``, the standard deviation over ``seeds`` (None for fewer than two); ``epochs``: of the numbers over the course of
        training, how many are ``equal``, and how many there are in ``all``; ``equal``: whether all of both, and texts, are; ``only``: the names
        of what one of the two alone recorded.
    """
    ours, theirs = numbers(recorded), numbers(again)
    both = [name for name in ours if name in theirs]
    course = [ours[name] == theirs[name] for name in both if name.startswith("epochs.")]
    alone = ours.keys() ^ theirs.keys()
    then, now, *spread = (dict(leaves(record["test"] or {}, mean=True)) for record in (recorded, again, *seeds))
    measures = {}
    for name in (name for name in then if is_number(then[name]) and is_number(now.get(name))):
        values = [rows[name] for rows in spread if is_number(rows.get(name))]
        measures[name] = {
            "recorded": then[name],
            "again": now[name],
            "difference": now[name] - then[name],
            "between_seeds": statistics.stdev(values) if len(values) > 1 else None,
            "seeds": len(values),
        }
    return {
        "equal": same_numbers(recorded, again),
        "measures": measures,
        "epochs": {"equal": sum(course), "all": len(course)},
        "only": sorted({name.partition("[")[0] for name in alone}),
    }


def lines(found: dict) -> Iterator[str]:
    """What :func:`run_again` gives, for people."""
    then, here = found["recorded"], found["here"]
    yield f"recorded   {found['outcome']['recorded']}, {_origin(then)}"
    yield f"again      {found['outcome']['again']}, {_origin(here)}"
    if found["drawn_otherwise"]:
        yield (
            f"The record is from commit {(then['commit'] or 'unknown')[:7]}, which drew what the objective learns before the student's weights: "
            "now they begin with other ones, as with another seed."
        )
    if found["only"]:
        yield f"Not compared, since one of the two alone has it: {', '.join(found['only'])}."
    epochs = found["epochs"]
    if found["equal"]:
        yield f"Equal to the last bit: {len(found['measures'])} numbers of the test split, {epochs['all']} of the epochs."
        return
    yield f"Not equal; of {epochs['all']} numbers of the epochs {epochs['equal']} are."
    if found["measures"]:
        width = max(map(len, found["measures"]))
        yield f"  {'':<{width}}  {'recorded':>12}  {'again':>12}  {'difference':>12}  {'between seeds':>13}"
    for name, m in found["measures"].items():
        sd = "—" if m["between_seeds"] is None else f"{m['between_seeds']:.5g}"
        yield f"  {name:<{width}}  {m['recorded']:>12.6g}  {m['again']:>12.6g}  {m['difference']:>+12.3g}  {sd:>13}"
    if found["measures"]:
        yield "Between seeds: the standard deviation over the recorded seeds of this arm; two runs differ by 1.4 of it."
    yield _what_to_expect(then, here)


def _origin(origin: dict) -> str:
    changes = " and changes" if origin["dirty"] else ""
    return f"commit {(origin['commit'] or 'unknown')[:7]}{changes}, {origin['device']}, torch {origin['torch']}"


def _what_to_expect(then: dict, here: dict) -> str:
    """What may lie behind a difference."""
    if other := [name for name in ("device", "torch", "system", "products") if then.get(name) != here.get(name)]:
        return (
            f"Between processors: other {' and '.join(other)}, so sums are rounded otherwise, and training multiplies the difference until it is "
            "one as between seeds."
        )
    if then["commit"] != here["commit"] or then["dirty"] or here["dirty"]:
        return "The same device and versions, so the code makes the difference: the record's own commit should give the same bits on a CPU."
    return "The same code, device and versions: on a CPU this should be equal; some operations of a GPU add in another order each time."
