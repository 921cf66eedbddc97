"""Drawing a picture of a person: where the head turns, what the face does, light, camera, and what is in the way."""

from __future__ import annotations

from typing import Any, Final, Literal

import numpy as np

from opqn.data.synthetic.people import Color, Facts, Person
from opqn.data.synthetic.settings import SyntheticSettings

Occlusion = Literal["none", "glasses", "sunglasses", "hat", "mask", "hand"]
_MOODS: Final[tuple[dict[str, float], ...]] = (
    {"mouthSmile": 0.8, "cheekSquint": 0.5, "eyeSquint": 0.3},
    {"mouthSmile": 0.6, "cheekSquint": 0.3, "mouthUpperUp": 0.35, "jawOpen": 0.12},
    {"mouthSmile": 0.9, "cheekSquint": 0.7, "jawOpen": 0.35, "eyeSquint": 0.4, "mouthUpperUp": 0.3},
    {"jawOpen": 0.35, "mouthFunnel": 0.3},
    {"jawOpen": 0.55, "browInnerUp": 0.8, "browOuterUp": 0.8, "eyeWide": 0.8},
    {"browDown": 0.9, "mouthFrown": 0.4, "eyeSquint": 0.5, "noseSneer": 0.3},
    {"browInnerUp": 0.8, "mouthFrown": 0.8, "mouthShrugLower": 0.4},
    {"mouthPucker": 0.7, "browOuterUp": 0.3},
    {"mouthPress": 0.7, "mouthDimple": 0.6},
    {"browOuterUp": 0.7, "browInnerUp": 0.6},
    {"noseSneer": 0.6, "mouthUpperUp": 0.6, "browDown": 0.5},
    {"mouthRollLower": 0.5, "mouthRollUpper": 0.3},
)


class Scene(Facts):
    """What is special to one picture.

    Attributes:
        yaw: degrees; above 0 the person looks to the right of the picture.
        pitch: degrees; above 0 the person looks up.
        roll: degrees, before alignment, which undoes it; above 0 the head leans to the right of the picture.
        distance: of the camera from the head, in decimetres; near ones make noses large.
        expression: weights of facial units, 0 to 1, by name.
        gaze: degrees that the eyes look to the right of the picture and up, beyond the turning of the head.
        age: what is added to the person's.
        lights: direction towards the light as seen by the camera (right, up, towards the camera; length 1), sharpness
            (large for small lights), red, green, blue.
        sky: red, green, blue of the light that comes from above.
        ground: and from below.
        volume: of the hair, a factor.
        fringe: how far it hangs into the forehead, in decimetres.
        beard: a factor.
        make_up: how strong it is, 0 to 1.
        occlusion: what is in the way.
        cover: its colour.
        place: what is free of the occlusion: tilt of a hat or mask, or where the hand is.
        background: kind (0 grey, 1 gradient, 2 things out of focus, 3 lights, 4 stripes) and seed.
        backdrop: two colours.
        exposure: a factor to what the camera measures.
        contrast: 1 is neutral.
        cast: a factor for red, green, blue.
        saturation: 0 is black and white.
        blur: standard deviation in pixels of a picture of 112 x 112.
        motion: pixels across and down that the picture moved, likewise.
        pixels: share of the pixels in a row that the camera has.
        noise: standard deviation of the sensor's noise, of 255.
        quality: of the JPEG file.
        shift: pixels across and down of a picture of 112 x 112 that the alignment is off.
        turn: degrees.
        zoom: a factor.
        seed: of the noise.
    """

    yaw: float
    pitch: float
    roll: float
    distance: float
    expression: dict[str, float]
    gaze: tuple[float, float]
    age: float
    lights: tuple[tuple[float, float, float, float, float, float, float], ...]
    sky: Color
    ground: Color
    volume: float
    fringe: float
    beard: float
    make_up: float
    occlusion: Occlusion
    cover: Color
    place: tuple[float, float]
    background: tuple[int, int]
    backdrop: tuple[Color, Color]
    exposure: float
    contrast: float
    cast: Color
    saturation: float
    blur: float
    motion: tuple[float, float]
    pixels: float
    noise: float
    quality: int
    shift: tuple[float, float]
    turn: float
    zoom: float
    seed: int


