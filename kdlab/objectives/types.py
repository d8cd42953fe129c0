"""The types that objectives share.

Classes, N of them, are in the last axis, unless ``class_axis`` says otherwise; the other axes are positions: examples, tokens, places of a map.
"""

from typing import Literal

from torch import Tensor

from kdlab.shapes import Bool, Float, Integer, Shaped

Logits = Float[Tensor, "*batch N"]
Probabilities = Float[Tensor, "*batch N"]
Labels = Integer[Tensor, "*positions"]
# True where a position counts.
Mask = Bool[Tensor, "*positions"]
Scalar = Float[Tensor, ""]
# One number, or with ``reduction="none"`` one a position.
Loss = Scalar | Float[Tensor, "*positions"]
# What a mean divides by.
Count = float | Shaped[Tensor, ""]
Reduction = Literal["batchmean", "sum", "none"]
# A number, or a tensor of the shape of the logits, with one in the axis of classes.
Temperature = float | Tensor
# What looks into a model gives, by layer.
Hidden = dict[str, Tensor]
