"""The networks have the layers, strides and map sizes that the papers give them."""

import sys
import types

import pytest
import torch
from torch import nn

from opqn import ConfigError, build_backbone
from opqn.backbones import default_image_size

RESNETS = ["resnet20-32", "resnet20-112", "resnet20-32-narrow", "resnet20-112-narrow", "resnet20-32-small"]


def on_meta(name, feature_dim=512):
    with torch.device("meta"):
        return build_backbone(name, feature_dim)


def conv_maps(network, side):
    """(stride, output channels, output side) of every convolution, in the order in which they run."""
    seen = []

    def record(layer, _, output):
        seen.append((layer.stride[0], output.shape[1], output.shape[2]))

    hooks = [layer.register_forward_hook(record) for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    network.eval()(torch.zeros(1, 3, side, side, device=next(network.parameters()).device))
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("name", RESNETS)
def test_resnet20_has_twenty_convolutions_in_four_stages(name):
    channels = (16, 32, 64, 128) if name.endswith(("narrow", "small")) else (64, 128, 256, 512)
    first_stride = 1 if name in ("resnet20-32", "resnet20-32-narrow") else 2
    expected, side = [], 32 if "-32" in name else 112
    for width, blocks, stride in zip(channels, (1, 2, 4, 1), (first_stride, 2, 2, 2), strict=True):
        side //= stride
        expected += [(stride, width, side)] + [(1, width, side)] * (2 * blocks)
    assert len(expected) == 20
    assert side == {"resnet20-32-small": 2}.get(name, 4 if "-32" in name else 7)
    assert conv_maps(on_meta(name), default_image_size(name)) == expected


@pytest.mark.parametrize("name", RESNETS)
def test_every_convolution_of_resnet20_is_3x3_and_followed_by_batch_norm_and_prelu(name):
    layers = [m for m in on_meta(name).modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d, nn.PReLU))]
    assert len(layers) == 60
    for conv, norm, prelu in zip(layers[::3], layers[1::3], layers[2::3], strict=True):
        assert (type(conv), type(norm), type(prelu)) == (nn.Conv2d, nn.BatchNorm2d, nn.PReLU)
        assert conv.kernel_size == (3, 3)
        assert conv.bias is None
        assert norm.num_features == prelu.num_parameters == conv.out_channels


def multiplications(name):
    """Of all convolutions, for one image."""
    network = on_meta(name)
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    sides = [side for _, _, side in conv_maps(network, default_image_size(name))]
    return sum(layer.weight.numel() * side**2 for layer, side in zip(convolutions, sides, strict=True))


def test_the_small_network_does_about_a_quarter_of_the_narrow_ones_work():
    assert multiplications("resnet20-32-narrow") / multiplications("resnet20-32-small") == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize(
    ("name", "inputs"),
    [("resnet20-32", 512 * 16), ("resnet20-112-narrow", 128 * 49), ("resnet20-32-small", 128 * 4)],
)
def test_resnet20_ends_in_flatten_norm_dropout_linear_norm(name, inputs):
    head = build_backbone(name, 24, dropout=0.25).head
    assert [type(layer) for layer in head] == [nn.Flatten, nn.BatchNorm1d, nn.Dropout, nn.Linear, nn.BatchNorm1d]
    assert head[1].num_features == head[3].in_features == inputs
    assert head[2].p == 0.25
    assert head[3].out_features == head[4].num_features == 24


def test_the_dropout_of_the_paper_is_the_default():
    assert [layer.p for layer in on_meta("resnet20-32").modules() if isinstance(layer, nn.Dropout)] == [0.5]


def test_the_shortcut_of_a_block_is_added_after_the_second_prelu():
    torch.manual_seed(0)
    block = next(m for m in build_backbone("resnet20-32-narrow", 8).modules() if type(m).__name__ == "ResidualBlock")
    block.eval()
    conv1, norm1, prelu1, conv2, norm2, prelu2 = block.body
    inputs = torch.randn(2, 16, 5, 5)
    expected = inputs + prelu2(norm2(conv2(prelu1(norm1(conv1(inputs))))))
    torch.testing.assert_close(block(inputs), expected)


