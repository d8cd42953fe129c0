"""What passes between the rooms: a split, a text, a teacher, a student. Whoever wants to know what one of them is asks here.

Nothing has to inherit from these. A split has the methods of :class:`Split`; a model is a ``torch.nn.Module``. Everything else is said by
an attribute that may be there, and each function below says what holds of a thing without it.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from kdlab.shapes import Integer, Shaped

Device = torch.device | str
# What a function says of a model and a split: numbers by their names.
Measure = Callable[[nn.Module, Any], dict[str, float]]


@runtime_checkable
class Split(Protocol):
    """Examples, and the batches that they come in.

    :class:`~kdlab.data.images.Split` of images, :class:`~kdlab.data.examples.Examples` of anything, and one's own. It also has ``labels``,
    those of all examples in a row, or else ``identity``, a checksum by which checkpoints tell it apart; and may say by ``augments`` that it
    is not augmented.
    """

    def __len__(self) -> int: ...

    def to(self, device: Device) -> "Split": ...

    def batches(
        self,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        augment: bool = False,
        order: Integer[Tensor, " N"] | None = None,
        start: int = 0,
    ) -> Iterator[tuple[Any, Shaped[Tensor, "B ..."], Integer[Tensor, " B"]]]:
        """Batches of (inputs, labels, indices), as :meth:`kdlab.data.images.Split.batches` has them."""
        ...


AnySplit = Split | DataLoader


class Text(Split, Protocol):
    """A split of a text, in blocks: :class:`~kdlab.data.tokens.Tokens`. It is what has ``token_bytes``."""

    token_bytes: Tensor
    context: int
    blocks: Tensor
    stride: int
    ahead: int


class LoadedSplit(Split, Protocol):
    """A split that is loaded as it is needed, :class:`~kdlab.data.examples.Loaded`: the labels of all are known once all are loaded."""

    loader: Any
    batch_size: int
    labels: Tensor


class CachedTeacher(Protocol):
    """A teacher that looks at no inputs: it knows what was said of each example, and is asked by its place, int64, ``(B,)``."""

    by_index: bool

    def check_examples(self, split: Split, recipes: Sequence = ()) -> None:
        """That it was said of these examples, and of what the recipes show of them; raises if not."""
        ...


class FusedStudent(Protocol):
    """A language model that can leave the logits of its head to the losses: :class:`~kdlab.objectives.vocabulary.HeadLogits`."""

    fused: bool


class StandingStudent(Protocol):
    """Modules that stand on a trained model, ``trunk``, and predict ``depth`` further tokens: :class:`~kdlab.models.multi_token.MultiToken`."""

    depth: int
    trunk: nn.Module

    def stand_on(self, model: nn.Module) -> None: ...


# Of a split


def is_text(split: object) -> bool:
    """Whether it is a :class:`Text`."""
    return hasattr(split, "token_bytes")


def check_text(tokens: object) -> None:
    """That it is a :class:`Text`.

    Raises:
        TypeError: if not.
    """
    if not is_text(tokens):
        raise TypeError(
            f"a text is kdlab.data.Tokens, not {type(tokens).__name__}: kdlab.language.tokenise_documents(texts, tokeniser, context) makes it."
        )


def is_loaded(split: object) -> bool:
    """Whether it is a :class:`LoadedSplit`."""
    return hasattr(split, "loader")


def labels_of(split: object) -> Tensor | None:
    """The labels of all its examples; None where they are known only as they come."""
    return None if is_loaded(split) else getattr(split, "labels", None)


def inputs_of(split: object) -> Any:
    """The inputs of all its examples, as it keeps them; None where they are known only as they come."""
    return getattr(split, "images", getattr(split, "inputs", None))


def augments(split: object) -> bool:
    """Whether its batches are cropped and flipped where the recipe says so: yes, unless it says no."""
    return getattr(split, "augments", True)


def draws(split: object) -> bool:
    """Whether its data set draws views by itself, whatever the recipe says: a loaded split that says so."""
    return is_loaded(split) and getattr(split, "augments", False)


def identity_of(split: object) -> str | None:
    """Its own word on what it is; None where its content says it."""
    return getattr(split, "identity", None)


# Of a teacher


def by_index(teacher: object) -> bool:
    """Whether it is asked by the places of the examples; else it is shown their inputs."""
    return getattr(teacher, "by_index", False)


def by_view(teacher: object) -> bool:
    """Whether it is asked by the places of the examples, and by which view of each is seen."""
    return getattr(teacher, "by_view", False)


def asks_elsewhere(teacher: object) -> bool:
    """Whether it is no computation on the device, but asks somebody: such a step is in no CUDA graph."""
    return getattr(teacher, "asks", False)


def check_examples(teacher: Any, split: Any, recipes: Sequence[Any]) -> None:
    """That a teacher which knows its examples, :class:`CachedTeacher`, knows these; any other can look at all."""
    if hasattr(teacher, "check_examples"):
        teacher.check_examples(split, recipes)


# Of a student


def fuse(model: Any, fused: bool = True) -> None:
    """A :class:`FusedStudent` leaves its logits to the losses, or does not; any other model stays as it is."""
    if hasattr(model, "fused"):
        model.fused = fused


def fused_of(model: object) -> bool | None:
    """Whether a :class:`FusedStudent` leaves its logits to the losses; None of any other model."""
    found = getattr(model, "fused", None)
    return found if isinstance(found, bool) else None


def stands(student: object) -> bool:
    """Whether it is a :class:`StandingStudent`."""
    return hasattr(student, "stand_on")


def depth_of(student: object) -> int:
    """How many further tokens it predicts; of any other model none."""
    return getattr(student, "depth", 0)
