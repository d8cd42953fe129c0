"""Mistakes that real distillation code made: each criterion holds here, and catches the planted mistake."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdlab.data import KnownPosterior, Split
from kdlab.objectives import (
    CrossEntropy,
    ForwardKL,
    PermutedSoftTargets,
    ReverseKL,
    SoftTargets,
    Term,
    cross_entropy,
    distillation_loss,
    entropy,
    forward_kl,
    log_soften,
    permute_dark_knowledge,
    reverse_kl,
    soft_targets,
    soften,
)
from kdlab.study import Spec, plans, run
from kdlab.theory import reference
from kdlab.training import (
    Recipe,
    accuracy,
    checkpoint,
    expected_calibration_error,
    fit,
    loop,
    measure,
    predict,
)

QUICK = Recipe(epochs=3, batch_size=32, learning_rate=0.01, schedule="cosine")


def pair(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z, t = 3 * torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return z, t, torch.randint(shape[-1], shape[:-1], generator=generator)


def gradient(loss, z, *arguments, **options):
    z = z.clone().requires_grad_()
    return torch.autograd.grad(loss(z, *arguments, **options), z)[0]


def near(a, b):
    return torch.allclose(torch.as_tensor(a), torch.as_tensor(b), rtol=1e-9, atol=1e-12)


# Losses


def test_temperature_squared():
    """T² is left out, or applied only when another option is set."""

    def has_the_factor(loss):
        z, t, _ = pair(4, 6)
        closed = [T * (reference.softmax(z, T) - reference.softmax(t, T)) / len(z) for T in (1.0, 2.0, 8.0)]
        return all(
            near(gradient(loss, z, t, temperature=T), g) for T, g in zip((1.0, 2.0, 8.0), closed, strict=True)
        )

    assert has_the_factor(soft_targets)
    assert has_the_factor(
        lambda z, t, temperature: SoftTargets(temperature)(student_logits=z, teacher_logits=t)
    )
    assert has_the_factor(
        lambda z, t, temperature: distillation_loss(
            z, t, t.argmax(-1), temperature=temperature, soft_weight=1
        )
    )
    assert not has_the_factor(forward_kl)


def test_mean_over_classes():
    """The mean divides by the number of classes too where the mean over examples was meant."""

    def ignores_empty_classes(loss):
        z, t, _ = pair(4, 6)
        more = [torch.cat([x, x.new_full((4, 6), -1e4)], -1) for x in (z, t)]
        return near(loss(*more), loss(z, t))

    assert all(ignores_empty_classes(loss) for loss in (forward_kl, reverse_kl, soft_targets))
    assert not ignores_empty_classes(
        lambda z, t: F.kl_div(
            F.log_softmax(z, -1), F.log_softmax(t, -1), log_target=True, reduction="none"
        ).mean()
    )


def test_padding_weighs_nothing():
    """The sum over masked tokens is divided by the count of all tokens, so that padded batches weigh less."""
    z, t, _ = pair(3, 5, 6)
    mask = torch.rand(3, 5) < 0.6

    def is_padding_invariant(loss):
        padded = [F.pad(x, (0, 0, 0, 4)) for x in (z, t)]
        return near(loss(*padded, mask=F.pad(mask, (0, 4))), loss(z, t, mask=mask))

    assert all(is_padding_invariant(loss) for loss in (forward_kl, reverse_kl, soft_targets))
    assert not is_padding_invariant(lambda z, t, mask: forward_kl(z, t, mask=mask, reduction="none").mean())


def test_gradient_accumulation():
    """Accumulated gradients are normalised by each micro-batch, so that N of one differ from one of N."""
    z, t, _ = pair(2, 6, 5)
    mask = torch.tensor([[True] * 6, [True] * 2 + [False] * 4])
    whole = gradient(soft_targets, z, t, mask=mask)

    def accumulated(loss):
        return torch.stack([gradient(loss, *part) for part in zip(z, t, mask, strict=True)])

    assert near(accumulated(lambda z, t, m: soft_targets(z, t, mask=m, reduction="sum") / mask.sum()), whole)
    assert not near(accumulated(lambda z, t, m: soft_targets(z, t, mask=m) / 2), whole)


def test_labels_in_step_with_logits():
    """Labels are shifted by one against the logits."""
    z, _, y = pair(2, 6, 5)

    def each_position_sees_itself_alone(loss):
        before = loss(z, y)
        for position in range(before.shape[1]):
            z2, y2 = z.clone(), y.clone()
            z2[:, position] = z2[:, position].flip(-1)
            y2[:, position] = (y2[:, position] + 1) % 5
            for after in (loss(z2, y), loss(z, y2)):
                changed = after != before
                changed[:, position] = False
                if changed.any():
                    return False
        return True

    assert each_position_sees_itself_alone(lambda z, y: cross_entropy(z, y, reduction="none"))
    assert not each_position_sees_itself_alone(
        lambda z, y: cross_entropy(z[:, 1:], y[:, :-1], reduction="none")
    )


def test_end_of_sequence_is_learned_though_it_is_also_the_padding():
    """The end of a sequence is masked because padding has its number: the student never learns to stop."""
    pad = end = 0
    z, t, _ = pair(1, 5, 4)
    y = torch.tensor([[2, 3, end, pad, pad]])
    by_length, by_value = torch.tensor([[True, True, True, False, False]]), y != pad

    def learns_to_stop(mask):
        slope = gradient(distillation_loss, z, t, y, hard_weight=0.5, mask=mask)
        return bool(slope[0, 2].any()) and not slope[0, 3:].any()

    assert learns_to_stop(by_length)
    assert not learns_to_stop(by_value)


def test_divergence_not_squared_error_of_probabilities():
    """The mean squared error of probabilities times T² stands in for the divergence."""

    def becomes_logit_matching(loss):
        z, t, _ = pair(4, 6)
        T = 1e5
        return np.allclose(loss(z, t, temperature=T), reference.logit_matching(z, t).mean(), rtol=1e-3)

    assert becomes_logit_matching(soft_targets)
    assert not becomes_logit_matching(
        lambda z, t, temperature: temperature**2 * F.mse_loss(soften(z, temperature), soften(t, temperature))
    )


def test_divergence_not_cross_entropy():
    """What is called KL is a cross-entropy, or the other way round."""

    def is_zero_at_equality(loss):
        _, t, _ = pair(4, 6)
        return loss(t, t).item() == 0

    assert all(is_zero_at_equality(loss) for loss in (forward_kl, reverse_kl, soft_targets))
    assert not is_zero_at_equality(lambda z, t: cross_entropy(z, soften(t)))


def test_direction():
    """KL(student‖teacher) stands in for KL(teacher‖student)."""
    teacher, student = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 0.0])
    seen = {"teacher_logits": teacher, "student_logits": student}

    def is_from_the_teacher(value):
        return round(float(value), 4) == 0.3278

    def is_from_the_student(value):
        return round(float(value), 4) == 0.4338

    assert is_from_the_teacher(forward_kl(student, teacher)) and is_from_the_teacher(ForwardKL()(**seen))
    assert is_from_the_teacher(soft_targets(student, teacher, temperature=1))
    assert is_from_the_teacher(measure(student[None], torch.tensor([0]), teacher[None])["kl_to_teacher"])
    assert is_from_the_student(reverse_kl(student, teacher)) and is_from_the_student(ReverseKL()(**seen))
    assert not is_from_the_teacher(forward_kl(teacher, student))


def test_log_of_softmax():
    """log(softmax(x)) stands in for log_softmax."""

    def survives_extremes(log_probabilities):
        z = torch.tensor([[1e4, -1e4, 0.0]])
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            value = log_probabilities(z.to(dtype)).double()
            if not torch.allclose(
                value, torch.from_numpy(reference.log_softmax(z.to(dtype).double())), rtol=1e-6
            ):
                return False
        return True

    assert survives_extremes(log_soften)
    assert not survives_extremes(lambda z: torch.log(torch.softmax(z.float(), -1)))


def test_vocabularies_of_different_size():
    """Vocabularies of different size are padded with zeros, which are not impossible but likely."""
    z, t, _ = pair(4, 6)
    for loss in (forward_kl, reverse_kl, soft_targets):
        with pytest.raises(
            ValueError, match="must share one set of classes, but the student has 6 and the teacher 5"
        ):
            loss(z, t[:, :5])
    narrow = forward_kl(z[:, :5], t[:, :5])
    impossible, zeros = (forward_kl(*(F.pad(x[:, :5], (0, 1), value=v) for x in (z, t))) for v in (-1e4, 0.0))
    assert near(impossible, narrow) and not near(zeros, narrow)


def test_distilled_from_itself():
    """The student is distilled from itself because the wrong logits were passed."""

    def student_learns(term):
        z, t, y = pair(4, 6)
        z.requires_grad_()
        term(student_logits=z, teacher_logits=t, labels=y).backward()
        return bool(z.grad.any()) and t.grad is None

    class FromItself(SoftTargets):
        def forward(self, *, student_logits, **_):
            return soft_targets(student_logits, student_logits.detach(), temperature=self.temperature)

    assert all(
        student_learns(term) for term in (ForwardKL(), ReverseKL(), SoftTargets(), PermutedSoftTargets())
    )
    assert not student_learns(FromItself())


# The loop


class Watching(Term):
    extra_repr = "".format
    """Keeps what the loop shows to an objective."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, **seen):
        self.seen.append(seen)
        return seen["student_logits"].square().mean()


