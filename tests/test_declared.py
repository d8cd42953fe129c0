"""A divergence is declared in its file, and what else it needs is named here: one sentence for each place that it is missing from.

Closed forms, digits, masks, −∞, half precision, compilation and heads of a vocabulary are then tested of it by the tests of all divergences
(``losses.py`` finds it), which these sentences are no substitute for.
"""

import inspect
import re
import types
from pathlib import Path

import pytest
from losses import CLOSED_FORMS, DECLARED, OTHER_NAMES, TERM_OF
from mutations import DIVERGENCES as FILE
from mutations import MUTATIONS

from kdlab import objectives
from kdlab.objectives import divergences, vocabulary
from kdlab.theory import reference

ROOT = Path(__file__).parents[1]
OPTIONS = {"temperature", "mask", "count", "reduction", "class_axis"}


def code_of(function) -> str:
    """A function's source, and that of the functions of its file that it calls, and these call."""
    found, waiting = {}, [function]
    while waiting:
        one = waiting.pop()
        found[one] = inspect.getsource(one)
        named = set(re.findall(r"\b(\w+)\(", found[one]))
        waiting += [f for n, f in vars(divergences).items() if n in named and isinstance(f, types.FunctionType) and f not in found
                    and f.__module__ == divergences.__name__ and n != "_reduced" and n != "_pair"]  # fmt: skip
    return "".join(found.values())


def own_code(name: str, function) -> str:
    """A function's source, and that of what it calls and no other divergence does: a mistake in what they share is not its own."""
    others = "".join(code_of(other) for other in DECLARED.values() if other is not function)
    source = inspect.getsource(function)
    helpers = code_of(function).replace(source, "")
    return source + "".join(part for part in re.split(r"(?m)^(?=def )", helpers) if part not in others)


def missing(name: str, function, term) -> list[str]:
    """What is not there yet of a divergence, each with where it goes."""
    doc, page = function.__doc__ or "", (ROOT / "book/api.md").read_text(encoding="utf-8")
    own = own_code(name, function)
    closed, kind = OTHER_NAMES.get(name, name), getattr(term, "__name__", "")
    needs = {
        "kdlab/objectives/__init__.py: import it, and name it in __all__": name in objectives.__all__,
        f"its signature: {', '.join(sorted(OPTIONS))} by name": OPTIONS
        <= inspect.signature(function).parameters.keys(),
        "its docstring: the formula, .. math::": ".. math::" in doc,
        "its docstring: Convention: direction, T², units": "Convention:" in doc,
        "its docstring: Source:": "Source:" in doc,
        "its docstring: an example, >>>": ">>>" in doc,
        "kdlab/objectives/terms.py: a term whose function it is (class …(_Softened): function = divergences."
        + name
        + ")": term is not None,
        "kdlab/objectives/__init__.py: import its term, and name it in __all__": kind in objectives.__all__,
        "kdlab/objectives/terms.py: what it is on tokens: on_tokens = by_autograd in its term; or, faster, closed_form = its loss and gradient in "
        "vocabulary.py": getattr(term, "on_tokens", None) is vocabulary.by_autograd
        or getattr(term, "closed_form", None) in [f for f in vars(vocabulary).values() if inspect.isfunction(f)],
        f"kdlab/theory/reference.py: its closed form, {closed}": hasattr(reference, closed),
        f"kdlab/theory/reference.py: its gradient, {closed}_gradient": hasattr(reference, f"{closed}_gradient"),
        "tests/mutations.py: the mistake that one is likely to make in it, a Mutation in DIVERGENCES": any(
            mutation.file == FILE and mutation.old in own for mutation in MUTATIONS
        ),
        "book/api.md: a row of the table for its term": bool(kind) and f"terms.{kind}`" in page,
    }
    return [place for place, there in needs.items() if not there]


@pytest.mark.parametrize("name", DECLARED)
def test_a_divergence_is_in_all_its_places(name):
    lacking = missing(name, DECLARED[name], TERM_OF[name])
    assert not lacking, f"{name} is not complete:\n" + "\n".join(lacking)
    assert any(getattr(loss, "func", loss) is DECLARED[name] for loss, *_ in CLOSED_FORMS.values())


def test_what_is_missing_is_named():
    def unheard_of(student_logits, teacher_logits):
        """Nothing is said."""

    assert len(missing("unheard_of", unheard_of, None)) == 13
