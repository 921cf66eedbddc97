"""DPAH: deep position-aware hashing.

Wang, Wang, Qiao, Shan, Chen, *Deep Position-Aware Hashing for Semantic Continuous Image Retrieval*, WACV 2020.
Learned class centres stand for the whole data set: an image takes its position among them. A kurtosis (KT) loss gives
every bit two peaks, so that little is lost when it is cut to a sign::

    d_nj     = (bits - <h_n, tanh(u_j)>) / 2                                     (relaxed Hamming distance)
    position = mean over n of -log( exp(-d_ny) / sum_j exp(-d_nj) )
    kurtosis = mean over bits of E[(h - E h)^4] / E[(h - E h)^2]^2 - 1           (moments over the batch)
    total    = position + weight * kurtosis

Our reading, for the paper was not at hand: the softmax over negative distances, centres kept in the cube by a tanh,
and the weight. One is the least kurtosis there is, that of two peaks of equal weight.
"""

from __future__ import annotations

from typing import ClassVar, Final

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from opqn.baselines.hamming import HashHead, HashOutput
from opqn.baselines.method import Method
from opqn.losses import LossParts
from opqn.model import ModelConfig

VARIANCE_FLOOR: Final = 1e-6  # a bit that is the same for the whole batch has no kurtosis


def kurtosis(values: Tensor) -> Tensor:
    """Return the (bits,) kurtosis of (N, bits) values over the batch."""
    centred = values - values.mean(dim=0)
    return centred.pow(4).mean(dim=0) / (centred.square().mean(dim=0).square() + VARIANCE_FLOOR)


class DPAHLoss(nn.Module):
    """Position among the class centres, and two-peaked bits; it owns the centres."""

    def __init__(self, num_classes: int, num_bits: int, kurtosis_weight: float) -> None:
        super().__init__()
        self.kurtosis_weight = kurtosis_weight
        self.centers = nn.Parameter(torch.randn(num_classes, num_bits))  # (classes, bits)

    def forward(self, output: HashOutput, labels: Tensor) -> LossParts:
        """Return the loss of a batch with (N,) int64 labels."""
        num_bits = self.centers.shape[1]
        with torch.autocast(labels.device.type, enabled=False):
            distances = (num_bits - output.values @ self.centers.tanh().T) / 2  # (N, classes)
            position = functional.cross_entropy(-distances, labels)
            peaks = kurtosis(output.values).mean() - 1
        return LossParts(position + self.kurtosis_weight * peaks, position, peaks, torch.zeros_like(peaks))


class DPAH(Method):
    """Deep position-aware hashing."""

    name: ClassVar[str] = "dpah"
    paper: ClassVar[str] = "Wang et al., WACV 2020"

    kurtosis: float = Field(default=0.1, ge=0, description="weight of the kurtosis loss")

    def build_head(self, config: ModelConfig) -> HashHead:
        """Make a tanh hash layer."""
        return HashHead(config.feature_dim, config.num_bits)

    def build_loss(self, config: ModelConfig, num_classes: int) -> DPAHLoss:
        """Make the loss with its centres."""
        return DPAHLoss(num_classes, config.num_bits, self.kurtosis)
