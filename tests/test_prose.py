"""Prose that no cell makes: which sentences count, and how many each chapter may have."""

import ast
import re
import sys
from pathlib import Path

import pytest

from kdlab.study import prose

CHAPTERS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.py"))

#: How many a chapter may have. They only shrink, and all are under ten: definitions and quotations.
CEILINGS = {
    1: 4, 2: 5, 3: 3, 4: 4, 5: 4, 6: 1, 7: 6, 8: 2, 9: 1, 10: 4, 11: 4, 12: 9, 13: 8, 14: 1, 15: 3, 16: 7, 17: 9, 18: 8, 19: 7, 20: 8, 21: 8, 22: 3, 23: 2, 24: 1, 25: 0, 26: 0,
}  # fmt: skip


@pytest.mark.parametrize(
    "sentence",
    [
        "The student gains 3 points.", "It is 0.5 at the start.", "Half of them fail.", "Ten times as many were kept.", "It is better.",
        "Accuracy is higher there.", "The mean says more than the median.", "DIST does best.", "It is as good as the teacher.",
        "The gap doubles.", "**The nearest** is last.", "- In a list 20 % are lost.",
    ],
)  # fmt: skip
def test_what_tells_of_a_result_is_listed(sentence):
    assert prose.unmade(f"All is told.\n\n{sentence} Nothing else.") == [sentence.removeprefix("- ")]


@pytest.mark.parametrize(
    "sentence",
    [
        "The loss is $3 < 4$.", "Run `best(3)` now.", "“The best of 3,” they say.", "It was 3 points better {cite}`a2015b`.", "See GPT-2 and B10.",
        "# The best 3", "| best | 3 |", "How much better is it?", "Text has at least one token.", "```{exercise}\nFind the best 3.\n```",
        "```python\nbest = 3\n```", "Read chapter 3 again.", "A bound says no more than that.", "1. first\n2. second",
        "Entropy is largest for the uniform one. <!-- by definition -->",
    ],
)  # fmt: skip
def test_what_is_definition_or_quotation_is_not(sentence):
    assert prose.unmade(sentence) == []


def test_a_mark_is_of_its_own_sentence():
    text = "One is less than two. <!-- by definition --> Ours is better. *Half is less than one.* <!-- by definition -->\nTheirs is worse."
    assert prose.unmade(text) == ["Ours is better.", "Theirs is worse."]
    assert prose.unmade(text, marked=True) == ["One is less than two.", "*Half is less than one."]


def test_solutions_are_prose_and_code_between_is_not():
    text = "```{solution} ex\nIt is larger.\n```\n\nAnd it is faster.\n\n```python\nx = 3 * best\n```\n"
    assert prose.unmade(text) == ["It is larger.", "And it is faster."]


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda c: c.stem)
def test_a_chapter_has_no_more_sentences_that_no_cell_makes(chapter):
    found = prose.chapter_sentences(chapter)
    assert len(found) <= CEILINGS[int(chapter.stem[:2])], (
        "say it by a statement of kdlab.study.statements:\n" + "\n".join(found)
    )


def forgotten(source: str) -> list[str]:
    """Names in braces that an f-string would have filled, where a piece of one was written without its f."""
    tree = ast.parse(source)
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    pieces = [
        piece.value
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for piece in node.values
        if isinstance(piece, ast.Constant)
    ]
    found = [match for piece in pieces for match in re.finditer(r"(?<![\\a-zA-Z^_])\{([A-Za-z]\w+)(:[^{}]*)?\}", piece)]
    return [match[0] for match in found if match[1] in names]


def test_a_forgotten_f_is_found():
    assert forgotten('error = 1\nprint(f"{error} of " "{error:.0e}")') == ["{error:.0e}"]
    assert forgotten('frac = 1\nprint(rf"{frac} \\frac{{frac}}{{2}} " "{other}")') == []


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda c: c.stem)
def test_no_piece_of_an_f_string_forgets_its_f(chapter):
    assert forgotten(chapter.read_text()) == []


def test_the_command_lists_them_and_the_report_counts(monkeypatch, capsys, tmp_path):
    chapter = tmp_path / "03_a.py"
    chapter.write_text(
        "# %% [markdown]\n# # A title\n#\n# This is better. So be it. One is less than two. <!-- by definition -->\n\n# %%\nx = 1\n"
    )
    monkeypatch.setattr(sys, "argv", ["prose", str(chapter)])
    prose.main()
    said = capsys.readouterr().out
    assert "03_a\n  - This is better.\n  (marked) One is less than two.\n" in said
    assert said.endswith("1 (3: 1), and 1 marked as definitions\n")
