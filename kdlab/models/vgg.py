"""VGG networks for 32×32 images.

Simonyan & Zisserman (2015), table 1, configurations A, B, D and E, in the form of the CRD benchmark (Tian,
Krishnan & Isola 2020): batch normalisation after every convolution, three poolings rather than five, and one
linear layer after an average over all places in place of three. VGG-8, with one convolution a stage, is the
benchmark's own.
"""

from torch import Tensor, nn

from kdlab.shapes import Float

CHANNELS = (64, 128, 256, 512, 512)
CONVOLUTIONS = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


class VGG(nn.Module):
    """See :func:`vgg`."""

    layer0: nn.Sequential
    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(self, depth: int, num_classes: int) -> None:
        super().__init__()
        if depth not in CONVOLUTIONS:
            raise ValueError(f"a VGG has depth 8, 11, 13, 16 or 19, not {depth}.")
        channels = 3
        for stage, outputs in enumerate(CHANNELS):
            layers = [nn.MaxPool2d(2)] if stage in (1, 2, 3) else []
            for _ in range(CONVOLUTIONS[depth][stage]):
                layers += [nn.Conv2d(channels, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
                channels = outputs
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)  # pyrefly: ignore[bad-argument-type] all have one
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B classes"]:
        x = self.layer2(self.layer1(self.layer0(images)))
        return self.fc(self.layer4(self.layer3(x)).mean((2, 3)))


def vgg(depth: int, *, num_classes: int = 100) -> VGG:
    """A VGG with batch normalisation, of ``depth - 3`` convolutions.

    The depth is counted as in the article, whose three linear layers are one here. The five stages are
    ``"layer0"``, which has the place of other networks' stem, to ``"layer4"``, numbered so that ``"layer1"``,
    ``"layer2"``, … stand beside those of the other families. They give 64, 128, 256, 512 and 512 channels,
    after ReLU and before pooling, for 32×32 images on 32×32, 16×16, 8×8, 4×4 and 4×4 places: the features
    that FitNets and attention transfer match in the CRD benchmark. Its features before ReLU are the output of
    a stage's last batch normalisation. The embedding is ``"input:fc"``.

    Args:
        depth: 8, 11, 13, 16 or 19.
        num_classes: size of the output.

    Returns:
        A module from images ``(B, 3, H, W)``, normalised, at least 8×8, to logits ``(B, num_classes)``.

    Raises:
        ValueError: for another depth.

    >>> from kdlab.models import count_parameters
    >>> count_parameters(vgg(13))
    9462180
    """
    return VGG(depth, num_classes)


def vgg8(num_classes: int = 100) -> VGG:
    """VGG-8: :func:`vgg` with one convolution in each stage."""
    return vgg(8, num_classes=num_classes)


def vgg11(num_classes: int = 100) -> VGG:
    """VGG-11, configuration A: :func:`vgg` with 1, 1, 2, 2 and 2 convolutions in its stages."""
    return vgg(11, num_classes=num_classes)


def vgg13(num_classes: int = 100) -> VGG:
    """VGG-13, configuration B: :func:`vgg` with two convolutions in each stage."""
    return vgg(13, num_classes=num_classes)


def vgg16(num_classes: int = 100) -> VGG:
    """VGG-16, configuration D: :func:`vgg` with 2, 2, 3, 3 and 3 convolutions in its stages."""
    return vgg(16, num_classes=num_classes)


def vgg19(num_classes: int = 100) -> VGG:
    """VGG-19, configuration E: :func:`vgg` with 2, 2, 4, 4 and 4 convolutions in its stages."""
    return vgg(19, num_classes=num_classes)
