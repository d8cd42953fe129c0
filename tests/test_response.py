"""Response losses: closed forms, what they have in common, what each is for, and what is refused."""

import inspect
import itertools
import math
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from losses import (
    ALL,
    OF_BOTH,
    OF_PROBABILITIES,
    SOFTENED,
    batch,
    both,
    centred_error,
    correlation,
    decoupled,
    each,
    every_loss,
    gradient,
    hard,
    on_shapes,
    pairs,
    refused,
    smoothed,
    squared_error,
    temperatures,
)

from kdlab import objectives
from kdlab.objectives import (
    cross_entropy,
    decoupled_kd,
    dist_loss,
    distillation_loss,
    entropy,
    forward_kl,
    logit_mse,
    permute_dark_knowledge,
    reduce,
    smooth_labels,
    soft_targets,
    soften,
    spread_dark_knowledge,
    standardise,
)
from kdlab.theory import reference

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:])


# Values and gradients against closed forms


@every_loss
@pytest.mark.parametrize("reduction", ["batchmean", "sum", "none"])
def test_gradient_is_that_of_the_value(loss, reduction):
    z, t, y = batch(3, 5)
    mask = torch.tensor([True, False, True])
    assert torch.autograd.gradcheck(lambda z: loss(z, t, y, mask=mask, reduction=reduction), z.requires_grad_())


def soft_half(z, t, y, **options):
    return distillation_loss(z, t, y, hard_weight=0, **options)


@each(OF_BOTH)
def test_gradient_in_the_teachers_logits(loss):
    z, t, y = batch(3, 5)
    mask = torch.tensor([True, False, True])
    assert torch.autograd.gradcheck(lambda t: loss(z, t, y, mask=mask), t.requires_grad_())


@each({**SOFTENED, "dist": ALL["dist"]})
def test_gradient_in_the_temperature(loss):
    z, t, y = batch(3, 5)
    T = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda T: loss(z, t, y, temperature=T), T)


def test_dist_has_the_gradient_of_its_value():
    z, t, _ = batch(3, 5)
    mask = torch.tensor([True, False, True])
    for how in ({}, {"mask": mask}, {"temperature": 3.0}, {"inter_weight": 0}, {"intra_weight": 0}):
        assert torch.autograd.gradcheck(partial(dist_loss, **how), (z.requires_grad_(), t.requires_grad_()))


@given(pairs, temperatures)
def test_cross_entropy_equals_the_reference(logits, T):
    z, target = logits[0], soften(logits[1])
    value = cross_entropy(z, target, temperature=T, reduction="none")
    expected = -(target.numpy() * reference.log_softmax(z, T)).sum(-1)
    np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-12)
    slope = gradient(cross_entropy, z, target, temperature=T, reduction="sum")
    closed = reference.cross_entropy_gradient(z, target, T)
    np.testing.assert_allclose(slope, closed, rtol=1e-12, atol=1e-12 * max(1, 1 / T))


