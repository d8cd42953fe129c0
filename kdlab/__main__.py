"""kdlab: chapters, chapter, status, run, show, take, verify, bench, compare, gpu."""

import json
import os
import re
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
import typer

from .benchmarks import BENCHMARKS, BenchmarkError, Settings, gpu, measured, table
from .benchmarks import vocabulary as head_logits
from .benchmarks.comparison import compared, comparison_table, read_result, result_name
from .data import DataError
from .files import atomic_write, writable
from .study.again import lines, run_again
from .study.cluster import spread
from .study.parameters import ParameterError, declared_in, given_to
from .study.plans import PLANS
from .study.records import RecordError, evidence_folder, read_record
from .study.runner import PlanError, duration, every_spec, missing, plan, run_plan, take, verify
from .training import CheckpointError, Stopped
from .training.distributed import processes, rank_and_world
from .training.memory import keep_freed_memory

# before CUDA begins: by it products give the same bits twice
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
keep_freed_memory()

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help="The study of kdlab."
)

Book = Annotated[Path | None, typer.Option(help="The folder with records and checkpoints; else the book's own.")]
PlanName = Annotated[str, typer.Argument(help=f"One of {', '.join(PLANS)}.")]


@contextmanager
def sentences():
    """Errors for people end the command with their sentence."""
    try:
        yield
    except (
        BenchmarkError, PlanError, RecordError, ParameterError, CheckpointError, DataError, ImportError
    ) as error:  # fmt: skip
        typer.echo(f"{error}", err=True)
        raise typer.Exit(1) from None
    except BrokenPipeError:  # such as of head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except OSError as error:
        typer.echo(
            f"{error.strerror or error}: {error.filename or 'writing'}. Nothing that was written before is lost.",
            err=True,
        )
        raise typer.Exit(1) from None


def seconds(text: str) -> float:
    """A budget such as ``"9m"``.

    Raises:
        PlanError: for anything else.

    >>> seconds("9m"), seconds("90"), seconds("1.5h")
    (540.0, 90.0, 5400.0)
    """
    if not (found := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())):
        raise PlanError(f"a budget is a number of seconds, or such as 9m or 1.5h, not {text!r}.")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


@app.command()
def status(
    name: PlanName,
    book: Book = None,
    out: Annotated[Path | None, typer.Option(help="Records of kdlab run --out count as well.")] = None,
):
    """What of a plan has its record, and what comes next."""
    with sentences():
        place = existing(book) or evidence_folder()
        specs = plan(name, books=[place, out or place])
        todo = missing(missing(specs, place), out or place)
        typer.echo(f"{name}: {len(specs) - len(todo)} of {len(specs)} runs recorded in {place / 'records'}.")
        arms = {}
        for spec in specs:
            arms.setdefault((spec.study, spec.arm), []).append(spec)
        left = {spec.hash for spec in todo}
        for (study, arm), runs in arms.items():
            done = sum(spec.hash not in left for spec in runs)
            typer.echo(f"  {done}/{len(runs)}  {study}: {arm}")
        if todo:
            typer.echo(f"Next: {todo[0].name}. To run it: kdlab run {name}")


