"""PQ and OPQ give the codes and scores of FAISS's own indexes, and OPQ's rotation is one."""

import sys

import numpy as np
import pytest

from opqn import ConfigError, DataError, OpqnError, evaluate
from opqn.baselines.product_quantization import ProductQuantizer
from opqn.index import score

faiss = pytest.importorskip("faiss", reason="FAISS is not installed; the bench extra brings it")


def correlated(rows, dim, seed=0):
    """Features whose few strong directions lie across the axes, which is what a rotation can help with."""
    rng = np.random.default_rng(seed)
    mixing = np.linalg.qr(rng.standard_normal((dim, dim)))[0] * (0.8 ** np.arange(dim))[:, None]
    return (rng.standard_normal((rows, dim)) @ mixing).astype(np.float32)


def normalised(features):
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def reconstructed(quantizer, codes):
    """The centroids that codes stand for, side by side, rotated back."""
    parts = np.concatenate([quantizer.centroids[m, codes[:, m]] for m in range(quantizer.num_books)], axis=1)
    return parts if quantizer.rotation_matrix is None else parts @ quantizer.rotation_matrix


def faiss_index(quantizer, dim):
    """FAISS's inner-product index with the same centroids and rotation."""
    coded_dim = quantizer.num_books * quantizer.centroids.shape[2]
    bits = quantizer.num_words.bit_length() - 1
    index = faiss.IndexPQ(coded_dim, quantizer.num_books, bits, faiss.METRIC_INNER_PRODUCT)
    faiss.copy_array_to_vector(quantizer.centroids.ravel(), index.pq.centroids)
    index.is_trained = True
    if quantizer.rotation_matrix is None:
        return index
    rotation = faiss.LinearTransform(dim, coded_dim)
    faiss.copy_array_to_vector(quantizer.rotation_matrix.ravel(), rotation.A)
    rotation.is_trained = True
    return faiss.IndexPreTransform(rotation, index)


@pytest.mark.parametrize("num_words", [4, 16, 256])
@pytest.mark.parametrize("rotation", [False, True])
def test_codes_and_scores_are_those_of_faiss(rotation, num_words):
    features, queries = correlated(400, 24), correlated(10, 24, seed=1)
    quantizer = ProductQuantizer(4, num_words, rotation).fit(features)
    codes = quantizer.encode(features)
    assert (codes.dtype, codes.shape) == (np.uint8, (400, 4))
    tables = quantizer.lookup_tables(queries)
    assert (tables.dtype, tables.shape) == (np.float32, (10, 4, num_words))
    index = faiss_index(quantizer, 24)
    index.add(normalised(features))
    packed = faiss.downcast_index(index.index) if rotation else index
    unpacked = faiss.unpack_bitstrings(
        faiss.vector_to_array(packed.codes).reshape(400, -1), 4, num_words.bit_length() - 1
    )
    np.testing.assert_array_equal(codes, unpacked)
    scores, ids = index.search(normalised(queries), 400)
    np.testing.assert_allclose(np.take_along_axis(score(tables, codes), ids, axis=1), scores, atol=1e-6)


def test_centroids_are_those_of_faiss_trained_with_the_same_seed():
    features = correlated(500, 16)
    index = faiss.IndexPQ(16, 4, 4)
    index.pq.cp.seed = 3
    index.train(normalised(features))
    quantizer = ProductQuantizer(4, 16, seed=3).fit(features)
    expected = faiss.vector_to_array(index.pq.centroids).reshape(4, 16, 4)
    np.testing.assert_allclose(quantizer.centroids, expected, atol=1e-6)


@pytest.mark.parametrize("rotation", [False, True])
def test_a_table_entry_is_the_inner_product_with_a_centroid(rotation):
    features, queries = correlated(100, 12), correlated(5, 12, seed=1)
    quantizer = ProductQuantizer(3, 8, rotation).fit(features)
    tables = quantizer.lookup_tables(queries)
    parts = normalised(queries).astype(np.float64)
    if rotation:
        parts = parts @ quantizer.rotation_matrix.T
    for q, m, k in np.ndindex(*tables.shape):
        expected = sum(parts[q, 4 * m + j] * quantizer.centroids[m, k, j] for j in range(4))
        assert tables[q, m, k] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("rotation", [False, True])
