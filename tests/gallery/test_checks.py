import shutil

import numpy as np
import pytest
from stand_ins import Averages, picture

from opqn.gallery import Gallery
from opqn.gallery.live_index import LiveIndex
from opqn.index import CodeIndex


def reopened(gallery):
    return Gallery.open(gallery.folder, Averages())


@pytest.fixture
def saved(filled):
    filled._live.save()
    return filled


def test_a_sound_gallery_has_no_problems(saved):
    told = []
    report = saved.verify(on_progress=lambda *counts: told.append(counts))
    assert (report.num_faces, report.problems, report.repaired) == (18, (), ())
    assert told == [(18, 18)]


@pytest.mark.parametrize("column", ["code", "crop", "vector"])
def test_a_changed_row_is_found_and_named(saved, column):
    saved.close()
    with Gallery.open(saved.folder, Averages()) as other:
        with other._catalog.transaction():
            other._catalog.run(f"UPDATE faces SET {column} = ? WHERE id = 7", (bytes(8),))
        problems = other.verify().problems
    assert any("face 7 is damaged" in problem for problem in problems)


def test_a_code_that_no_code_can_be_is_found(saved):
    for code in (b"", bytes(7), bytes([64] * 8), None, "text"):
        if code is None:
            continue
        with saved._catalog.transaction():
            saved._catalog.run("UPDATE faces SET code = ? WHERE id = 7", (code,))
        with reopened(saved) as other:
            assert any("face 7 is damaged" in problem for problem in other.verify().problems)


def test_an_index_may_be_deleted(saved):
    shutil.rmtree(saved.folder / "index")
    with reopened(saved) as other:
        assert other.search(picture(2), k=1)[0].hits[0].face.person.name == "Person 2"
        assert other.verify().problems == ()


@pytest.mark.parametrize("damage", ["cut", "flip", "manifest", "file"])
def test_a_damaged_index_is_found_repaired_and_hinders_nobody(saved, damage):
    (segment,) = (saved.folder / "index").glob("*.segment")
    manifest = saved.folder / "index/index.json"
    if damage == "cut":
        segment.write_bytes(segment.read_bytes()[:-8])
    elif damage == "flip":
        data = bytearray(segment.read_bytes())
        data[len(data) // 2] ^= 1
        data[5] ^= 1
        segment.write_bytes(data)
    elif damage == "manifest":
        manifest.write_text("{}")
    else:
        shutil.rmtree(saved.folder / "index")
        (saved.folder / "index").write_text("no folder")
    with reopened(saved) as other:
        if damage != "flip":
            assert other.search(picture(2), k=1)[0].hits[0].face.person.name == "Person 2"
        assert other.verify().problems
        report = other.verify(repair=True)
        assert report.repaired
        assert report.problems == ()
        assert other.search(picture(2), k=1)[0].hits[0].face.person.name == "Person 2"
    with reopened(saved) as other:
        assert other.verify().problems == ()


def test_an_index_older_or_newer_than_the_catalog_is_brought_in_step(saved, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(saved.folder, old)
    saved.add([picture(number) for number in range(20, 30)])
    saved.remove([1, 5])
    saved._live.save()
    for catalog, index in ((saved.folder, old), (old, saved.folder)):
        mixed = tmp_path / f"mixed {catalog.name}"
        shutil.copytree(catalog, mixed)
        shutil.rmtree(mixed / "index")
        shutil.copytree(index / "index", mixed / "index")
        with Gallery.open(mixed, Averages()) as other:
            codes, ids = other._live.current().items()
            rows = other._catalog.rows("SELECT id, code FROM faces ORDER BY id")
            np.testing.assert_array_equal(ids, [face for face, _ in rows])
            assert codes.tobytes() == b"".join(code for _, code in rows)


def test_an_index_of_another_gallery_is_found(saved, tmp_path):
    with Gallery.create(tmp_path / "b", Averages()) as other:
        other.add([picture(number) for number in range(100, 118)])
        other._live.save()
    shutil.rmtree(saved.folder / "index")
    shutil.copytree(tmp_path / "b/index", saved.folder / "index")
    with reopened(saved) as gallery:
        assert gallery.verify().problems
        assert gallery.verify(repair=True).problems == ()
        assert gallery.search(picture(2), k=1)[0].hits[0].face.person.name == "Person 2"


def test_an_encoder_that_was_changed_is_found(saved):
    with Gallery.open(saved.folder) as other:
        (problem,) = other.verify().problems
    assert "pass it when opening" in problem


def test_readers_catch_up_in_pieces(gallery, monkeypatch):
    monkeypatch.setattr("opqn.gallery.catalog._FACES_AT_ONCE", 100)
    codes = np.random.default_rng(0).integers(0, 64, (950, 8), dtype=np.uint8)
    gallery.add_codes(codes)
    live = LiveIndex(gallery._catalog, gallery.folder / "none", 8, 64, "compact")
    np.testing.assert_array_equal(live.current().items()[0], codes)
    assert gallery.verify().problems == ()


def test_saved_files_hold_what_the_catalog_holds(saved):
    saved.add(picture(99))
    saved.remove([3])
    index = CodeIndex.load(saved.folder / "index", mmap=False)
    np.testing.assert_array_equal(index.items()[1], [number for number in range(1, 20) if number != 3])
