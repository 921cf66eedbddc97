"""Random crops, flips and more, drawn per sample.

Every draw is a hash of (seed, epoch, sample index), so a sample looks the same in whatever batch, worker or resumed run
it comes up. The hash is SplitMix64 (Steele, Lea, Flood 2014), used as a counter-based generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from opqn._settings import Settings
from opqn.errors import ConfigError

_GAMMA: Final = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: SplitMix64's step
_WORD: Final = (1 << 64) - 1
_ORDER_STREAM: Final = 1
_SAMPLE_STREAM: Final = 2
_NUM_DRAWS: Final = 11
_GREY: Final = 127


class Augmentation(Settings):
    """What is done to training images beside crop and flip. All off by default, as in the paper."""

    rotate_degrees: float = Field(default=0.0, ge=0, le=180, description="largest rotation, either way")
    scale: float = Field(default=0.0, ge=0, lt=1, description="largest change of size: 0.1 is -10 % to +10 %")
    brightness: float = Field(default=0.0, ge=0, le=1, description="largest shift of all values, as a share of white")
    contrast: float = Field(
        default=0.0, ge=0, le=1, description="largest change of the distance to mid-grey, as a share"
    )
    erase: float = Field(
        default=0.0, ge=0, le=1, description="probability of a grey square, a quarter to half as wide as the crop"
    )


_NOTHING: Final = Augmentation()


def epoch_order(num_samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of the samples in an epoch: a (num_samples,) int64 permutation, a function of its arguments."""
    keys = _hash(_ORDER_STREAM, seed, epoch, np.arange(num_samples, dtype=np.uint64))
    return np.argsort(keys, kind="stable")


def augment_batch(
    images: NDArray[np.uint8] | Tensor,
    crop: int,
    *,
    seed: int,
    epoch: int,
    indices: Sequence[int] | NDArray[np.int64] | Tensor,
    flip: bool = True,
    settings: Augmentation = _NOTHING,
) -> Tensor:
    """Cut a random square out of each image, mirror half of them, and apply what ``settings`` turns on.

    Args:
        images: (N, R, R, 3) uint8, on any device.
        crop: side of the square in pixels, at most R. With all settings off the pixels are copied, not interpolated.
        seed: of the training.
        epoch: number of the epoch.
        indices: (N,) which sample each image is, at least 0; a sample's draws do not depend on its place in the batch.
        flip: mirror left to right with probability 1/2.
        settings: rotation and scaling (bilinear, edges repeated), brightness and contrast, erasing.

    Returns:
        (N, 3, crop, crop) uint8, on the device of ``images``.

    Raises:
        ConfigError: images of another shape or type, ``crop`` outside 1..R, or not one index per image.
    """
    pixels = _as_tensor(images, crop)
    samples = np.asarray(indices, dtype=np.int64).astype(np.uint64)
    if samples.shape != (len(pixels),):
        raise ConfigError(f"{len(pixels)} images need as many indices; the indices have shape {samples.shape}")
    draws = _draw(seed, epoch, samples)
    top, left, flips, angle, growth, shift, stretch, erases, side, erase_top, erase_left = draws
    spare = pixels.shape[1] - crop + 1
    tops, lefts = _to(np.floor(top * spare), pixels).long(), _to(np.floor(left * spare), pixels).long()
    mirrored = _to(flips < 0.5, pixels) if flip else torch.zeros(len(pixels), dtype=torch.bool, device=pixels.device)
    if settings.rotate_degrees or settings.scale:
        radians = np.deg2rad(_around_zero(angle, settings.rotate_degrees))
        zoom = 1 + _around_zero(growth, settings.scale)
        crops = _turn(pixels, crop, tops, lefts, mirrored, _to(radians, pixels), _to(zoom, pixels))
    else:
        crops = _cut(pixels, crop, tops, lefts, mirrored)
    if settings.brightness or settings.contrast:
        factor = _to(1 + _around_zero(stretch, settings.contrast), pixels).float()
        offset = _to(255 * _around_zero(shift, settings.brightness), pixels).float()
        values = (crops.float() - 127.5) * _per_image(factor) + _per_image(127.5 + offset)
        crops = _to_uint8(values)
    if settings.erase:
        sides = np.floor(crop * (0.25 + 0.25 * side))
        inside = _inside(erase_top, sides, crop)[:, :, None] & _inside(erase_left, sides, crop)[:, None, :]
        erased = _to(inside & (erases < settings.erase)[:, None, None], pixels)  # (N, crop, crop)
        crops = crops.masked_fill(erased[:, None], _GREY)
    return crops


