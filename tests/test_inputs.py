"""Inputs that are refused, each with a sentence that helps; and what is compiled."""

import math

import pytest
import torch

from kdlab.objectives import (
    BinarySoftTargets,
    ContrastiveMemory,
    CrossEntropy,
    ForwardKL,
    HeadLogits,
    InfoNCE,
    SmoothedLabels,
    SoftTargets,
    SparseTargets,
    attention_from_qk,
    binary_cross_entropy,
    binary_soft_targets,
    cross_entropy,
    forward_kl,
    generalised_jsd,
    loss_as_in,
    permute_dark_knowledge,
    restrict_vocabulary,
    sampled_kl,
    soft_targets,
    soften,
    sparse_forward_kl,
    standardise,
)

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
