"""A second look at each face found, at the size and in the direction that the network sees best.

YuNet (with its weights of 8 bits) finds small faces well, but the landmarks it gives for them hardly follow a tilt of
the head: at 64 pixels, a face tilted by 20 degrees comes with landmarks tilted by 5. At 200 pixels, with 18. Faces that
lie upside down are mostly found as if they were upright, with landmarks that are nonsense.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from opqn.faces.align import warp

BLANK: Final = 127
"""Grey value around a face that its photo cuts off."""

_QUARTERS: Final = (0, 90, 180, 270)
_TURNED_LESS: Final = 0.01
"""Taken off the score of a turned view: where two views of a face score alike, upright is likelier."""
_TILTED: Final = 8.0

_Network = Callable[[NDArray[np.uint8]], NDArray[np.float64]]


class _Frame(NamedTuple):
    """Sides in pixels of a view and of the face in it."""

    view: int
    face: int


_COARSE: Final = _Frame(160, 80)  # tells best which way a face lies
_FINE: Final = _Frame(256, 210)  # gives the best landmarks


def look_closer(
    run: _Network, image: NDArray[np.uint8], face: NDArray[np.float64], *, turn: bool
) -> NDArray[np.float64]:
    """Look at the surroundings of a face again.

    Args:
        run: the network: (S, S, 3) uint8 to (N, 15), box, landmarks and score a row.
        image: the photo, (H, W, 3) uint8.
        face: (15,) box, landmarks and score, in pixels of the photo.
        turn: whether the direction it lies in is in doubt.

    Returns:
        (1, 15) in pixels of the photo, or (0, 15) if there is no face.
    """
    direction = 90 * round(tilt(face) / 90)
    if turn:
        views = [_look(run, image, face, _COARSE, quarter) for quarter in _QUARTERS]
        scores = [view[:, 14].max(initial=0) - _TURNED_LESS * bool(q) for view, q in zip(views, _QUARTERS, strict=True)]
        direction = _QUARTERS[int(np.argmax(scores))] if max(scores) > 0 else direction
    seen = _look(run, image, face, _FINE, direction)
    if len(seen) and abs((tilt(seen[0]) - direction + 180) % 360 - 180) > _TILTED:
        straight = _look(run, image, face, _FINE, tilt(seen[0]))
        seen = straight if len(straight) else seen
    return seen


def tilt(face: NDArray[np.float64]) -> float:
    """Return the degrees, clockwise, by which the line through the eyes of a (15,) row is tilted."""
    return math.degrees(math.atan2(face[7] - face[5], face[6] - face[4]))


def _look(
    run: _Network, image: NDArray[np.uint8], face: NDArray[np.float64], frame: _Frame, turned: float
) -> NDArray[np.float64]:
    """Find a face in a view where one tilted clockwise by ``turned`` degrees is upright."""
    scale = frame.face / face[2:4].max()
    cos, sin = math.cos(math.radians(turned)), math.sin(math.radians(turned))
    linear = scale * np.array([[cos, sin], [-sin, cos]])
    shift = frame.view / 2 - linear @ (face[:2] + face[2:4] / 2)
    found = run(warp(image, np.column_stack([linear, shift]), frame.view, BLANK))
    centres = found[:, :2] + found[:, 2:4] / 2
    fits = (np.abs(centres - frame.view / 2).max(1) < frame.face / 3) & (found[:, 2:4].max(1) > frame.face / 2)
    if not fits.any():
        return np.zeros((0, 15))
    best = found[fits][found[fits, 14].argmax()]
    points = np.concatenate([best[:2] + best[2:4] / 2, best[4:14]]).reshape(6, 2)
    points = (points - shift) @ np.linalg.inv(linear).T
    size = best[2:4] / scale if abs(cos) > abs(sin) else best[3:1:-1] / scale
    row: NDArray[np.float64] = np.concatenate([points[0] - size / 2, size, points[1:].ravel(), best[14:]])
    return row[None]
