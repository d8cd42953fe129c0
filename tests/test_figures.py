"""Figures look the same on every machine."""

import csv
import io
import re

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from kdlab.figures import dots, heatmap, sentence, show, speed_up_dial, temperature_dial, transfer_points, use_style
from kdlab.figures.plotted import plotted
from kdlab.models import resnet8
from kdlab.objectives import CrossEntropy
from kdlab.study.downloads import CSV


@pytest.fixture(autouse=True)
def style():
    with mpl.rc_context():
        use_style()
        yield
    plt.close("all")


def rows(figure) -> list[str]:
    return plotted(figure).splitlines()


def drawn() -> str:
    use_style()
    figure, axes = plt.subplots()
    axes.plot([1, 2], [3, 4], label="a_b")
    axes.set(title="$T^2$", xlabel="%")
    axes.legend()
    return show(figure, label="a", caption="A line.", alt="A line that rises.").markup


def test_a_sentence_is_a_paragraph_and_what_it_says_is_no_markup():
    said = sentence("$T=4$ is <b>.", "So.")
    assert said.markup.count("<p>") == 2 and "&lt;b&gt;" in said.markup and r"\(T=4\)" in said.markup


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


def test_two_lines_and_an_image_are_their_numbers():
    figure, (panel, image) = plt.subplots(1, 2)
    panel.plot([1, 2], [0.5, 0.25], label="kd")
    panel.plot([1, 2], [1e-9, 123456.78], "--")
    panel.set(title="Loss", xlabel="T", ylabel="KL, nats")
    figure.colorbar(image.imshow([[1, 2], [3, 4]]), label="bits")
    image.set_yticks([0, 1], ["first", "last"])
    assert plotted(figure) == (
        'panel,series,T,"KL, nats",y,x,bits\n'
        "Loss,kd,1,0.5,,,\nLoss,kd,2,0.25,,,\n"
        "Loss,orange dashed line,1,1e-09,,,\nLoss,orange dashed line,2,123456.8,,,\n"
        "2,values,,,first,0,1\n2,values,,,first,1,2\n2,values,,,last,0,3\n2,values,,,last,1,4\n"
    )


def test_an_image_that_begins_below_is_not_turned_over():
    figure, panel = plt.subplots()
    panel.imshow([[1], [2]], origin="lower", extent=(0, 10, 0, 4))
    assert rows(figure)[1:] == ["values,1,5,1", "values,3,5,2"]


def test_dots_and_bars_stand_in_the_table_by_the_names_of_their_rows():
    figure, (one, other) = plt.subplots(1, 2)
    dots(one, {"kd": {3: 0.25}, "alone": []}, {"kd": (0.3, 0.2, 0.4)}, reference={"alone": 7}, factor=100)
    other.barh([-0.2, 0.8], [5, 6], 0.4, label="early")
    other.barh([0.2, 1.2], [1, 2], 0.4, left=[1, 0], label="late")
    other.set_yticks([0, 1], ["kd", "alone"])
    assert rows(figure) == [
        'panel,series,x,y,"x, from","x, to"',
        "1,run,25,kd,,", "1,interval,20,kd,,", "1,interval,40,kd,,", "1,mean,30,kd,,", "1,reference,7,alone,,",
        "2,early,5,kd,,", "2,early,6,alone,,", "2,late,,kd,1,2", "2,late,2,alone,,",
    ]  # fmt: skip


def test_reference_lines_bands_intervals_and_points_with_names():
    figure, panel = plt.subplots()
    panel.axhline(0.5, label="chance")
    panel.axvspan(1, 2, label="early")
    panel.fill_between([0, 1], [2, 3], [5, 4], label="band")
    panel.errorbar([0], [1], yerr=[0.25], label="mean")
    panel.scatter([4], [5])
    panel.annotate("here", (4, 5))
    assert rows(figure) == [
        'series,y,"x, from","x, to",x,"y, from","y, to"',
        "chance,0.5,,,,,", "early,,1,2,,,", "band,,,,0,2,5", "band,,,,1,3,4", "mean,1,,,0,,", "mean,,,,0,0.75,1.25", "here,5,,,4,,",
    ]  # fmt: skip


def test_ticks_that_are_named_by_other_numbers_have_these():
    figure, (one, other) = plt.subplots(1, 2)
    one.plot([0, 1], [5, 6], label="kd")
    one.set_xticks([0, 1], [0.5, 2])
    other.loglog([1, 10], [5, 6], label="kd")
    assert rows(figure)[1:] == ["1,kd,0.5,5", "1,kd,2,6", "2,kd,1,5", "2,kd,10,6"]


def test_a_series_without_a_name_has_that_of_one_that_looks_the_same():
    figure, panels = plt.subplots(1, 2, sharex=True, sharey=True)
    panels[0].plot([1], [2], "s", color="red", label="kd")
    panels[1].plot([3], [4], "s", color="red")
    panels[0].set(xlabel="T", ylabel="KL")
    assert rows(figure) == ["panel,series,T,KL", "1,kd,1,2", "2,kd,3,4"]


