import itertools

import numpy as np
import pytest
import sympy as sp
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kdlab.theory import expansion, reference
from kdlab.theory.symbolic import (
    N,
    T,
    beta,
    i,
    j,
    k,
    l,
    log_softmax,
    m,
    p,
    partial,
    q,
    same,
    softmax,
    t,
    total,
    z,
)

delta = sp.KroneckerDelta
forward = total(p[k] * (sp.log(p[k]) - log_softmax(z, k)), k)
reverse = total(softmax(z, k) * (log_softmax(z, k) - sp.log(p[k])), k)
entropy = -total(softmax(z, k) * log_softmax(z, k), k)
variance = total(q[k] * z[k] ** 2, k) - total(q[k] * z[k], k) ** 2


def mixture(a):
    return beta * p[a] + (1 - beta) * softmax(z, a)


jensen_shannon = beta * total(p[k] * (sp.log(p[k]) - sp.log(mixture(k))), k) + (1 - beta) * total(
    softmax(z, k) * (log_softmax(z, k) - sp.log(mixture(k))), k
)
in_mixture = {p: lambda a: (m[a] - (1 - beta) * q[a]) / beta}
to_mixture = log_softmax(z, i) - sp.log(m[i]) - total(softmax(z, k) * (log_softmax(z, k) - sp.log(m[k])), k)

claims = {
    "log-softmax": (partial(log_softmax(z, i), z[j]), (delta(i, j) - q[j]) / T),
    "softmax": (partial(softmax(z, i), z[j]), q[i] * (delta(i, j) - q[j]) / T),
    "cross-entropy": (
        partial(-total(p[k] * log_softmax(z, k), k), z[i]),
        (q[i] * total(p[k], k) - p[i]) / T,
    ),
    "forward KL": (partial(forward, z[i]), (q[i] * total(p[k], k) - p[i]) / T),
    "reverse KL": (
        partial(reverse, z[i]),
        softmax(z, i) / T * (log_softmax(z, i) - sp.log(p[i]) - reverse),
    ),
    "Jensen-Shannon": (
        partial(jensen_shannon, z[i], given=in_mixture),
        (1 - beta) * softmax(z, i) / T * to_mixture,
    ),
    "entropy in T": (partial(entropy, T), variance / T**3),
    "entropy in z": (
        partial(entropy, z[i]),
        -softmax(z, i) / T * (log_softmax(z, i) - total(softmax(z, k) * log_softmax(z, k), k)),
    ),
}


@pytest.mark.parametrize("name", claims)
def test_derivative_holds_for_every_number_of_classes(name):
    assert same(*claims[name])


@pytest.mark.parametrize("name", claims)
@pytest.mark.parametrize("mistake", ["sign", "factor", "T squared", "one class more"])
def test_same_refuses_a_wrong_answer(name, mistake):
    derived, right = claims[name]
    wrong = {"sign": -right, "factor": 2 * right, "T squared": T**2 * right, "one class more": right + q[l]}[mistake]
    assert not same(derived, wrong)


def test_same_refuses_formulas_that_forget_a_term():
    assert not same(claims["softmax"][0], -q[i] * q[j] / T)
    assert not same(claims["reverse KL"][0], softmax(z, i) / T * (log_softmax(z, i) - sp.log(p[i])))
    assert not same(claims["entropy in T"][0], total(q[k] * z[k] ** 2, k) / T**3)


def test_same_keeps_two_sets_of_logits_apart():
    assert not same(softmax(t, i), softmax(z, i))
    assert not same(softmax(t, i), 1 / N)


def test_targets_given_by_the_teachers_logits_are_constants():
    teacher = total(softmax(t, k) * (log_softmax(t, k) - log_softmax(z, k)), k)
    gradient = partial(teacher, z[i])
    assert any(e.base == t for e in gradient.atoms(sp.Indexed))  # it is not (q_i - 1/N)/T


N3 = 3
zs, ts = sp.symbols("z1:4", real=True), sp.symbols("t1:4", real=True)
qs, ps = ([sp.exp(a / T) / sum(sp.exp(b / T) for b in logits) for a in logits] for logits in (zs, ts))
VALUES = dict(zip((*zs, *ts, T, beta), (0.3, -1.2, 2.0, 1.5, 0.2, -0.7, 1.7, 0.3), strict=True))


