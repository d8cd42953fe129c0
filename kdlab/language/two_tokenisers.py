r"""A teacher with a tokeniser of its own: its tokens are made of the same text, and lie beside the student's by their bytes.

From a student's tokens to a teacher's: their bytes are joined to the text, which the teacher's tokeniser cuts its way. Wherever a token of
each ends at one byte, both have read the same text, and what the teacher says there is put at the student's position
(:class:`~kdlab.objectives.aligned.AlignedLogits`). What can be compared there is said by the terms of
:mod:`~kdlab.objectives.sequence`.
"""

import itertools
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdlab.shapes import Integer, Shaped

from ..objectives.aligned import AlignedLogits
from ..objectives.vocabulary import HeadLogits
from ..training.modules import check_model
from ..training.taps import logits_of
from .tokeniser import backend, untruncated


def token_texts(tokeniser: Any) -> list[bytes | None]:
    """The bytes of text that each token stands for; None for special tokens, and for numbers that are none.

    Args:
        tokeniser: a ``tokenizers.Tokenizer``, or a fast one of ``transformers``: byte-level, as those of GPT-2, Llama 3 and Qwen, or with
            "▁" for a space, as those of Llama 2, Gemma and Mistral.

    Raises:
        ValueError: for a tokeniser of another kind, whose tokens are not cut out of the text as it is.

    >>> from kdlab.language import train_tokeniser
    >>> texts = token_texts(train_tokeniser(["to be or not to be " * 20], 262))
    >>> texts[0], texts[256:]
    (None, [b'\\xad', b'be', b'to', b' be', b' to', b'no'])
    """
    tokeniser = backend(tokeniser)
    parts = json.loads(tokeniser.to_str())
    kinds = re.findall(r'"type": "(\w+)"', json.dumps([parts["decoder"], parts["pre_tokenizer"]]))
    if "ByteLevel" in kinds:
        byte_of = _alphabet()
        of_token = lambda token: bytes(byte_of[character] for character in token)  # noqa: E731
    elif "▁" in json.dumps([parts[name] for name in ("decoder", "normalizer", "pre_tokenizer")], ensure_ascii=False):
        of_token = _of_sentencepiece
    else:
        raise ValueError(
            "the tokeniser is neither byte-level nor one with ▁ for a space: it may change the text, so that its tokens do not say which bytes they are."
        )
    added = {token["id"]: token for token in parts["added_tokens"]}
    vocabulary = tokeniser.get_vocab()
    texts: list[bytes | None] = [None] * (max(vocabulary.values()) + 1)
    for token, number in vocabulary.items():
        if number not in added:
            texts[number] = of_token(token)
        elif not added[number]["special"]:
            texts[number] = token.encode()
    return texts


