"""From light to a picture, with all that cameras and files do to it."""

from __future__ import annotations

import io
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from opqn.data.synthetic.scenes import Scene

_USUAL: Final = 112
_GREY: Final = np.array((0.2126, 0.7152, 0.0722), np.float32)[:, None, None]
_KNEE: Final = 0.7
_WELL_LIT: Final = 0.21
_CORRECTED: Final = 0.6
"""Less than 1, so that dark skin stays darker than light skin."""


def take(light: NDArray[np.float32], scene: Scene) -> NDArray[np.uint8]:
    """Expose and develop.

    Args:
        light: (3, S, S) float32, linear red, green, blue.
        scene: for the camera's settings.

    Returns:
        (S, S, 3) uint8.
    """
    side = light.shape[1]
    light = light * (_gain(light) * np.float32(scene.exposure) * np.array(scene.cast, np.float32)[:, None, None])
    grey = (light * _GREY).sum(0)
    light = grey + (light - grey) * np.float32(scene.saturation)
    levels = light.clip(0) ** np.float32(1 / 2.2)
    levels = np.float32(0.45) + (levels - np.float32(0.45)) * np.float32(scene.contrast)
    # What is brighter than the knee is pressed together, so that highlights keep their form.
    over = (levels - np.float32(_KNEE)).clip(0)
    room = np.float32(1 - _KNEE)
    levels = np.minimum(levels, np.float32(_KNEE)) + room * (1 - np.exp(-over / room))
    pixels = _blurred((levels.clip(0, 1) * 255).transpose(1, 2, 0), scene, side)
    if scene.noise:
        grain = np.random.default_rng(scene.seed).standard_normal((side, side, 3), np.float32)
        luma = grain[:, :, :1]
        pixels += (scene.noise * (0.75 * luma + 0.5 * grain)).astype(np.float32)
    picture: NDArray[np.uint8] = np.rint(pixels.clip(0, 255)).astype(np.uint8)
    return picture


def _gain(light: NDArray[np.float32]) -> np.float32:
    """Measure the middle of the picture, as cameras do, and correct for most of what is too bright or dark."""
    start, stop = light.shape[1] // 4, light.shape[1] - light.shape[1] // 4
    middle = (light[:, start:stop, start:stop] * _GREY).sum(0).mean()
    return np.float32((_WELL_LIT / max(float(middle), 1e-3)) ** _CORRECTED)


def _blurred(pixels: NDArray[np.float32], scene: Scene, side: int) -> NDArray[np.float32]:
    """Blur by focus and motion, and lose pixels, as (S, S, 3) float32 of 0 to 255."""
    unit = side / _USUAL
    across, down = scene.motion[0] * unit, scene.motion[1] * unit
    steps = int(np.ceil(max(abs(across), abs(down))))
    if steps > 0:
        middle = np.pad(pixels, ((steps, steps), (steps, steps), (0, 0)), mode="edge")
        total = np.zeros_like(pixels)
        for step in np.linspace(-0.5, 0.5, steps + 1):
            x, y = steps + round(step * across), steps + round(step * down)
            total += middle[y : y + side, x : x + side]
        pixels = total / np.float32(steps + 1)
    count = max(8, round(side * scene.pixels))
    if scene.blur * unit < 0.05 and count >= side:
        return pixels
    image = Image.fromarray(np.rint(pixels.clip(0, 255)).astype(np.uint8))
    if scene.blur * unit >= 0.05:
        image = image.filter(ImageFilter.GaussianBlur(scene.blur * unit))
    if count < side:
        image = image.resize((count, count), Image.Resampling.BOX).resize((side, side), Image.Resampling.BICUBIC)
    return np.array(image, np.float32)


def encode(pixels: NDArray[np.uint8], quality: int) -> bytes:
    """Return a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
