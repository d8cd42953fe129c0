"""Writing text: token after token, with what was read kept."""

import torch
from torch import Tensor, nn

from ..objectives import HeadLogits, soften
from ..training import evaluation_mode
from ..training.taps import logits_of


@torch.no_grad()
def generate(
    model: nn.Module,
    prompts: Tensor,
    *,
    tokens: int,
    lengths: Tensor | None = None,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Go on from prompts, all at once; each prompt is read once, and each new token costs one step of the model.

    The next token is drawn from :math:`\operatorname{softmax}(z/T)`; at ``temperature=0`` it is the likeliest.

    Args:
        model: of ``kdlab.models``, or a :class:`~kdlab.language.huggingface.CausalLM`: called with tokens ``(B, T)`` and its ``cache(B)``.
        prompts: token numbers, shape ``(B, P)``, on the model's device; shorter prompts are filled up on the right.
        tokens: how many to write.
        lengths: of the prompts, shape ``(B,)``; None: all have ``P`` tokens.
        generator: what is drawn from, on the model's device.

    Returns:
        Prompts and what follows, shape ``(B, P + tokens)``: where a prompt is shorter, its new tokens follow it at once, and what
        is left at the end of the row is zero.

    Raises:
        ValueError: for an empty prompt, lengths that do not fit, or a text longer than the model's context.

    >>> from kdlab.models import GPT
    >>> generate(GPT(50, width=16, layers=1, heads=1, context=8), torch.tensor([[1, 2]]), tokens=3).shape
    torch.Size([1, 5])
    """
    lengths = check_prompts(prompts, lengths, tokens, temperature)
    batch, width = prompts.shape
    rows = torch.arange(batch, device=prompts.device)
    written = torch.cat([blank_after(prompts, lengths), prompts.new_zeros(batch, tokens)], 1)
    with evaluation_mode(model):
        cache = model.cache(batch)
        logits = last_logits(model(written[:, :width], cache), lengths - 1)
        cache.rewind(lengths)
        for number in range(tokens):
            following = draw(logits, temperature, generator)
            written[rows, lengths + number] = following
            if number < tokens - 1:
                logits = last_logits(model(following[:, None], cache), None)
    return written


def check_prompts(prompts: Tensor, lengths: Tensor | None, tokens: int, temperature: float) -> Tensor:
    """The prompts' lengths ``(B,)``, for what all that write have to be given."""
    batch, width = prompts.shape
    lengths = (
        torch.full((batch,), width, device=prompts.device) if lengths is None else lengths.to(prompts.device)
    )
    if not width or lengths.shape != (batch,) or not 1 <= int(lengths.min()) <= int(lengths.max()) <= width:
        raise ValueError(
            f"each prompt has at least one token, and at most the {width} that are given; an empty text begins with <|endoftext|>."
        )
    if tokens < 0 or temperature < 0:
        raise ValueError(f"tokens and temperature cannot be negative: {tokens}, {temperature}.")
    return lengths


def blank_after(tokens: Tensor, lengths: Tensor) -> Tensor:
    """Zeros behind the first ``lengths`` tokens of each row."""
    return tokens.masked_fill(torch.arange(tokens.shape[1], device=tokens.device) >= lengths[:, None], 0)


def last_logits(output, places: Tensor | None) -> Tensor:
    """Logits ``(B, V)`` at each row's place, or of the last token."""
    logits = logits_of(output)
    rows = torch.arange(logits.shape[0], device=logits.device)
    chosen = logits[:, -1] if places is None else logits[rows, places]
    return chosen.dense() if isinstance(chosen, HeadLogits) else chosen


def draw(logits: Tensor, temperature: float, generator: torch.Generator | None = None) -> Tensor:
    """One token a row of logits ``(B, V)``; the likeliest at temperature zero.

    Raises:
        FloatingPointError: where logits are NaN or infinite: the model has diverged.
    """
    check_finite(logits)
    if temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial(soften(logits, temperature), 1, generator=generator).squeeze(-1)


def check_finite(logits: Tensor) -> None:
    if not torch.isfinite(logits).all():  # on CUDA, drawing from these would end the process
        raise FloatingPointError("the logits have entries that are NaN or infinite: the model has diverged.")
