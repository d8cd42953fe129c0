import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kdlab.objectives import (
    cross_entropy,
    distillation_loss,
    entropy,
    forward_kl,
    permute_dark_knowledge,
    reduce,
    reverse_kl,
    soft_targets,
    soften,
)
from kdlab.theory import reference


def hard(z, t, y, **options):
    return cross_entropy(z, y, **options)


def hard_with_distribution(z, t, y, **options):
    return cross_entropy(z, soften(t.detach()), **options)


def forward(z, t, y, **options):
    return forward_kl(z, t, temperature=2.0, **options)


def reverse(z, t, y, **options):
    return reverse_kl(z, t, temperature=2.0, **options)


def soft(z, t, y, **options):
    return soft_targets(z, t, temperature=2.0, **options)


def both(z, t, y, **options):
    return distillation_loss(z, t, y, temperature=2.0, hard_weight=0.3, **options)


every_loss = pytest.mark.parametrize("loss", [hard, hard_with_distribution, forward, reverse, soft, both])
every_divergence = pytest.mark.parametrize("divergence", [forward_kl, reverse_kl, soft_targets])

temperatures = st.floats(0.2, 100)
pairs = arrays(
    np.float64, st.tuples(st.just(2), st.integers(1, 3), st.integers(2, 8)), elements=st.floats(-10, 10)
)
pairs = pairs.map(torch.from_numpy)
pairs32 = arrays(
    np.float32,
    st.tuples(st.just(2), st.integers(1, 3), st.integers(2, 8)),
    elements=st.floats(-40, 40, width=32),
).map(torch.from_numpy)


def batch(*shape, scale=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z, t = scale * torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return z, t, torch.randint(shape[-1], shape[:-1], generator=generator)


def gradient(loss, z, *arguments, **options):
    z = z.clone().requires_grad_()
    return torch.autograd.grad(loss(z, *arguments, **options), z)[0]


# Values and gradients against closed forms


@every_loss
@pytest.mark.parametrize("reduction", ["batchmean", "sum", "none"])
def test_gradient_is_that_of_the_value(loss, reduction):
    z, t, y = batch(3, 5)
    mask = torch.tensor([True, False, True])
    assert torch.autograd.gradcheck(
        lambda z: loss(z, t, y, mask=mask, reduction=reduction), z.requires_grad_()
    )


@every_divergence
def test_gradient_in_the_teachers_logits(divergence):
    z, t, _ = batch(3, 5)
    assert torch.autograd.gradcheck(lambda t: divergence(z, t, temperature=3.0), t.requires_grad_())


@every_divergence
@pytest.mark.parametrize("boundary", [0.1, 1.0])
def test_value_and_gradient_are_smooth_where_the_formula_changes(divergence, boundary):
    p = torch.tensor([0.05, 0.05, 0.05, 0.05, 0.8], dtype=torch.float64)
    r = torch.tensor([boundary, -boundary, boundary - 1e-7, -boundary + 1e-7, 0.0], dtype=torch.float64)
    q = p * torch.exp(-r)
    q[-1] = 1 - q[:-1].sum()
    z, t = q.log().requires_grad_(), p.log().requires_grad_()
    assert torch.autograd.gradcheck(lambda z, t: divergence(z, t, temperature=1.0), (z, t))
    r = (p.log() - q.log()).detach()
    torch.testing.assert_close(forward_kl(z, t), (p * r).sum(), rtol=1e-13, atol=0)
    torch.testing.assert_close(reverse_kl(z, t), -(q * r).sum(), rtol=1e-13, atol=0)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl"])
@given(logits=pairs, T=temperatures)
def test_divergences_equal_the_reference(name, logits, T):
    z, t = logits
    loss = {"forward_kl": forward_kl, "reverse_kl": reverse_kl}[name]
    value = loss(z, t, temperature=T, reduction="none").numpy()
    np.testing.assert_allclose(value, getattr(reference, name)(z, t, T), rtol=1e-12, atol=1e-12)
    slope = gradient(loss, z, t, temperature=T, reduction="sum").numpy()
    closed = getattr(reference, f"{name}_gradient")(z, t, T)
    np.testing.assert_allclose(slope, closed, rtol=1e-12, atol=1e-12 * max(1, 1 / T))


@given(pairs, temperatures)
def test_soft_targets_equal_the_reference_times_temperature_squared(logits, T):
    z, t = logits
    value = soft_targets(z, t, temperature=T, reduction="none").numpy()
    np.testing.assert_allclose(
        value, T**2 * reference.forward_kl(z, t, T), rtol=1e-12, atol=1e-12 * max(1, T**2)
    )
    slope = gradient(soft_targets, z, t, temperature=T, reduction="sum").numpy()
    closed = T * (reference.softmax(z, T) - reference.softmax(t, T))
    np.testing.assert_allclose(slope, closed, rtol=1e-12, atol=1e-12 * max(1, T))


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
    torch.testing.assert_close(
        cross_entropy(z, y), torch.nn.functional.cross_entropy(z, y), rtol=1e-12, atol=1e-13
    )


@given(pairs, temperatures)
def test_cross_entropy_is_divergence_plus_entropy(logits, T):
    z, t = logits
    target = soften(t, T)
    expected = forward_kl(z, t, temperature=T) + entropy(t, T).mean()
    torch.testing.assert_close(cross_entropy(z, target, temperature=T), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("pairs", [pairs, pairs32], ids=["float64", "float32"])
def test_divergences_are_never_negative_and_zero_at_equality(pairs):
    @given(pairs, st.floats(1, 1e4))
    def check(logits, T):
        z, t = logits
        for divergence in (forward_kl, reverse_kl, soft_targets):
            assert (divergence(z, t, temperature=T, reduction="none") >= 0).all()
            assert (divergence(t, t.clone(), temperature=T, reduction="none") == 0).all()
            assert (gradient(divergence, t, t.clone(), temperature=T) == 0).all()

    check()


@every_divergence
def test_divergences_are_not_negative_where_probabilities_underflow(divergence):
    z, t = torch.zeros(2, 100_000, 2)
    z[:, 1], t[:, 1] = -104 + 2 * torch.rand(2, 100_000)  # exp is a multiple of the smallest float32
    assert (divergence(z, t, temperature=1.0, reduction="none") >= 0).all()


def test_directions_have_their_known_values():
    teacher, student = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 0.0])
    p = 1 / (1 + math.exp(-2))
    from_teacher = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    from_student = 0.5 * math.log(0.5 / p) + 0.5 * math.log(0.5 / (1 - p))
    assert (round(from_teacher, 4), round(from_student, 4)) == (0.3278, 0.4338)
    assert forward_kl(student, teacher).item() == pytest.approx(from_teacher, rel=1e-6)
    assert reverse_kl(student, teacher).item() == pytest.approx(from_student, rel=1e-6)


