"""The numbers in a figure, from what was drawn, so that no chapter has to write them down a second time."""

import csv
import io
import math
import re

import numpy as np
from matplotlib import ticker
from matplotlib.category import StrCategoryLocator
from matplotlib.collections import (
    Collection,
    FillBetweenPolyCollection,
    LineCollection,
    PathCollection,
    QuadMesh,
)
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import AxLine, Line2D
from matplotlib.patches import Polygon, Rectangle
from matplotlib.quiver import Quiver
from matplotlib.text import Annotation

COLOURS = {
    "#0072b2": "blue", "#e69f00": "orange", "#009e73": "green", "#cc79a7": "purple", "#d55e00": "vermilion",
    "#56b4e9": "sky", "#808080": "grey", "#000000": "black", "#010203": "ink", "#ffffff": "white",
}  # fmt: skip
DASHES = {"--": "dashed ", ":": "dotted ", "-.": "dash-dotted "}


def plotted(figure: Figure) -> str:
    """The numbers in a figure as CSV, one table: a row a point, with the axes' labels as headers; "" if there are none.

    A panel has its title, or its number, in the column ``panel``, which is absent where there is one panel only. ``series`` is the
    artist's label (in no legend, if it begins with "_"), else that of a series that looks the same, else what is written at the
    point, else the look. A place on an axis of names is its name. Bands, bars that do not begin at zero and intervals have two
    columns, "from" and "to"; images have their values, and what is written upon them. Texts, arrows between texts, pictures in
    colour and polygons of collections are no data.

    >>> import matplotlib.pyplot as plt
    >>> figure, panel = plt.subplots()
    >>> _ = panel.plot([1, 2], [3, 4.5], label="kd")
    >>> _ = panel.set(xlabel="T", ylabel="loss")
    >>> print(plotted(figure), end="")
    series,T,loss
    kd,1,3
    kd,2,4.5
    >>> plt.close(figure)
    """
    bars = {
        artist.colorbar.ax for panel in figure.axes for artist in (*panel.images, *panel.collections) if artist.colorbar
    }
    panels = [panel for panel in figure.axes if panel not in bars]
    looks = _looks(figure)
    rows = []
    for number, panel in enumerate(panels, start=1):
        title = next(
            filter(None, (_plain(panel.get_title(place)) for place in ("left", "center", "right"))), f"{number}"
        )
        for series, row in _rows(panel, looks):
            rows.append({**({"panel": title} if len(panels) > 1 else {}), "series": series, **row})
    return as_csv(rows)


