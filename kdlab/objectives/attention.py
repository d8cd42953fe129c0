r"""Attention-based objectives: match where the teacher looks.

Two things go by the name. In a transformer, attention maps are the softmax rows ``(B, heads, queries, keys)``. In a
convolutional network, the map is the energy of the activations at each place, summed over channels.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from kdlab.shapes import Bool, Float

from .checks import check_features, check_mask
from .features import same_size, unit
from .reduction import reduce
from .softening import full_precision, without_autocast
from .types import Count, Reduction, Scalar

Heads = Literal["match", "mean", "group"]
Normalise = Literal["none", "queries", "entries"]
Form = Literal["released", "paper"]


def attention_map_mse(
    student_maps: Float[Tensor, "B student_heads queries keys"],
    teacher_maps: Float[Tensor, "B teacher_heads queries keys"],
    *,
    heads: Heads = "match",
    normalise: Normalise = "none",
    mask: Bool[Tensor, "B queries"] | Bool[Tensor, "B queries keys"] | None = None,
    count: Count | None = None,
    reduction: Reduction = "batchmean",
) -> Scalar | Float[Tensor, " B"]:
    r"""Squared Frobenius distance of attention maps, averaged over heads.

    .. math:: \frac{1}{N_h}\sum_{h=1}^{N_h} \bigl\|A_S^h - A_T^h\bigr\|_F^2

    Convention: mean over examples and heads, **sum** over queries and keys: the value grows with the number of queries.
    ``normalise="queries"`` divides by the number of queries that count, and ``"entries"`` by the queries times the keys:
    the mean squared error, which of softmax maps shrinks with length, since their entries do. (TinyBERT takes it of the scores
    before the softmax, whose size does not depend on length.) Maps cost :math:`O(B N_h L^2)` memory, on both sides.

    Different numbers of heads are refused, unless ``heads`` says what is meant: ``"mean"`` compares the average over
    heads, and the sum has one term; ``"group"`` averages each ``teacher_heads / student_heads`` neighbouring heads of the
    teacher.

    Args:
        student_maps: :math:`A_S`, shape ``(B, heads, queries, keys)``.
        teacher_maps: :math:`A_T`, the same but for the heads.
        heads: ``"match"``, ``"mean"`` or ``"group"``.
        normalise: ``"none"``, ``"queries"`` or ``"entries"``.
        mask: boolean, shape ``(B, queries)``, or ``(B, queries, keys)``: True where a query (an entry) counts. A mask of
            tokens leaves out padded queries; and padded keys too, where queries and keys are the same tokens. An
            additional causal mask is not needed: what a causal model cannot see is zero on both sides.
        count: number of examples to divide by; None is that of this batch.
        reduction: ``"batchmean"``, ``"sum"`` or ``"none"`` (shape ``(B,)``).

    Raises:
        TypeError: for maps that are not floating-point tensors.
        ValueError: for shapes that do not fit.

    Source: the article's formula; of unnormalised scores and with ``normalise="entries"``, Jiao et al. (2020), eq. 7.

    >>> student, teacher = torch.eye(2).expand(1, 4, 2, 2), torch.full((1, 4, 2, 2), 0.5)
    >>> attention_map_mse(student, teacher), attention_map_mse(student, teacher, normalise="queries")
    (tensor(1.), tensor(0.5000))
    """
    check_features(student_maps, teacher_maps, ("student maps", "teacher maps"), same_width=False, values=mask is None)
    if student_maps.ndim != 4 or teacher_maps.ndim != 4 or student_maps.shape[2:] != teacher_maps.shape[2:]:
        raise ValueError(
            f"attention maps have shape (batch, heads, queries, keys) and one length, but these have "
            f"{tuple(student_maps.shape)} and {tuple(teacher_maps.shape)}."
        )
    if normalise not in ("none", "queries", "entries"):
        raise ValueError(f'normalise must be "none", "queries" or "entries", not {normalise!r}.')
    counted = _entries(mask, student_maps, empty=count is not None)
    maps = student_maps, teacher_maps
    if mask is not None:  # what does not count is taken out before anything is computed with it
        maps = torch.where(counted, student_maps, 0.0), torch.where(counted, teacher_maps, 0.0)
        check_features(*maps, ("student maps", "teacher maps"), same_width=False)
    student, teacher = _same_heads(full_precision(maps[0]), full_precision(maps[1]), heads)
    losses = (student - teacher).square().sum((2, 3)).mean(1)
    if normalise == "queries":
        losses = losses / counted.any(-1).sum(-1).clamp(min=1).squeeze(1)
    elif normalise == "entries":
        losses = losses / counted.sum((2, 3)).clamp(min=1).squeeze(1)
    return reduce(losses, None, reduction, count)


def _same_heads(student, teacher, heads):
    n, m = student.shape[1], teacher.shape[1]
    if heads == "mean":
        return student.mean(1, keepdim=True), teacher.mean(1, keepdim=True)
    if heads == "group":
        if m % n:
            raise ValueError(f'heads="group" needs a multiple of the {n} student heads, not {m} teacher heads.')
        return student, teacher.unflatten(1, (n, m // n)).mean(2)
    if heads != "match":
        raise ValueError(f'heads must be "match", "mean" or "group", not {heads!r}.')
    if n != m:
        raise ValueError(f'the student has {n} heads and the teacher {m}: choose heads="mean" or heads="group".')
    return student, teacher


def _entries(mask, maps, empty):
    """Which entries count, shape (B, 1, queries, keys)."""
    batch, _, queries, keys = maps.shape
    if mask is None:
        return torch.ones(batch, 1, queries, keys, dtype=torch.bool, device=maps.device)
    if isinstance(mask, Tensor) and mask.ndim == 3:
        check_mask(mask, maps[:, 0], empty)
        return mask.unsqueeze(1)
    check_mask(mask, maps[:, 0, :, 0], empty)
    counted = mask[:, None, :, None]
    return counted & mask[:, None, None, :] if queries == keys else counted.expand(-1, -1, -1, keys)


@without_autocast
def attention_from_qk(
    queries: Float[Tensor, "B *heads L d"],
    keys: Float[Tensor, "B *key_heads S d"],
    *,
    causal: bool = False,
    mask: Bool[Tensor, "..."] | Float[Tensor, "..."] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "B *heads L S"]:
    r"""Attention maps from queries and keys, where fused attention returns none.

    .. math:: A = \operatorname{softmax}\bigl(s\, Q K^\top + M\bigr), \qquad s = 1/\sqrt{d}

    The arguments are those of ``torch.nn.functional.scaled_dot_product_attention``. A query that may look at nothing has a
    row of zeros.

    Args:
        queries: shape ``(B, heads, L, d)``, or ``(B, L, d)`` for one head.
        keys: shape ``(B, key_heads, S, d)``, or ``(B, S, d)``; where ``key_heads`` divides ``heads``, each serves a group of neighbouring
            query heads (grouped-query attention).
        causal: query :math:`i` sees keys up to :math:`i`.
        mask: boolean (True may be seen) or additive, to be broadcast to what is returned.
        scale: :math:`s`.

    Returns:
        Shape ``(B, heads, L, S)``, or ``(B, L, S)``; float32 for half precision.

    >>> q = k = torch.zeros(1, 1, 3, 4)
    >>> attention_from_qk(q, k, causal=True)[0, 0]
    tensor([[1.0000, 0.0000, 0.0000],
            [0.5000, 0.5000, 0.0000],
            [0.3333, 0.3333, 0.3333]])
    """
    check_features(queries, keys, ("queries", "keys"), same_width=False, values=mask is None)
    if queries.ndim not in (3, 4) or queries.ndim != keys.ndim or queries.shape[-1] != keys.shape[-1]:
        raise ValueError(
            f"queries and keys have shape (batch, heads, length, width) or (batch, length, width), not {tuple(queries.shape)} and "
            f"{tuple(keys.shape)}."
        )
    if queries.shape[-3] % keys.shape[-3]:
        raise ValueError(f"{keys.shape[-3]} key heads do not divide {queries.shape[-3]} query heads.")
    queries, keys = full_precision(queries), full_precision(keys)
    keys = keys.repeat_interleave(queries.shape[-3] // keys.shape[-3], dim=-3)
    seen = torch.ones(queries.shape[-2], keys.shape[-2], dtype=torch.bool, device=queries.device)
    if causal:
        seen = seen.tril()
    if mask is not None:
        seen = seen & (mask if mask.dtype == torch.bool else ~mask.isneginf())
        # What no query sees, and what sees nothing, has no influence, whatever stands there.
        keys, queries = (
            torch.where(seen.any(-2)[..., None], keys, 0.0),
            torch.where(seen.any(-1)[..., None], queries, 0.0),
        )
        check_features(queries, keys, ("queries", "keys"), same_width=False)
    scores = queries @ keys.transpose(-1, -2) * (queries.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None and mask.dtype != torch.bool:
        scores = scores + mask
    scores = scores.masked_fill(~seen, -math.inf)
    # A row of −∞ alone has no softmax: take it of zeros, and then write zeros.
    blind = (scores == -math.inf).all(-1, keepdim=True)
    return torch.softmax(scores.masked_fill(blind, 0.0), -1).masked_fill(blind, 0.0)


def activation_attention(
    student_map: Float[Tensor, "B C_S H W"],
    teacher_map: Float[Tensor, "B C_T H_T W_T"],
    *,
    form: Form = "released",
    count: Count | None = None,
    reduction: Reduction = "batchmean",
) -> Scalar | Float[Tensor, " B"]:
    r"""Attention transfer between convolutional networks: match where the activations are large.

    With :math:`a = \operatorname{vec}\bigl(\sum_c |A_c|^2\bigr)` and :math:`\hat a = a/\|a\|_2`, of an example:

    .. math:: \text{paper: } \bigl\|\hat a_S - \hat a_T\bigr\|_2, \qquad
        \text{released: } \frac{1}{HW}\bigl\|\hat a_S - \hat a_T\bigr\|_2^2

    Convention: mean over examples. The paper's eq. 2 has the norm, with a factor :math:`\beta/2` and
    :math:`\beta = 10^3/HW` over the batch's size; the code that its authors released has the mean of squares, with a weight of 1000, as have
    RepDistiller and torchdistill's ``mode="code"`` (its ``mode="paper"`` has the norm). So 1000 and :math:`1/HW` are in both: what differs is norm
    against square. Here :math:`1/HW` is in ``"released"`` alone. Channels need not agree; the larger map is averaged down to the smaller.

    Args:
        student_map: shape ``(B, C_S, H, W)``.
        teacher_map: shape ``(B, C_T, H', W')``.
        form: ``"released"`` or ``"paper"``.
        count: number of examples to divide by; None is that of this batch.

    Source: Zagoruyko & Komodakis (2017), eq. 2; its :math:`\beta` as quoted in szagoruyko/attention-transfer, issue 32.

    >>> student, teacher = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 1.0]]]])
    >>> activation_attention(student, teacher), activation_attention(student, teacher, form="paper")
    (tensor(1.), tensor(1.4142))
    """
    check_features(student_map, teacher_map, ("student map", "teacher map"), same_width=False)
    if student_map.ndim != 4 or teacher_map.ndim != 4:
        raise ValueError(
            f"maps have shape (batch, channels, height, width), not {tuple(student_map.shape)} and "
            f"{tuple(teacher_map.shape)}."
        )
    if form not in ("released", "paper"):
        raise ValueError(f'form must be "released" or "paper", not {form!r}.')
    maps = same_size(full_precision(student_map), full_precision(teacher_map))
    student, teacher = (unit(x.square().mean(1).flatten(1)) for x in maps)
    squares = (student - teacher).square()
    if form == "released":
        return reduce(squares.mean(-1), None, reduction, count)
    total = squares.sum(-1)
    return reduce(total.where(total != 0, 1.0).sqrt().where(total != 0, 0.0), None, reduction, count)
