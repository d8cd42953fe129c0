"""The build: what reaches the book, what does not, and what it says."""

import ast
import importlib.util
import json
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

import jupytext
import nbformat
import pytest
from pybtex.database import parse_file

from kdlab.study import read_record, weight
from kdlab.study.chapters import read_chapter
from kdlab.study.kernels import KernelServer, OwnKernel
from kdlab.study.parameters import declared_in
from kdlab.study.records import headline
from kdlab.study.repository import EXTRAS, Repository
from kdlab.study.runner import every_spec, verify

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("book_build", ROOT / "book" / "programs" / "build.py")
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)

CHAPTERS = sorted((ROOT / "notebooks").glob("*.py"))
HEAD = '# %% [markdown]\n# # A chapter\n\n# %% tags=["parameters"]\nprofile = "cpu"\n\n'


@pytest.fixture
def small_book(tmp_path, monkeypatch):
    """A checkout in a temporary folder, with a small kdlab; returns a function that writes a chapter."""
    files = {
        "requirements.lock": "torch==2.13.0\n",
        "kdlab/__init__.py": "",
        "kdlab/files.py": "",
        "kdlab/losses/__init__.py": "from .soft import soft\nfrom .hard import hard, hardest\n",
        "kdlab/losses/soft.py": "from ..files import x\nsoft = 1\n",
        "kdlab/losses/hard.py": "hard = hardest = 1\n",
        "kdlab/figures/__init__.py": "from .dial import dial\nfrom .dots import dots\n",
        "kdlab/figures/dial.py": "def dial():\n    from ..losses import hard\n    return open('dial.js'), open('sets/a.json')\n",
        "kdlab/figures/dots.py": "dots = 1\n",
        "kdlab/figures/dial.js": "1",
        "kdlab/figures/sets/a.json": "{}",
        "kdlab/figures/sets/b.json": "{}",
        "kdlab/figures/other.js": "1",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "book" / "evidence").mkdir(parents=True)
    monkeypatch.setattr(build, "ROOT", tmp_path)
    monkeypatch.setattr(build, "EVIDENCE", tmp_path / "book" / "evidence")
    monkeypatch.setattr(build, "BUILD", tmp_path / "_build")
    monkeypatch.setattr(build, "prepare_data", lambda: None)
    monkeypatch.setenv("KDLAB_DATA", str(tmp_path / "data"))

    def write(body, name="01_a"):
        chapter = tmp_path / "notebooks" / f"{name}.py"
        chapter.write_text(HEAD + body)
        return chapter

    return write


def depends_on(chapter):
    return {file.relative_to(build.ROOT / "kdlab").as_posix() for file in build.depends_on(chapter)}


def test_a_chapter_depends_on_the_modules_that_it_imports_and_their_data(small_book):
    chapter = small_book("# %%\nfrom kdlab.losses import soft\n")
    assert depends_on(chapter) == {"__init__.py", "losses/__init__.py", "losses/soft.py", "files.py"}
    chapter = small_book("# %%\nfrom kdlab.losses import hardest as h\n")
    assert depends_on(chapter) == {"__init__.py", "losses/__init__.py", "losses/hard.py"}
    chapter = small_book("# %%\nimport kdlab.losses\n")
    assert {"losses/soft.py", "losses/hard.py", "files.py"} <= depends_on(chapter)
    chapter = small_book("# %%\nfrom kdlab import losses\n")
    assert {"losses/soft.py", "losses/hard.py", "files.py"} <= depends_on(chapter)
    chapter = small_book("# %%\ndef late():\n    from kdlab.figures.dial import dial\n")
    found = {
        "figures/dial.py",
        "figures/dial.js",
        "figures/sets/a.json",
        "figures/sets/b.json",
        "losses/hard.py",
    }
    assert depends_on(chapter) == {"__init__.py", "figures/__init__.py", "losses/__init__.py"} | found
    assert "figures/dial.js" not in depends_on(small_book("# %%\nfrom kdlab.figures import dots\n"))
    assert "losses/soft.py" in depends_on(small_book('# %%\nCODE = "import torch; from kdlab.losses import soft"\n'))
    assert depends_on(small_book("# %%\nimport torch\n")) == set()


