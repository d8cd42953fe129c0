"""All records as one table, and the figure that shows it."""

import json
import re
from pathlib import Path

import pytest

from kdlab.figures import explorer
from kdlab.study.flat import ABOUT, numbers, row, rows

RECORDS = Path(__file__).resolve().parents[1] / "book" / "evidence" / "records"


def one(name):
    return json.loads(next(RECORDS.glob(f"{name}.*.json")).read_text(encoding="utf-8"))


def test_a_row_has_what_was_trained_and_every_number_of_its_test():
    record = one("small.kd.seed0")
    found = row(record)
    assert (found["plan"], found["arm"], found["seed"], found["length"]) == ("small", "kd", 0, "5 epochs")
    assert found["accuracy"] == record["test"]["accuracy"] and (RECORDS / found["record"]).exists()
    assert {name for name in found if name not in ABOUT} == set(dict(numbers(record["test"])))
    assert rows([one("teacher.resnet20.seed0"), record])[0]["teacher"] == "resnet20"
    text = row(one("language-small.kd.seed0"))
    assert text["length"] == "1.05 million tokens" and "sample" not in text


def test_a_run_that_diverged_has_no_measure():
    record = one("small.kd.seed0") | {"test": None, "diverged": "training diverged in epoch 1 of 5"}
    found = row(
        {name: what for name, what in record.items() if name not in ("seconds", "examples_per_second", "epochs")}
    )
    assert set(found) == set(ABOUT) and found["seconds"] is None


def test_rows_come_by_plan_arm_and_seed():
    found = rows([one(f"small.{name}") for name in ("kd.seed1", "kd.seed0", "alone.seed2")])
    assert [(r["arm"], r["seed"]) for r in found] == [("alone", 2), ("kd", 0), ("kd", 1)]


def test_the_explorer_has_every_run_with_its_measures_and_its_record():
    runs = [{"plan": "p", "arm": "a", "seed": 0, "length": "5 epochs", "record": "p.a.json", "x": 0.1234567, "y": None}]
    markup = explorer(runs, {"p": ["x", "y"]}, [12.706, 4.3027], label="all", caption="Runs.", records="../r/").markup
    given = json.loads(markup.split("<template>")[1].split("</template>")[0])
    assert given["plans"]["p"] == {"measures": ["x", "y"], "runs": [["a", 0, "5 epochs", "p.a.json", [0.12346, None]]]}
    assert given["folder"] == "../r/"
    assert "http" not in re.sub(r'xmlns(:\w+)?="http://[^"]+"|"http://www.w3.org/2000/svg"', "", markup)
    with pytest.raises(ValueError, match="at least one run"):
        explorer([], {}, [], label="all", caption="Runs.")
    with pytest.raises(ValueError, match="no measure"):
        explorer(runs, {}, [], label="all", caption="Runs.")


def test_without_javascript_the_explorer_is_the_picture_that_it_begins_with():
    run = {"plan": "p", "length": "5 epochs", "record": "p.json"}
    runs = [
        {**run, "arm": arm, "seed": seed, "x": x}
        for arm, seed, x in (("low", 0, 1.0), ("low", 1, 3.0), ("high", 0, 9.0))
    ]
    runs += [{**run, "arm": "low", "seed": 2}, {**run, "plan": "later", "arm": "other", "seed": 0, "x": 4.0}]
    markup = explorer(runs, {"p": ["x"], "later": ["x"]}, [12.706], label="all", caption="Runs.").markup
    still = markup.split('<div class="kd-dial-off">')[1].split("</div><figcaption>Runs.")[0]
    assert 'aria-label="Plan p, x: high 9, n = 1; low 2 [-10.71, 14.71], n = 2."' in still and "fig-all-still" in still
    assert (
        sum(drawn.count("<use") for drawn in re.findall(r'fill-opacity:0.5">((?:<use[^>]*>)+)', still)) == 3
    )  # a dot a run
    nothing = explorer([{**run, "arm": "low", "seed": 0}], {"p": ["x"]}, [12.706], label="all", caption="Runs.").markup
    assert "No run of the plan p has a measure to show." in nothing
