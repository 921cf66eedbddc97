import json
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from stand_ins import Averages, picture, write_pictures

import opqn
from opqn.baselines.methods import make_method
from opqn.baselines.model import BaselineModel
from opqn.errors import ConfigError, CorruptFileError, DataError, ModelMismatchError, OpqnError
from opqn.faces import QualityFilter
from opqn.gallery import Gallery, GalleryBusyError
from opqn.gallery import gallery as gallery_module
from opqn.gallery.live_index import UNSAVED_FACES
from opqn.index import score
from opqn.model import ModelConfig


def reopened(gallery, **settings):
    return Gallery.open(gallery.folder, Averages(), **settings)


def test_pictures_are_found_again_by_another_process(filled):
    with reopened(filled) as other:
        assert len(other) == 18
        (result,) = other.search(picture(4, 1), k=3)
    assert [hit.face.person.name for hit in result.hits] == ["Person 4"] * 3
    assert all("Person 4/" in hit.face.paths[0] for hit in result.hits)
    assert result.hits[0].score == 0
    assert result.box is None


def test_a_picture_may_come_as_a_path_bytes_an_array_or_an_image(gallery, tmp_path):
    picture(0, 0).save(path := tmp_path / "a.png")
    picture(1).save(other := tmp_path / "b.png")
    added = gallery.add([path, other.read_bytes(), np.asarray(picture(2)), picture(3)], ["A", "B", None, "D"])
    assert added.ids == (1, 2, 3, 4)
    assert added.num_photos == 4
    faces = gallery.faces(added.ids)
    assert [face.person and face.person.name for face in faces] == ["A", "B", None, "D"]
    assert faces[0].paths == (str(path),)
    assert faces[1].paths == ()
    for query in (other, other.read_bytes(), np.asarray(picture(1)), picture(1)):
        assert gallery.search(query, k=1)[0].hits[0].face.id == 2


def test_the_same_content_is_kept_once(gallery, tmp_path):
    picture(0).save(tmp_path / "a.png")
    shutil.copy(tmp_path / "a.png", tmp_path / "b.png")
    first = gallery.add([tmp_path / "a.png", tmp_path / "b.png", picture(5), picture(5)])
    assert (len(first.ids), first.num_photos, first.num_duplicates) == (2, 2, 2)
    again = gallery.add(tmp_path / "a.png")
    assert (len(again.ids), again.num_duplicates) == (0, 1)
    assert gallery.faces([1])[0].paths == (str(tmp_path / "a.png"), str(tmp_path / "b.png"))


def test_what_cannot_be_read_is_skipped_and_listed(gallery, tmp_path):
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "video.png").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(100))
    picture(0).save(tmp_path / "good.png")
    broken = (tmp_path / "good.png").read_bytes()[:60]
    added = gallery.add([tmp_path / "text.jpg", tmp_path / "video.png", tmp_path / "none.png", broken, picture(1)])
    assert len(added.ids) == 1
    assert [image.path for image in added.skipped] == [
        str(tmp_path / "text.jpg"), str(tmp_path / "video.png"), str(tmp_path / "none.png"), "picture 3",
    ]  # fmt: skip
    assert "no such file" in added.skipped[2].reason
    assert all(image.reason for image in added.skipped)


def test_codes_are_added_in_bulk_and_found(gallery):
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 64, (UNSAVED_FACES + 10, 8), dtype=np.uint8)
    names = [f"person {number % 100}" for number in range(len(codes))]
    added = gallery.add_codes(codes, names)
    assert added.ids == tuple(range(1, len(codes) + 1))
    assert (gallery.folder / "index/index.json").exists()  # so that another process need not catch up with it all
    tables = -np.abs(np.arange(64, dtype=np.float32) - codes[:5, :, None])
    with reopened(gallery) as other:
        for row, result in enumerate(other.search_tables(tables, k=1)):
            assert result.hits[0].face.id == row + 1
            assert result.hits[0].face.person.name == names[row]
        assert other.info().num_people == 100