def draw_scene(seed: tuple[int, ...], person: Person, settings: SyntheticSettings) -> Scene:
    """Draw what is special to one picture.

    Args:
        seed: each factor has a generator of its own, seeded with it, so turning one off changes no other.
        person: who is in it: hats, make-up and glasses depend on that.
        settings: strengths.
    """
    parts = [
        _pose(_rng(seed, 0), settings.pose),
        _expression(_rng(seed, 1), settings.expression),
        {"age": _around(_rng(seed, 2), person.age, settings.age)},
        _light(_rng(seed, 3), settings.light),
        _hair(_rng(seed, 4), settings.hair, person),
        _occlusion(_rng(seed, 5), settings.occlusion, person),
        _background(_rng(seed, 6), settings.background),
        _camera(_rng(seed, 7), settings.camera),
        _blur(_rng(seed, 8), settings.blur),
        _alignment(_rng(seed, 9), settings.alignment),
    ]
    return Scene(**{name: value for part in parts for name, value in part.items()})


def _rng(seed: tuple[int, ...], factor: int) -> np.random.Generator:
    return np.random.default_rng([*seed, factor])


def _normal(rng: np.random.Generator, spread: float, most: float) -> float:
    return round(float(np.clip(rng.normal() * spread, -most, most)), 5)


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return round(float(rng.uniform(low, high)), 5)


def _pose(rng: np.random.Generator, strength: float) -> dict[str, Any]:
    return {
        "yaw": _normal(rng, 33 * strength, 70),
        "pitch": _normal(rng, 16 * strength, 30),
        "roll": _normal(rng, 15 * strength, 30),
    }


def _expression(rng: np.random.Generator, strength: float) -> dict[str, Any]:
    units: dict[str, float] = {}
    mood = _MOODS[int(rng.choice(len(_MOODS), p=_MOOD_SHARES))]
    amount = rng.uniform(0, 1.5) * strength
    for unit, weight in mood.items():
        uneven = rng.normal(1, 0.12, 2)
        for side, factor in zip(("Left", "Right"), uneven, strict=True):
            value = round(float(np.clip(weight * amount * factor, 0, 1)), 5)
            units[unit if unit in _ONE_PIECE else unit + side] = value
    closed = rng.random()
    lids = strength * (0.9 if closed < 0.05 else rng.uniform(0, 0.35))
    units |= {"eyeBlinkLeft": round(float(lids), 5), "eyeBlinkRight": round(float(lids), 5)}
    gaze = (_normal(rng, 16 * strength, 30), _normal(rng, 7 * strength, 14))
    return {"expression": {unit: value for unit, value in units.items() if value}, "gaze": gaze}


_ONE_PIECE: Final = frozenset(
    (
        *("jawOpen", "mouthFunnel", "mouthPucker", "mouthShrugLower", "mouthRollLower", "mouthRollUpper"),
        "browInnerUp",
    )
)
_MOOD_SHARES: Final = np.array([26, 22, 14, 9, 4, 5, 3, 3, 5, 4, 2, 3]) / 100


def _around(rng: np.random.Generator, age: float, strength: float) -> float:
    shift = float(np.clip(rng.normal() * 0.25 * strength, -0.5, 0.5))
    return round(float(np.clip(age + shift, 0, 1)) - age, 5) if strength else 0.0


def _light(rng: np.random.Generator, strength: float) -> dict[str, Any]:
    lights = []
    powers = (1.0, rng.uniform(0, 0.6) * strength, rng.uniform(0, 1.2) * strength * (rng.random() < 0.4))
    for number, power in enumerate(powers):
        side = (rng.normal() * 75 * strength, 0.0, 180 - rng.uniform(20, 70))[number]
        if number:
            side = float(rng.choice((-1, 1))) * (rng.uniform(20, 90) if number == 1 else side)
        up = 25 + rng.normal() * 28 * strength if number == 0 else rng.uniform(-20, 50)
        side, up = np.radians(np.clip(side, -125, 125)), np.radians(np.clip(up, -25, 75))
        towards = (np.sin(side) * np.cos(up), np.sin(up), np.cos(side) * np.cos(up))
        sharp = 10 * np.exp(rng.normal() * 1.2 * strength)
        warm = rng.normal() * 0.08 * strength
        color = np.exp((warm, 0.15 * rng.normal() * strength * 0.3, -warm))
        if power > 0.02:
            lights.append(tuple(round(float(v), 5) for v in (*towards, np.clip(sharp, 2, 60), *(power * color))))
    ambient = 0.55 * np.exp(rng.normal() * 0.5 * strength)
    tint = np.exp(rng.normal(size=3) * 0.10 * strength)
    bounce = rng.uniform(0.4, 0.4 + 0.5 * strength)
    return {
        "lights": tuple(lights),
        "sky": tuple(round(float(v), 5) for v in ambient * tint),
        "ground": tuple(round(float(v), 5) for v in ambient * bounce * tint[::-1]),
    }


