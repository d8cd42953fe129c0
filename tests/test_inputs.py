"""Inputs that are refused, each with a sentence that helps; and what is compiled."""

import math

import pytest
import torch

from kdlab.data import Examples, Split
from kdlab.objectives import (
    BinarySoftTargets,
    ContrastiveMemory,
    CrossEntropy,
    ForwardKL,
    HeadLogits,
    InfoNCE,
    LogitMSE,
    MergedVocabulary,
    SampledReverseKL,
    SharedVocabulary,
    SmoothedLabels,
    SoftTargets,
    SortedProbabilities,
    SparseTargets,
    TextKL,
    activation_attention,
    attention_from_qk,
    binary_cross_entropy,
    binary_soft_targets,
    cross_entropy,
    dist_loss,
    forward_kl,
    generalised_jsd,
    hidden_cosine,
    info_nce,
    loss_as_in,
    merge_vocabulary,
    permute_dark_knowledge,
    restrict_vocabulary,
    rkd_angle,
    rkd_distance,
    sampled_gradient_variance,
    sampled_kl,
    similarity_preserving,
    soft_targets,
    soften,
    sparse_forward_kl,
    squared_error,
    standardise,
)
from kdlab.training import CheckpointError, Recipe, expected_calibration_error, fit
from kdlab.training.checkpoint import load_tensors
from kdlab.training.embeddings import found_by_nearest, rank_correlation

Z, Y = torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([1])
TWO, HALF = torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.5]])
HEAD = HeadLogits(torch.ones(1, 2), torch.ones(3, 2))
ABSENT = torch.tensor([[1.0, -math.inf, 2.0]])
from_server = SparseTargets.from_log_probabilities


@pytest.mark.parametrize(
    ("call", "kind", "sentence"),
    [
        (lambda: soften(Z, torch.tensor([[True]])), TypeError, "temperatures are numbers, not torch.bool"),
        (lambda: soften(Z, class_axis=2), ValueError, r"class_axis is one of the 2 axes of logits of shape \(1, 3\), not 2"),
        (lambda: permute_dark_knowledge(ABSENT, Y), ValueError, "labels name a class that does not exist"),
        (lambda: cross_entropy(ABSENT, Y), ValueError, "is infinite"),
        (lambda: sampled_kl([0.0], torch.zeros(1)), TypeError, "log_policy is a floating-point tensor .*, not list"),
        (lambda: sampled_kl(torch.zeros(1), Y), TypeError, "log_reference is .*, not torch.int64"),
        (lambda: ContrastiveMemory(2, 2, 4, temperature=1e-3), ValueError, "is at least 0.0015, or info_nce"),
        (lambda: SparseTargets(TWO.float(), HALF, 3), TypeError, "tokens of SparseTargets are .* torch.int64, not torch.float32"),
        (lambda: SparseTargets(TWO, [0.5], 3), TypeError, "probabilities of SparseTargets are .*, not list"),
        (lambda: SparseTargets(TWO, HALF.half(), 3, rest=True), TypeError, "torch.float16 keeps no digits: give float32"),
        (lambda: SparseTargets(TWO, HALF, 3, rest=True).to(torch.float16), TypeError, "keeps no digits"),
        (lambda: sparse_forward_kl(Z, SparseTargets(TWO, 0 * HALF, 3)), ValueError, "keep nothing of 1 positions"),
        (lambda: from_server(TWO, HALF > 0, 3), TypeError, "log-probabilities are a floating-point"),
        (lambda: from_server(TWO[:, :1], HALF.log(), 3), ValueError, r"not \(1, 1\) and \(1, 2\)"),
        (lambda: from_server([0], HALF.log(), 3), ValueError, "not list"),
        (lambda: from_server(TWO, HALF, 3), ValueError, "NaN or positive"),
        (lambda: restrict_vocabulary(HEAD, torch.tensor([0]), rest=True), TypeError, "HeadLogits are restricted to tokens"),
        (lambda: restrict_vocabulary(SparseTargets(TWO, HALF, 3), torch.tensor([2])), ValueError, "of 1 positions nothing"),
        (lambda: (1.0 * CrossEntropy(class_axis=1))(student_logits=HEAD, labels=Y), TypeError, "classes in the last axis"),
        (lambda: InfoNCE("a", same_class=False)(student_hidden={}, teacher_hidden={}, labels=Z), TypeError, "InfoNCE"),
        (lambda: binary_soft_targets([1.0], Z), TypeError, "student_logits must be a torch.Tensor, not list"),
        (lambda: binary_soft_targets(Z, Z[:, :2]), ValueError, "do not belong to the same examples"),
        (lambda: binary_soft_targets(Z, torch.full((1, 3), math.nan)), ValueError, "teacher_logits has 3 of 3"),
        (lambda: binary_soft_targets(Z.long(), Z), TypeError, "must be floating point"),
        (lambda: binary_soft_targets(Z[:, :0], Z[:, :0]), ValueError, "needs at least one label"),
        (lambda: binary_cross_entropy(Z, Z[:, :2]), ValueError, r"labels of shape \(1, 2\) do not fit"),
        (lambda: BinarySoftTargets()(student_logits=Z, teacher_logits=Z, labels=[1]), TypeError, "not list"),
        (lambda: squared_error(Z[0], Z[0]), ValueError, r"outputs have shape \(..., N\), not \(3,\): of one output an example"),
        (lambda: LogitMSE()(student_logits=Z[0], teacher_logits=Z[0]), ValueError, r"not \(3,\): of one output an example"),
        (lambda: info_nce(Z, Z, negatives=torch.full((2, 3), math.nan)), ValueError, "negatives"),
        (lambda: info_nce(Z, Z, negatives=Z[:0]), ValueError, "a batch of one has no negatives"),
        (lambda: merge_vocabulary(Z, torch.zeros(3), 1), ValueError, "do not number 3 logits"),
        (lambda: TextKL()(student_logits=Z[None], teacher_logits=Z[None], labels=Y[None], mask=Z[:, :1]), TypeError, "boolean"),
        (lambda: Split(torch.rand(2, 3, 4, 4), Y, (0.5,) * 3, (1.0,) * 3), ValueError, "images are uint8"),
        (lambda: Split(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), Y, (0.5,) * 3, (1.0,) * 3), ValueError, "2 images do not fit 1"),
        (lambda: rank_correlation(torch.ones(4, 2), torch.eye(4)), ValueError, "all cosines of student or teacher are equal"),
        (lambda: found_by_nearest(Z * math.nan, Y, Z, Y), ValueError, "NaN or infinities"),
        (lambda: found_by_nearest(Z, Y, Z, Y + 1), ValueError, "on no shelf"),
        (lambda: expected_calibration_error(Z, Y, bins=0), ValueError, "counted from 1, not 0"),
        (lambda: load_tensors("/"), CheckpointError, "is a folder, not a file"),
    ],
)  # fmt: skip
def test_refused_in_one_sentence(call, kind, sentence):
    with pytest.raises(kind, match=sentence):
        call()


