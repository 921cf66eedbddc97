"""What turns faces into codes and queries into tables: found in photographs, cut out already, or given as vectors."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeGuard, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from opqn._files import write_synced
from opqn.data.images import load_image
from opqn.errors import ConfigError, CorruptFileError

if TYPE_CHECKING:
    from opqn.estimator import OPQNQuantizer
    from opqn.faces import Face, FacePipeline

FILE: Final = "encoder.json"
DETECTOR: Final = "detector.onnx"
EMBEDDER: Final = "embedder.onnx"
FORMAT_VERSION: Final = 1
_MAX_BYTES: Final = 1 << 20


@runtime_checkable
class Encoder(Protocol):
    """What a gallery needs: an :class:`opqn.OPQN`, :class:`opqn.OPQNQuantizer`, :class:`FaceEncoder`, or the like."""

    @property
    def num_books(self) -> int:
        """M, numbers in a code."""

    @property
    def num_words(self) -> int:
        """K, values each number can take."""

    @property
    def fingerprint(self) -> str:
        """What only an equal encoder has too; codes of different encoders are never brought together."""

    def encode(self, images: Any) -> NDArray[np.uint8]:
        """Return (N, M) uint8 codes."""

    def lookup_tables(self, images: Any) -> NDArray[np.float32]:
        """Return (Q, M, K) float32 tables."""


class FaceEncoder:
    """Photographs in, codes of the faces in them out: a pipeline that finds and embeds faces, then a quantizer.

    Args:
        quantizer: fitted on vectors of the pipeline's network. Without it :func:`ready_quantizer`, for SFace.
        pipeline: what finds, aligns and embeds. Without it YuNet and SFace, whose weights come with ``opqn[faces]``.

    Raises:
        ConfigError: the quantizer takes vectors of another length than the pipeline's network gives.
    """

    def __init__(self, quantizer: OPQNQuantizer | None = None, pipeline: FacePipeline | None = None) -> None:
        from opqn.faces import FacePipeline  # noqa: PLC0415 (what is not used is not loaded)

        self.quantizer = quantizer if quantizer is not None else ready_quantizer()
        self.pipeline = pipeline if pipeline is not None else FacePipeline()
        if self.quantizer.n_features_in_ != self.pipeline.embedder.dim:
            raise ConfigError(
                f"the quantizer was fitted on vectors of {self.quantizer.n_features_in_} numbers and the face network "
                f"gives {self.pipeline.embedder.dim}; fit one on vectors of this network"
            )

    @property
    def num_books(self) -> int:
        """M, numbers in a code."""
        return int(self.quantizer.num_books)

    @property
    def num_words(self) -> int:
        """K, values each number can take."""
        return int(self.quantizer.num_words)

    @cached_property
    def fingerprint(self) -> str:
        """sha256, in hex, of the network's weights and preprocessing and the quantizer; not of how faces are found."""
        parts = f"{self.pipeline.embedder.fingerprint} {self.quantizer.fingerprint}"
        return hashlib.sha256(parts.encode()).hexdigest()

    def find(self, photo: str | Path | bytes | Image.Image | NDArray[np.uint8]) -> list[Face]:
        """Find and embed the faces in a photograph, the most prominent one first.

        Raises:
            UnreadableImageError: (a DataError) the photograph cannot be read.
        """
        pixels = photo if isinstance(photo, np.ndarray) else np.asarray(load_image(photo))
        faces = self.pipeline.find(pixels)
        vectors = self.pipeline.embed([face.crop for face in faces])
        return [replace(face, vector=vector) for face, vector in zip(faces, vectors, strict=True)]

    def encode(self, images: Any) -> NDArray[np.uint8]:
        """Return the (N, M) uint8 codes of faces that are cut out and aligned; see :meth:`find` for photographs."""
        return self.quantizer.encode(self._vectors(images))

    def lookup_tables(self, images: Any) -> NDArray[np.float32]:
        """Return the (Q, M, K) float32 tables of faces that are cut out and aligned."""
        return self.quantizer.lookup_tables(self._vectors(images))

    def _vectors(self, images: Any) -> NDArray[np.float32]:
        if isinstance(images, (str, Path, bytes, Image.Image)):
            images = [images]
        return self.pipeline.embed(
            [image if isinstance(image, np.ndarray) else np.asarray(load_image(image)) for image in images]
        )


def ready_quantizer() -> OPQNQuantizer:
    """Return the quantizer for SFace vectors that comes with opqn: 64 bits, ready to use."""
    from opqn.estimator import OPQNQuantizer  # noqa: PLC0415

    with resources.as_file(resources.files("opqn") / "weights" / "sface-64") as folder:
        return OPQNQuantizer.load(folder)


def ready_threshold(encoder: Encoder, num_people: int, fpir: float = 0.01) -> float | None:
    """Return the lowest score that names a person, measured for an encoder that comes with opqn; None for any other."""
    del encoder, num_people, fpir
    return None


