"""Texts, tokenisers and tokens: whole, checked, and each byte counted once."""

import hashlib
import json
from dataclasses import replace
from functools import lru_cache
from itertools import chain
from pathlib import Path

import pooch
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdlab.data import (
    Corpus,
    DataError,
    Tokens,
    corpus_or_fallback,
    folder,
    load_corpus,
    read_documents,
)
from kdlab.data import text as texts
from kdlab.data.download import fetch_file
from kdlab.data.text import END_OF_TEXT, SPLITS
from kdlab.data.tokens import numbered
from kdlab.language import (
    load_text_data,
    parse,
    read_tokeniser,
    tokenise,
    tokenise_documents,
    tokens_of,
    train_tokeniser,
)
from kdlab.language.tokeniser import STORED, stored_tokeniser, token_bytes, tokeniser_checksum


def checksum(content: bytes):
    return hashlib.sha256(content).hexdigest()


# Documents


def documents(content: bytes, tmp_path):
    (tmp_path / "text").write_bytes(content)
    return list(read_documents(tmp_path / "text"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"one\n<|endoftext|>\ntwo\nthree\n<|endoftext|>\n", ["one\n", "two\nthree\n"]),
        (b"one\n<|endoftext|>\ntwo", ["one\n", "two"]),  # nothing ends the last
        (b"one\r\n<|endoftext|>\r\ntwo\r\n", ["one\r\n", "two\r\n"]),
        (b"a line with <|endoftext|> in it\n", ["a line with <|endoftext|> in it\n"]),
        (b"\n<|endoftext|>\n<|endoftext|>\n \n", []),  # nothing but white space
        (b"\n\nblank lines stay\n\n", ["\n\nblank lines stay\n\n"]),
        (b"", []),
    ],
)
def test_a_line_of_its_own_ends_a_document(content, expected, tmp_path):
    assert documents(content, tmp_path) == expected


