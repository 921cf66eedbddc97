"""Benchmark of quantizers on ready-made face vectors: OPQNQuantizer, FAISS's OPQ and PQ, and ITQ, on the same people.

People are split in halves. Every method is fitted on the vectors of the first half, and ranks each half by itself:
every image of a person with four or more is a query against all other images of the half, and everyone else is there to
be mistaken for them. The first half is seen people, the second unseen ones.

Two means are given: mAP over queries, and over people, of each of whom the queries' average is taken first. Where one
person has a tenth of all images, as in Labeled Faces in the Wild, the former is to a tenth that person's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from opqn.baselines.product_quantization import ProductQuantizer, import_faiss
from opqn.data.vectors import load_vectors
from opqn.errors import ConfigError, DataError
from opqn.estimator import OPQNQuantizer
from opqn.evaluation import evaluate, evaluate_features

MIN_IMAGES: Final = 4
HALVES: Final = ("seen", "unseen")
METHODS: Final = (
    "OPQNQuantizer",
    "OPQNQuantizer, no labels",
    "OPQ",
    "OPQ, 256 words a book",
    "PQ",
    "ITQ, Hamming",
)
FULL: Final = "not quantized"


class Vectors(NamedTuple):
    """Vectors and whose they are."""

    vectors: NDArray[np.float32]
    """(N, D)."""
    people: NDArray[np.intp]
    """(N,) numbers from 0 on."""


class Means(NamedTuple):
    """mAP of one half."""

    queries: float
    """Mean over queries."""
    people: float
    """Mean over people of the mean of each."""


def read(path: Path) -> Vectors:
    """Read vectors and whose they are from a file that ``opqn embed`` or :class:`opqn.data.vectors.VectorSet` wrote.

    Raises:
        DataError: the file cannot be read, or does not say whose the vectors are.
    """
    given = load_vectors(path)
    if given.people is None:
        raise DataError(f"{path} has no array `people`; write it with numpy.savez(path, vectors=..., people=...)")
    return Vectors(given.vectors, np.unique(given.people, return_inverse=True)[1].astype(np.intp))


def halves(data: Vectors, seed: int) -> tuple[Vectors, Vectors]:
    """Split people, not images, at random: the first half, to be fitted on, and the others."""
    num_people = int(data.people.max()) + 1
    is_first = np.zeros(num_people, dtype=bool)
    is_first[np.random.default_rng(seed).permutation(num_people)[: num_people // 2]] = True
    chosen = is_first[data.people]
    return (
        Vectors(data.vectors[chosen], data.people[chosen]),
        Vectors(data.vectors[~chosen], data.people[~chosen]),
    )


def run(
    path: Path,
    bits: Sequence[int] = (24, 36, 48, 64),
    seeds: Sequence[int] = (0, 1, 2),
    *,
    on_stage: Callable[[str], None] = lambda _stage: None,
) -> dict[str, Any]:
    """Fit every method on the first half of the people, and rank both halves.

    Args:
        path: of a file that :func:`read` reads.
        bits: lengths of codes; each method has the code shape of :class:`opqn.OPQNQuantizer`. "OPQ, 256 words a book"
            has fewer and larger books, where the length allows other ones.
        seeds: of the split of people, and of each method.
        on_stage: told what begins.

    Returns:
        A JSON-ready document: the arguments, ``num_vectors``, ``num_people``, ``cpus``, and ``rows``, one for each
        seed, length and method, with ``queries`` and ``people`` mAP of each half, ``shape`` and ``seconds`` to fit.

    Raises:
        ConfigError: no length or no seed.
        DataError: the file cannot be used, or a half has no person with four images.
        OpqnError: FAISS is missing.
    """
    if not bits or not seeds:
        raise ConfigError("bits and seeds must not be empty")
    import_faiss()
    data = read(path)
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        first, second = halves(data, seed)
        parts = dict(zip(HALVES, (first, second), strict=True))
        full = {half: _means_of_vectors(part) for half, part in parts.items()}
        rows.append(_row(seed, None, FULL, None, None, full))
        for length in bits:
            for method in METHODS:
                on_stage(f"seed {seed}, {length} bits: {method}")
                row = _measure(method, length, seed, parts)
                if row is not None:
                    rows.append(row)
    return {
        "file": path.name,
        "bits": list(bits),
        "seeds": list(seeds),
        "num_vectors": len(data.vectors),
        "num_people": int(data.people.max()) + 1,
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "rows": rows,
    }


def table(result: dict[str, Any]) -> str:
    """Lay out what :func:`run` returned as a Markdown table, means over the seeds and their standard deviations."""
    lines = [
        "| bits | method | M x K | unseen mAP | by person | seen mAP | by person | fit, s |",
        "|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    for length in [*result["bits"], None]:
        for method in (*METHODS, FULL):
            rows = [row for row in result["rows"] if row["bits"] == length and row["method"] == method]
            if not rows:
                continue
            figures = [
                _spread([row[half][mean] for row in rows])
                for half in reversed(HALVES)
                for mean in ("queries", "people")
            ]
            shape = rows[0]["shape"]
            size = "-" if shape is None else f"{shape[0]} x {shape[1]}"
            seconds = "-" if rows[0]["seconds"] is None else f"{np.mean([row['seconds'] for row in rows]):.0f}"
            lines.append(f"| {length or '-'} | {method} | {size} | {' | '.join(figures)} | {seconds} |")
    measured = (
        f"{result['file']}: {result['num_vectors']:,} vectors of {result['num_people']:,} people in halves, fitted on "
        f"the first; each image of a person with {MIN_IMAGES} or more against all others of the half; mean and "
        f"standard deviation over {len(result['seeds'])} splits; {result['cpus']} CPUs."
    )
    return "\n".join([*lines, "", measured])


def _measure(method: str, bits: int, seed: int, parts: dict[str, Vectors]) -> dict[str, Any] | None:
    """Fit one method on seen people and rank both halves; None where it has no codes of that length."""
    vectors, people = parts["seen"]
    plain = OPQNQuantizer(bits, random_state=seed)
    shape = plain.num_books, plain.num_words
    start = time.perf_counter()
    if method == "ITQ, Hamming":
        if bits > vectors.shape[1]:
            return None
        shape = (bits, 2)
        encode, tables = _itq(vectors, bits)
    else:
        quantizer: OPQNQuantizer | ProductQuantizer
        if method.startswith("OPQNQuantizer"):
            quantizer = plain.fit(vectors, people if method == "OPQNQuantizer" else None)
        else:
            if method == "OPQ, 256 words a book":
                if bits % 8 or shape == (bits // 8, 256):
                    return None
                shape = (bits // 8, 256)
            if method == "PQ" and vectors.shape[1] % shape[0]:
                return None
            quantizer = ProductQuantizer(*shape, rotation=method != "PQ", seed=seed).fit(vectors)
        encode, tables = quantizer.encode, quantizer.lookup_tables
    seconds = time.perf_counter() - start
    means = {}
    for half, part in parts.items():
        chosen = queries_of(part)
        report = evaluate(
            encode(part.vectors), part.people, tables(part.vectors[chosen]), part.people[chosen], exclude=chosen
        )
        means[half] = _means(report.average_precision, part.people[chosen])
    return _row(seed, bits, method, shape, seconds, means)


def _itq(
    vectors: NDArray[np.float32], bits: int
) -> tuple[Callable[[NDArray[np.float32]], NDArray[np.uint8]], Callable[[NDArray[np.float32]], NDArray[np.float32]]]:
    """Fit FAISS's iterative quantization (Gong et al. 2013); its bits are books of two words, scored by Hamming."""
    faiss = import_faiss()

    def units(rows: NDArray[np.float32]) -> NDArray[np.float32]:
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        return np.ascontiguousarray(rows / np.maximum(lengths, np.finfo(np.float32).tiny), dtype=np.float32)

    transform = faiss.ITQTransform(vectors.shape[1], bits, bits < vectors.shape[1])
    transform.train(units(vectors))

    def encode(rows: NDArray[np.float32]) -> NDArray[np.uint8]:
        codes: NDArray[np.uint8] = (transform.apply(units(rows)) > 0).astype(np.uint8)
        return codes

    def tables(rows: NDArray[np.float32]) -> NDArray[np.float32]:
        agrees: NDArray[np.float32] = (encode(rows)[:, :, None] == np.arange(2)).astype(np.float32)
        return agrees

    return encode, tables


