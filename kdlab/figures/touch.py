"""Four figures to touch: the limit of T², divergences of a bell from its teacher, seeds and luck, the leash of a policy.

Each needs no server and asks for nothing from outside; a slider is a range input, for mouse, finger and keyboard. Without JavaScript there are still
curves, and a sentence that says what the figure shows at its start.
"""

import html
import json
from collections.abc import Sequence
from importlib.resources import files

import numpy as np

from .plotted import as_csv
from .still import still
from .style import BLUE, CSV, VERMILION, Shown, mathematics


def _figure(kind: str, given: dict, rows: list[dict], off: str, label: str, caption: str) -> Shown:
    packed = html.escape(json.dumps({**given, "colours": [BLUE, VERMILION]}, separators=(",", ":"), allow_nan=False))
    script = files("kdlab.figures").joinpath("touch.js").read_text(encoding="utf-8")
    return Shown(
        f'<figure class="kd-figure kd-dial kd-touch" id="fig-{label}" data-kind="{kind}" data-given="{packed}">'
        f"{off}"
        f"<figcaption>{mathematics(caption)}</figcaption></figure><script>{script}</script>",
        {CSV: as_csv(rows)},
    )


def _softmax(z: np.ndarray, T: float = 1.0) -> np.ndarray:
    e = np.exp((z - z.max()) / T)
    return e / e.sum()


def t_squared_dial(
    *, label: str, caption: str, temperature: float = 4.0, most_classes: int = 1000, seed: int = 0
) -> Shown:
    r"""How far :math:`T^2` times the gradient of :math:`D_{\mathrm{KL}}(p\,\Vert\,q)` is from its limit :math:`(\tilde z-\tilde t)/N`, by temperature.

    The reader moves temperature, number of classes and the spread of both networks' logits, which are Gaussian; the curve is
    :math:`\Vert T(q-p)\Vert / \Vert(\tilde z-\tilde t)/N\Vert`.

    Args:
        label: unique on its page.
        caption: what to see; ``$…$`` is mathematics.
        temperature: where its slider starts, 0.5 to 1000.
        most_classes: the largest number of classes, at least 100, where its slider starts.
        seed: of the logits.

    Source: Hinton et al. (2015), section 2.1.
    """
    draw = np.random.default_rng(seed)
    student, teacher = (np.round(draw.standard_normal(most_classes), 3) for _ in range(2))
    z, t = 2 * student[:100], 3 * teacher[:100]  # where the sliders start
    limit = np.linalg.norm((z - z.mean() - t + t.mean()) / len(z))
    rows = [
        {"T": f"{T:.4g}", "over its limit": f"{np.linalg.norm(T * (_softmax(z, T) - _softmax(t, T))) / limit:.4g}"}
        for T in np.geomspace(0.5, 1000, 70)
    ]
    here = np.linalg.norm(temperature * (_softmax(z, temperature) - _softmax(t, temperature))) / limit
    said = f"For 100 classes, a teacher’s logits of spread 3 and a student’s of 2, T² times the gradient at T = {temperature:g} is {here:.2f} of its limit."
    return _figure(
        "t-squared",
        {"student": student.tolist(), "teacher": teacher.tolist(), "start": temperature},
        rows,
        still(rows, "T", ["over its limit"], said, logarithmic=True),
        label,
        caption,
    )


def divergence_dial(
    places: Sequence[float],
    teacher: Sequence[float],
    *,
    label: str,
    caption: str,
    centre: float = 0.0,
    width: float = 1.0,
) -> Shown:
    r"""A bell over ordered classes that the reader drags, its divergences from the teacher, and the pull of each on centre and width.

    The student is :math:`q\propto\exp(-(x-\mu)^2/2\sigma^2)`; shown are forward and reverse KL, Jensen–Shannon and total variation, and minus their
    slopes by :math:`\mu` and :math:`\sigma`.

    Args:
        places: of the classes, rising, shape (N,).
        teacher: their probabilities, shape (N,).
        label: unique on its page.
        caption: what to see; ``$…$`` is mathematics.
        centre, width: :math:`\mu` and :math:`\sigma` at the start.

    Raises:
        ValueError: if the teacher is no distribution over the places, or the width is not positive.
    """
    x, p = np.asarray(places, dtype=float), np.asarray(teacher, dtype=float)
    if x.ndim != 1 or x.shape != p.shape or not (np.diff(x) > 0).all():
        raise ValueError("divergence_dial needs rising places, and a probability of the teacher at each.")
    if not (p > 0).all() or abs(p.sum() - 1) > 1e-3:
        raise ValueError(f"the teacher's probabilities must be above zero and sum to one, not to {p.sum():.4g}.")
    if width <= 0:
        raise ValueError(f"the width must be positive, not {width:g}.")
    q = _softmax(-((x - centre) ** 2) / (2 * width**2))
    rows = [
        {"x": f"{a:g}", "teacher": f"{b:.5g}", "student at the start": f"{c:.5g}"}
        for a, b, c in zip(x, p, q, strict=True)
    ]
    forward = float((p * np.log(p / q)).sum())
    said = f"A bell at {centre:g} of width {width:g} has a forward KL of {forward:.3f} nats from the teacher."
    given = {"x": x.tolist(), "teacher": [float(f"{v:.6g}") for v in p], "start": [centre, width]}
    off = still(rows, "x", ["teacher", "student at the start"], said)
    return _figure("divergences", given, rows, off, label, caption)


