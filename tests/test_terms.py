import math

import pytest
import torch

from kdlab import objectives
from kdlab.objectives import (
    CrossEntropy,
    ForwardKL,
    Objective,
    PermutedSoftTargets,
    ReverseKL,
    SoftTargets,
    Term,
    cross_entropy,
    distillation_loss,
    forward_kl,
    reverse_kl,
    soft_targets,
)


@pytest.fixture
def seen():
    return {
        "student_logits": torch.randn(6, 5, dtype=torch.float64, requires_grad=True),
        "teacher_logits": torch.randn(6, 5, dtype=torch.float64, requires_grad=True),
        "labels": torch.randint(5, (6,)),
    }


class Learned(Term):
    extra_repr = "".format
    """A term with a parameter and a buffer of its own."""

    needs_teacher = False

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(2.0))
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, *, student_logits, **_):
        self.calls += 1
        return self.scale * student_logits.square().mean()


def test_each_term_is_its_function(seen):
    z, t, y = seen.values()
    for term, expected in (
        (CrossEntropy(), cross_entropy(z, y)),
        (ForwardKL(temperature=2), forward_kl(z, t, temperature=2)),
        (ReverseKL(temperature=3), reverse_kl(z, t, temperature=3)),
        (SoftTargets(temperature=5), soft_targets(z, t, temperature=5)),
        (SoftTargets(), soft_targets(z, t)),
    ):
        assert torch.equal(term(**seen), expected)


def test_a_sum_is_the_distillation_loss(seen):
    total, terms = (0.1 * CrossEntropy() + 0.9 * SoftTargets(temperature=4))(**seen)
    expected = distillation_loss(*seen.values(), temperature=4, hard_weight=0.1)
    torch.testing.assert_close(total, expected, rtol=1e-14, atol=0)
    assert set(terms) == {"CrossEntropy", "SoftTargets"}
    torch.testing.assert_close(0.1 * terms["CrossEntropy"] + 0.9 * terms["SoftTargets"], total)


def test_weights_distribute_over_sums(seen):
    a, b = CrossEntropy(), SoftTargets(temperature=2)
    assert (2 * (0.5 * a + b)).weights == (2 * 0.5 * a + 2 * b).weights == (1.0, 2.0)
    torch.testing.assert_close((2 * (a + b))(**seen)[0], (2 * a + 2 * b)(**seen)[0])
    torch.testing.assert_close((2 * (a + b))(**seen)[0], 2 * (a + b)(**seen)[0])


def test_sums_associate_and_multiply_from_both_sides():
    a, b, c = CrossEntropy(), ForwardKL(), ReverseKL()
    left, right = (a + b) + c, a + (b + c)
    assert left.weights == right.weights and left.names == right.names
    assert (a * 3).weights == (3 * a).weights == (3.0,)
    assert ((a + b) * 3).weights == (3 * (a + b)).weights


def test_composition_leaves_its_parts_alone():
    part = 0.5 * CrossEntropy()
    _ = 4 * (part + SoftTargets())
    assert part.weights == (0.5,) and part.names == ("CrossEntropy",)


def test_a_term_that_appears_twice_has_two_names(seen):
    objective = SoftTargets(temperature=2) + CrossEntropy() + SoftTargets(temperature=8)
    assert objective.names == ("SoftTargets_1", "CrossEntropy", "SoftTargets_2")
    total, terms = objective(**seen)
    torch.testing.assert_close(total, sum(terms.values()))
    z, t, _ = seen.values()
    assert torch.equal(terms["SoftTargets_2"], soft_targets(z, t, temperature=8))


@pytest.mark.parametrize(
    "objective",
    [
        0.1 * CrossEntropy() + 0.9 * SoftTargets(temperature=4),
        1.0 * CrossEntropy(),
        1 / 3 * ForwardKL(temperature=0.1)
        + -2 * ReverseKL(temperature=2.5)
        + 1e-9 * PermutedSoftTargets(temperature=7),
        SoftTargets(temperature=2) + SoftTargets(temperature=8),
    ],
)
def test_repr_evaluates_to_the_same_objective(objective):
    again = 1.0 * eval(repr(objective), vars(objectives))
    assert repr(again) == repr(objective)
    assert again.names == objective.names
    assert again.weights == pytest.approx(objective.weights, rel=1e-11)


