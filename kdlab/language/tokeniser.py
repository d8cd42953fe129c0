"""From text to tokens: byte-level BPE, learned from the training documents alone, and tokens mapped from disk."""

import hashlib
import itertools
import json
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdlab.shapes import Integer

from ..data import DataError, TextData, Tokens, corpus_or_fallback, folder, load_corpus
from ..data.text import END_OF_TEXT, SPLITS, Corpus
from ..data.tokens import mapped, numbered, width
from ..files import atomic_folder, atomic_write, note_read, sha256
from ..training.modules import named

#: Tokenisers that come with the package, as ``corpus-vocabulary.json``; others are trained and kept in the data folder.
STORED = Path(__file__).parent / "tokenisers"

#: Characters of each training document from which a tokeniser is learned: as much of a long book as of a short one.
SAMPLE = 100_000

#: How many blocks of a split are measured, at even distances: of the validation split after every epoch, of the test split once.
MEASURED = {"validation": 64, "test": 256}


def require_tokenizers() -> Any:
    """The tokenizers package, or a sentence about how to get it."""
    try:
        import tokenizers
    except ImportError:
        raise ImportError("language models need tokenizers: pip install 'kdlab[language]'.") from None
    return tokenizers


def backend(tokeniser: Any) -> Any:
    """The ``tokenizers.Tokenizer`` that a tokeniser is, or that one of ``transformers`` stands on.

    Raises:
        TypeError: for what is none, or has none.
    """
    found = getattr(tokeniser, "backend_tokenizer", tokeniser)
    if hasattr(found, "to_str") and hasattr(found, "get_vocab"):
        return found
    name = isinstance(tokeniser, (str, PathLike))
    advice = (
        f": load it first, such as AutoTokenizer.from_pretrained({str(tokeniser)!r}) of transformers." if name else "."
    )
    raise TypeError(
        f"a tokeniser is a tokenizers.Tokenizer, or a fast one of transformers, not {named(tokeniser)}{advice}"
    )


def untruncated(tokeniser: Any) -> Any:
    """A copy of a tokeniser's :func:`backend` that gives all of a text's tokens, and no others: one call may have set it to cut and pad for good."""
    original = backend(tokeniser)
    copied = require_tokenizers().Tokenizer.from_str(original.to_str())
    copied.encode_special_tokens = original.encode_special_tokens  # the one setting that is not written
    copied.no_padding()
    copied.no_truncation()
    return copied


def train_tokeniser(documents: Iterable[str], vocabulary: int) -> Any:
    """Byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) of ``vocabulary`` tokens.

    All 256 bytes are tokens, so that any text can be written; ``<|endoftext|>`` is token 0.

    Returns:
        a ``tokenizers.Tokenizer``.

    Raises:
        TypeError: for one string in place of several texts, or documents that are none.
        ValueError: for a vocabulary without room for the bytes; for no text, or too little for so many tokens.
    """
    if vocabulary < 257:
        raise ValueError(f"a vocabulary has at least 257 tokens, not {vocabulary}.")
    documents = _texts(documents)
    tokenizers = require_tokenizers()
    tokeniser = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokeniser.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokeniser.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokeniser.train_from_iterator((document[:SAMPLE] for document in documents), trainer)
    if (learned := tokeniser.get_vocab_size()) < vocabulary:
        raise ValueError(f"the text is too short for {vocabulary} tokens: it has {learned}, bytes included.")
    return _literal(tokeniser)


def _texts(documents):
    """The documents, each of which must be a text."""
    if isinstance(documents, str):
        raise TypeError("the documents are several texts, such as [text], not one string.")
    return map(_text, documents)


def _text(document):
    if not isinstance(document, str):
        raise TypeError(
            f"a document is a text, not {type(document).__name__}: of a data set one column, such as data['text']."
        )
    return document


def _literal(tokeniser):
    """A tokeniser to which ``<|endoftext|>`` within a text is text as any other."""
    tokeniser.encode_special_tokens = True
    return tokeniser


