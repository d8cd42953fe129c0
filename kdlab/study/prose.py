"""Sentences of the chapters that no cell makes: ``python -m kdlab.study.prose notebooks/*.py`` lists them.

They have a number, a comparative or a superlative. What is measured should be said by a cell, which knows whether it is so
(:mod:`kdlab.study.statements`); what is left here is definition or quotation. Formulae, code, quotations, sentences with a
citation, tables, headings, questions and exercises are not listed, nor a sentence that ends in ``<!-- by definition -->``.
"""

import argparse
import re
from collections.abc import Collection
from pathlib import Path

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


def _left_for(found: re.Match) -> str:
    """What stays of what is not ours: a quotation marks its sentence, a formula or a name in code is a word of it."""
    text = found[0]
    if text.startswith("“"):
        return " {cite} "
    return " … " if re.match(r"\$|`(?!``)", text) else "\n"


def unmade(markdown: str, *, marked: bool = False) -> list[str]:
    """The sentences of a Markdown cell with a number, a comparative or a superlative.

    Args:
        markdown: of one cell.
        marked: those that are marked as definitions, in place of those that are not.

    >>> unmade("The teacher is better than we are. A softmax sums to one. It gains 3 points {cite}`a`. *Twice* as many.")
    ['The teacher is better than we are.', '*Twice* as many.']
    """
    # within the sentence that it ends
    marks = re.sub(rf"([.!?:]?[*_)”]*)\s*{re.escape(MARK)}", r" {mark}\1 ", markdown)
    cited = re.sub(r"\{cite(?::\w+)?\}`[^`]*`", "{cite}", marks)
    text = NOT_OURS.sub(_left_for, cited)
    found = []
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.)\s)", text):
        block = re.sub(r"^\s*(?:[-*]|\d+\.)\s+", "", " ".join(block.split()))
        for sentence in re.split(r"(?<=[.!?])[*_)]*\s+(?=[A-Z*“(…{])(?!\{cite\})", block):
            question = sentence.rstrip(" *_)").endswith("?")
            if question or "{cite}" in sentence or ("{mark}" in sentence) != marked:
                continue
            if TELLS.search(IDIOMS.sub(" ", sentence)):
                found.append(sentence.replace(" {mark}", "").strip())
    return found


def chapter_sentences(chapter: Path, *, marked: bool = False) -> list[str]:
    """The same of a whole chapter, a file in py:percent."""
    import jupytext

    return [
        s
        for cell in jupytext.read(chapter).cells
        if cell.cell_type == "markdown"
        for s in unmade(cell.source, marked=marked)
    ]


def report(chapters: Collection[Path]) -> str:
    """How many each chapter has, and how many more are marked as definitions, on one line."""
    numbers = {int(Path(chapter).stem[:2]): len(chapter_sentences(chapter)) for chapter in chapters}
    marks = sum(len(chapter_sentences(chapter, marked=True)) for chapter in chapters)
    told = ", ".join(f"{number}: {many}" for number, many in numbers.items())
    return f"sentences that no cell makes (python -m kdlab.study.prose lists them): {sum(numbers.values())} ({told}), and {marks} marked as definitions"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chapters", nargs="+", type=Path, help="chapters in py:percent, such as notebooks/*.py")
    given = parser.parse_args()
    for chapter in given.chapters:
        print(f"\n{chapter.stem}")
        for sentence in chapter_sentences(chapter):
            print(f"  - {sentence}")
        for sentence in chapter_sentences(chapter, marked=True):
            print(f"  (marked) {sentence}")
    print(f"\n{report(given.chapters)}")


if __name__ == "__main__":
    main()
