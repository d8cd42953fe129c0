"""Tasks, teachers, views and networks of a user's own, each with what `fit` takes for it."""

import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from kdlab.data import Examples, draw_boxes, resample
from kdlab.files import sha256
from kdlab.objectives import (
    BinaryCrossEntropy,
    CrossEntropy,
    HiddenMSE,
    LogitMSE,
    SoftTargets,
    SparseForwardKL,
    SparseTargets,
    SquaredError,
    cross_entropy,
    logit_mse,
    squared_error,
)
from kdlab.study import Spec, find_record, run
from kdlab.study.named import load
from kdlab.study.runner import run_plan
from kdlab.training import (
    CachedLogits,
    CacheError,
    CheckpointError,
    FunctionTeacher,
    Learner,
    Recipe,
    Stopped,
    fit,
    fit_together,
    predict,
    save_model,
    write_logits,
)
from kdlab.training.checkpoint import load_tensors
from kdlab.training.views import aligned

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
    history = fit(
        student,
        SquaredError() + LogitMSE(),
        teacher=teacher,
        train=data,
        recipe=whole,
        validation=numbers(seed=5),
        measure=mean_error,
    )
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
    for train in (data, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, 3 * x), 16)):
        with pytest.raises(ValueError, match="maps of numbers the positions are not known"):
            fit(student, SquaredError(class_axis=1), train=train, recipe=replace(RECIPE, micro_batches=2))


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


def test_a_measure_of_what_a_dataloader_loads():
    data, found = numbers(32), []
    pairs = torch.utils.data.TensorDataset(data.inputs, data.labels)
    for validation in (data, torch.utils.data.DataLoader(pairs, batch_size=16)):
        how = {"validation": validation, "measure": mean_error, "recipe": RECIPE}
        found.append(fit(affine(), SquaredError(), train=data, **how)[-1]["validation"])
    assert found[0] == pytest.approx(found[1])


def test_several_labels_a_picture_are_refused_where_the_accuracy_of_one_is_measured():
    """Also where the first batch has one each, and it comes out later."""
    labels = torch.tensor([[1.0, 0.0]] * 16 + [[1.0, 1.0]] * 16)
    pairs = torch.utils.data.TensorDataset(numbers(32).inputs, labels)
    for first in (1, 32):
        validation = torch.utils.data.DataLoader(pairs, batch_size=first)
        with pytest.raises(ValueError, match="say in measure="):
            fit(affine(2), BinaryCrossEntropy(), train=Examples(*pairs.tensors), validation=validation, recipe=RECIPE)


def test_what_one_output_and_several_labels_are_learned_by_is_said():
    with pytest.raises(ValueError, match="SquaredError and LogitMSE; for yes or no, BinaryCrossEntropy"):
        fit(affine(), CrossEntropy(), train=numbers(), recipe=RECIPE)
    several = Examples(numbers(16).inputs, torch.ones(16, 2))
    with pytest.raises(ValueError, match="learn BinaryCrossEntropy and BinarySoftTargets"):
        fit(affine(2), CrossEntropy(), train=several, recipe=RECIPE)


def test_a_measure_sees_the_student_in_evaluation_mode_without_gradient():
    seen = []

    def measure(student, split):
        seen.append((student.training, torch.is_grad_enabled(), len(split)))
        return {"a": 0}

    fit(affine(), SquaredError(), train=numbers(), validation=numbers(32), measure=measure, recipe=RECIPE)
    assert seen == [(False, False, 32)] * 2


# A function, and kept logits, as teacher


def pictures(n=48, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Examples(torch.randn(n, 3, 4, 4, generator=generator), torch.randint(5, (n,), generator=generator))


def flat(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 5))


def learned(teacher, student=None, train=None, **options):
    student = flat() if student is None else student
    fit(
        student,
        SoftTargets(4),
        teacher=teacher,
        train=pictures() if train is None else train,
        **{"recipe": RECIPE} | options,
    )
    return student[-1].weight.detach()


