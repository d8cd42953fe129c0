r"""Response-based objectives: match what the teacher says about the classes.

Convention of the whole file: :math:`p = \operatorname{softmax}(t/T)` is the teacher, :math:`q =
\operatorname{softmax}(z/T)` the student, :math:`z` and :math:`t` their logits, :math:`y` the label. What the literature
scales by :math:`T^2` is scaled here (:func:`soft_targets`, :func:`decoupled_kd`, :func:`dist`); bare divergences are in
:mod:`kdlab.objectives.divergences` and are not. ``temperature``, ``mask``, ``count`` and ``reduction``, the result's type
and the errors are those of :func:`~kdlab.objectives.divergences.forward_kl`.
"""

import math

import torch
from torch import Tensor

from .checks import (
    check_distribution,
    check_fraction,
    check_labels,
    check_logits,
    check_same_shape,
    check_several,
    check_temperature,
    counted_labels,
)
from .divergences import _kl, forward_kl
from .reduction import reduce
from .softening import full_precision, log_soften, log_softmax


def _squared(temperature):
    """T², one a distribution where T is a tensor of shape (..., 1)."""
    squared = temperature**2
    return squared.squeeze(-1) if isinstance(squared, Tensor) and squared.ndim else squared


def soft_targets(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature=4.0,
    mask: Tensor | None = None,
    count=None,
    reduction: str = "batchmean",
) -> Tensor:
    r"""The soft-target loss of knowledge distillation, with its factor :math:`T^2`.

    .. math:: T^2 \, D_{\mathrm{KL}}(p \,\|\, q), \qquad
        \frac{\partial}{\partial z_i} = T\,(q_i - p_i) \xrightarrow{T\to\infty} \frac{\tilde z_i - \tilde t_i}{N}

    with :math:`\tilde z, \tilde t` the logits centred to mean zero. Convention: forward, teacher to student; **times**
    :math:`T^2`; mean over distributions.

    Source: Hinton, Vinyals & Dean (2015), section 2 and eq. 4.

    >>> soft_targets(torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]]), temperature=100.0)
    tensor(0.5000)
    """
    losses = forward_kl(student_logits, teacher_logits, temperature=temperature, reduction="none")
    return reduce(_squared(temperature) * losses, mask, reduction, count)


def cross_entropy(
    student_logits: Tensor,
    target: Tensor,
    *,
    temperature=1.0,
    mask: Tensor | None = None,
    count=None,
    reduction: str = "batchmean",
) -> Tensor:
    r"""Cross-entropy with integer labels or with a target distribution.

    .. math:: -\sum_i p_i \log q_i, \qquad \frac{\partial}{\partial z_i} = \frac{q_i \sum_k p_k - p_i}{T}

    The gradient is :math:`(q_i - p_i)/T` only because a distribution sums to one, so a target that does not is
    refused. Differs from :func:`~kdlab.objectives.divergences.forward_kl` by the target's entropy, which is constant in the
    student. Convention: no :math:`T^2`; nats; mean over distributions.

    Args:
        student_logits: :math:`z`, shape ``(..., N)``.
        target: class indices of shape ``(...)``, or probabilities :math:`p` of shape ``(..., N)``.
        temperature, mask, count, reduction: as in :func:`~kdlab.objectives.divergences.forward_kl`.

    Raises:
        TypeError, ValueError: as there; also for labels out of range and for a target with negative
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
        target = counted_labels(target, student_logits, mask)
        losses = -log_q.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    return reduce(losses, mask, reduction, count)


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    temperature=4.0,
    hard_weight: float | None = None,
    soft_weight: float | None = None,
    mask: Tensor | None = None,
    count=None,
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
        mask, count, reduction: as in :func:`~kdlab.objectives.divergences.forward_kl`.

    Raises:
        TypeError: if neither or both weights are given.
        ValueError: if the weight is outside [0, 1]; otherwise as there.

    Source: Hinton, Vinyals & Dean (2015), section 2.

    >>> z, t, y = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]]), torch.tensor([0])
    >>> distillation_loss(z, t, y, soft_weight=0.9) == distillation_loss(z, t, y, hard_weight=0.1)
    tensor(True)
    """
    if (hard_weight is None) == (soft_weight is None):
        raise TypeError("give exactly one of hard_weight and soft_weight; the other is one minus it.")
    check_fraction("a weight", hard_weight if soft_weight is None else soft_weight)
    hard_weight = hard_weight if soft_weight is None else 1 - soft_weight
    how = {"mask": mask, "count": count, "reduction": reduction}
    hard = cross_entropy(student_logits, labels, **how)
    soft = soft_targets(student_logits, teacher_logits, temperature=temperature, **how)
    return hard_weight * hard + (1 - hard_weight) * soft


