"""What a gallery does with the rows of its catalog. Functions that change something run within a transaction."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from opqn.data.images import SkippedImage
from opqn.errors import ConfigError
from opqn.faces import QualityFilter
from opqn.gallery.adding import Picture, Source
from opqn.gallery.catalog import SIGNALS, Catalog
from opqn.gallery.results import AddReport, Box, FaceInfo, Person


class Item(NamedTuple):
    """A picture to add."""

    source: Source
    person: str | None
    """A checked name."""
    path: str | None = None
    """Absolute; None for a picture without a file."""
    size: int = 0
    mtime_ns: int = 0


class Tally:
    """What adding did so far."""

    def __init__(self) -> None:
        self.num_photos = self.num_without_face = self.num_duplicates = self.num_removed_before = self.num_filtered = 0
        self.skipped: list[SkippedImage] = []

    def report(self, ids: Sequence[int], **more: Any) -> AddReport:
        """Return it with the ids of the new faces."""
        return AddReport(tuple(ids), **{**vars(self), "skipped": tuple(self.skipped), **more})


def store_pictures(catalog: Catalog, pictures: Sequence[Picture], items: Sequence[Item], tally: Tally) -> range:
    """Put pictures and their faces into the catalog; return the ids of the faces."""
    rows: list[tuple[Any, ...]] = []
    for picture in pictures:
        item = items[picture.key]
        photo = None
        if picture.problem is not None:
            tally.skipped.append(SkippedImage(item.path or f"picture {picture.key}", picture.problem))
        else:
            photo, is_new, is_removed = _photo(catalog, picture)
            tally.num_duplicates += not is_new and not is_removed
            tally.num_removed_before += is_removed
            if is_removed:
                continue  # its path is not kept either
            if is_new:
                tally.num_photos += 1
                tally.num_without_face += not picture.faces
                faces = picture.faces or ()
                person = catalog.ensure_person(item.person) if item.person is not None and faces else None
                rows += [face.row(None if rank else person, photo) for rank, face in enumerate(faces)]
        if item.path is not None:
            catalog.run(
                "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)",
                (item.path, photo, item.size, item.mtime_ns, picture.problem),
            )
    return catalog.add_faces(rows)


def _photo(catalog: Catalog, picture: Picture) -> tuple[int, bool, bool]:
    """Return a picture's id, whether it is new, and whether its faces were removed."""
    known = catalog.rows("SELECT id, removed FROM photos WHERE sha256 = ?", (picture.digest,))
    if known:
        return known[0][0], False, bool(known[0][1])
    values = (picture.digest, *picture.size)
    return catalog.run("INSERT INTO photos (sha256, width, height) VALUES (?, ?, ?)", values), True, False


def remove_faces(catalog: Catalog, ids: Sequence[int], person: int | None = None, forget: Sequence[int] = ()) -> None:
    """Remove faces, a person, and what the catalog knows of pictures, which may then be added again."""
    photos = {row[0] for row in catalog.rows_in("SELECT photo FROM faces WHERE id IN", ids)}
    names = catalog.rows("SELECT name FROM people WHERE id = ? AND name IS NOT NULL", (person,))
    catalog.run_many("DELETE FROM faces WHERE id = ?", [(face,) for face in ids])
    catalog.run_many("INSERT INTO removals (face) VALUES (?)", [(face,) for face in ids])
    for photo in photos - {None, *forget}:
        shows_others = catalog.rows("SELECT 1 FROM faces WHERE photo = ? LIMIT 1", (photo,))
        paths = [path for (path,) in catalog.rows("SELECT path FROM files WHERE photo = ?", (photo,))]
        if not shows_others or any(name in path for (name,) in names for path in paths):
            catalog.run("UPDATE photos SET removed = 1 WHERE id = ?", (photo,))
            catalog.run("DELETE FROM files WHERE photo = ?", (photo,))  # its name may be a person's
    catalog.run_many("DELETE FROM files WHERE photo = ?", [(photo,) for photo in forget])
    catalog.run_many("DELETE FROM photos WHERE id = ?", [(photo,) for photo in forget])
    if person is not None:
        catalog.run("DELETE FROM people WHERE id = ?", (person,))
    forget_empty_people(catalog)