def test_a_refused_addition_changes_nothing(gallery):
    for call in (
        lambda: gallery.add_codes(np.full((2, 8), 64, dtype=np.uint8)),
        lambda: gallery.add_codes(np.zeros((2, 7), dtype=np.uint8)),
        lambda: gallery.add([picture(0), picture(1)], ["A"]),
        lambda: gallery.add(picture(0), "bad\nname"),
        lambda: gallery.add(picture(0), " "),
        lambda: gallery.add(picture(0), "x" * 201),
    ):
        with pytest.raises(ConfigError):
            call()
    with pytest.raises(ConfigError, match="takes pictures and no vectors"):
        gallery.add_vectors(np.zeros((1, 4), dtype=np.float32))
    with pytest.raises(DataError, match="missing"):
        gallery.add_folder(gallery.folder / "nothing")
    assert len(gallery) == 0
    assert gallery.people() == []


def test_people_are_named_renamed_merged_and_forgotten(filled):
    ids = [hit.face.id for hit in filled.search(picture(2), k=3)[0].hits]
    filled.assign(ids[:2], "Zoë")
    assert ("Zoë", 2) in [(person.name, count) for person, count in filled.people()]
    filled.assign(ids, "Zoe\u0308")  # the same name, written in another way
    names = [person.name for person, _ in filled.people()]
    assert "Person 2" not in names
    assert names.count("Zoë") == 1
    filled.rename("Zoë", "Person 3")
    assert {person.name: count for person, count in filled.people()}["Person 3"] == 6
    filled.rename("Person 3", "Three")
    filled.assign(ids, None)
    assert filled.info().num_unknown == 3
    with pytest.raises(ConfigError, match="did you mean 'Person 4'"):
        filled.rename("Persn 4", "x")
    with pytest.raises(ConfigError, match="no person 99"):
        filled.rename(99, "x")
    with pytest.raises(ConfigError, match="no face 99"):
        filled.assign([1, 99], "x")


def test_a_face_is_identified_or_nobody(filled):
    (found,) = filled.identify(picture(1, 9))
    assert found.person.name == "Person 1"
    assert found.threshold is None
    assert found.candidates[0].person.name == "Person 1"
    assert len(found.candidates) == 5
    assert found.candidates[0].best.face.person == found.person
    scores = [candidate.score for candidate in found.candidates]
    assert scores == sorted(scores, reverse=True)
    json.dumps(found.to_dict())
    with filled._catalog.transaction():
        filled._catalog.set_meta("calibration", {"threshold": found.score})
    assert filled.identify(picture(1, 9))[0].person.name == "Person 1"
    (stranger,) = filled.identify(picture(77))
    assert stranger.person is None
    assert stranger.score < stranger.threshold == found.score
    assert len(stranger.candidates) == 5


def test_in_an_empty_gallery_nobody_is_found(gallery):
    assert gallery.search(picture(0))[0].hits == ()
    (found,) = gallery.identify(picture(0))
    assert found.person is None
    assert found.score is None
    assert found.candidates == ()


def test_a_person_is_removed_with_their_name(filled):
    assert filled.remove(person="Person 2") == 3
    assert "Person 2" not in [person.name for person, _ in filled.people()]
    assert {hit.face.person.name for hit in filled.search(picture(2), k=15)[0].hits} == {
        f"Person {number}" for number in (0, 1, 3, 4, 5)
    }
    with reopened(filled) as other:
        assert len(other) == 15
        assert other.verify().problems == ()


def test_removing_takes_one_kind_of_argument_and_known_ones(filled):
    for arguments in ({}, {"ids": [1], "person": "Person 1"}):
        with pytest.raises(ConfigError, match="either ids of faces or a person"):
            filled.remove(**arguments)
    with pytest.raises(ConfigError, match="no face 1000"):
        filled.remove([1, 1000])
    with pytest.raises(ConfigError, match="did you mean"):
        filled.remove(person="Person1")
    assert len(filled) == 18
    assert filled.remove([1, 1, 2]) == 2


def test_ids_are_never_given_again(filled):
    filled.remove(range(10, 19))
    assert filled.add(picture(50)).ids == (19,)


