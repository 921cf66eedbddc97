"""How good a ranking is: mAP, precision@k, curves. Arrays in, a report out; no torch.

For each query the whole gallery is ranked by score, highest first, equal scores by position, lowest first. The score is
the float32 sum of table entries that :func:`opqn.index.score` defines. The metrics are those of Zhang, Zhe, Yan 2023,
section 4 (mean average precision over the full ranking, precision at k, precision-recall curve), and recall and CMC.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from opqn.errors import ConfigError, DataError
from opqn.index.ranks import (
    Placing,
    Wanted,
    group_codes,
    max_queries,
    place_by_codes,
    place_by_scores,
    ranges,
    single_items,
)
from opqn.index.reference import check_codes, check_tables

Labels = NDArray[np.integer[Any]] | NDArray[np.str_]
NUM_RECALL_LEVELS: Final = 101
# Room for the scores of blocks of queries, one block a thread. Speed levels off at 64 queries.
SCORE_BYTES: Final = 256 << 20
MAX_BLOCK_QUERIES: Final = 64
CHUNK_ROWS: Final = 1024


@dataclass(frozen=True, eq=False)
class EvaluationReport:
    """What :func:`evaluate` and :func:`evaluate_features` found; means are over queries that have a match."""

    mean_average_precision: float
    """Mean over queries of (1/R) sum of j / rank_j, over all R matches of the query in the full ranking."""
    precision_at: dict[int, float]
    """k -> mean share of matches among the first k; divided by k also where the gallery or R is smaller."""
    recall_at: dict[int, float]
    """k -> mean share of a query's matches that are among the first k."""
    cmc: dict[int, float]
    """k -> share of queries with a match among the first k (rank-k identification)."""
    recall_levels: NDArray[np.float64] = field(repr=False)
    """(101,) 0, 0.01, ..., 1."""
    precision: NDArray[np.float64] = field(repr=False)
    """(101,) mean over queries of the highest precision at any rank whose recall is at least the level."""
    num_queries: int
    """Q, with those that have no match."""
    num_unmatched: int
    """Queries without a match in the gallery; no mean includes them."""
    num_gallery: int
    """N."""
    tie_share: float
    """Share of all pairs of a query and a match in which another item, match or not, has exactly the match's score."""
    average_precision: NDArray[np.float64] = field(repr=False)
    """(Q,) of each query; NaN where it has no match."""
    codeword_use: NDArray[np.float64] | None = field(default=None, repr=False)
    """(M,) share of a book's K words that occur in the gallery; None for features."""
    codeword_entropy: NDArray[np.float64] | None = field(default=None, repr=False)
    """(M,) entropy in bits of a book's words in the gallery, at most log2(K); None for features."""

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready types, without ``average_precision``; keys of the @k metrics are strings."""
        document: dict[str, Any] = {
            "mean_average_precision": self.mean_average_precision,
            "num_queries": self.num_queries,
            "num_unmatched": self.num_unmatched,
            "num_gallery": self.num_gallery,
            "tie_share": self.tie_share,
        }
        for name in ("precision_at", "recall_at", "cmc"):
            document[name] = {str(k): value for k, value in getattr(self, name).items()}
        for name in ("recall_levels", "precision", "codeword_use", "codeword_entropy"):
            values = getattr(self, name)
            document[name] = None if values is None else values.tolist()
        return document


def evaluate(
    gallery_codes: NDArray[np.uint8],
    gallery_labels: Labels,
    query_tables: NDArray[np.float32],
    query_labels: Labels,
    k: Sequence[int] = (1, 5, 10),
    *,
    exclude: NDArray[np.integer[Any]] | None = None,
    threads: int = 0,
) -> EvaluationReport:
    """Rank the whole gallery for every query by code and table, and measure where the matches come.

    Args:
        gallery_codes: (N, M) uint8, each below K.
        gallery_labels: (N,) who is in each image: integers or strings.
        query_tables: (Q, M, K) float32 lookup tables without NaN.
        query_labels: (Q,) of the same kind.
        k: the ranks at which to measure precision, recall and CMC, each at least 1.
        exclude: (Q,) gallery position to leave out for each query, -1 for none: with queries that are gallery items
            themselves, their own position.
        threads: number of threads; 0 means one for each CPU. The result does not depend on it.

    Returns:
        The report. Its rankings are exact, to the last bit of the score.

    Raises:
        ConfigError: arrays whose shape, dtype or values do not fit, or a k or number of threads out of range.
        DataError: no query has a match in the gallery.
    """
    check_tables(query_tables)
    check_codes(gallery_codes, *query_tables.shape[1:])
    task = _Task.check(gallery_codes, gallery_labels, query_tables, query_labels, k, exclude, threads)
    groups = group_codes(gallery_codes)
    use, entropy = _codeword_statistics(gallery_codes, query_tables.shape[2])

    def place_block(chosen: NDArray[np.intp], wanted: Wanted) -> Placing:
        return place_by_codes(query_tables[chosen], groups, wanted)

    return _report(task, len(groups.codes), place_block, use, entropy)


def evaluate_features(
    gallery_features: NDArray[np.float32],
    gallery_labels: Labels,
    query_features: NDArray[np.float32],
    query_labels: Labels,
    k: Sequence[int] = (1, 5, 10),
    *,
    exclude: NDArray[np.integer[Any]] | None = None,
    threads: int = 0,
) -> EvaluationReport:
    """Do the same for the cosine similarity of features: what the network could reach without quantization.

    Cosines are float32 products of normalised vectors; their last bit depends on the machine's matrix product. A zero
    vector has cosine 0 with everything.

    Args:
        gallery_features: (N, D) float32, finite; need not be normalised.
        gallery_labels: (N,) integers or strings.
        query_features: (Q, D) float32, finite.
        query_labels: (Q,) of the same kind.
        k: as in :func:`evaluate`.
        exclude: as in :func:`evaluate`.
        threads: as in :func:`evaluate`; the matrix product has threads of its own.

    Returns:
        The report, without codeword statistics.

    Raises:
        ConfigError: arrays whose shape, dtype or values do not fit, or a k or number of threads out of range.
        DataError: no query has a match in the gallery.
    """
    gallery = _normalised(gallery_features, "gallery_features")  # (N, D)
    queries = _normalised(query_features, "query_features")  # (Q, D)
    if gallery.shape[1] != queries.shape[1]:
        raise ConfigError(f"gallery features have {gallery.shape[1]} dimensions, query features {queries.shape[1]}")
    task = _Task.check(gallery, gallery_labels, queries, query_labels, k, exclude, threads)
    groups = single_items(len(gallery))

    def place_block(chosen: NDArray[np.intp], wanted: Wanted) -> Placing:
        return place_by_scores(queries[chosen] @ gallery.T, groups, wanted)

    return _report(task, len(gallery), place_block)


def quantization_error(probs: NDArray[np.floating[Any]]) -> float:
    """Measure how far soft assignments are from the codes made of them.

    Args:
        probs: (N, M, K) floating, soft assignments p.

    Returns:
        Mean over n, m of ``||p - onehot(argmax p)||^2``. As codewords are orthonormal, that is ``||s_m - c_code||^2``:
        the squared distance of the soft-quantized feature from its codeword.

    Raises:
        ConfigError: not a non-empty (N, M, K) array of finite floats.
    """
    if not isinstance(probs, np.ndarray) or probs.dtype.kind != "f" or probs.ndim != 3 or not probs.size:
        raise ConfigError("probs must be a non-empty (N, M, K) array of floats")
    total = 0.0
    for start in range(0, len(probs), CHUNK_ROWS):
        residual = probs[start : start + CHUNK_ROWS].astype(np.float64)  # (chunk, M, K)
        code = residual.argmax(axis=2)[..., None]  # (chunk, M, 1)
        np.put_along_axis(residual, code, np.take_along_axis(residual, code, axis=2) - 1.0, axis=2)
        total += float(np.square(residual).sum())
    if not np.isfinite(total):
        raise ConfigError("probs holds NaN or infinity; softmax probabilities are finite")
    num_items, num_books = probs.shape[:2]
    return total / float(num_items * num_books)


class _Task(NamedTuple):
    """What is asked, checked: labels as numbers, matches as slices of one array."""

    num_gallery: int
    num_queries: int
    matched: NDArray[np.intp]  # (Q',) queries with a match
    query_labels: NDArray[np.intp]  # (Q,)
    by_label: NDArray[np.intp]  # (N,) gallery positions, label by label, ascending in each
    label_starts: NDArray[np.intp]  # (labels + 1,) into by_label
    excluded: NDArray[np.intp]  # (Q,) gallery position to leave out, or -1
    k: tuple[int, ...]
    threads: int

    @classmethod
    def check(
        cls,
        gallery: NDArray[Any],
        gallery_labels: Labels,
        queries: NDArray[Any],
        query_labels: Labels,
        k: Sequence[int],
        exclude: NDArray[np.integer[Any]] | None,
        threads: int,
    ) -> _Task:
        if any(not isinstance(rank, int | np.integer) or rank < 1 for rank in k):
            raise ConfigError(f"k is {tuple(k)}; each must be a whole number, at least 1")
        if threads < 0:
            raise ConfigError(f"threads is {threads}; give a number of threads, or 0 for one for each CPU")
        gallery_numbers, query_numbers, num_labels = _number_labels(gallery_labels, query_labels)
        for name, labels, items in (("gallery", gallery_numbers, gallery), ("query", query_numbers, queries)):
            if len(labels) != len(items):
                raise ConfigError(f"there are {len(labels)} {name} labels for {len(items)} items; pass one for each")
        excluded = np.full(len(queries), -1) if exclude is None else np.asarray(exclude)  # (Q,)
        if excluded.shape != (len(queries),) or excluded.dtype.kind not in "iu":
            raise ConfigError(f"exclude must be ({len(queries)},) integers, one gallery position or -1 for each query")
        if excluded.size and not -1 <= int(excluded.min()) <= int(excluded.max()) < len(gallery):
            raise ConfigError(f"exclude must hold positions below {len(gallery)}, the size of the gallery, or -1")
        excluded = excluded.astype(np.intp)
        in_gallery = np.bincount(gallery_numbers, minlength=num_labels)  # (labels,)
        num_matches = in_gallery[query_numbers]  # (Q,)
        leaves_out = np.flatnonzero(excluded >= 0)
        num_matches[leaves_out] -= gallery_numbers[excluded[leaves_out]] == query_numbers[leaves_out]
        matched = np.flatnonzero(num_matches)
        if not matched.size:
            raise DataError(
                f"no query has a match in the gallery ({len(queries)} queries, {len(gallery)} gallery items), so there "
                "is nothing to average; check that both are labelled the same way"
            )
        return cls(
            num_gallery=len(gallery),
            num_queries=len(queries),
            matched=matched,
            query_labels=query_numbers,
            by_label=np.argsort(gallery_numbers, kind="stable"),
            label_starts=np.concatenate([[0], np.cumsum(in_gallery)]),
            excluded=excluded,
            k=tuple(int(rank) for rank in k),
            threads=threads or os.cpu_count() or 1,
        )

    def wanted(self, queries: NDArray[np.intp]) -> Wanted:
        """Name the matches of some matched queries, without the items left out."""
        labels = self.query_labels[queries]
        sizes = self.label_starts[labels + 1] - self.label_starts[labels]
        query = np.repeat(np.arange(len(queries)), sizes)
        items = self.by_label[ranges(self.label_starts[labels], sizes)]
        keep = items != self.excluded[queries][query]
        return Wanted(items[keep], query[keep], self.excluded[queries])


class _BlockFigures(NamedTuple):
    """Figures of a block of queries that all have a match."""

    average_precision: NDArray[np.float64]  # (queries,)
    hits: NDArray[np.int64]  # (queries, len(k)) matches among the first k
    num_matches: NDArray[np.int64]  # (queries,)
    curves: NDArray[np.float64]  # (queries, 101) interpolated precision at the recall levels
    num_tied: int  # matches that share their score


PlaceBlock = Callable[[NDArray[np.intp], Wanted], Placing]


def _report(
    task: _Task,
    num_groups: int,
    place_block: PlaceBlock,
    codeword_use: NDArray[np.float64] | None = None,
    codeword_entropy: NDArray[np.float64] | None = None,
) -> EvaluationReport:
    """Rank block by block in threads, NumPy releasing the lock, and average."""
    affordable = SCORE_BYTES // (4 * num_groups * task.threads)
    block_size = max(1, min(MAX_BLOCK_QUERIES, max_queries(task.num_gallery), affordable))
    blocks = [task.matched[start : start + block_size] for start in range(0, len(task.matched), block_size)]
    with ThreadPoolExecutor(task.threads) as pool:
        figures = list(pool.map(partial(_rank_block, task, place_block), blocks))
    hits = np.concatenate([block.hits for block in figures])  # (Q', len(k))
    num_matches = np.concatenate([block.num_matches for block in figures])  # (Q',)
    average_precision = np.full(task.num_queries, np.nan)
    average_precision[task.matched] = np.concatenate([block.average_precision for block in figures])

    def at_k(values: NDArray[np.floating[Any]] | NDArray[np.bool_]) -> dict[int, float]:
        # NumPy adds up in pairs, with less rounding, along the contiguous axis only.
        return dict(zip(task.k, np.ascontiguousarray(values.T).mean(axis=1).tolist(), strict=True))

    return EvaluationReport(
        mean_average_precision=float(average_precision[task.matched].mean()),
        precision_at=at_k(hits / np.array(task.k, dtype=np.float64)),
        recall_at=at_k(hits / num_matches[:, None]),
        cmc=at_k(hits > 0),
        recall_levels=np.arange(NUM_RECALL_LEVELS) / (NUM_RECALL_LEVELS - 1),
        precision=np.concatenate([block.curves for block in figures]).mean(axis=0),
        num_queries=task.num_queries,
        num_unmatched=task.num_queries - len(task.matched),
        num_gallery=task.num_gallery,
        tie_share=sum(block.num_tied for block in figures) / int(num_matches.sum()),
        average_precision=average_precision,
        codeword_use=codeword_use,
        codeword_entropy=codeword_entropy,
    )


def _rank_block(task: _Task, place_block: PlaceBlock, queries: NDArray[np.intp]) -> _BlockFigures:
    """Find the ranks of all matches of some queries, and what follows from them."""
    wanted = task.wanted(queries)
    placing = place_block(queries, wanted)
    num_matches = np.bincount(wanted.query)  # (queries,)
    starts = num_matches.cumsum() - num_matches  # (queries,)
    # The matches of all queries lie end to end, in order of query and rank, so one call serves the block.
    found = np.arange(1, len(placing.ranks) + 1) - np.repeat(starts, num_matches)  # (matches,) matches up to each rank
    precision = found / placing.ranks  # (matches,)
    hits = [np.add.reduceat(placing.ranks <= rank, starts, dtype=np.int64) for rank in task.k]
    # Recall i/100 is reached at match ceil(i R / 100), recall 0 before the first. Of the matches from one level up to
    # the next reduceat takes the best; the best at or beyond a level is then the running maximum from the end.
    level = np.arange(NUM_RECALL_LEVELS)
    reached = np.maximum(-(-level * num_matches[:, None] // (NUM_RECALL_LEVELS - 1)), 1) - 1  # (queries, 101)
    best = np.maximum.reduceat(precision, (starts[:, None] + reached).ravel()).reshape(reached.shape)
    return _BlockFigures(
        average_precision=np.add.reduceat(precision, starts) / num_matches,
        hits=np.stack(hits, axis=1) if hits else np.empty((len(queries), 0), dtype=np.int64),
        num_matches=num_matches,
        curves=np.maximum.accumulate(best[:, ::-1], axis=1)[:, ::-1],
        num_tied=int(np.count_nonzero(placing.num_equal)),
    )


def _number_labels(gallery_labels: Labels, query_labels: Labels) -> tuple[NDArray[np.intp], NDArray[np.intp], int]:
    """Number the labels of both sides alike: (N,) and (Q,) numbers below the count returned."""
    gallery, queries = np.asarray(gallery_labels), np.asarray(query_labels)
    for name, labels in (("gallery_labels", gallery), ("query_labels", queries)):
        if labels.ndim != 1 or (labels.dtype.kind not in "iuU" and labels.size):
            raise ConfigError(f"{name} must be a one-dimensional array of integers or strings, not {labels.dtype}")
    # An empty side has no type to compare. int64 beside uint64 would become float64, which rounds large labels.
    sides = [labels for labels in (gallery, queries) if labels.size] or [np.empty(0, dtype=np.int64)]
    if len({side.dtype.kind == "U" for side in sides}) > 1 or np.result_type(*sides).kind == "f":
        raise ConfigError(f"gallery labels are {gallery.dtype}, query labels {queries.dtype}; give both the same type")
    distinct, numbers = np.unique(np.concatenate(sides), return_inverse=True)
    return numbers[: len(gallery)], numbers[len(gallery) :], len(distinct)


def _codeword_statistics(codes: NDArray[np.uint8], num_words: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (M,) shares of words in use and (M,) entropies in bits of non-empty (N, M) codes."""
    shares = np.stack([np.bincount(book, minlength=num_words) for book in codes.T]) / len(codes)  # (M, K)
    bits = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
    return (shares > 0).mean(axis=1), (shares * -bits + 0.0).sum(axis=1)  # + 0.0: a book of one word has 0, not -0


def _normalised(features: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    """Divide (N, D) float32 features by their lengths."""
    if not isinstance(features, np.ndarray) or features.dtype != np.float32 or features.ndim != 2:
        raise ConfigError(f"{name} must be an (N, D) float32 array")
    normalised = np.empty_like(features)
    for start in range(0, len(features), CHUNK_ROWS):
        rows = features[start : start + CHUNK_ROWS].astype(np.float64)  # (chunk, D) no square of a float32 overflows
        lengths = np.sqrt(np.square(rows).sum(axis=1, keepdims=True))  # (chunk, 1)
        if not np.isfinite(lengths).all():
            row = start + int(np.isfinite(lengths).argmin())
            raise ConfigError(f"{name} holds NaN or infinity in row {row}; leave such rows out")
        normalised[start : start + CHUNK_ROWS] = rows / np.where(lengths > 0, lengths, 1.0)
    return normalised
