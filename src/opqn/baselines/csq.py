"""CSQ: central similarity quantization.

Yuan, Wang, Zhang, Tay, Jie, Liu, Feng, *Central Similarity Quantization for Efficient Image and Video Retrieval*,
CVPR 2020. Every class gets a fixed binary centre, and the code's relaxation h in 0..1 is drawn to the centre c of its
class bit by bit (the numbers are the paper's)::

    central      = mean over n, bits of -(c log h + (1 - c) log(1 - h))        (4)
    quantization = mean over n, bits of log cosh(|2h - 1| - 1)                 (6)
    total        = central + weight * quantization                             (7)

Centres are rows of a Hadamard matrix H and of -H where the length is a power of two and has enough of them (twice the
length); otherwise they are drawn with half of their bits set, as the paper's Algorithm 1 draws bits with probability
one half. Balanced, distinct draws are our reading.
"""

from __future__ import annotations

from typing import ClassVar, Final

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from opqn.baselines.hamming import HashHead, HashOutput
from opqn.baselines.method import Method
from opqn.codebooks import hadamard_matrix
from opqn.losses import LossParts
from opqn.model import ModelConfig

DRAWS: Final = 4  # candidates a centre, so that enough distinct ones are left


def hash_centers(num_classes: int, num_bits: int, seed: int = 0) -> NDArray[np.float32]:
    """Return (classes, bits) float32 centres of -1 and 1, distinct where the length has enough words.

    Args:
        num_classes: centres wanted.
        num_bits: their length.
        seed: of those that are drawn.
    """
    if not num_bits & (num_bits - 1) and num_classes <= 2 * num_bits:
        rows = np.sign(hadamard_matrix(num_bits))
        return np.concatenate([rows, -rows])[:num_classes].astype(np.float32)
    balanced = np.where(np.arange(num_bits) < num_bits // 2, 1.0, -1.0)
    drawn = np.random.default_rng(seed).permuted(np.tile(balanced, (DRAWS * num_classes, 1)), axis=1)
    first = np.sort(np.unique(drawn, axis=0, return_index=True)[1])
    return np.resize(drawn[first], (num_classes, num_bits)).astype(np.float32)  # from the start again if too few


class CSQLoss(nn.Module):
    """Cross-entropy with the bits of the class's centre, and the quantization term."""

    centers: Tensor

    def __init__(self, num_classes: int, num_bits: int, quantization: float, seed: int = 0) -> None:
        super().__init__()
        self.quantization = quantization
        self.register_buffer("centers", torch.from_numpy(hash_centers(num_classes, num_bits, seed)))  # (classes, bits)

    def forward(self, output: HashOutput, labels: Tensor) -> LossParts:
        """Return the loss of a batch with (N,) int64 labels."""
        with torch.autocast(labels.device.type, enabled=False):
            # h = (1 + tanh u) / 2 = sigmoid(2u): from the logits there is a gradient where tanh has none left.
            targets = (1 + self.centers[labels]) / 2  # (N, bits)
            central = functional.binary_cross_entropy_with_logits(2 * output.raw, targets)
            error = (output.values.abs() - 1).cosh().log().mean()
        return LossParts(central + self.quantization * error, central, error, torch.zeros_like(error))


class CSQ(Method):
    """Central similarity quantization."""

    name: ClassVar[str] = "csq"
    paper: ClassVar[str] = "Yuan et al., CVPR 2020"

    quantization: float = Field(default=1e-4, ge=0, description="weight of the quantization term")
    seed: int = Field(default=0, ge=0, description="of centres that are drawn")

    def build_head(self, config: ModelConfig) -> HashHead:
        """Make a tanh hash layer."""
        return HashHead(config.feature_dim, config.num_bits)

    def build_loss(self, config: ModelConfig, num_classes: int) -> CSQLoss:
        """Make the loss with its fixed centres."""
        return CSQLoss(num_classes, config.num_bits, self.quantization, self.seed)
