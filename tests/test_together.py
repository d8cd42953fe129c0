import tempfile
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kdlab.data.images import Split
from kdlab.objectives import (
    CRD,
    DIST,
    ActivationAttention,
    CrossEntropy,
    DecoupledKD,
    HiddenMSE,
    InfoNCE,
    LearnedTemperature,
    Linear,
    PermutedSoftTargets,
    Projector,
    RKDAngle,
    RKDDistance,
    SmoothedLabels,
    SoftTargets,
    Term,
)
from kdlab.training import CheckpointError, Learner, Recipe, Stopped, Taps, fit, fit_together
from kdlab.training.checkpoint import load_tensors, save_tensors
from kdlab.training.mixup import mixed

RECIPE = Recipe(epochs=2, batch_size=32, learning_rate=0.01, schedule="cosine", warmup_epochs=0.5)
KD = 0.1 * CrossEntropy() + 0.9 * SoftTargets(temperature=4)
STEPS = 3  # of an epoch, on 96 images


def pooled(seed=0):
    """The smallest student, with a batch normalisation: the same weights for the same seed."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, 12), nn.BatchNorm1d(12), nn.Linear(12, 10))


def crd():
    torch.manual_seed(3)
    memory = CRD("input:4", student_width=12, teacher_width=12, examples=96, width=8, negatives=16)
    return CrossEntropy() + 0.8 * memory


def scheduled():
    return Linear(0, 1) * CrossEntropy() + SoftTargets(temperature=Linear(8, 1)) + SoftTargets(LearnedTemperature())


#: Each makes an objective, and says how its recipe differs.
KINDS = {
    "alone": (lambda: 1.0 * CrossEntropy(), {}),
    "kd": (lambda: KD, {}),
    "another rate": (lambda: KD, {"learning_rate": 0.05}),
    "another seed": (lambda: KD, {"seed": 1}),
    "own view": (lambda: KD, {"teacher_view": "own"}),
    "random numbers": (lambda: 1.0 * PermutedSoftTargets(temperature=2), {}),
    "schedules": (scheduled, {}),
    "memory": (crd, {}),
    "adam": (lambda: KD, {"optimizer": "adam", "learning_rate": 1e-3}),
    "longer": (lambda: KD, {"epochs": 3}),
}


def learner(kind, folder=None, **changes):
    make, change = KINDS[kind]
    path = None if folder is None else Path(folder) / kind
    return Learner(pooled(), make(), replace(RECIPE, **{**change, **changes}), path)


def timeless(history):
    return [{k: v for k, v in entry.items() if k not in ("seconds", "examples_per_second")} for entry in history]


def assert_same(one, other):
    """Two learners ended with the same bits."""
    for part in ("student", "objective"):
        left, right = (getattr(x, part).state_dict() for x in (one, other))
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in left), part


def assert_same_checkpoint(one, other):
    (tensors, header), (tensors2, header2) = map(load_tensors, (one, other))
    assert tensors.keys() == tensors2.keys()
    assert all(torch.equal(tensors[name], tensors2[name]) for name in tensors)
    for found in (header, header2):
        found["history"] = timeless(found["history"])
    assert {**header, "seconds": 0} == {**header2, "seconds": 0}


# Beside each other


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_beside_others_every_student_ends_as_alone(digits, tmp_path, precision):
    options = {"train": digits.train, "validation": digits.validation, "teacher": pooled(1)}
    together = [learner(kind, tmp_path / "together", precision=precision) for kind in KINDS]
    histories = fit_together(together, **options)
    for kind, beside, history in zip(KINDS, together, histories, strict=True):
        alone = learner(kind, tmp_path / "alone", precision=precision)
        (expected,) = fit_together([alone], **options)
        assert timeless(history) == timeless(expected), kind
        assert_same(beside, alone)
        assert_same_checkpoint(beside.checkpoint, alone.checkpoint)


def test_students_of_different_architecture_learn_beside_each_other(digits, linear, resnet):
    options = {"train": digits.train, "teacher": resnet(1)}
    recipe = replace(RECIPE, epochs=1)
    together = [Learner(resnet(), KD, recipe), Learner(linear(), KD, recipe)]
    fit_together(together, **options)
    for beside, alone in zip(together, (resnet(), linear()), strict=True):
        fit(alone, KD, recipe=recipe, **options)
        assert_same(beside, Learner(alone, KD, recipe))


def test_the_teacher_is_asked_once_for_each_view_of_a_batch(digits):
    teacher, seen = pooled(1), []
    teacher.register_forward_hook(lambda module, inputs, _: seen.append(inputs[0].clone()))
    kinds = ["alone", "kd", "another rate", "another seed", "own view", "memory"]
    fit_together([learner(kind) for kind in kinds], train=digits.train, teacher=teacher)
    assert len(seen) == 2 * STEPS * 3  # seed 0, seed 1, seed 0 in a view of its own
    assert len({tuple(batch.flatten().tolist()) for batch in seen}) == len(seen)


def inputs_of(model, into):
    model.register_forward_hook(lambda module, inputs, _: into.append(inputs[0].clone()))
    return model


def test_a_teacher_with_its_own_view_sees_other_crops_of_the_same_images():
    images = torch.arange(1, 97, dtype=torch.uint8).view(96, 1, 1, 1).expand(96, 3, 32, 32)
    plain = Split(images.contiguous(), torch.arange(96) % 10, (0.0,) * 3, (1.0,) * 3)
    students, teachers = [], []
    fit(
        inputs_of(pooled(), students), KD, train=plain, teacher=inputs_of(pooled(1), teachers),
        recipe=replace(RECIPE, teacher_view="own"),
    )  # fmt: skip
    assert len(students) == len(teachers) == 2 * STEPS
    for student, teacher in zip(students, teachers, strict=True):
        assert torch.equal(student.amax((1, 2, 3)), teacher.amax((1, 2, 3)))
        assert not torch.equal(student, teacher)


SOFT = 1.0 * SoftTargets(temperature=4)


@pytest.mark.parametrize("view", ["same", "own"])
def test_mixup_shows_both_the_same_mixture_of_two_examples(view):
    """Pictures of one shade each: a mixture's shade says of which two, by which share."""
    shade = torch.arange(96, dtype=torch.uint8).view(96, 1, 1, 1).expand(96, 3, 32, 32)
    shade = (shade.long() ** 2 // 40).to(torch.uint8).contiguous()
    plain = Split(shade, torch.arange(96) % 10, (0.0,) * 3, (1.0,) * 3)
    students, teachers = [], []
    fit(
        inputs_of(pooled(), students), SOFT, train=plain, teacher=inputs_of(pooled(1), teachers),
        recipe=replace(RECIPE, teacher_view=view, mixup=True, augment=view == "own"),
    )  # fmt: skip
    assert len(students) == 2 * STEPS
    for student, teacher in zip(students, teachers, strict=True):
        middle = (..., slice(8, 24), slice(8, 24))  # which no crop leaves out
        assert torch.allclose(student[middle], teacher[middle], atol=1e-6)
        assert torch.equal(student, teacher) == (view == "same")
    shades = torch.cat([x[:, 0, 16, 16] for x in students])
    assert 0 <= shades.min() < shades.max() <= 1 and len(shades.unique()) > 100


def test_mixup_resumes_bit_for_bit(digits, tmp_path):
    """What is drawn hangs on the batch's number alone."""
    recipe = replace(RECIPE, mixup=True)
    options = {"train": digits.train, "teacher": pooled(1)}
    whole, parted = (Learner(pooled(), SOFT, recipe, tmp_path / name) for name in ("whole", "parted"))
    fit_together([whole], **options)
    asked = iter(range(1000))
    with pytest.raises(Stopped):
        fit_together([parted], **options, stop=lambda: next(asked) == STEPS + 1, checkpoint_seconds=0)
    again = Learner(pooled(), SOFT, recipe, tmp_path / "parted")
    fit_together([again], **options)
    assert_same(whole, again)


@pytest.mark.parametrize(
    ("objective", "name"),
    [(KD, "CrossEntropy"), (crd(), "CrossEntropy"), (1.0 * DecoupledKD(), "DecoupledKD"), (1.0 * SmoothedLabels(0.1), "SmoothedLabels"),
     (1.0 * InfoNCE("input:2", same_class=False), "InfoNCE")],
)  # fmt: skip
def test_what_asks_for_labels_is_no_objective_of_mixtures(digits, objective, name):
    with pytest.raises(ValueError, match=f"{name} asks for labels, and a mixture of two examples has none"):
        fit(pooled(), objective, train=digits.train, teacher=pooled(1), recipe=replace(RECIPE, mixup=True))


class HiddenLabels(DecoupledKD):
    """Its labels are optional, and those of the class that it goes on to are not."""

    def forward(self, *, labels=None, **seen):
        return super().forward(labels=labels, **seen)


class AskedInPassing(Term):
    def forward(self, *, student_logits, **seen):
        return nn.functional.cross_entropy(student_logits, seen["labels"])


def test_labels_that_a_term_asks_for_in_passing_are_none_of_a_mixture(digits):
    options = {"train": digits.train, "teacher": pooled(1), "recipe": replace(RECIPE, mixup=True)}
    with pytest.raises(ValueError, match="HiddenLabels asks for labels"):
        fit(pooled(), 1.0 * HiddenLabels(), **options)
    with pytest.raises(TypeError, match="NoneType"):
        fit(pooled(), 1.0 * AskedInPassing(), **options)


def test_what_cannot_be_mixed_is_refused(digits):
    recipe = replace(RECIPE, mixup=True)
    with pytest.raises(ValueError, match="a batch has two or more"):
        fit(pooled(), SOFT, train=digits.train, teacher=pooled(1), recipe=replace(recipe, batch_size=1))
    left_out = replace(digits.train, labels=torch.full_like(digits.train.labels, -100))
    with pytest.raises(ValueError, match="some labels of -100 leave theirs out"):
        fit(pooled(), SOFT, train=left_out, teacher=pooled(1), recipe=recipe)
    for value in (0.2, "no", 1):
        with pytest.raises(TypeError, match="mixup is True or False, not .*; the shares of a mixture are uniform"):
            replace(RECIPE, mixup=value)


def test_nothing_is_mixed_with_itself():
    for n in (2, 3, 64):
        ((seen, _),) = mixed(iter([(torch.eye(n), None)]), 0, 0)
        assert (seen > 0).sum(1).eq(2).all() and torch.allclose(seen.sum(1), torch.ones(n))


def test_a_view_that_changes_its_inputs_in_place_is_refused(digits):
    with pytest.raises(ValueError, match="student_view changes its inputs in place"):
        fit(pooled(), SOFT, train=digits.train, teacher=pooled(1), recipe=RECIPE, student_view=lambda x, _: x.mul_(2))


def test_tokens_are_not_mixed():
    with pytest.raises(TypeError, match=r"these are torch.int64: give pictures or vectors in floating point"):
        next(mixed(iter([(torch.zeros(2, 3, dtype=torch.long), None)]), 0, 0))


def test_a_teacher_in_training_mode_teaches_otherwise_and_is_left_as_it_was(digits):
    teacher = pooled(1)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    modes = []
    teacher.register_forward_hook(lambda module, *_: modes.append(module.training))
    histories = [
        fit(pooled(), KD, train=digits.train, teacher=teacher, recipe=replace(RECIPE, teacher_mode=mode))
        for mode in ("eval", "train")
    ]
    assert histories[0][0]["CrossEntropy"] != histories[1][0]["CrossEntropy"]
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters()) and teacher.training
    assert modes == 2 * STEPS * [False] + 2 * STEPS * [True]


