"""The page of questions: what is advised follows the records, and turns when they turn."""

from pathlib import Path

import pytest

from kdlab.study.answers import (
    ACCEPTANCE,
    OBJECTIVES,
    TEXTS,
    calibrated,
    draft,
    image_student,
    language,
    leaders,
    whose_text,
)
from kdlab.study.evidence import QUANTITIES
from kdlab.study.results import Results, results

BOOK = Path(__file__).resolve().parents[1] / "book" / "evidence"


@pytest.fixture(scope="module")
def known():
    return {plan: results(plan, BOOK) for plan in ("small", "language-small", "drafts-small")}


@pytest.fixture
def read(known):
    """The plans that are complete; of the others, nothing is recorded."""
    return lambda plan: known.get(plan, Results(plan, (), {}))


def with_values(study, measure, change):
    """A plan whose records of some arms have another value, as a function of the value and the arm."""
    records = {}
    for spec in study.specs:
        record = study.records[spec.hash]
        records[spec.hash] = record | {
            "test": record["test"] | {measure: change(record["test"].get(measure), spec.arm)}
        }
    return Results(study.plan, study.specs, records)


def test_the_best_is_named_with_those_that_are_not_shown_to_be_worse(known):
    accuracy, arms = QUANTITIES["accuracy"], ["kd", "dkd", "at", "alone"]
    equal = with_values(
        known["small"], "accuracy", lambda value, arm: 0.5 + (arm == "kd") * 0.001 + 0.01 * (hash(value) % 7)
    )
    ahead = with_values(known["small"], "accuracy", lambda value, arm: value + 0.5 * (arm == "at"))
    assert leaders(ahead, accuracy, arms) == ("at", [])
    first, level = leaders(equal, accuracy, arms)
    assert {first, *level} == set(arms)
    first, _ = leaders(
        with_values(known["small"], "calibration_error", lambda v, arm: v + (arm != "dkd")),
        QUANTITIES["calibration_error"],
        arms,
    )
    assert first == "dkd"  # less is better


@pytest.mark.parametrize("method", ["kd", "at", "alone"])
def test_the_objective_that_is_advised_is_the_one_that_leads(known, read, method):
    ahead = with_values(known["small"], "accuracy", lambda value, arm: value + 0.4 * (arm == method))
    said = image_student(lambda plan: ahead if plan == "small" else read(plan))
    expected = {"kd": "Plain distillation: in", "at": "AT: in test accuracy plain", "alone": "Labels alone: in"}[method]
    assert said.short.startswith(expected)
    assert OBJECTIVES[method] in said.evidence[0].split(" (")[0]


def test_calibration_after_a_fitted_temperature_is_used_where_it_is_recorded(known, read):
    assert any("grown</code> measures it" in sentence for sentence in calibrated(read).evidence)
    fitted = with_values(
        known["small"], "fitted", lambda value, arm: {"calibration_error": 0.01 + 0.2 * (arm != "rkd")}
    )
    said = calibrated(lambda plan: fitted if plan == "small" else read(plan))
    assert said.short.startswith("RKD has the lowest calibration error after a fitted temperature")
    assert not any("grown</code> measures it" in sentence for sentence in said.evidence)


def test_whether_to_distil_follows_the_differences(known, read):
    for sign, advice in (
        (-1, "At equal tokens, distil; at equal compute, distil."),
        (1, "At equal tokens, train it alone; at equal compute, train it alone."),
    ):
        moved = with_values(
            known["language-small"], "bits_per_byte", lambda v, arm, sign=sign: v + sign * 3 * arm.endswith("kd")
        )
        assert language(lambda plan, moved=moved: moved if plan == "language-small" else read(plan)).short == advice
    split = with_values(
        known["language-small"], "bits_per_byte", lambda v, arm: v + {"kd": 3, "gpt_64x2-kd": -3}.get(arm, 0)
    )
    assert language(lambda plan: split if plan == "language-small" else read(plan)).short.startswith(
        "At equal tokens, it depends on the size"
    )


def test_the_draft_that_is_advised_is_accepted_most(known, read):
    moved = with_values(known["drafts-small"], "total_variation", lambda v, arm: 0.2 + v / 100 if arm == "tv" else v)
    said = draft(lambda plan: moved if plan == "drafts-small" else read(plan))
    assert said.short.startswith("Total variation: every other draft is shown")
    moved = with_values(known["drafts-small"], "total_variation", lambda v, arm: v - 0.3 if arm == "alone" else v)
    assert draft(lambda plan: moved if plan == "drafts-small" else read(plan)).short.startswith(
        "The next token alone is enough"
    )
    assert ACCEPTANCE.of({"test": {"total_variation": 0.25}}) == 0.75


def test_no_text_is_advised_that_is_not_shown_to_be_better(known, read):
    assert whose_text(read).short.startswith("The corpus, where there is one")
    moved = with_values(known["language-small"], "bits_per_byte", lambda v, arm: v - (arm == "teacher-text"))
    said = whose_text(lambda plan: moved if plan == "language-small" else read(plan)).short
    assert said.startswith("Shown to be better") and TEXTS["teacher-text", "kd-same-text"][0] in said


def test_without_records_nothing_is_advised(known):
    nothing = {plan: Results(plan, study.specs, {}) for plan, study in known.items()}
    for ask in (image_student, calibrated, language, draft, whose_text):
        said = ask(lambda plan: nothing.get(plan, Results(plan, (), {})))
        assert said.short.startswith("The records do not say") and not (said.evidence or said.rows)
