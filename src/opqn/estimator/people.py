"""A model of how face vectors differ between people and between images of one, and people made up from it.

Two covariances are pooled from labelled vectors: *within* people and *between* them (a Gaussian two-covariance model,
the core of probabilistic linear discriminant analysis; Prince and Elder 2007). In coordinates where the former is the
identity and the latter is diagonal, a vector of a person is ``centre + noise``, centre ~ N(0, diag(between)) and
noise ~ N(0, I). So the centre of a person with n images whose mean is ``y`` is itself Gaussian, axis by axis::

    centre ~ N(between * n / (between * n + 1) * y, between / (between * n + 1))

Drawing centres and noise from that gives as many people as one likes, near to the real ones and in between.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
VARIANCE_FLOOR: Final = 1e-12  # equal vectors have no variance, and must not make NaN
# Without labels: the share of the total variance that is taken to lie within people, alike in every direction.
WITHIN_SHARE: Final = 0.1
# No direction may have less within-person variance than this share of the mean total variance: exact copies have none.
WITHIN_FLOOR: Final = 1e-3
MAKE_ROWS: Final = 8192


class PeopleModel(NamedTuple):
    """Where people are, in whitened coordinates; axes by variance between people, largest first."""

    mean: Floats
    """(D,) of the vectors."""
    whitening: Floats
    """(D, D) from a vector less the mean to coordinates in which the variance within people is 1 on every axis."""
    between: Floats
    """(D,) variance between people on each axis, descending."""
    people: Floats
    """(people, D) mean of each person's vectors, in those coordinates."""
    sizes: NDArray[np.int64]
    """(people,) vectors of each."""

    @classmethod
    def fit(cls, vectors: Floats, labels: NDArray[np.intp] | None, doubt: float = 0.0) -> PeopleModel:
        """Pool the covariances of (N, D) vectors.

        A person with n vectors weighs sqrt(n): a famous one counts for more, and does not drown the others. The
        covariance within people is shrunk towards a multiple of the identity, the more the fewer pairs there are.

        Args:
            vectors: (N, D).
            labels: (N,) numbers from 0 on, None if nobody knows.
            doubt: of how many people the covariance within them counts for as much as the multiple of the identity. 0
                believes it: then only the number of pairs counts. What a network was trained on tells little about how
                images of others differ, and the less the fewer people it was.
        """
        num_vectors, dim = vectors.shape
        if labels is None:
            labels = np.arange(num_vectors)
        sizes = np.bincount(labels)  # (people,)
        weights = sizes[labels] ** -0.5  # (N,)
        mean = np.average(vectors, axis=0, weights=weights)
        centred = vectors - mean
        total = (centred * weights[:, None]).T @ centred / weights.sum()  # (D, D)
        people = np.zeros((len(sizes), dim))
        np.add.at(people, labels, centred)
        people /= sizes[:, None]
        scale = max(float(np.trace(total)) / dim, VARIANCE_FLOOR)
        within = WITHIN_SHARE * scale * np.eye(dim)
        pairs = num_vectors - len(sizes)
        if pairs:
            # n / (n - 1) undoes that a mean over n vectors lies nearer to them than the person's true centre.
            freedom = weights * np.where(sizes > 1, sizes / np.maximum(sizes - 1, 1), 0.0)[labels]
            residuals = centred - people[labels]
            pooled = (residuals * freedom[:, None]).T @ residuals / weights[sizes[labels] > 1].sum()
            shrinkage = max(dim / (dim + pairs), doubt / (doubt + len(sizes)))
            within = (1 - shrinkage) * pooled + shrinkage * np.trace(pooled) / dim * np.eye(dim)
        variances, axes = np.linalg.eigh(within)
        scaled = axes / np.sqrt(np.maximum(variances, WITHIN_FLOOR * scale))  # (D, D)
        variances, rotation = np.linalg.eigh(scaled.T @ total @ scaled)
        whitening = (scaled @ rotation[:, ::-1]).T
        return cls(mean, whitening, np.maximum(variances[::-1] - 1, 0.0), people @ whitening.T, sizes)

    def make_up(self, count: int, unit_length: bool, rng: np.random.Generator) -> NDArray[np.float32]:
        """Draw one image each of ``count`` made-up people: (count, D) float32, in whitened coordinates.

        Args:
            count: how many.
            unit_length: made-up vectors are brought to length 1, as the real ones were.
            rng: what draws.
        """
        chances = np.sqrt(self.sizes)
        origins = rng.choice(len(self.sizes), size=count, p=chances / chances.sum())
        back = np.linalg.inv(self.whitening)
        made = np.empty((count, len(self.mean)), dtype=np.float32)
        for start in range(0, count, MAKE_ROWS):
            rows = origins[start : start + MAKE_ROWS]
            known = self.between * self.sizes[rows, None]  # (rows, D)
            spread = np.sqrt(self.between / (known + 1) + 1)  # of centre and noise together
            drawn = self.people[rows] * (known / (known + 1)) + spread * rng.standard_normal(known.shape)
            if unit_length:
                drawn = (to_unit_length(drawn @ back.T + self.mean) - self.mean) @ self.whitening.T
            made[start : start + MAKE_ROWS] = drawn
        return made


def to_unit_length(vectors: Floats) -> Floats:
    """Divide (N, D) vectors by their lengths; a zero vector stays zero, and no square overflows."""
    largest = np.abs(vectors).max(axis=1, keepdims=True, initial=0.0)  # (N, 1)
    scaled = vectors / np.where(largest > 0, largest, 1.0)
    lengths = np.linalg.norm(scaled, axis=1, keepdims=True)  # (N, 1)
    units: Floats = scaled / np.where(lengths > 0, lengths, 1.0)
    return units
