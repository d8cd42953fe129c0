"""Sentences about results, made by code that knows what they say.

A statement's text is true of its evidence, whatever that is. Beside it stands what the chapter's author expected; where the
evidence says otherwise the page gets a banner. Each is tried on evidence that says the opposite (arms exchanged, signs turned,
an arm added that beats all) as it is made, and one that would say the same of that is an error.
"""

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..figures import Shown, mathematics
from .evidence import (
    Curves,
    Evidence,
    Quantity,
    curves,
    evidence,
    listed,
    mutated,
    mutated_curves,
)
from .parameters import changed
from .results import Results
from .statistics import Interval

__all__ = ["above", "below", "crosses", "falls", "in_order", "leads", "only", "power", "rises", "undecided", "within"]

Source = Results | Mapping | Evidence


@dataclass(frozen=True)
class Said:
    """What a rule makes of evidence.

    Attributes:
        text: the sentence, with its numbers.
        claim: what it says without them; two sentences of one claim say the same.
        holds: whether that is what the author expected.
        pairs: arms that it puts in an order; of curves, the names of those that it gives a direction.
        rival: on which side an arm must be added that changes it.
        lead, basis: with what the text begins and ends that others of its quantity begin and end with.
    """

    text: str
    claim: frozenset
    holds: bool
    pairs: tuple = ()
    rival: int = 1
    lead: str = ""
    basis: str = ""


class Survivor(AssertionError):
    """A statement that says the same of evidence to the contrary."""


class Statement(Shown):
    """A sentence about results, true of the evidence, and what its author expected.

    Attributes:
        text: the sentence, with numbers, intervals and n.
        short: what the author expected, without numbers.
        holds: whether the evidence says so.
        claim: what the text says without its numbers.
    """

    def __init__(self, said: Said, expected: str, source: str):
        self.text, self.holds, self.claim = said.text, bool(said.holds), said.claim
        self.short, self.source = expected, source
        self.lead, self.basis = said.lead, said.basis
        records = source == "records"
        if self.holds:
            seen = "The records show" if records else "Seen in this build"
            markup = f'<p class="kd-badge">{seen}: {mathematics(self.text)}</p>'
        else:
            markup = (
                f'<aside class="kd-banner"><strong>{mathematics(self.unseen)}</strong> {mathematics(self.text)}</aside>'
            )
        super().__init__(markup)

    @property
    def unseen(self) -> str:
        """What to say where it does not hold."""
        reason = (
            "the chapter's parameters are others"
            if changed()
            else "its own trainings and draws may come out otherwise on another processor"
        )
        why = "the records do not show it." if self.source == "records" else f"this build did not show it ({reason})."
        first = self.short.split()[0]
        # MSE, T²
        expected = self.short[0].lower() + self.short[1:] if first[1:].isalpha() and first[1:].islower() else self.short
        return f"The text around it expects: {expected.rstrip('.')}; {why}"

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return self.text if self.holds else f"{self.unseen} {self.text}"

    def __bool__(self):
        raise TypeError("a statement is no truth value: use .holds")

    def _repr_mimebundle_(self, include=None, exclude=None):
        statement = self.text if self.holds else f"{self.unseen} {self.text}"
        said = {"statement": statement, "holds": self.holds, "source": self.source}
        return {"text/html": self.markup, "application/vnd.kdlab.observation+json": said}


def together(statements: Iterable[Statement]) -> list[str]:
    """Their texts; neighbours about one quantity and of one basis become one sentence, which says both once.

    >>> error, few = Quantity("error", "points", digits=1, better="lower"), {"a": [1.0, 2.0], "b": [4.0, 5.1], "c": [8.0, 9.0]}
    >>> print(*together([below("a", "b", few, error), below("b", "c", few, error)]))
    In error, a is below b (-3.0 points [-3.2, -2.9]); b is below c (-4.0 points [-4.1, -3.8]) (each its own 95 % interval; variance pooled over 3 arms, paired by seed; n = 2).
    """
    texts = []
    for (lead, basis), same in itertools.groupby(statements, key=lambda s: (s.lead, s.basis)):
        same = list(same)
        if len(same) == 1 or not lead:
            texts += [statement.text for statement in same]
            continue
        bodies = [statement.text.removeprefix(lead).removesuffix(f"{basis}.") for statement in same]
        texts.append(f"{lead}{'; '.join(bodies)}{basis.replace('(95 % interval;', '(each its own 95 % interval;')}.")
    return texts