@pytest.mark.parametrize("before", [0, 5, 70_000])
def test_what_is_not_utf8_is_named_with_its_place(before, tmp_path):
    content = b"x\n" * (before // 2) + b"y" * (before % 2) + b"\xff\n"
    with pytest.raises(DataError, match=rf"text is not UTF-8: invalid start byte after {before:,} bytes\."):
        documents(content, tmp_path)


# Corpora by name


@pytest.fixture
def small(monkeypatch):
    """Small files in place of each corpus', which become what is expected: name → split → content."""

    def put(name, splits, write=True):
        known = {}
        for split, files in splits.items():
            known[split] = {file: checksum(content) for file, content in files.items()}
            for file, content in files.items():
                path = folder() / name / file
                path.parent.mkdir(parents=True, exist_ok=True)
                if write:
                    path.write_bytes(content)
        monkeypatch.setitem(texts._CORPORA, name, (texts._CORPORA[name][0], known))

    return put


BOOKS = {
    "train": {"train-a.txt": b"first book\n<|endoftext|>\n", "train-b.txt": b"second book\n<|endoftext|>\n"},
    "validation": {"valid.txt": b"third book\n<|endoftext|>\n"},
    "test": {"test.txt": b"fourth book\n<|endoftext|>\nfifth\n<|endoftext|>\n"},
}


def test_books_are_read_from_all_files_of_a_split(small):
    small("books", BOOKS)
    corpus = load_corpus("books")
    found = {split: list(corpus.documents(split)) for split in SPLITS}
    assert found["train"] == ["first book\n", "second book\n"] and len(found["test"]) == 2
    assert not corpus.fallback and corpus.tokenised_as == "books"
    with pytest.raises(ValueError, match="a corpus has the splits train, validation, test, not 'valid'"):
        corpus.documents("valid")


def test_openings_are_the_beginnings_of_the_same_books(small, monkeypatch):
    monkeypatch.setattr(texts, "OPENING", 5)
    small("books", BOOKS)
    books, openings = load_corpus("books"), corpus_or_fallback("book-openings")
    for split in SPLITS:
        assert list(openings.documents(split)) == [text[:5] for text in books.documents(split)]
    assert openings.tokenised_as == "books" and openings.checksum != books.checksum


@given(st.lists(st.text("ab ", max_size=9), min_size=60, max_size=120))
def test_one_file_is_cut_at_whole_lines_into_all_of_it(lines):
    text = "a" + "\n".join(lines) + "\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts, "read_documents", lambda path: iter([text]))
        parts = [part for split in SPLITS for part in texts._read_parts({"all": ["text"]}, split)]
    assert "".join(parts) == text
    assert all(part.endswith("\n") for part in parts if part)
    for part, place in ((parts[0], 0.9), (parts[0] + parts[1], 0.95)):
        assert 0 < len(part) - place * len(text) <= 11


def test_the_splits_of_one_file_are_the_file(small):
    text = "".join(f"line {n}\n" for n in range(200))
    small("tinyshakespeare", {"all": {"input.txt": text.encode()}})
    corpus = load_corpus("tinyshakespeare")
    assert "".join(part for split in SPLITS for part in corpus.documents(split)) == text


@pytest.mark.parametrize("change", [lambda x: x[:-1], lambda x: b"", lambda x: x + b"\n", lambda x: x.upper()])
@pytest.mark.parametrize("name", ["books", "book-openings"])
def test_a_text_that_is_truncated_or_changed_is_refused_and_not_stepped_over(small, change, name):
    small("books", BOOKS)
    path = folder() / "books" / "valid.txt"
    path.write_bytes(change(path.read_bytes()))
    for load in (load_corpus, corpus_or_fallback):
        with pytest.raises(DataError, match=r"valid.txt is not the file that it should be .*truncated or was changed"):
            load(name)


@pytest.mark.parametrize("name", ["books", "book-openings", "wikitext-2", "tinyshakespeare"])
def test_a_text_that_cannot_be_had_is_stood_in_for_and_said(name):
    with pytest.raises(DataError, match="does not exist"):
        load_corpus(name)
    corpus = corpus_or_fallback(name)
    assert corpus.fallback and corpus.name == corpus.tokenised_as == "python"
    assert "does not exist" in corpus.reason and name.removesuffix("-openings").rstrip("s") in corpus.reason
    assert not folder().exists() or not any(folder().rglob("*.txt"))


def test_an_unknown_corpus_is_a_mistake_and_not_stood_in_for():
    for load in (load_corpus, corpus_or_fallback, lambda name: load_text_data(f"{name}-512-32")):
        with pytest.raises(ValueError, match="there is no corpus 'novels'; there are books, wikitext-2, .*python"):
            load("novels")


def test_pythons_help_is_always_there_in_splits_that_share_nothing():
    corpus = load_corpus("python")
    parts = {split: list(corpus.documents(split)) for split in SPLITS}
    every = [*chain(*parts.values())]
    assert len(set(every)) == len(every) and all(parts.values()) and all(text.strip() for text in every)
    assert not corpus.fallback and not corpus.reason and corpus.checksum == load_corpus("python").checksum


# Downloading


@pytest.fixture
def online(monkeypatch):
    """Downloads are on, and what pooch does is the test's to say."""
    monkeypatch.delenv("KDLAB_OFFLINE")

    def retrieve(action):
        monkeypatch.setattr(
            pooch,
            "retrieve",
            lambda url, known_hash, *, fname, path, **_: action(Path(path) / fname, url, known_hash),
        )

    return retrieve


def no_connection(file, *_):
    raise ConnectionError("no route to host\nmore lines")


def disk_full(file, *_):
    file.write_bytes(b"part")
    raise OSError(28, "No space left on device")


def interrupted(file, *_):
    file.write_bytes(b"part")
    raise KeyboardInterrupt


@pytest.mark.parametrize("failure", [no_connection, disk_full, interrupted])
def test_a_file_that_is_not_fetched_whole_is_not_there(online, failure):
    online(failure)
    with pytest.raises((DataError, KeyboardInterrupt)) as raised:
        fetch_file("http://x/a", "0" * 64, "text/a.txt")
    if failure is not interrupted:
        assert "text/a.txt could not be downloaded from http://x/a: " in str(raised.value)
        assert "more lines" not in str(raised.value)
    assert not [path for path in folder().rglob("*") if path.is_file()]


def test_a_file_is_fetched_once_and_checked_against_its_hash(online):
    calls = []

    def whole(file, url, known_hash):
        calls.append((url, known_hash))
        file.write_bytes(b"text")

    online(whole)
    for _ in range(2):
        assert fetch_file("http://x/a", "abc", "text/a.txt").read_bytes() == b"text"
    assert calls == [("http://x/a", "sha256:abc")]
    assert [path.name for path in (folder() / "text").iterdir()] == ["a.txt"]


def test_pooch_itself_refuses_another_file(monkeypatch, tmp_path):
    monkeypatch.delenv("KDLAB_OFFLINE")

    def download(self, url, output_file, pooch):
        Path(output_file).write_bytes(b"another")

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", download)
    with pytest.raises(DataError, match="does not match the known hash"):
        fetch_file("http://x/a", checksum(b"text"), "text/a.txt")
    assert not [path for path in folder().rglob("*") if path.is_file()]
    assert fetch_file("http://x/a", checksum(b"another"), "text/a.txt").read_bytes() == b"another"


def test_each_corpus_is_fetched_from_its_publisher(online, small):
    small("wikitext-2", {split: {f"{split}.txt": split.encode()} for split in SPLITS}, write=False)
    asked = []

    def whole(file, url, known_hash):
        asked.append(url)
        file.write_bytes(url.rsplit("/", 1)[1].removesuffix(".txt").encode())

    online(whole)
    assert list(corpus_or_fallback("wikitext-2").documents("train")) == ["train"]
    assert len(asked) == 3 and all(url.startswith(texts._WIKITEXT) for url in asked)
    with pytest.raises(DataError, match="set KDLAB_DATA to the folder that holds books/train-a.txt"):
        load_corpus("books")


def test_fetching_can_be_turned_off(online, monkeypatch):
    online(lambda *_: pytest.fail("it asked the network"))
    with pytest.raises(DataError, match="downloading is turned off"):
        load_corpus("wikitext-2", download=False)
    monkeypatch.setenv("KDLAB_OFFLINE", "1")
    with pytest.raises(DataError, match="downloading is turned off"):
        load_corpus("wikitext-2")


# Tokenisers


@lru_cache
def tokeniser(vocabulary=300):
    return train_tokeniser(load_corpus("python").documents("train"), vocabulary)


@given(st.text() | st.sampled_from(["", END_OF_TEXT, f"a {END_OF_TEXT}\n", "\r\n\t  é漢😀\x00"]))
def test_any_text_comes_back_and_every_byte_is_counted_once(text):
    ids = tokeniser().encode(text).ids
    assert tokeniser().decode(ids) == text
    assert token_bytes(tokeniser())[ids].sum() == len(text.encode())
    assert 0 not in ids  # no text ends a document


def test_the_end_of_a_text_is_the_first_token_and_no_text():
    assert tokeniser().token_to_id(END_OF_TEXT) == 0 and token_bytes(tokeniser())[0] == 0
    assert tokeniser().decode([0, *tokeniser().encode("word").ids, 0]) == "word"
    assert (token_bytes(tokeniser())[1:257] == 1).all() and (token_bytes(tokeniser())[257:] > 1).all()


def test_tokens_are_those_of_the_training_documents():
    documents = ["zymurgy zymurgy " * 50, "plain words and others " * 50]
    seen, unseen = train_tokeniser(documents, 280), train_tokeniser(documents[1:], 275)
    assert len(seen.encode(" zymurgy").ids) == 1
    assert len(unseen.encode(" zymurgy").ids) > 1


def test_a_word_of_the_test_text_alone_has_no_token():
    splits = {"train": ["plain words and others " * 50], "validation": ["text"], "test": ["zymurgy " * 99]}
    stored = stored_tokeniser(corpus_of(splits), 275)
    assert len(stored.encode(" zymurgy").ids) > 1 and len(stored.encode(" others").ids) == 1


def test_a_long_document_counts_as_much_as_its_beginning(monkeypatch):
    monkeypatch.setattr("kdlab.language.tokeniser.SAMPLE", 100)
    found = train_tokeniser(["ab " * 40 + "zymurgy " * 1000], 258)
    assert token_bytes(found).max() == 2 and found.encode("zymurgy").ids != found.encode("zymurg").ids
    with pytest.raises(ValueError, match="the text is too short for 300 tokens: it has 2.., bytes included"):
        train_tokeniser(["ab " * 40 + "zymurgy " * 1000], 300)


def test_the_same_text_makes_the_same_tokeniser():
    again = train_tokeniser(load_corpus("python").documents("train"), 300)
    assert tokeniser_checksum(again) == tokeniser_checksum(tokeniser())
    assert tokeniser_checksum(tokeniser(301)) != tokeniser_checksum(tokeniser())


def test_a_tokeniser_comes_back_from_disk(tmp_path):
    tokeniser().save(str(tmp_path / "pretty.json"), pretty=True)
    back = read_tokeniser(tmp_path / "pretty.json")
    assert tokeniser_checksum(back) == tokeniser_checksum(tokeniser())
    text = f"what is {END_OF_TEXT} read back"
    assert back.encode(text).ids == tokeniser().encode(text).ids


@pytest.mark.parametrize("vocabulary", [0, 256])
def test_a_vocabulary_without_room_or_beyond_16_bits_is_refused(vocabulary):
    with pytest.raises(ValueError, match=f"a vocabulary has at least 257 tokens, not {vocabulary}"):
        train_tokeniser(["text"], vocabulary)


@pytest.mark.parametrize("part", [0, 10, -2])
def test_a_damaged_tokeniser_is_refused(tmp_path, part):
    path = tmp_path / "tokeniser.json"
    path.write_text(tokeniser().to_str()[:part])
    with pytest.raises(DataError, match="tokeniser.json is not a tokeniser: "):
        read_tokeniser(path)
    with pytest.raises(DataError, match="nowhere.json is not a tokeniser: "):
        read_tokeniser(tmp_path / "nowhere.json")


@pytest.mark.parametrize("path", sorted(STORED.glob("*.json")), ids=lambda path: path.stem)
def test_stored_tokenisers_are_whole(path):
    found, (corpus, vocabulary, _) = read_tokeniser(path), parse(f"{path.stem}-1")
    assert corpus == "books" and found.get_vocab_size() == vocabulary and found.token_to_id(END_OF_TEXT) == 0
    text = "It was in the spring of that year — naïve, 1876."
    ids = found.encode(text).ids
    assert found.decode(ids) == text and token_bytes(found)[ids].sum() == len(text.encode())
    assert len(ids) < len(tokeniser().encode(text).ids)


# Tokens on disk


def corpus_of(splits, name="own"):
    content = checksum(json.dumps(splits).encode())
    return Corpus(name, lambda split: iter(splits[split]), content, tokenised_as=name)


OWN = corpus_of({"train": ["one", "two"], "validation": ["three"], "test": [f"four {END_OF_TEXT}"]})


def stored(where, split):
    return torch.frombuffer(bytearray((where / f"{split}.bin").read_bytes()), dtype=torch.int16)


def test_each_document_is_followed_by_the_end_of_a_text():
    where, _ = tokenise(OWN, tokeniser())
    for split in SPLITS:
        expected = [i for text in OWN.documents(split) for i in (*tokeniser().encode(text).ids, 0)]
        assert stored(where, split).tolist() == expected


def test_tokens_are_written_once(monkeypatch):
    first = tokenise(OWN, tokeniser())
    monkeypatch.setattr("kdlab.language.tokeniser._write_tokens", lambda *_: pytest.fail("it wrote them again"))
    assert tokenise(OWN, tokeniser()) == first


@pytest.mark.parametrize("empty", SPLITS)
def test_a_split_without_text_is_refused_and_leaves_nothing_behind(empty):
    splits = {split: [] if split == empty else ["text"] for split in SPLITS}
    with pytest.raises(DataError, match=f"the {empty} split of own has no text"):
        tokenise(corpus_of(splits), tokeniser())
    assert list((folder() / "tokens").iterdir()) == []


def test_an_interruption_leaves_nothing_behind():
    def read(split):
        yield "text"
        if split == "test":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenise(replace(OWN, read=read), tokeniser())
    assert list((folder() / "tokens").iterdir()) == []


def test_another_process_may_be_first(monkeypatch):
    rename = Path.rename

    def late(self, target):
        monkeypatch.setattr(Path, "rename", rename)
        tokenise(OWN, tokeniser())  # the other one
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late)
    first = tokenise(OWN, tokeniser())
    assert tokenise(OWN, tokeniser()) == first and len(list((folder() / "tokens").iterdir())) == 1


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("test.bin", b""),
        ("train.bin", None),
        ("train.bin", b"\1\0\2\0"),
        ("checksums.json", b""),
        ("checksums.json", b"{}"),
        ("checksums.json", None),
    ],
)
def test_tokens_that_are_truncated_or_changed_are_refused(file, content):
    where, _ = tokenise(OWN, tokeniser())
    (where / file).unlink()
    if content is not None:
        (where / file).write_bytes(content)
    with pytest.raises(DataError, match="own-300-.* is truncated or was changed .*: delete it, and"):
        tokenise(OWN, tokeniser())


