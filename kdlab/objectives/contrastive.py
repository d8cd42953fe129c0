r"""Contrastive objectives: recognise the teacher's view of the same example among those of others.

Convention of the whole file: embeddings have shape ``(B, D)``, both of one width (project first), and are brought to
length one; similarities are divided by a temperature :math:`\tau`, which has nothing to do with that of the softmax over
classes.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from kdlab.shapes import Float, Integer

from .checks import check_features, check_indices, check_labels, check_temperature
from .features import Projector, unit
from .softening import full_precision, without_autocast
from .types import Scalar


@without_autocast
def info_nce(
    student: Float[Tensor, "B D"],
    teacher: Float[Tensor, "B D"],
    *,
    temperature: float = 0.1,
    negatives: Float[Tensor, "M D"] | None = None,
    labels: Integer[Tensor, " B"] | None = None,
) -> Scalar:
    r"""InfoNCE: cross-entropy of finding the teacher's embedding of the same example among :math:`K` candidates.

    .. math:: -\frac1B \sum_i \log \frac{e^{\langle s_i, t_i\rangle/\tau}}{\sum_{j=1}^{K} e^{\langle s_i, t_j\rangle/\tau}},
        \qquad I(S; T) \ge \log K - L

    The positive is in the denominator, or it is no bound. The candidates of example :math:`i` are the teacher's
    embeddings of the whole batch, and of ``negatives``. Convention: mean over the batch; student to teacher only; under
    several ranks each has its own batch's candidates. Costs :math:`O(BKD)`.

    Args:
        student: :math:`s`, shape ``(B, D)``.
        teacher: :math:`t`, shape ``(B, D)``.
        temperature: :math:`\tau`.
        negatives: further candidates from a memory, shape ``(M, D)``.
        labels: class indices, shape ``(B,)``: other examples of the same class are then no candidates. An example that is left without any
            has a loss of zero.

    Raises:
        ValueError: for shapes that do not fit, for a single example without negatives, and for NaN and infinities.

    Source: van den Oord, Li & Vinyals (2018), eq. 4 and section 2.3.

    >>> orthogonal = torch.eye(4)
    >>> info_nce(orthogonal, orthogonal, temperature=1.0)  # log(e + 3) − 1
    tensor(0.7437)
    """
    check_features(student, teacher)
    if student.ndim != 2:
        raise ValueError(f"embeddings have shape (batch, width), not {tuple(student.shape)}.")
    if negatives is not None:
        check_features(negatives, negatives, ("negatives", "negatives"))
    if len(student) + (0 if negatives is None else len(negatives)) < 2:
        raise ValueError("a batch of one has no negatives: give some, or larger batches.")
    student, teacher = unit(full_precision(student)), unit(full_precision(teacher))
    scores = student @ teacher.T
    check_temperature(temperature, scores)
    scores = scores / temperature
    if labels is not None:
        check_indices(labels, "info_nce")
        if labels.shape != student.shape[:1]:
            raise ValueError(f"labels of shape {tuple(labels.shape)} do not fit {len(student)} examples.")
        alike = (labels.unsqueeze(0) == labels.unsqueeze(1)).fill_diagonal_(False)
        scores = scores.masked_fill(alike, -torch.inf)
    positive = scores.diagonal()
    if negatives is not None:
        if negatives.shape[1:] != teacher.shape[1:]:
            raise ValueError(
                f"negatives of shape {tuple(negatives.shape)} do not fit embeddings of width {teacher.shape[1]}."
            )
        scores = torch.cat([scores, student @ unit(full_precision(negatives)).T / temperature], 1)
    return (scores.logsumexp(1) - positive).mean()


class MemoryBank(nn.Module):
    r"""An embedding of every training example as it was when last seen: negatives without a large batch.

    Entries are keyed by the example's **index in the training set**, not by its position in a batch. They are moved by
    momentum, :math:`m \leftarrow \operatorname{unit}(\mu m + (1-\mu) e)`, and are buffers: in the checkpoint, without
    gradient. Under ``torch.distributed`` all ranks' examples update every rank's bank, so that the banks stay equal.

    Args:
        examples: size of the training set.
        width: of the embeddings.
        momentum: :math:`\mu \in [0, 1)`.
    """

    def __init__(self, examples: int, width: int, *, momentum: float = 0.5) -> None:
        super().__init__()
        if not (examples > 1 and width > 0 and 0 <= momentum < 1):
            raise ValueError(
                f"a bank of {examples!r} × {width!r} with momentum {momentum!r} cannot be: it takes at least two "
                "examples, a positive width and a momentum from 0 to below 1."
            )
        self.momentum = momentum
        self.register_buffer("entries", torch.empty(examples, width))
        self.register_buffer("labels", torch.empty(examples, dtype=torch.int64))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Random directions, of classes unknown."""
        if self.entries.is_meta:  # a shape without memory, which holds nothing yet
            return
        nn.init.normal_(self.entries)
        self.entries.copy_(unit(self.entries))
        self.labels.fill_(-1)

    @torch.no_grad()
    def update(
        self, index: Integer[Tensor, " B"], embeddings: Float[Tensor, "B D"], labels: Integer[Tensor, " B"]
    ) -> None:
        """Move the entries of the examples ``index`` towards their ``embeddings``, on all ranks."""
        index, embeddings, labels = (
            _from_all_ranks(x) for x in (index, unit(full_precision(embeddings.detach())), labels)
        )
        moved = self.momentum * self.entries[index] + (1 - self.momentum) * embeddings.to(self.entries.dtype)
        self.entries[index] = unit(moved)
        self.labels[index] = labels

    def negatives(
        self, index: Integer[Tensor, " B"], labels: Integer[Tensor, " B"], number: int
    ) -> tuple[Integer[Tensor, " M"], Float[Tensor, "B M"], Integer[Tensor, " B"]]:
        """Draw negatives for a batch, without replacement.

        One draw serves the whole batch, so that similarities are one matrix product. Of what is drawn, the negatives of
        an example are those of other classes than its own: a uniform draw from them. An example that was never seen has
        no class yet, and a random entry; it may be anyone's negative but its own.

        Args:
            index: of the batch's examples, shape ``(B,)``.
            labels: of the batch, shape ``(B,)``.
            number: of examples to draw, M; at most the size of the bank.

        Returns:
            Indices ``(M,)`` of what was drawn; what to add to the scores, shape ``(B, M)``: 0 where it is a negative of the
            example, −∞ where it is not; and the number of negatives of each example, shape ``(B,)``.
        """
        drawn = torch.randperm(len(self.entries), device=self.entries.device)[:number]
        alike = (self.labels[drawn] == labels.unsqueeze(1)) | (drawn == index.unsqueeze(1))
        mask = torch.zeros_like(alike, dtype=self.entries.dtype).masked_fill(alike, -torch.inf)
        return drawn, mask, len(drawn) - alike.count_nonzero(1)


