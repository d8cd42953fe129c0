r"""Response-based objectives: match what the teacher says about the classes.

Convention of the whole file: :math:`p = \operatorname{softmax}(t/T)` is the teacher, :math:`q =
\operatorname{softmax}(z/T)` the student, :math:`z` and :math:`t` their logits. Divergences carry **no** factor
:math:`T^2`; :func:`soft_targets` and :func:`distillation_loss` do. ``reduction="batchmean"`` is the mean over
distributions (over real tokens, where a mask is given), never over classes.
"""

import torch
from torch import Tensor

from .checks import check_distribution, check_labels, check_logits, check_mask, check_same_shape
from .softening import log_soften


def reduce(losses: Tensor, mask: Tensor | None = None, reduction: str = "batchmean") -> Tensor:
    """Reduce one loss a distribution to what is asked for.

    Args:
        losses: shape ``(...)``, one entry a distribution.
        mask: boolean, shape ``(...)``, True where a position counts; None counts all.
        reduction: ``"batchmean"`` (sum over counted positions divided by their number), ``"sum"`` or
            ``"none"`` (shape kept, zero where masked).

    Raises:
        ValueError: for another reduction, a mask of another shape, or a mask that is False everywhere.
    """
    if reduction not in ("batchmean", "sum", "none"):
        raise ValueError(f'reduction must be "batchmean", "sum" or "none", not {reduction!r}.')
    if mask is not None:
        check_mask(mask, losses)
        losses = losses.where(mask, 0.0)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    return losses.sum() / (losses.numel() if mask is None else mask.sum())


def _kl(log_p, log_q):
    r"""KL(p‖q) for each distribution, as a sum of terms none of which is negative.

    Since p and q both sum to one, Σ p·log(p/q) = Σ (p·r + q − p) with r = log p − log q, and each term is
    p·φ(r) ≥ 0 with φ(r) = e^{−r} − 1 + r. At high temperature all r are small: φ, by expm1, keeps far more digits than
    the textbook sum, which is lost in cancellation, and T² multiplies what is left of it. Where q ≫ p, e^{−r} could
    overflow, and the terms are taken as they stand; the clamp removes what rounding leaves below zero.
    """
    r = log_p - log_q
    p = log_p.exp()
    small = r.clamp(min=-1.0)
    near = p * (torch.expm1(-small) + small)
    return torch.where(r > -1.0, near, p * r + log_q.exp() - p).clamp(min=0.0).sum(-1)


def forward_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature=1.0,
    mask: Tensor | None = None,
    reduction: str = "batchmean",
) -> Tensor:
    r"""Forward Kullback–Leibler divergence, teacher to student: mode covering.

    .. math:: D_{\mathrm{KL}}(p \,\|\, q) = \sum_i p_i \log \frac{p_i}{q_i},
        \qquad \frac{\partial}{\partial z_i} = \frac{q_i - p_i}{T}

    Convention: expectation under the **teacher**; no :math:`T^2`; nats. Non-negative by construction and exactly
    zero at equality. Differentiable in both arguments.

    Args:
        student_logits: :math:`z`, shape ``(..., N)``.
        teacher_logits: :math:`t`, the same shape.
        temperature: :math:`T > 0`.
        mask: boolean, shape ``(...)``; False positions (padding) do not count.
        reduction: see :func:`reduce`.

    Returns:
        A scalar, or shape ``(...)`` for ``reduction="none"``; float32 for half-precision logits.

    Raises:
        TypeError: for logits that are not floating-point tensors, or a mask that is not boolean.
        ValueError: for shapes that differ, logits that are not finite, or a temperature that is not positive.

    Source: Kullback & Leibler (1951); as a distillation loss, Hinton, Vinyals & Dean (2015), section 2.

    >>> teacher, student = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    >>> forward_kl(student, teacher)
    tensor(0.3278)
    """
    check_same_shape(student_logits, teacher_logits)
    losses = _kl(log_soften(teacher_logits, temperature), log_soften(student_logits, temperature))
    return reduce(losses, mask, reduction)


