"""Mixup: each example of a batch mixed with another one of it."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .seeds import generator


def mixed(batches: Iterator[tuple], seed: int, epoch: int, start: int = 0) -> Iterator[tuple]:
    r"""Batches whose inputs are :math:`\lambda_i x_i + (1 - \lambda_i) x_{\pi(i)}`, with a cyclic order :math:`\pi` and uniform shares.

    :math:`\lambda_i \sim U[0, 1]` is drawn for each example, from the seed, the epoch and the number of the batch: whoever else looks at these examples,
    in crops of its own, sees the same mixture of them. Labels stay those of :math:`x_i`: a mixture has none of its own.

    Args:
        batches: tuples that begin with inputs, shape :math:`(B, …)`.
        start: the number of the first batch.

    Raises:
        TypeError: for inputs that cannot be added up, such as tokens.

    Source: Zhang et al. (2018); as what a teacher is asked about, Beyer et al. (2022).
    """
    for step, (inputs, *others) in enumerate(batches, start):
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
            what = inputs.dtype if isinstance(inputs, Tensor) else type(inputs).__name__
            raise TypeError(
                f"mixup=True adds inputs up, and these are {what}: give pictures or vectors in floating point, such as pictures.float() / 255."
            )
        drawn, n = generator(seed, epoch, step, "mixup"), len(inputs)
        order = torch.randperm(n, generator=drawn)
        partner = torch.empty_like(order).scatter_(0, order, order.roll(1))  # never itself
        share = torch.rand(n, *[1] * (inputs.ndim - 1), generator=drawn)
        partner, share = (x.to(inputs.device, non_blocking=True) for x in (partner, share))
        yield (torch.lerp(inputs[partner], inputs, share.to(inputs)), *others)
