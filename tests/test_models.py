from itertools import pairwise

import pytest
import torch
from torch import nn

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
    expected = sum((a + 1) * b for a, b in pairwise(sizes))
    assert models.count_parameters(model) == expected
    assert model(torch.randn(3, 5)).shape == (3, 7)


# Parameters with 100 classes, counted in the code of the CRD benchmark, github.com/HobbitLong/RepDistiller, folder
# models: wrn.py; vgg.py (vgg8_bn, … there); mobilenetv2.py (mobile_half); ShuffleNetv1.py; ShuffleNetv2.py;
# resnetv2.py (ResNet50). Then the shapes of the features that it matches, from layer1 on, for 32×32 images, and the
# size of its embedding.
VGG_STAGES = [(128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 4, 4)]
BENCHMARK = {
    "wrn_16_1": (180_916, [(16, 32, 32), (32, 16, 16), (64, 8, 8)], 64),
    "wrn_16_2": (703_284, [(32, 32, 32), (64, 16, 16), (128, 8, 8)], 128),
    "wrn_40_1": (569_780, [(16, 32, 32), (32, 16, 16), (64, 8, 8)], 64),
    "wrn_40_2": (2_255_156, [(32, 32, 32), (64, 16, 16), (128, 8, 8)], 128),
    "vgg8": (3_965_028, VGG_STAGES, 512),
    "vgg11": (9_277_284, VGG_STAGES, 512),
    "vgg13": (9_462_180, VGG_STAGES, 512),
    "vgg16": (14_774_436, VGG_STAGES, 512),
    "vgg19": (20_086_692, VGG_STAGES, 512),
    "mobilenet_v2": (812_836, [(12, 16, 16), (16, 8, 8), (48, 4, 4), (160, 2, 2)], 1280),
    "shufflenet_v1": (949_258, [(240, 16, 16), (480, 8, 8), (960, 4, 4)], 960),
    "shufflenet_v2": (1_355_528, [(116, 16, 16), (232, 8, 8), (464, 4, 4)], 1024),
    "resnet50": (23_705_252, [(256, 32, 32), (512, 16, 16), (1024, 8, 8), (2048, 4, 4)], 2048),
}
every_network = pytest.mark.parametrize("name", BENCHMARK)
one_of_each_kind = pytest.mark.parametrize(
    "name",
    ["wrn_16_1", "wrn_16_2", "vgg8", "vgg13", "mobilenet_v2", "shufflenet_v1", "shufflenet_v2", "resnet50"],
)


def calibrated(name, classes=10):
    """A network in evaluation mode whose normalisations hold the statistics of some images: signals keep their size."""
    torch.manual_seed(0)
    model = getattr(models, name)(classes)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model(torch.randn(8, 3, 32, 32))
    return model.eval()


def convolutions(model):
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]


@every_network
def test_parameter_counts_of_the_benchmark(name):
    parameters, _, embedding = BENCHMARK[name]
    with torch.device("meta"):
        assert models.count_parameters(getattr(models, name)()) == parameters
        assert models.count_parameters(getattr(models, name)(10)) == parameters - 90 * (embedding + 1)


@every_network
def test_stages_and_embedding_are_those_of_the_benchmark(name):
    _, stages, embedding = BENCHMARK[name]
    model, shapes = getattr(models, name)().eval(), []
    layers = [getattr(model, f"layer{stage}") for stage in range(1, len(stages) + 1)]
    assert not hasattr(model, f"layer{len(stages) + 1}")
    for layer in layers:
        layer.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    model.fc.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(inputs[0].shape)))
    with torch.no_grad():
        assert model(torch.randn(2, 3, 32, 32)).shape == (2, 100)
    assert shapes == [*((2, *stage) for stage in stages), (2, embedding)]


@one_of_each_kind
def test_features_are_after_relu_but_in_wide_resnets_and_mobilenets(name):
    model, lowest = calibrated(name), []
    for stage in range(1, len(BENCHMARK[name][1]) + 1):
        getattr(model, f"layer{stage}").register_forward_hook(lambda module, inputs, out: lowest.append(out.min()))
    model.fc.register_forward_hook(lambda module, inputs, output: lowest.append(inputs[0].min()))
    with torch.no_grad():
        model(torch.randn(4, 3, 32, 32))
    *features, embedding = lowest
    assert embedding >= 0
    if name.startswith(("wrn", "mobilenet")):
        assert all(x < 0 for x in features)
    else:
        assert all(x == 0 for x in features)


def test_features_of_wide_resnets_before_relu_are_those_of_the_next_normalisation():
    model, seen = calibrated("wrn_16_2"), {}
    for tapped in ("layer1", "layer2", "layer3", "layer2.0.bn1", "layer3.0.bn1", "bn1"):
        model.get_submodule(tapped).register_forward_hook(
            lambda module, inputs, output, tapped=tapped: seen.update({tapped: (inputs[0], output)})
        )
    with torch.no_grad():
        model(torch.randn(2, 3, 32, 32))
    for stage, normalisation in (("layer1", "layer2.0.bn1"), ("layer2", "layer3.0.bn1"), ("layer3", "bn1")):
        assert torch.equal(seen[normalisation][0], seen[stage][1])


