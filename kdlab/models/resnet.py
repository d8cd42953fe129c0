"""Residual networks for 32×32 images.

He, Zhang, Ren & Sun (2016), section 4.2: a 3×3 stem, three stages of ``n`` basic blocks, depth ``6n + 2``.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.shapes import Float


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut.

    ``shortcut="projection"`` (1×1 convolution, option B) is what the distillation literature trains on CIFAR-100;
    ``"pad"`` (zeros for the new channels, no parameters, option A) is what He et al. trained on CIFAR-10.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.new_channels = stride, outputs - inputs
        self.projection = None
        if shortcut == "projection" and (stride != 1 or inputs != outputs):
            self.projection = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def shortcut(self, x: Float[Tensor, "B C_in H_in W_in"]) -> Float[Tensor, "B C H W"]:
        if self.projection is not None:
            return self.projection(x)
        if self.stride != 1 or self.new_channels:
            return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))
        return x

    def forward(self, x: Float[Tensor, "B C_in H_in W_in"]) -> Float[Tensor, "B C H W"]:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """See :func:`resnet`."""

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(self, depth: int, num_classes: int, stem: int, width: int, shortcut: str) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"a CIFAR ResNet has depth 6n + 2 (8, 14, 20, …), not {depth}.")
        if shortcut not in ("projection", "pad"):
            raise ValueError(f'shortcut must be "projection" or "pad", not {shortcut!r}.')
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        channels = stem
        for stage, outputs in enumerate((width, 2 * width, 4 * width), start=1):
            layers = []
            for block in range(blocks):
                layers.append(BasicBlock(channels, outputs, 2 if stage > 1 and block == 0 else 1, shortcut))
                channels = outputs
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B classes"]:
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


def resnet(
    depth: int, *, num_classes: int = 100, stem: int = 16, width: int = 16, shortcut: str = "projection"
) -> ResNet:
    """A CIFAR ResNet of depth ``6n + 2``.

    Args:
        depth: 8, 14, 20, 32, 44, 56, 110, …
        num_classes: size of the output.
        stem: channels of the first convolution.
        width: channels of the first stage; the second has twice, the third four times as many.
        shortcut: ``"projection"`` or ``"pad"``, see :class:`BasicBlock`.

    Returns:
        A module from images ``(B, 3, H, W)``, normalised, to logits ``(B, num_classes)``.

    Raises:
        ValueError: for a depth that is not 6n + 2 or an unknown shortcut.

    >>> count_parameters(resnet(20, num_classes=10, shortcut="pad"))
    269722
    """
    return ResNet(depth, num_classes, stem, width, shortcut)


def resnet8(num_classes: int = 100) -> ResNet:
    """ResNet-8: :func:`resnet` of depth 8, with stages of 16, 32 and 64 channels."""
    return resnet(8, num_classes=num_classes)


def resnet14(num_classes: int = 100) -> ResNet:
    """ResNet-14: :func:`resnet` of depth 14, with stages of 16, 32 and 64 channels."""
    return resnet(14, num_classes=num_classes)


def resnet20(num_classes: int = 100) -> ResNet:
    """ResNet-20: :func:`resnet` of depth 20, with stages of 16, 32 and 64 channels."""
    return resnet(20, num_classes=num_classes)


def resnet32(num_classes: int = 100) -> ResNet:
    """ResNet-32: :func:`resnet` of depth 32, with stages of 16, 32 and 64 channels."""
    return resnet(32, num_classes=num_classes)


def resnet44(num_classes: int = 100) -> ResNet:
    """ResNet-44: :func:`resnet` of depth 44, with stages of 16, 32 and 64 channels."""
    return resnet(44, num_classes=num_classes)


def resnet56(num_classes: int = 100) -> ResNet:
    """ResNet-56: :func:`resnet` of depth 56, with stages of 16, 32 and 64 channels."""
    return resnet(56, num_classes=num_classes)


def resnet110(num_classes: int = 100) -> ResNet:
    """ResNet-110: :func:`resnet` of depth 110, with stages of 16, 32 and 64 channels."""
    return resnet(110, num_classes=num_classes)


def resnet8x4(num_classes: int = 100) -> ResNet:
    """ResNet-8 of the distillation literature's "×4" family: stem 32, stages of 64, 128 and 256 channels."""
    return resnet(8, num_classes=num_classes, stem=32, width=64)


def resnet32x4(num_classes: int = 100) -> ResNet:
    """ResNet-32 with stem 32 and stages of 64, 128 and 256 channels."""
    return resnet(32, num_classes=num_classes, stem=32, width=64)


def resnet8_width4(num_classes: int = 100) -> ResNet:
    """ResNet-8 with stages of 4, 8 and 16 channels: a student with little capacity."""
    return resnet(8, num_classes=num_classes, stem=4, width=4)


def resnet8_width8(num_classes: int = 100) -> ResNet:
    """ResNet-8 with stages of 8, 16 and 32 channels."""
    return resnet(8, num_classes=num_classes, stem=8, width=8)


def count_parameters(model: nn.Module) -> int:
    """The number of trainable scalars."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
