"""What statements are made of: a quantity, its values by arm and seed or along a curve, and the same turned into its opposite."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from .results import Measure, Results
from .statistics import Difference, Interval, against, summary


@dataclass(frozen=True)
class Quantity:
    """What was measured, for people.

    Attributes:
        name: as a sentence says it: "test accuracy".
        unit: of differences, such as "points"; "" for a number without one.
        scale: values times this are in that unit: 100 for points.
        digits: behind the point.
        better: "higher" or "lower".
        level_unit: of values, where it is not that of differences: "%" beside "points".
        of: key or function of a record; where ``Results`` are the source.
    """

    name: str
    unit: str = ""
    scale: float = 1.0
    digits: int = 3
    better: str = "higher"
    level_unit: str | None = None
    of: Measure | None = None

    def __post_init__(self):
        if self.better not in ("higher", "lower"):
            raise ValueError(f'better is "higher" or "lower", not {self.better!r}.')

    def level(self, value: float) -> str:
        """A value with its unit, the decimals of a large one to six figures in all.

        >>> QUANTITIES["accuracy"].level(0.1234), QUANTITIES["kl_to_teacher"].level(0.5), Quantity("ratio").level(12345.678)
        ('12.34 %', '0.500 nats', '12,345.7')
        """
        unit = self.unit if self.level_unit is None else self.level_unit
        size = abs(self.scale * value)
        digits = min(self.digits, max(0, 6 - len(f"{size:.0f}"))) if np.isfinite(size) else self.digits
        return f"{self.scale * value:z,.{digits}f} {unit}".rstrip()

    def shift(self, d: Interval) -> str:
        """A difference with its interval, if it has one."""
        scaled = self.scale * d
        number = scaled.bracketed(f"+.{self.digits}f") if d.n > 1 else f"{scaled.mean:+z.{self.digits}f}"
        return f"{number.split(' [')[0]} {self.unit}".rstrip() + (" [" + number.split(" [")[1] if d.n > 1 else "")


def _share(name: str, key: str, better: str = "higher") -> Quantity:
    return Quantity(name, "points", 100, 2, better, "%", key)


#: The measures of records by their key.
QUANTITIES = {
    "accuracy": _share("test accuracy", "accuracy"),
    "agreement": _share("agreement with the teacher", "agreement"),
    "calibration_error": _share("calibration error", "calibration_error", "lower"),
    "errors_within_superclass": _share("the share of errors within the superclass", "errors_within_superclass"),
    "cross_entropy": Quantity("cross-entropy", "nats", better="lower", of="cross_entropy"),
    "kl_to_teacher": Quantity("divergence from the teacher", "nats", better="lower", of="kl_to_teacher"),
    "bits_per_byte": Quantity("bits per byte", "bits per byte", better="lower", of="bits_per_byte"),
    "total_variation": Quantity("total variation from the teacher", better="lower", of="total_variation"),
}


@dataclass(frozen=True)
class Among:
    """A set of arms with the name by which a sentence calls it: ``Among("the objectives on logits", ["kd", "dist"])``."""

    name: str
    arms: tuple[str, ...]

    def __init__(self, name: str, arms: Collection[str]):
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "arms", tuple(arms))

    def __iter__(self) -> Iterator[str]:
        return iter(self.arms)

    def __len__(self) -> int:
        return len(self.arms)


#: More arms than a sentence lists; such a set needs a name.
LISTED = 8


def listed(words: Sequence[str]) -> str:
    """
    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    words = list(words)
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


@dataclass(frozen=True)
class Evidence:
    """A quantity of several arms, by seed.

    Attributes:
        values: by arm and seed. A number that has no seeds stands at each of them.
        quantity: what they are.
        source: "records" or "build" (this build's own training or computation).
        among: the arms over which a sentence speaks; the others lend their variance alone.
        called: the set's name in a sentence.
        names: of arms, for people.
        notes: what a sentence is to say besides, such as how many runs diverged.
    """

    values: dict[str, dict[int, float]]
    quantity: Quantity
    source: str
    among: tuple[str, ...]
    called: str
    names: Mapping[str, str] = field(default_factory=dict)
    notes: str = ""

    def name(self, arm: str) -> str:
        return self.names.get(arm, arm)

    def mean(self, arm: str, level: float = 0.95) -> Interval:
        """Mean over seeds, with its own interval where there are two."""
        return summary(self.values[arm].values(), level)

    def differences(self, arm: str, others: Collection[str], **how) -> dict[str, Difference]:
        """``arm`` minus each of the others; their intervals hold at once: Dunnett's, for an ``arm`` that was named beforehand.

        Args:
            how: as :func:`~kdlab.study.statistics.against` has it; ``correction="tukey"`` for the arm of the best mean.
        """
        turned = against(self.values, arm, others, **how)
        return {o: replace(d, mean=-d.mean, low=-d.high, high=-d.low) for o, d in turned.items()}

    def best(self) -> str:
        """The arm of the best mean."""
        sign = 1 if self.quantity.better == "higher" else -1
        return max(self.among, key=lambda arm: sign * np.mean(list(self.values[arm].values())))

    def with_arm(self, arm: str, values: Mapping[int, float], *, among: bool = True) -> "Evidence":
        """With one arm more."""
        return replace(
            self, values={**self.values, arm: dict(values)}, among=(*self.among, arm) if among else self.among
        )


