"""Faces are found wherever they lie in a photo, at every size and in every direction, and nothing crashes."""

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opqn.errors import ConfigError, CorruptFileError, DataError
from opqn.faces import DetectorSettings, FaceDetector, head_pose
from opqn.faces.detect import _turn_back
from opqn.faces.weights import YUNET, load_weights


def all_found(found, centres, within):
    """Whether every centre has exactly one box around it, and there is no other box."""
    middles = found.boxes[:, :2] + found.boxes[:, 2:] / 2
    away = np.linalg.norm(middles[:, None] - centres[None], axis=2)  # (found, centres)
    return len(middles) == len(centres) and (away.min(0) < within).all() and (away.min(1) < within).all()


def test_one_face(detector, collage):
    photo, centres = collage([1])
    found = detector.detect(photo)
    assert all_found(found, centres, 15)
    assert found.boxes.shape == (1, 4)
    assert found.landmarks.shape == (1, 5, 2)
    assert {part.dtype for part in found} == {np.dtype(np.float32)}
    left, right, nose, mouth_left, mouth_right = found.landmarks[0]
    assert left[0] < nose[0] < right[0]
    assert mouth_left[0] < mouth_right[0]
    assert max(left[1], right[1]) < nose[1] < min(mouth_left[1], mouth_right[1])
    assert 0.8 < found.scores[0] <= 1


def test_a_hundred_faces(detector, collage):
    photo, centres = collage([1 + place % 40 for place in range(100)], columns=10)
    found = detector.detect(photo)
    assert all_found(found, centres, 25)
    assert (np.diff(found.scores) <= 0).all()
    assert len(FaceDetector(DetectorSettings(max_faces=7)).detect(photo).scores) == 7


def test_no_face(detector):
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    for photo in (np.zeros((300, 400, 3), np.uint8), noise, cv2.GaussianBlur(noise, (0, 0), 6)):
        found = detector.detect(photo)
        assert [part.shape for part in found] == [(0, 4), (0, 5, 2), (0,)]


@pytest.mark.parametrize("scale", [0.5, 1, 2, 6])
def test_boxes_and_landmarks_scale_with_the_photo(detector, collage, scale):
    photo, centres = collage([1, 4, 7, 9], columns=2)
    before = detector.detect(photo)
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    after = detector.detect(cv2.resize(photo, None, fx=scale, fy=scale, interpolation=way))
    assert all_found(after, centres * scale, 15 * scale)
    for box, landmarks in zip(before.boxes, before.landmarks, strict=True):
        nearest = np.linalg.norm(after.boxes[:, :2] / scale - box[:2], axis=1).argmin()
        assert np.abs(after.landmarks[nearest] / scale - landmarks).max() < 0.12 * box[3]


@pytest.mark.slow
def test_small_and_large_faces_of_a_photo_of_24_megapixels(detector, orl):
    photo = np.full((4000, 6000, 3), 120, np.uint8)
    centres = []
    for person, side, left, top in ((1, 90, 300, 300), (4, 90, 5500, 3700), (7, 200, 3000, 200), (9, 2400, 1500, 1000)):
        face = cv2.resize(orl(person), (side, round(side * 112 / 92)), interpolation=cv2.INTER_AREA)
        photo[top : top + face.shape[0], left : left + side] = face
        centres.append((left + side / 2, top + face.shape[0] / 2))
    found = detector.detect(photo)
    middles = found.boxes[:, :2] + found.boxes[:, 2:] / 2
    away = np.linalg.norm(middles[:, None] - np.array(centres)[None], axis=2).min(0)
    assert (away < [15, 15, 50, 500]).all()
    assert len(middles) == 4


@pytest.mark.parametrize("turn", [1, 2, 3])
def test_a_photo_that_nobody_turned_upright(detector, collage, turn):
    photo, centres = collage([1, 4, 7, 9], columns=2, scale=1.5)
    turned = np.ascontiguousarray(np.rot90(photo, turn))
    high, wide = turned.shape[:2]
    x, y = centres.T
    places = {1: (y, high - x), 2: (wide - x, high - y), 3: (wide - y, x)}[turn]
    found = detector.detect(turned)
    assert all_found(found, np.column_stack(places), 25)
    for landmarks in found.landmarks:
        assert abs((head_pose(landmarks)[2] + 90 * turn + 180) % 360 - 180) < 20


@pytest.mark.parametrize("angle", [-25, 15, 25])
def test_landmarks_follow_a_tilted_head(detector, collage, angle):
    photo, _ = collage([4])
    photo = cv2.copyMakeBorder(photo, *[60] * 4, cv2.BORDER_REFLECT)
    high, wide = photo.shape[:2]
    matrix = cv2.getRotationMatrix2D((wide / 2, high / 2), -angle, 1)
    tilted = cv2.warpAffine(photo, matrix, (wide, high), borderMode=cv2.BORDER_REFLECT)
    before, after = (detector.detect(image).landmarks[0] for image in (photo, tilted))
    np.testing.assert_allclose(
        after, before @ matrix[:, :2].T + matrix[:, 2], atol=0.12 * np.linalg.norm(before[1] - before[0])
    )


def test_turned_faces_are_only_looked_for_if_wanted(collage):
    photo = np.ascontiguousarray(np.rot90(collage([1, 4], columns=2, scale=1.5)[0]))
    found = FaceDetector(DetectorSettings(try_turned=False)).detect(photo)
    assert len(found.scores) < 2