class Noting(nn.Module):
    """A model that keeps its inputs and its mode at each call."""

    def __init__(self, model):
        super().__init__()
        self.model, self.inputs, self.modes = model, [], []

    def forward(self, inputs):
        self.inputs.append(inputs.clone())
        self.modes.append(self.training)
        return self.model(inputs)


def test_student_and_teacher_logits_are_their_own(digits, linear):
    """The loop passes one model's logits for the other's."""
    student, teacher, watching = Noting(linear(0)), Noting(linear(1)), Watching()
    tiny = replace(QUICK, epochs=1, learning_rate=1e-30)
    fit(student, watching, train=digits.train, recipe=tiny, teacher=teacher)
    for seen, inputs in zip(watching.seen, student.inputs, strict=True):
        assert torch.equal(seen["student_logits"], student.model(inputs))
        assert torch.equal(seen["teacher_logits"], teacher.model(inputs))
        assert seen["student_logits"].requires_grad and not seen["teacher_logits"].requires_grad


def test_teacher_sees_what_the_student_sees(digits, linear):
    """Teacher outputs are kept by position while the data are shuffled and augmented."""
    student, teacher = Noting(linear(0)), Noting(linear(1))
    fit(student, SoftTargets(), train=digits.train, recipe=replace(QUICK, epochs=2), teacher=teacher)
    assert all(torch.equal(a, b) for a, b in zip(student.inputs, teacher.inputs, strict=True))
    assert not torch.equal(student.inputs[0], student.inputs[3])  # each epoch is shuffled and augmented anew


