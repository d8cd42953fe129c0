import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import defaultdict
from dataclasses import replace
from functools import cache
from itertools import count
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from kdlab import models
from kdlab.__main__ import app, seconds
from kdlab.data import DataError
from kdlab.data.images import ImageData, Split
from kdlab.files import sha256
from kdlab.language import load_text_data
from kdlab.objectives import (
    CRD,
    CrossEntropy,
    LearnedTemperature,
    PermutedSoftTargets,
    SoftTargets,
    SparseTargets,
)
from kdlab.study import RecordError, Spec, named, read_record, records, runner
from kdlab.study.plans import GROWING, PLANS
from kdlab.study.records import checksum, name_checkpoint
from kdlab.study.runner import PlanError, beside, claimed, every_spec, plan, run_plan, take, verify
from kdlab.study.spec import Pretrained
from kdlab.study.stored import checkpoint_path, keep_student, weights_checksum
from kdlab.training import Recipe, Stopped, Taps, save_model
from kdlab.training.checkpoint import load_tensors, save_tensors

ROOT = Path(__file__).parents[1]
RECIPE = Recipe(epochs=3, batch_size=16, learning_rate=0.02, schedule="cosine", warmup_epochs=1)
KD = 0.1 * CrossEntropy() + 0.9 * SoftTargets(temperature=4)


# A plan that takes a second


def tiny(classes):
    return nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, classes))


@cache
def patterns():
    """Ten patterns under noise: images that need no download and no package."""
    generator = torch.Generator().manual_seed(0)

    def split(n):
        labels = torch.randint(10, (n,), generator=generator)
        noise = torch.randint(0, 128, (n, 3, 32, 32), generator=generator)
        return Split((shapes[labels] + noise).to(torch.uint8), labels, (0.5,) * 3, (0.25,) * 3)

    shapes = torch.randint(0, 128, (10, 3, 32, 32), generator=generator)
    classes, groups = tuple("0123456789"), ("even", "odd")
    return ImageData(
        "patterns", split(96), split(40), split(60), classes, groups, tuple(range(2)) * 5, checksum="0" * 64
    )


def tiny_plan():
    """Every kind of run: a teacher, its students, their student, and one that diverges."""

    def arm(name, objective, seed=0, source=None, **changes):
        recipe = replace(RECIPE, seed=seed, **changes)
        return Spec("tests", name, "patterns", "tiny", objective, recipe, source)

    teacher = replace(arm("tiny", 1.0 * CrossEntropy()), study="teacher")
    memory = CRD("input:2", student_width=48, teacher_width=48, examples=96, width=8, negatives=16)
    kd = arm("kd", KD, source=teacher)
    return [
        teacher,
        kd,
        arm("kd", KD, 1, teacher),
        arm("alone", 1.0 * CrossEntropy(), source=teacher),
        arm("permuted", 1.0 * PermutedSoftTargets(temperature=4), source=teacher),
        arm("T-learned", 1.0 * SoftTargets(temperature=LearnedTemperature(1, 21)), source=teacher),
        arm("crd", CrossEntropy() + 0.8 * memory, source=teacher),
        arm("diverging", KD, source=teacher, learning_rate=1e30, schedule="constant", warmup_epochs=0.0),
        arm("adam", KD, source=teacher, optimizer="adam", learning_rate=1e-3),
        arm("assisted", KD, source=kd),
    ]


def register():
    """Make the plan, its data and its model known to kdlab, in a process of its own."""
    import torch._dynamo  # which the first optimiser of each child would import

    torch.set_num_threads(1)
    models.tiny, runner.load, PLANS["tiny"] = tiny, lambda name: patterns(), tiny_plan


@pytest.fixture(autouse=True, scope="module")
def _registered():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "tiny", tiny, raising=False)
        patch.setattr(runner, "load", lambda name: patterns())
        patch.setitem(PLANS, "tiny", tiny_plan)
        yield


@pytest.fixture(scope="module")
def whole(_registered, tmp_path_factory):
    """A book whose plan was run without interruption."""
    book = tmp_path_factory.mktemp("whole")
    assert run_plan(plan("tiny"), book=book, say=silent) == len(tiny_plan())
    return book


@pytest.fixture
def taught(whole, tmp_path):
    """A book with the teacher and nothing else."""
    book, teacher = tmp_path / "book", tiny_plan()[0]
    copy(whole, book, lambda path: path.stem == teacher.name)
    return book


def silent(line):
    pass


def copy(source, target, wanted=lambda path: True):
    for path in files(source):
        if wanted(path):
            (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target / path.relative_to(source))


def files(folder):
    return sorted(path for path in Path(folder).rglob("*") if path.is_file())


def contents(folder):
    return {path: path.read_bytes() for path in files(folder)}


#: What a record says of the machine and the moment.
PASSING = (
    "provenance",
    "seconds",
    "examples_per_second",
    "peak_memory_bytes",
    "students_in_process",
    "sha256",
)


def results(book):
    """The records of a book, without what another run of the same plan may say otherwise."""
    found = {path.name: read_record(path) for path in (Path(book) / "records").glob("*.json")}
    for record in found.values():
        for name in PASSING:
            record.pop(name, None)
            record.get("epochs", {}).pop(name, None)
    return found


def assert_as_whole(book, whole):
    assert results(book) == results(whole)
    assert contents(book / "checkpoints").keys() == {
        book / path.relative_to(whole) for path in files(whole / "checkpoints")
    }
    assert verify(book, tiny_plan()) == [] and files(book / "running") == []