@given(pairs)
def test_labels_are_one_hot_targets_and_what_torch_computes(logits):
    z, y = logits[0], logits[1].argmax(-1)
    one_hot = torch.nn.functional.one_hot(y, z.shape[-1]).double()
    torch.testing.assert_close(cross_entropy(z, y), cross_entropy(z, one_hot), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(cross_entropy(z, y), torch.nn.functional.cross_entropy(z, y), rtol=1e-12, atol=1e-13)


@given(pairs, temperatures)
def test_cross_entropy_is_divergence_plus_entropy(logits, T):
    z, t = logits
    target = soften(t, T)
    expected = forward_kl(z, t, temperature=T) + entropy(t, T).mean()
    torch.testing.assert_close(cross_entropy(z, target, temperature=T), expected, rtol=1e-11, atol=1e-12)


def test_soft_targets_become_logit_matching():
    z, t, _ = batch(4, 6)
    limit = torch.from_numpy(reference.logit_matching(z, t))

    def off(T):
        return (soft_targets(z, t, temperature=T, reduction="none") - limit).abs().max().item()

    assert off(1e3) / off(1e4) == pytest.approx(10, rel=0.05)  # what is left falls like 1/T
    slope = gradient(soft_targets, z, t, temperature=1e6, reduction="sum")
    centred = (z - z.mean(-1, keepdim=True)) - (t - t.mean(-1, keepdim=True))
    torch.testing.assert_close(slope, centred / 6, rtol=1e-4, atol=1e-5)


# Both articles' alpha


def test_A6_alpha_weighs_the_hard_labels():
    z, t, y = batch(4, 6)
    alpha = 0.1
    expected = alpha * cross_entropy(z, y) + (1 - alpha) * 16 * forward_kl(z, t, temperature=4.0)
    torch.testing.assert_close(distillation_loss(z, t, y, temperature=4.0, hard_weight=alpha), expected)


def test_B1_alpha_weighs_the_soft_targets():
    z, t, y = batch(4, 6)
    alpha = 0.1
    expected = (1 - alpha) * cross_entropy(z, y) + alpha * 16 * forward_kl(z, t, temperature=4.0)
    torch.testing.assert_close(distillation_loss(z, t, y, temperature=4.0, soft_weight=alpha), expected)


@given(st.floats(0, 1), temperatures)
def test_the_two_weights_are_one_minus_each_other(weight, T):
    z, t, y = batch(4, 6)
    one = distillation_loss(z, t, y, temperature=T, hard_weight=weight)
    torch.testing.assert_close(
        distillation_loss(z, t, y, temperature=T, soft_weight=1 - weight), one, rtol=1e-12, atol=0
    )


def test_end_points_are_the_hard_and_the_soft_loss_alone():
    z, t, y = batch(4, 6)
    for only_hard in ({"hard_weight": 1}, {"soft_weight": 0}):
        assert torch.equal(distillation_loss(z, t, y, temperature=3.0, **only_hard), cross_entropy(z, y))
    for only_soft in ({"hard_weight": 0}, {"soft_weight": 1}):
        expected = soft_targets(z, t, temperature=3.0)
        assert torch.equal(distillation_loss(z, t, y, temperature=3.0, **only_soft), expected)


def test_exactly_one_weight_must_be_given():
    z, t, y = batch(4, 6)
    for weights in ({}, {"hard_weight": 0.1, "soft_weight": 0.9}):
        with pytest.raises(TypeError, match="give exactly one of hard_weight and soft_weight"):
            distillation_loss(z, t, y, **weights)
    for weight in (-0.1, 1.1, math.nan, math.inf, "0.1"):
        with pytest.raises(ValueError, match="a weight must be a number from 0 to 1, not"):
            distillation_loss(z, t, y, hard_weight=weight)


# Invariants


@every_loss
@given(seed=st.integers(0, 1000), other=st.sampled_from([-1e4, 0.0, 7.0, 1e4]))
def test_what_is_masked_does_not_matter(loss, seed, other):
    z, t, y = batch(3, 4, 5, seed=seed)
    mask = torch.rand(3, 4, generator=torch.Generator().manual_seed(seed)) < 0.6
    mask[0, 0] = True
    z2, t2, y2 = z.clone(), t.clone(), y.clone()
    z2[~mask], t2[~mask], y2[~mask] = other, other * torch.arange(5, dtype=torch.float64) / 5, 0
    for reduction in ("batchmean", "sum", "none"):
        options = {"mask": mask, "reduction": reduction}
        assert torch.equal(loss(z, t, y, **options), loss(z2, t2, y2, **options))
    slope, slope2 = (gradient(loss, a, b, c, mask=mask) for a, b, c in ((z, t, y), (z2, t2, y2)))
    assert torch.equal(slope, slope2) and not slope[~mask].any()
    torch.testing.assert_close(loss(z, t, y, mask=mask), loss(z[mask], t[mask], y[mask]), rtol=1e-12, atol=1e-14)


@every_loss
@given(cut=st.integers(1, 7))
def test_a_batch_is_the_sum_of_its_parts(loss, cut):
    z, t, y = batch(8, 5)
    parts = [tuple(x[:cut] for x in (z, t, y)), tuple(x[cut:] for x in (z, t, y))]
    whole = loss(z, t, y, reduction="sum")
    torch.testing.assert_close(whole, sum(loss(*part, reduction="sum") for part in parts), rtol=1e-12, atol=0)
    weighted = sum(len(part[2]) / 8 * loss(*part) for part in parts)
    torch.testing.assert_close(loss(z, t, y), weighted, rtol=1e-12, atol=0)
    torch.testing.assert_close(loss(z, t, y), whole / 8, rtol=1e-12, atol=0)


@each(ALL)
@given(seed=st.integers(0, 1000))
def test_names_of_the_classes_do_not_matter(loss, seed):
    z, t, y = batch(4, 6, seed=seed)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    renamed = loss(z[:, order], t[:, order], order.argsort()[y])
    torch.testing.assert_close(renamed, loss(z, t, y), rtol=1e-12, atol=1e-14)


@each(ALL)
@given(seed=st.integers(0, 1000))
def test_order_of_the_examples_does_not_matter(loss, seed):
    z, t, y = batch(4, 6, seed=seed)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(loss(z[order], t[order], y[order]), loss(z, t, y), rtol=1e-12, atol=1e-14)


@each({name: loss for name, loss in ALL.items() if name != "squared_error"})
@given(seed=st.integers(0, 1000), shifts=st.tuples(st.floats(-50, 50), st.floats(-50, 50)))
def test_shifting_all_logits_changes_nothing(loss, seed, shifts):
    z, t, y = batch(4, 6, seed=seed)
    shifted = loss(z + shifts[0], t + shifts[1], y)
    torch.testing.assert_close(shifted, loss(z, t, y), rtol=1e-10, atol=1e-12)


@each({**{name: loss for name, loss in OF_BOTH.items() if loss is not both}, "soft half": soft_half})
@given(seed=st.integers(0, 1000))
def test_zero_at_equality_and_never_negative(loss, seed):
    z, t, y = batch(4, 6, seed=seed)
    assert loss(z, t, y) > 0
    torch.testing.assert_close(loss(t, t.clone(), y), t.new_zeros(()), rtol=0, atol=1e-13)
    slope = gradient(loss, t, t.clone(), y)
    torch.testing.assert_close(slope, torch.zeros_like(t), rtol=0, atol=1e-7)


@each(OF_PROBABILITIES)
@pytest.mark.parametrize("added", [1, 100])
def test_classes_of_probability_zero_change_nothing(loss, added):
    z, t, y = batch(4, 6)
    z2, t2 = (torch.cat([x, x.new_full((4, added), -1e4)], -1) for x in (z, t))
    torch.testing.assert_close(loss(z2, t2, y), loss(z, t, y), rtol=1e-14, atol=0)
    slope = gradient(loss, z2, t2, y)
    torch.testing.assert_close(slope[:, :6], gradient(loss, z, t, y), rtol=1e-13, atol=1e-15)
    assert not slope[:, 6:].any()


@every_loss
def test_any_number_of_leading_axes(loss):
    z, t, y = batch(2, 3, 4, 5)
    whole = loss(z, t, y, reduction="none", class_axis=-1)
    assert whole.shape == (2, 3, 4)
    assert torch.equal(whole.flatten(), loss(z.flatten(0, 2), t.flatten(0, 2), y.flatten(), reduction="none"))
    one = loss(z[0, 0, 0], t[0, 0, 0], y[0, 0, 0], reduction="none")
    torch.testing.assert_close(one, whole[0, 0, 0])


def test_reductions():
    losses, mask = torch.tensor([[1.0, 2.0], [3.0, 10.0]]), torch.tensor([[True, True], [False, True]])
    assert reduce(losses).item() == 4
    assert reduce(losses, reduction="sum").item() == 16
    assert torch.equal(reduce(losses, reduction="none"), losses)
    assert reduce(losses, mask).item() == pytest.approx(13 / 3)
    assert reduce(losses, mask, "sum").item() == 13
    assert reduce(losses, mask, "none").tolist() == [[1, 2], [0, 10]]
    assert reduce(losses, mask, count=8).item() == reduce(losses, mask, count=torch.tensor(8)).item() == 13 / 8
    unknown = losses.where(mask, math.nan).requires_grad_()
    assert reduce(unknown, mask) == reduce(losses, mask)
    reduce(unknown, mask, "sum").backward()
    assert torch.equal(unknown.grad, mask.float())


@each(ALL)
@dtypes
def test_opposite_extreme_logits_are_finite(loss, dtype):
    z = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, 1e4]]).to(dtype)
    t, y = z.flip(0), torch.tensor([1, 0])
    has_temperature = loss not in (squared_error, centred_error)
    for how in ({}, {"temperature": 0.1}, {"temperature": 1e4}) if has_temperature else ({},):
        assert torch.isfinite(loss(z, t, y, **how))
        assert torch.isfinite(gradient(loss, z, t, y, **how)).all()
    assert cross_entropy(z, y, reduction="none").tolist() == [z[0, 0] - z[0, 1], z[1, 2] - z[1, 0]]


