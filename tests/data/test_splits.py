"""Split files: fair by construction, drawn by a stated rule, and refused when they were tampered with."""

import errno
import hashlib
import json
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from opqn import _files
from opqn.data.folders import ImageFolder, scan_folder
from opqn.data.splits import Split, make_splits, person_of, validation_split
from opqn.errors import ConfigError, CorruptFileError, DataError, OpqnError


def folder_of(counts):
    paths = tuple(f"{person}/{i:04d}.jpg" for person in sorted(counts) for i in range(counts[person]))
    return ImageFolder(Path("faces"), paths, tuple(person_of(path) for path in paths))


def numbered(counts):
    return folder_of({f"p{i:03d}": count for i, count in enumerate(counts)})


SEEN = Split("s", "seen", 1, ("a/1", "b/1"), ("a/1", "b/1"), ("a/2",))
UNSEEN = Split("u", "unseen", 1, ("a/1", "b/1"), ("c/1", "d/1"), ("c/2",))
people_counts = st.lists(st.integers(1, 9), min_size=1, max_size=25)
wanted = st.one_of(st.floats(0.01, 0.99), st.integers(1, 6))


# Drawing


@settings(deadline=None)
@given(people_counts, st.integers(0, 2**40), st.floats(0.01, 0.99), wanted, st.integers(1, 4))
def test_splits_are_fair_whatever_the_folder(counts, seed, share, queries, min_images):
    folder = numbered(counts)
    try:
        seen, unseen = make_splits(
            folder, name="x", seed=seed, unseen_people=share, queries_per_person=queries, min_images=min_images
        )
    except DataError:
        return
    assert seen.train == seen.gallery == unseen.train
    used = [*seen.train, *seen.query, *unseen.gallery, *unseen.query]
    enough = {f"p{i:03d}" for i, count in enumerate(counts) if count >= min_images}
    assert sorted(used) == [path for path in folder.paths if person_of(path) in enough]
    trained, tested = {*map(person_of, unseen.train)}, {*map(person_of, unseen.gallery + unseen.query)}
    assert not trained & tested
    assert len(trained) >= 2
    assert len(tested) == round(share * len(enough))
    for rest, query in ((seen.train, seen.query), (unseen.gallery, unseen.query)):
        kept, drawn = Counter(map(person_of, rest)), Counter(map(person_of, query))
        for person in kept | drawn:
            total = kept[person] + drawn[person]
            assert kept[person] >= 1
            assert drawn[person] >= (total > 1)
            if queries >= 1:
                assert drawn[person] == min(queries, total - 1)
            else:
                assert drawn[person] <= max(1, queries * total + 0.5)
        assert list(rest) == sorted(rest)
        assert list(query) == sorted(query)


@settings(deadline=None)
@given(people_counts, st.integers(0, 1000), st.floats(0.05, 0.95))
def test_the_unseen_people_are_the_first_of_the_stated_permutation(counts, seed, share):
    folder = numbered(counts)
    names = sorted(set(folder.people))
    expected = {names[i] for i in np.random.default_rng(seed).permutation(len(names))[: round(share * len(names))]}
    try:
        _, unseen = make_splits(folder, name="x", seed=seed, unseen_people=share)
    except DataError:
        return
    assert {person_of(path) for path in unseen.gallery} == expected


def test_a_draw_depends_on_the_seed_alone():
    folder = numbered([5] * 20)
    assert make_splits(folder, name="x", seed=3) == make_splits(folder, name="x", seed=3)
    assert make_splits(folder, name="x", seed=3).unseen.gallery != make_splits(folder, name="x", seed=4).unseen.gallery


def test_the_default_draw_never_changes():
    """Reports quote these hashes: another draw would make old results incomparable."""
    seen, unseen = make_splits(numbered([3, 4, 5, 6, 1, 2, 7, 8, 9, 10]), name="x")
    assert seen.hash == "d4a1324abbc5f0782142ff6db310cde9dbe33c121e9f2de0a72fd0be1d36b0a0"
    assert unseen.hash == "a5b1b7e9725078133319f023df064459afa4bf69eaf92b65ba6ac4d7fe4b0320"


