r"""Sequences: which logits belong to which label, and vocabularies that differ.

Every response loss takes logits of shape ``(batch, time, vocabulary)`` with a mask of shape ``(batch, time)``, and is a
mean over the tokens that count. What is left to do is here.
"""

import hashlib
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kdlab.shapes import Float, Integer, Shaped

from .checks import IGNORED, _inspectable, check_logits, check_tokens
from .softening import full_precision, log_sum_exp
from .sparse import SparseTargets
from .terms import Objective, Term
from .types import Count, Logits, Mask, Scalar
from .vocabulary import AnyLogits, HeadLogits


def next_token(
    student_logits: Float[Tensor, "B T N"] | HeadLogits,
    teacher_logits: Float[Tensor, "B T M"] | HeadLogits | SparseTargets | None,
    labels: Integer[Tensor, "B T"],
    *,
    attention_mask: Shaped[Tensor, "B T"] | None = None,
    ignore_index: int = -100,
) -> dict[str, Any]:
    """Put the logits of a causal language model beside the tokens that they predict.

    The logits at position :math:`t` predict the token at :math:`t + 1`, so the last logits and the first label have no
    partner. Positions whose label is ``ignore_index`` do not count, neither in the hard nor in the soft loss. Whether
    a token counts is said by its label alone: an end-of-sequence token is learned even if padding has the same number.

    Args:
        student_logits, teacher_logits: shape ``(B, T, V)``; the teacher's may be None.
        labels: token numbers, shape ``(B, T)``, **not** shifted; ``ignore_index`` where there is nothing to predict.
        attention_mask: shape ``(B, T)``, not zero where a token is no padding. With it, what is predicted from padding (the
            first token after padding on the left) does not count either, and ``hidden_mask`` comes along for terms that
            look at hidden states.

    Returns:
        ``student_logits``, ``teacher_logits`` of shape ``(B, T − 1, V)``, ``labels`` and ``mask`` of shape ``(B, T − 1)``, and
        with ``attention_mask`` ``hidden_mask`` of shape ``(B, T)``: what an :class:`~kdlab.objectives.terms.Objective` takes.

    Raises:
        ValueError: if the shapes do not fit.

    >>> logits, labels = torch.zeros(1, 4, 8), torch.tensor([[5, 6, 7, -100]])
    >>> aligned = next_token(logits, logits, labels)
    >>> aligned["labels"].tolist(), aligned["mask"].tolist()
    ([[6, 7, -100]], [[True, True, False]])
    """
    if student_logits.ndim != 3 or labels.shape != student_logits.shape[:2]:
        raise ValueError(
            f"logits of shape (batch, time, vocabulary) and labels of shape (batch, time) are needed, not "
            f"{tuple(student_logits.shape)} and {tuple(labels.shape)}."
        )
    following = labels[:, 1:]
    aligned = {
        "student_logits": student_logits[:, :-1],
        "teacher_logits": None if teacher_logits is None else teacher_logits[:, :-1],
        "labels": following,
        "mask": following != ignore_index,
    }
    if attention_mask is not None:
        if attention_mask.shape != labels.shape:
            raise ValueError(
                f"attention_mask of shape {tuple(attention_mask.shape)} does not fit labels of shape {tuple(labels.shape)}."
            )
        real = attention_mask != 0
        aligned |= {"mask": aligned["mask"] & real[:, :-1], "hidden_mask": real}
    return aligned