def as_csv(rows: list[dict]) -> str:
    """Rows as a table with a column for every key of theirs, in the order of their first use; "" for none."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    if rows:
        table = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    return text.getvalue()


def _rows(panel, looks):
    """(series, row) for each point of a panel."""
    x, y = (_label(panel, which) or which for which in "xy")
    name_x, name_y = _namer(panel.xaxis), _namer(panel.yaxis)
    notes = {
        tuple(map(_number, text.xy)): _plain(text.get_text()) for text in panel.texts if isinstance(text, Annotation)
    }
    labels = {part: bars.get_label() for bars in panel.containers for part in _parts(bars)}
    upright = {
        bar: bars.orientation != "horizontal"
        for bars in panel.containers
        if isinstance(bars, BarContainer)
        for bar in bars
    }

    def span(column, low, high, name):
        return {f"{column}, from": name(low), f"{column}, to": name(high)}

    for artist in panel.get_children():
        found = []
        if isinstance(artist, (Line2D, Rectangle)):  # a reference line's ends are parts of the panel, and no data
            in_x, in_y = artist.get_transform().contains_branch_seperately(panel.transData)
        if isinstance(artist, AxLine):
            through, (slope, other) = artist.get_xy1(), (artist.get_slope(), artist.get_xy2())
            ends = [through, other or (through[0] + 1, through[1] + slope)]
            found = [{x: name_x(a), y: name_y(b)} for a, b in ends]
        elif isinstance(artist, Line2D):
            places = zip(artist.get_xdata(orig=False), artist.get_ydata(orig=False), strict=True)
            found = [{**({x: name_x(a)} if in_x else {}), **({y: name_y(b)} if in_y else {})} for a, b in places]
            if not (in_x and in_y):
                found = found[:1]
        elif isinstance(artist, AxesImage):
            if artist.get_array().ndim == 2:
                found = _cells(artist, panel, x, y, name_x, name_y)
        elif artist in upright:
            (low, bottom), (wide, high) = artist.get_xy(), (artist.get_width(), artist.get_height())
            if upright[artist]:
                length = {y: name_y(high)} if bottom == 0 else span(y, bottom, bottom + high, name_y)
                found = [{x: name_x(low + wide / 2), **length}]
            else:
                length = {x: name_x(wide)} if low == 0 else span(x, low, low + wide, name_x)
                found = [{y: name_y(bottom + high / 2), **length}]
        elif isinstance(artist, Rectangle) and artist is not panel.patch:
            (low, bottom), (wide, high) = artist.get_xy(), (artist.get_width(), artist.get_height())
            row = span(x, low, low + wide, _number) if in_x else {}
            found = [row | (span(y, bottom, bottom + high, _number) if in_y else {})]
        elif isinstance(artist, Polygon):
            found = [{x: name_x(a), y: name_y(b)} for a, b in artist.get_xy()]
        elif isinstance(artist, ContourSet):
            level = zip(artist.levels, artist.get_paths(), strict=False)
            found = [{x: _number(a), y: _number(b), "level": _number(v)} for v, path in level for a, b in path.vertices]
        elif isinstance(artist, Quiver):
            arrows = zip(artist.XY, artist.U, artist.V, strict=True)
            found = [
                {x: _number(a), y: _number(b), "along x": _number(u), "along y": _number(v)} for (a, b), u, v in arrows
            ]
        elif isinstance(artist, FillBetweenPolyCollection):
            along = int(artist.t_direction == "y")
            (at, name_at), (over, name_over) = ((x, name_x), (y, name_y))[:: 1 - 2 * along]
            band = {}
            for path in artist.get_paths():
                for place in path.vertices:
                    band.setdefault(place[along], []).append(place[1 - along])
            found = [
                {at: name_at(a), **span(over, min(ends), max(ends), name_over)} for a, ends in sorted(band.items())
            ]
        elif isinstance(artist, LineCollection):
            for (a, b), *_, (c, d) in artist.get_segments():
                across = {x: name_x(a)} if a == c else span(x, a, c, name_x)
                found.append(across | ({y: name_y(b)} if b == d else span(y, b, d, name_y)))
        elif isinstance(artist, QuadMesh):
            corners, column = artist.get_coordinates(), _colour_label(artist)
            middles = (corners[:-1, :-1] + corners[1:, 1:]) / 2
            cells = zip(middles.reshape(-1, 2), np.ma.filled(artist.get_array(), np.nan).ravel(), strict=True)
            found = [{x: name_x(a), y: name_y(b), column: _number(value)} for (a, b), value in cells]
        elif isinstance(artist, PathCollection):
            values = artist.get_array()
            found = [{x: name_x(a), y: name_y(b)} for a, b in artist.get_offsets()]
            if values is not None and len(values) == len(found):
                column = _colour_label(artist)
                found = [row | {column: _number(value)} for row, value in zip(found, values, strict=True)]
        if found and artist.get_visible():
            label = _named(labels.get(artist) or artist.get_label()) or looks.get(_look(artist))
            for row in found:
                yield label or notes.get((row.get(x), row.get(y))) or _look(artist), row


def _cells(image, panel, x, y, name_x, name_y):
    """The values of an image, each with the place of its centre."""
    values = image.get_array()
    left, right, bottom, top = image.get_extent()
    rows, columns = values.shape
    if image.origin == "upper":
        bottom, top = top, bottom
    across = [name_x(left + (column + 0.5) * (right - left) / columns) for column in range(columns)]
    up = [name_y(bottom + (row + 0.5) * (top - bottom) / rows) for row in range(rows)]
    value = _colour_label(image)
    found = [{y: up[i], x: across[j], value: _number(v)} for (i, j), v in np.ndenumerate(np.ma.filled(values, np.nan))]
    written = {
        (name_y(text.get_position()[1]), name_x(text.get_position()[0])): _plain(text.get_text())
        for text in panel.texts
    }
    return [row | ({"written": text} if (text := written.get((row[y], row[x]))) else {}) for row in found]


def _colour_label(artist) -> str:
    """What the colours are, by the colour bar."""
    bar = artist.colorbar
    return (bar and _plain(bar.ax.get_ylabel() or bar.ax.get_xlabel())) or "value"


def _parts(container):
    for part in container:
        if part is not None:
            yield from part if isinstance(part, (tuple, list)) else [part]


def _named(label: object) -> str:
    """What a chapter calls an artist; a name that begins with "_" is one that stands in no legend. Matplotlib's own are none, nor is None."""
    label = "" if label is None else str(label)
    return "" if re.fullmatch(r"_(child|container)\d+|_nolegend_", label) else _plain(label.removeprefix("_"))


