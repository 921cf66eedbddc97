import dataclasses
import json
import math
import os
import tracemalloc
from fractions import Fraction
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opqn import evaluation
from opqn.codebooks import orthonormal_codebooks
from opqn.errors import ConfigError, DataError
from opqn.evaluation import evaluate, evaluate_features, quantization_error
from opqn.index import ranks

SHARED = Path(os.environ.get("OPQN_SHARED", Path(__file__).parents[2] / "shared"))
PARITY = ["opqn_M4_K64_D512", "opqn_M6_K64_D516", "opqn_M8_K64_D512"]


def slow_scores(codes, tables):
    scores = []
    for table in tables:
        row = []
        for code in codes:
            total = table[0][code[0]]
            for m in range(1, len(code)):
                total = np.float32(total + table[m][code[m]])
            row.append(float(total))
        scores.append(row)
    return scores


def slow_report(scores, gallery_labels, query_labels, ks, exclude):
    """Every metric from its definition, with loops and exact fractions; None where no query has a match."""
    per_query, ties = [], []
    for q, row in enumerate(scores):
        gallery = [n for n in range(len(row)) if n != exclude[q]]
        gallery.sort(key=lambda n, row=row: (-row[n], n))
        relevant = [bool(gallery_labels[n] == query_labels[q]) for n in gallery]
        total = sum(relevant)
        if not total:
            per_query.append(None)
            continue
        hits, precisions, found = 0, [], []
        for rank, is_match in enumerate(relevant, 1):
            hits += is_match
            precisions.append(Fraction(hits, rank))
            found.append(hits)
        per_query.append(
            {
                "ap": sum(p for p, is_match in zip(precisions, relevant, strict=True) if is_match) / total,
                "hits": {k: sum(relevant[:k]) for k in ks},
                "total": total,
                "curve": [
                    max(p for p, h in zip(precisions, found, strict=True) if 100 * h >= level * total)
                    for level in range(101)
                ],
            }
        )
        for n, is_match in zip(gallery, relevant, strict=True):
            if is_match:
                ties.append(any(row[other] == row[n] for other in gallery if other != n))
    matched = [one for one in per_query if one]
    if not matched:
        return None

    def mean(values):
        return float(sum(values) / len(matched))

    return {
        "average_precision": [float(one["ap"]) if one else math.nan for one in per_query],
        "mean_average_precision": mean([one["ap"] for one in matched]),
        "precision_at": {k: mean([Fraction(one["hits"][k], k) for one in matched]) for k in ks},
        "recall_at": {k: mean([Fraction(one["hits"][k], one["total"]) for one in matched]) for k in ks},
        "cmc": {k: mean([Fraction(one["hits"][k] > 0) for one in matched]) for k in ks},
        "precision": [mean([one["curve"][level] for one in matched]) for level in range(101)],
        "tie_share": sum(ties) / len(ties),
        "num_unmatched": len(per_query) - len(matched),
    }


def assert_report(report, expected):
    assert report.num_unmatched == expected["num_unmatched"]
    for name in ("mean_average_precision", "tie_share", "precision", "average_precision"):
        np.testing.assert_allclose(getattr(report, name), expected[name], rtol=1e-12, atol=0, err_msg=name)
    for name in ("precision_at", "recall_at", "cmc"):
        assert getattr(report, name) == pytest.approx(expected[name], rel=1e-12), name


VALUES = {
    "continuous": None,
    "ties": [0.0, 1.0],
    "signed zeros": [0.0, -0.0, 0.5],
    "+inf": [0.5, 1.0, np.inf],
    "-inf": [0.5, -1.0, -np.inf],
    "one value": [1 / 64],
}


