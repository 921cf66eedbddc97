"""Where hair and hats are on the head, and what hair looks like."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from opqn.data.synthetic.noise import hill, noise, ramp
from opqn.data.synthetic.people import Person
from opqn.data.synthetic.scenes import Scene

Pixels = NDArray[np.float32]
"""(P,) float32."""
_ANGLES: Final = (0.0, 0.35, 0.60, 0.85, 1.05, 1.22, 1.40, 1.75, 2.0, 2.4, 3.2)
_CHIN: Final = 6.2


def hair_depth(x: Pixels, y: Pixels, around: Pixels, ears: Pixels, person: Person, scene: Scene) -> Pixels:
    """Return how far a point of the neutral head lies within the hairline, in decimetres; below 0 outside of it."""
    if person.style == "bald":
        return np.full_like(y, -1)
    middle, recess = person.hairline
    burns = 0.10 * person.male
    heights = (
        middle,
        middle + recess - 0.01,
        middle - 0.12 + 0.6 * recess,
        middle - 0.32 + 0.2 * recess,
        7.42,
        7.05 - burns,
        7.30,
        7.30,
        6.85,
        6.45,
        6.35,
    )
    line = np.interp(np.abs(around) / 0.9, _ANGLES, heights).astype(np.float32)
    fringe = scene.fringe * np.clip(1 - (np.abs(around) / 0.62) ** 4, 0, 1)
    opening = np.clip(1 - np.abs(x - 0.3 * person.parting) / 0.35, 0, 1)
    inside: Pixels = y - line + fringe * (1 - 0.6 * opening) - 2 * ears
    return inside


def hat_edge(scene: Scene) -> float:
    """Return the height of the edge of a hat above the middle of the forehead."""
    return 8.02 + 0.06 * scene.place[1]


def hat_depth(y: Pixels, z: Pixels, scene: Scene) -> Pixels:
    """Return how far a point lies above the edge of a hat, in decimetres; below 0 under it."""
    above: Pixels = y - np.float32(hat_edge(scene)) - np.float32(0.10) * (z - np.float32(1.4))
    return above


def beard_density(x: Pixels, y: Pixels, z: Pixels, lips: Pixels, person: Person) -> Pixels:
    """Return how thick the beard grows, 0 to 1."""
    lip, chin, cheek = person.beard
    moustache = hill(x, 0.24) * hill(y - 6.775, 0.055) * (y < 6.86)
    goatee = hill(x, 0.24) * ramp(y, 6.56, 6.46) * (z > 0.7)
    border = 6.62 + 0.55 * np.clip(np.abs(x) - 0.28, 0, 0.6)
    jaw = ramp(y - border, 0.13, -0.10) * ramp(np.abs(x), 0.18, 0.30)
    under = ramp(y, _CHIN - 0.35, _CHIN - 0.15)
    amount = np.maximum(np.maximum(lip * moustache, chin * goatee), cheek * jaw)
    density: Pixels = amount * under * (1 - np.clip(2 * lips, 0, 1))
    return density.astype(np.float32)


def hair_color(y: Pixels, around: Pixels, person: Person) -> Pixels:
    """Return (3, P) linear red, green, blue: strands, darker and lighter, grey ones among them."""
    u, v = around + np.float32(person.grain[0]), y + np.float32(person.grain[1])
    bend = np.float32(0.10 * person.curl) * noise(u, v, 0.25, 0.25)
    length = 0.9 - 0.75 * person.curl
    strands = noise(u + bend, v, 0.035, length) + 0.7 * noise(u + bend + 3, v, 0.10, 1.4 * length)
    grey = np.clip(person.grey + 0.5 * person.grey * (1 - person.grey) * strands, 0, 1)
    base = np.array(person.hair, np.float32)[:, None] ** np.float32(2.2)
    silver = np.array((0.52, 0.51, 0.49), np.float32)[:, None] ** np.float32(1.6)
    color = base * (1 - grey) + silver * grey
    shaded: Pixels = (color * np.clip(1 + 0.17 * strands, 0.5, 1.6)).astype(np.float32)
    return shaded
