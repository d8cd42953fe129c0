"""The parameters of a chapter: what its cell tagged ``parameters`` declares, and whether values fit it.

A parameter is declared as ``temperatures: list[float] = [1.0, 4.0]  # what it is``. A value must have the declared
type, and the sign of the default: where all of a default's numbers are above 0, all of a value's must be.
"""

import ast
import difflib
import io
import math
import re
import sys
import tokenize
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

#: The types that a parameter may have, and what their values are called.
KINDS = {"str": "a word", "bool": "True or False", "int": "a whole number", "float": "a number"} | {
    "list[str]": "a list of words",
    "list[int]": "a list of whole numbers",
    "list[float]": "a list of numbers",
}


class ParameterError(ValueError):
    """A parameter that a chapter does not have, or a value that it cannot take."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a chapter.

    Attributes:
        name: as the chapter writes it.
        kind: its type, one of ``KINDS``.
        default: its value in the source.
        comment: what it is.
    """

    name: str
    kind: str
    default: object
    comment: str

    @property
    def lowest(self) -> str:
        """The bound that the default's sign sets, in words.

        >>> Parameter("seeds", "list[int]", [0, 1], "").lowest
        'from 0 on'
        """
        numbers = _numbers(self.default)
        if not numbers or min(numbers) < 0:
            return ""
        return "above 0" if min(numbers) > 0 else "from 0 on"

    @property
    def wanted(self) -> str:
        """What its values are, in words."""
        return " ".join(filter(None, (KINDS[self.kind], self.lowest)))

    def check(self, value) -> None:
        """Raise ParameterError unless ``value`` is of the declared type, finite, not empty, and of the default's sign."""
        items = value if self.kind.startswith("list") else [value]
        fits = isinstance(items, (list, tuple)) and len(items) > 0
        fits = fits and all(_is(self.kind.removeprefix("list[").removesuffix("]"), item) for item in items)
        if fits and (numbers := _numbers(items)):
            low = {"": -math.inf, "from 0 on": 0, "above 0": math.ulp(0)}[self.lowest]
            fits = all(math.isfinite(number) and number >= low for number in numbers)
        if not fits:
            raise ParameterError(f"{self.name} must be {self.wanted}, such as {self.default!r}, and not {value!r}.")

    def read(self, text: str):
        """The value that a command line writes as ``text``; a list's items are separated by commas.

        >>> Parameter("temperatures", "list[float]", [1.0], "").read("1,2,8")
        [1.0, 2.0, 8.0]
        """
        kind = self.kind.removeprefix("list[").removesuffix("]")
        try:
            if self.kind.startswith("list"):
                value = [_read(kind, item.strip()) for item in text.strip("[]() ").removesuffix(",").split(",")]
            else:
                value = _read(kind, text)
        except (ValueError, KeyError):
            value = text
        self.check(value)
        return value


def _numbers(value) -> list:
    items = value if isinstance(value, (list, tuple)) else [value]
    return [item for item in items if isinstance(item, (int, float)) and not isinstance(item, bool)]


def _is(kind: str, value) -> bool:
    if kind == "bool" or isinstance(value, bool):
        return kind == "bool" and isinstance(value, bool)
    return isinstance(value, {"str": str, "int": int, "float": (int, float)}[kind])


def _read(kind: str, text: str):
    if not text:
        raise ValueError("nothing is no value")
    if kind == "bool":
        return {"true": True, "false": False}[text.lower()]
    return {"str": str, "int": int, "float": float}[kind](text)


def declared(cell: str) -> dict[str, Parameter]:
    """The parameters that a cell's source declares, in its order.

    Raises:
        ParameterError: if a line of it is no declaration.

    >>> declared("T: float = 4.0  # softmax temperature")
    {'T': Parameter(name='T', kind='float', default=4.0, comment='softmax temperature')}
    """
    found, said = {}, _comments(cell)
    for line in ast.parse(cell).body:
        try:
            (target,) = line.targets if isinstance(line, ast.Assign) else (line.target,)
            default = ast.literal_eval(line.value)
            kind = ast.unparse(line.annotation) if isinstance(line, ast.AnnAssign) else type(default).__name__
            parameter = Parameter(target.id, kind, default, said.get(line.end_lineno, ""))
            parameter.check(default)
        except (AttributeError, ValueError, KeyError, TypeError):
            raise ParameterError(
                f"{ast.unparse(line)!r} declares no parameter: write name: type = value, with a type of "
                f"{', '.join(KINDS)}."
            ) from None
        found[target.id] = parameter
    return found


