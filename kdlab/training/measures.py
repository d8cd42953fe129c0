r"""What is measured of a trained student: accuracy, calibration, fidelity to its teacher."""

from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..objectives import cross_entropy, forward_kl, soften
from .taps import logits_of


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """The fraction of rows whose largest logit is the label's."""
    return (logits.argmax(-1) == labels).float().mean().item()


def agreement(student_logits: Tensor, teacher_logits: Tensor) -> float:
    """The fraction of examples on which student and teacher rank the same class first (Stanton et al. 2021)."""
    return (student_logits.argmax(-1) == teacher_logits.argmax(-1)).float().mean().item()


def expected_calibration_error(logits: Tensor, labels: Tensor, *, bins: int = 15) -> float:
    r"""Mean distance between confidence and accuracy over equally wide bins of confidence (Guo et al. 2017, eq. 3).

    .. math:: \mathrm{ECE} = \sum_b \frac{n_b}{n} \bigl| \mathrm{acc}(b) - \mathrm{conf}(b) \bigr|

    >>> expected_calibration_error(torch.tensor([[20.0, 0.0], [20.0, 0.0]]), torch.tensor([0, 1]))
    0.5
    """
    confidence, predicted = soften(logits).double().max(-1)
    gap = (predicted == labels).double() - confidence
    which = (confidence * bins).long().clamp(max=bins - 1)
    return torch.zeros(bins, dtype=torch.double).index_add_(
        0, which.cpu(), gap.cpu()
    ).abs().sum().item() / len(labels)


@contextmanager
def evaluation_mode(model: nn.Module):
    """Put a model in evaluation mode, and after it each of its modules back in the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training


@torch.no_grad()
def predict(
    model: nn.Module, split, *, batch_size: int = 500, device=None, precision: str = "float32"
) -> Tensor:
    """Logits for every example of a split, in order, in evaluation mode; the model's mode is put back after.

    ``device`` is where the inputs go; None is where the model is.

    Returns:
        float32, shape ``(len(split), classes)``, on the CPU.
    """
    if device is None:
        device = next((p.device for p in model.parameters()), "cpu")
    logits = []
    with evaluation_mode(model):
        for inputs, _, _ in split.batches(batch_size):
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16"):
                logits.append(logits_of(model(inputs.to(device))).float().cpu())
    return torch.cat(logits)


def measure(student_logits: Tensor, labels: Tensor, teacher_logits: Tensor | None = None) -> dict[str, float]:
    """Accuracy, cross-entropy (nats) and calibration error; with a teacher also agreement and KL(teacher‖student)."""
    measured = {
        "accuracy": accuracy(student_logits, labels),
        "cross_entropy": cross_entropy(student_logits, labels).item(),
        "calibration_error": expected_calibration_error(student_logits, labels),
    }
    if teacher_logits is not None:
        measured["agreement"] = agreement(student_logits, teacher_logits)
        measured["kl_to_teacher"] = forward_kl(student_logits, teacher_logits).item()
    return measured