def survivors(rule: Callable, of: Evidence | Curves, level: float = 0.0) -> Iterator[str]:
    """What was done to the evidence, for each mutation after which the rule says the same as before."""
    said = rule(of)
    changed = mutated_curves(of, said.pairs, level) if isinstance(of, Curves) else mutated(of, said.pairs, said.rival)
    for how, other in changed:
        again = rule(other)
        if again.claim == said.claim or again.text == said.text:
            yield how


def stated(rule: Callable, of: Evidence | Curves, expected: str, level: float = 0.0) -> Statement:
    """The statement that a rule makes of evidence, after it was tried on evidence to the contrary.

    Args:
        rule: evidence → :class:`Said`.
        of: the evidence.
        expected: what the author expects, a sentence without numbers.
        level: about which curves are turned.

    Raises:
        Survivor: if the rule says the same of mutated evidence.
    """
    if alive := list(survivors(rule, of, level)):
        raise Survivor(f"“{rule(of).text}” is said, too, with {'; with '.join(alive)}.")
    return Statement(rule(of), expected, of.source)


# ---------------------------------------------------------------- arms against arms


def _outcome(d: Interval, margin: float | None) -> str:
    """What an interval decides; ``margin`` is the smallest effect that would matter."""
    if (margin is not None and -margin <= d.low and d.high <= margin) or d.low == d.high == 0:
        return "within"
    return "above" if d.low > 0 else "below" if d.high < 0 else "not decided"


def _basis(of: Evidence, differences: Mapping[str, Interval], how: str = "") -> str:
    """The small print of a sentence: what its intervals are."""
    runs = sorted({d.n for d in differences.values()})
    words = []
    if runs != [1]:
        kind = "95 % intervals, together" if len(differences) > 1 else "95 % interval"
        words = [
            kind,
            *dict.fromkeys(basis for d in differences.values() if (basis := getattr(d, "basis", ""))),
            "n = " + " to ".join(map(str, runs[:: max(1, len(runs) - 1)])),
        ]
    words = [w for w in [*words, of.notes, how] if w]
    return f" ({'; '.join(words)})" if words else ""


def _against(arm: str, others: tuple[str, ...] | None, margin, expected: str, factor, by, of: Evidence) -> Said:
    """``arm`` against each of the others: the rule of above, below, within and undecided."""
    q = of.quantity
    fixed = [o for o in of.among if o != arm]
    if factor is not None or by is not None:  # the others, times a factor and plus a shift, are what it is held against
        factor, by = factor or 1.0, (by or 0.0) / q.scale
        scaled = {o: {s: factor * v + by for s, v in of.values[o].items()} for o in fixed}
        held = Evidence({**of.values, **scaled}, q, of.source, of.among, of.called, of.names, of.notes)
    else:
        held = of
    # what is multiplied scatters more than the arms that would lend their variance
    pooled = None if factor in (None, 1.0) else False
    differences, plain = held.differences(arm, fixed, pooled=pooled), of.differences(arm, fixed)
    outcomes = {o: _outcome(d, margin) for o, d in differences.items()}
    more = (
        "" if held is of
        else " by more than " + " and ".join(filter(None, [f"a factor of {factor:g}" if factor != 1 else "", f"{q.scale * by:g} {q.unit}".strip() if by else ""]))
    )  # fmt: skip
    single = all(d.n == 1 for d in plain.values())

    def valued(one):  # an arm that is a number says its value itself
        value = q.level(of.mean(one).mean)
        return of.name(one) if of.name(one) == value else f"{of.name(one)} ({value})"

    equal = set(outcomes.values()) == {"within"} and not margin  # then the others' value is its own
    name, parts = valued(arm) if single and not equal else of.name(arm), []
    size = f"{q.scale * margin:.{q.digits}f} {q.unit}".strip() if margin else ""
    words = {
        "above": f"above {{}}{more}",
        "below": f"below {{}}{more}" if held is of else f"not above {{}}{more}",
        "within": f"within {size} of {{}}" if margin else "equal to {}",
        "not decided": (f"not told apart from {{}}{more}" if held is of else f"not clearly above {{}}{more}")
        + (f", and a difference of {size} is not excluded" if margin else ""),
    }
    for kind in ("above", "within", "not decided", "below"):
        group = [o for o in fixed if outcomes[o] == kind]
        if not group:
            continue
        if len(group) > 8:
            near = min(group, key=lambda o: abs(plain[o].mean))
            who = f"{len(group)} others, the nearest of them {of.name(near)} ({q.shift(plain[near])})"
        else:
            who = listed([valued(o) if single else f"{of.name(o)} ({q.shift(plain[o])})" for o in group])
        parts.append(words[kind].format(who))
    how = "each times the factor by its own variance" if any("pooled" in d.basis for d in plain.values()) else ""
    lead, basis = f"In {q.name}, ", _basis(of, plain, how if pooled is False else "")
    text = f"{lead}{name} is {'; '.join(parts)}{basis}."
    claim = frozenset((arm, outcomes[o], o) for o in fixed)
    decided = tuple((arm, o) for o in fixed if outcomes[o] in ("above", "below") and held is of)
    rival = -1 if set(outcomes.values()) == {"below"} else 1
    return Said(text, claim, set(outcomes.values()) == {expected}, decided, rival, lead, basis)


