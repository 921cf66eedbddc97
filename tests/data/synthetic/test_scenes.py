"""Strengths: what is off stays off, and turning one factor changes no other."""

from importlib.util import find_spec

import numpy as np
import pytest

from opqn.data.synthetic import SyntheticSettings
from opqn.data.synthetic.anatomy import load_anatomy
from opqn.data.synthetic.figure import shape_of
from opqn.data.synthetic.people import draw_person
from opqn.data.synthetic.scenes import draw_scene
from opqn.errors import ConfigError

pytestmark = pytest.mark.skipif(find_spec("anny") is None, reason="the extra synthetic (anny) is not installed")

FIELDS = {
    "pose": ("yaw", "pitch", "roll"),
    "light": ("lights", "sky", "ground"),
    "expression": ("expression", "gaze"),
    "age": ("age",),
    "hair": ("volume", "fringe", "beard", "make_up"),
    "background": ("background", "backdrop"),
    "occlusion": ("occlusion", "cover", "place"),
    "camera": ("distance", "exposure", "contrast", "cast", "saturation"),
    "blur": ("blur", "motion", "pixels", "noise", "quality", "seed"),
    "alignment": ("shift", "turn", "zoom"),
}
OFF = {
    "yaw": 0,
    "pitch": 0,
    "roll": 0,
    "expression": {},
    "gaze": (0, 0),
    "age": 0,
    "volume": 1,
    "beard": 1,
    "make_up": 0,
    "occlusion": "none",
    "backdrop": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "distance": 11,
    "exposure": 1,
    "contrast": 1,
    "cast": (1, 1, 1),
    "saturation": 1,
    "blur": 0,
    "motion": (0, 0),
    "pixels": 1,
    "noise": 0,
    "quality": 95,
    "shift": (0, 0),
    "turn": 0,
    "zoom": 1,
}


@pytest.fixture(scope="module")
def people():
    anatomy = load_anatomy()
    return [draw_person(np.random.default_rng(number), anatomy, 0.5) for number in range(40)]


def scenes(people, **strengths):
    settings = SyntheticSettings(**strengths)
    return [draw_scene((7, number), person, settings) for number, person in enumerate(people)]


def test_every_factor_has_its_fields(people):
    assert sorted(FIELDS) == sorted(set(SyntheticSettings.model_fields) - {"identity"})
    assert sorted(name for names in FIELDS.values() for name in names) == sorted(type(scenes(people)[0]).model_fields)


@pytest.mark.parametrize("factor", FIELDS)
def test_a_factor_that_is_off_is_off_and_changes_no_other(people, factor):
    for usual, scene, person in zip(scenes(people), scenes(people, **{factor: 0}), people, strict=True):
        before, after = usual.model_dump(), scene.model_dump()
        for other in FIELDS.keys() - {factor}:
            assert {name: after[name] for name in FIELDS[other]} == {name: before[name] for name in FIELDS[other]}
        for name in set(FIELDS[factor]) & set(OFF):
            assert after[name] == OFF[name]
        if factor == "light":
            assert len(after["lights"]) == 1
            assert after["lights"][0][0] == 0
            assert after["lights"][0][4:] == (1, 1, 1)
        if factor == "background":
            assert after["background"][0] == 0
        if factor == "hair":
            assert after["fringe"] == pytest.approx(person.fringe, abs=1e-5)


@pytest.mark.parametrize(
    ("factor", "field"), [("pose", "yaw"), ("pose", "pitch"), ("age", "age"), ("camera", "exposure")]
)
def test_a_stronger_factor_changes_more(people, factor, field):
    spreads = [
        np.std([getattr(scene, field) for scene in scenes(people, **{factor: strength})]) for strength in (0, 0.3, 1)
    ]
    assert spreads[0] < spreads[1] < spreads[2]


def test_occlusions_become_more(people):
    shares = [np.mean([scene.occlusion != "none" for scene in scenes(people, occlusion=s)]) for s in (0, 0.4, 1)]
    assert shares[0] == 0
    assert shares[0] < shares[1] < shares[2]


def test_settings_are_checked():
    with pytest.raises(ConfigError, match="did you mean 'occlusion'"):
        SyntheticSettings(oclusion=0.5)
    for value in (-0.1, 1.1, float("nan"), "much"):
        with pytest.raises(ConfigError, match="pose"):
            SyntheticSettings(pose=value)


def test_people_differ_more_than_pictures_of_one(people):
    anatomy = load_anatomy()
    shapes = np.stack([shape_of(person, anatomy) for person in people[:20]])
    older = np.stack([shape_of(person, anatomy, 0.15) for person in people[:20]])
    face = (anatomy.head.vertices[:, 1] > 6.1) & (anatomy.head.vertices[:, 2] > 0.5)
    shapes, older = (part[:, face] - part[:, face].mean(1, keepdims=True) for part in (shapes, older))
    apart = np.linalg.norm(shapes[:, None] - older, axis=-1).mean(-1)  # (20, 20)
    within = np.diag(apart).copy()
    np.fill_diagonal(apart, np.inf)
    assert within.max() < apart.min()


def test_without_identity_everybody_has_the_average_shape():
    anatomy = load_anatomy()
    shapes = [shape_of(draw_person(np.random.default_rng(number), anatomy, 0.0), anatomy) for number in range(3)]
    assert np.array_equal(shapes[0], shapes[1])
    assert np.array_equal(shapes[0], shapes[2])
    assert np.abs(shapes[0] - anatomy.head.vertices).max() > 0


def test_what_was_drawn_survives_being_written(people):
    for person, scene in zip(people, scenes(people), strict=True):
        assert type(person).model_validate_json(person.model_dump_json()) == person
        assert type(scene).model_validate_json(scene.model_dump_json()) == scene
