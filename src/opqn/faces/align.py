"""A face is turned, scaled and shifted so that its eyes, nose and mouth lie where face networks expect them."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opqn.errors import ConfigError
from opqn.faces._require import require

CROP_SIDE: Final = 112
"""Height and width in pixels of an aligned crop."""

TEMPLATE: Final = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]], np.float64
)
"""(5, 2) pixels x, y in the aligned crop: eyes, nose, corners of the mouth, left to right as the viewer sees them.

The places are those that most face networks are trained with since J. Deng, J. Guo, N. Xue, S. Zafeiriou: ArcFace:
Additive Angular Margin Loss for Deep Face Recognition. CVPR 2019 (and before it, SphereFace, CVPR 2017).
"""


def similarity(source: ArrayLike, target: ArrayLike) -> NDArray[np.float64]:
    """Return the similarity transform that brings ``source`` nearest to ``target``, in the least-squares sense.

    It minimises what S. Umeyama: Least-squares estimation of transformation parameters between two point patterns.
    IEEE TPAMI 13, 1991, minimises. In the plane, with points as complex numbers, the transform is ``a z + b``, so the
    solution is that of a linear regression and needs no singular values.

    Args:
        source: (P, 2) points x, y, not all the same.
        target: (P, 2) points.

    Returns:
        (2, 3) matrix A, with ``A[:, :2] @ point + A[:, 2]`` near to the target; rotation and scale, never a mirror.

    Raises:
        ConfigError: other shapes, values that are not finite, or source points that all coincide.
    """
    points, wanted = np.asarray(source, np.float64), np.asarray(target, np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or points.shape != wanted.shape or not len(points):
        raise ConfigError(f"points of shapes {points.shape} and {wanted.shape}; both have to be (P, 2)")
    if not (np.isfinite(points).all() and np.isfinite(wanted).all()):
        raise ConfigError("a point is not finite")
    z, w = points @ (1, 1j), wanted @ (1, 1j)  # (P,)
    centred = z - z.mean()
    spread = np.vdot(centred, centred).real
    if spread <= 1e-18 * (1 + abs(z.mean()) ** 2):
        raise ConfigError("the source points coincide, so no transform is the nearest")
    a = np.vdot(centred, w - w.mean()) / spread
    b = w.mean() - a * z.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def align(image: NDArray[np.uint8], landmarks: ArrayLike) -> NDArray[np.uint8]:
    """Cut a face out of a photo so that its landmarks lie on :data:`TEMPLATE`.

    A face much larger than the crop is averaged down first, so that no fine pattern turns into a false one. What lies
    outside the photo is black.

    Args:
        image: (H, W, 3) uint8.
        landmarks: (5, 2) pixels x, y in the photo, in the order of :data:`TEMPLATE`.

    Returns:
        (112, 112, 3) uint8.

    Raises:
        ConfigError: landmarks of another shape, not finite, or all in one place.
        OpqnError: OpenCV is not installed.
    """
    return warp(image, similarity(landmarks, TEMPLATE), CROP_SIDE)


def warp(image: NDArray[np.uint8], matrix: NDArray[np.float64], side: int, border: int = 0) -> NDArray[np.uint8]:
    """Show a photo through a similarity transform, averaging down before it where it shrinks by 2 or more.

    Args:
        image: (H, W, 3) uint8.
        matrix: (2, 3), from pixels of the photo to pixels of the view.
        side: of the view, in pixels.
        border: value of what lies outside the photo.

    Returns:
        (side, side, 3) uint8.

    Raises:
        OpqnError: OpenCV is not installed.
    """
    cv2 = require("cv2")
    shrink = int(1 / max(math.hypot(matrix[0, 0], matrix[1, 0]), 1e-6))
    if shrink >= 2:
        image, matrix = _shrunk(cv2, image, matrix, side, shrink)
    view: NDArray[np.uint8] = cv2.warpAffine(
        image, matrix, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=[border] * 3
    )
    return view


def _shrunk(
    cv2: Any, image: NDArray[np.uint8], matrix: NDArray[np.float64], side: int, shrink: int
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Return the part of the photo that the view shows, ``shrink`` times smaller, and the matrix for it."""
    height, width = image.shape[:2]
    corners = np.array([[0, 0], [side, 0], [0, side], [side, side]], np.float64)
    seen = (corners - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T  # (4, 2)
    left, top = np.clip(np.floor(seen.min(0)) - shrink, 0, [width - 1, height - 1]).astype(int)
    right, bottom = np.clip(np.ceil(seen.max(0)) + shrink, [left + 1, top + 1], [width, height]).astype(int)
    part = image[top:bottom, left:right]
    size = (max(1, round(part.shape[1] / shrink)), max(1, round(part.shape[0] / shrink)))
    factor = np.array([part.shape[1] / size[0], part.shape[0] / size[1]])
    small = cv2.resize(part, size, interpolation=cv2.INTER_AREA)
    # Pixel centres: u of the small image stands at factor * (u + 0.5) - 0.5 of the part.
    shift = np.array([left, top]) + 0.5 * factor - 0.5
    return small, np.column_stack([matrix[:, :2] * factor, matrix[:, :2] @ shift + matrix[:, 2]])
