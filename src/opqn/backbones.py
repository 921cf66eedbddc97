"""Backbones: aligned face crops in, feature vectors out.

The two 20-layer residual networks are those of Zhang, Zhe, Yan 2023, section 4 (SphereFace style, Liu et al. 2017).
IResNet is the face network of Deng et al. 2019 (ArcFace). Any network of timm can stand in as ``timm/NAME``.
"""

from __future__ import annotations

import math
from typing import Final

from torch import Tensor, nn

from opqn.errors import ConfigError

BLOCKS_RESNET20: Final = (1, 2, 4, 1)
CHANNELS: Final = (64, 128, 256, 512)
CHANNELS_NARROW: Final = (16, 32, 64, 128)
SMALL_RESNET20: Final = "resnet20-32-small"
IRESNET_BLOCKS: Final = {"iresnet18": (2, 2, 2, 2), "iresnet50": (3, 4, 14, 3), "iresnet100": (3, 13, 30, 3)}


def _conv_unit(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.PReLU(outputs),
    ]


class ResidualBlock(nn.Module):
    """Two 3x3 conv+BN+PReLU; the input is added after the second PReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_conv_unit(channels, channels), *_conv_unit(channels, channels))

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (N, channels, H, W) to the same shape."""
        outputs: Tensor = inputs + self.body(inputs)
        return outputs


class ResNet20(nn.Module):
    """The paper's 20-layer residual network.

    Args:
        feature_dim: length of the output vector, ``num_books * book_dim``.
        image_size: side of the square input, 32 or 112; it sets the first stride (1 or 2).
        channels: width of the four stages.
        dropout: share of the flattened map that is dropped in training.
        first_stride: of the first stage; None takes the paper's, 1 for 32 px and 2 for 112.
    """

    def __init__(
        self,
        feature_dim: int,
        image_size: int,
        channels: tuple[int, int, int, int] = CHANNELS,
        dropout: float = 0.5,
        first_stride: int | None = None,
    ) -> None:
        super().__init__()
        strides = (first_stride or (1 if image_size == 32 else 2), 2, 2, 2)
        stages: list[nn.Module] = []
        inputs = 3
        for width, stride, blocks in zip(channels, strides, BLOCKS_RESNET20, strict=True):
            stages += _conv_unit(inputs, width, stride)
            stages += [ResidualBlock(width) for _ in range(blocks)]
            inputs = width
        self.stages = nn.Sequential(*stages)
        map_size = image_size // math.prod(strides)
        self.head = _feature_head(channels[-1] * map_size**2, feature_dim, dropout)

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, 3, S, S) float to (N, feature_dim)."""
        features: Tensor = self.head(self.stages(images))
        return features


def _feature_head(inputs: int, feature_dim: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(),
        nn.BatchNorm1d(inputs),
        nn.Dropout(dropout),
        nn.Linear(inputs, feature_dim),
        nn.BatchNorm1d(feature_dim),
    )


class IResNetBlock(nn.Module):
    """BN, 3x3 conv, BN, PReLU, 3x3 conv (stride), BN; a 1x1 conv joins maps of different shape."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        outputs: Tensor = self.body(inputs) + self.shortcut(inputs)
        return outputs


class IResNet(nn.Module):
    """The improved residual network of ArcFace (Deng et al. 2019), for 112-px crops."""

    def __init__(self, feature_dim: int, blocks: tuple[int, ...], dropout: float = 0.5) -> None:
        super().__init__()
        stages: list[nn.Module] = _conv_unit(3, 64)
        inputs = 64
        for width, count in zip(CHANNELS, blocks, strict=True):
            stages += [IResNetBlock(inputs if i == 0 else width, width, 2 if i == 0 else 1) for i in range(count)]
            inputs = width
        self.stages = nn.Sequential(*stages)
        self.head = nn.Sequential(
            nn.BatchNorm2d(512),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(512 * 7 * 7, feature_dim),
            nn.BatchNorm1d(feature_dim),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, 3, 112, 112) float to (N, feature_dim)."""
        features: Tensor = self.head(self.stages(images))
        return features


class TimmBackbone(nn.Module):
    """A network of timm, its pooled output mapped to ``feature_dim`` by a linear layer and a batch norm.

    Raises:
        ConfigError: timm is not installed, or it has no network of that name.
    """

    def __init__(self, name: str, feature_dim: int) -> None:
        super().__init__()
        try:
            import timm  # noqa: PLC0415 (optional)
        except ImportError as error:
            raise ConfigError(f"backbone timm/{name} needs timm: pip install 'opqn[timm]'") from error
        if not timm.is_model(name):
            near = timm.list_models(f"{name[:6]}*")[:5]
            raise ConfigError(f"timm has no network {name!r}; near: {', '.join(near) or 'none'}")
        self.body = timm.create_model(name, pretrained=False, num_classes=0)
        self.head = nn.Sequential(nn.Linear(self.body.num_features, feature_dim), nn.BatchNorm1d(feature_dim))

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, 3, S, S) float to (N, feature_dim)."""
        features: Tensor = self.head(self.body(images))
        return features


def default_image_size(name: str) -> int:
    """Side in pixels of the square crop that a backbone takes: 32, 112, or 224 for timm."""
    if name.startswith("timm/"):
        return 224
    return 32 if name.startswith("resnet20-32") else 112


def build_backbone(name: str, feature_dim: int, dropout: float = 0.5) -> nn.Module:
    """Build a backbone by name.

    Args:
        name: ``resnet20-32``, ``resnet20-112``, ``resnet20-32-narrow``, ``resnet20-112-narrow``,
            ``resnet20-32-small`` (the narrow one with stride 2 in its first stage too, a quarter of the work),
            ``iresnet18``, ``iresnet50``, ``iresnet100`` or ``timm/NAME``.
        feature_dim: M * d.
        dropout: share of the flattened map dropped in training; timm networks keep their own.

    Raises:
        ConfigError: an unknown name; the message lists the known ones.
    """
    resnets = {
        f"resnet20-{size}{suffix}": (size, channels)
        for size in (32, 112)
        for suffix, channels in (("", CHANNELS), ("-narrow", CHANNELS_NARROW))
    }
    if name in resnets:
        return ResNet20(feature_dim, *resnets[name], dropout=dropout)
    if name == SMALL_RESNET20:
        return ResNet20(feature_dim, 32, CHANNELS_NARROW, dropout, first_stride=2)
    if name in IRESNET_BLOCKS:
        return IResNet(feature_dim, IRESNET_BLOCKS[name], dropout)
    if name.startswith("timm/"):
        return TimmBackbone(name.removeprefix("timm/"), feature_dim)
    known = [*resnets, SMALL_RESNET20, *IRESNET_BLOCKS, "timm/NAME"]
    raise ConfigError(f"unknown backbone {name!r}; choose one of {', '.join(known)}")