def token_bytes(tokeniser: Any) -> Integer[torch.Tensor, " V"]:
    """How many bytes of text each token of a byte-level tokeniser stands for, int64, shape ``(V,)``; none for special tokens.

    Args:
        tokeniser: a ``tokenizers.Tokenizer``, or a fast one of ``transformers``.

    Raises:
        ValueError: for a tokeniser that is not byte-level, whose tokens do not say how many bytes they are.
    """
    tokeniser = backend(tokeniser)
    parts = json.loads(tokeniser.to_str())
    before = parts["pre_tokenizer"] or {}
    if "ByteLevel" not in [part["type"] for part in (before, *before.get("pretokenizers", ())) if part]:
        raise ValueError(
            "the tokeniser is not byte-level: how many bytes its tokens stand for is not known. If they stand for the text as it is, as those of "
            "Llama 2 and Gemma do, token_texts(tokeniser) says their bytes, and Tokens(numbered(ids, len(sizes)), context, sizes) takes what they "
            "count to (kdlab.data, kdlab.data.tokens)."
        )
    added = {token["id"]: token for token in parts["added_tokens"]}
    vocabulary = tokeniser.get_vocab()
    sizes = torch.zeros(max(vocabulary.values()) + 1, dtype=torch.long)
    for token, number in vocabulary.items():
        if number not in added:
            sizes[number] = len(token)  # a character of its alphabet is a byte
        elif not added[number]["special"]:
            sizes[number] = len(token.encode())
    return sizes


def tokenise_documents(documents: Iterable[str], tokeniser: Any, context: int) -> Tokens:
    """Texts of your own as what models are trained on and measured on: each is followed by the end of a text, if there is a token for it.

    That is the ``eos_token`` of a tokeniser of ``transformers``, else ``<|endoftext|>``.

    Args:
        documents: a text each.
        tokeniser: a ``tokenizers.Tokenizer``, or a fast one of ``transformers``; byte-level.
        context: tokens of a block.

    Raises:
        TypeError: for one string in place of several texts, or documents that are none.
        ValueError: for no text, or a tokeniser that does not fit.

    >>> text = "To be, or not to be, that is the question. " * 40
    >>> tokens = tokenise_documents([text], train_tokeniser([text], 270), context=16)
    >>> next(tokens.batches(2))[0].shape
    torch.Size([2, 16])
    """
    documents = _texts(documents)
    own_end, tokeniser = getattr(tokeniser, "eos_token_id", None), untruncated(tokeniser)
    sizes = token_bytes(tokeniser)
    ends = [number for number in (own_end, tokeniser.token_to_id(END_OF_TEXT)) if number is not None][:1]
    ids = [number for text in documents for number in (*tokeniser.encode(text, add_special_tokens=False).ids, *ends)]
    return Tokens(numbered(ids, len(sizes)), context, sizes)


def load_text_data(name: str) -> TextData:
    """A tokenised corpus by its name, ``"corpus-vocabulary-context"``, such as ``"books-4096-256"``.

    Tokenised once, and kept in the data folder. Of validation and test, ``MEASURED`` blocks at even distances are what is measured.

    Raises:
        ValueError: for a name of another form, or a corpus that there is not.
        DataError: for damaged files.
    """
    corpus_name, vocabulary, context = parse(name)
    corpus = corpus_or_fallback(corpus_name)
    tokeniser = stored_tokeniser(corpus, min(vocabulary, 2048) if corpus.fallback else vocabulary)
    where, checksum = tokenise(corpus, tokeniser)
    sizes = token_bytes(tokeniser)
    splits = {split: Tokens(mapped(where / f"{split}.bin", len(sizes)), context, sizes) for split in SPLITS}
    return TextData(
        name=name,
        train=splits["train"],
        validation=splits["validation"].spread(MEASURED["validation"]),
        test=splits["test"].spread(MEASURED["test"]),
        num_classes=tokeniser.get_vocab_size(),
        tokeniser=tokeniser,
        checksum=checksum,
        fallback=corpus.fallback,
        reason=corpus.reason,
    )


