r"""Softmax calculus by SymPy for a *symbolic* number of classes.

Logits are indexed symbols :math:`z_k`, sums run over :math:`k = 1 \dots N` with :math:`N` a symbol, and
:math:`\partial z_k / \partial z_i` is a Kronecker delta. Nothing is assumed but the definition of the softmax: SymPy
differentiates, :func:`contract` sums the deltas away, :func:`in_probabilities` names :math:`q` where it stands.

>>> partial(log_softmax(z, i), z[j])
KroneckerDelta(i, j)/T - q[j]/T
"""

from typing import Any

import sympy as sp

N = sp.Symbol("N", integer=True, positive=True)
T = sp.Symbol("T", positive=True)
beta = sp.Symbol("beta", positive=True)
i, j, k, l = sp.symbols("i j k l", integer=True)
z = sp.IndexedBase("z", real=True)  # student logits
t = sp.IndexedBase("t", real=True)  # teacher logits
q = sp.IndexedBase("q", positive=True)  # softmax(z / T)
p = sp.IndexedBase("p", positive=True)  # a target distribution, constant in z
m = sp.IndexedBase("m", positive=True)  # the mixture of the Jensen-Shannon divergence

_bound = sp.Symbol("n", integer=True)  # the index of every sum, once it is written in probabilities


def total(summand: Any, index: Any) -> Any:
    r""":math:`\sum_{index=1}^N` of ``summand``."""
    return sp.Sum(summand, (index, 1, N))


def partition(logits: Any) -> Any:
    r""":math:`Z = \sum_n e^{z_n/T}`."""
    return total(sp.exp(logits[_bound] / T), _bound)


def softmax(logits: Any, index: Any) -> Any:
    r""":math:`e^{z_{index}/T} / Z`."""
    return sp.exp(logits[index] / T) / partition(logits)


def log_softmax(logits: Any, index: Any) -> Any:
    r""":math:`z_{index}/T - \log Z`."""
    return logits[index] / T - sp.log(partition(logits))


def _linear(summand, index):
    """The sum over ``index``, term by term: deltas sum themselves away, constants come out."""
    out = sp.Integer(0)
    for term in sp.Add.make_args(sp.expand(summand)):
        delta = next((d for d in term.atoms(sp.KroneckerDelta) if index in d.free_symbols), None)
        if delta is not None:
            other = next(a for a in delta.args if a != index)
            out += (term / delta).subs(index, other)
            continue
        constant, rest = term.as_independent(index, as_Add=False)
        out += constant * (N if rest == 1 else total(rest, index))
    return out


def contract(expression: Any) -> Any:
    r"""Carry out :math:`\sum_k \delta_{jk} f_k = f_j` (for :math:`1 \le j \le N`), innermost sums first."""
    return expression.replace(lambda e: isinstance(e, sp.Sum), lambda s: _linear(s.function, s.limits[0][0]))


def in_probabilities(expression: Any, logits: Any = z, probability: Any = q, given: Any = None) -> Any:
    r"""Write :math:`e^{z_k/T} = Z q_k`, use :math:`\sum_k q_k = 1`, and let :math:`Z` cancel; name every summation index
    alike.

    ``given`` maps an indexed symbol to a function of the index that replaces it, such as ``{p: lambda a: …}``.
    """
    Z = sp.Symbol("Z", positive=True)

    def named(exponential):
        exponent = sp.expand(exponential.args[0] * T)
        indexed = [e for e in exponent.atoms(sp.Indexed) if e.base == logits]
        rest = exponent - sum(exponent.coeff(e) * e for e in indexed)
        return sp.exp(rest / T) * sp.Mul(*((Z * probability[e.indices[0]]) ** exponent.coeff(e) for e in indexed))

    def normalised(s):
        index = s.limits[0][0]
        return {probability[index]: sp.Integer(1), Z * probability[index]: Z}.get(s.function, s)

    def is_sum(e):
        return isinstance(e, sp.Sum)

    expression = expression.replace(lambda e: isinstance(e, sp.exp), named).replace(is_sum, normalised)
    for base, value in (given or {}).items():
        expression = expression.replace(
            lambda e, base=base: isinstance(e, sp.Indexed) and e.base == base,
            lambda e, value=value: value(e.indices[0]),
        )
    expression = contract(expression).replace(is_sum, normalised)
    return sp.expand(expression.replace(is_sum, lambda s: s.xreplace({s.limits[0][0]: _bound})))


def partial(expression: Any, variable: Any, given: Any = None) -> Any:
    """The derivative with respect to one logit or to ``T``, contracted and written in probabilities."""
    return in_probabilities(contract(sp.diff(expression, variable)), given=given)


def same(left: Any, right: Any) -> bool:
    """Whether two expressions agree for every N, once both are contracted and written in probabilities."""
    return sp.expand(sp.expand_log(in_probabilities(contract(sp.sympify(left) - right)))) == 0
