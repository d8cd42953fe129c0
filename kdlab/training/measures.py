r"""What is measured of a trained student: accuracy, calibration, fidelity to its teacher."""

import math
from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from kdlab.shapes import Float

from ..data.examples import as_split, each
from ..objectives import HeadLogits, cross_entropy, forward_kl, log_soften, soften
from ..objectives.checks import (
    IGNORED,
    check_distribution,
    check_indices,
    check_infinite,
    check_mask,
    check_same_shape,
    counted_labels,
)
from ..objectives.softening import classes_last, prepared_alone
from ..objectives.types import Labels, Logits, Mask, Probabilities
from .modules import check_model
from .precision import Precision, autocast
from .protocols import AnySplit, Device, Measure, by_index, check_text, is_text
from .taps import call, logits_of


def accuracy(
    logits: Logits, labels: Labels | Probabilities, *, mask: Mask | None = None, class_axis: int | None = None
) -> float:
    """The fraction of rows whose largest logit is the label's; of labels that are probabilities, the likeliest's.

    Args:
        logits: shape ``(..., N)``.
        labels: class indices, shape ``(...)``, or probabilities, shape ``(..., N)``.
        mask: boolean, shape ``(...)``; False positions do not count, such as those of labels −100: ``mask=labels >= 0``.
        class_axis: as in :func:`~kdlab.objectives.softening.log_soften`.

    Raises:
        TypeError, ValueError: as the losses do, for what does not fit, labels out of range, NaN, or a mask that leaves nothing.
    """
    logits, labels = _counted(logits, labels, mask, class_axis)
    return (logits.argmax(-1) == labels).float().mean().item()


def _counted(logits, labels, mask, class_axis=None):
    """Logits ``(n, N)`` and class indices ``(n,)`` of what counts, checked as the losses check them."""
    soft = isinstance(labels, Tensor) and labels.is_floating_point()
    found, _ = prepared_alone(logits, mask=mask, class_axis=class_axis, fits=None if soft else labels)
    if soft:
        _, labels = classes_last(class_axis, logits, labels, fits=mask)
        check_distribution(labels, found, mask)
        labels = labels.argmax(-1)
    else:
        labels = counted_labels(labels, found, mask)
    if mask is not None:
        check_mask(mask, labels)
        found, labels = found[mask], labels[mask]
    _check_some(labels)
    return found.reshape(-1, found.shape[-1]), labels.reshape(-1)


def _check_some(of_examples):
    if not of_examples.numel():
        raise ValueError("there is nothing to measure.")


def agreement(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    mask: Mask | None = None,
    class_axis: int | None = None,
) -> float:
    """The fraction of examples on which student and teacher rank the same class first (Stanton et al. 2021).

    Arguments and errors as in :func:`accuracy`.
    """
    student, teacher = classes_last(class_axis, student_logits, teacher_logits, fits=mask)
    if mask is not None:
        check_mask(mask, student[..., 0])
    check_same_shape(student, teacher, mask)
    alike = student.argmax(-1) == teacher.argmax(-1)
    _check_some(alike)
    return (alike if mask is None else alike[mask]).float().mean().item()


def expected_calibration_error(
    logits: Logits,
    labels: Labels | Probabilities,
    *,
    bins: int = 15,
    mask: Mask | None = None,
    class_axis: int | None = None,
) -> float:
    r"""Mean distance between confidence and accuracy over equally wide bins of confidence (Guo et al. 2017, eq. 3).

    .. math:: \mathrm{ECE} = \sum_b \frac{n_b}{n} \bigl| \mathrm{acc}(b) - \mathrm{conf}(b) \bigr|

    >>> expected_calibration_error(torch.tensor([[20.0, 0.0], [20.0, 0.0]]), torch.tensor([0, 1]))
    0.5
    """
    logits, labels = _counted(logits, labels, mask, class_axis)
    return calibration_gaps(logits, labels, bins=bins).abs().sum().item() / len(labels)


