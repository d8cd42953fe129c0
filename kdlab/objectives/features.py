r"""Feature-based objectives: match what the teacher computes on the way to its answer.

Features have the shape ``(B, ..., D)``: the examples first, the features last. A map ``(B, C, H, W)`` of a convolutional
network is brought to it by :func:`channels_last`. Half precision is computed in float32.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch  # noqa: F401 (the examples use it)
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.shapes import Float

from .checks import check_features, check_mask
from .reduction import reduce
from .softening import counted_rows, full_precision, without_autocast
from .types import Count, Loss, Mask, Reduction


def hidden_mse(
    student_hidden: Float[Tensor, "*positions D"],
    teacher_hidden: Float[Tensor, "*positions D"],
    *,
    mask: Mask | None = None,
    count: Count | None = None,
    reduction: Reduction = "batchmean",
) -> Loss:
    r"""Mean squared difference of hidden states.

    .. math:: \frac1D \sum_d (s_d - t_d)^2, \qquad \frac{\partial}{\partial s_d} = \frac{2(s_d - t_d)}{D}

    Convention: mean over features **and** over positions, as ``torch.nn.MSELoss``; no ½.

    Args:
        student_hidden: :math:`s`, shape ``(B, ..., D)``.
        teacher_hidden: :math:`t`, the same shape.
        mask: boolean, shape ``(B, ...)``; False positions (padding) do not count, whatever stands there.
        count, reduction: as in :func:`~kdlab.objectives.divergences.forward_kl`.

    Raises:
        TypeError: for features that are not floating-point tensors.
        ValueError: for shapes that differ (then a :class:`Projector` is needed), or entries that are not finite.

    Source: FitNets, Romero et al. (2015), eq. 3, without its ½; for transformers, Jiao et al. (2020), TinyBERT, eq. 8.

    >>> hidden_mse(torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 1.0]]))
    tensor(2.)
    """
    student, teacher = _counted(student_hidden, teacher_hidden, mask)
    difference = full_precision(student) - full_precision(teacher)
    return reduce(difference.square().mean(-1), mask, reduction, count)


def _counted(student_hidden, teacher_hidden, mask):
    """Both, checked, with zeros where they do not count."""
    finite = check_features(student_hidden, teacher_hidden, mask=mask if isinstance(mask, Tensor) else None)
    if mask is not None:
        check_mask(mask, student_hidden[..., 0], empty=True)
    return counted_rows(student_hidden, mask, finite), counted_rows(teacher_hidden, mask, finite)


def hidden_cosine(
    student_hidden: Float[Tensor, "*positions D"],
    teacher_hidden: Float[Tensor, "*positions D"],
    *,
    mask: Mask | None = None,
    count: Count | None = None,
    reduction: Reduction = "batchmean",
) -> Loss:
    r"""One minus the cosine of hidden states: their direction, not their length.

    .. math:: 1 - \frac{s \cdot t}{\|s\|\,\|t\|} \in [0, 2]

    Convention: mean over positions. A zero vector has cosine 0 with everything, and no gradient. Computed as half the
    squared distance of the directions, which is the same and never negative. Arguments and errors as in
    :func:`hidden_mse`.

    Source: DistilBERT, Sanh et al. (2019), section 3.

    >>> hidden_cosine(torch.tensor([[1.0, 0.0]]), torch.tensor([[5.0, 0.0]]))
    tensor(0.)
    """
    student, teacher = (unit(full_precision(x)) for x in _counted(student_hidden, teacher_hidden, mask))
    losses = (student - teacher).square().sum(-1) / 2
    return reduce(losses.where(student.any(-1) & teacher.any(-1), 1.0), mask, reduction, count)


def unit(x: Float[Tensor, "*shape"], dim: int = -1) -> Float[Tensor, "*shape"]:
    """Vectors of length one; a zero vector stays zero, with gradient zero.

    >>> unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    largest = x.detach().abs().amax(dim, keepdim=True)  # so that squares neither overflow nor vanish
    x = x / largest.where(largest != 0, 1.0)
    squared = x.square().sum(dim, keepdim=True)
    some = squared != 0  # of NaN, too, which has to stay
    return (x / squared.where(some, 1.0).sqrt()).where(some, 0.0)