def _plain(text) -> str:
    """One line; a tick's name may be a number."""
    return " ".join(str(text).split())


def _number(value) -> str:
    return f"{float(value):.7g}"


def _label(panel, which: str) -> str:
    """An axis's label, or that of a panel that shares the axis."""
    shared = getattr(panel, f"get_shared_{which}_axes")().get_siblings(panel)
    labels = (getattr(other, f"get_{which}label")() for other in (panel, *shared))
    return next(filter(None, map(_plain, labels)), "")


def _namer(axis):
    """From a coordinate to its text: the name at its tick, on an axis whose ticks are names, else the number."""
    locator, formatter = axis.get_major_locator(), axis.get_major_formatter()
    names = {}
    if isinstance(locator, (ticker.FixedLocator, StrCategoryLocator)):
        ticks = list(locator())
        names = dict(zip(map(float, ticks), map(_plain, formatter.format_ticks(ticks)), strict=True))
    if not names or not all(names.values()) or all(_is_number(name, place) for place, name in names.items()):
        return _number
    places = sorted(names)
    near = 0.49 if places == [float(k) for k in range(len(places))] else 1e-9  # groups of bars stand beside their tick

    def name(value):
        nearest = min(places, key=lambda place: abs(place - value))
        return names[nearest] if abs(nearest - value) <= near else _number(value)

    return name


def _is_number(name: str, place: float) -> bool:
    """Whether a tick's name is the number that it stands at, or mathematics of it such as ``$10^{3}$``.

    >>> _is_number("0.5", 0.5), _is_number("0.5", 2.0), _is_number(r"$\\mathdefault{10^{3}}$", 1000.0), _is_number("kd", 1.0)
    (True, False, True, False)
    """
    try:
        return math.isclose(float(name), place)
    except ValueError:
        return not any(letter.isalpha() for letter in name.replace("mathdefault", ""))


def _looks(figure) -> dict[str, str]:
    """The label of each look, where one look has one label in the whole figure."""
    found = {}
    legends = [legend for panel in figure.axes if (legend := panel.get_legend())] + figure.legends
    for legend in legends:
        for handle, text in zip(legend.legend_handles, legend.get_texts(), strict=True):
            found.setdefault(_look(handle), set()).add(_plain(text.get_text()))
    for panel in figure.axes:
        for artist in panel.get_children():
            if isinstance(artist, (Line2D, Collection)) and (label := _named(artist.get_label())):
                found.setdefault(_look(artist), set()).add(label)
    return {look: labels.pop() for look, labels in found.items() if len(labels) == 1}


def _look(artist) -> str:
    """How a series looks, in words: "blue dashed line"."""
    if isinstance(artist, Line2D):
        colour, dashes, marker = artist.get_color(), artist.get_linestyle(), artist.get_marker()
        lines = dashes not in ("None", "none", "", " ")
        kind = f"{DASHES.get(dashes, '')}line" if lines else {"o": "dots"}.get(marker, f"marks {marker}")
    elif isinstance(artist, (AxesImage, QuadMesh)):
        return "values"
    elif isinstance(artist, ContourSet):
        return "contours"
    elif isinstance(artist, Quiver):
        colour, kind = artist.get_facecolor(), "arrows"
    elif isinstance(artist, LineCollection):
        colour, kind = artist.get_edgecolor(), "line"
    else:
        colour, kind = artist.get_facecolor(), "area"
    if np.ndim(colour) > 1:  # one for each member
        colour = colour[0] if len(colour) else "none"
    colour = to_hex(colour)
    return f"{COLOURS.get(colour, colour)} {kind}"
