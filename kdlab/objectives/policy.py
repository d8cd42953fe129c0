r"""A leash called KL: policies that earn a reward and stay near a reference.

A language model is a policy: it writes :math:`x` after a prompt with probability :math:`q(x) = \prod_t q(x_t \mid x_{<t})`. What is
wanted is

.. math:: \max_q\ \mathbb E_{x \sim q}[r(x)] - \beta\, D_{\mathrm{KL}}(q\,\|\,p)

with a reward :math:`r`, and a reference :math:`p` that is usually the policy before it learned. Its solution is
:math:`q \propto p\, e^{r/\beta}`; without the reward, it is distillation by reverse KL. All here is of texts that the policy itself
has just written (:class:`~kdlab.language.text.OwnText`), the reference in the teacher's place, the text in that of the labels.

Source: the objective, Ziegler et al. (2019), eq. 2; Korbak et al. (2022) for the solution.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from kdlab.shapes import Float, Integer, Num

from .checks import IGNORED, _inspectable, check_count, check_indices, check_mask, check_same_shape, check_weight
from .divergences import reverse_kl
from .softening import counted_rows, full_precision
from .terms import Term, _shown, described
from .types import Count, Mask, Scalar
from .vocabulary import by_autograd

Estimator = Literal["k1", "k2", "k3"]
ESTIMATORS = ("k1", "k2", "k3", "exact")
# From texts ``(B, T)``, −100 where they are not the policy's own, to what each earns, ``(B,)``.
Reward = Callable[[Tensor], Tensor]
Baseline = Literal["leave-one-out", "standardised", "none"]
BASELINES = ("leave-one-out", "standardised", "none")


def sampled_kl(
    log_policy: Float[Tensor, "*tokens"], log_reference: Float[Tensor, "*tokens"], estimator: Estimator = "k3"
) -> Float[Tensor, "*tokens"]:
    r"""An estimate of :math:`D_{\mathrm{KL}}(q\,\|\,p)` at each token that was drawn from :math:`q`.

    With :math:`\rho = p(x)/q(x)`:

    .. math:: k_1 = -\log\rho, \qquad k_2 = \tfrac12 (\log\rho)^2, \qquad k_3 = \rho - 1 - \log\rho

    The mean of :math:`k_1` and of :math:`k_3` is the divergence; that of :math:`k_2` is not, but for small ones. Their gradients,
    taken as losses, are other things: in the mean, that of :math:`k_1` is zero, that of :math:`k_2` is the divergence's, and
    that of :math:`k_3` is the gradient of :math:`D_{\mathrm{KL}}(p\,\|\,q)`, the other direction.

    Args:
        log_policy, log_reference: :math:`\log q(x)` and :math:`\log p(x)`, of one shape, finite.

    Returns:
        Of the same shape, differentiable by both; float32 for half precision.

    Raises:
        TypeError: for what is no floating-point tensor.
        ValueError: for another estimator, or shapes that differ; for what is not finite; and where
            :math:`\rho` is larger than a number can be (:math:`e^{88}` in float32): such a token was not drawn from :math:`q`.

    Source: Schulman (2020), Approximating KL Divergence; of the gradients, Tang & Munos (2025).

    >>> sampled_kl(torch.tensor([0.0]), torch.tensor([-1.0]), "k2")
    tensor([0.5000])
    """
    for name, given in (("log_policy", log_policy), ("log_reference", log_reference)):
        if not isinstance(given, Tensor) or not given.is_floating_point():
            kind = given.dtype if isinstance(given, Tensor) else type(given).__name__
            raise TypeError(f"{name} is a floating-point tensor of log-probabilities, not {kind}.")
        if _inspectable(given) and not torch.isfinite(given).all():
            raise ValueError(
                f"{name} has entries that are NaN or infinite: it holds log-probabilities of tokens that were drawn."
            )
    if log_policy.shape != log_reference.shape:
        raise ValueError(
            f"log-probabilities of shapes {tuple(log_policy.shape)} and {tuple(log_reference.shape)} are not of the same tokens."
        )
    log_policy, log_reference = full_precision(log_policy), full_precision(log_reference)
    log_rho = log_reference - log_policy
    if estimator == "k1":
        return -log_rho
    if estimator == "k2":
        return log_rho.square() / 2
    if estimator == "k3":
        largest = math.log(torch.finfo(log_rho.dtype).max)
        if _inspectable(log_rho) and log_rho.numel() and log_rho.max() > largest:
            raise ValueError(
                f"k3 overflows where a token is e^{log_rho.max():.0f} times as likely for the reference as for the policy: it was "
                "not drawn from the policy. Are these the policy's own texts? k1, k2 and exact divergences stay finite."
            )
        return torch.expm1(log_rho) - log_rho
    raise ValueError(f"an estimate is k1, k2 or k3, not {estimator!r}.")


def advantages(returns: Num[Tensor, " B"], group: int, baseline: Baseline = "leave-one-out") -> Float[Tensor, " B"]:
    r"""By how much each text is better than the others that were written after the same prompt.

    ``"leave-one-out"`` takes from each return the mean of the others of its group, which leaves the gradient unbiased;
    ``"standardised"`` the mean of all, and divides by their deviation, as GRPO; ``"none"`` nothing.

    .. math:: A_i = r_i - \frac1{G-1}\sum_{j \ne i} r_j, \qquad A_i = \frac{r_i - \bar r}{s + \varepsilon},
        \quad s^2 = \frac1{G-1}\sum_j (r_j - \bar r)^2, \quad \varepsilon = 10^{-4}

    Of GRPO it is the baseline alone, without its division by a text's length and without its ratio, which is one where each batch
    is used once.

    Args:
        returns: shape ``(B,)``, groups of ``group`` texts, one after another; half precision is computed in float32.

    Raises:
        ValueError: for another baseline, groups that do not fit, or a group of one with a baseline.

    Source: Kool, van Hoof & Welling (2019) and Ahmadian et al. (2024), eq. 8; Shao et al. (2024), section 4.1.

    >>> advantages(torch.tensor([1.0, 3.0]), 2)
    tensor([-2.,  2.])
    """
    if baseline not in BASELINES:
        raise ValueError(f"a baseline is one of {', '.join(BASELINES)}, not {baseline!r}.")
    if group < 1:
        raise ValueError(f"a group has at least one text, not {group}.")
    if returns.ndim != 1 or len(returns) % group:
        raise ValueError(f"returns of shape {tuple(returns.shape)} are not groups of {group}.")
    returns = full_precision(returns) if returns.is_floating_point() else returns.float()
    if baseline == "none":
        return returns
    if group < 2:
        raise ValueError("a baseline needs at least two texts of one prompt.")
    groups = returns.view(-1, group)
    apart = groups - groups.mean(1, keepdim=True)
    if baseline == "leave-one-out":
        return (apart * (group / (group - 1))).flatten()
    return (apart / (groups.std(1, keepdim=True) + 1e-4)).flatten()


def rewards_of(texts: Integer[Tensor, "B T"], reward: Reward) -> Num[Tensor, " B"]:
    """What texts ``(B, T)`` earn, ``(B,)``.

    Raises:
        TypeError: for a reward that gives no tensor.
        ValueError: for one that does not give a finite number for each text.
    """
    given = reward(texts)
    if not isinstance(given, Tensor):
        raise TypeError(f"a reward gives a tensor, a number for each text, not {type(given).__name__}.")
    if given.shape != texts.shape[:1]:
        raise ValueError(f"a reward gives a number for each of {len(texts)} texts, not shape {tuple(given.shape)}.")
    if _inspectable(given) and not torch.isfinite(given).all():
        bad = int((~torch.isfinite(given)).sum())
        raise ValueError(f"the reward of {bad} of {len(texts)} texts is NaN or infinite.")
    return given


def log_probabilities(logits: Float[Tensor, "*batch N"], tokens: Integer[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Log-probabilities ``(...)`` of tokens ``(...)`` by logits ``(..., V)``; zero where the token is −100."""
    known = tokens != IGNORED
    log_q = torch.log_softmax(full_precision(counted_rows(logits, known)), -1)
    return log_q.gather(-1, tokens.masked_fill(~known, 0)[..., None]).squeeze(-1).where(known, 0.0)


