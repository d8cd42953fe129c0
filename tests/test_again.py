"""A recorded run trained once more, and compared with its record."""

import json
import shutil
import sys
from contextlib import nullcontext
from dataclasses import replace

import pytest
from test_runner import (  # noqa: F401
    _registered,
    assert_a_sentence,
    at_step,
    cli,
    contents,
    copy,
    of_another_teacher,
    patterns,
    terminate,
    tiny_plan,
    whole,
)

from kdlab.study import RecordError, again, read_record, runner
from kdlab.study.again import compared, lines, run_again
from kdlab.study.plans import PLANS
from kdlab.study.records import checksum, record_path
from kdlab.study.runner import run_plan
from kdlab.training.products import Made


@pytest.fixture(autouse=True)
def _data(monkeypatch, _registered):  # noqa: F811
    monkeypatch.setattr(again, "load", lambda name: patterns())
    for name in [name for name in PLANS if name != "tiny"]:
        monkeypatch.delitem(PLANS, name)


def recorded(arm, book, seed=0):
    spec = next(spec for spec in tiny_plan() if spec.arm == arm and spec.recipe.seed == seed)
    return record_path(spec, book / "records")


def changed(path, change):
    """The record with other content, whole again."""
    record = json.loads(path.read_text())
    change(record)
    record["sha256"] = checksum(record)
    path.write_text(json.dumps(record))
    return path


@pytest.mark.parametrize("spec", tiny_plan(), ids=lambda spec: f"{spec.arm}-{spec.recipe.seed}")
def test_every_record_of_a_plan_is_equal_when_it_is_trained_again(spec, whole):  # noqa: F811
    before = contents(whole)
    found = run_again(record_path(spec, whole / "records"), book=whole, say=lambda line: None)
    assert found["equal"] and found["name"] == spec.name and not found["only"]
    assert found["epochs"]["equal"] == found["epochs"]["all"] > 0 or spec.arm == "diverging"
    assert all(m["difference"] == 0 for m in found["measures"].values())
    assert found["outcome"]["recorded"] == found["outcome"]["again"]
    assert contents(whole) == before


def test_a_record_is_not_trained_again_beside_another_teacher(whole, tmp_path):  # noqa: F811
    copy(whole, tmp_path)
    of_another_teacher(tmp_path)
    run_again(record_path(tiny_plan()[1], tmp_path / "records"), book=tmp_path, say=lambda line: None)
    with pytest.raises(RecordError, match="learned from other weights of its teacher"):
        run_again(record_path(tiny_plan()[2], tmp_path / "records"), book=tmp_path, say=lambda line: None)


@pytest.mark.parametrize("by", [None, "oneDNN"])
def test_products_are_made_as_they_were(by, whole, tmp_path, monkeypatch):  # noqa: F811
    running = sys.modules["kdlab.study.run"]
    monkeypatch.setattr(running, "widest_products", lambda device: nullcontext(Made(by or "", 1 if by else 0)))
    asked, (teacher, *_) = [], tiny_plan()
    run_plan([teacher], book=tmp_path, say=asked.append)
    path = record_path(teacher, tmp_path / "records")
    assert read_record(path)["provenance"].get("products") == by
    monkeypatch.setattr(running, "widest_products", lambda device: nullcontext(Made("others", 1)))
    found = run_again(path, book=whole, say=asked.append)
    assert found["here"].get("products") == (by and "others")
    assert any("other products" in line for line in lines(found | {"equal": False})) is bool(by)


def test_what_is_trained_again_is_said_before_it_is(whole):  # noqa: F811
    lines = []
    run_again(recorded("kd", whole), book=whole, say=lines.append)
    assert lines[0].startswith(f"{recorded('kd', whole).stem} is trained again; it took ") and " on " in lines[0]