@given(pairs, temperatures)
def test_directions_are_each_other_with_roles_exchanged(logits, T):
    z, t = logits
    assert torch.equal(forward_kl(z, t, temperature=T), reverse_kl(t, z, temperature=T))


def test_soft_targets_become_logit_matching():
    z, t, _ = batch(4, 6)
    limit = torch.from_numpy(reference.logit_matching(z, t))

    def off(T):
        return (soft_targets(z, t, temperature=T, reduction="none") - limit).abs().max().item()

    assert off(1e3) / off(1e4) == pytest.approx(10, rel=0.05)  # what is left falls like 1/T
    slope = gradient(soft_targets, z, t, temperature=1e6, reduction="sum")
    centred = (z - z.mean(-1, keepdim=True)) - (t - t.mean(-1, keepdim=True))
    torch.testing.assert_close(slope, centred / 6, rtol=1e-4, atol=1e-5)


@every_divergence
def test_a_temperature_for_each_example(divergence):
    z, t, _ = batch(3, 5)
    T = torch.tensor([[0.5], [2.0], [8.0]], dtype=torch.float64)
    expected = torch.stack([divergence(a, b, temperature=float(c)) for a, b, c in zip(z, t, T, strict=True)])
    torch.testing.assert_close(divergence(z, t, temperature=T, reduction="none"), expected)


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
    for weight in (-0.1, 1.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="a weight must lie between 0 and 1, not"):
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
    torch.testing.assert_close(
        loss(z, t, y, mask=mask), loss(z[mask], t[mask], y[mask]), rtol=1e-12, atol=1e-14
    )


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


@every_loss
@given(seed=st.integers(0, 1000))
def test_names_of_the_classes_do_not_matter(loss, seed):
    z, t, y = batch(4, 6, seed=seed)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    renamed = loss(z[:, order], t[:, order], order.argsort()[y])
    torch.testing.assert_close(renamed, loss(z, t, y), rtol=1e-12, atol=1e-14)


@every_loss
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
    whole = loss(z, t, y, reduction="none")
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


