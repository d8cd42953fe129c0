import errno
import itertools
import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ranks import on_ranks
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kdlab.data import ExactTeacher, Examples, KnownPosterior, Loaded, Split, Tokens
from kdlab.files import atomic_write
from kdlab.language import TeacherCache
from kdlab.models import GPT, MultiToken, mlp
from kdlab.objectives import (
    CrossEntropy,
    LearnedTemperature,
    PermutedSoftTargets,
    SoftTargets,
    Term,
    cross_entropy,
    forward_kl,
)
from kdlab.objectives.terms import described
from kdlab.training import (
    CachedLogits,
    CacheError,
    CheckpointError,
    Learner,
    LogitsOfViews,
    Recipe,
    accuracy,
    agreement,
    expected_calibration_error,
    fast_precision,
    fit,
    fit_together,
    load_model,
    measure,
    predict,
    protocols,
    save_model,
)
from kdlab.training.checkpoint import load_tensors, save_tensors
from kdlab.training.memory import keep_freed_memory

QUICK = Recipe(epochs=3, batch_size=32, learning_rate=0.01, schedule="cosine", warmup_epochs=0.5)
DISTIL = 0.1 * CrossEntropy() + 0.9 * SoftTargets(temperature=4)


class Killed(Exception):
    pass


def kill_after(epoch):
    def report(entry):
        if entry["epoch"] == epoch:
            raise Killed

    return report


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same_state(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def timeless(history):
    return [{k: v for k, v in entry.items() if k not in ("seconds", "examples_per_second")} for entry in history]


# The loop


@pytest.mark.parametrize("recipe", [QUICK, replace(QUICK, optimizer="adam", learning_rate=1e-3)], ids=["sgd", "adam"])
def test_training_lowers_the_loss(digits, linear, recipe):
    student = linear()
    before = cross_entropy(predict(student, digits.train), digits.train.labels).item()
    history = fit(student, CrossEntropy(), train=digits.train, recipe=replace(recipe, epochs=8, augment=False))
    after = cross_entropy(predict(student, digits.train), digits.train.labels).item()
    assert after < 0.6 * before
    assert history[-1]["loss"] < history[0]["loss"]


def test_weights_in_half_precision_are_warned_of():
    """A step is smaller than what bfloat16 tells apart."""
    student, train = nn.Linear(2, 2, bias=False).bfloat16(), Examples(torch.eye(2), torch.tensor([0, 1]))
    nn.init.ones_(student.weight)
    with pytest.warns(UserWarning, match="Linear is trained in bfloat16, in which small steps are lost"):
        fit(student, CrossEntropy(), train=train, recipe=Recipe(5, 2, learning_rate=1e-3))
    assert torch.equal(student.weight.float(), torch.ones(2, 2))


def test_bfloat16_trains_too(digits, linear):
    recipe = replace(QUICK, precision="bfloat16", augment=False, epochs=6)
    history = fit(linear(), CrossEntropy(), train=digits.train, recipe=recipe, validation=digits.validation)
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    assert fast_precision("cpu") in ("float32", "bfloat16")


def test_a_student_comes_near_its_teacher():
    task = KnownPosterior.draw(superclasses=2, classes_each=2, dimensions=4)
    train = task.sample(512)
    student = mlp(4, 4)
    recipe = Recipe(epochs=10, batch_size=32, optimizer="adam", learning_rate=1e-2, schedule="cosine", weight_decay=0)
    history = fit(student, SoftTargets(temperature=1), train=train, recipe=recipe, teacher=ExactTeacher(task))
    assert history[-1]["loss"] < 0.1 * history[0]["loss"]


def test_what_an_epochs_entry_says(digits, linear):
    teacher, entries = linear(1), []
    history = fit(
        linear(), DISTIL, train=digits.train, recipe=QUICK, teacher=teacher, validation=digits.validation,
        report=entries.append,
    )  # fmt: skip
    assert entries == history
    assert [entry["epoch"] for entry in history] == [1, 2, 3]
    for entry in history:
        assert entry["loss"] == pytest.approx(0.1 * entry["CrossEntropy"] + 0.9 * entry["SoftTargets"], rel=1e-5)
        assert set(entry["validation"]) == {"accuracy", "cross_entropy", "calibration_error"}
        assert entry["seconds"] > 0 and entry["examples_per_second"] > 0
    json.dumps(history, allow_nan=False)
    assert "validation" not in fit(linear(), CrossEntropy(), train=digits.train, recipe=replace(QUICK, epochs=1))[0]


def test_the_loss_of_an_epoch_is_the_mean_over_its_steps(digits, linear):
    recipe = replace(QUICK, epochs=1, schedule="constant", warmup_epochs=0, augment=False, learning_rate=1e-30)
    student = linear()
    (entry,) = fit(student, CrossEntropy(), train=digits.train, recipe=recipe)
    expected = cross_entropy(predict(student, digits.train), digits.train.labels).item()
    assert entry["loss"] == pytest.approx(expected, rel=1e-5)


def test_the_first_step_is_gradient_descent(digits, linear):
    recipe = Recipe(epochs=1, batch_size=96, schedule="constant", learning_rate=0.1, weight_decay=0.01, augment=False)
    student, expected = linear(), linear()
    ((inputs, labels, _),) = digits.train.batches(96)
    cross_entropy(expected(inputs), labels).backward()
    fit(student, CrossEntropy(), train=digits.train, recipe=recipe)
    for moved, start in zip(student.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(moved, start - 0.1 * (start.grad + 0.01 * start), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("objective", [1.0 * CrossEntropy(), 1.0 * PermutedSoftTargets(temperature=4)], ids=repr)
def test_same_seed_same_bits(digits, resnet, objective):
    def once(seed):
        student, teacher = resnet(), resnet(1)
        torch.manual_seed(7)
        recipe = replace(QUICK, epochs=1, seed=seed)
        return fit(student, objective, train=digits.train, recipe=recipe, teacher=teacher), state(student)

    (history, first), (history2, second), (_, other) = once(0), once(0), once(1)
    assert_same_state(first, second)
    assert timeless(history) == timeless(history2)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_the_student_is_in_training_mode_at_each_step(digits, resnet):
    student, modes = resnet(), []
    student.register_forward_hook(lambda module, inputs, _: modes.append((module.training, len(inputs[0]))))
    student.eval()
    fit(
        student,
        CrossEntropy(),
        train=digits.train,
        recipe=replace(QUICK, epochs=2),
        validation=digits.validation,
    )
    assert modes == 2 * [(True, 32), (True, 32), (True, 32), (False, 48)]
    assert student.training


@pytest.mark.parametrize("mode", [True, False])
def test_the_teacher_is_left_as_it_was(digits, resnet, mode):
    student, teacher = resnet(), resnet(1).train(mode)
    before, modes = state(teacher), []
    teacher.register_forward_hook(lambda module, *_: modes.append((module.training, torch.is_grad_enabled())))
    fit(student, DISTIL, train=digits.train, recipe=replace(QUICK, epochs=1), teacher=teacher)
    assert modes == 3 * [(False, False)]
    assert_same_state(state(teacher), before)
    assert all(p.grad is None and p.requires_grad for p in teacher.parameters())
    assert {module.training for module in teacher.modules()} == {mode}


def test_the_teacher_is_left_as_it_was_by_a_run_that_fails(digits, linear):
    teacher = linear(1).train()
    with pytest.raises(Killed):
        fit(linear(), DISTIL, train=digits.train, recipe=QUICK, teacher=teacher, report=kill_after(1))
    assert teacher.training


def test_layers_of_the_teacher_that_were_frozen_stay_frozen(digits, resnet):
    teacher = resnet(1).train()
    teacher.bn1.eval()
    fit(resnet(), DISTIL, train=digits.train, recipe=replace(QUICK, epochs=1), teacher=teacher)
    assert teacher.training and not teacher.bn1.training


def test_an_objective_that_needs_a_teacher_is_refused_without_one(digits, linear):
    with pytest.raises(ValueError, match=r"the objective .*SoftTargets.* needs a teacher, but none was given"):
        fit(linear(), DISTIL, train=digits.train, recipe=QUICK)
    with pytest.raises(ValueError, match="needs a teacher"):
        fit(linear(), SoftTargets(), train=digits.train, recipe=QUICK)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("shape", [(8,), (8, 3)], ids=["images", "texts"])
def test_a_batch_without_any_label_is_said(shape, parts):
    """One of which one part alone has none is a batch as any other."""
    labels = torch.full(shape, -100)
    recipe = replace(QUICK, augment=False, batch_size=8, micro_batches=parts)

    def run(objective=None):
        data = Examples(torch.ones(*shape, 4), labels)
        return fit(nn.Linear(4, 5), objective or CrossEntropy(), train=data, recipe=recipe, teacher=nn.Linear(4, 5))

    for objective in (None, SoftTargets()):
        with pytest.raises(ValueError, match="^all labels of a batch are -100, .*: leave examples that have no other"):
            run(objective)
    labels[0] = 0
    assert len(run()) == QUICK.epochs


def test_a_student_of_which_nothing_is_trained_is_refused(digits, linear):
    with pytest.raises(ValueError, match="^no parameter of .* is trained, since none has requires_grad"):
        fit(linear().requires_grad_(False), CrossEntropy(), train=digits.train, recipe=QUICK)
    with_temperature = SoftTargets(temperature=LearnedTemperature())
    fit(linear().requires_grad_(False), with_temperature, train=digits.train, recipe=QUICK, teacher=linear(1))


def test_a_measure_of_ones_own_sees_the_split_that_was_given(digits, linear):
    seen = []

    def measured(student, split):
        seen.append(split)
        return {"x": 1.0}

    fit(linear(), CrossEntropy(), train=digits.train, recipe=QUICK, validation=digits.test, measure=measured)
    assert all(split is digits.test for split in seen) and len(seen) == QUICK.epochs


def test_a_teacher_that_is_not_needed_is_not_asked(digits, linear):
    teacher = linear(1)
    teacher.register_forward_hook(lambda *_: pytest.fail("it was asked"))
    fit(linear(), CrossEntropy(), train=digits.train, recipe=replace(QUICK, epochs=1), teacher=teacher)


# What passes between the rooms


class Ramp:
    """A split of one's own: what the protocol asks, and no more."""

    identity = "a ramp"

    def __len__(self):
        return 8

    def to(self, device):
        return self

    def batches(self, batch_size, *, generator=None, augment=False, order=None, start=0):
        order = torch.arange(len(self)) if order is None else order
        for index in order.split(batch_size)[start:]:
            yield index[:, None].float(), index % 2, index


def test_a_split_of_ones_own_needs_no_more_than_its_protocol_says(tmp_path):
    recipe = replace(QUICK, epochs=1, batch_size=4)
    (entry,) = fit(nn.Linear(1, 2), CrossEntropy(), train=Ramp(), recipe=recipe, checkpoint=tmp_path / "run")
    assert math.isfinite(entry["loss"]) and (tmp_path / "run").exists()
    assert predict(nn.Linear(1, 2), Ramp()).shape == (8, 2)


def views_of_digits():
    """A few small images, a teacher of them, and a recipe that augments."""
    pictures = torch.randint(0, 256, (24, 3, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    train = Split(pictures, torch.arange(24) % 4, (0.5,) * 3, (0.3,) * 3)
    recipe = Recipe(epochs=2, batch_size=8, learning_rate=0.05, schedule="constant", weight_decay=0.0)
    return train, flat(0), recipe


def flat(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(108, 4))


@pytest.mark.parametrize("view", ["same", "own"])
@pytest.mark.parametrize("views", [None, 4])
def test_kept_logits_of_all_views_teach_what_the_teacher_does(views, view):
    train, teacher, recipe = views_of_digits()
    train = train if views is None else train.with_views(views)
    weights = []
    for told in (teacher, LogitsOfViews(teacher, train)):
        students = [flat(1), flat(2)]
        learners = [
            Learner(student, 1.0 * SoftTargets(2.0), replace(recipe, seed=seed, teacher_view=how))
            for student, seed, how in zip(students, (0, 1), ("same", view), strict=True)
        ]
        fit_together(learners, train=train, teacher=told)
        weights.append([state(student) for student in students])
    assert told.table.shape == (views or 162, 24, 4)
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-5)


def test_kept_logits_are_of_these_views_alone():
    train, teacher, recipe = views_of_digits()
    few = train.with_views(3)
    with pytest.raises(
        MemoryError, match=r"3 views of 24 images take 0.00 GB, and memory=100 is less.*with_views\(8\)"
    ):
        LogitsOfViews(teacher, few, memory=100)
    with pytest.raises(TypeError, match="views are those of a kdlab.data.Split of images, not of Examples"):
        LogitsOfViews(teacher, Examples(torch.randn(4, 2), torch.zeros(4)))
    kept = LogitsOfViews(teacher, few)
    assert kept.table.numel() * 4 == 3 * 24 * 4 * 4 and "table" not in kept.state_dict()
    student, objective = flat(1), SoftTargets(2.0)
    for changes, kind, sentence in (
        ({"train": train}, CacheError, "of other images, of these in another order, or of other views"),
        ({"train": few[:20]}, CacheError, "of other images"),
        ({"recipe": replace(recipe, augment=False)}, ValueError, "logits of augmented images.*CachedLogits keeps them"),
        ({"recipe": replace(recipe, precision="bfloat16")}, ValueError, "precision='float32'"),
        ({"student_view": lambda x, generator: x}, ValueError, "no views beside them"),
    ):
        with pytest.raises(kind, match=sentence):
            fit(student, objective, teacher=kept, **{"train": few, "recipe": recipe} | changes)


def test_what_kdlab_has_keeps_its_protocols():
    examples = Examples(torch.zeros(4, 1), torch.arange(4))
    pictures = Split(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.arange(4), (0.5,) * 3, (0.5,) * 3)
    text = Tokens(torch.arange(9, dtype=torch.int16), 4, torch.ones(9, dtype=torch.long))
    loaded = Loaded(DataLoader(TensorDataset(torch.zeros(4, 1), torch.arange(4))))
    gpt = GPT(9, width=8, layers=1, heads=2, context=4)
    for thing, protocol in (
        (examples, protocols.Split),
        (pictures, protocols.Split),
        (text, protocols.Text),
        (loaded, protocols.LoadedSplit),
        (CachedLogits, protocols.CachedTeacher),
        (TeacherCache, protocols.CachedTeacher),
        (gpt, protocols.FusedStudent),
        (MultiToken(gpt, 2, in_a_row=True), protocols.StandingStudent),
    ):
        members = {
            name for kind in protocol.__mro__[:-3] for name in (*vars(kind), *vars(kind).get("__annotations__", ()))
        }
        members = {"__len__"} & members | {name for name in members if not name.startswith("_")}
        assert members and not [name for name in members if not hasattr(thing, name)]
    assert [protocols.is_text(x) for x in (text, pictures, loaded)] == [True, False, False]
    assert [protocols.augments(x) for x in (pictures, examples, text)] == [True, False, False]
    assert protocols.depth_of(gpt) == 0 and not protocols.stands(gpt) and not protocols.by_index(gpt)


# Recipes and schedules


def rates_of(recipe, digits, student, monkeypatch):
    """The learning rate of every step that the optimiser takes."""
    rates, step = [], torch.optim.SGD.step

    def watched(self, *arguments, **options):
        rates.extend(group["lr"] for group in self.param_groups)
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.SGD, "step", watched)
    fit(student, CrossEntropy(), train=digits.train, recipe=recipe)
    return rates


@pytest.mark.parametrize(
    ("options", "closed_form"),
    [
        ({"schedule": "constant"}, lambda e: 1.0),
        (
            {"schedule": "step", "milestones": (2, 3), "decay": 0.1},
            lambda e: 1.0 if e < 2 else 0.1 if e < 3 else 0.01,
        ),
        ({"schedule": "cosine"}, lambda e: (1 + math.cos(math.pi * e / 4)) / 2),
        (
            {"schedule": "cosine", "warmup_epochs": 1},
            lambda e: e if e < 1 else (1 + math.cos(math.pi * (e - 1) / 3)) / 2,
        ),
        (
            {"schedule": "step", "milestones": (2,), "decay": 0.5, "warmup_epochs": 2 / 3},
            lambda e: e * 3 / 2 if e < 2 / 3 else 1.0 if e < 2 else 0.5,
        ),
    ],
)
def test_golden_trace_of_the_schedule(options, closed_form, digits, linear, monkeypatch):
    recipe = Recipe(epochs=4, batch_size=32, learning_rate=0.02, augment=False, **options)
    expected = [0.02 * closed_form(step / 3) for step in range(12)]
    assert rates_of(recipe, digits, linear(), monkeypatch) == pytest.approx(expected, rel=1e-12)


def test_the_published_schedule():
    trace = [(0, 0.05), (149.99, 0.05), (150, 5e-3), (179.99, 5e-3), (180, 5e-4), (210, 5e-5), (239.99, 5e-5)]
    assert [Recipe().learning_rate_at(epoch) for epoch, _ in trace] == pytest.approx([rate for _, rate in trace])


@given(st.integers(1, 300), st.floats(0, 5), st.sampled_from(["step", "cosine", "constant"]))
def test_rates_stay_between_zero_and_the_peak_and_fall_after_the_warm_up(epochs, warmup, schedule):
    recipe = Recipe(epochs=epochs, schedule=schedule, warmup_epochs=warmup)
    rates = [recipe.learning_rate_at(epoch) for epoch in np.linspace(warmup, max(epochs, warmup + 1), 50)]
    assert rates[0] == pytest.approx(0.05)
    assert all(0 <= later <= earlier for earlier, later in itertools.pairwise(rates))
    if schedule == "cosine":
        assert rates[-1] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"optimizer": "lamb"}, "optimizer must be one of sgd, adam, adamw, not 'lamb'"),
        ({"schedule": "steps"}, "schedule must be one of step, cosine, constant, not 'steps'"),
        ({"precision": "half"}, "precision must be one of float32, bfloat16, float16, not 'half'"),
        ({"epochs": 0}, "epochs must be at least 1, not 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"micro_batches": 0}, "micro_batches must be at least 1, not 0"),
        ({"micro_batches": 3}, "a batch of 64 cannot be run in 3 equal parts"),
        ({"epoch_examples": 63}, "an epoch of 63 examples has no batch of 64"),
        ({"max_gradient_norm": -1.0}, r"max_gradient_norm must be finite and not negative, not -1\.0"),
        ({"momentum": math.inf}, "momentum must be finite and not negative, not inf"),
        ({"learning_rate": 0.0}, r"learning_rate must be positive and finite, not 0\.0"),
        ({"learning_rate": math.nan}, "learning_rate must be positive and finite, not nan"),
    ],
)
def test_bad_recipes_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        Recipe(**options)