def test_another_text_or_tokeniser_of_the_same_name_has_its_own_tokens():
    other = corpus_of({"train": ["six"], "validation": ["seven"], "test": ["eight"]})
    found = [tokenise(*pair) for pair in ((OWN, tokeniser()), (other, tokeniser()), (OWN, tokeniser(301)))]
    assert len({where for where, _ in found}) == len({known for _, known in found}) == 3
    splits = {"train": ["plain words and others " * 50], "validation": ["a"], "test": ["b"]}
    one = stored_tokeniser(corpus_of(splits), 270)
    two = stored_tokeniser(corpus_of({**splits, "train": ["zymurgy of anything else " * 50]}), 270)
    assert tokeniser_checksum(one) != tokeniser_checksum(two)


def test_a_text_by_its_name():
    data = load_text_data("python-512-32")
    assert (data.name, data.num_classes, data.fallback) == ("python-512-32", 512, False)
    again = load_text_data("python-512-32")
    assert again.checksum == data.checksum and torch.equal(again.train.labels, data.train.labels)
    assert load_text_data("python-512-16").checksum == data.checksum  # the same tokens
    assert 0 < len(data.test) <= 512 and 0 < len(data.validation) <= 512 < len(data.train)
    corpus = load_corpus("python")
    for split in SPLITS:
        tokens = getattr(data, split)
        text = "".join(corpus.documents(split)).encode()
        assert tokens.token_bytes[tokens.labels.long()].sum() == len(text)
    (inputs, _, _), *_ = data.train.batches(2)
    assert data.tokeniser.decode(inputs.flatten().tolist()) in "".join(corpus.documents("train"))


