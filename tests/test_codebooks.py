"""Codebooks are orthonormal, and the paper's are products of the DCT-II matrix."""

import math
import typing
from itertools import pairwise

import numpy as np
import pytest

from opqn import ConfigError, orthonormal_codebooks
from opqn.codebooks import CodebookKind, dct_matrix, hadamard_matrix

KINDS = typing.get_args(CodebookKind)
SHAPES = [(1, 2, 2), (3, 16, 4), (4, 128, 64), (8, 64, 64), (8, 256, 256), (64, 8, 2)]


def dct_by_loop(size):
    """The orthonormal DCT-II matrix, entry by entry."""
    matrix = np.zeros((size, size))
    for j in range(size):
        for k in range(size):
            matrix[j, k] = math.cos((j + 0.5) * k * math.pi / size) / math.sqrt(size / 2)
            if k == 0:
                matrix[j, k] /= math.sqrt(2)
    return matrix


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_codewords_of_a_book_are_orthonormal(kind, shape):
    books = orthonormal_codebooks(*shape, kind)
    assert books.shape == shape
    assert books.dtype == np.float32
    gram = books.astype(np.float64).transpose(0, 2, 1) @ books
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(shape[2]), gram.shape), atol=1e-6)


@pytest.mark.parametrize("size", [2, 3, 5, 8, 21])
def test_dct_matrix_is_the_formula_and_orthonormal(size):
    np.testing.assert_allclose(dct_matrix(size), dct_by_loop(size), atol=1e-14)
    np.testing.assert_allclose(dct_matrix(size) @ dct_matrix(size).T, np.eye(size), atol=1e-13)


@pytest.mark.parametrize(("book_dim", "num_words"), [(4, 4), (21, 16), (86, 64)])
def test_the_first_book_is_columns_of_the_dct_matrix_and_each_next_one_its_image(book_dim, num_words):
    matrix = dct_by_loop(book_dim)
    books = orthonormal_codebooks(5, book_dim, num_words)
    np.testing.assert_allclose(books[0], matrix[:, :num_words], atol=1e-7)
    for before, after in pairwise(books):
        np.testing.assert_allclose(after, matrix @ before, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_books_differ_from_one_another(kind):
    books = orthonormal_codebooks(64, 32, 16, kind)
    differences = np.abs(books[:, None] - books[None]).max(axis=(2, 3)) + np.eye(64)
    assert differences.min() > 0.1


@pytest.mark.parametrize("size", [1, 2, 8, 64])
def test_hadamard_matrix_has_entries_of_one_size_and_orthonormal_columns(size):
    matrix = hadamard_matrix(size)
    np.testing.assert_allclose(np.abs(matrix), 1 / math.sqrt(size))
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(size), atol=1e-14)


@pytest.mark.parametrize("kind", ["hadamard", "random", "learned"])
def test_a_seed_repeats_the_draw_and_another_one_changes_it(kind):
    first, again, other = (orthonormal_codebooks(2, 32, 8, kind, seed) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1


def test_dct_books_do_not_depend_on_the_seed():
    np.testing.assert_array_equal(orthonormal_codebooks(2, 32, 8, seed=1), orthonormal_codebooks(2, 32, 8, seed=2))


def test_learned_books_start_where_random_ones_stand():
    np.testing.assert_array_equal(orthonormal_codebooks(2, 8, 4, "learned"), orthonormal_codebooks(2, 8, 4, "random"))


@pytest.mark.parametrize(
    ("shape", "kind", "complaint"),
    [
        ((2, 32, 64), "dct", "raise book_dim to at least 64"),
        ((2, 600, 512), "dct", "power of two in 2..256"),
        ((2, 64, 48), "dct", "power of two"),
        ((2, 64, 1), "dct", "power of two in 2..256"),
        ((2, 64, 0), "dct", "power of two in 2..256"),
        ((2, 64, -4), "dct", "power of two in 2..256"),
        ((0, 64, 64), "dct", r"num_books is 0; it must lie in 1\.\.64"),
        ((65, 64, 64), "dct", r"num_books is 65; it must lie in 1\.\.64"),
        ((2, 86, 64), "hadamard", "power of two, not 86"),
        ((2, 64, 64), "dft", "unknown codebook kind 'dft'; choose one of dct, hadamard, random, learned"),
    ],
)
def test_codebooks_that_cannot_be_are_refused(shape, kind, complaint):
    with pytest.raises(ConfigError, match=complaint):
        orthonormal_codebooks(*shape, kind)
