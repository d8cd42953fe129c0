"""The CUDA path: on a device where there is one (``pytest -m cuda``), and on an emulated one where there is a C++ compiler."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from kdlab.__main__ import app
from kdlab.benchmarks import acceptance, by_hand, gpu, records, vocabulary
from kdlab.benchmarks import training as rounds
from kdlab.benchmarks.timing import Contest, Settings
from kdlab.objectives import CrossEntropy, HeadLogits, Objective, SoftTargets
from kdlab.study.spec import Spec
from kdlab.training import Learner, Recipe, fit_together
from kdlab.training.checkpoint import load_run, save_run
from kdlab.training.loop import _Group, _on_device, _optimizer

HERE = Path(__file__).parent
EMULATED = torch.cuda.is_available() and torch.cuda.get_device_name() == "an emulated device"
needs_cuda = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs_cuda) for name in acceptance.CHECKS])
def test_on_the_device(name):
    assert acceptance.CHECKS[name]("cuda") == []


@pytest.mark.cuda
@pytest.mark.skipif(not EMULATED, reason="a capture that fails leaves a real device unusable")
def test_a_capture_that_fails_says_so_and_puts_the_stream_back(monkeypatch):
    monkeypatch.setattr("kdlab.training.graphs.GraphedStep._watched", lambda self, *batch: self.step(self.students, *batch))
    before = torch.cuda.current_stream().number
    with pytest.raises(RuntimeError, match="could not be captured as a CUDA graph.*graphs=False"):
        acceptance.Trained("cuda", [lambda: 1.0 * acceptance.Waiting()])
    assert torch.cuda.current_stream().number == before


def test_on_the_emulated_device(tmp_path):
    compiler = shutil.which("g++") or shutil.which("c++")
    if torch.version.cuda or sys.platform != "linux" or compiler is None:
        pytest.skip("the emulated device stands in for one that PyTorch lacks, and needs a C++ compiler")
    sys.path.insert(0, str(HERE / "emulated_cuda"))
    try:
        from run import built
    finally:
        sys.path.pop(0)
    guard = built(tmp_path, compiler)
    command = [sys.executable, str(HERE / "emulated_cuda" / "run.py"), "-m", "cuda", "-p", "no:cacheprovider", "-rs", str(HERE / "test_cuda.py")]
    environment = {**os.environ, "LD_PRELOAD": str(guard), "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])}
    done = subprocess.run(command, env=environment, cwd=HERE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert f"{len(acceptance.CHECKS) + 1} passed" in done.stdout


# What can be shown without one ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_a_resumed_optimiser_keeps_its_state_in_the_layout_of_its_parameter(tmp_path, optimizer):
    student = nn.Conv2d(8, 4, 3).to(memory_format=torch.channels_last)
    objective, recipe = 1.0 * CrossEntropy(), Recipe(optimizer=optimizer)
    first, second = (_optimizer(recipe, student, objective, "cpu") for _ in range(2))
    student(torch.randn(2, 8, 5, 5)).square().sum().backward()
    first.step()
    save_run(tmp_path / "run", student, objective, first, {}, {"identity": {}})
    load_run(tmp_path / "run", student, objective, second, {})
    kept = {name: value for name, value in second.state[student.weight].items() if value.shape == student.weight.shape}
    assert kept and all(value.stride() == student.weight.stride() for value in kept.values())
    assert all(torch.equal(value, first.state[student.weight][name]) for name, value in kept.items())


@pytest.mark.parametrize(("mode", "size"), [("train", 8), ("eval", 16)])
def test_a_teacher_in_training_mode_looks_at_each_seeds_batch_alone(monkeypatch, mode, size):
    sizes = []

    class Counting(acceptance.Small):
        def forward(self, images):
            sizes.append(len(images))
            return super().forward(images)

    class OnAnAccelerator(_Group):
        def look(self, *what):
            self.device = torch.device("meta")  # neither a CPU nor anything to wait for
            try:
                return super().look(*what)
            finally:
                self.device = torch.device("cpu")

    monkeypatch.setattr("kdlab.training.loop._Group", OnAnAccelerator)
    monkeypatch.setattr("kdlab.training.loop.autocast", lambda *_: nullcontext())
    monkeypatch.setattr("kdlab.training.loop.seed_torch", lambda *_: None)
    how = [Recipe(epochs=1, batch_size=8, epoch_examples=16, seed=seed, teacher_mode=mode) for seed in (0, 1)]
    learners = [Learner(acceptance.small(recipe.seed), acceptance.kd(), recipe) for recipe in how]
    fit_together(learners, train=acceptance.images(), teacher=Counting())
    assert set(sizes) == {size}


def test_on_another_device_its_streams_are_made_and_float32_is_no_tf32(monkeypatch):
    entered = []

    class Device:
        def __init__(self, device):
            entered.append(device)

        def __enter__(self):
            pass

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(torch.cuda, "device", Device)
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    for precision in ("float32", "bfloat16"):
        with _on_device("cuda:1", precision):
            assert torch.backends.cudnn.deterministic
            assert torch.backends.cudnn.allow_tf32 == (precision != "float32")
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic) == before
    assert entered == ["cuda:1", "cuda:1"]


def test_a_contestant_that_does_not_fit_is_left_out_and_named(monkeypatch):
    def too_large(h, W, t, U):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    ways = {"kdlab": vocabulary.from_hidden_states, "all logits": too_large}
    monkeypatch.setattr(vocabulary, "contestants", lambda: dict(ways))
    monkeypatch.setattr(vocabulary, "extra_peak", lambda way, size: 1)
    result = vocabulary.measured(vocabulary.Size.of("cpu", "8x4x4x16"), 0.0, rounds=1)
    assert result["left_out"] == ["all logits"] and list(result["summary"]) == ["kdlab"]
    assert "all logits" in vocabulary.table(result) and "too little memory" in vocabulary.table(result)
    monkeypatch.setattr(vocabulary, "contestants", lambda: {"kdlab": too_large})
    with pytest.raises(vocabulary.BenchmarkError, match="too little memory"):
        vocabulary.measured(vocabulary.Size.of("cpu", "8x4x4x16"), 0.0, rounds=1)


def test_five_students_on_cuda_have_five_seeds(monkeypatch):
    asked = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(by_hand, "round_by_hand", lambda *_: None)
    monkeypatch.setattr(by_hand, "kdlab_round", lambda *_, seeds=(0,): asked.setdefault(len(seeds), list(seeds)))
    monkeypatch.setattr(by_hand, "contest", lambda *_, **__: Contest("", {}, {}, ""))
    by_hand.step(Settings("cuda"))
    assert asked == {1: [0], 5: [0, 1, 2, 3, 4]}
    trained = []
    monkeypatch.setattr(rounds, "fit_together", lambda learners, **_: [learners[-1].report(), learners[-1].report(), trained.extend(learners)][:0])
    rounds.kdlab_round(Settings("cpu", steps=1, batch_size=2), ("resnet8", "resnet8"), acceptance.kd(), seeds=range(3))()
    assert [learner.recipe.seed for learner in trained] == [0, 1, 2]


@pytest.mark.parametrize("name", list(acceptance.TEXTS))
def test_tokens_that_do_not_count_are_computed_and_weigh_nothing(monkeypatch, name):
    """As on a device, where nobody waits to hear how many they are."""
    objective = acceptance.TEXTS[name]()
    objective = Objective(list(zip(objective.weights[:1], objective.terms[:1], strict=True)))
    torch.manual_seed(1)
    labels = torch.randint(0, 9, (2, 6)).masked_fill(torch.rand(2, 6) < 0.4, -100)

    def found():
        torch.manual_seed(2)
        h, W, t, U = torch.randn(2, 6, 4).requires_grad_(), torch.randn(9, 4).requires_grad_(), torch.randn(2, 6, 5), torch.randn(9, 5)
        total, _ = objective(student_logits=HeadLogits(h, W), teacher_logits=HeadLogits(t, U), labels=labels, mask=labels != -100)
        total.backward()
        return total.detach(), h.grad, W.grad

    expected = found()
    monkeypatch.setattr("kdlab.objectives.vocabulary.on_host", lambda mask: False)
    for here, there in zip(expected, found(), strict=True):
        torch.testing.assert_close(here, there, rtol=1e-5, atol=1e-7)


# kdlab gpu ------------------------------------------------------------------------------------------------------------


def test_a_rehearsal_on_a_cpu_leaves_all_files(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(HERE.parent))
    (tmp_path / "book" / "records").mkdir(parents=True)
    how = ["--device", "cpu", "--minutes", "1", "--out", str(tmp_path / "gpu"), "--book", str(tmp_path / "book"), "--plans", "table,language"]
    done = CliRunner().invoke(app, ["gpu", *how])
    assert done.exit_code == 0, done.output
    found = {name: json.loads((tmp_path / "gpu" / file).read_text()) for name, (file, *_) in gpu.PARTS.items()}
    checks = found["acceptance"]["checks"]
    assert [check["name"] for check in checks] == list(acceptance.CHECKS)
    assert not any(check["wrong"] for check in checks) and checks[0]["wrong"] == []
    rows = found["measurements"]["rows"]
    assert {row["what"].partition(",")[0] for row in rows} == {"training", "vocabulary", "decoding"}
    assert all(row["value"] and row["card"] for row in rows)
    assert "cifar100" in found["records"]["left_out"] and found["records"]["written"] == 0  # no data here, and no network


def test_a_part_that_dies_takes_no_other_with_it(tmp_path, monkeypatch):
    programs = {"acceptance": "pass", "measurements": "import os; os.kill(os.getpid(), 9)", "records": "pass"}
    begun, said = [], []

    class Popen(subprocess.Popen):
        def __init__(self, command):
            begun.append(command[command.index("--part") + 1])
            super().__init__([sys.executable, "-c", programs[begun[-1]]])

    monkeypatch.setattr(gpu.subprocess, "Popen", Popen)
    (tmp_path / "acceptance.json").write_text(json.dumps({"checks": [{"name": "resume", "wrong": []}]}))
    assert gpu.visit("cpu", 60.0, tmp_path, book=tmp_path, say=said.append) == 1
    assert begun == list(gpu.PARTS)
    assert "  holds: resume" in said and any("measurements ended with status -9" in line for line in said)


def test_a_part_that_does_not_end_is_ended(monkeypatch):
    monkeypatch.setattr(gpu, "GRACE", 0.0)
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", stubborn], stdout=subprocess.PIPE)
    process.stdout.readline()
    assert gpu.ended(process, 0.0) == -9
    process.stdout.close()


TEACHER = Spec("teacher", "t", "digits", "resnet8_width8", 1.0 * CrossEntropy(), Recipe(epochs=1, batch_size=16, epoch_examples=32))


def arm(name, seeds=(0,), teacher=TEACHER, **recipe):
    how = replace(TEACHER.recipe, **recipe)
    objective = 0.5 * CrossEntropy() + 0.5 * SoftTargets(4)
    return [Spec("s", name, "digits", "resnet8_width4", objective, replace(how, seed=seed), teacher) for seed in seeds]


def test_the_queue_takes_what_has_begun_and_then_most_value_for_the_time():
    other = replace(TEACHER, arm="u", recipe=replace(TEACHER.recipe, epochs=50))
    plans = {
        "long": [TEACHER, *arm("long", epochs=40), *arm("short")],
        "other": [other, *arm("costly", teacher=other), *arm("begun", teacher=other)],
    }
    done = {TEACHER.hash}
    ordered = records.queue(plans, lambda specs: [s for s in specs if s.hash not in done], lambda spec: spec.arm == "begun", 1e9)
    assert [spec.arm for spec in ordered] == ["u", "begun", "short", "long", "costly"]


def test_records_go_on_in_the_next_visit(tmp_path, monkeypatch, digits):
    specs = [TEACHER, *arm("a", seeds=(0, 1))]
    book, out = tmp_path / "book", tmp_path / "out"
    (book / "records").mkdir(parents=True)
    monkeypatch.setattr(records, "specs_of", lambda name, *books: specs)
    monkeypatch.setattr(records, "load", lambda name: digits)
    spend = {"book": book, "measurements": tmp_path / "none", "names": ["tiny"], "limit": 2}
    first = records.spend("cpu", 0.0, out, **spend)
    assert first["ended"] == "the time was up" and [x["run"] for x in first["next"]] == [spec.name for spec in specs]
    last = records.spend("cpu", 600.0, out, **spend)
    assert last["written"] == 3 and last["records"] == 3 and last["next"] == []
    assert json.loads((out / "records-queue.json").read_text())["ended"].startswith("all")