def _step(of: Evidence, one: str, two: str, d: Interval) -> str:
    q = of.quantity
    if d.n > 1:
        return q.shift(d)
    return f"{q.level(of.mean(one).mean)} to {q.level(of.mean(two).mean)}"


def _compare(arm, others, source, quantity, expected, short, *, names, margin=None, factor=None, by=None):
    """Evidence of ``arm`` and what it is held against, numbers among that made arms; and the statement."""
    others = (
        [others] if isinstance(others, str) or np.isscalar(others) else list(others) if others is not None else None
    )
    numbers = [o for o in others or () if not isinstance(o, str)]
    needed = [arm, *(o for o in others or () if isinstance(o, str))]
    full = evidence(source, quantity, names=names, needed=needed)
    q = full.quantity
    for number in numbers:
        seeds = full.values[arm]
        full = full.with_arm(q.level(number / q.scale), dict.fromkeys(seeds, number / q.scale))
    chosen = (
        full.among if others is None else (arm, *(o if isinstance(o, str) else q.level(o / q.scale) for o in others))
    )
    of = Evidence(full.values, q, full.source, tuple(chosen), full.called, full.names, full.notes)
    if others is None:
        who = f"all others of {full.called}"
    else:
        who = listed([of.name(o) for o in chosen[1:]])
    margin = None if margin is None else margin / q.scale
    rule = partial(_against, arm, None, margin, expected, factor, by)
    return stated(rule, of, short.format(arm=of.name(arm), others=who, quantity=q.name))


def above(
    arm: str, others, source: Source, quantity: Quantity | str = "accuracy", *,
    by: float | None = None, factor: float | None = None, names: Mapping[str, str] | None = None,
) -> Statement:  # fmt: skip
    """``arm`` is above each of ``others``: the interval of every difference lies above zero.

    Args:
        arm: of the source.
        others: an arm, several, numbers in the quantity's unit (``0``), or None for all others of the source.
        source: ``Results``, or a mapping from arms to values (numbers, sequences or mappings by seed).
        quantity: a key of ``QUANTITIES`` or a quantity.
        by: by more than this, in the quantity's unit.
        factor: more than this many times the others; each of these differences is judged by its own variance, not by a pooled one.
        names: of arms, for people.

    Raises:
        ValueError: if ``factor`` is below one or ``by`` below zero: that is no "above".
    """
    if (factor is not None and factor < 1) or (by is not None and by < 0):
        given = f"factor={factor:g}" if factor is not None and factor < 1 else f"by={by:g}"
        raise ValueError(
            f"{given} calls a smaller number “above”: take a factor of 1 or more and a shift of 0 or more, or state the ratio and hold it against a number."
        )
    more = (
        "" if by is None and factor is None else f" by more than {f'a factor of {factor:g}' if factor else f'{by:g}'}"
    )
    return _compare(
        arm,
        others,
        source,
        quantity,
        "above",
        f"{{arm}} is above {{others}}{more} in {{quantity}}.",
        names=names,
        by=by,
        factor=factor,
    )


