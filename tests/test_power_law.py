import numpy as np
import pytest
from scipy import stats

from kdlab.study.power_law import fit_power_law, measured_curve, worth

LENGTHS = np.repeat([0.25, 1.0, 4.0, 16.0], 3)


@pytest.mark.parametrize("exponent", [0.2, 0.5, 1.3])
def test_a_law_without_noise_is_found(exponent):
    law = fit_power_law(LENGTHS, 1.7 + 0.6 * LENGTHS**-exponent)
    assert law.exponent == pytest.approx(exponent, rel=1e-4) and law.floor == pytest.approx(1.7, rel=1e-4)
    assert law(32) == pytest.approx(1.7 + 0.6 * 32**-exponent, rel=1e-6)
    assert law.predict(32).high - law.predict(32).low < 1e-3


def test_the_unit_of_the_lengths_does_not_matter():
    losses = 1.7 + 0.6 * LENGTHS**-0.4 + 0.01 * np.random.default_rng(0).normal(size=len(LENGTHS))
    one, other = fit_power_law(LENGTHS, losses).predict(32), fit_power_law(2**20 * LENGTHS, losses).predict(32 * 2**20)
    assert (one.mean, one.low) == pytest.approx((other.mean, other.low), rel=1e-6)


def test_a_further_run_lies_in_its_interval_as_often_as_it_says():
    drawn, within = np.random.default_rng(0), []
    for _ in range(300):
        noise = 0.01 * drawn.normal(size=len(LENGTHS) + 1)
        try:
            predicted = fit_power_law(LENGTHS, 1.7 + 0.6 * LENGTHS**-0.4 + noise[:-1]).predict(32)
        except ValueError:  # refused by its own runs, by chance
            continue
        within.append(predicted.low <= 1.7 + 0.6 * 32**-0.4 + noise[-1] <= predicted.high)
    assert len(within) > 270 and 0.91 <= np.mean(within) <= 0.98  # two deviations of 300 draws about 0.95


def test_a_law_is_refused_in_five_of_a_hundred_where_it_is_right_and_always_where_its_runs_say_otherwise():
    """400 draws (standard error 1.1 points); a law whose shortest length lies ten deviations off it has an F of its own."""
    drawn, refused = np.random.default_rng(0), {0.0: 0, 0.1: 0}
    for _ in range(400):
        noise = 0.01 * drawn.normal(size=len(LENGTHS))
        for off in refused:
            try:
                fit_power_law(LENGTHS, 1.7 + 0.6 * LENGTHS**-0.4 + noise + off * (LENGTHS == 1.0))
            except ValueError as error:
                refused[off] += "its lengths stray from it by more than runs of one length scatter (p = " in str(error)
    assert abs(refused[0.0] / 400 - 0.05) < 0.03 and refused[0.1] == 400


def test_the_lack_of_fit_is_that_of_the_textbook_and_none_where_nothing_can_be_tested():
    losses = 1.7 + 0.6 * LENGTHS**-0.4 + 0.01 * np.random.default_rng(1).normal(size=len(LENGTHS))
    law = fit_power_law(LENGTHS, losses)
    means = losses.reshape(4, 3).mean(1)
    pure, lack = ((losses.reshape(4, 3) - means[:, None]) ** 2).sum(), 3 * ((means - law(LENGTHS[::3])) ** 2).sum()
    assert law.lack_of_fit == pytest.approx(stats.f.sf(lack / (pure / 8), 1, 8), rel=1e-4)
    for alone in (slice(3, None), slice(None, None, 3)):  # three lengths; one run of each
        assert fit_power_law(LENGTHS[alone], losses[alone]).lack_of_fit is None
    assert fit_power_law(LENGTHS, 1.7 + 0.6 * LENGTHS**-0.4).lack_of_fit > 0.05


def test_what_says_nothing_of_a_law_is_refused():
    for tokens, losses, sentence in (
        ([1, 1, 4, 4], [1, 1, 1, 1], "at least three lengths and four runs, not 2 and 4"),
        ([1, 4, 16], [3, 2, 1], "not 3 and 3"),
        ([0, 1, 4, 16], [4, 3, 2, 1], "one positive length"),
        ([1, 4, 16, 64], [4, 3, 2, np.nan], "one finite loss"),
        ([1, 4, 16, 64], [4, 3, 2], "for each run"),
    ):
        with pytest.raises(ValueError, match=sentence):
            fit_power_law(tokens, losses)


