"""All records as one table, and the figure that shows it."""

import json
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
    assert set(row(one("small.kd.seed0") | {"test": None})) == set(ABOUT)


def test_rows_come_by_plan_arm_and_seed():
    found = rows([one(f"small.{name}") for name in ("kd.seed1", "kd.seed0", "alone.seed2")])
    assert [(r["arm"], r["seed"]) for r in found] == [("alone", 2), ("kd", 0), ("kd", 1)]


def test_the_explorer_has_every_run_with_its_measures_and_its_record():
    runs = [{"plan": "p", "arm": "a", "seed": 0, "length": "5 epochs", "record": "p.a.json", "x": 0.1234567, "y": None}]
    markup = explorer(runs, {"p": ["x", "y"]}, [12.706, 4.3027], label="all", caption="Runs.", records="../r/").markup
    given = json.loads(markup.split("<template>")[1].split("</template>")[0])
    assert given["plans"]["p"] == {"measures": ["x", "y"], "runs": [["a", 0, "5 epochs", "p.a.json", [0.12346, None]]]}
    assert (
        given["folder"] == "../r/"
        and "needs JavaScript" in markup
        and "http" not in markup.replace("http://www.w3.org/2000/svg", "")
    )
    with pytest.raises(ValueError, match="at least one run"):
        explorer([], {}, [], label="all", caption="Runs.")
    with pytest.raises(ValueError, match="no measure"):
        explorer(runs, {}, [], label="all", caption="Runs.")