def logit_mse(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    centred: bool = False,
    mask: Tensor | None = None,
    count=None,
    reduction: str = "batchmean",
) -> Tensor:
    r"""Logit matching: the mean squared difference of the logits.

    .. math:: \frac1N \sum_i (z_i - t_i)^2, \qquad \frac{\partial}{\partial z_i} = \frac{2 (z_i - t_i)}{N}

    With ``centred``, both logits have their mean subtracted, which no softmax can see; **half** of that is the limit of
    :func:`soft_targets` as :math:`T \to \infty`. Convention: mean over classes and distributions; no temperature.

    Source: Ba & Caruana (2014), eq. 1, half the sum over the classes: this is :math:`2/N` times it; the limit, Hinton, Vinyals & Dean (2015), eq. 4.

    >>> logit_mse(torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 0.0]]))
    tensor(2.)
    >>> logit_mse(torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 0.0]]), centred=True)
    tensor(1.)
    """
    check_same_shape(student_logits, teacher_logits)
    difference = full_precision(student_logits) - full_precision(teacher_logits)
    if centred:
        difference = difference - difference.mean(-1, keepdim=True)
    return reduce(difference.square().mean(-1), mask, reduction, count)


def standardise(logits: Tensor) -> Tensor:
    r"""Logits with mean zero and standard deviation one, so that only their *shape* is matched, not their scale.

    .. math:: \frac{z_i - \bar z}{s(z)}, \qquad s^2 = \frac{1}{N-1}\sum_i (z_i - \bar z)^2

    Apply it to student and teacher, and then any loss at a base temperature: ``soft_targets(standardise(z),
    standardise(t), temperature=2)``. All-equal logits become zeros.

    Source: Sun et al. (2024), Logit Standardization in Knowledge Distillation, algorithm 1, which divides by :math:`N`; with
    :math:`N-1`, as here, in the authors' code.

    >>> standardise(torch.tensor([1.0, 2.0, 3.0]))
    tensor([-1.,  0.,  1.])
    """
    check_logits("logits", logits)
    logits = full_precision(logits)
    shifted = logits - logits.detach().amax(-1, keepdim=True)  # exactly zero where all are equal
    centred = shifted - shifted.mean(-1, keepdim=True)
    variance = centred.square().sum(-1, keepdim=True) / (logits.shape[-1] - 1)
    return centred / variance.where(variance > 0, 1.0).sqrt()


