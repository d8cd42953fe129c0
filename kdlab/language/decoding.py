"""Decoding steps captured as a CUDA graph: launched as one, where hundreds of small kernels would wait for Python."""

import warnings
from collections.abc import Callable
from typing import Any

import torch

from ..models.gpt import Cache
from ..training.graphs import capture, watched

#: Steps that are taken one kernel after another before the capture, so that libraries have set themselves up.
WARM_UP = 2


class Step:
    """``step()``: a step of decoding that changes tensors in place, and returns nothing.

    On a CPU it is a call of the function. On CUDA the first steps are, too; then it is captured, and every later one is a replay, the same
    text to the token. Of a function that waits for the device there is none, and a warning says where it does.

    The graph is of one text: it ends with the step, before the weights that autocast has cast for it do.

    Args:
        function: what it reads and changes stays in its place.
        generator: what it draws from.
        graphs: whether it can be captured.
    """

    def __init__(
        self, function: Callable[[], None], device: torch.device, generator: torch.Generator | None, graphs: bool
    ) -> None:
        self.function, self.device, self.generator = function, device, generator
        self.graphs, self.taken, self.graph = graphs and device.type == "cuda", 0, None

    def __call__(self) -> None:
        self.taken += 1
        if not self.graphs or self.taken < WARM_UP:
            self.function()
            return
        with torch.cuda.device(self.device):
            if self.taken == WARM_UP:
                self._watched()
                return
            if self.graph is None:
                self.graph, _ = capture(self.function, "Start again with graphs=False.", self.generator)
            self.graph.replay()

    def _watched(self) -> None:
        reasons: list[str] = []
        with watched(reasons, draws=True):
            self.function()
        if reasons:
            self.graphs = False
            warnings.warn(f"decoding is not captured as a CUDA graph, and so is slower: {reasons[0]}.", stacklevel=2)


def stays(cache: Any) -> bool:
    """Whether a step with this cache can be captured: all that it keeps stays in its place.

    It then leaves it to its caller that the text fits the context, since to look at its lengths is to wait for the device.
    """
    if not isinstance(cache, Cache):
        return False
    cache.checked = False
    return True
