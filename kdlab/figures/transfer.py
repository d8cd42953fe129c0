"""Where a teacher's knowledge enters its student: a diagram drawn from the objective itself."""

import inspect
from itertools import groupby

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path
from torch import nn

from .style import BLUE, ORANGE, PALETTE

_LEFT, _RIGHT, _WIDTH, _HEIGHT = 0.17, 0.83, 0.16, 0.6  # of the columns and their boxes


def transfer_points(student, teacher, objective) -> Figure:
    """Student and teacher as two columns of modules, joined by a line for each thing that the objective compares.

    Nothing in it is drawn by hand. The boxes are the models' top-level modules that have parameters, input side up, with
    the number of these. A module is opened where the objective looks at several places inside it, or on the way to an
    entry of a list of layers; layers of such a list that nobody looks at are drawn as one. The lines are the pairs of
    layers of each term (what its Taps capture), or logits and labels; arrows point to where the gradient goes. A line
    that meets the upper edge of a box goes to what comes *into* it.

    Args:
        student, teacher: any modules.
        objective: a term or a weighted sum of terms.

    Raises:
        ValueError: for a layer that is not in its model.

    >>> from kdlab.models import resnet8, resnet20
    >>> from kdlab.objectives import CrossEntropy, HiddenMSE
    >>> figure = transfer_points(resnet8(), resnet20(), CrossEntropy() + 10 * HiddenMSE("layer2"))
    >>> [text.get_text() for text in figure.axes[0].texts][-2:]
    ['10 · HiddenMSE', 'CrossEntropy']
    >>> plt.close(figure)
    """
    objective = objective if hasattr(objective, "terms") else 1.0 * objective
    links = _links(objective)
    columns = [
        _rows(model, [link[side] for link in links]) for side, model in (("student", student), ("teacher", teacher))
    ]
    height = max(1.0, *(len(rows) for rows in columns), 0.62 * len(links))

    figure, panel = plt.subplots(figsize=(7.4, 0.44 * height + 0.5))
    panel.set(xlim=(0, 1), ylim=(height + 0.4, -0.7))
    panel.axis("off")
    places = {}
    for side, model, x, rows, colour in zip(
        ("student", "teacher"), (student, teacher), (_LEFT, _RIGHT), columns, (BLUE, ORANGE), strict=True
    ):
        panel.text(x, -0.35, f"{side}: {type(model).__name__}", ha="center", va="center", weight="bold", fontsize=9)
        for i, (paths, parameters) in enumerate(rows):
            y = (i + 0.5) * height / len(rows)
            places |= {(side, path): y for path in paths}
            _box(panel, x, y, colour, paths, parameters, outside=-1 if side == "student" else 1)
    _draw(figure, panel, links, places)
    return figure


def _links(objective) -> list[dict]:
    """What each term compares: the student's place, the teacher's, the text and the colour."""
    found = []
    for i, (weight, term) in enumerate(zip(objective.weights, objective.terms, strict=True)):
        name = type(term).__name__
        text = (
            name
            if weight == 1
            else f"{weight:.4g} · {name}"
            if isinstance(weight, (int, float))
            else f"{weight!r} · {name}"
        )
        pairs = list(zip(term.student_layers, term.teacher_layers, strict=True))
        if not pairs:  # it compares outputs: with the teacher's, with labels, or with both
            signature = inspect.signature(term.forward).parameters.values()
            needed = {parameter.name for parameter in signature if parameter.default is inspect.Parameter.empty}
            pairs = [("logits", "logits")] * term.needs_teacher + [("logits", "labels")] * ("labels" in needed)
        colour = PALETTE[i % len(PALETTE)]
        found += [{"student": s, "teacher": t, "text": text, "colour": colour} for s, t in pairs]
    return found


