"""Sentences about results: true of their evidence, whatever it is, and changed by evidence to the contrary."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from replay import replay
from scipy import stats

from kdlab.study import Results
from kdlab.study.evidence import QUANTITIES, Among, Quantity, evidence
from kdlab.study.statements import (
    Said,
    Survivor,
    above,
    below,
    crosses,
    falls,
    in_order,
    leads,
    only,
    power,
    rises,
    stated,
    undecided,
    within,
)
from kdlab.study.statistics import Interval

NATS = Quantity("divergence from the truth", "nats", better="lower")
POINTS = Quantity("accuracy", "points", 100, 1)
NUMBERS = {"kd": 0.60, "alone": 0.50, "dist": 0.70}
CLEAR = {"kd": [0.60, 0.61, 0.62], "alone": [0.50, 0.52, 0.51], "dist": [0.72, 0.70, 0.71]}
NOISY = {"kd": [0.60, 0.64, 0.50], "alone": [0.58, 0.49, 0.66], "dist": [0.61, 0.57, 0.60]}


@pytest.mark.parametrize("source", [NUMBERS, CLEAR])
def test_who_leads_is_said_whoever_was_expected(source):
    right, wrong = leads("dist", source, POINTS), leads("kd", source, POINTS)
    assert right.holds and not wrong.holds and right.text == wrong.text
    assert right.text.startswith("Of kd, alone and dist, dist (7") and "leads in accuracy, +10.0 points" in right.text
    assert "against the next, kd" in right.text
    assert (
        "kd leads kd, alone and dist in accuracy; this build did not show it" in wrong.markup
        and right.text in wrong.markup
    )
    with pytest.raises(TypeError, match="no truth value"):
        bool(right)


def test_what_is_better_decides_who_leads():
    assert leads("alone", CLEAR, NATS).holds and "lower is better" in leads("alone", CLEAR, NATS).text


def test_a_set_is_named_and_only_its_arms_are_judged():
    two = leads("kd", CLEAR, POINTS, among=["kd", "alone"])
    assert two.holds and two.text.startswith("Of kd and alone, kd")
    named = leads("kd", CLEAR, POINTS, among=Among("the two old ones", ["kd", "alone"]))
    assert named.holds and named.text.startswith("Of the two old ones, kd")
    many = {f"a{i}": float(i) for i in range(10)}
    with pytest.raises(ValueError, match="name the set"):
        leads("a8", many, POINTS, among=list(many)[:9])
    assert leads("a9", many, POINTS).text.startswith("Of 10 arms, a9")
    with pytest.raises(ValueError, match="must be in the set, and not alone"):
        leads("dist", CLEAR, POINTS, among=["kd", "alone"])


def test_noise_has_no_leader_and_is_not_equality():
    nobody = leads("dist", NOISY, POINTS)
    assert not nobody.holds and "none leads" in nobody.text and "is not told apart from" in nobody.text
    assert undecided("kd", "alone", 1, NOISY, POINTS).holds and not within("kd", "alone", 1, NOISY, POINTS).holds
    assert not above("kd", "alone", NOISY, POINTS).holds, "a mean above zero is no interval above zero"
    assert within("kd", "alone", 100, NOISY, POINTS).holds and not undecided("kd", "alone", 100, NOISY, POINTS).holds


def test_an_arm_is_held_against_arms_numbers_and_multiples():
    assert above("kd", "alone", CLEAR, POINTS).holds and below("kd", "dist", CLEAR, POINTS).holds
    assert not above("kd", ["alone", "dist"], CLEAR, POINTS).holds
    assert "above alone (+10.0 points" in above("kd", ["alone", "dist"], CLEAR, POINTS).text
    assert above("dist", None, CLEAR, POINTS).short == "dist is above all others of kd, alone and dist in accuracy."
    assert above("kd", 58, CLEAR, POINTS).holds and not above("kd", 60, CLEAR, POINTS).holds
    assert above("kd", "alone", CLEAR, POINTS, by=5).holds and not above("kd", "alone", CLEAR, POINTS, by=12).holds
    assert (
        above("kd", "alone", CLEAR, POINTS, factor=1.1).holds
        and not above("kd", "alone", CLEAR, POINTS, factor=1.3).holds
    )
    assert within("kd", "alone", 0, {"kd": 2, "alone": 2}, POINTS).holds
    for less, where in (({"factor": 0.5}, "factor=0.5"), ({"by": -5}, "by=-5"), ({"factor": 2, "by": -5}, "by=-5")):
        with pytest.raises(ValueError, match=f"{where} calls a smaller number"):
            above("alone", "kd", CLEAR, POINTS, **less)
    for run, to in ((falls, 1.5), (rises, 0.5)):
        with pytest.raises(ValueError, match="on the other side"):
            run({"loss": [3.0, 2.0, 1.0]}, POINTS, "steps", to=to)
    with pytest.raises(ValueError, match="there is no at"):
        above("kd", "at", CLEAR, POINTS)
    with pytest.raises(ValueError, match="'kd' is not a finite number"):
        above("kd", "alone", {"kd": float("nan"), "alone": 1}, POINTS)


def test_names_are_for_people():
    said = above("kd", "alone", CLEAR, POINTS, names={"kd": "the teacher's student", "alone": "labels"})
    assert "the teacher's student is above labels" in said.text


def test_order_and_sets():
    assert in_order(["alone", "kd", "dist"], CLEAR, POINTS).holds
    assert not in_order(["alone", "dist", "kd"], CLEAR, POINTS).holds
    assert in_order(["dist", "alone"], CLEAR, POINTS, rising=False).holds
    assert only(["kd", "dist"], CLEAR, POINTS, above=56).holds and not only(["dist"], CLEAR, POINTS, above=56).holds
    assert only([], CLEAR, POINTS, below=10).holds
    with pytest.raises(ValueError, match="give a level"):
        only(["kd"], CLEAR, POINTS)


def test_who_leads_is_judged_by_tukeys_intervals():
    """The best of six by a margin that is enough for an arm that was named beforehand, and not for one that the means have chosen."""
    few = {f"a{i}": [0.0, 1.0, 0.5] if i % 2 else [0.5, 0.0, 1.0] for i in range(5)} | {"best": [1.9, 2.3, 2.7]}
    of = evidence(few, NATS)
    named, chosen = (of.differences("best", list(few)[:5], correction=c) for c in ("dunnett", "tukey"))
    assert all(d.low < named[a].low for a, d in chosen.items())
    high = replace(NATS, better="higher")
    assert leads("best", few, high).holds and "paired by seed, Tukey's; n = 3)." in leads("best", few, high).text
    step = 0.5 * (named["a0"].low + chosen["a0"].low)  # between the two
    few["best"] = [v - step for v in few["best"]]
    said = leads("best", few, high)
    assert not said.holds and "none leads" in said.text and above("best", None, few, high).holds
    alone = leads("dist", {k: CLEAR[k] for k in ("kd", "dist")}, POINTS).text
    assert "Tukey" not in alone  # of two there is one difference


def test_arms_that_are_all_above_a_level_are_so_at_once():
    """Three intervals of 98⅓ %: 1 − 0.05/3."""
    half = stats.t.ppf(1 - 0.05 / 6, 2) * 0.01 / 3**0.5
    assert evidence(CLEAR, POINTS).mean("kd", 1 - 0.05 / 3).low == pytest.approx(0.61 - half)
    said = only(["kd", "dist"], CLEAR, POINTS, above=100 * (0.61 - half) - 0.01, among=["kd", "alone", "dist"])
    assert said.holds and said.text.endswith("alone (51.0 points) is not (95 % intervals, together; n = 3).")
    assert not only(["kd", "dist"], CLEAR, POINTS, above=100 * (0.61 - half) + 0.01).holds
    assert only(["kd"], CLEAR, POINTS, above=58, among=["kd"]).text.endswith("(95 % interval; n = 3).")
    assert only(["dist"], NUMBERS, POINTS, above=65).text.endswith("are not.")


def test_what_is_multiplied_lends_no_variance():
    """Nine calm arms make no multiple of a wild one known: its difference has the paired t interval of its own runs."""
    wild = {"arm": [30.0, 33.0, 36.0], "one": [1.0, 1.1, 1.2]} | {f"a{i}": [i, i + 0.1, i - 0.1] for i in range(9)}
    few = {k: wild[k] for k in ("arm", "one")}
    for factor in (22, 25, 28):
        assert (
            above("arm", "one", wild, NATS, factor=factor).holds == above("arm", "one", few, NATS, factor=factor).holds
        )
    calm = {"arm": [3.0, 3.1, 3.2], "one": [1.0, 1.12, 1.05]} | {f"a{i}": [i, i + 0.1, i - 0.1] for i in range(9)}
    said = above("arm", "one", calm, NATS, factor=2)
    assert "pooled over 11 arms" in said.text and "each times the factor by its own variance" in said.text
    assert "its own variance" not in above("arm", "one", calm, NATS, by=1).text


def test_to_touch_a_level_is_not_to_cross_it():
    for y, said in (
        ([2, 0, 1], "touches"),
        ([0, 1, 2], "touches"),
        ([2, 1, 0], "touches"),
        ([2, 0, 0, -1], "downwards at 1 tokens"),
        ([2, 0, -1, 1], "downwards at 1 tokens and upwards at 2.5 tokens"),
        ([3, 1, -1], "downwards at 1.5 tokens"),
    ):
        made = crosses({"a": [float(v) for v in y]}, NATS, "tokens")
        assert said in made.text and made.holds == (said.count("wards") == 1)


def test_of_evidence_the_same_can_be_asked_as_of_what_it_was_made_from():
    of = evidence(CLEAR, POINTS)
    named = leads("kd", of, POINTS, among=["kd", "alone"], names={"kd": "the student"})
    assert named.text.startswith("Of the student and alone, the student")
    assert leads("dist", of, names={"kd": "the student"}).text.startswith("Of the student, alone and dist, dist (")
    assert leads("dist", evidence(of, POINTS, among=["dist", "kd"])).text.startswith("Of dist and kd, dist (")
    assert above("kd", "alone", of).text == above("kd", "alone", CLEAR, POINTS).text
    with pytest.raises(ValueError, match="this is evidence of accuracy, and not of divergence from the truth"):
        above("kd", "alone", of, NATS)
    for make in (lambda: leads("kd", of, among=["kd", "at"]), lambda: above("kd", "at", of)):
        with pytest.raises(ValueError, match="there is no at"):
            make()


def test_curves():
    loss = Quantity("loss", "nats", digits=2)
    both = {"soft": [3.0, 2.0, 1.0], "hard": [3.0, 3.1, 2.0]}
    assert falls(both, loss, "epochs").holds and not falls(both, loss, "epochs", throughout=True).holds
    assert not rises(both, loss, "epochs").holds and not falls(both, loss, "epochs", to=0.5).holds
    assert (
        "falls from 3.00 nats to 1.00 nats, at every step, for epochs from 0 to 2 (soft)"
        in falls(both, loss, "epochs").text
    )
    line = {"difference": (np.array([1.0, 2.0, 4.0]), np.array([2.0, 1.0, -1.0]))}
    crossing = crosses(line, loss, "tokens")
    assert (
        crossing.holds and "downwards at 3 tokens" in crossing.text and not crosses(line, loss, "tokens", level=5).holds
    )
    inverse = {"error": {n: 1 / n for n in (10, 100, 1000)}}
    assert power(inverse, loss, "n", -1, 0.1).holds and not power(inverse, loss, "n", -2, 0.1).holds
    assert "is no power of n" in power({"error": {1: 62, 2: 0.5, 3: 0.5, 4: 62}}, loss, "n", -1, 0.1).text, (
        "its line falls, and it comes back"
    )
    with pytest.raises(ValueError, match="x that rises"):
        falls({"a": ([2, 1], [1, 1])}, loss, "n")


def test_the_source_decides_the_words_of_the_banner(book):
    said = above("alone", "kd", book)
    assert "the records do not show it" in said.markup and "processor" not in said.markup and said.source == "records"
    assert "processor" in above("alone", "kd", CLEAR, POINTS).markup
    assert "&amp; learns" in above("a & learns", "b", {"a & learns": 1, "b": 2}, NATS).markup
    payload = said._repr_mimebundle_()["application/vnd.kdlab.observation+json"]
    assert not payload["holds"] and said.text in payload["statement"] and "do not show" in payload["statement"]
    assert above("kd", "alone", book).text == (
        "In test accuracy, kd is above alone (+10.00 points [+7.52, +12.48]) (95 % interval; paired by seed; n = 3)."
    )


@pytest.fixture
def book(tmp_path):
    """Records of a plan of two arms, three seeds."""
    from kdlab.objectives import CrossEntropy
    from kdlab.study import Spec
    from kdlab.training import Recipe

    recipe = Recipe(epochs=1, batch_size=32, schedule="constant", learning_rate=0.01, augment=False)
    specs, records = [], {}
    for arm in ("kd", "alone"):
        for seed, accuracy in enumerate(CLEAR[arm]):
            spec = Spec("tiny", arm, "digits", "resnet8", 1.0 * CrossEntropy(), replace(recipe, seed=seed))
            specs.append(spec)
            records[spec.hash] = {"recipe": {"seed": seed}, "test": {"accuracy": accuracy}}
    return Results("tiny", tuple(specs), records)


def test_a_verdict_can_be_not_decided_and_depend_on_something(book):
    from kdlab.study.display import verdict

    null = undecided("kd", "alone", 1, NOISY, POINTS)
    said = verdict("B17", "not decided" if null.holds else "depends", null)
    assert (
        said.outcome == "not decided"
        and 'class="kd-verdict kd-not-decided"' in said.markup
        and null.text in said.markup
    )
    depends = verdict("B9", "depends", "…", condition="true in a limit")
    assert "Claim B9: depends (true in a limit)." in depends.markup
    assert depends._repr_mimebundle_()["application/vnd.kdlab.verdict+json"]["condition"] == "true in a limit"
    for outcome, condition in (("proved", "undecided"), ("depends", "the weather")):
        with pytest.raises(ValueError, match="has one of the conditions"):
            verdict("B9", outcome, "…", condition=condition)


def test_a_verdict_lists_its_statements_and_says_once_what_they_share():
    from kdlab.study.display import verdict

    low, high = {0: 1.0, 1: 2.0, 2: 1.4}, {0: 5.0, 1: 6.1, 2: 5.2}
    few = {"a": low, "b": high}
    ahead, behind = above("b", "a", few, POINTS), below("a", "b", few, POINTS)
    elsewhere = above("b", "a", few, replace(POINTS, name="recall"))
    said = verdict("B9", "depends", ["It depends.", ahead, behind, elsewhere, "", "Three seeds."])
    assert said.markup.count("<li>") == 2 and "It depends. <ul>" in said.markup and "</ul> Three seeds." in said.markup
    body = behind.text.removeprefix(behind.lead).removesuffix(f"{behind.basis}.")
    assert f"; {body} (each its own 95 % interval; " in said.finding and said.finding.count(ahead.lead) == 1
    for part in (ahead, behind, elsewhere):
        assert part.text.startswith(part.lead) and part.text.endswith(f"{part.basis}.")
    assert verdict("B9", "depends", ahead).finding == ahead.text  # one alone as it is
    assert verdict("B9", "depends", [elsewhere, ahead]).finding == f"{elsewhere} {ahead}"


def test_records_that_are_missing_or_not_measured_are_named(book):
    with pytest.raises(ValueError, match="the plan tiny has no arm at"):
        above("kd", "at", book)
    with pytest.raises(ValueError, match="agreement with the teacher is not measured on tiny's kd"):
        above("kd", "alone", book, "agreement")
    short = replace(book, records=dict(list(book.records.items())[:4]))
    with pytest.raises(ValueError, match="fewer than two runs of alone; kdlab run tiny"):
        above("kd", "alone", short)
    lost = {**book.records, book.specs[0].hash: {"recipe": {"seed": 0}, "test": None}}
    assert "1 of 3 runs of kd diverged and are not counted" in above("kd", "alone", replace(book, records=lost)).text


# ---------------------------------------------------------------- what is said is true, and nothing survives

values = st.dictionaries(
    st.sampled_from("abcdefg"),
    st.lists(st.floats(-100, 100).map(lambda v: round(v, 3)), min_size=3, max_size=3),
    min_size=2,
)


@given(values)
def test_a_leader_is_above_all_and_a_statement_is_made_of_any_evidence(source):
    first = next(iter(source))
    said = leads(first, source, POINTS)  # raises Survivor if it would say the same of evidence to the contrary
    best = max(source, key=lambda a: np.mean(source[a]))
    if said.holds:
        assert all(
            d.low > 0 for d in evidence(source, POINTS).differences(first, [a for a in source if a != first]).values()
        )
    else:
        assert f"{first} (" not in said.text.split("leads")[0] or "none leads" in said.text or best != first
    others = [a for a in source if a != first]
    outcomes = [make(first, others[0], source, POINTS).holds for make in (above, below)]
    outcomes.append(within(first, others[0], 10, source, POINTS).holds)
    outcomes.append(undecided(first, others[0], 10, source, POINTS).holds)
    assert sum(outcomes) in (1, 2) and outcomes[3] + outcomes[0] + outcomes[1] < 2
    (
        above(first, others, source, POINTS),
        in_order(sorted(source), source, POINTS),
        only([first], source, POINTS, above=0),
    )


@given(st.lists(st.floats(0.01, 100).map(lambda v: round(v, 2)), min_size=2, max_size=6))
def test_statements_of_any_curve_survive_nothing(y):
    (
        falls({"a": y}, NATS, "n"),
        crosses({"a": y}, NATS, "n", level=3),
        rises({"a": y, "b": y[::-1]}, NATS, "n", throughout=True),
    )
    power({"a": {i + 1: v for i, v in enumerate(y)}}, NATS, "n", -1, 0.1)


def free_string(of):
    """A sentence that does not look."""
    return Said(f"dist leads with {of.mean('dist').mean:.3f}", frozenset([("leads", "dist")]), True, (("dist", "kd"),))


def leaves_two_out(of):
    """Chapter 7's badge: the arms that beat it are left out of the set."""
    best = max(("kd", "alone"), key=lambda a: of.mean(a).mean)
    return Said(f"{best} leads", frozenset([("leads", best)]), True, (("kd", "alone"),))