def _hair(rng: np.random.Generator, strength: float, person: Person) -> dict[str, Any]:
    painted = rng.random() < 0.6 * (1 - person.male)
    changes = rng.normal() * 0.25 * strength
    return {
        "volume": round(float(np.exp(rng.normal() * 0.5 * strength)), 5),
        "fringe": round(float(np.clip(person.fringe + changes, 0, 0.6)), 5),
        "beard": round(float(np.clip(1 + rng.normal() * 0.8 * strength, 0, 1.6)), 5),
        "make_up": round(float(person.make_up * min(1.0, 1.5 * strength) * rng.uniform(0.3, 1)), 5) * painted,
    }


def _occlusion(rng: np.random.Generator, strength: float, person: Person) -> dict[str, Any]:
    kind: Occlusion = "none"
    wears, chance, pick = rng.random(), rng.random(), rng.random()
    if chance < 0.5 * strength:
        kind = "sunglasses" if pick < 0.18 else "hat" if pick < 0.65 else "mask" if pick < 0.80 else "hand"
    elif person.glasses[0] and wears < min(1.0, 2 * strength):
        kind = "glasses"
    cover = _pleasant(rng)
    place = (_uniform(rng, -1, 1), _uniform(rng, -1, 1))
    return {"occlusion": kind, "cover": cover, "place": place}


def _pleasant(rng: np.random.Generator) -> Color:
    base = rng.uniform(0.05, 0.95) ** 1.3
    tint = rng.normal(size=3) * 0.10
    red, green, blue = (round(float(np.clip(base + part, 0.02, 0.97)), 5) for part in tint - tint.mean())
    return (red, green, blue)


def _background(rng: np.random.Generator, strength: float) -> dict[str, Any]:
    kind, seed = int(rng.integers(1, 5)), int(rng.integers(1 << 30))
    plain = np.full(3, 0.5)
    colors = tuple(
        tuple(round(float(v), 5) for v in plain + min(1.0, 2 * strength) * (np.array(_pleasant(rng)) - plain))
        for _ in range(2)
    )
    return {"background": (kind if strength else 0, seed), "backdrop": colors}


def _camera(rng: np.random.Generator, strength: float) -> dict[str, Any]:
    cast = np.exp(rng.normal(size=3) * 0.06 * strength)
    is_grey = rng.random() < 0.08 * strength
    return {
        "distance": round(float(11 * np.exp(np.clip(rng.normal() * 0.45 * strength, -0.75, 1))), 5),
        "exposure": round(float(np.exp(np.clip(rng.normal() * 0.38 * strength, -1, 1))), 5),
        "contrast": round(float(np.exp(rng.normal() * 0.25 * strength)), 5),
        "cast": tuple(round(float(v), 5) for v in cast / cast.mean()),
        "saturation": 0.0 if is_grey else round(float(np.exp(rng.normal() * 0.2 * strength)), 5),
    }


def _blur(rng: np.random.Generator, strength: float) -> dict[str, Any]:
    angle, moved = rng.uniform(0, np.pi), rng.random() < 0.3
    length = rng.uniform(0, 9) * strength * moved
    return {
        "blur": round(float(rng.gamma(1.2, 0.7)) * strength, 5),
        "motion": (round(float(length * np.cos(angle)), 5), round(float(length * np.sin(angle)), 5)),
        "pixels": round(1 - strength * float(rng.uniform(0, 0.75)) * (rng.random() < 0.5), 5),
        "noise": round(float(rng.gamma(1.2, 2.6)) * strength, 5),
        "quality": round(95 - strength * float(rng.uniform(0, 65))),
        "seed": int(rng.integers(1 << 30)),
    }


def _alignment(rng: np.random.Generator, strength: float) -> dict[str, Any]:
    return {
        "shift": (_normal(rng, 3.0 * strength, 8), _normal(rng, 3.0 * strength, 8)),
        "turn": _normal(rng, 5.0 * strength, 12),
        "zoom": round(float(np.exp(np.clip(rng.normal() * 0.07 * strength, -0.2, 0.2))), 5),
    }
