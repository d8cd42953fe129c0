r"""Closed forms in float64 NumPy: what tests and chapters compare everything else with.

Each is the textbook formula, written for reading. Logits have shape ``(..., N)``; :math:`q =
\operatorname{softmax}(z/T)` is the student, :math:`p = \operatorname{softmax}(t/T)` the teacher.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Array(Protocol):
    """What NumPy reads as an array: its own, and tensors on the CPU."""

    def __array__(self, *arguments: Any, **options: Any) -> np.ndarray: ...


Numbers = Sequence[Any] | Array
Values = np.float64 | np.ndarray


def log_softmax(logits: Numbers, temperature: float | np.ndarray = 1.0) -> Values:
    r""":math:`z_i/T - \log\sum_k e^{z_k/T}`."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    scaled = scaled - scaled.max(-1, keepdims=True)
    return scaled - np.log(np.exp(scaled).sum(-1, keepdims=True))


def softmax(logits: Numbers, temperature: float | np.ndarray = 1.0) -> Values:
    r""":math:`e^{z_i/T} / \sum_k e^{z_k/T}`."""
    return np.exp(log_softmax(logits, temperature))


def entropy(logits: Numbers, temperature: float | np.ndarray = 1.0) -> Values:
    r""":math:`H = -\sum_i q_i\log q_i`."""
    log_q = log_softmax(logits, temperature)
    return -(np.exp(log_q) * log_q).sum(-1)


def entropy_slope(logits: Numbers, temperature: float | np.ndarray = 1.0) -> Values:
    r""":math:`dH/dT = \operatorname{Var}_q(z)/T^3`.

    >>> round(float(entropy_slope([2.0, 0.0], temperature=1.0)), 6)
    0.419974
    """
    z = np.asarray(logits, dtype=np.float64)
    q = softmax(z, temperature)
    centred = z - (q * z).sum(-1, keepdims=True)
    return (q * centred**2).sum(-1) / temperature**3


def kl(log_p: Numbers, log_q: Numbers) -> Values:
    r""":math:`D_{\mathrm{KL}}(p\,\|\,q) = \sum_i p_i(\log p_i - \log q_i)` from log-probabilities."""
    return (np.exp(log_p) * (log_p - log_q)).sum(-1)


def forward_kl(student_logits: Numbers, teacher_logits: Numbers, temperature: float | np.ndarray = 1.0) -> Values:
    r""":math:`D_{\mathrm{KL}}(p\,\|\,q)`."""
    return kl(log_softmax(teacher_logits, temperature), log_softmax(student_logits, temperature))


def reverse_kl(student_logits: Numbers, teacher_logits: Numbers, temperature: float | np.ndarray = 1.0) -> Values:
    r""":math:`D_{\mathrm{KL}}(q\,\|\,p)`."""
    return kl(log_softmax(student_logits, temperature), log_softmax(teacher_logits, temperature))


def jensen_shannon(
    student_logits: Numbers, teacher_logits: Numbers, temperature: float | np.ndarray = 1.0, beta: float = 0.5
) -> Values:
    r""":math:`\beta D_{\mathrm{KL}}(p\,\|\,m) + (1-\beta) D_{\mathrm{KL}}(q\,\|\,m)`, :math:`m = \beta p + (1-\beta) q`."""
    log_p, log_q = log_softmax(teacher_logits, temperature), log_softmax(student_logits, temperature)
    log_m = np.logaddexp(np.log(beta) + log_p, np.log1p(-beta) + log_q)
    return beta * kl(log_p, log_m) + (1 - beta) * kl(log_q, log_m)


def skewed_forward_kl(
    student_logits: Numbers, teacher_logits: Numbers, temperature: float | np.ndarray = 1.0, skew: float = 0.1
) -> Values:
    r""":math:`D_{\mathrm{KL}}(p\,\|\,m)`, :math:`m = \lambda p + (1-\lambda) q`."""
    log_p, log_q = log_softmax(teacher_logits, temperature), log_softmax(student_logits, temperature)
    return kl(log_p, np.logaddexp(np.log(skew) + log_p, np.log1p(-skew) + log_q))


def skewed_reverse_kl(
    student_logits: Numbers, teacher_logits: Numbers, temperature: float | np.ndarray = 1.0, skew: float = 0.1
) -> Values:
    r""":math:`D_{\mathrm{KL}}(q\,\|\,m)`, :math:`m = (1-\lambda) p + \lambda q`."""
    return skewed_forward_kl(teacher_logits, student_logits, temperature, skew)