def test_a_teacher_that_draws_at_random_does_so_by_the_seed_alone(digits, tmp_path):
    teacher = nn.Sequential(nn.Dropout(0.5), *pooled(1))
    recipe = replace(RECIPE, teacher_mode="train")
    first, again = (Learner(pooled(), KD, recipe) for _ in range(2))
    fit_together([first], train=digits.train, teacher=teacher)
    torch.manual_seed(99)
    others = [learner(kind, teacher_mode="train") for kind in ("random numbers", "another seed")]
    fit_together([*others, again], train=digits.train, teacher=teacher)
    assert_same(first, again)


class NotANumber(Term):
    """A loss that stops being finite after so many steps."""

    needs_teacher = False

    def __init__(self, after):
        super().__init__()
        self.left = after

    def extra_repr(self):
        return ""

    def forward(self, *, student_logits, **_):
        self.left -= 1
        return student_logits.square().mean() * (1.0 if self.left >= 0 else torch.nan)


@pytest.mark.parametrize("seconds", [None, 0])
@pytest.mark.parametrize("after", [0, 1, STEPS - 1, STEPS, 2 * STEPS - 1])
def test_one_that_diverges_leaves_its_error_and_stops_no_other(digits, tmp_path, seconds, after):
    kinds = ["kd", "memory"]
    together = [learner(kind, tmp_path) for kind in kinds]
    together.insert(1, Learner(pooled(), 1.0 * NotANumber(after), RECIPE, tmp_path / "diverging"))
    outcomes = fit_together(together, train=digits.train, teacher=pooled(1), checkpoint_seconds=seconds)
    error = outcomes.pop(1)
    assert isinstance(error, FloatingPointError)
    assert f"training diverged in epoch {1 + after // STEPS} of 2: " in str(error)
    for kind, beside, history in zip(kinds, [together[0], together[2]], outcomes, strict=True):
        (expected,) = fit_together([alone := learner(kind)], train=digits.train, teacher=pooled(1))
        assert timeless(history) == timeless(expected)
        assert_same(beside, alone)


