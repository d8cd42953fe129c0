"""Teachers that are no model at hand: a function, such as one that asks a service, and logits that were kept."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kdlab.shapes import Float, Integer

from ..data.examples import as_split
from ..data.images import SHIFTS, batch_indices
from ..objectives import SparseTargets
from ..objectives.softening import full_precision
from .checkpoint import CheckpointError, load_tensors, save_tensors
from .measures import all_logits, evaluation_mode, predict
from .modules import moved_to
from .precision import Precision, autocast
from .protocols import AnySplit, Device, augments, by_index, draws
from .state import checksum, state_of

GIVES = ("logits", "log-probabilities", "probabilities")


class CacheError(RuntimeError):
    """A cache that is missing, damaged, or of another teacher or other examples."""


class FunctionTeacher(nn.Module):
    """A function in a teacher's place: ``fit(…, teacher=FunctionTeacher(ask, "service, version 3", gives="probabilities", smallest=1e-6))``.

    It has no layers to look into, and no gradient. It is asked for every batch: what it says of examples that stay as they are is kept
    by :func:`write_logits`, so that it is asked once.

    Args:
        function: what it is given is a batch of inputs, as the student sees it (or, by ``by_index``, the examples' places in the training
            set, int64, ``(B,)``); what it returns is a tensor ``(B, …, N)`` on any device, or
            :class:`~kdlab.objectives.sparse.SparseTargets`.
        name: which function, and which version of it. Checkpoints and caches tell teachers apart by it.
        gives: ``"logits"``, ``"log-probabilities"`` or ``"probabilities"``. The last two become logits: their logarithm.
        smallest: services round what is small to zero, or clamp it (a log-probability of −9999). To a loss, zero says that a class does
            not exist; at a temperature above one it matters how small a probability is. What is smaller than ``smallest`` is raised to it, and
            each distribution divided by its sum. None: nothing is raised, and zeros are refused.

    Raises:
        ValueError, TypeError: as it is called, for what the function has not said that it gives.

    >>> ask = FunctionTeacher(lambda x: torch.tensor([[0.9, 0.1, 0.0]]), "three", gives="probabilities", smallest=1e-3)
    >>> [round(p, 4) for p in ask(torch.zeros(1, 4)).exp()[0].tolist()]
    [0.8991, 0.0999, 0.001]
    """

    asks = True

    def __init__(
        self,
        function: Callable[[Any], Any],
        name: str,
        *,
        gives: Literal["logits", "log-probabilities", "probabilities"] = "logits",
        smallest: float | None = None,
        by_index: bool = False,
    ) -> None:
        super().__init__()
        if not callable(function) or not isinstance(name, str) or not name:
            raise TypeError("FunctionTeacher takes a function and its name, which says which it is.")
        if gives not in GIVES:
            raise ValueError(f"gives is one of {', '.join(GIVES)}, not {gives!r}.")
        if smallest is not None and (gives == "logits" or not 0 < smallest < 1):
            raise ValueError(
                f"smallest is a probability above zero, where probabilities are given, not {smallest!r} of {gives}."
            )
        self.function, self.name, self.gives, self.smallest, self.by_index = function, name, gives, smallest, by_index
        identity = hashlib.sha256(repr((name, gives, smallest)).encode()).digest()
        self.register_buffer("identity", torch.tensor(list(identity), dtype=torch.uint8))

    @torch.no_grad()
    def forward(self, inputs: Any) -> Float[Tensor, "B *positions N"] | SparseTargets:
        first = next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs
        found = self.function(inputs)
        if isinstance(found, SparseTargets):
            return found
        if not isinstance(found, Tensor) or not found.is_floating_point() or found.ndim < 2 or len(found) != len(first):
            numbers = isinstance(found, Sequence) or hasattr(found, "__array__")
            advice = " (torch.as_tensor makes one of numbers)" if numbers else ""
            shape = (
                f"{found.dtype}, {tuple(found.shape)}"
                if isinstance(found, Tensor)
                else f"{type(found).__name__}{advice}"
            )
            raise TypeError(
                f"{self.name} returns {self.gives}, a floating-point tensor of shape ({len(first)}, …, N), not {shape}."
            )
        found = full_precision(found.detach().to(first.device))
        return found if self.gives == "logits" else self._logits(found)

    def _logits(self, found: Tensor) -> Tensor:
        """Log-probabilities, none of them of a class that a service has rounded away."""
        log_p = found.log() if self.gives == "probabilities" else found
        total = log_p.exp().sum(-1)
        if not ((total - 1).abs() <= 0.05).all():
            raise ValueError(
                f"{self.name} gives no {self.gives}: those of one example sum to {total[~((total - 1).abs() <= 0.05)][0]:.3g}, not to one."
            )
        if self.smallest is not None:
            if self.smallest * log_p.shape[-1] >= 1:
                raise ValueError(
                    f"smallest={self.smallest:g} for each of {log_p.shape[-1]} classes is more than there is: give less."
                )
            return log_p.clamp(min=math.log(self.smallest)).log_softmax(-1)
        if (log_p < -1000).any():  # −∞, or the −9999 that servers write for it
            raise ValueError(
                f"{self.name} gives probability zero, which to a loss says that a class does not exist: say what it stands for, such as smallest=1e-6; "
                "or, where it gives a few of many classes, return SparseTargets.from_log_probabilities."
            )
        return log_p


def split_checksum(split: Any) -> str:
    """SHA-256 of the examples of a split, in their order and as they are without augmentation."""
    digest = hashlib.sha256()
    for inputs, labels, _ in as_split(split, "split").batches(500):
        named = inputs if isinstance(inputs, Mapping) else {"inputs": inputs}
        digest.update(checksum([*sorted(named.items()), ("labels", labels)]).encode())
    return digest.hexdigest()


def write_logits(
    path: str | PathLike[str],
    teacher: nn.Module,
    split: AnySplit,
    *,
    batch_size: int = 500,
    device: Device | None = None,
    precision: Precision = "float32",
) -> None:
    """Run a teacher over a split once, and keep its logits in the file ``path``, for :class:`CachedLogits`.

    Of each example as it is, without augmentation; float32, written whole or not at all. (Of texts, whose logits are many, a few entries are
    kept: :func:`~kdlab.language.caches.write_cache`.)

    Args:
        teacher, split, batch_size, device, precision: as in :func:`~kdlab.training.measures.predict`.

    Raises:
        CacheError: if ``path`` exists already.
        ValueError: for a teacher that is a cache itself.
    """
    if Path(path).exists():
        raise CacheError(f"{path} exists already; delete it to make the cache anew.")
    if by_index(teacher):
        raise ValueError("a teacher that is asked by index looks at no inputs: there is nothing to run over a split.")
    logits = predict(teacher, split, batch_size=batch_size, device=device, precision=precision)
    header = {"teacher": checksum(state_of(teacher).items()), "split": split_checksum(split), "precision": precision}
    save_tensors(path, {"logits": logits}, {**header, "checksum": checksum([("logits", logits)])})


class CachedLogits(nn.Module):
    """Logits that :func:`write_logits` kept, in their teacher's place: ``fit(…, teacher=CachedLogits(path))``.

    They are of the examples as they are. Where the recipe crops and mirrors what the student sees, its teacher would see the same crops;
    a teacher that speaks of the whole picture, whatever is seen of it, is another method (the "fixed teacher" of Beyer et al. 2022, which they
    find worse), and has to be asked for.

    Args:
        path: the file.
        teacher: the teacher whose logits they ought to be; None: not compared.
        whole_pictures: whether they are meant for augmented examples, too.

    Raises:
        CacheError: for a file that is missing or damaged, or of another teacher; and from :func:`~kdlab.training.loop.fit`, of other examples.
    """

    by_index = True

    def __init__(
        self, path: str | PathLike[str], teacher: nn.Module | None = None, *, whole_pictures: bool = False
    ) -> None:
        super().__init__()
        self.path, self.whole_pictures = path, whole_pictures
        try:
            tensors, self.header = load_tensors(path)
        except CheckpointError as error:
            raise CacheError(str(error)) from error
        if self.header.get("checksum") != checksum(tensors.items()):
            raise CacheError(f"{path} is damaged or holds no logits; delete it to make the cache anew.")
        if teacher is not None and checksum(state_of(teacher).items()) != self.header["teacher"]:
            raise CacheError(f"{path} is the cache of another teacher.")
        self.register_buffer("logits", tensors["logits"])

    def check_examples(self, split: Any, recipes: Sequence[Any] = ()) -> None:
        """That they are of these examples, and of what the recipes show of them; ``fit`` asks for it.

        Raises:
            CacheError: if they are of others.
            ValueError: for augmented examples, unless ``whole_pictures`` says so.
        """
        if split_checksum(split) != self.header["split"]:
            raise CacheError(f"{self.path} is the cache of other examples, or of these in another order.")
        if self.whole_pictures:
            return
        other = "CachedLogits(…, whole_pictures=True), which is a teacher that does not see what the student sees."
        if draws(split):
            raise ValueError(
                f"{self.path} holds what the teacher says of one drawing of each example, and the DataLoader's data set draws others: a data "
                f"set that draws nothing, or {other}"
            )
        if augments(split) and any(recipe.augment for recipe in recipes):
            raise ValueError(
                f"{self.path} holds what the teacher says of whole pictures, and the recipe crops and mirrors them: augment=False, or {other}"
            )

    def forward(self, index: Integer[Tensor, " B"]) -> Float[Tensor, "B *positions N"]:
        """The logits of the examples ``index``, ``(B,)``."""
        return self.logits[index.to(self.logits.device)]


class LogitsOfViews(nn.Module):
    """What a teacher says of every view of the training images, in its place: ``fit(…, teacher=LogitsOfViews(teacher, train))``.

    Augmentation by shifts of whole pixels and mirroring has 162 views of an image, so that the teacher can look at all of them once, and at
    none in the training: a gain where students see more than 162 epochs in all; or fewer, with ``train.with_views(8)``, for them and the students
    alike. What it says is the same to rounding. It has no layers to look into, and is in evaluation mode.

    Args:
        teacher: moved to ``device``, and in evaluation mode for it.
        train: the :class:`~kdlab.data.images.Split` that is trained on.
        batch_size, precision: as the recipe's precision; a batch is one of images in one view.
        device: where to look, and to keep what is said; None: where the images are.
        memory: how many bytes it may take, which is known, and told, after the first batch.

    Raises:
        TypeError: for a split that does not say its views.
        MemoryError: where it would take more than ``memory``.
    """

    by_view = True
    views: Tensor
    table: Tensor

    def __init__(
        self,
        teacher: nn.Module,
        train: Any,
        *,
        batch_size: int = 500,
        precision: Precision = "float32",
        device: Device | None = None,
        memory: int = 2 * 2**30,
    ) -> None:
        super().__init__()
        if not hasattr(train, "all_views"):
            raise TypeError(f"views are those of a kdlab.data.Split of images, not of {type(train).__name__}.")
        self.split, self.precision = split_checksum(train), precision
        train = train if device is None else train.to(device)
        where = train.labels.device
        moved_to(teacher, where)
        rows = torch.full((2 * SHIFTS,), -1)
        rows[list(train.all_views)] = torch.arange(len(train.all_views))
        self.register_buffer("views", rows.to(where), persistent=False)
        self.register_buffer("table", self._made(teacher, train, batch_size, memory), persistent=False)
        what = (checksum(state_of(teacher).items()), train.all_views, precision)
        identity = hashlib.sha256(repr(what).encode()).digest()
        self.register_buffer("identity", torch.tensor(list(identity), dtype=torch.uint8))

    @torch.no_grad()
    def _made(self, teacher: nn.Module, train: Any, batch_size: int, memory: int) -> Tensor:
        """Logits ``(views, n, N)``, as they come: of bfloat16 under its autocast."""
        table, device = None, train.labels.device
        with evaluation_mode(teacher), autocast(device, self.precision):
            for row, view in enumerate(train.all_views):
                for index in batch_indices(len(train), batch_size, device=device):
                    said = all_logits(teacher(train.seen(index, torch.full_like(index, view))))
                    if table is None:
                        size = len(train.all_views) * len(train) * said[0].numel() * said.element_size()
                        if size > memory:
                            raise MemoryError(
                                f"logits of {len(train.all_views)} views of {len(train):,} images take {size / 1e9:.2f} GB, and memory={memory:,} is "
                                "less: give more; or precision='bfloat16', which takes half; or fewer views, train.with_views(8)."
                            )
                        table = said.new_empty(len(train.all_views), len(train), *said.shape[1:])
                    table[row, index] = said
        if table is None:
            raise ValueError("there are no images to look at.")
        return table

    def check_examples(self, split: Any, recipes: Sequence[Any] = ()) -> None:
        """That it has seen these images, and what the recipes show of them; ``fit`` asks for it.

        Raises:
            CacheError: for other images, or other views.
            ValueError: for recipes that show them otherwise.
        """
        known = torch.isin(torch.tensor(getattr(split, "all_views", ())), torch.where(self.views.cpu() >= 0)[0])
        if split_checksum(split) != self.split or not len(known) or not known.all():
            raise CacheError(
                "these are the logits of other images, of these in another order, or of other views of them."
            )
        for recipe in recipes:
            if not recipe.augment or recipe.teacher_mode != "eval" or recipe.precision != self.precision:
                raise ValueError(
                    "these are logits of augmented images, of a teacher in evaluation mode: augment=True, teacher_mode='eval', and "
                    f"precision={self.precision!r}. Of images as they are, CachedLogits keeps them."
                )

    def forward(self, places: Integer[Tensor, "B 2"]) -> Float[Tensor, "B *positions N"]:
        """The logits of examples in views, their numbers ``(B, 2)``."""
        index, view = places.unbind(1)
        return self.table[self.views[view], index]
