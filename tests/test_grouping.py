"""Grouping: the graph and the metrics equal their definitions, and faces of one person come together."""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from opqn import grouping
from opqn.errors import ConfigError
from opqn.grouping import Agreement, bcubed, group_faces, knn_graph, pairwise_scores
from opqn.index import CodeIndex, score

DATA = Path(os.environ.get("OPQN_SHARED") or Path(__file__).parents[2] / "shared") / "data"
SEEDS = st.integers(0, 10**6)


def nearest(vectors, k):
    """Return each vector's nearest others by inner product."""
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -np.inf)
    order = np.argsort(-scores, axis=1)[:, :k]
    return order, np.take_along_axis(scores, order, axis=1)


def people_in_space(rng, faces, noise=0.35, dim=32):
    """Draw unit vectors: faces[p] around person p."""
    centres = rng.normal(size=(len(faces), dim))
    people = np.repeat(np.arange(len(faces)), faces)
    vectors = centres[people] + noise * rng.normal(size=(len(people), dim))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), people


# The graph


@settings(deadline=None)
@given(SEEDS, st.integers(1, 8))
def test_the_graph_has_each_faces_best_others_and_the_mean_of_both_scores(seed, k):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 12))
    tables = rng.normal(size=(count, 3, 4)).astype(np.float32)
    codes = rng.integers(0, 4, (count, 3), dtype=np.uint8)
    ids = rng.permutation(50)[:count]
    index = CodeIndex(3, 4)
    index.add(codes, ids)
    if seed % 2:
        index.add(rng.integers(0, 4, (5, 3), dtype=np.uint8), np.arange(100, 105))
    neighbours, scores = knn_graph(index, tables, ids, k)
    one_way = score(tables, codes)
    for face in range(count):
        others = sorted((other for other in range(count) if other != face), key=lambda o: (-one_way[face, o], ids[o]))
        expected = others[:k]
        assert neighbours[face].tolist() == expected + [-1] * (k - len(expected))
        means = [(one_way[face, other] + one_way[other, face]) / 2 for other in expected]
        assert scores[face].tolist() == means + [-np.inf] * (k - len(expected))


def test_a_face_far_from_its_own_code_keeps_k_others():
    # The first face's table does not find its own code among the first three.
    codes = np.arange(4, dtype=np.uint8)[:, None]
    tables = np.zeros((4, 1, 4), np.float32)
    tables[0] = [0, 1, 2, 3]
    index = CodeIndex(1, 4)
    index.add(codes)
    neighbours, scores = knn_graph(index, tables, np.arange(4), 2)
    assert neighbours[0].tolist() == [3, 2]
    assert scores[0].tolist() == [1.5, 1.0]


def test_blocks_of_tables_make_no_difference(monkeypatch):
    rng = np.random.default_rng(0)
    tables, codes = rng.normal(size=(50, 2, 8)).astype(np.float32), rng.integers(0, 8, (50, 2), dtype=np.uint8)
    index = CodeIndex(2, 8)
    ids = index.add(codes)
    whole = knn_graph(index, tables, ids, 5)
    monkeypatch.setattr(grouping, "SEARCH_ROWS", 7)
    for expected, found in zip(whole, knn_graph(index, tables, ids, 5), strict=True):
        np.testing.assert_array_equal(expected, found)


def test_tables_may_lie_in_a_file(tmp_path):
    rng = np.random.default_rng(0)
    tables, codes = rng.normal(size=(20, 2, 8)).astype(np.float32), rng.integers(0, 8, (20, 2), dtype=np.uint8)
    np.save(tmp_path / "tables.npy", tables)
    index = CodeIndex(2, 8)
    ids = index.add(codes)
    mapped = knn_graph(index, np.load(tmp_path / "tables.npy", mmap_mode="r"), ids, 5)
    for expected, found in zip(knn_graph(index, tables, ids, 5), mapped, strict=True):
        np.testing.assert_array_equal(expected, found)


@pytest.mark.parametrize(
    "changes",
    [
        {"ids": [0, 1]},
        {"ids": [0, 1, 1]},
        {"ids": [0, 1, 9]},
        {"ids": [0, 1, -1]},
        {"tables": np.zeros((3, 2, 2), np.float32)},
        {"tables": np.full((3, 1, 2), np.nan, np.float32)},
        {"tables": [[[0.0, 0.0]]] * 3},
        {"k": 0},
    ],
)
def test_what_the_index_does_not_hold_is_refused(changes):
    index = CodeIndex(1, 2)
    index.add(np.zeros((3, 1), np.uint8))
    with pytest.raises(ConfigError):
        knn_graph(index, **({"tables": np.zeros((3, 1, 2), np.float32), "ids": [0, 1, 2], "k": 1} | changes))