def test_all_may_diverge(digits):
    together = [learner(kind, learning_rate=1e30, schedule="constant") for kind in ("kd", "memory")]
    outcomes = fit_together(together, train=digits.train, teacher=pooled(1))
    assert [type(outcome) for outcome in outcomes] == 2 * [FloatingPointError]


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 16},
        {"augment": False},
        {"precision": "bfloat16"},
        {"teacher_mode": "train"},
        {"epoch_examples": 64},
    ],
    ids=str,
)
def test_students_that_do_not_fit_each_other_are_refused(digits, change):
    with pytest.raises(
        ValueError,
        match=r"students that train side by side share batch_size, augment, mixup, precision, teacher_mode, epoch_examples\.",
    ):
        fit_together([learner("kd"), learner("alone", **change)], train=digits.train, teacher=pooled(1))


def test_what_two_learners_share_is_refused(digits, tmp_path):
    options = {"train": digits.train, "teacher": pooled(1)}
    student, memory = pooled(), crd()
    for shared in (
        [Learner(student, KD, RECIPE), Learner(student, 1.0 * CrossEntropy(), RECIPE)],
        [Learner(pooled(), memory, RECIPE), Learner(pooled(), memory, RECIPE)],
    ):
        with pytest.raises(ValueError, match="two learners share weights, of a student or an objective: give"):
            fit_together(shared, **options)
    with pytest.raises(ValueError, match="two learners have one and the same checkpoint"):
        fit_together([learner("kd", tmp_path), learner("kd", tmp_path)], **options)
    with pytest.raises(ValueError, match="needs a teacher, but none was given"):
        fit_together([learner("alone"), learner("kd")], train=digits.train)