def evidence(
    source: "Results | Mapping | Evidence",
    quantity: "Quantity | str",
    *,
    among: Collection[str] | None = None,
    names: Mapping[str, str] | None = None,
    needed: Collection[str] = (),
) -> Evidence:
    """The values of a plan's records, or of a chapter's own run, as statements take them.

    Args:
        source: ``Results``; a mapping from arms to values: a number, a sequence (its places are the seeds), or a mapping by seed; or
            evidence, of which the rest then chooses.
        quantity: a key of ``QUANTITIES``, or a quantity (with ``of``, for ``Results``). Evidence has its own, and no other is given with it.
        among: the arms over which a sentence speaks; all that have a mean if None. More than ``LISTED`` need a name: :class:`Among`.
        names: of arms, for people.
        needed: arms without which there is no sentence.

    Raises:
        ValueError: for an arm that is not there or has too few runs, values that are no finite numbers, a set without a name, or evidence
            of another quantity.
    """
    quantity = QUANTITIES[quantity] if isinstance(quantity, str) else quantity
    notes, chosen = "", None
    if isinstance(source, Evidence):
        if quantity not in (source.quantity, QUANTITIES["accuracy"]):  # which is what is asked where nothing is said
            raise ValueError(f"this is evidence of {source.quantity.name}, and not of {quantity.name}.")
        quantity, values, kind, notes, chosen = (
            source.quantity,
            source.values,
            source.source,
            source.notes,
            source.among,
        )
        names, whole = {**source.names, **(names or {})}, source.called
        if whole == listed(list(map(source.name, chosen))):
            whole = listed([names.get(a, a) for a in chosen])
    elif isinstance(source, Results):
        if quantity.of is None:
            raise ValueError(f"the quantity {quantity.name!r} does not say what it is of a record: Quantity(…, of=…).")
        arms = list(dict.fromkeys(spec.arm for spec in source.specs))
        wanted = [*(among or ()), *needed]
        if unknown := [a for a in wanted if a not in arms]:
            raise ValueError(f"the plan {source.plan} has no arm {', '.join(unknown)}.")
        ready = source.ready(arms)
        if short := [a for a in wanted if a not in ready]:
            raise ValueError(f"the plan {source.plan} has fewer than two runs of {', '.join(short)}; {source.command}.")
        values = {arm: source.values(arm, quantity.of) for arm in source.measured(quantity.of)}
        if unmeasured := [a for a in wanted if a not in values]:
            raise ValueError(f"{quantity.name} is not measured on {source.plan}'s {', '.join(unmeasured)}.")
        lost = [
            f"{source.diverged(a)} of {source.planned([a])} runs of {a} diverged and are not counted"
            for a in (wanted or values)
            if source.diverged(a)
        ]
        notes = "; ".join(dict.fromkeys(lost))
        kind, whole = "records", f"the {len(values)} arms of {source.plan}"
    else:
        runs = {len(v) for v in source.values() if (not np.isscalar(v) and np.ndim(v) != 0) or isinstance(v, Mapping)}
        seeds = range(max(runs, default=1))
        values = {str(arm): _by_seed(v, seeds) for arm, v in source.items()}
        kind, whole = "build", f"{len(values)} arms"
        if len(values) <= LISTED:
            whole = listed([(names or {}).get(a, a) for a in values])
    for arm, of in values.items():
        if not of or not np.isfinite(list(of.values())).all():
            raise ValueError(f"{quantity.name} of {arm!r} is not a finite number: {list(of.values())}.")
    names = dict(names or {})
    if among is not None:
        if gone := [a for a in among if a not in values]:
            raise ValueError(f"there is no {', '.join(gone)}; there are {', '.join(values)}.")
        if isinstance(among, Among):
            whole = among.name
        elif len(among) > LISTED:
            raise ValueError(f'{len(among)} arms are too many to list; name the set: Among("the …", arms).')
        else:
            whole = listed([names.get(a, a) for a in among])
    if gone := [a for a in needed if a not in values]:
        raise ValueError(f"there is no {', '.join(gone)}; there are {', '.join(values)}.")
    return Evidence(values, quantity, kind, tuple(among or chosen or values), whole, names, notes)


