r"""Sparse teachers: what can be kept of a distribution over a large vocabulary, and the divergence from it.

Of the teacher's :math:`p` a few entries are kept for each token, :math:`\hat p_i` for :math:`i \in S`:

- *top-k*: the k largest, scaled to sum to one. The student is told that all else is impossible: biased.
- *top-k with the rest*: the k largest as they are, and the mass :math:`r = 1 - \sum_S p_i` of all others together.
- *sampled*: K tokens drawn from :math:`p` with replacement, :math:`\hat p_i` the part of the draws that fell on :math:`i`. Then
  :math:`\mathbb E[\hat p] = p`, so that the gradient :math:`q - \hat p` is right on average.

Source: Anshumann et al. (2025), Sparse logit sampling, sections 2 to 4.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlab.shapes import Bool, Float, Integer, with_shapes

from .checks import _inspectable, check_infinite, check_mask
from .reduction import reduce
from .softening import counted_rows, full_precision, log_softmax, log_sum_exp, prepared_alone
from .types import Count, Logits, Loss, Mask, Reduction

FLOATS = (torch.bfloat16, torch.float16, torch.float64, torch.float32)


@dataclass(frozen=True, eq=False)
class SparseTargets:
    r"""A few entries of a distribution for each token, and whether the others share what is left.

    Args:
        tokens: int64, shape ``(..., K)``. A token may be there twice: its entries add up. One of probability zero, such as
            padding of a shorter list, is as if it were not there.
        probabilities: :math:`\hat p`, shape ``(..., K)``, none negative. They sum to one, or with ``rest`` to at most one. A row
            of zeros or NaN alone keeps nothing: a ``mask`` has to leave it out.
        vocabulary: :math:`V`.
        rest: whether :math:`1 - \sum \hat p` is the probability of all other tokens together.

    Raises:
        TypeError: for tokens that are no whole numbers, or probabilities that are no floating-point tensor, or in half precision
            beside a rest, of which it keeps no digits.
        ValueError: for shapes that differ, what is no such distribution, tokens out of range, or a rest of which there is none.
    """

    __repr__ = with_shapes

    tokens: Integer[Tensor, "*batch K"]
    probabilities: Float[Tensor, "*batch K"]
    vocabulary: int
    rest: bool = False

    def __post_init__(self) -> None:
        for name, known in (("tokens", (torch.int32, torch.int64)), ("probabilities", FLOATS)):
            given = getattr(self, name)
            if not isinstance(given, Tensor) or given.dtype not in known:
                kind = given.dtype if isinstance(given, Tensor) else type(given).__name__
                raise TypeError(f"{name} of SparseTargets are a torch.Tensor of {known[-1]}, not {kind}.")
        object.__setattr__(self, "tokens", self.tokens.long())
        if self.tokens.ndim == 0 or self.tokens.shape != self.probabilities.shape or not self.tokens.shape[-1]:
            raise ValueError(
                f"tokens and probabilities of one shape (..., K) are needed, not {tuple(self.tokens.shape)} and "
                f"{tuple(self.probabilities.shape)}."
            )
        if self.rest and self.tokens.shape[-1] >= self.vocabulary:
            raise ValueError("all tokens are kept, so that there is no rest: leave rest=True out.")
        if self.rest and self.probabilities.dtype in (torch.float16, torch.bfloat16):
            raise TypeError(
                f"of a rest, which is what the kept leave of one, {self.probabilities.dtype} keeps no digits: give float32."
            )
        if _inspectable(self.probabilities) and _inspectable(self.tokens):
            self._check_values()

    def _check_values(self):
        p, tokens = self.probabilities.detach(), self.tokens
        some = ~(p.isnan() | (p == 0)).all(-1)
        p, tokens = p[some], tokens[some]
        if not p.numel():
            return
        if not (p >= 0).all():
            raise ValueError(
                "probabilities have entries that are negative or NaN"
                + (": log-probabilities go into SparseTargets.from_log_probabilities." if (p <= 0).all() else ".")
            )
        if not 0 <= tokens.min() <= tokens.max() < self.vocabulary:
            raise ValueError(
                f"tokens must lie in 0 … {self.vocabulary - 1}, but reach from {tokens.min()} to {tokens.max()}."
            )
        total = p.sum(-1, dtype=torch.float64)
        if not total.max() <= 1 + _close(p):
            raise ValueError(f"probabilities of one token sum to {total.max():.4g}, which is more than one.")

    @classmethod
    def from_log_probabilities(
        cls,
        tokens: Integer[Tensor, "*batch K"],
        log_probabilities: Float[Tensor, "*batch K"],
        vocabulary: int,
        *,
        rest: bool = True,
        mask: Bool[Tensor, "*batch"] | None = None,
    ) -> "SparseTargets":
        r"""What a server gives of a teacher: the k likeliest tokens of each position, and their log-probabilities.

        Args:
            tokens: shape ``(..., K)``, none twice.
            log_probabilities: natural logarithms, shape ``(..., K)``; −∞ where a position has fewer entries.
            rest: whether the other tokens share what is left; else the entries are scaled to sum to one, which is biased.
            mask: boolean, shape ``(...)``; where it is False, padding may have anything.

        Raises:
            TypeError, ValueError: as the class; for log-probabilities that are positive or NaN, and a token that is there twice.

        >>> of_server = SparseTargets.from_log_probabilities(
        ...     torch.tensor([[7, 2]]), torch.tensor([[0.6, 0.3]]).log(), vocabulary=10)
        >>> of_server.probabilities.sum(), of_server.rest
        (tensor(0.9000), True)
        """
        if not isinstance(log_probabilities, Tensor) or not log_probabilities.is_floating_point():
            raise TypeError("log-probabilities are a floating-point torch.Tensor.")
        if not isinstance(tokens, Tensor) or tokens.shape != log_probabilities.shape or not tokens.ndim:
            shape = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
            raise ValueError(
                f"tokens and log-probabilities of one shape (..., K) are needed, not {shape} and "
                f"{tuple(log_probabilities.shape)}."
            )
        log_p = full_precision(log_probabilities)
        if mask is not None:
            check_mask(mask, log_p[..., 0], empty=True)
            log_p = torch.where(mask.unsqueeze(-1), log_p, -torch.inf)
        if _inspectable(log_p) and not (log_p <= 1e-3).all():
            raise ValueError(
                "log-probabilities have entries that are NaN or positive: they are logarithms, and no logits."
            )
        there = ~log_p.isneginf()
        first = tokens.gather(-1, log_p.argmax(-1, keepdim=True))  # in the place of what is not there, and adds nothing
        tokens = tokens.where(there, first)
        if _inspectable(log_p):
            named = torch.where(there, tokens, -1 - torch.arange(tokens.shape[-1], device=tokens.device))
            if (named.sort(-1).values.diff() == 0).any():
                raise ValueError("tokens name one token twice, whose probability would be counted twice.")
        p = log_p.exp()
        if not rest:
            p = p / p.sum(-1, keepdim=True).clamp(min=torch.finfo(p.dtype).tiny)
        return cls(tokens.where(there.any(-1, keepdim=True), 0), p, vocabulary, rest)

    def _with(self, **changed: Any) -> Any:
        """The same with other tensors, which are as valid as its own."""
        other = copy.copy(self)
        for name, value in changed.items():
            object.__setattr__(other, name, value)
        return other

    @property
    def shape(self) -> torch.Size:
        """That of the logits that they stand for."""
        return torch.Size([*self.tokens.shape[:-1], self.vocabulary])

    @property
    def dtype(self) -> torch.dtype:
        return self.probabilities.dtype

    def to(self, dtype: torch.dtype) -> "SparseTargets":
        if self.rest and dtype in (torch.float16, torch.bfloat16):
            raise TypeError(f"of a rest {dtype} keeps no digits.")
        return self._with(probabilities=self.probabilities.to(dtype))

    def detach(self) -> "SparseTargets":
        return self._with(probabilities=self.probabilities.detach())

    def __getitem__(self, index: Any) -> "SparseTargets":
        return self._with(tokens=self.tokens[index], probabilities=self.probabilities[index])

    def flatten(self) -> "SparseTargets":
        """Leading axes as one."""
        return self._with(tokens=self.tokens.flatten(0, -2), probabilities=self.probabilities.flatten(0, -2))

    def dense(self) -> Float[Tensor, "*batch N"]:
        r""":math:`\hat p` over the whole vocabulary, without the rest, shape ``(..., V)``."""
        full = self.probabilities.new_zeros(self.shape)
        return full.scatter_add_(-1, self.tokens, self.probabilities)


def sparse_forward_kl(
    student_logits: Logits,
    targets: SparseTargets,
    *,
    mask: Mask | None = None,
    count: Count | None = None,
    reduction: Reduction = "batchmean",
) -> Loss:
    r"""Forward KL from what is kept of the teacher, all that is not kept being one class.

    .. math:: \sum_{i \in S} \hat p_i \log\frac{\hat p_i}{q_i} + r \log\frac{r}{1 - \sum_S q_i}, \qquad
        \frac{\partial}{\partial z_i} = q_i - \hat p_i \;\;(i \in S), \qquad q_i - r\,\frac{q_i}{1 - \sum_S q_j} \;\;(i \notin S)

    with :math:`r = 0` where there is no rest. With it, the gradient is that of the whole KL for a teacher that spreads its rest
    over the other tokens as the student does: what was thrown away is not learned, and does no harm.

    Convention: expectation under the teacher; temperature one, at which the entries were kept; nats. Where entries are sampled
    and a token is drawn twice, its entries are taken together.

    Args:
        student_logits: shape ``(..., V)``.
        targets: of the same tokens.
        mask, count, reduction: see :func:`~kdlab.objectives.reduction.reduce`.

    Raises:
        TypeError: for logits or targets of another type.
        ValueError: for shapes that do not fit; for targets that keep nothing of a position that counts, or probability for a
            token that for the student does not exist.

    >>> z = torch.log(torch.tensor([[0.5, 0.3, 0.2]]))
    >>> half = SparseTargets(torch.tensor([[0]]), torch.tensor([[0.5]]), vocabulary=3, rest=True)
    >>> abs(round(sparse_forward_kl(z, half).item(), 6))
    0.0
    """
    check_targets(student_logits, targets)
    student, _ = prepared_alone(student_logits, mask=mask, class_axis=-1)
    losses = sparse_losses(log_softmax(student, 1.0), counted_targets(targets, mask))
    check_infinite(losses, mask)
    return reduce(losses, mask, reduction, count)


def check_targets(student_logits: Any, targets: object) -> None:
    if not isinstance(targets, SparseTargets):
        raise TypeError(f"the targets are SparseTargets, such as a TeacherCache gives, not {type(targets).__name__}.")
    if targets.shape != student_logits.shape:
        n, m = student_logits.shape[-1], targets.vocabulary
        advice = (
            f"restrict both to the tokens that they share, such as restrict_vocabulary(…, torch.arange({min(n, m)})); in an objective, and so in "
            f"fit, SharedVocabulary(term, torch.arange({min(n, m)}))"
        )
        raise ValueError(
            f"targets that stand for logits of shape {tuple(targets.shape)} do not fit student logits of shape "
            f"{tuple(student_logits.shape)}" + (f": {advice}." if n != m else ".")
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class CountedTargets(SparseTargets):
    r"""Targets of which each token is there once, with what no student changes of them: computed once, and not for every few tokens.

    Args:
        left: :math:`r`, shape ``(..., 1)``; zero where there is no rest, and where nothing is kept and all is one class.
        mass: :math:`r + \sum \hat p`, shape ``(..., 1)``; zero where all is one class.
        log_probabilities, log_left: :math:`\log\hat p`, shape ``(..., K)``, and :math:`\log r`, shape ``(..., 1)``; zero where these are.
    """

    __repr__ = with_shapes

    left: Float[Tensor, "*batch 1"]
    mass: Float[Tensor, "*batch 1"]
    log_probabilities: Float[Tensor, "*batch K"]
    log_left: Float[Tensor, "*batch 1"]

    def __post_init__(self) -> None:
        """They are as valid as what they were made of."""

    def __getitem__(self, index: Any) -> "CountedTargets":
        names = ("tokens", "probabilities", "left", "mass", "log_probabilities", "log_left")
        return self._with(**{name: getattr(self, name)[index] for name in names})


def counted_targets(targets: SparseTargets, mask: Mask | None = None) -> CountedTargets:
    """Each token once, and nothing where ``mask`` is False, so that what stands there has no influence.

    Raises:
        ValueError: where nothing is kept of what counts, or, without a rest, less than a distribution.
    """
    p = counted_rows(targets.probabilities, mask)
    if _inspectable(p) and p.numel():
        counted = p.detach() if mask is None else p.detach()[mask]
        total = counted.sum(-1, dtype=torch.float64)
        if missing := int((total.isnan() if targets.rest else total.isnan() | (total == 0)).sum()):
            raise ValueError(f"the targets keep nothing of {missing} positions: leave these out (mask).")
        if not targets.rest and len(total) and total.min() < 1 - _close(p):
            raise ValueError(
                f"the probabilities that are kept of a token sum to {total.min():.4g} only: say rest=True, so that all other "
                "tokens share what is left, or divide by the sum."
            )
    tokens = targets.tokens if mask is None else torch.where(mask.unsqueeze(-1), targets.tokens, 0)
    tokens, kept = _merged(tokens, full_precision(p))
    mass = kept.sum(-1, keepdim=True)
    left = torch.zeros_like(mass)
    if targets.rest:
        some = mass > 0
        left, mass = torch.where(some, (1 - mass).clamp(min=0), 0.0), some.to(mass.dtype)
    logarithms = {"log_probabilities": _log(kept), "log_left": _log(left)}
    return CountedTargets(tokens, kept, targets.vocabulary, targets.rest, left=left, mass=mass, **logarithms)


def _log(p: Tensor) -> Tensor:
    """Zero where p is, so that nothing of it is added up."""
    return p.log().masked_fill_(p == 0, 0.0)


def _close(p: Tensor) -> float:
    """What the rounding of entries may add up to."""
    return max(1e-3, torch.finfo(p.dtype).eps)


def _merged(tokens: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Entries of one token taken together. What follows them is zero, and has the likeliest token."""
    tokens, order = tokens.sort(-1)
    run = F.pad(tokens.diff(dim=-1) != 0, (1, 0)).cumsum(-1)  # which different token it is
    kept = torch.zeros_like(kept).scatter_add(-1, run, kept.gather(-1, order))
    tokens = torch.zeros_like(tokens).scatter_(-1, run, tokens)
    return tokens.where(kept > 0, tokens.gather(-1, kept.argmax(-1, keepdim=True))), kept


