"""Which triangle of a mesh is seen in each pixel: a z-buffer in NumPy, without a loop over triangles."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

_DEPTH_STEPS: Final = 1 << 30


class Fragments(NamedTuple):
    """What is seen, a row for each pixel that shows the mesh.

    Attributes:
        pixels: (P,) int64, row * width + column.
        corners: (P, 3) int64, the vertices of the triangle seen there.
        weights: (P, 3) float32, of the corners; their sum is 1.
        faces: (P,) int64, the triangle.
    """

    pixels: NDArray[np.int64]
    corners: NDArray[np.int64]
    weights: NDArray[np.float32]
    faces: NDArray[np.int64]

    def interpolate(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Spread values of vertices, (V, C) float32, over the pixels: (C, P) float32."""
        spread = values[self.corners[:, 0]] * self.weights[:, :1]
        spread += values[self.corners[:, 1]] * self.weights[:, 1:2]
        spread += values[self.corners[:, 2]] * self.weights[:, 2:]
        return np.ascontiguousarray(spread.T)


def rasterise(
    places: NDArray[np.float32], nearness: NDArray[np.float32], faces: NDArray[np.int64], shape: tuple[int, int]
) -> Fragments:
    """Find what is seen of a mesh. Triangles that turn their back are left out.

    Every triangle covers in every row of pixels one run of columns, whose ends follow from its three edges, so only
    pixels inside of triangles are ever looked at.

    Args:
        places: (V, 2) float32, x to the right and y downward in pixels; the first pixel's centre is at 0.5, 0.5.
        nearness: (V,) float32, larger is nearer to the viewer.
        faces: (T, 3), counter-clockwise as the viewer sees their front.
        shape: height and width in pixels.
    """
    height, width = shape
    x, y = places[:, 0][faces], places[:, 1][faces]  # (T, 3)
    area = (x[:, 2] - x[:, 0]) * (y[:, 1] - y[:, 0]) - (x[:, 1] - x[:, 0]) * (y[:, 2] - y[:, 0])
    top = np.ceil(y.min(1) - 0.5).clip(0, height).astype(np.int64)
    rows = np.floor(y.max(1) - 0.5).clip(-1, height - 1).astype(np.int64) - top + 1
    kept = np.flatnonzero((area > 1e-6) & (rows > 0) & (x.max(1) > 0) & (x.min(1) < width))
    x, y, area, top, rows = x[kept], y[kept], area[kept], top[kept], rows[kept]
    # Weight of corner i at (px, py): (across_i * px + down_i * py + offset_i); it is 0 on the opposite edge.
    following, last = [1, 2, 0], [2, 0, 1]
    across = (y[:, last] - y[:, following]) / area[:, None]
    down = (x[:, following] - x[:, last]) / area[:, None]
    offset = -(across * x[:, following] + down * y[:, following])

    run, line = _spread(rows)
    centre = (top[run] + line).astype(np.float32) + np.float32(0.5)
    slope, rest = across[run], down[run] * centre[:, None] + offset[run]  # (R, 3)
    with np.errstate(divide="ignore", invalid="ignore"):
        bound = -rest / slope
    first = np.where(slope > 0, bound, np.where((slope == 0) & (rest < 0), np.inf, -np.inf)).max(1)
    final = np.where(slope < 0, bound, np.inf).min(1)
    begin = np.ceil(first.clip(0, width + 1) - 0.5).clip(0, width).astype(np.int64)
    columns = np.floor(final.clip(-1, width) - 0.5).clip(-1, width - 1).astype(np.int64) - begin + 1

    part, column = _spread(columns.clip(0))
    column += begin[part]
    triangle = run[part]
    weights = slope[part] * (column.astype(np.float32) + np.float32(0.5))[:, None] + rest[part]
    depth = (weights * nearness[faces[kept]][triangle]).sum(1)
    pixel = (top[run] + line)[part] * width + column
    seen = _nearest(pixel, depth, height * width)
    found = kept[triangle[seen]]
    return Fragments(pixel[seen], faces[found], weights[seen], found)


def _spread(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count to ``counts[i]`` for each i; return the i and the number, from 0."""
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - (np.cumsum(counts) - counts)[owner]


def _nearest(pixel: NDArray[np.int64], depth: NDArray[np.float32], num_pixels: int) -> NDArray[np.int64]:
    """Return, for each pixel that is covered, the position of the nearest candidate; of equal ones the last."""
    if not len(pixel):
        return pixel
    low = depth.min()
    steps = ((depth - low) / max(float(depth.max() - low), 1e-9) * (_DEPTH_STEPS - 1)).astype(np.int64)
    keys = (steps << 32) + np.arange(len(pixel))
    best = np.full(num_pixels, -1)
    np.maximum.at(best, pixel, keys)
    return best[best >= 0] & 0xFFFFFFFF
