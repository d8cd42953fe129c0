"""Differences between many arms against scipy, closed forms and simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from kdlab.study import mean_interval, paired_difference
from kdlab.study.statistics import (
    Difference,
    _bartlett,
    _dunnett_p,
    _tukey_p,
    against,
    at_equal,
    dunnett_quantile,
    off_line,
    pairing,
    smallest_p,
    summary,
    tukey_quantile,
)


def arms(means, runs, spread=1.0, seed=0, seeds_spread=0.0):
    g = np.random.default_rng(seed)
    block = seeds_spread * g.normal(size=runs)
    return {f"a{i}": dict(enumerate(m + block + spread * g.normal(size=runs))) for i, m in enumerate(means)}


def columns(values):
    return [list(of.values()) for of in values.values()]


def test_two_arms_paired_are_the_paired_t_interval():
    values = arms([0, 1], 5)
    (d,) = against(values, "a0").values()
    want = paired_difference(*reversed(columns(values)))
    assert (d.mean, d.low, d.high) == pytest.approx((want.mean, want.low, want.high)) and d.df == 4
    assert d.p == pytest.approx(stats.ttest_rel(*reversed(columns(values))).pvalue)


def test_two_arms_unpaired_are_students_and_welchs():
    values = arms([0, 1], 5)
    ours, theirs = columns(values)[1], columns(values)[0]
    for pooled in (True, False):
        (d,) = against(values, "a0", paired=False, pooled=pooled).values()
        test = stats.ttest_ind(ours, theirs, equal_var=pooled)
        ci = test.confidence_interval()
        assert (d.low, d.high, d.p, d.df) == pytest.approx((ci.low, ci.high, test.pvalue, test.df))


def test_dunnetts_intervals_and_p_values_are_scipys():
    values = arms([0, 0.5, 1.5, 3], 4)
    values["a3"] = dict(list(values["a3"].items()) + [(9, 2.0)])  # unequal numbers of runs
    found = against(values, "a0", paired=False, pooled=True)
    control, *others = columns(values)
    test = stats.dunnett(*others, control=control, rng=0)
    ci = test.confidence_interval()
    for d, low, high, p in zip(found.values(), ci.low, ci.high, test.pvalue, strict=True):
        assert (d.low, d.high) == pytest.approx((low, high), abs=3e-3) and d.p == pytest.approx(p, abs=1e-3)


def test_dunnetts_critical_values_are_the_printed_ones():
    """Dunnett (1964), Biometrics 20, table II: two-sided, 5 %."""
    for arms_, df, printed in ((1, 20, 2.09), (2, 5, 3.03), (3, 20, 2.54), (9, 20, 2.95), (5, 60, 2.58)):
        assert round(dunnett_quantile((math.sqrt(0.5),) * arms_, df), 2) == pytest.approx(printed, abs=0.011)


def test_dunnetts_p_of_one_arm_is_students_and_of_several_lies_between_it_and_bonferronis():
    for df in (2, 4, 20, 200):
        for t in (0.5, 2.0, 5.0, 20.0, 100.0):
            if (p := 2 * stats.t.sf(t, df)) < 1e-12:
                continue
            assert _dunnett_p(t, (math.sqrt(0.5),), df) == pytest.approx(p, rel=1e-4)
            assert p < _dunnett_p(t, (math.sqrt(0.5),) * 8, df) <= 8 * p
    far = {"a": dict(enumerate([0.0, 0.1, 0.2])), "b": dict(enumerate([1e9, 1e9 + 1, 1e9 + 3]))} | arms([0, 1], 3)
    raw = against(far, "a", correction=None, pooled=True, paired=False)
    assert all(d.p >= raw[a].p for a, d in against(far, "a", pooled=True, paired=False).items())


def test_tukeys_values_are_those_of_the_studentized_range():
    for arms_, df in ((2, 4), (3, 20), (12, 22), (40, 100)):
        assert tukey_quantile(arms_, df) == pytest.approx(
            stats.studentized_range.ppf(0.95, arms_, df) / math.sqrt(2), rel=1e-4
        )
        for t in (1.0, 3.0, 6.0):
            want = stats.studentized_range.sf(math.sqrt(2) * t, arms_, df)
            assert _tukey_p(t, arms_, df) == pytest.approx(want, rel=1e-3, abs=1e-9)
    (two,) = against(arms([0, 1], 4), "a0", correction="tukey").values()
    assert two == against(arms([0, 1], 4), "a0")["a1"]  # of two arms there is one difference


def test_an_arm_chosen_for_its_mean_has_tukeys_intervals():
    """400 experiments of eight equal arms: the best one is shown to be above some other in 5 of 100; by Dunnett's, in 13."""
    missed = {"tukey": 0, "dunnett": 0}
    for seed in range(400):
        values = arms([0] * 8, 3, seed=seed)
        best = max(values, key=lambda a: np.mean(list(values[a].values())))
        for correction in missed:
            found = against(values, best, correction=correction, pooled=True)
            missed[correction] += any(d.high < 0 for d in found.values())
    assert abs(missed["tukey"] / 400 - 0.05) < 0.03 < 0.09 < missed["dunnett"] / 400
    assert all(d.basis.endswith("Tukey's") for d in against(values, best, correction="tukey", pooled=True).values())
    alone = against(values, best, correction="tukey", pooled=False)
    assert all(d.basis.endswith("Bonferroni's over all pairs") for d in alone.values())
    raw = against(values, best, correction=None, pooled=False)
    assert all(d.p == pytest.approx(min(1, 28 * raw[a].p)) for a, d in alone.items())


