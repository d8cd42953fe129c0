r"""How a loss falls with what was read: :math:`L(D) = E + B D^{-β}`, fitted, with an interval for a length that was not run; or as it was measured.

The form is that of Hoffmann et al. (2022) for one size of model, which Busbridge et al. (2025) extend to distillation. With three parameters, a fit says
nothing of fewer than three lengths, and its extrapolation is to be predicted before it is run. Young models fall in other ways: a
:class:`MeasuredCurve` goes straight from length to length, and says nothing beyond its last. Two curves of either kind say what a token of the one is
:func:`worth` in tokens of the other.
"""

from dataclasses import dataclass

import numpy as np

from .statistics import Interval


@dataclass(frozen=True, eq=False)
class PowerLaw:
    r"""A fitted :math:`L(D) = E + B (D/D_0)^{-β}`.

    Attributes:
        floor, scale, exponent: :math:`E`, :math:`B` and :math:`β`.
        unit: :math:`D_0`, the geometric mean of the lengths: there the loss is ``floor + scale``.
        covariance: of the three, shape ``(3, 3)``, to first order.
        deviation: of single runs about the law.
        runs: how many it was fitted to.
        lack_of_fit: p of the test that the means of the lengths stray from the form by no more than runs of one length do; None where
            there is nothing to test it by: as many lengths as parameters, or one run of each.
    """

    floor: float
    scale: float
    exponent: float
    unit: float
    covariance: np.ndarray
    deviation: float
    runs: int
    lack_of_fit: float | None = None

    def __call__(self, tokens):
        """The loss after so many tokens, a number or an array."""
        return self.floor + self.scale * (np.asarray(tokens, dtype=float) / self.unit) ** -self.exponent

    def predict(self, tokens: float, level: float = 0.95) -> Interval:
        """The loss of one further run of this length: the law's own uncertainty, to first order, and a run's deviation from it.

        Raises:
            ValueError: for a length that is not positive and finite, or a level outside (0, 1).
        """
        from scipy.special import stdtrit

        _check(tokens, level)
        slope = _slopes(np.array([tokens / self.unit]), self.scale, self.exponent)[0]
        error = np.sqrt(slope @ self.covariance @ slope + self.deviation**2)
        half, mean = stdtrit(self.runs - 3, (1 + level) / 2) * error, float(self(tokens))
        return Interval(mean, float(mean - half), float(mean + half), self.runs)

    def tokens(self, loss):
        """How many tokens bring the loss down to this, a number or an array: infinitely many at the floor and below.

        >>> D = np.array([1.0, 1.0, 4.0, 16.0, 64.0])
        >>> law = fit_power_law(D, 2 + 3 / np.sqrt(D))
        >>> round(float(law.tokens(2.15))), float(law.tokens(1.9))
        (400, inf)
        """
        return _inverse(np.asarray(loss, dtype=float), self.floor, self.scale, self.exponent) * self.unit

    def drawn(self, generator: np.random.Generator, draws: int) -> np.ndarray:
        """Floors, scales and exponents that the runs allow, shape ``(3, draws)``: Student's t about the fit, of its degrees of freedom."""
        free = self.runs - 3
        about = generator.multivariate_normal(np.zeros(3), self.covariance, draws).T
        return np.array([[self.floor], [self.scale], [self.exponent]]) + about * np.sqrt(
            free / generator.chisquare(free, draws)
        )

    @property
    def _reach(self):
        """Up to how many tokens something is known of it."""
        return np.inf

    def _falling(self, drawn):
        return (drawn[1:] > 0).all(0)

    def _losses(self, drawn, tokens):
        floor, scale, exponent = drawn
        return floor + scale * (tokens / self.unit) ** -exponent

    def _tokens(self, drawn, losses):
        return _inverse(losses, *drawn) * self.unit