def _by_seed(values, seeds) -> dict[int, float]:
    if isinstance(values, Mapping):
        return {seed: float(v) for seed, v in values.items()}
    if np.ndim(values) == 0:
        return {seed: float(values) for seed in seeds}
    return {seed: float(v) for seed, v in enumerate(values)}


#: What an arm is called that mutation adds.
INTRUDER = "an arm that beats all"


def mutated(evidence: Evidence, pairs: Collection[tuple[str, str]], rival: int = 1) -> Iterator[tuple[str, Evidence]]:
    """The evidence turned into others that no sentence about it should survive.

    Args:
        evidence: what a sentence was made from.
        pairs: arms that it orders. Each pair is exchanged.
        rival: +1 if the arm to add lies above all, −1 if below.

    Yields, each with what was done: the arms of a pair exchanged, all signs turned (both only if it orders any), and an arm
    added, in the set over which the sentence speaks, that beats all.
    """
    for ours, theirs in pairs:
        swap = {ours: evidence.values[theirs], theirs: evidence.values[ours]}
        yield f"{ours} and {theirs} exchanged", replace(evidence, values={**evidence.values, **swap})
    if pairs:
        turned = {a: {s: -v for s, v in of.items()} for a, of in evidence.values.items()}
        yield "all signs turned", replace(evidence, values=turned)
    every = [v for of in evidence.values.values() for v in of.values()]
    reach = 10 * max(map(abs, every)) + 1
    extreme = max(evidence.among, key=lambda a: rival * np.mean(list(evidence.values[a].values())))
    beaten = {s: v + rival * reach for s, v in evidence.values[extreme].items()}
    yield f"an arm added {'above' if rival > 0 else 'below'} all", evidence.with_arm(INTRUDER, beaten)


@dataclass(frozen=True)
class Curves:
    """Values of a quantity along another, by the name of the curve.

    Attributes:
        points: by name, ``(x, y)``; x rises.
        quantity: what y is.
        along: what x is: "tokens".
        source: "records" or "build".
    """

    points: dict[str, tuple[np.ndarray, np.ndarray]]
    quantity: Quantity
    along: str
    source: str = "build"


def curves(source, quantity: Quantity, along: str) -> Curves:
    """Curves as statements take them.

    Args:
        source: a mapping from names to ``(x, y)``, to ``{x: y}``, or to y alone (x are then its places).
        quantity: what y is.
        along: what x is.

    Raises:
        ValueError: for fewer than two points, x that does not rise, or numbers that are not finite.
    """
    if isinstance(source, Curves):
        return source
    points = {}
    for name, of in source.items():
        if isinstance(of, Mapping):
            x, y = np.array(sorted(of), float), np.array([of[k] for k in sorted(of)], float)
        elif isinstance(of, tuple) and len(of) == 2 and np.ndim(of[0]) == 1:
            x, y = (np.asarray(part, float) for part in of)
        else:
            y = np.asarray(of, float)
            x = np.arange(len(y), dtype=float)
        if x.shape != y.shape or x.ndim != 1 or len(x) < 2 or not (np.diff(x) > 0).all():
            raise ValueError(f"the curve {name!r} needs two points or more, as many x as y, and x that rises.")
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            raise ValueError(f"the curve {name!r} has values that are no finite numbers.")
        points[str(name)] = x, y
    if not points:
        raise ValueError("there is no curve.")
    return Curves(points, quantity, along)


def mutated_curves(evidence: Curves, ordered: Collection[str], level: float = 0.0) -> Iterator[tuple[str, Curves]]:
    """The same of curves: one of ``ordered`` run through backwards, all turned about ``level``, one added that does the opposite."""
    for name in ordered:
        x, y = evidence.points[name]
        yield f"{name} backwards", replace(evidence, points={**evidence.points, name: (x, y[::-1])})
    if ordered:
        turned = {name: (x, 2 * level - y) for name, (x, y) in evidence.points.items()}
        yield "all signs turned", replace(evidence, points=turned)
        x, y = evidence.points[next(iter(ordered))]
        yield (
            "a curve added that does the opposite",
            replace(evidence, points={**evidence.points, INTRUDER: (x, y[::-1])}),
        )
    else:
        x, y = next(iter(evidence.points.values()))
        beyond = level + 10 * np.abs(y - level).max() + np.linspace(1, 2, len(x))
        yield "a curve added beyond all", replace(evidence, points={**evidence.points, INTRUDER: (x, beyond)})
