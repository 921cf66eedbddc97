"""From photos to faces with vectors, on all cores."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from opqn.faces._require import require
from opqn.faces.align import align
from opqn.faces.detect import DetectorSettings, FaceDetector
from opqn.faces.embed import FaceEmbedder, count_threads
from opqn.faces.quality import FaceQuality, QualityFilter, head_pose, sharpness

_AHEAD: Final = 4
"""Photos a thread that may be begun before the first of them is asked for."""

Key = TypeVar("Key")
Photo = NDArray[np.uint8] | Callable[[], NDArray[np.uint8]]
"""A photo, (H, W, 3) uint8 RGB, or something to call for it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Face:
    """A face of a photo.

    Attributes:
        box: (4,) float32: x, y of the upper left corner, width, height, in pixels of the photo.
        landmarks: (5, 2) float32: x, y of the eyes, nose and corners of the mouth, in pixels of the photo.
        quality: how well it is seen.
        crop: (112, 112, 3) uint8, RGB, aligned.
        vector: (D,) float32, or None where only finding was asked for.
    """

    box: NDArray[np.float32]
    landmarks: NDArray[np.float32]
    quality: FaceQuality
    crop: NDArray[np.uint8]
    vector: NDArray[np.float32] | None = None


class FacePipeline:
    """A detector and an embedder at work together. It may be used by many threads at once.

    Args:
        detector: settings, or a detector with weights of its own.
        embedder: SFace without it.
        quality: faces that break one of its limits are left out.
        threads: photos worked on at once; 0 for as many as there are cores.

    Raises:
        OpqnError: what the detector and the embedder raise, or OpenCV or onnxruntime is not installed.
        ConfigError: ``threads`` is below 0.
    """

    def __init__(
        self,
        detector: DetectorSettings | FaceDetector | None = None,
        embedder: FaceEmbedder | None = None,
        *,
        quality: QualityFilter | None = None,
        threads: int = 0,
    ) -> None:
        self.threads = count_threads(threads)
        self.detector = detector if isinstance(detector, FaceDetector) else FaceDetector(detector)
        self.embedder = embedder or FaceEmbedder()
        self.quality = quality or QualityFilter()

    def find(self, image: NDArray[np.uint8]) -> list[Face]:
        """Find and align the faces of a photo, the most prominent first.

        Prominence is the area of the box, a face in the centre counting fully and one in a corner half.

        Args:
            image: (H, W, 3) uint8, RGB, upright as far as its EXIF data tells.

        Raises:
            ConfigError: an array of another shape or type.
        """
        found = self.detector.detect(image)
        height, width = image.shape[:2]
        faces = []
        for index in np.argsort(-_prominence(found.boxes, width, height), kind="stable"):
            box, landmarks = found.boxes[index], found.landmarks[index]
            crop = align(image, landmarks)
            yaw, pitch, roll = head_pose(landmarks)
            quality = FaceQuality(
                size=float(box[2:].min()),
                eye_distance=float(np.linalg.norm(landmarks[1] - landmarks[0])),
                score=float(found.scores[index]),
                sharpness=sharpness(crop),
                yaw=yaw,
                pitch=pitch,
                roll=roll,
            )
            if self.quality.reason(quality) is None:
                faces.append(Face(box, landmarks, quality, crop))
        return faces

    def embed(self, crops: NDArray[np.uint8] | Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Describe aligned crops: :meth:`FaceEmbedder.embed` with this pipeline's threads. Returns (N, D) float32."""
        return self.embedder.embed(crops, self.threads)

    def process(self, photos: Iterable[tuple[Key, Photo]]) -> Iterator[tuple[Key, list[Face] | Exception]]:
        """Find and describe the faces of many photos.

        Photos are worked on by ``threads`` threads and given back in order. At most four photos a thread are begun
        ahead, so memory does not grow with their number; photos to be called for are loaded by the threads. While it
        runs, OpenCV's own threads rest. Closing the iterator early, or an interrupt, waits for the photos at work.

        Args:
            photos: pairs of a key, which is handed through, and a photo or a function that loads it, such as
                ``lambda: numpy.asarray(load_image(path))``.

        Yields:
            The key, and the photo's faces with vectors, the most prominent first; or the exception that the photo
            raised.
        """
        with _one_opencv_thread(), ThreadPoolExecutor(self.threads, "opqn-faces") as pool:
            begun: deque[tuple[Key, Future[list[Face] | Exception]]] = deque()
            try:
                for key, photo in photos:
                    begun.append((key, pool.submit(self._process_one, photo)))
                    if len(begun) >= _AHEAD * self.threads:
                        yield _result(begun)
                while begun:
                    yield _result(begun)
            finally:
                pool.shutdown(cancel_futures=True)

    def _process_one(self, photo: Photo) -> list[Face] | Exception:
        try:
            faces = self.find(photo() if callable(photo) else photo)
            vectors = self.embedder.embed([face.crop for face in faces], threads=1)
        except Exception as error:  # noqa: BLE001 (whatever a photo raises is its result and must not stop the others)
            return error
        return [dataclasses.replace(face, vector=vector) for face, vector in zip(faces, vectors, strict=True)]


def _result(begun: deque[tuple[Key, Future[list[Face] | Exception]]]) -> tuple[Key, list[Face] | Exception]:
    key, future = begun.popleft()
    return key, future.result()


def _prominence(boxes: NDArray[np.float32], width: int, height: int) -> NDArray[np.float64]:
    edge = np.array([width, height], np.float64)
    corners = np.stack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1).clip(0, edge)  # (N, 2, 2)
    areas = np.ptp(corners, axis=1).prod(1)
    away = np.linalg.norm(corners.mean(1) - edge / 2, axis=1) / np.linalg.norm(edge / 2)
    return np.asarray(areas * (1 - away / 2))


_resting = Lock()
_rests: list[int] = []


@contextmanager
def _one_opencv_thread() -> Iterator[None]:
    """Keep OpenCV to one thread a call; the number belongs to the process, so the last one out restores it."""
    cv2 = require("cv2")
    with _resting:
        _rests.append(cv2.getNumThreads() if not _rests else _rests[0])
        cv2.setNumThreads(1)
    try:
        yield
    finally:
        with _resting:
            before = _rests.pop()
            if not _rests:
                cv2.setNumThreads(before)
