import itertools
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opqn.errors import ConfigError
from opqn.index import ReferenceIndex, reference, score

WORDS = [2, 4, 8, 16, 32, 64, 128, 256]


def slow_score(tables, codes):
    """The definition, one float32 addition at a time."""
    scores = np.empty((len(tables), len(codes)), dtype=np.float32)
    for q, n in itertools.product(range(len(tables)), range(len(codes))):
        total = tables[q, 0, codes[n, 0]]
        for m in range(1, codes.shape[1]):
            with np.errstate(over="ignore"):
                total = np.float32(total + tables[q, m, codes[n, m]])
        scores[q, n] = total
    return scores


def slow_search(tables, items, k):
    """Sort all items by (-score, id); ``items`` maps id to code."""
    ids = sorted(items)
    codes = np.array([items[i] for i in ids], dtype=np.uint8).reshape(len(ids), tables.shape[1])
    scores = slow_score(tables, codes)
    hits = []
    for row in scores:
        ranked = sorted(zip(row.tolist(), ids, strict=True), key=lambda hit: (-hit[0], hit[1]))[:k]
        hits.append(ranked + [(-np.inf, -1)] * (k - len(ranked)))
    return hits


def draw_tables(rng, kind, shape):
    if kind == "ties":
        return rng.integers(0, 2, shape).astype(np.float32)
    if kind == "signed zeros":
        return rng.choice(np.array([0.0, -0.0, -1.0], dtype=np.float32), shape)
    if kind == "+inf":
        return rng.choice(np.array([0.5, 1.0, np.inf], dtype=np.float32), shape)
    if kind == "-inf":
        return rng.choice(np.array([0.5, -1.0, -np.inf], dtype=np.float32), shape)
    if kind == "huge":
        return rng.choice(np.array([3e38, 2e38, 1.0], dtype=np.float32), shape)
    return rng.standard_normal(shape).astype(np.float32)


KINDS = ["continuous", "ties", "signed zeros", "+inf", "-inf", "huge"]


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_books=st.integers(1, 8),
    num_words=st.sampled_from(WORDS),
    sizes=st.tuples(st.integers(0, 4), st.integers(0, 12)),
    kind=st.sampled_from(KINDS),
)
def test_score_is_the_sum_of_entries_from_left_to_right_bit_for_bit(seed, num_books, num_words, sizes, kind):
    rng = np.random.default_rng(seed)
    tables = draw_tables(rng, kind, (sizes[0], num_books, num_words))
    codes = rng.integers(0, num_words, (sizes[1], num_books), dtype=np.uint8)
    scores = score(tables, codes)
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores.view(np.uint32), slow_score(tables, codes).view(np.uint32))


def test_order_of_addition_shows_in_the_score():
    tables = np.array([[[1e8, 0], [1, 0], [-1e8, 0]]], dtype=np.float32)
    # From the left the 1 is lost in 1e8; from the right, or in float64, the sum would be 1.
    assert score(tables, np.zeros((1, 3), dtype=np.uint8)).item() == 0.0


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_books=st.integers(1, 8),
    num_words=st.sampled_from(WORDS),
    num_queries=st.integers(0, 5),
    k=st.integers(1, 12),
    kind=st.sampled_from(KINDS),
    chunks=st.sampled_from([(1, 1), (2, 3), (64, 65_536)]),
    steps=st.lists(st.tuples(st.sampled_from(["add", "add ids", "remove"]), st.integers(0, 8)), max_size=6),
)
def test_index_behaves_as_a_dictionary_that_is_sorted_for_every_query(
    seed, num_books, num_words, num_queries, k, kind, chunks, steps
):
    rng = np.random.default_rng(seed)
    index = ReferenceIndex(num_books, num_words)
    items, next_id = {}, 0
    for action, count in steps:
        if action == "remove":
            gone = rng.permutation(sorted(items))[:count].astype(np.int64)
            assert index.remove(gone) == len(gone)
            items = {i: code for i, code in items.items() if i not in set(gone.tolist())}
            continue
        # Few distinct codes, so that ties are common.
        codes = rng.integers(0, min(num_words, 3), (count, num_books), dtype=np.uint8)
        wanted = None
        if action == "add ids":
            free = [i for i in range(60) if i not in items]
            wanted = rng.permutation(free)[:count]
            codes = codes[: len(wanted)]
        ids = index.add(codes, wanted)
        expected = range(next_id, next_id + len(codes)) if wanted is None else wanted.tolist()
        assert ids.dtype == np.int64
        assert ids.tolist() == list(expected)
        items.update(zip(ids.tolist(), codes, strict=True))
        next_id = max([next_id, *(i + 1 for i in ids.tolist())])
    assert len(index) == len(items)

    tables = draw_tables(rng, kind, (num_queries, num_books, num_words))
    with patch.object(reference, "QUERY_CHUNK", chunks[0]), patch.object(reference, "ITEM_CHUNK", chunks[1]):
        scores, ids = index.search(tables, k)
    assert (scores.dtype, ids.dtype, scores.shape, ids.shape) == (np.float32, np.int64, *[(num_queries, k)] * 2)
    hits = [list(zip(*row, strict=True)) for row in zip(scores.tolist(), ids.tolist(), strict=True)]
    assert hits == slow_search(tables, items, k)