def test_holm_excludes_zero_exactly_where_it_rejects():
    values = arms([0, 0.9, 1.6, 2.5, 4], 4, seed=3)
    found = against(values, "a0", correction="holm", paired=False, pooled=True)
    raw = against(values, "a0", correction=None, paired=False, pooled=True)
    order = sorted(raw, key=lambda a: raw[a].p)
    rejects = True
    for rank, a in enumerate(order):
        rejects = rejects and raw[a].p <= 0.05 / (4 - rank)
        assert found[a].excludes_zero == rejects == (found[a].p <= 0.05)
    assert found[order[0]].p == pytest.approx(4 * raw[order[0]].p)


def test_blocks_are_the_two_way_analysis_of_variance():
    values = arms([0, 1, 2], 4, seeds_spread=20)
    found = against(values, "a0", correction=None)
    x = np.array(columns(values))
    residual = x - x.mean(0) - x.mean(1, keepdims=True) + x.mean()
    error = math.sqrt((residual**2).sum() / 6 * 2 / 4)
    assert found["a1"].df == 6
    assert found["a1"].high - found["a1"].mean == pytest.approx(stats.t.ppf(0.975, 6) * error)
    unpaired = against(values, "a0", correction=None, paired=False)
    assert unpaired["a1"].high - unpaired["a1"].low > 3 * (found["a1"].high - found["a1"].low)


def test_all_intervals_hold_at_once_in_ninety_five_of_a_hundred():
    """400 experiments of five arms without effect: the share that misses has a standard error of 1.1 points."""
    for options in ({}, {"paired": False}):
        missed = 0
        for seed in range(400):
            missed += any(
                d.excludes_zero for d in against(arms([0] * 5, 3, seed=seed), "a0", pooled=True, **options).values()
            )
        assert abs(missed / 400 - 0.05) < 0.03


def test_pooling_finds_what_three_pairs_do_not():
    """An effect of three deviations, ten arms, three seeds: power of pooling with Dunnett's above 0.65, of a paired t below 0.6."""
    pooled = single = 0
    for seed in range(200):
        values = arms([0] * 9 + [3], 3, seed=seed)
        pooled += against(values, "a0", pooled=True)["a9"].low > 0
        single += paired_difference(list(values["a9"].values()), list(values["a0"].values())).low > 0
    assert pooled / 200 > 0.65 > 0.6 > single / 200


def test_arms_of_unlike_spread_are_not_pooled():
    values = arms([0, 1, 2], 5) | {"wild": dict(enumerate([0.0, 90.0, -70.0, 400.0, 3.0]))}
    assert _bartlett(columns(values)) == pytest.approx(stats.bartlett(*columns(values)).pvalue)
    d = against(values, "a0", ["a1"], correction=None)["a1"]
    assert d.df == 4 and "pooled" not in d.basis
    assert "pooled over 3 arms" in against(arms([0, 1, 2], 5), "a0")["a1"].basis


def test_a_pair_that_scatters_more_than_the_others_has_a_wider_interval():
    """Twelve arms of three runs, 600 experiments; of which just the two compared scatter twice as much: as the docstring says."""
    missed = {(spread, pooled): 0 for spread in (1, 2) for pooled in (None, True)}
    for seed in range(600):
        for spread in (1, 2):
            values = arms([0] * 12, 3, seed=seed)
            for a in ("a0", "a1"):
                values[a] = {s: spread * v for s, v in values[a].items()}
            for pooled in (None, True):
                d = against(values, "a0", ["a1"], correction=None, pooled=pooled)["a1"]
                missed[spread, pooled] += d.excludes_zero
    share = {case: count / 600 for case, count in missed.items()}
    assert share[2, True] == pytest.approx(0.21, abs=0.035) and share[2, None] == pytest.approx(0.13, abs=0.03)
    assert share[1, None] == pytest.approx(0.045, abs=0.025) and share[1, None] <= share[1, True]


