"""The CUDA path: on a device where there is one (``pytest -m cuda``), and on an emulated one where there is a C++ compiler."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from kdlab.__main__ import app
from kdlab.benchmarks import acceptance, gpu, records, vocabulary
from kdlab.language import generate
from kdlab.objectives import CrossEntropy, SoftTargets
from kdlab.study.spec import Spec
from kdlab.training import Recipe

HERE = Path(__file__).parent
EMULATED = torch.cuda.is_available() and torch.cuda.get_device_name() == "an emulated device"
needs_cuda = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs_cuda) for name in acceptance.CHECKS])
def test_on_the_device(name):
    assert acceptance.CHECKS[name]("cuda") == []


@pytest.mark.cuda
@pytest.mark.skipif(not EMULATED, reason="a capture that fails leaves a real device unusable")
def test_a_capture_that_fails_says_so_and_puts_the_stream_back(monkeypatch):
    monkeypatch.setattr(
        "kdlab.training.graphs.GraphedStep._watched", lambda self, *batch: self.step(self.students, *batch)
    )
    before = torch.cuda.current_stream().number
    with pytest.raises(RuntimeError, match="could not be captured as a CUDA graph.*graphs=False"):
        acceptance.Trained("cuda", [lambda: 1.0 * acceptance.Waiting()])
    assert torch.cuda.current_stream().number == before


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_model_that_waits_writes_the_same_text_uncaptured():
    model, prompt = acceptance.gpt(1).to("cuda"), torch.arange(4, device="cuda")[None]
    text = generate(model, prompt, tokens=8, temperature=0)
    model.register_forward_hook(lambda module, inputs, logits: logits + 0.0 * logits.max().item())
    with (
        acceptance.captures() as made,
        pytest.warns(UserWarning, match="decoding is not captured.*waits for the device"),
    ):
        assert torch.equal(generate(model, prompt, tokens=8, temperature=0), text)
    assert not made


def test_on_the_emulated_device(tmp_path):
    compiler = shutil.which("g++") or shutil.which("c++")
    if torch.cuda.is_available() or sys.platform != "linux" or compiler is None:
        pytest.skip("the emulated device stands in for one that is missing, and needs a C++ compiler")
    sys.path.insert(0, str(HERE / "emulated_cuda"))
    try:
        from run import built
    finally:
        sys.path.pop(0)
    guard = built(tmp_path, compiler)
    command = [
        sys.executable,
        str(HERE / "emulated_cuda" / "run.py"),
        "-m",
        "cuda",
        "-p",
        "no:cacheprovider",
        "-rs",
        str(HERE / "test_cuda.py"),
    ]
    environment = {**os.environ, "LD_PRELOAD": str(guard), "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])}
    done = subprocess.run(command, env=environment, cwd=HERE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert f"{len(acceptance.CHECKS) + 2} passed" in done.stdout


# What can be shown without one ----------------------------------------------------------------------------------------


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


def test_a_contestant_that_is_not_installed_is_named(monkeypatch):
    def absent(module):
        raise ImportError(module)

    monkeypatch.setattr(vocabulary, "imported", absent)
    monkeypatch.setattr(vocabulary, "extra_peak", lambda way, size: 1)
    result = vocabulary.measured(vocabulary.Size.of("cpu", "8x4x4x16"), 0.0, rounds=1)
    assert result["not_installed"] == ["Liger", "TRL"] and list(result["summary"]) == list(vocabulary.CONTESTANTS)
    assert vocabulary.table(result).count("cannot be imported  pip install 'kdlab[peers]'") == 2


# kdlab gpu ------------------------------------------------------------------------------------------------------------


class InThisProcess:
    """``python -m kdlab …`` without a Python of its own, which takes as long to begin as a part of the rehearsal takes."""

    def __init__(self, command):
        assert command[:3] == [sys.executable, "-m", "kdlab"]
        self.done = CliRunner().invoke(app, command[3:])

    def wait(self, seconds):
        return self.done.exit_code

    def terminate(self):
        raise AssertionError("it has ended")

    kill = terminate


def test_a_rehearsal_on_a_cpu_leaves_all_files(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "subprocess", SimpleNamespace(Popen=InThisProcess))
    (tmp_path / "book" / "records").mkdir(parents=True)
    where = ["--out", str(tmp_path / "gpu"), "--book", str(tmp_path / "book"), "--plans", "first-distillation-cpu"]
    done = CliRunner().invoke(app, ["gpu", "--device", "cpu", "--minutes", "60", *where])
    assert done.exit_code == 0, done.output
    found = {name: json.loads((tmp_path / "gpu" / file).read_text()) for name, (file, *_) in gpu.PARTS.items()}
    checks = found["acceptance"]["checks"]
    assert [check["name"] for check in checks] == list(acceptance.CHECKS)
    assert not any(check["wrong"] for check in checks) and checks[0]["wrong"] == []
    rows = found["measurements"]["rows"]
    assert {row["what"].partition(",")[0] for row in rows} == {"training", "vocabulary", "decoding"}
    assert all(row["value"] and row["card"] for row in rows)
    # no data here, and no network
    assert "cifar100" in found["records"]["left_out"] and found["records"]["written"] == 0


def test_plans_of_texts_that_cannot_be_had_are_left_out_and_named(tmp_path):
    """They were trained on what stands in for the books, and recorded as if on these."""
    (tmp_path / "book" / "records").mkdir(parents=True)
    where = {"book": tmp_path / "book", "measurements": tmp_path / "none.json", "names": ["language-small"]}
    found = records.spend("cpu", 60.0, tmp_path / "gpu", **where)
    assert (found["written"], found["ended"]) == (0, "all that can be run here is recorded")
    assert "no record is made of what stands in for it" in found["left_out"]["book-openings-4096-256"]


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


TEACHER = Spec(
    "teacher", "t", "digits", "resnet8_width8", 1.0 * CrossEntropy(), Recipe(epochs=1, batch_size=16, epoch_examples=32)
)


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
    ordered = records.queue(
        plans, lambda specs: [s for s in specs if s.hash not in done], lambda spec: spec.arm == "begun", 1e9
    )
    assert [spec.arm for spec in ordered] == ["u", "begun", "short", "long", "costly"]


def test_steps_are_captured_where_that_was_seen_to_hold(tmp_path):
    file = tmp_path / "acceptance.json"
    checks = [{"name": name, "wrong": []} for name in acceptance.CHECKS]
    assert not records.captures_hold(file)
    file.write_text(json.dumps({"checks": checks}))
    assert records.captures_hold(file)
    file.write_text(json.dumps({"checks": checks[:4]}))  # died before the others
    assert not records.captures_hold(file)
    checks[2]["wrong"] = ["kd: the graph gives other weights"]
    file.write_text(json.dumps({"checks": checks}))
    assert not records.captures_hold(file)


def test_the_table_has_a_row_for_all_that_is_asked(tmp_path):
    empty = gpu.shown(tmp_path)
    assert len(empty) == len(acceptance.CHECKS) + 7 and all(seen is None and card == "" for _, _, seen, card in empty)
    checks = [{"name": "resume", "wrong": []}, {"name": "draws", "wrong": ["…"]}, {"name": "memory", "wrong": None}]
    (tmp_path / "acceptance.json").write_text(json.dumps({"checks": checks, "provenance": {"device": "H100"}}))
    rows = [
        {"what": "training, kdlab, 5 students", "value": 100_000.0}, {"what": "training, a teacher's look", "value": 67_500.0},
        {"what": "training, kdlab, 5 students, kept logits", "value": 200_000.0},
        {"what": "vocabulary, kdlab", "value": 0.2, "bytes": 4},
        {"what": "vocabulary, Liger", "value": 0.4, "bytes": 5}, {"what": "decoding, plain", "value": 1200.0},
        {"what": "decoding, speculative, its own modules", "value": 3600.0},
    ]  # fmt: skip
    (tmp_path / "measurements.json").write_text(json.dumps({"rows": rows, "provenance": {"device": "H100"}}))
    seen = [(found, card) for _, _, found, card in gpu.shown(tmp_path) if found is not None]
    wanted = ["holds", "does not hold", "10.0 min", "7.0 min", "0.50", "0.80", "1,200 tokens/s", "2.21"]
    assert seen == [(found, "H100") for found in wanted]


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
