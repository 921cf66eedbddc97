import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opqn.errors import ConfigError
from opqn.index import CodeIndex, ReferenceIndex, code_index
from opqn.index.reference import MAX_ID


def draw_codes(rng, count, num_books=4, num_words=32):
    return rng.integers(0, num_words, (count, num_books), dtype=np.uint8)


def draw_tables(rng, count, num_books=4, num_words=32):
    return (rng.random((count, num_books, num_words)) ** 8).astype(np.float32)


def assert_same(found, wanted):
    np.testing.assert_array_equal(found[0], wanted[0])
    np.testing.assert_array_equal(found[1], wanted[1])


step = st.one_of(
    st.tuples(st.just("add"), st.integers(0, 300)),
    st.tuples(st.just("add with ids"), st.integers(0, 50)),
    st.tuples(st.just("remove"), st.floats(0, 1)),
    st.tuples(st.just("search"), st.integers(1, 400)),
    st.tuples(st.just("merge"), st.none()),
    st.tuples(st.just("purge"), st.none()),
)


@settings(deadline=None, max_examples=80)
@given(
    seed=st.integers(0, 2**32 - 1),
    steps=st.lists(step, max_size=25),
    profile=st.sampled_from(["compact", "balanced", "fast"]),
    num_books=st.integers(1, 9),
    num_words=st.sampled_from([2, 16, 32]),
    tail=st.sampled_from([1, 16, 4096]),
)
def test_an_index_is_the_reference_through_adding_removing_and_merging(
    seed, steps, profile, num_books, num_words, tail
):
    rng = np.random.default_rng(seed)
    index, reference = CodeIndex(num_books, num_words, profile), ReferenceIndex(num_books, num_words)
    held = np.empty(0, dtype=np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code_index, "TAIL_ITEMS", tail)
        for what, amount in steps:
            if what == "add":
                codes = draw_codes(rng, amount, num_books, num_words)
                ids = index.add(codes)
                np.testing.assert_array_equal(ids, reference.add(codes))
                held = np.concatenate([held, ids])
            elif what == "add with ids":
                ids = np.setdiff1d(rng.integers(0, 2000, amount), held)
                codes = draw_codes(rng, len(ids), num_books, num_words)
                index.add(codes, ids)
                reference.add(codes, ids)
                held = np.concatenate([held, ids])
            elif what == "remove":
                gone = held[rng.random(len(held)) < amount]
                assert index.remove(gone) == reference.remove(gone)
                held = np.setdiff1d(held, gone)
            elif what == "merge":
                index.merge()
            elif what == "purge":
                index.purge()
            else:
                tables = draw_tables(rng, 2, num_books, num_words)
                assert_same(index.search(tables, amount), reference.search(tables, amount))
            assert len(index) == len(reference)
    np.testing.assert_array_equal(index.items()[1], held := np.sort(held))
    asked = np.arange(held.max(initial=0) + 2)
    np.testing.assert_array_equal(index.holds(asked), np.isin(asked, held))
    tables = draw_tables(rng, 2, num_books, num_words)
    assert_same(index.search(tables, 7), reference.search(tables, 7))


@pytest.fixture(scope="module")
def filled():
    rng = np.random.default_rng(0)
    codes = draw_codes(rng, 6000)
    index = CodeIndex(4, 32)
    index.add(codes[:5000], 10 * np.arange(5000))
    index.add(codes[5000:])
    index.remove(10 * np.arange(0, 5000, 7))
    return index, codes


def test_search_among_allowed_ids_is_a_search_of_those_alone(filled):
    index, codes = filled
    rng = np.random.default_rng(1)
    ids = np.concatenate([10 * np.arange(5000), np.arange(49_991, 50_991)])
    removed = ids[:5000:7]
    tables = draw_tables(rng, 3)
    for share in (0.0, 0.001, 0.1, 0.9, 1.0):
        allowed = ids[rng.random(len(ids)) < share]
        there = np.isin(ids, np.setdiff1d(allowed, removed))
        reference = ReferenceIndex(4, 32)
        reference.add(codes[there], ids[there])
        wanted = reference.search(tables, 12)
        assert_same(index.search(tables, 12, allowed=allowed), wanted)
        assert_same(index.search(tables, 12, allowed=[*allowed.tolist(), 3, 77_777]), wanted)  # ids of no item
        table_of_ids = np.zeros(allowed.max(initial=0) + 1, dtype=bool)
        table_of_ids[allowed] = True
        assert_same(index.search(tables, 12, allowed=table_of_ids), wanted)


def test_all_within_a_threshold_are_found(filled):
    index, _ = filled
    tables = draw_tables(np.random.default_rng(2), 3)
    scores, ids = index.search(tables, len(index))
    threshold = float(np.sort(scores.ravel())[-200])
    found = index.search_within(tables, threshold)
    assert sum(len(part[0]) for part in found) == 200
    for query, part in enumerate(found):
        count = len(part[0])
        assert_same(part, (scores[query, :count], ids[query, :count]))
    assert all(len(part[0]) == 0 for part in index.search_within(tables, 1e9))


