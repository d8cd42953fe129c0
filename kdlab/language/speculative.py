r"""Speculative decoding: a draft proposes, a verifier believes it or not, and the text is the verifier's.

In each round the draft writes :math:`\gamma` tokens, and the verifier looks at all of them in one call. A token :math:`x` that was
drawn from the draft's :math:`q` is accepted with probability :math:`\min(1, p(x)/q(x))`, the others only after it. After the first
that is not accepted, one is drawn from :math:`\max(p - q, 0)`, normalised; if all are, one more from :math:`p`. What is written
then has the distribution :math:`p`, whatever :math:`q` is, and a token is accepted with probability

.. math:: \alpha = \sum_x \min(p(x), q(x)) = 1 - \mathrm{TV}(p, q)

Were that the same everywhere, a call of the verifier would bring :math:`(1 - \alpha^{\gamma + 1}) / (1 - \alpha)` tokens.

Source: Leviathan, Kalman & Matias (2023), algorithm 1, eq. 1 and corollary 3.6; Chen et al. (2023), algorithm 2.
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.shapes import Float, Integer, with_shapes

from ..models.multi_token import MultiToken, as_fused
from ..objectives import HeadLogits
from ..objectives.softening import log_softmax
from ..training import evaluation_mode
from ..training.measures import all_logits
from .decoding import Step, stays
from .generation import (
    blank_after,
    check_finite,
    check_prompts,
    check_writer,
    draw,
    generate,
    is_finite,
    last_logits,
    one_by,
    stop_tokens,
    text_lengths,
)


@dataclass(frozen=True)
class Speculation:
    """A text that was written speculatively, and what was counted meanwhile, for each row.

    Attributes:
        text: prompts and what follows, as :func:`~kdlab.language.generation.generate` returns it.
        calls: of the verifier after that on the prompt, which brings the first token, int64 of shape ``(B,)``.
        tested: draft tokens that it came to, int64: those that it accepted, and the first of a round that it did not.
        accepted: how many of them it accepted, int64. Of a row's last round all count, those too that lie beyond the text's end.
        expected: how many of them were to be expected, the sum of 1 − TV(p, q).
    """

    __repr__ = with_shapes

    text: Integer[Tensor, "B T"]
    calls: Integer[Tensor, " B"]
    tested: Integer[Tensor, " B"]
    accepted: Integer[Tensor, " B"]
    expected: Float[Tensor, " B"]


def tokens_per_call(acceptance: float, draft_length: int) -> float:
    r"""Tokens that a call of the verifier brings, were each accepted with one probability whatever came before.

    .. math:: \frac{1 - \alpha^{\gamma + 1}}{1 - \alpha}

    Raises:
        ValueError: for an acceptance that is no probability, or a negative length.

    Source: Leviathan et al. (2023), eq. 1.

    >>> tokens_per_call(0.5, 2), tokens_per_call(1.0, 2)
    (1.75, 3.0)
    """
    if not 0 <= acceptance <= 1 or draft_length < 0:
        raise ValueError(
            f"acceptance is a probability, and a draft length not negative: not {acceptance} and {draft_length}."
        )
    return float(sum(acceptance**k for k in range(draft_length + 1)))


def speed_up(acceptance: float, draft_length: int, cost: float) -> float:
    r"""How many times faster than plain decoding, if a call of the draft takes ``cost`` of the verifier's time.

    .. math:: \frac{1 - \alpha^{\gamma + 1}}{(1 - \alpha)(\gamma c + 1)}

    Raises:
        ValueError: as :func:`tokens_per_call`, or for a negative cost.

    Source: Leviathan et al. (2023), theorem 3.8. It supposes that the verifier looks at γ + 1 tokens in the time of one.
    """
    if cost < 0:
        raise ValueError(f"a cost cannot be negative: {cost}.")
    return tokens_per_call(acceptance, draft_length) / (draft_length * cost + 1)


@torch.no_grad()
def speculate(
    verifier: nn.Module,
    draft: nn.Module,
    prompts: Integer[Tensor, "B P"],
    *,
    tokens: int,
    draft_length: int | None = None,
    stop_below: float = 0.0,
    lengths: Integer[Tensor, " B"] | None = None,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    stop: int | Sequence[int] | None = None,
    graphs: bool = True,
) -> Speculation:
    r"""Go on from prompts as :func:`~kdlab.language.generation.generate` would with the verifier alone, in fewer of its calls.

    At ``temperature=0`` the text is that of ``generate``, but for what rounding decides where two logits are nearly equal;
    else it has the same distribution.

    Args:
        verifier, draft: of one vocabulary, as for ``generate``; or the draft is a
            :class:`~kdlab.models.multi_token.MultiToken`, and the verifier its ``trunk``.
        draft_length: :math:`\gamma`, how many tokens a round proposes, at most; None is 4, or as many as there are modules if
            these are fewer. At the end of a context it is what the longest row leaves room for, for all rows.
        stop_below: a row proposes no more in a round after a token to which the draft itself gave less than this; at
            ``temperature=0``, less at temperature one.
        prompts, tokens, lengths, generator, stop: as for ``generate``.
        temperature: of both models.
        graphs: on CUDA, capture a round as a graph and replay it; where both models are of ``kdlab.models``, and each round proposes
            the same number of tokens (``stop_below=0``).

    Raises:
        ValueError: as ``generate``, of the context of either model; for models of different vocabularies, or no token to propose.
        TypeError, FloatingPointError: as ``generate``.

    >>> from kdlab.models import GPT
    >>> model = GPT(50, width=16, layers=1, heads=1, context=16)
    >>> speculate(model, model, torch.tensor([[1, 2]]), tokens=7, draft_length=2).calls  # its own draft is always believed
    tensor([2])
    """
    own = isinstance(draft, MultiToken)
    for model in (verifier,) if own else (verifier, draft):
        check_writer(model)
    if verifier.vocabulary != draft.vocabulary:
        raise ValueError(
            f"a draft has the verifier's {verifier.vocabulary} tokens; this one has a vocabulary of {draft.vocabulary}. Where those beyond "
            f"{(n := min(verifier.vocabulary, draft.vocabulary))} only fill the larger up, model.resize_token_embeddings({n}) of transformers takes them off."
        )
    if own and verifier is not draft.trunk:
        raise ValueError(
            "modules propose for the model that they stand on: the verifier is draft.trunk itself, not a copy."
        )
    if draft_length is None:
        draft_length = min(4, draft.depth) if own else 4
    if own and draft_length > draft.depth:
        raise ValueError(f"{draft.depth} modules propose at most {draft.depth} tokens, not {draft_length}.")
    if not isinstance(draft_length, int) or draft_length < 1:
        raise ValueError(f"a draft proposes a whole number of tokens, at least one, not {draft_length}.")
    if not 0 <= stop_below <= 1:
        raise ValueError(f"stop_below is a probability, not {stop_below}.")
    lengths, stop = check_prompts(prompts, lengths, tokens, temperature), stop_tokens(stop, prompts.device)
    batch, width = prompts.shape
    for name, model in (("verifier", verifier), ("draft", draft)):
        if width + tokens > model.context + 1:  # the last is not read
            raise ValueError(
                f"a prompt of {width} tokens and {tokens} to write are more than the {name}'s context of {model.context}."
            )
    room = min(verifier.context, draft.context)
    begin, end, rows = lengths, lengths + tokens, torch.arange(batch, device=prompts.device)
    written = F.pad(blank_after(prompts, lengths), (0, tokens + draft_length + 1))
    counts = torch.zeros(4, batch, device=prompts.device)
    finite = torch.ones(2, dtype=torch.bool, device=prompts.device)
    states = as_fused(verifier) if own else nullcontext()  # modules look at them

    def one_round(draft_length: int) -> None:
        open_rows = lengths < end
        at = lengths.clamp(max=room - draft_length)  # of rows that have ended, a place where there is room
        proposed, q, count, sound = _propose(proposer, written, at, draft_length, stop_below, temperature, generator)
        cache.rewind(at - 1)
        last = written[rows, at - 1]
        output = verifier(torch.cat([last[:, None], proposed], 1), cache)
        proposer.see(output, at - 1)
        logits = all_logits(output)
        finite.logical_and_(torch.stack([is_finite(logits).all(), sound.all()]))
        p = probabilities(logits, temperature)
        accepted, following, tested, expected = _believe(p, q, proposed, count, generator)
        places = at[:, None] + torch.arange(proposed.shape[1], device=prompts.device)
        written.scatter_(1, places, proposed.where(open_rows[:, None], written.gather(1, places)))
        written[rows, at + accepted] = following.where(open_rows, written[rows, at + accepted])
        counts.add_(open_rows * torch.stack([torch.ones_like(expected), tested, accepted, expected]))
        lengths.copy_((lengths + accepted + 1).minimum(end))
        shorten()

    def shorten() -> None:
        """Texts end where what is believed of them says so."""
        if stop is not None:
            end.copy_(end.minimum(_ended(written, begin, lengths, stop)))
            lengths.copy_(lengths.minimum(end))

    with evaluation_mode(verifier), evaluation_mode(draft), states:
        cache = verifier.cache(batch)
        output = verifier(written[:, :width], cache)
        written[rows, lengths] = draw(last_logits(output, lengths - 1), temperature, generator)
        graphs = graphs and stays(cache) and not stop_below and prompts.device.type == "cuda"
        read = written[:, :width]
        proposer = OwnModules(draft, read, exact=not graphs) if own else OtherModel(draft, read)
        graphs = stays(proposer.cache) and graphs
        proposer.see(output, torch.zeros_like(lengths))
        lengths = (lengths + 1).minimum(end)
        shorten()
        rounds: dict[int, Step] = {}
        while True:
            going, *sound = torch.stack([(lengths < end).any(), *finite]).tolist()
            for whose, fine in zip(("the verifier", "the draft"), sound, strict=True):
                check_finite(fine, whose)
            if not going:
                break
            # never more again: a draft has not read what was written without it
            if width + tokens + draft_length > room:
                draft_length = min(draft_length, room - int(lengths[lengths < end].max()))
            if draft_length not in rounds:
                rounds[draft_length] = Step(partial(one_round, draft_length), prompts.device, generator, graphs)
            rounds[draft_length]()
    *whole, expected = counts
    return Speculation(blank_after(written[:, : width + tokens], end), *(each.long() for each in whole), expected)


def _ended(written: Tensor, begin: Tensor, lengths: Tensor, stop) -> Tensor:
    """Where each row's text ends, if it does within its first ``lengths`` tokens."""
    ends = text_lengths(written, begin, stop)
    return torch.where(ends <= lengths, ends, written.shape[1])


