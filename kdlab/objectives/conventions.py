r"""The same name, several losses: what other libraries compute as their distillation loss, and how to move between them.

The part of the loss that looks at the teacher is everywhere

.. math:: \frac{T^2 \text{ or } 1}{n} \sum_{\text{positions that count}} D(p, q)

with :math:`p` the teacher and :math:`q` the student at temperature :math:`T`. The libraries differ in the divergence
:math:`D`, in the factor, in which positions count and in what :math:`n` is. A weight, a learning rate or a temperature
tuned in one of them is not the same in another; :func:`weight_factor` says by how much.

A factor of the whole loss is a factor of the step under SGD. Under Adam, which divides by the gradient's own size, it cancels, unless there
is another term (labels, weight decay in the gradient) or gradients are clipped.

Read in the sources that each :class:`Convention` names, and compared with those that can be installed.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from math import prod

import torch
from torch import Tensor

from .checks import IGNORED, check_fraction, check_same_shape, check_temperature, counted_labels
from .divergences import forward_kl, generalised_jsd, reverse_kl
from .response import cross_entropy
from .softening import counted_rows, soften
from .types import Labels, Logits, Mask, Scalar


@dataclass(frozen=True)
class Convention:
    """How a library computes its distillation loss.

    Attributes:
        divergence: ``"forward KL"``, ``"cross-entropy"`` (larger by the teacher's entropy, the same gradient), or
            ``"generalised JSD"`` without a scale, which here *jumps* to the forward KL at β = 0 and to the reverse KL at
            β = 1.
        squared: whether it is multiplied by T².
        masked: whether padding is left out.
        divides_by: ``"positions"`` (those that count), ``"positions × N"``, ``"batch"`` (the size of the first axis) or
            ``"batch × max_length"``.
        temperature: the default; None has to be given.
        weights: the defaults of labels and teacher; None if they have to be given.
        names: what the library calls the weight of the labels, that of the teacher, and the temperature; None where it
            has no such option.
        source: where this was read.
        remark: what surprises.
        normalised: whether the weights are divided by their sum.
        images: whether logits have to have the shape ``(batch, N)``.
        without_labels: what is different where no labels are given.
    """

    divergence: str
    squared: bool
    masked: bool
    divides_by: str
    temperature: float | None
    weights: tuple[float, float] | None
    names: tuple[str | None, str | None, str | None]
    source: str
    remark: str
    normalised: bool = False
    images: bool = False
    without_labels: dict = field(default_factory=dict)


#: The libraries by name; ``"kdlab"`` is :func:`~kdlab.objectives.response.soft_targets`.
#:
#: :meta hide-value:
CONVENTIONS = {
    "kdlab": Convention(
        "forward KL", squared=True, masked=True, divides_by="positions", temperature=4.0, weights=None,
        names=("hard_weight", "soft_weight", "temperature"),
        source="kdlab.objectives.soft_targets; Hinton, Vinyals & Dean (2015), section 2",
        remark="",
    ),
    "RepDistiller": Convention(
        "forward KL", squared=True, masked=False, divides_by="positions", temperature=4.0, weights=None, images=True,
        names=("gamma", "alpha", "kd_T"),
        source="HobbitLong/RepDistiller, distiller_zoo/KD.py at 5237c1f, line 16; helper/loops.py at 1143dfe, line 184",
        remark="The weight of the teacher has no default; its scripts take 0.1 for the labels and 0.9 for the teacher.",
    ),
    "mdistiller": Convention(
        "forward KL", squared=True, masked=False, divides_by="positions", temperature=4.0, weights=(0.1, 0.9),
        images=True, names=("KD.LOSS.CE_WEIGHT", "KD.LOSS.KD_WEIGHT", "KD.TEMPERATURE"),
        source="megvii-research/mdistiller, mdistiller/distillers/KD.py at e8c5bb3, lines 8 to 12; engine/cfg.py at a08d46f, lines 61 to 64",
        remark="",
    ),
    "torchdistill": Convention(
        "forward KL", squared=True, masked=False, divides_by="positions", temperature=None, weights=None, images=True,
        names=("alpha", "beta", "temperature"), without_labels={"squared": False},
        source="torchdistill 1.1.5, losses/mid_level.py: KDLoss, lines 182 to 189",
        remark="Without labels, or with alpha = 0, it returns the bare KL: without T², and without beta.",
    ),
    "timm": Convention(
        "forward KL", squared=True, masked=False, divides_by="positions", temperature=1.0, weights=(1.0, 1.0), images=True,
        names=("task_loss_weight", "distill_loss_weight", "temperature"),
        source="huggingface/pytorch-image-models, timm/task/distillation.py at 3034f27: LogitDistillationTask",
        remark="Of task_loss_weight alone the teacher's weight becomes the rest to one; of distill_loss_weight alone the labels' is one.",
    ),
    "DeiT": Convention(
        "forward KL", squared=True, masked=False, divides_by="positions × N", temperature=1.0, weights=(0.5, 0.5), images=True,
        names=("1 − alpha", "alpha", "tau"),
        source="facebookresearch/deit, losses.py at ae4dba9, lines 54 to 69; main.py at 7e160fe, lines 145 to 147; its issue 61",
        remark="It divides by the classes as well, on purpose. Labels and teacher look at two heads of the student.",
    ),
    "TRL": Convention(
        "generalised JSD", squared=False, masked=True, divides_by="positions", temperature=1.0, weights=None,
        names=(None, None, "temperature"),
        source="trl 1.16.0, trainer/distillation_trainer.py: _chunked_divergence_loss, called in line 1904; Agarwal et al. (2024), eq. 1",
        remark="Its default is β = 1, the reverse KL. One temperature is for sampling and for the loss.",
    ),
    "TRL GKD": Convention(
        "generalised JSD", squared=False, masked=True, divides_by="positions", temperature=1.0, weights=None,
        names=(None, None, None), without_labels={"divides_by": "batch"},
        source="trl 1.16.0, experimental/gkd/gkd_trainer.py: GKDTrainer.generalized_jsd_loss, line 238; Agarwal et al. (2024), eq. 1",
        remark="The trainer keeps its temperature for sampling and calls the loss without one: T is 1, whatever is set.",
    ),
    "Liger": Convention(
        "generalised JSD", squared=False, masked=True, divides_by="positions", temperature=1.0, weights=(0.5, 0.5),
        names=("weight_hard_loss", "weight_soft_loss", "temperature"),
        source="liger-kernel 0.8.5, chunked_loss/jsd_loss.py: LigerFusedLinearJSDLoss, with fused_linear_distillation.py, lines 120 to 148",
        remark="A student of fewer classes is padded with logits of zero, which are not of probability zero.",
    ),
    "DistillKit 0.1": Convention(
        "forward KL", squared=True, masked=False, divides_by="batch × max_length", temperature=2.0, weights=(0.5, 0.5),
        names=("1 − alpha", "alpha", "temperature"),
        source="arcee-ai/DistillKit, distil_logits.py at 09fbb0c, lines 156 to 165",
        remark="It divides by the longest length that is configured, 4096, not by that of the batch; padding counts.",
    ),
    "DistillKit 1.0": Convention(
        "forward KL", squared=True, masked=True, divides_by="positions", temperature=1.0, weights=(0.5, 0.5),
        normalised=True, names=("weight", "weight", "temperature"),
        source="arcee-ai/DistillKit at a61c2e7, distillkit/lossfuncs/kl.py, lines 205 to 231; distillkit/trainer.py, lines 106 to 131",
        remark="Weights are divided by their sum. Its mask is that of the labels before they are shifted by one.",
    ),
    "TextBrewer": Convention(
        "cross-entropy", squared=False, masked=True, divides_by="positions", temperature=4.0, weights=(0.0, 1.0),
        names=("hard_label_weight", "kd_loss_weight", "temperature"),
        source="airaria/TextBrewer at 2c105fa, src/textbrewer/losses.py: kd_ce_loss, lines 23 to 37; distiller_general.py, lines 93 to 167",
        remark="Its mask is left unused for logits of shape (batch, N).",
    ),
}  # fmt: skip


def loss_as_in(
    library: str,
    student_logits: Logits,
    teacher_logits: Logits,
    labels: Labels | None = None,
    *,
    temperature: float,
    mask: Mask | None = None,
    beta: float = 0.5,
    max_length: int | None = None,
    hard_weight: float | None = None,
    soft_weight: float | None = None,
) -> Scalar:
    r"""The distillation loss of another library, to the last constant.

    Without labels it is the teacher's part alone, unweighted. With labels it is what the library trains on,

    .. math:: w_{\text{hard}}\,\mathrm{CE}(y, q_{T=1}) + w_{\text{soft}}\,\frac{T^2 \text{ or } 1}{n} \sum D(p, q)

    with the library's default weights, where it has some, and with what becomes of :math:`T^2` there once labels are given.

    Args:
        library: a name in :data:`CONVENTIONS`.
        student_logits, teacher_logits: shape ``(..., N)``; ``(batch, N)`` for libraries made for images.
        labels: class indices, shape ``(...)``, in step with the logits; -100 is padding.
        temperature: :math:`T > 0`, one number.
        mask: boolean, shape ``(...)``, True where a position counts; None takes labels other than -100.
        beta: weight of the teacher in the Jensen–Shannon divergence of TRL and Liger (their defaults: 1 in TRL's
            ``DistillationTrainer``, 0.5 in its ``GKDTrainer`` and in Liger).
        max_length: what DistillKit 0.1 divides by, besides the batch.
        hard_weight, soft_weight: in place of the defaults. The library's own names are in ``Convention.names``.

    Returns:
        A scalar, equal to the library's up to rounding. Of padding alone it is zero, where some libraries give NaN.

    Raises:
        TypeError, ValueError: for what the library cannot take (a name that is not known, logits of a sequence where it
            wants images, a mask that it ignores, weights that it has not, or has no default for), and as
            :func:`~kdlab.objectives.divergences.forward_kl`.

    >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[8.0, 0.0]])
    >>> for library in ("mdistiller", "torchdistill", "TextBrewer", "TRL"):
    ...     print(library, round(loss_as_in(library, student, teacher, temperature=4.0).item(), 4))
    mdistiller 5.245
    torchdistill 0.3278
    TextBrewer 0.6931
    TRL 0.0895
    """
    plain = labels is None or (hard_weight == 0 and bool(_convention(library).without_labels))
    convention = _convention(library, labelled=not plain or mask is not None)
    real = mask if mask is not None or labels is None else labels != IGNORED
    fits = isinstance(real, Tensor) and isinstance(student_logits, Tensor) and real.shape == student_logits.shape[:-1]
    check_same_shape(student_logits, teacher_logits, real if convention.masked and fits else None)
    _check_number(temperature)
    if student_logits.ndim < 2 or (convention.images and student_logits.ndim > 2):
        takes = "(batch, N)" if convention.images else "(batch, ..., N)"
        raise ValueError(f"{library} takes logits of shape {takes}, not {tuple(student_logits.shape)}.")
    if mask is not None and not convention.masked:
        raise ValueError(f"{library} has no mask: padding counts there.")
    weights = _weights(library, convention, labels, hard_weight, soft_weight)

    everywhere = torch.ones_like(student_logits[..., 0], dtype=torch.bool)
    real = everywhere if real is None else real
    if labels is not None:
        labels = counted_labels(labels, student_logits, real)
    counted = real if convention.masked else everywhere
    total = _divergence(convention, beta)(
        student_logits, teacher_logits, temperature=temperature, mask=counted, reduction="sum", class_axis=-1
    )
    positions, classes = counted.sum().clamp(min=1), student_logits.shape[-1]
    soft = _scaled(total, convention, temperature, counted.shape, positions, max_length, classes)
    if plain or weights is None or labels is None:
        return soft
    return (
        weights[0] * cross_entropy(student_logits, labels, mask=real, count=real.sum().clamp(min=1), class_axis=-1)
        + weights[1] * soft
    )


def weight_factor(
    source: str,
    target: str,
    *,
    temperature: float,
    shape: tuple[int, ...] = (1,),
    tokens: int | None = None,
    beta: float = 0.5,
    max_length: int | None = None,
    classes: int | None = None,
    labels: bool = True,
) -> float:
    r"""By what to multiply the teacher's weight when a recipe moves from one library to another.

    .. math:: \nabla L_{\text{source}} = \text{factor} \cdot \nabla L_{\text{target}}

    Args:
        source, target: names in :data:`CONVENTIONS`; ``"kdlab"`` is one of them.
        temperature: :math:`T > 0`, one number, the same in both.
        shape: that of the labels, ``logits.shape[:-1]``.
        tokens: how many of these positions are not padding; None is all.
        beta, max_length: as in :func:`loss_as_in`.
        classes: :math:`N`, which DeiT divides by.
        labels: whether the loss is given labels, with a weight that is not zero; compare with :func:`loss_as_in` given some.

    Raises:
        ValueError: where no factor will do: for divergences whose gradients differ in direction, and for padding that
            counts in one library only.

    >>> weight_factor("TextBrewer", "kdlab", temperature=4.0)
    0.0625
    """
    _check_number(temperature)
    here, there = _convention(source, labels), _convention(target, labels)
    kinds = [_kind(convention, beta).replace("cross-entropy", "forward KL") for convention in (here, there)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"{source} takes the {kinds[0]} and {target} the {kinds[1]}: their gradients differ in direction, and no "
            "factor turns one into the other. (The terms ForwardKL, ReverseKL and GeneralisedJSD compute each of them.)"
        )
    positions = prod(shape)
    real = positions if tokens is None else tokens
    if not 0 < real <= positions:
        raise ValueError(f"tokens must lie in 1 … {positions}, the number of positions, not {tokens!r}.")
    if real != positions and here.masked != there.masked:
        raise ValueError(f"padding counts in one of {source} and {target} alone: no factor turns one into the other.")
    here, there = (
        _scaled(1.0, convention, temperature, shape, real if convention.masked else positions, max_length, classes)
        for convention in (here, there)
    )
    return here / there


def _convention(library, labelled=True):
    if library not in CONVENTIONS:
        raise ValueError(f"no convention is known of {library!r}; there are {', '.join(CONVENTIONS)}.")
    convention = CONVENTIONS[library]
    return convention if labelled else replace(convention, **convention.without_labels)


def _kind(convention, beta):
    check_fraction("beta", beta)
    ends = {0: "forward KL", 1: "reverse KL"} if convention.divergence == "generalised JSD" else {}
    return ends.get(beta, convention.divergence)


def _divergence(convention, beta):
    return {
        "forward KL": forward_kl,
        "reverse KL": reverse_kl,
        "generalised JSD": partial(generalised_jsd, beta=beta),
        "cross-entropy": _soft_cross_entropy,
    }[_kind(convention, beta)]


def _soft_cross_entropy(student_logits, teacher_logits, *, temperature, mask, **how):
    target = soften(counted_rows(teacher_logits, mask), temperature, class_axis=-1)
    return cross_entropy(student_logits, target, temperature=temperature, mask=mask, **how)


def _scaled(total, convention, temperature, shape, positions, max_length, classes):
    """The sum of divergences, with its factor and divided by what the library divides by."""
    if convention.divides_by == "batch × max_length" and max_length is None:
        raise ValueError("DistillKit 0.1 divides by the maximal length that is configured: give max_length.")
    if convention.divides_by == "positions × N" and classes is None:
        raise ValueError("DeiT divides by the number of classes: give classes.")
    count = {
        "positions": positions,
        "positions × N": positions * (classes or 0),
        "batch": shape[0],
        "batch × max_length": shape[0] * (max_length or 0),
    }[convention.divides_by]
    return (temperature**2 if convention.squared else 1.0) * total / count


def _check_number(temperature):
    if isinstance(temperature, Tensor):
        raise TypeError("the temperature of another library is one number, not a tensor.")
    check_temperature(temperature)


def _weights(library, convention, labels, hard_weight, soft_weight):
    """The weights of labels and teacher, or None where the loss is the teacher's part alone."""
    if labels is None or convention.names[0] is None:
        if hard_weight is not None or soft_weight is not None:
            raise ValueError(f"{library} takes no weights {'without labels' if labels is None else 'in its loss'}.")
        return None
    defaults = convention.weights or (None, None)
    hard = defaults[0] if hard_weight is None else hard_weight
    soft = defaults[1] if soft_weight is None else soft_weight
    if hard is None or soft is None:
        raise ValueError(f"{library} has no default for its weights: give hard_weight and soft_weight.")
    total = hard + soft if convention.normalised else 1.0
    return hard / total, soft / total
