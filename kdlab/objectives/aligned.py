r"""Two tokenisers: what a teacher says of the same text, cut into tokens of its own.

Student and teacher have read the same text wherever a token of each ends at the same byte. There, both say how the text goes on, and
only there can they be compared: from one such place to the next lies a **span**, of some tokens of each. What they say is about tokens
of two vocabularies, and becomes comparable when classes are merged until both have the same ones, which never adds to a divergence.

Bias of all of them: a token says of the text that it goes on with these bytes *and* that a token ends behind them. Where the teacher has
a longer token of the same beginning, the same bytes are two events for it, and one for the student.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from kdlab.shapes import Bool, Float, Integer, with_shapes

from .checks import _inspectable, check_logits
from .softening import full_precision, log_softmax
from .types import Logits


@dataclass(frozen=True, eq=False)
class AlignedLogits:
    r"""A teacher's logits, over a vocabulary of its own, at the student's positions, as :class:`~kdlab.language.two_tokenisers.Retokenised` gives them.

    Position :math:`t` is what follows the student's tokens :math:`0 \dots t`. Leading axes can be indexed as those of a tensor.

    Args:
        values: the teacher's logits, shape ``(B, T, M)``; anything where it has not read the same text.
        read: where both have read the same text, bool, shape ``(B, T)``.
        lengths: of how many of the student's tokens the span is that begins there, int64, shape ``(B, T)``; 0 where none does.
        first, later: the teacher's log-probability of the first of its own tokens of that span, and of all others together, ``(B, T)``.
    """

    __repr__ = with_shapes

    values: Float[Tensor, "B T M"]
    read: Bool[Tensor, "B T"]
    lengths: Integer[Tensor, "B T"]
    first: Float[Tensor, "B T"]
    later: Float[Tensor, "B T"]

    @property
    def shape(self) -> torch.Size:
        return self.values.shape

    def detach(self) -> "AlignedLogits":
        return replace(self, **{f.name: getattr(self, f.name).detach() for f in fields(self)})

    def __getitem__(self, index: Any) -> "AlignedLogits":
        return replace(self, **{f.name: getattr(self, f.name)[index] for f in fields(self)})


def merge_vocabulary(logits: Logits, groups: Integer[Tensor, " n"], number: int) -> Float[Tensor, "*batch groups"]:
    r"""Logits over groups of tokens: the probability of a group is the sum of its tokens'.

    .. math:: z_g = \log \sum_{i \in g} e^{z_i}, \qquad
        D_{\mathrm{KL}}(p_G\,\|\,q_G) \le D_{\mathrm{KL}}(p\,\|\,q) \quad (T = 1)

    by the log-sum inequality, with equality where all tokens of a group have the same ratio :math:`p_i / q_i`.

    Args:
        logits: shape ``(..., V)``.
        groups: which group each token is in, from 0, shape ``(n,)``. Of a vocabulary that was padded to more than :math:`n`, the others
            are in the last.
        number: of groups.

    Returns:
        shape ``(..., number)``; float32 for half precision, and −∞ for a group without tokens.

    Raises:
        ValueError: for more groups than tokens, or numbers out of range.

    >>> z = torch.log(torch.tensor([0.5, 0.25, 0.125, 0.125]))
    >>> merge_vocabulary(z, torch.tensor([0, 1, 1]), 3).softmax(-1)
    tensor([0.5000, 0.3750, 0.1250])
    """
    check_logits("logits", logits)
    classes = logits.shape[-1]
    if groups.is_floating_point() or len(groups) > classes:
        raise ValueError(f"groups of shape {tuple(groups.shape)} and {groups.dtype} do not number {classes} logits.")
    if _inspectable(groups) and not 0 <= int(groups.min()) <= int(groups.max()) < number:
        raise ValueError(
            f"groups from {int(groups.min())} to {int(groups.max())} are not {number} groups, from 0 to {number - 1}."
        )
    padding = groups.new_full((classes - len(groups),), number - 1)
    index = torch.cat([groups, padding]).to(logits.device).expand(logits.shape)
    logits = full_precision(logits)
    none = logits.new_full((*logits.shape[:-1], number), -torch.inf)
    highest = none.scatter_reduce(-1, index, logits.detach(), "amax")
    highest = highest.where(highest.isfinite(), 0.0)
    total = torch.zeros_like(none).scatter_add(-1, index, (logits - highest.gather(-1, index)).exp())
    there = total != 0  # NaN, too, which is no group without tokens
    return torch.where(there, total.where(there, 1.0).log() + highest, -torch.inf)


def sorted_distance(student: Float[Tensor, "*batch N"], teacher: Float[Tensor, "*batch M"]) -> Float[Tensor, "*batch"]:
    r"""How far apart two lists of probabilities are, each sorted: :math:`\sum_i |p_{(i)} - q_{(i)}|`, the shorter filled with zeros.

    It is the least of :math:`\sum |p_i - q_{\pi(i)}|` over all ways :math:`\pi` of matching tokens of the one with tokens of the other.

    Args:
        student, teacher: probabilities, of vocabularies of any size.

    Source: Boizard et al. (2024), ULD.

    >>> sorted_distance(torch.tensor([0.25, 0.75]), torch.tensor([0.5, 0.25, 0.25]))
    tensor(0.5000)
    """
    widest = max(student.shape[-1], teacher.shape[-1])
    student, teacher = (
        torch.nn.functional.pad(x.sort(-1, descending=True).values, (0, widest - x.shape[-1]))
        for x in (student, teacher)
    )
    return (student - teacher).abs().sum(-1)


def span_log_probabilities(
    log_q: Float[Tensor, "B T"], lengths: Integer[Tensor, "B T"], counts: Bool[Tensor, "B T"]
) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
    r""":math:`\sum_{k<n_t} \log q(y_{t+k} \mid y_{<t+k})` of the span of :math:`n_t` tokens that begins at each position, and where there is one of which
    every token counts; zero elsewhere.

    Args:
        log_q: the log-probability of the token that comes, at each position.
        lengths: :math:`n_t`; 0 where no span begins.
        counts: which tokens count.
    """
    before, counted = (
        torch.nn.functional.pad(x.cumsum(1), (1, 0)) for x in (torch.where(counts, log_q, 0.0).double(), counts.long())
    )
    start = torch.arange(log_q.shape[1], device=log_q.device).expand_as(lengths)
    end = (start + lengths).clamp(max=log_q.shape[1])
    whole = (lengths > 0) & (counted.gather(1, end) - counted.gather(1, start) == lengths)
    return torch.where(whole, before.gather(1, end) - before.gather(1, start), 0.0).to(log_q.dtype), whole


def binary_divergence(log_p: Float[Tensor, "*some"], log_q: Float[Tensor, "*some"]) -> Float[Tensor, "*some"]:
    r""":math:`P \log\frac{P}{Q} + (1 - P) \log\frac{1 - P}{1 - Q}` from logarithms: the KL of whether an event happens.

    >>> binary_divergence(torch.tensor(0.5).log(), torch.tensor(0.25).log())
    tensor(0.1438)
    """
    edge = torch.finfo(log_q.dtype).eps
    log_p, log_q = log_p.clamp(max=-edge), log_q.clamp(max=-edge)
    not_p, not_q = (torch.log(-torch.expm1(x)) for x in (log_p, log_q))
    return log_p.exp() * (log_p - log_q) + not_p.exp() * (not_p - not_q)


def token_log_probabilities(logits: Logits, tokens: Integer[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """The log-probability of one token a position."""
    return log_softmax(logits, 1.0).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
