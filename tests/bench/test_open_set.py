import json

import numpy as np
import pytest

from opqn.bench import open_set
from opqn.data.vectors import VectorSet
from opqn.errors import DataError


def made_up(num_people, images=3, dim=16):
    """People around random centres."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(num_people, dim))
    people = np.repeat(np.arange(num_people), images)
    vectors = centres[people] + 0.15 * rng.normal(size=(len(people), dim))
    return VectorSet(vectors.astype(np.float32), people.astype(str))


def test_a_threshold_is_calibrated_and_tested_on_other_people():
    result = open_set.run(made_up(900), num_bits=24, fpir=0.1, draws=2)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    for draw in result["draws"]:
        assert draw["sizes"]["gallery_people"] == draw["sizes"]["test_people"] == 150
        assert 0 <= draw["strangers"]["fpir"] < 0.25
        assert draw["own_people"]["fpir"] < 0.25
        assert draw["rank_1"] > 0.5
    text = open_set.table(result)
    assert "| strangers |" in text
    assert "threshold for an FPIR of 10.0%, 2 draws" in text


def test_nobody_is_in_two_roles():
    people = np.repeat(np.arange(60), 4)
    roles = open_set._divide(people, np.arange(30, 60), np.random.default_rng(1))
    enrolled, calibration, test = (set(people[rows]) for rows in (roles.gallery, roles.calibration, roles.test))
    assert not enrolled & calibration
    assert not enrolled & test
    assert not calibration & test
    assert enrolled | calibration | test == set(range(30, 60))
    assert not set(roles.gallery) & set(roles.probes)
    assert set(people[roles.probes]) <= enrolled


def test_where_the_gallerys_people_are_too_few_that_is_said():
    result = open_set.run(made_up(240, images=2), num_bits=24, fpir=0.1, draws=1)
    assert result["draws"][0]["own_people"] is None
    assert "too few people" in open_set.table(result)


def test_vectors_without_people_are_refused():
    with pytest.raises(DataError, match="no people"):
        open_set.run(VectorSet(np.ones((4, 3), dtype=np.float32)))