def seeds_dial(
    *, label: str, caption: str, difference: float = 0.4, deviation: float = 0.3, seeds: int = 3, most: int = 30
) -> Shown:
    r"""How often a paired study shows a true difference, and how often the better method's mean is not the higher, by the number of seeds.

    Shown means: the 95 % interval of :math:`n` paired differences, normal with mean :math:`\delta` and deviation :math:`\sigma`, lies above zero,
    :math:`\mathbb E_s\,\Phi(\delta\sqrt n/\sigma - t_{n-1}s)` with :math:`s^2\sim\chi^2_{n-1}/(n-1)`; behind:
    :math:`\Phi(-\delta\sqrt n/\sigma)`.

    Args:
        label: unique on its page.
        caption: what to see; ``$…$`` is mathematics.
        difference, deviation: :math:`\delta` and :math:`\sigma` in points at the start.
        seeds: :math:`n` at the start.
        most: the largest number of seeds, at least 2.

    Raises:
        ValueError: for fewer than two seeds, or a deviation that is not positive.
    """
    from scipy.stats import nct, norm, t

    if not 2 <= seeds <= most or deviation <= 0:
        raise ValueError(f"seeds_dial needs 2 to {most} seeds and a positive deviation, not {seeds} and {deviation:g}.")
    quantiles = [float(f"{t.ppf(0.975, n - 1):.6g}") for n in range(2, most + 1)]
    rows = []
    for n, quantile in enumerate(quantiles, start=2):
        centre = difference * np.sqrt(n) / deviation
        rows.append(
            {"seeds": n, "shown": f"{nct.sf(quantile, n - 1, centre):.4g}", "behind": f"{norm.cdf(-centre):.4g}"}
        )
    here = rows[seeds - 2]
    said = (
        f"A true difference of {difference:g} points, with a deviation of {deviation:g}, is shown by {float(here['shown']):.0%} of studies of {seeds} seeds; in "
        f"{float(here['behind']):.0%} the better method’s mean is not the higher."
    )
    off = still(rows, "seeds", ["shown", "behind"], said)
    return _figure("seeds", {"t": quantiles, "start": [difference, deviation, seeds]}, rows, off, label, caption)


def leash_dial(
    texts: Sequence[str],
    log_reference: Sequence[float],
    reward: Sequence[float],
    *,
    label: str,
    caption: str,
    price: float = 0.5,
) -> Shown:
    r"""The best policy :math:`q^*\propto p\,e^{r/\beta}` by its price: reward against divergence from the reference, and the texts that it writes.

    Args:
        texts: all texts of a toy, by name.
        log_reference: :math:`\log p` of each, in nats, shape (number of texts,).
        reward: :math:`r` of each, of the same shape.
        label: unique on its page.
        caption: what to see; ``$…$`` is mathematics.
        price: :math:`\beta` at the start.

    Raises:
        ValueError: if lengths differ, the reference does not sum to one, or the price is not positive.
    """
    log_p, r = np.asarray(log_reference, dtype=float), np.asarray(reward, dtype=float)
    if not len(texts) == len(log_p) == len(r):
        raise ValueError(
            f"{len(texts)} texts, {len(log_p)} probabilities and {len(r)} rewards: there must be as many of each."
        )
    if abs(np.exp(log_p).sum() - 1) > 1e-3 or not np.isfinite(log_p).all():
        raise ValueError(
            f"the reference's probabilities must be above zero and sum to one, not to {np.exp(log_p).sum():.4g}."
        )
    if price <= 0:
        raise ValueError(f"the price must be positive, not {price:g}.")
    rows = []
    for beta in (*np.geomspace(0.05, 20, 80), price):
        q = _softmax(log_p + r / beta)
        kl = float((q * (np.log(np.maximum(q, 1e-300)) - log_p)).sum())
        rows.append({"beta": f"{beta:.4g}", "reward": f"{q @ r:.4g}", "divergence (nats)": f"{kl:.4g}"})
    here = rows.pop()
    said = f"At β = {price:g} the best policy earns {here['reward']} at {here['divergence (nats)']} nats from its reference."
    given = {
        "texts": list(texts), "logP": [float(f"{v:.5g}") for v in log_p], "reward": [float(f"{v:.5g}") for v in r], "start": price,
    }  # fmt: skip
    off = still(rows, "divergence (nats)", ["reward"], said)
    return _figure("leash", given, rows, off, label, caption)
