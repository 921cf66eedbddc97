"""Faces without names become people: groups of faces that are linked by score. No torch.

A graph joins each face to the k most similar ones, found by searching every face in an index of all
(:func:`knn_graph`), so memory grows with N k and never with N N. :func:`group_faces` cuts the graph into people with
HDBSCAN (Campello, Moulavi, Sander 2013; scikit-learn's). How well is told by pairs and by B-cubed (Bagga and Baldwin
1998), in which a face that belongs to nobody is a group of its own.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from opqn.errors import ConfigError
from opqn.index.reference import as_ids, check_tables

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opqn.evaluation import Labels
    from opqn.index import CodeIndex

NOBODY: Final = -1
SEARCH_ROWS: Final = 1024
BATCH_FACES: Final = 4096
# Distances run from 1, the best link, to 2, a link at the threshold. HDBSCAN keeps a group while 1 / distance grows, so
# the distance of 1 keeps the closest pictures, near-copies, from outweighing all else.
NEAR: Final = 1.0
# What no link joins is joined here, so that the graph is connected, as HDBSCAN wants it. A little beyond the threshold:
# what holds together at the threshold then stays together unless it falls apart soon above it.
FAR: Final = 2.1


def knn_graph(
    index: CodeIndex,
    tables: NDArray[np.float32],
    ids: NDArray[np.int64] | Sequence[int],
    k: int = 20,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Find each face's nearest others, and score each pair in both directions.

    A face's table in the other's code and the other's table in its code are two measurements of one similarity; their
    mean is the better one, and the same for both. Faces are read in blocks, so ``tables`` may be a memory map.

    Args:
        index: holds the faces; it may hold others, which are passed over.
        tables: (N, M, K) float32 of the faces to group.
        ids: (N,) their ids in the index.
        k: neighbours of each.

    Returns:
        (N, k) int64 positions in ``ids``, best of the one-way scores first and -1 where there are no more, and (N, k)
        float32 mean scores, -inf where there are no more.

    Raises:
        ConfigError: tables that do not fit the index, an id twice or not in the index, or k below 1.
    """
    wanted = as_ids(ids)
    if not isinstance(tables, np.ndarray) or len(tables) != len(wanted):
        raise ConfigError(f"there are {len(tables)} tables for {len(wanted)} ids; pass one for each face")
    if k < 1:
        raise ConfigError(f"k is {k}; it must be at least 1")
    order = np.argsort(wanted)
    if (np.diff(wanted[order]) == 0).any():
        raise ConfigError("ids holds an id twice; give each face once")
    if not index.holds(wanted).all():
        raise ConfigError(f"id {wanted[~index.holds(wanted)][0]} is not in the index; group faces that it holds")
    held_codes, held_ids = index.items()
    codes = held_codes[np.searchsorted(held_ids, wanted)]  # (N, M)
    allowed = None if len(held_ids) == len(wanted) else wanted
    neighbours = np.full((len(wanted), k), NOBODY, dtype=np.int64)
    scores = np.full((len(wanted), k), -np.inf, dtype=np.float32)
    for start in range(0, len(wanted), SEARCH_ROWS):
        block = tables[start : start + SEARCH_ROWS]
        rows = slice(start, start + len(block))
        found_scores, found = index.search(block, k=k + 1, allowed=allowed)
        hits = order[np.minimum(np.searchsorted(wanted, found, sorter=order), len(wanted) - 1)]  # (rows, k + 1)
        hits[found < 0] = NOBODY
        # A face need not be its own best hit, but where it is among the hits it goes to the end.
        others = np.argsort(hits == np.arange(len(wanted))[rows, None], axis=1, kind="stable")[:, :k]
        neighbours[rows] = np.take_along_axis(hits, others, axis=1)
        scores[rows] = np.take_along_axis(found_scores, others, axis=1)
    face, place = np.nonzero(neighbours != NOBODY)  # (links,)
    other = neighbours[face, place]
    by_other = np.argsort(other, kind="stable")
    face, place, other = face[by_other], place[by_other], other[by_other]
    for start in range(0, len(wanted), SEARCH_ROWS):
        block = np.asarray(tables[start : start + SEARCH_ROWS])
        links = slice(*np.searchsorted(other, [start, start + len(block)]))
        back = _scores_of_pairs(block, other[links] - start, codes, face[links])
        scores[face[links], place[links]] = (scores[face[links], place[links]] + back) / 2
    return neighbours, scores