def test_gradient_norms_come_before_backward():
    z = torch.zeros(1, 2, requires_grad=True)
    objective = 1.0 * CrossEntropy()
    total, values = objective(student_logits=z * z.exp(), labels=torch.tensor([0]))
    total.backward()
    with pytest.raises(RuntimeError, match="gradient norms come before"):
        objective.gradient_norms(values, [z])

    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.sum()

        @staticmethod
        def backward(ctx, g):
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        objective.gradient_norms({"CrossEntropy": Broken.apply(z)}, [z])


def test_one_class_that_exists():
    """Where no other class exists, nothing is decoupled, standardised or left."""
    from kdlab.objectives import decoupled_kd

    z = torch.tensor([[1.0, -math.inf, -math.inf], [1.0, 2.0, 0.0]], requires_grad=True)
    y = torch.tensor([0, 1])
    assert decoupled_kd(z[:1], z[:1], y[:1]) == 0 and decoupled_kd(z, z, y) == 0
    assert standardise(z[:1]).tolist() == [[0.0, -math.inf, -math.inf]]
    rest = restrict_vocabulary(z[:1], torch.tensor([0]), rest=True)
    assert rest.tolist() == [[1.0, -math.inf]]
    (slope,) = torch.autograd.grad(forward_kl(rest, rest.detach()), z)
    assert not slope.any()
    kept = SparseTargets(torch.tensor([[0]]), torch.tensor([[1.0]]), 3, rest=True)
    (slope,) = torch.autograd.grad(sparse_forward_kl(z[:1], kept), z)
    assert not slope.any()


def test_masked_rows_of_every_kind():
    mask, nan = torch.tensor([True, False]), math.nan
    z, T = torch.tensor([[1.0, 0.0], [nan, nan]]), torch.tensor([[2.0], [nan]])
    assert soft_targets(z, z.flip(1), temperature=T, mask=mask) == soft_targets(z[:1], z[:1].flip(1), temperature=2.0)
    target = torch.tensor([[0.5, 0.5], [nan, 7.0]])
    assert SmoothedLabels(0.1)(student_logits=z, labels=target, mask=mask) == cross_entropy(z[:1], target[:1])
    log_p = torch.tensor([[0.5, 0.4], [nan, 9.0]]).log()
    kept = from_server(torch.tensor([[0, 1], [-1, -1]]), log_p, 3, mask=mask, rest=False)
    assert kept.probabilities[0].sum() == 1 and not kept.probabilities[1].any()
    words = torch.tensor([[1.0, 0.0, 2.0], [nan, 0.0, 0.0]])
    assert sparse_forward_kl(words, kept, mask=mask) == sparse_forward_kl(words[:1], kept[:1])
    for library in ("TRL", "TextBrewer", "Liger"):
        ours = loss_as_in(library, z[None], z[None].flip(-1), temperature=1.0, mask=mask[None])
        torch.testing.assert_close(ours, loss_as_in(library, z[:1], z[:1].flip(-1), temperature=1.0))
    q = torch.tensor([[[1.0, 2.0], [nan, nan]]])
    assert torch.isfinite(attention_from_qk(q, q, mask=torch.tensor([[0.0, -math.inf], [-math.inf, -math.inf]]))).all()


