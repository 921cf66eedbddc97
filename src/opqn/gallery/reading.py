"""The reading half of a gallery: opening, searching, identifying."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from opqn.data.images import load_image
from opqn.encoders import Encoder, FaceEncoder, load_encoder, ready_threshold, vector_quantizer
from opqn.errors import ConfigError, CorruptFileError, DataError, ModelMismatchError, OpqnError
from opqn.faces import QualityFilter
from opqn.gallery.adding import Keep, Source, face_vectors
from opqn.gallery.catalog import Catalog
from opqn.gallery.identifying import identify
from opqn.gallery.live_index import LiveIndex
from opqn.gallery.records import check_ids, face_infos, faces_of_quality
from opqn.gallery.results import Box, FaceHit, FaceInfo, GalleryInfo, Identification, Person, QueryResult
from opqn.gallery.scan import PeopleFrom

CATALOG: Final = "catalog.sqlite"
INDEX: Final = "index"
ENCODER: Final = "encoder"
_TABLES_AT_ONCE: Final = 256


class GalleryReader:
    """What can be asked of a gallery without changing it; see :class:`opqn.Gallery`, which adds to it."""

    def __init__(self, folder: Path, catalog: Catalog, encoder: Encoder | None) -> None:
        self.folder = folder
        self._catalog = catalog
        self._given = encoder
        self._num_books, self._num_words = int(self._fact("num_books")), int(self._fact("num_words"))
        self._keep = Keep(**self._fact("keep"))
        self._live = LiveIndex(catalog, folder / INDEX, self._num_books, self._num_words, self._fact("profile"))

    @classmethod
    def open(cls, folder: str | Path, encoder: Encoder | None = None) -> Self:
        """Open a gallery.

        Args:
            folder: that :meth:`create` made.
            encoder: the one it was made with; without it the one kept in the folder is loaded when first needed.

        Raises:
            ConfigError: there is no gallery.
            CorruptFileError: it is damaged, or of a newer opqn.
            ModelMismatchError: it was made with another encoder.
        """
        path = Path(folder)
        if not (path / CATALOG).is_file():
            what = f"it has no {CATALOG}" if path.exists() else "there is no such folder"
            raise ConfigError(f"{path} is no gallery: {what}; `opqn gallery create` makes one")
        catalog = Catalog(path / CATALOG)
        try:
            gallery = cls(path, catalog, encoder)
            if encoder is not None:
                gallery._check_encoder(encoder)
        except (TypeError, ValueError, KeyError) as error:
            catalog.close()
            if isinstance(error, OpqnError):
                raise
            raise CorruptFileError(
                f"{path / CATALOG} is damaged: {error}; restore the gallery from a backup"
            ) from error
        except BaseException:
            catalog.close()
            raise
        return gallery

    def close(self) -> None:
        """Let go of the files. Everything is on the disk already."""
        self._catalog.close()

    def __enter__(self) -> Self:
        """Return the gallery, which the end of the block closes."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the gallery."""
        self.close()

    def __len__(self) -> int:
        """Return the number of faces."""
        return self._catalog.count("faces")

    @property
    def encoder(self) -> Encoder:
        """What codes and tables are made by.

        Raises:
            DataError: it is not kept in the folder, or its weights cannot be found.
            CorruptFileError: what is kept in the folder was changed.
        """
        if self._given is None:
            encoder = load_encoder(self.folder / ENCODER)
            self._check_encoder(encoder)
            self._given = encoder
        return self._given

    def sources(self) -> list[tuple[Path, PeopleFrom]]:
        """Return the folders given to :meth:`add_folder`, and how people were named after them."""
        return [(Path(path), people) for path, people in self._catalog.rows("SELECT path, people FROM sources")]

    def people(self) -> list[tuple[Person, int]]:
        """Return everyone, the named by name and then the others, and how many faces each has."""
        rows = self._catalog.rows(
            "SELECT people.id, name, count(faces.id) FROM people LEFT JOIN faces ON faces.person = people.id "
            "GROUP BY people.id ORDER BY name IS NULL, name, people.id"
        )
        return [(Person(number, name), count) for number, name, count in rows]

    def info(self) -> GalleryInfo:
        """Return what the gallery holds."""
        count = self._catalog.rows
        named = count("SELECT count(*) FROM people WHERE name IS NOT NULL")[0][0]
        return GalleryInfo(
            num_faces=len(self),
            num_people=named,
            num_groups=self._catalog.count("people") - named,
            num_unknown=count("SELECT count(*) FROM faces WHERE person IS NULL")[0][0],
            num_photos=self._catalog.count("photos"),
            num_unreadable=count("SELECT count(*) FROM files WHERE problem IS NOT NULL")[0][0],
            num_bits=self._num_books * (self._num_words.bit_length() - 1),
            fingerprint=str(self._fact("fingerprint")),
            catalog_bytes=_num_bytes(self.folder.glob(f"{CATALOG}*")),
            index_bytes=_num_bytes((self.folder / INDEX).glob("*")),
            sources=tuple(str(path) for path, _ in self.sources()),
            calibration=self._catalog.meta("calibration"),
        )

    def faces(self, ids: Sequence[int]) -> list[FaceInfo]:
        """Return what is known of faces.

        Raises:
            ConfigError: an id that is not there.
        """
        chosen = check_ids(self._catalog, ids)
        infos = face_infos(self._catalog, chosen)
        return [infos[face] for face in chosen]

    def crop(self, face: int) -> Image.Image | None:
        """Return the picture of a face as it was kept; None if none was.

        Raises:
            ConfigError: an id that is not there.
            CorruptFileError: the picture is damaged.
        """
        rows = self._catalog.rows("SELECT crop FROM faces WHERE id = ?", (face,))
        if not rows:
            raise ConfigError(f"there is no face {face} in {self.folder}")
        try:
            return None if rows[0][0] is None else load_image(bytes(rows[0][0]))
        except (DataError, TypeError) as error:
            raise CorruptFileError(f"the crop of face {face} in {self.folder} is damaged: {error}") from error

    # Searching

    def search(
        self, image: Source, k: int = 10, *, quality: QualityFilter | None = None, threads: int = 0
    ) -> list[QueryResult]:
        """Find the faces most like each face in a picture.

        Args:
            image: a picture of the kind that :meth:`add` takes.
            k: number of hits for each face, at least 1.
            quality: only faces that keep these limits are found.
            threads: see :meth:`opqn.CodeIndex.search`.

        Raises:
            UnreadableImageError: (a DataError) the picture cannot be read.
            DataError: there is no face in it.
        """
        boxes, tables = self._query(image)
        return self.search_tables(tables, k, quality=quality, threads=threads, boxes=boxes)

    def search_vectors(
        self, vectors: NDArray[np.float32], k: int = 10, *, quality: QualityFilter | None = None, threads: int = 0
    ) -> list[QueryResult]:
        """Find the faces most like each of (Q, D) float32 vectors; see :meth:`search`."""
        tables = vector_quantizer(self.encoder).lookup_tables(vectors)
        return self.search_tables(tables, k, quality=quality, threads=threads)

    def search_tables(
        self,
        tables: NDArray[np.float32],
        k: int = 10,
        *,
        quality: QualityFilter | None = None,
        threads: int = 0,
        boxes: Sequence[Box | None] | None = None,
    ) -> list[QueryResult]:
        """Find the faces that score highest for each of (Q, M, K) float32 tables.

        Args:
            tables: of the gallery's encoder.
            k: number of hits for each.
            quality: only faces that keep these limits are found.
            threads: see :meth:`opqn.CodeIndex.search`.
            boxes: what the results are to bear, if anything.
        """
        allowed = None if quality is None else faces_of_quality(self._catalog, quality)
        scores, ids = self._search(tables, k, threads, allowed)
        infos = face_infos(self._catalog, np.unique(ids[ids >= 0]).tolist())
        return [
            QueryResult(
                box,
                tuple(
                    FaceHit(score, infos[face])
                    for score, face in zip(found.tolist(), faces.tolist(), strict=True)
                    if face in infos  # not removed this very moment
                ),
            )
            for box, found, faces in zip(boxes or [None] * len(tables), scores, ids, strict=True)
        ]

    def identify(self, image: Source, *, num_candidates: int = 5, threads: int = 0) -> list[Identification]:
        """Name whom each face in a picture shows, or nobody.

        Args:
            image: a picture of the kind that :meth:`add` takes.
            num_candidates: people to tell of, best first.
            threads: see :meth:`opqn.CodeIndex.search`.

        Raises:
            UnreadableImageError: (a DataError) the picture cannot be read.
            DataError: there is no face in it.
        """
        boxes, tables = self._query(image)
        return self.identify_tables(tables, num_candidates=num_candidates, threads=threads, boxes=boxes)

    def identify_tables(
        self,
        tables: NDArray[np.float32],
        *,
        num_candidates: int = 5,
        threads: int = 0,
        boxes: Sequence[Box | None] | None = None,
    ) -> list[Identification]:
        """Name whom each of (Q, M, K) float32 tables shows, or nobody; see :meth:`identify`."""
        search = partial(self._search, threads=threads)
        where = boxes or [None] * len(tables)
        return identify(self._catalog, search, tables, where, self.threshold, num_candidates)

    @property
    def threshold(self) -> float | None:
        """Lowest score that names a person: of :meth:`calibrate`, or else the one that comes with the encoder.

        None if there is neither; then the best candidate is named.
        """
        calibration = self._catalog.meta("calibration")
        if calibration is not None:
            return float(calibration["threshold"])
        return ready_threshold(self.encoder, self._catalog.count("people"))

    def stored_tables(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return the (N, M, K) float32 tables of faces in the gallery, from their vectors or crops.

        Raises:
            ConfigError: an id that is not there.
            DataError: neither vector nor crop of one was kept.
        """
        chosen = check_ids(self._catalog, ids)
        tables: NDArray[np.float32] = np.empty((len(chosen), self._num_books, self._num_words), dtype=np.float32)
        for start in range(0, len(chosen), _TABLES_AT_ONCE):
            part = chosen[start : start + _TABLES_AT_ONCE]
            tables[start : start + len(part)] = self._tables_of(part)
        return tables

    # Details

    def _fact(self, key: str) -> Any:
        value = self._catalog.meta(key)
        if value is None:
            raise CorruptFileError(f"{self._catalog.path}: {key} is missing; restore the gallery from a backup")
        return value

    def _check_encoder(self, encoder: Encoder) -> None:
        expected = str(self._fact("fingerprint"))
        if encoder.fingerprint != expected:
            raise ModelMismatchError(
                f"{self.folder} was made with another encoder ({expected[:12]}, this one is "
                f"{encoder.fingerprint[:12]}); open it without one to use its own, or make a new gallery"
            )

    def _query(self, image: Source) -> tuple[list[Box | None], NDArray[np.float32]]:
        encoder = self.encoder
        if not isinstance(encoder, FaceEncoder):
            crop = load_image(Image.fromarray(image) if isinstance(image, np.ndarray) else image)
            return [None], encoder.lookup_tables([crop])
        faces = encoder.find(image)
        if not faces:
            name = image if isinstance(image, (str, Path)) else "the picture"
            raise DataError(f"there is no face in {name}; use a picture in which the face is larger or sharper")
        boxes: list[Box | None] = [_as_box(face.box) for face in faces]
        return boxes, encoder.quantizer.lookup_tables(face_vectors(faces))

    def _tables_of(self, ids: Sequence[int]) -> NDArray[np.float32]:
        rows = self._catalog.rows_in("SELECT id, vector, crop FROM faces WHERE id IN", ids)
        kept = {face: (vector, crop) for face, vector, crop in rows}
        return self._tables_of_kept([kept.get(face, (None, None)) for face in ids])

    def _tables_of_kept(self, kept: Sequence[tuple[bytes | None, bytes | None]]) -> NDArray[np.float32]:
        """Return the tables of faces by what was kept of them: vectors if all have one, else crops."""
        vectors = [vector for vector, _ in kept if vector is not None]
        if len(vectors) == len(kept):
            lengths = {len(vector) for vector in vectors}
            if len(lengths) > 1:
                raise CorruptFileError(f"{self._catalog.path}: a vector is damaged; `opqn gallery verify` names it")
            values = np.frombuffer(b"".join(vectors), "<f2").reshape(len(kept), -1)
            return vector_quantizer(self.encoder).lookup_tables(values.astype(np.float32))
        crops = [load_image(crop) for _, crop in kept if crop is not None]
        if len(crops) < len(kept):
            raise DataError(
                "of some faces neither a vector nor a crop was kept, so they cannot be searched with; add them again "
                "to a gallery that keeps one"
            )
        return self.encoder.lookup_tables(crops)

    def _search(
        self, tables: NDArray[np.float32], k: int, threads: int = 0, allowed: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        try:
            return self._live.current().search(tables, k, threads, allowed)
        except CorruptFileError:  # a file of the index was damaged; the catalog has it all
            return self._live.rebuild().search(tables, k, threads, allowed)


def _as_box(values: Sequence[float] | NDArray[np.float32]) -> Box:
    x, y, width, height = (float(value) for value in values)
    return x, y, width, height


def _num_bytes(files: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in files if path.is_file())