def fitted_temperature(
    logits: Logits, labels: Labels | Probabilities, *, mask: Mask | None = None, class_axis: int | None = None
) -> float:
    r"""The temperature by which to divide logits so that they are as likely as can be (Guo et al. 2017, section 4.2).

    .. math:: T^* = \arg\min_T \sum_i -\log \operatorname{softmax}(z_i / T)_{y_i}

    The loss is convex in :math:`1/T`, whose derivative :math:`\sum_i (\mathbb E_q[z_i] - z_{i, y_i})` is brought to zero by
    bisection, between :math:`T = 10^{-3}` and :math:`10^3`.

    Args:
        logits: shape ``(..., N)``, of examples that nothing else was chosen by.
        labels: class indices, shape ``(...)``.
        mask, class_axis: as in :func:`accuracy`, as are the errors; labels of classes that do not exist are refused too.

    >>> z = torch.tensor([[1.0, 0.0]]).expand(4, 2)  # sure to 73 %, and right three times of four
    >>> round(fitted_temperature(z, torch.tensor([0, 0, 0, 1])), 4), round(1 / math.log(3), 4)
    (0.9102, 0.9102)
    """
    check_indices(labels, "fitted_temperature")
    logits, labels = _counted(logits, labels, mask, class_axis)
    z, labels = logits.cpu().double(), labels.cpu()
    right = z.gather(-1, labels[:, None])
    check_infinite(-right)
    right, exist = right.mean(), z.masked_fill(z.isneginf(), 0.0)
    low, high = -3.0, 3.0  # of the decimal logarithm of 1/T
    for _ in range(60):
        middle = (low + high) / 2
        scaled = 10**middle * z
        too_large = (scaled.softmax(-1) * exist).sum(-1).mean() > right
        low, high = (low, middle) if too_large else (middle, high)
    return 10 ** -((low + high) / 2)


def calibration_gaps(logits: Logits, labels: Labels | Probabilities, *, bins: int = 15) -> Float[Tensor, " bins"]:
    """In each bin of confidence, the sum of what accuracy exceeds confidence by, float64, shape ``(bins,)``."""
    logits, labels = _counted(logits, labels, None)
    confidence, predicted = soften(logits).max(-1)
    return _gaps(confidence, predicted == labels, bins)


def _gaps(confidence: Tensor, right: Tensor, bins: int) -> Tensor:
    if bins < 1:
        raise ValueError(f"bins of confidence are counted from 1, not {bins}.")
    confidence = confidence.double()
    which = (confidence * bins).long().clamp(max=bins - 1)
    return torch.zeros(bins, dtype=torch.double).index_add_(0, which.cpu(), (right.double() - confidence).cpu())


@contextmanager
def evaluation_mode(model: nn.Module) -> Generator[nn.Module, None, None]:
    """Put a model in evaluation mode, and after it each of its modules back in the mode that it had.

    Raises:
        TypeError: for what is no model.
    """
    check_model(model)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training


@torch.no_grad()
def predict(
    model: nn.Module,
    split: AnySplit,
    *,
    batch_size: int = 500,
    device: Device | None = None,
    precision: Precision = "float32",
) -> Float[Tensor, "examples ..."]:
    """Logits for every example of a split, in order, in evaluation mode; the model's mode is put back after.

    Of a DataLoader, in the order of its data set. ``device`` is where the inputs go; None is where the model is.

    Returns:
        float32, shape ``(len(split), classes)``, on the CPU.
    """
    check_model(model)
    if device is None:
        device = next((p.device for p in model.parameters()), "cpu")
    with evaluation_mode(model):
        return torch.cat([logits for logits, _ in _answers(model, split, batch_size, device, precision)])


def _answers(model, split, batch_size, device, precision) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Logits and labels of each batch, on the CPU."""
    for inputs, labels, _ in as_split(split, "split").batches(batch_size):
        with autocast(device, precision):
            logits = all_logits(call(model, each(lambda x: x.to(device), inputs)))
        yield logits.float().cpu(), labels.cpu()


def measure(
    student_logits: Logits,
    labels: Labels | Probabilities,
    teacher_logits: Logits | None = None,
    *,
    mask: Mask | None = None,
    class_axis: int | None = None,
) -> dict[str, float]:
    """Accuracy, cross-entropy (nats) and calibration error; with a teacher also agreement and KL(teacher‖student).

    And the agreement apart, where the teacher is right and where it is wrong: at any accuracy a student agrees with a good
    teacher on most of what both get right; only what it shares of the errors is the teacher's own. Arguments and errors as in
    :func:`accuracy`.
    """
    how = {"mask": mask, "class_axis": class_axis}
    measured = {
        "accuracy": accuracy(student_logits, labels, **how),
        "cross_entropy": cross_entropy(student_logits, labels, **how).item(),
        "calibration_error": expected_calibration_error(student_logits, labels, **how),
    }
    if teacher_logits is not None:
        measured["agreement"] = agreement(student_logits, teacher_logits, **how)
        measured["kl_to_teacher"] = forward_kl(student_logits, teacher_logits, **how).item()
        student, teacher = (_counted(z, labels, mask, class_axis) for z in (student_logits, teacher_logits))
        right = teacher[0].argmax(-1) == teacher[1]
        for name, part in (("right", right), ("wrong", ~right)):
            if part.any():
                measured[f"agreement_where_teacher_{name}"] = agreement(student[0][part], teacher[0][part])
    return measured


def _how(logits: Tensor, labels: Tensor) -> dict:
    """What of a split's labels counts, and where its classes are: of maps, labels fit beside axis 1 alone."""
    if labels.is_floating_point() or (labels.ndim == 1 and (labels != IGNORED).all()):
        return {}
    beside = labels.shape == (logits.shape[0], *logits.shape[2:]) != logits.shape[:-1]
    fits = beside or labels.shape == logits.shape[:-1]
    return {"mask": labels != IGNORED if fits else None, "class_axis": 1 if beside else None}


