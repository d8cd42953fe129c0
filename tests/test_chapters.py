"""Every chapter with parameters other than its own, small: it runs to its end, and says what is so."""

import ast
import html
import inspect
import re
from pathlib import Path

import pytest
from conftest import REAL_DATA

from kdlab import figures
from kdlab.study import display, statements, verdicts
from kdlab.study.chapters import execute, find_chapter, read_chapter
from kdlab.study.parameters import declared_in

#: One chapter a line; with these it takes less than 20 seconds of a slow core.
OTHER = {
    1: {
        "temperatures": [0.5, 1.0, 3.0, 8.0],
        "teacher_examples": 1000,
        "sizes": [64],
        "lengths": [20],
        "seeds": [3],
        "photographs": 600,
    },
    2: {"classes": 70, "kept": 7, "betas": [0.3], "temperatures": [1.0, 20.0], "seed": 3},
    3: {"temperatures": [2.0, 6.0, 20.0], "hot": [5.0, 50.0, 500.0], "classes": 70, "train_images": 320, "seed": 3},
    4: {"sizes": [20, 300], "temperature": 2.0, "temperatures": [1.0, 2.0, 50.0], "steps": 5, "seed": 3},
    5: {
        "printed": [0.5, 0.03, 0.27, 0.3, 0.02, 0.18],
        "temperature": 3.0,
        "classes": 70,
        "searches": 4,
        "images": 200,
        "seed": 3,
    },
    6: {"seeds": [2], "alpha": 0.7, "live_images": 128, "live_epochs": 1, "live_test": 300},
    7: {
        "skew": 0.2,
        "restarts": 2,
        "dial_steps": 6,
        "hidden_units": 3,
        "epochs": 1,
        "learning_rates": [0.05, 0.2],
        "seeds": [3],
    },
    8: {"classes": 4, "train_images": 64, "epochs": 1, "steps": 16, "seeds": [3]},
    9: {"candidates": [4, 32], "tau": 0.2, "epochs": 2, "long_epochs": 3, "seeds": [3]},
    10: {"seeds": [3], "epochs": 2, "temperature": 2.0, "top_k": 5, "picture_seeds": [1], "pictures": 64},
    11: {"temperature": 2.0, "beta": 0.1, "classes": 7, "lengths": [5, 3], "max_length": 8},
    12: {"margin": 0.7, "runs": [1, 4], "seeds": [3], "epochs": 4, "images": 64},
    13: {"live_temperatures": [1.0, 3.0, 30.0], "images": 64, "epochs": 2, "seed": 3, "margin": 2.0},
    14: {"margin": 0.5, "temperature": 3.0, "epochs": 4, "seeds": [3], "stored": False},
    15: {
        "candidates": ["alone", "kd", "dkd", "dist", "rkd"],
        "batch": 16,
        "rounds": 3,
        "same_cost": 0.2,
        "margin": 0.5,
    },
    16: {"temperatures": [1.0, 2.0, 4.0, 16.0], "blocks": 4, "copies": [1, 3], "learned": 8, "seeds": [3]},
    17: {"blocks": 4, "seeds": [3], "epochs": 2, "read": 12, "continuations": 3},
    18: {"token_counts": [32, 128], "text_blocks": 1, "entries": 5, "seeds": [3], "epochs": 1},
    19: {"read_blocks": 4, "prompt_count": 4, "written": 8, "draft_length": 2, "draft_lengths": [1, 2]},
    20: {"toy": [0.6, 0.3, 0.1], "context_count": 2, "depth": 2, "read_blocks": 8, "prompt_count": 12},
    21: {
        "leashes": [0.6, 2.0],
        "temperatures": [0.5],
        "drawing_steps": 5,
        "tilts": [0.0, 2.0, 3.0, 5.0, 8.0],
        "tilted_texts": 8,
    },
    22: {"query": 3, "neighbours": 3, "live_sentences": 16, "tested_sentences": 24, "learning_rate": 1e-4, "seed": 3},
    23: {"shares": [0.0, 0.8], "epochs": 4, "longer": 2, "more": 2, "seeds": [3], "read_blocks": 16},
    26: {"teacher_examples": 200, "sizes": [40, 400], "shown": 800, "seeds": [3]},
    25: {"steepness": 2.0, "shaking": 0.5, "few": 60, "lengths": [2, 6], "seeds": [3]},
    24: {"groups": 4, "contexts": 6, "symbols": 8, "spread": 0.6, "teacher_tokens": 4096, "sharing": 2, "seed": 3},
}

