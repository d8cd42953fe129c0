"""Students and teachers, each a function of the number of classes. May import torch and objectives.

The families of the CRD benchmark (Tian, Krishnan & Isola 2020) name their parts alike: ``"layer1"``,
``"layer2"``, … are the stages, under the number that the benchmark gives their features, and ``"fc"`` is the
last layer, whose input is the embedding.
"""

from .beginning import begin_from
from .bottleneck import resnet50
from .gpt import (
    GPT,
    gpt_64x2,
    gpt_96x3,
    gpt_192x4,
    gpt_224x2,
    gpt_224x4,
    gpt_320x6,
    gpt_704x13,
    multiply_adds,
)
from .mlp import mlp
from .mobilenet import mobilenet_v2
from .multi_token import (
    Ahead,
    MultiToken,
    heads_in_a_row_224x4,
    heads_in_a_row_704x13,
    heads_side_by_side_224x4,
    heads_side_by_side_704x13,
)
from .resnet import (
    count_parameters,
    resnet,
    resnet8,
    resnet8_width4,
    resnet8_width8,
    resnet8x4,
    resnet14,
    resnet20,
    resnet32,
    resnet32x4,
    resnet44,
    resnet56,
    resnet110,
)
from .shufflenet import shufflenet_v1, shufflenet_v2
from .side_by_side import SideBySide
from .vgg import vgg, vgg8, vgg11, vgg13, vgg16, vgg19
from .wide_resnet import wide_resnet, wrn_16_1, wrn_16_2, wrn_40_1, wrn_40_2

__all__ = [
    "Ahead",
    "GPT",
    "MultiToken",
    "SideBySide",
    "begin_from",
    "count_parameters",
    "gpt_192x4",
    "gpt_224x2",
    "gpt_224x4",
    "gpt_320x6",
    "gpt_64x2",
    "gpt_704x13",
    "gpt_96x3",
    "heads_in_a_row_224x4",
    "heads_in_a_row_704x13",
    "heads_side_by_side_224x4",
    "heads_side_by_side_704x13",
    "mlp",
    "mobilenet_v2",
    "multiply_adds",
    "resnet",
    "resnet110",
    "resnet14",
    "resnet20",
    "resnet32",
    "resnet32x4",
    "resnet44",
    "resnet50",
    "resnet56",
    "resnet8",
    "resnet8_width4",
    "resnet8_width8",
    "resnet8x4",
    "shufflenet_v1",
    "shufflenet_v2",
    "vgg",
    "vgg11",
    "vgg13",
    "vgg16",
    "vgg19",
    "vgg8",
    "wide_resnet",
    "wrn_16_1",
    "wrn_16_2",
    "wrn_40_1",
    "wrn_40_2",
]
