"""A record is one JSON file a run: what was run, on what, from which code, and what came out."""

import json
import os
import platform
import statistics
import sys
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..files import atomic_write, note_read
from ..training.distributed import rank_and_world
from .repository import git
from .spec import Spec, spec_hash

#: 2 has the epochs as columns, and a checksum of the whole; 1 is still read.
SCHEMA = 2


class RecordError(RuntimeError):
    """A record that is missing, damaged, or not of its spec."""


def evidence_folder() -> Path:
    """The folder with the book's records and checkpoints, ``book/evidence``.

    In ``KDLAB_BOOK`` if set, a book's folder or one of evidence; else in the nearest ``book`` above the working
    directory, or beside the package.

    Raises:
        RecordError: if there is none, or not where ``KDLAB_BOOK`` says.
    """
    if named := os.environ.get("KDLAB_BOOK"):
        inside = Path(named) / "evidence"
        found = inside if inside.is_dir() else Path(named)
        if not found.is_dir():
            raise RecordError(
                f"KDLAB_BOOK names {named}, which is not there: it names a folder book, or one with records in it."
            )
        return found
    for start in (Path.cwd(), Path(__file__).resolve().parents[1]):
        for above in (start, *start.parents):
            if (above / "book" / "evidence" / "records").is_dir():
                return above / "book" / "evidence"
    raise RecordError("no book/evidence folder above here: clone the repository, or set KDLAB_BOOK to its folder book.")


def book_folder() -> Path:
    """The earlier name of :func:`evidence_folder`."""
    warnings.warn(
        "kdlab.study.book_folder is evidence_folder since 0.2.0, and ends with 0.4.0.", DeprecationWarning, stacklevel=2
    )
    return evidence_folder()


