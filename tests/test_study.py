import functools
import importlib
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdlab.models import resnet8
from kdlab.objectives import CrossEntropy, HiddenMSE, MeanReward, Projector, SoftTargets
from kdlab.study import (
    Interval,
    RecordError,
    Spec,
    evidence_folder,
    find_record,
    mean_interval,
    paired_difference,
    plans,
    provenance,
    ratio_interval,
    read_record,
    records,
    run,
    stored_student,
    write_record,
)
from kdlab.study.named import load
from kdlab.study.stored import checkpoint_path
from kdlab.training import Recipe, Stopped, fitted_temperature, measure, predict, seeds

runs = importlib.import_module("kdlab.study.run")  # the name kdlab.study.run is the function

TINY = Recipe(epochs=2, batch_size=32, learning_rate=0.02, schedule="cosine", augment=False)
TEACHER = Spec("tests", "teacher", "digits", "resnet8", 1.0 * CrossEntropy(), TINY)
STUDENT = Spec(
    "tests",
    "kd",
    "digits",
    "resnet8",
    0.1 * CrossEntropy() + 0.9 * SoftTargets(temperature=4),
    TINY,
    TEACHER,
    64,
)


@pytest.fixture
def book(tmp_path):
    (tmp_path / "book" / "evidence" / "records").mkdir(parents=True)
    return tmp_path / "book" / "evidence"


# Specs


def test_a_function_is_refused_in_a_spec_for_what_it_may_close_over():
    objective = 1.0 * CrossEntropy() + 0.0 * MeanReward(lambda texts: texts.sum(1))
    with pytest.raises(ValueError, match=r"known by its repr, and '\S*<lambda> \w{64}' in that of teacher does not"):
        replace(TEACHER, objective=objective)


@pytest.mark.parametrize("made_of", [{"inner": object()}, {"weights": torch.ones(3)}], ids=["at 0x", "tensor("])
def test_what_no_repr_tells_apart_is_refused_in_a_spec(made_of):
    class Of(CrossEntropy):
        def __repr__(self):
            return f"Of({made_of})"

    with pytest.raises(
        ValueError, match=r"known by its repr, and '(at 0x|tensor\()' in that of teacher does not tell it"
    ):
        replace(TEACHER, objective=Of())


def test_hash_is_the_same_in_every_process():
    code = "from test_study import STUDENT; print(STUDENT.hash)"
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": f"{root}:{root}/tests"},
    )
    assert done.stdout.strip() == STUDENT.hash


@pytest.mark.parametrize(
    "change",
    [
        {"study": "other"},
        {"arm": "other"},
        {"data": "cifar100"},
        {"student": "resnet14"},
        {"objective": 0.1 * CrossEntropy() + 0.9 * SoftTargets(temperature=5)},
        {"objective": 0.2 * CrossEntropy() + 0.9 * SoftTargets(temperature=4)},
        {"recipe": replace(TINY, seed=1)},
        {"recipe": replace(TINY, momentum=0.8)},
        {"recipe": replace(TINY, milestones=(1,))},
        {"teacher": None},
        {"teacher": replace(TEACHER, recipe=replace(TINY, seed=5))},
        {"train_examples": 65},
        {"train_examples": None},
    ],
    ids=lambda change: next(iter(change)),
)
def test_hash_changes_with_every_field(change):
    changed = replace(STUDENT, **change)
    assert changed.hash != STUDENT.hash
    assert changed.name != STUDENT.name


def test_hash_is_that_of_the_content():
    objective = 0.1 * CrossEntropy() + 0.9 * SoftTargets(temperature=4)
    assert replace(STUDENT, objective=objective, recipe=replace(TINY, seed=0, epochs=2)).hash == STUDENT.hash


def test_fields_at_their_defaults_are_no_part_of_the_identity():
    assert STUDENT.describe()["recipe"] == {
        "epochs": 2, "batch_size": 32, "learning_rate": 0.02, "schedule": "cosine", "augment": False,
    }  # fmt: skip
    assert replace(STUDENT, recipe=Recipe()).describe()["recipe"] == {}


def test_description_is_json_and_names_the_teacher_by_its_hash():
    described = replace(STUDENT, recipe=replace(TINY, milestones=(3, 4))).describe()
    assert json.loads(json.dumps(described, allow_nan=False)) == described
    assert described["teacher"] == TEACHER.hash
    assert described["objective"] == "0.1 * CrossEntropy() + 0.9 * SoftTargets(temperature=4)"


