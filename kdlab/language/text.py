"""Where the text comes from: the corpus, the teacher (sequence-level distillation), or the student itself (on-policy)."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor, nn

from kdlab.shapes import Integer

from ..data import Tokens
from ..data.tokens import mapped, width
from ..files import atomic_write, note_read
from ..objectives.checks import IGNORED
from ..training.modules import check_model
from ..training.precision import autocast
from ..training.protocols import check_text
from ..training.state import checksum, state_of
from .caches import text_checksum
from .generation import generate, stop_tokens, text_lengths


@dataclass(frozen=True)
class OwnText:
    r"""On-policy distillation: the student goes on from a prompt, and learns from what the teacher says of *that*.

    The prompt is the beginning of a block of the corpus; what the student writes takes the place of the rest. Nothing is learned
    from the prompt's own tokens, and no gradient runs through the writing.

    Attributes:
        prompt: how many tokens of the corpus come first.
        probability: of a step on the student's own text; else the step is on the corpus. GKD's :math:`\lambda`.
        after: the part of the training that is on the corpus alone, so that there is something to write with.
        temperature: of the writing.
        copies: so many rows of a batch, one after another, go on from the prompt of the first of them; 1: each from its own.
        stop: a token that ends a text, or several: nothing is learned from what would follow the first that the student writes.
            None: each is a token as any other, as where the corpus itself goes on with the next text.

    Source: Agarwal et al. (2024), GKD, algorithm 1.
    """

    prompt: int = 32
    probability: float = 1.0
    temperature: float = 1.0
    after: float = 0.0
    copies: int = 1
    stop: int | tuple[int, ...] | None = None

    def __repr__(self) -> str:  # as it was before there was a stop, by which runs are told apart
        shown = [(f.name, getattr(self, f.name)) for f in fields(self)]
        return f"OwnText({', '.join(f'{n}={v!r}' for n, v in shown if n != 'stop' or v is not None)})"

    def __post_init__(self) -> None:
        stop_tokens(self.stop)
        parts = (self.probability, self.after)
        if min(self.prompt, self.copies) < 1 or self.temperature < 0 or not all(0 <= part <= 1 for part in parts):
            raise ValueError(
                "own text needs a prompt of at least one token, at least one copy, probability and after from 0 to 1, and a "
                "temperature that is not negative."
            )

    def __call__(
        self,
        student: nn.Module,
        inputs: Integer[Tensor, "B T"],
        labels: Integer[Tensor, "B T"],
        progress: float,
        generator: torch.Generator,
    ) -> tuple[Integer[Tensor, "B T"], Integer[Tensor, "B T"]]:
        """Inputs and labels ``(B, C)`` in place of those of the corpus.

        Raises:
            TypeError: for inputs that are no blocks of tokens.
        """
        if not isinstance(inputs, Tensor) or inputs.ndim != 2 or inputs.is_floating_point():
            what = f"a tensor of shape {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else "a dictionary"
            raise TypeError(
                f"own text goes on from blocks of tokens (B, T), as kdlab.data.Tokens has them, not from {what}: with a dictionary of input_ids, "
                "Examples(input_ids, labels); from prompts of unequal length kdlab.huggingface.OwnAnswers goes on."
            )
        drawn = torch.rand((), generator=generator, device=generator.device).item()
        if progress < self.after or drawn >= self.probability:
            return inputs, labels
        if len(inputs) % self.copies:
            raise ValueError(f"a batch of {len(inputs)} is not made of {self.copies} texts for each prompt.")
        inputs = inputs[:: self.copies].repeat_interleave(self.copies, 0)
        text = written(student, inputs, self.prompt, self.temperature, generator, self.stop)
        inputs, labels = after_prompt(text, self.prompt)
        return inputs, labels if self.stop is None else until_end(labels, text, self.prompt, self.stop)


def written(
    model: nn.Module,
    inputs: Integer[Tensor, "B T"],
    prompt: int,
    temperature: float,
    generator: torch.Generator | None,
    stop: int | Sequence[int] | None = None,
) -> Integer[Tensor, "B T+1"]:
    """Blocks ``(B, C + 1)`` that begin as ``inputs`` and go on as the model writes."""
    context = inputs.shape[1]
    if not prompt <= context:
        raise ValueError(f"a prompt of {prompt} tokens is longer than a block of {context}.")
    more = context + 1 - prompt
    how = {"temperature": temperature, "generator": generator, "stop": stop}
    # A graph lives for one text: within a training, its memory would be asked for anew in each step.
    return generate(model, inputs[:, :prompt], tokens=more, graphs=False, **how)


def after_prompt(
    text: Integer[Tensor, "B T_and_one"], prompt: int
) -> tuple[Integer[Tensor, "B T"], Integer[Tensor, "B T"]]:
    """Inputs and labels of blocks ``(B, C + 1)``, none for the tokens of the prompt."""
    labels = text[:, 1:].clone()
    labels[:, : prompt - 1] = IGNORED
    return text[:, :-1], labels


def until_end(
    labels: Integer[Tensor, "B T"], text: Integer[Tensor, "B T+1"], prompt: int, stop: int | Sequence[int] | None
) -> Integer[Tensor, "B T"]:
    """Labels of blocks, none for what follows the first token behind the prompt that ends a text."""
    places = torch.arange(1, text.shape[1], device=text.device)
    return labels.masked_fill(places >= text_lengths(text, prompt, stop)[:, None], IGNORED)


def teacher_text(
    path: str | PathLike[str],
    teacher: nn.Module,
    tokens: Tokens,
    *,
    prompt: int = 32,
    temperature: float = 1.0,
    seed: int = 0,
    at_once: int = 64,
    device: torch.device | str = "cpu",
    precision: str = "float32",
    report: Callable[[int, int], None] | None = None,
) -> Tokens:
    """For each block of a text, one that begins alike and goes on as the teacher writes: sequence-level distillation.

    Written to the file ``path`` once, whole or not at all, with a mark of what made it at its end; if it is there, it is read.

    Args:
        at_once: blocks, as memory allows. Their draws are in this order, so that of another number they are others; what is there is read as it is.
        precision: in which the teacher computes.

    Raises:
        ValueError: if what is there is damaged, or was written by another teacher, after another text or in another way.

    Source: Kim & Rush (2016), with samples in place of the beam's best.
    """
    check_model(teacher, "a teacher")
    check_text(tokens)
    path = Path(path)
    other = () if precision == "float32" else (precision,)
    mark = text_name(checksum(state_of(teacher).items()), text_checksum(tokens), prompt, temperature, seed, *other)
    vocabulary = max(len(tokens.token_bytes), getattr(teacher, "vocabulary", 0))
    if not path.exists():
        generator = torch.Generator(device).manual_seed(seed)
        teacher, done = teacher.to(device), 0
        with atomic_write(path) as part, part.open("wb") as file:
            for inputs, _, index in tokens.batches(at_once):
                with autocast(device, precision):
                    text = written(teacher, inputs.to(device), prompt, temperature, generator)
                file.write(text.cpu().numpy().astype(width(vocabulary)).tobytes())
                done += len(index)
                if report is not None:
                    report(done, len(tokens))
            file.write(bytes.fromhex(mark))
    content = mapped(note_read(path), vocabulary)
    labels, known = content[: len(tokens) * (tokens.context + 1)], content[len(tokens) * (tokens.context + 1) :]
    if known.numpy().tobytes() != bytes.fromhex(mark):
        raise ValueError(
            f"{path} is damaged, or of another teacher or text, or was written in another way: delete it, and it is written anew."
        )
    return Tokens(labels, tokens.context, tokens.token_bytes, stride=tokens.context + 1)


def text_name(teacher_checksum: str, tokens_checksum: str, *how: object) -> str:
    """A file name for what a teacher has written."""
    return hashlib.sha256(repr((teacher_checksum, tokens_checksum, *how)).encode()).hexdigest()[:16]
