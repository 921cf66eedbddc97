"""DDQH: discriminative deep quantization hashing.

Tang, Lin, Li, Yang, *Discriminative Deep Quantization Hashing for Face Image Retrieval*, IEEE TNNLS 29(12), 2018. A
batch normalization quantization module (BNQ) makes the bits, and a classifier predicts the person from them::

    h            = tanh(batch norm(linear(x)))
    prediction   = mean over n of cross-entropy(V h + v, y)
    quantization = mean over n, bits of (|h| - 1)^2
    total        = prediction + weight * quantization

Our reading, for the paper was not at hand: the BNQ module is a batch norm without scale and shift, which balances
every bit and keeps it off the ends of the tanh; the prediction error is a softmax cross-entropy; the quantization
term and its weight are ours. The paper's own network, which joins two layers' maps, gives way to the backbone that
all methods share.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from opqn.baselines.hamming import HashHead, HashOutput
from opqn.baselines.method import Method
from opqn.losses import LossParts
from opqn.model import ModelConfig


class DDQHLoss(nn.Module):
    """Softmax classification of relaxed codes, and how far they are from codes; it owns the classifier."""

    def __init__(self, num_classes: int, num_bits: int, quantization: float) -> None:
        super().__init__()
        self.quantization = quantization
        self.classifier = nn.Linear(num_bits, num_classes)

    def forward(self, output: HashOutput, labels: Tensor) -> LossParts:
        """Return the loss of a batch with (N,) int64 labels."""
        with torch.autocast(labels.device.type, enabled=False):
            prediction = functional.cross_entropy(self.classifier(output.values), labels)
            error = (output.values.abs() - 1).square().mean()
        return LossParts(prediction + self.quantization * error, prediction, error, torch.zeros_like(error))


class DDQH(Method):
    """Discriminative deep quantization hashing."""

    name: ClassVar[str] = "ddqh"
    paper: ClassVar[str] = "Tang, Lin, Li, Yang, TNNLS 2018"

    quantization: float = Field(default=0.1, ge=0, description="weight of the quantization term")

    def build_head(self, config: ModelConfig) -> HashHead:
        """Make a tanh hash layer behind a batch norm."""
        return HashHead(config.feature_dim, config.num_bits, batch_norm=True)

    def build_loss(self, config: ModelConfig, num_classes: int) -> DDQHLoss:
        """Make the loss with its classifier."""
        return DDQHLoss(num_classes, config.num_bits, self.quantization)