def total_variation(student_logits: Numbers, teacher_logits: Numbers, temperature: float | np.ndarray = 1.0) -> Values:
    r""":math:`\frac12\sum_i |p_i - q_i|`."""
    return np.abs(softmax(teacher_logits, temperature) - softmax(student_logits, temperature)).sum(-1) / 2


def negative_log_acceptance(
    student_logits: Numbers, teacher_logits: Numbers, temperature: float | np.ndarray = 1.0
) -> Values:
    r""":math:`-\log\sum_i \min(p_i, q_i)`."""
    log_p, log_q = log_softmax(teacher_logits, temperature), log_softmax(student_logits, temperature)
    return -np.logaddexp.reduce(np.minimum(log_p, log_q), -1)


def binary_soft_targets(
    student_logits: Numbers, teacher_logits: Numbers, temperature: float | np.ndarray = 1.0
) -> Values:
    r""":math:`T^2\sum_l D_{\mathrm{KL}}((p_l, 1-p_l)\,\|\,(q_l, 1-q_l))`, :math:`q_l = \sigma(z_l/T)`: each label a softmax of
    :math:`(z_l, 0)`.

    >>> round(float(binary_soft_targets([3.0, 1.0], [1.0, 2.0], temperature=1e3)), 6)  # Σ (z − t)²/8
    0.625
    """
    z, t = (np.stack([x, np.zeros_like(x)], -1) for x in map(np.float64, (student_logits, teacher_logits)))
    return temperature**2 * forward_kl(z, t, temperature).sum(-1)


def binary_soft_targets_gradient(
    student_logits: Numbers, teacher_logits: Numbers, temperature: float | np.ndarray = 1.0
) -> Values:
    r""":math:`T(q_l - p_l)`."""
    q, p = (1 / (1 + np.exp(-np.float64(x) / temperature)) for x in (student_logits, teacher_logits))
    return temperature * (q - p)


def logit_mse(student_logits: Numbers, teacher_logits: Numbers) -> Values:
    r""":math:`\frac1N\sum_i (z_i - t_i)^2`."""
    difference = np.asarray(student_logits, dtype=np.float64) - np.asarray(teacher_logits, dtype=np.float64)
    return (difference**2).mean(-1)


def cross_entropy_gradient(student_logits: Numbers, target: Numbers, temperature: float | np.ndarray = 1.0) -> Values:
    r""":math:`\partial/\partial z_i` of :math:`-\sum_k p_k\log q_k`: :math:`(q_i\sum_k p_k - p_i)/T`."""
    target = np.asarray(target, dtype=np.float64)
    return (softmax(student_logits, temperature) * target.sum(-1, keepdims=True) - target) / temperature


def forward_kl_gradient(
    student_logits: Numbers, teacher_logits: Numbers, temperature: float | np.ndarray = 1.0
) -> Values:
    r""":math:`(q_i - p_i)/T`."""
    return (softmax(student_logits, temperature) - softmax(teacher_logits, temperature)) / temperature


def reverse_kl_gradient(
    student_logits: Numbers, teacher_logits: Numbers, temperature: float | np.ndarray = 1.0
) -> Values:
    r""":math:`\frac{q_i}{T}\bigl(\log\frac{q_i}{p_i} - D_{\mathrm{KL}}(q\,\|\,p)\bigr)`."""
    log_p, log_q = log_softmax(teacher_logits, temperature), log_softmax(student_logits, temperature)
    return np.exp(log_q) * (log_q - log_p - kl(log_q, log_p)[..., None]) / temperature


def jensen_shannon_gradient(
    student_logits: Numbers, teacher_logits: Numbers, temperature: float | np.ndarray = 1.0, beta: float = 0.5
) -> Values:
    r""":math:`(1-\beta)\frac{q_i}{T}\bigl(\log\frac{q_i}{m_i} - D_{\mathrm{KL}}(q\,\|\,m)\bigr)`."""
    log_p, log_q = log_softmax(teacher_logits, temperature), log_softmax(student_logits, temperature)
    log_m = np.logaddexp(np.log(beta) + log_p, np.log1p(-beta) + log_q)
    return (1 - beta) * np.exp(log_q) * (log_q - log_m - kl(log_q, log_m)[..., None]) / temperature


