"""Figures look the same on every machine."""

import matplotlib as mpl
import matplotlib.pyplot as plt

from kdlab.figures import dots, show, use_style


def drawn() -> str:
    use_style()
    figure, axes = plt.subplots()
    axes.plot([1, 2], [3, 4], label="a_b")
    axes.set(title="$T^2$", xlabel="%")
    axes.legend()
    return show(figure, label="a", caption="A line.", alt="A line that rises.").markup


def test_a_matplotlibrc_of_the_user_changes_nothing():
    with mpl.rc_context():
        plain = drawn()
    theirs = {
        "text.usetex": True,
        "axes.facecolor": "black",
        "axes.titlecolor": "white",
        "font.family": "monospace",
    }
    with mpl.rc_context(theirs | {"lines.linestyle": "--", "savefig.facecolor": "black"}):
        assert drawn() == plain


def test_dots_are_the_values_of_seeds_and_not_the_seeds():
    figure, (one, other) = plt.subplots(1, 2)
    dots(one, {"kd": {3: 0.25, 7: 0.5}}, {}, factor=100)
    dots(other, {"kd": [0.25, 0.5]}, {}, factor=100)
    assert one.lines[0].get_xdata().tolist() == other.lines[0].get_xdata().tolist() == [25, 50]
    plt.close(figure)