def _alphabet() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for (Radford et al. 2019): those that print, themselves."""
    prints = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in prints]
    return {chr(byte): byte for byte in prints} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _of_sentencepiece(token: str) -> bytes:
    byte = re.fullmatch("<0x([0-9A-F]{2})>", token)
    return bytes.fromhex(byte[1]) if byte else token.replace("▁", " ").encode()


def shared_tokens(
    student_tokeniser: Any, teacher_tokeniser: Any
) -> tuple[Integer[Tensor, " k"], Integer[Tensor, " k"]]:
    """The tokens that stand for the same bytes, or are the same special token, in both: their numbers for the student, and for the teacher.

    For :class:`~kdlab.objectives.sequence.SharedVocabulary`, with ``rest=True``.

    Raises:
        ValueError: as :func:`token_texts`; where they share none.
    """
    of_student, of_teacher = (_by_text(tokeniser) for tokeniser in (student_tokeniser, teacher_tokeniser))
    both = [text for text in of_student if text in of_teacher]
    if not both:
        raise ValueError("the tokenisers share no token.")
    return torch.tensor([of_student[text] for text in both]), torch.tensor([of_teacher[text] for text in both])


def _by_text(tokeniser: Any) -> dict[bytes | str, int]:
    """Numbers of tokens, by their bytes; of special ones by their names."""
    texts, names = token_texts(tokeniser), {number: name for name, number in backend(tokeniser).get_vocab().items()}
    found = {}
    for number, text in enumerate(texts):
        if text or number in names:
            found.setdefault(text or names[number], number)
    return found


def first_bytes(student_tokeniser: Any, teacher_tokeniser: Any) -> tuple[Integer[Tensor, " V"], Integer[Tensor, " M"]]:
    """With which byte each token begins, of student and teacher, ``(V,)`` and ``(M,)``: those that begin tokens of both, numbered in order; one more for all other tokens.

    For :class:`~kdlab.objectives.sequence.MergedVocabulary`: how probable each next byte of the text is. The others are special tokens, which
    mostly end a text.

    Raises:
        ValueError: as :func:`token_texts`.
    """
    of_both = [token_texts(tokeniser) for tokeniser in (student_tokeniser, teacher_tokeniser)]
    begun = [{text[0] for text in texts if text} for texts in of_both]
    number = {byte: n for n, byte in enumerate(sorted(begun[0] & begun[1]))}
    student, teacher = (
        torch.tensor([number.get(text[0], len(number)) if text else len(number) for text in texts]) for texts in of_both
    )
    return student, teacher


class Retokenised(nn.Module):
    """A teacher that reads the student's tokens: it makes its own of the same text, and says of it what it would say.

    In the place of a teacher, in :func:`~kdlab.training.loop.fit`, ``Distil`` and ``Distillation``; of a student's own text too. Called with the
    student's tokens ``(B, T)``, it gives :class:`~kdlab.objectives.aligned.AlignedLogits`. ::

        teacher = Retokenised(teacher, teacher_tokeniser, student_tokeniser)
        next_byte = MergedVocabulary(ForwardKL(), *first_bytes(student_tokeniser, teacher_tokeniser))
        objective = 0.5 * CrossEntropy() + 0.5 * next_byte
        KD(student, teacher=teacher, objective=objective, args=args, train_dataset=data).train()

    Special tokens become those of the same name, the student's end of text the teacher's, and what begins a text whatever the teacher's tokeniser
    puts there. Bytes that are no text, as an untrained student writes them, become the teacher's tokens of single bytes. A letter and its accent that
    the teacher's tokeniser makes one, as those of Qwen and Pythia do (Unicode's NFC), are read together. Where the
    text is cut off, its last token is not what the whole text's would be, and nothing is read behind it; the tokens that lead there are those of the cut text.

    Args:
        model: called with its own tokens, int64, ``(B, T')``, padded on the right, it gives logits ``(B, T', M)``: what follows a token has no influence on it.
        tokeniser, student_tokeniser: as in :func:`token_texts`.
        special: what the teacher reads for a special token of the student's, by its name, such as ``{"<|im_start|>": "<start_of_turn>"}``.
        others: what it reads for all that it does not have and ``special`` does not name, such as ``""``, nothing, where a student writes, which may write
            any; None: an error.

    Raises:
        ValueError: for tokenisers whose tokens do not say which bytes they are; called, for a special token that the teacher does not have, and for a
            text that its tokeniser changes.

    >>> from kdlab.language import train_tokeniser
    >>> from kdlab.models import GPT
    >>> text = "to be or not to be " * 20
    >>> few, many = (train_tokeniser([text], n) for n in (258, 266))
    >>> teacher = Retokenised(GPT(266, width=8, layers=1, heads=1), many, few)
    >>> aligned = teacher(torch.tensor([few.encode("to be or").ids]))
    >>> aligned.values.shape, aligned.read.tolist()  # of t, o, _, be, _, o, r: behind "to" and "to be"
    (torch.Size([1, 7, 266]), [[False, True, False, True, False, False, False]])
    """

    def __init__(
        self, model: nn.Module, tokeniser: Any, student_tokeniser: Any, *,
        special: Mapping[str, str] | None = None, others: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        check_model(model, "a teacher")
        self.model, self._student, self._teacher = model, _Cut(student_tokeniser), _Cut(tokeniser)
        ends = getattr(student_tokeniser, "eos_token", None), getattr(tokeniser, "eos_token", None)
        self._special: dict[int, list[int]] = {}
        for number, name in self._student.special.items():
            known = ends[1] if name == ends[0] and name not in self._teacher.number else name
            if special is not None and name in special:
                self._special[number] = self._teacher.with_special(special[name])
            elif known in self._teacher.number:
                self._special[number] = [self._teacher.number[known]]
            elif others is not None:
                self._special[number] = self._teacher.with_special(others)

    @torch.no_grad()
    def forward(
        self, input_ids: Integer[Tensor, "B T"], attention_mask: Shaped[Tensor, "B T"] | None = None
    ) -> AlignedLogits:
        """What the teacher says of the student's tokens ``(B, T)``, of which ``attention_mask`` says which are no padding."""
        real = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        rows = [row[keep].tolist() for row, keep in zip(input_ids.cpu(), real.cpu(), strict=True)]
        firsts = real.int().argmax(1).tolist()
        cuts = [self.cut(row) for row in rows]
        longest = max(1, *(len(own) for own, _, _ in cuts))
        tokens = torch.tensor([own + [0] * (longest - len(own)) for own, _, _ in cuts], device=input_ids.device)
        logits = logits_of(self.model(tokens))
        logits = logits.dense() if isinstance(logits, HeadLogits) else logits
        known = torch.zeros(tokens.shape, dtype=torch.float64)
        scored = logits[:, :-1].gather(-1, tokens[:, 1:, None]).squeeze(-1).float() - logits[:, :-1].float().logsumexp(
            -1
        )
        known[:, 1:] = scored.cpu()
        known = known.cumsum(1)  # of all tokens up to this
        values = logits.new_zeros(*input_ids.shape, logits.shape[-1])
        lengths = torch.zeros(input_ids.shape, dtype=torch.long)
        first, later = torch.zeros(2, *input_ids.shape).unbind()
        read = torch.zeros(input_ids.shape, dtype=torch.bool)
        for row, (_, student, teacher) in enumerate(cuts):
            at = student + firsts[row]
            values[row, at] = logits[row, teacher]
            read[row, at], lengths[row, at[:-1]] = True, torch.from_numpy(np.diff(student))
            begins, ends = teacher[:-1], teacher[1:]
            first[row, at[:-1]] = (known[row, begins + 1] - known[row, begins]).float()
            later[row, at[:-1]] = (known[row, ends] - known[row, begins + 1]).float()
        return AlignedLogits(values, *(x.to(logits.device) for x in (read, lengths, first, later)))

    def cut(self, tokens: Sequence[int]) -> tuple[list[int], Integer[np.ndarray, " n"], Integer[np.ndarray, " n"]]:
        """The teacher's tokens of the same text; and which of the student's, and of its own, are the last before each place where both end one.

        Args:
            tokens: the student's, of one text.
        """
        student, teacher = self._student, self._teacher
        own, student_ends = list(teacher.begin), []
        own_ends = [0] * len(own)
        for is_text, group in itertools.groupby(tokens, key=student.is_text):
            at, part = student_ends[-1] if student_ends else 0, list(group)
            if is_text:
                text, sizes = student.sizes(part)
                new, new_sizes = teacher.encode(text)
            else:
                replaced = [self._replaced(token, first=not student_ends and not n) for n, token in enumerate(part)]
                new, sizes = [*itertools.chain(*replaced)], [len(x) for x in replaced]
                new_sizes = [1] * len(new)
            own += new
            student_ends += (at + np.cumsum(sizes, dtype=np.int64)).tolist()
            own_ends += (at + np.cumsum(new_sizes, dtype=np.float64)).tolist()
        shared = np.intersect1d(student_ends, own_ends)
        if len(tokens) and student.is_text(tokens[-1]):
            shared = shared[:-1]  # the text was cut off there
        places = [np.searchsorted(ends, shared, side="right") - 1 for ends in (student_ends, own_ends)]
        return own, places[0], places[1]

    def _replaced(self, token: int, first: bool) -> list[int]:
        """What the teacher reads for a special token; what begins a text is there already."""
        found = self._special.get(token)
        if first and token == self._student.begins_with and (self._teacher.begin or found is None):
            return []
        if found is None:
            name = self._student.special.get(token, str(token))
            if token >= len(self._student.texts):
                raise ValueError(
                    f"token {token} is none of the student's tokeniser, whose last is {len(self._student.texts) - 1}: the text is of another, or the student, "
                    f"whose vocabulary was filled up, has written it; student.resize_token_embeddings({len(self._student.texts)}) takes the others off."
                )
            raise ValueError(
                f"the teacher's tokeniser has no special token {name!r}, as the student's has: say what it reads in its place, "
                f"special={{{name!r}: …}}, which may be nothing, ''; others='' is nothing for all that are not named."
            )
        return found


