"""A model against the images of a split file: features of many files, and the report of a protocol."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opqn.data.images import SkippedImage, UnreadableImageError, load_image, to_array
from opqn.data.splits import Split, person_of
from opqn.errors import ConfigError, DataError
from opqn.evaluation import EvaluationReport, evaluate, evaluate_features, quantization_error
from opqn.model import OPQN

IMAGES_AT_ONCE: Final = 256

OnImages = Callable[[int, int], None]
"""Called with how many images are done, and how many there are."""


class ImageFeatures(NamedTuple):
    """Feature vectors of the images that could be read."""

    features: Tensor
    """(N, M*d) float32."""
    paths: tuple[str, ...]
    """N relative paths."""
    skipped: tuple[SkippedImage, ...]

    def people(self) -> NDArray[np.str_]:
        """(N,) the person of each image, by its folder."""
        return np.array([person_of(path) for path in self.paths])


@dataclass(frozen=True)
class SplitReport:
    """How a model does on one split: its codes, beside the uncompressed features they were made of."""

    protocol: str
    split_hash: str
    codes: EvaluationReport
    features: EvaluationReport
    quantization_error: float
    """Of the gallery, see :func:`opqn.evaluation.quantization_error`; 0 for one-hot assignments, below 2."""
    skipped: tuple[SkippedImage, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "protocol": self.protocol,
            "split_hash": self.split_hash,
            "codes": self.codes.to_dict(),
            "features": self.features.to_dict(),
            "quantization_error": self.quantization_error,
            "skipped": [image._asdict() for image in self.skipped],
        }


def image_features(
    model: OPQN, root: Path, paths: Sequence[str], on_images: OnImages = lambda _done, _all: None
) -> ImageFeatures:
    """Run the images below ``root`` through the network; those that cannot be read are skipped and listed.

    Raises:
        DataError: not one image can be read.
    """
    resize = model.config.resize

    def read(path: str) -> NDArray[np.uint8] | SkippedImage:
        try:
            return to_array(load_image(root / path, min_side=resize), resize)
        except UnreadableImageError as error:
            return SkippedImage(path, error.reason)

    features: list[Tensor] = []
    kept: list[str] = []
    skipped: list[SkippedImage] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(paths), IMAGES_AT_ONCE):
            part = paths[start : start + IMAGES_AT_ONCE]
            pixels = []
            for path, result in zip(part, pool.map(read, part), strict=True):
                if isinstance(result, SkippedImage):
                    skipped.append(result)
                else:
                    kept.append(path)
                    pixels.append(result)
            if pixels:
                features.append(model.features(np.stack(pixels)))
            on_images(start + len(part), len(paths))
    if not features:
        first = f": {skipped[0].path}, {skipped[0].reason}" if skipped else ""
        raise DataError(f"none of {len(paths)} images below {root} can be read{first}")
    return ImageFeatures(torch.cat(features), tuple(kept), tuple(skipped))


def evaluate_split(
    model: OPQN,
    root: Path,
    split: Split,
    *,
    k: Sequence[int] = (1, 5, 10),
    query_temperature: float | None = None,
    on_images: OnImages = lambda _done, _all: None,
) -> SplitReport:
    """Evaluate codes and uncompressed features of a split's gallery and queries.

    Args:
        model: any, whatever it was trained on; whether the queries' people were seen is the caller's to know.
        root: folder that the split's paths start from.
        split: see :class:`opqn.data.splits.Split`.
        k: of precision@k, recall@k and CMC.
        query_temperature: None takes the model's own.
        on_images: told of the progress.

    Raises:
        ConfigError: ``query_temperature`` is not a positive finite number.
        DataError: no image of a role can be read, or no query has a match.
    """
    if query_temperature is not None and not 0 < query_temperature < math.inf:
        raise ConfigError(f"query_temperature is {query_temperature}; it must be a positive finite number")
    count = len(split.gallery) + len(split.query)
    gallery = image_features(model, root, split.gallery, lambda done, _: on_images(done, count))
    query = image_features(model, root, split.query, lambda done, _: on_images(len(split.gallery) + done, count))
    return SplitReport(
        split.protocol,
        split.hash,
        evaluate(
            model.encode_features(gallery.features),
            gallery.people(),
            model.tables_of_features(query.features, query_temperature),
            query.people(),
            k,
        ),
        evaluate_features(gallery.features.numpy(), gallery.people(), query.features.numpy(), query.people(), k),
        quantization_error(model.assignments(gallery.features)),
        gallery.skipped + query.skipped,
    )
