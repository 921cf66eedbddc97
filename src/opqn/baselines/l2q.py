"""OPQN-l2q: OPQN's own loss over codewords that are learned and compared by Euclidean distance.

The ablation of Zhang, Zhe, Yan 2023, section 4: no orthonormal codewords and no projection. Per subspace m::

    p_k = exp(-|x_m - c_mk|^2) / sum_j exp(-|x_m - c_mj|^2),    s_m = sum_k p_k c_mk
    loss as OPQN's, of x, s and p (:class:`opqn.losses.OPQNLoss`)
    code = argmin_k |x_m - c_mk|^2,    T[m, k] = -|x_m - c_mk|^2

Our reading: codewords start as random orthonormal ones, distances are those of raw sub-vectors in training and search
alike, and there is no temperature.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from opqn.baselines.method import Method
from opqn.losses import OPQNLoss
from opqn.model import ModelConfig
from opqn.quantizer import QuantizerOutput


def euclidean_logits(subvectors: Tensor, codebooks: Tensor) -> Tensor:
    """Return (N, M, K) negative squared distances of (N, M, d) sub-vectors to (M, d, K) codewords."""
    inner = torch.matmul(subvectors.transpose(0, 1), codebooks).transpose(0, 1)  # (N, M, K)
    return 2 * inner - codebooks.square().sum(dim=1) - subvectors.square().sum(dim=2, keepdim=True)


class EuclideanQuantizer(nn.Module):
    """Product quantizer with learned codewords and softmax of negative squared distances.

    Args:
        num_books: M.
        book_dim: d.
        num_words: K, at most d.
    """

    def __init__(self, num_books: int, book_dim: int, num_words: int) -> None:
        super().__init__()
        self.num_books = num_books
        self.num_words = num_words
        frames = torch.linalg.qr(torch.randn(num_books, book_dim, num_words))[0]
        self.codebooks = nn.Parameter(frames.contiguous())  # (M, d, K)

    def _logits(self, features: Tensor) -> tuple[Tensor, Tensor]:
        subvectors = features.to(self.codebooks.dtype).reshape(len(features), self.num_books, -1)  # (N, M, d)
        return subvectors, euclidean_logits(subvectors, self.codebooks)

    def forward(self, features: Tensor) -> QuantizerOutput:
        """Assign (N, M*d) features softly to codewords, in float32 also under autocast."""
        with torch.autocast(features.device.type, enabled=False):
            subvectors, logits = self._logits(features)
            probs = logits.softmax(dim=2)  # (N, M, K)
            soft = torch.matmul(probs.transpose(0, 1), self.codebooks.transpose(1, 2)).transpose(0, 1)  # (N, M, d)
        return QuantizerOutput(subvectors, probs, soft)

    @torch.no_grad()
    def encode(self, features: Tensor) -> Tensor:
        """Return the (N, M) uint8 codes of (N, M*d) features: the nearest word."""
        return self._logits(features)[1].argmax(dim=2).to(torch.uint8)

    @torch.no_grad()
    def lookup_tables(self, features: Tensor, query_temperature: float | None = None) -> Tensor:  # noqa: ARG002
        """Return the (Q, M, K) float32 negative squared distances of (Q, M*d) features; there is no temperature."""
        return self._logits(features)[1].contiguous()


class L2Q(Method):
    """OPQN with learned codewords and Euclidean assignment."""

    name: ClassVar[str] = "opqn-l2q"
    paper: ClassVar[str] = "Zhang, Zhe, Yan, Pattern Recognition 2023"

    scale: float = Field(default=20.0, gt=0, description="factor on the cosine logits")
    margin: float = Field(default=0.5, ge=0, lt=2, description="taken off the true class's cosine")
    mu: float = Field(default=0.1, ge=0, description="weight of the entropy of the assignments")

    def build_head(self, config: ModelConfig) -> EuclideanQuantizer:
        """Make the quantizer."""
        return EuclideanQuantizer(config.num_books, config.book_dim, config.num_words)

    def build_loss(self, config: ModelConfig, num_classes: int) -> OPQNLoss:
        """Make OPQN's loss."""
        return OPQNLoss(num_classes, config.num_books, config.book_dim, self.scale, self.margin, self.mu)
