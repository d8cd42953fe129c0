r"""Sequences: which logits belong to which label, and vocabularies that differ.

Every response loss takes logits of shape ``(batch, time, vocabulary)`` with a mask of shape ``(batch, time)``, and is a
mean over the tokens that count. What is left to do is here.
"""

import hashlib
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlab.shapes import Float, Integer, Shaped

from .aligned import (
    AlignedLogits,
    binary_divergence,
    merge_vocabulary,
    sorted_distance,
    span_log_probabilities,
    token_log_probabilities,
)
from .checks import IGNORED, _inspectable, check_logits, check_tokens
from .reduction import reduce
from .softening import counted_rows, full_precision, log_sum_exp, prepared_alone, soften
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


def _counted(z: Any, mask: Mask | None) -> Any:
    """Logits, of which what the mask leaves out is never looked at."""
    if isinstance(z, HeadLogits):
        return replace(z, hidden=counted_rows(z.hidden, mask))
    return counted_rows(z, mask) if isinstance(z, Tensor) else z


class _OfClasses(Term):
    """A term of logits that looks at other classes than the tokens: at what :meth:`classes` makes of the logits of both.

    Of a teacher with a tokeniser of its own it looks where both have read the same text, at one class in place of each of theirs. A mean is over all
    tokens that count: those after which the texts are not the same add nothing.
    """

    takes_aligned = True
    #: Logits of the classes, from those of the student and those of the teacher, of which there may be none.
    classes: Any

    def __init__(self, term: Term, shown: str, **of_tokens: Tensor) -> None:
        super().__init__()
        if not isinstance(term, Term) or term.student_layers or "labels" in Objective([(1.0, term)])._needed[0]:
            raise TypeError(
                f"{type(self).__name__} takes a term of logits, which looks at neither labels nor layers, not {term!r}."
            )
        which = hashlib.sha256(repr([x.tolist() for x in of_tokens.values()]).encode()).hexdigest()[:12]
        self.inner, self._shown = term, f"{term!r}, {shown} {which}"
        for name, tensor in of_tokens.items():
            self.register_buffer(name, tensor, persistent=False)
        self.needs_teacher, self.needs_whole_batch_of = term.needs_teacher, term.needs_whole_batch_of

    def extra_repr(self) -> str:
        return self._shown

    def forward(
        self,
        *,
        student_logits: Logits | HeadLogits,
        teacher_logits: Float[Tensor, "*batch M"] | HeadLogits | SparseTargets | AlignedLogits | None = None,
        labels: Tensor | None = None,
        mask: Mask | None = None,
        count: Count | None = None,
        progress: float | None = None,
        **_: Any,
    ) -> Scalar:
        mask = _learned(student_logits, labels, mask)
        if isinstance(teacher_logits, AlignedLogits):
            if isinstance(student_logits, HeadLogits):
                student_logits = student_logits.dense()
            count, mask = _count(teacher_logits.read, mask, count), _both(teacher_logits.read, mask)
            teacher_logits = teacher_logits.values
        student, teacher = self.classes(*(_counted(z, mask) for z in (student_logits, teacher_logits)))
        seen = {"student_logits": student, "teacher_logits": teacher}
        total, _ = (1.0 * self.inner)(**seen, mask=mask, count=count, progress=progress)
        return total


