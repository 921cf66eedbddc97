"""Alignment: the similarity transform is the least-squares one, and pixels go where landmarks go."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opqn.errors import ConfigError
from opqn.faces import CROP_SIDE, TEMPLATE, align, similarity


def transform(scale, angle, shift):
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.column_stack([scale * turn, shift])


def apply(matrix, points):
    return points @ matrix[:, :2].T + matrix[:, 2]


def umeyama(source, target):
    """Umeyama's solution by singular values, as his paper writes it (equations 38 to 43)."""
    x, y = source - source.mean(0), target - target.mean(0)
    u, d, v = np.linalg.svd(y.T @ x / len(x))
    s = np.diag([1, np.sign(np.linalg.det(u) * np.linalg.det(v))])
    turn = u @ s @ v
    scale = np.trace(np.diag(d) @ s) / x.var(0).sum()
    return np.column_stack([scale * turn, target.mean(0) - scale * turn @ source.mean(0)])


numbers = st.floats(-500, 500)


@given(st.floats(0.01, 50), st.floats(-np.pi, np.pi), numbers, numbers)
def test_a_similarity_transform_is_recovered(scale, angle, right, down):
    matrix = transform(scale, angle, [right, down])
    np.testing.assert_allclose(similarity(TEMPLATE, apply(matrix, TEMPLATE)), matrix, rtol=1e-6, atol=1e-6)


@given(st.integers(0, 2**32 - 1), st.integers(2, 9))
def test_noisy_points_get_umeyamas_solution(seed, count):
    source, target = np.random.default_rng(seed).normal(0, 30, (2, count, 2))
    if np.linalg.det((target - target.mean(0)).T @ (source - source.mean(0))) > 0:  # else his includes a mirror
        np.testing.assert_allclose(similarity(source, target), umeyama(source, target), rtol=1e-6, atol=1e-6)


@given(st.integers(0, 2**32 - 1))
def test_nothing_near_it_fits_better(seed):
    rng = np.random.default_rng(seed)
    source, target = rng.normal(0, 30, (2, 5, 2))
    best = similarity(source, target)
    error = np.sum((apply(best, source) - target) ** 2)
    for scale, angle in ((1.01, 0), (0.99, 0), (1, 0.01), (1, -0.01)):
        other = transform(scale, angle, [0, 0])[:, :2] @ best[:, :2]
        shift = target.mean(0) - other @ source.mean(0)
        assert np.sum((apply(np.column_stack([other, shift]), source) - target) ** 2) >= error


def test_a_mirror_image_is_not_mirrored_back():
    matrix = similarity(TEMPLATE * [-1, 1], TEMPLATE)
    assert np.linalg.det(matrix[:, :2]) > 0


@pytest.mark.parametrize(
    ("source", "target", "match"),
    [
        (np.ones((5, 2)), TEMPLATE, "coincide"),
        (TEMPLATE * np.nan, TEMPLATE, "finite"),
        (TEMPLATE[:4], TEMPLATE, "shapes"),
        (np.zeros((0, 2)), np.zeros((0, 2)), "shapes"),
        (np.zeros((5, 3)), np.zeros((5, 3)), "shapes"),
    ],
)
def test_impossible_points_are_refused(source, target, match):
    with pytest.raises(ConfigError, match=match):
        similarity(source, target)


@pytest.mark.parametrize("scale", [0.8, 1, 1.7, 2.6, 7.3])
@pytest.mark.parametrize("angle", [0, 0.4, -2.0])
def test_dots_on_landmarks_land_on_the_template(scale, angle):
    place = transform(scale, angle, [0, 0])
    corners = apply(place, np.array([[0, 0], [0, 112], [112, 0], [112, 112]]))
    place[:, 2] = 20 - corners.min(0)
    wide, high = np.ceil(np.ptp(corners, axis=0) + 40).astype(int)
    landmarks = apply(place, TEMPLATE)
    down, across = np.mgrid[:high, :wide]
    dots = sum(
        np.exp(-((across - x) ** 2 + (down - y) ** 2) / (2 * (max(1.5 * scale, 1.5)) ** 2)) for x, y in landmarks
    )
    photo = np.repeat((255 * dots.clip(0, 1)).astype(np.uint8)[:, :, None], 3, axis=2)
    crop = align(photo, landmarks)[:, :, 0].astype(float)
    assert crop.shape == (CROP_SIDE, CROP_SIDE)
    for x, y in TEMPLATE:
        left, top = int(x) - 5, int(y) - 5
        part = crop[top : top + 11, left : left + 11]
        rows, columns = np.mgrid[top : top + 11, left : left + 11]
        assert abs((part * columns).sum() / part.sum() - x) < 0.35
        assert abs((part * rows).sum() / part.sum() - y) < 0.35


def test_fine_patterns_of_a_large_face_average_out():
    photo = np.zeros((2240, 2240, 3), np.uint8)
    photo[::2] = 255  # lines of one pixel, which every twentieth row alone would turn black or white
    crop = align(photo, TEMPLATE * 20)
    assert np.abs(crop[2:-2, 2:-2].astype(int) - 127).max() <= 8


def test_outside_of_the_photo_is_black_even_if_all_of_it_is_outside():
    photo = np.full((50, 60, 3), 200, np.uint8)
    for shift in ([5000, 0], [0, -5000]):
        for scale in (0.5, 1, 9):
            assert not align(photo, TEMPLATE * scale + shift).any()


def test_the_crop_is_upright_whichever_way_the_face_lies():
    photo = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (112, 112, 3), np.uint8), (0, 0), 3)
    for turn, points in ((2, [111, 111] - TEMPLATE), (3, np.column_stack([111 - TEMPLATE[:, 1], TEMPLATE[:, 0]]))):
        crop = align(np.ascontiguousarray(np.rot90(photo, turn)), points)
        assert np.abs(crop[2:-2, 2:-2].astype(int) - photo[2:-2, 2:-2]).max() <= 2
