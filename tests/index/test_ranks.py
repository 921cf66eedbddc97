from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opqn.index import ranks, score
from opqn.index.ranks import Placing, Wanted, group_codes, place_by_codes, place_by_scores, single_items


def sorted_placing(scores, wanted):
    """Rank each query's whole gallery by sorting it; scores are (Q, N) of items."""
    found_ranks, found_equal = [], []
    for query, row in enumerate(scores):
        items = set(wanted.items[wanted.query == query].tolist())
        gallery = [item for item in range(len(row)) if item != wanted.excluded[query]]
        gallery.sort(key=lambda item, row=row: (-row[item], item))
        for rank, item in enumerate(gallery, 1):
            if item in items:
                found_ranks.append(rank)
                found_equal.append(sum(bool(row[other] == row[item]) for other in gallery) - 1)
    return Placing(np.array(found_ranks), np.array(found_equal))


def draw_wanted(rng, num_queries, num_items):
    """Some items of each query, and for some queries an excluded one that is not wanted."""
    items, query, excluded = [], [], []
    for q in range(num_queries):
        some = rng.permutation(num_items)[: rng.integers(1, num_items + 1)]
        leaves_out = len(some) > 1 and rng.random() < 0.5
        excluded.append(int(some[0]) if leaves_out else -1)
        some = np.sort(some[1:] if leaves_out else some)
        items.append(some)
        query.append(np.full(len(some), q))
    return Wanted(np.concatenate(items), np.concatenate(query), np.array(excluded))


def assert_same(placing, expected):
    np.testing.assert_array_equal(placing.ranks, expected.ranks)
    np.testing.assert_array_equal(placing.num_equal, expected.num_equal)


VALUES = {
    "continuous": None,
    "ties": [0.0, 1.0],
    "signed zeros": [0.0, -0.0, 1e-45, -1e-45],
    "+inf": [0.5, 1.0, np.inf],
    "-inf": [0.5, -1.0, -np.inf],
    "huge": [3e38, 2e38, 1.0],
    "one value": [1 / 64],
    "both signs": [3e38, -3e38, 1e-38, 0.0],
}


def draw_values(rng, kind, shape):
    values = VALUES[kind]
    drawn = rng.standard_normal(shape) if values is None else rng.choice(values, shape)
    return drawn.astype(np.float32)


path = st.fixed_dictionaries(
    {"MAX_NEAR": st.sampled_from([0, 1, 4, 2048]), "NUM_CELLS": st.sampled_from([1, 3, 1 << 15])}
)


@settings(deadline=None, max_examples=300)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_books=st.integers(1, 8),
    num_words=st.sampled_from([2, 4, 16, 256]),
    num_items=st.integers(1, 40),
    num_queries=st.integers(1, 5),
    kind=st.sampled_from([kind for kind in VALUES if kind != "both signs"]),
    chunk=st.sampled_from([1, 3, 4096]),
    path=path,
)
def test_ranks_by_codes_are_those_of_a_sorted_gallery(
    seed, num_books, num_words, num_items, num_queries, kind, chunk, path
):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, num_words, (num_items, num_books), dtype=np.uint8)
    codes = codes[rng.integers(0, num_items, num_items)]  # some codes more than once
    tables = draw_values(rng, kind, (num_queries, num_books, num_words))
    wanted = draw_wanted(rng, num_queries, num_items)
    with patch.multiple(ranks, **path, GROUP_CHUNK=chunk):
        placing = place_by_codes(tables, group_codes(codes), wanted)
    assert_same(placing, sorted_placing(score(tables, codes), wanted))


@settings(deadline=None, max_examples=300)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_items=st.integers(1, 60),
    num_queries=st.integers(1, 4),
    kind=st.sampled_from(list(VALUES)),
    path=path,
)
def test_ranks_by_scores_are_those_of_a_sorted_gallery(seed, num_items, num_queries, kind, path):
    rng = np.random.default_rng(seed)
    scores = draw_values(rng, kind, (num_queries, num_items))
    wanted = draw_wanted(rng, num_queries, num_items)
    with patch.multiple(ranks, **path):
        placing = place_by_scores(scores, single_items(num_items), wanted)
    assert_same(placing, sorted_placing(scores, wanted))


@pytest.mark.parametrize("distinct", [50, 20_000])
@pytest.mark.parametrize("kind", ["continuous", "ties", "one value", "+inf"])
def test_ranks_in_a_large_gallery_without_structure_are_those_of_a_sorted_one(distinct, kind):
    rng = np.random.default_rng(0)
    num_items, num_queries = 20_000, 3
    codes = rng.integers(0, 64, (distinct, 6), dtype=np.uint8)[rng.integers(0, distinct, num_items)]
    tables = draw_values(rng, kind, (num_queries, 6, 64))
    items = np.sort(rng.permuted(np.tile(np.arange(num_items), (num_queries, 1)), axis=1)[:, :80], axis=1)
    wanted = Wanted(items.ravel(), np.repeat(np.arange(num_queries), 80), np.full(num_queries, -1))
    placing = place_by_codes(tables, group_codes(codes), wanted)
    scores = score(tables, codes)
    order = np.argsort(-scores, axis=1, kind="stable")
    expected = [np.flatnonzero(np.isin(row, own)) + 1 for row, own in zip(order, items, strict=True)]
    np.testing.assert_array_equal(placing.ranks, np.concatenate(expected))


def test_groups_hold_every_item_once_in_order_of_position():
    codes = np.array([[1, 0], [0, 2], [1, 0], [0, 1], [1, 0]], dtype=np.uint8)
    groups = group_codes(codes)
    assert groups.codes.tolist() == [[0, 1], [0, 2], [1, 0]]
    assert groups.of_item.tolist() == [2, 1, 2, 0, 2]
    assert groups.place_in_group.tolist() == [0, 0, 1, 0, 2]
    assert groups.weights.tolist() == [1, 1, 3]
    assert groups.members.tolist() == [3, 1, 0, 2, 4]


@pytest.mark.parametrize("num_items", [1, 2, 3, 100_000, 2**26, 2**26 + 1, 2**31])
def test_queries_and_positions_share_the_bits_that_scores_leave(num_items):
    num_queries = ranks.max_queries(num_items)
    keys = ranks._Keys(num_items)
    last = np.array([num_queries - 1])
    largest = keys.pack(last, np.array([-np.inf], dtype=np.float32), np.array([num_items - 1]))
    assert keys.query(largest) == last
    assert keys.low(largest) == num_items - 1
