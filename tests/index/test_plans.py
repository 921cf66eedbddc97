"""Every plan of the native core on every kernel, against the definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opqn.index import ReferenceIndex, _native, score

PLANS = ["any", "scan", "bounds", "lists", "cells", "cover"]
WORDS = [2, 4, 16, 32, 64, 256]
SPECIAL = {
    "ties": [0.0, 1.0],
    "signed zeros": [0.0, -0.0, -1.0],
    "+inf": [0.5, 1.0, np.inf],
    "-inf": [0.5, -1.0, -np.inf],
    "huge": [3e38, 2e38, 1.0],
    "one value": [1 / 64],
    "tiny": [0.0, 1e-45, -1e-45],
}
KINDS = ["peaked", "softmax", "negative", "far apart", *SPECIAL]


def draw_codes(rng, num_items, num_books, num_words, num_people):
    """People's codes, of which images keep nine words in ten."""
    people = rng.integers(0, num_words, (num_people, num_books), dtype=np.uint8)
    codes = people[rng.integers(0, num_people, num_items)]
    other = rng.integers(0, num_words, codes.shape, dtype=np.uint8)
    return np.where(rng.random(codes.shape) < 0.9, codes, other), people


def draw_tables(rng, kind, people, num_queries, num_words):
    shape = (num_queries, people.shape[1], num_words)
    if kind in SPECIAL:
        return rng.choice(np.array(SPECIAL[kind], dtype=np.float32), shape)
    logits = rng.standard_normal(shape)
    best = people[rng.integers(0, len(people), num_queries)][:, :, None].astype(np.intp)
    np.put_along_axis(logits, best, logits.max() + rng.uniform(0, 3, best.shape), axis=2)
    if kind == "negative":
        return (logits - 9).astype(np.float32)
    if kind == "far apart":
        return (10 ** rng.uniform(-8, 8, shape)).astype(np.float32)
    odds = np.exp((6 if kind == "peaked" else 1) * logits)
    return (odds / odds.sum(axis=2, keepdims=True)).astype(np.float32)


def build(codes, ids, num_words, clique=4, has_lists=True, has_planes=True):
    return _native.build(codes, ids, num_words=num_words, clique=clique, has_lists=has_lists, has_planes=has_planes)


def expected(codes, ids, tables, k):
    """Sort everything; (Q, k), padded."""
    order = np.argsort(ids)
    scores = score(tables, codes[order])
    found = np.full((len(tables), k), -np.inf, dtype=np.float32), np.full((len(tables), k), -1, dtype=np.int64)
    for query, row in enumerate(scores):
        best = np.argsort(-row, kind="stable")[:k]
        found[0][query, : len(best)] = row[best]
        found[1][query, : len(best)] = ids[order][best]
    return found


def assert_same(found, wanted):
    np.testing.assert_array_equal(found[0], wanted[0])
    np.testing.assert_array_equal(found[1], wanted[1])


@pytest.fixture(params=_native.available_kernels())
def kernel(request):
    _native.choose_kernel(request.param)
    yield request.param
    _native.choose_kernel(_native.available_kernels()[0])


case = {
    "seed": st.integers(0, 2**32 - 1),
    "num_books": st.integers(1, 12) | st.just(64),
    "num_words": st.sampled_from(WORDS),
    "num_items": st.integers(0, 300) | st.integers(2000, 6000),
    "num_people": st.sampled_from([1, 3, 100]),
    "kind": st.sampled_from(KINDS),
    "k": st.integers(1, 120),
    "clique": st.sampled_from([0, 2, 4, 8]),
}


@pytest.mark.parametrize("plan", PLANS)
@settings(deadline=None, max_examples=60)
@given(**case, share_allowed=st.sampled_from([None, 0.0, 0.01, 0.7]))
def test_hits_are_those_of_the_definition(
    plan, seed, num_books, num_words, num_items, num_people, kind, k, clique, share_allowed
):
    rng = np.random.default_rng(seed)
    codes, people = draw_codes(rng, num_items, num_books, num_words, num_people)
    tables = draw_tables(rng, kind, people, 2, num_words)
    ids = rng.permutation(3 * num_items)[:num_items].astype(np.int64)
    if seed % 3 == 0:
        ids *= 2**40  # too far apart for 32 bits
    cut = num_items // 3
    segments = [build(codes[part], ids[part], num_words, clique) for part in (slice(0, cut), slice(cut, None))]
    masks = [None, None]
    if share_allowed is not None:
        allowed = [np.zeros(0, dtype=np.int64)]
        for number, segment in enumerate(segments):
            chosen = rng.random(len(segment)) < share_allowed
            masks[number] = np.packbits(chosen, bitorder="little"), int(chosen.sum())
            allowed.append(segment.ids()[chosen])
        keep = np.isin(ids, np.concatenate(allowed))
        codes, ids = codes[keep], ids[keep]
    assert_same(_native.search(segments, masks, tables, k, plan=plan), expected(codes, ids, tables, k))


