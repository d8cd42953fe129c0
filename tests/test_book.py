"""The build: what reaches the book, what does not, and what it says."""

import importlib.util
import re
from pathlib import Path

import jupytext
import nbformat
import pytest

from kdlab.study import read_record
from kdlab.study.records import headline
from kdlab.study.runner import every_spec, verify

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("book_build", ROOT / "book" / "build.py")
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)

CHAPTERS = sorted((ROOT / "notebooks").glob("*.py"))
HEAD = '# %% [markdown]\n# # A chapter\n\n# %% tags=["parameters"]\nprofile = "cpu"\n\n'


@pytest.fixture
def small_book(tmp_path, monkeypatch):
    """A checkout with one chapter, in a temporary folder; returns a function that writes the chapter."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "kdlab").mkdir()
    (tmp_path / "book").mkdir()
    (tmp_path / "requirements.lock").write_text("torch==2.13.0\n")
    (tmp_path / "kdlab" / "a.py").write_text("x = 1\n")
    monkeypatch.setattr(build, "ROOT", tmp_path)
    monkeypatch.setattr(build, "BUILD", tmp_path / "_build")
    monkeypatch.setenv("KDLAB_DATA", str(tmp_path / "data"))

    def write(body):
        chapter = tmp_path / "notebooks" / "01_a.py"
        chapter.write_text(HEAD + body)
        return chapter

    return write


@pytest.mark.filterwarnings("ignore")
def test_a_chapter_runs_again_only_when_something_it_depends_on_changed(small_book, tmp_path):
    reads = "# %%\nfrom kdlab.files import note_read\nfrom kdlab.data import folder\nnote_read(folder() / 'a.bin')\nprint(1)\n"
    chapter = small_book(reads)
    assert build.execute(chapter, "cpu")[1]
    assert not build.execute(chapter, "cpu")[1]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "unrelated.bin").write_bytes(b"1")
    assert not build.execute(chapter, "cpu")[1]
    (tmp_path / "data" / "a.bin").write_bytes(b"1")
    assert build.execute(chapter, "cpu")[1]
    (tmp_path / "kdlab" / "a.py").write_text("x = 2\n")
    assert build.execute(chapter, "cpu")[1]
    (tmp_path / "requirements.lock").write_text("torch==2.14.0\n")
    assert build.execute(chapter, "cpu")[1]
    assert not build.execute(chapter, "cpu")[1]


@pytest.mark.filterwarnings("ignore")
def test_a_failing_chapter_is_told_in_a_sentence_and_does_not_replace_the_last_good_one(small_book):
    chapter = small_book("# %%\nprint('good')\n")
    good, _ = build.execute(chapter, "cpu")
    before = good.read_bytes()
    small_book("# %%\nx = 1\n\n# %%\nassert x == 2, 'x is one'\n")
    with pytest.raises(
        build.BuildError, match=r"01_a\.py, cell \d+ .*assert x == 2.* raised AssertionError: x is one"
    ):
        build.execute(chapter, "cpu")
    assert good.read_bytes() == before


def test_an_unknown_parameter_is_refused(small_book):
    with pytest.raises(build.BuildError, match="no parameter 'colour'"):
        build.read_source(small_book("# %%\n1\n"), {"colour": "red"})


def test_a_cell_that_may_raise_is_not_let_through(small_book):
    chapter = small_book('# %% tags=["raises-exception"]\nraise ValueError("no")\n')
    with pytest.raises(build.BuildError, match="ValueError: no"):
        build.execute(chapter, "cpu")


def said(claim, outcome):
    return {
        claim: {
            "outcome": outcome,
            "finding": "…",
            "chapter": "01_a",
            "finished": "2026-01-01T00:00:00",
            "claim": claim,
        }
    }


@pytest.fixture
def one_claim(small_book, tmp_path):
    (tmp_path / "book" / "claims.toml").write_text(
        'introduction = "# L"\nerrata = "# E"\n[[source]]\nid = "A"\ntitle = "A"\nnote = "n"\n'
        '[[claim]]\nid = "A1"\ntext = "t"\nverdict = "proved"\n[[claim]]\nid = "A2"\ntext = "t"\n'
    )


def test_the_ledger_takes_verdicts_from_cells_alone(one_claim):
    page = build.ledger(said("A1", "proved"))
    assert "01_a.html#claim-a1" in page and "No chapter has tested it yet" in page
    assert "not measured" in build.ledger(said("A1", "not measured"))
    with pytest.raises(build.BuildError, match="a cell says refuted, book/claims.toml proved"):
        build.ledger(said("A1", "refuted"))
    with pytest.raises(build.BuildError, match="A1 should be proved, but no executed cell"):
        build.ledger({})
    with pytest.raises(build.BuildError, match="does not know: A9"):
        build.ledger(said("A1", "proved") | said("A9", "proved"))


@pytest.mark.parametrize(
    ("page", "wrong"),
    [
        ('<img src="a.png" alt="">', "image without text"),
        ('<script src="https://cdn.example/x.js"></script>', "loads https://cdn.example"),
        ('<a href="b.html">', "does not exist"),
        ('<a href="#nowhere">', "anchor does not exist"),
    ],
)
def test_pages_that_are_not_whole_are_refused(tmp_path, page, wrong):
    (tmp_path / "index.html").write_text(page)
    with pytest.raises(build.BuildError, match=wrong):
        build.check_pages(tmp_path)


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda c: c.stem)
def test_every_chapter_is_numbered_listed_and_has_the_parameter(chapter):
    assert chapter in [ROOT / c.relative_to(build.ROOT) for c in build.chapters()]
    notebook = build.read_source(chapter, {"profile": "cpu"})
    assert notebook.cells[0].source.startswith("# ")
    text = chapter.read_text()
    for part in ("At the end you will know", "*Needs:", "## Limits", "## Exercises"):
        assert part in text, part
    assert text.count("```{exercise}") == text.count("```{solution}") >= 2


def test_every_chapter_survives_the_round_trip_of_jupytext():
    for chapter in CHAPTERS:
        notebook = jupytext.read(chapter)
        again = jupytext.reads(jupytext.writes(notebook, "py:percent"), "py:percent")
        assert [c.source for c in again.cells] == [c.source for c in notebook.cells]


def test_stored_checkpoints_are_the_ones_that_their_records_name():
    from kdlab.files import sha256

    for path in (ROOT / "book" / "records").glob("*.json"):
        record = read_record(path)
        assert path.stem.endswith(record["spec_hash"][:8])
        if "checkpoint" in record:
            assert (
                sha256(ROOT / "book" / "checkpoints" / record["checkpoint"]["file"])
                == record["checkpoint"]["sha256"]
            )


def test_no_page_states_a_measured_number_by_hand():
    """Accuracies and errors in prose come from cells: no percentage stands in the Markdown of a chapter."""
    for chapter in CHAPTERS:
        for cell in jupytext.read(chapter).cells:
            if cell.cell_type == "markdown":
                assert not re.search(r"\d+\.\d+ ?%", cell.source), (chapter.name, cell.source[:60])


def test_executed_notebooks_are_not_in_the_repository():
    assert not list(ROOT.glob("notebooks/*.ipynb")) and not list(ROOT.glob("book/**/*.ipynb"))


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda c: c.stem)
def test_plain_papermill_finds_the_kernel_of_a_converted_chapter(chapter):
    assert jupytext.read(chapter).metadata["kernelspec"]["language"] == "python"


def test_what_a_build_did_not_show_is_listed(tmp_path):
    said = [{"statement": "One is $1$.", "holds": True}, {"statement": "Two < one.", "holds": False}]
    outputs = [nbformat.v4.new_output("display_data", {build.OBSERVATION: s}) for s in said]
    cell = nbformat.v4.new_code_cell("…", outputs=outputs)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "09_a.ipynb")
    assert build.unseen([tmp_path / "09_a.ipynb"]) == [(tmp_path / "09_a.ipynb", "Two < one.")]


@pytest.mark.parametrize("chapter", [c for c in CHAPTERS if int(c.stem[:2]) >= 12], ids=lambda c: c.stem)
def test_prose_states_no_measured_number(chapter):
    """What was measured is said by cells, which compute it from records; prose has only what was set or published."""
    cells = jupytext.read(chapter).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    text = re.sub(r"```.*?```|`[^`]*`|\$[^$]*\$|95 % interval", " ", text, flags=re.DOTALL)
    assert re.findall(r"\d+(?:\.\d+)?\s*(?:%|per cent|points?\b|nats?\b|images/s)", text) == []


def test_the_books_records_are_whole():
    assert verify(ROOT / "book", every_spec()) == []


def test_the_status_page_has_a_headline_for_every_record():
    said = {}
    for path in (ROOT / "book" / "records").glob("*.json"):
        record = read_record(path)
        said.setdefault(record["spec"]["study"], headline(record))
    for study, words in (
        ("small", "test accuracy"),
        ("language-small", "bits per byte of the test text"),
        ("drafts-small", "bits per byte of the test text"),
        ("modules-small", "1 − TV 0."),
        ("policy-small", "nats"),
    ):
        assert words in said[study]
    assert headline({"test": None, "diverged": "the loss of step 3 is not finite"}) == "the loss of step 3 is not finite"
