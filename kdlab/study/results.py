"""What a plan's records say, arm by arm: values by seed, means with intervals, differences paired by seed."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .plans import GROWING, PLANS
from .records import evidence_folder, find_record
from .spec import Spec
from .statistics import Difference, Interval, against, at_equal, mean_interval

#: A key of a record's ``test``, or a function of a record.
Measure = str | Callable[[dict], float]


@dataclass(frozen=True)
class Results:
    """The specs of a plan and the records that they have so far.

    Attributes:
        plan: its name, as ``kdlab run`` takes it.
        specs: all of them.
        records: by the hash of the spec.
    """

    plan: str
    specs: tuple[Spec, ...]
    records: dict[str, dict]

    @property
    def missing(self) -> int:
        """How many runs have no record yet."""
        return sum(spec.hash not in self.records for spec in self.specs)

    @property
    def command(self) -> str:
        """What fills the empty slots."""
        return f"kdlab run {self.plan}"

    def arm(self, name: str) -> list[dict]:
        """The records of an arm in the order of their seeds, those that diverged among them.

        Raises:
            KeyError: for an arm that the plan has not.
        """
        specs = [spec for spec in self.specs if spec.arm == name]
        if not specs:
            raise KeyError(f"the plan {self.plan} has no arm {name!r}.")
        specs.sort(key=lambda spec: spec.recipe.seed)
        return [self.records[spec.hash] for spec in specs if spec.hash in self.records]

    def all(self, names: Collection[str]) -> list[dict]:
        """The records of several arms."""
        return [record for name in names for record in self.arm(name)]

    def planned(self, names: Collection[str]) -> int:
        """How many runs the plan has of these arms."""
        return sum(spec.arm in names for spec in self.specs)

    def lacking(self, names: Collection[str]) -> int:
        """How many of these arms' runs have no record yet."""
        return self.planned(names) - len(self.all(dict.fromkeys(names)))  # one that is named twice is one arm

    def ready(self, names: Collection[str]) -> list[str]:
        """Those of the arms that have a mean: at least two runs that did not diverge."""
        return [name for name in names if len(self.arm(name)) - self.diverged(name) > 1]

    def complete(self, names: Collection[str], at_least: int | None = None) -> bool:
        """Whether all runs of these arms are recorded, and each arm has a mean. An arm that a growing plan does not know yet lacks all.

        Args:
            names: of the arms.
            at_least: so many seeds of which all of these arms are recorded are enough, where a plan comes back to arms with further seeds.
        """
        names = [names] if isinstance(names, str) else list(names)
        if at_least is not None and at_least < 2:
            raise ValueError(f"at_least is 2 or more, of which an arm has a mean, not {at_least}.")
        if self.plan in GROWING and not {spec.arm for spec in self.specs}.issuperset(names):
            return False
        if at_least is not None:
            seeds = [{r["recipe"]["seed"] for r in self.arm(name)} for name in names]
            return bool(names) and len(set.intersection(*seeds)) >= at_least and self.ready(names) == names
        return not self.lacking(names) and self.ready(names) == names

    def renamed(self, names: Mapping[str, str]) -> "Results":
        """These arms of the plan alone, under other names, such as those of one length of training, called as another plan calls its own.

        Args:
            names: the new names by the plan's; an arm that a growing plan does not know yet is left out.

        Raises:
            ValueError: for one name of two arms.
        """
        if len(set(names.values())) < len(names):
            raise ValueError("two arms under one name would be counted as one: give each a name of its own.")
        specs = [(spec, replace(spec, arm=names[spec.arm])) for spec in self.specs if spec.arm in names]
        records = {new.hash: self.records[old.hash] for old, new in specs if old.hash in self.records}
        return replace(self, specs=tuple(new for _, new in specs), records=records)

    def values(self, name: str, measure: Measure = "accuracy") -> dict[int, float]:
        """A measure of an arm by seed; runs that diverged have none."""
        take = measure if callable(measure) else lambda record: record["test"][measure]
        return {r["recipe"]["seed"]: take(r) for r in self.arm(name) if r["test"] is not None}

    def diverged(self, name: str) -> int:
        """How many runs of an arm diverged."""
        return sum(record["test"] is None for record in self.arm(name))

    def mean(self, name: str, measure: Measure = "accuracy") -> Interval | None:
        """Mean and 95 % interval over seeds; None for fewer than two."""
        values = list(self.values(name, measure).values())
        return mean_interval(values) if len(values) > 1 else None

    def differences(self, treated: str, control: str, measure: Measure = "accuracy") -> dict[int, float]:
        """``treated`` minus ``control`` by seed, of the seeds that both have."""
        ours, theirs = self.values(treated, measure), self.values(control, measure)
        return {seed: ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())}

    def difference(self, treated: str, control: str, measure: Measure = "accuracy") -> Interval | None:
        """The mean of :meth:`differences` with its 95 % interval; None for fewer than two."""
        values = list(self.differences(treated, control, measure).values())
        return mean_interval(values) if len(values) > 1 else None

    def against(
        self,
        control: str,
        measure: Measure = "accuracy",
        arms: Collection[str] | None = None,
        correction: str | None = "dunnett",
        pool: Collection[str] | None = None,
    ) -> dict[str, Difference]:
        """Every arm minus ``control``, by a variance pooled over arms: :func:`~kdlab.study.statistics.against`.

        Args:
            control: what is subtracted.
            measure: a key of a record's test, or a function of a record.
            arms: those compared; all that have a mean and the measure if None.
            correction: for their number: "dunnett"; "tukey" where the control is the arm of the best mean; "holm" or None.
            pool: the arms that lend their variance; all that have a mean and the measure if None.
        """
        lenders = self.measured(measure) if pool is None else [*pool]
        names = dict.fromkeys([control, *(arms or ()), *lenders])
        chosen = [a for a in lenders if a != control] if arms is None else list(arms)
        return against({name: self.values(name, measure) for name in names}, control, chosen, correction=correction)

    def at_equal(
        self, measure: Measure, held: Measure = "accuracy", arms: Collection[str] | None = None
    ) -> dict[str, Interval]:
        """A measure of each arm at equal values of another: :func:`~kdlab.study.statistics.at_equal`.

        Args:
            measure: what is compared: ``"agreement"``.
            held: what is held equal.
            arms: through which the line goes; all that have a mean and the measure if None.
        """
        arms = self.measured(measure) if arms is None else arms
        return at_equal(*({a: self.values(a, m) for a in arms} for m in (measure, held)))

    def measured(self, measure: Measure) -> list[str]:
        """The arms that have a mean of a measure, in the plan's order.

        Raises:
            KeyError: for a function that looks for what no arm has.
        """
        found, missed = [], None
        for arm in self.ready(list(dict.fromkeys(spec.arm for spec in self.specs))):
            try:
                self.values(arm, measure)
                found.append(arm)
            except KeyError as error:
                missed = error
        if callable(measure) and missed is not None and not found:  # a mistake of the function's, and not of the arms
            raise missed
        return found


def results(plan: str | Sequence[Spec], book: Path | None = None) -> Results:
    """The records of a plan in ``book`` (the book's own folder if None).

    Args:
        plan: a plan's name, or specs of your own.
        book: the folder whose ``records`` are read.

    Raises:
        KeyError: for a plan that there is not.
        RecordError: if a record is damaged.
    """
    if isinstance(plan, str):
        if plan not in PLANS:
            raise KeyError(f"there is no plan {plan!r}; there are {', '.join(PLANS)}.")
        name, specs = plan, PLANS[plan]()
    else:
        name, specs = plan[-1].study, plan
    folder = Path(book or evidence_folder()) / "records"
    specs = tuple({spec.hash: spec for spec in specs}.values())
    found = {spec.hash: find_record(spec, folder) for spec in specs}
    return Results(name, specs, {key: record for key, record in found.items() if record is not None})
