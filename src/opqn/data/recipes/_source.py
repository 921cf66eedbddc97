"""Reading what a user downloaded: a folder, tar or zip archives. An archive is taken for hostile.

Archives are listed first, without reading what is in them, then read in one pass; nothing is ever unpacked to a place
that an archive names. Links and special files are passed over, a member that would leave the folder condemns the
archive, and sizes are bounded: of one file, of what a reader is made to hold at once, and of the whole against the
archive's own size.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import re
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, Protocol, cast

from opqn.data.folders import IMAGE_SUFFIXES, list_images, path_problem
from opqn.data.images import SkippedImage
from opqn.errors import CorruptFileError, DataError, OpqnError

MAX_FILE_BYTES: Final = 64 << 20
MAX_RATIO: Final = 100
"""Images hardly compress; what unpacks to more than this many times its size is a bomb."""
_SLACK: Final = 64 << 20
_ARCHIVES: Final = re.compile(r"\.(zip|tar|tgz|tbz2|txz|tar\.(gz|bz2|xz))$", re.IGNORECASE)
_COMPRESSIONS: Final[tuple[tuple[bytes, Callable[[Path], object]], ...]] = (
    (b"\x1f\x8b", gzip.open),
    (b"BZh", bz2.open),
    (b"\xfd7zXZ\x00", lzma.open),
)
Wanted = Callable[[str], bool]


class Entry(NamedTuple):
    """A file of the source: its path below the source, with forward slashes, and its size in bytes."""

    path: str
    size: int


class Source(Protocol):
    """Files that are listed first and read later."""

    entries: list[Entry]
    skipped: list[SkippedImage]

    def read(self, paths: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Yield the files asked for, in the order that is fastest."""
        ...


def is_image(path: str) -> bool:
    """Say whether a file's name is that of an image."""
    return path.lower().endswith(IMAGE_SUFFIXES)


def open_source(paths: Sequence[Path], wanted: Wanted = is_image) -> Source:
    """List a folder, archives, or a folder that holds archives.

    Where a folder holds both, the files in it count and the archives do not.

    Args:
        paths: one folder, or archives.
        wanted: which files count, by their path.

    Raises:
        DataError: nothing there, or nothing of the kind that is wanted.
        CorruptFileError: an archive is damaged or hostile.
    """
    source: Source
    if len(paths) == 1 and paths[0].is_dir():
        source = _Folder(paths[0], wanted)
        archives = sorted(path for path in paths[0].iterdir() if _ARCHIVES.search(path.name) and path.is_file())
        if not source.entries and archives:
            source = _Archives(archives, wanted)
    else:
        for path in paths:
            if not path.is_file() or not _ARCHIVES.search(path.name):
                what = "missing" if not path.exists() else "neither a folder nor a tar or zip archive"
                raise DataError(f"{path} is {what}; give the folder or the archives (tar or zip) as downloaded")
        source = _Archives(paths, wanted)
    if not source.entries:
        found = f"; left out {len(source.skipped)}, such as {source.skipped[0]}" if source.skipped else ""
        raise DataError(
            f"no files of this data set in {', '.join(map(str, paths))}{found}; give the folder or the archives as "
            "downloaded"
        )
    return source


