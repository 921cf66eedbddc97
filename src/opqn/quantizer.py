"""The head: feature vectors in, soft assignments, soft-quantized features, codes and lookup tables out.

Zhang, Zhe, Yan 2023, section 3.2. A feature vector is split into M sub-vectors x_m; p_m = softmax(x_m P_m) assigns each
softly to K codewords, s_m = C_m p_m is its soft-quantized form, and argmax p_m its code.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from opqn.codebooks import CodebookKind, orthonormal_codebooks
from opqn.errors import ConfigError

# The authors' initial projection: Xavier-uniform over the (M, d, K) tensor, three times as wide (read off the
# extremes of the weights in their published runs).
PROJECTION_GAIN = 3.0


class QuantizerOutput(NamedTuple):
    """What the head makes of a batch in training."""

    features: Tensor
    """(N, M, d) the sub-vectors x_m, not normalised."""
    probs: Tensor
    """(N, M, K) soft assignments p_m; each row sums to one."""
    soft: Tensor
    """(N, M, d) soft-quantized sub-vectors s_m = C_m p_m."""


class OrthonormalQuantizer(nn.Module):
    """Product quantizer with fixed orthonormal codewords and a trained projection onto them.

    Args:
        num_books: M.
        book_dim: d.
        num_words: K, a power of two, at most d and at most 256.
        codebooks: kind of codebook, see :func:`opqn.orthonormal_codebooks`. Only ``learned`` ones are trained.
        query_temperature: T in ``softmax(T * normalise(x_m) P_m)``, the query's table; 1 is the paper's.
        seed: for the kinds of codebook that are drawn at random.

    Raises:
        ConfigError: a shape that the method cannot have, or a temperature that is not positive.
    """

    codebooks: Tensor

    def __init__(
        self,
        num_books: int,
        book_dim: int,
        num_words: int,
        codebooks: CodebookKind = "dct",
        query_temperature: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not query_temperature > 0:
            raise ConfigError(f"query_temperature is {query_temperature}; it must be positive")
        books = torch.from_numpy(orthonormal_codebooks(num_books, book_dim, num_words, codebooks, seed))
        self.learned = codebooks == "learned"
        if self.learned:
            self.codebooks = nn.Parameter(books)
        else:
            self.register_buffer("codebooks", books)  # (M, d, K)
        self.projection = nn.Parameter(torch.empty(num_books, book_dim, num_words))  # (M, d, K)
        nn.init.xavier_uniform_(self.projection, gain=PROJECTION_GAIN)
        self.query_temperature = query_temperature

    def split(self, features: Tensor) -> Tensor:
        """Cut (N, M*d) features into (N, M, d) sub-vectors.

        Raises:
            ConfigError: the features have another length.
        """
        num_books, book_dim, _ = self.projection.shape
        if features.ndim != 2 or features.shape[1] != num_books * book_dim:
            raise ConfigError(f"features have shape {tuple(features.shape)}; expected (N, {num_books * book_dim})")
        return features.reshape(features.shape[0], num_books, book_dim)

    def logits(self, subvectors: Tensor) -> Tensor:
        """Project (N, M, d) sub-vectors onto the codewords: (N, M, K) logits x_m P_m."""
        return torch.matmul(subvectors.transpose(0, 1), self.projection).transpose(0, 1)

    def forward(self, features: Tensor) -> QuantizerOutput:
        """Assign (N, M*d) features softly to codewords.

        The softmax sees the raw sub-vectors, as in the authors' training. Runs in the dtype of the projection, float32,
        also under autocast: it is a small part of the work, and rounding would move codes.
        """
        with torch.autocast(features.device.type, enabled=False):
            subvectors = self.split(features.to(self.projection.dtype))  # (N, M, d)
            probs = self.logits(subvectors).softmax(dim=2)  # (N, M, K)
            soft = torch.matmul(probs.transpose(0, 1), self.codebooks.transpose(1, 2)).transpose(0, 1)  # (N, M, d)
        return QuantizerOutput(subvectors, probs, soft)

    @torch.no_grad()
    def encode(self, features: Tensor) -> Tensor:
        """Return the (N, M) uint8 codes of (N, M*d) features: argmax over K; of equal words the first wins."""
        with torch.autocast(features.device.type, enabled=False):
            return self.logits(self.split(features.to(self.projection.dtype))).argmax(dim=2).to(torch.uint8)

    @torch.no_grad()
    def lookup_tables(self, features: Tensor, query_temperature: float | None = None) -> Tensor:
        """Return the (Q, M, K) float32 lookup tables of (Q, M*d) query features.

        The table entry is ``<s_m(query), c_{m,k}>``. With orthonormal codewords that is p_{m,k} itself, of the
        L2-normalised sub-vector (method of the paper's retrieval stage); learned codewords need their Gram matrix.
        """
        temperature = self.query_temperature if query_temperature is None else query_temperature
        with torch.autocast(features.device.type, enabled=False):
            units = functional.normalize(self.split(features.to(self.projection.dtype)), dim=2)  # (Q, M, d)
            tables = (temperature * self.logits(units)).softmax(dim=2)  # (Q, M, K)
            if self.learned:
                gram = torch.matmul(self.codebooks.transpose(1, 2), self.codebooks)  # (M, K, K)
                tables = torch.matmul(tables.transpose(0, 1), gram).transpose(0, 1)
        return tables.float().contiguous()


class RefittedQuantizer(OrthonormalQuantizer):
    """The head, found anew without gradient descent once the network is trained; not of the paper.

    It trains as the paper's does. Then ``opqn.refitting.fit_head`` finds other weights from the features of the
    training images, and :meth:`take` takes them. Codewords stay as they are: what changes is the way from features to
    logits. With u the whole feature vector at unit length::

        logits_m = u P_m + b_m,    p_m = softmax(T * logits_m),    code_m = argmax p_m

    A query's table is ``log softmax(T * (u P'_m + b'_m))`` with weights of its own: an item is coded by the nearest
    word, and a word counts for a query by how likely both show the same person. Tables rank alike at any T. Until
    :meth:`take` is called, codes and tables are the paper's.

    Args: as :class:`OrthonormalQuantizer`.
    """

    code_weights: Tensor
    table_weights: Tensor
    is_refitted: Tensor

    def __init__(
        self,
        num_books: int,
        book_dim: int,
        num_words: int,
        codebooks: CodebookKind = "dct",
        query_temperature: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(num_books, book_dim, num_words, codebooks, query_temperature, seed)
        for name in ("code_weights", "table_weights"):
            # (M, M*d + 1, K); b_m in the last row
            self.register_buffer(name, torch.zeros(num_books, num_books * book_dim + 1, num_words))
        self.register_buffer("is_refitted", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def take(self, code_weights: Tensor, table_weights: Tensor) -> None:
        """Use other weights from now on.

        Args:
            code_weights: (M, M*d + 1, K), the P_m; the last row of each is b_m.
            table_weights: (M, M*d + 1, K), the P'_m and b'_m.

        Raises:
            ConfigError: they have other shapes; the head is as before.
        """
        expected = self.code_weights.shape
        for name, weights in (("code_weights", code_weights), ("table_weights", table_weights)):
            if weights.shape != expected:
                raise ConfigError(f"{name} has shape {tuple(weights.shape)}; expected {tuple(expected)}")
        self.code_weights.copy_(code_weights)
        self.table_weights.copy_(table_weights)
        self.is_refitted.fill_(value=True)

    def _affine(self, features: Tensor, weights: Tensor) -> Tensor:
        """Return (N, M, K) logits of (N, M*d) features.

        Raises:
            ConfigError: the features have another length.
        """
        with torch.autocast(features.device.type, enabled=False):
            units = functional.normalize(self.split(features.to(weights.dtype)).flatten(1))  # (N, M*d), length checked
            return (torch.matmul(units, weights[:, :-1]) + weights[:, -1:]).transpose(0, 1)

    def forward(self, features: Tensor) -> QuantizerOutput:
        """Train as the paper's head; once refitted and in evaluation, ``probs`` and ``soft`` are those of the codes."""
        output = super().forward(features)
        if self.training or not self.is_refitted:
            return output
        with torch.autocast(features.device.type, enabled=False):
            probs = (self.query_temperature * self._affine(features, self.code_weights)).softmax(dim=2)  # (N, M, K)
            soft = torch.matmul(probs.transpose(0, 1), self.codebooks.transpose(1, 2)).transpose(0, 1)  # (N, M, d)
        return QuantizerOutput(output.features, probs, soft)

    @torch.no_grad()
    def encode(self, features: Tensor) -> Tensor:
        """Return the (N, M) uint8 codes of (N, M*d) features: argmax over K; of equal words the first wins."""
        if not self.is_refitted:
            return super().encode(features)
        return self._affine(features, self.code_weights).argmax(dim=2).to(torch.uint8)

    @torch.no_grad()
    def lookup_tables(self, features: Tensor, query_temperature: float | None = None) -> Tensor:
        """Return the (Q, M, K) float32 lookup tables of (Q, M*d) query features: log softmax(T * logits)."""
        if not self.is_refitted:
            return super().lookup_tables(features, query_temperature)
        temperature = self.query_temperature if query_temperature is None else query_temperature
        return (temperature * self._affine(features, self.table_weights)).log_softmax(dim=2).float().contiguous()
