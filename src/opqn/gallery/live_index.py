"""The index of a gallery, derived from its catalog: followed change by change, rebuilt when it does not fit."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from opqn.errors import ConfigError, CorruptFileError
from opqn.gallery.catalog import Catalog
from opqn.index import CodeIndex

if TYPE_CHECKING:
    from opqn.index.segments import Profile

# Faces that a reader takes from the catalog in a few milliseconds; with more the files are brought up to date.
UNSAVED_FACES: Final = 4096


class LiveIndex:
    """An index in step with a catalog.

    Args:
        catalog: the truth.
        folder: of the index's files, which may be missing, old or damaged.
        num_books: M.
        num_words: K.
        profile: of the index.
    """

    def __init__(self, catalog: Catalog, folder: Path, num_books: int, num_words: int, profile: Profile) -> None:
        self._catalog = catalog
        self._folder = folder
        self._shape = (num_books, num_words)
        self._profile: Profile = profile
        self._lock = threading.Lock()
        self._version: int | None = None
        self._last_removal = 0
        self._saved_up_to = 0
        self._index = self._load()

    def current(self) -> CodeIndex:
        """Return the index as the catalog is now.

        Raises:
            CorruptFileError: the catalog holds a code that no code can be.
        """
        with self._lock:
            version = self._catalog.version()
            if version != self._version:
                self._follow()
                self._version = version
            return self._index

    def changed(self) -> None:
        """Say that this process changed the catalog, which its version does not tell."""
        with self._lock:
            self._version = None

    def rebuild(self) -> CodeIndex:
        """Forget the index and its files, and build it from the catalog."""
        with self._lock:
            self._start_over()
            self._follow()
            self._version = None
            return self._index

    def save(self, *, purge: bool = False) -> None:
        """Bring the files up to date; with ``purge`` nothing of removed faces is left in them.

        Raises:
            OpqnError: the disk is full or cannot be written.
        """
        index = self.current()
        if purge:
            index.purge()
        try:
            if self._folder.is_file():
                self._folder.unlink()
            index.save(self._folder)
        except (ConfigError, CorruptFileError):  # something else stands there; what is derived gives way
            shutil.rmtree(self._folder, ignore_errors=True)
            index.save(self._folder)
        self._saved_up_to = index.next_id

    def save_if_far_behind(self) -> None:
        """Bring the files up to date where a reader would take long to catch up."""
        if self.current().next_id - self._saved_up_to > UNSAVED_FACES:
            self.save()

    def _load(self) -> CodeIndex:
        try:
            index = CodeIndex.load(self._folder)
        except (ConfigError, CorruptFileError, OSError):  # none yet, damaged, or being replaced: the catalog has it all
            return CodeIndex(*self._shape, self._profile)
        if (index.num_books, index.num_words, index.profile) != (*self._shape, self._profile):
            return CodeIndex(*self._shape, self._profile)
        self._saved_up_to = index.next_id
        return index

    def _start_over(self) -> None:
        self._index, self._last_removal, self._saved_up_to = CodeIndex(*self._shape, self._profile), 0, 0

    def _follow(self) -> None:
        if not self._apply():  # files older or newer than the catalog, as after a backup of one of them was put back
            self._start_over()
            self._apply()

    def _apply(self) -> bool:
        """Take in what happened; return whether the index then fits the catalog."""
        while True:
            changes = self._catalog.changes(self._last_removal, self._index.next_id, self._shape[0])
            gone = np.unique(changes.removed)
            gone = gone[self._index.holds(gone)]
            if len(gone):
                self._index.remove(gone)
            try:
                self._index.add(changes.codes, changes.ids)
            except ConfigError as error:
                raise CorruptFileError(f"{self._catalog.path}: {error}; `opqn gallery verify` tells more") from error
            self._last_removal = changes.last_removal
            if changes.num_faces is not None:
                return len(self._index) == changes.num_faces and self._index.next_id <= changes.last_face + 1
