"""Writing files so that a crash, a kill or a full disk leaves the old one whole."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from opqn.errors import ConfigError, OpqnError


@contextmanager
def explain_os_errors(target: Path) -> Iterator[None]:
    """Turn what the system says when ``target`` cannot be written into an error that says what to do."""
    try:
        yield
    except OSError as error:
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else (error.strerror or str(error))
        raise OpqnError(
            f"cannot write {target}: {reason}. What stood there before is unchanged; make room or choose another "
            "place, then run the command again"
        ) from error


def sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` durable, where the system can open folders."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_synced(path: Path, data: bytes) -> None:
    """Write ``data`` and wait until the disk has it. Raises what the system raises."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Replace the file at ``path`` by ``data``, whole or not at all.

    Raises:
        OpqnError: the disk is full or the place cannot be written; the old file is unchanged.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_synced(aside, data)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
        sync_folder(path.parent)


def check_writable(path: Path) -> None:
    """Make the folder of ``path`` and see that a file can be written there, before hours of work go into one.

    Raises:
        OpqnError: it cannot.
        ConfigError: ``path`` is a folder.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a folder and a file is to be written there; name a file")
    with explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"):
            pass


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new empty folder that takes the place of ``path`` once the block ends without an error.

    The old folder is moved aside and then deleted. A kill between the two moves leaves it beside ``path`` under the
    name that :func:`recover_folder` looks for.

    Raises:
        OpqnError: the disk is full or the place cannot be written; the old folder is unchanged.
        ConfigError: what stands at ``path`` is no older version of the new folder, and is not deleted for it.
    """
    path = path.resolve()  # a link stays a link, and "." has a name
    with explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        try:
            aside.chmod(0o755)
            yield aside
            sync_folder(aside)
            old = _old_name(path)
            if old.exists():
                shutil.rmtree(old)
            if path.exists():
                _check_replaceable(path, {entry.name for entry in aside.iterdir()})
                path.rename(old)
            try:
                aside.rename(path)
            except OSError:
                recover_folder(path)
                raise
            sync_folder(path.parent)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def recover_folder(path: Path) -> None:
    """Put the old folder back if a kill fell between the two moves of :func:`atomic_folder`."""
    path = path.resolve()
    old = _old_name(path)
    if not path.exists():
        with suppress(FileNotFoundError):  # there is none, or another process was faster
            old.rename(path)


def _check_replaceable(path: Path, names: set[str]) -> None:
    if not path.is_dir():
        raise ConfigError(f"{path} is a file and a folder is to be written there; choose another place")
    there = {entry.name for entry in path.iterdir()}
    if there and not names <= there:
        raise ConfigError(
            f"{path} holds other files ({', '.join(sorted(there)[:3])}), which would be lost; choose a folder that is "
            "new or empty"
        )


def _old_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")