def reverse_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature=1.0,
    mask: Tensor | None = None,
    reduction: str = "batchmean",
) -> Tensor:
    r"""Reverse Kullback–Leibler divergence, student to teacher: mode seeking.

    .. math:: D_{\mathrm{KL}}(q \,\|\, p) = \sum_i q_i \log \frac{q_i}{p_i},
        \qquad \frac{\partial}{\partial z_i} = \frac{q_i}{T}\Bigl(\log\frac{q_i}{p_i} - D_{\mathrm{KL}}(q\,\|\,p)\Bigr)

    Convention: expectation under the **student**; no :math:`T^2`; nats. Arguments, result and errors as in
    :func:`forward_kl`.

    Source: for language models, Gu et al. (2024), MiniLLM, eq. 1.

    >>> teacher, student = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    >>> reverse_kl(student, teacher)
    tensor(0.4338)
    """
    check_same_shape(student_logits, teacher_logits)
    losses = _kl(log_soften(student_logits, temperature), log_soften(teacher_logits, temperature))
    return reduce(losses, mask, reduction)


def soft_targets(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature=4.0,
    mask: Tensor | None = None,
    reduction: str = "batchmean",
) -> Tensor:
    r"""The soft-target loss of knowledge distillation, with its factor :math:`T^2`.

    .. math:: T^2 \, D_{\mathrm{KL}}(p \,\|\, q), \qquad
        \frac{\partial}{\partial z_i} = T\,(q_i - p_i) \xrightarrow{T\to\infty} \frac{\tilde z_i - \tilde t_i}{N}

    with :math:`\tilde z, \tilde t` the logits centred to mean zero. Arguments, result and errors as in
    :func:`forward_kl`.

    Source: Hinton, Vinyals & Dean (2015), section 2 and eq. 4.

    >>> soft_targets(torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]]), temperature=100.0)
    tensor(0.5000)
    """
    losses = forward_kl(student_logits, teacher_logits, temperature=temperature, reduction="none")
    squared = temperature**2
    if isinstance(squared, Tensor) and squared.ndim:  # one temperature a distribution, of shape (..., 1)
        squared = squared.squeeze(-1)
    return reduce(squared * losses, mask, reduction)