def test_a_pair_of_its_own_variance_says_so_and_the_others_are_pooled():
    values = arms([0] * 10, 3)
    values["a1"] = {0: 0.0, 1: 3.0, 2: -3.0}
    found, all_ = (against(values, "a0", ["a1", "a2"], pooled=pooled) for pooled in (None, True))
    assert "pooled over 10 arms, or a pair's own where that is larger" in found["a1"].basis
    own = np.var([values["a1"][s] - values["a0"][s] for s in range(3)], ddof=1) / 2
    half = found["a1"].high - found["a1"].mean
    assert half == pytest.approx(dunnett_quantile((math.sqrt(0.5),) * 2, 18) * math.sqrt(own * 2 / 3))
    assert found["a2"].high == pytest.approx(all_["a2"].high) and "own" not in all_["a1"].basis


def test_one_lost_seed_unpairs_nothing():
    """Pairing is each arm's own; what one has lost is left out of its difference alone."""
    values = arms([0, 1, 2, 3], 4, seeds_spread=20)
    whole = against(values, "a0")
    del values["a2"][3]
    found = against(values, "a0")
    assert all("paired by seed" in d.basis and "pooled over 4" in d.basis for d in found.values())
    assert [d.n for d in found.values()] == [4, 3, 4] and {d.df for d in found.values()} == {8}
    assert found["a1"].mean == whole["a1"].mean and found["a1"].high - found["a1"].low < 10
    assert found["a2"].mean == pytest.approx(np.mean([values["a2"][s] - values["a0"][s] for s in range(3)]))
    (x, y, z, w), n = columns(values), 15  # least squares of arms and seeds
    rows = [(a, s) for a, of in enumerate((x, y, z, w)) for s in range(len(of))]
    design = np.array([[a == b for b in range(4)] + [s == t for t in range(4)] for a, s in rows], float)
    squares = np.linalg.lstsq(design, np.concatenate([x, y, z, w]))
    rest = np.concatenate([x, y, z, w]) - design @ squares[0]
    error = math.sqrt(rest @ rest / (n - squares[2]) * 2 / 4)
    alone = against(values, "a0", correction=None, pooled=True)["a1"]
    assert alone.high - alone.mean == pytest.approx(stats.t.ppf(0.975, 8) * error)
    apart = against(values | {"other": {7: 0.0, 8: 1.0}}, "a0", ["a1", "other"], pooled=True)
    assert ["not paired" in d.basis for d in apart.values()] == [False, True]


def test_degrees_of_freedom_that_are_equal_by_chance_are_no_shared_variance():
    """Of three arms of two seeds the pooled variance has two, as the paired t of a level of three seeds has."""
    values = {"control": dict(enumerate([0.0, 0.3, 0.1])), "level": dict.fromkeys(range(3), 5.0)}
    values |= {"a": {0: 1.0, 1: 1.2}, "b": {0: 0.4, 1: 1.0}}
    pooled, own = (against(values, "control", [a, "level"], pooled=True)[a] for a in ("a", "level"))
    assert (pooled.df, own.df) == (2, 2) and "pooled over 3 arms" in pooled.basis and "pooled" not in own.basis
    half = (
        stats.t.ppf(1 - 0.05 / 4, 2) * np.std([0.0, 0.3, 0.1], ddof=1) / math.sqrt(3)
    )  # Bonferroni's, and not Dunnett's
    assert own.high - own.mean == pytest.approx(half)


def test_an_arm_without_spread_is_a_number():
    values = arms([0, 1, 2], 5) | {"level": dict.fromkeys(range(5), 0.25)}
    d = against(values, "level", ["a1"])["a1"]
    test = stats.ttest_1samp(list(values["a1"].values()), 0.25).confidence_interval()
    assert (d.low + 0.25, d.high + 0.25) == pytest.approx((test.low, test.high))


def test_what_cannot_be_compared_is_said():
    values = arms([0, 1], 3)
    assert against({"a": {0: 1.0}, "b": {0: 3.0}}, "a")["b"] == Difference(2.0, 2.0, 2.0, 1, 0.0)
    with pytest.raises(ValueError, match="'at' has no values; there are a0, a1"):
        against(values, "a0", ["at"])
    with pytest.raises(ValueError, match="a correction is"):
        against(values, "a0", correction="scheffe")
    with pytest.raises(ValueError, match="two runs of each"):
        against(values | {"one": {0: 1.0}}, "a0", ["one"])
    with pytest.raises(ValueError, match="two of the same seeds"):
        against(values | {"c": {0: 1.0, 7: 2.0}}, "a0", ["c"], paired=True)
    with pytest.raises(ValueError, match="other than its control"):
        against(values, "a0", ["a0"])


