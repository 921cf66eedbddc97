"""Faces of people who do not exist, rendered from the head of MakeHuman (extra ``synthetic``)."""

from __future__ import annotations

from opqn.data.synthetic.make import OnProgress, Synthesized, draw, synthesize
from opqn.data.synthetic.people import Person
from opqn.data.synthetic.render import Picture
from opqn.data.synthetic.scenes import Scene
from opqn.data.synthetic.settings import SyntheticSettings

__all__ = [
    "OnProgress",
    "Person",
    "Picture",
    "Scene",
    "Synthesized",
    "SyntheticSettings",
    "draw",
    "synthesize",
]
