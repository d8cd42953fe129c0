"""Figures to touch: what they are given, and that the browser computes what the package does."""

import csv
import json
import math
import shutil
import subprocess
from importlib.resources import files

import numpy as np
import pytest
import torch

from kdlab.figures import divergence_dial, leash_dial, seeds_dial, t_squared_dial
from kdlab.objectives import forward_kl, reverse_kl, total_variation
from kdlab.study.downloads import CSV

node = pytest.mark.skipif(
    shutil.which("node") is None, reason="the figures' JavaScript is run by node, which is not here"
)


def computed(expression: str):
    """What the figures' script computes, outside of a browser."""
    script = files("kdlab.figures").joinpath("touch.js").read_text(encoding="utf-8")
    program = f"globalThis.document = {{ querySelectorAll: () => [] }};\n{script}\nconsole.log(JSON.stringify(({expression})(kdTouch)));"
    done = subprocess.run(["node", "-e", program], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def numbers(shown) -> list[dict]:
    return list(csv.DictReader(shown._repr_mimebundle_()[CSV].splitlines()))


def test_the_gradient_times_t_squared_comes_to_its_limit():
    rows = numbers(t_squared_dial(label="t", caption="c"))
    ratio = {float(row["T"]): float(row["over its limit"]) for row in rows}
    assert abs(ratio[1000.0] - 1) < 0.01 < abs(ratio[0.5] - 1)
    assert "of its limit" in t_squared_dial(label="t", caption="c").markup.split("<figcaption>")[0]


def test_seeds_have_the_power_of_a_paired_t_test():
    row = numbers(seeds_dial(label="s", caption="c", difference=0.4, deviation=0.3))[3]  # five seeds
    draws = np.random.default_rng(0).normal(0.4, 0.3, (40_000, 5))
    low = draws.mean(1) - 2.776445 * draws.std(1, ddof=1) / math.sqrt(5)
    assert abs(float(row["shown"]) - (low > 0).mean()) < 0.01
    assert abs(float(row["behind"]) - (draws.mean(1) <= 0).mean()) < 0.003


def test_the_leash_ends_at_the_reference_and_at_the_best_text():
    shown = leash_dial(["a", "b"], [math.log(0.9), math.log(0.1)], [0.0, 1.0], label="l", caption="c", price=1.0)
    rows = numbers(shown)
    assert float(rows[0]["reward"]) == pytest.approx(1, abs=1e-3) and float(
        rows[0]["divergence (nats)"]
    ) == pytest.approx(math.log(10), abs=1e-2)
    assert float(rows[-1]["divergence (nats)"]) < 1e-3
    best = 0.1 * math.e / (0.9 + 0.1 * math.e)
    assert f"earns {best:.4g} at" in shown.markup


def test_what_is_no_distribution_is_refused():
    with pytest.raises(ValueError, match="rising places"):
        divergence_dial([0, 0], [0.5, 0.5], label="d", caption="c")
    with pytest.raises(ValueError, match="sum to one, not to 0.8"):
        divergence_dial([0, 1], [0.5, 0.3], label="d", caption="c")
    with pytest.raises(ValueError, match="as many of each"):
        leash_dial(["a"], [0.0], [1.0, 2.0], label="l", caption="c")
    with pytest.raises(ValueError, match="sum to one, not to 2"):
        leash_dial(["a", "b"], [0.0, 0.0], [1.0, 2.0], label="l", caption="c")
    with pytest.raises(ValueError, match="2 to 30 seeds"):
        seeds_dial(label="s", caption="c", seeds=1)


@node
def test_the_browser_computes_what_the_package_does():
    generator = torch.Generator().manual_seed(0)
    z, t = (torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(2))
    p, q = t.softmax(0), z.softmax(0)
    pair = f"{p.tolist()}, {q.tolist()}"
    found = computed(f"(k) => Object.values(k.divergences).map((D) => D({pair}))")
    expected = [D(z[None], t[None]).item() for D in (forward_kl, reverse_kl, total_variation)]
    assert [found[0], found[1], found[3]] == pytest.approx(expected, rel=1e-6)

    ratio = computed(f"(k) => k.overLimit({z.tolist()}, {t.tolist()}, 4)")
    gradient = 4 * ((z / 4).softmax(0) - (t / 4).softmax(0))
    assert ratio == pytest.approx((gradient.norm() / ((z - z.mean() - t + t.mean()) / 6).norm()).item(), rel=1e-9)

    for row, quantile in zip(
        numbers(seeds_dial(label="s", caption="c"))[:20:6], (12.7062, 2.36462, 2.16037, 2.09302), strict=True
    ):
        n = int(row["seeds"])
        assert computed(f"(k) => k.power({n}, 0.4, 0.3, {quantile})") == pytest.approx(float(row["shown"]), abs=2e-3)
        assert computed(f"(k) => k.behind({n}, 0.4, 0.3)") == pytest.approx(float(row["behind"]), abs=1e-4)

    here = computed(f"(k) => k.leashed({p.log().tolist()}, {z.tolist()}, 0.5)")
    best = (p.log() + z / 0.5).softmax(0)
    assert here["reward"] == pytest.approx((best @ z).item()) and here["kl"] == pytest.approx(
        (best @ (best / p).log()).item()
    )