def test_the_tokens_of_a_loss_are_where_the_law_has_it():
    law = fit_power_law(LENGTHS, 1.7 + 0.6 * LENGTHS**-0.4)
    assert law(law.tokens(2.0)) == pytest.approx(2.0)
    assert list(law.tokens([1.6, law(8.0)])) == pytest.approx([np.inf, 8.0])


@pytest.mark.parametrize("unit", [1, 2**20])
def test_what_a_token_is_worth_is_known_of_laws_that_are(unit):
    """a/n with a teacher that leaves the part ρ of it, and has an error as large as n_T tokens leave of the rest."""
    rho, read = 0.1, 64.0
    alone = fit_power_law(unit * LENGTHS, 3 + 1 / LENGTHS)
    distilled = fit_power_law(unit * LENGTHS, 3 + (1 - rho) / read + rho / LENGTHS)
    for n in (1.0, 16.0, read, 256.0):
        assert worth(distilled, alone, unit * n).mean == pytest.approx(1 / (rho + (1 - rho) * n / read), rel=1e-3)


def test_what_a_token_is_worth_lies_in_its_interval_as_often_as_it_says():
    drawn, within = np.random.default_rng(0), []
    true = (0.5 * 4.0**-0.5 / 0.6) ** (-1 / 0.5) / 4.0
    for _ in range(200):
        noise = 0.005 * drawn.normal(size=(2, len(LENGTHS)))
        try:
            distilled, alone = (
                fit_power_law(LENGTHS, 1.7 + b * LENGTHS**-0.5 + e) for b, e in zip((0.5, 0.6), noise, strict=True)
            )
        except ValueError:  # refused by its own runs, by chance
            continue
        found = worth(distilled, alone, 4.0, draws=400)
        within.append(found.low <= true <= found.high)
    assert len(within) > 160 and 0.88 <= np.mean(within) <= 0.99


@pytest.mark.parametrize("runs", [4, 6])
def test_with_few_runs_the_interval_of_the_worth_is_as_wide_as_they_ask(runs):
    lengths = np.array([0.25, 1.0, 4.0, 16.0, 0.25, 16.0])[:runs]
    drawn, within, true = np.random.default_rng(0), [], (0.5 * 4.0**-0.5 / 0.6) ** (-1 / 0.5) / 4.0
    for _ in range(100):
        noise = 0.003 * drawn.normal(size=(2, runs))
        try:
            fits = [fit_power_law(lengths, 1.7 + b * lengths**-0.5 + e) for b, e in zip((0.5, 0.6), noise, strict=True)]
            found = worth(*fits, 4.0, draws=400)
        except ValueError:  # too loose
            continue
        within.append(found.low <= true <= found.high)
    assert len(within) > 80 and 0.88 <= np.mean(within)


def test_what_does_not_fall_has_no_law_and_what_is_no_length_no_worth():
    law = fit_power_law(LENGTHS, 1.7 + 0.6 * LENGTHS**-0.4)
    for losses, sentence in (
        (3.0 + 0 * LENGTHS, "the losses do not fall"),
        (3.0 - 0.5 * LENGTHS**-0.4, "the losses do not fall"),
        (5.0 - 0.02 * LENGTHS, "its exponent would be below 0.01"),
        (1.0 + LENGTHS**-9.0, "its exponent would be above 5"),
    ):
        with pytest.raises(ValueError, match=sentence):
            fit_power_law(LENGTHS, losses)
    for tokens in (0, -1.0, np.inf, np.nan, np.array([1.0, 2.0])):
        for call in (lambda x: worth(law, law, x), law.predict):
            with pytest.raises(ValueError, match="a length is one number, positive and finite"):
                call(tokens)
    for level in (0, 95, -1):
        with pytest.raises(ValueError, match="a level is between 0 and 1"):
            worth(law, law, 1.0, level=level)


def test_a_loss_that_a_student_alone_does_not_reach_is_worth_infinitely_many():
    alone, distilled = (fit_power_law(LENGTHS, floor + 0.6 * LENGTHS**-0.4) for floor in (1.7, 1.0))
    assert worth(distilled, alone, 16.0).mean == np.inf


def test_a_measured_curve_goes_through_its_means_and_inverts_between_them():
    curve = measured_curve(np.repeat([1.0, 4.0, 16.0], 2), [3.1, 2.9, 2.6, 2.4, 1.4, 1.6])
    assert list(curve.means) == pytest.approx([3.0, 2.5, 1.5]) and list(curve.counts) == [2, 2, 2]
    assert list(curve.deviations) == pytest.approx([0.1 * 2**0.5] * 3) and curve.runs == 6
    assert [curve(n) for n in (1, 2, 8, 16)] == pytest.approx([3.0, 2.75, 2.0, 1.5])
    assert np.isnan([curve(0.9), curve(17)]).all()
    assert list(curve.tokens([3.0, 2.75, 2.5, 2.0, 1.5])) == pytest.approx([1, 2, 4, 8, 16])
    assert list(curve.tokens([3.5, 1.4])) == pytest.approx([0.25, np.inf])