def teacher_is_untouched(digits, student, teacher):
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    mode = teacher.training
    fit(student, SoftTargets(), train=digits.train, recipe=replace(QUICK, epochs=1), teacher=teacher)
    same = all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    return same and teacher.training == mode and all(p.grad is None for p in teacher.parameters())


def test_teacher_in_training_mode(digits, resnet, monkeypatch):
    """The teacher is in training mode, is updated, or keeps gradients."""
    assert teacher_is_untouched(digits, resnet(0), resnet(1).train())
    teacher = resnet(1).train()
    monkeypatch.setattr(teacher, "eval", lambda: teacher)
    assert not teacher_is_untouched(digits, resnet(0), teacher)


def test_student_left_in_evaluation_mode(digits, linear, monkeypatch):
    """The student is left in evaluation mode after the first evaluation."""

    def trains_in_training_mode():
        student = Noting(linear(0))
        fit(student, CrossEntropy(), train=digits.train, recipe=QUICK, validation=digits.validation)
        return [
            mode for mode, inputs in zip(student.modes, student.inputs, strict=True) if len(inputs) == 32
        ] == [True] * 9

    assert trains_in_training_mode()

    def forgetful(model, split, **_):
        model.eval()
        model.train = lambda mode=True: model
        return torch.cat([model(inputs).detach() for inputs, _, _ in split.batches(500)])

    monkeypatch.setattr(loop, "predict", forgetful)
    assert not trains_in_training_mode()


