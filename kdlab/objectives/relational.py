r"""Relational objectives: match how examples stand to each other, not where each stands.

They compare a batch with itself, so widths need not agree, a rotation of either space changes nothing, and the loss of a
batch is not the mean of its parts' losses. Features are flattened to ``(B, D)``. RKD takes :math:`O(B^2 D)` memory, its
angle :math:`O(B^3)` more; similarity preserving :math:`O(B^2)`.
"""

import torch  # noqa: F401 (the examples use it)
import torch.nn.functional as F
from torch import Tensor

from kdlab.shapes import Float

from .checks import check_features
from .features import unit
from .softening import full_precision, without_autocast
from .types import Scalar


def _rows(student, teacher):
    """Both as (B, D), after the checks."""
    check_features(student, teacher, same_width=False)
    if min(student.ndim, teacher.ndim) < 2 or len(student) < 2:
        raise ValueError(
            f"relations need at least two examples of shape (B, ...), not shapes {tuple(student.shape)} and "
            f"{tuple(teacher.shape)}."
        )
    return full_precision(student).flatten(1), full_precision(teacher).flatten(1)


@without_autocast
def rkd_distance(student_features: Float[Tensor, "B ..."], teacher_features: Float[Tensor, "B ..."]) -> Scalar:
    r"""Distances between examples, relative to their mean.

    .. math:: \frac{1}{B^2}\sum_{i,j} h\Bigl(\frac{\|s_i - s_j\|}{\mu_S} - \frac{\|t_i - t_j\|}{\mu_T}\Bigr), \qquad
        h(x) = \begin{cases} x^2/2 & |x| \le 1 \\ |x| - 1/2 & \text{else} \end{cases}

    with :math:`\mu` the mean distance of two different examples. Convention: mean over all :math:`B^2` pairs, the zero
    diagonal included, as in the released code, to which the published weight 25 belongs.

    Args:
        student_features: shape ``(B, ...)``, at least two examples.
        teacher_features: shape ``(B, ...)``, of any width.

    Raises:
        TypeError: for features that are not floating-point tensors.
        ValueError: for fewer than two examples, or different numbers of them.

    Source: Park et al. (2019), section 3.2.1.

    >>> student, teacher = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [10.0], [20.0]])
    >>> rkd_distance(student, teacher)
    tensor(0.)
    """
    student, teacher = (_relative_distances(x) for x in _rows(student_features, teacher_features))
    return F.smooth_l1_loss(student, teacher)


def _relative_distances(x):
    squared = (x.unsqueeze(1) - x.unsqueeze(0)).square().sum(-1)
    apart = squared != 0  # NaN is no zero, and stays
    distances = squared.where(apart, 1.0).sqrt().where(apart, 0.0)
    mean = distances.sum() / apart.sum().clamp(min=1)
    return distances / mean.where(mean != 0, 1.0)


@without_autocast
def rkd_angle(student_features: Float[Tensor, "B ..."], teacher_features: Float[Tensor, "B ..."]) -> Scalar:
    r"""Angles that three examples form.

    .. math:: \frac{1}{B^3}\sum_{i,j,k} h\bigl(\cos\angle s_i s_j s_k - \cos\angle t_i t_j t_k\bigr), \qquad
        \cos\angle x_i x_j x_k = \Bigl\langle \frac{x_i - x_j}{\|x_i - x_j\|}, \frac{x_k - x_j}{\|x_k - x_j\|} \Bigr\rangle

    Convention: mean over all :math:`B^3` triples, as in the released code, to which the published weight 50 belongs.
    Arguments and errors as in :func:`rkd_distance`.

    Source: Park et al. (2019), section 3.2.2.

    >>> corner = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> rkd_angle(corner, 7 * corner)
    tensor(0.)
    """
    student, teacher = (_angles(x) for x in _rows(student_features, teacher_features))
    return F.smooth_l1_loss(student, teacher)


def _angles(x):
    directions = unit(x.unsqueeze(0) - x.unsqueeze(1))
    return directions @ directions.transpose(1, 2)


@without_autocast
def similarity_preserving(student_features: Float[Tensor, "B ..."], teacher_features: Float[Tensor, "B ..."]) -> Scalar:
    r"""Similarities of examples, row by row.

    .. math:: \frac{1}{B^2}\bigl\|\hat G_S - \hat G_T\bigr\|_F^2, \qquad G = X X^\top, \quad
        \hat G_{i\cdot} = G_{i\cdot}/\|G_{i\cdot}\|_2

    Convention: mean over all :math:`B^2` entries; published with weight 3000. Arguments and errors as in
    :func:`rkd_distance`.

    Source: Tung & Mori (2019), section 3.

    >>> similarity_preserving(torch.eye(3), 2 * torch.eye(3))
    tensor(0.)
    """
    student, teacher = (unit(x @ x.T) for x in _rows(student_features, teacher_features))
    return (student - teacher).square().mean()