def channels_last(features: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Maps ``(B, C, H, W)`` as ``(B, H, W, C)``; everything else as it is."""
    return features.movedim(1, -1) if features.ndim == 4 else features


def same_size(
    student: Float[Tensor, "B ..."], teacher: Float[Tensor, "B ..."]
) -> tuple[Float[Tensor, "B ..."], Float[Tensor, "B ..."]]:
    """Maps ``(B, C, H, W)`` of one height and width: the larger is averaged down to the smaller (adaptive pooling).

    >>> [x.shape[2:] for x in same_size(torch.zeros(1, 3, 8, 8), torch.zeros(1, 5, 4, 6))]
    [torch.Size([4, 6]), torch.Size([4, 6])]
    """
    if student.ndim != 4 or teacher.ndim != 4:
        return student, teacher
    size = [min(a, b) for a, b in zip(student.shape[2:], teacher.shape[2:], strict=True)]
    student, teacher = (
        x if list(x.shape[2:]) == size else F.adaptive_avg_pool2d(x, (size[0], size[1])) for x in (student, teacher)
    )
    return student, teacher


def as_maps(
    student: Float[Tensor, "B ..."], teacher: Float[Tensor, "B ..."]
) -> tuple[Float[Tensor, "B ..."], Float[Tensor, "B ..."]]:
    """Beside a map ``(B, C, H, W)``, tokens ``(B, N, D)`` of a vision transformer as the map that they are, ``(B, D, √n, √n)``; all else as it is.

    The n patches lie in a square, row by row; what comes before them (tokens of the class, of distillation, registers) is left out: n is the largest
    square that is not more than N.

    Raises:
        ValueError: where more than eight tokens would be left out, as of patches that lie in no square.

    >>> [tuple(x.shape) for x in as_maps(torch.zeros(2, 16, 8, 8), torch.zeros(2, 197, 24))]
    [(2, 16, 8, 8), (2, 24, 14, 14)]
    """
    if {student.ndim, teacher.ndim} != {3, 4}:
        return student, teacher
    return (_as_map(student), teacher) if student.ndim == 3 else (student, _as_map(teacher))


def _as_map(tokens):
    side = math.isqrt(tokens.shape[1])
    if tokens.shape[1] - side**2 > 8:
        raise ValueError(
            f"{tokens.shape[1]} tokens are no square of patches with a few tokens before it: to hold them beside a map, take a layer whose output is one."
        )
    return tokens[:, tokens.shape[1] - side**2 :].mT.unflatten(-1, (side, side))


class Projector(nn.Module):
    r"""A learned map from the student's features to the teacher's width.

    ``"linear"``: :math:`Ws + b`; on maps ``(B, C, H, W)`` it acts on the channels of every position, which is a 1×1
    convolution with bias. ``"conv"``: a 1×1 convolution without bias, and batch normalisation, for maps alone. ``"regressor"``:
    the same with a bias, and a ReLU after it, as the published table has its hint (``ConvReg`` of RepDistiller).
    ``"mlp"``: two linear maps with a ReLU between, as wide as the teacher. ``"orthogonal"``: a linear map without bias whose
    matrix keeps orthonormal rows or columns (:math:`W^\top W = I` or :math:`WW^\top = I`) all through training, so that it can
    turn the student's space but not stretch it. (On CUDA its step is not captured as a graph: Cayley's map solves a linear system, by a
    library that cannot be captured.)

    It belongs to the objective: what it learns is thrown away after training. The weight of 100 that RepDistiller and mdistiller give to
    FitNets belongs to ``"regressor"``, their ``ConvReg``.

    Args:
        kind: ``"linear"``, ``"conv"``, ``"regressor"``, ``"mlp"`` or ``"orthogonal"``.
        student_width: features of the student's layer (channels of a map).
        teacher_width: features of the teacher's.

    Source: the idea of a regressor, FitNets, Romero et al. (2015), eq. 3; orthogonal, Miles, Elezi & Deng (2024), who also normalise the
    teacher's features.

    >>> Projector("linear", 16, 64)(torch.zeros(8, 10, 16)).shape
    torch.Size([8, 10, 64])
    >>> Projector("conv", 16, 64)(torch.zeros(8, 16, 4, 4)).shape
    torch.Size([8, 64, 4, 4])
    """

    KINDS = ("linear", "conv", "regressor", "mlp", "orthogonal")

    def __init__(
        self,
        kind: Literal["linear", "conv", "regressor", "mlp", "orthogonal"],
        student_width: int,
        teacher_width: int,
    ) -> None:
        super().__init__()
        if kind not in self.KINDS:
            raise ValueError(f"a projector is one of {', '.join(self.KINDS)}, not {kind!r}.")
        self.kind, self.widths = kind, (student_width, teacher_width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights."""
        inputs, outputs = self.widths
        device = next((p.device for p in self.parameters()), None)
        if self.kind == "linear":
            self.map = nn.Linear(inputs, outputs)
        elif self.kind == "conv":
            self.map = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        elif self.kind == "regressor":
            self.map = nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs), nn.ReLU())
        elif self.kind == "mlp":
            self.map = nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU(), nn.Linear(outputs, outputs))
        else:
            # Not PyTorch's default for matrices that are not square, householder: weight decay makes its columns zero.
            self.map = nn.utils.parametrizations.orthogonal(
                nn.Linear(inputs, outputs, bias=False), orthogonal_map="cayley"
            )
        self.map.to(device)

    @without_autocast
    def forward(self, features: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        axis = 1 if features.ndim == 4 else -1
        if features.shape[axis] != self.widths[0]:
            raise ValueError(
                f"{self!r} takes features of width {self.widths[0]}, but these have shape {tuple(features.shape)}."
            )
        if self.kind in ("conv", "regressor"):
            if features.ndim != 4:
                raise ValueError(
                    f'{self!r} takes maps (batch, channels, height, width), not shape {tuple(features.shape)}: "linear" takes tokens, and vectors.'
                )
            return self.map(full_precision(features))
        projected = self.map(channels_last(full_precision(features)))
        return projected.movedim(-1, 1) if features.ndim == 4 else projected

    def __repr__(self) -> str:
        return f"Projector({self.kind!r}, {self.widths[0]}, {self.widths[1]})"


def match_layers(
    student: Sequence[str], teacher: Sequence[str], how: Literal["uniform", "last", "skip"] = "uniform"
) -> list[tuple[str, str]]:
    r"""Which layer of the teacher each layer of the student is to match.

    ``"uniform"``: spread over the whole depth, the last with the last: student layer :math:`i` of :math:`n` with teacher
    layer :math:`\operatorname{round}(im/n)` of :math:`m`. ``"last"``: the last :math:`n` of the teacher. ``"skip"``: every
    :math:`\lfloor m/n \rfloor`-th of the teacher from the start. The three are one for equal depths.

    Args:
        student, teacher: module paths, in order of depth.
        how: ``"uniform"``, ``"last"`` or ``"skip"``.

    Returns:
        Pairs of paths, for terms that match layers.

    Raises:
        ValueError: for another strategy, or a student deeper than the teacher.

    Source: last and skip, Sun et al. (2019), Patient KD, section 3.2; uniform, Jiao et al. (2020), section 3.

    >>> match_layers(["a", "b"], ["1", "2", "3", "4", "5"], "uniform")
    [('a', '2'), ('b', '5')]
    >>> match_layers(["a", "b"], ["1", "2", "3", "4", "5"], "last")
    [('a', '4'), ('b', '5')]
    >>> match_layers(["a", "b"], ["1", "2", "3", "4", "5"], "skip")
    [('a', '2'), ('b', '4')]
    """
    n, m = len(student), len(teacher)
    if not 0 < n <= m:
        raise ValueError(f"{n} student layers cannot be spread over {m} teacher layers.")
    chosen = {
        "uniform": [round((i + 1) * m / n) - 1 for i in range(n)],
        "last": list(range(m - n, m)),
        "skip": [(i + 1) * (m // n) - 1 for i in range(n)],
    }
    if how not in chosen:
        raise ValueError(f"layers are matched by {', '.join(chosen)}, not {how!r}.")
    return [(s, teacher[i]) for s, i in zip(student, chosen[how], strict=True)]
