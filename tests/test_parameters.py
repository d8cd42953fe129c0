"""The parameters of chapters: declared, read, checked, and refused before a chapter runs."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from kdlab.study.parameters import ParameterError, check_names, declared, declared_in, given_to

ROOT = Path(__file__).resolve().parents[1]
CELL = """\
profile = "cpu"  # or "gpu"
temperatures: list[float] = [1, 2.0, 8]  # at which the gradient is taken
seeds: list[int] = [0, 1, 2]
classes: int = 100  # N
shift: float = -1.5
live: bool = True
"""


def test_a_cell_declares_names_types_defaults_and_comments():
    found = declared(CELL)
    assert list(found) == ["profile", "temperatures", "seeds", "classes", "shift", "live"]
    assert found["profile"].kind == "str" and found["profile"].comment == 'or "gpu"'
    assert found["temperatures"].default == [1, 2.0, 8] and found["seeds"].comment == ""


@pytest.mark.parametrize("line", ["x = y", "x: dict = {}", "x: int = 'a'", "import torch", "x, y = 1, 2", "x: int"])
def test_what_declares_nothing_is_refused(line):
    with pytest.raises(ParameterError, match="declares no parameter: write name: type = value"):
        declared(line)


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("temperatures", "1,2,8", [1.0, 2.0, 8.0]),
        ("temperatures", "0.5", [0.5]),
        ("temperatures", "[1, 2]", [1.0, 2.0]),
        ("temperatures", [3, 4.5], [3, 4.5]),
        ("seeds", "0", [0]),
        ("classes", "10", 10),
        ("shift", "3", 3.0),
        ("shift", "-3", -3.0),
        ("live", "false", False),
        ("profile", "gpu", "gpu"),
    ],
)
def test_values_are_read_as_a_command_line_writes_them(name, value, wanted):
    got = given_to(declared(CELL), {name: value})[name]
    assert got == wanted and type(got) is type(wanted)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("temperatures", "0,1", r"temperatures must be a list of numbers above 0, such as \[1, 2.0, 8\], and not \[0.0, 1.0\]"),
        ("temperatures", "hot", "not 'hot'"),
        ("temperatures", "", "not ''"),
        ("temperatures", "1,,2", "not '1,,2'"),
        ("temperatures", [], r"not \[\]"),
        ("temperatures", "nan", r"not \[nan\]"),
        ("temperatures", "inf", r"not \[inf\]"),
        ("temperatures", 4.0, "a list of numbers above 0"),
        ("seeds", "-1", r"seeds must be a list of whole numbers from 0 on, such as \[0, 1, 2\], and not \[-1\]"),
        ("seeds", "1.5", "whole numbers"),
        ("classes", "ten", "classes must be a whole number above 0, such as 100, and not 'ten'"),
        ("classes", True, "a whole number above 0"),
        ("classes", "0", "above 0"),
        ("shift", "nan", "shift must be a number, such as -1.5"),
        ("live", "perhaps", "live must be True or False"),
        ("profile", 1, "profile must be a word"),
    ],
)  # fmt: skip
def test_values_that_do_not_fit_are_refused(name, value, sentence):
    with pytest.raises(ParameterError, match=sentence):
        given_to(declared(CELL), {name: value})


def test_an_unknown_name_is_told_with_the_one_that_is_meant():
    with pytest.raises(
        ParameterError,
        match=r"no parameter 'temperature' \(did you mean 'temperatures'\?\). It has profile, ",
    ):
        check_names(declared(CELL), ["classes", "temperature"])


@pytest.mark.parametrize("chapter", sorted((ROOT / "notebooks").glob("*.py")), ids=lambda c: c.stem)
def test_papermill_lists_what_a_chapter_declares(chapter):
    """``papermill --help-notebook`` reads a line only if it has one sign of equality, in a comment too."""
    from papermill.translators import PythonTranslator

    from kdlab.study.chapters import read_chapter

    (cell,) = (c for c in read_chapter(chapter).cells if "parameters" in c.metadata.get("tags", []))
    found = {parameter.name: parameter.help for parameter in PythonTranslator.inspect(cell)}
    assert found == {name: parameter.comment for name, parameter in declared_in(chapter).items()}


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A book of one chapter with the cell above; returns the chapter."""
    (tmp_path / "book" / "evidence" / "records").mkdir(parents=True)
    (tmp_path / "notebooks").mkdir()
    chapter = tmp_path / "notebooks" / "03_small.py"
    chapter.write_text(
        f'# %% [markdown]\n# # A small chapter\n\n# %% tags=["parameters"]\n{CELL}\n'
        "# %%\nfrom kdlab.study.display import device_for\n\ndevice = device_for(profile)\nsum(temperatures), device\n"
    )
    monkeypatch.setenv("KDLAB_BOOK", str(tmp_path / "book"))
    return chapter


