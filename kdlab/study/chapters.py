"""A chapter from its source to an executed notebook, by papermill, in a kernel of one thread; and to a page of its own."""

import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from ..files import atomic_folder
from .downloads import CSV, RECORDS, sources_are_saved, with_downloads
from .parameters import declared_in, given_to
from .records import evidence_folder
from .repository import repository

try:
    import jupytext
    import nbformat
    import papermill
    import yaml
    from jupyter_core.utils import ensure_event_loop

    from .kernels import KernelServer, OwnKernel, for_kernels
except ImportError as error:
    raise ImportError(f"chapters are executed with {error.name}: pip install 'kdlab[book]'.") from None

#: What cells say for the ledger and the status page; the browser shows the HTML beside it.
VERDICT = "application/vnd.kdlab.verdict+json"
OBSERVATION = "application/vnd.kdlab.observation+json"


class ChapterError(RuntimeError):
    """Which cell of a chapter broke, and how, in a sentence."""


def read_chapter(path: Path) -> nbformat.NotebookNode:
    """The source of a chapter (py:percent), or of a page (Markdown with blocks of Python), as a notebook without outputs."""
    of_page = {"fmt": {"extension": ".md", "split_at_heading": True}} if path.suffix == ".md" else {}
    notebook = jupytext.read(path, **of_page)
    for cell in notebook.cells:
        cell.metadata.pop("lines_to_next_cell", None)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return notebook


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


def execute(
    chapter: Path,
    parameters: dict,
    *,
    environment: dict | None = None,
    server: KernelServer | None = None,
    progress: bool = False,
) -> nbformat.NotebookNode:
    """Execute a chapter in its own folder, or a page in an empty one, and return the notebook.

    Args:
        chapter: its source, as :func:`read_chapter` reads it.
        parameters: values by name, for those in the cell tagged ``parameters``.
        environment: variables for its kernel, besides one thread.
        server: which forks the kernel; without one it is started.
        progress: whether to show a bar.

    Raises:
        ParameterError: for a parameter that the chapter does not have, or a value that it cannot take.
        ChapterError: if a cell raises, or the kernel dies.
    """
    parameters = given_to(declared_in(chapter), parameters)
    kernel = type("Kernel", (OwnKernel,), {"environment": for_kernels(environment or {}), "server": server})
    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder) / "source.ipynb", Path(folder) / "executed.ipynb"
        where = chapter.parent
        if chapter.suffix == ".md":  # pages write files, as their readers will
            where = Path(folder) / "page"
            where.mkdir()
        nbformat.write(read_chapter(chapter), source)
        try:
            papermill.execute_notebook(
                source, result, parameters=parameters, kernel_name="python3", kernel_manager_class=kernel,
                # Not papermill's own cwd, which moves the whole process: chapters run side by side.
                resources={"metadata": {"path": str(where)}},
                extra_arguments=["--IPKernelApp.log_level=40"],
                progress_bar={"desc": "      cells", "leave": False} if progress else False,
            )  # fmt: skip
        except papermill.PapermillExecutionError:
            pass  # told below, from the notebook itself
        except Exception as error:  # a kernel that died, say
            raise ChapterError(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from error
        finally:
            if not (loop := ensure_event_loop()).is_running():
                loop.close()  # this thread's; its sockets would stay open
        executed = nbformat.read(result, 4)
    if broken := failure(executed):
        raise ChapterError(broken)
    for cell in executed.cells:
        cell.metadata.pop("papermill", None)
    executed.metadata.pop("papermill", None)
    return executed


def find_chapter(which: str) -> Path:
    """The source of a chapter, by its number or a part of its name, beside the book's folder.

    Raises:
        ChapterError: if none or several fit.
        RecordError: if there is no book.
    """
    known = sorted((evidence_folder().parents[1] / "notebooks").glob("[0-9]*.py"))
    fit = [c for c in known if (int(c.stem[:2]) == int(which) if which.isdecimal() else which in c.stem)]
    if len(fit) != 1:
        raise ChapterError(f"{which!r} fits {len(fit)} chapters of {', '.join(c.stem for c in fit or known)}.")
    return fit[0]


def without_reports(notebook):
    """The notebook without the outputs that are for the build alone, which Sphinx does not know."""
    for output in (o for cell in notebook.cells for o in cell.get("outputs", []) if "data" in o):
        for said in (VERDICT, OBSERVATION, CSV, RECORDS):
            output["data"].pop(said, None)
    return notebook


#: The parts of MathJax that pages load (_config.yml): TeX in, HTML out, MathML for a screen reader; without menu and MathML in.
MATHJAX = (
    "startup.js", "core.js", "input/tex.js", "output/chtml.js", "output/chtml/fonts/tex.js", "a11y/assistive-mml.js", "ui/lazy.js",
)  # fmt: skip


def copy_mathjax(target: Path) -> None:
    """MathJax's own files, so that no page asks another host for them."""
    source = Path(importlib.util.find_spec("mathjax").origin).parent / "static" / "mathjax" / "es5"
    for part in MATHJAX:
        (target / part).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / part, target / part)
    fonts = "output/chtml/fonts/woff-v2"
    shutil.copytree(source / fonts, target / fonts)


