"""Means with intervals, and differences paired by seed."""

from dataclasses import dataclass

import numpy as np


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
        """Without the number of runs, where that is said elsewhere.

        >>> (100 * Interval(0.05, 0.04, 0.06, 3)).bracketed("+.1f")
        '+5.0 [+4.0, +6.0]'
        """
        return f"{self.mean:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def mean_interval(values, level: float = 0.95) -> Interval:
    r"""The mean and its Student-t interval, :math:`\bar x \pm t_{n-1} s/\sqrt n`.

    Raises:
        ValueError: for fewer than two values, which have no interval.
    """
    try:
        from scipy.stats import t
    except ImportError:
        raise ImportError("intervals need SciPy: pip install 'kdlab[study]'.") from None

    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or len(x) < 2:
        raise ValueError(f"an interval needs at least two runs, not {x.size}.")
    half = t.ppf((1 + level) / 2, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))
    return Interval(x.mean(), x.mean() - half, x.mean() + half, len(x))


def ratio_interval(numerators, denominators, level: float = 0.95) -> Interval:
    r"""A ratio of sums and its interval, where the two were counted together in independent units, such as texts.

    .. math:: r = \frac{\sum_i x_i}{\sum_i y_i}, \qquad r \pm t_{n-1} \frac{s(x - r y)}{\bar y \sqrt n}

    Source: the linearised ratio estimator; Cochran (1977), Sampling Techniques, eq. 6.13.

    >>> print(ratio_interval([1, 1, 1], [2, 2, 2]))
    0.5 [0.5, 0.5], n = 3
    """
    x, y = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
    if x.shape != y.shape or not y.sum() > 0:
        raise ValueError(f"a ratio needs as many numerators as denominators, and these positive in sum: {x.size}, {y.size}.")
    ratio = x.sum() / y.sum()
    spread = mean_interval((x - ratio * y) / y.mean(), level)
    return Interval(*(float(ratio + shift) for shift in (0, spread.low, spread.high)), spread.n)


def paired_difference(treated, control, level: float = 0.95) -> Interval:
    """Mean and interval of ``treated - control``, run by run: entry ``i`` of both must share its seed.

    >>> f"{paired_difference([3.0, 4.0, 5.0], [1.0, 2.0, 3.0]):.1f}"
    '2.0 [2.0, 2.0], n = 3'
    """
    treated, control = np.asarray(treated, dtype=float), np.asarray(control, dtype=float)
    if treated.shape != control.shape:
        raise ValueError(f"paired runs must be as many, not {treated.size} and {control.size}.")
    return mean_interval(treated - control, level)
