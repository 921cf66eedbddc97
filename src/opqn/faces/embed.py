"""Aligned crops become vectors, by the ready-made network or by any ONNX face network."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from opqn._settings import Settings
from opqn.errors import ConfigError, DataError
from opqn.faces._require import require
from opqn.faces.detect import check_photo
from opqn.faces.graph import start_session
from opqn.faces.weights import SFACE, load_weights, read_weights

_MEANING: Final = "opqn.faces vectors 1"
"""Goes into every fingerprint; changes when the same settings come to mean other vectors."""


class EmbedderConfig(Settings):
    """How a network wants its input, and what to do with its output. As it stands, what SFace takes.

    A pixel value v of 0 to 255 is fed as ``(v - mean) / std``. Networks trained in the way of ArcFace take ``mean`` and
    ``std`` of 127.5 each, some 128.

    Attributes:
        input_size: height and width in pixels that crops are resized to.
        color: order of the colours in the input.
        mean: of each colour, in the order of ``color``, or one number for all.
        std: of each colour, likewise; not 0.
        layout: whether colours are the second axis of the input or the last.
        output: name of the output to take; without it, the network has to have one output.
        normalize: whether vectors are scaled to length 1.
        flip_average: whether the crop and its mirror image are both described and averaged, at twice the time.
    """

    input_size: int = Field(default=112, ge=16, le=1024)
    color: Literal["RGB", "BGR"] = "RGB"
    mean: float | tuple[float, float, float] = 0.0
    std: float | tuple[float, float, float] = 1.0
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    output: str | None = None
    normalize: bool = True
    flip_average: bool = False

    @field_validator("mean", "std")
    @classmethod
    def _check_finite(cls, value: float | tuple[float, float, float]) -> float | tuple[float, float, float]:
        if not np.isfinite(value).all():
            raise ValueError("it has to be finite")
        return value

    @field_validator("std")
    @classmethod
    def _check_nonzero(cls, value: float | tuple[float, float, float]) -> float | tuple[float, float, float]:
        if not np.all(value):
            raise ValueError("it cannot be 0")
        return value


class FaceEmbedder:
    """A face network run by onnxruntime on the processor: SFace, or one of your own.

    One embedder may be used by many threads at once. A face's vector never depends on the faces it comes with, nor on
    the number of threads.

    Attributes:
        config: how the network wants its input.
        dim: length D of its vectors.
        fingerprint: SHA-256, in hexadecimal, over the weights and ``config``; vectors of different fingerprints are not
            to be compared.

    Args:
        weights: an ONNX file of one input (1 or any number, 3, S, S) or (.., S, S, 3) and an output of one vector a
            face; SFace without it.
        config: for ``weights``; SFace takes what the class's defaults say, and only ``normalize`` and ``flip_average``
            are free.
        sha256: what the SHA-256 of ``weights`` has to be, in hexadecimal; unchecked without it.

    Raises:
        OpqnError: onnx or onnxruntime is not installed.
        DataError: the weights are not found, or the network has other inputs or outputs.
        CorruptFileError: the weights are damaged or read other files.
        ConfigError: the network does not run with ``config``, or ``config`` or ``sha256`` does not fit SFace.
    """

    def __init__(
        self,
        weights: str | Path | None = None,
        config: EmbedderConfig | None = None,
        *,
        sha256: str | None = None,
    ) -> None:
        self.config = config or EmbedderConfig()
        if weights is None:
            free = EmbedderConfig(normalize=self.config.normalize, flip_average=self.config.flip_average)
            if sha256 is not None or self.config != free:
                raise ConfigError("SFace has its own input and file; for another network, give its weights too")
        loaded = load_weights(SFACE) if weights is None else read_weights(weights, sha256)
        self.weights_path = loaded.path
        meaning = [_MEANING, loaded.sha256, self.config.model_dump(mode="json")]
        self.fingerprint = hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()
        self._session = start_session(loaded)
        self._input: str = self._session.get_inputs()[0].name
        self._output = self._choose_output()
        self._mean = np.broadcast_to(np.array(self.config.mean, np.float32), 3)
        self._factor = np.float32(1) / np.broadcast_to(np.array(self.config.std, np.float32), 3)
        self.dim = self._try_out()

    def embed(self, crops: NDArray[np.uint8] | Sequence[NDArray[np.uint8]], threads: int = 0) -> NDArray[np.float32]:
        """Describe aligned crops.

        Args:
            crops: (N, H, W, 3) uint8, RGB, or a sequence of (H, W, 3), which may differ in size.
            threads: how many faces are worked on at once; 0 for as many as there are cores.

        Returns:
            (N, D) float32, of length 1 if ``config.normalize``.

        Raises:
            ConfigError: crops of another shape or type, or ``threads`` below 0.
            DataError: the network gives values that are not finite.
        """
        for crop in crops:
            check_photo(crop)
        workers = min(count_threads(threads), len(crops))
        if workers < 2:
            vectors = [self._describe(crop) for crop in crops]
        else:
            with ThreadPoolExecutor(workers) as pool:
                vectors = list(pool.map(self._describe, crops))
        return np.stack(vectors) if vectors else np.zeros((0, self.dim), np.float32)

    def _describe(self, crop: NDArray[np.uint8]) -> NDArray[np.float32]:
        size = self.config.input_size
        if crop.shape[:2] != (size, size):
            cv2 = require("cv2")
            way = cv2.INTER_AREA if min(crop.shape[:2]) > size else cv2.INTER_LINEAR
            crop = cv2.resize(crop, (size, size), interpolation=way)
        vector = self._run(crop)
        if self.config.flip_average:
            vector = (vector + self._run(crop[:, ::-1])) * np.float32(0.5)
        if not np.isfinite(vector).all():
            raise DataError(f"the network {self.weights_path} gives values that are not finite; check its mean and std")
        if self.config.normalize:
            vector = vector / np.maximum(np.linalg.norm(vector), np.float32(1e-30))
        return vector

    def _run(self, crop: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the output for a crop of the right size, flat: (D,) for a face network."""
        pixels = crop[:, :, ::-1] if self.config.color == "BGR" else crop
        values = (pixels - self._mean) * self._factor  # (S, S, 3)
        if self.config.layout == "NCHW":
            values = values.transpose(2, 0, 1)
        output: NDArray[np.float32] = self._session.run(
            [self._output], {self._input: np.ascontiguousarray(values[None])}
        )[0]
        return output.reshape(-1)

    def _choose_output(self) -> str:
        names = [output.name for output in self._session.get_outputs()]
        wanted = self.config.output
        if wanted is None and len(names) > 1:
            raise ConfigError(f"{self.weights_path} has several outputs; set output to one of {', '.join(names)}")
        if wanted is not None and wanted not in names:
            raise ConfigError(f"{self.weights_path} has no output {wanted!r}; it has {', '.join(names)}")
        return wanted or str(names[0])

    def _try_out(self) -> int:
        """Run the network once, so that a wrong size or layout shows before any work; return the vectors' length."""
        size = self.config.input_size
        try:
            vector = self._run(np.zeros((size, size, 3), np.uint8))
        except Exception as error:  # onnxruntime's errors have no common base
            takes = self._session.get_inputs()[0]
            raise ConfigError(
                f"{self.weights_path} takes {takes.type} {takes.shape} and was given one face as float32 in "
                f"{self.config.layout} of {size} pixels; set input_size and layout to what it takes"
            ) from error
        if not 2 <= vector.size <= 65536:
            raise DataError(
                f"{self.weights_path} is no face network: its output {self._output} for one face has {vector.size} "
                "values, and 2 to 65,536 are wanted"
            )
        return int(vector.size)


def count_threads(threads: int) -> int:
    """Return ``threads``, or the number of cores this process may use for 0.

    Raises:
        ConfigError: it is below 0.
    """
    if threads < 0:
        raise ConfigError(f"threads is {threads}; it is a number of threads, or 0 for one a core")
    if threads:
        return threads
    affinity: Any = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
