"""A few entries of a teacher: the divergence from them in dense formulas, on average over draws, and from hidden states."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlab.language.caches import keep
from kdlab.objectives import (
    CrossEntropy,
    ForwardKL,
    HeadLogits,
    HiddenMSE,
    LogitMSE,
    ReverseKL,
    SoftTargets,
    SparseForwardKL,
    SparseTargets,
    Term,
    forward_kl,
    reduce,
    restrict_vocabulary,
    sparse_forward_kl,
)
from kdlab.objectives.sparse import Slope, counted_targets, sparse_losses, sparse_slope
from kdlab.objectives.vocabulary import weighted_sum

V = 7
KINDS = ("sampled", "top-k", "top-k-rest")
seeds, kinds = st.integers(0, 1000), st.sampled_from(KINDS)


def logits(*shape, seed=0, scale=2.0, dtype=torch.float64):
    """Student's and teacher's."""
    g = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(2, *shape, V, generator=g, dtype=torch.float64)).to(dtype)


def kept(t, kind, entries=3, seed=0):
    return keep(t.softmax(-1), kind, entries, torch.Generator().manual_seed(seed))


def dense(slope):
    """Written out."""
    return sum(multiple * x for x, multiple in slope.parts).scatter_add(-1, slope.tokens, slope.entries)


def gradient(loss, z):
    z = z.clone().requires_grad_()
    return torch.autograd.grad(loss(z), z)[0]


def agree(found, expected, z):
    """Two losses of the student's logits: values and gradients."""
    torch.testing.assert_close(found(z), expected(z), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient(found, z), gradient(expected, z), rtol=1e-10, atol=1e-12)


# Dense formulas


@given(seeds, st.integers(2, V))
def test_the_top_k_scaled_are_a_teacher_to_whom_all_else_is_impossible(seed, k):
    z, t = logits(4, seed=seed)
    targets = kept(t, "top-k", k)
    impossible = torch.full_like(t, -1e4).scatter(-1, targets.tokens, t.gather(-1, targets.tokens))
    agree(lambda z: sparse_forward_kl(z, targets), lambda z: forward_kl(z, impossible), z)

    def of_the_restricted(z):
        """KL given that one of the k comes, and −log of how likely the student thinks that."""
        inside = z.log_softmax(-1).gather(-1, targets.tokens).logsumexp(-1).mean()
        return forward_kl(*(restrict_vocabulary(x, targets.tokens) for x in (z, t))) - inside

    agree(lambda z: sparse_forward_kl(z, targets), of_the_restricted, z)


@given(seeds, st.integers(1, V - 1))
def test_with_the_rest_it_is_the_divergence_of_merged_classes(seed, k):
    z, t = logits(4, seed=seed)
    targets = kept(t, "top-k-rest", k)
    agree(
        lambda z: sparse_forward_kl(z, targets),
        lambda z: forward_kl(*(restrict_vocabulary(x, targets.tokens, rest=True) for x in (z, t))),
        z,
    )
    assert sparse_forward_kl(z, targets) <= forward_kl(z, t) + 1e-12


@given(seeds)
def test_with_all_entries_it_is_the_forward_divergence(seed):
    z, t = logits(4, seed=seed)
    order = torch.randperm(V, generator=torch.Generator().manual_seed(seed)).expand(4, V)
    everything = SparseTargets(order, t.softmax(-1).gather(-1, order), V)
    agree(lambda z: sparse_forward_kl(z, everything), lambda z: forward_kl(z, t), z)
    torch.testing.assert_close(everything.dense(), t.softmax(-1))


@given(seeds, st.integers(1, V - 1))
def test_the_rest_does_no_harm_where_the_teacher_spreads_it_as_the_student_does(seed, k):
    z, t = logits(4, seed=seed)
    targets = kept(t, "top-k-rest", k)
    p, inside = t.softmax(-1), torch.zeros(4, V, dtype=torch.bool).scatter(-1, targets.tokens, True)
    tail = z.softmax(-1).masked_fill(inside, 0)
    left = 1 - targets.probabilities.sum(-1, keepdim=True)
    alike = p.where(inside, left * tail / tail.sum(-1, keepdim=True)).log()
    found = gradient(lambda z: sparse_forward_kl(z, targets), z)
    torch.testing.assert_close(found, gradient(lambda z: forward_kl(z, alike), z), rtol=1e-9, atol=1e-12)
    without = SparseTargets(targets.tokens, targets.probabilities / targets.probabilities.sum(-1, keepdim=True), V)
    assert gradient(lambda z: sparse_forward_kl(z, without), z)[~inside].min() > 0  # pushed down, all of them