def explicit(expression):
    """A symbolic result with N = 3, its sums written out, as a number."""
    expression = sp.sympify(expression).subs(N, N3).doit()
    for index in range(N3):
        ms = beta * ps[index] + (1 - beta) * qs[index]
        for base, value in ((q, qs[index]), (p, ps[index]), (m, ms), (z, zs[index]), (t, ts[index])):
            expression = expression.subs(base[index + 1], value)
    return float(expression.subs(VALUES))


def by_differentiating(expression, variable):
    return float(sp.diff(expression, variable).subs(VALUES))


def test_three_classes_written_out_agree():
    constant = [sp.Symbol(f"p{a}", positive=True) for a in range(N3)]
    fixed = dict(zip(constant, [float(e.subs(VALUES)) for e in ps], strict=True))
    kl = sum(c * (sp.log(c) - sp.log(b)) for c, b in zip(constant, qs, strict=True)).subs(fixed)
    rkl = sum(b * (sp.log(b) - sp.log(c)) for c, b in zip(constant, qs, strict=True)).subs(fixed)
    mix = [beta * c + (1 - beta) * b for c, b in zip(constant, qs, strict=True)]
    js = sum(
        beta * c * sp.log(c / a) + (1 - beta) * b * sp.log(b / a) for c, b, a in zip(constant, qs, mix, strict=True)
    ).subs(fixed)
    h = -sum(b * sp.log(b) for b in qs)
    assert explicit(claims["entropy in T"][0]) == pytest.approx(by_differentiating(h, T), rel=1e-12)
    for a in range(N3):
        for name, value in (
            ("forward KL", kl),
            ("reverse KL", rkl),
            ("Jensen-Shannon", js),
            ("entropy in z", h),
        ):
            derived = explicit(claims[name][0].subs(i, a + 1))
            assert derived == pytest.approx(by_differentiating(value, zs[a]), rel=1e-12), name
        for b in range(N3):
            derived = explicit(claims["softmax"][0].subs({i: a + 1, j: b + 1}))
            assert derived == pytest.approx(by_differentiating(qs[a], zs[b]), rel=1e-12)


STUDENT, TEACHER = np.array([1.1, -0.4, 0.3, 2.0, -1.7]), np.array([0.2, 0.9, -1.3, 1.5, 0.4])


def evaluate(series, order, temperature, s=0.0, t=0.0):
    """A series of ``expansion`` at given logits: each mean symbol gets its mean."""
    values = {expansion.x: 1 / temperature, expansion.N: len(STUDENT), expansion.s: s, expansion.t: t}
    for a, b in itertools.product(range(order + 1), repeat=2):
        if 0 < a + b <= order:
            values[expansion.bar(expansion.s**a * expansion.t**b)] = np.mean(STUDENT**a * TEACHER**b)
    return float(series.subs(values))


def assert_remainder_shrinks(order, remainder):
    """Doubling T divides what a series of this order leaves out by 2**(order + 1)."""
    left, right = np.linalg.norm(remainder(40.0)), np.linalg.norm(remainder(80.0))
    assert np.log2(left / right) == pytest.approx(order + 1, abs=0.3)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_softmax_series(order):
    series = expansion.softmax_series(expansion.s, order)
    assert_remainder_shrinks(
        order,
        lambda T: [evaluate(series, order, T, s=a) for a in STUDENT] - reference.softmax(STUDENT, T),
    )


@pytest.mark.parametrize("order", [2, 3, 4])
def test_kl_series(order):
    series = expansion.kl_series(order)
    assert_remainder_shrinks(order, lambda T: evaluate(series, order, T) - reference.forward_kl(STUDENT, TEACHER, T))


@pytest.mark.parametrize("order", [2, 3, 4])
def test_gradient_series(order):
    series = expansion.gradient_series(order)
    assert_remainder_shrinks(
        order,
        lambda T: (
            [evaluate(series, order, T, s=a, t=b) for a, b in zip(STUDENT, TEACHER, strict=True)]
            - reference.forward_kl_gradient(STUDENT, TEACHER, T)
        ),
    )