@each({f.__name__: f for f in (hard, smoothed, both, decoupled, on_shapes, squared_error, correlation)})
@dtypes
def test_values_and_gradients_are_near_those_in_float64(loss, dtype):
    z, t, y = batch(32, 20)
    z, t = z.to(dtype), t.to(dtype)
    for how in ({"temperature": T} for T in (0.1, 1.0, 4.0, 100.0, 1e4)) if loss is not squared_error else ({},):
        value, oracle = loss(z, t, y, **how), loss(z.double(), t.double(), y, **how)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), oracle, rtol=1e-4, atol=0)
        slope, oracle = gradient(loss, z, t, y, **how), gradient(loss, z.double(), t.double(), y, **how)
        assert slope.dtype == dtype
        if dtype != torch.float16 or how.get("temperature") != 1e4:  # its range is too small for T² or 1/T
            assert (slope.double() - oracle).norm() <= (2e-3 + torch.finfo(dtype).eps) * oracle.norm()


# Logits matched


@given(pairs)
def test_squared_error_of_logits(logits):
    z, t = logits
    how = {"reduction": "none"}
    np.testing.assert_allclose(logit_mse(z, t, **how), reference.logit_mse(z, t), rtol=1e-12, atol=1e-12)
    slope = gradient(logit_mse, z, t, reduction="sum")
    np.testing.assert_allclose(slope, reference.logit_mse_gradient(z, t), rtol=1e-12, atol=1e-12)
    centred = logit_mse(z, t, centred=True, **how)
    np.testing.assert_allclose(centred / 2, reference.logit_matching(z, t), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(logit_mse(z + 3, t, centred=True, **how), centred, rtol=1e-10, atol=1e-10)


def test_half_the_centred_error_is_where_soft_targets_go():
    z, t, _ = batch(4, 6)
    torch.testing.assert_close(
        soft_targets(z, t, temperature=1e6), logit_mse(z, t, centred=True) / 2, rtol=1e-5, atol=0
    )


@given(pairs, st.floats(1e-6, 1e6), st.floats(-10, 10))
def test_standardised_logits_have_a_shape_and_no_scale(logits, scale, shift):
    z = logits[0]
    assume((z.std(-1) > 1e-3).all())
    shape = standardise(z)
    torch.testing.assert_close(shape.mean(-1), z.new_zeros(len(z)), rtol=0, atol=1e-12)
    torch.testing.assert_close(shape.std(-1), z.new_ones(len(z)), rtol=1e-12, atol=0)
    torch.testing.assert_close(standardise(scale * z), shape, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(standardise(z + shift), shape, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(standardise(-z), -shape, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e4 + 0.1])
def test_equal_logits_are_standardised_to_zeros_with_a_gradient_of_order_one(value):
    z = torch.full((2, 7), value)
    assert not standardise(z).any()
    slope = gradient(lambda z: soft_targets(standardise(z), torch.arange(14.0).view(2, 7)), z)
    assert slope.abs().max() < 10


def test_standardised_half_precision_is_float32():
    z = torch.randn(3, 8).half()
    assert standardise(z).dtype == torch.float32 and torch.equal(standardise(z), standardise(z.float()))
    refused(standardise, TypeError, "logits must be a torch.Tensor, not list", [1.0, 2.0])


# Decoupled distillation


def target_and_others(z, t, y, **options):
    how = {"reduction": "none", **options}
    return (
        decoupled_kd(z, t, y, target_weight=1, other_weight=0, **how),
        decoupled_kd(z, t, y, target_weight=0, other_weight=1, **how),
    )


@given(st.integers(0, 1000), temperatures)
def test_soft_targets_are_the_target_and_the_others_weighed_by_what_the_teacher_leaves_them(seed, T):
    z, t, y = batch(4, 6, seed=seed)
    target, others = target_and_others(z, t, y, temperature=T)
    left = 1 - soften(t, T).gather(-1, y.unsqueeze(-1)).squeeze(-1)
    expected = soft_targets(z, t, temperature=T, reduction="none")
    torch.testing.assert_close(target + left * others, expected, rtol=1e-9, atol=1e-13 * T**2)
    weighed = decoupled_kd(z, t, y, target_weight=0.5, other_weight=3, temperature=T, reduction="none")
    torch.testing.assert_close(weighed, 0.5 * target + 3 * others, rtol=1e-12, atol=1e-14)


def test_the_others_are_compared_among_themselves():
    z, t, y = batch(4, 6)
    for row, (a, b, label) in enumerate(zip(z, t, y.tolist(), strict=True)):
        rest = [i for i in range(6) if i != label]
        expected = soft_targets(a[rest], b[rest], temperature=3.0)
        _, others = target_and_others(z, t, y, temperature=3.0)
        torch.testing.assert_close(others[row], expected, rtol=1e-10, atol=0)


def test_of_two_classes_the_target_is_all():
    z, t, y = batch(5, 2)
    target, others = target_and_others(z, t, y, temperature=2.0)
    assert not others.any()
    torch.testing.assert_close(target, soft_targets(z, t, temperature=2.0, reduction="none"))
    assert not gradient(decoupled_kd, z, t, y, target_weight=0.0).any()


@dtypes
@pytest.mark.parametrize("sure", [20.0, 100.0, 1e4])
def test_the_others_count_though_the_teacher_is_sure(dtype, sure):
    z, t = torch.tensor([[sure, 0.0, 1.0]]).to(dtype), torch.tensor([[sure, 1.0, 0.0]]).to(dtype)
    target, others = target_and_others(z, t, torch.tensor([0]), temperature=1.0)
    assert target.item() == 0
    torch.testing.assert_close(others, forward_kl(z[:, 1:], t[:, 1:], reduction="none"))
    assert gradient(decoupled_kd, z, t, torch.tensor([0]), temperature=1.0)[0, 1:].abs().min() > 1


# DIST


@given(st.integers(0, 1000), temperatures)
def test_dist_is_what_pearsons_correlation_leaves(seed, T):
    z, t, _ = batch(5, 4, seed=seed)
    p, q = reference.softmax(t, T), reference.softmax(z, T)
    inter = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    intra = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    found = dist_loss(z, t, inter_weight=2, intra_weight=0.5, temperature=T).item()
    assert found == pytest.approx(T**2 * (2 * inter + 0.5 * intra), rel=1e-7)


@given(st.integers(0, 1000), st.floats(0.05, 1))
def test_dist_ignores_how_sure_the_student_is(seed, share):
    """Probabilities mixed with the uniform distribution are an affine function of what they were."""
    z, t, _ = batch(5, 4, seed=seed)
    flatter = (share * soften(z) + (1 - share) / 4).log()
    torch.testing.assert_close(dist_loss(flatter, t), dist_loss(z, t), rtol=1e-9, atol=0)
    torch.testing.assert_close(dist_loss(flatter, z), z.new_zeros(()), rtol=0, atol=1e-9)
    assert forward_kl(flatter, z) > 0 or share == 1


def test_dist_of_a_constant_row_or_column_is_as_of_the_unrelated_and_gives_no_gradient():
    z, t, _ = batch(3, 4)
    t[1] = 7.0  # a teacher that knows nothing of this example
    assert dist_loss(z[1:2].expand(2, 4), t[1:2].expand(2, 4)).item() == pytest.approx(2)
    slope = gradient(dist_loss, z, t, intra_weight=0.0)
    assert not slope[1].any() and slope[0].any() and slope[2].any()
    same = z[:1].expand(3, 4)  # a student that says the same of every example
    assert dist_loss(same, t, inter_weight=0).item() == pytest.approx(1)
    assert not gradient(dist_loss, same, t, inter_weight=0.0).any()


def test_dist_leaves_out_what_is_masked():
    z, t, _ = batch(2, 5, 4)
    mask = torch.tensor([[True] * 5, [True, False, False, True, False]])
    T = 1 + torch.rand(2, 5, 1, dtype=torch.float64)
    for how in ({"temperature": 3}, {"temperature": T}):
        kept = {"temperature": T[mask]} if how["temperature"] is T else how
        torch.testing.assert_close(dist_loss(z, t, mask=mask, **how), dist_loss(z[mask], t[mask], **kept))
        slope = gradient(dist_loss, z, t, mask=mask, **how)
        assert not slope[~mask].any()
        torch.testing.assert_close(slope[mask], gradient(dist_loss, z[mask], t[mask], **kept))
    torch.testing.assert_close(dist_loss(z, t), dist_loss(z.flatten(0, 1), t.flatten(0, 1)))


@pytest.mark.parametrize("T", [3, 3.0, torch.tensor(3), torch.full((5, 1), 3.0)])
def test_dist_takes_any_kind_of_temperature(T):
    z, t, _ = batch(5, 4)
    torch.testing.assert_close(dist_loss(z, t, temperature=T), dist_loss(z, t, temperature=3.0))


def test_dist_of_fewer_than_two_examples_is_refused():
    z, t, _ = batch(3, 4)
    refused(dist_loss, ValueError, "at least two that count are needed", z[:1], t[:1])
    refused(dist_loss, ValueError, "at least two that count are needed", z[0], t[0])
    one = torch.tensor([False, True, False])
    refused(dist_loss, ValueError, "at least two that count are needed", z, t, mask=one)
    refused(dist_loss, ValueError, "mask leaves no position", z, t, mask=torch.zeros_like(one))


# Labels smoothed


@given(st.integers(0, 1000), st.integers(2, 9), st.floats(0, 1))
def test_smoothed_labels_are_a_distribution(seed, classes, smoothing):
    z, _, y = batch(2, 3, classes, seed=seed)
    p = smooth_labels(y, classes, smoothing=smoothing)
    torch.testing.assert_close(p.sum(-1), torch.ones(2, 3))
    true = p.gather(-1, y.unsqueeze(-1))
    torch.testing.assert_close(true, torch.full_like(true, 1 - smoothing + smoothing / classes))
    assert (p <= true).all()
    expected = torch.nn.functional.cross_entropy(z.flatten(0, 1), y.flatten(), label_smoothing=smoothing)
    torch.testing.assert_close(cross_entropy(z, p), expected, rtol=1e-5, atol=1e-6)


def test_smoothing_ends_at_the_label_and_at_nothing():
    y = torch.tensor([2, 0])
    assert torch.equal(smooth_labels(y, 3, smoothing=0), torch.eye(3)[y])
    assert torch.equal(smooth_labels(y, 4, smoothing=1), torch.full((2, 4), 0.25))


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan, "0.1", None])
def test_bad_smoothing_is_refused(bad):
    sentence = "smoothing must be a number from 0 to 1, not"
    refused(smooth_labels, ValueError, sentence, torch.tensor([0]), 3, smoothing=bad)