def test_what_stands_in_is_under_the_name_that_was_asked_for():
    data = load_text_data("books-4096-64")
    assert data.fallback and data.name == "books-4096-64" and data.num_classes == 2048
    assert "train-a.txt does not exist" in data.reason


@pytest.mark.parametrize("name", ["books", "books-4096", "books-0-256", "books-4096-x", "books-4096--256"])
def test_a_name_of_another_form_is_refused(name):
    with pytest.raises(ValueError, match='text is named "corpus-vocabulary-context", such as "books-4096-256"'):
        parse(name)


# Tokens as examples


def tokens(n, context, vocabulary=65_536, start=0):
    row = (torch.arange(start, start + n) % vocabulary).to(torch.int16)
    return Tokens(row, context, torch.ones(vocabulary, dtype=torch.long))


@given(st.integers(1, 9), st.integers(2, 200), st.integers(1, 7))
def test_every_token_but_the_first_is_predicted_once_from_the_one_before(context, n, size):
    if n <= context:
        return
    batches = list(tokens(n, context).batches(size))
    inputs, labels, index = (torch.cat(parts) for parts in zip(*batches, strict=True))
    whole = (n - 1) // context * context
    assert labels.flatten().tolist() == list(range(1, whole + 1))
    assert torch.equal(inputs + 1, labels)
    assert inputs.dtype == labels.dtype == torch.int64 and torch.equal(index, torch.arange(len(inputs)))


