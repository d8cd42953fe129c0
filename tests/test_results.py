"""What a plan's records say, and a plan spread over a cluster."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from kdlab.__main__ import app
from kdlab.objectives import CrossEntropy, SoftTargets
from kdlab.study import Interval, Spec, paired_difference, plans, results, run_together, write_record
from kdlab.study.cluster import spread
from kdlab.study.display import conditions, slots, under
from kdlab.study.drafts import acceptance_rate, call_yield, times_as_fast
from kdlab.study.published import chance_gap, deviation_of_runs, published_results
from kdlab.study.records import columns, find_record
from kdlab.study.runner import PlanError, plan
from kdlab.training import Recipe

RECIPE = Recipe(epochs=1, batch_size=32, schedule="constant", learning_rate=0.01, augment=False)
TEACHER = Spec("teacher", "wise", "digits", "resnet8", 1.0 * CrossEntropy(), RECIPE, train_examples=64)


def arm(name, objective, seeds, **options):
    return [
        Spec(
            "tiny",
            name,
            "digits",
            "resnet8_width4",
            objective,
            replace(RECIPE, seed=s),
            TEACHER,
            64,
            **options,
        )
        for s in range(seeds)
    ]


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A plan of two arms and three seeds, and an empty book."""
    specs = [TEACHER, *arm("alone", 1.0 * CrossEntropy(), 3), *arm("kd", 1.0 * SoftTargets(), 3)]
    monkeypatch.setitem(plans.PLANS, "tiny", lambda: specs)
    (tmp_path / "book" / "records").mkdir(parents=True)
    return specs, tmp_path / "book"


def note(spec, book, accuracy):
    test = None if accuracy is None else {"accuracy": accuracy}
    write_record(spec, book / "records", {"recipe": {"seed": spec.recipe.seed}, "test": test})


def test_some_arms_under_other_names_keep_their_records_and_no_others(tiny):
    specs, book = tiny
    for spec in specs[1:]:
        note(spec, book, 0.1 * (1 + spec.recipe.seed) + (spec.arm == "kd"))
    whole = results("tiny", book)
    part = whole.renamed({"kd": "taught", "unknown": "nobody"})
    assert [(s.arm, s.recipe.seed) for s in part.specs] == [("taught", 0), ("taught", 1), ("taught", 2)]
    assert part.values("taught") == whole.values("kd") and part.command == whole.command
    assert part.complete(["taught"]) and not part.missing and len(part.records) == 3
    assert part.all(["taught"]) == whole.all(["kd"])
    with pytest.raises(KeyError, match="no arm 'alone'"):
        part.arm("alone")
    with pytest.raises(ValueError, match="two arms under one name would be counted as one"):
        whole.renamed({"alone": "x", "kd": "x"})


def test_arms_are_read_in_the_order_of_their_seeds_and_paired_by_them(tiny):
    specs, book = tiny
    for spec, accuracy in zip(reversed(specs[1:4]), (0.3, 0.2, 0.1), strict=True):
        note(spec, book, accuracy)
    for spec, accuracy in zip(specs[5:], (0.4, 0.6), strict=True):
        note(spec, book, accuracy)
    found = results("tiny", book)
    assert found.values("alone") == {0: 0.1, 1: 0.2, 2: 0.3} and found.values("kd") == {1: 0.4, 2: 0.6}
    assert found.difference("kd", "alone") == paired_difference([0.4, 0.6], [0.2, 0.3])
    assert found.mean("alone", lambda r: 2 * r["test"]["accuracy"]).mean == pytest.approx(0.4)
    assert found.missing == 2 and found.command == "kdlab run tiny" and len(found.all(["kd", "alone"])) == 5


def test_every_arm_against_one_with_the_variance_of_all(tiny):
    specs, book = tiny
    for spec, accuracy in zip([*specs[1:4], *specs[4:]], (0.1, 0.2, 0.3, 0.5, 0.7, 0.6), strict=True):
        note(spec, book, accuracy)
    found = results("tiny", book)
    assert found.measured("accuracy") == ["alone", "kd"] and found.measured("agreement") == []
    (d,) = found.against("alone").values()
    want = found.difference("kd", "alone")
    assert (d.mean, d.low, d.high, d.n) == pytest.approx((want.mean, want.low, want.high, 3))
    with pytest.raises(ValueError, match="four arms"):
        found.at_equal("accuracy")


def test_a_mistake_in_a_measure_is_no_missing_measure(tiny):
    specs, book = tiny
    for spec in specs[1:]:
        note(spec, book, 0.1 * (1 + spec.recipe.seed))
    found = results("tiny", book)
    of_one = lambda record: record["test"]["accuracy" if record["spec"]["arm"] == "kd" else "kl"]  # noqa: E731
    assert found.measured(of_one) == ["kd"] and found.measured("acuracy") == []
    with pytest.raises(KeyError, match="acuracy"):
        found.measured(lambda record: record["test"]["acuracy"])
    with pytest.raises(TypeError):
        found.measured(lambda record: record["test"]["accuracy"] + None)


