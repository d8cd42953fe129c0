"""What a record says of a draft: measures as :class:`~kdlab.study.results.Results` takes them, each of one way to propose."""

from .results import Measure


def round_of(record: dict, draft_length: int, stop_below: float = 0.0) -> dict:
    """The columns of one way to propose, an entry a prompt, as :func:`~kdlab.language.speculative.try_draft` returns them.

    Raises:
        KeyError: if the record was not tried with it.
    """
    for found in record["test"]["drafting"]["rounds"]:
        if (found["draft_length"], found["stop_below"]) == (draft_length, stop_below):
            return found
    raise KeyError(f"no draft of {draft_length} tokens that stops below {stop_below:g} was tried.")


def acceptance_rate(draft_length: int, stop_below: float = 0.0) -> Measure:
    """Accepted of tested tokens."""

    def measure(record: dict) -> float:
        found = round_of(record, draft_length, stop_below)
        return sum(found["accepted"]) / sum(found["tested"])

    return measure


def call_yield(draft_length: int, stop_below: float = 0.0) -> Measure:
    """Tokens that a call of the verifier brings: what was accepted, and its own."""

    def measure(record: dict) -> float:
        found = round_of(record, draft_length, stop_below)
        return 1 + sum(found["accepted"]) / sum(found["calls"])

    return measure


def times_as_fast(draft_length: int, stop_below: float = 0.0) -> Measure:
    """Seconds of plain decoding over those of speculative decoding, in one run."""

    def measure(record: dict) -> float:
        plain = sum(record["test"]["drafting"]["plain_seconds"])
        return plain / sum(round_of(record, draft_length, stop_below)["seconds"])

    return measure
