r"""Sparse teachers: what can be kept of a distribution over a large vocabulary, and the divergence from it.

Of the teacher's :math:`p` a few entries are kept for each token, :math:`\hat p_i` for :math:`i \in S`:

- *top-k*: the k largest, scaled to sum to one. The student is told that all else is impossible: biased.
- *top-k with the rest*: the k largest as they are, and the mass :math:`r = 1 - \sum_S p_i` of all others together.
- *sampled*: K tokens drawn from :math:`p` with replacement, :math:`\hat p_i` the part of the draws that fell on :math:`i`. Then
  :math:`\mathbb E[\hat p] = p`, so that the gradient :math:`q - \hat p` is right on average.

Source: Anshumann et al. (2025), Sparse logit sampling, sections 2 to 4.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .checks import check_logits
from .reduction import reduce
from .softening import log_soften


@dataclass(frozen=True, eq=False)
class SparseTargets:
    r"""A few entries of a distribution for each token, and whether the others share what is left.

    Args:
        tokens: int64, shape ``(..., K)``. A token may be there twice: its entries add up.
        probabilities: :math:`\hat p`, shape ``(..., K)``, none negative.
        vocabulary: :math:`V`.
        rest: whether :math:`1 - \sum \hat p` is the probability of all other tokens together.

    Raises:
        ValueError: for shapes that differ, or a rest of which there is none.
    """

    tokens: Tensor
    probabilities: Tensor
    vocabulary: int
    rest: bool = False

    def __post_init__(self):
        if self.tokens.shape != self.probabilities.shape or not self.tokens.shape[-1]:
            raise ValueError(
                f"tokens and probabilities of one shape (..., K) are needed, not {tuple(self.tokens.shape)} and "
                f"{tuple(self.probabilities.shape)}."
            )
        if self.rest and self.tokens.shape[-1] >= self.vocabulary:
            raise ValueError("all tokens are kept, so that there is no rest: leave rest=True out.")

    @property
    def shape(self) -> torch.Size:
        """That of the logits that they stand for."""
        return torch.Size([*self.tokens.shape[:-1], self.vocabulary])

    @property
    def dtype(self) -> torch.dtype:
        return self.probabilities.dtype

    def to(self, dtype: torch.dtype) -> "SparseTargets":
        return replace(self, probabilities=self.probabilities.to(dtype))

    def detach(self) -> "SparseTargets":
        return replace(self, probabilities=self.probabilities.detach())

    def __getitem__(self, index) -> "SparseTargets":
        return replace(self, tokens=self.tokens[index], probabilities=self.probabilities[index])

    def flatten(self) -> "SparseTargets":
        """Leading axes as one."""
        return replace(
            self, tokens=self.tokens.flatten(0, -2), probabilities=self.probabilities.flatten(0, -2)
        )

    def dense(self) -> Tensor:
        r""":math:`\hat p` over the whole vocabulary, without the rest, shape ``(..., V)``."""
        full = self.probabilities.new_zeros(self.shape)
        return full.scatter_add_(-1, self.tokens, self.probabilities)


def sparse_forward_kl(
    student_logits: Tensor,
    targets: SparseTargets,
    *,
    mask: Tensor | None = None,
    count=None,
    reduction: str = "batchmean",
) -> Tensor:
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
        ValueError: for shapes that do not fit.

    >>> z = torch.log(torch.tensor([[0.5, 0.3, 0.2]]))
    >>> half = SparseTargets(torch.tensor([[0]]), torch.tensor([[0.5]]), vocabulary=3, rest=True)
    >>> abs(round(sparse_forward_kl(z, half).item(), 6))
    0.0
    """
    check_targets(student_logits, targets)
    check_logits("student_logits", student_logits)
    log_q = log_soften(student_logits)
    return reduce(sparse_losses(log_q, targets), mask, reduction, count)


def check_targets(student_logits, targets) -> None:
    if not isinstance(targets, SparseTargets):
        raise TypeError(
            f"the targets are SparseTargets, such as a TeacherCache gives, not {type(targets).__name__}."
        )
    if targets.shape != student_logits.shape:
        raise ValueError(
            f"targets that stand for logits of shape {tuple(targets.shape)} do not fit student logits of shape "
            f"{tuple(student_logits.shape)}."
        )


def sparse_losses(log_q: Tensor, targets: SparseTargets) -> Tensor:
    """The divergence of each token, from the student's log-probabilities."""
    kept = targets.probabilities.to(log_q.dtype)
    merged = _merged(targets.tokens, kept)
    losses = (torch.xlogy(kept, merged) - kept * log_q.gather(-1, targets.tokens)).sum(-1)
    if targets.rest:
        left = (1 - kept.sum(-1)).clamp(min=0)
        losses = losses + torch.xlogy(left, left) - left * log_remaining(log_q, targets.tokens).squeeze(-1)
    return losses


def sparse_slope(log_q: Tensor, q: Tensor, targets: SparseTargets) -> Tensor:
    """The gradient of each token's divergence by its logits."""
    kept = targets.probabilities.to(q.dtype)
    if not targets.rest:
        return (q * kept.sum(-1, keepdim=True)).scatter_add_(-1, targets.tokens, -kept)
    left = (1 - kept.sum(-1, keepdim=True)).clamp(min=0)
    slope = q - left * torch.exp(log_q - log_remaining(log_q, targets.tokens))
    slope.scatter_(-1, targets.tokens, q.gather(-1, targets.tokens))
    return slope.scatter_add_(-1, targets.tokens, -kept)


def log_remaining(log_q: Tensor, tokens: Tensor) -> Tensor:
    """log(1 − Σ_S q), shape ``(..., 1)``; summed up from the others, so that a sure student's has all its digits."""
    return log_q.scatter(-1, tokens, -torch.inf).logsumexp(-1, keepdim=True)


def _merged(tokens: Tensor, kept: Tensor) -> Tensor:
    """For each entry, what all entries of its token sum to."""
    same = tokens.unsqueeze(-1) == tokens.unsqueeze(-2)
    return (same * kept.unsqueeze(-2)).sum(-1)