# Precision. A loss computed in float32 may be off by VALUE_ERROR, relative to the float64 oracle on the same
# inputs: at high temperature, by the rounding of log-probabilities over their differences, of order z/T.
# Measured worst cases: 5e-7 up to T = 4, 8e-6 at 100, 7e-4 at 10,000.
VALUE_ERROR = {1e-2: 1e-5, 1.0: 1e-5, 4.0: 1e-5, 1e2: 1e-4, 1e4: 5e-3}
# The gradient is returned in the logits' own type: half of its last digit comes on top of that.
GRADIENT_ERROR = {torch.float32: 0.0, torch.float16: 2e-3, torch.bfloat16: 5e-3}
# Where a distribution is so sure that its gradient all but vanishes, what is left is rounding.
ROUNDING = 1e-6

dtypes = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:]
)
all_temperatures = pytest.mark.parametrize("T", VALUE_ERROR)


def reverse_with_factor(z, t, *, temperature, reduction):
    return temperature**2 * reverse_kl(z, t, temperature=temperature, reduction=reduction)


def textbook(z, t, *, temperature, reduction):
    log_p, log_q = (torch.log_softmax(x / temperature, -1) for x in (t, z))
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(-1)


def value_errors(loss, name, z, t, T):
    """Relative to the oracle; and the oracle's own rounding, which it cannot see beyond."""
    oracle = T**2 * getattr(reference, name)(z.double(), t.double(), T)
    measured = loss(z, t, temperature=T, reduction="none").double().numpy()
    return np.maximum(np.abs(measured - oracle) - 1e-14 * T**2, 0) / np.abs(oracle + 1e-300)


oracles = pytest.mark.parametrize(
    ("loss", "name"),
    [(soft_targets, "forward_kl"), (reverse_with_factor, "reverse_kl")],
    ids=["soft_targets", "reverse"],
)
logit_sizes = pytest.mark.parametrize(
    ("size", "classes"), [(3, 10), (3, 100), (300, 10), (1e4, 10), (1e4, 100)]
)


def pair_of(size, classes, dtype):
    generator = torch.Generator().manual_seed(int(size) + classes)
    return (size * (2 * torch.rand(2, 64, classes, generator=generator) - 1)).to(dtype)


@dtypes
@all_temperatures
@oracles
@logit_sizes
def test_values_and_gradients_are_near_the_float64_oracle(dtype, T, loss, name, size, classes):
    z, t = pair_of(size, classes, dtype)
    value = loss(z, t, temperature=T, reduction="none")
    assert value.dtype == torch.float32 and torch.isfinite(value).all()
    assert value_errors(loss, name, z, t, T).max() <= VALUE_ERROR[T]
    slope = gradient(lambda z: loss(z, t, temperature=T, reduction="none").sum(), z)
    assert slope.dtype == dtype and torch.isfinite(slope).all()
    closed = T**2 * getattr(reference, f"{name}_gradient")(z.double(), t.double(), T)
    off = np.linalg.norm(slope.double().numpy() - closed, axis=-1)
    rounding = ROUNDING * (min(T, 100) if name == "forward_kl" else size)
    rounding += (
        classes**0.5 * torch.finfo(dtype).tiny * torch.finfo(dtype).eps
    )  # the smallest number of the type
    assert (
        off <= (VALUE_ERROR[T] + GRADIENT_ERROR[dtype]) * np.linalg.norm(closed, axis=-1) + rounding
    ).all()


def test_the_textbook_formula_misses_these_bounds():
    z, t = pair_of(3, 10, torch.float32)
    assert value_errors(textbook, "forward_kl", z, t, 1e4).max() > 1000 * VALUE_ERROR[1e4]
    assert (textbook(z, t, temperature=1e4, reduction="none") < 0).any()  # a divergence, negative
    assert (
        value_errors(textbook, "forward_kl", z.double(), t.double(), 1e4).max() < VALUE_ERROR[1e4]
    )  # but correct


@every_loss
@dtypes
def test_opposite_extreme_logits_are_finite(loss, dtype):
    z = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, 1e4]]).to(dtype)
    t, y = z.flip(0), torch.tensor([1, 0])
    assert torch.isfinite(loss(z, t, y))
    assert torch.isfinite(gradient(loss, z, t, y)).all()
    assert cross_entropy(z, y, reduction="none").tolist() == [z[0, 0] - z[0, 1], z[1, 2] - z[1, 0]]


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


# Transforms of torch


