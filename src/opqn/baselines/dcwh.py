"""DCWH: deep class-wise hashing.

Zhe, Chen, Yan, *Deep Class-Wise Hashing: Semantics-Preserving Hashing via Class-Wise Loss*, IEEE TNNLS 31(5), 2020
(arXiv 1803.04137, 2018). The outputs r of a class are a Gaussian around its centre u::

    classwise = mean over n of -log( exp(-a/2 |r - u_y|^2) / sum_j exp(-a/2 |r - u_j|^2) ),    a = 1 / sigma^2
    cubic     = mean over n of sum over bits of relu(-1.1 - r) + relu(r - 1.1)       (stay in the cube)
    vertex    = mean over n of |r - sign(r)|^2                                       (go to its corners)
    total     = classwise + cubic weight * cubic + vertex weight * vertex

Our reading: the paper has two stages, cubic first and vertex then; here both are on from the start, as in a public
implementation, whose a and slack of 0.1 are taken too. Centres are learned by gradient, an option there, instead of
being set to the class means every other epoch. The weights are ours.
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

CUBE: Final = 1.1  # half the side of the cube that outputs are kept in


def gaussian_logits(values: Tensor, centers: Tensor, inverse_variance: float) -> Tensor:
    """Return (N, classes) logits whose softmax is the Gaussian class-wise likelihood of (N, bits) values.

    ``-a/2 |r - u|^2`` without ``-a/2 |r|^2``, which is the same for every class and cancels in the softmax.
    """
    return inverse_variance * (values @ centers.T - 0.5 * centers.square().sum(dim=1))


class DCWHLoss(nn.Module):
    """Class-wise Gaussian loss with cubic and vertex constraint; it owns the centres."""

    def __init__(self, num_classes: int, num_bits: int, inverse_variance: float, cubic: float, vertex: float) -> None:
        super().__init__()
        self.inverse_variance = inverse_variance
        self.cubic = cubic
        self.vertex = vertex
        self.centers = nn.Parameter(torch.randn(num_classes, num_bits))  # (classes, bits)

    def forward(self, output: HashOutput, labels: Tensor) -> LossParts:
        """Return the loss of a batch with (N,) int64 labels."""
        values = output.values  # (N, bits)
        with torch.autocast(labels.device.type, enabled=False):
            logits = gaussian_logits(values, self.centers, self.inverse_variance)
            classwise = functional.cross_entropy(logits, labels)
            cubic = functional.relu(values.abs() - CUBE).sum(dim=1).mean()
            vertex = (values - values.detach().sign()).square().sum(dim=1).mean()
        return LossParts(classwise + self.cubic * cubic + self.vertex * vertex, classwise, vertex, cubic)


class DCWH(Method):
    """Deep class-wise hashing."""

    name: ClassVar[str] = "dcwh"
    paper: ClassVar[str] = "Zhe, Chen, Yan, TNNLS 2020"

    inverse_variance: float = Field(default=0.5, gt=0, description="1 / sigma^2 of a class")
    cubic: float = Field(default=0.1, ge=0, description="weight of the cubic constraint")
    vertex: float = Field(default=0.001, ge=0, description="weight of the vertex constraint")

    def build_head(self, config: ModelConfig) -> HashHead:
        """Make a hash layer without activation."""
        return HashHead(config.feature_dim, config.num_bits, activation="identity")

    def build_loss(self, config: ModelConfig, num_classes: int) -> DCWHLoss:
        """Make the loss with its centres."""
        return DCWHLoss(num_classes, config.num_bits, self.inverse_variance, self.cubic, self.vertex)
