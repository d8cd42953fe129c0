"""Books by a list: from a mirror, one after another, checked, and not asked for again."""

import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from kdlab.data import DataError, folder, gutenberg, load_books

BOOKS = {"7-0.txt": "Seven.", "42.txt": "Forty\r\n\r\ntwo.", "1342-0.txt": "Pride — and so on."}


def ebook(text):
    return f"Licence\n*** START OF THE PROJECT GUTENBERG EBOOK X ***\n\n{text}\n\n*** END OF THE PROJECT GUTENBERG EBOOK X ***\nmore of it".encode()


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A local one, which notes what it is asked for."""
    monkeypatch.setenv("KDLAB_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("KDLAB_OFFLINE", raising=False)
    for place, file in (("0/7", "7-0.txt"), ("4/42", "42.txt"), ("1/3/4/1342", "1342-0.txt")):
        (tmp_path / "mirror" / place).mkdir(parents=True)
        (tmp_path / "mirror" / place / file).write_bytes(ebook(BOOKS[file]))
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=tmp_path / "mirror"))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/", asked
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def listed(tmp_path):
    def write(**changes):
        splits = dict(zip(BOOKS, ("train", "validation", "test"), strict=True))
        known = {file: hashlib.sha256(ebook(text)).hexdigest() for file, text in BOOKS.items()} | changes.pop(
            "known", {}
        )
        path = tmp_path / "three.txt"
        path.write_text("# three books\n" + "".join(f"{splits[file]} {file} {known[file]}\n" for file in BOOKS))
        return path

    return write


def test_books_come_from_a_mirror_once_and_with_a_pause(mirror, listed, monkeypatch):
    (url, asked), slept = mirror, []
    monkeypatch.setattr(gutenberg, "time", SimpleNamespace(sleep=slept.append, monotonic=lambda: 7.0))
    corpus = load_books(listed(), mirror=url)
    assert [list(corpus.documents(split)) for split in ("train", "validation", "test")] == [
        ["Seven.\n"],
        ["Forty\n\ntwo.\n"],
        ["Pride — and so on.\n"],
    ]
    assert asked == ["/0/7/7-0.txt", "/4/42/42.txt", "/1/3/4/1342/1342-0.txt"]
    assert slept == [2.0, 2.0]
    again = load_books(listed(), mirror=url, download=False)
    assert again.checksum == corpus.checksum and corpus.name == "three" and len(asked) == 3


def test_another_text_is_refused_and_the_list_goes_on_where_it_stopped(mirror, listed):
    url, asked = mirror
    with pytest.raises(DataError, match=r"1342-0.txt could not be downloaded .* corrected it since.*another mirror"):
        load_books(listed(known={"1342-0.txt": 64 * "0"}), mirror=url, pause=0)
    assert sorted(path.name for path in (folder() / "gutenberg").iterdir()) == ["42.txt", "7-0.txt"]
    load_books(listed(), mirror=url, pause=0)
    assert asked.count("/0/7/7-0.txt") == 1 and len(asked) == 4
    (folder() / "gutenberg" / "7-0.txt").write_text("changed")
    with pytest.raises(DataError, match="is not the file of the list .* delete it, and it is downloaded again"):
        load_books(listed(), mirror=url, pause=0)


def test_what_is_no_list_no_mirror_or_no_book_gets_a_sentence(mirror, listed, tmp_path):
    url, asked = mirror
    with pytest.raises(
        ValueError, match=r"www.gutenberg.org asks programs to download from a mirror, such as https://"
    ):
        load_books(listed(), mirror="https://www.gutenberg.org/files")
    with pytest.raises(DataError, match=r"downloading is turned off; .*KDLAB_DATA"):
        load_books(listed(), mirror=url, download=False)
    for content, sentence in (
        ("train 7-0.txt abc", 'a line is "train 1342-0.txt SHA-256"'),
        (listed().read_text() + f"test 7.txt {64 * '0'}", "names a book twice"),
        (f"train 7-0.txt {64 * '0'}", "has no book for validation and test"),
    ):
        (tmp_path / "wrong.txt").write_text(content)
        with pytest.raises(ValueError, match=sentence):
            load_books(tmp_path / "wrong.txt", mirror=url)
    assert not asked
    for content, sentence in (
        (b"no book", "has no lines .*START OF"),
        (ebook("x").replace(b"x", b"\xe9"), "is not UTF-8"),
    ):
        (folder() / "gutenberg").mkdir(parents=True, exist_ok=True)
        (folder() / "gutenberg" / "7-0.txt").write_bytes(content)
        corpus = load_books(listed(known={"7-0.txt": hashlib.sha256(content).hexdigest()}), mirror=url, pause=0)
        with pytest.raises(DataError, match=sentence):
            list(corpus.documents("train"))