def test_labels_that_cannot_be_smoothed_are_refused():
    refused(smooth_labels, ValueError, "labels must lie in 0 … 2, but reach from 3 to 3", torch.tensor([3]), 3)
    refused(smooth_labels, TypeError, "labels must be a torch.Tensor", [0], 3)


# Dark knowledge permuted


@given(st.integers(0, 10_000), st.integers(2, 9))
def test_permutation_keeps_the_true_class_and_the_multiset(seed, classes):
    _, t, y = batch(3, 4, classes, seed=seed)
    shuffled = permute_dark_knowledge(t, y)
    assert torch.equal(shuffled.gather(-1, y[..., None]), t.gather(-1, y[..., None]))
    assert torch.equal(shuffled.sort(-1).values, t.sort(-1).values)


def test_permutation_changes_the_order_and_differs_between_examples():
    t, y = torch.arange(20.0).repeat(50, 1), torch.full((50,), 3)
    shuffled = permute_dark_knowledge(t, y)
    assert (shuffled != t).float().mean() > 0.8
    assert len({tuple(row) for row in shuffled.tolist()}) == 50


@given(st.integers(0, 10_000), st.integers(2, 9), st.floats(0.1, 50))
def test_spreading_keeps_the_true_probability_and_evens_the_rest(seed, classes, temperature):
    _, t, y = batch(3, 4, classes, seed=seed)
    p, even = (soften(x, temperature=temperature) for x in (t, spread_dark_knowledge(t, y, temperature=temperature)))
    true_class = torch.nn.functional.one_hot(y, classes).bool()
    torch.testing.assert_close(even[true_class], p[true_class])
    torch.testing.assert_close(
        even, torch.where(true_class, p, (1 - p[true_class]).reshape(y.shape)[..., None] / (classes - 1)),
        rtol=1e-5, atol=1e-7,
    )  # fmt: skip


