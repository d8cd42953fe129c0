"""python -m kdlab.study PLAN: run the missing specs of a plan and write their records."""

import argparse
import sys
from pathlib import Path

from ..data import DataError
from . import plans
from .records import RecordError, book_folder, find_record
from .run import checkpoint_path, load, run, stored_student


def main():
    names = ["teacher", "published_teacher", "first_distillation_cpu", "first_distillation_gpu"]
    parser = argparse.ArgumentParser(prog="python -m kdlab.study", description=__doc__)
    parser.add_argument("plan", choices=names)
    parser.add_argument(
        "--book", type=Path, help="where records and checkpoints go (default: the book's own folder)"
    )
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    book = given.book or book_folder()
    specs = getattr(plans, given.plan)()
    specs = specs if isinstance(specs, list) else [specs]
    data = load(specs[0].data)
    reference = next(
        (spec.teacher for spec in specs if spec.teacher), None
    )  # what a student alone is compared with
    for number, spec in enumerate(specs, start=1):
        if find_record(spec, book / "records"):
            print(f"[{number}/{len(specs)}] {spec.name} has its record", flush=True)
            continue
        teacher = None
        if reference is not None:
            teacher = stored_student(reference, book, data.num_classes)
            if teacher is None:
                parser.exit(1, f"{checkpoint_path(reference, book)} is missing: run its plan first.\n")

        def report(entry, number=number, spec=spec):
            print(
                f"[{number}/{len(specs)}] {spec.name} epoch {entry['epoch']}/{spec.recipe.epochs} "
                f"loss {entry['loss']:.3f} validation {entry['validation']['accuracy']:.3f} "
                f"{entry['examples_per_second']:.0f} images/s",
                flush=True,
            )

        is_teacher = spec.study == "teacher"
        done = run(
            spec, data, teacher=teacher, book=book, keep_student=is_teacher, device=given.device,
            resume=book.parent / "_build" / "running", report=report,
        )  # fmt: skip
        print(
            f"[{number}/{len(specs)}] {spec.name} test accuracy {done.record['test']['accuracy']:.4f}",
            flush=True,
        )


if __name__ == "__main__":
    try:
        main()
    except (DataError, RecordError) as error:
        sys.exit(f"{error}")
