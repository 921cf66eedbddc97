"""What skin, lips, brows and eyes look like, point by point of the neutral head; nothing is stored as a picture.

Colours are linear red, green, blue, (3, P) float32; lengths are decimetres.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from opqn.data.synthetic.anatomy import EYE
from opqn.data.synthetic.hair import Pixels, beard_density, hair_color
from opqn.data.synthetic.noise import hill, mix, noise, ramp
from opqn.data.synthetic.people import Person
from opqn.data.synthetic.scenes import Scene

_TONES: Final = np.array(
    [(0.945, 0.800, 0.725), (0.880, 0.690, 0.590), (0.725, 0.535, 0.430), (0.500, 0.345, 0.270), (0.285, 0.185, 0.145)]
)
"""sRGB of skin from light to dark."""
_IRIS_ANGLE: Final = 0.45
"""Radians from the middle of the iris to its edge, as seen from the middle of the eyeball."""


class Surface(NamedTuple):
    """Points that the camera sees, each (P,) float32.

    Attributes:
        x: on the neutral head, to the person's left.
        y: up.
        z: to the front.
        around: from the middle of the face along the skin.
        lips: 1 on the lips.
        ears: 1 on the ears.
    """

    x: Pixels
    y: Pixels
    z: Pixels
    around: Pixels
    lips: Pixels
    ears: Pixels


def skin_color(at: Surface, person: Person, scene: Scene) -> tuple[NDArray[np.float32], Pixels]:
    """Return the colour of the skin and how much it shines, (P,), as a factor."""
    side, front = np.abs(at.x), (at.z > 0.5).astype(np.float32)
    u, v = at.around + np.float32(person.grain[0]), at.y + np.float32(person.grain[1])
    color = _tone(person)[:, None] * (1 + _patches(u, v, person))
    color *= 1 + np.array((0.10, -0.20, -0.17), np.float32)[:, None] * _redness(at, side, front, person, scene)
    color *= 1 - _shadows(at, side, person) * front * np.array((0.8, 1.0, 0.95), np.float32)[:, None]
    color *= 1 - _wrinkles(at, u, v, person, scene) * front
    if person.freckles:
        spots = ramp(noise(u, v, 0.024, 0.024), 0.9, 1.7) * hill(at.y - 7.05, 0.30) * hill(side, 0.6)
        color *= 1 - np.array((0.18, 0.32, 0.38), np.float32)[:, None] * spots * np.float32(person.freckles)
    for across, up, radius in person.moles:
        spot = ramp(np.hypot(at.around - np.float32(across), at.y - np.float32(up)), radius * 1.3, radius * 0.5)
        color *= 1 - np.float32(0.72) * spot
    color = _with_lips(color, at, person, scene)
    hairs = hair_color(at.y, at.around, person)
    beard = beard_density(at.x, at.y, at.z, at.lips, person) * np.float32(scene.beard)
    patchy = np.clip(1 + 0.16 * noise(u, v, 0.02, 0.045) + 0.06 * noise(u, v, 0.2, 0.2), 0, 2)
    color = mix(color, hairs + 0.16 * color, np.clip(1.15 * beard * patchy, 0, 0.93))
    color = mix(color, 0.75 * hairs, _brows(at, u, v, person) * front)
    if scene.make_up:
        eye_x, eye_y = EYE
        line = hill(side - eye_x, 0.165) * hill(at.y - eye_y - 0.035 + 0.9 * (side - eye_x) ** 2, 0.028)
        color *= 1 - np.float32(0.65 * scene.make_up) * line * front
    shine = person.shine * (0.65 + 0.5 * hill(side, 0.22) + 0.5 * at.lips + 0.12 * noise(u, v, 0.03, 0.03))
    return color.astype(np.float32), (shine * (1 - 0.7 * np.clip(beard, 0, 1))).astype(np.float32)


def _redness(at: Surface, side: Pixels, front: Pixels, person: Person, scene: Scene) -> Pixels:
    cheeks = hill(side - 0.43, 0.24) * hill(at.y - 6.93, 0.22)
    nose = hill(side, 0.14) * hill(at.y - 6.92, 0.14)
    rouge = hill(side - 0.5, 0.18) * hill(at.y - 6.95, 0.15)
    natural = person.flush * ((cheeks + 0.9 * nose) * front + 0.6 * at.ears)
    # Dark skin reddens less.
    red: Pixels = np.float32(1 - 0.65 * person.tone) * (natural + 0.6 * scene.make_up * rouge * front)
    return red


def _shadows(at: Surface, side: Pixels, person: Person) -> Pixels:
    """Return how much darker the skin around the eyes is."""
    eye_x, eye_y = EYE
    tired = hill(side - eye_x + 0.03, 0.17) * hill(at.y - eye_y + 0.145, 0.055)
    lid = hill(side - eye_x, 0.20) * hill(at.y - eye_y - 0.05, 0.10)
    darker: Pixels = tired * np.float32(0.12 + 0.22 * person.age) + lid * np.float32(0.16)
    return darker


def _tone(person: Person) -> NDArray[np.float32]:
    place = np.linspace(0, 1, len(_TONES))
    base = np.array([np.interp(person.tone, place, channel) for channel in _TONES.T]) ** 2.2
    tint = np.array((0.02, 0.0, -0.13)) * max(0.0, person.warmth) + np.array((0.03, -0.05, 0.02)) * max(
        0.0, -person.warmth
    )
    return (base * (1 + tint)).astype(np.float32)


def _patches(u: Pixels, v: Pixels, person: Person) -> NDArray[np.float32]:
    """Return what the skin's colour differs by from place to place, (3, P)."""
    broad = noise(u, v, 0.45, 0.45)
    small = noise(u + 7, v, 0.09, 0.09)
    pores = noise(u, v, 0.022, 0.022)
    amount = np.float32(person.patches)
    evenly = 0.05 * amount * broad + 0.035 * amount * small + 0.03 * pores
    ruddy = np.array((0.0, -0.05, -0.05), np.float32)[:, None] * amount * (small + 0.5 * broad)
    patches: NDArray[np.float32] = evenly + ruddy
    return patches