def test_a_crop_is_kept_or_not(filled, tmp_path):
    crop = filled.crop(1)
    assert crop.size == (32, 16)
    with pytest.raises(ConfigError, match="no face 100"):
        filled.crop(100)
    with Gallery.create(tmp_path / "other.gallery", Averages(), keep_crops=False) as bare:
        bare.add(Image.new("RGB", (500, 300)))
        assert bare.crop(1) is None
        with pytest.raises(DataError, match="neither a vector nor a crop"):
            bare.stored_tables([1])


def test_stored_faces_can_be_searched_with(filled):
    tables = filled.stored_tables([1, 4, 7])
    hits = [result.hits[0].face.person for result in filled.search_tables(tables, k=1)]
    assert hits == [face.person for face in filled.faces([1, 4, 7])]


def test_another_encoder_is_refused(filled):
    with pytest.raises(ModelMismatchError, match="another encoder"):
        Gallery.open(filled.folder, Averages("of others"))


def test_an_encoder_of_the_users_own_has_to_be_given(filled):
    with Gallery.open(filled.folder) as bare:
        assert bare.info().num_faces == 18  # that takes none
        with pytest.raises(ConfigError, match="pass it when opening"):
            bare.search(picture(0))


# Scores are counts of equal bits (36 in five bytes), sums of cosines, and distances with a minus sign.
@pytest.mark.parametrize("method", ["csq", "gpq", "opqn-l2q"])
def test_a_model_of_a_comparison_method_keeps_a_gallery(method, photos, tmp_path):
    torch.manual_seed(0)
    config = ModelConfig(backbone="resnet20-32-narrow", num_books=6, num_words=64, book_dim=64)
    model = BaselineModel(config, make_method(method, {})).eval()
    with Gallery.create(tmp_path / "g", model) as gallery:
        assert len(gallery.add_folder(photos).ids) == 18
    paths = [photos / f"Person {person}/{number}.png" for person in range(6) for number in range(3)]
    codes = model.encode(paths)
    with Gallery.open(tmp_path / "g") as gallery:
        assert isinstance(gallery.encoder, BaselineModel)
        assert gallery.verify().problems == ()
        (result,) = gallery.search(paths[7], k=18)
        expected = score(gallery.encoder.lookup_tables(paths[7]), codes)[0]
        order = np.argsort(-expected, kind="stable")
        assert [(hit.face.id, hit.score) for hit in result.hits] == [(place + 1, expected[place]) for place in order]
        (found,) = gallery.identify(paths[7])
        assert (found.person.name, found.threshold) == ("Person 2", None)
        threshold = gallery.calibrate(0.8).threshold
        (found,) = gallery.identify(paths[7])
        assert found.threshold == threshold
        assert (found.person is not None) == (found.score >= threshold)
        assert gallery.add_codes(codes[:1], "Ann").ids == (19,)
        gallery.remove([19])
        gallery.assign(range(1, 10), None)
        assert gallery.group()
        with pytest.raises(ConfigError, match="a BaselineModel, takes pictures and no vectors"):
            gallery.add_vectors(np.zeros((1, 384), np.float32))


def test_what_stands_there_is_not_made_a_gallery_of(tmp_path, filled):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").touch()
    for place in (tmp_path / "folder", tmp_path / "folder/file", filled.folder):
        with pytest.raises(ConfigError, match="gallery add"):
            Gallery.create(place, Averages())
    for place in (tmp_path / "folder", tmp_path / "none"):
        with pytest.raises(ConfigError, match="is no gallery"):
            Gallery.open(place)


def test_a_gallery_that_cannot_be_written_is_searched(filled, monkeypatch):
    filled.close()
    for path in [*filled.folder.rglob("*"), filled.folder]:
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    monkeypatch.setattr("os.access", lambda _path, mode: mode == 4)  # root may write everywhere
    with reopened(filled) as other:
        assert other.search(picture(3), k=1)[0].hits[0].face.person.name == "Person 3"
        assert other.verify().problems == ()
        for change in (lambda: other.add(picture(9)), lambda: other.remove([1]), lambda: other.assign([1], "x")):
            with pytest.raises(OpqnError, match="cannot be written"):
                change()
    assert not list(filled.folder.glob("*-wal"))


