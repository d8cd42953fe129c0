r"""Temperature: from logits to softened probabilities."""

import torch
from torch import Tensor

from .checks import check_logits, check_temperature


def log_soften(logits: Tensor, temperature=1.0) -> Tensor:
    r"""Log-probabilities at a temperature.

    .. math:: \log q_i = \frac{z_i}{T} - \log \sum_k e^{z_k/T}

    The largest logit is subtracted *before* the division by :math:`T`, so that differences between large
    logits keep their digits when :math:`T` is small. Half precision is computed in float32.

    Args:
        logits: :math:`z`, of shape ``(..., N)``, floating point and finite.
        temperature: :math:`T > 0`, a number, or a tensor of shape ``(..., 1)`` with one temperature a distribution.

    Returns:
        Log-probabilities of shape ``(..., N)``; float32 for float16 and bfloat16 logits, else their own type.

    Raises:
        TypeError: if ``logits`` is not a floating-point tensor.
        ValueError: if a logit is NaN or infinite, or the temperature is not positive and finite.

    Source: Hinton, Vinyals & Dean (2015), eq. 1.

    >>> log_soften(torch.tensor([1e4, 0.0]), temperature=1e4)
    tensor([-0.3133, -1.3133])
    """
    check_logits("logits", logits)
    check_temperature(temperature)
    return log_softmax(logits, temperature)


def log_softmax(logits, temperature):
    """What :func:`log_soften` computes, unchecked, and of a single class too."""
    logits = full_precision(logits)
    return torch.log_softmax((logits - logits.detach().amax(-1, keepdim=True)) / temperature, dim=-1)


def full_precision(x: Tensor) -> Tensor:
    """Half precision as float32, everything else as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def soften(logits: Tensor, temperature=1.0) -> Tensor:
    r"""Probabilities at a temperature.

    .. math:: q_i = \frac{e^{z_i/T}}{\sum_k e^{z_k/T}}

    :math:`T = 1` is the softmax, :math:`T \to \infty` the uniform distribution, :math:`T \to 0` the argmax.
    Arguments, type and errors as in :func:`log_soften`.

    >>> soften(torch.tensor([2.0, 1.0, 0.0]), temperature=1.0)
    tensor([0.6652, 0.2447, 0.0900])
    >>> soften(torch.tensor([2.0, 1.0, 0.0]), temperature=4.0)
    tensor([0.4192, 0.3265, 0.2543])
    """
    return log_soften(logits, temperature).exp()


def entropy(logits: Tensor, temperature=1.0) -> Tensor:
    r"""Entropy of the softened distribution, in nats.

    .. math:: H = -\sum_i q_i \log q_i \in [0, \log N]

    Arguments and errors as in :func:`log_soften`; returns shape ``(...)``.

    >>> entropy(torch.zeros(100))
    tensor(4.6052)
    """
    log_q = log_soften(logits, temperature)
    return -(log_q.exp() * log_q).sum(-1)
