"""A figure to touch: all runs of a study by plan, arm and measure, every seed a dot, differences paired by seed."""

import html
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files

from .style import BLUE, ORANGE, Shown, mathematics


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
    outside; without JavaScript a sentence stands in its place.

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
    packed = html.escape(json.dumps(given, ensure_ascii=True, separators=(",", ":")), quote=False)
    return Shown(
        f'<figure class="kd-figure kd-explorer" id="fig-{label}"><template>{packed}</template>'
        '<p class="kd-dial-off">This figure needs JavaScript; the tables and files below have the same numbers.</p>'
        f"<figcaption>{mathematics(caption)}</figcaption></figure><script>{script}</script>"
    )
