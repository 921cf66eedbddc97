import json

import numpy as np
import pytest

from opqn.bench import grouping
from opqn.data.vectors import VectorSet
from opqn.errors import DataError


def made_up(num_people, images=4, dim=16):
    """People around random centres, far apart."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(num_people, dim))
    people = np.repeat(np.arange(num_people), images)
    vectors = centres[people] + 0.1 * rng.normal(size=(len(people), dim))
    return VectorSet(vectors.astype(np.float32), people.astype(str))


def test_people_far_apart_are_put_into_their_groups():
    result = grouping.run(made_up(400), bits=[48])
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    (row,) = result["rows"]
    assert result["num_people"] == 200
    assert row["bcubed"]["f_score"] > 0.9
    assert row["pairwise"]["precision"] > 0.9
    assert 0 < row["groups"] + row["alone"] <= 800
    assert "| 48 |" in grouping.table(result)


def test_vectors_without_people_are_refused():
    with pytest.raises(DataError, match="no people"):
        grouping.run(VectorSet(np.ones((4, 3), dtype=np.float32)))