def test_a_spec_takes_a_term_and_names_that_are_files():
    spec = Spec("tiny", "kd+at-0.5", "digits", "resnet8", SoftTargets(temperature=4), RECIPE)
    assert repr(spec.objective) == "1 * SoftTargets(temperature=4)"
    with pytest.raises(ValueError, match="study and arm name files: letters, digits, and .* not 'lr/N'"):
        replace(spec, arm="lr/N")


def test_what_is_not_run_or_diverged_is_no_number(tiny):
    specs, book = tiny
    note(specs[1], book, None)
    note(specs[2], book, 0.5)
    found = results("tiny", book)
    assert found.mean("alone") is None and found.difference("kd", "alone") is None
    assert found.diverged("alone") == 1 and found.arm("kd") == [] and found.values("alone") == {1: 0.5}


def test_of_a_growing_plan_an_arm_that_is_not_known_yet_is_not_complete(tiny):
    _, book = tiny
    found = results("tiny", book)
    assert not replace(found, plan="cut").complete(["drawn-kd"])
    with pytest.raises(KeyError, match="no arm 'drawn-kd'"):
        found.complete(["drawn-kd"])


def test_what_an_arm_lacks_and_when_it_is_complete(tiny):
    specs, book = tiny
    found = results("tiny", book)
    assert (found.planned(["alone", "kd"]), found.lacking(["alone"]), found.ready(["alone"])) == (6, 3, [])
    assert [
        note._repr_html_().count("3 of 3 runs: students alone") for note in slots(found, ["alone"], "students alone")
    ] == [1]
    for spec, accuracy in zip(specs[1:4], (0.1, None, 0.3), strict=True):
        note(spec, book, accuracy)
    found = results("tiny", book)
    assert found.complete(["alone"])
    (left_out,) = slots(found, ["alone"], "students alone")
    assert "1 of 3 runs diverged" in left_out._repr_html_()
    assert found.complete(["alone", "alone"]) and not found.lacking(["alone", "alone"]), "named twice it is one arm"
    assert not found.complete(["alone", "kd"]) and found.ready(["alone", "kd"]) == ["alone"]
    assert found.complete(["alone"], at_least=3), "a run that diverged is recorded, and will not come again"
    assert not found.complete(["alone"], at_least=4) and not found.complete([], at_least=2)
    with pytest.raises(ValueError, match="at_least is 2 or more"):
        found.complete(["alone"], at_least=1)
    note(specs[4], book, 0.4)
    assert not results("tiny", book).complete(["alone", "kd"], at_least=2), "one seed in common"
    assert results("tiny", book).differences("kd", "alone") == {0: pytest.approx(0.3)}
    for spec in specs[5:]:
        note(spec, book, None)
    diverged = results("tiny", book)
    assert not diverged.lacking(["kd"]) and not diverged.complete(["kd"]), (
        "one run that did not diverge has no interval"
    )


def test_an_interval_in_other_units():
    points = -100 * Interval(0.05, 0.04, 0.07, 3)
    assert points.bracketed("+.0f") == "-5 [-7, -4]" and f"{points:+.0f}" == "-5 [-7, -4], n = 3"


def test_a_draft_is_measured_by_sums_over_its_prompts():
    rounds = [
        {"draft_length": 2, "stop_below": stop, "calls": [4, 6], "tested": [5, 5], "accepted": [a, 4], "seconds": [1.0, 3.0]}
        for stop, a in ((0.0, 1), (0.3, 2))
    ]  # fmt: skip
    record = {"test": {"drafting": {"plain_seconds": [3.0, 3.0], "rounds": rounds}}}
    assert acceptance_rate(2)(record) == 0.5 and acceptance_rate(2, 0.3)(record) == 0.6
    assert call_yield(2)(record) == 1.5 and times_as_fast(2)(record) == 1.5
    with pytest.raises(KeyError, match="no draft of 3 tokens that stops below 0 was tried"):
        call_yield(3)(record)


def test_the_published_table_and_its_noise_are_read_from_the_evidence():
    published = published_results()
    printed = [d for row in published["method"] for d in row.get("deviation", {}).values()]
    assert deviation_of_runs(published) ** 2 == pytest.approx(sum(d**2 for d in printed) / len(printed))
    assert chance_gap(published, 4) == pytest.approx(chance_gap(published) / 2)
    assert chance_gap(published) == pytest.approx(1.96 * 2**0.5 * deviation_of_runs(published))


def test_unknown_plans_and_arms_are_named(tiny):
    with pytest.raises(KeyError, match="there is no plan 'large'; there are"):
        results("large", tiny[1])
    with pytest.raises(KeyError, match="the plan tiny has no arm 'fitnet'"):
        results("tiny", tiny[1]).arm("fitnet")


