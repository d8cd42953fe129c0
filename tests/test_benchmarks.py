"""Benchmarks run, and compare what they say they compare. No test looks at a time."""

import copy
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from kdlab.__main__ import app
from kdlab.benchmarks import BENCHMARKS, BenchmarkError, Contest, Settings, measured, table, timing
from kdlab.benchmarks.bare import bare
from kdlab.benchmarks.by_hand import ImageByImage, loss_by_hand, step_by_hand
from kdlab.benchmarks.comparison import compared, read_result, result_name
from kdlab.benchmarks.training import kd, network, recipe, synthetic, untrained_teacher
from kdlab.training import fit

CONTESTANTS = {
    "step": ["by hand", "kdlab", "kdlab, 5 students", "kdlab, 5 students, kept logits"],
    "loop": ["bare loop", "fit"],
    "crd": ["kd", "crd"],
    "writing": ["transformers", "kdlab"],
    "trainer": ["bare loop", "Trainer, by hand", "Trainer, Distil", "Trainer, Distil, fused"],
    "methods": ["alone", "kd", "dkd", "crd", "at", "rkd", "dist", "standardised", "crd+kd", "fitnet"],
}


def tiny(**changes):
    """One round of one step."""
    chosen = {"seconds": 0, "rounds": 1, "steps": 1, "batch_size": 4, "precision": "float32", "workers": 0}
    return Settings(teacher="resnet8", student="resnet8", **(chosen | changes))


@pytest.fixture(autouse=True)
def _small_memories(monkeypatch):
    monkeypatch.setattr("kdlab.benchmarks.objectives.EXAMPLES", 64)
    for name, size in (("VOCABULARY", 20), ("CONTEXT", 4), ("NEW", 3), ("WIDTHS", (8, 8))):
        monkeypatch.setattr(f"kdlab.benchmarks.hugging.{name}", size)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_one_tiny_round(name):
    result = json.loads(json.dumps(measured(name, tiny()), allow_nan=False))
    assert result["benchmark"] == name and result["device"] == "cpu" and result["threads"] == 1
    assert result["provenance"]["torch"] == torch.__version__ and result["settings"]["steps"] == 1
    (found,) = result["contests"]
    assert list(found["seconds"]) == list(found["summary"]) == CONTESTANTS[name]
    assert all(len(times) == 1 and times[0] > 0 for times in found["seconds"].values())
    assert found["summary"][found["reference"]]["relative_time"]["median"] == 1
    each = 8 if name in ("writing", "trainer") else 4
    assert found["images"] == {n: 20 if "5" in n else each for n in CONTESTANTS[name]}
    lines = table(result).splitlines()
    assert [line.split("  ")[1] for line in lines[-len(CONTESTANTS[name]) :]] == CONTESTANTS[name]


def test_crd_is_measured_on_three_pairs(monkeypatch):
    seen = []
    monkeypatch.setattr("kdlab.benchmarks.objectives.kdlab_round", lambda settings, pair, objective: lambda: 1.0)
    monkeypatch.setattr(
        "kdlab.benchmarks.objectives.contest", lambda title, *_, share, **__: seen.append((title, share))
    )
    BENCHMARKS["crd"](Settings(seconds=0, rounds=1))
    assert [title for title, _ in seen] == [
        "wrn_40_2 → wrn_16_2",
        "resnet56 → resnet20",
        "resnet32x4 → resnet8x4",
    ]
    assert sum(share for _, share in seen) == pytest.approx(1)


def test_the_bare_loop_and_fit_end_at_the_same_weights():
    """That ``loop`` compares equals: from the same weights, the same steps lead to the same weights."""
    settings = tiny(steps=3, batch_size=8)
    train, how, teacher = synthetic(settings.images), recipe(settings), untrained_teacher("resnet8")
    ours, theirs = network("resnet8"), network("resnet8")
    before, laps = copy.deepcopy(ours.state_dict()), []
    fit(ours, kd(), train=train, recipe=how, teacher=teacher)
    bare(theirs, teacher, train, how, "cpu", lambda: laps.append(None))
    assert len(laps) == how.epochs
    moved = {k: (v - before[k]).abs().max().item() for k, v in ours.state_dict().items()}
    assert all(moved.values())
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(value, ours.state_dict()[name], rtol=1e-6, atol=1e-3 * moved[name])


