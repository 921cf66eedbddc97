"""The catalog: one SQLite file that is the truth about a gallery. Everything said to SQLite is said here.

Write-ahead logging: one writer, any number of readers, each of whom sees whole transactions. A transaction that was
committed is on the disk (``synchronous=FULL``); one that was not leaves nothing behind.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import threading
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from opqn.errors import ConfigError, CorruptFileError, OpqnError

APPLICATION_ID: Final = 0x6F70716E  # "opqn"
VERSION: Final = 1
MAX_NAME: Final = 200
_AT_ONCE: Final = 500  # values in one statement
_FACES_AT_ONCE: Final = 1_000_000
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")

_SCHEMA: Final = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    # A person without a name is a group of faces that look like one person.
    "CREATE TABLE people (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT UNIQUE)",
    # A picture is known by its content. Once all its faces were removed for good, it is not searched for faces again.
    """CREATE TABLE photos (id INTEGER PRIMARY KEY AUTOINCREMENT, sha256 BLOB NOT NULL UNIQUE, width INTEGER NOT NULL,
       height INTEGER NOT NULL, removed INTEGER NOT NULL DEFAULT 0)""",
    # A file is where a picture was seen. Without one, ``problem`` says why it could not be read.
    """CREATE TABLE files (path TEXT PRIMARY KEY, photo INTEGER REFERENCES photos (id), size INTEGER NOT NULL,
       mtime_ns INTEGER NOT NULL, problem TEXT) WITHOUT ROWID""",
    "CREATE INDEX files_photo ON files (photo)",
    "CREATE TABLE sources (path TEXT PRIMARY KEY, people TEXT NOT NULL) WITHOUT ROWID",
    # Ids are never given again (AUTOINCREMENT), so a reader knows what is new by its id.
    """CREATE TABLE faces (id INTEGER PRIMARY KEY AUTOINCREMENT, person INTEGER REFERENCES people (id),
       photo INTEGER REFERENCES photos (id), code BLOB NOT NULL, vector BLOB, crop BLOB, place BLOB, size REAL,
       eye_distance REAL, score REAL, sharpness REAL, yaw REAL, pitch REAL, roll REAL, checksum INTEGER NOT NULL)""",
    "CREATE INDEX faces_person ON faces (person)",
    "CREATE INDEX faces_photo ON faces (photo) WHERE photo IS NOT NULL",
    # What readers and the index still have to take out.
    "CREATE TABLE removals (number INTEGER PRIMARY KEY AUTOINCREMENT, face INTEGER NOT NULL)",
)
SIGNALS: Final = ("size", "eye_distance", "score", "sharpness", "yaw", "pitch", "roll")
"""Of :class:`opqn.faces.FaceQuality`."""
FACE_COLUMNS: Final = ("person", "photo", "code", "vector", "crop", "place", *SIGNALS, "checksum")


class GalleryBusyError(OpqnError):
    """Another process is changing the gallery."""


class Changes(NamedTuple):
    """What happened to the faces of a catalog since a reader looked."""

    removed: NDArray[np.int64]
    """(R,) ids."""
    last_removal: int
    """Number of the last removal."""
    ids: NDArray[np.int64]
    """(N,) of new faces."""
    codes: NDArray[np.uint8]
    """(N, M)."""
    num_faces: int | None
    """In the catalog at that moment; None where more new faces are to be had."""
    last_face: int
    """Largest id a face ever had."""


class Catalog:
    """The connection of one process to a catalog. Threads may share it.

    Args:
        path: of the SQLite file, which exists.

    Raises:
        CorruptFileError: it is not a catalog, or of a newer opqn.
        OpqnError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._connection, self.is_read_only = self._connect()
        try:
            self._check()
        except BaseException:
            self._connection.close()
            raise

    @staticmethod
    def create(path: Path, meta: dict[str, Any]) -> None:
        """Write a catalog without faces at a path where nothing stands."""
        with _explained(path):
            connection = sqlite3.connect(path, isolation_level=None)
            try:
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {VERSION}")
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute("BEGIN")
                for statement in _SCHEMA:
                    connection.execute(statement)
                rows = [(key, json.dumps(value)) for key, value in meta.items()]
                connection.executemany("INSERT INTO meta VALUES (?, ?)", rows)
                connection.execute("COMMIT")
            finally:
                connection.close()

    def close(self) -> None:
        """Close the connection; what was committed stays."""
        with self._lock:
            self._connection.close()

    # Statements

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run a statement and return all its rows."""
        with self._lock, _explained(self.path):
            return self._connection.execute(statement, values).fetchall()

    def rows_in(self, statement: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Run a statement that ends in ``IN`` with any number of values, and return all its rows."""
        found = []
        for start in range(0, len(values), _AT_ONCE):
            part = values[start : start + _AT_ONCE]
            found += self.rows(f"{statement} ({', '.join('?' * len(part))})", part)
        return found

    def run(self, statement: str, values: Sequence[Any] = ()) -> int:
        """Run a statement within :meth:`transaction`; return the id of the row it inserted."""
        with _explained(self.path):
            return self._connection.execute(statement, values).lastrowid or 0

    def run_many(self, statement: str, rows: Iterable[Sequence[Any]]) -> int:
        """Run a statement within :meth:`transaction` for many rows; return how many rows it touched."""
        with _explained(self.path):
            return self._connection.executemany(statement, rows).rowcount

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make everything within the block happen, or nothing of it."""
        with self._lock, _explained(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Make everything read within the block be as of one moment."""
        with self._lock, _explained(self.path):
            if self._connection.in_transaction:
                yield
                return
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                self._connection.execute("ROLLBACK")

    # Facts

    def meta(self, key: str) -> Any:
        """Return a fact about the gallery, None if there is none."""
        rows = self.rows("SELECT value FROM meta WHERE key = ?", (key,))
        try:
            return json.loads(rows[0][0]) if rows else None
        except (ValueError, TypeError, RecursionError) as error:
            raise CorruptFileError(f"{self.path}: {key} is damaged; restore the gallery from a backup") from error

    def set_meta(self, key: str, value: Any) -> None:
        """Keep a fact, within :meth:`transaction`; None forgets it."""
        if value is None:
            self.run("DELETE FROM meta WHERE key = ?", (key,))
        else:
            self.run("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value)))

    def version(self) -> int:
        """Return a number that changes when another connection commits."""
        return int(self.rows("PRAGMA data_version")[0][0])

    def count(self, table: str) -> int:
        """Return the number of rows of a table."""
        return int(self.rows(f"SELECT count(*) FROM {table}")[0][0])  # noqa: S608 (names of ours)

    # People

    def person_named(self, name: str) -> int | None:
        """Return the id of the person of this name, None if there is none."""
        rows = self.rows("SELECT id FROM people WHERE name = ?", (check_name(name),))
        return rows[0][0] if rows else None

    def ensure_person(self, name: str) -> int:
        """Return the id of the person of this name, made if there was none; within :meth:`transaction`."""
        person = self.person_named(name)
        return self.run("INSERT INTO people (name) VALUES (?)", (check_name(name),)) if person is None else person

    # Faces

    def changes(self, last_removal: int, next_id: int, num_books: int) -> Changes:
        """Return what happened after a removal and from an id on, as of one moment; a part of it if it is much.

        Raises:
            CorruptFileError: a code has another length.
        """
        with self.snapshot():
            removed = self.rows("SELECT number, face FROM removals WHERE number > ? ORDER BY number", (last_removal,))
            added = self.rows("SELECT id, code FROM faces WHERE id >= ? ORDER BY id LIMIT ?", (next_id, _FACES_AT_ONCE))
            num_faces = self.count("faces") if len(added) < _FACES_AT_ONCE else None
            last_face = self._last_face()
        codes = b"".join(code for _, code in added if isinstance(code, bytes) and len(code) == num_books)
        if len(codes) != len(added) * num_books:
            raise CorruptFileError(f"{self.path}: a code is damaged; `opqn gallery verify` names it")
        return Changes(
            np.array([face for _, face in removed], dtype=np.int64),
            removed[-1][0] if removed else last_removal,
            np.array([face for face, _ in added], dtype=np.int64),
            np.frombuffer(codes, np.uint8).reshape(-1, num_books),
            num_faces,
            last_face,
        )

    def add_faces(self, rows: Iterable[Sequence[Any]], columns: Sequence[str] = FACE_COLUMNS) -> range:
        """Add faces, each with these columns, within :meth:`transaction`; return their ids."""
        first = self._last_face() + 1
        statement = f"INSERT INTO faces ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"  # noqa: S608
        self.run_many(statement, rows)
        return range(first, self._last_face() + 1)

    def _last_face(self) -> int:
        """Return the largest id a face ever had, 0 if there was none."""
        rows = self.rows("SELECT seq FROM sqlite_sequence WHERE name = 'faces'")
        return rows[0][0] if rows else 0

    def scrub(self) -> bool:
        """Rewrite the file without what was deleted, and empty the write-ahead log.

        ``secure_delete`` zeroes a deleted row, but not the copies of it that earlier splits of a page may have left
        in the page's free room; only a rewritten file has none.

        Returns:
            False if a reader still held the log, which is then emptied by the next call.
        """
        with self._lock, _explained(self.path):
            self._connection.execute("VACUUM")
            busy, _, _ = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not busy

    def problems(self) -> list[str]:
        """Let SQLite check its own structures; return what it found, at most 20 lines."""
        found = [row[0] for row in self.rows("PRAGMA integrity_check(20)") if row[0] != "ok"]
        return (
            found
            + [f"a row of {row[0]} points to no row of {row[2]}" for row in self.rows("PRAGMA foreign_key_check")][:20]
        )

    def _connect(self) -> tuple[sqlite3.Connection, bool]:
        place = self.path.absolute().as_uri()
        with _explained(self.path):
            if not self.path.is_file():
                raise CorruptFileError(f"{self.path} is missing; restore the gallery from a backup")
            is_read_only = not os.access(self.path, os.W_OK) or not os.access(self.path.parent, os.W_OK)
            log = self.path.with_name(self.path.name + "-wal")
            if not is_read_only:
                mode = "rw"
            elif log.exists() and log.stat().st_size:
                mode = "ro"
            else:  # a write-ahead log cannot be made here, and none is needed where nobody writes
                mode = "ro&immutable=1"
            connection = sqlite3.connect(
                f"{place}?mode={mode}", uri=True, isolation_level=None, check_same_thread=False, timeout=10
            )
            try:
                connection.execute("PRAGMA trusted_schema = OFF")
                connection.execute("PRAGMA cell_size_check = ON")
                connection.execute("PRAGMA foreign_keys = ON")
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute("PRAGMA secure_delete = ON")
            except BaseException:
                connection.close()
                raise
        return connection, is_read_only

    def _check(self) -> None:
        """See that the file is a catalog of a version that can be read, and holds no views and triggers of others."""
        if self.rows("PRAGMA application_id")[0][0] != APPLICATION_ID:
            raise CorruptFileError(f"{self.path} is not the catalog of a gallery")
        version = self.rows("PRAGMA user_version")[0][0]
        if version > VERSION:
            raise CorruptFileError(
                f"{self.path} was written by a newer opqn (format version {version}); upgrade opqn to open it"
            )
        found = {row[0] for row in self.rows("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")}
        if found - {"CREATE TABLE sqlite_sequence(name,seq)"} != set(_SCHEMA):
            raise CorruptFileError(f"{self.path} has other tables than a gallery; restore it from a backup")


def check_name(name: str) -> str:
    """Return a person's name as it is kept: NFC, without spaces around it.

    Raises:
        ConfigError: no name, a very long one, or one with control characters.
    """
    kept = unicodedata.normalize("NFC", name).strip()
    if not kept or len(kept) > MAX_NAME or _UNPRINTABLE.search(kept):
        raise ConfigError(
            f"{name[:MAX_NAME]!r} is no name of a person; give 1 to {MAX_NAME} characters, none a control character"
        )
    return kept


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what SQLite says into an error that says what to do."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise GalleryBusyError(f"{path} is being changed by another process; try again when it is done") from error
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise CorruptFileError(f"{path} is damaged ({error}); restore the gallery from a backup") from error
        if code == sqlite3.SQLITE_FULL:
            raise OpqnError(
                f"cannot write {path}: the disk is full. What was in the gallery is still there; make room, then run "
                "the command again"
            ) from error
        if code == sqlite3.SQLITE_READONLY:
            raise OpqnError(
                f"cannot write {path}: it is read-only. It can be searched, not changed; copy the gallery to a disk "
                "that can be written"
            ) from error
        raise OpqnError(f"cannot use {path}: {error}") from error
