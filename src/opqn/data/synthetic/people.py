"""Drawing a person: shape of the head, skin, hair and eyes, none of which is anybody's."""

from __future__ import annotations

from typing import Any, Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from opqn.data.synthetic.anatomy import Anatomy

Color = tuple[float, float, float]
Style = Literal["bald", "short", "medium", "long"]
_ANCESTRIES: Final = ("african", "asian", "caucasian")
_SPREAD: Final = {
    "nose": 0.23,
    "mouth": 0.21,
    "eye": 0.21,
    "head": 0.16,
    "cheek": 0.25,
    "chin": 0.21,
    "forehead": 0.21,
    "eyebrows": 0.23,
    "ear": 0.19,
}
"""Standard deviation of the weights by the first word of a shape's name, at an identity strength of 0.5."""
_STILL: Final = frozenset(("neck", "measure"))
_ODD: Final = ("pointed", "triangle", "square")
_IRISES: Final[tuple[Color, ...]] = (
    (0.14, 0.075, 0.04),
    (0.27, 0.15, 0.07),
    (0.36, 0.27, 0.12),
    (0.30, 0.35, 0.22),
    (0.33, 0.43, 0.52),
    (0.42, 0.47, 0.50),
)
_HAIRS: Final[tuple[Color, ...]] = (
    (0.045, 0.038, 0.035),
    (0.11, 0.07, 0.045),
    (0.22, 0.13, 0.075),
    (0.42, 0.28, 0.15),
    (0.66, 0.50, 0.30),
    (0.45, 0.18, 0.07),
)


