"""Sentences of the chapters that no cell makes: python book/prose.py [chapter]

Lists the sentences of a chapter's Markdown with a number, a comparative or a superlative. What is measured should be said by a
cell, which knows whether it is so (``kdlab.study.statements``); what is left here is definition or quotation. Formulae, code,
quotations, sentences with a citation, tables, headings, questions and exercises are not listed, nor a sentence that ends
in ``<!-- by definition -->``.
"""

import argparse
import re
import sys
from pathlib import Path

import jupytext

ROOT = Path(__file__).resolve().parents[1]
MARK = "<!-- by definition -->"

#: What is no sentence of ours: code, directives' options, formulae, quotations, references, links.
NOT_OURS = re.compile(
    r"```\{exercise\}.*?```|```(?:python|bash|text|toml|json|console)\n.*?```|```[^\n]*|^:\w+:[^\n]*|`[^`]*`(?:`[^`]*`)?|\$\$.*?\$\$|\$[^$]*\$|“[^”]*”|\]\([^)]*\)|^\|[^\n]*|^#[^\n]*",
    re.DOTALL | re.MULTILINE,
)
#: A number that is no name: not GPT-2, B10, chapter 3, 2015 or the 1. of a list.
NUMBER = r"(?<![\w.\-–{(])\d+(?:[.,]\d+)*\s?(?:%|per cent|times|points?|nats?|bits?|[a-z])"
AMOUNT = r"\b(?:half|twice|thrice|(?:one|two|three) (?:third|quarter|fifth|tenth)s?|a (?:third|quarter|fifth|tenth)|double[sd]?|halve[sd]?|(?:two|three|four|five|ten) times)\b"
COMPARATIVE = (
    r"\b(?:better|worse|further|fewer|(?:high|low|larg|small|great|fast|slow|near|clos|strong|weak|cheap|broad|sharp)er)\b|"
    r"\bas (?:much|many|good|well|bad|large|small|fast) as\b|\bthan\b"
)
SUPERLATIVE = (
    r"\b(?:best|worst|most|least|fewest|"
    r"(?:high|low|larg|small|great|fast|slow|near|far|furth|strong|weak|long|short|cheap|hard|soft|sur|tru|pur|lat|earli|commonn?|likeli|heavi|simpl|young|old)est)\b"
)
TELLS = re.compile("|".join((NUMBER, AMOUNT, COMPARATIVE, SUPERLATIVE)), re.IGNORECASE)
#: What reads like one of these and is none.
IDIOMS = re.compile(
    r"\b(?:at (?:least|most|best|worst)|rather than|other than|no more than|no less than|chapters? \d+|in half|most likely|one half|last but not least|"
    r"as well as|not least|sooner than|95 % (?:intervals?|level)|\d+ % intervals?)\b",
    re.IGNORECASE,
)


def unmade(markdown: str) -> list[str]:
    """The sentences of a Markdown cell with a number, a comparative or a superlative.

    >>> unmade("The teacher is better than we are. A softmax sums to one. It gains 3 points {cite}`a`. *Twice* as many.")
    ['The teacher is better than we are.', '*Twice* as many.']
    """
    marked = re.sub(re.escape(MARK), " {cite} ", markdown)
    text = NOT_OURS.sub(lambda found: " {cite} " if found[0].startswith("“") else " … ", re.sub(r"\{cite(?::\w+)?\}`[^`]*`", "{cite}", marked))
    found = []
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.)\s)", text):
        block = re.sub(r"^\s*(?:[-*]|\d+\.)\s+", "", " ".join(block.split()))
        for sentence in re.split(r"(?<=[.!?])[*_)]*\s+(?=[A-Z*“(…{])(?!\{cite\})", block):
            question = sentence.rstrip(" *_)").endswith("?")
            if not question and "{cite}" not in sentence and TELLS.search(IDIOMS.sub(" ", sentence)):
                found.append(sentence.strip())
    return found


def chapter_sentences(chapter: Path) -> list[str]:
    """The same of a whole chapter."""
    return [s for cell in jupytext.read(chapter).cells if cell.cell_type == "markdown" for s in unmade(cell.source)]


def report(chapters) -> str:
    """How many each chapter has, on one line."""
    numbers = {int(chapter.stem[:2]): len(chapter_sentences(chapter)) for chapter in chapters}
    told = ", ".join(f"{number}: {many}" for number, many in numbers.items())
    return f"sentences that no cell makes (python book/prose.py lists them): {sum(numbers.values())} ({told})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chapter", nargs="?", default="", help="part of a chapter's name; all if left out")
    given = parser.parse_args()
    chapters = [c for c in sorted((ROOT / "notebooks").glob("*.py")) if given.chapter in c.stem]
    for chapter in chapters:
        print(f"\n{chapter.stem}")
        for sentence in chapter_sentences(chapter):
            print(f"  - {sentence}")
    print(f"\n{report(chapters)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