# Stopped and killed


def after(asks):
    """A ``stop`` that says True when it is asked once more than ``asks`` times."""
    asked = count()
    return lambda: next(asked) >= asks


INTERRUPTED = ("kd", "another seed", "random numbers", "schedules", "memory", "adam")


@pytest.fixture(scope="module")
def whole(digits):
    """Students that were never interrupted, and their histories."""
    learners = [learner(kind) for kind in INTERRUPTED]
    options = {"train": digits.train, "validation": digits.validation, "teacher": pooled(1)}
    return learners, fit_together(learners, gradient_norms=True, **options), options


def assert_as_whole(whole, learners, histories):
    for one, history, other, expected in zip(learners, histories, *whole[:2], strict=True):
        assert timeless(history) == timeless(expected)
        assert_same(one, other)


@settings(max_examples=12)
@given(st.lists(st.integers(0, 14), min_size=1, max_size=3), st.sampled_from([None, 0, 1e9]))
def test_a_run_that_was_stopped_anywhere_goes_on_bit_for_bit(whole, asks, seconds):
    with tempfile.TemporaryDirectory() as folder:
        for number in asks:
            torch.manual_seed(number)
            try:
                fit_together(
                    [learner(kind, folder) for kind in INTERRUPTED], checkpoint_seconds=seconds,
                    gradient_norms=True, stop=after(number), **whole[2],
                )  # fmt: skip
            except Stopped:
                pass
        learners = [learner(kind, folder) for kind in INTERRUPTED]
        histories = fit_together(learners, checkpoint_seconds=seconds, gradient_norms=True, **whole[2])
        assert_as_whole(whole, learners, histories)


@pytest.mark.parametrize("asks", range(9))
def test_every_stop_is_one_ask_further(digits, tmp_path, asks):
    # An epoch asks before each of its three steps and before the one batch of its validation.
    options = {"train": digits.train, "validation": digits.validation, "teacher": pooled(1)}
    if asks == 8:
        assert fit_together([learner("kd", tmp_path)], stop=after(asks), **options)
        return
    with pytest.raises(Stopped):
        fit_together([learner("kd", tmp_path)], stop=after(asks), checkpoint_seconds=1e9, **options)
    _, header = load_tensors(tmp_path / "kd")
    assert (len(header["history"]), header["step"]) == divmod(asks, STEPS + 1)


@pytest.mark.parametrize("seconds", [None, 0])
@pytest.mark.parametrize("places", [(0, 5), (2, 1), (3, 2), (4, 3), (7, 0), (8, 5)])
def test_checkpoints_at_different_steps_go_on_together(whole, tmp_path, places, seconds):
    """As after a kill between two writes, or of students that were stopped apart."""
    kinds = dict(zip(("schedules", "memory"), places, strict=True))
    for kind, place in kinds.items():
        try:
            fit_together([learner(kind, tmp_path)], gradient_norms=True, stop=after(place), **whole[2])
        except Stopped:
            pass
    learners = [learner(kind, tmp_path) for kind in kinds]
    histories = fit_together(learners, gradient_norms=True, checkpoint_seconds=seconds, **whole[2])
    expected = [INTERRUPTED.index(kind) for kind in kinds]
    assert_as_whole([[part[i] for i in expected] for part in whole[:2]], learners, histories)