def cli(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def assert_a_sentence(result, text):
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert text in result.stderr and result.stderr.count("\n") == 1, result.stderr


@pytest.fixture
def at_step(monkeypatch):
    """A function that has another function called at a step of all training, counted from when it is called."""

    def arrange(number, function):
        steps = count(1)

        def hook(module, *_):
            if module.training and next(steps) == number:
                function()

        def watched(classes):
            model = tiny(classes)
            model.register_forward_hook(hook)
            return model

        monkeypatch.setattr(models, "tiny", watched)

    return arrange


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


# A whole plan


def test_a_plan_is_run_as_a_whole(whole):
    found = results(whole)
    assert set(found) == {f"{spec.name}.json" for spec in tiny_plan()}
    assert [name for name, record in found.items() if "diverged" in record] == [
        f"{spec.name}.json" for spec in tiny_plan() if spec.arm == "diverging"
    ]
    kept = {spec.name for spec in tiny_plan() if spec.arm == "assisted"} | {spec.name for spec in tiny_plan()[:2]}
    assert {path.stem for path in files(whole / "checkpoints")} == kept
    assert verify(whole, tiny_plan()) == [] and files(whole / "running") == []


def test_a_finished_plan_is_not_run_again(whole, tmp_path):
    before = contents(whole)
    result = cli("run", "tiny", "--book", whole)
    assert (
        result.exit_code == 0
        and "All 10 runs of tiny are recorded in " in result.stdout
        and "kdlab run --again" in result.stdout
    )
    result = cli("run", "tiny", "--book", whole, "--out", tmp_path / "out")
    assert (
        result.exit_code == 0
        and "All 10 runs of tiny are recorded in " in result.stdout
        and "kdlab run --again" in result.stdout
    )
    assert contents(whole) == before


def test_one_at_a_time_the_records_are_the_same(whole, tmp_path):
    lines = []
    assert run_plan(plan("tiny"), book=tmp_path, limit=1, say=lines.append) == 10
    assert sum("beside each other" in line for line in lines) == 10
    assert_as_whole(tmp_path, whole)


@pytest.mark.parametrize(("fast", "said"), [("float32", 1), ("bfloat16", 0)])
def test_runs_in_a_precision_that_the_processor_emulates_say_so_once(taught, tmp_path, monkeypatch, fast, said):
    monkeypatch.setattr(runner, "fast_precision", lambda device: fast)
    teacher, *_ = tiny_plan()
    specs = [replace(spec, recipe=replace(spec.recipe, precision="bfloat16")) for spec in tiny_plan()[1:4]]
    lines = []
    run_plan([teacher, *specs], book=taught, out=tmp_path, limit=1, say=lines.append)
    assert lines.count(runner.SLOWLY) == said


def test_results_go_to_another_folder_than_the_teachers(taught, whole, tmp_path):
    before = contents(taught)
    assert run_plan(plan("tiny"), book=taught, out=tmp_path / "out", say=silent) == 9
    assert contents(taught) == before
    copy(taught, tmp_path / "out")
    assert_as_whole(tmp_path / "out", whole)


def test_what_goes_beside_what():
    specs = tiny_plan()
    assert beside(specs[0], specs, device="cpu") == specs[:1]
    assert {spec.arm for spec in beside(specs[1], specs, device="cpu")} == {
        "kd", "alone", "permuted", "T-learned", "crd", "diverging", "adam",
    }  # fmt: skip
    assert [spec.recipe.seed for spec in beside(specs[1], specs, device="cuda")][:2] == [0, 1]
    for change in (
        {"data": "digits"}, {"train_examples": 5}, {"omit": (1,)}, {"hold_out": False}, {"teacher": None},
        *({"recipe": replace(RECIPE, **change)} for change in (
            {"epochs": 1}, {"batch_size": 8}, {"augment": False}, {"precision": "bfloat16"}, {"teacher_mode": "train"},
        )),
    ):  # fmt: skip
        other = replace(specs[1], **change)
        assert beside(specs[1], [specs[1], other], device="cuda") == specs[1:2]


def test_status_and_show(whole, taught):
    result = cli("status", "tiny", "--book", taught)
    assert result.exit_code == 0
    assert result.stdout.startswith("tiny: 1 of 10 runs recorded in ")
    assert "  0/2  tests: kd\n" in result.stdout
    assert f"Next: {tiny_plan()[1].name}. To run it: kdlab run tiny" in result.stdout
    for path in files(whole / "records"):
        result = cli("show", path)
        assert result.exit_code == 0
        assert ("training diverged" if "diverging" in path.name else "accuracy   ") in result.stdout


# Stopped


@pytest.mark.parametrize("step", [1, 7, 20, 55, 100])
def test_sigterm_ends_with_a_checkpoint_and_the_same_command_goes_on(step, at_step, whole, tmp_path):
    book = tmp_path / "book"
    at_step(step, terminate)
    handler = signal.getsignal(signal.SIGTERM)
    result = cli("run", "tiny", "--book", book)
    assert result.exit_code == 0
    assert result.stdout.endswith("Stopped; the same command goes on from here.\n")
    assert [path for path in files(book / "running") if path.suffix == ".safetensors"]
    assert signal.getsignal(signal.SIGTERM) is handler
    result = cli("run", "tiny", "--book", book)
    assert result.exit_code == 0 and "0 of 10 runs are still without one" in result.stdout
    assert_as_whole(book, whole)


@pytest.mark.parametrize("kept", [True, False], ids=["as it is", "of an earlier version"])
def test_a_record_says_by_which_code_its_run_was_begun(kept, at_step, whole, tmp_path, monkeypatch):
    at_step(7, terminate)
    commit = ["the first"]
    monkeypatch.setattr(records, "_code", lambda: {"commit": commit[0], "dirty": False})
    for stop in (7, 7):  # twice by the same code
        at_step(stop, terminate)
        assert cli("run", "tiny", "--book", tmp_path, "--only", "teacher").exit_code == 0
    (path,) = (tmp_path / "running").glob("*.safetensors")
    if not kept:
        state, header = load_tensors(path)
        del header["origins"]
        save_tensors(path, state, header)
    commit[0] = "the second"
    assert cli("run", "tiny", "--book", tmp_path, "--only", "teacher").exit_code == 0
    origin = read_record(record_of(TEACHER, tmp_path))["provenance"]
    assert origin["commit"] == "the second"
    assert [said["commit"] for said in origin.get("earlier", [])] == ["the first"] * kept
    assert results(tmp_path)[f"{TEACHER.name}.json"] == results(whole)[f"{TEACHER.name}.json"]


def test_a_budget_is_kept(monkeypatch, taught):
    steps = []

    def slow(classes):
        model = tiny(classes)
        model.register_forward_hook(lambda *_: steps.append(time.sleep(0.05)))
        return model

    monkeypatch.setattr(models, "tiny", slow)
    endless = replace(tiny_plan()[1], recipe=replace(RECIPE, epochs=1000))
    began = time.monotonic()
    with pytest.raises(Stopped):
        run_plan([endless], book=taught, budget=5.5, checkpoint_seconds=1e9, say=silent)
    assert 1 < time.monotonic() - began < 9
    _, header = load_tensors(taught / "running" / f"{endless.name}.safetensors")
    assert 0 < header["step"] + 6 * len(header["history"]) <= len(steps)


def test_a_budget_is_kept_while_a_finished_student_is_measured(monkeypatch, taught):
    def slow(classes):
        model = tiny(classes)
        model.register_forward_hook(lambda module, *_: None if module.training else time.sleep(0.4))
        return model

    images = patterns()
    many = replace(images, test=images.test[torch.arange(20_000) % 60])
    monkeypatch.setattr(models, "tiny", slow)
    monkeypatch.setattr(runner, "load", lambda name: many)
    spec, before = tiny_plan()[1], files(taught)
    began = time.monotonic()
    with pytest.raises(Stopped):  # the test split would take 16 seconds
        run_plan([spec], book=taught, budget=8, say=silent)
    assert time.monotonic() - began < 12
    assert [path.name for path in set(files(taught)) - set(before)] == [f"{spec.name}.safetensors"]


def test_without_time_nothing_is_begun(at_step, taught):
    at_step(1, lambda: pytest.fail("a step was taken"))
    before = contents(taught)
    result = cli("run", "tiny", "--book", taught, "--budget", "3s")
    assert result.exit_code == 0 and result.stdout == "Stopped; the same command goes on from here.\n"
    with pytest.raises(Stopped):
        run_plan(plan("tiny"), book=taught, stop=lambda: True, say=silent)
    assert contents(taught) == before


def test_budgets():
    assert [seconds(text) for text in ("90", "90s", "9m", "1.5h", " 2 m")] == [90, 90, 540, 5400, 120]
    for text in ("", "soon", "-3", "9 d", "1e3"):
        with pytest.raises(PlanError, match="a budget is a number of seconds, or such as 9m or 1.5h, not"):
            seconds(text)


# Killed


def forked(function):
    """Call ``function`` in a child; its process id."""
    if pid := os.fork():
        return pid
    try:
        function()
        os._exit(0)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        os._exit(1)


def fifty_kills(folder):
    """Run the plan, killed at random moments; once it is finished, again, until it was killed 50 times."""
    register()
    draw, killed, finished = random.Random(0), 0, 0

    def start():
        book = folder / str(finished)
        return forked(lambda: run_plan(plan("tiny"), book=book, checkpoint_seconds=0, say=silent))

    began = time.monotonic()
    os.waitpid(start(), 0)
    duration = time.monotonic() - began
    finished = 1
    while killed < 50 or not (folder / str(finished - 1) / "done").exists():
        pid = start()
        if killed < 50:
            time.sleep(draw.uniform(0, 0.3 * duration))
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            finished += 1
            if killed >= 50:
                break
        else:
            killed += 1
    print(killed, finished)


def rivals(folder):
    """Three processes that run the plan at once, one of them killed, then one more to the end."""
    register()
    specs = plan("tiny")
    run_plan(specs[:1], book=folder / "book", say=silent)

    def compete(name):
        log = os.open(folder / f"{name}.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)

        def say(line):
            os.write(log, f"{line}\n".encode())

        run_plan(specs, book=folder / "book", limit=1, checkpoint_seconds=0, say=say)

    children = [forked(lambda name=name: compete(name)) for name in "abc"]
    while not (folder / "a.log").exists() or not (folder / "a.log").stat().st_size:
        time.sleep(0.01)
    os.kill(children[0], signal.SIGKILL)
    for pid in children[1:]:
        assert os.waitpid(pid, 0)[1] == 0
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == -signal.SIGKILL
    assert os.waitpid(forked(lambda: compete("d")), 0)[1] == 0


def in_its_own_process(function, folder):
    """A process that imports torch once and forks; it has one thread."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/tests", "OMP_NUM_THREADS": "1"}
    code = f"import sys, pathlib, test_runner; test_runner.{function.__name__}(pathlib.Path(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, folder],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout


def test_fifty_kills_change_no_record(whole, tmp_path):
    killed, finished = map(int, in_its_own_process(fifty_kills, tmp_path).split())
    assert killed == 50
    for number in range(finished):
        assert_as_whole(tmp_path / str(number), whole)


def test_processes_at_once_run_no_spec_twice(whole, tmp_path):
    in_its_own_process(rivals, tmp_path)
    assert_as_whole(tmp_path / "book", whole)
    begun = {path.stem: path.read_text().splitlines() for path in tmp_path.glob("*.log")}
    started = [line for lines in begun.values() for line in lines if "beside each other" in line]
    ended = [line for lines in begun.values() for line in lines if " beside each other" not in line]
    ended = [line.partition(":")[0] for line in ended if line.startswith("tests.")]
    assert len(ended) == len(set(ended)) and len(started) - len(set(started)) <= 1  # the killed one's


def test_a_claim_is_of_one(tmp_path):
    specs = tiny_plan()
    with claimed(specs, tmp_path, 3) as first, claimed(specs, tmp_path) as second:
        assert (first, second) == (specs[:3], specs[3:])
        with claimed(specs, tmp_path) as third:
            assert third == []
    with claimed(specs, tmp_path) as again:
        assert again == specs
    assert files(tmp_path) == []


def test_claims_that_come_and_go_are_never_of_two(tmp_path):
    spec, failures, inside = tiny_plan()[0], [], threading.Lock()

    def rush():
        for _ in range(300):
            with claimed([spec], tmp_path) as mine:
                if mine:
                    if not inside.acquire(blocking=False):
                        failures.append("two were inside")
                        continue
                    time.sleep(0)
                    inside.release()

    threads = [threading.Thread(target=rush) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_lock_that_was_removed_meanwhile_holds_nothing(tmp_path, monkeypatch):
    spec, flock = tiny_plan()[0], runner.fcntl.flock

    def late(handle, how):
        monkeypatch.setattr(runner.fcntl, "flock", flock)
        (tmp_path / f"{spec.name}.lock").unlink()  # by the process that held it
        flock(handle, how)

    monkeypatch.setattr(runner.fcntl, "flock", late)
    with claimed([spec], tmp_path) as mine, claimed([spec], tmp_path) as others:
        assert mine == [spec] and others == []


# A full disk


@pytest.mark.parametrize(
    ("method", "place", "number"),
    [("write_bytes", "running", 1), ("write_bytes", "running", 9), ("write_bytes", "checkpoints", 1), ("write_text", "records", 1), ("write_text", "records", 4)],
)  # fmt: skip
def test_a_full_disk_is_said_and_loses_nothing(method, place, number, at_step, whole, tmp_path, monkeypatch):
    book, writes = tmp_path / "book", count(1)
    write = getattr(Path, method)

    def full(path, content, *arguments, **options):
        if path.parent.parent.name == place and next(writes) == number:  # within a folder of its own, until it is whole
            write(path, content[: len(content) // 2], *arguments, **options)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write(path, content, *arguments, **options)

    at_step(5, terminate)
    assert cli("run", "tiny", "--book", book).exit_code == 0
    before = contents(book)
    with monkeypatch.context() as patch:
        patch.setattr(Path, method, full)
        result = cli("run", "tiny", "--book", book, "--checkpoint", "0")
    assert_a_sentence(result, "No space left on device: ")
    assert "Nothing that was written before is lost." in result.stderr
    assert not [path for path in files(book) if path.name.startswith(".")]
    if number == 1 and place == "running":
        assert contents(book) == before
    assert all(load_tensors(path) for path in files(book) if path.suffix == ".safetensors")
    assert cli("run", "tiny", "--book", book).exit_code == 0
    assert_as_whole(book, whole)


# Sentences


def spoilt(path, place=-1):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def running(book, spec):
    (book / "running").mkdir(exist_ok=True)
    return book / "running" / f"{spec.name}.safetensors"


def edited(path, change):
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


TEACHER, STUDENT, *_ = tiny_plan()


def record_of(spec, book):
    return book / "records" / f"{spec.name}.json"


@pytest.mark.parametrize(
    ("spoil", "arguments", "sentence"),
    [
        (None, ["run", "grand"], "there is no plan 'grand'; there are "),
        (None, ["status", "grand"], "there is no plan 'grand'; there are "),
        *((None, ["run", "tiny", "--shard", shard], 'a shard is "i/n", such as "1/4", not ')
          for shard in ("0/4", "5/4", "1", "a/b", "1/0", "-1/4", "1/4/4")),
        (None, ["run", "tiny", "--budget", "soon"], "a budget is a number of seconds, or such as 9m or 1.5h, not 'soon'"),
        (None, ["run", "tiny", "--only", "("], "'(' is no regular expression: "),
        (None, ["run", "tiny", "--device", "cuda:7"], "no device 'cuda:7' is visible here: leave --device out"),
        (None, ["run", "tiny", "--device", "gpu"], "no device 'gpu' is visible here: leave --device out"),
        (lambda book: running(book, STUDENT).write_bytes(b"nothing"), ["run", "tiny", "--only", r"tests\.kd\.seed0"],
         "is damaged or was not written by kdlab"),
        (lambda book: record_of(TEACHER, book).rename(record_of(STUDENT, book)), ["run", "tiny"], "is the record of another spec"),
        (lambda book: edited(record_of(TEACHER, book), lambda record: record["test"].update(accuracy=1.0)), ["run", "tiny"],
         "was changed: its checksum does not fit what it holds"),
        (lambda book: record_of(TEACHER, book).write_text("{"), ["status", "tiny"], "is not a whole JSON file"),
        (lambda book: record_of(TEACHER, book).unlink(), ["run", "tiny", "--only", r"\.kd\."],
         f"needs its teacher {TEACHER.name}, which is not in "),
        (lambda book: spoilt(checkpoint_path(TEACHER, book)), ["run", "tiny"], "is not the checkpoint that its record names"),
        (lambda book: (book / "file").write_text(""), ["run", "tiny", "--out", "{book}/file/out"], "Not a directory: "),
        (None, ["show", "{book}/records/nothing.json"], "nothing.json does not exist"),
        (None, ["show", "{book}/records"], "Is a directory: "),
        (None, ["take", "{book}/nothing"], "has no records"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)  # fmt: skip
def test_what_cannot_be_done_is_said_in_one_sentence(spoil, arguments, sentence, taught):
    if spoil is not None:
        spoil(taught)
    before = contents(taught)
    where = [] if arguments[0] == "show" else ["--book", taught]
    result = cli(*(argument.format(book=taught) for argument in arguments), *where)
    assert_a_sentence(result, sentence)
    assert contents(taught) == before


def test_two_processes_tidy_up_only_after_themselves(whole, tmp_path):
    """What a record elsewhere makes needless may be what another process is writing here."""
    book, out = tmp_path / "book", tmp_path / "out"
    with claimed([STUDENT], out / "running"):
        running(out, STUDENT).touch()
        before = files(out)
        for place in (book, out):  # where the other process ends meanwhile
            copy(whole, place)
            run_plan(tiny_plan(), book=book, out=out, say=silent)
            assert set(before) <= set(files(out))
    run_plan(tiny_plan(), book=book, out=out, say=silent)
    assert files(out / "running") == []


def test_a_plan_runs_in_another_thread_than_the_first(taught):
    done = []
    thread = threading.Thread(target=lambda: done.append(run_plan(tiny_plan()[:2], book=taught, say=silent)))
    thread.start()
    thread.join()
    assert done == [1]


def test_what_another_process_is_writing_is_no_orphan(whole, tmp_path):
    copy(whole, tmp_path)
    (tmp_path / "checkpoints" / f".{STUDENT.name}.safetensors.abcdefgh.part").mkdir()
    assert verify(tmp_path, tiny_plan()) == []


def test_modules_are_not_beside_a_model_without():
    spec = replace(STUDENT, data="python-512-32", student="gpt_224x4")
    modules = [replace(spec, student=f"heads_{how}_224x4") for how in ("in_a_row", "side_by_side")]
    found = beside(spec, [spec, *modules, replace(spec, student="gpt_64x2")], device="cpu")
    assert [s.student for s in found] == ["gpt_224x4", "gpt_64x2"]
    assert len(beside(modules[0], [spec, *modules], device="cpu")) == 2


def test_no_gpu_is_said(taught, monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert_a_sentence(cli("run", "tiny", "--device", "cuda", "--book", taught), "no device 'cuda' is visible here")


def test_the_running_checkpoint_of_another_teacher_is_refused(at_step, whole, tmp_path):
    books = [tmp_path / "a", tmp_path / "b"]
    for book in books:
        copy(whole, book, lambda path: path.stem == TEACHER.name)
    at_step(3, terminate)
    assert cli("run", "tiny", "--book", books[0]).exit_code == 0
    model, path = tiny(10), checkpoint_path(TEACHER, books[0])
    runner_path = record_of(TEACHER, books[0])
    save_model(path, model, {"spec_hash": TEACHER.hash})

    def change(record):
        record["checkpoint"]["sha256"] = sha256(path)
        record["sha256"] = checksum(record)

    edited(runner_path, change)
    assert_a_sentence(cli("run", "tiny", "--book", books[0]), "belongs to another run (other teacher)")


def test_everything_else_is_run_before_a_missing_teacher_is_said(tmp_path):
    free = replace(STUDENT, arm="free", teacher=None, objective=1.0 * CrossEntropy())
    with pytest.raises(PlanError, match="needs its teacher"):
        run_plan([*tiny_plan()[1:], free], book=tmp_path, say=silent)
    assert record_of(free, tmp_path).exists()


def test_everything_else_is_run_before_the_checkpoint_of_another_run_is_said(taught, whole):
    shutil.copy(checkpoint_path(TEACHER, taught), running(taught, STUDENT))
    result = cli("run", "tiny", "--book", taught)
    assert_a_sentence(result, "belongs to another run (other recipe")
    assert "give another path, or move it away to begin anew." in result.stderr
    left = {path.name for path in files(whole / "records")} - {path.name for path in files(taught / "records")}
    assert left == {f"{spec.name}.json" for spec in (STUDENT, tiny_plan()[-1])}  # and whom it teaches
    running(taught, STUDENT).rename(taught / "away")
    assert cli("run", "tiny", "--book", taught).exit_code == 0
    (taught / "away").unlink()
    assert_as_whole(taught, whole)


# What stands in for the data


def test_no_plan_is_run_on_what_stands_in_for_its_data(tmp_path, monkeypatch):
    """Without a network and its data, a plan of texts trained on Python's help and was recorded under the name of the books."""
    monkeypatch.setattr(runner, "load", named.load)
    spec = replace(TEACHER, data="books-300-16", student="gpt_64x2")
    for again in range(2):
        with pytest.raises(
            DataError, match=r"books-300-16 cannot be had, and no record .*: .* does not exist; set KDLAB_DATA"
        ):
            run_plan(
                [spec],
                book=tmp_path / "book",
                say=silent,
                data={spec.data: load_text_data(spec.data)} if again else None,
            )
        assert files(tmp_path / "book") == []


def test_records_of_other_data_of_one_name_are_found(whole, tmp_path):
    copy(whole, tmp_path)

    def change(record):
        record["data"]["checksum"] = "1" * 64
        record["sha256"] = checksum(record)

    edited(record_of(TEACHER, tmp_path), change)
    sentence, *_ = verify(tmp_path, tiny_plan())
    assert "was trained on other data of the name patterns than the records before it" in sentence


# Teachers


def of_another_teacher(book):
    """As a machine leaves them that had trained the teacher once more: student and teacher are whole, and others."""
    model = tiny(10)
    recorded = read_record(record_of(TEACHER, book))
    name_checkpoint(TEACHER, book / "records", recorded, keep_student(TEACHER, model, book))

    def change(record):
        record["teacher_weights"] = weights_checksum(model.state_dict())
        record["sha256"] = checksum(record)

    edited(record_of(STUDENT, book), change)


def test_students_of_another_teacher_are_not_taken_in(whole, taught, tmp_path):
    other = tmp_path / "other"
    copy(whole, other, lambda path: path.stem in (TEACHER.name, STUDENT.name))
    of_another_teacher(other)
    assert verify(other, tiny_plan()) == []  # there all is well
    before = contents(taught)
    with pytest.raises(
        RecordError, match=rf"{STUDENT.name}.json learned from other weights of its teacher {TEACHER.name}"
    ):
        take(other, taught, tiny_plan())
    assert contents(taught) == before
    shutil.copy(record_of(STUDENT, other), record_of(STUDENT, taught))
    shutil.copy(checkpoint_path(STUDENT, other), checkpoint_path(STUDENT, taught))
    (sentence,) = verify(taught, tiny_plan())
    assert "learned from other weights of its teacher" in sentence


def test_a_record_that_names_no_weights_of_its_teacher_is_taken_in(whole, taught, tmp_path):
    other = tmp_path / "other"
    copy(whole, other)

    def change(record):
        del record["teacher_weights"]
        record["sha256"] = checksum(record)

    for spec in tiny_plan()[1:]:
        edited(record_of(spec, other), change)
    assert len(take(other, taught, tiny_plan())) == 9 and verify(taught, tiny_plan()) == []


# Teachers without their checkpoints


@pytest.mark.parametrize("spec", [TEACHER, STUDENT], ids=lambda spec: spec.arm)
def test_a_checkpoint_that_a_record_has_lost_is_made_again(spec, whole, tmp_path):
    copy(whole, tmp_path, lambda path: path.parent.name == "checkpoints" or path.stem in (TEACHER.name, STUDENT.name))
    checkpoint_path(spec, tmp_path).unlink()
    before = record_of(spec, tmp_path).read_bytes()
    result = cli("run", "tiny", "--book", tmp_path)
    assert result.exit_code == 0 and "8 records written; 0 of 10 runs are still without one." in result.stdout
    assert record_of(spec, tmp_path).read_bytes() == before
    assert_as_whole(tmp_path, whole)


def test_it_is_made_again_in_parts_too(at_step, whole, tmp_path):
    copy(whole, tmp_path, lambda path: path.stem == TEACHER.name)
    checkpoint_path(TEACHER, tmp_path).unlink()
    at_step(7, terminate)
    assert cli("run", "tiny", "--book", tmp_path).stdout.endswith("Stopped; the same command goes on from here.\n")
    assert load_tensors(running(tmp_path, TEACHER))[1]["history"]
    result = cli("run", "tiny", "--book", tmp_path)
    assert "resumed after epoch 1/3" in result.stdout
    assert_as_whole(tmp_path, whole)


def test_a_student_that_was_recorded_without_its_checkpoint_becomes_a_teacher(whole, tmp_path):
    assert cli("run", "tiny", "--only", r"teacher\.|\.kd\.", "--book", tmp_path).exit_code == 0
    assert "checkpoint" not in read_record(record_of(STUDENT, tmp_path))
    result = cli("run", "tiny", "--book", tmp_path)
    assert result.exit_code == 0 and "0 of 10 runs are still without one" in result.stdout
    assert_as_whole(tmp_path, whole)


def test_made_again_it_goes_where_records_go(whole, taught, tmp_path):
    checkpoint_path(TEACHER, taught).unlink()
    before = contents(taught)
    assert run_plan(tiny_plan(), book=taught, out=tmp_path / "out", say=silent) == 9
    assert contents(taught) == before
    assert_as_whole(tmp_path / "out", whole)


def test_a_teacher_that_comes_to_other_numbers_is_not_the_recorded_one(taught):
    def change(record):
        record["test"]["cross_entropy"] += 1e-6
        record["sha256"] = checksum(record)

    edited(record_of(TEACHER, taught), change)
    checkpoint_path(TEACHER, taught).unlink()
    before = contents(taught)
    free = replace(STUDENT, arm="free", teacher=None, objective=1.0 * CrossEntropy())
    with pytest.raises(RecordError, match="trained again it comes to other numbers here: bring "):
        run_plan([*tiny_plan(), free], book=taught, say=silent)
    assert record_of(free, taught).exists() and before.items() <= contents(taught).items()
    assert not checkpoint_path(TEACHER, taught).exists() and files(taught / "running") == []


def test_a_teacher_that_diverged_is_not_trained_again(whole, tmp_path):
    diverging = next(spec for spec in tiny_plan() if spec.arm == "diverging")
    copy(whole, tmp_path, lambda path: path.stem in (TEACHER.name, diverging.name))
    before = contents(tmp_path)
    with pytest.raises(PlanError, match="needs its teacher"):
        run_plan([*tiny_plan()[:1], diverging, replace(STUDENT, teacher=diverging)], book=tmp_path, say=silent)
    assert contents(tmp_path) == before


# Records of another machine


def test_records_are_taken_in(whole, taught):
    before = contents(taught)
    names = take(whole, taught, tiny_plan())
    assert set(names) == {spec.name for spec in tiny_plan()} - {TEACHER.name}
    assert {path.relative_to(taught): content for path, content in contents(taught).items()} == {
        path.relative_to(whole): content for path, content in contents(whole).items()
    }
    assert before.items() <= contents(taught).items()
    assert take(whole, taught, tiny_plan()) == []


def test_the_command_takes_in_and_verifies(whole, taught, monkeypatch):
    for name in set(PLANS) - {"tiny"}:
        monkeypatch.delitem(PLANS, name)
    result = cli("take", whole, "--book", taught)
    assert result.exit_code == 0 and result.stdout.endswith("9 records taken in; 1 were there already.\n")
    result = cli("verify", "--book", taught)
    assert (result.exit_code, result.stdout) == (0, "10 records and their checkpoints are whole.\n")


def rename_another(book):
    record_of(STUDENT, book).rename(book / "records" / "unknown.json")


def name_another_checkpoint(book):
    def change(record):
        record["checkpoint"]["file"] = f"{TEACHER.name}.safetensors"
        record["sha256"] = checksum(record)

    edited(record_of(STUDENT, book), change)


DAMAGE = [
    (lambda book: spoilt(checkpoint_path(STUDENT, book)), "is not the checkpoint that its record names"),
    (lambda book: checkpoint_path(STUDENT, book).unlink(), "is missing, and a record names it"),
    (lambda book: spoilt(record_of(STUDENT, book), 10), "records"),
    (
        lambda book: edited(record_of(STUDENT, book), lambda record: record["test"].update(accuracy=1.0)),
        "was changed",
    ),
    (rename_another, "unknown.json is a record of no plan"),
    (name_another_checkpoint, "names the checkpoint of another run"),
]


@pytest.mark.parametrize(("damage", "sentence"), DAMAGE, ids=[sentence for _, sentence in DAMAGE])
def test_damage_is_refused_and_found(damage, sentence, whole, taught, tmp_path):
    copy(whole, tmp_path / "other")
    damage(tmp_path / "other")
    before = contents(taught)
    with pytest.raises(RecordError, match=sentence):
        take(tmp_path / "other", taught, tiny_plan())
    assert contents(taught) == before
    assert sentence in " ".join(verify(tmp_path / "other", tiny_plan()))


def test_a_checkpoint_is_taken_before_its_record(whole, tmp_path, monkeypatch):
    order, replaced = [], Path.replace

    def watched(self, target):
        order.append(Path(target).relative_to(tmp_path))
        return replaced(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    take(whole, tmp_path, tiny_plan())
    for spec in tiny_plan()[:2]:
        assert order.index(Path(f"checkpoints/{spec.name}.safetensors")) < order.index(
            Path(f"records/{spec.name}.json")
        )


def test_orphans_are_found(whole, tmp_path):
    copy(whole, tmp_path)
    assert verify(tmp_path, tiny_plan()) == []
    record_of(STUDENT, tmp_path).unlink()
    assert verify(tmp_path, tiny_plan()) == [f"{checkpoint_path(STUDENT, tmp_path)} is named by no record."]
    wrong = verify(tmp_path, tiny_plan()[:1])
    assert f"{record_of(tiny_plan()[-1], tmp_path)} is a record of no plan." in wrong and len(wrong) == 9


# Plans


ALL = sorted(PLANS)


@pytest.mark.parametrize("name", GROWING)
def test_a_plan_that_grows_has_no_shards(name):
    with pytest.raises(PlanError, match=f"the plan {name} grows by all of its records, of which a shard sees its own"):
        plan(name, "1/2")


@pytest.mark.parametrize("name", sorted(set(ALL) - set(GROWING)))
def test_shards_partition_a_plan(name):
    specs = plan(name)
    for number in (2, 3, 5) if len(specs) < 30 else (3,):
        shards = [plan(name, f"{i}/{number}") for i in range(1, number + 1)]
        assert sorted(s.hash for shard in shards for s in shard) == sorted(s.hash for s in specs)
        for shard in shards:
            mine = [s.hash for s in shard]
            assert [s.hash for s in specs if s.hash in mine] == mine
            assert all(s.teacher is None or s.teacher.study == "teacher" or s.teacher.hash in mine for s in shard)
    assert [s.hash for s in plan(name, "01/1")] == [s.hash for s in specs]


def nothing_recorded(spec):
    return None


def all_recorded(sign):
    """Whatever is asked for, the worse or the better the later: plans grow to their end, and their grids as far as they may, down or up."""
    seen = {}

    def found(spec):
        place = seen.setdefault(spec.hash, len(seen))
        return {"test": {}, "epochs": defaultdict(lambda: [sign * place])}

    return found


FOUND = {"nothing": nothing_recorded, "earlier is better": all_recorded(-1), "later is better": all_recorded(1)}


@pytest.mark.parametrize(
    ("name", "found"),
    [(name, None) for name in ALL] + [(name, found) for name in GROWING for found in FOUND],
)
def test_a_plan_names_each_run_once_and_teachers_before_those_whom_they_teach(name, found):
    """Whatever of it has been recorded: nothing, all, or what the book has."""
    specs = plan(name) if found is None else GROWING[name](FOUND[found])
    assert len({s.hash for s in specs}) == len({s.name for s in specs}) == len(specs) > 0
    seen = set()
    for spec in specs:
        assert spec.teacher is None or isinstance(spec.teacher, Pretrained) or spec.teacher.hash in seen
        assert set(spec.name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._+-")
        assert len(f".{spec.name}.safetensors.12345678") < 255 and spec.name[0] not in ".-"
        seen.add(spec.hash)


def test_every_layer_that_an_objective_looks_at_is_in_its_models():
    """And as wide as its projectors have it: each distinct objective of two examples."""
    found = {}
    for spec in every_spec():
        teacher = spec.teacher.student if spec.teacher else spec.student
        # heads look ahead, and at no layer; of encoders tests/test_encoders.py knows more
        if not spec.student.startswith(("heads", "minilm")):
            found[spec.student, teacher, repr(spec.objective)] = spec.objective
    assert len(found) > 60
    images, labels, tokens = torch.randn(2, 3, 32, 32), torch.tensor([0, 1]), torch.randint(100, (8, 16))
    kept = SparseTargets(tokens[..., None], torch.ones(8, 16, 1), 100)
    model = cache(lambda name: getattr(models, name)(100))

    @cache
    def seen(name, layers):
        with torch.no_grad(), Taps(model(name), layers) as taps:
            return taps(tokens if name.startswith("gpt") else images)

    wrong = set()
    for (student, teacher, _), objective in found.items():
        student_logits, student_hidden = seen(student, objective.student_layers)
        teacher_logits, teacher_hidden = seen(teacher, objective.teacher_layers)
        if "Sparse" in repr(objective):
            teacher_logits = kept
        try:
            objective.fresh()(
                student_logits=student_logits, teacher_logits=teacher_logits, student_hidden=student_hidden,
                teacher_hidden=teacher_hidden, labels=tokens if student.startswith("gpt") else labels, index=labels,
                progress=0.5,
            )  # fmt: skip
        except ValueError as error:
            wrong.add((student, str(error)))
    assert not wrong


# Several processes of one run


def spread(folder):
    """What ``torchrun`` starts: the command of this plan, where the other process may write nothing."""
    register()
    PLANS["spread"] = lambda: [tiny_plan()[i] for i in (0, 1, 5, 9)]
    if os.environ["RANK"] == "1":
        if (folder / "stop").exists():
            steps = count(1)

            def stopping(classes):
                model = tiny(classes)
                model.register_forward_hook(lambda *_: terminate() if next(steps) == 9 else None)
                return model

            models.tiny = stopping

        def refused(*_, **__):
            raise AssertionError("the second process wrote")

        Path.write_bytes = Path.write_text = Path.replace = Path.mkdir = refused
    app(["run", "spread", "--book", str(folder / "book")])


def torchrun(folder):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/tests", "OMP_NUM_THREADS": "1"}
    environment["GLOO_SOCKET_IFNAME"] = "lo"
    code = "import sys, pathlib, test_runner; test_runner.spread(pathlib.Path(sys.argv[1]))"
    (folder / "spread.py").write_text(code)
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", folder / "spread.py", folder],
        env=environment, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip


def test_two_processes_of_torchrun_train_as_one(whole, tmp_path):
    (tmp_path / "stop").touch()
    done = torchrun(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Stopped; the same command goes on from here.") == 1
    (checkpoint,) = (tmp_path / "book" / "running").glob("*.safetensors")
    assert load_tensors(checkpoint)[1]["step"] + 6 * len(load_tensors(checkpoint)[1]["history"]) in (8, 9)
    (tmp_path / "stop").unlink()
    done = torchrun(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("0 of 4 runs are still without one.") == 1
    spread, alone = results(tmp_path / "book"), results(whole)
    assert len(spread) == 4
    for name, record in spread.items():
        assert record["epochs"]["loss"] == pytest.approx(alone[name]["epochs"]["loss"], rel=1e-4)
        assert record["test"]["cross_entropy"] == pytest.approx(alone[name]["test"]["cross_entropy"], rel=1e-4)
        origin = read_record(tmp_path / "book" / "records" / name)["provenance"]
        assert origin["device"].endswith(", 2 processes")
    for spec in tiny_plan()[:2]:
        (one, _), (two, _) = (load_tensors(checkpoint_path(spec, book)) for book in (whole, tmp_path / "book"))
        for name in one:
            torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-6)


# A machine with torch and little else

BARE = """
import sys
from importlib.machinery import PathFinder

MISSING = {"scipy", "matplotlib", "sklearn", "pooch", "pandas", "hypothesis", "IPython", "transformers", "trl", "ray"}

class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        missing = name.partition(".")[0] in MISSING or name.startswith("kdlab.theory")
        return None if missing else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Bare
import test_runner
test_runner.register()
from kdlab.study.plans import PLANS
PLANS["few"] = lambda: test_runner.tiny_plan()[:2]
from typer.testing import CliRunner
for arguments in (["run", "few", "--out"], ["status", "few", "--book"], ["take", sys.argv[1] + "/out", "--book"],
                  ["verify", "--book"]):
    result = CliRunner().invoke(test_runner.app, [*arguments, sys.argv[1] + "/out"], env={"KDLAB_BOOK": sys.argv[1]})
    assert result.exit_code == 0, (arguments, result.output, result.exception)
for path in test_runner.files(sys.argv[1] + "/out/records"):
    assert CliRunner().invoke(test_runner.app, ["show", str(path)]).exit_code == 0
"""


def test_the_command_runs_on_a_bare_machine(tmp_path):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/tests", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", BARE, tmp_path],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(files(tmp_path / "out" / "records")) == 2
