"""What ``kdlab gpu`` measures on a device: training five seeds beside each other, the loss of a large vocabulary, and decoding."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from .. import models
from ..files import atomic_write
from ..language import generate, speculate
from ..study.records import provenance
from ..training import LogitsOfViews
from . import vocabulary
from .by_hand import VIEWS, step
from .timing import Settings, quartiles
from .training import synthetic, untrained_teacher


def row(what: str, value: float, unit: str, **how) -> dict:
    return {"what": what, "value": value, "unit": unit, **how}


def training(device: str, seconds: float) -> Iterator[dict]:
    """Images a second of ``bench step``: one student, and five seeds beside one look of the teacher."""
    settings = Settings(device, seconds, rounds=2)
    settings = replace(settings, steps=min(settings.steps, 200), workers=0 if device == "cpu" else settings.workers)
    if device == "cpu":
        settings = replace(settings, steps=2, batch_size=8)
    (contest,) = step(settings)
    how = {"pair": settings.pair, "batch_size": settings.batch_size, "precision": settings.precision}
    for name, found in contest.summary().items():
        yield row(f"training, {name}", found["images_per_second"]["median"], "images/s", **how)
    train, teacher = synthetic(settings.images).to(device).with_views(VIEWS), untrained_teacher(settings.pair[0])
    began = time.perf_counter()
    LogitsOfViews(teacher, train, precision=settings.precision).table.sum().item()
    looks = VIEWS * len(train) / (time.perf_counter() - began)
    yield row("training, a teacher's look", looks, "images/s", **how)


def large_vocabulary(device: str, seconds: float) -> Iterator[dict]:
    """Seconds and memory of one loss with its gradient, from hidden states, beside what it is compared with."""
    size = vocabulary.Size.of(device, "64x8x8x500" if device == "cpu" else None)
    ways = {"kdlab": vocabulary.from_hidden_states} if device == "cpu" else None
    result = vocabulary.measured(size, seconds, rounds=2, ways=ways)
    for name, found in result["summary"].items():
        yield row(f"vocabulary, {name}", found["seconds"]["median"], "s", bytes=found["bytes"], size=result["size"])
    for name in result["left_out"]:
        yield row(f"vocabulary, {name}", None, "s", size=result["size"], left_out="too little memory")


def decoding(device: str, seconds: float) -> Iterator[dict]:
    """Tokens a second at batch 1, plain and speculative, of untrained models whose last norms are zero, in bfloat16 on a GPU.

    All their logits are then equal, at the full cost of making them: drafts are always believed.
    """
    small = device == "cpu"
    torch.manual_seed(0)
    verifier = models.gpt_64x2(512) if small else models.gpt_704x13(16_384)
    draft = models.gpt_64x2(512) if small else models.gpt_192x4(16_384)
    modules = models.MultiToken(verifier, 3, in_a_row=False)
    for norm in (verifier.norm, draft.norm, *modules.norms):
        torch.nn.init.zeros_(norm.weight)
    for model in (draft, modules):
        model.to(device, torch.float32 if small else torch.bfloat16).eval()
    tokens = 8 if small else 256
    prompt, how = torch.arange(8, device=device)[None], {"tokens": tokens, "temperature": 0}
    ways = {
        "plain": lambda: generate(verifier, prompt, **how),
        "plain, not captured": lambda: generate(verifier, prompt, **how, graphs=False),
        "speculative, a small draft": lambda: speculate(verifier, draft, prompt, **how, draft_length=4),
        "speculative, its own modules": lambda: speculate(verifier, modules, prompt, **how, draft_length=3),
    }
    until = time.monotonic() + seconds
    times = {name: [] for name in ways}
    for way in ways.values():
        way()
    while len(times["plain"]) < 3 or time.monotonic() < until:
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            if torch.device(device).type == "cuda":
                torch.cuda.synchronize(device)
            times[name].append(time.perf_counter() - began)
    for name, found in times.items():
        yield row(f"decoding, {name}", tokens / quartiles(found)["median"], "tokens/s", tokens=tokens)


#: What is measured, and its share of the time.
MEASURES: dict[str, tuple[Callable[[str, float], Iterator[dict]], float]] = {
    "training": (training, 0.5),
    "vocabulary": (large_vocabulary, 0.3),
    "decoding": (decoding, 0.2),
}


def measure(device: str, seconds: float, out: Path) -> dict:
    """Measure, and write every row to ``out`` as soon as there is one; an error of one measure is written in its place.

    On a CPU, which is a rehearsal, each measure has its least number of rounds, of small sizes.
    """
    origin, seconds = provenance(device), 0.0 if torch.device(device).type == "cpu" else seconds
    result = {"part": "measurements", "provenance": origin, "rows": []}

    def add(found: dict) -> None:
        result["rows"].append({"card": origin["device"], **found})
        with atomic_write(out) as part:
            part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

    for name, (what, share) in MEASURES.items():
        try:
            for found in what(device, share * seconds):
                add(found)
        except Exception as error:
            add({"what": name, "value": None, "error": f"{type(error).__name__}: {error}"})
    return result