class Killed(Exception):
    pass


@pytest.mark.parametrize("step", range(1, 2 * STEPS))
def test_with_a_checkpoint_every_step_a_kill_loses_one_step_at_most(digits, whole, tmp_path, step):
    calls = count()

    def kill(module, *_):
        if module.training and next(calls) == step:
            raise Killed

    doomed = learner("memory", tmp_path)
    doomed.student.register_forward_hook(kill)
    options = {"checkpoint_seconds": 0, "gradient_norms": True, **whole[2]}
    with pytest.raises(Killed):
        fit_together([doomed], **options)
    _, header = load_tensors(tmp_path / "memory")
    assert STEPS * len(header["history"]) + header["step"] == step
    again = learner("memory", tmp_path)
    assert_as_whole(
        [[part[INTERRUPTED.index("memory")]] for part in whole[:2]], [again], fit_together([again], **options)
    )


def test_a_checkpoint_with_another_bit_is_refused(digits, tmp_path):
    fit_together([learner("kd", tmp_path)], train=digits.train, teacher=pooled(1))
    tensors, header = load_tensors(tmp_path / "kd")
    next(value for name, value in tensors.items() if name.endswith("weight")).view(-1)[0] += 1e-6
    save_tensors(tmp_path / "kd", tensors, header)
    with pytest.raises(CheckpointError, match="kd is damaged: its checksum does not fit what it holds"):
        fit_together([learner("kd", tmp_path)], train=digits.train, teacher=pooled(1))


# On an accelerator nothing waits for the device


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer1 = nn.Conv2d(3, 4, 3, stride=4)
        self.layer2 = nn.Conv2d(4, 6, 3, stride=2)
        self.fc = nn.Linear(54, 10)

    def forward(self, images):
        return self.fc(self.layer2(self.layer1(images).relu()).relu().flatten(1))


def crd_after_its_first_batch():
    """CRD whose normaliser is set: its first batch may look at values, no other one."""
    term = CRD("input:fc", student_width=54, teacher_width=54, examples=96, width=8, negatives=16)
    term.memory._normalised = True
    return term


@pytest.mark.parametrize(
    "make",
    [
        lambda: 0.1 * CrossEntropy() + 0.9 * SoftTargets(temperature=4),
        lambda: 1.0 * SoftTargets(temperature=2, standardised=True),
        lambda: 1.0 * PermutedSoftTargets(temperature=4),
        lambda: CrossEntropy() + Linear(0, 1) * DecoupledKD(1.0, 8.0, temperature=4),
        lambda: CrossEntropy() + 1.0 * DIST(2.0, 2.0, temperature=4),
        lambda: CrossEntropy() + 1000 * ActivationAttention("layer1", "layer2"),
        lambda: 25 * RKDDistance("input:fc") + 50 * RKDAngle("input:fc"),
        lambda: CrossEntropy() + 100 * HiddenMSE("layer2", projector=Projector("conv", 6, 6)),
        lambda: CrossEntropy() + 0.8 * crd_after_its_first_batch(),
    ],
    ids=["KD", "standardised", "permuted", "DKD", "DIST", "AT", "RKD", "hint", "CRD"],
)
def test_a_step_on_an_accelerator_looks_at_no_value(make):
    """Tensors that have no values take its place: whatever would wait for one raises."""
    with torch.device("meta"):
        objective, student, teacher = make(), Convolutional(), Convolutional()
        optimizer = torch.optim.SGD([*student.parameters(), *objective.parameters()], 0.1, momentum=0.9)
        images = torch.empty(8, 3, 32, 32)
        labels, index = torch.empty(2, 8, dtype=torch.int64).unbind()
    with torch.no_grad():
        teacher_logits, teacher_hidden = Taps(teacher, objective.teacher_layers)(images)
    student_logits, student_hidden = Taps(student, objective.student_layers)(images)
    loss, _ = objective(
        student_logits=student_logits, teacher_logits=teacher_logits, student_hidden=student_hidden,
        teacher_hidden=teacher_hidden, labels=labels, index=index, progress=0.5,
    )  # fmt: skip
    loss.backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match="meta tensors"):
        loss.item()
