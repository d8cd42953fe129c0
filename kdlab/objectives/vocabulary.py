r"""Large vocabularies: response losses taken straight from hidden states and the head's weights.

A language model's logits are :math:`z = W h + b`, one row of :math:`V` numbers a token, and they, not the model, are what
fills the memory: of 2048 tokens and 32,000 words they take 262 MB, and a loss with its gradient keeps about ten such
tensors. But a loss that is a mean over tokens needs only a few tokens' logits at a time, and its gradient by them has a
closed form, which is multiplied out at once and forgotten:

.. math:: \frac{\partial L}{\partial h} = \frac{\partial L}{\partial z} W, \qquad
    \frac{\partial L}{\partial W} = \sum_{\text{tokens}} \frac{\partial L}{\partial z}^{\!\top} h

Give an :class:`~kdlab.objectives.terms.Objective` a :class:`HeadLogits` for the student's logits, and it does that for all
its terms together, in one pass. Nothing is approximated: values and gradients are those of the logits, to rounding.

Convention: as in :mod:`kdlab.objectives.divergences`, :math:`p` is the teacher and :math:`q` the student at temperature
:math:`T`, and with :math:`s_i = \partial\ell/\partial q_i`, to which any constant may be added,

.. math:: \frac{\partial\ell}{\partial z_i} = \frac{q_i}{T}\Bigl(s_i - \sum_k q_k s_k\Bigr)

Source: products in the forward pass, Hsu et al. (2024), Liger Kernel, section 3.2; the gradients, see each divergence.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlab.shapes import Bool, Float, Integer, with_shapes

from .checks import IGNORED, _inspectable, check_count, check_mask, check_same_shape, counted_labels
from .divergences import minus_log_shared
from .softening import log_softmax
from .sparse import CountedTargets, Rest, Slope, SparseTargets, counted_targets, sparse_losses, sparse_slope
from .types import Count, Labels, Logits, Mask, Scalar


@dataclass(frozen=True, eq=False)
class HeadLogits:
    r"""Logits that are never all there: hidden states, and the head that makes logits of them.

    .. math:: z = W h + b, \qquad \text{with a softcap } c:\quad c \tanh(z / c)

    What it stands for has shape ``(..., V)``; leading axes can be indexed as those of a tensor, so that
    :func:`~kdlab.objectives.sequence.next_token` takes it too. Products are made in the type of the inputs, or in that of
    ``torch.autocast``; what follows them in float32, or in float64 for float64.

    Args:
        hidden: :math:`h`, the last hidden states, shape ``(..., d)``.
        weight: :math:`W`, shape ``(V, d)``, such as ``model.lm_head.weight``.
        bias: :math:`b`, shape ``(V,)``, or None.
        softcap: :math:`c > 0`, as ``final_logit_softcapping`` of Gemma 2, or None.
        chunk: how many tokens' logits there are at a time; None is :func:`tokens_at_once`. Of the student's alone.

    Raises:
        TypeError: for what is no floating-point tensor.
        ValueError: for shapes that do not fit, or a softcap or chunk that is not positive.

    >>> logits = HeadLogits(torch.ones(2, 3, 4), torch.ones(10, 4))
    >>> logits.shape, logits[:, :-1].shape
    (torch.Size([2, 3, 10]), torch.Size([2, 2, 10]))
    """

    __repr__ = with_shapes

    hidden: Float[Tensor, "*batch d"]
    weight: Float[Tensor, "N d"]
    bias: Float[Tensor, " N"] | None = None
    softcap: float | None = None
    chunk: int | None = None

    def __post_init__(self) -> None:
        for name in ("hidden", "weight", "bias"):
            tensor = getattr(self, name)
            if tensor is None and name == "bias":
                continue
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
                raise TypeError(f"{name} must be a floating-point torch.Tensor, not {kind}.")
        if self.hidden.ndim < 2 or self.weight.ndim != 2 or self.hidden.shape[-1] != self.weight.shape[1]:
            raise ValueError(
                f"hidden states of shape (..., d) and a weight of shape (V, d) are needed, not "
                f"{tuple(self.hidden.shape)} and {tuple(self.weight.shape)}."
            )
        if self.bias is not None and self.bias.shape != self.weight.shape[:1]:
            raise ValueError(
                f"a bias of shape {tuple(self.bias.shape)} does not fit a weight of shape {tuple(self.weight.shape)}."
            )
        c = self.softcap
        if c is not None and not (isinstance(c, Real) and math.isfinite(c) and c > 0):
            raise ValueError(f"softcap must be a positive, finite number, not {c!r}.")
        if self.chunk is not None and not (isinstance(self.chunk, int) and self.chunk > 0):
            raise ValueError(f"chunk must be a positive number of tokens, not {self.chunk!r}.")

    @property
    def shape(self) -> torch.Size:
        return torch.Size([*self.hidden.shape[:-1], self.weight.shape[0]])

    @property
    def ndim(self) -> int:
        return self.hidden.ndim

    @property
    def dtype(self) -> torch.dtype:
        """That of the products."""
        kind = self.device.type
        autocast = torch.is_autocast_enabled(kind) and self.hidden.dtype != torch.float64
        return torch.get_autocast_dtype(kind) if autocast else self.hidden.dtype

    @property
    def device(self) -> torch.device:
        return self.hidden.device

    def detach(self) -> "HeadLogits":
        bias = None if self.bias is None else self.bias.detach()
        return replace(self, hidden=self.hidden.detach(), weight=self.weight.detach(), bias=bias)

    def dense(self) -> Float[Tensor, "*batch N"]:
        """All logits, shape ``(..., V)``: for losses that cannot do with less."""
        logits = F.linear(self.hidden, self.weight, self.bias)
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def __getitem__(self, index: Any) -> "HeadLogits":
        if isinstance(index, tuple) and (Ellipsis in index or len(index) >= self.ndim):
            raise IndexError("only leading axes can be indexed: the last, the vocabulary, is never all there.")
        return replace(self, hidden=self.hidden[index])


# Logits of whatever kind: all there, never all there, or a few of them.
AnyLogits = Logits | HeadLogits | SparseTargets


# What a loss is for each token, and its gradient by the student's logits ------------------------------------------------


PerToken = Float[Tensor, " tokens"]
PerClass = Float[Tensor, "tokens N"]
# Of each token, or of their sum; and the gradient of the sum by the logits: written out in a tensor of its own, or what it is a sum of.
# Either may be overwritten.
LossAndSlope = tuple[PerToken | Scalar, PerClass | Slope]


class Softened:
    """Teacher and student at one temperature, of a few tokens; each is computed once, when it is first asked for."""

    def __init__(
        self,
        student: Float[Tensor, "tokens N"],
        teacher: Float[Tensor, "tokens N"] | SparseTargets | None,
        temperature: float,
    ) -> None:
        self.student, self.teacher, self.temperature = student, teacher, temperature

    @cached_property
    def partial(self) -> bool:
        """Whether there may be classes that do not exist, with logits of −∞; a sum is the fastest way to see that there are none."""
        both = [x for x in (self.student, self.teacher) if isinstance(x, Tensor)]
        return not all(_inspectable(x) and torch.isfinite(x.sum()) for x in both)

    def times(self, p: PerClass, logarithm: PerClass) -> PerClass:
        """p·logarithm, which is zero where p is."""
        product = p * logarithm
        return product.masked_fill_(p == 0, 0.0) if self.partial else product

    def _log_softmax(self, logits):
        if self.temperature == 1:  # three passes less
            return torch.log_softmax(logits, -1)
        return log_softmax(logits, self.temperature)

    @cached_property
    def log_q(self) -> PerClass:
        return self._log_softmax(self.student)

    @cached_property
    def log_p(self) -> PerClass:
        return self._log_softmax(self.teacher)

    @cached_property
    def q(self) -> PerClass:
        return self.log_q.exp()

    @cached_property
    def p(self) -> PerClass:
        return self.log_p.exp()

    @cached_property
    def log_ratio(self) -> PerClass:
        """log p/q."""
        return self.log_p - self.log_q

    @cached_property
    def probabilities(self) -> tuple[PerClass, PerClass]:
        """q and p where no logarithm is asked for: half the passes."""

        def softmax(logits):
            if self.temperature != 1:
                logits = (logits - logits.amax(-1, keepdim=True)) / self.temperature
            return torch.softmax(logits, -1)

        return softmax(self.student), softmax(self.teacher)

    def gradient(self, q: PerClass, qs: PerClass, factor: float = 1.0, total: Tensor | None = None) -> PerClass:
        """factor·q·(s − Σ q·s)/T of q·s, which is overwritten; ``total`` is the sum, where it is known."""
        total = qs.sum(-1) if total is None else total
        return scaled_(qs.addcmul_(q, total[..., None], value=-1), factor / self.temperature)


def scaled_(x: Tensor, factor: float | Tensor) -> Tensor:
    """factor·x, in its place; a factor of one is no pass over it."""
    return x if not isinstance(factor, Tensor) and factor == 1 else x.mul_(factor)


def weighted_sum(slopes: list[PerClass | Slope], weights: list[float]) -> PerClass:
    """Σ w·slope, in the place of what is in them: on a CPU what is written anew costs more than what is computed."""
    multiples, few = {}, []
    for slope, w in zip(slopes, weights, strict=True):
        for x, multiple in slope.parts if isinstance(slope, Slope) else [(slope, 1.0)]:
            _, so_far = multiples.get(id(x), (x, 0.0))
            multiples[id(x)] = x, so_far + w * multiple
        if isinstance(slope, Slope):
            few.append((slope.tokens, w * slope.entries))
    (first, multiple), *others = multiples.values()
    total = scaled_(first, multiple)
    for x, multiple in others:
        total = total.addcmul_(x, multiple) if isinstance(multiple, Tensor) else total.add_(x, alpha=multiple)
    for tokens, entries in few:
        total.scatter_add_(-1, tokens, entries)
    return total


def cross_entropy(at: Softened, labels: Integer[Tensor, " tokens"], smoothing: float = 0.0) -> LossAndSlope:
    """−Σ y·log q with y one at the label, or smoothed; its gradient is (q − y)/T."""
    index, even = labels.unsqueeze(-1), smoothing / at.q.shape[-1]
    losses = (smoothing - 1) * at.log_q.gather(-1, index).squeeze(-1)
    if smoothing and at.partial:
        exists = ~at.student.isneginf()
        even = smoothing * exists.to(at.q.dtype) / exists.sum(-1, keepdim=True)
        losses = losses - (even * at.log_q.masked_fill(~exists, 0.0)).sum(-1)
    elif smoothing:
        losses = losses - even * at.log_q.sum(-1)
    entries = at.q.new_full(index.shape, (smoothing - 1) / at.temperature)
    if not smoothing:
        return losses, Slope(((at.q, 1 / at.temperature),), index, entries)
    return losses, scaled_(at.q - even, 1 / at.temperature).scatter_add_(-1, index, entries)


def forward_kl(at: Softened, factor: float = 1.0) -> LossAndSlope:
    """factor·Σ p·log(p/q), with gradient factor·(q − p)/T.

    Σ (q − p) is zero but for rounding, of which it rids Σ p·log(p/q) where q is nearly p.
    """
    difference = at.q - at.p
    losses = at.times(at.p, at.log_ratio).sum(-1) + difference.sum(-1)
    return losses.clamp_(min=0).mul_(factor), scaled_(difference, factor / at.temperature)


def soft_targets(at: Softened) -> LossAndSlope:
    """T² of it."""
    return forward_kl(at, at.temperature**2)


def reverse_kl(at: Softened) -> LossAndSlope:
    """Σ q·log(q/p), with s = log(q/p)."""
    qs = at.times(at.q, at.log_ratio).neg_()
    total = qs.sum(-1)
    return (total + (at.p - at.q).sum(-1)).clamp_(min=0), at.gradient(at.q, qs, total=total)


def log_to_mixture(p: PerClass, q: PerClass, w: float) -> PerClass:
    """log(p/m) of m = w·p + (1 − w)·q, for w and 1 − w that are both positive: −log(1 + (1 − w)·(q − p)/p).

    All from one difference: its rounding cancels in the sums, whose terms of first order are Σ (q − p), and so nearly equal
    distributions keep their digits. Where p ≫ q, −log w has the rounding of w, ε/w. What underflows in p is multiplied with p.
    """
    return (q - p).div_(p.clamp_min(torch.finfo(p.dtype).tiny)).mul_(1 - w).log1p_().neg_()


def skewed_forward_kl(at: Softened, skew: float) -> LossAndSlope:
    """Σ p·log(p/m) with m = λ·p + (1 − λ)·q, and s = −(1 − λ)·(p/m − 1)."""
    if skew == 0:
        return forward_kl(at)
    if skew == 1:
        return nothing(at)
    q, p = at.probabilities
    log_p_to_m = log_to_mixture(p, q, skew)
    losses = (p * log_p_to_m).sum(-1) + (1 - skew) * (q - p).sum(-1)
    return losses.clamp_(min=0), at.gradient(q, log_p_to_m.expm1_().mul_(q), skew - 1)


def skewed_reverse_kl(at: Softened, skew: float) -> LossAndSlope:
    """Σ q·log(q/m) with m = (1 − λ)·p + λ·q, and s = log(q/m) − λ·(q/m − 1)."""
    if skew == 0:
        return reverse_kl(at)
    if skew == 1:
        return nothing(at)
    q, p = at.probabilities
    log_q_to_m = log_to_mixture(q, p, skew)
    losses = (q * log_q_to_m).sum(-1) + (1 - skew) * (p - q).sum(-1)
    return losses.clamp_(min=0), at.gradient(q, log_q_to_m.sub_(log_q_to_m.expm1(), alpha=skew).mul_(q))


def generalised_jsd(at: Softened, beta: float, scaled: bool) -> LossAndSlope:
    """β·Σ p·log(p/m) + (1 − β)·Σ q·log(q/m) with m = β·p + (1 − β)·q, and s = (1 − β)·log(q/m)."""
    if beta in (0, 1):
        return (forward_kl, reverse_kl)[int(beta)](at) if scaled else nothing(at)
    q, p = at.probabilities
    qs = log_to_mixture(q, p, 1 - beta).mul_(q)
    total = qs.sum(-1)
    losses = beta * log_to_mixture(p, q, beta).mul_(p).sum(-1) + (1 - beta) * total
    factor = 1 / (beta * (1 - beta)) if scaled else 1.0
    return factor * losses.clamp_(min=0), at.gradient(q, qs, factor * (1 - beta), total)


def total_variation(at: Softened) -> LossAndSlope:
    """½·Σ |q − p|, with s = ½·sign(q − p)."""
    q, p = at.probabilities
    difference = q - p
    losses = difference.abs().sum(-1) / 2
    return losses, at.gradient(q, difference.sign_().mul_(q), 0.5)


def negative_log_acceptance(at: Softened) -> LossAndSlope:
    """−log a with a = Σ min(p, q), and s = −(1 − sign(q − p))/(2a)."""
    minimum = torch.minimum(at.log_p, at.log_q)
    shared = torch.logsumexp(minimum, -1)
    apart = (at.q - at.p).abs().sum(-1) / 2
    losses = minus_log_shared(shared, apart)
    below = (at.log_q <= at.log_p).to(minimum.dtype).add_(at.log_q < at.log_p).div_(2)  # there min(p, q) is q
    return losses, at.gradient(at.q, minimum.sub_(shared[..., None]).exp_().mul_(below), -1.0)


def sparse_forward_kl(at: Softened, targets: CountedTargets) -> LossAndSlope:
    """Σ p̂·log(p̂/q) over what is kept of the teacher, and the same of all the rest."""
    rest = Rest.of(at.log_q, at.q, targets) if targets.rest else None
    losses = sparse_losses(at.log_q, targets, None if rest is None else rest.log)
    return losses, sparse_slope(at.log_q, at.q, targets, rest)


def nothing(at: Softened) -> LossAndSlope:
    return at.q.new_zeros(at.q.shape[:-1]), torch.zeros_like(at.q)


@dataclass(frozen=True)
class TokenLogits:
    """The logits of a few tokens, in full precision, as a term sees them.

    Attributes:
        student: shape ``(n, V)``.
        teacher: the same shape, or what is kept of it; or None.
        labels: shape ``(n,)``; or None.
        progress: of the training, 0 to 1; or None.
        mask: shape ``(n,)``, where tokens are among them that do not count; or None. A term that gives each token's loss need not look.
    """

    __repr__ = with_shapes

    student: PerClass
    teacher: PerClass | SparseTargets | None = None
    labels: Integer[Tensor, " tokens"] | None = None
    progress: float | None = None
    mask: Bool[Tensor, " tokens"] | None = None

    @cached_property
    def _softened(self):
        return {}

    def at(self, temperature: float) -> Softened:
        """Both, softened; one and the same for all terms of this temperature."""
        if not isinstance(temperature, Real):
            raise TypeError(f"of HeadLogits the temperature is a number or a schedule, not {temperature!r}.")
        if temperature not in self._softened:
            self._softened[temperature] = Softened(self.student, self.teacher, temperature)
        return self._softened[temperature]


def by_autograd(term: Callable[..., Tensor], tokens: TokenLogits) -> LossAndSlope:
    """The same of any term that is a sum over tokens, divided by ``count``."""
    with torch.enable_grad():
        z = tokens.student.detach().requires_grad_()
        loss = term(
            student_logits=z,
            teacher_logits=tokens.teacher,
            labels=tokens.labels,
            mask=tokens.mask,
            count=1,
            progress=tokens.progress,
        )
        return loss.detach(), torch.autograd.grad(loss, z)[0].contiguous()  # of a plain sum it is one number, expanded


# One pass over all tokens ------------------------------------------------------------------------------------------------


def tokens_at_once(vocabulary: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> int:
    """How many tokens' logits to hold, for a vocabulary of this size and products of this type.

    Every chunk reads all of the head's weight, and adds to all of its gradient: below some hundreds of tokens, on a GPU a thousand,
    the products wait for memory. Above, they gain little, and the buffers grow.

    >>> tokens_at_once(32_000), tokens_at_once(256_000), tokens_at_once(128_256, "cuda")
    (256, 128, 1024)
    >>> tokens_at_once(32_000, dtype=torch.bfloat16)  # in the same memory
    512
    """
    if torch.device(device).type == "cpu":
        return min(512, max(128, 2**25 // dtype.itemsize // vocabulary // 64 * 64))
    return min(2048, max(512, 2**27 // vocabulary // 64 * 64))


#: How many logits are softened at a time. On a CPU what a dozen passes over them need stays in its cache; on a GPU it is small beside
#: the logits of a chunk.
AT_ONCE = {"cpu": 2**17, "cuda": 2**24}


def token_means(
    terms: dict[str, Callable[[TokenLogits], LossAndSlope]],
    weights: dict[str, float],
    student: HeadLogits,
    teacher: AnyLogits | None,
    labels: Labels | None,
    *,
    mask: Mask | None = None,
    count: Count | None = None,
    progress: float | None = None,
) -> tuple[Scalar, dict[str, Scalar]]:
    """The weighted sum of terms, and each of them, without ever holding the logits of all tokens.

    Args:
        terms: by name, functions of :class:`TokenLogits` that give each token's loss and its gradient by the logits.
        weights: of the terms, by name.
        student, teacher: shape ``(..., V)``; no gradient reaches the teacher.
        labels, mask: shape ``(...)``; where ``mask`` is False or the label −100, a token does not count.
        count: what to divide by; None is the number of tokens that count.

    Returns:
        The sum, with gradients by the student's hidden states, weight and bias; and each term's mean, which has none of its
        own.

    Raises:
        FloatingPointError: if a logit is NaN or infinite: here it is the product that overflows, not what was given.
    """
    outline = _outline(student)
    if mask is not None:
        check_mask(mask, outline[..., 0], empty=True)
    if isinstance(labels, Tensor):
        learned = labels != IGNORED
        mask = learned & mask if mask is not None and mask.shape == labels.shape else learned
    if teacher is not None:
        fits = mask is not None and mask.shape == outline.shape[:-1] == teacher.shape[:-1]
        check_same_shape(outline, _outline(teacher), mask if fits else None)
        teacher = _flat(teacher.detach())
    if isinstance(teacher, HeadLogits):  # autocast would copy it anew for each chunk
        teacher = replace(teacher, weight=teacher.weight.to(teacher.dtype))
    if labels is not None:
        labels = counted_labels(labels, outline, mask).flatten()
    if count is not None:
        check_count(count)
    if mask is not None:
        check_mask(mask, outline[..., 0], empty=count is not None)
    rows = torch.arange(outline[..., 0].numel(), device=student.device)
    counts = None
    if mask is not None and on_host(mask):
        rows = rows[mask.flatten()]
    elif mask is not None:  # how many count is not waited for: all are computed, and those that do not count are zero
        counts = mask.flatten()
    if count is None:
        if not len(rows):
            raise ValueError("there is no position to average over.")
        count = len(rows) if counts is None else counts.sum()
    if isinstance(teacher, SparseTargets):  # a few numbers, looked at once and not in every part
        teacher = counted_targets(teacher, None if mask is None else mask.flatten())

    def differentiate(z, part):
        """Each term's sum over a part of the tokens that count, whose logits become the gradient of the weighted sum."""
        t = None if teacher is None else teacher[rows[part]]
        cap = t.softcap if isinstance(t, HeadLogits) else None
        t = replace(t, softcap=None).dense() if isinstance(t, HeadLogits) else t
        wide = torch.promote_types(z.dtype if t is None else torch.promote_types(z.dtype, t.dtype), torch.float32)
        found = []
        for i in _pieces(len(z), max(1, AT_ONCE.get(z.device.type, 2**24) // z.shape[-1])):
            kept = None if counts is None else counts[part][i]
            capped = None if student.softcap is None else torch.tanh(z[i].to(wide) / student.softcap)
            said = t[i].to(wide) if isinstance(t, Tensor) else None if t is None else t[i]
            if cap is not None and isinstance(said, Tensor):
                said = cap * torch.tanh(said / cap)
            tokens = TokenLogits(
                z[i].to(wide) if capped is None else student.softcap * capped,  # pyrefly: ignore[unsupported-operation]
                said,
                None if labels is None else labels[rows[part][i]],
                progress,
                kept,
            )
            sums, slopes = [], []
            for term in terms.values():
                losses, by_logits = term(tokens)
                losses = losses if kept is None or not losses.ndim else losses.where(kept, 0.0)
                sums.append(losses.sum())
                slopes.append(by_logits)
            slope = weighted_sum(slopes, list(weights.values()))
            slope = slope if kept is None else slope.masked_fill(~kept[:, None], 0.0)
            z[i] = slope if capped is None else slope * (1 - capped.square())
            found.append(torch.stack(sums))
        return torch.stack(found).sum(0)

    student = student if torch.is_grad_enabled() else student.detach()
    hidden = student.hidden.flatten(0, -2).index_select(0, rows)
    hidden = hidden if counts is None else hidden.where(counts[:, None], 0.0)
    inputs = hidden, student.weight, student.bias
    sums = _TokenSums.apply(differentiate, tuple(weights.values()), student.dtype, student.chunk, *inputs)
    if _inspectable(hidden) and not torch.isfinite(torch.stack(sums)).all():
        raise FloatingPointError(
            "the logits of the student or the teacher have entries that are NaN or infinite, or a loss is infinite, since it asks "
            "for probability where a logit of −∞ says that a token does not exist."
        )
    total, *values = (value / count for value in sums)
    return total, dict(zip(terms, values, strict=True))


class _TokenSums(torch.autograd.Function):
    """The weighted sum of the terms, and the terms, over all tokens.

    All products are made in the forward pass, while the logits are there; backward scales what came out of them.
    """

    @staticmethod
    def forward(ctx, differentiate, weights, dtype, chunk, hidden, weight, bias):
        ctx.set_materialize_grads(False)
        *_, by_hidden, by_weight, by_bias = ctx.needs_input_grad
        wide = torch.promote_types(dtype, torch.float32)
        grad_hidden = torch.empty_like(hidden, dtype=dtype) if by_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if by_weight else None
        grad_bias = torch.zeros_like(bias, dtype=wide) if by_bias else None
        h, W, b = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        sums = hidden.new_zeros(len(weights), dtype=wide)
        for part in _pieces(len(h), chunk or tokens_at_once(len(W), h.device, h.dtype)):
            z = F.linear(h[part], W, b)
            sums = sums + differentiate(z, part)
            if grad_hidden is not None:
                torch.mm(z, W, out=grad_hidden[part])
            if grad_weight is not None:
                _add_product(grad_weight, z.T, h[part])
            if grad_bias is not None:
                grad_bias += z.sum(0, dtype=wide)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.dtypes = [None if x is None else x.dtype for x in (hidden, weight, bias)]
        weights = torch.stack([sums.new_full((), float(weight)) for weight in weights])  # made there, and not copied
        return (sums * weights).sum(), *sums.unbind()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream, *of_terms):  # pyrefly: ignore[bad-override]
        if any(g is not None for g in of_terms):
            raise RuntimeError(
                "terms of HeadLogits have one gradient together, that of the total: for each alone, use "
                "student_logits.dense()."
            )
        if upstream is None:
            return (None,) * 7
        scaled = (
            None if g is None else _scaled(g, upstream, dtype)
            for g, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return None, None, None, None, *scaled


def on_host(mask: Mask) -> bool:
    """Whether its values are known without waiting for a device."""
    return mask.device.type == "cpu"


def _add_product(total, x, y):
    """total += x @ y, summed in full precision where the product is not."""
    if x.dtype == total.dtype:
        total.addmm_(x, y)
        return
    product = x @ y
    for rows in _in_cache(total):
        total[rows] += product[rows]


def _scaled(gradient, upstream, dtype):
    """upstream·gradient, in a type."""
    out = torch.empty_like(gradient, dtype=dtype)
    for rows in _in_cache(gradient):
        torch.mul(gradient[rows], upstream, out=out[rows])
    return out


def _in_cache(tensor):
    """Rows so many at a time that what a CPU converts of them stays in its cache: all at once take five times as long. Elsewhere all."""
    rows = 2**18 // math.prod(tensor.shape[1:]) if tensor.device.type == "cpu" else len(tensor)
    return _pieces(len(tensor), max(1, rows))


def _pieces(length, size):
    return [slice(start, start + size) for start in range(0, length, size)]


def _flat(logits):
    """Leading axes as one."""
    if isinstance(logits, SparseTargets):
        return logits.flatten()
    if isinstance(logits, HeadLogits):
        return replace(logits, hidden=logits.hidden.flatten(0, -2))
    return logits.flatten(0, -2)


def _outline(logits):
    """A tensor of this shape and type that holds nothing: for the checks, which look at no more than that."""
    if isinstance(logits, Tensor):
        return logits
    return torch.empty(logits.shape, dtype=logits.dtype, device="meta")