@cache
def _code() -> dict[str, Any]:
    """The commit of kdlab's own checkout, and whether it has changes: as a process was when it first asked, whatever is committed later."""
    root = Path(__file__).resolve().parents[2]
    status = git(root, "status", "--porcelain", "--untracked-files=no")
    return {"commit": git(root, "rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def provenance(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Where and with what a run happens: commit, versions, hardware."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [
            x.split(":", 1)[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x
        ]
        cpu = names[0] if names else cpu
    on_cpu = torch.device(device).type == "cpu"
    hardware = f"{cpu}, {torch.get_num_threads()} threads" if on_cpu else torch.cuda.get_device_name(device)
    _, world = rank_and_world()
    return {
        **_code(),
        "kdlab": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": metadata.version("numpy"),
        "device": hardware if world == 1 else f"{hardware}, {world} processes",
        "system": f"{platform.system()} {platform.machine()}",
        "command": " ".join(Path(a).name if i == 0 or Path(a).is_absolute() else a for i, a in enumerate(sys.argv)),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def record_path(spec: Spec, folder: Path) -> Path:
    return Path(folder) / f"{spec.name}.json"


def record_name(record: dict) -> str:
    """The stem of a record's file: that of its spec, ``Spec.name``."""
    spec = record["spec"]
    return f"{spec['study']}.{spec['arm']}.seed{record['recipe']['seed']}.{record['spec_hash'][:8]}"


def columns(history: list[dict]) -> dict[str, list]:
    """What was measured after each epoch, as one list a measure; numbers to six digits.

    >>> columns([{"epoch": 1, "loss": 2.5, "validation": {"accuracy": 0.25}}])
    {'epoch': [1], 'loss': [2.5], 'validation.accuracy': [0.25]}
    """
    rows = [
        {
            f"{name}.{part}" if part else name: value
            for name, entry in row.items()
            for part, value in (entry.items() if isinstance(entry, dict) else [("", entry)])
        }
        for row in history
    ]
    return {
        name: [float(f"{row[name]:.6g}") if isinstance(row[name], float) else row[name] for row in rows]
        for name in rows[0]
    }


def checksum(record: dict) -> str:
    """SHA-256 of a record's canonical JSON, without the checksum itself."""
    return spec_hash({name: value for name, value in record.items() if name != "sha256"})


def write_record(spec: Spec, folder: Path, content: dict) -> dict:
    """Write the record of ``spec``: never over another, never one with NaN.

    Raises:
        RecordError: if the record exists already, or holds numbers that JSON cannot hold.
    """
    path = record_path(spec, folder)
    if path.exists():
        raise RecordError(f"{path} exists already; a record is never overwritten.")
    try:
        record = {"schema": SCHEMA, "spec": spec.describe(), "spec_hash": spec.hash, **content}
        record = json.loads(json.dumps(record, allow_nan=False))
    except ValueError:
        raise RecordError(f"the record of {spec.name} holds NaN or infinity, and is not written.") from None
    return _written(record, path)


def name_checkpoint(spec: Spec, folder: Path, record: dict, named: dict[str, str]) -> dict:
    """Write the record of ``spec`` once more, with the name of a checkpoint that it did not have; all else stays."""
    return _written({**record, "schema": SCHEMA, "checkpoint": named}, record_path(spec, folder))


def _written(record: dict, path: Path) -> dict:
    record["sha256"] = checksum(record)
    with atomic_write(path) as part:
        part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def read_record(path: str | PathLike[str]) -> dict[str, Any]:
    """Read a record and check that it is whole and of the spec that it names.

    Raises:
        RecordError: if it is missing, not JSON, of another schema, or was changed.
    """
    path = note_read(path)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecordError(f"{path} does not exist.") from None
    except ValueError as error:
        raise RecordError(f"{path} is not a whole JSON file: {error}") from None
    if not isinstance(record, dict) or record.get("schema") not in (1, SCHEMA):
        raise RecordError(f"{path} is not a record of schema 1 or {SCHEMA}.")
    if not isinstance(record.get("spec"), dict) or record.get("spec_hash") != spec_hash(record["spec"]):
        raise RecordError(f"{path} was changed: its hash does not fit its spec.")
    if record["schema"] > 1 and record.get("sha256") != checksum(record):
        raise RecordError(f"{path} was changed: its checksum does not fit what it holds.")
    if record["schema"] == 1 and isinstance(record.get("epochs"), list):
        record["epochs"] = columns(record["epochs"])
    return record


#: What is measured of the machine and not of the run.
PASSING = (
    "seconds", "plain_seconds", "examples_per_second", "sentences_per_second", "teacher_sentences_per_second"
)  # fmt: skip


def is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def leaves(tree, name: str = "", *, mean: bool = False) -> Iterator[tuple[str, object]]:
    """The values of nested JSON by their paths, ``fitted.temperature``, ``modules[0].total_variation``; times left out.

    Of a list of numbers all, or their mean.
    """
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key not in PASSING:
                yield from leaves(value, f"{name}.{key}" if name else key, mean=mean)
    elif mean and isinstance(tree, list) and tree and all(map(is_number, tree)):
        yield name, statistics.fmean(tree)
    elif isinstance(tree, list):
        for place, value in enumerate(tree):
            yield from leaves(value, f"{name}[{place}]", mean=mean)
    else:
        yield name, tree


def numbers(record: dict) -> dict[str, object]:
    """What a record says of the test split and of the epochs, by its path, without what is measured of the machine."""
    return dict(leaves({"test": record["test"] or {}, "epochs": record.get("epochs", {})}))


def same_numbers(one: dict, other: dict) -> bool:
    """Whether two records of one spec agree in all that both say."""
    ours, theirs = (numbers(json.loads(json.dumps(record))) for record in (one, other))
    return all(ours[name] == theirs[name] for name in ours.keys() & theirs.keys()) and (
        one.get("diverged") == other.get("diverged")
    )


def headline(record: dict) -> str:
    """What came out on the test split, in a few words; of a run that diverged, where it did."""
    test = record["test"]
    if test is None:
        return record["diverged"]
    if "modules" in test:
        shared = ", ".join(f"{1 - module['total_variation']:.3f}" for module in test["modules"])
        return f"1 − TV {shared}"
    if "policy" in test:
        reward, kl = (sum(test["policy"][name]) / len(test["policy"][name]) for name in ("reward", "kl"))
        return f"reward {reward:.2f} at {kl:.2f} nats"
    if "recall_at_10" in test:
        return f"{100 * test['recall_at_10']:.2f} % of the teacher's ten nearest neighbours"
    if "bits_per_byte" in test:
        return f"{test['bits_per_byte']:.4f} bits per byte of the test text"
    return f"test accuracy {100 * test['accuracy']:.2f} %"


def find_record(spec: Spec, folder: Path) -> dict | None:
    """The record of ``spec``, or None where it is not yet run."""
    path = note_read(record_path(spec, folder))
    if not path.exists():
        return None
    record = read_record(path)
    if record["spec_hash"] != spec.hash:
        raise RecordError(f"{path} is the record of another spec.")
    return record


def write_taken(spec: Spec, path: Path, book: Path, checkpoint: Path | None) -> None:
    """Copy a verified record into a book, its checkpoint before it, so that no record is without its own."""
    pairs = [(path, record_path(spec, Path(book) / "records"))]
    if checkpoint is not None:
        pairs.insert(0, (checkpoint, Path(book) / "checkpoints" / checkpoint.name))
    for source, target in pairs:
        with atomic_write(target) as part:
            part.write_bytes(source.read_bytes())