def test_a_function_teaches_as_the_model_that_it_asks():
    model, index = flat(1).eval(), []
    log_p = FunctionTeacher(lambda x: model(x).log_softmax(-1), "one", gives="log-probabilities")
    p = FunctionTeacher(lambda x: model(x).softmax(-1), "one", gives="probabilities")
    logits = predict(model, pictures())
    by_index = FunctionTeacher(lambda i: (index.append(i), logits[i])[1], "one", by_index=True)
    expected = learned(model)
    for teacher in (FunctionTeacher(model, "one"), log_p, p, by_index):
        torch.testing.assert_close(learned(teacher), expected)
    assert index[0].dtype == torch.int64 and sorted(torch.cat(index[:3]).tolist()) == list(range(48))


@pytest.mark.parametrize("gives", ["log-probabilities", "probabilities"])
def test_clamped_zeros_are_what_one_says_they_stand_for(gives):
    p = torch.tensor([[0.75, 0.25, 0.0], [0.5, 0.5, 0.0]])
    given = p if gives == "probabilities" else p.log().clamp(min=-9999.0)
    found = FunctionTeacher(lambda x: given, "it", gives=gives, smallest=1e-3)(torch.zeros(2, 1))
    raised = p.clamp(min=1e-3)
    torch.testing.assert_close(found.exp(), raised / raised.sum(-1, keepdim=True))
    with pytest.raises(ValueError, match="gives probability zero, .* smallest=1e-6"):
        FunctionTeacher(lambda x: given, "it", gives=gives)(torch.zeros(2, 1))
    with pytest.raises(ValueError, match="is more than there is"):
        FunctionTeacher(lambda x: given, "it", gives=gives, smallest=0.5)(torch.zeros(2, 1))


@pytest.mark.parametrize(
    ("says", "how", "error", "sentence"),
    [
        (torch.zeros(2, 3), {"gives": "probabilities"}, ValueError, "sum to 0, not to one"),
        (torch.tensor([[2.0, 1.0]] * 2), {"gives": "log-probabilities"}, ValueError, "gives no log-probabilities"),
        (
            torch.zeros(3, 3),
            {},
            TypeError,
            r"a floating-point tensor of shape \(2, …, N\), not torch.float32, \(3, 3\)",
        ),
        ([0.0], {}, TypeError, r"not list \(torch.as_tensor makes one of numbers\)"),
        (torch.zeros(2, 3).numpy(), {}, TypeError, r"not ndarray \(torch.as_tensor makes one of numbers\)"),
    ],
)
def test_what_a_function_does_not_give_is_refused(says, how, error, sentence):
    with pytest.raises(error, match=sentence):
        FunctionTeacher(lambda x: says, "it", **how)(torch.zeros(2, 1))


def test_how_a_function_is_named():
    for call, error, sentence in (
        (lambda: FunctionTeacher(len, ""), TypeError, "a function and its name"),
        (lambda: FunctionTeacher(len, "it", gives="odds"), ValueError, "gives is one of logits"),
        (lambda: FunctionTeacher(len, "it", smallest=0.1), ValueError, "smallest is a probability above zero"),
        (lambda: learned(lambda x: x), TypeError, r"FunctionTeacher\(function, name\)"),
    ):
        with pytest.raises(error, match=sentence):
            call()


def test_a_server_that_gives_a_few_of_many_classes_teaches_too():
    of_server = SparseTargets.from_log_probabilities(
        torch.tensor([[0, 3]] * 16), torch.tensor([[0.6, 0.3]] * 16).log(), 5
    )
    student = flat()
    fit(student, SparseForwardKL(), teacher=FunctionTeacher(lambda x: of_server, "it"), train=pictures(), recipe=RECIPE)
    assert predict(student, pictures()).softmax(-1)[:, 0].mean() > 0.3


