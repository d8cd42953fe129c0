"""Divergences: closed forms, what every divergence has in common, and how many digits are right."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from losses import (
    CLOSED_FORMS,
    DIVERGENCES,
    batch,
    each,
    every_divergence,
    gradient,
    pairs,
    pairs32,
    refused,
    temperatures,
)

from kdlab.objectives import (
    forward_kl,
    generalised_jsd,
    negative_log_acceptance,
    reverse_kl,
    skewed_forward_kl,
    skewed_reverse_kl,
    soft_targets,
    total_variation,
)
from kdlab.theory import reference

every_closed_form = pytest.mark.parametrize(
    ("loss", "value", "slope"), [pytest.param(*forms, id=name) for name, forms in CLOSED_FORMS.items()]
)
#: They have a kink, and are first order near equality.
OVERLAPS = (total_variation, negative_log_acceptance)
both_skewed = each({"forward": skewed_forward_kl, "reverse": skewed_reverse_kl}, "skewed")
fractions = st.floats(0.01, 0.99)


def losses_of(divergence, z, t, **options):
    return divergence(z, t, temperature=1.0, reduction="none", **options)


# Values and gradients against closed forms


@every_closed_form
@given(logits=pairs, T=temperatures)
def test_value_and_gradient_are_the_textbooks(loss, value, slope, logits, T):
    z, t = logits
    found = loss(z, t, temperature=T, reduction="none").numpy()
    np.testing.assert_allclose(found, value(z, t, T), rtol=1e-12, atol=1e-12 * max(1, T**2))
    found = gradient(loss, z, t, temperature=T, reduction="sum").numpy()
    kink = np.abs(reference.softmax(z, T) - reference.softmax(t, T)) < 1e-12
    if loss not in OVERLAPS or not kink.any():
        np.testing.assert_allclose(found, slope(z, t, T), rtol=1e-11, atol=1e-12 * max(T, 1 / T))


@every_divergence
def test_gradients_in_student_teacher_and_temperature(divergence):
    z, t, _ = batch(3, 5)
    T = torch.tensor([[0.7], [2.0], [9.0]], dtype=torch.float64)
    inputs = [x.requires_grad_() for x in (z, t, T)]
    assert torch.autograd.gradcheck(lambda z, t, T: divergence(z, t, temperature=T, reduction="none"), inputs)


@every_divergence
@pytest.mark.parametrize("boundary", [0.1, 1.0])
def test_gradients_where_the_formula_changes(divergence, boundary):
    p = torch.tensor([0.05, 0.05, 0.05, 0.05, 0.8], dtype=torch.float64)
    r = torch.tensor([boundary, -boundary, boundary - 1e-7, -boundary + 1e-7, 0.0], dtype=torch.float64)
    q = p * torch.exp(-r)
    q[-1] = 1 - q[:-1].sum()
    z, t = q.log().requires_grad_(), p.log().requires_grad_()
    assert torch.autograd.gradcheck(lambda z, t: divergence(z, t, temperature=1.0), (z, t))
    r = (p.log() - q.log()).detach()
    torch.testing.assert_close(forward_kl(z, t), (p * r).sum(), rtol=1e-13, atol=0)
    torch.testing.assert_close(reverse_kl(z, t), -(q * r).sum(), rtol=1e-13, atol=0)


def test_directions_have_their_known_values():
    teacher, student = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 0.0])
    p = 1 / (1 + math.exp(-2))
    from_teacher = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    from_student = 0.5 * math.log(0.5 / p) + 0.5 * math.log(0.5 / (1 - p))
    assert (round(from_teacher, 4), round(from_student, 4)) == (0.3278, 0.4338)
    assert forward_kl(student, teacher).item() == pytest.approx(from_teacher, rel=1e-6)
    assert reverse_kl(student, teacher).item() == pytest.approx(from_student, rel=1e-6)
    assert total_variation(student, teacher).item() == pytest.approx(p - 0.5, rel=1e-6)


@every_divergence
def test_a_temperature_for_each_example(divergence):
    z, t, _ = batch(3, 5)
    T = torch.tensor([[0.5], [2.0], [8.0]], dtype=torch.float64)
    expected = torch.stack([divergence(a, b, temperature=float(c)) for a, b, c in zip(z, t, T, strict=True)])
    torch.testing.assert_close(divergence(z, t, temperature=T, reduction="none"), expected)


# What every divergence has in common


@pytest.mark.parametrize("pairs", [pairs, pairs32], ids=["float64", "float32"])
@every_divergence
def test_never_negative_and_zero_at_equality(divergence, pairs):
    @given(pairs, st.floats(0.1, 1e4))
    def check(logits, T):
        z, t = logits
        assert (divergence(z, t, temperature=T, reduction="none") >= 0).all()
        assert (divergence(t, t.clone(), temperature=T, reduction="none") == 0).all()
        slope = gradient(divergence, t, t.clone(), temperature=T)
        assert (slope.abs() <= 20 * torch.finfo(t.dtype).eps / T).all()
        if divergence in (forward_kl, reverse_kl, soft_targets, *OVERLAPS):
            assert (slope == 0).all()

    check()


@every_divergence
def test_not_negative_where_probabilities_underflow(divergence):
    z, t = torch.zeros(2, 100_000, 2)
    z[:, 1], t[:, 1] = -104 + 2 * torch.rand(2, 100_000)  # exp is a multiple of the smallest float32
    assert (losses_of(divergence, z, t) >= 0).all()


@every_divergence
@given(logits=pairs, T=temperatures, shifts=st.tuples(st.floats(-100, 100), st.floats(-100, 100)))
def test_shifting_all_logits_changes_nothing(divergence, logits, T, shifts):
    z, t = logits
    shifted = divergence(z + shifts[0], t + shifts[1], temperature=T)
    torch.testing.assert_close(shifted, divergence(z, t, temperature=T), rtol=1e-7, atol=1e-11 * max(1, T**2))


@every_divergence
@given(logits=pairs)
def test_gradients_move_no_mass_in_or_out(divergence, logits):
    slope = gradient(divergence, *logits, temperature=2.0)
    torch.testing.assert_close(slope.sum(-1), torch.zeros(len(slope), dtype=slope.dtype), rtol=0, atol=1e-14)


@given(pairs, temperatures, fractions)
def test_each_is_another_with_roles_exchanged(logits, T, fraction):
    z, t = logits
    how = {"temperature": T, "reduction": "none"}
    assert torch.equal(forward_kl(z, t, **how), reverse_kl(t, z, **how))
    assert torch.equal(skewed_forward_kl(z, t, skew=fraction, **how), skewed_reverse_kl(t, z, skew=fraction, **how))
    assert torch.equal(total_variation(z, t, **how), total_variation(t, z, **how))
    for scaled in (False, True):
        one = generalised_jsd(z, t, beta=fraction, scaled=scaled, **how)
        other = generalised_jsd(t, z, beta=1 - fraction, scaled=scaled, **how)
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-14)


# Mixtures: ends, continuity, bounds


@both_skewed
def test_skew_ends_at_the_divergence_and_at_zero(skewed):
    z, t, _ = batch(4, 6)
    plain = {skewed_forward_kl: forward_kl, skewed_reverse_kl: reverse_kl}[skewed]
    assert torch.equal(skewed(z, t, skew=0), plain(z, t))
    assert torch.equal(gradient(skewed, z, t, skew=0.0), gradient(plain, z, t))
    assert skewed(z, t, skew=1) == 0 and not gradient(skewed, z, t, skew=1.0).any()


def test_beta_ends_at_zero_or_scaled_at_the_two_kl():
    z, t, _ = batch(4, 6)
    for beta, plain in ((0, forward_kl), (1, reverse_kl)):
        assert generalised_jsd(z, t, beta=beta) == 0 and not gradient(generalised_jsd, z, t, beta=beta).any()
        scaled = partial(generalised_jsd, beta=beta, scaled=True)
        assert torch.equal(scaled(z, t), plain(z, t))
        assert torch.equal(gradient(scaled, z, t), gradient(plain, z, t))


towards_the_end = pytest.mark.parametrize(
    ("family", "end"),
    [
        pytest.param(lambda e: partial(skewed_forward_kl, skew=e), forward_kl, id="skewed forward"),
        pytest.param(lambda e: partial(skewed_reverse_kl, skew=e), reverse_kl, id="skewed reverse"),
        pytest.param(lambda e: partial(generalised_jsd, beta=e, scaled=True), forward_kl, id="beta to 0"),
        pytest.param(lambda e: partial(generalised_jsd, beta=1 - e, scaled=True), reverse_kl, id="beta to 1"),
        pytest.param(
            lambda e: partial(skewed_forward_kl, skew=1 - e),
            partial(skewed_forward_kl, skew=1),
            id="skewed forward to 1",
        ),
        pytest.param(lambda e: partial(generalised_jsd, beta=e), partial(generalised_jsd, beta=0), id="unscaled"),
    ],
)


@towards_the_end
def test_ends_are_reached_without_a_jump(family, end):
    z, t, _ = batch(4, 6, scale=1.0)

    def off(e):
        value = abs(family(e)(z, t) - end(z, t)).item()
        return max(value, (gradient(family(e), z, t) - gradient(end, z, t)).abs().max().item())

    assert 0 < off(1e-6) < 1e-4
    for e in (1e-9, 1e-12, 1e-15, 1e-16, 1e-17, 1e-300):
        assert off(e) <= 100 * e + 1e-14


@given(pairs32, fractions)
def test_mixtures_are_zero_at_equality(logits, fraction):
    t = logits[0]
    for mixture in (
        partial(skewed_forward_kl, skew=fraction),
        partial(skewed_reverse_kl, skew=fraction),
        partial(generalised_jsd, beta=fraction),
        partial(generalised_jsd, beta=fraction, scaled=True),
    ):
        assert mixture(t, t.clone()) == 0
        assert gradient(mixture, t, t.clone()).abs().max() < 1e-6 / min(fraction, 1 - fraction)


@given(pairs, temperatures, fractions)
def test_bounds(logits, T, fraction):
    z, t = logits
    how = {"temperature": T, "reduction": "none"}
    for skewed in (skewed_forward_kl, skewed_reverse_kl):
        assert (skewed(z, t, skew=fraction, **how) <= -math.log(fraction) + 1e-12).all()
    jsd, tv = generalised_jsd(z, t, **how), total_variation(z, t, **how)
    assert (jsd <= math.log(2) + 1e-12).all()
    assert (jsd <= tv * math.log(2) + 1e-12).all()  # Lin (1991)
    coin = -fraction * math.log(fraction) - (1 - fraction) * math.log(1 - fraction)
    assert (generalised_jsd(z, t, beta=fraction, **how) <= coin + 1e-12).all()
    assert (tv <= 1 + 1e-12).all()
    for kl in (forward_kl, reverse_kl):
        assert (tv <= (kl(z, t, **how) / 2).sqrt() + 1e-7).all()  # Pinsker
    assert (skewed_forward_kl(z, t, skew=fraction, **how) <= (1 - fraction) * forward_kl(z, t, **how) + 1e-12).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_bounds_are_reached_where_nothing_is_shared(dtype):
    z, t = torch.tensor([[1e4, 0.0]], dtype=dtype), torch.tensor([[0.0, 1e4]], dtype=dtype)
    for skewed in (skewed_forward_kl, skewed_reverse_kl):
        assert skewed(z, t, skew=0.1).item() == pytest.approx(math.log(10), rel=1e-6)
    assert generalised_jsd(z, t).item() == pytest.approx(math.log(2), rel=1e-6)
    assert total_variation(z, t).item() == 1
    assert forward_kl(z, t) == reverse_kl(z, t) == 1e4


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan, math.inf, "0.5", None])
def test_fractions_out_of_range_are_refused(bad):
    z = torch.zeros(2, 3)
    refused(skewed_forward_kl, ValueError, "skew must be a number from 0 to 1, not", z, z, skew=bad)
    refused(skewed_reverse_kl, ValueError, "skew must be a number from 0 to 1, not", z, z, skew=bad)
    refused(generalised_jsd, ValueError, "beta must be a number from 0 to 1, not", z, z, beta=bad)


# Precision. A loss computed in float32 may be off by VALUE_ERROR, relative to the float64 oracle on the same
# inputs: at high temperature, by the rounding of log-probabilities over their differences, of order z/T.
# Measured worst cases: 5e-7 up to T = 4, 8e-6 at 100, 7e-4 at 10,000.
VALUE_ERROR = {1e-2: 1e-5, 0.1: 1e-5, 1.0: 1e-5, 4.0: 1e-5, 1e2: 1e-4, 1e4: 5e-3}
# The gradient is returned in the logits' own type: half of its last digit comes on top of that.
GRADIENT_ERROR = {torch.float32: 0.0, torch.float16: 2e-3, torch.bfloat16: 5e-3}
# Where a distribution is so sure that its gradient all but vanishes, what is left is rounding.
ROUNDING = 1e-6

SIZES = [(3, 10), (3, 100), (300, 10), (1e4, 10), (1e4, 100)]
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:])
all_temperatures = pytest.mark.parametrize("T", VALUE_ERROR)


def textbook(z, t, *, temperature, reduction):
    log_p, log_q = (torch.log_softmax(x / temperature, -1) for x in (t, z))
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(-1)


def to_order_one(loss, T):
    """What brings a divergence to the same size at every temperature."""
    return {soft_targets: 1, textbook: 1, **dict.fromkeys(OVERLAPS, T)}.get(loss, T**2)


def value_errors(loss, value, z, t, T):
    """Relative to the oracle; beyond its own rounding, and for an overlap beyond that of a probability."""
    factor = to_order_one(loss, T)
    oracle = factor * value(z.double(), t.double(), T)
    found = factor * loss(z, t, temperature=T, reduction="none").double().numpy()
    unseen = 2e-7 * T if loss in OVERLAPS else 1e-13 * T**2
    return np.maximum(np.abs(found - oracle) - unseen, 0) / np.abs(oracle + 1e-300)


def pair_of(size, classes, dtype):
    generator = torch.Generator().manual_seed(int(size) + classes)
    return (size * (2 * torch.rand(2, 64, classes, generator=generator) - 1)).to(dtype)


@dtypes
@all_temperatures
@every_closed_form
def test_values_and_gradients_are_near_the_float64_oracle(dtype, T, loss, value, slope):
    factor = to_order_one(loss, T)
    for size, classes in SIZES:
        z, t = pair_of(size, classes, dtype)
        found = loss(z, t, temperature=T, reduction="none")
        assert found.dtype == torch.float32 and torch.isfinite(found).all()
        assert value_errors(loss, value, z, t, T).max() <= VALUE_ERROR[T]
        found = gradient(lambda z, t=t: factor * loss(z, t, temperature=T, reduction="sum"), z)
        assert found.dtype == dtype and torch.isfinite(found).all()
        closed = factor * slope(z.double(), t.double(), T)
        off = np.linalg.norm(found.double().numpy() - closed, axis=-1)
        allowed = (VALUE_ERROR[T] + GRADIENT_ERROR[dtype]) * np.linalg.norm(closed, axis=-1)
        allowed += ROUNDING * {
            reverse_kl: size,
            negative_log_acceptance: max(size, 1),
            total_variation: 1,
        }.get(loss, min(T, 100))
        allowed += classes**0.5 * torch.finfo(dtype).tiny * torch.finfo(dtype).eps  # the type's smallest number
        if loss in OVERLAPS:  # which side of its kink a class is on may be rounding
            q, p = reference.softmax(z.double(), T), reference.softmax(t.double(), T)
            steep = 1 if loss is total_variation else 1 / np.minimum(p, q).sum(-1).clip(1e-300)
            allowed += steep * (q * (np.abs(q - p) < 1e-5 * q)).sum(-1)
        assert (off <= allowed).all()


def test_the_textbook_formula_misses_these_bounds():
    z, t = pair_of(3, 10, torch.float32)
    value = CLOSED_FORMS["soft_targets"][1]
    assert value_errors(textbook, value, z, t, 1e4).max() > 1000 * VALUE_ERROR[1e4]
    assert (textbook(z, t, temperature=1e4, reduction="none") < 0).any()  # a divergence, negative
    assert value_errors(textbook, value, z.double(), t.double(), 1e4).max() < VALUE_ERROR[1e4]  # but correct


#: The second derivative of the divergence as a function of the ratio p/q, at ratio one.
CURVATURES = {
    "forward_kl": 1,
    "reverse_kl": 1,
    "skewed_forward_kl": 0.9**2,
    "skewed_reverse_kl": 0.9**2,
    "jsd": 0.25,
    "scaled_jsd": 1,
    "soft_targets": 1,
}


@pytest.mark.parametrize("name", CURVATURES)
@pytest.mark.parametrize(("dtype", "apart", "right"), [(torch.float64, 1e-6, 1e-5), (torch.float32, 1e-3, 1e-2)])
def test_near_equality_each_is_its_curvature_times_a_variance(name, dtype, apart, right):
    _, t, _ = batch(8, 10, scale=1.0)
    t = t.to(dtype)
    z = t + apart * torch.randn(8, 10, dtype=dtype)
    difference, p = (z - t).double().numpy(), reference.softmax(t)
    variance = (p * difference**2).sum(-1) - (p * difference).sum(-1) ** 2
    found = losses_of(DIVERGENCES[name], z, t).double().numpy()
    np.testing.assert_allclose(found, CURVATURES[name] / 2 * variance, rtol=right)


@both_skewed
@pytest.mark.parametrize("skew", [0.001, 0.9, 0.999])
def test_a_mixture_that_is_nearly_one_of_its_parts_keeps_its_digits(skewed, skew):
    z, t, _ = batch(64, 10)
    found = skewed(z.float(), t.float(), skew=skew, reduction="none")
    oracle = skewed(z, t, skew=skew, reduction="none")
    torch.testing.assert_close(found.double(), oracle, rtol=2e-4, atol=0)


def test_near_equality_the_textbook_formula_loses_its_digits():
    _, t, _ = batch(8, 10, scale=1.0)
    z = t + 1e-6 * torch.randn(8, 10, dtype=torch.float64)
    off = reference.jensen_shannon(z, t) / losses_of(generalised_jsd, z, t).numpy() - 1
    assert np.abs(off).max() > 1e-4


# What is refused, and in which words


@every_divergence
def test_bad_logits_are_refused(divergence):
    z = torch.zeros(2, 3)
    bad = z.clone()
    bad[0, 1] = math.nan
    refused(divergence, TypeError, "student_logits must be a torch.Tensor, not list", [[0.0, 1.0]], z)
    refused(divergence, TypeError, "teacher_logits must be a torch.Tensor, not NoneType", z, None)
    refused(divergence, TypeError, r"teacher_logits must be floating point \(logits, not labels\)", z, z.long())
    refused(divergence, ValueError, "teacher_logits has 1 of 6 entries that are NaN or infinite", z, bad)
    refused(divergence, ValueError, "student_logits has 6 of 6 entries that are NaN or infinite", z + math.inf, z)
    refused(divergence, ValueError, "student_logits needs at least two classes", z[:, :1], z[:, :1])


@every_divergence
def test_shapes_that_differ_are_refused(divergence):
    sentence = "student and teacher must share one set of classes, but the student has 3 and the teacher 4"
    refused(divergence, ValueError, sentence, torch.zeros(2, 3), torch.zeros(2, 4))
    sentence = r"student_logits of shape \(2, 3\) and teacher_logits of shape \(1, 3\) do not belong to the same"
    refused(divergence, ValueError, sentence, torch.zeros(2, 3), torch.zeros(1, 3))


@every_divergence
@pytest.mark.parametrize("T", [0, -1.0, math.nan, math.inf, "4", None])
def test_bad_temperatures_are_refused(divergence, T):
    sentence = "temperature must be a positive, finite number, not"
    refused(divergence, ValueError, sentence, torch.zeros(2, 3), torch.zeros(2, 3), temperature=T)


@every_divergence
def test_bad_temperatures_of_each_example_are_refused(divergence):
    z = torch.zeros(2, 3)
    refused(divergence, ValueError, "ends in an axis of size 1", z, z, temperature=torch.ones(2))
    T = torch.tensor([[1.0], [0.0]])
    refused(divergence, ValueError, "positive and finite in every entry", z, z, temperature=T)
