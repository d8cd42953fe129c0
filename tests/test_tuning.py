"""As many tries for every method, and the plan that grows by what they choose."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdlab.objectives import CrossEntropy
from kdlab.study import Spec, results
from kdlab.study.display import conditions
from kdlab.study.grown import (
    CONTROLS,
    EPOCHS,
    METHODS,
    TUNING_SEED,
    arm_name,
    grown,
    objective,
    scaled_recipe,
    tuning,
)
from kdlab.study.plans import recorded, specs_of
from kdlab.study.records import write_record
from kdlab.study.results import Results
from kdlab.study.tuning import STEP, Try, Tuning
from kdlab.training import Recipe

BASE = Spec("tests", "x", "digits", "resnet8", 1.0 * CrossEntropy(), Recipe(epochs=1))


def make(choice, epochs):
    """The weight is written into ``decay``, which nothing uses here."""
    recipe = Recipe(epochs=epochs, learning_rate=choice.learning_rate, decay=choice.weight, schedule="constant")
    return replace(BASE, recipe=recipe)


def answers(score):
    """Records as ``score(rate, weight, epochs)`` has it; None is a run that diverged."""

    def found(spec):
        value = score(spec.recipe.learning_rate, spec.recipe.decay, spec.recipe.epochs)
        return {"test": None if value is None else {}, "epochs": {"validation.accuracy": [0.9, value]}}

    return found


def hill(rate, weight=1.0, at_rate=0.1, at_weight=1.0):
    return -(math.log(rate / at_rate) ** 2) - math.log(weight / at_weight) ** 2


def test_six_tries_the_best_two_again_and_the_better_of_them():
    first, second = [], []

    def score(rate, weight, epochs):
        (first if epochs == 5 else second).append(Try(rate, weight))
        return hill(rate, weight)

    tuned = Tuning(make)
    best = tuned.chosen(answers(score))
    assert set(first) == {Try(r) for r in (0.015, 0.05, 0.15, 0.5)} | {Try(0.15, 1 / 3), Try(0.15, 3.0)}
    assert set(second) == {Try(0.15), Try(0.05)}
    assert best == Try(0.15)


def test_the_second_round_decides_and_not_the_first():
    best = Tuning(make).chosen(answers(lambda r, w, epochs: hill(r, w) if epochs == 5 else hill(r, w, at_rate=0.01)))
    assert best == Try(0.05)


def test_the_weight_is_tried_at_the_best_rate():
    tried = Tuning(make).first(answers(lambda r, w, _: hill(r, w, at_rate=0.05, at_weight=3.0)))[0]
    assert Try(0.05, 3.0) in tried and Try(0.05, 9.0) in tried and Try(0.15, 3.0) not in tried
    assert Tuning(make).chosen(answers(lambda r, w, _: hill(r, w, at_rate=0.05, at_weight=3.0))) == Try(0.05, 3.0)


@pytest.mark.parametrize(("at_rate", "beyond"), [(5.0, [0.5 * STEP, 5.0]), (1e-9, [0.015 / STEP, 0.0015])])
def test_a_choice_at_the_edge_extends_the_grid(at_rate, beyond):
    tried, rested = Tuning(make, weighted=False).first(answers(lambda r, w, _: hill(r, w, at_rate=at_rate)))
    assert rested and all(any(math.isclose(t.learning_rate, rate) for t in tried) for rate in beyond)
    assert len(tried) <= 4 + 3 + 2


def test_a_run_that_diverged_is_the_worst():
    chosen = Tuning(make).chosen(answers(lambda r, w, _: None if r > 0.1 or w != 1 else -5 + r))
    assert chosen == Try(0.05)


def test_of_runs_that_all_diverged_none_is_chosen():
    """The lowest rate was, and three seeds of it would have been trained."""
    with pytest.warns(
        UserWarning, match="nothing is chosen by x and the others: all of them diverged; try lower rates"
    ):
        assert Tuning(make).chosen(answers(lambda r, w, _: None)) is None


@given(draw=st.randoms())
def test_no_other_finalist_is_better_whatever_the_runs_say(draw):
    seen = {}
    found = answers(lambda *what: seen.setdefault(what, draw.random()))
    tuned = Tuning(make)
    chosen, finalists = tuned.chosen(found), tuned.second(found)
    assert chosen in finalists
    again = {t: seen[t.learning_rate, t.weight, 15] for t in finalists}
    assert again[chosen] == max(again.values())
    firsts = {t: seen[t.learning_rate, t.weight, 5] for t in tuned.first(found)[0]}
    assert min(firsts[t] for t in finalists) >= max(v for t, v in firsts.items() if t not in finalists)


def test_nothing_is_chosen_before_all_tries_are_recorded():
    known = answers(lambda r, w, _: hill(r, w))
    for lacking in (0.015, 0.5):
        partial = lambda spec, lacking=lacking: None if spec.recipe.learning_rate == lacking else known(spec)  # noqa: E731
        assert Tuning(make).chosen(partial) is None
    partial = lambda spec: None if spec.recipe.epochs == 15 else known(spec)  # noqa: E731
    assert Tuning(make).chosen(partial) is None and len(Tuning(make).second(partial)) == 2


def by_rate(spec):
    """All methods are best at 0.05 but KD, which is at 0.15 with thrice its weight."""
    at = (0.15, 0.5) if spec.arm.startswith("tune-kd") else (0.05, 1.0)
    weight = 3.0 if "weight3" in spec.arm else 1 / 3 if "weight0.333" in spec.arm else 1.0
    value = (
        hill(spec.recipe.learning_rate, 1.0, at[0])
        - (0.1 if weight < 1 else 0)
        + (0.05 if weight > 1 and at[0] > 0.1 else -0.05)
    )
    return {"test": {}, "epochs": {"validation.accuracy": [value]}}


def test_a_plan_grows_by_what_was_chosen(tmp_path):
    begun = grown(lambda spec: None)
    assert {spec.recipe.seed for spec in begun if spec.arm.startswith("tune")} == {TUNING_SEED}
    assert not any(spec.arm in (arm_name("kd", EPOCHS), "kd-T8-soft1") for spec in begun)
    whole = grown(by_rate)
    names = {spec.arm for spec in whole}
    for method in (*METHODS, *CONTROLS):
        seeds = [spec.recipe.seed for spec in whole if spec.arm == arm_name(method, EPOCHS)]
        assert sorted(seeds) == list(range(5)), method
    assert {"kd-T-falling", "kd-own-view", "kd-long-teacher", "resnet56-resnet20-dkd", "kd-240"} <= names
    assert {spec.hash for spec in begun} <= {spec.hash for spec in whole}
    (tmp_path / "records").mkdir()
    for spec in begun[:7]:
        write_record(spec, tmp_path / "records", by_rate(spec) | {"recipe": {"seed": spec.recipe.seed}})
    assert [spec.hash for spec in specs_of("grown", tmp_path)] == [s.hash for s in grown(recorded(tmp_path))]
    assert TUNING_SEED not in {s.recipe.seed for s in whole if not s.arm.startswith("tune")}


def test_a_control_differs_from_kd_in_what_the_teacher_says_alone():
    whole = {(spec.arm, spec.recipe.seed): spec for spec in grown(by_rate)}
    kd = whole[arm_name("kd", EPOCHS), 0]
    for control in CONTROLS:
        spec = whole[arm_name(control, EPOCHS), 0]
        assert replace(spec, arm=kd.arm, objective=kd.objective).hash == kd.hash
        assert spec.objective.weights == kd.objective.weights and repr(spec.objective) != repr(kd.objective)


def test_arms_of_one_length_differ_in_objective_and_chosen_rate_alone():
    whole = [
        spec for spec in grown(by_rate) if spec.arm in {arm_name(m, EPOCHS) for m in METHODS} and spec.recipe.seed == 0
    ]
    assert len(whole) == len(METHODS)
    same = {
        replace(s, arm="x", objective=CrossEntropy(), recipe=replace(s.recipe, learning_rate=0.1)).hash for s in whole
    }
    assert len(same) == 1
    assert {spec.arm: spec.recipe.learning_rate for spec in whole}[arm_name("kd", EPOCHS)] == 0.15


def test_the_published_recipe_is_scaled_and_its_weight_multiplied():
    assert scaled_recipe(240, precision="float32") == Recipe()
    for epochs in (5, 60):
        ours, theirs = scaled_recipe(epochs), Recipe()
        for part in (0.1, 0.624, 0.626, 0.74, 0.76, 0.87, 0.88, 0.999):
            assert ours.learning_rate_at(part * epochs) == theirs.learning_rate_at(part * 240)
    for method in (*METHODS, *CONTROLS):
        if method == "alone":
            continue
        one, three = objective(method), objective(method, 3.0)
        labels = lambda o: sum(w for w, t in zip(o.weights, o.terms, strict=True) if isinstance(t, CrossEntropy))  # noqa: E731
        if method == "smoothed":
            assert (one.terms[0].smoothing, three.terms[0].smoothing) == (0.1, 0.25)
        elif method in ("kd", *CONTROLS):
            assert sum(three.weights) == pytest.approx(1, abs=1e-5)
            assert three.weights[1] / three.weights[0] == pytest.approx(27, rel=1e-4)
        else:
            assert labels(one) == labels(three)
            for a, b in zip(one.weights[1:], three.weights[1:], strict=True):
                assert (b(0.5) if callable(b) else b) == pytest.approx(3 * (a(0.5) if callable(a) else a))


def test_the_grid_is_the_same_for_every_method():
    tries = {method: tuning(method).first(lambda spec: None)[0] for method in METHODS}
    assert len({tuple(t) for t in tries.values()}) == 1


def test_conditions_say_how_a_plan_chose_its_learning_rates():
    tuned = conditions(Results("grown", tuple(grown(by_rate)), {}))
    assert tuned == "ResNet-20 to ResNet-8, 5 to 240 epochs, learning rates chosen on the validation split"
    # Adam's rate and the one that the factor N divides are no exceptions; MobileNet's is
    assert conditions(results("small")).endswith("5 epochs, one untuned learning rate, 0.1")
    assert "one untuned learning rate, 0.05 (" in conditions(results("table"))
    assert conditions(results("language-small")).endswith("one untuned learning rate, 0.002")