def test_name_is_a_file_name_with_the_seed_and_the_hash():
    assert STUDENT.name == f"tests.kd.seed0.{STUDENT.hash[:8]}"


@pytest.mark.parametrize(
    "plan",
    [
        plans.first_distillation_cpu,
        plans.first_distillation_gpu,
        lambda: plans.first_distillation_live("digits", "float32"),
    ],
)
def test_plans_name_each_run_once(plan):
    specs = plan()
    assert len({spec.hash for spec in specs}) == len({spec.name for spec in specs}) == len(specs)


# Records


def test_a_record_is_read_as_it_was_written(book):
    written = write_record(STUDENT, book / "records", {"test": {"accuracy": 0.5}})
    assert find_record(STUDENT, book / "records") == written
    assert written["spec"] == STUDENT.describe() and written["spec_hash"] == STUDENT.hash and written["schema"] == 2
    (path,) = (book / "records").iterdir()
    assert read_record(path) == written


def test_a_record_is_never_overwritten(book):
    write_record(STUDENT, book / "records", {"test": {"accuracy": 0.5}})
    (path,) = (book / "records").iterdir()
    before = path.read_bytes()
    with pytest.raises(RecordError, match="exists already; a record is never overwritten"):
        write_record(STUDENT, book / "records", {"test": {"accuracy": 0.9}})
    assert path.read_bytes() == before


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_record_with_nan_is_not_written(book, value):
    with pytest.raises(RecordError, match="holds NaN or infinity, and is not written"):
        write_record(STUDENT, book / "records", {"epochs": [{"loss": value}]})
    assert list((book / "records").iterdir()) == []


def test_a_missing_record_is_none_or_said(book):
    assert find_record(STUDENT, book / "records") is None
    with pytest.raises(RecordError, match="nowhere.json does not exist"):
        read_record(book / "nowhere.json")


@pytest.mark.parametrize("field", ["data", "recipe", "spec_hash"])
def test_a_changed_record_is_refused(book, field):
    record = write_record(STUDENT, book / "records", {})
    (path,) = (book / "records").iterdir()
    if field == "spec_hash":
        record["spec_hash"] = TEACHER.hash
    elif field == "recipe":
        record["spec"]["recipe"]["epochs"] = 200
    else:
        record["spec"]["data"] = "cifar100"
    path.write_text(json.dumps(record))
    with pytest.raises(RecordError, match="was changed: its hash does not fit its spec"):
        find_record(STUDENT, book / "records")


def test_a_changed_result_is_refused(book):
    record = write_record(STUDENT, book / "records", {"test": {"accuracy": 0.5}})
    (path,) = (book / "records").iterdir()
    record["test"]["accuracy"] = 0.9
    path.write_text(json.dumps(record))
    with pytest.raises(RecordError, match="was changed: its checksum does not fit what it holds"):
        find_record(STUDENT, book / "records")


@pytest.mark.parametrize("part", [0, 1, 50, -3])
def test_a_truncated_record_is_refused(book, part):
    write_record(STUDENT, book / "records", {})
    (path,) = (book / "records").iterdir()
    path.write_bytes(path.read_bytes()[:part])
    with pytest.raises(RecordError, match="is not a whole JSON file"):
        read_record(path)


@pytest.mark.parametrize("content", ["[]", "{}", '"text"', '{"schema": 3}', '{"schema": "1", "spec": {}}'])
def test_a_record_of_another_schema_is_refused(book, content):
    (book / "foreign.json").write_text(content)
    with pytest.raises(RecordError, match="is not a record of schema 1"):
        read_record(book / "foreign.json")


def test_a_record_without_its_spec_is_refused(book):
    (book / "foreign.json").write_text('{"schema": 1}')
    with pytest.raises(RecordError):
        read_record(book / "foreign.json")


def test_the_record_of_another_spec_is_refused(book):
    write_record(TEACHER, book / "records", {})
    (path,) = (book / "records").iterdir()
    path.rename(book / "records" / f"{STUDENT.name}.json")
    with pytest.raises(RecordError, match="is the record of another spec"):
        find_record(STUDENT, book / "records")


