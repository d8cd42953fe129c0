"""What a reader takes along from a page: the numbers of a figure as CSV, the records of a note as JSON, the notebook."""

import html
import re
import shutil
from itertools import groupby
from pathlib import Path

import nbformat

#: What figures and notes say of themselves in an executed notebook; the pages have files in their place.
CSV = "application/vnd.kdlab.data+csv"
RECORDS = "application/vnd.kdlab.records+json"


def with_downloads(notebook, name: str, records: Path, pages: Path, up: str = "") -> nbformat.NotebookNode:
    """The notebook with a link to its numbers below each figure, and links to its records in each note of where numbers are from.

    Args:
        notebook: executed.
        name: of the chapter.
        records: the folder that has the records; one that it has not gets no link.
        pages: the folder of all pages; the files are written into its ``data`` and ``records``.
        up: from the chapter's page to that folder: ``"../"``.
    """
    notebook = nbformat.from_dict(notebook)
    for folder in ("data", "records"):
        (pages / folder).mkdir(parents=True, exist_ok=True)
    for data in (o["data"] for cell in notebook.cells for o in cell.get("outputs", []) if "data" in o):
        if numbers := data.get(CSV):
            markup = "".join(data["text/html"])
            label = re.search(r'<figure[^>]* id="fig-([^"]+)"', markup)[1]
            file = f"data/{name}.{label}.csv"
            (pages / file).write_text("".join(numbers), encoding="utf-8")
            link = f'<a class="kd-download" href="{up}{file}" download aria-label="Data as CSV, figure {label}">Data as CSV</a>'
            data["text/html"] = markup.replace("</figcaption>", f"{link}</figcaption>")
        if RECORDS in data:
            there = [stem for stem in data[RECORDS] if (records / f"{stem}.json").exists()]
            for stem in there:
                shutil.copyfile(records / f"{stem}.json", pages / "records" / f"{stem}.json")
            data["text/html"] = "".join(data["text/html"]) + record_links(there, up)
    return notebook


def record_links(stems: list[str], up: str) -> str:
    """Records to open, folded, a line an arm; nothing for none.

    >>> print(re.sub("<[^>]+>", "|", record_links(["small.kd.seed0.1a", "small.kd.seed1.2b"], "")))
    ||2 records (JSON)|||small, kd: |seed 0|, |seed 1||||
    """
    lines = []
    for arm, group in groupby(sorted(stems), lambda stem: stem.rsplit(".", 2)[0]):
        study, arm = map(html.escape, arm.split(".", 1))
        seeds = [(stem, stem.rsplit(".", 2)[1].removeprefix("seed")) for stem in group]
        links = (
            f'<a href="{up}records/{html.escape(stem)}.json" aria-label="seed {seed} of {arm}, record">seed {seed}</a>'
            for stem, seed in seeds
        )
        lines.append(f"<li>{study}, {arm}: {', '.join(links)}</li>")
    what = "record" if len(stems) == 1 else "records"
    folded = f"<summary>{len(stems)} {what} (JSON)</summary><ul>{''.join(lines)}</ul>"
    return f'<details class="kd-records">{folded}</details>' if stems else ""


def sources_are_saved(page: str) -> str:
    """A page whose link to its own source, the executed notebook, saves it: a browser shows it as text else.

    >>> sources_are_saved('<a href="../_sources/notebooks/03.ipynb" target="_blank">')
    '<a href="../_sources/notebooks/03.ipynb" download>'
    """
    return re.sub(r'(<a href="[^"]*_sources/[^"]+") target="_blank"', r"\1 download", page)