def sparse_losses(
    log_q: Float[Tensor, "*batch N"], targets: CountedTargets, log_rest: Float[Tensor, "*batch 1"] | None = None
) -> Float[Tensor, "*batch"]:
    """The divergence of each token, from the student's log-probabilities.

    ``log_rest`` is the logarithm of what the student leaves to the others, if known.
    """
    kept, log_p = targets.probabilities.to(log_q.dtype), targets.log_probabilities.to(log_q.dtype)
    log_kept = log_q.gather(-1, targets.tokens).masked_fill(kept == 0, 0.0)
    losses = (kept * (log_p - log_kept)).sum(-1)
    if targets.rest:
        left, log_left = targets.left.to(log_q.dtype), targets.log_left.to(log_q.dtype)
        log_rest = log_sum_exp(log_q.scatter(-1, targets.tokens, -torch.inf)) if log_rest is None else log_rest
        losses = losses + (left * (log_left - log_rest.masked_fill(left == 0, 0.0))).squeeze(-1)
    return losses


@dataclass(frozen=True, eq=False)
class Slope:
    r"""A gradient by the logits: :math:`\sum_n c_n x_n`, and some entries at some tokens.

    Those of labels and of sparse targets are multiples of few tensors, which several have in common: they are added up before any has
    been written out.

    Args:
        parts: pairs of a tensor, shape ``(..., V)``, and what it is multiplied with, a number or shape ``(..., 1)``.
        tokens, entries: shape ``(..., K)``. Of a token that is there twice the entries add up.
    """

    __repr__ = with_shapes

    parts: tuple[tuple[Float[Tensor, "*batch N"], Float[Tensor, "*batch 1"] | float], ...]
    tokens: Integer[Tensor, "*batch K"]
    entries: Float[Tensor, "*batch K"]


