"""The runner: takes the missing specs of a plan, one group after another, within a budget, and can be killed at any moment."""

import fcntl
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path

import torch

from .. import models
from ..files import remove, sha256, writable
from ..training import CheckpointError, Stopped
from ..training.checkpoint import load_tensors
from ..training.distributed import anywhere, by_the_first, rank_and_world
from ..training.precision import fast_precision
from ..training.protocols import depth_of
from .named import load, network, own_code
from .plans import GROWING, PLANS, specs_of
from .records import (
    RecordError,
    find_record,
    headline,
    name_checkpoint,
    read_record,
    record_path,
    same_numbers,
    write_taken,
)
from .run import Run, run_together
from .spec import Pretrained, Spec
from .stored import checkpoint_path, keep_student, stored_in, weights_checksum

#: A run is stopped so many seconds before its budget ends, to write its checkpoint.
MARGIN = 4.0


class PlanError(ValueError):
    """A plan that there is not, or that cannot be run as asked."""


def plan(name: str, shard: str | None = None, books: Sequence[Path] = ()) -> list[Spec]:
    """The specs of a plan, or of one part of it.

    Args:
        name: of a plan.
        books: where a plan that grows looks for the records that it grows by; none is the book's own folder.
        shard: ``"i/n"``, for array jobs; i from 1: every n-th arm, all its seeds, and with it the arms that its students teach.
            A teacher of the whole plan is in the first part, which is run before the others.

    Raises:
        PlanError: for a plan or shard that there is not, and for a shard of a plan that grows.
    """
    if name not in PLANS:
        raise PlanError(f"there is no plan {name!r}; there are {', '.join(PLANS)}.")
    specs = list({spec.hash: spec for spec in specs_of(name, *books)}.values())
    if shard is None:
        return specs
    if name in GROWING:
        raise PlanError(
            f"the plan {name} grows by all of its records, of which a shard sees its own: start kdlab run {name} several times with one --out "
            "instead, and each takes what no other holds."
        )
    part, _, parts = shard.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise PlanError(f'a shard is "i/n", such as "1/4", not {shard!r}.')
    arms = list(dict.fromkeys(_root(spec) for spec in specs if spec.study != "teacher"))
    mine = set(arms[int(part) - 1 :: int(parts)])
    return [s for s in specs if (int(part) == 1 if s.study == "teacher" else _root(s) in mine)]


def _root(spec: Spec) -> str:
    """The arm that comes first in a chain of assistants."""
    while spec.teacher is not None and spec.teacher.study != "teacher":
        spec = spec.teacher
    return spec.arm


def missing(specs: Sequence[Spec], book: Path) -> list[Spec]:
    """The specs that have no record."""
    return [spec for spec in specs if find_record(spec, Path(book) / "records") is None]


def beside(first: Spec, others: Sequence[Spec], *, device) -> list[Spec]:
    """``first`` and those of ``others`` that can train beside it.

    They share data, teacher, how many further tokens they predict, and what of the recipe fixes batches and their number; on a CPU,
    where one look of the teacher serves only one batch, also the seed.
    """

    def key(spec):
        recipe = spec.recipe
        return (
            spec.examples, spec.teacher and spec.teacher.hash, recipe.epochs, recipe.epoch_examples,
            recipe.batch_size, recipe.augment, recipe.mixup, recipe.precision, recipe.teacher_mode,
            recipe.seed if torch.device(device).type == "cpu" else None,
        )  # fmt: skip

    def fits(spec):
        return key(spec) == key(first) and _further(spec.student) == _further(first.student)

    return [first, *(spec for spec in others if spec is not first and fits(spec))]


@cache
def _further(student: str) -> int:
    """How many further tokens a network of kdlab predicts, as one without numbers tells."""
    if not hasattr(models, student):
        return 0
    with torch.device("meta"):
        return depth_of(network(student)(100))