@settings(deadline=None, max_examples=300)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_books=st.integers(1, 8),
    num_words=st.sampled_from([2, 4, 8, 16, 32, 64, 128, 256]),
    num_items=st.integers(1, 30),
    num_queries=st.integers(1, 6),
    num_people=st.integers(1, 6),
    kind=st.sampled_from(list(VALUES)),
    labels=st.sampled_from(["int64", "int8", "uint32", "str"]),
    excludes=st.booleans(),
    block=st.sampled_from([1, 2, 64]),
    near=st.sampled_from([0, 2, 2048]),
    threads=st.sampled_from([1, 3]),
)
def test_every_metric_is_that_of_its_definition(
    seed, num_books, num_words, num_items, num_queries, num_people, kind, labels, excludes, block, near, threads
):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, num_words, (num_items, num_books), dtype=np.uint8)
    codes = codes[rng.integers(0, num_items, num_items)]
    shape = (num_queries, num_books, num_words)
    values = VALUES[kind]
    tables = (rng.standard_normal(shape) if values is None else rng.choice(values, shape)).astype(np.float32)
    gallery_labels = rng.integers(0, num_people, num_items)
    query_labels = rng.integers(0, num_people + 1, num_queries)  # the last person is in no gallery
    exclude = rng.integers(-1, num_items, num_queries) if excludes else None
    ks = (1, 2, 5, 100)
    expected = slow_report(
        slow_scores(codes, tables),
        gallery_labels,
        query_labels,
        ks,
        [-1] * num_queries if exclude is None else exclude,
    )
    given_labels = [gallery_labels.astype(labels), query_labels.astype(labels)]
    with patch.object(evaluation, "MAX_BLOCK_QUERIES", block), patch.object(ranks, "MAX_NEAR", near):
        if expected is None:
            with pytest.raises(DataError, match="no query has a match"):
                evaluate(codes, given_labels[0], tables, given_labels[1], ks, exclude=exclude, threads=threads)
            return
        report = evaluate(codes, given_labels[0], tables, given_labels[1], ks, exclude=exclude, threads=threads)
    assert (report.num_gallery, report.num_queries) == (num_items, num_queries)
    assert_report(report, expected)


def test_a_ranking_worked_out_by_hand():
    # Scores .9, .5, .5, .1: the query's person stands at ranks 1 and 3, for the tie goes to the smaller position.
    codes = np.array([[2], [1], [1], [0]], dtype=np.uint8)
    tables = np.array([[[0.1, 0.5, 0.9]]], dtype=np.float32)
    report = evaluate(codes, np.array(["a", "b", "a", "b"]), tables, np.array(["a"]), k=(1, 2, 3, 8))
    assert report.mean_average_precision == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert report.precision_at == pytest.approx({1: 1, 2: 1 / 2, 3: 2 / 3, 8: 2 / 8})
    assert report.recall_at == {1: 0.5, 2: 0.5, 3: 1.0, 8: 1.0}
    assert report.cmc == {1: 1.0, 2: 1.0, 3: 1.0, 8: 1.0}
    assert report.precision[:51].tolist() == [1.0] * 51
    assert report.precision[51:] == pytest.approx([2 / 3] * 50)
    assert report.recall_levels == pytest.approx(np.linspace(0, 1, 101))
    assert report.tie_share == 0.5


@pytest.mark.parametrize("name", PARITY)
def test_figures_are_those_of_the_authors_code(name):
    path = SHARED / "parity" / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"{path} is absent: set OPQN_SHARED to the folder of shared data")
    with np.load(path) as data:
        # The authors' code keeps codes in 16 bits.
        codes = data["gallery_codes"].astype(np.uint8)
        report = evaluate(codes, data["gallery_labels"], data["query_tables"], data["query_labels"], k=(10,))
        assert report.mean_average_precision == pytest.approx(float(data["mean_average_precision"]), abs=1e-5)
        assert report.precision_at[10] == pytest.approx(float(data["precision_at_10"]), abs=1e-5)