@pytest.mark.parametrize("name", ["epochs", "batch_size", "micro_batches", "epoch_examples"])
def test_numbers_of_examples_are_whole(name):
    with pytest.raises(TypeError, match=rf"{name} must be a whole number, not 100\.0"):
        Recipe(**{name: 100.0})


def test_unknown_options_of_a_recipe_are_refused():
    with pytest.raises(TypeError, match="warmup"):
        Recipe(warmup=2)


# Kill and resume


@pytest.mark.parametrize("kill", [1, 2])
@pytest.mark.parametrize(
    ("optimizer", "momentum", "objective"),
    [
        ("sgd", 0.9, DISTIL),
        ("sgd", 0.0, 1.0 * CrossEntropy()),
        ("adam", 0.9, DISTIL),
        ("sgd", 0.9, 0.5 * CrossEntropy() + 0.5 * PermutedSoftTargets(temperature=2)),
    ],
    ids=["sgd", "no momentum", "adam", "torch's random numbers"],
)
def test_a_killed_run_goes_on_bit_for_bit(digits, resnet, tmp_path, kill, optimizer, momentum, objective):
    recipe = replace(QUICK, optimizer=optimizer, momentum=momentum, learning_rate=1e-3)
    whole, first, again, teacher = resnet(0), resnet(0), resnet(2), resnet(1)
    options = {"train": digits.train, "recipe": recipe, "validation": digits.validation, "teacher": teacher}
    torch.manual_seed(6)
    history = fit(whole, objective, **options)
    torch.manual_seed(6)
    with pytest.raises(Killed):
        fit(first, objective, checkpoint=tmp_path / "run", report=kill_after(kill), **options)
    torch.manual_seed(99)
    resumed = fit(again, objective, checkpoint=tmp_path / "run", **options)
    assert_same_state(state(again), state(whole))
    assert timeless(resumed) == timeless(history)


