r"""Response-based objectives: match what the teacher says about the classes.

Convention of the whole file: :math:`p = \operatorname{softmax}(t/T)` is the teacher, :math:`q =
\operatorname{softmax}(z/T)` the student, :math:`z` and :math:`t` their logits, :math:`y` the label. What the literature
scales by :math:`T^2` is scaled here (:func:`soft_targets`, :func:`decoupled_kd`, :func:`dist_loss`); bare divergences are in
:mod:`kdlab.objectives.divergences` and are not. ``temperature``, ``mask``, ``count``, ``reduction`` and ``class_axis``, the
result's type and the errors are those of :func:`~kdlab.objectives.divergences.forward_kl`.
"""

import warnings
from typing import Any

import torch
from torch import Tensor

from kdlab.shapes import Float

from .checks import (
    _inspectable,
    check_distribution,
    check_features,
    check_fraction,
    check_indices,
    check_labels,
    check_logits,
    check_mask,
    check_outputs,
    check_several,
    check_temperature,
    counted_labels,
)
from .divergences import _kl, _reduced
from .reduction import reduce
from .softening import (
    classes_last,
    counted_rows,
    full_precision,
    log_softmax,
    log_sum_exp,
    prepared,
    prepared_alone,
    said_axis,
)
from .types import Count, Labels, Logits, Loss, Mask, Probabilities, Reduction, Scalar, Temperature


def _squared(temperature):
    """T², one a distribution where T is a tensor of shape (..., 1)."""
    squared = temperature**2
    return squared.squeeze(-1) if isinstance(squared, Tensor) and squared.ndim else squared


def soft_targets(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    temperature: Temperature = 4.0,
    mask: Mask | None = None,
    count: Count | None = None,
    reduction: Reduction = "batchmean",
    class_axis: int | None = None,
) -> Loss:
    r"""The soft-target loss of knowledge distillation, with its factor :math:`T^2`.

    .. math:: T^2 \, D_{\mathrm{KL}}(p \,\|\, q), \qquad
        \frac{\partial}{\partial z_i} = T\,(q_i - p_i) \xrightarrow{T\to\infty} \frac{\tilde z_i - \tilde t_i}{N}

    with :math:`\tilde z, \tilde t` the logits centred to mean zero. Convention: forward, teacher to student; **times**
    :math:`T^2`; mean over distributions.

    Source: Hinton, Vinyals & Dean (2015), section 2 and eq. 4.

    >>> soft_targets(torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]]), temperature=100.0)
    tensor(0.5000)
    """
    student, teacher, temperature = prepared(
        student_logits, teacher_logits, temperature, mask=mask, class_axis=class_axis
    )
    losses = _kl(log_softmax(teacher, temperature), log_softmax(student, temperature))
    return _reduced(_squared(temperature) * losses, mask, reduction, count)


def cross_entropy(
    student_logits: Logits,
    target: Labels | Probabilities,
    *,
    temperature: Temperature = 1.0,
    mask: Mask | None = None,
    count: Count | None = None,
    reduction: Reduction = "batchmean",
    class_axis: int | None = None,
) -> Loss:
    r"""Cross-entropy with integer labels or with a target distribution.

    .. math:: -\sum_i p_i \log q_i, \qquad \frac{\partial}{\partial z_i} = \frac{q_i \sum_k p_k - p_i}{T}

    The gradient is :math:`(q_i - p_i)/T` only because a distribution sums to one, so a target that does not is
    refused. Differs from :func:`~kdlab.objectives.divergences.forward_kl` by the target's entropy, which is constant in the
    student. Convention: no :math:`T^2`; nats; mean over distributions.

    Args:
        student_logits: :math:`z`, shape ``(..., N)``.
        target: class indices of shape ``(...)``, or probabilities :math:`p` of shape ``(..., N)``, as of mixup.
        temperature, mask, count, reduction, class_axis: as in :func:`~kdlab.objectives.divergences.forward_kl`.

    Raises:
        TypeError, ValueError: as there; also for labels out of range and for a target with negative
            entries or rows that do not sum to one within 1e-3.

    >>> cross_entropy(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
    tensor(0.1269)
    >>> cross_entropy(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.5, 0.5]]))
    tensor(1.1269)
    """
    soft = isinstance(target, Tensor) and target.is_floating_point()
    student, temperature = prepared_alone(
        student_logits, temperature, mask=mask, class_axis=class_axis, fits=None if soft else target
    )
    log_q = log_softmax(student, temperature)
    if soft:
        _, target = classes_last(class_axis, student_logits, target, fits=mask)
        check_distribution(target, student, mask)
        p = counted_rows(target.to(log_q.dtype), mask)
        losses = -(p * log_q.masked_fill(p == 0, 0.0)).sum(-1)
    else:
        target = counted_labels(target, student, mask)
        losses = -log_q.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    return _reduced(losses, mask, reduction, count)


