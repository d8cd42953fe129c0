"""The statements of a chapter that come from records, made again without the chapter's own trainings."""

import ast
import contextlib
import io
import subprocess
from pathlib import Path

import jupytext
import matplotlib.pyplot as plt
import torch

import kdlab.data
import kdlab.huggingface
import kdlab.study
import kdlab.training
from kdlab.study import statements

VOCABULARY = set(statements.__all__)
#: What a statement of records does not need: data, trainings, stored networks, processes (which nobody would end).
LIVE = {
    kdlab.data: [name for name in kdlab.data.__all__ if name.startswith(("load", "corpus"))],
    kdlab.huggingface: ["load_sentences", "all_minilm_l6_v2"],
    kdlab.training: [name for name in kdlab.training.__all__ if name.startswith("fit")],
    kdlab.study: ["book_teacher", "book_language_teacher", "stored_student", "run", "run_together"],
    torch.Tensor: ["backward"],
    subprocess: ["Popen"],
}


class Live(Exception):
    """Something that only the chapter's own run has."""


def refuse(*_, **__):
    raise Live


CHANGING = ("append", "update", "extend", "pop", "setdefault", "add")


def names(node: ast.AST) -> tuple[set[str], set[str]]:
    """The names that a top-level line needs from earlier ones, and those that it makes or changes."""
    read, made, own = set(), set(), set()
    for part in ast.walk(node):
        base = None
        match part:
            case ast.Name():
                (read if isinstance(part.ctx, ast.Load) else made).add(part.id)
            case ast.FunctionDef() | ast.ClassDef():
                made.add(part.name)
            case ast.Import() | ast.ImportFrom():
                made |= {(alias.asname or alias.name).split(".")[0] for alias in part.names}
            case ast.arg():
                own.add(part.arg)
            case ast.For() | ast.comprehension():
                own |= {n.id for n in ast.walk(part.target) if isinstance(n, ast.Name)}
            case ast.NamedExpr():
                own.add(part.target.id)
            case ast.Subscript(ctx=ast.Store()) | ast.Attribute(ctx=ast.Store()):
                base = part.value
            case ast.Call(func=ast.Attribute(attr=attr)) if attr in CHANGING:
                base = part.func.value
        while isinstance(base, ast.Subscript | ast.Attribute):
            base = base.value
        if isinstance(base, ast.Name):
            made.add(base.id)
    if isinstance(node, ast.FunctionDef):
        stored = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        return read - own - stored, {node.name}
    return read - own, made


def whole(node: ast.AST) -> bool:
    """Whether a line makes its names anew, so that what made them before no longer counts."""
    if isinstance(node, ast.Assign):
        return all(isinstance(target, ast.Name | ast.Tuple) for target in node.targets)
    return isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom)


def apart(node: ast.AST) -> list[ast.AST]:
    """An import line as one line a name."""
    if isinstance(node, ast.ImportFrom):
        return [ast.copy_location(ast.ImportFrom(node.module, [alias], node.level), node) for alias in node.names]
    return [node]


def replay(chapter: Path) -> tuple[list, list[str]]:
    """The statements that a chapter makes of records; and of its other lines that make statements, why not.

    Each top-level line of the chapter that calls the vocabulary, or a function that does, is run with the lines that it
    needs, and no others.
    """
    cells = [c.source for c in jupytext.read(chapter).cells if c.cell_type == "code"]
    lines = [line for cell in cells for node in ast.parse(cell).body for line in apart(node)]
    known = [names(node) for node in lines]
    saying = set(VOCABULARY)
    targets = []
    for place, node in enumerate(lines):
        if known[place][0] & saying and not isinstance(node, ast.ImportFrom):
            if isinstance(node, ast.FunctionDef):
                saying.add(node.name)
            else:
                targets.append(place)

    def needed(place: int, found: set[int]) -> set[int]:
        wanted = set(known[place][0])
        for earlier in range(place - 1, -1, -1):
            if touched := known[earlier][1] & wanted:
                if earlier not in found:
                    found.add(earlier)
                    needed(earlier, found)
                if whole(lines[earlier]):
                    wanted -= touched
        return found

    space, done, made, lacking = {"display": lambda *shown, **_: None}, {}, [], []

    def run(place: int) -> str | None:
        if place not in done:
            code = compile(ast.Module([lines[place]], []), chapter.name, "exec")
            try:
                exec(code, space)
                done[place] = None
            except statements.Survivor:
                raise
            except Live:
                done[place] = "live"
            except Exception as error:
                done[place] = f"{type(error).__name__}: {error}"
        return done[place]

    kept = statements.Statement.__init__

    def note(self, *given):
        kept(self, *given)
        made.append(self)

    with contextlib.ExitStack() as stack:
        for owner, attributes in LIVE.items():
            for attribute in attributes:
                stack.callback(setattr, owner, attribute, getattr(owner, attribute))
                setattr(owner, attribute, refuse)
        stack.callback(setattr, statements.Statement, "__init__", kept)
        statements.Statement.__init__ = note
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.callback(plt.close, "all")
        for place in targets:
            why = next(filter(None, map(run, sorted(needed(place, set())))), None) or run(place)
            if why:
                lacking.append(f"{ast.unparse(lines[place])[:80]}: {why}")
    return [s for s in made if s.source == "records"], lacking