def test_a_finished_run_is_not_run_again(digits, linear, tmp_path):
    student = linear()
    history = fit(student, CrossEntropy(), train=digits.train, recipe=QUICK, checkpoint=tmp_path / "run")
    again = linear(1).eval()
    assert fit(again, CrossEntropy(), train=digits.train, recipe=QUICK, checkpoint=tmp_path / "run") == history
    assert_same_state(state(again), state(student))
    assert again.training  # as fit leaves every student


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"recipe": replace(QUICK, learning_rate=0.02)}, "recipe"),
        ({"recipe": replace(QUICK, seed=1)}, "recipe"),
        ({"objective": 2.0 * CrossEntropy()}, "objective"),
        ({"train": slice(0, 64)}, "examples"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(digits, linear, tmp_path, change, named):
    options = {"objective": 1.0 * CrossEntropy(), "train": digits.train, "recipe": QUICK}
    fit(linear(), checkpoint=tmp_path / "run", **options)
    if "train" in change:
        change = {"train": digits.train[change["train"]]}
    with pytest.raises(CheckpointError, match=rf"belongs to another run \(other {named}.*\): give another path"):
        fit(linear(), checkpoint=tmp_path / "run", **{**options, **change})


def test_a_checkpoint_of_other_frozen_layers_is_refused(tmp_path):
    """The optimiser knows its weights by number alone: the moments of one layer would go to another of its shape."""

    def run(frozen, **options):
        student = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        student[frozen].requires_grad_(False)
        data = Examples(torch.ones(8, 4), torch.zeros(8).long())
        fit(student, CrossEntropy(), train=data, recipe=replace(QUICK, augment=False), checkpoint=path, **options)

    path = tmp_path / "run"
    with pytest.raises(Killed):
        run(0, report=kill_after(1))
    with pytest.raises(
        CheckpointError, match=r"\(other trained parameters: 0.weight False in it and True here, 0.bias"
    ):
        run(1)
    tensors, header = load_tensors(path)
    del header["identity"]["trained parameters"], header["checksum"]  # as earlier versions wrote it
    save_tensors(path, tensors, header)
    run(0)


def test_of_much_that_differs_a_checkpoint_names_the_first(tmp_path):
    def run(trained):
        student = nn.Sequential(*(nn.Linear(2, 2) for _ in range(6)))
        student[:5].requires_grad_(trained)
        data = Examples(torch.ones(8, 2), torch.zeros(8).long())
        recipe = replace(QUICK, augment=False)
        fit(student, CrossEntropy(), train=data, recipe=recipe, checkpoint=tmp_path / "run")

    run(True)
    with pytest.raises(CheckpointError, match=r"3.bias True in it and False here, and 2 more\): give another path"):
        run(False)


@pytest.mark.parametrize("arguments", [None, (2, 3.0)], ids=["function", "partial"])
def test_functions_are_told_apart_by_their_code_and_not_by_their_address(arguments):
    """As in another process, where the same function is elsewhere."""

    def made(source, arguments=arguments):
        exec(source, found := {})
        return described(found["f"] if arguments is None else partial(found["f"], arguments[0], scale=arguments[1]))

    source = "def f(texts, n=1, scale=1.0):\n    return texts[n]"
    assert made(source) == made(source) != made(source.replace("[n]", "+ n"))
    assert " at 0x" not in made(source)
    if arguments is not None:
        assert made(source).endswith(", 2, scale=3.0)") and made(source) != made(source, (3, 3.0))


def test_a_checkpoint_of_another_student_is_refused(digits, linear, resnet, tmp_path):
    fit(linear(), CrossEntropy(), train=digits.train, recipe=QUICK, checkpoint=tmp_path / "run")
    with pytest.raises(CheckpointError):
        fit(resnet(), CrossEntropy(), train=digits.train, recipe=QUICK, checkpoint=tmp_path / "run")


def test_a_stored_model_is_not_a_run_to_go_on_from(digits, linear, tmp_path):
    save_model(tmp_path / "model", linear(), {"spec_hash": "x"})
    with pytest.raises(CheckpointError):
        fit(linear(), CrossEntropy(), train=digits.train, recipe=QUICK, checkpoint=tmp_path / "model")


@pytest.mark.parametrize("part", [0, 7, 100, -1])
def test_a_truncated_checkpoint_is_refused(digits, linear, tmp_path, part):
    path = tmp_path / "run"
    fit(linear(), CrossEntropy(), train=digits.train, recipe=replace(QUICK, epochs=1), checkpoint=path)
    path.write_bytes(path.read_bytes()[:part])
    with pytest.raises(CheckpointError, match="run is damaged or was not written by kdlab"):
        fit(linear(), CrossEntropy(), train=digits.train, recipe=replace(QUICK, epochs=1), checkpoint=path)


class FailsInEpoch(Term):
    extra_repr = "".format
    """A loss that becomes NaN in the second epoch of three steps."""

    needs_teacher = False

    def __init__(self):
        super().__init__()
        self.step = 0

    def forward(self, *, student_logits, **_):
        self.step += 1
        return student_logits.square().mean() * (math.nan if self.step > 3 else 1.0)


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_checkpoint(digits, linear, tmp_path):
    kept = []
    with pytest.raises(FloatingPointError, match=r"training diverged in epoch 2 of 3: .*learning rate"):
        fit(
            linear(), FailsInEpoch(), train=digits.train, recipe=QUICK, checkpoint=tmp_path / "run",
            report=kept.append,
        )  # fmt: skip
    tensors, header = load_tensors(tmp_path / "run")
    assert (header["history"], header["step"], len(kept)) == (kept, 0, 1)
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


@pytest.mark.parametrize("objective", [1.0 * CrossEntropy(), DISTIL], ids=["hard", "distilled"])
def test_a_learning_rate_that_is_far_too_high_says_so(digits, linear, objective):
    recipe = Recipe(epochs=3, batch_size=32, learning_rate=1e30, schedule="constant", augment=False)
    with pytest.raises(FloatingPointError, match="training diverged in epoch"):
        fit(linear(), objective, train=digits.train, recipe=recipe, teacher=linear(1))


# Files


def test_models_come_back_from_disk(resnet, tmp_path):
    model, other = resnet(0).eval(), resnet(1).eval()
    save_model(tmp_path / "deep" / "model", model, {"note": ["a", 1]})
    assert load_model(tmp_path / "deep" / "model", other) == {"note": ["a", 1]}
    assert_same_state(state(model), state(other))
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(images), other(images))


