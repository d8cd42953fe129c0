"""Wide residual networks for 32×32 images.

Zagoruyko & Komodakis (2016), section 2: a 3×3 stem, three stages of ``n`` pre-activation blocks whose
channels are multiplied by ``width``, depth ``6n + 4``. Without dropout, as the distillation literature trains
them on CIFAR-100.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.shapes import Float


class PreActivationBlock(nn.Module):
    """Two 3×3 convolutions, each after normalisation and ReLU, added to what came in.

    Where the number of channels changes, a 1×1 convolution of the activated input takes the place of the
    input.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.projection = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Float[Tensor, "B C_in H_in W_in"]) -> Float[Tensor, "B C H W"]:
        active = F.relu(self.bn1(x))
        shortcut = x if self.projection is None else self.projection(active)
        return shortcut + self.conv2(F.relu(self.bn2(self.conv1(active))))


class WideResNet(nn.Module):
    """See :func:`wide_resnet`."""

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(self, depth: int, width: int, num_classes: int) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"a wide ResNet has depth 6n + 4 (10, 16, 22, …), not {depth}.")
        if width < 1:
            raise ValueError(f"a wide ResNet has a width of at least 1, not {width}.")
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        channels = 16
        for stage, outputs in enumerate((16 * width, 32 * width, 64 * width), start=1):
            layers = []
            for block in range(blocks):
                layers.append(PreActivationBlock(channels, outputs, 2 if stage > 1 and block == 0 else 1))
                channels = outputs
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
        self.bn1 = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, num_classes)
        nn.init.zeros_(self.fc.bias)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B classes"]:
        x = self.layer3(self.layer2(self.layer1(self.conv1(images))))
        return self.fc(F.relu(self.bn1(x)).mean((2, 3)))


def wide_resnet(depth: int, width: int, *, num_classes: int = 100) -> WideResNet:
    """A wide ResNet of depth ``6n + 4``, "WRN-depth-width".

    ``"layer1"``, ``"layer2"`` and ``"layer3"`` are sums that no normalisation or ReLU has touched yet, of
    ``16w``, ``32w`` and ``64w`` channels, for 32×32 images on 32×32, 16×16 and 8×8 places: the features that
    FitNets and attention transfer match in the CRD benchmark. Its features before ReLU are those after the
    next normalisation: ``"layer2.0.bn1"``, ``"layer3.0.bn1"`` and ``"bn1"``. The embedding, after ReLU, is
    ``"input:fc"``.

    Args:
        depth: 10, 16, 22, 28, 34, 40, …
        width: by how much the stages are wider than those of a ResNet.
        num_classes: size of the output.

    Returns:
        A module from images ``(B, 3, H, W)``, normalised, to logits ``(B, num_classes)``.

    Raises:
        ValueError: for a depth that is not 6n + 4 or a width below 1.

    >>> from kdlab.models import count_parameters
    >>> count_parameters(wide_resnet(40, 2))
    2255156
    """
    return WideResNet(depth, width, num_classes)


def wrn_16_1(num_classes: int = 100) -> WideResNet:
    """WRN-16-1: :func:`wide_resnet` of depth 16, with stages of 16, 32 and 64 channels."""
    return wide_resnet(16, 1, num_classes=num_classes)


def wrn_16_2(num_classes: int = 100) -> WideResNet:
    """WRN-16-2: :func:`wide_resnet` of depth 16, with stages of 32, 64 and 128 channels."""
    return wide_resnet(16, 2, num_classes=num_classes)


def wrn_40_1(num_classes: int = 100) -> WideResNet:
    """WRN-40-1: :func:`wide_resnet` of depth 40, with stages of 16, 32 and 64 channels."""
    return wide_resnet(40, 1, num_classes=num_classes)


def wrn_40_2(num_classes: int = 100) -> WideResNet:
    """WRN-40-2: :func:`wide_resnet` of depth 40, with stages of 32, 64 and 128 channels."""
    return wide_resnet(40, 2, num_classes=num_classes)
