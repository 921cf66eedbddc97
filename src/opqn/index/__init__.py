"""Exact search over codes: for each query the k items of highest score, in one defined order, to the last bit.

:func:`score` and :class:`ReferenceIndex` are the definition in plain NumPy: slow, short, and right. They are the oracle
that a native search core, standing beside them with the same interface, has to equal bit by bit.
"""

from opqn.index.reference import ReferenceIndex, score

__all__ = ["ReferenceIndex", "score"]
