"""CosFace: the face network without any quantization in its training.

Wang et al., *CosFace: Large Margin Cosine Loss for Deep Face Recognition*, CVPR 2018, equation 4::

    loss = mean over n of cross-entropy(scale * (cos(x, W) - margin at y), y)

Its features are what the training-free PQ, OPQ, ITQ and LSH compress. So that it has codes like every other method,
and an epoch can be chosen by them, it carries LSH itself: signs of a fixed random rotation, which nothing trains.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from opqn.baselines.hamming import NUM_WORDS, byte_probs, num_bytes, pack_signs, tables_of_signs
from opqn.baselines.method import Method
from opqn.losses import LossParts
from opqn.model import ModelConfig


class CosFaceOutput(NamedTuple):
    """What the head makes of a batch in training."""

    features: Tensor
    """(N, D) as the network gives them."""
    projected: Tensor
    """(N, bits) unit features on the random directions, in -1..1."""

    @property
    def probs(self) -> Tensor:
        """(N, B, 256) see :func:`opqn.baselines.hamming.byte_probs`."""
        return byte_probs(self.projected)


class CosFaceHead(nn.Module):
    """Hands the features on; its codes are the signs on fixed random orthonormal directions (LSH).

    Args:
        feature_dim: D.
        num_bits: bits of a code, at most D.
    """

    directions: Tensor
    num_words = NUM_WORDS

    def __init__(self, feature_dim: int, num_bits: int) -> None:
        super().__init__()
        self.num_books = num_bytes(num_bits)
        self.register_buffer("directions", nn.init.orthogonal_(torch.empty(feature_dim, num_bits)))  # (D, bits)

    def forward(self, features: Tensor) -> CosFaceOutput:
        """Project (N, D) features; nothing is learned from the projection."""
        return CosFaceOutput(features, self._project(features))

    @torch.no_grad()
    def encode(self, features: Tensor) -> Tensor:
        """Return the (N, B) uint8 packed codes of (N, D) features."""
        return pack_signs(self._project(features))

    @torch.no_grad()
    def lookup_tables(self, features: Tensor, query_temperature: float | None = None) -> Tensor:  # noqa: ARG002
        """Return the (Q, B, 256) float32 tables of equal bits; there is no temperature in them."""
        return tables_of_signs(self._project(features))

    def _project(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return functional.normalize(features.detach().to(self.directions.dtype)) @ self.directions


class CosFaceLoss(nn.Module):
    """Additive cosine margin softmax; it owns the class weights."""

    def __init__(self, num_classes: int, feature_dim: int, scale: float, margin: float) -> None:
        super().__init__()
        self.scale = scale
        self.margin = margin
        self.prototypes = nn.Parameter(torch.empty(num_classes, feature_dim))  # (classes, D)
        nn.init.xavier_uniform_(self.prototypes)

    def forward(self, output: CosFaceOutput, labels: Tensor) -> LossParts:
        """Return the loss of a batch with (N,) int64 labels."""
        with torch.autocast(labels.device.type, enabled=False):
            units = functional.normalize(output.features.to(self.prototypes.dtype))
            cosines = units @ functional.normalize(self.prototypes).T  # (N, classes)
            is_true = functional.one_hot(labels, len(self.prototypes)).to(cosines.dtype)
            loss = functional.cross_entropy(self.scale * (cosines - self.margin * is_true), labels)
        return LossParts(loss, loss, torch.zeros_like(loss), torch.zeros_like(loss))


class CosFace(Method):
    """A plain CosFace network with LSH codes."""

    name: ClassVar[str] = "cosface"
    paper: ClassVar[str] = "Wang et al., CVPR 2018"

    scale: float = Field(default=20.0, gt=0, description="factor on the cosine logits")
    margin: float = Field(default=0.5, ge=0, lt=2, description="taken off the true class's cosine")

    def build_head(self, config: ModelConfig) -> CosFaceHead:
        """Make the random directions."""
        return CosFaceHead(config.feature_dim, config.num_bits)

    def build_loss(self, config: ModelConfig, num_classes: int) -> CosFaceLoss:
        """Make the loss with its class weights."""
        return CosFaceLoss(num_classes, config.feature_dim, self.scale, self.margin)
