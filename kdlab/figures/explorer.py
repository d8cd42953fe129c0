"""A figure to touch: all runs of a study by plan, arm and measure, every seed a dot, differences paired by seed."""

import html
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from statistics import fmean, stdev

import matplotlib as mpl
import matplotlib.pyplot as plt

from .dots import dots
from .style import BLUE, ORANGE, Shown, mathematics, show, use_style


def explorer(
    rows: Sequence[Mapping],
    measures: Mapping[str, Sequence[str]],
    quantiles: Sequence[float],
    *,
    label: str,
    caption: str,
    records: str = "",
) -> Shown:
    r"""Dots by arm with the mean and its interval, :math:`\bar x \pm t_{n-1} s/\sqrt n`; of values, or of differences paired by seed.

    The reader chooses plan, measure, length of training and what is subtracted. Each dot is a link to its record. It asks for nothing from
    outside; without JavaScript the picture that it begins with stands in its place.

    Args:
        rows: a dict a run: ``plan``, ``arm``, ``seed``, ``length``, ``record`` (a file's name), and its measures by name.
        measures: by plan, those that the reader may choose; the first is shown at the start.
        quantiles: :math:`t` for 1, 2, … degrees of freedom; more runs take the last.
        label: unique on its page.
        caption: what to see; ``$…$`` is mathematics.
        records: the folder of the records, seen from the page.

    Raises:
        ValueError: for no rows, or a plan without measures.
    """
    if not rows:
        raise ValueError("the explorer needs at least one run.")
    plans: dict[str, list] = {}
    for row in rows:
        if not (named := measures.get(row["plan"])):
            raise ValueError(f"the plan {row['plan']} has no measure to show.")
        values = [None if row.get(name) is None else float(f"{row[name]:.5g}") for name in named]
        plans.setdefault(row["plan"], []).append([row["arm"], row["seed"], row["length"], row["record"], values])
    given = {
        "plans": {plan: {"measures": list(measures[plan]), "runs": runs} for plan, runs in plans.items()},
        "t": [float(f"{q:.5g}") for q in quantiles],
        "folder": records, "value": BLUE, "difference": ORANGE,
    }  # fmt: skip
    script = files("kdlab.figures").joinpath("explorer.js").read_text(encoding="utf-8")
    first, runs = next(iter(plans.items()))
    still = _still(first, measures[first][0], runs, quantiles, f"{label}-still")
    packed = html.escape(json.dumps(given, ensure_ascii=True, separators=(",", ":")), quote=False)
    return Shown(
        f'<figure class="kd-figure kd-explorer" id="fig-{label}"><template>{packed}</template>'
        f'<div class="kd-dial-off">{still}</div>'
        f"<figcaption>{mathematics(caption)}</figcaption></figure><script>{script}</script>"
    )


def _arms(runs: Sequence[Sequence]) -> dict[str, list[float]]:
    """The first measure of each arm's runs, the highest mean first; by length too where they differ in it.

    >>> _arms([["a", 0, "1 epoch", "", [0.1]], ["b", 0, "2 epochs", "", [0.5]], ["a", 1, "1 epoch", "", [0.3]], ["a", 2, "1 epoch", "", [None]]])
    {'b, 2 epochs': [0.5], 'a, 1 epoch': [0.1, 0.3]}
    """
    kept = [(arm, length, values[0]) for arm, _, length, _, values in runs if values[0] is not None]
    lengths, found = {length for _, length, _ in kept}, {}
    for arm, length, value in kept:
        found.setdefault(f"{arm}, {length}" if len(lengths) > 1 else arm, []).append(value)
    return dict(sorted(found.items(), key=lambda arm: -fmean(arm[1])))


def _interval(values: Sequence[float], quantiles: Sequence[float]) -> tuple[float, float, float] | None:
    """The mean and the ends of its interval; None for a single run.

    >>> _interval([1.0, 3.0], [12.0])
    (2.0, -10.0, 14.0)
    """
    if (n := len(values)) < 2:
        return None
    mean, half = fmean(values), quantiles[min(n - 2, len(quantiles) - 1)] * stdev(values) / n**0.5
    return mean, mean - half, mean + half


def _still(plan: str, measure: str, runs: Sequence[Sequence], quantiles: Sequence[float], label: str) -> str:
    """What the explorer shows at its start, for readers without JavaScript: markup of a figure with its caption."""
    arms, measure = _arms(runs), measure.replace("_", " ")
    if not arms:
        return f"<p>No run of the plan {html.escape(plan)} has a measure to show.</p>"
    intervals = {arm: _interval(values, quantiles) for arm, values in arms.items()}
    told = [
        f"{arm} {fmean(values):.4g}{f' [{found[1]:.4g}, {found[2]:.4g}]' if (found := intervals[arm]) else ''}, n = {len(values)}"
        for arm, values in arms.items()
    ]
    said = f"Plan {plan}, {measure}"
    with mpl.rc_context():
        use_style()
        figure, panel = plt.subplots(figsize=(7, 0.8 + 0.3 * len(arms)))
        dots(panel, arms, intervals)
        panel.set_xlabel(measure)
        return show(
            figure,
            label=label,
            caption=f"{said}. A dot is a run. Other plans and measures are chosen here with JavaScript; the tables below have them all.",
            alt=f"{said}: " + "; ".join(told) + ".",
        ).markup