def test_another_function_is_another_run(tmp_path):
    path, one = tmp_path / "run", flat(1).eval()
    learned(FunctionTeacher(one, "one"), checkpoint=path)
    learned(FunctionTeacher(one, "one"), checkpoint=path)
    with pytest.raises(CheckpointError, match="other teacher"):
        learned(FunctionTeacher(one, "two"), checkpoint=path)


def test_kept_logits_teach_as_their_teacher(tmp_path):
    model, path = flat(1).eval(), tmp_path / "logits"
    write_logits(path, model, pictures())
    assert torch.equal(CachedLogits(path, model)(torch.tensor([5, 2])), predict(model, pictures())[[5, 2]])
    torch.testing.assert_close(learned(CachedLogits(path)), learned(model))


def test_kept_logits_are_of_one_teacher_and_of_its_examples(tmp_path, digits):
    path, model = tmp_path / "logits", flat(1).eval()
    write_logits(path, model, pictures())
    for call, error, sentence in (
        (lambda: learned(CachedLogits(path), train=pictures(seed=1)), CacheError, "the cache of other examples"),
        (lambda: CachedLogits(path, flat(2)), CacheError, "of another teacher"),
        (lambda: CachedLogits(tmp_path / "none"), CacheError, "does not exist"),
        (lambda: write_logits(path, model, pictures()), CacheError, "exists already"),
        (lambda: write_logits(tmp_path / "other", CachedLogits(path), pictures()), ValueError, "looks at no inputs"),
    ):
        with pytest.raises(error, match=sentence):
            call()
    save_model(tmp_path / "model", model, {})
    with pytest.raises(CacheError, match="holds no logits"):
        CachedLogits(tmp_path / "model")


def test_kept_logits_of_whole_pictures_are_not_taken_for_those_of_crops(tmp_path, digits, linear):
    path, train = tmp_path / "logits", digits.train[:32]
    write_logits(path, linear(1), train)
    crops = replace(RECIPE, augment=True, epochs=1)
    with pytest.raises(ValueError, match="the recipe crops and mirrors them: augment=False"):
        fit(linear(), SoftTargets(), teacher=CachedLogits(path), train=train, recipe=crops)
    fit(linear(), SoftTargets(), teacher=CachedLogits(path, whole_pictures=True), train=train, recipe=crops)


# Views


def convolutional(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))


def half(images, generator):
    boxes = draw_boxes(len(images), generator, area=(0.25, 0.25))
    return resample(images, boxes, 2), boxes


def test_a_box_of_a_picture_is_what_lies_there():
    picture = torch.arange(16.0).view(1, 1, 4, 4).requires_grad_()
    assert torch.equal(resample(picture, torch.tensor([[0.0, 0.0, 1.0, 1.0]]), 4), picture)
    corner = resample(picture, torch.tensor([[0.5, 0.0, 1.0, 0.5]]), 2)
    assert corner.flatten().tolist() == [8.0, 9.0, 12.0, 13.0]
    (slope,) = torch.autograd.grad(corner.sum(), picture)
    assert slope[0, 0].tolist() == [[0.0] * 4] * 2 + [[1.0, 1.0, 0.0, 0.0]] * 2
    boxes = draw_boxes(1000, torch.Generator().manual_seed(0), area=(0.25, 1.0))
    sides = boxes[:, 2:] - boxes[:, :2]
    assert boxes.min() >= 0 and boxes.max() <= 1 and torch.allclose(sides[:, 0], sides[:, 1], atol=1e-6)
    assert abs(sides.square().mean() - 0.625) < 0.02
    with pytest.raises(ValueError, match="area is two fractions"):
        draw_boxes(1, None, area=(0.0, 1.0))


def seen_by(model, looks):
    model.register_forward_pre_hook(lambda m, inputs: looks.append(inputs[0].detach().clone()))
    return model


