"""From a person and a scene to pixels: which point is seen where, its colour, the light on it, what is behind it."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from opqn.data.synthetic.anatomy import Anatomy, turned
from opqn.data.synthetic.background import draw_background
from opqn.data.synthetic.camera import take
from opqn.data.synthetic.figure import MATERIALS, Figure, build_figure
from opqn.data.synthetic.hair import hair_color, hair_depth, hat_depth
from opqn.data.synthetic.noise import noise
from opqn.data.synthetic.people import Person
from opqn.data.synthetic.raster import Fragments, rasterise
from opqn.data.synthetic.scenes import Scene
from opqn.data.synthetic.skin import Surface, eye_color, skin_color

_FINER: Final = 2
"""Points that are looked at in each pixel's row and column."""
_SCATTER: Final = np.array((0.30, 0.16, 0.12), np.float32)[:, None]
"""How far light that enters skin comes out beyond where it falls, by colour: red goes furthest."""
_WARM_DARK: Final = np.array((1.0, 0.84, 0.78), np.float32)[:, None]
"""What light that bounces within a fold of skin keeps of each colour."""


_IN_MOUTH: Final = (MATERIALS.index("teeth"), MATERIALS.index("tongue"))
_OPENED: Final = 0.6


class Picture(NamedTuple):
    """A picture and where its face is.

    Attributes:
        pixels: (S, S, 3) uint8.
        landmarks: (5, 2) float64 pixels x, y: eyes, nose, corners of the mouth, left to right as the viewer sees them;
            the centre of the first pixel is at 0.
    """

    pixels: NDArray[np.uint8]
    landmarks: NDArray[np.float64]


def render(person: Person, scene: Scene, anatomy: Anatomy, size: int = 112) -> Picture:
    """Draw one picture of a person.

    Args:
        person: who.
        scene: how.
        anatomy: the neutral head.
        size: height and width in pixels.
    """
    side = size * _FINER
    figure = build_figure(person, scene, anatomy, side)
    seen = rasterise(figure.places, figure.nearness, figure.faces, (side, side))
    canvas = draw_background(scene, side)  # (3, side * side)
    canvas[:, seen.pixels] = _shade(figure, seen, person, scene, anatomy)
    fine = canvas.reshape(3, size, _FINER, size, _FINER)
    light = fine.mean((2, 4), dtype=np.float32)
    return Picture(take(light, scene), figure.landmarks / _FINER - 0.5)


class _Look(NamedTuple):
    """What points look like.

    Attributes:
        color: (3, P), linear.
        shine: (P,), a factor; likewise the others.
        narrow: exponent of the highlights.
        soft: 1 where light scatters below the surface.
        dark: what is left of the light where something unseen is in its way.
    """

    color: NDArray[np.float32]
    shine: NDArray[np.float32]
    narrow: NDArray[np.float32]
    soft: NDArray[np.float32]
    dark: NDArray[np.float32]


def _shade(figure: Figure, seen: Fragments, person: Person, scene: Scene, anatomy: Anatomy) -> NDArray[np.float32]:
    """Return linear red, green, blue of the pixels, (3, P) float32."""
    head, extra = anatomy.head, len(figure.places) - figure.num_head
    shares = [
        anatomy.light_from(turned(np.array(light[:3], np.float32)[None], figure.turn.T)[0], light[3])
        for light in scene.lights
    ]
    known = np.stack([anatomy.around, head.lips, head.ears, anatomy.open, *shares], axis=1)
    rest = np.zeros((extra, known.shape[1]), np.float32)
    rest[:, 0] = 0.9 * np.arctan2(figure.neutral[figure.num_head :, 0], figure.neutral[figure.num_head :, 2] + 0.1)
    rest[:, 3:] = 0.85
    values = np.concatenate([figure.normals, figure.neutral, np.concatenate([known, rest])], axis=1, dtype=np.float32)
    spread = seen.interpolate(values)
    normal, open_sky, arrives = spread[:3], spread[9], spread[10:]
    # What the closed mouth hides gets light when it opens.
    inside = np.isin(figure.materials[seen.faces], _IN_MOUTH)
    open_sky[inside] = open_sky[inside].clip(_OPENED)
    arrives[:, inside] = arrives[:, inside].clip(_OPENED)
    normal /= np.sqrt((normal * normal).sum(0)).clip(1e-6)
    look = _look(Surface(*spread[3:9]), figure.materials[seen.faces], figure, person, scene)
    return _lit(look, normal, open_sky * look.dark, arrives * look.dark, scene)


