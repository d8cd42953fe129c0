"""On-policy distillation from prompts: the student answers, and learns from what the teacher says of its answers."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..language import generate
from ..language.generation import stop_tokens, text_lengths
from ..objectives.checks import IGNORED
from ..training import evaluation_mode
from .models import CausalLM, unwrapped


@dataclass(frozen=True)
class OwnAnswers:
    r"""What a batch of prompts becomes: the prompts, and what the student writes after each.

    Prompts are of any length each, padded on either side. Of examples that have an answer (``labels``, −100 on the prompt), the prompt is what
    comes before the first label, and the student's own answer takes that answer's place. Labels of the new batch are the student's tokens, up to
    the first that ends a text, with it; nothing is learned from the prompts' own, and no gradient runs through the writing. ::

        KD(student, teacher=teacher, objective=ReverseKL(), rewrite=OwnAnswers(64), args=args, train_dataset=prompts).train()

    or, in a loop of one's own, ``batch = OwnAnswers(64)(student, batch)``.

    Attributes:
        tokens: how many to write, at most.
        temperature: of the writing; 0: always the likeliest.
        probability: with which a batch becomes the student's own; else it is left as it is. GKD's :math:`\lambda`.
        stop: a token that ends a text, or several; None: those of the student's generation configuration, if it has any.

    Source: Agarwal et al. (2024), GKD, algorithm 1.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> shape = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> student = LlamaForCausalLM(LlamaConfig(**shape))
    >>> prompts = {"input_ids": torch.tensor([[5, 6, 7], [0, 0, 8]]), "attention_mask": torch.tensor([[1, 1, 1], [0, 0, 1]])}
    >>> {name: tuple(x.shape) for name, x in OwnAnswers(4)(student, prompts).items()}
    {'input_ids': (2, 7), 'attention_mask': (2, 7), 'labels': (2, 7)}
    """

    tokens: int
    temperature: float = 1.0
    probability: float = 1.0
    stop: int | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        stop_tokens(self.stop)
        if self.tokens < 1 or self.temperature < 0 or not 0 <= self.probability <= 1:
            raise ValueError(
                "own answers are of at least one token, at a temperature that is not negative, with a probability from 0 to 1."
            )

    def __call__(
        self, student: nn.Module, batch: Mapping[str, Tensor], generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """``input_ids``, ``attention_mask`` and ``labels``, ``(B, P + tokens)`` and padded on the right; what has one value an example, such as ``index``, stays.

        Args:
            student: of ``transformers``, with adapters of ``peft`` or without, not sharded; or a :class:`~kdlab.huggingface.models.CausalLM`.
            batch: ``input_ids`` and ``attention_mask``, ``(B, P)``, the latter where prompts are padded.
            generator: what is drawn from, on the student's device.

        Raises:
            TypeError: for what is no batch, or no model.
            ValueError: for an example without a prompt, examples that were packed into one row, or what is longer than the student's context.
        """
        _check_batch(batch)
        device = batch["input_ids"].device
        if self.probability < 1 and torch.rand((), generator=generator, device=device) >= self.probability:
            return dict(batch)
        writer = student if isinstance(student, CausalLM) else CausalLM(student)
        prompts, lengths = _prompts(batch)
        if not int(lengths.min()):
            raise ValueError(
                "an example has no prompt: its first token is a label already, or all is padding. Labels are −100 on a prompt; of prompts alone there are "
                "none, as DataCollatorWithPadding leaves them."
            )
        stop = self.stop if self.stop is not None else _ends_of(writer)
        with torch.no_grad(), evaluation_mode(writer):
            text = generate(
                writer, prompts, tokens=self.tokens, lengths=lengths, temperature=self.temperature,
                generator=generator, stop=stop,
            )  # fmt: skip
        places = torch.arange(text.shape[1], device=device)
        ends = (lengths + self.tokens).minimum(text_lengths(text, lengths, stop))[:, None]
        own = (places >= lengths[:, None]) & (places < ends)
        alone = {k: x for k, x in batch.items() if isinstance(x, Tensor) and x.ndim == 1}
        return alone | {
            "input_ids": text,
            "attention_mask": (places < ends).long(),
            "labels": text.masked_fill(~own, IGNORED),
        }


def _check_batch(batch: object) -> None:
    """That prompts are there as a tokeniser gives them."""
    tokens = batch.get("input_ids") if isinstance(batch, Mapping) else None
    if not isinstance(tokens, Tensor) or tokens.ndim != 2 or tokens.is_floating_point():
        raise TypeError(
            "a batch of prompts has input_ids, token numbers of shape (B, P): tokenizer(prompts, return_tensors='pt', padding=True); of one "
            "prompt, {'input_ids': torch.tensor([ids])}."
        )
    places = batch.get("position_ids")
    if isinstance(places, Tensor) and "attention_mask" not in batch and bool((places.diff(dim=-1) < 0).any()):
        raise ValueError(
            "several examples are packed into one row, of which the student would go on from the first alone: packing=False, padding_free=False."
        )


def _prompts(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Prompts ``(B, P)``, moved to the left, and how long they are, ``(B,)``."""
    tokens = batch["input_ids"]
    read = batch["attention_mask"].bool() if "attention_mask" in batch else torch.ones_like(tokens, dtype=torch.bool)
    if batch.get("labels") is not None:
        read = read & ((batch["labels"] != IGNORED).long().cumsum(1) == 0)
    order = torch.argsort((~read).long(), dim=1, stable=True)
    lengths = read.sum(1)
    return tokens.gather(1, order)[:, : int(lengths.max())], lengths


def _ends_of(writer: CausalLM) -> list[int] | None:
    """The tokens that end a text, by the generation configuration."""
    configuration = getattr(unwrapped(writer.model), "generation_config", None)
    ends = getattr(configuration, "eos_token_id", None)
    return [ends] if isinstance(ends, int) else ends