def _wrinkles(at: Surface, u: Pixels, v: Pixels, person: Person, scene: Scene) -> Pixels:
    old = min(1.0, max(0.0, person.age + scene.age))
    side = np.abs(at.x)
    raised = scene.expression.get("browInnerUp", 0.0)
    bend = at.y + 0.25 * at.x**2 + 0.03 * noise(u, v, 0.5, 0.3)
    forehead = np.clip(np.sin(bend * 62 + person.grain[0]), 0, 1) ** 3 * hill(at.y - 7.78, 0.16) * hill(side, 0.42)
    fold = hill(side - 0.21 - 0.42 * (6.93 - at.y), 0.028) * hill(at.y - 6.76, 0.15)
    crow = np.clip(np.sin(np.arctan2(at.y - 7.25, side - 0.42) * 11), 0, 1) ** 2 * hill(side - 0.56, 0.07)
    crow *= hill(at.y - 7.25, 0.10)
    smile = scene.expression.get("mouthSmileLeft", 0.0)
    lines: Pixels = (
        (0.28 * old**1.5 + 0.10 * raised) * forehead
        + (0.05 + 0.30 * old + 0.08 * smile) * fold
        + (0.25 * old**1.5 + 0.06 * smile) * crow
    )
    return lines


def _with_lips(color: NDArray[np.float32], at: Surface, person: Person, scene: Scene) -> NDArray[np.float32]:
    redness, darkness = person.lips
    light = 1 - 0.6 * person.tone
    natural = _tone(person) * np.array(
        (0.86 - 0.12 * darkness, 0.62 - 0.22 * redness * light, 0.66 - 0.18 * redness * light), np.float32
    )
    paint = np.array((0.50, 0.045 + 0.10 * darkness, 0.07 + 0.08 * redness), np.float32) * (1 - 0.5 * person.tone)
    painted = natural + np.float32(0.85 * scene.make_up * max(0.0, scene.make_up - 0.2)) * (paint - natural)
    edge = ramp(at.lips, 0.25, 0.75)
    creases = 1 + 0.05 * noise(at.x, at.y, 0.018, 0.2)
    return mix(color, painted[:, None] * creases, 0.9 * edge)


def _brows(at: Surface, u: Pixels, v: Pixels, person: Person) -> Pixels:
    height, thickness, arch, slope, gap, length, density = person.brows
    side = np.abs(at.x)
    along = np.clip((side - np.float32(gap)) / np.float32(length), -0.2, 1.2)
    middle = EYE[1] + height + arch * (1 - ((along - 0.62) / 0.62) ** 2) - arch * 0.6 + slope * (along - 0.5)
    half = thickness * (0.55 + 0.45 * np.sqrt(np.clip(along * 3, 0, 1))) * np.clip(1.25 - along, 0.12, 1) ** 0.7
    away = np.abs(at.y - middle) / half
    hairs = 1 + 0.16 * noise(u + 0.8 * v, v, 0.025, 0.06)
    inside = ramp(away, 1.15, 0.55) * ramp(along, -0.06, 0.06) * ramp(along, 1.05, 0.85) * hairs
    brows: Pixels = np.clip(inside * np.float32(density) * 1.1, 0, 0.95).astype(np.float32)
    return brows


def eye_color(at: Surface, eyes: NDArray[np.float32], person: Person, scene: Scene) -> NDArray[np.float32]:
    """Return the colour of the eyeballs.

    Args:
        at: points on them.
        eyes: (2, 3), the middle of the left and right eyeball.
        person: for the iris.
        scene: for where they look.
    """
    left = at.x > 0
    x, y, z = (np.where(left, eyes[0, k], eyes[1, k]) for k in range(3))
    x, y, z = at.x - x, at.y - y, at.z - z
    radius = np.sqrt(x * x + y * y + z * z).clip(1e-6)
    aside, up = np.radians(scene.gaze)
    ahead = (np.sin(aside) * np.cos(up), np.sin(up), np.cos(aside) * np.cos(up))
    away = np.arccos(np.clip((x * ahead[0] + y * ahead[1] + z * ahead[2]) / radius, -1, 1)).astype(np.float32)
    out = away / np.float32(_IRIS_ANGLE)
    turn = np.arctan2(y - np.float32(ahead[1]) * radius, x - np.float32(ahead[0]) * radius)
    rays = noise(turn.astype(np.float32), out, 0.12, 1.5)
    white = np.array((0.66, 0.61, 0.57), np.float32)[:, None] * (1 - 0.25 * ramp(np.abs(x), 0.07, 0.13))
    iris = np.array(person.iris, np.float32)[:, None] ** np.float32(2.0) * np.clip(1.15 + 0.3 * rays, 0.4, 2)
    iris = iris * (1 - 0.65 * ramp(out, 0.72, 0.98))
    iris = mix(iris, np.full_like(iris, 0.004), ramp(out, person.pupil + 0.06, person.pupil - 0.06))
    return mix(white, iris, ramp(out, 1.06, 0.94))
