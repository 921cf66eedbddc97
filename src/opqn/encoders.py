"""What turns faces into codes and queries into tables: found in photographs, cut out already, or given as vectors."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache, cached_property, partial
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeGuard, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from opqn._files import write_synced
from opqn.data.images import SkippedImage, UnreadableImageError, load_image
from opqn.data.vectors import VectorSet
from opqn.errors import ConfigError, CorruptFileError, DataError

if TYPE_CHECKING:
    from opqn.data.folders import ImageFolder
    from opqn.estimator import OPQNQuantizer
    from opqn.faces import Face, FacePipeline

FILE: Final = "encoder.json"
DETECTOR: Final = "detector.onnx"
EMBEDDER: Final = "embedder.onnx"
FORMAT_VERSION: Final = 1
_MAX_BYTES: Final = 1 << 20
_AT_ONCE: Final = 256
_TAIL: Final = 10
"""Of the rarest rates, that what is rarer is extrapolated from."""


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


def embed_folder(
    pipeline: FacePipeline,
    folder: ImageFolder,
    *,
    aligned: bool = False,
    on_images: Callable[[int, int], None] = lambda _done, _all: None,
) -> tuple[VectorSet, list[SkippedImage]]:
    """Embed the most prominent face in each picture of a folder.

    Args:
        pipeline: what finds, aligns and embeds.
        folder: a folder a person.
        aligned: the pictures are faces cut out and aligned already, so none is looked for.
        on_images: told how many pictures are done, and how many there are.

    Returns:
        The vectors, and the pictures that cannot be read or show no face.

    Raises:
        DataError: no picture shows a face.
    """
    loads = [(place, partial(_pixels, folder.root / path)) for place, path in enumerate(folder.paths)]
    places: list[int] = []
    vectors: list[NDArray[np.float32]] = []
    skipped = list(folder.skipped)
    for place, found in _aligned_vectors(pipeline, loads) if aligned else _found_vectors(pipeline, loads):
        if isinstance(found, UnreadableImageError):
            skipped.append(SkippedImage(folder.paths[place], found.reason))
        elif isinstance(found, Exception):
            raise found
        elif found is None:
            skipped.append(SkippedImage(folder.paths[place], "there is no face in it"))
        else:
            places.append(place)
            vectors.append(found)
        on_images(place + 1, len(loads))
    if not vectors:
        raise DataError(f"no face was found in the {len(loads)} pictures in {folder.root}")
    people = np.array([folder.people[place] for place in places])
    return VectorSet(np.stack(vectors), people, np.array([folder.paths[place] for place in places])), skipped


Loads = Sequence[tuple[int, Callable[[], NDArray[np.uint8]]]]
Vector = NDArray[np.float32] | Exception | None


def _pixels(path: Path) -> NDArray[np.uint8]:
    return np.asarray(load_image(path))


def _found_vectors(pipeline: FacePipeline, loads: Loads) -> Iterator[tuple[int, Vector]]:
    for place, found in pipeline.process(loads):
        yield place, found if isinstance(found, Exception) else found[0].vector if found else None


def _aligned_vectors(pipeline: FacePipeline, loads: Loads) -> Iterator[tuple[int, Vector]]:
    def embed(load: tuple[int, Callable[[], NDArray[np.uint8]]]) -> tuple[int, Vector]:
        try:
            return load[0], pipeline.embedder.embed([load[1]()], threads=1)[0]
        except UnreadableImageError as error:
            return load[0], error

    with ThreadPoolExecutor(pipeline.threads) as pool:
        for start in range(0, len(loads), _AT_ONCE):
            yield from pool.map(embed, loads[start : start + _AT_ONCE])


def ready_quantizer() -> OPQNQuantizer:
    """Return the quantizer for SFace vectors that comes with opqn: 64 bits, ready to use."""
    from opqn.estimator import OPQNQuantizer  # noqa: PLC0415

    with resources.as_file(_weights("sface-64")) as folder:
        return OPQNQuantizer.load(folder)


@cache
def _ready_rates() -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(_weights("sface-64-thresholds.json").read_text(encoding="utf-8"))
    return facts


def _weights(name: str) -> Traversable:
    return resources.files("opqn") / "weights" / name


def ready_threshold(encoder: Encoder, num_people: int, fpir: float = 0.01) -> float | None:
    """Return the lowest score that names a person, measured for the quantizer that comes with opqn.

    The rate at which strangers are named was measured in a gallery of 2,874 people at many thresholds. For a larger
    one it is converted as in :func:`opqn.open_set.calibrate`; what was too rare to be seen is extrapolated, the
    threshold as a linear function of the rate's logarithm. A smaller one gets no lower threshold, though by that
    measure it could: pictures of one source, taken in the same light, are more alike than those it was measured on.

    Args:
        encoder: of a gallery.
        num_people: people in it.
        fpir: share of strangers that may be named.

    Returns:
        None for any other encoder.
    """
    facts = _ready_rates()
    if encoder.fingerprint not in facts["encoders"]:
        return None
    rate = -math.expm1(math.log1p(-fpir) * facts["num_people"] / max(num_people, facts["num_people"]))
    logs, thresholds = np.log(facts["rates"]), np.array(facts["thresholds"])  # from rare to frequent
    if rate < facts["rates"][0]:
        slope = np.polyfit(logs[:_TAIL], thresholds[:_TAIL], 1)[0]
        return float(thresholds[0] + slope * (math.log(rate) - logs[0]))
    return float(np.interp(math.log(rate), logs, thresholds))


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
        from opqn.baselines.model import load_model  # noqa: PLC0415 (torch)
        from opqn.model import find_device  # noqa: PLC0415 (torch)

        return load_model(folder / "model", find_device())
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
    try:
        detector = FaceDetector(settings, weights=paths[DETECTOR], sha256=own.get(DETECTOR))
        return FacePipeline(detector, FaceEmbedder(paths[EMBEDDER], config, sha256=own.get(EMBEDDER)))
    except ConfigError as error:
        raise CorruptFileError(f"{folder / FILE} is damaged: {error}; restore it from a backup") from error


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
