"""Archives as an enemy would make them: nothing is written outside, nothing fills the memory, the error says why."""

import contextlib
import gzip
import os
import tarfile
import zipfile
from functools import partial

import numpy as np
import pytest
from small_sets import content, people, picture, small, write_files, write_tar, write_zip

from opqn.data.recipes import _source
from opqn.data.recipes._source import open_source
from opqn.errors import CorruptFileError, DataError

LFW = small("lfw")
ESCAPES = ["../out.png", "lfw/../../out.png", "/out.png", "..\\..\\out.png", "C:\\out.png", "c:/out.png"]


@pytest.fixture
def faces():
    return list(people(["Ann", "Bob", "Cid", "Dee"], 6, "lfw/{person}/{i}.png").items())


def special(name, kind, target=""):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize("name", ESCAPES)
@pytest.mark.parametrize("write", [write_tar, write_zip])
def test_a_path_that_leads_out_condemns_the_archive(name, write, faces, tmp_path):
    archive = write(tmp_path / f"lfw.{'zip' if write is write_zip else 'tgz'}", [*faces, (name, picture(99))])
    with pytest.raises(CorruptFileError, match="leads out of the folder"):
        LFW.prepare(archive, tmp_path / "sub" / "out")
    assert [path.name for path in tmp_path.rglob("*")] == [archive.name]


def test_links_and_devices_in_a_tar_are_passed_over_and_listed(faces, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture(99))
    members = [
        special("lfw/Ann/link.png", tarfile.SYMTYPE, str(secret)),
        special("lfw/Ann/hard.png", tarfile.LNKTYPE, "lfw/Ann/1.png"),
        special("lfw/Ann/pipe.png", tarfile.FIFOTYPE),
        special("lfw/Ann/disk.png", tarfile.BLKTYPE),
        special("lfw/Eve", tarfile.SYMTYPE, str(tmp_path)),
        ("lfw/Eve/secret.png", picture(98)),  # through the link, if anything were unpacked
    ]
    prepared = LFW.prepare(write_tar(tmp_path / "lfw.tgz", [*faces, *members]), tmp_path / "out")
    assert {image.path.split("/")[-1] for image in prepared.skipped} == {"link.png", "hard.png", "pipe.png", "disk.png"}
    assert "links in archives are not followed" in prepared.skipped[0].reason
    assert secret.read_bytes() == picture(99)
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))
    assert prepared.num_images == 25


def test_links_in_a_zip_are_passed_over(faces, tmp_path):
    archive = write_zip(tmp_path / "lfw.zip", faces)
    with zipfile.ZipFile(archive, "a") as file:
        info = zipfile.ZipInfo("lfw/Ann/link.png")
        info.external_attr = 0o120777 << 16
        file.writestr(info, "/etc/passwd")
    prepared = LFW.prepare(archive, tmp_path / "out")
    assert [image.path for image in prepared.skipped] == ["lfw/Ann/link.png"]


def test_an_image_of_enormous_size_is_not_read(faces, tmp_path, monkeypatch):
    monkeypatch.setattr(_source, "MAX_FILE_BYTES", 10_000)
    big = ("lfw/Ann/big.png", os.urandom(10_001))
    for archive in (
        write_tar(tmp_path / "a.tar", [*faces, big], "w"),
        write_zip(tmp_path / "a.zip", [*faces, big]),
        write_files(tmp_path / "folder", dict([*faces, big])),
    ):
        prepared = LFW.prepare(archive, tmp_path / f"out{archive.suffix}")
        assert prepared.skipped[0].reason == "it has 10,001 bytes; at most 10,000 are read"
        assert prepared.num_images == 24