def test_threads_share_a_gallery(filled):
    errors = []

    def work(start):
        try:
            for number in range(start, start + 20):
                filled.add(picture(number), f"name {number}")
                assert filled.search(picture(number), k=1)[0].hits[0].score == 0
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=work, args=(100 * number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(filled) == 18 + 80
    assert filled.verify().problems == ()


def test_ctrl_c_keeps_what_was_found(gallery, tmp_path, monkeypatch):
    photos = write_pictures(tmp_path / "many", 40, 5)
    monkeypatch.setattr(gallery_module, "_PICTURES_AT_ONCE", 16)
    told = []

    def stop_soon(done, _count):
        told.append(done)
        if done > 60:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gallery.add_folder(photos, on_progress=stop_soon)
    stored = len(gallery)
    assert told[-1] <= stored < 200
    rest = gallery.add_folder(photos)
    assert (rest.num_unchanged, len(rest.ids)) == (stored, 200 - stored)
    assert gallery.verify().problems == ()


def test_a_full_disk_is_said_and_loses_nothing(filled):
    page_count = filled._catalog.rows("PRAGMA page_count")[0][0]
    filled._catalog.rows(f"PRAGMA max_page_count = {page_count + 1}")
    before = len(filled)
    with pytest.raises(OpqnError, match="disk is full"):
        filled.add_codes(np.zeros((50_000, 8), dtype=np.uint8))
    assert len(filled) == before
    filled._catalog.rows("PRAGMA max_page_count = 1000000")
    assert filled.verify().problems == ()
    filled.add_codes(np.zeros((5000, 8), dtype=np.uint8))
    assert len(filled) == before + 5000


def test_a_quality_filter_finds_only_faces_that_keep_it(filled):
    with filled._catalog.transaction():
        filled._catalog.run("UPDATE faces SET size = 10 * id, yaw = 5 * (id - 10)")
    found = filled.search(picture(0), k=30, quality=QualityFilter(min_size=50, max_yaw=20))[0].hits
    assert sorted(hit.face.id for hit in found) == list(range(6, 15))
    assert filled.search(picture(0), k=30, quality=QualityFilter(min_score=0.1))[0].hits == ()


def test_info_tells_what_there_is(filled, photos):
    (photos / "Person 0/bad.jpg").write_text("x")
    filled.add_folder(photos)
    filled.assign([1], None)
    info = filled.info()
    assert (info.num_faces, info.num_people, info.num_unknown, info.num_photos) == (18, 6, 1, 18)
    assert info.num_unreadable == 1
    assert info.num_bits == 48
    assert info.sources == (str(photos),)
    assert info.catalog_bytes > 0
    json.dumps(info.to_dict())


def test_a_gallery_of_a_newer_opqn_or_of_something_else_is_refused(filled):
    filled.close()
    path = filled.folder / "catalog.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 2")
    with pytest.raises(CorruptFileError, match="newer opqn"):
        Gallery.open(filled.folder)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 1")
        connection.execute("CREATE TRIGGER t AFTER INSERT ON faces BEGIN DELETE FROM people; END")
    with pytest.raises(CorruptFileError, match="other tables"):
        Gallery.open(filled.folder)
    path.write_bytes(b"x" * 10_000)
    with pytest.raises(CorruptFileError):
        Gallery.open(filled.folder)


def test_opening_and_searching_needs_no_torch(filled):
    filled.close()
    script = (
        "import sys\n"
        f"sys.path.insert(0, {str(gallery_module.Path(__file__).parent)!r})\n"
        "from stand_ins import Averages, picture\n"
        "import opqn\n"
        f"gallery = opqn.Gallery.open({str(filled.folder)!r}, Averages())\n"
        "assert gallery.identify(picture(3))[0].person.name == 'Person 3'\n"
        "assert not {'torch', 'cv2', 'onnxruntime'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_public_names_are_there():
    assert opqn.Gallery is Gallery
    assert opqn.GalleryBusyError is GalleryBusyError