def test_provenance_says_where_and_with_what():
    origin = provenance()
    assert set(origin) == {
        "commit", "dirty", "kdlab", "python", "torch", "numpy", "device", "system", "command", "started",
    }  # fmt: skip
    assert origin["torch"] == torch.__version__ and origin["numpy"] == np.__version__
    assert "1 threads" in origin["device"] and origin["started"].endswith("+00:00")


def test_provenance_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(records, "_code", records._code.__wrapped__)
    assert provenance()["commit"] is None and provenance()["dirty"] is None


def test_within_another_project_there_is_no_commit(tmp_path, monkeypatch):
    """Installed in a folder of somebody else's checkout, kdlab gave their commit for its own."""
    for command in (
        ["init"],
        ["-c", "user.name=n", "-c", "user.email=e", "commit", "--allow-empty", "--message", "theirs"],
    ):
        subprocess.run(["git", "-C", tmp_path, *command], check=True, capture_output=True)
    monkeypatch.setattr(records, "__file__", str(tmp_path / "site-packages" / "kdlab" / "study" / "records.py"))
    monkeypatch.setattr(records, "_code", records._code.__wrapped__)
    assert (provenance()["commit"], provenance()["dirty"]) == (None, None)


def test_a_process_names_the_commit_that_it_began_with(monkeypatch):
    said = iter(["", "the first", "", "the second"])
    monkeypatch.setattr(records, "git", lambda *_: next(said))
    monkeypatch.setattr(records, "_code", functools.cache(records._code.__wrapped__))
    assert [provenance()["commit"] for _ in range(2)] == ["the first", "the first"]


def test_the_study_is_there_where_no_system_tells_of_memory():
    code = "import sys; sys.modules['resource'] = None; from kdlab.study import run_together; import kdlab.study.run; print(sys.modules['kdlab.study.run'].peak_memory('cpu'))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1]
    )
    assert done.stdout == "None\n", done.stderr


def test_the_evidence_folder(monkeypatch, tmp_path, book):
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    assert evidence_folder() == book
    monkeypatch.setenv("KDLAB_BOOK", str(tmp_path))
    assert evidence_folder() == tmp_path
    monkeypatch.setenv("KDLAB_BOOK", "/elsewhere/book")
    with pytest.raises(RecordError, match="KDLAB_BOOK names /elsewhere/book, which is not there"):
        evidence_folder()
    monkeypatch.setenv("KDLAB_BOOK", str(book.parent))
    assert evidence_folder() == book
    with pytest.warns(DeprecationWarning, match="is evidence_folder since"):
        assert records.book_folder() == book
    monkeypatch.delenv("KDLAB_BOOK")
    (book / "records").rmdir()
    monkeypatch.setattr(records, "__file__", str(inside / "kdlab" / "study" / "records.py"))
    with pytest.raises(
        RecordError, match="no book/evidence folder above here: clone the repository, or set KDLAB_BOOK"
    ):
        evidence_folder()


# Runs


@pytest.fixture(scope="module")
def finished(digits, tmp_path_factory):
    """A teacher and its student, run and recorded."""
    book = tmp_path_factory.mktemp("study") / "book"
    teacher = run(TEACHER, digits, book=book, keep=[TEACHER.name])
    student = run(STUDENT, digits, teacher=teacher.student, book=book, resume=book.parent / "running")
    return book, teacher, student


def test_a_run_leaves_its_record(finished, digits):
    book, _, student = finished
    record = find_record(STUDENT, book / "records")
    assert record == json.loads(json.dumps(student.record))
    assert set(record) == {
        "schema", "spec", "spec_hash", "provenance", "data", "recipe", "selection", "parameters", "seconds",
        "examples_per_second", "epochs", "test", "students_in_process", "peak_memory_bytes", "teacher_weights", "sha256",
    }  # fmt: skip
    assert record["provenance"].keys() == provenance().keys()
    split = {"train": 64, "validation": 48, "test": 64}
    assert record["data"] == {"name": "digits", "checksum": digits.checksum, "split": split}
    assert record["epochs"]["epoch"] == [1, 2]
    assert record["recipe"]["epochs"] == 2 and record["recipe"]["momentum"] == 0.9
    assert record["parameters"] == sum(p.numel() for p in student.student.parameters())


