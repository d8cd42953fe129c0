"""Rewards by rule: what is open can be measured, and hacked."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdlab.shapes import Float, Integer

from .tokeniser import untruncated


@dataclass(frozen=True)
class TokenCount:
    """How many tokens of a text are among some of the vocabulary.

    It was meant to ask for a kind of text, and asks for some words.

    Attributes:
        tokens: their numbers.

    >>> TokenCount((3, 5))(torch.tensor([[3, 3, 4, -100], [5, 1, 1, 1]]))
    tensor([2., 1.])
    """

    tokens: tuple[int, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.tokens, tuple) or not self.tokens:
            raise ValueError(f"the tokens that count are a tuple of at least one number, not {self.tokens!r}.")

    def __call__(self, texts: Integer[Tensor, "B T"]) -> Float[Tensor, " B"]:
        """Rewards ``(B,)`` of texts ``(B, T)``; tokens of −100 are not looked at."""
        return torch.isin(texts, torch.tensor(self.tokens, device=texts.device)).sum(-1).float()


def tokens_of(words: Iterable[str], tokeniser: Any) -> tuple[int, ...]:
    """The tokens that are one of these words, with a space before it or without, in small letters or with a capital.

    Args:
        tokeniser: a ``tokenizers.Tokenizer``, or a fast one of ``transformers``.

    Raises:
        TypeError: for what is no tokeniser.
        ValueError: for a word of which no form is one token.
    """
    tokeniser, found = untruncated(tokeniser), []
    for word in words:
        forms = [" " * space + form for space in (0, 1) for form in (word, word.capitalize())]
        ids = [tokeniser.encode(form, add_special_tokens=False).ids for form in forms]
        alone = [one for one, *rest in ids if not rest]
        if not alone:
            raise ValueError(f"no form of {word!r} is a single token.")
        found += alone
    return tuple(sorted(set(found)))
