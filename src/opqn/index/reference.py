"""The definition of score and order, in NumPy: the oracle that every search plan has to equal bit by bit.

An item is its code, M small integers; a query is its lookup table T, (M, K) float32 (Zhang, Zhe, Yan 2023, section 3.2:
with orthonormal codewords the query's soft assignment is the table). The score of an item is the float32 sum
``T[0, c_0] + T[1, c_1] + ...``, added from left to right. Hits are ordered by score, highest first, and equal scores
(0.0 equals -0.0) by id, lowest first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from opqn.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

MAX_BOOKS: Final = 64
MAX_WORDS: Final = 256  # a code is one byte
MAX_ID: Final = 2**63 - 1
# A block of scores in search() is at most this large: 64 x 65,536 float32 are 16 MiB.
QUERY_CHUNK: Final = 64
ITEM_CHUNK: Final = 65_536


def score(tables: NDArray[np.float32], codes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Score every item for every query: ``T[0, c_0] + T[1, c_1] + ...`` in float32, added from left to right.

    Args:
        tables: (Q, M, K) float32 lookup tables. Infinities are allowed, NaN is not.
        codes: (N, M) uint8, each below K.

    Returns:
        (Q, N) float32. A sum beyond float32 is an infinity.

    Raises:
        ConfigError: a wrong shape or dtype, a code of K or more, NaN, or a table in which +inf can meet -inf.
    """
    check_tables(tables)
    check_codes(codes, *tables.shape[1:])
    return _sum_entries(tables, codes)


def check_tables(tables: NDArray[np.float32]) -> None:
    """Refuse lookup tables that are not (Q, M, K) float32, or whose sums could be NaN.

    Raises:
        ConfigError: wrong shape or dtype, NaN, or +inf and -inf that some code would add up.
    """
    if not isinstance(tables, np.ndarray) or tables.dtype != np.float32 or tables.ndim != 3:
        raise ConfigError(f"tables must be a (Q, M, K) float32 array, not {_describe(tables)}")
    _, num_books, num_words = tables.shape
    if num_books < 1 or not 1 <= num_words <= MAX_WORDS:
        raise ConfigError(f"tables have shape {tables.shape}; expected (Q, M, K) with M >= 1 and K in 1..{MAX_WORDS}")
    highest = tables.max(axis=2)  # (Q, M)
    lowest = tables.min(axis=2)  # (Q, M)
    nan = np.isnan(highest).any(axis=1)  # (Q,)
    if nan.any():
        raise ConfigError(f"the table of query {nan.argmax()} holds NaN; leave such queries out")
    # The largest and smallest sum of the books so far: some code attains each, so the test is exact.
    above, below = highest[:, 0].copy(), lowest[:, 0].copy()  # (Q,), (Q,)
    clash = np.zeros(len(tables), dtype=bool)
    with np.errstate(over="ignore", invalid="ignore"):
        for m in range(1, num_books):
            clash |= (above == np.inf) & (lowest[:, m] == -np.inf)
            clash |= (below == -np.inf) & (highest[:, m] == np.inf)
            above += highest[:, m]
            below += lowest[:, m]
    if clash.any():
        raise ConfigError(
            f"in the table of query {clash.argmax()} a code would add up +inf and -inf, which is no score; "
            "use infinities of one sign only"
        )


def check_codes(codes: NDArray[np.uint8], num_books: int, num_words: int) -> None:
    """Refuse codes that are not (N, M) uint8 below K.

    Raises:
        ConfigError: wrong shape or dtype, or a code of K or more.
    """
    if not isinstance(codes, np.ndarray) or codes.dtype != np.uint8 or codes.ndim != 2:
        raise ConfigError(f"codes must be an (N, M) uint8 array, not {_describe(codes)}")
    if codes.shape[1] != num_books:
        raise ConfigError(f"codes have {codes.shape[1]} books, expected {num_books}: they come from different models")
    if codes.size and codes.max() >= num_words:
        raise ConfigError(f"a code is {codes.max()}, but there are {num_words} words, so codes end at {num_words - 1}")


