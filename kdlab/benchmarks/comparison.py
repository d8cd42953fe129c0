"""Whether a commit is slower than another: two results of one benchmark on one machine, contestant by contestant.

A machine's speed drifts from day to day, so that seconds of two days say little. What is compared is each contestant's time
divided by that of the reference in the same round, which met the same weather.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from ..files import note_read
from .timing import BenchmarkError, quartiles

#: What has to be the same in both.
SAME = ("benchmark", "threads", "size")


def result_name(result: dict[str, Any]) -> str:
    """The name of the file that keeps a result beside those of other commits; in order of time.

    >>> of = {"started": "2026-11-29T16:05:00+00:00", "commit": "67786ce0a1b2", "dirty": True}
    >>> result_name({"benchmark": "step", "provenance": of})
    'step.2026-11-29T16-05-00.67786ce0-changed.json'
    """
    origin = result["provenance"]
    commit = (origin["commit"] or "unknown")[:8] + ("-changed" if origin["dirty"] else "")
    return f"{result['benchmark']}.{origin['started'][:19].replace(':', '-')}.{commit}.json"


def read_result(path: Path) -> dict[str, Any]:
    """What ``kdlab bench … --out`` or ``--record`` wrote.

    Raises:
        BenchmarkError: for another file.
    """
    try:
        result = json.loads(note_read(path).read_text(encoding="utf-8"))
        relative_times(result)
    except (ValueError, KeyError, TypeError):
        raise BenchmarkError(f"{path} is no result of kdlab bench.") from None
    return result


def relative_times(result: dict[str, Any]) -> dict[str, list[float]]:
    """Time for equal work, beside that of the reference in the same round; by contest and contestant."""
    found = {}
    if result["benchmark"] == "vocabulary":
        contests = [{"title": "", "seconds": result["seconds"], "reference": "bare products"}]
    else:
        contests = result["contests"]
    for contest in contests:
        work = contest.get("images") or dict.fromkeys(contest["seconds"], 1)
        each = {name: np.array(seconds) / work[name] for name, seconds in contest["seconds"].items()}
        reference = each.pop(contest["reference"])
        for name, times in each.items():
            found[f"{contest['title']}: {name}".removeprefix(": ")] = (times / reference).tolist()
    return found


def compared(earlier: dict[str, Any], later: dict[str, Any]) -> list[dict[str, Any]]:
    """For each contestant of both: quartiles of its relative time in the earlier and the later result, and what is seen.

    It is ``"slower"`` if the later lower quartile is above the earlier upper one, ``"faster"`` the other way round.

    Raises:
        BenchmarkError: for results of other benchmarks, sizes, settings or machines.
    """

    def kind(result):
        settings = {k: v for k, v in result.get("settings", {}).items() if k not in ("seconds", "rounds")}
        return {name: result.get(name) for name in SAME} | settings | {"machine": result["provenance"]["device"]}

    one, other = kind(earlier), kind(later)
    for name in one | other:
        if one.get(name) != other.get(name):
            raise BenchmarkError(
                f"these results cannot be compared: {name} was {one.get(name)}, and is {other.get(name)}."
            )
    before, after, rows = relative_times(earlier), relative_times(later), []
    for name in before:
        if name in after:
            a, b = quartiles(before[name]), quartiles(after[name])
            seen = "slower" if b["low"] > a["high"] else "faster" if b["high"] < a["low"] else "no difference seen"
            rows.append({"contestant": name, "earlier": a, "later": b, "seen": seen})
    return rows


def comparison_table(earlier: dict[str, Any], later: dict[str, Any]) -> str:
    """What :func:`compared` gives, as lines of text."""

    def made(result):
        origin = result["provenance"]
        return f"{result_name(result).split('.')[-2]} of {origin['started'][:10]}, torch {origin['torch']}"

    def told(q):
        return f"{q['median']:.3f} ({q['low']:.3f}–{q['high']:.3f})"

    lines = [f"{later['benchmark']}: {later['provenance']['device']}; {made(earlier)} → {made(later)}"]
    lines += [f"  {'time, reference = 1':<32}{'earlier':>22}{'later':>22}"]
    for row in compared(earlier, later):
        lines.append(f"  {row['contestant']:<32}{told(row['earlier']):>22}{told(row['later']):>22}  {row['seen']}")
    return "\n".join(lines)