def decoupled_kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    target_weight: float = 1.0,
    other_weight: float = 8.0,
    temperature=4.0,
    mask: Tensor | None = None,
    count=None,
    reduction: str = "batchmean",
) -> Tensor:
    r"""Decoupled distillation: how likely the true class is, and how the rest is spread, weighted apart.

    .. math:: T^2\Bigl[\alpha\, D_{\mathrm{KL}}\bigl((p_y, 1-p_y)\,\|\,(q_y, 1-q_y)\bigr)
        + \beta\, D_{\mathrm{KL}}(\hat p\,\|\,\hat q)\Bigr], \qquad \hat p_i = \frac{p_i}{1-p_y}\ (i \neq y)

    With :math:`\alpha = 1` and :math:`\beta = 1 - p_y` it is :func:`soft_targets`; the point of the method is that
    :math:`\beta` need not vanish where the teacher is sure. With two classes :math:`\hat p = \hat q = 1`, and the second
    term is zero. Convention: forward; **times** :math:`T^2`; nats. The other classes are normalised among themselves, not
    pushed to −1000, so that nothing leaks at any temperature or precision.

    Args:
        labels: class indices, shape ``(...)``.
        target_weight: :math:`\alpha`.
        other_weight: :math:`\beta`.

    Source: Zhao et al. (2022), section 3; the factor :math:`T^2` and the defaults are those of their code.

    >>> z, t = torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([[2.0, 1.0, 0.0]])
    >>> decoupled_kd(z, t, torch.tensor([0]), temperature=1.0)
    tensor(1.1166)
    """
    check_same_shape(student_logits, teacher_logits)
    labels = counted_labels(labels, student_logits, mask)
    (p_true, p_other), (q_true, q_other) = (
        _decoupled(logits, labels, temperature) for logits in (teacher_logits, student_logits)
    )
    losses = target_weight * _kl(p_true, q_true) + other_weight * _kl(p_other, q_other)
    return reduce(_squared(temperature) * losses, mask, reduction, count)


def _decoupled(logits, labels, temperature):
    """(log q_y, log(1 − q_y)), and the log-probabilities of the other classes among themselves."""
    true = labels.unsqueeze(-1)
    rank = torch.arange(logits.shape[-1] - 1, device=logits.device)
    others = rank + (rank >= true).long()
    log_q = log_soften(logits, temperature)
    rest = log_q.gather(-1, others).logsumexp(-1, keepdim=True)
    return torch.cat([log_q.gather(-1, true), rest], -1), log_softmax(logits.gather(-1, others), temperature)


def dist(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    inter_weight: float = 1.0,
    intra_weight: float = 1.0,
    temperature=1.0,
    mask: Tensor | None = None,
) -> Tensor:
    r"""DIST: correlation in place of divergence, between classes and between examples.

    .. math:: T^2\Bigl[\beta\,\frac1B\sum_b \bigl(1 - \rho(p_{b\cdot}, q_{b\cdot})\bigr)
        + \gamma\,\frac1N\sum_i \bigl(1 - \rho(p_{\cdot i}, q_{\cdot i})\bigr)\Bigr]

    with :math:`\rho` Pearson's correlation: along the classes of an example (inter-class), and along the examples of a
    class (intra-class). Convention: **times** :math:`T^2`; a mean over the batch and over the classes. The second part
    compares examples with each other, so the loss of a batch is not the mean of its parts' losses, and there is no
    ``reduction`` or ``count``. All positions of all sequences that count are one batch.

    Args:
        inter_weight: :math:`\beta`.
        intra_weight: :math:`\gamma`.

    Raises:
        ValueError: also for fewer than two examples.

    Source: Huang et al. (2022), section 3; the factor :math:`T^2` is that of their code.

    >>> z = torch.tensor([[1.0, 0.0, 2.0], [0.0, 3.0, 1.0]])
    >>> dist(z, z).abs() < 1e-6, dist(z, -z) > 1
    (tensor(True), tensor(True))
    """
    check_same_shape(student_logits, teacher_logits)
    p, q = log_soften(teacher_logits, temperature).exp(), log_soften(student_logits, temperature).exp()
    inter = reduce(_squared(temperature) * (1 - _correlation(p, q, -1)), mask)
    counted = torch.ones_like(q[..., 0]) if mask is None else mask.to(q.dtype)
    check_several(counted)
    rows = p.flatten(0, -2), q.flatten(0, -2)
    intra = (1 - _correlation(*rows, 0, counted.flatten().unsqueeze(-1))).mean()
    squared = (_squared(temperature) * counted).sum() / counted.sum()
    return inter_weight * inter + intra_weight * squared * intra


