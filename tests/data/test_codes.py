"""The file of codes: what was written comes back, and nothing else is accepted."""

import errno
import json
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import save

from opqn import _files
from opqn.data.codes import CodeSet
from opqn.errors import ConfigError, CorruptFileError, DataError, OpqnError

GOOD = CodeSet(
    np.array([[0, 3, 1], [2, 2, 0]], np.uint8), 4, ("ann/1.jpg", "山田/写真.jpg"), ("ann", None), "f00d", "/faces"
)


def same(a, b):
    return np.array_equal(a.codes, b.codes) and {**vars(a), "codes": 0} == {**vars(b), "codes": 0}


@settings(deadline=None)
@given(
    arrays.arrays(np.uint8, st.tuples(st.integers(0, 20), st.integers(1, 8)), elements=st.integers(0, 63)), st.data()
)
def test_what_was_saved_comes_back(tmp_path_factory, codes, data):
    path = tmp_path_factory.mktemp("codes") / "out" / "codes.safetensors"
    texts = st.lists(st.text(max_size=5), min_size=len(codes), max_size=len(codes))
    people = data.draw(st.lists(st.none() | st.text(max_size=3), min_size=len(codes), max_size=len(codes)))
    written = CodeSet(
        codes, 64, tuple(data.draw(texts)), tuple(people), "abc", data.draw(st.none() | st.text(max_size=3))
    )
    written.save(path)
    read = CodeSet.load(path)
    assert same(read, written)
    assert read.codes.dtype == np.uint8
    assert (len(read), read.num_books) == codes.shape
    assert [entry.name for entry in path.parent.iterdir()] == ["codes.safetensors"]


def test_codes_in_another_memory_order_are_kept(tmp_path):
    codes = np.asfortranarray(np.arange(12, dtype=np.uint8).reshape(4, 3))
    CodeSet(codes, 16, ("a",) * 4, (None,) * 4, "f").save(tmp_path / "codes")
    assert np.array_equal(CodeSet.load(tmp_path / "codes").codes, codes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": np.zeros((2, 3), np.int64)}, "uint8"),
        ({"codes": np.zeros(2, np.uint8)}, "uint8"),
        ({"codes": np.zeros((2, 0), np.uint8)}, "uint8"),
        ({"codes": np.full((2, 3), 4, np.uint8)}, "a code is 4, and there are only 4 codewords"),
        ({"num_words": 6}, "power of two"),
        ({"num_words": 512}, "power of two"),
        ({"paths": ("a",)}, "2 codes, 1 paths and 2 people"),
        ({"people": ("a",)}, "2 codes, 2 paths and 1 people"),
        ({"paths": ("a", None)}, "paths must be strings"),
        ({"people": ("a", 3)}, "people must be strings"),
        ({"fingerprint": ""}, "fingerprint is empty"),
        ({"root": 3}, "root must be a string"),
    ],
)
def test_what_does_not_go_together_cannot_be_made(change, message):
    with pytest.raises(ConfigError, match=message):
        CodeSet(**{**vars(GOOD), **change})


def write(path, tensors=None, metadata=None, names=None):
    """A file like GOOD's with parts replaced; None in ``metadata`` takes a key out."""
    document = {"root": None, "paths": ["a", "b"], "people": ["a", None], **(names or {})}
    text = json.dumps(document).encode()
    all_tensors = {"codes": GOOD.codes, "names": np.frombuffer(text, np.uint8), **(tensors or {})}
    facts = {"format": "opqn-codes", "version": "1", "num_words": "4", "fingerprint": "f", **(metadata or {})}
    path.write_bytes(save(all_tensors, {key: value for key, value in facts.items() if value is not None}))


def test_the_file_written_by_hand_is_accepted(tmp_path):
    write(tmp_path / "codes")
    assert CodeSet.load(tmp_path / "codes").people == ("a", None)


@pytest.mark.parametrize(
    "parts",
    [
        {"metadata": {"format": "other"}},
        {"metadata": {"format": None}},
        {"metadata": {"num_words": "many"}},
        {"metadata": {"num_words": "2"}},
        {"metadata": {"num_words": None}},
        {"metadata": {"fingerprint": None}},
        {"metadata": {"fingerprint": ""}},
        {"tensors": {"codes": np.zeros((2, 3), np.float32)}},
        {"tensors": {"codes": np.zeros((3, 3), np.uint8)}},
        {"tensors": {"codes": np.zeros(6, np.uint8)}},
        {"tensors": {"names": np.frombuffer(b"{", np.uint8)}},
        {"tensors": {"names": np.frombuffer(b"[1]", np.uint8)}},
        {"tensors": {"names": np.frombuffer(b"\xff\xfe\xfd", np.uint8)}},
        {"tensors": {"names": np.frombuffer(b"[" * 100_000, np.uint8)}},
        {"tensors": {"names": np.zeros(3, np.float32)}},
        {"tensors": {"more": np.zeros(3, np.uint8)}},
        {"names": {"paths": "ab"}},
        {"names": {"paths": ["a", 1]}},
        {"names": {"people": None}},
        {"names": {"people": [["a"], None]}},
        {"names": {"root": 1}},
    ],
)
def test_anything_else_in_the_file_is_refused(tmp_path, parts):
    write(tmp_path / "codes", **parts)
    with pytest.raises(CorruptFileError, match=r"codes is not a whole file of codes: .*; encode the images again"):
        CodeSet.load(tmp_path / "codes")


def test_another_version_is_refused_with_what_to_do(tmp_path):
    write(tmp_path / "codes", metadata={"version": "2"})
    with pytest.raises(CorruptFileError, match="format version 2 and this opqn reads 1; upgrade opqn"):
        CodeSet.load(tmp_path / "codes")


def test_a_missing_file_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(DataError, match="`opqn encode` makes one"):
        CodeSet.load(tmp_path / "gone")


@pytest.mark.parametrize("length", [0, 1, 8, 50, 200, -1])
def test_a_truncated_file_is_refused(tmp_path, length):
    GOOD.save(tmp_path / "codes")
    (tmp_path / "codes").write_bytes((tmp_path / "codes").read_bytes()[:length])
    with pytest.raises(CorruptFileError, match="encode the images again"):
        CodeSet.load(tmp_path / "codes")


@settings(deadline=None)
@given(st.data())
def test_a_damaged_file_is_refused_or_still_valid(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("codes") / "codes"
    GOOD.save(path)
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with suppress(CorruptFileError):
        read = CodeSet.load(path)
        assert read.codes.max() < read.num_words
        assert len(read.codes) == len(read.paths) == len(read.people)


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    GOOD.save(tmp_path / "codes")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_files, "write_synced", full)
    other = CodeSet(GOOD.codes, 256, GOOD.paths, GOOD.people, "other")
    with pytest.raises(OpqnError, match=r"the disk is full.*make room"):
        other.save(tmp_path / "codes")
    assert same(CodeSet.load(tmp_path / "codes"), GOOD)
