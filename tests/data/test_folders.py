"""A folder per person: what counts as an image, in which order, and which folders are refused."""

import os
import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opqn.data.folders import IMAGE_SUFFIXES, path_problem, scan_folder
from opqn.errors import DataError


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"")


def test_the_first_folder_is_the_person_and_any_nesting_below_counts(tmp_path):
    touch(tmp_path, "bob/2.jpg", "ann/x/y/1.png", "ann/b.webp", "ann/notes.txt", "empty/readme.md")
    folder = scan_folder(tmp_path)
    assert folder.paths == ("ann/b.webp", "ann/x/y/1.png", "bob/2.jpg")
    assert folder.people == ("ann", "ann", "bob")
    assert folder.root == tmp_path
    assert folder.skipped == ()
    assert scan_folder(str(tmp_path)) == folder


@pytest.mark.parametrize("suffix", [*IMAGE_SUFFIXES, ".JPG", ".Png", ".WEBP"])
def test_suffixes_count_in_any_case(tmp_path, suffix):
    touch(tmp_path, f"ann/a{suffix}")
    assert scan_folder(tmp_path).paths == (f"ann/a{suffix}",)


def test_hidden_files_and_folders_are_passed_over(tmp_path):
    touch(tmp_path, "ann/a.jpg", "ann/._a.jpg", "ann/.thumbs/a.jpg", ".git/a.jpg")
    assert scan_folder(tmp_path).paths == ("ann/a.jpg",)


def test_unicode_names_are_kept_as_on_disk_and_sorted_by_their_nfc_form(tmp_path):
    composed, decomposed = "É", unicodedata.normalize("NFD", "Éa")
    touch(
        tmp_path,
        "Zoë/1.jpg",
        f"{decomposed}/1.jpg",
        f"{composed}/1.jpg",
        "山田 花子/写真.jpg",
        "Eva/1.jpg",
        "علی‌رضا/1.jpg",
    )
    people = scan_folder(tmp_path).people
    assert set(people) == {entry.name for entry in tmp_path.iterdir()}
    assert people == ("Eva", "Zoë", composed, decomposed, "علی‌رضا", "山田 花子")


def test_order_goes_by_person_before_file(tmp_path):
    """As plain text "a b/1.jpg" sorts before "a/1.jpg"; as people "a" comes first."""
    touch(tmp_path, "a b/1.jpg", "a/1.jpg", "a/1/1.jpg")
    assert scan_folder(tmp_path).paths == ("a/1/1.jpg", "a/1.jpg", "a b/1.jpg")


def test_links_that_leave_the_root_and_links_to_folders_are_not_followed(tmp_path):
    root, other = tmp_path / "root", tmp_path / "other"
    touch(root, "ann/a.jpg")
    touch(other, "b.jpg")
    (root / "ann" / "out.jpg").symlink_to(other / "b.jpg")
    (root / "ann" / "in.jpg").symlink_to("a.jpg")
    (root / "ann" / "gone.jpg").symlink_to("nothing.jpg")
    (root / "eve").symlink_to(other)
    (root / "ann" / "circle").symlink_to(root)
    folder = scan_folder(root)
    assert folder.paths == ("ann/a.jpg", "ann/in.jpg")
    reasons = dict(folder.skipped)
    assert sorted(reasons) == ["ann/circle", "ann/gone.jpg", "ann/out.jpg", "eve"]
    assert "leaves" in reasons["ann/out.jpg"]
    assert "folder" in reasons["eve"]
    assert "nothing" in reasons["ann/gone.jpg"]


def test_a_root_that_is_a_link_is_followed(tmp_path):
    touch(tmp_path / "root", "ann/a.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "root")
    assert scan_folder(tmp_path / "link").paths == ("ann/a.jpg",)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not allow such names")
def test_names_that_cannot_stand_in_a_split_file_are_skipped_with_a_reason(tmp_path):
    touch(tmp_path, "ann/a.jpg", "ann/back\\slash.jpg", "ann/new\nline.jpg")
    (tmp_path / "ann" / os.fsdecode(b"\xff.jpg")).write_bytes(b"")
    os.mkfifo(tmp_path / "ann" / "pipe.jpg")
    folder = scan_folder(tmp_path)
    assert folder.paths == ("ann/a.jpg",)
    assert len(folder.skipped) == 4
    assert "regular file" in dict(folder.skipped)["ann/pipe.jpg"]


def test_images_of_no_person_beside_people_are_skipped(tmp_path):
    touch(tmp_path, "cover.jpg", "ann/a.jpg")
    folder = scan_folder(tmp_path)
    assert folder.paths == ("ann/a.jpg",)
    assert folder.skipped[0].path == "cover.jpg"


def test_a_missing_root_and_a_file_are_refused(tmp_path):
    with pytest.raises(DataError, match="missing; give a folder"):
        scan_folder(tmp_path / "nowhere")
    touch(tmp_path, "file.jpg")
    with pytest.raises(DataError, match=r"file\.jpg is not a folder"):
        scan_folder(tmp_path / "file.jpg")


def test_an_empty_folder_is_refused_with_the_suffixes_that_count(tmp_path):
    touch(tmp_path, "ann/a.gif")
    with pytest.raises(DataError, match=r"no images in .*folder per person.*\.jpg, \.jpeg, \.png"):
        scan_folder(tmp_path)


def test_an_unfollowed_link_is_named_when_nothing_is_left(tmp_path):
    touch(tmp_path / "other", "b.jpg")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "eve").symlink_to(tmp_path / "other")
    with pytest.raises(DataError, match="Left out: 1, such as eve: it is a link to a folder"):
        scan_folder(tmp_path / "root")


def test_images_directly_in_the_root_are_refused(tmp_path):
    touch(tmp_path, "1.jpg", "2.jpg")
    with pytest.raises(DataError, match="lie directly in it; make one folder per person"):
        scan_folder(tmp_path)


@pytest.mark.parametrize("names", [("train", "val"), ("Train",), ("train", "test", "validation"), ("images",)])
def test_parts_of_a_data_set_are_not_people(tmp_path, names):
    touch(tmp_path, *(f"{name}/ann/1.jpg" for name in names), "docs/readme.txt")
    with pytest.raises(DataError, match=rf"not like people; point at one of them, such as .*{min(names)}"):
        scan_folder(tmp_path)


def test_a_person_may_be_called_val(tmp_path):
    touch(tmp_path, "Val/1.jpg", "Tom/1.jpg")
    assert scan_folder(tmp_path).people == ("Tom", "Val")


def test_a_folder_that_cannot_be_read_is_skipped_with_a_reason(tmp_path, monkeypatch):
    touch(tmp_path, "ann/1.jpg", "bob/1.jpg")
    scandir = os.scandir

    def forbid_bob(path):
        if path.name == "bob":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbid_bob)
    folder = scan_folder(tmp_path)
    assert folder.paths == ("ann/1.jpg",)
    assert folder.skipped == (("bob", "the folder cannot be read: Permission denied"),)


@pytest.mark.parametrize(
    "path",
    [
        "/a/b",
        "a",
        "a/../b",
        "../a/b",
        "a//b",
        "a/",
        "./a/b",
        "a\\b/c",
        "c:/a",
        "C:a/b",
        "a/b\0",
        "a/\ud800",
        "",
        "a/b/..",
    ],
)
def test_paths_that_could_lead_out_of_the_root_have_a_problem(path):
    assert path_problem(path)


@settings(deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_characters="/\\:", exclude_categories=["Cc", "Cs"]), min_size=1), min_size=2)
)
def test_other_paths_have_none(parts):
    if not {".", ".."} & set(parts):
        assert path_problem("/".join(parts)) is None
