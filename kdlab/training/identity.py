"""By what a checkpoint tells runs apart: what they learn from, from whom, and how."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict

import torch
from torch import nn

from .protocols import identity_of, inputs_of, is_text
from .recipe import Recipe
from .state import checksum, leaves_logits, state_of
from .views import Views


def shared_identity(train, teacher: nn.Module | None, views: Views | None, *, inputs: bool) -> dict:
    """What the students that train side by side have in common.

    Args:
        inputs: whether to look at what the examples are, beside their labels, which takes a moment.
    """
    return {
        "examples": len(train),
        "labels": _labels_checksum(train),
        "teacher": None if teacher is None else checksum(state_of(teacher).items()),
        **leaves_logits("teacher", teacher),
        **_blocks(train),
        **({} if views is None else {"views": repr(views)}),
        **({} if getattr(train, "views", None) is None else {"views of pictures": list(train.views)}),
        **(_inputs_checksum(train) if inputs else {}),
    }


def plain(recipe: Recipe) -> dict:
    """A recipe as JSON gives it back; what came later only where it is used, so that earlier checkpoints go on.

    >>> plain(Recipe()).keys() & {"mixup", "ema_decay"}, plain(Recipe(mixup=True))["mixup"]
    (set(), True)
    """
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(recipe).items()}
    return {k: v for k, v in values.items() if v or k not in ("ema_decay", "best_by", "patience", "mixup")}


def _labels_checksum(train) -> str:
    if (own := identity_of(train)) is not None:  # of what is loaded as it is needed
        return own
    return hashlib.sha256(train.labels.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()


def _inputs_checksum(train) -> dict:
    """What tells inputs of equal labels apart; nothing where the labels do already, of texts and of what is loaded."""
    if is_text(train) or identity_of(train) is not None:
        return {}
    inputs = inputs_of(train)
    if inputs is None:  # a split of the caller's own: its beginning
        inputs = next(iter(train.batches(1, order=torch.arange(len(train)))))[0]
    return {"inputs": checksum(inputs.items() if isinstance(inputs, Mapping) else [("inputs", inputs)])}


def _blocks(split) -> dict:
    """Which blocks of a text a split has; nothing of one whose labels say all."""
    if not is_text(split):
        return {}
    which = hashlib.sha256(split.blocks.cpu().numpy().tobytes()).hexdigest()
    ahead = f", {split.ahead} further" if split.ahead else ""
    return {"blocks": f"{split.context} tokens every {split.stride}{ahead}: {which}"}
