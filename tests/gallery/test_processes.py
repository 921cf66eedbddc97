import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from stand_ins import Averages, picture, write_pictures

from opqn.gallery import Gallery, GalleryBusyError

HERE = Path(__file__).parent
PICTURES = 5
"""In each folder that the killed processes make."""
START = (
    f"import sys; sys.path.insert(0, {str(HERE)!r})\n"
    """
import os, random
from pathlib import Path
import numpy as np
from stand_ins import Averages, picture
from opqn.gallery import Gallery
gallery = Gallery.open(sys.argv[1], Averages())
def say(*words):  # in one write, so that a kill leaves no half of a line, also where output is not buffered
    sys.stdout.write(" ".join(map(str, words)) + "\\n")
    sys.stdout.flush()
"""
)
# Adds codes, folders and pictures, removes people, and says what is done only when it is.
CHANGES = (
    START
    + """
photos, seed = Path(sys.argv[2]), int(sys.argv[3])
rng = random.Random(seed)
say("ready")
for step in range(10_000):
    what, name = rng.choice(["codes", "codes", "remove", "rescan", "add"]), f"{seed}-{step}"
    if what == "codes":
        count = rng.choice([1, 50, 3000])
        say("begin", name, count)
        gallery.add_codes(np.random.default_rng(step).integers(0, 64, (count, 8), dtype=np.uint8), name)
        say("added", name, count)
    elif what == "remove":
        people = [person.name for person, _ in gallery.people() if person.name.startswith("p") is False]
        if people:
            chosen = rng.choice(people)
            say("leaving", chosen)
            gallery.remove(person=chosen)
            say("removed", chosen)
    elif what == "rescan":
        folder = photos / name
        folder.mkdir()
        for number in range(5):
            picture(rng.getrandbits(30), number).save(folder / f"{number}.png")
        say("begin", name, 5)
        gallery.add_folder(photos)
        say("added", name, 5)
    else:
        say("begin", name, 1)
        gallery.add(picture(rng.getrandbits(30)), name)
        say("added", name, 1)
"""
)
ONCE_ONLY = START + "gallery.add(picture(int(sys.argv[2])), 'x'); say('done')"


def run(script, *arguments, **settings):
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings)


def kill_and_check(folder, photos, expected, seed):
    """Let a process change the gallery, kill it somewhere, and see that all it said is so; update ``expected``."""
    process = run(CHANGES, folder, photos, seed)
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    time.sleep(random.Random(seed).random() * 0.4)
    process.send_signal(signal.SIGKILL)
    with process:  # communicate() would not see what readline() has read ahead
        said, complaints = process.stdout.read(), process.stderr.read()
    assert complaints == ""
    unsure = {}
    for line in said.splitlines():
        what, name, *count = line.split()
        if what == "begin":
            unsure = {name: (0, int(count[0]))}
        elif what == "added":
            expected[name], unsure = int(count[0]), {}
        elif what == "leaving":  # maybe one of a folder that a killed scan left out and a later one added
            assert name in expected or (photos / name).exists()
            unsure = {name: (0, expected.get(name, PICTURES))}
        elif what == "removed":
            unsure = {}
            expected.pop(name, None)
    with Gallery.open(folder, Averages()) as gallery:
        report = gallery.verify()
        assert report.problems == ()
        there = {person.name: count for person, count in gallery.people()}
        assert report.num_faces == sum(there.values())
        for name in there.keys() - expected.keys():  # a folder that a killed scan left out, added by a later one
            assert name in unsure or (photos / name).exists()
            expected[name] = there[name]
        for name, (before, after) in unsure.items():  # all of what was under way, or nothing
            is_folder = (photos / name).exists()
            assert there.get(name, 0) in ((before, after) if not is_folder else range(after + 1))
            expected[name] = there.get(name, 0)
        for name, count in expected.items():  # of a folder that a killed scan was in, a later one adds the rest
            if (photos / name).exists() and count <= there.get(name, 0) <= PICTURES:
                expected[name] = there.get(name, 0)
        assert there == {name: count for name, count in expected.items() if count}, said
    return there


@pytest.mark.slow
def test_killed_a_hundred_times_nothing_is_lost_or_half_done(tmp_path):
    Gallery.create(tmp_path / "g", Averages()).close()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/p").mkdir()
    picture(1).save(tmp_path / "photos/p/1.png")
    expected = {}
    with Gallery.open(tmp_path / "g", Averages()) as gallery:
        gallery.add_folder(tmp_path / "photos")
        expected = {"p": 1}
    for seed in range(100):
        expected = kill_and_check(tmp_path / "g", tmp_path / "photos", expected, seed)
    with Gallery.open(tmp_path / "g", Averages()) as gallery:
        gallery.verify(repair=True)
        assert gallery.verify().pending == ()
        gallery.add_folder(tmp_path / "photos")  # what a killed scan left out is added now, what was removed is not
        assert gallery.verify().problems == ()
    assert Counter(expected).total() > 1000


def test_a_second_writer_is_told(filled):
    with filled._writing():
        process = run(ONCE_ONLY, filled.folder, 50)
        complaints = process.communicate()[1]
        assert process.returncode
        assert "is being changed by another process; try again when it is done" in complaints
        with Gallery.open(filled.folder, Averages()) as other, pytest.raises(GalleryBusyError):
            other.add(picture(60))
        assert other is not None
    assert run(ONCE_ONLY, filled.folder, 50).communicate()[0] == "done\n"
    assert len(filled) == 19


def test_others_read_while_one_writes(gallery, tmp_path):
    photos = write_pictures(tmp_path / "many", 60, 5)
    process = run(
        START
        + "say('ready')\nfor n in range(3):\n gallery.add_folder(sys.argv[2]); gallery.remove(person=f'Person {n}')",
        gallery.folder,
        photos,
    )
    assert process.stdout.readline() == "ready\n"
    sizes = []
    while process.poll() is None:
        (result,) = gallery.search(picture(30), k=400)
        sizes.append(len(result.hits))
        people = Counter(hit.face.person.name for hit in result.hits)
        assert set(people) <= {f"Person {number}" for number in range(60)}
    assert process.communicate()[1] == ""
    assert len(gallery.search(picture(30), k=400)[0].hits) == len(gallery) == 300 - 15
    assert gallery.verify().problems == ()
    assert min(sizes) < 300


def test_ctrl_c_of_a_process_leaves_a_whole_gallery(gallery, tmp_path):
    photos = write_pictures(tmp_path / "many", 100, 10)
    process = run(START + "say('ready'); gallery.add_folder(sys.argv[2])", gallery.folder, photos)
    assert process.stdout.readline() == "ready\n"
    while len(gallery) < 64 and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate()[1] or len(gallery) == 1000
    assert len(gallery) >= 64
    assert gallery.verify().problems == ()
    gallery.add_folder(photos)
    assert len(gallery) == 1000