class _Folder:
    def __init__(self, root: Path, wanted: Wanted) -> None:
        self._root = root
        self.skipped: list[SkippedImage] = []
        if wanted is is_image:
            names, self.skipped = list_images(root)
        else:
            names = sorted(_files_below(root, wanted))
        self.entries = []
        for name in names:
            with _readable(root / name):
                size = (root / name).stat().st_size
            if size > MAX_FILE_BYTES:
                self.skipped.append(SkippedImage(name, _too_large(size)))
            else:
                self.entries.append(Entry(name, size))

    def read(self, paths: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        asked = set(paths)
        for entry in self.entries:
            if entry.path in asked:
                with _readable(self._root / entry.path), (self._root / entry.path).open("rb") as file:
                    data = file.read(MAX_FILE_BYTES)
                yield entry.path, data


class _Archives:
    def __init__(self, files: Sequence[Path], wanted: Wanted) -> None:
        self.entries = []
        self.skipped = []
        self._members: list[tuple[Path, dict[str, str]]] = []  # of each archive: a member's own name, its path
        taken: set[str] = set()
        for file in files:
            top = f"{_folder_for(file)}/" if len(files) > 1 else ""
            members: dict[str, str] = {}
            for name, size, problem in _members(file):
                clean = _clean(file, name)
                if not wanted(clean) or any(part.startswith(".") for part in clean.split("/")):
                    continue
                path = top + clean
                reason = problem or path_problem(path, in_folders=False)
                if reason is None and size > MAX_FILE_BYTES:
                    reason = _too_large(size)
                if reason is None and path in taken:
                    reason = "the archive holds another file of this name"
                if reason is not None:
                    self.skipped.append(SkippedImage(path, reason))
                    continue
                taken.add(path)
                members[name] = path
                self.entries.append(Entry(path, size))
            self._members.append((file, members))
        self.entries.sort()

    def read(self, paths: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        asked = set(paths)
        for file, members in self._members:
            names = {name: path for name, path in members.items() if path in asked}
            for name, data in _contents(file, names.keys()):
                path = names.pop(name, None)
                if path is not None:
                    yield path, data


class _Bounded:
    """A file that refuses to be read in one large piece: tarfile reads a header at once, however long it says it is."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_FILE_BYTES:
            raise ValueError(f"a part of {size} bytes is to be read at once")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def _members(file: Path) -> Iterator[tuple[str, int, str | None]]:
    """Yield name, size and, if it is no plain file, a reason; directories are left out."""
    total, limit = 0, MAX_RATIO * file.stat().st_size + _SLACK
    with _whole(file):
        for name, size, problem in _zip_members(file) if _is_zip(file) else _tar_members(file):
            total += size + tarfile.BLOCKSIZE  # a member without content costs its header
            if size < 0 or total > limit:
                raise CorruptFileError(
                    f"{file} unpacks to more than {MAX_RATIO} times its size, which images never do; do not use it"
                )
            if problem != "":
                yield name, size, problem


def _tar_members(file: Path) -> Iterator[tuple[str, int, str | None]]:
    for member, _ in _walk_tar(file):
        problem: str | None = None
        if member.isdir():
            problem = ""
        elif member.issym() or member.islnk():
            problem = "it is a link; links in archives are not followed"
        elif member.type not in {tarfile.REGTYPE, tarfile.AREGTYPE} or member.issparse():
            problem = "it is not a regular file"
        yield member.name, member.size, problem


def _zip_members(file: Path) -> Iterator[tuple[str, int, str | None]]:
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            problem: str | None = None
            if info.is_dir():
                problem = ""
            elif kind == stat.S_IFLNK:
                problem = "it is a link; links in archives are not followed"
            elif kind not in {0, stat.S_IFREG}:
                problem = "it is not a regular file"
            elif info.flag_bits & 1:
                problem = "it is encrypted; unpack the archive with its password and give the folder"
            yield info.filename, info.file_size, problem


def _contents(file: Path, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    asked = set(names)
    with _whole(file):
        if _is_zip(file):
            with zipfile.ZipFile(file) as archive:
                for info in archive.infolist():
                    if info.filename in asked:
                        with archive.open(info) as content:
                            yield info.filename, content.read(MAX_FILE_BYTES)
            return
        for member, archive_file in _walk_tar(file):
            plain = member.isreg() and 0 <= member.size <= MAX_FILE_BYTES
            content_file = archive_file.extractfile(member) if plain and member.name in asked else None
            if content_file is not None:
                yield member.name, content_file.read()


def _walk_tar(file: Path) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    with file.open("rb") as raw:
        start = raw.read(6)
    unpack = next((unpack for magic, unpack in _COMPRESSIONS if start.startswith(magic)), lambda path: path.open("rb"))
    with cast("IO[bytes]", unpack(file)) as stream:
        bounded = cast("IO[bytes]", _Bounded(stream))
        with tarfile.open(fileobj=bounded, mode="r:") as archive:
            while (member := archive.next()) is not None:
                if member.size < 0:  # would lead backwards, for ever
                    raise ValueError("a member has a negative size")
                cast("Any", archive).members.clear()  # they are gigabytes by the million
                yield member, archive


def _is_zip(file: Path) -> bool:
    """Go by the name: a tar that ends with a zip in it would pass for a zip."""
    return file.suffix.lower() == ".zip"


def _clean(file: Path, name: str) -> str:
    path = name.replace("\\", "/")
    while path.startswith("./"):
        path = path[2:]
    if path.startswith("/") or path[1:2] == ":" or ".." in path.split("/"):
        raise CorruptFileError(f"{file} holds {name!r}, which leads out of the folder it belongs in; do not use it")
    return path


def _folder_for(file: Path) -> str:
    """Return the folder that stands for one of several archives: the part of the set that its name says it is."""
    name = _ARCHIVES.sub("", file.name)
    words = re.split(r"[^a-z]+", name.lower())
    return next((part for part in ("train", "test", "val") if part in words), name)


def _files_below(root: Path, wanted: Wanted) -> Iterator[str]:
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(folder, name)
            relative = path.relative_to(root).as_posix()
            if wanted(relative) and not path.is_symlink() and path.is_file():
                yield relative


def _too_large(size: int) -> str:
    return f"it has {size:,} bytes; at most {MAX_FILE_BYTES:,} are read"


@contextmanager
def _whole(file: Path) -> Iterator[None]:
    try:
        yield
    except (OpqnError, MemoryError):
        raise
    except Exception as error:  # readers of archives raise nearly anything on a hostile file
        raise CorruptFileError(
            f"{file} cannot be read as an archive: {error or type(error).__name__}; download it again"
        ) from error


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; is the disk with the source still there?") from error