def test_permutation_is_reproducible():
    _, t, y = batch(8, 20)

    def draw(seed):
        return permute_dark_knowledge(t, y, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))
    torch.manual_seed(5)
    first = permute_dark_knowledge(t, y)
    torch.manual_seed(5)
    assert torch.equal(permute_dark_knowledge(t, y), first)


def test_every_permutation_is_equally_likely():
    n = 6000
    t, y = torch.tensor([1.0, 2.0, 9.0, 3.0]).repeat(n, 1), torch.full((n,), 2)
    drawn = permute_dark_knowledge(t, y, generator=torch.Generator().manual_seed(0))
    counts = Counter(tuple(row) for row in drawn[:, [0, 1, 3]].tolist())
    assert set(counts) == set(itertools.permutations((1.0, 2.0, 3.0)))
    chi_squared = sum((count - n / 6) ** 2 / (n / 6) for count in counts.values())
    assert chi_squared < 20.5  # 0.999 quantile, five degrees of freedom


@dtypes
def test_permutation_keeps_the_type(dtype):
    _, t, y = batch(8, 20)
    assert permute_dark_knowledge(t.to(dtype), y).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_labels_of_any_integer_type(dtype):
    z, t, y = batch(8, 20)
    assert torch.equal(cross_entropy(z, y.to(dtype)), cross_entropy(z, y))
    shuffled = permute_dark_knowledge(t, y.to(dtype))
    assert torch.equal(shuffled.gather(-1, y[:, None]), t.gather(-1, y[:, None]))


