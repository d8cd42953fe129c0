r"""Divergences between teacher and student: how far apart two distributions over the classes are.

Convention of the whole file: :math:`p = \operatorname{softmax}(t/T)` is the teacher, :math:`q =
\operatorname{softmax}(z/T)` the student, :math:`z` and :math:`t` their logits. None has a factor :math:`T^2`. All are
in nats (total variation has no unit), non-negative, exactly zero at equality, and differentiable in both arguments.
They take and raise the same as :func:`forward_kl`; each costs two passes over the logits and keeps a few tensors of
their size.
"""

import math

import torch
from torch import Tensor

from kdlab.shapes import Float

from .checks import check_fraction, check_infinite
from .reduction import reduce
from .softening import log_softmax, prepared
from .types import Count, Logits, Loss, Mask, Reduction, Temperature


def _pair(student_logits, teacher_logits, temperature, mask=None, class_axis=None):
    """log p, log q."""
    student, teacher, temperature = prepared(
        student_logits, teacher_logits, temperature, mask=mask, class_axis=class_axis
    )
    return log_softmax(teacher, temperature), log_softmax(student, temperature)


def _reduced(losses, mask, reduction, count):
    check_infinite(losses, mask)
    return reduce(losses, mask, reduction, count)


def _kl(log_p, log_q):
    """KL(p‖q) for each distribution."""
    return _kl_of(log_p.exp(), log_q.exp(), log_p - log_q)


def _kl_of(p, q, log_ratio):
    r"""KL(p‖q) from p, q and log p/q, as a sum of terms none of which is negative.

    Since p and q both sum to one, Σ p·log(p/q) = Σ (p·r + q − p) with r = log p − log q, and each term is
    p·φ(r) ≥ 0 with φ(r) = e^{−r} − 1 + r. At high temperature all r are small: φ, by expm1, keeps far more digits than
    the textbook sum, which is lost in cancellation, and T² multiplies what is left of it. Where q ≫ p, e^{−r} could
    overflow, and the terms are taken as they stand; the clamp removes what rounding leaves below zero. Where p = 0 the term
    is q whatever r is: infinite, or NaN where q is zero too.
    """
    r = log_ratio.masked_fill(p == 0, -1.0)
    small = r.clamp(min=-1.0)
    near = p * (torch.expm1(-small) + small)
    return torch.where(r > -1.0, near, p * r + q - p).clamp(min=0.0).sum(-1)


def _kl_to_mixture(log_p, log_q, w, v):
    """KL(p‖m) with m = w·p + v·q, for w and v that are positive and sum to one.

    log(p/m) = −log(w + v·q/p), and not log p − log m, whose rounding is that of log p: where p and q are nearly equal,
    log(p/m) is much smaller.
    """
    p, q = log_p.exp(), log_q.exp()
    log_w, log_v = math.log(w), math.log(v)
    delta = (log_q - log_p).masked_fill(p == 0, 0.0)
    log_ratio = -torch.logaddexp(torch.full_like(delta, log_w), delta + log_v)
    return _kl_of(p, w * p + v * q, log_ratio)


def forward_kl(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    temperature: Temperature = 1.0,
    mask: Mask | None = None,
    count: Count | None = None,
    reduction: Reduction = "batchmean",
    class_axis: int | None = None,
) -> Loss:
    r"""Forward Kullback–Leibler divergence, teacher to student: mode covering, for a student that cannot fit them all.

    .. math:: D_{\mathrm{KL}}(p \,\|\, q) = \sum_i p_i \log \frac{p_i}{q_i},
        \qquad \frac{\partial}{\partial z_i} = \frac{q_i - p_i}{T}

    Convention: expectation under the **teacher**; no :math:`T^2`; nats.

    Args:
        student_logits: :math:`z`, shape ``(..., N)``. A class that does not exist has logit −∞: no probability, no gradient.
        teacher_logits: :math:`t`, the same shape.
        temperature: :math:`T > 0`; a number, or a tensor of shape ``(..., 1)`` with one a distribution.
        mask: boolean, shape ``(...)``; False positions (padding) do not count, and what stands there, NaN too, has no
            influence.
        count: what ``"batchmean"`` divides by; None is the number of positions that count. See
            :func:`~kdlab.objectives.reduction.global_count`.
        reduction: see :func:`~kdlab.objectives.reduction.reduce`.
        class_axis: where the classes are, such as 1 for maps ``(B, N, H, W)``; None is the last axis.

    Returns:
        A scalar, or shape ``(...)`` for ``reduction="none"``; float32 for half-precision logits.

    Raises:
        TypeError: for logits that are not floating-point tensors, or a mask that is not boolean.
        ValueError: for shapes that differ, logits of NaN or +∞, or a temperature that is not positive; where the divergence is
            infinite, since one side gives probability to what for the other does not exist.

    Source: Kullback & Leibler (1951); as a distillation loss, Hinton, Vinyals & Dean (2015), section 2.

    >>> teacher, student = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    >>> forward_kl(student, teacher)
    tensor(0.3278)
    """
    log_p, log_q = _pair(student_logits, teacher_logits, temperature, mask, class_axis)
    return _reduced(_kl(log_p, log_q), mask, reduction, count)