@pytest.mark.parametrize(
    ("injected", "sentence"),
    [
        ({"temperature": 7}, "no parameter 'temperature' .did you mean 'temperatures'"),
        ({"temperatures": [0, 1]}, "temperatures must be a list of numbers above 0"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_plain_papermill_ends_at_once(book, tmp_path, monkeypatch, injected, sentence):
    import nbformat
    import papermill

    from kdlab.study.chapters import read_chapter

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    nbformat.write(read_chapter(book), tmp_path / "a.ipynb")
    with pytest.raises(papermill.PapermillExecutionError, match=f"ParameterError: .*{sentence}"):
        papermill.execute_notebook(
            tmp_path / "a.ipynb", tmp_path / "b.ipynb", injected, kernel_name="python3", progress_bar=False
        )


@pytest.mark.filterwarnings("ignore")
def test_a_verdict_says_with_which_other_parameters(book, tmp_path):
    """The claim's own setting is that of the defaults; wherever a chapter runs is not another setting."""
    from kdlab.study.chapters import VERDICT, execute

    with book.open("a") as chapter:
        chapter.write('\n# %%\nfrom kdlab.study.display import verdict\n\nverdict("A1", "proved", "So it is.")\n')
        chapter.write('\n# %%\nverdict("A2", "proved", "Whatever they are.", parameters=("classes",))\n')
    said = {}
    for name, given in {"own": {}, "other": {"temperatures": [1, 3], "classes": 100}}.items():
        found, other = (
            output["data"][VERDICT]["finding"]
            for cell in execute(book, given).cells
            for output in cell.get("outputs", [])
            if VERDICT in output.get("data", {})
        )
        said[name] = found
        assert other == "Whatever they are."  # the number of classes is its default's
    assert said["own"] == "So it is."
    assert said["other"].startswith("So it is. (With temperatures = [1, 3] in place of [1, 2.0, 8]: not the setting of")
    assert "classes" not in said["other"]


def test_an_unknown_profile_is_refused():
    from kdlab.study.display import device_for

    assert device_for("cpu") == "cpu"
    with pytest.raises(ParameterError, match='profile must be "cpu" or "gpu", not \'tpu\''):
        device_for("tpu")


@pytest.mark.filterwarnings("ignore")
def test_a_chapter_is_executed_with_parameters_of_ones_own(book, tmp_path):
    from kdlab.__main__ import app

    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["chapter", "3", "-p", "temperatures", "1,2,8.5", "--no-page", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "(11.5, &#x27;cpu&#x27;)" in (text := (out / "03_small.ipynb").read_text()) or "(11.5, 'cpu')" in text
    assert [path.name for path in out.iterdir()] == ["03_small.ipynb"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-p", "temperature", "7"], "did you mean 'temperatures'?"),
        (["-p", "seeds", "-1"], "seeds must be a list of whole numbers from 0 on"),
        (["-p", "seeds"], "each -p takes a name and a value"),
    ],
)
def test_the_command_refuses_in_a_sentence_and_writes_nothing(book, tmp_path, arguments, sentence):
    from kdlab.__main__ import app

    done = CliRunner().invoke(app, ["chapter", "small", "--out", str(tmp_path / "out"), *arguments])
    assert done.exit_code == 1 and sentence in done.output and not (tmp_path / "out").exists()


def test_the_command_lists_chapters_and_their_parameters(book):
    from kdlab.__main__ import app

    said = CliRunner().invoke(app, ["chapters"]).output.splitlines()
    assert said[0] == " 3  A small chapter"
    assert said[2].split(maxsplit=6)[:1] == ["temperatures:"] and said[2].endswith("at which the gradient is taken")
    assert len(said) == 7


@pytest.mark.parametrize("chapter", sorted((ROOT / "notebooks").glob("*.py")), ids=lambda c: c.stem)
def test_every_chapter_declares_its_parameters_and_checks_them(chapter):
    assert declared_in(chapter)["profile"].default == "cpu"
    assert "device_for(profile)" in chapter.read_text(encoding="utf-8")