def vector_quantizer(encoder: Encoder) -> OPQNQuantizer:
    """Return what takes vectors in an encoder.

    Raises:
        ConfigError: it takes none.
    """
    if isinstance(encoder, FaceEncoder):
        return encoder.quantizer
    if _is_quantizer(encoder):
        return encoder
    raise ConfigError(f"the encoder, a {type(encoder).__name__}, takes pictures and no vectors")


def save_encoder(encoder: Encoder, folder: Path) -> None:
    """Write what :func:`load_encoder` needs into a new folder; of an encoder of another kind, only what it is."""
    folder.mkdir()
    facts: dict[str, Any] = {"kind": "other"}
    if isinstance(encoder, FaceEncoder):
        facts = {"kind": "faces", **_save_pipeline(encoder.pipeline, folder)}
        encoder.quantizer.save(folder / "quantizer")
    elif _is_quantizer(encoder):
        facts = {"kind": "vectors"}
        encoder.save(folder / "quantizer")
    elif hasattr(encoder, "save_pretrained"):
        facts = {"kind": "crops"}
        encoder.save_pretrained(folder / "model")
    document = {"format": "opqn-encoder", "version": FORMAT_VERSION, "fingerprint": encoder.fingerprint, **facts}
    write_synced(folder / FILE, json.dumps(document, indent=2).encode())


def load_encoder(folder: Path) -> Encoder:
    """Load an encoder that :func:`save_encoder` wrote. Nothing in the folder is executed.

    Raises:
        ConfigError: it is of another kind, and has to be given by who made it.
        CorruptFileError: a file is missing, changed, or of a newer opqn.
        DataError: the weights of its face network cannot be found.
    """
    facts = _read(folder / FILE)
    kind = facts.get("kind")
    if kind == "crops":
        from opqn.model import OPQN, find_device  # noqa: PLC0415 (torch)

        return OPQN.from_pretrained(folder / "model", find_device())
    if kind in ("faces", "vectors"):
        from opqn.estimator import OPQNQuantizer  # noqa: PLC0415

        quantizer = OPQNQuantizer.load(folder / "quantizer")
        if kind == "vectors":
            return quantizer
        return FaceEncoder(quantizer, _load_pipeline(facts, folder))
    if kind == "other":
        raise ConfigError(f"{folder.parent} was made with an encoder of its maker's own; pass it when opening")
    raise CorruptFileError(f"{folder / FILE}: unknown kind {kind!r}; restore it from a backup")


def _is_quantizer(encoder: Encoder) -> TypeGuard[OPQNQuantizer]:
    module = sys.modules.get("opqn.estimator")  # not loaded, which takes scikit-learn, there is none
    return module is not None and isinstance(encoder, module.OPQNQuantizer)


def _save_pipeline(pipeline: FacePipeline, folder: Path) -> dict[str, Any]:
    """Describe a pipeline, and copy networks that are not opqn's own: a gallery is to outlive where they lay."""
    from opqn.faces.weights import SFACE, YUNET  # noqa: PLC0415

    detector, embedder = pipeline.detector, pipeline.embedder
    paths = {DETECTOR: (detector.weights.path, YUNET), EMBEDDER: (embedder.weights_path, SFACE)}
    own = {}
    for name, (path, known) in paths.items():
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        if digest != known.sha256:
            write_synced(folder / name, data)
            own[name] = digest
    return {
        "detector": detector.settings.model_dump(mode="json"),
        "embedder": embedder.config.model_dump(mode="json"),
        "networks": own,
    }


def _load_pipeline(facts: dict[str, Any], folder: Path) -> FacePipeline:
    from opqn.faces import DetectorSettings, EmbedderConfig, FaceDetector, FaceEmbedder, FacePipeline  # noqa: PLC0415

    try:
        own = dict(facts["networks"])
        settings, config = DetectorSettings(**facts["detector"]), EmbedderConfig(**facts["embedder"])
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(f"{folder / FILE} is damaged: {error}; restore it from a backup") from error
    paths = {name: folder / name if name in own else None for name in (DETECTOR, EMBEDDER)}
    detector = FaceDetector(settings, weights=paths[DETECTOR], sha256=own.get(DETECTOR))
    return FacePipeline(detector, FaceEmbedder(paths[EMBEDDER], config, sha256=own.get(EMBEDDER)))


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            facts = json.loads(file.read(_MAX_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptFileError(f"{path} cannot be read: {error}; restore it from a backup") from error
    if not isinstance(facts, dict) or facts.get("format") != "opqn-encoder":
        raise CorruptFileError(f"{path} does not describe an encoder; restore it from a backup")
    if facts.get("version") != FORMAT_VERSION:
        raise CorruptFileError(
            f"{path} has format version {facts.get('version')!r} and this opqn reads {FORMAT_VERSION}: update opqn"
        )
    return facts
