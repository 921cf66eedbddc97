"""The ranks of chosen items in the full ranking, without ranking the gallery.

A mean average precision needs the rank of every true match, and of nothing else. That is one plus the number of items
that score more, or score the same and have a smaller position; counting them is far cheaper than sorting. Codes that
are equal form one *group*, scored once. A group matters only if it scores at least as much as the query's last match.
Where matches come first, as they should, few groups do, and they are picked out while the scores are still in the
processor's cache. Where they do not, a histogram of the scores leaves few to be compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

# Groups scored at a time. With 64 queries that is 1 MiB: calls long enough to run in parallel, short enough for caches.
GROUP_CHUNK: Final = 4096
# With more groups than this to be compared for each query, histograms are faster.
MAX_NEAR: Final = 2048
NUM_CELLS: Final = 1 << 15
MAX_FLOAT: Final = float(np.finfo(np.float32).max)


class Groups(NamedTuple):
    """The N gallery items in U groups of equal code."""

    codes: NDArray[np.uint8]
    """(U, M) the distinct codes, in lexicographic order."""
    of_item: NDArray[np.intp]
    """(N,) the group of each item."""
    place_in_group: NDArray[np.intp]
    """(N,) number of items of the same group with a smaller position."""
    weights: NDArray[np.float64]
    """(U,) number of items of each group; whole numbers, in the type that bincount adds up."""
    starts: NDArray[np.intp]
    """(U,) where each group begins in ``members``."""
    members: NDArray[np.intp]
    """(N,) positions, group by group, ascending in each."""


class Wanted(NamedTuple):
    """The items whose ranks are asked for, of Q queries end to end: R in all, at least one for each query."""

    items: NDArray[np.intp]
    """(R,) positions, none twice for a query."""
    query: NDArray[np.intp]
    """(R,) the query of each, ascending."""
    excluded: NDArray[np.intp]
    """(Q,) position of an item that is not in the query's gallery, and not asked for; -1 for none."""


class Placing(NamedTuple):
    """Where wanted items stand in their queries' rankings by score, highest first, then by position, lowest first."""

    ranks: NDArray[np.int64]
    """(R,) from 1, query by query and ascending in each."""
    num_equal: NDArray[np.int64]
    """(R,) for each rank, how many other items have exactly the same score."""


def max_queries(num_items: int) -> int:
    """Return how many queries may be placed at a time in a gallery of this size: all fit into keys of 64 bits."""
    return 1 << (32 - (num_items - 1).bit_length())


def group_codes(codes: NDArray[np.uint8]) -> Groups:
    """Put equal codes together; (N, M) uint8, N and M at least 1."""
    members = np.lexsort(codes.T[::-1])  # (N,) stable: positions ascend where codes are equal
    ordered = codes[members]  # (N, M)
    is_first = np.ones(len(codes), dtype=bool)  # (N,)
    is_first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return _groups(ordered[is_first], members, np.flatnonzero(is_first))


def single_items(num_items: int) -> Groups:
    """Make a group of each item, for a gallery without codes."""
    positions = np.arange(num_items)
    return _groups(np.empty((num_items, 0), dtype=np.uint8), positions, positions)


def _groups(codes: NDArray[np.uint8], members: NDArray[np.intp], starts: NDArray[np.intp]) -> Groups:
    sizes = np.diff(starts, append=len(members))  # (U,)
    of_item = np.empty_like(members)
    of_item[members] = np.repeat(np.arange(len(starts)), sizes)
    place_in_group = np.empty_like(members)
    place_in_group[members] = np.arange(len(members)) - np.repeat(starts, sizes)
    return Groups(codes, of_item, place_in_group, sizes.astype(np.float64), starts, members)


def place_by_codes(tables: NDArray[np.float32], groups: Groups, wanted: Wanted) -> Placing:
    """Find the ranks under the score of :func:`opqn.index.score`, exact to the last bit.

    Args:
        tables: (Q, M, K) float32, checked.
        groups: of checked codes.
        wanted: the items asked for, of at most :func:`max_queries` queries.
    """
    num_queries = len(tables)
    room = MAX_NEAR * num_queries
    if len(wanted.items) > room:
        return place_by_scores(_score_rows(tables, groups.codes), groups, wanted)
    own = _score_pairs(tables, wanted.query, groups.codes[groups.of_item[wanted.items]])  # (R,)
    lowest = np.minimum.reduceat(own, np.searchsorted(wanted.query, np.arange(num_queries)))  # (Q,)
    near, near_scores = [], []
    for start, scores in _score_chunks(tables, groups.codes):
        chosen = np.flatnonzero(scores >= lowest)
        room -= len(chosen)
        if room < 0:
            return place_by_scores(_score_rows(tables, groups.codes), groups, wanted)
        near.append(chosen + start * num_queries)
        near_scores.append(scores.ravel()[chosen])
    group, query = np.divmod(np.concatenate(near), num_queries)
    excluded = _score_pairs(tables, np.arange(num_queries), groups.codes[groups.of_item[wanted.excluded]])  # (Q,)
    return _place(groups, wanted, own, excluded, _Near(query, group, np.concatenate(near_scores)))