# What is refused, and in which words


def test_bad_labels_are_refused():
    z = torch.zeros(2, 3)
    refused(cross_entropy, TypeError, "labels must be integer class indices", z, torch.tensor([0.0, 1.0]))
    refused(cross_entropy, TypeError, "must be a torch.Tensor of class indices, not list", z, [0, 1])
    sentence = r"labels must lie in 0 … 2, but reach from 0 to 3"
    refused(cross_entropy, ValueError, sentence, z, torch.tensor([0, 3]))
    refused(cross_entropy, ValueError, "but reach from -100 to 0", z, torch.tensor([0, -100]))
    refused(cross_entropy, ValueError, r"labels of shape \(3,\) do not fit", z, torch.tensor([0, 1, 2]))
    refused(
        cross_entropy,
        ValueError,
        r"target probabilities of shape \(2, 4\) do not fit",
        z,
        torch.ones(2, 4) / 4,
    )
    refused(
        cross_entropy,
        TypeError,
        "labels must be integer class indices, not torch.bool",
        z,
        torch.tensor([True, False]),
    )
    hard_and_soft = partial(distillation_loss, torch.ones(2, 3), hard_weight=0.5)
    for function in (permute_dark_knowledge, hard_and_soft, partial(decoupled_kd, torch.ones(2, 3))):
        refused(function, ValueError, sentence, z, torch.tensor([0, 3]))
    refused(permute_dark_knowledge, TypeError, "not torch.float32", z, torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ([0.5, 0.7, -0.2], "target is no distribution: it has entries that are negative or NaN"),
        ([0.5, math.nan, 0.5], "target is no distribution: it has entries that are negative or NaN"),
        ([0.5, 0.2, 0.2], r"target is no distribution: a row sums to 1 only within 0\.1"),
        ([1.0, 1.0, 1.0], "target is no distribution: a row sums to 1 only within 2. Of labels .* BinaryCrossEntropy"),
        ([math.inf, 0.0, 0.0], "target is no distribution: a row sums to 1 only within inf"),
    ],
)
def test_a_target_that_is_no_distribution_is_refused(target, sentence):
    refused(cross_entropy, ValueError, sentence, torch.zeros(1, 3), torch.tensor([target]))