def test_the_first_chapter_does_not_depend_on_the_runner():
    found = {file.relative_to(ROOT / "kdlab").as_posix() for file in build.depends_on(CHAPTERS[0])}
    assert "study/display.py" in found
    assert not {"study/runner.py", "study/cluster.py", "study/chapters.py", "__main__.py"} & found


@pytest.mark.filterwarnings("ignore")
def test_a_chapter_runs_again_only_when_something_it_depends_on_changed(small_book, tmp_path):
    reads = "# %%\nimport os\nfrom kdlab.files import note_read\nnote_read(os.environ['KDLAB_DATA'] + '/a.bin')\n"
    chapter = small_book(reads)
    assert not build.unchanged(chapter, "cpu")
    build.execute_all([chapter], "cpu", 1)
    assert build.unchanged(chapter, "cpu") and not build.unchanged(chapter, "gpu")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "unrelated.bin").write_bytes(b"1")
    (tmp_path / "kdlab" / "losses" / "hard.py").write_text("hard = hardest = 2\n")
    assert build.unchanged(chapter, "cpu")
    (tmp_path / "data" / "a.bin").write_bytes(b"1")
    assert not build.unchanged(chapter, "cpu")
    build.execute_all([chapter], "cpu", 1)
    assert build.unchanged(chapter, "cpu")
    for name, text in {"kdlab/files.py": "x = 2\n", "requirements.lock": "torch==2.14.0\n"}.items():
        before = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text)
        assert not build.unchanged(chapter, "cpu")
        (tmp_path / name).write_text(before)
        assert build.unchanged(chapter, "cpu")
    small_book(reads + "print(2)\n")
    assert not build.unchanged(chapter, "cpu")


@pytest.mark.filterwarnings("ignore")
def test_a_failing_chapter_is_told_in_a_sentence_and_does_not_replace_the_last_good_one(small_book):
    chapter = small_book("# %%\nprint('good')\n")
    (good,) = build.execute_all([chapter], "cpu", 1)
    before = good.read_bytes()
    small_book("# %%\nx = 1\n\n# %%\nassert x == 2, 'x is one'\n")
    with pytest.raises(build.BuildError, match=r"01_a\.py, cell \d+ .*assert x == 2.* raised AssertionError: x is one"):
        build.execute(chapter, "cpu")
    assert good.read_bytes() == before


@pytest.mark.filterwarnings("ignore")
def test_one_failure_does_not_lose_the_others_and_all_are_told_in_the_order_of_the_book(small_book, capsys):
    sources = [
        small_book("# %%\nimport time; time.sleep(1); raise ValueError('the first')\n", "01_a"),
        small_book("# %%\nraise ValueError('the second')\n", "02_b"),
        small_book("# %%\nprint('fine')\n", "03_c"),
    ]
    with pytest.raises(build.BuildError, match=r"(?s)01_a.py, .*the first\n  .*02_b.py, .*the second$"):
        build.execute_all(sources, "cpu", 2)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    assert [line.split()[:3] for line in said] == [
        ["[1/3]", "01_a", "failed"], ["[2/3]", "02_b", "failed"], ["[3/3]", "03_c", "executed"]
    ]  # fmt: skip
    assert build.unchanged(sources[2], "cpu") and not build.unchanged(sources[1], "cpu")


@pytest.mark.filterwarnings("ignore")
def test_chapters_run_side_by_side_each_with_one_thread_in_their_own_folder(small_book, tmp_path):
    meets = """
# %%
import os, pathlib, time, torch
pathlib.Path("{me}").touch()  # the folder of the notebooks
end = time.monotonic() + 60
while not pathlib.Path("{other}").exists():
    assert time.monotonic() < end, "the other did not run at the same time"
    time.sleep(0.05)
assert torch.get_num_threads() == 1 and os.environ["OMP_NUM_THREADS"] == "1"
"""
    sources = [small_book(meets.format(me=me, other=other), f"0{me}_a") for me, other in (("1", "2"), ("2", "1"))]
    paths = build.execute_all(sources, "cpu", 2)
    assert [path.stem for path in paths] == ["01_a", "02_a"]
    assert (tmp_path / "notebooks" / "1").exists()