def below(
    arm: str, others, source: Source, quantity: Quantity | str = "accuracy", *, names: Mapping[str, str] | None = None
) -> Statement:
    """``arm`` is below each of ``others``; arguments as :func:`above`'s."""
    return _compare(arm, others, source, quantity, "below", "{arm} is below {others} in {quantity}.", names=names)


def within(
    arm: str, others, margin: float, source: Source, quantity: Quantity | str = "accuracy", *,
    names: Mapping[str, str] | None = None,
) -> Statement:  # fmt: skip
    """``arm`` differs from each of ``others`` by no more than ``margin``: the whole interval lies within ±margin.

    Args:
        margin: the smallest difference that would matter, in the quantity's unit. Others as :func:`above`'s.
    """
    if margin < 0:
        raise ValueError(f"a margin is not negative: {margin}.")
    return _compare(
        arm,
        others,
        source,
        quantity,
        "within",
        f"{{arm}} is within {margin:g} of {{others}} in {{quantity}}.",
        names=names,
        margin=margin,
    )


def undecided(
    arm: str, others, margin: float, source: Source, quantity: Quantity | str = "accuracy", *,
    names: Mapping[str, str] | None = None,
) -> Statement:  # fmt: skip
    """``arm`` is not told apart from ``others``, and a difference of ``margin``, which would matter, is not excluded.

    The verdict that fits is "not decided". Arguments as :func:`within`'s.
    """
    return _compare(
        arm,
        others,
        source,
        quantity,
        "not decided",
        "Whether {arm} differs from {others} in {quantity} is not decided.",
        names=names,
        margin=margin,
    )


# ---------------------------------------------------------------- one arm against a whole set


def _leads(expected: str, of: Evidence) -> Said:
    """The best mean, and whether it is better than every other, by Tukey's intervals, since the means choose it; the rule of leads."""
    q, sign = of.quantity, 1 if of.quantity.better == "higher" else -1
    best = of.best()
    others = [a for a in of.among if a != best]
    differences = of.differences(best, others, correction="tukey")
    outcomes = {o: _outcome(d, None) for o, d in differences.items()}
    open_ = [o for o in others if outcomes[o] != ("above" if sign > 0 else "below")]
    second = min(others, key=lambda o: sign * differences[o].mean)
    small = " (lower is better)" if sign < 0 else ""
    at = f"{of.name(best)} ({q.level(of.mean(best).mean)})"
    if not open_:
        text = f"Of {of.called}, {at} leads in {q.name}{small}, {q.shift(differences[second])} against the next, {of.name(second)}"
        claim = frozenset([("leads", best)])
    else:
        near = sorted(open_, key=lambda o: sign * differences[o].mean)
        told = listed([f"{of.name(o)} ({q.shift(differences[o])})" for o in near[:8]])
        rest = f" and {len(near) - 8} more" if len(near) > 8 else ""
        text = f"Of {of.called}, none leads in {q.name}{small}: {at} has the best mean and is not told apart from {told}{rest}"
        claim = frozenset([("has the best mean", best), *(("beside", o) for o in open_)])
    decided = tuple((best, o) for o in others if o not in open_)
    return Said(text + _basis(of, differences) + ".", claim, claim == frozenset([("leads", expected)]), decided, sign)


