"""How much the pictures of a person differ, factor by factor."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from opqn._settings import Settings

Strength = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class SyntheticSettings(Settings):
    """How strongly each factor changes from picture to picture: 0 turns it off, 1 is as hard as photos get.

    A factor that is off takes the same value in every picture of everyone, and leaves the others as they are.

    Attributes:
        pose: turning of the head; at 1 up to 70 degrees to a side, 30 up and down, 30 of tilt.
        light: direction, size, colour and number of lights; off, one large light in front.
        expression: smiles, open mouths, raised brows, closed eyes, looks to a side.
        age: older or younger than in other pictures; at 1 by up to 30 years.
        hair: volume, length and fringe, beards, make-up.
        background: what stands behind the head; off, plain grey.
        occlusion: glasses, sunglasses, hats, masks, hands.
        blur: out of focus, moved, small, noisy, compressed.
        camera: distance, exposure, contrast, colour cast, black and white.
        alignment: how far the five points are from where they should be, as after a detector.
        identity: how far apart people are; unlike the others, 0 makes everybody the average.
    """

    pose: Strength = 0.7
    light: Strength = 0.6
    expression: Strength = 0.5
    age: Strength = 0.3
    hair: Strength = 0.5
    background: Strength = 0.5
    occlusion: Strength = 0.3
    blur: Strength = 0.6
    camera: Strength = 0.5
    alignment: Strength = 0.4
    identity: Strength = 0.5