@dataclass(frozen=True)
class Drafting:
    """How a draft is tried: it goes on from prompts, one at a time, as its verifier would.

    Attributes:
        prompts: how many.
        prompt, tokens: how long they are, at most, and what is written after them.
        rounds: the ways to propose, each a ``draft_length`` and a ``stop_below``.
        temperature: of both models.
    """

    prompts: int = 200
    prompt: int = 32
    tokens: int = 32
    rounds: tuple[tuple[int, float], ...] = ((2, 0.0), (4, 0.0), (8, 0.0), (8, 0.3))
    temperature: float = 1.0


def try_draft(
    verifier: nn.Module,
    draft: nn.Module,
    prompts: Iterable[Integer[Tensor, "1 P"]],
    drafting: Drafting,
    *,
    seed: int = 0,
    stop: int | Sequence[int] | None = None,
) -> dict:
    """What :func:`speculate` counts and takes with this draft, prompt by prompt, and what plain decoding takes beside it.

    Args:
        prompts: each ``(1, P)``, on the models' device; all that there are are used, each up to ``drafting.prompt`` of its tokens.
        stop: as for ``generate``: what is written behind the end of an answer says nothing of the draft.

    Returns:
        ``plain_seconds``, one a prompt; and of each of ``drafting.rounds`` the columns ``calls``, ``tested``, ``accepted``,
        ``expected`` and ``seconds``. The time of reading the prompt is in all of them. Each call brings what it accepted, and one token more.

    Raises:
        TypeError, ValueError: as :func:`speculate`.
    """
    how = {"tokens": drafting.tokens, "temperature": drafting.temperature, "stop": stop}

    def timed(write, *models, **options):
        begun = time.perf_counter()
        found = write(*models, row[:, : drafting.prompt], generator=generator, **how, **options)
        getattr(found, "text", found).cpu()  # until it is there
        return found, round(time.perf_counter() - begun, 5)

    def tried():
        """Plain decoding and all rounds, one after another, each with its time."""
        options = [{"draft_length": length, "stop_below": stop} for length, stop in drafting.rounds]
        return timed(generate, verifier)[1], [timed(speculate, verifier, draft, **o) for o in options]

    plain, rounds = [], [defaultdict(list) for _ in drafting.rounds]
    for row in prompts:
        check_prompts(row, None, drafting.tokens, drafting.temperature)
        generator = torch.Generator(row.device).manual_seed(seed + len(plain))
        if not plain:
            tried()  # to warm up
        seconds, found = tried()
        plain.append(seconds)
        for columns, (speculation, seconds) in zip(rounds, found, strict=True):
            columns["seconds"].append(seconds)
            columns["expected"].append(round(speculation.expected.item(), 3))
            for name in ("calls", "tested", "accepted"):
                columns[name].append(int(getattr(speculation, name).item()))
    return {
        "plain_seconds": plain,
        "rounds": [
            {"draft_length": length, "stop_below": stop, **columns}
            for (length, stop), columns in zip(drafting.rounds, rounds, strict=True)
        ],
    }


