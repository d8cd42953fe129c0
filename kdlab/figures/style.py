"""One style for every figure: readable on light and dark pages, for the colour-blind, and by a screen reader."""

import html
import io
import re

try:
    import matplotlib as mpl
    import matplotlib.pyplot as plt
    from matplotlib.figure import Figure
except ImportError:
    raise ImportError("figures need Matplotlib: pip install 'kdlab[figures]'.") from None

from .plotted import plotted

#: Okabe & Ito's palette in the order of use, without the yellow that vanishes on white.
BLUE, ORANGE, GREEN, PURPLE, VERMILION, SKY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9"
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, VERMILION, SKY)

# Drawn in these colours, and then given the page's own text colour, whatever it is.
_INK, _FAINT = "#010203", "#040506"

STYLE = {
    "figure.figsize": (7.0, 3.6),
    "figure.facecolor": "none",
    "figure.constrained_layout.use": True,
    "axes.facecolor": "none",
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.titlesize": "medium",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": mpl.cycler(color=PALETTE),
    "axes.grid": True,
    "grid.color": _FAINT,
    "grid.linewidth": 0.6,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "lines.markersize": 5.0,
    "font.size": 10.5,
    "svg.fonttype": "path",
}


def use_style() -> None:
    """Draw every figure of this session in the book's style, whatever the user's own ``matplotlibrc`` says."""
    mpl.rcdefaults()
    mpl.rcParams.update(STYLE)


def mathematics(text: str) -> str:
    r"""HTML of a plain sentence in which ``$…$`` is mathematics.

    >>> mathematics("as $T \\to \\infty$")
    'as <span class="math">\\(T \\to \\infty\\)</span>'
    """
    return re.sub(r"\$(.+?)\$", r'<span class="math">\\(\1\\)</span>', html.escape(text, quote=False))


#: A figure's numbers in an executed notebook; the pages have them as a file, and a link to it.
CSV = "application/vnd.kdlab.data+csv"


class Shown:
    """HTML for a notebook's output, and what else its cell says, by type: a figure's numbers, say."""

    def __init__(self, markup: str, said: dict | None = None):
        self.markup, self.said = markup, said or {}

    def _repr_html_(self) -> str:
        return self.markup

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        return {"text/html": self.markup, **self.said}

    def __repr__(self) -> str:
        return re.sub(r"<[^>]+>", " ", self.markup)[:80].strip()


def show(figure: Figure, *, label: str, caption: str, alt: str) -> Shown:
    """A figure as inline SVG with its caption below, in the colours of the page that it is on; the figure is closed.

    Its numbers (:func:`~kdlab.figures.plotted.plotted`) go with it: the pages offer them as CSV below the caption.

    Args:
        figure: a Matplotlib figure, drawn in :func:`use_style`'s style.
        label: unique on its page; the anchor is ``fig-label``.
        caption: what to see in it; ``$…$`` is mathematics.
        alt: what it shows, in words, for who cannot see it.
    """
    if not (label and caption and alt):
        raise ValueError("a figure needs a label, a caption and an alternative text.")
    numbers = plotted(figure)
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": label}):
        figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            bbox_inches="tight",
            pad_inches=0.04,
            metadata={"Date": None, "Creator": None},
        )
    plt.close(figure)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace(f"stroke: {_FAINT}", "stroke: currentColor; stroke-opacity: 0.15").replace(_INK, "currentColor")
    # Several figures share a page: make their ids distinct.
    svg = re.sub(r'\bid="', f'id="{label}-', svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{label}-", svg)
    size = re.match(r'<svg[^>]*?width="([\d.]+)pt"', svg)
    svg = re.sub(
        r'(<svg[^>]*?) width="[^"]*"',
        r"\1",
        re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1),
        count=1,
    )
    svg = _shorter(svg)
    width = f"max-width: {float(size.group(1)) * 4 / 3:.0f}px" if size else ""
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(alt)}" style="width: 100%; {width}"', 1)
    return Shown(
        f'<figure class="kd-figure" id="fig-{label}"><div class="kd-scroll" tabindex="0">{svg}</div><figcaption>{mathematics(caption)}</figcaption></figure>',
        {CSV: numbers} if numbers else None,
    )


def sentence(*texts: str) -> Shown:
    """Computed sentences as paragraphs, where a cell would print them; ``$…$`` is mathematics.

    >>> sentence("At $T=4$ it is <1.").markup
    '<p>At <span class="math">\\\\(T=4\\\\)</span> it is &lt;1.</p>'
    """
    return Shown("".join(f"<p>{mathematics(text)}</p>" for text in texts))