# Draws


def every_draw(t, entries):
    """All draws from one distribution, and how likely each is."""
    p = t.softmax(-1)
    for drawn in itertools.product(range(len(p)), repeat=entries):
        tokens = torch.tensor([drawn])
        even = torch.full((1, entries), 1 / entries, dtype=p.dtype)
        yield SparseTargets(tokens, even, len(p)), p[tokens].prod()


@given(seeds, st.integers(1, 3))
@settings(max_examples=15)
def test_the_gradient_from_draws_is_right_on_average(seed, entries):
    z, t = logits(seed=seed)[:, :4]
    average = sum(
        chance * gradient(lambda z, targets=targets: sparse_forward_kl(z[None], targets), z)
        for targets, chance in every_draw(t, entries)
    )
    torch.testing.assert_close(average, z.softmax(-1) - t.softmax(-1), rtol=1e-10, atol=1e-12)


def test_the_gradient_from_the_top_k_is_not():
    z, t = logits(5, seed=3)
    for kind in ("top-k", "top-k-rest"):
        off = gradient(lambda z, kind=kind: sparse_forward_kl(z, kept(t, kind), reduction="sum"), z)
        assert (off - (z.softmax(-1) - t.softmax(-1))).abs().max() > 0.01


@given(seeds, st.booleans())
def test_a_token_drawn_twice_is_one_entry_of_twice_the_weight(seed, fused):
    z, _ = logits(1, seed=seed)
    twice = SparseTargets(torch.tensor([[2, 5, 2]]), torch.tensor([[0.25, 0.5, 0.25]]).double(), V)
    once = SparseTargets(torch.tensor([[2, 5]]), torch.tensor([[0.5, 0.5]]).double(), V)
    agree(lambda z: sparse_forward_kl(z, twice), lambda z: sparse_forward_kl(z, once), z)
    with_rest = [
        SparseTargets(s.tokens, s.probabilities / 2, V, rest=True) for s in (twice, once)
    ]  # which no cache writes
    agree(*(lambda z, s=s: sparse_forward_kl(z, s) for s in with_rest), z)
    log_q = z.log_softmax(-1)
    for pair in ((twice, once), with_rest):
        torch.testing.assert_close(*(dense(sparse_slope(log_q, log_q.exp(), counted_targets(s))) for s in pair))


def test_draws_fall_as_the_teacher_says():
    """Twelve draws a token: within five deviations of p̂ over 4,000 of them."""
    _, t = logits(1)
    p = t.softmax(-1)
    targets = kept(t.expand(4000, V), "sampled", 12)
    deviation = (p * (1 - p) / (12 * 4000)).sqrt()
    assert ((targets.dense().mean(0) - p).abs() < 5 * deviation).all()
    assert (targets.probabilities == 1 / 12).all()


# Closed form