@app.command()
def run(
    name: Annotated[str | None, typer.Argument(help=f"One of {', '.join(PLANS)}.")] = None,
    budget: Annotated[str | None, typer.Option(help="Time, such as 9m; else until the plan is done.")] = None,
    device: Annotated[str | None, typer.Option(help="Such as cuda; else the best that there is.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where records go; else the book's own folder.")] = None,
    shard: Annotated[str | None, typer.Option(help="i/n: the i-th of n parts of the plan.")] = None,
    only: Annotated[str | None, typer.Option(help="A regular expression that the name of a run must match.")] = None,
    beside: Annotated[int, typer.Option(help="At most so many students in one process.", min=1)] = 6,
    checkpoint: Annotated[float, typer.Option(help="Seconds between checkpoints.")] = 30.0,
    eager: Annotated[bool, typer.Option("--eager", help="On CUDA, no step is captured as a graph.")] = False,
    ray: Annotated[int | None, typer.Option(help="Spread over so many workers of a Ray cluster.", min=1)] = None,
    again: Annotated[
        Path | None,
        typer.Option(help="A record's file: train what it says and compare; --out names a JSON file."),
    ] = None,
    book: Book = None,
):
    """Run what is missing of a plan; go on where it was stopped. Or train what a record says once more, and compare."""
    with sentences():
        if (name is None) == (again is None):
            raise PlanError("name a plan, such as kdlab run small, or a record: kdlab run --again RECORD.json.")
        if again is not None:
            if shard or only or ray:
                raise PlanError("--again trains one run: leave --shard, --only and --ray out.")
            compare_again(again, book or evidence_or(again.absolute().parents[1]), budget, device, out, checkpoint)
            return
        place = book or evidence_or(out)

        def specs():
            found = plan(name, shard, [place, out or place])
            return [spec for spec in found if only is None or matches(only, spec.name)]

        if not specs():
            names = [spec.name for spec in plan(name, shard, [place, out or place])]
            raise PlanError(f"--only {only!r} fits none of {len(names)} runs; the name of one is {names[-1]}.")
        limit = None if budget is None else seconds(budget)
        if limit == 0:
            raise PlanError("in no time nothing can be run: give a budget such as 9m.")
        if ray is not None:
            if shard or only:
                raise PlanError("--ray makes its own shards of the whole plan: leave --shard and --only out.")
            names = spread(name, ray, book=place, out=out or place, device=device or "cuda", budget=limit)
            typer.echo(f"{len(names)} records came back.")
            return
        device = usable(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        with processes(device) as device:
            say = typer.echo if rank_and_world()[0] == 0 else lambda line: None
            try:
                written = run_plan(
                    specs, book=place, out=out, budget=limit, device=device, limit=beside,
                    checkpoint_seconds=checkpoint, say=say, graphs=not eager,
                )  # fmt: skip
            except Stopped:
                say("Stopped; the same command goes on from here.")
                return
            left = len(missing(missing(specs(), place), out or place))
            if not written and not left:
                say(
                    f"All {len(specs())} runs of {name} are recorded in {' and '.join(str(x / 'records') for x in dict.fromkeys([place, out or place]))}: nothing is left to train. kdlab show RECORD.json "
                    "says what one is, kdlab run --again RECORD.json trains it once more and compares."
                )
                return
            held = " (another process has them)" if left and not written else ""
            say(f"{written} records written; {left} of {len(specs())} runs are still without one{held}.")


def compare_again(record: Path, book: Path, budget, device, out: Path | None, checkpoint: float) -> None:
    """Train what a record says once more; the comparison goes to the screen, and to ``out``."""
    limit = None if budget is None else seconds(budget)
    running = None if out is None else out.with_name(f"{out.name}.running")
    if running is not None:
        if out.exists():
            raise PlanError(f"{out} is there already: --out names the JSON file that the comparison is written to.")
        writable(running)
    try:
        found = run_again(
            record, book=book, device=usable(device or ("cuda" if torch.cuda.is_available() else "cpu")),
            budget=limit, resume=running, checkpoint_seconds=checkpoint, say=typer.echo,
        )  # fmt: skip
    except Stopped:
        typer.echo(
            "Stopped; the same command goes on from here." if out else "Stopped; with --out it would go on from here."
        )
        return
    finally:
        if running is not None and not any(running.iterdir()):
            running.rmdir()
    for line in lines(found):
        typer.echo(line)
    if out is not None:
        with atomic_write(out) as part:
            part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


@app.command()
def show(record: Annotated[Path, typer.Argument(help="A record's file.")]):
    """What a record says."""
    with sentences():
        found = read_record(record)
        spec, origin, test = found["spec"], found["provenance"], found["test"]
        typer.echo(f"{spec['study']}: {spec['arm']}, seed {found['recipe']['seed']}")
        typer.echo(f"  student    {spec['student']}, {found['parameters']:,} parameters; data {spec['data']}")
        typer.echo(f"  objective  {spec['objective']}")
        products = f"; products by {origin['products']}" if "products" in origin else ""
        typer.echo(f"  device     {origin['device']}; torch {origin['torch']}{products}; {origin['started']}")
        typer.echo(
            f"  code       kdlab {origin['kdlab']}, commit {origin['commit']}{' and changes' if origin['dirty'] else ''}"
        )
        if test is None:
            typer.echo(f"  outcome    {found['diverged']}")
            return
        beside = found.get("students_in_process", 1)
        typer.echo(
            f"  training   {duration(found['seconds'])}, {found['examples_per_second']:,.0f} examples/s"
            + (f", beside {beside - 1} others" if beside > 1 else "")
        )
        for measure, value in test.items():
            typer.echo(f"  {measure:<26} {value:.4f}" if isinstance(value, float) else f"  {measure:<26} {value}")


@app.command(name="take")
def take_in(source: Annotated[Path, typer.Argument(help="A folder that kdlab run --out wrote.")], book: Book = None):
    """Take in records from another machine, all verified first."""
    with sentences():
        names = take(source, book or evidence_folder(), every_spec([book or evidence_folder(), source]))
        for name in names:
            typer.echo(name)
        there = len(list((source / "records").glob("*.json"))) - len(names)
        typer.echo(f"{len(names)} records taken in" + (f"; {there} were there already." if there else "."))


@app.command(name="verify")
def verify_book(book: Book = None):
    """Check every record and checkpoint: schema, spec, checksums, no orphan."""
    with sentences():
        place = existing(book) or evidence_folder()
        wrong = verify(place, every_spec([place]))
        for sentence in wrong:
            typer.echo(sentence, err=True)
        if wrong:
            raise typer.Exit(1)
        typer.echo(f"{len(list((place / 'records').glob('*.json')))} records and their checkpoints are whole.")


@app.command()
def bench(
    name: Annotated[
        str | None, typer.Argument(help=f"One of {', '.join(BENCHMARKS)}; none lists them. Or vocabulary.")
    ] = None,
    device: Annotated[str, typer.Option(help="Such as cuda.")] = "cpu",
    budget: Annotated[str, typer.Option("--seconds", help="Time, such as 90 or 5m; at least 5 rounds.")] = "60",
    teacher: Annotated[str | None, typer.Option(help="Of kdlab.models; together with --student.")] = None,
    student: Annotated[str | None, typer.Option(help="Of kdlab.models; together with --teacher.")] = None,
    steps: Annotated[int | None, typer.Option(help="Of each round.", min=1)] = None,
    out: Annotated[Path | None, typer.Option(help="A JSON file for every round's time, and where it ran.")] = None,
    size: Annotated[
        str | None, typer.Option(help="Of vocabulary: tokens×student×teacher×words, as 2048x512x1024x32000.")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="Of vocabulary: float32 or bfloat16.")] = None,
    record: Annotated[
        Path | None, typer.Option(help="A folder for that file, beside those of other commits; see kdlab compare.")
    ] = None,
):  # fmt: skip
    """Measure kdlab side by side with what it is compared with."""
    if name is None:
        for known, benchmark in BENCHMARKS.items():
            typer.echo(f"{known:<10} {benchmark.__doc__.splitlines()[0]}")
        typer.echo(f"vocabulary {head_logits.__doc__.splitlines()[0].partition(': ')[2]}")
        return
    with sentences():
        if name == "vocabulary":
            result = head_logits.measured(head_logits.Size.of(usable(device), size, precision), seconds(budget))
            typer.echo(head_logits.table(result))
        else:
            result = measured(name, Settings(usable(device), seconds(budget), teacher, student, steps))
            typer.echo(table(result))
        for path in (out, None if record is None else record / result_name(result)):
            if path is not None:
                with atomic_write(path) as part:
                    part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


