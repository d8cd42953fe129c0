"""Students and teachers, each a function of the number of classes. May import torch alone."""

from .mlp import mlp
from .resnet import (
    count_parameters,
    resnet,
    resnet8,
    resnet8x4,
    resnet14,
    resnet20,
    resnet32,
    resnet32x4,
    resnet44,
    resnet56,
    resnet110,
)

__all__ = [
    "count_parameters",
    "mlp",
    "resnet",
    "resnet110",
    "resnet14",
    "resnet20",
    "resnet32",
    "resnet32x4",
    "resnet44",
    "resnet56",
    "resnet8",
    "resnet8x4",
]