# Groups


@pytest.mark.parametrize("faces", [[10, 5, 2, 1, 1], [6], [2], [40] * 10, [1] * 20, [3, 1]])
def test_people_far_from_each_other_are_found_and_single_faces_stay_alone(faces):
    vectors, people = people_in_space(np.random.default_rng(1), faces, noise=0.2)
    groups = group_faces(*nearest(vectors, min(10, len(people))), 0.7)
    # People are drawn in order of size: the number of the group is that of the person.
    assert groups.tolist() == np.where(np.array(faces)[people] > 1, people, -1).tolist()
    assert groups.dtype == np.int64


def test_a_look_alike_of_both_does_not_join_two_people():
    vectors, people = people_in_space(np.random.default_rng(0), [30, 30], noise=0.3)
    between = vectors[0] + vectors[-1]  # a face that resembles one of each
    vectors = np.concatenate([vectors, between[None] / np.linalg.norm(between)])
    neighbours, scores = nearest(vectors, 10)
    linked = scores >= 0.6
    rows = np.nonzero(linked)[0]
    links = csr_matrix((scores[linked], (rows, neighbours[linked])), shape=(61, 61))
    assert connected_components(links, directed=False)[0] == 1
    assert pairwise_scores(group_faces(neighbours, scores, 0.6)[:60], people).f_score == 1.0


@settings(deadline=None)
@given(SEEDS)
def test_groups_are_parts_of_what_the_threshold_joins_and_no_number_of_a_face_matters(seed):
    rng = np.random.default_rng(seed)
    vectors, _ = people_in_space(rng, rng.integers(1, 6, rng.integers(1, 12)), noise=0.6, dim=8)
    count, k, threshold = len(vectors), min(5, len(vectors)), float(rng.uniform(0.3, 0.9))
    neighbours, scores = nearest(vectors, k)
    groups = group_faces(neighbours, scores, threshold)
    linked = (scores >= threshold) & (neighbours != np.arange(count)[:, None])
    links = csr_matrix((linked[linked], (np.nonzero(linked)[0], neighbours[linked])), shape=(count, count))
    _, component = connected_components(links, directed=False)
    sizes = np.bincount(groups[groups >= 0])
    assert (sizes >= 2).all()
    assert (np.diff(sizes) <= 0).all()
    for group in range(len(sizes)):
        assert len(set(component[groups == group])) == 1
    order = rng.permutation(count)
    place = np.argsort(order)
    shuffled = group_faces(place[neighbours[order]], scores[order], threshold)
    assert pairwise_scores(shuffled, np.where(groups[order] >= 0, groups[order], -1)) == Agreement(1.0, 1.0, 1.0)
    assert ((shuffled < 0) == (groups[order] < 0)).all()


def test_many_components_are_grouped_batch_by_batch_to_the_same_end(monkeypatch):
    rng = np.random.default_rng(5)
    vectors, _ = people_in_space(rng, rng.integers(1, 9, 60), noise=0.5, dim=12)
    graph = nearest(vectors, 8)
    whole = group_faces(*graph, 0.6)
    assert len(set(whole)) > 20
    for faces in (1, 10, 50):
        monkeypatch.setattr(grouping, "BATCH_FACES", faces)
        np.testing.assert_array_equal(group_faces(*graph, 0.6), whole)


def test_a_link_counts_once_at_its_higher_score_and_a_link_to_oneself_not_at_all():
    neighbours = np.array([[1, 0, 1], [0, -1, -1], [2, -1, -1]])
    scores = np.array([[0.2, 9.0, 0.6], [0.1, 9.0, 9.0], [9.0, np.nan, np.inf]], np.float32)
    assert group_faces(neighbours, scores, 0.5).tolist() == [0, 0, -1]
    assert group_faces(neighbours, scores, 0.7).tolist() == [-1, -1, -1]
    assert group_faces(neighbours, scores, float(np.float32(0.6))).tolist() == [0, 0, -1]


def test_no_faces_make_no_groups():
    assert group_faces(np.empty((0, 5), int), np.empty((0, 5)), 0.5).shape == (0,)
    assert group_faces(np.full((3, 2), -1), np.full((3, 2), -np.inf), 0.5).tolist() == [-1] * 3


