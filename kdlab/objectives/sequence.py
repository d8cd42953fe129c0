r"""Sequences: which logits belong to which label, and vocabularies that differ.

Every response loss takes logits of shape ``(batch, time, vocabulary)`` with a mask of shape ``(batch, time)``, and is a
mean over the tokens that count. What is left to do is here.
"""

import torch
from torch import Tensor

from .checks import check_logits, check_tokens
from .softening import full_precision


def next_token(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor,
    *,
    attention_mask: Tensor | None = None,
    ignore_index: int = -100,
) -> dict[str, Tensor | None]:
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


def restrict_vocabulary(logits: Tensor, tokens: Tensor, *, rest: bool = False) -> Tensor:
    r"""Logits over chosen tokens: for vocabularies that share some tokens, or a teacher of whom only the top k are known.

    Without ``rest`` the softmax becomes the distribution *given* that one of the chosen tokens comes. With ``rest``, one
    class is added at the end for all other tokens together, with logit :math:`\log\sum_{i\notin S} e^{z_i}`, and the
    chosen keep their probabilities. Merging classes cannot increase a divergence, so that then

    .. math:: 0 \le D_{\mathrm{KL}}(p_S\,\|\,q_S) \le D_{\mathrm{KL}}(p\,\|\,q) \qquad (T = 1).

    Restrict student and teacher alike: each with the numbers that *its* vocabulary gives to the shared tokens. A teacher
    whose vocabulary was merely padded to a rounder size is restricted to ``torch.arange(size)``.

    Args:
        logits: shape ``(..., V)``.
        tokens: different token numbers, of shape ``(k,)``, or ``(..., k)`` where they differ from position to position.

    Returns:
        Logits of shape ``(..., k)``; with ``rest`` ``(..., k + 1)``, and float32 for half precision.

    Raises:
        TypeError: for tokens that are not whole numbers.
        ValueError: for tokens out of range or named twice, or with ``rest`` if none is left over.

    Source: the tail bucket of sparse teachers; see Anshumann et al. (2025).

    >>> z = torch.log(torch.tensor([0.5, 0.25, 0.125, 0.125]))
    >>> restrict_vocabulary(z, torch.tensor([0, 1])).softmax(-1)
    tensor([0.6667, 0.3333])
    >>> restrict_vocabulary(z, torch.tensor([0, 1]), rest=True).softmax(-1)
    tensor([0.5000, 0.2500, 0.2500])
    """
    check_logits("logits", logits)
    check_tokens(tokens, logits)
    index = tokens.long().expand(*logits.shape[:-1], tokens.shape[-1])
    if not rest:
        return logits.gather(-1, index)
    if index.shape[-1] >= logits.shape[-1]:
        raise ValueError("all tokens are kept, so that there is no rest: leave rest=True out.")
    logits = full_precision(logits)
    others = logits.scatter(-1, index, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([logits.gather(-1, index), others], -1)
