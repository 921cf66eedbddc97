"""Product quantization as FAISS trains it: plain (Jegou, Douze, Schmid 2011) and rotated first (OPQ; Ge et al. 2013).

The unsupervised baseline: a feature vector is cut into M sub-vectors, each becomes the number of its nearest centroid.
Everything is L2-normalised first, so that scores approximate cosines. FAISS is needed to fit; encoding and lookup
tables are a few lines of NumPy on what it learned, with the two calls that every method here has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from opqn.errors import ConfigError, DataError, OpqnError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_WORDS: Final = 256  # a code is stored as uint8
NORM_FLOOR: Final = 1e-12  # a zero vector stays zero
ENCODE_ROWS: Final = 16_384  # 16 MiB of scores at K = 256


class ProductQuantizer:
    """FAISS's PQ or OPQ behind ``fit``, ``encode`` and ``lookup_tables``.

    Args:
        num_books: M.
        num_words: K, a power of two in 2..256. A code has ``M * log2(K)`` bits.
        rotation: learn a rotation first (OPQ). It also shortens vectors whose length M does not divide.
        seed: of k-means, at least 0. OPQ's rotation starts from a seed fixed in FAISS. Codes repeat for the same seed
            and the same number of threads.

    Attributes:
        centroids: (M, K, d) float32 after ``fit``; None before.
        rotation_matrix: (M*d, D) float32 with orthonormal rows after ``fit`` with ``rotation``; None otherwise.

    Raises:
        ConfigError: a setting out of range.
    """

    def __init__(self, num_books: int, num_words: int, rotation: bool = False, seed: int = 0) -> None:
        if num_books < 1:
            raise ConfigError(f"num_books is {num_books}; it must be at least 1")
        if not 2 <= num_words <= MAX_WORDS or num_words & (num_words - 1):
            raise ConfigError(f"num_words is {num_words}; it must be a power of two in 2..{MAX_WORDS}")
        if seed < 0:
            raise ConfigError(f"seed is {seed}; it must not be negative")
        self.num_books = num_books
        self.num_words = num_words
        self.rotation = rotation
        self.seed = seed
        self.centroids: NDArray[np.float32] | None = None
        self.rotation_matrix: NDArray[np.float32] | None = None

    def fit(self, features: NDArray[np.float32]) -> ProductQuantizer:
        """Learn rotation and centroids from (N, D) features; return self.

        FAISS draws at most 256 * K of the features for k-means and 65,536 for the rotation.

        Raises:
            OpqnError: faiss is not installed.
            ConfigError: M does not divide D and there is no rotation to shorten the vectors, or M exceeds D.
            DataError: fewer features than words, or features that are not (N, D) finite numbers.
        """
        faiss = import_faiss()
        units = normalise_features(features)  # (N, D)
        num_features, feature_dim = units.shape
        if num_features < self.num_words:
            raise DataError(
                f"{num_features} features cannot have {self.num_words} centroids a book; "
                f"give at least {self.num_words}, or lower num_words"
            )
        coded_dim = feature_dim - feature_dim % self.num_books  # M*d
        if coded_dim == 0 or (coded_dim != feature_dim and not self.rotation):
            raise ConfigError(
                f"{self.num_books} books cannot share {feature_dim} dimensions equally; choose num_books so that it "
                f"divides {feature_dim}, or, where it is smaller, rotation=True to use {coded_dim} of them"
            )
        rotation_matrix = None
        if self.rotation:
            opq = faiss.OPQMatrix(feature_dim, self.num_books, coded_dim)
            inner = self._new_faiss_quantizer(faiss, coded_dim)
            opq.pq = inner
            # Given fewer vectors than dimensions, FAISS writes past its memory. Repeated alike, they mean the same.
            opq.train(np.tile(units, (-(-feature_dim // num_features), 1)))
            rotation_matrix = faiss.vector_to_array(opq.A).reshape(coded_dim, feature_dim)
        quantizer = self._new_faiss_quantizer(faiss, coded_dim)
        quantizer.train(_rotate(units, rotation_matrix))
        shape = (self.num_books, self.num_words, coded_dim // self.num_books)
        self.centroids = faiss.vector_to_array(quantizer.centroids).reshape(shape)
        self.rotation_matrix = rotation_matrix
        return self

    def encode(self, features: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return the (N, M) uint8 codes of (N, D) features: the nearest centroid of each sub-vector.

        Raises:
            OpqnError: not fitted.
            ConfigError: features of another length than those fitted.
            DataError: features that are not (N, D) finite numbers.
        """
        centroids, parts = self._parts(features)
        half_squares = 0.5 * (centroids**2).sum(axis=2)  # (M, K)
        codes = np.empty(parts.shape[:2], dtype=np.uint8)  # (N, M)
        for m in range(self.num_books):
            for start in range(0, len(parts), ENCODE_ROWS):
                rows = slice(start, start + ENCODE_ROWS)
                # argmin |x - c|^2 = argmax <x, c> - |c|^2 / 2
                codes[rows, m] = (parts[rows, m] @ centroids[m].T - half_squares[m]).argmax(axis=1)
        return codes

    def lookup_tables(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the (Q, M, K) float32 lookup tables of (Q, D) query features.

        An entry is the inner product of the query's sub-vector with a centroid, so an item's score is that of the
        normalised query with the item's reconstruction.

        Raises:
            OpqnError: not fitted.
            ConfigError: features of another length than those fitted.
            DataError: features that are not (Q, D) finite numbers.
        """
        centroids, parts = self._parts(features)
        tables = np.matmul(parts.transpose(1, 0, 2), centroids.transpose(0, 2, 1))  # (M, Q, K)
        return np.ascontiguousarray(tables.transpose(1, 0, 2))

    def _parts(self, features: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the centroids and the normalised, rotated features cut into (N, M, d)."""
        if self.centroids is None:
            raise OpqnError("this product quantizer knows no centroids yet; call fit first")
        units = normalise_features(features)
        num_books, _, book_dim = self.centroids.shape
        expected = num_books * book_dim if self.rotation_matrix is None else self.rotation_matrix.shape[1]
        if units.shape[1] != expected:
            raise ConfigError(f"features have {units.shape[1]} dimensions; this quantizer was fitted on {expected}")
        return self.centroids, _rotate(units, self.rotation_matrix).reshape(len(units), num_books, book_dim)

    def _new_faiss_quantizer(self, faiss: Any, coded_dim: int) -> Any:
        quantizer = faiss.ProductQuantizer(coded_dim, self.num_books, self.num_words.bit_length() - 1)
        quantizer.cp.seed = self.seed
        # FAISS warns below 39 vectors a centroid. A baseline has to work with what there is, as the method itself does.
        quantizer.cp.min_points_per_centroid = 1
        return quantizer


def import_faiss() -> Any:
    """Return the module; OpqnError says how to get it."""
    try:
        import faiss  # noqa: PLC0415 (optional, and slow to load)
    except ImportError as error:
        raise OpqnError("this needs FAISS: pip install 'opqn[bench]'") from error
    return faiss


def _rotate(units: NDArray[np.float32], rotation_matrix: NDArray[np.float32] | None) -> NDArray[np.float32]:
    return units if rotation_matrix is None else units @ rotation_matrix.T


def normalise_features(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a float32 copy of (N, D) features, every row of length one but for zero rows.

    Raises:
        DataError: features that are not (N, D) finite numbers.
    """
    units = np.array(features, dtype=np.float32, order="C")
    if units.ndim != 2:
        raise DataError(f"features have shape {units.shape}; expected (N, D)")
    if not np.isfinite(units).all():
        raise DataError("features hold NaN or infinity; leave such rows out")
    units /= np.maximum(np.linalg.norm(units, axis=1, keepdims=True), NORM_FLOOR)
    return units
