import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from opqn.errors import ConfigError, CorruptFileError, OpqnError
from opqn.index import CodeIndex, files

FORMATS = Path(__file__).parents[1] / "formats"


def fill(profile="balanced"):
    """An index with several parts, one of which shares codes, removed items and ids far apart."""
    rng = np.random.default_rng(0)
    index = CodeIndex(4, 32, profile)
    people = rng.integers(0, 32, (300, 4), dtype=np.uint8)
    index.add(people[rng.integers(0, len(people), 5000)])
    index.add(rng.integers(0, 32, (5000, 4), dtype=np.uint8), 2**40 * np.arange(1, 5001))
    index.add(rng.integers(0, 32, (100, 4), dtype=np.uint8))
    index.remove(np.arange(0, 5000, 3))
    return index


def tables():
    return (np.random.default_rng(1).random((3, 4, 32)) ** 8).astype(np.float32)


def assert_same_hits(one, other, k=40):
    for found, wanted in zip(one.search(tables(), k), other.search(tables(), k), strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.fixture
def saved(tmp_path):
    index = fill()
    index.save(tmp_path / "index")
    return index, tmp_path / "index"


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("profile", ["compact", "balanced", "fast"])
def test_what_is_saved_is_loaded(tmp_path, profile, mmap):
    index = fill(profile)
    index.save(tmp_path / "index")
    loaded = CodeIndex.load(tmp_path / "index", mmap=mmap)
    assert (len(loaded), loaded.profile, loaded.num_books, loaded.num_words) == (len(index), profile, 4, 32)
    assert_same_hits(loaded, index)
    assert loaded.add(np.zeros((1, 4), dtype=np.uint8)) == index.add(np.zeros((1, 4), dtype=np.uint8)), "ids go on"


def test_an_empty_index_is_saved_and_loaded(tmp_path):
    CodeIndex(3, 16).save(tmp_path)
    loaded = CodeIndex.load(tmp_path)
    assert len(loaded) == 0
    assert loaded.add(np.zeros((1, 3), dtype=np.uint8)) == 0


def test_saving_again_writes_only_what_is_new_and_leaves_nothing_behind(saved):
    index, folder = saved
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.segment")}
    index.remove([1])
    index.add(np.zeros((5000, 4), dtype=np.uint8))
    index.save(folder)
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.segment")}
    kept = before.keys() & after.keys()
    assert len(kept) == 2
    assert all(before[name] == after[name] for name in kept)
    manifest = json.loads((folder / "index.json").read_text())
    named = {segment[key] for segment in manifest["segments"] for key in ("file", "alive")} - {None}
    assert {path.name for path in folder.iterdir()} == named | {"index.json"}
    assert_same_hits(CodeIndex.load(folder), index)


def test_a_loaded_index_is_changed_and_saved_to_another_folder(saved, tmp_path):
    index, folder = saved
    loaded = CodeIndex.load(folder)
    loaded.save(tmp_path / "copy")
    shutil.rmtree(folder)
    assert_same_hits(CodeIndex.load(tmp_path / "copy"), index)
    loaded.merge()
    loaded.save(tmp_path / "copy")
    assert_same_hits(CodeIndex.load(tmp_path / "copy"), index)


def test_an_index_is_changed_and_searched_while_it_is_saved(tmp_path, monkeypatch):
    index = CodeIndex(4, 32)
    index.add(np.zeros((40, 4), dtype=np.uint8))
    write = files.save

    def save_and_change(*arguments):
        other = threading.Thread(target=lambda: (index.add(np.ones((5, 4), dtype=np.uint8)), index.remove([0])))
        other.start()
        other.join(timeout=60)
        assert not other.is_alive(), "save held up a change"
        return write(*arguments)

    monkeypatch.setattr(files, "save", save_and_change)
    index.save(tmp_path)
    assert len(index) == 44
    assert len(CodeIndex.load(tmp_path)) == 40, "what was there when save was called"
    monkeypatch.undo()
    index.save(tmp_path)
    assert len(CodeIndex.load(tmp_path)) == 44


def test_an_index_of_every_format_version_is_loaded():
    folders = sorted(FORMATS.glob("v*/index"))
    assert folders
    for folder in folders:
        index = CodeIndex.load(folder)
        expected = json.loads((folder.parent / "index-expected.json").read_text())
        scores, ids = index.search(np.array(expected["tables"], dtype=np.float32), expected["k"])
        assert len(index) == expected["size"]
        assert ids.tolist() == expected["ids"]
        np.testing.assert_array_equal(scores, np.array(expected["scores"], dtype=np.float32))


# Damage


def test_a_folder_of_something_else_is_neither_loaded_nor_overwritten(tmp_path):
    with pytest.raises(ConfigError, match="no index in"):
        CodeIndex.load(tmp_path)
    (tmp_path / "holiday.jpg").write_bytes(b"a picture")
    with pytest.raises(ConfigError, match="other files"):
        fill().save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


@pytest.mark.parametrize("mmap", [True, False])
def test_a_file_that_was_cut_or_taken_away_is_named(saved, mmap):
    _, folder = saved
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        for wrong in (data[: len(data) // 2], data[:-1], data + b"x", b""):
            path.write_bytes(wrong)
            with pytest.raises(CorruptFileError, match=path.name):
                CodeIndex.load(folder, mmap=mmap)
        path.unlink()
        with pytest.raises((CorruptFileError, ConfigError), match=path.name):
            CodeIndex.load(folder, mmap=mmap)
        path.write_bytes(data)


def test_every_changed_byte_is_noticed_when_all_is_read(saved):
    _, folder = saved
    rng = np.random.default_rng(0)
    manifest = json.loads((folder / "index.json").read_text())
    for segment in manifest["segments"]:
        path = folder / segment["file"]
        data = bytearray(path.read_bytes())
        for array in segment["arrays"].values():
            place = array["start"] + int(rng.integers(array["size"]))
            data[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(data)
            with pytest.raises(CorruptFileError, match="was changed"):
                CodeIndex.load(folder, mmap=False)
            data[place] = path.read_bytes()[place]
            path.write_bytes(bytes(data))
            data = bytearray(data)
            break
    for path in [*folder.glob("*.alive"), folder / "index.json"]:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes(data)
        with pytest.raises(CorruptFileError, match=path.name):
            CodeIndex.load(folder)


@pytest.mark.parametrize("profile", ["compact", "fast"])
def test_a_mapped_file_full_of_noise_gives_an_error_or_wrong_hits_and_never_a_crash(tmp_path, profile):
    index = fill(profile)
    index.save(tmp_path)
    manifest = json.loads((tmp_path / "index.json").read_text())
    rng = np.random.default_rng(0)
    outcomes = set()
    for round_number in range(150):
        segment = manifest["segments"][round_number % len(manifest["segments"])]
        path = tmp_path / segment["file"]
        good = path.read_bytes()
        data = np.frombuffer(good, dtype=np.uint8).copy()
        arrays = list(segment["arrays"].values())
        array = arrays[int(rng.integers(len(arrays)))]
        places = array["start"] + rng.integers(0, array["size"], int(rng.integers(1, array["size"] + 1)))
        data[places] = rng.integers(0, 256, len(places), dtype=np.uint8) if round_number % 2 else 255
        path.write_bytes(data.tobytes())
        try:
            loaded = CodeIndex.load(tmp_path)
            loaded.search(tables(), 100)
            loaded.search_within(tables(), 0.5)
            loaded.search(tables(), 5, allowed=np.arange(100))
            outcomes.add("hits")
        except CorruptFileError:
            outcomes.add("error")
        path.unlink()  # a mapped file is not written over
        path.write_bytes(good)
    assert "hits" in outcomes
    if profile == "fast":
        assert "error" in outcomes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 3}, "newer opqn"),
        ({"format": "something"}, "damaged or no index"),
        ({"num_books": 0}, "damaged"),
        ({"next_id": -1}, "damaged"),
        ({"more": 1}, "damaged"),
    ],
)
def test_a_manifest_that_is_none_is_refused_even_with_the_right_digest(saved, change, message):
    _, folder = saved
    body = json.loads((folder / "index.json").read_text())
    del body["sha256"]
    body |= change
    (folder / "index.json").write_text(json.dumps({"sha256": files._digest(body), **body}))
    with pytest.raises(CorruptFileError, match=message):
        CodeIndex.load(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"file": "../secret"},
        {"size": 2**24 + 1},
        {"size": 4999},
        {"clique": 3},
        {"clique": 2},
        {"has_planes": False},
        {"num_bytes": 1},
        {"arrays": {}},
        {"arrays": {"codes": {"start": 2**62, "size": 8, "crc32": 0}}},
        {"arrays": {"codes": {"start": 1, "size": 8, "crc32": 0}}},
    ],
)
def test_a_segment_that_cannot_be_is_refused_even_with_the_right_digest(saved, change):
    _, folder = saved
    body = json.loads((folder / "index.json").read_text())
    del body["sha256"]
    body["segments"][0] |= change
    (folder / "index.json").write_text(json.dumps({"sha256": files._digest(body), **body}))
    with pytest.raises(CorruptFileError):
        CodeIndex.load(folder)