BOOK = Path(__file__).resolve().parents[1] / "book" / "evidence"
SOLUTION = re.compile(r"^(`{3,})\{solution\}.*?^\1$", re.DOTALL | re.MULTILINE)
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def solutions(chapter: Path) -> list[str]:
    """The code of a chapter's solutions: what stands in ```` ```python ```` within a ```` ````{solution} ````."""
    cells = [cell.source for cell in read_chapter(chapter).cells if cell.cell_type == "markdown"]
    return [code for source in cells for block in SOLUTION.finditer(source) for code in PYTHON.findall(block[0])]


def with_solutions(chapter: Path, folder: Path) -> Path:
    """A copy of a chapter that ends with the code of its solutions, a cell each."""
    cells = [chapter.read_text(encoding="utf-8"), *(f"# %%\n{code}" for code in solutions(chapter))]
    (folder / chapter.name).write_text("\n".join(cells), encoding="utf-8")
    return folder / chapter.name


def said(executed) -> str:
    """All that the cells of an executed chapter say, figures' own drawing left out, captions and alternative texts kept."""
    outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
    texts = [o.get("text", "") or o["data"].get("text/html", o["data"].get("text/plain", "")) for o in outputs]
    words = re.sub(r"<svg[^>]*?aria-label=\"([^\"]*)\".*?</svg>", r"\1 ", "\n".join(texts), flags=re.DOTALL)
    words = re.sub(r"<(script|style)\b.*?</\1>", " ", words, flags=re.DOTALL)
    return html.unescape(re.sub(r"<[^>]+>", " ", words)).replace("{,}", ",")


#: By which letter a page calls a parameter.
SYMBOLS = {"temperatures": "T", "hot": "T", "temperature": "T", "classes": "N", "sizes": "[Nn]"}


def numbers(value) -> set:
    return set(value) if isinstance(value, list) else {value}


def left_behind(text: str, symbol: str, gone: set) -> list[str]:
    """Where a text says that a symbol has one of the values that are gone: “$T=100$”, say."""
    forms = {re.escape(form) for number in gone for form in (f"{number:g}", f"{number:,.0f}")}
    return re.findall(rf"\b{symbol}\s*=\s*(?:{'|'.join(sorted(forms))})(?![\d.,]*\d)", text) if forms else []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", OTHER)
def test_a_chapter_follows_its_parameters(number, tmp_path):
    """With other parameters it runs to its end, its solutions too, and says nothing of a default's temperature or size."""
    chapter = find_chapter(str(number))
    environment = {"KDLAB_BOOK": str(BOOK)} | ({"KDLAB_DATA": REAL_DATA} if REAL_DATA else {})
    text = said(execute(with_solutions(chapter, tmp_path), OTHER[number], environment=environment))
    for symbol in set(SYMBOLS.values()):
        now, before = set(), set()
        for name, parameter in declared_in(chapter).items():
            if SYMBOLS.get(name) == symbol:
                before |= numbers(parameter.default)
                now |= numbers(OTHER[number].get(name, parameter.default))
        assert left_behind(text, symbol, before - now) == []


@pytest.mark.parametrize("chapter", sorted((BOOK.parents[1] / "notebooks").glob("*.py")), ids=lambda c: c.stem)
def test_a_solutions_code_is_python(chapter):
    for code in solutions(chapter):
        compile(code, chapter.name, "exec")


