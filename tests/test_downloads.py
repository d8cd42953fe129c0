"""What pages offer to take along: every link leads to a file, and the file is what the link says."""

import csv
import re

import matplotlib.pyplot as plt
import nbformat
import pytest

from kdlab.figures import show
from kdlab.study import results
from kdlab.study.chapters import without_reports
from kdlab.study.display import source_note
from kdlab.study.downloads import CSV, RECORDS, sources_are_saved, with_downloads
from kdlab.study.records import evidence_folder, read_record, record_name

RECORDS_OF_BOOK = evidence_folder() / "records"


def output(shown) -> nbformat.NotebookNode:
    return nbformat.v4.new_output("display_data", shown._repr_mimebundle_())


def line(label="gap"):
    figure, panel = plt.subplots()
    panel.plot([1, 2], [0.5, 0.25], label="kd")
    panel.set(xlabel="T", ylabel="KL")
    return show(figure, label=label, caption="A line.", alt="A line that falls.")


def notebook(*shown) -> nbformat.NotebookNode:
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("…", outputs=[output(s) for s in shown])])


def page(made) -> str:
    return "".join(o["data"]["text/html"] for cell in made.cells for o in cell.outputs)


@pytest.fixture(scope="module")
def study():
    return results("small")


def test_a_note_names_the_records_that_it_was_given_and_no_others(study):
    used = study.all(["kd", "alone"])
    said = source_note(used)._repr_mimebundle_()[RECORDS]
    assert said == sorted(spec.name for spec in study.specs if spec.arm in ("kd", "alone"))
    assert f"n = {len(said)} runs" in source_note(used).markup
    assert source_note(used + used)._repr_mimebundle_()[RECORDS] == said  # one that is given twice is one file


def test_a_record_is_called_as_its_file():
    for path in RECORDS_OF_BOOK.glob("*.json"):
        assert record_name(read_record(path)) == path.stem


@pytest.mark.parametrize("up", ["", "../"])
def test_every_link_leads_to_a_file_that_is_what_it_says(study, tmp_path, up):
    used = study.all(["kd"])
    here = tmp_path / "notebooks" if up else tmp_path
    here.mkdir(exist_ok=True)
    text = page(with_downloads(notebook(line(), source_note(used)), "03_why", RECORDS_OF_BOOK, tmp_path, up))
    links = re.findall(r'<a [^>]*href="([^"]+)"[^>]*>([^<]+)</a>', text)
    assert [words for _, words in links] == ["Data as CSV", "seed 0", "seed 1", "seed 2"]
    numbers, *records = [(here / link).resolve() for link, _ in links]
    assert list(csv.reader(numbers.read_text().splitlines())) == [
        ["series", "T", "KL"],
        ["kd", "1", "0.5"],
        ["kd", "2", "0.25"],
    ]
    assert [read_record(path) for path in records] == used
    assert 'download aria-label="Data as CSV, figure gap"' in text and text.index("Data as CSV") < text.index(
        "</figcaption>"
    )


def test_what_is_not_there_gets_no_link(study, tmp_path):
    text = page(with_downloads(notebook(source_note(study.all(["kd"]))), "03_why", tmp_path / "none", tmp_path))
    assert "Recorded: n = 3 runs" in text and "<a" not in text


def test_the_executed_notebook_stays_as_it_was_and_the_page_has_no_type_that_sphinx_does_not_know(study, tmp_path):
    executed = notebook(line(), source_note(study.all(["kd"])))
    before = nbformat.writes(executed)
    linked = without_reports(with_downloads(executed, "03_why", RECORDS_OF_BOOK, tmp_path))
    assert nbformat.writes(executed) == before
    assert {kind for o in linked.cells[0].outputs for kind in o["data"]} == {"text/html"}
    assert {CSV, RECORDS} <= {kind for o in executed.cells[0].outputs for kind in o["data"]}
    nbformat.validate(executed)


def test_a_page_saves_its_notebook():
    button = '<li><a href="../_sources/notebooks/03.ipynb" target="_blank"\n   class="btn">'
    assert sources_are_saved(button) == '<li><a href="../_sources/notebooks/03.ipynb" download\n   class="btn">'
    other = '<a href="https://example.org/03.ipynb" target="_blank">'
    assert sources_are_saved(other) == other and sources_are_saved(sources_are_saved(button)) == sources_are_saved(
        button
    )