def check_shape(num_books: int, num_words: int) -> None:
    """Refuse numbers of books and words that codes cannot have.

    Raises:
        ConfigError: M outside 1..64, or K no power of two in 2..256.
    """
    if not 1 <= num_books <= MAX_BOOKS:
        raise ConfigError(f"num_books is {num_books}; it must lie in 1..{MAX_BOOKS}")
    if not 2 <= num_words <= MAX_WORDS or num_words & (num_words - 1):
        raise ConfigError(f"num_words is {num_words}; it must be a power of two in 2..{MAX_WORDS}")


class ReferenceIndex:
    """Exact top-k search over codes by scoring every item; the oracle with the interface of the native index.

    Args:
        num_books: M, 1..64.
        num_words: K, a power of two in 2..256.

    Raises:
        ConfigError: a shape that codes cannot have.
    """

    def __init__(self, num_books: int, num_words: int) -> None:
        check_shape(num_books, num_words)
        self.num_books = num_books
        self.num_words = num_words
        # Kept in ascending order of id: a stable sort by score then breaks ties by id.
        self._codes: NDArray[np.uint8] = np.empty((0, num_books), dtype=np.uint8)  # (N, M)
        self._ids: NDArray[np.int64] = np.empty(0, dtype=np.int64)  # (N,)
        self._next_id = 0

    def __len__(self) -> int:
        """Return the number of items held."""
        return len(self._ids)

    def add(self, codes: NDArray[np.uint8], ids: NDArray[np.int64] | Sequence[int] | None = None) -> NDArray[np.int64]:
        """Add items.

        Args:
            codes: (N, M) uint8, each below K.
            ids: (N,) integers from 0, none of them held already. Without them items are numbered from one above the
                largest id ever added, so that an id once removed is not given to another item.

        Returns:
            (N,) int64 ids, in the order of ``codes``.

        Raises:
            ConfigError: codes or ids of the wrong shape, dtype or range, or an id that occurs twice. Nothing is added.
        """
        check_codes(codes, self.num_books, self.num_words)
        new_ids = number_items(len(codes), self._next_id, ids)
        all_ids = np.concatenate([self._ids, new_ids])  # (held + N,)
        order = np.argsort(all_ids, kind="stable")
        all_ids = all_ids[order]
        twice = all_ids[1:][all_ids[1:] == all_ids[:-1]]
        if twice.size:
            raise ConfigError(f"id {twice[0]} would occur twice; remove the item that holds it, or choose another id")
        self._codes = np.concatenate([self._codes, codes])[order]
        self._ids = all_ids
        if new_ids.size:
            self._next_id = max(self._next_id, int(new_ids.max()) + 1)
        return new_ids

    def remove(self, ids: NDArray[np.int64] | Sequence[int]) -> int:
        """Remove the items with these ids; an id named twice counts once.

        Returns:
            The number of items removed.

        Raises:
            ConfigError: an id that is not held. Nothing is removed.
        """
        wanted = np.unique(as_ids(ids))
        unknown = wanted[~np.isin(wanted, self._ids, assume_unique=True)]
        if unknown.size:
            raise ConfigError(f"id {unknown[0]} is not in the index; remove only ids that add() returned")
        keep = ~np.isin(self._ids, wanted, assume_unique=True)  # (N,)
        self._codes = self._codes[keep]
        self._ids = self._ids[keep]
        return len(wanted)

    def search(self, tables: NDArray[np.float32], k: int = 10) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Find the k items of highest score for each query.

        Args:
            tables: (Q, M, K) float32 lookup tables without NaN.
            k: number of hits for each query, at least 1.

        Returns:
            (Q, k) float32 scores and (Q, k) int64 ids, ordered by score, highest first, then by id, lowest first. Where
            the index holds fewer than k items, the rest is padded with score -inf and id -1.

        Raises:
            ConfigError: tables of the wrong shape or dtype, NaN in them, or k below 1.
        """
        check_tables(tables)
        if tables.shape[1:] != (self.num_books, self.num_words):
            expected = f"(Q, {self.num_books}, {self.num_words})"
            raise ConfigError(f"tables have shape {tables.shape}, expected {expected}: they come from another model")
        if k < 1:
            raise ConfigError(f"k is {k}; it must be at least 1")
        scores = np.full((len(tables), k), -np.inf, dtype=np.float32)
        ids = np.full((len(tables), k), -1, dtype=np.int64)
        for first in range(0, len(tables), QUERY_CHUNK):
            block = tables[first : first + QUERY_CHUNK]
            best = [_Hits(np.empty(0, dtype=np.float32), np.empty(0, dtype=np.int64))] * len(block)
            for start in range(0, len(self), ITEM_CHUNK):
                items = slice(start, start + ITEM_CHUNK)
                rows = _sum_entries(block, self._codes[items])  # (queries, items)
                best = [_first_hits(hits, row, self._ids[items], k) for hits, row in zip(best, rows, strict=True)]
            for query, hits in enumerate(best, first):
                scores[query, : len(hits.scores)] = hits.scores
                ids[query, : len(hits.ids)] = hits.ids
        return scores, ids


class _Hits(NamedTuple):
    scores: NDArray[np.float32]  # (at most k,)
    ids: NDArray[np.int64]  # (at most k,)


def _first_hits(hits: _Hits, scores: NDArray[np.float32], ids: NDArray[np.int64], k: int) -> _Hits:
    """Merge the hits so far with further (N,) items, all of larger id, and keep the first k."""
    if len(scores) > k:
        kth = np.partition(scores, len(scores) - k)[len(scores) - k]
        reach = np.flatnonzero(scores >= kth)  # all items that tie with the k-th too, so that ids decide
        scores, ids = scores[reach], ids[reach]
    scores = np.concatenate([hits.scores, scores])
    ids = np.concatenate([hits.ids, ids])
    order = np.argsort(-scores, kind="stable")[:k]
    return _Hits(scores[order], ids[order])


def _sum_entries(tables: NDArray[np.float32], codes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the (Q, N) scores of checked tables and codes."""
    total: NDArray[np.float32] = np.take(tables[:, 0], codes[:, 0], axis=1)  # (Q, N)
    with np.errstate(over="ignore"):
        for m in range(1, codes.shape[1]):
            total += np.take(tables[:, m], codes[:, m], axis=1)
    return total