def test_equal_scores_come_in_order_of_id_whatever_the_order_of_adding():
    index = ReferenceIndex(2, 4)
    index.add(np.zeros((5, 2), dtype=np.uint8), [30, 10, 50, 20, 40])
    _, ids = index.search(np.ones((1, 2, 4), dtype=np.float32), k=3)
    assert ids.tolist() == [[10, 20, 30]]


def test_an_item_that_scores_minus_infinity_is_a_hit_and_padding_is_not():
    index = ReferenceIndex(1, 2)
    index.add(np.array([[1]], dtype=np.uint8))
    scores, ids = index.search(np.array([[[0, -np.inf]]], dtype=np.float32), k=2)
    assert scores.tolist() == [[-np.inf, -np.inf]]
    assert ids.tolist() == [[0, -1]]


def test_a_removed_id_is_not_given_again():
    index = ReferenceIndex(1, 2)
    codes = np.zeros((3, 1), dtype=np.uint8)
    index.remove(index.add(codes))
    assert len(index) == 0
    assert index.add(codes).tolist() == [3, 4, 5]


def test_a_million_items_are_added_and_searched():
    codes = np.random.default_rng(0).integers(0, 16, (1_000_000, 4), dtype=np.uint8)
    codes[777_777] = 15
    index = ReferenceIndex(4, 16)
    ids = index.add(codes)
    assert len(index) == 1_000_000
    scores, found = index.search(np.tile(np.arange(16, dtype=np.float32), (1, 4, 1)), k=5)
    best = np.flatnonzero((codes == 15).all(axis=1))[:5]
    assert found[0].tolist() == ids[best].tolist()
    assert scores[0].tolist() == [60.0] * 5


def test_returned_ids_and_given_arrays_are_not_held():
    index = ReferenceIndex(1, 2)
    codes = np.array([[1], [0]], dtype=np.uint8)
    ids = index.add(codes, np.array([0, 1]))
    codes[:] = 0
    ids[:] = 9
    _, found = index.search(np.array([[[0.0, 1.0]]], dtype=np.float32), k=2)
    assert found.tolist() == [[0, 1]]


GOOD_TABLES = np.zeros((2, 3, 4), dtype=np.float32)
GOOD_CODES = np.zeros((5, 3), dtype=np.uint8)


def with_entry(*entries):
    tables = GOOD_TABLES.copy()
    for position, value in entries:
        tables[position] = value
    return tables


BAD_TABLES = [
    (GOOD_TABLES.astype(np.float64), "float32"),
    (GOOD_TABLES.tolist(), "not a list"),
    (GOOD_TABLES[0], r"\(Q, M, K\)"),
    (np.zeros((1, 0, 4), dtype=np.float32), "M >= 1"),
    (np.zeros((1, 3, 257), dtype=np.float32), r"1\.\.256"),
    (np.zeros((1, 3, 0), dtype=np.float32), r"1\.\.256"),
    (with_entry(((1, 2, 3), np.nan)), "query 1 holds NaN"),
    (with_entry(((1, 0, 0), np.inf), ((1, 2, 3), -np.inf)), "query 1 a code would add up"),
    (with_entry(((0, 0, 0), -np.inf), ((0, 1, 3), np.inf)), "query 0 a code would add up"),
    (with_entry(((0, 0, 0), 3e38), ((0, 1, 0), 3e38), ((0, 2, 0), -np.inf)), "query 0 a code would add up"),
    (with_entry(((0, 0, 0), -3e38), ((0, 1, 0), -3e38), ((0, 2, 0), np.inf)), "query 0 a code would add up"),
]


