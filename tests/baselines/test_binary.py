"""ITQ and LSH: what they promise of directions and codes, against plain linear algebra."""

import numpy as np
import pytest

from opqn import ConfigError, DataError, OpqnError
from opqn.baselines.binary import BinaryQuantizer
from opqn.baselines.hamming import hamming_scores
from opqn.evaluation import evaluate
from opqn.index import score

pytest.importorskip("faiss")


def clusters(rows=240, dim=40, people=8, noise=0.35, seed=0):
    """Vectors around a direction a person, far from the origin as ReLU features are, and who each is."""
    rng = np.random.default_rng(seed)
    labels = np.arange(rows) % people
    centres = rng.normal(size=(people, dim))
    return (centres[labels] + noise * rng.normal(size=(rows, dim)) + 1).astype(np.float32), labels


@pytest.mark.parametrize("num_bits", [16, 24, 36])
@pytest.mark.parametrize("kind", ["itq", "lsh"])
def test_codes_are_signs_on_orthonormal_directions(kind, num_bits):
    features, _ = clusters()
    quantizer = BinaryQuantizer(num_bits, kind).fit(features)
    np.testing.assert_allclose(quantizer.directions @ quantizer.directions.T, np.eye(num_bits), atol=1e-5)
    units = features / np.linalg.norm(features, axis=1, keepdims=True)
    bits = units @ quantizer.directions.T + quantizer.offsets > 0
    codes, tables = quantizer.encode(features), quantizer.lookup_tables(features[:5])
    np.testing.assert_array_equal(codes, np.packbits(bits, axis=1))
    assert (codes.shape[1], 256) == (quantizer.num_books, quantizer.num_words) == tables.shape[1:]
    np.testing.assert_array_equal(score(tables, codes), hamming_scores(codes[:5], codes, num_bits))
    np.testing.assert_array_equal(BinaryQuantizer(num_bits, kind).fit(features).encode(features), codes)


def test_itq_spans_the_principal_directions_and_is_centred():
    features, _ = clusters()
    quantizer = BinaryQuantizer(16, "itq").fit(features)
    units = features / np.linalg.norm(features, axis=1, keepdims=True)
    values, vectors = np.linalg.eigh(np.cov(units.T.astype(np.float64)))
    principal = vectors[:, np.argsort(-values)[:16]]  # (D, 16)
    np.testing.assert_allclose(quantizer.directions @ principal @ principal.T, quantizer.directions, atol=1e-4)
    np.testing.assert_allclose(quantizer.directions @ units.mean(axis=0) + quantizer.offsets, 0, atol=1e-5)


def test_itqs_rotation_is_nearer_to_the_corners_than_principal_directions_are():
    features, _ = clusters()
    quantizer = BinaryQuantizer(16, "itq").fit(features)
    units = features / np.linalg.norm(features, axis=1, keepdims=True)
    projected = units @ quantizer.directions.T + quantizer.offsets
    principal = np.linalg.svd(units - units.mean(axis=0), full_matrices=False)[2][:16]
    # Rotations keep lengths, so the sum of absolute values alone tells how near the corners are.
    assert np.abs(projected).sum() > 1.05 * np.abs((units - units.mean(axis=0)) @ principal.T).sum()


def test_people_are_found_and_itq_needs_fewer_bits():
    features, labels = clusters()
    found = {}
    for kind in ("itq", "lsh"):
        quantizer = BinaryQuantizer(16, kind).fit(features)
        report = evaluate(
            quantizer.encode(features[40:]), labels[40:], quantizer.lookup_tables(features[:40]), labels[:40]
        )
        found[kind] = report.mean_average_precision
    assert found["itq"] > found["lsh"] > 0.3  # 0.13 by chance


def test_lsh_draws_by_its_seed():
    features, _ = clusters()
    codes = [BinaryQuantizer(24, "lsh", seed).fit(features).encode(features) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(codes[0], codes[1])
    assert (codes[0] != codes[2]).any()


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"num_bits": 0}, "num_bits is 0"),
        ({"kind": "pca"}, "unknown kind 'pca'; choose one of itq, lsh"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, complaint):
    with pytest.raises(ConfigError, match=complaint):
        BinaryQuantizer(**{"num_bits": 16, "kind": "itq"} | settings)


def test_features_that_do_not_fit_are_refused():
    features, _ = clusters()
    with pytest.raises(ConfigError, match="64 bits need as many dimensions; the features have 40"):
        BinaryQuantizer(64, "lsh").fit(features)
    with pytest.raises(DataError, match="needs as many features; there are 10"):
        BinaryQuantizer(16, "itq").fit(features[:10])
    with pytest.raises(DataError, match="NaN"):
        BinaryQuantizer(16, "itq").fit(np.full((20, 40), np.nan, np.float32))
    with pytest.raises(OpqnError, match="call fit first"):
        BinaryQuantizer(16, "itq").encode(features)
    with pytest.raises(ConfigError, match="30 dimensions; this quantizer was fitted on 40"):
        BinaryQuantizer(16, "lsh").fit(features).encode(features[:, :30])
