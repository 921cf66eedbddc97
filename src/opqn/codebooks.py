"""Orthonormal codebooks: fixed codewords that no training has to find.

Zhang, Zhe, Yan 2023, section 3.2. Codebook C_1 holds the first K columns of the d x d orthonormal DCT-II matrix A;
every further book is C_m = A C_{m-1}, so the books differ and each stays orthonormal.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from opqn.errors import ConfigError

CodebookKind = Literal["dct", "hadamard", "random", "learned"]
MAX_BOOKS: Final = 64
MAX_WORDS: Final = 256  # a code is stored as uint8


def check_code_shape(num_books: int, book_dim: int, num_words: int) -> None:
    """Refuse shapes that the method cannot have.

    Raises:
        ConfigError: M outside 1..64, K not a power of two in 2..256, or K > d.
    """
    if not 1 <= num_books <= MAX_BOOKS:
        raise ConfigError(f"num_books is {num_books}; it must lie in 1..{MAX_BOOKS}")
    if not 2 <= num_words <= MAX_WORDS or num_words & (num_words - 1):
        raise ConfigError(f"num_words is {num_words}; it must be a power of two in 2..{MAX_WORDS} (a code is one byte)")
    if num_words > book_dim:
        raise ConfigError(
            f"num_words ({num_words}) exceeds book_dim ({book_dim}): {num_words} codewords cannot be orthonormal in "
            f"{book_dim} dimensions; raise book_dim to at least {num_words}, or lower num_words"
        )


def orthonormal_codebooks(
    num_books: int, book_dim: int, num_words: int, kind: CodebookKind = "dct", seed: int = 0
) -> NDArray[np.float32]:
    """Make M codebooks of K codewords, each book with orthonormal columns.

    Args:
        num_books: M, 1..64.
        book_dim: d, at least ``num_words``.
        num_words: K, a power of two in 2..256.
        kind: ``dct`` is the paper's. ``hadamard`` (Sylvester's construction, ``book_dim`` a power of two) and
            ``random`` (QR of a seeded Gaussian matrix) are for ablations. ``learned`` starts as ``random`` does and is
            trained without a constraint by the quantizer (OPQN-l2q).
        seed: for ``random``, ``learned`` and the row signs of ``hadamard``.

    Returns:
        (M, d, K) float32; codeword k of book m is ``[m, :, k]``.

    Raises:
        ConfigError: a shape or kind that cannot be.
    """
    check_code_shape(num_books, book_dim, num_words)
    if kind == "dct":
        base = dct_matrix(book_dim)
        books = [base[:, :num_words]]
        while len(books) < num_books:
            books.append(base @ books[-1])
        return np.stack(books).astype(np.float32)
    rng = np.random.default_rng(seed)
    if kind == "hadamard":
        base = hadamard_matrix(book_dim)
        # Row signs turn one Hadamard matrix into a different one for each book and keep its columns orthogonal.
        signs = rng.choice([-1.0, 1.0], size=(num_books, book_dim, 1))
        return (signs * base[None, :, :num_words]).astype(np.float32)
    if kind in ("random", "learned"):
        q, r = np.linalg.qr(rng.standard_normal((num_books, book_dim, num_words)))
        # The sign of R's diagonal makes the draw uniform over orthonormal frames (Mezzadri 2007).
        books_drawn: NDArray[np.float64] = q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None, :]
        return books_drawn.astype(np.float32)
    raise ConfigError(f"unknown codebook kind {kind!r}; choose one of {', '.join(get_args(CodebookKind))}")


def dct_matrix(size: int) -> NDArray[np.float64]:
    """Return the (size, size) orthonormal DCT-II matrix, ``A[j, k] = cos((j + 0.5) k pi / size)``, scaled."""
    j, k = np.ogrid[:size, :size]
    matrix: NDArray[np.float64] = np.cos((j + 0.5) * k * np.pi / size) / np.sqrt(size / 2)
    matrix[:, 0] /= np.sqrt(2)
    return matrix


def hadamard_matrix(size: int) -> NDArray[np.float64]:
    """Return Sylvester's (size, size) Hadamard matrix divided by sqrt(size).

    Raises:
        ConfigError: size is not a power of two.
    """
    if size & (size - 1):
        raise ConfigError(f"hadamard codebooks need a book_dim that is a power of two, not {size}")
    matrix: NDArray[np.float64] = np.full((1, 1), 1 / np.sqrt(size))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix
