"""Divisions: no query is in a gallery or trained on under whatever name, and draws keep to what they are told."""

import hashlib
import re
import tempfile
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opqn.bench.methods.splits import check_split, check_strangers, content_hashes, draw_splits
from opqn.bench.methods.suites import Draw
from opqn.data.folders import scan_folder
from opqn.data.splits import Split, person_of
from opqn.errors import DataError


def write(root, contents):
    """Write files of these contents; nothing here looks at what is in an image."""
    for path, content in contents.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"%d" % content)
    return root


def of_people(people, images):
    """Contents of which no two are equal."""
    return {f"p{p:02d}/{i:02d}.png": 1000 * p + i for p in range(people) for i in range(images)}


def draw(root, *arguments, seed=0, **options):
    wanted = Draw(*arguments, **options)
    return draw_splits(root, "d", wanted, seed, content_hashes(root, scan_folder(root).paths))


def used(splits):
    return {*splits.seen.train, *splits.seen.query, *splits.unseen.gallery, *splits.unseen.query}


def by_person(paths):
    images = defaultdict(set)
    for path in paths:
        images[person_of(path)].add(path)
    return images


FOLDERS = st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=7), min_size=2, max_size=9).map(
    lambda people: {f"p{p}/{i}.png": content for p, images in enumerate(people) for i, content in enumerate(images)}
)


@settings(max_examples=60, deadline=None)
@given(FOLDERS, st.integers(1, 6), st.integers(1, 6), st.floats(0.1, 0.8), st.floats(0.1, 0.8), st.integers(0, 9))
def test_of_copies_one_is_used_and_draws_keep_to_cap_and_least_number(contents, cap, least, unseen, queries, seed):
    with tempfile.TemporaryDirectory() as folder:
        root = write(Path(folder), contents)
        hashes = content_hashes(root, scan_folder(root).paths)
        wanted = Draw(cap, least, unseen, queries)
        try:
            splits = draw_splits(root, "d", wanted, seed, hashes)
        except DataError:
            return  # too few people; that enough of them are divided, the next test sees to
        for split in splits:
            check_split(split, hashes, {hashes[path] for path in split.train})
        assert draw_splits(root, "d", wanted, seed, hashes) == splits
    paths = used(splits)
    assert len({contents[path] for path in paths}) == len(paths)
    assert splits.seen.train == splits.unseen.train
    assert not {person_of(path) for path in splits.seen.train} & {person_of(path) for path in splits.unseen.gallery}
    first = {}
    for path in sorted(contents):
        first.setdefault(contents[path], path)
    distinct = by_person(first.values())
    for person, images in by_person(paths).items():
        assert len(distinct[person]) >= least
        assert len(images) == min(cap, len(distinct[person]))
        assert images <= distinct[person]
    assert set(by_person(paths)) == {person for person, images in distinct.items() if len(images) >= least}


def test_a_seed_decides_the_division_and_another_one_makes_another(tmp_path):
    root = write(tmp_path, of_people(12, 8))
    several = [draw(root, 6, 2, 0.25, seed=seed) for seed in range(5)]
    again = [draw(root, 6, 2, 0.25, seed=seed) for seed in range(5)]
    for role in range(2):
        hashes = [splits[role].hash for splits in several]
        assert hashes == [splits[role].hash for splits in again]
        assert len(set(hashes)) == 5
    assert len({frozenset(by_person(splits.unseen.query)) for splits in several}) > 1
    assert len({frozenset(used(splits)) for splits in several}) == 5
    for splits in several:
        assert {len(images) for images in by_person(used(splits)).values()} == {6}
        assert len(by_person(splits.unseen.query)) == 3


def test_the_unseen_people_stay_the_same_where_they_have_a_seed_of_their_own(tmp_path):
    root = write(tmp_path, of_people(12, 8))
    several = [draw(root, 6, 2, 0.25, seed=seed, people_seed=7) for seed in range(5)]
    assert len({frozenset(by_person(splits.unseen.gallery)) for splits in several}) == 1
    assert len({frozenset(used(splits)) for splits in several}) == 5
    other = draw(root, 6, 2, 0.25, seed=0, people_seed=8)
    assert used(other) == used(several[0])
    assert by_person(other.unseen.gallery).keys() != by_person(several[0].unseen.gallery).keys()


def test_people_with_enough_images_stay_also_where_fewer_are_taken(tmp_path):
    root = write(tmp_path, {**of_people(6, 9), "few/1.png": 1_000_000, "few/2.png": 1_000_001})
    splits = draw(root, 3, 5, 0.3)
    assert {person: len(images) for person, images in by_person(used(splits)).items()} == dict.fromkeys(
        (f"p{number:02d}" for number in range(6)), 3
    )


