"""What is measured of embeddings: what a student's say of near and far, beside its teacher's.

Both have one row an example, ``(n, D)``, of any two widths; nearness is the cosine. No measure asks for the same axes.
"""

import torch
from torch import Tensor

from kdlab.shapes import Float, Integer

from ..objectives.checks import check_features
from ..objectives.features import unit

Embeddings = Float[Tensor, "n ..."]


def _check(embeddings: Tensor) -> None:
    if embeddings.ndim != 2 or not len(embeddings) or not torch.isfinite(embeddings).all():
        raise ValueError(
            f"embeddings are finite numbers of shape (n, D), one row an example and at least one, not of shape {tuple(embeddings.shape)}"
            + (" with NaN or infinities." if embeddings.ndim == 2 and len(embeddings) else ".")
        )


def _cosines(embeddings: Tensor) -> Tensor:
    """Of all pairs, ``(n, n)``."""
    _check(embeddings)
    rows = unit(embeddings.float())
    return rows @ rows.T


def recall_of_neighbours(student: Embeddings, teacher: Embeddings, k: int = 10) -> float:
    r"""The part of the teacher's ``k`` nearest neighbours of an example that are among the student's, averaged over examples.

    .. math:: \frac1n \sum_i \frac{|N_k^S(i) \cap N_k^T(i)|}{k}

    By chance it is :math:`k/(n-1)`; an example is not its own neighbour.

    Raises:
        TypeError, ValueError: for what is no embeddings of the same examples, or ``k`` that is not from 1 to n − 1.

    >>> line = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    >>> recall_of_neighbours(line @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]]), line, k=1)
    1.0
    """
    check_features(student, teacher, same_width=False)
    if not 0 < k < len(student):
        raise ValueError(f"of {len(student)} examples, one has from 1 to {len(student) - 1} neighbours, not {k}.")
    nearest = [_cosines(x).fill_diagonal_(-2.0).topk(k).indices for x in (student, teacher)]
    return (nearest[0].unsqueeze(2) == nearest[1].unsqueeze(1)).any(2).float().mean().item()


def rank_correlation(student: Embeddings, teacher: Embeddings) -> float:
    """Spearman's correlation between the cosines of all pairs of different examples, of student and of teacher.

    One where both put all pairs into one order, however the cosines themselves are spread. Errors as of :func:`recall_of_neighbours`.

    >>> line = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.3]])
    >>> rank_correlation(line, 5 * line), rank_correlation(line, line[[0, 2, 1]])
    (1.0, -1.0)
    """
    check_features(student, teacher, same_width=False)
    if len(student) < 3:
        raise ValueError(f"{len(student)} examples have no two pairs to be put in order.")
    upper = torch.triu(torch.ones(len(student), len(student), dtype=torch.bool), 1)
    ranks = torch.stack([_ranks(_cosines(x).cpu()[upper]) for x in (student, teacher)])
    if (ranks.amax(1) == ranks.amin(1)).any():
        raise ValueError("all cosines of student or teacher are equal, and equal values have no order to compare.")
    return torch.corrcoef(ranks)[0, 1].item()


def _ranks(x: Tensor) -> Tensor:
    """Places in rising order, float64; equal values share the mean of theirs."""
    _, which, counts = x.unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    return (ends - (counts - 1) / 2)[which]


def found_by_nearest(
    queries: Float[Tensor, "n D"],
    labels: Integer[Tensor, " n"],
    shelves: Float[Tensor, "m D"],
    labels_of_shelves: Integer[Tensor, " m"],
) -> float:
    """The part of ``queries`` whose nearest class is their own; a class is the mean of the embeddings in ``shelves`` with its label.

    >>> shelves = torch.tensor([[1.0, 0.0], [0.8, 0.2], [0.0, 1.0]])
    >>> found_by_nearest(torch.tensor([[1.0, 0.3]]), torch.tensor([7]), shelves, torch.tensor([7, 7, 2]))
    1.0
    """
    for embeddings in (queries, shelves):
        _check(embeddings)
    if (len(queries), len(shelves)) != (len(labels), len(labels_of_shelves)):
        raise ValueError(
            f"{len(labels)} and {len(labels_of_shelves)} labels do not fit {len(queries)} queries and {len(shelves)} shelves."
        )
    classes = labels_of_shelves.unique()
    if not torch.isin(labels, classes).all():
        raise ValueError("some labels of queries are on no shelf: they could never be found.")
    means = torch.stack([unit(shelves.float())[labels_of_shelves == c].mean(0) for c in classes])
    nearest = (unit(queries.float()) @ unit(means).T).argmax(1)
    return (classes[nearest] == labels).float().mean().item()
