"""Specs, plans, runs, records and statistics. May import every other room."""

from .records import RecordError, evidence_folder, find_record, provenance, read_record, write_record
from .records import book_folder as book_folder  # the earlier name
from .results import Results, results
from .run import Run, run, run_together
from .spec import Spec
from .statistics import Interval, mean_interval, paired_difference, ratio_interval
from .stored import stored_student
from .teachers import book_language_teacher, book_teacher

__all__ = [
    "Interval",
    "RecordError",
    "Results",
    "Run",
    "Spec",
    "book_language_teacher",
    "book_teacher",
    "evidence_folder",
    "find_record",
    "mean_interval",
    "paired_difference",
    "provenance",
    "ratio_interval",
    "read_record",
    "results",
    "run",
    "run_together",
    "stored_student",
    "write_record",
]