def test_a_person_with_one_image_is_trained_on_or_a_distractor():
    counts = {f"p{i}": 1 if i % 2 else 4 for i in range(20)}
    seen, unseen = make_splits(folder_of(counts), name="x", unseen_people=0.5)
    lonely = {f"p{i}" for i in range(1, 20, 2)}
    assert lonely <= {person_of(path) for path in seen.train + unseen.gallery}
    assert not lonely & {person_of(path) for path in seen.query + unseen.query}
    left_out = make_splits(folder_of(counts), name="x", unseen_people=0.5, min_images=2)
    assert not lonely & {person_of(path) for path in left_out.seen.train + left_out.unseen.gallery}


def test_unicode_people(tmp_path):
    for person in ("Zoë", "山田 花子", "علی‌رضا", "Ωμέγα"):
        for i in range(3):
            (tmp_path / person).mkdir(exist_ok=True)
            (tmp_path / person / f"{i}.jpg").write_bytes(b"")
    split = make_splits(scan_folder(tmp_path), name="Völker", unseen_people=0.5).unseen
    split.save(tmp_path / "split.json")
    assert Split.load(tmp_path / "split.json", tmp_path) == split
    assert "山田 花子" in (tmp_path / "split.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("counts", "options", "message"),
    [
        ([1] * 10, {}, "every person has one image"),
        ([3, 3], {"unseen_people": 0.5}, "fewer than 2 are left to train on"),
        ([3], {}, "fewer than 2 are left to train on"),
        ([3, 3, 1, 1], {"min_images": 5}, "0 people with 5 or more images"),
        ([4] * 4, {"unseen_people": 0.01}, "0.01 of 4 people is none; raise it"),
    ],
)
def test_folders_that_cannot_be_divided_are_refused(counts, options, message):
    with pytest.raises(DataError, match=message):
        make_splits(numbered(counts), name="x", **options)


@pytest.mark.parametrize(("unseen_count", "seen_count", "which"), [(1, 5, "unseen"), (5, 1, "seen")])
def test_a_side_on_which_everyone_has_one_image_is_refused(unseen_count, seen_count, which):
    counts = [seen_count] * 4
    counts[np.random.default_rng(0).permutation(4)[0]] = unseen_count
    with pytest.raises(DataError, match=f"every {which} person has one image.*min_images to 2"):
        make_splits(numbered(counts), name="x", unseen_people=0.25)


@pytest.mark.parametrize(
    "options",
    [
        {"unseen_people": 0},
        {"unseen_people": 1},
        {"unseen_people": float("nan")},
        {"queries_per_person": 0},
        {"queries_per_person": 1.5},
        {"queries_per_person": float("nan")},
        {"queries_per_person": float("inf")},
        {"seed": -1},
        {"min_images": 0},
    ],
)
def test_arguments_out_of_range_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        make_splits(numbered([5] * 5), name="x", **options)


# Validation


