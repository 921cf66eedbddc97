"""Orthonormal Product Quantization Network: a face image becomes a few small integers, a query becomes a table.

``import opqn`` is cheap: a name below loads its module, and with it torch or pillow, when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opqn._version import __version__
    from opqn.backbones import build_backbone
    from opqn.codebooks import CodebookKind, orthonormal_codebooks
    from opqn.data.folders import scan_folder
    from opqn.data.images import load_image
    from opqn.data.splits import Split, make_splits
    from opqn.encoders import FaceEncoder
    from opqn.errors import ConfigError, CorruptFileError, DataError, ModelMismatchError, OpqnError
    from opqn.estimator import OPQNQuantizer
    from opqn.evaluation import EvaluationReport, evaluate, evaluate_features
    from opqn.gallery import Gallery, GalleryBusyError
    from opqn.index import CodeIndex, ReferenceIndex
    from opqn.losses import LossParts, OPQNLoss
    from opqn.model import OPQN, ModelConfig
    from opqn.quantizer import OrthonormalQuantizer

__all__ = [  # noqa: RUF022 (plain alphabetical order)
    "__version__",
    "build_backbone",
    "CodebookKind",
    "CodeIndex",
    "ConfigError",
    "CorruptFileError",
    "DataError",
    "evaluate",
    "evaluate_features",
    "EvaluationReport",
    "FaceEncoder",
    "Gallery",
    "GalleryBusyError",
    "load_image",
    "LossParts",
    "make_splits",
    "ModelConfig",
    "ModelMismatchError",
    "OPQN",
    "OpqnError",
    "OPQNLoss",
    "OPQNQuantizer",
    "orthonormal_codebooks",
    "OrthonormalQuantizer",
    "ReferenceIndex",
    "scan_folder",
    "Split",
]

_HOMES = {
    "__version__": "_version",
    "build_backbone": "backbones",
    "CodebookKind": "codebooks",
    "CodeIndex": "index",
    "ConfigError": "errors",
    "CorruptFileError": "errors",
    "DataError": "errors",
    "evaluate": "evaluation",
    "evaluate_features": "evaluation",
    "EvaluationReport": "evaluation",
    "FaceEncoder": "encoders",
    "Gallery": "gallery",
    "GalleryBusyError": "gallery",
    "load_image": "data.images",
    "LossParts": "losses",
    "make_splits": "data.splits",
    "ModelConfig": "model",
    "ModelMismatchError": "errors",
    "OPQN": "model",
    "OpqnError": "errors",
    "OPQNLoss": "losses",
    "OPQNQuantizer": "estimator",
    "orthonormal_codebooks": "codebooks",
    "OrthonormalQuantizer": "quantizer",
    "ReferenceIndex": "index",
    "scan_folder": "data.folders",
    "Split": "data.splits",
}


def __getattr__(name: str) -> Any:
    """Load a public name from its module (PEP 562) and keep it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'opqn' has no attribute {name!r}")
    value = getattr(import_module(f"opqn.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})