def test_leading_term_of_kl_is_logit_matching():
    leading = expansion.centred(expansion.kl_series(2))
    s, t, x = expansion.s, expansion.t, expansion.x
    assert sp.expand(leading - x**2 / 2 * expansion.mean((s - t) ** 2)) == 0


def test_leading_term_of_the_gradient_is_the_difference_of_centred_logits():
    leading = expansion.centred(expansion.gradient_series(2))
    assert sp.expand(leading - expansion.x**2 * (expansion.s - expansion.t) / expansion.N) == 0


rows = arrays(np.float64, st.tuples(st.just(2), st.integers(2, 8)), elements=st.floats(-10, 10))
temperatures = st.floats(0.2, 20)


def softened(logits, T):
    return torch.log_softmax(torch.tensor(logits) / T, -1)


def divergence(log_p, log_q):
    return (log_p.exp() * (log_p - log_q)).sum(-1)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jensen_shannon", "cross_entropy"])
@given(logits=rows, T=temperatures, b=st.floats(0.05, 0.95))
def test_reference_values_and_gradients_equal_autograd(name, logits, T, b):
    s, teacher = logits
    student = torch.tensor(s, requires_grad=True)
    log_p, log_q = softened(teacher, T), torch.log_softmax(student / T, -1)
    if name == "forward_kl":
        value, arguments = divergence(log_p, log_q), (s, teacher, T)
    elif name == "reverse_kl":
        value, arguments = divergence(log_q, log_p), (s, teacher, T)
    elif name == "jensen_shannon":
        log_m = torch.log(b * log_p.exp() + (1 - b) * log_q.exp())
        value = b * divergence(log_p, log_m) + (1 - b) * divergence(log_q, log_m)
        arguments = (s, teacher, T, b)
    else:
        value, arguments = -(log_p.exp() * log_q).sum(), (s, log_p.exp().numpy(), T)
    (gradient,) = torch.autograd.grad(value, student)
    scale = max(1.0, 1 / T) * 1e-12
    closed = getattr(reference, f"{name}_gradient")(*arguments)
    np.testing.assert_allclose(closed, gradient.numpy(), rtol=1e-12, atol=scale)
    if name != "cross_entropy":
        np.testing.assert_allclose(getattr(reference, name)(*arguments), value.item(), rtol=1e-12, atol=scale)


def test_cross_entropy_gradient_of_a_target_that_is_no_distribution():
    student = torch.tensor(STUDENT, requires_grad=True)
    target = np.array([0.5, 1.0, 0.0, 0.7, 0.1])
    (gradient,) = torch.autograd.grad(-(torch.tensor(target) * torch.log_softmax(student / 2, -1)).sum(), student)
    np.testing.assert_allclose(reference.cross_entropy_gradient(STUDENT, target, 2.0), gradient, rtol=1e-12)


@given(rows, temperatures)
def test_reference_entropy_slope_is_the_derivative(logits, T):
    temperature = torch.tensor(T, dtype=torch.float64, requires_grad=True)
    log_q = torch.log_softmax(torch.tensor(logits[0]) / temperature, -1)
    (slope,) = torch.autograd.grad(-(log_q.exp() * log_q).sum(), temperature)
    np.testing.assert_allclose(reference.entropy_slope(logits[0], T), slope, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("order", [1, 2])
def test_reference_high_temperature_softmax(order):
    assert_remainder_shrinks(
        order,
        lambda T: reference.softmax_high_temperature(STUDENT, T, order) - reference.softmax(STUDENT, T),
    )


@given(rows)
def test_logit_matching_is_the_limit_and_ignores_shifts(logits):
    s, teacher = logits
    limit = reference.logit_matching(s, teacher)
    np.testing.assert_allclose(reference.logit_matching(s + 3, teacher - 5), limit, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(limit, ((s - s.mean() - teacher + teacher.mean()) ** 2).mean() / 2, atol=1e-12)
    T = 1e4
    np.testing.assert_allclose(T**2 * reference.forward_kl(s, teacher, T), limit, rtol=2e-2, atol=1e-6)


def test_effective_exponent_of_a_power_law():
    x = np.geomspace(1, 100, 9)
    np.testing.assert_allclose(reference.effective_exponent(x, 3 * x**-1.5), -1.5)