def test_needs_teacher_if_any_term_does():
    assert not CrossEntropy().needs_teacher and SoftTargets().needs_teacher
    assert not (1.0 * CrossEntropy()).needs_teacher
    assert (0.1 * CrossEntropy() + 0.9 * ForwardKL()).needs_teacher


@pytest.mark.parametrize("term", [ForwardKL(), ReverseKL(), SoftTargets(), PermutedSoftTargets()])
def test_terms_give_the_teacher_no_gradient(term, seen):
    term(**seen).backward()
    assert seen["teacher_logits"].grad is None
    assert seen["student_logits"].grad.abs().max() > 0


def test_terms_take_what_they_need_and_leave_the_rest(seen):
    assert torch.equal(CrossEntropy()(**seen, hidden="anything"), CrossEntropy()(**seen))
    with pytest.raises(TypeError, match="labels"):
        CrossEntropy()(student_logits=seen["student_logits"])


def test_what_a_term_learns_is_the_objectives():
    objective = 0.5 * CrossEntropy() + 2 * Learned()
    assert [p.item() for p in objective.parameters()] == [2.0]
    assert set(objective.state_dict()) == {"terms.1.scale", "terms.1.calls"}


@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused(weight):
    with pytest.raises(ValueError, match="the weight of a term must be a finite number or a schedule, not"):
        weight * CrossEntropy()


def test_weights_that_are_not_numbers_are_refused():
    with pytest.raises(TypeError):
        "2" * CrossEntropy()
    with pytest.raises(TypeError):
        (CrossEntropy() + SoftTargets()) * [1.0]
    with pytest.raises(TypeError):
        CrossEntropy() + 1.0
    with pytest.raises(ValueError, match="the weight of a term must be a finite number"):
        Objective([("2", CrossEntropy())])


@pytest.mark.parametrize("kind", [ForwardKL, ReverseKL, SoftTargets, PermutedSoftTargets])
def test_bad_temperature_is_refused_when_the_term_is_made(kind):
    with pytest.raises(ValueError, match="temperature must be a positive, finite number, not 0"):
        kind(temperature=0)


def test_permuted_soft_targets_keep_the_true_class_and_draw_anew(seen):
    z, t, y = seen.values()
    first, second = PermutedSoftTargets()(**seen), PermutedSoftTargets()(**seen)
    assert first != second
    torch.manual_seed(3)
    one = PermutedSoftTargets(temperature=4)(**seen)
    torch.manual_seed(3)
    other = soft_targets(z, objectives.permute_dark_knowledge(t, y), temperature=4)
    assert torch.equal(one, other)


def test_a_mask_reaches_every_term():
    z, t = torch.randn(2, 4, 5), torch.randn(2, 4, 5)
    y, mask = torch.randint(5, (2, 4)), torch.tensor([[True] * 4, [True, False, False, False]])
    objective = 0.1 * CrossEntropy() + 0.9 * SoftTargets(temperature=4)
    total, _ = objective(student_logits=z, teacher_logits=t, labels=y, mask=mask)
    assert torch.isclose(total, distillation_loss(z, t, y, soft_weight=0.9, mask=mask))
    assert not torch.isclose(total, distillation_loss(z, t, y, soft_weight=0.9))


def test_an_argument_that_no_term_takes_is_refused():
    with pytest.raises(TypeError, match="no term of .* takes temperature"):
        (1.0 * CrossEntropy())(student_logits=torch.zeros(1, 2), labels=torch.tensor([0]), temperature=2)


def test_a_term_with_parameters_must_show_them():
    with pytest.raises(TypeError, match="must write extra_repr"):

        class Hidden(Term):
            def __init__(self, scale):
                super().__init__()
                self.scale = scale


def test_sum_of_terms():
    assert repr(sum([CrossEntropy(), SoftTargets(4)])) == repr(CrossEntropy() + SoftTargets(4))