def test_what_takes_longest_comes_first(small_book, monkeypatch, capsys):
    sources = [
        small_book(f"# %% [markdown]\n# *Needs: one CPU core and {needs}.*\n", f"0{number}_a")
        for number, needs in enumerate(("a few seconds", "about four minutes", "about a minute and a half"))
    ]
    order = []
    monkeypatch.setattr(build, "execute", lambda chapter, *a, **k: order.append(chapter.stem) or 1.0)
    assert [path.stem for path in build.execute_all(sources, "cpu", 1)] == ["00_a", "01_a", "02_a"]
    assert order == ["01_a", "02_a", "00_a"]
    assert "2 of 3 executed, about 1 min left" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("running", "waiting", "jobs", "seconds"),
    [([], [], 2, 0), ([60.0], [], 2, 60), ([60.0, 20.0], [50.0, 30.0], 2, 90), ([60.0, 20.0], [50.0, 30.0], 4, 60),
     ([5.0], [10.0, 10.0], 1, 25)],
)  # fmt: skip
def test_the_time_left_is_that_of_the_place_that_ends_last(running, waiting, jobs, seconds):
    assert build.time_left(running, waiting, jobs) == seconds


def test_every_chapter_says_what_time_it_needs():
    for chapter in CHAPTERS:
        needs = re.search(r"^# \*Needs:.*", chapter.read_text(), re.MULTILINE)[0]
        assert any(words in needs for words in build.NEEDS), needs


@pytest.mark.filterwarnings("ignore")
def test_a_stale_kernel_of_the_same_name_is_not_taken(small_book, tmp_path, monkeypatch):
    stale = tmp_path / "jupyter" / "kernels" / "python3"
    stale.mkdir(parents=True)
    (stale / "kernel.json").write_text('{"argv": ["false"], "display_name": "old", "language": "python"}')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    build.execute(small_book(f"# %%\nimport sys\nassert sys.executable == {sys.executable!r}\n"), "cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux alone")
@pytest.mark.filterwarnings("ignore")
def test_a_forked_kernel_is_as_one_that_was_started(small_book):
    of_its_own = """
# %%
import os, subprocess, sys, time, __main__
assert "json" in sys.modules and not hasattr(__main__, "serve")
assert os.environ["OMP_NUM_THREADS"] == "1" and os.environ["KDLAB_TRACE"].endswith("01_a.trace")
assert os.path.basename(os.getcwd()) == "notebooks" and os.getpgid(0) == os.getpid()
os.write(1, b"1234\\n")  # nobody takes it for the number of a kernel
assert subprocess.run([sys.executable, "-c", "raise SystemExit(3)"]).returncode == 3
while time.process_time() < 1: pass
"""
    dying = "# %%\nimport os\nos._exit(1)\n"
    before = build.processor_seconds()
    with KernelServer({}, imported=["json", "a_package_that_nobody_has"]) as server:
        build.execute(small_book(of_its_own), "cpu", server=server)
        with pytest.raises(build.BuildError, match="02_a"):
            build.execute(small_book(dying, "02_a"), "cpu", server=server)
    assert not OwnKernel.running
    assert build.processor_seconds() - before > 1  # the kernels' time is counted


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere kernels have ports")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("forked", [False, True])
@pytest.mark.parametrize(("name", "transport"), [("a", "ipc"), ("a" * 80, "tcp")])
def test_a_kernel_takes_no_port_and_leaves_no_socket(small_book, monkeypatch, forked, name, transport):
    """A port that was free when it was chosen may be another kernel's when this one binds it. In a folder of a long name it takes ports."""
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        folder = Path(short) / name
        folder.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        own = f"# %%\nfrom ipykernel.kernelapp import IPKernelApp\nassert IPKernelApp.instance().transport == {transport!r}\n"
        with KernelServer({}, imported=["ipykernel.kernelapp"]) as server:
            build.execute(small_book(own), "cpu", server=server if forked else None)
        assert not list(folder.glob("kernel-*"))


@pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux alone")
def test_what_forks_kernels_has_one_thread(tmp_path):
    """Threads that hold a lock are not there in the copy, and the lock is."""
    if importlib.util.find_spec("pyarrow") is None:
        pytest.skip("pyarrow is not installed")
    with KernelServer({}, imported=["pyarrow"]) as server:
        server.fork(["--version"], {}, str(tmp_path))  # what it answers, once it has imported
        assert len(os.listdir(f"/proc/{server.process.pid}/task")) == 1


