"""Views: student and teacher each see a batch their own way, such as crops, or pictures of another size.

A view is a function of a batch's inputs and a ``torch.Generator`` (on the CPU) for what it draws, ``view(inputs, generator)``. It returns what
is seen: inputs alone, or ``(inputs, boxes)`` with the places of the pictures that they show, :func:`~kdlab.data.images.draw_boxes`.

Layers that are maps ``(B, C, H, W)`` are compared place by place, and so the boxes are needed: the teacher's map is then resampled, at its
own resolution, to the place that the student sees, which has to lie in what the teacher sees. Where no boxes say so, and for tokens and attention maps, whose
places have no coordinates, layers with positions are refused; logits and vectors ``(B, D)`` are compared as ever.

A validation split is measured as it is: of a student that sees pictures of another size, give one of that size, or ``measure=…``.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.images import resample
from ..objectives.terms import described
from .distributed import rank_and_world
from .seeds import generator


@dataclass(frozen=True)
class Views:
    """What the student's and the teacher's view make of batches; None sees them as they are.

    Its ``repr`` is how checkpoints tell views apart: a plain function by its name and its code (what it closes over is not looked
    at), any other by its own ``repr``.
    """

    student: Callable | None
    teacher: Callable | None

    @classmethod
    def of(cls, student: Callable | None, teacher: Callable | None) -> "Views | None":
        for who, view in (("student", student), ("teacher", teacher)):
            if view is not None and not _takes_two(view):
                raise TypeError(
                    f"{who}_view is a function of the inputs and of a generator for what it draws, view(inputs, generator), not {view!r}."
                )
        return None if student is None and teacher is None else cls(student, teacher)

    def __repr__(self):
        return f"{described(self.student)}, {described(self.teacher)}"

    def seen(self, batches: dict, position: tuple[int, int]) -> tuple[dict, dict, dict]:
        """Batches as students see them, inputs as the teacher does, and the boxes of both, by seed."""
        students, teachers, where = {}, {}, {}
        for seed, (inputs, *others) in batches.items():
            found = {}
            for who, view in (("student", self.student), ("teacher", self.teacher)):
                found[who] = inputs, _whole(inputs)
                if view is not None:
                    found[who] = _looked(view, inputs, generator(who, seed, *position, rank_and_world()[0]), who)
            students[seed], teachers[seed] = (found["student"][0], *others), found["teacher"][0]
            where[seed] = {who: boxes for who, (_, boxes) in found.items() if boxes is not None}
        return students, teachers, where


def _takes_two(view) -> bool:
    if not callable(view):
        return False
    try:
        inspect.signature(view).bind("inputs", "generator")
    except TypeError:
        return False
    except ValueError:  # a built-in function that does not say what it takes
        pass
    return True


def _looked(view: Callable, inputs, generator, who: str) -> tuple:
    before = _versions(inputs)
    found = view(inputs, generator)
    if _versions(inputs) != before:
        raise ValueError(f"{who}_view changes its inputs in place, which others see, too: return new ones.")
    seen, boxes = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
    n, of = _size(inputs), _size(seen)
    if of != n:
        raise ValueError(
            f"{who}_view returns as many inputs as it is given, or these and their boxes: not {of}, of {n}."
        )
    if boxes is not None:
        if not isinstance(boxes, Tensor) or boxes.shape != (n, 4):
            raise ValueError(f"boxes have shape ({n}, 4): top, left, bottom and right of each picture.")
        boxes = boxes.detach().cpu().float()
        if not ((boxes[:, :2] >= -1e-6) & (boxes[:, :2] < boxes[:, 2:]) & (boxes[:, 2:] <= 1 + 1e-6)).all():
            raise ValueError("boxes are parts of a picture, from 0 to 1: top < bottom, left < right.")
    return seen, boxes


def _versions(inputs) -> list[int]:
    """How often each tensor was changed in place."""
    return [x._version for x in (inputs.values() if isinstance(inputs, Mapping) else [inputs]) if isinstance(x, Tensor)]


def _size(inputs) -> int | None:
    """How many examples inputs have; None of what are no inputs."""
    first = next(iter(inputs.values()), None) if isinstance(inputs, Mapping) else inputs
    return len(first) if isinstance(first, Tensor) and first.ndim else None


def _whole(inputs) -> Tensor:
    return torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(_size(inputs), 4)


def aligned(
    teacher_hidden: dict[str, Tensor], student_hidden: dict[str, Tensor], pairs, boxes: dict[str, Tensor]
) -> dict[str, Tensor]:
    """A teacher's hidden states at the places that the student sees.

    Args:
        pairs: names of layers that are compared, the teacher's and the student's.
        boxes: of ``"student"`` and ``"teacher"``, those that are known.

    Raises:
        ValueError: for states with positions of which it is not known where they are, or that the teacher does not see.
    """
    found = dict(teacher_hidden)
    for layer, of_student in pairs:
        x = teacher_hidden[layer]
        if x.ndim <= 2:
            continue
        if x.ndim != 4 or layer.startswith("attention:"):
            raise ValueError(
                f"{layer!r} of the teacher has positions without coordinates, shape {tuple(x.shape)}, and student and teacher see other views of a "
                "picture: match logits, pooled states (B, D) or maps (B, C, H, W)."
            )
        if len(boxes) < 2:
            raise ValueError(
                f"{layer!r} is compared place by place, and it is not known where in the picture the views of student and teacher are: return "
                "(inputs, boxes) from views (kdlab.data.draw_boxes and resample), match pooled states (B, D), or let both see the same."
            )
        student, teacher = boxes["student"], boxes["teacher"]
        if torch.equal(student, teacher):
            continue
        origin, size = teacher[:, :2].repeat(1, 2), (teacher[:, 2:] - teacher[:, :2]).repeat(1, 2)
        inside = (student - origin) / size
        if not ((inside >= -1e-4) & (inside <= 1 + 1e-4)).all():
            raise ValueError(
                f"{layer!r} is compared place by place, and the student sees places of the picture that the teacher does not."
            )
        found[layer] = resample(x, inside, _resolution(x, inside, student_hidden[of_student]))
    return found


def _resolution(x: Tensor, inside: Tensor, student: Tensor) -> tuple[int, int]:
    """The teacher's own within the boxes, on average, or a little more: a multiple of the student's, which is averaged over evenly."""
    own = [
        size * sides.mean().item() for size, sides in zip(x.shape[2:], (inside[:, 2:] - inside[:, :2]).T, strict=True)
    ]
    wanted = student.shape[2:] if student.ndim == 4 else (1, 1)
    return tuple(
        n * math.ceil(size / n - 1e-3) if size >= n else max(round(size), 1)
        for size, n in zip(own, wanted, strict=True)
    )
