"""What holds for every recipe: whole or going on, counted, without copies, with its source and terms."""

import json
import signal
import subprocess
import sys

import pytest
from small_sets import content, load, people, picture, small, write_files, write_tar

from opqn.data.folders import scan_folder
from opqn.data.recipes import RECIPES, Counts, get_recipe, prepare
from opqn.errors import ConfigError, DataError, OpqnError

LFW = small("lfw")


def test_the_names_are_those_of_the_command_line():
    assert set(RECIPES) == {
        *("facescrub", "cfw-60k", "youtube-faces", "vggface2", "lfw", "imfdb", "orl"),
        *("cifar-10", "imagenet-100", "fashion-mnist", "digits"),
    }
    assert all(name == recipe.name and recipe.url and recipe.terms for name, recipe in RECIPES.items())


def test_an_unknown_name_is_refused_and_the_nearest_named(tmp_path):
    with pytest.raises(ConfigError, match="did you mean facescrub"):
        prepare("facescrubs", tmp_path, tmp_path / "out")


def test_arguments_are_checked_before_anything_is_written(lfw, tmp_path):
    out = tmp_path / "out"
    for arguments, message in (
        (("lfw", None), "say where it is: --source"),
        (("digits", lfw), "leave --source out"),
        (("lfw", tmp_path / "none"), "none is missing"),
        (("lfw", [lfw / "Person_A" / "Person_A_0001.png"]), "neither a folder nor a tar or zip archive"),
    ):
        with pytest.raises(OpqnError, match=message):
            prepare(*arguments, out)
    with pytest.raises(ConfigError, match="seed is -1"):
        prepare("lfw", lfw, out, seed=-1)
    with pytest.raises(ConfigError, match="leave --known-people out"):
        prepare("lfw", lfw, out, known_people=["Ann"])
    with pytest.raises(ConfigError, match="lies in the source"):
        prepare("lfw", lfw, lfw / "out")
    assert not out.exists()
    assert not (lfw / "out").exists()


def test_images_are_copied_byte_by_byte_and_credited(lfw, tmp_path):
    prepared = LFW.prepare(lfw, tmp_path / "out")
    assert content(prepared.root) == content(lfw)
    text = (tmp_path / "out" / "SOURCE.md").read_text()
    assert LFW.url in text
    assert LFW.terms in text
    assert all(split.hash in text for split in load(prepared).values())
    assert json.loads(json.dumps(prepared.to_dict()))["images"] == 55


def test_an_archive_gives_what_its_folder_gives(lfw, tmp_path):
    archive = write_tar(tmp_path / "lfw.tgz", [(f"./lfw/{path}", data) for path, data in content(lfw).items()])
    LFW.prepare(lfw, tmp_path / "a")
    LFW.prepare(archive, tmp_path / "b")
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_the_seed_decides_and_decides_alone(lfw, tmp_path):
    hashes = [
        {name: split.hash for name, split in load(LFW.prepare(lfw, tmp_path / f"{i}", seed=seed)).items()}
        for i, seed in enumerate((0, 0, 1))
    ]
    assert hashes[0] == hashes[1]
    assert hashes[0] != hashes[2]


def test_progress_is_told(lfw, tmp_path):
    told = []
    LFW.prepare(lfw, tmp_path / "out", on_progress=lambda done, total: told.append((done, total)))
    assert told == [(i, 55) for i in range(1, 56)]


def test_wrong_counts_stop_before_anything_is_written(lfw, tmp_path):
    with pytest.raises(DataError, match=r"expected 5,749 people and 13,233 images; found 10 people and 55 images"):
        prepare("lfw", lfw, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_incomplete_set_is_taken_when_asked_and_said_to_be_one(lfw, tmp_path):
    prepared = prepare("lfw", lfw, tmp_path / "out", allow_incomplete=True)
    assert "found 10 people and 55 images" in prepared.warnings[0]
    assert "INCOMPLETE" in (tmp_path / "out" / "SOURCE.md").read_text()
    assert "INCOMPLETE" not in (LFW.prepare(lfw, tmp_path / "whole").root.parent / "SOURCE.md").read_text()


def test_any_known_form_of_a_set_is_whole():
    recipe = get_recipe("imfdb")
    assert recipe.check_counts(100, 34_512, allow_incomplete=False) == ()
    assert recipe.check_counts(100, 32_878, allow_incomplete=False) == ()
    with pytest.raises(DataError, match=r"34,512 images \(as published\), or .*found 100 people and 9 images"):
        recipe.check_counts(100, 9, allow_incomplete=False)
    assert Counts(None, 5).fits(3, 5)
    assert not Counts(None, 5).fits(3, 6)


def test_a_wrong_folder_is_refused(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="no files of this data set"):
        LFW.prepare(empty, tmp_path / "out")
    flat = write_files(tmp_path / "flat", {"1.png": picture(1), "2.png": picture(2)})
    with pytest.raises(DataError, match=r"no files of this data set.*left out 2"):
        LFW.prepare(flat, tmp_path / "out")
    documents = write_files(tmp_path / "documents", {"a/letter.txt": b"Dear"})
    with pytest.raises(DataError, match="no files of this data set"):
        LFW.prepare(documents, tmp_path / "out")


class Killed(BaseException):
    """As a signal would."""


def test_a_killed_run_goes_on(lfw, tmp_path):
    whole = LFW.prepare(lfw, tmp_path / "whole")

    def kill(done, _total):
        if done == 20:
            raise Killed

    out = tmp_path / "out"
    with pytest.raises(Killed):
        LFW.prepare(lfw, out, on_progress=kill)
    assert len(content(out / "images")) == 20
    assert not (out / "SOURCE.md").exists()
    stamps = {path: path.stat().st_mtime_ns for path in (out / "images").rglob("*.png")}
    (out / "images" / ".partial").write_bytes(b"half a pic")
    torn = next(iter(stamps))
    torn.write_bytes(torn.read_bytes()[:50])  # as a power cut may leave it
    LFW.prepare(lfw, out)
    assert content(out) == content(whole.root.parent)
    stamps.pop(torn)
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_a_process_that_is_killed_leaves_whole_images_only(lfw, tmp_path):
    out = tmp_path / "out"
    code = (
        "import os, signal, sys\n"
        "from opqn.data.recipes import prepare\n"
        "kill = lambda done, _: done == 30 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "prepare('lfw', sys.argv[1], sys.argv[2], allow_incomplete=True, on_progress=kill)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, lfw, out], check=False).returncode == -signal.SIGKILL
    images, source = content(out / "images"), content(lfw)
    assert len(images) == 30
    assert images.items() <= source.items()
    assert content(LFW.prepare(lfw, out).root) == source


