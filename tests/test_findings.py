"""What the landing page says of the records: every word that depends on a number is chosen by it."""

import json
from pathlib import Path

import pytest

from kdlab.study.evidence import QUANTITIES
from kdlab.study.findings import (
    DRAFTS,
    FINDINGS,
    METHODS,
    drafts,
    found,
    leash,
    methods,
    moves,
    scale,
    transferred,
)
from kdlab.study.results import results
from kdlab.study.statistics import Interval

BOOK = Path(__file__).resolve().parents[1] / "book" / "evidence"


@pytest.fixture(scope="module")
def small():
    return results("small", BOOK)


def exchanged(study, one, other):
    """The same plan, with the records of two arms exchanged."""
    pairs = dict(
        zip([s.hash for s in study.specs if s.arm == one], [s.hash for s in study.specs if s.arm == other], strict=True)
    )
    pairs |= {theirs: ours for ours, theirs in pairs.items()}
    return type(study)(study.plan, study.specs, {key: study.records[pairs.get(key, key)] for key in study.records})


def test_a_difference_is_said_by_its_interval():
    accuracy = QUANTITIES["accuracy"]
    assert moves(Interval(-0.02, -0.03, -0.01, 3), accuracy) == "lowers test accuracy by 2.00 points [1.00, 3.00]"
    assert moves(Interval(0.02, -0.01, 0.05, 3), accuracy).startswith("leaves undecided whether test accuracy changes")
    assert (
        moves(Interval(-0.1, -0.2, -0.05, 3), QUANTITIES["bits_per_byte"])
        == "lowers bits per byte by 0.100 [0.050, 0.200]"
    )


def test_findings_follow_their_records(small):
    said = methods(small)
    best, worst = (choose(METHODS, key=lambda arm: small.mean(arm).mean) for choose in (max, min))
    other = methods(exchanged(small, best, worst))
    assert other != said
    above = said.split(" shown to be above")[0]
    assert (METHODS[best] in above) != (METHODS[best] in other.split(" shown to be above")[0])
    learned = results("drafts-small", BOOK)
    most = max(DRAFTS, key=lambda arm: -learned.mean(arm, "total_variation").mean)
    assert drafts(learned).endswith(f" points ({DRAFTS[most]}; n = 3 paired seeds).")
    assert not drafts(exchanged(learned, most, "alone")).endswith(f" points ({DRAFTS[most]}; n = 3 paired seeds).")
    policy = results("policy-small", BOOK)
    assert leash(exchanged(policy, "beta0", "beta1")) != leash(policy)


def test_what_has_no_records_is_not_said(tmp_path):
    assert found(tmp_path) == {}
    assert transferred(results("first-distillation-cpu", tmp_path)) is None


def test_each_finding_is_of_a_chapter_that_there_is():
    chapters = {int(path.name[:2]) for path in (BOOK.parents[1] / "notebooks").glob("*.py")}
    assert set(FINDINGS) <= chapters and set(found(BOOK)) == set(FINDINGS)


def test_the_scale_is_that_of_the_records():
    def record(device, data, teacher=None, examples=None, **recipe):
        return {
            "seconds": 3600,
            "provenance": {"device": device},
            "spec": {"teacher": teacher, "data": data, "train_examples": examples},
            "recipe": recipe,
        }

    cpu = record("Some CPU, 1 threads", "cifar100", teacher={}, epochs=5)
    assert scale([cpu]) == "1 runs on CPUs, 1 hours of training: students of images learn for 5 epochs"
    assert scale([cpu, record("Some CPU, 1 threads", "cifar100", teacher={}, examples=5000, epochs=80)]).endswith(
        "learn for 5 epochs"
    )
    text = record("NVIDIA H200", "book-openings-4096-256", teacher={}, epochs=8, epoch_examples=512)
    teacher = record("NVIDIA H200", "cifar100", epochs=200)
    assert scale([cpu, text, teacher]) == (
        "3 runs on CPUs and GPUs, 3 hours of training: students of images learn for 5 epochs, language models read 1.0 million tokens"
    )
    encoder = record("Some CPU, 1 threads", "books-sentences-24", teacher="of nobody", epochs=4, epoch_examples=4096)
    assert scale([encoder]).endswith("1 hours of training: sentence encoders read 16,384 sentences")
    side = {**cpu, "students_in_process": 3}
    assert scale([cpu, *3 * [side]]).startswith("4 runs on CPUs, 2 hours of training")
    diverged = {name: what for name, what in side.items() if name != "seconds"}
    assert scale([cpu, diverged]).startswith("2 runs on CPUs, 1 hours of training")
    records = [json.loads(path.read_text()) for path in (BOOK / "records").glob("*.json")]
    assert scale(records).startswith(f"{len(records)} runs on CPUs")
