"""The head of a trained network found anew, without gradient descent; not of the paper.

The network's features of the training images, at unit length, are described by two covariances, within people and
between them (``opqn.estimator.people``). In coordinates where the first is the identity and the second is
``diag(between)``, each book gets words by k-means over made-up people, and two images of features x and y are of the
same person rather than of two by a log likelihood ratio of::

    sum over axes of  p x y - q (x^2 + y^2) / 2,    p = between / (1 + 2 between),    q = p between / (1 + between)

which is what a query's table adds up, with the centroid of an item's word in place of y (probabilistic linear
discriminant analysis; Prince and Elder 2007). What depends on x alone is left out, as it moves no rank.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opqn.estimator.people import PeopleModel, to_unit_length
from opqn.estimator.words import find_words, share_axes

MAX_DIM: Final = 8192  # of features: their covariances have this many rows
MADE_UP: Final = 65_536  # people made up for k-means
# Words are found with each axis scaled by (between / (between + 1)) ** SHRINKAGE: axes that tell nobody apart, of which
# a network has many, count less.
SHRINKAGE: Final = 0.5
SCALE_FLOOR: Final = 1e-3  # axes that are scaled to less would only make k-means slower
# How much a book sees of the axes of the other books. With nothing, the books differ as much as they can, which suits
# strangers; with all, every book tells the people trained on apart by itself, and strangers suffer. This is the most
# that cost people held back from training nothing (docs/comparison.md).
OVERLAP: Final = 0.1
# How many people it takes until how their images differ is believed; see PeopleModel.fit.
DOUBT: Final = 100.0


class HeadWeights(NamedTuple):
    """What makes logits of features u at unit length: ``u @ weights[m, :-1] + weights[m, -1]`` for each book."""

    codes: NDArray[np.float32]
    """(M, D + 1, K): the code is the argmax of these."""
    tables: NDArray[np.float32]
    """(M, D + 1, K): a query's table is the log softmax of these."""


def fit_head(features: ArrayLike, labels: NDArray[np.int64], num_books: int, num_words: int, seed: int) -> HeadWeights:
    """Find a head for the features of a network.

    Args:
        features: (N, D) finite features of the training images, D at most :data:`MAX_DIM`; brought to unit length here.
        labels: (N,) who each shows.
        num_books: M.
        num_words: K.
        seed: of the made-up people and k-means.

    Returns:
        Weights for codes and for tables.
    """
    rng = np.random.default_rng(seed)
    units = to_unit_length(np.asarray(features, dtype=np.float64))
    people = PeopleModel.fit(units, np.unique(labels, return_inverse=True)[1], DOUBT)
    share = people.between / (people.between + 1)  # (D,) of an axis's variance, what lies between people
    scales = share**SHRINKAGE
    count = max(int(np.count_nonzero(scales > SCALE_FLOOR)), min(num_books, len(scales)))
    scales, share, between = scales[:count], share[:count], people.between[:count]
    by_product = between / (2 * between + 1)  # (axes,) p
    by_square = by_product * share  # (axes,) q
    made_up = people.make_up(MADE_UP, True, rng)[:, :count] * scales.astype(np.float32)  # (made up, axes)
    codes, tables = np.empty((2, num_books, units.shape[1] + 1, num_words), dtype=np.float32)
    for book, own in enumerate(share_axes((between + 1) * scales**2, num_books)):
        seen = np.full(count, OVERLAP)  # (axes,) how much of each axis this book sees
        seen[own[own >= 0]] = 1.0
        words = find_words(made_up * seen.astype(np.float32), num_words, rng).astype(np.float64)  # (K, axes)
        # The nearest word, |z - v|^2 least, is the one whose <z, v> - |v|^2 / 2 is largest.
        codes[book] = _affine(people, words * (seen * scales), -0.5 * (words**2).sum(axis=1))
        centroids = words / np.maximum(seen * scales, SCALE_FLOOR)  # (K, axes), axes unscaled
        weighted = centroids * seen**2
        tables[book] = _affine(people, weighted * by_product, -0.5 * (weighted * centroids * by_square).sum(axis=1))
    return HeadWeights(codes, tables)


def _affine(people: PeopleModel, words: NDArray[np.float64], bias: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (D + 1, K) weights that give ``<x, words> + bias`` of features u, x being u less the mean, whitened."""
    weights = people.whitening[: words.shape[1]].T @ words.T  # (D, K)
    return np.vstack([weights, bias - people.mean @ weights])
