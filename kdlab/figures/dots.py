"""Runs as dots, their mean with its interval: what a study shows of each arm."""

from collections.abc import Mapping

from .style import BLUE, VERMILION


def dots(panel, rows: dict, intervals: dict, *, reference: dict | None = None, factor=1.0, colours=None) -> None:
    """Draw one row an arm into a Matplotlib panel, the first on top: a faint dot a run, the mean, the interval.

    Args:
        panel: a Matplotlib ``Axes``.
        rows: from the arm's name to its values, one a run: a list, or a dict by seed as :meth:`~kdlab.study.results.Results.values` gives it; an
            empty one leaves the row empty.
        intervals: from the arm's name to ``(mean, low, high)`` or an object with these attributes, or None.
        reference: from the arm's name to a value to compare with, in the panel's own units, drawn as a diamond; arms may
            be left out.
        factor: what values and intervals are multiplied by, such as 100 for per cent.
        colours: from the arm's name to its colour; blue if left out.
    """
    for place, (name, values) in enumerate(rows.items()):
        colour = (colours or {}).get(name, BLUE)
        if isinstance(values, Mapping):
            values = list(values.values())
        panel.plot(
            [factor * v for v in values],
            [place] * len(values),
            "o",
            color=colour,
            alpha=0.5,
            markersize=6.5,
            mew=0,
            label="_run",
        )
        if (interval := intervals.get(name)) is not None:
            mean, low, high = (interval.mean, interval.low, interval.high) if hasattr(interval, "low") else interval
            panel.plot([factor * low, factor * high], [place, place], color=colour, linewidth=2.2, label="_interval")
            panel.plot([factor * mean], [place], "|", color=colour, markersize=13, mew=2.2, label="_mean")
        if reference and name in reference:
            panel.plot(
                [reference[name]], [place], "D", color=VERMILION, markersize=5, mfc="none", mew=1.4, label="_reference"
            )
    panel.set_yticks(range(len(rows)), list(rows))
    panel.set_ylim(len(rows) - 0.5, -0.5)
    panel.grid(axis="y", visible=False)


def runs_along(panel, values: Mapping, *, colour: str, label: str, factor: float = 1.0, style: str = "-") -> None:
    """Draw runs along an axis into a Matplotlib panel: each as a faint dot at its place, and their means as a line.

    Args:
        values: from the place to the values there, one a run.
        colour, label, style: of the line.
        factor: what values are multiplied by, such as 100 for per cent.
    """
    means = [factor * sum(there) / len(there) for there in values.values()]
    panel.plot(list(values), means, style, color=colour, label=label)
    for place, there in values.items():
        runs = [factor * value for value in there]
        panel.plot([place] * len(runs), runs, "o", color=colour, alpha=0.5, markersize=4, label="_run")


def dots_side_by_side(
    panels: Mapping[str, tuple[dict, dict, float]], colours: Mapping[str, str], lines: Mapping[str, float]
):
    """A figure of one panel a measure, with the same rows: by its axis, what :func:`dots` takes as rows, intervals and factor.

    ``lines`` are values by axis at which a panel has a dashed line.
    """
    import matplotlib.pyplot as plt

    names, *_ = next(iter(panels.values()))
    size = (3.1 * len(panels) if len(panels) > 1 else 6.8, 0.34 * len(names) + 0.9)
    figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False)
    for axis, (title, (rows, intervals, factor)) in zip(axes[0], panels.items(), strict=True):
        dots(axis, rows, intervals, factor=factor, colours=colours)
        axis.set_xlabel(title)
        axis.locator_params(axis="x", nbins=4)
        if title in lines:
            axis.axvline(factor * lines[title], color=VERMILION, linestyle="--")
    return figure
