"""A figure to touch: the reader turns the temperature, the bars follow."""

import base64
import html
import io
import itertools
import json
from importlib.resources import files

import numpy as np
from torch import Tensor

from .plotted import as_csv
from .style import CSV, Shown, mathematics


def _picture(image: Tensor) -> str:
    """A uint8 image of shape (3, H, W) as a data URI."""
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    imsave(buffer, np.ascontiguousarray(image.permute(1, 2, 0).numpy()), format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _at_one(example: dict) -> str:
    """The bars of the first example at temperature one; the script puts itself in their place."""
    logits = np.array(example["logits"])
    chances = np.exp(logits - logits.max())
    chances /= chances.sum()
    rows = "".join(
        f'<div class="kd-row"><span class="kd-label">{html.escape(name.replace("_", " "))}</span><span class="kd-track">'
        f'<span class="kd-bar{" kd-kin" if kin else ""}" style="width: {chance:.1%}"></span></span><span class="kd-number">{chance:.1%}</span></div>'
        for name, kin, chance in zip(example["classes"], example["highlight"], chances, strict=False)
    )
    image = (
        f'<img src="{example["image"]}" alt="{html.escape(example["alt"] or example["name"])}"/>'
        if example["image"]
        else ""
    )
    return (
        f'<div class="kd-dial-off"><div class="kd-dial-body"><div class="kd-side">{image}</div><div class="kd-bars">{rows}</div></div>'
        "<p>At temperature one. (To be moved by a slider, with JavaScript.)</p></div>"
    )


def temperature_dial(examples, *, label: str, caption: str) -> Shown:
    """Bars of the softened probabilities of one example, with a slider for the temperature.

    It needs no server and asks for nothing from outside: the logits are in the page. Without JavaScript the bars
    stand at temperature one.

    Args:
        examples: a list of dicts with ``name``; ``logits``, a 1-D tensor; ``classes``, their names; ``highlight``,
            a set of class indices in a second colour; ``image``, uint8 of shape (3, H, W), or None; ``alt``.
        label: unique on its page.
        caption: what to see; ``$…$`` is mathematics.
    """
    packed = []
    for example in examples:
        order = example["logits"].argsort(descending=True).tolist()
        packed.append(
            {
                "name": example["name"],
                "logits": [round(float(v), 4) for v in example["logits"][order]],
                "classes": [example["classes"][c] for c in order[:12]],
                "highlight": [c in example["highlight"] for c in order[:12]],
                "image": None if example.get("image") is None else _picture(example["image"]),
                "alt": example.get("alt", ""),
            }
        )
    data = html.escape(json.dumps(packed, ensure_ascii=True))
    logits = [
        {"example": example["name"], "class": name, "logit": f"{logit:g}"}
        for example in packed
        for name, logit in itertools.zip_longest(example["classes"], example["logits"], fillvalue="another")
    ]
    script = files("kdlab.figures").joinpath("dial.js").read_text(encoding="utf-8")
    return Shown(
        f'<figure class="kd-figure kd-dial" id="fig-{label}" data-examples="{data}">'
        f"{_at_one(packed[0])}"
        f"<figcaption>{mathematics(caption)}</figcaption></figure><script>{script}</script>",
        {CSV: as_csv(logits)},
    )
