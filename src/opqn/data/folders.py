"""A folder of images, one folder a person."""

from __future__ import annotations

import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from opqn.data.images import SkippedImage
from opqn.errors import DataError

IMAGE_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".pgm", ".ppm", ".bmp", ".webp")
_NOT_PEOPLE: Final = frozenset(
    (
        "train",
        "training",
        "val",
        "valid",
        "validation",
        "test",
        "testing",
        "gallery",
        "query",
        "probe",
        "images",
        "data",
    )
)
_NOT_TEXT: Final = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")  # the last are bytes that are not UTF-8


@dataclass(frozen=True)
class ImageFolder:
    """The images below a folder. ``paths`` are relative to ``root``, with forward slashes."""

    root: Path
    paths: tuple[str, ...]
    people: tuple[str, ...]
    """Person of each path: the name of the first folder on the way."""
    skipped: tuple[SkippedImage, ...] = ()
    """What looked like an image and was left out."""


def scan_folder(root: str | Path) -> ImageFolder:
    """List the images below ``root``: a folder per person, and any folders below that.

    A file counts by its suffix (:data:`IMAGE_SUFFIXES`, any case); nothing is opened. Hidden files and folders are
    passed over. A link to an image is taken if it stays within ``root``; links that leave it and links to folders are
    not followed, but listed in ``skipped``. Names are kept as on disk and sorted by their NFC form, so that the order
    is the same on every machine.

    Raises:
        DataError: no such folder, no images in it, images of no person, or folders that are parts of a data set
            (train, test) instead of people. The message says what to do.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root} is {'not a folder' if root.exists() else 'missing'}; give a folder of images")
    paths, skipped = list_images(root)
    if not paths:
        raise DataError(_why_empty(root, skipped))
    people = tuple(path.partition("/")[0] for path in paths)
    names = sorted(set(people))
    if _NOT_PEOPLE.issuperset(name.casefold() for name in names):
        raise DataError(
            f"the folders in {root} ({', '.join(names)}) look like parts of a data set, not like people; point at one "
            f"of them, such as {root / names[0]}"
        )
    return ImageFolder(root, tuple(paths), people, tuple(sorted(skipped)))


def list_images(root: Path, *, in_folders: bool = True) -> tuple[list[str], list[SkippedImage]]:
    """List the images below a folder, as :func:`scan_folder` does.

    Args:
        root: a folder.
        in_folders: an image that lies directly in ``root`` is skipped.

    Returns:
        Relative paths, sorted, and what was left out.
    """
    paths, skipped = _walk(root, in_folders)
    return sorted(paths, key=_sort_key), skipped


def path_problem(path: str, *, in_folders: bool = True) -> str | None:
    """Say why a relative path cannot stand in a split file, or return None.

    Such a path is ``PERSON/.../IMAGE``, with forward slashes, UTF-8, and never leads out of its root on any system.
    """
    parts = path.split("/")
    if not parts[0] or path[1:2] == ":":
        return "it is absolute; paths are relative to the root"
    if "\\" in path:
        return "it has a backslash; use forward slashes"
    if not {"", ".", ".."}.isdisjoint(parts):
        return "it has an empty part, '.' or '..'"
    if in_folders and len(parts) < 2:
        return "it has no folder of a person"
    if _NOT_TEXT.search(path):
        return "it has control characters or is not UTF-8; rename it"
    return None


def name_sort_key(name: str) -> tuple[str, str]:
    """Order names by their NFC form; of names that look the same, by the form on disk."""
    return unicodedata.normalize("NFC", name), name


def _sort_key(path: str) -> list[tuple[str, str]]:
    return [name_sort_key(part) for part in path.split("/")]


def _walk(root: Path, in_folders: bool) -> tuple[list[str], list[SkippedImage]]:
    real_root = root.resolve()
    paths: list[str] = []
    skipped: list[SkippedImage] = []
    pending = [""]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(root / folder) as listing:
                entries = [entry for entry in listing if not entry.name.startswith(".")]
        except OSError as error:
            skipped.append(SkippedImage(folder or str(root), f"the folder cannot be read: {error.strerror}"))
            continue
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir(follow_symlinks=False):
                pending.append(path)
            elif entry.is_dir():
                skipped.append(SkippedImage(path, "it is a link to a folder; such links are not followed"))
            elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:  # noqa: PTH122 (a Path per file is slow)
                problem = path_problem(path, in_folders=in_folders) or _entry_problem(entry, real_root)
                if problem:
                    skipped.append(SkippedImage(path, problem))
                else:
                    paths.append(path)
    return paths, skipped


def _entry_problem(entry: os.DirEntry[str], real_root: Path) -> str | None:
    if not entry.is_file():
        return "it is a link to nothing" if entry.is_symlink() else "it is not a regular file"
    if entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(real_root):
        return f"it is a link that leaves {real_root}"
    return None


def _why_empty(root: Path, skipped: list[SkippedImage]) -> str:
    if any("/" not in path and path.lower().endswith(IMAGE_SUFFIXES) for path, _ in skipped):
        return f"the images in {root} lie directly in it; make one folder per person and put each person's images there"
    message = f"no images in {root}; it needs a folder per person, with files named {', '.join(IMAGE_SUFFIXES)}"
    if skipped:
        message += f". Left out: {len(skipped)}, such as {skipped[0].path}: {skipped[0].reason}"
    return message
