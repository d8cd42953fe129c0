"""Schedules, and the temperature that is learned against the student."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from losses import batch, gradient, refused

from kdlab import objectives
from kdlab.data import ExactTeacher, KnownPosterior
from kdlab.models import mlp
from kdlab.objectives import (
    Constant,
    Cosine,
    CrossEntropy,
    DecoupledKD,
    ForwardKL,
    LearnedTemperature,
    Linear,
    SoftTargets,
    Step,
    soft_targets,
)
from kdlab.objectives.schedules import at
from kdlab.training import Recipe, fit

numbers = st.floats(-100, 100)
parts = st.floats(0.01, 1)
schedules = st.one_of(
    st.builds(Constant, numbers),
    st.builds(Linear, numbers, numbers, parts),
    st.builds(Cosine, numbers, numbers, parts),
    st.builds(Step, numbers, st.dictionaries(parts, numbers, max_size=3)),
)


def same(text):
    """What an expression is in the names of kdlab.objectives."""
    return eval(text, dict(vars(objectives)))


# Values


@given(numbers, numbers, parts)
def test_ends_are_kept_from_the_first_step_to_the_last(start, end, until):
    for kind in (Linear, Cosine):
        schedule = kind(start, end, until)
        assert schedule(0.0) == start
        for progress in (until, (until + 1) / 2, 1.0):
            assert schedule(progress) == pytest.approx(end, abs=1e-12)
        assert schedule(until / 2) == pytest.approx((start + end) / 2, abs=1e-12)


@given(numbers, numbers, parts, st.floats(0, 1), st.floats(0, 1))
def test_the_way_is_one_way(start, end, until, a, b):
    for kind in (Linear, Cosine):
        schedule = kind(start, end, until)
        early, late = schedule(min(a, b)), schedule(max(a, b))
        assert (late - early) * (end - start) >= -1e-9
        assert min(start, end) - 1e-9 <= early <= max(start, end) + 1e-9


@given(st.floats(0, 1))
def test_closed_forms(progress):
    assert Linear(8, 1)(progress) == pytest.approx(8 - 7 * progress)
    assert Cosine(8, 1)(progress) == pytest.approx(1 + 7 * math.cos(math.pi * progress / 2) ** 2)
    assert Constant(3)(progress) == 3


def test_steps_come_in_the_order_of_training_however_they_are_written():
    schedule = Step(1.0, {0.75: 3, 0.25: 2})
    assert [schedule(p) for p in (0, 0.24, 0.25, 0.5, 0.75, 1)] == [1, 1, 2, 2, 3, 3]
    assert Step(1, {})(1) == 1 and Step(1, {0: 2})(0) == 2


@given(schedules, numbers, numbers, st.floats(0, 1))
def test_a_product_is_the_product_of_values(schedule, a, b, progress):
    for product in (a * schedule, schedule * a):
        assert product(progress) == pytest.approx(a * schedule(progress))
    assert (b * (a * schedule))(progress) == pytest.approx(a * b * schedule(progress))
    assert 1 * schedule is schedule


@given(schedules, numbers)
def test_repr_evaluates_to_an_equal_schedule(schedule, factor):
    assert same(repr(schedule)) == schedule
    again = same(repr(factor * schedule))
    assert again(0.3) == pytest.approx(factor * schedule(0.3), rel=1e-11)


def test_kinds_are_not_equal_though_their_numbers_are():
    assert Linear(8, 1) == Linear(8, 1, 1.0) != Cosine(8, 1)
    assert 2 * Linear(8, 1) != Linear(16, 2)


def test_numbers_are_their_own_schedule():
    assert at(4, None) == at(4, 0.5) == 4 and at(Linear(8, 1), 1) == 1


# What is refused


@pytest.mark.parametrize("bad", [math.nan, math.inf, "1", None, [1]])
def test_bad_numbers_are_refused(bad):
    for make in (
        lambda: Constant(bad),
        lambda: Linear(bad, 1),
        lambda: Linear(1, bad),
        lambda: Linear(1, 0, bad),
        lambda: Cosine(bad, 1),
        lambda: Step(bad, {}),
        lambda: Step(0, {0.5: bad}),
        lambda: LearnedTemperature(bad, 21),
        lambda: LearnedTemperature(1, bad),
        lambda: LearnedTemperature(1, 21, bad),
    ):
        refused(make, ValueError, "takes finite numbers, not")


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_bad_factors_are_refused(factor):
    refused(lambda: factor * Linear(1, 0), ValueError, "takes finite numbers, not")


def test_parts_that_training_never_reaches_are_refused():
    for until in (0, -0.1, 1.1):
        refused(Linear, ValueError, "until is a part of the training, above 0 and at most 1, not", 1, 0, until)
    for part in (30, -0.5):
        refused(Step, ValueError, "Step takes parts of the training, from 0 to 1, not", 1, {part: 0.1, 0.5: 2})


def test_schedules_are_multiplied_by_numbers_alone():
    for factor in ("2", [2], Linear(1, 0), 2 * Linear(1, 0)):
        for schedule in (Linear(1, 0), 2 * Linear(1, 0)):
            with pytest.raises(TypeError):
                schedule * factor


def test_a_schedule_has_to_say_its_value():
    with pytest.raises(NotImplementedError):
        objectives.schedules.Schedule()(0.5)


def test_a_weight_has_one_schedule():
    scheduled = Linear(1, 0) * CrossEntropy()
    sentence = "a weight that is a schedule already cannot be multiplied by another schedule"
    refused(lambda: Linear(0, 1) * scheduled, TypeError, sentence)
    refused(lambda: (scheduled + ForwardKL()) * Cosine(0, 1), TypeError, sentence)
    assert (2 * scheduled).weights == (2 * Linear(1, 0),)
    assert (Linear(1, 0) * (2 * CrossEntropy())).weights == (2 * Linear(1, 0),)


def test_without_progress_a_schedule_says_what_it_needs():
    z, t, y = batch(2, 3)
    seen = {"student_logits": z, "teacher_logits": t, "labels": y}
    for objective in (Linear(1, 0) * CrossEntropy(), 1.0 * SoftTargets(temperature=Linear(8, 1))):
        sentence = r"Linear\(.*\) is a schedule: say how much of the training is done, progress=0 … 1"
        refused(objective, TypeError, sentence, **seen)
        assert torch.isfinite(objective(**seen, progress=0)[0])
    sentence = "Cosine.* is a schedule: say how much of the training is done"
    refused(1.0 * SoftTargets(temperature=LearnedTemperature()), TypeError, sentence, **seen)


@pytest.mark.parametrize("kind", [ForwardKL, SoftTargets, DecoupledKD])
@pytest.mark.parametrize(
    "schedule", [Linear(4, 0), Cosine(0, 4), Step(4, {0.5: -1, 0.8: 2}), -1 * Constant(4)], ids=repr
)
def test_temperatures_that_stop_being_positive_are_refused_when_the_term_is_made(kind, schedule):
    refused(kind, ValueError, "temperature must be a positive, finite number, not", temperature=schedule)


# A temperature that is learned


def slope_in_theta(temperature, progress=1.0):
    z, t, _ = batch(4, 6)
    temperature.zero_grad()
    soft_targets(z, t, temperature=temperature(progress)).backward()
    return temperature.theta.grad.item()


@given(st.floats(-3, 3), st.floats(0, 2))
def test_theta_receives_minus_strength_times_the_gradient(theta, strength):
    temperature = LearnedTemperature(1, 9, strength=strength)
    temperature.theta.data.fill_(theta)
    T = torch.tensor(1 + 8 / (1 + math.exp(-theta)), requires_grad=True)
    assert temperature().item() == pytest.approx(T.item(), rel=1e-6)
    z, t, _ = batch(4, 6)
    (by_temperature,) = torch.autograd.grad(soft_targets(z, t, temperature=T), T)
    by_theta = by_temperature.item() * (T.item() - 1) * (9 - T.item()) / 8
    assert slope_in_theta(temperature) == pytest.approx(-strength * by_theta, rel=1e-4, abs=1e-6)


def test_the_student_receives_its_gradient_whatever_the_strength():
    z, t, _ = batch(4, 6)
    expected = gradient(soft_targets, z, t, temperature=5.0)
    for strength in (0, 1, 100):
        temperature = LearnedTemperature(1, 9, strength)
        torch.testing.assert_close(gradient(soft_targets, z, t, temperature=temperature()), expected)


def test_strength_follows_its_schedule():
    temperature = LearnedTemperature(1, 9, strength=Linear(0, 1))
    full = slope_in_theta(temperature, 1.0)
    assert full != 0 and slope_in_theta(temperature, 0.0) == 0
    assert slope_in_theta(temperature, 0.25) == pytest.approx(full / 4, rel=1e-5)


def test_the_default_strength_is_the_papers():
    strength = LearnedTemperature().strength
    assert [strength(p) for p in (0, 5 / 240, 10 / 240, 1)] == pytest.approx([0, 0.5, 1, 1])


def test_the_range_is_never_left_and_begins_in_its_middle():
    temperature = LearnedTemperature(2, 10)
    assert temperature(0.5) == 6
    for theta, end in ((-100.0, 2), (100.0, 10)):
        temperature.theta.data.fill_(theta)
        assert temperature(0.5).item() == pytest.approx(end)
    temperature.reset_parameters()
    assert temperature(0.5) == 6


@pytest.mark.parametrize("ends", [(0, 4), (-1, 4), (4, 4), (5, 4)])
def test_ranges_that_are_none_are_refused(ends):
    refused(LearnedTemperature, ValueError, "are no range of positive numbers", *ends)


def test_a_learned_temperature_is_shown_as_it_was_made():
    for temperature in (
        LearnedTemperature(),
        LearnedTemperature(2, 7.5, 0.5),
        LearnedTemperature(1, 4, Linear(0, 1)),
    ):
        again = same(repr(temperature))
        assert repr(again) == repr(temperature)
        assert (again.minimum, again.maximum, again.strength) == (
            temperature.minimum,
            temperature.maximum,
            temperature.strength,
        )
    assert repr(same(repr(SoftTargets(LearnedTemperature())))) == repr(SoftTargets(LearnedTemperature()))


# In training


TASK = KnownPosterior.draw(superclasses=2, classes_each=2, dimensions=4)


def train(objective, **options):
    torch.manual_seed(0)
    recipe = Recipe(epochs=4, batch_size=16, learning_rate=0.05, schedule="constant", weight_decay=0)
    student = mlp(4, 4)
    return fit(student, objective, train=TASK.sample(64), recipe=recipe, teacher=ExactTeacher(TASK), **options)


def test_fit_follows_weights_and_temperatures():
    seen = []

    class Progress(objectives.Term):
        needs_teacher = False

        def forward(self, *, student_logits, progress, **_):
            seen.append(progress)
            return 0.0 * student_logits.sum()

    objective = Step(0.0, {0.5: 1.0}) * CrossEntropy() + SoftTargets(Linear(8, 4)) + Progress()
    history = train(objective, gradient_norms=True)
    assert seen == [step / 16 for step in range(16)]
    temperatures = [8 - 4 * (epoch + 3 / 8) / 4 for epoch in range(4)]  # mean over the four steps of an epoch
    assert [entry["SoftTargets.temperature"] for entry in history] == pytest.approx(temperatures)
    for epoch, entry in enumerate(history):
        assert entry["loss"] == pytest.approx(entry["SoftTargets"] + (epoch >= 2) * entry["CrossEntropy"], rel=1e-5)
        assert (entry["CrossEntropy.gradient_norm"] > 0) == (epoch >= 2)


def test_fit_ascends_in_the_temperature():
    uphill = {}
    for strength in (0, 1, -1):  # −1 is descent
        temperature = LearnedTemperature(1, 9, strength)
        train(SoftTargets(temperature=temperature))
        uphill[strength] = temperature.theta.item()
    assert uphill[0] == 0 and uphill[1] * uphill[-1] < 0
    T = torch.tensor(5.0, requires_grad=True)
    inputs = TASK.sample(64).inputs
    torch.manual_seed(0)
    soft_targets(mlp(4, 4)(inputs), TASK.posterior_logits(inputs), temperature=T).backward()
    assert T.grad * uphill[1] > 0


def test_a_learned_temperature_is_in_the_checkpoint_and_in_the_log(tmp_path):
    def objective():
        return 1.0 * SoftTargets(temperature=LearnedTemperature(1, 9, strength=1.0))

    assert set(objective().state_dict()) == {"terms.0.temperature.theta"}
    whole = objective()
    history = train(whole)
    theta = whole.terms[0].temperature.theta.item()
    assert theta != 0 and all(1 < entry["SoftTargets.temperature"] < 9 for entry in history)
    assert len({entry["SoftTargets.temperature"] for entry in history}) == 4

    class Killed(Exception):
        pass

    def kill(entry):
        if entry["epoch"] == 2:
            raise Killed

    with pytest.raises(Killed):
        train(objective(), checkpoint=tmp_path / "run", report=kill)
    resumed = objective()
    assert [entry["loss"] for entry in train(resumed, checkpoint=tmp_path / "run")] == [
        entry["loss"] for entry in history
    ]
    assert resumed.terms[0].temperature.theta.item() == theta
    with pytest.raises(Exception, match="belongs to another run"):
        train(1.0 * SoftTargets(LearnedTemperature(1, 8, 1.0)), checkpoint=tmp_path / "run")
