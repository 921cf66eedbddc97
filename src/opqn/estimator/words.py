"""The words of each book: which axes a book sees, and k-means on them."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

ITERATIONS: Final = 20  # of k-means; further ones change the mAP of unseen people by less than their seeds do
CHUNK_ROWS: Final = 8192


def share_axes(variances: NDArray[np.float64], num_books: int) -> NDArray[np.intp]:
    """Give each book as many axes and, as far as may be, the same product of variances.

    A book then has as much to tell as any other, which minimises the quantization error of a Gaussian (the parametric
    solution of OPQ; Ge et al. 2013, section 3.2).

    Args:
        variances: (D,) of the axes, descending.
        num_books: M.

    Returns:
        (M, d) axes of each book, d = ceil(D / M); -1 where there is none left.
    """
    book_dim = -(-len(variances) // num_books)
    axes = np.full((num_books, book_dim), -1)
    filled = np.zeros(num_books, dtype=np.intp)
    information = np.zeros(num_books)
    logs = np.log(np.maximum(variances, 1e-12))
    for axis, log in enumerate(logs - logs.min() + 1e-3):
        book = int(np.where(filled < book_dim, information, np.inf).argmin())
        axes[book, filled[book]] = axis
        filled[book] += 1
        information[book] += log
    return axes


def find_words(points: NDArray[np.float32], num_words: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Find K centroids of (N, d) points by Lloyd's k-means; N is at least K. Returns (K, d) float32."""
    words = points[rng.choice(len(points), num_words, replace=False)]  # (K, d)
    for _ in range(ITERATIONS):
        nearest = np.concatenate(
            [_nearest(points[start : start + CHUNK_ROWS], words) for start in range(0, len(points), CHUNK_ROWS)]
        )
        sizes = np.bincount(nearest, minlength=num_words)  # (K,)
        sums = np.stack([np.bincount(nearest, column, num_words) for column in points.T], axis=1)  # (K, d)
        # A word that nothing is nearest to starts again at some point.
        strays = points[rng.integers(len(points), size=num_words)]
        words = np.where(sizes[:, None] > 0, sums / np.maximum(sizes, 1)[:, None], strays).astype(np.float32)
    return words


def _nearest(points: NDArray[np.float32], words: NDArray[np.float32]) -> NDArray[np.intp]:
    """Return the number of the nearest word of each point: argmin |x - c|^2 = argmax <x, c> - |c|^2 / 2."""
    nearest: NDArray[np.intp] = (points @ words.T - 0.5 * (words**2).sum(axis=1)).argmax(axis=1)
    return nearest
