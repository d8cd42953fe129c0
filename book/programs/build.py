"""Execute the chapters and build the book: python book/programs/build.py [--profile cpu] [--jobs 2] [--only 03]

sources → executed notebooks (papermill, into _build/executed) → stage (_build/stage) → HTML (_build/html)

A chapter is executed again when its source, its parameters, a module of kdlab that it imports, the lock file or the
data that it read changed, and not otherwise. As many run side by side as there are cores, those that take longest
first. Only a notebook that ran to its end reaches the stage.
"""

import argparse
import ast
import functools
import hashlib
import heapq
import html
import json
import os
import platform
import re
import resource
import shutil
import sys
import time
import tomllib
import warnings
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path

import nbformat
import torch
import yaml
from scipy.stats import t as student_t

from kdlab.benchmarks import gpu
from kdlab.data import DataError, corpus_or_fallback, load_images
from kdlab.data import folder as data_folder
from kdlab.figures import Shown, explorer, mathematics
from kdlab.figures import table as table_of
from kdlab.figures.plotted import as_csv
from kdlab.files import atomic_write, sha256
from kdlab.study import prose, provenance, weight
from kdlab.study.answers import answers
from kdlab.study.chapters import (
    OBSERVATION,
    VERDICT,
    ChapterError,
    copy_mathjax,
    jupyter_book,
    read_chapter,
    without_reports,
    write_page,
)
from kdlab.study.chapters import execute as execute_chapter
from kdlab.study.display import hardware, source_note
from kdlab.study.downloads import record_links, with_downloads
from kdlab.study.findings import found as found_in_records
from kdlab.study.findings import scale
from kdlab.study.flat import ABOUT, rows
from kdlab.study.kernels import KernelServer, stop_kernels
from kdlab.study.parameters import KINDS, ParameterError, declared_in
from kdlab.study.plans import PLANS
from kdlab.study.records import headline, record_name
from kdlab.study.repository import Repository, install, repository, requirements, set_up
from kdlab.study.statistics import summary
from kdlab.study.verdicts import VERDICTS

ROOT = Path(__file__).resolve().parents[2]
EVIDENCE = ROOT / "book" / "evidence"
BUILD = ROOT / "_build"


class BuildError(RuntimeError):
    """What broke, and where, in a sentence."""


def say(text, started=None):
    print(f"{text}  ({time.time() - started:.0f} s)" if started else text, flush=True)


# ---------------------------------------------------------------- execution


def chapters() -> list[Path]:
    """The notebooks of the table of contents, in its order."""
    return [ROOT / f"{name}.py" for name in listed() if name.startswith("notebooks/")]


def cookbook() -> list[Path]:
    """The pages of the cookbook, in the order of the table of contents: Markdown whose blocks of Python are executed, as chapters are."""
    return [ROOT / f"{name}.md" for name in listed() if name.startswith("book/cookbook/")]


def listed() -> list[str]:
    """What the table of contents names, in its order."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    return [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]


def imports(path: Path) -> tuple[tuple[str, str], ...]:
    """(module, name) for every name of kdlab that a Python file, or a page, imports, wherever in it; ``*`` for a whole module."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        source = "\n".join(cell.source for cell in read_chapter(path).cells if cell.cell_type == "code")
    return _imports(path.relative_to(ROOT).with_suffix("").parts, source)


@functools.cache
def _imports(here: tuple[str, ...], source: str) -> tuple[tuple[str, str], ...]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(alias.name, "*") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level] if node.level else ()
            found += [(".".join([*base, *filter(None, [node.module])]), alias.name) for alias in node.names]
        elif here[0] == "notebooks" and isinstance(node, ast.Constant) and isinstance(node.value, str):
            found += [(name, "*") for name in re.findall(r"\b(?:from|import) (kdlab[\w.]*)", node.value)]
    return tuple((module, name) for module, name in found if module.split(".")[0] == "kdlab")


def module_file(name: str) -> Path | None:
    stem = ROOT.joinpath(*name.split("."))
    return next((f for f in (stem / "__init__.py", stem.with_suffix(".py")) if f.is_file()), None)


def depends_on(chapter: Path) -> list[Path]:
    """The files of kdlab that a chapter depends on: what it imports, what that imports, and the data beside them.

    A name that a package passes on stands for the module that it comes from. Data of a folder (figures' scripts,
    tokenisers) belong to the modules there that name them, or their folder.
    """
    found, followed, todo = set(), set(), [*imports(chapter)]
    while todo:
        module, name = todo.pop()
        if (module, name) in followed or not (file := module_file(module)):
            continue
        followed.add((module, name))
        parts = module.split(".")
        found |= {file, *(module_file(".".join(parts[:n])) for n in range(1, len(parts)))}
        if file.name != "__init__.py":
            todo += imports(file)
        elif module_file(f"{module}.{name}"):
            todo.append((f"{module}.{name}", "*"))
        else:  # only that of it which the name is imported by; all of it for what it defines itself
            passed_on = [(base, other) for base, other in imports(file) if other == name]
            todo += passed_on or imports(file)
    for file in (f for f in (ROOT / "kdlab").rglob("*") if f.is_file() and f.suffix not in (".py", ".pyc")):
        package = next(folder for folder in file.parents if (folder / "__init__.py").exists() or folder == ROOT)
        names = {file.name, *file.relative_to(package).parts[:-1]}
        near = (module for module in list(found) if module.parent == package)
        if any(names & set(re.findall(r"[\w.-]+", module.read_text(encoding="utf-8"))) for module in near):
            found.add(file)
    return sorted(found)


def code_key(chapter: Path, parameters: dict) -> str:
    """Changes with the chapter, its parameters, what it depends on of kdlab, the lock file and Python's version."""
    digest = hashlib.sha256(json.dumps([parameters, platform.python_version()]).encode())
    for path in [chapter, ROOT / "requirements.lock", *depends_on(chapter)]:
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


@functools.cache
def checksum(path: Path, changed: int) -> str:
    return sha256(path)


def fingerprint(paths) -> dict:
    """What each file or folder that a chapter looked for is now; a move of the data folder changes nothing."""
    prints = {}
    for path in map(Path, sorted(set(map(str, paths)))):
        state = checksum(path, path.stat().st_mtime_ns) if path.is_file() else "folder" if path.is_dir() else "missing"
        for name, base in (("data", data_folder()), ("book", EVIDENCE)):
            if path.is_relative_to(base.absolute()):
                prints[f"{name}:{path.relative_to(base.absolute()).as_posix()}"] = state
                break
    return prints


