"""Sequences: padding, micro-batches, several ranks, shifted labels, and vocabularies that differ."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from losses import ALL, batch, each, every_loss, gradient, refused, smoothed
from ranks import gradients, on_ranks

from kdlab.objectives import (
    CrossEntropy,
    ForwardKL,
    HiddenMSE,
    SharedVocabulary,
    SparseForwardKL,
    SparseTargets,
    forward_kl,
    global_count,
    next_token,
    restrict_vocabulary,
    reverse_kl,
    soften,
    sparse_forward_kl,
)

#: Four sequences of very different length, padded at the right.
MASK = torch.arange(6) < torch.tensor([[6], [1], [3], [2]])


def sequences():
    z, t, y = batch(4, 6, 5)
    return z, t, y.where(MASK, -100)


# Padding


@each(ALL)
@given(added=st.integers(1, 7), seed=st.integers(0, 100))
def test_padding_changes_nothing(loss, added, seed):
    z, t, y = batch(2, 4, 5, seed=seed)
    mask = torch.tensor([[True] * 4, [True, False, True, False]])
    y = y.where(mask, -100)
    noise = 100 * torch.randn(2, 2, added, 5, dtype=torch.float64)
    z2, t2 = (torch.cat([x, more], 1) for x, more in zip((z, t), noise, strict=True))
    y2, mask2 = F.pad(y, (0, added), value=-100), F.pad(mask, (0, added))
    torch.testing.assert_close(loss(z2, t2, y2, mask=mask2), loss(z, t, y, mask=mask), rtol=1e-13, atol=0)
    slope = gradient(loss, z2, t2, y2, mask=mask2)
    torch.testing.assert_close(slope[:, :4], gradient(loss, z, t, y, mask=mask), rtol=1e-12, atol=1e-14)
    assert not slope[:, 4:].any()


@each({name: loss for name, loss in ALL.items() if loss is not smoothed})
@pytest.mark.parametrize("anything", [-100, -1, 5, 10**9])
def test_labels_may_be_anything_where_masked(loss, anything):
    z, t, y = sequences()
    assert torch.equal(loss(z, t, y.where(MASK, anything), mask=MASK), loss(z, t, y.where(MASK, 0), mask=MASK))


# Means over more than one micro-batch and rank


@every_loss
def test_micro_batches_add_up_to_the_whole(loss):
    z, t, y = sequences()
    whole, slope = loss(z, t, y, mask=MASK), gradient(loss, z, t, y, mask=MASK)
    cuts = [slice(0, 1), slice(1, 3), slice(3, 4)]  # of 6, 4 and 2 tokens
    count = sum(global_count(MASK[cut]) for cut in cuts)
    assert count == 12
    for given_as in (count, 12, 12.0, torch.tensor(12)):
        parts = [loss(z[cut], t[cut], y[cut], mask=MASK[cut], count=given_as) for cut in cuts]
        torch.testing.assert_close(sum(parts), whole, rtol=1e-12, atol=0, check_dtype=False)
    slopes = [gradient(loss, z[cut], t[cut], y[cut], mask=MASK[cut], count=count) for cut in cuts]
    torch.testing.assert_close(torch.cat(slopes), slope, rtol=1e-12, atol=1e-15)
    means = [loss(z[cut], t[cut], y[cut], mask=MASK[cut]) for cut in cuts]
    assert not torch.isclose(sum(means) / 3, whole)


@every_loss
def test_a_micro_batch_of_padding_alone_adds_nothing(loss):
    z, t, y = sequences()
    nothing = torch.zeros_like(MASK)
    assert loss(z, t, y.where(nothing, -100), mask=nothing, count=12) == 0
    assert not gradient(loss, z, t, y.where(nothing, -100), mask=nothing, count=12).any()


def test_the_count_of_one_process_is_that_of_its_mask():
    count = global_count(MASK)
    assert count == 12 and count.dtype == torch.float32 and count.shape == ()


def test_one_rank_counts_as_none(tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        assert global_count(MASK) == 12
    finally:
        torch.distributed.destroy_process_group()


def test_two_ranks_have_the_gradient_of_the_whole_batch(tmp_path):
    on_ranks(2, tmp_path)
    for name, whole in gradients([slice(0, 4)]).items():
        for rank in range(2):
            found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)[name]
            torch.testing.assert_close(found, whole, rtol=1e-6, atol=1e-9)


# Labels beside the logits that predict them


def test_logits_stand_beside_the_next_token():
    z, t, y = batch(2, 5, 7)
    aligned = next_token(z, t, y)
    for name, x in (("student_logits", z), ("teacher_logits", t)):
        assert torch.equal(aligned[name], x[:, :4])
    assert torch.equal(aligned["labels"], y[:, 1:]) and aligned["mask"].all()
    expected = F.cross_entropy(z[:, :4].flatten(0, 1), y[:, 1:].flatten())
    torch.testing.assert_close((1.0 * CrossEntropy())(**aligned)[0], expected)


def test_a_student_that_knows_the_next_token_is_right():
    y = torch.tensor([[3, 1, 4, 1, 5]])
    z = 50 * F.one_hot(y.roll(-1, 1), 8).float()
    assert CrossEntropy()(**next_token(z, None, y)) < 1e-6
    assert CrossEntropy()(**next_token(50 * F.one_hot(y, 8).float(), None, y)) > 1


def test_neither_loss_counts_what_is_ignored():
    z, t, y = batch(2, 5, 7)
    y[0, 3:] = y[1, 0] = -100  # the first label of a sequence has no logits anyway
    aligned = next_token(z, t, y)
    assert aligned["mask"].sum() == 6 and next_token(z, None, y)["teacher_logits"] is None
    for term in (CrossEntropy(), ForwardKL()):
        slope = gradient(lambda z, term=term: term(**next_token(z, t, y)), z)
        learned = slope.abs().sum(-1) > 0
        assert learned.tolist() == [[True, True, False, False, False], [True] * 4 + [False]]


def test_another_ignored_label():
    y = torch.tensor([[1, 0, 2, 0]])
    mask = next_token(torch.zeros(1, 4, 3), None, y, ignore_index=0)["mask"]
    assert mask.tolist() == [[False, True, False]]


def test_the_end_of_a_sequence_is_learned_though_padding_has_its_number():
    end = pad = 0
    z, t, _ = batch(1, 6, 4)
    tokens = torch.tensor([[2, 3, end, pad, pad, pad]])
    labels = tokens.where(torch.tensor([True, True, True, False, False, False]), -100)
    aligned = next_token(z, t, labels)
    assert aligned["mask"].tolist() == [[True, True, False, False, False]]
    assert aligned["labels"][0, 1] == end
    slope = gradient(lambda z: CrossEntropy()(**next_token(z, t, labels)), z)
    assert slope[0, 1].any() and not slope[0, 2:].any()


def test_labels_that_do_not_fit_the_sequences_are_refused():
    sentence = r"logits of shape \(batch, time, vocabulary\) and labels of shape \(batch, time\) are needed, not"
    refused(next_token, ValueError, sentence, torch.zeros(2, 3), None, torch.zeros(2, dtype=torch.int64))
    refused(next_token, ValueError, sentence, torch.zeros(2, 3, 5), None, torch.zeros(2, 2, dtype=torch.int64))


# Vocabularies


def restricted(z, t, tokens, **options):
    return restrict_vocabulary(z, tokens, **options), restrict_vocabulary(t, tokens, **options)


@given(st.integers(0, 1000), st.integers(1, 6), st.floats(0.1, 10))
def test_with_a_rest_the_chosen_keep_their_probabilities(seed, k, scale):
    z, _, _ = batch(2, 3, 7, seed=seed, scale=scale)
    tokens = torch.randperm(7, generator=torch.Generator().manual_seed(seed))[:k]
    q, q_s = soften(z), soften(restrict_vocabulary(z, tokens, rest=True))
    torch.testing.assert_close(q_s[..., :k], q[..., tokens], rtol=1e-12, atol=0)
    torch.testing.assert_close(q_s[..., k], 1 - q[..., tokens].sum(-1), rtol=1e-7, atol=1e-14)


@given(st.integers(0, 1000), st.integers(1, 6), st.floats(0.1, 10))
def test_merged_classes_are_no_farther_apart(seed, k, scale):
    z, t, _ = batch(2, 3, 7, seed=seed, scale=scale)
    top = t.topk(k).indices  # another set at each position
    for kl in (forward_kl, reverse_kl):
        merged, whole = kl(*restricted(z, t, top, rest=True), reduction="none"), kl(z, t, reduction="none")
        assert (merged >= 0).all() and (merged <= whole * (1 + 1e-12) + 1e-14).all()


@given(st.integers(0, 1000), st.integers(2, 7))
def test_without_a_rest_it_is_the_distribution_given_that_one_of_the_chosen_comes(seed, k):
    z, _, _ = batch(2, 3, 7, seed=seed)
    tokens = torch.randperm(7, generator=torch.Generator().manual_seed(seed))[:k]
    chosen = soften(z)[..., tokens]
    torch.testing.assert_close(soften(restrict_vocabulary(z, tokens)), chosen / chosen.sum(-1, keepdim=True))


def test_tokens_of_their_own_at_each_position():
    z, _, _ = batch(2, 3, 7)
    tokens = torch.stack([torch.randperm(7)[:4] for _ in range(6)]).view(2, 3, 4)
    for rest in (False, True):
        found = restrict_vocabulary(z, tokens, rest=rest)
        for i in range(2):
            for j in range(3):
                one = restrict_vocabulary(z[i, j], tokens[i, j], rest=rest)
                torch.testing.assert_close(found[i, j], one)


@pytest.mark.parametrize("rest", [False, True])
def test_nothing_is_lost_where_the_others_have_no_mass(rest):
    z, t, _ = batch(2, 3, 7)
    z[..., 4:] = t[..., 4:] = -1e4  # a vocabulary that was padded to a rounder size
    for kl in (forward_kl, reverse_kl):
        torch.testing.assert_close(kl(*restricted(z, t, torch.arange(4), rest=rest)), kl(z, t))
    assert torch.equal(restrict_vocabulary(z, torch.arange(7)), z)


@pytest.mark.parametrize("rest", [False, True])
def test_a_gradient_reaches_what_was_kept_and_the_rest(rest):
    z, t, _ = batch(2, 3, 7)
    tokens = torch.tensor([5, 0, 2])

    def loss(z):
        return forward_kl(*restricted(z, t, tokens, rest=rest))

    assert torch.autograd.gradcheck(loss, z.clone().requires_grad_())
    assert gradient(loss, z).abs().sum((0, 1)).gt(0).tolist() == [rest or i in tokens for i in range(7)]


def test_teacher_and_student_number_the_shared_tokens_differently():
    t, order = batch(4, 7)[1], torch.randperm(7)
    z = t[:, order]  # the same distribution, with other numbers
    chosen = torch.tensor([1, 3, 6])
    theirs = torch.stack([(order == token).nonzero().squeeze() for token in chosen])
    student, teacher = restrict_vocabulary(z, theirs, rest=True), restrict_vocabulary(t, chosen, rest=True)
    assert forward_kl(student, teacher) < 1e-15 < forward_kl(z, t)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_rest_of_half_precision_is_summed_in_float32(dtype):
    z, _, _ = batch(3, 5000)
    z, tokens = z.to(dtype), torch.arange(5)
    q_s = soften(restrict_vocabulary(z, tokens, rest=True))
    assert q_s.dtype == torch.float32
    torch.testing.assert_close(q_s[:, :5], soften(z)[:, :5], rtol=1e-5, atol=0)


def test_tokens_that_are_none_are_refused():
    z = torch.zeros(2, 5)
    sentence = "tokens must be a torch.Tensor of int64 token numbers"
    for bad in ([0, 1], torch.tensor([0.0]), torch.tensor([True, False]), torch.tensor(1)):
        refused(restrict_vocabulary, TypeError, sentence, z, bad)
    for bad, ends in (([0, 5], "0 to 5"), ([-1, 2], "-1 to 2")):
        sentence = f"tokens must lie in 0 … 4, but reach from {ends}"
        refused(restrict_vocabulary, ValueError, sentence, z, torch.tensor(bad))
    refused(restrict_vocabulary, ValueError, "tokens name one token twice", z, torch.tensor([3, 1, 3]))
    refused(restrict_vocabulary, ValueError, "leave rest=True out", z, torch.arange(5), rest=True)
    refused(restrict_vocabulary, TypeError, "logits must be a torch.Tensor", [0.0], torch.arange(5))
    assert torch.equal(restrict_vocabulary(z, torch.arange(2, dtype=torch.int32)), z[:, :2])


def test_the_attention_mask_comes_along_and_padding_on_the_left_predicts_nothing():
    logits, labels = torch.zeros(1, 5, 8), torch.tensor([[-100, -100, 5, 6, 7]])
    aligned = next_token(logits, logits, labels, attention_mask=torch.tensor([[0, 0, 1, 1, 1]]))
    assert aligned["mask"].tolist() == [[False, False, True, True]]
    assert aligned["hidden_mask"].tolist() == [[False, False, True, True, True]]
    assert "hidden_mask" not in next_token(logits, logits, labels)
    with pytest.raises(ValueError, match=r"attention_mask of shape \(1, 4\)"):
        next_token(logits, logits, labels, attention_mask=torch.ones(1, 4))


# The same through fit


def test_a_shared_vocabulary_is_that_of_its_term_over_chosen_tokens():
    z, t, y = sequences()
    tokens = torch.tensor([0, 3, 1])
    term = SharedVocabulary(ForwardKL(temperature=2), tokens)
    expected = forward_kl(restrict_vocabulary(z, tokens), restrict_vocabulary(t, tokens), temperature=2, mask=MASK)
    assert torch.equal(term(student_logits=z, teacher_logits=t, labels=y), expected)
    assert torch.equal(term(student_logits=z, teacher_logits=t, mask=MASK), expected)
    wider = F.pad(t, (0, 3), value=1.0)
    objective = 0.5 * CrossEntropy() + 0.5 * term
    total, terms = objective(student_logits=z, teacher_logits=wider, labels=y)
    assert torch.equal(terms["SharedVocabulary"], expected) and torch.isclose(
        total, 0.5 * terms["CrossEntropy"] + 0.5 * expected
    )
    assert (
        repr(term)
        == repr(SharedVocabulary(ForwardKL(temperature=2), tokens))
        != repr(SharedVocabulary(ForwardKL(temperature=2), tokens.flip(0)))
    )
    assert "rest=True" in repr(SharedVocabulary(ForwardKL(), tokens, rest=True))


def test_a_shared_vocabulary_takes_what_a_cache_keeps():
    z, kept = (
        torch.randn(3, 5),
        SparseTargets(
            torch.tensor([[0, 6], [1, 0], [3, 2]]), torch.tensor([[0.5, 0.25], [0.5, 0.5], [0.75, 0.25]]), 7, rest=True
        ),
    )
    objective = 1.0 * SharedVocabulary(SparseForwardKL(), torch.arange(5))
    total, _ = objective(student_logits=z, teacher_logits=kept)
    assert torch.isclose(total, sparse_forward_kl(z, restrict_vocabulary(kept, torch.arange(5))))


def test_what_is_no_shared_vocabulary_gets_a_sentence():
    tokens = torch.arange(3)
    for term in (CrossEntropy(), HiddenMSE("layer"), forward_kl):
        refused(SharedVocabulary, TypeError, "a term of logits, which looks at neither labels nor layers", term, tokens)
    for ours, theirs in (([0, 1], None), (tokens[None], None), (tokens, torch.arange(4))):
        refused(SharedVocabulary, ValueError, r"tokens are a tensor of shape \(k,\)", ForwardKL(), ours, theirs)