@pytest.mark.parametrize(("name", "side"), [(name, 112 if "112" in name else 32) for name in RESNETS])
def test_features_come_out_in_the_length_asked_for(name, side):
    assert default_image_size(name) == side
    features = build_backbone(name, 20).eval()(torch.randn(2, 3, side, side))
    assert features.shape == (2, 20)
    assert torch.isfinite(features).all()


@pytest.mark.parametrize("name", RESNETS)
def test_every_weight_gets_a_gradient(name):
    network = build_backbone(name, 8)
    side = default_image_size(name)
    weights = torch.randn(4, 8)
    (network(torch.randn(4, 3, side, side)) * weights).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in network.parameters())


@pytest.mark.parametrize(
    ("name", "blocks", "parameters"),
    [("iresnet18", (2, 2, 2, 2), 24.0e6), ("iresnet50", (3, 4, 14, 3), 43.6e6), ("iresnet100", (3, 13, 30, 3), 65.2e6)],
)
def test_iresnets_have_the_published_blocks_and_size(name, blocks, parameters):
    network = on_meta(name)
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(parameters, rel=2e-3)
    expected, side = [(1, 64, 112)], 112
    for width, count in zip((64, 128, 256, 512), blocks, strict=True):
        expected += [(1, width, side), (2, width, side // 2), (2, width, side // 2)]  # the third is the shortcut
        side //= 2
        expected += [(1, width, side)] * (2 * (count - 1))
    assert conv_maps(network, 112) == expected
    assert side == 7


def test_iresnet18_maps_a_crop_to_features():
    assert default_image_size("iresnet18") == 112
    assert build_backbone("iresnet18", 16).eval()(torch.zeros(1, 3, 112, 112)).shape == (1, 16)


@pytest.mark.parametrize("name", ["resnet20", "resnet20-64", "iresnet34", "", "TIMM/resnet18"])
def test_an_unknown_name_is_refused_with_the_known_ones(name):
    with pytest.raises(
        ConfigError, match=r"unknown backbone .*resnet20-32, .*resnet20-32-small, iresnet18, .*timm/NAME"
    ):
        build_backbone(name, 8)


def test_without_timm_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"timm/resnet18 needs timm: pip install 'opqn\[timm\]'"):
        build_backbone("timm/resnet18", 8)


class PooledMean(nn.Module):
    """Stands in for a network of timm: three numbers a picture."""

    num_features = 3

    def forward(self, images):
        return images.mean(dim=(2, 3))


@pytest.fixture
def fake_timm(monkeypatch):
    timm = types.ModuleType("timm")
    timm.is_model = lambda name: name == "tiny"
    timm.list_models = lambda pattern: [name for name in ("tiny",) if name.startswith(pattern[:-1])]
    timm.create_model = lambda *_, **__: PooledMean()
    monkeypatch.setitem(sys.modules, "timm", timm)


@pytest.mark.usefixtures("fake_timm")
def test_a_network_of_timm_gets_a_linear_layer_and_a_batch_norm():
    network = build_backbone("timm/tiny", 16).eval()
    assert default_image_size("timm/tiny") == 224
    assert [type(layer) for layer in network.head] == [nn.Linear, nn.BatchNorm1d]
    assert network(torch.randn(2, 3, 8, 8)).shape == (2, 16)


@pytest.mark.usefixtures("fake_timm")
@pytest.mark.parametrize(("name", "near"), [("tin", "near: tiny"), ("huge", "near: none")])
def test_a_name_that_timm_does_not_know_is_refused_with_near_ones(name, near):
    with pytest.raises(ConfigError, match=f"timm has no network '{name}'; {near}"):
        build_backbone(f"timm/{name}", 8)