@pytest.mark.filterwarnings("ignore")
def test_an_interruption_ends_the_chapters_that_run(small_book, tmp_path, monkeypatch):
    chapter = small_book("# %%\nimport pathlib, time\npathlib.Path('began').touch()\ntime.sleep(1000)\n")

    def interrupted(futures):
        while not (tmp_path / "notebooks" / "began").exists():
            time.sleep(0.05)
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "as_completed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build.execute_all([chapter], "cpu", 1)  # returns, since the kernel was killed
    assert not OwnKernel.running and not build.unchanged(chapter, "cpu")


def test_a_cell_that_may_raise_is_not_let_through(small_book):
    chapter = small_book('# %% tags=["raises-exception"]\nraise ValueError("no")\n')
    with pytest.raises(build.BuildError, match="ValueError: no"):
        build.execute(chapter, "cpu")


def test_a_chapter_promises_the_time_of_this_build():
    text = "# T\n\n*Needs: one CPU core, and about two minutes for the live part.*"
    assert (
        build.as_it_took(text, 229)
        == "# T\n\n*Needs: one CPU core, and 4 minutes (as in this build) for the live part.*"
    )
    assert "50 seconds (as in this build)." in build.as_it_took("*Needs: one CPU core and half a minute.*", 50)
    assert build.as_it_took("It needs two minutes.", 50) == "It needs two minutes."


def test_what_the_theme_leaves_without_a_name_gets_one():
    page = '<div id="pst-primary-sidebar" class="a"><details><summary><span class="toctree-toggle"></span></summary>'
    mended = build.accessible(page + '<div role="doc-biblioentry">')
    assert mended.count("aria-label") == 2 and 'role="region"' in mended and 'role="listitem"' in mended


def test_a_formula_stays_with_its_brackets_and_a_page_says_what_it_is_without_javascript():
    formula = r'<span class="math">\(T\)</span>'
    page = (
        f'<script src="../mathjax/startup.js"></script><article class="bd-article"><p>At ({formula}), {formula} is.</p>'
    )
    badge = '<p class="kd-records kd-badge">seen · 2026-11-30</p>'
    mended = build.unbroken(page + badge)
    assert f'At <span class="kd-whole">({formula}),</span> {formula} is.' in mended
    assert "seen · <time>2026-11-30</time>" in mended and "are shown as their TeX source" in mended
    assert build.unbroken(badge.replace("2026-11-30", "30")) == badge.replace("2026-11-30", "30")


def test_columns_of_words_on_the_status_page_begin_at_the_left(tmp_path):
    made = {
        "provenance": build.provenance(),
        "seconds": 183.4,
        "finished": "2026-11-30T00:59:01+00:00",
        "profile": "cpu",
    }
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A & B")], metadata={"kdlab": made})
    nbformat.write(notebook, tmp_path / "07_a.ipynb")
    page = build.status([tmp_path / "07_a.ipynb"])
    assert '<td><a href="../notebooks/07_a.html">7. A &amp; B</a></td><td>183\xa0s</td>' in page
    assert '<td class="kd-words"><time>2026-11-30</time> 00:59</td><td class="kd-words"><code>' in page
    assert '<td class="kd-words">not yet</td>' in page


def test_a_page_of_the_cookbook_is_executed_in_an_empty_folder(small_book):
    (build.ROOT / "book" / "cookbook").mkdir()
    page = build.ROOT / "book" / "cookbook" / "a.md"
    code = (
        "import os\nif not os:\n    from kdlab.losses import soft\nprint(os.listdir())\nopen('student.pt', 'w').close()"
    )
    page.write_text(f'# A\n\nYou have.\n\n## Yours\n\n```python tags=["hide-cell"]\n{code}\n```\n\n## Else\n')
    assert "losses/soft.py" in depends_on(page) and "losses/hard.py" not in depends_on(page)
    build.execute(page, "cpu")
    cells = build.read_executed(build.executed_path(page, "cpu")).cells
    assert [cell.source.splitlines()[0] for cell in cells] == ["# A", "## Yours", "import os", "## Else"]
    assert cells[2].outputs[0].text == "[]\n" and cells[2].metadata.tags == ["hide-cell"]
    assert [path.name for path in page.parent.iterdir()] == ["a.md"] and build.unchanged(page, "cpu")


