"""Sentences of books, in passages, for models that read a sentence and give one vector."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kdlab.shapes import Integer, Shaped, with_shapes

from ..files import atomic_write, note_read
from .download import DataError, folder
from .examples import Examples, Inputs, each
from .text import Corpus

#: Sentences of a passage, which stand one after another in their book.
PASSAGE = 4

#: Words of a sentence: neither a heading nor half a page.
WORDS = range(6, 17)

#: Characters of each book that are looked at, behind its first tenth, which has title and contents.
WINDOW = 100_000

_TITLES = "".join(rf"(?<!\b{title}\.)" for title in ("Mr", "Mrs", "Ms", "Dr", "St", "Capt", "Col", "Mme", "Prof"))
_BETWEEN = re.compile(rf"(?<=[.!?”\"’]){_TITLES}\s+(?=[A-Z“\"‘])")


def sentences_of(text: str) -> list[str]:
    """The sentences of a text that have as many words as ``WORDS`` says, in their order.

    >>> sentences_of('''CHAPTER I.
    ...
    ... Mr. Bennet was among the earliest of those. Indeed! He had always intended
    ... to visit him, though to the last''')
    ['Mr. Bennet was among the earliest of those.']
    """
    found = []
    for paragraph in re.split(r"\n\s*\n", text):
        for sentence in _BETWEEN.split(" ".join(paragraph.split())):
            ended = re.search(r"[a-z][.!?][”\"’]?$", sentence)
            if ended and sentence[0] in '“"‘' + sentence[0].upper() and len(sentence.split()) in WORDS:
                found.append(sentence)
    return found


def passages_of(document: str, number: int) -> list[str]:
    """The sentences of ``number`` passages at even distances, one after another; of fewer where the book is too short."""
    usable = sentences_of(document[len(document) // 10 :][:WINDOW])
    there = len(usable) // PASSAGE
    taken = min(number, there)
    starts = [i * there // taken * PASSAGE for i in range(taken)]
    return [sentence for start in starts for sentence in usable[start : start + PASSAGE]]


@dataclass(frozen=True)
class Sentences(Examples):
    """Sentences as :class:`~kdlab.data.examples.Examples` (``input_ids``, ``attention_mask``); the label is the number of the book.

    Those of a passage stand one after another, and a book's passages do. A batch is as wide as its longest sentence.
    """

    __repr__ = with_shapes

    def to(self, device: torch.device | str) -> "Sentences":
        return replace(self, inputs=each(lambda x: x.to(device), self.inputs), labels=self.labels.to(device))

    def batches(
        self, batch_size: int, **options: Any
    ) -> Iterator[tuple[Inputs, Shaped[Tensor, "n ..."], Integer[Tensor, " n"]]]:
        """Batches of (inputs, labels, indices), as :meth:`kdlab.data.images.Split.batches`, without columns that are padding alone."""
        for inputs, labels, index in super().batches(batch_size, **options):
            read = inputs["attention_mask"].any(0)  # pyrefly: ignore[bad-index] a dictionary
            longest = int(read.nonzero().max()) + 1
            yield each(lambda x, longest=longest: x[:, :longest], inputs), labels, index


@dataclass(frozen=True)
class SentenceData:
    """Sentences in three splits; no author is in two of them, where the corpus says who wrote what.

    Attributes:
        name: corpus and tokens of a sentence, such as ``"books-sentences-24"``.
        num_classes: how many numbers the embedding of a sentence has.
        texts: the sentences of the test split, to be read.
        checksum: of the tokens of all splits.
        fallback: whether this stands in for a corpus that could not be had, and ``reason``: why.
    """

    name: str
    train: Sentences
    validation: Sentences
    test: Sentences
    num_classes: int
    texts: tuple[str, ...] = ()
    checksum: str = ""
    fallback: bool = False
    reason: str = ""

    # For people, as those of ImageData.

    @property
    def unit(self) -> str:
        return "sentences"

    @property
    def wanted(self) -> str:
        return f"text {self.name}"

    @property
    def title(self) -> str:
        return "Python's own help texts" if self.fallback else self.name


#: A sentence and the number of its book.
Labelled = tuple[str, int]


def stored_passages(corpus: Corpus, numbers: Mapping[str, int]) -> dict[str, list[Labelled]]:
    """So many passages of each document, by split; chosen once, and kept in the data folder.

    Raises:
        DataError: for a split without a passage, or if what is kept was changed.
    """
    how = hashlib.sha256(
        repr((corpus.checksum, numbers, PASSAGE, WORDS, WINDOW, _BETWEEN.pattern)).encode()
    ).hexdigest()
    path = folder() / "sentences" / f"{corpus.name}-{how[:12]}.json"
    if not path.exists():
        chosen = {}
        for split, number in numbers.items():
            books = enumerate(corpus.documents(split))
            chosen[split] = [(text, book) for book, document in books for text in passages_of(document, number)]
            if not chosen[split]:
                raise DataError(
                    f"the {split} split of {corpus.name} has no passage: {PASSAGE} sentences of {WORDS[0]} to {WORDS[-1]} words."
                )
        with atomic_write(path) as part:
            part.write_text(json.dumps({"passages": chosen, "sha256": _checksum(chosen)}), encoding="utf-8")
    try:
        found = json.loads(note_read(path).read_text(encoding="utf-8"))
    except ValueError:
        found = {}
    if found.get("sha256") != _checksum(found.get("passages")):
        raise DataError(f"{path} is truncated or was changed: delete it, and the sentences are chosen again.")
    return {split: [(text, book) for text, book in rows] for split, rows in found["passages"].items()}


def _checksum(passages) -> str:
    return hashlib.sha256(json.dumps(passages).encode()).hexdigest()


def tokenised(passages: Sequence[Labelled], tokeniser: Any, tokens: int) -> Sentences:
    """Sentences as examples.

    Args:
        passages: sentences and the numbers of their books.
        tokeniser: a ``tokenizers.Tokenizer`` that ends and pads as its model wants it.
        tokens: of a sentence, at most; what is beyond is cut off.
    """
    tokeniser.enable_truncation(tokens)
    tokeniser.enable_padding(length=tokens)
    read = tokeniser.encode_batch([text for text, _ in passages])
    inputs = {
        "input_ids": torch.tensor([x.ids for x in read]),
        "attention_mask": torch.tensor([x.attention_mask for x in read]),
    }
    return Sentences(inputs, torch.tensor([book for _, book in passages]))
