import pytest
import torch

from kdlab import models


def expected_parameters(depth, classes, stem=16, width=16, projection=True):
    """The parameters of a CIFAR ResNet, counted on paper."""
    n = (depth - 2) // 6

    def convolution(inputs, outputs, kernel):
        return kernel * kernel * inputs * outputs + 2 * outputs  # with its batch normalisation

    count, inputs = convolution(3, stem, 3), stem
    for stage, outputs in enumerate((width, 2 * width, 4 * width)):
        count += convolution(inputs, outputs, 3) + (2 * n - 1) * convolution(outputs, outputs, 3)
        if projection and (stage > 0 or inputs != outputs):
            count += convolution(inputs, outputs, 1)
        inputs = outputs
    return count + inputs * classes + classes


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("resnet8", None),
        ("resnet14", None),
        ("resnet20", 278_324),
        ("resnet32", 472_756),
        ("resnet44", None),
        ("resnet56", 861_620),
        ("resnet110", 1_736_564),
        ("resnet8x4", 1_233_540),
        ("resnet32x4", 7_433_860),
    ],
)
def test_parameter_counts_with_projections(name, published):
    wide = {"stem": 32, "width": 64} if name.endswith("x4") else {}
    depth = int(name.removeprefix("resnet").removesuffix("x4"))
    count = models.count_parameters(getattr(models, name)())
    assert count == expected_parameters(depth, 100, **wide)
    assert published in (None, count)


@pytest.mark.parametrize(
    ("depth", "published"), [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)]
)
def test_parameter_counts_of_he_et_al(depth, published):
    model = models.resnet(depth, num_classes=10, shortcut="pad")
    assert models.count_parameters(model) == published == expected_parameters(depth, 10, projection=False)


@pytest.mark.parametrize("shortcut", ["projection", "pad"])
@pytest.mark.parametrize(("stem", "width"), [(16, 16), (8, 4)])
def test_output_shape_and_a_gradient_for_every_parameter(shortcut, stem, width):
    model = models.resnet(14, num_classes=7, stem=stem, width=max(width, stem), shortcut=shortcut)
    logits = model(torch.randn(4, 3, 32, 32))
    assert logits.shape == (4, 7)
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (33, 47)])
def test_images_of_other_sizes(size):
    assert models.resnet8(5).eval()(torch.randn(2, 3, *size)).shape == (2, 5)


def test_layers_are_as_many_as_the_depth_says():
    for depth in (8, 20, 56):
        layers = [
            name
            for name, module in models.resnet(depth).named_modules()
            if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)) and "projection" not in name
        ]
        assert len(layers) == depth


def test_stages_halve_the_image_and_double_the_channels():
    model, shapes = models.resnet20().eval(), []
    for stage in (model.layer1, model.layer2, model.layer3):
        stage.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[1:])))
    model(torch.randn(1, 3, 32, 32))
    assert shapes == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


def test_padding_shortcut_carries_the_input_unchanged():
    block = models.resnet(8, shortcut="pad").layer2[0]
    x = torch.randn(2, 16, 8, 8)
    carried = block.shortcut(x)
    assert torch.equal(carried[:, :16], x[:, :, ::2, ::2])
    assert carried.shape == (2, 32, 4, 4) and not carried[:, 16:].any()


def test_same_seed_same_weights():
    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in models.resnet8(10).parameters()])

    assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(1), weights(2))


def test_evaluation_treats_examples_one_by_one():
    model, images = models.resnet8(10).eval(), torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        alone = torch.cat([model(image[None]) for image in images])
        torch.testing.assert_close(model(images), alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("depth", [-4, 2, 7, 18, 21])
def test_wrong_depth_is_refused(depth):
    with pytest.raises(ValueError, match=rf"a CIFAR ResNet has depth 6n \+ 2 .*, not {depth}"):
        models.resnet(depth)


def test_unknown_shortcut_is_refused():
    with pytest.raises(ValueError, match='shortcut must be "projection" or "pad", not \'A\''):
        models.resnet(8, shortcut="A")


def test_count_parameters_counts_what_is_trained():
    model = models.resnet8(10)
    model.fc.requires_grad_(False)
    assert models.count_parameters(model) == expected_parameters(8, 10) - 64 * 10 - 10


@pytest.mark.parametrize(("width", "hidden_layers"), [(8, 0), (8, 1), (16, 3)])
def test_mlp(width, hidden_layers):
    model = models.mlp(5, 7, width=width, hidden_layers=hidden_layers)
    sizes = [5, *[width] * hidden_layers, 7]
    expected = sum((a + 1) * b for a, b in zip(sizes, sizes[1:], strict=False))
    assert models.count_parameters(model) == expected
    assert model(torch.randn(3, 5)).shape == (3, 7)