def test_bad_model_files_are_refused(linear, resnet, tmp_path):
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        load_model(tmp_path / "nowhere", linear())
    save_model(tmp_path / "model", resnet(), {})
    with pytest.raises(CheckpointError, match="model does not fit this model: "):
        load_model(tmp_path / "model", linear())
    (tmp_path / "text").write_text("not a checkpoint " * 20)
    with pytest.raises(CheckpointError, match="text is damaged or was not written by kdlab"):
        load_model(tmp_path / "text", linear())
    import safetensors.torch

    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "foreign")
    with pytest.raises(CheckpointError, match="foreign is damaged or was not written by kdlab"):
        load_tensors(tmp_path / "foreign")


def test_missing_safetensors_is_named(linear, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match=r"checkpoints need safetensors: pip install 'kdlab\[study\]'"):
        save_model(tmp_path / "model", linear(), {})


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": torch.arange(6).view(2, 3).T, "b": torch.tensor(2.5, dtype=torch.float64)},
        {
            "half": torch.randn(3).half(),
            "bf": torch.randn(3).bfloat16(),
            "byte": torch.arange(3, dtype=torch.uint8),
        },
        {"image": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last), "empty": torch.zeros(0, 3)},
    ],
)
def test_tensors_of_every_kind_come_back(tensors, tmp_path):
    save_tensors(tmp_path / "t", tensors, {})
    back, _ = load_tensors(tmp_path / "t")
    assert_same_state(back, tensors)
    assert all(back[name].dtype == tensor.dtype for name, tensor in tensors.items())


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    return path