def number_items(count: int, next_id: int, ids: NDArray[np.int64] | Sequence[int] | None) -> NDArray[np.int64]:
    """Return (count,) int64 ids of new items: those given, or ``next_id`` and up. Whether they are taken is left open.

    Raises:
        ConfigError: another number of ids, no integers, or none left.
    """
    if ids is None:
        if next_id + count - 1 > MAX_ID:
            raise ConfigError(f"there are no ids above {next_id - 1} left; pass ids")
        return np.arange(next_id, next_id + count, dtype=np.int64)
    new_ids = as_ids(ids)
    if len(new_ids) != count:
        raise ConfigError(f"{len(new_ids)} ids for {count} codes; pass one id for each code")
    return new_ids


def as_ids(ids: NDArray[np.int64] | Sequence[int]) -> NDArray[np.int64]:
    """Return ids as (N,) int64, or refuse them."""
    array = np.asarray(ids)
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
        raise ConfigError(f"ids must be a one-dimensional array of integers, not {_describe(array)}")
    if array.size and not 0 <= int(array.min()) <= int(array.max()) <= MAX_ID:
        raise ConfigError(f"ids run from {array.min()} to {array.max()}; they must lie in 0..{MAX_ID}")
    return array.astype(np.int64)


def _describe(value: Any) -> str:
    """Name what was given instead, for a message."""
    if isinstance(value, np.ndarray):
        return f"a {value.shape} {value.dtype} array"
    return f"a {type(value).__name__}"
