"""From pictures to rows of a catalog: read, recognised by their content, faces found, cut out and encoded."""

from __future__ import annotations

import hashlib
import io
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from opqn.data.images import UnreadableImageError, load_image
from opqn.encoders import Encoder, FaceEncoder
from opqn.faces import QualityFilter
from opqn.gallery.catalog import SIGNALS

if TYPE_CHECKING:
    from opqn.faces import Face

MAX_FILE_BYTES: Final = 512 << 20
CROP_SIDE: Final = 112
_CROP_QUALITY: Final = 90
_AT_ONCE: Final = 64

Source = str | Path | bytes | Image.Image | NDArray[np.uint8]
"""A picture: a path, the bytes of a file, a PIL image, or (H, W, 3) uint8."""


class Keep(NamedTuple):
    """What a gallery keeps beside codes."""

    crops: bool
    """JPEGs of the faces, to look at."""
    vectors: bool
    """What codes were made of, in 16-bit floats, to group faces by."""


class NewFace(NamedTuple):
    """A face on its way into a catalog."""

    code: bytes
    vector: bytes | None = None
    crop: bytes | None = None
    place: bytes | None = None
    """Box and five landmarks, 14 float32."""
    signals: tuple[float | None, ...] = (None,) * len(SIGNALS)
    """:data:`SIGNALS`."""

    def row(self, person: int | None, photo: int | None) -> tuple[Any, ...]:
        """Return the values of :data:`opqn.gallery.catalog.FACE_COLUMNS`."""
        check = checksum(self.code, self.vector, self.crop)
        return (person, photo, self.code, self.vector, self.crop, self.place, *self.signals, check)


@dataclass(frozen=True)
class Picture:
    """A picture that was looked at."""

    key: int
    digest: bytes = b""
    """sha256 of the file, or of the pixels of a picture without one."""
    size: tuple[int, int] = (0, 0)
    """Width and height, upright."""
    faces: tuple[NewFace, ...] | None = None
    """Most prominent first; None where the content is known already."""
    problem: str | None = None
    """Why it cannot be read."""


class _KnownError(Exception):
    """The content is in the gallery: nothing has to be looked for."""