class SharedVocabulary(_OfClasses):
    r"""A term of logits that looks at chosen tokens alone, through :func:`restrict_vocabulary`: the way of it through ``fit``.

    Of a teacher whose vocabulary was padded to a rounder size, ``SharedVocabulary(ForwardKL(), torch.arange(50_257))`` compares what both have,
    and terms beside it look at all of the student. Labels are numbers of the whole vocabulary: of them, it sees which positions count.

    With two tokenisers, ``SharedVocabulary(ForwardKL(), *shared_tokens(student_tokeniser, teacher_tokeniser), rest=True)`` compares
    the tokens of which both have the same bytes, and all others as one class, where both have read the same text; the teacher is a
    :class:`~kdlab.language.two_tokenisers.Retokenised`. Bias: a token is one event for a model that has no longer token of the same
    beginning, and another for a model that has one, which says the longer token in its place; so a student of few tokens is told that its
    own are rarer than they are, and one of many that those which only it has hardly come. Without ``rest`` it is told of the shared ones alone how
    they compare with each other.

    Args:
        term: of logits, without labels.
        tokens: different token numbers of the student, of shape ``(k,)``.
        teacher_tokens: what the teacher calls the same tokens; None: the same.
        rest: as in :func:`restrict_vocabulary`, of both. A teacher whose tokens are all chosen gives it no probability. Where those of the
            student are, which then could give it none, whatever the teacher says, it is left out of both.

    Raises:
        TypeError: for a term that looks at labels or layers; and as :func:`restrict_vocabulary`.
        ValueError: for tokens and teacher's tokens that are not as many; and as :func:`restrict_vocabulary`.

    >>> from kdlab.objectives import ForwardKL
    >>> total, _ = (1.0 * SharedVocabulary(ForwardKL(), torch.arange(3)))(student_logits=torch.zeros(1, 3), teacher_logits=torch.zeros(1, 4))
    >>> total
    tensor(0.)
    """

    tokens: Tensor
    teacher_tokens: Tensor

    def __init__(
        self,
        term: Term,
        tokens: Integer[Tensor, " k"],
        teacher_tokens: Integer[Tensor, " k"] | None = None,
        *,
        rest: bool = False,
    ) -> None:
        teacher_tokens = tokens if teacher_tokens is None else teacher_tokens
        if any(not isinstance(one, Tensor) or one.ndim != 1 for one in (tokens, teacher_tokens)) or len(tokens) != len(
            teacher_tokens
        ):
            raise ValueError(
                "tokens are a tensor of shape (k,), of the student and of the teacher: as many, in the same order."
            )
        super().__init__(term, f"{len(tokens)} tokens", tokens=tokens, teacher_tokens=teacher_tokens)
        self.rest = rest

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}{', rest=True' if self.rest else ''}"

    def classes(
        self, student: Logits | HeadLogits, teacher: Float[Tensor, "*batch M"] | HeadLogits | SparseTargets | None
    ) -> tuple[Any, Any]:
        rest = self.rest and len(self.tokens) < student.shape[-1]
        chosen = restrict_vocabulary(student, self.tokens, rest=rest)
        if rest and isinstance(teacher, Tensor) and len(self.tokens) == teacher.shape[-1]:  # the student's rest alone
            return chosen, F.pad(teacher[..., self.teacher_tokens], (0, 1), value=-torch.inf)
        return chosen, None if teacher is None else restrict_vocabulary(teacher, self.teacher_tokens, rest=rest)


class MergedVocabulary(_OfClasses):
    r"""A term of logits that looks at groups of tokens, through :func:`~kdlab.objectives.aligned.merge_vocabulary`.

    With two tokenisers, ``MergedVocabulary(ForwardKL(), *first_bytes(student_tokeniser, teacher_tokeniser))`` compares how probable
    each **next byte** of the text is: the sum over all tokens that begin with it. That is one event for both, whatever their tokens are,
    and its divergence is at most that of the tokens. Bias: none of the classes; both know that a token ends where they are compared,
    which says of the next byte a little more than the text does, and not the same of two tokenisers. Cost: of a long token the
    first byte alone is learned, so that it stands beside :class:`~kdlab.objectives.terms.CrossEntropy` on the text.

    Args:
        term: of logits, without labels.
        groups: which group each of the student's tokens is in, from 0, shape ``(V,)``.
        teacher_groups: the same of the teacher's, ``(M,)``; None: the same tokens.

    Raises:
        TypeError: for a term that looks at labels or layers.
        ValueError: as :func:`~kdlab.objectives.aligned.merge_vocabulary`.

    Source: the sum over tokens, Phan et al. (2024), Vieira et al. (2024), of the tokens after one place of the text.

    >>> from kdlab.objectives import ForwardKL
    >>> term = MergedVocabulary(ForwardKL(), torch.tensor([0, 0, 1]), torch.tensor([0, 1]))
    >>> total, _ = (1.0 * term)(student_logits=torch.tensor([[0.0, 0.0, 0.0]]), teacher_logits=torch.tensor([[2.0, 1.0]]).log())
    >>> abs(round(total.item(), 6))
    0.0
    """

    groups: Tensor
    teacher_groups: Tensor

    def __init__(
        self, term: Term, groups: Integer[Tensor, " V"], teacher_groups: Integer[Tensor, " M"] | None = None
    ) -> None:
        teacher_groups = groups if teacher_groups is None else teacher_groups
        number = int(max(groups.max(), teacher_groups.max())) + 1
        super().__init__(term, f"{number} groups", groups=groups, teacher_groups=teacher_groups)
        self.number = number

    def classes(
        self, student: Logits | HeadLogits, teacher: Float[Tensor, "*batch M"] | HeadLogits | None
    ) -> tuple[Any, Any]:
        def merged(z: Any, groups: Tensor) -> Tensor:
            return merge_vocabulary(z.dense() if isinstance(z, HeadLogits) else z, groups, self.number)

        return merged(student, self.groups), None if teacher is None else merged(teacher, self.teacher_groups)