def skewed_forward_kl_gradient(
    student_logits: Numbers, teacher_logits: Numbers, temperature: float | np.ndarray = 1.0, skew: float = 0.1
) -> Values:
    r""":math:`\frac{1-\lambda}{T} q_i\bigl(\sum_k q_k \frac{p_k}{m_k} - \frac{p_i}{m_i}\bigr)`."""
    log_p, log_q = log_softmax(teacher_logits, temperature), log_softmax(student_logits, temperature)
    ratio = np.exp(log_p - np.logaddexp(np.log(skew) + log_p, np.log1p(-skew) + log_q))
    q = np.exp(log_q)
    return (1 - skew) * q * ((q * ratio).sum(-1, keepdims=True) - ratio) / temperature


def skewed_reverse_kl_gradient(
    student_logits: Numbers, teacher_logits: Numbers, temperature: float | np.ndarray = 1.0, skew: float = 0.1
) -> Values:
    r""":math:`\frac{q_i}{T}\bigl(g_i - \sum_k q_k g_k\bigr)`, :math:`g = \log\frac{q}{m} - \lambda\frac{q}{m}`."""
    log_p, log_q = log_softmax(teacher_logits, temperature), log_softmax(student_logits, temperature)
    log_ratio = log_q - np.logaddexp(np.log1p(-skew) + log_p, np.log(skew) + log_q)
    q, slope = np.exp(log_q), log_ratio - skew * np.exp(log_ratio)
    return q * (slope - (q * slope).sum(-1, keepdims=True)) / temperature


def total_variation_gradient(
    student_logits: Numbers, teacher_logits: Numbers, temperature: float | np.ndarray = 1.0
) -> Values:
    r""":math:`\frac{q_i}{2T}\bigl(s_i - \sum_k q_k s_k\bigr)`, :math:`s = \operatorname{sign}(q - p)`."""
    q = softmax(student_logits, temperature)
    sign = np.sign(q - softmax(teacher_logits, temperature))
    return q * (sign - (q * sign).sum(-1, keepdims=True)) / (2 * temperature)


def negative_log_acceptance_gradient(
    student_logits: Numbers, teacher_logits: Numbers, temperature: float | np.ndarray = 1.0
) -> Values:
    r""":math:`\frac1T\bigl(q_i \sum_k r_k - r_i\bigr)`, :math:`r = \frac{\min(p, q)}{\sum\min(p, q)}` where :math:`q < p`, else 0."""
    log_p, log_q = log_softmax(teacher_logits, temperature), log_softmax(student_logits, temperature)
    r = np.exp(
        np.minimum(log_p, log_q) + negative_log_acceptance(student_logits, teacher_logits, temperature)[..., None]
    )
    r = r * (1 + np.sign(log_p - log_q)) / 2  # half of it where they are equal
    return (np.exp(log_q) * r.sum(-1, keepdims=True) - r) / temperature


def logit_mse_gradient(student_logits: Numbers, teacher_logits: Numbers) -> Values:
    r""":math:`2(z_i - t_i)/N`."""
    difference = np.asarray(student_logits, dtype=np.float64) - np.asarray(teacher_logits, dtype=np.float64)
    return 2 * difference / difference.shape[-1]


def softmax_high_temperature(logits: Numbers, temperature: float | np.ndarray, order: int = 1) -> Values:
    r""":math:`q_i` to first or second order in :math:`1/T`, with :math:`\tilde z` the centred logits.

    .. math:: \frac1N\Bigl(1 + \frac{\tilde z_i}{T} + \frac{\tilde z_i^2 - \overline{\tilde z^2}}{2T^2}\Bigr)
    """
    z = np.asarray(logits, dtype=np.float64)
    z = z - z.mean(-1, keepdims=True)
    relative = 1 + z / temperature
    if order == 2:
        relative = relative + (z**2 - (z**2).mean(-1, keepdims=True)) / (2 * temperature**2)
    return relative / z.shape[-1]


def logit_matching(student_logits: Numbers, teacher_logits: Numbers) -> Values:
    r""":math:`\frac{1}{2N}\sum_i(\tilde z_i - \tilde t_i)^2`: the limit of :math:`T^2 D_{\mathrm{KL}}(p\,\|\,q)`."""
    difference = np.asarray(student_logits, dtype=np.float64) - np.asarray(teacher_logits, dtype=np.float64)
    return difference.var(-1) / 2


def effective_exponent(x: Numbers, y: Numbers) -> Values:
    r"""The local slope :math:`d\log y/d\log x` of a curve, at each of its points.

    >>> import numpy as np
    >>> effective_exponent(np.array([1.0, 2.0, 4.0]), np.array([1.0, 0.25, 0.0625])).tolist()
    [-2.0, -2.0, -2.0]
    """
    return np.gradient(np.log(y), np.log(x))
