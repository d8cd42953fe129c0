"""``kdlab gpu``: a few minutes of a device become a check, measurements and records, each in a process and with a file of its own."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ..data.images import SHIFTS
from ..language import tokens_per_call
from . import acceptance, measurements, records

#: The parts in their order: the file of each, its share of the time, and at most so many seconds.
PARTS = {
    "acceptance": ("acceptance.json", 0.27, 180.0),
    "measurements": ("measurements.json", 0.18, 120.0),
    "records": ("records-queue.json", 1.0, float("inf")),
}
#: The part of a draft's tokens for which the gain of speculative decoding is told.
BELIEVED = 0.8
#: So many seconds longer than its share a part is waited for, while it ends what it has begun.
GRACE = 20.0


def visit(
    device: str,
    seconds: float,
    out: Path,
    *,
    book: Path,
    say: Callable[[str], None] = print,
    options: tuple[str, ...] = (),
) -> int:
    """Run all parts and return how many of them died; none takes the next one with it, nor what it has written.

    Args:
        out: the folder for the parts' files, and for records and checkpoints. Given again, records go on from what it holds.
        options: for the command of each part.
    """
    until, died = time.monotonic() + seconds, 0
    for name, (file, share, most) in PARTS.items():
        left = until - time.monotonic()
        part = max(left - GRACE if share == 1.0 else min(share * seconds, most, left), 1.0)
        command = [sys.executable, "-m", "kdlab", "gpu", "--part", name, "--minutes", f"{part / 60:.4f}"]
        command += ["--device", device, "--out", str(out), "--book", str(book), *options]
        say(f"{name}, {part:.0f} s …")
        code = ended(subprocess.Popen(command), part + GRACE)
        died += code != 0
        for line in told(Path(out) / file, name):
            say(f"  {line}")
        if code != 0:
            say(f"  {name} ended with status {code}; what it had written is in {Path(out) / file}.")
    return died


def ended(process: subprocess.Popen, seconds: float) -> int:
    """The status of a process, which is asked to end after so many seconds, and made to a little later."""
    for stop in (process.terminate, process.kill):
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            stop()
            seconds = GRACE
    return process.wait()


def run_part(
    name: str, device: str, seconds: float, out: Path, *, book: Path, plans: list[str] | None = None, limit: int = 6
) -> dict:
    """One part, in this process."""
    file = Path(out) / PARTS[name][0]
    if name == "acceptance":
        return acceptance.accept(device, seconds, file)
    if name == "measurements":
        return measurements.measure(device, seconds, file)
    return records.spend(
        device,
        seconds,
        Path(out),
        book=book,
        measurements=Path(out) / PARTS["measurements"][0],
        names=plans,
        limit=limit,
    )


def told(file: Path, name: str) -> list[str]:
    """What a part's file says, as lines."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return [f"{name} left no file."]
    if name == "acceptance":
        return [
            f"{state(check)}: {check['name']}" + "".join(f"; {x}" for x in check["wrong"] or ())
            for check in found["checks"]
        ]
    if name == "measurements":
        return [
            f"{row['what']}: {row.get('error') or row.get('left_out')}" if row["value"] is None
            else f"{row['what']}: {row['value']:,.4g} {row['unit']}"
            for row in found["rows"]
        ]  # fmt: skip
    absent = [f"left out, {data}: {why}" for data, why in found["left_out"].items()]
    absent += [] if found["captured"] else ["no step was captured, since not all checks of that hold"]
    return [f"{found['written']} records written, {found['records']} in all; {found['ended']}.", *absent]


def state(check: dict) -> str:
    """What a check has shown.

    >>> state({"wrong": None}), state({"wrong": []}), state({"wrong": ["…"]})
    ('not reached', 'holds', 'does not hold')
    """
    return "not reached" if check["wrong"] is None else "does not hold" if check["wrong"] else "holds"


def _measured(rows: dict, epochs: int = 240, images: int = 50_000) -> dict[str, tuple[str, str | None]]:
    """What is asked of a GPU, and what was measured; None where it was not."""

    def value(what: str, key: str = "value"):
        return (rows.get(what) or {}).get(key)

    def ratio(a, b, text: str) -> str | None:
        return None if not a or not b else text.format(a / b)

    def believed(speed: float | None, length: int) -> float | None:
        """What a speed at which all that is proposed is believed becomes where a part is."""
        return speed and speed * tokens_per_call(BELIEVED, length) / tokens_per_call(1.0, length)

    rate, looks = value("training, kdlab, 5 students, kept logits"), value("training, a teacher's look")
    kept = rate and looks and f"{(5 * epochs / rate + 2 * SHIFTS / looks) * images / 60:.1f} min"
    ours, liger, plain = "vocabulary, kdlab", "vocabulary, Liger", value("decoding, plain")
    return {
        "Five seeds of WRN-40-2 → WRN-16-2, 240 epochs": (
            "at most 10 min", ratio(5 * epochs * images / 60, value("training, kdlab, 5 students"), "{:.1f} min"),
        ),
        "The same from kept logits of all views, their making included": ("at most 10 min", kept),
        "Loss of a vocabulary of 128,256, time beside Liger's": ("at most 1.0", ratio(value(ours), value(liger), "{:.2f}")),
        "The same, memory beside Liger's": ("at most 0.5", ratio(value(ours, "bytes"), value(liger, "bytes"), "{:.2f}")),
        "Plain decoding, 89 M parameters, batch 1": ("at least 1,000 tokens/s", None if not plain else f"{plain:,.0f} tokens/s"),
        **{
            f"Speculative decoding with {draft} beside plain, if it is believed in {BELIEVED:.0%}": (
                "at least 2", ratio(believed(value(f"decoding, speculative, {draft}"), length), plain, "{:.2f}"),
            )
            for draft, length in (("a small draft", 4), ("its own modules", 3))
        },
    }  # fmt: skip


def shown(folder: Path) -> list[tuple[str, str, str | None, str]]:
    """What a GPU has shown, of all that it is asked: what, what is asked, what was found (None: nothing yet), and on which card."""

    def read(name: str) -> dict:
        try:
            return json.loads((Path(folder) / PARTS[name][0]).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    accepted, measured = read("acceptance"), read("measurements")
    checks = {check["name"]: check for check in accepted.get("checks", [])}
    card = {
        name: found.get("provenance", {}).get("device", "")
        for name, found in (("accepted", accepted), ("measured", measured))
    }
    rows = []
    for name, check in acceptance.CHECKS.items():
        found = checks.get(name)
        seen = None if found is None or found["wrong"] is None else state(found)
        rows.append((check.__doc__.splitlines()[0], "holds", seen, card["accepted"] if seen else ""))
    for what, (asked, seen) in _measured({row["what"]: row for row in measured.get("rows", [])}).items():
        rows.append((what, asked, seen, card["measured"] if seen else ""))
    return rows