def leads(
    arm: str, source: Source, quantity: Quantity | str = "accuracy", *,
    among: Collection[str] | None = None, names: Mapping[str, str] | None = None,
) -> Statement:  # fmt: skip
    """``arm`` has the best mean of all, and the interval of its difference to every other excludes zero.

    The intervals are Tukey's, which hold for whichever arm is best.
    If another leads, the sentence says so; if nobody does, it says between whom it is not decided.

    Args:
        arm: that the author expects to lead.
        source: ``Results``, or a mapping from arms to values.
        quantity: a key of ``QUANTITIES`` or a quantity; its ``better`` says which way is best.
        among: over which arms: all that have a mean if None; a set of more than a few has a name, :class:`~kdlab.study.evidence.Among`.
        names: of arms, for people.
    """
    of = evidence(source, quantity, among=among, names=names, needed=[arm])
    if arm not in of.among or len(of.among) < 2:
        raise ValueError(f"{arm!r} is led or leads among others: it must be in the set, and not alone.")
    return stated(partial(_leads, arm), of, f"{of.name(arm)} leads {of.called} in {of.quantity.name}.")


def _in_order(expected: tuple[str, ...], rising: bool, of: Evidence) -> Said:
    """Whether each arm is above, or below, the one before it; an intruder comes last."""
    q = of.quantity
    row = [*expected, *(a for a in of.among if a not in expected)]
    steps = {}
    for one, two in itertools.pairwise(row):
        steps[one, two] = of.differences(two, [one])[one]
    outcomes = {pair: _outcome(d, None) for pair, d in steps.items()}
    word = {
        "above": "rises",
        "below": "falls",
        "within": "stays",
        "not decided": "neither clearly rises nor clearly falls",
    }
    told = "; ".join(
        f"{word[outcomes[a, b]]} from {of.name(a)} to {of.name(b)} ({_step(of, a, b, d)})"
        for (a, b), d in steps.items()
    )
    text = f"The {q.name} {told}{_basis(of, {'': next(iter(steps.values()))})}."
    claim = frozenset((a, outcomes[a, b], b) for a, b in steps)
    want = "above" if rising else "below"
    pairs = tuple(pair for pair, o in outcomes.items() if o in ("above", "below"))
    return Said(text, claim, set(outcomes.values()) == {want}, pairs, -1 if rising else 1)


def in_order(
    arms: Collection[str], source: Source, quantity: Quantity | str = "accuracy", *,
    rising: bool = True, names: Mapping[str, str] | None = None,
) -> Statement:  # fmt: skip
    """From each arm to the next the quantity rises (or falls), with an interval that excludes zero at each step."""
    arms = tuple(arms)
    of = evidence(source, quantity, among=arms, names=names, needed=arms)
    way = "rises" if rising else "falls"
    return stated(
        partial(_in_order, arms, rising), of, f"The {of.quantity.name} {way} along {', '.join(map(of.name, arms))}."
    )


def _only(expected: frozenset, level: float, over: bool, of: Evidence) -> Said:
    """Which arms are above, or below, a level, by intervals that hold at once (Bonferroni's)."""
    q, means = of.quantity, {arm: of.mean(arm, 1 - 0.05 / len(of.among)) for arm in of.among}
    sure, open_ = [], []
    for arm, m in means.items():
        if m.low > level if over else m.high < level:
            sure.append(arm)
        elif not (m.high < level if over else m.low > level):
            open_.append(arm)
    side = "above" if over else "below"

    def told(arms):
        return listed([f"{of.name(a)} ({q.level(means[a].mean)})" for a in arms]) if len(arms) <= 8 else f"{len(arms)}"

    rest = [a for a in of.among if a not in sure and a not in open_]
    all_ = "all " if len(sure) > 2 and len(sure) == len(of.among) else ""
    text = f"{told(sure) if sure else 'none'} {'is' if len(sure) < 2 else 'are'} {all_}{side} {q.level(level)}"
    if of.called == listed(list(map(of.name, of.among))):
        text = f"In {q.name}, {text}"
    else:
        text = f"Of {of.called}, {text} in {q.name}"
    if open_:
        text += f"; of {told(open_)} it is not decided"
    if rest and sure:
        text += f"; {told(rest)} {'is' if len(rest) < 2 else 'are'} not"
    elif rest:
        text += f" ({'; '.join(f'{of.name(a)}: {q.level(means[a].mean)}' for a in rest)})" if len(rest) <= 8 else ""
    claim = frozenset([*((side, a) for a in sure), *(("open", a) for a in open_)])
    pairs = tuple((a, b) for a in sure for b in rest)[: len(sure) + len(rest)]  # none if all are on one side
    text += f"{_basis(of, means)}."
    return Said(text, claim, claim == frozenset((side, a) for a in expected), pairs, 1 if over else -1)


