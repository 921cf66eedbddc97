"""From photos to faces with vectors: in order, bounded, on several threads, and whatever a photo raises."""

import gc
import threading
import time
import weakref
from functools import partial
from itertools import count

import cv2
import numpy as np
import pytest

from opqn.errors import ConfigError
from opqn.faces import DetectorSettings, FacePipeline, QualityFilter


def running():
    return [thread for thread in threading.enumerate() if thread.name.startswith("opqn-faces")]


def test_a_face_of_a_photo(pipeline, collage):
    photo, centres = collage([4])
    (face,) = pipeline.find(photo)
    assert face.vector is None
    assert np.abs(face.box[:2] + face.box[2:] / 2 - centres[0]).max() < 15
    assert face.landmarks.shape == (5, 2)
    assert face.crop.shape == (112, 112, 3)
    assert face.crop.dtype == np.uint8
    assert face.quality.score > 0.8
    assert pipeline.embed([face.crop]).shape == (1, 128)


def test_the_largest_face_comes_first_and_of_equal_ones_the_central(pipeline, orl):
    photo = np.full((400, 700, 3), 120, np.uint8)
    for person, scale, left in ((1, 1, 10), (1, 1, 300), (1, 1.6, 530)):
        face = cv2.resize(orl(person), None, fx=scale, fy=scale)
        photo[100 : 100 + face.shape[0], left : left + face.shape[1]] = face
    lefts = [face.box[0] for face in pipeline.find(photo)]
    assert len(lefts) == 3
    assert lefts[0] > 500
    assert 280 < lefts[1] < 420
    assert lefts[2] < 120


def test_faces_below_the_limits_are_left_out(detector, embedder, collage):
    photo, _ = collage([1, 4])
    assert len(FacePipeline(detector, embedder, quality=QualityFilter(min_size=20)).find(photo)) == 2
    assert FacePipeline(detector, embedder, quality=QualityFilter(min_size=900)).find(photo) == []
    assert FacePipeline(DetectorSettings(min_face=150), embedder).find(photo) == []


def test_results_are_those_of_one_photo_at_a_time_in_order(pipeline, collage):
    photos = [collage(people, columns=2)[0] for people in ([1], [2, 3], [4, 5, 6, 7], [8])]
    photos.append(np.full((200, 300, 3), 90, np.uint8))
    keys, results = zip(*pipeline.process(enumerate(photos * 3)), strict=True)
    assert keys == tuple(range(15))
    for photo, faces in zip(photos * 3, results, strict=True):
        expected = pipeline.find(photo)
        vectors = pipeline.embed([face.crop for face in expected])
        assert len(faces) == len(expected)
        for face, wanted, vector in zip(faces, expected, vectors, strict=True):
            np.testing.assert_array_equal(face.box, wanted.box)
            np.testing.assert_array_equal(face.crop, wanted.crop)
            np.testing.assert_array_equal(face.vector, vector)
    assert not running()


def test_what_a_photo_raises_is_its_result(pipeline, collage):
    photo, _ = collage([1])

    def fail(error):
        raise error

    photos = [
        ("good", photo),
        ("missing", partial(fail, FileNotFoundError("no such file"))),
        ("grey", np.zeros((9, 9), np.uint8)),
        ("text", "a.jpg"),
        ("memory", partial(fail, MemoryError())),
        ("loaded", lambda: photo),
    ]
    results = dict(pipeline.process(photos))
    assert list(results) == ["good", "missing", "grey", "text", "memory", "loaded"]
    assert isinstance(results["missing"], FileNotFoundError)
    assert isinstance(results["grey"], ConfigError)
    assert isinstance(results["text"], ConfigError)
    assert isinstance(results["memory"], MemoryError)
    np.testing.assert_array_equal(results["good"][0].vector, results["loaded"][0].vector)


def test_no_photos(pipeline):
    assert list(pipeline.process([])) == []


def test_photos_without_end_are_begun_a_few_at_a_time_and_let_go(pipeline):
    begun, alive = [], []

    def load(number):
        begun.append(number)
        photo = np.zeros((40, 40, 3), np.uint8)
        alive.append(weakref.ref(photo))
        return photo

    results = pipeline.process((number, partial(load, number)) for number in count())
    for expected in range(30):
        key, faces = next(results)
        assert (key, faces) == (expected, [])
        assert len(begun) <= expected + 1 + 4 * pipeline.threads
    results.close()
    assert not running()
    gc.collect()
    assert not any(photo() is not None for photo in alive)


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_ends_it_and_no_thread_stays(pipeline, raised):
    def photos():
        for number in range(20):
            yield number, np.zeros((40, 40, 3), np.uint8)
        raise raised

    threads = cv2.getNumThreads()
    seen = []
    results = (seen.append(key) for key, _ in pipeline.process(photos()))
    with pytest.raises(raised):
        list(results)
    assert seen == list(range(len(seen)))
    assert not running()
    assert cv2.getNumThreads() == threads


def test_an_interrupt_inside_a_photo_is_not_taken_for_its_result(pipeline):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(pipeline.process([(0, interrupted)]))
    assert not running()


def test_photos_are_worked_on_at_the_same_time(pipeline):
    meeting = threading.Barrier(2, timeout=20)

    def load():
        meeting.wait()
        return np.zeros((40, 40, 3), np.uint8)

    assert [faces for _, faces in pipeline.process([(0, load), (1, load)])] == [[], []]


def test_opencv_rests_while_photos_are_processed_even_if_twice_at_once(pipeline):
    before = cv2.getNumThreads()
    cv2.setNumThreads(2)
    try:
        black = [(number, np.zeros((40, 40, 3), np.uint8)) for number in range(12)]
        first, second = pipeline.process(black), pipeline.process(black)
        next(first)
        next(second)
        assert cv2.getNumThreads() == 1
        first.close()
        assert cv2.getNumThreads() == 1
        second.close()
        assert cv2.getNumThreads() == 2
    finally:
        cv2.setNumThreads(before)


def test_negative_threads_are_refused():
    with pytest.raises(ConfigError, match="threads"):
        FacePipeline(threads=-1)


def test_the_same_pipeline_may_process_from_several_threads(pipeline, collage):
    photo, _ = collage([1])
    expected = pipeline.find(photo)[0].crop
    seen = []

    def work():
        for _, faces in pipeline.process([(number, photo) for number in range(4)]):
            seen.append(np.array_equal(faces[0].crop, expected))
            time.sleep(0)

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert seen == [True] * 12