def distillation_loss(
    student_logits: Logits,
    teacher_logits: Logits,
    labels: Labels | Probabilities,
    *,
    temperature: Temperature = 4.0,
    hard_weight: float | None = None,
    soft_weight: float | None = None,
    mask: Mask | None = None,
    count: Count | None = None,
    reduction: Reduction = "batchmean",
    class_axis: int | None = None,
) -> Loss:
    r"""Hard labels and soft targets, weighted to sum to one.

    .. math:: L = w_{\text{hard}}\,\mathrm{CE}(y, q_{T=1}) + w_{\text{soft}}\,T^2 D_{\mathrm{KL}}(p \,\|\, q),
        \qquad w_{\text{hard}} + w_{\text{soft}} = 1

    The literature calls either weight :math:`\alpha`. Here exactly one of the two is given, by name, and the other
    follows: :math:`\alpha` of :math:`\alpha\,\mathrm{CE} + (1-\alpha)\,\mathrm{KD}` is ``hard_weight``;
    :math:`\alpha` of :math:`(1-\alpha)\,L_{\text{hard}} + \alpha T^2 L_{\text{soft}}` is ``soft_weight``.

    Args:
        student_logits, teacher_logits: shape ``(..., N)``.
        labels: class indices, shape ``(...)``, or probabilities, shape ``(..., N)``.
        temperature: :math:`T > 0` of the soft targets; the hard labels are always matched at :math:`T = 1`.
        hard_weight: :math:`w_{\text{hard}} \in [0, 1]`; or
        soft_weight: :math:`w_{\text{soft}} \in [0, 1]`.
        mask, count, reduction, class_axis: as in :func:`~kdlab.objectives.divergences.forward_kl`.

    Raises:
        TypeError: if neither or both weights are given.
        ValueError: if the weight is outside [0, 1]; otherwise as there.

    Source: Hinton, Vinyals & Dean (2015), section 2.

    >>> z, t, y = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]]), torch.tensor([0])
    >>> distillation_loss(z, t, y, soft_weight=0.9) == distillation_loss(z, t, y, hard_weight=0.1)
    tensor(True)
    """
    given = hard_weight if soft_weight is None else soft_weight
    if given is None or None not in (hard_weight, soft_weight):
        raise TypeError("give exactly one of hard_weight and soft_weight; the other is one minus it.")
    check_fraction("a weight", given)
    hard_weight = given if soft_weight is None else 1 - given
    axis = said_axis(class_axis, student_logits, labels)
    how: dict[str, Any] = {"mask": mask, "count": count, "reduction": reduction, "class_axis": axis}
    hard = cross_entropy(student_logits, labels, **how)
    soft = soft_targets(student_logits, teacher_logits, temperature=temperature, **how)
    return hard_weight * hard + (1 - hard_weight) * soft


def logit_mse(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    centred: bool = False,
    mask: Mask | None = None,
    count: Count | None = None,
    reduction: Reduction = "batchmean",
    class_axis: int | None = None,
) -> Loss:
    r"""Logit matching: the mean squared difference of the logits.

    .. math:: \frac1N \sum_i (z_i - t_i)^2, \qquad \frac{\partial}{\partial z_i} = \frac{2 (z_i - t_i)}{N}

    With ``centred``, both logits have their mean subtracted, which no softmax can see; **half** of that is the limit of
    :func:`soft_targets` as :math:`T \to \infty`. Convention: mean over classes and distributions; no temperature. A class that
    does not exist on both sides (−∞) is none of the :math:`N`; one that exists on one side alone is refused. One output is enough
    (:math:`N = 1`, as of a regression; both of shape ``(B, 1)``); ``centred``, nothing would be left of it, which is refused.

    Source: Ba & Caruana (2014), eq. 1, half the sum over the classes: this is :math:`2/N` times it; the limit, Hinton, Vinyals & Dean (2015), eq. 4.

    >>> logit_mse(torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 0.0]]))
    tensor(2.)
    >>> logit_mse(torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 0.0]]), centred=True)
    tensor(1.)
    """
    student, teacher, _ = prepared(student_logits, teacher_logits, mask=mask, class_axis=class_axis, at_least=1)
    if centred and student.shape[-1] == 1:
        raise ValueError("of one output, centred, nothing is left to match: centred=False.")
    difference = full_precision(student) - full_precision(teacher)
    total, classes, absent = difference.sum(-1, keepdim=True), student.shape[-1], None
    if not _inspectable(total) or not torch.isfinite(total).all():
        absent = student.isneginf() & teacher.isneginf()
        classes, difference = (~absent).sum(-1, keepdim=True), difference.masked_fill(absent, 0.0)
        total = difference.sum(-1, keepdim=True)
    if centred:
        difference = difference - total / classes
        difference = difference if absent is None else difference.masked_fill(absent, 0.0)
    return _reduced((difference.square().sum(-1, keepdim=True) / classes).squeeze(-1), mask, reduction, count)