def test_the_step_by_hand_has_the_loss_of_kdlab():
    settings = tiny(batch_size=16)
    train, teacher = synthetic(16), untrained_teacher("resnet20")
    inputs, labels, _ = next(train.batches(16))
    student = network("resnet8")
    with torch.no_grad():
        logits, teacher_logits = student(inputs), teacher(inputs)
    expected, _ = kd()(student_logits=logits, teacher_logits=teacher_logits, labels=labels)
    torch.testing.assert_close(loss_by_hand(logits, teacher_logits, labels), expected)

    student = network("resnet8")
    optimizer = torch.optim.SGD(student.parameters(), 1e-3, 0.9, weight_decay=5e-4)
    loss, top1, top5 = step_by_hand(student, teacher, optimizer, inputs.contiguous(), labels)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    best = logits.topk(5).indices == labels[:, None]
    assert top1 == pytest.approx(best[:, 0].float().mean().item())
    assert top5 == pytest.approx(best.any(1).float().mean().item())

    ours = network("resnet8")
    how = replace(recipe(settings), epochs=1, augment=False)
    fit(ours, kd(), train=train, recipe=how, teacher=teacher)
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, student.state_dict()[name], rtol=1e-3, atol=1e-5)


def test_images_one_by_one_are_crops_of_the_padded_images():
    train = synthetic(3)
    images = ImageByImage(train)
    padded = torch.nn.functional.pad(train.images, (4,) * 4)
    crops = [train.normalise(padded[:, :, top : top + 32, left : left + 32]) for top in range(9) for left in range(9)]
    crops += [crop.flip(-1) for crop in crops]
    for _ in range(10):
        for number in range(3):
            image, label, index = images[number]
            assert (label, index) == (train.labels[number], number) and image.dtype == torch.float32
            assert any(torch.allclose(image, crop[number], atol=1e-6) for crop in crops)


def test_contestants_take_turns(monkeypatch):
    order = []
    contestants = {name: lambda name=name: order.append(name) or 1.0 for name in "ab"}
    done = timing.contest("a turn", contestants, tiny(rounds=3), reference="a", images={"b": 8})
    assert "".join(order) == "abbaab" and done.images == {"a": 4, "b": 8}


def test_the_summary_compares_rounds_that_stand_side_by_side():
    found = Contest("", {"a": 10, "b": 20}, {"a": [1.0, 2.0, 4.0], "b": [1.0, 2.0, 8.0]}, reference="a").summary()
    assert found["a"]["images_per_second"]["median"] == 5
    assert found["b"]["images_per_second"]["median"] == 10
    assert found["b"]["relative_time"] == {"low": 0.5, "median": 0.5, "high": 0.75}


def test_the_first_epoch_warms_up(monkeypatch):
    clock = iter([10.0, 12.0, 13.5])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    laps = timing.Laps("cpu")
    for _ in range(3):
        laps({"epoch": 1})
    assert laps.last == 1.5


def test_a_teacher_is_in_range():
    with torch.no_grad():
        teacher = untrained_teacher("resnet20")
        logits = teacher(synthetic(64).normalise(synthetic(64).images))
    assert not teacher.training and 0.01 < logits.std() < 10


def test_networks_of_a_seed_disturb_nothing():
    state = torch.get_rng_state()
    assert torch.equal(network("resnet8").fc.weight, network("resnet8").fc.weight)
    assert not torch.equal(network("resnet8").fc.weight, network("resnet8", 1).fc.weight)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"teacher": "resnet20"}, "come together"),
        ({"teacher": "resnet20", "student": "vgg99"}, "no 'vgg99'"),
        pytest.param(
            {"device": "cuda"},
            "no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA"),
        ),
    ],
)
def test_settings_that_cannot_be(changes, sentence):
    with pytest.raises(BenchmarkError, match=sentence):
        Settings(**changes)


def test_a_network_without_published_weights_gets_a_sentence():
    with pytest.raises(BenchmarkError, match="no 'mlp'"):
        measured("crd", Settings(teacher="resnet8", student="mlp"))


# ---------------------------------------------------------------- the command


def kdlab(*arguments):
    return CliRunner().invoke(app, ["bench", *arguments])


def test_the_command_lists_its_benchmarks():
    done = kdlab()
    assert done.exit_code == 0
    assert re.findall(r"^(\w+)", done.stdout, re.MULTILINE) == [*BENCHMARKS, "vocabulary"]


def test_an_unknown_name_gets_a_sentence():
    done = kdlab("speed")
    assert done.exit_code == 1 and "there is no benchmark 'speed'; there are step, loop" in done.output


