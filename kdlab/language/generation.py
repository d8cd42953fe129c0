"""Writing text: token after token, with what was read kept."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdlab.shapes import Bool, Float, Integer

from ..objectives import HeadLogits
from ..objectives.softening import log_softmax
from ..training import evaluation_mode
from ..training.modules import check_model
from ..training.taps import logits_of
from .decoding import Step, stays


@torch.no_grad()
def generate(
    model: nn.Module,
    prompts: Integer[Tensor, "B P"],
    *,
    tokens: int,
    lengths: Integer[Tensor, " B"] | None = None,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    stop: int | Sequence[int] | None = None,
    graphs: bool = True,
) -> Integer[Tensor, "B T"]:
    r"""Go on from prompts, all at once; each prompt is read once, and each new token costs one step of the model.

    The next token is drawn from :math:`\operatorname{softmax}(z/T)`; at ``temperature=0`` it is the likeliest.

    Args:
        model: of ``kdlab.models``; or of ``transformers``, as :class:`~kdlab.huggingface.models.CausalLM`; or one of your own with a
            ``vocabulary``, a ``context``, and ``cache(B)``, which it is called with beside tokens ``(B, T)``, and whose
            ``rewind(lengths)`` forgets what is behind the first ``lengths`` tokens of each row.
        prompts: token numbers, int64 of shape ``(B, P)``, on the model's device; shorter prompts are filled up on the right.
        tokens: how many to write, at most.
        lengths: of the prompts, shape ``(B,)``; None: all have ``P`` tokens.
        generator: what is drawn from, on the model's device.
        stop: a token that ends a text, or several; a row's text ends with the first of them that is written. None: each is a token
            as any other.
        graphs: on CUDA, capture the step of a model of ``kdlab.models`` as a graph, and replay it for each token.

    Returns:
        Prompts and what follows, shape ``(B, P + tokens)``: where a prompt is shorter, its new tokens follow it at once, and what
        is left at the end of the row is zero; :func:`text_lengths` says where that is.

    Raises:
        ValueError: for an empty prompt, lengths that do not fit, or a text longer than the model's context.
        TypeError: for a model that cannot write, or prompts that are no token numbers.
        FloatingPointError: where logits are NaN, or none of a row is finite. A token of logit −∞ is never drawn.

    >>> from kdlab.models import GPT
    >>> generate(GPT(50, width=16, layers=1, heads=1, context=8), torch.tensor([[1, 2]]), tokens=3).shape
    torch.Size([1, 5])
    """
    check_writer(model)
    lengths, stop = check_prompts(prompts, lengths, tokens, temperature), stop_tokens(stop, prompts.device)
    batch, width = prompts.shape
    ended = torch.zeros(batch, dtype=torch.bool, device=prompts.device)
    finite = torch.ones_like(ended)
    rows, at = torch.arange(batch, device=prompts.device), lengths.clone()
    written = torch.cat([blank_after(prompts, lengths), prompts.new_zeros(batch, tokens)], 1)

    def write(logits: Tensor) -> None:
        finite.logical_and_(is_finite(logits))
        following = drawn(logits, temperature, generator)
        if stop is not None:
            following = following.masked_fill(ended, 0)
            ended.logical_or_(one_of(following, stop))
        written[rows, at] = following
        at.add_(1)

    def write_next() -> None:
        write(last_logits(model(written[rows, at - 1][:, None], cache), None))

    with evaluation_mode(model):
        cache = model.cache(batch)
        logits = last_logits(model(written[:, :width], cache), lengths - 1)
        cache.rewind(lengths)
        fits = int(lengths.max()) + tokens <= getattr(model, "context", 0) + 1  # the last is not read
        step = Step(write_next, prompts.device, generator, graphs and fits and stays(cache))
        for number in range(tokens):
            if number == 0:
                write(logits)
            else:
                step()
            if stop is not None and ended.all():
                break
    check_finite(finite.all())
    return written


def stop_tokens(
    stop: int | Sequence[int] | Tensor | None, device: torch.device | str | None = None
) -> Integer[Tensor, " n"] | None:
    """Tokens that end a text, ``(n,)``; once they are that, they stay so.

    Raises:
        TypeError: for what is no token number.
    """
    if stop is None or isinstance(stop, Tensor):
        return stop
    several = tuple(stop) if isinstance(stop, Sequence) and not isinstance(stop, str) else (stop,)
    if not several or not all(
        isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in several
    ):
        advice = f": tokenizer.convert_tokens_to_ids({stop!r})" if isinstance(stop, str) else ""
        raise TypeError(f"stop is the number of a token that ends a text, or several, not {stop!r}{advice}.")
    return torch.tensor(several, device=device)


def one_of(tokens: Integer[Tensor, "*shape"], some: Integer[Tensor, " n"]) -> Bool[Tensor, "*shape"]:
    """Which tokens are among ``some``; unlike ``torch.isin``, it never waits for the device."""
    return (tokens[..., None] == some).any(-1)


def text_lengths(
    text: Integer[Tensor, "B T"], lengths: Integer[Tensor, " B"] | int, stop: int | Sequence[int] | Tensor | None
) -> Integer[Tensor, " B"]:
    """How many tokens of each row ``(B, T)`` are text: up to the first token after ``lengths`` that ends one, with it.

    >>> text_lengths(torch.tensor([[0, 5, 0, 7], [0, 5, 6, 7]]), 1, stop=0)
    tensor([3, 4])
    """
    whole = torch.full((len(text),), text.shape[1], device=text.device)
    if stop is None:
        return whole
    places = torch.arange(text.shape[1], device=text.device)
    start = torch.as_tensor(lengths, device=text.device).expand(len(text))[:, None]
    ends = one_of(text, stop_tokens(stop, text.device)) & (places >= start)
    return torch.where(ends.any(1), ends.long().argmax(1) + 1, whole)


def check_prompts(
    prompts: Integer[Tensor, "B T"], lengths: Integer[Tensor, " B"] | None, tokens: int, temperature: float
) -> Integer[Tensor, " B"]:
    """The prompts' lengths ``(B,)``, for what all that write have to be given."""
    if not isinstance(prompts, Tensor) or prompts.dtype != torch.long or prompts.ndim != 2:
        what = (
            f"{prompts.dtype} of shape {tuple(prompts.shape)}"
            if isinstance(prompts, Tensor)
            else f"{type(prompts).__name__}"
        )
        raise TypeError(f"prompts are token numbers, int64 of shape (batch, length), not {what}.")
    batch, width = prompts.shape
    if not batch or not width:
        raise ValueError(
            "there is at least one prompt, of at least one token; an empty text begins with <|endoftext|>."
        )
    lengths = torch.full((batch,), width) if lengths is None else torch.as_tensor(lengths)
    lengths = lengths.to(prompts.device)
    if lengths.shape != (batch,) or not 1 <= int(lengths.min()) <= int(lengths.max()) <= width:
        raise ValueError(
            f"lengths are one a prompt, from 1 to the {width} tokens that are given, not {lengths.tolist()}."
        )
    if tokens < 0 or not 0 <= temperature < math.inf:
        raise ValueError(
            f"tokens and temperature cannot be negative, nor the temperature infinite: {tokens}, {temperature}."
        )
    return lengths