def squared_error(
    outputs: Float[Tensor, "*batch N"],
    target: Float[Tensor, "*batch N"] | Float[Tensor, "*positions"],
    *,
    mask: Mask | None = None,
    count: Count | None = None,
    reduction: Reduction = "batchmean",
    class_axis: int | None = None,
) -> Loss:
    r"""Regression: the mean squared difference of outputs and labels that are numbers.

    .. math:: \frac1N \sum_i (z_i - y_i)^2, \qquad \frac{\partial}{\partial z_i} = \frac{2 (z_i - y_i)}{N}

    Convention: mean over outputs and examples; nothing is broadcast, so that outputs ``(B, 1)`` and labels ``(B,)`` are of the same
    examples and not of all pairs. The same between student and teacher is :func:`logit_mse`.

    Args:
        outputs: :math:`z`, shape ``(..., N)``.
        target: :math:`y`, floating point, of the same shape; of one output also without its axis.
        mask, count, reduction: see :func:`~kdlab.objectives.reduction.reduce`; what a mask leaves out may be NaN.
        class_axis: where the outputs are, such as 1 for maps ``(B, N, H, W)``; None is the last axis.

    Raises:
        TypeError: for labels that are not floating point.
        ValueError: for shapes that do not fit, and for NaN and infinities.

    >>> squared_error(torch.tensor([[1.0], [0.0]]), torch.tensor([3.0, 0.0]))
    tensor(2.)
    """
    if not isinstance(target, Tensor) or not target.is_floating_point():
        kind = target.dtype if isinstance(target, Tensor) else type(target).__name__
        raise TypeError(f"labels of a regression are floating point, not {kind}: labels.float().")
    if isinstance(outputs, Tensor) and target.ndim == outputs.ndim - 1:
        axis = outputs.ndim - 1 if class_axis is None else class_axis
        target = target.unsqueeze(axis) if outputs.shape[axis] == 1 else target
    check_outputs(outputs)
    if not isinstance(outputs, Tensor) or outputs.shape != target.shape:
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(
            f"labels of shape {tuple(target.shape)} do not fit outputs of shape {shape}: one label an output."
        )
    outputs, target = classes_last(class_axis, outputs, target, fits=mask)
    if mask is not None:
        check_mask(mask, outputs[..., 0], empty=True)
    check_features(outputs, target, ("outputs", "labels"), mask=mask)
    difference = counted_rows(full_precision(outputs), mask) - counted_rows(full_precision(target), mask)
    return reduce(difference.square().mean(-1), mask, reduction, count)


def standardise(logits: Logits, *, class_axis: int | None = None) -> Logits:
    r"""Logits with mean zero and standard deviation one, so that only their *shape* is matched, not their scale.

    .. math:: \frac{z_i - \bar z}{s(z)}, \qquad s^2 = \frac{1}{N-1}\sum_i (z_i - \bar z)^2

    Apply it to student and teacher, and then any loss at a base temperature: ``soft_targets(standardise(z),
    standardise(t), temperature=2)``. All-equal logits become zeros; a class that does not exist keeps its −∞, and is none of
    the :math:`N`.

    Source: Sun et al. (2024), Logit Standardization in Knowledge Distillation, algorithm 1, which divides by :math:`N`; with
    :math:`N-1`, as here, in the authors' code.

    >>> standardise(torch.tensor([1.0, 2.0, 3.0]))
    tensor([-1.,  0.,  1.])
    """
    (logits,) = classes_last(class_axis, logits)
    check_logits("logits", logits)
    shaped = standardised(logits)
    return shaped if class_axis is None else shaped.movedim(-1, class_axis)


