"""Differences between many arms against scipy, closed forms and simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from kdlab.study import paired_difference
from kdlab.study.statistics import Difference, _bartlett, against, dunnett_quantile


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
    """2,000 experiments of five arms without effect: standard error of the share is 0.5 points."""
    for options in ({}, {"paired": False}):
        missed = 0
        for seed in range(2000):
            missed += any(d.excludes_zero for d in against(arms([0] * 5, 3, seed=seed), "a0", pooled=True, **options).values())
        assert abs(missed / 2000 - 0.05) < 0.02


def test_pooling_finds_what_three_pairs_do_not():
    """An effect of three deviations, ten arms, three seeds: power of pooling with Dunnett's above 0.65, of a paired t below 0.55."""
    pooled = single = 0
    for seed in range(400):
        values = arms([0] * 9 + [3], 3, seed=seed)
        pooled += against(values, "a0", pooled=True)["a9"].low > 0
        single += paired_difference(list(values["a9"].values()), list(values["a0"].values())).low > 0
    assert pooled / 400 > 0.65 > 0.55 > single / 400


def test_arms_of_unlike_spread_are_not_pooled():
    values = arms([0, 1, 2], 5) | {"wild": dict(enumerate([0.0, 90.0, -70.0, 400.0, 3.0]))}
    assert _bartlett(columns(values)) == pytest.approx(stats.bartlett(*columns(values)).pvalue)
    d = against(values, "a0", ["a1"], correction=None)["a1"]
    assert d.df == 4 and "pooled" not in d.basis
    assert "pooled over 3 arms" in against(arms([0, 1, 2], 5), "a0")["a1"].basis


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
        against(values, "a0", correction="tukey")
    with pytest.raises(ValueError, match="two runs of each"):
        against(values | {"one": {0: 1.0}}, "a0", ["one"])
    with pytest.raises(ValueError, match="same seeds"):
        against(values | {"c": {0: 1.0, 7: 2.0}}, "a0", ["c"], paired=True)
    with pytest.raises(ValueError, match="other than its control"):
        against(values, "a0", ["a0"])