class Learned(Term):
    extra_repr = "".format
    """A term with a projector that learns, and a memory that grows."""

    needs_teacher = False

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.projector = nn.Linear(10, 4)
        self.register_buffer("memory", torch.zeros(4))

    def forward(self, *, student_logits, **_):
        projected = self.projector(student_logits).mean(0)
        self.memory.lerp_(projected.detach(), 0.5)
        return (projected - self.memory + 1).square().mean()


def resumes_bit_for_bit(digits, linear, folder, optimizer):
    def options(seed):
        objective = 0.2 * CrossEntropy() + 0.5 * PermutedSoftTargets(temperature=4) + 0.3 * Learned(seed)
        return {"objective": objective, "train": digits.train, "teacher": linear(1)}

    def everything(student, given):
        return [*student.state_dict().values(), *given["objective"].state_dict().values()]

    recipe = replace(QUICK, optimizer=optimizer, learning_rate=1e-3)
    whole, given = linear(0), options(0)
    torch.manual_seed(11)
    history = fit(whole, recipe=recipe, **given)
    expected = everything(whole, given)

    class Killed(Exception):
        pass

    def kill(entry):
        raise Killed

    first, given = linear(0), options(0)
    torch.manual_seed(11)
    with pytest.raises(Killed):
        fit(first, recipe=recipe, checkpoint=folder / "run", report=kill, **given)
    second, given = linear(5), options(5)
    resumed = fit(second, recipe=recipe, checkpoint=folder / "run", **given)
    same = all(torch.equal(a, b) for a, b in zip(everything(second, given), expected, strict=True))
    return same and [entry["loss"] for entry in resumed] == [entry["loss"] for entry in history]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_everything_is_in_the_checkpoint(digits, linear, tmp_path, optimizer):
    """Projectors, memory banks, random numbers or the data cursor are not in the checkpoint."""
    assert resumes_bit_for_bit(digits, linear, tmp_path, optimizer)


@pytest.mark.parametrize(
    "forgotten",
    [
        "student.",
        "objective.terms.2.projector",
        "objective.terms.2.memory",
        "optimizer.",
        "random.data",
        "random.torch",
    ],
)
def test_each_part_of_the_checkpoint_is_needed(digits, linear, tmp_path, forgotten, monkeypatch):
    """One part of the checkpoint is forgotten, and nobody notices."""
    save = checkpoint.save_tensors

    def forgetful(path, tensors, header):
        kept = {}
        for name, tensor in tensors.items():
            if not name.startswith(forgotten):
                kept[name] = tensor
            elif name.startswith("random."):
                kept[name] = torch.Generator().manual_seed(77).get_state()
            elif not name.startswith("optimizer."):
                kept[name] = torch.zeros_like(tensor)
        save(path, kept, header)

    monkeypatch.setattr(checkpoint, "save_tensors", forgetful)
    assert not resumes_bit_for_bit(digits, linear, tmp_path, "sgd")


def follows_the_schedule(digits, student, recipe):
    """Whether each step moves every weight by the closed form's rate: the loss is the sum of the weights."""
    sums = []

    def sum_of_weights():
        sums.append(sum(p.detach().double().sum().item() for p in student.parameters()))
        return sum(p.sum() for p in student.parameters())

    class SumOfWeights(Term):
        needs_teacher = False

        def forward(self, **_):
            return sum_of_weights()

    fit(student, SumOfWeights(), train=digits.train, recipe=recipe)
    sum_of_weights()
    rates = -np.diff(sums) / sum(p.numel() for p in student.parameters())
    return np.allclose(rates, [1.0] * 6 + [0.1] * 3 + [0.01] * 3, rtol=1e-3)