@dataclass(frozen=True, eq=False)
class MeasuredCurve:
    """A loss as it was measured: its mean at each length that was run, and between them a straight line over the logarithm of the tokens.

    The line is an assumption, too: where the loss falls ever more slowly it lies above it, so that too many tokens seem to be needed (for lengths
    a factor of four apart, and a loss that falls as :math:`D^{-1/2}`, up to an eighth too many).

    Attributes:
        lengths: that were run, rising, shape ``(lengths,)``.
        means: the losses there.
        counts: how many runs each length has, two or more.
        deviations: of single runs about their length's mean; each length has its own, since longer trainings may scatter more, or less.
    """

    lengths: np.ndarray
    means: np.ndarray
    counts: np.ndarray
    deviations: np.ndarray

    @property
    def runs(self) -> int:
        return int(self.counts.sum())

    def tokens(self, loss):
        """How many tokens bring the loss down to this, a number or an array; left of the first length along the first line, and infinitely many
        beyond the last, of which nothing is known.

        >>> curve = measured_curve([1, 1, 4, 4], [3.1, 2.9, 2.1, 1.9])
        >>> round(float(curve.tokens(2.5)), 6), float(curve.tokens(1.9))
        (2.0, inf)
        """
        return self._tokens(self.means[:, None], np.ravel(loss)).reshape(np.shape(loss))

    def __call__(self, tokens):
        """The loss after so many tokens, a number or an array, positive; NaN outside the lengths that were run."""
        return np.interp(np.log(tokens), np.log(self.lengths), self.means, left=np.nan, right=np.nan)

    def drawn(self, generator: np.random.Generator, draws: int) -> np.ndarray:
        """Means that the runs allow, shape ``(lengths, draws)``: Student's t about those measured, of the degrees of freedom of their length."""
        free = self.counts[:, None] - 1
        error = (self.deviations / np.sqrt(self.counts))[:, None]
        shape = len(self.lengths), draws
        return self.means[:, None] + error * generator.normal(size=shape) * np.sqrt(
            free / generator.chisquare(free, shape)
        )

    @property
    def _reach(self):
        return self.lengths[-1]

    def _falling(self, drawn):
        return (np.diff(drawn, axis=0) < 0).all(0)

    def _losses(self, drawn, tokens):
        if not self.lengths[0] <= tokens <= self.lengths[-1]:
            raise ValueError(
                f"measured from {self.lengths[0]:g} to {self.lengths[-1]:g} tokens, and not at {tokens:g}."
            )
        place = np.interp(np.log(tokens), np.log(self.lengths), np.arange(len(self.lengths)))
        piece = min(int(place), len(self.lengths) - 2)
        return drawn[piece] + (place - piece) * (drawn[piece + 1] - drawn[piece])

    def _tokens(self, drawn, losses):
        """Of each column of means that fall, where it has the loss of that column; or of one column, where it has each loss."""
        piece = np.clip((losses < drawn).sum(0) - 1, 0, len(drawn) - 2)
        upper, lower = (
            np.take_along_axis(np.broadcast_to(drawn, (len(drawn), len(losses))), i[None], 0)[0]
            for i in (piece, piece + 1)
        )
        logs = np.log(self.lengths)
        part = (upper - losses) / (upper - lower)
        with np.errstate(over="ignore"):
            found = np.exp(logs[piece] + part * (logs[piece + 1] - logs[piece]))
        return np.where(losses < drawn[-1], np.inf, found)