@pytest.mark.parametrize("write", [write_tar, write_zip])
@pytest.mark.parametrize("name", ["lfw/Ann/0.png", "lfw/notes.txt"])
def test_a_bomb_is_refused(name, write, faces, tmp_path, monkeypatch):
    monkeypatch.setattr(_source, "_SLACK", 100_000)
    archive = write(tmp_path / f"lfw.{'zip' if write is write_zip else 'tgz'}", [*faces, (name, bytes(20_000_000))])
    assert archive.stat().st_size < 100_000
    with pytest.raises(CorruptFileError, match="unpacks to more than 100 times its size"):
        LFW.prepare(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_header_that_is_to_be_read_at_once_is_refused(tmp_path):
    """An extended header of a gigabyte, which tarfile would take into memory."""
    header = tarfile.TarInfo("lfw/Ann/1.png")
    header.type, header.size = tarfile.XHDTYPE, 1 << 30
    archive = tmp_path / "lfw.tar.gz"
    with gzip.open(archive, "wb") as file:
        file.write(header.tobuf(tarfile.USTAR_FORMAT))
        file.write(bytes(1 << 16))
    with pytest.raises(CorruptFileError, match="to be read at once"):
        open_source([archive])


def test_a_size_below_zero_is_no_endless_loop(tmp_path):
    header = bytearray(tarfile.TarInfo("lfw/Ann/1.png").tobuf(tarfile.USTAR_FORMAT))
    header[124:136] = b"\xff" * 10 + b"\xfc\x00"  # -1024 in the binary form
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    archive = tmp_path / "lfw.tar"
    archive.write_bytes(bytes(header) + bytes(4096))
    with pytest.raises(CorruptFileError, match="negative size"):
        open_source([archive])


def test_damaged_archives_are_refused(faces, tmp_path):
    whole = write_tar(tmp_path / "whole.tgz", faces).read_bytes()
    zipped = write_zip(tmp_path / "whole.zip", faces).read_bytes()
    for name, data in (
        ("cut.tgz", whole[: len(whole) // 2]),
        ("cut.tar", gzip.decompress(whole)[:2000]),
        ("noise.tar", os.urandom(5000)),
        ("empty.tar", b""),
        ("cut.zip", zipped[: len(zipped) // 2]),
        ("noise.tar.xz", b"\xfd7zXZ\0" + os.urandom(100)),
        ("noise.tar.bz2", b"BZh9" + os.urandom(100)),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CorruptFileError, match=r"cannot be read as an archive: .*; download it again"):
            LFW.prepare(tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("write", [partial(write_tar, mode="w"), write_tar, write_zip])
def test_any_damage_is_an_error_of_ours_or_harmless(write, faces, tmp_path):
    archive = write(tmp_path / ("a.zip" if write is write_zip else "a.tar"), faces)
    whole = archive.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(150):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), rng.integers(1, 20)):
            data[place] = rng.integers(256)
        archive.write_bytes(bytes(data))
        with contextlib.suppress(CorruptFileError, DataError):
            source = open_source([archive])
            for path, content_ in source.read([entry.path for entry in source.entries]):
                assert not path.startswith(("/", ".."))
                assert len(content_) < 10_000


def test_damage_inside_a_zip_is_seen(faces, tmp_path):
    archive = write_zip(tmp_path / "lfw.zip", faces)
    data = bytearray(archive.read_bytes())
    data[80:90] = bytes(10)
    archive.write_bytes(bytes(data))
    with pytest.raises(CorruptFileError, match="download it again"):
        LFW.prepare(archive, tmp_path / "out")


def test_an_encrypted_zip_is_explained(faces, tmp_path):
    archive = write_zip(tmp_path / "lfw.zip", faces)
    data = archive.read_bytes()
    directory = data.index(b"PK\x01\x02")
    for place in (6, directory + 8):
        data = data[:place] + b"\x01" + data[place + 1 :]
    archive.write_bytes(data)
    assert "it is encrypted" in open_source([archive]).skipped[0].reason


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_every_compression_is_read(mode, faces, tmp_path):
    archive = write_tar(tmp_path / "lfw.tar", faces, mode)
    source = open_source([archive])
    assert dict(source.read(entry.path for entry in source.entries)) == dict(faces)


def test_a_tar_that_ends_with_a_zip_is_a_tar(faces, tmp_path):
    inner = write_zip(tmp_path / "inner.zip", [("x/1.png", picture(1))]).read_bytes()
    source = open_source([write_tar(tmp_path / "lfw.tar", [*faces, ("lfw/inner.zip", inner)], "w")])
    assert len(source.entries) == 24


def test_only_what_is_asked_for_is_read(faces, tmp_path):
    folder = write_files(tmp_path / "folder", dict(faces))
    for paths in ([write_tar(tmp_path / "a.tgz", faces)], [write_zip(tmp_path / "a.zip", faces)], [folder]):
        source = open_source(paths)
        assert dict(source.read(["lfw/Bob/2.png"])) == {"lfw/Bob/2.png": dict(faces)["lfw/Bob/2.png"]}
        assert {entry.path: entry.size for entry in source.entries} == {name: len(data) for name, data in faces}


def test_hidden_files_and_other_files_do_not_count(faces, tmp_path):
    others = [("__MACOSX/lfw/Ann/._1.png", b"x"), ("lfw/.trash/1.png", b"x"), ("lfw/readme.txt", b"x")]
    for archive in (write_zip(tmp_path / "a.zip", [*faces, *others]), write_tar(tmp_path / "a.tar", [*faces, *others])):
        source = open_source([archive])
        assert len(source.entries) == 24
        assert source.skipped == []


def test_names_that_cannot_stand_in_a_split_are_listed(faces, tmp_path):
    members = [
        ("lfw/Ann/a\nb.png", picture(90)),
        ("lfw/Ann/" + "x" * 210 + ".png", picture(91)),
        ("no.png", picture(92)),
    ]
    prepared = LFW.prepare(write_tar(tmp_path / "lfw.tgz", [*faces, *members]), tmp_path / "out")
    assert {image.path for image in prepared.skipped} == {name for name, _ in members}
    assert "'lfw/Ann/a\\nb.png'" in (tmp_path / "out" / "SOURCE.md").read_text()


def test_a_member_that_is_there_twice_counts_once(faces, tmp_path):
    again = (faces[0][0], picture(77))
    prepared = LFW.prepare(write_tar(tmp_path / "lfw.tgz", [*faces, again]), tmp_path / "out")
    assert prepared.num_images == 24
    assert (prepared.root / "Ann" / "1.png").read_bytes() == faces[0][1]
    assert "another file of this name" in prepared.skipped[0].reason


def test_a_folder_of_archives_is_read_as_one(tmp_path):
    (tmp_path / "in").mkdir()
    write_tar(tmp_path / "in" / "set_train.tar.gz", list(people(["Ann", "Bob"], 5, "{person}/{i}.png").items()))
    write_zip(tmp_path / "in" / "set-test.zip", list(people(["Ann", "Bob"], 2, "{person}/{i}.png", 50).items()))
    entries = open_source([tmp_path / "in"]).entries
    assert {entry.path.split("/")[0] for entry in entries} == {"train", "test"}
    assert len(entries) == 14
    prepared = small("facescrub").prepare(tmp_path / "in", tmp_path / "out")
    parts = [f"train/{i}.png" for i in range(1, 6)] + [f"test/{i}.png" for i in (1, 2)]
    assert set(content(prepared.root)) == {f"{person}/{part}" for person in ("Ann", "Bob") for part in parts}


def test_images_of_a_folder_go_before_its_archives(faces, tmp_path):
    folder = write_files(tmp_path / "lfw", dict(faces))
    write_tar(folder / "old.tar", [("lfw/Old/1.png", picture(1))])
    assert len(open_source([folder]).entries) == 24


def test_a_source_that_goes_away_is_explained(faces, tmp_path):
    folder = write_files(tmp_path / "lfw", dict(faces))
    source = open_source([folder])
    (folder / "lfw" / "Bob" / "1.png").unlink()
    with pytest.raises(DataError, match="is the disk with the source still there"):
        dict(source.read(entry.path for entry in source.entries))


def test_a_link_out_of_a_folder_is_not_followed(faces, tmp_path):
    folder = write_files(tmp_path / "lfw", dict(faces))
    outside = tmp_path / "outside.png"
    outside.write_bytes(picture(99))
    (folder / "lfw" / "Ann" / "link.png").symlink_to(outside)
    source = open_source([folder])
    assert len(source.entries) == 24
    assert "leaves" in source.skipped[0].reason


def test_a_tar_in_memory_stays_small(tmp_path):
    """Headers are forgotten once seen: a set of millions of images would fill the memory."""
    archive = write_tar(tmp_path / "a.tar", [(f"p/{i}.png", b"x") for i in range(50)], "w")
    kept = [len(file.members) for _, file in _source._walk_tar(archive)]
    assert max(kept) == 0
