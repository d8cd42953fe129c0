"""The records that a few minutes of a device are spent on: a queue over all plans, by value for the time that they take."""

import json
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from .. import models
from ..data import DataError
from ..files import atomic_write
from ..study.named import load
from ..study.plans import PLANS, specs_of
from ..study.records import RecordError, provenance
from ..study.runner import PlanError, missing, run_plan
from ..study.spec import Spec
from ..training import Stopped

#: Floating-point operations a second where nothing was measured: of a small network on a GPU.
PACE = 2e13


@cache
def operations(student: str, of_texts: bool) -> float:
    """Floating-point operations of a model's look at one example; no number is computed for it."""
    with torch.device("meta"):
        if of_texts:
            model = getattr(models, student)(16_384)
            inputs = torch.zeros(1, getattr(model, "context", 256), dtype=torch.long)
        else:
            model, inputs = getattr(models, student)(100), torch.zeros(2, 3, 32, 32)
        with FlopCounterMode(display=False) as counter:
            model(inputs)
    return counter.get_total_flops() / len(inputs)


def work(spec: Spec) -> float:
    """Operations of a run: forward and backward through the student, and the teacher's look, at all examples of all epochs."""
    of_texts = spec.data not in ("cifar100", "cifar10", "digits")
    try:
        each = 3 * operations(spec.student, of_texts)
        each += operations(spec.teacher.student, of_texts) if spec.teacher else 0.0
    except (AttributeError, RuntimeError, TypeError, ValueError):  # of a model that stands on another
        each = 1e9
    examples = spec.recipe.epoch_examples or spec.train_examples or (45_000 if spec.hold_out else 50_000)
    return each * examples * spec.recipe.epochs


def pace(measurements: Path) -> float:
    """Operations a second, from the images a second that were measured."""
    try:
        rows = json.loads(measurements.read_text(encoding="utf-8"))["rows"]
        found = {row["what"]: row for row in rows if row["value"]}
        measured = found.get("training, kdlab, 5 students") or found["training, kdlab"]
        teacher, student = measured["pair"]
        return measured["value"] * (3 * operations(student, False) + operations(teacher, False))
    except (OSError, KeyError, ValueError):
        return PACE


def captures_hold(acceptance: Path) -> bool:
    """Whether all that was checked of captured steps holds, and so whether to train with them."""
    try:
        checks = {
            check["name"]: check["wrong"] for check in json.loads(acceptance.read_text(encoding="utf-8"))["checks"]
        }
    except (OSError, KeyError, ValueError):
        return False
    return all(
        checks.get(name) == [] for name in ("image objectives", "text objectives", "draws", "waiting", "replays")
    )


def queue(
    plans: dict[str, Sequence[Spec]],
    without_record: Callable[[Sequence[Spec]], list[Spec]],
    begun: Callable[[Spec], bool],
    speed: float,
) -> list[Spec]:
    """What to run, in this order: what has begun, and then arms by value for the time that they take.

    The first arm of a plan is worth one, the second a half, the third a third, each for every seed. An arm whose teacher is missing
    takes the teacher's time as well, and the teacher comes before it.

    Args:
        plans: their specs, by name.
        without_record: those of some specs that have no record.
        begun: whether a run has a checkpoint to go on from.
        speed: operations a second.
    """
    value, arms = {}, {}
    for specs in plans.values():
        order = list(dict.fromkeys((spec.study, spec.arm) for spec in specs if spec.study != "teacher"))
        for spec in specs:
            if spec.study != "teacher":
                worth = 1 / (1 + order.index((spec.study, spec.arm)))
                value[spec.hash] = max(worth, value.get(spec.hash, 0.0))
    every = {spec.hash: spec for specs in plans.values() for spec in specs}
    still = {spec.hash: spec for spec in without_record(list(every.values()))}
    for spec in still.values():
        if spec.hash in value:
            arms.setdefault((spec.study, spec.arm), []).append(spec)

    def before(spec: Spec) -> list[Spec]:
        """The teachers that are missing, the first of all first."""
        chain = []
        while spec.teacher is not None and spec.teacher.hash in still:
            spec = spec.teacher
            chain.insert(0, spec)
        return chain

    def density(arm: list[Spec]) -> float:
        needed = {spec.hash: spec for each in arm for spec in [*before(each), each]}
        return sum(value[spec.hash] for spec in arm) / (sum(map(work, needed.values())) / speed)

    first = [spec for spec in still.values() if begun(spec)]
    ordered = [spec for arm in sorted(arms.values(), key=density, reverse=True) for spec in arm]
    found = [each for spec in [*first, *ordered] for each in [*before(spec), spec]]
    return list({spec.hash: spec for spec in found}.values())


def spend(
    device: str,
    seconds: float,
    out: Path,
    *,
    book: Path,
    measurements: Path,
    names: Sequence[str] | None = None,
    limit: int = 6,
) -> dict:
    """Train what is missing of all plans until the time is up, with checkpoints in ``out``, and say in ``out/records-queue.json`` what.

    Called again with what ``out`` holds, perhaps on another machine, it goes on from there. Plans whose data cannot be had here are
    left out, and named. Steps are captured where ``out/acceptance.json`` says that this holds here.

    Args:
        names: of plans; None is all of them.
    """
    until, speed = time.monotonic() + seconds, pace(measurements)
    data, absent = {}, {}
    graphs = captures_hold(out / "acceptance.json")
    result = {"part": "records", "provenance": provenance(device), "captured": graphs, "operations_per_second": speed}
    result |= {"written": 0, "ended": None}

    def waiting() -> list[Spec]:
        plans = {name: [s for s in specs_of(name, book, out) if s.data not in absent] for name in names or PLANS}
        return queue(
            plans, lambda specs: missing(missing(specs, book), out),
            lambda spec: (out / "running" / f"{spec.name}.safetensors").exists(), speed,
        )  # fmt: skip

    def tell(ended: str | None) -> None:
        first = [{"run": spec.name, "seconds": work(spec) / speed} for spec in waiting()[:40]]
        result.update(
            ended=ended, left_out=dict(absent), next=first, records=len(list((out / "records").glob("*.json")))
        )
        with atomic_write(out / "records-queue.json") as part:
            part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

    def with_data() -> list[Spec]:
        """The queue, from its first run whose data are here."""
        while (specs := waiting()) and specs[0].data not in data:
            try:
                data[specs[0].data] = load(specs[0].data)
            except (DataError, ImportError, ValueError) as error:
                absent[specs[0].data] = f"{error}"
        return [spec for spec in specs if spec.data in data]

    tell(None)
    try:
        result["written"] = run_plan(
            with_data, book=book, out=out, budget=max(until - time.monotonic(), 1.0), device=device, limit=limit, data=data,
            graphs=graphs,
        )  # fmt: skip
        ended = "all that can be run here is recorded"
    except Stopped:
        ended = "the time was up"
    except (PlanError, RecordError, RuntimeError) as error:
        ended = f"{type(error).__name__}: {error}"
    tell(ended)
    return result
