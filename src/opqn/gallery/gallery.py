"""A gallery: people, pictures and codes in one folder that survives a crash."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Final, Self

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from PIL import Image

from opqn._files import atomic_folder, explain_os_errors
from opqn._version import __version__
from opqn.data.folders import scan_folder
from opqn.encoders import Encoder, ready_threshold, save_encoder, vector_quantizer
from opqn.errors import ConfigError, DataError, OpqnError
from opqn.faces import QualityFilter
from opqn.gallery import checks
from opqn.gallery.adding import Keep, Looker, Picture, Source, checksum, vector_bytes
from opqn.gallery.catalog import Catalog, GalleryBusyError, check_name
from opqn.gallery.identifying import own_calibration, stranger_calibration
from opqn.gallery.reading import CATALOG, ENCODER, INDEX, GalleryReader
from opqn.gallery.records import (
    Item,
    Tally,
    check_ids,
    find_person,
    forget_empty_people,
    remove_faces,
    store_pictures,
)
from opqn.gallery.results import AddReport, Person, VerifyReport
from opqn.gallery.scan import PeopleFrom, check_source, forget_moved, scan
from opqn.grouping import NOBODY, group_faces, knn_graph
from opqn.index.reference import check_codes
from opqn.open_set import Calibration

if TYPE_CHECKING:
    from opqn.index.segments import Profile

LOCK: Final = "writer.lock"
_PICTURES_AT_ONCE: Final = 64
_SECONDS_AT_ONCE: Final = 1.0
_TABLES_AT_ONCE: Final = 1024
_UNNAMED: Final = (
    "SELECT faces.id FROM faces LEFT JOIN people ON people.id = faces.person WHERE name IS NULL ORDER BY faces.id"
)
_UNGROUP: Final = "UPDATE faces SET person = NULL WHERE person IN (SELECT id FROM people WHERE name IS NULL)"
GROUPING_FPIR: Final = 0.05
"""Of the threshold for grouping, which HDBSCAN narrows down where faces lie close; 0.01 to 0.2 works."""

OnProgress = Callable[[int, int], None]
"""Called with how many pictures are stored for good, and how many there are."""
People = str | Sequence[str | None] | None
"""Whom all pictures show, or whom each of them shows; None: nobody knows."""


class Gallery(GalleryReader):
    """What a user keeps: people, pictures and codes, in a folder. Made by :meth:`create`, opened by :meth:`open`.

    Any number of processes and threads may read at once, and one may write; they see whole changes, and what a method
    that changes something has returned is on the disk. A gallery on a disk that cannot be written is searched as it is.
    """

    def __init__(self, folder: Path, catalog: Catalog, encoder: Encoder | None) -> None:
        super().__init__(folder, catalog, encoder)
        self._write_lock = threading.RLock()
        self._file_lock = FileLock(folder / LOCK, timeout=0)

    @classmethod
    def create(
        cls,
        folder: str | Path,
        encoder: Encoder,
        *,
        keep_crops: bool = True,
        keep_vectors: bool = True,
        profile: Profile = "balanced",
    ) -> Self:
        """Make an empty gallery.

        Args:
            folder: new or empty.
            encoder: what all its codes are made by. :class:`opqn.FaceEncoder` takes photographs, :class:`opqn.OPQN`
                faces cut out already, :class:`opqn.OPQNQuantizer` vectors. These three are kept in the folder; any
                other has to be given to :meth:`open` again.
            keep_crops: keep a small JPEG of every face, to show what was found.
            keep_vectors: keep the vectors that codes were made of (two bytes a number), to group faces by.
            profile: of the index, see :class:`opqn.CodeIndex`.

        Raises:
            ConfigError: something stands at ``folder``.
            OpqnError: the disk is full or cannot be written.
        """
        path = Path(folder)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ConfigError(
                f"there is something at {path}, and a gallery is made where nothing is; choose another place, or add "
                "to the gallery there with `opqn gallery add`"
            )
        meta = {
            "opqn_version": __version__,
            "fingerprint": encoder.fingerprint,
            "num_books": encoder.num_books,
            "num_words": encoder.num_words,
            "keep": {"crops": keep_crops, "vectors": keep_vectors},
            "profile": profile,
        }
        with atomic_folder(path) as aside:
            save_encoder(encoder, aside / ENCODER)
            Catalog.create(aside / CATALOG, meta)
        return cls.open(path, encoder)

    # Adding

    def add(
        self,
        images: Source | Sequence[Source],
        people: People = None,
        *,
        quality: QualityFilter | None = None,
        on_progress: OnProgress = lambda _d, _a: None,
    ) -> AddReport:
        """Add pictures: photographs, if the encoder finds faces in them, or faces cut out already.

        A picture whose content is in the gallery is not added again. One that cannot be read is skipped and listed. Of
        a photograph with several faces the most prominent one shows the person named.

        Args:
            images: one or several.
            people: who is on all of them, or on each.
            quality: faces in photographs that break one of its limits are left out.
            on_progress: told of the progress.

        Raises:
            ConfigError: as many people as images are needed.
            GalleryBusyError: (an OpqnError) another process is writing.
            OpqnError: the disk is full or cannot be written; what was told to ``on_progress`` is in the gallery.
        """
        sources = [images] if isinstance(images, (str, Path, bytes, Image.Image)) else list(images)
        names = _names(people, len(sources))
        items = [Item(source, name, *_file_facts(source)) for source, name in zip(sources, names, strict=True)]
        with self._writing():
            ids, tally = self._add_pictures(items, quality, on_progress)
            self._live.save_if_far_behind()
        return tally.report(ids)

    def add_folder(
        self,
        source: str | Path,
        people: PeopleFrom = "folders",
        *,
        quality: QualityFilter | None = None,
        remove_missing: bool = False,
        on_progress: OnProgress = lambda _d, _a: None,
    ) -> AddReport:
        """Add the pictures below a folder, or bring the gallery up to date with it.

        Files that did not change are passed over; one that moved is recognised by its content and not added again.

        Args:
            source: a folder.
            people: "folders": a picture in a folder of ``source`` shows the person that the folder is named after;
                "none": faces have no name yet.
            quality: faces in photographs that break one of its limits are left out.
            remove_missing: remove the faces of pictures that are gone, for good; otherwise they are listed.
            on_progress: told of the progress.

        Raises:
            DataError: no such folder, or no picture in it.
            GalleryBusyError: (an OpqnError) another process is writing.
            OpqnError: the disk is full or cannot be written; what was told to ``on_progress`` is in the gallery.
        """
        root = check_source(Path(source))
        with self._writing():
            found = scan(self._catalog, root, people)
            items = [Item(file.path, file.person, str(file.path), file.size, file.mtime_ns) for file in found.new]
            with self._catalog.transaction():
                self._catalog.run("INSERT OR REPLACE INTO sources VALUES (?, ?)", (str(root), people))
            ids, tally = self._add_pictures(items, quality, on_progress)
            with self._catalog.transaction():
                missing = forget_moved(self._catalog, found.gone)
            if remove_missing and missing:
                self._remove_pictures(missing)
            self._live.save_if_far_behind()
        tally.skipped[:0] = found.skipped
        return tally.report(ids, num_unchanged=found.num_unchanged, missing=tuple(missing))

    def add_vectors(self, vectors: NDArray[np.float32], people: People = None) -> AddReport:
        """Add faces by their vectors, all or none of them.

        Args:
            vectors: (N, D) float32, of the network that the gallery's encoder was made for.
            people: who all of them show, or each.

        Raises:
            ConfigError: vectors of another width, or an encoder that takes no vectors.
        """
        codes = vector_quantizer(self.encoder).encode(vectors)
        kept = [vector_bytes(vector) for vector in vectors] if self._keep.vectors else None
        return self._add_codes(codes, kept, people)

    def add_codes(self, codes: NDArray[np.uint8], people: People = None) -> AddReport:
        """Add faces by their codes, all or none of them.

        Args:
            codes: (N, M) uint8 of the gallery's encoder.
            people: who all of them show, or each.

        Raises:
            ConfigError: codes of another shape or range.
        """
        check_codes(codes, self._num_books, self._num_words)
        return self._add_codes(codes, None, people)

    # Removing

    def remove(self, ids: Sequence[int] | None = None, person: str | int | None = None) -> int:
        """Remove faces, or all faces of a person and their name, for good.

        When this returns, the bytes are gone from the catalog, the index and the crops, and a later :meth:`add_folder`
        does not bring them back. The name of a picture's file is forgotten too if the picture shows nobody else, or if
        the person's name is in it; its checksum is kept, so that it is recognised. The pictures themselves are the
        user's and stay.

        Args:
            ids: of faces.
            person: a name, or the id of a person.

        Returns:
            The number of faces removed.

        Raises:
            ConfigError: an id that is not there, nobody of this name, or neither ids nor a person given. Nothing is
                removed.
            OpqnError: the disk is full or cannot be written. What was removed is not found any more; that its bytes are
                gone is made good by the next change, or by ``verify(repair=True)``.
        """
        if (ids is None) == (person is None):
            raise ConfigError("give either ids of faces or a person to remove")
        with self._writing():
            number = None if person is None else find_person(self._catalog, person)
            if number is not None:
                chosen = [row[0] for row in self._catalog.rows("SELECT id FROM faces WHERE person = ?", (number,))]
            else:
                chosen = check_ids(self._catalog, ids or ())
            self._remove(chosen, number)
        return len(chosen)

    # People

    def assign(self, ids: Sequence[int], person: str | None) -> None:
        """Say whom faces show; None: nobody knows. Nobody is kept without faces.

        Raises:
            ConfigError: an id that is not there, or a name that is none.
        """
        with self._writing(), self._catalog.transaction():
            chosen = check_ids(self._catalog, ids)
            number = None if person is None else self._catalog.ensure_person(person)
            self._catalog.run_many("UPDATE faces SET person = ? WHERE id = ?", [(number, face) for face in chosen])
            forget_empty_people(self._catalog)

    def rename(self, person: str | int, name: str) -> None:
        """Give a person a name. If someone has it already, the two become one.

        Raises:
            ConfigError: nobody of this name or id, or a name that is none.
        """
        with self._writing(), self._catalog.transaction():
            number, kept = find_person(self._catalog, person), check_name(name)
            other = self._catalog.person_named(kept)
            if other is None or other == number:
                self._catalog.run("UPDATE people SET name = ? WHERE id = ?", (kept, number))
            else:
                self._catalog.run("UPDATE faces SET person = ? WHERE person = ?", (other, number))
                forget_empty_people(self._catalog)

    def calibrate(
        self, fpir: float = 0.01, *, strangers: str | Path | None = None, for_people: int | None = None
    ) -> Calibration:
        """Set the threshold at which strangers are named as somebody at a rate wanted, and keep it.

        Args:
            fpir: the share of strangers' faces that may be named, between 0 and 1.
            strangers: a folder of pictures of people who are not in the gallery, one folder a person. Without it the
                gallery's own people are searched, each as if they were not in it; that takes that they bear the right
                names, and vectors or crops that were kept.
            for_people: people in the gallery that the threshold is for, if it is to grow; as many as now without it.

        Raises:
            ConfigError: a rate or number out of range.
            DataError: too few strangers or people to tell such a rate; the message says how many it takes.
            GalleryBusyError: (an OpqnError) another process is writing.
        """
        with self._writing():
            if strangers is None:
                found = own_calibration(self._catalog, self._search, self.stored_tables, fpir, for_people)
                source = "the gallery's own people"
            else:
                tables, people = self._strangers(Path(strangers))
                found = stranger_calibration(self._catalog, self._search, tables, people, fpir, for_people)
                source = f"strangers in {Path(strangers).resolve()}"
            with self._catalog.transaction():
                self._catalog.set_meta("calibration", {**found.to_dict(), "source": source})
        return found

    def group(self, threshold: float | None = None, *, neighbours: int = 20) -> list[tuple[Person, tuple[int, ...]]]:
        """Put the faces that have no name into groups of one person each; groups made before are made anew.

        Args:
            threshold: lowest score of two faces of one person. Without it the one that comes with the encoder, at
                which one stranger in twenty would be named, or else that of :meth:`calibrate`.
            neighbours: most alike faces that each is compared with.

        Returns:
            For each group, the largest first, the unnamed person it became and the ids of its faces. A face that is
            like no other is in none.

        Raises:
            ConfigError: there is no threshold, or it is NaN.
            DataError: neither vectors nor crops of the faces were kept.
            GalleryBusyError: (an OpqnError) another process is writing.
        """
        lowest = threshold if threshold is not None else ready_threshold(self.encoder, len(self), GROUPING_FPIR)
        lowest = lowest if lowest is not None else self.threshold
        if lowest is None:
            raise ConfigError("there is no threshold to group by; give one, or calibrate the gallery")
        with self._writing():
            ids = [row[0] for row in self._catalog.rows(_UNNAMED)]
            labels = self._group_labels(ids, lowest, neighbours)
            with self._catalog.transaction():
                self._catalog.run(_UNGROUP)
                forget_empty_people(self._catalog)
                groups = []
                for label in range(int(labels.max(initial=NOBODY)) + 1):
                    faces = tuple(ids[place] for place in np.flatnonzero(labels == label).tolist())
                    number = self._catalog.run("INSERT INTO people (name) VALUES (NULL)")
                    self._catalog.run_many(
                        "UPDATE faces SET person = ? WHERE id = ?", [(number, face) for face in faces]
                    )
                    groups.append((Person(number, None), faces))
        return groups

    def verify(self, *, repair: bool = False, on_progress: OnProgress = lambda _d, _a: None) -> VerifyReport:
        """Check everything: the catalog and every row of it, the index against it, the encoder.

        Args:
            repair: rebuild what is derived from the catalog, and finish what a crash cut short.
            on_progress: told how many faces are checked, and how many there are.

        Raises:
            GalleryBusyError: (an OpqnError) with ``repair``, another process is writing.
        """
        problems = checks.catalog_problems(self._catalog, self._num_books, self._num_words, on_progress)
        try:
            self._check_encoder(self.encoder)
        except OpqnError as error:
            problems.append(str(error))
        derived = self._index_problems()
        pending: tuple[str, ...] = ()
        if self._catalog.meta("scrub"):
            pending = (
                "bytes of faces whose removal was cut short may be left in the files; the next change clears them",
            )
        repaired: list[str] = []
        if repair and (derived or pending):
            with self._writing():  # which finishes a removal
                self._live.rebuild()
                self._live.save(purge=True)
            left = self._index_problems()
            repaired = [problem for problem in (*derived, *pending) if problem not in left]
            derived, pending = left, ()
        return VerifyReport(len(self), tuple(problems + derived), pending, tuple(repaired))

    def _group_labels(self, ids: Sequence[int], threshold: float, neighbours: int) -> NDArray[np.int64]:
        if len(ids) < 2:
            return np.full(len(ids), NOBODY, dtype=np.int64)
        shape = (len(ids), self._num_books, self._num_words)
        with TemporaryFile() as file:  # tables of a million faces take gigabytes
            tables = np.memmap(file, np.float32, "w+", shape=shape)
            for start in range(0, len(ids), _TABLES_AT_ONCE):
                tables[start : start + _TABLES_AT_ONCE] = self.stored_tables(ids[start : start + _TABLES_AT_ONCE])
            graph = knn_graph(self._live.current(), tables, ids, neighbours)
            del tables
        return group_faces(*graph, threshold)

    def _index_problems(self) -> list[str]:
        """Compare the index with the catalog, again if another process changed something meanwhile."""
        while True:
            version = self._catalog.version()
            problems = checks.index_problems(self._catalog, self._live, self.folder / INDEX, self._num_books)
            if not problems or self._catalog.version() == version:
                return problems

    # Details

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Be the one who writes."""
        if self._catalog.is_read_only:
            raise OpqnError(
                f"{self.folder} cannot be written: it can be searched, not changed; copy it to a disk that can be "
                "written"
            )
        with self._write_lock:
            self._lock_others_out()
            try:
                if self._catalog.meta("scrub"):  # a removal was cut short
                    self._scrub()
                yield
            finally:
                self._live.changed()
                self._file_lock.release()

    def _lock_others_out(self) -> None:
        with explain_os_errors(self.folder / LOCK):
            try:
                self._file_lock.acquire()
            except Timeout as error:
                raise GalleryBusyError(
                    f"{self.folder} is being changed by another process; try again when it is done"
                ) from error

    def _add_pictures(
        self, items: Sequence[Item], quality: QualityFilter | None, on_progress: OnProgress
    ) -> tuple[list[int], Tally]:
        tally, ids, waiting = Tally(), list[int](), list[Picture]()
        looker = Looker(self.encoder, self._keep, quality, self._is_known)
        done, then = 0, time.monotonic()

        def store() -> None:
            nonlocal done, then
            with self._catalog.transaction():
                ids.extend(store_pictures(self._catalog, waiting, items, tally))
            done += len(waiting)
            waiting.clear()
            then = time.monotonic()
            on_progress(done, len(items))

        try:
            for picture in looker.look((key, item.source) for key, item in enumerate(items)):
                waiting.append(picture)
                if len(waiting) >= _PICTURES_AT_ONCE or time.monotonic() - then > _SECONDS_AT_ONCE:
                    store()
        except KeyboardInterrupt:
            store()  # what was found so far is no less good
            raise
        if waiting:
            store()
        tally.num_filtered = looker.num_filtered
        return ids, tally

    def _add_codes(self, codes: NDArray[np.uint8], vectors: Sequence[bytes] | None, people: People) -> AddReport:
        names = _names(people, len(codes))
        with self._writing():
            with self._catalog.transaction():
                numbers: dict[str | None, int | None] = {None: None}
                for name in names:
                    if name not in numbers:
                        numbers[name] = self._catalog.ensure_person(name or "")
                packed = [code.tobytes() for code in codes]
                kept = vectors if vectors is not None else [None] * len(packed)
                checksums = [checksum(code, vector, None) for code, vector in zip(packed, kept, strict=True)]
                rows = zip([numbers[name] for name in names], packed, kept, checksums, strict=True)
                ids = self._catalog.add_faces(rows, ("person", "code", "vector", "checksum"))
            self._live.changed()
            self._live.save_if_far_behind()
        return AddReport(tuple(ids))

    def _is_known(self, digest: bytes) -> bool:
        return bool(self._catalog.rows("SELECT 1 FROM photos WHERE sha256 = ?", (digest,)))

    def _remove(self, ids: Sequence[int], person: int | None = None, forget: Sequence[int] = ()) -> None:
        with self._catalog.transaction():
            remove_faces(self._catalog, ids, person, forget)
            self._catalog.set_meta("scrub", True)
        self._live.changed()
        self._scrub()

    def _remove_pictures(self, paths: Sequence[str]) -> None:
        """Remove the faces of pictures whose last file is gone."""
        photos = list({row[0] for row in self._catalog.rows_in("SELECT photo FROM files WHERE path IN", paths)})
        ids = [row[0] for row in self._catalog.rows_in("SELECT id FROM faces WHERE photo IN", photos)]
        self._remove(ids, forget=photos)

    def _scrub(self) -> None:
        """Make sure that nothing of what was removed is left in any file."""
        self._live.save(purge=True)
        if self._catalog.scrub():
            with self._catalog.transaction():
                self._catalog.set_meta("scrub", None)

    def _strangers(self, folder: Path) -> tuple[NDArray[np.float32], NDArray[np.str_]]:
        """Return the tables of the people in a folder's pictures, the most prominent face of each, and who they are."""
        found = scan_folder(folder)
        tables, people = [], []
        for picture in Looker(self.encoder, Keep(crops=True, vectors=True)).look(
            (key, folder / path) for key, path in enumerate(found.paths)
        ):
            if picture.faces:
                tables.append(self._tables_of_kept([(picture.faces[0].vector, picture.faces[0].crop)]))
                people.append(found.people[picture.key])
        if not tables:
            raise DataError(f"no face was found in the {len(found.paths)} pictures in {folder}")
        return np.concatenate(tables), np.array(people)


def _names(people: People, count: int) -> list[str | None]:
    """Return the checked name for each of ``count`` pictures."""
    names = [people] * count if people is None or isinstance(people, str) else list(people)
    if len(names) != count:
        raise ConfigError(f"there are {len(names)} names for {count} pictures; give one for each, or one for all")
    checked: dict[str | None, str | None] = {None: None}
    for name in names:
        if name not in checked:
            checked[name] = check_name(name or "")
    return [checked[name] for name in names]


def _file_facts(source: Source) -> tuple[str | None, int, int]:
    """Return a file's absolute path, size and time of change, as far as there is a file."""
    if not isinstance(source, (str, Path)):
        return None, 0, 0
    path = Path(source)
    try:
        facts = path.stat()
    except OSError:
        return str(path.absolute()), 0, 0
    return str(path.resolve()), facts.st_size, facts.st_mtime_ns