def center_crop(images: NDArray[np.uint8] | Tensor, crop: int) -> Tensor:
    """Cut the middle square out of (N, R, R, 3) uint8 images, for evaluation: (N, 3, crop, crop) uint8.

    The square begins at ``(R - crop) // 2``.

    Raises:
        ConfigError: images of another shape or type, or ``crop`` outside 1..R.
    """
    pixels = _as_tensor(images, crop)
    start = (pixels.shape[1] - crop) // 2
    return pixels[:, start : start + crop, start : start + crop].permute(0, 3, 1, 2).contiguous()


def _as_tensor(images: NDArray[np.uint8] | Tensor, crop: int) -> Tensor:
    pixels = images if isinstance(images, Tensor) else torch.from_numpy(np.require(images, requirements="W"))
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != pixels.shape[2] or pixels.shape[3] != 3:
        raise ConfigError(f"images must be (N, R, R, 3) uint8, not {tuple(pixels.shape)} {pixels.dtype}")
    if not 1 <= crop <= pixels.shape[1]:
        raise ConfigError(f"crop is {crop}; it must lie in 1..{pixels.shape[1]}, the side of the images")
    return pixels


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _hash(stream: int, seed: int, epoch: int, samples: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return one uint64 per sample, each a hash of all arguments."""
    key = np.array([stream], dtype=np.uint64)  # an array, as only arrays wrap around without a warning
    for part in (seed, epoch):
        key = _mix((key ^ np.uint64(part & _WORD)) + _GAMMA)
    return _mix(key + (samples + np.uint64(1)) * _GAMMA)


def _draw(seed: int, epoch: int, samples: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return (draws, N) numbers, uniform in [0, 1)."""
    keys = _hash(_SAMPLE_STREAM, seed, epoch, samples)
    steps = np.arange(1, _NUM_DRAWS + 1, dtype=np.uint64)[:, None] * _GAMMA
    return (_mix(keys + steps) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _around_zero(draws: NDArray[np.float64], reach: float) -> NDArray[np.float64]:
    return (2 * draws - 1) * reach


def _to(values: NDArray[np.float64] | NDArray[np.bool_], like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like.device)


def _per_image(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _to_uint8(values: Tensor) -> Tensor:
    return values.round().clamp(0, 255).to(torch.uint8)


def _cut(pixels: Tensor, crop: int, tops: Tensor, lefts: Tensor, mirrored: Tensor) -> Tensor:
    steps = torch.arange(crop, device=pixels.device)
    rows = tops[:, None] + steps  # (N, crop)
    columns = lefts[:, None] + torch.where(mirrored[:, None], crop - 1 - steps, steps)  # (N, crop)
    numbers = torch.arange(len(pixels), device=pixels.device)
    crops = pixels[numbers[:, None, None], rows[:, :, None], columns[:, None, :]]  # (N, crop, crop, 3)
    return crops.permute(0, 3, 1, 2).contiguous()


def _turn(
    pixels: Tensor, crop: int, tops: Tensor, lefts: Tensor, mirrored: Tensor, radians: Tensor, zoom: Tensor
) -> Tensor:
    """Cut as :func:`_cut` does, out of images rotated and scaled about the middle of the crop."""
    middle = (crop - 1) / 2
    steps = torch.arange(crop, device=pixels.device, dtype=torch.float64) - middle
    across = torch.where(mirrored[:, None], -steps, steps)[:, None, :]  # (N, 1, crop)
    down = steps[None, :, None]  # (1, crop, 1)
    # Elementwise: a batched matrix product may round differently in batches of different size.
    cosine = (radians.cos() / zoom)[:, None, None]
    sine = (radians.sin() / zoom)[:, None, None]
    x = cosine * across - sine * down + (lefts + middle)[:, None, None]  # (N, crop, crop), in pixels
    y = sine * across + cosine * down + (tops + middle)[:, None, None]
    last = max(pixels.shape[1] - 1, 1)
    grid = (torch.stack((x, y), dim=3) * (2 / last) - 1).float()  # (N, crop, crop, 2)
    values = functional.grid_sample(
        pixels.permute(0, 3, 1, 2).float(), grid, mode="bilinear", padding_mode="border", align_corners=True
    )
    return _to_uint8(values)


def _inside(draws: NDArray[np.float64], sides: NDArray[np.float64], crop: int) -> NDArray[np.bool_]:
    """Return (N, crop) whether a position lies in a stretch of ``sides`` that ``draws`` place at random."""
    starts = np.floor(draws * (crop - sides + 1))[:, None]
    steps = np.arange(crop)
    inside: NDArray[np.bool_] = (steps >= starts) & (steps < starts + sides[:, None])
    return inside
