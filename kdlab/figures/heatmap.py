"""A table of numbers as colours, with the numbers in them."""

import numpy as np


def heatmap(panel, values, rows, columns, *, text="{:.0f}", largest=None, fontsize=8, rotation=60) -> None:
    """Draw non-negative values into a Matplotlib panel, dark for zero, and write each into its cell.

    Args:
        panel: a Matplotlib ``Axes``.
        values: shape ``(rows, columns)``.
        rows, columns: their names.
        text: a format, or a function from a value to its text.
        largest: the value of the brightest colour; None is the largest there is.
        fontsize: of the numbers.
        rotation: of the columns' names, in degrees.
    """
    values = np.asarray(values, dtype=float)
    largest = values.max() if largest is None else largest
    panel.imshow(values, cmap="cividis", vmin=0, vmax=largest, aspect="equal" if len(rows) == len(columns) else "auto")
    for (row, column), value in np.ndenumerate(values):
        panel.text(
            column,
            row,
            text(value) if callable(text) else text.format(value),
            ha="center",
            va="center",
            fontsize=fontsize,
            color="white" if value < largest / 2 else "black",
        )
    panel.set_xticks(range(len(columns)), columns, rotation=rotation)
    panel.set_yticks(range(len(rows)), rows)
    panel.grid(visible=False)
