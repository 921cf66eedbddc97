"""Which files of a folder are new, changed, moved or gone, compared with what a catalog remembers of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from opqn.data.folders import list_images
from opqn.data.images import SkippedImage
from opqn.errors import ConfigError, DataError
from opqn.gallery.catalog import Catalog, check_name

if TYPE_CHECKING:
    from collections.abc import Sequence

PeopleFrom = Literal["folders", "none"]
"""Whether the first folder on the way to a picture is the name of whom it shows."""


class FoundFile(NamedTuple):
    """A file to look at."""

    path: Path
    """Absolute."""
    person: str | None
    size: int
    mtime_ns: int


class Scan(NamedTuple):
    """What a folder holds, compared with the catalog."""

    new: list[FoundFile]
    """Files that the catalog does not know, or that changed."""
    num_unchanged: int
    skipped: list[SkippedImage]
    gone: list[str]
    """Paths the catalog knows below the folder where there is no file any more."""


def scan(catalog: Catalog, source: Path, people: PeopleFrom) -> Scan:
    """Compare a folder with the catalog, by size and time of change; no file is opened.

    Raises:
        DataError: there is no such folder, or no picture in it.
    """
    root = check_source(source)
    paths, skipped = list_images(root, in_folders=False)
    if not paths:
        first = f" ({skipped[0].path}: {skipped[0].reason})" if skipped else ""
        raise DataError(f"no pictures in {source}{first}; is it the right folder, and is its disk there?")
    known = {
        path: (size, mtime_ns)
        for path, size, mtime_ns in catalog.rows(
            "SELECT path, size, mtime_ns FROM files WHERE path >= ? AND path < ?", _range(root)
        )
    }
    new = []
    num_unchanged = 0
    for relative in paths:
        path = root / relative
        try:
            facts = path.stat()
        except OSError as error:  # deleted meanwhile
            skipped.append(SkippedImage(str(path), error.strerror or str(error)))
            continue
        if known.pop(str(path), None) == (facts.st_size, facts.st_mtime_ns):
            num_unchanged += 1
            continue
        person, slash, _ = relative.partition("/")
        new.append(
            FoundFile(path, _name(person) if slash and people == "folders" else None, facts.st_size, facts.st_mtime_ns)
        )
    gone = [path for path in known if not Path(path).exists()]
    return Scan(new, num_unchanged, [SkippedImage(str(root / path), why) for path, why in skipped], sorted(gone))


def check_source(source: Path) -> Path:
    """Return a folder's absolute path.

    Raises:
        DataError: there is no such folder.
    """
    if not source.is_dir():
        raise DataError(f"{source} is {'not a folder' if source.exists() else 'missing'}; give a folder of pictures")
    return source.resolve()


def forget_moved(catalog: Catalog, gone: Sequence[str]) -> list[str]:
    """Forget paths whose pictures are known elsewhere, within a transaction; return the others."""
    missing = []
    for path in gone:
        elsewhere = catalog.rows(
            "SELECT 1 FROM files AS old JOIN files AS new ON old.photo = new.photo AND new.path != old.path "
            "WHERE old.path = ? LIMIT 1",
            (path,),
        )
        if elsewhere or not catalog.rows("SELECT 1 FROM files WHERE path = ? AND photo IS NOT NULL", (path,)):
            catalog.run("DELETE FROM files WHERE path = ?", (path,))
        else:
            missing.append(path)
    return missing


def _range(root: Path) -> tuple[str, str]:
    """The first path below a folder, and the first beyond."""
    below = f"{root}/" if not str(root).endswith("/") else str(root)
    return below, below[:-1] + chr(ord("/") + 1)


def _name(folder: str) -> str | None:
    try:
        return check_name(folder)
    except ConfigError:  # such as one that is too long
        return None
