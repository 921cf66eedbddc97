"""Finding faces in photos of any size, whichever way they lie."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from opqn._settings import Settings
from opqn.errors import ConfigError, CorruptFileError
from opqn.faces._require import require
from opqn.faces.closer import BLANK, look_closer, tilt
from opqn.faces.graph import parse
from opqn.faces.weights import YUNET, load_weights, read_weights

_SMALLEST: Final = 16
"""Pixels that a face needs for the network to find most of them; from 22 on it finds nearly all. Above 300 it loses
them again."""
_STEP: Final = 4
"""Each further look is at a photo so many times smaller: faces of 16 to 300 pixels overlap well with those of 64 up."""
_WORKING_SIDE: Final = 640
_COARSEST_SIDE: Final = 320
_CLOSE_SIDE: Final = 160
_CLOSE_MARGIN: Final = 40
_TOP_K: Final = 5000
_SURE: Final = 0.9
"""Almost all faces that lie upside down but are taken for upright score below this; few upright faces of some size do
(5 %)."""
_CANDIDATE: Final = 0.5
"""Least score of what is looked at closer: small, grey or blurred faces score so at first, and above 0.9 then."""
_LEAST_SIDE: Final = 8
_creating = threading.Lock()


class DetectorSettings(Settings):
    """What counts as a face, and how hard to look.

    Attributes:
        score_threshold: least score of a face, 0 to 1.
        nms_threshold: of two boxes whose intersection is more than this share of their union, the better one stays.
        max_faces: most faces of one photo; those of the highest scores stay.
        min_face: shorter side, in pixels of the photo, of the smallest face wanted. Photos are scaled down as far as it
            allows, so larger is faster: the time is nearly proportional to ``1 / min_face ** 2`` in large photos.
        max_side: longer side, in pixels, that a larger photo is scaled down to whatever ``min_face`` says. It bounds
            memory and time. In a photo so scaled down, nearly all faces of ``22 * side / max_side`` pixels are found:
            50 in one of 6000 x 4000.
        try_turned: whether faces that lie on a side or upside down are looked for where none is found upright (if
            larger than a fortieth of the longer side), and whether a face of a score below 0.9 is turned to see which
            way it lies.
    """

    score_threshold: float = Field(default=0.7, gt=0, lt=1)
    nms_threshold: float = Field(default=0.3, gt=0, le=1)
    max_faces: int = Field(default=1000, ge=1)
    min_face: float = Field(default=24.0, ge=8)
    max_side: int = Field(default=2560, ge=_WORKING_SIDE, le=8192)
    try_turned: bool = True


class Detections(NamedTuple):
    """The faces of a photo, best score first.

    Attributes:
        boxes: (N, 4) float32: x, y of the upper left corner, width, height, in pixels of the photo; a box may reach
            over its edges.
        landmarks: (N, 5, 2) float32: x, y of the eyes, nose and corners of the mouth, in pixels of the photo. Of an
            upright face, left to right as the viewer sees it.
        scores: (N,) float32, 0 to 1.
    """

    boxes: NDArray[np.float32]
    landmarks: NDArray[np.float32]
    scores: NDArray[np.float32]


class FaceDetector:
    """YuNet, run by OpenCV. One detector may be used by many threads at once; each gets a network of its own.

    Args:
        settings: what counts as a face.
        weights: another ONNX file that ``cv2.FaceDetectorYN`` runs; the ready-made one without it.
        sha256: what the SHA-256 of ``weights`` has to be, in hexadecimal; unchecked without it.

    Raises:
        OpqnError: OpenCV or onnx is not installed.
        DataError: the weights are not found; the message lists the places.
        CorruptFileError: the weights are damaged or read other files.
        ConfigError: ``sha256`` without ``weights``.
    """

    def __init__(
        self,
        settings: DetectorSettings | None = None,
        *,
        weights: str | Path | None = None,
        sha256: str | None = None,
    ) -> None:
        if weights is None and sha256 is not None:
            raise ConfigError("sha256 belongs to a file of your own; give weights too")
        self.settings = settings or DetectorSettings()
        self.weights = load_weights(YUNET) if weights is None else read_weights(weights, sha256)
        parse(self.weights)
        self._networks = threading.local()
        self._network()

    def detect(self, image: NDArray[np.uint8]) -> Detections:
        """Find the faces of a photo.

        Args:
            image: (H, W, 3) uint8, RGB, upright as far as its EXIF data tells.

        Raises:
            ConfigError: an array of another shape or type.
        """
        check_photo(image)
        height, width = image.shape[:2]
        if min(height, width) < _LEAST_SIDE:
            return _as_detections(_NONE)
        side = max(height, width)
        wanted = max(_WORKING_SIDE, side * _SMALLEST / self.settings.min_face)
        found = self._confirm(image, self._look(image, min(side, wanted, self.settings.max_side)))
        if self.settings.try_turned and (not len(found) or any(abs(tilt(face)) > 45 for face in found)):
            found = self._confirm(image, self._best(np.concatenate([found, *self._look_turned(image)])))
        found = found[np.minimum(found[:, 2], found[:, 3]) >= self.settings.min_face]
        return _as_detections(found)

    def _look_turned(self, image: NDArray[np.uint8]) -> Iterator[NDArray[np.float64]]:
        """Find faces that lie on a side or upside down, if they are not small ones of a large photo."""
        small, scale = _shrink(image, _WORKING_SIDE)
        for turn in (1, 2, 3):
            found = self._look(np.ascontiguousarray(np.rot90(small, turn)), max(small.shape))
            found = _turn_back(found, small.shape[1], small.shape[0], turn)
            found[:, :14] /= np.tile(scale, 7)
            yield found

    def _confirm(self, image: NDArray[np.uint8], found: NDArray[np.float64]) -> NDArray[np.float64]:
        """Look at each candidate closer, for its score and landmarks, and keep those that are faces."""
        closer = [_NONE]
        for face in found[: self.settings.max_faces]:
            unsure = face[14] < _SURE
            seen = look_closer(self._run, image, face, turn=unsure and self.settings.try_turned)
            closer.append(seen if len(seen) or unsure else face[None])
        faces = np.concatenate(closer)
        return self._best(faces[faces[:, 14] >= self.settings.score_threshold])

    def _look(self, image: NDArray[np.uint8], side: float) -> NDArray[np.float64]:
        """Find upright faces, at several scales from a longer side of ``side`` down, or one that fills the photo."""
        looks = []
        while True:
            small, scale = _shrink(image, side)
            found = self._run(small)
            found[:, :14] /= np.tile(scale, 7)
            looks.append(found)
            if side <= _COARSEST_SIDE:
                break
            side /= _STEP
        found = self._best(np.concatenate(looks))
        return found if len(found) else self._close_up(image)

    def _close_up(self, image: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Find a face that fills the photo, or is cut by its edges, by adding a margin."""
        cv2 = require("cv2")
        height, width = image.shape[:2]
        scale = _CLOSE_SIDE / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        framed = cv2.copyMakeBorder(
            cv2.resize(image, size, interpolation=way),
            *[_CLOSE_MARGIN] * 4,
            cv2.BORDER_CONSTANT,
            value=[BLANK] * 3,
        )
        found = self._run(framed)
        found = found[np.minimum(found[:, 2], found[:, 3]) >= 0.3 * _CLOSE_SIDE]
        found[:, [0, 1, *range(4, 14)]] -= _CLOSE_MARGIN
        found[:, :14] /= np.tile([size[0] / width, size[1] / height], 7)
        return self._best(found)

    def _run(self, image: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return what the network finds, (N, 15): box, landmarks and score as ``cv2.FaceDetectorYN`` orders them."""
        network = self._network()
        network.setInputSize((image.shape[1], image.shape[0]))
        output = network.detect(np.ascontiguousarray(image[:, :, ::-1]))[1]
        found: NDArray[np.float64] = np.asarray(_NONE if output is None else output, np.float64)
        spread = np.ptp(found[:, 4:14].reshape(-1, 5, 2), axis=1).max(1)
        usable: NDArray[np.float64] = found[np.isfinite(found).all(1) & (found[:, 2:4] > 0).all(1) & (spread > 0)]
        return usable

    def _best(self, found: NDArray[np.float64]) -> NDArray[np.float64]:
        """Keep the better one of any two that overlap too much, best score first; ties as they came."""
        found = found[np.argsort(-found[:, 14], kind="stable")]
        corners = np.concatenate([found[:, :2], found[:, :2] + found[:, 2:4]], axis=1)
        areas = found[:, 2] * found[:, 3]
        kept: list[int] = []
        left = np.arange(len(found))
        while len(left):
            best, left = left[0], left[1:]
            kept.append(best)
            sides = np.minimum(corners[best, 2:], corners[left, 2:]) - np.maximum(corners[best, :2], corners[left, :2])
            common = sides.clip(0).prod(1)
            left = left[common <= self.settings.nms_threshold * (areas[best] + areas[left] - common)]
        return found[kept]

    def _network(self) -> Any:
        """Return this thread's network: it keeps the size of its input from one call to the next."""
        network = getattr(self._networks, "network", None)
        if network is None:
            network = self._networks.network = self._create()
        return network

    def _create(self) -> Any:
        cv2 = require("cv2")
        data, nothing = np.frombuffer(self.weights.data, np.uint8), np.zeros(0, np.uint8)
        candidate = min(_CANDIDATE, self.settings.score_threshold)
        with _creating:  # the level of the log belongs to the process; OpenCV 5 warns here of what is its own default
            level = cv2.utils.logging.getLogLevel()
            cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
            try:
                return cv2.FaceDetectorYN.create(
                    "onnx", data, nothing, (320, 320), candidate, self.settings.nms_threshold, _TOP_K
                )
            except cv2.error as error:
                raise CorruptFileError(
                    f"OpenCV cannot load {self.weights.path}: {error}; get the file again"
                ) from error
            finally:
                cv2.utils.logging.setLogLevel(level)


_NONE: Final = np.zeros((0, 15))


def check_photo(image: NDArray[np.uint8]) -> None:
    """See that ``image`` is (H, W, 3) uint8 with at least one pixel.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        what = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ConfigError(f"a photo is {what}; it has to be a uint8 array (H, W, 3), RGB")
    if not image.size:
        raise ConfigError(f"a photo has no pixels: {image.shape}")


def _shrink(image: NDArray[np.uint8], side: float) -> tuple[NDArray[np.uint8], tuple[float, float]]:
    """Scale the longer side down to ``side``; also return the two factors."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return image, (1.0, 1.0)
    cv2 = require("cv2")
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA), (size[0] / width, size[1] / height)


def _turn_back(found: NDArray[np.float64], width: int, height: int, turn: int) -> NDArray[np.float64]:
    """Bring what was found in ``np.rot90(image, turn)`` to the coordinates of an image of this width and height."""
    corners = np.concatenate([found[:, :2], found[:, :2] + found[:, 2:4]], axis=1)
    points = np.concatenate([corners, found[:, 4:14]], axis=1).reshape(-1, 7, 2)
    x, y = points[:, :, 0], points[:, :, 1]
    x, y = {0: (x, y), 1: (width - y, x), 2: (width - x, height - y), 3: (y, height - x)}[turn]
    points = np.stack([x, y], axis=2)
    low, high = points[:, :2].min(1), points[:, :2].max(1)
    return np.concatenate([low, high - low, points[:, 2:].reshape(-1, 10), found[:, 14:]], axis=1)


def _as_detections(found: NDArray[np.float64]) -> Detections:
    values = found.astype(np.float32)
    return Detections(values[:, :4], values[:, 4:14].reshape(-1, 5, 2), values[:, 14])
