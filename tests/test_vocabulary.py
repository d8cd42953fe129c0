"""HeadLogits: the same values and gradients as from all logits, which are never all there."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from losses import TERM_OF
from torch.utils._python_dispatch import TorchDispatchMode

from kdlab.objectives import (
    DIST,
    CrossEntropy,
    DecoupledKD,
    ForwardKL,
    GeneralisedJSD,
    HardTargets,
    HeadLogits,
    HiddenMSE,
    LearnedTemperature,
    Linear,
    LogitMSE,
    NegativeLogAcceptance,
    PermutedSoftTargets,
    ReverseKL,
    SkewedForwardKL,
    SkewedReverseKL,
    SmoothedLabels,
    SoftTargets,
    SpreadSoftTargets,
    Term,
    TotalVariation,
    cross_entropy,
    forward_kl,
    next_token,
)
from kdlab.objectives.vocabulary import by_autograd, tokens_at_once

V, WIDTH, TEACHER_WIDTH = 11, 5, 3


def of_term(make):
    return getattr(make, "func", make)


#: Functions of a temperature.
TERMS = {
    "cross-entropy": lambda T: CrossEntropy(),
    "forward": ForwardKL,
    "reverse": ReverseKL,
    "skewed forward": partial(SkewedForwardKL, 0.1),
    "skewed forward, beyond half": partial(SkewedForwardKL, 0.8),
    "skewed forward, 0": partial(SkewedForwardKL, 0),
    "skewed forward, 1": partial(SkewedForwardKL, 1),
    "skewed reverse": partial(SkewedReverseKL, 0.1),
    "skewed reverse, beyond half": partial(SkewedReverseKL, 0.8),
    "skewed reverse, 0": partial(SkewedReverseKL, 0),
    "skewed reverse, 1": partial(SkewedReverseKL, 1),
    "jsd": partial(GeneralisedJSD, 0.5, False),
    "jsd, more teacher": partial(GeneralisedJSD, 0.9, False),
    "jsd, scaled": partial(GeneralisedJSD, 0.2, True),
    "jsd, 0": partial(GeneralisedJSD, 0, False),
    "jsd, scaled, 0": partial(GeneralisedJSD, 0, True),
    "jsd, scaled, 1": partial(GeneralisedJSD, 1, True),
    "total variation": TotalVariation,
    "negative log acceptance": NegativeLogAcceptance,
    "soft targets": SoftTargets,
    "soft targets, standardised": partial(SoftTargets, standardised=True),
    "hard targets": lambda T: HardTargets(),
    "logit mse": lambda T: LogitMSE(),
    "decoupled": partial(DecoupledKD, 1.0, 8.0),
    "spread": SpreadSoftTargets,
}
TERMS |= {
    name: (lambda T, term=term: term(temperature=T))
    for name, term in TERM_OF.items()
    if term is not None and not any(term is of_term(make) for make in TERMS.values())
}
every_term = pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in TERMS.items()])


def heads(*shape, dtype=torch.float64, bias=True, softcap=None, chunk=None, scale=1.0, seed=0):
    """Student, teacher, labels."""
    g = torch.Generator().manual_seed(seed)

    def make(width):
        return HeadLogits(
            (scale * torch.randn(*shape, width, generator=g, dtype=torch.float64)).to(dtype).requires_grad_(),
            torch.randn(V, width, generator=g, dtype=torch.float64).to(dtype).requires_grad_(),
            torch.randn(V, generator=g, dtype=torch.float64).to(dtype).requires_grad_() if bias else None,
            softcap=softcap,
            chunk=chunk,
        )

    return make(WIDTH), make(TEACHER_WIDTH), torch.randint(V, shape, generator=g)


def inputs(head):
    return [x for x in (head.hidden, head.weight, head.bias) if x is not None]


def outcome(objective, z, t, student, factor=1.0, **seen):
    """Total, terms, and gradients by the student's head."""
    total, values = objective(student_logits=z, teacher_logits=t, **seen)
    grads = torch.autograd.grad(factor * total, inputs(student), materialize_grads=True)
    return total.detach(), {name: value.detach() for name, value in values.items()}, grads


def agree(objective, student, teacher, labels, rtol=1e-10, atol=1e-13, in_chunks=None, **seen):
    expected = outcome(objective, student.dense(), teacher.dense(), student, labels=labels, **seen)
    found = outcome(objective, student, teacher, student, labels=labels, **(in_chunks or seen))
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