@app.command(name="compare")
def compare_benchmarks(
    earlier: Annotated[Path, typer.Argument(help="What kdlab bench … --record wrote.")],
    later: Annotated[Path, typer.Argument(help="The same of another commit, on the same machine.")],
):
    """Say whether a commit is slower than another; ends with 1 if it is."""
    with sentences():
        before, after = read_result(earlier), read_result(later)
        typer.echo(comparison_table(before, after))
        if any(row["seen"] == "slower" for row in compared(before, after)):
            raise typer.Exit(1)


@app.command(name="gpu")
def use_gpu(
    minutes: Annotated[float, typer.Option(help="All that it may take.", min=0.0)] = 11.0,
    device: Annotated[str, typer.Option(help="Such as cuda:1; cpu is a rehearsal.")] = "cuda",
    out: Annotated[Path, typer.Option(help="The folder for all that comes of it; bring it back, and it goes on.")] = Path("gpu"),
    plans: Annotated[str | None, typer.Option(help="Plans for the records, as table,language; else all.")] = None,
    part: Annotated[str | None, typer.Option(help=f"One of {', '.join(gpu.PARTS)} alone.")] = None,
    book: Book = None,
):  # fmt: skip
    """Let a few minutes of a GPU become a check of this package on it, measurements, and records."""
    with sentences():
        device, place = usable(device), book or evidence_or(out)
        names = None if plans is None else plans.split(",")
        if unknown := [name for name in names or () if name not in PLANS]:
            raise PlanError(f"there is no plan {unknown[0]!r}; there are {', '.join(PLANS)}.")
        if part is not None and part not in gpu.PARTS:
            raise PlanError(f"there is no part {part!r}; there are {', '.join(gpu.PARTS)}.")
        writable(out)
        if part is not None:
            gpu.run_part(part, device, 60 * minutes, out, book=place, plans=names)
            return
        options = () if plans is None else ("--plans", plans)
        if died := gpu.visit(device, 60 * minutes, out, book=place, say=typer.echo, options=options):
            typer.echo(f"{died} of {len(gpu.PARTS)} parts did not come to their end.", err=True)
            raise typer.Exit(1)