def asks_for_a_difference_only(of):
    """Says which, whichever way round."""
    return Said("kd and alone differ", frozenset([("differ",)]), True, (("kd", "alone"),))


@pytest.mark.parametrize(
    ("rule", "how"),
    [
        (free_string, "dist and kd exchanged; with all signs turned; with an arm added above all"),
        (leaves_two_out, "an arm added above all"),
        (asks_for_a_difference_only, "kd and alone exchanged; with all signs turned; with an arm added"),
    ],
)
def test_a_statement_that_does_not_look_survives_and_is_refused(rule, how):
    with pytest.raises(Survivor, match=how):
        stated(rule, evidence(CLEAR, POINTS), "…")


def test_a_statement_of_curves_that_does_not_look_is_refused():
    from kdlab.study.evidence import curves

    def always(of):
        return Said("all fall", frozenset(["fall"]), True, tuple(of.points))

    with pytest.raises(Survivor, match="a backwards; with all signs turned; with a curve added"):
        stated(always, curves({"a": [2, 1]}, NATS, "n"), "…")


def test_numbers_have_the_quantitys_unit():
    assert QUANTITIES["bits_per_byte"].level(2.5) == "2.500 bits per byte"
    assert QUANTITIES["accuracy"].level(0.5) == "50.00 %"
    with pytest.raises(ValueError, match="better is"):
        Quantity("speed", better="faster")