@pytest.mark.parametrize("unit", [1, 2**20])
def test_what_a_token_is_worth_needs_no_shape_between_the_lengths_that_were_run(unit):
    """Straight over the logarithm, and twice the tokens ahead: worth two, at every length but those that alone has not reached."""
    lengths, drawn = unit * np.repeat([0.25, 1.0, 4.0, 16.0], 3), 1e-9 * np.random.default_rng(0).normal(size=(2, 12))
    alone, distilled = (
        measured_curve(lengths, 3 - 0.2 * np.log(ahead * lengths / unit) + noise)
        for ahead, noise in zip((1, 2), drawn, strict=True)
    )
    for n in (0.25, 1.0, 3.0, 4.0):
        found = worth(distilled, alone, unit * n)
        assert found.mean == pytest.approx(2) and found.high - found.low < 1e-6
    unknown = worth(distilled, alone, 16.0 * unit)  # more than was run alone: one, and nobody knows how much more
    assert unknown.low == 1 and unknown.mean == unknown.high == np.inf
    assert worth(alone, distilled, 16.0 * unit).mean == pytest.approx(0.5)


@pytest.mark.parametrize("scatter", [(0.02, 0.02, 0.02, 0.02), (0.005, 0.01, 0.04, 0.02), (0.04, 0.02, 0.01, 0.002)])
def test_a_measured_worth_lies_in_its_interval_as_often_as_it_says(scatter):
    """Whatever of the lengths scatters most; with three runs of each the interval may be wider than need be."""
    lengths, drawn, within = np.repeat([0.25, 1.0, 4.0, 16.0], 3), np.random.default_rng(0), []
    for _ in range(200):
        alone, distilled = (
            measured_curve(lengths, 3 - 0.2 * np.log(ahead * lengths) + np.repeat(scatter, 3) * drawn.normal(size=12))
            for ahead in (1, 2)
        )
        found = worth(distilled, alone, 1.0, draws=400)
        within.append(found.low <= 2 <= found.high)
    assert np.mean(within) >= 0.92


def test_runs_of_one_length_that_scatter_more_than_those_of_another_widen_what_is_told_of_it_alone():
    lengths, calm, wild = np.repeat([1.0, 4.0, 16.0], 4), 0.001 * np.tile([-1, 1], 2), 0.1 * np.tile([-1, 1], 2)
    curve = measured_curve(lengths, np.concatenate([3 + calm, 2 + wild, 1 + calm]))
    assert list(curve.deviations) == pytest.approx([0.001154701, 0.1154701, 0.001154701], rel=1e-5)
    drawn = curve.drawn(np.random.default_rng(0), 4000)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=1)
    assert (high - low) / 2 == pytest.approx(3.182 * curve.deviations / 2, rel=0.1)  # Student's t of three degrees


def test_a_law_and_a_measured_curve_can_be_held_against_each_other():
    lengths = np.repeat([1.0, 2.0, 4.0, 8.0, 16.0], 2)
    losses = 1.7 + 0.6 * lengths**-0.5
    law, measured = fit_power_law(lengths, losses), measured_curve(lengths, losses)
    for pair in ((law, measured), (measured, law)):
        assert worth(*pair, 4.0).mean == pytest.approx(1, rel=1e-6)


def test_what_is_no_measured_curve_is_refused():
    for tokens, losses, sentence in (
        ([1, 1, 1], [3, 2, 1], "takes two lengths and two runs of each, not 1, one of them with 3"),
        ([1, 1, 4], [3, 2, 1], "not 2, one of them with 1"),
        ([], [], "not 0, one of them with 0"),
        ([1, 1, 4, 4], [2.0, 2.2, 2.2, 2.1], "the losses do not fall from each length to the next"),
        ([0, 1, 1], [3, 2, 1], "one positive length"),
    ):
        with pytest.raises(ValueError, match=sentence):
            measured_curve(tokens, losses)
    curve = measured_curve([1, 1, 4, 4], [3.0, 3.1, 2.0, 1.9])
    with pytest.raises(ValueError, match="100 draws or more, not 0"):
        worth(curve, curve, 1.0, draws=0)
    with pytest.raises(ValueError, match="measured from 1 to 4 tokens, and not at 8"):
        worth(curve, curve, 8.0)
