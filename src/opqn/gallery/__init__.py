"""What a user keeps: people, pictures and codes, in one folder that survives a crash. No torch.

``catalog.sqlite`` is the truth, ``index/`` is derived from it and may be deleted at any time, ``encoder/`` is what
codes are made by. :class:`Gallery` is all there is to use; the other modules are its parts.
"""

from __future__ import annotations

from opqn.gallery.catalog import GalleryBusyError
from opqn.gallery.gallery import Gallery
from opqn.gallery.results import (
    AddReport,
    Candidate,
    FaceHit,
    FaceInfo,
    GalleryInfo,
    Identification,
    Person,
    QueryResult,
    VerifyReport,
)

__all__ = [
    "AddReport",
    "Candidate",
    "FaceHit",
    "FaceInfo",
    "Gallery",
    "GalleryBusyError",
    "GalleryInfo",
    "Identification",
    "Person",
    "QueryResult",
    "VerifyReport",
]