@settings(deadline=None)
@given(people_counts, st.integers(0, 1000), st.floats(0.01, 0.99), st.sampled_from(["seen", "unseen"]))
def test_validation_is_taken_from_the_training_images_alone(counts, seed, share, protocol):
    train = numbered(counts).paths
    try:
        kept, gallery, query = validation_split(train, protocol=protocol, share=share, seed=seed)
    except DataError:
        able = sum(count >= 2 for count in counts)
        leaving = max(2, round(share * able))
        assert max(counts) < 3 if protocol == "seen" else able < 2 or len(counts) - leaving < 2
        return
    assert validation_split(train, protocol=protocol, share=share, seed=seed) == (kept, gallery, query)
    total = Counter(map(person_of, train))
    drawn = Counter(map(person_of, query))
    if protocol == "seen":
        assert kept == gallery
        assert sorted(kept + query) == sorted(train)
        for person, count in total.items():
            assert drawn[person] == (min(max(1, round(share * count)), count - 1) if count >= 3 else 0)
    else:
        assert sorted(kept + gallery + query) == sorted(train)
        assert not {*map(person_of, kept)} & {*map(person_of, gallery + query)}
        assert len({*map(person_of, kept)}) >= 2
        assert len(drawn) >= 2
        assert drawn == {person: total[person] // 2 for person in map(person_of, gallery)}
        assert min(drawn.values()) >= 1


@pytest.mark.parametrize("options", [{"share": 0}, {"share": 1}, {"seed": -1}, {"protocol": "both"}])
def test_validation_arguments_out_of_range_are_refused(options):
    with pytest.raises(ConfigError, match="validation"):
        validation_split(numbered([5] * 5).paths, **{"protocol": "seen", "share": 0.1, "seed": 0, **options})


@pytest.mark.parametrize(("protocol", "advice"), [("seen", "'none'"), ("unseen", "'seen' or 'none'")])
def test_too_little_to_validate_with_is_refused_with_advice(protocol, advice):
    with pytest.raises(DataError, match=f"set train.validation to {advice}"):
        validation_split(numbered([2, 2, 1]).paths, protocol=protocol, share=0.1, seed=0)


# The Split itself


def test_a_path_belongs_to_its_first_folder():
    assert person_of("ann/2019/1.jpg") == "ann"


def test_an_evaluation_only_split_needs_no_training_images():
    assert Split("u", "unseen", 0, (), ("c/1",), ("c/2",)).train == ()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train": ("a/1", "c/2")}, r"1 images are both trained on and a query: c/2"),
        ({"train": ("a/1", "c/1")}, r"1 images are both trained on and in the gallery: c/1"),
        ({"train": ("a/1", "c/9")}, r"1 people are both trained on and tested: c"),
        ({"train": ("a/1", "e/1"), "query": ("e/2", "c/2")}, r"1 people are both trained on and tested: e"),
        ({"gallery": ("c/1", "c/2")}, r"1 images are both in the gallery and a query: c/2"),
        ({"query": ("c/2", "c/3", "c/2")}, r"1 images are more than once in query: c/2"),
        ({"query": ()}, "no images to use as query"),
        ({"gallery": ()}, "no images to use as gallery"),
        ({"train": ("../a/1",)}, r"'\.\./a/1' in train: it has an empty part"),
        ({"gallery": ("/etc/passwd",)}, "'/etc/passwd' in gallery: it is absolute"),
        ({"query": ("c\\2",)}, "backslash"),
        ({"query": ("c2.jpg",)}, "no folder of a person"),
        ({"protocol": "both"}, "protocol is 'both'"),
        ({"protocol": "seen"}, "the gallery is the training images"),
        ({"name": " "}, "name"),
        ({"name": "a\nb"}, "name"),
    ],
)
def test_unfair_splits_cannot_be_made_nor_loaded(tmp_path, fields, message):
    values = {**vars(UNSEEN), **fields}
    values.pop("hash", None)
    with pytest.raises(DataError, match=message):
        Split(**values)
    UNSEEN.save(tmp_path / "split.json")
    document = json.loads((tmp_path / "split.json").read_text())
    (tmp_path / "split.json").write_text(json.dumps(document | fields))
    with pytest.raises(DataError, match=rf"split\.json: .*{message}"):
        Split.load(tmp_path / "split.json")


def test_the_first_three_offenders_and_their_number_are_named():
    shared = tuple(f"c/{i}" for i in range(10, 20))
    with pytest.raises(DataError, match=r"10 images are both in the gallery and a query: c/10, c/11, c/12, \.\.\.$"):
        Split("u", "unseen", 0, ("a/1",), shared, shared)


def test_a_seen_split_without_training_images_is_refused():
    with pytest.raises(DataError, match="train and gallery"):
        Split("s", "seen", 0, (), (), ("a/1",))


# Hash and file


def test_the_hash_is_that_of_the_canonical_json():
    text = '{"gallery":["c/1","d/1"],"protocol":"unseen","query":["c/2"],"seed":1,"train":["a/1","b/1"]}'
    assert UNSEEN.hash == hashlib.sha256(text.encode()).hexdigest()
    text = '{"gallery":null,"protocol":"seen","query":["a/2"],"seed":1,"train":["a/1","b/1"]}'
    assert SEEN.hash == hashlib.sha256(text.encode()).hexdigest()


