"""The published table of CIFAR-100 and what is known of its noise: the facts that chapters 12, 13 and 15 hold records against."""

import tomllib
from typing import Any

import numpy as np

from .records import evidence_folder


def published_results() -> dict[str, Any]:
    """Published accuracies, recipe, weights and logs, with where each was read: the file ``published.toml`` of the evidence."""
    with open(evidence_folder() / "published.toml", "rb") as file:
        return tomllib.load(file)


def deviation_of_runs(published: dict[str, Any]) -> float:
    """What papers print after ±, read as a standard deviation over runs: their root mean square, in points."""
    printed = [value for row in published["method"] for value in row.get("deviation", {}).values()]
    return float(np.sqrt(np.mean(np.square(printed))))


def chance_gap(published: dict[str, Any], runs: int = 1) -> float:
    """How far two means of so many runs of one method lie apart by chance, in 95 cases of 100, in points."""
    return 1.96 * np.sqrt(2 / runs) * deviation_of_runs(published)