def group_faces(
    neighbours: NDArray[np.integer[Any]], scores: NDArray[np.floating[Any]], threshold: float
) -> NDArray[np.int64]:
    """Cut a graph of similar faces into people.

    Links below the threshold are none. What the others join is taken apart again where HDBSCAN finds parts that hold
    together more closely: with many faces some chain of look-alikes always joins two people, and connected components
    alone lump them together at a threshold that suits a small gallery. Without such chains the groups are the
    components.

    Args:
        neighbours: (N, k) integers, positions of each face's neighbours; -1 for none.
        scores: (N, k) floating, of the links. Of a pair that occurs in both directions the higher score counts.
        threshold: lowest score of a link; the one that :func:`opqn.open_set.calibrate` gives for an FPIR of 5 % is a
            good one, and between 1 % and 20 % little changes.

    Returns:
        (N,) int64 groups, numbered from 0, the largest first (of equal ones that of the first face); -1 for a face that
        has no group.

    Raises:
        ConfigError: arrays of other shapes or dtypes, a position out of range, or a NaN.
    """
    num_faces, face, other, score = _links(neighbours, scores, threshold)
    labels = np.full(num_faces, NOBODY, dtype=np.int64)
    if not len(face):
        return labels
    # Imported here, as they are slow to load.
    from scipy.sparse import csr_matrix  # noqa: PLC0415
    from scipy.sparse.csgraph import connected_components  # noqa: PLC0415

    top = float(score.max())
    distances = NEAR + (top - score) / (top - threshold if top > threshold else 1.0)  # (links,) in 1..2
    linked, ends = np.unique(np.concatenate([face, other]), return_inverse=True)  # faces without a link stay alone
    shape = (len(linked), len(linked))
    _, component = connected_components(csr_matrix((distances, np.split(ends, 2)), shape=shape), directed=False)
    order = np.argsort(component, kind="stable")  # component by component
    place = np.empty(len(linked), dtype=np.int64)
    place[order] = np.arange(len(linked))
    graph = csr_matrix((np.tile(distances, 2), (place[ends], place[np.roll(ends, len(face))])), shape=shape)
    # HDBSCAN's time grows with the square of the number of groups, and components know nothing of each other.
    starts = np.flatnonzero(np.diff(component[order], prepend=-1))  # (components,)
    batches = [*starts[np.flatnonzero(np.diff(starts // BATCH_FACES, prepend=-1))], len(linked)]
    num_groups = 0
    for start, end in itertools.pairwise(batches):
        groups = _cluster(graph[start:end, start:end], starts[(starts >= start) & (starts < end)] - start)
        labels[linked[order[start:end]]] = np.where(groups == NOBODY, NOBODY, groups + num_groups)
        num_groups += int(groups.max()) + 1
    return _by_size(labels)


@dataclass(frozen=True)
class Agreement:
    """How far groups agree with the truth; 1 is best."""

    precision: float
    """How much of what was put together belongs together."""
    recall: float
    """How much of what belongs together was put together."""
    f_score: float
    """Harmonic mean of the two."""

    def to_dict(self) -> dict[str, float]:
        """Return the figures as JSON-ready types."""
        return asdict(self)


def pairwise_scores(groups: NDArray[np.integer[Any]], people: Labels) -> Agreement:
    """Compare groups with people, pair by pair: precision and recall of the pairs that are in one group.

    People of many faces dominate: someone with n faces has n (n - 1) / 2 pairs.

    Args:
        groups: (N,) integers; each -1 is a group of its own.
        people: (N,) who is in each face, integers or strings; an integer -1 is a person of whom there is no other face.

    Raises:
        ConfigError: arrays that are not of one length and such types, or empty.
    """
    both, in_group, of_person = _overlaps(groups, people)
    together, grouped, belonging = (_pairs(counts) for counts in (both, in_group, of_person))
    # No pair was put together: none wrongly. None belongs together: none is missing.
    return _agreement(together / grouped if grouped else 1.0, together / belonging if belonging else 1.0)


def bcubed(groups: NDArray[np.integer[Any]], people: Labels) -> Agreement:
    """Compare groups with people, face by face (Bagga and Baldwin 1998).

    Of each face, precision is the share of its group that shows its person, recall the share of its person's faces that
    are in its group, itself included; both are means over faces. A face alone has precision 1.

    Args:
        groups: (N,) integers; each -1 is a group of its own.
        people: (N,) who is in each face, integers or strings; an integer -1 is a person of whom there is no other face.

    Raises:
        ConfigError: arrays that are not of one length and such types, or empty.
    """
    both, in_group, of_person = _overlaps(groups, people, each_face=True)
    return _agreement(float((both / in_group).mean()), float((both / of_person).mean()))


def _cluster(graph: Any, members: NDArray[np.intp]) -> NDArray[np.int64]:
    """Run HDBSCAN on a symmetric sparse matrix of distances, of whose components each has one of these members."""
    from scipy.sparse import bmat, csr_matrix  # noqa: PLC0415
    from sklearn.cluster import HDBSCAN  # noqa: PLC0415

    # Two more points: HDBSCAN never takes everything for one group, and all faces may show one person.
    pair = csr_matrix(np.array([[0.0, NEAR], [NEAR, 0.0]]))
    chain = np.append(members, graph.shape[0])
    joints = csr_matrix((np.full(len(members), FAR), (chain[:-1], chain[1:])), shape=np.add(graph.shape, 2))
    distances = bmat([[graph, None], [None, pair]]) + joints + joints.T
    clustering = HDBSCAN(min_cluster_size=2, min_samples=1, metric="precomputed", copy=False).fit(distances.tocsr())
    labels: NDArray[np.int64] = clustering.labels_[:-2].astype(np.int64)
    return labels


def _links(
    neighbours: NDArray[np.integer[Any]], scores: NDArray[np.floating[Any]], threshold: float
) -> tuple[int, NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return N and the links that reach the threshold: lower and higher position, score; each pair once."""
    if not isinstance(neighbours, np.ndarray) or neighbours.ndim != 2 or neighbours.dtype.kind not in "iu":
        raise ConfigError("neighbours must be an (N, k) array of integers, as knn_graph returns it")
    if not isinstance(scores, np.ndarray) or scores.shape != neighbours.shape or scores.dtype.kind != "f":
        raise ConfigError(f"scores must be {neighbours.shape} floats, one for each neighbour")
    num_faces = len(neighbours)
    if neighbours.size and not NOBODY <= int(neighbours.min()) <= int(neighbours.max()) < num_faces:
        raise ConfigError(f"neighbours must be positions below {num_faces}, the number of faces, or -1")
    linked = neighbours != NOBODY
    if np.isnan(scores[linked]).any() or (scores[linked] == np.inf).any():
        raise ConfigError("scores hold NaN or +inf; leave such faces out")
    if not np.isfinite(threshold):
        raise ConfigError(f"the threshold is {threshold}; pass a finite number")
    linked &= (scores >= threshold) & (neighbours != np.arange(num_faces)[:, None])
    face, place = np.nonzero(linked)
    other, score = neighbours[face, place].astype(np.int64), scores[face, place].astype(np.float64)
    low, high = np.minimum(face, other), np.maximum(face, other)
    order = np.lexsort((-score, high, low))
    low, high, score = low[order], high[order], score[order]
    once = np.append(True, (low[1:] != low[:-1]) | (high[1:] != high[:-1]))[: len(low)]
    return num_faces, low[once], high[once], score[once]


def _scores_of_pairs(
    tables: NDArray[np.float32], table: NDArray[np.int64], codes: NDArray[np.uint8], item: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Score (P,) pairs of a table and an item as the index does: float32, added from left to right."""
    check_tables(tables)
    total: NDArray[np.float32] = tables[table, 0, codes[item, 0]]  # (P,)
    for m in range(1, codes.shape[1]):
        total += tables[table, m, codes[item, m]]
    return total


def _by_size(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number groups anew, the largest first, equal ones by their first face."""
    groups, first, number, counts = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(groups), dtype=np.int64)
    rank[np.lexsort((first, -counts, groups == NOBODY))] = np.arange(len(groups))
    rank[groups == NOBODY] = NOBODY
    return rank[number]


def _overlaps(
    groups: NDArray[np.integer[Any]], people: Labels, each_face: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Count faces of each group and person together, of each group, and of each person; or those of each face."""
    sides = []
    for name, labels, kinds in (("groups", np.asarray(groups), "iu"), ("people", np.asarray(people), "iuU")):
        if labels.ndim != 1 or labels.dtype.kind not in kinds or not labels.size:
            raise ConfigError(
                f"{name} must be a non-empty one-dimensional array of integers{' or strings' * (kinds[-1] == 'U')}"
            )
        _, number = np.unique(labels, return_inverse=True)
        if labels.dtype.kind == "i":
            alone = np.flatnonzero(labels == NOBODY)
            number[alone] = len(labels) + np.arange(len(alone))
            _, number = np.unique(number, return_inverse=True)
        sides.append(number.astype(np.int64))
    if len(sides[0]) != len(sides[1]):
        raise ConfigError(f"there are {len(sides[0])} groups and {len(sides[1])} people; give one of each for a face")
    sides.insert(0, sides[0] * (sides[1].max() + 1) + sides[1])
    counted = [np.unique(side, return_inverse=True, return_counts=True)[1:] for side in sides]
    both, in_group, of_person = (counts[number] if each_face else counts for number, counts in counted)
    return both, in_group, of_person


def _pairs(counts: NDArray[np.int64]) -> int:
    return int((counts * (counts - 1) // 2).sum())


def _agreement(precision: float, recall: float) -> Agreement:
    return Agreement(precision, recall, 2 * precision * recall / (precision + recall) if precision + recall else 0.0)