def test_student_and_teacher_see_their_own_views():
    """The student sees quarters of the pictures, drawn anew at each step and the same in every run; the teacher sees them whole."""
    found = []
    for _ in range(2):
        students, teachers = [], []
        student, teacher = seen_by(convolutional(), students), seen_by(convolutional(1), teachers)
        fit(student, SoftTargets(), teacher=teacher, train=pictures(), recipe=RECIPE, student_view=half)
        found.append(students)
    assert {x.shape for x in students} == {(16, 3, 2, 2)} and {x.shape for x in teachers} == {(16, 3, 4, 4)}
    assert all(map(torch.equal, *found)) and len({x.sum().item() for x in students}) == 6


def test_a_view_of_the_teacher_alone():
    students, teachers = [], []
    student, teacher = seen_by(convolutional(), students), seen_by(convolutional(1), teachers)
    fit(student, SoftTargets(), teacher=teacher, train=pictures(), recipe=RECIPE, teacher_view=lambda x, g: 2 * x)
    assert all(torch.equal(2 * x, y) for x, y in zip(students, teachers, strict=True))


def test_a_hint_knows_where_the_crop_was():
    """With a teacher whose maps are the picture itself, a student whose maps are what it sees has nothing to learn: but only in their places."""
    itself, train = nn.Sequential(nn.Identity(), nn.Flatten()), pictures()

    def quarter(images, generator):  # of whole pixels, so that nothing is between two of them
        corners = torch.randint(2, (len(images), 2), generator=generator) / 2
        boxes = torch.cat([corners, corners + 0.5], 1)
        return resample(images, boxes, 2), boxes

    def hint(view, **how):
        torch.manual_seed(0)
        student = nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5))
        return fit(
            student,
            HiddenMSE("0") + 0.0 * CrossEntropy(),
            teacher=itself,
            train=train,
            recipe=RECIPE,
            student_view=view,
            **how,
        )[0]["loss"]

    assert hint(quarter) < 1e-10
    # elsewhere
    assert hint(lambda x, g: (quarter(x, g)[0], torch.tensor([[0.0, 0.0, 0.5, 0.5]]).expand(len(x), 4))) > 0.1
    with pytest.raises(ValueError, match="it is not known where in the picture"):
        hint(lambda x, g: quarter(x, g)[0])
    with pytest.raises(ValueError, match="places of the picture that the teacher does not"):
        hint(quarter, teacher_view=quarter)


def test_what_has_no_coordinates_is_refused_between_views(digits, resnet):
    for x, layer in ((torch.zeros(2, 7, 3), "blocks.0"), (torch.zeros(2, 4, 7, 7), "attention:blocks.0")):
        with pytest.raises(ValueError, match="has positions without coordinates"):
            aligned({layer: x}, {layer: x}, [(layer, layer)], {})
    flat = {"fc": torch.ones(2, 3)}
    assert aligned(flat, flat, [("fc", "fc")], {}) == flat
    recipe = replace(RECIPE, augment=True, teacher_view="own", epochs=1)
    with pytest.raises(ValueError, match="it is not known where in the picture"):
        fit(resnet(), HiddenMSE("layer2"), teacher=resnet(1), train=digits.train[:32], recipe=recipe)