def test_two_processes_do_not_fill_one_folder(lfw, tmp_path):
    def again(_done, _total):
        LFW.prepare(lfw, tmp_path / "out")

    with pytest.raises(DataError, match="another process is preparing"):
        LFW.prepare(lfw, tmp_path / "out", on_progress=again)


def test_a_place_that_cannot_be_written_is_explained(lfw, tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(OpqnError, match=r"cannot write .*choose another place"):
        LFW.prepare(lfw, tmp_path / "file" / "out")
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_a_folder_with_other_images_is_refused_and_kept(lfw, tmp_path):
    write_files(tmp_path / "out" / "images", {"me/1.jpg": b"mine"})
    with pytest.raises(DataError, match=r"holds 1 images that do not belong to this set or seed, such as me/1\.jpg"):
        LFW.prepare(lfw, tmp_path / "out")
    assert content(tmp_path / "out") == {"images/me/1.jpg": b"mine"}


def test_a_full_disk_is_seen_before_work_begins(lfw, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100}))
    with pytest.raises(OpqnError, match=r"GB more and 0\.0 GB are free"):
        LFW.prepare(lfw, tmp_path / "out")
    assert content(tmp_path / "out") == {}


def test_broken_images_are_left_out_and_listed(lfw, tmp_path):
    broken = {
        "Person_J/Person_J_0003.png": picture(0)[:60],
        "Person_J/Person_J_0004.png": b"",
        "Person_J/Person_J_0005.png": b"<html>404 Not Found</html>",
    }
    write_files(lfw, broken)
    prepared = LFW.prepare(lfw, tmp_path / "out")
    assert {image.path for image in prepared.skipped} == set(broken)
    assert prepared.num_images == 52
    used = {path for split in load(prepared).values() for path in (*split.train, *split.gallery, *split.query)}
    assert len(used) == 52
    assert not used & set(broken)
    text = (tmp_path / "out" / "SOURCE.md").read_text()
    assert "Left out: 3" in text
    assert all(path in text for path in broken)


def test_nothing_but_broken_images_is_refused(tmp_path):
    source = write_files(tmp_path / "lfw", {f"P{i}/{j}.jpg": b"no" for i in range(4) for j in range(4)})
    with pytest.raises(DataError, match="none of the 16 images can be read"):
        LFW.prepare(source, tmp_path / "out")


def test_no_content_is_in_two_roles(tmp_path):
    """Pictures that are copies of others: under another name, of the same person and of another."""
    files = people(["Ann", "Bob", "Cid", "Dee"], 20)
    for i in range(1, 11):
        files[f"Ann/copy_{i}.png"] = files[f"Ann/Ann_{i:04d}.png"]
        files[f"Dee/copy_{i}.png"] = files[f"Cid/Cid_{i:04d}.png"]
    source = write_files(tmp_path / "faces", files)
    for seed in range(5):
        recipe = small("facescrub")
        prepared = recipe.prepare(source, tmp_path / f"{seed}", seed=seed)
        assert len(prepared.duplicates) == 20
        assert all(copy.path.split("/")[1].startswith("copy_") for copy in prepared.duplicates)
        split = load(prepared)["seen"]
        data = [(prepared.root / path).read_bytes() for path in (*split.train, *split.query)]
        assert len(set(data)) == len(data) == 80
        text = (tmp_path / f"{seed}" / "SOURCE.md").read_text()
        assert "Copies: 20" in text
        assert "'Dee/copy_7.png' is 'Cid/Cid_0007.png'" in text


def test_the_result_is_a_folder_of_people(lfw, tmp_path):
    prepared = LFW.prepare(lfw, tmp_path / "out")
    folder = scan_folder(prepared.root)
    assert (len(set(folder.people)), len(folder.paths)) == (prepared.num_people, prepared.num_images) == (10, 55)
    assert folder.skipped == ()
