"""The estimator: vectors of any face network in, codes and lookup tables out."""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Self, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_consistent_length, check_is_fitted, column_or_1d, validate_data

from opqn._version import __version__
from opqn.codebooks import check_code_shape
from opqn.errors import ConfigError, CorruptFileError
from opqn.estimator import files
from opqn.estimator.people import PeopleModel, to_unit_length
from opqn.estimator.words import find_words, share_axes

# The paper's code shapes: bits -> (M, K).
SHAPES: Final = {16: (2, 256), 24: (4, 64), 36: (6, 64), 48: (8, 64), 64: (8, 256)}
MADE_UP: Final = 65_536  # people made up for k-means; twice as many gain less than their seeds differ
MAX_NUMBER: Final = 1e15  # in a vector that is not normalised: squares and their sums have to fit in float32
CHUNK_NUMBERS: Final = 1 << 18  # numbers of a chunk's logits: 2 MiB of float64, which caches hold


class OPQNQuantizer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Make M-number codes of face vectors, and lookup tables of queries, without training a network.

    A vector x is brought to unit length and whitened, so that images of one person differ alike in every direction; its
    axes are shared among M books, which makes sub-vectors x_m. As in the network's head, a projection P_m gives each
    book K logits, their softmax p_m is the soft assignment to the fixed orthonormal codewords, and the code is its
    argmax. P_m comes from k-means over tens of thousands of made-up people (see ``opqn.estimator.people``): with
    word k's centroid c, its logit is ``<x_m, c> - |c|^2 / 2``, so that the argmax is the nearest centroid.

    A query's table is ``log softmax(T * logits)``: an item's score is the logarithm of the probability that the query's
    soft assignment draws the item's code. It ranks as the logits themselves do, whatever T, and is comparable over
    queries, so one threshold serves them all; the paper's table is the softmax without the logarithm.

    Args:
        num_bits: of a code: 16, 24, 36, 48 or 64, which have the paper's shapes, or another multiple of 8, as books of
            256 words.
        shape: (M, K) instead of ``num_bits``, K a power of two in 2..256.
        normalize: bring vectors to unit length first, as suits networks whose vectors are compared by angle.
        query_temperature: T. Ranks do not depend on it; what strangers score, compared over queries, does.
        random_state: of the made-up people and k-means, as scikit-learn understands it.

    Attributes:
        n_features_in_: D, the length of a vector.
        mean_: (D,) float32, subtracted.
        axes_: (M, d, D) float32, what turns the rest into sub-vectors of d = ceil(D / M) numbers.
        projection_: (M, d + 1, K) float32 P; its last row belongs to a constant 1 behind each sub-vector.
        training_facts_: what it was fitted on.

    Example:
        >>> quantizer = OPQNQuantizer(num_bits=64).fit(vectors, people)
        >>> codes = quantizer.encode(vectors)  # (N, 8) uint8
        >>> tables = quantizer.lookup_tables(queries)  # (Q, 8, 256) float32
    """

    mean_: NDArray[np.float32]
    axes_: NDArray[np.float32]
    projection_: NDArray[np.float32]
    training_facts_: dict[str, Any]
    n_features_in_: int

    def __init__(
        self,
        num_bits: int = 48,
        *,
        shape: tuple[int, int] | None = None,
        normalize: bool = True,
        query_temperature: float = 0.2,
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        self.num_bits = num_bits
        self.shape = shape
        self.normalize = normalize
        self.query_temperature = query_temperature
        self.random_state = random_state

    @property
    def num_books(self) -> int:
        """M, numbers in a code."""
        return self._code_shape()[0]

    @property
    def num_words(self) -> int:
        """K, values each number can take."""
        return self._code_shape()[1]

    @property
    def fingerprint(self) -> str:
        """sha256, in hex, of the settings and every weight. Equal quantizers, and only they, have equal ones."""
        check_is_fitted(self)
        digest = hashlib.sha256(json.dumps(self._settings(), sort_keys=True, separators=(",", ":")).encode())
        for name, weights in sorted(self._weights().items()):
            digest.update(f"{name} {weights.dtype} {weights.shape}\n".encode())
            digest.update(np.ascontiguousarray(weights).tobytes())
        return digest.hexdigest()

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:  # noqa: N803 (scikit-learn's name)
        """Learn from vectors, better if it is known whose they are.

        Without labels, or where no person has two vectors, those of a person are taken to differ alike in every
        direction, by a tenth of the whole variance.

        Args:
            X: (N, D) vectors, finite. A few thousand will do.
            y: (N,) who each is of, integers or strings; None if nobody knows.

        Returns:
            Itself.

        Raises:
            ConfigError: (a ValueError) vectors, labels or settings that cannot be.
        """
        num_books, num_words = self._code_shape()
        if not (np.isfinite(self.query_temperature) and self.query_temperature > 0):
            raise ConfigError(f"query_temperature is {self.query_temperature}; it must be a positive number")
        vectors = self._check(X, is_fit=True).astype(np.float64)
        dim = vectors.shape[1]
        if dim > files.MAX_DIM:
            raise ConfigError(f"vectors have {dim} numbers; at most {files.MAX_DIM} are supported")
        labels = None if y is None else _number_labels(y, vectors)
        if self.normalize:
            vectors = to_unit_length(vectors)
        elif np.abs(vectors).max() > MAX_NUMBER:
            raise ConfigError(f"vectors hold numbers beyond {MAX_NUMBER:.0e}; scale them down, or use normalize=True")
        rng = np.random.default_rng(check_random_state(self.random_state).randint(1 << 31))
        self._learn(PeopleModel.fit(vectors, labels), num_books, num_words, rng)
        self.training_facts_ = {
            "vectors": len(vectors),
            "people": None if labels is None else int(labels.max()) + 1,
            "made_up_people": MADE_UP,
            "opqn_version": __version__,
        }
        return self

    def _learn(self, people: PeopleModel, num_books: int, num_words: int, rng: np.random.Generator) -> None:
        made_up = people.make_up(MADE_UP, self.normalize, rng)  # (made up, D)
        axes = share_axes(people.between + 1, num_books)  # (M, d)
        self.mean_ = people.mean.astype(np.float32)
        self.axes_ = (people.whitening[axes] * (axes >= 0)[:, :, None]).astype(np.float32)
        projection = np.zeros((num_books, axes.shape[1] + 1, num_words))
        for book, chosen in enumerate(axes):
            parts = np.ascontiguousarray(made_up[:, chosen] * (chosen >= 0))  # (made up, d)
            words = find_words(parts, num_words, rng).astype(np.float64)  # (K, d)
            projection[book] = np.vstack([words.T, -0.5 * (words**2).sum(axis=1)])
        self.projection_ = projection.astype(np.float32)

    def encode(self, vectors: ArrayLike) -> NDArray[np.uint8]:
        """Return the (N, M) uint8 codes of (N, D) vectors; of equally near words the first wins.

        Raises:
            ConfigError: (a ValueError) vectors that are not (N, D) finite numbers of the length fitted.
            NotFittedError: (scikit-learn's) not fitted.
        """
        checked = self._check(vectors)
        codes = np.empty((len(checked), self.num_books), dtype=np.uint8)
        for rows in self._chunks(len(checked)):
            codes[rows] = self._logits(checked[rows]).argmax(axis=2)
        return codes

    def transform(self, X: ArrayLike) -> NDArray[np.uint8]:  # noqa: N803 (scikit-learn's name)
        """Do what :meth:`encode` does, under the name that pipelines call."""
        return self.encode(X)

    def lookup_tables(self, vectors: ArrayLike) -> NDArray[np.float32]:
        """Return the (Q, M, K) float32 lookup tables of (Q, D) query vectors: logarithms of soft assignments.

        Raises:
            ConfigError: (a ValueError) vectors that are not (Q, D) finite numbers of the length fitted.
            NotFittedError: (scikit-learn's) not fitted.
        """
        checked = self._check(vectors)
        tables = np.empty((len(checked), self.num_books, self.num_words), dtype=np.float32)
        for rows in self._chunks(len(checked)):
            tables[rows] = self._log_softmax(self._logits(checked[rows]))
        return tables

    def tables_of_codes(self, codes: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the (N, M, K) float32 lookup tables of stored items, to search with what only a code is left of.

        They are the tables of the items' centroids.

        Raises:
            ConfigError: codes that are not (N, M) uint8 below K.
            NotFittedError: (scikit-learn's) not fitted.
        """
        check_is_fitted(self)
        num_books, num_words = self._code_shape()
        if not isinstance(codes, np.ndarray) or codes.dtype != np.uint8 or codes.shape[1:] != (num_books,):
            raise ConfigError(f"codes must be an (N, {num_books}) uint8 array")
        if codes.size and codes.max() >= num_words:
            raise ConfigError(f"codes must lie below {num_words}, the number of words in a book")
        words = self.projection_[:, :-1].astype(np.float64)  # (M, d, K)
        logits = words.transpose(0, 2, 1) @ words + self.projection_[:, None, -1]  # (M, K, K) of each word's centroid
        return self._log_softmax(logits).astype(np.float32)[np.arange(num_books), codes]

    def save(self, folder: str | Path) -> None:
        """Write ``config.json``, ``model.safetensors`` and a card; the folder appears whole or not at all.

        A ``random_state`` that is no integer is not kept.

        Raises:
            OpqnError: the disk is full or the place cannot be written; what stood there is unchanged.
            NotFittedError: (scikit-learn's) not fitted.
        """
        seed = self.random_state
        config = {
            "opqn_version": __version__,
            "fingerprint": self.fingerprint,
            "quantizer": self._settings() | {"random_state": int(seed) if isinstance(seed, int | np.integer) else None},
            "training": self.training_facts_,
        }
        files.write(Path(folder), config, self._weights())

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Load what :meth:`save` wrote. Nothing in the folder is executed, and every size is checked.

        Raises:
            CorruptFileError: the folder is incomplete, changed, or of a newer format.
        """
        config, weights = files.read(Path(folder))
        settings = config.quantizer
        quantizer = cls(
            settings.num_bits,
            shape=(settings.num_books, settings.num_words),
            normalize=settings.normalize,
            query_temperature=settings.query_temperature,
            random_state=settings.random_state,
        )
        quantizer.mean_, quantizer.axes_, quantizer.projection_ = (weights[name] for name in files.WEIGHTS)
        quantizer.n_features_in_ = settings.dim
        quantizer.training_facts_ = config.training
        if quantizer.fingerprint != config.fingerprint:
            raise CorruptFileError(
                f"{folder}: the weights or the settings changed after the quantizer was saved (fingerprint differs); "
                "get the folder again from where it came"
            )
        return quantizer

    @property
    def _n_features_out(self) -> int:
        """What ``get_feature_names_out`` counts."""
        return self.num_books

    def __sklearn_tags__(self) -> Any:
        """Say that codes are uint8, whatever the vectors are."""
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []
        return tags

    def _code_shape(self) -> tuple[int, int]:
        """Return (M, K) from the settings."""
        if self.shape is not None:
            try:
                num_books, num_words = map(operator.index, self.shape)
            except (TypeError, ValueError) as error:
                raise ConfigError(f"shape is {self.shape!r}; it must be (num_books, num_words)") from error
        elif self.num_bits in SHAPES:
            num_books, num_words = SHAPES[self.num_bits]
        elif isinstance(self.num_bits, int) and self.num_bits > 0 and self.num_bits % 8 == 0:
            num_books, num_words = self.num_bits // 8, 256
        else:
            raise ConfigError(
                f"num_bits is {self.num_bits!r}; choose {', '.join(map(str, SHAPES))} or another multiple of 8, or "
                "pass shape=(num_books, num_words)"
            )
        # Codewords have a space of their own, of K dimensions: orthonormal, however short a sub-vector is.
        check_code_shape(num_books, num_words, num_words)
        return num_books, num_words

    def _settings(self) -> dict[str, Any]:
        """Return all that encoding depends on beside the weights."""
        num_books, num_words = self._code_shape()
        return {
            "num_bits": num_books * (num_words.bit_length() - 1),
            "num_books": num_books,
            "num_words": num_words,
            "dim": int(self.n_features_in_),
            "normalize": bool(self.normalize),
            "query_temperature": float(self.query_temperature),
        }

    def _weights(self) -> dict[str, NDArray[np.float32]]:
        return dict(zip(files.WEIGHTS, (self.mean_, self.axes_, self.projection_), strict=True))

    def _check(self, vectors: ArrayLike, is_fit: bool = False) -> NDArray[np.floating[Any]]:
        """Return (N, D) float32 or float64 vectors; at least one if they are to be fitted."""
        if not is_fit:
            check_is_fitted(self)
        try:
            checked = validate_data(
                self, vectors, reset=is_fit, dtype=[np.float64, np.float32], ensure_min_samples=int(is_fit)
            )
        except ValueError as error:
            raise ConfigError(str(error)) from error
        return cast("NDArray[np.floating[Any]]", checked)

    def _chunks(self, count: int) -> Iterator[slice]:
        size = max(1, CHUNK_NUMBERS // (self.num_books * self.num_words))
        return (slice(start, start + size) for start in range(0, count, size))

    def _logits(self, vectors: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Return the (N, M, K) logits of checked vectors.

        In float64, where the rounding of a product, which depends on how many vectors come at once, moves no code.
        """
        rows = vectors.astype(np.float64)
        if self.normalize:
            rows = to_unit_length(rows)
        parts = (rows - self.mean_) @ self.axes_.astype(np.float64).transpose(0, 2, 1)  # (M, N, d)
        projection = self.projection_.astype(np.float64)
        logits: NDArray[np.float64] = (parts @ projection[:, :-1] + projection[:, -1:]).transpose(1, 0, 2)
        return logits

    def _log_softmax(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return log softmax(T * logits) over the last axis."""
        scaled = self.query_temperature * logits
        scaled -= scaled.max(axis=2, keepdims=True)
        log_softmax: NDArray[np.float64] = scaled - np.log(np.exp(scaled).sum(axis=2, keepdims=True))
        return log_softmax


def _number_labels(labels: ArrayLike, vectors: NDArray[np.float64]) -> NDArray[np.intp]:
    """Number (N,) labels from 0 on."""
    try:
        named = column_or_1d(labels, warn=True)
        check_consistent_length(vectors, named)
        return np.unique(named, return_inverse=True)[1].astype(np.intp)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"labels cannot be used: {error}") from error
