"""Judging a model while it is trained, on images held back from the training people.

What the paper leaves open is settled here: which epoch's model is kept, and the query temperature.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opqn.data.augment import center_crop
from opqn.data.dataset import FaceDataset
from opqn.evaluation import evaluate, evaluate_features
from opqn.model import OPQN

EVALUATION_BATCH: Final = 512
QUERY_TEMPERATURES: Final = tuple(float(2 ** (power / 2)) for power in range(-2, 13))  # 0.5 .. 64


def fit_query_temperature(
    gallery_codes: NDArray[np.uint8],
    gallery_labels: NDArray[np.int64],
    tables_at: Callable[[float], NDArray[np.float32]],
    query_labels: NDArray[np.int64],
    temperatures: Sequence[float] = QUERY_TEMPERATURES,
) -> tuple[float, dict[float, float]]:
    """Choose the query temperature T with the highest mAP. Give it data of the training people, never the test queries.

    Args:
        gallery_codes: (N, M) uint8.
        gallery_labels: (N,).
        tables_at: makes the queries' (Q, M, K) float32 tables at a temperature.
        query_labels: (Q,).
        temperatures: candidates.

    Returns:
        The best temperature (of equal ones the nearest to 1, the paper's), and the mAP at each.
    """
    maps = {
        temperature: evaluate(
            gallery_codes, gallery_labels, tables_at(temperature), query_labels
        ).mean_average_precision
        for temperature in temperatures
    }
    return max(maps, key=lambda temperature: (maps[temperature], -abs(math.log(temperature)))), maps


def validate(
    model: OPQN, gallery: FaceDataset, query: FaceDataset, temperatures: Sequence[float] = QUERY_TEMPERATURES
) -> tuple[float, float]:
    """Fit the model's query temperature, for a code can only be judged with a fitting one, and measure.

    Args:
        model: gets the temperature.
        gallery: held-back images of the training people.
        query: others of them.
        temperatures: candidates; a single one is taken as it is.

    Returns:
        The mAP of codes and of uncompressed features.
    """
    features, labels = dataset_features(model, gallery)
    query_features, query_labels = dataset_features(model, query)
    best, maps = fit_query_temperature(
        model.encode_features(features),
        labels,
        lambda temperature: model.tables_of_features(query_features, temperature),
        query_labels,
        temperatures,
    )
    model.with_query_temperature(best)
    on_features = evaluate_features(features.numpy(), labels, query_features.numpy(), query_labels)
    return maps[best], on_features.mean_average_precision


def dataset_features(
    model: OPQN, dataset: FaceDataset, chosen: Sequence[int] | None = None
) -> tuple[Tensor, NDArray[np.int64]]:
    """Return (N, M*d) float32 features of a data set's centre crops, and (N,) labels; ``chosen``: of these images."""
    size = model.config.image_size
    wanted = range(len(dataset)) if chosen is None else chosen
    parts, labels = [], []
    for start in range(0, len(wanted), EVALUATION_BATCH):
        batch = dataset.__getitems__(wanted[start : start + EVALUATION_BATCH])
        parts.append(model.features(model.normalise(center_crop(batch.images, size))))
        labels.append(batch.labels)  # of the images delivered: an unreadable one is replaced by another person's
    return torch.cat(parts), torch.cat(labels).numpy()