def sparse_slope(
    log_q: Float[Tensor, "*batch N"],
    q: Float[Tensor, "*batch N"],
    targets: CountedTargets,
    rest: "Rest | None" = None,
) -> Slope:
    """The gradient of each token's divergence by its logits."""
    kept, mass = targets.probabilities.to(q.dtype), targets.mass.to(q.dtype)
    if not targets.rest:
        return Slope(((q, mass),), targets.tokens, -kept)
    rest = Rest.of(log_q, q, targets) if rest is None else rest
    return Slope(((q, mass), (rest.others, -targets.left.to(q.dtype) / rest.scale)), targets.tokens, -kept)


@dataclass(frozen=True, eq=False)
class Rest:
    """The student's probabilities of all that is not kept, ``others/scale``, which sum to one; and the logarithm of what they sum to."""

    __repr__ = with_shapes

    others: Float[Tensor, "*batch N"]
    scale: Float[Tensor, "*batch 1"] | float
    log: Float[Tensor, "*batch 1"]

    @classmethod
    def of(cls, log_q: Float[Tensor, "*batch N"], q: Float[Tensor, "*batch N"], targets: CountedTargets) -> "Rest":
        """Summed up from the others, so that a sure student's has all its digits; where q itself has none of it, from the logarithms."""
        if _inspectable(q):
            others = q.scatter(-1, targets.tokens, 0.0)
            total = others.sum(-1, keepdim=True)
            kind = torch.finfo(q.dtype)
            if (total > kind.tiny / kind.eps).all():
                return cls(others, total, total.log())
        log_others = log_q.scatter(-1, targets.tokens, -torch.inf)
        log_total = log_sum_exp(log_others)
        return cls((log_others - log_total.masked_fill(log_total.isneginf(), 0.0)).exp_(), 1.0, log_total)
