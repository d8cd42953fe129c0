"""Execute the chapters and build the book: python book/build.py [--profile cpu]

sources → executed notebooks (papermill, into _build/executed) → stage (_build/stage) → HTML (_build/html)

A chapter is executed again when its source, its parameters, kdlab, the lock file or the data that it read changed,
and not otherwise. Only a notebook that ran to its end reaches the stage.
"""

import argparse
import hashlib
import html
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import tomllib
import warnings
from datetime import UTC, datetime
from pathlib import Path

import jupytext
import nbformat
import papermill
import yaml

from kdlab.data import folder as data_folder
from kdlab.figures import mathematics
from kdlab.files import atomic_write, sha256
from kdlab.study import prose, provenance
from kdlab.study.records import headline

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "_build"
VERDICT = "application/vnd.kdlab.verdict+json"
OBSERVATION = "application/vnd.kdlab.observation+json"
SETUP = """\
# Where kdlab is not installed (Colab, Binder), fetch it with the book's records. Elsewhere this does nothing.
import importlib.util

if importlib.util.find_spec("kdlab") is None:
    import os, subprocess, sys
    subprocess.run(["git", "clone", "--depth", "1", "https://github.com/kdlab/kdlab", "kdlab-source"], check=True)
    extras = "./kdlab-source[theory,study,data,figures]"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", extras], check=True)
    os.environ["KDLAB_BOOK"] = os.path.abspath("kdlab-source/book")
    importlib.invalidate_caches()
"""


class BuildError(RuntimeError):
    """What broke, and where, in a sentence."""


def say(text, started=None):
    print(f"{text}  ({time.time() - started:.0f} s)" if started else text, flush=True)


# ---------------------------------------------------------------- execution


def chapters() -> list[Path]:
    """The notebooks of the table of contents, in its order."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    files = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    return [ROOT / f"{name}.py" for name in files if name.startswith("notebooks/")]


def code_key(chapter: Path, parameters: dict) -> str:
    """Changes with the chapter's source, its parameters, kdlab's source, the lock file and Python's version."""
    digest = hashlib.sha256(json.dumps([parameters, platform.python_version()]).encode())
    sources = sorted(p for p in (ROOT / "kdlab").rglob("*") if p.suffix in (".py", ".js"))
    for path in [chapter, ROOT / "requirements.lock", *sources]:
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def fingerprint(paths) -> dict:
    """What each file or folder that a chapter looked for is now; a move of the data folder changes nothing."""
    prints = {}
    for path in map(Path, sorted(set(map(str, paths)))):
        state = sha256(path) if path.is_file() else "folder" if path.is_dir() else "missing"
        for name, base in (("data", data_folder()), ("book", ROOT / "book")):
            if path.is_relative_to(base.absolute()):
                prints[f"{name}:{path.relative_to(base.absolute()).as_posix()}"] = state
                break
    return prints


def resolve(names) -> list[Path]:
    bases = {"data": data_folder(), "book": ROOT / "book"}
    return [(bases[kind] / rest).absolute() for kind, rest in (name.split(":", 1) for name in names)]


