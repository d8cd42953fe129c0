"""What the records found, in a sentence each, and how young they are. Every word that depends on a number is chosen by it."""

import re
from collections.abc import Collection

from .display import called, tokens_read
from .evidence import QUANTITIES, Quantity, listed
from .results import Measure, Results, results
from .statistics import Interval

#: The methods of chapter 12 besides plain distillation, each at its published weight.
METHODS = {
    "dkd": "DKD", "dist": "DIST", "standardised": "KD (standardised)", "fitnet": "FitNet", "at": "AT", "rkd": "RKD", "crd": "CRD", "crd+kd": "CRD + KD",
}  # fmt: skip

#: The drafts of chapter 19 besides the one that was trained alone, by what they learn.
DRAFTS = {
    "forward-kl": "forward KL", "reverse-kl": "reverse KL", "tv": "total variation", "log-acceptance": "−log of the acceptance",
    "own-text": "forward KL on their own text",
}  # fmt: skip


def moves(d: Interval, of: Quantity) -> str:
    """What a difference does to a quantity; of an interval with zero in it, that this is not decided.

    >>> print(moves(Interval(0.02, 0.01, 0.03, 3), QUANTITIES["accuracy"]))
    raises test accuracy by 2.00 points [1.00, 3.00]
    >>> print(moves(Interval(0.02, -0.01, 0.05, 3), QUANTITIES["accuracy"]))
    leaves undecided whether test accuracy changes (+2.00 points [-1.00, +5.00])
    """
    if not d.excludes_zero:
        return f"leaves undecided whether {of.name} changes ({of.shift(d)})"
    sign = 1 if d.mean > 0 else -1
    size = of.shift(sign * d).replace("+", "").replace(f" {of.name}", "")
    return f"{'raises' if sign > 0 else 'lowers'} {of.name} by {size}"


def transferred(study: Results) -> str | None:
    """Distillation, and the same with the teacher's wrong classes permuted, against labels alone."""
    if study.ready(arms := ["alone", "kd", "permuted"]) != arms:
        return None
    kd, permuted = (study.difference(arm, "alone") for arm in ("kd", "permuted"))
    accuracy, spec = QUANTITIES["accuracy"], study.specs[-1]
    return (
        f"On CIFAR-100, over {spec.recipe.epochs} epochs, distilling a {called(spec.student)} from a {called(spec.teacher.student)} {moves(kd, accuracy)} against labels alone; with the "
        f"teacher's wrong classes permuted, it {moves(permuted, accuracy)} (n = {kd.n} paired seeds)."
    )


def methods(study: Results) -> str | None:
    """How many of the published methods are shown to be above plain distillation, and below it."""
    if not study.complete(["kd", *METHODS]):
        return None
    shown = study.against("kd", "accuracy", METHODS)
    above = [METHODS[arm] for arm, d in shown.items() if d.low > 0]
    below = [METHODS[arm] for arm, d in shown.items() if d.high < 0]
    epochs = next(spec for spec in study.specs if spec.arm == "kd").recipe.epochs
    rest = "; of the rest it is not decided" if len(above) + len(below) < len(METHODS) else ""
    return (
        f"Of {len(METHODS)} other methods at their published weights, all at one learning rate, {_counted(above, 'above')} plain distillation in test accuracy after {epochs} epochs, and "
        f"{_counted(below, 'below')} it{rest} (Dunnett's intervals, n = {len(study.values('kd'))} seeds)."
    )


def _counted(arms: Collection[str], side: str) -> str:
    names = f" ({listed(list(arms))})" if arms else ""
    return f"{len(arms) or 'none'}{names} {'is' if len(arms) == 1 else 'are'} shown to be {side}"


def language(study: Results) -> str | None:
    """Bits per byte of a distilled student, against one alone at equal tokens, and one at equal compute."""
    if not study.complete(["kd", "alone", "alone-equal-compute"]):
        return None
    tokens, compute = (study.difference("kd", arm, "bits_per_byte") for arm in ("alone", "alone-equal-compute"))
    bits = QUANTITIES["bits_per_byte"]
    name = called(next(spec for spec in study.specs if spec.arm == "kd").student)
    return (
        f"Distilling a small language model ({name}) {moves(tokens, bits)} against training it alone on as many tokens; against training it alone with as much compute it "
        f"{moves(compute, bits)} (n = {tokens.n} paired seeds)."
    )


