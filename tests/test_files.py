"""Writing that leaves the old file or folder whole, whatever comes between."""

import errno
import os

import pytest

from opqn import _files
from opqn._files import atomic_folder, atomic_write_bytes, check_writable, recover_folder, write_synced
from opqn.errors import ConfigError, OpqnError


def contents(folder):
    """Every file below a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_version(folder, version):
    with atomic_folder(folder) as aside:
        write_synced(aside / "a", version)
        write_synced(aside / "b", version * 2)


@pytest.fixture
def full_disk(monkeypatch):
    def refuse(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)


def test_file_is_replaced_and_its_folder_made(tmp_path):
    target = tmp_path / "new/deep/file"
    for data in (b"one", b"", b"three"):
        atomic_write_bytes(target, data)
        assert contents(tmp_path) == {"new/deep/file": data}


def test_checking_that_a_file_can_be_written_writes_none(tmp_path):
    (tmp_path / "there").write_bytes(b"old")
    for target in (tmp_path / "there", tmp_path / "new" / "file"):
        check_writable(target)
    assert contents(tmp_path) == {"there": b"old"}


def test_a_place_that_takes_no_file_is_found_before_the_work(tmp_path):
    (tmp_path / "there").write_bytes(b"old")
    with pytest.raises(OpqnError, match="choose another place"):
        check_writable(tmp_path / "there" / "file")
    with pytest.raises(ConfigError, match="is a folder"):
        check_writable(tmp_path)


@pytest.mark.usefixtures("full_disk")
def test_full_disk_leaves_the_old_file_and_says_so(tmp_path):
    target = tmp_path / "file"
    target.write_bytes(b"old")
    with pytest.raises(OpqnError, match=r"cannot write .*file: the disk is full.*unchanged.*make room"):
        atomic_write_bytes(target, b"new")
    assert contents(tmp_path) == {"file": b"old"}


def test_place_that_cannot_be_written_is_an_error_with_the_systems_reason(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(OpqnError, match=r"cannot write .*: (Not a directory|File exists)"):
        atomic_write_bytes(tmp_path / "file/below", b"new")
    with pytest.raises(OpqnError, match=r"cannot write .*: (Not a directory|File exists)"):
        write_version(tmp_path / "file/below", b"1")
    assert contents(tmp_path) == {"file": b"old"}


def test_folder_is_replaced_as_a_whole(tmp_path):
    for version in (b"1", b"2", b"3"):
        write_version(tmp_path / "deep/folder", version)
        assert contents(tmp_path) == {"deep/folder/a": version, "deep/folder/b": version * 2}


def test_empty_folder_is_taken(tmp_path):
    (tmp_path / "folder").mkdir()
    write_version(tmp_path / "folder", b"1")
    assert contents(tmp_path / "folder") == {"a": b"1", "b": b"11"}


def test_full_disk_leaves_the_old_folder_byte_for_byte(tmp_path, monkeypatch):
    write_version(tmp_path / "folder", b"1")
    sync = os.fsync
    calls = []

    def fills_up(descriptor):
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fills_up)
    with pytest.raises(OpqnError, match="the disk is full"):
        write_version(tmp_path / "folder", b"2")
    assert contents(tmp_path) == {"folder/a": b"1", "folder/b": b"11"}


def test_error_in_the_block_passes_through_and_leaves_the_old_folder(tmp_path):
    write_version(tmp_path / "folder", b"1")

    def fail_while_writing():
        with atomic_folder(tmp_path / "folder") as aside:
            write_synced(aside / "a", b"2")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_while_writing()
    assert contents(tmp_path) == {"folder/a": b"1", "folder/b": b"11"}


@pytest.mark.parametrize("failing", [1, 2])
def test_rename_that_fails_leaves_the_old_folder(tmp_path, monkeypatch, failing):
    write_version(tmp_path / "folder", b"1")
    rename = _files.Path.rename
    calls = []

    def fails_once(path, target):
        calls.append(path)
        if len(calls) == failing:
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(_files.Path, "rename", fails_once)
    with pytest.raises(OpqnError, match="Input/output error"):
        write_version(tmp_path / "folder", b"2")
    assert contents(tmp_path) == {"folder/a": b"1", "folder/b": b"11"}


class Killed(BaseException):
    """Stands for SIGKILL: nothing that handles errors may stop it."""


def test_kill_between_the_two_renames_is_recovered(tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    write_version(folder, b"1")
    rename = _files.Path.rename

    def dies_after_the_first(path, target):
        rename(path, target)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(_files.Path, "rename", dies_after_the_first)
        with pytest.raises(Killed):
            write_version(folder, b"2")
    assert not folder.exists()
    recover_folder(folder)
    assert contents(folder) == {"a": b"1", "b": b"11"}
    write_version(folder, b"3")
    assert contents(tmp_path) == {"folder/a": b"3", "folder/b": b"33"}


def test_kill_after_both_renames_leaves_the_new_folder(tmp_path):
    write_version(tmp_path / "folder", b"2")
    (tmp_path / ".folder.old").mkdir()
    (tmp_path / ".folder.old/a").write_bytes(b"1")
    recover_folder(tmp_path / "folder")
    assert contents(tmp_path / "folder") == {"a": b"2", "b": b"22"}
    write_version(tmp_path / "folder", b"3")
    assert contents(tmp_path) == {"folder/a": b"3", "folder/b": b"33"}


def test_nothing_to_recover_is_no_error(tmp_path):
    recover_folder(tmp_path / "no/such/folder")
    assert list(tmp_path.iterdir()) == []


def test_folder_of_other_files_is_not_deleted(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/b").write_bytes(b"a picture")
    with pytest.raises(ConfigError, match=r"holds other files \(b\)"):
        write_version(tmp_path / "photos", b"1")
    with pytest.raises(ConfigError, match="is a file"):
        write_version(tmp_path / "photos/b", b"1")
    assert contents(tmp_path) == {"photos/b": b"a picture"}


def test_working_folder_can_be_named_by_a_dot(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    recover_folder(_files.Path())
    write_version(_files.Path(), b"1")
    assert contents(tmp_path) == {"here/a": b"1", "here/b": b"11"}


def test_link_to_a_folder_stays_a_link(tmp_path):
    write_version(tmp_path / "run3", b"1")
    (tmp_path / "latest").symlink_to("run3")
    write_version(tmp_path / "latest", b"2")
    assert (tmp_path / "latest").is_symlink()
    assert contents(tmp_path / "run3") == {"a": b"2", "b": b"22"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "run3"]