def test_a_copy_under_another_name_or_person_is_left_out(tmp_path):
    contents = of_people(6, 5)
    copies = {"p00/copy.png": contents["p00/00.png"], "p05/zz.png": contents["p01/03.png"], "zoe/1.png": 3003}
    root = write(tmp_path, {**contents, **copies})
    for seed in range(3):
        assert used(draw(root, 99, 1, 0.3, seed=seed)) == set(contents)


def test_too_few_people_are_refused(tmp_path):
    root = write(tmp_path, of_people(4, 3))
    with pytest.raises(DataError, match="0 people with 5 or more images"):
        draw(root, 9, 5, 0.3)


# Checks

QUERY = ("p00/04.png", "p01/04.png", "p02/04.png", "p03/04.png")


@pytest.fixture
def folder(tmp_path):
    """Four people who are searched in and ask."""
    contents = of_people(4, 5)
    gallery = tuple(path for path in contents if path not in QUERY)
    return write(tmp_path / "images", contents), Split("d", "seen", 0, gallery, gallery, QUERY)


def hashes_of(root, split):
    return content_hashes(root, (*split.gallery, *split.query))


def test_a_fair_split_passes(folder):
    root, split = folder
    hashes = hashes_of(root, split)
    check_split(split, hashes, {hashes[path] for path in split.train})


@pytest.mark.parametrize("place", ["p01/00.png", "p00/00.png"])  # of the person who asks, and of another one
def test_a_query_that_is_in_the_gallery_under_another_name_is_refused(folder, place):
    root, split = folder
    (root / place).write_bytes((root / "p01/04.png").read_bytes())
    with pytest.raises(DataError, match=r"split 'd': 1 queries .* in the gallery: p01/04\.png; prepare .* anew"):
        check_split(split, hashes_of(root, split), ())


def test_a_query_that_is_trained_on_under_another_name_in_another_folder_is_refused(folder, tmp_path):
    root, split = folder
    elsewhere = write(tmp_path / "elsewhere", {"somebody/1.png": 5, **{f"x/{i}.png": 1000 * i + 4 for i in range(4)}})
    strangers = Split("cross", "unseen", 0, (), split.gallery, split.query)
    trained = content_hashes(elsewhere, ("somebody/1.png",))
    check_split(strangers, hashes_of(root, split), trained.values())
    trained |= content_hashes(elsewhere, tuple(f"x/{i}.png" for i in range(4)))
    with pytest.raises(DataError, match=r"4 queries .* trained on: p00/04.png, p01/04.png, p02/04.png, \.\.\.;"):
        check_split(strangers, hashes_of(root, split), trained.values())


CONTENTS = st.lists(st.integers(0, 12), min_size=1, max_size=6)


@given(CONTENTS, CONTENTS, CONTENTS)
def test_a_split_is_refused_just_if_a_query_has_the_bytes_of_another_image(gallery, query, trained):
    places = {f"g/{i}.png": content for i, content in enumerate(gallery)}
    asks = {f"g/q{i}.png": content for i, content in enumerate(query)}
    split = Split("d", "unseen", 0, (), tuple(places), tuple(asks))
    hashes = {path: str(content) for path, content in {**places, **asks}.items()}
    in_gallery = [path for path, content in asks.items() if content in gallery]
    in_training = [path for path, content in asks.items() if content in trained]
    if not in_gallery and not in_training:
        check_split(split, hashes, set(map(str, trained)))
        return
    found, where = (in_gallery, "in the gallery") if in_gallery else (in_training, "trained on")
    with pytest.raises(DataError, match=re.escape(f"{len(found)} queries have the same bytes as images {where}")):
        check_split(split, hashes, set(map(str, trained)))


def test_people_who_are_trained_on_are_no_strangers(folder):
    _, train = folder
    strangers = Split("u", "unseen", 0, (), ("a/1.png", "b/1.png"), ("a/2.png",))
    check_strangers(strangers, train)
    for gallery, query, who in (
        (("a/1.png", "p02/9.png"), ("a/2.png",), "1 of them: p02"),
        (("a/1.png",), ("p03/9.png", "p00/9.png"), "2 of them: p00, p03"),
    ):
        with pytest.raises(DataError, match=f"split 'u' .* split 'd' trains on {who};"):
            check_strangers(Split("u", "unseen", 0, (), gallery, query), train)


def test_hashes_are_those_of_the_files(folder):
    root, split = folder
    found = hashes_of(root, split)
    assert found == {
        path: hashlib.sha256((root / path).read_bytes()).hexdigest() for path in (*split.gallery, *split.query)
    }


def test_a_file_that_cannot_be_read_is_named(folder):
    root, split = folder
    (root / "p02/01.png").unlink()
    with pytest.raises(DataError, match=r"cannot read .*images/p02/01\.png: No such file.*prepare the data set anew"):
        hashes_of(root, split)