@pytest.mark.parametrize("chapter", sorted((BOOK.parents[1] / "notebooks").glob("*.py")), ids=lambda c: c.stem)
def test_a_verdict_that_depends_says_on_what(chapter):
    for call in (
        node for node in ast.walk(ast.parse(chapter.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)
    ):
        if getattr(call.func, "id", "") == "verdict" and "depends" in ast.unparse(call.args[1]):
            assert "condition" in {given.arg for given in call.keywords}, ast.literal_eval(call.args[0])


#: What makes something to be seen, and returns it.
SEEN = {
    name
    for module in (figures, display, statements, verdicts)
    for name, thing in vars(module).items()
    if inspect.isfunction(thing)
    and re.search(r"Shown|Statement|Verdict", str(inspect.signature(thing).return_annotation))
}


def unseen(code: str) -> list[str]:
    """Of a cell: what it makes to be seen and drops, since Jupyter shows the last expression alone, and none of a block."""
    tree = ast.parse(code)
    dropped = [node for node in ast.walk(tree) if isinstance(node, ast.Expr) and node is not tree.body[-1]]
    return [
        ast.unparse(node.value.func)
        for node in dropped
        if isinstance(node.value, ast.Call) and getattr(node.value.func, "id", "") in SEEN
    ]


@pytest.mark.parametrize("chapter", sorted((BOOK.parents[1] / "notebooks").glob("*.py")), ids=lambda c: c.stem)
def test_nothing_is_made_to_be_seen_and_dropped(chapter):
    for cell in read_chapter(chapter).cells:
        if cell.cell_type == "code":
            assert not unseen(cell.source), (
                f"{', '.join(unseen(cell.source))} in a block or before the last line: display(…)"
            )


@pytest.mark.parametrize(
    ("code", "dropped"),
    [
        ("table(a, b)", []),
        ("table(a, b)\nx = 1", ["table"]),
        ("if x:\n    show(figure)", ["show"]),
        ("if x:\n    display(show(figure))", []),
        ("for x in y:\n    sentence(x)\ntable(a)", ["sentence"]),
        ("with x:\n    verdict('A1', 'true')", ["verdict"]),
        ("x = above(a, b)", []),
        ("above(a, b)\nabove(b, c)", ["above"]),
    ],
)
def test_what_is_dropped(code, dropped):
    assert unseen(code) == dropped


class Assigned(ast.NodeVisitor):
    """The names that a chapter's cells assign, outside of functions and comprehensions, but from themselves (sorted, say)."""

    def __init__(self, code):
        self.names = []
        self.visit(ast.parse(code))

    def visit_Assign(self, node):
        read = {part.id for part in ast.walk(node.value) if isinstance(part, ast.Name)}
        before, self.names = self.names, []
        self.generic_visit(node)
        self.names = before + [name for name in self.names if name not in read]

    def visit_Name(self, node):
        if isinstance(node.ctx, ast.Store):
            self.names.append(node.id)

    def skip(self, node):
        pass

    visit_FunctionDef = visit_ClassDef = visit_Lambda = visit_ListComp = visit_SetComp = visit_DictComp = (
        visit_GeneratorExp
    ) = skip


@pytest.mark.parametrize("chapter", sorted((BOOK.parents[1] / "notebooks").glob("*.py")), ids=lambda c: c.stem)
def test_a_chapter_leaves_its_parameters_as_they_were_given(chapter):
    """A verdict compares them with their defaults, and what is below reads them."""
    assigned = Assigned(chapter.read_text(encoding="utf-8")).names
    for name in declared_in(chapter):
        assert assigned.count(name) == 1, f"{chapter.stem} assigns {name} again"


def test_what_a_chapter_found_stands_at_its_beginning(tmp_path):
    chapter = tmp_path / "03_a.py"
    first = "from kdlab.study.display import Findings\n\nfindings = Findings()"
    chapter.write_text(
        f'# %% tags=["parameters"]\nT: float = 2.0\n\n# %%\n{first}\n\n# %%\nfindings.show(f"At $T={{T}}$ <1.", "So.")\n'
    )
    executed = execute(chapter, {"T": 3.0})
    box, *rest = (o for cell in executed.cells for o in cell.get("outputs", []))
    assert (
        not rest
        and "<li>So.</li>" in box["data"]["text/html"]
        and "T=3.0" in box["data"]["text/html"]
        and " &lt;1" in box["data"]["text/html"]
    )


def test_code_of_solutions_is_found(tmp_path):
    chapter = tmp_path / "03_a.py"
    text = "# %% [markdown]\n# ````{solution} ex-a\n# :class: dropdown\n#\n# So:\n#\n# ```python\n# x = 1\n# ```\n# ````\n#\n# ```python\n# y = 2\n# ```\n"
    chapter.write_text(text, encoding="utf-8")
    assert solutions(chapter) == ["x = 1\n"]
    (tmp_path / "copy").mkdir()
    assert with_solutions(chapter, tmp_path / "copy").read_text(encoding="utf-8").endswith("\n# %%\nx = 1\n")


def test_a_value_of_the_default_that_is_left_is_found():
    assert left_behind("at $T=100$ and $T = 50$", "T", {100.0}) == ["T=100"]
    assert left_behind("at $T=1000$, $T=100.5$, $N=1,000$", "T", {100.0, 10.0}) == []
    assert left_behind("for $N=1,000$ classes", "N", {1000}) == ["N=1,000"]
    assert left_behind("at $T=1$", "T", set()) == []
