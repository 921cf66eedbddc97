"""DCDH: deep center-based dual-constrained hashing.

Zhang, Zhe, Chen, Yan, *Deep center-based dual-constrained hashing for discriminative face image retrieval*, Pattern
Recognition 117, 107976, 2021. Class centres u are learned with the network. Both constraints and the regression::

    classwise  = mean over n of -log( exp(-a/2 |r - u_y|^2) / sum_j exp(-a/2 |r - u_j|^2) )
    separation = mean over classes i != j of log(1 + exp(bits/2 * cos(u_i, u_j)))
    W          = (Y'Y + ridge I)^-1 Y' sign(r),    b = sign(Y W + weight * r)    (no gradient)
    regression = mean over n of |r - b|^2
    total      = classwise + separation weight * separation + regression weight * regression

with Y the one-hot labels of the batch, so that row y of W is the sum of the class's signs over its number plus the
ridge. Constants are those of the authors' public code; their classwise term adds 1e-6 inside the logarithm and their
separation counts the diagonal as log 2, both left out here.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from opqn.baselines.dcwh import gaussian_logits
from opqn.baselines.hamming import HashHead, HashOutput
from opqn.baselines.method import Method
from opqn.losses import LossParts
from opqn.model import ModelConfig


class DCDHLoss(nn.Module):
    """Class-wise Gaussian loss, separation of the centres, and regression to common codes; it owns the centres."""

    def __init__(
        self,
        num_classes: int,
        num_bits: int,
        inverse_variance: float,
        separation: float,
        regression: float,
        ridge: float,
    ) -> None:
        super().__init__()
        self.inverse_variance = inverse_variance
        self.separation = separation
        self.regression = regression
        self.ridge = ridge
        self.centers = nn.Parameter(torch.randn(num_classes, num_bits))  # (classes, bits)

    def common_codes(self, values: Tensor, labels: Tensor) -> Tensor:
        """Return (N, bits) of -1 and 1: what the labels and the outputs say together; of nothing said, 0."""
        signs = values.sign()  # (N, bits)
        sums = torch.zeros_like(self.centers).index_add_(0, labels, signs)  # (classes, bits)
        counts = torch.bincount(labels, minlength=len(self.centers)).unsqueeze(1)  # (classes, 1)
        weights = sums / (counts + self.ridge)
        return (weights[labels] + self.regression * values).sign()

    def forward(self, output: HashOutput, labels: Tensor) -> LossParts:
        """Return the loss of a batch with (N,) int64 labels."""
        values = output.values  # (N, bits)
        num_classes, num_bits = self.centers.shape
        with torch.autocast(labels.device.type, enabled=False):
            logits = gaussian_logits(values, self.centers, self.inverse_variance)
            classwise = functional.cross_entropy(logits, labels)
            units = functional.normalize(self.centers)
            likeness = functional.softplus(num_bits / 2 * units @ units.T)  # (classes, classes)
            separation = (likeness.sum() - likeness.trace()) / (num_classes * (num_classes - 1))
            codes = self.common_codes(values.detach(), labels)
            regression = (values - codes).square().sum(dim=1).mean()
        total = classwise + self.separation * separation + self.regression * regression
        return LossParts(total, classwise, regression, separation)


class DCDH(Method):
    """Deep center-based dual-constrained hashing."""

    name: ClassVar[str] = "dcdh"
    paper: ClassVar[str] = "Zhang, Zhe, Chen, Yan, Pattern Recognition 2021"

    inverse_variance: float = Field(default=0.25, gt=0, description="1 / sigma^2 of a class")
    separation: float = Field(default=0.1, ge=0, description="weight of the distance between centres")
    regression: float = Field(default=0.01, ge=0, description="weight of the common codes, in them and in the loss")
    ridge: float = Field(default=1.0, gt=0, description="of the regression")

    def build_head(self, config: ModelConfig) -> HashHead:
        """Make a hash layer without activation."""
        return HashHead(config.feature_dim, config.num_bits, activation="identity")

    def build_loss(self, config: ModelConfig, num_classes: int) -> DCDHLoss:
        """Make the loss with its centres."""
        return DCDHLoss(
            num_classes, config.num_bits, self.inverse_variance, self.separation, self.regression, self.ridge
        )