class SortedProbabilities(Term):
    r"""Universal logit distillation (ULD): the probabilities of both, each sorted, whatever their tokens are.

    .. math:: \frac1n \sum_t \sum_i |p_{t(i)} - q_{t(i)}|

    over the places where both have read the same text, and divided by all tokens that count. Bias: the sum is at most
    :math:`\sum_i |p_i - q_i|` of any matching of tokens, and zero for a student that is as sure as its teacher of something else: it says how
    peaked to be and never at what. It stands beside :class:`~kdlab.objectives.terms.CrossEntropy`, published with weight 1.5.

    Args:
        merged: multiply both by the probability of the tokens after the first of each span, so that the actual entry is that of the
            whole span, as TRL's GOLD does (``"observed"``): where one needs more tokens for the same text, the lists no longer sum to one.

    Source: Boizard et al. (2024), ULD; spans, GOLD of TRL (2025).

    >>> term = SortedProbabilities()
    >>> term(student_logits=torch.tensor([[1.0, 3.0]]).log(), teacher_logits=torch.tensor([[2.0, 1.0, 1.0]]).log())
    tensor(0.5000)
    """

    takes_aligned = True

    def __init__(self, merged: bool = False) -> None:
        super().__init__()
        self.merged = merged

    def extra_repr(self) -> str:
        return "merged=True" if self.merged else ""

    def forward(
        self,
        *,
        student_logits: Logits,
        teacher_logits: Float[Tensor, "*batch M"] | AlignedLogits,
        labels: Tensor | None = None,
        mask: Mask | None = None,
        count: Count | None = None,
        **_: Any,
    ) -> Scalar:
        mask, teacher = _learned(student_logits, labels, mask), teacher_logits.detach()
        if not isinstance(teacher, AlignedLogits):
            if self.merged:
                raise TypeError(f"{self!r} merges the spans of a Retokenised teacher; this one gives logits.")
            p, q = (soften(counted_rows(z, mask)) for z in (teacher, student_logits))
            return reduce(sorted_distance(q, p), mask, count=count)
        count, read = _count(teacher.read, mask, count), _both(teacher.read, mask)
        student = prepared_alone(student_logits, mask=read)[0]
        p, q = soften(counted_rows(teacher.values, read)), soften(student)
        if self.merged:
            spans, log_q, read = _spans(self, student_logits, teacher, labels, mask)
            p, q = p * teacher.later.exp().unsqueeze(-1), q * (spans - log_q).exp().unsqueeze(-1)
        return reduce(sorted_distance(q, p), read, count=count)


class MergedSpans(Term):
    r"""How probable the text's next span is for both: a span of text, which is some tokens of each, as one event.

    .. math:: \frac1n \sum_{\text{spans}} P \log\frac PQ + (1 - P) \log\frac{1 - P}{1 - Q}, \qquad
        P = \prod_{k} p(y'_k \mid y'_{<k}), \quad Q = \prod_k q(y_k \mid y_{<k})

    by the chain rule, of the tokens :math:`y'` and :math:`y` that the span is for teacher and student. It is the KL of all continuations, merged into
    two: this one, and every other; so it is at most that. Bias: "every other" is one class, so that of what did not come nothing is
    learned, and both count the tokens that their own tokeniser makes of the span alone. Its gradient goes to every token of the span.

    Source: the products, GOLD of TRL (2025); merging, the log-sum inequality.
    """

    takes_aligned = True

    def forward(
        self,
        *,
        student_logits: Logits,
        teacher_logits: AlignedLogits,
        labels: Integer[Tensor, "B T"],
        mask: Mask | None = None,
        count: Count | None = None,
        **_: Any,
    ) -> Scalar:
        if not isinstance(teacher_logits, AlignedLogits):
            raise TypeError(
                f"{self!r} looks at the spans of a teacher with a tokeniser of its own, kdlab.language.Retokenised."
            )
        mask, teacher = _learned(student_logits, labels, mask), teacher_logits.detach()
        spans, whole = _spans(self, student_logits, teacher, labels, mask)[::2]
        losses = binary_divergence((teacher.first + teacher.later).to(spans.dtype), spans)
        return reduce(losses, whole, count=_count(teacher.read, mask, count))


def _spans(term: Term, student_logits: Logits, teacher: AlignedLogits, labels: Tensor | None, mask: Mask | None):
    """The student's log-probability of each span and of its first token, and where one begins of which every token counts."""
    if labels is None or labels.shape != teacher.read.shape:
        raise TypeError(f"{term!r} needs labels=…, the tokens that come, one a position.")
    counts = torch.ones_like(teacher.read) if mask is None else mask
    student, _ = prepared_alone(student_logits, mask=counts)
    log_q = token_log_probabilities(student, labels.where(counts, 0))
    spans, whole = span_log_probabilities(log_q, teacher.lengths, counts)
    return spans, log_q.where(whole, 0.0), whole


def _learned(student_logits: Any, labels: Tensor | None, mask: Mask | None) -> Mask | None:
    """The mask; without one, all but labels of −100."""
    if mask is None and labels is not None and labels.shape == student_logits.shape[:-1]:
        return labels != IGNORED
    return mask


def _both(read: Mask, mask: Mask | None) -> Mask:
    return read if mask is None else read & mask


def _count(read: Mask, mask: Mask | None, count: Count | None) -> Count:
    """What means divide by: all tokens that count, read alike or not."""
    if count is not None:
        return count
    return read.numel() if mask is None else mask.sum().clamp(min=1)


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
