"""Students that begin with their teacher's weights, with a part of them, or near them."""

from collections.abc import Sequence

import torch
from torch import nn


@torch.no_grad()
def begin_from(student: nn.Module, teacher: nn.Module, share: float = 1.0, *, blocks: Sequence[int] = ()) -> None:
    """Set a student's weights to :math:`λ θ_T + (1 − λ) θ_S`, where :math:`θ_S` are those that it has.

    Args:
        student: changed in place; weights and running statistics alike.
        teacher: of the same shapes, and left alone.
        share: :math:`λ`, from 0, which changes nothing, to 1, a copy.
        blocks: which of the teacher's ``blocks`` the student's are, in the student's order; () is all, one by one. What is in no
            block, such as embeddings, is taken as it is. A model whose blocks have another module path says it in ``path_of_blocks``.

    Raises:
        ValueError: if the two do not fit, or share is no share.

    Sources: Stanton et al. (2021), section 5.2, for the share; Muralidharan et al. (2024), Minitron, for the blocks that are kept.

    >>> student, teacher = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.constant_(student.weight, 0.0), nn.init.constant_(teacher.weight, 2.0)
    >>> begin_from(student, teacher, 0.25)
    >>> student.weight.item()
    0.5
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share is of the teacher's weights, from 0 to 1, not {share}.")
    theirs = teacher.state_dict()
    if blocks:
        path = str(getattr(student, "path_of_blocks", "blocks"))
        there, here = (len(list(model.get_submodule(path).children())) for model in (teacher, student))
        if not 0 <= min(blocks) <= max(blocks) < there or len(blocks) != here:
            raise ValueError(
                f"the student has {here} blocks and the teacher {there}: {tuple(blocks)} does not name one of these for each of those."
            )
        outside = {name: value for name, value in theirs.items() if not name.startswith(f"{path}.")}
        kept = (
            (name.replace(f"{path}.{source}.", f"{path}.{target}.", 1), value)
            for target, source in enumerate(blocks)
            for name, value in theirs.items()
            if name.startswith(f"{path}.{source}.")
        )
        theirs = outside | dict(kept)
    own = student.state_dict()
    if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in theirs.items()}:
        raise ValueError(
            "student and teacher differ in the names or shapes of their weights: only one of the same architecture begins there."
        )
    if not share:  # counters, which have no share, stay as well
        return
    for name, value in own.items():
        value.copy_(torch.lerp(value, theirs[name].to(value), share) if value.is_floating_point() else theirs[name])