def only(
    arms: Collection[str], source: Source, quantity: Quantity | str = "accuracy", *,
    above: float | None = None, below: float | None = None,
    among: Collection[str] | None = None, names: Mapping[str, str] | None = None,
) -> Statement:  # fmt: skip
    """These arms, and no others of the set, are above (or below) a level; their intervals, Bonferroni's over the set, do not touch it.

    Args:
        arms: the ones that the author expects; none for an empty collection.
        above: the level, in the quantity's unit; or
        below: the same from the other side.
        among, source, quantity, names: as in :func:`leads`.
    """
    if (above is None) == (below is None):
        raise ValueError("give a level: above=… or below=….")
    of = evidence(source, quantity, among=among, names=names, needed=arms)
    over = above is not None
    level = (above if over else below) / of.quantity.scale
    who = f"{listed([of.name(a) for a in arms])} and no others are" if arms else "none is"
    side = f"{'above' if over else 'below'} {of.quantity.level(level)}"
    return stated(
        partial(_only, frozenset(arms), level, over),
        of,
        f"Of {of.called}, {who} {side} in {of.quantity.name}.",
    )


# ---------------------------------------------------------------- curves


def _each(of: Curves, outcome: dict[str, str], told: dict[str, str], want: str, directed: Collection[str]) -> Said:
    """One clause for each curve; it holds if all are as wanted."""
    text = f"The {of.quantity.name} " + "; ".join(told[n] + (f" ({n})" if n else "") for n in told) + "."
    return Said(
        text,
        frozenset(outcome.items()),
        set(outcome.values()) == {want},
        tuple(n for n in outcome if outcome[n] in directed),
    )


def _runs(want: str, ends: int, throughout: bool, to: float | None, of: Curves) -> Said:
    """From where to where each curve runs."""
    q, outcome, told = of.quantity, {}, {}
    for name, (x, y) in of.points.items():
        first, last = y[:ends].mean(), y[-ends:].mean()
        way = "falls" if last < first else "rises" if last > first else "ends where it began"
        steady = way != "ends where it began" and (np.diff(y) * np.sign(last - first) > 0).all()
        outcome[name] = way
        if throughout and not steady and first != last:
            outcome[name] = f"{way}, not throughout"
        if (
            to is not None
            and outcome[name] == want
            and not (last < to * first if want == "falls" else last > to * first)
        ):
            outcome[name] = f"{way} by less"
        told[name] = (
            f"{way} from {q.level(first)} to {q.level(last)}, {'' if steady else 'not '}at every step, for {of.along} from {x[0]:,g} to {x[-1]:,g}"
        )
        if first == last:
            told[name] = f"ends where it began, at {q.level(last)}, for {of.along} from {x[0]:,g} to {x[-1]:,g}"
        if to is not None:
            told[name] += f", to {last / first:.2g} times its first value" if first else ""
    return _each(of, outcome, told, want, [o for o in outcome.values() if o != "ends where it began"])


def falls(
    source: Mapping | Curves,
    quantity: Quantity,
    along: str,
    *,
    ends: int = 1,
    throughout: bool = False,
    to: float | None = None,
) -> Statement:
    """Each curve ends lower than it begins.

    Args:
        source: curves by name: ``(x, y)``, ``{x: y}`` or y; a name that is empty is not said.
        quantity: what y is.
        along: what x is, with its unit: "tokens".
        ends: how many points at each end are averaged, where a curve is noisy.
        throughout: at every step.
        to: below this multiple of its beginning.
    """
    return _run("falls", source, quantity, along, ends, throughout, to)


def rises(
    source: Mapping | Curves,
    quantity: Quantity,
    along: str,
    *,
    ends: int = 1,
    throughout: bool = False,
    to: float | None = None,
) -> Statement:
    """Each curve ends higher than it begins; arguments as :func:`falls`'s."""
    return _run("rises", source, quantity, along, ends, throughout, to)


