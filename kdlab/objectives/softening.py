r"""Temperature: from logits to softened probabilities."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from kdlab.shapes import Float, Shaped

from .checks import _inspectable, check_logits, check_mask, check_same_shape, check_temperature
from .types import Logits, Mask, Probabilities, Temperature

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def log_soften(logits: Logits, temperature: Temperature = 1.0, *, class_axis: int | None = None) -> Logits:
    r"""Log-probabilities at a temperature.

    .. math:: \log q_i = \frac{z_i}{T} - \log \sum_k e^{z_k/T}

    The largest logit is subtracted *before* the division by :math:`T`, so that differences between large
    logits keep their digits when :math:`T` is small. Half precision is computed in float32.

    Args:
        logits: :math:`z`, of shape ``(..., N)``, floating point. A class that does not exist has logit −∞: its probability is
            zero at every temperature, and its gradient too.
        temperature: :math:`T > 0`, a number, or a tensor of shape ``(..., 1)`` with one temperature a distribution.
        class_axis: where the classes are, such as 1 for maps ``(B, N, H, W)``; None is the last axis. Of four axes and more,
            it has to be said.

    Returns:
        Log-probabilities of the shape of ``logits``; float32 for float16 and bfloat16 logits, else their own type.

    Raises:
        TypeError: if ``logits`` is not a floating-point tensor.
        ValueError: if a logit is NaN or +∞, or all of a distribution are −∞; if the temperature is not positive and finite, or
            not one a distribution; if it is not clear where the classes are.

    Source: Hinton, Vinyals & Dean (2015), eq. 1.

    >>> log_soften(torch.tensor([1e4, 0.0]), temperature=1e4)
    tensor([-0.3133, -1.3133])
    """
    logits, temperature = classes_last(class_axis, logits, temperature)
    check_logits("logits", logits)
    check_temperature(temperature, logits)
    log_q = log_softmax(logits, temperature)
    return log_q if class_axis is None else log_q.movedim(-1, class_axis)


def log_softmax(logits: Logits, temperature: Temperature) -> Logits:
    """What :func:`log_soften` computes, unchecked, and of a single class too."""
    logits = full_precision(logits)
    return torch.log_softmax((logits - logits.detach().amax(-1, keepdim=True)) / temperature, dim=-1)


def log_sum_exp(x: Float[Tensor, "*batch N"]) -> Float[Tensor, "*batch 1"]:
    """log Σ exp along the last axis, which stays; −∞ with gradient zero where all are −∞."""
    total = x.logsumexp(-1, keepdim=True)
    if _inspectable(total) and torch.isfinite(total).all():
        return total
    none = x.isneginf().all(-1, keepdim=True)
    return x.masked_fill(none, 0.0).logsumexp(-1, keepdim=True).masked_fill(none, -torch.inf)


def full_precision(x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """Half precision as float32, everything else as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def without_autocast(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """A function that computes in the precision of what it is given, whatever ``torch.autocast`` says around it.

    Under autocast, matrix products are made in half precision, of float32 too.
    """

    @functools.wraps(function)
    def computed(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        for kind in ("cuda", "cpu", "xpu", "mps"):
            if torch.is_autocast_enabled(kind):
                with torch.autocast(kind, enabled=False):
                    return computed(*args, **kwargs)  # of another kind, too
        return function(*args, **kwargs)

    return computed


def classes_last(class_axis: int | None, logits: Any, *others: Any, fits: Any = None) -> tuple[Any, ...]:
    """Logits, and what else has their axes, with the classes in the last.

    Args:
        class_axis: where they are; None is the last axis.
        fits: labels or a mask, of the shape of the logits without their classes.

    Raises:
        ValueError: where there is no such axis; and for None where logits have four axes or more, as maps ``(B, N, H, W)`` do,
            and nothing says that the last holds the classes.
    """
    if not isinstance(logits, Tensor) or (class_axis is None and logits.ndim < 4):
        return logits, *others
    shape = tuple(logits.shape)
    if class_axis is None:
        given = None if fits is None else tuple(fits.shape)
        if given != shape[:-1] or given == (shape[0], *shape[2:]):
            raise ValueError(
                f"logits of shape {shape} may have their classes in any axis: say class_axis=1 for maps (batch, classes, height, "
                "width), or class_axis=-1."
            )
        return logits, *others
    if isinstance(class_axis, bool) or not isinstance(class_axis, int) or not -len(shape) <= class_axis < len(shape):
        raise ValueError(f"class_axis is one of the {len(shape)} axes of logits of shape {shape}, not {class_axis!r}.")
    return tuple(
        x.movedim(class_axis, -1) if isinstance(x, Tensor) and x.ndim == len(shape) else x for x in (logits, *others)
    )


def said_axis(class_axis: int | None, logits: Any, labels: Any) -> int | None:
    """The last axis, where nothing is said and class indices fit the other axes, and these alone."""
    if class_axis is None and isinstance(labels, Tensor) and isinstance(logits, Tensor) and logits.ndim > 3:
        beside_the_last = labels.shape == logits.shape[:-1] != (logits.shape[0], *logits.shape[2:])
        return -1 if beside_the_last else None
    return class_axis


def counted_rows(
    x: Shaped[Tensor, "*batch N"], mask: Mask | None, harmless: bool = False
) -> Shaped[Tensor, "*batch N"]:
    """Zeros where ``mask`` is False, so that what stands there reaches neither value nor gradient.

    A product of zero and NaN is NaN: what does not count is taken out before anything is computed, and not after. Where it is
    known to be ``harmless`` (finite), it is left as it is.
    """
    return x if mask is None or harmless else torch.where(mask.unsqueeze(-1), x, 0.0)


#: Logits whose classes have been moved to the last axis.
ClassesLast = Float[Tensor, "*counted C"]


def prepared(
    student_logits: Logits,
    teacher_logits: Logits,
    temperature: Temperature = 1.0,
    *,
    mask: Mask | None = None,
    class_axis: int | None = None,
    fits: Any = None,
    at_least: int = 2,
) -> tuple[ClassesLast, ClassesLast, Temperature]:
    """Logits of student and teacher and a temperature, as every loss computes with them.

    They are checked, of ``at_least`` so many classes, which are in the last axis; what does not count is zero (of a temperature, one).
    """
    student, teacher, temperature = classes_last(
        class_axis, student_logits, teacher_logits, temperature, fits=mask if fits is None else fits
    )
    _check_shape(mask, student)
    finite = check_same_shape(student, teacher, mask, at_least)
    temperature = _counted_temperature(temperature, student, mask)
    return counted_rows(student, mask, finite[0]), counted_rows(teacher, mask, finite[1]), temperature


def prepared_alone(
    student_logits: Logits,
    temperature: Temperature = 1.0,
    *,
    mask: Mask | None = None,
    class_axis: int | None = None,
    fits: Any = None,
    at_least: int = 2,
) -> tuple[ClassesLast, Temperature]:
    """The same without a teacher."""
    student, temperature = classes_last(class_axis, student_logits, temperature, fits=mask if fits is None else fits)
    _check_shape(mask, student)
    finite = check_logits("student_logits", student, mask, at_least)
    return counted_rows(student, mask, finite), _counted_temperature(temperature, student, mask)


def _check_shape(mask, logits):
    if mask is not None and isinstance(logits, Tensor) and logits.ndim:
        check_mask(mask, logits[..., 0], empty=True)


def _counted_temperature(temperature, logits, mask):
    check_temperature(temperature, logits, mask)
    if mask is not None and isinstance(temperature, Tensor) and temperature.ndim == logits.ndim:
        return torch.where(mask.unsqueeze(-1), temperature, 1.0)
    return temperature


def soften(logits: Logits, temperature: Temperature = 1.0, *, class_axis: int | None = None) -> Probabilities:
    r"""Probabilities at a temperature.

    .. math:: q_i = \frac{e^{z_i/T}}{\sum_k e^{z_k/T}}

    :math:`T = 1` is the softmax, :math:`T \to \infty` the uniform distribution, :math:`T \to 0` the argmax.
    Arguments, type and errors as in :func:`log_soften`.

    >>> soften(torch.tensor([2.0, 1.0, 0.0]), temperature=1.0)
    tensor([0.6652, 0.2447, 0.0900])
    >>> soften(torch.tensor([2.0, 1.0, 0.0]), temperature=4.0)
    tensor([0.4192, 0.3265, 0.2543])
    >>> soften(torch.tensor([2.0, 1.0, -torch.inf]))
    tensor([0.7311, 0.2689, 0.0000])
    """
    return log_soften(logits, temperature, class_axis=class_axis).exp()


def entropy(
    logits: Logits, temperature: Temperature = 1.0, *, class_axis: int | None = None
) -> Float[Tensor, "*positions"]:
    r"""Entropy of the softened distribution, in nats.

    .. math:: H = -\sum_i q_i \log q_i \in [0, \log N]

    Arguments and errors as in :func:`log_soften`; returns their shape without the classes.

    >>> entropy(torch.zeros(100))
    tensor(4.6052)
    """
    log_q = log_soften(logits, temperature, class_axis=class_axis)
    q = log_q.exp()
    return -(q * log_q.masked_fill(q == 0, 0.0)).sum(-1 if class_axis is None else class_axis)