def assert_untouched(path):
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device")])
def test_a_write_that_fails_leaves_the_old_file(old, error):
    kind = type(error) if isinstance(error, Exception) else error
    with pytest.raises(kind), atomic_write(old) as part:
        part.write_text("half of the n")
        raise error
    assert_untouched(old)


@pytest.mark.parametrize(("owner", "name"), [(Path, "write_bytes"), (os, "fsync"), (Path, "replace")])
def test_a_full_disk_leaves_the_old_checkpoint(old, monkeypatch, owner, name):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        with pytest.raises(OSError, match="No space left"):
            save_tensors(old, {"a": torch.zeros(3)}, {})
    assert_untouched(old)


def test_a_killed_process_leaves_the_old_file(old):
    code = (
        "import os, signal, sys\nfrom kdlab.files import atomic_write\n"
        "with atomic_write(sys.argv[1]) as part:\n"
        "    part.write_text('half of the n')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, old], cwd=Path(__file__).parents[1])
    assert done.returncode == -signal.SIGKILL
    assert old.read_text() == "old"


def test_what_a_killed_process_has_left_is_removed_by_the_next_that_writes_there(old):
    """Of this file, of a while ago, and of no process that lives."""
    code = (
        "import os, signal, sys\nfrom kdlab.files import atomic_folder\n"
        "with atomic_folder(sys.argv[1]) as part:\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, old], cwd=Path(__file__).parents[1])
    subprocess.run([sys.executable, "-c", code, old.with_name("other")], cwd=Path(__file__).parents[1])
    left = sorted(path for path in old.parent.iterdir() if path != old)
    (mine := old.parent / f".{old.name}.settings").mkdir()
    with atomic_write(old) as part:
        part.write_text("newer")
    assert len(left) == 2 and all(path.exists() for path in left)  # it could be a process that begins
    for path in left:
        os.utime(path, (0, 0))
    with atomic_write(old) as part:
        os.utime(part.parent, (0, 0))
        with atomic_write(old) as other:
            other.write_text("another's")
        part.write_text("newest")
    assert old.read_text() == "newest" and mine.exists()
    assert [path.exists() for path in left] == [f".{old.name}." not in str(path) for path in left]


def test_a_write_that_succeeds_replaces_the_old_file(old):
    with atomic_write(old) as part:
        part.write_text("new")
        assert old.read_text() == "old"
    assert old.read_text() == "new" and list(old.parent.iterdir()) == [old]
    assert old.stat().st_mode & 0o777 == 0o644


# Measures


def slow_calibration_error(logits, labels, bins):
    q = np.exp(logits - logits.max(-1, keepdims=True))
    q /= q.sum(-1, keepdims=True)
    error = 0.0
    for b in range(bins):
        members = [
            n for n in range(len(q)) if b / bins <= q[n].max() < (b + 1) / bins or (b == bins - 1 and q[n].max() == 1)
        ]
        if members:
            correct = np.mean([q[n].argmax() == labels[n] for n in members])
            error += len(members) / len(q) * abs(correct - np.mean([q[n].max() for n in members]))
    return error


@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(2, 6), st.sampled_from([1, 10, 15]))
def test_calibration_error_is_what_the_slow_loop_makes(seed, n, classes, bins):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (n,), generator=generator)
    expected = slow_calibration_error(logits.numpy(), labels.numpy(), bins)
    assert expected_calibration_error(logits, labels, bins=bins) == pytest.approx(expected, abs=1e-9)