def probabilities(logits: Float[Tensor, "*batch V"], temperature: float) -> Float[Tensor, "*batch V"]:
    """What tokens are drawn from; at temperature zero, all of it on the likeliest."""
    if temperature == 0:
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).float()
    return log_softmax(logits, temperature).exp().float()


class OtherModel:
    """Proposes what another model would write."""

    def __init__(self, model: nn.Module, prompts: Integer[Tensor, "B T"]) -> None:
        self.model, self.cache = model, model.cache(len(prompts))
        model(prompts, self.cache)

    def see(self, output: Any, start: Integer[Tensor, " B"]) -> None:
        """It does not look at what the verifier says."""

    def first(self, written: Integer[Tensor, "B T"], lengths: Integer[Tensor, " B"]) -> Float[Tensor, "B V"]:
        """Logits ``(B, V)`` of what follows the first ``lengths`` tokens, of which it has not yet read the last one or two."""
        self.cache.rewind(lengths - 2)
        two = written.gather(1, lengths[:, None] + torch.arange(-2, 0, device=written.device))
        return last_logits(self.model(two, self.cache), None)

    def after(self, tokens: Integer[Tensor, "B 1"]) -> Float[Tensor, "B V"]:
        """And of what follows the tokens ``(B, 1)`` that were drawn from the last of these."""
        return last_logits(self.model(tokens, self.cache), None)