def made_up(num_items=3000, num_queries=200, num_people=30, agreement=0.7, seed=0):
    rng = np.random.default_rng(seed)
    words = rng.integers(0, 16, (num_people, 4), dtype=np.uint8)
    gallery_labels = rng.integers(0, num_people, num_items)
    strays = rng.integers(0, 16, (num_items, 4), dtype=np.uint8)
    codes = np.where(rng.random((num_items, 4)) < agreement, words[gallery_labels], strays)
    query_labels = rng.integers(0, num_people, num_queries)
    tables = rng.random((num_queries, 4, 16), dtype=np.float32)
    np.put_along_axis(tables, words[query_labels][:, :, None], 2, axis=2)
    return codes, gallery_labels, tables, query_labels


def test_the_report_does_not_depend_on_threads_or_blocks():
    inputs = made_up()
    expected = evaluate(*inputs, threads=1).to_dict()
    for threads in (0, 2, 5):
        assert evaluate(*inputs, threads=threads).to_dict() == expected
    with patch.object(evaluation, "MAX_BLOCK_QUERIES", 7):
        assert evaluate(*inputs).to_dict() == expected


def test_a_block_holds_no_more_queries_than_fit_the_keys_of_a_gallery():
    inputs = made_up()
    sizes = []

    def place(tables, groups, wanted):
        sizes.append(len(tables))
        return ranks.place_by_codes(tables, groups, wanted)

    with patch.multiple(evaluation, max_queries=lambda num_items: 3000 // num_items * 16, place_by_codes=place):
        report = evaluate(*inputs)
    assert max(sizes) == 16
    assert report.to_dict() == evaluate(*inputs).to_dict()


def test_excluding_an_item_is_the_same_as_not_having_it():
    codes, gallery_labels, tables, query_labels = made_up(num_items=300, num_queries=1)
    for position in range(0, 300, 7):
        keep = np.arange(300) != position
        excluded = evaluate(codes, gallery_labels, tables, query_labels, exclude=np.array([position]))
        absent = evaluate(codes[keep], gallery_labels[keep], tables, query_labels)
        assert excluded.mean_average_precision == absent.mean_average_precision
        assert excluded.tie_share == absent.tie_share
        np.testing.assert_array_equal(excluded.precision, absent.precision)


def test_unmatched_queries_are_counted_and_change_no_mean():
    codes, gallery_labels, tables, query_labels = made_up()
    expected = evaluate(codes, gallery_labels, tables, query_labels).to_dict()
    strangers = np.full(50, 1000)
    report = evaluate(codes, gallery_labels, np.concatenate([tables[:50], tables]), np.append(strangers, query_labels))
    assert np.isnan(report.average_precision).sum() == 50
    assert report.to_dict() == {**expected, "num_queries": 250, "num_unmatched": 50}


def test_labels_far_apart_or_beyond_float64_are_kept_apart():
    codes = np.array([[0], [1]], dtype=np.uint8)
    tables = np.array([[[1.0, 0.0]]], dtype=np.float32)
    report = evaluate(codes, np.array([2**62, 2**62 + 1]), tables, np.array([2**62 + 1]), k=(1,))
    assert report.mean_average_precision == 0.5


def test_the_report_is_json_and_holds_no_nan():
    codes, gallery_labels, tables, query_labels = made_up()
    query_labels[0] = 99
    report = evaluate(codes, gallery_labels, tables, query_labels, k=(1, 20))
    document = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert document == report.to_dict()
    assert {field.name for field in dataclasses.fields(report)} - document.keys() == {"average_precision"}
    assert document["cmc"].keys() == {"1", "20"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.tie_share = 0.0


def test_codeword_statistics_of_codes_worked_out_by_hand():
    # Book 0 uses two of four words evenly; book 1 one word; book 2 all four, half of the items the first.
    codes = np.array([[0, 3, 0], [0, 3, 0], [0, 3, 0], [0, 3, 0], [2, 3, 1], [2, 3, 1], [2, 3, 2], [2, 3, 3]])
    labels = np.zeros(8, dtype=int)
    report = evaluate(codes.astype(np.uint8), labels, np.zeros((1, 3, 4), dtype=np.float32), labels[:1])
    assert report.codeword_use.tolist() == [0.5, 0.25, 1.0]
    assert report.codeword_entropy == pytest.approx([1.0, 0.0, 1.75])
    assert not np.signbit(report.codeword_entropy).any()


@pytest.mark.parametrize("agreement", [0.9, 0.0])
def test_memory_stays_far_below_all_scores_at_once(agreement):
    inputs = made_up(num_items=20_000, num_queries=1000, agreement=agreement)
    all_scores = 20_000 * 1000 * 4
    tracemalloc.start()
    try:
        evaluate(*inputs, threads=1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < all_scores / 3


def test_features_are_ranked_by_cosine():
    rng = np.random.default_rng(3)
    people = rng.standard_normal((8, 24))
    gallery_labels, query_labels = rng.integers(0, 8, 120), rng.integers(0, 9, 40)
    gallery = people[gallery_labels] + rng.standard_normal((120, 24))
    queries = people[query_labels % 8] + rng.standard_normal((40, 24))
    exclude = rng.integers(-1, 120, 40)
    # Lengths say nothing about a person.
    gallery *= rng.uniform(0.1, 10, (120, 1))
    queries *= rng.uniform(0.1, 10, (40, 1))
    cosines = [[g @ q / np.sqrt((g @ g) * (q @ q)) for g in gallery] for q in queries]
    expected = slow_report(cosines, gallery_labels, query_labels, (1, 5), exclude)
    report = evaluate_features(
        gallery.astype(np.float32),
        gallery_labels,
        queries.astype(np.float32),
        query_labels,
        k=(1, 5),
        exclude=exclude,
        threads=2,
    )
    assert_report(report, expected)
    assert report.codeword_use is None
    assert report.codeword_entropy is None
    assert report.to_dict()["codeword_use"] is None


def test_leaving_each_item_out_of_its_own_ranking():
    rng = np.random.default_rng(4)
    features = rng.standard_normal((60, 16)).astype(np.float32)
    labels = np.repeat(np.arange(20), 3)
    itself = evaluate_features(features, labels, features, labels, k=(1,))
    others = evaluate_features(features, labels, features, labels, k=(1,), exclude=np.arange(60))
    assert itself.cmc[1] == 1.0
    assert others.cmc[1] < 0.5


def test_extreme_lengths_and_zero_vectors_have_a_cosine():
    gallery = np.array([[3e38, 3e38], [0, 0], [-1e-44, 0]], dtype=np.float32)
    query = np.array([[1e-40, 0]], dtype=np.float32)
    report = evaluate_features(gallery, np.array([1, 0, 2]), query, np.array([0]), k=(1, 2, 3))
    assert report.cmc == {1: 0.0, 2: 1.0, 3: 1.0}


def test_quantization_error_is_the_squared_distance_of_soft_feature_and_codeword():
    rng = np.random.default_rng(5)
    logits = rng.standard_normal((3000, 3, 8)) * 3
    probs = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    books = orthonormal_codebooks(3, 12, 8).astype(np.float64)
    distances = []
    for p in probs[:200]:
        for m in range(3):
            soft = books[m] @ p[m]
            distances.append(((soft - books[m][:, p[m].argmax()]) ** 2).sum())
    assert quantization_error(probs[:200]) == pytest.approx(np.mean(distances), rel=1e-5)
    thirds = [quantization_error(part) for part in np.split(probs, 3)]
    assert quantization_error(probs) == pytest.approx(np.mean(thirds), rel=1e-12)
    assert quantization_error(np.eye(8, dtype=np.float32)[None]) == 0.0
    assert quantization_error(np.full((1, 1, 4), 0.25, dtype=np.float32)) == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("probs", "message"),
    [
        (np.zeros((2, 3)), r"\(N, M, K\)"),
        (np.zeros((2, 3, 4), dtype=np.int64), "floats"),
        (np.zeros((0, 3, 4)), "non-empty"),
        ([[[1.0]]], "array"),
        (np.full((1, 1, 2), np.nan), "NaN"),
    ],
)
def test_assignments_that_are_none_are_refused(probs, message):
    with pytest.raises(ConfigError, match=message):
        quantization_error(probs)


CODES = np.zeros((4, 2), dtype=np.uint8)
TABLES = np.zeros((3, 2, 8), dtype=np.float32)
FOUR, THREE = np.zeros(4, dtype=int), np.zeros(3, dtype=int)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gallery_codes": CODES.astype(np.int16)}, "uint8"),
        ({"gallery_codes": CODES[:, :1]}, "1 books, expected 2"),
        ({"gallery_codes": CODES + np.uint8(8)}, "a code is 8"),
        ({"query_tables": TABLES.astype(np.float64)}, "float32"),
        ({"query_tables": TABLES * np.float32(np.nan)}, "query 0 holds NaN"),
        ({"gallery_labels": FOUR[:3]}, "3 gallery labels for 4 items"),
        ({"query_labels": FOUR}, "4 query labels for 3 items"),
        ({"gallery_labels": FOUR[:, None]}, "one-dimensional"),
        ({"gallery_labels": FOUR.astype(float)}, "gallery_labels must be .* integers or strings, not float64"),
        ({"query_labels": THREE.astype(object)}, "query_labels must be .* integers or strings, not object"),
        ({"query_labels": THREE.astype(str)}, "give both the same type"),
        ({"query_labels": THREE.astype(np.uint64)}, "give both the same type"),
        ({"exclude": FOUR}, r"exclude must be \(3,\) integers"),
        ({"exclude": THREE.astype(float)}, r"exclude must be \(3,\) integers"),
        ({"exclude": THREE + 4}, "positions below 4"),
        ({"exclude": THREE - 2}, "positions below 4"),
        ({"k": (1, 0)}, "at least 1"),
        ({"k": (1.5,)}, "whole number"),
        ({"threads": -1}, "threads is -1"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    good = {
        "gallery_codes": CODES,
        "gallery_labels": FOUR,
        "query_tables": TABLES,
        "query_labels": THREE,
    }
    assert evaluate(**good).mean_average_precision == 1.0
    with pytest.raises(ConfigError, match=message):
        evaluate(**{**good, **change})


FEATURES = np.ones((4, 2), dtype=np.float32)


@pytest.mark.parametrize(
    ("gallery", "queries", "message"),
    [
        (FEATURES.astype(np.float64), FEATURES, "gallery_features must be"),
        (FEATURES, FEATURES[0], "query_features must be"),
        (FEATURES, FEATURES[:, :1], "2 dimensions, query features 1"),
        (FEATURES * np.float32(np.inf), FEATURES, "gallery_features holds NaN or infinity in row 0"),
        (FEATURES, np.array([[1, 1], [1, 1], [np.nan, 1], [1, 1]], dtype=np.float32), "in row 2"),
    ],
)
def test_features_that_have_no_cosine_are_refused(gallery, queries, message):
    with pytest.raises(ConfigError, match=message):
        evaluate_features(gallery, FOUR, queries, FOUR)


@pytest.mark.parametrize(("num_items", "num_queries"), [(0, 3), (4, 0), (0, 0), (4, 3)])
@pytest.mark.parametrize("kind", [int, str, float])
def test_nothing_to_average_is_an_error_that_says_so(num_items, num_queries, kind):
    if kind is float and num_items + num_queries:
        kind = int  # only an empty list has no type of its own
    gallery_labels, query_labels = FOUR[:num_items].astype(kind), (THREE[:num_queries] + 1).astype(kind)
    with pytest.raises(DataError, match=rf"no query has a match .*{num_queries} queries, {num_items} gallery items"):
        evaluate(CODES[:num_items], gallery_labels, TABLES[:num_queries], query_labels)
