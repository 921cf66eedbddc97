"""The rasteriser, against one that asks every pixel about every triangle."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from opqn.data.synthetic.raster import rasterise

HEIGHT, WIDTH = 13, 17


def weights_of(corners, x, y):
    matrix = np.vstack([corners.T, np.ones(3)])
    return np.linalg.solve(matrix, (x, y, 1.0))


def slow(places, nearness, faces):
    """Return the nearest triangle of each pixel, and how surely it is that one."""
    best = np.full((HEIGHT, WIDTH), -1)
    margin = np.full((HEIGHT, WIDTH), np.inf)
    depth = np.full((HEIGHT, WIDTH), -np.inf)
    for number, face in enumerate(faces):
        one, two, three = places[face].astype(np.float64)
        area = (three[0] - one[0]) * (two[1] - one[1]) - (two[0] - one[0]) * (three[1] - one[1])
        if area < 1e-3:
            continue
        for row in range(HEIGHT):
            for column in range(WIDTH):
                weights = weights_of(places[face].astype(np.float64), column + 0.5, row + 0.5)
                margin[row, column] = min(margin[row, column], np.abs(weights).min())
                if weights.min() < 0:
                    continue
                near = weights @ nearness[face]
                margin[row, column] = min(margin[row, column], abs(near - depth[row, column]))
                if near > depth[row, column]:
                    depth[row, column], best[row, column] = near, number
    return best, margin


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 7))
def test_it_finds_what_every_pixel_shows(seed, count):
    rng = np.random.default_rng(seed)
    places = (rng.uniform(-0.3, 1.3, (3 * count, 2)) * (WIDTH, HEIGHT)).astype(np.float32)
    nearness = rng.normal(size=3 * count).astype(np.float32)
    faces = np.arange(3 * count).reshape(-1, 3)
    seen = rasterise(places, nearness, faces, (HEIGHT, WIDTH))
    found = np.full(HEIGHT * WIDTH, -1)
    found[seen.pixels] = seen.faces
    wanted, margin = slow(places, nearness, faces)
    sure = margin > 1e-3
    assert (found.reshape(HEIGHT, WIDTH) == wanted)[sure].all()
    assert len(np.unique(seen.pixels)) == len(seen.pixels)


def test_values_are_spread_linearly():
    places = np.array([[0, 0], [0, 20], [30, 0]], np.float32)
    faces = np.array([[0, 1, 2]])
    seen = rasterise(places, np.zeros(3, np.float32), faces, (20, 30))
    x, y = seen.interpolate(places)
    assert np.allclose(x, seen.pixels % 30 + 0.5, atol=1e-4)
    assert np.allclose(y, seen.pixels // 30 + 0.5, atol=1e-4)
    assert abs(len(x) - 300) < 20  # half of the rectangle


def test_neighbours_leave_no_gap_and_backs_are_left_out():
    side = np.linspace(0, 24, 8)
    x, y = np.meshgrid(side, side)
    places = np.column_stack([x.ravel(), y.ravel()]).astype(np.float32)
    corner = (np.arange(7)[:, None] * 8 + np.arange(7)).ravel()
    quads = np.column_stack([corner, corner + 8, corner + 9, corner + 1])
    faces = np.concatenate([quads[:, :3], quads[:, [0, 2, 3]]])
    seen = rasterise(places, np.zeros(64, np.float32), faces, (24, 24))
    assert sorted(seen.pixels) == list(range(576))
    assert not len(rasterise(places, np.zeros(64, np.float32), faces[:, ::-1], (24, 24)).pixels)


def test_nothing_in_view_is_nothing_seen():
    places = np.array([[-9, -9], [-9, -5], [-5, -9]], np.float32)
    for faces in (np.array([[0, 1, 2]]), np.zeros((0, 3), np.int64)):
        assert not len(rasterise(places, np.zeros(3, np.float32), faces, (8, 8)).pixels)