@one_of_each_kind
def test_every_parameter_of_every_family_gets_a_gradient(name):
    model = calibrated(name)  # in training mode a bias before batch normalisation, as VGG has them, would get none
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    for parameter, values in model.named_parameters():
        assert values.grad is not None and values.grad.abs().max() > 0, parameter


@one_of_each_kind
def test_every_family_learns_in_training_mode_and_changes_nothing_in_place(name):
    model, images = getattr(models, name)(10).train(), torch.randn(4, 3, 32, 32, requires_grad=True)
    before = images.detach().clone()
    model(images).square().sum().backward()
    assert images.grad.abs().max() > 0 and torch.equal(images, before)
    assert not any(getattr(module, "inplace", False) for module in model.modules())


@one_of_each_kind
def test_every_family_treats_examples_one_by_one_in_evaluation(name):
    model, images = calibrated(name), torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        together, alone = model(images), torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4 * alone.abs().max().item())
    assert not torch.allclose(alone[0], alone[1], rtol=1e-2, atol=0)


@one_of_each_kind
def test_channels_last_gives_the_same(name):
    model, images = calibrated(name), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(images)
        model = model.to(memory_format=torch.channels_last)
        found = model(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


@one_of_each_kind
def test_every_family_takes_images_of_other_sizes(name):
    model = getattr(models, name)(5).eval()
    with torch.no_grad():
        for size in [(8, 8), (33, 47)]:
            assert model(torch.randn(1, 3, *size)).shape == (1, 5)


@pytest.mark.parametrize("name", ["wrn_16_2", "vgg8", "mobilenet_v2", "resnet50"])
def test_weights_start_as_in_the_benchmark(name):
    model = getattr(models, name)()
    for layer in convolutions(model):
        std = (2 / (layer.out_channels * layer.kernel_size[0] ** 2)) ** 0.5
        weights = layer.weight.numel()
        assert layer.weight.std().item() == pytest.approx(std, rel=5 / (2 * weights) ** 0.5)
        assert layer.bias is None or not layer.bias.any()
    assert name == "resnet50" or not model.fc.bias.any()
    if name in ("vgg8", "mobilenet_v2"):
        assert model.fc.weight.std().item() == pytest.approx(0.01, rel=0.02)


@pytest.mark.parametrize(("depth", "width"), [(10, 1), (16, 2), (28, 10), (40, 1)])
def test_wide_resnets_have_as_many_layers_as_the_depth_says(depth, width):
    with torch.device("meta"):
        model = models.wide_resnet(depth, width)
    assert sum(layer.kernel_size == (3, 3) for layer in convolutions(model)) == depth - 3
    assert model.fc.in_features == 64 * width


@pytest.mark.parametrize("depth", [8, 11, 13, 16, 19])
def test_vggs_have_as_many_convolutions_as_the_depth_says(depth):
    with torch.device("meta"):
        assert len(convolutions(models.vgg(depth))) == depth - 3


def test_the_other_layers_are_as_many_as_published():
    with torch.device("meta"):
        assert len(convolutions(models.resnet50())) == 49 + 4  # and projections
        assert len(convolutions(models.mobilenet_v2())) == 3 * 17 + 2
        assert len(convolutions(models.shufflenet_v1())) == 3 * 16 + 1
        assert len(convolutions(models.shufflenet_v2())) == 3 * 16 + 2 * 3 + 2


def test_wide_resnet_shares_the_activation_between_shortcut_and_branch():
    block = models.wrn_16_2().eval().layer2[0]
    x = torch.randn(2, 32, 8, 8)
    nn.init.zeros_(block.conv2.weight)
    assert torch.equal(block(x), block.projection(torch.relu(block.bn1(x))))
    same = models.wrn_16_2().eval().layer2[1]
    nn.init.zeros_(same.conv2.weight)
    assert torch.equal(same(x := torch.randn(2, 64, 8, 8)), x)


def test_shuffling_goes_round_the_groups():
    from kdlab.models.shufflenet import shuffle

    x = torch.randn(2, 12, 3, 5)
    assert torch.equal(shuffle(shuffle(x, 3), 4), x) and torch.equal(shuffle(x, 1), x)
    assert torch.equal(shuffle(x, 3)[:, :4], x[:, [0, 4, 8, 1]])


@pytest.mark.parametrize("depth", [-2, 4, 8, 18, 20, 41])
def test_wrong_depth_of_a_wide_resnet_is_refused(depth):
    with pytest.raises(ValueError, match=rf"a wide ResNet has depth 6n \+ 4 .*, not {depth}\."):
        models.wide_resnet(depth, 2)


def test_wrong_width_of_a_wide_resnet_is_refused():
    with pytest.raises(ValueError, match="a width of at least 1, not 0"):
        models.wide_resnet(16, 0)


@pytest.mark.parametrize("depth", [0, 5, 12, 20])
def test_wrong_depth_of_a_vgg_is_refused(depth):
    with pytest.raises(ValueError, match=f"a VGG has depth 8, 11, 13, 16 or 19, not {depth}"):
        models.vgg(depth)