@contextmanager
def claimed(specs: Sequence[Spec], folder: Path, limit: int | None = None):
    """Those of ``specs`` that no other process is running, the first ``limit``, claimed until the block ends, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    held = {}
    try:
        for place, spec in enumerate(specs):
            if len(held) == limit:
                break
            if (handle := _locked(folder / f"{spec.name}.lock")) is not None:
                held[place] = handle
        yield [specs[place] for place in held]
    finally:
        for place, handle in held.items():
            (folder / f"{specs[place].name}.lock").unlink(missing_ok=True)
            os.close(handle)


def _locked(path: Path) -> int | None:
    """A handle that holds the lock of ``path``; None where another process holds it."""
    while True:
        handle = os.open(path, os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        if os.fstat(handle).st_nlink:
            return handle
        os.close(handle)  # who held it has removed it meanwhile: another process may hold a new one


class Clock:
    """Says when to stop: at the end of the budget, or when the process is asked to end."""

    def __init__(self, budget: float | None):
        self.end = None if budget is None else time.monotonic() + budget
        self.asked = False

    def __call__(self) -> bool:
        return self.asked or (self.end is not None and time.monotonic() > self.end - MARGIN)

    @contextmanager
    def listening(self):
        """Within the block, SIGTERM and SIGINT ask to stop and no more; in the main thread, which alone may say so."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return

        def ask(*_):
            self.asked = True

        before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def run_plan(
    specs: Sequence[Spec] | Callable[[], Sequence[Spec]],
    *,
    book: Path,
    out: Path | None = None,
    budget: float | None = None,
    device="cpu",
    limit: int = 6,
    checkpoint_seconds: float = 30.0,
    say: Callable[[str], None] = print,
    stop: Callable[[], bool] | None = None,
    data: dict | None = None,
    graphs: bool = True,
) -> int:
    """Run the missing specs, as many beside each other as can be, and return how many records were written.

    Several processes may run one plan at once: each takes what no other holds.

    Args:
        specs: of a plan, most valuable first; or what gives them, asked again after each group, where a plan grows.
        book: where records and teachers are looked for.
        out: where new ones go; ``book`` if None. What it holds already counts as done.
        budget: seconds; kept by stopping, with a checkpoint, a few seconds before.
        device: where to train.
        limit: of students in one process.
        checkpoint_seconds: at most so much is lost when the process is killed.
        say: called with lines for people.
        stop: asked before each step, besides the budget.
        data: data sets by name that are loaded already; others are added.
        graphs: as in :func:`~kdlab.training.loop.fit_together`.

    Raises:
        PlanError: if a teacher is missing that the specs do not make.
        DataError: if data cannot be had: of what stands in for them there are no records.
        OSError: before any training, if ``out`` cannot be written.
        Stopped: at the end of the budget, or when ``stop`` said so.
    """
    out = Path(out or book)
    clock = Clock(budget)
    if torch.device(device).type == "cuda":
        torch.backends.cudnn.deterministic = True  # else a resumed run ends with other bits
    if rank_and_world()[0] > 0:  # one process speaks
        say = _silent
    known = specs if callable(specs) else lambda: specs
    with clock.listening():
        data = {} if data is None else data
        return _run(known, [out, Path(book)], clock, stop, device, limit, checkpoint_seconds, say, data, graphs)


def _silent(line: str) -> None:
    pass


def _run(known, places, clock, stop, device, limit, checkpoint_seconds, say, data, graphs) -> int:
    out, written, teachers = places[0], 0, {}
    running = out / "running"

    def stopping():
        return clock() or (stop is not None and stop())

    def recorded_before() -> list[str]:
        specs = known()
        recorded, still = [spec for spec in specs if _recorded(spec, places)], _still_open(specs, places)
        done = [spec for spec in recorded if spec.hash not in still]
        if left := [spec for spec in done if _left(spec, out) and find_record(spec, out / "records")]:
            with claimed(left, running) as mine:  # another process may just be writing the record
                _tidy(mine, out)
        return _other_code(recorded, places)

    for line in by_the_first(recorded_before):
        say(line)
    slow, failed = False, {}
    while True:
        specs = by_the_first(known)
        taught = {spec.teacher.hash for spec in specs if spec.teacher}
        with ExitStack() as claims:
            group, still_open = by_the_first(partial(_claim, specs, failed, places, device, limit, claims))
            if not group and failed:
                raise next(iter(failed.values()))
            if not group:
                return written
            if anywhere(stopping()):
                raise Stopped
            first = group[0]
            again = by_the_first(partial(_recorded, first, places))
            if not written:
                by_the_first(lambda: [writable(out / folder) for folder in ("records", "checkpoints")])
            if first.data not in data:
                data[first.data] = load(first.data)
            teacher = None
            if first.teacher is not None:
                if first.teacher.hash not in teachers:
                    teachers = {first.teacher.hash: _teacher(first.teacher, places, data[first.data].num_classes)}
                teacher = teachers[first.teacher.hash]
            if not slow and (slow := emulated(first.recipe.precision, device)):
                say(SLOWLY)
            say(f"{len(group)} beside each other: {', '.join(f'{s.arm} (seed {s.recipe.seed})' for s in group)}")
            progress = Progress(group, still_open, say)
            try:
                done = run_together(
                    group,
                    data[first.data],
                    teacher=teacher,
                    book=None if again else out,
                    keep=[s.name for s in group if s.hash in taught or _assisted(s) or s.study == "teacher"],
                    device=device,
                    resume=running,
                    checkpoint_seconds=checkpoint_seconds,
                    report=progress,
                    stands=progress.stands,
                    stop=stopping,
                    graphs=graphs,
                    widest=True,
                )
            except CheckpointError as error:  # of one of them, which it names: the others go on without it
                theirs = [spec for spec in group if spec.name in str(error)]
                if not theirs:
                    raise
                failed |= {spec.hash: error for spec in theirs}
                continue
            for spec, finished in zip(group, done, strict=True):
                say(f"{spec.name}: {headline(finished.record)}")
                if again:
                    try:
                        by_the_first(partial(_made_again, spec, finished, places))
                    except RecordError as error:
                        failed[spec.hash] = error
            written += 0 if again else len(done)