@pytest.mark.parametrize(("tables", "message"), BAD_TABLES)
def test_tables_that_are_not_tables_are_refused(tables, message):
    with pytest.raises(ConfigError, match=message):
        score(tables, GOOD_CODES)
    with pytest.raises(ConfigError, match=message):
        ReferenceIndex(3, 4).search(tables)


def test_infinities_that_no_code_adds_up_are_allowed():
    tables = with_entry(((0, 1, 0), np.inf), ((0, 1, 1), -np.inf))
    codes = np.array([[0, 0, 0], [0, 1, 0], [0, 2, 0]], dtype=np.uint8)
    assert score(tables, codes)[0].tolist() == [np.inf, -np.inf, 0.0]


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (GOOD_CODES.astype(np.int64), "uint8"),
        (GOOD_CODES[0], r"\(N, M\)"),
        (GOOD_CODES.tolist(), "not a list"),
        (GOOD_CODES[:, :2], "2 books, expected 3"),
        (GOOD_CODES + np.uint8(4), "a code is 4, but there are 4 words"),
    ],
)
def test_codes_that_are_not_codes_are_refused(codes, message):
    index = ReferenceIndex(3, 4)
    with pytest.raises(ConfigError, match=message):
        score(GOOD_TABLES, codes)
    with pytest.raises(ConfigError, match=message):
        index.add(codes)
    assert len(index) == 0


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0, 1, 2, 3], "4 ids for 5 codes"),
        ([0, 1, 2, 3, 3], "id 3 would occur twice"),
        ([0, 1, 2, 3, 100], "id 100 would occur twice"),
        ([0, 1, 2, 3, -4], r"ids run from -4 to 3"),
        (np.array([0, 1, 2, 3, 2**63], dtype=np.uint64), "must lie in 0"),
        ([0.0, 1.0, 2.0, 3.0, 4.0], "integers"),
        ([[0, 1, 2, 3, 4]], "one-dimensional"),
    ],
)
def test_bad_ids_are_refused_and_nothing_is_added(ids, message):
    index = ReferenceIndex(3, 4)
    index.add(GOOD_CODES[:1], [100])
    with pytest.raises(ConfigError, match=message):
        index.add(GOOD_CODES, ids)
    assert len(index) == 1
    assert index.add(GOOD_CODES[:1]).tolist() == [101]


def test_an_unknown_id_is_named_and_nothing_is_removed():
    index = ReferenceIndex(3, 4)
    index.add(GOOD_CODES)
    with pytest.raises(ConfigError, match="id 7 is not in the index"):
        index.remove([1, 7, 9])
    assert len(index) == 5
    assert index.remove([1, 1, 2]) == 2
    assert index.remove([]) == 0


def test_ids_end_at_the_largest_int64():
    index = ReferenceIndex(3, 4)
    assert index.add(GOOD_CODES[:1], [2**63 - 1]).tolist() == [2**63 - 1]
    with pytest.raises(ConfigError, match="pass ids"):
        index.add(GOOD_CODES[:1])
    assert index.add(GOOD_CODES[:1], [3]).tolist() == [3]


@pytest.mark.parametrize(
    ("num_books", "num_words", "message"),
    [(0, 4, "num_books is 0"), (65, 4, "num_books is 65"), (2, 3, "power of two"), (2, 512, "512"), (2, 1, "2..256")],
)
def test_shapes_that_codes_cannot_have_are_refused(num_books, num_words, message):
    with pytest.raises(ConfigError, match=message):
        ReferenceIndex(num_books, num_words)


def test_search_refuses_tables_of_another_model_and_a_k_below_one():
    index = ReferenceIndex(3, 8)
    with pytest.raises(ConfigError, match="another model"):
        index.search(GOOD_TABLES)
    with pytest.raises(ConfigError, match="k is 0"):
        ReferenceIndex(3, 4).search(GOOD_TABLES, k=0)