# The same as from all logits


@every_term
@given(
    shape=st.sampled_from([(1,), (7,), (2, 4), (2, 1, 3)]),
    chunk=st.sampled_from([None, 1, 2, 3, 50]),
    T=st.floats(0.5, 20),
    softcap=st.sampled_from([None, 2.0, 30.0]),
    bias=st.booleans(),
    count=st.sampled_from([None, 5, 2.5]),
    masked=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=15)
def test_values_and_gradients_are_those_of_all_logits(make, shape, chunk, T, softcap, bias, count, masked, seed):
    student, teacher, labels = heads(*shape, bias=bias, softcap=softcap, chunk=chunk, seed=seed)
    mask = None
    if masked:
        mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.6
        mask.view(-1)[0] = True
    agree(0.7 * make(T), student, teacher, labels, mask=mask, count=count)


def test_smoothed_labels_are_exact():
    student, teacher, labels = heads(7, chunk=3)
    target = 0.7 * torch.nn.functional.one_hot(labels, V).double() + 0.3 / V
    expected = cross_entropy(student.dense(), target)
    total, _ = (1.0 * SmoothedLabels(0.3))(student_logits=student, labels=labels)
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=0)
    found, wanted = (torch.autograd.grad(x, inputs(student)) for x in (total, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-14)
    agree(1.0 * SmoothedLabels(0.3), student, teacher, labels, rtol=1e-6)  # whose target is float32


@given(st.integers(0, 1000), st.sampled_from([1, 2, 3, 7, 8]))
@settings(max_examples=15)
def test_several_terms_together(seed, chunk):
    objective = (
        0.3 * CrossEntropy() + Linear(2, 1) * SoftTargets(Linear(4, 2)) + 0.5 * SoftTargets(2.0)
        + 0.2 * GeneralisedJSD(0.5, temperature=2.0) + -0.1 * ReverseKL() + 0.4 * LogitMSE()
    )  # fmt: skip
    student, teacher, labels = heads(2, 4, chunk=chunk, seed=seed)
    agree(objective, student, teacher, labels, progress=0.25)
    _, values = objective(student_logits=student, teacher_logits=teacher, labels=labels, progress=0.25)
    assert list(values) == [*objective.names, "SoftTargets_1.temperature"]


@every_term
def test_gradients_are_right(make):
    student, teacher, labels = heads(3, chunk=2)

    def loss(hidden, weight, bias):
        head = HeadLogits(hidden, weight, bias, softcap=5.0, chunk=2)
        return (1.0 * make(2.0))(student_logits=head, teacher_logits=teacher, labels=labels)[0]

    assert torch.autograd.gradcheck(loss, inputs(student))


def test_temperature_squared_in_closed_form():
    student, teacher, _ = heads(4)
    total, _ = (1.0 * SoftTargets(3.0))(student_logits=student, teacher_logits=teacher)
    expected = 9 * forward_kl(student.dense(), teacher.dense(), temperature=3.0)
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=0)
    found, wanted = (torch.autograd.grad(x, student.hidden)[0] for x in (total, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-14)


@every_term
def test_the_teacher_may_be_there_and_gets_no_gradient(make):
    student, teacher, labels = heads(2, 4, chunk=3)
    objective, seen = 1.0 * make(2.0), {"labels": labels, "mask": labels > 2}
    found = outcome(objective, student, teacher, student, **seen)
    torch.testing.assert_close(outcome(objective, student, teacher.dense(), student, **seen), found)
    total, _ = objective(student_logits=student, teacher_logits=teacher, **seen)
    assert torch.autograd.grad(total, inputs(teacher), allow_unused=True) == (None, None, None)


@every_term
def test_sure_distributions_give_no_nan(make):
    for dtype in (torch.float32, torch.float64):
        student, teacher, labels = heads(5, dtype=dtype, scale=300.0)
        total, _, grads = outcome(1.0 * make(0.5), student, teacher, student, labels=labels)
        assert all(torch.isfinite(x).all() for x in (total, *grads))


@pytest.mark.parametrize("name", ["skewed forward", "skewed reverse", "jsd", "jsd, scaled", "total variation"])
def test_what_underflows_counts_as_it_does_in_double_precision(name):
    student, teacher, labels = heads(20, scale=100.0)
    exact = outcome(1.0 * TERMS[name](1.0), student.dense(), teacher.dense(), student, labels=labels)
    single = [HeadLogits(*(x.detach().float().requires_grad_() for x in inputs(h))) for h in (student, teacher)]
    total, _, grads = outcome(1.0 * TERMS[name](1.0), *single, single[0], labels=labels)
    assert total.item() == pytest.approx(exact[0].item(), rel=1e-4)
    for found, expected in zip(grads, exact[2], strict=True):
        assert (found - expected).norm() < 1e-4 * expected.norm() + 1e-5


@every_term
def test_equal_distributions_lose_nothing(make):
    student, _, labels = heads(5, dtype=torch.float32)
    if make in [TERMS[name] for name in ("cross-entropy", "hard targets", "spread")]:
        return
    total, _, grads = outcome(1.0 * make(2.0), student, student, student, labels=labels)
    assert total == 0 and all(g.abs().max() < 1e-5 for g in grads)


@pytest.mark.parametrize("name", ["forward", "reverse", "skewed forward, beyond half", "jsd", "soft targets"])
def test_float32_keeps_its_digits_where_the_two_are_nearly_equal(name):
    objective = 1.0 * TERMS[name](20.0)
    student, _, labels = heads(64)
    teacher = HeadLogits(student.hidden + 0.1, student.weight, student.bias)
    exact = outcome(objective, student.dense(), teacher.dense(), student, labels=labels)
    half = [HeadLogits(*(x.detach().float().requires_grad_() for x in inputs(h))) for h in (student, teacher)]
    total, _, grads = outcome(objective, *half, half[0], labels=labels)
    assert total.item() == pytest.approx(exact[0].item(), rel=1e-3)
    for found, expected in zip(grads, exact[2], strict=True):
        assert (found - expected).norm() < 1e-4 * expected.norm()


# Which tokens count


def test_tokens_that_do_not_count_are_never_looked_at():
    student, teacher, labels = heads(6, chunk=4)
    mask = torch.tensor([True, False, True, True, False, False])
    objective = 0.5 * CrossEntropy() + 0.5 * SoftTargets(2.0)
    expected = outcome(objective, student, teacher, student, labels=labels, mask=mask)
    with torch.no_grad():
        student.hidden[~mask], teacher.hidden[~mask], labels[~mask] = math.nan, math.nan, -7
    found = outcome(objective, student, teacher, student, labels=labels, mask=mask)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert not found[2][0][~mask].any()


def test_labels_of_minus_100_do_not_count():
    student, teacher, labels = heads(2, 4, chunk=3)
    labels[0, 1] = labels[1, 3] = -100
    objective = 0.5 * CrossEntropy() + 0.5 * SoftTargets(2.0)
    agree(objective, student, teacher, labels, in_chunks={}, mask=labels != -100)
    fewer = (labels != -100) & (torch.arange(4) > 0)
    agree(objective, student, teacher, labels, in_chunks={"mask": torch.arange(4).expand(2, 4) > 0}, mask=fewer)
    # The same tokens count whatever stands beside a divergence, which looks at no label.
    agree(1.0 * ForwardKL(), student, teacher, labels, in_chunks={}, mask=labels != -100)


def test_micro_batches_add_up_to_the_whole():
    student, teacher, labels = heads(6)
    mask = torch.tensor([True, True, False, True, False, True])
    objective = 0.5 * CrossEntropy() + 0.5 * SoftTargets(2.0)
    whole = outcome(objective, student, teacher, student, labels=labels, mask=mask)
    parts = [
        outcome(objective, student[rows], teacher[rows], student, labels=labels[rows], mask=mask[rows], count=4)
        for rows in (slice(0, 2), slice(2, 6))
    ]
    torch.testing.assert_close(parts[0][0] + parts[1][0], whole[0])
    torch.testing.assert_close([a + b for a, b in zip(parts[0][2], parts[1][2], strict=True)], list(whole[2]))


def test_a_part_where_nothing_counts():
    student, teacher, labels = heads(4)
    seen = {"labels": labels, "mask": torch.zeros(4, dtype=torch.bool)}
    total, _, grads = outcome(0.5 * CrossEntropy() + 1.0 * ReverseKL(), student, teacher, student, count=8, **seen)
    assert total == 0 and not any(g.any() for g in grads)
    with pytest.raises(ValueError, match="mask leaves no position to average over"):
        (1.0 * ReverseKL())(student_logits=student, teacher_logits=teacher, **seen)
    with pytest.raises(ValueError, match="no position to average over"):
        (1.0 * ReverseKL())(student_logits=student[:0], teacher_logits=teacher[:0])


def test_next_token_takes_them():
    student, teacher, labels = heads(2, 4)
    labels[0, 2] = -100
    whole = next_token(student.dense(), teacher.dense(), labels)
    parts = next_token(student, teacher, labels)
    objective = 0.5 * CrossEntropy() + 0.5 * SoftTargets()
    found, expected = objective(**parts), objective(**whole)
    torch.testing.assert_close(found, expected)


# Gradients


def test_the_upstream_gradient_is_a_factor():
    student, teacher, labels = heads(5)
    objective = 1.0 * CrossEntropy() + 1.0 * GeneralisedJSD()
    once = outcome(objective, student, teacher, student, labels=labels)
    thrice = outcome(objective, student, teacher, student, factor=3.0, labels=labels)
    torch.testing.assert_close([g / 3 for g in thrice[2]], list(once[2]))
    torch.testing.assert_close(thrice[0], once[0])


def test_backward_again_gives_the_same_again():
    student, teacher, _ = heads(5)
    total, _ = (1.0 * ReverseKL())(student_logits=student, teacher_logits=teacher)
    one = torch.autograd.grad(5 * total, inputs(student), retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(5 * total, inputs(student)), one, rtol=0, atol=0)


class Recorder(TorchDispatchMode):
    """What is called, and how large the largest tensor is that comes of it."""

    def __init__(self):
        super().__init__()
        self.largest, self.products = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in torch.utils._pytree.tree_leaves(result):
            if isinstance(x, torch.Tensor) and x.device.type != "meta":
                self.largest = max(self.largest, x.numel())
        self.products += func._overloadpacket in (
            torch.ops.aten.mm,
            torch.ops.aten.addmm,
            torch.ops.aten.addmm_,
        )
        return result


EVERYTHING = sum(make(2.0) for make in TERMS.values())


@pytest.mark.parametrize("dense_teacher", [False, True])
def test_all_logits_are_never_there(dense_teacher):
    student, teacher, labels = heads(200, chunk=10)
    t = teacher.dense().detach() if dense_teacher else teacher
    with Recorder() as seen:
        total, _ = EVERYTHING(student_logits=student, teacher_logits=t, labels=labels, mask=labels > 0)
        total.backward()
    assert 10 * V <= seen.largest <= (200 * V if dense_teacher else max(10 * V, 200 * WIDTH))
    if not dense_teacher:
        with Recorder() as seen:
            EVERYTHING(student_logits=student.dense(), teacher_logits=teacher.dense(), labels=labels)
        assert seen.largest >= 200 * V  # so that the recorder sees them


def products(student, teacher, **seen):
    with Recorder() as recorder:
        total, _ = (1.0 * SoftTargets(2.0) + 0.0 * ReverseKL(2.0))(
            student_logits=student, teacher_logits=teacher, **seen
        )
        if total.requires_grad:
            total.backward()
    return recorder.products


def test_no_product_is_made_in_vain():
    student, teacher, _ = heads(6, chunk=2)
    assert products(student, teacher) == 3 * 4  # logits of both, gradients by hidden states and weight
    assert products(student, teacher, mask=torch.arange(6) < 2) == 4
    frozen = HeadLogits(student.hidden, student.weight.detach(), student.bias.detach(), chunk=2)
    assert products(frozen, teacher) == 3 * 3
    assert products(student.detach(), teacher) == 3 * 2
    with torch.no_grad():
        assert products(student, teacher) == 3 * 2


def test_values_are_the_same_without_gradients():
    student, teacher, labels = heads(5, chunk=2)
    seen = {"student_logits": student, "teacher_logits": teacher, "labels": labels}
    expected, _ = EVERYTHING(**seen)
    with torch.no_grad():
        total, values = EVERYTHING(**seen)
    assert torch.equal(total, expected.detach())
    assert not total.requires_grad and not any(v.requires_grad for v in values.values())


def test_terms_have_one_gradient_together():
    student, teacher, labels = heads(5)
    objective = 1.0 * CrossEntropy() + 1.0 * ReverseKL()
    _, values = objective(student_logits=student, teacher_logits=teacher, labels=labels)
    with pytest.raises(RuntimeError, match="one gradient together, that of the total"):
        values["ReverseKL"].backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one gradient together, that of the total"):
        objective.gradient_norms(values, [student.hidden])


def test_layers_are_matched_beside_them():
    student, teacher, labels = heads(2, 4, chunk=3)
    objective = 0.5 * CrossEntropy() + 2.0 * HiddenMSE(("a", "b")) + 0.5 * ReverseKL()
    state = torch.randn(2, 4, WIDTH, dtype=torch.float64)
    seen = {"student_hidden": {"a": student.hidden}, "teacher_hidden": {"b": state}}
    agree(objective, student, teacher, labels, **seen)
    alone = 2.0 * HiddenMSE(("a", "b"))
    agree(alone, student, teacher, labels, **seen)


# Half precision


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_is_close_to_all_logits(autocast):
    objective = 0.5 * CrossEntropy() + 0.5 * SoftTargets(2.0) + 0.5 * GeneralisedJSD()
    student, teacher, labels = heads(40, dtype=torch.float32 if autocast else torch.bfloat16, chunk=16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert student.dtype == student.dense().dtype == torch.bfloat16
        expected = outcome(objective, student.dense(), teacher.dense(), student, labels=labels)
        found = outcome(objective, student, teacher, student, labels=labels)
    assert found[0].dtype == torch.float32
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=0)
    for x, y, source in zip(found[2], expected[2], inputs(student), strict=True):
        assert x.dtype == source.dtype
        assert (x - y).float().norm() < 0.01 * y.float().norm()


def test_bfloat16_products_are_summed_in_float32():
    student, teacher, _ = heads(512, dtype=torch.bfloat16, chunk=1)
    exact = HeadLogits(*(x.detach().double().requires_grad_() for x in inputs(student)))
    objective = 1.0 * ReverseKL()
    found = outcome(objective, student, teacher, student)[2][1]
    expected = outcome(objective, exact, teacher, exact)[2][1]
    assert (found - expected).norm() < 0.01 * expected.norm()


# What is refused


@pytest.mark.parametrize("term", [DIST(), PermutedSoftTargets()], ids=["DIST", "PermutedSoftTargets"])
def test_terms_that_need_all_logits_say_so(term):
    student, teacher, labels = heads(5)
    with pytest.raises(TypeError, match=f"{type(term).__name__} looks at all logits at once"):
        (1.0 * term)(student_logits=student, teacher_logits=teacher, labels=labels)


def test_another_loss_does_not_inherit_the_closed_form():
    class Twice(SoftTargets):
        def forward(self, **seen):
            return 2 * super().forward(**seen)

    class Own(Term):
        def forward(self, *, student_logits, **_):
            return student_logits.mean()

    student, teacher, _ = heads(5)
    for term in (Twice(), Own()):
        with pytest.raises(TypeError, match=f"{type(term).__name__} looks at all logits at once"):
            (1.0 * term)(student_logits=student, teacher_logits=teacher)


class LogSumExp(Term):
    """Its gradient is q, which other terms look at too."""

    def forward(self, *, student_logits, count, **_):
        return student_logits.logsumexp(-1).sum() / count

    def on_tokens(self, tokens):
        return tokens.student.logsumexp(-1), tokens.at(1.0).q


class Sum(Term):
    """Its gradient is one number, expanded."""

    def forward(self, *, student_logits, count, **_):
        return student_logits.sum() / count

    on_tokens = by_autograd


@pytest.mark.parametrize(
    "objective",
    [0.5 * LogSumExp() + 2.0 * LogSumExp(), 3.0 * LogSumExp() + 0.5 * ForwardKL(), 0.3 * Sum() + 0.7 * CrossEntropy()],
    ids=["one gradient twice", "a gradient that another looks at", "an expanded gradient"],
)
def test_gradients_of_terms_are_summed_in_place_and_not_in_each_other(objective):
    student, teacher, labels = heads(5)
    agree(objective, student, teacher, labels, count=5)


@pytest.mark.parametrize("make", [SoftTargets, DecoupledKD])
def test_learned_temperatures_are_refused(make):
    student, teacher, labels = heads(5)
    with pytest.raises(
        TypeError, match="learns a temperature or more and needs all logits at once: .* student_logits.dense()"
    ):
        (1.0 * make(temperature=LearnedTemperature()))(
            student_logits=student, teacher_logits=teacher, labels=labels, progress=0.5
        )


def test_a_temperature_for_each_token_is_refused():
    student, teacher, _ = heads(5)
    with pytest.raises(TypeError, match="the temperature is a number or a schedule, not tensor"):
        (1.0 * ReverseKL(torch.full((5, 1), 2.0)))(student_logits=student, teacher_logits=teacher)


h, W = torch.zeros(2, 3, 4), torch.zeros(6, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ((h.long(), W), TypeError, "hidden must be a floating-point torch.Tensor, not torch.int64"),
        ((h, None), TypeError, "weight must be a floating-point torch.Tensor, not NoneType"),
        ((h, W, 3), TypeError, "bias must be a floating-point torch.Tensor, not int"),
        ((h, W.T), ValueError, "and a weight of shape .V, d. are needed, not .2, 3, 4. and .4, 6."),
        ((h[0, 0], W), ValueError, "hidden states of shape .*, not .4,. and .6, 4."),
        ((h, W, torch.zeros(5)), ValueError, "a bias of shape .5,. does not fit a weight of shape .6, 4."),
        ((h, W, None, 0.0), ValueError, "softcap must be a positive, finite number, not 0.0"),
        ((h, W, None, math.inf), ValueError, "softcap must be a positive, finite number, not inf"),
        ((h, W, None, None, 0), ValueError, "chunk must be a positive number of tokens, not 0"),
    ],
)
def test_heads_that_cannot_be(arguments, error, sentence):
    with pytest.raises(error, match=sentence):
        HeadLogits(*arguments)


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"teacher_logits": HeadLogits(h, torch.zeros(7, 4))}, ValueError, "must share one set of classes"),
        ({"teacher_logits": HeadLogits(h[:1], W)}, ValueError, "do not belong to the same examples"),
        ({"labels": torch.zeros(2, 4).long()}, ValueError, "labels of shape .2, 4. do not fit"),
        ({"labels": torch.full((2, 3), 6)}, ValueError, "labels must lie in 0 … 5"),
        ({"labels": torch.zeros(2, 3)}, TypeError, "labels must be integer class indices"),
        ({"labels": 3}, TypeError, "labels must be a torch.Tensor of class indices"),
        ({"mask": torch.ones(2, 4).bool()}, ValueError, "mask of shape .2, 4. does not fit"),
        ({"mask": torch.ones(2, 3)}, TypeError, "mask must be boolean"),
        ({"count": 0}, ValueError, "count must be a positive number of positions"),
        ({"student_logits": HeadLogits(h * math.nan, W)}, FloatingPointError, "entries that are NaN or infinite"),
        ({"teacher_logits": None}, TypeError, "ReverseKL needs teacher_logits"),
    ],
)
def test_what_does_not_fit_gets_a_sentence(changes, error, sentence):
    seen = {
        "student_logits": HeadLogits(h, W),
        "teacher_logits": HeadLogits(h, W),
        "labels": torch.zeros(2, 3).long(),
    }
    with pytest.raises(error, match=sentence):
        (1.0 * CrossEntropy() + 1.0 * ReverseKL())(**(seen | changes))


def test_only_leading_axes_are_indexed():
    student = HeadLogits(h, W)
    assert student.shape == (2, 3, 6) and student[0].shape == (3, 6) and student[h[..., 0] == 0].shape == (6, 6)
    for index in [(0, 0, 0), (..., 0)]:
        with pytest.raises(IndexError, match="only leading axes can be indexed"):
            student[index]


def test_chunks_are_some_hundreds_of_tokens():
    assert all(128 <= tokens_at_once(size) <= 512 for size in (2, 1000, 32_000, 128_256, 10**6))


def test_a_soft_cap_is_the_same_of_student_and_teacher_in_half_precision():
    """The same head and states are the same distribution."""
    head = HeadLogits(4 * torch.randn(6, 8).bfloat16(), torch.randn(9, 8).bfloat16(), softcap=30.0)
    total, _ = (1.0 * ForwardKL())(student_logits=head, teacher_logits=head)
    assert total.abs() < 1e-7
