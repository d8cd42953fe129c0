r"""Terms around the pure functions, and the weighted sum that composes them as the mathematics is written.

>>> 0.1 * CrossEntropy() + 0.9 * SoftTargets(temperature=4)
0.1 * CrossEntropy() + 0.9 * SoftTargets(temperature=4)
"""

import inspect
import math

from torch import Tensor, nn

from .checks import check_temperature
from .response import cross_entropy, forward_kl, permute_dark_knowledge, reverse_kl, soft_targets

#: What a training step has to offer; ``mask`` is True where a position counts.
SEEN = frozenset({"student_logits", "teacher_logits", "labels", "mask"})


class Objective(nn.Module):
    """A weighted sum of terms.

    Calling it with what the training step has seen (``student_logits``, ``teacher_logits``, ``labels``, and a
    ``mask`` where positions are padding, each by name) returns the total and the value of each term by its name,
    before weighting. A term takes the arguments that it needs and leaves the rest; an argument that no term knows is
    refused. Terms are modules, so what they learn is in ``parameters()`` and ``state_dict()``.

    >>> import torch
    >>> objective = 0.5 * CrossEntropy() + 0.5 * SoftTargets(temperature=2)
    >>> total, terms = objective(student_logits=torch.zeros(1, 2), teacher_logits=torch.zeros(1, 2),
    ...                          labels=torch.tensor([0]))
    >>> {name: round(value.item(), 4) for name, value in terms.items()}
    {'CrossEntropy': 0.6931, 'SoftTargets': 0.0}
    """

    def __init__(self, weighted_terms):
        super().__init__()
        for weight, _ in weighted_terms:
            if not (isinstance(weight, (int, float)) and math.isfinite(weight)):
                raise ValueError(f"the weight of a term must be a finite number, not {weight!r}.")
        self.weights = tuple(weight for weight, _ in weighted_terms)
        self.terms = nn.ModuleList(term for _, term in weighted_terms)
        kinds = [type(term).__name__ for term in self.terms]
        self.names = tuple(
            kind if kinds.count(kind) == 1 else f"{kind}_{kinds[: i + 1].count(kind)}"
            for i, kind in enumerate(kinds)
        )

        self._accepted = SEEN.union(*(inspect.signature(term.forward).parameters for term in self.terms))

    @property
    def needs_teacher(self) -> bool:
        return any(term.needs_teacher for term in self.terms)

    def forward(self, **seen) -> tuple[Tensor, dict[str, Tensor]]:
        if unknown := seen.keys() - self._accepted:
            raise TypeError(f"no term of {self!r} takes {', '.join(sorted(unknown))}.")
        values = {name: term(**seen) for name, term in zip(self.names, self.terms, strict=True)}
        return sum(w * v for w, v in zip(self.weights, values.values(), strict=True)), values

    def __add__(self, other):
        if not isinstance(other, (Term, Objective)):
            return NotImplemented
        return Objective([*_weighted(self), *_weighted(other)])

    def __mul__(self, factor):
        if not isinstance(factor, (int, float)):
            return NotImplemented
        return Objective([(factor * weight, term) for weight, term in _weighted(self)])

    __rmul__ = __mul__

    def __radd__(self, zero):  # so that sum() works
        return self if zero == 0 else NotImplemented

    def __repr__(self):
        return " + ".join(f"{weight:.12g} * {term!r}" for weight, term in _weighted(self))


def _weighted(part):
    return list(zip(part.weights, part.terms, strict=True)) if isinstance(part, Objective) else [(1.0, part)]


class Term(nn.Module):
    """One thing to match.

    A subclass writes ``forward`` with the keyword arguments that it needs, and ``**_`` for the rest; sets
    ``needs_teacher = False`` if it looks at no teacher; and, if it has parameters of its own, writes ``extra_repr`` with
    them: the ``repr`` is how records and checkpoints tell objectives apart.
    """

    needs_teacher = True

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if cls.__init__ is not Term.__init__ and cls.extra_repr is nn.Module.extra_repr:
            raise TypeError(
                f"{cls.__name__} has an __init__, so it must write extra_repr: runs are told apart by it."
            )

    def __add__(self, other):
        return Objective(_weighted(self)) + other

    def __radd__(self, zero):
        return Objective(_weighted(self)) if zero == 0 else NotImplemented

    def __mul__(self, weight):
        return Objective(_weighted(self)) * weight

    __rmul__ = __mul__

    def __repr__(self):
        return f"{type(self).__name__}({self.extra_repr()})"


class CrossEntropy(Term):
    """Hard labels at temperature one: :func:`~kdlab.objectives.response.cross_entropy`."""

    needs_teacher = False

    def forward(self, *, student_logits, labels, mask=None, **_):
        return cross_entropy(student_logits, labels, mask=mask)


class _Softened(Term):
    def __init__(self, temperature=1.0):
        super().__init__()
        check_temperature(temperature)
        self.temperature = temperature

    def extra_repr(self):
        return f"temperature={self.temperature:.12g}"


class ForwardKL(_Softened):
    r""":math:`D_{\mathrm{KL}}(p\,\|\,q)` without :math:`T^2`: :func:`~kdlab.objectives.response.forward_kl`."""

    def forward(self, *, student_logits, teacher_logits, mask=None, **_):
        return forward_kl(student_logits, teacher_logits.detach(), temperature=self.temperature, mask=mask)


class ReverseKL(_Softened):
    r""":math:`D_{\mathrm{KL}}(q\,\|\,p)` without :math:`T^2`: :func:`~kdlab.objectives.response.reverse_kl`."""

    def forward(self, *, student_logits, teacher_logits, mask=None, **_):
        return reverse_kl(student_logits, teacher_logits.detach(), temperature=self.temperature, mask=mask)


class SoftTargets(_Softened):
    r""":math:`T^2 D_{\mathrm{KL}}(p\,\|\,q)`: :func:`~kdlab.objectives.response.soft_targets`."""

    def __init__(self, temperature=4.0):
        super().__init__(temperature)

    def forward(self, *, student_logits, teacher_logits, mask=None, **_):
        return soft_targets(student_logits, teacher_logits.detach(), temperature=self.temperature, mask=mask)


class PermutedSoftTargets(SoftTargets):
    """Soft targets whose wrong classes are shuffled anew at every step:
    :func:`~kdlab.objectives.response.permute_dark_knowledge`. The control of the study, not a method."""

    def forward(self, *, student_logits, teacher_logits, labels, mask=None, **_):
        shuffled = permute_dark_knowledge(teacher_logits.detach(), labels)
        return soft_targets(student_logits, shuffled, temperature=self.temperature, mask=mask)
