"""DPQ: end-to-end supervised product quantization.

Klein, Wolf, *End-to-End Supervised Product Quantization for Image Search and Retrieval*, CVPR 2019. Per subspace m a
small layer gives p_m = softmax(x_m P_m); the soft form is sum_k p_mk c_mk and the hard one the codeword with the
highest p. Both are trained, the hard one by a straight-through estimator, with one classifier and one set of class
centres O::

    classification = mean over n of CE(V soft + v, y) + CE(V hard + v, y)
    central        = mean over n of 1/2 |soft - O_y|^2 + 1/2 |hard - O_y|^2      (joint central loss)
    diversity      = sum over m, k of (mean over n of p_mk)^2                    (Gini: use every word)
    sharpness      = mean over n of sum over m, k of p_mk^2                      (Gini: be sure of the word)
    total          = classification + a * central + b * diversity - c * sharpness

Search is asymmetric: a query's soft form against the items' codewords, ``T[m, k] = -|soft_m - c_mk|^2``.

Our reading: a, b, c are 0.25, 1 and 0.01, as a public re-implementation for faces has them; codewords start as
Gaussian vectors of length one on average; centres are learned by gradient; the paper's optional normalisation of
sub-vectors is left out.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from opqn.baselines.l2q import euclidean_logits
from opqn.baselines.method import Method
from opqn.losses import LossParts
from opqn.model import ModelConfig
from opqn.quantizer import PROJECTION_GAIN


class DPQOutput(NamedTuple):
    """What the head makes of a batch in training."""

    probs: Tensor
    """(N, M, K) soft assignments."""
    soft: Tensor
    """(N, M*d) soft form."""
    hard: Tensor
    """(N, M*d) hard form; its gradient is that of the soft assignments."""


class DPQHead(nn.Module):
    """Soft and hard product quantization by learned projections and codewords.

    Args:
        num_books: M.
        book_dim: d.
        num_words: K.
        projection_gain: of the projection's Xavier-uniform start.
    """

    def __init__(self, num_books: int, book_dim: int, num_words: int, projection_gain: float = PROJECTION_GAIN) -> None:
        super().__init__()
        self.num_books = num_books
        self.num_words = num_words
        self.projection = nn.Parameter(torch.empty(num_books, book_dim, num_words))  # (M, d, K)
        nn.init.xavier_uniform_(self.projection, gain=projection_gain)
        self.codebooks = nn.Parameter(torch.randn(num_books, book_dim, num_words) / book_dim**0.5)  # (M, d, K)

    def _probs(self, features: Tensor) -> Tensor:
        subvectors = features.to(self.projection.dtype).reshape(len(features), self.num_books, -1)  # (N, M, d)
        return torch.matmul(subvectors.transpose(0, 1), self.projection).transpose(0, 1).softmax(dim=2)  # (N, M, K)

    def _mix(self, weights: Tensor) -> Tensor:
        """Add up codewords by (N, M, K) weights: (N, M, d)."""
        return torch.matmul(weights.transpose(0, 1), self.codebooks.transpose(1, 2)).transpose(0, 1)

    def forward(self, features: Tensor) -> DPQOutput:
        """Quantize (N, M*d) features both ways, in float32 also under autocast."""
        with torch.autocast(features.device.type, enabled=False):
            probs = self._probs(features)
            one_hot = functional.one_hot(probs.argmax(dim=2), self.num_words).to(probs.dtype)  # (N, M, K)
            straight_through = one_hot + probs - probs.detach()
            return DPQOutput(probs, self._mix(probs).flatten(1), self._mix(straight_through).flatten(1))

    @torch.no_grad()
    def encode(self, features: Tensor) -> Tensor:
        """Return the (N, M) uint8 codes of (N, M*d) features: argmax of the soft assignment."""
        return self._probs(features).argmax(dim=2).to(torch.uint8)

    @torch.no_grad()
    def lookup_tables(self, features: Tensor, query_temperature: float | None = None) -> Tensor:  # noqa: ARG002
        """Return the (Q, M, K) float32 tables of (Q, M*d) features; there is no temperature in them."""
        return euclidean_logits(self._mix(self._probs(features)), self.codebooks).contiguous()


class DPQLoss(nn.Module):
    """Classification, joint central and Gini losses; it owns classifier and centres."""

    def __init__(self, num_classes: int, feature_dim: int, central: float, diversity: float, sharpness: float) -> None:
        super().__init__()
        self.central = central
        self.diversity = diversity
        self.sharpness = sharpness
        self.classifier = nn.Linear(feature_dim, num_classes)
        self.centers = nn.Parameter(torch.empty(num_classes, feature_dim))  # (classes, M*d)
        nn.init.xavier_uniform_(self.centers)

    def forward(self, output: DPQOutput, labels: Tensor) -> LossParts:
        """Return the loss of a batch with (N,) int64 labels."""
        with torch.autocast(labels.device.type, enabled=False):
            forms = torch.cat([output.soft, output.hard])  # (2N, M*d)
            targets = labels.repeat(2)
            # A mean over 2N of what the formulas add up as two means over N.
            classification = 2 * functional.cross_entropy(self.classifier(forms), targets)
            central = (forms - self.centers[targets]).square().sum(dim=1).mean()
            diversity = output.probs.mean(dim=0).square().sum()
            sharpness = output.probs.square().sum(dim=(1, 2)).mean()
            gini = self.diversity * diversity - self.sharpness * sharpness
        return LossParts(classification + self.central * central + gini, classification, central, gini)


class DPQ(Method):
    """End-to-end supervised product quantization."""

    name: ClassVar[str] = "dpq"
    paper: ClassVar[str] = "Klein, Wolf, CVPR 2019"

    central: float = Field(default=0.25, ge=0, description="weight of the joint central loss")
    diversity: float = Field(default=1.0, ge=0, description="weight of the Gini diversity of a batch")
    sharpness: float = Field(default=0.01, ge=0, description="weight of the Gini sharpness of a sample")
    projection_gain: float = Field(
        default=PROJECTION_GAIN, gt=0, description="of the projection's start; a larger one assigns less evenly"
    )

    def build_head(self, config: ModelConfig) -> DPQHead:
        """Make the quantizer."""
        return DPQHead(config.num_books, config.book_dim, config.num_words, self.projection_gain)

    def build_loss(self, config: ModelConfig, num_classes: int) -> DPQLoss:
        """Make the loss with its classifier and centres."""
        return DPQLoss(num_classes, config.feature_dim, self.central, self.diversity, self.sharpness)