@every_loss
def test_compiles_without_a_graph_break(loss):
    z, t, y = batch(4, 5)
    mask = torch.tensor([True, True, False, True])
    torch._dynamo.reset()
    compiled = torch.compile(lambda z, t, y, mask: loss(z, t, y, mask=mask), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(z, t, y, mask), loss(z, t, y, mask=mask))


def test_softening_and_permutation_compile_without_a_graph_break():
    _, t, y = batch(4, 5)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda t, y: (entropy(t, 2.0), permute_dark_knowledge(t, y)), fullgraph=True, backend="eager"
    )
    result, shuffled = compiled(t, y)
    torch.testing.assert_close(result, entropy(t, 2.0))
    assert torch.equal(shuffled.sort(-1).values, t.sort(-1).values)


@every_loss
def test_vmap_and_grad(loss):
    z, t, y = batch(4, 5)
    torch.testing.assert_close(torch.func.vmap(loss)(z, t, y), loss(z, t, y, reduction="none"))
    one_by_one = torch.func.vmap(torch.func.grad(loss))(z, t, y)
    torch.testing.assert_close(one_by_one, gradient(loss, z, t, y, reduction="sum"))


# What is refused, and in which words


def refused(loss, error, sentence, *arguments, **options):
    with pytest.raises(error, match=sentence):
        loss(*arguments, **options)


@every_divergence
def test_bad_logits_are_refused(divergence):
    z = torch.zeros(2, 3)
    bad = z.clone()
    bad[0, 1] = math.nan
    refused(divergence, TypeError, "student_logits must be a torch.Tensor, not list", [[0.0, 1.0]], z)
    refused(divergence, TypeError, "teacher_logits must be a torch.Tensor, not NoneType", z, None)
    refused(
        divergence, TypeError, r"teacher_logits must be floating point \(logits, not labels\)", z, z.long()
    )
    refused(divergence, ValueError, "teacher_logits has 1 of 6 entries that are NaN or infinite", z, bad)
    refused(
        divergence, ValueError, "student_logits has 6 of 6 entries that are NaN or infinite", z + math.inf, z
    )
    refused(divergence, ValueError, "student_logits needs at least two classes", z[:, :1], z[:, :1])


@every_divergence
def test_shapes_that_differ_are_refused(divergence):
    sentence = "student and teacher must share one set of classes, but the student has 3 and the teacher 4"
    refused(divergence, ValueError, sentence, torch.zeros(2, 3), torch.zeros(2, 4))
    sentence = (
        r"student_logits of shape \(2, 3\) and teacher_logits of shape \(1, 3\) do not belong to the same"
    )
    refused(divergence, ValueError, sentence, torch.zeros(2, 3), torch.zeros(1, 3))


@every_divergence
@pytest.mark.parametrize("T", [0, -1.0, math.nan, math.inf, "4", None])
def test_bad_temperatures_are_refused(divergence, T):
    sentence = "temperature must be a positive, finite number, not"
    refused(divergence, ValueError, sentence, torch.zeros(2, 3), torch.zeros(2, 3), temperature=T)


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
        TypeError,
        "labels must be integer class indices, not torch.bool",
        z,
        torch.tensor([True, False]),
    )
    for function in (permute_dark_knowledge, lambda z, y: distillation_loss(z, z, y, hard_weight=0.5)):
        refused(function, ValueError, sentence, z, torch.tensor([0, 3]))
    refused(permute_dark_knowledge, TypeError, "not torch.float32", z, torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ([0.5, 0.7, -0.2], "target is no distribution: it has entries that are negative or NaN"),
        ([0.5, math.nan, 0.5], "target is no distribution: it has entries that are negative or NaN"),
        ([0.5, 0.2, 0.2], r"target is no distribution: a row sums to 1 only within 0\.1"),
        ([1.0, 1.0, 1.0], "target is no distribution: a row sums to 1 only within 2"),
        ([math.inf, 0.0, 0.0], "target is no distribution: a row sums to 1 only within inf"),
    ],
)
def test_a_target_that_is_no_distribution_is_refused(target, sentence):
    refused(cross_entropy, ValueError, sentence, torch.zeros(1, 3), torch.tensor([target]))


@every_loss
def test_bad_masks_and_reductions_are_refused(loss):
    z, t, y = batch(2, 3)
    options = {"mask": torch.tensor([[True], [True]])}
    refused(
        loss, ValueError, r"mask of shape \(2, 1\) does not fit losses of shape \(2,\)", z, t, y, **options
    )
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