def test_the_rest_of_the_kinds_are_read():
    figure, (one, two, three) = plt.subplots(1, 3)
    one.bar(["a", "b"], [1, 2], label="w")
    one.hist([0, 0], bins=[0, 1], histtype="step", label="h")
    two.contourf(np.arange(4).reshape(2, 2), levels=[0, 1, 3])
    two.quiver([0], [1], [2], [3])
    three.axline((0, 1), slope=2, label="line")
    three.vlines([1], 0, 2, label="v")
    three.pcolormesh([0, 2, 4], [0, 1], [[5, 6]])
    three.imshow(np.zeros((4, 4, 3)))  # a picture
    found = list(csv.DictReader(io.StringIO(plotted(figure))))
    assert {row["series"] for row in found} == {"w", "h", "contours", "black arrows", "line", "v", "values"}

    def of(series, *columns):
        return [tuple(row[column] for column in columns) for row in found if row["series"] == series]

    assert of("w", "x", "y") == [("a", "1"), ("b", "2")]
    assert {level for (level,) in of("contours", "level")} == {"0", "1"}
    assert of("black arrows", "x", "y", "along x", "along y") == [("0", "1", "2", "3")]
    assert of("line", "x", "y") == [("0", "1"), ("1", "3")]
    assert of("values", "x", "y", "value") == [("1", "0.5", "5"), ("3", "0.5", "6")]
    assert of("v", "x", "y, from", "y, to") == [("1", "0", "2")]


def test_a_diagram_has_no_numbers():
    figure = transfer_points(resnet8(), resnet8(), 1.0 * CrossEntropy())
    assert plotted(figure) == ""
    assert CSV not in show(figure, label="a", caption="A.", alt="B.")._repr_mimebundle_()


def test_figures_to_touch_have_their_numbers_too():
    example = {"name": "a dog", "logits": torch.tensor([1.0, 3.0]), "classes": ["cat", "dog"], "highlight": set()}
    dial = temperature_dial([example], label="d", caption="c")
    assert dial._repr_mimebundle_()[CSV] == "example,class,logit\na dog,dog,3\na dog,cat,1\n"
    measured = [{"name": "books", "alpha": 0.5, "points": [(4, 1.9, 1.2)]}]
    dial = speed_up_dial(measured, draft_cost=0.1, token_cost=0.1, label="s", caption="c")
    assert dial._repr_mimebundle_()[CSV] == "set,draft length,tokens per call,speed-up\nbooks,4,1.9,1.2\n"


def test_figures_to_touch_stand_still_without_javascript():
    example = {"name": "a dog", "logits": torch.tensor([1.0, 3.0]), "classes": ["cat", "dog"], "highlight": {1}}
    off = temperature_dial([example], label="d", caption="c").markup.split("<figcaption>")[0]
    assert 'kd-kin" style="width: 88.1%"' in off and "<script" not in off
    measured = [{"name": "books", "alpha": 0.5, "points": [(4, 1.9, 1.2)]}]
    off = speed_up_dial(measured, draft_cost=0.1, token_cost=0.1, label="s", caption="c").markup.split("<figcaption>")[
        0
    ]
    assert off.count("<polyline") == 2 and "brings 1.94 tokens per call, and is 1.08 times as fast" in off


def test_the_numbers_go_with_the_picture():
    figure, panel = plt.subplots()
    heatmap(panel, [[1, 2]], ["kd"], ["T1", "T2"])
    shown = show(figure, label="a", caption="A.", alt="B.")._repr_mimebundle_()
    assert shown[CSV] == "series,y,x,value,written\nvalues,kd,T1,1,1\nvalues,kd,T2,2,2\n"
    assert shown["text/html"].startswith("<figure")


def test_ticks_whose_labels_are_numbers_name_the_points():
    figure, axis = plt.subplots()
    axis.loglog([8, 16], [1, 2])
    axis.set(xlabel="length", ylabel="loss", xticks=[8, 16], xticklabels=[8, 16])
    assert "16" in plotted(figure)


def test_a_polygon_without_a_label_has_its_look():
    figure, panel = plt.subplots()
    panel.fill([0, 1, 0], [0, 0, 1], facecolor="none", edgecolor="grey")
    assert panel.patches[0].get_label() in (None, "", "_child0")  # as Matplotlib has it
    panel.patches[0]._label = None
    assert plotted(figure).startswith("series,x,y\n") and plotted(figure).count("area,") == 4


def test_a_shorter_picture_has_the_same_places_and_dots():
    figure, panel = plt.subplots()
    panel.scatter(range(30), range(30))
    panel.plot(np.linspace(0, 30, 200), np.sin(np.linspace(0, 30, 200)))
    markup = show(figure, label="a", caption="A.", alt="B.").markup
    assert (
        markup.count('y="') >= 30
        and len(re.findall(r'<use xlink:href="#a-[^"]+" x="[\d.]+" y="[\d.]+"/>', markup)) == 30
    )  # their look is the group's
    assert all(f'id="{name}"' in markup for name in re.findall(r'xlink:href="#([^"]+)"', markup))
    assert not re.search(r"\d\.\d{3,}[ \"]", "".join(re.findall(r' d="[^"]*"', markup))) and "<!--" not in markup