def forget_empty_people(catalog: Catalog) -> None:
    """Remove people without faces: a name is kept as long as it is needed."""
    catalog.run("DELETE FROM people WHERE id NOT IN (SELECT person FROM faces WHERE person IS NOT NULL)")


def find_person(catalog: Catalog, person: str | int) -> int:
    """Return the id of a person by id or name.

    Raises:
        ConfigError: there is nobody of this id or name.
    """
    if isinstance(person, int):
        if not catalog.rows("SELECT 1 FROM people WHERE id = ?", (person,)):
            raise ConfigError(f"there is no person {person} here; `opqn gallery people` lists them")
        return person
    number = catalog.person_named(person)
    if number is None:
        names = [row[0] for row in catalog.rows("SELECT name FROM people WHERE name IS NOT NULL")]
        near = difflib.get_close_matches(person, names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else "`opqn gallery people` lists them"
        raise ConfigError(f"there is nobody named {person!r} here; {hint}")
    return number


def check_ids(catalog: Catalog, ids: Sequence[int]) -> list[int]:
    """Return ids of faces, each once.

    Raises:
        ConfigError: one is not there.
    """
    chosen = list(dict.fromkeys(int(face) for face in ids))
    there = {row[0] for row in catalog.rows_in("SELECT id FROM faces WHERE id IN", chosen)}
    for face in chosen:
        if face not in there:
            raise ConfigError(f"there is no face {face} here; give ids that adding or searching returned")
    return chosen


def people_by_id(catalog: Catalog, numbers: Sequence[int]) -> dict[int, Person]:
    """Return people by their ids; those that are not there are left out."""
    rows = catalog.rows_in("SELECT id, name FROM people WHERE id IN", numbers)
    return {number: Person(number, name) for number, name in rows}


def face_infos(catalog: Catalog, ids: Sequence[int]) -> dict[int, FaceInfo]:
    """Return what is known of faces, by id; those that are not there are left out."""
    with catalog.snapshot():
        rows = catalog.rows_in(
            f"SELECT id, person, photo, place, {', '.join(SIGNALS)} FROM faces WHERE id IN",  # noqa: S608 (names of ours)
            ids,
        )
        people = people_by_id(catalog, list({row[1] for row in rows} - {None}))
        photos = list({row[2] for row in rows} - {None})
        files = catalog.rows_in("SELECT photo, path FROM files WHERE photo IN", photos)
    paths: dict[int, list[str]] = {}
    for photo, path in files:
        paths.setdefault(photo, []).append(path)
    return {
        face: FaceInfo(
            face,
            people.get(person),
            tuple(sorted(paths.get(photo, ()))),
            _box(place),
            {name: value for name, value in zip(SIGNALS, signals, strict=True) if value is not None},
        )
        for face, person, photo, place, *signals in rows
    }


def faces_of_quality(catalog: Catalog, quality: QualityFilter) -> NDArray[np.int64]:
    """Return the ids of faces that keep all limits. A signal that is not known keeps none, as nobody vouches for it."""
    limits, values = ["1"], []
    for name, limit in quality:
        if limit is not None:
            least = name.startswith("min_")
            limits.append(f"{name[4:]} >= ?" if least else f"abs({name[4:]}) <= ?")
            values.append(limit)
    rows = catalog.rows(f"SELECT id FROM faces WHERE {' AND '.join(limits)} ORDER BY id", values)  # noqa: S608
    return np.array([row[0] for row in rows], dtype=np.int64)


def _box(place: bytes | None) -> Box | None:
    if place is None or len(place) != 14 * 4:
        return None
    x, y, width, height = np.frombuffer(place, "<f4")[:4].tolist()
    return x, y, width, height