def test_a_run_measures_its_student_on_the_test_split(finished, digits):
    _, teacher, student = finished
    assert not student.student.training
    assert torch.equal(predict(student.student, digits.test), student.test_logits)
    measured = dict(student.record["test"])
    within, fitted = measured.pop("errors_within_superclass"), measured.pop("fitted")
    assert measured == measure(student.test_logits, digits.test.labels, teacher.test_logits)
    errors = [
        digits.superclass_of[a] == digits.superclass_of[b]
        for a, b in zip(student.test_logits.argmax(-1).tolist(), digits.test.labels.tolist(), strict=True)
        if a != b
    ]
    assert within == pytest.approx(np.mean(errors), abs=1e-6)
    assert "agreement" not in teacher.record["test"]
    temperature = fitted_temperature(predict(student.student, digits.validation), digits.validation.labels)
    again = measure(student.test_logits / temperature, digits.test.labels, teacher.test_logits)
    kept = ("cross_entropy", "calibration_error", "kl_to_teacher")
    assert fitted == {"temperature": temperature, **{name: again[name] for name in kept}}
    assert fitted["cross_entropy"] <= measured["cross_entropy"] + 0.02  # it was fitted on another split


def test_runs_of_one_seed_begin_with_the_same_weights_whatever_their_objectives_draw(digits, monkeypatch):
    """A projector or a memory is drawn after the student, so that it does not shift the student's draw."""
    begun = {}

    def noted(learners, **options):
        for learner in learners:
            begun[repr(learner.objective)] = [p.detach().clone() for p in learner.student.parameters()]
        raise Stopped

    monkeypatch.setattr(runs, "fit_together", noted)
    hint = HiddenMSE("layer2", projector=Projector("conv", 32, 32))
    specs = [STUDENT, replace(STUDENT, objective=CrossEntropy() + hint)]
    with pytest.raises(Stopped):
        runs.run_together(specs, digits, teacher=resnet8(10))
    alone, hinted = begun.values()
    assert all(torch.equal(a, b) for a, b in zip(alone, hinted, strict=True))


def test_the_length_of_the_gradient_is_recorded(finished, digits):
    """Of the first step, by hand: student and batch of the spec, the gradient of its objective."""
    record = finished[2].record
    torch.manual_seed(0)
    student, teacher = resnet8(10), finished[1].student
    order = torch.randperm(64, generator=seeds.generator(0, 0, "order"))
    inputs, labels, _ = next(iter(digits.train[:64].batches(32, order=order)))
    with torch.no_grad():
        t = teacher(inputs)
    total, _ = STUDENT.objective(student_logits=student(inputs), teacher_logits=t, labels=labels)
    total.backward()
    length = torch.cat([p.grad.flatten() for p in student.parameters()]).norm().item()
    assert record["epochs"]["gradient_norm"][0] == pytest.approx(length, rel=1e-4)


def test_a_stored_student_comes_back(finished, digits):
    book, teacher, _ = finished
    back = stored_student(TEACHER, book, 10)
    assert not back.training
    assert torch.equal(predict(back, digits.test), teacher.test_logits)
    assert teacher.record["checkpoint"]["file"] == checkpoint_path(TEACHER, book).name


def test_a_student_that_was_not_stored_is_none(finished, book):
    assert stored_student(STUDENT, finished[0], 10) is None
    assert stored_student(TEACHER, book, 10) is None


def test_another_checkpoint_than_the_records_is_refused(finished, book):
    source, _, _ = finished
    for folder in ("records", "checkpoints"):
        (book / folder).mkdir(exist_ok=True)
        for path in (source / folder).iterdir():
            (book / folder / path.name).write_bytes(path.read_bytes())
    content = bytearray(checkpoint_path(TEACHER, book).read_bytes())
    content[-1] ^= 1
    checkpoint_path(TEACHER, book).write_bytes(content)
    with pytest.raises(RecordError, match="is not the checkpoint that its record names"):
        stored_student(TEACHER, book, 10)


def test_a_finished_run_is_not_run_again(finished, digits):
    with pytest.raises(RecordError, match="has its record already"):
        run(TEACHER, digits, book=finished[0])


def test_the_checkpoint_of_the_running_training_is_removed_at_its_end(finished):
    assert list((finished[0].parent / "running").iterdir()) == []


def test_a_run_is_repeatable_and_can_be_killed(finished, digits, tmp_path):
    _, teacher, student = finished

    def kill(spec, entry):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(STUDENT, digits, teacher=teacher.student, book=tmp_path / "book", resume=tmp_path, report=kill)
    again = run(STUDENT, digits, teacher=teacher.student, book=tmp_path / "book", resume=tmp_path)
    assert torch.equal(again.test_logits, student.test_logits)
    assert again.record["test"] == student.record["test"]