# ---------------------------------------------------------------- the chapters' own


CHAPTERS = [
    c
    for c in sorted((Path(__file__).parents[1] / "notebooks").glob("*.py"))
    if "results(" in c.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda c: c.stem)
def test_no_statement_of_records_survives_the_opposite_evidence(chapter):
    """Live statements are tried as their chapter makes them; those of records are made again here, and tried as they are made."""
    made, lacking = replay(chapter)
    assert all(said.text for said in made)
    beyond = [line for line in lacking if not line.endswith(": live") and ": NameError" not in line]
    assert beyond == [], "a line of records could not be run alone"


def test_chapters_make_no_statement_by_hand():
    """Neither the rules nor the check can be gone around."""
    for chapter in sorted((Path(__file__).parents[1] / "notebooks").glob("*.py")):
        code = chapter.read_text(encoding="utf-8")
        assert not re.search(r"\b(?:Said|Statement|stated|observed)\(", code), chapter.stem


def test_a_replayed_chapter_is_run_without_its_trainings(tmp_path):
    chapter = tmp_path / "03_a.py"
    chapter.write_text(
        "# %%\nfrom kdlab.study.statements import above, leads\nfrom kdlab.study import results\nfrom kdlab.data import load_digits\n\n"
        "# %%\ndata = load_digits()\nseen = {'kd': len(data.train), 'alone': 1}\n\n# %%\nsmall = results('small')\narms = []\n"
        "for arm in ('kd', 'alone'):\n    arms.append(arm)\nleads('kd', small, among=arms)\n\n# %%\nabove('kd', 'alone', seen, 'accuracy')\n"
        "leads('kd', small, among=[*arms, 'no such arm'])\n"
    )
    made, (live, broken) = replay(chapter)
    assert [said.short for said in made] == ["kd leads kd and alone in test accuracy."] and made[0].holds
    assert live.endswith(": live") and "the plan small has no arm no such arm" in broken