class Facts(BaseModel):
    """What can be written to the file of truth."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Person(Facts):
    """What stays the same in every picture of a person. Lengths are decimetres of the neutral head.

    Attributes:
        male: 0 a woman's shape, 1 a man's.
        ancestry: weights of the shapes that MakeHuman calls African, Asian and Caucasian; their sum is 1.
        age: 0 for 25 years, 1 for 85.
        weight: -1 thin, 1 heavy.
        shapes: weights, by the name of the shape.
        tone: of the skin, 0 light, 1 dark.
        flush: redness of cheeks, nose and ears, 0 to 1.
        warmth: -1 a rosy skin, 1 a golden one.
        patches: unevenness of the skin, 0 to 1.
        freckles: 0 none, 1 many.
        moles: place (to the person's left along the skin, and up), radius.
        shine: of the skin.
        grain: where in the pattern of noise this skin lies.
        brows: height above the eye, thickness, arch, slope, gap in the middle, length, density.
        lips: redness, darkness.
        iris: red, green, blue, 0 to 1.
        pupil: radius over that of the iris.
        hair: red, green, blue, 0 to 1.
        grey: share of grey hair.
        style: of the hair.
        hairline: height in the middle, how far it recedes at the sides.
        volume: thickness of the hair.
        curl: 0 straight, 1 curly.
        parting: where the fringe parts, -1 right, 1 left.
        fringe: how far it hangs into the forehead.
        length: of long hair, below the eyes.
        beard: density on the upper lip, the chin, the cheeks.
        glasses: whether the person mostly wears any; width and height of a lens, thickness of the frame, and how round.
        frame: colour of the frame.
        make_up: how strong it is when worn, 0 to 1.
    """

    male: float
    ancestry: tuple[float, float, float]
    age: float
    weight: float
    shapes: dict[str, float]
    tone: float
    flush: float
    warmth: float
    patches: float
    freckles: float
    moles: tuple[tuple[float, float, float], ...]
    shine: float
    grain: tuple[float, float]
    brows: tuple[float, float, float, float, float, float, float]
    lips: tuple[float, float]
    iris: Color
    pupil: float
    hair: Color
    grey: float
    style: Style
    hairline: tuple[float, float]
    volume: float
    curl: float
    parting: float
    fringe: float
    length: float
    beard: tuple[float, float, float]
    glasses: tuple[bool, float, float, float, float]
    frame: Color
    make_up: float


def draw_person(rng: np.random.Generator, anatomy: Anatomy, identity: float) -> Person:
    """Draw a person.

    Args:
        rng: every draw is from it.
        anatomy: for the names of shapes.
        identity: strength; 0 gives the average person.
    """
    far = 2 * identity
    is_male = rng.random() < 0.5
    male = 0.5 + (0.5 - 0.2 * rng.random()) * (1 if is_male else -1) * min(1.0, far)
    raw = rng.dirichlet((0.35, 0.35, 0.45))
    mix = min(1.0, far)
    ancestry = raw * mix + (1 - mix) / 3
    age = float(rng.beta(1.0, 2.6)) * mix + 0.2 * (1 - mix)
    # Dark with the share that comes from near the equator; the two are far from the same.
    tone = float(np.clip(ancestry @ (0.72, 0.28, 0.17) + 0.09 * far * rng.normal(), 0, 1))
    values: dict[str, Any] = {
        "male": male,
        "ancestry": tuple(float(part) for part in ancestry),
        "age": age,
        "weight": float(np.clip(0.45 * far * rng.normal(), -0.8, 1)),
        "shapes": _draw_shapes(rng, anatomy, far),
        "tone": tone,
    }
    values |= _draw_skin(rng, far, tone)
    values |= _draw_hair(rng, far, is_male, ancestry, age)
    return Person(**_rounded(values))


def _draw_shapes(rng: np.random.Generator, anatomy: Anatomy, far: float) -> dict[str, float]:
    weights = {}
    for name, (low, _) in anatomy.head.shapes.items():
        value = float(np.clip(rng.normal(), -2.2, 2.2))
        part = name.partition("-")[0]
        if part in _STILL or (part == "head" and "trans" in name) or (part == "ear" and name.endswith(_ODD)):
            continue
        spread = _SPREAD[part] * far
        if low is None:  # such as an oval head: most have none of it
            value = max(0.0, value - 0.5)
        weights[name] = float(np.clip(value * spread, -1, 1))
    return weights


def _draw_skin(rng: np.random.Generator, far: float, tone: float) -> dict[str, Any]:
    light = 1 - tone
    moles = tuple(
        (float(rng.uniform(-0.85, 0.85)), float(rng.uniform(6.35, 7.95)), float(rng.uniform(0.010, 0.022)))
        for _ in range(8)
    )
    count = int(rng.integers(0, 7) * mix_of(far))
    freckled = rng.random() < 0.25 * light
    shade = max(0.0, tone - 0.25)
    pick = rng.random() ** (1 + 3 * shade)
    index = int(pick * (len(_IRISES) if tone < 0.3 else 2))
    return {
        "flush": float(rng.uniform(0.1, 0.1 + 0.8 * mix_of(far))),
        "warmth": float(np.clip(0.5 * far * rng.normal(), -1, 1)),
        "patches": float(rng.uniform(0.1, 0.1 + 0.8 * mix_of(far))),
        "freckles": float(rng.uniform(0.3, 1.0)) * mix_of(far) if freckled else 0.0,
        "moles": moles[:count],
        "shine": float(rng.uniform(0.5, 1.3)),
        "grain": (float(rng.uniform(0, 50)), float(rng.uniform(0, 50))),
        "lips": (float(rng.uniform(0.2, 1.0)), float(rng.uniform(0.0, 0.8))),
        "iris": _near(rng, _IRISES[index]),
        "pupil": float(rng.uniform(0.32, 0.48)),
        "make_up": float(rng.uniform(0.2, 1.0)),
    }


def _draw_hair(
    rng: np.random.Generator, far: float, is_male: bool, ancestry: np.ndarray[Any, Any], age: float
) -> dict[str, Any]:
    fair = float(ancestry[2])
    pick = rng.random() * (1 if fair > 0.55 else 0.34)
    color = _HAIRS[min(int(pick * len(_HAIRS)), len(_HAIRS) - 1)]
    grey = float(np.clip(rng.normal(1.7 * age - 0.62, 0.12), 0, 1))
    if is_male:
        style = rng.choice(["bald", "short", "short", "short", "medium", "long"], p=(0.13, 0.25, 0.25, 0.2, 0.13, 0.04))
        bearded = rng.random()
        amounts = rng.uniform(0.25, 1, 3)
        beard = amounts * ((0, 0, 0) if bearded < 0.4 else (1, 1, 1) if bearded < 0.75 else (1, 0.9, 0.05))
        beard = np.maximum(beard, rng.uniform(0.02, 0.16))
    else:
        style = rng.choice(["bald", "short", "medium", "long"], p=(0.01, 0.12, 0.30, 0.57))
        rng.random(4)
        beard = np.zeros(3)
    brows = (
        0.235 + 0.018 * far * rng.normal(),
        (0.052 if is_male else 0.036) * float(np.exp(0.22 * far * rng.normal())),
        0.026 + 0.012 * far * rng.normal(),
        -0.004 + 0.016 * far * rng.normal(),
        0.105 + 0.022 * far * rng.normal(),
        0.47 + 0.035 * far * rng.normal(),
        float(np.clip(0.75 + 0.18 * far * rng.normal(), 0.3, 1)),
    )
    return {
        "hair": _near(rng, color),
        "grey": grey,
        "style": str(style),
        "hairline": (
            float(7.93 + 0.06 * far * rng.normal() + (0.10 * age if is_male else 0)),
            float(rng.uniform(0, 0.32) * (0.4 + age) if is_male else rng.uniform(0, 0.06)),
        ),
        "volume": float(rng.uniform(0.05, 0.13) if style == "short" else rng.uniform(0.10, 0.24)),
        "curl": float(np.clip(rng.normal(0.8 * ancestry[0] + 0.25 * ancestry[2], 0.2), 0, 1)),
        "parting": float(rng.uniform(-1, 1)),
        "fringe": float(rng.uniform(0, 0.25 if is_male else 0.45) * (rng.random() < 0.5)),
        "length": float(rng.uniform(0.6, 1.7)),
        "beard": tuple(float(part) for part in beard),
        "brows": tuple(float(part) for part in brows),
        "glasses": (
            bool(rng.random() < 0.22 + 0.25 * age),
            float(rng.uniform(0.21, 0.28)),
            float(rng.uniform(0.13, 0.22)),
            float(rng.uniform(0.010, 0.030)),
            float(rng.uniform(2.2, 5.0)),
        ),
        "frame": tuple(float(part) for part in rng.choice(_FRAMES, axis=0) * rng.uniform(0.7, 1.1)),
    }


_FRAMES: Final = np.array(
    [(0.03, 0.03, 0.03), (0.03, 0.03, 0.03), (0.16, 0.09, 0.05), (0.5, 0.5, 0.5), (0.35, 0.05, 0.06)]
)


def _near(rng: np.random.Generator, color: Color) -> Color:
    """Return a colour that is a little lighter or darker, warmer or colder."""
    shade, warm = rng.uniform(0.85, 1.15), rng.normal() * 0.03
    red, green, blue = (float(part * shade * (1 + tint)) for part, tint in zip(color, (warm, 0, -warm), strict=True))
    return (red, green, blue)


def mix_of(far: float) -> float:
    """Return how much of what has no middle is drawn freely: all of it from an identity strength of 0.5 on."""
    return min(1.0, far)


def _rounded(value: Any) -> Any:
    """Keep six digits, so that the file of truth says exactly what was drawn."""
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return tuple(_rounded(item) for item in value) if isinstance(value, tuple) else value