def place_by_scores(scores: NDArray[np.float32], groups: Groups, wanted: Wanted) -> Placing:
    """Find the ranks under given scores.

    Args:
        scores: (Q, U) float32 of each group, no NaN.
        groups: of the gallery.
        wanted: the items asked for.
    """
    starts = np.searchsorted(wanted.query, np.arange(1, len(scores)))
    placings = []
    for row, items, excluded in zip(scores, np.split(wanted.items, starts), wanted.excluded[:, None], strict=True):
        own = row[groups.of_item[items]]  # (R of this query,)
        near, counted = _narrow(row, groups.weights, np.sort(own))
        one_query = Wanted(items, np.zeros_like(items), excluded)
        near_pairs = _Near(np.zeros_like(near), near, row[near])
        placings.append(_place(groups, one_query, own, row[groups.of_item[excluded]], near_pairs, counted[::-1]))
    return Placing(*(np.concatenate(part) for part in zip(*placings, strict=True)))


def _score_pairs(tables: NDArray[np.float32], query: NDArray[np.intp], codes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Score each of (R, M) codes for one query: (R,)."""
    scores: NDArray[np.float32] = tables[query, 0, codes[:, 0]]
    with np.errstate(over="ignore"):
        for m in range(1, codes.shape[1]):
            scores += tables[query, m, codes[:, m]]
    return scores


def _score_chunks(tables: NDArray[np.float32], codes: NDArray[np.uint8]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Score (U, M) codes for (Q, M, K) tables, chunk by chunk.

    With the query axis contiguous a table entry is fetched for all queries by copying one row.

    Yields:
        The first group of a chunk, and (chunk, Q) float32 scores, overwritten by the next.
    """
    entries = np.ascontiguousarray(tables.transpose(1, 2, 0))  # (M, K, Q)
    total = np.empty((min(GROUP_CHUNK, len(codes)), len(tables)), dtype=np.float32)
    addend = np.empty_like(total)
    for start in range(0, len(codes), GROUP_CHUNK):
        words = codes[start : start + GROUP_CHUNK].T.astype(np.intp)  # (M, chunk)
        size = words.shape[1]
        with np.errstate(over="ignore"):
            # Codes are checked, so mode="clip" changes nothing; it spares NumPy the copy that "raise" needs.
            np.take(entries[0], words[0], axis=0, out=total[:size], mode="clip")
            for m in range(1, len(entries)):
                np.take(entries[m], words[m], axis=0, out=addend[:size], mode="clip")
                np.add(total[:size], addend[:size], out=total[:size])
        yield start, total[:size]


def _score_rows(tables: NDArray[np.float32], codes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Score (U, M) codes for (Q, M, K) tables: (Q, U)."""
    rows = np.empty((len(tables), len(codes)), dtype=np.float32)
    for start, scores in _score_chunks(tables, codes):
        rows[:, start : start + len(scores)] = scores.T
    return rows


class _Near(NamedTuple):
    """Pairs of query and group that have to be compared with the wanted items, in any order."""

    query: NDArray[np.intp]  # (n,)
    group: NDArray[np.intp]  # (n,)
    score: NDArray[np.float32]  # (n,)


def _narrow(
    scores: NDArray[np.float32], weights: NDArray[np.float64], levels: NDArray[np.float32]
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Count most groups of a query wholesale, and name those that have to be compared with its wanted items.

    The range of the wanted items' scores is cut into cells. All scores in a cell without a wanted item lie on the same
    side of every wanted item, because the number of a cell never falls as the score grows, whatever the rounding.

    Args:
        scores: (U,) of the groups.
        weights: (U,) of the groups.
        levels: (R,) scores of the wanted items, ascending.

    Returns:
        (n,) groups to be compared, and for each level the summed weight of all other groups that score more, (R,).
    """
    is_near = scores >= levels[0]  # (U,)
    finite = levels[np.isfinite(levels)]
    if np.count_nonzero(is_near) <= MAX_NEAR or not finite.size:
        return np.flatnonzero(is_near), np.zeros(len(levels))
    span = max(float(finite[-1]) - float(finite[0]), NUM_CELLS / MAX_FLOAT)
    cells_per_unit = np.float32(NUM_CELLS / span)

    def cells_of(values: NDArray[np.float32]) -> NDArray[np.intp]:
        with np.errstate(over="ignore"):
            cells = (values - finite[0]) * cells_per_unit
        # The first cell takes what lies below the finite levels, the last what lies above.
        np.clip(cells, -1, NUM_CELLS + 1, out=cells)
        cells += 1
        numbers: NDArray[np.intp] = cells.astype(np.intp)
        return numbers

    cells = cells_of(scores)  # (U,)
    level_cells = cells_of(levels)  # (R,)
    has_level = np.zeros(NUM_CELLS + 3, dtype=bool)
    has_level[level_cells] = True
    weight_in_cell = np.bincount(cells, weights=weights, minlength=len(has_level))
    weight_in_cell[has_level] = 0.0
    up_to_cell = weight_in_cell.cumsum()
    return np.flatnonzero(has_level[cells]), up_to_cell[-1] - up_to_cell[level_cells]


def _place(
    groups: Groups,
    wanted: Wanted,
    own: NDArray[np.float32],
    excluded: NDArray[np.float32],
    near: _Near,
    counted: NDArray[np.float64] | float = 0.0,
) -> Placing:
    """Count what precedes each wanted item.

    Args:
        groups: of the gallery.
        wanted: R items of Q queries.
        own: (R,) scores of the wanted items.
        excluded: (Q,) scores of the excluded items, anything where there is none.
        near: the groups that score as much as a wanted item of their query, or more and are not counted yet.
        counted: number of items counted already as scoring more, by query and rank.
    """
    keys = _Keys(len(groups.members))
    queries = np.arange(len(wanted.excluded))
    wanted_keys = np.sort(keys.pack(wanted.query, own, wanted.items))  # (R,) from here on in order of query and rank
    query, items = keys.query(wanted_keys), keys.low(wanted_keys)
    near_keys = np.sort(keys.pack(near.query, near.score, near.group))  # (n,)
    weights = groups.weights[keys.low(near_keys)]  # (n,)
    weight_before = np.concatenate([[0.0], weights.cumsum()])  # (n + 1,)
    # Of a query's near groups, those from `first` up to `last` have exactly the score of the wanted item.
    first = np.searchsorted(near_keys, keys.lowest_of_score(wanted_keys))  # (R,)
    last = np.searchsorted(near_keys, keys.highest_of_score(wanted_keys), side="right")  # (R,)
    query_first = np.searchsorted(near_keys, keys.lowest_of_query(queries))  # (Q,)
    above = weight_before[first] - weight_before[query_first[query]] + counted  # (R,) float64, whole numbers
    num_equal = weight_before[last] - weight_before[first] - 1.0  # (R,)

    before = groups.place_in_group[items]  # (R,) items with the same score and a smaller position
    shared = np.flatnonzero(last - first > 1)  # where other groups have the same score, all their items count
    if shared.size:
        new = shared[np.flatnonzero(np.diff(first[shared], prepend=-1))]  # one wanted item of each score
        crowd = near_keys[ranges(first[new], last[new] - first[new])]
        sizes = groups.weights[keys.low(crowd)].astype(np.intp)
        members = groups.members[ranges(groups.starts[keys.low(crowd)], sizes)]
        crowd_keys = np.sort(np.repeat(keys.lowest_of_score(crowd), sizes) | members.astype(np.uint64))
        crowd_first = np.searchsorted(crowd_keys, keys.lowest_of_score(wanted_keys[shared]))
        before[shared] = np.searchsorted(crowd_keys, wanted_keys[shared]) - crowd_first

    ranks = above.astype(np.int64) + before + 1
    excluded_keys = keys.pack(queries, excluded, np.maximum(wanted.excluded, 0))[query]  # (R,)
    has_excluded = wanted.excluded[query] >= 0  # (R,)
    ranks -= has_excluded & (excluded_keys < wanted_keys)
    num_equal -= has_excluded & (keys.lowest_of_score(excluded_keys) == keys.lowest_of_score(wanted_keys))
    return Placing(ranks, num_equal.astype(np.int64))


class _Keys:
    """Integers of 64 bits that sort by query, then by score, highest first, then by a number below ``limit``.

    The score takes 32 bits, and query and number share the others: see :func:`max_queries`.
    """

    def __init__(self, limit: int) -> None:
        self._bits = np.uint64((limit - 1).bit_length())
        self._low = np.uint64((1 << int(self._bits)) - 1)

    def pack(self, query: NDArray[np.intp], score: NDArray[np.float32], low: NDArray[np.intp]) -> NDArray[np.uint64]:
        bits = (score + np.float32(0.0)).view(np.uint32)  # -0.0 becomes 0.0, which it equals
        sign = np.uint32(1 << 31)
        # The bits of floats ascend for positive ones and descend for negative ones; here highest has to come first.
        falling = np.where(bits & sign, bits, ~(bits | sign))
        return ((query.astype(np.uint64) << np.uint64(32) | falling) << self._bits) | low.astype(np.uint64)

    def query(self, keys: NDArray[np.uint64]) -> NDArray[np.intp]:
        return (keys >> (self._bits + np.uint64(32))).astype(np.intp)

    def low(self, keys: NDArray[np.uint64]) -> NDArray[np.intp]:
        return (keys & self._low).astype(np.intp)

    def lowest_of_score(self, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
        return keys & ~self._low

    def highest_of_score(self, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
        return keys | self._low

    def lowest_of_query(self, query: NDArray[np.intp]) -> NDArray[np.uint64]:
        return query.astype(np.uint64) << (self._bits + np.uint64(32))


def ranges(starts: NDArray[np.intp], sizes: NDArray[np.intp]) -> NDArray[np.intp]:
    """Count up from each start, for its size, end to end: ``[s, s + 1, ...]`` for all s."""
    ends = sizes.cumsum()
    counted: NDArray[np.intp] = np.arange(sizes.sum()) + np.repeat(starts - ends + sizes, sizes)
    return counted