def standardised(logits: Logits) -> Logits:
    """What :func:`standardise` computes, unchecked."""
    logits = full_precision(logits)
    shifted = logits - logits.detach().amax(-1, keepdim=True)  # exactly zero where all are equal
    total, classes, absent = shifted.sum(-1, keepdim=True), logits.shape[-1], None
    if not _inspectable(total) or not torch.isfinite(total).all():
        absent = logits.isneginf()
        shifted, classes = shifted.masked_fill(absent, 0.0), (~absent).sum(-1, keepdim=True)
        total = shifted.sum(-1, keepdim=True)
    centred = shifted - total / classes
    centred = centred if absent is None else centred.masked_fill(absent, 0.0)
    others = classes - 1 if absent is None else torch.as_tensor(classes - 1).clamp(min=1)
    variance = centred.square().sum(-1, keepdim=True) / others
    shaped = centred / variance.where(variance > 0, 1.0).sqrt()
    return shaped if absent is None else shaped.masked_fill(absent, -torch.inf)


def decoupled_kd(
    student_logits: Logits,
    teacher_logits: Logits,
    labels: Labels,
    *,
    target_weight: float = 1.0,
    other_weight: float = 8.0,
    temperature: Temperature = 4.0,
    mask: Mask | None = None,
    count: Count | None = None,
    reduction: Reduction = "batchmean",
    class_axis: int | None = None,
) -> Loss:
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
    check_indices(labels, "decoupled_kd")
    student, teacher, temperature = prepared(
        student_logits, teacher_logits, temperature, mask=mask, class_axis=class_axis, fits=labels
    )
    labels = counted_labels(labels, student, mask)
    true = [z.gather(-1, labels.unsqueeze(-1)).isneginf() for z in (student, teacher)]
    if _inspectable(student) and (true[0] & true[1]).any():
        raise ValueError("labels name a class that does not exist, whose logit is −∞ on both sides.")
    (p_true, p_other), (q_true, q_other) = (_decoupled(logits, labels, temperature) for logits in (teacher, student))
    losses = target_weight * _kl(p_true, q_true) + other_weight * _kl(p_other, q_other)
    return _reduced(_squared(temperature) * losses, mask, reduction, count)


def _decoupled(logits, labels, temperature):
    """(log q_y, log(1 − q_y)), and the log-probabilities of the other classes among themselves."""
    true = labels.unsqueeze(-1)
    rank = torch.arange(logits.shape[-1] - 1, device=logits.device)
    others = rank + (rank >= true).long()
    log_q = log_softmax(logits, temperature)
    rest = log_sum_exp(log_q.gather(-1, others))
    other = logits.gather(-1, others)
    if not _inspectable(rest) or rest.isneginf().any():  # where no other class exists, nothing is spread over them
        other = other.masked_fill(rest.isneginf(), 0.0)
    return torch.cat([log_q.gather(-1, true), rest], -1), log_softmax(other, temperature)


def dist_loss(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    inter_weight: float = 1.0,
    intra_weight: float = 1.0,
    temperature: Temperature = 1.0,
    mask: Mask | None = None,
    class_axis: int | None = None,
) -> Scalar:
    r"""DIST: correlation in place of divergence, between classes and between examples.

    .. math:: T^2\Bigl[\beta\,\frac1B\sum_b \bigl(1 - \rho(p_{b\cdot}, q_{b\cdot})\bigr)
        + \gamma\,\frac1N\sum_i \bigl(1 - \rho(p_{\cdot i}, q_{\cdot i})\bigr)\Bigr]

    with :math:`\rho` Pearson's correlation: along the classes of an example (inter-class), and along the examples of a
    class (intra-class). Convention: **times** :math:`T^2`; a mean over the batch and over the classes. The second part
    compares examples with each other, so the loss of a batch is not the mean of its parts' losses, and there is no
    ``reduction`` or ``count``. All positions of all sequences that count are one batch. Classes that do not exist on both sides
    are left out: those of an example of its correlation, those of all examples of the mean over classes.

    Args:
        inter_weight: :math:`\beta`.
        intra_weight: :math:`\gamma`.

    Raises:
        ValueError: also for fewer than two examples.

    Source: Huang et al. (2022), section 3; the factor :math:`T^2` is that of their code.

    >>> z = torch.tensor([[1.0, 0.0, 2.0], [0.0, 3.0, 1.0]])
    >>> dist_loss(z, z).abs() < 1e-6, dist_loss(z, -z) > 1
    (tensor(True), tensor(True))
    """
    student, teacher, temperature = prepared(
        student_logits, teacher_logits, temperature, mask=mask, class_axis=class_axis
    )
    exists = ~(student.isneginf() & teacher.isneginf())
    p, q = log_softmax(teacher, temperature).exp(), log_softmax(student, temperature).exp()
    inter = reduce(_squared(temperature) * (1 - _correlation(p, q, -1, exists)), mask)
    counted = torch.ones_like(q[..., 0]) if mask is None else mask.to(q.dtype)
    check_several(counted)
    rows, counts = (p.flatten(0, -2), q.flatten(0, -2)), counted.flatten().unsqueeze(-1)
    named = (exists.flatten(0, -2) & (counts > 0)).any(0)
    intra = (1 - _correlation(*rows, 0, counts)).where(named, 0.0).sum() / named.sum()
    squared = (_squared(temperature) * counted).sum() / counted.sum()
    return inter_weight * inter + intra_weight * squared * intra