def test_numbers_of_16_bits_survive():
    (inputs, labels, _), *_ = tokens(8, 3, start=32_765).batches(2)
    assert inputs.tolist() == [[32_765, 32_766, 32_767], [32_768, 32_769, 32_770]]
    assert labels.max() == 32_771
    (_, top, _), *_ = tokens(4, 3, start=65_532).batches(1)
    assert top.tolist() == [[65_533, 65_534, 65_535]]


@given(st.integers(1, 300), st.integers(1, 400))
def test_blocks_at_even_distances(blocks, n):
    chosen = tokens(2 * blocks + 1, 2).spread(n).blocks
    assert len(chosen) == min(n, blocks) and chosen[0] == 0 and chosen.max() < blocks
    steps = chosen.diff()
    assert not len(steps) or (steps.max() - steps.min() <= 1 and steps.min() >= 1)


def test_a_text_can_be_indexed():
    text = tokens(41, 4)
    assert len(text) == 10 and len(text[:3]) == 3 and len(text[2:][:2]) == 2
    ((inputs, _, index),) = text[torch.tensor([7, 2])].batches(5)
    assert inputs[:, 0].tolist() == [28, 8] and index.tolist() == [0, 1]
    ((nested, _, _),) = text[2:][1:3].batches(5)
    assert nested[:, 0].tolist() == [12, 16]
    assert len(text.to("cpu")) == 10


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 100), st.integers(0, 3))
def test_a_text_makes_the_same_kind_of_batches_as_images_and_goes_on_in_the_middle(n, size, seed, start):
    text = tokens(2 * n + 1, 2)
    batches = list(text.batches(size, generator=torch.Generator().manual_seed(seed), augment=True))
    seen = torch.cat([index for _, _, index in batches])
    assert len(seen.unique()) == len(seen)
    assert [len(labels) for _, labels, _ in batches] == [min(size, n)] * max(n // size, 1)
    assert all(torch.equal(inputs[:, 0], 2 * index) for inputs, _, index in batches)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    whole, later = list(text.batches(size, order=order)), list(text.batches(size, order=order, start=start))
    assert len(later) == max(len(whole) - start, 0)
    for one, other in zip(whole[start:], later, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_special_tokens_are_no_text_and_others_are_their_bytes():
    tokeniser = train_tokeniser(["ein Fluß, ein Weg, ein Fluß"], 260)
    before = token_bytes(tokeniser)
    tokeniser.add_special_tokens(["<pad>"])
    tokeniser.add_tokens(["Fuß"])
    sizes = token_bytes(tokeniser)
    assert torch.equal(sizes[: len(before)], before) and sizes[len(before) :].tolist() == [0, 4]
    ids = tokeniser.encode("Fuß, ein Fluß").ids
    assert sizes[ids].sum() == len("Fuß, ein Fluß".encode())


def test_tokens_that_are_not_of_bytes_are_refused():
    import tokenizers

    other = tokenizers.Tokenizer(tokenizers.models.BPE())
    other.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    with pytest.raises(ValueError, match="the tokeniser is not byte-level"):
        token_bytes(other)


def test_texts_end_with_the_end_that_their_tokeniser_names():
    transformers = pytest.importorskip("transformers")
    words = "to be or not to be " * 9
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=train_tokeniser([words], 262))
    wrapped.add_special_tokens({"eos_token": "<end>"})
    found = tokenise_documents([words, words], wrapped, context=4).labels
    assert (found == wrapped.eos_token_id).sum() == 2 and found[-1] == wrapped.eos_token_id and not (found == 0).any()


def test_texts_of_ones_own_are_tokens():
    documents = ["Zwei Wege, ein Fluß. " * 9, "Ein Weg. " * 9]
    tokeniser = train_tokeniser(documents, 262)
    found = tokenise_documents(documents, tokeniser, context=8)
    ids = (found.labels.long() & 0xFFFF).tolist()
    assert ids == [*tokeniser.encode(documents[0]).ids, 0, *tokeniser.encode(documents[1]).ids, 0]
    assert found.token_bytes[ids].sum() == sum(len(document.encode()) for document in documents)
    transformers = pytest.importorskip("transformers")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokeniser)
    assert torch.equal(tokenise_documents(documents, fast, context=8).labels, found.labels)
    for makes in (lambda: tokenise_documents("one", tokeniser, 8), lambda: train_tokeniser("one", 300)):
        with pytest.raises(TypeError, match="the documents are several texts"):
            makes()


