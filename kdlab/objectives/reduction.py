r"""From one loss a distribution to one number, and over what it is averaged.

``reduction="batchmean"`` divides the sum by the number of distributions that count (real tokens, where a mask is
given), never by the number of classes. A batch that comes in pieces, as micro-batches or on several ranks, has to be
divided by the number in the *whole* batch: that is ``count``, and :func:`global_count` gives it.
"""

import torch
from torch import Tensor

from kdlab.shapes import Float

from .checks import check_count, check_mask
from .types import Count, Loss, Mask, Reduction, Scalar


def reduce(
    losses: Float[Tensor, "*positions"],
    mask: Mask | None = None,
    reduction: Reduction = "batchmean",
    count: Count | None = None,
) -> Loss:
    """Reduce one loss a distribution to what is asked for.

    Args:
        losses: shape ``(...)``, one entry a distribution.
        mask: boolean, shape ``(...)``, True where a position counts; None counts all.
        reduction: ``"batchmean"`` (sum over counted positions divided by ``count``), ``"sum"`` or ``"none"`` (shape
            kept, zero where masked).
        count: the number to divide by; None takes the number of counted positions of these losses.

    Raises:
        ValueError: for another reduction, a mask of another shape, a count that is not positive, or, without a count,
            where no position counts.

    >>> losses, mask = torch.tensor([1.0, 3.0, 7.0]), torch.tensor([True, True, False])
    >>> reduce(losses, mask), reduce(losses, mask, count=4)
    (tensor(2.), tensor(1.))
    """
    if reduction not in ("batchmean", "sum", "none"):
        raise ValueError(f'reduction must be "batchmean", "sum" or "none", not {reduction!r}.')
    if count is not None:
        check_count(count)
    if mask is not None:
        check_mask(mask, losses, empty=count is not None or reduction != "batchmean")
        losses = losses.where(mask, 0.0)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    if count is None:
        if not losses.numel():
            raise ValueError("there is no position to average over.")
        count = losses.numel() if mask is None else mask.sum()
    return losses.sum() / count


def global_count(mask: Mask) -> Scalar:
    """The number to divide by so that micro-batches and ranks add up to the mean over the whole batch.

    Add it up over the micro-batches of a step and pass the sum as ``count`` to each of them, adding their gradients.
    Under ``torch.distributed`` it is the number of counted positions on all ranks, divided by the number of ranks, since
    DistributedDataParallel averages gradients over ranks.

    Args:
        mask: boolean, True where a position counts, of this rank.

    Returns:
        A scalar, float32.

    >>> global_count(torch.tensor([[True, True], [True, False]]))
    tensor(3.)
    """
    count = mask.sum().float()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(count)
        count = count / torch.distributed.get_world_size()
    return count
