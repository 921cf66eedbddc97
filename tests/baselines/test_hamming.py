"""Packed bits: their order, and that tables, scan and counting by hand agree."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opqn import CodeIndex, ConfigError
from opqn.baselines import hamming
from opqn.baselines.hamming import HashHead, byte_probs, hamming_scores, hamming_tables, num_bytes, pack_signs
from opqn.index import score

LENGTHS = [16, 24, 36, 48, 64]


def bits_of(rows, num_bits, seed):
    return np.random.default_rng(seed).random((rows, num_bits)) < 0.5


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 30),
    queries=st.integers(0, 6),
    num_bits=st.integers(1, 70),
    scan_bytes=st.integers(1, 200),
    seed=st.integers(0, 2**31),
)
def test_scan_and_tables_count_equal_bits(rows, queries, num_bits, scan_bytes, seed):
    gallery, asked = bits_of(rows, num_bits, seed), bits_of(queries, num_bits, seed + 1)
    expected = [[sum(bool(a == b) for a, b in zip(one, other, strict=True)) for other in gallery] for one in asked]
    codes, query_codes = np.packbits(gallery, axis=1), np.packbits(asked, axis=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hamming, "SCAN_BYTES", scan_bytes)
        scores = hamming_scores(query_codes, codes, num_bits)
    assert scores.shape == (queries, rows)
    assert scores.dtype == np.float32
    assert scores.tolist() == expected
    if rows and queries:
        np.testing.assert_array_equal(score(hamming_tables(query_codes, num_bits), codes), scores)


def test_the_index_finds_what_the_scan_finds():
    codes, queries = (np.packbits(bits_of(rows, 36, rows), axis=1) for rows in (500, 5))
    index = CodeIndex(num_bytes(36), 256)
    index.add(codes)
    scores, ids = index.search(hamming_tables(queries, 36), k=10)
    scanned = hamming_scores(queries, codes, 36)
    np.testing.assert_array_equal(ids, np.argsort(-scanned, axis=1, kind="stable")[:, :10])
    np.testing.assert_array_equal(scores, np.take_along_axis(scanned, ids, axis=1))


@pytest.mark.parametrize("num_bits", [1, 7, 8, 9, *LENGTHS])
def test_bits_are_packed_as_numpy_packs_them_with_the_first_bit_highest(num_bits):
    values = torch.randn(20, num_bits, generator=torch.Generator().manual_seed(num_bits))
    np.testing.assert_array_equal(pack_signs(values), np.packbits(values.numpy() > 0, axis=1))
    first = torch.full((1, num_bits), -1.0)
    first[0, 0] = 1
    assert pack_signs(first)[0, 0] == 128
    assert not pack_signs(torch.zeros(1, num_bits)).any()


@pytest.mark.parametrize("num_bits", LENGTHS)
def test_soft_assignments_to_bytes_sum_to_one_and_peak_at_the_code(num_bits):
    values = torch.randn(10, num_bits, generator=torch.Generator().manual_seed(0)).tanh()
    probs = byte_probs(values)
    assert probs.shape == (10, num_bytes(num_bits), 256)
    torch.testing.assert_close(probs.sum(dim=2), torch.ones(10, num_bytes(num_bits)))
    assert torch.equal(probs.argmax(dim=2).to(torch.uint8), pack_signs(values))
    certain = byte_probs(5 * values.sign())
    assert set(certain.unique().tolist()) == {0, 1}


def test_probability_of_a_byte_is_the_product_of_its_bits():
    values = torch.tensor([[0.5, -0.2, 0.0, 0.9, -1.0, 0.3, 0.7, -0.6, 0.4]])
    probs = byte_probs(values)
    for byte, start, count in ((0, 0, 8), (1, 8, 1)):
        for word in range(256):
            bits = [(word >> (7 - i)) & 1 for i in range(8)]
            expected = float(not any(bits[count:]))
            for bit, value in zip(bits[:count], values[0, start : start + count].tolist(), strict=True):
                expected *= (1 + value) / 2 if bit else (1 - value) / 2
            assert probs[0, byte, word].item() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("activation", ["tanh", "identity"])
def test_head_codes_and_tables_are_those_of_the_signs(activation, batch_norm):
    torch.manual_seed(0)
    head = HashHead(12, 20, activation, batch_norm).eval()
    features = torch.randn(30, 12)
    values = head(features).values.detach()
    assert (values.abs() <= 1).all() == (activation == "tanh")
    np.testing.assert_array_equal(head.encode(features), np.packbits(values.numpy() > 0, axis=1))
    tables = head.lookup_tables(features[:4])
    assert tables.dtype == torch.float32
    scores = score(tables.numpy(), head.encode(features).numpy())
    signs = values.sign()
    np.testing.assert_array_equal(scores, (20 + signs[:4] @ signs.T) / 2)


@pytest.mark.parametrize(
    ("codes", "num_bits"),
    [
        (np.zeros((3, 2), np.uint8), 17),
        (np.zeros((3, 3), np.uint8), 16),
        (np.zeros((3, 2), np.int64), 16),
        (np.zeros(2, np.uint8), 16),
        (np.zeros((3, 0), np.uint8), 0),
    ],
)
def test_codes_that_do_not_fit_are_refused(codes, num_bits):
    good = np.zeros((1, num_bytes(num_bits)), np.uint8)
    with pytest.raises(ConfigError, match=f"{num_bits} bits take"):
        hamming_tables(codes, num_bits)
    with pytest.raises(ConfigError, match=f"{num_bits} bits take"):
        hamming_scores(codes, good, num_bits)
    with pytest.raises(ConfigError, match=f"{num_bits} bits take"):
        hamming_scores(good, codes, num_bits)