@pytest.mark.parametrize("documents", [[{"text": "a"}], [[1, 2]]])
def test_documents_that_are_no_texts(documents):
    tokeniser = train_tokeniser(["Ein Weg. "], 262)
    for call in (lambda: train_tokeniser(documents, 300), lambda: tokenise_documents(documents, tokeniser, 8)):
        with pytest.raises(
            TypeError, match=r"a document is a text, not .*: of a data set one column, such as data\['text'\]"
        ):
            call()


def test_a_text_that_is_too_short_or_of_another_type_is_refused():
    assert len(tokens(5, 4)) == 1
    with pytest.raises(ValueError, match="a text of 4 tokens is too short for one block of 4 and what follows it"):
        tokens(4, 4)
    with pytest.raises(ValueError, match="tokens are 16-bit numbers in a row: torch.from_numpy"):
        Tokens(torch.arange(9), 2, torch.ones(9))


def test_a_tokeniser_that_cuts_and_pads_gives_all_of_a_text():
    """One call may set it so for good, and what it leaves out would be lost without a word."""
    text = "to be or not to be " * 20
    tokeniser = train_tokeniser([text], 262)
    whole = tokenise_documents([text], tokeniser, 8).labels
    words = tokens_of(["to"], tokeniser)
    tokeniser.enable_truncation(4)
    tokeniser.enable_padding(length=6)
    assert torch.equal(tokenise_documents([text], tokeniser, 8).labels, whole) and tokens_of(["to"], tokeniser) == words
    assert len(tokeniser.encode(text).ids) == 6  # and stays as it was set


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"token_bytes": torch.ones(8).long()},
            "token_bytes has 8 entries and the text a token 8: it says of each token",
        ),
        ({"token_bytes": torch.zeros(9).long()}, "token_bytes is zero in all: it says of each token"),
        ({"context": 0}, "context and stride are at least one token, not 0 and 2"),
        ({"stride": 0}, "context and stride are at least one token, not 2 and 0"),
    ],
)
def test_a_text_of_which_nothing_can_be_measured_is_refused(options, sentence):
    text = Tokens(torch.arange(9, dtype=torch.int16), 2, torch.ones(9).long())
    with pytest.raises(ValueError, match=f"^{sentence}"):
        replace(text, **options)


def test_a_token_above_half_of_16_bits_is_within_its_vocabulary():
    row = numbered([0, 65_535, 1], 2**16)
    assert len(Tokens(row, 2, torch.ones(2**16).long())) == 1
    with pytest.raises(ValueError, match="has 32768 entries and the text a token 65535"):
        Tokens(row, 2, torch.ones(2**15).long())


def test_token_numbers_are_whole():
    assert numbered([], 40).tolist() == []
    with pytest.raises(TypeError, match="token numbers are whole numbers, .*, not float64"):
        numbered([1.7, 2.2], 40)
