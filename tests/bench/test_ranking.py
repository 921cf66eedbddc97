import json
import sys

import numpy as np
import pytest

from opqn.bench import ranking
from opqn.errors import ConfigError, OpqnError

SMALL = {"num_gallery": 2000, "num_queries": 50, "num_books": 4, "num_words": 16, "loop_queries": 20, "pairs": 2}


def test_the_result_is_json_and_says_that_both_sides_agree():
    result = ranking.run(**SMALL, memory=False)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert SMALL.items() <= result.items()
    assert result["largest_error"] <= 1e-12
    assert 0.5 < result["mean_average_precision"] < 1
    assert result["seconds"] > 0
    assert "peak_bytes" not in result


def test_the_table_names_both_sides_and_how_the_loop_was_timed():
    result = {
        "num_gallery": 100_000,
        "num_queries": 10_000,
        "num_books": 8,
        "num_words": 64,
        "loop_queries": 100,
        "pairs": 5,
        "threads": 0,
        "mean_average_precision": 0.99,
        "largest_error": 0.0,
        "seconds": 1.5,
        "loop_seconds": 120.0,
        "speedup": 80.4,
        "peak_bytes": 90 << 20,
    }
    text = ranking.table(result)
    assert "| opqn.evaluate | 1.50 | 0.150 | 90 |" in text
    assert "| loop over the queries | 120.00 | 12.000 | - |" in text
    assert "80 times as fast" in text
    assert "the loop ran on 100 queries and its time is scaled to all" in text
    del result["peak_bytes"]
    assert "| opqn.evaluate | 1.50 | 0.150 | - |" in ranking.table(result)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_peak_memory_holds_the_inputs_and_not_all_scores():
    tables, scores = 5000 * 8 * 64 * 4, 20_000 * 5000 * 4
    assert tables < ranking.peak_memory(20_000, 5000, 8, 64, threads=1) < scores / 2


def test_made_up_people_agree_with_their_words():
    codes, labels, tables, query_labels = ranking.make_inputs(5000, 1000, 8, 64, seed=1)
    assert (codes.dtype, tables.dtype) == (np.uint8, np.float32)
    np.testing.assert_allclose(tables.sum(axis=2), 1, rtol=1e-5)
    np.testing.assert_allclose(tables.max(axis=2), 0.85)
    assert np.unique(labels).size == np.unique(query_labels).size == 1000
    # Two images of a person have the same word in a book with a probability of about .9 * .9.
    first, second = (codes[np.argsort(labels, kind="stable")][i::5] for i in (0, 1))
    assert np.mean(first == second) == pytest.approx(0.81, abs=0.03)


def test_sides_that_disagree_are_not_timed(monkeypatch):
    monkeypatch.setattr(ranking, "loop", lambda _inputs, num_queries: np.zeros(num_queries))
    with pytest.raises(OpqnError, match="disagree"):
        ranking.run(**SMALL, memory=False)


@pytest.mark.parametrize(
    "change",
    [
        {"num_gallery": 999},
        {"loop_queries": 51},
        {"loop_queries": 0},
        {"pairs": 0},
        {"num_books": 0},
        {"num_words": 1},
        {"num_words": 257},
    ],
)
def test_arguments_out_of_range_are_refused(change):
    with pytest.raises(ConfigError):
        ranking.run(**{**SMALL, **change}, memory=False)