def test_epochs_are_kept_as_columns_of_six_digits():
    history = [
        {"epoch": 1, "loss": 1 / 3, "validation": {"accuracy": 0.5}},
        {"epoch": 2, "loss": 0.25, "validation": {"accuracy": 2 / 3}},
    ]
    assert columns(history) == {
        "epoch": [1, 2],
        "loss": [0.333333, 0.25],
        "validation.accuracy": [0.5, 0.666667],
    }


def test_an_omitted_class_is_not_shown_and_is_measured(digits):
    (spec,) = arm("omitted", 1.0 * CrossEntropy(), 1, omit=(3, 7))
    spec = replace(spec, teacher=None, train_examples=None)
    (done,) = run_together([spec], digits)
    assert done.record["data"]["split"]["train"] == sum(int(y) not in (3, 7) for y in digits.train.labels)
    omitted = done.record["test"]["omitted"]
    assert set(omitted) == {
        "accuracy", "among_omitted", "bias", "accuracy_with_bias", "accuracy_of_all_with_bias",
    }  # fmt: skip
    unseen = torch.isin(digits.test.labels, torch.tensor([3, 7]))
    larger = done.test_logits[unseen][:, 7] > done.test_logits[unseen][:, 3]
    right = (larger == (digits.test.labels[unseen] == 7)).float().mean().item()
    assert omitted["among_omitted"] == pytest.approx(right)
    assert omitted["accuracy_with_bias"] >= omitted["accuracy"] and 0 <= omitted["bias"] <= 15
    assert spec.hash != replace(spec, omit=()).hash


def test_one_omitted_class_is_the_only_one_among_the_omitted(digits):
    (spec,) = arm("omitted", 1.0 * CrossEntropy(), 1, omit=(3,))
    (done,) = run_together([replace(spec, teacher=None, train_examples=40)], digits)
    assert done.record["test"]["omitted"]["among_omitted"] == 1


def test_the_literatures_protocol_trains_on_the_validation_split_too(digits):
    (spec,) = arm("all", 1.0 * CrossEntropy(), 1, hold_out=False)
    (done,) = run_together([replace(spec, teacher=None, train_examples=None)], digits)
    assert done.record["data"]["split"] == {
        "train": len(digits.train) + len(digits.validation), "validation": 0, "test": len(digits.test),
    }  # fmt: skip
    assert "validation.accuracy" not in done.record["epochs"]


class OnThisMachine:
    """A stand-in for Ray: what it would run elsewhere runs here, with arguments and results as bytes."""

    def remote(self, **needs):
        assert needs == {"num_cpus": 1, "max_retries": 3}
        return lambda function: SimpleNamespace(remote=function)

    def init(self, **_):
        pass

    def get(self, results):
        return list(results)


def test_a_plan_spreads_over_a_cluster(tiny, digits, monkeypatch, tmp_path):
    specs, book = tiny
    monkeypatch.setitem(sys.modules, "ray", OnThisMachine())
    monkeypatch.setattr("kdlab.study.runner.load", lambda name: digits)
    run_together([TEACHER], digits, book=book, keep=[TEACHER.name])
    names = spread("tiny", 2, book=book, out=tmp_path / "out", device="cpu")
    assert sorted(names) == sorted(spec.name for spec in specs[1:])
    assert all(find_record(spec, tmp_path / "out" / "records") for spec in specs[1:])
    assert len(plan("tiny", "1/2")) == 4 and len(plan("tiny", "2/2")) == 3


def test_the_command_spreads_too(tiny, digits, monkeypatch, tmp_path):
    specs, book = tiny
    monkeypatch.setitem(sys.modules, "ray", OnThisMachine())
    monkeypatch.setattr("kdlab.study.runner.load", lambda name: digits)
    where = ["--device", "cpu", "--book", str(book)]
    said = CliRunner().invoke(app, ["run", "tiny", "--ray", "1", *where])
    assert said.exit_code == 0 and f"{len(specs)} records came back" in said.output
    said = CliRunner().invoke(app, ["run", "tiny", "--ray", "2", "--shard", "1/2", *where])
    assert said.exit_code == 1 and "--ray makes its own shards" in said.output


def test_a_plan_that_grows_is_not_spread(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", OnThisMachine())
    with pytest.raises(PlanError, match="the plan cut grows by all of its records"):
        spread("cut", 2, book=tmp_path, out=tmp_path, device="cpu")


def test_without_ray_it_says_how_to_get_it(tiny, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match="pip install ray"):
        spread("tiny", 2, book=tiny[1], out=tmp_path)


def test_a_quantity_under_a_plans_conditions_names_them():
    small = results("small")
    accuracy = under(small, "accuracy")
    assert conditions(small) in accuracy.name and (accuracy.of, accuracy.unit) == ("accuracy", "points")
    assert "5 epochs" in accuracy.name and "0.1" in accuracy.name
