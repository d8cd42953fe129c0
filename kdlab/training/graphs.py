"""A training step captured as a CUDA graph: launched as one, where a small network's kernels would wait for Python."""

import warnings
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
    """``step(students, batches, views)``, captured once for all students that can be, and replayed on new batches.

    The first steps run as they are. In the last of them each student is watched: one that waits for the device could not be captured
    (and CUDA would not get over the attempt), and one that draws random numbers would draw from the same seed as all others. Those
    stay as they are, beside the graph of the rest; ``eager`` says why. Every later step copies its batch to where the capture found
    its own, and replays.

    Args:
        step: takes students, batches and views, and what the teacher has said of them if that is known; returns that. ``watch``,
            if given, is a context for each student, and with None for the teacher's look.
        eager: students that cannot be captured, with the reason.
    """

    def __init__(self, step, students, eager: dict):
        self.step, self.students, self.eager = step, students, dict(eager)
        self.taken, self.graph, self.looked = 0, None, None

    def __call__(self, batches: dict, views: dict) -> None:
        self.taken += 1
        if self.taken <= WARM_UP:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                if self.taken < WARM_UP:
                    self.step(self.students, batches, views)
                else:
                    self._watched(batches, views)
            torch.cuda.current_stream().wait_stream(side)
            return
        captured = [s for s in self.students if s not in self.eager]
        if captured and self.graph is None:
            self._capture(captured, batches, views)
        if captured:
            for seed, batch in batches.items():
                for place, part in zip(self.batches[seed], batch, strict=True):
                    _refill(place, part)
            for seed, view in views.items():
                _refill(self.views[seed], view)
            self.graph.replay()
        if self.eager:
            self.step(list(self.eager), batches, views, self.looked)

    def _watched(self, batches, views) -> None:
        """A step that finds out who cannot be captured, and says so."""
        found = {}
        self.step(self.students, batches, views, watch=lambda who: watched(found.setdefault(who, [])))
        of_teacher = found.pop(None, [])
        for student in self.students:
            reasons = found.get(student, []) + (of_teacher if student.objective.needs_teacher else [])
            if reasons and student not in self.eager:
                self.eager[student] = reasons[0]
                warnings.warn(
                    f"the step of {student.objective!r} is not captured as a CUDA graph, and so is slower: {reasons[0]}.",
                    stacklevel=2,
                )

    def _capture(self, students, batches, views) -> None:
        self.batches = {seed: tuple(each(torch.clone, part) for part in batch) for seed, batch in batches.items()}
        self.views = {seed: each(torch.clone, view) for seed, view in views.items()}
        self.graph, self.looked = capture(
            lambda: self.step(students, self.batches, self.views),
            "The last checkpoint stays: start again with graphs=False, or kdlab run --eager.",
        )


def capture(function: Callable[[], Any], advice: str, generator: torch.Generator | None = None) -> tuple[Any, Any]:
    """A graph of what a function does on the device, and what it returned; nothing is done until the graph is replayed.

    Args:
        advice: what to do where it fails, after which the process is of no use.
        generator: what it draws from, if that is not the device's own.
    """
    graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    if generator is not None:
        graph.register_generator_state(generator)
    try:
        with torch.cuda.graph(graph, stream=torch.cuda.Stream()):  # torch's own stream is of the first device used
            returned = function()
    except RuntimeError as error:
        torch.cuda.set_stream(current)
        raise RuntimeError(
            "a step could not be captured as a CUDA graph, after which CUDA is in no state to go on. "
            f"{advice} CUDA said: {str(error).splitlines()[0]}"
        ) from error
    return graph, returned


@contextmanager
def watched(reasons: list[str], *, draws: bool = False):
    """Within the block, note in ``reasons`` what cannot be in a graph: waiting for the device and, but for ``draws``, random numbers."""
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        state, mode = generator.get_state(), torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    for warning in said:
        if "called a synchronizing" in str(warning.message):
            reasons.append(f"it waits for the device at {Path(warning.filename).name}, line {warning.lineno}")
        elif "prototype" not in str(warning.message):  # torch's remark on the mode itself
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if not draws and not torch.equal(generator.get_state(), state):
        reasons.append("it draws random numbers, and in a graph all students would draw the same")


def _refill(place, part) -> None:
    """Put a tensor, or those of a dictionary, where others were."""
    if isinstance(place, dict):
        for name, value in part.items():
            place[name].copy_(value)
    else:
        place.copy_(part)