def _counted(labels: Integer[Tensor, "*batch"], mask: Mask | None, term: str) -> Integer[Tensor, "*batch"]:
    """Labels, −100 where a mask leaves them out."""
    check_indices(labels, term)
    if mask is None:
        return labels
    check_mask(mask, labels, empty=True)
    return labels.masked_fill(~mask, IGNORED)


class PolicyGradient(Term):
    r"""REINFORCE: :math:`-\frac1B\sum_i A_i \log q(x_i)`, whose gradient is that of the mean reward.

    With ``beta`` the divergence is in the reward: :math:`r(x) - \beta\log\frac{q(x)}{p(x)}`, which is differentiated as the reward is.
    The value is a mean of advantages times log-probabilities and says nothing of progress: beside it put ``0.0 * MeanReward(reward)``.

    Args:
        reward: from texts ``(B, T)`` of tokens, −100 where they are not the policy's own, to rewards ``(B,)``.
        group: how many texts in a row go on from one prompt: the ``copies`` of :class:`~kdlab.language.text.OwnText`.
        baseline: see :func:`advantages`.
        beta: :math:`\beta`, not negative.
    """

    needs_whole_batch_of = ("texts", "images")  # texts are compared within their group, whatever data they come as

    def __init__(
        self,
        reward: Reward,
        group: int,
        baseline: Baseline = "leave-one-out",
        beta: float = 0.0,
    ) -> None:
        super().__init__()
        if not callable(reward):
            raise TypeError(f"a reward is a function of texts, such as TokenCount((3, 5)), not {reward!r}.")
        advantages(torch.zeros(max(group, 0)), group, baseline)
        check_weight("beta", beta)
        if beta < 0:
            raise ValueError(f"beta cannot be negative: {beta}.")
        self.reward, self.group, self.baseline, self.beta = reward, group, baseline, beta
        self.needs_teacher = beta > 0

    def extra_repr(self) -> str:
        return f"{described(self.reward)}, group={self.group}, baseline={self.baseline!r}, beta={_shown(self.beta)}"

    def check_rewrite(self, rewrite: object) -> None:
        """That what the policy is trained on are its own texts, drawn as they are weighted, in groups of one prompt.

        Raises:
            ValueError: for a :class:`~kdlab.training.student.Learner` whose ``rewrite`` is something else.
        """
        wanted = {"copies": self.group, "probability": 1, "after": 0, "temperature": 1}
        other = {name: getattr(rewrite, name, value) for name, value in wanted.items()}
        if rewrite is None or other != wanted:
            raise ValueError(
                f"a policy learns from its own texts alone, {self.group} for each prompt and drawn at temperature one: "
                f"rewrite=OwnText(…, copies={self.group})."
            )

    def forward(
        self,
        *,
        student_logits: Float[Tensor, "B T N"],
        labels: Integer[Tensor, "B T"],
        teacher_logits: Float[Tensor, "B T N"] | None = None,
        mask: Mask | None = None,
        **_: Any,
    ) -> Scalar:
        labels = _counted(labels, mask, "PolicyGradient")
        log_q = log_probabilities(student_logits, labels).sum(1)
        returns = rewards_of(labels, self.reward).to(log_q.dtype)
        if self.beta:
            check_same_shape(student_logits, teacher_logits, labels != IGNORED)
            log_p = log_probabilities(teacher_logits, labels).sum(1)  # pyrefly: ignore[bad-argument-type] None is refused above
            returns = returns - self.beta * (log_q - log_p)
        return -(advantages(returns.detach(), self.group, self.baseline) * log_q).mean()