def reverse_kl(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    temperature: Temperature = 1.0,
    mask: Mask | None = None,
    count: Count | None = None,
    reduction: Reduction = "batchmean",
    class_axis: int | None = None,
) -> Loss:
    r"""Reverse Kullback–Leibler divergence, student to teacher: mode seeking, for a student that cannot fit them all.

    .. math:: D_{\mathrm{KL}}(q \,\|\, p) = \sum_i q_i \log \frac{q_i}{p_i},
        \qquad \frac{\partial}{\partial z_i} = \frac{q_i}{T}\Bigl(\log\frac{q_i}{p_i} - D_{\mathrm{KL}}(q\,\|\,p)\Bigr)

    Convention: expectation under the **student**; no :math:`T^2`; nats.

    Source: for language models, Gu et al. (2024), MiniLLM, eq. 1.

    >>> teacher, student = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    >>> reverse_kl(student, teacher)
    tensor(0.4338)
    """
    log_p, log_q = _pair(student_logits, teacher_logits, temperature, mask, class_axis)
    return _reduced(_kl(log_q, log_p), mask, reduction, count)


def skewed_forward_kl(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    skew: float = 0.1,
    temperature: Temperature = 1.0,
    mask: Mask | None = None,
    count: Count | None = None,
    reduction: Reduction = "batchmean",
    class_axis: int | None = None,
) -> Loss:
    r"""Forward KL to a mixture that holds a little of the teacher, so that it is never larger than :math:`-\log\lambda`.

    .. math:: D_{\mathrm{KL}}\bigl(p \,\|\, \lambda p + (1-\lambda) q\bigr), \qquad
        \frac{\partial}{\partial z_i} = \frac{1-\lambda}{T}\, q_i \Bigl(\sum_k \frac{p_k q_k}{m_k} - \frac{p_i}{m_i}\Bigr)

    with :math:`m = \lambda p + (1-\lambda) q`. Convention: no :math:`T^2`; nats; :math:`\lambda = 0` is
    :func:`forward_kl`, :math:`\lambda = 1` is zero. A large :math:`\lambda` changes sides: then it seeks modes.

    Args:
        skew: :math:`\lambda \in [0, 1]`.

    Source: Ko et al. (2024), DistiLLM, section 3.1.

    >>> teacher, student = torch.tensor([[90.0, 0.0]]), torch.tensor([[0.0, 90.0]])
    >>> skewed_forward_kl(student, teacher, skew=0.1), forward_kl(student, teacher)
    (tensor(2.3026), tensor(90.))
    """
    check_fraction("skew", skew)
    log_p, log_q = _pair(student_logits, teacher_logits, temperature, mask, class_axis)
    return _reduced(_skewed(log_p, log_q, skew), mask, reduction, count)


def skewed_reverse_kl(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    skew: float = 0.1,
    temperature: Temperature = 1.0,
    mask: Mask | None = None,
    count: Count | None = None,
    reduction: Reduction = "batchmean",
    class_axis: int | None = None,
) -> Loss:
    r"""Reverse KL to a mixture that holds a little of the student.

    .. math:: D_{\mathrm{KL}}\bigl(q \,\|\, (1-\lambda) p + \lambda q\bigr)

    Convention: no :math:`T^2`; nats; :math:`\lambda = 0` is :func:`reverse_kl`, :math:`\lambda = 1` is zero. A large
    :math:`\lambda` changes sides: then it covers.

    Args:
        skew: :math:`\lambda \in [0, 1]`.

    Source: Ko et al. (2024), DistiLLM, section 3.1.

    >>> teacher, student = torch.tensor([[90.0, 0.0]]), torch.tensor([[0.0, 90.0]])
    >>> skewed_reverse_kl(student, teacher, skew=0.1), reverse_kl(student, teacher)
    (tensor(2.3026), tensor(90.))
    """
    check_fraction("skew", skew)
    log_p, log_q = _pair(student_logits, teacher_logits, temperature, mask, class_axis)
    return _reduced(_skewed(log_q, log_p, skew), mask, reduction, count)


def _skewed(log_p, log_q, skew):
    if skew == 0:
        return _kl(log_p, log_q)
    if skew == 1:
        return 0.0 * (log_p.exp() + log_q.exp()).sum(-1)
    return _kl_to_mixture(log_p, log_q, skew, 1 - skew)


