"""Books of Project Gutenberg, by a list with their checksums, from one of its mirrors."""

import hashlib
import re
import time
from functools import partial
from os import PathLike
from pathlib import Path
from urllib.parse import urlsplit

from ..files import note_read, sha256
from .download import DataError, fetch_file, folder
from .text import SPLITS, Corpus

#: One of the mirrors that gutenberg.org/MIRRORS.ALL lists.
MIRROR = "https://gutenberg.pglaf.org"

_LINE = re.compile(r"(train|validation|test)\s+((\d+)(?:-\d+)?\.txt)\s+([0-9a-f]{64})")
_BEGIN, _END = (
    re.compile(rb"^\*\*\* ?%s OF TH(?:E|IS) PROJECT GUTENBERG EBOOK.*$" % word, re.MULTILINE)
    for word in (b"START", b"END")
)


def load_books(path: str | PathLike[str], *, mirror: str = MIRROR, pause: float = 2.0, download: bool = True) -> Corpus:
    """The books that a list names, in the splits that it gives them.

    A line of the list is a split, a file of Project Gutenberg, and the SHA-256 of what is in it (``sha256sum`` says it)::

        train       1342-0.txt  0123…

    Lines that begin with ``#`` are remarks. Files are kept in the data folder's ``gutenberg``, whole and checked or not at all; what is
    there is not asked for again, so that a list goes on where it stopped. A document is a book without Project Gutenberg's own words before
    and after it.

    Args:
        path: of the list.
        mirror: where it is downloaded from. Project Gutenberg itself asks programs to go to its mirrors.
        pause: seconds between two requests; two are what it asks for.
        download: False asks nobody.

    Raises:
        ValueError: for a list or a mirror that is none.
        DataError: if a book is missing and cannot be downloaded, or is not the one of the list.
    """
    entries = _entries(Path(path))
    if re.search(r"(^|\.)gutenberg\.org$", host := urlsplit(mirror).hostname or "") and not host.startswith("aleph."):
        raise ValueError(f"{host} asks programs to download from a mirror, such as {MIRROR}.")
    books, asked = {split: [] for split in SPLITS}, None
    for split, file, number, known in entries:
        name, url = f"gutenberg/{file}", "/".join([mirror.rstrip("/"), *(number[:-1] or "0"), number, file])
        if not (folder() / name).is_file() and download:
            if asked is not None:
                time.sleep(max(0.0, asked + pause - time.monotonic()))
            asked = time.monotonic()
        try:
            book = fetch_file(url, known, name, download=download)
        except DataError as error:
            advice = "; Project Gutenberg has corrected it since, or the list is wrong: look for another mirror, or list its new checksum, which is another corpus"
            raise DataError(f"{error}{advice if 'hash' in str(error) else ''}.") from error
        if (found := sha256(book)) != known:
            raise DataError(
                f"{book} is not the file of the list (SHA-256 {found[:12]}… instead of {known[:12]}…): delete it, and it is downloaded again."
            )
        books[split].append(book)
    checksum = hashlib.sha256(repr(entries).encode()).hexdigest()
    name = Path(path).stem
    return Corpus(name, partial(_documents, books), checksum, tokenised_as=name)


def _entries(path: Path) -> list[tuple[str, ...]]:
    """Split, file, number and checksum of each book of a list."""
    lines = [line.strip() for line in note_read(path).read_text(encoding="utf-8").splitlines()]
    found = [(line, _LINE.fullmatch(line)) for line in lines if line and not line.startswith("#")]
    if wrong := [line for line, match in found if match is None]:
        raise ValueError(
            f'{path}: a line is "train 1342-0.txt SHA-256", with train, validation or test, not {wrong[0]!r}.'
        )
    entries = [match.groups() for _, match in found if match is not None]
    if len({number for _, _, number, _ in entries}) < len(entries):
        raise ValueError(f"{path} names a book twice.")
    if lacking := [split for split in SPLITS if split not in {entry[0] for entry in entries}]:
        raise ValueError(f"{path} has no book for {' and '.join(lacking)}.")
    return entries


def _documents(books: dict[str, list[Path]], split: str):
    for path in books[split]:
        content = note_read(path).read_bytes().replace(b"\r\n", b"\n")
        begin = _BEGIN.search(content)
        end = begin and _END.search(content, begin.end())
        if not end:
            raise DataError(
                f"{path} has no lines “*** START OF …” and “*** END OF …”, between which a book of Project Gutenberg stands."
            )
        try:
            yield content[begin.end() : end.start()].decode().strip() + "\n"
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path} is not UTF-8 ({error.reason}): list the file of the book that is, NUMBER-0.txt."
            ) from None