def _from_all_ranks(x: Tensor) -> Tensor:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return x
    parts = [torch.empty_like(x) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, x.contiguous())
    return torch.cat(parts)


@without_autocast
def crd_nce(
    positive: Float[Tensor, " B"],
    negatives: Float[Tensor, "B M"],
    number: Integer[Tensor, " B"],
    normaliser: Scalar,
    examples: int,
) -> Scalar:
    r"""The noise-contrastive loss of CRD.

    With :math:`u = e^{\text{score}}/Z` and :math:`m/n`, the number of negatives over that of examples,

    .. math:: -\frac1B \sum_i \Bigl[\log\frac{u_i^+}{u_i^+ + m/n} + \sum_{j} \log\frac{m/n}{u_{ij}^- + m/n}\Bigr]

    Args:
        positive: similarities over temperature of the positives, shape ``(B,)``.
        negatives: those of the negatives, shape ``(B, M)``; −∞ where there is none.
        number: :math:`m`, of negatives of each example, shape ``(B,)``.
        normaliser: :math:`Z`, a scalar.
        examples: :math:`n`.

    Source: Tian, Krishnan & Isola (2020), section 3.1; the normaliser as in their code.

    >>> crd_nce(torch.zeros(1), torch.zeros(1, 2), torch.tensor([2]), torch.tensor(1.0), 2)
    tensor(2.0794)
    """
    # log(Z·m/n), so that u/(m/n) = exp(score − it). Without any negative there is nothing to tell apart: zero, not NaN.
    log_noise = normaliser.log() + (number / examples).clamp(min=1e-30).log()
    softplus = nn.functional.softplus
    return (softplus(log_noise - positive) + softplus(negatives - log_noise.unsqueeze(1)).sum(1)).mean()


