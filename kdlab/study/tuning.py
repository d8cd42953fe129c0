"""As many tries for every method: a learning rate first, a weight second, chosen on the validation split by successive halving."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from math import inf, sqrt

from ..training import Recipe
from .spec import Spec

#: What looks for the record of a spec: None where there is none yet.
Found = Callable[[Spec], dict | None]

#: How the names of the arms begin whose runs choose, and their seed, which no run that is reported has.
TRY = "tune-"
TUNING_SEED = 100

#: The grid grows by this factor where its edge is the best.
STEP = sqrt(10)


@dataclass(frozen=True)
class Try:
    """What is chosen: a learning rate, and a factor on the weight of what the teacher says (1: as published)."""

    learning_rate: float
    weight: float = 1.0

    def __str__(self) -> str:
        return f"rate{self.learning_rate:.3g}" + ("" if self.weight == 1 else f"-weight{self.weight:.3g}")


def validation_accuracy(record: dict) -> float:
    """After the last epoch."""
    return record["epochs"]["validation.accuracy"][-1]


def validation_bits(record: dict) -> float:
    """Minus the bits per byte of the validation text after the last epoch."""
    return -record["epochs"]["validation.bits_per_byte"][-1]


@dataclass(frozen=True)
class Tuning:
    """How one method is tuned: four learning rates; at the best of them two other weights, or two rates between for a method
    without a weight; the best two of the six once more, three times as long; the better of these is chosen. (With one round, four
    rates, of which the best is chosen.)

    A choice at the edge of the rates, or of the weights, tries one more beyond it, until the best lies inside or three more
    have been tried. Runs that diverged are the worst. All tries have a seed of their own, which no other run has.

    Attributes:
        spec: a run of the method as a function of a try and a number of epochs.
        weighted: whether the method has a weight.
        rates: learning rates, rising.
        weights: factors on the weight, tried at the best rate.
        epochs: of the first round and of the second; with one number there is one round.
        score: of a record, the higher the better.

    Source: Jamieson & Talwalkar (2016), successive halving, with two rungs.
    """

    spec: Callable[[Try, int], Spec]
    weighted: bool = True
    rates: tuple[float, ...] = (0.015, 0.05, 0.15, 0.5)
    weights: tuple[float, ...] = (1 / 3, 3.0)
    epochs: tuple[int, ...] = (5, 15)
    score: Callable[[dict], float] = field(default_factory=lambda: validation_accuracy)

    def __post_init__(self):
        object.__setattr__(self, "spec", cache(self.spec))  # asked for again and again

    def first(self, found: Found) -> tuple[list[Try], bool]:
        """The tries of the first round as far as they are known, in order, and whether there will be no more."""
        rates, _, rested = self._grown(found, [Try(rate) for rate in self.rates], "learning_rate")
        if not rested:
            return rates, False
        best = self._best(found, rates, self.epochs[0])
        if not self.weighted and len(self.epochs) == 1:
            return rates, True
        if not self.weighted:
            between = [Try(best.learning_rate * factor) for factor in (STEP**-0.5, STEP**0.5)]
            return rates + between, self._recorded(found, between)
        weighted = [replace(best, weight=factor) for factor in self.weights]
        _, more, rested = self._grown(found, sorted([best, *weighted], key=lambda t: t.weight), "weight")
        return rates + weighted + more, rested

    def _grown(self, found: Found, grid: Sequence[Try], field: str):
        """``grid`` with what lies beyond its edges where these are the best; what was added; whether it has come to rest."""
        grid, added = list(grid), []
        while self._recorded(found, grid):
            best = self._best(found, grid, self.epochs[0])
            at_edge = best in (grid[0], grid[-1])
            if not at_edge or len(added) == 3:
                return grid, added, True
            factor = STEP if field == "learning_rate" else self.weights[-1]
            beyond = replace(best, **{field: getattr(best, field) * (factor if best == grid[-1] else 1 / factor)})
            added.append(beyond)
            grid = [*grid, beyond] if best == grid[-1] else [beyond, *grid]
        return grid, added, False

    def second(self, found: Found) -> list[Try]:
        """The best two of the first round, or the best where it is the only one; none before it is recorded."""
        tries, rested = self.first(found)
        if not rested:
            return []
        score = partial(self._score, found, epochs=self.epochs[0])
        return sorted(tries, key=score, reverse=True)[: len(self.epochs)]

    def chosen(self, found: Found) -> Try | None:
        """The better of the two by the second round; None before it is recorded, and, with a warning, where all of it diverged."""
        finalists, epochs = self.second(found), self.epochs[-1]
        if not finalists or not self._recorded(found, finalists, epochs):
            return None
        best = self._best(found, finalists, epochs)
        if self._score(found, best, epochs=epochs) == -inf:
            arm = self.spec(best, epochs).arm
            warnings.warn(
                f"nothing is chosen by {arm} and the others: all of them diverged; try lower rates.", stacklevel=2
            )
            return None
        return best

    def specs(self, found: Found) -> list[Spec]:
        """The runs that are known so far: those of the first round, then of the second."""
        first = [self.spec(t, self.epochs[0]) for t in self.first(found)[0]]
        return first + [self.spec(t, epochs) for epochs in self.epochs[1:] for t in self.second(found)]

    def _recorded(self, found: Found, tries, epochs: int | None = None) -> bool:
        return all(found(self.spec(t, epochs or self.epochs[0])) is not None for t in tries)

    def _best(self, found: Found, tries, epochs: int) -> Try:
        return max(tries, key=partial(self._score, found, epochs=epochs))

    def _score(self, found: Found, t: Try, *, epochs: int) -> float:
        record = found(self.spec(t, epochs))
        return -inf if record["test"] is None else self.score(record)


#: A run of an arm: from a name, a recipe.
Arm = Callable[[str, Recipe], Spec]


def at_own_rates(
    found: Found, arms: dict[str, Arm], tuning: Callable[[Callable], Tuning], short: Recipe, *long: Recipe
) -> Iterator[Spec]:
    """The runs that choose each arm's rate, by the short recipe; then three seeds of all arms whose rate is known, by the long one, or each of them."""

    def at(how: Recipe, rate: float, seed: int) -> Recipe:
        return replace(how, learning_rate=float(f"{rate:.3g}"), seed=seed)

    def tries(arm: str, spec: Arm) -> Tuning:
        def run(choice: Try, _) -> Spec:
            return spec(f"{TRY}{arm}-{choice}", at(short, choice.learning_rate, TUNING_SEED))

        return tuning(run)

    tunings = {arm: tries(arm, spec) for arm, spec in arms.items()}
    for tuned in tunings.values():
        yield from tuned.specs(found)
    for seed in range(3):
        for how in long:
            for arm, spec in arms.items():
                if (choice := tunings[arm].chosen(found)) is not None:
                    yield spec(arm, at(how, choice.learning_rate, seed))