class _Cut:
    """A tokeniser, its tokens' bytes and what it puts before a text."""

    def __init__(self, tokeniser: Any) -> None:
        self.texts = token_texts(tokeniser)
        copied = untruncated(tokeniser)
        whole = copied.encode("a").ids
        copied.encode_special_tokens = True  # a special token's name within a text is text
        self.tokeniser, self.number = copied, copied.get_vocab()
        self.special = {number: name for name, number in self.number.items() if self.texts[number] is None}
        self.single = {text: number for number, text in enumerate(self.texts) if text is not None and len(text) == 1}
        alone = copied.encode("a", add_special_tokens=False).ids
        self.adds_space = self._bytes(alone) == b" a"
        self.begin = list(itertools.takewhile(lambda token: token in self.special, whole))
        self.begins_with = self.begin[0] if len(self.begin) == 1 else getattr(tokeniser, "bos_token_id", None)

    def _bytes(self, tokens: Sequence[int]) -> bytes:
        return b"".join(self.texts[token] or b"" for token in tokens)

    def sizes(self, tokens: Sequence[int]) -> tuple[bytes, list[int]]:
        """The text of some tokens, and how many of its bytes each is; a space that the tokeniser put before it is none."""
        text, sizes = self._bytes(tokens), [len(self.texts[token] or b"") for token in tokens]
        if self.adds_space and text.startswith(b" "):
            return text[1:], [sizes[0] - 1, *sizes[1:]]
        return text, sizes

    def encode(self, text: bytes) -> tuple[list[int], list[float]]:
        """Tokens of a text, and how many of its bytes each is.

        Raises:
            ValueError: if they do not say the same text.
        """
        tokens, sizes = [], []
        for part in re.split("([\udc80-\udcff]+)", text.decode("utf-8", "surrogateescape")):
            raw = part.encode("utf-8", "surrogateescape")
            try:  # bytes that are no text are taken one by one
                new = self.tokeniser.encode(part, add_special_tokens=False).ids if _is_text(raw) else self._singles(raw)
            except KeyError:
                raise ValueError(
                    "the tokeniser has no tokens for bytes that are no text, and the student wrote some."
                ) from None
            said, made = [len(self.texts[token] or b"") for token in new], self._bytes(new)
            forms = [raw, _composed(part).encode()] if _is_text(raw) else [raw]
            if self.adds_space and made in [b" " + form for form in forms]:
                said[0], made = said[0] - 1, made[1:]
            if made not in forms:
                raise ValueError(
                    f"the tokeniser changes the text: of {_shown(raw)} its tokens make {_shown(self._bytes(new))}. Tokens of two "
                    "tokenisers are compared where both keep the text as it is; leave such texts out: Retokenised.cut(tokens) raises this for each."
                )
            tokens, sizes = tokens + new, sizes + (said if made == raw else _as_written(part, said))
        return tokens, sizes

    def _singles(self, raw: bytes) -> list[int]:
        return [self.single[bytes([byte])] for byte in raw]

    def with_special(self, text: str) -> list[int]:
        """Tokens of a text in which special tokens stand by their names."""
        self.tokeniser.encode_special_tokens = False
        found = self.tokeniser.encode(text, add_special_tokens=False).ids
        self.tokeniser.encode_special_tokens = True
        return found

    def is_text(self, token: int) -> bool:
        return token < len(self.texts) and self.texts[token] is not None


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _as_written(text: str, sizes: Sequence[int]) -> list[float]:
    r"""Of tokens of a text's composed form (NFC), with their sizes, those in the text as it is. One that ends within what was composed ends
    half a byte before it does, where no token of the text itself ends.

    >>> _as_written("e\u0301a", [1, 1, 1])  # é is two bytes, of which each is a token, and was three
    [2.5, 0.5, 1.0]
    """
    pieces: list[str] = []
    for character in text:
        before = pieces[-1] if pieces else ""
        if before and (
            unicodedata.combining(character)
            or _composed(before + character) != _composed(before) + _composed(character)
        ):
            pieces[-1] += character
        else:
            pieces.append(character)
    ends, at = [0.0], 0  # of each byte of the composed form
    for piece in pieces:
        raw, composed = piece.encode(), _composed(piece).encode()
        within = (
            [at + n for n in range(1, len(raw))] if raw == composed else [at + len(raw) - 0.5] * (len(composed) - 1)
        )
        at += len(raw)
        ends += [*within, at]
    return np.diff([ends[end] for end in itertools.accumulate(sizes, initial=0)]).tolist()


def _is_text(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _shown(raw: bytes) -> str:
    return repr(raw if len(raw) < 60 else raw[:57] + b"...")