@pytest.mark.filterwarnings("ignore")
def test_a_notebook_for_readers_is_stamped_and_leaves_its_parameters_to_them(small_book):
    (path,) = build.execute_all([small_book("# %%\nprint(1)\n")], "cpu", 1)
    (build.ROOT / "pyproject.toml").write_text(
        '[project]\ndependencies = ["torch>=2.6"]\n[project.optional-dependencies]\n'
        + "".join(f"{e} = []\n" for e in EXTRAS)
    )
    published = Repository("https://github.com/someone/fork", "0" * 40)
    for where in (None, published):
        cells = build.for_readers(nbformat.read(path, 4), where).cells
        assert "Executed" in cells[1].source and ("git" in cells[2].source) == (where is published)
        assert [c.source for c in cells if "profile" in c.source and c.cell_type == "code"] == ['profile = "cpu"']


# The ledger as it is, without data and without a build


def test_the_ledger_is_sound():
    assert len(build.claims()["claim"]) == 42


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"verdict": "verifyed"}, "Claim A1: a verdict is one of proved, .*, not 'verifyed'"),
        ({"id": "A2"}, "There are two claims A2"),
        ({"id": "D1"}, "Claim D1 is of no source"),
        ({"id": "a1"}, "Claim a1 is of no source"),
        ({"text": " "}, "Claim A1 has no text"),
        ({"errata": "x"}, "Claim A1 has an unknown errata"),
        ({"erratum": "x"}, "an erratum has a title and a text"),
        ({"erratum": " ", "erratum_title": "x"}, "an erratum has a title and a text"),
        ({"verdict": "corrected"}, "Claim A1 is corrected, and its erratum is missing"),
        ({"records": "records of smal"}, "there is no plan 'smal'"),
    ],
)
def test_a_slip_in_the_ledger_is_said(change, sentence):
    stated = build.claims()
    stated["claim"][0] |= change
    (wrong,) = build.wrong_claims(stated)
    assert re.search(sentence, wrong)


