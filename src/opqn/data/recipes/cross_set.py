"""Splits that test on one set what was trained on another, and the people that both sets know."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from opqn.data.splits import Split, person_of
from opqn.errors import CorruptFileError, DataError


def comparable_name(name: str) -> str:
    """Return a person's name without accents, case, spaces and punctuation: ``Penélope Cruz`` is ``penelope_cruz``.

    Two names that are written alike become one; two spellings of a name stay two, and so do two orders of its words.
    """
    letters = unicodedata.normalize("NFKD", name).casefold()
    return "".join(letter for letter in letters if letter.isalnum())


def cross_set_split(split: Split, known_people: Iterable[str] = (), *, name: str | None = None) -> Split:
    """Make the split that a model trained on another set is tested with.

    Nothing is trained on; gallery and queries are those of ``split``, less the people that the model was trained on.
    Ids of one set are not names of another: give names for both, see :func:`read_names`.

    Args:
        split: of the set to test on.
        known_people: names of those the model was trained on, in any spelling that :func:`comparable_name` evens out.
        name: of the new split.

    Raises:
        DataError: nobody is left to search for.
    """
    known = frozenset(map(comparable_name, known_people))

    def strangers(paths: Iterable[str]) -> tuple[str, ...]:
        return tuple(path for path in paths if comparable_name(person_of(path)) not in known)

    gallery, query = strangers(split.gallery), strangers(split.query)
    if not gallery or not query:
        raise DataError(f"everybody in {split.name} is known to the model; test it on another set")
    return Split(name or f"{split.name}-cross", "unseen", split.seed, (), gallery, query)


def read_names(path: str | Path) -> frozenset[str]:
    """Read names of people: the column ``name`` of a CSV file with a header, or a name a line.

    The ``people.csv`` that the recipe of VGGFace2 writes is such a file; of it only the people trained on count.

    Raises:
        DataError: the file cannot be read, or has no names.
        CorruptFileError: it is not UTF-8 text.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read the names in {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CorruptFileError(f"{path} is not UTF-8 text: {error}") from error
    first = next(iter(text.splitlines()), "")
    if "name" in [column.strip().casefold() for column in first.split(",")]:
        names = [row["name"] for row in _rows(path, text) if row.get("role", "train") == "train" and row.get("name")]
    else:
        names = text.splitlines()
    people = frozenset(name.strip() for name in names if comparable_name(name))
    if not people:
        raise DataError(f"{path} has no names; give a CSV file with a column 'name', or a name a line")
    return people


def _rows(path: Path, text: str) -> list[dict[str, str]]:
    """Return the rows of a CSV file; columns have lower-case names without spaces around them."""
    try:
        rows = list(csv.reader(io.StringIO(text), skipinitialspace=True))
    except csv.Error as error:
        raise CorruptFileError(f"{path} is not a CSV file: {error}") from error
    header = [column.strip().casefold() for column in rows[0]]
    return [dict(zip(header, row, strict=False)) for row in rows[1:]]


def names_by_class(text: str) -> dict[str, str]:
    """Return the name of each class of VGGFace2's ``identity_meta.csv``: columns ``Class_ID`` and ``Name``, and others.

    Raises:
        CorruptFileError: it has no such columns.
    """
    rows = _rows(Path("identity_meta.csv"), text) if text.strip() else []
    names = {row["class_id"].strip(): row["name"].strip() for row in rows if row.get("class_id") and row.get("name")}
    if not names:
        raise CorruptFileError("identity_meta.csv has no columns Class_ID and Name; download it again or leave it out")
    return names