def test_a_score_is_the_inner_product_with_the_reconstruction(rotation):
    features, queries = correlated(100, 12), correlated(5, 12, seed=1)
    quantizer = ProductQuantizer(3, 8, rotation).fit(features)
    codes = quantizer.encode(features)
    expected = normalised(queries) @ reconstructed(quantizer, codes).T
    np.testing.assert_allclose(score(quantizer.lookup_tables(queries), codes), expected, atol=1e-6)


@pytest.mark.parametrize(("dim", "num_books"), [(24, 4), (26, 4), (29, 6)])
def test_the_rotation_has_orthonormal_rows_and_may_shorten(dim, num_books):
    quantizer = ProductQuantizer(num_books, 8, rotation=True).fit(correlated(300, dim))
    coded_dim = dim // num_books * num_books
    rows = quantizer.rotation_matrix.astype(np.float64)
    assert rows.shape == (coded_dim, dim)
    assert quantizer.centroids.shape == (num_books, 8, coded_dim // num_books)
    np.testing.assert_allclose(rows @ rows.T, np.eye(coded_dim), atol=1e-5)


def test_without_rotation_there_is_no_matrix():
    assert ProductQuantizer(2, 4).fit(correlated(50, 8)).rotation_matrix is None


@pytest.mark.parametrize("num_words", [4, 16])
def test_on_correlated_features_a_rotation_lowers_the_error(num_words):
    features = correlated(1000, 16)
    errors = []
    for rotation in (False, True):
        quantizer = ProductQuantizer(4, num_words, rotation).fit(features)
        difference = normalised(features) - reconstructed(quantizer, quantizer.encode(features))
        errors.append((difference**2).sum(axis=1).mean())
    assert errors[1] <= errors[0]


@pytest.mark.parametrize("rotation", [False, True])
def test_a_seed_repeats_codes_and_the_length_of_features_does_not_matter(rotation):
    features = correlated(300, 16)
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        codes, again, longer = (
            ProductQuantizer(4, 16, rotation, seed=5).fit(given).encode(given)
            for given in (features, features.copy(), 4 * features)
        )
        other = ProductQuantizer(4, 16, rotation, seed=6).fit(features).encode(features)
    finally:
        faiss.omp_set_num_threads(threads)
    np.testing.assert_array_equal(codes, again)
    np.testing.assert_array_equal(codes, longer)
    assert (codes != other).any()


def test_encoding_in_chunks_is_encoding_row_by_row(monkeypatch):
    features = correlated(100, 8)
    quantizer = ProductQuantizer(2, 4).fit(features)
    codes = quantizer.encode(features)
    monkeypatch.setattr("opqn.baselines.product_quantization.ENCODE_ROWS", 7)
    np.testing.assert_array_equal(quantizer.encode(features), codes)


def test_evaluation_works_on_its_codes_and_tables():
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((8, 16))
    labels = np.arange(200) % 8
    features = (centres[labels] + 0.1 * rng.standard_normal((200, 16))).astype(np.float32)
    quantizer = ProductQuantizer(4, 16, rotation=True).fit(features[:150])
    report = evaluate(
        quantizer.encode(features[:150]), labels[:150], quantizer.lookup_tables(features[150:]), labels[150:]
    )
    assert report.mean_average_precision > 0.95


def test_as_many_features_as_words_are_enough_and_faiss_stays_silent(capfd):
    features = correlated(16, 8)
    for rotation in (False, True):
        quantizer = ProductQuantizer(2, 16, rotation).fit(features)
        # Every vector can have its own centroid, so nothing is lost.
        np.testing.assert_allclose(
            reconstructed(quantizer, quantizer.encode(features)), normalised(features), atol=1e-5
        )
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_fewer_features_than_words_are_refused():
    with pytest.raises(DataError, match="15 features cannot have 16 centroids a book"):
        ProductQuantizer(2, 16).fit(correlated(15, 8))


@pytest.mark.parametrize(
    ("num_books", "rotation", "complaint"),
    [
        (3, False, "3 books cannot share 8 dimensions equally.*rotation=True to use 6 of them"),
        (9, False, "9 books cannot share 8"),
        (9, True, "9 books cannot share 8"),
    ],
)
def test_a_length_that_books_cannot_share_is_refused(num_books, rotation, complaint):
    with pytest.raises(ConfigError, match=complaint):
        ProductQuantizer(num_books, 4, rotation).fit(correlated(50, 8))


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"num_books": 0}, "num_books is 0"),
        ({"num_words": 48}, r"power of two in 2\.\.256"),
        ({"num_words": 512}, r"power of two in 2\.\.256"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, complaint):
    with pytest.raises(ConfigError, match=complaint):
        ProductQuantizer(**{"num_books": 2, "num_words": 4} | settings)


