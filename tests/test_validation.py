"""The query temperature is the best of an explicit table, and validation looks at the images it is given."""

import numpy as np
import pytest
import torch
from PIL import Image

from opqn.data.dataset import FaceDataset
from opqn.model import OPQN, ModelConfig
from opqn.validation import QUERY_TEMPERATURES, dataset_features, fit_query_temperature


def tables_of(features):
    def make(temperature):
        weights = np.exp(temperature * features)
        return (weights / weights.sum(axis=2, keepdims=True)).astype(np.float32)

    return make


def explicit_map(codes, labels, tables, query_labels):
    """Mean average precision, straight from its definition."""
    precisions = []
    for table, label in zip(tables, query_labels, strict=True):
        scores = []
        for code in codes:
            score = np.float32(0)
            for book, word in enumerate(code):
                score = np.float32(score + table[book, word])
            scores.append(score)
        order = sorted(range(len(codes)), key=lambda item: (-scores[item], item))
        ranks = [rank for rank, item in enumerate(order, 1) if labels[item] == label]
        precisions.append(sum(hits / rank for hits, rank in enumerate(ranks, 1)) / len(ranks))
    return sum(precisions) / len(precisions)


def test_best_of_an_explicit_table_is_chosen():
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 8, (40, 3)).astype(np.uint8)
    labels, query_labels = np.repeat(np.arange(5), 8), np.repeat(np.arange(5), 4)
    tables_at = tables_of(rng.normal(size=(20, 3, 8)))
    best, maps = fit_query_temperature(codes, labels, tables_at, query_labels)
    expected = {t: explicit_map(codes, labels, tables_at(t), query_labels) for t in QUERY_TEMPERATURES}
    assert maps == pytest.approx(expected)
    assert len({round(value, 9) for value in maps.values()}) > 3
    assert expected[best] == pytest.approx(max(expected.values()))


def test_of_equal_temperatures_the_nearest_to_one_is_chosen():
    codes = np.array([[0], [1]], np.uint8)
    labels = np.array([0, 1])
    tables_at = tables_of(np.array([[[1.0, 0.0]], [[0.0, 1.0]]]))
    for temperatures, expected in (((0.5, 1.0, 2.0), 1.0), ((8.0, 4.0, 2.0), 2.0), ((0.25, 0.5), 0.5)):
        best, maps = fit_query_temperature(codes, labels, tables_at, labels, temperatures)
        assert set(maps.values()) == {1.0}
        assert best == expected


def test_image_in_place_of_an_unreadable_one_brings_its_own_label(tmp_path):
    root = tmp_path
    for person, number in ((0, 0), (1, 0)):
        (root / f"p{person}").mkdir()
        pixels = np.random.default_rng(person).integers(0, 256, (40, 40, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"p{person}/{number}.png")
    (root / "p0/1.png").write_bytes(b"broken")
    data = FaceDataset(root, ["p0/0.png", "p0/1.png", "p1/0.png"], [0, 0, 1], 35, cache_bytes=0)
    data.preload()
    features, labels = dataset_features(OPQN(ModelConfig(backbone="resnet20-32-narrow")), data)
    assert labels.tolist() == [0, 1, 1]
    assert torch.equal(features[1], features[2])


def test_features_of_chosen_images_are_those_among_all(drawn_faces):
    root, split = drawn_faces
    data = FaceDataset(root, split.query, range(len(split.query)), 35)
    data.preload()
    model = OPQN(ModelConfig(backbone="resnet20-32-narrow"))
    features, labels = dataset_features(model, data)
    chosen, chosen_labels = dataset_features(model, data, [1, 4, 6])
    assert chosen_labels.tolist() == labels[[1, 4, 6]].tolist() == [1, 4, 6]
    torch.testing.assert_close(chosen, features[[1, 4, 6]])