class OwnModules:
    """Proposes what modules on the verifier say of further tokens, from its own states.

    Of n tokens the verifier has read n − 1. Module k at place n − 2 reads token n − 2 + k, and says what follows it.

    Args:
        exact: whether modules in a row look again at no more places than they need to, for which a device is waited for; else at as many
            as can be new where each round proposes the same number of tokens.
    """

    def __init__(self, model: MultiToken, prompts: Integer[Tensor, "B T"], *, exact: bool = True) -> None:
        batch, weight = len(prompts), model.embedding.weight
        self.model, self.cache = model, model.cache(batch)
        shape = (model.depth + 1, batch, model.context, weight.shape[1])
        self.states = weight.new_zeros(shape)  # h⁰, which is the verifier's, h¹, h² …
        self.text = prompts.new_zeros(batch, model.context + model.depth)
        # At how many places each module need not look again.
        self.done = prompts.new_zeros(model.depth + 1, batch)
        self.rows = torch.arange(batch, device=prompts.device)
        self.exact, self.new = exact, 0

    def see(self, output: HeadLogits, start: Integer[Tensor, " B"]) -> None:
        """Take the verifier's states of the tokens from ``start`` on, ``(B,)``."""
        self._put(0, output.hidden, start[:, None] + torch.arange(output.shape[1], device=start.device))
        self.new = output.shape[1] - 1  # at most so many tokens were proposed and believed

    def first(self, written: Integer[Tensor, "B T"], lengths: Integer[Tensor, " B"]) -> Float[Tensor, "B V"]:
        width = min(written.shape[1], self.text.shape[1])
        self.text[:, :width] = written[:, :width]
        self.at, self.k = lengths - 2, 0
        return self._next()

    def after(self, tokens: Integer[Tensor, "B 1"]) -> Float[Tensor, "B V"]:
        self.text[self.rows, self.at + 1 + self.k] = tokens.squeeze(1)
        return self._next()

    def _next(self) -> Tensor:
        self.k = k = self.k + 1
        if self.model.in_a_row:
            # Where the last round's tokens were only proposed, and where there are new ones. Of rows that need less, what is
            # put behind their place is put there again before it is read.
            start = self.done[k]
            new = int((self.at + 1 - start).max()) if self.exact else self.new + k
            places = start[:, None] + torch.arange(new, device=start.device)
            places = places.clamp(max=self.model.context - 1)
            trunk, tokens = self.model.trunk, self.text.gather(1, places + k)
            mask = torch.arange(self.model.context, device=start.device) <= places[..., None]
            remembered = (self.cache, k - 1, places, mask.unsqueeze(1))
            state = self.model.step(
                k, self._get(k - 1, places), tokens, trunk.rotation[places].unsqueeze(1), remembered
            )
            self._put(k, state, places)
            self.done[k] = (self.at + 2 - k).clamp(min=0)
            state = self.states[k, self.rows, self.at]
        else:
            state = self.model.step(k, self.states[0, self.rows, self.at])
        return self.model.logits(k, state)

    def _get(self, k, places):
        return self.states[k].gather(1, places[..., None].expand(-1, -1, self.states.shape[-1]))

    def _put(self, k, states, places):
        self.states[k].scatter_(1, places[..., None].expand_as(states), states.to(self.states.dtype))