def restrict_vocabulary(
    logits: AnyLogits, tokens: Integer[Tensor, "*some k"], *, rest: bool = False
) -> Float[Tensor, "*batch chosen"] | HeadLogits | SparseTargets:
    r"""Logits over chosen tokens: for vocabularies that share some tokens, or a teacher of whom only the top k are known.

    Without ``rest`` the softmax becomes the distribution *given* that one of the chosen tokens comes. With ``rest``, one
    class is added at the end for all other tokens together, with logit :math:`\log\sum_{i\notin S} e^{z_i}`, and the
    chosen keep their probabilities. Merging classes cannot increase a divergence, so that then

    .. math:: 0 \le D_{\mathrm{KL}}(p_S\,\|\,q_S) \le D_{\mathrm{KL}}(p\,\|\,q) \qquad (T = 1).

    Restrict student and teacher alike: each with the numbers that *its* vocabulary gives to the shared tokens. A teacher
    whose vocabulary was merely padded to a rounder size is restricted to ``torch.arange(size)``. In an objective, and so in
    ``fit``, :class:`SharedVocabulary` does it.

    Args:
        logits: shape ``(..., V)``. :class:`~kdlab.objectives.vocabulary.HeadLogits` become those of the chosen rows of their head;
            of :class:`~kdlab.objectives.sparse.SparseTargets` the entries of chosen tokens stay, scaled to sum to one, and their
            rest is taken to be that of chosen tokens, as it is where only padding is left out.
        tokens: different token numbers, of shape ``(k,)``, or ``(..., k)`` where they differ from position to position.

    Returns:
        Logits of shape ``(..., k)``; with ``rest`` ``(..., k + 1)``, and float32 for half precision. Of HeadLogits and
        SparseTargets the same, over k tokens.

    Raises:
        TypeError: for tokens that are not whole numbers; for HeadLogits and SparseTargets with ``rest``, or with tokens that differ
            from position to position.
        ValueError: for tokens out of range or named twice, or with ``rest`` if none is left over; for targets of which nothing is
            left.

    Source: the tail bucket of sparse teachers; see Anshumann et al. (2025).

    >>> z = torch.log(torch.tensor([0.5, 0.25, 0.125, 0.125]))
    >>> restrict_vocabulary(z, torch.tensor([0, 1])).softmax(-1)
    tensor([0.6667, 0.3333])
    >>> restrict_vocabulary(z, torch.tensor([0, 1]), rest=True).softmax(-1)
    tensor([0.5000, 0.2500, 0.2500])
    """
    if isinstance(logits, (HeadLogits, SparseTargets)):
        check_tokens(tokens, logits)
        if rest or tokens.ndim != 1:
            raise TypeError(
                f"{type(logits).__name__} are restricted to tokens of shape (k,), without a rest: give logits, as HeadLogits.dense() does."
            )
        tokens = tokens.long()
        return (
            _restricted_head(logits, tokens) if isinstance(logits, HeadLogits) else _restricted_targets(logits, tokens)
        )
    check_logits("logits", logits)
    check_tokens(tokens, logits)
    index = tokens.long().expand(*logits.shape[:-1], tokens.shape[-1])
    if not rest:
        return logits.gather(-1, index)
    if index.shape[-1] >= logits.shape[-1]:
        raise ValueError("all tokens are kept, so that there is no rest: leave rest=True out.")
    logits = full_precision(logits)
    others = log_sum_exp(logits.scatter(-1, index, -torch.inf))
    return torch.cat([logits.gather(-1, index), others], -1)