def test_schedule_fires(digits, linear, monkeypatch):
    """The learning-rate schedule has a typo and never fires."""
    recipe = Recipe(
        epochs=4,
        batch_size=32,
        learning_rate=1.0,
        momentum=0,
        weight_decay=0,
        milestones=(2, 3),
        augment=False,
    )
    assert follows_the_schedule(digits, linear(0), recipe)
    monkeypatch.setattr(Recipe, "learning_rate_at", lambda self, epoch: self.learning_rate)
    assert not follows_the_schedule(digits, linear(0), recipe)


# The study


@dataclass(frozen=True)
class WatchedSplit(Split):
    """A split that notes in ``log`` when it is looked at."""

    log: list = None

    def batches(self, *arguments, **options):
        self.log.append("test")
        return super().batches(*arguments, **options)


def test_test_split_is_touched_once(digits, linear):
    """The best epoch is chosen on the test split."""
    log = []
    watched = WatchedSplit(**vars(digits.test), log=log)
    data = replace(digits, test=watched)
    recipe = Recipe(epochs=2, batch_size=32, augment=False, schedule="constant")
    spec = Spec("pitfalls", "alone", "digits", "resnet8", 1.0 * CrossEntropy(), recipe)
    done = run(spec, data, report=lambda entry: log.append(entry["epoch"]))
    assert log == [1, 2, "test"]
    assert done.record["selection"].startswith("last epoch")
    assert done.record["test"]["accuracy"] == accuracy(done.test_logits, digits.test.labels)
    log.clear()
    fit(linear(), CrossEntropy(), train=digits.train, recipe=recipe, validation=watched,
        report=lambda entry: log.append(entry["epoch"]))  # fmt: skip
    assert log.index("test") < log.index(2)  # what the criterion would see


@pytest.mark.parametrize(
    "plan",
    [
        plans.first_distillation_cpu,
        plans.first_distillation_gpu,
        lambda: plans.first_distillation_live("cifar100", "bfloat16"),
        lambda: plans.first_distillation_live("digits", "float32"),
    ],
    ids=["cpu", "gpu", "live", "live on digits"],
)
def test_every_arm_is_treated_alike(plan):
    """The baseline is not tuned as the method is, or the seed is used as a hyper-parameter."""
    specs = plan()
    arms = {arm: [spec for spec in specs if spec.arm == arm] for arm in ("alone", "kd", "permuted")}
    assert sum(map(len, arms.values())) == len(specs)
    for alone, kd, permuted in zip(*arms.values(), strict=True):
        assert alone.recipe == kd.recipe == permuted.recipe
        assert (alone.student, alone.data, alone.train_examples) == (kd.student, kd.data, kd.train_examples)
        assert alone.teacher is None and kd.teacher.hash == permuted.teacher.hash
    assert [spec.recipe.seed for spec in arms["kd"]] == list(range(len(arms["kd"])))
    assert len({replace(spec.recipe, seed=0) for spec in specs}) == 1


def test_every_default_runs(digits, resnet):
    """A default argument was never run, and its path crashes."""
    z, t, y = pair(4, 6)
    seen = {"student_logits": z, "teacher_logits": t, "labels": y}
    for value in (
        *(f(z) for f in (soften, log_soften, entropy)),
        *(f(z, t) for f in (forward_kl, reverse_kl, soft_targets)),
        cross_entropy(z, y),
        distillation_loss(z, t, y, hard_weight=0.5),
        permute_dark_knowledge(t, y),
        *(term()(**seen) for term in (CrossEntropy, ForwardKL, ReverseKL, SoftTargets, PermutedSoftTargets)),
    ):
        assert torch.isfinite(value).all()
    assert math.isfinite(expected_calibration_error(z, y)) and measure(z, y)
    assert len(KnownPosterior.draw().sample(5)) == 5
    epoch = replace(Recipe(), epochs=1)
    history = fit(
        resnet(),
        0.1 * CrossEntropy() + 0.9 * SoftTargets(),
        train=digits.train,
        recipe=epoch,
        teacher=resnet(1),
    )
    assert math.isfinite(history[0]["loss"])
    assert predict(resnet(), digits.test).shape == (64, 10)