def test_a_replayed_chapter_starts_no_process(tmp_path):
    """Nobody would end it, and its pipes would be complained of in whatever test comes next."""
    chapter = tmp_path / "18_a.py"
    chapter.write_text(
        "# %%\nimport subprocess, sys\nfrom kdlab.study.statements import above\nchild = subprocess.Popen([sys.executable, '-c', 'input()'])\n"
        "seen = {'kd': child.pid + 1, 'alone': child.pid}\n\n# %%\nabove('kd', 'alone', seen, 'accuracy')\n"
    )
    made, (live,) = replay(chapter)
    assert made == [] and live.endswith(": live")


def test_a_name_keeps_its_capitals_where_a_sentence_goes_on():
    said = above("MSE", "InfoNCE", {"MSE": 0.1, "InfoNCE": 0.3}, NATS)
    assert said.unseen.startswith("The text around it expects: MSE is above InfoNCE")
    said = undecided("MSE", "InfoNCE", 0.1, {"MSE": 0.1, "InfoNCE": 0.4}, NATS)
    assert said.unseen.startswith("The text around it expects: whether MSE ")


def test_a_single_value_stands_behind_its_own_arm():
    ratio = Quantity("the ratio", digits=1)
    values = {"a": 1.9, "b": 3.0, "c": 12345.6}
    assert str(below("a", ["b", "c"], values, ratio)) == "In the ratio, a (1.9) is below b (3.0) and c (12,345.6)."
    assert str(above("a", 0, values, ratio)) == "In the ratio, a (1.9) is above 0.0."
    assert str(within("a", 1.9, 0, values, ratio)) == "In the ratio, a is equal to 1.9."
    assert "from a to b (1.9 to 3.0)" in str(in_order(["a", "b"], values, ratio))


def test_a_rounded_zero_has_no_minus():
    assert Quantity("loss", digits=1).level(-0.01) == "0.0"
    assert Interval(-0.001, -0.2, 0.0, 3).bracketed("+.1f") == "+0.0 [-0.2, +0.0]"