def test_calibration_errors_known_by_hand():
    sure = torch.tensor([[50.0, 0.0]]).repeat(4, 1)
    assert expected_calibration_error(sure, torch.tensor([0, 0, 0, 0])) == pytest.approx(0, abs=1e-6)
    assert expected_calibration_error(sure, torch.tensor([0, 1, 1, 1])) == pytest.approx(0.75, abs=1e-6)
    logit = math.log(0.8 / 0.2)
    modest = torch.tensor([[logit, 0.0]], dtype=torch.float64).repeat(5, 1)
    assert expected_calibration_error(modest, torch.tensor([0, 0, 0, 0, 1])) == pytest.approx(0, abs=1e-9)
    assert expected_calibration_error(modest, torch.tensor([0, 0, 0, 0, 0])) == pytest.approx(0.2, abs=1e-9)
    mixed = torch.cat([modest, sure.double()])  # two bins do not cancel: 5/9 · 0.2 + 4/9 · 0.75
    labels = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1])
    assert expected_calibration_error(mixed, labels) == pytest.approx((5 * 0.2 + 4 * 0.75) / 9, abs=1e-6)


def test_accuracy_and_agreement():
    z, t = torch.eye(4), torch.eye(4)[[0, 1, 3, 2]]
    assert accuracy(z, torch.tensor([0, 1, 2, 0])) == 0.75
    assert agreement(z, t) == agreement(t, z) == 0.5
    assert agreement(z, 5 * z - 3) == 1


