"""Exact search over codes: for each query the k items of highest score, in one defined order, to the last bit.

:func:`score` and :class:`ReferenceIndex` are the definition in plain NumPy: slow, short, and right. :class:`CodeIndex`
is the search engine; it equals them bit by bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opqn.index.reference import ReferenceIndex, score

if TYPE_CHECKING:
    from opqn.index.code_index import CodeIndex

__all__ = ["CodeIndex", "ReferenceIndex", "score"]


def __getattr__(name: str) -> Any:
    """Load the engine, and with it the compiled core, when it is first used."""
    if name == "CodeIndex":
        try:
            from opqn.index.code_index import CodeIndex  # noqa: PLC0415
        except ModuleNotFoundError as error:
            if error.name != "opqn.index._native":
                raise
            raise ImportError(
                "opqn's search core is not compiled for this Python. Installing opqn builds it, with a C++20 compiler: "
                "`pip install opqn`, or `make dev` in a checkout. ReferenceIndex searches without it, slowly"
            ) from error
        return CodeIndex
    raise AttributeError(f"module 'opqn.index' has no attribute {name!r}")