class ContrastiveMemory(nn.Module):
    r"""Embeddings of student and teacher, their memory banks, and the two losses that use them.

    Each network's features go through a linear map to ``width`` and to length one. The student's embedding looks for the
    teacher's of the same example in the teacher's bank, with negatives from there, and the other way round; the loss is the sum
    of the two. Afterwards both banks are updated, in training mode only.

    ``loss="nce"`` is **CRD** as published: noise-contrastive estimation, with the normaliser :math:`Z` set once, at the
    first batch, to the mean of :math:`e^{\text{score}}` times the number of examples. ``loss="info_nce"`` is the softmax over
    the same candidates. The published code draws negatives for each example separately; here one draw serves the batch
    (see :meth:`MemoryBank.negatives`), whose memory is :math:`O(KD + BK)` in place of :math:`O(BKD)`, and the number of
    negatives in the formula is that of each example.

    Args:
        student_width, teacher_width: of the features.
        examples: size of the training set; two banks of ``examples × width`` are kept.
        width: of the embeddings.
        negatives: :math:`K`, drawn at each step.
        temperature: :math:`\tau`.
        momentum: of the banks.
        loss: ``"nce"`` or ``"info_nce"``.

    Source: Tian, Krishnan & Isola (2020), Contrastive Representation Distillation.
    """

    def __init__(
        self,
        student_width: int,
        teacher_width: int,
        examples: int,
        *,
        width: int = 128,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        loss: Literal["nce", "info_nce"] = "nce",
    ) -> None:
        super().__init__()
        if loss not in ("nce", "info_nce"):
            raise ValueError(f'loss must be "nce" or "info_nce", not {loss!r}.')
        if not (isinstance(negatives, int) and negatives > 0):
            raise ValueError(f"negatives must be a positive number of examples, not {negatives!r}.")
        check_temperature(temperature)
        if loss == "nce" and temperature < 0.0015:
            raise ValueError(
                f"at a temperature of {temperature!r} e^(1/τ) overflows: it is at least 0.0015, or info_nce."
            )
        self.number, self.temperature, self.loss = negatives, temperature, loss
        self.student_map = Projector("linear", student_width, width)
        self.teacher_map = Projector("linear", teacher_width, width)
        self.student_bank = MemoryBank(examples, width, momentum=momentum)
        self.teacher_bank = MemoryBank(examples, width, momentum=momentum)
        # 0: not yet set. In float64, which holds e^(1/τ) down to temperatures of 0.0015.
        self.register_buffer("normalisers", torch.zeros(2, dtype=torch.float64))
        self._normalised = False

    def reset_parameters(self) -> None:
        """Draw everything anew."""
        for part in (self.student_map, self.teacher_map, self.student_bank, self.teacher_bank):
            part.reset_parameters()
        self.normalisers.zero_()
        self._normalised = False

    @without_autocast
    def forward(
        self,
        student_features: Float[Tensor, "B ..."],
        teacher_features: Float[Tensor, "B ..."],
        labels: Integer[Tensor, " B"],
        index: Integer[Tensor, " B"],
    ) -> Scalar:
        """The loss of a batch.

        Args:
            student_features: shape ``(B, ...)``, flattened to ``(B, student_width)``.
            teacher_features: shape ``(B, ...)``, flattened to ``(B, teacher_width)``.
            labels: class indices, shape ``(B,)``.
            index: of the examples in the training set, shape ``(B,)``.
        """
        examples = len(self.student_bank.entries)
        check_features(student_features, teacher_features, same_width=False)
        if index.shape != labels.shape or len(index) != len(student_features):
            raise ValueError(f"{len(student_features)} examples have {len(index)} indices and {len(labels)} labels.")
        check_labels(index, student_features.new_empty(()).expand(len(index), examples), "index")
        check_indices(labels, "ContrastiveMemory")
        index, labels = index.long(), labels.long()
        student = unit(self.student_map(student_features.flatten(1)))
        teacher = unit(self.teacher_map(teacher_features.flatten(1)))
        drawn, mask, number = self.teacher_bank.negatives(index, labels, self.number)  # the same of both
        total = student.new_zeros(())
        for which, (anchor, bank) in enumerate(((student, self.teacher_bank), (teacher, self.student_bank))):
            anchor = anchor / self.temperature
            negatives = torch.addmm(mask, anchor, bank.entries.index_select(0, drawn).T)
            score = (anchor * bank.entries[index]).sum(1)  # as old as the negatives, or its age would betray it
            if self.loss == "info_nce":
                scores = torch.cat([score.unsqueeze(1), negatives], 1)
                total = total + (scores.logsumexp(1) - scores[:, 0]).mean()
            else:
                if not self._normalised:
                    self._set_normaliser(which, score, negatives, number)
                total = total + crd_nce(score, negatives, number, self.normalisers[which], examples)
        self._normalised = True
        if self.training:
            self.teacher_bank.update(index, teacher, labels)
            self.student_bank.update(index, student, labels)
        return total

    @torch.no_grad()
    def _set_normaliser(self, which, score, negatives, number):
        """Z = n · mean exp(score) of the first batch, over all ranks, unless a checkpoint has set it."""
        score, negatives = score.double(), negatives.double()  # a constant that overflows would stay for good
        sums = torch.stack([score.exp().sum() + negatives.exp().sum(), len(score) + number.sum()])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        first = len(self.student_bank.entries) * sums[0] / sums[1]
        known = (self.normalisers[which] > 0) | ~torch.isfinite(first)
        self.normalisers[which] = self.normalisers[which].where(known, first)

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self._normalised = False  # look again at what was loaded
