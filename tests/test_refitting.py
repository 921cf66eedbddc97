from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from opqn import refitting
from opqn.estimator import OPQNQuantizer
from opqn.estimator.people import PeopleModel, to_unit_length
from opqn.evaluation import evaluate
from opqn.refitting import HeadWeights, fit_head


@pytest.fixture(autouse=True)
def _fewer_made_up_people(monkeypatch):
    monkeypatch.setattr(refitting, "MADE_UP", 4096)


def people_in_noise(people=120, images=8, dim=12, noise=116):
    """Vectors of people who differ on a few axes, among many that tell nobody apart."""
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(people), images)
    told = rng.normal(size=(people, dim))[labels] + 0.5 * rng.normal(size=(len(labels), dim))
    return np.hstack([told, rng.normal(size=(len(labels), noise))]).astype(np.float32), labels


def logits(weights, features):
    units = to_unit_length(features.astype(np.float64))
    return (units @ weights[:, :-1].astype(np.float64) + weights[:, None, -1]).transpose(1, 0, 2)  # (N, M, K)


def test_shapes_and_types():
    features, labels = people_in_noise(people=20, noise=4)
    weights = fit_head(features, labels, 3, 8, seed=0)
    assert isinstance(weights, HeadWeights)
    for found in weights:
        assert found.shape == (3, 17, 8)
        assert found.dtype == np.float32
        assert np.isfinite(found).all()


def test_equal_seeds_find_equal_weights():
    features, labels = people_in_noise(people=20, noise=4)
    first, same, other = (fit_head(features, labels, 2, 4, seed).codes for seed in (0, 0, 1))
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


def test_a_table_adds_up_the_log_likelihood_ratio_of_one_person_against_two(monkeypatch):
    """Two codes' scores differ as the ratios do of their words, seen as images: worked out from the Gaussians."""
    monkeypatch.setattr(refitting, "OVERLAP", 0.0)
    features, labels = people_in_noise(people=60, noise=0)
    num_books, num_words = 2, 4
    weights = fit_head(features, labels, num_books, num_words, seed=0)
    people = PeopleModel.fit(to_unit_length(features.astype(np.float64)), labels, refitting.DOUBT)
    whitened = (to_unit_length(features.astype(np.float64)) - people.mean) @ people.whitening.T
    # Words in whitened coordinates: what makes the logits of codes is linear in them, axis by axis.
    scales = (people.between / (people.between + 1)) ** refitting.SHRINKAGE
    words = [
        np.linalg.lstsq(people.whitening.T * scales, weights.codes[book, :-1], rcond=None)[0].T / scales
        for book in range(num_books)
    ]  # (K, D) each, nought on the axes of the other book

    def ratio(x, y):
        total = 0.0
        for b, pair in zip(people.between, zip(x, y, strict=True), strict=True):
            one = multivariate_normal(cov=[[1 + b, b], [b, 1 + b]]).logpdf(pair)
            two = multivariate_normal(cov=[[1 + b, 0], [0, 1 + b]]).logpdf(pair)
            total += one - two
        return total

    tables = logits(weights.tables, features[:3])
    for query in range(3):
        scores = [tables[query, 0, i] + tables[query, 1, j] for i in range(2) for j in range(num_words)]
        ratios = [ratio(whitened[query], words[0][i] + words[1][j]) for i in range(2) for j in range(num_words)]
        np.testing.assert_allclose(np.subtract(scores, scores[0]), np.subtract(ratios, ratios[0]), rtol=1e-3, atol=1e-3)


def test_a_book_sees_a_part_of_the_axes_of_the_others(monkeypatch):
    features, labels = people_in_noise(people=60, noise=0)
    people = PeopleModel.fit(to_unit_length(features.astype(np.float64)), labels, refitting.DOUBT)
    for overlap in (0.0, 0.5):
        monkeypatch.setattr(refitting, "OVERLAP", overlap)
        codes = fit_head(features, labels, 2, 4, seed=0).codes
        seen = [np.abs(np.linalg.lstsq(people.whitening.T, codes[m, :-1], rcond=None)[0]).max(axis=1) for m in (0, 1)]
        both = (np.minimum(*seen) > 1e-3 * np.max(seen)).sum()
        assert both == (0 if overlap == 0 else len(people.between))


def found_strangers(weights, vectors, labels, is_stranger):
    query = is_stranger & (np.arange(len(labels)) % 8 < 2)
    codes = logits(weights.codes, vectors).argmax(axis=2).astype(np.uint8)
    tables = logits(weights.tables, vectors).astype(np.float32)
    gallery = is_stranger & ~query
    return evaluate(codes[gallery], labels[gallery], tables[query], labels[query]).mean_average_precision


def test_strangers_in_many_axes_of_noise_are_found_better_than_by_the_estimator(monkeypatch):
    monkeypatch.setattr(refitting, "DOUBT", 0.0)  # all people share this noise: doubt finds fewer
    vectors, labels = people_in_noise()
    known = labels < 60
    query = ~known & (np.arange(len(labels)) % 8 < 2)
    gallery = ~known & ~query
    estimator = OPQNQuantizer(shape=(4, 16)).fit(vectors[known], labels[known])
    codes, tables = estimator.encode(vectors[gallery]), estimator.lookup_tables(vectors[query])
    plain = evaluate(codes, labels[gallery], tables, labels[query]).mean_average_precision
    assert found_strangers(fit_head(vectors[known], labels[known], 4, 16, 0), vectors, labels, ~known) > plain + 0.03


def test_what_a_network_learned_by_heart_is_doubted(monkeypatch):
    """Images of training people hardly differ on some axes, and those of strangers do: doubt finds more."""
    rng = np.random.default_rng(2)
    labels = np.repeat(np.arange(60), 8)
    known = labels < 20
    noise = rng.normal(size=(len(labels), 24)) * np.where(known[:, None] & (np.arange(24) < 4), 0.05, 0.6)
    vectors = (rng.normal(size=(60, 24))[labels] + noise).astype(np.float32)
    found = []
    for doubt in (0.0, refitting.DOUBT):
        monkeypatch.setattr(refitting, "DOUBT", doubt)
        found.append(found_strangers(fit_head(vectors[known], labels[known], 4, 16, 0), vectors, labels, ~known))
    assert found[1] > found[0] + 0.03


def test_people_who_do_not_differ_still_have_weights():
    vectors = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    weights = fit_head(np.repeat(vectors, 2, axis=0), np.arange(80) % 2, 3, 4, seed=0)
    assert all(np.isfinite(found).all() for found in weights)


def test_fewer_axes_than_books_will_do():
    vectors, labels = people_in_noise(people=10, dim=2, noise=0)
    assert all(np.isfinite(found).all() for found in fit_head(vectors, labels, 4, 4, seed=0))
