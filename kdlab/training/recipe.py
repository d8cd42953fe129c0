"""How a run is trained: everything but the models, the data and the objective."""

import math
import re
from dataclasses import dataclass

from .precision import PRECISIONS


@dataclass(frozen=True)
class Recipe:
    r"""One way to train. The defaults are the published CIFAR-100 distillation recipe (Tian et al. 2020).

    Attributes:
        epochs: passes over the training split.
        batch_size: examples a step.
        optimizer: ``"sgd"`` (with ``momentum``), ``"adam"``, or ``"adamw"`` (Loshchilov & Hutter 2019, with betas 0.9 and
            0.95, whose decay leaves vectors, such as the weights of norms, alone).
        learning_rate: the peak.
        schedule: ``"step"`` multiplies by ``decay`` at each of ``milestones`` (epochs); ``"cosine"`` falls to zero;
            ``"constant"`` stays.
        warmup_epochs: the rate rises linearly from zero over these.
        weight_decay: added to the gradient of every parameter.
        augment: random crop and flip, of images alone; vectors and texts stay as they are.
        teacher_view: ``"same"``: the teacher sees the student's crops (consistent teaching, Beyer et al. 2022);
            ``"own"``: it sees crops of its own of the same images.
        mixup: student and teacher see each example mixed with another of its batch, by a share that is uniform on [0, 1]; for objectives
            that ask no labels (Beyer et al. 2022).
        teacher_mode: ``"eval"``; or ``"train"``, the well-known mistake, for measuring it: batch normalisation by the batch.
        precision: ``"float32"``; or of autocast, ``"bfloat16"``, or ``"float16"`` with a gradient scaler, for GPUs before Ampere
            (T4, V100), which have no fast bfloat16. A step whose gradients overflow is left out, and the scale halved.
        epoch_examples: how many examples an epoch has, drawn anew from the split each time; None: all of them.
        micro_batches: a batch is run in so many equal parts, whose gradients add up to its own; for less memory. (Batch
            normalisation averages over each part.)
        max_gradient_norm: a longer gradient is shortened to this; 0 leaves all as they are.
        seed: of the order and the augmentation of the examples. Runs that share it see the same batches.
        ema_decay: what is measured after an epoch, and left in the student at the end, is the exponential moving average of its weights
            and statistics: after step t, :math:`\bar\theta \leftarrow d_t \bar\theta + (1 - d_t)\theta` with
            :math:`d_t = \min(\texttt{ema\_decay}, (1 + t)/(10 + t))`, as TensorFlow's ``ExponentialMovingAverage`` with its number of
            updates. 0: the weights themselves.
        best_by: such as ``"highest accuracy"`` or ``"lowest cross_entropy"``, of what is measured of the validation split: the student
            is left as it was after the first epoch that was best by it. None: after the last.
        patience: training ends after so many epochs in a row that were not better than the best by ``best_by``. None: after ``epochs``.
            The schedule of the learning rate is that of ``epochs``.
    """

    epochs: int = 240
    batch_size: int = 64
    optimizer: str = "sgd"
    learning_rate: float = 0.05
    momentum: float = 0.9
    schedule: str = "step"
    milestones: tuple[float, ...] = (150, 180, 210)
    decay: float = 0.1
    warmup_epochs: float = 0.0
    weight_decay: float = 5e-4
    augment: bool = True
    precision: str = "float32"
    seed: int = 0
    teacher_view: str = "same"
    teacher_mode: str = "eval"
    epoch_examples: int | None = None
    micro_batches: int = 1
    max_gradient_norm: float = 0.0
    ema_decay: float = 0.0
    best_by: str | None = None
    patience: int | None = None
    mixup: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (
            ("optimizer", ("sgd", "adam", "adamw")),
            ("schedule", ("step", "cosine", "constant")),
            ("precision", tuple(PRECISIONS)),
            ("teacher_view", ("same", "own")),
            ("teacher_mode", ("eval", "train")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}.")
        for name in ("augment", "mixup"):
            if not isinstance(getattr(self, name), bool):
                more = "; the shares of a mixture are uniform on [0, 1]" if name == "mixup" else ""
                raise TypeError(f"{name} is True or False, not {getattr(self, name)!r}{more}.")
        for name in ("epochs", "batch_size", "micro_batches", "epoch_examples", "patience"):
            value = getattr(self, name)
            if name in ("epoch_examples", "patience") and value is None:
                continue
            if not isinstance(value, int):
                raise TypeError(f"{name} must be a whole number, not {value!r}.")
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}.")
        if self.batch_size % self.micro_batches:
            raise ValueError(f"a batch of {self.batch_size} cannot be run in {self.micro_batches} equal parts.")
        if self.epoch_examples is not None and self.epoch_examples < self.batch_size:
            raise ValueError(f"an epoch of {self.epoch_examples} examples has no batch of {self.batch_size}.")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive and finite, not {self.learning_rate!r}.")
        for name in ("momentum", "decay", "warmup_epochs", "weight_decay", "max_gradient_norm"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and not negative, not {getattr(self, name)!r}.")

        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be from 0 to less than 1, not {self.ema_decay!r}.")
        if self.best_by is not None and not re.fullmatch("(highest|lowest) .+", str(self.best_by)):
            raise ValueError(f'best_by is "highest …" or "lowest …", such as "highest accuracy", not {self.best_by!r}.')
        if self.patience is not None and self.best_by is None:
            raise ValueError(
                'patience waits for a better epoch: say by what it is better, such as best_by="highest accuracy".'
            )

    def best_epoch(self, history: list[dict]) -> int:
        """The number, from 1, of the epoch of a history after which the student is left: the best by ``best_by``, or the last.

        >>> history = [{"validation": {"accuracy": x}} for x in (0.5, 0.7, 0.6, 0.7)]
        >>> Recipe(best_by="highest accuracy").best_epoch(history), Recipe().best_epoch(history)
        (2, 4)
        """
        if self.best_by is None:
            return len(history)
        which, name = self.best_by.split(" ", 1)
        if missing := [entry["validation"] for entry in history if name not in entry["validation"]]:
            raise ValueError(
                f"best_by names {name!r}, and what is measured of the validation split is {', '.join(missing[0])}."
            )
        measured = [entry["validation"][name] for entry in history]
        return 1 + measured.index((max if which == "highest" else min)(measured))

    def over(self, history: list[dict]) -> bool:
        """Whether a training with this history has come to its end.

        >>> history = [{"validation": {"accuracy": x}} for x in (0.5, 0.7, 0.6, 0.7)]
        >>> [Recipe(best_by="highest accuracy", patience=n).over(history) for n in (2, 3)]
        [True, False]
        """
        waited = self.patience is not None and history and len(history) - self.best_epoch(history) >= self.patience
        return bool(waited) or len(history) >= self.epochs

    def learning_rate_at(self, epoch: float) -> float:
        """The learning rate after ``epoch`` epochs (fractions count: the rate is set at every step).

        >>> [round(Recipe().learning_rate_at(epoch), 6) for epoch in (0, 149.9, 150, 210)]
        [0.05, 0.05, 0.005, 5e-05]
        """
        if epoch < self.warmup_epochs:
            return self.learning_rate * epoch / self.warmup_epochs
        if self.schedule == "cosine":
            done = (epoch - self.warmup_epochs) / max(self.epochs - self.warmup_epochs, 1e-12)
            return self.learning_rate * (1 + math.cos(math.pi * min(done, 1.0))) / 2
        if self.schedule == "step":
            return self.learning_rate * self.decay ** sum(epoch >= milestone for milestone in self.milestones)
        return self.learning_rate