@settings(deadline=None, max_examples=40)
@given(**{name: draw for name, draw in case.items() if name != "k"}, reach=st.floats(0, 1))
def test_items_within_a_threshold_are_all_found(seed, num_books, num_words, num_items, num_people, kind, clique, reach):
    rng = np.random.default_rng(seed)
    codes, people = draw_codes(rng, num_items, num_books, num_words, num_people)
    tables = draw_tables(rng, kind, people, 1, num_words)
    ids = np.arange(num_items)
    segment = build(codes, ids, num_words, clique)
    scores, order = (part[0] for part in expected(codes, ids, tables, max(num_items, 1)))
    threshold = scores[int(reach * (num_items - 1))] if num_items else np.float32(0)
    ((found_scores, found_ids),) = _native.search_within([segment], [None], tables, threshold)
    count = int((scores >= threshold).sum()) if num_items else 0
    assert_same((found_scores, found_ids), (scores[:count], order[:count]))


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("num_words", WORDS)
def test_every_kernel_finds_the_hits_of_the_definition(num_words):
    rng = np.random.default_rng(0)
    for num_books in (1, 2, 3, 7, 8, 16):
        codes, people = draw_codes(rng, 3000, num_books, num_words, 50)
        segment = build(codes, np.arange(3000), num_words, clique=0, has_lists=False)
        for kind in KINDS:
            tables = draw_tables(rng, kind, people, 2, num_words)
            found = _native.search([segment], [None], tables, 20, plan="bounds")
            assert_same(found, expected(codes, np.arange(3000), tables, 20))


def test_a_kernel_that_the_processor_lacks_is_refused():
    with pytest.raises(ValueError, match="no kernel abacus"):
        _native.choose_kernel("abacus")


# With 100,000 items of people there are several blocks, and every plan is a sensible choice for some query.


@pytest.fixture(scope="module")
def many():
    rng = np.random.default_rng(1)
    codes, people = draw_codes(rng, 100_000, 8, 256, 2000)
    ids = np.arange(100_000)
    reference = ReferenceIndex(8, 256)
    reference.add(codes)
    return build(codes, ids, 256, clique=8), reference, people


@pytest.mark.parametrize(("num_books", "num_words"), [(8, 256), (16, 16), (3, 64)])
@pytest.mark.parametrize("kind", ["peaked", "softmax", "ties"])
def test_bounds_alone_find_the_hits_among_many_items(num_books, num_words, kind):
    rng = np.random.default_rng(1)
    codes, people = draw_codes(rng, 100_000, num_books, num_words, 2000)
    segment = build(codes, np.arange(100_000), num_words, clique=0, has_lists=False)
    reference = ReferenceIndex(num_books, num_words)
    reference.add(codes)
    tables = draw_tables(rng, kind, people, 4, num_words)
    for k in (1, 10, 100, 1000):
        found = _native.search([segment], [None], tables, k, plan="bounds")
        assert_same(found, reference.search(tables, k))


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("kind", ["peaked", "softmax", "ties"])
def test_plans_agree_on_many_items(many, plan, kind):
    segment, reference, people = many
    tables = draw_tables(np.random.default_rng(2), kind, people, 4, 256)
    for k in (1, 10, 100, 1000):
        assert_same(_native.search([segment], [None], tables, k, plan=plan), reference.search(tables, k))


@pytest.mark.parametrize("plan", ["scan", "bounds", "lists", "cells", "cover"])
def test_a_plan_that_is_asked_for_runs_where_it_can_prove_its_answer(many, plan):
    segment, _, people = many
    tables = draw_tables(np.random.default_rng(3), "peaked", people, 20, 256)
    told = [_native.explain([segment], [None], tables[q : q + 1], 100, plan=plan)[0] for q in range(20)]
    assert any(entry["plans"] == [plan] for entry in told)


def test_a_peaked_table_is_answered_from_a_few_cells_and_a_flat_one_by_a_scan(many):
    segment, _, people = many
    peaked = draw_tables(np.random.default_rng(4), "peaked", people, 1, 256)
    (told,) = _native.explain([segment], [None], peaked, 10)
    assert told["plans"] in (["cells"], ["cover"])
    assert told["num_scored"] < 2000
    flat = np.random.default_rng(5).random(peaked.shape, dtype=np.float32)
    (told,) = _native.explain([segment], [None], flat, 10)
    assert told["plans"] == ["bounds"]
    assert told["num_scored"] > 50_000


def test_a_table_of_equal_entries_is_scanned_once(many):
    segment, reference, _ = many
    table = np.full((1, 8, 256), 1 / 256, dtype=np.float32)
    (told,) = _native.explain([segment], [None], table, 10)
    assert told["num_scored"] < 1.1 * told["num_codes"], "the cells all tie and must not be visited one by one"
    assert_same(_native.search([segment], [None], table, 10), reference.search(table, 10))


def test_threads_find_what_one_finds(many):
    segment, reference, people = many
    tables = draw_tables(np.random.default_rng(6), "peaked", people, 50, 256)
    assert_same(_native.search([segment], [None], tables, 10, num_threads=3), reference.search(tables, 10))


# What Python cannot check is checked where memory depends on it


def test_arguments_that_do_not_fit_are_refused():
    codes, ids = np.zeros((4, 2), dtype=np.uint8), np.arange(4)
    segment = build(codes, ids, 4)
    tables = np.zeros((1, 2, 4), dtype=np.float32)
    with pytest.raises(ValueError, match="one id"):
        build(codes, ids[:2], 4)
    with pytest.raises(ValueError, match="not below"):
        build(codes + 4, ids, 4)
    with pytest.raises(ValueError, match="different shape"):
        _native.search([segment], [None], tables[:, :1], 1)
    with pytest.raises(ValueError, match="mask, or None"):
        _native.search([segment], [], tables, 1)
    with pytest.raises(ValueError, match="mask of the wrong size"):
        _native.search([segment], [(np.zeros(2, dtype=np.uint8), 0)], tables, 1)
    with pytest.raises(ValueError, match="no search plan"):
        _native.search([segment], [None], tables, 1, plan="guess")
