import json

import numpy as np
import pytest

from opqn.bench import vectors
from opqn.data.vectors import VectorSet
from opqn.errors import ConfigError, DataError
from opqn.estimator import quantizer

pytest.importorskip("faiss", reason="FAISS comes with opqn[bench]")
PEOPLE, IMAGES, DIM = 120, 5, 24


def draw():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(PEOPLE), IMAGES)
    made = (rng.normal(size=(PEOPLE, DIM)) * np.linspace(2, 0.5, DIM))[labels]
    return (made + 0.6 * rng.normal(size=made.shape)).astype(np.float32), labels


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    made, labels = draw()
    path = tmp_path_factory.mktemp("vectors") / "made_up.npz"
    VectorSet(made, np.array([f"person {label}" for label in labels])).save(path)
    return path


def test_the_result_is_json_and_has_every_method(monkeypatch, path):
    monkeypatch.setattr(quantizer, "MADE_UP", 2048)
    stages = []
    result = vectors.run(path, bits=(24,), seeds=(0,), on_stage=stages.append)
    assert stages[0] == "seed 0, 24 bits: OPQNQuantizer"
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["num_people"] == PEOPLE
    assert [row["method"] for row in result["rows"]] == [vectors.FULL, *vectors.METHODS]


def test_means_are_those_of_queries_and_of_people():
    means = vectors._means(np.array([1.0, 1.0, 1.0, 0.0]), np.array([7, 7, 7, 3]))
    assert means == (0.75, 0.5)


def test_halves_share_no_person():
    made, labels = draw()
    first, second = vectors.halves(vectors.Vectors(made, labels), 3)
    assert not set(first.people) & set(second.people)
    assert len(np.unique(first.people)) == len(np.unique(second.people)) == PEOPLE // 2
    assert len(first.vectors) + len(second.vectors) == PEOPLE * IMAGES


def test_a_file_that_does_not_say_who_is_refused(tmp_path):
    VectorSet(draw()[0]).save(tmp_path / "vectors.npz")
    with pytest.raises(DataError, match="no array `people`"):
        vectors.run(tmp_path / "vectors.npz")


def test_halves_without_a_query_are_refused(tmp_path):
    VectorSet(np.eye(8, dtype=np.float32), np.arange(8).astype(str)).save(tmp_path / "vectors.npz")
    with pytest.raises(DataError, match="nobody with 4 images"):
        vectors.run(tmp_path / "vectors.npz")


@pytest.mark.parametrize("nothing", [{"bits": ()}, {"seeds": ()}])
def test_nothing_to_do_is_refused(path, nothing):
    with pytest.raises(ConfigError):
        vectors.run(path, **nothing)


def test_the_table_has_means_and_spreads():
    def row(seed, bits, method, shape, seconds, value):
        means = {"queries": value, "people": value / 2}
        return {
            "seed": seed,
            "bits": bits,
            "method": method,
            "shape": shape,
            "seconds": seconds,
            "seen": means,
            "unseen": means,
        }

    result = {
        "file": "faces.npz", "bits": [24], "seeds": [0, 1], "num_vectors": 1000, "num_people": 100, "cpus": 2,
        "rows": [
            row(0, 24, "OPQ", [4, 64], 1.0, 0.4), row(1, 24, "OPQ", [4, 64], 3.0, 0.6),
            row(0, None, vectors.FULL, None, None, 0.9), row(1, None, vectors.FULL, None, None, 0.9),
        ],
    }  # fmt: skip
    text = vectors.table(result)
    assert "| 24 | OPQ | 4 x 64 | 0.500 ± 0.100 | 0.250 ± 0.050 | 0.500 ± 0.100 | 0.250 ± 0.050 | 2 |" in text
    assert "| - | not quantized | - | 0.900 ± 0.000 |" in text
    assert "1,000 vectors of 100 people" in text