def test_compiled():
    """One convention, eager and compiled."""
    z = torch.tensor([[1.0, 0.0, -math.inf], [0.0, 2.0, -math.inf], [math.nan, 0.0, 0.0]], requires_grad=True)
    t, mask = z.detach()[[1, 0, 2]], torch.tensor([True, True, False])

    objective = SoftTargets() + ForwardKL()

    def losses(z, t, mask):
        return objective(student_logits=z, teacher_logits=t, mask=mask)[0] + generalised_jsd(z, t, mask=mask)

    found = []
    for function in (losses, torch.compile(losses, backend="eager", fullgraph=True)):
        with torch.autocast("cpu", torch.bfloat16):
            total = function(z, t, mask)
        found.append((total, *torch.autograd.grad(total, z)))
    assert all(map(torch.equal, *found)) and torch.isfinite(found[0][1]).all() and found[0][0] > 0


EYE = torch.eye(4)


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: hidden_cosine(x, EYE),
        lambda x: rkd_distance(x, EYE),
        lambda x: rkd_angle(x, EYE),
        lambda x: similarity_preserving(x, EYE),
        lambda x: info_nce(EYE, x),
        lambda x: dist_loss(EYE, x, intra_weight=1.0),
        lambda x: activation_attention(EYE[None, None], x[None, None], form="released"),
        lambda x: merge_vocabulary(x, torch.tensor([0, 1, 1, 0]), 2).sum(),
    ],
)
def test_nan_stays_nan_where_values_are_not_looked_at(loss):
    """As on a GPU: a NaN that becomes a number is learned from without a word."""
    spoilt = EYE.clone()
    spoilt[0, 0] = math.nan
    compiled = torch.compile(loss, backend="eager")
    assert compiled(EYE.clone()).isfinite() and compiled(spoilt).isnan()


@pytest.mark.parametrize(
    "term",
    [
        SharedVocabulary(ForwardKL(), torch.arange(2)),
        MergedVocabulary(ForwardKL(), torch.tensor([0, 1, 1])),
        SortedProbabilities(),
        TextKL("exact"),
        TextKL("k3"),
        SampledReverseKL(),
    ],
)
def test_what_a_mask_leaves_out_is_not_looked_at(term):
    z, t = torch.tensor([[[1.0, 0.0, 2.0], [math.nan] * 3]]), torch.tensor([[[0.0, 1.0, 2.0], [math.nan] * 3]])
    mask, labels = torch.tensor([[True, False]]), torch.tensor([[1, 2]])
    found = term(student_logits=z, teacher_logits=t, labels=labels, mask=mask)
    assert found == term(student_logits=z[:, :1], teacher_logits=t[:, :1], labels=labels[:, :1])


def test_a_class_that_neither_has_changes_no_variance():
    z, t = torch.tensor([0.0, 1.0]), torch.tensor([2.0, 0.0])
    with_none = [torch.cat([x, torch.tensor([-math.inf])]) for x in (z, t)]
    assert torch.equal(torch.stack(sampled_gradient_variance(*with_none)), torch.stack(sampled_gradient_variance(z, t)))


def test_padding_alone_is_nothing_in_any_library():
    z, ignored = torch.zeros(1, 2, 3), torch.full((1, 2), -100)
    for library in ("kdlab", "Liger", "DistillKit 1.0", "TextBrewer"):
        assert loss_as_in(library, z, z, ignored, temperature=1.0, hard_weight=0.5, soft_weight=0.5) == 0
    assert loss_as_in("TRL", z, z, ignored, temperature=1.0) == 0


@pytest.mark.parametrize("logits", ["absent", "half"])
def test_a_student_of_few_classes_or_few_digits_has_not_diverged(logits):
    class Student(torch.nn.Linear):
        def forward(self, x):
            z = super().forward(x)
            if logits == "half":  # whose sum has no room in float16
                return (z + 5.0).half()
            return z.masked_fill(torch.arange(200) == 199, -math.inf)

    data = Examples(torch.randn(128, 4), torch.zeros(128, dtype=torch.long))
    how = Recipe(1, 128, augment=False, learning_rate=0.01)
    assert math.isfinite(fit(Student(4, 200), 1.0 * CrossEntropy(), train=data, recipe=how)[-1]["loss"])
