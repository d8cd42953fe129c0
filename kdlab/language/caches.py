"""Teacher caches: what is kept of a teacher's distributions on disk, so that it is run once and not with each student."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from kdlab.shapes import Float, Integer

from ..data import Tokens
from ..files import atomic_folder, note_read, sha256
from ..objectives import SparseTargets, soften
from ..training import evaluation_mode
from ..training.measures import all_logits
from ..training.modules import check_model
from ..training.precision import autocast
from ..training.protocols import check_text
from ..training.state import checksum, state_of
from ..training.teachers import CacheError

KINDS = ("sampled", "top-k", "top-k-rest")


def text_checksum(tokens: Tokens) -> str:
    """SHA-256 of the blocks of a text: what a cache belongs to. Computed once, and again after its tensors have changed in place."""
    held = (tokens.labels, tokens.blocks, tokens.token_bytes)
    # which counts such changes
    state = None if any(tensor.is_inference() for tensor in held) else [tensor._version for tensor in held]
    known = vars(tokens).get("_checksum")
    if known is None or state is None or known[0] != state:
        known = state, _text_checksum(tokens)
        vars(tokens)["_checksum"] = known
    return known[1]


def _text_checksum(tokens: Tokens) -> str:
    digest = hashlib.sha256(f"{tokens.context} {tokens.stride} {len(tokens.token_bytes)}".encode())
    for tensor in (tokens.blocks, tokens.labels):
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def write_cache(
    path: str | PathLike[str],
    teacher: nn.Module,
    tokens: Tokens,
    *,
    kind: Literal["sampled", "top-k", "top-k-rest"] = "sampled",
    entries: int = 12,
    seed: int = 0,
    device: torch.device | str = "cpu",
    precision: str = "float32",
    tokens_at_once: int = 4096,
    report: Callable[[int, int], None] | None = None,
) -> None:
    """Run a teacher over a text once, and keep ``entries`` of each token's distribution in the folder ``path``.

    Written whole or not at all. An entry takes 4 bytes (6 for more than 65,536 tokens): twelve of them 48 a token. A rest takes 4
    more: it is small where the teacher is sure, and half precision beside a probability of nearly one would leave nothing of it.

    Args:
        kind: ``"sampled"``, ``"top-k"`` or ``"top-k-rest"`` (:mod:`~kdlab.objectives.sparse`).
        seed: of the draws.
        report: called with the blocks that are done, and all.

    Raises:
        ValueError: for another kind, or a number of entries that the vocabulary has not.
        CacheError: if ``path`` exists already.
    """
    check_model(teacher, "a teacher")
    check_text(tokens)
    _check_kind(kind)
    path = Path(path)
    if path.exists():
        raise CacheError(f"{path} exists already; delete it to make the cache anew.")
    generator = torch.Generator(device).manual_seed(seed)
    done = 0
    with atomic_folder(path) as part:
        with (
            evaluation_mode(teacher.to(device)),
            (part / "tokens.bin").open("wb") as which,
            (part / "probabilities.bin").open("wb") as how_likely,
            (part / "rest.bin").open("wb") if kind == "top-k-rest" else nullcontext() as of_others,
        ):
            for inputs, _, index in tokens.batches(max(tokens_at_once // tokens.context, 1)):
                with autocast(device, precision):
                    logits = all_logits(teacher(inputs.to(device)))
                vocabulary = logits.shape[-1]  # the teacher's, which may have been filled up beyond the tokeniser's
                _check_entries(entries, vocabulary)
                number = np.uint16 if vocabulary <= 2**16 else np.uint32
                p = soften(logits.float(), class_axis=-1)
                kept = keep(p, kind, entries, generator)
                which.write(kept.tokens.cpu().numpy().astype(number).tobytes())
                how_likely.write(kept.probabilities.cpu().numpy().astype(np.float16).tobytes())
                if kept.rest:
                    left = p.scatter(-1, kept.tokens, 0.0).sum(-1)  # with all its digits
                    of_others.write(left.cpu().numpy().astype(np.float32).tobytes())
                done += len(index)
                if report is not None:
                    report(done, len(tokens))
        header = {
            "kind": kind,
            "entries": entries,
            "vocabulary": vocabulary,
            "context": tokens.context,
            "blocks": len(tokens),
            "text": text_checksum(tokens),
            "teacher": checksum(state_of(teacher).items()),
            "files": {path.name: sha256(path) for path in sorted(part.glob("*.bin"), reverse=True)},
        }
        header["checksum"] = _checksum(header)
        (part / "header.json").write_text(json.dumps(header, indent=1) + "\n")


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"the kind of a cache is one of {', '.join(KINDS)}, not {kind!r}.")


def _check_entries(entries: int, vocabulary: int) -> None:
    if not 1 <= entries < vocabulary:
        raise ValueError(f"a cache keeps 1 to {vocabulary - 1} entries of {vocabulary}, not {entries}.")


def _checksum(header: dict) -> str:
    """Of all that a header says."""
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


def keep(
    p: Float[Tensor, "*batch V"], kind: str, entries: int, generator: torch.Generator | None = None
) -> SparseTargets:
    """A few entries of distributions ``(..., V)``, as the kinds of :mod:`~kdlab.objectives.sparse` say."""
    vocabulary = p.shape[-1]
    if kind == "sampled":
        drawn = torch.multinomial(p.flatten(0, -2), entries, replacement=True, generator=generator)
        drawn = drawn.view(*p.shape[:-1], entries)
        return SparseTargets(drawn, torch.full_like(drawn, 1 / entries, dtype=p.dtype), vocabulary)
    largest, which = p.topk(entries)
    if kind == "top-k":
        largest = largest / largest.sum(-1, keepdim=True)
    return SparseTargets(which, largest, vocabulary, rest=kind == "top-k-rest")


class TeacherCache(nn.Module):
    """A cache in a teacher's place: ``fit(…, teacher=TeacherCache(path, train))``.

    It is asked by the index of the examples, of this text and of no other, and answers with :class:`~kdlab.objectives.sparse.SparseTargets`, mapped from disk.
    In :class:`~kdlab.huggingface.trainer.Distil`, whose batches need a column ``index``, each row is held against the text that it was given;
    :meth:`columns` needs no index there.

    Args:
        path: what :func:`write_cache` wrote.
        tokens: if given, it must be the cache of this text, all its blocks in their order.
        teacher: if given, it must be this teacher's.

    Raises:
        CacheError: if it is missing, damaged, or of another text or teacher.
    """

    by_index = True

    def __init__(
        self, path: str | PathLike[str], tokens: Tokens | None = None, teacher: nn.Module | None = None
    ) -> None:
        super().__init__()
        path = Path(path)
        if not path.exists():
            raise CacheError(f"there is no teacher cache at {path}: write_cache makes it.")
        try:
            self.header = json.loads(note_read(path / "header.json").read_text())
            checksum_of_header = self.header.pop("checksum")
            damaged = [name for name, known in self.header["files"].items() if sha256(path / name) != known]
            damaged += ["header.json"] if _checksum(self.header) != checksum_of_header else []
        except (OSError, ValueError, KeyError) as error:
            raise CacheError(
                f"{path} is no teacher cache, or is damaged ({error}); delete it to make it anew."
            ) from None
        if self.header["kind"] == "top-k-rest" and "rest.bin" not in self.header["files"]:
            raise CacheError(
                f"{path} was written by an earlier kdlab, which lost the rest of sure teachers to rounding: delete it, and write it "
                "anew."
            )
        if damaged:
            raise CacheError(f"{path / damaged[0]} is truncated or was changed; delete {path} to make it anew.")
        self.path, self._text = path, tokens
        if tokens is not None:
            self.check_text(tokens)
        if teacher is not None:
            check_model(teacher, "a teacher")
        if teacher is not None and checksum(state_of(teacher).items()) != self.header["teacher"]:
            raise CacheError(f"{path} is the cache of another teacher.")
        shape = tuple(self.header[name] for name in ("blocks", "context", "entries"))
        number = np.uint16 if self.header["vocabulary"] <= 2**16 else np.uint32
        self._tokens = np.memmap(path / "tokens.bin", number, "r", shape=shape)
        self._probabilities = np.memmap(path / "probabilities.bin", np.float16, "r", shape=shape)
        with_rest = self.header["kind"] == "top-k-rest"
        self._rest = np.memmap(path / "rest.bin", np.float32, "r", shape=shape[:2]) if with_rest else None
        identity = torch.tensor(list(bytes.fromhex(checksum_of_header)), dtype=torch.uint8)
        self.register_buffer("identity", identity)  # by which checkpoints tell teachers apart

    def check_text(self, tokens: Tokens) -> None:
        """That it is the cache of this text, all its blocks in their order; ``fit`` asks for it too.

        Raises:
            CacheError: if it is of another.
        """
        if not isinstance(tokens, Tokens) or text_checksum(tokens) != self.header["text"]:
            raise CacheError(f"{self.path} is the cache of another text, or of other blocks of it.")

    def check_examples(self, split: Any, recipes: Sequence[Any] = ()) -> None:
        """:meth:`check_text`, as ``fit`` asks of every teacher that knows its examples."""
        self.check_text(split)

    def _check_rows(self, index: Tensor, input_ids: Tensor) -> None:
        """That rows are the blocks of its text that their index says they are."""
        if self._text is None:
            raise CacheError(
                f"whether these rows are of the text of {self.path} cannot be seen without it: TeacherCache(path, tokens); or put what the teacher "
                "said beside each row, TeacherCache.columns, read by TeacherColumns."
            )
        known = bool((index >= 0).all()) and bool((index < len(self._text)).all())
        if not known or not torch.equal(
            next(self._text[index].batches(len(index)))[0], input_ids.to(self._text.labels.device)
        ):
            raise CacheError(
                f"rows are not the blocks of the text of {self.path} that their index says, whole and as they were: of other rows, such as those of an "
                "evaluation, the teacher said nothing here. What it said stays with a row as columns: TeacherCache.columns, read by TeacherColumns."
            )

    def forward(
        self, index: Integer[Tensor, " B"], input_ids: Integer[Tensor, "B context"] | None = None
    ) -> SparseTargets:
        """What is kept of the examples ``index``, ``(B,)``: entries ``(B, context, K)``.

        Args:
            input_ids: the examples themselves, where nobody else sees to it that they are of its text.

        Raises:
            CacheError: if they are others.
        """
        if input_ids is not None:
            self._check_rows(index.cpu(), input_ids)
        places = index.cpu().numpy()
        tokens = torch.from_numpy(self._tokens[places].astype(np.int64)).to(index.device)
        probabilities = torch.from_numpy(self._probabilities[places].astype(np.float32)).to(index.device)
        # Of the entries half precision has kept three digits; what they sum to is known better.
        probabilities = probabilities / probabilities.sum(-1, keepdim=True)
        if self._rest is not None:
            probabilities *= 1 - torch.from_numpy(self._rest[places]).to(index.device)[..., None]
        return SparseTargets(tokens, probabilities, self.header["vocabulary"], self._rest is not None)

    def columns(self, tokens: Tokens) -> dict[str, list[list]]:
        """The text and what is kept of the teacher, a row for each block: columns of a ``datasets.Dataset``, for ``Trainer``.

        ``Dataset.from_dict(cached.columns(train))`` may be shuffled, split, filtered and joined as any other: what the teacher said of a row is
        in that row. :class:`TeacherColumns` reads it. Lists of numbers, all in memory at once.

        Returns:
            ``input_ids`` and ``labels``, ``(context,)`` each, as ``transformers`` takes them; ``teacher_tokens`` and
            ``teacher_probabilities``, ``(context, K)`` each.

        Raises:
            CacheError: for another text.
        """
        self.check_text(tokens)
        names = ("input_ids", "labels", *_COLUMNS)
        found: dict[str, list[list]] = {name: [] for name in names}
        for inputs, _, index in tokens.batches(64):
            kept = self(index)
            columns = inputs, inputs, kept.tokens, kept.probabilities
            for name, values in zip(found, columns, strict=True):
                found[name].extend(values.tolist())
        return found

    @property
    def bytes_per_token(self) -> float:
        """On disk."""
        parts = [part for part in (self._tokens, self._probabilities, self._rest) if part is not None]
        return sum(part.nbytes for part in parts) / (self.header["blocks"] * self.header["context"])


@torch.no_grad()
def teacher_columns(
    teacher: nn.Module,
    input_ids: Sequence[int] | Integer[Tensor, " T"],
    *,
    kind: Literal["sampled", "top-k", "top-k-rest"] = "sampled",
    entries: int = 12,
    generator: torch.Generator | None = None,
) -> dict[str, list[list]]:
    """What is kept of a teacher on a row of your own data, such as a chat: columns of that row, which :class:`TeacherColumns` reads.

    ``data.map(lambda row: teacher_columns(teacher, row["input_ids"]))``, or of a list ``[row | teacher_columns(teacher, row["input_ids"]) for row in rows]``.
    Rows of different length: :class:`CollateColumns`.

    Args:
        teacher: a :class:`~kdlab.huggingface.models.CausalLM`, or any model of tokens ``(B, T)`` that gives logits ``(B, T, V)``.
        input_ids: the tokens of the row, without padding.
        kind, entries: as in :func:`write_cache`.
        generator: of the draws, on the teacher's device.

    Returns:
        ``teacher_tokens`` and ``teacher_probabilities``, ``(T, entries)`` each.

    Raises:
        ValueError: as :func:`write_cache`.
    """
    check_model(teacher, "a teacher")
    _check_kind(kind)
    device = next((p.device for p in teacher.parameters()), None)
    with evaluation_mode(teacher):
        logits = all_logits(teacher(torch.as_tensor(input_ids, device=device)[None]))[0]
    _check_entries(entries, logits.shape[-1])
    kept = keep(soften(logits.float(), class_axis=-1), kind, entries, generator)
    return dict(zip(_COLUMNS, (kept.tokens.tolist(), kept.probabilities.tolist()), strict=True))


_COLUMNS = ("teacher_tokens", "teacher_probabilities")


@dataclass(frozen=True)
class CollateColumns:
    """A ``data_collator`` for rows of different length: what the teacher said is filled up with zeros as the tokens are, on either side.

    Attributes:
        collate: what makes a batch of all other columns, such as ``DataCollatorForSeq2Seq(tokenizer)``; it has to return ``input_ids``, and ``attention_mask`` where it
            fills them up on the left.
    """

    collate: Callable[[list[dict[str, Any]]], Mapping[str, Any]]

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """A batch; ``teacher_tokens`` and ``teacher_probabilities`` are ``(B, T, entries)``."""
        batch = dict(self.collate([{k: x for k, x in row.items() if k not in _COLUMNS} for row in rows]))
        length = batch["input_ids"].shape[1]
        for name in _COLUMNS:
            said = [torch.as_tensor(row[name]) for row in rows]
            filled = said[0].new_zeros(len(rows), length, said[0].shape[-1])
            for i, entries in enumerate(said):
                first = length - len(entries) if "attention_mask" in batch and not batch["attention_mask"][i, 0] else 0
                filled[i, first : first + len(entries)] = entries
            batch[name] = filled
        return batch


class TeacherColumns(nn.Module):
    """A teacher whose words are columns of the data: it reads ``teacher_tokens`` and ``teacher_probabilities`` of a batch, ``(B, T, K)`` each.

    In the teacher's place of :class:`~kdlab.huggingface.trainer.Distil`, with :class:`~kdlab.objectives.terms.SparseForwardKL`; the columns are those of
    :meth:`TeacherCache.columns`, of :func:`teacher_columns`, or of your own: what a server said of each token's successor. A row that is filled up has zeros there.

    Args:
        vocabulary: how many tokens the teacher has.
        rest: whether all other tokens share what the kept leave of one, as of a cache of the kind ``"top-k-rest"``.

    >>> teacher = TeacherColumns(vocabulary=5)
    >>> teacher(torch.tensor([[[4, 2]]]), torch.tensor([[[0.75, 0.25]]])).shape
    torch.Size([1, 1, 5])
    """

    def __init__(self, vocabulary: int, *, rest: bool = False) -> None:
        super().__init__()
        self.vocabulary, self.rest = vocabulary, rest

    def forward(
        self, teacher_tokens: Integer[Tensor, "B T K"], teacher_probabilities: Float[Tensor, "B T K"]
    ) -> SparseTargets:
        """What the columns say of the teacher.

        Raises:
            TypeError, ValueError: as :class:`~kdlab.objectives.sparse.SparseTargets`; where probabilities leave something to others, and no rest is said.
        """
        targets = SparseTargets(teacher_tokens, teacher_probabilities, self.vocabulary, self.rest)
        total = teacher_probabilities.sum(-1)
        if not self.rest and ((total > 0) & (total < 0.999)).any():
            raise ValueError(
                f"probabilities of one token sum to {total[total > 0].min():.4g}: what they leave is that of all other tokens, "
                "TeacherColumns(…, rest=True)."
            )
        return targets