def _made_again(spec: Spec, finished: Run, places) -> None:
    """The checkpoint of a run whose record has lost it, or never had it, from the same training once more.

    Raises:
        RecordError: if that has come to other numbers.
    """
    out, path = places[0], checkpoint_path(spec, places[0])
    recorded = next(filter(None, (find_record(spec, place / "records") for place in places)))
    (out / "running" / path.name).unlink(missing_ok=True)
    if not same_numbers(recorded, finished.record):
        raise RecordError(
            f"{spec.name} is recorded without its checkpoint, and trained again it comes to other numbers here: bring {path.name} from where the "
            "record was made, or move the record away, and it and its students are trained anew."
        )
    name_checkpoint(spec, out / "records", recorded, keep_student(spec, finished.student, out))


#: What is said, once, of runs whose precision the device has no instructions for.
SLOWLY = (
    "These runs are in bfloat16, for which this processor has no instructions: they take several times as long here. Runs in float32, "
    "such as those of the plans when-it-pays, whose-text and cut, do not."
)


def emulated(precision: str, device="cpu") -> bool:
    """Whether a device computes in this precision more slowly than in float32."""
    return precision == "bfloat16" and fast_precision(device) == "float32"


def _other_code(specs, places) -> list[str]:
    """Of records of code of one's own whose file has changed since, a sentence each."""
    return [
        f"{spec.name} is recorded, and the file of {path} has changed since: its record stays, of the code that it had; another arm's name trains anew."
        for spec in specs
        if (now := own_code(spec))
        for path, before in next(filter(None, (find_record(spec, p / "records") for p in places)))["own_code"].items()
        if now[path] != before
    ]


def _claim(specs, failed, places, device, limit, claims: ExitStack) -> tuple[list[Spec], int]:
    """What to run next, claimed until ``claims`` closes, and how many are open.

    Nothing where other processes run or make all that is left.

    Raises:
        PlanError: if all that is left needs a teacher that nobody makes.
    """
    made = _still_open(specs, places)
    open_specs = [spec for spec in made.values() if spec.hash not in failed]
    waiting = [spec for spec in open_specs if not _taught(spec, places)]
    ready = [spec for spec in open_specs if spec not in waiting]
    while ready:
        again = _recorded(ready[0], places)
        alike = [spec for spec in beside(ready[0], ready, device=device) if _recorded(spec, places) == again]
        group = claims.enter_context(claimed(alike, places[0] / "running", limit))
        if group := [spec for spec in group if _open(spec, places, kept=again)]:  # not finished meanwhile
            _tidy(group, places[0], HALF)
            return group, len(open_specs)
        ready = [spec for spec in ready if spec not in alike]
    if lost := [spec for spec in waiting if spec.teacher.hash not in made]:
        raise PlanError(
            f"{lost[0].name} needs its teacher {lost[0].teacher.name}, which is not in {places[-1] / 'checkpoints'}; "
            "run the plan that makes it first."
        )
    return [], len(open_specs)


