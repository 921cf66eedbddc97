"""Whether a gallery is whole: every row of the catalog, and the index against it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from opqn.errors import ConfigError, CorruptFileError
from opqn.gallery.adding import checksum
from opqn.gallery.catalog import Catalog
from opqn.gallery.live_index import LiveIndex
from opqn.index import CodeIndex

_AT_ONCE: Final = 10_000
_NAMED: Final = 10
"""Damaged faces that are named; the others are counted."""


def catalog_problems(
    catalog: Catalog, num_books: int, num_words: int, on_progress: Callable[[int, int], None]
) -> list[str]:
    """Return what is wrong in a catalog, a line each."""
    problems = catalog.problems()
    damaged: list[int] = []
    last, done, count = 0, 0, catalog.count("faces")
    while rows := catalog.rows(
        "SELECT id, code, vector, crop, checksum FROM faces WHERE id > ? ORDER BY id LIMIT ?", (last, _AT_ONCE)
    ):
        damaged += [
            face
            for face, code, vector, crop, check in rows
            if len(code) != num_books or max(code) >= num_words or checksum(code, vector, crop) != check
        ]
        last, done = rows[-1][0], done + len(rows)
        on_progress(done, count)
    problems += [
        f"face {face} is damaged; remove it and add its picture again (`opqn gallery remove --id {face}`)"
        for face in damaged[:_NAMED]
    ]
    if len(damaged) > _NAMED:
        problems.append(f"{len(damaged) - _NAMED} more faces are damaged; restore the gallery from a backup")
    empty = catalog.rows(
        "SELECT count(*) FROM people WHERE id NOT IN (SELECT person FROM faces WHERE person IS NOT NULL)"
    )
    if empty[0][0]:
        problems.append(f"{empty[0][0]} people have no faces")
    return problems


def index_problems(catalog: Catalog, live: LiveIndex, folder: Path, num_books: int) -> list[str]:
    """Compare the index in use, and every byte of its files, with the catalog."""
    try:
        codes, ids = live.current().items()
        true_ids, true_codes = _truth(catalog, num_books)
    except CorruptFileError as error:
        return [str(error)]
    problems = []
    if not np.array_equal(ids, true_ids) or not np.array_equal(codes, true_codes):
        problems.append("the index in use differs from the catalog")
    if not folder.exists():
        return problems
    try:
        saved = CodeIndex.load(folder, mmap=False)
    except (ConfigError, CorruptFileError) as error:
        return [*problems, str(error)]
    codes, ids = saved.items()
    there = np.isin(ids, true_ids)
    removed = np.array([row[0] for row in catalog.rows("SELECT face FROM removals")], dtype=np.int64)
    # Faces that came or went since the files were written are taken in when they are opened.
    if not np.isin(ids[~there], removed).all() or not np.array_equal(
        codes[there], true_codes[np.searchsorted(true_ids, ids[there])]
    ):
        problems.append(f"{folder} differs from the catalog")
    return problems


def _truth(catalog: Catalog, num_books: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    ids, codes = [np.empty(0, np.int64)], [np.empty((0, num_books), np.uint8)]
    while True:
        changes = catalog.changes(2**62, int(ids[-1][-1]) + 1 if len(ids[-1]) else 0, num_books)
        ids.append(changes.ids)
        codes.append(changes.codes)
        if changes.num_faces is not None:
            return np.concatenate(ids), np.concatenate(codes)