@every_loss
def test_bad_masks_and_reductions_are_refused(loss):
    z, t, y = batch(2, 3)
    options = {"mask": torch.tensor([[True], [True]])}
    refused(loss, ValueError, r"mask of shape \(2, 1\) does not fit losses of shape \(2,\)", z, t, y, **options)
    refused(loss, TypeError, "mask must be a boolean torch.Tensor, not list", z, t, y, mask=[True, False])
    options = {"mask": torch.tensor([1, 0])}
    refused(
        loss,
        TypeError,
        r"mask must be boolean \(True where a position counts\), not torch.int64",
        z,
        t,
        y,
        **options,
    )
    options = {"mask": torch.tensor([False, False])}
    refused(loss, ValueError, "mask leaves no position to average over", z, t, y, **options)
    sentence = 'reduction must be "batchmean", "sum" or "none", not \'mean\''
    refused(loss, ValueError, sentence, z, t, y, reduction="mean")
    refused(loss, ValueError, "there is no position to average over", z[:0], t[:0], y[:0])


@every_loss
@pytest.mark.parametrize("count", [0, -1.0, math.nan, torch.tensor(0), "4", torch.ones(1), torch.ones(2)])
def test_bad_counts_are_refused(loss, count):
    z, t, y = batch(2, 3)
    refused(
        loss,
        ValueError,
        "count must be (a positive number of positions|one number), not",
        z,
        t,
        y,
        count=count,
    )


