"""MobileNetV2 for 32×32 images.

Sandler, Howard, Zhu, Zhmoginov & Chen (2018), table 2, in the form of the CRD benchmark (Tian, Krishnan &
Isola 2020), which calls it "mobile_half": half the channels, but for the last 1280; stride 1 in the row of 24
channels; ReLU in place of ReLU6; no dropout.
"""

from torch import Tensor, nn

from kdlab.shapes import Float

# A stage is one or two rows of the table: channels at full width, number of blocks, stride of the first.
STAGES = (
    ((16, 1, 1), (24, 2, 1)),
    ((32, 3, 2),),
    ((64, 4, 2), (96, 3, 1)),
    ((160, 3, 2), (320, 1, 1)),
)


def convolution(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution that keeps the size, but for its stride, and its batch normalisation."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return [layer, nn.BatchNorm2d(outputs)]


class InvertedResidual(nn.Module):
    """Widen, convolve each channel by itself, narrow without ReLU; add what came in where shapes allow."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = expansion * inputs
        self.residual = stride == 1 and inputs == outputs
        self.branch = nn.Sequential(
            *convolution(inputs, wide),
            nn.ReLU(),
            *convolution(wide, wide, 3, stride, groups=wide),
            nn.ReLU(),
            *convolution(wide, outputs),
        )

    def forward(self, x: Float[Tensor, "B C_in H_in W_in"]) -> Float[Tensor, "B C H W"]:
        return x + self.branch(x) if self.residual else self.branch(x)


class MobileNetV2(nn.Module):
    """See :func:`mobilenet_v2`."""

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        channels = 16
        self.conv1 = nn.Sequential(*convolution(3, channels, 3, stride=2), nn.ReLU())
        for stage, rows in enumerate(STAGES, start=1):
            layers = []
            for full, blocks, stride in rows:
                for block in range(blocks):
                    expansion = 6 if full > 16 else 1
                    layers.append(InvertedResidual(channels, full // 2, 1 if block else stride, expansion))
                    channels = full // 2
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
        self.conv2 = nn.Sequential(*convolution(channels, 1280), nn.ReLU())
        self.fc = nn.Linear(1280, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B classes"]:
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(images)))))
        return self.fc(self.conv2(x).mean((2, 3)))


def mobilenet_v2(num_classes: int = 100) -> MobileNetV2:
    """MobileNetV2 of width 0.5 and expansion 6.

    ``"layer1"`` to ``"layer4"`` give 12, 16, 48 and 160 channels, for 32×32 images on 16×16, 8×8, 4×4 and 2×2
    places. They are linear bottlenecks, normalised and without ReLU: the features that FitNets and attention
    transfer match in the CRD benchmark, which has no others before ReLU. The embedding, 1280 numbers after
    ReLU, is ``"input:fc"``.

    Args:
        num_classes: size of the output.

    Returns:
        A module from images ``(B, 3, H, W)``, normalised, to logits ``(B, num_classes)``.

    >>> from kdlab.models import count_parameters
    >>> count_parameters(mobilenet_v2())
    812836
    """
    return MobileNetV2(num_classes)