def dist(*logits: Any, **options: Any) -> Scalar:
    """The earlier name of :func:`dist_loss`, which is that of ``torch.distributed`` in most code of the field."""
    warnings.warn(
        "kdlab.objectives.dist is dist_loss since 0.2.0, and ends with 0.4.0.", DeprecationWarning, stacklevel=2
    )
    return dist_loss(*logits, **options)


def _correlation(a, b, dim, weight=1.0):
    """Pearson's correlation along an axis; where one side is constant to rounding, zero with gradient zero."""

    def centred(x):
        w = torch.as_tensor(weight, dtype=x.dtype, device=x.device).expand_as(x)
        c = w * (x - (w * x).sum(dim, keepdim=True) / w.sum(dim, keepdim=True))
        variation = c.square().sum(dim)
        rounding = (8 * torch.finfo(x.dtype).eps) ** 2 * (w * x).square().sum(dim)
        varies = ~(variation <= rounding)  # NaN does not pass for constant
        return c, variation.where(varies, 1.0).sqrt(), varies

    (a, a_norm, a_varies), (b, b_norm, b_varies) = centred(a), centred(b)
    return ((a * b).sum(dim) / (a_norm * b_norm)).where(a_varies & b_varies, 0.0)


def smooth_labels(labels: Labels | Probabilities, num_classes: int, *, smoothing: float = 0.1) -> Probabilities:
    r"""Label smoothing as a teacher: the distribution that it asks the student for.

    .. math:: p_i = (1 - \varepsilon)\,[i = y] + \frac{\varepsilon}{N}

    The same for every example of a class: a teacher without dark knowledge. Give it to :func:`cross_entropy` as its
    target, or its logarithm to any loss as ``teacher_logits``. Labels that are probabilities already, :math:`y_i`, become
    :math:`(1 - \varepsilon)\,y_i + \varepsilon/N`.

    Args:
        labels: class indices, shape ``(...)``, or probabilities, shape ``(..., N)``.
        num_classes: :math:`N`.
        smoothing: :math:`\varepsilon \in [0, 1]`.

    Returns:
        Probabilities of shape ``(..., N)``, float32.

    Source: Szegedy et al. (2016), section 7; as a teacher, Yuan et al. (2020), section 3.

    >>> smooth_labels(torch.tensor([1]), 4, smoothing=0.2)
    tensor([[0.0500, 0.8500, 0.0500, 0.0500]])
    """
    check_fraction("smoothing", smoothing)
    if isinstance(labels, Tensor) and labels.is_floating_point():
        check_distribution(labels, labels.new_empty(()).expand(*labels.shape[:-1], num_classes))
        p = full_precision(labels)
        p = p if p is labels else p / p.sum(-1, keepdim=True)  # of half precision, what its rounding left over
        return (1 - smoothing) * p + smoothing / num_classes
    where = labels.device if isinstance(labels, Tensor) else None
    uniform = torch.full((*torch.as_tensor(labels).shape, num_classes), smoothing / num_classes, device=where)
    check_labels(labels, uniform)
    index = labels.long().unsqueeze(-1)
    return uniform.scatter_add(-1, index, torch.full_like(uniform[..., :1], 1 - smoothing))