def jupyter_book(stage: Path, output: Path, *options: str) -> subprocess.CompletedProcess:
    """Build the pages of a folder; what it said is in ``stdout``."""
    command = [
        Path(sys.executable).with_name("jupyter-book"),
        "build",
        stage,
        "--path-output",
        output,
        *options,
    ]
    finished = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", cwd=stage
    )
    for page in (Path(output) / "_build" / "html").rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        if (saved := sources_are_saved(text)) != text:
            page.write_text(saved, encoding="utf-8")
    return finished


def write_page(executed: nbformat.NotebookNode, root: Path, name: str, out: Path) -> Path:
    """One executed chapter as a page that looks as in the book, in the folder ``out``; the address of its HTML.

    Args:
        executed: the notebook.
        root: of the checkout, which has the book's look and its bibliography.
        name: of the page.
        out: a folder, replaced as a whole when the page is done.

    Raises:
        ChapterError: if Sphinx fails.
    """
    published = repository(root)
    references = "## References\n\n```{bibliography}\n:filter: docname in docnames\n```"
    with tempfile.TemporaryDirectory() as folder:
        stage = Path(folder) / "stage"
        (stage / "book").mkdir(parents=True)
        notebook = with_downloads(executed, name, root / "book" / "evidence" / "records", stage / "_root")
        notebook = without_reports(notebook)
        for cell in (c for c in notebook.cells if c.cell_type == "markdown"):
            # Other pages are not here: their links go to the published book, where there is one.
            cell.source = linked_to(published and published.site, cell.source)
        notebook.cells.append(nbformat.v4.new_markdown_cell(references, id="references"))
        nbformat.write(notebook, stage / f"{name}.ipynb")
        (stage / "_toc.yml").write_text(f"format: jb-book\nroot: {name}\n")
        settings = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
        (stage / "_config.yml").write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")
        shutil.copyfile(root / "book" / "references.bib", stage / "book" / "references.bib")
        shutil.copytree(root / "book" / "_static", stage / "_static")
        copy_mathjax(stage / "_root" / "mathjax")
        built = jupyter_book(stage, Path(folder))
        html = Path(folder) / "_build" / "html"
        if built.returncode or not (html / f"{name}.html").exists():
            raise ChapterError(f"Sphinx made no page of {name}: {' '.join(built.stdout.split())[-500:]}")
        shutil.rmtree(out, ignore_errors=True)
        with atomic_folder(out) as part:
            shutil.copytree(html, part, dirs_exist_ok=True)
    return out / f"{name}.html"


def linked_to(site: str | None, text: str) -> str:
    """Markdown whose links to other pages of the book lead to its site; without one they are the pages' names.

    >>> linked_to("https://me.github.io/book", "see {doc}`../book/using`"), linked_to(None, "see {doc}`07_divergences`")
    ('see [using](https://me.github.io/book/book/using.html)', 'see *07 divergences*')
    >>> linked_to("https://me.github.io/book", "{doc}`chapter 12 <12_the_table_again>`")
    '[chapter 12](https://me.github.io/book/notebooks/12_the_table_again.html)'
    >>> linked_to("https://me.github.io/book", "{doc}`terms <../../notebooks/08_hidden_states_and_attention>`")
    '[terms](https://me.github.io/book/notebooks/08_hidden_states_and_attention.html)'
    """

    def link(found: re.Match) -> str:
        words, folder, name = found.groups()
        words = words or name.replace("_", " ")
        return f"[{words}]({site}/{folder or 'notebooks/'}{name}.html)" if site else f"*{words}*"

    return re.sub(r"\{doc\}`(?:([^`<]+?)\s*<)?(?:\.\./)*(book/|notebooks/)?([\w-]+)>?`", link, text)