class Looker:
    """Reads pictures and finds what a gallery keeps of them, on all cores.

    Args:
        encoder: a :class:`~opqn.encoders.FaceEncoder` takes photographs, any other the faces themselves.
        keep: what to keep.
        quality: faces in photographs that break one of its limits are left out.
        is_known: tells whether a digest is in the gallery; called from several threads.
    """

    def __init__(
        self,
        encoder: Encoder,
        keep: Keep,
        quality: QualityFilter | None = None,
        is_known: Callable[[bytes], bool] = lambda _digest: False,
    ) -> None:
        self.num_filtered = 0
        """Faces left out for their quality."""
        self._encoder = encoder
        self._keep = keep
        self._quality = quality or QualityFilter()
        self._is_known = is_known
        self._read: dict[int, Picture] = {}

    def look(self, sources: Iterable[tuple[int, Source]]) -> Iterator[Picture]:
        """Yield what is in each picture, in order. What is wrong with one is said in it and stops nothing."""
        find = self._in_photos if isinstance(self._encoder, FaceEncoder) else self._as_crops
        for key, found in find((key, partial(self._load, key, source)) for key, source in sources):
            picture = self._read.pop(key, Picture(key))
            if isinstance(found, _KnownError):
                yield picture
            elif isinstance(found, UnreadableImageError):
                yield Picture(key, picture.digest, problem=found.reason)
            elif isinstance(found, Exception):
                raise found
            else:
                yield Picture(key, picture.digest, picture.size, tuple(found))

    def _load(self, key: int, source: Source) -> NDArray[np.uint8]:
        content: bytes | Image.Image
        if isinstance(source, (str, Path, bytes)):
            content = _bytes_of(source)
            digest = hashlib.sha256(content).digest()
        else:
            content = load_image(Image.fromarray(source) if isinstance(source, np.ndarray) else source)
            digest = hashlib.sha256(f"{content.size}".encode() + content.tobytes()).digest()
        self._read[key] = Picture(key, digest)
        if self._is_known(digest):
            raise _KnownError
        image = load_image(content)
        self._read[key] = Picture(key, digest, image.size)
        return np.asarray(image)

    def _in_photos(
        self, loads: Iterable[tuple[int, Callable[[], NDArray[np.uint8]]]]
    ) -> Iterator[tuple[int, list[NewFace] | Exception]]:
        encoder = cast("FaceEncoder", self._encoder)
        for key, found in encoder.pipeline.process(loads):
            if isinstance(found, Exception):
                yield key, found
                continue
            faces = [face for face in found if self._quality.reason(face.quality) is None]
            self.num_filtered += len(found) - len(faces)
            if faces:
                vectors = face_vectors(faces)
                codes = encoder.quantizer.encode(vectors)
                yield key, [self._new_face(*parts) for parts in zip(faces, vectors, codes, strict=True)]
            else:
                yield key, []

    def _new_face(self, face: Face, vector: NDArray[np.float32], code: NDArray[np.uint8]) -> NewFace:
        quality = face.quality
        place = np.concatenate([face.box, np.ravel(face.landmarks)]).astype(np.float32)
        return NewFace(
            code.tobytes(),
            vector_bytes(vector) if self._keep.vectors else None,
            crop_bytes(Image.fromarray(face.crop)) if self._keep.crops else None,
            place.tobytes(),
            tuple(getattr(quality, name) for name in SIGNALS),
        )

    def _as_crops(
        self, loads: Iterable[tuple[int, Callable[[], NDArray[np.uint8]]]]
    ) -> Iterator[tuple[int, list[NewFace] | Exception]]:
        def read(load: tuple[int, Callable[[], NDArray[np.uint8]]]) -> tuple[int, Image.Image | Exception]:
            try:
                return load[0], Image.fromarray(load[1]())
            except (UnreadableImageError, _KnownError) as error:
                return load[0], error

        rest = iter(loads)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            while part := list(islice(rest, _AT_ONCE)):
                results = list(pool.map(read, part))
                crops = [crop for _, crop in results if isinstance(crop, Image.Image)]
                codes = iter(self._encoder.encode(crops) if crops else ())
                for key, crop in results:
                    if isinstance(crop, Image.Image):
                        picture = crop_bytes(crop) if self._keep.crops else None
                        yield key, [NewFace(next(codes).tobytes(), crop=picture)]
                    else:
                        yield key, crop


def face_vectors(faces: Sequence[Face]) -> NDArray[np.float32]:
    """(N, D) vectors of N > 0 faces that have them."""
    return np.stack([face.vector for face in faces if face.vector is not None])


def checksum(code: bytes, vector: bytes | None, crop: bytes | None) -> int:
    """CRC-32 over what cannot be told to be damaged by looking at it."""
    return zlib.crc32(b"".join((code, vector or b"", crop or b"")))


def vector_bytes(vector: NDArray[np.float32]) -> bytes:
    """A vector as little-endian 16-bit floats, at unit length."""
    length = float(np.linalg.norm(vector))
    return (vector / (length or 1.0)).astype("<f2").tobytes()


def crop_bytes(crop: Image.Image) -> bytes:
    """A face as a JPEG of 112 pixels at most on each side."""
    small = crop.copy()
    small.thumbnail((CROP_SIDE, CROP_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=_CROP_QUALITY)
    return buffer.getvalue()


def _bytes_of(source: str | Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source
    path = Path(source)
    try:
        if not path.is_file():
            raise UnreadableImageError(str(path), "it is not a regular file" if path.exists() else "no such file")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UnreadableImageError(
                str(path), f"it is larger than {MAX_FILE_BYTES >> 20} MiB, too large for a picture"
            )
        return path.read_bytes()
    except OSError as error:
        raise UnreadableImageError(str(path), error.strerror or str(error)) from error