def permute_dark_knowledge(
    teacher_logits: Logits,
    labels: Labels,
    *,
    generator: torch.Generator | None = None,
    mask: Mask | None = None,
    class_axis: int | None = None,
) -> Logits:
    r"""The teacher's logits with those of the wrong classes shuffled within each example.

    The true class keeps its probability, and the wrong classes keep their values, at every temperature: what is
    destroyed is only *which* wrong class has which probability. Distilling from the result is the causal test of
    whether a student learns from that.

    Args:
        teacher_logits: shape ``(..., N)``.
        labels: class indices, shape ``(...)``.
        generator: a ``torch.Generator``; None uses torch's own state.
        mask: boolean, shape ``(...)``; where it is False, nothing is looked at, and the result is zero.
        class_axis: as in :func:`~kdlab.objectives.softening.log_soften`.

    Returns:
        Logits of the same shape. Classes that do not exist keep their −∞.

    >>> t = torch.tensor([[9.0, 3.0, 2.0, 1.0]])
    >>> shuffled = permute_dark_knowledge(t, torch.tensor([0]))
    >>> shuffled[0, 0].item(), sorted(shuffled[0].tolist())
    (9.0, [1.0, 2.0, 3.0, 9.0])
    """
    teacher, true_class = _with_true_class(teacher_logits, labels, mask, class_axis)
    keys = torch.rand(teacher.shape, generator=generator, device=teacher.device)
    # Both orders have the true class last, before what does not exist; the wrong classes come in class order, and at random.
    last = true_class + 2.0 * teacher.isneginf()
    to = last.sort(dim=-1, stable=True).indices
    source = torch.where(last == 0, keys, last).sort(dim=-1, stable=True).indices
    shuffled = torch.empty_like(teacher).scatter(-1, to, teacher.gather(-1, source))
    return shuffled if class_axis is None else shuffled.movedim(-1, class_axis)


def _with_true_class(teacher_logits, labels, mask, class_axis):
    """Logits as every loss takes them, and where the true class is."""
    check_indices(labels, "dark knowledge, which is of the wrong classes,")
    teacher, labels = classes_last(class_axis, teacher_logits, labels, fits=labels)
    finite = check_logits("teacher_logits", teacher, mask)
    labels = counted_labels(labels, teacher, mask)
    teacher = counted_rows(teacher, mask, finite)
    true_class = torch.zeros_like(teacher, dtype=torch.bool).scatter(-1, labels.unsqueeze(-1), True)
    if _inspectable(teacher) and not finite and (teacher.isneginf() & true_class).any():
        raise ValueError("labels name a class that does not exist for the teacher, whose logit there is −∞.")
    return teacher, true_class


def spread_dark_knowledge(
    teacher_logits: Logits,
    labels: Labels,
    *,
    temperature: Temperature = 1.0,
    mask: Mask | None = None,
    class_axis: int | None = None,
) -> Logits:
    r"""The teacher's logits with what it gives to wrong classes spread evenly over them.

    .. math:: t'_y = t_y, \qquad t'_j = T \log \frac{1}{N-1} \sum_{k \ne y} e^{t_k/T} \quad (j \ne y)

    At temperature :math:`T` the true class keeps its probability. What is destroyed is every difference between wrong
    classes, and nothing is drawn at random: beside :func:`permute_dark_knowledge` it tells the loss of the structure from
    the noise of shuffling.

    Args:
        teacher_logits: shape ``(..., N)``.
        labels: class indices, shape ``(...)``.
        temperature: :math:`T`, at which the result will be softened.
        mask, class_axis: as in :func:`permute_dark_knowledge`.

    Returns:
        Logits of the same shape. Classes that do not exist keep their −∞, and are none of the :math:`N`.

    >>> from kdlab.objectives import soften
    >>> even = spread_dark_knowledge(torch.tensor([[2.0, 1.0, -1.0]]), torch.tensor([0]))
    >>> soften(even)[0], soften(torch.tensor([2.0, 1.0, -1.0]))[0]
    (tensor([0.7054, 0.1473, 0.1473]), tensor(0.7054))
    """
    teacher, true_class = _with_true_class(teacher_logits, labels, mask, class_axis)
    _, temperature = classes_last(class_axis, teacher_logits, temperature, fits=labels)
    check_temperature(temperature, teacher, mask)
    absent = teacher.isneginf()
    wrong = log_sum_exp((full_precision(teacher) / temperature).masked_fill(true_class, -torch.inf))
    others = (~absent & ~true_class).sum(-1, keepdim=True)
    even = (temperature * (wrong - others.log())).to(teacher.dtype)
    spread = torch.where(true_class | absent, teacher, even)
    return spread if class_axis is None else spread.movedim(-1, class_axis)
