"""A file of face vectors: a NumPy archive with ``vectors``, and if known ``people`` and ``paths``."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from opqn._files import atomic_write_bytes
from opqn.errors import DataError


class VectorSet(NamedTuple):
    """Vectors of faces."""

    vectors: NDArray[np.float32]
    """(N, D)."""
    people: NDArray[np.str_] | None = None
    """(N,) who each shows."""
    paths: NDArray[np.str_] | None = None
    """(N,) where each was found."""

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            OpqnError: the disk is full or the place cannot be written.
        """
        buffer = io.BytesIO()
        np.savez(buffer, **{name: array for name, array in self._asdict().items() if array is not None})
        atomic_write_bytes(path, buffer.getvalue())


def load_vectors(path: Path) -> VectorSet:
    """Read a file of vectors. Nothing in it is executed.

    Raises:
        DataError: there is no such file, it is no NumPy archive, or its arrays are of other shapes or types.
    """
    names = VectorSet._fields
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in names if name in file}
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # zipfile and NumPy raise nearly anything on a hostile file
        raise DataError(f"{path} is no NumPy archive of arrays; numpy.savez writes one") from error
    if "vectors" not in arrays:
        raise DataError(f"{path} has no array `vectors`; write it with numpy.savez(path, vectors=..., people=...)")
    vectors = arrays.pop("vectors")
    if vectors.ndim != 2 or vectors.dtype.kind != "f" or not vectors.size:
        raise DataError(f"{path}: `vectors` must be an (N, D) array of floats, not {vectors.shape} {vectors.dtype}")
    for name, array in arrays.items():
        if array.shape != (len(vectors),) or array.dtype.kind not in "Uiu":
            raise DataError(f"{path}: `{name}` must be {len(vectors)} strings or integers, one for each vector")
    texts = {name: array.astype(np.str_) for name, array in arrays.items()}
    return VectorSet(np.ascontiguousarray(vectors, dtype=np.float32), **texts)