@pytest.mark.parametrize(
    "changes",
    [
        {"neighbours": np.array([1, 0])},
        {"neighbours": np.array([[1.0], [0.0]])},
        {"neighbours": np.array([[2], [0]])},
        {"neighbours": np.array([[-2], [0]])},
        {"scores": np.array([1.0, 1.0])},
        {"scores": np.array([[1], [1]])},
        {"scores": np.array([[np.nan], [1.0]])},
        {"scores": np.array([[np.inf], [1.0]])},
        {"threshold": np.nan},
        {"threshold": -np.inf},
    ],
)
def test_what_is_no_graph_is_refused(changes):
    given_well = {"neighbours": np.array([[1], [0]]), "scores": np.array([[1.0], [1.0]]), "threshold": 0.5}
    with pytest.raises(ConfigError):
        group_faces(**(given_well | changes))


# Metrics


def harmonic(precision, recall):
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-1, 4), st.integers(-1, 4)), min_size=1, max_size=20), st.booleans())
def test_metrics_equal_their_definitions(labels, by_name):
    groups, people = (list(column) for column in zip(*labels, strict=True))
    count = len(groups)

    def same(side, first, second):
        return first == second or (side[first] == side[second] and (side is named or side[first] != -1))

    named = [f"person {who}" for who in people] if by_name else None
    truth = named or people
    pairs = list(itertools.combinations(range(count), 2))
    together = sum(same(groups, a, b) and same(truth, a, b) for a, b in pairs)
    grouped, belonging = (sum(same(side, a, b) for a, b in pairs) for side in (groups, truth))
    precision, recall = (together / total if total else 1.0 for total in (grouped, belonging))
    found = pairwise_scores(np.array(groups), np.array(truth))
    assert found.to_dict() == pytest.approx(
        {"precision": precision, "recall": recall, "f_score": harmonic(precision, recall)}
    )
    shares = []
    for side in (groups, truth):
        of_face = []
        for a in range(count):
            mates = [b for b in range(count) if same(side, a, b)]
            of_face.append(sum(same(groups, a, b) and same(truth, a, b) for b in mates) / len(mates))
        shares.append(sum(of_face) / count)
    assert bcubed(np.array(groups), np.array(truth)).to_dict() == pytest.approx(
        {"precision": shares[0], "recall": shares[1], "f_score": harmonic(*shares)}
    )


def test_the_example_of_a_textbook():
    # Amigo, Gonzalo, Artiles, Verdejo 2009: a group of four and one other, a person split in two.
    groups, people = np.array([0, 0, 0, 0, 0, 1, 1]), np.array([7, 7, 7, 7, 8, 8, 8])
    found = bcubed(groups, people)
    assert found.precision == pytest.approx((4 * 4 / 5 + 1 / 5 + 2) / 7)
    assert found.recall == pytest.approx((4 + 1 / 3 + 2 * 2 / 3) / 7)
    assert pairwise_scores(groups, people) == Agreement(7 / 11, 7 / 9, pytest.approx(0.7))


@pytest.mark.parametrize("metric", [pairwise_scores, bcubed])
@pytest.mark.parametrize(
    ("groups", "people"),
    [([], []), ([0], [0, 1]), ([[0]], [0]), ([0.5], [0]), (["a"], [0]), ([0], [0.5])],
)
def test_what_are_no_labels_is_refused(metric, groups, people):
    with pytest.raises(ConfigError):
        metric(np.array(groups), np.array(people))


def test_faces_of_lfw_are_grouped_nearly_without_error():
    path = DATA / "lfw_sface.npz"
    if not path.is_file():
        pytest.skip(f"no {path}: face vectors of LFW are not here; set OPQN_SHARED to the folder that holds data/")
    with np.load(path, allow_pickle=False) as file:
        vectors, names = file["e"].astype(np.float32), file["n"]
    _, people = np.unique([name.split("/")[0] for name in names], return_inverse=True)
    chosen = np.flatnonzero(people % 2 == 0)
    vectors = vectors[chosen] / np.linalg.norm(vectors[chosen], axis=1, keepdims=True)
    groups = group_faces(*nearest(vectors, 20), 0.5)
    assert bcubed(groups, people[chosen]).f_score > 0.98
    assert pairwise_scores(groups, people[chosen]).f_score > 0.98
