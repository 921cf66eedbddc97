"""What stands behind a head: nothing in focus."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from opqn.data.synthetic.scenes import Scene

_SIDE: Final = 64
_GREY, _GRADIENT, _THINGS, _LAMPS, _STRIPES = range(5)


def draw_background(scene: Scene, side: int) -> NDArray[np.float32]:
    """Return linear red, green, blue, (3, side * side) float32."""
    kind, seed = scene.background
    rng = np.random.default_rng(seed)
    one, two = (np.array(color) ** 2.2 for color in scene.backdrop)
    down, across = np.mgrid[:_SIDE, :_SIDE] / (_SIDE - 1)
    angle = rng.uniform(0, 2 * np.pi)
    share = np.clip(0.5 + 0.7 * (np.cos(angle) * (across - 0.5) + np.sin(angle) * (down - 0.5)), 0, 1)
    image = one + (two - one) * share[:, :, None]
    if kind == _GREY:
        image = np.broadcast_to(one, image.shape).copy()
    elif kind == _THINGS:
        for _ in range(14):
            left, top = rng.uniform(-0.2, 1, 2)
            wide, high = rng.uniform(0.08, 0.6, 2)
            inside = (np.abs(across - left - wide / 2) < wide / 2) & (np.abs(down - top - high / 2) < high / 2)
            image[inside] = (one, two)[rng.integers(2)] * rng.uniform(0.3, 1.6) * np.exp(rng.normal(size=3) * 0.25)
    elif kind == _LAMPS:
        image *= 0.5
        for _ in range(18):
            x, y, radius = *rng.uniform(0, 1, 2), rng.uniform(0.03, 0.13)
            disk = np.clip((radius - np.hypot(across - x, down - y)) / 0.03, 0, 1)
            image += disk[:, :, None] * np.exp(rng.normal(size=3) * 0.4) * rng.uniform(0.1, 0.6)
    elif kind == _STRIPES:
        wave = np.sin((np.cos(angle) * across + np.sin(angle) * down) * rng.uniform(15, 60)) > rng.uniform(-0.5, 0.5)
        image = np.where(wave[:, :, None], one, two) * (0.6 + 0.4 * share[:, :, None])
    blur = rng.uniform(2.0, 5.0)
    small = Image.fromarray((np.clip(image, 0, 1) ** (1 / 2.2) * 255).astype(np.uint8))
    large = small.filter(ImageFilter.GaussianBlur(blur)).resize((side, side), Image.Resampling.BILINEAR)
    levels: NDArray[np.float32] = _LINEAR[np.asarray(large)]
    return np.ascontiguousarray(levels.reshape(-1, 3).T)


_LINEAR: Final = ((np.arange(256) / 255) ** 2.2).astype(np.float32)
