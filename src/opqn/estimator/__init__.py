"""OPQN for ready-made face vectors, in the manner of scikit-learn; no torch."""

from __future__ import annotations

from opqn.estimator.quantizer import OPQNQuantizer

__all__ = ["OPQNQuantizer"]