def test_an_empty_index_finds_nothing():
    index = CodeIndex(4, 32)
    tables = draw_tables(np.random.default_rng(0), 2)
    assert_same(index.search(tables, 3), ReferenceIndex(4, 32).search(tables, 3))
    index.remove(index.add(draw_codes(np.random.default_rng(0), 10)))
    assert len(index) == 0
    assert_same(index.search(tables, 3), ReferenceIndex(4, 32).search(tables, 3))
    assert index.search(tables[:0], 3)[0].shape == (0, 3)


def test_a_search_is_explained(filled):
    index, _ = filled
    told = index.explain(draw_tables(np.random.default_rng(0), 1)[0], k=5)
    assert sum(part["num_items"] for part in told) == 6000
    for part in told:
        assert part["plans"]
        assert part["num_scored"] + part["num_bounded"] > 0


def test_the_largest_id_can_be_removed_and_is_missed_when_it_is_not_there():
    index = CodeIndex(4, 32)
    index.add(np.zeros((2, 4), dtype=np.uint8), [5, MAX_ID])
    assert index.remove([MAX_ID, MAX_ID]) == 1
    assert len(index) == 1
    with pytest.raises(ConfigError, match="not in the index"):
        index.remove([MAX_ID])


@pytest.mark.parametrize("tail", [1, 4096])
def test_purging_leaves_nothing_of_removed_items_in_the_files(tmp_path, monkeypatch, tail):
    monkeypatch.setattr(code_index, "TAIL_ITEMS", tail)
    rng = np.random.default_rng(3)
    codes = draw_codes(rng, 2000, 16, 256)
    index = CodeIndex(16, 256)
    for piece in np.split(codes, 4):
        index.add(piece)
    index.save(tmp_path)
    gone = np.arange(0, 2000, 11)
    index.remove(gone)
    index.save(tmp_path)
    hidden = b"".join(path.read_bytes() for path in sorted(tmp_path.iterdir()))
    assert all(codes[i].tobytes() in hidden for i in gone)
    index.purge()
    index.save(tmp_path)
    left = b"".join(path.read_bytes() for path in sorted(tmp_path.iterdir()))
    assert not any(codes[i].tobytes() in left for i in gone)
    kept = np.setdiff1d(np.arange(2000), gone)
    loaded = CodeIndex.load(tmp_path, mmap=False)
    np.testing.assert_array_equal(loaded.items()[0], codes[kept])
    np.testing.assert_array_equal(loaded.items()[1], kept)


def test_items_that_share_codes_share_memory_and_are_all_found():
    rng = np.random.default_rng(0)
    codes = np.repeat(rng.integers(0, 32, (500, 4), dtype=np.uint8), 40, axis=0)
    index, reference = CodeIndex(4, 32), ReferenceIndex(4, 32)
    for each in (index, reference):
        each.add(codes)
        each.remove(np.arange(0, len(codes), 7))
    assert index.num_bytes < 0.5 * len(codes) * CodeIndex.bytes_per_item(4, 32)
    tables = draw_tables(rng, 5)
    for k in (1, 39, 200):
        assert_same(index.search(tables, k), reference.search(tables, k))
    few = np.setdiff1d(np.arange(0, len(codes), 11), np.arange(0, len(codes), 7))
    reference = ReferenceIndex(4, 32)
    reference.add(codes[few], few)
    assert_same(index.search(tables, 50, allowed=np.arange(0, len(codes), 11)), reference.search(tables, 50))


def test_memory_is_told_before_it_is_taken():
    assert CodeIndex.bytes_per_item(8, 256, "compact") == 8 + 4 + 4, "code, id, nibbles"
    sizes = [CodeIndex.bytes_per_item(8, 256, profile) for profile in ("compact", "balanced", "fast")]
    assert sizes == sorted(sizes)
    rng = np.random.default_rng(0)
    for profile in ("compact", "balanced", "fast"):
        index = CodeIndex(4, 32, profile)
        index.add(draw_codes(rng, 300_000))
        assert index.num_bytes / 300_000 == pytest.approx(CodeIndex.bytes_per_item(4, 32, profile), rel=0.05)


def test_parts_are_merged_so_that_they_stay_few(monkeypatch):
    monkeypatch.setattr(code_index, "TAIL_ITEMS", 16)
    rng = np.random.default_rng(0)
    index, reference = CodeIndex(4, 32), ReferenceIndex(4, 32)
    for _ in range(200):
        codes = draw_codes(rng, 20)
        index.add(codes)
        reference.add(codes)
    with index._merging:  # waits for a merge that is under way
        pass
    assert len(index._state.parts) < 50
    index.merge()
    assert [len(part) for part in index._state.parts] == [4000, 0]
    tables = draw_tables(rng, 2)
    assert_same(index.search(tables, 9), reference.search(tables, 9))


