"""Side-by-side measurements, run as ``kdlab bench NAME``, never as tests. May import every other room but figures."""

import os
from collections.abc import Callable
from dataclasses import asdict

import torch

from ..study.records import provenance
from .bare import loop
from .by_hand import step
from .hugging import trainer, writing
from .objectives import crd, methods
from .timing import BenchmarkError, Contest, Settings

__all__ = ["BenchmarkError", "Contest", "Settings", "measured", "table"]

#: Benchmarks by the name that ``kdlab bench`` takes.
BENCHMARKS: dict[str, Callable[[Settings], list[Contest]]] = {
    "step": step,
    "loop": loop,
    "crd": crd,
    "methods": methods,
    "writing": writing,
    "trainer": trainer,
}


def measured(name: str, settings: Settings) -> dict:
    """Run a benchmark. What it gives can be written as JSON: where it ran, how, every round's seconds, and the summary.

    Raises:
        BenchmarkError: if there is none of that name, or it cannot be run as asked.
    """
    if name not in BENCHMARKS:
        raise BenchmarkError(f"there is no benchmark {name!r}; there are {', '.join(BENCHMARKS)}.")
    origin = provenance(settings.device)
    contests = BENCHMARKS[name](settings)
    return {
        "benchmark": name,
        "provenance": origin,
        "device": settings.device,
        "threads": torch.get_num_threads(),
        "environment": {k: v for k, v in os.environ.items() if k.startswith(("OMP_", "MKL_", "MALLOC_"))},
        "settings": asdict(settings),
        "contests": [{**asdict(contest), "summary": contest.summary()} for contest in contests],
    }


def table(result: dict) -> str:
    """What :func:`measured` gave, as lines of text."""
    how, machine = result["settings"], result["provenance"]["device"]
    setting = f"batch {how['batch_size']}, {how['precision']}, {how['steps']} steps a round"
    lines = [f"{result['benchmark']}: {machine}; {setting}"]
    for contest in result["contests"]:
        rounds = len(contest["seconds"][contest["reference"]])
        lines += ["", f"{contest['title']}, {rounds} rounds: median (quartiles)"]
        lines += [f"  {'':<20}{'images/s':>24}{'time, ' + contest['reference'] + ' = 1':>26}"]
        for name, found in contest["summary"].items():
            speed, ratio = found["images_per_second"], found["relative_time"]
            lines.append(
                f"  {name:<20}"
                + f"{speed['median']:,.0f} ({speed['low']:,.0f}–{speed['high']:,.0f})".rjust(24)
                + f"{ratio['median']:.3f} ({ratio['low']:.3f}–{ratio['high']:.3f})".rjust(26)
            )
    return "\n".join(lines)
