import os
import shutil

import numpy as np
import pytest
from stand_ins import Averages, picture, write_pictures

from opqn.errors import DataError
from opqn.gallery import Gallery


def names(gallery):
    return {person.name: count for person, count in gallery.people()}


def test_people_are_named_after_their_folders(gallery, photos):
    (photos / "Person 0/holiday").mkdir()
    picture(0, 9).save(photos / "Person 0/holiday/9.png")
    picture(40).save(photos / "of nobody.png")
    report = gallery.add_folder(photos)
    assert len(report.ids) == report.num_photos == 20
    assert names(gallery) == {"Person 0": 4, **{f"Person {number}": 3 for number in range(1, 6)}}
    assert gallery.info().num_unknown == 1


def test_people_are_left_unnamed_on_request(gallery, photos):
    gallery.add_folder(photos, "none")
    assert names(gallery) == {}
    assert gallery.info().num_unknown == 18
    assert gallery.sources() == [(photos, "none")]


def test_only_what_changed_is_looked_at_again(gallery, photos):
    gallery.add_folder(photos)
    again = gallery.add_folder(photos)
    assert (again.num_unchanged, again.num_photos, again.ids) == (18, 0, ())
    picture(3, 8).save(photos / "Person 3/0.png")
    os.utime(photos / "Person 4/0.png")
    changed = gallery.add_folder(photos)
    assert (changed.num_unchanged, len(changed.ids), changed.num_duplicates) == (16, 1, 1)
    assert names(gallery)["Person 3"] == 4  # what was there before is kept until it is removed
    assert gallery.add_folder(photos).num_unchanged == 18


def test_a_folder_that_moved_is_recognised(filled, photos, tmp_path):
    photos.rename(tmp_path / "elsewhere")
    moved = filled.add_folder(tmp_path / "elsewhere")
    assert (moved.num_duplicates, moved.num_photos, moved.missing) == (18, 0, ())
    assert len(filled) == 18
    paths = filled.faces([1])[0].paths
    assert str(tmp_path / "elsewhere/Person 0/0.png") in paths


def test_a_file_that_moved_within_the_folder_is_recognised(filled, photos):
    (photos / "Person 0/0.png").rename(photos / "Person 0/renamed.png")
    report = filled.add_folder(photos)
    assert (report.num_duplicates, report.missing) == (1, ())
    assert filled.faces([1])[0].paths == (str(photos / "Person 0/renamed.png"),)


def test_pictures_that_are_gone_are_listed_and_removed_on_request(filled, photos):
    gone = [photos / f"Person 5/{number}.png" for number in range(3)]
    for path in gone:
        path.unlink()
    report = filled.add_folder(photos)
    assert report.missing == tuple(map(str, gone))
    assert len(filled) == 18
    report = filled.add_folder(photos, remove_missing=True)
    assert report.missing == tuple(map(str, gone))
    assert len(filled) == 15
    assert "Person 5" not in names(filled)
    assert filled.add_folder(photos).missing == ()
    write_pictures(photos / "new", 0)
    for number in range(3):  # they may come back
        (photos / "Person 5").mkdir(exist_ok=True)
        picture(5, number).save(gone[number])
    assert len(filled.add_folder(photos).ids) == 3


def test_what_was_removed_for_good_does_not_come_back(filled, photos):
    filled.remove(person="Person 1")
    report = filled.add_folder(photos)
    assert (report.num_removed_before, report.num_photos, report.ids) == (3, 0, ())
    assert len(filled) == 15
    assert not filled._catalog.rows("SELECT 1 FROM files WHERE path LIKE '%Person 1%'")


def test_a_disk_that_is_not_there_is_no_reason_to_remove_everything(filled, photos):
    shutil.rmtree(photos)
    with pytest.raises(DataError, match="missing"):
        filled.add_folder(photos, remove_missing=True)
    photos.mkdir()
    with pytest.raises(DataError, match="is its disk there"):
        filled.add_folder(photos, remove_missing=True)
    assert len(filled) == 18


def test_files_that_cannot_be_read_are_listed_and_not_tried_again(gallery, photos):
    (photos / "Person 0/text.jpg").write_text("no picture")
    (photos / "Person 0/film.mp4").write_bytes(bytes(100))
    (photos / "Person 0/link.png").symlink_to("/etc/passwd")
    report = gallery.add_folder(photos)
    assert len(report.ids) == 18
    assert sorted(image.path for image in report.skipped) == [
        str(photos / "Person 0/link.png"), str(photos / "Person 0/text.jpg"),
    ]  # fmt: skip
    again = gallery.add_folder(photos)
    assert again.num_unchanged == 19
    picture(0, 6).save(photos / "Person 0/text.jpg", "JPEG")
    assert len(gallery.add_folder(photos).ids) == 1


def test_a_file_that_is_deleted_meanwhile_is_skipped(gallery, photos, monkeypatch):
    encode = Averages.encode

    def delete_and_encode(self, images):
        (photos / "Person 5/2.png").unlink(missing_ok=True)
        return encode(self, images)

    monkeypatch.setattr(Averages, "encode", delete_and_encode)
    monkeypatch.setattr("opqn.gallery.adding._AT_ONCE", 4)
    report = gallery.add_folder(photos)
    assert len(report.ids) == 17
    assert [image.reason for image in report.skipped] == ["no such file"]


def test_a_folder_with_an_impossible_name_gives_faces_without_one(gallery, photos):
    (photos / "Person 0").rename(photos / (240 * "x"))
    gallery.add_folder(photos)
    assert gallery.info().num_unknown == 3


def test_two_folders_are_two_sources(gallery, photos, tmp_path):
    other = write_pictures(tmp_path / "photos2", 8, 1)
    gallery.add_folder(photos)
    report = gallery.add_folder(other)
    assert (len(report.ids), report.num_duplicates, report.missing) == (2, 6, ())
    assert [path for path, _ in gallery.sources()] == [photos, other]


def test_the_catalog_follows_any_sequence_of_changes(tmp_path):
    """Against a plain set of contents: what lies in the folder, and what ever lay there, is known once."""
    rng = np.random.default_rng(5)
    root = tmp_path / "photos"
    root.mkdir()
    seen, there = set(), {}
    with Gallery.create(tmp_path / "g", Averages()) as gallery:
        for _ in range(25):
            for _ in range(rng.integers(1, 6)):
                name, content = f"{rng.integers(8)}.png", (int(rng.integers(12)), int(rng.integers(2)))
                if rng.random() < 0.3:
                    (root / name).unlink(missing_ok=True)
                    there.pop(name, None)
                else:
                    (root / name).unlink(missing_ok=True)  # so that the time of change is another
                    picture(*content).save(root / name)
                    os.utime(root / name, ns=(rng.integers(2**60), rng.integers(2**60)))
                    there[name] = content
            if there:
                gallery.add_folder(root)
                seen |= set(there.values())
                assert len(gallery) == len(seen)
                listed = {path for face in gallery.faces(range(1, len(seen) + 1)) for path in face.paths}
                assert {str(root / name) for name in there} <= listed
        assert gallery.verify().problems == ()