def test_what_is_removed_during_a_merge_stays_removed(monkeypatch):
    rng = np.random.default_rng(0)
    index, reference = CodeIndex(4, 32), ReferenceIndex(4, 32)
    for _ in range(2):
        codes = draw_codes(rng, 5000)
        index.add(codes)
        reference.add(codes)
    merge = code_index.merge

    def remove_meanwhile(*arguments, **settings):
        new = merge(*arguments, **settings)
        index.remove(np.arange(0, 10_000, 3))
        return new

    monkeypatch.setattr(code_index, "merge", remove_meanwhile)
    index._replace(list(index._state.parts[:-1]))
    reference.remove(np.arange(0, 10_000, 3))
    assert len(index) == len(reference)
    tables = draw_tables(rng, 3)
    assert_same(index.search(tables, 50), reference.search(tables, 50))


def test_searches_see_whole_additions_and_removals_while_other_threads_make_them(monkeypatch):
    monkeypatch.setattr(code_index, "TAIL_ITEMS", 64)
    index = CodeIndex(2, 32)
    group = np.tile(np.array([[1, 2]], dtype=np.uint8), (5, 1))
    index.add(draw_codes(np.random.default_rng(0), 200, num_books=2) // 32 * 0)
    tables = np.zeros((1, 2, 32), dtype=np.float32)
    tables[0, 0, 1] = tables[0, 1, 2] = 1
    done = threading.Event()

    def change():
        kept = []
        for _ in range(150):
            kept.append(index.add(group))
            if len(kept) > 20:
                index.remove(kept.pop(0))
        done.set()

    thread = threading.Thread(target=change)
    thread.start()
    counts = set()
    while thread.is_alive():
        ((scores, _),) = index.search_within(tables, 2.0)
        counts.add(len(scores))
    thread.join()
    assert done.is_set(), "pytest tells why the thread ended"
    assert all(count % 5 == 0 for count in counts)


# Bad input


@pytest.mark.parametrize(("num_books", "num_words"), [(0, 4), (65, 4), (2, 1), (2, 3), (2, 512)])
def test_a_shape_that_codes_cannot_have_is_refused(num_books, num_words):
    with pytest.raises(ConfigError, match=r"num_books|num_words"):
        CodeIndex(num_books, num_words)


def test_an_unknown_profile_names_the_known():
    with pytest.raises(ConfigError, match="compact, balanced, fast"):
        CodeIndex(2, 4, "tiny")


def test_a_refused_addition_or_removal_changes_nothing(filled):
    index, _ = filled
    size = len(index)
    codes = draw_codes(np.random.default_rng(0), 2)
    for ids, message in [
        ([10, 99_999], "id 10 would occur twice"),
        ([99_999, 99_999], "id 99999 would occur twice"),
        ([99_999], "1 ids for 2 codes"),
        ([-1, 99_999], "ids run from -1"),
        ([0.5, 1.5], "array of integers"),
    ]:
        with pytest.raises(ConfigError, match=message):
            index.add(codes, ids)
    with pytest.raises(ConfigError, match="a code is 32"):
        index.add(codes // 32 + 32)
    with pytest.raises(ConfigError, match="id 70 is not in the index"):
        index.remove([10, 70])
    assert len(index) == size
    index.remove([10])
    index.add(codes[:1], [10])  # a removed id may be given again
    assert len(index) == size


def test_tables_that_have_no_score_are_refused(filled):
    index, _ = filled
    tables = draw_tables(np.random.default_rng(0), 2)
    infinite = tables.copy()
    infinite[1, 0, 0], infinite[1, 1, 0] = np.inf, -np.inf
    for wrong, message in [
        (tables.astype(np.float64), "float32"),
        (tables[0], "float32"),
        (tables[:, :2], "another model"),
        (np.where(np.arange(32) == 3, np.float32(np.nan), tables), "query 0 holds NaN"),
        (infinite, r"query 1 .* \+inf"),
    ]:
        with pytest.raises(ConfigError, match=message):
            index.search(wrong, 1)
    with pytest.raises(ConfigError, match="k is 0"):
        index.search(tables, 0)
    with pytest.raises(ConfigError, match="threshold is NaN"):
        index.search_within(tables, float("nan"))


def test_without_the_compiled_core_the_reference_works_and_the_error_says_how_to_get_it():
    program = (
        "import sys; sys.modules['opqn.index._native'] = None\nimport opqn\nopqn.ReferenceIndex(2, 4)\nopqn.CodeIndex"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "ImportError: opqn's search core is not compiled" in done.stderr
    assert "C++20 compiler" in done.stderr
