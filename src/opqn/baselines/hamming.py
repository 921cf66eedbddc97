"""Binary codes: packed bits, their lookup tables, an exact scan, and the layer that makes them.

A code of B bits is stored as ceil(B / 8) bytes, bit i as bit ``7 - i % 8`` of byte ``i // 8`` (the order of
``np.packbits``); bits that fill up the last byte are 0. Similarity is the number of equal bits. It is a sum over
bytes, so a book a byte with 256 words and the table ``T[m, c] = equal bits of byte c and the query's byte m`` express
it exactly, and one evaluation and one index serve binary codes and quantizers alike.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from opqn.errors import ConfigError

BYTE: Final = 8
NUM_WORDS: Final = 256  # values of a byte
SCAN_BYTES: Final = 16 << 20  # of differing bits that exist at any one time


def num_bytes(num_bits: int) -> int:
    """Bytes of a code of ``num_bits``."""
    return -(-num_bits // BYTE)


def _valid_bits(num_bits: int) -> NDArray[np.uint8]:
    """(B,) masks of the bits in use; only the last byte may have others."""
    return np.packbits(np.ones(num_bits, dtype=bool))


def hamming_tables(codes: NDArray[np.uint8], num_bits: int) -> NDArray[np.float32]:
    """Return the (Q, B, 256) float32 lookup tables of (Q, B) uint8 packed codes of queries.

    Raises:
        ConfigError: codes of another shape or type than ``num_bits`` takes.
    """
    _check(codes, num_bits)
    equal = ~(codes[:, :, None] ^ np.arange(NUM_WORDS, dtype=np.uint8)) & _valid_bits(num_bits)[:, None]  # (Q, B, 256)
    return cast("NDArray[np.float32]", np.bitwise_count(equal).astype(np.float32))


def hamming_scores(queries: NDArray[np.uint8], gallery: NDArray[np.uint8], num_bits: int) -> NDArray[np.float32]:
    """Count the equal bits of every pair of packed codes: the scan that needs no tables.

    Args:
        queries: (Q, B) uint8.
        gallery: (N, B) uint8.
        num_bits: bits in use.

    Returns:
        (Q, N) float32 whole numbers in 0..num_bits, equal bit for bit to the sums of :func:`hamming_tables`.

    Raises:
        ConfigError: codes of another shape or type than ``num_bits`` takes.
    """
    _check(queries, num_bits)
    _check(gallery, num_bits)
    scores = np.empty((len(queries), len(gallery)), dtype=np.float32)
    # The filling bits are 0 in every code and never differ.
    rows = max(1, SCAN_BYTES // max(1, queries.size))
    for start in range(0, len(gallery), rows):
        differing = np.bitwise_count(queries[:, None, :] ^ gallery[start : start + rows])  # (Q, rows, B)
        scores[:, start : start + rows] = num_bits - differing.sum(axis=2, dtype=np.int32)
    return scores


def _check(codes: NDArray[np.uint8], num_bits: int) -> None:
    if num_bits < 1 or codes.dtype != np.uint8 or codes.ndim != 2 or codes.shape[1] != num_bytes(num_bits):
        raise ConfigError(
            f"codes are {codes.shape} {codes.dtype}; {num_bits} bits take (N, {num_bytes(num_bits)}) uint8"
        )


def pack_signs(values: Tensor) -> Tensor:
    """Pack the signs of (N, bits) values into (N, B) uint8: a bit is 1 where its value is positive."""
    rows, num_bits = values.shape
    bits = torch.zeros(rows, num_bytes(num_bits) * BYTE, dtype=torch.uint8, device=values.device)
    bits[:, :num_bits] = values > 0
    weights = 2 ** torch.arange(BYTE - 1, -1, -1, dtype=torch.uint8, device=values.device)  # 128, 64, ..., 1
    return (bits.view(rows, -1, BYTE) * weights).sum(dim=2, dtype=torch.uint8)


def tables_of_signs(values: Tensor) -> Tensor:
    """Return the (Q, B, 256) float32 lookup tables of the signs of (Q, bits) values."""
    tables = hamming_tables(pack_signs(values).cpu().numpy(), values.shape[1])
    return torch.from_numpy(tables).to(values.device)


def byte_probs(values: Tensor) -> Tensor:
    """Read (N, bits) values in -1..1 as independent bits, ``p(bit = 1) = (1 + value) / 2``: (N, B, 256) probabilities.

    So binary codes have soft assignments as quantizers do: rows sum to one, and the argmax is the packed signs.
    """
    rows, num_bits = values.shape
    count = num_bytes(num_bits)
    ones = values.new_zeros(rows, count * BYTE)  # filling bits are surely 0
    ones[:, :num_bits] = (1 + values.clamp(-1, 1)) / 2
    ones = ones.view(rows, count, BYTE)
    probs = values.new_ones(rows, count, 1)
    for bit in range(BYTE):
        one = ones[:, :, bit, None]  # (N, B, 1)
        probs = torch.stack([probs * (1 - one), probs * one], dim=3).flatten(2)  # (N, B, 2^(bit + 1))
    return probs


class HashOutput(NamedTuple):
    """What a hash layer makes of a batch in training."""

    raw: Tensor
    """(N, bits) float, before the activation."""
    values: Tensor
    """(N, bits) float, after it; signs are the code."""

    @property
    def probs(self) -> Tensor:
        """(N, B, 256) see :func:`byte_probs`."""
        return byte_probs(self.values)


class HashHead(nn.Module):
    """A linear layer from features to bits.

    Args:
        feature_dim: length of the network's features.
        num_bits: bits of a code.
        activation: ``tanh`` keeps values in -1..1; ``identity`` leaves that to the loss.
        batch_norm: normalise every bit over the batch first, without learned scale and shift, so that it is balanced.
    """

    num_words = NUM_WORDS

    def __init__(
        self,
        feature_dim: int,
        num_bits: int,
        activation: Literal["tanh", "identity"] = "tanh",
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.num_books = num_bytes(num_bits)
        self.linear = nn.Linear(feature_dim, num_bits)
        self.norm = nn.BatchNorm1d(num_bits, affine=False) if batch_norm else nn.Identity()
        self.activation = nn.Tanh() if activation == "tanh" else nn.Identity()

    def forward(self, features: Tensor) -> HashOutput:
        """Map (N, feature_dim) features to bits, in float32 also under autocast."""
        with torch.autocast(features.device.type, enabled=False):
            raw = self.norm(self.linear(features.to(self.linear.weight.dtype)))  # (N, bits)
            return HashOutput(raw, self.activation(raw))

    @torch.no_grad()
    def encode(self, features: Tensor) -> Tensor:
        """Return the (N, B) uint8 packed codes of (N, feature_dim) features."""
        return pack_signs(self(features).raw)

    @torch.no_grad()
    def lookup_tables(self, features: Tensor, query_temperature: float | None = None) -> Tensor:  # noqa: ARG002
        """Return the (Q, B, 256) float32 tables of equal bits; there is no temperature in them."""
        return tables_of_signs(self(features).raw)
