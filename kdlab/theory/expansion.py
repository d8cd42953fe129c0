r"""High-temperature expansions for a symbolic number of classes.

With :math:`x = 1/T`, everything is a power series in :math:`x` whose coefficients are *means over the classes* of
monomials in the logits, such as :math:`\overline{s^2 t} = \frac1N \sum_k s_k^2 t_k`. Writing :math:`s` and :math:`t` for
the student's and the teacher's logit of a generic class therefore covers every :math:`N` at once.

>>> print(sp.latex(kl_series(2).subs(bar(s), 0).subs(bar(t), 0)))
x^{2} \left(- \overline{s t} + \frac{\overline{s^{2}}}{2} + \frac{\overline{t^{2}}}{2}\right)
"""

from typing import Any

import sympy as sp

N = sp.Symbol("N", integer=True, positive=True)
x = sp.Symbol("x", positive=True)  # 1 / T
s, t = sp.symbols("s t", real=True)


def bar(monomial: Any) -> Any:
    r"""The symbol of a monomial's mean over the classes, such as :math:`\overline{s^2 t}`; 1 for the constant."""
    return sp.Symbol(rf"\overline{{{sp.latex(monomial)}}}", real=True) if monomial != 1 else sp.Integer(1)


def mean(polynomial: Any) -> Any:
    r""":math:`\frac1N\sum_k` of a polynomial in ``s`` and ``t``."""
    terms = sp.Poly(sp.expand(polynomial), s, t).terms()
    return sp.expand(sum(coefficient * bar(s**a * t**b) for (a, b), coefficient in terms))


def truncate(expression: Any, order: int) -> Any:
    """The power series in ``x`` up to and including ``x**order``."""
    expanded = sp.series(expression, x, 0, order + 1).removeO()
    return sp.collect(sp.expand(expanded), x)


def _exponential(logit, order):
    return sum((x * logit) ** n / sp.factorial(n) for n in range(order + 1))


def centred(expression: Any) -> Any:
    r"""The expression for logits of mean zero: :math:`\bar s = \bar t = 0`."""
    return sp.expand(expression.subs({bar(s): 0, bar(t): 0}))


def softmax_series(logit: Any, order: int) -> Any:
    r""":math:`q = e^{x s}/\sum_k e^{x s_k}` of the class with the given logit, to ``x**order``."""
    relative = _exponential(logit, order) / mean(_exponential(logit, order))
    return truncate(relative, order) / N


def kl_series(order: int) -> Any:
    r""":math:`D_{\mathrm{KL}}(p\,\|\,q) = \sum_k p_k\,(\log p_k - \log q_k)` with teacher ``t``, student ``s``."""
    log_ratio = x * (t - s) - sp.log(mean(_exponential(t, order))) + sp.log(mean(_exponential(s, order)))
    p_times_N = truncate(_exponential(t, order) / mean(_exponential(t, order)), order)
    summand = truncate(p_times_N * truncate(log_ratio, order), order)
    return sp.collect(sp.expand(mean(summand)), x)


def gradient_series(order: int) -> Any:
    r""":math:`\partial D_{\mathrm{KL}}/\partial s = x\,(q - p)` for a class with student logit ``s``, teacher ``t``."""
    difference = sp.expand(N * (softmax_series(s, order - 1) - softmax_series(t, order - 1)))
    return sp.collect(sp.expand(x * difference), x) / N
