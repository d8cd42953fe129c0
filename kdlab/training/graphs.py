"""A training step captured as a CUDA graph: launched as one, where a small network's kernels would wait for Python."""

import torch

from ..data.examples import each
from ..objectives import Objective
from ..objectives.schedules import LearnedTemperature, Schedule

#: Steps that are taken one kernel after another before the capture, so that optimisers and libraries have set themselves up.
WARM_UP = 3


def graphable(objective: Objective) -> bool:
    """Whether nothing of the objective changes with progress: a graph would keep the value of its capture."""
    numbers = [*objective.weights, *(value for term in objective.terms for value in vars(term).values())]
    return not any(isinstance(number, Schedule) for number in numbers) and not any(
        isinstance(module, LearnedTemperature) for module in objective.modules()
    )


class GraphedStep:
    """``step(students, batches, views)``, captured once and replayed on new batches.

    The first steps run as they are; the next is captured with batches in fixed places, and every later one copies its batch
    there and replays. Where the capture fails, the steps go on as they are, and ``failure`` says why.
    """

    def __init__(self, step, students):
        self.step, self.students = step, students
        self.taken, self.graph, self.failure = 0, None, None

    def __call__(self, batches: dict, views: dict) -> None:
        self.taken += 1
        if self.failure is not None:
            self.step(self.students, batches, views)
            return
        if self.taken <= WARM_UP:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self.step(self.students, batches, views)
            torch.cuda.current_stream().wait_stream(side)
            return
        if self.graph is None:
            self.batches = {
                seed: tuple(each(torch.clone, part) for part in batch) for seed, batch in batches.items()
            }
            self.views = {seed: each(torch.clone, view) for seed, view in views.items()}
            try:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    self.step(self.students, self.batches, self.views)
            except RuntimeError as error:
                self.failure = f"{error}".splitlines()[0]
                self.step(self.students, batches, views)
                return
            self.graph = graph
        for seed, batch in batches.items():
            for place, part in zip(self.batches[seed], batch, strict=True):
                _refill(place, part)
        for seed, view in views.items():
            _refill(self.views[seed], view)
        self.graph.replay()


def _refill(place, part) -> None:
    """Put a tensor, or those of a dictionary, where others were."""
    if isinstance(place, dict):
        for name, value in part.items():
            place[name].copy_(value)
    else:
        place.copy_(part)