class TextKL(Term):
    r"""The divergence of policy and reference as a loss: at each token an estimate, or exactly; sums over texts, their mean.

    ``"exact"`` is :math:`\sum_t D_{\mathrm{KL}}(q_t\,\|\,p_t)` of all the vocabulary after what was written. Its gradient, as that of every
    estimate here, leaves out that other words would have come after other words.
    """

    def __init__(self, estimator: Literal["exact"] | Estimator = "k3") -> None:
        super().__init__()
        if estimator not in ESTIMATORS:
            raise ValueError(f"an estimate is one of {', '.join(ESTIMATORS)}, not {estimator!r}.")
        self.estimator: Literal["exact"] | Estimator = estimator

    def extra_repr(self) -> str:
        return repr(self.estimator)

    def forward(
        self,
        *,
        student_logits: Float[Tensor, "B T N"],
        teacher_logits: Float[Tensor, "B T N"],
        labels: Integer[Tensor, "B T"],
        mask: Mask | None = None,
        example_count: Count | None = None,
        **_: Any,
    ) -> Scalar:
        labels = _counted(labels, mask, "TextKL")
        count = len(labels) if example_count is None else example_count
        check_count(count)
        if self.estimator == "exact":
            known = labels != IGNORED
            return reverse_kl(student_logits, teacher_logits.detach(), mask=known, reduction="sum") / count
        check_same_shape(student_logits, teacher_logits, labels != IGNORED)
        log_q, log_p = (log_probabilities(z, labels) for z in (student_logits, teacher_logits.detach()))
        return sampled_kl(log_q, log_p, self.estimator).sum() / count