def read_source(chapter: Path, parameters: dict):
    """The chapter as a notebook; refuses parameters that it does not have."""
    notebook = jupytext.read(chapter)
    for cell in notebook.cells:
        cell.metadata.pop("lines_to_next_cell", None)
    declared = "\n".join(c.source for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    for name in parameters:
        if not re.search(rf"^{name}\s*[:=]", declared, re.MULTILINE):
            raise BuildError(f"{chapter.name} has no parameter {name!r} in its cell tagged 'parameters'.")
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return notebook


def commit(origin: dict) -> str:
    return (origin["commit"] or "no commit")[:10] + (" with changes" if origin["dirty"] else "")


def stamp(made: dict) -> str:
    """When, where, from what and how long a chapter was executed."""
    origin = made["provenance"]
    return (
        f'<p class="kd-badge">Executed {made["finished"][:10]} in {made["seconds"]:.0f} s · profile {made["profile"]} · '
        f"{html.escape(origin['device'])} · commit <code>{commit(origin)}</code></p>"
    )


def failure(notebook) -> str | None:
    """Cell and error of a notebook that did not run to its end, else None."""
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type != "code" or "papermill-error-cell-tag" in cell.metadata.get("tags", []):
            continue
        for output in cell.outputs:
            if output.output_type == "error":
                first = cell.source.strip().splitlines()[0] if cell.source.strip() else ""
                message = " ".join(output.evalue.split())[:500]
                return f"cell {number} (“{first}”) raised {output.ename}: {message}"
    if notebook.metadata.get("papermill", {}).get("exception"):
        return "papermill stopped before its end"
    return None


def execute(chapter: Path, profile: str) -> tuple[Path, bool]:
    """The executed notebook of a chapter, and whether it had to be executed now."""
    parameters = {"profile": profile}
    done = BUILD / "executed" / profile / f"{chapter.stem}.ipynb"
    key = code_key(chapter, parameters)
    if done.exists():
        made = nbformat.read(done, 4).metadata["kdlab"]
        if made["key"] == key and made["read"] == fingerprint(resolve(made["read"])):
            return done, False
    notebook = read_source(chapter, parameters)
    work = BUILD / "running"
    work.mkdir(parents=True, exist_ok=True)
    source, result, trace = (work / f"{chapter.stem}{end}" for end in (".source.ipynb", ".ipynb", ".trace"))
    nbformat.write(notebook, source)
    trace.unlink(missing_ok=True)
    os.environ.update(
        KDLAB_TRACE=str(trace), KDLAB_BOOK=str(ROOT / "book"), PYTHONWARNINGS="ignore::FutureWarning"
    )
    origin, started = provenance(), time.time()
    try:
        papermill.execute_notebook(
            source, result, parameters=parameters, kernel_name="python3", cwd=str(ROOT / "notebooks"),
            extra_arguments=["--IPKernelApp.log_level=40"],
            progress_bar={"desc": "      cells", "leave": False} if sys.stderr.isatty() else False,
        )  # fmt: skip
    except papermill.PapermillExecutionError:
        pass  # told below, from the notebook itself
    except Exception as error:  # a kernel that died, say
        raise BuildError(
            f"{chapter.relative_to(ROOT)}: {type(error).__name__}: {str(error)[:300]}"
        ) from error
    finally:
        os.environ.pop("KDLAB_TRACE")
    executed = nbformat.read(result, 4)
    if broken := failure(executed):
        raise BuildError(f"{chapter.relative_to(ROOT)}, {broken}")
    read = trace.read_text(encoding="utf-8").splitlines() if trace.exists() else []
    executed.metadata["kdlab"] = {
        "key": key,
        "read": fingerprint(read),
        "seconds": round(time.time() - started, 1),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "profile": profile,
        "provenance": origin,
    }
    for cell in executed.cells:
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.metadata["tags"].append("hide-input")
        cell.metadata.pop("papermill", None)
    executed.cells[1:1] = [
        nbformat.v4.new_markdown_cell(stamp(executed.metadata["kdlab"])),
        nbformat.v4.new_code_cell(SETUP, metadata={"tags": ["remove-cell"]}),
    ]
    with atomic_write(done) as part:
        nbformat.write(executed, part)
    return done, True


# ---------------------------------------------------------------- generated pages


def verdicts(notebooks) -> dict:
    """Verdicts by claim, each with the chapter that gave it, from the outputs of executed cells."""
    given = {}
    for path in notebooks:
        notebook = nbformat.read(path, 4)
        for cell in notebook.cells:
            for output in cell.get("outputs", []):
                if said := output.get("data", {}).get(VERDICT):
                    if said["claim"] in given:
                        raise BuildError(
                            f"claim {said['claim']} gets two verdicts; the second in {path.stem}."
                        )
                    given[said["claim"]] = {**said, "chapter": path.stem, **notebook.metadata["kdlab"]}
    return given


def claims() -> dict:
    """What the articles claim, and what the ledger expects: book/claims.toml."""
    return tomllib.loads((ROOT / "book" / "claims.toml").read_text(encoding="utf-8"))


def cell_address(said) -> str:
    """Where a verdict was given, seen from a page of book/."""
    return f"../notebooks/{said['chapter']}.html#claim-{said['claim'].lower()}"


def ledger(given) -> str:
    """The claims ledger in MyST, from book/claims.toml and the verdicts of executed cells."""
    stated = claims()
    known = {claim["id"] for claim in stated["claim"]}
    if unknown := set(given) - known:
        raise BuildError(
            f"verdicts on claims that book/claims.toml does not know: {', '.join(sorted(unknown))}."
        )
    lines = [stated["introduction"].strip(), ""]
    for source in stated["source"]:
        lines += [f"## {source['title']}", "", source["note"].strip(), ""]
        for claim in (c for c in stated["claim"] if c["id"].startswith(source["id"])):
            said = given.get(claim["id"])
            expected = claim.get("verdict")
            if said is None and expected is not None:
                raise BuildError(
                    f"claim {claim['id']} should be {expected}, but no executed cell gives its verdict."
                )
            if said and said["outcome"] not in (expected, "not measured"):
                raise BuildError(
                    f"claim {claim['id']}: a cell says {said['outcome']}, book/claims.toml {expected}."
                )
            outcome = said["outcome"] if said else "open"
            condition = f" ({said['condition']})" if said and said.get("condition") else ""
            lines += [f'<div class="kd-claim" id="{claim["id"].lower()}">', ""]
            lines += [f'<p><span class="kd-id">{claim["id"]}</span> {mathematics(claim["text"].strip())}</p>']
            mark = f'<span class="kd-mark kd-{outcome.replace(" ", "-")}">{outcome}{condition}</span>'
            if said:
                records = (
                    f' · <a href="status.html#records">{claim["records"]}</a>' if "records" in claim else ""
                )
                lines += [
                    f'<p class="kd-finding">{mark} {mathematics(said["finding"])} '
                    f'<a href="{cell_address(said)}">the cell</a>{records} · {said["finished"][:10]}</p>'
                ]
            else:
                lines += [f'<p class="kd-finding">{mark} No chapter has tested it yet.</p>']
            lines += ["", "</div>", ""]
    return "\n".join(lines)


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
        for cell in nbformat.read(path, 4).cells:
            for said in (
                o["data"][OBSERVATION] for o in cell.get("outputs", []) if OBSERVATION in o.get("data", {})
            ):
                if not said["holds"]:
                    found.append((path, said["statement"]))
    return found


def status(notebooks) -> str:
    """What ran when, how long, on what, from which commit; and the records that the book holds."""
    rows = []
    for path in notebooks:
        notebook = nbformat.read(path, 4)
        made, title = notebook.metadata["kdlab"], notebook.cells[0].source.splitlines()[0].lstrip("# ")
        origin = made["provenance"]
        rows.append(
            f'<tr><td><a href="../notebooks/{path.stem}.html">{html.escape(title)}</a></td><td>{made["profile"]}</td>'
            f"<td>{made['seconds']:.0f} s</td><td>{made['finished'][:16].replace('T', ' ')}</td>"
            f"<td><code>{commit(origin)}</code></td></tr>"
        )
    records = []
    for path in sorted((ROOT / "book" / "records").glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        origin, spec = record["provenance"], record["spec"]
        records.append(
            f"<tr><td>{spec['study']}: {spec['arm']}, seed {spec['recipe'].get('seed', 0)}</td>"
            f"<td>{html.escape(headline(record))}</td><td>{record['seconds'] / 60:.0f} min</td>"
            f"<td>{origin['started'][:10]}</td><td>{html.escape(origin['device'])}</td>"
            f"<td><code>{(origin['commit'] or '')[:10]}</code></td></tr>"
        )

    def table(header, body):
        head = "".join(f'<th scope="col">{h}</th>' for h in header)
        return f'<div class="kd-table" tabindex="0"><table class="table"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'

    differs = "\n".join(  # in Markdown, so that Sphinx sees what is mathematics in it
        f'- <a href="../notebooks/{path.stem}.html">chapter {int(path.stem[:2])}</a>: {statement}'
        for path, statement in unseen(notebooks)
    )
    origin = made["provenance"]
    text = (ROOT / "book" / "status.md").read_text(encoding="utf-8")
    versions = ", ".join(f"{name} {origin[name]}" for name in ("kdlab", "python", "torch", "numpy"))
    return (
        text.replace("%CHAPTERS%", table(["chapter", "profile", "time", "finished (UTC)", "commit"], rows))
        .replace(
            "%RECORDS%", table(["run", "on the test split", "training", "date", "device", "commit"], records)
        )
        .replace("%UNSEEN%", differs or "None.")
        .replace("%VERSIONS%", f"{versions}; {origin['device']}; {origin['system']}")
    )


# ---------------------------------------------------------------- HTML


def stage(notebooks) -> Path:
    """Lay out everything that Sphinx reads; what has not changed keeps its time stamp."""
    new = BUILD / "stage.new"
    shutil.rmtree(new, ignore_errors=True)
    (new / "notebooks").mkdir(parents=True)
    for name in ("_config.yml", "_toc.yml"):
        shutil.copyfile(ROOT / name, new / name)
    skip = shutil.ignore_patterns("*.py", "*.toml", "__pycache__", "records", "checkpoints", "running")
    shutil.copytree(ROOT / "book", new / "book", ignore=skip)
    for path in notebooks:
        notebook = nbformat.read(path, 4)
        for output in (o for cell in notebook.cells for o in cell.get("outputs", []) if "data" in o):
            # Sphinx does not know them; ledger and status page read them from the executed notebook.
            output["data"].pop(VERDICT, None)
            output["data"].pop(OBSERVATION, None)
        nbformat.write(notebook, new / "notebooks" / path.name)
    given = verdicts(notebooks)
    for name, page in (("claims", ledger(given)), ("errata", errata(given)), ("status", status(notebooks))):
        (new / "book" / f"{name}.md").write_text(page, encoding="utf-8")
    landing = new / "book" / "index.md"
    dial = cell_output(notebooks, "landing-dial")
    tested = sum(said["outcome"] != "not measured" for said in given.values())
    text = landing.read_text(encoding="utf-8").replace("%DIAL%", dial)
    text = text.replace("%TESTED%", str(tested)).replace("%CLAIMS%", str(len(claims()["claim"])))
    landing.write_text(text, encoding="utf-8")
    mathjax = Path(importlib.util.find_spec("mathjax").origin).parent / "static" / "mathjax" / "es5"
    target = new / "_root" / "mathjax"
    (target / "output" / "chtml").mkdir(parents=True)
    shutil.copyfile(mathjax / "tex-mml-chtml.js", target / "tex-mml-chtml.js")
    shutil.copytree(mathjax / "output" / "chtml" / "fonts", target / "output" / "chtml" / "fonts")
    shutil.copytree(ROOT / "book" / "_static", new / "_static", dirs_exist_ok=True)

    old = BUILD / "stage"
    for path in (p for p in new.rglob("*") if p.is_file()):
        before = old / path.relative_to(new)
        if before.is_file() and before.read_bytes() == path.read_bytes():
            os.utime(path, (before.stat().st_atime, before.stat().st_mtime))
    shutil.rmtree(old, ignore_errors=True)
    new.rename(old)
    return old


def cell_output(notebooks, tag: str) -> str:
    """The HTML of the cell with a tag, on one line as raw HTML in Markdown needs it."""
    for path in notebooks:
        for cell in nbformat.read(path, 4).cells:
            if tag in cell.metadata.get("tags", []):
                for output in cell.outputs:
                    if "text/html" in output.get("data", {}):
                        markup = output["data"]["text/html"]
                        script = markup.index("<script>")
                        lines = [line for line in markup[script:].splitlines() if line.strip()]
                        return markup[:script].replace("\n", " ") + "\n".join(lines)
    raise BuildError(f"no executed cell is tagged {tag!r}.")


def stage_key(where: Path) -> str:
    digest = hashlib.sha256(code_key(Path(__file__), {}).encode())
    for path in sorted(p for p in where.rglob("*") if p.is_file()):
        digest.update(path.relative_to(where).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def sphinx(where: Path) -> bool:
    """Build the HTML with warnings as errors; False where nothing had changed."""
    stamp, key = BUILD / "html.key", stage_key(where)
    if stamp.exists() and stamp.read_text() == key and (BUILD / "html" / "index.html").exists():
        return False
    stamp.unlink(missing_ok=True)
    jupyter_book = Path(sys.executable).with_name("jupyter-book")
    command = [jupyter_book, "build", where, "--path-output", BUILD / "sphinx", "-W", "-n", "--keep-going"]
    log = BUILD / "sphinx.log"
    with log.open("w", encoding="utf-8") as out:
        finished = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT)
    if finished.returncode:
        # Else the next build would read fewer pages, and warn of less.
        shutil.rmtree(BUILD / "sphinx", ignore_errors=True)
        text = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(encoding="utf-8"))
        told = [line for line in text.splitlines() if re.search(r"WARNING|ERROR|Error", line)][
            :8
        ] or text.splitlines()[-8:]
        raise BuildError(f"Sphinx refused the pages (all of it in {log}):\n  " + "\n  ".join(told))
    built = BUILD / "sphinx" / "_build" / "html"
    check_pages(built)  # before it takes the place of the last good book
    shutil.rmtree(BUILD / "html", ignore_errors=True)
    shutil.copytree(built, BUILD / "html")
    stamp.write_text(key)
    return True


def check_pages(where: Path) -> None:
    """No page asks another host for anything, every image has its text, every inner link its target."""
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
        for asset in re.findall(
            r'<link[^>]+rel="(?:stylesheet|preload|icon)"[^>]+href="(https?:[^"]+)"', body
        ):
            wrong.append(f"{name} loads {asset}")
        for image in re.findall(r"<img\b[^>]*>", body):
            if not re.search(r'alt="[^"/]', image) and 'class="logo' not in image:
                wrong.append(f"{name} has an image without text: {image[:80]}")
        for link in re.findall(r'<a\b[^>]*href="([^"]+)"', body):
            target, _, anchor = html.unescape(link).partition("#")
            if re.match(r"[a-z]+:", target) or target.endswith((".ipynb", ".md", ".rst", ".txt")):
                continue
            goal = (path.parent / target).resolve() if target else path.resolve()
            if goal.suffix == ".html" and goal not in ids:
                wrong.append(f"{name} links to {link}, which does not exist")
            elif anchor and goal in ids and anchor not in ids[goal]:
                wrong.append(f"{name} links to {link}, whose anchor does not exist")
    if wrong:
        raise BuildError("the pages are not whole:\n  " + "\n  ".join(sorted(set(wrong))[:12]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="cpu", choices=("cpu", "gpu"))
    parser.add_argument(
        "--only", help="execute only the chapters whose name has this in it, and build no HTML"
    )
    given = parser.parse_args()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    started = time.time()
    sources = [c for c in chapters() if given.only is None or given.only in c.stem]
    notebooks = []
    try:
        for number, chapter in enumerate(sources, start=1):
            say(f"[{number}/{len(sources)}] {chapter.stem} …")
            begun = time.time()
            path, ran = execute(chapter, given.profile)
            say(
                f"[{number}/{len(sources)}] {chapter.stem} {'executed' if ran else 'unchanged'} in {time.time() - begun:.0f} s;",
                started,
            )
            notebooks.append(path)
        if given.only:
            return 0
        for path, statement in unseen(notebooks):
            say(f"chapter {int(path.stem[:2])}, not shown: {statement}")
        say(prose.report(sources))
        say("pages …")
        changed = sphinx(stage(notebooks))
        say(f"pages {'built' if changed else 'unchanged'};", started)
    except BuildError as error:
        print(f"\nThe book was not built: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; what was executed so far is kept.", file=sys.stderr)
        return 130
    say(f"\nOpen {BUILD / 'html' / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