def test_views_that_cannot_be_are_refused(tmp_path):
    cached = FunctionTeacher(lambda index: torch.zeros(len(index), 5), "it", by_index=True)
    for how, sentence in (
        ({"student_view": lambda x, g: x[:3]}, "as many inputs as it is given, or these and their boxes: not 3, of 16"),
        ({"student_view": lambda x, g: (x, torch.zeros(16, 3))}, r"boxes have shape \(16, 4\)"),
        ({"student_view": lambda x, g: (x, torch.zeros(16, 4))}, "boxes are parts of a picture"),
        ({"student_view": half, "recipe": replace(RECIPE, teacher_view="own")}, "no view of its own|said twice"),
        ({"teacher_view": half, "teacher": cached}, "a teacher that looks at inputs, and there is none"),
        ({"student_view": half, "rewrite": lambda *_: None}, "rewritten or seen in views, not both"),
    ):
        with pytest.raises(ValueError, match=sentence):
            fit(
                convolutional(),
                SoftTargets(),
                **{"teacher": convolutional(1), "train": pictures(), "recipe": RECIPE} | how,
            )

    for who in ("student", "teacher"):
        for view in (lambda x: x, lambda x, g, more: x, torch.zeros(2)):
            with pytest.raises(TypeError, match=rf"{who}_view is a function of the inputs and of a generator"):
                fit(
                    convolutional(),
                    SoftTargets(),
                    teacher=convolutional(1),
                    train=pictures(),
                    recipe=RECIPE,
                    **{f"{who}_view": view},
                )

    def run(view):
        fit(
            convolutional(),
            SoftTargets(),
            teacher=convolutional(1),
            train=pictures(),
            recipe=RECIPE,
            student_view=view,
            checkpoint=tmp_path / "run",
        )

    run(half)
    run(half)
    with pytest.raises(CheckpointError, match="other views"):
        run(lambda x, g: x)


# What is told of each step


@pytest.mark.parametrize("parts", [1, 2])
def test_each_step_is_told(parts):
    student, told, lengths = flat(), [], []

    def after_step(entry):
        told.append(entry)
        lengths.append(student[1].weight.grad.norm().item())

    recipe = replace(RECIPE, schedule="cosine", micro_batches=parts)
    history = fit(
        student,
        CrossEntropy() + 0.5 * SoftTargets(),
        teacher=flat(1),
        train=pictures(),
        recipe=recipe,
        after_step=after_step,
    )
    assert [(x["epoch"], x["step"], x["steps"]) for x in told] == [(e, s, 3) for e in (1, 2) for s in (1, 2, 3)]
    assert told[1]["learning_rate"] == recipe.learning_rate_at(1 / 3) and all(lengths)
    for name in ("loss", "CrossEntropy", "SoftTargets"):
        mean = sum(x[name] for x in told[:3]) / 3
        assert mean.item() == pytest.approx(history[0][name], rel=1e-6) and not mean.requires_grad


def test_what_is_told_changes_nothing():
    torch.testing.assert_close(
        learned(flat(1), after_step=lambda entry: torch.rand(1)), learned(flat(1)), rtol=0, atol=0
    )


# Which weights a student is left with


def batch_normalised(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 6), nn.BatchNorm1d(6), nn.Linear(6, 5))