def _still_open(specs, places) -> dict[str, Spec]:
    """What is to be trained, by its hash: specs without a record, and of those with one, who teaches another of these, or whose record names
    a checkpoint, where that is not there."""
    found = {spec.hash: spec for spec in specs if _open(spec, places)}
    for spec in list(found.values()):
        while not _taught(spec, places) and _recorded(spec := spec.teacher, places, to_its_end=True):
            found[spec.hash] = spec
    return found


#: What a killed process leaves of a run half written, and what is needless once it is recorded.
HALF, NEEDLESS = ("running/.{}.*", "records/.{}.*", "checkpoints/.{}.*"), ("running/{}.*",)


def _left(spec: Spec, out: Path, patterns: Sequence[str] = HALF + NEEDLESS) -> list[Path]:
    """What is left of a run, its lock too."""
    return [path for pattern in patterns for path in out.glob(pattern.format(spec.name))]


def _tidy(specs, out: Path, patterns: Sequence[str] = HALF + NEEDLESS) -> None:
    """Remove what killed processes left of runs that this process has claimed; not its claim."""
    for spec in specs:
        for path in _left(spec, out, patterns):
            if path.suffix != ".lock":
                remove(path)


def _recorded(spec: Spec, places, *, to_its_end: bool = False) -> bool:
    """Whether it has a record; with ``to_its_end``, one of a run that did not diverge."""
    found = filter(None, (find_record(spec, place / "records") for place in places))
    return any(record["test"] is not None or not to_its_end for record in found)


def _open(spec: Spec, places, *, kept: bool = False) -> bool:
    """Whether it has no record, or none with the checkpoint that it names; with ``kept``, none with a checkpoint at all."""
    found = [(find_record(spec, place / "records"), checkpoint_path(spec, place)) for place in places]
    return not any(path.exists() if "checkpoint" in record else not kept for record, path in found if record)


def _assisted(spec: Spec) -> bool:
    """Whether its teacher had a teacher: such a student is kept, to be compared with the first of them."""
    return spec.teacher is not None and spec.teacher.teacher is not None


def _taught(spec: Spec, places) -> bool:
    return spec.teacher is None or isinstance(spec.teacher, Pretrained) or not _open(spec.teacher, places, kept=True)


def _teacher(spec: Spec, places, num_classes: int):
    if (model := stored_in(places, spec, num_classes)) is not None:
        return model
    raise PlanError(f"{checkpoint_path(spec, places[-1])} is missing.")


class Progress:
    """Lines for people: which runs, how far, how fast since this process has them, how long still."""

    def __init__(self, group, open_runs: int, say):
        self.group, self.open_runs, self.say = group, open_runs, say
        self.epochs, self.losses, self.began = group[0].recipe.epochs, {}, None

    def stands(self, epochs: int, step: int, steps: int) -> None:
        """A line at each checkpoint, and where this process begins, if that is not the beginning."""
        if self.began is None:
            self.began = (time.monotonic(), epochs + step / steps)
            if epochs or step:
                self.say(f"resumed after epoch {epochs}/{self.epochs}, step {step}/{steps} of the next")
        else:
            self.say(f"epoch {epochs + 1}/{self.epochs}, step {step}/{steps} · {self.left(epochs + step / steps)}")

    def __call__(self, spec: Spec, entry: dict) -> None:
        self.losses[spec.hash] = f"{entry['loss']:.3f}"
        if spec is self.group[-1]:
            losses, rate = ", ".join(self.losses.values()), entry["examples_per_second"] * len(self.group)
            self.say(
                f"epoch {entry['epoch']}/{self.epochs} · loss {losses} · {rate:,.0f} examples/s · {self.left(entry['epoch'])}"
            )

    def left(self, position: float) -> str:
        """Time left for these runs and the plan, from the pace since this process began with them."""
        began, start = self.began
        if position <= start:
            return "left: not yet known"
        epoch = (time.monotonic() - began) / (position - start)
        run = (self.epochs - position) * epoch
        plan = run + (self.open_runs / len(self.group) - 1) * self.epochs * epoch
        return f"left: run {duration(run)}, plan about {duration(plan)}"


