"""What becomes of the claims: verdicts, each earned by the executed cells above it."""

import itertools
from collections.abc import Collection, Iterable

from ..data import ImageData, TextData
from ..figures import Shown, mathematics
from .parameters import changed
from .statements import Statement, together

#: What can become of a claim.
VERDICTS = {
    "proved": "derived for every case",
    "verified": "measured, and it holds",
    "corrected": "wrong as printed; the right statement is given",
    "refuted": "measured, and it does not hold",
    "depends": "true under conditions, which are given",
    "not decided": "measured, and it could be either: no effect, or one that would matter",
    "not measured": "this build had not the data that it takes",
}

#: What "depends" can depend on.
CONDITIONS = ("true in a limit", "bound to a scale", "under a premise", "undecided")


class Verdict(Shown):
    """A claim's verdict as an executed cell gives it; the ledger is made from these."""

    def __init__(self, claim: str, outcome: str, finding: Iterable[str | Statement], condition: str | None = None):
        text, shown = _told(finding)
        self.claim, self.outcome, self.finding, self.condition = claim, outcome, text, condition
        more = f" ({condition})" if condition else ""
        said = {"claim": claim, "outcome": outcome, "finding": text}
        super().__init__(
            f'<aside class="kd-verdict kd-{outcome.replace(" ", "-")}" id="claim-{claim.lower()}">'
            f"<strong>Claim {claim}: {outcome}{more}.</strong> {shown}</aside>",
            {"application/vnd.kdlab.verdict+json": said | ({"condition": condition} if condition else {})},
        )


def _told(finding: Iterable[str | Statement]) -> tuple[str, str]:
    """Words and statements as text, and as HTML, where statements that follow each other are a list."""
    texts, markup = [], []
    said = [part for part in finding if part != ""]
    for stated, parts in itertools.groupby(said, key=lambda part: isinstance(part, Statement)):
        lines = (together if stated else list)(parts)
        shown = [f"<li>{mathematics(line)}</li>" if stated else mathematics(line) for line in lines]
        texts += lines
        markup += ["<ul>", *shown, "</ul>"] if stated else shown
    return " ".join(texts), " ".join(markup)


def verdict(
    claim: str,
    outcome: str,
    finding: str | Statement | Iterable[str | Statement],
    *,
    data: ImageData | TextData | None = None,
    condition: str | None = None,
    parameters: Collection[str] | None = None,
) -> Verdict:
    """The verdict on a claim, earned by the cells above it.

    Args:
        claim: its id in the ledger, such as ``"A1"``.
        outcome: one of ``VERDICTS``.
        finding: what was found, in a sentence or two; ``$…$`` is mathematics. Or several, and the statements that it rests on, which
            are shown as a list.
        data: what it was measured on, if anything: on the fall-back the verdict becomes "not measured".
        condition: of "depends" alone, if it is one of ``CONDITIONS``.
        parameters: those of the chapter that the finding was computed with, by name; None: any of them may have been.

    A chapter that was executed with parameters of one's own says so in those verdicts that were computed with them.
    """
    if outcome not in VERDICTS:
        raise ValueError(f"a verdict is one of {', '.join(VERDICTS)}, not {outcome!r}.")
    if condition is not None and (outcome != "depends" or condition not in CONDITIONS):
        raise ValueError(
            f'"depends" has one of the conditions {", ".join(CONDITIONS)}; others have none: {condition!r}.'
        )
    finding = [finding] if isinstance(finding, str | Statement) else list(finding)
    if data is not None and data.fallback:
        outcome, condition = "not measured", None
        finding = [
            f"This build had no {data.wanted}; the cells above ran on the fall-back ({data.title}), which settles nothing."
        ]
    if others := _others(parameters):
        finding.append(others)
    return Verdict(claim, outcome, finding, condition)


def _others(parameters: Collection[str] | None) -> str:
    """That a chapter ran with other parameters than those by which its claims are judged; else nothing."""
    pairs = {name: pair for name, pair in changed().items() if parameters is None or name in parameters}
    said = ", ".join(f"{name} = {value!r} in place of {default!r}" for name, (value, default) in pairs.items())
    return f"(With {said}: not the setting of the claim itself, nor of the ledger.)" if said else ""
