"""Each signal of quality falls when the picture gets worse in its way."""

import json

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opqn.errors import ConfigError
from opqn.faces import TEMPLATE, FaceQuality, QualityFilter, head_pose, sharpness
from opqn.faces.quality import _HEAD

GOOD = FaceQuality(size=80, eye_distance=35, score=0.9, sharpness=0.4, yaw=-20, pitch=5, roll=10)


def test_blur_and_enlarging_lower_sharpness(pipeline, orl):
    for person in (1, 5, 9):
        photo = cv2.copyMakeBorder(orl(person), *[60] * 4, cv2.BORDER_REPLICATE)
        (face,) = pipeline.find(photo)
        blurred = [sharpness(cv2.GaussianBlur(face.crop, (0, 0), sigma)) for sigma in (0.8, 1.5, 3, 6)]
        assert np.all(np.diff([face.quality.sharpness, *blurred]) < 0)
        small = [cv2.resize(cv2.resize(face.crop, (s, s), interpolation=cv2.INTER_AREA), (112, 112)) for s in (56, 28)]
        assert np.all(np.diff([face.quality.sharpness, *map(sharpness, small)]) < 0)


def test_sharpness_hardly_depends_on_light_and_contrast(pipeline, orl):
    (face,) = pipeline.find(cv2.copyMakeBorder(orl(1), *[60] * 4, cv2.BORDER_REPLICATE))
    dim = (face.crop * 0.5 + 20).astype(np.uint8)
    assert sharpness(dim) == pytest.approx(sharpness(face.crop), rel=0.05)


def test_an_even_surface_has_no_sharpness():
    assert sharpness(np.full((112, 112, 3), 90, np.uint8)) == 0


def test_size_and_eye_distance_are_measured_in_the_photo(pipeline, orl):
    photo = cv2.copyMakeBorder(orl(1), *[60] * 4, cv2.BORDER_REPLICATE)
    (face,) = pipeline.find(photo)
    (large,) = pipeline.find(cv2.resize(photo, None, fx=5, fy=5))
    assert large.quality.size == pytest.approx(5 * face.quality.size, rel=0.1)
    assert large.quality.eye_distance == pytest.approx(5 * face.quality.eye_distance, rel=0.1)


def rotation(yaw, pitch, roll):
    """The head's axes (right, down, away) as the camera sees them, from turns about one axis after the other."""
    a, b, c = np.radians([pitch, yaw, roll])
    nod = [[1, 0, 0], [0, np.cos(a), np.sin(a)], [0, -np.sin(a), np.cos(a)]]
    turn = [[np.cos(b), 0, -np.sin(b)], [0, 1, 0], [np.sin(b), 0, np.cos(b)]]
    tilt = [[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]]
    return np.array(tilt) @ np.array(turn) @ np.array(nod)


@given(st.floats(-80, 80), st.floats(-60, 60), st.floats(-179, 179), st.floats(0.1, 30), st.floats(-900, 900))
def test_pose_of_an_average_head_in_space_is_recovered(yaw, pitch, roll, scale, shift):
    seen = scale * (_HEAD @ rotation(yaw, pitch, roll).T)[:, :2] + [shift, -shift]
    np.testing.assert_allclose(head_pose(seen), [yaw, pitch, roll], atol=1e-4)


def test_signs_of_the_pose():
    nose = np.zeros((5, 2))
    nose[2] = [4, 0]
    assert head_pose(TEMPLATE + nose)[0] > 5  # the nose to the viewer's right
    assert head_pose(TEMPLATE - nose)[0] < -5
    assert head_pose(TEMPLATE - nose[:, ::-1])[1] > 5  # the nose up
    clockwise = np.column_stack([-TEMPLATE[:, 1], TEMPLATE[:, 0]])
    assert head_pose(clockwise)[2] == pytest.approx(90, abs=1)
    np.testing.assert_allclose(head_pose(TEMPLATE), 0, atol=1)


def test_a_mirrored_photo_has_the_opposite_yaw_and_roll(pipeline, orl):
    poses = []
    for person in (1, 2, 3, 9):
        for picture in (1, 4, 7):
            photo = cv2.copyMakeBorder(orl(person, picture), *[60] * 4, cv2.BORDER_REPLICATE)
            for side in (photo, np.ascontiguousarray(photo[:, ::-1])):
                (face,) = pipeline.find(side)
                poses.append((face.quality.yaw, face.quality.roll))
    here, there = np.array(poses).reshape(-1, 2, 2).transpose(1, 2, 0)  # (2 sides, 2 angles, photos)
    assert np.ptp(here[0]) > 20  # people of this set look to either side
    assert np.corrcoef(here[0], there[0])[0, 1] < -0.7
    assert np.abs(here + there).max() < 30  # as rough as it says
    assert np.abs(here + there)[1].max() < 12


def test_roll_follows_the_picture(pipeline, orl):
    photo = cv2.copyMakeBorder(orl(1), *[80] * 4, cv2.BORDER_REPLICATE)
    high, wide = photo.shape[:2]
    upright = pipeline.find(photo)[0].quality.roll
    for angle in (-30, 20, 90, 100, 180):
        matrix = cv2.getRotationMatrix2D((wide / 2, high / 2), -angle, 1)
        (face,) = pipeline.find(cv2.warpAffine(photo, matrix, (wide, high), borderMode=cv2.BORDER_REPLICATE))
        assert abs((face.quality.roll - upright - angle + 180) % 360 - 180) < 10


def test_a_filter_names_the_limit_that_is_broken():
    assert QualityFilter().reason(GOOD) is None
    exact = QualityFilter(min_size=80, min_eye_distance=35, min_score=0.9, min_sharpness=0.4, max_yaw=20, max_roll=10)
    assert exact.reason(GOOD) is None
    assert QualityFilter(min_size=81).reason(GOOD) == "size 80 is below 81"
    assert QualityFilter(min_eye_distance=36).reason(GOOD) == "eye distance 35 is below 36"
    assert QualityFilter(min_score=0.95).reason(GOOD) == "score 0.9 is below 0.95"
    assert QualityFilter(min_sharpness=0.5).reason(GOOD) == "sharpness 0.4 is below 0.5"
    assert QualityFilter(max_yaw=15).reason(GOOD) == "yaw of -20 degrees is beyond 15"
    assert QualityFilter(max_pitch=4).reason(GOOD) == "pitch of 5 degrees is beyond 4"
    assert QualityFilter(max_roll=9).reason(GOOD) == "roll of 10 degrees is beyond 9"


def test_a_signal_that_is_no_number_breaks_every_limit():
    broken = FaceQuality(*[float("nan")] * 7)
    assert QualityFilter().reason(broken) is None
    assert QualityFilter(min_size=1).reason(broken)
    assert QualityFilter(max_yaw=90).reason(broken)


def test_limits_are_checked():
    with pytest.raises(ConfigError, match="did you mean 'min_size'"):
        QualityFilter(min_sizes=3)
    with pytest.raises(ConfigError, match="max_yaw"):
        QualityFilter(max_yaw=-1)


def test_quality_becomes_json():
    assert json.loads(json.dumps(GOOD.to_dict())) == GOOD.to_dict()
