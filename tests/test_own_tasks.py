"""Tasks, teachers, views and networks of a user's own, each with what `fit` takes for it."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from kdlab.data import Examples
from kdlab.objectives import LogitMSE, SquaredError, cross_entropy, logit_mse, squared_error
from kdlab.training import Recipe, fit, predict

RECIPE = Recipe(epochs=2, batch_size=16, learning_rate=0.05, schedule="constant", augment=False, weight_decay=0.0)


def numbers(n=64, seed=0):
    """x of four numbers, and y = 2 x₀ − x₁ with a little noise: shapes (n, 4) and (n,)."""
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))
    return Examples(x, 2 * x[:, 0] - x[:, 1] + 0.01 * torch.randn(n, generator=torch.Generator().manual_seed(seed + 1)))


def affine(outputs=1, seed=0):
    torch.manual_seed(seed)
    return nn.Linear(4, outputs)


def mean_error(student, split):
    return {"error": (predict(student, split).squeeze(1) - split.labels).abs().mean()}


# Regression


def test_one_output_is_learned_and_measured_by_ones_own_measure():
    teacher, student, data = affine(seed=1), affine(seed=2), numbers()
    whole = replace(RECIPE, epochs=20)
    fit(teacher, SquaredError(), train=data, recipe=whole)
    history = fit(student, SquaredError() + LogitMSE(), teacher=teacher, train=data, recipe=whole, validation=numbers(seed=5), measure=mean_error)
    assert list(history[0]["validation"]) == ["error"] and isinstance(history[0]["validation"]["error"], float)
    assert history[-1]["validation"]["error"] < 0.05 < history[0]["validation"]["error"]
    torch.testing.assert_close(student.weight[0], torch.tensor([2.0, -1.0, 0.0, 0.0]), atol=0.05, rtol=0)


def test_labels_are_of_the_examples_and_not_of_all_pairs():
    z, y = torch.tensor([[1.0], [5.0]], requires_grad=True), torch.tensor([3.0, 5.0])
    assert squared_error(z, y) == squared_error(z, y[:, None]) == 2 == logit_mse(z, y[:, None])
    (slope,) = torch.autograd.grad(squared_error(z, y), z)
    torch.testing.assert_close(slope, (z - y[:, None]).detach())  # 2 (z − y) / B
    maps = torch.randn(2, 1, 3, 5)
    assert squared_error(maps, maps[:, 0] + 1, class_axis=1) == squared_error(maps, maps + 1, class_axis=1) == 1


def test_the_mean_is_over_outputs_and_what_counts():
    z, y = torch.tensor([[1.0, 0.0], [0.0, 7.0]]), torch.tensor([[3.0, 0.0], [float("nan"), 0.0]])
    mask = torch.tensor([True, False])
    assert squared_error(z, y, mask=mask) == 2 and squared_error(z, y, mask=mask, count=4) == 0.5
    assert squared_error(z, y, mask=mask, reduction="none").tolist() == [2.0, 0.0]
    half = squared_error(z[:1].half(), y[:1].half())
    assert half.dtype == torch.float32 and half == 2


@pytest.mark.parametrize(
    ("z", "y", "error", "sentence"),
    [
        (torch.zeros(2, 1), torch.tensor([0, 1]), TypeError, "floating point, not torch.int64: labels.float"),
        (torch.zeros(2, 3), torch.zeros(2), ValueError, r"labels of shape \(2,\) do not fit outputs of shape \(2, 3\)"),
        (torch.zeros(2, 3), torch.zeros(1, 3), ValueError, "one label an output"),
        (torch.zeros(2, 1), torch.tensor([0.0, float("nan")]), ValueError, "labels have entries that are NaN"),
        (torch.zeros(2, 1, 3, 5), torch.zeros(2, 1, 3, 5), ValueError, "may have their classes in any axis"),
    ],
)
def test_what_is_no_regression_is_refused(z, y, error, sentence):
    with pytest.raises(error, match=sentence):
        squared_error(z, y)


def test_logits_of_any_width():
    z, t = torch.tensor([[1.0], [0.0]]), torch.tensor([[3.0], [0.0]])
    assert logit_mse(z, t) == 2 and LogitMSE()(student_logits=z, teacher_logits=t) == 2
    with pytest.raises(ValueError, match="of one output, centred, nothing is left"):
        logit_mse(z, t, centred=True)
    with pytest.raises(ValueError, match="two classes"):
        cross_entropy(z, torch.tensor([0, 0]))


def test_maps_of_numbers_are_learned_and_refused_in_micro_batches():
    x = torch.randn(16, 1, 4, 4)
    data, student = Examples(x, 3 * x), nn.Conv2d(1, 1, 1)
    history = fit(student, SquaredError(class_axis=1), train=data, recipe=replace(RECIPE, epochs=40))
    assert history[-1]["loss"] < 0.01 * history[0]["loss"]
    with pytest.raises(ValueError, match="maps of numbers the positions are not known"):
        fit(student, SquaredError(class_axis=1), train=data, recipe=replace(RECIPE, micro_batches=2))


def test_micro_batches_of_a_regression_add_up():
    found = []
    for parts in (1, 4):
        student = affine()
        fit(student, SquaredError(), train=numbers(), recipe=replace(RECIPE, micro_batches=parts))
        found.append(student.weight.detach())
    torch.testing.assert_close(*found)


def test_a_measure_says_numbers_by_name_of_a_validation_split():
    data = numbers()
    for measure, error, sentence in (
        (lambda student, split: 1.0, TypeError, "dictionary of numbers by their names, not 1.0"),
        (lambda student, split: {"a": torch.ones(2)}, TypeError, "'a' is tensor"),
        (lambda student, split: {"a": float("nan")}, FloatingPointError, "a of the validation stopped being finite"),
    ):
        with pytest.raises(error, match=sentence):
            fit(affine(), SquaredError(), train=data, validation=data, measure=measure, recipe=RECIPE)
    with pytest.raises(ValueError, match="give validation"):
        fit(affine(), SquaredError(), train=data, measure=mean_error, recipe=RECIPE)
    with pytest.raises(ValueError, match="say in measure="):
        fit(affine(), SquaredError(), train=data, validation=data, recipe=RECIPE)


def test_a_measure_sees_the_student_in_evaluation_mode_without_gradient():
    seen = []

    def measure(student, split):
        seen.append((student.training, torch.is_grad_enabled(), len(split)))
        return {"a": 0}

    fit(affine(), SquaredError(), train=numbers(), validation=numbers(32), measure=measure, recipe=RECIPE)
    assert seen == [(False, False, 32)] * 2