def test_measure():
    z, t, y = torch.randn(8, 5), torch.randn(8, 5), torch.randint(5, (8,))
    measured = measure(z, y, t)
    assert measured == {
        "accuracy": accuracy(z, y),
        "cross_entropy": cross_entropy(z, y).item(),
        "calibration_error": expected_calibration_error(z, y),
        "agreement": agreement(z, t),
        "kl_to_teacher": forward_kl(z, t).item(),
        **{
            f"agreement_where_teacher_{name}": agreement(z[part], t[part])
            for name, part in (("right", t.argmax(-1) == y), ("wrong", t.argmax(-1) != y))
            if part.any()
        },
    }
    assert measure(z, y) == {k: measured[k] for k in ("accuracy", "cross_entropy", "calibration_error")}


@pytest.mark.parametrize("mode", [True, False])
def test_predict_keeps_order_and_mode_and_learns_nothing(digits, resnet, mode):
    model = resnet().train(mode)
    before = state(model)
    logits = predict(model, digits.test, batch_size=23)
    assert logits.shape == (64, 10) and logits.dtype == torch.float32 and not logits.requires_grad
    assert model.training is mode
    assert_same_state(state(model), before)
    with torch.no_grad():
        expected = model.eval()(digits.test.normalise(digits.test.images))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_predict_puts_the_mode_back_when_it_fails(digits):
    class Fails(nn.Module):
        def forward(self, images):
            raise RuntimeError("no")

    model = Fails().train()
    with pytest.raises(RuntimeError, match="no"):
        predict(model, digits.test)
    assert model.training


def test_predict_leaves_frozen_layers_frozen(digits, resnet):
    model = resnet().train()
    model.bn1.eval()
    predict(model, digits.test)
    assert model.training and not model.bn1.training


def test_a_student_is_not_its_own_teacher(digits, linear):
    student = linear()
    with pytest.raises(ValueError, match="one and the same model"):
        fit(student, SoftTargets(), train=digits.train, recipe=Recipe(epochs=1), teacher=student)


def test_a_learned_temperature_does_not_decay(digits, linear):
    """With a strength of zero nothing but decay could move it."""
    temperature = LearnedTemperature(1, 21, strength=0.0)
    with torch.no_grad():
        temperature.theta.fill_(2.0)
    recipe = Recipe(epochs=1, batch_size=32, weight_decay=0.1, augment=False)
    fit(linear(0), SoftTargets(temperature), train=digits.train, recipe=recipe, teacher=linear(1))
    assert temperature.theta.item() == 2.0


