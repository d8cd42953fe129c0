r"""Binary and multi-label objectives: each label is present or not, whatever the others are.

Of :math:`L` labels the teacher says :math:`p_l = \sigma(t_l/T)` and the student :math:`q_l = \sigma(z_l/T)`. Independent labels have a
joint distribution that is a product, and divergences of products add up:

.. math:: D_{\mathrm{KL}}(p\,\|\,q) = \sum_l \Bigl[p_l \log\frac{p_l}{q_l} + (1 - p_l)\log\frac{1 - p_l}{1 - q_l}\Bigr]

Convention: a **sum** over labels, a mean over examples; a single yes or no is one label, of shape ``(B, 1)``. A sigmoid is the
softmax over two classes with logits :math:`(z, 0)`, so that all that holds of soft targets holds here
(:func:`kdlab.theory.reference.binary_soft_targets`). A label of logit −∞ does not exist: it is never present.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlab.shapes import Bool, Float

from .checks import _inspectable, check_infinite, check_logits, check_mask, check_temperature
from .divergences import _kl
from .reduction import reduce
from .response import _squared
from .schedules import Varying
from .softening import classes_last, full_precision
from .terms import Term, _OfLabels, _Softened
from .types import Count, Logits, Loss, Mask, Probabilities, Reduction, Scalar, Temperature


def binary_soft_targets(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    temperature: Temperature = 4.0,
    mask: Mask | Bool[Tensor, "*batch N"] | None = None,
    count: Count | None = None,
    reduction: Reduction = "batchmean",
    class_axis: int | None = None,
) -> Loss:
    r"""Soft targets of labels that do not exclude each other, with the factor :math:`T^2`.

    .. math:: T^2 \sum_l D_{\mathrm{KL}}\bigl((p_l, 1-p_l)\,\|\,(q_l, 1-q_l)\bigr), \qquad
        \frac{\partial}{\partial z_l} = T\,(q_l - p_l) \xrightarrow{T\to\infty} \frac{z_l - t_l}{4}

    Convention: forward, teacher to student; **times** :math:`T^2`; a sum over labels, a mean over examples.

    Args:
        student_logits: :math:`z`, shape ``(..., L)``.
        teacher_logits: :math:`t`, the same shape.
        temperature: :math:`T > 0`; a number, or a tensor of shape ``(..., 1)``.
        mask: boolean, of examples, ``(...)``, or of labels, ``(..., L)``: False does not count, whatever stands there. An example
            counts if one of its labels does.
        count: what ``"batchmean"`` divides by; None is the number of examples that count.
        reduction: see :func:`~kdlab.objectives.reduction.reduce`; ``"none"`` has shape ``(...)``.
        class_axis: where the labels are, such as 1 for maps ``(B, L, H, W)``, of which each place is then an example; None is the
            last axis. Of four axes and more, it has to be said.

    Raises:
        TypeError: for logits that are not floating-point tensors, or a mask that is not boolean.
        ValueError: for shapes that do not fit, logits of NaN or +∞, or a temperature that is not positive; if it is not clear where
            the labels are.

    Source: for one label, Hinton, Vinyals & Dean (2015) with two classes; for several, Yang et al. (2023), multi-label logits
    distillation, without the :math:`T^2` there.

    >>> binary_soft_targets(torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]]), temperature=1.0)
    tensor(0.3278)
    """
    student_logits, teacher_logits, temperature, mask = _labels_last(
        class_axis, student_logits, teacher_logits, temperature, mask=mask
    )
    student, counted, examples = _labels(student_logits, mask)
    teacher, _, _ = _labels(teacher_logits, mask, "teacher_logits", student_logits.shape)
    check_temperature(temperature, student)
    z, t = student / temperature, teacher / temperature
    losses = _kl(_with_absence(t), _with_absence(z)).where(counted, 0.0).sum(-1)
    check_infinite(losses, examples)
    return reduce(_squared(temperature) * losses, examples, reduction, count)


def _labels_last(class_axis, logits, *others, mask):
    """All with the labels in the last axis; a mask of examples may say that they are there."""
    of_examples = isinstance(mask, Tensor) and isinstance(logits, Tensor) and mask.ndim < logits.ndim
    return classes_last(class_axis, logits, *others, mask, fits=mask if of_examples else None)


def _with_absence(z):
    """log σ(z) and log(1 − σ(z)), shape ``(..., L, 2)``."""
    return torch.stack([F.logsigmoid(z), F.logsigmoid(-z)], -1)


def binary_cross_entropy(
    student_logits: Logits,
    target: Float[Tensor, "*batch N"] | Bool[Tensor, "*batch N"],
    *,
    mask: Mask | Bool[Tensor, "*batch N"] | None = None,
    count: Count | None = None,
    reduction: Reduction = "batchmean",
    class_axis: int | None = None,
) -> Loss:
    r"""Cross-entropy of labels that do not exclude each other.

    .. math:: -\sum_l \bigl[y_l \log \sigma(z_l) + (1 - y_l) \log(1 - \sigma(z_l))\bigr], \qquad
        \frac{\partial}{\partial z_l} = \sigma(z_l) - y_l

    Convention: no temperature; a sum over labels, a mean over examples.

    Args:
        student_logits: :math:`z`, shape ``(..., L)``.
        target: :math:`y`, floating point from 0 to 1 or boolean, the same shape.
        mask, count, reduction, class_axis: as in :func:`binary_soft_targets`.

    Raises:
        TypeError: also for labels that are whole numbers, which could be class indices.
        ValueError: also for labels outside of 0 … 1, and for one that is present and does not exist.

    >>> binary_cross_entropy(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]]))
    tensor(1.3863)
    """
    student_logits, target, mask = _labels_last(class_axis, student_logits, target, mask=mask)
    student, counted, examples = _labels(student_logits, mask)
    y = _targets(target, student, counted)
    present = F.logsigmoid(student).masked_fill(y == 0, 0.0)
    losses = -(y * present + (1 - y) * F.logsigmoid(-student)).where(counted, 0.0).sum(-1)
    check_infinite(losses, examples)
    return reduce(losses, examples, reduction, count)


def check_present(labels: object) -> None:
    """That labels say of each whether it is present: floating point, or boolean."""
    if not isinstance(labels, Tensor) or not (labels.is_floating_point() or labels.dtype == torch.bool):
        kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(
            f"labels that do not exclude each other are floating point, 0 to 1, or boolean, not {kind}: labels.float()."
        )


def _targets(target, student, counted):
    check_present(target)
    if target.shape != student.shape:
        raise ValueError(f"labels of shape {tuple(target.shape)} do not fit logits of shape {tuple(student.shape)}.")
    y = torch.where(counted, target.to(student.dtype), 0.0)
    check_logits("labels", y, at_least=1)
    if _inspectable(y) and not ((y >= 0) & (y <= 1)).all():
        raise ValueError("labels that do not exclude each other lie in 0 … 1.")
    return y


def _labels(logits, mask, name="student_logits", shape=None):
    """Logits with zeros where they do not count; which do, ``(..., L)``; and which examples, ``(...)``, or None for all."""
    if not isinstance(logits, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, not {type(logits).__name__}.")
    if logits.ndim < 2:
        raise ValueError(
            f"{name} have shape (..., labels), not {tuple(logits.shape)}: a single yes or no is one label, logits.unsqueeze(-1)."
        )
    if shape is not None and logits.shape != shape:
        raise ValueError(
            f"logits of shapes {tuple(shape)} and {tuple(logits.shape)} do not belong to the same examples."
        )
    counted, examples = torch.ones_like(logits, dtype=torch.bool), None
    if mask is not None:
        of_labels = isinstance(mask, Tensor) and mask.ndim == logits.ndim
        check_mask(mask, logits if of_labels else logits[..., 0], empty=True)
        counted = mask if of_labels else mask.unsqueeze(-1).expand_as(logits)
        examples = counted.any(-1)
        logits = torch.where(counted, logits, 0.0)
    # Any may be −∞, all of an example too: then it has no label.
    check_logits(name, logits.masked_fill(logits.isneginf(), 0.0) if logits.is_floating_point() else logits, at_least=1)
    return full_precision(logits), counted, examples


class BinaryCrossEntropy(_OfLabels):
    """Labels that do not exclude each other, ``(B, L)``: :func:`~kdlab.objectives.binary.binary_cross_entropy`."""

    def forward(
        self,
        *,
        student_logits: Logits,
        labels: Probabilities | Bool[Tensor, "*batch N"],
        mask: Mask | Bool[Tensor, "*batch N"] | None = None,
        count: Count | None = None,
        **_: Any,
    ) -> Scalar:
        check_present(labels)
        return binary_cross_entropy(student_logits, labels, mask=mask, count=count, class_axis=self.class_axis)


class BinarySoftTargets(_Softened):
    """Soft targets of labels that do not exclude each other: :func:`~kdlab.objectives.binary.binary_soft_targets`."""

    def __init__(self, temperature: Varying = 4.0, class_axis: int | None = None) -> None:
        super().__init__(temperature, class_axis)

    def forward(
        self,
        *,
        student_logits: Logits,
        teacher_logits: Logits,
        labels: Probabilities | Bool[Tensor, "*batch N"] | None = None,
        mask: Mask | Bool[Tensor, "*batch N"] | None = None,
        count: Count | None = None,
        progress: float | None = None,
        **_: Any,
    ) -> Scalar:
        if labels is not None:
            check_present(labels)
        how = self._how(mask, count, progress, self.class_axis)
        return binary_soft_targets(student_logits, teacher_logits.detach(), **how)

    on_tokens = Term.on_tokens