def test_a_device_that_is_not_there_gets_a_sentence():
    done = kdlab("loop", "--device", "nowhere")
    assert done.exit_code == 1 and "no device 'nowhere'" in done.output


def test_the_command_writes_every_round(tmp_path):
    out = tmp_path / "new" / "loop.json"
    pair = ("--teacher", "resnet8_width4", "--student", "resnet8_width4")
    done = kdlab("loop", *pair, "--steps", "1", "--seconds", "0", "--out", str(out), "--record", str(tmp_path / "all"))
    assert done.exit_code == 0, done.output
    result = json.loads(out.read_text())
    (kept,) = (tmp_path / "all").glob("loop.*.json")
    assert kept.read_bytes() == out.read_bytes()
    assert table(result) in done.stdout
    (found,) = result["contests"]
    assert [len(times) for times in found["seconds"].values()] == [5, 5]
    each = [t / 64 for t in found["seconds"]["bare loop"]]
    median = found["summary"]["bare loop"]["images_per_second"]["median"]
    assert median == pytest.approx(float(np.median([1 / t for t in each])))


# Two commits


def result_of(ours, drift=1.0, benchmark="vocabulary", **changes):
    """A machine that is ``drift`` times as slow slows all down."""
    where = {"device": "one", "commit": "a" * 40, "dirty": False, "started": "2026-11-29T16:00:00", "torch": "2.13"}
    seconds = {"kdlab": [drift * x for x in ours], "bare products": [drift] * len(ours)}
    result = {"benchmark": benchmark, "provenance": where, "threads": 1, "size": {"tokens": 8}, "seconds": seconds}
    return {**result, **changes}


def test_a_slower_commit_is_seen_and_a_slower_machine_is_not():
    before = result_of([1.1, 1.2, 1.3, 1.2, 1.1])
    for ours, drift, seen in (
        ([1.1, 1.2, 1.3, 1.2, 1.1], 3.0, "no difference seen"),
        ([1.5, 1.6, 1.4, 1.5, 1.5], 0.5, "slower"),
        ([1.0, 1.0, 0.9, 1.0, 1.0], 3.0, "faster"),
    ):
        (row,) = compared(before, result_of(ours, drift))
        assert row["seen"] == seen and row["contestant"] == "kdlab"
    assert row["later"]["median"] == pytest.approx(1.0)


def test_contestants_are_compared_for_equal_work():
    def of(images):
        contest = {"title": "a step", "reference": "by hand", "images": images}
        seconds = {"kdlab": [2.0] * 5, "by hand": [1.0] * 5}
        return result_of([1.0], benchmark="step", contests=[{**contest, "seconds": seconds}])

    (row,) = compared(of({"kdlab": 10, "by hand": 10}), of({"kdlab": 20, "by hand": 10}))
    assert (row["contestant"], row["seen"]) == ("a step: kdlab", "faster")
    assert (row["earlier"]["median"], row["later"]["median"]) == (2.0, 1.0)


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (result_of([1.0], size={"tokens": 9}), "size was {'tokens': 8}, and is {'tokens': 9}"),
        (result_of([1.0], threads=2), "threads was 1, and is 2"),
        (result_of([1.0], benchmark="step", contests=[]), "benchmark was vocabulary, and is step"),
        (result_of([1.0], settings={"steps": 3, "seconds": 9.0}), "steps was None, and is 3"),
    ],
)
def test_what_is_not_the_same_is_not_compared(other, sentence):
    with pytest.raises(BenchmarkError, match=re.escape(sentence)):
        compared(result_of([1.0]), other)


def test_the_command_compares_two_records(tmp_path):
    paths = []
    for ours, day in (([1.0] * 5, "28"), ([2.0] * 5, "29")):
        result = result_of(ours)
        result["provenance"] = result["provenance"] | {"started": f"2026-11-{day}T16:00:00"}
        paths.append(tmp_path / result_name(result))
        paths[-1].write_text(json.dumps(result))
    assert paths == sorted(paths)
    assert read_result(paths[0])["seconds"]["kdlab"] == [1.0] * 5
    told = CliRunner().invoke(app, ["compare", *map(str, paths)])
    assert told.exit_code == 1 and "slower" in told.output
    assert CliRunner().invoke(app, ["compare", *map(str, paths[::-1])]).exit_code == 0
    (tmp_path / "other.json").write_text("[]")
    told = CliRunner().invoke(app, ["compare", str(paths[0]), str(tmp_path / "other.json")])
    assert told.exit_code == 1 and "is no result of kdlab bench" in told.output
