"""A figure to touch: the reader moves a draft's quality, its length and the costs; the predicted speed-up follows."""

import html
import json
from collections.abc import Sequence
from importlib.resources import files

from .plotted import as_csv
from .still import still
from .style import BLUE, CSV, VERMILION, Shown, mathematics


def speed_up_dial(
    sets: Sequence[dict],
    *,
    draft_cost: float,
    token_cost: float,
    label: str,
    caption: str,
    draft_length: int = 4,
) -> Shown:
    r"""Tokens per call and speed-up of speculative decoding against the draft length, with sliders, beside measured points.

    With acceptance :math:`\alpha`, draft length :math:`\gamma`, and costs in calls of the verifier on one token: :math:`c` of a proposal,
    :math:`w` of each further token that the verifier looks at,

    .. math:: \tau(\gamma) = \sum_{k=0}^{\gamma} \alpha^k, \qquad \text{speed-up} = \frac{\tau(\gamma)}{1 + \gamma\,(c + w)}

    It needs no server and asks for nothing from outside. Without JavaScript there is a sentence in its place.

    Args:
        sets: what was measured, a dict each: ``name``; ``alpha``, where its slider starts; ``points``, each a draft length, tokens
            per call and speed-up. A button shows each; the first is shown at the start.
        draft_cost, token_cost: :math:`c` and :math:`w` at the start.
        label: unique on its page.
        caption: what to see; ``$…$`` is mathematics.
        draft_length: :math:`\gamma` at the start.

    Raises:
        ValueError: for no sets.

    Source: Leviathan et al. (2023), theorem 3.8; :math:`w = 0` there.
    """
    if not sets:
        raise ValueError("the figure needs at least one set of measured points.")
    given = {
        "start": {
            "alpha": _short(sets[0]["alpha"]),
            "gamma": draft_length,
            "c": _short(draft_cost),
            "w": _short(token_cost),
        },
        "sets": [
            {
                "name": entry["name"],
                "alpha": _short(entry["alpha"]),
                "points": [[int(gamma), _short(tokens), _short(speed)] for gamma, tokens, speed in entry["points"]],
            }
            for entry in sets
        ],
        "blue": BLUE,
        "red": VERMILION,
    }
    measured = [
        {"set": entry["name"], "draft length": gamma, "tokens per call": tokens, "speed-up": speed}
        for entry in given["sets"]
        for gamma, tokens, speed in entry["points"]
    ]
    start = given["start"]
    rows = []
    for gamma in range(1, max(16, draft_length) + 1):
        tokens = sum(start["alpha"] ** k for k in range(gamma + 1))
        rows.append(
            {
                "draft length": gamma,
                "tokens per call": tokens,
                "speed-up": tokens / (1 + gamma * (start["c"] + start["w"])),
            }
        )
    here = rows[draft_length - 1]
    off = still(
        rows,
        "draft length",
        ["tokens per call", "speed-up"],
        f"At an acceptance of {start['alpha']:.2g}, a draft of {draft_length} tokens brings {here['tokens per call']:.2f} tokens per call, and is "
        f"{here['speed-up']:.2f} times as fast as plain decoding.",
    )
    script = files("kdlab.figures").joinpath("speed_up.js").read_text(encoding="utf-8")
    return Shown(
        f'<figure class="kd-figure kd-dial" id="fig-{label}" data-ready="yes" data-given="{html.escape(json.dumps(given))}">'
        f"{off}"
        f"<figcaption>{mathematics(caption)}</figcaption></figure><script>{script}</script>",
        {CSV: as_csv(measured)},
    )


def _short(number: float) -> float:
    return float(f"{number:.4g}")