def test_the_hash_covers_everything_but_the_name():
    values = vars(UNSEEN) | {}
    values.pop("hash", None)
    assert Split(**values | {"name": "other"}).hash == UNSEEN.hash
    for change in ({"seed": 2}, {"train": ("b/1", "a/1")}, {"gallery": ("d/1", "c/1")}, {"query": ("c/3",)}):
        assert Split(**values | change).hash != UNSEEN.hash


@pytest.mark.parametrize("split", [SEEN, UNSEEN])
def test_a_saved_split_comes_back_as_it_was(tmp_path, split):
    split.save(tmp_path / "folder" / "split.json")
    loaded = Split.load(tmp_path / "folder" / "split.json")
    assert loaded == split
    assert loaded.hash == split.hash
    assert [entry.name for entry in (tmp_path / "folder").iterdir()] == ["split.json"]


def test_the_seen_gallery_is_stored_once(tmp_path):
    SEEN.save(tmp_path / "split.json")
    assert json.loads((tmp_path / "split.json").read_text())["gallery"] is None


def test_missing_images_are_named(tmp_path):
    UNSEEN.save(tmp_path / "split.json")
    for path in ("a/1", "c/1", "c/2", "b/1"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(b"")
    with pytest.raises(DataError, match=r"1 images are missing below .*: d/1; give the folder"):
        Split.load(tmp_path / "split.json", tmp_path)
    with pytest.raises(DataError, match=r"5 images are missing below .*: a/1, b/1, c/1, \.\.\.;"):
        Split.load(tmp_path / "split.json", tmp_path / "elsewhere")


def test_a_changed_hash_or_list_is_noticed(tmp_path):
    UNSEEN.save(tmp_path / "split.json")
    document = json.loads((tmp_path / "split.json").read_text())
    for change in ({"hash": "0" * 64}, {"hash": None}, {"query": ["c/7"]}, {"seed": 5}, {"train": ["a/1"]}):
        (tmp_path / "split.json").write_text(json.dumps(document | change))
        with pytest.raises(CorruptFileError, match="hash does not match"):
            Split.load(tmp_path / "split.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "format version 2 and this opqn reads 1; upgrade opqn"),
        ({"version": None}, "format version None"),
        ({"format": "other"}, "not a split file"),
        ({"seed": "1"}, "seed must be of type int, not str"),
        ({"seed": True}, "seed must be of type int, not bool"),
        ({"name": 3}, "name must be of type str"),
        ({"protocol": ["seen"]}, "protocol must be of type str"),
        ({"train": "a/1"}, "train must be of type list, not str"),
        ({"train": {"a/1": 1}}, "train must be of type list, not dict"),
        ({"query": [1]}, "query must be a list of strings"),
        ({"gallery": None}, "gallery must be of type list, not NoneType"),
        ({"extra": 1}, "keys missing or unknown: extra"),
    ],
)
def test_a_file_of_another_structure_is_refused(tmp_path, change, message):
    UNSEEN.save(tmp_path / "split.json")
    document = json.loads((tmp_path / "split.json").read_text()) | change
    (tmp_path / "split.json").write_text(json.dumps(document))
    with pytest.raises(CorruptFileError, match=message):
        Split.load(tmp_path / "split.json")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"format": "opqn-split"}']
)
def test_a_file_that_is_no_split_is_refused(tmp_path, content):
    (tmp_path / "split.json").write_bytes(content)
    with pytest.raises(CorruptFileError, match=r"split\.json"):
        Split.load(tmp_path / "split.json")


def test_a_missing_file_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"cannot read the split file .*No such file"):
        Split.load(tmp_path / "gone.json")


@settings(deadline=None)
@given(st.data())
def test_a_damaged_file_is_refused_or_equal(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("split") / "split.json"
    UNSEEN.save(path)
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] = data.draw(st.integers(0, 255))
    assume(b'"name": "u"' in content)
    path.write_bytes(content)
    with suppress(DataError, CorruptFileError):
        assert Split.load(path) == UNSEEN


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    SEEN.save(tmp_path / "split.json")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_files, "write_synced", full)
    with pytest.raises(OpqnError, match="the disk is full"):
        UNSEEN.save(tmp_path / "split.json")
    assert Split.load(tmp_path / "split.json") == SEEN