@given(seeds, kinds, st.integers(1, V - 1), st.sampled_from([0.1, 2.0, 10.0]))
def test_the_closed_form_is_the_derivative(seed, kind, k, scale):
    z, t = logits(5, seed=seed, scale=scale)
    targets = kept(t, kind, k, seed)
    log_q, counted = z.log_softmax(-1), counted_targets(targets)
    expected = gradient(lambda z: sparse_losses(z.log_softmax(-1), counted).sum(), z)
    torch.testing.assert_close(dense(sparse_slope(log_q, log_q.exp(), counted)), expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(expected.sum(-1), torch.zeros(5).double(), rtol=0, atol=1e-11)


@given(seeds, st.integers(1, V - 1))
def test_nothing_is_lost_where_the_two_are_equal(seed, k):
    _, t = logits(4, seed=seed)
    targets = kept(t, "top-k-rest", k)
    assert sparse_forward_kl(t, targets).abs() < 1e-12
    assert gradient(lambda z: sparse_forward_kl(z, targets), t).abs().max() < 1e-12


@given(seeds, kinds)
def test_it_is_never_negative(seed, kind):
    z, t = logits(4, seed=seed)
    assert (sparse_forward_kl(z, kept(t, kind, seed=seed), reduction="none") > -1e-12).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sure_students_and_teachers_give_no_nan(kind, dtype):
    for scale in (1e2, 1e4):
        z, t = logits(50, scale=scale, dtype=dtype)
        for student in (z, t, -t):
            targets, log_q = kept(t, kind), student.log_softmax(-1)
            loss = sparse_forward_kl(student, targets)
            slope = gradient(lambda z, targets=targets: sparse_forward_kl(z, targets, reduction="sum"), student)
            assert torch.isfinite(loss) and torch.isfinite(slope).all()
            found = dense(sparse_slope(log_q, log_q.exp(), counted_targets(targets)))
            torch.testing.assert_close(found, slope, rtol=1e-4, atol=1e-5)


def test_a_sure_student_learns_of_the_rest_with_all_its_digits():
    """It leaves e⁻³⁰ to the others, of which one minus the sum of its entries knows nothing in single precision."""
    z = torch.tensor([[30.0, 0.0, 0.0, -1.0]])
    targets = SparseTargets(torch.tensor([[0]]), torch.tensor([[0.75]]), 4, rest=True)
    exact = sparse_forward_kl(z.double(), targets.to(torch.float64))
    assert sparse_forward_kl(z, targets).item() == pytest.approx(exact.item(), rel=1e-6)
    slope = gradient(lambda z: sparse_forward_kl(z, targets), z)
    tail = z[0, 1:].softmax(-1)
    torch.testing.assert_close(slope, torch.cat([torch.tensor([0.25]), -0.25 * tail])[None])


def test_slopes_are_added_up_whether_written_out_or_not():
    """A multiple of q with an entry, another of the same q with one of another tensor, a tensor, and that tensor once more."""
    g = torch.Generator().manual_seed(0)
    one, two = torch.tensor([[1], [2]]), torch.tensor([[0, 0], [3, 6]])
    weights = [1.0, 0.3, 0.7, -0.2]

    def slopes():
        q, other, whole = torch.rand(3, 2, V, generator=g.manual_seed(0)).double()
        by_row = torch.tensor([[0.5], [2.0]]).double()
        return [
            Slope(((q, 1.0),), one, -torch.ones(2, 1).double()),
            Slope(((q, by_row), (other, -by_row)), two, torch.ones(2, 2).double()),
            whole,
            whole,
        ]

    for some in [*itertools.combinations(range(4), 2), range(4)]:
        given, written_out = slopes(), [dense(x) if isinstance(x, Slope) else x.clone() for x in slopes()]
        expected = sum(weights[i] * written_out[i] for i in some)
        torch.testing.assert_close(weighted_sum([given[i] for i in some], [weights[i] for i in some]), expected)


# Means


@given(seeds, kinds)
def test_masks_counts_and_reductions_are_those_of_every_loss(seed, kind):
    z, t = logits(2, 5, seed=seed)
    targets, mask = kept(t, kind), torch.rand(2, 5, generator=torch.Generator().manual_seed(seed)) < 0.6
    mask[0, 0] = True
    each = sparse_forward_kl(z, targets, reduction="none")
    torch.testing.assert_close(each[1, 2], sparse_forward_kl(z[1, 2:3], targets[1, 2:3]))
    for how in ({}, {"count": 7}, {"reduction": "sum"}, {"reduction": "none"}):
        found = sparse_forward_kl(z, targets, mask=mask, **how)
        torch.testing.assert_close(found, reduce(each, mask, how.get("reduction", "batchmean"), how.get("count")))
    slopes = gradient(lambda z: sparse_forward_kl(z, targets, mask=mask), z)
    assert not slopes[~mask].any() and slopes[mask].any()
    torch.testing.assert_close(
        sum(sparse_forward_kl(z[i], targets[i], mask=mask[i], count=mask.sum()) for i in range(2)),
        sparse_forward_kl(z, targets, mask=mask),
    )


# From hidden states


def head(*shape, seed=0, softcap=None, chunk=None):
    g = torch.Generator().manual_seed(seed)
    hidden, weight = (
        torch.randn(*size, 4, generator=g, dtype=torch.float64).requires_grad_() for size in (shape, (V,))
    )
    return HeadLogits(hidden, weight, softcap=softcap, chunk=chunk)


@given(seeds, kinds, st.sampled_from([None, 3.0]), st.sampled_from([None, 2, 4]), st.booleans())
def test_from_hidden_states_it_is_the_same_beside_other_terms(seed, kind, softcap, chunk, counted):
    student = head(2, 5, seed=seed, softcap=softcap, chunk=chunk)
    targets = kept(logits(2, 5, seed=seed)[1], kind)
    labels = torch.randint(V, (2, 5), generator=torch.Generator().manual_seed(seed))
    mask = labels != 3
    objective = 0.3 * CrossEntropy() + 0.7 * SparseForwardKL()
    seen = {"teacher_logits": targets, "labels": labels, "mask": mask, "count": 11 if counted else None}
    found, expected = [], []
    for z, outcome in ((student, found), (student.dense(), expected)):
        total, values = objective(student_logits=z, **seen)
        outcome += [total.detach(), {name: v.detach() for name, v in values.items()}]
        outcome.append(torch.autograd.grad(total, [student.hidden, student.weight]))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_a_term_is_its_function_and_no_gradient_reaches_the_teacher():
    z, t = logits(2, 5)
    targets, mask = kept(t, "top-k-rest"), torch.arange(10).view(2, 5) > 2
    loss = SparseForwardKL()(student_logits=z, teacher_logits=targets, mask=mask, count=4)
    assert torch.equal(loss, sparse_forward_kl(z, targets, mask=mask, count=4))
    probabilities = targets.probabilities.clone().requires_grad_()
    learned = SparseTargets(targets.tokens, probabilities, V, rest=True)
    for z in (head(2, 5), head(2, 5).dense()):
        total, _ = (1.0 * SparseForwardKL())(student_logits=z, teacher_logits=learned)
        assert torch.autograd.grad(total, probabilities, allow_unused=True) == (None,)


# Errors


@pytest.mark.parametrize("term", [ForwardKL(), ReverseKL(), SoftTargets(), LogitMSE(), HiddenMSE("h")], ids=repr)
@pytest.mark.parametrize("fused", [False, True])
def test_terms_that_need_all_of_the_teacher_say_so(term, fused):
    student, targets = head(2, 5), kept(logits(2, 5)[1], "top-k")
    hidden = {"student_hidden": {"h": torch.ones(2, 3)}, "teacher_hidden": {"h": torch.ones(2, 3)}}
    z = student if fused else student.dense()
    with pytest.raises(
        TypeError, match=rf"^{type(term).__name__} needs all of the teacher, .*: use SparseForwardKL\.$"
    ):
        (CrossEntropy() + term)(student_logits=z, teacher_logits=targets, labels=torch.ones(2, 5).long(), **hidden)


def test_a_term_that_looks_at_no_teacher_may_stand_beside():
    class Length(Term):
        needs_teacher = False

        def forward(self, *, student_logits, **_):
            return student_logits.square().mean()

    z, t = logits(3)
    total, values = (Length() + SparseForwardKL())(student_logits=z, teacher_logits=kept(t, "top-k"))
    torch.testing.assert_close(total, sum(values.values()))


ONE = torch.tensor([[0]]), torch.tensor([[0.5]])


@pytest.mark.parametrize(
    ("call", "kind", "sentence"),
    [
        (lambda: SparseTargets(ONE[0], torch.ones(1, 2), 3), ValueError, r"of one shape \(\.\.\., K\) are needed, not"),
        (lambda: SparseTargets(ONE[0][:, :0], ONE[1][:, :0], 3), ValueError, r"not \(1, 0\) and \(1, 0\)"),
        (lambda: SparseTargets(*ONE, 1, rest=True), ValueError, "all tokens are kept, so that there is no rest"),
        (lambda: sparse_forward_kl(torch.ones(2, 3), SparseTargets(*ONE, 3)), ValueError,
         r"stand for logits of shape \(1, 3\) do not fit student logits of shape \(2, 3\)"),
        (lambda: sparse_forward_kl(torch.ones(1, 4), SparseTargets(*ONE, 3)), ValueError, "do not fit"),
        (lambda: sparse_forward_kl(torch.ones(1, 3), torch.ones(1, 3)), TypeError, "are SparseTargets, .*, not Tensor"),
        (lambda: SparseForwardKL()(student_logits=torch.ones(1, 3), teacher_logits=torch.ones(1, 3)), TypeError,
         "are SparseTargets"),
        (lambda: (1.0 * SparseForwardKL())(student_logits=head(1), teacher_logits=torch.ones(1, V)), TypeError,
         "are SparseTargets"),
        (lambda: sparse_forward_kl(torch.full((1, 3), math.nan), SparseTargets(*ONE, 3)), ValueError, "NaN or infinite"),
    ],
)  # fmt: skip
def test_mistakes_are_said_in_one_sentence(call, kind, sentence):
    with pytest.raises(kind, match=sentence) as caught:
        call()
    assert str(caught.value).count("\n") == 0 and str(caught.value).endswith(".")
