"""The parts that a batch is run in, and what of it counts, so that what is said of the parts adds up to what is said of the whole."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..objectives import global_count
from ..objectives.checks import IGNORED
from .distributed import rank_and_world


def micro_batches(n: int, labels: Tensor, inputs) -> list[tuple[slice, dict]]:
    """The ``n`` parts of a batch, and what their means divide by: the numbers of the whole."""
    which = counted(labels)
    read = read_tokens(inputs, which)
    if n == 1 and (rank_and_world()[1] == 1 or (which.ndim == 1 and read is None)):
        return [(slice(None), {})]
    if n > 1:
        check_positions(labels)
    counts = {
        "count": global_count(which),
        "example_count": len(labels),
        "hidden_count": which.numel() if read is None else global_count(read),
    }
    size = math.ceil(len(labels) / n)
    return [(slice(start, start + size), counts) for start in range(0, len(labels), size)]


def count_of_all(labels: Tensor, logits) -> dict:
    """What means over examples divide by where the processes have labels of −100 in unequal number; nothing where one has all, or none can be ignored."""
    of_examples = labels.ndim == 1 and logits is not None and labels.shape == logits.shape[:-1]
    if rank_and_world()[1] == 1 or labels.is_floating_point() or not of_examples:
        return {}
    return {"count": global_count(counted(labels))}


def part_of(value, part: slice):
    """Some examples of what a step has seen: of a tensor, or of each in a dict."""
    if value is None or part == slice(None):
        return value
    return {name: x[part] for name, x in value.items()} if isinstance(value, dict) else value[part]


def counted(labels: Tensor) -> Tensor:
    """Which labels count: all but −100. Those that are not whole numbers, such as probabilities, have an axis of classes."""
    if labels.is_floating_point() and labels.ndim > 3:  # maps, whose axis of classes only the terms know
        return labels.new_ones(len(labels), dtype=torch.bool)
    if labels.is_floating_point():
        return labels.new_ones(labels.shape[:-1] or labels.shape, dtype=torch.bool)
    return labels != IGNORED


def read_tokens(inputs, counts: Tensor) -> Tensor | None:
    """Which tokens are read, and are no padding; None where nothing says so. ``counts`` is of each token, or of each text."""
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    fits = mask is not None and mask.ndim == 2 and mask.shape[: counts.ndim] == counts.shape
    return mask.bool() if fits else None


def check_positions(labels: Tensor) -> None:
    """That it is known what a mean over the positions of the whole batch divides by.

    Raises:
        ValueError: of maps of numbers, of which it is not.
    """
    if labels.is_floating_point() and labels.ndim > 3:
        raise ValueError("of labels that are maps of numbers the positions are not known here: micro_batches=1.")