def test_wrong_data_or_no_teacher_are_refused(digits):
    with pytest.raises(ValueError, match="the spec asks for cifar100, but the data are digits"):
        run(replace(TEACHER, data="cifar100"), digits)
    with pytest.raises(ValueError, match=rf"the spec asks for the teacher {TEACHER.name}, but none was given"):
        run(STUDENT, digits)
    with pytest.raises(ValueError, match="unknown data 'imagenet': there are cifar100, cifar10, digits"):
        load("imagenet")


def test_without_a_book_nothing_is_written(digits, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    quick = replace(TEACHER, recipe=replace(TINY, epochs=1), train_examples=32)
    record = run(quick, digits).record
    assert record["spec_hash"] == quick.hash
    assert list(tmp_path.iterdir()) == []


# Statistics


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=20), st.floats(0.5, 0.99))
def test_mean_interval_is_students(values, level):
    interval = mean_interval(values, level)
    assert interval.n == len(values) and interval.mean == pytest.approx(np.mean(values))
    error = scipy.stats.sem(values)
    if error > 1e-9:
        low, high = scipy.stats.t.interval(level, len(values) - 1, loc=np.mean(values), scale=error)
        assert (interval.low, interval.high) == (pytest.approx(low), pytest.approx(high))


def test_a_textbook_interval():
    interval = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    half = 2.7764451 * math.sqrt(2.5 / 5)
    assert (interval.low, interval.high) == (pytest.approx(3 - half), pytest.approx(3 + half))


@pytest.mark.parametrize("n", [2, 5])
def test_intervals_cover_the_truth_as_often_as_they_say(n):
    draws = np.random.default_rng(0).normal(3.0, 2.0, (3000, n))
    covered = np.mean([interval.low <= 3.0 <= interval.high for interval in map(mean_interval, draws)])
    assert covered == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 3000))


@pytest.mark.parametrize("texts", [20, 200])
def test_the_interval_of_a_ratio_covers_it(texts):
    """Texts of different length and kind, of which each token is accepted with a probability of the text's own."""
    generator = np.random.default_rng(0)
    covered = []
    for _ in range(2000):
        of_text = generator.beta(8, 4, texts)
        tested = generator.integers(5, 40, texts)
        interval = ratio_interval(generator.binomial(tested, of_text), tested)
        covered.append(interval.low <= 2 / 3 <= interval.high)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)
    assert ratio_interval([1, 2], [3, 4]).mean == pytest.approx(3 / 7)
    for wrong in ([1, 2], [0, 0, 0]):
        with pytest.raises(ValueError, match="as many numerators as denominators"):
            ratio_interval([1, 1, 1], wrong)


def test_pairing_takes_out_what_the_seeds_share():
    generator = np.random.default_rng(1)
    seeds = generator.normal(0, 10, 8)
    control, treated = seeds + generator.normal(0, 0.1, 8), seeds + 1 + generator.normal(0, 0.1, 8)
    paired = paired_difference(treated, control)
    assert paired == mean_interval(treated - control)
    assert paired.excludes_zero and paired.low < 1 < paired.high and paired.high - paired.low < 0.5


def test_excluding_zero():
    assert Interval(1, 0.5, 1.5, 3).excludes_zero and Interval(-1, -1.5, -0.5, 3).excludes_zero
    assert not Interval(1, -0.5, 2.5, 3).excludes_zero and not Interval(0, 0, 0, 3).excludes_zero


def test_an_interval_prints_as_it_is_cited():
    assert f"{Interval(0.51234, 0.4, 0.6, 5):.2f}" == "0.51 [0.40, 0.60], n = 5"
    assert f"{Interval(0.25, 0.2, 0.3, 5):.0%}" == "25% [20%, 30%], n = 5"


def test_too_few_or_unpaired_runs_are_refused():
    for values in ([], [1.0]):
        with pytest.raises(ValueError, match=f"an interval needs at least two runs, not {len(values)}"):
            mean_interval(values)
    with pytest.raises(ValueError, match="paired runs must be as many, not 3 and 2"):
        paired_difference([1.0, 2.0, 3.0], [1.0, 2.0])