def test_a_comparison_replaces_no_file(whole, tmp_path):  # noqa: F811
    (tmp_path / "README.md").write_text("mine")
    result = cli("run", "--again", recorded("kd", whole), "--book", whole, "--out", tmp_path / "README.md")
    assert result.exit_code == 1 and "README.md is there already" in result.stderr
    assert (tmp_path / "README.md").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_the_command_says_that_it_is_equal_and_writes_nothing_but_the_comparison(whole, tmp_path):  # noqa: F811
    before, out = contents(whole), tmp_path / "elsewhere" / "kd.json"
    result = cli("run", "--again", recorded("kd", whole), "--book", whole, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert "Equal to the last bit" in result.stdout
    assert contents(whole) == before and [path.name for path in out.parent.iterdir()] == ["kd.json"]
    found = json.loads(out.read_text())
    assert found["equal"] and found["measures"]["accuracy"]["seeds"] == 2
    assert found["recorded"]["torch"] == found["here"]["torch"]


def test_a_record_in_a_folder_of_its_own_finds_its_teacher_in_the_book(whole, tmp_path):  # noqa: F811
    alone = tmp_path / "sent"
    alone.mkdir()
    path = shutil.copy(recorded("kd", whole), alone / "records.json")
    result = cli("run", "--again", path, "--book", whole)
    assert result.exit_code == 0 and "Equal to the last bit" in result.stdout


def test_a_difference_is_said_beside_that_between_seeds(whole, tmp_path):  # noqa: F811
    shutil.copytree(whole, book := tmp_path / "book")

    def elsewhere(record):
        record["test"]["accuracy"] += 0.25
        record["epochs"]["loss"][0] += 1
        record["provenance"]["device"] = "another processor"

    path = changed(recorded("kd", book), elsewhere)
    found = run_again(path, book=book, say=lambda line: None)
    was, second = read_record(path)["test"]["accuracy"], read_record(recorded("kd", book, 1))["test"]["accuracy"]
    measure = found["measures"]["accuracy"]
    assert not found["equal"] and measure["difference"] == pytest.approx(-0.25)
    assert measure["between_seeds"] == pytest.approx(abs(was - second) / 2**0.5) and measure["seeds"] == 2
    assert found["epochs"]["all"] - found["epochs"]["equal"] == 1
    text = "\n".join(lines(found))
    assert "Not equal" in text and "other device" in text and "-0.25" in text


def test_the_order_of_draws_of_old_code_is_said(whole, tmp_path):  # noqa: F811
    shutil.copytree(whole, book := tmp_path / "book")

    def old(record):
        record["provenance"]["commit"] = "0123456789"
        del record["epochs"]["gradient_norm"]

    found = run_again(changed(recorded("crd", book), old), book=book, say=lambda line: None)
    assert found["drawn_otherwise"] and found["only"] == ["epochs.gradient_norm"]
    assert "from commit 0123456, which drew what the objective learns before" in "\n".join(lines(found))
    assert not run_again(changed(recorded("alone", book), old), book=book, say=lambda line: None)["drawn_otherwise"]


def test_stopped_it_goes_on(at_step, whole, tmp_path):  # noqa: F811
    out = tmp_path / "kd.json"
    command = ["run", "--again", recorded("kd", whole), "--book", whole, "--out", out]
    at_step(8, terminate)
    result = cli(*command)
    assert result.exit_code == 0 and result.stdout.endswith("Stopped; the same command goes on from here.\n")
    assert not out.exists()
    result = cli(*command)
    assert "resumed after epoch 1/3" in result.stdout and "Equal to the last bit" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["kd.json"]


def test_what_does_not_fit_is_one_sentence(whole, tmp_path, monkeypatch):  # noqa: F811
    shutil.copytree(whole, book := tmp_path / "book")
    kd, teacher = recorded("kd", book), tiny_plan()[0]
    assert_a_sentence(cli("run"), "name a plan, such as kdlab run small, or a record")
    assert_a_sentence(cli("run", "tiny", "--again", kd), "name a plan")
    assert_a_sentence(cli("run", "--again", kd, "--only", "kd", "--book", book), "--again trains one run")
    assert_a_sentence(cli("run", "--again", tmp_path / "none.json", "--book", book), "does not exist")
    (tmp_path / "file").write_text("")
    blocked = cli("run", "--again", kd, "--book", book, "--out", tmp_path / "file" / "kd.json")
    assert_a_sentence(blocked, "Not a directory")
    (book / "checkpoints" / f"{teacher.name}.safetensors").unlink()
    assert_a_sentence(cli("run", "--again", kd, "--book", book), f"needs its teacher {teacher.name}")
    monkeypatch.setattr(again, "load", lambda name: replace(patterns(), checksum="1" * 64))
    assert_a_sentence(cli("run", "--again", kd, "--book", book), "was trained on other data of the name patterns")
    monkeypatch.setitem(PLANS, "tiny", lambda: tiny_plan()[:1])
    assert_a_sentence(cli("run", "--again", kd, "--book", book), "is a record of no plan")


def test_numbers_of_nested_measures_are_compared_one_by_one():
    one = {
        "test": {"modules": [{"tv": 0.5}, {"tv": 0.25}], "sample": "a text"},
        "epochs": {"loss": [2.0, 1.0], "seconds": [3.0]},
    }
    other = {
        "test": {"modules": [{"tv": 0.5}, {"tv": 0.5}], "sample": "a text"},
        "epochs": {"loss": [2.0, 1.0], "seconds": [5.0]},
    }
    found = compared(one, other, [one, other])
    assert found["measures"]["modules[1].tv"]["difference"] == 0.25 and not found["equal"]
    assert found["epochs"] == {"equal": 2, "all": 2}
    one["test"]["kl"], other["test"]["kl"] = [1.0, 2.0], [1.0, 4.0]
    assert compared(one, other, [])["measures"]["kl"]["difference"] == 1.0
    assert (
        compared(one, one, [one])["equal"]
        and compared(one, one, [one])["measures"]["modules[0].tv"]["between_seeds"] is None
    )
    assert not compared(one, {**one, "test": {**one["test"], "sample": "another"}}, [])["equal"]


def test_a_run_says_where_it_resumed(at_step, tmp_path):  # noqa: F811
    teacher = tiny_plan()[0]
    at_step(8, terminate)
    assert "Stopped" in cli("run", "tiny", "--book", tmp_path, "--only", teacher.name).stdout
    assert (
        "resumed after epoch 1/3, step 2/6 of the next"
        in cli("run", "tiny", "--book", tmp_path, "--only", teacher.name).stdout
    )


def test_a_folder_that_cannot_be_written_is_noticed_before_training(monkeypatch, tmp_path):
    (tmp_path / "running").mkdir()
    (tmp_path / "records").write_text("in the way")
    monkeypatch.setattr(runner, "run_together", lambda *_, **__: pytest.fail("it trains"))
    assert_a_sentence(
        cli("run", "tiny", "--book", tmp_path / "none", "--out", tmp_path),
        "records. Nothing that was written before is lost.",
    )
