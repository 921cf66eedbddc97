"""The libraries of the extra ``faces``, imported when they are first used."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from opqn.errors import OpqnError


def require(name: str) -> ModuleType:
    """Import ``cv2``, ``onnx``, ``onnxruntime`` or a module of theirs.

    Raises:
        OpqnError: it is not installed, or does not load.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise OpqnError(
            f"finding and describing faces needs {name.partition('.')[0]}, which cannot be imported ({error}): "
            "pip install 'opqn[faces]'"
        ) from error
