"""An index on disk: ``index.json`` names the files of its segments, and is replaced last.

A segment's arrays stand one after the other in a file of its own, each at a multiple of 64 bytes, and are never
changed; which items were removed stands in a small file beside it. So saving writes what is new, then the new
``index.json`` in one rename, then deletes what it no longer names: a kill at any moment leaves a whole index.
"""

from __future__ import annotations

import hashlib
import json
import mmap as memory_map
import os
import re
import uuid
import zlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from opqn._files import atomic_write_bytes, explain_os_errors, sync_folder
from opqn.errors import ConfigError, CorruptFileError
from opqn.index import _native
from opqn.index.segments import MAX_ITEMS, Part, Profile, Structures

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

VERSION: Final = 2
"""2: items may share codes, with ``code_starts``."""
ALIGNMENT: Final = 64
MANIFEST: Final = "index.json"
MAX_MANIFEST_BYTES: Final = 1 << 24
_FILE_NAME: Final = r"[0-9a-f]{32}\.(segment|alive)"

FileName = Annotated[str, Field(pattern=f"^{_FILE_NAME}$")]
Count = Annotated[int, Field(ge=0, le=2**63 - 1)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Array(_Entry):
    start: Count
    size: Count
    crc32: Count


class _Segment(_Entry):
    file: FileName
    size: Annotated[int, Field(ge=1, le=MAX_ITEMS)]
    first_id: Count
    clique: Annotated[int, Field(ge=0, le=64, multiple_of=2)]
    has_lists: bool
    has_planes: bool
    num_bytes: Count
    arrays: dict[str, _Array]
    alive: FileName | None


class _Manifest(_Entry):
    format: Literal["opqn-index"]
    version: Literal[1, 2]
    num_books: Annotated[int, Field(ge=1, le=64)]
    num_words: Annotated[int, Field(ge=2, le=256)]
    profile: Profile
    next_id: Count
    segments: list[_Segment]


class Saved(NamedTuple):
    """What a folder holds."""

    num_books: int
    num_words: int
    profile: Profile
    next_id: int
    parts: tuple[Part, ...]


def save(folder: str | Path, parts: Sequence[Part], next_id: int, profile: Profile) -> list[str]:
    """Write parts into a folder; see :meth:`opqn.CodeIndex.save`.

    Returns:
        For each part the name of its segment's file; "" for one without items.
    """
    folder = Path(folder)
    known: dict[str, _Segment] = {}
    with explain_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / MANIFEST).exists():
            known = {segment.file: segment for segment in _read_manifest(folder).segments}
        elif any(not re.fullmatch(_FILE_NAME, entry.name) for entry in folder.iterdir()):
            raise ConfigError(f"{folder} holds other files; choose a folder that is new, empty or an index")
    entries = [_save_part(folder, part, known) if len(part) else None for part in parts]
    manifest = _Manifest(
        format="opqn-index",
        version=VERSION,
        num_books=parts[0].num_books,
        num_words=parts[0].num_words,
        profile=profile,
        next_id=next_id,
        segments=[entry for entry in entries if entry is not None],
    )
    sync_folder(folder)
    body = manifest.model_dump(mode="json")
    atomic_write_bytes(folder / MANIFEST, json.dumps({"sha256": _digest(body), **body}, indent=1).encode())
    named = {name for entry in manifest.segments for name in (entry.file, entry.alive)}
    for entry in folder.iterdir():
        if re.fullmatch(_FILE_NAME, entry.name) and entry.name not in named:
            entry.unlink(missing_ok=True)
    return [entry.file if entry is not None else "" for entry in entries]


def load(folder: str | Path, *, mmap: bool) -> Saved:
    """Open a folder; see :meth:`opqn.CodeIndex.load`."""
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise ConfigError(f"there is no index in {folder}: it has no {MANIFEST}")
    manifest = _read_manifest(folder)
    parts = tuple(_load_part(folder, manifest, entry, mmap=mmap) for entry in manifest.segments)
    return Saved(manifest.num_books, manifest.num_words, manifest.profile, manifest.next_id, parts)


def _save_part(folder: Path, part: Part, known: dict[str, _Segment]) -> _Segment:
    entry = known.get(part.file)
    if entry is None:
        entry = _write_segment(folder, part)
    alive = None
    if part.alive is not None:
        data = part.alive.tobytes()
        alive = hashlib.sha256(data).hexdigest()[:32] + ".alive"
        if not (folder / alive).exists():
            atomic_write_bytes(folder / alive, data)
    return entry.model_copy(update={"alive": alive})