def check_classes(labels: Tensor) -> None:
    """That labels of a validation split are classes or probabilities of them, of which :func:`measure` says something.

    Raises:
        ValueError: for numbers, or classes that do not exclude each other.
    """
    one = torch.ones((), dtype=torch.double)
    if labels.is_floating_point() and (labels.ndim < 2 or not torch.allclose(labels.double().sum(-1), one, atol=1e-2)):
        raise ValueError(
            "labels of the validation split are no probabilities of classes, and what is measured of it is the accuracy of one: say "
            "in measure=… what else is."
        )


def _rows(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """What counts of a batch in rows, since the next one's texts may be longer; all of it where its labels are one an example and all count."""
    how = _how(logits, labels)
    if (mask := how.get("mask")) is None:
        return logits, labels
    return (logits if how["class_axis"] is None else logits.movedim(1, -1))[mask], labels[mask]


@torch.no_grad()
def measure_split(
    model: nn.Module, split: Any, *, device: Device = "cpu", precision: Precision = "float32"
) -> dict[str, float]:
    """:func:`measure` of a split's logits, or :func:`measure_tokens` where the split is a text."""
    if is_text(split):
        return measure_tokens([model], split, device=device, precision=precision)[0]
    size = 500 if torch.device(device).type == "cpu" else 2500
    with evaluation_mode(model):
        rows = [_rows(*answer) for answer in _answers(model, split, size, device, precision)]
    logits, labels = map(torch.cat, zip(*rows, strict=True))
    check_classes(labels)
    return measure(logits, labels)


@torch.no_grad()
def measured_by(function: Measure, model: nn.Module, split: Any) -> dict[str, float]:
    """What a function of a model and a split says, the model in evaluation mode; numbers by their names.

    Raises:
        TypeError: for anything else.
    """
    with evaluation_mode(model):
        found = function(model, split)
    if not isinstance(found, Mapping) or not found:
        raise TypeError(f"what is measured is a dictionary of numbers by their names, not {found!r}.")
    plain = {name: x.item() if isinstance(x, Tensor) and x.numel() == 1 else x for name, x in found.items()}
    if wrong := [name for name, x in plain.items() if not isinstance(name, str) or not isinstance(x, Real)]:
        raise TypeError(
            f"what is measured is a dictionary of numbers by their names; {wrong[0]!r} is {found[wrong[0]]!r}."
        )
    return {name: float(x) for name, x in plain.items()}


@torch.no_grad()
def measure_tokens(
    students: Sequence[nn.Module],
    split: Any,
    *,
    teacher: nn.Module | None = None,
    device: Device = "cpu",
    precision: Precision = "float32",
    tokens_at_once: int = 2048,
) -> list[dict[str, float]]:
    r"""What is measured of language models on :class:`~kdlab.data.tokens.Tokens`, in evaluation mode, a few blocks at a time.

    .. math:: \text{bits per byte} = \frac{-\sum_t \log_2 q(x_t \mid x_{<t})}{\text{bytes of text that the tokens stand for}}

    It does not depend on how long tokens are, so that models with different tokenisers compare.

    Args:
        students: models of one vocabulary.
        teacher: what they are compared with; its look is shared. Where it and a student are filled up to different numbers of tokens, they are compared
            over those of the text, each distribution given that it is one of them.

    Raises:
        TypeError: for what is no model, or no text.
        ValueError: for a text of more tokens than a model has, or a teacher cache.

    Returns:
        For each student ``bits_per_byte``, ``cross_entropy`` (nats a token), ``accuracy`` (of the likeliest token),
        ``calibration_error``; with a teacher ``agreement``, ``kl_to_teacher`` (nats a token) and ``total_variation``.
    """
    check_text(split)
    if by_index(teacher):
        raise ValueError("a teacher cache knows a few entries of each token: measure beside the teacher itself.")
    sums = [defaultdict(float) for _ in students]
    read = 0
    with ExitStack() as stack:
        for model in [*students, *([teacher] if teacher is not None else [])]:
            stack.enter_context(evaluation_mode(model))
        for inputs, labels, _ in split.batches(max(tokens_at_once // split.context, 1)):
            inputs, labels = inputs.to(device), labels.to(device).flatten()
            with autocast(device, precision):
                log_p = None if teacher is None else _said(teacher, inputs, split)
            read += split.token_bytes.to(device)[labels].sum().item()
            for found, model in zip(sums, students, strict=True):
                with autocast(device, precision):
                    log_q = _said(model, inputs, split)
                confidence, right = _add_up(found, log_q, labels, log_p, len(split.token_bytes))
                found["gaps"] += _gaps(confidence, right, 15)
    measured = []
    for found in sums:
        tokens, gaps = found.pop("tokens"), found.pop("gaps")
        measured.append(
            {
                "bits_per_byte": found["cross_entropy"] / math.log(2) / read,
                **{name: value / tokens for name, value in found.items()},
                "calibration_error": gaps.abs().sum().item() / tokens,
            }
        )
    return measured


def _said(model: nn.Module, inputs: Tensor, text: Any) -> Tensor:
    """Log-probabilities ``(tokens, V)`` of what follows each token."""
    log_q = log_soften(all_logits(model(inputs)).flatten(0, 1), 1.0)
    if log_q.shape[-1] < len(text.token_bytes):
        raise ValueError(f"a text of {len(text.token_bytes)} tokens is not for a model of {log_q.shape[-1]}.")
    return log_q


@torch.no_grad()
def measure_further(
    model: nn.Module,
    split: Any,
    *,
    teacher: nn.Module,
    device: Device = "cpu",
    precision: Precision = "float32",
    tokens_at_once: int = 2048,
) -> list[dict[str, float]]:
    """What is measured of modules that predict further tokens, in evaluation mode: an entry for each module.

    Args:
        model: a :class:`~kdlab.models.multi_token.MultiToken`.
        split: :class:`~kdlab.data.tokens.Tokens` whose labels are those of as many further tokens.
        teacher: an :class:`~kdlab.models.multi_token.Ahead` of as many tokens.

    Returns:
        ``cross_entropy``, ``accuracy``, ``agreement``, ``kl_to_teacher`` and ``total_variation``, means over tokens. One minus the
        last is how often a token that the module proposes is accepted, after text that is not the model's own.
    """
    sums = [defaultdict(float) for _ in range(model.depth)]
    with evaluation_mode(model), evaluation_mode(teacher):
        for inputs, labels, _ in split.batches(max(tokens_at_once // split.context, 1)):
            inputs = inputs.to(device)
            with autocast(device, precision):
                log_q, log_p = (log_soften(all_logits(each(inputs)), class_axis=-1) for each in (model, teacher))
            for k, found in enumerate(sums):
                y = labels[:, k].to(device)
                known = y != IGNORED
                _add_up(found, log_q[:, k][known], y[known], log_p[:, k][known], len(split.token_bytes))
    return [{name: found[name] / found["tokens"] for name in found if name != "tokens"} for found in sums]


def _add_up(found, log_q: Tensor, labels: Tensor, log_p: Tensor | None, number: int) -> tuple[Tensor, Tensor]:
    """Add what some tokens contribute to the sums of a model: by its log-probabilities, and the teacher's; how sure it is, and whether rightly.

    The same as the functions of :mod:`kdlab.objectives` say, with each logarithm taken once. The text has ``number`` tokens, and models may have more.
    """
    confidence, predicted = log_q.max(-1)
    right = predicted == labels
    found["tokens"] += len(labels)
    found["cross_entropy"] -= log_q.gather(-1, labels[:, None]).sum().item()
    found["accuracy"] += right.sum().item()
    if log_p is not None:
        if log_q.shape != log_p.shape:
            log_q, log_p = (x[:, :number].log_softmax(-1) for x in (log_q, log_p))
            predicted = log_q.argmax(-1)
        p, q = log_p.exp(), log_q.exp()
        found["agreement"] += (predicted == log_p.argmax(-1)).sum().item()
        found["kl_to_teacher"] += p.mul(log_p - log_q).masked_fill_(p == 0, 0.0).sum().item()
        found["total_variation"] += p.sub_(q).abs_().sum().item() / 2
    return confidence.exp(), right


def all_logits(output: Any) -> Any:
    """The logits in what a model returned, made where they are not all there."""
    logits = logits_of(output)
    return logits.dense() if isinstance(logits, HeadLogits) else logits
