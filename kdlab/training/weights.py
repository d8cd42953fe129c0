"""Which weights a student is left with: those of its last step, their average, or those of its best epoch."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .recipe import Recipe
from .state import place_of, state_of

_AVERAGE, _BEST = "average of ", "best of "


class Kept:
    """What is kept of a student's weights beside those that are trained, where its recipe asks for it.

    Attributes:
        average: their moving average, and that of its statistics, by name; empty where there is none.
        best: all that the state of the best epoch so far is made of; empty where nothing is chosen.
    """

    def __init__(self, model: nn.Module, recipe: Recipe):
        self.recipe, self.live, self.average, self.best = recipe, {}, {}, {}
        if recipe.ema_decay or recipe.best_by:
            self.live = {k: v for k, v in state_of(model).items() if isinstance(v, Tensor) and not v.is_quantized}
            own = {place_of(x) for x in (*model.parameters(), *model.buffers())}
            if copies := [k for k, v in self.live.items() if place_of(v) not in own]:
                raise ValueError(
                    f"{copies[0]} in the student's state_dict is a copy of what it computes with, which can be neither averaged nor put back: "
                    "ema_decay=0 and best_by=None."
                )
        if recipe.ema_decay:
            self.average = {k: v.clone() for k, v in self.live.items() if v.is_floating_point()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add what step number ``step``, from 1, has made of the weights to their average."""
        decay = min(self.recipe.ema_decay, (1 + step) / (10 + step))
        for name, mean in self.average.items():
            mean.lerp_(self.live[name], 1 - decay)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The model with its average in the place of its weights, which are put back after it."""
        own = {name: self.live[name].clone() for name in self.average}
        self._fill(self.average)
        try:
            yield
        finally:
            self._fill(own)

    def note_best(self) -> None:
        """What the model is now is the best so far."""
        self.best = {name: value.clone() for name, value in self.live.items()}

    def leave(self) -> None:
        """At the end: the model becomes what it is to be left as."""
        self._fill(self.best or self.average)

    @torch.no_grad()
    def _fill(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self.live[name].copy_(value)

    def tensors(self) -> dict[str, Tensor]:
        """All of it, for the checkpoint."""
        return {f"{_AVERAGE}{k}": v for k, v in self.average.items()} | {f"{_BEST}{k}": v for k, v in self.best.items()}

    def taken(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take from what a checkpoint holds what :meth:`tensors` gave, and return the rest."""
        for prefix, own in ((_AVERAGE, self.average), (_BEST, self.best)):
            own |= {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        return {k: v for k, v in tensors.items() if not k.startswith((_AVERAGE, _BEST))}