@pytest.mark.parametrize("bad", [np.zeros(8, np.float32), np.full((9, 8), np.nan), np.full((9, 8), np.inf)])
def test_features_that_are_no_table_of_numbers_are_refused(bad):
    quantizer = ProductQuantizer(2, 4).fit(correlated(50, 8))
    for call in (quantizer.fit, quantizer.encode, quantizer.lookup_tables):
        with pytest.raises(DataError, match="features h"):
            call(bad)


def test_features_of_another_length_than_fitted_are_refused():
    for rotation in (False, True):
        quantizer = ProductQuantizer(2, 4, rotation).fit(correlated(50, 9 if rotation else 8))
        for call in (quantizer.encode, quantizer.lookup_tables):
            with pytest.raises(ConfigError, match=r"have 10 dimensions; this quantizer was fitted on [89]"):
                call(correlated(3, 10))


def test_before_fit_there_is_nothing_to_encode_with():
    for call in (ProductQuantizer(2, 4).encode, ProductQuantizer(2, 4).lookup_tables):
        with pytest.raises(OpqnError, match="call fit first"):
            call(correlated(3, 8))


def test_a_zero_vector_is_coded_and_scores_zero():
    quantizer = ProductQuantizer(2, 4).fit(correlated(50, 8))
    zero = np.zeros((1, 8), np.float32)
    assert quantizer.encode(zero).shape == (1, 2)
    assert not quantizer.lookup_tables(zero).any()


def test_the_features_given_are_left_as_they_are():
    features = correlated(50, 8)
    before = features.copy()
    quantizer = ProductQuantizer(2, 4, rotation=True).fit(features)
    quantizer.encode(features)
    quantizer.lookup_tables(features)
    np.testing.assert_array_equal(features, before)


def test_what_was_learned_is_two_arrays_that_work_without_faiss_or_pickle(tmp_path, monkeypatch):
    features = correlated(50, 8)
    quantizer = ProductQuantizer(2, 4, rotation=True).fit(features)
    np.savez(tmp_path / "pq.npz", centroids=quantizer.centroids, rotation_matrix=quantizer.rotation_matrix)
    monkeypatch.setitem(sys.modules, "faiss", None)
    restored = ProductQuantizer(2, 4, rotation=True)
    with np.load(tmp_path / "pq.npz", allow_pickle=False) as arrays:
        restored.centroids, restored.rotation_matrix = arrays["centroids"], arrays["rotation_matrix"]
    np.testing.assert_array_equal(restored.encode(features), quantizer.encode(features))
    np.testing.assert_array_equal(restored.lookup_tables(features), quantizer.lookup_tables(features))


def test_without_faiss_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(OpqnError, match=r"needs FAISS: pip install 'opqn\[bench\]'"):
        ProductQuantizer(2, 4).fit(correlated(50, 8))


def test_opq_of_fewer_vectors_than_dimensions_is_a_rotation():
    features = np.random.default_rng(0).standard_normal((40, 64)).astype(np.float32)
    quantizer = ProductQuantizer(8, 8, rotation=True).fit(features)
    rotation = quantizer.rotation_matrix
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(64), atol=1e-4)
    assert quantizer.encode(features).shape == (40, 8)
