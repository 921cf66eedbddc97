"""What every method that is trained here has in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import nn

from opqn._settings import Settings
from opqn.model import ModelConfig


class Method(Settings):
    """A method's own settings, and what it puts behind and beside the network.

    A *head* is a module with ``num_books`` and ``num_words`` (the shape of its codes), and

    - ``head(features)``: (N, M*d) features to an output that the method's loss takes. Its ``probs`` are (N, B, K) soft
      assignments whose argmax is the code;
    - ``head.encode(features)``: (N, B) uint8 codes;
    - ``head.lookup_tables(features, query_temperature)``: (Q, B, K) float32 tables; an item's score is the sum of the
      entries that its code names. Methods without a temperature do not look at it.

    A *loss* is a module that takes a head's output and (N,) int64 labels and returns :class:`opqn.losses.LossParts`, of
    which ``original`` is what the method learns identities from, ``quantized`` what keeps codes near to it, and
    ``entropy`` what else it regularises; the table in the documentation says which term is which.
    """

    name: ClassVar[str]
    paper: ClassVar[str]

    @abstractmethod
    def build_head(self, config: ModelConfig) -> nn.Module:
        """Make the head for the network's ``config.feature_dim`` features and codes of ``config.num_bits``."""

    @abstractmethod
    def build_loss(self, config: ModelConfig, num_classes: int) -> nn.Module:
        """Make the loss; whatever weights it owns are trained with the network and are no part of a saved model."""
