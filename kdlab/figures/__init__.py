"""The book's figures: one style, one function a kind. Needs Matplotlib (``pip install 'kdlab[figures]'``)."""

from .dial import temperature_dial
from .dots import dots
from .explorer import explorer
from .heatmap import heatmap
from .speed_up import speed_up_dial
from .style import (
    BLUE,
    GREEN,
    ORANGE,
    PALETTE,
    PURPLE,
    SKY,
    VERMILION,
    Shown,
    mathematics,
    sentence,
    show,
    table,
    use_style,
)
from .touch import divergence_dial, leash_dial, seeds_dial, t_squared_dial
from .transfer import transfer_points

__all__ = [
    "BLUE",
    "GREEN",
    "ORANGE",
    "PALETTE",
    "PURPLE",
    "SKY",
    "VERMILION",
    "Shown",
    "divergence_dial",
    "dots",
    "explorer",
    "heatmap",
    "leash_dial",
    "mathematics",
    "seeds_dial",
    "sentence",
    "show",
    "speed_up_dial",
    "t_squared_dial",
    "table",
    "temperature_dial",
    "transfer_points",
    "use_style",
]
