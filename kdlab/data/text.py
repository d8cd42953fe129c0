"""Text by name: books split by author, WikiText-2, tiny Shakespeare, and a text that Python itself ships."""

import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path

from ..files import note_read, sha256
from .download import DataError, fetch_file

#: What stands between two documents, on a line of its own.
END_OF_TEXT = "<|endoftext|>"

_SHAKESPEARE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/"
_WIKITEXT = "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2/"

#: Files of each corpus by split, where they come from (None: see the corpus' docstring), and the SHA-256 of each.
_CORPORA = {
    "books": (
        None,
        {
            "train": {
                "train-a.txt": "1e039b9b30a871cac39c20b19c1a6ce6bc8cf8763e3f17e83f2fd057f4bb218a",
                "train-b.txt": "221c0b39e239bf6deb9d70c96e09a10df635bb38f93bddf065d3a5b55b6d631b",
            },
            "validation": {"valid.txt": "cb72f97102c0cac16f9eb10b4f4a8c3fa025ca2145ef6f25bf797c2f1ba04826"},
            "test": {"test.txt": "548bd81303437b2965a8ebf90829d647a1f18f28a81221bda5f69edfef5cb076"},
        },
    ),
    "wikitext-2": (
        _WIKITEXT,
        {
            "train": {"train.txt": "9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f"},
            "validation": {"valid.txt": "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8"},
            "test": {"test.txt": "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0"},
        },
    ),
    "tinyshakespeare": (
        _SHAKESPEARE,
        {"all": {"input.txt": "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"}},
    ),
}

SPLITS = ("train", "validation", "test")

#: Characters of each book in ``"book-openings"``.
OPENING = 60_000


@dataclass(frozen=True)
class Corpus:
    """Documents in three splits, read as they are asked for.

    Attributes:
        name: ``"books"``, ``"wikitext-2"``, ``"tinyshakespeare"`` or ``"python"``.
        read: from a split's name to its documents.
        checksum: of the content.
        tokenised_as: name of the corpus from whose training split a tokeniser for this one is learned.
        fallback: whether this stands in for a corpus that could not be had, and ``reason``: why.
    """

    name: str
    read: Callable[[str], Iterator[str]]
    checksum: str
    tokenised_as: str
    fallback: bool = False
    reason: str = ""

    def documents(self, split: str) -> Iterator[str]:
        """The documents of ``"train"``, ``"validation"`` or ``"test"``, one after another.

        Raises:
            ValueError: for another split.
            DataError: if the text is not UTF-8.
        """
        if split not in SPLITS:
            raise ValueError(f"a corpus has the splits {', '.join(SPLITS)}, not {split!r}.")
        return self.read(split)


def load_corpus(name: str, *, download: bool = True) -> Corpus:
    """A corpus by its name.

    ``"books"``: 685 English books that are in the public domain in the United States, no author in two splits (from
    ``mlschmitt/classic-books-markdown``, in the data folder's ``books`` as ``train-a.txt``, ``train-b.txt``, ``valid.txt``,
    ``test.txt``, each book ended by a line ``<|endoftext|>``). ``"book-openings"``: the first 60,000 characters of each of them, a
    seventh of the text by all of its authors. ``"wikitext-2"``: Merity et al. (2017), word level, one document a
    split. ``"tinyshakespeare"``: Karpathy's, cut at 90 and 95 per cent. ``"python"``: the help texts of Python itself, every
    tenth topic for validation and test; always there.

    Raises:
        ValueError: for another name.
        DataError: if the files are missing and cannot be downloaded, or are not what they should be.
    """
    if name == "python":
        return _python_help()
    if name == "book-openings":
        books = load_corpus("books", download=download)
        checksum = hashlib.sha256(f"{books.checksum}, {OPENING} characters".encode()).hexdigest()
        return replace(books, name=name, read=partial(_read_openings, books), checksum=checksum)
    paths = _fetch(name, download)
    known = {file: checksum for files in _CORPORA[name][1].values() for file, checksum in files.items()}
    for path in (path for paths_of_split in paths.values() for path in paths_of_split):
        if (found := sha256(path)) != known[path.name]:
            raise DataError(
                f"{path} is not the file that it should be (SHA-256 {found[:12]}… instead of {known[path.name][:12]}…): "
                "it is truncated or was changed; delete it and fetch it again."
            )
    read = partial(_read_parts if "all" in paths else _read_files, paths)
    return Corpus(name, read, hashlib.sha256("".join(known.values()).encode()).hexdigest(), tokenised_as=name)


def _fetch(name: str, download: bool) -> dict[str, list[Path]]:
    """The files of each split, downloaded where they are missing."""
    if name not in _CORPORA:
        names = ", ".join([*_CORPORA, "book-openings", "python"])
        raise ValueError(f"there is no corpus {name!r}; there are {names}.")
    source, splits = _CORPORA[name]
    return {
        split: [
            fetch_file(source and source + file, known, f"{name}/{file}", download=download)
            for file, known in files.items()
        ]
        for split, files in splits.items()
    }


def corpus_or_fallback(name: str) -> Corpus:
    """The corpus, or Python's own help texts with ``fallback=True`` where it cannot be had.

    Raises:
        DataError: if the corpus is there but damaged: that is a mistake to mend, not to step over.
    """
    if name == "python":
        return _python_help()
    try:
        _fetch("books" if name == "book-openings" else name, download=True)
    except DataError as error:
        return replace(_python_help(), fallback=True, reason=str(error))
    return load_corpus(name)


def read_documents(path: str | PathLike[str]) -> Iterator[str]:
    """The documents of a file, in which a line ``<|endoftext|>`` ends each but the last; one that is blank is none.

    Raises:
        DataError: if the file is not UTF-8.
    """
    lines = []
    with note_read(path).open("rb") as file:
        for line in itertools.chain(file, [END_OF_TEXT.encode()]):
            try:
                lines.append(line.decode())
            except UnicodeDecodeError as error:
                place = file.tell() - len(line) + error.start
                raise DataError(f"{path} is not UTF-8: {error.reason} after {place:,} bytes.") from None
            if lines[-1].rstrip("\r\n") == END_OF_TEXT:
                if (document := "".join(lines[:-1])).strip():
                    yield document
                lines = []


def _read_files(paths, split):
    for path in paths[split]:
        yield from read_documents(path)


def _read_openings(books, split):
    for document in books.documents(split):
        yield document[:OPENING]


def _read_parts(paths, split):
    """One text, cut into splits at whole lines."""
    text = "".join(document for path in paths["all"] for document in read_documents(path))
    cuts = [0, *(text.index("\n", round(part * len(text))) + 1 for part in (0.9, 0.95)), len(text)]
    place = SPLITS.index(split)
    yield text[cuts[place] : cuts[place + 1]]


def _python_help() -> Corpus:
    from pydoc_data.topics import topics

    texts = list(dict.fromkeys(text for _, text in sorted(topics.items())))  # some topics share theirs
    held_out = {"validation": texts[8::20], "test": texts[18::20]}
    held_out["train"] = [text for text in texts if text not in held_out["validation"] + held_out["test"]]
    checksum = hashlib.sha256("".join(texts).encode()).hexdigest()
    return Corpus("python", lambda split: iter(held_out[split]), checksum, tokenised_as="python")
