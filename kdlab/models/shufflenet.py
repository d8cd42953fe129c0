"""ShuffleNets for 32×32 images.

V1: Zhang, Zhou, Lin & Sun (2018), section 3 and table 1, three groups. V2: Ma, Zhang, Zheng & Sun (2018),
section 3 and table 5, width 1×. Both in the form of the CRD benchmark (Tian, Krishnan & Isola 2020): a 1×1
stem of stride 1 and no pooling after it, and in V1 a ReLU also after the convolution of single channels.
Weights start as PyTorch draws them, as there.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.shapes import Float, Shaped


def convolution(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution that keeps the size, but for its stride, and its batch normalisation."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return [layer, nn.BatchNorm2d(outputs)]


def shuffle(x: Shaped[Tensor, "B C H W"], groups: int) -> Shaped[Tensor, "B C H W"]:
    """The channels of all groups in turn: of two groups (a, b) and (c, d), a, c, b, d.

    >>> shuffle(torch.arange(6).view(1, 6, 1, 1), groups=3).flatten().tolist()
    [0, 2, 4, 1, 3, 5]
    """
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


class ShuffleUnit(nn.Module):
    """V1, figure 2: a bottleneck of grouped convolutions with a shuffle between them.

    With stride 1 it is added to what came in. With stride 2 it is concatenated with the average of that, and
    makes only the channels that are missing. On the 24 channels of the stem the first convolution has one
    group.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        new = outputs - inputs if stride == 2 else outputs
        self.stride, self.groups = stride, 1 if inputs == 24 else groups
        self.reduce = nn.Sequential(*convolution(inputs, new // 4, groups=self.groups), nn.ReLU())
        self.expand = nn.Sequential(
            *convolution(new // 4, new // 4, 3, stride, groups=new // 4),
            nn.ReLU(),
            *convolution(new // 4, new, groups=groups),
        )

    def forward(self, x: Float[Tensor, "B C_in H_in W_in"]) -> Float[Tensor, "B C H W"]:
        out = self.expand(shuffle(self.reduce(x), self.groups))
        if self.stride == 1:
            return F.relu(out + x)
        return F.relu(torch.cat([out, F.avg_pool2d(x, 3, stride=2, padding=1)], 1))


class SplitUnit(nn.Module):
    """V2, figure 3: two branches, concatenated and shuffled.

    With stride 1 each has half of the channels, and the first leaves its own as they are. With stride 2 each
    has all of them.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.split, half = stride == 1, outputs // 2
        self.shortcut = nn.Identity()
        if not self.split:
            self.shortcut = nn.Sequential(
                *convolution(inputs, inputs, 3, stride, groups=inputs), *convolution(inputs, half), nn.ReLU()
            )
        self.branch = nn.Sequential(
            *convolution(half if self.split else inputs, half),
            nn.ReLU(),
            *convolution(half, half, 3, stride, groups=half),
            *convolution(half, half),
            nn.ReLU(),
        )

    def forward(self, x: Float[Tensor, "B C_in H_in W_in"]) -> Float[Tensor, "B C H W"]:
        kept, changed = x.chunk(2, 1) if self.split else (x, x)
        return shuffle(torch.cat([self.shortcut(kept), self.branch(changed)], 1), groups=2)


class ShuffleNetV1(nn.Module):
    """See :func:`shufflenet_v1`."""

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(*convolution(3, 24), nn.ReLU())
        channels = 24
        for stage, (outputs, units) in enumerate(((240, 4), (480, 8), (960, 4)), start=1):
            rest = [ShuffleUnit(outputs, outputs, 1, groups=3) for _ in range(units - 1)]
            setattr(self, f"layer{stage}", nn.Sequential(ShuffleUnit(channels, outputs, 2, groups=3), *rest))
            channels = outputs
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B classes"]:
        return self.fc(self.layer3(self.layer2(self.layer1(self.conv1(images)))).mean((2, 3)))


class ShuffleNetV2(nn.Module):
    """See :func:`shufflenet_v2`."""

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(*convolution(3, 24), nn.ReLU())
        channels = 24
        for stage, (outputs, units) in enumerate(((116, 4), (232, 8), (464, 4)), start=1):
            rest = [SplitUnit(outputs, outputs, 1) for _ in range(units - 1)]
            setattr(self, f"layer{stage}", nn.Sequential(SplitUnit(channels, outputs, 2), *rest))
            channels = outputs
        self.conv2 = nn.Sequential(*convolution(channels, 1024), nn.ReLU())
        self.fc = nn.Linear(1024, num_classes)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B classes"]:
        x = self.layer3(self.layer2(self.layer1(self.conv1(images))))
        return self.fc(self.conv2(x).mean((2, 3)))


def shufflenet_v1(num_classes: int = 100) -> ShuffleNetV1:
    """ShuffleNet V1 with three groups: stages of 4, 8 and 4 units.

    ``"layer1"``, ``"layer2"`` and ``"layer3"`` give 240, 480 and 960 channels, after ReLU, for 32×32 images
    on 16×16, 8×8 and 4×4 places: the features that FitNets and attention transfer match in the CRD benchmark.
    The embedding, the mean over all places of ``"layer3"``, is ``"input:fc"``.

    Args:
        num_classes: size of the output.

    Returns:
        A module from images ``(B, 3, H, W)``, normalised, to logits ``(B, num_classes)``.

    >>> from kdlab.models import count_parameters
    >>> count_parameters(shufflenet_v1())
    949258
    """
    return ShuffleNetV1(num_classes)


def shufflenet_v2(num_classes: int = 100) -> ShuffleNetV2:
    """ShuffleNet V2 of width 1×: stages of 4, 8 and 4 units, of which the first halves the image.

    ``"layer1"``, ``"layer2"`` and ``"layer3"`` give 116, 232 and 464 channels, after ReLU and shuffled, for
    32×32 images on 16×16, 8×8 and 4×4 places: the features that FitNets and attention transfer match in the
    CRD benchmark. The embedding, 1024 numbers after ReLU, is ``"input:fc"``.

    Args:
        num_classes: size of the output.

    Returns:
        A module from images ``(B, 3, H, W)``, normalised, to logits ``(B, num_classes)``.

    >>> from kdlab.models import count_parameters
    >>> count_parameters(shufflenet_v2())
    1355528
    """
    return ShuffleNetV2(num_classes)
