"""ResNet-50 for 32×32 images.

He, Zhang, Ren & Sun (2016), table 1: four stages of 3, 4, 6 and 3 bottleneck blocks. In the form of the CRD
benchmark (Tian, Krishnan & Isola 2020): a 3×3 stem of stride 1 and no pooling after it, and the stride of a
block in its 3×3 convolution.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.shapes import Float


class Bottleneck(nn.Module):
    """A 1×1, a 3×3 and a 1×1 convolution, the last to four times as many channels, and a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Float[Tensor, "B C_in H_in W_in"]) -> Float[Tensor, "B C H W"]:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.shortcut(x))


class BottleneckResNet(nn.Module):
    """See :func:`resnet50`."""

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        channels = 64
        for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), start=1):
            layers = []
            for block in range(blocks):
                layers.append(Bottleneck(channels, width, 2 if stage > 1 and block == 0 else 1))
                channels = 4 * width
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B classes"]:
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


def resnet50(num_classes: int = 100) -> BottleneckResNet:
    """ResNet-50 of bottlenecks; not ``resnet(50)``, which is thin and has basic blocks.

    ``"layer1"`` to ``"layer4"`` give 256, 512, 1024 and 2048 channels, after ReLU, for 32×32 images on 32×32,
    16×16, 8×8 and 4×4 places: the features that FitNets and attention transfer match in the CRD benchmark.
    The embedding, the mean over all places of ``"layer4"``, is ``"input:fc"``.

    Args:
        num_classes: size of the output.

    Returns:
        A module from images ``(B, 3, H, W)``, normalised, to logits ``(B, num_classes)``.

    >>> from kdlab.models import count_parameters
    >>> count_parameters(resnet50())
    23705252
    """
    return BottleneckResNet(num_classes)