def resolve(names) -> list[Path]:
    bases = {"data": data_folder(), "book": EVIDENCE}
    return [(bases[kind] / rest).absolute() for kind, rest in (name.split(":", 1) for name in names)]


def commit(origin: dict) -> str:
    return (origin["commit"] or "no commit")[:10] + (" with changes" if origin["dirty"] else "")


def stamp(made: dict) -> str:
    """When, where, from what and how long a chapter was executed."""
    origin = made["provenance"]
    return (
        f'<p class="kd-badge">Executed {made["finished"][:10]} in {made["seconds"]:.0f} s · profile {made["profile"]} · '
        f"{html.escape(hardware(origin))} · commit <code>{commit(origin)}</code></p>"
    )


def executed_path(chapter: Path, profile: str) -> Path:
    return BUILD / "executed" / profile / f"{chapter.stem}.ipynb"


def read_executed(path: Path):
    """An executed notebook, read once; what changes it changes a copy."""
    return _read(path, path.stat().st_mtime_ns)


@functools.cache
def _read(path: Path, changed: int):
    return nbformat.read(path, 4)


def unchanged(chapter: Path, profile: str) -> bool:
    """Whether the chapter was executed, and nothing that it depends on has changed since."""
    done = executed_path(chapter, profile)
    if not done.exists():
        return False
    made = read_executed(done).metadata["kdlab"]
    same = made["key"] == code_key(chapter, {"profile": profile})
    return same and made["read"] == fingerprint(resolve(made["read"]))


#: Variables of every chapter's kernel.
ENVIRONMENT = {
    "KDLAB_BOOK": str(EVIDENCE), "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    # of transformers: its progress bars, what it says to itself, and a Trainer's default that is for GPUs
    "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore::FutureWarning,ignore:IProgress,ignore:'pin_memory' argument",
}  # fmt: skip


def execute(chapter: Path, profile: str, *, server: KernelServer | None = None, progress: bool = False) -> float:
    """Execute a chapter; what it took in seconds. Its last good notebook stays where it fails."""
    given = {"profile": profile} if chapter.suffix == ".py" else {}  # pages have no parameters
    key, trace = code_key(chapter, {"profile": profile}), BUILD / "running" / f"{chapter.stem}.trace"
    trace.parent.mkdir(parents=True, exist_ok=True)
    trace.unlink(missing_ok=True)
    origin, started = provenance(), time.time()
    try:
        executed = execute_chapter(
            chapter, given, environment=ENVIRONMENT | {"KDLAB_TRACE": str(trace)}, server=server, progress=progress
        )
    except (ChapterError, ParameterError) as error:
        raise BuildError(f"{chapter.relative_to(ROOT)}, {error}") from error
    read = trace.read_text(encoding="utf-8").splitlines() if trace.exists() else []
    executed.metadata["kdlab"] = {
        "key": key,
        "read": fingerprint(read),
        "seconds": round(time.time() - started, 1),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "profile": profile,
        "provenance": origin,
    }
    with atomic_write(executed_path(chapter, profile)) as part:
        nbformat.write(executed, part)
    return executed.metadata["kdlab"]["seconds"]


#: What chapters say that they need, and what that is in seconds; the first that fits.
NEEDS = {
    "a few seconds": 10, "half a minute": 30, "a minute and a half": 90, "a minute": 60, "two minutes": 120,
    "three minutes": 180, "four minutes": 240, "five minutes": 300,
}  # fmt: skip


def expected(chapter: Path, profile: str) -> float:
    """Seconds that a chapter will take: those of its last execution, else what it says itself."""
    if (done := executed_path(chapter, profile)).exists():
        return read_executed(done).metadata["kdlab"]["seconds"]
    said = re.search(r"^# \*Needs:.*", chapter.read_text(encoding="utf-8"), re.MULTILINE)
    return next(
        (float(NEEDS[words]) for words in NEEDS if said and words in said[0]), 60.0 if chapter.suffix == ".py" else 20.0
    )


def time_left(running: list[float], waiting: list[float], jobs: int) -> float:
    """Seconds until all is done: each that waits, in this order, goes where a place is free first.

    >>> time_left([60.0, 20.0], [50.0, 30.0], 2)
    90.0
    """
    places = [*running, *[0.0] * (jobs - len(running))]
    heapq.heapify(places)
    for seconds in waiting:
        heapq.heapreplace(places, places[0] + seconds)
    return max(places)