def _write_segment(folder: Path, part: Part) -> _Segment:
    arrays, place = {}, 0
    name = uuid.uuid4().hex + ".segment"
    with explain_os_errors(folder / name):
        try:
            with (folder / name).open("wb") as file:
                for array, values in _native.arrays_of(part.segment).items():
                    file.write(bytes(-place % ALIGNMENT))
                    place += -place % ALIGNMENT
                    file.write(values.data)
                    arrays[array] = _Array(start=place, size=values.nbytes, crc32=zlib.crc32(values.data))
                    place += values.nbytes
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            (folder / name).unlink(missing_ok=True)
            raise
    return _Segment(
        file=name,
        size=len(part.segment),
        first_id=part.segment.first_id,
        clique=part.structures.clique,
        has_lists=part.structures.has_lists,
        has_planes=part.structures.has_planes,
        num_bytes=place,
        arrays=arrays,
        alive=None,
    )


def _read_manifest(folder: Path) -> _Manifest:
    path = folder / MANIFEST
    damaged = f"{path} is damaged or no index of opqn; build the index again from its codes"
    with path.open("rb") as file:
        data = file.read(MAX_MANIFEST_BYTES + 1)
    try:
        body = json.loads(data) if len(data) <= MAX_MANIFEST_BYTES else None
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(damaged) from error
    if not isinstance(body, dict) or body.get("format") != "opqn-index":
        raise CorruptFileError(damaged)
    version = body.get("version")
    if isinstance(version, int) and version > VERSION:
        raise CorruptFileError(
            f"{path} was written by a newer opqn (format version {version}); upgrade opqn to open it"
        )
    digest = body.pop("sha256", None)
    if digest != _digest(body):
        raise CorruptFileError(damaged)
    try:
        return _Manifest.model_validate_json(json.dumps(body))
    except ValidationError as error:
        raise CorruptFileError(f"{damaged} ({error.errors()[0]['msg']})") from error


def _digest(body: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _load_part(folder: Path, manifest: _Manifest, entry: _Segment, *, mmap: bool) -> Part:
    path = folder / entry.file
    data = _read_file(path, entry.num_bytes, mmap=mmap)
    arrays = {}
    for name, array in entry.arrays.items():
        values = data[array.start : array.start + array.size]
        if array.start + array.size > entry.num_bytes or array.start % ALIGNMENT:
            raise CorruptFileError(f"{path} is damaged: its array {name} lies outside of it; build the index again")
        if not mmap and zlib.crc32(values.data) != array.crc32:
            raise CorruptFileError(f"{path} is damaged: its array {name} was changed; build the index again")
        arrays[name] = values
    structures = Structures(entry.clique, entry.has_lists, entry.has_planes)
    try:
        segment = _native.from_arrays(
            arrays,
            size=entry.size,
            first_id=entry.first_id,
            num_books=manifest.num_books,
            num_words=manifest.num_words,
            clique=entry.clique,
            has_lists=entry.has_lists,
            has_planes=entry.has_planes,
        )
    except CorruptFileError as error:
        raise CorruptFileError(f"{path} is damaged: {error}; build the index again") from error
    part = Part(segment, manifest.num_books, manifest.num_words, structures, num_alive=entry.size, file=entry.file)
    if entry.alive is None:
        return part
    alive = _read_alive(folder / entry.alive, entry.size)
    num_alive = int(np.unpackbits(alive, count=entry.size, bitorder="little").sum())
    return replace(part, alive=alive, num_alive=num_alive)


def _read_file(path: Path, num_bytes: int, *, mmap: bool) -> NDArray[np.uint8]:
    """Return the bytes of a file that has to have this size."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != num_bytes:
                raise CorruptFileError(f"{path} has {size} bytes instead of {num_bytes}; build the index again")
            if mmap:
                return np.frombuffer(memory_map.mmap(file.fileno(), 0, access=memory_map.ACCESS_READ), np.uint8)
            # Aligned as a mapped file is, so that the arrays in it are.
            return np.fromfile(file, np.uint8)
    except FileNotFoundError as error:
        raise CorruptFileError(f"{path} is missing; put it back or build the index again") from error


def _read_alive(path: Path, size: int) -> NDArray[np.uint8]:
    alive = _read_file(path, (size + 7) // 8, mmap=False)
    if hashlib.sha256(alive.tobytes()).hexdigest()[:32] != path.stem:
        raise CorruptFileError(f"{path} was changed: which items were removed is not known; build the index again")
    return alive