def check_writer(model: object) -> None:
    """That a model can write: it can be called with a cache of its own."""
    check_model(model)
    if not hasattr(model, "cache") or hasattr(model, "trunk"):
        raise TypeError(
            f"{type(model).__name__} does not write by itself: a model of transformers does as kdlab.huggingface.CausalLM, "
            "and of modules for further tokens their trunk."
        )


def blank_after(tokens: Integer[Tensor, "B T"], lengths: Integer[Tensor, " B"]) -> Integer[Tensor, "B T"]:
    """Zeros behind the first ``lengths`` tokens of each row."""
    return tokens.masked_fill(torch.arange(tokens.shape[1], device=tokens.device) >= lengths[:, None], 0)


def last_logits(output: Any, places: Integer[Tensor, " B"] | None) -> Float[Tensor, "B V"]:
    """Logits ``(B, V)`` at each row's place, or of the last token."""
    logits = logits_of(output)
    rows = torch.arange(logits.shape[0], device=logits.device)
    chosen = logits[:, -1] if places is None else logits[rows, places]
    return chosen.dense() if isinstance(chosen, HeadLogits) else chosen


def draw(
    logits: Float[Tensor, "B V"], temperature: float, generator: torch.Generator | None = None
) -> Integer[Tensor, " B"]:
    """One token a row of logits ``(B, V)``; the likeliest at temperature zero.

    Raises:
        FloatingPointError: where logits are NaN, or none of a row is finite: the model has diverged.
    """
    check_finite(is_finite(logits).all())
    return drawn(logits, temperature, generator)


def drawn(logits: Float[Tensor, "B V"], temperature: float, generator: torch.Generator | None) -> Integer[Tensor, " B"]:
    """What :func:`draw` draws, unchecked, so that nothing waits for the device."""
    if temperature == 0:
        return logits.argmax(-1)
    return one_by(log_softmax(logits, temperature).exp(), generator)


def one_by(p: Float[Tensor, "*batch V"], generator: torch.Generator | None) -> Integer[Tensor, "*batch"]:
    r"""One token by probabilities that need not sum to one: what ``torch.multinomial`` draws, without its look at what it is given.

    :math:`\arg\max_x p_x / E_x` with exponential :math:`E_x` is x with a probability in proportion to :math:`p_x`.
    """
    return (p / torch.empty_like(p).exponential_(generator=generator)).argmax(-1)


def is_finite(logits: Float[Tensor, "*batch V"]) -> Bool[Tensor, "*batch"]:
    """Where there is something to draw from; of −∞, a token that is never drawn, there may be some."""
    return torch.isfinite(logits.amax(-1))


def check_finite(finite: bool | Tensor, whose: str = "the model") -> None:
    """That there was something to draw from everywhere."""
    if not finite:
        raise FloatingPointError(f"logits of {whose} are NaN or infinite: it has diverged.")