def test_tied_weights_can_be_saved(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    model[1].weight = model[0].weight
    save_model(tmp_path / "tied.safetensors", model, {})
    again = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    load_model(tmp_path / "tied.safetensors", again)
    assert all(torch.equal(again[i].weight, model[i].weight) for i in (0, 1))


def test_what_is_no_data_or_no_objective_is_refused_in_a_sentence(linear):
    data = (torch.zeros(2, 3), torch.zeros(2))
    with pytest.raises(TypeError, match="train is a Split or kdlab.data.Examples.*, not tuple"):
        fit(linear(), CrossEntropy(), train=data, recipe=Recipe(epochs=1))
    with pytest.raises(TypeError, match="the objective is a term or a sum of terms"):
        fit(linear(), cross_entropy, train=data, recipe=Recipe(epochs=1))
    with pytest.raises(ValueError, match="3 inputs have 2 labels"):
        Examples(torch.zeros(3, 5), torch.zeros(2))
    with pytest.raises(
        TypeError, match="labels must be a tensor, not NoneType; .*, and labels of what has none are zeros"
    ):
        Examples(torch.zeros(3, 5), None)
    with pytest.raises(ValueError, match="3 inputs have one labels"):
        Examples(torch.zeros(3, 5), torch.tensor(0))


def test_a_narrow_convolution_with_stride_is_not_trained_with_its_channels_last():
    """Its gradient would be written past a buffer on CPUs without AVX-512; in a process of its own, which would die."""
    code = """
import torch
from kdlab.data import Examples
from kdlab.models import resnet8, resnet8_width4
from kdlab.objectives import CrossEntropy
from kdlab.training import Recipe, fit
from kdlab.training.modules import moved_to

assert moved_to(resnet8_width4(10), "cpu") is torch.contiguous_format
assert moved_to(resnet8_width4(10), "meta") is moved_to(resnet8(10), "cpu") is torch.channels_last
images = torch.randn(64, 3, 32, 32).contiguous(memory_format=torch.channels_last)
data = Examples(images, torch.arange(64) % 10)
recipe = Recipe(epochs=2, batch_size=32, augment=False, learning_rate=0.01, schedule="constant")
fit(resnet8_width4(10), CrossEntropy(), train=data, recipe=recipe)
print("alive")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr[-2000:]


def test_a_loader_is_a_split(linear, digits):
    """Same batches as of the tensors that it loads from; measured and predicted in the order of its data set."""
    inputs = digits.train.normalise(digits.train.images)
    examples = Examples(inputs, digits.train.labels)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*vars(examples).values()), 32, shuffle=True)
    recipe = replace(QUICK, augment=False, epochs=1)
    found = []
    for train in (examples, loader):
        student = linear()
        history = fit(student, CrossEntropy(), train=train, validation=train, recipe=recipe)
        found.append((state(student), timeless(history), predict(student, train)))
    assert_same_state(found[0][0], found[1][0])
    assert found[0][1] == found[1][1] and torch.equal(found[0][2], found[1][2])


def test_texts_that_are_padded_to_the_longest_of_their_batch_are_measured(monkeypatch):
    """What is measured of them is what is measured of all, padded to the longest of all."""
    torch.manual_seed(0)
    lengths, size = [3, 1, 5, 2, 4, 6], 2
    rows = [(torch.randn(n, 4), torch.randint(5, (n,))) for n in lengths]

    def padded(pairs):
        return tuple(nn.utils.rnn.pad_sequence(x, True, padding_value=-100) for x in zip(*pairs, strict=True))

    student, loader = nn.Linear(4, 5), DataLoader(rows, size, collate_fn=padded)
    in_twos = Loaded.batches
    monkeypatch.setattr(Loaded, "batches", lambda self, batch_size, **how: in_twos(self, size, **how))
    recipe = replace(QUICK, augment=False, batch_size=size, epochs=1)
    (entry,) = fit(student, CrossEntropy(), train=loader, validation=loader, recipe=recipe)
    inputs, labels = padded(rows)
    expected = measure(student(inputs).detach(), labels, mask=labels >= 0)
    assert entry["validation"] == pytest.approx(expected, rel=1e-6)


def on_labels_in_unequal_number(rank=None):
    """Of each batch of 8, spread over two processes, one has fewer labels than the other."""
    torch.manual_seed(0)
    data, student = Examples(torch.randn(16, 4), torch.randint(4, (16,))), nn.Linear(4, 5)
    data.labels[:7:2] = data.labels[1] = -100
    recipe = replace(QUICK, augment=False, batch_size=8, weight_decay=0.0)
    history = fit(student, CrossEntropy() + SoftTargets(), train=data, recipe=recipe, teacher=nn.Linear(4, 5))
    return {**state(student), "loss": torch.tensor([entry["loss"] for entry in history])}


def test_two_processes_divide_by_the_labels_of_both(tmp_path):
    on_ranks(2, tmp_path, on_labels_in_unequal_number)
    whole = on_labels_in_unequal_number()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-7)


def test_what_a_loader_cannot_say_again_is_refused(linear):
    data = torch.utils.data.TensorDataset(torch.zeros(8, 3, 32, 32), torch.zeros(8, dtype=torch.long))

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(data)

    weighted = torch.utils.data.WeightedRandomSampler(torch.ones(8), 8)
    for loader, error, sentence in (
        (
            torch.utils.data.DataLoader(Stream(), 4),
            TypeError,
            "an IterableDataset has no order that a run could go on in",
        ),
        (
            torch.utils.data.DataLoader(data, 4, sampler=weighted),
            TypeError,
            r"not with WeightedRandomSampler.*Subset\(dataset, list\(sampler\)\)",
        ),
        (torch.utils.data.DataLoader(data, 8), ValueError, "the DataLoader has batches of 8 and the recipe of 4"),
        (
            torch.utils.data.DataLoader(data, 4, collate_fn=len),
            TypeError,
            "a batch of the DataLoader is .inputs, labels.",
        ),
    ):
        with pytest.raises(error, match=sentence):
            fit(linear(), CrossEntropy(), train=loader, recipe=Recipe(epochs=1, batch_size=4))


def test_what_is_drawn_in_workers_is_what_is_drawn_without(linear):
    class Noisy(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, index):
            return {"input": torch.rand(3, 32, 32), "labels": torch.tensor(index % 10)}

    class Named(torch.nn.Sequential):
        def forward(self, input):
            return super().forward(input)

    found = []
    for workers in (0, 2):
        student = Named(*linear())
        loader = torch.utils.data.DataLoader(Noisy(), 4, num_workers=workers)
        fit(student, CrossEntropy(), train=loader, recipe=replace(QUICK, batch_size=4, epochs=2))
        found.append(state(student))
    assert_same_state(*found)


@pytest.mark.skipif(not keep_freed_memory(), reason="glibc alone is asked")
def test_memory_that_a_step_frees_is_the_next_steps():
    """Its pages are asked for once: 64 MB have 16,384, which glibc by itself gives back and asks for at every step."""
    resource = pytest.importorskip("resource")

    def step() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**24).sum()
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    assert min(step() for _ in range(5)) < 1000


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())  # without mallopt, as musl and macOS are
    assert not keep_freed_memory()
