"""Which objective, which temperature, which text: what the records answer, with how young they are. Every word that depends on a number is chosen by it."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain, product
from pathlib import Path

from .display import called, conditions, tokens_read
from .evidence import QUANTITIES, Quantity, listed
from .findings import DRAFTS, METHODS, moves
from .grown import EPOCHS, arm_name
from .results import Results, results
from .statistics import Difference
from .when_it_pays import LENGTHS, STUDENTS
from .when_it_pays import arm_name as of_length

#: From a plan's name to its results.
Read = Callable[[str], Results]

#: Objectives for a student of images, those of chapter 12.
OBJECTIVES = {"kd": "plain distillation", **METHODS, "smoothed": "label smoothing", "alone": "labels alone"}
TEMPERATURES = {f"T{T}": f"T = {T}" for T in (1, 2, 4, 8)}
#: Acceptance of a draft, sampled at temperature one: one minus its total variation from the verifier.
ACCEPTANCE = Quantity(
    "acceptance", "points", 100, 1, "higher", "%", lambda record: 1 - record["test"]["total_variation"]
)
#: Of logits that the validation split's temperature has divided; of records that held that split out.
FITTED = replace(
    QUANTITIES["calibration_error"], name="calibration error after a fitted temperature",
    of=lambda record: record["test"]["fitted"]["calibration_error"],
)  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """A practitioner's question and what records say.

    Attributes:
        question: as it is asked.
        short: what to do, in a sentence; that the records do not say it, where they do not.
        evidence: sentences with the numbers behind it, and its limits.
        rows: of a table: arm, mean, difference from ``control``.
        caption: of that table.
        records: that were read.
    """

    question: str
    short: str
    evidence: list[str]
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    caption: str = ""
    records: tuple[dict, ...] = ()


def leaders(study: Results, of: Quantity, arms: Collection[str]) -> tuple[str, list[str]]:
    """The arm with the best mean, and those that are not shown to be worse than it (Tukey's intervals, since the means choose it)."""
    sign = 1 if of.better == "higher" else -1
    first = max(arms, key=lambda arm: sign * study.mean(arm, of.of).mean)
    others = study.against(first, of.of, [arm for arm in arms if arm != first], correction="tukey")
    return first, [arm for arm, d in others.items() if not (sign * d).high < 0]


def lead(study: Results, of: Quantity, names: Mapping[str, str]) -> str:
    """The same as a sentence."""
    first, level = leaders(study, of, names)
    mean = of.level(study.mean(first, of.of).mean)
    sort = "highest" if of.better == "higher" else "lowest"
    runs = len(study.values(first, of.of))
    return f"The {sort} {of.name} is that of {names[first]} ({mean}, n = {runs}); {beside_the_best(level, names)} (Tukey's intervals)."


def beside_the_best(level: Collection[str], names: Mapping[str, str]) -> str:
    """What :func:`leaders` found beside the first, in words."""
    if not level:
        return "all others are shown to be worse"
    return f"not shown to be worse: {listed([names[arm] for arm in level])}"


def leads_by_length(pays: Results, of: Quantity) -> dict[tuple[str, float], Difference]:
    """Distilled minus alone at equal tokens in the plan ``when-it-pays``, by student and millions of tokens, where three seeds are there."""
    pairs = {
        (student, millions): tuple(of_length(student, kind, millions) for kind in ("alone", "kd"))
        for student, millions in product(STUDENTS, LENGTHS)
    }
    pairs = {at: pair for at, pair in pairs.items() if pays.complete(pair, at_least=3)}
    pool = list(chain.from_iterable(pairs.values()))
    return {at: pays.against(alone, of.of, [kd], pool=pool)[kd] for at, (alone, kd) in pairs.items()}


def _rows(study: Results, control: str, names: Mapping[str, str], quantities: Collection[Quantity]):
    """A row an arm: of each quantity its mean, and its difference from the control, paired by seed."""
    rows = []
    for arm, name in names.items():
        row = [name]
        for of in quantities:
            d = study.difference(arm, control, of.of) if arm != control else None
            row += [
                of.level(study.mean(arm, of.of).mean),
                "–" if d is None else of.shift(d).replace(f" {of.unit}", "", 1),
            ]
        rows.append((*row, f"{len(study.values(arm, quantities[0].of))}"))
    header = chain.from_iterable(
        (of.name, f"minus {names[control]}" + (f" ({of.unit})" if of.unit else "")) for of in quantities
    )
    return ("", *header, "n"), tuple(rows)


def of_images(read: Read) -> tuple[Results, dict[str, str]] | None:
    """The oldest students of images on which all objectives were asked, and the objectives' names by arm."""
    for plan, name in (("grown", lambda method: arm_name(method, EPOCHS)), ("small", str)):
        study = read(plan)
        names = {name(method): said for method, said in OBJECTIVES.items()}
        if all(any(spec.arm == arm for spec in study.specs) for arm in names) and study.complete(list(names)):
            return study, names
    return None


def _arm(names: Mapping[str, str], said: str) -> str:
    return next(arm for arm, name in names.items() if name == said)


def image_student(read: Read) -> Answer:
    """Which objective and temperature for a small student of images."""
    question = "A student of half the size, for images, on one GPU day: which objective?"
    if not (found := of_images(read)):
        return Answer(question, _unknown("small"), [])
    study, names = found
    accuracy, plain, alone = QUANTITIES["accuracy"], _arm(names, "plain distillation"), _arm(names, "labels alone")
    first, level = leaders(study, accuracy, names)
    if first == plain or plain in level:
        short = "Plain distillation: in test accuracy no other objective is shown to be above it."
        if first == alone or alone in level:
            short = "Labels alone: in test accuracy no objective that has a teacher is shown to be above them."
    else:
        short = (
            f"{names[first][0].upper()}{names[first][1:]}: in test accuracy plain distillation is shown to be below it."
        )
    d = study.difference(plain, alone)
    evidence = [
        lead(study, accuracy, names),
        f"Plain distillation {moves(d, accuracy)} against labels alone (n = {d.n}).",
    ]
    small = read("small")
    for student in ("resnet8_width8", "resnet8_width4"):
        of_size = {f"{student}-{arm}": name for arm, name in TEMPERATURES.items()}
        if small.complete(list(of_size)):
            evidence.append(f"Which temperature, for {called(student)}? {lead(small, accuracy, of_size)}")
    table, day = read("table"), read("questions")
    lacking = table.missing + day.missing
    evidence.append(
        f"How young: {conditions(study)}. "
        + (
            f"Of {len(table.specs) + len(day.specs)} planned runs of 240 epochs on a GPU, {lacking} are not recorded: "
            if lacking
            else ""
        )
        + (
            "the order after a GPU day may differ."
            if lacking
            else "the plans of 240 epochs are recorded and are to be preferred."
        )
    )
    header, rows = _rows(study, alone, names, [accuracy])
    records = study.all(names)
    return Answer(
        question, short, evidence, header, rows, f"Test accuracy by objective: {conditions(study)}.", tuple(records)
    )


def calibrated(read: Read) -> Answer:
    """Which objective for a student whose probabilities are to be believed."""
    question = "The student’s probabilities must be right: which objective?"
    if not (found := of_images(read)):
        return Answer(question, _unknown("small"), [])
    study, names = found
    error, accuracy, alone = QUANTITIES["calibration_error"], QUANTITIES["accuracy"], _arm(names, "labels alone")
    fitted = all("fitted" in record["test"] for record in study.all(names) if record["test"])
    asked = FITTED if fitted else error
    first, level = leaders(study, asked, names)
    most_accurate, as_accurate = leaders(study, accuracy, names)
    both = [arm for arm in (first, *level) if arm in (most_accurate, *as_accurate)]
    short = f"{names[first][0].upper()}{names[first][1:]} has the lowest {asked.name}"
    if both:
        short += f"; of those not shown to be worse in it, {listed([names[arm] for arm in both])} {'is' if len(both) == 1 else 'are'} also among the best in accuracy."
    else:
        short += "; none of those that lead in it is among the best in accuracy, so the choice is between the two."
    evidence = [lead(study, asked, names), lead(study, accuracy, names)]
    small = read("small")
    for student in ("resnet8_width8", "resnet8_width4"):
        of_size = {f"{student}-alone": "labels alone"} | {
            f"{student}-{arm}": name for arm, name in TEMPERATURES.items()
        }
        if small.complete(list(of_size)):
            evidence.append(f"By size, {called(student)}: {lead(small, error, of_size)}")
    if not fitted:
        evidence.append(
            "After a temperature is fitted on the validation split, the order may differ: these records keep no split for that. The plan "
            "<code>grown</code> measures it."
        )
    evidence.append(f"How young: {conditions(study)}.")
    header, rows = _rows(study, alone, names, [asked, accuracy])
    return Answer(
        question,
        short,
        evidence,
        header,
        rows,
        f"Calibration and accuracy: {conditions(study)}.",
        tuple(study.all(names)),
    )


#: Names of a student's size in the plan of language models; its arms begin with them.
SIZES = {"": "gpt_96x3", "gpt_64x2-": "gpt_64x2"}


def language(read: Read) -> Answer:
    """Whether to distil a small language model, at equal tokens and at equal compute."""
    question = "A small language model: distil it, or train it alone, at equal tokens or at equal compute?"
    study, bits = read("language-small"), QUANTITIES["bits_per_byte"]
    sizes = {p: m for p, m in SIZES.items() if study.complete([f"{p}kd", f"{p}alone", f"{p}alone-equal-compute"])}
    if not sizes:
        return Answer(question, _unknown("language-small"), [])
    evidence, decided, rows, records = [], {"tokens": set(), "compute": set()}, [], []
    for prefix, model in sizes.items():
        for held, arm in (("tokens", f"{prefix}alone"), ("compute", f"{prefix}alone-equal-compute")):
            d = study.difference(f"{prefix}kd", arm, bits.of)
            decided[held].add("nothing" if not d.excludes_zero else "distil" if d.mean < 0 else "train it alone")
            evidence.append(f"{called(model)}, equal {held}: distilling {moves(d, bits)} (n = {d.n} paired seeds).")
            rows.append((called(model), held, bits.shift(d).replace(f" {bits.unit}", "", 1), f"{d.n}"))
            records += study.all([f"{prefix}kd", arm])
    short = f"At equal tokens, {_advice(decided['tokens'])}; at equal compute, {_advice(decided['compute'])}."
    pays = read("when-it-pays")
    spec = next(spec for spec in study.specs if spec.arm == "kd")
    evidence.append(
        f"How young: the distilled students read {tokens_read(spec):.1f} million tokens. The plan "
        f"<code>when-it-pays</code> asks where distilling begins to pay, by length and size; of its runs {_recorded(pays)}."
    )
    leads = leads_by_length(pays, bits)
    if leads:
        said = "; ".join(
            f"{called(s)} {bits.shift(d)} at {millions:g} million tokens" for (s, millions), d in leads.items()
        )
        evidence.append(
            f"There, at equal tokens, with a rate and a schedule of its own for every length, distilled minus alone: {said}."
        )
        records += pays.all([of_length(s, kind, millions) for s, millions in leads for kind in ("alone", "kd")])
    if ahead := [f"{called(s)} at {millions:g} million" for (s, millions), d in leads.items() if d.low > 0]:
        short += (
            f" It turns with the length: at equal tokens, too, the student alone is ahead in the end ({listed(ahead)})."
        )
    caption = "Bits per byte, distilled minus alone (less is better)."
    return Answer(
        question,
        short,
        evidence,
        ("student", "at equal", "distilled minus alone", "n"),
        tuple(rows),
        caption,
        _once(records),
    )


def _advice(decided: Collection[str]) -> str:
    if len(decided) > 1:
        return "it depends on the size"
    (said,) = decided
    return "the records decide nothing" if said == "nothing" else said


def draft(read: Read) -> Answer:
    """What a draft for speculative decoding should learn."""
    question = "A draft for speculative decoding: what should it learn?"
    study = read("drafts-small")
    names = {**DRAFTS, "alone": "the next token alone"}
    if not study.complete(list(names)):
        return Answer(question, _unknown("drafts-small"), [])
    first, level = leaders(study, ACCEPTANCE, names)
    if first == "alone" or "alone" in level:
        short = "The next token alone is enough: no draft that has learned from the verifier is shown to be accepted more often."
    elif level:
        short = f"{names[first][0].upper()}{names[first][1:]}, or one that cannot be told apart from it: {listed([names[arm] for arm in level])}."
    else:
        short = f"{names[first][0].upper()}{names[first][1:]}: every other draft is shown to be accepted less often."
    d = study.difference(first, "alone", ACCEPTANCE.of)
    evidence = (
        []
        if first == "alone"
        else [f"Against a draft that was trained alone, it {moves(d, ACCEPTANCE)} (n = {d.n} paired seeds)."]
    )
    evidence.insert(0, lead(study, ACCEPTANCE, names))
    spec = next(spec for spec in study.specs if spec.arm == first)
    grown = read("drafts-grown")
    evidence.append(
        f"How young: {called(spec.teacher.student)} verifies {called(spec.student)} that read {tokens_read(spec):.1f} million "
        f"tokens; of longer ones (plan <code>drafts-grown</code>) {_recorded(grown)}."
    )
    header, rows = _rows(study, "alone", names, [ACCEPTANCE])
    return Answer(
        question,
        short,
        evidence,
        header,
        rows,
        "Acceptance of the draft’s tokens, by what it learned.",
        tuple(study.all(names)),
    )


#: Pairs that differ in the text: what was read, against what (chapter 17), and whether the loss is the same.
TEXTS = {
    ("own-text", "soft1"): ("the last quarter of the tokens written by the student itself, forward KL", True),
    ("mixed-text", "soft1"): ("the same, alternating with the corpus", True),
    ("teacher-text", "kd-same-text"): ("text that the teacher has written, by cross-entropy alone", False),
}


#: Bits per byte; less than this is no difference that matters here (chapter 17).
MATTERS = 0.05


def whose_text(read: Read) -> Answer:
    """The corpus, the student's own text, or the teacher's."""
    question = "Whose text: the corpus, the student’s own, or the teacher’s?"
    study, bits = read("language-small"), QUANTITIES["bits_per_byte"]
    if not study.complete(list(dict.fromkeys(chain.from_iterable(TEXTS)))):
        return Answer(question, _unknown("language-small"), [])
    evidence, rows, groups = [], [], {"better": [], "worse": [], "alike": []}
    for (arm, control), (said, same) in TEXTS.items():
        d = study.difference(arm, control, bits.of)
        alike = max(abs(d.low), abs(d.high)) <= MATTERS
        if alike or d.excludes_zero:
            groups["alike" if alike else "better" if d.mean < 0 else "worse"].append(said)
        loss = "the loss is the same" if same else "the loss differs, too"
        evidence.append(
            f"{said[0].upper()}{said[1:]} ({arm}), {moves(d, bits)} on the books, against {control}; {loss} (n = {d.n})."
        )
        rows.append((arm, control, bits.shift(d).replace(f" {bits.unit}", "", 1), f"{d.n}"))
    if groups["better"]:
        short = f"Shown to be better than the corpus, in bits per byte of the books: {listed(groups['better'])}."
    else:
        short = "The corpus, where there is one: no other text is shown to be better in bits per byte of the books."
    for group, said in (("worse", "Worse"), ("alike", f"The same within {MATTERS:g}")):
        short += f" {said}: {listed(groups[group])}." if groups[group] else ""
    grown = read("whose-text")
    evidence.append(
        "How young: the student’s own text came at the end, when next to no learning rate was left, so nothing follows for on-policy distillation. "
        f"The plan <code>whose-text</code> asks it again with rates of their own; of its runs {_recorded(grown)}."
    )
    for direction in ("forward", "reverse"):
        own, corpus = f"{direction}-student", f"{direction}-corpus"
        if grown.complete([own, corpus]):
            d = grown.against(corpus, bits.of, [own])[own]  # as chapter 17 has it
            evidence.append(
                f"There, with own text after a quarter of the tokens, {direction} KL on it {moves(d, bits)} on the books, against the corpus (n = {d.n})."
            )
    records = study.all(list(dict.fromkeys(chain.from_iterable(TEXTS))))
    caption = "Bits per byte on the books, by text (less is better)."
    return Answer(question, short, evidence, ("text", "minus", "difference", "n"), tuple(rows), caption, tuple(records))


def _unknown(plan: str) -> str:
    return f"The records do not say: <code>kdlab run {plan}</code> makes them."


def _recorded(study: Results) -> str:
    count = len(study.records)
    return f"{count or 'none'} {'is' if count < 2 else 'are'} recorded"


def _once(records: list[dict]) -> tuple[dict, ...]:
    return tuple({record["spec_hash"]: record for record in records}.values())


#: The chapter that has more of it, by question.
ANSWERS = {image_student: 15, calibrated: 15, language: 17, draft: 19, whose_text: 17}


def answers(book: Path | None = None) -> list[tuple[Answer, int]]:
    """Every question with its answer and the number of its chapter."""
    read = cache(lambda plan: results(plan, book))
    return [(ask(read), chapter) for ask, chapter in ANSWERS.items()]