def generalised_jsd(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    beta: float = 0.5,
    scaled: bool = False,
    temperature: Temperature = 1.0,
    mask: Mask | None = None,
    count: Count | None = None,
    reduction: Reduction = "batchmean",
    class_axis: int | None = None,
) -> Loss:
    r"""Generalised Jensen–Shannon divergence: from forward to reverse KL, without their infinities.

    .. math:: \beta D_{\mathrm{KL}}(p\,\|\,m) + (1-\beta) D_{\mathrm{KL}}(q\,\|\,m), \qquad m = \beta p + (1-\beta) q,
        \qquad \frac{\partial}{\partial z_i} = (1-\beta)\frac{q_i}{T}\Bigl(\log\frac{q_i}{m_i} - D_{\mathrm{KL}}(q\,\|\,m)\Bigr)

    Convention: :math:`\beta` weights the **teacher**; no :math:`T^2`; nats; at most :math:`\log 2` for
    :math:`\beta = 1/2`. It goes to zero at both ends, and is zero there: continuous. Divided by
    :math:`\beta(1-\beta)` (``scaled=True``) it goes to :func:`forward_kl` as :math:`\beta \to 0` and to :func:`reverse_kl`
    as :math:`\beta \to 1`, and is those there: continuous too. Code that returns the KLs at the ends of the unscaled form
    jumps.

    Args:
        beta: :math:`\beta \in [0, 1]`.
        scaled: divide by :math:`\beta(1-\beta)`.

    Source: Agarwal et al. (2024), GKD, section 2.

    >>> teacher, student = torch.tensor([[90.0, 0.0]]), torch.tensor([[0.0, 90.0]])
    >>> generalised_jsd(student, teacher)
    tensor(0.6931)
    """
    check_fraction("beta", beta)
    log_p, log_q = _pair(student_logits, teacher_logits, temperature, mask, class_axis)
    if beta in (0, 1) and not scaled:
        losses = 0.0 * (log_p.exp() + log_q.exp()).sum(-1)
    elif beta in (0, 1):
        losses = _kl(log_q, log_p) if beta else _kl(log_p, log_q)
    else:
        to_mixture = (
            _kl_to_mixture(log_p, log_q, beta, 1 - beta),
            _kl_to_mixture(log_q, log_p, 1 - beta, beta),
        )
        losses = beta * to_mixture[0] + (1 - beta) * to_mixture[1]
        losses = losses / (beta * (1 - beta)) if scaled else losses
    return _reduced(losses, mask, reduction, count)


def total_variation(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    temperature: Temperature = 1.0,
    mask: Mask | None = None,
    count: Count | None = None,
    reduction: Reduction = "batchmean",
    class_axis: int | None = None,
) -> Loss:
    r"""Total variation: the largest difference in the probability of any event.

    .. math:: \mathrm{TV} = \tfrac12\sum_i |p_i - q_i| \in [0, 1], \qquad
        \frac{\partial}{\partial z_i} = \frac{q_i}{2T}\Bigl(s_i - \sum_k q_k s_k\Bigr), \quad s = \operatorname{sign}(q - p)

    Convention: symmetric; no :math:`T^2`. One minus it is the rate at which speculative decoding accepts a draft token. It
    has a kink where :math:`p_i = q_i`; the gradient there is taken as zero.

    Source: Wen et al. (2023), f-distill; for drafts, Zhou et al. (2024), DistillSpec.

    >>> total_variation(torch.tensor([[0.0, 90.0]]), torch.tensor([[90.0, 0.0]]))
    tensor(1.)
    """
    log_p, log_q = _pair(student_logits, teacher_logits, temperature, mask, class_axis)
    return _reduced((log_p.exp() - log_q.exp()).abs().sum(-1) / 2, mask, reduction, count)


def negative_log_acceptance(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    temperature: Temperature = 1.0,
    mask: Mask | None = None,
    count: Count | None = None,
    reduction: Reduction = "batchmean",
    class_axis: int | None = None,
) -> Loss:
    r"""Minus the logarithm of the rate at which speculative decoding accepts a draft's token.

    .. math:: -\log a, \quad a = \sum_i \min(p_i, q_i) = 1 - \mathrm{TV}, \qquad
        \frac{\partial}{\partial z_i} = \frac1a \frac{\partial\, \mathrm{TV}}{\partial z_i}

    Convention: symmetric; no :math:`T^2`. The gradient of total variation vanishes with what the two share; this one is not
    scaled down by it. The kink is treated as there.

    Source: Samarin et al. (2026), LK losses.

    >>> negative_log_acceptance(torch.tensor([[0.0, 90.0]]), torch.tensor([[90.0, 0.0]]))
    tensor(89.3069)
    """
    log_p, log_q = _pair(student_logits, teacher_logits, temperature, mask, class_axis)
    shared = torch.logsumexp(torch.minimum(log_p, log_q), -1)
    apart = 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)
    return _reduced(minus_log_shared(shared, apart), mask, reduction, count)


def minus_log_shared(
    shared: Float[Tensor, "*positions"], apart: Float[Tensor, "*positions"]
) -> Float[Tensor, "*positions"]:
    """−log a from log a and from 1 − a: where a is nearly one, its logarithm is lost in rounding, and 1 − a is not."""
    return torch.where(apart < 0.5, -torch.log1p(-apart.clamp(max=0.5)), -shared)