def test_pairing_says_by_how_much_it_helps():
    """With seeds' variance s² beside a run's own 1, the correlation is s²/(1 + s²) and the ratio of variances 1/(1 + s²)."""
    found = pairing(arms([0] * 40, 40, seeds_spread=2))
    assert found.correlation == pytest.approx(0.8, abs=0.12) and found.variance_ratio == pytest.approx(0.2, abs=0.12)
    assert found.p < 1e-9 and (found.arms, found.seeds) == (40, 40)
    nothing = pairing(arms([0, 5] * 20, 40))
    assert abs(nothing.correlation) < 0.05 and nothing.variance_ratio == pytest.approx(1, abs=0.05) and nothing.p > 0.01
    two = arms([0, 1], 6, seeds_spread=1)
    a, b = (np.array(c) for c in columns(two))
    assert pairing(two).variance_ratio == pytest.approx((b - a).var(ddof=1) / (a.var(ddof=1) + b.var(ddof=1)))
    with pytest.raises(ValueError, match="same two seeds"):
        pairing(two | {"c": {9: 1.0}})
    with pytest.raises(ValueError, match="differ by constants"):
        pairing({"a": {0: 1.0, 1: 2.0}, "b": {0: 2.0, 1: 3.0}})


def test_the_smallest_p_without_normality_is_the_permutation_tests():
    far = [100.0, 101.0, 102.0], [0.0, 1.5, 2.0]
    for paired, kind in ((True, "samples"), (False, "independent")):
        test = stats.permutation_test(
            far, lambda x, y: np.mean(x) - np.mean(y), permutation_type=kind, n_resamples=np.inf
        )
        assert smallest_p(3, paired=paired) == pytest.approx(test.pvalue)


def test_at_equal_accuracy_an_arm_on_the_line_is_nothing_and_one_off_it_is_seen():
    g = np.random.default_rng(0)
    x = {f"a{i}": dict.fromkeys(range(3), i + 0.0) for i in range(12)}
    y = {a: {s: 2 * v + 1 + 0.01 * g.normal() for s, v in of.items()} for a, of in x.items()}
    y["a5"] = {s: v + 0.5 for s, v in y["a5"].items()}
    found = at_equal(y, x)
    assert found["a5"].mean == pytest.approx(0.5, abs=0.03) and found["a5"].low > 0
    assert sum(d.excludes_zero for a, d in found.items() if a != "a5") == 0
    rest = [a for a in x if a != "a5"]
    fit = stats.linregress([x[a][0] for a in rest], [np.mean(list(y[a].values())) for a in rest])
    assert found["a5"].mean == pytest.approx(np.mean(list(y["a5"].values())) - fit.intercept - fit.slope * 5)
    with pytest.raises(ValueError, match="four arms"):
        at_equal({}, {})
    with pytest.raises(ValueError, match="no line"):
        at_equal(y, {a: dict.fromkeys(range(3), 1.0) for a in y})


def test_what_a_line_leaves_of_an_effect_is_the_effect_beyond_what_goes_with_what_is_held():
    """Of two arms of unlike accuracy, one lifted by half a point: half a point is left, whatever the slope."""
    g = np.random.default_rng(0)
    x = {f"a{i}": {s: i + 0.1 * g.normal() for s in range(3)} for i in range(20)}
    y = {a: {s: 2 * v + 1 for s, v in of.items()} for a, of in x.items()}
    assert all(abs(v) < 1e-9 for of in off_line(y, x).values() for v in of.values())
    y["a5"] = {s: v + 0.5 for s, v in y["a5"].items()}
    rest = off_line(y, x)
    assert against(rest, "a12", ["a5"])["a5"].mean == pytest.approx(0.5, abs=0.05)
    assert np.mean([v for of in rest.values() for v in of.values()]) == pytest.approx(0)
    with pytest.raises(ValueError, match="both measures of each run"):
        off_line(y, {**x, "a5": {0: 1.0}})
    with pytest.raises(ValueError, match="no line"):
        off_line(y, {a: dict.fromkeys(of, 1.0) for a, of in y.items()})


def test_a_single_run_has_a_value_and_no_interval():
    assert f"{100 * summary([0.5]):+.1f}" == "+50.0, n = 1"
    assert summary([1.0, 2.0, 3.0]) == mean_interval([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="two runs"):
        summary([])


def test_the_line_has_the_level_that_it_says():
    """300 sets of eight arms on a line: an arm that was named beforehand is off it in five of a hundred (standard error 1.3 points)."""
    off = 0
    for seed in range(300):
        g = np.random.default_rng(seed)
        x = {f"a{i}": {0: g.normal()} for i in range(8)}
        off += at_equal({a: {0: v[0] + 0.3 * g.normal()} for a, v in x.items()}, x)["a0"].excludes_zero
    assert abs(off / 300 - 0.05) < 0.04
