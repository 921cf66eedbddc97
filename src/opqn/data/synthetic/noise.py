"""Soft shapes and noise, of which all that is painted is made. Everything is float32."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_SIDE: Final = 256
_SEED: Final = 20260101
_FINE: Final = 0.06
_PER_FEATURE: Final = 2.2
"""Noise blurred by a Gaussian has features of about so many times its standard deviation."""


@cache
def _pattern(width: int) -> NDArray[np.float32]:
    """Return (256, 256) float32 noise of mean 0 and variance 1, blurred by a Gaussian of so many pixels."""
    white = np.random.default_rng([_SEED, width]).normal(size=(_SIDE, _SIDE))
    frequency = np.fft.fftfreq(_SIDE)
    kernel = np.exp(-2 * np.pi**2 * width**2 * (frequency[:, None] ** 2 + frequency**2))
    smooth = np.fft.ifft2(np.fft.fft2(white) * kernel).real
    pattern: NDArray[np.float32] = ((smooth - smooth.mean()) / smooth.std()).astype(np.float32)
    return pattern


def noise(x: NDArray[np.float32], y: NDArray[np.float32], across: float, down: float) -> NDArray[np.float32]:
    """Look up noise of mean 0 and variance 1.

    Args:
        x: places, of any shape, in the unit of the sizes.
        y: likewise.
        across: size of a feature in x.
        down: size in y.
    """
    width = 3 if min(across, down) < _FINE else 12  # coarse features need many pixels, fine ones many of them
    column = np.floor(x * np.float32(_PER_FEATURE * width / across)).astype(np.int32) & (_SIDE - 1)
    row = np.floor(y * np.float32(_PER_FEATURE * width / down)).astype(np.int32) & (_SIDE - 1)
    found: NDArray[np.float32] = _pattern(width)[row, column]
    return found


def hill(away: NDArray[Any], width: float) -> NDArray[np.float32]:
    """Return 1 at 0 and less further away, a Gaussian that is 1/e at ``width``."""
    shape: NDArray[np.float32] = np.exp(-((away * np.float32(1 / width)) ** 2)).astype(np.float32, copy=False)
    return shape


def ramp(x: NDArray[Any], low: float, high: float) -> NDArray[np.float32]:
    """Rise smoothly from 0 at ``low`` to 1 at ``high``, which may be the smaller one."""
    part = np.clip((x - np.float32(low)) / np.float32(high - low), 0, 1)
    shape: NDArray[np.float32] = (part * part * (3 - 2 * part)).astype(np.float32, copy=False)
    return shape


def mix(one: NDArray[Any], other: NDArray[Any], share: NDArray[Any]) -> NDArray[np.float32]:
    """Return so much of the other and the rest of the one."""
    mixed: NDArray[np.float32] = (one + (other - one) * share).astype(np.float32, copy=False)
    return mixed
