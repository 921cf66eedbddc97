import numpy as np
import pytest

from opqn.data.vectors import VectorSet, load_vectors
from opqn.errors import DataError, OpqnError


def test_what_is_written_is_read(tmp_path):
    made = VectorSet(np.eye(3, 4, dtype=np.float32), np.array(["a", "b", "王芳"]), np.array(["a/1", "b/1", "c/1"]))
    made.save(tmp_path / "new/faces.npz")
    read = load_vectors(tmp_path / "new/faces.npz")
    for one, other in zip(made, read, strict=True):
        np.testing.assert_array_equal(one, other)
    VectorSet(np.ones((1, 2), dtype=np.float32)).save(tmp_path / "bare.npz")
    assert load_vectors(tmp_path / "bare.npz").people is None


def test_other_number_types_are_converted(tmp_path):
    np.savez(tmp_path / "a.npz", vectors=np.ones((2, 3)), people=np.array([7, 8]))
    read = load_vectors(tmp_path / "a.npz")
    assert read.vectors.dtype == np.float32
    assert read.people.tolist() == ["7", "8"]


@pytest.mark.parametrize(
    ("arrays", "what"),
    [
        ({"other": np.ones(3)}, "no array `vectors`"),
        ({"vectors": np.ones(3)}, "must be an"),
        ({"vectors": np.ones((0, 3))}, "must be an"),
        ({"vectors": np.ones((2, 3), dtype=np.int64)}, "must be an"),
        ({"vectors": np.ones((2, 3)), "people": np.array(["a"])}, "one for each vector"),
        ({"vectors": np.ones((2, 3)), "people": np.ones(2)}, "one for each vector"),
    ],
)
def test_other_arrays_are_refused(tmp_path, arrays, what):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=what):
        load_vectors(tmp_path / "a.npz")


def test_hostile_files_are_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was executed",))

    np.savez(tmp_path / "pickle.npz", vectors=np.array([Evil()], dtype=object))
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "cut.npz", vectors=np.ones((50, 30)))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:500])
    for name in ("pickle.npz", "text.npz", "cut.npz", "none.npz"):
        with pytest.raises(DataError, match=name):
            load_vectors(tmp_path / name)


def test_a_full_disk_leaves_the_old_file(tmp_path, full_disk_after):
    VectorSet(np.ones((1, 2), dtype=np.float32)).save(tmp_path / "a.npz")
    full_disk_after(0)
    with pytest.raises(OpqnError, match="disk is full"):
        VectorSet(np.zeros((1, 2), dtype=np.float32)).save(tmp_path / "a.npz")
    assert load_vectors(tmp_path / "a.npz").vectors.sum() == 2
