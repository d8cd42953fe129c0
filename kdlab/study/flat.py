"""All records as one table: a row a run, a column a measure."""

from collections.abc import Collection, Iterator, Mapping
from statistics import fmean
from types import MappingProxyType

from .display import tokens_read
from .encoders import TEACHER
from .records import record_name


def row(record: dict, networks: Mapping[str, str] = MappingProxyType({})) -> dict:
    """A record as a row: what was trained, how long, and every number of its test (lists as their mean); a run that diverged has none.

    ``length`` says how long its student learned, in words; ``record`` is the name of its file; ``teacher`` its network, by the hash of
    its spec in ``networks``, else the first letters of the hash.
    """
    spec, how, origin = record["spec"], record["recipe"], record["provenance"]  # a spec does not say what is a default
    taught = spec["teacher"] or ""
    length = f"{how['epochs']} epochs"
    if (read := tokens_read(record)) is not None:
        length = f"{read:.3g} million tokens"
    elif "-sentences-" in spec["data"]:
        length = f"{how['epochs'] * how['epoch_examples']:,} sentences"
    return {
        "plan": spec["study"],
        "arm": spec["arm"],
        "seed": how["seed"],
        "length": length,
        "student": spec["student"],
        "teacher": networks.get(taught, taught[:8]),
        "data": spec["data"],
        "learning_rate": how["learning_rate"],
        "seconds": record.get("seconds"),
        "device": origin["device"],
        "commit": (origin["commit"] or "")[:10],
        "started": origin["started"][:10],
        "record": f"{record_name(record)}.json",
        **dict(numbers(record["test"] or {})),
    }


#: Of a row, what is no measure.
ABOUT = (
    "plan", "arm", "seed", "length", "student", "teacher", "data", "learning_rate", "seconds", "device", "commit", "started", "record",
)  # fmt: skip


def numbers(test, name: str = "") -> Iterator[tuple[str, float]]:
    """Every number in the test of a record, with the way to it as its name.

    >>> dict(numbers({"accuracy": 0.5, "policy": {"kl": [1.0, 2.0]}, "modules": [{"accuracy": 0.1}], "sample": "Once"}))
    {'accuracy': 0.5, 'policy kl': 1.5, 'modules 1 accuracy': 0.1}
    """
    if isinstance(test, dict):
        for key, value in test.items():
            yield from numbers(value, f"{name} {key}".strip())
    elif isinstance(test, list) and test and all(isinstance(value, (int, float)) for value in test):
        yield name, fmean(test)
    elif isinstance(test, list):
        for number, value in enumerate(test, start=1):
            yield from numbers(value, f"{name} {number}")
    elif isinstance(test, (int, float)) and not isinstance(test, bool):
        yield name, float(test)


def rows(records: Collection[dict]) -> list[dict]:
    """A row a record, in the order of plan, arm, length and seed."""
    networks = {record["spec_hash"]: record["spec"]["student"] for record in records} | {TEACHER.hash: TEACHER.student}
    found = [row(record, networks) for record in records]
    return sorted(found, key=lambda r: (r["plan"], r["arm"], r["length"], r["seed"]))