class SampledReverseKL(Term):
    r"""Reverse KL of the tokens that were drawn, as a policy gradient: each token's advantage is how much likelier the reference finds it.

    .. math:: -\frac1n\sum_t A_t \log q(x_t), \qquad A_t = \log p(x_t) - \log q(x_t) \ \text{(a constant)}

    On tokens drawn from the policy at temperature one, the mean of its gradient is that of :math:`\frac1n\sum_t D_{\mathrm{KL}}(q_t\,\|\,p_t)`,
    :class:`~kdlab.objectives.terms.ReverseKL` on the same texts, since :math:`\mathbb E_q[\nabla\log q] = 0`; its value is the mean of :math:`-A_t`,
    an estimate of the same divergence. It takes two log-probabilities a token, as a server gives them, in place of two vocabularies; what that costs is
    variance, which :func:`sampled_gradient_variance` says. As ``ReverseKL``'s, the gradient leaves out that other tokens would have come after
    other tokens (a discount of zero).

    Args:
        baseline: take the exact divergence, :math:`-D_{\mathrm{KL}}(q_t\,\|\,p_t)`, from each advantage: the same mean, less variance, and the
            vocabularies are needed after all.

    Source: Lu & Thinking Machines Lab (2025), On-Policy Distillation.

    >>> term, z, t = SampledReverseKL(), torch.zeros(1, 1, 2), torch.tensor([[[0.0, 2.0]]])
    >>> (1.0 * term)(student_logits=z, teacher_logits=t, labels=torch.tensor([[0]]))[0]  # log 1/2 − log p(0)
    tensor(1.4338)
    """

    def __init__(self, baseline: bool = False) -> None:
        super().__init__()
        self.baseline = baseline

    def extra_repr(self) -> str:
        return "baseline=True" if self.baseline else ""

    on_tokens = by_autograd

    def forward(
        self,
        *,
        student_logits: Float[Tensor, "*batch N"],
        teacher_logits: Float[Tensor, "*batch N"],
        labels: Integer[Tensor, "*batch"],
        mask: Mask | None = None,
        count: Count | None = None,
        **_: Any,
    ) -> Scalar:
        labels = _counted(labels, mask, "SampledReverseKL")
        known = labels != IGNORED
        check_same_shape(student_logits, teacher_logits, known)
        log_q, log_p = (log_probabilities(z, labels) for z in (student_logits, teacher_logits.detach()))
        weight = apart = sampled_kl(log_q, log_p, "k1").detach()
        if self.baseline:
            weight = apart - reverse_kl(student_logits.detach(), teacher_logits.detach(), mask=known, reduction="none")
        check_count(count := known.sum() if count is None else count)
        surrogate = (weight * log_q).where(known, 0.0)
        return (apart + surrogate - surrogate.detach()).where(known, 0.0).sum() / count


def sampled_gradient_variance(
    student_logits: Float[Tensor, "*tokens N"], teacher_logits: Float[Tensor, "*tokens N"], *, baseline: bool = False
) -> tuple[Float[Tensor, "*tokens"], Float[Tensor, "*tokens"]]:
    r"""How much the gradient of :class:`SampledReverseKL` by a token's logits varies, and the squared length of its mean.

    With :math:`a = \log q - \log p` (less its mean under :math:`q`, the divergence, with a baseline), a draw of :math:`x` gives the gradient
    :math:`a_x (e_x - q)`; its mean is the exact one, :math:`g = q \odot (a - D_{\mathrm{KL}}(q\,\|\,p))`, and

    .. math:: \operatorname{tr} \operatorname{Cov} = \sum_x q_x a_x^2 \left(1 - 2 q_x + \lVert q\rVert^2\right) - \lVert g\rVert^2

    The exact loss has none. Of the mean of :math:`n` draws at one place it is an :math:`n`-th.

    Returns:
        Variance and squared length, each of shape ``(...)``.

    >>> variance, squared = sampled_gradient_variance(torch.zeros(2), torch.tensor([0.0, 2.0]), baseline=True)
    >>> variance.item() < 1e-6, round(squared.item(), 3)  # of two classes with a baseline, both draws say the same
    (True, 0.5)
    """
    check_same_shape(student_logits, teacher_logits)
    log_q, log_p = (torch.log_softmax(full_precision(z), -1) for z in (student_logits, teacher_logits))
    q = log_q.exp()
    apart = (log_q - log_p).masked_fill(log_q.isneginf() & log_p.isneginf(), 0.0)  # a class that there is not
    centred = apart - (q * apart).sum(-1, keepdim=True)
    weight = centred if baseline else apart
    squared = (q * centred).square().sum(-1)
    second = (q * weight.square() * (1 - 2 * q + q.square().sum(-1, keepdim=True))).sum(-1)
    return second - squared, squared


class MeanReward(Term):
    """What the texts of a batch earn; it has no gradient, and is there to be recorded, with weight zero."""

    needs_teacher = False

    def __init__(self, reward: Reward) -> None:
        super().__init__()
        self.reward = reward

    def extra_repr(self) -> str:
        return described(self.reward)

    def forward(
        self,
        *,
        student_logits: Any,
        labels: Integer[Tensor, "B T"],
        mask: Mask | None = None,
        example_count: Count | None = None,
        **_: Any,
    ) -> Scalar:
        labels = _counted(labels, mask, "MeanReward")
        earned = rewards_of(labels, self.reward).sum()
        return earned / (len(labels) if example_count is None else example_count)