def duration(seconds: float) -> str:
    """Seconds for people.

    >>> duration(45), duration(600), duration(9000)
    ('45 s', '10 min', '2 h 30 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def take(source: Path, book: Path, known: Sequence[Spec]) -> list[str]:
    """Take the records, and their checkpoints, of another machine into the book, each verified; return their names.

    Nothing is taken unless all of it is whole. A record that the book has already is left as it is.

    Raises:
        RecordError: if a record is damaged, of no plan, its checkpoint is not the one that it names, or its teacher not the one that is here.
    """
    source, book, teachers = Path(source), Path(book), {}
    by_name = {spec.name: spec for spec in known}
    found = sorted((source / "records").glob("*.json"))
    if not found:
        raise RecordError(f"{source / 'records'} has no records.")
    new = []
    for path in found:
        record = read_record(path)
        if (spec := by_name.get(path.stem)) is None:
            raise RecordError(f"{path.name} is a record of no plan.")
        if record["spec_hash"] != spec.hash:
            raise RecordError(f"{path.name} is the record of another spec.")
        if not record_path(spec, book / "records").exists():
            new.append((spec, path, checked_checkpoint(record, path), record))
    for spec, path, _, record in new:
        check_teacher(spec, record, path, teachers, [book, source])
    for spec, path, stored, _ in new:
        write_taken(spec, path, book, stored)
    return [spec.name for spec, *_ in new]


def check_teacher(spec: Spec, record: dict, file: Path, known: dict[str, str], places: Sequence[Path]) -> None:
    """That a record, read from ``file``, is of a student of the teacher that is stored, and of that of the records before it.

    Args:
        known: checksums of teachers' weights by the hashes of their specs, which grows; records that are older have none.
        places: where checkpoints are, the first that has the teacher's counts.

    Raises:
        RecordError: if it learned from other weights.
    """
    if spec.teacher is None or (weights := record.get("teacher_weights")) is None:
        return
    teacher = spec.teacher.hash
    if teacher not in known:
        stored = [path for place in places if (path := checkpoint_path(spec.teacher, place)).exists()]
        known[teacher] = weights_checksum(load_tensors(stored[0])[0]) if stored else weights
    if known[teacher] != weights:
        raise RecordError(
            f"{file} learned from other weights of its teacher {spec.teacher.name} than those here: students of two teachers are not one arm; "
            "train it anew beside the teacher that is here."
        )


def checked_checkpoint(record: dict, file: Path) -> Path | None:
    """The path of the checkpoint that a record, read from ``file``, names; None if it names none.

    Raises:
        RecordError: if it is missing or another.
    """
    if "checkpoint" not in record:
        return None
    path = file.parents[1] / "checkpoints" / f"{file.stem}.safetensors"
    if record["checkpoint"]["file"] != path.name:
        raise RecordError(f"{file} names the checkpoint of another run.")
    if not path.is_file():
        raise RecordError(f"{path} is missing, and a record names it.")
    if sha256(path) != record["checkpoint"]["sha256"]:
        raise RecordError(f"{path} is not the checkpoint that its record names.")
    return path


def verify(book: Path, known: Sequence[Spec]) -> list[str]:
    """What is wrong with the records and checkpoints of a book, a sentence each; none if all is well."""
    book, wrong, named, contents, teachers = Path(book), [], set(), {}, {}
    by_name = {spec.name: spec for spec in known}
    for path in sorted((book / "records").glob("*.json")):
        try:
            record = read_record(path)
            if path.stem not in by_name:
                wrong.append(f"{path} is a record of no plan.")
            elif by_name[path.stem].hash != record["spec_hash"]:
                wrong.append(f"{path} is the record of another spec.")
            name, content = record["data"]["name"], record["data"]["checksum"]
            if contents.setdefault(name, content) != content:
                wrong.append(
                    f"{path} was trained on other data of the name {name} than the records before it: {content[:12]}…, not {contents[name][:12]}…."
                )
            if stored := checked_checkpoint(record, path):
                named.add(stored.name)
            if path.stem in by_name:
                check_teacher(by_name[path.stem], record, path, teachers, [book])
        except (RecordError, CheckpointError) as error:
            wrong.append(str(error))
    for path in sorted((book / "checkpoints").glob("[!.]*")):  # not what another process is writing
        if path.name not in named:
            wrong.append(f"{path} is named by no record.")
    return wrong


def every_spec(books: Sequence[Path] = ()) -> list[Spec]:
    """The specs of all plans, each once, with those of teachers; of plans that grow, as far as the records in ``books`` let them."""
    found = {}
    for name in PLANS:
        for spec in specs_of(name, *books):
            found[spec.hash] = spec
            if isinstance(spec.teacher, Spec):
                found.setdefault(spec.teacher.hash, spec.teacher)
    return list(found.values())