def execute_all(sources: list[Path], profile: str, jobs: int) -> list[Path]:
    """The executed notebooks, in the order of ``sources``; those that are not up to date are executed, ``jobs`` at a time.

    Raises:
        BuildError: for all chapters that failed together, when the others are done.
    """
    untold, lines = list(sources), {}

    def tell(chapter, text):  # in the order of the book
        lines[chapter] = f"[{sources.index(chapter) + 1}/{len(sources)}] {chapter.stem} {text}"
        while untold and untold[0] in lines:
            say(lines[untold.pop(0)])

    needed = {c: expected(c, profile) for c in sources if not unchanged(c, profile)}
    for chapter in (c for c in sources if c not in needed):
        tell(chapter, "unchanged")
    queue, took, failed = sorted(needed, key=needed.get, reverse=True), {}, {}
    begun = {}

    def work(chapter):
        begun[chapter] = time.time()
        return execute(chapter, profile, server=server, progress=jobs == 1 and sys.stderr.isatty())

    def left() -> str:
        pace = sum(took.values()) / sum(needed[c] for c in took)
        going = [max(pace * needed[c] - (time.time() - at), 1.0) for c, at in [*begun.items()] if c not in took]
        seconds = time_left(going, [pace * needed[c] for c in queue if c not in begun], jobs)
        return f"{len(took)} of {len(queue)} executed, about {max(1, round(seconds / 60))} min left"

    if queue:
        prepare_data()
        say(f"executing {len(queue)} of {len(sources)} chapters, {min(jobs, len(queue))} at a time …")
    # a server repays what it imports where many are to run
    server = KernelServer(ENVIRONMENT) if len(queue) > 4 * jobs else None
    with server or nullcontext(), ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(work, chapter): chapter for chapter in queue}
        try:
            for future in as_completed(futures):
                chapter = futures[future]
                took[chapter] = max(time.time() - begun[chapter], 1.0)
                if (error := future.exception()) is None:
                    tell(chapter, f"executed in {future.result():.0f} s")
                else:
                    failed[chapter] = error
                    tell(chapter, f"failed after {took[chapter]:.0f} s")
                    say(f"{error}")  # at once, and again at the end
                if len(took) < len(queue):
                    say(f"      {left()}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            stop_kernels()
            raise
    for error in failed.values():
        if not isinstance(error, BuildError):
            raise error
    if failed:
        raise BuildError("\n  ".join(str(failed[chapter]) for chapter in sources if chapter in failed))
    return [executed_path(chapter, profile) for chapter in sources]


def prepare_data() -> None:
    """Fetch the data once, before chapters look for them side by side; what cannot be had, none of them tries again."""
    images, books = load_images(), corpus_or_fallback("books")
    for found in (images, books):
        if found.fallback:
            say(f"fall-back data: {found.reason}")
    if images.fallback and books.fallback:
        os.environ["KDLAB_OFFLINE"] = "1"


# ---------------------------------------------------------------- generated pages


def verdicts(notebooks) -> dict:
    """Verdicts by claim, each with the chapter that gave it, from the outputs of executed cells."""
    given = {}
    for path in notebooks:
        notebook, drawn = read_executed(path), []
        for cell in notebook.cells:
            for output in cell.get("outputs", []):
                data = output.get("data", {})
                drawn = [*drawn, *re.findall(r'<figure[^>]* id="(fig-[^"]+)"', "".join(data.get("text/html", "")))]
                if said := data.get(VERDICT):
                    if said["claim"] in given:
                        raise BuildError(f"claim {said['claim']} gets two verdicts; the second in {path.stem}.")
                    above = {"figure": drawn[-1]} if drawn else {}
                    given[said["claim"]] = {**said, **above, "chapter": path.stem, **notebook.metadata["kdlab"]}
    return given


def claims() -> dict:
    """What the articles claim, and what the ledger expects: book/evidence/claims.toml.

    Raises:
        BuildError: for what is wrong with it, whatever chapters say.
    """
    stated = tomllib.loads((EVIDENCE / "claims.toml").read_text(encoding="utf-8"))
    if wrong := wrong_claims(stated):
        raise BuildError(f"book/evidence/claims.toml: {' '.join(wrong)}")
    return stated


def wrong_claims(stated: dict) -> list[str]:
    """What is wrong with a ledger, a sentence each: names, ids, outcomes, errata. Needs neither data nor chapters."""
    wrong, sources, seen = [], [source["id"] for source in stated["source"]], set()
    for source in stated["source"]:
        if odd := source.keys() ^ {"id", "title", "note"}:
            wrong.append(f"The source {source['id']} has no, or unknown, {', '.join(sorted(odd))}.")
    for claim in stated["claim"]:
        name = claim.get("id", "without an id")
        if odd := claim.keys() - {"id", "text", "verdict", "erratum_title", "erratum", "records"}:
            wrong.append(f"Claim {name} has an unknown {', '.join(sorted(odd))}.")
        if not (match := re.fullmatch(r"([A-Z])[1-9]\d*", name)) or match[1] not in sources:
            wrong.append(f"Claim {name} is of no source: an id is one of {', '.join(sources)} and a number.")
        if name in seen:
            wrong.append(f"There are two claims {name}.")
        seen.add(name)
        if not claim.get("text", "").strip():
            wrong.append(f"Claim {name} has no text.")
        if claim.get("verdict", "proved") not in VERDICTS:
            wrong.append(f"Claim {name}: a verdict is one of {', '.join(VERDICTS)}, not {claim['verdict']!r}.")
        if claim.keys() & {"erratum", "erratum_title"} and not (
            claim.get("erratum", "").strip() and claim.get("erratum_title", "").strip()
        ):
            wrong.append(f"Claim {name}: an erratum has a title and a text.")
        if claim.get("verdict") == "corrected" and "erratum" not in claim:
            wrong.append(f"Claim {name} is corrected, and its erratum is missing.")
        plan = claim.get("records", "records of small").removeprefix("records of ")
        if plan not in PLANS:
            wrong.append(f"Claim {name}: there is no plan {plan!r}.")
    return wrong


def cell_address(said) -> str:
    """Where a verdict was given, seen from a page of book/."""
    return f"../notebooks/{said['chapter']}.html#claim-{said['claim'].lower()}"


def sentences(text: str) -> list[str]:
    """A text by its sentences; a formula is not cut.

    >>> sentences("At $q. P$ it is. So, “here”. In 2.5 steps.")
    ['At $q. P$ it is.', 'So, “here”.', 'In 2.5 steps.']
    """
    found = []
    for part in re.split(r"(?<=[.!?”])\s+(?=[A-Z“$])", text.strip()):
        if found and (found[-1].count("$") % 2 or not re.search(r"[.!?]”?$", found[-1])):
            found[-1] += f" {part}"
        else:
            found.append(part)
    return found


def ledger(given) -> str:
    """The claims ledger in MyST, from book/evidence/claims.toml and the verdicts of executed cells."""
    stated = claims()
    known = {claim["id"] for claim in stated["claim"]}
    if unknown := set(given) - known:
        raise BuildError(
            f"verdicts on claims that book/evidence/claims.toml does not know: {', '.join(sorted(unknown))}."
        )
    script = (Path(__file__).parent / "ledger.js").read_text(encoding="utf-8")
    lines = [
        stated["introduction"].strip(),
        "",
        '<div id="kd-filter" class="kd-filter" role="search" hidden></div>',
        "",
    ]
    for source in stated["source"]:
        lines += [f"## {source['title']}", "", source["note"].strip(), ""]
        for claim in (c for c in stated["claim"] if c["id"].startswith(source["id"])):
            lines += [*ledger_entry(claim, given.get(claim["id"])), ""]
    return "\n".join([*lines, f"<script>\n{script.strip()}\n</script>", ""])


def ledger_entry(claim: dict, said: dict | None) -> list[str]:
    """A claim with its verdict: what became of it in a sentence, then the numbers, then where they are from."""
    expected = claim.get("verdict")
    if said is None and expected is not None:
        raise BuildError(f"claim {claim['id']} should be {expected}, but no executed cell gives its verdict.")
    if said and said["outcome"] not in (expected, "not measured"):
        raise BuildError(f"claim {claim['id']}: a cell says {said['outcome']}, book/evidence/claims.toml {expected}.")
    outcome = said["outcome"] if said else "open"
    shown = f"{outcome}: {said['condition']}" if said and said.get("condition") else outcome
    lines = [
        f'<div class="kd-claim" id="{claim["id"].lower()}" data-outcome="{shown}">', "",
        f'<p><span class="kd-id">{claim["id"]}</span> {mathematics(claim["text"].strip())}</p>',
    ]  # fmt: skip
    mark = f'<span class="kd-mark kd-{outcome.replace(" ", "-")}">{shown}</span>'
    if said is None:
        waits = f'; it waits for <a href="status.html#records">{claim["records"]}</a>' if "records" in claim else ""
        return [*lines, f'<p class="kd-finding">{mark} No chapter has tested it yet{waits}.</p>', "", "</div>"]
    first, *rest = sentences(said["finding"])
    lines.append(f'<p class="kd-finding">{mark} {mathematics(first)}</p>')
    if rest:
        lines.append(f'<p class="kd-finding kd-numbers">{mathematics(" ".join(rest))}</p>')
    page, chapter = f"../notebooks/{said['chapter']}.html", int(said["chapter"][:2])
    links = [f'<a href="{cell_address(said)}">chapter {chapter}, the verdict</a>']
    if "figure" in said:
        links.append(f'<a href="{page}#{said["figure"]}">the figure before it</a>')
    if "records" in claim:
        links.append(f'<a href="status.html#records">{claim["records"]}</a>')
    return [*lines, f'<p class="kd-finding kd-badge">{" · ".join([*links, said["finished"][:10]])}</p>', "", "</div>"]


#: Chapters that an hour is enough for, in this order.
ROUTE = (1, 3, 6, 15, 17, 19)


def reading_minutes(notebook) -> float:
    """At 200 words a minute of prose, without exercises."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return len(re.sub(r"```\{(exercise|solution).*?```", " ", text, flags=re.DOTALL).split()) / 200


def title_of(notebook) -> str:
    return notebook.cells[0].source.splitlines()[0].lstrip("# ")


def route(notebooks) -> str:
    """The way through the book that takes about an hour, in Markdown, with the times of this build."""
    by_number = {int(path.stem[:2]): path for path in notebooks}
    steps, minutes, seconds = [], 0.0, 0.0
    for path in (by_number[number] for number in ROUTE if number in by_number):
        notebook = read_executed(path)
        takes = reading_minutes(notebook)
        minutes, seconds = minutes + takes, seconds + notebook.metadata["kdlab"]["seconds"]
        steps.append(
            f"- {{doc}}`{int(path.stem[:2])}. {title_of(notebook)} <../notebooks/{path.stem}>` ({takes:.0f} min)"
        )
    return (
        "\n".join(steps) + f"\n\nIn all {minutes:.0f} minutes to read; their cells ran in {seconds / 60:.0f} minutes."
    )


def findings(given, notebooks) -> str:
    """What was found, in Markdown: what a cell said of T², and what the records say, each with its chapter."""
    by_number = {int(path.stem[:2]): path for path in notebooks}
    said = {}
    if "B9" in given:
        claim = next(claim["text"] for claim in claims()["claim"] if claim["id"] == "B9")
        said[int(given["B9"]["chapter"][:2])] = f"“{claim}” {' '.join(sentences(given['B9']['finding'])[:2])}"
    said |= found_in_records(EVIDENCE)
    lines = [
        f"- {text.rstrip('.')} ({{doc}}`chapter {number} <../notebooks/{by_number[number].stem}>`)."
        for number, text in sorted(said.items()) if number in by_number
    ]  # fmt: skip
    return "\n".join(lines) or "This build has no records."


@functools.cache
def records(book: Path) -> list[dict]:
    """All records of the book, as they are written."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted((book / "records").glob("*.json"))]


def which() -> str:
    """The page that answers a practitioner's questions from the records, in MyST."""
    chapters_by_number = {int(path.stem[:2]): path.stem for path in chapters()}
    lines = [
        "# Which objective, which temperature, which text?", "",
        "Five questions, each answered by what was recorded. The build writes every sentence from the records, and its words follow their numbers: with other records "
        "it says something else, and where the intervals decide nothing it says so.", "",
        f'<aside class="kd-banner"><strong>Young evidence.</strong> {scale(records(EVIDENCE))}. Each answer says how young its own is.</aside>', "",
    ]  # fmt: skip
    for answer, number in answers(EVIDENCE):
        lines += [f"## {answer.question}", "", f'<p class="kd-lead">{answer.short}</p>', ""]
        lines += [f"- {sentence}" for sentence in answer.evidence]
        if answer.rows:
            lines += ["", shown(answer.header, answer.rows, answer.caption)]
        if answer.records:
            lines += [
                "",
                source_note([*answer.records]).markup + record_links([record_name(r) for r in answer.records], "../"),
            ]
        lines += ["", f"More of it: {{doc}}`chapter {number} <../notebooks/{chapters_by_number[number]}>`.", ""]
    return "\n".join([*lines, "All runs, by plan and measure: the {doc}`explorer <explorer>`.", ""])


def shown(header, rows, caption: str) -> str:
    """A table as raw HTML on one line."""
    return table_of(header, rows, caption=caption).markup.replace("\n", " ")


#: Of each plan, the measure by which the explorer and its tables begin.
FIRST = ("bits_per_byte", "accuracy")


def explored(root: Path) -> str:
    """The page of all records, in MyST; their table is written into the folder of all pages, as CSV and as JSON."""
    every = rows(records(EVIDENCE))
    (root / "data").mkdir(parents=True, exist_ok=True)
    (root / "data" / "records.csv").write_text(as_csv(every), encoding="utf-8")
    (root / "data" / "records.json").write_text(json.dumps(every, indent=0) + "\n", encoding="utf-8")
    lines = [
        "# Every run", "",
        "All records on one page. Choose a plan and a measure: every dot is a run, its seed one of several, and leads to its record. *Minus* shows differences, paired by "
        "seed, from one arm. An interval is of this arm or difference alone; where an order of many arms is stated, chapters correct for their number.", "",
    ]  # fmt: skip
    if not every:
        return "\n".join([*lines, "This build has no records.", ""])
    by_plan, measures = {}, {}
    for run in every:
        by_plan.setdefault(run["plan"], []).append(run)
    for plan, runs in by_plan.items():
        named = dict.fromkeys(name for run in runs for name in run if name not in ABOUT)
        policy = ["policy reward"] if "policy reward" in named else []
        measures[plan] = list(dict.fromkeys([*policy, *(name for name in FIRST if name in named), *named]))
    quantiles = [student_t.ppf(0.975, df) for df in range(1, 31)]
    figure = explorer(
        every,
        measures,
        quantiles,
        label="explorer",
        caption="Sorted by the mean. Line: 95 % interval.",
        records="../records/",
    )
    lines += [
        raw(figure.markup),
        "",
        'All of it as one file: <a href="../data/records.csv" download>CSV</a>, <a href="../data/records.json" download>JSON</a>.',
        "",
        "## The same as tables",
        "",
    ]
    for plan, runs in by_plan.items():
        measure, arms = measures[plan][0], {}
        for run in runs:
            arms.setdefault((run["arm"], run["length"]), []).append(run.get(measure))
        cells = [
            (
                arm,
                length,
                f"{summary(there):.4g}"
                if (there := [v for v in values if v is not None])
                else f"diverged, n = {len(values)}",
            )
            for (arm, length), values in arms.items()
        ]
        body = shown(
            ("arm", "trained for", "mean [95 % interval]"), cells, f"Plan {plan}: {measure.replace('_', ' ')}."
        )
        lines += [f'<details class="kd-plan"><summary>{plan}, {len(runs)} runs</summary>{body}</details>', ""]
    return "\n".join(lines)


def raw(markup: str) -> str:
    """HTML as Markdown takes it, without empty lines; its script keeps its lines."""
    before, tag, script = markup.partition("<script>")
    return before.replace("\n", " ") + tag + "\n".join(line for line in script.splitlines() if line.strip())


def errata(given) -> str:
    """What the articles got wrong, from the claims that have an erratum."""
    stated = claims()
    lines = [stated["errata"].strip(), ""]
    for claim in (c for c in stated["claim"] if "erratum" in c):
        lines += [f"## {claim['id']}: {claim['erratum_title']}", "", claim["erratum"].strip(), ""]
        if said := given.get(claim["id"]):
            lines += [
                f'<p class="kd-badge">Shown in <a href="{cell_address(said)}">chapter {int(said["chapter"][:2])}</a>.</p>',
                "",
            ]
    return "\n".join(lines)


def unseen(notebooks) -> list[tuple[Path, str]]:
    """What chapters say of records or of a training, and these did not show: (chapter, statement)."""
    found = []
    for path in notebooks:
        for cell in read_executed(path).cells:
            for said in (o["data"][OBSERVATION] for o in cell.get("outputs", []) if OBSERVATION in o.get("data", {})):
                if not said["holds"]:
                    found.append((path, said["statement"]))
    return found


def status(notebooks, pages=()) -> str:
    """What ran when, how long, on what, from which commit: chapters, and pages of the cookbook; and the records that the book holds."""
    executed_rows = []
    executed = [(path, "../notebooks", f"{int(path.stem[:2])}. ") for path in notebooks]
    for path, folder, number in [*executed, *((path, "cookbook", "Cookbook: ") for path in pages)]:
        notebook = read_executed(path)
        made, title = notebook.metadata["kdlab"], f"{number}{title_of(notebook)}"
        origin = made["provenance"]
        executed_rows.append(
            (
                Shown(f'<a href="{folder}/{path.stem}.html">{html.escape(title)}</a>'),
                f"{made['seconds']:.0f} s",
                Shown(f"<time>{made['finished'][:10]}</time> {made['finished'][11:16]}"),
                Shown(f"<code>{commit(origin)}</code>"),
            )
        )
    by_plan = {}
    for record in records(EVIDENCE):
        origin, spec = record["provenance"], record["spec"]
        by_plan.setdefault(spec["study"], []).append(
            (
                Shown(
                    f'<a href="../records/{record_name(record)}.json">{spec["arm"]}, seed {record["recipe"]["seed"]}</a>'
                ),
                headline(record),
                f"{record['seconds'] / 60:.0f} min",
                Shown(f"<time>{origin['started'][:10]}</time>"),
                hardware(origin),
                Shown(f"<code>{(origin['commit'] or '')[:10]}</code>"),
            )
        )
    asked = [
        (what, goal, "not yet" if seen is None else seen, card)
        for what, goal, seen, card in gpu.shown(EVIDENCE / "gpu")
    ]
    header = ["run", "on the test split", "training", "date", "device", "commit"]
    folded = [
        f'<details class="kd-plan"><summary><code>{plan}</code>: {len(runs)} runs</summary>{shown(header, runs, f"Plan {plan}.")}</details>'
        for plan, runs in by_plan.items()
    ]
    differs = "\n".join(  # in Markdown, so that Sphinx sees what is mathematics in it
        f'- <a href="../notebooks/{path.stem}.html">chapter {int(path.stem[:2])}</a>: {statement}'
        for path, statement in unseen(notebooks)
    )
    origin = made["provenance"]
    text = (ROOT / "book" / "status.md").read_text(encoding="utf-8")
    versions = ", ".join(f"{name} {origin[name]}" for name in ("kdlab", "python", "torch", "numpy"))
    return (
        text.replace(
            "%CHAPTERS%", shown(["chapter", "time", "finished (UTC)", "commit"], executed_rows, "What was executed.")
        )
        .replace("%RECORDS%", "\n".join(folded))
        .replace("%TOTAL%", f"{scale(records(EVIDENCE))}." if by_plan else "None.")
        .replace("%GPU%", shown(["what", "asked", "seen", "card"], asked, "On a GPU."))
        .replace("%UNSEEN%", differs or "None.")
        .replace("%VERSIONS%", f"profile {made['profile']}; {versions}; {hardware(origin)}; {origin['system']}")
    )


def parameters() -> str:
    """The parameters of every chapter, with type, default and what each is."""
    parts = [(ROOT / "book" / "parameters.md").read_text(encoding="utf-8").rstrip()]
    for path in chapters():
        title = re.search(r"^# # (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)[1]
        rows = [f"| `{p.name}` | {KINDS[p.kind]} | `{p.default!r}` | {p.comment} |" for p in declared_in(path).values()]
        parts += [
            f"## [{int(path.stem[:2])}. {title}](../notebooks/{path.stem})",
            "\n".join(["| name | value | default | what it is |", "|---|---|---|---|", *rows]),
        ]
    return "\n\n".join(parts) + "\n"


# ---------------------------------------------------------------- HTML


def as_it_took(text: str, seconds: float) -> str:
    """What a chapter needs, with the time of this build in place of the time that its author expects.

    >>> as_it_took("*Needs: one CPU core and under a minute.*", 130)
    '*Needs: one CPU core and 2 minutes (as in this build).*'
    """
    took = f"{seconds:.0f} seconds" if seconds < 90 else f"{seconds / 60:.0f} minutes"
    return re.sub(
        rf"^(\*Needs: .*?)(?:about |under )?(?:{'|'.join(NEEDS)})", rf"\g<1>{took} (as in this build)", text, flags=re.M
    )


def accessible(page: str) -> str:
    """A page of the theme as screen readers want it: the sidebar a landmark, what unfolds named, the bibliography a list of its items,
    heads of columns that are formulae alone in words, formulae that scroll within reach of the keyboard.

    >>> accessible('<div class="citation" role="doc-biblioentry">')
    '<div class="citation" role="listitem">'
    >>> accessible('<div class="math notranslate nohighlight">')
    '<div class="math notranslate nohighlight" tabindex="0">'
    >>> accessible('<th scope="col" aria-label="N">$N$</th>')
    '<th scope="col"><span class="visually-hidden">N</span><span aria-hidden="true">$N$</span></th>'
    """
    for theme, ours in {
        '<div id="pst-primary-sidebar" ': '<div id="pst-primary-sidebar" role="region" aria-label="Book" ',
        '<summary><span class="toctree-toggle"': '<summary aria-label="Its pages"><span class="toctree-toggle"',
        'role="doc-biblioentry"': 'role="listitem"',
    }.items():
        page = page.replace(theme, ours)
    page = re.sub(r'(<div class="[^"]*\bmath\b[^"]*")(?! tabindex)', r'\1 tabindex="0"', page)
    said = r'<th\1 scope="col"><span class="visually-hidden">\2</span><span aria-hidden="true">\3</span></th>'
    return re.sub(r'<th( class="kd-words[^"]*")? scope="col" aria-label="([^"]*)">(.*?)</th>', said, page)


def unbroken(page: str) -> str:
    """A page on which a formula stays with the brackets and stops beside it, and a date in one line; and which says what stands for a
    formula where no script runs.

    >>> unbroken('<p>(<span class="math">\\\\(T\\\\)</span>), so</p>')
    '<p><span class="kd-whole">(<span class="math">\\\\(T\\\\)</span>),</span> so</p>'
    >>> unbroken('<p class="kd-badge">commit · 2026-11-30</p>')
    '<p class="kd-badge">commit · <time>2026-11-30</time></p>'
    """

    def whole(found: re.Match) -> str:
        return f'<span class="kd-whole">{found[0]}</span>' if found[1] or found[2] else found[0]

    page = re.sub(r'([(\[“]*)<span class="math[^"]*">[^<]*</span>([)\],.;:!?%”’]*)', whole, page)
    page = re.sub(
        r'<p class="[^"]*kd-badge[^"]*">.*?</p>',
        lambda badge: re.sub(r"\b\d{4}-\d\d-\d\d\b", r"<time>\g<0></time>", badge[0]),
        page,
        flags=re.DOTALL,
    )
    if "/mathjax/" in page:
        said = (
            '<noscript><p class="kd-badge">Without JavaScript, formulae are shown as their TeX source.</p></noscript>'
        )
        page = page.replace('<article class="bd-article">', f'<article class="bd-article">{said}', 1)
    return page


def for_readers(notebook, where: Repository | None):
    """An executed notebook as it is shown and downloaded: stamped, with its parameters free, and able to fetch kdlab if it is published."""
    notebook = nbformat.from_dict(notebook)
    notebook.cells = [c for c in notebook.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    notebook.cells[0].source = as_it_took(notebook.cells[0].source, notebook.metadata["kdlab"]["seconds"])
    head = [nbformat.v4.new_markdown_cell(stamp(notebook.metadata["kdlab"]), id="stamp")]
    if fetches := set_up(where, requirements(ROOT)):
        head.append(nbformat.v4.new_code_cell(fetches, id="setup", metadata={"tags": ["remove-cell"]}))
    notebook.cells[1:1] = head
    return notebook


#: What readers search for, and the chapter that is about it; a chapter leads to its glossary, and not the other way round.
SUBJECTS = {
    1: ("temperature", "dark knowledge", "softmax"), 3: ("T squared", "temperature"), 4: ("batchmean", "reduction"), 6: ("knowledge distillation",),
    7: ("divergence", "forward KL", "reverse KL", "total variation"), 8: ("hidden states", "attention transfer", "FitNet"), 9: ("contrast", "CRD", "InfoNCE"),
    11: ("conventions", "other libraries"), 12: ("seeds", "methods compared", "DKD"), 13: ("temperature", "weight"), 14: ("calibration", "label smoothing", "dark knowledge"),
    15: ("choosing an objective", "calibration"), 16: ("vocabulary", "top-k"), 17: ("on-policy", "on-policy distillation", "own text", "language model", "bits per byte"),
    18: ("memory", "cache"), 19: ("speculative decoding", "draft", "acceptance"), 20: ("multi-token prediction",), 21: ("leash", "PPO", "DPO", "reinforcement learning", "reward"),
}  # fmt: skip


def found_by(notebook, number: int):
    """The notebook of a chapter with its subjects in the index, which the search reads; below the title, where no reader sees them."""
    notebook = nbformat.from_dict(notebook)
    title, _, text = notebook.cells[0].source.partition("\n")
    entries = "".join(f"```{{index}} ! {subject}\n```\n" for subject in SUBJECTS.get(number, ()))
    notebook.cells[0].source = f"{title}\n\n{entries}{text}"
    return notebook


def settings(where: Repository | None) -> dict:
    """_config.yml, with the buttons that lead to where the book is published, and the order of what the search finds."""
    stated = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    stated["sphinx"]["config"]["html_search_scorer"] = "scorer.js"
    if where is not None:
        stated["sphinx"]["config"]["html_theme_options"] |= where.buttons()
    return stated


def using(where: Repository | None) -> dict[str, str]:
    """What the page on use says of where the book is published."""
    launch = "The rocket at the top of a chapter opens the executed notebook on Binder" if where else ""
    if where and where.on_github:
        launch += " or Colab"
    there = "; a first cell fetches kdlab there. The" if where else "The"
    older = f" Each release keeps its pages: they are at `{where.site}/` and its tag." if where and where.site else ""
    return {
        "%LAUNCH%": f"{launch}{there} download button gives the executed notebook. Below each figure "
        f"are its numbers as CSV, and each *Recorded* leads to the records, JSON, that its numbers are from.{older}",
        "%CLONE%": f"git clone {where.url} && cd {where.name}\n" if where else "",
        "%INSTALL%": install(where),
        "%INSTALL STUDY%": install(where, "study"),
    }


def launchable(stage: Path, where: Repository) -> None:
    """What the branch holds that launch buttons open, in _build/notebooks: the notebooks, and Binder's environment."""
    target = BUILD / "notebooks"
    shutil.rmtree(target, ignore_errors=True)
    for folder in ("notebooks", "book/cookbook"):
        shutil.copytree(stage / "_root" / "_sources" / folder, target / folder)
    (target / "runtime.txt").write_text("python-3.12\n")
    needs = ["--extra-index-url https://download.pytorch.org/whl/cpu", *requirements(ROOT)]
    (target / "requirements.txt").write_text("\n".join(needs) + "\n")
    (target / "README.md").write_text(f"The executed notebooks of {where.url} at {where.commit}.\n", encoding="utf-8")


def stage(notebooks, pages, where: Repository | None) -> Path:
    """Lay out everything that Sphinx reads; what has not changed keeps its time stamp."""
    new = BUILD / "stage.new"
    shutil.rmtree(new, ignore_errors=True)
    (new / "notebooks").mkdir(parents=True)
    shutil.copyfile(ROOT / "_toc.yml", new / "_toc.yml")
    (new / "_config.yml").write_text(yaml.safe_dump(settings(where), allow_unicode=True), encoding="utf-8")
    skip = shutil.ignore_patterns("*.py", "*.js", "*.toml", "__pycache__", "evidence", "programs")
    shutil.copytree(ROOT / "book", new / "book", ignore=skip)
    root = new / "_root"  # is laid over the pages
    saved = root / "_sources" / "notebooks"  # without links that lead nowhere from another machine
    saved.mkdir(parents=True)
    (root / "_sources" / "book" / "cookbook").mkdir(parents=True)
    shutil.copytree(EVIDENCE / "records", root / "records")
    for path in notebooks:
        # Ledger and status page read the reports from the executed notebook.
        notebook = for_readers(read_executed(path), where)
        linked = with_downloads(notebook, path.stem, EVIDENCE / "records", root, up="../")
        nbformat.write(found_by(without_reports(linked), int(path.stem[:2])), new / "notebooks" / path.name)
        nbformat.write(without_reports(notebook), saved / path.name)
    for path in pages:
        notebook = for_readers(read_executed(path), where)
        (new / "book" / "cookbook" / f"{path.stem}.md").unlink()
        for folder in (new, root / "_sources"):
            nbformat.write(notebook, folder / "book" / "cookbook" / path.name)
    given = verdicts(notebooks)
    written = reference((ROOT / "book" / "api.md").read_text(encoding="utf-8"))
    written |= {"which": which(), "explorer": explored(root), "status": status(notebooks, pages)}
    written |= {"claims": ledger(given), "errata": errata(given), "parameters": parameters()}
    for name, page in written.items():
        (new / "book" / f"{name}.md").write_text(page, encoding="utf-8")
    landing = new / "book" / "index.md"
    dial = cell_output(notebooks, "landing-dial")
    tested = sum(said["outcome"] != "not measured" for said in given.values())
    text = landing.read_text(encoding="utf-8").replace("%DIAL%", dial)
    text = text.replace("%TESTED%", str(tested)).replace("%CLAIMS%", str(len(claims()["claim"])))
    text = text.replace("%ROUTE%", route(notebooks)).replace("%FINDINGS%", findings(given, notebooks))
    text = text.replace("%YOUNG%", scale(records(EVIDENCE)))
    landing.write_text(text, encoding="utf-8")
    page = new / "book" / "using.md"
    text = page.read_text(encoding="utf-8")
    for name, said in using(where).items():
        text = text.replace(name, said)
    page.write_text(text, encoding="utf-8")
    copy_mathjax(root / "mathjax")
    shutil.copyfile(ROOT / "book" / "programs" / "scorer.js", new / "scorer.js")
    shutil.copytree(ROOT / "book" / "_static", new / "_static", dirs_exist_ok=True)

    old = BUILD / "stage"
    for path in (p for p in new.rglob("*") if p.is_file()):
        before = old / path.relative_to(new)
        if before.is_file() and before.read_bytes() == path.read_bytes():
            os.utime(path, (before.stat().st_atime, before.stat().st_mtime))
    shutil.rmtree(old, ignore_errors=True)
    new.rename(old)
    return old


#: The pages of the reference besides its first, and the rooms whose sections they take.
ROOMS = {
    "api_objectives": ("Objectives",), "api_training": ("Models", "Data", "Training"), "api_language": ("Language", "Models of transformers"),
    "api_study": ("Study",), "api_rest": ("Theory", "Benchmarks", "Figures"),
}  # fmt: skip


def reference(text: str) -> dict[str, str]:
    """The pages of the reference, by name: book/api.md with the sections of each room on a page of its own.

    Raises:
        BuildError: for a section made from docstrings that has no page.
    """
    first, *sections = re.split(r"(?m)^(?=## )", text)
    pages = {"api": first, **dict.fromkeys(ROOMS, "")}
    for section in sections:
        title = section.splitlines()[0].removeprefix("## ")
        room = next((name for name, rooms in ROOMS.items() if title.partition(":")[0] in rooms), "api")
        if room == "api" and "automodule::" in section:
            raise BuildError(
                f"book/api.md: the section {title} is on no page; ROOMS in book/programs/build.py has them."
            )
        pages[room] += section
    for name, rooms in ROOMS.items():
        pages[name] = f"# Reference: {', '.join(rooms).lower()}\n\n{pages[name]}"
    return pages


def cell_output(notebooks, tag: str) -> str:
    """The HTML of the cell with a tag, on one line as raw HTML in Markdown needs it."""
    for path in notebooks:
        for cell in read_executed(path).cells:
            if tag in cell.metadata.get("tags", []):
                for output in cell.outputs:
                    if "text/html" in output.get("data", {}):
                        markup = output["data"]["text/html"]
                        return raw(markup)
    raise BuildError(f"no executed cell is tagged {tag!r}.")


def stage_key(where: Path) -> str:
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for path in sorted((ROOT / "kdlab").rglob("*.py")):  # the API page is made from the docstrings
        digest.update(path.read_bytes())
    for path in sorted(p for p in where.rglob("*") if p.is_file()):
        digest.update(path.relative_to(where).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def sphinx(where: Path) -> bool:
    """Build the HTML with warnings as errors; False where nothing had changed."""
    stamp, key = BUILD / "html.key", stage_key(where)
    if stamp.exists() and stamp.read_text() == key and (BUILD / "html" / "index.html").exists():
        return False
    stamp.unlink(missing_ok=True)
    finished = jupyter_book(where, BUILD / "sphinx", "-W", "-n", "--keep-going")
    log = BUILD / "sphinx.log"
    log.write_text(finished.stdout, encoding="utf-8")
    if finished.returncode:
        # Else the next build would read fewer pages, and warn of less.
        shutil.rmtree(BUILD / "sphinx", ignore_errors=True)
        text = re.sub(r"\x1b\[[0-9;]*m", "", finished.stdout)
        told = [line for line in text.splitlines() if re.search(r"WARNING|ERROR|Error", line)][:8] or text.splitlines()[
            -8:
        ]
        raise BuildError(f"Sphinx refused the pages (all of it in {log}):\n  " + "\n  ".join(told))
    built = BUILD / "sphinx" / "_build" / "html"
    shutil.copytree(where / "_root" / "_sources", built / "_sources", dirs_exist_ok=True)  # over Sphinx's own copies
    weight.with_mathematics(built)
    weight.lighten(built)
    for path in built.rglob("*.html"):
        page = path.read_text(encoding="utf-8")
        if (mended := unbroken(accessible(page))) != page:
            path.write_text(mended, encoding="utf-8")
    check_pages(built)  # before it takes the place of the last good book
    shutil.rmtree(BUILD / "html", ignore_errors=True)
    shutil.copytree(built, BUILD / "html")
    stamp.write_text(key)
    return True


def check_pages(where: Path) -> None:
    """No page asks another host for anything or is too heavy, every image has its text, every inner link its target."""
    ids = {}
    pages = {p: p.read_text(encoding="utf-8") for p in where.rglob("*.html") if "_static" not in p.parts}
    for path, text in pages.items():
        ids[path.resolve()] = set(re.findall(r'\bid="([^"]+)"', text))
    wrong = []
    for path, text in pages.items():
        name = path.relative_to(where)
        body = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
        for asset in re.findall(r'<(?:script|img|iframe|source)[^>]+src="(https?:[^"]+)"', body):
            wrong.append(f"{name} loads {asset}")
        for asset in re.findall(r'<link[^>]+rel="(?:stylesheet|preload|icon)"[^>]+href="(https?:[^"]+)"', body):
            wrong.append(f"{name} loads {asset}")
        for image in re.findall(r"<img\b[^>]*>", body):
            if not re.search(r'alt="[^"/]', image) and 'class="logo' not in image:
                wrong.append(f"{name} has an image without text: {image[:80]}")
        for link in re.findall(r'<a\b[^>]*href="([^"]+)"', body):
            target, _, anchor = html.unescape(link).partition("#")
            if re.match(r"[a-z]+:", target) or target.endswith((".ipynb", ".md", ".rst", ".txt")):
                continue
            goal = (path.parent / target).resolve() if target else path.resolve()
            if goal.suffix in (".html", ".csv", ".json") and not goal.exists():
                wrong.append(f"{name} links to {link}, which does not exist")
            elif anchor and goal in ids and anchor not in ids[goal]:
                wrong.append(f"{name} links to {link}, whose anchor does not exist")
    for path in where.glob("_sources/notebooks/*.ipynb"):
        if "kd-download" in path.read_text(encoding="utf-8"):
            wrong.append(f"{path.relative_to(where)} is saved with links that lead nowhere from another machine")
    wrong += weight.too_heavy(where, list(pages))
    if wrong:
        raise BuildError("the pages are not whole:\n  " + "\n  ".join(sorted(set(wrong))[:12]))


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_seconds() -> float:
    """What all processes that this one waited for have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="cpu", choices=("cpu", "gpu"))
    parser.add_argument(
        "--only",
        help="only the chapters and pages of the cookbook whose name has this in it, each as a page of its own in _build/preview",
    )
    parser.add_argument(
        "--jobs", type=int, help="chapters at a time; else as many as there are cores, and one with a GPU"
    )
    given = parser.parse_args()
    jobs = given.jobs or (cores() if given.profile == "cpu" else 1)
    if jobs < 1:
        parser.error(f"--jobs must be at least 1, not {jobs}.")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    torch.set_num_threads(1)  # as in the kernels: the chapters' stamp says so
    started = time.time()
    chosen = [c for c in [*chapters(), *cookbook()] if given.only is None or given.only in c.stem]
    if not chosen:
        parser.error(f"no chapter has {given.only!r} in its name.")
    try:
        claims()  # at once, and not after the chapters
        executed = execute_all(chosen, given.profile, jobs)
        say(f"chapters: {processor_seconds():.0f} s of processor time;", started)
        where = repository(ROOT)
        if given.only:
            for path in executed:
                notebook = for_readers(read_executed(path), where)
                page = write_page(notebook, ROOT, path.stem, BUILD / "preview" / path.stem)
                say(f"Open {page}", started)
            return 0
        sources = [c for c in chosen if c.suffix == ".py"]
        notebooks, pages = executed[: len(sources)], executed[len(sources) :]
        for path, statement in unseen(notebooks):
            say(f"chapter {int(path.stem[:2])}, not shown: {statement}")
        say(prose.report(sources))
        say("pages …")
        staged = stage(notebooks, pages, where)
        changed = sphinx(staged)
        if where is not None:
            launchable(staged, where)
        say(f"pages {'built' if changed else 'unchanged'};", started)
    except (BuildError, ChapterError, DataError) as error:
        print(f"\nThe book was not built: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; what was executed so far is kept.", file=sys.stderr)
        return 130
    say(f"\nOpen {BUILD / 'html' / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
