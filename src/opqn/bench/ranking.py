"""Benchmark of evaluation: ``opqn.evaluate`` against the straightforward loop over the queries.

The loop is what the metric says when written down: score the gallery, sort it, mark the matches, average their
precisions. The authors' code does so with PyTorch. The average precisions of both sides are compared first.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from opqn.bench._memory import MEBIBYTE
from opqn.bench._memory import peak_memory as _peak_memory
from opqn.errors import ConfigError, OpqnError
from opqn.evaluation import evaluate

if TYPE_CHECKING:
    from numpy.typing import NDArray

NUM_PEOPLE: Final = 1000
AGREEMENT: Final = 0.9
"""Probability that an image's word in a book, or a query's best word, is the person's."""
PEAK: Final = 0.85
"""What a query's table puts on the best word of a book; the other words share the rest at random."""
TOLERANCE: Final = 1e-12
"""Largest difference of two average precisions: both sides rank alike, but add up in another order."""


class RankingInputs(NamedTuple):
    """What both sides work on."""

    gallery_codes: NDArray[np.uint8]
    """(N, M)."""
    gallery_labels: NDArray[np.int64]
    """(N,)."""
    query_tables: NDArray[np.float32]
    """(Q, M, K)."""
    query_labels: NDArray[np.int64]
    """(Q,)."""


def make_inputs(num_gallery: int, num_queries: int, num_books: int, num_words: int, seed: int = 0) -> RankingInputs:
    """Draw codes and tables that are structured as those of people are."""
    rng = np.random.default_rng(seed)
    person_words = rng.integers(num_words, size=(NUM_PEOPLE, num_books), dtype=np.uint8)

    def words_of(labels: NDArray[np.int64]) -> NDArray[np.uint8]:
        strays = rng.integers(num_words, size=(len(labels), num_books), dtype=np.uint8)
        return np.where(rng.random(strays.shape) < AGREEMENT, person_words[labels], strays)

    gallery_labels = rng.permutation(np.arange(num_gallery) % NUM_PEOPLE)
    query_labels = rng.permutation(np.arange(num_queries) % NUM_PEOPLE)
    tables = rng.random((num_queries, num_books, num_words), dtype=np.float32)
    best = words_of(query_labels)[:, :, None]  # (Q, M, 1)
    np.put_along_axis(tables, best, 0, axis=2)
    tables *= (1 - PEAK) / tables.sum(axis=2, keepdims=True)
    np.put_along_axis(tables, best, PEAK, axis=2)
    return RankingInputs(words_of(gallery_labels), gallery_labels, tables, query_labels)


def loop(inputs: RankingInputs, num_queries: int) -> NDArray[np.float64]:
    """Return the average precision of the first queries, one by one, sorting the whole gallery for each."""
    average_precision = []
    for table, label in zip(inputs.query_tables[:num_queries], inputs.query_labels[:num_queries], strict=True):
        scores = table[0][inputs.gallery_codes[:, 0]]  # (N,)
        for row, words in zip(table[1:], inputs.gallery_codes.T[1:], strict=True):
            scores += row[words]
        order = np.argsort(-scores, kind="stable")
        ranks = np.flatnonzero(inputs.gallery_labels[order] == label) + 1  # (matches,)
        average_precision.append(np.mean(np.arange(1, len(ranks) + 1) / ranks))
    return np.array(average_precision)


def peak_memory(
    num_gallery: int, num_queries: int, num_books: int, num_words: int, seed: int = 0, threads: int = 0
) -> int:
    """Measure the peak memory of a fresh process that holds the inputs and evaluates them.

    Returns:
        Bytes of resident memory, interpreter and inputs included.

    Raises:
        OpqnError: not on Linux, or the measuring process died.
    """
    return _peak_memory(_prepare, _work, (num_gallery, num_queries, num_books, num_words, seed), threads).peak


def _prepare(arguments: tuple[int, int, int, int, int], _threads: int) -> RankingInputs:
    return make_inputs(*arguments)


def _work(_arguments: tuple[int, int, int, int, int], threads: int, inputs: RankingInputs) -> None:
    evaluate(*inputs, threads=threads)


