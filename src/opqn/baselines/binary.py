"""Training-free binary codes of ready-made features: ITQ and LSH, with the two calls that every method here has.

ITQ: Gong, Lazebnik, *Iterative Quantization: A Procrustean Approach to Learning Binary Codes*, CVPR 2011: centre, PCA
to as many dimensions as bits, then the rotation that puts the data nearest to corners of the cube. LSH: Charikar,
*Similarity Estimation Techniques from Rounding Algorithms*, STOC 2002: signs on random directions, here orthonormal
ones. FAISS is needed to fit; encoding is one product on what it found. Features are L2-normalised first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, cast, get_args

import numpy as np

from opqn.baselines.hamming import NUM_WORDS, hamming_tables, num_bytes
from opqn.baselines.product_quantization import import_faiss, normalise_features
from opqn.errors import ConfigError, DataError, OpqnError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Kind = Literal["itq", "lsh"]
ITQ_ROUNDS: Final = 50  # the paper's


class BinaryQuantizer:
    """FAISS's ITQ or random rotation behind ``fit``, ``encode`` and ``lookup_tables``.

    Args:
        num_bits: bits of a code, stored packed in ceil(num_bits / 8) bytes.
        kind: ``itq`` or ``lsh``.
        seed: of the rotation that ITQ starts from, or of LSH's directions; at least 0.

    Attributes:
        directions: (num_bits, D) float32 after ``fit``; None before.
        offsets: (num_bits,) float32 after ``fit``; None before. A bit is 1 where ``<direction, x> + offset > 0``.

    Raises:
        ConfigError: a setting out of range.
    """

    num_words = NUM_WORDS

    def __init__(self, num_bits: int, kind: Kind, seed: int = 0) -> None:
        if num_bits < 1:
            raise ConfigError(f"num_bits is {num_bits}; it must be at least 1")
        if kind not in get_args(Kind):
            raise ConfigError(f"unknown kind {kind!r}; choose one of {', '.join(get_args(Kind))}")
        if seed < 0:
            raise ConfigError(f"seed is {seed}; it must not be negative")
        self.num_bits = num_bits
        self.num_books = num_bytes(num_bits)
        self.kind = kind
        self.seed = seed
        self.directions: NDArray[np.float32] | None = None
        self.offsets: NDArray[np.float32] | None = None

    def fit(self, features: NDArray[np.float32]) -> BinaryQuantizer:
        """Learn from (N, D) features (LSH: look at their length only); return self.

        Raises:
            OpqnError: faiss is not installed.
            ConfigError: more bits than dimensions.
            DataError: ITQ with fewer features than bits, or features that are not (N, D) finite numbers.
        """
        faiss = import_faiss()
        units = normalise_features(features)  # (N, D)
        num_features, feature_dim = units.shape
        if self.num_bits > feature_dim:
            raise ConfigError(f"{self.num_bits} bits need as many dimensions; the features have {feature_dim}")
        if self.kind == "lsh":
            rotation = faiss.RandomRotationMatrix(feature_dim, self.num_bits)
            rotation.init(self.seed)
            self.directions = self._matrix(faiss, rotation, feature_dim)
            self.offsets = np.zeros(self.num_bits, dtype=np.float32)
            return self
        if num_features < self.num_bits:
            raise DataError(f"ITQ of {self.num_bits} bits needs as many features; there are {num_features}")
        mean = units.mean(axis=0)
        # Principal directions are the right singular vectors; NumPy's SVD takes any N and D, FAISS's PCA does not.
        principal = np.linalg.svd(units - mean, full_matrices=False)[2][: self.num_bits]  # (bits, D)
        itq = faiss.ITQMatrix(self.num_bits)
        itq.seed, itq.max_iter = self.seed, ITQ_ROUNDS
        itq.train(np.ascontiguousarray((units - mean) @ principal.T))
        self.directions = self._matrix(faiss, itq, self.num_bits) @ principal
        self.offsets = -self.directions @ mean
        return self

    def encode(self, features: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return the (N, B) uint8 packed codes of (N, D) features.

        Raises:
            OpqnError: not fitted.
            ConfigError: features of another length than those fitted.
            DataError: features that are not (N, D) finite numbers.
        """
        if self.directions is None or self.offsets is None:
            raise OpqnError("this binary quantizer knows no directions yet; call fit first")
        units = normalise_features(features)
        if units.shape[1] != self.directions.shape[1]:
            raise ConfigError(
                f"features have {units.shape[1]} dimensions; this quantizer was fitted on {self.directions.shape[1]}"
            )
        return np.packbits(units @ self.directions.T + self.offsets > 0, axis=1)

    def lookup_tables(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the (Q, B, 256) float32 tables of equal bits of (Q, D) query features; raises as ``encode``."""
        return hamming_tables(self.encode(features), self.num_bits)

    def _matrix(self, faiss: Any, transform: Any, columns: int) -> NDArray[np.float32]:
        """Copy the (bits, columns) matrix of a FAISS transform."""
        matrix = faiss.vector_to_array(transform.A).reshape(self.num_bits, columns)
        return cast("NDArray[np.float32]", matrix)