def parse(name: str) -> tuple[str, int, int]:
    """Corpus, vocabulary and context of a name.

    >>> parse("wikitext-2-4096-256")
    ('wikitext-2', 4096, 256)
    """
    parts = name.rsplit("-", 2)
    if len(parts) < 3 or not all(part.isdecimal() and int(part) for part in parts[1:]):
        raise ValueError(f'text is named "corpus-vocabulary-context", such as "books-4096-256", not {name!r}.')
    return parts[0], int(parts[1]), int(parts[2])


def stored_tokeniser(corpus: Corpus, vocabulary: int) -> Any:
    """The tokeniser of a corpus: the package's, or that of the data folder, where it is trained if there is none."""
    path = STORED / f"{corpus.tokenised_as}-{vocabulary}.json"
    if path.exists():
        return read_tokeniser(path)
    source = corpus if corpus.tokenised_as == corpus.name else load_corpus(corpus.tokenised_as)
    path = folder() / "tokenisers" / f"{source.name}-{vocabulary}-{source.checksum[:12]}.json"
    if not path.exists():
        tokeniser = train_tokeniser(source.documents("train"), vocabulary)
        with atomic_write(path) as part:
            tokeniser.save(str(part))
    return read_tokeniser(path)


def read_tokeniser(path: str | PathLike[str]) -> Any:
    """A ``tokenizers.Tokenizer`` from its JSON file.

    Raises:
        DataError: if it is damaged.
    """
    try:
        return _literal(require_tokenizers().Tokenizer.from_file(str(note_read(path))))
    except ImportError:
        raise
    except Exception as error:
        raise DataError(f"{path} is not a tokeniser: {error}.") from error


def tokeniser_checksum(tokeniser: Any) -> str:
    """SHA-256 of what a tokeniser does, whatever the file's layout."""
    return hashlib.sha256(json.dumps(json.loads(tokeniser.to_str()), sort_keys=True).encode()).hexdigest()


def tokenise(corpus: Corpus, tokeniser: Any) -> tuple[Path, str]:
    """The folder with the tokens of each split as ``train.bin`` and so on, unsigned numbers of 16 bits (32 for more than 65,536
    tokens), and their checksum.

    Each document is followed by ``<|endoftext|>``. Written once, whole or not at all.

    Raises:
        DataError: if a file is not what was written, or a split has no text.
    """
    tokeniser = backend(tokeniser)
    identity = hashlib.sha256((corpus.checksum + tokeniser_checksum(tokeniser)).encode()).hexdigest()
    target = folder() / "tokens" / f"{corpus.name}-{tokeniser.get_vocab_size()}-{identity[:12]}"
    if not target.is_dir():
        with atomic_folder(target) as part:
            known = {split: _write_tokens(corpus, split, tokeniser, part / f"{split}.bin") for split in SPLITS}
            (part / "checksums.json").write_text(json.dumps(known))
    try:
        known = json.loads((target / "checksums.json").read_text())
        damaged = [split for split in SPLITS if sha256(note_read(target / f"{split}.bin")) != known[split]]
    except (OSError, ValueError, KeyError) as error:
        damaged = [error]
    if damaged:
        raise DataError(
            f"{target} is truncated or was changed ({damaged[0]}): delete it, and the text is tokenised again."
        )
    return target, hashlib.sha256((identity + "".join(known[split] for split in SPLITS)).encode()).hexdigest()


def _write_tokens(corpus: Corpus, split: str, tokeniser, path: Path) -> str:
    """Write the tokens of a split; their SHA-256."""
    tokeniser = untruncated(tokeniser)
    end, number = tokeniser.token_to_id(END_OF_TEXT), width(max(tokeniser.get_vocab().values()) + 1)
    with path.open("wb") as file:
        documents = corpus.documents(split)
        while batch := list(itertools.islice(documents, 16)):
            for encoding in tokeniser.encode_batch(batch, add_special_tokens=False):
                file.write(np.array([*encoding.ids, end], dtype=number).tobytes())
        if not file.tell():
            raise DataError(f"the {split} split of {corpus.name} has no text.")
    return sha256(path)
