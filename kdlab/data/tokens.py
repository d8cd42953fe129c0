"""Tokens as training data: blocks of a context's length, each with the tokens that follow."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from kdlab.shapes import Integer, with_shapes

from .images import batch_indices


@dataclass(frozen=True)
class Tokens:
    r"""A text as blocks of ``context`` tokens; the labels of a block are the tokens that follow each of its own.

    Block :math:`i` holds the tokens :math:`iC \dots iC + C - 1`, and its labels are :math:`iC + 1 \dots iC + C`: every token but
    the first of the text is predicted once.

    Attributes:
        labels: all tokens in a row as 16-bit numbers without a sign, which PyTorch keeps as int16, or as int32 where a vocabulary has
            more than 65,536; they may be mapped from disk. From token numbers, :func:`numbered`.
        context: :math:`C`.
        token_bytes: how many bytes of text each token of the vocabulary stands for, int64, shape ``(V,)``.
        blocks: which blocks there are, int64, shape ``(n,)``; None is all.
        ahead: if positive, the labels are those of so many further tokens, shape ``(batch, ahead, context)``: the second after each
            token, the third, and so on, −100 where the block ends before them.
        stride: from one block's first token to the next one's; None is :math:`C`. With :math:`C + 1` blocks share no token.

    Raises:
        ValueError: for tokens of another type, or too few for a block; for a context or stride that is not positive; and, on the CPU,
            for ``token_bytes`` that lack a token of the text or are all zero.
    """

    __repr__ = with_shapes

    labels: Integer[Tensor, " tokens"]
    context: int
    token_bytes: Integer[Tensor, " V"]
    # Neither is None once it is made, which a type cannot say: hence the lines that are not checked.
    blocks: Integer[Tensor, " n"] | None = None
    stride: int | None = None
    ahead: int = 0
    #: Whether batches are cropped and flipped where the recipe says so.
    augments: ClassVar[bool] = False

    def __post_init__(self) -> None:
        known = isinstance(self.labels, Tensor) and self.labels.dtype in (torch.int16, torch.int32)
        if not known or self.labels.ndim != 1:
            raise ValueError(
                "tokens are 16-bit numbers in a row: torch.from_numpy(numpy.array(ids, dtype=numpy.uint16).view(numpy.int16)); of "
                "more than 65,536 they are int32: kdlab.data.tokens.numbered(ids, vocabulary)."
            )
        if self.context < 1 or (self.stride is not None and self.stride < 1):
            raise ValueError(f"context and stride are at least one token, not {self.context} and {self.stride}.")
        if len(self.labels) <= self.context:
            raise ValueError(
                f"a text of {len(self.labels)} tokens is too short for one block of {self.context} and what follows it."
            )
        self._check_sizes()
        if self.stride is None:
            object.__setattr__(self, "stride", self.context)
        if self.blocks is None:
            whole = (len(self.labels) - 1 - self.context) // self.stride + 1  # pyrefly: ignore[unsupported-operation]
            object.__setattr__(self, "blocks", torch.arange(whole))

    def _check_sizes(self) -> None:
        if self.labels.device.type != "cpu" or self.token_bytes.device.type != "cpu":
            return
        row, sizes = self.labels.numpy(), len(self.token_bytes)
        if (last := int(row.view(f"u{row.itemsize}").max())) >= sizes or not self.token_bytes.any():
            what = f"has {sizes} entries and the text a token {last}" if last >= sizes else "is zero in all"
            raise ValueError(
                f"token_bytes {what}: it says of each token of the vocabulary how many bytes it stands for, kdlab.language.token_bytes(tokeniser), "
                "or torch.ones(vocabulary).long() where bits per byte are to be bits per token."
            )

    def __len__(self) -> int:
        return len(self.blocks)  # pyrefly: ignore[bad-argument-type]

    def __getitem__(self, index: Any) -> "Tokens":
        return replace(self, blocks=self.blocks[index])  # pyrefly: ignore[unsupported-operation]

    def spread(self, n: int) -> "Tokens":
        """``n`` blocks at even distances, or all if there are no more."""
        n = min(n, len(self))
        return self[torch.arange(n) * len(self) // n]

    def to(self, device: torch.device | str) -> "Tokens":
        return replace(
            self,
            labels=self.labels.to(device),
            token_bytes=self.token_bytes.to(device),
            blocks=self.blocks.to(device),  # pyrefly: ignore[missing-attribute]
        )

    def batches(
        self,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        augment: bool = False,
        order: Integer[Tensor, " N"] | None = None,
        start: int = 0,
    ) -> Iterator[tuple[Integer[Tensor, "n context"], Integer[Tensor, "n *ahead context"], Integer[Tensor, " n"]]]:
        """Batches of (tokens, the tokens that follow, indices of the blocks), as :meth:`kdlab.data.images.Split.batches`.

        Tokens and labels are int64, shape ``(batch, context)`` but for ``ahead``; there is nothing to augment.
        """
        steps = torch.arange(self.context + 1, device=self.labels.device)
        for number, index in enumerate(batch_indices(len(self), batch_size, generator, order, self.labels.device)):
            if number >= start:
                places = self.blocks[index].unsqueeze(1) * self.stride + steps  # pyrefly: ignore[unsupported-operation]
                block = self.labels[places].long()
                if self.labels.dtype == torch.int16:
                    block &= 0xFFFF
                yield block[:, :-1], self._labels(block[:, 1:]), index

    def _labels(self, following: Tensor) -> Tensor:
        if not self.ahead:
            return following
        ended = torch.full_like(following, -100)
        return torch.stack([torch.cat([following[:, k:], ended[:, :k]], 1) for k in range(1, self.ahead + 1)], 1)


def width(vocabulary: int) -> np.dtype:
    """How token numbers of a vocabulary are written: in 16 bits without a sign, or 32 where these are too few."""
    return np.dtype(np.uint16 if vocabulary <= 2**16 else np.uint32)


def numbered(ids: Sequence[int] | np.ndarray, vocabulary: int) -> Integer[Tensor, " tokens"]:
    """Token numbers in a row as :class:`Tokens` keep them: int16, or int32 for more than 65,536.

    Raises:
        TypeError: for what are no whole numbers.
        ValueError: for a number that is none of the vocabulary's.
    """
    row = np.asarray(ids)
    if row.size and not np.issubdtype(row.dtype, np.integer):
        raise TypeError(f"token numbers are whole numbers, as a tokeniser's encode(text).ids, not {row.dtype}.")
    if row.size and not 0 <= row.min() <= row.max() < vocabulary:
        raise ValueError(f"tokens of a vocabulary of {vocabulary} do not reach from {row.min()} to {row.max()}.")
    kept = width(vocabulary)
    return torch.from_numpy(row.astype(kept).view(f"i{kept.itemsize}"))


def mapped(path: Path, vocabulary: int = 2**16) -> Integer[Tensor, " tokens"]:
    """A file of token numbers, int16 or int32, mapped into memory."""
    size = width(vocabulary).itemsize
    kind = {2: torch.int16, 4: torch.int32}[size]
    return torch.from_file(str(path), shared=False, size=path.stat().st_size // size, dtype=kind)


@dataclass(frozen=True)
class TextData:
    """A tokenised corpus in three splits.

    Attributes:
        name: corpus, vocabulary and context, such as ``"books-4096-256"``.
        train, validation, test: no author is in two of them, where the corpus says who wrote what.
        num_classes: the number of tokens in the vocabulary.
        tokeniser: with ``encode(text).ids`` and ``decode(ids)``.
        checksum: of the tokens of all splits and of the tokeniser.
        fallback: whether this stands in for a corpus that could not be had, and ``reason``: why.
    """

    name: str
    train: Tokens
    validation: Tokens
    test: Tokens
    num_classes: int
    tokeniser: object
    checksum: str
    fallback: bool = False
    reason: str = ""

    # For people, as those of ImageData.

    @property
    def unit(self) -> str:
        return f"blocks of {self.train.context} tokens"

    @property
    def wanted(self) -> str:
        return f"text {self.name}"

    @property
    def title(self) -> str:
        return "Python's own help texts" if self.fallback else self.name