def worth(
    distilled: PowerLaw | MeasuredCurve,
    alone: PowerLaw | MeasuredCurve,
    tokens: float,
    *,
    level: float = 0.95,
    draws: int = 4000,
) -> Interval:
    r"""What a token of a distilled student is worth, on average over so many, in tokens of a student alone: :math:`L_a^{-1}(L_d(D)) / D`.

    Above one, distilling is ahead at equal tokens; above the price of a token, it is ahead at equal compute.

    The interval has the quantiles over curves that the runs allow (:meth:`PowerLaw.drawn`, :meth:`MeasuredCurve.drawn`; those that fall); it
    ends at infinity where the student alone may not come down to the distilled one's loss, or not within the lengths that were measured; of
    these the last is then what its lower end counts.

    Args:
        distilled, alone: fitted laws or measured curves, of lengths in one unit.
        tokens: :math:`D`, that the distilled student has read.
        level: of confidence.
        draws: of pairs of curves, 100 or more.

    Raises:
        ValueError: for too few draws; for a length that is not positive and finite, or not among those of a measured curve; a level outside (0, 1); runs so loose
            that half of what they allow does not fall.

    >>> D = np.array([1.0, 1.0, 4.0, 16.0, 64.0])
    >>> alone, distilled = (fit_power_law(D, 2 + scale / np.sqrt(D)) for scale in (3, 1.5))
    >>> f"{worth(distilled, alone, 16).mean:.2f}"
    '4.00'
    """
    _check(tokens, level)
    if draws < 100:
        raise ValueError(f"an interval takes 100 draws or more, not {draws!r}.")
    generator = np.random.default_rng(0)
    ours, theirs = (law.drawn(generator, draws) for law in (distilled, alone))
    falling = distilled._falling(ours) & alone._falling(theirs)
    if falling.mean() < 0.5:
        raise ValueError("the two curves say too little of what a token is worth: run more lengths, or more seeds.")
    found = alone._tokens(theirs[:, falling], distilled._losses(ours[:, falling], tokens)) / tokens
    low, high = (
        np.quantile(of, part, method="closest_observation")
        for of, part in ((np.minimum(found, alone._reach / tokens), (1 - level) / 2), (found, (1 + level) / 2))
    )
    mean = float(alone.tokens(distilled(tokens))) / tokens
    return Interval(mean, float(low), float(high), min(distilled.runs, alone.runs))


def _check(tokens: float, level: float) -> None:
    if np.ndim(tokens) or not 0 < tokens < np.inf:
        raise ValueError(f"a length is one number, positive and finite, not {tokens!r}.")
    if not 0 < level < 1:
        raise ValueError(f"a level is between 0 and 1, such as 0.95, not {level!r}.")


def _runs(tokens, losses) -> tuple[np.ndarray, np.ndarray]:
    """One length and one loss for each run."""
    tokens, losses = (np.asarray(x, dtype=float) for x in (tokens, losses))
    if (
        tokens.ndim != 1
        or tokens.shape != losses.shape
        or not np.isfinite(losses).all()
        or not (np.isfinite(tokens) & (tokens > 0)).all()
    ):
        raise ValueError("a curve is made of one positive length and one finite loss for each run.")
    return tokens, losses


def measured_curve(tokens, losses) -> MeasuredCurve:
    """The means at each length, and the deviation of runs about them.

    Args:
        tokens: how much each run read, shape ``(runs,)``, positive.
        losses: of the same runs.

    Raises:
        ValueError: for what is not finite or not positive, fewer than two lengths, or a length without two runs; for means that do not fall.

    >>> float(measured_curve([1, 1, 4, 4], [3.1, 2.9, 2.1, 1.9])(2.0))
    2.5
    """
    tokens, losses = _runs(tokens, losses)
    lengths, which, counts = np.unique(tokens, return_inverse=True, return_counts=True)
    if len(lengths) < 2 or counts.min() < 2:
        raise ValueError(
            f"a measured curve takes two lengths and two runs of each, not {len(lengths)}, one of them with {min(counts, default=0)}."
        )
    means = np.bincount(which, losses) / counts
    if (np.diff(means) >= 0).any():
        raise ValueError("the losses do not fall from each length to the next: run more seeds.")
    deviations = np.array([losses[which == place].std(ddof=1) for place in range(len(lengths))])
    return MeasuredCurve(lengths, means, counts, deviations)


#: A law whose lengths stray from its form at this level, by what their own runs scatter, is none.
STRAYS = 0.05