def _look(at: Surface, materials: NDArray[np.int64], figure: Figure, person: Person, scene: Scene) -> _Look:
    count = len(materials)
    color, dark = np.empty((3, count), np.float32), np.ones(count, np.float32)
    shine, narrow = np.full(count, 0.25, np.float32), np.full(count, 20, np.float32)
    soft = np.zeros(count, np.float32)

    def part(name: str) -> tuple[NDArray[np.int64], Surface]:
        chosen = np.flatnonzero(materials == MATERIALS.index(name))
        return chosen, Surface(*(value[chosen] for value in at))

    chosen, there = part("skin")
    color[:, chosen], shine[chosen], soft[chosen], dark[chosen] = _skin_or_cloth(there, person, scene)
    chosen, there = part("eye")
    color[:, chosen] = eye_color(there, figure.eyes, person, scene)
    shine[chosen], narrow[chosen], dark[chosen] = 3.0, 120, 0.9
    for name, value, gloss in (("teeth", (0.66, 0.62, 0.54), 0.8), ("tongue", (0.22, 0.06, 0.055), 0.3)):
        chosen, _ = part(name)
        color[:, chosen], shine[chosen] = np.array(value, np.float32)[:, None], gloss
        dark[chosen] = 0.8
    chosen, there = part("lash")
    lashes = np.float32(0.45 + 0.4 * (1 - person.male) + 0.15 * scene.make_up)
    color[:, chosen] = 0.35 * (1 - lashes) * skin_color(there, person, scene)[0] + np.float32(0.01)
    shine[chosen] = 0.0
    chosen, there = part("curtain")
    color[:, chosen], dark[chosen] = hair_color(there.y, there.around, person), 0.8
    chosen, there = part("cloth")
    color[:, chosen] = _cloth(there, scene)
    shine[chosen] = 0.05
    chosen, _ = part("frame")
    color[:, chosen] = np.array(person.frame, np.float32)[:, None] ** np.float32(2.2)
    shine[chosen], narrow[chosen] = 1.5, 40
    chosen, there = part("lens")
    color[:, chosen] = np.array((0.03, 0.03, 0.035), np.float32)[:, None] * (1 + 6 * np.clip(there.y - 7.2, 0, 0.3))
    shine[chosen], narrow[chosen] = 2.0, 60
    chosen, there = part("hand")
    color[:, chosen], _ = skin_color(there._replace(y=there.y * 0 + 7.6, z=there.z * 0), person, scene)
    soft[chosen] = 1
    return _Look(color, shine, narrow, soft, dark)


def _skin_or_cloth(
    at: Surface, person: Person, scene: Scene
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Return colour, shine, softness and darkening of what is drawn on the head itself: skin, hair, hat, mask."""
    color, shine = skin_color(at, person, scene)
    soft, dark = np.ones(len(at.x), np.float32), np.ones(len(at.x), np.float32)
    depth = hair_depth(at.x, at.y, at.around, at.ears, person, scene)
    u = at.around + np.float32(person.grain[0])
    ragged = depth + np.float32(0.018) * noise(u, at.y, 0.03, 0.30) + np.float32(0.02) * noise(u, at.y, 0.2, 0.2)
    cover = np.clip(ragged / 0.10, 0, 1)
    hairs = hair_color(at.y, at.around, person)
    color += (hairs - color) * cover
    shine *= 1 - 0.4 * cover
    soft *= 1 - cover
    dark *= 1 - 0.30 * np.exp(-((depth / 0.10) ** 2)) * (1 - cover)
    clothed = np.clip((5.75 - at.y - 0.25 * (at.z > 0.4)) / 0.03, 0, 1)
    masks = [(clothed, 0.0)]
    if scene.occlusion == "hat":
        above = hat_depth(at.y, at.z, scene)
        dark *= 1 - 0.45 * np.exp(-((np.minimum(above, 0) / 0.16) ** 2)) * (above < 0)
        masks.append((np.clip(above / 0.02, 0, 1), 0.0))
    for share, gloss in masks:
        color += (_cloth(at, scene) - color) * share
        shine += (gloss - shine) * share
        soft *= 1 - share
    return color, shine, soft, dark


def _cloth(at: Surface, scene: Scene) -> NDArray[np.float32]:
    base = np.array(scene.cover, np.float32)[:, None] ** np.float32(2.2)
    weave = 1 + 0.07 * noise(at.around, at.y, 0.03, 0.03) + 0.06 * noise(at.around, at.y, 0.12, 0.5)
    return (base * weave).astype(np.float32)


def _lit(
    look: _Look,
    normal: NDArray[np.float32],
    open_sky: NDArray[np.float32],
    arrives: NDArray[np.float32],
    scene: Scene,
) -> NDArray[np.float32]:
    """Add up the light of sky, ground and lamps that each point sends to the camera."""
    sky, ground = (np.array(value, np.float32)[:, None] for value in (scene.sky, scene.ground))
    up = np.float32(0.5) * (1 + normal[1])
    dimmed = open_sky ** (1 + look.soft * 0.25 * (1 - _WARM_DARK))  # folds of skin are warm, not grey
    diffuse = (ground + (sky - ground) * up) * dimmed * (0.75 + 0.25 * normal[2])
    gleam = np.float32(0.025) * look.shine * open_sky * (sky * up)
    edge = (1 - normal[2].clip(0, 1)) ** 4
    for light, share in zip(scene.lights, arrives, strict=True):
        towards, color = np.array(light[:3], np.float32), np.array(light[4:], np.float32)[:, None]
        cosine = normal[0] * towards[0] + normal[1] * towards[1] + normal[2] * towards[2]
        spill = _SCATTER * look.soft
        diffuse += color * share * ((cosine + spill) / (1 + spill)).clip(0)
        half = towards + np.array((0, 0, 1), np.float32)
        half /= np.sqrt((half * half).sum())
        mirrored = (normal[0] * half[0] + normal[1] * half[1] + normal[2] * half[2]).clip(0, 1)
        peak = mirrored**look.narrow * (look.narrow + 2) * np.float32(0.005)
        gleam = gleam + color * (look.shine * share * (cosine > 0) * peak * (0.5 + edge))
    result: NDArray[np.float32] = look.color * diffuse + gleam
    return result
