"""What tells a good picture of a face from a poor one, in numbers that a person can set limits on."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from opqn._settings import Settings
from opqn.faces._require import require
from opqn.faces.align import TEMPLATE

_INNER: Final = slice(24, 88)
_DEPTHS: Final = (17.0, 17.0, 0.0, 12.0, 12.0)  # how far behind the tip of the nose, in pixels of the template
_HEAD: Final = np.column_stack([TEMPLATE, _DEPTHS])  # (5, 3): right, down, away from the viewer
_FIT: Final = np.linalg.pinv(_HEAD - _HEAD.mean(0))  # (3, 5): least squares, written out


@dataclass(frozen=True)
class FaceQuality:
    """How well a face is seen.

    Attributes:
        size: shorter side of its box, in pixels of the photo.
        eye_distance: between the centres of the eyes, in pixels of the photo; small in profile.
        score: how sure the detector is, 0 to 1.
        sharpness: how much fine detail the aligned crop has, at least 0: variance of its Laplacian over its own
            variance, so that it hardly depends on light and contrast. Blur and enlarging lower it.
        yaw: degrees the face turns; positive to the viewer's right.
        pitch: degrees it looks up (positive) or down.
        roll: degrees it is tilted in the picture, clockwise positive, -180 to 180.

    The angles come from five points and the proportions of an average face. Good for telling frontal from half profile
    and profile; expect errors of 10 degrees in yaw, 15 in pitch.
    """

    size: float
    eye_distance: float
    score: float
    sharpness: float
    yaw: float
    pitch: float
    roll: float

    def to_dict(self) -> dict[str, float]:
        """Return the signals as plain numbers by name."""
        return asdict(self)


class QualityFilter(Settings):
    """Limits on :class:`FaceQuality`. A limit that is None lets every face pass.

    Attributes:
        min_size: least ``size``, pixels.
        min_eye_distance: least ``eye_distance``, pixels.
        min_score: least ``score``.
        min_sharpness: least ``sharpness``.
        max_yaw: most degrees of yaw, to either side.
        max_pitch: most degrees of pitch, up or down.
        max_roll: most degrees of roll, to either side.
    """

    min_size: float | None = Field(default=None, ge=0)
    min_eye_distance: float | None = Field(default=None, ge=0)
    min_score: float | None = Field(default=None, ge=0, le=1)
    min_sharpness: float | None = Field(default=None, ge=0)
    max_yaw: float | None = Field(default=None, ge=0)
    max_pitch: float | None = Field(default=None, ge=0)
    max_roll: float | None = Field(default=None, ge=0)

    def reason(self, quality: FaceQuality) -> str | None:
        """Say which limit the face breaks first, for people to read, or return None if it keeps all of them."""
        for name, limit in self:
            signal = name[4:]
            value = getattr(quality, signal)
            what = signal.replace("_", " ")
            if limit is None:
                continue
            if name.startswith("min_") and not value >= limit:
                return f"{what} {value:.3g} is below {limit:g}"
            if name.startswith("max_") and not abs(value) <= limit:
                return f"{what} of {value:.0f} degrees is beyond {limit:g}"
        return None


def sharpness(crop: NDArray[np.uint8]) -> float:
    """Return the sharpness of an aligned crop, (112, 112, 3) uint8; see :class:`FaceQuality`.

    Only the inner 64 x 64 pixels count: the face, not the edges of the photo or of hair. A slight blur beforehand keeps
    the noise of a dark photo from passing for detail.

    Raises:
        OpqnError: OpenCV is not installed.
    """
    cv2 = require("cv2")
    grey = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY).astype(np.float32)
    smooth = cv2.GaussianBlur(grey, (0, 0), 1.0)
    detail = cv2.Laplacian(smooth, cv2.CV_32F)[_INNER, _INNER]
    # A variance of one grey level squared is added, so that an even surface has no detail instead of 0 / 0.
    return float(detail.var() / (grey[_INNER, _INNER].var() + 1.0))


def head_pose(landmarks: ArrayLike) -> tuple[float, float, float]:
    """Estimate yaw, pitch and roll in degrees from the five landmarks; see :class:`FaceQuality` for the signs.

    The points of an average face in space (the alignment's template, with depths) are fitted to the landmarks by the
    best scaled orthographic camera: D. DeMenthon, L. Davis: Model-based object pose in 25 lines of code. IJCV 15, 1995,
    its first step.

    Args:
        landmarks: (5, 2) pixels x, y.
    """
    points = np.asarray(landmarks, np.float64)
    seen = _FIT @ (points - points.mean(0))  # (3, 2): the x and y that the camera gives to the face's three axes
    u, _, v = np.linalg.svd(seen.T, full_matrices=False)
    right, down = u @ v  # the nearest pair of orthogonal directions
    away = np.cross(right, down)
    roll = math.atan2(down[0], right[0])
    yaw = math.asin(np.clip(away[0], -1, 1))
    pitch = math.atan2(-away[1], away[2])
    return math.degrees(yaw), math.degrees(pitch), math.degrees(roll)
