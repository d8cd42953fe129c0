"""Checks on what objectives are given: one clear sentence for each mistake."""

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor

#: The label of what is not to be learned, in PyTorch and in every library that kdlab is compared with.
IGNORED = -100


def _inspectable(tensor):
    """Whether looking at a tensor's values is cheap and possible.

    On an accelerator it would stall the device at every step, inside ``torch.compile`` it would break the
    graph, and under ``torch.func`` transforms there are no values to look at. There shapes and types are
    still checked, and ``kdlab.training.fit`` checks its loss once an epoch.
    """
    return (
        tensor.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


def check_logits(name: str, logits: object, mask: Tensor | None = None, at_least: int = 2) -> bool:
    """Logits of which a class that does not exist has −∞; where ``mask`` is False they may be anything.

    Returns:
        Whether all of them are known to be finite.
    """
    if not isinstance(logits, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, not {type(logits).__name__}.")
    if not logits.is_floating_point():
        raise TypeError(f"{name} must be floating point (logits, not labels), not {logits.dtype}.")
    if logits.ndim == 0 or logits.shape[-1] < at_least:
        raise ValueError(
            f"{name} needs at least {'two classes' if at_least == 2 else 'one label'} in its last axis, but has shape "
            f"{tuple(logits.shape)}."
            + (
                " Of one output for a number there are SquaredError and LogitMSE; for yes or no, BinaryCrossEntropy and BinarySoftTargets."
                if logits.shape[-1:] == (1,)
                else ""
            )
        )
    if not _inspectable(logits):
        return False
    if not logits.numel() or all(map(torch.isfinite, logits.aminmax())):
        return True
    counted = logits.detach() if mask is None or not _inspectable(mask) else logits.detach()[mask]
    if bad := int((counted.isnan() | counted.isposinf()).sum()):
        raise ValueError(f"{name} has {bad} of {counted.numel()} entries that are NaN or infinite.")
    if empty := int(counted.isneginf().all(-1).sum()):
        raise ValueError(
            f"{name} of {empty} distributions are −∞ in every class: −∞ says that a class does not exist, and one has to."
        )
    return False


def check_same_shape(
    student_logits: Any, teacher_logits: Any, mask: Tensor | None = None, at_least: int = 2
) -> tuple[bool, bool]:
    """Whether all entries are known to be finite, of each."""
    finite = (
        check_logits("student_logits", student_logits, mask, at_least),
        check_logits("teacher_logits", teacher_logits, mask, at_least),
    )
    check_same_classes(student_logits, teacher_logits)
    return finite


def check_same_classes(student_logits: Any, teacher_logits: Any) -> None:
    """That logits, or what stands for them, are of the same classes and examples."""
    n, m = student_logits.shape[-1], teacher_logits.shape[-1]
    if n != m:
        larger = "student" if n > m else "teacher"
        raise ValueError(
            f"student and teacher must share one set of classes, but the student has {n} and the teacher {m}. If the first "
            f"{min(n, m)} are the same, and the {larger}'s others fill it up to a round number: "
            f"restrict_vocabulary({larger}_logits, torch.arange({min(n, m)})); in an objective, and so in fit, "
            f"SharedVocabulary(term, torch.arange({min(n, m)})); of a model of transformers, resize_token_embeddings({min(n, m)}) takes them off. "
            "Otherwise restrict both to the tokens that they share (restrict_vocabulary)."
        )
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"student_logits of shape {tuple(student_logits.shape)} and teacher_logits of shape "
            f"{tuple(teacher_logits.shape)} do not belong to the same examples."
        )


def check_infinite(losses: Tensor, mask: Tensor | None = None) -> None:
    """That no loss that counts is infinite, as where one side gives probability to what for the other does not exist."""
    if not _inspectable(losses) or torch.isfinite(losses).all():
        return
    counted = losses.detach() if mask is None or not _inspectable(mask) else losses.detach()[mask]
    if bad := int((~torch.isfinite(counted)).sum()):
        raise ValueError(
            f"the loss of {bad} of {counted.numel()} distributions is infinite: it asks for probability where logits of −∞ say "
            "that a class does not exist. Restrict both sides to the classes that they share (restrict_vocabulary), or leave "
            "these positions out (mask)."
        )


def check_temperature(temperature: Any, logits: Tensor | None = None, mask: Tensor | None = None) -> None:
    if isinstance(temperature, Tensor):
        if temperature.is_complex() or temperature.dtype == torch.bool:
            raise TypeError(f"temperatures are numbers, not {temperature.dtype}.")
        shape = tuple(temperature.shape)
        if shape and shape[-1] != 1:
            raise ValueError(
                f"a tensor of temperatures has one entry a distribution and ends in an axis of size 1, but has shape "
                f"{shape}."
            )
        if logits is not None and not _spreads(shape, tuple(logits.shape)):
            raise ValueError(
                f"temperatures of shape {shape} are not one a distribution of logits of shape {tuple(logits.shape)}: give "
                f"shape {(*logits.shape[:-1], 1)}, with an axis of size 1 where they are the same, or one number."
            )
        if not _inspectable(temperature):
            return
        good = torch.isfinite(temperature) & (temperature > 0)
        if mask is not None and _inspectable(mask) and temperature.ndim == mask.ndim + 1:
            good = good | ~mask.unsqueeze(-1)
        if not good.all():
            raise ValueError("temperature must be positive and finite in every entry.")
    elif not (isinstance(temperature, Real) and math.isfinite(temperature) and float(temperature) > 0):
        raise ValueError(f"temperature must be a positive, finite number, not {temperature!r}.")


def _spreads(shape, over):
    """Whether one temperature for each distribution has this shape: none is repeated but along axes of size one."""
    if all(size == 1 for size in shape):
        return len(shape) <= len(over)
    return len(shape) == len(over) and all(a in (1, b) for a, b in zip(shape[:-1], over[:-1], strict=True))


def check_labels(labels: object, logits: Tensor, name: str = "labels") -> None:
    if not isinstance(labels, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor of class indices, not {type(labels).__name__}.")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"{name} must be integer class indices, not {labels.dtype}.")
    if labels.shape != logits.shape[:-1]:
        raise ValueError(f"{name} of shape {tuple(labels.shape)} do not fit logits of shape {tuple(logits.shape)}.")
    if _inspectable(labels) and labels.numel() and not (0 <= labels.min() and labels.max() < logits.shape[-1]):
        raise ValueError(
            f"{name} must lie in 0 … {logits.shape[-1] - 1}, but reach from {labels.min()} to {labels.max()}"
            + (f"; where {name} are not to be learned, pass mask={name} >= 0." if labels.min() < 0 else ".")
        )


def check_indices(labels: object, who: str) -> None:
    """That labels are class indices, for what asks which class is the true one."""
    if isinstance(labels, Tensor) and labels.is_floating_point():
        raise TypeError(
            f"{who} needs labels that are class indices, not {labels.dtype}: soft labels, as of mixup and CutMix, name no one "
            "class. CrossEntropy and SmoothedLabels take them, and all that look at no labels."
        )


def check_distribution(target: Tensor, logits: Tensor, mask: Tensor | None = None) -> None:
    if target.shape == logits.shape[:-1]:
        raise TypeError(f"labels must be integer class indices, not {target.dtype}.")
    if target.shape != logits.shape:
        raise ValueError(
            f"target probabilities of shape {tuple(target.shape)} do not fit logits of shape {tuple(logits.shape)}."
        )
    if _inspectable(target) and target.numel():
        counted = target.detach() if mask is None or not _inspectable(mask) else target.detach()[mask]
        if not (counted >= 0).all():
            raise ValueError("target is no distribution: it has entries that are negative or NaN.")
        off = (counted.sum(-1, dtype=torch.float64) - 1).abs().amax() if counted.numel() else 0.0
        if not off <= max(1e-3, torch.finfo(target.dtype).eps):  # what the rounding of its entries adds up to
            several = bool(((counted == 0) | (counted == 1)).all())
            raise ValueError(
                f"target is no distribution: a row sums to 1 only within {off:.3g}."
                + (
                    " Of labels that do not exclude each other learn BinaryCrossEntropy and BinarySoftTargets."
                    if several
                    else ""
                )
            )


def check_mask(mask: object, losses: Tensor, empty: bool = False) -> None:
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a boolean torch.Tensor, not {type(mask).__name__}.")
    if mask.shape != losses.shape:
        raise ValueError(f"mask of shape {tuple(mask.shape)} does not fit losses of shape {tuple(losses.shape)}.")
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be boolean (True where a position counts), not {mask.dtype}.")
    if not empty and _inspectable(mask) and not mask.any():
        raise ValueError(
            "mask leaves no position to average over, or every label is ignored; of a part of a batch, give the count of "
            "the whole."
        )


def check_outputs(outputs: Any) -> None:
    """For losses of numbers, where one row of outputs would pass for one example of them all."""
    if isinstance(outputs, Tensor) and outputs.ndim < 2:
        raise ValueError(
            f"outputs have shape (..., N), not {tuple(outputs.shape)}: of one output an example, outputs.unsqueeze(-1)."
        )


def check_several(counted: Tensor) -> None:
    """For losses that compare examples with each other; ``counted`` is 1.0 or 0.0 for each."""
    if counted.numel() < 2 or (_inspectable(counted) and counted.sum() < 2):
        raise ValueError("examples are compared with each other: at least two that count are needed.")


def check_count(count: Any) -> None:
    if isinstance(count, Tensor):
        if count.ndim:
            raise ValueError(f"count must be one number, not a tensor of shape {tuple(count.shape)}.")
        if not _inspectable(count):
            return
    if not (isinstance(count, (Real, Tensor)) and float(count) > 0):
        raise ValueError(f"count must be a positive number of positions, not {count!r}.")


def check_fraction(name: str, value: Any) -> None:
    if not (isinstance(value, Real) and 0 <= float(value) <= 1):
        raise ValueError(f"{name} must be a number from 0 to 1, not {value!r}.")


def check_weight(name: str, value: Any) -> None:
    if not (isinstance(value, Real) and math.isfinite(value)):
        raise ValueError(f"{name} must be a finite number, not {value!r}.")


def counted_labels(labels: Any, logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """Labels as int64, checked; where masked they may hold anything, such as -100, and become 0."""
    if mask is not None and isinstance(labels, Tensor):
        check_mask(mask, labels, empty=True)
        labels = labels.where(mask, 0)
    check_labels(labels, logits)
    return labels.long()


def check_features(
    student: Any,
    teacher: Any,
    names: tuple[str, str] = ("student features", "teacher features"),
    same_width: bool = True,
    mask: Tensor | None = None,
    values: bool = True,
) -> bool:
    """Two floating-point tensors of the same examples; where ``mask`` (of positions) is False they may be anything.

    Args:
        values: whether their entries are looked at.

    Returns:
        Whether all entries are known to be finite.
    """
    known = values
    for name, features in zip(names, (student, teacher), strict=True):
        if not isinstance(features, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, not {type(features).__name__}.")
        if not features.is_floating_point():
            raise TypeError(f"{name} must be floating point, not {features.dtype}.")
        finite = values and _inspectable(features) and bool(torch.isfinite(features).all())
        if values and _inspectable(features) and not finite:
            fits = mask is not None and _inspectable(mask) and mask.shape == features.shape[: mask.ndim]
            if not fits or not torch.isfinite(features.detach()[mask]).all():
                raise ValueError(f"{name} have entries that are NaN or infinite.")
        known = known and finite
    if same_width and student.shape[1:] != teacher.shape[1:]:
        raise ValueError(
            f"{names[0]} of shape {tuple(student.shape)} and {names[1]} of shape {tuple(teacher.shape)} differ in size: "
            "give a projector, or choose layers of one size; a term's projector=Projector('linear', n, m) brings vectors of n numbers to m, and 'conv' channels."
        )
    if student.ndim == 0 or teacher.ndim == 0 or student.shape[0] != teacher.shape[0]:
        raise ValueError(
            f"{names[0]} of shape {tuple(student.shape)} and {names[1]} of shape {tuple(teacher.shape)} do not belong to "
            "the same examples."
        )
    return known


def check_tokens(tokens: object, logits: Any) -> None:
    if not isinstance(tokens, Tensor) or tokens.ndim == 0 or tokens.dtype not in (torch.int32, torch.int64):
        raise TypeError("tokens must be a torch.Tensor of int64 token numbers, one for each logit that is kept.")
    if _inspectable(tokens) and tokens.numel() and not 0 <= tokens.min() <= tokens.max() < logits.shape[-1]:
        raise ValueError(
            f"tokens must lie in 0 … {logits.shape[-1] - 1}, but reach from {tokens.min()} to {tokens.max()}."
        )
    if _inspectable(tokens) and (tokens.sort(-1).values.diff() == 0).any():
        raise ValueError("tokens name one token twice.")


def check_hidden_mask(mask: Tensor | None, hidden_mask: object) -> None:
    """A mask of the logits' positions says nothing of the hidden states, which are not shifted; one of whole examples has no positions."""
    if hidden_mask is None and mask is not None and mask.ndim > 1 and _inspectable(mask) and not mask.all():
        raise ValueError(
            "the mask of the logits leaves positions out, but the hidden states have none: pass hidden_mask=…, True where a "
            "token is no padding."
        )