@pytest.mark.parametrize("turn", [0, 1, 2, 3])
@pytest.mark.parametrize("scale", [0.6, 1, 8])
def test_a_crop_that_is_all_face(detector, orl, turn, scale):
    for person in (1, 4, 9):
        tight = cv2.resize(orl(person)[12:104, 8:84], None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
        found = detector.detect(np.ascontiguousarray(np.rot90(tight, turn)))
        assert len(found.scores) == 1
        assert found.boxes[0, 2:].min() > 0.5 * min(tight.shape[:2])
        assert abs((head_pose(found.landmarks[0])[2] + 90 * turn + 180) % 360 - 180) < 25


@given(
    st.one_of(
        st.tuples(st.integers(1, 40), st.integers(1, 40)),
        st.sampled_from([(1, 5000), (5000, 1), (8, 6000), (7, 7), (8, 8), (31, 33), (1, 1)]),
    ),
    st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_no_size_crashes(detector, size, noisy):
    photo = np.random.default_rng(0).integers(0, 256 if noisy else 1, (*size, 3), np.uint8)
    found = detector.detect(photo)
    assert np.isfinite(found.boxes).all()
    assert len(found.boxes) == len(found.landmarks) == len(found.scores)


def test_memory_order_does_not_matter(detector, collage):
    photo, _ = collage([1, 4])
    expected = detector.detect(photo)
    for other in (np.asfortranarray(photo), photo[:, ::-1][:, ::-1], np.repeat(photo, 2, axis=1)[:, ::2]):
        for part, wanted in zip(detector.detect(other), expected, strict=True):
            np.testing.assert_array_equal(part, wanted)


def test_the_photo_stays_as_it_is(detector, collage):
    photo, _ = collage([1])
    before = photo.copy()
    photo.flags.writeable = False
    detector.detect(photo)
    np.testing.assert_array_equal(photo, before)


def test_smaller_faces_than_wanted_are_left_out(collage):
    photo, _ = collage([1, 4, 9])
    assert len(FaceDetector(DetectorSettings(min_face=50)).detect(photo).scores) == 3
    assert len(FaceDetector(DetectorSettings(min_face=150)).detect(photo).scores) == 0


def test_many_threads_get_what_one_gets(detector, collage):
    photos = [collage([person], scale=scale)[0] for person in (1, 4, 7) for scale in (1, 1.3, 2)] * 4
    alone = [detector.detect(photo) for photo in photos]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(detector.detect, photos))
    for one, other in zip(alone, together, strict=True):
        for part, wanted in zip(one, other, strict=True):
            np.testing.assert_array_equal(part, wanted)


@pytest.mark.parametrize("turn", [0, 1, 2, 3])
def test_turning_back_undoes_turning(turn):
    marks = np.zeros((30, 50), int)
    points = [(7, 3), (12, 3), (9, 5), (8, 8), (11, 8)]
    for number, (x, y) in enumerate(points, 1):
        marks[y, x] = number
    turned = np.rot90(marks, turn)
    there = [np.argwhere(turned == number)[0][::-1] + 0.5 for number in range(1, 6)]
    low, high = np.min(there, 0), np.max(there, 0)
    back = _turn_back(np.concatenate([low, high - low, np.ravel(there), [0.9]])[None], 50, 30, turn)[0]
    np.testing.assert_allclose(back[4:14].reshape(5, 2), np.array(points) + 0.5)
    np.testing.assert_allclose(back[[0, 1, 2, 3, 14]], [7.5, 3.5, 5, 5, 0.9])


@pytest.mark.parametrize(
    "photo",
    [
        None,
        "a.jpg",
        np.zeros((9, 9), np.uint8),
        np.zeros((9, 9, 4), np.uint8),
        np.zeros((9, 9, 3)),
        np.zeros((0, 9, 3), np.uint8),
    ],
)
def test_what_is_no_photo_is_refused(detector, photo):
    with pytest.raises(ConfigError, match="a photo"):
        detector.detect(photo)


@pytest.mark.parametrize(
    "values", [{"score_threshold": 0}, {"score_threshold": 1}, {"max_faces": 0}, {"min_face": 2}, {"max_side": 100}]
)
def test_wrong_settings_are_refused(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        DetectorSettings(**values)


def test_weights_of_your_own(tmp_path, collage, detector):
    copy = tmp_path / "own.onnx"
    copy.write_bytes(load_weights(YUNET).data)
    photo, _ = collage([1])
    own = FaceDetector(weights=copy, sha256=YUNET.sha256)
    np.testing.assert_array_equal(own.detect(photo).boxes, detector.detect(photo).boxes)
    with pytest.raises(CorruptFileError, match="SHA-256"):
        FaceDetector(weights=copy, sha256="0" * 64)
    with pytest.raises(ConfigError, match="give weights too"):
        FaceDetector(sha256=YUNET.sha256)
    with pytest.raises(DataError, match="No such file"):
        FaceDetector(weights=tmp_path / "none.onnx")
    copy.write_bytes(b"no network")
    with pytest.raises(CorruptFileError, match="not an ONNX model"):
        FaceDetector(weights=copy)


def test_opencv_says_nothing_and_its_log_level_is_left_alone(capfd):
    level = cv2.utils.logging.getLogLevel()
    FaceDetector()
    assert cv2.utils.logging.getLogLevel() == level
    assert capfd.readouterr() == ("", "")