def _correlation(a, b, dim, weight=1.0):
    """Pearson's correlation along an axis; where one side is constant to rounding, zero with gradient zero."""

    def centred(x):
        w = torch.as_tensor(weight, dtype=x.dtype, device=x.device).expand_as(x)
        c = w * (x - (w * x).sum(dim, keepdim=True) / w.sum(dim, keepdim=True))
        variation = c.square().sum(dim)
        varies = variation > (8 * torch.finfo(x.dtype).eps) ** 2 * (w * x).square().sum(dim)
        return c, variation.where(varies, 1.0).sqrt(), varies

    (a, a_norm, a_varies), (b, b_norm, b_varies) = centred(a), centred(b)
    return ((a * b).sum(dim) / (a_norm * b_norm)).where(a_varies & b_varies, 0.0)


def smooth_labels(labels: Tensor, num_classes: int, *, smoothing: float = 0.1) -> Tensor:
    r"""Label smoothing as a teacher: the distribution that it asks the student for.

    .. math:: p_i = (1 - \varepsilon)\,[i = y] + \frac{\varepsilon}{N}

    The same for every example of a class: a teacher without dark knowledge. Give it to :func:`cross_entropy` as its
    target, or its logarithm to any loss as ``teacher_logits``.

    Args:
        labels: class indices, shape ``(...)``.
        num_classes: :math:`N`.
        smoothing: :math:`\varepsilon \in [0, 1]`.

    Returns:
        Probabilities of shape ``(..., N)``, float32.

    Source: Szegedy et al. (2016), section 7; as a teacher, Yuan et al. (2020), section 3.

    >>> smooth_labels(torch.tensor([1]), 4, smoothing=0.2)
    tensor([[0.0500, 0.8500, 0.0500, 0.0500]])
    """
    check_fraction("smoothing", smoothing)
    uniform = torch.full((*torch.as_tensor(labels).shape, num_classes), smoothing / num_classes)
    check_labels(labels, uniform)
    uniform, index = uniform.to(labels.device), labels.long().unsqueeze(-1)
    return uniform.scatter_add(-1, index, torch.full_like(uniform[..., :1], 1 - smoothing))


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


def spread_dark_knowledge(teacher_logits: Tensor, labels: Tensor, *, temperature=1.0) -> Tensor:
    r"""The teacher's logits with what it gives to wrong classes spread evenly over them.

    .. math:: t'_y = t_y, \qquad t'_j = T \log \frac{1}{N-1} \sum_{k \ne y} e^{t_k/T} \quad (j \ne y)

    At temperature :math:`T` the true class keeps its probability. What is destroyed is every difference between wrong
    classes, and nothing is drawn at random: beside :func:`permute_dark_knowledge` it tells the loss of the structure from
    the noise of shuffling.

    Args:
        teacher_logits: shape ``(..., N)``.
        labels: class indices, shape ``(...)``.
        temperature: :math:`T`, at which the result will be softened.

    Returns:
        Logits of the same shape.

    >>> from kdlab.objectives import soften
    >>> even = spread_dark_knowledge(torch.tensor([[2.0, 1.0, -1.0]]), torch.tensor([0]))
    >>> soften(even)[0], soften(torch.tensor([2.0, 1.0, -1.0]))[0]
    (tensor([0.7054, 0.1473, 0.1473]), tensor(0.7054))
    """
    check_logits("teacher_logits", teacher_logits)
    check_labels(labels, teacher_logits)
    check_temperature(temperature)
    true_class = torch.zeros_like(teacher_logits, dtype=torch.bool).scatter(
        -1, labels.long().unsqueeze(-1), True
    )
    softened = (full_precision(teacher_logits) / temperature).masked_fill(true_class, -torch.inf)
    even = temperature * (softened.logsumexp(-1, keepdim=True) - math.log(teacher_logits.shape[-1] - 1))
    return torch.where(true_class, teacher_logits, even.to(teacher_logits.dtype))
