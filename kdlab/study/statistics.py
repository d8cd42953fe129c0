"""Means with intervals, differences paired by seed, and differences between many arms."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

Numbers = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Interval:
    """A mean, its confidence interval and the number of runs.

    >>> print(Interval(0.5, 0.4, 0.6, 3))
    0.5 [0.4, 0.6], n = 3
    """

    mean: float
    low: float
    high: float
    n: int

    def __format__(self, spec: str) -> str:
        return f"{self.bracketed(spec)}, n = {self.n}"

    def __str__(self) -> str:
        return f"{self}"

    def __rmul__(self, factor: float) -> "Interval":
        """In another unit, such as percentage points: ``100 * interval``."""
        low, high = sorted((factor * self.low, factor * self.high))
        return Interval(factor * self.mean, low, high, self.n)

    def bracketed(self, spec: str = "+.3f") -> str:
        """Without the number of runs, where that is said elsewhere; a single run has no interval, and a rounded zero no minus.

        >>> (100 * Interval(0.05, 0.04, 0.06, 3)).bracketed("+.1f"), Interval(-0.001, -0.2, 0.2, 3).bracketed(".1f")
        ('+5.0 [+4.0, +6.0]', '0.0 [-0.2, 0.2]')
        """
        spec = re.sub(r"^([+-]?)\.", r"\1z.", spec)
        return f"{self.mean:{spec}}" + (f" [{self.low:{spec}}, {self.high:{spec}}]" if self.n > 1 else "")

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def mean_interval(values: Numbers, level: float = 0.95) -> Interval:
    r"""The mean and its Student-t interval, :math:`\bar x \pm t_{n-1} s/\sqrt n`.

    Raises:
        ValueError: for fewer than two values, which have no interval.
    """
    try:
        from scipy.special import stdtrit  # scipy.stats takes a second to import
    except ImportError:
        raise ImportError("intervals need SciPy: pip install 'kdlab[study]'.") from None

    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or len(x) < 2:
        raise ValueError(f"an interval needs at least two runs, not {x.size}.")
    mean, half = float(x.mean()), float(stdtrit(len(x) - 1, (1 + level) / 2) * x.std(ddof=1) / np.sqrt(len(x)))
    return Interval(mean, mean - half, mean + half, len(x))


def summary(values, level: float = 0.95) -> Interval:
    """:func:`mean_interval`; of a single run its value alone, without an interval.

    >>> print(summary([0.5]))
    0.5, n = 1
    """
    values = list(values)
    return mean_interval(values, level) if len(values) != 1 else Interval(values[0], values[0], values[0], 1)


def ratio_interval(numerators: Numbers, denominators: Numbers, level: float = 0.95) -> Interval:
    r"""A ratio of sums and its interval, where the two were counted together in independent units, such as texts.

    .. math:: r = \frac{\sum_i x_i}{\sum_i y_i}, \qquad r \pm t_{n-1} \frac{s(x - r y)}{\bar y \sqrt n}

    Source: the linearised ratio estimator; Cochran (1977), Sampling Techniques, eq. 6.13.

    >>> print(ratio_interval([1, 1, 1], [2, 2, 2]))
    0.5 [0.5, 0.5], n = 3
    """
    x, y = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
    if x.shape != y.shape or not y.sum() > 0:
        raise ValueError(
            f"a ratio needs as many numerators as denominators, and these positive in sum: {x.size}, {y.size}."
        )
    ratio = x.sum() / y.sum()
    spread = mean_interval((x - ratio * y) / y.mean(), level)
    return Interval(*(float(ratio + shift) for shift in (0, spread.low, spread.high)), spread.n)


def paired_difference(treated: Numbers, control: Numbers, level: float = 0.95) -> Interval:
    """Mean and interval of ``treated - control``, run by run: entry ``i`` of both must share its seed.

    >>> f"{paired_difference([3.0, 4.0, 5.0], [1.0, 2.0, 3.0]):.1f}"
    '2.0 [2.0, 2.0], n = 3'
    """
    treated, control = np.asarray(treated, dtype=float), np.asarray(control, dtype=float)
    if treated.shape != control.shape:
        raise ValueError(f"paired runs must be as many, not {treated.size} and {control.size}.")
    return mean_interval(treated - control, level)


@dataclass(frozen=True)
class Difference(Interval):
    """A mean difference with its interval, and what the interval rests on.

    Attributes:
        p: two-sided, corrected as the interval is; 1 where it cannot be below 1.
        df: degrees of freedom of the variance.
        basis: in words, for a sentence: "variance pooled over 10 arms, paired by seed".
    """

    p: float = 1.0
    df: float = math.inf
    basis: str = ""


#: Arms whose variances Bartlett's test tells apart at this level do not share one.
UNEQUAL = 0.01

#: A pair that scatters more than the other arms, by an F test at this level, has a variance of its own.
WIDER = 0.1

CORRECTIONS = ("dunnett", "tukey", "holm", None)


def against(
    values: Mapping[str, Mapping[int, float]],
    control: str,
    arms: Collection[str] | None = None,
    *,
    correction: str | None = "dunnett",
    level: float = 0.95,
    paired: bool | None = None,
    pooled: bool | None = None,
) -> dict[str, Difference]:
    r"""Every arm minus ``control``, with a variance pooled over all arms that are given, corrected for their number.

    Paired by seed, the runs are blocks: :math:`x_{as} = \mu_a + \beta_s + \varepsilon_{as}`, and with :math:`k` arms of the
    same :math:`n` seeds

    .. math:: \bar x_a - \bar x_0 \pm d\,\hat\sigma\sqrt{2/n}, \qquad \hat\sigma^2 \text{ of } (k-1)(n-1) \text{ degrees of freedom,}

    which for two arms is the paired t interval; where runs are lost, means are over the :math:`n` seeds that arm and control
    share, and :math:`\hat\sigma^2` is by least squares. Unpaired, :math:`\hat\sigma^2` is the variance within arms, of
    :math:`\sum_a (n_a - 1)` degrees of freedom. :math:`d` is Student's, Dunnett's, Tukey's or Holm's.

    Few runs do not tell variances apart. Of twelve arms of three runs, of which just the two compared scatter twice as much as the
    others, a 5 % interval errs in 21 of 100 where all are pooled, and by ``WIDER`` still in 13; where that matters, ``pooled=False``.

    Args:
        values: by arm and seed. All of these arms lend their variance, compared or not; those of one run or no spread do not.
        control: what is subtracted.
        arms: those compared; all others if None.
        correction: ``"dunnett"`` (all intervals hold at once, for a control that was named beforehand), ``"tukey"`` (for any, such as
            the arm of the best mean), ``"holm"`` (an interval excludes zero where Holm rejects), None (each holds alone).
        level: of confidence.
        paired: by seed; if None, each arm that shares two seeds or more with the control.
        pooled: if None, unless Bartlett's test says at ``UNEQUAL`` that the arms' variances differ; and a pair whose own is larger than
            that of the rest, by an F test at ``WIDER``, has its own in place of the pooled one, which makes its interval wider. Where
            variances are not pooled each difference has its own (paired t, or Welch's), and "dunnett" and "tukey" become Bonferroni's,
            over all compared, or all pairs.

    Raises:
        ValueError: for an arm without values, or an unknown correction; for arms of fewer than two runs, or two seeds shared if ``paired``.

    Source: Dunnett (1955), J. Am. Stat. Assoc. 50; Kramer (1956), Biometrics 12, for Tukey's; Holm (1979), Scand. J. Stat. 6.
    """
    from scipy.special import stdtrit

    arms = [a for a in values if a != control] if arms is None else list(arms)
    if correction not in CORRECTIONS:
        raise ValueError(f'a correction is "dunnett", "tukey", "holm" or None, not {correction!r}.')
    for name in (control, *arms):
        if not values.get(name):
            raise ValueError(f"{name!r} has no values; there are {', '.join(values)}.")
    if control in arms or not arms:
        raise ValueError("a comparison needs arms other than its control.")
    seeds = list(values[control])
    n0 = len(seeds)
    if n0 == 1 and all(len(values[a]) == 1 for a in arms):  # numbers, not samples
        shift = {a: next(iter(values[a].values())) - next(iter(values[control].values())) for a in arms}
        return {a: Difference(d, d, d, 1, float(d == 0)) for a, d in shift.items()}
    if min(len(values[a]) for a in (control, *arms)) < 2:
        raise ValueError("a difference with an interval needs two runs of each arm.")
    common = {a: [s for s in seeds if s in values[a]] for a in arms}
    if paired and min(map(len, common.values())) < 2:
        raise ValueError("paired arms must have two of the same seeds or more; use paired=False.")
    by_seed = {a: len(common[a]) > 1 if paired is None else paired for a in arms}

    pools = {way: _pooled_variance(values, seeds if way else None) for way in set(by_seed.values())}
    for way, (_, df, lent) in pools.items():
        unequal = len(lent) > 2 and df and _spreads_differ(values, lent, seeds if way else None)
        if not df or pooled is False or (pooled is None and unequal):
            pools[way] = 0.0, 0, lent
    alone, own, wider, runs = {}, set(), set(), {}
    for a in arms:  # mean, standard error, degrees of freedom of each difference
        ours, theirs = ({s: values[b][s] for s in common[a]} if by_seed[a] else values[b] for b in (a, control))
        mean = float(np.mean(list(ours.values())) - np.mean(list(theirs.values())))
        error, free = _own_error(ours, theirs, by_seed[a])
        (variance, df, lent), parts = pools[by_seed[a]], 1 / len(ours) + 1 / len(theirs)
        if not df or any(len(set(of.values())) == 1 for of in (ours, theirs)):
            own.add(a)
        else:
            mine, rest = error**2 / parts, {b: values[b] for b in lent if b not in (a, control)}
            if pooled is None and mine > variance:
                if _scatters_more(mine, free, *_pooled_variance(rest, seeds if by_seed[a] else None)[:2]):
                    variance = mine
                    wider.add(a)
            error, free = math.sqrt(variance * parts), df
        alone[a], runs[a] = (mean, error, free), len(ours)
    raw = {a: _p_value(mean, error, free) for a, (mean, error, free) in alone.items()}
    tail, corrected, critical = dict.fromkeys(arms, 1 - level), dict(raw), None  # each interval's error, and each p
    if correction == "holm":
        tail, corrected = _holm(raw, 1 - level)
    elif correction and len(arms) > 1 and (own or len(pools) > 1):
        tests = len(arms) if correction == "dunnett" else math.comb(len(arms) + 1, 2)
        tail = dict.fromkeys(arms, (1 - level) / tests)
        corrected = {a: min(1.0, tests * p) for a, p in raw.items()}
    elif correction and len(arms) > 1:
        ((_, free, _),) = pools.values()
        t = {a: round(abs(mean / error), 9) if error else math.inf for a, (mean, error, _) in alone.items()}
        if correction == "dunnett":
            loads = tuple(sorted(math.sqrt(runs[a] / (2 * n0 if by_seed[a] else runs[a] + n0)) for a in arms))
            critical, p = dunnett_quantile(loads, free, level), {a: _dunnett_p(t[a], loads, free) for a in arms}
        else:
            many = len(arms) + 1
            critical, p = tukey_quantile(many, free, level), {a: _tukey_p(t[a], many, free) for a in arms}
        corrected = {a: max(raw[a], p[a]) for a in arms}  # far out rounding is larger than p
    found = {}
    for a, (mean, error, free) in alone.items():
        half = float(error * (critical or stdtrit(free, 1 - tail[a] / 2))) if error else 0.0
        lent = pools[by_seed[a]][2]
        words = [
            f"variance pooled over {len(lent)} arms" + (", or a pair's own where that is larger" if wider else "")
            if a not in own and len(lent) > 2
            else "",
            "paired by seed" if by_seed[a] else "not paired",
            ("Tukey's" if critical else "Bonferroni's over all pairs")
            if correction == "tukey" and len(arms) > 1
            else "",
        ]
        found[a] = Difference(
            mean, mean - half, mean + half, runs[a], corrected[a], free, ", ".join(filter(None, words))
        )
    return found


@dataclass(frozen=True)
class Pairing:
    """What it brings to compare run by run.

    Attributes:
        correlation: of two arms' runs of one seed, on average over arms (intraclass; 0: seeds say nothing of a run).
        variance_ratio: of a difference, paired over unpaired; below 1 pairing helps.
        p: of the F test that seeds do nothing.
        arms: how many.
        seeds: how many.
    """

    correlation: float
    variance_ratio: float
    p: float
    arms: int
    seeds: int


def pairing(values: Mapping[str, Mapping[int, float]]) -> Pairing:
    r"""How much pairing by seed helps, from arms of the same seeds.

    With the mean squares of seeds and of residuals, :math:`M_s` and :math:`M_e`, of ``arms + seeds``:
    :math:`\hat\rho = (M_s - M_e)/(M_s + (k-1) M_e)`, and a paired difference has the variance :math:`2M_e/n` where an unpaired
    one has :math:`2\hat\sigma^2/n`, :math:`\hat\sigma^2` within arms. Source: Shrout & Fleiss (1979), Psychol. Bull. 86.

    Raises:
        ValueError: for fewer than two arms or seeds, or seeds that arms do not share.
    """
    from scipy.special import fdtrc

    seeds = list(next(iter(values.values())))
    if len(values) < 2 or len(seeds) < 2 or any(of.keys() != set(seeds) for of in values.values()):
        raise ValueError("pairing is judged from two arms or more that have the same two seeds or more.")
    x = np.array([[of[s] for s in seeds] for of in values.values()])
    k, n = x.shape
    rest = x - x.mean(1, keepdims=True) - x.mean(0) + x.mean()
    residual = float((rest**2).sum() / ((k - 1) * (n - 1)))
    between = float(k * x.mean(0).var(ddof=1))
    within = float(x.var(axis=1, ddof=1).mean())
    if not residual:
        raise ValueError("arms that differ by constants leave nothing to judge pairing by.")
    return Pairing(
        (between - residual) / (between + (k - 1) * residual),
        residual / within,
        float(fdtrc(n - 1, (k - 1) * (n - 1), between / residual)),
        k,
        n,
    )


def smallest_p(runs: int, *, paired: bool = True) -> float:
    r"""The smallest two-sided p that so many runs of two arms can reach without a normal distribution.

    By signs of paired differences :math:`2/2^n`, by exchange of unpaired runs :math:`2/\binom{2n}{n}`.

    >>> smallest_p(3), smallest_p(3, paired=False), smallest_p(6)
    (0.25, 0.1, 0.03125)
    """
    return 2 / 2**runs if paired else 2 / math.comb(2 * runs, runs)


def at_equal(
    values: Mapping[str, Mapping[int, float]], held: Mapping[str, Mapping[int, float]], level: float = 0.95
) -> dict[str, Interval]:
    r"""A measure at equal values of another: each arm's distance from the straight line through all the other arms' means.

    Fidelity at equal accuracy: with agreement :math:`y` and accuracy :math:`x`, the line through the means of the other
    :math:`k - 1` arms by least squares predicts :math:`\hat y_a` at :math:`x_a`. The interval is that of a new arm of the same
    kind, :math:`y_a - \hat y_a \pm t_{k-3}\, s \sqrt{1 + \tfrac1{k-1} + (x_a - \bar x)^2/S_{xx}}`: it excludes zero
    where the arm lies off the line by more than arms do. It holds alone, for an arm that was named beforehand.

    Args:
        values: what is compared, by arm and seed.
        held: what is held equal.

    Raises:
        ValueError: for fewer than four arms, or arms that do not differ in ``held``.

    Source: Weisberg (2005), Applied Linear Regression, eq. 9.7 (outlier test).
    """
    from scipy.special import stdtrit

    if values.keys() != held.keys() or len(values) < 4:
        raise ValueError("a line takes four arms or more, and both measures of each.")
    y, x = ({a: float(np.mean(list(of.values()))) for a, of in m.items()} for m in (values, held))
    found = {}
    for arm in values:
        rest = [a for a in values if a != arm]
        xs, ys = np.array([x[a] for a in rest]), np.array([y[a] for a in rest])
        spread = ((xs - xs.mean()) ** 2).sum()
        if not spread:
            raise ValueError("arms that are equal in what is held equal have no line.")
        slope = ((xs - xs.mean()) * ys).sum() / spread
        residual = ys - ys.mean() - slope * (xs - xs.mean())
        free = len(rest) - 2
        error = math.sqrt((residual**2).sum() / free * (1 + 1 / len(rest) + (x[arm] - xs.mean()) ** 2 / spread))
        off = float(y[arm] - ys.mean() - slope * (x[arm] - xs.mean()))
        half = float(stdtrit(free, (1 + level) / 2) * error)
        found[arm] = Interval(off, off - half, off + half, len(values[arm]))
    return found


def off_line(
    values: Mapping[str, Mapping[int, float]], held: Mapping[str, Mapping[int, float]]
) -> dict[str, dict[int, float]]:
    r"""A measure at equal values of another, run by run: what is left of it by the straight line through all runs.

    :math:`y_{as} - \hat y(x_{as})` by arm :math:`a` and seed :math:`s`, for :func:`against`: differences of arms, such as
    an intervention and its control, at equal :math:`x`. The line is taken as known: :func:`at_equal` counts its uncertainty.

    Args:
        values: what is compared, by arm and seed.
        held: what is held equal.

    Raises:
        ValueError: for runs that do not have both measures, or do not differ in ``held``.
    """
    if {a: of.keys() for a, of in values.items()} != {a: of.keys() for a, of in held.items()}:
        raise ValueError("a line takes both measures of each run.")
    x, y = np.array([(held[a][s], v) for a, of in values.items() for s, v in of.items()]).T
    if not np.ptp(x):
        raise ValueError("runs that are equal in what is held equal have no line.")
    line = np.poly1d(np.polyfit(x, y, 1))
    return {a: {s: float(v - line(held[a][s])) for s, v in of.items()} for a, of in values.items()}


def _pooled_variance(values, seeds):
    """Variance, degrees of freedom and the arms that lend it: residuals of arms + seeds, or within arms if ``seeds`` is None."""
    seen = {a: [of[s] for s in seeds or of if s in of] for a, of in values.items()}
    lent = [a for a, of in seen.items() if len(set(of)) > 1]
    rows, df = _residuals(values, lent, seeds)
    squares = sum(float(row @ row) for row in rows)
    rounding = 1e-24 * sum(v * v for a in lent for v in seen[a])
    return (squares / df if squares > rounding else 0.0, df, lent) if df > 0 else (0.0, 0, lent)


def _residuals(values, arms, seeds):
    """What arms, and seeds if there are, leave by least squares, a row an arm; and its degrees of freedom. An arm may lack a seed."""
    if seeds is None:
        rows = [np.array(list(values[a].values())) for a in arms]
        return [row - row.mean() for row in rows], sum(len(row) - 1 for row in rows)
    x = np.array([[values[a].get(s, math.nan) for s in seeds] for a in arms]).reshape(len(arms), len(seeds))
    x = x[:, ~np.isnan(x).all(0)]
    close, df = 1e-13 * np.nanmax(np.abs(x), initial=0.0), int((~np.isnan(x)).sum()) - sum(x.shape) + 1
    for _ in range(1000 if x.size else 0):  # once, where no arm lacks a seed
        x = x - np.nanmean(x, 1, keepdims=True)
        x = x - np.nanmean(x, 0)
        if np.abs(np.nanmean(x, 1)).max() <= close:
            break
    return [row[~np.isnan(row)] for row in x], df


def _scatters_more(own: float, free: float, variance: float, df: int) -> bool:
    """Whether a pair's own variance is larger than that of the rest of the arms, by an F test at ``WIDER``."""
    from scipy.special import fdtri

    return df > 0 and own > fdtri(free, df, 1 - WIDER) * variance


def _spreads_differ(values, arms, seeds) -> bool:
    """Of the values, or of what seeds leave of them: one wild arm shows in the first alone, since it moves every seed's mean."""
    raw = [list(values[a].values()) for a in arms]
    rest = raw if seeds is None else _residuals(values, arms, seeds)[0]
    return min(_bartlett(raw), _bartlett(rest)) < UNEQUAL


def _bartlett(rows) -> float:
    """p of Bartlett's test that the rows have one variance; 0 if one of them has none. Source: Snedecor & Cochran (1989), p. 251."""
    from scipy.special import chdtrc

    free = np.array([len(row) - 1 for row in rows])
    variances = np.array([np.var(row, ddof=1) for row in rows])
    if not (variances > 1e-20 * variances.max()).all():
        return 0.0
    total = free.sum()
    statistic = total * np.log(free @ variances / total) - free @ np.log(variances)
    return float(chdtrc(len(rows) - 1, statistic / (1 + ((1 / free).sum() - 1 / total) / (3 * len(rows) - 3))))


def _own_error(ours, theirs, paired):
    """Standard error and degrees of freedom of one difference: paired t, or Welch's."""
    if paired:
        d = np.array([ours[s] - theirs[s] for s in theirs])
        return float(d.std(ddof=1) / math.sqrt(len(d))), len(d) - 1
    parts = [np.var(list(x.values()), ddof=1) / len(x) for x in (ours, theirs)]
    total = sum(parts)
    if not total:
        return 0.0, len(ours) + len(theirs) - 2
    return math.sqrt(total), total**2 / sum(p**2 / (len(x) - 1) for p, x in zip(parts, (ours, theirs), strict=True))


def _p_value(mean, error, df) -> float:
    from scipy.special import stdtr

    return float(2 * stdtr(df, -abs(mean) / error)) if error else float(mean == 0)


def _holm(p: dict, alpha: float):
    """Each interval's error, and each corrected p: an interval excludes zero exactly where Holm's procedure rejects."""
    order, m = sorted(p, key=p.get), len(p)
    corrected, highest = {}, 0.0
    for rank, a in enumerate(order):
        highest = max(highest, min(1.0, (m - rank) * p[a]))
        corrected[a] = highest
    rejected = sum(value <= alpha for value in corrected.values())
    return {a: alpha / (m - min(rank, rejected, m - 1)) for rank, a in enumerate(order)}, corrected


@lru_cache(maxsize=1000)
def dunnett_quantile(loads: tuple[float, ...], df: float, level: float = 0.95) -> float:
    r"""Dunnett's two-sided critical value :math:`d`: :math:`P(\max_i |T_i| \le d)` is ``level``.

    Args:
        loads: :math:`\lambda_i = \sqrt{n_i/(n_i+n_0)}` of each arm; the :math:`T_i` have correlations
            :math:`\lambda_i\lambda_j`, ½ for equal numbers of runs.
        df: degrees of freedom of the common variance.
        level: of confidence.

    >>> round(dunnett_quantile((0.5**0.5,) * 3, 20), 2)
    2.54
    """
    from scipy import optimize

    return float(optimize.brentq(lambda d: 1 - level - _dunnett_p(d, loads, df), 0.1, 1e4, xtol=1e-8))


@lru_cache(maxsize=10_000)
def _dunnett_p(t: float, loads: tuple[float, ...], df: float) -> float:
    r""":math:`1 - \int\!\int \prod_i P(|\lambda_i z + \sqrt{1-\lambda_i^2}\,\varepsilon| \le t s)\,\phi(z)\,f_{df}(s)\,dz\,ds`."""
    from scipy import special

    if math.isinf(t):
        return 0.0
    z, weight, s, step = _grid(df)
    inside = np.ones((len(s), len(z)))
    for load, times in zip(*np.unique(loads, return_counts=True), strict=True):
        rest = math.sqrt(1 - load**2)
        inside *= (special.ndtr((t * s - load * z) / rest) - special.ndtr((-t * s - load * z) / rest)) ** times
    return float(min(1.0, max(0.0, step @ (1 - inside @ weight))))


@lru_cache(maxsize=1000)
def tukey_quantile(arms: int, df: float, level: float = 0.95) -> float:
    r"""Tukey's critical value :math:`q/\sqrt2` for all differences between so many arms: :math:`P(\max_{ij} |T_{ij}| \le q/\sqrt2)` is ``level``.

    Args:
        arms: how many, the control among them.
        df: degrees of freedom of the common variance.
        level: of confidence.

    >>> round(2**0.5 * tukey_quantile(3, 20), 2)
    3.58
    """
    from scipy import optimize

    return float(optimize.brentq(lambda d: 1 - level - _tukey_p(d, arms, df), 0.1, 1e4, xtol=1e-8))


@lru_cache(maxsize=10_000)
def _tukey_p(t: float, arms: int, df: float) -> float:
    r""":math:`1 - \int\!\int k\,(\Phi(z) - \Phi(z - \sqrt2\,t s))^{k-1}\,\phi(z)\,f_{df}(s)\,dz\,ds`: one arm is the highest, at z."""
    from scipy import special

    if math.isinf(t):
        return 0.0
    z, weight, s, step = _grid(df)
    inside = arms * (special.ndtr(z) - special.ndtr(z - math.sqrt(2) * t * s)) ** (arms - 1)
    return float(min(1.0, max(0.0, step @ (1 - inside @ weight))))


@lru_cache(maxsize=100)
def _grid(df: float):
    """Points and weights of z, standard normal, and of s, the root of chi square over its degrees of freedom.

    Those of s crowd where s is small (a quantile of :math:`v^4`), on which far tails of t rest.
    """
    from scipy import stats

    u, step = np.polynomial.legendre.leggauss(100)
    z, v = 9 * u, (u + 1) / 2
    s = np.sqrt(stats.chi2.ppf(v**4, df) / df)[:, None]
    return z, 9 * step * stats.norm.pdf(z), s, 2 * step * v**3