def queries_of(part: Vectors) -> NDArray[np.intp]:
    """Return the positions of the images of people with enough of them.

    Raises:
        DataError: there is none.
    """
    chosen = np.flatnonzero(np.bincount(part.people)[part.people] >= MIN_IMAGES)
    if not chosen.size:
        raise DataError(f"a half of the people has nobody with {MIN_IMAGES} images; give vectors of more people")
    return chosen


def _means_of_vectors(part: Vectors) -> Means:
    chosen = queries_of(part)
    report = evaluate_features(part.vectors, part.people, part.vectors[chosen], part.people[chosen], exclude=chosen)
    return _means(report.average_precision, part.people[chosen])


def _means(average_precision: NDArray[np.float64], people: NDArray[np.intp]) -> Means:
    """Average over queries, and over people."""
    present, numbers = np.unique(people, return_inverse=True)
    sums = np.bincount(numbers, average_precision, len(present))
    return Means(float(average_precision.mean()), float((sums / np.bincount(numbers)).mean()))


def _row(
    seed: int,
    bits: int | None,
    method: str,
    shape: tuple[int, int] | None,
    seconds: float | None,
    means: dict[str, Means],
) -> dict[str, Any]:
    return {
        "seed": seed,
        "bits": bits,
        "method": method,
        "shape": None if shape is None else list(shape),
        "seconds": seconds,
        **{half: mean._asdict() for half, mean in means.items()},
    }


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f} ± {np.std(values):.3f}"