def _propose(proposer, written, lengths, draft_length, stop_below, temperature, generator):
    """Tokens ``(B, γ)``, the distributions that they were drawn from, ``(B, γ, V)``; of each row how many it stands by, and whether these
    are of finite logits, ``(B,)``.
    """
    standing = sound = torch.ones(len(written), dtype=torch.bool, device=written.device)
    tokens, distributions, count = [], [], standing.long() * 0
    if draft_length == 0:
        none = written.new_zeros(len(written), 0, proposer.model.vocabulary, dtype=torch.float)
        return written[:, :0], none, count, sound
    logits = proposer.first(written, lengths)
    while True:
        q, sound = probabilities(logits, temperature), sound & is_finite(logits)
        distributions.append(q)
        tokens.append(one_by(q, generator)[:, None])
        count = count + standing.long()
        if stop_below:  # at temperature zero, whose q is sure of everything, at temperature one
            sure = q if temperature else probabilities(logits, 1.0)
            standing = standing & (sure.gather(1, tokens[-1]).squeeze(1) >= stop_below)
        if len(tokens) == draft_length or (stop_below and not standing.any()):
            return torch.cat(tokens, 1), torch.stack(distributions, 1), count, sound
        logits = proposer.after(tokens[-1])


def _believe(p, q, proposed, count, generator):
    """How many tokens of each row are accepted, which follows them, how many were tested, and how many were to be expected.

    ``p`` has one distribution more than ``q``: that after the last token.
    """
    places = torch.arange(proposed.shape[1], device=p.device)
    p_of, q_of = (each[:, : len(places)].gather(2, proposed[..., None]).squeeze(2) for each in (p, q))
    drawn = torch.rand(q_of.shape, generator=generator, device=p.device)
    accepted = ((drawn * q_of < p_of) & (places < count[:, None])).long().cumprod(1).sum(1)
    refused = accepted < count
    tested = accepted + refused
    expected = (torch.minimum(p[:, :-1], q).sum(2) * (places < tested[:, None])).sum(1)
    rows = torch.arange(len(p), device=p.device)
    then = p[rows, accepted]
    left = (then - F.pad(q, (0, 0, 0, 1))[rows, accepted]).clamp(min=0)
    some = refused & (left.sum(1) > 0)  # nothing is left if p is q to the last bit
    left = torch.where(some[:, None], left, then)
    return accepted, one_by(left, generator), tested, expected