# Failures while saving


def test_a_full_disk_leaves_the_old_index(saved):
    index, folder = saved
    old = fill()
    index.add(np.zeros((5000, 4), dtype=np.uint8))
    for function in ("fsync", "replace"):
        full = patch.object(os if function == "fsync" else Path, function, side_effect=OSError(28, "No space left"))
        with full, pytest.raises(OpqnError, match="the disk is full"):
            index.save(folder)
        assert_same_hits(CodeIndex.load(folder, mmap=False), old)
    index.save(folder)
    assert_same_hits(CodeIndex.load(folder), index)


PROGRAM = """
import sys
import numpy as np
from opqn.index import CodeIndex
index = CodeIndex.load(sys.argv[1])
rng = np.random.default_rng(len(index))
for turn in range(1, 1000):
    index.add(rng.integers(0, 32, (300, 4), dtype=np.uint8))
    if turn % 3 == 0:
        index.merge()
    index.save(sys.argv[1])
    print(len(index), flush=True)
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_all_that_was_acknowledged(tmp_path):
    rng = np.random.default_rng(0)
    CodeIndex(4, 32).save(tmp_path)
    acknowledged = 0
    for _ in range(100):
        with subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as process:
            sizes = [int(process.stdout.readline())]
            time.sleep(rng.uniform(0, 0.15))
            process.send_signal(signal.SIGKILL)
            sizes += [int(line) for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
        acknowledged = max(acknowledged, sizes[-1])
        loaded = CodeIndex.load(tmp_path, mmap=False)
        assert len(loaded) in (acknowledged, acknowledged + 300), "at most the last save was not told"
        acknowledged = len(loaded)
