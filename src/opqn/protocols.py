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
from opqn.index import CodeIndex, score
from opqn.model import OPQN
from opqn.open_set import (
    IdentificationReport,
    RankedPeople,
    VerificationReport,
    identification,
    person_scores,
    verification,
)

IMAGES_AT_ONCE: Final = 256
OPEN_SET_HITS: Final = 100
"""Hits that people are made of, as in a gallery."""
MAX_PAIRS: Final = 10_000_000
"""Of verification, in one report."""

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
class OpenSetFigures:
    """How well scores tell who is known."""

    identification: IdentificationReport
    verification: VerificationReport

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"identification": self.identification.to_dict(), "verification": self.verification.to_dict()}


@dataclass(frozen=True)
class OpenSetReport:
    """Identification where half of the people are strangers, and verification, of codes and uncompressed features."""

    seed: int
    """Of who is enrolled and which pairs are verified."""
    num_enrolled: int
    """People in the gallery."""
    codes: OpenSetFigures
    features: OpenSetFigures

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "seed": self.seed,
            "num_enrolled": self.num_enrolled,
            "codes": self.codes.to_dict(),
            "features": self.features.to_dict(),
        }


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
    open_set: OpenSetReport | None = None
    """With half of the people unknown, if it was asked for."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "protocol": self.protocol,
            "split_hash": self.split_hash,
            "codes": self.codes.to_dict(),
            "features": self.features.to_dict(),
            "quantization_error": self.quantization_error,
            "skipped": [image._asdict() for image in self.skipped],
            **({} if self.open_set is None else {"open_set": self.open_set.to_dict()}),
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
    open_set_seed: int | None = None,
    on_images: OnImages = lambda _done, _all: None,
) -> SplitReport:
    """Evaluate codes and uncompressed features of a split's gallery and queries.

    Args:
        model: any, whatever it was trained on; whether the queries' people were seen is the caller's to know.
        root: folder that the split's paths start from.
        split: see :class:`opqn.data.splits.Split`.
        k: of precision@k, recall@k and CMC.
        query_temperature: None takes the model's own.
        open_set_seed: measure open-set identification and verification too, see :func:`open_set_report`.
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
        None if open_set_seed is None else open_set_report(model, gallery, query, query_temperature, open_set_seed),
    )


def open_set_report(
    model: OPQN, gallery: ImageFeatures, query: ImageFeatures, query_temperature: float | None, seed: int
) -> OpenSetReport:
    """Enrol half of a gallery's people, drawn by ``seed``, and make strangers of the others.

    Probes are the enrolled people's queries. Strangers' faces are all of theirs, queries and gallery. Verification
    takes every query with every gallery image, or of many a sample of the queries.

    Raises:
        DataError: nobody is enrolled or nobody a stranger, or no pair shows one person.
    """
    everyone, numbers = np.unique(np.concatenate([gallery.people(), query.people()]), return_inverse=True)
    in_gallery, in_query = numbers[: len(gallery.paths)], numbers[len(gallery.paths) :]
    rng = np.random.default_rng(seed)
    known = np.zeros(len(everyone), dtype=bool)
    people = np.unique(in_gallery)
    known[rng.permutation(people)[: len(people) // 2]] = True
    if not known.any():
        raise DataError(
            f"{len(people)} people in the gallery cannot be divided into known and unknown; take a larger split"
        )
    features = torch.cat([gallery.features, query.features])
    strangers = np.flatnonzero(~known[numbers])
    probes = len(in_gallery) + np.flatnonzero(known[in_query])
    enrolled = np.flatnonzero(known[in_gallery])
    most = max(1, MAX_PAIRS // max(1, len(in_gallery)))
    pairs = np.sort(rng.permutation(len(in_query))[:most])
    same = (in_query[pairs, None] == in_gallery).ravel()

    codes = model.encode_features(gallery.features)
    index = CodeIndex(model.num_books, model.num_words, "compact")
    index.add(codes[enrolled])

    def by_codes(rows: NDArray[np.intp]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        return index.search(model.tables_of_features(features[rows], query_temperature), OPEN_SET_HITS)

    unit = torch.nn.functional.normalize(features).numpy()

    def by_features(rows: NDArray[np.intp]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        scores = unit[rows] @ unit[enrolled].T
        hits = np.argsort(-scores, axis=1, kind="stable")[:, :OPEN_SET_HITS]
        return np.take_along_axis(scores, hits, axis=1), hits

    def figures(
        search: Callable[[NDArray[np.intp]], tuple[NDArray[np.float32], NDArray[np.int64]]],
        pair_scores: Callable[[NDArray[np.intp]], NDArray[np.float32]],
    ) -> OpenSetFigures:
        def ranked(rows: NDArray[np.intp]) -> RankedPeople:
            scores, hits = search(rows)
            return person_scores(scores, np.where(hits >= 0, in_gallery[enrolled][hits], -1))

        return OpenSetFigures(
            identification(ranked(probes), numbers[probes], ranked(strangers).best, numbers[strangers]),
            verification(pair_scores(len(in_gallery) + pairs).ravel(), same),
        )

    return OpenSetReport(
        seed,
        int(known.sum()),
        figures(by_codes, lambda rows: score(model.tables_of_features(features[rows], query_temperature), codes)),
        figures(by_features, lambda rows: unit[rows] @ unit[: len(in_gallery)].T),
    )