def _comments(source: str) -> dict[int, str]:
    """What a comment at the end of a line says, by the line's number."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}


def declared_in(chapter: Path) -> dict[str, Parameter]:
    """The parameters of a chapter, from the source of its cell tagged ``parameters``; none where it has no such cell."""
    cells = re.split(r"^# %%", chapter.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for head, _, body in (cell.partition("\n") for cell in cells):
        if re.search(r"""tags=\[[^]]*["']parameters["']""", head):
            return declared(body)
    return {}


def check_names(parameters: Mapping[str, Parameter], names: Iterable[str]) -> None:
    """Raise ParameterError for a name that is none of the parameters, with the one that may be meant."""
    for name in names:
        if name not in parameters:
            near = difflib.get_close_matches(name, parameters, n=1)
            raise ParameterError(
                f"the chapter has no parameter {name!r}{f' (did you mean {near[0]!r}?)' if near else ''}. "
                f"It has {', '.join(parameters) or 'none'}."
            )


def given_to(parameters: Mapping[str, Parameter], values: Mapping[str, object]) -> dict[str, object]:
    """The values, checked; text for what is not text is read as a command line writes it.

    Raises:
        ParameterError: for an unknown name, or a value that does not fit.

    >>> given_to(declared("T: float = 4.0  # softmax temperature"), {"T": "8"})
    {'T': 8.0}
    """
    check_names(parameters, values)
    given = {}
    for name, value in values.items():
        of_text = isinstance(value, str) and parameters[name].kind != "str"
        given[name] = parameters[name].read(value) if of_text else value
        parameters[name].check(given[name])
    return given


def require(condition: bool, sentence: str) -> None:
    """Refuse values that fit their types and nothing else: two temperatures where a range is told, say.

    Raises:
        ParameterError: with the sentence, unless the condition holds.
    """
    if not condition:
        raise ParameterError(sentence)


def _session() -> tuple[dict[str, Parameter], list[str], dict] | None:
    """In a notebook: the parameters that its chapter declares, the names that papermill injected, and all values.

    The notebook's own history holds the cells: that of the declarations, and the one that papermill puts below it.
    None outside of a notebook, and before such a cell has run.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    cells = [] if shell is None else shell.user_ns.get("In", [])
    injected = [cell for cell in cells if cell.startswith("# Parameters\n")]
    for cell in cells:
        if cell in injected or not re.search(r"^profile\b", cell, re.MULTILINE):
            continue
        try:
            parameters = declared(cell)
        except (ParameterError, SyntaxError):  # another cell
            continue
        lines = [line for cell in injected for line in ast.parse(cell).body if isinstance(line, ast.Assign)]
        return parameters, [line.targets[0].id for line in lines], shell.user_ns
    return None


def check_session() -> None:
    """In a notebook: check the values of the chapter's parameters, and that papermill injected no unknown name.

    Raises:
        ParameterError: for an unknown name, or a value that does not fit.
    """
    if session := _session():
        parameters, injected, values = session
        check_names(parameters, injected)
        for name, parameter in parameters.items():
            parameter.check(values[name])


def changed() -> dict[str, tuple[object, object]]:
    """In a notebook: value and default of each parameter that has another value than the chapter's own.

    The profile says where a chapter runs and not what it asks, and is left out.
    """
    if not (session := _session()):
        return {}
    parameters, _, values = session
    now = {name: (values.get(name), parameter.default) for name, parameter in parameters.items() if name != "profile"}
    return {name: pair for name, pair in now.items() if pair[0] != pair[1]}