def test_every_claim_has_its_cell_and_every_cell_its_claim():
    given, outcomes = [], set()
    for chapter in CHAPTERS:
        for node in ast.walk(ast.parse(chapter.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "verdict":
                claim, outcome = node.args[:2]
                given.append(claim.value)
                outcomes |= {part.value for part in outcome_values(outcome)}
    judged = {claim["id"] for claim in build.claims()["claim"] if "verdict" in claim}
    waiting = {claim["id"] for claim in build.claims()["claim"] if "verdict" not in claim and "records" in claim}
    assert judged <= set(given) <= judged | waiting  # the others are open
    assert outcomes <= set(build.VERDICTS)


def outcome_values(node):
    """The texts that an outcome may be, where it stands as a text or as a choice of them."""
    if isinstance(node, ast.IfExp):
        return [*outcome_values(node.body), *outcome_values(node.orelse)]
    return [node] if isinstance(node, ast.Constant) else []


def test_what_the_ledger_cites_is_in_the_bibliography():
    text = (ROOT / "book" / "evidence" / "claims.toml").read_text(encoding="utf-8")
    known = set(
        re.findall(r"^@\w+\{(\S+),", (ROOT / "book" / "references.bib").read_text(encoding="utf-8"), re.MULTILINE)
    )
    cited = {key for keys in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", text) for key in keys.split(",")}
    assert cited and cited <= known


def test_names_in_the_bibliography_are_written_as_they_are():
    """An accent in TeX's spelling would bring the whole name into a label: [SVerdu16]."""
    entries = parse_file(ROOT / "book" / "references.bib").entries.values()
    people = [str(person) for entry in entries for person in entry.persons["author"]]
    assert len(people) > 100 and not [name for name in people if "\\" in name]


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
    (tmp_path / "book" / "evidence" / "claims.toml").write_text(
        'introduction = "# L"\nerrata = "# E"\n[[source]]\nid = "A"\ntitle = "A"\nnote = "n"\n'
        '[[claim]]\nid = "A1"\ntext = "t"\nverdict = "proved"\n[[claim]]\nid = "A2"\ntext = "t"\n'
    )


def test_the_ledger_takes_verdicts_from_cells_alone(one_claim):
    page = build.ledger(said("A1", "proved"))
    assert "01_a.html#claim-a1" in page and "No chapter has tested it yet" in page
    assert "not measured" in build.ledger(said("A1", "not measured"))
    with pytest.raises(build.BuildError, match="a cell says refuted, book/evidence/claims.toml proved"):
        build.ledger(said("A1", "refuted"))
    with pytest.raises(build.BuildError, match="A1 should be proved, but no executed cell"):
        build.ledger({})
    with pytest.raises(build.BuildError, match="does not know: A9"):
        build.ledger(said("A1", "proved") | said("A9", "proved"))


def test_a_claim_has_one_sentence_first_then_numbers_and_where_they_are_from():
    verdict = said("A1", "depends")["A1"] | {
        "finding": "Nobody wins. At $q. P$ the difference is 2.5.", "condition": "true in a limit", "figure": "fig-gap", "chapter": "07_a",
    }  # fmt: skip
    claim = {"id": "A1", "text": "t", "verdict": "depends", "records": "records of small"}
    lines = build.ledger_entry(claim, verdict)
    assert 'data-outcome="depends: true in a limit"' in lines[0]
    plain, numbers, links = (line for line in lines if "kd-finding" in line)
    assert "Nobody wins." in plain and "2.5" not in plain and "2.5" in numbers
    assert all(
        goal in links for goal in ("07_a.html#claim-a1", "07_a.html#fig-gap", "status.html#records", "2026-01-01")
    )


def test_the_figure_of_a_verdict_is_the_last_one_above_it(tmp_path):
    figure = [
        nbformat.v4.new_output("display_data", {"text/html": f'<figure class="kd-figure" id="fig-{name}">'})
        for name in "abc"
    ]
    verdict = nbformat.v4.new_output(
        "display_data", {build.VERDICT: {"claim": "A1", "outcome": "proved", "finding": "f"}}
    )
    cells = [nbformat.v4.new_code_cell("…", outputs=outputs) for outputs in (figure[:2], [verdict], figure[2:])]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kdlab": {}})
    nbformat.write(notebook, tmp_path / "01_a.ipynb")
    assert build.verdicts([tmp_path / "01_a.ipynb"])["A1"]["figure"] == "fig-b"


def test_the_ledger_and_its_filter_name_the_same_things(one_claim):
    script, page = (
        (ROOT / "book" / "programs" / "ledger.js").read_text(),
        build.ledger(said("A1", "proved")).split("<script>")[0],
    )
    for here, there in (
        ('"kd-filter"', 'id="kd-filter"'),
        ("dataset.outcome", 'data-outcome="proved"'),
        (".kd-claim", 'class="kd-claim"'),
    ):
        assert here in script and there in page
    assert "\n\n" not in script  # a blank line would end it, as HTML in Markdown


def test_the_sidebar_numbers_chapters_as_the_text_calls_them():
    parts = build.yaml.safe_load((ROOT / "_toc.yml").read_text())["parts"]
    numbered = [chapter["file"] for part in parts if part.get("numbered") == 1 for chapter in part["chapters"]]
    assert [int(Path(name).name[:2]) for name in numbered] == list(range(1, len(CHAPTERS) + 1))
    assert all(name.startswith("notebooks/") for name in numbered)


def test_the_landing_pages_route_has_the_times_of_the_build(tmp_path):
    cells = [
        nbformat.v4.new_markdown_cell("# A title\n" + "word " * 597),
        nbformat.v4.new_markdown_cell("```{exercise}\n" + "x " * 900 + "\n```"),
    ]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kdlab": {"seconds": 120.0}})
    paths = [tmp_path / f"{number:02d}_a.ipynb" for number in (1, 2, 3)]
    for path in paths:
        nbformat.write(notebook, path)
    assert build.route(paths) == (
        "- {doc}`1. A title <../notebooks/01_a>` (3 min)\n- {doc}`3. A title <../notebooks/03_a>` (3 min)\n\nIn all 6 minutes to read; their cells ran in 4 minutes."
    )


def test_the_landing_page_has_six_findings_each_with_its_chapter():
    given = {"B9": {"chapter": "03_why_t_squared", "finding": "Exact in the limit only. On logits 2.5. More."}}
    lines = build.findings(given, [path.with_suffix(".ipynb") for path in CHAPTERS]).splitlines()
    assert len(lines) == 6 and "Exact in the limit only. On logits 2.5" in lines[0] and "More" not in lines[0]
    assert all(re.search(r"\(\{doc\}`chapter \d+ <\.\./notebooks/\d\d_\w+>`\)\.$", line) for line in lines)
    text = (ROOT / "book" / "index.md").read_text()
    assert not re.search(r"\d+\.\d", text)  # no number by hand


@pytest.mark.parametrize(
    ("page", "wrong"),
    [
        ('<img src="a.png" alt="">', "image without text"),
        ('<script src="https://cdn.example/x.js"></script>', "loads https://cdn.example"),
        ('<a href="b.html">', "does not exist"),
        ('<a href="#nowhere">', "anchor does not exist"),
        ('<a href="data/01.gap.csv">', "does not exist"),
    ],
)
def test_pages_that_are_not_whole_are_refused(tmp_path, page, wrong):
    (tmp_path / "index.html").write_text(page)
    with pytest.raises(build.BuildError, match=wrong):
        build.check_pages(tmp_path)


def test_a_saved_notebook_has_no_links_of_a_page(tmp_path):
    saved = tmp_path / "_sources" / "notebooks" / "01_a.ipynb"
    saved.parent.mkdir(parents=True)
    saved.write_text("{}")
    build.check_pages(tmp_path)
    saved.write_text('{"text": "<a class=\\"kd-download\\">"}')
    with pytest.raises(build.BuildError, match="lead nowhere"):
        build.check_pages(tmp_path)


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda c: c.stem)
def test_every_chapter_is_numbered_listed_and_has_the_parameter(chapter):
    assert chapter in [ROOT / c.relative_to(build.ROOT) for c in build.chapters()]
    assert declared_in(chapter)["profile"].default == "cpu"
    notebook = read_chapter(chapter)
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

    for path in (ROOT / "book" / "evidence" / "records").glob("*.json"):
        record = read_record(path)
        assert path.stem.endswith(record["spec_hash"][:8])
        if "checkpoint" in record:
            assert (
                sha256(ROOT / "book" / "evidence" / "checkpoints" / record["checkpoint"]["file"])
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
    text = re.sub(r"(`{3,}).*?\1|`[^`]*`|\$[^$]*\$|95 % interval", " ", text, flags=re.DOTALL)
    assert re.findall(r"\d+(?:\.\d+)?\s*(?:%|per cent|points?\b|nats?\b|images/s)", text) == []


def test_the_books_records_are_whole():
    assert verify(ROOT / "book" / "evidence", every_spec()) == []


def test_the_page_of_parameters_has_every_one_and_what_it_is():
    page = build.parameters()
    for chapter in CHAPTERS:
        for parameter in declared_in(chapter).values():
            assert f"| `{parameter.name}` | " in page and f" | `{parameter.default!r}` | {parameter.comment} |" in page


def test_the_status_page_has_a_headline_for_every_record():
    said = {}
    for path in (ROOT / "book" / "evidence" / "records").glob("*.json"):
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
    assert (
        headline({"test": None, "diverged": "the loss of step 3 is not finite"}) == "the loss of step 3 is not finite"
    )


def test_a_page_that_weighs_too_much_is_refused(tmp_path, monkeypatch):
    (tmp_path / "book").mkdir()
    page = tmp_path / "book" / "index.html"
    page.write_text('<script src="../a.js?v=1"></script><link href="b.css" rel="stylesheet"/>' + 100 * " ")
    (tmp_path / "a.js").write_bytes(bytes(range(256)) * 4)
    (tmp_path / "book" / "b.css").write_text("p {}")
    (tmp_path / "alone.js").write_text(10_000 * "x")  # which no page loads
    assert {path.name for path in weight.loaded(page, tmp_path)} == {"a.js", "b.css"}
    build.check_pages(tmp_path)
    monkeypatch.setattr(weight, "HEAVIEST_PAGE", 100)
    with pytest.raises(build.BuildError, match=r"book/index.html has 0.00 MB, more than 0.0"):
        build.check_pages(tmp_path)
    monkeypatch.setattr(weight, "HEAVIEST_PAGE", 10_000)
    monkeypatch.setattr(weight, "HEAVIEST_LOAD", 300)  # the script alone has more, packed
    with pytest.raises(build.BuildError, match=r"book/index.html loads 0.00 MB, packed"):
        build.check_pages(tmp_path)


def test_the_icons_of_the_theme_become_a_font_of_those_that_are_shown(tmp_path):

    from fontTools.ttLib import TTFont

    theme = (
        Path(importlib.util.find_spec("pydata_sphinx_theme").origin).parent / "theme" / "pydata_sphinx_theme" / "static"
    )
    for part in ("styles/pydata-sphinx-theme.css", "vendor/fontawesome", "scripts/fontawesome.js"):
        target = tmp_path / "_static" / part
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (theme / part).is_dir() else shutil.copyfile)(theme / part, target)
    page = tmp_path / "index.html"
    page.write_text(
        '<head><script src="_static/scripts/fontawesome.js?digest=1"></script></head><i class="fa-solid fa-bars"></i>'
    )
    weight.lighten(tmp_path)
    (font,) = (tmp_path / weight.FONTS).iterdir()
    styles = (tmp_path / weight.STYLES).read_text(encoding="utf-8")
    assert page.read_text() == '<head></head><i class="fa-solid fa-bars"></i>' and font.stat().st_size < 20_000
    assert (
        ord("\uf0c9") in TTFont(font).getBestCmap() and ord("\uf0f3") in TTFont(font).getBestCmap()
    )  # bars; an admonition's bell
    assert ".fa-bars" in styles and ".fa-anchor:" not in styles and "icons.woff" in styles


def test_formulae_in_outputs_alone_load_mathjax_too(tmp_path):
    (tmp_path / "notebooks").mkdir()
    tags = '<script>window.MathJax = {}</script><script defer="defer" src="../_static/../mathjax/startup.js"></script>'
    pages = {"a": f"<head>{tags}</head>", "b": '<head></head><span class="math">', "c": "<head></head>"}
    for name, text in pages.items():
        (tmp_path / "notebooks" / f"{name}.html").write_text(text)
    weight.with_mathematics(tmp_path)
    loads = {name: "mathjax" in (tmp_path / "notebooks" / f"{name}.html").read_text() for name in pages}
    assert loads == {"a": True, "b": True, "c": False}


def test_the_reference_has_a_page_a_room():
    pages = build.reference((ROOT / "book" / "api.md").read_text(encoding="utf-8"))
    assert "automodule" not in pages["api"] and all("automodule" in pages[name] for name in build.ROOMS)
    listed = (ROOT / "_toc.yml").read_text()
    assert all(f"- file: book/{name}\n" in listed for name in pages)
    with pytest.raises(build.BuildError, match="Cooking is on no page"):
        build.reference("# API\n\n## Cooking\n\n.. automodule:: kdlab.cooking\n")


def test_the_search_leads_to_the_chapter_on_a_subject():
    assert set(build.SUBJECTS) <= {int(path.stem[:2]) for path in CHAPTERS}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A title\n\nText.")])
    found = build.found_by(notebook, 17)
    assert found.cells[0].source.startswith("# A title\n\n```{index} ! on-policy\n```\n")
    assert build.title_of(found) == "A title" and notebook.cells[0].source == "# A title\n\nText."


def test_every_run_is_on_the_explorers_page_and_in_its_files(tmp_path):
    page = build.explored(tmp_path)
    every = json.loads((tmp_path / "data" / "records.json").read_text())
    lines = (tmp_path / "data" / "records.csv").read_text().splitlines()
    assert len(every) == len(lines) - 1 == len(list((ROOT / "book/evidence/records").glob("*.json")))
    assert {run["plan"] for run in every} == set(re.findall(r"<summary>([\w-]+), \d+ runs?</summary>", page))
    assert (
        all(run["record"] in page for run in every[::20])
        and "\n\n" not in page.split("<script>")[1].split("</script>")[0]
    )