class SharedVocabulary(Term):
    r"""A term of logits that looks at chosen tokens alone, through :func:`restrict_vocabulary`: the way of it through ``fit``.

    Of a teacher whose vocabulary was padded to a rounder size, ``SharedVocabulary(ForwardKL(), torch.arange(50_257))`` compares what both have,
    and terms beside it look at all of the student. Labels are numbers of the whole vocabulary: of them, it sees which positions count.

    Args:
        term: of logits, without labels.
        tokens: different token numbers of the student, of shape ``(k,)``.
        teacher_tokens: what the teacher calls the same tokens; None: the same.
        rest: as in :func:`restrict_vocabulary`, of both.

    Raises:
        TypeError: for a term that looks at labels or layers; and as :func:`restrict_vocabulary`.
        ValueError: for tokens and teacher's tokens that are not as many; and as :func:`restrict_vocabulary`.

    >>> from kdlab.objectives import ForwardKL
    >>> total, _ = (1.0 * SharedVocabulary(ForwardKL(), torch.arange(3)))(student_logits=torch.zeros(1, 3), teacher_logits=torch.zeros(1, 4))
    >>> total
    tensor(0.)
    """

    def __init__(
        self,
        term: Term,
        tokens: Integer[Tensor, " k"],
        teacher_tokens: Integer[Tensor, " k"] | None = None,
        *,
        rest: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(term, Term) or term.student_layers or "labels" in Objective([(1.0, term)])._needed[0]:
            raise TypeError(
                f"SharedVocabulary takes a term of logits, which looks at neither labels nor layers, not {term!r}."
            )
        teacher_tokens = tokens if teacher_tokens is None else teacher_tokens
        if any(not isinstance(one, Tensor) or one.ndim != 1 for one in (tokens, teacher_tokens)) or len(tokens) != len(
            teacher_tokens
        ):
            raise ValueError(
                "tokens are a tensor of shape (k,), of the student and of the teacher: as many, in the same order."
            )
        self.inner, self.rest = term, rest
        self.register_buffer("tokens", tokens, persistent=False)
        self.register_buffer("teacher_tokens", teacher_tokens, persistent=False)
        self.needs_teacher, self.needs_whole_batch_of = term.needs_teacher, term.needs_whole_batch_of

    def extra_repr(self) -> str:
        which = hashlib.sha256(repr([self.tokens.tolist(), self.teacher_tokens.tolist()]).encode()).hexdigest()[:12]
        return f"{self.inner!r}, {len(self.tokens)} tokens {which}{', rest=True' if self.rest else ''}"

    def forward(
        self,
        *,
        student_logits: Logits | HeadLogits,
        teacher_logits: Float[Tensor, "*batch M"] | HeadLogits | SparseTargets | None = None,
        labels: Tensor | None = None,
        mask: Mask | None = None,
        count: Count | None = None,
        progress: float | None = None,
        **_: Any,
    ) -> Scalar:
        seen = {
            "student_logits": restrict_vocabulary(student_logits, self.tokens, rest=self.rest),
            "teacher_logits": None
            if teacher_logits is None
            else restrict_vocabulary(teacher_logits, self.teacher_tokens, rest=self.rest),
        }
        if mask is None and labels is not None and labels.shape == student_logits.shape[:-1]:
            mask = labels != IGNORED
        total, _ = (1.0 * self.inner)(**seen, mask=mask, count=count, progress=progress)
        return total


def _restricted_head(logits: HeadLogits, tokens: Tensor) -> HeadLogits:
    """Those rows of the head; the first of them without a copy."""
    first = _inspectable(tokens) and torch.equal(tokens, torch.arange(len(tokens)))
    which = slice(len(tokens)) if first else tokens.to(logits.device)
    bias = None if logits.bias is None else logits.bias[which]
    return replace(logits, weight=logits.weight[which], bias=bias)


def _restricted_targets(targets: SparseTargets, tokens: Tensor) -> SparseTargets:
    """Those entries, and what they sum to is what all did, but for what was of other tokens."""
    place = torch.full((targets.vocabulary,), -1, dtype=torch.long, device=targets.tokens.device)
    place[tokens.to(place.device)] = torch.arange(len(tokens), device=place.device)
    known = targets.tokens.clamp(0, targets.vocabulary - 1)  # of a row that keeps nothing, anything
    there = place[known] >= 0
    kept = targets.probabilities.where(there, 0.0)
    outside = (targets.probabilities - kept).sum(-1, keepdim=True)
    empty = (kept == 0).all(-1) & (targets.probabilities > 0).any(-1)
    if _inspectable(kept) and not targets.rest and empty.any():
        raise ValueError(f"of {int(empty.sum())} positions nothing that is kept is of the chosen tokens.")
    rest = targets.rest and targets.tokens.shape[-1] < len(tokens)
    whole = 1 - outside if rest else kept.sum(-1, keepdim=True)
    kept = kept / whole.where(whole > 0, 1.0)
    # What is left out stands on the likeliest that stays, and adds nothing to it.
    likeliest = place[known].gather(-1, kept.argmax(-1, keepdim=True)).clamp(min=0)
    return targets._with(
        tokens=place[known].where(there, likeliest), probabilities=kept, vocabulary=len(tokens), rest=rest
    )