def run(
    num_gallery: int = 100_000,
    num_queries: int = 10_000,
    num_books: int = 8,
    num_words: int = 64,
    seed: int = 0,
    loop_queries: int = 100,
    *,
    pairs: int = 5,
    threads: int = 0,
    memory: bool = True,
) -> dict[str, Any]:
    """Check and time both sides on made-up people, and weigh ours.

    Args:
        num_gallery: N, at least 1,000, the number of people.
        num_queries: Q.
        num_books: M.
        num_words: K.
        seed: of codes and tables.
        loop_queries: queries that the loop is timed on; its time is scaled to all queries.
        pairs: timed runs of each side, alternating.
        threads: of ``opqn.evaluate``, 0 for one for each CPU. The loop has one.
        memory: measure peak memory too (Linux only).

    Returns:
        A JSON-ready document: the arguments, ``mean_average_precision``, ``tie_share``, ``largest_error`` of an average
        precision, ``seconds`` of evaluate for all queries (median), ``loop_seconds`` for all queries (median, scaled
        from ``loop_queries``), ``speedup`` (median over the pairs) and, if measured, ``peak_bytes`` of evaluate's
        process.

    Raises:
        ConfigError: an argument out of range.
        OpqnError: the two sides disagree; memory off Linux.
    """
    if num_gallery < NUM_PEOPLE or not 1 <= loop_queries <= num_queries or pairs < 1:
        raise ConfigError(
            f"num_gallery ({num_gallery}) must be at least {NUM_PEOPLE}, loop_queries ({loop_queries}) in "
            f"1..num_queries ({num_queries}), and pairs ({pairs}) at least 1"
        )
    if num_books < 1 or not 2 <= num_words <= 256:
        raise ConfigError(f"num_books ({num_books}) must be at least 1 and num_words ({num_words}) in 2..256")
    inputs = make_inputs(num_gallery, num_queries, num_books, num_words, seed)
    report = evaluate(*inputs, threads=threads)
    error = float(np.abs(report.average_precision[:loop_queries] - loop(inputs, loop_queries)).max())
    if not error <= TOLERANCE:
        raise OpqnError(f"the two rankings disagree: average precisions differ by {error:.1e}; do not time")
    ours, loops = [], []
    for pair in range(pairs):
        for is_ours in (True, False) if pair % 2 else (False, True):
            start = time.perf_counter()
            if is_ours:
                evaluate(*inputs, threads=threads)
                ours.append(time.perf_counter() - start)
            else:
                loop(inputs, loop_queries)
                loops.append((time.perf_counter() - start) * num_queries / loop_queries)
    result: dict[str, Any] = {
        "num_gallery": num_gallery,
        "num_queries": num_queries,
        "num_books": num_books,
        "num_words": num_words,
        "seed": seed,
        "loop_queries": loop_queries,
        "pairs": pairs,
        "threads": threads,
        "mean_average_precision": report.mean_average_precision,
        "tie_share": report.tie_share,
        "largest_error": error,
        "seconds": statistics.median(ours),
        "loop_seconds": statistics.median(loops),
        "speedup": statistics.median(theirs / mine for mine, theirs in zip(ours, loops, strict=True)),
    }
    if memory:
        result["peak_bytes"] = peak_memory(num_gallery, num_queries, num_books, num_words, seed, threads)
    return result


def table(result: dict[str, Any]) -> str:
    """Lay out what :func:`run` returned as a Markdown table with a line on what was measured."""
    num_queries = result["num_queries"]
    peak = f"{result['peak_bytes'] / MEBIBYTE:.0f}" if "peak_bytes" in result else "-"
    rows = ["| evaluation | s | ms a query | peak of the process, MiB |", "|---|--:|--:|--:|"]
    for name, seconds, memory in (
        ("opqn.evaluate", result["seconds"], peak),
        ("loop over the queries", result["loop_seconds"], "-"),
    ):
        rows.append(f"| {name} | {seconds:.2f} | {1000 * seconds / num_queries:.3f} | {memory} |")
    measured = (
        f"{result['speedup']:.0f} times as fast; {result['num_gallery']:,} gallery items, {num_queries:,} queries, "
        f"{result['num_books']} x {result['num_words']} words, {NUM_PEOPLE:,} people, mAP "
        f"{result['mean_average_precision']:.4f}; the loop ran on {result['loop_queries']:,} queries and its time is "
        f"scaled to all; median of {result['pairs']} alternating pairs; threads of opqn.evaluate: "
        f"{result['threads'] or 'one for each CPU'}; average precisions agree to {result['largest_error']:.0e}."
    )
    return "\n".join([*rows, "", measured])


if __name__ == "__main__":
    print(table(run()))