def _rows(model, tapped) -> list[tuple[list[str], int]]:
    """The boxes of a column, from input to output: the paths that each stands for, and its number of parameters."""
    wanted = {layer.rpartition(":")[2] for layer in tapped} - {"", "logits", "labels"}
    modules = dict(model.named_modules())
    for path in wanted:
        if path not in modules:
            raise ValueError(f"{type(model).__name__} has no module {path!r}.")

    def opened(path, module):
        prefix = f"{path}." if path else ""
        inside = {tap.removeprefix(prefix).split(".")[0] for tap in wanted if tap.startswith(prefix) and tap != path}
        lists = any(isinstance(part, nn.ModuleList) for part in module.modules())
        if path and (path in wanted or not (len(inside) > 1 or (inside and lists))):
            return [path]
        return [row for name, child in module.named_children() for row in opened(f"{prefix}{name}", child)]

    def looked_at(path):
        return any(tap == path or tap.startswith(f"{path}.") for tap in wanted)

    def parameters(path):
        return sum(parameter.numel() for parameter in modules[path].parameters())

    rows = []
    paths = [path for path in opened("", model) if parameters(path) or looked_at(path)]
    alike = groupby(paths, lambda p: p if looked_at(p) else (p.rpartition(".")[0], type(modules[p])))
    for _, run in alike:
        run = list(run)
        merge = len(run) > 2 and "." in run[0]
        rows += [(run, sum(map(parameters, run)))] if merge else [([path], parameters(path)) for path in run]
    return [*rows, (["logits"], 0), *([(["labels"], 0)] if "labels" in tapped else [])]


def _box(panel, x, y, colour, paths, parameters, outside):
    """One module, its name in it and its parameters beside it."""
    inner = paths[0] in ("logits", "labels")
    panel.add_patch(
        FancyBboxPatch(
            (x - _WIDTH / 2, y - _HEIGHT / 2),
            _WIDTH,
            _HEIGHT,
            boxstyle="round,pad=0,rounding_size=0.02",
            mutation_aspect=8,
            facecolor="none" if inner else (colour, 0.22),
            edgecolor="grey" if paths[0] == "labels" else colour,
            linestyle=":" if inner else "-",
            linewidth=1,
        )
    )
    name = paths[0].removeprefix("model.")
    if len(paths) > 1:
        name += "–" + paths[-1].rpartition(".")[2]
    panel.text(x, y, name, ha="center", va="center", fontsize=8.5)
    if parameters:
        align = "right" if outside < 0 else "left"
        panel.text(
            x + outside * (_WIDTH / 2 + 0.01),
            y,
            f"{parameters:,}",
            ha=align,
            va="center",
            fontsize=7,
            alpha=0.75,
        )


def _draw(figure, panel, links, places):
    """The labels in the middle, in order of depth and apart, and curves from both columns to them."""

    def place(link, side):
        kind, _, path = link[side].rpartition(":")
        path = path or "logits"  # the whole model's output
        inside = [key for key in places if key[0] == side and (path == key[1] or path.startswith(f"{key[1]}."))]
        return places[inside[0]] - (_HEIGHT / 2 if kind == "input" else 0)

    ends = {side: [place(link, side) for link in links] for side in ("student", "teacher")}
    order = sorted(range(len(links)), key=lambda i: ends["student"][i] + ends["teacher"][i])
    wanted = [(ends["student"][i] + ends["teacher"][i]) / 2 for i in order]
    for _ in range(200):  # push labels apart until none covers another
        for i in range(len(wanted) - 1):
            push = max(0.0, 0.62 - (wanted[i + 1] - wanted[i])) / 2
            wanted[i], wanted[i + 1] = wanted[i] - push, wanted[i + 1] + push
    texts = {
        i: panel.text(0.5, y, links[i]["text"], ha="center", va="center", fontsize=8.5)
        for i, y in zip(order, wanted, strict=True)
    }
    figure.draw_without_rendering()  # so that texts have a width
    for side, x, sign in (("student", _LEFT + _WIDTH / 2, 1), ("teacher", _RIGHT - _WIDTH / 2, -1)):
        for i, text in texts.items():
            sharing = [j for j in order if ends[side][j] == ends[side][i]]
            box = "input:" not in links[i][side]
            spread = 0.3 * (sharing.index(i) - (len(sharing) - 1) / 2) / max(len(sharing) - 1, 1) if box else 0.0
            extent = text.get_window_extent().transformed(panel.transData.inverted())
            near = (extent.x0 if sign > 0 else extent.x1) - sign * 0.008
            start, end = (x, ends[side][i] + spread), (near, text.get_position()[1])
            middle = (start[0] + end[0]) / 2
            curve = Path([end, (middle, end[1]), (middle, start[1]), start], [1, 4, 4, 4])
            panel.add_patch(
                FancyArrowPatch(
                    path=curve,
                    arrowstyle="-|>" if side == "student" else "-",
                    mutation_scale=8,
                    color=links[i]["colour"],
                    linewidth=1.6,
                    shrinkA=0,
                    shrinkB=0,
                )
            )
