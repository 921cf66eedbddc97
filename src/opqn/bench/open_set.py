"""Benchmark of thresholds: calibrated with some strangers, does one keep others out at the rate it was asked for?

People are divided in halves; a quantizer learns from the first, and never sees the second. Of the second half a third
is enrolled, a third are strangers to calibrate with and a third are strangers to test with. Enrolled people with
several images have half of them in the gallery; the others are the probes that have to be named.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from opqn.errors import DataError
from opqn.index import CodeIndex
from opqn.open_set import calibrate, identification, leave_one_person_out, person_scores

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from opqn.data.vectors import VectorSet
    from opqn.estimator import OPQNQuantizer
    from opqn.open_set import RankedPeople

HITS = 100
"""As in a gallery."""


class Roles(NamedTuple):
    """Rows of vectors by what they are for."""

    gallery: NDArray[np.intp]
    probes: NDArray[np.intp]
    calibration: NDArray[np.intp]
    test: NDArray[np.intp]


def run(
    vectors: VectorSet,
    *,
    num_bits: int = 64,
    fpir: float = 0.01,
    draws: int = 10,
    seed: int = 0,
    on_stage: Callable[[str], None] = lambda _stage: None,
) -> dict[str, Any]:
    """Calibrate and test.

    Args:
        vectors: with people.
        num_bits: of the codes.
        fpir: the rate wanted.
        draws: times that the second half is divided anew.
        seed: of the halves, the training and the draws.
        on_stage: told what is being done.

    Returns:
        A JSON-ready document; see :func:`table`.

    Raises:
        DataError: no people, or too few.
    """
    from opqn.estimator import OPQNQuantizer  # noqa: PLC0415 (scikit-learn takes a second to load)

    if vectors.people is None:
        raise DataError("the vectors have no people, and thresholds are about people; save `people` with them")
    names, people = np.unique(vectors.people, return_inverse=True)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(names))
    first = np.isin(people, order[: len(names) // 2])
    on_stage(f"training on {len(names) // 2:,} people")
    quantizer = OPQNQuantizer(num_bits=num_bits, random_state=seed).fit(vectors.vectors[first], people[first])
    figures = []
    for draw in range(draws):
        on_stage(f"draw {draw + 1} of {draws}")
        roles = _divide(people, order[len(names) // 2 :], np.random.default_rng([seed, draw]))
        figures.append(_measure(quantizer, vectors.vectors, people, roles, fpir))
    return {
        "num_vectors": len(people),
        "num_people": len(names),
        "num_bits": num_bits,
        "fpir": fpir,
        "seed": seed,
        "draws": figures,
    }


def table(result: dict[str, Any]) -> str:
    """Lay out what :func:`run` returned as Markdown."""
    draws = result["draws"]
    rows = [
        "| calibrated with | FPIR of other strangers: mean | lowest | highest | enrolled people missed (FNIR) |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, key in (("strangers", "strangers"), ("the gallery's own people", "own_people")):
        found = [draw[key] for draw in draws if draw[key] is not None]
        if not found:
            rows.append(f"| {name} | too few people to tell | | | |")
            continue
        rates = [one["fpir"] for one in found]
        missed = statistics.mean(one["fnir"] for one in found)
        rows.append(f"| {name} | {statistics.mean(rates):.2%} | {min(rates):.2%} | {max(rates):.2%} | {missed:.2%} |")
    sizes = draws[0]["sizes"]
    measured = (
        f"{result['num_bits']} bits, threshold for an FPIR of {result['fpir']:.1%}, {len(draws)} draws; "
        f"{sizes['gallery_people']:,} people enrolled with {sizes['gallery']:,} images, {sizes['probes']:,} probes, "
        f"{sizes['calibration_people']:,} strangers to calibrate with, {sizes['test_people']:,} others to test with; "
        f"training on another {result['num_people'] // 2:,} people; seed {result['seed']}."
    )
    return "\n".join([*rows, "", measured])


def _divide(people: NDArray[np.intp], unseen: NDArray[np.intp], rng: np.random.Generator) -> Roles:
    enrolled, calibration, test = np.array_split(rng.permutation(unseen), 3)
    gallery, probes = [], []
    for person in enrolled:
        images = rng.permutation(np.flatnonzero(people == person))
        keep = -(-len(images) // 2)
        gallery.append(images[:keep])
        probes.append(images[keep:])
    return Roles(
        np.concatenate(gallery),
        np.concatenate(probes),
        np.flatnonzero(np.isin(people, calibration)),
        np.flatnonzero(np.isin(people, test)),
    )


def _measure(
    quantizer: OPQNQuantizer, vectors: NDArray[np.float32], people: NDArray[np.intp], roles: Roles, fpir: float
) -> dict[str, Any]:
    index = CodeIndex(quantizer.num_books, quantizer.num_words)
    index.add(quantizer.encode(vectors[roles.gallery]))
    enrolled = people[roles.gallery]
    num_people = len(np.unique(enrolled))

    def ranked(rows: NDArray[np.intp]) -> RankedPeople:
        scores, hits = index.search(quantizer.lookup_tables(vectors[rows]), HITS)
        return person_scores(scores, np.where(hits >= 0, enrolled[hits], -1))

    probes, test = ranked(roles.probes), ranked(roles.test)
    own = leave_one_person_out(
        index.search,
        quantizer.lookup_tables(vectors[roles.gallery]),
        enrolled,
        np.arange(len(enrolled)),
        enrolled,
        HITS,
    )
    limits: dict[str, float | None] = {}
    limits["strangers"] = calibrate(
        ranked(roles.calibration).best, people[roles.calibration], fpir, gallery_people=num_people
    ).threshold
    try:
        limits["own_people"] = calibrate(
            own, enrolled, fpir, gallery_people=num_people - 1, for_people=num_people, mutual=True
        ).threshold
    except DataError:
        limits["own_people"] = None
    report = identification(probes, people[roles.probes], test.best, people[roles.test])
    right = probes.people[:, 0] == people[roles.probes]
    weights = 1 / np.bincount(people[roles.test])[people[roles.test]]  # each stranger counts alike
    return {
        "sizes": {
            "gallery": len(roles.gallery),
            "gallery_people": num_people,
            "probes": len(roles.probes),
            "calibration_people": len(np.unique(people[roles.calibration])),
            "test_people": len(np.unique(people[roles.test])),
        },
        "rank_1": report.rank_at[1],
        **{
            name: None
            if limit is None
            else {
                "threshold": limit,
                "fpir": float(np.average(test.best >= limit, weights=weights)),
                "fnir": float(1 - (right & (probes.best >= limit)).mean()),
            }
            for name, limit in limits.items()
        },
    }
