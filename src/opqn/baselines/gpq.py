"""GPQ: generalized product quantization, its supervised part.

Jang, Cho, *Generalized Product Quantization Network for Semi-supervised Image Retrieval*, CVPR 2020. Sub-vectors x_m
and codewords z_mk are scaled to length one (intra-normalization); with them::

    p_mk           = softmax over k of assignment scale * <x_m, z_mk>,    q_m = sum_k p_mk z_mk
    S_nj           = sum over m of <x_m of sample n, q_m of sample j>
    N-pair         = mean over n of -sum_j t_nj log softmax over j of S_nj,    t_nj = [y_n = y_j] / number of y_n
    classification = mean over n of CE(class scale * sum over m of <x_m, W_ym>, y),    W_ym of length one
    total          = N-pair + weight * classification

Search is asymmetric: ``T[m, k] = <x_m, z_mk>``. The paper's third loss, the entropy mini-max of unlabelled images,
has nothing to work on here.

Our reading: scales 20 and 4 and the weight 0.1; the classifier adds up the subspaces' cosines; the public code's
penalty on lengths is left out, as everything has length one. Positives are the samples of a batch that happen to
share a person, the sample itself first of all, for batches are drawn as for every method.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from opqn.baselines.method import Method
from opqn.losses import LossParts
from opqn.model import ModelConfig


class GPQOutput(NamedTuple):
    """What the head makes of a batch in training."""

    units: Tensor
    """(N, M, d) sub-vectors of length one."""
    probs: Tensor
    """(N, M, K) soft assignments."""
    soft: Tensor
    """(N, M, d) soft-quantized sub-vectors q."""


class GPQHead(nn.Module):
    """Soft product quantization by cosine to learned codewords.

    Args:
        num_books: M.
        book_dim: d.
        num_words: K.
        assignment_scale: factor on the cosines in the softmax.
    """

    def __init__(self, num_books: int, book_dim: int, num_words: int, assignment_scale: float) -> None:
        super().__init__()
        self.num_books = num_books
        self.num_words = num_words
        self.assignment_scale = assignment_scale
        self.codebooks = nn.Parameter(torch.randn(num_books, book_dim, num_words))  # (M, d, K)

    def _cosines(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        subvectors = features.to(self.codebooks.dtype).reshape(len(features), self.num_books, -1)
        units = functional.normalize(subvectors, dim=2)  # (N, M, d)
        words = functional.normalize(self.codebooks, dim=1)  # (M, d, K)
        return units, words, torch.matmul(units.transpose(0, 1), words).transpose(0, 1)  # (N, M, K)

    def forward(self, features: Tensor) -> GPQOutput:
        """Assign (N, M*d) features softly to codewords, in float32 also under autocast."""
        with torch.autocast(features.device.type, enabled=False):
            units, words, cosines = self._cosines(features)
            probs = (self.assignment_scale * cosines).softmax(dim=2)
            soft = torch.matmul(probs.transpose(0, 1), words.transpose(1, 2)).transpose(0, 1)  # (N, M, d)
        return GPQOutput(units, probs, soft)

    @torch.no_grad()
    def encode(self, features: Tensor) -> Tensor:
        """Return the (N, M) uint8 codes of (N, M*d) features: the word of the highest cosine."""
        return self._cosines(features)[2].argmax(dim=2).to(torch.uint8)

    @torch.no_grad()
    def lookup_tables(self, features: Tensor, query_temperature: float | None = None) -> Tensor:  # noqa: ARG002
        """Return the (Q, M, K) float32 cosines of (Q, M*d) features; there is no temperature in them."""
        return self._cosines(features)[2].contiguous()


class GPQLoss(nn.Module):
    """N-pair product quantization loss and cosine classification; it owns the class weights."""

    def __init__(
        self, num_classes: int, num_books: int, book_dim: int, class_scale: float, classification: float
    ) -> None:
        super().__init__()
        self.class_scale = class_scale
        self.classification = classification
        self.prototypes = nn.Parameter(torch.empty(num_classes, num_books, book_dim))  # (classes, M, d)
        nn.init.xavier_uniform_(self.prototypes)

    def forward(self, output: GPQOutput, labels: Tensor) -> LossParts:
        """Return the loss of a batch with (N,) int64 labels."""
        with torch.autocast(labels.device.type, enabled=False):
            units = output.units.flatten(1)  # (N, M*d)
            same = (labels[:, None] == labels).to(units.dtype)  # (N, N)
            n_pair = functional.cross_entropy(units @ output.soft.flatten(1).T, same / same.sum(dim=1, keepdim=True))
            weights = functional.normalize(self.prototypes, dim=2).flatten(1)  # (classes, M*d)
            classification = functional.cross_entropy(self.class_scale * units @ weights.T, labels)
        total = n_pair + self.classification * classification
        return LossParts(total, classification, n_pair, torch.zeros_like(n_pair))


class GPQ(Method):
    """Generalized product quantization, supervised."""

    name: ClassVar[str] = "gpq"
    paper: ClassVar[str] = "Jang, Cho, CVPR 2020"

    assignment_scale: float = Field(default=20.0, gt=0, description="factor on the cosines of the soft assignment")
    class_scale: float = Field(default=4.0, gt=0, description="factor on the cosines of the classifier")
    classification: float = Field(default=0.1, ge=0, description="weight of the classification")

    def build_head(self, config: ModelConfig) -> GPQHead:
        """Make the quantizer."""
        return GPQHead(config.num_books, config.book_dim, config.num_words, self.assignment_scale)

    def build_loss(self, config: ModelConfig, num_classes: int) -> GPQLoss:
        """Make the loss with its class weights."""
        return GPQLoss(num_classes, config.num_books, config.book_dim, self.class_scale, self.classification)