# Every default


FUNCTIONS = {
    name: function
    for name, function in vars(objectives).items()
    if name in objectives.__all__
    and inspect.isfunction(function)
    and function.__module__.rsplit(".", 1)[1] in ("divergences", "reduction", "response", "sequence", "softening")
}


@each({name: f for name, f in FUNCTIONS.items() if f is not distillation_loss}, "function")
def test_every_default_runs(function):
    z, t, y = batch(2, 4, 6)
    seen = {"student_logits": z, "teacher_logits": t, "logits": z, "labels": y, "outputs": z}
    seen["target"] = t if function is objectives.squared_error else y
    seen |= {"losses": z[..., 0], "mask": y < 3, "num_classes": 6, "tokens": torch.arange(3)}
    required = {
        name: seen[name]
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is parameter.empty
    }
    result = function(**required)
    if function is not objectives.next_token:
        assert torch.isfinite(result).all()


def test_defaults_are_the_published_ones():
    z, t, y = batch(4, 6)
    assert torch.equal(soft_targets(z, t), soft_targets(z, t, temperature=4))
    assert torch.equal(dist_loss(z, t), dist_loss(z, t, inter_weight=1, intra_weight=1, temperature=1))
    published = {"target_weight": 1, "other_weight": 8, "temperature": 4}
    assert torch.equal(decoupled_kd(z, t, y), decoupled_kd(z, t, y, **published))
    assert torch.equal(smooth_labels(y, 6), smooth_labels(y, 6, smoothing=0.1))
    one = distillation_loss(z, t, y, soft_weight=0.9)
    assert torch.equal(one, distillation_loss(z, t, y, soft_weight=0.9, temperature=4))
    refused(distillation_loss, TypeError, "give exactly one of hard_weight and soft_weight", z, t, y)