def drafts(study: Results) -> str | None:
    """What distillation adds to the acceptance of a draft."""
    if not study.complete(["alone", *DRAFTS]):
        return None

    def accepted(record: dict) -> float:
        return 1 - record["test"]["total_variation"]

    alone = study.mean("alone", accepted)
    added = {name: study.difference(arm, "alone", accepted) for arm, name in DRAFTS.items()}
    least, most = (choose(added, key=lambda name: added[name].mean) for choose in (min, max))
    return (
        f"A draft for speculative decoding that was trained alone has {100 * alone.mean:.1f} % of its tokens accepted; distilling it on as many changes that by "
        f"{100 * added[least].mean:+.1f} points ({least}) to {100 * added[most].mean:+.1f} points ({most}; n = {alone.n} paired seeds)."
    )


def leash(study: Results) -> str | None:
    """How far a policy walks for its reward, without a leash and with the tightest."""
    if not study.complete(["beta0", "beta1"]):
        return None

    def mean_of(name: str) -> Measure:
        return lambda record: sum(record["test"]["policy"][name]) / len(record["test"]["policy"][name])

    found = {arm: [study.mean(arm, mean_of(name)).mean for name in ("reward", "kl")] for arm in ("beta0", "beta1")}
    (free, away), (held, near) = found["beta0"], found["beta1"]
    return (
        f"Rewarded for certain words and kept on no leash, a language model earns {free:.1f} a text and ends {away:.1f} nats from its reference; on a leash with β = 1 it earns "
        f"{held:.1f} at {near:.1f} nats (n = {len(study.values('beta1', mean_of('kl')))} seeds)."
    )


#: Chapter, plan, and what its records are asked.
FINDINGS = {
    6: ("first-distillation-cpu", transferred), 12: ("small", methods), 17: ("language-small", language), 19: ("drafts-small", drafts),
    21: ("policy-small", leash),
}  # fmt: skip


def found(book=None) -> dict[int, str]:
    """By chapter, what the records found; of those that are all there."""
    said = {chapter: ask(results(plan, book)) for chapter, (plan, ask) in FINDINGS.items()}
    return {chapter: sentence for chapter, sentence in said.items() if sentence}


def scale(records: Collection[dict]) -> str:
    """How many runs there are, on what, how long they took, and how much their students saw.

    Teachers are counted among the runs, and not among the students.
    """
    on = sorted(
        {"CPUs" if re.search(r"\bthreads?\b", record["provenance"]["device"]) else "GPUs" for record in records}
    )
    # what trains side by side takes its time once; a run that diverged has none
    hours = sum(r.get("seconds", 0.0) / r.get("students_in_process", 1) for r in records) / 3600
    epochs, tokens, sentences = set(), set(), set()
    for record in (record for record in records if record["spec"]["teacher"] is not None):
        spec, how = record["spec"], record["recipe"]
        if (read := tokens_read(record)) is not None:
            tokens.add(read)
        elif "-sentences-" in spec["data"]:
            sentences.add(how["epochs"] * how["epoch_examples"])
        elif spec["train_examples"] is None:  # an epoch of a part is less
            epochs.add(how["epochs"])
    seen = []
    if epochs:
        seen.append(f"students of images learn for {_range(epochs, 'd')} epochs")
    if tokens:
        seen.append(f"language models read {_range(tokens, '.1f')} million tokens")
    if sentences:
        seen.append(f"sentence encoders read {_range(sentences, ',d')} sentences")
    return f"{len(records):,} runs on {' and '.join(on)}, {hours:.0f} hours of training: {', '.join(seen)}"


def _range(values: Collection[float], spec: str) -> str:
    least, most = (f"{choose(values):{spec}}" for choose in (min, max))
    return least if least == most else f"{least} to {most}"