def _run(want, source, quantity, along, ends, throughout, to):
    if to is not None and (to > 1 if want == "falls" else to < 1):
        raise ValueError(
            f"what {want} ends {'below' if want == 'falls' else 'above'} its beginning: to={to:g} times it is on the other side."
        )
    of = curves(source, quantity, along)
    steady = " at every step" if throughout else ""
    reach = "" if to is None else f" to {'less' if want == 'falls' else 'more'} than {to:g} times its beginning"
    expected = f"The {quantity.name} {want}{steady}{reach} along {along} ({listed(list(of.points))})."
    return stated(partial(_runs, want, ends, throughout, to), of, expected)


def _crossings(level: float, want: str, of: Curves) -> Said:
    """Where each curve passes a level, and which way."""
    q, outcome, told = of.quantity, {}, {}
    for name, (x, y) in of.points.items():
        side = np.sign(y - level)
        off = np.flatnonzero(side)  # a point on the level is on neither side: to touch is not to cross
        at = [(i, j) for i, j in itertools.pairwise(off) if side[i] != side[j]]
        where = [x[i] + (x[i + 1] - x[i]) * (level - y[i]) / (y[i + 1] - y[i]) for i, _ in at]
        if not at:
            outcome[name] = "stays above" if (side > 0).all() else "stays below" if (side < 0).all() else "touches"
            told[name] = f"{outcome[name]} {q.level(level)}"
        else:
            ways = ["upwards" if side[j] > 0 else "downwards" for _, j in at]
            outcome[name] = ", ".join(ways)
            told[name] = f"crosses {q.level(level)} " + listed(
                [f"{w} at {v:.3g} {of.along}" for w, v in zip(ways, where, strict=True)]
            )
    return _each(of, outcome, told, want, [o for o in outcome.values() if "wards" in o and (o.count("wards") % 2)])


def crosses(
    source: Mapping | Curves, quantity: Quantity, along: str, *, level: float = 0.0, upwards: bool = False
) -> Statement:
    """Each curve passes the level once, downwards (or upwards), and not where it only touches it. For two curves, give their difference.

    Args:
        level: in the quantity's unit. Others as :func:`falls`'s.
    """
    of, level, way = curves(source, quantity, along), level / quantity.scale, "upwards" if upwards else "downwards"
    expected = f"The {quantity.name} crosses {quantity.level(level)} once, {way} ({listed(list(of.points))})."
    return stated(partial(_crossings, level, way), of, expected, level)


def _exponents(exponent: float, margin: float, of: Curves) -> Said:
    """The slope of each curve where both axes are logarithms."""
    outcome, told = {}, {}
    for name, (x, y) in of.points.items():
        if (x <= 0).any() or (y <= 0).any():
            outcome[name], told[name] = "no power", "is no power, having values that are not positive"
            continue
        slope, start = np.polyfit(np.log(x), np.log(y), 1)
        off = np.abs(np.log(y) - slope * np.log(x) - start).max()
        if off > abs(slope) * np.log(x[-1] / x[0]) / 4:  # a curve that comes back has no power, whatever the fit
            outcome[name], told[name] = (
                "no power",
                f"is no power of {of.along}: points lie up to {np.exp(off):.2g} times off the best line",
            )
            continue
        outcome[name] = "as expected" if abs(slope - exponent) <= margin else "faster" if slope < exponent else "slower"
        told[name] = f"varies as the power {slope:+.2f} of {of.along}, between {x[0]:,g} and {x[-1]:,g}"
    return _each(of, outcome, told, "as expected", ["as expected"] if abs(exponent) > margin else [])


def power(source: Mapping | Curves, quantity: Quantity, along: str, exponent: float, margin: float) -> Statement:
    """Each curve goes with a power of x: by least squares on logarithms, the exponent to within ``margin``.

    No power is what strays from its line by more than a quarter of the way that the line itself goes.
    """
    of = curves(source, quantity, along)
    expected = f"The {quantity.name} varies as the power {exponent:g} of {along}, to within {margin:g} ({listed(list(of.points))})."
    return stated(partial(_exponents, exponent, margin), of, expected)