def test_the_average_is_what_is_measured_and_left():
    student, seen = batch_normalised(), []
    start = student[1].weight.detach().clone()
    recipe = replace(RECIPE, ema_decay=0.3)
    measured = []
    fit(student, CrossEntropy(), train=pictures(), recipe=recipe, after_step=lambda _: seen.append(student[1].weight.detach().clone()),
        validation=pictures(seed=3), measure=lambda s, split: measured.append(s[1].weight.detach().clone()) or {"a": 0})  # fmt: skip
    mean = start
    for t, weight in enumerate(seen, 1):
        d = min(0.3, (1 + t) / (10 + t))
        mean = d * mean + (1 - d) * weight
        if t % 3 == 0:
            torch.testing.assert_close(measured[t // 3 - 1], mean)
    torch.testing.assert_close(student[1].weight.detach(), mean)
    assert not torch.equal(measured[0], seen[2])  # and training went on from the weights themselves:
    plain, alone = batch_normalised(), []
    fit(
        plain,
        CrossEntropy(),
        train=pictures(),
        recipe=RECIPE,
        after_step=lambda _: alone.append(plain[1].weight.detach().clone()),
    )
    assert all(map(torch.equal, seen, alone))


def told_of(numbers):
    numbers = iter(numbers)
    weights = []
    return weights, lambda s, split: weights.append(s[1].weight.detach().clone()) or {"error": next(numbers)}


def test_the_best_epoch_is_left_and_training_ends_early():
    weights, measure = told_of([3, 1, 2, 1, 0])
    student, recipe = flat(), replace(RECIPE, epochs=5, best_by="lowest error", patience=2)
    history = fit(
        student, CrossEntropy(), train=pictures(), recipe=recipe, validation=pictures(seed=3), measure=measure
    )
    assert [entry["validation"]["error"] for entry in history] == [3, 1, 2, 1] and recipe.best_epoch(history) == 2
    assert torch.equal(student[1].weight, weights[1]) and not torch.equal(weights[1], weights[3])


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_average_best_and_patience_go_on_over_a_resume(tmp_path, ema):
    """Killed after each epoch, and stopped in the middle of one: the same history, the same weights, the same end."""
    recipe = replace(RECIPE, epochs=8, ema_decay=ema, best_by="highest accuracy", patience=2, learning_rate=0.2)
    how = {"train": pictures(), "validation": pictures(seed=3), "recipe": recipe}

    def timeless(history):
        return [{k: v for k, v in entry.items() if "second" not in k} for entry in history]

    whole = batch_normalised()
    expected = fit(whole, CrossEntropy(), **how)
    assert len(expected) < 8
    steps = []

    def stop():
        steps.append(1)
        return len(steps) % 4 == 0

    for _ in range(40):
        student = batch_normalised()
        try:
            history = fit(student, CrossEntropy(), **how, checkpoint=tmp_path / "run", stop=stop)
            break
        except Stopped:
            pass
    assert timeless(history) == timeless(expected)
    again = batch_normalised()
    assert fit(again, CrossEntropy(), **how, checkpoint=tmp_path / "run") == history
    for name, value in whole.state_dict().items():
        assert torch.equal(value, student.state_dict()[name]) and torch.equal(value, again.state_dict()[name]), name


def test_one_ends_early_beside_another_and_each_as_alone():
    """The error falls, so that its highest is the first epoch's, and one epoch of patience ends in the second."""
    recipes = [replace(RECIPE, epochs=4, best_by="highest error", patience=1), replace(RECIPE, epochs=4, ema_decay=0.5)]
    how = {"train": numbers(), "validation": numbers(32, seed=5), "measure": mean_error}
    together = [affine(), affine()]
    histories = fit_together([Learner(s, SquaredError(), r) for s, r in zip(together, recipes, strict=True)], **how)
    assert [len(history) for history in histories] == [2, 4]
    for student, recipe in zip(together, recipes, strict=True):
        fit(alone := affine(), SquaredError(), recipe=recipe, **how)
        assert torch.equal(alone.weight, student.weight)


def test_what_cannot_be_best_is_refused_before_training():
    for changes, how, sentence in (
        ({"patience": 1}, {}, "patience waits for a better epoch"),
        ({"best_by": "accuracy"}, {}, 'best_by is "highest …" or "lowest …"'),
        ({"ema_decay": 1.0}, {}, "ema_decay must be from 0 to less than 1"),
        ({"best_by": "highest accuracy"}, {}, "that of a validation split"),
        (
            {"best_by": "highest rmse"},
            {"validation": pictures(16)},
            "best_by names 'rmse', and what is measured .* is accuracy",
        ),
        (
            {"best_by": "highest a"},
            {"validation": pictures(16), "measure": lambda *_: {"b": 1}},
            "best_by names 'a', .* is b",
        ),
    ):
        with pytest.raises(ValueError, match=sentence):
            fit(flat(), CrossEntropy(), train=pictures(), recipe=replace(RECIPE, **changes), **how)


def test_a_state_that_is_a_copy_is_neither_averaged_nor_put_back():
    student = flat()
    student.register_state_dict_post_hook(
        lambda module, state, *_: state.update({k: v.clone() for k, v in state.items()})
    )
    with pytest.raises(ValueError, match="is a copy of what it computes with"):
        fit(student, CrossEntropy(), train=pictures(), recipe=replace(RECIPE, ema_decay=0.5))


def test_an_earlier_checkpoint_goes_on(tmp_path):
    """What a recipe says of averages and best epochs is in a checkpoint's identity only where it is used."""
    fit(flat(), CrossEntropy(), train=pictures(), recipe=RECIPE, checkpoint=tmp_path / "run")
    assert not {"ema_decay", "best_by", "patience"} & set(load_tensors(tmp_path / "run")[1]["identity"]["recipe"])
    with pytest.raises(CheckpointError, match="ema_decay None in it and 0.5 here"):
        fit(
            flat(), CrossEntropy(), train=pictures(), recipe=replace(RECIPE, ema_decay=0.5), checkpoint=tmp_path / "run"
        )


# Networks and data by their import paths


OWN = """
from dataclasses import replace
import torch
from torch import nn
from kdlab.data import load_digits

def small(classes):
    return nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, classes))

def digits():
    data = load_digits()
    return replace(data, train=data.train[:64], validation=data.validation[:32], test=data.test[:32])
"""


def test_a_study_of_ones_own_networks_and_data(tmp_path, monkeypatch):
    (tmp_path / "digits_of_mine.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    recipe = Recipe(epochs=1, batch_size=32, augment=False, schedule="constant", best_by="highest accuracy")
    spec = Spec("mine", "alone", "digits_of_mine:digits", "digits_of_mine:small", CrossEntropy(), recipe)
    assert run_plan([spec], book=tmp_path / "book") is not None
    found = find_record(spec, tmp_path / "book" / "records")
    assert found["spec"]["student"] == "digits_of_mine:small" and found["parameters"] == 48 * 10 + 10
    assert found["own_code"] == dict.fromkeys(
        ["digits_of_mine:small", "digits_of_mine:digits"], sha256(tmp_path / "digits_of_mine.py")
    )
    assert found["selection"].startswith("the epoch of the highest accuracy on the validation split")
    said = []
    run_plan([spec], book=tmp_path / "book", say=said.append)
    assert said == []
    with (tmp_path / "digits_of_mine.py").open("a") as file:
        file.write("# another word\n")
    run_plan([spec], book=tmp_path / "book", say=said.append)
    assert "the file of digits_of_mine:small has changed since" in said[0]
    for student, sentence in (("digits_of_mine:large", "cannot be imported"), ("resnet9", "named by its import path")):
        with pytest.raises(ValueError, match=sentence):
            run(replace(spec, student=student), replace(load("digits_of_mine:digits"), name=spec.data))


@pytest.mark.parametrize("student", ["nets_of_mine:narrow", "nets_of_mine:kept"])
def test_a_network_of_ones_own_may_be_wrapped(student, tmp_path, monkeypatch, digits):
    """The file of a ``partial`` or of a cached function was asked for, in vain, when the training was over."""
    wrapped = "\n\nfrom functools import cache, partial\nimport kdlab.models as m\nnarrow = partial(m.resnet8_width4)\nkept = cache(small)\n"
    (tmp_path / "nets_of_mine.py").write_text(OWN + wrapped)
    monkeypatch.syspath_prepend(tmp_path)
    spec = Spec("mine", "alone", "digits", student, CrossEntropy(), Recipe(epochs=1, batch_size=48, augment=False))
    assert run(spec, digits).record["own_code"] == {student: sha256(tmp_path / "nets_of_mine.py")}


def test_what_is_in_no_file_of_python_is_said_before_the_training(digits, monkeypatch):
    monkeypatch.setattr(sys.modules["kdlab.study.run"], "fit_together", lambda *_, **__: pytest.fail("it trains"))
    spec = Spec("mine", "alone", "digits", "math:sqrt", CrossEntropy(), Recipe(epochs=1))
    with pytest.raises(ValueError, match="'math:sqrt' is written in no file of Python"):
        run(spec, digits)


def test_log_probabilities_beyond_float32s_exponentials_are_there():
    log_p = torch.tensor([[0.0, -120.0]])
    assert torch.equal(FunctionTeacher(lambda x: log_p, "one", gives="log-probabilities")(torch.zeros(1, 2)), log_p)