def fit_power_law(tokens, losses) -> PowerLaw:
    r"""The law whose squared distance from all runs is least, if runs of one length do not say that it has another form.

    For each exponent, floor and scale are a linear fit; the exponent is then found in one dimension. Where there are more lengths than
    parameters, :math:`m > 3`, and runs of one length, the form is tested by what these scatter:

    .. math:: F = \frac{\sum_j n_j\,(\bar L_j - \hat L(D_j))^2 / (m - 3)}{\sum_{ji} (L_{ji} - \bar L_j)^2 / (n - m)}

    Args:
        tokens: how much each run read, shape ``(runs,)``, positive.
        losses: of the same runs.

    Raises:
        ValueError: for what is not finite or not positive, fewer than three lengths, or fewer than four runs; for losses that do not fall, or
            that fall without an exponent from 0.01 to 5 that fits them best; for a form that is refused at ``STRAYS``.

    Source: Draper & Smith (1998), Applied Regression Analysis, section 2.1 (lack of fit and pure error).

    >>> D = np.array([1.0, 1.0, 4.0, 16.0, 64.0])
    >>> law = fit_power_law(D, 2 + 3 / np.sqrt(D))
    >>> round(law.floor, 4), round(law.exponent, 4), round(float(law(400)), 4)
    (2.0, 0.5, 2.15)
    """
    from scipy.optimize import minimize_scalar

    tokens, losses = _runs(tokens, losses)
    if len(set(tokens)) < 3 or len(tokens) < 4:
        raise ValueError(
            f"a law of three parameters takes at least three lengths and four runs, not {len(set(tokens))} and {len(tokens)}."
        )
    unit = float(np.exp(np.log(tokens).mean()))
    x = tokens / unit

    def linear(exponent):
        design = np.stack([np.ones_like(x), x**-exponent], 1)
        coefficients = np.linalg.lstsq(design, losses, rcond=None)[0]
        return coefficients, ((design @ coefficients - losses) ** 2).sum()

    grid = np.geomspace(0.01, 5, 60)  # where the best of them is, its neighbours hold the minimum
    best = int(np.argmin([linear(exponent)[1] for exponent in grid]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    found = minimize_scalar(
        lambda exponent: linear(exponent)[1], bounds=(low, high), method="bounded", options={"xatol": 1e-9}
    )
    exponent = float(found.x)
    (floor, scale), squares = linear(exponent)
    if scale <= 1e-9 * np.abs(losses).max():
        raise ValueError("no law of this form: the losses do not fall as the lengths grow.")
    if not 1.001 * grid[0] < exponent < 0.999 * grid[-1]:
        raise ValueError(
            f"no law of this form: its exponent would be {'below' if exponent < 1 else 'above'} {grid[0] if exponent < 1 else grid[-1]:g}, "
            "so that its floor is anybody's guess; run more lengths, further apart."
        )
    strays = _lack_of_fit(x, losses, squares)
    if strays is not None and strays < STRAYS:
        raise ValueError(
            f"no law of this form: its lengths stray from it by more than runs of one length scatter (p = {strays:.2g})."
        )
    variance = squares / (len(x) - 3)
    slopes = _slopes(x, scale, exponent)
    return PowerLaw(
        float(floor),
        float(scale),
        exponent,
        unit,
        variance * np.linalg.pinv(slopes.T @ slopes),
        float(np.sqrt(variance)),
        len(x),
        strays,
    )


def _lack_of_fit(x: np.ndarray, losses: np.ndarray, squares: float) -> float | None:
    """p of the F test of what a law of three parameters leaves, ``squares``, against what runs of one length scatter."""
    from scipy.special import fdtrc

    lengths, which, counts = np.unique(x, return_inverse=True, return_counts=True)
    form, free = len(lengths) - 3, len(x) - len(lengths)
    if not form or not free:
        return None
    pure = ((losses - (np.bincount(which, losses) / counts)[which]) ** 2).sum()
    rounding = len(x) * (1e-7 * np.ptp(losses)) ** 2  # runs that agree to the last digit refuse nothing
    return float(fdtrc(form, free, max(squares - pure, 0.0) / form / ((pure + rounding) / free)))


def _inverse(loss, floor, scale, exponent) -> np.ndarray:
    """In units of the law, which falls: where it has this loss."""
    with np.errstate(divide="ignore", over="ignore"):
        return np.maximum((loss - floor) / scale, 0.0) ** (-1 / exponent)


def _slopes(x: np.ndarray, scale: float, exponent: float) -> np.ndarray:
    """Derivatives of the loss by floor, scale and exponent, shape ``(runs, 3)``."""
    fallen = x**-exponent
    return np.stack([np.ones_like(x), fallen, -scale * fallen * np.log(x)], 1)
