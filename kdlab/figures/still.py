"""What a figure to touch shows at its start, for readers without JavaScript."""

import html
from collections.abc import Sequence

import numpy as np

from .style import BLUE, VERMILION


def still(rows: Sequence[dict], x: str, ys: Sequence[str], sentence: str, *, logarithmic: bool = False) -> str:
    """Markup of one or two curves, and the sentence that says the same; the figure's script puts itself in its place.

    Args:
        rows: numbers by name.
        x, ys: the names of what runs along, and of what is drawn.
        sentence: what the figure shows, for all readers.
        logarithmic: whether ``x`` is.
    """
    along = np.array([float(row[x]) for row in rows])
    values = np.array([[float(row[y]) for y in ys] for row in rows])
    place = np.log(along) if logarithmic else along
    across = 50 + 480 * (place - place.min()) / (np.ptp(place) or 1)
    up = 190 - 165 * (values - values.min()) / (np.ptp(values) or 1)
    curves = "".join(
        f'<polyline points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in zip(across, up[:, k], strict=True))}" '
        f'fill="none" stroke="{colour}" stroke-width="2.5"/><text x="{60 + 180 * k}" y="14" fill="{colour}">{html.escape(y)}</text>'
        for k, (y, colour) in enumerate(zip(ys, (BLUE, VERMILION), strict=False))
    )
    marks = [
        (50, 208, "start", along.min()), (530, 208, "end", along.max()),
        (44, 194, "end", values.min()), (44, 29, "end", values.max()),
    ]  # fmt: skip
    numbers = "".join(
        f'<text x="{a}" y="{b}" text-anchor="{anchor}" fill="currentColor">{round(value, 3):g}</text>'
        for a, b, anchor, value in marks
    )
    return (
        f'<div class="kd-dial-off"><svg viewBox="0 0 560 226" style="max-width: 36rem; width: 100%" font-size="13" role="img" '
        f'aria-label="{html.escape(sentence)}"><path d="M50 20V190H530" fill="none" stroke="currentColor"/>{curves}{numbers}'
        f'<text x="290" y="222" text-anchor="middle" fill="currentColor">{html.escape(x)}</text></svg>'
        f"<p>{sentence} (To be moved by sliders, with JavaScript.)</p></div>"
    )