def cross_entropy(
    student_logits: Tensor,
    target: Tensor,
    *,
    temperature=1.0,
    mask: Tensor | None = None,
    reduction: str = "batchmean",
) -> Tensor:
    r"""Cross-entropy with integer labels or with a target distribution.

    .. math:: -\sum_i p_i \log q_i, \qquad \frac{\partial}{\partial z_i} = \frac{q_i \sum_k p_k - p_i}{T}

    The gradient is :math:`(q_i - p_i)/T` only because a distribution sums to one, so a target that does not is
    refused. Differs from :func:`forward_kl` by the target's entropy, which is constant in the student.

    Args:
        student_logits: :math:`z`, shape ``(..., N)``.
        target: class indices of shape ``(...)``, or probabilities :math:`p` of shape ``(..., N)``.
        temperature, mask, reduction: as in :func:`forward_kl`.

    Raises:
        TypeError, ValueError: as :func:`forward_kl`; also for labels out of range and for a target with negative
            entries or rows that do not sum to one within 1e-3.

    >>> cross_entropy(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
    tensor(0.1269)
    >>> cross_entropy(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.5, 0.5]]))
    tensor(1.1269)
    """
    check_logits("student_logits", student_logits)
    log_q = log_soften(student_logits, temperature)
    if isinstance(target, Tensor) and target.is_floating_point():
        check_distribution(target, student_logits)
        losses = -(target.to(log_q.dtype) * log_q).sum(-1)
    else:
        if mask is not None and isinstance(target, Tensor):
            check_mask(mask, target)
            target = target.where(mask, 0)  # what is masked may hold anything, such as -100
        check_labels(target, student_logits)
        losses = -log_q.gather(-1, target.long().unsqueeze(-1)).squeeze(-1)
    return reduce(losses, mask, reduction)


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    temperature=4.0,
    hard_weight: float | None = None,
    soft_weight: float | None = None,
    mask: Tensor | None = None,
    reduction: str = "batchmean",
) -> Tensor:
    r"""Hard labels and soft targets, weighted to sum to one.

    .. math:: L = w_{\text{hard}}\,\mathrm{CE}(y, q_{T=1}) + w_{\text{soft}}\,T^2 D_{\mathrm{KL}}(p \,\|\, q),
        \qquad w_{\text{hard}} + w_{\text{soft}} = 1

    The literature calls either weight :math:`\alpha`. Here exactly one of the two is given, by name, and the other
    follows: :math:`\alpha` of :math:`\alpha\,\mathrm{CE} + (1-\alpha)\,\mathrm{KD}` is ``hard_weight``;
    :math:`\alpha` of :math:`(1-\alpha)\,L_{\text{hard}} + \alpha T^2 L_{\text{soft}}` is ``soft_weight``.

    Args:
        student_logits, teacher_logits: shape ``(..., N)``.
        labels: class indices, shape ``(...)``.
        temperature: :math:`T > 0` of the soft targets; the hard labels are always matched at :math:`T = 1`.
        hard_weight: :math:`w_{\text{hard}} \in [0, 1]`; or
        soft_weight: :math:`w_{\text{soft}} \in [0, 1]`.
        mask, reduction: as in :func:`forward_kl`.

    Raises:
        TypeError: if neither or both weights are given.
        ValueError: if the weight is outside [0, 1]; otherwise as :func:`forward_kl`.

    Source: Hinton, Vinyals & Dean (2015), section 2.

    >>> z, t, y = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]]), torch.tensor([0])
    >>> distillation_loss(z, t, y, soft_weight=0.9) == distillation_loss(z, t, y, hard_weight=0.1)
    tensor(True)
    """
    if (hard_weight is None) == (soft_weight is None):
        raise TypeError("give exactly one of hard_weight and soft_weight; the other is one minus it.")
    given = hard_weight if soft_weight is None else soft_weight
    if not 0 <= given <= 1:
        raise ValueError(f"a weight must lie between 0 and 1, not {given!r}.")
    hard_weight = given if soft_weight is None else 1 - given
    hard = cross_entropy(student_logits, labels, mask=mask, reduction=reduction)
    soft = soft_targets(
        student_logits, teacher_logits, temperature=temperature, mask=mask, reduction=reduction
    )
    return hard_weight * hard + (1 - hard_weight) * soft


def permute_dark_knowledge(teacher_logits: Tensor, labels: Tensor, *, generator=None) -> Tensor:
    r"""The teacher's logits with those of the wrong classes shuffled within each example.

    The true class keeps its probability, and the wrong classes keep their values, at every temperature: what is
    destroyed is only *which* wrong class has which probability. Distilling from the result is the causal test of
    whether a student learns from that.

    Args:
        teacher_logits: shape ``(..., N)``.
        labels: class indices, shape ``(...)``.
        generator: a ``torch.Generator``; None uses torch's own state.

    Returns:
        Logits of the same shape.

    >>> t = torch.tensor([[9.0, 3.0, 2.0, 1.0]])
    >>> shuffled = permute_dark_knowledge(t, torch.tensor([0]))
    >>> shuffled[0, 0].item(), sorted(shuffled[0].tolist())
    (9.0, [1.0, 2.0, 3.0, 9.0])
    """
    check_logits("teacher_logits", teacher_logits)
    check_labels(labels, teacher_logits)
    labels = labels.long()
    true_class = torch.zeros_like(teacher_logits).scatter(-1, labels.unsqueeze(-1), 1.0)
    keys = torch.rand(teacher_logits.shape, generator=generator, device=teacher_logits.device)
    # Both orders have the true class last; the wrong classes come in class order, and at random.
    to = true_class.sort(dim=-1, stable=True).indices
    source = (true_class + keys).argsort(dim=-1)
    return torch.empty_like(teacher_logits).scatter(-1, to, teacher_logits.gather(-1, source))