@app.command(name="chapters")
def list_chapters():
    """The chapters of the book and their parameters: name, type, default and what each is."""
    with sentences():
        for path in sorted((evidence_folder().parents[1] / "notebooks").glob("[0-9]*.py")):
            title = re.search(r"^# # (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)[1]
            typer.echo(f"{int(path.stem[:2]):>2}  {title}")
            for parameter in declared_in(path).values():
                told = f"    {parameter.name}: {parameter.kind} = {parameter.default!r}"
                typer.echo(f"{told:<44}  {parameter.comment}".rstrip())


@app.command(name="chapter", context_settings={"ignore_unknown_options": True})  # -1 is a value
def execute_chapter(
    which: Annotated[str, typer.Argument(help="Its number, or a part of its name.")],
    values: Annotated[list[str] | None, typer.Argument(metavar="", hidden=True)] = None,
    names: Annotated[
        list[str] | None,
        typer.Option("-p", metavar="NAME VALUE", help="A list as 1,2,8; kdlab chapters lists what there is."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder for the notebook and the page.")] = Path("."),
    page: Annotated[bool, typer.Option(help="Also make the page; it takes Sphinx half a minute.")] = True,
):
    """Execute a chapter of the book with parameters of your own: a notebook, and a page that looks as in the book."""
    with sentences():
        from .study import chapters

        try:
            source = chapters.find_chapter(which)
            if len(names or []) != len(values or []):
                raise PlanError("each -p takes a name and a value, such as -p temperatures 1,2,8.")
            given = given_to(declared_in(source), dict(zip(names or [], values or [], strict=True)))
            writable(out)
            executed = chapters.execute(source, given, progress=sys.stderr.isatty())
            with atomic_write(out / f"{source.stem}.ipynb") as part:
                part.write_text(chapters.nbformat.writes(executed), encoding="utf-8")
            typer.echo(f"{out / source.stem}.ipynb")
            if page:
                root = source.parents[1]
                typer.echo(str(chapters.write_page(executed, root, source.stem, out / source.stem)))
        except chapters.ChapterError as error:
            raise PlanError(f"{error}") from None


def matches(pattern: str, name: str) -> bool:
    try:
        return re.search(pattern, name) is not None
    except re.error as error:
        raise PlanError(f"{pattern!r} is no regular expression: {error}.") from None


def usable(device: str) -> str:
    """``device``, if there is one.

    Raises:
        PlanError: if there is none.
    """
    try:
        found = torch.device(device)
        there = found.type == "cpu" or (found.index or 0) < torch.get_device_module(found).device_count()
    except (AttributeError, RuntimeError):
        there = False
    if not there:
        raise PlanError(f"no device {device!r} is visible here: leave --device out, or say --device cpu.")
    return device


def existing(book: Path | None) -> Path | None:
    """A book that was named, if it is one."""
    if book is not None and not (book / "records").is_dir():
        raise RecordError(f"{book} is no book: it has no folder records.")
    return book


def evidence_or(out: Path | None) -> Path:
    """The book's evidence; where there is none, such as on a bare machine, the folder of the results."""
    try:
        return evidence_folder()
    except RecordError:
        if out is None:
            raise
        return out


if __name__ == "__main__":
    app(prog_name="kdlab")