def _shorter(svg: str) -> str:
    """Places in an SVG to a hundredth of a point, lines without the letter that is repeated, no remarks, indents and unused names: half the length.

    >>> _shorter('<path d="M 1.23456 2 \\nL 3 4.5 \\nL 5.0 6 \\nQ 1 2 3 4 \\nL 7 8 \\nz\\n"/><use x="0.129" transform="scale(0.015625)"/>')
    '<path d="M1.23 2 3 4.5 5 6Q1 2 3 4L7 8z"/><use x="0.12" transform="scale(0.015625)"/>'
    """

    def short(number: re.Match) -> str:
        return f"{number[1]}{number[2].rstrip('0')}".rstrip(".")

    def path(found: re.Match) -> str:
        parts, before = [], ""
        for command, places in re.findall(r"([A-Za-z])([^A-Za-z]*)", re.sub(r"(-?\d+)(\.\d{1,2})\d*", short, found[1])):
            parts.append((" " if command == "L" and before in "ML" and before else command) + " ".join(places.split()))
            before = command
        return f' d="{"".join(parts)}"'

    svg = re.sub(r' d="([^"]*)"', path, svg)
    svg = re.sub(r'( [xy]="-?\d+\.\d\d)\d+', r"\1", svg)
    svg = re.sub(r"translate\(([-\d.]+) ([-\d.]+)\)", lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), svg)
    svg = re.sub(r">\s+<", "><", re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL))
    svg = re.sub(r' style="[^"]*"', lambda found: found[0].replace(": ", ":").replace("; ", ";"), svg)
    svg = re.sub(r'(<g clip-path="[^"]+">)(?:<use[^>]*/>)+</g>(?:\1(?:<use[^>]*/>)+</g>)*', _together, svg)
    asked_for = set(re.findall(r'(?:href="|url\()#([^")]+)', svg))
    return re.sub(r'<g id="([^"]+)"', lambda found: found[0] if found[1] in asked_for else "<g", svg)


def _together(dots: re.Match) -> str:
    """Dots that are drawn one after the other as one group, which has their look if it is the same."""
    uses = re.findall(r"<use[^>]*/>", dots[0])
    looks = {"".join(re.findall(r' style="[^"]*"', use)) for use in uses}
    group, look = dots[1], ""
    if len(looks) == 1 and (look := looks.pop()):
        group = f"{dots[1][:-1]}{look}>"
    return group + "".join(use.replace(look, "") if look else use for use in uses) + "</g>"


def _whole(cell: str) -> str:
    """A cell that may be broken before an interval, and not within it, nor between a number and its half-width or unit.

    >>> _whole("+0.12 [+0.10, +0.14] *"), _whole("33.0 ± 2.4"), _whole("183 s")
    ('+0.12 [+0.10,\\xa0+0.14]\\xa0*', '33.0\\xa0±\\xa02.4', '183\\xa0s')
    """
    kept = r"\[([^\s\[\]]+), ([^\s\[\]]+)\](?: (?=\S$))?| [±×] |^[-+−]?[\d.,]+ (?=\S{1,3}$)"
    return re.sub(kept, lambda found: found[0].replace(" ", "\xa0"), cell)


#: How a cell with a number begins, and what makes words of it; a dash is the want of a number.
_NUMBER, _WORD = re.compile(r"[-+−±<>≤≥≈~($\\[]*\.?\d|[-–—]?$"), re.compile(r"(?<![\\\w])[^\W\d_]{6}")


def _kind(cells) -> str:
    """The class of a column: most of its cells are words, which begin at the left, or numbers, which end at the right; sentences want room.

    >>> _kind(["asked", "0.71", "labels alone, 30.48"]), _kind(["–", "+0.12 [+0.10, +0.14]", "3, stops below 0.3"])
    (' class="kd-words"', '')
    >>> _kind(["1 * CrossEntropy()"]), _kind([Shown("<code>17b38d1222</code>")])
    (' class="kd-words"', ' class="kd-words"')
    """
    words = [isinstance(cell, Shown) or not _NUMBER.match(cell) or bool(_WORD.search(cell)) for cell in cells]
    if 2 * sum(words) <= len(words):
        return ""
    return ' class="kd-words kd-sentences"' if max(len(str(cell)) for cell in cells) > 40 else ' class="kd-words"'


def _header(cell: str, attributes: str = "") -> str:
    """A column's head; a formula alone, in which screen readers find no text, has its symbols for a name.

    >>> _header("$T=2$").split("<span")[0]
    '<th scope="col" aria-label="T=2">'
    >>> _header(""), _header("KL")
    ('<td></td>', '<th scope="col">KL</th>')
    """
    if not cell:
        return "<td></td>"
    name = ""
    if formula := re.fullmatch(r"\$([^$]*)\$", cell):
        plain = re.sub(r"\\(?:mathrm|text|operatorname|[,;!])?|[{}]", " ", formula[1])
        name = f' aria-label="{html.escape(" ".join(plain.split()))}"'
    return f'<th{attributes} scope="col"{name}>{mathematics(cell)}</th>'


def table(header, rows, *, caption: str) -> Shown:
    """A table with a caption above; numbers line up at the right, words at the left. ``$…$`` is mathematics; a ``Shown`` cell is HTML.

    >>> table(["T", "KL"], [[1, "0.850"]], caption="Two numbers.").markup.count("<td>")
    2
    """
    rows = [[cell if isinstance(cell, Shown) else str(cell) for cell in row] for row in rows]
    columns = list(zip(*rows, strict=True)) or [()] * len(header)
    kinds = ["", *map(_kind, columns[1:])]  # the first is at the left anyway
    head = "".join(_header(str(cell), kind) for cell, kind in zip(header, kinds, strict=True))
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{kind}>{cell.markup if isinstance(cell, Shown) else mathematics(_whole(cell))}</td>"
            for cell, kind in zip(row, kinds, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return Shown(
        f'<div class="kd-table" tabindex="0"><table class="table"><caption>{mathematics(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
